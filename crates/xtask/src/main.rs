//! `cargo xtask …`: the two commands of the README and their relatives. No dependencies, so that it builds in seconds
//! on a machine that has nothing but Rust.

#![allow(clippy::print_stdout, reason = "talking to a person in a terminal is what it is for")]

mod install;
mod instructions;
mod nightly;
mod peers;
mod run;
mod test;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask run [ARGS…]   install what is missing, build lightpipe, run it with ARGS
cargo xtask test          install what is missing, run every check; last line `N passed, N failed`
cargo xtask nightly       the same, then the long tests and the benches
cargo xtask instructions [VIEWERS]
                          count a packet's instructions in an emulated machine, for 10 viewers or up to 20 (Debian)
cargo xtask install [nightly]
                          only install what is missing, for the long tests as well";

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    let done = match (task.to_str(), rest.is_empty()) {
        (Some("run"), _) => run::run(rest),
        (Some("test"), true) => return test::run(),
        (Some("nightly"), true) => return nightly::run(),
        (Some("instructions"), _) => instructions::run(&rest),
        (Some("install"), true) => install::ensure(install::For::Testing),
        (Some("install"), false) if rest == ["nightly"] => {
            install::ensure(install::For::Testing).and_then(|()| install::ensure(install::For::Nightly))
        }
        (Some("help" | "--help" | "-h"), _) => {
            println!("{HELP}");
            Ok(())
        }
        _ => Err(format!("what should be done?\n\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Cargo, the one that started us, in the workspace's root.
fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// What the program that we build and test has beyond cargo's defaults, because [`install`] can bring what it needs: VP8 and peers with RSA
/// certificates, but on Windows, which has no package of libvpx, and libclang only with all of LLVM.
const FEATURES: &str = if cfg!(windows) { "" } else { "lightpipe-cli/vpx,lightpipe-cli/rsa" };

/// The workspace's root folder.
fn root() -> PathBuf {
    let own = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(own).join("../..")
}
