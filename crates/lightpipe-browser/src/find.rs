//! Where the system keeps its browsers.

use std::env;
use std::path::{Path, PathBuf};

use crate::{BrowserError, Kind};

struct Places {
    variable: &'static str,
    names: &'static [&'static str],
    /// Relative paths are taken below each of the system's program folders.
    paths: &'static [&'static str],
    advice: &'static str,
}

const CHROMIUM: Places = Places {
    variable: "CHROMIUM",
    names: &["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"],
    paths: if cfg!(target_os = "macos") {
        &[
            "/Applications/Chromium.app/Contents/MacOS/Chromium",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        ]
    } else if cfg!(windows) {
        &[r"Chromium\Application\chrome.exe", r"Google\Chrome\Application\chrome.exe"]
    } else {
        &[]
    },
    advice: "Install it (Debian, Ubuntu: apt-get install chromium; Fedora: dnf install chromium; Arch: pacman -S chromium; \
             macOS: brew install --cask chromium; Windows: winget install Google.Chrome) or name one in the variable CHROMIUM.",
};

const FIREFOX: Places = Places {
    variable: "FIREFOX",
    names: &["firefox-esr", "firefox"],
    paths: if cfg!(target_os = "macos") {
        &["/Applications/Firefox.app/Contents/MacOS/firefox"]
    } else if cfg!(windows) {
        &[r"Mozilla Firefox\firefox.exe"]
    } else {
        &[]
    },
    advice: "Install it (Debian: apt-get install firefox-esr; Ubuntu: apt-get install firefox; Fedora: dnf install firefox; \
             Arch: pacman -S firefox; macOS: brew install --cask firefox; Windows: winget install Mozilla.Firefox) \
             or name one in the variable FIREFOX.",
};

pub(crate) fn executable(kind: Kind) -> Result<PathBuf, BrowserError> {
    let places = match kind {
        Kind::Chromium => &CHROMIUM,
        Kind::Firefox => &FIREFOX,
    };
    let not_installed = |looked_for: String| BrowserError::NotInstalled { kind, looked_for, advice: places.advice };
    if let Some(path) = env::var_os(places.variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        // Whoever names an executable wants that one, not a silent second choice.
        let found = if path.components().count() > 1 { path.is_file().then(|| path.clone()) } else { in_path(&path) };
        return found.ok_or_else(|| not_installed(format!("{}={}", places.variable, path.display())));
    }
    let by_name = places.names.iter().find_map(|name| in_path(Path::new(name)));
    by_name.or_else(|| in_usual_place(places.paths)).ok_or_else(|| {
        let names = places.names.join(", ");
        let paths = places.paths.iter().map(|path| format!(", {path}")).collect::<String>();
        not_installed(format!("the variable {}, {names} in PATH{paths}", places.variable))
    })
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).find_map(|folder| {
        let plain = folder.join(name);
        let candidate = if cfg!(windows) { plain.with_extension("exe") } else { plain };
        candidate.is_file().then_some(candidate)
    })
}

fn in_usual_place(paths: &[&str]) -> Option<PathBuf> {
    let roots = ["ProgramFiles", "ProgramFiles(x86)", "LOCALAPPDATA"].map(|name| env::var_os(name).unwrap_or_default());
    paths.iter().find_map(|path| {
        // Joining an absolute path replaces the root, so macOS paths pass through unchanged.
        roots.iter().map(|root| Path::new(root).join(path)).find(|candidate| candidate.is_file())
    })
}
