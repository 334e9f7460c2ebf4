//! One thread per encoder: raw pictures in, access units out, demand obeyed.
//!
//! ```text
//!   FrameQueue ──▶ main: I420, timecode ──▶ its encoder ──▶ Stream
//!                        └──FrameQueue──▶ alternative's encoder ──▶ its Stream     each only while somebody takes it
//! ```

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::convert::{self, Converter};
use lightpipe_media::queue::Pop;
use lightpipe_media::stream::Health;
use lightpipe_media::{
    AccessUnit, EventKind, EventLog, FramePool, FrameQueue, MediaClock, MediaTime, Stages, Stream, VideoCodec,
    VideoFrame, timecode,
};
use tracing::{debug, info, warn};

use crate::encoder::{EncodeError, EncoderConfig, VideoEncoder};

/// How often an idle thread looks whether it is still needed.
const IDLE_CHECK: Duration = Duration::from_millis(250);

/// An encoder that nobody wants is kept this long: a reload of the page should not cost its set-up.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// Share of a network's estimate that video may take; the rest is for headers, retransmission and feedback.
const ESTIMATE_SHARE: f64 = 0.85;

/// Below this a 720p picture is not worth sending; an outlet that carries less is slow anyway.
const MIN_BITRATE_BPS: u64 = 150_000;

/// Smallest relative change of the bitrate worth a call.
const BITRATE_STEP: f64 = 0.05;

/// Failures in a row after which the stream is shown as failed.
const FAILURE_LIMIT: u32 = 5;

/// Converted pictures that may wait for an alternative's encoder. When full the oldest is dropped, before it is encoded.
const ALTERNATIVE_QUEUE: usize = 2;

/// Makes the encoder when somebody wants the stream.
pub type MakeEncoder = Box<dyn Fn(EncoderConfig) -> Result<Box<dyn VideoEncoder>, EncodeError> + Send>;

/// What an encode thread works with.
pub struct Setup {
    /// Where access units go and demand comes from.
    pub stream: Arc<Stream>,
    /// Where raw pictures come from. Closing it ends the thread.
    pub frames: Arc<FrameQueue>,
    /// The media clock of the pictures.
    pub clock: MediaClock,
    /// Lifecycle events.
    pub events: EventLog,
    /// Size, rate, content.
    pub config: EncoderConfig,
    /// Paint the timecode strip into every picture.
    pub timecode: bool,
    /// The backend.
    pub make: MakeEncoder,
    /// The same pictures in other codings, each encoded on a thread of its own.
    pub alternatives: Vec<Alternative>,
}

/// An alternative of a stream, and who encodes it.
pub struct Alternative {
    /// What [`Stream::add_alternative`] gave.
    pub stream: Arc<Stream>,
    /// The backend.
    pub make: MakeEncoder,
}

/// A running encode thread with those of its alternatives. Dropping it closes the queues and waits for the threads.
#[derive(Debug)]
pub struct EncodeThread {
    frames: Arc<FrameQueue>,
    thread: Option<JoinHandle<()>>,
    _alternatives: Vec<Self>,
}

impl EncodeThread {
    /// Starts the thread.
    pub fn spawn(mut setup: Setup) -> std::io::Result<Self> {
        let name = format!("encode-{}", setup.stream.name());
        let (mut elsewhere, mut alternatives) = (Vec::new(), Vec::new());
        for Alternative { stream, make } in std::mem::take(&mut setup.alternatives) {
            let frames = Arc::new(FrameQueue::new(ALTERNATIVE_QUEUE));
            elsewhere.push((Arc::clone(&stream), Arc::clone(&frames)));
            let Setup { clock, config, .. } = setup;
            let (name, events) = (format!("{name}-{}", stream.codec().name()), setup.events.clone());
            // The pictures that it gets have the strip.
            let timecode = false;
            let setup = Setup { stream, frames, clock, events, config, timecode, make, alternatives: Vec::new() };
            alternatives.push(Self::start(setup, name, Vec::new())?);
        }
        let mut this = Self::start(setup, name, elsewhere)?;
        this._alternatives = alternatives;
        Ok(this)
    }

