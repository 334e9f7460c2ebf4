//! Real FFmpeg children. These tests fail where FFmpeg is missing: it is what they are about.

use std::time::{Duration, Instant};

use lightpipe_media::h264::{self, NalType};
use lightpipe_media::stream::Health;
use lightpipe_media::{EventKind, PixelFormat, Size};
use lightpipe_source::SourceHandle;
use lightpipe_source::ffmpeg::{self, Config, Container, Fit, Output, SourceError, Video, args};

use crate::lab::{Lab, is_running, kill_9, until};

fn raw(graph: &str, size: Size, pixels: PixelFormat, fit: Fit) -> Config {
    Config::new(args::lavfi(graph), Output::Raw { size, fps: 30, pixels, fit })
}

fn encoded(graph: &str, container: Container) -> Config {
    Config::new(
        args::lavfi(graph),
        Output::Encoded { container, video: Video::X264 { size: None, bitrate_bps: 1_000_000, keyframe_every: 10 } },
    )
}

fn start(lab: &Lab, config: Config) -> Box<dyn SourceHandle> {
    ffmpeg::start(config, lab.sink.clone()).expect("a good configuration")
}

#[test]
fn raw_pictures_arrive_with_the_configured_size_and_format() {
    for (graph, size, pixels, fit) in [
        ("testsrc2=size=64x48:rate=30", Size::new(64, 48), PixelFormat::Bgra, Fit::Exact),
        ("testsrc2=size=100x100:rate=30", Size::new(64, 36), PixelFormat::I420, Fit::Pad),
        ("testsrc2=size=320x240:rate=30", Size::new(160, 90), PixelFormat::Nv12, Fit::Stretch),
    ] {
        let lab = Lab::new();
        let _source = start(&lab, raw(graph, size, pixels, fit));
        for n in 0..10 {
            let frame = lab.frame();
            assert_eq!((frame.size(), frame.format()), (size, pixels), "{graph} {n}");
        }
        assert_eq!(lab.health(), Health::Live);
    }
}

#[test]
fn raw_colours_are_those_of_the_source_in_the_bars_and_between_them() {
    let lab = Lab::new();
    let size = Size::new(64, 32);
    let graph = "color=c=0x2040f0:size=32x32:rate=30";
    let _source = start(&lab, raw(graph, size, PixelFormat::Bgra, Fit::Pad));
    let frame = lab.frame();
    let pixel = |x: usize, y: usize| {
        let at = y * frame.layout(0).stride + x * 4;
        frame.plane(0)[at..at + 3].to_vec()
    };
    for y in [1, 16, 30] {
        assert_eq!(pixel(2, y), [0, 0, 0], "left bar");
        assert_eq!(pixel(61, y), [0, 0, 0], "right bar");
        // `color` makes YUV, so the way back costs a step or two.
        for (got, expected) in pixel(32, y).iter().zip([0xf0u8, 0x40, 0x20]) {
            assert!(got.abs_diff(expected) < 6, "{:?}", pixel(32, y));
        }
    }
}

#[test]
fn sixty_fps_source_is_thinned_to_the_configured_rate_with_true_capture_times() {
    let lab = Lab::new();
    let size = Size::new(64, 48);
    let _source = start(&lab, raw("testsrc2=size=64x48:rate=60", size, PixelFormat::Bgra, Fit::Exact));
    let times: Vec<i64> = (0..31).map(|_| lab.frame().captured.as_micros()).collect();
    assert!(times.windows(2).all(|w| w[0] < w[1]), "{times:?}");
    let mean = (times[30] - times[0]) / 30;
    assert!((30_000..38_000).contains(&mean), "{mean} µs between pictures");
}

#[test]
fn every_picture_in_nut_is_one_unit_however_many_slices_it_has() {
    // Trap: x264 zerolatency emits several slices per picture; each VCL NAL is not a frame.
    let lab = Lab::new();
    let mut config = encoded("testsrc2=size=640x480:rate=30", Container::Nut);
    slices(&mut config);
    let _source = start(&lab, config);
    check_units(&lab, Size::new(640, 480));
}

