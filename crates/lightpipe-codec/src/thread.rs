//! The threads between raw pictures and a stream: one that converts and scales, one per layer and coding that encodes.
//!
//! ```text
//!                                     ┌──▶ layer f ──▶ Stream            each only while somebody takes it
//!   FrameQueue ──▶ ladder: I420, ─────┼──▶ layer h ──▶ its layer h
//!                  timecode, scaling  ├──▶ layer q ──▶ its layer q
//!                                     └──▶ the same layers of an alternative
//! ```

use std::sync::Arc;
use std::thread::JoinHandle;

use lightpipe_media::{EventLog, FrameQueue, MediaClock, SimulcastLayer, Stream};

use crate::budget::CpuBudget;
use crate::encoder::{EncodeError, EncoderConfig, VideoEncoder};
use crate::ladder::{Ladder, Rung};
use crate::layer::{Feed, LayerEncoder, LayerSetup};

/// Makes the encoder of a layer when somebody wants it.
pub type MakeEncoder = Arc<dyn Fn(EncoderConfig) -> Result<Box<dyn VideoEncoder>, EncodeError> + Send + Sync>;

/// What encode threads work with.
pub struct Setup {
    /// Where access units go and demand comes from.
    pub stream: Arc<Stream>,
    /// Where raw pictures come from. Closing it ends the threads. As many pictures as it holds may wait for each layer's encoder; when
    /// full the oldest is dropped, before it is encoded.
    pub frames: Arc<FrameQueue>,
    /// The media clock of the pictures.
    pub clock: MediaClock,
    /// Lifecycle events.
    pub events: EventLog,
    /// Size, rate, content. With layers, size and rate of the source.
    pub config: EncoderConfig,
    /// The ladder, from the best layer to the least, which the stream and its alternatives get: sizes no larger than the source's, both sides even.
    /// Empty: one encoding, as `config` says.
    pub layers: Vec<SimulcastLayer>,
    /// Where there is one encoding: fewer pictures, then smaller ones, while no outlet's network carries the whole
    /// ([`lightpipe_media::adapt`]).
    pub adapt: bool,
    /// How much of the machine the encoders of all streams may take; without one as much as they need.
    pub budget: Option<Arc<CpuBudget>>,
    /// Paint the timecode strip into every picture.
    pub timecode: bool,
    /// The backend.
    pub make: MakeEncoder,
    /// The same pictures in other codings.
    pub alternatives: Vec<Alternative>,
}

/// An alternative of a stream, and who encodes it.
pub struct Alternative {
    /// What [`Stream::add_alternative`] gave.
    pub stream: Arc<Stream>,
    /// The backend.
    pub make: MakeEncoder,
}

/// The running threads of a stream. Dropping it closes their queues and waits for them.
#[derive(Debug)]
pub struct EncodeThread {
    frames: Arc<FrameQueue>,
    feeds: Vec<Arc<Feed>>,
    threads: Vec<JoinHandle<()>>,
}

