//! Drives an installed Chromium or Firefox, headless, from Rust.
//!
//! `lightpipe bench latency` measures the picture where the viewer sees it, and the end-to-end tests look at pages as
//! people do; both need two browsers and very little of each. Chromium is spoken to over the DevTools protocol,
//! Firefox over WebDriver BiDi, both through one WebSocket on loopback. Nothing is downloaded: the browser is the one
//! that the system has.
//!
//! ```no_run
//! # async fn demo() -> Result<(), lightpipe_browser::BrowserError> {
//! use lightpipe_browser::{Browser, Kind, Options};
//! use std::time::Duration;
//!
//! let browser = Browser::launch(Kind::Chromium, Options::default()).await?;
//! let page = browser.open("http://127.0.0.1:8080/watch/cube").await?;
//! page.wait_until("document.querySelector('video').currentTime > 1", Duration::from_secs(5)).await?;
//! let width = page.evaluate("document.querySelector('video').videoWidth").await?;
//! assert_eq!(width, 1280);
//! browser.close().await
//! # }
//! ```
//!
//! Left out on purpose: clicking by coordinates, network interception, downloads, more than one user profile.

mod bidi;
mod cdp;
mod console;
mod error;
mod find;
mod options;
mod page;
mod process;
mod wire;

pub use error::BrowserError;
pub use options::Options;
pub use page::Page;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use process::Process;
use wire::Wire;

/// Which browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Chromium, Chrome, or another browser of that family.
    Chromium,
    /// Firefox, release or extended support.
    Firefox,
}

impl Kind {
    /// Both kinds, for tests that repeat themselves in each.
    pub const ALL: [Self; 2] = [Self::Chromium, Self::Firefox];

    /// The executable that [`Browser::launch`] would start: the one named by the environment variable `CHROMIUM` or
    /// `FIREFOX`, else the first of the usual names in `PATH`, else the usual place on macOS and Windows.
    ///
    /// # Errors
    /// [`BrowserError::NotInstalled`], with the name of the package to install.
    pub fn find(self) -> Result<PathBuf, BrowserError> {
        find::executable(self)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chromium => "Chromium",
            Self::Firefox => "Firefox",
        })
    }
}

/// A running headless browser with a fresh profile.
///
/// Dropping it kills the browser's whole process group, waits for the end and removes the profile; that takes some
/// tens of milliseconds, so an async caller that cares uses [`close`](Self::close). On Linux the browser also dies
/// when this program is killed.
#[derive(Debug)]
#[must_use = "the browser is killed when this is dropped"]
pub struct Browser {
    kind: Kind,
    version: String,
    options: Options,
    wire: Arc<Wire>,
    process: Process,
}

impl Browser {
    /// Starts the browser and connects to it.
    ///
    /// # Errors
    /// When it is not installed, does not start, or ends before it has named its control port; the error then carries
    /// what the browser wrote to its standard error.
    pub async fn launch(kind: Kind, options: Options) -> Result<Self, BrowserError> {
        let executable = match options.executable.clone() {
            Some(path) => path,
            None => kind.find()?,
        };
        let mut process = match kind {
            Kind::Chromium => Process::start(&executable, &options, cdp::prepare)?,
            Kind::Firefox => Process::start(&executable, &options, bidi::prepare)?,
        };
        let endpoint = process.endpoint(options.launch_timeout).await?;
        let (wire, version) = match kind {
            Kind::Chromium => cdp::connect(&endpoint, &options).await?,
            Kind::Firefox => bidi::connect(&endpoint, &options).await?,
        };
        tracing::debug!(%kind, version, pid = process.pid(), "browser started");
        Ok(Self { kind, version, options, wire, process })
    }

    /// Opens a page in a window of its own, so that no page is ever in the background, and waits for its load event.
    ///
    /// # Errors
    /// [`BrowserError::Navigation`] when the page cannot be loaded.
    pub async fn open(&self, url: &str) -> Result<Page, BrowserError> {
        let target = match self.kind {
            Kind::Chromium => page::Target::Cdp(cdp::open(&self.wire, &self.options).await?),
            Kind::Firefox => page::Target::Bidi(bidi::open(&self.wire, &self.options).await?),
        };
        let page = Page::new(Arc::clone(&self.wire), target);
        page.navigate(url).await?;
        Ok(page)
    }

    /// Asks the browser to end, gives it two seconds, then does what dropping does, without blocking the runtime.
    ///
    /// # Errors
    /// None today: a browser that does not answer is killed.
    pub async fn close(self) -> Result<(), BrowserError> {
        let Self { kind, wire, mut process, .. } = self;
        let polite = async {
            match kind {
                Kind::Chromium => wire.call(None, "Browser.close", serde_json::json!({})).await,
                Kind::Firefox => wire.call(None, "browser.close", serde_json::json!({})).await,
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), polite).await.is_err() {
            tracing::debug!(%kind, "browser did not answer the request to close");
        }
        drop(wire);
        // A join error means that the keeper's thread panicked; the process group is gone either way.
        let ended = tokio::task::spawn_blocking(move || process.end()).await;
        ended.map_err(|panicked| BrowserError::PeerMisbehaved(format!("closing: {panicked}")))
    }

    /// Which browser this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Name and version as the browser tells them, for reports: `Chrome/156.0.1.2`, `firefox/153.7.0`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Process id of the browser's main process; it leads a process group of the same number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The last lines that the browser wrote to its standard error, oldest first.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.process.stderr_tail()
    }
}