#[test]
fn every_picture_in_annexb_is_one_unit_however_many_slices_it_has() {
    // Trap: one sample per NAL; SPS+PPS+SEI+IDR is one access unit with one timestamp.
    let lab = Lab::new();
    let mut config = encoded("testsrc2=size=640x480:rate=30", Container::AnnexB);
    slices(&mut config);
    let _source = start(&lab, config);
    check_units(&lab, Size::new(640, 480));
}

/// x264's slices under `zerolatency` are its threads, by default one per processor and at most one per 64
/// rows; here four.
fn slices(config: &mut Config) {
    config.input.args.extend(["-threads", "4"].map(str::to_owned));
}

#[track_caller]
fn check_units(lab: &Lab, size: Size) {
    let units = lab.units(31);
    for (n, unit) in units.iter().enumerate() {
        let types: Vec<NalType> = h264::nals(&unit.data).map(NalType::of).collect();
        let slices: Vec<&[u8]> = h264::nals(&unit.data).filter(|nal| NalType::of(nal).is_vcl()).collect();
        assert_eq!(slices.len(), 4, "unit {n}: {types:?}");
        assert!(h264::starts_picture(slices[0]));
        assert!(!slices[1..].iter().any(|s| h264::starts_picture(s)));
        assert_eq!(unit.keyframe, n % 10 == 0, "unit {n}");
        assert_eq!(unit.size, size);
        if unit.keyframe {
            assert!(types.contains(&NalType::Sps) && types.contains(&NalType::Pps));
        }
    }
    let times: Vec<i64> = units.iter().map(|u| u.captured.as_micros()).collect();
    assert!(times.windows(2).all(|w| w[0] < w[1]), "{times:?}");
    // A second of pictures took a second: 30 fps is 30 fps.
    let span = times[30] - times[0];
    assert!((900_000..1_100_000).contains(&span), "{span} µs");
    assert!(units.iter().all(|u| u.captured <= u.stages.received));
}

#[test]
fn annexb_pipe_adds_no_frame_of_latency() {
    // Trap: waiting for the next start code to release a frame. At 10 fps that is 100 ms.
    let lab = Lab::new();
    let config = encoded("testsrc2=size=320x240:rate=10", Container::AnnexB);
    let _source = start(&lab, config);
    let units = lab.units(15);
    let mut held: Vec<u64> = units
        .iter()
        // `captured` is when the first byte arrived, `received` when the unit was released.
        .map(|u| u.stages.received.since(u.captured).as_micros() as u64)
        .collect();
    held.sort_unstable();
    let median = held[held.len() / 2];
    assert!(median < 25_000, "held for {held:?} µs of the 100 000 between pictures");
}

#[test]
fn nut_pipe_adds_no_frame_of_latency_and_keeps_the_childs_pacing() {
    let lab = Lab::new();
    let _source = start(&lab, encoded("testsrc2=size=320x240:rate=10", Container::Nut));
    let units = lab.units(15);
    let mut gaps: Vec<i64> =
        units[5..].windows(2).map(|w| w[1].captured.as_micros() - w[0].captured.as_micros()).collect();
    gaps.sort_unstable();
    let median = gaps[gaps.len() / 2];
    assert!((95_000..105_000).contains(&median), "{gaps:?}");
    let mut held: Vec<u64> = units.iter().map(|u| u.stages.received.since(u.captured).as_micros() as u64).collect();
    held.sort_unstable();
    assert!(held[held.len() / 2] < 50_000, "{held:?}");
}

