//! GStreamer's elements for WHIP and WHEP, on either side. Their DTLS certificates are RSA, which takes our feature `rsa`.

use std::path::Path;
use std::process::Command;

use lightpipe_testkit::netlab::SERVER_ADDR;
use rustix::process::Signal;

use crate::lab::peers::{BARS, Program, Report, SMPTE, gstreamer, on_a_cable, played, python};
use crate::lab::server::program;
use crate::lab::{PATIENCE, Server, serve, until};

/// Where a server of GStreamer's listens. In a network namespace of its own every port is free.
fn address() -> String {
    format!("http://{SERVER_ADDR}:8190")
}

/// A test picture and a tone, as GStreamer makes them, into an element that sends them.
fn studio(element: &str, codec: &str) -> String {
    format!(
        "videotestsrc is-live=true pattern=smpte100 ! video/x-raw,width=640,height=360,framerate=30/1 \
         ! {element} name=ws stun-server=\"\" video-caps=video/x-{codec} \
         audiotestsrc is-live=true freq=660 volume=0.25 ! audio/x-raw,rate=48000,channels=2 ! ws."
    )
}

/// Files for raw pictures and sound, and what of a pipeline writes them.
struct Recording {
    folder: tempfile::TempDir,
}

impl Recording {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Ends of a pipeline that decode both tracks of the element `ws`.
    fn ends(&self) -> String {
        format!(
            "ws. ! video/x-raw ! videoconvert ! videoscale ! video/x-raw,format=RGB,width=640,height=360 ! filesink location={} \
             ws. ! audio/x-raw ! audioconvert ! audioresample ! audio/x-raw,format=S16LE,rate=48000,channels=2 ! filesink location={}",
            self.file("pictures"),
            self.file("sound")
        )
    }

    /// Waits for so many seconds of pictures, 30 of them each, and of sound.
    #[track_caller]
    fn wait(&self, seconds: u64) {
        let len = |name: &str| Path::new(&self.file(name)).metadata().map_or(0, |file| file.len());
        until(&format!("{seconds} s of picture and sound"), PATIENCE, || {
            (len("pictures") >= seconds * 30 * 640 * 360 * 3 && len("sound") >= seconds * 48_000 * 4).then_some(())
        });
    }

    #[track_caller]
    fn report(&self) -> Report {
        let mut measure = python("measure.py");
        measure.args([self.file("pictures"), self.file("sound")]);
        Program::start(measure).report()
    }
}

#[track_caller]
fn wait_gone(server: &Server) {
    until("all sessions are gone", PATIENCE, || server.peers().is_empty().then_some(()));
}

#[test]
#[ignore = "nightly: needs root, namespaces and GStreamer's plugin"]
fn whipclientsink_publishes_picture_and_sound() {
    on_a_cable(|| {
        for codec in ["h264", "vp8"] {
            let server = serve(&["cube"]).on_host(SERVER_ADDR).start();
            let element = format!("whipclientsink signaller::whip-endpoint={}", server.url("/whip/live"));
            let publisher = Program::start(gstreamer(&studio(&element, codec)));
            until("the stream is live", PATIENCE, || {
                let streams = server.get("/api/v1/streams").json();
                let live = streams["streams"].as_array()?.iter().find(|stream| stream["name"] == "live")?.clone();
                (live["health"] == "live" && live["published"].as_u64() > Some(10)).then_some(())
            });
            let stream = server.stream("live");
            assert_eq!(stream["codec"], codec, "{stream}");
            let mut view = python("view.py");
            view.args([&server.url("/whep/live"), "--seconds", "5", "--columns", "7"]);
            let report = Program::start(view).report();
            report.check_picture(90, SMPTE);
            report.check_tone(660.0);
            publisher.end(Signal::INT);
            wait_gone(&server);
        }
    });
}

#[test]
#[ignore = "nightly: needs root, namespaces and GStreamer's plugin"]
fn whepclientsrc_sees_and_hears_the_pattern() {
    on_a_cable(|| {
        let server = serve(&["pattern"]).size(640, 360).on_host(SERVER_ADDR).start();
        let recording = Recording::new();
        let viewer = Program::start(gstreamer(&format!(
            "whepclientsrc name=ws stun-server=\"\" signaller::whep-endpoint={} {}",
            server.url("/whep/pattern"),
            recording.ends()
        )));
        recording.wait(5);
        viewer.end(Signal::INT);
        wait_gone(&server);
        let report = recording.report();
        report.check_picture(120, BARS);
        report.check_timecodes();
        report.check_beep();
    });
}

/// Our WHIP client and GStreamer as the server.
#[test]
#[ignore = "nightly: needs root, namespaces and GStreamer's plugin"]
fn whipserversrc_decodes_what_we_publish() {
    on_a_cable(|| {
        let recording = Recording::new();
        let address = address();
        let server = Program::start(gstreamer(&format!(
            "whipserversrc name=ws stun-server=\"\" signaller::host-addr={address} {}",
            recording.ends()
        )));
        let mut publish: Command = program();
        publish.args(["publish", "--source", "pattern", "--whip", &format!("{address}/whip/endpoint")]);
        publish.env("LIGHTPIPE_VIDEO_WIDTH", "640").env("LIGHTPIPE_VIDEO_HEIGHT", "360");
        let publisher = Program::start(publish);
        recording.wait(5);
        publisher.end(Signal::TERM);
        server.end(Signal::INT);
        let report = recording.report();
        report.check_picture(120, BARS);
        report.check_timecodes();
        report.check_beep();
    });
}

/// Our WHEP client and GStreamer as the server.
#[test]
#[ignore = "nightly: needs root, namespaces and GStreamer's plugin"]
fn a_stream_of_whepserversink_is_played() {
    on_a_cable(|| {
        let address = address();
        let element = format!("whepserversink signaller::host-addr={address}");
        let server = Program::start(gstreamer(&studio(&element, "h264")));
        let report = played(&format!("{address}/whep/endpoint"), SERVER_ADDR, SMPTE.len());
        report.check_picture(60, SMPTE);
        report.check_tone(660.0);
        server.end(Signal::INT);
    });
}
