//! Pictures and sound of the embedding program.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_codec::{AudioSetup, AudioThread, EncodeThread};
use lightpipe_media::frame::FrameError;
use lightpipe_media::{
    AudioBlock, AudioQueue, FramePool, FrameQueue, MediaClock, PixelFormat, Size, Stream, VideoFrame,
};
use lightpipe_net::Streams;

use crate::config::AudioConfig;
use crate::source::QUEUE_BLOCKS;

/// Takes the pictures of a stream from a program. Dropping it ends the stream and frees its name.
///
/// [`Self::push`] never waits: a picture that the encoder has no time for replaces the oldest one that waits.
#[derive(Debug)]
pub struct FrameSender {
    pub(crate) size: Size,
    pub(crate) frames: Arc<FrameQueue>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) clock: MediaClock,
    pub(crate) pool: FramePool,
    pub(crate) streams: Streams,
    pub(crate) audio: AudioConfig,
    pub(crate) _encoder: EncodeThread,
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        self.streams.remove(self.stream.name());
        self.stream.close();
    }
}

impl FrameSender {
    /// Sends a picture that was taken now. `pixels` are tightly packed rows in `format`, of the size given at the start.
    pub fn push(&self, format: PixelFormat, pixels: &[u8]) -> Result<(), FrameError> {
        self.push_captured(Instant::now(), format, pixels)
    }

    /// Sends a picture that was taken at `captured`.
    pub fn push_captured(&self, captured: Instant, format: PixelFormat, pixels: &[u8]) -> Result<(), FrameError> {
        let mut frame = VideoFrame::copied_from(&self.pool, self.clock.at(captured), self.size, format, pixels)?;
        frame.received = self.clock.at(Instant::now());
        self.frames.push(frame);
        Ok(())
    }

    /// Gives the stream sound: `rate_hz` samples a second and channel, 8 000 to 192 000, in 1 to 8 channels, of which the first two are heard.
    ///
    /// Ask for it before anybody watches: who is there already does not hear it.
    pub fn sound(&self, rate_hz: u32, channels: usize) -> Result<AudioSender, SoundError> {
        if !(8_000..=192_000).contains(&rate_hz) {
            return Err(SoundError::Rate(rate_hz));
        }
        if !(1..=8).contains(&channels) {
            return Err(SoundError::Channels(channels));
        }
        if self.stream.has_audio() {
            return Err(SoundError::Taken(self.stream.name().to_owned()));
        }
        let blocks = Arc::new(AudioQueue::new(QUEUE_BLOCKS));
        let setup = AudioSetup {
            stream: Arc::clone(&self.stream),
            blocks: Arc::clone(&blocks),
            clock: self.clock,
            config: self.audio.encoder(),
            exact: false,
        };
        let encoder = self.audio.enabled.then(|| AudioThread::spawn(setup)).transpose().map_err(SoundError::Thread)?;
        Ok(AudioSender {
            rate_hz,
            channels,
            blocks,
            stream: Arc::clone(&self.stream),
            clock: self.clock,
            _encoder: encoder,
        })
    }

    /// Whether somebody watches. Without viewers a renderer may rest; pictures pushed then are dropped unencoded.
    pub fn is_watched(&self) -> bool {
        self.stream.outlets() > 0
    }

    /// Waits up to `timeout` for somebody to watch; true when somebody does.
    pub fn wait_watched(&self, timeout: Duration) -> bool {
        self.stream.wait_wanted(timeout)
    }

    /// The picture's size.
    pub const fn size(&self) -> Size {
        self.size
    }
}

/// Why a stream of pictures gets no sound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoundError {
    /// No device has this rate.
    #[error("{0} samples a second; 8000 to 192000 are possible")]
    Rate(u32),
    /// None, or more than anybody has.
    #[error("{0} channels; 1 to 8 are possible")]
    Channels(usize),
    /// It has some.
    #[error("stream {0:?} has sound already")]
    Taken(String),
    /// The operating system gives no thread.
    #[error("no thread for the sound")]
    Thread(#[source] std::io::Error),
}

/// Takes the sound of a stream from a program. Dropping it ends the sound; the pictures go on.
///
/// [`Self::push`] never waits, and takes pieces of any length. The program's clock need not be ours: what is pushed decides how much
/// sound there is, when it is pushed decides how fast it runs, and the small difference is resampled away.
#[derive(Debug)]
pub struct AudioSender {
    rate_hz: u32,
    channels: usize,
    blocks: Arc<AudioQueue>,
    stream: Arc<Stream>,
    clock: MediaClock,
    /// None where the configuration wants no sound.
    _encoder: Option<AudioThread>,
}

impl AudioSender {
    /// Sends samples of which the last was taken now: -1 to 1, interleaved. What does not fill all channels at the end is ignored.
    pub fn push(&self, samples: &[f32]) {
        let micros = (samples.len() / self.channels) as u64 * 1_000_000 / u64::from(self.rate_hz);
        let now = Instant::now();
        self.push_captured(now.checked_sub(Duration::from_micros(micros)).unwrap_or(now), samples);
    }

    /// Sends samples of which the first was taken at `captured`.
    pub fn push_captured(&self, captured: Instant, samples: &[f32]) {
        self.blocks.push(AudioBlock {
            captured: self.clock.at(captured),
            rate_hz: self.rate_hz,
            channels: self.channels,
            samples: samples.to_vec(),
        });
    }

    /// Whether somebody listens, or at least watches.
    pub fn is_heard(&self) -> bool {
        self.stream.outlets() > 0
    }
}
