//! Installs what building and testing need and the system lacks. Quick when nothing is missing: it looks for files and
//! asks the package manager only about what has no program.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::{cargo, peers};

/// What the things are needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// `cargo xtask run`
    Running,
    /// `cargo xtask test`; includes the former.
    Testing,
    /// `cargo xtask nightly`; includes the first.
    Nightly,
    /// `cargo xtask instructions`, which is for Debian; includes the first.
    Counting,
}

/// How to see that something is there.
enum Sign {
    /// One of these programs is on the search path or in a system folder.
    Program(&'static [&'static str]),
    /// pkg-config finds this library with its headers.
    Library(&'static str),
    /// Debian has the package, because the compiler's own headers belong to it; elsewhere the library lies in a usual folder.
    SharedObject(&'static str),
    /// A Debian package is installed; other systems are not asked.
    Package,
}

struct Need {
    since: For,
    why: &'static str,
    sign: Sign,
    /// Debian and Ubuntu names, the first that the archive has.
    debian: &'static [&'static str],
    fedora: &'static str,
    arch: &'static str,
    /// Empty where the system has it or cannot have it.
    brew: &'static str,
    winget: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        since: For::Running,
        why: "the H.264 encoder's fast paths are assembly",
        sign: Sign::Program(&["nasm"]),
        debian: &["nasm"],
        fedora: "nasm",
        arch: "nasm",
        brew: "nasm",
        winget: "NASM.NASM",
    },
    Need {
        since: For::Running,
        why: "the sound codec is built with it",
        sign: Sign::Program(&["cmake"]),
        debian: &["cmake"],
        fedora: "cmake",
        arch: "cmake",
        brew: "cmake",
        winget: "Kitware.CMake",
    },
    Need {
        since: For::Running,
        why: "the codecs and the cryptography are C and C++",
        sign: Sign::Program(if cfg!(windows) { &["cl", "clang-cl", "rustc"] } else { &["c++", "g++", "clang++"] }),
        debian: &["g++"],
        fedora: "gcc-c++",
        arch: "gcc",
        brew: "llvm",
        winget: "Microsoft.VisualStudio.2022.BuildTools",
    },
    Need {
        since: For::Running,
        why: "build scripts look for libraries with it",
        sign: Sign::Program(if cfg!(windows) { &["rustc"] } else { &["pkg-config", "pkgconf"] }),
        debian: &["pkg-config"],
        fedora: "pkgconf-pkg-config",
        arch: "pkgconf",
        brew: "pkgconf",
        winget: "",
    },
    Need {
        since: For::Running,
        why: "browsers without H.264 get VP8 from it",
        // Windows has no package of it, and what is built there does without.
        sign: if cfg!(windows) { Sign::Package } else { Sign::Library("vpx") },
        debian: &["libvpx-dev"],
        fedora: "libvpx-devel",
        arch: "libvpx",
        brew: "libvpx",
        winget: "",
    },
    Need {
        since: For::Running,
        why: "the bindings of the library that speaks DTLS are made with it",
        // What is built on Windows does without.
        sign: if cfg!(windows) { Sign::Package } else { Sign::SharedObject("libclang") },
        debian: &["libclang-dev"],
        fedora: "clang-devel",
        arch: "clang",
        brew: "llvm",
        winget: "",
    },
    Need {
        since: For::Running,
        why: "cameras, files and foreign desktops come in through it",
        sign: Sign::Program(&["ffmpeg"]),
        debian: &["ffmpeg"],
        fedora: "ffmpeg-free",
        arch: "ffmpeg",
        brew: "ffmpeg",
        winget: "Gyan.FFmpeg",
    },
    Need {
        since: For::Testing,
        why: "end-to-end tests look at real pages",
        sign: Sign::Program(&["chromium", "chromium-browser", "google-chrome"]),
        debian: &["chromium", "chromium-browser"],
        fedora: "chromium",
        arch: "chromium",
        brew: "--cask chromium",
        winget: "Google.Chrome",
    },
    Need {
        since: For::Testing,
        why: "end-to-end tests look at real pages",
        sign: Sign::Program(&["firefox-esr", "firefox"]),
        debian: &["firefox-esr", "firefox"],
        fedora: "firefox",
        arch: "firefox",
        brew: "--cask firefox",
        winget: "Mozilla.Firefox",
    },
    Need {
        since: For::Testing,
        why: "desktop tests capture a virtual X server",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["Xvfb"] } else { &["cargo"] }),
        debian: &["xvfb"],
        fedora: "xorg-x11-server-Xvfb",
        arch: "xorg-server-xvfb",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "desktop tests type into it",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["xterm"] } else { &["cargo"] }),
        debian: &["xterm"],
        fedora: "xterm",
        arch: "xterm",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "sound tests listen to an output that nobody hears",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["pulseaudio"] } else { &["cargo"] }),
        debian: &["pulseaudio"],
        fedora: "pulseaudio",
        arch: "pulseaudio",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "sound tests make and remove that output",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["pactl"] } else { &["cargo"] }),
        debian: &["pulseaudio-utils"],
        fedora: "pulseaudio-utils",
        arch: "libpulse",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "a peer whose clock runs fast is heard",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["faketime"] } else { &["cargo"] }),
        debian: &["faketime"],
        fedora: "libfaketime",
        arch: "libfaketime",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "rendering tests on machines without a GPU",
        sign: Sign::Package,
        debian: &["mesa-vulkan-drivers"],
        fedora: "mesa-vulkan-drivers",
        arch: "vulkan-swrast",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "rendering tests without a window system",
        sign: Sign::Package,
        debian: &["libegl1"],
        fedora: "mesa-libEGL",
        arch: "libglvnd",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "nightly tests build network namespaces",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["ip"] } else { &["cargo"] }),
        debian: &["iproute2"],
        fedora: "iproute",
        arch: "iproute2",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "nightly tests hand packets to a bad network",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["iptables"] } else { &["cargo"] }),
        debian: &["iptables"],
        fedora: "iptables-nft",
        arch: "iptables",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "a WebRTC peer of others, aiortc, runs in it",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["python3"] } else { &["cargo"] }),
        debian: &["python3"],
        fedora: "python3",
        arch: "python",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Testing,
        why: "aiortc is installed into a virtual environment",
        sign: Sign::Package,
        debian: &["python3-venv"],
        fedora: "",
        arch: "",
        brew: "",
        winget: "",
    },
    gstreamer("gst-launch-1.0 and all that is not a plugin", &["gstreamer1.0-tools"]),
    gstreamer("headers", &["libgstreamer1.0-dev"]),
    gstreamer("headers", &["libgstreamer-plugins-base1.0-dev"]),
    gstreamer("headers of webrtcbin", &["libgstreamer-plugins-bad1.0-dev"]),
    gstreamer("ICE", &["gstreamer1.0-nice"]),
    gstreamer("test pictures, Opus", &["gstreamer1.0-plugins-base"]),
    gstreamer("RTP, VP8", &["gstreamer1.0-plugins-good"]),
    gstreamer("webrtcbin, DTLS, SRTP", &["gstreamer1.0-plugins-bad"]),
    gstreamer("an H.264 encoder", &["gstreamer1.0-plugins-ugly"]),
    gstreamer("an H.264 decoder", &["gstreamer1.0-libav"]),
    Need {
        since: For::Nightly,
        why: "a WebRTC peer of others",
        sign: Sign::Program(if cfg!(target_os = "linux") { &["janus"] } else { &["cargo"] }),
        debian: &["janus"],
        fedora: "",
        arch: "",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Counting,
        why: "instructions are counted in an emulated machine",
        sign: Sign::Program(&["qemu-system-x86_64"]),
        debian: &["qemu-system-x86"],
        fedora: "",
        arch: "",
        brew: "",
        winget: "",
    },
    Need {
        since: For::Counting,
        why: "the emulated machine's shell",
        sign: Sign::Package,
        debian: &["busybox-static"],
        fedora: "",
        arch: "",
        brew: "",
        winget: "",
    },
];

