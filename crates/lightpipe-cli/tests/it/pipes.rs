//! Any program's picture: raw, Annex-B and NUT from a pipe, told apart by themselves.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lightpipe_media::Size;

use crate::lab::{PATIENCE, Server, Viewer, serve, shared, until};

/// Four bands from top to bottom, so that size, order of channels and direction of rows all show.
const BANDS: [[u8; 3]; 4] = [[220, 30, 30], [30, 200, 30], [40, 40, 220], [220, 210, 40]];

fn picture(size: Size) -> Vec<u8> {
    let (width, height) = (size.width as usize, size.height as usize);
    let rows = (0..height).flat_map(|y| {
        let [r, g, b] = BANDS[y * 4 / height];
        [r, g, b, 255].repeat(width)
    });
    rows.collect()
}

#[track_caller]
fn assert_bands(viewer: &Viewer) {
    let (size, rgb) = viewer.decode();
    assert_eq!(size, Size::new(320, 180));
    for (n, expected) in BANDS.iter().enumerate() {
        let y = (2 * n + 1) * 180 / 8;
        for x in [20, 160, 300] {
            let at = (y * 320 + x) * 3;
            let got = &rgb[at..at + 3];
            let off = got.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off < 24, "band {n} at {x},{y}: {got:?} instead of {expected:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_rgba_on_stdin_reaches_a_viewer_in_its_colours() {
    let _machine = shared().await;
    let mut server = serve(&["-"]).with_stdin(Stdio::piped()).start();
    let mut pipe = server.take_stdin();
    let done = Arc::new(AtomicBool::new(false));
    let writing = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let picture = picture(Size::new(320, 180));
            while !done.load(Ordering::Relaxed) && pipe.write_all(&picture).is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(33)); // A renderer's pace.
            }
        }
    });
    let viewer = Viewer::join(&server, "stdin");
    viewer.wait_pictures(15, PATIENCE);
    assert_bands(&viewer);
    assert_eq!(server.stream("stdin")["health"], "live");
    done.store(true, Ordering::Relaxed);
    writing.join().unwrap();
    // The end of the input is told, not hidden.
    let stream = until("the end", PATIENCE, || Some(server.stream("stdin")).filter(|s| s["health"] == "failed"));
    assert!(stream["reason"].as_str().unwrap().len() > 10, "{stream}");
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_rgba_of_a_shell_command_reaches_a_viewer_in_its_colours() {
    let _machine = shared().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bands.rgba");
    std::fs::write(&file, picture(Size::new(320, 180))).unwrap();
    let server = serve(&[&format!("bands=exec:while cat {}; do sleep 0.03; done", file.display())]).start();
    let viewer = Viewer::join(&server, "bands");
    viewer.wait_pictures(15, PATIENCE);
    assert_bands(&viewer);
}

/// What FFmpeg writes when it is somebody else's child.
fn encoded(format: &str) -> String {
    format!(
        "ffmpeg -v error -re -f lavfi -i testsrc2=size=480x272:rate=30 -c:v libx264 -preset ultrafast -tune zerolatency -g 30 -bf 0 -f {format} -"
    )
}

#[track_caller]
fn check_encoded(server: &Server, stream: &str) {
    let viewer = Viewer::join(server, stream);
    let took = viewer.wait_pictures(60, PATIENCE);
    assert!(took.as_secs_f64() > 1.0, "30 pictures a second, not slices or NALs: 60 in {took:?}");
    assert_eq!(viewer.size(), Some(Size::new(480, 272)), "passed on as it came");
    let (_, rgb) = viewer.decode();
    assert!(rgb.iter().max().unwrap() - rgb.iter().min().unwrap() > 200, "a test picture has contrast");
    // One access unit, one timestamp: 33 ms apart, not one per slice.
    let recent = viewer.recent();
    let (first, last) = (recent[0], recent[recent.len() - 1]);
    let per_picture = f64::from(crate::lab::ticks(first.0, last.0)) / (recent.len() - 1) as f64;
    assert!((2400.0..3800.0).contains(&per_picture), "{per_picture} ticks per picture");
    assert_eq!(server.stream(stream)["encoder_starts"], 0, "nothing is encoded twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annexb_pipe_is_recognised_and_its_slices_are_not_pictures() {
    let _machine = shared().await;
    let server = serve(&[&format!("pipe=exec:{}", encoded("h264"))]).start();
    check_encoded(&server, "pipe");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nut_pipe_is_recognised() {
    let _machine = shared().await;
    let server = serve(&[&format!("pipe=exec:{}", encoded("nut"))]).start();
    check_encoded(&server, "pipe");
}

#[tokio::test(flavor = "multi_thread")]
async fn nut_on_stdin_is_recognised_too() {
    let _machine = shared().await;
    let mut words = encoded("nut");
    words.insert_str(0, "exec ");
    let mut child = Command::new("sh").args(["-c", &words]).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = child.stdout.take().unwrap();
    let server = serve(&["pipe=-"]).with_stdin(pipe.into()).start();
    check_encoded(&server, "pipe");
    child.kill().unwrap();
    child.wait().unwrap();
}
