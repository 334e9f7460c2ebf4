//! The RTP clock against the wall clock, whole pictures, no freeze: spec.md §11, "fixed 33 ms sample duration on a
//! 60 fps source: the RTP clock runs twice as fast", and "bandwidth estimate switched on but never given a desired rate:
//! one third of the frames".

use serde_json::Value;

use crate::lab::browser::{PLAYER, watch};
use crate::lab::{PATIENCE, chromium, quiet, serve, ticks};

/// Tolerance of a clock rate.
const TENTH_OF_A_PERCENT: f64 = 0.001;

/// Notes every shown picture for some seconds, and the statistics before and after.
fn measuring(seconds: u64) -> String {
    format!(
        "(async () => {{
  const player = {PLAYER};
  const inbound = async () => [...(await player.peerConnection.getStats()).values()].find(s => s.type === 'inbound-rtp' && s.kind === 'video');
  const samples = [];
  const before = await inbound();
  const stop = player.onFrame(s => samples.push([s.metadata.receiveTime, s.metadata.rtpTimestamp, s.timecode]));
  await new Promise(resolve => setTimeout(resolve, {seconds} * 1000));
  stop();
  return {{ samples, before, after: await inbound() }};
}})()"
    )
}

/// How fast `value` runs against `at`, both in ms. Delays on a busy machine are only ever positive, so the least delayed
/// samples of the first and of the last third are compared: their error is a fraction of a millisecond in seconds.
fn rate(points: &[(f64, f64)]) -> f64 {
    let third = points.len() / 3;
    let least_delayed = |part: &[(f64, f64)]| *part.iter().min_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1))).unwrap();
    let (first, last) = (least_delayed(&points[..third]), least_delayed(&points[points.len() - third..]));
    (last.1 - first.1) / (last.0 - first.0)
}

#[track_caller]
fn check(fps: f64, measured: &Value) -> (f64, f64) {
    let delta =
        |key: &str| measured["after"][key].as_f64().unwrap_or(0.0) - measured["before"][key].as_f64().unwrap_or(0.0);
    let seconds = delta("timestamp") / 1000.0;
    let (received, decoded) = (delta("framesReceived"), delta("framesDecoded"));
    let (freezes, lost) = (delta("freezeCount"), delta("packetsLost"));

    let samples: Vec<(f64, u32, Option<f64>)> = measured["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s[0].as_f64().unwrap(), u32::try_from(s[1].as_u64().unwrap()).unwrap(), s[2].as_f64()))
        .collect();
    let (_, first, _) = samples[0];
    let rtp_ms = |rtp: u32| f64::from(ticks(first, rtp)) / 90.0;
    let by_wall = rate(&samples.iter().map(|(at, rtp, _)| (*at, rtp_ms(*rtp))).collect::<Vec<_>>());
    let strips: Vec<(f64, f64)> =
        samples.iter().filter_map(|(_, rtp, strip)| Some(((*strip)?, rtp_ms(*rtp)))).collect();
    let by_capture = rate(&strips);
    println!(
        "{fps} fps: {seconds:.2} s, received {received}, decoded {decoded}, freezes {freezes}, lost {lost}; rtp/wall {by_wall:.6}, \
         rtp/capture {by_capture:.6}, {} callbacks, {} strips",
        samples.len(),
        strips.len()
    );
    assert!(
        strips.len() * 10 >= samples.len() * 9,
        "{fps} fps: the strip is readable in {} of {}",
        strips.len(),
        samples.len()
    );
    assert!((by_capture - 1.0).abs() < TENTH_OF_A_PERCENT, "{fps} fps: RTP runs at {by_capture} of the capture clock");
    // A machine that others starve does not draw every picture in time, and the encoder's backlog grows and shrinks: then
    // arrivals measure the machine, and a pause says nothing about us.
    let published = measured["published"].as_f64().unwrap();
    let kept_pace = published >= 0.98 * fps * seconds;
    let tolerance = if kept_pace { TENTH_OF_A_PERCENT } else { 10.0 * TENTH_OF_A_PERCENT };
    assert!((by_wall - 1.0).abs() < tolerance, "{fps} fps: RTP runs at {by_wall} of the wall clock");
    // Single pictures: the RTP distance is the capture distance, never a nominal one. Strips carry whole milliseconds; and
    // the picture that a late callback reads may be a newer one than the callback tells of.
    let honest =
        strips.windows(2).filter(|pair| ((pair[1].1 - pair[0].1) - (pair[1].0 - pair[0].0)).abs() <= 1.1).count();
    assert!(honest * 2 >= strips.len(), "{fps} fps: {honest} of {} distances are the captured ones", strips.len());
    assert!(decoded >= 0.99 * received, "{fps} fps: decoded {decoded} of {received}");
    // The server's count was taken around the browser's: a tenth of a second more.
    assert!(received >= 0.99 * (published - fps / 10.0), "{fps} fps: received {received} of {published}");
    assert_eq!(lost, 0.0, "{fps} fps: lost packets");
    assert!(freezes == 0.0 || !kept_pace, "{fps} fps: {freezes} freezes");
    (decoded, seconds)
}

/// Answers pictures decoded and in how many seconds.
async fn measure(fps: &str, seconds: u64) -> (f64, f64) {
    let server = serve(&["pattern"]).size(1280, 720).args(&["--fps", fps]).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    // The browser's first second holds its start-up; the clock needs none of it.
    page.wait_until(&format!("{PLAYER}.stats.frames_decoded > 1.5 * {fps}"), PATIENCE).await.unwrap();
    let published = || server.stream("pattern")["published"].as_u64().unwrap();
    let before = published();
    let mut measured = page.evaluate(&measuring(seconds)).await.unwrap();
    measured["published"] = (published() - before).into();
    let result = check(fps.parse().unwrap(), &measured);
    browser.close().await.unwrap();
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rtp_clock_follows_the_wall_clock_at_24_fps() {
    let _machine = quiet().await;
    measure("24", 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rtp_clock_follows_the_wall_clock_at_30_fps() {
    let _machine = quiet().await;
    measure("30", 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rtp_clock_follows_the_wall_clock_at_60_fps_and_does_not_run_twice_as_fast() {
    let _machine = quiet().await;
    measure("60", 8).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: two minutes"]
async fn a_minute_at_30_and_at_60_fps_has_every_picture_and_no_freeze() {
    let _machine = quiet().await;
    for fps in ["30", "60"] {
        let (decoded, seconds) = measure(fps, 60).await;
        // Only a machine that nobody else uses keeps this up; `check` has judged freezes then.
        assert!(decoded >= 0.99 * fps.parse::<f64>().unwrap() * seconds, "{decoded} in {seconds} s at {fps} fps");
    }
}
