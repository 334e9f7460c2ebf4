//! What a decoder backend does.

use lightpipe_media::{AccessUnit, VideoCodec, VideoFrame};

/// Why decoding failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// No backend for this coding in this build.
    #[error("no decoder for {} in this build", .0.name())]
    NoDecoder(VideoCodec),
    /// The library could not be set up.
    #[error("{backend} failed in {call} with code {code}")]
    Backend {
        /// Backend's name.
        backend: &'static str,
        /// Function that failed.
        call: &'static str,
        /// Its return value.
        code: i64,
    },
    /// The bytes are none that it decodes: damaged, or without the keyframe that they need.
    #[error("{backend} cannot decode this picture (state {state:#x}); the next keyframe repairs it")]
    Damaged {
        /// Backend's name.
        backend: &'static str,
        /// The library's flags.
        state: i64,
    },
}

/// A decoder: one picture out for each access unit in, in order; our pictures have no B-frames.
pub trait VideoDecoder: Send {
    /// The backend's name.
    fn name(&self) -> &'static str;
    /// Decodes one access unit. `None` where it holds no picture. The capture time is carried through.
    fn decode(&mut self, unit: &AccessUnit) -> Result<Option<VideoFrame>, DecodeError>;
}

/// A decoder for a coding.
pub fn decoder_for(codec: VideoCodec) -> Result<Box<dyn VideoDecoder>, DecodeError> {
    match codec {
        VideoCodec::H264 => Ok(Box::new(crate::openh264_decoder::OpenH264Decoder::new()?)),
        #[cfg(feature = "vpx")]
        VideoCodec::Vp8 => Ok(Box::new(crate::vp8_decoder::Vp8Decoder::new()?)),
        other => Err(DecodeError::NoDecoder(other)),
    }
}