/// A part of GStreamer, a WebRTC peer of others. Other systems than Debian do not run those tests by themselves.
const fn gstreamer(why: &'static str, debian: &'static [&'static str]) -> Need {
    Need { since: For::Nightly, why, sign: Sign::Package, debian, fedora: "", arch: "", brew: "", winget: "" }
}

/// Tries of a package installation. Another one may hold the lock, or a mirror be in the middle of an update.
const TRIES: u32 = 3;

/// Installs what is missing, or says exactly what a person has to install.
pub(crate) fn ensure(purpose: For) -> Result<(), String> {
    let debian = program(&["apt-get"]);
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| need.since == purpose || need.since == For::Running)
        .filter(|need| !present(need, debian))
        .collect();
    if !missing.is_empty() {
        for need in &missing {
            println!("missing: {} ({})", need.debian[0], need.why);
        }
        if !debian {
            return Err(instructions(&missing));
        }
        apt(&missing)?;
    }
    match purpose {
        For::Testing => {
            rust_components().and_then(|()| if cfg!(target_os = "linux") { peers::aiortc() } else { Ok(()) })
        }
        For::Nightly if cfg!(target_os = "linux") => peers::gstreamer(),
        _ => Ok(()),
    }
}

fn present(need: &Need, debian: bool) -> bool {
    match need.sign {
        Sign::Program(names) => program(names),
        Sign::Library(name) => library(name),
        Sign::SharedObject(name) if !debian => shared_object(name),
        Sign::SharedObject(_) | Sign::Package => !debian || need.debian.iter().any(|name| package(name)),
    }
}

/// Whether one of these programs is there.
pub(crate) fn program(names: &[&str]) -> bool {
    // The system folders too: people who are not root do not have them on their search path.
    let search = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&search).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let suffix = env::consts::EXE_SUFFIX;
    let in_path =
        folders.into_iter().any(|folder| names.iter().any(|name| folder.join(format!("{name}{suffix}")).is_file()));
    in_path || names.iter().any(|name| in_usual_place(name))
}

