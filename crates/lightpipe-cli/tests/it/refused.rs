//! Bad input: a typed error that names what was wrong, and nothing else disturbed.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::lab::http::Answer;
use crate::lab::{LAVFI, PATIENCE, Server, Viewer, chromium, quiet, serve, shared, until};

const SDP: (&str, &str) = ("Content-Type", "application/sdp");

/// A viewer that watches on while others err.
struct Bystander(Viewer);

impl Bystander {
    #[track_caller]
    fn join(server: &Server) -> Self {
        let viewer = Viewer::join(server, "pattern");
        viewer.wait_pictures(10, PATIENCE);
        viewer.take_longest_gap();
        Self(viewer)
    }

    #[track_caller]
    fn assert_undisturbed(self, server: &Server) {
        self.0.wait_pictures(15, PATIENCE);
        let gap = self.0.take_longest_gap();
        assert!(gap < Duration::from_secs(1), "stood still for {gap:?}");
        assert!(self.0.closed().is_none());
        assert_eq!(server.peers().len(), 1, "what was refused leaves no session");
    }
}

#[track_caller]
fn check(answer: &Answer, status: u16, cause: &str) {
    assert_eq!(answer.problem(), (status, cause.to_owned()), "{answer:?}");
}

/// A browser's offer for one video codec.
fn offer(codec: &str) -> String {
    [
        "v=0",
        "o=- 1 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "m=video 9 UDP/TLS/RTP/SAVPF 96",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=recvonly",
        "a=rtcp-mux",
        "a=setup:actpass",
        "a=ice-ufrag:abcd",
        "a=ice-pwd:0123456789abcdefghijklmn",
        "a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF",
        &format!("a=rtpmap:96 {codec}/90000"),
        "",
    ]
    .join("\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_offers_are_refused_by_name_and_nobody_else_is_disturbed() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).unlimited().start();
    let bystander = Bystander::join(&server);
    let post = |path: &str, headers: &[(&str, &str)], body: &[u8]| server.request("POST", path, headers, body);

    let no_codec = server.post_offer("pattern", &offer("AV1"));
    check(&no_codec, 422, "no_common_codec");
    let detail = no_codec.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("H.264") && detail.contains("AV1"), "both sides' codecs are named: {detail}");
    assert_eq!(detail.contains("VP8"), cfg!(feature = "vpx"), "{detail}");
    let unknown = server.post_offer("nobody", &offer("VP8"));
    check(&unknown, 404, "no_such_stream");
    assert!(unknown.body.contains("nobody") && unknown.body.contains("pattern"), "what there is: {unknown:?}");

    for malformed in
        ["", "hello", "v=0\r\n", "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video\r\n", "\0\0\0"]
    {
        check(&server.post_offer("pattern", malformed), 400, "bad_offer");
    }
    let half = offer("H264");
    // Behind the codec's name an offer is whole: GStreamer's says no more of it.
    for cut in (0..half.find("H264").unwrap()).step_by(7) {
        let answer = server.post_offer("pattern", &half[..cut]);
        assert!([400, 422].contains(&answer.status), "cut after {cut}: {answer:?}");
        answer.problem();
    }
    check(&post("/whep/pattern", &[SDP], &[0xff, 0xfe, 0x00, 0x80]), 400, "bad_encoding");
    let audio_only = offer("opus").replace("m=video", "m=audio").replace("opus/90000", "opus/48000/2");
    check(&server.post_offer("pattern", &audio_only), 422, "no_video_in_offer");

    check(&post("/whep/pattern", &[SDP], &vec![b'v'; (64 << 10) + 1]), 413, "body_too_large");
    let many_lines = offer("H264") + &"m=video 9 UDP/TLS/RTP/SAVPF 96\r\n".repeat(17);
    check(&server.post_offer("pattern", &many_lines), 413, "offer_too_large");
    let chatty = offer("H264") + &"a=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n".repeat(65);
    check(&server.post_offer("pattern", &chatty), 413, "offer_too_large");

    check(&post("/whep/pattern", &[("Content-Type", "application/json")], b"{}"), 415, "wrong_content_type");
    check(&post("/whep/pattern", &[], offer("H264").as_bytes()), 415, "wrong_content_type");
    for method in ["PUT", "PATCH", "DELETE"] {
        check(&server.request(method, "/whep/pattern", &[], b""), 405, "wrong_method");
    }
    for method in ["POST", "PUT"] {
        check(&server.request(method, "/whep/pattern/abc", &[], b""), 405, "wrong_method");
    }
    check(&server.get("/whep/nobody"), 404, "no_such_stream");
    check(&server.get("/whep/pattern/abc"), 404, "no_such_session");
    check(&server.get("/nothing/here"), 404, "no_such_page");
    check(&server.get("/assets/../Cargo.toml"), 404, "no_such_file");
    assert_eq!(server.get("/watch/nobody").status, 404);
    bystander.assert_undisturbed(&server);
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_media_port_disturbs_nobody() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let bystander = Bystander::join(&server);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = 12_345u32;
    for n in 0..3000usize {
        let mut bytes: Vec<u8> = (0..n % 700)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            })
            .collect();
        // A third looks like STUN, a third like DTLS, a third like RTP.
        if let Some(first) = bytes.first_mut() {
            *first = [0x00, 0x16, 0x80][n % 3];
        }
        socket.send_to(&bytes, server.address()).unwrap();
    }
    bystander.assert_undisturbed(&server);
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_offers_from_one_address_is_told_to_wait() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let answers: Vec<Answer> = (0..60).map(|_| server.post_offer("pattern", "hello")).collect();
    let refused = answers.iter().find(|a| a.status == 429).expect("a limit");
    check(refused, 429, "too_many_requests");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(server.get("/healthz").status, 200, "other requests pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_ffmpeg_is_named_with_what_helps_and_found_when_it_comes() {
    let _machine = shared().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ffmpeg-of-tomorrow");
    let path_text = path.to_str().unwrap();
    let server = serve(&["pattern", &format!("cam={LAVFI}")]).args(&["--ffmpeg", path_text]).start();
    let bystander = Bystander::join(&server);
    let failed = server.wait_event(0, "source_failed");
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.contains(path_text) && reason.to_lowercase().contains("install"), "what and what helps: {reason}");
    assert_eq!(server.stream("cam")["health"], "failed");
    assert!(server.stream("cam")["reason"].as_str().unwrap().contains(path_text));
    bystander.assert_undisturbed(&server);

    let real =
        String::from_utf8(std::process::Command::new("sh").args(["-c", "command -v ffmpeg"]).output().unwrap().stdout)
            .unwrap();
    std::os::unix::fs::symlink(real.trim(), &path).unwrap();
    until("the stream's recovery", PATIENCE, || (server.stream("cam")["health"] == "live").then_some(()));
}

