//! A source of pictures with its encoders, as far as a network can tell: sizes like those of real ones, bytes that are none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use lightpipe_media::adapt::{self, Adaptation, OperatingPoint, Preference};
use lightpipe_media::stream::SimulcastLayer;
use lightpipe_media::{AccessUnit, MediaClock, Outlet, Size, Stages, Stream, VideoCodec, h264};
use lightpipe_rtc::LayerState;

/// How many ordinary pictures' bytes a keyframe has. Test pictures and cameras through OpenH264 have four to eight.
const KEYFRAME_FACTOR: f64 = 6.0;

/// Pixels of a keyframe that cost a byte at least: at its coarsest an encoder has no less for a 720p picture than some 8 kB.
const PIXELS_PER_BYTE: f64 = 110.0;

/// Time in which what a keyframe cost is saved again, and what the pictures meanwhile give of theirs at most.
const PAY_BACK: Duration = Duration::from_secs(1);
const PAY_BACK_SHARE: f64 = 0.3;

/// Part of the way to a new bitrate that each picture goes: settled in less than five, as OpenH264 is.
const SETTLING: f64 = 0.5;

/// Smallest relative change of the bitrate that an encoder is told.
const BITRATE_STEP: f64 = 0.05;

/// Layers that a ladder can have here.
const MAX_LAYERS: u64 = 8;

/// What the encoders of a source aim for. Each works only while somebody takes its pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    layers: Vec<SimulcastLayer>,
    /// A single one makes fewer and smaller pictures for a network that carries too little.
    adapts: bool,
}

impl Ladder {
    /// One encoding, of fewer and smaller pictures where the network carries too little.
    pub fn single(size: Size, fps: f64, bitrate_bps: u64) -> Self {
        Self { layers: vec![SimulcastLayer { rid: "f".to_owned(), size, bitrate_bps, fps }], adapts: true }
    }

    /// The same, but always of the whole pictures.
    #[must_use]
    pub fn without_adaptation(self) -> Self {
        Self { adapts: false, ..self }
    }

    /// 1280×720 at 30 pictures a second and 2.5 Mbit/s: what a stream is by default.
    pub fn camera() -> Self {
        Self::single(Size::new(1280, 720), 30.0, 2_500_000)
    }

    /// 1280×720, 640×360 and 320×180 at 2 Mbit/s, 500 and 150 kbit/s: what a ladder has by default.
    pub fn simulcast() -> Self {
        let layer = |rid: &str, width, height, kbps: u64| SimulcastLayer {
            rid: rid.to_owned(),
            size: Size::new(width, height),
            bitrate_bps: kbps * 1_000,
            fps: 30.0,
        };
        Self::of(vec![layer("f", 1280, 720, 2_000), layer("h", 640, 360, 500), layer("q", 320, 180, 150)])
    }

    /// Several encodings of the same pictures, from the best to the least.
    ///
    /// # Panics
    ///
    /// With none, or with more than eight.
    pub fn of(layers: Vec<SimulcastLayer>) -> Self {
        assert!((1..=MAX_LAYERS as usize).contains(&layers.len()), "a ladder has one layer to eight");
        let adapts = layers.len() == 1;
        Self { layers, adapts }
    }

    /// The layers, from the best to the least.
    pub fn layers(&self) -> &[SimulcastLayer] {
        &self.layers
    }
}

/// A running ladder.
#[derive(Debug)]
pub(crate) struct Source {
    coders: Vec<Coder>,
    fps: f64,
    first_at: Instant,
    /// When each picture was taken.
    taken: Vec<Instant>,
}

impl Source {
    pub(crate) fn new(ladder: &Ladder, first_at: Instant, seed: u64) -> Self {
        let stream = Stream::new("lab", VideoCodec::H264);
        let own = ladder.layers[0].clone();
        let fps = own.fps;
        let mut streams = vec![stream.clone()];
        if ladder.layers.len() > 1 {
            streams.extend(stream.set_layers(own, ladder.layers[1..].to_vec()));
        }
        let coder = |(index, (stream, layer)): (usize, (Arc<Stream>, &SimulcastLayer))| {
            let lowest = index + 1 == ladder.layers.len();
            Coder::new(stream, layer.clone(), lowest, ladder.adapts, seed * 16 + index as u64)
        };
        let coders = streams.into_iter().zip(&ladder.layers).enumerate().map(coder).collect();
        Self { coders, fps, first_at, taken: Vec::new() }
    }

