//! What people hear: beeps that come with the flashes, and how old they are.

use std::collections::BTreeMap;

use lightpipe_browser::Page;
use serde_json::Value;

use crate::lab::browser::{PLAYER, watch};
use crate::lab::hear::{age_unheld, apart};
use crate::lab::{PATIENCE, Server, chromium, quiet, serve};

/// Notes the age of each flash when it is shown and of each beep when it leaves the jitter buffer, ms, by the whole second of the server's
/// clock at which both began. A flash is as old as the picture that shows it first, when that is given to the display: a busy page is
/// called a refresh later, but what it then sees is the same picture (unless the clock in the picture and its RTP time differ).
///
/// `MediaStreamTrackProcessor` gives out sound in the blocks in which the browser plays it. Each carries its time on a clock of
/// its own; the block that reached the page fastest ties that to the page's, so that a busy page makes no sound late.
const LISTEN: &str = "void (() => {
  const player = PLAYER, ages = window.ages = { flash: {}, beep: {}, told: {}, beeps: 0, peak: 0 };
  const server = at => at + performance.timeOrigin + player.serverOffsetMs;
  const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 8 });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  let lit = true;
  player.onFrame(sample => {
    const { videoWidth: w, videoHeight: h } = player.video;
    if (sample.timecode_latency_ms === null) return;
    context.drawImage(player.video, w * 0.88, h * 0.76, w * 0.05, h * 0.1, 0, 0, 8, 8);
    const now = context.getImageData(4, 4, 1, 1).data[1] > 128;
    const taken = server(sample.at_ms) - sample.timecode_latency_ms;
    const same = Math.abs(sample.rtp_latency_ms - sample.timecode_latency_ms) < 10;
    const calledAfter = same ? Math.max(sample.at_ms - sample.metadata.presentationTime, 0) : 0;
    if (!lit && now) ages.flash[Math.floor((taken + 1) / 1000)] = sample.timecode_latency_ms - calledAfter;
    lit = now;
  });
  const track = player.peerConnection.getReceivers().find(r => r.track.kind === 'audio').track;
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  let quietFor = 0, fastest = Infinity;
  (async () => {
    for (;;) {
      const { value: block, done } = await reader.read();
      if (done) return;
      fastest = Math.min(fastest, performance.now() - block.timestamp / 1000);
      const samples = new Float32Array(block.numberOfFrames);
      block.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
      for (let n = 0; n < samples.length; n += 1) {
        ages.peak = Math.max(ages.peak, Math.abs(samples[n]));
        if (Math.abs(samples[n]) < 0.02) { quietFor += 1; continue; }
        if (quietFor > 0.5 * block.sampleRate) {
          const played = server(block.timestamp / 1000 + fastest + n / block.sampleRate * 1000);
          const second = Math.floor(played / 1000);
          ages.beep[second] = played % 1000;
          ages.told[second] = player.stats.audio_latency_ms;
          ages.beeps += 1;
        }
        quietFor = 0;
      }
      block.close();
    }
  })();
})()";

/// Flash and beep of the same second, and how old the player said that sound is.
#[derive(Debug, Clone, Copy)]
struct Pair {
    second: u64,
    flash: f64,
    beep: f64,
    told: f64,
}

/// Unmutes, lets the sound settle (the browser's jitter buffer begins long and shortens itself by playing a little faster), and listens
/// for so many seconds.
async fn listen(page: &Page, settle: u64, seconds: u64) -> (Vec<Pair>, f64) {
    page.evaluate(&format!("void {PLAYER}.toggleMute()")).await.unwrap();
    page.wait_until(&format!("!{PLAYER}.video.muted && {PLAYER}.serverOffsetMs !== null"), PATIENCE).await.unwrap();
    page.evaluate(&LISTEN.replace("PLAYER", PLAYER)).await.unwrap();
    let end = settle + seconds;
    page.wait_until(&format!("ages.beeps >= {end}"), PATIENCE + std::time::Duration::from_secs(2 * end)).await.unwrap();
    let ages = page.evaluate("ages").await.unwrap();
    let by_second = |ages: &Value| -> BTreeMap<u64, f64> {
        let ages = ages.as_object().unwrap();
        ages.iter().map(|(second, age)| (second.parse().unwrap(), age.as_f64().unwrap_or(f64::NAN))).collect()
    };
    let [flashes, beeps, told] = ["flash", "beep", "told"].map(|kind| by_second(&ages[kind]));
    let first = *beeps.keys().next().unwrap();
    let both = beeps.iter().filter_map(|(second, beep)| {
        Some(Pair { second: *second, beep: *beep, flash: *flashes.get(second)?, told: told[second] })
    });
    (both.filter(|pair| pair.second >= first + settle).collect(), ages["peak"].as_f64().unwrap())
}

