//! One layer in one coding: what it is fed, the thread that encodes it, and when it is left out.
//!
//! A layer whose encoder fails, or that loses most of its pictures because the encoder is too slow, rests alone: its stream says
//! why, an event is written, and it is tried again after a pause that grows each time. The others go on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lightpipe_media::adapt::{self, Adaptation, OperatingPoint, Preference};
use lightpipe_media::convert::{self, Converter};
use lightpipe_media::queue::{Pop, Queue};
use lightpipe_media::stream::Health;
use lightpipe_media::{
    AccessUnit, Demand, EventKind, EventLog, FramePool, FrameQueue, MediaClock, MediaTime, Size, Stages, Stream,
    VideoCodec, VideoFrame, timecode,
};
use tracing::{debug, info, warn};

use crate::budget::{CpuBudget, LOOK_EVERY, Stopwatch};
use crate::encoder::{Content, EncodeError, EncoderConfig, VideoEncoder};
use crate::ladder::{self, Thinning};
use crate::thread::MakeEncoder;

/// How often an idle thread looks whether it is still needed.
pub(crate) const IDLE_CHECK: Duration = Duration::from_millis(250);

/// An encoder that nobody wants is kept this long: a reload of the page should not cost its set-up.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// Smallest relative change of the bitrate worth a call.
const BITRATE_STEP: f64 = 0.05;

/// Failures in a row after which a layer rests.
const FAILURE_LIMIT: u32 = 5;

/// A layer's queue is judged over this span, and rests after so many spans in a row in which it lost more than [`SLOW_SHARE`] of
/// its pictures. A machine that is busy for a moment loses some for a second; what loses most of them for three is better
/// seen smaller.
const SLOW_SPAN: Duration = Duration::from_secs(1);
const SLOW_SPANS: u32 = 3;
const SLOW_SHARE: f64 = 0.5;

/// Pause before a layer is tried again; doubled each time up to the longest, and the first again once it ran as long as that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A picture on its way to a layer's encoder.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) frame: VideoFrame,
    /// Counts the pictures that the ladder took, the same in all layers.
    pub(crate) number: u64,
}

/// A layer in one coding, as the ladder, which feeds it, and its encoder's thread both see it.
#[derive(Debug)]
pub(crate) struct Feed {
    stream: Arc<Stream>,
    pictures: Queue<Picture>,
    /// The lowest rate that outlets get it down to, bits per second; `None` of the least layer, below which there is none to go to.
    floor_bps: Option<u64>,
    events: EventLog,
    state: Mutex<FeedState>,
    /// What the encoder took lately, in millionths of a core; [`u64::MAX`] while it does not run.
    micro_cores: AtomicU64,
    budget: Option<BudgetPlace>,
}

/// The budget, and what a layer is for it.
#[derive(Debug)]
struct BudgetPlace {
    budget: Arc<CpuBudget>,
    size: Size,
    fps: f64,
}

#[derive(Debug)]
struct FeedState {
    /// Resting until then.
    until: Option<MediaTime>,
    /// When it last came back, or began.
    since: MediaTime,
    /// The next pause.
    pause: Duration,
    /// Begin of the span that is judged, pictures pushed and dropped at its begin, slow spans in a row.
    span: Option<(MediaTime, u64, u64)>,
    slow: u32,
}

impl Feed {
    /// `has_lower`: the same pictures can be had smaller.
    pub(crate) fn new(stream: Arc<Stream>, queue_frames: usize, has_lower: bool, events: EventLog) -> Self {
        let state = FeedState { until: None, since: MediaTime::ZERO, pause: FIRST_PAUSE, span: None, slow: 0 };
        let floor_bps = stream.layer().filter(|_| has_lower).map(|layer| layer.floor_bps());
        let micro_cores = AtomicU64::new(u64::MAX);
        let (pictures, state) = (Queue::new(queue_frames), Mutex::new(state));
        Self { stream, pictures, floor_bps, events, state, micro_cores, budget: None }
    }

    /// The same within a budget, as a layer of `size` and `fps`.
    pub(crate) fn with_budget(self, budget: &Arc<CpuBudget>, size: Size, fps: f64) -> Self {
        Self { budget: Some(BudgetPlace { budget: Arc::clone(budget), size, fps }), ..self }
    }