    fn start(setup: Setup, name: String, elsewhere: Vec<(Arc<Stream>, Arc<FrameQueue>)>) -> std::io::Result<Self> {
        let frames = Arc::clone(&setup.frames);
        let thread = std::thread::Builder::new().name(name).spawn(move || Worker::new(setup, elsewhere).run())?;
        Ok(Self { frames, thread: Some(thread), _alternatives: Vec::new() })
    }
}

impl Drop for EncodeThread {
    fn drop(&mut self) {
        self.frames.close();
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the panic hook; the stream shows it as failed.
            let _ = thread.join();
        }
    }
}

struct Worker {
    setup: Setup,
    /// Alternatives, and where their threads take pictures from.
    elsewhere: Vec<(Arc<Stream>, Arc<FrameQueue>)>,
    converter: Converter,
    encoder: Option<Box<dyn VideoEncoder>>,
    last_wanted: Option<MediaTime>,
    failures: u32,
    rate: FrameRate,
}

impl Worker {
    fn new(setup: Setup, elsewhere: Vec<(Arc<Stream>, Arc<FrameQueue>)>) -> Self {
        let rate = FrameRate::new(setup.config.fps);
        let converter = Converter::new(FramePool::new());
        Self { setup, elsewhere, converter, encoder: None, last_wanted: None, failures: 0, rate }
    }

    fn run(mut self) {
        loop {
            match self.setup.frames.pop(IDLE_CHECK) {
                Pop::Item(frame) => self.on_frame(frame),
                Pop::TimedOut => {
                    let now = self.now();
                    if self.setup.stream.own_outlets() == 0 {
                        self.idle(now);
                    }
                }
                Pop::Closed => break,
            }
        }
        debug!(stream = self.setup.stream.name(), "encode thread ends");
    }

    fn now(&self) -> MediaTime {
        self.setup.clock.at(Instant::now())
    }

    fn on_frame(&mut self, frame: VideoFrame) {
        let now = self.now();
        let demand = self.setup.stream.demand(now);
        if demand.wanted {
            self.last_wanted = Some(now);
        } else {
            self.idle(now);
        }
        let wanted_elsewhere = |(stream, _): &&(Arc<Stream>, _)| stream.own_outlets() > 0;
        if !demand.wanted && !self.elsewhere.iter().any(|other| wanted_elsewhere(&other)) {
            return;
        }
        let picture = match self.prepare(frame) {
            Ok(picture) => picture,
            Err(error) => return self.fail(&error),
        };
        for (_, frames) in self.elsewhere.iter().filter(wanted_elsewhere) {
            frames.push(picture.clone());
        }
        if demand.wanted {
            let starting = self.encoder.is_none();
            match self.encode(picture, now, demand.keyframe, demand.bitrate_bps) {
                Ok(Some(unit)) => {
                    self.failures = 0;
                    self.setup.stream.publish(&Arc::new(unit));
                    if starting {
                        self.event(now, EventKind::TrackActive { codec: Some(self.setup.stream.codec()) });
                    }
                }
                Ok(None) => self.setup.stream.update_stats(|s| s.encoder_skipped += 1),
                Err(error) => self.fail(&error),
            }
        }
        let frames = &self.setup.frames;
        let (pushed, dropped) = (frames.pushed(), frames.dropped());
        self.setup.stream.update_stats(|s| (s.raw_frames, s.raw_dropped) = (pushed, dropped));
    }

    /// The picture as encoders take it, with the strip if that is wanted.
    fn prepare(&mut self, frame: VideoFrame) -> Result<VideoFrame, EncodeError> {
        let Setup { clock, config, timecode, .. } = &self.setup;
        let received = frame.received;
        let mut picture = self
            .converter
            .convert(frame, config.size)
            .map_err(|error| EncodeError::Unsupported { backend: "colour conversion", what: error.to_string() })?;
        picture.received = received;
        if *timecode {
            let unix_ms = clock.unix_micros(picture.captured) / 1000;
            timecode::paint(&mut picture, unix_ms as u32); // modulo 2³² by definition of the strip
        }
        Ok(picture)
    }