fn quantile(values: impl Iterator<Item = f64>, q: f64) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1]
}

/// Change of a value per minute, by least squares.
fn slope(pairs: &[Pair], value: impl Fn(&Pair) -> f64) -> f64 {
    let n = pairs.len() as f64;
    let minutes = |pair: &Pair| (pair.second - pairs[0].second) as f64 / 60.0;
    let (x, y) = (pairs.iter().map(minutes).sum::<f64>() / n, pairs.iter().map(&value).sum::<f64>() / n);
    let over = pairs.iter().map(|p| (minutes(p) - x) * (value(p) - y)).sum::<f64>();
    over / pairs.iter().map(|p| (minutes(p) - x).powi(2)).sum::<f64>()
}

fn tell(what: &str, pairs: &[Pair], server: &Server) -> [f64; 4] {
    let skew = |q| quantile(pairs.iter().map(|p| (p.flash - p.beep).abs()), q);
    let age = |q| quantile(pairs.iter().map(|p| p.beep), q);
    println!(
        "{what}: {} seconds; |flash − beep| p50 {:.1}, p95 {:.1} ms; sound p50 {:.1}, p95 {:.1} ms; picture p50 {:.1} ms; {}",
        pairs.len(),
        skew(0.5),
        skew(0.95),
        age(0.5),
        age(0.95),
        quantile(pairs.iter().map(|p| p.flash), 0.5),
        server.stream("pattern")["audio"]
    );
    [skew(0.5), skew(0.95), age(0.5), age(0.95)]
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_hears_the_beep_with_the_flash() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).size(640, 360).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    let unheld = age_unheld(&page).await;
    let (pairs, peak) = listen(&page, 12, 10).await;
    let [skew, _, age, _] = tell("pattern", &pairs, &server);
    assert!(pairs.len() >= 8, "{pairs:?}");
    assert!((0.2..0.3).contains(&peak), "-12 dBFS is 0.25: {peak}");
    // What is measured with a clock counts nightly, on a quiet machine; here what the player knows and does.
    let wrong = quantile(pairs.iter().map(|p| (p.told - p.beep).abs()), 0.5);
    assert!(wrong <= 15.0, "the player is off by {wrong} ms: {pairs:?}");
    assert!(skew <= apart(25.0, age, unheld), "pictures were {unheld} ms old: {pairs:?}");
    // Without somebody who listens, pictures wait for no sound.
    page.evaluate(&format!("void {PLAYER}.toggleMute()")).await.unwrap();
    page.wait_until(&format!("{PLAYER}.stats.latency_ms.p50 < {age} - 15"), PATIENCE).await.unwrap();
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: five minutes, twice"]
async fn five_minutes_of_flash_and_beep_stay_together_on_a_drifting_sound_clock() {
    let minutes: u64 =
        std::env::var("LIGHTPIPE_SOUND_MINUTES").map_or(5, |text| text.parse().expect("a number of minutes"));
    // The browser's jitter buffer holds 15 to 35 ms beside the packet that it plays, whatever is asked of it: only short packets
    // are heard within 50 ms.
    for (source, frame_ms, oldest) in [("pattern=pattern:drift=100", 20, 75.0), ("pattern", 5, 50.0)] {
        let _machine = quiet().await;
        let server = serve(&[source]).env("LIGHTPIPE_AUDIO_FRAME_MS", &frame_ms.to_string()).start();
        let browser = chromium().await;
        let page = watch(&browser, &server, "pattern").await;
        let (pairs, _) = listen(&page, 30, minutes * 60).await;
        let [_, skew, _, age] = tell(&format!("{source}, packets of {frame_ms} ms"), &pairs, &server);
        let trend = slope(&pairs, |pair| pair.flash - pair.beep);
        println!("{source}: trend {trend:.2} ms a minute");
        browser.close().await.unwrap();
        assert!(pairs.len() as u64 >= minutes * 60 * 9 / 10, "{} seconds", pairs.len());
        assert!(skew <= 25.0, "p95 {skew} ms");
        assert!(trend.abs() < 1.0, "{trend} ms a minute");
        assert!(age < oldest, "p95 {age} ms");
    }
}
