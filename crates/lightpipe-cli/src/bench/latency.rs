//! `lightpipe bench latency`: how old is the picture on a real browser's canvas?
//!
//! A server in this process sends `pattern`, whose pictures carry their capture time as a strip of blocks. A headless browser plays
//! it in our own player; the page reads the strip back from its canvas in `requestVideoFrameCallback` and compares it with the
//! clock, whose offset it knows by pings over the data channel. The screen's own scan-out is not in the figure.
//!
//! With `--through` the same picture comes from a child process, raw or encoded by FFmpeg: what each way into lightpipe costs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use lightpipe::Server;
use lightpipe_browser::{Browser, Kind, Options, Page};
use lightpipe_media::Histogram;
use serde_json::{Value, json};

use super::frames;
use super::machine::Machine;
use crate::cli::LatencyFlags;
use crate::{exit, output};

/// Before this, a fresh browser still compiles scripts and sizes its buffers.
const WARM_UP: Duration = Duration::from_secs(3);

/// The design's limits, milliseconds: up to 30 fps, and above.
const LIMIT_SENT_P95: f64 = 10.0;
const LIMIT_GLASS_P50: [f64; 2] = [20.0, 18.0];
const LIMIT_GLASS_P95: f64 = 35.0;
const LIMIT_JOIN_P50: f64 = 300.0;

pub(crate) fn run(flags: &LatencyFlags) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let machine = Machine::this();
    let mut runs = Vec::new();
    for fps in &flags.fps {
        output::note(format_args!("measuring {} s at {}x{}, {fps} fps …", flags.seconds, flags.width, flags.height));
        runs.push(runtime.block_on(measure(flags, *fps))?);
    }
    let missed: Vec<String> = runs.iter().flat_map(misses).collect();
    if flags.json {
        let report = json!({ "bench": "latency", "machine": machine, "browser": runs.first().map(|r| r["browser"].clone()), "runs": runs, "missed": missed });
        output::line(serde_json::to_string_pretty(&report)?);
    } else {
        print(&machine, &runs);
        for miss in &missed {
            output::line(format_args!("missed: {miss}"));
        }
    }
    Ok(if flags.gate && !missed.is_empty() { ExitCode::from(exit::FOUND) } else { ExitCode::SUCCESS })
}

async fn measure(flags: &LatencyFlags, fps: f64) -> anyhow::Result<Value> {
    let source = flags.through.map_or_else(|| Ok("pattern".to_owned()), |how| frames::pipeline(how, flags, fps))?;
    // Starting and stopping block; the runtime's other thread drives the browser meanwhile.
    let server = tokio::task::block_in_place(|| {
        super::pattern_server(&source, |config| {
            config.video.width = flags.width;
            config.video.height = flags.height;
            config.video.fps = fps;
        })
    })?;
    let kind = if flags.browser == "firefox" { Kind::Firefox } else { Kind::Chromium };
    let options = Options::default()
        .with_firefox_system_h264(true)
        // Firefox uses loopback addresses, and shows its own, only when told so.
        .with_firefox_pref("media.peerconnection.ice.loopback", "true")
        .with_firefox_pref("media.peerconnection.ice.obfuscate_host_addresses", "false")
        .with_command_timeout(Duration::from_secs(flags.seconds + 60));
    let browser = Browser::launch(kind, options).await?;
    let name = format!("{kind:?} {}", browser.version());
    let page = browser.open(&format!("{}/watch/pattern", server.url())).await?;
    page.wait_until("document.querySelector('lightpipe-player')?.stats?.frames_decoded > 10", Duration::from_secs(20))
        .await
        .context("the browser shows no picture")?;
    tokio::time::sleep(WARM_UP).await;
    let before = server.streams().find("pattern").context("pattern")?.stats().published;
    let seen = page.evaluate(&format!("({PROBE})({})", flags.seconds)).await.context("measuring in the page")?;
    let published = server.streams().find("pattern").context("pattern")?.stats().published - before;
    let stages = server_stages(&server);
    let joins = if flags.joins > 0 { Some(join(&page, flags.joins).await?) } else { None };
    browser.close().await?;
    tokio::task::block_in_place(|| server.stop());
    Ok(json!({
        "fps": fps,
        "through": flags.through.map(|how| format!("{how:?}").to_lowercase()),
        "size": format!("{}x{}", flags.width, flags.height),
        "browser": name,
        "seconds": seen["seconds"],
        "glass_to_canvas_ms": seen["latency_ms"],
        "by_rtp_timestamp_ms": seen["rtp_latency_ms"],
        "sender_ms": stages,
        "receiver_ms": seen["stages"],
        "frames": { "published": published, "decoded": seen["decoded"], "strips_read": seen["strips"], "freezes": seen["freezes"], "packets_lost": seen["lost"] },
        "rtp_clock_error_ppm": seen["rtp_error_ppm"],
        "clock_rtt_ms": seen["clock_rtt_ms"],
        "join_ms": joins,
    }))
}

