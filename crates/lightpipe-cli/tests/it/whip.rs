//! Publishing: browsers and what they send to us, seen by other browsers.

use std::time::Duration;

use lightpipe_browser::{Browser, Kind, Options, Page};

use crate::lab::browser::{PLAYER, inbound, wait_decoded, watch};
use crate::lab::server::program;
use crate::lab::{GIVEN_UP, PATIENCE, Server, chromium, quiet, serve, shared, until};

const SDP: (&str, &str) = ("Content-Type", "application/sdp");
const FRAG: (&str, &str) = ("Content-Type", "application/trickle-ice-sdpfrag");
const CANDIDATE: &str = "a=mid:0\r\na=candidate:1 1 udp 2130706431 127.0.0.1 50000 typ host\r\n";

/// What an encoder offers: H.264 and Opus, to be sent.
fn offer() -> String {
    let common = "c=IN IP4 0.0.0.0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdefghijklmn\r\na=fingerprint:sha-256 \
        00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\na=setup:actpass\r\n\
        a=sendonly\r\na=rtcp-mux\r\n";
    format!(
        "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\n{common}a=mid:0\r\na=rtpmap:96 H264/90000\r\n\
         a=fmtp:96 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\na=rtcp-fb:96 nack pli\r\n\
         a=rtpmap:97 VP8/90000\r\na=ssrc:11 cname:x\r\n\
         m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n{common}a=mid:1\r\na=rtpmap:111 opus/48000/2\r\na=ssrc:12 cname:x\r\n"
    )
}
async fn with_camera(kind: Kind) -> Browser {
    let options = Options::default().with_fake_media_devices(true).with_command_timeout(Duration::from_secs(60));
    let options = options
        .with_firefox_pref("media.peerconnection.ice.loopback", "true")
        .with_firefox_pref("media.peerconnection.ice.obfuscate_host_addresses", "false");
    Browser::launch(kind, options).await.unwrap()
}