#[test]
fn picture_is_back_within_two_seconds_of_a_kill() {
    let lab = Lab::new();
    let size = Size::new(320, 240);
    let source = start(&lab, raw("testsrc2=size=320x240:rate=30", size, PixelFormat::Bgra, Fit::Exact));
    let first = lab.event(0, "first_frame_ingested");
    let pid = source.child_pid().expect("a child runs");
    let before = lab.frame().captured;
    let killed = Instant::now();
    kill_9(pid);
    let back = lab.event(first.seq + 1, "first_frame_ingested");
    let away = killed.elapsed();
    assert!(away < Duration::from_secs(2), "back after {away:?}");
    assert_eq!(
        lab.event_names(),
        ["ffmpeg_spawned", "first_frame_ingested", "ffmpeg_exited", "ffmpeg_spawned", "first_frame_ingested"]
    );
    let exited = lab.event(0, "ffmpeg_exited");
    let EventKind::FfmpegExited { reason, retry_in } = exited.kind else { panic!("{exited:?}") };
    assert!(reason.starts_with("ffmpeg was killed by signal 9"), "{reason}");
    assert_eq!(retry_in, Some(Duration::from_millis(100)));
    assert_ne!(source.child_pid(), Some(pid));
    // The clock went on: what comes now is later than what came before.
    until("a picture of the second run", || lab.frame().captured >= back.at);
    assert!(before < back.at);
    assert_eq!(lab.health(), Health::Live);
}

#[test]
fn encoded_time_goes_on_over_a_restart() {
    let lab = Lab::new();
    let source = start(&lab, encoded("testsrc2=size=160x120:rate=30", Container::Nut));
    let before = lab.units(5).len();
    kill_9(source.child_pid().expect("a child runs"));
    let exited = lab.event(0, "ffmpeg_exited");
    lab.event(exited.seq, "first_frame_ingested");
    let units = lab.units(before + 40);
    assert!(units.windows(2).all(|w| w[0].captured < w[1].captured));
    let second_run = units.iter().find(|u| u.captured > exited.at).expect("units after the restart");
    assert!(second_run.keyframe, "a run begins with a keyframe");
}

#[test]
fn missing_ffmpeg_is_named_and_tried_again() {
    let lab = Lab::new();
    let mut config = encoded("testsrc2", Container::Nut);
    config.binary = "/nowhere/ffmpeg".into();
    let source = start(&lab, config);
    let first = lab.event(0, "source_failed");
    assert_eq!(
        first.kind,
        EventKind::SourceFailed {
            reason: "ffmpeg was not found at /nowhere/ffmpeg; install it or set --ffmpeg PATH".to_owned()
        }
    );
    assert!(matches!(lab.health(), Health::Failed(r) if r.contains("was not found")));
    assert_eq!(source.child_pid(), None);
    lab.event(first.seq + 1, "source_failed");
}

#[test]
fn bad_configuration_is_refused_at_once() {
    let lab = Lab::new();
    let config = raw("testsrc2", Size::new(0, 48), PixelFormat::Bgra, Fit::Pad);
    let refused = ffmpeg::start(config, lab.sink.clone());
    assert!(matches!(refused, Err(SourceError::BadPicture(_))), "{refused:?}");
}

#[test]
fn child_that_fails_at_once_is_quoted() {
    let lab = Lab::new();
    let (input, encodes) = args::user("-i /nowhere/film.mp4 -c:v copy").expect("good words");
    assert!(encodes);
    let output = Output::Encoded { container: Container::Nut, video: Video::AsGiven };
    let _source = start(&lab, Config::new(input, output));
    let reason = lab.failure();
    assert!(
        reason.starts_with("ffmpeg exited with code 1; it said: ") && reason.contains("No such file or directory"),
        "{reason}"
    );
    assert_eq!(lab.health(), Health::Failed(reason));
}

#[test]
fn nut_without_h264_is_named() {
    let lab = Lab::new();
    let (input, _) = args::user("-re -f lavfi -i testsrc2 -c:v mpeg4").expect("good words");
    let output = Output::Encoded { container: Container::Nut, video: Video::AsGiven };
    let _source = start(&lab, Config::new(input, output));
    let reason = lab.failure();
    assert!(reason.contains("NUT without H.264 video (it has "), "{reason}");
}

