//! FFmpeg killed under watching viewers: "viewers stay connected over a restart and the picture comes back within 2 s".

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::lab::browser::{PLAYER, note_gaps, take_longest_gap, wait_decoded, watch};
use crate::lab::{LAVFI, PATIENCE, Server, Viewer, chromium, firefox, quiet, send_signal, serve, shared, ticks, until};

#[track_caller]
fn pid_of(spawned: &Value) -> u32 {
    u32::try_from(spawned["pid"].as_u64().unwrap()).unwrap()
}

/// RTP distance against arrival distance over the whole of what the viewer remembers.
#[track_caller]
fn assert_rtp_time_is_continuous(viewer: &Viewer, over: Instant) {
    let recent = viewer.recent();
    let before = recent.iter().rfind(|(_, at)| *at < over).expect("pictures before");
    let after = recent.last().unwrap();
    assert!(after.1 > over);
    let rtp = f64::from(ticks(before.0, after.0)) / 90_000.0;
    let wall = (after.1 - before.1).as_secs_f64();
    assert!((rtp - wall).abs() < 0.25, "RTP time went {rtp:.3} s while {wall:.3} s passed");
    for pair in recent.windows(2) {
        assert!(ticks(pair[0].0, pair[1].0) > 0, "RTP time went backwards: {pair:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_browsers_see_a_moving_picture_again_within_two_seconds_of_kill_9_on_the_same_connections() {
    let _machine = quiet().await;
    let server = serve(&[&format!("cam={LAVFI}")]).start();
    let native = Viewer::join(&server, "cam");
    let (chromium, firefox) = tokio::join!(chromium(), firefox());
    let pages = [watch(&chromium, &server, "cam").await, watch(&firefox, &server, "cam").await];
    server.wait_peers(3, PATIENCE);
    let peers = server.peer_ids();
    for page in &pages {
        page.evaluate(&format!("void (window.connection = {PLAYER}.peerConnection)")).await.unwrap();
        note_gaps(page).await;
    }
    for page in &pages {
        page.wait_until("gaps.frames > 30", PATIENCE).await.unwrap();
        take_longest_gap(page).await;
    }
    let spawned = server.wait_event(0, "ffmpeg_spawned");
    let next = server.next_seq();
    let killed = Instant::now();
    send_signal(pid_of(&spawned), Signal::KILL);
    let again = server.wait_event(next, "first_frame_ingested");
    for page in &pages {
        wait_decoded(page, "connection", 30).await;
        page.evaluate("void (gaps.frames = 0)").await.unwrap();
        page.wait_until("gaps.frames > 30", PATIENCE).await.unwrap();
    }
    let gaps = [take_longest_gap(&pages[0]).await, take_longest_gap(&pages[1]).await];
    println!("no picture for {gaps:.0?} ms in Chromium and Firefox, {:?} natively", native.take_longest_gap());
    for (page, gap) in pages.iter().zip(gaps) {
        assert!(gap <= 2000.0, "stood still for {gap} ms");
        let same = format!("connection === {PLAYER}.peerConnection && connection.connectionState");
        assert_eq!(page.evaluate(&same).await.unwrap(), "connected");
        let state = page.evaluate(&format!("{PLAYER}.state.state")).await.unwrap();
        assert_eq!(state, "playing");
    }
    assert_eq!(server.peer_ids(), peers, "the same sessions");
    assert!(again["seq"].as_u64() > spawned["seq"].as_u64());
    assert_rtp_time_is_continuous(&native, killed);
    chromium.close().await.unwrap();
    firefox.close().await.unwrap();
}

/// Waits for a start after `since` and kills it; answers the exit's event.
#[track_caller]
fn kill_next(server: &Server, since: u64) -> Value {
    let spawned = server.wait_event(since, "ffmpeg_spawned");
    send_signal(pid_of(&spawned), Signal::KILL);
    server.wait_event(spawned["seq"].as_u64().unwrap(), "ffmpeg_exited")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_in_a_row_end_in_the_capped_state_with_a_clear_message_and_recover() {
    let _machine = shared().await;
    let server = serve(&[&format!("cam={LAVFI}")]).start();
    let viewer = Viewer::join(&server, "cam");
    viewer.wait_pictures(10, PATIENCE);
    let peers = server.peer_ids();
    let began = Instant::now();
    let mut since = 0;
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let exited = kill_next(&server, since);
        since = exited["seq"].as_u64().unwrap();
        pauses.push(exited["retry_in_ms"].as_u64().unwrap());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000], "capped exponential");
    let failed = server.wait_event(since, "source_failed");
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("failed 10 times in a row") && reason.contains("every 5 s") && reason.contains("ffmpeg"),
        "{reason}"
    );
    let stream = server.stream("cam");
    assert_eq!((&stream["health"], &stream["reason"]), (&Value::from("failed"), &failed["reason"]));
    assert_eq!(server.get("/readyz").status, 503);
    // FFmpeg lives from now on: so does the stream, for the viewer that never left.
    viewer.wait_pictures(30, Duration::from_secs(10));
    assert_eq!(server.stream("cam")["health"], "live");
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.peer_ids(), peers, "the same session");
    assert_rtp_time_is_continuous(&viewer, began);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_ffmpeg_is_ended_and_started_again() {
    let _machine = shared().await;
    let server = serve(&[&format!("cam={LAVFI}")]).env("LIGHTPIPE_FFMPEG_STALL_TIMEOUT_MS", "1500").start();
    let viewer = Viewer::join(&server, "cam");
    viewer.wait_pictures(10, PATIENCE);
    let spawned = server.wait_event(0, "ffmpeg_spawned");
    send_signal(pid_of(&spawned), Signal::STOP);
    let exited = server.wait_event(0, "ffmpeg_exited");
    assert!(exited["reason"].as_str().unwrap().contains("no picture for 1.5 s"), "{exited}");
    viewer.wait_pictures(10, PATIENCE);
    until("the stopped child's end", PATIENCE, || (!crate::lab::server::is_running(pid_of(&spawned))).then_some(()));
}
