//! Media threads that go before everything else that wants their core.
//!
//! A media thread works for some 15 µs per viewer and picture and then waits. On a busy machine the scheduler gives its core away between two viewers,
//! to an encoder or to a browser, for a time slice: 20 viewers of a forwarded stream on two full cores waited 2.2 ms at p95 and 3 to 4 ms at p99, in real
//! time 0.5 and 0.6 to 0.8. The price is that each datagram of feedback is served by itself instead of together with the next ones: with 50
//! viewers 1.2 µs more for each packet sent, of 6.7.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use serde::{Deserialize, Serialize};
use tracing::debug;

/// When media threads have real-time priority, where the system allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Realtime {
    /// From the first publisher on: what is only passed on has no encoder here to wait for.
    #[default]
    Auto,
    /// From the start.
    Always,
    /// Not at all.
    Never,
}

/// Puts the calling thread into the scheduler's real-time class, at its least priority. Linux leaves 5 % of each core to others whatever such threads
/// do. The error says why the system does not allow it.
#[cfg(unix)]
pub fn make_realtime() -> Result<(), String> {
    use thread_priority::unix::{set_thread_priority_and_policy, thread_native_id};
    use thread_priority::{Error, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy).map_err(|error| match error {
        Error::OS(code) => std::io::Error::from_raw_os_error(code).to_string(),
        other => other.to_string(),
    })
}

/// Not done for this system yet.
#[cfg(not(unix))]
pub fn make_realtime() -> Result<(), String> {
    Err("not supported on this system".into())
}

/// What the threads of an engine know of each other's work and priority.
#[derive(Debug, Default)]
pub(super) struct Priorities {
    /// There was a publisher.
    forwards: AtomicBool,
    realtime: AtomicUsize,
}

impl Priorities {
    /// A publisher came.
    pub(super) fn add_publisher(&self) {
        self.forwards.store(true, Relaxed);
    }

    /// Threads that have real-time priority.
    pub(super) fn realtime(&self) -> usize {
        self.realtime.load(Relaxed)
    }
}

/// One thread's priority.
#[derive(Debug)]
pub(super) struct Priority {
    when: Realtime,
    /// It was asked for, with whatever success.
    asked: bool,
}

impl Priority {
    pub(super) const fn new(when: Realtime) -> Self {
        Self { when, asked: false }
    }

    /// Asks for real-time priority for the calling thread when it is time to.
    pub(super) fn follow(&mut self, all: &Priorities) {
        let wanted = match self.when {
            _ if self.asked => return,
            Realtime::Auto => all.forwards.load(Relaxed),
            Realtime::Always => true,
            Realtime::Never => false,
        };
        if !wanted {
            return;
        }
        self.asked = true;
        match make_realtime() {
            Ok(()) => _ = all.realtime.fetch_add(1, Relaxed),
            Err(error) => debug!(%error, "no real-time priority: pictures may wait for busy neighbours"),
        }
    }
}
