//! `lightpipe bench fanout`: what a viewer costs.
//!
//! One server in this process sends one encoded stream to N native viewers in another process, over real ICE, DTLS and
//! SRTP on loopback. The media threads' CPU time is divided by the packets that they sent, and set beside the floor measured in the same run:
//! encrypting and handing over as many packets to as many sleeping receivers, without anything else. Kernel time is in both figures.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, bail};
use lightpipe_media::{AccessUnit, Outlet};
use serde_json::{Value, json};

use super::machine::Machine;
use super::viewers::Counted;
use super::{cpu, floor};
use crate::cli::FanoutFlags;
use crate::output;

/// After the last handshake, before measuring: connectivity checks and estimates settle.
const SETTLE: Duration = Duration::from_secs(2);

/// Payload of the floor's packets; an ordinary packet of this stream, checked against the run's own mean in the report.
const FLOOR_PACKET_BYTES: usize = 1050;

/// How long the floor is measured.
const FLOOR_SECONDS: u32 = 4;

/// Keeps the encoder running while memory is read, so that its buffers do not count as a viewer's.
struct Nobody;

impl Outlet for Nobody {
    fn deliver(&self, _: &Arc<AccessUnit>) {}
}

/// Ends the viewers with the measurement, however it ends.
struct Viewers(Child);

impl Drop for Viewers {
    fn drop(&mut self) {
        // Already gone in the ordinary case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(flags: &FanoutFlags) -> anyhow::Result<ExitCode> {
    let machine = Machine::this();
    let packets_per_picture =
        (f64::from(flags.bitrate) * 1000.0 / 8.0 / 30.0 / FLOOR_PACKET_BYTES as f64).round().max(1.0) as usize;
    let mut runs = Vec::new();
    for viewers in &flags.viewers {
        output::note(format_args!("measuring {viewers} viewers for {} s …", flags.seconds));
        // Beside each run, so that a machine that slows down slows both.
        let load = floor::Load {
            viewers: *viewers,
            packets: packets_per_picture,
            bytes: FLOOR_PACKET_BYTES,
            seconds: FLOOR_SECONDS,
        };
        let floor = floor::measure(load)?;
        runs.push(measure(flags, *viewers, floor)?);
    }
    if flags.json {
        let report = json!({ "bench": "fanout", "machine": machine, "bitrate_kbps": flags.bitrate, "estimate": flags.estimate, "seconds": flags.seconds, "runs": runs });
        output::line(serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&machine);
    output::line(format_args!(
        "1280x720, 30 fps, {} kbit/s, {} s each, bandwidth estimation {}",
        flags.bitrate,
        flags.seconds,
        if flags.estimate { "on" } else { "off" }
    ));
    output::line("");
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|r| {
            let number = |value: &Value, digits: usize| {
                value.as_f64().map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"))
            };
            vec![
                r["viewers"].to_string(),
                number(&r["packets_per_second"], 0),
                number(&r["cpu_us_per_packet"], 2),
                number(&r["floor_us_per_packet"], 2),
                number(&r["ratio_to_floor"], 2),
                number(&r["cpu_ms_per_viewer_second"], 2),
                number(&r["segments_per_call"], 1),
                number(&r["rss_kib_per_viewer"], 0),
                r["encoders"].to_string(),
                format!("{}/{}", r["lost_packets"], r["undecodable"]),
            ]
        })
        .collect();
    output::table(
        &["viewers", "packets/s", "µs/packet", "floor", "ratio", "ms/viewer·s", "run", "KiB/viewer", "encodes", "lost"],
        &rows,
    );
    Ok(ExitCode::SUCCESS)
}

fn measure(flags: &FanoutFlags, viewers: usize, floor: Duration) -> anyhow::Result<Value> {
    let server = super::pattern_server("pattern", |config| {
        config.video.bitrate_kbps = flags.bitrate;
        config.webrtc.estimate_bandwidth = flags.estimate;
    })?;
    let stream = server.streams().find("pattern").context("pattern")?;
    let nobody = stream.subscribe(Arc::new(Nobody));
    std::thread::sleep(SETTLE);
    let before_viewers = cpu::resident_bytes();
    let this = std::env::current_exe()?;
    let seconds = flags.seconds + 2 * SETTLE.as_secs();
    let mut child = Viewers(
        Command::new(this)
            .args(["bench", "viewers", "--stream", "pattern", "--url", &server.url()])
            .args(["--count", &viewers.to_string(), "--seconds", &seconds.to_string()])
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()?,
    );
    let mut lines = BufReader::new(child.0.stdout.take().context("a pipe was asked for")?).lines();
    match lines.next().transpose()?.as_deref() {
        Some("ready") => {}
        other => bail!("the viewers' process failed: {}", other.unwrap_or("it said nothing")),
    }
    drop(nobody);
    std::thread::sleep(SETTLE);
    let counters = server.engine().counters();
    let snapshot = || (cpu::threads("media-"), cpu::threads("encode-"), stream.stats().published);
    // The threads add up their counters once a second; the peers' own are at most as old.
    let sent = || (counters.datagrams_sent.load(Relaxed), counters.send_calls.load(Relaxed));
    let (packets_before, calls_before) = sent();
    let (media_before, encode_before, published_before) = snapshot();
    std::thread::sleep(Duration::from_secs(flags.seconds));
    let (packets_after, calls_after) = sent();
    let (media_after, encode_after, published_after) = snapshot();
    let resident = cpu::resident_bytes();
    let counted: Counted = serde_json::from_str(&lines.next().context("the viewers' process ended early")??)?;
    let encoders = stream.stats().encoder_starts;
    server.stop();

    let packets = (packets_after - packets_before).max(1);
    let media = media_after.saturating_sub(media_before);
    let cpu_us = media.as_secs_f64() * 1e6 / packets as f64;
    let floor_us = floor.as_secs_f64() * 1e6;
    let wall = flags.seconds as f64;
    let rss = resident
        .zip(before_viewers)
        .map(|(after, before)| after.saturating_sub(before) as f64 / 1024.0 / viewers as f64);
    Ok(json!({
        "viewers": viewers,
        "packets_per_second": packets as f64 / wall,
        "mean_payload_bytes": counted.bytes as f64 / counted.packets.max(1) as f64,
        "cpu_us_per_packet": cpu_us,
        "floor_us_per_packet": floor_us,
        "ratio_to_floor": cpu_us / floor_us,
        "instructions_per_packet": null,
        "cpu_ms_per_viewer_second": media.as_secs_f64() * 1e3 / viewers as f64 / wall,
        "encode_cpu_ms_per_second": encode_after.saturating_sub(encode_before).as_secs_f64() * 1e3 / wall,
        "segments_per_call": packets as f64 / (calls_after - calls_before).max(1) as f64,
        "rss_kib_per_viewer": rss,
        "encoders": encoders,
        "published": published_after - published_before,
        "fewest_pictures": counted.fewest_pictures,
        "lost_packets": counted.lost_packets,
        "undecodable": counted.undecodable,
        "disconnected": counted.disconnected,
    }))
}