/// Runs in the page: latency by the strip, frames decoded, and the RTP clock against the page's clock.
const PROBE: &str = r"async seconds => {
    const { measureTimecodeLatency } = await import('/player.js');
    const player = document.querySelector('lightpipe-player');
    const inbound = async () => {
        for (const report of (await player.peerConnection.getStats()).values()) if (report.type === 'inbound-rtp' && report.kind === 'video') return report;
        return {};
    };
    let first = null, last = null;
    const unsubscribe = player.onFrame(({ metadata }) => {
        if (metadata.rtpTimestamp === undefined) return;
        last = { at: metadata.receiveTime ?? performance.now(), rtp: metadata.rtpTimestamp };
        first ??= last;
    });
    const start = await inbound();
    const report = await measureTimecodeLatency(player, { seconds });
    const end = await inbound();
    unsubscribe();
    const { p50, p95, p99, min, max } = report.latency_ms;
    const ticks = first && last ? (last.rtp - first.rtp) >>> 0 : 0;
    const wall = first && last ? last.at - first.at : 0;
    return {
        latency_ms: { p50, p95, p99, min, max },
        rtp_latency_ms: report.rtp_latency_ms,
        stages: report.stages,
        strips: report.decoded_strips,
        decoded: end.framesDecoded - start.framesDecoded,
        lost: end.packetsLost - start.packetsLost,
        freezes: (end.freezeCount ?? 0) - (start.freezeCount ?? 0),
        rtp_error_ppm: wall > 0 ? (ticks / 90 / wall - 1) * 1e6 : null,
        clock_rtt_ms: report.clock_rtt_ms,
        seconds: report.seconds,
    };
}";

/// Joins while the page's own player watches: POST of the offer to the first decoded picture, milliseconds.
async fn join(page: &Page, times: usize) -> anyhow::Result<Value> {
    const JOIN: &str = r"async times => {
        const took = [];
        for (let n = 0; n < times; n++) {
            const pc = new RTCPeerConnection();
            const video = document.createElement('video');
            video.muted = true;
            pc.addTransceiver('video', { direction: 'recvonly' });
            pc.ontrack = e => { video.srcObject = new MediaStream([e.track]); video.play(); };
            await pc.setLocalDescription();
            const shown = new Promise(resolve => video.requestVideoFrameCallback(() => resolve(performance.now())));
            const from = performance.now();
            const response = await fetch('/whep/pattern', { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: pc.localDescription.sdp });
            await pc.setRemoteDescription({ type: 'answer', sdp: await response.text() });
            took.push((await shown) - from);
            await fetch(response.headers.get('Location'), { method: 'DELETE' });
            pc.close();
            await new Promise(resolve => setTimeout(resolve, 400));
        }
        return took;
    }";
    let took = page.evaluate(&format!("({JOIN})({times})")).await.context("joining in the page")?;
    let mut took: Vec<f64> = serde_json::from_value(took)?;
    took.sort_by(f64::total_cmp);
    let at = |q: f64| took.get(((took.len() as f64 * q).ceil() as usize).max(1) - 1).copied();
    Ok(json!({ "count": took.len(), "p50": at(0.5), "p95": at(0.95), "max": took.last() }))
}

fn percentiles(histogram: &Histogram) -> Value {
    let [p50, p95, p99] = histogram.percentiles_ms();
    json!({ "p50": p50, "p95": p95, "p99": p99 })
}

