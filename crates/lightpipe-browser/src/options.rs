//! How a browser is started.

use std::path::PathBuf;
use std::time::Duration;

/// How a browser is started. The defaults suit tests: a fresh profile, 1280×720, light colours, nothing that calls out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The executable. Default: found, see [`Kind::find`](crate::Kind::find).
    pub executable: Option<PathBuf>,
    /// More command-line arguments, after ours: `--force-webrtc-ip-handling-policy=…`,
    /// `--use-fake-device-for-media-stream`. Default none.
    pub args: Vec<String>,
    /// More environment variables. Default none.
    pub env: Vec<(String, String)>,
    /// Firefox preferences beside ours: name and value as JavaScript (`true`, `3`, `"text"`). Default none.
    pub firefox_prefs: Vec<(String, String)>,
    /// Lets Firefox receive H.264 through the system's FFmpeg, where the OpenH264 plugin that it would download is
    /// missing. Receive only: it still cannot send H.264. Chromium brings its own decoder. Default off.
    pub firefox_system_h264: bool,
    /// Fake camera and microphone, granted without asking. Default off.
    pub fake_media_devices: bool,
    /// Accepts self-signed certificates. Default off.
    pub accept_insecure_certs: bool,
    /// Size of the page, CSS pixels, device pixel ratio 1. Default 1280×720.
    pub viewport: (u32, u32),
    /// Whether pages see `prefers-color-scheme: dark`. Default false.
    pub dark: bool,
    /// Longest wait for the browser to open its control port. Default 30 s: a cold start on a busy machine takes seconds.
    pub launch_timeout: Duration,
    /// Longest wait for the answer to one command; loading a page and an evaluated promise are commands. Default 30 s.
    pub command_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            executable: None,
            args: Vec::new(),
            env: Vec::new(),
            firefox_prefs: Vec::new(),
            firefox_system_h264: false,
            fake_media_devices: false,
            accept_insecure_certs: false,
            viewport: (1280, 720),
            dark: false,
            launch_timeout: Duration::from_secs(30),
            command_timeout: Duration::from_secs(30),
        }
    }
}

impl Options {
    /// Uses this executable instead of the one that would be found.
    #[must_use]
    pub fn with_executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = Some(path.into());
        self
    }

    /// Adds a command-line argument.
    #[must_use]
    pub fn with_arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Adds a Firefox preference; the value is JavaScript (`true`, `3`, `"text"`).
    #[must_use]
    pub fn with_firefox_pref(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.firefox_prefs.push((name.into(), value.into()));
        self
    }

    /// Sets [`firefox_system_h264`](Self::firefox_system_h264).
    #[must_use]
    pub fn with_firefox_system_h264(mut self, on: bool) -> Self {
        self.firefox_system_h264 = on;
        self
    }

    /// Sets [`fake_media_devices`](Self::fake_media_devices).
    #[must_use]
    pub fn with_fake_media_devices(mut self, on: bool) -> Self {
        self.fake_media_devices = on;
        self
    }

    /// Sets [`accept_insecure_certs`](Self::accept_insecure_certs).
    #[must_use]
    pub fn with_accept_insecure_certs(mut self, on: bool) -> Self {
        self.accept_insecure_certs = on;
        self
    }

    /// Sets [`viewport`](Self::viewport) and [`dark`](Self::dark).
    #[must_use]
    pub fn with_viewport(mut self, width: u32, height: u32, dark: bool) -> Self {
        self.viewport = (width, height);
        self.dark = dark;
        self
    }

    /// Sets [`command_timeout`](Self::command_timeout).
    #[must_use]
    pub fn with_command_timeout(mut self, longest: Duration) -> Self {
        self.command_timeout = longest;
        self
    }
}
