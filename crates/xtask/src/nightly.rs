//! `cargo xtask nightly`: what takes too long, or too much of the machine, for every change.
//!
//! A long test is marked `#[ignore = "nightly: why"]`. The other reason that lightpipe-testkit lets pass is
//! `runs inside …`: half of a test that another one starts as a process of its own, and that must not run by itself.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::install::For;
use crate::test::{self, Tally};
use crate::{FEATURES, cargo, root};

/// How the output of a job is read.
enum Job {
    /// Tests, counted one by one.
    Tests,
    /// One check that passes with the exit code.
    Check,
}

/// Everything beyond `cargo xtask test`.
#[rustfmt::skip]
const TABLE: &[(&str, Job, &[&str])] = &[
    // One at a time, in release: these measure time, and build networks of which the machine has one.
    ("long tests", Job::Tests, &["test", "--workspace", "--features", FEATURES, "--release", "--no-fail-fast", "--tests", "--", "--ignored", "--test-threads", "1"]),
    ("bench latency", Job::Check, &["run", "--release", "--package", "lightpipe-cli", "--features", FEATURES, "--", "bench", "latency", "--seconds", "60", "--joins", "20", "--gate"]),
    ("bench fanout", Job::Check, &["run", "--release", "--package", "lightpipe-cli", "--features", FEATURES, "--", "bench", "fanout"]),
    ("bench fanout, estimating", Job::Check, &["run", "--release", "--package", "lightpipe-cli", "--features", FEATURES, "--", "bench", "fanout", "--estimate"]),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    ("instructions", Job::Check, &["run", "--package", "xtask", "--", "instructions"]),
];

pub(crate) fn run() -> ExitCode {
    let mut tally = Tally::default();
    test::everything(&mut tally);
    tally.install(For::Nightly);
    for (name, job, args) in TABLE {
        match job {
            Job::Tests => {
                let mut command = cargo(args);
                // The test harness selects by name only, so what is ignored for another reason is named.
                command.args(not_for_the_night(&root().join("crates")).iter().flat_map(|test| ["--skip", test]));
                tally.tests(name, command);
            }
            Job::Check => tally.step(name, cargo(args)),
        }
    }
    tally.finish()
}

/// Names of the tests below a folder that are ignored for another reason than the night.
fn not_for_the_night(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            names.extend(not_for_the_night(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(ignored_otherwise(&fs::read_to_string(&path).unwrap_or_default()));
        }
    }
    names
}

fn ignored_otherwise(source: &str) -> Vec<String> {
    let mut lines = source.lines().map(str::trim_start);
    let mut names = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with("#[ignore") && !line.starts_with("#[ignore = \"nightly: ") {
            let name = lines.find_map(|line| line.split_once("fn ")?.1.split_once('('));
            names.extend(name.map(|(name, _)| name.to_owned()));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_tests_are_not_run_by_themselves() {
        let source = r#"
            #[test]
            #[ignore = "nightly: long"]
            fn long() {}
            #[tokio::test]
            #[ignore = "runs inside `whole`, waits to be killed"]
            #[allow(dead_code)]
            async fn half_that_only_this_fixture_has() {}
            fn other() {}
        "#;
        assert_eq!(ignored_otherwise(source), ["half_that_only_this_fixture_has"]);
    }
}
