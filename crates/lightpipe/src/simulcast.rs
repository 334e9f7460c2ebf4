//! `[simulcast]`: the sizes in which one source is encoded, so that each viewer gets what its network carries.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use lightpipe_codec::CpuBudget;
use lightpipe_media::{Size, convert, stream};
use lightpipe_source::ffmpeg::fit_inside;
use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{ValueError, VideoConfig};

/// Layers that a ladder may have: each is an encoder, and more sizes than these nobody tells apart.
const MAX_LAYERS: usize = 4;

/// Fewer samples than in a picture of 160×90 show nothing.
const MIN_SAMPLES: u64 = 160 * 90;

/// Shortest side that every encoder of ours takes.
const MIN_SIDE: u32 = 16;

/// Least rate of a layer that we choose ourselves, kbit/s.
const MIN_KBPS: u64 = 50;

/// Names of the layers that we choose ourselves.
const RIDS: [&str; 3] = ["f", "h", "q"];

/// Rates of the lower two layers, kbit/s, for a source of so many samples.
const RATES: [(u64, [u64; 2]); 2] = [(1280 * 720, [500, 150]), (1920 * 1080, [1250, 350])];

/// Encoding in several sizes at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimulcastConfig {
    /// Encode smaller pictures beside those of `[video]`, for viewers whose network carries less. A size that nobody gets is not encoded. Default
    /// true.
    pub enabled: bool,
    /// How much of this machine's CPU all encoders of pictures together may take, percent of all cores, 1 to 100; 0 is as much as they need. When they
    /// take more, the dearest layer that has another below it is left out until there is room for it. Default 0.
    pub cpu_percent: u32,
    /// The layers, from the largest to the smallest, at most 4. Each is `{ rid, width, height, bitrate_kbps, fps }`, or short
    /// `"rid:WIDTHxHEIGHT:KBPS[:FPS]"`. Default none: `f` as `[video]` says, then `h` and `q`, each half as wide and high, with 500 and 150 kbit/s
    /// at 720p, 1250 and 350 at 1080p, others in proportion to their pixels.
    pub layers: Vec<SimulcastLayer>,
    /// Send all layers to the servers of `[push]` and of `lightpipe publish`, side by side, if they take them (RFC 8853). Otherwise, and where
    /// they do not, they get the one that our network carries. Default true.
    pub push: bool,
}

impl Default for SimulcastConfig {
    fn default() -> Self {
        Self { enabled: true, cpu_percent: 0, layers: Vec::new(), push: true }
    }
}

/// One size and rate of the pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulcastLayer {
    /// Its name: 1 to 16 letters and digits.
    pub rid: String,
    /// Columns at most, even, 16 to 4096. Pictures keep their shape and never grow.
    pub width: u32,
    /// Rows at most, even, 16 to 4096.
    pub height: u32,
    /// Target bitrate, kbit/s, 10 to 100 000.
    pub bitrate_kbps: u32,
    /// Pictures per second at most, 1 to 240; 0 is as many as the source has. Default 0.
    pub fps: f64,
}

impl fmt::Display for SimulcastLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}x{}:{}", self.rid, self.width, self.height, self.bitrate_kbps)?;
        if self.fps > 0.0 { write!(f, ":{}", self.fps) } else { Ok(()) }
    }
}

impl FromStr for SimulcastLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.trim().split(':');
            let rid = parts.next()?.to_owned();
            let (width, height) = parts.next()?.split_once('x')?;
            let (width, height) = (width.parse().ok()?, height.parse().ok()?);
            let bitrate_kbps = parts.next()?.parse().ok()?;
            let fps = parts.next().map_or(Some(0.0), |fps| fps.parse().ok())?;
            parts.next().is_none().then_some(Self { rid, width, height, bitrate_kbps, fps })
        };
        parse().ok_or_else(|| {
            format!("{text:?} is no layer; write rid:WIDTHxHEIGHT:KBPS or rid:WIDTHxHEIGHT:KBPS:FPS, as h:640x360:500")
        })
    }
}

