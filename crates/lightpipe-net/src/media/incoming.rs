//! Where a publisher's layers go: each to a stream of its own, the best there is to the main one.
//!
//! Browsers send a layer when their network carries it and leave it when it does not, the best first. So the main stream gets the best
//! layer that comes, which changes at keyframes only: recorders and others that know nothing of layers always have a picture. A lower layer
//! that does not come is [`Health::Failed`], the best one says that it rests, and viewers take another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::stream::{Health, SimulcastLayer};
use lightpipe_media::{AccessUnit, MediaTime, Size, Stream};

/// Silence of a layer after which it counts as left out, if others went on. Longer than a gap holds pictures up
/// ([`lightpipe_rtc::receiver::REORDER_WAIT`]).
const SILENT_AFTER: Duration = Duration::from_millis(600);

/// Pictures of the other layers in that time, or the source itself is slow.
const SILENT_PICTURES: u64 = 5;

/// What a measured bitrate falls by at most in a second: pictures without motion say nothing about the next ones.
const BITRATE_DECAY: f64 = 0.95;

/// How much less than the one above a layer has that was never seen: half the columns and rows of pictures cost about a quarter.
const BITRATE_RATIO: u64 = 4;

/// The best layer until it is seen: what browsers send of a camera.
const GUESS: (Size, u64) = (Size { width: 1280, height: 720 }, 2_000_000);

/// Why a layer cannot be had.
const LEFT_OUT: &str = "the publisher does not send this layer";

/// A publisher's pictures on their way to its stream and that stream's layers.
pub(super) struct Incoming {
    main: Arc<Stream>,
    /// As the publisher numbers them; one where there is no simulcast.
    layers: Vec<Layer>,
    /// Numbers of the layers from the best to the least.
    order: Vec<usize>,
    /// Number of the layer that the main stream gets.
    feeds_main: Option<usize>,
    /// The sizes said another order at the last look already.
    contradicted: bool,
    /// Pictures of all layers.
    pictures: u64,
    looked: Instant,
}

struct Layer {
    rid: String,
    /// Its own stream; the best layer's is the main one.
    stream: Option<Arc<Stream>>,
    size: Option<Size>,
    /// When its last picture came, and how many of all layers had come then.
    last: Option<(Instant, u64)>,
    bitrate_bps: f64,
    fps: f64,
    /// Since the last look.
    bytes: usize,
    pictures: u32,
}

impl Layer {
    fn new(rid: String) -> Self {
        Self { rid, stream: None, size: None, last: None, bitrate_bps: 0.0, fps: 0.0, bytes: 0, pictures: 0 }
    }

    fn comes(&self, now: Instant, pictures: u64) -> bool {
        self.last.is_some_and(|(at, count)| {
            now.saturating_duration_since(at) < SILENT_AFTER || pictures - count < SILENT_PICTURES
        })
    }
}

impl Incoming {
    /// The layers of a publisher, as it numbers and names them, in a stream that may have had another publisher before.
    pub(super) fn new(main: &Arc<Stream>, rids: &[String], now: Instant) -> Self {
        let mut incoming = Self {
            main: Arc::clone(main),
            layers: Vec::new(),
            order: Vec::new(),
            feeds_main: None,
            contradicted: false,
            pictures: 0,
            looked: now,
        };
        if rids.len() > 1 {
            incoming.layers = rids.iter().cloned().map(Layer::new).collect();
            incoming.order = by_name(rids);
            incoming.arrange();
        } else {
            main.set_resting(None);
            main.without_layers();
            main.update_stats(|stats| stats.target_bitrate_bps = None);
            incoming.layers.push(Layer::new(String::new()));
            incoming.order.push(0);
        }
        incoming
    }

