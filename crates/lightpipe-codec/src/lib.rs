//! Encoders and the threads that drive them.
//!
//! [`VideoEncoder`] is what a backend implements; [`openh264`] is the default backend, `vp8` (feature `vpx`) the one
//! for viewers without H.264. [`EncodeThread`] takes raw pictures from a source's queue, asks the stream and its layers what
//! their outlets want, and publishes access units. [`AudioEncoder`], [`opus`] and [`AudioThread`] are the same for sound. [`Playback`]
//! is the other end: a stream that is heard and seen here; [`Conference`] is that of a whole room, and can mix it.

pub mod audio_encoder;
mod audio_thread;
mod budget;
mod conference;
pub mod decoder;
pub mod encoder;
mod ladder;
mod layer;
pub mod openh264;
pub mod openh264_decoder;
pub mod opus;
mod playback;
mod thread;
#[cfg(feature = "vpx")]
pub mod vp8;
#[cfg(feature = "vpx")]
pub mod vp8_decoder;

pub use audio_encoder::{AudioContent, AudioEncoder, AudioEncoderConfig};
pub use audio_thread::{AudioSetup, AudioThread};
pub use budget::CpuBudget;
pub use conference::{Audience, Conference, ConferenceConfig, MIX_ENCODING, Participant};
pub use decoder::{DecodeError, VideoDecoder, decoder_for};
pub use encoder::{Content, EncodeError, Encoded, EncoderConfig, VideoEncoder};
pub use playback::Playback;
pub use thread::{Alternative, EncodeThread, MakeEncoder, Setup};