    /// When the next picture is taken.
    pub(crate) fn next_at(&self) -> Instant {
        self.first_at + Duration::from_secs_f64(self.taken.len() as f64 / self.fps)
    }

    /// The next picture, in every layer that somebody takes.
    pub(crate) fn take_picture(&mut self, now: Instant, clock: &MediaClock) -> Vec<(Arc<Stream>, Arc<AccessUnit>)> {
        let number = self.taken.len() as u64;
        self.taken.push(now);
        let encode = |(layer, coder): (usize, &mut Coder)| {
            // A slower layer leaves pictures out.
            let due = |number: u64| (number as f64 * coder.point().fps / self.fps).floor();
            if number > 0 && due(number) <= due(number - 1) {
                return None;
            }
            coder.encode(now, clock, number, layer as u64).map(|unit| (Arc::clone(&coder.stream), unit))
        };
        self.coders.iter_mut().enumerate().filter_map(encode).collect()
    }

    /// When the picture with a mark was taken, the layer that it is of, and its size.
    pub(crate) fn picture(&self, mark: u64) -> Option<(Instant, usize, Size)> {
        let (number, layer) = (mark / MAX_LAYERS, (mark % MAX_LAYERS) as usize);
        let size = self.coders.get(layer)?.point_of(number).size;
        Some((*self.taken.get(number as usize)?, layer, size))
    }

    /// Bits per second of the best layer at its best.
    pub(crate) fn best_bps(&self) -> u64 {
        self.coders[0].layer.bitrate_bps
    }

    /// The stream of a layer.
    pub(crate) fn stream(&self, layer: usize) -> &Arc<Stream> {
        &self.coders[layer.min(self.coders.len() - 1)].stream
    }

    /// What viewers may choose from.
    pub(crate) fn layer_states(&self) -> Vec<LayerState> {
        let state = |coder: &Coder| LayerState {
            rid: coder.layer.rid.clone(),
            size: coder.layer.size,
            floor_bps: coder.layer.floor_bps(),
            target_bps: coder.running.then_some(coder.target_bps),
            available: true,
        };
        self.coders.iter().map(state).collect()
    }

    /// Bits per second that a layer's encoder aims for; none while it rests.
    pub(crate) fn target_bps(&self, layer: usize) -> Option<u64> {
        self.coders.get(layer).filter(|coder| coder.running).map(|coder| coder.target_bps)
    }

    /// Pictures per second that a layer's encoder makes at most.
    pub(crate) fn fps(&self, layer: usize) -> f64 {
        self.coders.get(layer).map_or(0.0, |coder| coder.point().fps)
    }

    /// Changes of size or rate.
    pub(crate) fn adaptations(&self) -> u64 {
        self.coders.iter().map(|coder| coder.points.len() as u64 - 1).sum()
    }

    /// Keyframes that each layer made so far.
    pub(crate) fn keyframes(&self) -> Vec<u64> {
        self.coders.iter().map(|coder| coder.stream.stats().keyframes).collect()
    }
}

#[derive(Debug)]
struct Coder {
    stream: Arc<Stream>,
    layer: SimulcastLayer,
    lowest: bool,
    adaptation: Option<Adaptation>,
    /// What it made, each from a picture's number on; never empty.
    points: Vec<(u64, OperatingPoint)>,
    running: bool,
    target_bps: u64,
    /// Where the rate control is on its way to the target.
    rate_bps: f64,
    /// Bytes that keyframes took from the pictures to come.
    debt: f64,
    rng: Rng,
}

impl Coder {
    fn new(stream: Arc<Stream>, layer: SimulcastLayer, lowest: bool, adapts: bool, seed: u64) -> Self {
        let target_bps = layer.bitrate_bps;
        let whole = OperatingPoint { size: layer.size, fps: layer.fps };
        let adaptation = adapts.then(|| Adaptation::new(whole, target_bps, Preference::Balanced));
        Self {
            stream,
            layer,
            lowest,
            adaptation,
            points: vec![(0, whole)],
            running: false,
            target_bps,
            rate_bps: target_bps as f64,
            debt: 0.0,
            rng: Rng::with_seed(seed),
        }
    }

