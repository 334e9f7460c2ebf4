//! Publishing: browsers and what they send to us, seen by other browsers.

use std::time::Duration;

use lightpipe_browser::{Browser, Kind, Options, Page};

use crate::lab::browser::{PLAYER, inbound, wait_decoded, watch};
use crate::lab::{PATIENCE, Server, chromium, quiet, serve, until};

async fn with_camera(kind: Kind) -> Browser {
    let options = Options::default().with_fake_media_devices(true).with_command_timeout(Duration::from_secs(60));
    let options = options
        .with_firefox_pref("media.peerconnection.ice.loopback", "true")
        .with_firefox_pref("media.peerconnection.ice.obfuscate_host_addresses", "false");
    Browser::launch(kind, options).await.unwrap()
}

/// Opens the publish page and goes live.
async fn publish(browser: &Browser, server: &Server, stream: &str, codec: &str) -> Page {
    let page = browser.open(&server.url(&format!("/publish/{stream}"))).await.unwrap();
    page.wait_until("document.querySelector('#preview').videoWidth > 0", PATIENCE).await.unwrap();
    let go =
        format!("void (document.querySelector('#codec').value = '{codec}', document.querySelector('#go').click())");
    page.evaluate(&go).await.unwrap();
    page.wait_until("document.querySelector('#badge').dataset.state === 'playing'", PATIENCE).await.unwrap();
    page
}

/// A browser publishes; another one decodes pictures and hears sound, and the server encodes nothing.
async fn is_seen_and_heard(publisher: Kind, codec: &str, expected: &str) {
    let _machine = quiet().await;
    let server = serve(&["cube"]).start();
    let studio = with_camera(publisher).await;
    let page = publish(&studio, &server, "live", codec).await;
    until("the stream is live", PATIENCE, || {
        let stream = server.stream("live");
        (stream["health"] == "live" && stream["published"].as_u64() > Some(10)).then_some(())
    });
    let browser = chromium().await;
    let watching = watch(&browser, &server, "live").await;
    let connection = format!("{PLAYER}.peerConnection");
    wait_decoded(&watching, &connection, 60).await;
    let stream = server.stream("live");
    assert_eq!(stream["codec"], expected, "{stream}");
    assert_eq!(stream["encoder_starts"], 0, "passed on as it is: {stream}");
    assert!(stream["audio"]["published"].as_u64() > Some(50), "{stream}");
    let video = inbound(&watching, &connection).await;
    assert!(video["frameWidth"].as_u64() >= Some(320), "{video}");
    watching.evaluate(&format!("void {PLAYER}.toggleMute()")).await.unwrap();
    let heard = format!(
        "(async () => [...(await {connection}.getStats()).values()].find(s => s.type === 'inbound-rtp' && s.kind === 'audio')?.totalAudioEnergy > 0)()"
    );
    watching.wait_until(&heard, PATIENCE).await.unwrap();
    let peers = server.peers();
    let publisher = peers.iter().find(|peer| peer["role"] == "publisher").unwrap();
    assert_eq!((&publisher["transport"], &publisher["stream"]), (&"whip".into(), &"live".into()), "{publisher}");
    assert!(publisher["received"]["pictures"].as_u64() > Some(60), "{publisher}");

    // Gone and back: the viewer keeps its session and sees the new picture.
    let session = watching.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap();
    page.evaluate("void document.querySelector('#go').click()").await.unwrap();
    until("the publisher is gone", PATIENCE, || (server.stream("live")["health"] == "failed").then_some(()));
    page.evaluate("void document.querySelector('#go').click()").await.unwrap();
    page.wait_until("document.querySelector('#badge').dataset.state === 'playing'", PATIENCE).await.unwrap();
    wait_decoded(&watching, &connection, 30).await;
    assert_eq!(watching.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap(), session, "the same session");
    browser.close().await.unwrap();
    studio.close().await.unwrap();
    until("all sessions are gone", PATIENCE, || server.peers().is_empty().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_publishes_h264() {
    is_seen_and_heard(Kind::Chromium, "H264", "h264").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_publishes_vp8() {
    is_seen_and_heard(Kind::Chromium, "VP8", "vp8").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_publishes_vp8() {
    is_seen_and_heard(Kind::Firefox, "", "vp8").await;
}
