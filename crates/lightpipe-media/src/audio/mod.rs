//! Sound: raw blocks, encoded packets, and what cuts the first into frames for the second.

mod align;
mod framer;

use std::sync::Arc;
use std::time::Duration;

pub use align::{Aligner, MAX_DRIFT};
pub use framer::{Frame, Framer};

use crate::time::MediaTime;

/// Samples per second inside lightpipe, and ticks of the RTP clock of Opus (RFC 7587 §4.1).
pub const SAMPLE_RATE_HZ: u32 = 48_000;

/// Samples of one channel in an encoded frame of ordinary length: 20 ms.
pub const FRAME_SAMPLES: usize = 960;

/// Raw sound of any length with the capture time of its first sample.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioBlock {
    /// When the first sample was taken.
    pub captured: MediaTime,
    /// Samples of one channel per second.
    pub rate_hz: u32,
    /// 1 or 2 channels; more are not mixed down here.
    pub channels: usize,
    /// Interleaved samples, -1 to 1. What does not fill all channels at the end is ignored.
    pub samples: Vec<f32>,
}

impl AudioBlock {
    /// Samples of one channel.
    pub fn len(&self) -> usize {
        self.samples.len().checked_div(self.channels).unwrap_or(0)
    }

    /// Whether there is no whole sample in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One encoded frame of sound (Opus, RFC 6716). Shared by all outlets behind an `Arc`; it is its own RTP payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AudioPacket {
    /// The encoder's bytes.
    pub data: Arc<[u8]>,
    /// Capture time of the first sample that a decoder makes of it: of the frame's first, less the encoder's look-ahead.
    pub captured: MediaTime,
    /// How much sound it holds.
    pub duration: Duration,
    /// When the encoder gave it.
    pub encoded: MediaTime,
    /// Something is missing between the packet before and this one: RTP's marker for audio (RFC 7587 §4.2).
    pub starts_talkspurt: bool,
}

/// Duration of a number of samples of one channel at 48 kHz, to the microsecond below.
pub const fn span(samples: u64) -> Duration {
    Duration::from_micros(samples * 1_000_000 / SAMPLE_RATE_HZ as u64)
}
