//! Programs of others that speak WHIP and WHEP: aiortc, GStreamer, Janus. `cargo xtask install nightly` puts what
//! is no package into the target folder.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lightpipe_testkit::netlab::{Lab, LinkConfig};
use rustix::process::Signal;
use serde_json::Value;

use super::server::{lines_of, program, send_signal, text_of};
use super::{PATIENCE, until};

/// The bars of `pattern`, and of the picture that `publish.py` sends.
pub(crate) const BARS: &[[u8; 3]] =
    &[[255, 255, 255], [191, 191, 0], [0, 191, 191], [0, 191, 0], [191, 0, 191], [191, 0, 0], [0, 0, 191], [0, 0, 0]];

/// The upper bars of GStreamer's `videotestsrc pattern=smpte100`.
pub(crate) const SMPTE: &[[u8; 3]] =
    &[[255, 255, 255], [255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255], [255, 0, 0], [0, 0, 255]];

/// A program of ours in `tests/peers`, on aiortc.
pub(crate) fn python(program: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let mut command = Command::new(installed("aiortc/bin/python", "cargo xtask install"));
    // Compiled modules would lie in the source tree.
    command.arg("-B").arg(folder.join(program));
    command
}

/// A pipeline of GStreamer, written as `gst-launch-1.0` reads it.
pub(crate) fn gstreamer(pipeline: &str) -> Command {
    let plugin = installed("gstreamer/plugins/libgstrswebrtc.so", "cargo xtask install nightly");
    let folder = plugin.parent().unwrap().parent().unwrap();
    let mut command = Command::new("gst-launch-1.0");
    command.arg("--no-fault").args(pipeline.split_ascii_whitespace());
    command.env("GST_PLUGIN_PATH", folder.join("plugins")).env("GST_REGISTRY", folder.join("registry.bin"));
    command
}

/// Runs a test on the address of a cable, inside a network namespace. The ICE library of GStreamer and Janus binds every socket to
/// an interface other than loopback, and so reaches nobody on 127.0.0.1.
pub(crate) fn on_a_cable(test: impl FnOnce() + Send) {
    let lab = Lab::new(LinkConfig::default(), LinkConfig::default()).expect("root, ip and iptables make a lab");
    lab.in_server(test).expect("inside the namespace");
}

fn installed(path: &str, by: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_lightpipe"));
    let found = program.ancestors().map(|folder| folder.join("peers").join(path)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("peers/{path} is not in the target folder: `{by}` puts it there"))
}

/// A running program. Dropping it kills it; what it said is shown when the test fails.
#[must_use = "the program is killed when this is dropped"]
pub(crate) struct Program {
    child: Child,
    line: String,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
}

impl Program {
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        Self::start_writing(command)
    }

    /// Starts a program whose output goes where the command says.
    #[track_caller]
    pub(crate) fn start_writing(mut command: Command) -> Self {
        let line = format!("{command:?}");
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let lines = child.stdout.take().map_or_else(|| channel().1, lines_of);
        let stderr = text_of(child.stderr.take().unwrap());
        Self { child, line, lines, stderr }
    }

    /// The next line of its output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{}: {error}", self.line))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.child.id(), signal);
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        let status = until(&format!("the end of {}", self.line), PATIENCE, || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.line);
    }

    /// Tells it to end, and waits for that.
    #[track_caller]
    pub(crate) fn end(self, signal: Signal) {
        self.signal(signal);
        self.finish();
    }

    /// Waits for its end and the report that it prints then.
    #[track_caller]
    pub(crate) fn report(self) -> Report {
        let json = self.line();
        self.finish();
        Report(serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            let said: String = self.lines.try_iter().map(|line| line + "\n").collect();
            eprintln!("--- {}\n{said}{}---", self.line, self.stderr.lock().unwrap());
        }
    }
}

