//! `/room/{room}`: real pages that meet each other there.

use std::time::{Duration, Instant};

use lightpipe_browser::{Browser, Kind, Options, Page};
use serde_json::{Value, json};

use crate::lab::{PATIENCE, Server, quiet, serve, shared};

/// What a page shows and plays: a colour, below it black and white in turns, and a tone.
struct Talker {
    id: &'static str,
    name: &'static str,
    colour: &'static str,
    /// Red, green, blue in halves.
    seen: [u8; 3],
    hz: u32,
}

const TALKERS: [Talker; 4] = [
    Talker { id: "ada", name: "Ada Lovelace", colour: "#f00", seen: [2, 0, 0], hz: 420 },
    Talker { id: "bob", name: "Bob", colour: "#0f0", seen: [0, 2, 0], hz: 660 },
    Talker { id: "cyd", name: "Cyd", colour: "#00f", seen: [0, 0, 2], hz: 960 },
    Talker { id: "dot", name: "Dot", colour: "#ff0", seen: [2, 2, 0], hz: 1320 },
];

/// The talker's stream in place of camera and microphone, and eyes and ears for the others'.
const TALK: &str = "(async () => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 320, height: 180 }), paint = canvas.getContext('2d');
  let turn = 0;
  setInterval(() => {
    turn += 1;
    paint.fillStyle = 'COLOUR'; paint.fillRect(0, 0, 320, 90);
    paint.fillStyle = turn % 8 < 4 ? '#000' : '#fff'; paint.fillRect(0, 90, 320, 90);
  }, 66);
  const sound = window.sound = new AudioContext(), out = sound.createMediaStreamDestination();
  const tone = new OscillatorNode(sound, { frequency: HZ }), quiet = new GainNode(sound, { gain: 0.3 });
  tone.connect(quiet).connect(out);
  tone.start();
  // Without a loudspeaker Firefox runs no audio graph; its fake microphone has a tone of its own.
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const { stream: audio } = FAKE ? { stream: await navigator.mediaDevices.getUserMedia({ audio: raw }) } : out;
  const reader = new OffscreenCanvas(1, 2).getContext('2d', { willReadFrequently: true }), seen = {}, ears = {};
  window.sees = id => {
    const video = room.tile(id)?.querySelector('video');
    if (!video?.videoWidth) return false;
    reader.drawImage(video, 0, 0, 1, 2);
    const pixels = [...reader.getImageData(0, 0, 1, 2).data].map(value => Math.round(value / 128));
    const now = seen[id] ??= { black: 0, white: 0 };
    now[pixels[4] ? 'white' : 'black'] += 1;
    return now.black && now.white && { size: [video.videoWidth, video.videoHeight], colour: pixels.slice(0, 3), muted: video.muted };
  };
  window.hears = (id, hz) => {
    const peer = room.mesh.peers.get(id), [track] = peer?.stream.getAudioTracks() ?? [];
    if (!track) return false;
    if (FAKE) return peer.level > 0.02;
    if (ears[id]?.track !== track) {
      const analyser = new AnalyserNode(sound, { fftSize: 8192, smoothingTimeConstant: 0 });
      sound.createMediaStreamSource(new MediaStream([track])).connect(analyser);
      ears[id] = { track, analyser };
    }
    const { analyser } = ears[id], bins = new Float32Array(analyser.frequencyBinCount);
    analyser.getFloatFrequencyData(bins);
    const loudest = bins.reduce((best, level, n) => level > bins[best] ? n : best, 0);
    return bins[loudest] > -60 && Math.abs(loudest * sound.sampleRate / analyser.fftSize - hz) < 20;
  };
  window.heard = () => [...document.querySelectorAll('.said .text')].map(one => one.textContent);
  void sound.resume();
  await room.show(new MediaStream([...canvas.captureStream(15).getTracks(), ...audio.getTracks()]));
})()";

