//! WHEP as its drafts have it: trickle, restart, the end, and pages of other origins.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;

use crate::lab::browser::{PLAYER, foreign_page, inbound, wait_decoded, wait_playing};
use crate::lab::server::program;
use crate::lab::standin::{Manner, Real, StandIn};
use crate::lab::{PATIENCE, Server, Viewer, chromium, http, quiet, serve, shared, until};

const FRAG: (&str, &str) = ("Content-Type", "application/trickle-ice-sdpfrag");
const CANDIDATE: &str = "a=mid:0\r\na=candidate:1 1 udp 2130706431 127.0.0.1 50000 typ host\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_trickles_refuses_what_is_stale_and_ends_once() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let viewer = Viewer::join(&server, "pattern");
    viewer.wait_pictures(5, PATIENCE);
    let (session, etag) = (viewer.session.as_str(), viewer.etag.as_str());
    assert!(session.starts_with("/whep/pattern/"), "{session}");
    assert!(etag.len() > 4 && etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
    let patch = |headers: &[(&str, &str)], body: &str| server.request("PATCH", session, headers, body.as_bytes());

    let trickled = patch(&[FRAG, ("If-Match", etag)], CANDIDATE);
    assert_eq!((trickled.status, trickled.body.as_str(), trickled.header("etag")), (204, "", ""));
    let mdns = "a=candidate:1 1 udp 1 0c6a9ba0-1111.local 50000 typ host\r\na=end-of-candidates\r\n";
    assert_eq!(patch(&[FRAG, ("If-Match", etag)], mdns).status, 204, "ignored quietly");
    for (headers, body, status, cause) in [
        (&[FRAG, ("If-Match", "\"stale\"")][..], CANDIDATE, 412, "stale_etag"),
        (&[FRAG][..], CANDIDATE, 428, "if_match_missing"),
        (&[("Content-Type", "application/sdp"), ("If-Match", etag)][..], CANDIDATE, 415, "wrong_content_type"),
        (&[FRAG, ("If-Match", etag)][..], "this is no fragment", 400, "bad_sdpfrag"),
        (&[FRAG, ("If-Match", etag)][..], "a=ice-ufrag:x\r\n", 400, "bad_sdpfrag"),
        (&[FRAG, ("If-Match", etag)][..], "a=candidate:nonsense\r\n", 400, "bad_candidate"),
    ] {
        assert_eq!(patch(headers, body).problem(), (status, cause.to_owned()), "{body}");
    }
    assert_eq!(patch(&[FRAG, ("If-Match", etag)], &"a=x\r\n".repeat(9000)).problem().0, 413);
    let elsewhere = session.replace("/pattern/", "/other/");
    assert_eq!(server.request("DELETE", &elsewhere, &[], b"").status, 404, "a session belongs to its stream");
    viewer.wait_pictures(5, PATIENCE);

    assert_eq!(server.request("DELETE", session, &[], b"").status, 200);
    assert_eq!(server.request("DELETE", session, &[], b"").problem(), (404, "no_such_session".into()));
    assert_eq!(patch(&[FRAG, ("If-Match", etag)], CANDIDATE).problem(), (404, "no_such_session".into()));
    server.wait_peers(0, PATIENCE);
}

