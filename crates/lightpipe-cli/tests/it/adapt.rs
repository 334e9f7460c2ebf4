//! A stream that is encoded once, for a network that carries less than the whole picture needs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::browser::{PLAYER, foreign_page, wait_decoded, wait_playing};
use crate::lab::narrow::Narrow;
use crate::lab::{PATIENCE, Server, chromium, quiet, serve, until};

/// A page with the player, of which the browser believes that the server's media port is another one.
fn page_through(server: &Server, port: u16) -> String {
    let (script, stream) = (server.url("/player.js"), server.url("/whep/pattern"));
    foreign_page(format!(
        "<!doctype html><title>behind a narrow place</title><script>
            const set = RTCPeerConnection.prototype.setRemoteDescription;
            RTCPeerConnection.prototype.setRemoteDescription = function (told) {{
                return set.call(this, {{ type: told.type, sdp: told.sdp.replaceAll(/ \\d+ typ host/g, ' {port} typ host') }});
            }};
        </script><script type=\"module\" src=\"{script}\"></script>
        <lightpipe-player src=\"{stream}\" style=\"width:640px\"></lightpipe-player>"
    ))
}

fn adapted(server: &Server) -> Value {
    server.stream("pattern")["adapted"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_behind_150_kbit_gets_fewer_and_smaller_pictures_and_the_whole_afterwards() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).size(1280, 720).args(&["--simulcast", "off"]).start();
    let narrow = Narrow::before(server.address(), 3_000_000);
    let browser = chromium().await;
    let page = browser.open(&page_through(&server, narrow.port())).await.unwrap();
    wait_playing(&page).await;
    let whole = format!("{PLAYER}.video.videoWidth === 1280 && {PLAYER}.stats.fps > 25");
    page.wait_until(&whole, PATIENCE).await.unwrap();
    let shape = format!("(({{ width, height }}) => [width, height])({PLAYER}.getBoundingClientRect())");
    let before = page.evaluate(&shape).await.unwrap();
    assert_eq!(before, json!([640, 360]));
    until("an estimate that carries the whole", PATIENCE, || adapted(&server).is_null().then_some(()));

    let from = server.next_seq();
    narrow.carry(150_000);
    page.wait_until(&format!("{PLAYER}.video.videoWidth <= 640"), PATIENCE).await.unwrap();
    let told = server.wait_event(from, "encoding_adapted");
    assert!(told["fps"] == 15.0 && told["target_bps"].as_u64().unwrap() < 700_000, "{told}");
    let stream = server.stream("pattern");
    assert_eq!((&stream["width"], &stream["height"]), (&stream["adapted"]["width"], &stream["adapted"]["height"]));
    assert_eq!((stream["adapted"]["fps"].as_f64(), &stream["encoder_starts"]), (Some(15.0), &json!(1)), "{stream}");
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("lightpipe_encoding_adapted{stream=\"pattern\",codec=\"h264\",layer=\"\"} 1\n"),
        "{metrics}"
    );
    // It goes on, its age is still read out of the picture, and the page did not move.
    wait_decoded(&page, &format!("{PLAYER}.peerConnection"), 60).await;
    let young = format!(
        "{PLAYER}.stats.latency_ms.source === 'timecode' && {PLAYER}.stats.latency_ms.p50 < 500 && {PLAYER}.stats.fps < 20"
    );
    page.wait_until(&young, PATIENCE).await.unwrap();
    assert_eq!(page.evaluate(&shape).await.unwrap(), before);
    let stats = page.evaluate(&format!("{PLAYER}.stats")).await.unwrap();
    println!(
        "150 kbit/s: {}×{}, {} fps, age p50 {} ms, {}",
        stats["width"],
        stats["height"],
        stats["fps"],
        stats["latency_ms"]["p50"],
        adapted(&server)
    );

    narrow.carry(3_000_000);
    let began = Instant::now();
    page.wait_until(&whole, PATIENCE).await.unwrap();
    println!("the whole again after {:.1} s", began.elapsed().as_secs_f64());
    until("nothing is left out", Duration::from_secs(5), || adapted(&server).is_null().then_some(()));
    assert_eq!(page.evaluate(&shape).await.unwrap(), before);
    assert_eq!(server.peers().len(), 1, "one session");
    browser.close().await.unwrap();
}
