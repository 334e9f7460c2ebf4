//! How much of this machine the encoders may take, all streams together, and which layer goes when they take more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size, VideoCodec, VideoFrame};
use tracing::{debug, info};

use crate::encoder::{EncodeError, EncoderConfig};
use crate::layer::Feed;
use crate::thread::MakeEncoder;

/// How often it is looked whether they keep within it; what an encoder takes is measured over as long.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks in a row that find too much before a layer goes: a burst of keyframes is no reason.
const PATIENCE_LOOKS: u32 = 2;

/// A layer comes back when it leaves this part of the budget free: what was measured is not what will be.
const ROOM: f64 = 0.9;

/// Pictures that are encoded to learn what a size costs. The first is a keyframe, which costs twice as much: among so many it does not count.
const MEASURED_PICTURES: u32 = 16;

/// A share of the machine's CPU. One for all streams of a program.
#[derive(Debug)]
pub struct CpuBudget {
    percent: u32,
    /// What `percent` are, in cores.
    cores: f64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    feeds: Vec<Weak<Feed>>,
    /// CPU time per picture, seconds, as it was last measured.
    costs: HashMap<(VideoCodec, Size), f64>,
    looked: Option<MediaTime>,
    over: u32,
}

/// What a layer takes, or would take, and whether it can go.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    cores: f64,
    /// A layer below serves its viewers.
    can_go: bool,
}

impl CpuBudget {
    /// `percent` of all cores that this program may use, 1 to 100.
    pub fn new(percent: u32) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Arc::new(Self::of_cores(percent, cores))
    }

    fn of_cores(percent: u32, cores: f64) -> Self {
        Self { percent, cores: cores * f64::from(percent) / 100.0, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, feed: &Arc<Feed>) {
        let mut state = self.lock();
        state.feeds.retain(|feed| feed.strong_count() > 0);
        state.feeds.push(Arc::downgrade(feed));
    }

    /// A layer's encoder took so many CPU seconds for a picture.
    pub(crate) fn learn(&self, codec: VideoCodec, size: Size, seconds: f64) {
        self.lock().costs.insert((codec, size), seconds);
    }

    /// Learns what these encoders cost on this machine, each size once, by encoding a few pictures. Takes some hundredths of a second of the calling
    /// thread per size.
    pub(crate) fn measure(&self, codec: VideoCodec, make: &MakeEncoder, configs: &[EncoderConfig]) {
        for config in configs {
            if self.lock().costs.contains_key(&(codec, config.size)) {
                continue;
            }
            match encode_some(make, config) {
                Ok(seconds) => {
                    let per_second = seconds * config.fps * 100.0;
                    info!(codec = codec.name(), size = %config.size, ms = seconds * 1e3, percent_of_a_core = per_second, "encoder measured");
                    // What runs already knows better.
                    self.lock().costs.entry((codec, config.size)).or_insert(seconds);
                }
                // It will be said when somebody wants it.
                Err(error) => debug!(codec = codec.name(), size = %config.size, %error, "encoder not measured"),
            }
        }
    }

    /// Looks, once a second, whether the layers that somebody takes keep within the budget. If not, the dearest one that has another below it rests.
    pub(crate) fn look(&self, now: MediaTime) {
        let feeds = {
            let mut state = self.lock();
            if state.looked.is_some_and(|at| now.since(at) < LOOK_EVERY) {
                return;
            }
            state.looked = Some(now);
            state.running()
        };
        let loads: Vec<Load> = feeds.iter().map(|feed| self.load(feed)).collect();
        let total: f64 = loads.iter().map(|load| load.cores).sum();
        {
            let mut state = self.lock();
            state.over = if total > self.cores { state.over + 1 } else { 0 };
            if state.over < PATIENCE_LOOKS {
                return;
            }
            state.over = 0;
        }
        if let Some(feed) = dearest(&loads).and_then(|n| feeds.get(n)) {
            let reason = format!(
                "the encoders take {:.0} % of a core, and {} % of this machine are {:.0} %: a larger --cpu, a smaller picture or fewer a second help",
                total * 100.0,
                self.percent,
                self.cores * 100.0
            );
            feed.rest(now, "cpu_budget", &reason);
        }
    }

    /// Whether a layer that rests could run beside those that do.
    pub(crate) fn has_room_for(&self, feed: &Feed) -> bool {
        let running = self.lock().running();
        let total: f64 = running.iter().map(|feed| self.load(feed).cores).sum();
        total + self.expected(feed) <= self.cores * ROOM
    }

    fn load(&self, feed: &Feed) -> Load {
        Load { cores: feed.cores().unwrap_or_else(|| self.expected(feed)), can_go: feed.has_lower() }
    }

    fn expected(&self, feed: &Feed) -> f64 {
        let (key, fps) = feed.size_and_rate();
        self.lock().costs.get(&key).map_or(0.0, |seconds| seconds * fps)
    }
}

