//! The cube source on a real clock, and its picture the right way up.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lightpipe_media::queue::Pop;
use lightpipe_media::stream::Health;
use lightpipe_media::{
    AccessUnit, EventKind, EventLog, FrameQueue, MediaClock, MediaTime, Outlet, PixelFormat, Size, Stream, VideoCodec,
    VideoFrame, timecode,
};
use lightpipe_source::cube::{self, Config, Cube, Renderer};
use lightpipe_source::{SourceHandle, VideoSink};

/// An outlet that only wants: the tests take the raw pictures from the queue.
struct Viewer;

impl Outlet for Viewer {
    fn deliver(&self, _: &Arc<AccessUnit>) {}
}

pub(crate) fn watch(sink: &VideoSink) -> lightpipe_media::Subscription {
    sink.stream.subscribe(Arc::new(Viewer))
}

pub(crate) fn sink(name: &str) -> VideoSink {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    VideoSink {
        stream: Stream::new(name, VideoCodec::H264),
        frames: Arc::new(FrameQueue::new(100)),
        clock: MediaClock::new(Instant::now(), unix),
        events: EventLog::new(),
    }
}

/// The next picture, which must come soon.
#[track_caller]
pub(crate) fn next(sink: &VideoSink) -> VideoFrame {
    match sink.frames.pop(Duration::from_secs(5)) {
        Pop::Item(frame) => frame,
        other => panic!("no picture: {other:?}"),
    }
}

fn start(config: Config, sink: &VideoSink) -> Box<dyn SourceHandle> {
    cube::start(config, sink.clone()).expect("the CPU renderer starts anywhere")
}

fn cpu(fps: f64) -> Config {
    Config { size: Size::new(320, 180), fps, renderer: Renderer::Cpu, timecode: false }
}

#[test]
fn nothing_is_rendered_while_nobody_watches() {
    let sink = sink("cube");
    let source = start(cpu(60.0), &sink);
    assert_eq!(sink.stream.health(), Health::Live, "ready, though idle");
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(sink.frames.pushed(), 0);

    let viewer = watch(&sink);
    _ = next(&sink);
    drop(viewer);
    // The picture in the making may still come.
    std::thread::sleep(Duration::from_millis(100));
    let pushed = sink.frames.pushed();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(sink.frames.pushed(), pushed, "stopped with its last viewer");

    let _viewer = watch(&sink);
    while sink.frames.pushed() == pushed {
        _ = next(&sink);
    }
    drop(source);
    let firsts = sink.events.since(0).into_iter().filter(|e| e.kind == EventKind::FirstFrameIngested);
    assert_eq!(firsts.count(), 1, "once per start, not per viewer");
}

#[test]
fn the_first_viewer_waits_for_no_tick() {
    let sink = sink("cube");
    let _source = start(cpu(0.1), &sink);
    std::thread::sleep(Duration::from_millis(20));
    let _viewer = watch(&sink);
    let asked = sink.clock.at(Instant::now());
    let frame = next(&sink);
    assert!(frame.captured.since(asked) < Duration::from_secs(2), "of a period of ten seconds");
}

#[test]
fn pictures_come_at_the_frame_rate_with_their_own_capture_times() {
    let sink = sink("cube");
    let _source = start(Config { timecode: true, ..cpu(50.0) }, &sink);
    let _viewer = watch(&sink);
    let frames: Vec<_> = (0..26).map(|_| next(&sink)).collect();
    let span = frames[25].captured.since(frames[0].captured);
    // Skipped ticks on a loaded machine make it longer, never shorter.
    assert!(span >= Duration::from_millis(495), "{span:?} for 25 periods of 20 ms");
    assert!(frames.windows(2).all(|pair| pair[0].captured < pair[1].captured));
    for frame in &frames {
        let expected = (sink.clock.unix_micros(frame.captured) / 1000) as u32;
        assert_eq!(timecode::read(frame), Some(expected));
    }
}

#[test]
fn dropping_the_handle_or_closing_the_stream_ends_the_thread() {
    let sink = sink("cube");
    let _viewer = watch(&sink);
    let source = start(cpu(0.1), &sink);
    _ = next(&sink);
    let asked = Instant::now();
    drop(source);
    assert!(asked.elapsed() < Duration::from_secs(2), "in the middle of a period of ten seconds");

    let source = start(cpu(30.0), &sink);
    sink.stream.close();
    drop(source);
    assert_eq!(Arc::strong_count(&sink.stream), 1, "the thread has let go of it");
}

#[test]
fn impossible_pictures_are_refused() {
    let sink = sink("cube");
    for config in [cpu(0.0), cpu(-1.0), cpu(f64::INFINITY), Config { size: Size::new(9, 180), ..cpu(30.0) }] {
        assert!(cube::start(config, sink.clone()).is_err());
    }
}

/// Mean luma of a part of a picture: left, top, right, bottom in tenths.
fn luma(frame: &VideoFrame, [left, top, right, bottom]: [usize; 4]) -> f64 {
    let (layout, tenth) = (frame.layout(0), |n: usize, of: usize| n * of / 10);
    let (mut sum, mut samples) = (0.0, 0.0);
    for row in frame.plane(0).chunks(layout.stride).take(tenth(bottom, layout.rows)).skip(tenth(top, layout.rows)) {
        for sample in &row[tenth(left, layout.row_bytes)..tenth(right, layout.row_bytes)] {
            sum += f64::from(*sample);
            samples += 1.0;
        }
    }
    sum / samples
}

