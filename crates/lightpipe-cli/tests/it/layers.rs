//! One ladder for all viewers: who gets which layer, and what is encoded for it.

use std::time::Duration;

use lightpipe_media::Size;
use serde_json::Value;

use crate::lab::browser::{PLAYER, inbound, note_gaps, take_longest_gap, watch};
use crate::lab::{PATIENCE, Server, Viewer, chromium, quiet, serve, shared, ticks, until};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// The layers that somebody takes.
fn wanted(server: &Server) -> Vec<String> {
    let stream = server.stream("pattern");
    let layers = stream["layers"].as_array().unwrap().iter();
    layers.filter(|layer| layer["wanted"] == true).map(|layer| layer["rid"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_get_the_layer_that_they_choose_and_nothing_else_is_encoded() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).size(1280, 720).start();
    let viewer = Viewer::join(&server, "pattern");
    viewer.wait_pictures(5, PATIENCE);
    assert_eq!(viewer.size(), Some(Size::new(1280, 720)));
    assert_eq!(wanted(&server), ["f"]);
    let choose =
        |body: &str| server.request("POST", &format!("{}/layer", viewer.session), &[JSON], body.as_bytes()).status;
    for (body, width, rid) in
        [(r#"{"rid":"q"}"#, 320, "q"), (r#"{"maxHeight":400}"#, 640, "h"), (r#"{"encodingId":"f"}"#, 1280, "f")]
    {
        viewer.take_longest_gap();
        assert_eq!(choose(body), 200, "{body}");
        until("pictures of that size", PATIENCE, || (viewer.size()?.width == width).then_some(()));
        let gap = viewer.take_longest_gap();
        assert!(gap < Duration::from_millis(500), "pictures stood still for {gap:?} on the way to {rid}");
        // What nobody takes any more ends.
        until("the other layers rest", Duration::from_secs(3), || (wanted(&server) == [rid]).then_some(()));
        let resting = |layer: &Value| layer["rid"] == rid || layer["target_bitrate_bps"].is_null();
        until("their encoders are gone", Duration::from_secs(3), || {
            server.stream("pattern")["layers"].as_array().unwrap().iter().all(resting).then_some(())
        });
        let peer = &server.peers()[0];
        assert_eq!((&peer["chosen_layer"], peer["id"].is_string()), (&rid.into(), true), "{peer}");
    }
    let steps: Vec<i32> = viewer.recent().windows(2).map(|pair| ticks(pair[0].0, pair[1].0)).collect();
    assert!(steps.iter().all(|step| *step > 0), "one continuous stream: {steps:?}");
    assert_eq!((choose(r#"{"rid":"x"}"#), choose("{}")), (422, 200));
    until("our choice again", PATIENCE, || server.peers()[0]["chosen_layer"].is_null().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cpu_budget_does_not_carry_is_left_out_from_the_best_layer_down() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).size(1280, 720).env("LIGHTPIPE_SIMULCAST_CPU_PERCENT", "1").start();
    let viewer = Viewer::join(&server, "pattern");
    viewer.wait_pictures(5, PATIENCE);
    let dropped = server.wait_event(0, "layer_dropped");
    assert_eq!((&dropped["rid"], &dropped["cause"]), (&"f".into(), &"cpu_budget".into()), "{dropped}");
    until("the viewer has a smaller one", PATIENCE, || (viewer.size()?.width < 1280).then_some(()));
    let layer = server.stream("pattern")["layers"][0].clone();
    assert_eq!(layer["health"], "failed", "{layer}");
    assert!(layer["reason"].as_str().unwrap().contains("1 % of this machine"), "{layer}");
    until("its encoder is gone", PATIENCE, || {
        server.stream("pattern")["layers"][0]["encoder_cores"].is_null().then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_players_menu_changes_the_picture_and_not_the_session() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).size(640, 360).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    let menu = format!("{PLAYER}.shadowRoot.querySelector('select.quality')");
    page.wait_until(&format!("{menu}.options.length >= 3 && !{menu}.hidden"), PATIENCE).await.unwrap();
    let rows = page.evaluate(&format!("[...{menu}.options].map((o) => o.textContent)")).await.unwrap();
    assert_eq!(rows, serde_json::json!(["Auto (360p)", "360p", "180p"]));
    let shown = page.evaluate(&format!("{menu}.selectedOptions[0].textContent")).await.unwrap();
    assert_eq!(shown, "Auto (360p)");
    note_gaps(&page).await;
    for (value, width) in [("h", 320), ("f", 640), ("h", 320), ("", 640)] {
        let pick = format!("void ({menu}.value = '{value}', {menu}.dispatchEvent(new Event('change')))");
        page.evaluate(&pick).await.unwrap();
        page.wait_until(&format!("{PLAYER}.video.videoWidth === {width}"), PATIENCE).await.unwrap();
    }
    let gap = take_longest_gap(&page).await;
    assert!(gap < 700.0, "pictures stood still for {gap} ms");
    let switches = || (server.peers().len() == 1 && server.peers()[0]["layer_switches"] == 4).then_some(());
    until("four changes of one session", PATIENCE, switches);
    browser.close().await.unwrap();
}

/// A buffer in the browser that grew and stays: first a smaller layer, then a keyframe, at last empty buffers.
#[tokio::test(flavor = "multi_thread")]
async fn a_player_that_falls_behind_gets_less_and_then_begins_anew() {
    let _machine = quiet().await;
    // By default a receiver may not buffer as much as this in the first place.
    let server = serve(&["pattern"]).size(640, 360).env("LIGHTPIPE_WEBRTC_PLAYOUT_DELAY_MAX_MS", "2000").start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    page.wait_until(&format!("{PLAYER}.stats.latency_ms.p50 !== null"), PATIENCE).await.unwrap();
    let from = server.next_seq();
    let hold = format!(
        "void ({PLAYER}.peerConnection.getReceivers().find((r) => r.track.kind === 'video').jitterBufferTarget = 700)"
    );
    page.evaluate(&hold).await.unwrap();
    until("all three steps", PATIENCE, || {
        let events = server.events(from);
        let steps: Vec<&str> =
            events.iter().filter(|e| e["event"] == "fell_behind").filter_map(|e| e["step"].as_str()).collect();
        (steps == ["lower_layer", "keyframe", "restart"]).then_some(())
    });
    page.wait_until(&format!("{PLAYER}.state.state === 'playing' && {PLAYER}.stats.latency_ms.p50 < 300"), PATIENCE)
        .await
        .unwrap();
    browser.close().await.unwrap();
}

/// Fifty changes of layer, up and down by one layer and by two; gaps between shown pictures around each, ms.
const CHANGES: &str = "(async () => {
    const player = PLAYER, video = player.video, widths = { f: 1280, h: 640, q: 320 };
    const frames = [], found = { down: [], up: [] };
    let noting = true;
    const note = (_now, { presentationTime, width }) => {
        frames.push([presentationTime, width]);
        if (noting) video.requestVideoFrameCallback(note);
    };
    video.requestVideoFrameCallback(note);
    const pause = (ms) => new Promise((done) => setTimeout(done, ms));
    let layer = 'f';
    for (let n = 0; n < 50; n++) {
        const to = 'hqfqhf'[n % 6];
        await pause(300);
        const from = frames.length - 1, began = performance.now();
        player.setAttribute('layer', to);
        while (!frames.slice(from).some(([, width]) => width === widths[to])) {
            if (performance.now() - began > 5000) throw new Error(`no picture of layer ${to}`);
            await pause(10);
        }
        await pause(300);
        const around = frames.slice(from).map(([at]) => at);
        const gaps = around.slice(1).map((at, i) => at - around[i]);
        found[widths[to] < widths[layer] ? 'down' : 'up'].push(Math.max(...gaps));
        layer = to;
    }
    player.setAttribute('layer', 'f');
    while (frames[frames.length - 1][1] !== widths.f) await pause(10);
    noting = false;
    return found;
})()";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: two minutes, measures time"]
async fn two_hundred_changes_of_layer_are_hardly_seen() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).size(1280, 720).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    page.evaluate(&format!("void {PLAYER}.setAttribute('layer', 'f')")).await.unwrap();
    page.wait_until(&format!("{PLAYER}.video.videoWidth === 1280"), PATIENCE).await.unwrap();
    let connection = format!("{PLAYER}.peerConnection");
    let before = inbound(&page, &connection).await;
    let (mut down, mut up): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let found = page.evaluate(&CHANGES.replace("PLAYER", PLAYER)).await.unwrap();
        for (gaps, key) in [(&mut down, "down"), (&mut up, "up")] {
            gaps.extend(found[key].as_array().unwrap().iter().filter_map(Value::as_f64));
        }
    }
    let after = inbound(&page, &connection).await;
    let grown = |key: &str| after[key].as_f64().unwrap_or(0.0) - before[key].as_f64().unwrap_or(0.0);
    for gaps in [&mut down, &mut up] {
        gaps.sort_by(f64::total_cmp);
    }
    let told = |gaps: &[f64]| {
        let [p50, p95, longest] = [0.5, 0.95, 1.0].map(|share| gaps[((gaps.len() - 1) as f64 * share) as usize]);
        format!("{} changes: p50 {p50:.0}, p95 {p95:.0}, longest {longest:.0} ms", gaps.len())
    };
    println!("down, {}; up, {}", told(&down), told(&up));
    let [freezes, plis, dropped] = ["freezeCount", "pliCount", "framesDropped"].map(grown);
    let undecoded = grown("framesReceived") - grown("framesDecoded");
    println!("{freezes} freezes, {plis} keyframe requests, {dropped} pictures dropped, {undecoded} not decoded");
    assert!(
        down.len() + up.len() == 200 && down.last() <= Some(&200.0) && up.last() <= Some(&100.0),
        "{down:?} {up:?}"
    );
    // A decoder that meets a picture it cannot decode asks for a keyframe.
    assert_eq!((freezes, plis), (0.0, 0.0));
    assert!(undecoded <= 3.0, "{undecoded} pictures were not decoded");
    assert_eq!(server.peers()[0]["layer_switches"].as_u64().map(|switches| switches >= 200), Some(true));
    browser.close().await.unwrap();
}