    fn point(&self) -> OperatingPoint {
        self.points[self.points.len() - 1].1
    }

    /// What was made of the picture with a number.
    fn point_of(&self, number: u64) -> OperatingPoint {
        let after = self.points.partition_point(|(from, _)| *from <= number);
        self.points[after.max(1) - 1].1
    }

    fn encode(&mut self, now: Instant, clock: &MediaClock, number: u64, index: u64) -> Option<Arc<AccessUnit>> {
        let at = clock.at(now);
        let demand = self.stream.demand(at);
        if !demand.wanted {
            self.running = false;
            return None;
        }
        let least = self.adaptation.is_some().then_some(adapt::MIN_BITRATE_BPS);
        let floor = if self.lowest { least } else { Some(self.layer.floor_bps()) };
        let target = demand.target_bps(self.layer.bitrate_bps, floor);
        let before = self.point();
        if let Some(adaptation) = &mut self.adaptation {
            let point = adaptation.choose(at, demand.bitrate_bps.map(|_| target), demand.keyframe);
            if point != before {
                self.points.push((number, point));
                self.stream.set_adapted((point != self.points[0].1).then_some(point));
            }
        }
        let point = self.point();
        let starting = !std::mem::replace(&mut self.running, true);
        let resized = point.size != before.size;
        if starting || resized {
            (self.target_bps, self.rate_bps, self.debt) = (target, target as f64, 0.0);
        } else if target.abs_diff(self.target_bps) as f64 > BITRATE_STEP * self.target_bps as f64 {
            self.target_bps = target;
        }
        self.stream.update_stats(|stats| stats.target_bitrate_bps = Some(target));
        self.rate_bps += (self.target_bps as f64 - self.rate_bps) * SETTLING;
        let ordinary = self.rate_bps / 8.0 / point.fps;
        let keyframe = starting || resized || demand.keyframe;
        let len = if keyframe {
            let pixels = f64::from(point.size.width) * f64::from(point.size.height);
            let len = (ordinary * KEYFRAME_FACTOR).max(pixels / PIXELS_PER_BYTE);
            self.debt += len - ordinary;
            len
        } else {
            let saved = (self.debt / (PAY_BACK.as_secs_f64() * point.fps)).min(ordinary * PAY_BACK_SHARE);
            self.debt = (self.debt - saved).max(0.0);
            (ordinary - saved) * (0.7 + 0.6 * self.rng.f64())
        };
        let stages = Stages::all_at(at);
        let data = picture(keyframe, number * MAX_LAYERS + index, len as usize);
        Some(Arc::new(AccessUnit::new(VideoCodec::H264, data, at, keyframe, point.size, stages)))
    }
}

/// An access unit in Annex-B: parameter sets of some size in front of a keyframe, one slice with the picture's mark in it.
fn picture(keyframe: bool, mark: u64, len: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(len + 64);
    if keyframe {
        let sps = [0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x88, 0x46, 0xa0];
        for parameter_set in [&sps[..], &[0x68, 0xce, 0x3c, 0x80]] {
            data.extend_from_slice(&[0, 0, 0, 1]);
            data.extend_from_slice(parameter_set);
        }
    }
    data.extend_from_slice(&[0, 0, 0, 1, if keyframe { 0x65 } else { 0x41 }, 0x88]);
    // Seven bits a byte, and no zeros: no start code comes of it.
    data.extend((0..5).map(|digit| 0x80 | (mark >> (7 * digit) & 0x7f) as u8));
    data.resize(data.len() + len.max(8), 0xaa);
    data
}

/// The mark of a picture that [`picture`] made.
pub(crate) fn mark_of(data: &[u8]) -> Option<u64> {
    let slice = h264::nals(data).find(|nal| nal.first().is_some_and(|first| matches!(first & 0x1f, 1 | 5)))?;
    let digits = slice.get(2..7)?;
    Some(digits.iter().rev().fold(0, |mark, digit| mark << 7 | u64::from(digit & 0x7f)))
}

/// Where a viewer's pictures wait for its peer; they are taken at the instant at which they come.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<VecDeque<Arc<AccessUnit>>>);

impl Inbox {
    pub(crate) fn take(&self) -> Option<Arc<AccessUnit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Outlet for Inbox {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(unit));
    }

    fn has_network(&self) -> bool {
        true
    }
}
