//! `cargo xtask run`: from a fresh checkout to a picture.

use std::env;
use std::ffi::OsString;
use std::process::Command;

use crate::install::{self, For};
use crate::{FEATURES, root};

pub(crate) fn run(args: Vec<OsString>) -> Result<(), String> {
    install::ensure(For::Running)?;
    // In the caller's folder, so that relative paths among ARGS mean what they say.
    let mut program = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    program.args(["run", "--release", "--package", "lightpipe-cli", "--features", FEATURES]);
    program.args(["--bin", "lightpipe", "--manifest-path"]);
    program.arg(root().join("Cargo.toml")).arg("--").args(args);
    become_it(program)
}

/// Cargo and we give our place to the program, so that signals reach it and its exit code is ours.
#[cfg(unix)]
fn become_it(mut program: Command) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    Err(format!("cannot start cargo: {}", program.exec()))
}

#[cfg(not(unix))]
fn become_it(mut program: Command) -> Result<(), String> {
    let status = program.status().map_err(|error| format!("cannot start cargo: {error}"))?;
    std::process::exit(status.code().unwrap_or(1))
}