/// Addresses of this machine instead of mDNS names, which only the browser itself would know. The last list of features to disable counts alone, so
/// the driver's are in it.
pub(crate) async fn chromium() -> Browser {
    let options = Options::default()
        .with_arg("--disable-features=WebRtcHideLocalIpsWithMdns,OptimizationHints,MediaRouter,Translate,CalculateNativeWinOcclusion")
        .with_command_timeout(Duration::from_secs(120));
    Browser::launch(Kind::Chromium, options).await.unwrap()
}

async fn firefox() -> Browser {
    let options = Options::default()
        .with_fake_media_devices(true)
        .with_firefox_pref("media.navigator.audio.fake_frequency", "960")
        .with_firefox_pref("media.autoplay.default", "0")
        .with_firefox_pref("media.peerconnection.ice.loopback", "true")
        .with_firefox_pref("media.peerconnection.ice.obfuscate_host_addresses", "false")
        .with_command_timeout(Duration::from_secs(120));
    Browser::launch(Kind::Firefox, options).await.unwrap()
}

/// Opens the room as this talker and joins it.
async fn enter(browser: &Browser, server: &Server, talker: &Talker) -> Page {
    let page = browser.open(&server.url(&format!("/room/lab?id={}", talker.id))).await.unwrap();
    page.wait_until("window.room", PATIENCE).await.unwrap();
    let talk = TALK.replace("COLOUR", talker.colour).replace("HZ", &talker.hz.to_string());
    let talk = talk.replace("FAKE", if browser.kind() == Kind::Firefox { "true" } else { "false" });
    page.evaluate(&talk).await.unwrap();
    join(&page, talker.name).await;
    page
}

pub(crate) async fn join(page: &Page, name: &str) {
    page.evaluate(&format!(
        "(document.querySelector('#name').value = '{name}', document.querySelector('#enter').click())"
    ))
    .await
    .unwrap();
    page.wait_until("document.body.dataset.view === 'room'", PATIENCE).await.unwrap();
}

/// Waits until everybody's channels to everybody are open.
async fn wait_met(pages: &[Page]) {
    for page in pages {
        let open = "[...room.mesh.peers.values()].filter(peer => peer.state === 'connected' && peer.chat.readyState === 'open' && peer.files.readyState === 'open').length";
        page.wait_until(&format!("{open} === {}", pages.len() - 1), PATIENCE).await.unwrap();
    }
}

async fn say(page: &Page, text: &str) {
    let script = format!(
        "(document.querySelector('#text').value = '{text}', document.querySelector('#compose').requestSubmit())"
    );
    page.evaluate(&script).await.unwrap();
}

/// Sends a file of so many bytes by the page's own input, and notes what becomes of it.
pub(crate) async fn send(page: &Page, bytes: usize, name: &str) -> Value {
    let script = format!(
        "(async () => {{
  const bytes = new Uint8Array({bytes});
  for (let at = 0; at < bytes.length; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
  const list = new DataTransfer(), input = document.querySelector('#file');
  list.items.add(new File([bytes], '{name}'));
  input.files = list.files;
  input.dispatchEvent(new Event('change'));
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join('');
}})()"
    );
    page.evaluate(&script).await.unwrap()
}

/// Accepts each file that is offered, by its button, and notes the progress of the last.
pub(crate) const ACCEPT: &str = "void (() => {
  window.progress = [];
  room.transfers.addEventListener('transfer', ({ detail: { transfer } }) => {
    progress.push(transfer.done);
    if (transfer.direction === 'in' && transfer.state === 'offered') setTimeout(() => document.querySelector('.file .button.primary:not([download])').click());
  });
})()";

/// Name, size, digest and bytes in order of what arrived; the digest is the browser's own, of the Blob that one would save.
pub(crate) const RECEIVED: &str = "(async () => {
  const transfer = room.transfers.all.findLast(one => one.direction === 'in');
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', await transfer.blob.arrayBuffer()));
  return [document.querySelector('.file a[download]').download, transfer.blob.size, Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join(''),
    progress.every((done, n) => n === 0 || done >= progress[n - 1])];
})()";

