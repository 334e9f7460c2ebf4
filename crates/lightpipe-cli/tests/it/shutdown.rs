//! Graceful shutdown: viewers told, children gone, port free, exit code 0.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use lightpipe_rtc::DisconnectCause;
use rustix::process::Signal;

use crate::lab::browser::{PLAYER, watch};
use crate::lab::server::is_running;
use crate::lab::{LAVFI, PATIENCE, Server, Viewer, chromium, quiet, serve, shared, until};

/// Stops a server and looks at what is left.
#[track_caller]
fn stop(server: &mut Server, signal: Signal) {
    let child = u32::try_from(server.wait_event(0, "ffmpeg_spawned")["pid"].as_u64().unwrap()).unwrap();
    assert!(is_running(child));
    server.signal(signal);
    let (status, took) = server.wait_exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{signal:?}: {}", server.stderr());
    assert!(took < Duration::from_secs(3), "{signal:?}: {took:?}");
    assert!(!is_running(child), "{signal:?}: FFmpeg is gone");
    TcpListener::bind(server.address()).expect("the TCP port is free at once");
    UdpSocket::bind(server.address()).expect("the UDP port is free at once");
    println!("{signal:?}: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_tells_the_page_why_ends_ffmpeg_and_frees_the_port() {
    let _machine = quiet().await;
    let source = format!("cam={LAVFI}");
    let mut server = serve(&[&source]).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "cam").await;
    let note = format!(
        "void {PLAYER}.addEventListener('lightpipe-state', e => {{ (window.states ??= []).push([e.detail.state, e.detail.cause, e.detail.text]) }})"
    );
    page.evaluate(&note).await.unwrap();
    stop(&mut server, Signal::TERM);
    let told = page.wait_until("window.states?.find(([, cause]) => cause === 'shutdown')", PATIENCE).await.unwrap();
    assert!(told[2].as_str().unwrap().contains("shutting down"), "{told}");

    // The port is free for a successor, to which the page returns by itself.
    let successor = serve(&[&source]).on_port(server.address().port()).start();
    assert_eq!(successor.address(), server.address());
    page.wait_until(&format!("{PLAYER}.state.state === 'playing'"), PATIENCE).await.unwrap();
    successor.wait_peers(1, PATIENCE);
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_does_the_same_for_a_native_viewer() {
    let _machine = shared().await;
    let mut server = serve(&[&format!("cam={LAVFI}")]).start();
    let viewer = Viewer::join(&server, "cam");
    viewer.wait_pictures(5, PATIENCE);
    stop(&mut server, Signal::INT);
    let cause = until("the viewer hears of it", Duration::from_secs(2), || viewer.closed());
    assert_eq!(cause, DisconnectCause::ClosedByPeer);
}

/// Nothing asks it to: the parent-death signal does.
#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_dies_with_a_killed_server() {
    let _machine = shared().await;
    let mut server = serve(&[&format!("cam={LAVFI}")]).start();
    server.wait_event(0, "first_frame_ingested");
    let child = u32::try_from(server.wait_event(0, "ffmpeg_spawned")["pid"].as_u64().unwrap()).unwrap();
    server.signal(Signal::KILL);
    server.wait_exit(PATIENCE);
    until("FFmpeg's end", Duration::from_secs(2), || (!is_running(child)).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_listens_soon_after_its_start() {
    let _machine = quiet().await;
    let started_in: Vec<Duration> = (0..5).map(|_| serve(&["cube", "pattern"]).start().started_in).collect();
    println!("listening after {started_in:?}");
    // 300 ms is the release binary's promise; this is the debug one, beside others.
    assert!(started_in.iter().min().unwrap() < &Duration::from_millis(600), "{started_in:?}");
}
