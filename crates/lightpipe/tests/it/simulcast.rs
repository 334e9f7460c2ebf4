//! A browser, or our own client, publishes in three sizes; each is a layer of its own, whole and at the same times.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it measured")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lightpipe::{Server, Size};
use lightpipe_browser::{Browser, Kind, Options, Page};
use lightpipe_codec::decoder::{VideoDecoder, decoder_for};
use lightpipe_media::stream::Health;
use lightpipe_media::{AccessUnit, AudioPacket, MediaTime, Outlet, Stream, Subscription, VideoCodec};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);

/// A page that publishes what it is told: rates are low, so that two cores carry three encoders beside other tests.
const PUBLISH: &str = r#"
window.publish = async (codec, encodings, width, height) => {
  const media = window.media ??= await navigator.mediaDevices.getUserMedia({ video: { width, height, frameRate: 15 } });
  const pc = window.pc = new RTCPeerConnection();
  const [track] = media.getVideoTracks();
  const sending = pc.addTransceiver(track, { direction: 'sendonly', ...(encodings.length ? { sendEncodings: encodings } : {}) });
  const all = RTCRtpSender.getCapabilities('video').codecs;
  const first = all.filter((c) => c.mimeType === `video/${codec}`);
  sending.setCodecPreferences([...first, ...all.filter((c) => c.mimeType === 'video/rtx')]);
  await pc.setLocalDescription();
  const answer = await fetch('/whip/live', { method: 'POST', headers: { 'Content-Type': 'application/sdp' }, body: pc.localDescription.sdp });
  window.session = answer.headers.get('Location');
  const sdp = await answer.text();
  if (!answer.ok) throw new Error(sdp);
  await pc.setRemoteDescription({ type: 'answer', sdp });
  return sdp;
};
window.setActive = async (rid, active) => {
  const [sender] = window.pc.getSenders();
  const parameters = sender.getParameters();
  parameters.encodings.find((e) => e.rid === rid).active = active;
  await sender.setParameters(parameters);
};
window.leave = async () => { window.pc.close(); await fetch(window.session, { method: 'DELETE' }); };
"#;

const FHQ: &str = "[{ rid: 'f' }, { rid: 'h', scaleResolutionDownBy: 2 }, { rid: 'q', scaleResolutionDownBy: 4 }]";

/// What a decoder made of one layer.
#[derive(Default)]
struct Seen {
    decoder: Option<Box<dyn VideoDecoder>>,
    /// Decoded pictures by capture time, and their sizes.
    decoded: BTreeMap<MediaTime, Size>,
    errors: Vec<String>,
}

/// Decodes all of a layer from its first keyframe on.
#[derive(Default)]
struct Watching(Mutex<Seen>);

impl Outlet for Watching {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        let mut seen = self.0.lock().unwrap();
        let Seen { decoder, decoded, errors } = &mut *seen;
        if decoder.is_none() && !unit.keyframe {
            return;
        }
        match decoder.get_or_insert_with(|| decoder_for(unit.codec).unwrap()).decode(unit) {
            Ok(Some(frame)) => assert_eq!(decoded.insert(frame.captured, frame.size()), None, "each time once"),
            Ok(None) => {}
            Err(error) => errors.push(error.to_string()),
        }
    }

    fn deliver_audio(&self, _: &Arc<AudioPacket>) {}
}

impl Watching {
    fn count(&self) -> usize {
        self.0.lock().unwrap().decoded.len()
    }

    fn last_size(&self) -> Option<Size> {
        self.0.lock().unwrap().decoded.last_key_value().map(|(_, size)| *size)
    }
}

fn watch(stream: &Arc<Stream>) -> (Arc<Watching>, Subscription) {
    let watching = Arc::new(Watching::default());
    let subscription = stream.subscribe(Arc::clone(&watching) as Arc<dyn Outlet>);
    (watching, subscription)
}