#[tokio::test(flavor = "multi_thread")]
async fn four_pages_of_two_browsers_see_hear_and_write_to_each_other() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let (chromium, firefox) = tokio::join!(chromium(), firefox());
    let mut pages = Vec::new();
    for (n, talker) in TALKERS.iter().enumerate() {
        // In the middle of the ids, so that Firefox is the polite one with some and the impolite one with others.
        pages.push(enter(if n == 2 { &firefox } else { &chromium }, &server, talker).await);
    }
    wait_met(&pages).await;
    for (page, me) in pages.iter().zip(&TALKERS) {
        for other in TALKERS.iter().filter(|other| other.id != me.id) {
            let seen = page.wait_until(&format!("sees('{}')", other.id), PATIENCE).await;
            let seen = seen.unwrap_or_else(|error| panic!("{} sees nothing of {}: {error}", me.id, other.id));
            assert_eq!(
                seen,
                json!({ "size": [320, 180], "colour": other.seen, "muted": false }),
                "{} of {}",
                me.id,
                other.id
            );
            let hears = format!("hears('{}', {})", other.id, other.hz);
            let heard = page.wait_until(&hears, PATIENCE).await;
            heard.unwrap_or_else(|error| panic!("{} does not hear {}: {error}", me.id, other.id));
            let ring = format!("room.tile('{}').classList.contains('speaking')", other.id);
            page.wait_until(&ring, PATIENCE).await.unwrap();
            let name = format!("room.tile('{}').querySelector('.plate').textContent", other.id);
            assert_eq!(page.evaluate(&name).await.unwrap(), other.name);
        }
    }

    for (page, me) in pages.iter().zip(&TALKERS) {
        say(page, &format!("I am {}", me.id)).await;
    }
    for page in &pages {
        page.wait_until("heard().length === 4", PATIENCE).await.unwrap();
        let mut heard: Vec<Value> = page.evaluate("heard()").await.unwrap().as_array().unwrap().clone();
        heard.sort_by_key(ToString::to_string);
        assert_eq!(heard, ["I am ada", "I am bob", "I am cyd", "I am dot"]);
        page.evaluate(ACCEPT).await.unwrap();
    }
    // From Firefox to the three others at once.
    let digest = send(&pages[2], 3_000_001, "..\\\\up/holiday.bin").await;
    for page in [&pages[0], &pages[1], &pages[3]] {
        page.wait_until("room.transfers.all[0]?.state === 'finished'", PATIENCE).await.unwrap();
        assert_eq!(page.evaluate(RECEIVED).await.unwrap(), json!(["holiday.bin", 3_000_001, digest, true]));
    }

    pages[0].evaluate("document.querySelector('#mic').click()").await.unwrap();
    for page in &pages[1..] {
        page.wait_until("room.tile('ada').classList.contains('muted') && !hears('ada', 420)", PATIENCE).await.unwrap();
    }
    let errors: Vec<String> = pages.iter().flat_map(Page::console).filter(|line| line.contains("rror")).collect();
    assert_eq!(errors, Vec::<String>::new());
    // A window is closed: no waiting for a connection that died.
    let left = Instant::now();
    pages.remove(1).close().await.unwrap();
    for page in &pages {
        page.wait_until("!room.tile('bob') && room.mesh.peers.size === 2", PATIENCE).await.unwrap();
    }
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
    chromium.close().await.unwrap();
    firefox.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hear_a_mixer_in_place_of_each_other() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let mixer = crate::mesh::join(&server, "mixer", &["--mix"]);
    mixer.wait("in_room", None);
    let browser = chromium().await;
    let pages = [enter(&browser, &server, &TALKERS[0]).await, enter(&browser, &server, &TALKERS[1]).await];
    let volume = |id: &str| format!("room.tile('{id}').querySelector('video').volume");
    for (page, other) in pages.iter().zip([&TALKERS[1], &TALKERS[0]]) {
        page.wait_until("room.mesh.peers.get('mixer')?.state === 'connected'", PATIENCE).await.unwrap();
        let heard = page.wait_until(&format!("hears('mixer', {})", other.hz), PATIENCE).await;
        heard.unwrap_or_else(|error| panic!("{} is not in the mix: {error}", other.id));
        page.wait_until(&format!("{} === 0 && {} === 1", volume(other.id), volume("mixer")), PATIENCE).await.unwrap();
        page.wait_until("document.querySelectorAll('.tile[data-active]').length === 1", PATIENCE).await.unwrap();
    }
    // Without the mixer they are heard themselves.
    drop(mixer);
    for (page, other) in pages.iter().zip([&TALKERS[1], &TALKERS[0]]) {
        page.wait_until(&format!("{} === 1", volume(other.id)), PATIENCE).await.unwrap();
    }
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_outlives_its_server_and_its_connections() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let port = server.address().port();
    let browser = chromium().await;
    let pages = [enter(&browser, &server, &TALKERS[0]).await, enter(&browser, &server, &TALKERS[1]).await];
    wait_met(&pages).await;
    say(&pages[0], "before").await;
    pages[1].wait_until("heard().length === 1", PATIENCE).await.unwrap();
    for (page, other) in pages.iter().zip(["bob", "ada"]) {
        page.evaluate(&format!("void (window.connection = room.mesh.peers.get('{other}').connection)")).await.unwrap();
        page.evaluate(ACCEPT).await.unwrap();
    }

    drop(server); // kill -9
    for page in &pages {
        page.wait_until("document.querySelector('#badge-text').textContent === 'Server lost'", PATIENCE).await.unwrap();
    }
    say(&pages[1], "nobody needs it").await;
    pages[0].wait_until("heard().length === 2", PATIENCE).await.unwrap();
    let server = serve(&["pattern"]).on_port(port).start();
    let back = Instant::now();
    for page in &pages {
        page.wait_until("room.mesh.joined && room.mesh.peers.size === 1", PATIENCE).await.unwrap();
    }
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());

    // The path breaks in the middle of a file: a new connection, the rest of the file, and what was said meanwhile, once.
    const SIZE: usize = 24_000_000;
    let digest = send(&pages[0], SIZE, "film.bin").await;
    pages[0].wait_until(&format!("room.transfers.all[0].done > {SIZE} / 2"), PATIENCE).await.unwrap();
    let cut = "(() => {
  const at = room.transfers.all[0].done;
  connection.close();
  // The last ends in the middle of a pair of surrogates.
  for (let n = 0; n < 100; n += 1) room.mesh.say(n < 99 ? `while it is cut ${n}` : 'x'.repeat(3999) + '🙂');
  return at;
})()";
    let at = pages[0].evaluate(cut).await.unwrap().as_u64().unwrap();
    pages[1].wait_until("room.tile('ada').dataset.state === 'reconnecting'", PATIENCE).await.unwrap();
    pages[0].wait_until("room.transfers.all[0].state === 'finished'", PATIENCE).await.unwrap();
    assert_eq!(pages[1].evaluate(RECEIVED).await.unwrap(), json!(["film.bin", SIZE, digest, true]));
    let sent = pages[0].evaluate("room.transfers.all[0].sent").await.unwrap().as_u64().unwrap();
    // What was on its way when it was cut is at most a window.
    assert!(sent <= SIZE as u64 + (4 << 20), "cut after {at}, {sent} bytes sent of {SIZE}");
    wait_met(&pages).await;
    for (page, other) in pages.iter().zip(["bob", "ada"]) {
        let new = format!("room.mesh.peers.get('{other}').connection !== connection && sees('{other}')");
        page.wait_until(&new, PATIENCE).await.unwrap();
        page.wait_until("!document.querySelector('.said.waiting')", PATIENCE).await.unwrap();
        let heard = page.evaluate("heard()").await.unwrap();
        let mut expected = vec!["before".to_owned(), "nobody needs it".to_owned()];
        expected.extend((0..99).map(|n| format!("while it is cut {n}")));
        expected.push(format!("{}\u{fffd}", "x".repeat(3999)));
        assert_eq!(heard, json!(expected));
        page.wait_until(&format!("room.tile('{other}').querySelector('.veil').hidden"), PATIENCE).await.unwrap();
    }
    drop(server);
    browser.close().await.unwrap();
}