impl EncodeThread {
    /// Starts the threads.
    pub fn spawn(setup: Setup) -> std::io::Result<Self> {
        let Setup { stream, frames, clock, events, config, layers, adapt, budget, timecode, make, alternatives } =
            setup;
        let name = format!("encode-{}", stream.name());
        let mut this = Self { frames: Arc::clone(&frames), feeds: Vec::new(), threads: Vec::new() };
        let configs: Vec<EncoderConfig> = match layers.as_slice() {
            [] => vec![config],
            layers => layers
                .iter()
                .map(|layer| EncoderConfig {
                    size: layer.size,
                    fps: layer.fps,
                    bitrate_bps: layer.bitrate_bps,
                    ..config
                })
                .collect(),
        };
        let mut rungs: Vec<Rung> = configs.iter().map(|layer| Rung::new(layer.size, layer.fps, config.fps)).collect();
        let codings =
            std::iter::once((Arc::clone(&stream), make)).chain(alternatives.into_iter().map(|a| (a.stream, a.make)));
        let mut measured = Vec::new();
        for (coding, make) in codings {
            measured.push((coding.codec(), Arc::clone(&make), configs.clone()));
            let mut streams = vec![Arc::clone(&coding)];
            if let [best, lower @ ..] = layers.as_slice() {
                streams.extend(coding.set_layers(best.clone(), lower.to_vec()));
            }
            let least = streams.len() - 1;
            for (n, (layer, config)) in streams.into_iter().zip(&configs).enumerate() {
                let mut name = name.clone();
                if !Arc::ptr_eq(&coding, &stream) {
                    name = format!("{name}-{}", layer.codec().name());
                }
                if let Some(layer) = layer.layer() {
                    name = format!("{name}-{}", layer.rid);
                }
                let source = Arc::ptr_eq(&layer, &stream).then(|| Arc::clone(&frames));
                let mut feed = Feed::new(layer, frames.capacity(), n < least, events.clone());
                if let Some(budget) = &budget {
                    feed = feed.with_budget(budget, config.size, config.fps);
                }
                let feed = Arc::new(feed);
                if let Some(budget) = &budget {
                    budget.add(&feed);
                }
                this.feeds.push(Arc::clone(&feed));
                if let Some(rung) = rungs.get_mut(n) {
                    rung.add(Arc::clone(&feed));
                }
                let adapt = adapt && configs.len() == 1;
                let encoder = LayerSetup { feed, source, clock, config: *config, adapt, make: Arc::clone(&make) };
                this.start(name, move || LayerEncoder::new(encoder).run())?;
            }
        }
        if let Some(budget) = &budget {
            let budget = Arc::clone(budget);
            // By itself: the stream does not wait for it.
            this.start("encode-sizing".into(), move || {
                for (codec, make, configs) in measured {
                    budget.measure(codec, &make, &configs);
                }
            })?;
        }
        let full = configs.first().map_or(config.size, |best| best.size);
        let ladder = Ladder::new(stream, frames, clock, timecode, full, rungs, budget);
        this.start(name, move || ladder.run())?;
        Ok(this)
    }

    fn start(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }
}

