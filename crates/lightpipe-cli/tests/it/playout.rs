//! `lightpipe play --live`: a stream in real time through the jitter buffer, on a good network and on a bad one with a clock that runs fast.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use lightpipe_testkit::netlab::{Lab, LinkConfig, SERVER_ADDR};
use serde_json::Value;

use crate::lab::server::program;
use crate::lab::{quiet, serve};

/// What a player told each second, and when it was heard.
struct Heard {
    figures: Vec<Value>,
    /// Samples of one channel.
    samples: usize,
    /// How long after the whole second of our clock each beep was read, ms.
    beeps: Vec<f64>,
}

/// Runs a player that writes sound, and listens.
#[track_caller]
fn listen(mut command: Command) -> Heard {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).map(|_| said)
    });
    let mut out = child.stdout.take().unwrap();
    let (mut samples, mut quiet, mut beeps) = (0, 0, Vec::new());
    let mut block = [0u8; 1920];
    // Each block is written when its first sample is to be heard.
    while out.read_exact(&mut block).is_ok() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        for (n, frame) in block.chunks_exact(4).enumerate() {
            samples += 1;
            if i16::from_le_bytes([frame[0], frame[1]]).unsigned_abs() < 650 {
                quiet += 1;
                continue;
            }
            if quiet > 24_000 {
                beeps.push((now + n as f64 / 48_000.0).fract() * 1e3);
            }
            quiet = 0;
        }
    }
    let status = child.wait().unwrap();
    let said = said.join().unwrap().unwrap();
    assert!(status.success(), "{said}");
    let figures: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(!figures.is_empty(), "{said}");
    Heard { figures, samples, beeps }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Change per minute of what was told each second, by least squares.
fn trend(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let (x, y) = ((n - 1.0) / 2.0, values.iter().sum::<f64>() / n);
    let over: f64 = values.iter().enumerate().map(|(at, value)| (at as f64 - x) * (value - y)).sum();
    60.0 * over / values.iter().enumerate().map(|(at, _)| (at as f64 - x).powi(2)).sum::<f64>()
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_is_heard_in_real_time_and_pictures_with_it() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let mut command = program();
    command.args(["play", &server.url("/whep/pattern"), "--host", "127.0.0.1"]);
    command.args(["--live", "--pcm", "--json", "--seconds", "10"]);
    let heard = listen(command);
    let last = heard.figures.last().unwrap();
    println!("beeps {:?}; {last}", heard.beeps);
    assert_eq!(last["state"], "playing", "{last}");
    assert!((460_000..=530_000).contains(&heard.samples), "ten seconds: {}", heard.samples);
    assert!(heard.beeps.len() >= 7, "{:?}", heard.beeps);
    // On a machine that nobody else uses it is 40 ms. Half of them, because one that others use is late now and then.
    assert!(median(&heard.beeps) < 120.0, "{:?}", heard.beeps);
    assert!(number(&last["concealed_share"]) < 0.05, "{last}");
    assert!(number(&last["pictures"]["shown"]) > 200.0, "{last}");
    assert!(number(&last["lip_sync_ms"]["p50"]) <= 20.0, "{last}");
}

/// Both machines are this one, but the server's clock runs 100 ppm fast, all of it: libfaketime stands between it and the system.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: two minutes"]
async fn two_minutes_with_a_clock_100_ppm_fast_and_30_ms_of_jitter() {
    let _machine = quiet().await;
    let heard = tokio::task::spawn_blocking(|| {
        let link = LinkConfig::default().with_delay_millis(10).with_jitter_millis(30);
        let lab = Lab::new(link.clone(), link).expect("root, ip and iptables make a lab");
        let mut server = lab.server_exec(env!("CARGO_BIN_EXE_lightpipe"));
        server.env("LD_PRELOAD", libfaketime()).env("FAKETIME", "+0 x1.0001");
        server.args(["--source", "pattern", "--port", "8080"]);
        server.args(["--host", &SERVER_ADDR.to_string(), "--width", "320", "--height", "180"]);
        let server = Killed(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let mut player = lab.client_exec(env!("CARGO_BIN_EXE_lightpipe"));
        // It waits for the server.
        player.args(["play", &format!("http://{SERVER_ADDR}:8080/whep/pattern")]);
        player.args(["--live", "--pcm", "--json", "--seconds", "120"]);
        let heard = listen(player);
        drop(server);
        heard
    })
    .await
    .unwrap();
    let last = heard.figures.last().unwrap();
    let told = |key: &str| -> Vec<i64> {
        heard.figures.iter().step_by(5).map(|figures| number(&figures[key]).round() as i64).collect()
    };
    println!("{} beeps; drift {:?}, target {:?} ms; {last}", heard.beeps.len(), told("drift_ppm"), told("target_ms"));
    let drift = number(&last["drift_ppm"]);
    assert!((drift - 100.0).abs() <= 10.0, "{last}");
    assert!(number(&last["lip_sync_ms"]["p95"]) <= 20.0, "{last}");
    assert!(number(&last["concealed_share"]) < 0.005, "{last}");
    let depths: Vec<f64> = heard.figures.iter().skip(20).map(|figures| number(&figures["depth_ms"])).collect();
    assert!(trend(&depths).abs() < 10.0, "{} ms a minute: {depths:?}", trend(&depths));
    assert!(heard.beeps.len() >= 115, "{:?}", heard.beeps);
    // Its second is 12 ms longer at the end: nothing else may creep.
    let (first, end) = (median(&heard.beeps[10..40]), median(&heard.beeps[heard.beeps.len() - 30..]));
    assert!((first - end).abs() < 25.0, "{first} ms at first, {end} at last");
}

/// Where the library is. Without its wrapper program, which would be one process more to end.
fn libfaketime() -> String {
    let out = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
    let out = out.expect("faketime is installed: cargo xtask test does that");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A process that is killed when this is dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn figures_of_a_conference_are_measured() {
    let mut command = program();
    command.args(["bench", "mix", "--talkers", "3", "--listeners", "5", "--seconds", "1", "--json"]);
    let out = command.stderr(Stdio::null()).output().unwrap();
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    // Fifty of each talker's mix, and fifty of the one that all listeners share.
    let encoded = told["encoded_packets"].as_u64().unwrap();
    assert!((180..=200).contains(&encoded), "{told}");
    assert!(number(&told["percent_of_a_core"]["all"]) > 0.0, "{told}");
}