    #[cfg(test)]
    pub(crate) const fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Whether the same pictures can be had smaller.
    pub(crate) const fn has_lower(&self) -> bool {
        self.floor_bps.is_some()
    }

    /// What it costs goes by its coding and size, and by its pictures per second.
    pub(crate) fn size_and_rate(&self) -> ((VideoCodec, Size), f64) {
        let (size, fps) = self.budget.as_ref().map_or((Size::new(0, 0), 0.0), |place| (place.size, place.fps));
        ((self.stream.codec(), size), fps)
    }

    /// Somebody takes its pictures, and it does not rest.
    pub(crate) fn is_taken(&self) -> bool {
        self.stream.own_outlets() > 0 && self.stream.resting().is_none()
    }

    /// What the encoder took in the last second, in cores; `None` while it does not run.
    pub(crate) fn cores(&self) -> Option<f64> {
        let micro = self.micro_cores.load(Relaxed);
        (micro != u64::MAX).then(|| micro as f64 / 1e6)
    }

    pub(crate) fn set_cores(&self, cores: Option<f64>) {
        self.micro_cores.store(cores.map_or(u64::MAX, |cores| (cores * 1e6) as u64), Relaxed);
        self.stream.update_stats(|s| s.encoder_cores = cores);
    }

    /// Ends the encoder's thread.
    pub(crate) fn close(&self) {
        self.pictures.close();
    }

    fn lock(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody takes its pictures and it is fit to be fed.
    pub(crate) fn is_wanted(&self, now: MediaTime) -> bool {
        !self.is_resting(now) && self.stream.own_outlets() > 0
    }

    /// Ends a rest whose time has come: then the layer can be had again, and who takes it finds out whether it runs.
    pub(crate) fn is_resting(&self, now: MediaTime) -> bool {
        match self.lock().until {
            Some(until) if now < until => return true,
            Some(_) => {}
            None => return false,
        }
        // Asked without the lock: the budget looks at other layers.
        let has_room = self.budget.as_ref().is_none_or(|place| place.budget.has_room_for(self));
        let mut state = self.lock();
        if !has_room && self.has_lower() {
            state.until = Some(now + state.pause);
            return true;
        }
        (state.until, state.since, state.span, state.slow) = (None, now, None, 0);
        self.stream.set_resting(None);
        self.stream.set_health(Health::Starting);
        false
    }

    /// The ladder's side: a picture for the encoder. Judges how many of them it takes.
    pub(crate) fn push(&self, picture: Picture, now: MediaTime) {
        self.pictures.push(picture);
        let (pushed, dropped) = (self.pictures.pushed(), self.pictures.dropped());
        let mut state = self.lock();
        match state.span {
            Some((begin, ..)) if now.since(begin) < SLOW_SPAN => return,
            // A span in which nobody wanted the layer for a while says nothing.
            Some((begin, pushed_then, dropped_then)) if now.since(begin) < SLOW_SPAN * 2 => {
                let lost = (dropped - dropped_then) as f64 / (pushed - pushed_then).max(1) as f64;
                state.slow = if lost > SLOW_SHARE { state.slow + 1 } else { 0 };
            }
            _ => state.slow = 0,
        }
        state.span = Some((now, pushed, dropped));
        // The least layer is better slow than not at all.
        if state.slow >= SLOW_SPANS && self.has_lower() {
            drop(state);
            let reason =
                "the encoder is too slow for it: most pictures were lost. A smaller picture or fewer a second help";
            self.rest(now, "too_slow", reason);
        }
    }

    /// Leaves the layer out for a while.
    pub(crate) fn rest(&self, now: MediaTime, cause: &'static str, reason: &str) {
        let pause = {
            let mut state = self.lock();
            if state.until.is_some() {
                return;
            }
            if now.since(state.since) >= LONGEST_PAUSE {
                state.pause = FIRST_PAUSE;
            }
            let pause = state.pause;
            state.until = Some(now + pause);
            state.pause = (pause * 2).min(LONGEST_PAUSE);
            pause
        };
        let stream = self.stream.name();
        let (codec, rid) = (self.stream.codec(), self.rid());
        warn!(stream, codec = codec.name(), rid, cause, reason, retry_in_s = pause.as_secs(), "layer dropped");
        self.stream.set_health(Health::Failed(reason.to_owned()));
        self.stream.set_resting(Some(reason.to_owned()));
        let kind = EventKind::LayerDropped { codec, rid, cause, reason: reason.to_owned(), retry_in: pause };
        self.events.push(now, stream, kind);
    }

    fn rid(&self) -> Option<String> {
        self.stream.layer().map(|layer| layer.rid)
    }
}

/// What a layer is encoded with.
pub(crate) struct LayerSetup {
    pub(crate) feed: Arc<Feed>,
    /// Of the main stream's best layer: where pictures come from, whose losses are counted there.
    pub(crate) source: Option<Arc<FrameQueue>>,
    pub(crate) clock: MediaClock,
    pub(crate) config: EncoderConfig,
    /// Fewer and smaller pictures where no outlet's network carries the whole; for the only encoding of a coding.
    pub(crate) adapt: bool,
    pub(crate) make: MakeEncoder,
}

/// Encodes a layer while somebody takes it; ends with its queue.
pub(crate) struct LayerEncoder {
    setup: LayerSetup,
    /// What `config` says; the encoder itself is told that there is none.
    keyframe_interval: u64,
    encoder: Option<Box<dyn VideoEncoder>>,
    last_wanted: Option<MediaTime>,
    /// Number of the last picture that became a keyframe.
    last_keyframe: u64,
    failures: u32,
    rate: FrameRate,
    /// What to make of the pictures; `None` of a layer, below which there is another one.
    adaptation: Option<Adaptation>,
    /// What is made of them now.
    point: OperatingPoint,
    thinning: Option<Thinning>,
    converter: Converter,
    /// Of this thread, since the last figure of its CPU time was told; pictures encoded since then.
    spent: Option<(Stopwatch, u32)>,
}

impl LayerEncoder {
    pub(crate) fn new(mut setup: LayerSetup) -> Self {
        let rate = FrameRate::new(setup.config.fps);
        let point = whole(&setup.config);
        let adaptation = setup.adapt.then(|| adaptation(&setup.config));
        let keyframe_interval = u64::from(std::mem::take(&mut setup.config.keyframe_interval));
        Self {
            setup,
            keyframe_interval,
            encoder: None,
            last_wanted: None,
            last_keyframe: 0,
            failures: 0,
            rate,
            adaptation,
            point,
            thinning: None,
            converter: Converter::new(FramePool::new()),
            spent: None,
        }
    }