    /// One picture of a layer.
    pub(super) fn publish(&mut self, now: Instant, number: usize, unit: &Arc<AccessUnit>) {
        let Some(layer) = self.layers.get_mut(number) else { return };
        self.pictures += 1;
        layer.size = Some(unit.size);
        layer.last = Some((now, self.pictures));
        layer.bytes += unit.data.len();
        layer.pictures += 1;
        if let Some(stream) = &layer.stream {
            stream.publish(unit);
        }
        if unit.keyframe && self.feeds_main.is_none_or(|feeding| self.replaces(now, number, feeding)) {
            self.feeds_main = Some(number);
            self.tell_stand_in();
        }
        if self.feeds_main == Some(number) {
            self.main.publish(unit);
        }
    }

    /// Whether the main stream had better get this layer than the one that it gets.
    fn replaces(&self, now: Instant, number: usize, feeding: usize) -> bool {
        self.rank(number) < self.rank(feeding) || !self.layers[feeding].comes(now, self.pictures)
    }

    /// Viewers that can choose are not to take another layer's pictures for the best one's.
    fn tell_stand_in(&self) {
        let stands_in = self.layers.len() > 1 && self.feeds_main != self.order.first().copied();
        self.main.set_resting(stands_in.then(|| LEFT_OUT.into()));
    }

    fn rank(&self, number: usize) -> usize {
        self.order.iter().position(|other| *other == number).unwrap_or(usize::MAX)
    }

    /// Numbers of the layers of which a keyframe is wanted now.
    pub(super) fn wanted_keyframes(&mut self, now: Instant, at: MediaTime) -> Vec<usize> {
        let of_main = self.main.demand(at).keyframe;
        let feeding = self.feeds_main;
        let silent = feeding.is_some_and(|feeding| !self.layers[feeding].comes(now, self.pictures));
        // Its end is noticed here: the next one takes over with a keyframe.
        let successor = if silent { self.best_that_comes(now) } else { None };
        let wanted = |(number, layer): (usize, &Layer)| {
            let asked = layer.stream.as_ref().is_some_and(|stream| stream.demand(at).keyframe);
            (asked || successor == Some(number) || (of_main && feeding == Some(number))).then_some(number)
        };
        self.layers.iter().enumerate().filter_map(wanted).collect()
    }

    fn best_that_comes(&self, now: Instant) -> Option<usize> {
        self.order.iter().copied().find(|number| self.layers[*number].comes(now, self.pictures))
    }

    /// Once a second: what the layers have become.
    pub(super) fn look(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(std::mem::replace(&mut self.looked, now)).as_secs_f64().max(0.1);
        if self.layers.len() < 2 {
            return;
        }
        for layer in &mut self.layers {
            let (bytes, pictures) = (std::mem::take(&mut layer.bytes), std::mem::take(&mut layer.pictures));
            if pictures > 0 {
                layer.bitrate_bps = (bytes as f64 * 8.0 / seconds).max(layer.bitrate_bps * BITRATE_DECAY);
                layer.fps = f64::from(pictures) / seconds;
            }
            let comes = layer.comes(now, self.pictures);
            if let Some(stream) = layer.stream.as_ref().filter(|stream| !comes && stream.health() == Health::Live) {
                stream.set_health(left_out());
            }
        }
        let by_size = self.by_size();
        // A browser that changes all sizes does so one layer after the other.
        if by_size != self.order && std::mem::replace(&mut self.contradicted, true) {
            self.order = by_size;
            self.arrange();
        } else {
            self.contradicted = by_size != self.order;
            for (layer, told) in self.order.iter().zip(self.told()) {
                let stream = self.layers[*layer].stream.as_ref().unwrap_or(&self.main);
                // What comes is not made for our viewers: it will not be less because one of them has less.
                stream.update_stats(|stats| stats.target_bitrate_bps = Some(told.bitrate_bps));
                stream.update_layer(told);
            }
        }
    }

    /// The publisher left.
    pub(super) fn fail(&self, reason: &str) {
        for stream in self.layers.iter().filter_map(|layer| layer.stream.as_ref()).chain([&self.main]) {
            stream.set_health(Health::Failed(reason.to_owned()));
        }
    }

    /// RIDs and whether they come, as the publisher numbers them.
    pub(super) fn coming(&self, now: Instant) -> Vec<bool> {
        self.layers.iter().map(|layer| layer.comes(now, self.pictures)).collect()
    }