    fn encode(
        &mut self,
        mut picture: VideoFrame,
        started: MediaTime,
        keyframe: bool,
        estimate_bps: Option<u64>,
    ) -> Result<Option<AccessUnit>, EncodeError> {
        let Setup { stream, clock, config, make, .. } = &self.setup;
        let received = picture.received;
        if stream.codec() == VideoCodec::Vp8 {
            convert::to_bt601(&mut picture);
        }
        let fps = self.rate.observe(picture.captured);
        let target = target_bitrate(config.bitrate_bps, estimate_bps);
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => {
                let encoder = make(EncoderConfig { bitrate_bps: target, ..*config })?;
                info!(stream = stream.name(), backend = encoder.name(), size = %config.size, bitrate_kbps = target / 1000, "encoder started");
                stream.update_stats(|s| {
                    s.encoder_starts += 1;
                    s.target_bitrate_bps = Some(target);
                });
                none.insert(encoder)
            }
        };
        if differs(encoder.config().bitrate_bps as f64, target as f64, BITRATE_STEP) {
            encoder.set_bitrate(target)?;
            stream.update_stats(|s| s.target_bitrate_bps = Some(target));
        }
        if let Some(fps) = fps.filter(|fps| differs(encoder.config().fps, *fps, 0.15)) {
            encoder.set_fps(fps)?;
        }
        if keyframe {
            encoder.force_keyframe();
        }
        encoder.submit(&picture)?;
        let codec = encoder.codec();
        Ok(encoder.poll().map(|encoded| {
            let stages = Stages { received, encode_started: started, encoded: clock.at(Instant::now()) };
            AccessUnit::new(codec, encoded.data, encoded.captured, encoded.keyframe, config.size, stages)
        }))
    }

    fn idle(&mut self, now: MediaTime) {
        if self.encoder.is_some() && self.last_wanted.is_none_or(|at| now.since(at) >= IDLE_GRACE) {
            self.encoder = None;
            self.rate = FrameRate::new(self.setup.config.fps);
            self.setup.stream.update_stats(|s| s.target_bitrate_bps = None);
            self.event(now, EventKind::TrackIdle { codec: Some(self.setup.stream.codec()) });
        }
    }

    fn fail(&mut self, error: &EncodeError) {
        self.encoder = None;
        self.failures += 1;
        self.setup.stream.update_stats(|s| s.encoder_errors += 1);
        if self.failures == 1 || self.failures == FAILURE_LIMIT {
            warn!(stream = self.setup.stream.name(), %error, in_a_row = self.failures, "encoding failed");
        }
        if self.failures == FAILURE_LIMIT {
            self.setup.stream.set_health(Health::Failed(format!("the encoder fails: {error}")));
        }
    }

    fn event(&self, at: MediaTime, kind: EventKind) {
        let stream = self.setup.stream.name();
        info!(target: "events::track", stream, event = kind.name());
        self.setup.events.push(at, stream, kind);
    }
}

