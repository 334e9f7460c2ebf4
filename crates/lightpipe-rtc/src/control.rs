//! The data channel `lightpipe` between our player and us: clock, stage times, goodbye.
//!
//! JSON text messages. The page sends `ping`; we answer `pong` with our Unix time, so that the page knows our clock
//! to within half a round trip; once a second we send `stats`, which ties RTP timestamps to capture times. With both the page can tell the
//! age of every picture that it shows. Anything else from the page is ignored: newer players may say more.

use serde::{Deserialize, Serialize};

/// Label of the channel.
pub const LABEL: &str = "lightpipe";

/// Longest message that we read.
const MAX_MESSAGE_LEN: usize = 1024;

/// From the page.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FromPage {
    /// What time is it?
    Ping {
        /// The page's own time, echoed.
        t: f64,
    },
    /// Pictures arrive this much earlier than this viewer's display can show them.
    Phase {
        /// How much later they may be taken, milliseconds, 0 to one refresh interval.
        later_ms: f64,
    },
    /// The viewer chose a layer.
    Layer {
        /// Its name; none for what the network carries.
        #[serde(default)]
        rid: Option<String>,
    },
    /// Pictures are shown ever later here.
    Behind {
        /// By how much, milliseconds beyond what it had been.
        ms: f64,
        /// What we did did not help, and the page connects anew.
        #[serde(default)]
        restart: bool,
    },
    /// A message of a newer player.
    #[serde(other)]
    Unknown,
}

impl FromPage {
    /// Parses a message; `None` for anything that is not one of ours.
    pub fn parse(message: &[u8]) -> Option<Self> {
        (message.len() <= MAX_MESSAGE_LEN).then(|| serde_json::from_slice(message).ok()).flatten()
    }
}

/// p50, p95, p99 of a stage, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl From<&lightpipe_media::Histogram> for Percentiles {
    fn from(histogram: &lightpipe_media::Histogram) -> Self {
        let [p50, p95, p99] = histogram.percentiles_ms().map(|ms| (ms * 1000.0).round() / 1000.0);
        Self { p50, p95, p99 }
    }
}

/// Stage times on our side.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StagePercentiles {
    /// Capture to the whole picture in our process.
    pub capture: Percentiles,
    /// Waiting for the encoder.
    pub queue: Percentiles,
    /// Colour conversion and encoding.
    pub encode: Percentiles,
    /// Encoded to the last packet handed to the kernel: hand-over, packetizing, pacing, encryption.
    pub send: Percentiles,
}

/// What a viewer is told once a second.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ViewerStats {
    /// RTP timestamp of a recent picture.
    pub rtp: u32,
    /// Its capture time, Unix milliseconds.
    pub capture_ms: f64,
    /// RTP ticks per second.
    pub clock_rate: u32,
    /// RTP timestamp and capture time (Unix milliseconds) of a recent frame of sound; its clock is 48 kHz.
    pub audio: Option<(u32, f64)>,
    /// Stage times of this stream and this viewer.
    pub stages_ms: StagePercentiles,
    /// What the encoder aims for, bits per second.
    pub target_bps: Option<u64>,
    /// What this viewer's network carries, as far as known.
    pub estimate_bps: Option<u64>,
    /// Round-trip time.
    pub rtt_ms: Option<f64>,
    /// Viewers of this stream.
    pub viewers: usize,
    /// Pictures per second published lately.
    pub fps: f64,
    /// The layers that there are, best first; none without a ladder.
    pub layers: Vec<LayerStats>,
    /// Name of the layer that is sent.
    pub layer: Option<String>,
    /// Name of the layer that the viewer chose; none: what the network carries.
    pub chosen_layer: Option<String>,
}

/// One layer, for a player's menu.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerStats {
    /// Its name.
    pub rid: String,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Pictures can be had.
    pub available: bool,
}

/// To the page.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToPage<'a> {
    /// Answer to a ping.
    Pong {
        /// The ping's `t`.
        t: f64,
        /// Our Unix time, milliseconds.
        server_ms: f64,
    },
    /// Once a second.
    Stats(&'a ViewerStats),
    /// We end the session, and why.
    Bye {
        /// Machine-readable.
        cause: &'a str,
        /// One sentence for the viewer.
        text: &'a str,
    },
}

impl ToPage<'_> {
    /// The message's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers, strings and fixed keys always serialize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_documented_form() {
        assert_eq!(FromPage::parse(br#"{"type":"ping","t":12.5}"#), Some(FromPage::Ping { t: 12.5 }));
        assert_eq!(FromPage::parse(br#"{"type":"phase","later_ms":9.5}"#), Some(FromPage::Phase { later_ms: 9.5 }));
        assert_eq!(FromPage::parse(br#"{"type":"wave"}"#), Some(FromPage::Unknown));
        for bad in [&b""[..], b"{", b"[]", b"{\"type\":\"ping\"}", &[0xff; 9], &[b' '; 2000]] {
            assert_eq!(FromPage::parse(bad), None, "{bad:?}");
        }
        let pong = ToPage::Pong { t: 12.5, server_ms: 1000.25 }.to_json();
        assert_eq!(pong, br#"{"type":"pong","t":12.5,"server_ms":1000.25}"#);
        let stats: serde_json::Value =
            serde_json::from_slice(&ToPage::Stats(&ViewerStats::default()).to_json()).expect("JSON");
        assert_eq!(stats["type"], "stats");
        assert_eq!(stats["stages_ms"]["send"]["p95"], 0.0);
    }
}
