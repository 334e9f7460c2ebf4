//! Playing a peer's sound and pictures: in time, together, and without a gap.
//!
//! ```text
//!   AudioPacket ─push_sound─▶ jitter buffer ─▶ decoder, concealment ─▶ stretch ─▶ resampler ─pull_sound─▶ 10 ms each 10 ms
//!                                   │ delay
//!   AccessUnit ─push_picture─▶ held so long after capture, too ─pull_picture─▶ to a decoder
//! ```
//!
//! Everything is measured in age: how long after its capture, on our clock, something comes and something is played. [`crate::TrackClock`] brings
//! both of a peer's tracks onto our clock, by its sender reports, so what has one age belongs together. The age at which sound is played is what
//! all but one in two hundred packets of the last ten seconds needed, and falls again when they need less: not the 50 ms that are usual,
//! which are only where it begins. What is off by little is corrected by resampling, at most 1 %, eased over 100 ms; what is off by much by
//! taking out, or playing twice, single turns of the wave. A sender's crystal is followed by the first.
//!
//! No part of this reads a clock: call [`Playout::pull_sound`] each 10 ms of the time that it is given.

mod ages;
mod drift;
mod pictures;
mod sound;
mod stretch;

use std::sync::Arc;
use std::time::Duration;

pub use drift::{Drift, DriftEstimator};
pub use pictures::PictureFigures;

use self::pictures::PictureBuffer;
use self::sound::SoundBuffer;
use crate::access_unit::AccessUnit;
use crate::audio::AudioPacket;
use crate::histogram::Histogram;
use crate::time::MediaTime;

/// Sound of one pull.
pub const BLOCK: Duration = Duration::from_millis(10);

/// Samples of one channel in it.
pub const BLOCK_SAMPLES: usize = 480;

/// Makes samples of packets, at 48 kHz and interleaved. What it cannot give is left out.
pub trait SoundDecoder: Send {
    /// Appends the samples of a packet; false if it is none.
    fn decode(&mut self, packet: &[u8], out: &mut Vec<f32>) -> bool;
    /// Appends so many samples of one channel (a multiple of 120) of what was before a packet, from the copy in it; false, and
    /// nothing is appended, if it has none.
    fn recover(&mut self, next: &[u8], samples: usize, out: &mut Vec<f32>) -> bool;
    /// Appends so many samples of one channel (a multiple of 120) that go on as the last ones did.
    fn conceal(&mut self, samples: usize, out: &mut Vec<f32>);
    /// Forgets what it heard.
    fn reset(&mut self);
}

/// How to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlayoutConfig {
    /// Channels of the decoder, 1 or 2.
    pub channels: usize,
    /// Smallest delay. Default 10 ms, one block: on a good network nothing more is needed.
    pub least: Duration,
    /// Delay until the network is known, for a second. Default 50 ms.
    pub initial: Duration,
    /// Largest delay; what comes later is lost. Default 200 ms.
    pub most: Duration,
    /// How long after it was pulled sound is heard, if that is known: pictures wait as long.
    pub output: Duration,
}

impl Default for PlayoutConfig {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { channels: 2, least: ms(10), initial: ms(50), most: ms(200), output: Duration::ZERO }
    }
}

/// What a peer's sound does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlayoutState {
    /// Nothing to play: it has not begun, or pauses.
    Waiting,
    /// It is played.
    Playing,
    /// Some of the last block was made up.
    Concealing,
}

impl PlayoutState {
    /// Name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Playing => "playing",
            Self::Concealing => "concealing",
        }
    }
}

/// What became of a peer's sound. Samples are of one channel at 48 kHz.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct SoundFigures {
    /// Delay that the network needs now.
    pub needed: Duration,
    /// Delay that is aimed for: what is needed, what pictures and other peers need, within the limits.
    pub target: Duration,
    /// Delay of what is played, from capture as far as that is known (the network's own shortest delay is not); none in a pause.
    pub delay: Option<Duration>,
    /// Sound that waits to be played, in the mean of the last 200 ms.
    pub depth: Duration,
    /// How much faster than ours the sender's clock runs.
    pub drift: Option<Drift>,
    /// How much faster than it came sound is played, ppm.
    pub correction_ppm: f64,
    /// Packets that came.
    pub packets: u64,
    /// Of those: after their time, and lost to us.
    pub late_packets: u64,
    /// Of those: a second time.
    pub duplicate_packets: u64,
    /// Of those: too old when playing began, or without room.
    pub dropped_packets: u64,
    /// Of those: nothing that the decoder knows.
    pub undecodable_packets: u64,
    /// Samples given out, without the silence of pauses.
    pub played_samples: u64,
    /// Of those: made up, because the packet was lost or late. An outage counts with its silence.
    pub concealed_samples: u64,
    /// Of those: from the copy in the next packet.
    pub recovered_samples: u64,
    /// Of those: made up while the sender sent nothing on purpose.
    pub paused_samples: u64,
    /// Silence given out since the beginning, because nothing came.
    pub silent_samples: u64,
    /// Taken out, to shorten the delay.
    pub removed_samples: u64,
    /// Played twice, to lengthen it.
    pub inserted_samples: u64,
    /// How often the sender began anew.
    pub restarts: u64,
}

