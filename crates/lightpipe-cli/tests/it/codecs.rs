//! A browser that decodes no H.264 sees every stream that we encode, and costs nobody else anything.

use serde_json::{Value, json};

use crate::lab::browser::{PLAYER, firefox_without_h264, inbound, wait_decoded, watch};
use crate::lab::{LAVFI, PATIENCE, Server, Viewer, chromium, quiet, serve, shared, until};

const OFFERED: &str = "(async () => {
  const pc = new RTCPeerConnection();
  pc.addTransceiver('video', { direction: 'recvonly' });
  const { sdp } = await pc.createOffer();
  pc.close();
  return [/ H264\\/90000/.test(sdp), / VP8\\/90000/.test(sdp)];
})()";

/// The alternative of a stream, as the API tells it.
#[track_caller]
fn vp8(stream: &Value) -> &Value {
    let [only] = stream["alternatives"].as_array().unwrap().as_slice() else { panic!("one alternative: {stream}") };
    assert_eq!(only["codec"], "vp8");
    only
}

/// Codecs of the stream's viewers, in the order in which they came.
fn codecs(server: &Server) -> Vec<Value> {
    server.peers().iter().map(|peer| peer["codec"].clone()).collect()
}

/// The codec that a browser says it decodes.
const DECODED: &str = "(async () => {
  const all = [...(await PLAYER.peerConnection.getStats()).values()];
  const codec = all.find(s => s.id === all.find(s => s.type === 'inbound-rtp' && s.kind === 'video')?.codecId);
  return codec?.mimeType ?? null;
})()";