/// A page whose connection to the server is dead without the server's knowledge gets its place back.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_not_shut_out_by_its_own_shadow() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/room/lab?id=ada")).await.unwrap();
    // Sockets that are closed in the page and stay open on the wire, as when a network goes.
    let cut = "void (() => { const Real = WebSocket; window.sockets = [];
      window.WebSocket = class extends Real { constructor(...args) { super(...args); sockets.push(this); } close() {} };
      for (const name of ['OPEN', 'CLOSED']) window.WebSocket[name] = Real[name]; })()";
    page.evaluate(cut).await.unwrap();
    join(&page, "Ada").await;
    page.evaluate("sockets[0].onclose({ code: 1006, reason: '' })").await.unwrap();
    page.wait_until("room.mesh.joined && sockets.length === 2", PATIENCE).await.unwrap();
    assert_eq!(page.evaluate("sockets.map(socket => socket.readyState)").await.unwrap(), json!([1, 1]));
    let other = browser.open(&server.url("/room/lab?id=ada")).await.unwrap();
    other.wait_until("window.room", PATIENCE).await.unwrap();
    other.evaluate("document.querySelector('#enter').click()").await.unwrap();
    other
        .wait_until("document.querySelector('#refused').textContent.includes('as “ada” already')", PATIENCE)
        .await
        .unwrap();
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_enter_or_has_no_camera_is_told_so() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).unlimited().start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/room/lab")).await.unwrap();
    page.wait_until(
        "document.querySelector('#device-note').textContent.includes('You can join all the same')",
        PATIENCE,
    )
    .await
    .unwrap();
    let fill = "(async () => {
  window.sockets = await Promise.all([...Array(10).keys()].map(n => new Promise(resolve => {
    const socket = new WebSocket(`ws://${location.host}/ws`);
    socket.onopen = () => socket.send(JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'peer.announce', params: { peer_id: `p${n}`, room: 'lab' } }));
    socket.onmessage = () => resolve(socket);
  })));
  document.querySelector('#enter').click();
})()";
    page.evaluate(fill).await.unwrap();
    let full = page.wait_until("document.querySelector('#refused').textContent", PATIENCE).await.unwrap();
    assert!(full.as_str().unwrap().starts_with("This room is full: ten people"), "{full}");
    assert_eq!(
        page.evaluate("[document.querySelector('#lobby').hidden, document.querySelector('#enter').disabled]")
            .await
            .unwrap(),
        json!([false, false])
    );
    // One leaves, and the same button works.
    page.evaluate("sockets[3].close()").await.unwrap();
    page.wait_until("(document.querySelector('#enter').click(), document.body.dataset.view === 'room')", PATIENCE)
        .await
        .unwrap();
    page.wait_until("document.querySelectorAll('#tiles .tile:not(.alone)').length === 10", PATIENCE).await.unwrap();

    let page = browser.open(&server.url("/room/a%20b")).await.unwrap();
    page.wait_until("window.room", PATIENCE).await.unwrap();
    page.evaluate("document.querySelector('#enter').click()").await.unwrap();
    let bad = page.wait_until("document.querySelector('#refused').textContent", PATIENCE).await.unwrap();
    assert!(bad.as_str().unwrap().starts_with("The server refuses: room"), "{bad}");
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_decides_is_a_table() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/healthz")).await.unwrap();
    let modules = "(async () => { window.all = Object.assign({}, ...await Promise.all(['mesh', 'transfer', 'sha256'].map(name => import(`/assets/${name}.js`)))); })()";
    page.evaluate(modules).await.unwrap();
    let broken = |facts: &str| {
        format!(
            "all.repair({{ connected: false, failed: false, ever: true, polite: false, reachable: true, brokenMs: 3000, tries: 0, sinceTryMs: 1e9, ...{facts} }})"
        )
    };
    let cases = [
        (broken("{ connected: true }"), json!("nothing")),
        (broken("{ reachable: false, brokenMs: 1e6 }"), json!("wait")),
        (broken("{}"), json!("restart")),
        (broken("{ brokenMs: 900 }"), json!("wait")),
        (broken("{ brokenMs: 2000, polite: true }"), json!("wait")),
        (broken("{ brokenMs: 0, failed: true }"), json!("restart")),
        (broken("{ tries: 1, sinceTryMs: 4900 }"), json!("wait")),
        (broken("{ tries: 1, sinceTryMs: 5100 }"), json!("restart")),
        (broken("{ tries: 2, sinceTryMs: 5100 }"), json!("renew")),
        (broken("{ ever: false, brokenMs: 14900 }"), json!("wait")),
        (broken("{ ever: false, brokenMs: 15100 }"), json!("renew")),
        ("[0, 1, 2, 3, 4, 29, 30, 99].map(n => all.backoff(n, 1))".into(), json!([300, 600, 1200, 2400, 2500, 2500, 15000, 15000])),
        ("[all.isPolite('ada', 'bob'), all.isPolite('bob', 'ada')]".into(), json!([false, true])),
        (
            "['candidate:1 1 udp 1 10.0.0.1 9 typ host ufrag xy', { candidate: 'a=candidate:2', sdpMid: '1' }, '{\"candidate\":\"candidate:3\"}', null, '', '{'].map(candidate => all.candidateOf({ candidate })?.candidate ?? null)".into(),
            json!(["candidate:1 1 udp 1 10.0.0.1 9 typ host ufrag xy", "candidate:2", "candidate:3", null, null, null]),
        ),
        ("all.candidateOf({ candidate: 'candidate:1 1 udp 1 10.0.0.1 9 typ host ufrag xy', sdp_mid: '0' }).usernameFragment".into(), json!("xy")),
        (
            "['a.txt', '/etc/passwd', '..\\\\..\\\\boot.ini', '..', '.', '', 'a/', 'a\\0b', 'a\\nb', 'x\\u202egpj.exe', 'ä'.repeat(128), ' ', 7].map(all.safeName)".into(),
            json!(["a.txt", "passwd", "boot.ini", null, null, null, null, null, null, null, null, null, null]),
        ),
        ("['a.tar.gz', 'b', '.rc'].map(name => all.freeName(name, new Set(['a.tar.gz', 'a.tar (2).gz', 'b', '.rc'])))".into(), json!(["a.tar (3).gz", "b (2)", ".rc (2)"])),
        (
            "[[0, 1], [63, 1], [64, 64], [1000, 37]].map(([length, step]) => { const hash = new all.Sha256(); for (let at = 0; at < length; at += step) hash.update(new Uint8Array(Math.min(step, length - at)).fill(97)); return hash.hex().slice(0, 8); })".into(),
            json!(["e3b0c442", "7d3e74a0", "ffe054fe", "41edece4"]),
        ),
        (
            "[{ rtt_ms: 20, loss: 0, freezes: 0, fps: 15 }, { rtt_ms: 250, loss: 0, freezes: 0, fps: 15 }, { rtt_ms: 20, loss: 0.09, freezes: 1, fps: 15 }, { rtt_ms: null, loss: null, freezes: 0, fps: null }].map(figures => all.judge(figures, true))".into(),
            json!([
                { "grade": "good", "reasons": [] },
                { "grade": "fair", "reasons": ["250 ms to there and back"] },
                { "grade": "poor", "reasons": ["9.0 % of the packets are lost", "the picture froze"] },
                { "grade": "unknown", "reasons": [] },
            ]),
        ),
    ];
    for (script, expected) in cases {
        assert_eq!(page.evaluate(&script).await.unwrap(), expected, "{script}");
    }
    browser.close().await.unwrap();
}