fn server() -> Server {
    let mut config = lightpipe::Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    Server::start(config).expect("a free port")
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn rids(stream: &Arc<Stream>) -> Vec<String> {
    stream.layers().iter().filter_map(|layer| layer.layer()).map(|layer| layer.rid).collect()
}

fn live(stream: &Stream) -> bool {
    stream.health() == Health::Live
}

async fn studio(server: &Server) -> (Browser, Page) {
    let options = Options::default().with_fake_media_devices(true).with_command_timeout(PATIENCE);
    let browser = Browser::launch(Kind::Chromium, options).await.unwrap();
    let page = browser.open(&format!("{}/", server.url())).await.unwrap();
    page.evaluate(&format!("void (() => {{ {PUBLISH} }})()")).await.unwrap();
    (browser, page)
}

async fn publish(page: &Page, codec: &str, encodings: &str) -> String {
    let answer = page.evaluate(&format!("window.publish('{codec}', {encodings}, 1280, 720)")).await.unwrap();
    answer.as_str().unwrap_or_default().to_owned()
}

/// The publisher's figures, one by RID.
fn received(server: &Server) -> BTreeMap<String, Value> {
    let peers: Value = serde_json::from_str(&get(server, "/api/v1/peers")).unwrap();
    let publisher = peers["peers"].as_array().unwrap().iter().find(|peer| peer["role"] == "publisher").cloned();
    let layers = publisher.map(|peer| peer["received"]["layers"].clone()).unwrap_or_default();
    let layers = layers.as_array().cloned().unwrap_or_default();
    layers.into_iter().map(|layer| (layer["rid"].as_str().unwrap().to_owned(), layer)).collect()
}

fn get(server: &Server, path: &str) -> String {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(server.address()).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.address()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Three layers come, whole, in their sizes and at the same times; a request for a keyframe reaches its own layer only.
async fn arrives_in_three_sizes(codec: &str, encodings: &str) {
    let server = server();
    let (browser, page) = studio(&server).await;
    let answer = publish(&page, codec, encodings).await;
    assert_eq!(answer.matches(" recv\r\n").count(), 3, "{answer}");
    let stream = until("the stream", || server.streams().find("live")).await;
    let layers = until("all layers", || {
        let layers = stream.layers();
        (layers.len() == 3 && layers.iter().all(|layer| live(layer)) && layers[0].stats().size? == Size::new(1280, 720))
            .then_some(layers)
    })
    .await;
    assert_eq!(rids(&stream), ["f", "h", "q"]);
    let watching: Vec<_> = layers.iter().map(watch).collect();
    until("pictures of all layers", || watching.iter().all(|(seen, _)| seen.count() >= 90).then_some(())).await;
    for ((seen, _), (width, height)) in watching.iter().zip([(1280, 720), (640, 360), (320, 180)]) {
        let seen = seen.0.lock().unwrap();
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
        assert!(seen.decoded.values().all(|size| *size == Size::new(width, height)), "{:?}", seen.decoded);
    }
    let told: Vec<Size> = stream.layers().iter().filter_map(|layer| layer.layer()).map(|layer| layer.size).collect();
    assert_eq!(told, [Size::new(1280, 720), Size::new(640, 360), Size::new(320, 180)]);

    // The last second of the lower ones against the best one: all are 66 ms apart.
    let best: Vec<MediaTime> = watching[0].0.0.lock().unwrap().decoded.keys().copied().collect();
    for (seen, _) in &watching[1..] {
        let times: Vec<MediaTime> = seen.0.lock().unwrap().decoded.keys().rev().skip(5).take(15).copied().collect();
        let off = |at: &MediaTime| best.iter().map(|b| (b.as_micros() - at.as_micros()).abs()).min().unwrap();
        let mut offs: Vec<i64> = times.iter().map(off).collect();
        offs.sort_unstable();
        println!("{codec}: µs off the best layer: {offs:?}");
        assert!(offs[7] < 3_000, "{offs:?}");
    }

    until("figures", || (received(&server).len() == 3).then_some(())).await;
    let before = received(&server);
    watching[1].1.request_keyframe();
    let requests = |all: &BTreeMap<String, Value>, rid: &str| all[rid]["keyframe_requests"].as_u64().unwrap();
    let after = until("a request on the layer in the middle", || {
        let after = received(&server);
        (requests(&after, "h") > requests(&before, "h")).then_some(after)
    })
    .await;
    for rid in ["f", "q"] {
        assert_eq!(requests(&after, rid), requests(&before, rid), "{rid}: {after:?}");
    }
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_publishes_three_layers_of_h264() {
    arrives_in_three_sizes("H264", FHQ).await;
}

/// As many programs write it: the least first, and names that say nothing at first.
#[tokio::test(flavor = "multi_thread")]
#[cfg(feature = "vpx")]
async fn chromium_publishes_three_layers_of_vp8_from_the_least() {
    let encodings = "[{ rid: 'q', scaleResolutionDownBy: 4 }, { rid: 'h', scaleResolutionDownBy: 2 }, { rid: 'f' }]";
    arrives_in_three_sizes("VP8", encodings).await;
}

/// Layers that the browser leaves out are not offered; the stream goes on with the next one, and has the best again when it comes back.
/// A publisher that comes back feeds the same layers, one without layers the stream alone.
#[tokio::test(flavor = "multi_thread")]
async fn layers_come_and_go_and_so_do_publishers() {
    let server = server();
    let (browser, page) = studio(&server).await;
    publish(&page, "H264", "[{ rid: 'b', scaleResolutionDownBy: 2 }, { rid: 'a' }]").await;
    let stream = until("the stream", || server.streams().find("live")).await;
    // Their names do not say that the second is the larger one; their sizes do.
    until("the layers in order", || (rids(&stream) == ["a", "b"]).then_some(())).await;
    let large = Size::new(1280, 720);
    until("the best", || (stream.stats().size == Some(large)).then_some(())).await;
    let (whole, _watching) = watch(&stream);
    until("pictures", || (whole.last_size() == Some(large)).then_some(())).await;
    let lower = stream.layers()[1].clone();
    until("the lower one", || live(&lower).then_some(())).await;

    page.evaluate("window.setActive('a', false)").await.unwrap();
    until("the next best", || (whole.last_size() == Some(Size::new(640, 360))).then_some(())).await;
    assert!(live(&stream) && live(&lower));
    page.evaluate("window.setActive('a', true)").await.unwrap();
    until("the best again", || (whole.last_size() == Some(large)).then_some(())).await;
    page.evaluate("window.setActive('b', false)").await.unwrap();
    until("the lower one is out", || matches!(lower.health(), Health::Failed(_)).then_some(())).await;
    let count = whole.count();
    until("the best goes on", || (whole.count() > count + 15).then_some(())).await;
    page.evaluate("window.setActive('b', true)").await.unwrap();
    until("the lower one is back", || live(&lower).then_some(())).await;

    page.evaluate("window.leave()").await.unwrap();
    until("nobody publishes", || (!live(&stream) && !live(&lower)).then_some(())).await;
    publish(&page, "H264", "[{ rid: 'a' }, { rid: 'b', scaleResolutionDownBy: 2 }]").await;
    until("back on the same layers", || (live(&stream) && live(&lower)).then_some(())).await;
    assert!(Arc::ptr_eq(&stream.layers()[1], &lower) && !lower.is_withdrawn());
    assert!(Arc::ptr_eq(&server.streams().find("live").unwrap(), &stream));

    page.evaluate("window.leave()").await.unwrap();
    until("nobody publishes", || (!live(&stream)).then_some(())).await;
    publish(&page, "H264", "[]").await;
    until("one size", || (live(&stream) && stream.layers().len() == 1 && lower.is_withdrawn()).then_some(())).await;
    let count = whole.count();
    until("pictures", || (whole.count() > count + 15).then_some(())).await;
    assert_eq!(stream.codec(), VideoCodec::H264);
    assert!(whole.0.lock().unwrap().errors.is_empty(), "{:?}", whole.0.lock().unwrap().errors);
    browser.close().await.unwrap();
}

/// Our client sends a ladder to our server: all layers decode there, in their sizes; a request for a keyframe reaches its own encoder. Without
/// simulcast it is one size.
#[tokio::test(flavor = "multi_thread")]
async fn our_client_publishes_all_layers_of_a_ladder() {
    let ours = |push| {
        let mut config = lightpipe::Config::default();
        config.server.host = [127, 0, 0, 1].into();
        config.server.port = 0;
        (config.video.width, config.video.height, config.video.fps) = (640, 360, 15.0);
        config.simulcast.push = push;
        config.simulcast.layers =
            ["f:640x360:800", "h:320x180:250", "q:160x90:100"].map(|layer| layer.parse().unwrap()).to_vec();
        config.sources.insert("pattern".to_owned(), lightpipe::config::SourceTexts::One("pattern".to_owned()));
        Server::headless(config).expect("a free port")
    };
    let theirs = server();
    let push = |client: &Server| {
        let endpoint = format!("{}/whip/live", theirs.url()).parse().unwrap();
        client.publish("pattern", &endpoint, None).unwrap()
    };
    let sender = ours(true);
    let client = push(&sender);
    let stream = until("the stream", || theirs.streams().find("live")).await;
    let layers = until("all layers", || {
        let layers = stream.layers();
        (layers.len() == 3 && layers.iter().all(|layer| live(layer)) && stream.stats().size? == Size::new(640, 360))
            .then_some(layers)
    })
    .await;
    let watching: Vec<_> = layers.iter().map(watch).collect();
    until("pictures of all layers", || watching.iter().all(|(seen, _)| seen.count() >= 45).then_some(())).await;
    for ((seen, _), (width, height)) in watching.iter().zip([(640, 360), (320, 180), (160, 90)]) {
        let seen = seen.0.lock().unwrap();
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
        assert!(seen.decoded.values().all(|size| *size == Size::new(width, height)), "{:?}", seen.decoded);
    }
    let told = until("figures", || {
        let told = client.to_json()["layers"].as_array().cloned()?;
        told.iter().all(|layer| layer["sent_frames"].as_u64() > Some(45)).then_some(told)
    })
    .await;
    let told: Vec<_> = told.iter().map(|layer| (layer["rid"].as_str().unwrap(), &layer["sent"])).collect();
    assert_eq!(told, ["f", "h", "q"].map(|rid| (rid, &Value::Bool(true))));

    let encoders = sender.streams().find("pattern").unwrap().layers();
    let requests = || encoders.iter().map(|layer| layer.stats().keyframe_requests).collect::<Vec<_>>();
    let before = requests();
    watching[1].1.request_keyframe();
    until("a request at the encoder in the middle", || (requests()[1] > before[1]).then_some(())).await;
    assert_eq!((requests()[0], requests()[2]), (before[0], before[2]));
    sender.stop();
    until("nobody publishes", || (!live(&stream)).then_some(())).await;

    let sender = ours(false);
    let client = push(&sender);
    until("one size", || (live(&stream) && stream.layers().len() == 1).then_some(())).await;
    until("figures", || client.status().peer.filter(|peer| peer.counters.sent_frames > 15)).await;
    assert_eq!(client.to_json()["layers"].as_array().map(Vec::len), Some(0));
    sender.stop();
    theirs.stop();
}