    pub(crate) fn run(mut self) {
        loop {
            match self.setup.feed.pictures.pop(IDLE_CHECK) {
                Pop::Item(picture) => self.on_picture(picture),
                Pop::TimedOut => {
                    let now = self.now();
                    let feed = &self.setup.feed;
                    if feed.is_resting(now) || feed.stream.own_outlets() == 0 {
                        self.idle(now);
                    }
                }
                Pop::Closed => break,
            }
        }
        debug!(stream = self.setup.feed.stream.name(), rid = self.setup.feed.rid(), "encode thread ends");
    }

    fn now(&self) -> MediaTime {
        self.setup.clock.at(Instant::now())
    }

    fn on_picture(&mut self, picture: Picture) {
        let now = self.now();
        if self.setup.feed.is_resting(now) {
            return self.idle(now);
        }
        let stream = &self.setup.feed.stream;
        let pictures = &self.setup.feed.pictures;
        let (pushed, dropped) = match &self.setup.source {
            Some(frames) => (frames.pushed(), frames.dropped() + pictures.dropped()),
            None => (pictures.pushed(), pictures.dropped()),
        };
        stream.update_stats(|s| (s.raw_frames, s.raw_dropped) = (pushed, dropped));
        let source_fps = self.rate.observe(picture.frame.captured);
        // Asked before the demand is: a keyframe that that tells of must be made of this very picture.
        if self.thinning.as_mut().is_some_and(|thinning| !thinning.keeps(picture.frame.captured)) {
            return;
        }
        let demand = stream.demand(now);
        if !demand.wanted {
            return self.idle(now);
        }
        self.last_wanted = Some(now);
        let starting = self.encoder.is_none();
        match self.encode(picture, now, demand, source_fps) {
            Ok(Some(unit)) => {
                self.failures = 0;
                let stream = &self.setup.feed.stream;
                stream.publish(&Arc::new(unit));
                if starting {
                    let (codec, rid) = (Some(stream.codec()), self.setup.feed.rid());
                    self.event(now, EventKind::TrackActive { codec, rid });
                }
            }
            Ok(None) => self.setup.feed.stream.update_stats(|s| s.encoder_skipped += 1),
            Err(error) => self.fail(now, &error),
        }
    }

