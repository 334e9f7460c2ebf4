//! What a page shows and plays: flashes, beeps, tones.

use lightpipe_browser::Page;
use serde_json::Value;

use super::PATIENCE;
use super::browser::PLAYER;

/// Notes on the page's clock when the picture turns white and when sound begins after half a second of silence.
///
/// `MediaStreamTrackProcessor` gives out sound in the blocks in which the browser plays it. Each carries its time on a clock of
/// its own; the block that reached the page fastest ties that to the page's.
const HEAR: &str = "void (() => {
  const player = PLAYER, heard = window.heard = { flashes: [], beeps: [], told: [], fastest: Infinity, peak: 0, hz: 0, blocks: 0 };
  const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 8 });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  let lit = true;
  player.onFrame(sample => {
    const { videoWidth: w, videoHeight: h } = player.video;
    context.drawImage(player.video, w * 0.88, h * 0.76, w * 0.05, h * 0.1, 0, 0, 8, 8);
    const now = context.getImageData(4, 4, 1, 1).data[1] > 128;
    if (!lit && now) heard.flashes.push(sample.at_ms);
    lit = now;
  });
  const track = player.peerConnection.getReceivers().find(r => r.track.kind === 'audio').track;
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  let quiet = 0, last = 0, crossings = 0, counted = 0;
  (async () => {
    for (;;) {
      const { value: block, done } = await reader.read();
      if (done) return;
      heard.fastest = Math.min(heard.fastest, performance.now() - block.timestamp / 1000);
      heard.blocks += 1;
      const samples = new Float32Array(block.numberOfFrames);
      block.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
      for (let n = 0; n < samples.length; n += 1) {
        heard.peak = Math.max(heard.peak, Math.abs(samples[n]));
        if (last < 0 && samples[n] >= 0) crossings += 1;
        last = samples[n];
        if (Math.abs(samples[n]) < 0.02) { quiet += 1; continue; }
        if (quiet > 0.5 * block.sampleRate) {
          heard.beeps.push(block.timestamp / 1000 + n / block.sampleRate * 1000);
          heard.told.push(player.stats.audio_latency_ms);
        }
        quiet = 0;
      }
      counted += samples.length;
      if (counted >= block.sampleRate / 2) { heard.hz = crossings * block.sampleRate / counted; crossings = counted = 0; }
      block.close();
    }
  })();
})()";

/// Unmutes the player and listens.
pub(crate) async fn hear(page: &Page) {
    page.evaluate(&format!("void {PLAYER}.toggleMute()")).await.unwrap();
    page.wait_until(&format!("!{PLAYER}.video.muted"), PATIENCE).await.unwrap();
    page.evaluate(&HEAR.replace("PLAYER", PLAYER)).await.unwrap();
}

/// By how much each flash came after its beep, ms, and when, on the page's clock.
pub(crate) async fn skews(page: &Page) -> Vec<(f64, f64)> {
    let heard = page.evaluate("heard").await.unwrap();
    let list = |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let fastest = heard["fastest"].as_f64().unwrap();
    let beeps: Vec<f64> = list(&heard["beeps"]).into_iter().map(|at| at + fastest).collect();
    let nearest = |flash: f64| beeps.iter().map(|beep| flash - beep).min_by(|a, b| a.abs().total_cmp(&b.abs()));
    let pairs = list(&heard["flashes"]).into_iter().filter_map(|flash| Some((flash, nearest(flash)?)));
    pairs.filter(|(_, skew)| skew.abs() < 500.0).collect()
}

/// Age of the pictures while they wait for no sound, ms: the player is muted still.
pub(crate) async fn age_unheld(page: &Page) -> f64 {
    page.wait_until(&format!("{PLAYER}.stats.latency_ms.p50 !== null && {PLAYER}.stats.frames_decoded > 60"), PATIENCE)
        .await
        .unwrap();
    page.evaluate(&format!("{PLAYER}.stats.latency_ms.p50")).await.unwrap().as_f64().unwrap()
}

/// How old the sound of the last so many beeps was, ms: the median of what the player said.
pub(crate) async fn age_heard(page: &Page, beeps: usize) -> f64 {
    let told = page.evaluate(&format!("heard.told.slice(-{beeps})")).await.unwrap();
    let mut told: Vec<f64> = told.as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    told.sort_by(f64::total_cmp);
    told[told.len() / 2]
}

/// By how much flash and beep may be apart, ms: so much where the sound is as old as on a quiet machine; where the browser's jitter buffer
/// grows faster than pictures are moved behind it, two fifths of the way from where they would be unheld must be made up for.
pub(crate) fn apart(at_ease: f64, sound: f64, unheld: f64) -> f64 {
    at_ease.max(0.6 * (sound - unheld))
}

/// Waits until a tone of this pitch is heard.
pub(crate) async fn wait_tone(page: &Page, hz: f64) {
    page.wait_until(&format!("Math.abs(heard.hz - {hz}) < {hz} / 50"), PATIENCE).await.unwrap();
}