/// Runs a program in FFmpeg's place; answers the reason that the stream shows.
#[track_caller]
fn reason_with(script: &str, source: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ffmpeg");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = serve(&["pattern", source]).args(&["--ffmpeg", path.to_str().unwrap()]).start();
    let bystander = Bystander::join(&server);
    let exited = server.wait_event(0, "ffmpeg_exited");
    assert_ne!(exited["stream"], "pattern");
    bystander.assert_undisturbed(&server);
    exited["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ffmpeg_that_writes_noise_is_named_and_the_others_go_on() {
    let _machine = shared().await;
    let encoded = format!("cam={LAVFI} -c:v libx264");
    let reason = reason_with("exec cat /dev/urandom", &encoded);
    assert!(reason.contains("ffmpeg") && reason.contains("NUT"), "{reason}");
    let reason = reason_with("echo Unknown encoder libx264 >&2; exit 1", &encoded);
    assert!(reason.contains("code 1") && reason.contains("Unknown encoder libx264"), "its own last words: {reason}");
    let reason = reason_with("head -c 1000 /dev/zero; echo disk on fire >&2; exit 7", &format!("cam={LAVFI}"));
    assert!(reason.contains("code 7") && reason.contains("disk on fire"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_a_common_codec_says_so_in_one_sentence() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/healthz")).await.unwrap();
    // What Chromium offers when it is told to prefer nothing but VP9.
    let script = "(async () => {
      const pc = new RTCPeerConnection(), transceiver = pc.addTransceiver('video', { direction: 'recvonly' });
      transceiver.setCodecPreferences(RTCRtpReceiver.getCapabilities('video').codecs.filter(c => c.mimeType === 'video/VP9'));
      const { sdp } = await pc.createOffer();
      const answer = await fetch('/whep/pattern', { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: sdp });
      return [answer.status, await answer.json()];
    })()";
    let answer = page.evaluate(script).await.unwrap();
    assert_eq!((&answer[0], &answer[1]["cause"]), (&422.into(), &"no_common_codec".into()), "{answer}");
    browser.close().await.unwrap();
}
