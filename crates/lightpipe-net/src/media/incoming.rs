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
        // The end of a layer is noticed here, and that another one is the best: it takes over with a keyframe.
        let successor = self.best_that_comes(now).filter(|best| feeding != Some(*best));
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

#[cfg(test)]
mod tests {
    use super::*;
    use lightpipe_media::{Outlet, Stages, Subscription, VideoCodec};
    use std::sync::Mutex;

    /// Widths of what an outlet got.
    #[derive(Default)]
    struct Widths(Mutex<Vec<u32>>);

    impl Outlet for Widths {
        fn deliver(&self, unit: &Arc<AccessUnit>) {
            self.0.lock().expect("not poisoned").push(unit.size.width);
        }
    }

    impl Widths {
        fn take(&self) -> Vec<u32> {
            std::mem::take(&mut self.0.lock().expect("not poisoned"))
        }
    }

    /// A publisher on a clock of its own, 20 pictures a second.
    struct Publisher {
        start: Instant,
        ms: u64,
        incoming: Incoming,
        seen: Arc<Widths>,
        _seeing: Subscription,
    }

    impl Publisher {
        fn new(main: &Arc<Stream>, rids: &[&str]) -> Self {
            let start = Instant::now();
            let rids: Vec<String> = rids.iter().map(|rid| (*rid).to_owned()).collect();
            let seen = Arc::new(Widths::default());
            let seeing = main.subscribe(seen.clone());
            Self { start, ms: 0, incoming: Incoming::new(main, &rids, start), seen, _seeing: seeing }
        }

        /// A tenth of a second: two pictures of each layer, by number and width. The first is a keyframe where that is wanted, or was
        /// never sent.
        fn send(&mut self, layers: &[(usize, u32)]) {
            for _ in 0..2 {
                self.ms += 50;
                let (now, at) = (self.now(), MediaTime::from_micros(self.ms as i64 * 1000));
                let wanted = self.incoming.wanted_keyframes(now, at);
                for (number, width) in layers {
                    let keyframe = wanted.contains(number) || self.incoming.layers[*number].last.is_none();
                    let size = Size::new(*width, width / 2);
                    let data: &[u8] = &[0; 1000];
                    let unit = AccessUnit::new(VideoCodec::H264, data, at, keyframe, size, Stages::all_at(at));
                    self.incoming.publish(now, *number, &Arc::new(unit));
                }
                if self.ms.is_multiple_of(1000) {
                    self.incoming.look(now);
                }
            }
        }

        fn send_for(&mut self, tenths: usize, layers: &[(usize, u32)]) {
            (0..tenths).for_each(|_| self.send(layers));
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_millis(self.ms)
        }
    }

    fn rids(main: &Arc<Stream>) -> Vec<String> {
        main.layers().iter().filter_map(|layer| layer.layer()).map(|layer| layer.rid).collect()
    }

    fn can_be_had(main: &Arc<Stream>) -> Vec<bool> {
        main.layers().iter().map(|l| !matches!(l.layer_health(), Health::Failed(_))).collect()
    }

    #[test]
    fn the_main_stream_gets_the_best_that_comes() {
        let main = Stream::new("s", VideoCodec::H264);
        let mut publisher = Publisher::new(&main, &["f", "h", "q"]);
        assert_eq!(rids(&main), ["f", "h", "q"]);
        publisher.send(&[(2, 160)]);
        assert_eq!(publisher.seen.take(), [160, 160], "at once");
        assert_eq!(can_be_had(&main), [false, false, true]);
        publisher.send(&[(0, 640), (1, 320), (2, 160)]);
        assert_eq!(publisher.seen.take(), [640, 640]);
        assert_eq!(can_be_had(&main), [true, true, true]);
        // The best one ends; the next takes over with a keyframe that it is asked for.
        publisher.send_for(20, &[(1, 320), (2, 160)]);
        let seen = publisher.seen.take();
        assert!(seen.len() > 20 && seen.iter().all(|width| *width == 320), "{seen:?}");
        assert_eq!(can_be_had(&main), [false, true, true]);
        assert_eq!(main.health(), Health::Live);
        publisher.send_for(20, &[(1, 320)]);
        assert_eq!(can_be_had(&main), [false, true, false]);
        publisher.incoming.fail("gone");
        assert_eq!(can_be_had(&main), [false, false, false]);
    }

    #[test]
    fn sizes_tell_which_layer_is_the_best() {
        let main = Stream::new("s", VideoCodec::H264);
        let mut publisher = Publisher::new(&main, &["a", "b"]);
        assert_eq!(rids(&main), ["a", "b"]);
        publisher.send_for(30, &[(0, 320), (1, 640)]);
        assert_eq!(rids(&main), ["b", "a"]);
        publisher.seen.take();
        publisher.send(&[(0, 320), (1, 640)]);
        assert_eq!(publisher.seen.take(), [640, 640]);
        let told: Vec<u32> = main.layers().iter().filter_map(|l| l.layer()).map(|l| l.size.width).collect();
        assert_eq!(told, [640, 320]);
        // All sizes change, one after the other: no reason to turn the order around.
        publisher.send_for(5, &[(0, 320), (1, 240)]);
        publisher.send_for(40, &[(0, 120), (1, 240)]);
        assert_eq!(rids(&main), ["b", "a"]);
    }

    #[test]
    fn layers_stay_when_their_publisher_comes_back_and_go_with_one_that_has_none() {
        let main = Stream::new("s", VideoCodec::H264);
        let first = Publisher::new(&main, &["q", "f"]);
        let lower = main.layers()[1].clone();
        assert_eq!(rids(&main), ["f", "q"], "by name");
        first.incoming.fail("gone");
        drop(first);
        let second = Publisher::new(&main, &["f", "q"]);
        assert!(Arc::ptr_eq(&lower, &main.layers()[1]) && !lower.is_withdrawn());
        drop(second);
        let mut third = Publisher::new(&main, &[]);
        third.send(&[(0, 640)]);
        assert!(lower.is_withdrawn() && rids(&main).is_empty());
        assert_eq!(can_be_had(&main), [true]);
        assert_eq!(third.seen.take(), [640, 640]);
    }

    #[test]
    fn what_was_never_seen_is_guessed_from_the_others() {
        let main = Stream::new("s", VideoCodec::H264);
        let mut publisher = Publisher::new(&main, &["f", "h", "q"]);
        let told = |main: &Arc<Stream>| -> Vec<(u32, u64)> {
            main.layers().iter().filter_map(|l| l.layer()).map(|l| (l.size.width, l.bitrate_bps)).collect()
        };
        assert_eq!(told(&main), [(1280, 2_000_000), (640, 500_000), (320, 125_000)]);
        publisher.send_for(10, &[(1, 480)]);
        assert_eq!(told(&main), [(960, 640_000), (480, 160_000), (240, 40_000)]);
    }
}