/// Browsers outside of the search path, where lightpipe-browser finds them as well.
fn in_usual_place(name: &str) -> bool {
    let below_program_files = |path: &str| {
        let folders = ["ProgramFiles", "ProgramFiles(x86)", "LOCALAPPDATA"]
            .map(|variable| env::var_os(variable).unwrap_or_default());
        folders.iter().any(|folder| Path::new(folder).join(path).is_file())
    };
    match name {
        "chromium" if cfg!(target_os = "macos") => {
            ["Chromium.app", "Google Chrome.app"].iter().any(|app| Path::new("/Applications").join(app).is_dir())
        }
        "firefox" if cfg!(target_os = "macos") => Path::new("/Applications/Firefox.app").is_dir(),
        "chromium" if cfg!(windows) => below_program_files(r"Google\Chrome\Application\chrome.exe"),
        "firefox" if cfg!(windows) => below_program_files(r"Mozilla Firefox\firefox.exe"),
        _ => false,
    }
}

fn library(name: &str) -> bool {
    let found = Command::new("pkg-config").args(["--exists", name]).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Where the build script of `clang-sys` looks as well.
fn shared_object(name: &str) -> bool {
    let usual = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/opt/homebrew/opt/llvm/lib",
        "/usr/local/opt/llvm/lib",
        "/Library/Developer/CommandLineTools/usr/lib",
    ];
    let folders = env::var_os("LIBCLANG_PATH").into_iter().chain(usual.map(OsString::from));
    let files = folders.flat_map(fs::read_dir).flatten().flatten();
    // Not the likes of libclang-cpp.so.
    let begin = [format!("{name}.so"), format!("{name}.dylib")];
    files.into_iter().any(|file| begin.iter().any(|begin| file.file_name().to_string_lossy().starts_with(begin)))
}

fn package(name: &str) -> bool {
    let status = Command::new("dpkg-query").args(["-W", "-f=${Status}", name]).stderr(Stdio::null()).output();
    status.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("install ok installed"))
}

fn apt(missing: &[&Need]) -> Result<(), String> {
    let by_hand = || instructions(missing);
    let Some(prefix) = administrator() else { return Err(by_hand()) };
    for attempt in 1..=TRIES {
        // A list that is a little old may still name packages that are there, so a failed update is no reason to stop.
        if !apt_get(&prefix, &["update"]) {
            println!("apt-get update failed, going on with the lists that are there");
        }
        let names: Vec<&str> = missing.iter().map(|need| in_archive(need)).collect();
        if apt_get(&prefix, &[&["install", "--no-install-recommends"][..], &names].concat()) {
            return Ok(());
        }
        if attempt < TRIES {
            println!("apt-get install failed, trying again");
            thread::sleep(Duration::from_secs(10));
        }
    }
    Err(by_hand())
}

/// Lets the package manager look what the archive has. Where that fails, what is asked for next says what is wrong.
pub(crate) fn update_lists() {
    if let Some(prefix) = administrator() {
        apt_get(&prefix, &["update"]);
    }
}

fn apt_get(prefix: &[&str], args: &[&str]) -> bool {
    let command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300"];
    let line: Vec<&str> = prefix.iter().chain(&command).chain(args).copied().collect();
    println!("$ {}", line.join(" "));
    Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The first of the package's names that this release of the system has.
fn in_archive(need: &Need) -> &'static str {
    let known = |name: &&&str| {
        let shown = Command::new("apt-cache").args(["show", "--quiet", name]).stderr(Stdio::null()).output();
        shown.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
    };
    need.debian.iter().find(known).unwrap_or(&need.debian[0])
}

/// What to put before a command that only the administrator may run; `None` when there is no way without a password.
fn administrator() -> Option<Vec<&'static str>> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    if root {
        return Some(Vec::new());
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
    sudo.is_ok_and(|status| status.success()).then(|| vec!["sudo"])
}

fn instructions(missing: &[&Need]) -> String {
    let list = |name: fn(&Need) -> &'static str, separator: &str| {
        let names: Vec<&str> = missing.iter().map(|need| name(need)).filter(|name| !name.is_empty()).collect();
        names.join(separator)
    };
    let mut text = "something has to be installed first:".to_owned();
    let lines = [
        ("Debian, Ubuntu", "sudo apt-get install ", list(|need| need.debian[0], " ")),
        ("Fedora", "sudo dnf install ", list(|need| need.fedora, " ")),
        ("Arch", "sudo pacman -S ", list(|need| need.arch, " ")),
        ("macOS", "brew install ", list(|need| need.brew, " && brew install ")),
        ("Windows", "winget install ", list(|need| need.winget, " && winget install ")),
    ];
    for (system, command, names) in lines.iter().filter(|(_, _, names)| !names.is_empty()) {
        text.push_str(&format!("\n  {system:<15} {command}{names}"));
    }
    text
}

fn rust_components() -> Result<(), String> {
    let there = |tool: &str| {
        let version = cargo(&[tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    if there("fmt") && there("clippy") {
        return Ok(());
    }
    let added = Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]).status();
    if added.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err("rustfmt and clippy are missing: `rustup component add rustfmt clippy`, or your system's packages of these names".to_owned())
}
