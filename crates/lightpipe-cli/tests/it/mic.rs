//! `mic`: a PulseAudio server with a null sink in place of hardware, whose monitor is listened to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::lab::browser::watch;
use crate::lab::hear::{hear, wait_tone};
use crate::lab::server::program;
use crate::lab::{PATIENCE, Server, chromium, quiet, serve, shared, until};

/// A PulseAudio server of its own. Dropping it ends it, by its process id.
struct Pulse {
    daemon: Child,
    folder: TempDir,
}

/// Something that plays a tone; ended on drop.
struct Tone(Child);

impl Drop for Tone {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Pulse {
    /// Starts it without any device and waits until it answers.
    #[track_caller]
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket_in(folder.path());
        let mut daemon = with_own_files(Command::new("pulseaudio"), folder.path());
        daemon.args(["-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1", "--disable-shm=yes"]);
        daemon.args(["--log-target=stderr", "--log-level=error", "--load"]);
        daemon.arg(format!("module-native-protocol-unix auth-anonymous=1 socket={}", socket.display()));
        let daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let pulse = Self { daemon: daemon.expect("PulseAudio is installed"), folder };
        until("an answer of PulseAudio", PATIENCE, || pulse.pactl(&["info"]));
        pulse
    }

    fn address(&self) -> String {
        format!("unix:{}", socket_in(self.folder.path()).display())
    }

    /// What `pactl` says, when it succeeds.
    fn pactl(&self, args: &[&str]) -> Option<String> {
        let mut pactl = with_own_files(Command::new("pactl"), self.folder.path());
        let output = pactl.args(args).env("PULSE_SERVER", self.address()).stderr(Stdio::null()).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Adds an output that nobody hears; answers what takes it away.
    #[track_caller]
    fn add_sink(&self, name: &str) -> String {
        self.pactl(&["load-module", "module-null-sink", &format!("sink_name={name}")]).expect("a null sink")
    }

    /// Plays a tone into an output.
    fn play(&self, sink: &str, hz: u32) -> Tone {
        let mut ffmpeg = with_own_files(Command::new("ffmpeg"), self.folder.path());
        ffmpeg.args(["-v", "error", "-re", "-f", "lavfi", "-i", &format!("sine=frequency={hz}:sample_rate=48000")]);
        ffmpeg.args(["-f", "pulse", "-device", sink, "tone"]).env("PULSE_SERVER", self.address());
        Tone(ffmpeg.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("FFmpeg is installed"))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        _ = self.daemon.kill();
        _ = self.daemon.wait();
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("native")
}

/// Nothing of the machine's own PulseAudio is read or written.
fn with_own_files(mut command: Command, folder: &Path) -> Command {
    command.env("HOME", folder).env("XDG_RUNTIME_DIR", folder).env("PULSE_RUNTIME_PATH", folder);
    command.env_remove("DISPLAY").env_remove("DBUS_SESSION_BUS_ADDRESS");
    command
}

#[track_caller]
fn wait_audio(server: &Server, stream: &str, health: &str) -> Value {
    until(&format!("sound of {stream} is {health}"), PATIENCE, || {
        let audio = server.stream(stream)["audio"].clone();
        (audio["health"] == health).then_some(audio)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_hears_what_an_output_plays_and_again_after_it_was_gone() {
    let _machine = quiet().await;
    let pulse = Pulse::start();
    let module = pulse.add_sink("speaker");
    let tone = pulse.play("speaker", 440);
    let server =
        serve(&["me=pattern", "me=mic:speaker", "talk=mic:monitor"]).env("PULSE_SERVER", &pulse.address()).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "me").await;
    hear(&page).await;
    wait_tone(&page, 440.0).await;
    assert_eq!(server.stream("me")["source"], "pattern + mic:speaker", "one stream of two sources");
    let audio = wait_audio(&server, "me", "live");
    assert!(audio["drift_ppm"].is_number(), "a device has a clock of its own: {audio}");
    let talk = server.stream("talk");
    assert_eq!((&talk["codec"], &talk["health"]), (&Value::Null, &"live".into()), "sound alone: {talk}");
    let listening = browser.open(&server.url("/watch/talk")).await.unwrap();
    listening
        .wait_until("document.querySelector('lightpipe-player').state.state === 'playing'", PATIENCE)
        .await
        .unwrap();
    hear(&listening).await;
    wait_tone(&listening, 440.0).await;

    // The output goes: pictures go on, and the stream says what is missing.
    let shown = server.stream("me")["published"].as_u64().unwrap();
    pulse.pactl(&["unload-module", &module]).unwrap();
    drop(tone);
    let gone = wait_audio(&server, "me", "failed");
    let reason = gone["reason"].as_str().unwrap();
    assert!(reason.contains("audio input"), "{reason}");
    let lost = until("a reason that names what is there", PATIENCE, || {
        let reason = server.stream("me")["audio"]["reason"].as_str().map(str::to_owned);
        reason.filter(|reason| reason.contains("no audio input or output \"speaker\""))
    });
    assert!(lost.contains("lightpipe devices"), "{lost}");
    until("pictures without sound", PATIENCE, || {
        let stream = server.stream("me");
        (stream["health"] == "live" && stream["published"].as_u64().unwrap() > shown + 30).then_some(())
    });
    // It comes back.
    pulse.add_sink("speaker");
    let _tone = pulse.play("speaker", 880);
    wait_audio(&server, "me", "live");
    wait_tone(&page, 880.0).await;
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_lists_inputs_and_monitors() {
    let _machine = shared().await;
    let pulse = Pulse::start();
    pulse.add_sink("speaker");
    let list = |json: &[&str]| {
        let output = program().arg("devices").args(json).env("PULSE_SERVER", pulse.address()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let devices: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let monitor = devices["devices"].as_array().unwrap().iter().find(|device| device["kind"] == "monitor").unwrap();
    assert_eq!((&monitor["id"], &monitor["name"]), (&"speaker.monitor".into(), &"Monitor of Null Output".into()));
    assert!(list(&[]).contains("speaker.monitor"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_of_sound_the_reason_says_what_helps() {
    let _machine = shared().await;
    let server =
        serve(&["talk=mic"]).env("PULSE_SERVER", "unix:/nowhere/native").env("XDG_RUNTIME_DIR", "/nowhere").start();
    let stream = until("a reason", PATIENCE, || Some(server.stream("talk")).filter(|s| s["health"] == "failed"));
    let reason = stream["reason"].as_str().unwrap();
    assert!(reason.starts_with("no PulseAudio or PipeWire server answers") && reason.contains("start one"), "{reason}");
    let exited = server.wait_event(0, "audio_exited");
    assert_eq!(exited["retry_in_ms"], 100, "tried again as children are");
}