/// Server-sent events as they come.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(server: &Server, path: &str) -> Self {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        Self(reader)
    }

    /// Name and data of the next one; none at the end.
    fn next(&mut self) -> Option<(String, String)> {
        let mut event = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(name) = line.strip_prefix("event: ") {
                name.trim().clone_into(&mut event);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((event, data.trim().to_owned()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_tells_of_its_stream_by_server_sent_events() {
    let _machine = shared().await;
    let mut server = serve(&["pattern"]).start();
    let viewer = Viewer::join(&server, "pattern");
    viewer.wait_pictures(5, PATIENCE);
    let json = ("Content-Type", "application/json");
    let post =
        |path: &str, body: &str| server.request("POST", &format!("{}{path}", viewer.session), &[json], body.as_bytes());

    let made = post("/events", r#"["active","layers","viewercount","reconnect","scte35"]"#);
    assert_eq!(made.status, 201, "{made:?}");
    let mut events = Events::open(&server, made.header("location"));
    let mut told = std::collections::BTreeMap::new();
    while told.len() < 3 {
        let (event, data) = events.next().unwrap();
        told.insert(event, serde_json::from_str::<serde_json::Value>(&data).unwrap());
    }
    assert_eq!(told["active"], serde_json::json!({}));
    assert_eq!(told["viewercount"]["viewercount"], 1);
    let layer = &told["layers"]["0"][0];
    assert_eq!(
        (&layer["width"], &layer["height"], &layer["spatialLayerId"]),
        (&320.into(), &180.into(), &0.into()),
        "{layer}"
    );

    // What was not asked for is not told, and what was ended is gone.
    let quiet = post("/events", r#"["inactive"]"#).header("location").to_owned();
    assert_eq!(server.request("DELETE", &quiet, &[], b"").status, 200);
    assert_eq!(server.get(&quiet).problem(), (404, "no_such_event_stream".into()));
    assert_eq!(post("/events", "active").problem(), (400, "bad_events".into()));
    let many: Vec<u16> = (0..5).map(|_| post("/events", "[]").status).collect();
    assert_eq!(many, [201, 201, 201, 429, 429], "one is open already");
    assert_eq!(server.request("POST", "/whep/pattern/nobody/events", &[json], b"[]").problem().0, 404);

    for (body, status) in
        [("{}", 200), (r#"{"mediaId":"0","spatialLayerId":0}"#, 200), (r#"{"rid":"h"}"#, 422), ("h", 400)]
    {
        assert_eq!(post("/layer", body).status, status, "{body}");
    }
    // The server ends: players are told to come back.
    server.signal(rustix::process::Signal::TERM);
    let last = std::iter::from_fn(|| events.next()).last().unwrap();
    assert_eq!(last, ("reconnect".into(), "{}".into()));
    server.wait_exit(PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_cannot_be_used_is_countered_for_those_who_read_sdp() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).unlimited().start();
    let address = server.address();
    // Between our player and our server stands somebody who makes its offer one of VP9.
    let between = StandIn::start(Real::new(address, ""), move |asked, _, _| {
        let spoilt = asked.body.replace("H264/90000", "VP9/90000").replace("VP8/90000", "VP9/90000");
        let body = if asked.method == "POST" { &spoilt } else { &asked.body };
        let headers = [("Content-Type", "application/sdp"), ("Accept", "application/sdp")];
        let headers = if body.is_empty() { &[][..] } else { &headers };
        let answer = http::request(address, &asked.method, &asked.target, headers, body.as_bytes()).unwrap();
        let (kind, location) = (answer.header("content-type"), answer.header("location"));
        let headers: Vec<_> =
            [("Content-Type", kind), ("Location", location)].into_iter().filter(|(_, v)| !v.is_empty()).collect();
        Manner::say(answer.status, &headers, &answer.body)
    });
    let mut command = program();
    command.args(["play", &between.url("/whep/pattern"), "--host", "127.0.0.1", "--raw", "--seconds", "1"]);
    let out = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let pictures = out.stdout.len() / (320 * 180 * 3 / 2);
    assert!(pictures > 15 && out.stdout.len().is_multiple_of(320 * 180 * 3 / 2), "{pictures}");
    let methods: Vec<String> = between.asked().into_iter().map(|asked| asked.method).collect();
    assert_eq!(methods, ["POST", "PATCH", "DELETE"]);
    server.wait_peers(0, PATIENCE);

    // Who does not read SDP hears why.
    let offer = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\n\
        a=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdefghijklmn\r\na=fingerprint:sha-256 \
        00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\na=setup:actpass\r\n\
        a=mid:0\r\na=recvonly\r\na=rtcp-mux\r\na=rtpmap:96 VP9/90000\r\n";
    assert_eq!(server.post_offer("pattern", offer).problem(), (422, "no_common_codec".into()));
    let headers = [("Content-Type", "application/sdp"), ("Accept", "application/sdp;q=0.9, */*")];
    let countered = server.request("POST", "/whep/pattern", &headers, offer.as_bytes());
    assert_eq!(countered.status, 406);
    assert!(countered.header("content-type").starts_with("application/sdp; valid-until=\""), "{countered:?}");
    assert!(countered.body.contains("a=sendonly") && countered.body.contains("H264"), "{countered:?}");
    let bad = server.request("PATCH", countered.header("location"), &[("Content-Type", "application/sdp")], b"v=0\r\n");
    assert_eq!(bad.problem(), (400, "bad_answer".into()));
}

/// A viewer as a program would write it, on the server's own origin.
const JOIN: &str = "(async () => {
  const pc = window.pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
  pc.addTransceiver('video', { direction: 'recvonly' });
  const video = document.body.appendChild(Object.assign(document.createElement('video'), { muted: true, autoplay: true }));
  pc.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); };
  await pc.setLocalDescription();
  const answer = await fetch('/whep/pattern', { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: pc.localDescription.sdp });
  window.session = new URL(answer.headers.get('Location'), location).href;
  window.etag = answer.headers.get('ETag');
  window.answer = await answer.text();
  await pc.setRemoteDescription({ type: 'answer', sdp: window.answer });
  return answer.status;
})()";

/// RFC 9725 §4.3.2: new credentials by PATCH, the server's new ones in the answer, put into the answer that we have.
const RESTART: &str = "(async () => {
  const line = (sdp, name) => sdp.match(new RegExp('a=' + name + ':(.*)'))[1].trim();
  pc.restartIce();
  await pc.setLocalDescription();
  const sdp = pc.localDescription.sdp;
  const frag = ['a=ice-ufrag:' + line(sdp, 'ice-ufrag'), 'a=ice-pwd:' + line(sdp, 'ice-pwd'), 'm=video 9 UDP/TLS/RTP/SAVPF 0', 'a=mid:0', ''].join('\\r\\n');
  const patch = (match) => fetch(session, { method: 'PATCH', headers: { 'Content-Type': 'application/trickle-ice-sdpfrag', 'If-Match': match }, body: frag });
  const refused = (await patch(etag)).status;
  const response = await patch('*');
  const text = await response.text();
  const restarted = answer
    .replace(/a=ice-ufrag:.*/g, 'a=ice-ufrag:' + line(text, 'ice-ufrag'))
    .replace(/a=ice-pwd:.*/g, 'a=ice-pwd:' + line(text, 'ice-pwd'))
    .replace(/a=candidate:.*\\r\\n/g, '');
  await pc.setRemoteDescription({ type: 'answer', sdp: restarted });
  for (const [, candidate] of text.matchAll(/a=(candidate:.*)\\r\\n/g)) await pc.addIceCandidate({ candidate, sdpMid: '0' });
  return { refused, status: response.status, type: response.headers.get('Content-Type'), etag: response.headers.get('ETag'),
    before: line(answer, 'ice-ufrag'), after: line(text, 'ice-ufrag'), mine: line(sdp, 'ice-ufrag'), candidates: /a=candidate:/.test(text) };
})()";

#[tokio::test(flavor = "multi_thread")]
async fn an_ice_restart_by_patch_gives_new_credentials_and_media_goes_on() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/healthz")).await.unwrap();
    assert_eq!(page.evaluate(JOIN).await.unwrap(), 201);
    wait_decoded(&page, "pc", 10).await;
    let (before, peers) = (inbound(&page, "pc").await, server.peer_ids());

    let restart = page.evaluate(RESTART).await.unwrap();
    assert_eq!(restart["refused"], 412, "a restart under the old ETag: {restart}");
    assert_eq!((&restart["status"], &restart["type"]), (&200.into(), &"application/trickle-ice-sdpfrag".into()));
    assert_ne!(restart["before"], restart["after"], "new credentials");
    assert_eq!(restart["candidates"], true);
    let old_etag = page.evaluate("etag").await.unwrap();
    assert_ne!(restart["etag"], old_etag, "a new ICE session has a new ETag");

    // The pair in use has the new credentials, and pictures keep coming over it.
    let renewed = format!(
        "(async () => {{ const report = await pc.getStats(); const all = [...report.values()];
          const pair = report.get(all.find(s => s.type === 'transport').selectedCandidatePairId);
          return pair?.state === 'succeeded' && report.get(pair.localCandidateId).usernameFragment === '{}' && pc.iceConnectionState }})()",
        restart["mine"].as_str().unwrap()
    );
    page.wait_until(&renewed, PATIENCE).await.unwrap();
    wait_decoded(&page, "pc", 30).await;
    let after = inbound(&page, "pc").await;
    assert_eq!((&before["ssrc"], server.peer_ids()), (&after["ssrc"], peers), "the same session");

    // The old ETag is history, the new one works, and the session ends as before.
    let script = format!(
        "(async () => {{ const patch = (match) => fetch(session, {{ method: 'PATCH', headers: {{ 'Content-Type': 'application/trickle-ice-sdpfrag', 'If-Match': match }}, body: '' }}).then(r => r.status);
          return [await patch(etag), await patch({}), (await fetch(session, {{ method: 'DELETE' }})).status, (await fetch(session, {{ method: 'DELETE' }})).status] }})()",
        restart["etag"]
    );
    assert_eq!(page.evaluate(&script).await.unwrap(), serde_json::json!([412, 204, 200, 404]));
    server.wait_peers(0, PATIENCE);
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lines_of_html_on_a_foreign_page_play() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let html = format!(
        "<!doctype html><title>elsewhere</title><script type=\"module\" src=\"{}\"></script>\n<lightpipe-player src=\"{}\"></lightpipe-player>",
        server.url("/player.js"),
        server.url("/whep/pattern")
    );
    let url = foreign_page(html);
    let browser = chromium().await;
    let page = browser.open(&url).await.unwrap();
    wait_playing(&page).await;
    wait_decoded(&page, &format!("{PLAYER}.peerConnection"), 10).await;
    // Its end is told too: DELETE passes the preflight.
    assert!(page.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap().as_str().unwrap().contains("/whep/pattern/"));
    page.evaluate(&format!("{PLAYER}.stop()")).await.unwrap();
    server.wait_peers(0, PATIENCE);

    // What is not for viewers is closed to other origins.
    for path in ["/api/v1/peers", "/metrics"] {
        let script = format!("fetch('{}').then(() => 'readable', () => 'refused')", server.url(path));
        assert_eq!(page.evaluate(&script).await.unwrap(), "refused", "{path}");
    }
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_of_a_foreign_origin_allows_what_a_viewer_needs() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    for (path, method) in [("/whep/pattern", "POST"), ("/whep/pattern/abc", "PATCH"), ("/whep/pattern/abc", "DELETE")] {
        let headers = [
            ("Origin", "https://elsewhere.example"),
            ("Access-Control-Request-Method", method),
            ("Access-Control-Request-Headers", "content-type,if-match,authorization"),
        ];
        let answer = server.request("OPTIONS", path, &headers, b"");
        assert!([200, 204].contains(&answer.status), "{answer:?}");
        assert!(
            ["*", "https://elsewhere.example"].contains(&answer.header("access-control-allow-origin")),
            "{answer:?}"
        );
        assert!(answer.header("access-control-allow-methods").contains(method), "{answer:?}");
        let allowed = answer.header("access-control-allow-headers").to_lowercase();
        assert!(["content-type", "if-match", "authorization"].iter().all(|h| allowed.contains(h)), "{answer:?}");
    }
    let foreign = [("Origin", "https://elsewhere.example"), ("Content-Type", "application/sdp")];
    let refused = server.request("POST", "/whep/nobody", &foreign, b"");
    assert_eq!(refused.status, 404);
    assert_eq!(refused.header("access-control-allow-origin"), "*", "a foreign page may read why");
    let exposed = refused.header("access-control-expose-headers").to_lowercase();
    assert!(["location", "etag", "link"].iter().all(|h| exposed.contains(h)), "{exposed}");
}