impl State {
    /// The layers that are encoded, or would be in a moment.
    fn running(&self) -> Vec<Arc<Feed>> {
        self.feeds.iter().filter_map(Weak::upgrade).filter(|feed| feed.is_taken()).collect()
    }
}

fn dearest(loads: &[Load]) -> Option<usize> {
    let those = loads.iter().enumerate().filter(|(_, load)| load.can_go);
    those.max_by(|(_, a), (_, b)| a.cores.total_cmp(&b.cores)).map(|(n, _)| n)
}

/// CPU seconds per picture.
fn encode_some(make: &MakeEncoder, config: &EncoderConfig) -> Result<f64, EncodeError> {
    let mut encoder = make(*config)?;
    let pool = FramePool::new();
    let pictures: Vec<VideoFrame> = (0..4).filter_map(|n| texture(&pool, config.size, n)).collect();
    let mut spent = Stopwatch::start();
    for picture in pictures.iter().cycle().take(MEASURED_PICTURES as usize) {
        encoder.submit(picture)?;
        let took = encoder.poll().map_or(Duration::ZERO, |encoded| encoded.took);
        spent.add(took);
    }
    Ok(spent.cpu().as_secs_f64() / f64::from(MEASURED_PICTURES))
}

/// Something that is neither flat nor noise, and that moves.
fn texture(pool: &FramePool, size: Size, n: u32) -> Option<VideoFrame> {
    let buffer = pool.take(PixelFormat::I420.packed_len(size));
    let mut frame = VideoFrame::packed(MediaTime::ZERO, size, PixelFormat::I420, buffer).ok()?;
    for plane in 0..3 {
        let stride = frame.layout(plane).stride;
        for (y, row) in frame.plane_mut(plane).chunks_mut(stride).enumerate() {
            for (x, sample) in row.iter_mut().enumerate() {
                let (x, y) = (x as u32 + n * 3, y as u32);
                *sample = (60 + ((x / 9) ^ (y / 7)) % 48 + (x + y) / 8 % 64) as u8;
            }
        }
    }
    Some(frame)
}

/// CPU time of the calling thread. Where the system does not tell it, the time that encoders say they took; it does not count threads of an encoder's
/// own, which VP8 has for large pictures on machines with more than two cores.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    cpu_at_begin: Option<Duration>,
    took: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), cpu_at_begin: thread_cpu(), took: Duration::ZERO }
    }

    /// An encoder said that it took so long.
    pub(crate) fn add(&mut self, took: Duration) {
        self.took += took;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn cpu(&self) -> Duration {
        let spent = self.cpu_at_begin.zip(thread_cpu()).map(|(begin, now)| now.saturating_sub(begin));
        spent.unwrap_or(self.took)
    }
}

