//! What an encoder backend does.

use std::time::Duration;

use lightpipe_media::{MediaTime, PixelFormat, Size, VideoCodec, VideoFrame};

/// What the pictures are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// Camera, render, film: the default.
    #[default]
    Camera,
    /// Text and flat areas: 3.5 times fewer bits on text, 2.9 times the CPU (measured).
    Screen,
}

/// How to encode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncoderConfig {
    /// Picture size; both sides even.
    pub size: Size,
    /// Expected pictures per second: the rate control's budget, not a timestamp.
    pub fps: f64,
    /// Target bitrate, bits per second.
    pub bitrate_bps: u64,
    /// Longest gap between keyframes, in pictures. 0: only on request.
    pub keyframe_interval: u32,
    /// Kind of pictures.
    pub content: Content,
}

/// One encoded picture.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Annex-B for H.264, parameter sets in front of every IDR; the frame for VP8.
    pub data: Vec<u8>,
    /// Decodable by itself.
    pub keyframe: bool,
    /// Capture time of the picture that went in.
    pub captured: MediaTime,
    /// Time that the encoder spent on it.
    pub took: Duration,
}

/// Why encoding failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The backend cannot do what the configuration asks.
    #[error("{backend} cannot encode {what}")]
    Unsupported {
        /// Backend's name.
        backend: &'static str,
        /// What it was asked for.
        what: String,
    },
    /// The caller gave a picture of another size or format than configured.
    #[error("the encoder is set up for {expected}, the picture is {got}")]
    WrongPicture {
        /// Configured.
        expected: String,
        /// Given.
        got: String,
    },
    /// The library returned an error.
    #[error("{backend} failed in {call} with code {code}")]
    Backend {
        /// Backend's name.
        backend: &'static str,
        /// Function that failed.
        call: &'static str,
        /// Its return value.
        code: i64,
    },
}

/// An encoder. Pictures go in by [`Self::submit`], come out by [`Self::poll`]: a software encoder answers at once, hardware
/// some pictures later.
pub trait VideoEncoder: Send {
    /// The backend's name, for logs and the API.
    fn name(&self) -> &'static str;
    /// The coding that it makes.
    fn codec(&self) -> VideoCodec;
    /// Formats that [`Self::submit`] takes, best first.
    fn accepts(&self) -> &'static [PixelFormat];
    /// Takes a picture of the configured size in an accepted format. The capture time is carried through.
    fn submit(&mut self, frame: &VideoFrame) -> Result<(), EncodeError>;
    /// The next encoded picture, if one is ready. `None` after a `submit` is a normal result: the encoder is behind, or its
    /// rate control skipped the picture.
    fn poll(&mut self) -> Option<Encoded>;
    /// Makes the next submitted picture a keyframe.
    fn force_keyframe(&mut self);
    /// Changes the target bitrate from the next picture on, without a keyframe.
    fn set_bitrate(&mut self, bps: u64) -> Result<(), EncodeError>;
    /// Changes the expected frame rate from the next picture on, without a keyframe.
    fn set_fps(&mut self, fps: f64) -> Result<(), EncodeError>;
    /// The configuration in force.
    fn config(&self) -> &EncoderConfig;
}
