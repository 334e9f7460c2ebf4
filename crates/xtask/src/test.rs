//! `cargo xtask test`: every check there is, one number each for what passed and what failed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use crate::install::{self, For};
use crate::{FEATURES, cargo};

/// What passed and what failed so far: single tests, and steps that are one check each.
#[derive(Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

pub(crate) fn run() -> ExitCode {
    let mut tally = Tally::default();
    everything(&mut tally);
    tally.finish()
}

/// The steps of `cargo xtask test`.
pub(crate) fn everything(tally: &mut Tally) {
    tally.install(For::Testing);
    tally.step("fmt", cargo(&["fmt", "--all", "--check"]));
    tally.step(
        "clippy",
        cargo(&["clippy", "--workspace", "--all-targets", "--features", FEATURES, "--", "-D", "warnings"]),
    );
    // As cargo builds it without being told anything.
    tally.step("default features", cargo(&["check", "--package", "lightpipe-cli"]));
    tally.tests("tests", cargo(&["test", "--workspace", "--features", FEATURES, "--no-fail-fast"]));
    let mut doc = cargo(&["doc", "--workspace", "--features", FEATURES, "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    tally.step("doc", doc);
}

impl Tally {
    /// Installs what is missing.
    pub(crate) fn install(&mut self, purpose: For) {
        heading("install");
        // Only a failure counts: the number of passed checks should not depend on how the machine was set up.
        if let Err(problem) = install::ensure(purpose) {
            println!("{problem}");
            self.fail("install");
        }
    }

    /// A command that is one check.
    pub(crate) fn step(&mut self, name: &str, mut command: Command) {
        heading(name);
        match command.status() {
            Ok(status) if status.success() => self.passed += 1,
            Ok(_) => self.fail(name),
            Err(error) => {
                println!("cannot start {}: {error}", command.get_program().display());
                self.fail(name);
            }
        }
    }

    /// A `cargo test`, whose tests are counted one by one while their output passes through.
    pub(crate) fn tests(&mut self, name: &str, mut command: Command) {
        heading(name);
        let mut child = match command.stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("cannot start cargo: {error}");
                return self.fail(name);
            }
        };
        let mut failed_here = 0;
        if let Some(pipe) = child.stdout.take() {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            // Bytes, because a test may print what is not UTF-8.
            while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                _ = std::io::stdout().write_all(&line);
                let text = String::from_utf8_lossy(&line);
                if let Some((passed, failed)) = test_result(&text) {
                    self.passed += passed;
                    failed_here += failed;
                } else if let Some(failed) = text.trim_end().strip_suffix(" ... FAILED") {
                    self.failures.push(failed.to_owned());
                }
                line.clear();
            }
        }
        self.failed += failed_here;
        let succeeded = child.wait().is_ok_and(|status| status.success());
        // Code that does not compile and a test binary that dies print no result line.
        if !succeeded && failed_here == 0 {
            self.fail(name);
        }
    }

    fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// The last line, and the exit code.
    pub(crate) fn finish(self) -> ExitCode {
        println!();
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn heading(name: &str) {
    println!("\n== {name}");
}

/// Passed and failed tests from `test result: ok. 3 passed; 0 failed; …`, the last line of every test binary.
fn test_result(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |word: &str| {
        let part = counts.split("; ").find_map(|part| part.trim().strip_suffix(word))?;
        part.trim().parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        #[track_caller]
        fn check(line: &str, expected: Option<(u64, u64)>) {
            assert_eq!(test_result(line), expected, "{line}");
        }
        check(
            "test result: ok. 13 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 19.85s\n",
            Some((13, 0)),
        );
        check(
            "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n",
            Some((7, 2)),
        );
        check("test tests::one ... ok\n", None);
        check("  test result: ok. 1 passed; 0 failed;\n", None);
        check("test result: strange\n", None);
    }

    #[test]
    fn the_tally_tells_steps_from_tests() {
        let mut tally = Tally::default();
        tally.step("fine", Command::new(env!("CARGO")));
        tally.step("no such program", Command::new("/nonexistent/program"));
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert_eq!(tally.failures, ["no such program"]);
    }
}