impl<'de> Deserialize<'de> for SimulcastLayer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            rid: String,
            width: u32,
            height: u32,
            bitrate_kbps: u32,
            #[serde(default)]
            fps: f64,
        }

        struct TextOrTable;

        impl<'de> Visitor<'de> for TextOrTable {
            type Value = SimulcastLayer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a layer, { rid, width, height, bitrate_kbps, fps } or \"rid:WIDTHxHEIGHT:KBPS\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SimulcastLayer, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<SimulcastLayer, M::Error> {
                let Fields { rid, width, height, bitrate_kbps, fps } =
                    Fields::deserialize(MapAccessDeserializer::new(map))?;
                Ok(SimulcastLayer { rid, width, height, bitrate_kbps, fps })
            }
        }

        deserializer.deserialize_any(TextOrTable)
    }
}

impl SimulcastConfig {
    /// Checks the layers.
    pub(crate) fn check(&self) -> Result<(), ValueError> {
        if self.cpu_percent > 100 {
            let value = self.cpu_percent.to_string();
            return Err(ValueError { key: "simulcast.cpu_percent", value, allowed: "1 to 100, or 0 for no limit" });
        }
        let bad = |value: String, allowed| Err(ValueError { key: "simulcast.layers", value, allowed });
        if self.layers.len() > MAX_LAYERS {
            return bad(format!("{} layers", self.layers.len()), "at most 4: leave one out");
        }
        for (n, layer) in self.layers.iter().enumerate() {
            let side = |n: u32| (16..=4096).contains(&n) && n.is_multiple_of(2);
            if layer.rid.is_empty() || layer.rid.len() > 16 || !layer.rid.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return bad(layer.to_string(), "named by 1 to 16 letters and digits (RFC 8851)");
            }
            if !side(layer.width) || !side(layer.height) {
                return bad(layer.to_string(), "of even sides, 16 to 4096");
            }
            if !(10..=100_000).contains(&layer.bitrate_kbps) {
                return bad(layer.to_string(), "of 10 to 100000 kbit/s");
            }
            if layer.fps != 0.0 && !(1.0..=240.0).contains(&layer.fps) {
                return bad(layer.to_string(), "of 1 to 240 pictures per second, or 0 for all");
            }
            let above = &self.layers[..n];
            if above.iter().any(|other| other.rid == layer.rid) {
                return bad(layer.to_string(), "of another name than those above: each rid once");
            }
            if above.last().is_some_and(|above| layer.width > above.width || layer.height > above.height) {
                return bad(layer.to_string(), "no larger than the one above: write the largest first");
            }
        }
        Ok(())
    }

    /// The most that a viewer gets, bits per second.
    pub(crate) fn most_bps(&self, video: &VideoConfig) -> u64 {
        let layers = self.layers.iter().filter(|_| self.enabled).map(|layer| u64::from(layer.bitrate_kbps) * 1000);
        layers.max().unwrap_or_else(|| video.bitrate_bps())
    }

    /// The budget that `cpu_percent` is, if it is one.
    pub(crate) fn budget(&self) -> Option<Arc<CpuBudget>> {
        (self.cpu_percent > 0).then(|| CpuBudget::new(self.cpu_percent))
    }

    /// The layers of a source whose pictures are of `size` (even), from the best to the least; none where there is one encoding, as
    /// `[video]` says. Layers above the source are left out, and so are those that would show nothing.
    pub fn ladder(&self, video: &VideoConfig, size: Size) -> Vec<stream::SimulcastLayer> {
        if !self.enabled {
            return Vec::new();
        }
        if self.layers.is_empty() {
            return halves(size, video.bitrate_bps(), video.fps);
        }
        let mut ladder = Vec::with_capacity(self.layers.len());
        for (n, layer) in self.layers.iter().enumerate() {
            let fits = |layer: &SimulcastLayer| fit_inside(size, Size::new(layer.width, layer.height));
            let own = fits(layer);
            // Of those that would be larger than the source, the least is the one that is meant for it.
            let below = self.layers.get(n + 1);
            if below
                .is_some_and(|below| (below.width, below.height) != (layer.width, layer.height) && fits(below) == own)
            {
                continue;
            }
            let fps = if layer.fps > 0.0 { layer.fps.min(video.fps) } else { video.fps };
            let bitrate_bps = u64::from(layer.bitrate_kbps) * 1000;
            ladder.push(stream::SimulcastLayer { rid: layer.rid.clone(), size: own, bitrate_bps, fps });
        }
        let shown = ladder.iter().take_while(|layer| shows(layer.size)).count();
        ladder.truncate(shown.max(1));
        ladder
    }
}

