//! Many viewers, rude viewers: spec.md §11, "second viewer while the first connects; viewer vanishing without close (no
//! leak after 60 s); two tabs reloading 20×".

use std::time::Duration;

use lightpipe_browser::Page;
use rustix::process::Signal;

use crate::lab::browser::{PLAYER, inbound, note_gaps, take_longest_gap, wait_playing, watch};
use crate::lab::{PATIENCE, Viewer, chromium, quiet, send_signal, serve, shared, until};

/// Reloads a page, every other time in the middle of its handshake.
async fn reload(page: &Page, times: usize) {
    for turn in 0..times {
        if turn % 2 == 0 {
            wait_playing(page).await;
        }
        page.reload().await.unwrap();
    }
    wait_playing(page).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_reloading_twenty_times_leave_no_peer_and_do_not_stall_a_third() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).unlimited().start();
    let browser = chromium().await;
    let third = watch(&browser, &server, "pattern").await;
    let (one, two) = (watch(&browser, &server, "pattern").await, watch(&browser, &server, "pattern").await);
    note_gaps(&third).await;
    let before = inbound(&third, &format!("{PLAYER}.peerConnection")).await;
    tokio::join!(reload(&one, 20), reload(&two, 20));
    let gap = take_longest_gap(&third).await;
    let after = inbound(&third, &format!("{PLAYER}.peerConnection")).await;
    println!("longest gap of the third tab {gap:.0} ms; freezes {} to {}", before["freezeCount"], after["freezeCount"]);
    assert!(gap < 1000.0, "the third tab stood still for {gap} ms");
    assert_eq!(before["ssrc"], after["ssrc"], "and is on its first session");
    server.wait_peers(3, PATIENCE);
    for page in [one, two, third] {
        page.close().await.unwrap();
    }
    server.wait_peers(0, PATIENCE);
    assert_eq!(server.stream("pattern")["viewers"], 0);
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_viewer_joins_in_the_middle_of_the_firsts_handshake() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let first = Viewer::post(&server, "pattern");
    assert_eq!(server.peers()[0]["state"], "connecting");
    let second = Viewer::join(&server, "pattern");
    second.wait_pictures(10, PATIENCE);
    assert_eq!(server.peers().len(), 2);
    let first = first.connect();
    first.wait_pictures(10, PATIENCE);
    second.wait_pictures(10, PATIENCE);
    server.wait_peers(2, PATIENCE);
}

/// Programs put their addresses into the offer, so our check reaches them first and their answer to it may come before
/// their own check. Dropped as from a stranger it costs ICE a retransmission and then DTLS another: a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_whose_address_is_in_its_offer_connects_without_a_retransmission() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let viewers: Vec<Viewer> = (0..5).map(|_| Viewer::join(&server, "pattern")).collect();
    // A viewer may know a little sooner than the server that it is connected.
    let mut took = until("every viewer is told of", PATIENCE, || {
        let connected = server.events(0).into_iter().filter(|e| e["event"] == "peer_connected");
        let took: Vec<f64> = connected.map(|e| e["took_ms"].as_f64().unwrap()).collect();
        (took.len() == viewers.len()).then_some(took)
    });
    took.sort_by(f64::total_cmp);
    println!("connected after {took:.0?} ms");
    assert!(took[2] < 200.0, "{took:?} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_browser_is_gone_within_a_minute_and_nobody_else_notices() {
    let machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let staying = Viewer::join(&server, "pattern");
    let browser = chromium().await;
    let _page = watch(&browser, &server, "pattern").await;
    server.wait_peers(2, PATIENCE);
    let next = server.next_seq();
    staying.take_longest_gap();
    send_signal(browser.pid(), Signal::KILL);
    // From here on it is waiting: others may have the machine.
    let _machine = tokio::sync::RwLockWriteGuard::downgrade(machine);
    let took = server.wait_peers(1, Duration::from_secs(60));
    let gone = server.wait_event(next, "peer_disconnected");
    let gap = staying.take_longest_gap();
    println!("gone after {took:?} by {}, longest gap of the other {gap:?}", gone["cause"]);
    assert_eq!(gone["cause"], "ice_timeout", "nobody said goodbye");
    assert!(gap < Duration::from_secs(1), "the other viewer stood still for {gap:?}");
    staying.close();
    server.wait_peers(0, PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_never_connects_is_forgotten_with_its_cause() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let posted = Viewer::post(&server, "pattern");
    let gone = server.wait_event(0, "peer_disconnected");
    assert_eq!(gone["cause"], "ice_never_connected");
    assert!(server.peers().is_empty());
    let session = posted.answer.header("location").to_owned();
    assert_eq!(server.request("DELETE", &session, &[], b"").status, 404, "its session is gone too");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_every_viewer_that_came_and_went() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).unlimited().start();
    let visit = |count: usize| {
        for _ in 0..count {
            let viewers: Vec<Viewer> = (0..5).map(|_| Viewer::post(&server, "pattern").connect()).collect();
            for viewer in &viewers {
                viewer.wait_pictures(2, PATIENCE);
            }
            for (n, viewer) in viewers.into_iter().enumerate() {
                match n {
                    0 => _ = server.request("DELETE", &viewer.session, &[], b""),
                    _ => viewer.close(),
                }
            }
        }
        server.wait_peers(0, PATIENCE);
        server.rss_kib()
    };
    // The allocator's arenas and the encoder fill with the first visits.
    let warm = visit(4);
    let after = visit(12);
    println!("RSS {warm} KiB after 20 viewers, {after} KiB after 80");
    // Sixty leaked sessions would be tens of MiB: a session holds some hundred KiB.
    assert!(after < warm + 4096, "from {warm} to {after} KiB over 60 viewers");
}
