//! What a measurement was taken on.

use serde::Serialize;

/// Stands beside every published figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) version: &'static str,
    pub(crate) commit: String,
    pub(crate) profile: &'static str,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) os: String,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            text.lines()
                .find(|l| l.starts_with(key))
                .and_then(|l| l.split([':', '=']).nth(1))
                .map(|v| v.trim().trim_matches('"').to_owned())
        };
        let git = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
        let commit = git
            .ok()
            .filter(|out| out.status.success())
            .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit.unwrap_or_else(|| "unknown".into()),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
            cpu: field(&text("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            os: field(&text("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(|| std::env::consts::OS.into()),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "lightpipe {} ({}, {}), {} × {}, {}",
            self.version, self.commit, self.profile, self.cores, self.cpu, self.os
        )
    }
}
