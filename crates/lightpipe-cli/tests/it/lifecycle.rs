//! Lifecycle events (spec.md §8): in order, with their endings and reasons.

use std::time::Duration;

use lightpipe::{Config, Server as Embedded};
use lightpipe_media::EventKind;
use rustix::process::Signal;
use serde_json::Value;

use crate::lab::server::is_running;
use crate::lab::{LAVFI, PATIENCE, Viewer, send_signal, serve, shared, until};

#[track_caller]
fn seq(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_the_order_of_a_streams_life_and_name_how_it_ended() {
    let _machine = shared().await;
    let server = serve(&[&format!("cam={LAVFI}")]).start();
    let first_frame = server.wait_event(0, "first_frame_ingested");
    let spawned = server.wait_event(0, "ffmpeg_spawned");
    // The offer wakes the track: its first picture does not wait for the handshake.
    let offered = Viewer::post(&server, "cam");
    let active = server.wait_event(0, "track_active");
    let viewer = offered.connect();
    viewer.wait_pictures(5, PATIENCE);
    let connected = server.wait_event(0, "peer_connected");
    let order = [&spawned, &first_frame, &active, &connected].map(seq);
    assert!(order.is_sorted(), "ffmpeg_spawned, first_frame_ingested, track_active, peer_connected: {order:?}");
    let times = [&spawned, &first_frame, &active, &connected].map(|e| e["unix_ms"].as_f64().unwrap());
    assert!(times.is_sorted(), "{times:?}");
    assert!([&spawned, &first_frame, &active, &connected].iter().all(|e| e["stream"] == "cam"));
    assert!(connected["took_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{connected}");

    // A killed child: an exit with its reason and the pause before the next start, and a new life.
    let pid = u32::try_from(spawned["pid"].as_u64().unwrap()).unwrap();
    let next = server.next_seq();
    send_signal(pid, Signal::KILL);
    let exited = server.wait_event(next, "ffmpeg_exited");
    assert!(exited["reason"].as_str().unwrap().contains("signal 9"), "{exited}");
    assert!(exited["retry_in_ms"].as_u64().is_some_and(|ms| ms <= 5000), "{exited}");
    let again = server.wait_event(seq(&exited), "ffmpeg_spawned");
    assert_ne!(again["pid"], spawned["pid"]);
    server.wait_event(seq(&again), "first_frame_ingested");

    // The viewer that says goodbye; then nobody wants the track any more.
    let next = server.next_seq();
    viewer.close();
    let gone = server.wait_event(next, "peer_disconnected");
    assert_eq!((&gone["cause"], &gone["peer"]), (&Value::from("closed_by_peer"), &connected["peer"]));
    server.wait_event(seq(&gone), "track_idle");

    // The viewer whose signalling ends the session.
    let viewer = Viewer::join(&server, "cam");
    viewer.wait_pictures(2, PATIENCE);
    let next = server.next_seq();
    assert_eq!(server.request("DELETE", &viewer.session, &[], b"").status, 200);
    assert_eq!(server.wait_event(next, "peer_disconnected")["cause"], "signalling_closed");
    until("the viewer hears of it", PATIENCE, || viewer.closed());
    let active: Vec<_> = server.events(0).into_iter().filter(|e| e["event"] == "track_active").collect();
    assert_eq!(active.len(), 2, "once per waking up");
}

/// It may be in a tunnel: its session goes on, and nobody encodes for it meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_track_rests_soon_after_its_only_viewer_vanished() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let viewer = Viewer::join(&server, "pattern");
    viewer.wait_pictures(5, PATIENCE);
    let next = server.next_seq();
    drop(viewer);
    let idle = until("the track rests", Duration::from_secs(10), || {
        server.events(next).into_iter().find(|e| e["event"] == "track_idle")
    });
    assert_eq!(idle["stream"], "pattern");
    assert_eq!(server.stream("pattern")["target_bitrate_bps"], Value::Null);
    let peers = server.peers();
    assert_eq!((peers.len(), &peers[0]["state"]), (1, &Value::from("silent")), "{peers:?}");
    assert!(server.get("/metrics").body.contains("lightpipe_peers{state=\"silent\"} 1\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_track_is_active_with_its_first_picture_too() {
    let _machine = shared().await;
    let source = format!("h264={LAVFI} -c:v libx264 -preset ultrafast -tune zerolatency -g 30 -bf 0");
    let server = serve(&[&source]).start();
    let first_frame = server.wait_event(0, "first_frame_ingested");
    let offered = Viewer::post(&server, "h264");
    let active = server.wait_event(0, "track_active");
    let viewer = offered.connect();
    viewer.wait_pictures(30, PATIENCE);
    let connected = server.wait_event(0, "peer_connected");
    assert!(seq(&first_frame) < seq(&active) && seq(&active) < seq(&connected), "{:#?}", server.events(0));
}

/// What the API of a stopping server no longer tells is seen from inside a program that embeds it, here one whose `main`
/// is async.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_has_ended_its_ffmpeg_and_said_so() {
    let _machine = shared().await;
    let mut config = Config::default();
    (config.server.host, config.server.port) = ([127, 0, 0, 1].into(), 0);
    (config.video.width, config.video.height) = (320, 180);
    let server = Embedded::start(config).unwrap();
    server.add_source(&format!("cam={LAVFI}").parse().unwrap()).unwrap();
    let name = |wanted: &'static str| move |e: &lightpipe_media::Event| e.kind.name() == wanted;
    server.events().wait_for(0, PATIENCE, name("first_frame_ingested")).unwrap();
    let [(_, pid)] = server.children()[..] else { panic!("one child") };
    let events = server.events().clone();
    server.stop();
    let exited = events.since(0).into_iter().find(name("ffmpeg_exited")).unwrap();
    assert_eq!(exited.kind, EventKind::FfmpegExited { reason: "stopped".into(), retry_in: None });
    assert!(!is_running(pid), "the child is gone when stop returns");
}