    fn encode(
        &mut self,
        picture: Picture,
        started: MediaTime,
        demand: Demand,
        source_fps: Option<f64>,
    ) -> Result<Option<AccessUnit>, EncodeError> {
        let Picture { mut frame, number } = picture;
        let received = frame.received;
        let floor = if self.adaptation.is_some() { Some(adapt::MIN_BITRATE_BPS) } else { self.setup.feed.floor_bps };
        let target = demand.target_bps(self.setup.config.bitrate_bps, floor);
        self.adapt(started, frame.captured, demand.bitrate_bps.map(|_| target), demand.keyframe);
        let LayerSetup { feed, config, make, .. } = &self.setup;
        let OperatingPoint { size, fps } = self.point;
        if size != config.size {
            frame = ladder::scaled(&self.converter, &frame, size, timecode::read(&frame))?;
        }
        if feed.stream.codec() == VideoCodec::Vp8 {
            convert::to_bt601(&mut frame);
        }
        // One of another size begins with a keyframe, as each does.
        if self.encoder.as_ref().is_some_and(|encoder| encoder.config().size != size) {
            self.encoder = Some(make(EncoderConfig { bitrate_bps: target, size, fps, ..*config })?);
            self.spent = None;
        }
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => {
                let encoder = make(EncoderConfig { bitrate_bps: target, size, fps, ..*config })?;
                info!(stream = feed.stream.name(), rid = feed.rid(), backend = encoder.name(), %size, bitrate_kbps = target / 1000, "encoder started");
                feed.stream.update_stats(|s| {
                    s.encoder_starts += 1;
                    s.target_bitrate_bps = Some(target);
                });
                none.insert(encoder)
            }
        };
        if differs(encoder.config().bitrate_bps as f64, target as f64, BITRATE_STEP) {
            encoder.set_bitrate(target)?;
            feed.stream.update_stats(|s| s.target_bitrate_bps = Some(target));
        }
        // Of what comes as many are encoded as that, at most.
        let source_fps = source_fps.unwrap_or(config.fps);
        let fps = if self.thinning.is_some() { source_fps.min(fps) } else { source_fps };
        if differs(encoder.config().fps, fps, 0.15) {
            encoder.set_fps(fps)?;
        }
        if demand.keyframe || keyframe_due(self.keyframe_interval, self.last_keyframe, number) {
            encoder.force_keyframe();
        }
        encoder.submit(&frame)?;
        let codec = encoder.codec();
        let Some(encoded) = encoder.poll() else { return Ok(None) };
        self.count(encoded.took);
        if encoded.keyframe {
            self.last_keyframe = number;
        }
        let stages = Stages { received, encode_started: started, encoded: self.now() };
        Ok(Some(AccessUnit::new(codec, encoded.data, encoded.captured, encoded.keyframe, size, stages)))
    }

    /// Chooses what is made of a picture and of those that follow, and tells when that changes.
    fn adapt(&mut self, now: MediaTime, captured: MediaTime, target: Option<u64>, keyframe: bool) {
        let Some(adaptation) = &mut self.adaptation else { return };
        let point = adaptation.choose(now, target, keyframe);
        if point == self.point {
            return;
        }
        let LayerSetup { feed, config, .. } = &self.setup;
        if point.fps != self.point.fps {
            self.thinning = (point.fps < config.fps).then(|| {
                let mut thinning = Thinning::new(point.fps, config.fps);
                // Counted from this picture, which is encoded.
                thinning.keeps(captured);
                thinning
            });
        }
        self.point = point;
        feed.stream.set_adapted((point != whole(config)).then_some(point));
        let (codec, target_bps) = (feed.stream.codec(), target.unwrap_or(config.bitrate_bps));
        info!(target: "events::encoding_adapted", stream = feed.stream.name(), codec = codec.name(), size = %point.size, fps = point.fps, bitrate_kbps = target_bps / 1000);
        let interval = Duration::from_secs_f64(1.0 / point.fps);
        let kind = EventKind::EncodingAdapted { codec, size: point.size, interval, target_bps };
        feed.events.push(now, feed.stream.name(), kind);
    }

