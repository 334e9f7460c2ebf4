//! The configuration tree. The file, the environment and the flags fill this one struct.
//!
//! Each field's comment is the manual; `lightpipe.sample.toml` holds every key with its default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lightpipe_codec::{AudioContent, AudioEncoderConfig};
use lightpipe_media::Size;
use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_net::media::Realtime;
use serde::{Deserialize, Serialize};

pub use crate::simulcast::{SimulcastConfig, SimulcastLayer};

/// Everything.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[server]`: where we listen.
    pub server: ServerConfig,
    /// `[video]`: how pictures are made and encoded.
    pub video: VideoConfig,
    /// `[simulcast]`: in which sizes they are encoded.
    pub simulcast: SimulcastConfig,
    /// `[audio]`: how sound is encoded.
    pub audio: AudioConfig,
    /// `[webrtc]`: how they travel.
    pub webrtc: WebRtcConfig,
    /// `[publish]`: who may publish streams here, by WHIP.
    pub publish: PublishConfig,
    /// `[ffmpeg]`: the program behind `camera`, `ffmpeg` and `file` sources, and `desktop` on Windows and macOS.
    pub ffmpeg: FfmpegConfig,
    /// `[sources]`: streams by name, each a source specification as on the command line, or a list of one of pictures and one of sound. Empty:
    /// `cube`, `pattern`, and `desktop` where there is a display.
    pub sources: BTreeMap<String, SourceTexts>,
    /// `[push]`: streams by name that are published to somebody else's WHIP server, each with its endpoint: `https://host/path`, or with a bearer
    /// token `https://TOKEN@host/path`. Empty by default.
    pub push: BTreeMap<String, String>,
}

/// What a stream is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a source, or a list of one source of pictures and one of sound")]
pub enum SourceTexts {
    /// `me = "camera"`
    One(String),
    /// `me = ["camera", "mic"]`
    Several(Vec<String>),
}

impl SourceTexts {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let all = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        };
        all.iter().map(String::as_str)
    }
}

/// Where we listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address for HTTP (TCP) and media (UDP). Default `0.0.0.0`: every IPv4 interface.
    pub host: IpAddr,
    /// Port number of both. 0 takes a free one. Default 8080.
    pub port: u16,
    /// Addresses told to viewers instead of those of the interfaces, e.g. the public one behind a 1:1 NAT. Default none.
    pub advertise: Vec<IpAddr>,
    /// Threads that move media; 0 is one per core, at most 8. Default 0.
    pub media_threads: usize,
    /// When media threads go before all others of the machine, where the system allows it: `auto` (from the first publisher on), `always`, `never`.
    /// Default `auto`.
    pub realtime: Realtime,
    /// New sessions per second and client address; bursts of four times that pass, 0 is no limit. Default 5.
    pub posts_per_second: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0, 0, 0, 0]),
            port: 8080,
            advertise: Vec::new(),
            media_threads: 0,
            realtime: Realtime::Auto,
            posts_per_second: 5,
        }
    }
}

/// What the pictures are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentHint {
    /// Camera, render, film.
    #[default]
    Camera,
    /// Text and flat areas: fewer bits on text, more CPU.
    Screen,
}

/// Who draws the cube.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RendererChoice {
    /// A real graphics adapter when there is one, else the CPU.
    #[default]
    Auto,
    /// Any adapter, or fail.
    Gpu,
    /// The built-in rasteriser.
    Cpu,
}

/// How pictures are made and encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VideoConfig {
    /// Columns of the picture, even, 16 to 4096. Default 1280.
    pub width: u32,
    /// Rows of the picture, even, 16 to 4096. Default 720.
    pub height: u32,
    /// Pictures per second, 1 to 240. Default 30.
    pub fps: f64,
    /// Target bitrate, kbit/s, 50 to 100 000. The encoder goes below it when no viewer's network carries as much. Default 2500.
    pub bitrate_kbps: u32,
    /// Longest distance between keyframes, in pictures; 0 is only on request. A viewer that cannot ask waits this long. Default 60.
    pub keyframe_interval: u32,
    /// `camera`, or `screen` for text and flat areas: 3.5 times fewer bits on text, 2.9 times the CPU. Default `camera`.
    pub content: ContentHint,
    /// Where there is one size only: fewer pictures a second, then smaller ones, while no viewer's network carries enough bits for the
    /// whole; back again when one does, and while something takes the stream that has no network behind it, such as a recording. Default true.
    pub adapt: bool,
    /// Raw pictures that may wait for the encoder, 1 to 16. When full the oldest is dropped: on a live picture late is worse than
    /// missing. Default 2.
    pub queue_frames: usize,
    /// Paint the timecode strip, from which the player and `bench latency` read the picture's age. Default false; `pattern` always has it.
    pub timecode: bool,
    /// Who draws the cube: `auto`, `gpu` or `cpu`. Default `auto`.
    pub renderer: RendererChoice,
}

