//! Programs of others that the interoperability tests talk to and the package managers do not have: aiortc in a virtual
//! environment, GStreamer's WebRTC elements as a plugin. Both lie in the target folder, below `peers`, where the tests look.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{cargo, root};

/// Puts aiortc into `peers/aiortc`, once for each content of its requirements.
pub(crate) fn aiortc() -> Result<(), String> {
    let list = root().join("crates/lightpipe-cli/tests/peers/requirements.txt");
    let wanted = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    let folder = folder("aiortc")?;
    let stamp = folder.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    // What an interrupted installation left would be in the way.
    _ = fs::remove_dir_all(&folder);
    let environment = folder.display().to_string();
    succeed(Command::new("python3").args(["-m", "venv", &environment]))?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&list);
    succeed(&mut pip)?;
    fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))
}

/// Builds GStreamer's elements for WHIP and WHEP into `peers/gstreamer`; what is built already stays.
///
/// The plugin is a crate of the registry, and Cargo builds no library of one by itself. A small project that depends on it
/// (`peers/gstreamer`) becomes a shared object with its entry point, whose name GStreamer derives from the file's.
pub(crate) fn gstreamer() -> Result<(), String> {
    let folder = folder("gstreamer")?;
    let target = folder.join("target");
    let project = root().join("peers/gstreamer");
    let mut build = cargo(&["build", "--release", "--locked", "--manifest-path"]);
    succeed(build.arg(project.join("Cargo.toml")).arg("--target-dir").arg(&target))?;
    let built = target.join("release/libgstpeers.so");
    let plugins = folder.join("plugins");
    fs::create_dir_all(&plugins).map_err(|error| format!("{}: {error}", plugins.display()))?;
    let plugin = plugins.join("libgstrswebrtc.so");
    fs::copy(&built, &plugin).map_err(|error| format!("{}: {error}", plugin.display()))?;
    Ok(())
}

/// A folder below `peers` in the target folder, from which Cargo runs us.
fn folder(name: &str) -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|error| format!("where xtask itself is: {error}"))?;
    let target = own.parent().and_then(Path::parent).ok_or("xtask does not run from a target folder")?;
    let folder = target.join("peers").join(name);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let line = format!("{command:?}").replace('"', "");
    println!("$ {line}");
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{status}: {line}")),
        Err(error) => Err(format!("{error}: {line}")),
    }
}