/// First field of `schedstat`: nanoseconds on a CPU.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Content;
    use crate::openh264::OpenH264;
    use lightpipe_media::{AccessUnit, EventKind, EventLog, Outlet, SimulcastLayer, Stream, Subscription};

    struct Nobody;

    impl Outlet for Nobody {
        fn deliver(&self, _: &Arc<AccessUnit>) {}
    }

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    struct Bench {
        budget: Arc<CpuBudget>,
        events: EventLog,
        feeds: Vec<Arc<Feed>>,
        _subs: Vec<Subscription>,
    }

    /// A stream with two layers, somebody takes both; a budget of one core.
    fn bench() -> Bench {
        let budget = Arc::new(CpuBudget::of_cores(50, 2.0));
        let (stream, events) = (Stream::new("s", VideoCodec::H264), EventLog::new());
        let layer = |rid: &str, width| SimulcastLayer {
            rid: rid.into(),
            size: Size::new(width, width / 2),
            bitrate_bps: 1000,
            fps: 30.0,
        };
        stream.set_layers(layer("f", 64), vec![layer("h", 32)]);
        let layers = stream.layers();
        let feeds: Vec<Arc<Feed>> = layers
            .iter()
            .enumerate()
            .map(|(n, layer)| {
                let size = Size::new(64 >> n, 32 >> n);
                let feed = Feed::new(Arc::clone(layer), 2, n == 0, events.clone()).with_budget(&budget, size, 30.0);
                let feed = Arc::new(feed);
                budget.add(&feed);
                feed
            })
            .collect();
        let subs = layers.iter().map(|layer| layer.subscribe(Arc::new(Nobody))).collect();
        Bench { budget, events, feeds, _subs: subs }
    }

    impl Bench {
        fn run(&self, from_ms: i64, seconds: i64) {
            for n in 0..seconds * 4 {
                self.budget.look(at(from_ms + n * 250));
            }
        }

        fn dropped(&self) -> Vec<String> {
            let rid = |kind: EventKind| match kind {
                EventKind::LayerDropped { rid: Some(rid), cause: "cpu_budget", .. } => Some(rid),
                _ => None,
            };
            self.events.since(0).into_iter().filter_map(|event| rid(event.kind)).collect()
        }
    }

    #[test]
    fn the_best_layer_goes_when_the_encoders_take_too_much_and_comes_back_when_there_is_room() {
        let bench = bench();
        let [f, h] = bench.feeds.as_slice() else { panic!("two layers") };
        f.set_cores(Some(0.7));
        h.set_cores(Some(0.2));
        bench.run(0, 10);
        assert_eq!(bench.dropped(), [""; 0]);
        f.set_cores(Some(1.2));
        bench.run(10_000, 1);
        assert_eq!(bench.dropped(), [""; 0], "one second is no reason");
        bench.run(11_000, 1);
        assert_eq!(bench.dropped(), ["f"]);
        let reason = f.stream().resting().expect("it rests");
        assert!(
            reason.starts_with("the encoders take 140 % of a core, and 50 % of this machine are 100 %:"),
            "{reason}"
        );
        f.set_cores(None);
        bench.budget.learn(VideoCodec::H264, Size::new(64, 32), 0.04);
        assert!(!f.is_wanted(at(13_000)) && f.stream().resting().is_some(), "1.2 cores would be too many again");
        bench.budget.learn(VideoCodec::H264, Size::new(64, 32), 0.02);
        assert!(f.is_wanted(at(20_000)) && f.stream().resting().is_none(), "0.6 are not");
        assert_eq!(bench.dropped(), ["f"]);
    }

    #[test]
    fn the_least_layer_stays_whatever_it_takes_and_what_nobody_takes_does_not_count() {
        let bench = bench();
        bench.feeds[1].set_cores(Some(3.0));
        bench.run(0, 3);
        assert_eq!(bench.dropped(), ["f"], "the only one that can go");
        bench.run(3_000, 20);
        assert_eq!(bench.dropped(), ["f"]);
        let lone = self::bench();
        drop(lone._subs);
        lone.feeds[0].set_cores(Some(3.0));
        for n in 0..10 {
            lone.budget.look(at(n * 1000));
        }
        assert!(lone.events.since(0).is_empty());
    }

    #[test]
    fn what_a_size_costs_is_measured_once_and_a_larger_one_costs_more() {
        let budget = CpuBudget::of_cores(50, 2.0);
        let make: MakeEncoder = Arc::new(|config| Ok(Box::new(OpenH264::new(config)?)));
        let config = |width: u32| EncoderConfig {
            size: Size::new(width, width / 2),
            fps: 30.0,
            bitrate_bps: 500_000,
            keyframe_interval: 0,
            content: Content::Camera,
        };
        budget.learn(VideoCodec::H264, Size::new(320, 160), 7.0);
        budget.measure(VideoCodec::H264, &make, &[config(1280), config(320), config(160), config(15)]);
        let costs = budget.lock().costs.clone();
        let cost = |width: u32| costs.get(&(VideoCodec::H264, Size::new(width, width / 2))).copied();
        assert_eq!((cost(320), cost(15)), (Some(7.0), None), "known before; no encoder takes it");
        let (large, small) = (cost(1280).expect("measured"), cost(160).expect("measured"));
        assert!(large > small && small >= 0.0 && large < 1.0, "{large} and {small}");
    }
}