/// Whether the system lets us go before others, as the doctor says.
fn may_be_realtime() -> bool {
    let told = program().args(["doctor", "--json", "--port", "0"]).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let finding = told["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "real time");
    !finding.unwrap()["detail"].as_str().unwrap().starts_with("not allowed")
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
    if matches!(expected, "vp9" | "av1") {
        nothing_here_decodes_it(&server, expected);
    }
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
    let info = server.get("/api/v1/info").json();
    let realtime = if may_be_realtime() { &info["media_threads"] } else { &serde_json::json!(0) };
    assert_eq!(&info["realtime_threads"], realtime, "what is passed on waits for nobody: {info}");

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
    until("all sessions are gone", GIVEN_UP, || server.peers().is_empty().then_some(()));
}

/// Our own player takes what is passed on, and says that it cannot decode it.
fn nothing_here_decodes_it(server: &Server, codec: &str) {
    let played = program()
        .args(["play", &server.url("/whep/live"), "--host", "127.0.0.1", "--raw", "--seconds", "5"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&played.stderr);
    assert!(!played.status.success() && told.contains(&format!("no decoder for {codec} in this build")), "{told}");
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
async fn chromium_publishes_vp9() {
    is_seen_and_heard(Kind::Chromium, "VP9", "vp9").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_publishes_av1() {
    is_seen_and_heard(Kind::Chromium, "AV1", "av1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_publishes_vp8() {
    is_seen_and_heard(Kind::Firefox, "", "vp8").await;
}

/// From a picture's last packet in to its last packet out, for every viewer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: measures time"]
async fn forwarding_to_twenty_viewers_takes_three_milliseconds_at_most() {
    let _machine = quiet().await;
    let server = serve(&["cube"]).unlimited().start();
    let studio = with_camera(Kind::Chromium).await;
    let page = publish(&studio, &server, "live", "H264").await;
    until("the stream is live", PATIENCE, || (server.stream("live")["health"] == "live").then_some(()));
    let mut viewers = program()
        .args(["bench", "viewers", "--url", &server.url(""), "--stream", "live", "--count", "20", "--seconds", "20"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(18));
    let peers = server.peers();
    let sent: Vec<[f64; 3]> = peers
        .iter()
        .filter(|peer| peer["role"] == "viewer")
        .map(|peer| ["p50", "p95", "p99"].map(|q| peer["send_ms"][q].as_f64().unwrap()))
        .collect();
    let worst = |n: usize| sent.iter().map(|s| s[n]).fold(0.0, f64::max);
    println!(
        "{} viewers: p50 {:.2}, p95 {:.2}, p99 {:.2} ms, each of the worst viewer",
        sent.len(),
        worst(0),
        worst(1),
        worst(2)
    );
    viewers.wait().unwrap();
    assert_eq!(server.stream("live")["encoder_starts"], 0);
    assert_eq!(sent.len(), 20);
    assert!(worst(2) <= 3.0, "{sent:?}");
    drop(page);
    studio.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_answered_trickled_restarted_and_ended() {
    let _machine = shared().await;
    let server = serve(&["cube"]).start();
    let created = server.request("POST", "/whip/live", &[SDP], offer().as_bytes());
    assert_eq!((created.status, created.header("content-type")), (201, "application/sdp"), "{}", created.body);
    let (session, etag) = (created.header("location").to_owned(), created.header("etag").to_owned());
    assert!(session.starts_with("/whip/live/") && etag.starts_with('"') && etag.ends_with('"'), "{session} {etag}");
    for expected in
        ["a=group:BUNDLE 0 1", "a=recvonly", "a=rtpmap:96 H264/90000", "a=rtpmap:111 opus/48000/2", "a=candidate:"]
    {
        assert!(created.body.contains(expected), "{expected} in {}", created.body);
    }
    assert!(!created.body.contains("VP8") && !created.body.contains("m=video 0"), "one codec: {}", created.body);

    let patch = |headers: &[(&str, &str)], body: &str| server.request("PATCH", &session, headers, body.as_bytes());
    let trickled = patch(&[FRAG, ("If-Match", &etag)], CANDIDATE);
    assert_eq!((trickled.status, trickled.header("etag")), (204, ""), "the ICE session is the same");
    for (headers, body, status, cause) in [
        (&[FRAG, ("If-Match", "\"stale\"")][..], CANDIDATE, 412, "stale_etag"),
        (&[FRAG][..], CANDIDATE, 428, "if_match_missing"),
        (&[SDP, ("If-Match", &etag)][..], CANDIDATE, 415, "wrong_content_type"),
        (&[FRAG, ("If-Match", &etag)][..], "this is no fragment", 400, "bad_sdpfrag"),
    ] {
        assert_eq!(patch(headers, body).problem(), (status, cause.to_owned()), "{body}");
    }
    let restart = "a=ice-ufrag:efgh\r\na=ice-pwd:nmlkjihgfedcba9876543210\r\n";
    let restarted = patch(&[FRAG, ("If-Match", "*")], restart);
    assert_eq!(restarted.status, 200, "{}", restarted.body);
    assert!(restarted.body.contains("a=ice-ufrag:") && restarted.header("etag") != etag, "{}", restarted.body);
    assert_eq!(patch(&[FRAG, ("If-Match", &etag)], CANDIDATE).status, 412, "the old ICE session is no more");

    for (method, path) in [("GET", session.as_str()), ("HEAD", &session), ("GET", "/whip/live")] {
        let reserved = server.request(method, path, &[], b"");
        assert_eq!((reserved.status, reserved.body.as_str()), (204, ""), "{method} {path}");
    }
    let options = server.request("OPTIONS", "/whip/live", &[], b"");
    assert_eq!((options.status, options.header("accept-post")), (204, "application/sdp"));
    assert!(server.request("PUT", &session, &[], b"").header("allow").contains("DELETE"));

    assert_eq!(
        server.request("POST", "/whip/live", &[SDP], offer().as_bytes()).problem(),
        (409, "already_published".into())
    );
    assert_eq!(server.request("DELETE", &session, &[], b"").status, 200);
    assert_eq!(server.request("DELETE", &session, &[], b"").problem(), (404, "no_such_session".into()));
    let again = server.request("POST", "/whip/live", &[SDP], offer().as_bytes());
    assert_eq!(again.status, 201, "the name is free again: {}", again.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_is_refused_with_a_cause() {
    let _machine = shared().await;
    let server = serve(&["cube"]).unlimited().start();
    let send_nothing = offer().replace("a=sendonly", "a=recvonly");
    let strange = offer().replace("H264", "H265").replace("VP8", "AV2").replace("opus/48000/2", "speex/8000");
    let padding = format!("{}{}", offer(), "a=x\r\n".repeat(20_000));
    for (path, headers, body, status, cause) in [
        ("/whip/cube", &[SDP][..], offer(), 409, "stream_has_a_source"),
        ("/whip/a.b", &[SDP][..], offer(), 404, "bad_stream_name"),
        ("/whip/live", &[][..], offer(), 415, "wrong_content_type"),
        ("/whip/live", &[("Content-Type", "application/json")][..], offer(), 415, "wrong_content_type"),
        ("/whip/live", &[SDP][..], "v=0".to_owned(), 400, "bad_offer"),
        ("/whip/live", &[SDP][..], String::new(), 400, "bad_offer"),
        ("/whip/live", &[SDP][..], send_nothing, 422, "nothing_to_publish"),
        ("/whip/live", &[SDP][..], strange, 422, "nothing_to_publish"),
        ("/whip/live", &[SDP][..], padding, 413, "body_too_large"),
        ("/whip/live", &[SDP, ("Origin", "https://elsewhere.example")][..], offer(), 403, "foreign_origin"),
    ] {
        let answer = server.request("POST", path, headers, body.as_bytes());
        assert_eq!(answer.problem(), (status, cause.to_owned()), "{path}: {}", answer.body);
    }
    assert!(server.peers().is_empty());
    assert_eq!(server.get("/api/v1/streams").json()["streams"].as_array().unwrap().len(), 1, "nothing stays behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_origins_and_takeover_are_the_operators_choice() {
    let _machine = shared().await;
    let server = serve(&["cube"])
        .env("LIGHTPIPE_PUBLISH_TOKEN", "s3cret")
        .env("LIGHTPIPE_PUBLISH_TAKEOVER", "true")
        .env("LIGHTPIPE_PUBLISH_ORIGINS", "https://studio.example")
        .start();
    let post = |headers: &[(&str, &str)]| server.request("POST", "/whip/live", headers, offer().as_bytes());
    for wrong in [&[SDP][..], &[SDP, ("Authorization", "Bearer wrong")], &[SDP, ("Authorization", "s3cret")]] {
        let refused = post(wrong);
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, "Bearer"));
    }
    let right = ("Authorization", "Bearer s3cret");
    let origin = ("Origin", "https://studio.example");
    let first = post(&[SDP, right, origin]);
    assert_eq!(first.status, 201, "{}", first.body);
    let foreign = post(&[SDP, right, ("Origin", "https://other.example")]);
    assert_eq!(foreign.problem(), (403, "foreign_origin".into()));
    assert_eq!(foreign.header("access-control-allow-origin"), "*", "the page may read why");
    assert_eq!(post(&[SDP, right]).status, 201, "the second takes over");
    let gone = server.request("DELETE", first.header("location"), &[], b"");
    assert_eq!(gone.problem(), (404, "no_such_session".into()));
    assert!(!server.stderr().contains("s3cret"), "secrets stay out of logs");
}