fn server_stages(server: &Server) -> Value {
    let Some(stream) = server.streams().find("pattern") else { return Value::Null };
    let stats = stream.stats();
    let peers = server.engine().peers();
    let (mut send, mut capture_to_sent) = (Histogram::default(), Histogram::default());
    for peer in &peers {
        send.merge(&peer.send);
        capture_to_sent.merge(&peer.capture_to_sent);
    }
    json!({
        "capture": percentiles(&stats.capture),
        "queue": percentiles(&stats.queue),
        "encode": percentiles(&stats.encode),
        "send": percentiles(&send),
        "capture_to_sent": percentiles(&capture_to_sent),
    })
}

fn misses(run: &Value) -> Vec<String> {
    let fps = run["fps"].as_f64().unwrap_or(0.0);
    let mut missed = Vec::new();
    let mut at_most = |what: &str, value: &Value, limit: f64| {
        if value.as_f64().is_none_or(|v| v > limit) {
            missed.push(format!("{fps} fps: {what} is {value}, the limit is {limit}"));
        }
    };
    at_most("capture to sent p95", &run["sender_ms"]["capture_to_sent"]["p95"], LIMIT_SENT_P95);
    at_most("glass to canvas p50", &run["glass_to_canvas_ms"]["p50"], LIMIT_GLASS_P50[usize::from(fps > 30.0)]);
    at_most("glass to canvas p95", &run["glass_to_canvas_ms"]["p95"], LIMIT_GLASS_P95);
    at_most("freezes", &run["frames"]["freezes"], 0.0);
    at_most("packets lost", &run["frames"]["packets_lost"], 0.0);
    if !run["rtp_clock_error_ppm"].is_null() {
        at_most("RTP clock error, ppm", &json!(run["rtp_clock_error_ppm"].as_f64().map(f64::abs)), 1000.0);
    }
    if !run["join_ms"].is_null() {
        at_most("join p50", &run["join_ms"]["p50"], LIMIT_JOIN_P50);
    }
    let (decoded, published) =
        (run["frames"]["decoded"].as_f64().unwrap_or(0.0), run["frames"]["published"].as_f64().unwrap_or(1.0));
    if decoded < published * 0.99 {
        missed.push(format!("{fps} fps: {decoded} of {published} frames decoded, the limit is 99 %"));
    }
    missed
}

fn print(machine: &Machine, runs: &[Value]) {
    output::line(machine);
    for run in runs {
        let ms = |value: &Value| value.as_f64().map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
        output::line("");
        output::line(format_args!(
            "{} at {} fps, {:.0} s, {}",
            run["size"].as_str().unwrap_or_default(),
            run["fps"],
            run["seconds"].as_f64().unwrap_or_default(),
            run["browser"].as_str().unwrap_or_default()
        ));
        let mut rows = Vec::new();
        for (label, key) in [
            ("capture", "capture"),
            ("queue", "queue"),
            ("encode", "encode"),
            ("packetize, pace, send", "send"),
            ("capture to kernel", "capture_to_sent"),
        ] {
            let stage = &run["sender_ms"][key];
            rows.push(vec![label.to_owned(), ms(&stage["p50"]), ms(&stage["p95"]), ms(&stage["p99"])]);
        }
        for (label, key) in
            [("network", "network"), ("jitter buffer", "jitter_buffer"), ("decode", "decode"), ("render", "render")]
        {
            rows.push(vec![label.to_owned(), ms(&run["receiver_ms"][key]), String::new(), String::new()]);
        }
        let glass = &run["glass_to_canvas_ms"];
        rows.push(vec!["glass to canvas".to_owned(), ms(&glass["p50"]), ms(&glass["p95"]), ms(&glass["p99"])]);
        output::table(&["stage (ms)", "p50", "p95", "p99"], &rows);
        let frames = &run["frames"];
        output::line(format_args!(
            "frames: {} published, {} decoded, {} strips read, {} freezes, {} packets lost; RTP clock off by {} ppm",
            frames["published"],
            frames["decoded"],
            frames["strips_read"],
            frames["freezes"],
            frames["packets_lost"],
            ms(&run["rtp_clock_error_ppm"])
        ));
        if !run["join_ms"].is_null() {
            let join = &run["join_ms"];
            output::line(format_args!(
                "{} joins, POST to first picture: p50 {} ms, p95 {} ms, max {} ms",
                join["count"],
                ms(&join["p50"]),
                ms(&join["p95"]),
                ms(&join["max"])
            ));
        }
    }
}
