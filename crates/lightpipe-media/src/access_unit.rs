//! One encoded picture.

use std::sync::{Arc, OnceLock};

use crate::frame::Size;
use crate::packetize::{self, RtpPayloads};
use crate::time::MediaTime;
use crate::vp8;

/// Video codings that lightpipe carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VideoCodec {
    /// ITU-T H.264, Constrained Baseline on the wire.
    H264,
    /// VP8 (RFC 6386).
    Vp8,
    /// VP9, profile 0. Passed on only: we neither encode nor decode it.
    Vp9,
    /// AV1, Main profile. Passed on only, as VP9 is.
    Av1,
}

impl VideoCodec {
    /// Name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::Vp8 => "vp8",
            Self::Vp9 => "vp9",
            Self::Av1 => "av1",
        }
    }
}

/// When one picture passed each stage on our side. Stages that did not happen (an encoded child has
/// no encode of ours) repeat the stage before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stages {
    /// Our process had the whole raw picture (or, for an encoded source, the whole access unit).
    pub received: MediaTime,
    /// The encoder took it from its queue.
    pub encode_started: MediaTime,
    /// The encoder gave its bytes.
    pub encoded: MediaTime,
}

impl Stages {
    /// All stages at one instant.
    pub const fn all_at(at: MediaTime) -> Self {
        Self { received: at, encode_started: at, encoded: at }
    }
}

/// One encoded picture: all its NAL units, one capture time (RFC 6184 §1.1 calls it access unit).
///
/// Shared by all outlets behind an `Arc`. Packetized once, by whichever outlet asks first.
#[derive(Debug)]
pub struct AccessUnit {
    /// The coding of `data`.
    pub codec: VideoCodec,
    /// H.264: Annex-B byte stream, SPS and PPS in front of every IDR. VP8: the frame. VP9: the frame or
    /// superframe. AV1: the temporal unit without its delimiter, each OBU with its length.
    pub data: Arc<[u8]>,
    /// When the picture was taken.
    pub captured: MediaTime,
    /// Decodable without any other access unit.
    pub keyframe: bool,
    /// Picture size.
    pub size: Size,
    /// Times of our own stages.
    pub stages: Stages,
    payloads: OnceLock<RtpPayloads>,
}

impl AccessUnit {
    /// An access unit of `codec`. `data` as [`AccessUnit::data`] says.
    pub fn new(
        codec: VideoCodec,
        data: impl Into<Arc<[u8]>>,
        captured: MediaTime,
        keyframe: bool,
        size: Size,
        stages: Stages,
    ) -> Self {
        Self { codec, data: data.into(), captured, keyframe, size, stages, payloads: OnceLock::new() }
    }

    /// The same with the RTP payloads that it came in, to be passed on as they are: their descriptors say of layers and references what
    /// `data` does not.
    #[must_use]
    pub fn with_payloads(self, payloads: RtpPayloads) -> Self {
        Self { payloads: OnceLock::from(payloads), ..self }
    }

    /// RTP payloads of this picture, made on the first call and shared by every viewer. A picture of a codec that is passed on only has
    /// those of [`Self::with_payloads`], else none.
    pub fn rtp_payloads(&self) -> &RtpPayloads {
        self.payloads.get_or_init(|| match self.codec {
            VideoCodec::H264 => packetize::h264(&self.data, packetize::MAX_PAYLOAD_LEN),
            VideoCodec::Vp8 => vp8::packetize(&self.data, packetize::MAX_PAYLOAD_LEN),
            VideoCodec::Vp9 | VideoCodec::Av1 => RtpPayloads::default(),
        })
    }
}