/// A source's own size and rate, and below it half and a quarter of its sides.
fn halves(mut size: Size, mut bitrate_bps: u64, fps: f64) -> Vec<stream::SimulcastLayer> {
    let rates = rates(samples(size));
    let mut ladder = Vec::with_capacity(RIDS.len());
    for (rid, below) in RIDS.into_iter().zip(rates.map(Some).into_iter().chain([None])) {
        ladder.push(stream::SimulcastLayer { rid: rid.into(), size, bitrate_bps, fps });
        size = convert::half(size);
        bitrate_bps = below.map_or(0, |kbps| kbps * 1000).min(bitrate_bps / 2);
        if !shows(size) || bitrate_bps < MIN_KBPS * 1000 {
            break;
        }
    }
    if ladder.len() > 1 { ladder } else { Vec::new() }
}

/// Rates of the lower two layers, kbit/s, of a source of so many samples: in proportion to them, and between two that we know on the
/// line from one to the other.
fn rates(samples: u64) -> [u64; 2] {
    let [(small, low), (large, high)] = RATES;
    std::array::from_fn(|n| {
        let (low, high) = (low[n], high[n]);
        if samples <= small {
            low * samples / small
        } else if samples >= large {
            high * samples / large
        } else {
            low + (high - low) * (samples - small) / (large - small)
        }
    })
}

fn samples(size: Size) -> u64 {
    u64::from(size.width) * u64::from(size.height)
}