/// What to aim for when the outlets' networks carry `estimate_bps`.
fn target_bitrate(configured: u64, estimate_bps: Option<u64>) -> u64 {
    let Some(estimate) = estimate_bps else { return configured };
    ((estimate as f64 * ESTIMATE_SHARE) as u64).clamp(MIN_BITRATE_BPS.min(configured), configured)
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
    use crate::encoder::Content;
    use crate::openh264::OpenH264;
    use lightpipe_media::{Outlet, PixelFormat, Size, VideoCodec};
    use std::sync::Mutex;
    use std::sync::mpsc;

    struct Collect(Mutex<mpsc::Sender<Arc<AccessUnit>>>);

    impl Outlet for Collect {
        fn deliver(&self, unit: &Arc<AccessUnit>) {
            let _ = self.0.lock().expect("not poisoned").send(Arc::clone(unit));
        }
    }

    struct Bench {
        stream: Arc<Stream>,
        frames: Arc<FrameQueue>,
        events: EventLog,
        clock: MediaClock,
        pool: FramePool,
        _thread: EncodeThread,
    }

    fn bench() -> Bench {
        let stream = Stream::new("s", VideoCodec::H264);
        bench_of(stream, Vec::new())
    }

    fn bench_of(stream: Arc<Stream>, alternatives: Vec<Alternative>) -> Bench {
        let frames = Arc::new(FrameQueue::new(2));
        let clock = MediaClock::new(Instant::now(), Duration::from_secs(1_700_000_000));
        let events = EventLog::new();
        let thread = EncodeThread::spawn(Setup {
            stream: Arc::clone(&stream),
            frames: Arc::clone(&frames),
            clock,
            events: events.clone(),
            config: EncoderConfig {
                size: Size::new(64, 48),
                fps: 30.0,
                bitrate_bps: 300_000,
                keyframe_interval: 0,
                content: Content::Camera,
            },
            timecode: false,
            make: Box::new(|config| Ok(Box::new(OpenH264::new(config)?))),
            alternatives,
        })
        .expect("a thread starts");
        Bench { stream, frames, events, clock, pool: FramePool::new(), _thread: thread }
    }

    impl Bench {
        fn push(&self) -> MediaTime {
            let at = self.clock.at(Instant::now());
            let size = Size::new(64, 48);
            let buffer = self.pool.take(PixelFormat::Rgba.packed_len(size));
            self.frames.push(VideoFrame::packed(at, size, PixelFormat::Rgba, buffer).expect("fits"));
            at
        }
    }

    fn idle(codec: VideoCodec) -> EventKind {
        EventKind::TrackIdle { codec: Some(codec) }
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn nothing_is_encoded_until_somebody_watches_and_the_first_unit_is_a_keyframe() {
        let bench = bench();
        bench.push();
        let (sender, units) = mpsc::channel();
        assert!(bench.events.wait_for(0, Duration::from_millis(50), |_| true).is_none());
        assert_eq!(bench.stream.stats().encoder_starts, 0);

        let subscription = bench.stream.subscribe(Arc::new(Collect(Mutex::new(sender))));
        let captured = bench.push();
        let first = units.recv_timeout(LONG).expect("a unit");
        assert!(first.keyframe);
        assert_eq!(first.captured, captured, "capture time travels with the picture");
        assert!(first.stages.encoded >= first.stages.encode_started);
        bench.push();
        assert!(!units.recv_timeout(LONG).expect("a unit").keyframe);

        drop(subscription);
        assert!(bench.events.wait_for(0, LONG, |e| e.kind == idle(VideoCodec::H264)).is_some());
        let (sender, units) = mpsc::channel();
        let _again = bench.stream.subscribe(Arc::new(Collect(Mutex::new(sender))));
        bench.push();
        assert!(units.recv_timeout(LONG).expect("a unit").keyframe, "starts with an IDR when somebody comes back");
        assert_eq!(bench.stream.stats().encoder_starts, 2);
        let names: Vec<&str> = bench.events.since(0).iter().map(|e| e.kind.name()).collect();
        assert_eq!(names[..2], ["track_active", "track_idle"]);
    }

    /// Watches a stream in its coding; the channel has what came.
    #[cfg(feature = "vpx")]
    fn watch(stream: &Arc<Stream>) -> (lightpipe_media::Subscription, mpsc::Receiver<Arc<AccessUnit>>) {
        let (sender, units) = mpsc::channel();
        (stream.subscribe(Arc::new(Collect(Mutex::new(sender)))), units)
    }

    #[test]
    #[cfg(feature = "vpx")]
    fn each_coding_is_encoded_while_somebody_takes_it_and_only_then() {
        let stream = Stream::new("s", VideoCodec::H264);
        let vp8 = stream.add_alternative(VideoCodec::Vp8);
        let make: MakeEncoder = Box::new(|config| Ok(Box::new(crate::vp8::Vp8::new(config)?)));
        let bench = bench_of(Arc::clone(&stream), vec![Alternative { stream: Arc::clone(&vp8), make }]);
        let starts = || (stream.stats().encoder_starts, vp8.stats().encoder_starts);
        let take = |units: &mpsc::Receiver<Arc<AccessUnit>>| units.recv_timeout(LONG).expect("a unit");

        let (gone, units) = watch(&vp8);
        let captured = bench.push();
        let first = take(&units);
        assert!(first.keyframe && first.codec == VideoCodec::Vp8 && first.captured == captured);
        assert_eq!(lightpipe_media::vp8::size_of(&first.data), Some(Size::new(64, 48)));
        bench.push();
        assert!(!take(&units).keyframe);
        assert_eq!(starts(), (0, 1), "nobody takes H.264");
        assert_eq!(stream.health(), Health::Live);

        let (sub, h264) = watch(&stream);
        let captured = bench.push();
        let (one, other) = (take(&h264), take(&units));
        assert!(one.keyframe && one.codec == VideoCodec::H264, "the new one's first");
        assert!(!other.keyframe, "and none for who was there");
        assert_eq!((one.captured, other.captured), (captured, captured), "one picture, twice encoded");
        assert_eq!(starts(), (1, 1));

        drop(gone);
        assert!(bench.events.wait_for(0, LONG, |e| e.kind == idle(VideoCodec::Vp8)).is_some());
        bench.push();
        take(&h264);
        assert!(units.try_recv().is_err());
        assert_eq!((starts(), vp8.stats().target_bitrate_bps), ((1, 1), None), "VP8 rests, H.264 goes on");

        let (_again, units) = watch(&vp8);
        drop(sub);
        // The encoder that rests is noticed with a picture or without.
        assert!(bench.events.wait_for(0, LONG, |e| e.kind == idle(VideoCodec::H264)).is_some());
        bench.push();
        assert!(take(&units).keyframe);
        assert!(h264.try_recv().is_err());
        assert_eq!(starts(), (1, 2));
    }

    #[test]
    #[cfg(feature = "vpx")]
    fn a_slow_alternative_loses_raw_pictures_and_holds_nobody_up() {
        let stream = Stream::new("s", VideoCodec::H264);
        let vp8 = stream.add_alternative(VideoCodec::Vp8);
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let make: MakeEncoder = Box::new(move |config| {
            gate.lock().expect("not poisoned").recv().expect("the test opens it");
            Ok(Box::new(crate::vp8::Vp8::new(config)?))
        });
        let bench = bench_of(Arc::clone(&stream), vec![Alternative { stream: Arc::clone(&vp8), make }]);
        let ((_slow, units), (_sub, h264)) = (watch(&vp8), watch(&stream));
        let pushed: Vec<MediaTime> = (0..20)
            .map(|_| {
                let captured = bench.push();
                assert_eq!(h264.recv_timeout(LONG).expect("H.264 goes on").captured, captured);
                captured
            })
            .collect();
        open.send(()).expect("it waits");
        let got: Vec<MediaTime> = (0..3).map(|_| units.recv_timeout(LONG).expect("a unit").captured).collect();
        // What it had taken, and what waited: the newest two.
        assert_eq!(got[1..], pushed[18..]);
        assert!(units.recv_timeout(Duration::ZERO).is_err());
        let dropped = || vp8.stats().raw_dropped >= 17;
        let end = Instant::now() + LONG;
        while !dropped() && Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(dropped() && stream.stats().raw_dropped == 0, "{:?}", vp8.stats());
    }

    #[track_caller]
    fn check_target(configured: u64, estimate: Option<u64>, expected: u64) {
        assert_eq!(target_bitrate(configured, estimate), expected, "{configured} with {estimate:?}");
    }

    #[test]
    fn bitrate_follows_the_best_outlet_within_bounds() {
        check_target(2_500_000, None, 2_500_000);
        check_target(2_500_000, Some(10_000_000), 2_500_000);
        check_target(2_500_000, Some(1_000_000), 850_000);
        check_target(2_500_000, Some(10_000), 150_000);
        check_target(100_000, Some(10_000), 100_000);
    }

    #[test]
    fn rate_control_learns_the_real_frame_rate() {
        let mut rate = FrameRate::new(60.0);
        let learned = (0..300).filter_map(|n| rate.observe(MediaTime::from_micros(n * 66_667))).last();
        assert!((learned.expect("enough pictures") - 15.0).abs() < 0.5, "{learned:?}");
    }
}
