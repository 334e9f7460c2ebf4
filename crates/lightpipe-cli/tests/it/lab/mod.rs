//! What the tests share: a server process, an HTTP client, a native viewer, browsers.

pub(crate) mod browser;
pub(crate) mod hear;
pub(crate) mod http;
pub(crate) mod narrow;
pub(crate) mod peers;
pub(crate) mod publishing;
pub(crate) mod server;
pub(crate) mod standin;
pub(crate) mod viewer;

use std::time::{Duration, Instant};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use browser::{chromium, firefox};
pub(crate) use server::{Server, send_signal, serve};
pub(crate) use viewer::Viewer;

/// Longer than anything takes on a busy two-core machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Longer than a session outlives a browser that vanished without a word: it might be in a tunnel and come back after half a minute.
pub(crate) const GIVEN_UP: Duration = Duration::from_secs(70);

/// A moving picture from FFmpeg that costs next to nothing.
pub(crate) const LAVFI: &str = "ffmpeg:-re -f lavfi -i testsrc2=size=320x180:rate=30";

/// Tests that measure, or that load the machine with a browser, run alone; the others beside each other.
static MACHINE: RwLock<()> = RwLock::const_new(());

/// The machine for oneself.
pub(crate) async fn quiet() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// The machine with others.
pub(crate) async fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// Tries until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, longest: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + longest;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "not within {longest:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Signed distance of two RTP timestamps, which wrap.
pub(crate) fn ticks(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}
