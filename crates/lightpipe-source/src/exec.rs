//! `exec:COMMAND`: pictures from any program's standard output.
//!
//! ```text
//! exec:python3 render.py          raw pictures of the configured size and format,
//! exec:gst-launch-1.0 … fdsink    an H.264 byte stream, or NUT: told apart by the first bytes
//! ```
//!
//! The command goes to a shell, so quotes, pipes and variables work. It is supervised like FFmpeg; on a
//! stop it gets SIGTERM, and half a second later it and everything it started is killed. Linux ends the
//! shell when we die without a stop; most shells replace themselves with a single command, so it ends too.

use std::process::Command;

use crate::child::Farewell;
use crate::pipe::PipeFormat;
use crate::supervisor::{self, Plan, SourceError, Watchdog};
use crate::{SourceHandle, VideoSink};

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A line for the shell: `sh -c`, on Windows `cmd /C`.
    pub command: String,
    /// What it writes.
    pub format: PipeFormat,
    /// How long its silence is believed.
    pub watchdog: Watchdog,
}

impl Config {
    /// `command`, writing `format`, watched with the default patience.
    pub fn new(command: impl Into<String>, format: PipeFormat) -> Self {
        Self { command: command.into(), format, watchdog: Watchdog::default() }
    }
}

/// Runs the command and delivers its pictures until the handle is dropped.
pub fn start(config: Config, sink: VideoSink) -> Result<Box<dyn SourceHandle>, SourceError> {
    if config.command.trim().is_empty() {
        return Err(SourceError::NoCommand);
    }
    let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
    let line = config.command;
    let plan = Plan {
        name: shown(&line),
        command: Box::new(move |_| {
            let mut command = Command::new(shell);
            command.args([flag, &line]);
            command
        }),
        missing: format!("the shell `{shell}` was not found"),
        farewell: Farewell::Terminate,
        format: config.format,
        watchdog: config.watchdog,
        capture_delay: std::time::Duration::ZERO,
        may_be_absent: false,
        timeline: None,
    };
    supervisor::start(plan, sink)
}

/// What messages call a command: its program. The rest may hold a token, and messages reach logs.
fn shown(line: &str) -> String {
    let mut words = line.split_whitespace().filter(|w| !w.contains('='));
    match (words.next(), words.next()) {
        (Some(program), None) => format!("`{program}`"),
        (Some(program), Some(_)) => format!("`{program} …`"),
        (None, _) => "the command".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_without_their_arguments() {
        for (line, expected) in [
            ("render", "`render`"),
            (" TOKEN=s3cret ./render --key k", "`./render …`"),
            ("TOKEN=s3cret", "the command"),
        ] {
            assert_eq!(shown(line), expected);
        }
    }
}
