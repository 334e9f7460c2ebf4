//! Files that hold what a stream carries, without encoding anything again: fragmented MP4, WebM.
//!
//! A [`Container`] is bytes out of media in. It has no file and no clock: whoever has one appends and overwrites as
//! [`Write`] says, in that order. Everything appended so far always plays: a process that is killed loses the fragment it was
//! collecting, no more.
//!
//! What both containers do with time is in `timeline`: capture times are kept as they are, gaps stay gaps, tracks keep their
//! offset, and only a clock that jumps is mended.

mod ebml;
mod index;
mod intake;
pub mod mp4;
mod timeline;
pub mod webm;

use std::time::Duration;

pub use mp4::Mp4Writer;
pub use webm::WebmWriter;

use crate::access_unit::{AccessUnit, VideoCodec};
use crate::audio::AudioPacket;

/// Largest access unit or packet that is taken; what reads a child or the network stops there as well.
pub const MAX_SAMPLE_BYTES: usize = 8 << 20;

/// Samples of one fragment, whatever their times say: a second of sound in the shortest packets is 400.
const MAX_FRAGMENT_SAMPLES: usize = 4096;

/// Sound kept while the first keyframe is awaited. Older sound would come before the file's first picture.
const MAX_HELD_PACKETS: usize = 512;

/// What a file is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracks {
    /// Pictures. The file then begins with the first keyframe.
    pub video: bool,
    /// Sound, Opus.
    pub audio: bool,
}

/// When a fragment (a cluster in WebM) ends, besides in front of each keyframe. It is what a killed process loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Longest fragment. Default 1 s.
    pub duration: Duration,
    /// Bytes that end a fragment early, and so bound the memory: this much, and one sample. Default 8 MiB.
    pub bytes: usize,
}

impl Default for FragmentLimits {
    fn default() -> Self {
        Self { duration: Duration::from_secs(1), bytes: 8 << 20 }
    }
}

/// A change of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Bytes for the end of the file.
    Append(Vec<u8>),
    /// Bytes that replace as many at `offset`. Where they cannot (a pipe), they may be left out: the file then plays, and says
    /// nothing of its duration.
    Patch {
        /// From the beginning of the file.
        offset: u64,
        /// What stands there from now on.
        bytes: Vec<u8>,
    },
}

/// What a file holds, and what it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The header was given out: the first keyframe came, or the first packet of a file without pictures.
    pub started: bool,
    /// From the beginning to the end of the last sample.
    pub duration: Duration,
    /// Pictures taken.
    pub pictures: u64,
    /// Keyframes among them.
    pub keyframes: u64,
    /// Packets of sound taken.
    pub packets: u64,
    /// Fragments given out.
    pub fragments: u64,
    /// Bytes appended.
    pub bytes: u64,
    /// Pictures and packets from before the first keyframe.
    pub dropped_before_start: u64,
    /// What is no media: no slice in it, bad parameter sets, another codec, empty, or larger than [`MAX_SAMPLE_BYTES`].
    pub dropped_bad: u64,
    /// Packets of sound captured before one that is in the file.
    pub dropped_backwards: u64,
    /// Pictures captured before one that is in the file. They follow it at once, because later ones need them.
    pub moved_forwards: u64,
    /// Times that a capture clock jumped so far that what came behind was put after what was there.
    pub clock_jumps: u64,
}

/// Media in, bytes of a file out.
///
/// Pictures and sound in the order in which they come, then [`Self::finish`]; after each call [`Self::poll`] until `None`.
pub trait Container: Send {
    /// Takes a picture. What cannot be used is dropped and counted in [`Progress`].
    fn video(&mut self, unit: &AccessUnit);
    /// Takes a packet of sound.
    fn audio(&mut self, packet: &AudioPacket);
    /// Gives out the last fragment, the index, and the durations. What comes afterwards is ignored.
    fn finish(&mut self);
    /// The next change of the file.
    fn poll(&mut self) -> Option<Write>;
    /// Counters.
    fn progress(&self) -> Progress;
}

/// A container for pictures of this codec: MP4 for H.264, WebM for the others.
pub fn for_codec(codec: VideoCodec, tracks: Tracks, limits: FragmentLimits) -> Box<dyn Container> {
    match codec {
        VideoCodec::H264 => Box::new(Mp4Writer::new(tracks, limits)),
        VideoCodec::Vp8 | VideoCodec::Vp9 | VideoCodec::Av1 => Box::new(WebmWriter::new(codec, tracks, limits)),
    }
}

/// What the name of such a file ends with.
pub const fn extension(codec: VideoCodec) -> &'static str {
    match codec {
        VideoCodec::H264 => "mp4",
        VideoCodec::Vp8 | VideoCodec::Vp9 | VideoCodec::Av1 => "webm",
    }
}