    /// Gives each layer but the best its stream: that of an earlier publisher where there are just these layers.
    fn arrange(&mut self) {
        let told = self.told();
        let before = self.main.layers();
        let same = before.len() == told.len()
            && before.iter().zip(&told).all(|(b, t)| b.layer().is_some_and(|layer| layer.rid == t.rid));
        let mut layers = told.into_iter();
        let Some(own) = layers.next() else { return };
        let lower = if same {
            self.main.update_layer(own);
            before[1..].iter().zip(layers).for_each(|(stream, layer)| stream.update_layer(layer));
            before[1..].to_vec()
        } else {
            self.main.set_layers(own, layers.collect())
        };
        let streams = std::iter::once(None).chain(lower.into_iter().map(Some));
        for (number, stream) in self.order.iter().zip(streams) {
            if let Some(stream) = &stream {
                stream.set_health(left_out());
            }
            self.layers[*number].stream = stream;
        }
        self.tell_stand_in();
    }

    /// The layers from the best to the least; those that were never seen, as their neighbours let one guess.
    fn told(&self) -> Vec<SimulcastLayer> {
        let scaled = |(size, bps): (Size, u64), up: bool| {
            let scale = |n: u32| if up { n.saturating_mul(2) } else { (n / 2).max(2) };
            let bps = if up { bps.saturating_mul(BITRATE_RATIO) } else { bps / BITRATE_RATIO };
            (Size { width: scale(size.width), height: scale(size.height) }, bps)
        };
        let seen = |number: &usize| {
            let layer = &self.layers[*number];
            layer.size.map(|size| (size, layer.bitrate_bps as u64))
        };
        let mut figures: Vec<Option<(Size, u64)>> = self.order.iter().map(seen).collect();
        for n in (0..figures.len().saturating_sub(1)).rev() {
            figures[n] = figures[n].or_else(|| figures[n + 1].map(|below| scaled(below, true)));
        }
        let mut above = GUESS;
        let mut told = Vec::with_capacity(figures.len());
        for (rank, (number, figure)) in self.order.iter().zip(figures).enumerate() {
            let (size, bitrate_bps) = figure.unwrap_or_else(|| if rank == 0 { GUESS } else { scaled(above, false) });
            above = (size, bitrate_bps);
            let layer = &self.layers[*number];
            let fps = if layer.fps > 0.0 { layer.fps } else { 30.0 };
            told.push(SimulcastLayer { rid: layer.rid.clone(), size, bitrate_bps, fps });
        }
        told
    }

    /// The order with the layers whose sizes are known put right.
    fn by_size(&self) -> Vec<usize> {
        let area =
            |number: &usize| self.layers[*number].size.map(|size| u64::from(size.width) * u64::from(size.height));
        let mut known: Vec<usize> = self.order.iter().copied().filter(|number| area(number).is_some()).collect();
        known.sort_by_key(|number| std::cmp::Reverse(area(number)));
        let mut known = known.into_iter();
        self.order.iter().map(|number| area(number).and_then(|_| known.next()).unwrap_or(*number)).collect()
    }
}

fn left_out() -> Health {
    Health::Failed(LEFT_OUT.into())
}

/// Numbers of layers, the best first: by the names that are in use where all of them have such a name, else as the publisher prefers
/// (RFC 8853 §5.2).
fn by_name(rids: &[String]) -> Vec<usize> {
    let rank = |rid: &str| match rid.to_ascii_lowercase().as_str() {
        "f" | "full" => Some(0),
        "h" | "hi" | "high" | "half" => Some(1),
        "m" | "mid" | "medium" => Some(2),
        "q" | "l" | "lo" | "low" | "quarter" => Some(3),
        _ => None,
    };
    let mut order: Vec<usize> = (0..rids.len()).collect();
    if rids.iter().all(|rid| rank(rid).is_some()) {
        order.sort_by_key(|number| rank(&rids[*number]));
    }
    order
}