/// What `lightpipe play` decodes of a server's stream in four seconds, 640×360, in so many bars.
#[track_caller]
pub(crate) fn played(endpoint: &str, host: Ipv4Addr, bars: usize) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let play = |what: &str, into: &str| {
        let mut play = program();
        play.args(["play", endpoint, what, "--seconds", "4", "--host", &host.to_string()]);
        play.stdout(File::create(file(into)).unwrap());
        Program::start_writing(play)
    };
    for player in [play("--raw", "pictures"), play("--pcm", "sound")] {
        player.finish();
    }
    let mut measure = python("measure.py");
    measure.args([file("pictures"), file("sound")]).args(["--format", "i420", "--columns", &bars.to_string()]);
    Program::start(measure).report()
}

/// What the meters in `tests/peers/common.py` say of decoded pictures and sound.
#[derive(Debug)]
pub(crate) struct Report(pub(crate) Value);

impl Report {
    pub(crate) fn pictures(&self) -> u64 {
        self.0["picture"]["count"].as_u64().unwrap_or(0)
    }

    pub(crate) fn sound_seconds(&self) -> f64 {
        self.0["sound"]["seconds"].as_f64().unwrap_or(0.0)
    }

    /// Enough pictures, of these colours.
    #[track_caller]
    pub(crate) fn check_picture(&self, at_least: u64, bars: &[[u8; 3]]) {
        assert!(self.pictures() >= at_least, "{self:?}");
        let colours: Vec<[f64; 3]> = serde_json::from_value(self.0["picture"]["colours"].clone()).unwrap();
        assert_eq!(colours.len(), bars.len(), "{self:?}");
        let near = |(seen, sent): (&[f64; 3], &[u8; 3])| {
            seen.iter().zip(sent).all(|(seen, sent)| (seen - f64::from(*sent)).abs() < 30.0)
        };
        assert!(colours.iter().zip(bars).all(near), "{colours:?} instead of {bars:?}");
    }

    /// Nearly every picture has a timecode; between the first and the last lies about what so many pictures take at 30 a second.
    #[track_caller]
    pub(crate) fn check_timecodes(&self) {
        let picture = &self.0["picture"];
        let (timecodes, span) = (picture["timecodes"].as_u64().unwrap(), picture["span_ms"].as_f64().unwrap());
        assert!(timecodes * 10 >= self.pictures() * 9, "{self:?}");
        let expected = self.pictures() as f64 * 1000.0 / 30.0;
        assert!((0.8..1.5).contains(&(span / expected)), "{span} ms instead of {expected}: {self:?}");
    }

    /// Pictures are younger than this, by their timecode.
    #[track_caller]
    pub(crate) fn check_age(&self, oldest: Duration) {
        let age = self.0["picture"]["age_ms"].as_f64().unwrap();
        assert!((0.0..oldest.as_secs_f64() * 1e3).contains(&age), "{self:?}");
    }

    /// A tone of this pitch at -12 dBFS, without a pause.
    #[track_caller]
    pub(crate) fn check_tone(&self, pitch_hz: f64) {
        self.check_sound(pitch_hz, 0.9..=1.0);
    }

    /// The beep of `pattern`: a tenth of each second.
    #[track_caller]
    pub(crate) fn check_beep(&self) {
        self.check_sound(1000.0, 0.05..=0.2);
    }

    #[track_caller]
    fn check_sound(&self, pitch_hz: f64, loud: std::ops::RangeInclusive<f64>) {
        let sound = |name: &str| self.0["sound"][name].as_f64().unwrap();
        assert!(self.sound_seconds() > 2.0, "{self:?}");
        assert!((sound("hz") - pitch_hz).abs() < 5.0, "{pitch_hz} Hz: {self:?}");
        assert!((0.2..0.35).contains(&sound("peak")), "-12 dBFS is 0.25: {self:?}");
        assert!(loud.contains(&sound("loud")), "{loud:?} of the time: {self:?}");
    }
}