/// spec.md §11: "static payload type 96 while the browser's offer says otherwise".
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_speaks_the_offers_payload_types_and_not_static_ones() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    for (h264, vp8) in [(35, 96), (126, 97), (96, 108)] {
        let offer = [
            "v=0",
            "o=- 1 2 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0",
            &format!("m=video 9 UDP/TLS/RTP/SAVPF {vp8} {h264}"),
            "c=IN IP4 0.0.0.0",
            "a=mid:0",
            "a=recvonly",
            "a=rtcp-mux",
            "a=setup:actpass",
            "a=ice-ufrag:abcd",
            "a=ice-pwd:0123456789abcdefghijklmn",
            &format!("a=fingerprint:sha-256 {}", ["AB"; 32].join(":")),
            &format!("a=rtpmap:{vp8} VP8/90000"),
            &format!("a=rtpmap:{h264} H264/90000"),
            &format!("a=fmtp:{h264} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"),
            "",
        ]
        .join("\r\n");
        let answer = server.post_offer("pattern", &offer);
        assert_eq!(answer.status, 201, "{answer:?}");
        let line = |start: &str| answer.body.lines().find(|l| l.starts_with(start)).unwrap_or_default().to_owned();
        assert_eq!(line("m=video"), format!("m=video 9 UDP/TLS/RTP/SAVPF {h264}"), "{answer:?}");
        assert!(line(&format!("a=fmtp:{h264} ")).contains("profile-level-id=42e01f"), "{answer:?}");
        assert!(!answer.body.contains("VP8"), "{answer:?}");
    }
}