#[test]
fn child_ends_when_its_handle_is_dropped() {
    let lab = Lab::new();
    let source = start(&lab, raw("testsrc2=size=320x240:rate=30", Size::new(320, 240), PixelFormat::Bgra, Fit::Exact));
    lab.event(0, "first_frame_ingested");
    let pid = source.child_pid().expect("a child runs");
    assert!(is_running(pid));
    let asked = Instant::now();
    drop(source);
    assert!(!is_running(pid), "dropping waits for the end");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let exited = lab.event(0, "ffmpeg_exited");
    assert_eq!(exited.kind, EventKind::FfmpegExited { reason: "stopped".to_owned(), retry_in: None });
}

#[test]
fn size_of_an_input_can_be_asked_for() {
    let input = args::lavfi("testsrc2=size=362x242");
    let size = ffmpeg::probe_size("ffmpeg".as_ref(), &input, Duration::from_secs(20));
    assert_eq!(size, Some(Size::new(362, 242)));
    let nothing = args::user("/nowhere/film.mp4").expect("one word").0;
    assert_eq!(ffmpeg::probe_size("ffmpeg".as_ref(), &nothing, Duration::from_secs(20)), None);
}

#[cfg(target_os = "linux")]
#[test]
fn desktop_of_an_x_server_arrives_in_the_size_that_was_probed() {
    use std::io::{BufRead, BufReader};
    let mut server = std::process::Command::new("Xvfb")
        .args(["-displayfd", "1", "-screen", "0", "640x400x24", "-nolisten", "tcp"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("Xvfb is installed");
    let mut number = String::new();
    BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut number).expect("Xvfb tells its display");
    let wish = args::Desktop { display: Some(format!(":{}", number.trim())), ..args::Desktop::default() };
    let input = args::desktop(args::Platform::Linux, &wish, 30);
    let source_size = ffmpeg::probe_size("ffmpeg".as_ref(), &input, Duration::from_secs(20));
    let screen = Size::new(640, 400);
    assert_eq!(source_size, Some(screen));
    let size = ffmpeg::fit_inside(screen, Size::new(320, 240));
    for (size, fit) in [(size, Fit::Stretch), (screen, Fit::Exact)] {
        let lab = Lab::new();
        let output = Output::Raw { size, fps: 30, pixels: PixelFormat::Bgra, fit };
        let _source = start(&lab, Config::new(input.clone(), output));
        for _ in 0..5 {
            assert_eq!(lab.frame().size(), size);
        }
    }
    server.kill().expect("Xvfb runs");
    server.wait().expect("Xvfb ended");
}

#[cfg(target_os = "linux")]
#[test]
fn child_ends_when_we_are_killed() {
    // We, here, are a second test process: the one that runs `owner_of_a_child` below.
    use std::io::{BufRead, BufReader};
    let mut owner = std::process::Command::new(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", "ffmpeg::owner_of_a_child", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the test binary starts");
    let stdout = owner.stdout.take().expect("a pipe");
    let pid = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.rsplit_once("child ")?.1.parse::<u32>().ok())
        .expect("the owner tells its child's process id");
    assert!(is_running(pid));
    owner.kill().expect("the owner runs");
    owner.wait().expect("the owner ended");
    until("the child's end", || !is_running(pid));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "runs inside `child_ends_when_we_are_killed`, waits to be killed"]
#[allow(clippy::print_stdout, reason = "the process id goes to the outer test by stdout")]
fn owner_of_a_child() {
    let lab = Lab::new();
    let source = start(&lab, raw("testsrc2=size=64x48:rate=30", Size::new(64, 48), PixelFormat::Bgra, Fit::Exact));
    lab.event(0, "first_frame_ingested");
    println!("child {}", source.child_pid().expect("a child runs"));
    std::thread::sleep(Duration::from_secs(60));
}