    /// Tells once a second what the encoder takes.
    fn count(&mut self, took: Duration) {
        let (spent, pictures) = self.spent.get_or_insert_with(|| (Stopwatch::start(), 0));
        spent.add(took);
        *pictures += 1;
        let elapsed = spent.elapsed();
        if elapsed < LOOK_EVERY {
            return;
        }
        let (cpu, feed) = (spent.cpu().as_secs_f64(), &self.setup.feed);
        feed.set_cores(Some(cpu / elapsed.as_secs_f64()));
        if let Some(place) = &feed.budget {
            place.budget.learn(feed.stream.codec(), self.point.size, cpu / f64::from(*pictures));
        }
        self.spent = Some((Stopwatch::start(), 0));
    }

    fn idle(&mut self, now: MediaTime) {
        let resting = self.setup.feed.is_resting(now);
        if self.encoder.is_some() && (resting || self.last_wanted.is_none_or(|at| now.since(at) >= IDLE_GRACE)) {
            self.stop();
            let (codec, rid) = (Some(self.setup.feed.stream.codec()), self.setup.feed.rid());
            self.event(now, EventKind::TrackIdle { codec, rid });
        }
    }

    fn stop(&mut self) {
        (self.encoder, self.spent) = (None, None);
        self.setup.feed.set_cores(None);
        self.rate = FrameRate::new(self.setup.config.fps);
        // Who comes next may have another network.
        self.adaptation = self.setup.adapt.then(|| adaptation(&self.setup.config));
        (self.point, self.thinning) = (whole(&self.setup.config), None);
        self.setup.feed.stream.update_stats(|s| (s.target_bitrate_bps, s.adapted) = (None, None));
    }

    fn fail(&mut self, now: MediaTime, error: &EncodeError) {
        self.stop();
        self.failures += 1;
        let feed = &self.setup.feed;
        feed.stream.update_stats(|s| s.encoder_errors += 1);
        if self.failures == 1 {
            warn!(stream = feed.stream.name(), rid = feed.rid(), %error, "encoding failed");
        }
        if self.failures >= FAILURE_LIMIT {
            feed.rest(now, "encoder_failed", &format!("the encoder fails: {error}"));
        }
    }

    fn event(&self, at: MediaTime, kind: EventKind) {
        let Feed { stream, events, .. } = &*self.setup.feed;
        info!(target: "events::track", stream = stream.name(), rid = self.setup.feed.rid(), event = kind.name());
        events.push(at, stream.name(), kind);
    }
}

/// All that a configuration asks for.
const fn whole(config: &EncoderConfig) -> OperatingPoint {
    OperatingPoint { size: config.size, fps: config.fps }
}

fn adaptation(config: &EncoderConfig) -> Adaptation {
    let preference = match config.content {
        Content::Camera => Preference::Balanced,
        Content::Screen => Preference::MaintainResolution,
    };
    Adaptation::new(whole(config), config.bitrate_bps, preference)
}

/// Whether the longest distance between keyframes is over. It is counted from one and the same picture in all layers, so that
/// keyframes of the interval are aligned: who records or forwards several layers can cut and switch there.
fn keyframe_due(interval: u64, last: u64, number: u64) -> bool {
    interval > 0 && number / interval != last / interval
}

fn differs(a: f64, b: f64, by: f64) -> bool {
    (a - b).abs() > by * a.max(1.0)
}

/// Pictures per second as they come, for the encoder's rate control: a source slower than configured would
/// otherwise get half its bitrate, a faster one twice.
#[derive(Debug)]
struct FrameRate {
    mean_interval: f64,
    last: Option<MediaTime>,
    seen: u32,
}