impl Default for VideoConfig {
    fn default() -> Self {
        Self {
            width: 1280,
            height: 720,
            fps: 30.0,
            bitrate_kbps: 2500,
            keyframe_interval: 60,
            content: ContentHint::Camera,
            adapt: true,
            queue_frames: 2,
            timecode: false,
            renderer: RendererChoice::Auto,
        }
    }
}

impl VideoConfig {
    /// The picture's size.
    pub const fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }

    /// Target bitrate, bits per second.
    pub fn bitrate_bps(&self) -> u64 {
        u64::from(self.bitrate_kbps) * 1000
    }
}

/// What sound is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SoundHint {
    /// Anything, with the shortest delay.
    #[default]
    Music,
    /// Voices: intelligible at low rates and under loss, 4 ms later.
    Speech,
}

/// How sound is encoded: Opus, 48 kHz, 20 ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AudioConfig {
    /// Sound of sources that have some. Default true.
    pub enabled: bool,
    /// 1 or 2 channels. Default 2.
    pub channels: usize,
    /// Length of a packet: 5, 10 or 20 ms. Shorter ones are heard 10 to 15 ms sooner and cost 22 kbit/s more of headers each time that they are
    /// halved. Default 20.
    pub frame_ms: u32,
    /// Target bitrate, kbit/s, 6 to 510. Default 128.
    pub bitrate_kbps: u32,
    /// `music` for anything, or `speech` for voices: intelligible at low rates and under loss, 4 ms later. Default `music`.
    pub content: SoundHint,
    /// CPU against quality, 0 to 10. Default 10.
    pub complexity: u8,
    /// The bitrate is a mean; false gives every packet the same size. Default true.
    pub variable_bitrate: bool,
    /// Speech packets hold a coarse copy of the one before while viewers report loss. Default true.
    pub fec: bool,
}

impl Default for AudioConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            channels: 2,
            frame_ms: 20,
            bitrate_kbps: 128,
            content: SoundHint::Music,
            complexity: 10,
            variable_bitrate: true,
            fec: true,
        }
    }
}

impl AudioConfig {
    pub(crate) fn encoder(&self) -> AudioEncoderConfig {
        AudioEncoderConfig {
            channels: self.channels,
            frame_samples: self.frame_ms as usize * SAMPLE_RATE_HZ as usize / 1000,
            bitrate_bps: self.bitrate_kbps * 1000,
            content: match self.content {
                SoundHint::Music => AudioContent::Music,
                SoundHint::Speech => AudioContent::Speech,
            },
            complexity: self.complexity,
            variable_bitrate: self.variable_bitrate,
            fec: self.fec,
        }
    }
}

/// How pictures travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebRtcConfig {
    /// Estimate what each viewer's network carries and follow it. Costs about a third more CPU per packet. Default true.
    pub estimate_bandwidth: bool,
    /// Longest playout delay that a receiver may choose, ms, 10 to 10000. Zero is not offered: it is another path in browsers. Default 100.
    pub playout_delay_max_ms: u32,
    /// STUN server told to viewers, `stun:host:port`. Default none: not needed in a LAN or with a public address here.
    pub stun_server: String,
    /// TURN server told to viewers, `turn:host:port`. Default none.
    pub turn_server: String,
    /// TURN user.
    pub turn_user: String,
    /// TURN password. Prefer the environment over the file: LIGHTPIPE_WEBRTC_TURN_PASS.
    pub turn_pass: String,
}

impl Default for WebRtcConfig {
    fn default() -> Self {
        Self {
            estimate_bandwidth: true,
            playout_delay_max_ms: 100,
            stun_server: String::new(),
            turn_server: String::new(),
            turn_user: String::new(),
            turn_pass: String::new(),
        }
    }
}

/// Who may publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublishConfig {
    /// Take publishers at `/whip/NAME` and `/publish/NAME`. Default true.
    pub enabled: bool,
    /// A second publisher of a name ends the first; otherwise it is refused. Default false.
    pub takeover: bool,
    /// Bearer token that publishers need. Prefer the environment over the file: LIGHTPIPE_PUBLISH_TOKEN. Default none.
    pub token: String,
    /// Origins of foreign pages that may publish, such as `https://studio.example`; `*` is all. Default none: our own pages only.
    pub origins: Vec<String>,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self { enabled: true, takeover: false, token: String::new(), origins: Vec::new() }
    }
}

/// FFmpeg.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FfmpegConfig {
    /// The program. Default `ffmpeg`, looked for in PATH.
    pub path: String,
    /// How long a child may be silent after its start, ms. Default 10000.
    pub first_byte_timeout_ms: u64,
    /// How long it may be silent later, ms. Then it is ended and started again. Default 5000.
    pub stall_timeout_ms: u64,
}

