//! Rules that a look at the text can hold.

use std::fs;
use std::path::{Path, PathBuf};

use crate::repository;

/// A file that is longer has more than one subject.
const LONGEST_FILE: usize = 1_500;

/// Every file below a folder, build outputs aside.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_dir() {
                found.push(path);
            } else if path.file_name().is_some_and(|name| name != "target" && name != "node_modules") {
                open.push(path);
            }
        }
    }
    found
}

fn rust_below(folder: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files_below(folder).into_iter().filter(rust).map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    })
}

/// Code without its comments and without the tests below it.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let production = text.split("#[cfg(test)]").next().unwrap_or_default();
    production.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[track_caller]
fn check(folder: &Path, text: impl Fn(&str) -> Vec<(usize, String)>, banned: &[String]) {
    for (path, source) in rust_below(folder) {
        for (number, line) in text(&source) {
            let found = banned.iter().find(|word| line.contains(word.as_str()));
            assert!(found.is_none(), "{}:{}: {}", path.display(), number + 1, line.trim());
        }
    }
}

#[test]
fn thinking_crates_have_no_clock_no_sleep_and_no_socket() {
    let banned = ["Instant::now(", "SystemTime::now(", "thread::sleep", "std::net::UdpSocket", "UdpSocket::bind"];
    for name in ["lightpipe-media", "lightpipe-signal", "lightpipe-rtc", "lightpipe-netlab"] {
        let folder = repository().join("crates").join(name).join("src");
        let text = |source: &str| code(source).map(|(n, line)| (n, line.to_owned())).collect();
        check(&folder, text, &banned.map(str::to_owned));
    }
}

#[test]
fn nothing_is_left_to_do() {
    // Put together here, so that this file does not find itself.
    let banned = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let text = |source: &str| source.lines().map(str::to_owned).enumerate().collect();
    check(&repository().join("crates"), text, &banned);
}

#[test]
fn no_file_is_longer_than_one_subject() {
    for path in files_below(&repository().join("crates")) {
        // What is not text has no lines.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
    }
}

/// `cargo xtask nightly` goes by the first word: it runs what is for the night and leaves out halves of other tests.
#[test]
fn ignored_tests_say_who_runs_them() {
    let reason = |first: &str| format!("#[{} = \"{first} ", "ignore");
    let (ignored, reasons) = (format!("#[{}", "ignore"), [reason("nightly:"), reason("runs inside")]);
    for (path, source) in rust_below(&repository().join("crates")) {
        for line in source.lines().map(str::trim_start).filter(|line| line.starts_with(&ignored)) {
            assert!(reasons.iter().any(|known| line.starts_with(known)), "{}: {line}", path.display());
        }
    }
}