impl Drop for EncodeThread {
    fn drop(&mut self) {
        self.frames.close();
        self.feeds.iter().for_each(|feed| feed.close());
        for thread in self.threads.drain(..) {
            // A panic was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::decoder_for;
    use crate::encoder::Content;
    use crate::openh264::OpenH264;
    use lightpipe_media::stream::Health;
    use lightpipe_media::{
        AccessUnit, EventKind, FramePool, MediaTime, Outlet, PixelFormat, Size, Subscription, VideoCodec, VideoFrame,
        timecode,
    };
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::sync::{Mutex, mpsc};
    use std::time::{Duration, Instant};

    struct Collect(Mutex<mpsc::Sender<Arc<AccessUnit>>>);

    impl Outlet for Collect {
        fn deliver(&self, unit: &Arc<AccessUnit>) {
            let _ = self.0.lock().expect("not poisoned").send(Arc::clone(unit));
        }
    }

    /// The same behind a network.
    struct Far(Collect);

    impl Outlet for Far {
        fn deliver(&self, unit: &Arc<AccessUnit>) {
            self.0.deliver(unit);
        }

        fn has_network(&self) -> bool {
            true
        }
    }

    struct Bench {
        stream: Arc<Stream>,
        frames: Arc<FrameQueue>,
        events: EventLog,
        clock: MediaClock,
        pool: FramePool,
        size: Size,
        _thread: EncodeThread,
    }

    fn bench() -> Bench {
        bench_of(setup())
    }

    fn setup() -> Setup {
        Setup {
            stream: Stream::new("s", VideoCodec::H264),
            frames: Arc::new(FrameQueue::new(2)),
            clock: MediaClock::new(Instant::now(), Duration::from_secs(1_700_000_000)),
            events: EventLog::new(),
            config: EncoderConfig {
                size: Size::new(64, 48),
                fps: 30.0,
                bitrate_bps: 300_000,
                keyframe_interval: 0,
                content: Content::Camera,
            },
            layers: Vec::new(),
            adapt: true,
            budget: None,
            timecode: false,
            make: Arc::new(|config| Ok(Box::new(OpenH264::new(config)?))),
            alternatives: Vec::new(),
        }
    }

    fn bench_of(setup: Setup) -> Bench {
        let Setup { stream, frames, events, clock, config, .. } = &setup;
        let (stream, frames, events, clock) = (Arc::clone(stream), Arc::clone(frames), events.clone(), *clock);
        let size = config.size;
        let thread = EncodeThread::spawn(setup).expect("threads start");
        Bench { stream, frames, events, clock, pool: FramePool::new(), size, _thread: thread }
    }

    impl Bench {
        fn push(&self) -> MediaTime {
            self.push_at(self.clock.at(Instant::now()))
        }

        fn push_at(&self, at: MediaTime) -> MediaTime {
            let mut buffer = self.pool.take(PixelFormat::Rgba.packed_len(self.size));
            buffer.fill(90);
            self.frames.push(VideoFrame::packed(at, self.size, PixelFormat::Rgba, buffer).expect("fits"));
            at
        }
    }

    fn idle(codec: VideoCodec) -> EventKind {
        EventKind::TrackIdle { codec: Some(codec), rid: None }
    }

    const LONG: Duration = Duration::from_secs(10);

    /// Watches a stream in its coding; the channel has what came.
    fn watch(stream: &Arc<Stream>) -> (Subscription, mpsc::Receiver<Arc<AccessUnit>>) {
        let (sender, units) = mpsc::channel();
        (stream.subscribe(Arc::new(Collect(Mutex::new(sender)))), units)
    }

    /// The same through a network that carries so much, bits per second.
    fn watch_far(stream: &Arc<Stream>, bps: Option<u64>) -> (Subscription, mpsc::Receiver<Arc<AccessUnit>>) {
        let (sender, units) = mpsc::channel();
        let subscription = stream.subscribe(Arc::new(Far(Collect(Mutex::new(sender)))));
        subscription.set_bitrate(bps);
        (subscription, units)
    }

    fn take(units: &mpsc::Receiver<Arc<AccessUnit>>) -> Arc<AccessUnit> {
        units.recv_timeout(LONG).expect("a unit")
    }

    #[track_caller]
    fn wait_until(done: impl Fn() -> bool) {
        let end = Instant::now() + LONG;
        while !done() {
            assert!(Instant::now() < end, "it does not happen");
            std::thread::yield_now();
        }
    }

    #[test]
    fn nothing_is_encoded_until_somebody_watches_and_the_first_unit_is_a_keyframe() {
        let bench = bench();
        bench.push();
        assert!(bench.events.wait_for(0, Duration::from_millis(50), |_| true).is_none());
        assert_eq!(bench.stream.stats().encoder_starts, 0);

        let (subscription, units) = watch(&bench.stream);
        let captured = bench.push();
        let first = units.recv_timeout(LONG).expect("a unit");
        assert!(first.keyframe);
        assert_eq!(first.captured, captured, "capture time travels with the picture");
        assert!(first.stages.encoded >= first.stages.encode_started);
        bench.push();
        assert!(!units.recv_timeout(LONG).expect("a unit").keyframe);

        drop(subscription);
        assert!(bench.events.wait_for(0, LONG, |e| e.kind == idle(VideoCodec::H264)).is_some());
        let (_again, units) = watch(&bench.stream);
        bench.push();
        assert!(units.recv_timeout(LONG).expect("a unit").keyframe, "starts with an IDR when somebody comes back");
        assert_eq!(bench.stream.stats().encoder_starts, 2);
        let names: Vec<&str> = bench.events.since(0).iter().map(|e| e.kind.name()).collect();
        assert_eq!(names[..2], ["track_active", "track_idle"]);
    }

    #[test]
    #[cfg(feature = "vpx")]
    fn each_coding_is_encoded_while_somebody_takes_it_and_only_then() {
        let stream = Stream::new("s", VideoCodec::H264);
        let vp8 = stream.add_alternative(VideoCodec::Vp8);
        let make: MakeEncoder = Arc::new(|config| Ok(Box::new(crate::vp8::Vp8::new(config)?)));
        let alternatives = vec![Alternative { stream: Arc::clone(&vp8), make }];
        let bench = bench_of(Setup { stream: Arc::clone(&stream), alternatives, ..setup() });
        let starts = || (stream.stats().encoder_starts, vp8.stats().encoder_starts);

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
        let make: MakeEncoder = Arc::new(move |config| {
            gate.lock().expect("not poisoned").recv().expect("the test opens it");
            Ok(Box::new(crate::vp8::Vp8::new(config)?))
        });
        let alternatives = vec![Alternative { stream: Arc::clone(&vp8), make }];
        let bench = bench_of(Setup { stream: Arc::clone(&stream), alternatives, ..setup() });
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
        wait_until(|| vp8.stats().raw_dropped >= 17);
        assert_eq!(stream.stats().raw_dropped, 0);
    }

    fn layer(rid: &str, width: u32, height: u32, fps: f64) -> SimulcastLayer {
        SimulcastLayer { rid: rid.into(), size: Size::new(width, height), bitrate_bps: 300_000, fps }
    }

    /// Three layers, each half of the one above; the least has room for a readable strip.
    fn three_layers() -> Setup {
        let layers = vec![layer("f", 768, 432, 30.0), layer("h", 384, 216, 30.0), layer("q", 192, 108, 30.0)];
        let config = EncoderConfig { size: Size::new(768, 432), ..setup().config };
        Setup { layers, config, timecode: true, ..setup() }
    }

    fn strip(unit: &AccessUnit) -> Option<u32> {
        let mut decoder = decoder_for(unit.codec).expect("a decoder");
        let picture = decoder.decode(unit).expect("decodes").expect("a picture");
        assert_eq!(picture.size(), unit.size);
        timecode::read(&picture)
    }

    #[track_caller]
    fn check_layers(coding: &Arc<Stream>, bench: &Bench) {
        let (_subs, units): (Vec<_>, Vec<_>) = coding.layers().iter().map(watch).unzip();
        for first in [true, false] {
            let captured = bench.push();
            let got: Vec<_> = units.iter().map(take).collect();
            assert!(
                got.iter().all(|unit| unit.captured == captured && unit.keyframe == first),
                "one picture, three sizes"
            );
            let widths: Vec<u32> = got.iter().map(|unit| unit.size.width).collect();
            assert_eq!(widths, [768, 384, 192]);
            if first {
                let time = (bench.clock.unix_micros(captured) / 1000) as u32;
                assert_eq!(got.iter().map(|unit| strip(unit)).collect::<Vec<_>>(), [Some(time); 3]);
            }
        }
    }

    #[test]
    fn all_layers_have_the_same_pictures_and_a_readable_strip() {
        let bench = bench_of(three_layers());
        check_layers(&bench.stream, &bench);
        #[cfg(feature = "vpx")]
        {
            let setup = three_layers();
            let stream = setup.stream.add_alternative(VideoCodec::Vp8);
            let make: MakeEncoder = Arc::new(|config| Ok(Box::new(crate::vp8::Vp8::new(config)?)));
            let bench = bench_of(Setup { alternatives: vec![Alternative { stream: stream.clone(), make }], ..setup });
            check_layers(&stream, &bench);
        }
    }

    #[test]
    fn strips_stay_readable_in_sizes_that_are_no_half() {
        let layers = vec![layer("f", 854, 480, 30.0), layer("h", 600, 338, 30.0), layer("q", 426, 240, 30.0)];
        let config = EncoderConfig { size: Size::new(854, 480), ..setup().config };
        let bench = bench_of(Setup { layers, config, timecode: true, ..setup() });
        let (_subs, units): (Vec<_>, Vec<_>) = bench.stream.layers().iter().map(watch).unzip();
        let time = (bench.clock.unix_micros(bench.push()) / 1000) as u32;
        assert_eq!(units.iter().map(|units| strip(&take(units))).collect::<Vec<_>>(), [Some(time); 3]);
    }

    #[test]
    fn a_layer_is_encoded_while_somebody_takes_it_and_only_then() {
        let bench = bench_of(three_layers());
        let layers = bench.stream.layers();
        let starts = || layers.iter().map(|layer| layer.stats().encoder_starts).collect::<Vec<_>>();
        let (sub, units) = watch(&layers[2]);
        bench.push();
        assert!(take(&units).keyframe);
        bench.push();
        assert!(!take(&units).keyframe);
        assert_eq!(starts(), [0, 0, 1], "the least runs without the best");
        let before = Instant::now();
        drop(sub);
        let idle = EventKind::TrackIdle { codec: Some(VideoCodec::H264), rid: Some("q".into()) };
        assert!(bench.events.wait_for(0, LONG, |event| event.kind == idle).is_some());
        assert!(before.elapsed() < Duration::from_secs(2));
        let (_h, h) = watch(&layers[1]);
        let (_q, q) = watch(&layers[2]);
        let captured = bench.push();
        for units in [&h, &q] {
            let unit = take(units);
            assert!(unit.keyframe && unit.captured == captured, "on at once");
        }
        assert_eq!(starts(), [0, 1, 2]);
    }

    #[test]
    fn a_keyframe_is_made_where_it_was_asked_for_and_by_the_interval_in_all_layers_at_once() {
        let mut setup = three_layers();
        setup.config.keyframe_interval = 12;
        let bench = bench_of(setup);
        let (subs, units): (Vec<_>, Vec<_>) = bench.stream.layers().iter().take(2).map(watch).unzip();
        let mut keyframes = vec![Vec::new(); 2];
        for n in 0..30 {
            if n == 3 {
                // Only when the holdoff since the first one is over.
                std::thread::sleep(lightpipe_media::stream::KEYFRAME_REQUEST_HOLDOFF);
                subs[1].request_keyframe();
            }
            bench.push();
            for (keyframes, units) in keyframes.iter_mut().zip(&units) {
                if take(units).keyframe {
                    keyframes.push(n);
                }
            }
        }
        assert_eq!(keyframes, [vec![0, 12, 24], vec![0, 3, 12, 24]]);
    }

    #[test]
    fn a_layer_with_fewer_pictures_has_every_second_one() {
        let mut setup = three_layers();
        setup.layers[1].fps = 15.0;
        let bench = bench_of(setup);
        let layers = bench.stream.layers();
        let ((_f, f), (_h, h)) = (watch(&layers[0]), watch(&layers[1]));
        let times: Vec<MediaTime> = (0..8)
            .map(|n| {
                let captured = bench.push_at(MediaTime::from_micros(n * 33_333));
                assert_eq!(take(&f).captured, captured);
                captured
            })
            .collect();
        let got: Vec<MediaTime> = (0..4).map(|_| take(&h).captured).collect();
        assert_eq!(got, [times[0], times[2], times[4], times[6]]);
    }

    /// One encoding, of which half and a quarter have room for a readable strip.
    fn one_encoding() -> Setup {
        let config = EncoderConfig { size: Size::new(768, 432), bitrate_bps: 2_000_000, ..setup().config };
        Setup { config, timecode: true, ..setup() }
    }

    #[track_caller]
    fn check_adapts(coding: &Arc<Stream>, bench: &Bench) {
        let start = bench.clock.at(Instant::now());
        let push = |n: u32| bench.push_at(start + Duration::from_micros(33_333) * n);
        let time = |captured: MediaTime| Some((bench.clock.unix_micros(captured) / 1000) as u32);
        let (_far, units) = watch_far(coding, Some(60_000));
        let small = Size::new(384, 216);
        let captured = push(0);
        let unit = take(&units);
        assert!(unit.keyframe && unit.size == small && unit.captured == captured, "{} {}", unit.keyframe, unit.size);
        assert_eq!(strip(&unit), time(captured));
        push(1);
        let captured = push(2);
        let unit = take(&units);
        assert_eq!((unit.captured, unit.keyframe, unit.size), (captured, false, small), "every second one");
        let told = |event: &lightpipe_media::Event| match event.kind {
            EventKind::EncodingAdapted { codec, size, interval, target_bps } => {
                Some((codec, size, interval.as_millis(), target_bps))
            }
            _ => None,
        };
        let events = || bench.events.since(0).iter().filter_map(told).collect::<Vec<_>>();
        assert_eq!(events(), [(coding.codec(), small, 66, 51_000)]);
        assert_eq!(coding.stats().adapted.map(|point| (point.size, point.fps)), Some((small, 15.0)));

        let (file, written) = watch(coding);
        push(3);
        for n in 4..6 {
            let captured = push(n);
            let (unit, other) = (take(&units), take(&written));
            assert_eq!((unit.captured, unit.size, unit.keyframe), (captured, Size::new(768, 432), n == 4));
            assert_eq!((other.captured, other.size), (captured, unit.size), "a file gets the whole, and at once");
        }
        assert_eq!(coding.stats().adapted, None);
        drop(file);
        let mut later = (6..10_000).map(|n| {
            push(n);
            take(&units)
        });
        let resized = later.find(|unit| unit.size == small).expect("within half a second");
        assert!(resized.keyframe);
        let stats = coding.stats();
        assert_eq!((stats.encoder_starts, stats.adaptations, events().len()), (1, 3, 3));
    }

    #[test]
    fn a_network_that_carries_little_gets_fewer_and_smaller_pictures_while_nobody_takes_the_whole() {
        let bench = bench_of(one_encoding());
        check_adapts(&bench.stream, &bench);
        #[cfg(feature = "vpx")]
        {
            let setup = one_encoding();
            let stream = setup.stream.add_alternative(VideoCodec::Vp8);
            let make: MakeEncoder = Arc::new(|config| Ok(Box::new(crate::vp8::Vp8::new(config)?)));
            let bench = bench_of(Setup { alternatives: vec![Alternative { stream: stream.clone(), make }], ..setup });
            check_adapts(&stream, &bench);
        }
    }

    #[test]
    fn layers_and_encodings_that_may_not_stay_as_they_are() {
        let fixed = bench_of(Setup { adapt: false, ..one_encoding() });
        let layered = bench_of(three_layers());
        let least = layered.stream.layers().pop().expect("three");
        for (bench, stream, size) in
            [(&fixed, &fixed.stream, Size::new(768, 432)), (&layered, &least, Size::new(192, 108))]
        {
            let (_far, units) = watch_far(stream, Some(10_000));
            for n in 0..4 {
                let captured = bench.push();
                let unit = take(&units);
                assert_eq!((unit.captured, unit.size, unit.keyframe), (captured, size, n == 0));
            }
            assert_eq!(stream.stats().adaptations, 0);
        }
    }

    #[test]
    fn a_layer_that_fails_is_left_out_alone_and_tried_again() {
        let broken = Arc::new(AtomicBool::new(true));
        let make: MakeEncoder = {
            let broken = Arc::clone(&broken);
            Arc::new(move |config| {
                if config.size.width == 384 && broken.load(Relaxed) {
                    return Err(EncodeError::Backend { backend: "test", call: "make", code: 7 });
                }
                Ok(Box::new(OpenH264::new(config)?))
            })
        };
        let bench = bench_of(Setup { make, ..three_layers() });
        let layers = bench.stream.layers();
        let (_subs, units): (Vec<_>, Vec<_>) = layers.iter().map(watch).unzip();
        let dropped = |events: &EventLog| -> Vec<Duration> {
            let retry = |kind: EventKind| match kind {
                EventKind::LayerDropped { rid: Some(rid), cause: "encoder_failed", retry_in, .. } if rid == "h" => {
                    Some(retry_in)
                }
                _ => None,
            };
            events.since(0).into_iter().filter_map(|event| retry(event.kind)).collect()
        };
        let push = || {
            let captured = bench.push();
            assert!([0, 2].iter().all(|n| take(&units[*n]).captured == captured), "the others go on");
        };
        while dropped(&bench.events).is_empty() {
            push();
        }
        assert_eq!(layers[1].resting().as_deref(), Some("the encoder fails: test failed in make with code 7"));
        assert!(matches!(layers[1].health(), Health::Failed(_)));
        assert_eq!((layers[0].health(), layers[0].resting(), layers[2].resting()), (Health::Live, None, None));
        let errors = layers[1].stats().encoder_errors;
        push();
        assert_eq!(layers[1].stats().encoder_errors, errors, "not tried with every picture");

        while dropped(&bench.events).len() < 2 {
            push();
        }
        let pauses = dropped(&bench.events);
        assert_eq!(pauses[1], pauses[0] * 2);
        broken.store(false, Relaxed);
        while units[1].try_recv().is_err() {
            push();
        }
        assert_eq!((layers[1].health(), layers[1].resting()), (Health::Live, None));
    }
}