impl FrameRate {
    fn new(fps: f64) -> Self {
        Self { mean_interval: 1.0 / fps.max(1.0), last: None, seen: 0 }
    }

    /// The rate, once enough pictures were seen to believe it.
    fn observe(&mut self, captured: MediaTime) -> Option<f64> {
        if let Some(last) = self.last.replace(captured) {
            let interval = captured.since(last).as_secs_f64().clamp(0.002, 0.5);
            self.mean_interval += (interval - self.mean_interval) / 32.0;
            self.seen += 1;
        }
        (self.seen > 60).then(|| 1.0 / self.mean_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightpipe_media::{FramePool, Outlet, PixelFormat, SimulcastLayer, Size};

    struct Nobody;

    impl Outlet for Nobody {
        fn deliver(&self, _: &Arc<AccessUnit>) {}
    }

    fn feed(has_lower: bool) -> Feed {
        let stream = Stream::new("s", VideoCodec::H264);
        let layer = SimulcastLayer { rid: "f".into(), size: Size::new(16, 16), bitrate_bps: 1000, fps: 30.0 };
        stream.set_layers(layer, Vec::new());
        Feed::new(stream, 2, has_lower, EventLog::new())
    }

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    /// Pushes 20 pictures a second from second `from` on, of which an encoder takes `taken` in ten.
    fn run(feed: &Feed, from: i64, seconds: i64, taken: i64) {
        let pool = FramePool::new();
        for n in 0..seconds * 20 {
            let now = at(from * 1000 + n * 50);
            let frame = VideoFrame::packed(now, Size::new(2, 2), PixelFormat::Rgba, pool.take(16)).expect("fits");
            if feed.is_wanted(now) {
                feed.push(Picture { frame, number: 0 }, now);
            }
            if n % 10 < taken {
                feed.pictures.pop(Duration::ZERO);
            }
        }
    }

    fn pauses(feed: &Feed) -> Vec<u64> {
        let pause = |kind: EventKind| match kind {
            EventKind::LayerDropped { cause: "too_slow", retry_in, .. } => Some(retry_in.as_secs()),
            _ => None,
        };
        feed.events.since(0).into_iter().filter_map(|event| pause(event.kind)).collect()
    }

    #[test]
    fn a_layer_that_loses_most_pictures_rests_longer_and_longer() {
        let feed = feed(true);
        let _sub = feed.stream.subscribe(Arc::new(Nobody));
        run(&feed, 0, 20, 6);
        assert_eq!(pauses(&feed), [0; 0], "some are lost");
        run(&feed, 20, 4, 3);
        assert_eq!(pauses(&feed), [1]);
        run(&feed, 24, 100, 3);
        assert_eq!(pauses(&feed), [1, 2, 4, 8, 16, 32, 60][..pauses(&feed).len()]);
        assert!(pauses(&feed).len() >= 6, "{:?}", pauses(&feed));
        run(&feed, 1000, 2, 10);
        assert!(feed.stream.resting().is_none());
        run(&feed, 1002, 70, 10);
        run(&feed, 1072, 4, 0);
        assert_eq!(pauses(&feed).last(), Some(&1), "it ran well for a while");
    }

    #[test]
    fn the_least_layer_is_better_slow_than_not_there() {
        let feed = feed(false);
        let _sub = feed.stream.subscribe(Arc::new(Nobody));
        run(&feed, 0, 30, 1);
        assert_eq!(pauses(&feed), [0; 0]);
    }

    #[test]
    fn keyframes_of_the_interval_are_counted_from_one_picture_in_all_layers() {
        for (last, number, due) in [(0, 59, false), (0, 60, true), (30, 60, true), (60, 61, false), (30, 200, true)] {
            assert_eq!(keyframe_due(60, last, number), due, "{last} to {number}");
        }
        assert!(!keyframe_due(0, 0, 1000));
    }

    #[test]
    fn rate_control_learns_the_real_frame_rate() {
        let mut rate = FrameRate::new(60.0);
        let learned = (0..300).filter_map(|n| rate.observe(MediaTime::from_micros(n * 66_667))).last();
        assert!((learned.expect("enough pictures") - 15.0).abs() < 0.5, "{learned:?}");
    }
}