fn shows(size: Size) -> bool {
    samples(size) >= MIN_SAMPLES && size.width.min(size.height) >= MIN_SIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(layers: &str, video: &VideoConfig, size: (u32, u32), expected: &str) {
        let layers = layers.split_ascii_whitespace().map(|text| text.parse().expect("a layer")).collect();
        let config = SimulcastConfig { layers, ..SimulcastConfig::default() };
        config.check().expect("good layers");
        let ladder = config.ladder(video, Size::new(size.0, size.1));
        let text = |l: &stream::SimulcastLayer| format!("{}:{}:{}:{}", l.rid, l.size, l.bitrate_bps / 1000, l.fps);
        assert_eq!(ladder.iter().map(text).collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn without_layers_each_is_half_of_the_one_above() {
        let video = |bitrate_kbps| VideoConfig { bitrate_kbps, ..VideoConfig::default() };
        let hd = video(4000);
        check("", &video(2500), (1280, 720), "f:1280x720:2500:30 h:640x360:500:30 q:320x180:150:30");
        check("", &hd, (1920, 1080), "f:1920x1080:4000:30 h:960x540:1250:30 q:480x270:350:30");
        check("", &hd, (3840, 2160), "f:3840x2160:4000:30 h:1920x1080:2000:30 q:960x540:1000:30");
        check("", &hd, (1366, 768), "f:1366x768:4000:30 h:682x384:583:30 q:340x192:172:30");
        check("", &video(2500), (640, 360), "f:640x360:2500:30 h:320x180:125:30");
        check("", &video(2500), (720, 1280), "f:720x1280:2500:30 h:360x640:500:30 q:180x320:150:30");
        check("", &video(2500), (320, 240), "");
        check("", &video(2500), (4096, 16), "");
        check("", &video(150), (1280, 720), "f:1280x720:150:30 h:640x360:75:30");
        check("", &video(50), (1280, 720), "");
    }

    #[test]
    fn layers_of_ones_own_keep_the_shape_of_the_picture_and_never_grow() {
        let video = VideoConfig::default();
        let three = "f:1280x720:2000 h:640x360:500:15 q:320x180:150:60";
        check(three, &video, (1280, 720), "f:1280x720:2000:30 h:640x360:500:15 q:320x180:150:30");
        check(three, &video, (1152, 720), "f:1152x720:2000:30 h:576x360:500:15 q:288x180:150:30");
        check(three, &video, (640, 360), "h:640x360:500:15 q:320x180:150:30");
        check(three, &video, (480, 270), "h:480x270:500:15 q:320x180:150:30");
        check(three, &video, (160, 120), "q:160x120:150:30");
        check("only:640x480:800", &video, (1280, 720), "only:640x360:800:30");
        check("a:640x360:800 b:640x360:300:10", &video, (640, 360), "a:640x360:800:30 b:640x360:300:10");
        check("a:640x360:800 b:64x64:50", &video, (640, 360), "a:640x360:800:30");
    }

    #[test]
    fn viewers_get_as_much_as_the_best_layer_has() {
        let video = VideoConfig::default();
        let own = vec!["f:1280x720:6000".parse().expect("a layer")];
        let most = |enabled, layers| SimulcastConfig { enabled, layers, ..SimulcastConfig::default() }.most_bps(&video);
        assert_eq!(most(true, Vec::new()), 2_500_000);
        assert_eq!((most(true, own.clone()), most(false, own)), (6_000_000, 2_500_000));
    }

    #[test]
    fn there_is_no_ladder_where_it_is_switched_off() {
        let config = SimulcastConfig { enabled: false, ..SimulcastConfig::default() };
        assert_eq!(config.ladder(&VideoConfig::default(), Size::new(1280, 720)), []);
    }

    #[track_caller]
    fn check_refused(layers: &str, expected: &str) {
        let layers = layers.split_ascii_whitespace().map(|text| text.parse().expect("a layer")).collect();
        let config = SimulcastConfig { layers, ..SimulcastConfig::default() };
        assert_eq!(config.check().expect_err("refused").to_string(), format!("simulcast.layers = {expected}"));
    }

    #[test]
    fn bad_ladders_are_told_what_helps() {
        check_refused(
            "f:1280x720:2000 f:640x360:500",
            "f:640x360:500: must be of another name than those above: each rid once",
        );
        check_refused(
            "a:640x360:500 b:1280x720:2000",
            "b:1280x720:2000: must be no larger than the one above: write the largest first",
        );
        check_refused("a:641x360:500", "a:641x360:500: must be of even sides, 16 to 4096");
        check_refused("a:640x360:5", "a:640x360:5: must be of 10 to 100000 kbit/s");
        check_refused("a:640x360:500:0.5", "a:640x360:500:0.5: must be of 1 to 240 pictures per second, or 0 for all");
        check_refused("a_b:640x360:500", "a_b:640x360:500: must be named by 1 to 16 letters and digits (RFC 8851)");
        check_refused(":640x360:500", ":640x360:500: must be named by 1 to 16 letters and digits (RFC 8851)");
        let config = SimulcastConfig { cpu_percent: 101, ..SimulcastConfig::default() };
        let error = config.check().expect_err("refused").to_string();
        assert_eq!(error, "simulcast.cpu_percent = 101: must be 1 to 100, or 0 for no limit");
        let five = "a:640x360:500 b:640x360:500 c:640x360:500 d:640x360:500 e:640x360:500";
        check_refused(five, "5 layers: must be at most 4: leave one out");
    }

    #[test]
    fn a_layer_is_written_as_text_or_as_a_table() {
        #[derive(Deserialize)]
        struct File {
            layers: Vec<SimulcastLayer>,
        }
        let read = |text: &str| {
            toml::from_str::<File>(text).map(|file| file.layers).map_err(|error| error.message().to_owned())
        };
        let layer = SimulcastLayer { rid: "h".into(), width: 640, height: 360, bitrate_kbps: 500, fps: 15.0 };
        let table = "layers = [{ rid = \"h\", width = 640, height = 360, bitrate_kbps = 500, fps = 15 }]";
        assert_eq!(read(table), Ok(vec![layer.clone()]));
        assert_eq!(read("layers = [\"h:640x360:500:15\"]"), Ok(vec![layer]));
        for (text, expected) in [
            ("layers = [\"h:640:500\"]", "write rid:WIDTHxHEIGHT:KBPS"),
            ("layers = [\"h:640x360:500:15:1\"]", "is no layer"),
            ("layers = [{ rid = \"h\", widht = 640 }]", "unknown field `widht`"),
            ("layers = [{ rid = \"h\", width = 640, height = 360 }]", "missing field `bitrate_kbps`"),
            ("layers = [3]", "expected a layer, { rid,"),
        ] {
            let error = read(text).expect_err("refused");
            assert!(error.contains(expected), "{text} gave {error}");
        }
    }
}