impl Default for FfmpegConfig {
    fn default() -> Self {
        Self { path: "ffmpeg".into(), first_byte_timeout_ms: 10_000, stall_timeout_ms: 5_000 }
    }
}

impl FfmpegConfig {
    pub(crate) const fn watchdog(&self) -> lightpipe_source::ffmpeg::Watchdog {
        lightpipe_source::ffmpeg::Watchdog {
            first_byte: Duration::from_millis(self.first_byte_timeout_ms),
            stall: Duration::from_millis(self.stall_timeout_ms),
        }
    }
}

/// A value out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key} = {value}: must be {allowed}")]
pub struct ValueError {
    /// Dotted key, e.g. `video.fps`.
    pub key: &'static str,
    /// What it is set to.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl Config {
    /// Checks every range. The readers of a configuration call this once, right after reading.
    pub fn check(&self) -> Result<(), ValueError> {
        let bad =
            |key, value: &dyn std::fmt::Display, allowed| Err(ValueError { key, value: value.to_string(), allowed });
        let v = &self.video;
        let side = |n: u32| (16..=4096).contains(&n) && n.is_multiple_of(2);
        if !side(v.width) {
            return bad("video.width", &v.width, "even, 16 to 4096");
        }
        if !side(v.height) {
            return bad("video.height", &v.height, "even, 16 to 4096");
        }
        if !(1.0..=240.0).contains(&v.fps) {
            return bad("video.fps", &v.fps, "1 to 240");
        }
        if !(50..=100_000).contains(&v.bitrate_kbps) {
            return bad("video.bitrate_kbps", &v.bitrate_kbps, "50 to 100000");
        }
        if !(1..=16).contains(&v.queue_frames) {
            return bad("video.queue_frames", &v.queue_frames, "1 to 16");
        }
        self.simulcast.check()?;
        let a = &self.audio;
        if !(1..=2).contains(&a.channels) {
            return bad("audio.channels", &a.channels, "1 or 2");
        }
        if ![5, 10, 20].contains(&a.frame_ms) {
            return bad("audio.frame_ms", &a.frame_ms, "5, 10 or 20");
        }
        if !(6..=510).contains(&a.bitrate_kbps) {
            return bad("audio.bitrate_kbps", &a.bitrate_kbps, "6 to 510");
        }
        if a.complexity > 10 {
            return bad("audio.complexity", &a.complexity, "0 to 10");
        }
        if !(10..=10_000).contains(&self.webrtc.playout_delay_max_ms) {
            return bad("webrtc.playout_delay_max_ms", &self.webrtc.playout_delay_max_ms, "10 to 10000");
        }
        if self.server.media_threads > 64 {
            return bad("server.media_threads", &self.server.media_threads, "0 to 64");
        }
        if self.ffmpeg.first_byte_timeout_ms == 0 {
            return bad("ffmpeg.first_byte_timeout_ms", &0, "at least 1");
        }
        if self.ffmpeg.stall_timeout_ms == 0 {
            return bad("ffmpeg.stall_timeout_ms", &0, "at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: &str) {
        let mut config = Config::default();
        change(&mut config);
        assert_eq!(config.check().map_err(|e| e.to_string()), Err(expected.to_owned()));
    }

    #[test]
    fn values_are_checked_with_their_place() {
        assert_eq!(Config::default().check(), Ok(()));
        check(|c| c.video.fps = 0.0, "video.fps = 0: must be 1 to 240");
        check(|c| c.video.fps = f64::NAN, "video.fps = NaN: must be 1 to 240");
        check(|c| c.video.width = 1279, "video.width = 1279: must be even, 16 to 4096");
        check(|c| c.video.height = 8, "video.height = 8: must be even, 16 to 4096");
        check(|c| c.video.bitrate_kbps = 0, "video.bitrate_kbps = 0: must be 50 to 100000");
        check(|c| c.video.queue_frames = 0, "video.queue_frames = 0: must be 1 to 16");
        check(|c| c.audio.channels = 6, "audio.channels = 6: must be 1 or 2");
        check(|c| c.audio.frame_ms = 15, "audio.frame_ms = 15: must be 5, 10 or 20");
        check(|c| c.audio.bitrate_kbps = 1000, "audio.bitrate_kbps = 1000: must be 6 to 510");
        check(|c| c.audio.complexity = 11, "audio.complexity = 11: must be 0 to 10");
        check(|c| c.webrtc.playout_delay_max_ms = 0, "webrtc.playout_delay_max_ms = 0: must be 10 to 10000");
        check(|c| c.ffmpeg.stall_timeout_ms = 0, "ffmpeg.stall_timeout_ms = 0: must be at least 1");
    }
}