/// What a peer of ill will says on the channel of the files: an answer, and nothing else happens.
#[tokio::test(flavor = "multi_thread")]
async fn bad_offers_of_files_are_refused_with_a_reason() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let pages = [enter(&browser, &server, &TALKERS[0]).await, enter(&browser, &server, &TALKERS[1]).await];
    wait_met(&pages).await;
    let [ada, bob] = &pages;
    ada.evaluate("void (window.channel = room.mesh.peers.get('bob').files, window.said = [], channel.addEventListener('message', ({ data }) => said.push(JSON.parse(data))))").await.unwrap();
    let good = json!({ "type": "offer", "id": "x", "number": 7, "name": "a", "size": 10, "mime": "" });
    for (change, reason) in [
        (json!({ "name": ".." }), "the name is not allowed"),
        (json!({ "name": "a/" }), "the name is not allowed"),
        (json!({ "name": "\u{1}" }), "the name is not allowed"),
        (json!({ "name": "x".repeat(256) }), "the name is not allowed"),
        (json!({ "size": -1 }), "the size is none"),
        (json!({ "size": 1.5 }), "the size is none"),
        (json!({ "size": 3_000_000_000_u64 }), "files of more than 2 GiB are not taken"),
        (json!({ "number": -1 }), "the number is none"),
    ] {
        let mut offer = good.clone();
        offer.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        ada.evaluate(&format!("channel.send(JSON.stringify({offer}))")).await.unwrap();
        let answer = ada.wait_until("said.shift()", PATIENCE).await.unwrap();
        assert_eq!(answer, json!({ "type": "refuse", "id": "x", "reason": reason }), "{change}");
    }
    // Nonsense is not answered: the next answer is that to an offer too many.
    let nonsense = "['', '{', 'null', '7', '{\"type\":\"offer\",\"id\":\"../x\"}', '{\"type\":\"end\",\"id\":\"nobody\"}', ' '.repeat(5000), new Uint8Array(3), new Uint8Array(40)].forEach(one => channel.send(one))";
    ada.evaluate(nonsense).await.unwrap();
    for n in 0..9 {
        let mut offer = good.clone();
        offer["id"] = format!("f{n}").into();
        offer["number"] = n.into();
        ada.evaluate(&format!("channel.send(JSON.stringify({offer}))")).await.unwrap();
    }
    let answer = ada.wait_until("said.shift()", PATIENCE).await.unwrap();
    assert_eq!(answer, json!({ "type": "refuse", "id": "f8", "reason": "too many files at a time" }));
    bob.wait_until("room.transfers.all.length === 8", PATIENCE).await.unwrap();
    // Accepted, but the pieces do not fit, or the checksum does not.
    bob.evaluate("room.transfers.all.slice(0, 3).forEach(one => room.transfers.accept(one))").await.unwrap();
    ada.wait_until("said.length === 3 && said.every(one => one.type === 'accept' && one.offset === 0)", PATIENCE)
        .await
        .unwrap();
    let chunk = "(number, offset, length) => { const view = new DataView(new ArrayBuffer(12 + length)); view.setUint32(0, number); view.setBigUint64(4, BigInt(offset)); channel.send(view.buffer); }";
    ada.evaluate(&format!("void (said.length = 0, window.chunk = {chunk}, chunk(0, 5, 5), chunk(1, 0, 11), chunk(2, 0, 10), channel.send(JSON.stringify({{ type: 'end', id: 'f2', size: 10, sha256: '0'.repeat(64) }})))")).await.unwrap();
    let failed = ada
        .wait_until(
            "said.filter(one => one.type === 'failed').length === 3 && said.filter(one => one.type === 'failed')",
            PATIENCE,
        )
        .await
        .unwrap();
    let reasons: Vec<_> = failed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].as_str().unwrap(), one["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("f0", "the pieces do not fit together"),
            ("f1", "the pieces do not fit together"),
            ("f2", "the checksum is wrong")
        ]
    );
    // Nobody else is disturbed: picture and chat go on.
    say(ada, "still here").await;
    bob.wait_until("heard().length === 1 && sees('ada')", PATIENCE).await.unwrap();
    browser.close().await.unwrap();
}
