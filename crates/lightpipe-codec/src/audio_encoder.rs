//! What an audio encoder backend does.

use std::time::Duration;

use lightpipe_media::audio::FRAME_SAMPLES;

use crate::encoder::EncodeError;

/// What the sound is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AudioContent {
    /// Anything: music, film, games. The default, with the shortest delay.
    #[default]
    Music,
    /// Voices: intelligible at low rates and under loss, for 4 ms more delay.
    Speech,
}

/// How to encode sound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AudioEncoderConfig {
    /// 1 or 2.
    pub channels: usize,
    /// Samples of one channel in a frame: 240, 480 or 960, which is 5, 10 or 20 ms. Shorter frames are heard sooner and cost
    /// 22 kbit/s more of headers each time that they are halved.
    pub frame_samples: usize,
    /// Target bitrate, bits per second.
    pub bitrate_bps: u32,
    /// Kind of sound.
    pub content: AudioContent,
    /// CPU against quality, 0 to 10.
    pub complexity: u8,
    /// The bitrate is a mean (true), or every packet has it (false).
    pub variable_bitrate: bool,
    /// Let speech packets hold a coarse copy of the one before while viewers report loss (RFC 6716 §2.1.7).
    pub fec: bool,
}

impl Default for AudioEncoderConfig {
    fn default() -> Self {
        Self {
            channels: 2,
            frame_samples: FRAME_SAMPLES,
            bitrate_bps: 128_000,
            content: AudioContent::Music,
            complexity: 10,
            variable_bitrate: true,
            fec: true,
        }
    }
}

/// An encoder for frames of one length at 48 kHz.
pub trait AudioEncoder: Send {
    /// The backend's name, for logs and the API.
    fn name(&self) -> &'static str;
    /// Encodes one frame: `frame_samples` × channels interleaved samples.
    fn encode(&mut self, samples: &[f32]) -> Result<Vec<u8>, EncodeError>;
    /// How much earlier than the frame's first sample the sound of its packet begins: the encoder looks that far ahead.
    fn look_ahead(&self) -> Duration;
    /// Changes the target bitrate from the next frame on.
    fn set_bitrate(&mut self, bps: u32) -> Result<(), EncodeError>;
    /// Tells which share of packets viewers lose, 0 to 1.
    fn set_loss(&mut self, loss: f32) -> Result<(), EncodeError>;
    /// The configuration in force.
    fn config(&self) -> &AudioEncoderConfig;
}