#[tokio::test(flavor = "multi_thread")]
async fn firefox_without_h264_and_chromium_watch_one_stream_each_in_its_codec() {
    let _machine = quiet().await;
    // One media thread, so that both viewers are on it.
    let server = serve(&["pattern"]).size(640, 360).env("LIGHTPIPE_SERVER_MEDIA_THREADS", "1").start();
    let (chromium, firefox) = tokio::join!(chromium(), firefox_without_h264());

    let in_firefox = watch(&firefox, &server, "pattern").await;
    assert_eq!(in_firefox.evaluate(OFFERED).await.unwrap(), json!([false, true]), "what this test is about");
    // The strip is read from the decoded pixels, checksum and all.
    let read = format!("{PLAYER}.stats.latency_ms.source === 'timecode' && {PLAYER}.stats.latency_ms.p50 < 2000");
    in_firefox.wait_until(&read, PATIENCE).await.unwrap();
    let decoded = DECODED.replace("PLAYER", PLAYER);
    assert_eq!(in_firefox.evaluate(&decoded).await.unwrap(), "video/VP8");
    let stats = inbound(&in_firefox, &format!("{PLAYER}.peerConnection")).await;
    assert_eq!((stats["frameWidth"].as_u64(), stats["frameHeight"].as_u64()), (Some(640), Some(360)), "{stats}");
    let stream = server.stream("pattern");
    assert_eq!(
        (&stream["health"], &stream["published"], &stream["encoder_starts"]),
        (&"live".into(), &0.into(), &0.into())
    );
    assert_eq!((&stream["width"], &stream["height"]), (&640.into(), &360.into()));
    assert_eq!(vp8(&stream)["encoder_starts"], 1);
    assert!(
        vp8(&stream)["published"].as_u64().unwrap() > 10 && vp8(&stream)["fps"].as_f64().unwrap() > 5.0,
        "{stream}"
    );
    assert_eq!(codecs(&server), ["vp8"]);
    let heard = format!(
        "(async () => [...(await {PLAYER}.peerConnection.getStats()).values()].some(s => s.type === 'inbound-rtp' && s.kind === 'audio' && s.packetsReceived > 20))()"
    );
    in_firefox.wait_until(&heard, PATIENCE).await.unwrap();

    let in_chromium = watch(&chromium, &server, "pattern").await;
    in_chromium.wait_until(&read, PATIENCE).await.unwrap();
    assert_eq!(in_chromium.evaluate(&decoded).await.unwrap(), "video/H264", "preferred where it is offered");
    assert_eq!(codecs(&server), ["vp8", "h264"]);
    let stream = server.stream("pattern");
    assert_eq!(
        (&stream["viewers"], &stream["codec"], &stream["encoder_starts"]),
        (&2.into(), &"h264".into(), &1.into())
    );
    let metrics = server.get("/metrics").body;
    for codec in ["h264", "vp8"] {
        let name = format!("lightpipe_frames_published_total{{stream=\"pattern\",codec=\"{codec}\",layer=\"f\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&name)).and_then(|n| n.parse::<u64>().ok());
        assert!(count.is_some_and(|n| n > 0), "{name}");
    }

    let dashboard = chromium.open(&server.url("/")).await.unwrap();
    let told = "/VP8/.test(document.querySelector('#peers').textContent) && /H\\.264: \\d+.*VP8: \\d+/.test(document.querySelector('#streams').textContent)";
    dashboard.wait_until(told, PATIENCE).await.unwrap();

    // Each rests by itself, and the other goes on.
    firefox.close().await.unwrap();
    let idle = until("VP8 rests", PATIENCE, || server.events(0).into_iter().find(|e| e["event"] == "track_idle"));
    assert_eq!(idle["codec"], "vp8");
    wait_decoded(&in_chromium, &format!("{PLAYER}.peerConnection"), 10).await;
    let stream = server.stream("pattern");
    assert_eq!(vp8(&stream)["target_bitrate_bps"], Value::Null);
    assert_eq!(stream["encoder_starts"], 1);
    chromium.close().await.unwrap();
}

/// An offer that has VP8 only.
const VP8_ONLY: &str = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n\
    c=IN IP4 0.0.0.0\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\na=setup:actpass\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789abcdefghijklmn\r\n\
    a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\n\
    a=rtpmap:96 VP8/90000\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_child_encoded_is_had_in_its_codec_only() {
    let _machine = shared().await;
    let encoded = "-v error -re -f lavfi -i testsrc2=size=320x180:rate=30 -c:v libx264 -tune zerolatency";
    let server = serve(&[
        &format!("nut=ffmpeg:{}", encoded.trim_start_matches("-v error ")),
        // Found out by its first bytes.
        &format!("annexb=exec:ffmpeg {encoded} -f h264 -"),
        "raw=exec:ffmpeg -v error -re -f lavfi -i testsrc2=size=320x180:rate=30 -pix_fmt rgba -f rawvideo -",
        &format!("cam={LAVFI}"),
    ])
    .unlimited()
    .start();
    for name in ["nut", "annexb", "raw", "cam"] {
        Viewer::join(&server, name).wait_pictures(2, PATIENCE);
    }
    for (name, expected) in [("nut", None), ("annexb", None), ("raw", Some("vp8")), ("cam", Some("vp8"))] {
        let answer = server.post_offer(name, VP8_ONLY);
        let stream = server.stream(name);
        assert_eq!(stream["alternatives"].as_array().unwrap().is_empty(), expected.is_none(), "{name}: {stream}");
        if expected.is_some() {
            assert_eq!(answer.status, 201, "{name}: {answer:?}");
            assert!(answer.body.contains("a=rtpmap:96 VP8/90000"), "{name}: {answer:?}");
            continue;
        }
        assert_eq!(answer.problem(), (422, "no_common_codec".to_owned()), "{name}: {answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(detail, "No common video codec: this stream is H.264 Constrained Baseline, the offer has VP8.");
    }
}

/// A viewer came while nobody knew what the child would write.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_coding_that_never_comes_is_told() {
    let _machine = shared().await;
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("go");
    let command = format!(
        "x=exec:while ! test -e {}; do sleep 0.05; done; exec ffmpeg -v error -re -f lavfi -i testsrc2=size=320x180:rate=30 -c:v libx264 -tune zerolatency -f h264 -",
        marker.display()
    );
    let server = serve(&[&command]).start();
    let answer = server.post_offer("x", VP8_ONLY);
    assert_eq!(answer.status, 201, "{answer:?}");
    std::fs::write(&marker, "").unwrap();
    let ended = server.wait_event(0, "peer_disconnected");
    assert_eq!(ended["cause"], "stream_ended");
    assert_eq!(server.post_offer("x", VP8_ONLY).problem().0, 422, "asking again tells why");
}

/// Colours of three flat streams as a page sees them, in the codec that it prefers.
const COLOURS: &str = "(async () => {
  const colours = [];
  for (const name of ['red', 'green', 'blue']) {
    const pc = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
    const transceiver = pc.addTransceiver('video', { direction: 'recvonly' });
    transceiver.setCodecPreferences(RTCRtpReceiver.getCapabilities('video').codecs.filter(c => c.mimeType === 'video/CODEC'));
    const video = document.body.appendChild(Object.assign(document.createElement('video'), { muted: true, autoplay: true }));
    pc.ontrack = ({ track }) => { video.srcObject = new MediaStream([track]); };
    await pc.setLocalDescription();
    // Firefox is reachable on loopback only where the server knows its candidates.
    await new Promise(resolve => { const look = () => (pc.iceGatheringState === 'complete' ? resolve() : setTimeout(look, 20)); look(); });
    const answer = await fetch('/whep/' + name, { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: pc.localDescription.sdp });
    await pc.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
    await new Promise(resolve => { const look = () => (video.currentTime > 0.5 ? resolve() : setTimeout(look, 20)); look(); });
    const context = Object.assign(document.createElement('canvas'), { width: 16, height: 16 }).getContext('2d');
    context.drawImage(video, 0, 0, 16, 16);
    colours.push([...context.getImageData(8, 8, 1, 1).data].slice(0, 3));
    pc.close();
  }
  return colours;
})()";

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_the_same_in_every_codec() {
    let _machine = quiet().await;
    let colour = |name: &str, rgb: &str| {
        format!(
            "{name}=exec:ffmpeg -v error -re -f lavfi -i color=0x{rgb}:size=320x180:rate=30,format=rgba -pix_fmt rgba -f rawvideo -"
        )
    };
    let sources = [colour("red", "d04030"), colour("green", "30b050"), colour("blue", "4050d0")];
    let server = serve(&sources.each_ref().map(String::as_str)).unlimited().start();
    let (chromium, firefox) = tokio::join!(chromium(), firefox_without_h264());
    for (name, browser, codec) in
        [("Chromium", &chromium, "H264"), ("Chromium", &chromium, "VP8"), ("Firefox", &firefox, "VP8")]
    {
        let page = browser.open(&server.url("/healthz")).await.unwrap();
        let seen = page.evaluate(&COLOURS.replace("CODEC", codec)).await.unwrap();
        let wanted = [[0xd0, 0x40, 0x30], [0x30, 0xb0, 0x50], [0x40, 0x50, 0xd0]];
        let away = wanted
            .as_flattened()
            .iter()
            .enumerate()
            .map(|(n, wanted): (usize, &i64)| (seen[n / 3][n % 3].as_i64().unwrap() - wanted).abs());
        // Pictures of BT.709 taken for BT.601 are twenty away.
        assert!(away.max() <= Some(8), "{name}, {codec}: {seen} instead of {wanted:?}");
    }
    chromium.close().await.unwrap();
    firefox.close().await.unwrap();
}
