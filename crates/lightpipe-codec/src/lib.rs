//! Video encoders and the thread that drives one.
//!
//! [`VideoEncoder`] is what a backend implements; [`openh264`] is the default backend. [`EncodeThread`] takes raw pictures
//! from a source's queue, asks the stream what its outlets want, and publishes access units.

pub mod encoder;
pub mod openh264;
mod thread;

pub use encoder::{Content, EncodeError, Encoded, EncoderConfig, VideoEncoder};
pub use thread::{EncodeThread, MakeEncoder, Setup};
