//! `lightpipe publish`, running.

use std::io::{BufRead, BufReader};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::server::{program, send_signal, text_of};
use super::{PATIENCE, until};

/// A running publisher. Dropping it kills it; what it said is shown when the test fails.
#[must_use = "the publisher is killed when this is dropped"]
pub(crate) struct Publishing {
    child: Child,
    stderr: Arc<Mutex<String>>,
    figures: Arc<Mutex<Value>>,
}

/// Publishes the test picture, small, under the name of the endpoint's last path segment.
pub(crate) fn publish(url: &str, args: &[&str]) -> Publishing {
    let mut command = program();
    command.args(["publish", "--source", "pattern", "--host", "127.0.0.1", "--width", "320", "--height", "180"]);
    command.args(["--json", "--whip", url]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stderr = text_of(child.stderr.take().unwrap());
    let figures = Arc::new(Mutex::new(Value::Null));
    let latest = Arc::clone(&figures);
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            *latest.lock().unwrap() = serde_json::from_str(&line).unwrap();
        }
    });
    Publishing { child, stderr, figures }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the publisher's log\n{}---", self.stderr.lock().unwrap());
        }
    }
}

impl Publishing {
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// What it printed last.
    pub(crate) fn figures(&self) -> Value {
        self.figures.lock().unwrap().clone()
    }

    /// Waits until it says so often that it is connected.
    #[track_caller]
    pub(crate) fn wait_connected(&self, times: usize) {
        until("the publisher is connected", PATIENCE, || {
            (self.stderr().matches("connected after").count() >= times).then_some(())
        });
    }

    /// Waits until it has said something.
    #[track_caller]
    pub(crate) fn wait_said(&self, what: &str) {
        until(what, PATIENCE, || self.stderr().contains(what).then_some(()));
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub(crate) fn end(&mut self, longest: Duration) -> ExitStatus {
        send_signal(self.child.id(), Signal::TERM);
        self.wait_exit(longest)
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, longest: Duration) -> ExitStatus {
        until("the publisher's end", longest, || self.child.try_wait().unwrap())
    }
}
