//! aiortc, a WebRTC implementation of others, on either side of WHIP and WHEP.

use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::process::Signal;

use crate::lab::browser::{PLAYER, watch};
use crate::lab::http;
use crate::lab::peers::{BARS, Program, Report, played, python};
use crate::lab::server::program;
use crate::lab::{PATIENCE, chromium, quiet, serve, until};

/// A browser reads the timecode of what aiortc publishes, and aiortc the picture's colours and the tone.
async fn is_seen_and_heard(codec: &str) {
    let _machine = quiet().await;
    let server = serve(&["cube"]).start();
    let mut publish = python("publish.py");
    publish.args([&server.url("/whip/live"), "--codec", codec, "--pitch-hz", "660"]);
    let publisher = Program::start(publish);
    until("the stream is live", PATIENCE, || {
        let streams = server.get("/api/v1/streams").json();
        let live = streams["streams"].as_array()?.iter().find(|stream| stream["name"] == "live")?.clone();
        (live["health"] == "live" && live["published"].as_u64() > Some(10)).then_some(())
    });
    let browser = chromium().await;
    let page = watch(&browser, &server, "live").await;
    let count = format!(
        "void {PLAYER}.onFrame(s => {{ if (s.timecode_latency_ms !== null) window.timed = (window.timed ?? 0) + 1 }})"
    );
    page.evaluate(&count).await.unwrap();
    page.evaluate(&format!("void {PLAYER}.toggleMute()")).await.unwrap();
    let mut view = python("view.py");
    view.args([&server.url("/whep/live"), "--seconds", "3"]);
    let report = Program::start(view).report();
    report.check_picture(45, BARS);
    report.check_timecodes();
    report.check_age(Duration::from_secs(1));
    report.check_tone(660.0);
    page.wait_until("window.timed > 30", PATIENCE).await.unwrap();
    let heard = format!(
        "(async () => [...(await {PLAYER}.peerConnection.getStats()).values()].find(s => s.type === 'inbound-rtp' && s.kind === 'audio')?.totalAudioEnergy > 0)()"
    );
    page.wait_until(&heard, PATIENCE).await.unwrap();
    let stream = server.stream("live");
    assert_eq!((&stream["codec"], &stream["encoder_starts"]), (&codec.into(), &0.into()), "passed on: {stream}");
    publisher.end(Signal::TERM);
    until("aiortc's sessions are gone", PATIENCE, || (server.peers().len() == 1).then_some(()));
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_publishes_h264() {
    is_seen_and_heard("h264").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_publishes_vp8() {
    is_seen_and_heard("vp8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_sees_and_hears_the_pattern() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).size(640, 360).start();
    let mut view = python("view.py");
    view.args([&server.url("/whep/pattern"), "--seconds", "5"]);
    let report = Program::start(view).report();
    report.check_picture(90, BARS);
    report.check_timecodes();
    report.check_age(Duration::from_secs(1));
    report.check_beep();
    until("the session is gone", PATIENCE, || server.peers().is_empty().then_some(()));
}

/// Our WHIP client and a server of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_aiortc_decodes_what_we_publish_and_hears_the_end() {
    let _machine = quiet().await;
    let mut serve = python("server.py");
    serve.args(["--token", "s3cret"]);
    let server = Program::start(serve);
    let url = server.line();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let told = || Report(http::request(address, "GET", "/report", &[], &[]).unwrap().json());

    let mut publish = program();
    publish.args(["publish", "--source", "pattern", "--whip", &format!("{url}/whip/live"), "--token", "s3cret"]);
    publish.env("LIGHTPIPE_VIDEO_WIDTH", "640").env("LIGHTPIPE_VIDEO_HEIGHT", "360");
    let publisher = Program::start(publish);
    until("five seconds of picture and sound", PATIENCE, || {
        let report = told();
        (report.pictures() >= 120 && report.sound_seconds() > 4.0).then_some(())
    });
    let before = told();
    assert_eq!((&before.0["state"], &before.0["deleted"]), (&"connected".into(), &false.into()), "{before:?}");
    publisher.end(Signal::TERM);
    let report = told();
    assert_eq!((&report.0["state"], &report.0["deleted"]), (&"closed".into(), &true.into()), "{report:?}");
    report.check_picture(120, BARS);
    report.check_timecodes();
    report.check_age(Duration::from_secs(1));
    report.check_beep();
    server.end(Signal::TERM);
}

/// Our WHEP client and a server of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_server_on_aiortc_is_played() {
    let _machine = quiet().await;
    let server = Program::start(python("server.py"));
    let endpoint = format!("{}/whep/live", server.line());
    let report = played(&endpoint, Ipv4Addr::LOCALHOST, BARS.len());
    report.check_picture(60, BARS);
    report.check_timecodes();
    report.check_tone(660.0);
    server.end(Signal::TERM);
}

/// It offers, we begin the DTLS handshake.
#[cfg(feature = "rsa")]
#[tokio::test(flavor = "multi_thread")]
async fn aiortc_with_an_rsa_certificate_sees_the_pattern() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).size(640, 360).start();
    let mut view = python("view.py");
    view.args([&server.url("/whep/pattern"), "--seconds", "3", "--rsa"]);
    let report = Program::start(view).report();
    report.check_picture(30, BARS);
    report.check_timecodes();
}

/// We offer, it begins the DTLS handshake.
#[cfg(feature = "rsa")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_an_rsa_certificate_decodes_what_we_publish() {
    let _machine = quiet().await;
    let mut serve = python("server.py");
    serve.arg("--rsa");
    let server = Program::start(serve);
    let url = server.line();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut publish = program();
    publish.args(["publish", "--source", "pattern", "--whip", &format!("{url}/whip/live")]);
    publish.env("LIGHTPIPE_VIDEO_WIDTH", "640").env("LIGHTPIPE_VIDEO_HEIGHT", "360");
    let publisher = Program::start(publish);
    let report = until("a second of pictures", PATIENCE, || {
        let report = Report(http::request(address, "GET", "/report", &[], &[]).unwrap().json());
        (report.pictures() >= 30).then_some(report)
    });
    report.check_picture(30, BARS);
    publisher.end(Signal::TERM);
    server.end(Signal::TERM);
}
