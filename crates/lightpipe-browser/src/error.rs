//! What can go wrong, by whose fault it is.

use std::path::PathBuf;
use std::time::Duration;

use crate::Kind;

/// Why driving a browser failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrowserError {
    /// No executable of that browser was found.
    #[error("{kind} was not found (looked for {looked_for}). {advice}")]
    NotInstalled {
        /// The browser that was asked for.
        kind: Kind,
        /// Variable, names and paths that were tried.
        looked_for: String,
        /// What to install, by system.
        advice: &'static str,
    },
    /// The operating system refused to start the executable.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The temporary profile could not be written.
    #[error("cannot write the browser's temporary profile")]
    Profile(#[source] std::io::Error),
    /// The browser ended, or said nothing of its control port, within the launch timeout.
    #[error("the browser did not open its control port ({reason}); its last words:\n{stderr}")]
    NotListening {
        /// `it ended` or the time waited.
        reason: String,
        /// Last lines of its standard error.
        stderr: String,
    },
    /// The control connection is gone: the browser crashed or was closed.
    #[error("the connection to the browser is closed")]
    Disconnected,
    /// The browser did not answer a command in time.
    #[error("the browser did not answer {method} within {waited:?}")]
    Silent {
        /// The protocol's command.
        method: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The browser refused a command.
    #[error("the browser refused {method}: {message}")]
    Refused {
        /// The protocol's command.
        method: String,
        /// The browser's words.
        message: String,
    },
    /// The browser broke its own protocol.
    #[error("the browser broke the protocol: {0}")]
    PeerMisbehaved(String),
    /// A page could not be loaded.
    #[error("cannot load {url}: {reason}")]
    Navigation {
        /// The address.
        url: String,
        /// The browser's words.
        reason: String,
    },
    /// The page's script threw; the message has the script's stack.
    #[error("the page threw: {0}")]
    Script(String),
    /// A condition did not become true in time.
    #[error("not true after {waited:?}: {condition}\n  last value: {last}\n  console:\n{}", indented(console))]
    NotTrue {
        /// The condition's source.
        condition: String,
        /// How long was waited.
        waited: Duration,
        /// Its last value as JSON, or what it last threw.
        last: String,
        /// Recent console messages of the page, oldest first.
        console: Vec<String>,
    },
    /// This browser has no way to do that.
    #[error("{kind} cannot do that: {what}")]
    Unsupported {
        /// The browser.
        kind: Kind,
        /// What was asked, and what to do instead.
        what: &'static str,
    },
}

fn indented(lines: &[String]) -> String {
    if lines.is_empty() {
        return "    (nothing)".to_owned();
    }
    lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
