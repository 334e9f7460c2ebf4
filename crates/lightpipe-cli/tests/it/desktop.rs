//! The desktop of an X server with a moving program, in a real browser.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::lab::browser::{PLAYER, inbound, wait_decoded, watch};
use crate::lab::{PATIENCE, Server, Viewer, chromium, quiet, serve, until};

/// A child that is killed at the end of the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// An X server of its own, on a display that it chose, or the given one.
fn xvfb(display: Option<&str>) -> (Guard, String) {
    let mut command = Command::new("Xvfb");
    command.args(display).args(["-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("Xvfb");
    let pipe = child.stdout.take().unwrap();
    let server = Guard(child);
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line).unwrap();
    assert!(!line.trim().is_empty(), "Xvfb did not start");
    (server, format!(":{}", line.trim()))
}

/// A terminal that counts, white on black.
fn terminal(display: &str) -> Guard {
    let counting = "n=0; while :; do n=$((n+1)); printf '\\033[H\\033[2J'; seq $n $((n+20)); sleep 0.1; done";
    let mut command = Command::new("xterm");
    command.args([
        "-display",
        display,
        "-geometry",
        "80x24+0+0",
        "-bg",
        "black",
        "-fg",
        "white",
        "-e",
        "sh",
        "-c",
        counting,
    ]);
    Guard(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("xterm"))
}

/// A desktop with a moving program, and a server that shows it as the stream `desktop`. `source` is the specification, with
/// DISPLAY for the display.
fn desktop(source: &str) -> (Guard, Guard, Server) {
    let (x, display) = xvfb(None);
    let terminal = terminal(&display);
    let source = format!("desktop={}", source.replace("DISPLAY", &display));
    let server = serve(&[&source]).size(800, 600).start();
    until("the desktop", PATIENCE, || (server.stream("desktop")["health"] == "live").then_some(()));
    (x, terminal, server)
}

/// Our own grabber, and FFmpeg's.
const NATIVE: &str = "desktop:DISPLAY";
const X11GRAB: &str = "ffmpeg:-f x11grab -draw_mouse 1 -framerate 30 -i DISPLAY";

/// Brightness of the shown picture in a grid.
const GRID: &str = "(() => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 80, height: 60 });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(PLAYER.video, 0, 0, 80, 60);
  const { data } = context.getImageData(0, 0, 80, 60);
  return Array.from({ length: 80 * 60 }, (_, i) => data[i * 4 + 1]);
})()";

#[tokio::test(flavor = "multi_thread")]
async fn a_moving_program_on_an_x_server_moves_in_chromium() {
    a_moving_program_moves(NATIVE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moving_program_moves_in_chromium_through_x11grab() {
    a_moving_program_moves(X11GRAB).await;
}

async fn a_moving_program_moves(source: &str) {
    let _machine = quiet().await;
    let (_x, _terminal, server) = desktop(source);
    let browser = chromium().await;
    let page = watch(&browser, &server, "desktop").await;
    let connection = format!("{PLAYER}.peerConnection");
    wait_decoded(&page, &connection, 30).await;
    let stats = inbound(&page, &connection).await;
    assert_eq!((stats["frameWidth"].as_u64(), stats["frameHeight"].as_u64()), (Some(800), Some(600)), "its own size");
    let grid = GRID.replace("PLAYER", PLAYER);
    // xterm may take a moment to open its window; then its text shows, and counts.
    let lit = format!("(() => {{ const seen = {grid}; return seen.filter(v => v > 40).length > 20 && seen }})()");
    let first = page.wait_until(&lit, PATIENCE).await.unwrap();
    page.evaluate(&format!("void (window.first = {first})")).await.unwrap();
    let moved = format!("{grid}.filter((v, i) => Math.abs(v - first[i]) > 30).length > 5");
    page.wait_until(&moved, PATIENCE).await.unwrap();
    browser.close().await.unwrap();
}

/// Median age of the picture over the player's last ten seconds, sampled over a minute: milliseconds.
async fn minute(page: &lightpipe_browser::Page) -> f64 {
    let mut medians = Vec::new();
    for _ in 0..6 {
        page.evaluate("new Promise(done => setTimeout(done, 10_000))").await.unwrap();
        medians.push(page.evaluate(&format!("{PLAYER}.stats.latency_ms.p50")).await.unwrap().as_f64().unwrap());
    }
    medians.sort_by(f64::total_cmp);
    let stages = page.evaluate(&format!("{PLAYER}.stats.stages_ms")).await.unwrap();
    println!("medians of ten seconds {medians:.1?}, stages {stages}");
    f64::midpoint(medians[2], medians[3])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: fifteen minutes"]
async fn fifteen_minutes_of_desktop_neither_age_nor_freeze_nor_grow() {
    let minutes: u32 =
        std::env::var("LIGHTPIPE_SOAK_MINUTES").map_or(15, |text| text.parse().expect("a number of minutes"));
    let _machine = quiet().await;
    let source = std::env::var("LIGHTPIPE_SOAK_SOURCE").unwrap_or_else(|_| NATIVE.to_owned());
    let (_x, _terminal, server) = desktop(&source);
    let browser = chromium().await;
    let page = watch(&browser, &server, "desktop").await;
    let connection = format!("{PLAYER}.peerConnection");
    wait_decoded(&page, &connection, 30).await;
    // A freeze is a gap between shown pictures; the browser's own count begins at 150 ms more than the mean.
    crate::lab::browser::note_gaps(&page).await;
    let first = minute(&page).await;
    let rss = server.rss_kib();
    for _ in 2..minutes {
        minute(&page).await;
    }
    let last = minute(&page).await;
    let grown = server.rss_kib().saturating_sub(rss);
    let gap = crate::lab::browser::take_longest_gap(&page).await;
    let sent = server.peers()[0]["capture_to_sent_ms"].clone();
    println!(
        "{minutes} min: p50 {first:.1} ms at first, {last:.1} ms at last; longest gap {gap:.0} ms; RSS +{grown} KiB; capture to sent {sent}"
    );
    assert!(last - first <= 5.0, "{first} ms became {last} ms");
    assert!(gap <= 500.0, "{gap} ms without a picture");
    assert!(grown < 5 << 10, "{grown} KiB");
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_display_that_is_not_there_is_named() {
    let _machine = crate::lab::shared().await;
    for (source, event) in [("desktop::4711", "source_failed"), ("ffmpeg:-f x11grab -i :4711", "ffmpeg_exited")] {
        let server = serve(&["pattern", &format!("desktop={source}")]).start();
        let failed = server.wait_event(0, event);
        assert_eq!(failed["stream"], "desktop");
        assert!(failed["reason"].as_str().unwrap().contains(":4711"), "{failed}");
        assert_eq!(server.stream("desktop")["health"], "failed");
        assert_eq!(server.get("/readyz").status, 200, "the other stream is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_x_server_that_ends_and_comes_back_keeps_its_viewers() {
    let _machine = crate::lab::shared().await;
    let (x, display) = xvfb(None);
    let server = serve(&[&format!("desktop:{display}")]).size(800, 600).start();
    let viewer = Viewer::join(&server, "desktop");
    viewer.wait_pictures(10, PATIENCE);
    let peers = server.peer_ids();
    drop(x);
    let failed = server.wait_event(0, "source_failed");
    assert!(failed["reason"].as_str().unwrap().contains(&display), "{failed}");
    let (_x, again) = xvfb(Some(&display));
    assert_eq!(again, display);
    viewer.wait_pictures(30, PATIENCE);
    assert_eq!(server.stream("desktop")["health"], "live");
    assert_eq!(server.peer_ids(), peers, "the same session");
}
