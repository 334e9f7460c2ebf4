//! Any program's pipe.

use std::time::{Duration, Instant};

use lightpipe_media::stream::Health;
use lightpipe_media::{PixelFormat, Size};
use lightpipe_source::SourceHandle;
use lightpipe_source::exec::{self, Config};
use lightpipe_source::pipe::{PipeFormat, RawFormat};
use lightpipe_source::supervisor::{SourceError, Watchdog};

use crate::lab::{Lab, is_running, until};

const RAW: RawFormat = RawFormat { size: Size::new(64, 48), pixels: PixelFormat::Bgra };
const DETECT: PipeFormat = PipeFormat::Detect(RAW);
const FFMPEG: &str = "ffmpeg -loglevel error -re -f lavfi -i testsrc2=size=64x48:rate=30";

fn start(lab: &Lab, config: Config) -> Box<dyn SourceHandle> {
    exec::start(config, lab.sink.clone()).expect("a good configuration")
}

#[test]
fn what_a_program_writes_is_detected() {
    for (options, encoded) in [
        ("-pix_fmt bgr0 -f rawvideo -", false),
        ("-c:v libx264 -tune zerolatency -f h264 -", true),
        ("-c:v libx264 -tune zerolatency -f nut -", true),
    ] {
        let lab = Lab::new();
        let _source = start(&lab, Config::new(format!("{FFMPEG} {options}"), DETECT));
        lab.event(0, "first_frame_ingested");
        if encoded {
            assert!(lab.units(3).iter().all(|u| u.size == RAW.size));
            assert_eq!(lab.sink.frames.pushed(), 0);
        } else {
            assert_eq!(lab.frame().size(), RAW.size);
            assert_eq!(lab.sink.stream.stats().published, 0);
        }
    }
}

#[track_caller]
fn check_failure(command: &str, format: PipeFormat, expected: &[&str]) {
    let lab = Lab::new();
    let _source = start(&lab, Config::new(command, format));
    let reason = lab.failure();
    for part in expected {
        assert!(reason.contains(part), "{reason:?} lacks {part:?}");
    }
    until("the reason on the stream", || matches!(lab.health(), Health::Failed(r) if r == reason));
}

#[test]
fn failures_name_the_program_and_quote_it() {
    check_failure("echo 'camera is on fire' >&2; exit 3", DETECT, &["exited with code 3; it said: camera is on fire"]);
    check_failure("no-such-program-here", DETECT, &["exited with code 127", "not found"]);
    check_failure("head -c 1000000 /dev/zero | tr '\\0' 'x'; sleep 60", PipeFormat::Nut, &["bytes that are no NUT"]);
    check_failure(
        "head -c 1000000 /dev/zero | tr '\\0' 'x'; sleep 60",
        PipeFormat::AnnexB,
        &["bytes that are no H.264 in Annex-B"],
    );
    check_failure(
        "head -c 20000 /dev/zero",
        PipeFormat::Raw(RAW),
        &["ended inside a picture, after 7712 of 12288 bytes; is the picture size 64x48 right?"],
    );
    check_failure("head -c 24576 /dev/zero", DETECT, &["ended without an error"]);
    check_failure("kill -15 $$", DETECT, &["was killed by signal 15"]);
    check_failure(
        "echo one last word >&2; exec 1>&-; sleep 60",
        DETECT,
        &["closed its output and was killed; it said: one last word"],
    );
}

#[test]
fn no_command_is_refused() {
    let lab = Lab::new();
    let refused = exec::start(Config::new("  ", DETECT), lab.sink.clone());
    assert!(matches!(refused, Err(SourceError::NoCommand)));
}

fn impatient(command: &str, format: PipeFormat) -> Config {
    Config {
        watchdog: Watchdog { first_byte: Duration::from_millis(300), stall: Duration::from_millis(300) },
        ..Config::new(command, format)
    }
}

#[test]
fn child_that_never_writes_is_restarted() {
    let lab = Lab::new();
    let _source = start(&lab, impatient("echo waiting >&2; sleep 60", DETECT));
    let exited = lab.event(0, "ffmpeg_exited");
    let reason = lab.failure();
    assert!(reason.contains("wrote nothing for 0.3 s and was killed; it said: waiting"), "{reason}");
    lab.event(exited.seq, "ffmpeg_spawned");
}

#[test]
fn child_that_stalls_is_restarted_and_the_picture_comes_back() {
    let lab = Lab::new();
    let source = start(&lab, impatient("head -c 24576 /dev/zero; sleep 60", PipeFormat::Raw(RAW)));
    let first = lab.event(0, "ffmpeg_spawned");
    let exited = lab.event(0, "ffmpeg_exited");
    assert!(lab.failure().contains("wrote no picture for 0.3 s"), "{}", lab.failure());
    let took = exited.at.since(first.at);
    assert!(took < Duration::from_secs(3), "noticed after {took:?}");
    lab.event(exited.seq, "first_frame_ingested");
    assert!(source.child_pid().is_some());
}

#[test]
fn trickle_that_never_makes_a_picture_is_named() {
    let lab = Lab::new();
    let _source = start(&lab, impatient("while :; do printf x; sleep 0.02; done", PipeFormat::Raw(RAW)));
    let reason = lab.failure();
    assert!(reason.contains("bytes and no whole picture for 0.3 s"), "{reason}");
}

#[test]
fn everything_that_the_command_started_ends_with_the_handle() {
    let lab = Lab::new();
    let source = start(
        &lab,
        Config::new(
            "sleep 1000 & echo $! >&2; trap '' TERM; head -c 24576 /dev/zero; while :; do sleep 1; done",
            PipeFormat::Raw(RAW),
        ),
    );
    lab.event(0, "first_frame_ingested");
    let shell = source.child_pid().expect("a child runs");
    let group_of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(2)?.parse::<u32>().ok()
    };
    let members = || -> Vec<u32> {
        std::fs::read_dir("/proc")
            .expect("proc is mounted")
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid| is_running(*pid) && group_of(*pid) == Some(shell))
            .collect()
    };
    assert!(members().len() >= 2, "the shell and its sleep: {:?}", members());
    let asked = Instant::now();
    drop(source);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    // The kernel takes a moment from the signal to the end.
    until("the end of the group", || members().is_empty());
}
