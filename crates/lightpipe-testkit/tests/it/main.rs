//! Checks of the repository itself, and the laboratory of namespaces.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it measured")]

mod fuzz_smoke;
mod layers;
#[cfg(target_os = "linux")]
mod netns;
mod source_text;

use std::path::PathBuf;

/// The workspace's root folder.
fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}
