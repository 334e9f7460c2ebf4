//! Sound: raw blocks, encoded packets, and what cuts the first into frames for the second.

mod align;
mod framer;
mod mix;
mod speaker;

use std::sync::Arc;
use std::time::Duration;

pub use align::{Aligner, MAX_DRIFT};
pub use framer::{Frame, Framer};
pub use mix::{Mix, Mixer};
pub use speaker::ActiveSpeaker;

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
#[derive(Debug, Clone, PartialEq)]
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
    /// What it came in, if it came over a network: then `encoded` is when it came.
    pub origin: Option<RtpOrigin>,
}

/// What the RTP packet said that brought a frame of sound (RFC 3550 §5.1), for who plays it out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RtpOrigin {
    /// The sender's stream.
    pub ssrc: u32,
    /// Without its wraps.
    pub seq_no: u64,
    /// RTP timestamp without its wraps, ticks of the sender's 48 kHz.
    pub rtp_time: u64,
    /// How loud the sender says it is, where it does (RFC 6464).
    pub level: Option<Level>,
}

/// How loud sound is (RFC 6464 §3): decibels below the loudest that there is, as a root mean square.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Level(f32);

impl Level {
    /// Silence.
    pub const MIN: Self = Self(-127.0);

    /// From dBov; what is not from -127 to 0 is taken for the nearest that is.
    pub const fn from_dbov(dbov: f32) -> Self {
        // Not a number is silence.
        Self(if dbov > 0.0 {
            0.0
        } else if dbov >= -127.0 {
            dbov
        } else {
            -127.0
        })
    }

    /// Of samples.
    pub fn of(samples: &[f32]) -> Self {
        let power = samples.iter().map(|s| s * s).sum::<f32>() / samples.len().max(1) as f32;
        Self::from_dbov(10.0 * power.log10())
    }

    /// -127 to 0.
    pub const fn dbov(self) -> f32 {
        self.0
    }
}

/// How much sound an Opus packet holds (RFC 6716 §3.1); 20 ms for bytes that are none.
pub fn opus_duration(packet: &[u8]) -> Duration {
    let ordinary = span(FRAME_SAMPLES as u64);
    let Some(toc) = packet.first() else { return ordinary };
    let frame_micros: u64 = match toc >> 3 {
        config @ 0..=11 => [10_000, 20_000, 40_000, 60_000][usize::from(config & 3)],
        config @ 12..=15 => [10_000, 20_000][usize::from(config & 1)],
        config => [2_500, 5_000, 10_000, 20_000][usize::from(config & 3)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => packet.get(1).map_or(0, |count| u64::from(count & 0x3f)),
    };
    // Longer than 120 ms is forbidden (RFC 6716 §3.4).
    Some(frame_micros * frames).filter(|micros| (1..=120_000).contains(micros)).map_or(ordinary, Duration::from_micros)
}

/// Duration of a number of samples of one channel at 48 kHz, to the microsecond below.
pub const fn span(samples: u64) -> Duration {
    Duration::from_micros(samples * 1_000_000 / SAMPLE_RATE_HZ as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_below_the_loudest() {
        let check = |samples: &[f32], dbov: f32| {
            assert!((Level::of(samples).dbov() - dbov).abs() < 0.01, "{samples:?}: {:?}", Level::of(samples));
        };
        check(&[1.0, -1.0], 0.0);
        check(&[0.5, -0.5], -6.02);
        check(&[1.0, 0.0], -3.01);
        check(&[3.0, 3.0], 0.0);
        check(&[0.0, 0.0], -127.0);
        check(&[], -127.0);
        check(&[f32::NAN], -127.0);
    }

    #[test]
    fn packets_tell_how_long_they_are() {
        let check =
            |packet: &[u8], micros| assert_eq!(opus_duration(packet), Duration::from_micros(micros), "{packet:x?}");
        check(&[0xfc, 0], 20_000); // CELT, full band, 20 ms
        check(&[0xe0, 0], 2_500);
        check(&[0x08, 0], 20_000); // SILK
        check(&[0x19, 0], 120_000); // two of 60 ms
        check(&[0xfb, 3, 0], 60_000); // three of 20 ms
        check(&[0x1b, 0x3f, 0], 20_000); // forbidden: 3.8 s
        check(&[], 20_000);
    }
}
