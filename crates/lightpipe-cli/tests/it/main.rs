//! The whole program on loopback: FFmpeg, Xvfb and pipes in, real browsers and native viewers out.
//!
//! Every test starts the built binary on a free port of 127.0.0.1 and looks at it from outside only: HTTP, WebSocket,
//! media, exit codes. What is missing on the machine (a browser, FFmpeg, Xvfb) fails the test that needs it.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may panic, and tells what it measured"
)]

mod adapt;
mod aiortc;
mod check;
mod clock;
#[cfg(feature = "vpx")]
mod codecs;
mod conference;
mod crowd;
mod desktop;
mod exits;
mod files;
mod film;
mod gstreamer;
mod janus;
mod lab;
mod layers;
mod lifecycle;
mod lossy;
mod mesh;
mod metrics;
mod mic;
mod netlab;
mod outage;
mod pictures;
mod pipes;
mod play;
mod playout;
mod publish;
mod refused;
mod restart;
mod room;
mod shutdown;
mod sound;
mod whep;
mod whip;
mod ws;
