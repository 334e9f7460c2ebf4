//! One thread per encoder: raw pictures in, access units out, demand obeyed.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::convert::Converter;
use lightpipe_media::queue::Pop;
use lightpipe_media::stream::Health;
use lightpipe_media::{
    AccessUnit, EventKind, EventLog, FramePool, FrameQueue, MediaClock, MediaTime, Stages, Stream, VideoFrame, timecode,
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
}

/// A running encode thread. Dropping it closes the queue and waits for the thread.
#[derive(Debug)]
pub struct EncodeThread {
    frames: Arc<FrameQueue>,
    thread: Option<JoinHandle<()>>,
}

impl EncodeThread {
    /// Starts the thread.
    pub fn spawn(setup: Setup) -> std::io::Result<Self> {
        let frames = Arc::clone(&setup.frames);
        let name = format!("encode-{}", setup.stream.name());
        let thread = std::thread::Builder::new().name(name).spawn(move || Worker::new(setup).run())?;
        Ok(Self { frames, thread: Some(thread) })
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
    converter: Converter,
    encoder: Option<Box<dyn VideoEncoder>>,
    last_wanted: Option<MediaTime>,
    failures: u32,
    rate: FrameRate,
}

impl Worker {
    fn new(setup: Setup) -> Self {
        let rate = FrameRate::new(setup.config.fps);
        let converter = Converter::new(FramePool::new());
        Self { setup, converter, encoder: None, last_wanted: None, failures: 0, rate }
    }

    fn run(mut self) {
        loop {
            match self.setup.frames.pop(IDLE_CHECK) {
                Pop::Item(frame) => self.on_frame(frame),
                Pop::TimedOut => {
                    let now = self.now();
                    if self.setup.stream.outlets() == 0 {
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
        if !demand.wanted {
            self.idle(now);
            return;
        }
        self.last_wanted = Some(now);
        let starting = self.encoder.is_none();
        match self.encode(frame, now, demand.keyframe, demand.bitrate_bps) {
            Ok(Some(unit)) => {
                self.failures = 0;
                self.setup.stream.publish(&Arc::new(unit));
                if starting {
                    self.event(now, EventKind::TrackActive);
                }
            }
            Ok(None) => self.setup.stream.update_stats(|s| s.encoder_skipped += 1),
            Err(error) => self.fail(&error),
        }
        let frames = &self.setup.frames;
        let (pushed, dropped) = (frames.pushed(), frames.dropped());
        self.setup.stream.update_stats(|s| (s.raw_frames, s.raw_dropped) = (pushed, dropped));
    }

    fn encode(
        &mut self,
        frame: VideoFrame,
        started: MediaTime,
        keyframe: bool,
        estimate_bps: Option<u64>,
    ) -> Result<Option<AccessUnit>, EncodeError> {
        let Setup { stream, clock, config, timecode, make, .. } = &self.setup;
        let received = frame.received;
        let mut picture = self
            .converter
            .convert(frame, config.size)
            .map_err(|error| EncodeError::Unsupported { backend: "colour conversion", what: error.to_string() })?;
        if *timecode {
            let unix_ms = clock.unix_micros(picture.captured) / 1000;
            timecode::paint(&mut picture, unix_ms as u32); // modulo 2³² by definition of the strip
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
            self.event(now, EventKind::TrackIdle);
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
        assert!(bench.events.wait_for(0, LONG, |e| e.kind == EventKind::TrackIdle).is_some());
        let (sender, units) = mpsc::channel();
        let _again = bench.stream.subscribe(Arc::new(Collect(Mutex::new(sender))));
        bench.push();
        assert!(units.recv_timeout(LONG).expect("a unit").keyframe, "starts with an IDR when somebody comes back");
        assert_eq!(bench.stream.stats().encoder_starts, 2);
        let names: Vec<&str> = bench.events.since(0).iter().map(|e| e.kind.name()).collect();
        assert_eq!(names[..2], ["track_active", "track_idle"]);
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