impl SoundFigures {
    /// Share of what should have been heard that was made up, 0 to 1.
    pub fn concealed_share(&self) -> f64 {
        self.concealed_samples as f64 / self.played_samples.max(1) as f64
    }
}

/// Figures of one peer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlayoutFigures {
    /// What it does.
    pub state: PlayoutState,
    /// Its sound.
    pub sound: SoundFigures,
    /// Its pictures.
    pub pictures: PictureFigures,
    /// How much later than their sound pictures were given out.
    pub lip_sync: Histogram,
}

/// Plays one peer. Push what comes, with the time in the packets; pull sound each [`BLOCK`], and pictures when [`Self::next_picture_at`]
/// says.
pub struct Playout<D> {
    output: Duration,
    sound: SoundBuffer<D>,
    pictures: PictureBuffer,
    floor: Duration,
}

impl<D> std::fmt::Debug for Playout<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Playout").field("pictures", &self.pictures).finish_non_exhaustive()
    }
}

impl<D: SoundDecoder> Playout<D> {
    /// A peer of which nothing has come.
    pub fn new(config: PlayoutConfig, decoder: D) -> Self {
        let config = PlayoutConfig { channels: config.channels.clamp(1, 2), ..config };
        Self {
            output: config.output,
            sound: SoundBuffer::new(config, decoder),
            pictures: PictureBuffer::default(),
            floor: Duration::ZERO,
        }
    }

    /// A packet came, at the time that it says was that of its encoding. Its order does not matter.
    pub fn push_sound(&mut self, packet: &Arc<AudioPacket>) {
        self.sound.push(packet);
    }

    /// A picture came, in the order of decoding.
    pub fn push_picture(&mut self, unit: &Arc<AccessUnit>) {
        self.pictures.push(unit.stages.received, unit);
    }

    /// The next [`BLOCK_SAMPLES`] of each channel, interleaved, to be heard from `now` on; silence where there is nothing. `now` is when it
    /// should be called, not when a busy machine comes to it.
    pub fn pull_sound(&mut self, now: MediaTime, out: &mut Vec<f32>) {
        let pictures = self.pictures.need().unwrap_or_default().saturating_sub(self.output);
        self.sound.set_floor(self.floor.max(pictures));
        self.sound.pull(now, out);
    }

    /// The next picture whose time has come. Several may be due: decode all, and show the last.
    pub fn pull_picture(&mut self, now: MediaTime) -> Option<Arc<AccessUnit>> {
        let (delay, with_sound) = self.picture_delay();
        self.pictures.pull(now, delay, with_sound)
    }

    /// When the next picture is to be shown, as it looks now; none while none waits.
    pub fn next_picture_at(&mut self) -> Option<MediaTime> {
        let (delay, _) = self.picture_delay();
        self.pictures.next_at(delay)
    }

    /// How long after capture pictures are shown: as their sound is heard, if there is some.
    fn picture_delay(&mut self) -> (Duration, bool) {
        match self.sound.playing_delay() {
            Some(delay) => (delay + self.output, true),
            None => (self.pictures.need().unwrap_or_default().max(self.floor), false),
        }
    }

    /// Whether pictures were dropped, so that only a keyframe helps. Asked once.
    pub fn take_keyframe_wanted(&mut self) -> bool {
        self.pictures.take_keyframe_wanted()
    }

    /// Plays with at least this delay, to be in step with others: see [`together`].
    pub fn set_floor(&mut self, floor: Duration) {
        self.floor = floor;
    }

    /// The delay that its own network and pictures need.
    pub fn needed(&mut self) -> Duration {
        let pictures = self.pictures.need().unwrap_or_default();
        self.sound.figures().needed.max(pictures)
    }

    /// How it goes.
    pub fn figures(&self) -> PlayoutFigures {
        PlayoutFigures {
            state: self.sound.state(),
            sound: self.sound.figures(),
            pictures: self.pictures.figures(),
            lip_sync: self.pictures.skew().clone(),
        }
    }

    /// The delay that is aimed for.
    pub fn target(&self) -> Duration {
        self.sound.target()
    }
}

/// The delay with which all peers are in step, for [`Playout::set_floor`] of each: what the slowest needs, of those that need at most `most` more
/// than the fastest. A peer on a bad network does not make the others late; it stays behind.
pub fn together(needed: &[Duration], most: Duration) -> Duration {
    let fastest = needed.iter().min().copied().unwrap_or_default();
    needed.iter().copied().filter(|need| *need <= fastest + most).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_wait_for_each_other_but_not_for_everybody() {
        let ms = Duration::from_millis;
        let check = |needed: &[u64], expected| {
            let needed: Vec<Duration> = needed.iter().copied().map(ms).collect();
            assert_eq!(together(&needed, ms(40)), ms(expected), "{needed:?}");
        };
        check(&[], 0);
        check(&[20], 20);
        check(&[20, 45], 45);
        check(&[20, 45, 180], 45);
    }
}