/// spec.md §11: "RTCP not drained: no sender reports, receivers compute no bitrate".
#[tokio::test(flavor = "multi_thread")]
async fn reports_flow_both_ways_and_give_round_trip_and_loss() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/healthz")).await.unwrap();
    page.evaluate(JOIN).await.unwrap();
    let reports = "(async () => [...(await pc.getStats()).values()].find(s => s.type === 'remote-outbound-rtp' && s.reportsSent > 1))()";
    let sent = page.wait_until(reports, PATIENCE).await.unwrap();
    assert!(sent["packetsSent"].as_u64().unwrap() > 10 && sent["bytesSent"].as_u64().unwrap() > 1000, "{sent}");
    // The report's NTP time is the server's wall clock, which is ours here.
    let unix_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64() * 1000.0;
    let told = sent["remoteTimestamp"].as_f64().unwrap();
    assert!((unix_ms - told).abs() < 10_000.0, "a sender report of {told}, it is {unix_ms}");
    let peer = until("the receiver's report", PATIENCE, || {
        server.peers().into_iter().find(|p| p["rtt_ms"].is_number() && p["loss"].is_number())
    });
    assert!(peer["rtt_ms"].as_f64().unwrap() < 1000.0 && peer["loss"] == 0.0, "{peer}");
    browser.close().await.unwrap();
}