/// Trap: GL counts rows from the bottom, and a cube server showed its picture upside down.
#[track_caller]
fn check_right_way_up(cube: &mut Cube) {
    // Front on at 0 and 9 s, the quarter turns between.
    for at in [0, 2_250_000, 4_500_000, 6_750_000, 9_000_000] {
        let frame = cube.render(MediaTime::from_micros(at)).expect("a picture");
        assert_eq!((frame.format(), frame.size()), (PixelFormat::I420, Size::new(1280, 720)));
        assert_eq!(frame.captured, MediaTime::from_micros(at));
        let (top, bottom) = (luma(&frame, [0, 0, 2, 2]), luma(&frame, [0, 8, 2, 10]));
        assert!(top > bottom + 40.0, "the stage is lighter at the top: {top} and {bottom} at {at} µs");
        let (floor, shadow) = (luma(&frame, [1, 8, 2, 9]), luma(&frame, [4, 8, 6, 9]));
        assert!(shadow < floor - 20.0, "the shadow lies below: {shadow} on {floor} at {at} µs");
        // The arrow: bright columns are wider in its upper half (head) than in its lower half (stem).
        let white = |from: usize, to: usize| {
            let rows = frame.plane(0).chunks(1280).take(to).skip(from);
            rows.map(|row| row[480..800].iter().filter(|s| **s > 185).count()).max().unwrap_or(0)
        };
        let (head, stem) = (white(340, 410), white(425, 475));
        assert!(head > stem * 3 / 2 && stem > 10, "the arrow points up: {head} over {stem} at {at} µs");
        // The lit top face is sky blue: much Cb above the arrow.
        let cb = frame.plane(1)[(200 / 2) * 640 + 560 / 2];
        assert!(cb > 150, "the blue face is on top: {cb} at {at} µs");
    }
}

#[test]
fn the_cpu_draws_it_the_right_way_up() {
    check_right_way_up(&mut Cube::new(Size::new(1280, 720), Renderer::Cpu).expect("anywhere"));
}

#[test]
fn the_angle_follows_media_time_not_the_number_of_pictures() {
    let cube = || Cube::new(Size::new(320, 180), Renderer::Cpu).expect("anywhere");
    let at = MediaTime::from_micros(3_141_592);
    let (mut one, mut other) = (cube(), cube());
    for n in 0..7 {
        _ = one.render(MediaTime::from_micros(n * 33_333)).expect("a picture");
    }
    let (a, b) = (one.render(at).expect("a picture"), other.render(at).expect("a picture"));
    assert!((0..3).all(|plane| a.plane(plane) == b.plane(plane)));
}

#[cfg(feature = "gpu")]
mod gpu {
    use super::*;

    fn gpu(size: Size) -> Cube {
        Cube::new(size, Renderer::Gpu).unwrap_or_else(|error| {
            panic!(
                "this test needs a graphics adapter, a software one will do \
                 (apt-get install mesa-vulkan-drivers libegl1 libgl1-mesa-dri): {error}"
            )
        })
    }

    #[test]
    fn the_gpu_draws_it_the_right_way_up() {
        check_right_way_up(&mut gpu(Size::new(1280, 720)));
    }

    #[test]
    fn both_renderers_draw_the_same_picture() {
        // 322 px: rows that are not a multiple of the 256 bytes that a copy from a texture wants.
        for size in [Size::new(322, 180), Size::new(1280, 720)] {
            let (mut gpu, mut cpu) = (gpu(size), Cube::new(size, Renderer::Cpu).expect("anywhere"));
            for at in [0, 1_300_000, 5_300_000] {
                let at = MediaTime::from_micros(at);
                let (a, b) = (gpu.render(at).expect("a picture"), cpu.render(at).expect("a picture"));
                for plane in 0..3 {
                    let pairs = a.plane(plane).iter().zip(b.plane(plane));
                    let far = pairs.filter(|(a, b)| a.abs_diff(**b) > 24).count();
                    let share = far as f64 / b.plane(plane).len() as f64;
                    assert!(share < 0.005, "{share} of plane {plane} differ, {size} by {}", gpu.renderer());
                }
            }
        }
    }

    #[test]
    fn each_picture_is_the_one_that_was_asked_for() {
        let size = Size::new(320, 180);
        let (a, b) = (MediaTime::from_micros(0), MediaTime::from_micros(1_100_000));
        let mut cube = gpu(size);
        let first = cube.render(a).expect("a picture");
        let other = cube.render(b).expect("a picture");
        let again = cube.render(a).expect("a picture");
        assert_eq!(first.plane(0), again.plane(0), "not the one before");
        assert_ne!(first.plane(0), other.plane(0));
    }

    #[test]
    fn auto_takes_no_software_driver() {
        let gpu = gpu(Size::new(320, 180)).renderer();
        let auto = Cube::new(Size::new(320, 180), Renderer::Auto).expect("the CPU is always there").renderer();
        if ["llvmpipe", "lavapipe", "softpipe", "SwiftShader"].iter().any(|name| gpu.contains(name)) {
            assert_eq!(auto, "cpu");
        } else {
            assert_eq!(auto, gpu);
        }
    }
}

#[cfg(not(feature = "gpu"))]
#[test]
fn a_build_without_gpu_says_so() {
    let error = Cube::new(Size::new(320, 180), Renderer::Gpu).expect_err("no such renderer");
    assert!(error.to_string().contains("--renderer cpu"), "{error}");
    assert_eq!(Cube::new(Size::new(320, 180), Renderer::Auto).expect("the CPU").renderer(), "cpu");
}
