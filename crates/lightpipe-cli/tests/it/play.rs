//! `lightpipe play`: another server's stream in a file, and decoded in a pipe.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::browser::foreign_page;
use crate::lab::server::{program, run};
use crate::lab::{PATIENCE, chromium, quiet, serve, shared, until};

/// Length of one picture.
const PICTURE: f64 = 1.0 / 30.0;

/// What ffprobe finds in a file, every packet counted.
#[track_caller]
fn probed(path: &Path) -> Value {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-of", "json", "-show_format", "-show_streams", "-count_packets"]).arg(path);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// Plays the test picture into a file for so long, and looks at the file.
async fn a_file_is_right(seconds: u32) {
    let server = serve(&["pattern"]).start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pattern.mp4");
    let mut command = program();
    command.args([
        "play",
        &server.url("/whep/pattern"),
        "--host",
        "127.0.0.1",
        "--seconds",
        &seconds.to_string(),
        "-o",
    ]);
    let out = command.arg(&path).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("pattern.mp4: "), "{said}");
    let probe = probed(&path);
    let streams = probe["streams"].as_array().unwrap();
    let find = |kind: &str| streams.iter().find(|stream| stream["codec_type"] == kind).unwrap();
    let (video, audio) = (find("video"), find("audio"));
    assert_eq!((&video["codec_name"], &audio["codec_name"]), (&"h264".into(), &"opus".into()));
    assert_eq!((&video["width"], &video["height"]), (&320.into(), &180.into()));
    let (expected, pictures) = (f64::from(seconds), number(&video["nb_read_packets"]));
    // The end is asked for some milliseconds after the first picture came.
    for (what, duration) in
        [("file", &probe["format"]["duration"]), ("video", &video["duration"]), ("audio", &audio["duration"])]
    {
        let duration = number(duration);
        assert!((duration - expected).abs() < PICTURE * 1.5, "{what}: {duration} s of {expected}");
    }
    let of_pictures = number(&video["duration"]) - pictures * PICTURE;
    assert!(of_pictures.abs() < PICTURE, "{pictures} pictures in {} s", video["duration"]);
    let packets = number(&audio["nb_read_packets"]);
    assert!((packets - expected * 50.0).abs() <= 2.0, "{packets} packets of sound");

    // A browser plays it, to the end.
    let browser = chromium().await;
    let bytes = std::fs::read(&path).unwrap();
    let page = browser.open(&foreign_page("<video muted></video>".into())).await.unwrap();
    page.evaluate(&format!("void (window.file = new Uint8Array({}))", bytes.len())).await.unwrap();
    for (part, chunk) in bytes.chunks(1 << 18).enumerate() {
        let text: Vec<String> = chunk.iter().map(u8::to_string).collect();
        page.evaluate(&format!("void window.file.set([{}], {})", text.join(","), part << 18)).await.unwrap();
    }
    let show = "void (() => {
        const video = document.querySelector('video');
        video.src = URL.createObjectURL(new Blob([window.file], { type: 'video/mp4' }));
        video.playbackRate = 8;
        video.play();
    })()";
    page.evaluate(show).await.unwrap();
    let ended = "document.querySelector('video').ended && document.querySelector('video').videoWidth === 320";
    page.wait_until(ended, PATIENCE).await.unwrap();
    let length = page.evaluate("document.querySelector('video').duration").await.unwrap().as_f64().unwrap();
    assert!((length - expected).abs() < PICTURE * 1.5, "{length} s in Chromium");
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn five_seconds_into_a_file() {
    let _machine = quiet().await;
    a_file_is_right(5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: takes a minute"]
async fn a_minute_into_a_file() {
    let _machine = quiet().await;
    a_file_is_right(60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_recording_plays_but_for_its_last_second() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pattern.mp4");
    let mut command = program();
    command.args(["play", &server.url("/whep/pattern"), "--host", "127.0.0.1", "-o"]).arg(&path);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    server.wait_peers(1, PATIENCE);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    child.kill().unwrap();
    let lived = began.elapsed().as_secs_f64();
    child.wait().unwrap();
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-i"]).arg(&path).args(["-f", "null", "-"]);
    let out = decode.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let pictures = number(&probed(&path)["streams"][0]["nb_read_packets"]);
    assert!(pictures * PICTURE > lived - 1.5, "{pictures} pictures of {lived} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_played_is_said() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let (code, said) = run(program().args(["play", &server.url("/whep/nobody"), "--host", "127.0.0.1"]));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("refuses with 404") && said.contains("streams are: pattern"), "{said}");
    let nowhere = ["play", &server.url("/whep/pattern"), "--host", "127.0.0.1", "-o", "/nowhere/file.mp4"];
    let (code, said) = run(program().args(nowhere));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("cannot create /nowhere/file.mp4"), "{said}");
    let webm = tempfile::tempdir().unwrap().keep().join("pattern.webm");
    let (code, said) =
        run(program().args(["play", &server.url("/whep/pattern"), "--host", "127.0.0.1", "-o"]).arg(&webm));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("name the file .mp4"), "{said}");
    std::fs::remove_dir_all(webm.parent().unwrap()).unwrap();
    let (code, _) = run(program().args(["play", "pattern"]));
    assert_eq!(code, Some(2), "no URL");
}

/// A stream of another server is a source like any other: its viewers stay when that server goes and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_another_server_is_a_source() {
    let _machine = shared().await;
    let far = serve(&["pattern"]).start();
    let port = far.address().port();
    let source = format!("far=whep:{}", far.url("/whep/pattern"));
    let near = serve(&[&source]).start();
    let live = |what: &str| {
        until(what, PATIENCE, || (near.stream("far")["health"] == "live").then_some(()));
    };
    live("the stream is live");
    let viewer = crate::lab::Viewer::join(&near, "far");
    viewer.wait_pictures(20, PATIENCE);
    let stream = near.stream("far");
    assert_eq!((&stream["codec"], &stream["encoder_starts"]), (&"h264".into(), &0.into()), "passed on: {stream}");
    assert!(stream["audio"]["published"].as_u64() > Some(10), "{stream}");
    let clients = near.get("/api/v1/clients").json();
    assert_eq!(clients["clients"][0]["state"], "connected", "{clients}");

    drop(far); // kill -9
    until("the loss is told", PATIENCE, || (near.stream("far")["health"] == "failed").then_some(()));
    let reason = near.stream("far")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("fell silent") || reason.contains("no answer"), "{reason}");
    let _far = serve(&["pattern"]).on_port(port).start();
    live("the stream is live again");
    viewer.wait_pictures(20, PATIENCE);
    assert!(viewer.closed().is_none(), "the same session");
}
