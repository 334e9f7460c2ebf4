//! What sessions make of networks, with the limits that we hold and the figures that we measured (`docs/lab.md`).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it measured")]

mod adapt;
mod crowd;
mod outage;
mod playout;
mod rfc8867;
mod step;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lightpipe_netlab::Lab;

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn lab(seed: u64) -> Lab {
    Lab::new(seed, Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}
