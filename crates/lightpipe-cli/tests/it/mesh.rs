//! Rooms with native peers: `lightpipe join` beside others of its kind and beside browsers.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::lab::server::{program, run, text_of};
use crate::lab::{PATIENCE, Server, chromium, quiet, send_signal, serve, shared, until};

/// Bytes of an I420 picture of 320×180.
const PICTURE: usize = 320 * 180 * 3 / 2;

/// A running `lightpipe join --json`. Dropping it kills it.
pub(crate) struct Member {
    pub(crate) child: Child,
    pub(crate) name: String,
    events: Arc<Mutex<String>>,
    pub(crate) stderr: Arc<Mutex<String>>,
    pub(crate) stdin: Option<ChildStdin>,
}

impl Drop for Member {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}'s log\n{}---", self.name, self.stderr.lock().unwrap());
        }
    }
}

pub(crate) fn signalling(server: &Server) -> String {
    format!("ws://{}/ws", server.address())
}

/// Joins room `lab`.
#[track_caller]
pub(crate) fn join(server: &Server, name: &str, args: &[&str]) -> Member {
    join_from(Ipv4Addr::LOCALHOST, server, name, args)
}

/// Joins room `lab` from an address of this machine.
#[track_caller]
pub(crate) fn join_from(host: Ipv4Addr, server: &Server, name: &str, args: &[&str]) -> Member {
    let mut command = program();
    command.args(["join", "--room", "lab", "--json", "--fps", "15", "--bitrate", "200", "--host", &host.to_string()]);
    command.args(["--name", name, "--url", &signalling(server)]).args(args);
    command.env("LIGHTPIPE_VIDEO_WIDTH", "320").env("LIGHTPIPE_VIDEO_HEIGHT", "180");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let events = text_of(child.stdout.take().unwrap());
    let stderr = text_of(child.stderr.take().unwrap());
    let stdin = child.stdin.take();
    Member { child, name: name.to_owned(), events, stderr, stdin }
}

impl Member {
    pub(crate) fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Events of a kind, with this peer where one is named.
    pub(crate) fn told(&self, event: &str, peer: Option<&str>) -> Vec<Value> {
        let is_it = |told: &Value| told["event"] == event && peer.is_none_or(|peer| told["peer"] == peer);
        self.events().into_iter().filter(is_it).collect()
    }

    #[track_caller]
    pub(crate) fn wait(&self, event: &str, peer: Option<&str>) -> Value {
        until(&format!("{} tells of {event} {peer:?}", self.name), PATIENCE, || self.told(event, peer).pop())
    }

    /// The latest figures of a peer.
    pub(crate) fn figures(&self, peer: &str) -> Option<Value> {
        let last = self.told("figures", None).pop()?;
        last["peers"].as_array()?.iter().find(|figures| figures["peer"] == peer).cloned()
    }

    #[track_caller]
    pub(crate) fn wait_figures(&self, peer: &str, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{} has {what} of {peer}", self.name), PATIENCE, || self.figures(peer).filter(|f| enough(f)))
    }

    /// Where its pages are.
    #[track_caller]
    pub(crate) fn url(&self) -> String {
        until("where the others can be seen", PATIENCE, || {
            let text = self.stderr.lock().unwrap().clone();
            text.lines().find_map(|line| line.strip_prefix("see the others at ").map(str::to_owned))
        })
    }

    /// What somebody sends, decoded.
    fn decoded(&self, peer: &str, how: &str) -> Vec<u8> {
        let mut command = program();
        let url = format!("{}/whep/lab.{peer}", self.url());
        command.args(["play", &url, how, "--seconds", "3", "--host", "127.0.0.1"]).stderr(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut bytes = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        assert!(child.wait().unwrap().success());
        bytes
    }

    fn proc_line(&self, file: &str, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    fn rss_mib(&self) -> f64 {
        self.proc_line("status", "VmRSS:") as f64 / 1024.0
    }

    /// CPU time so far, seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

/// The age of each picture by its timecode strip, milliseconds.
fn ages(pictures: &[u8]) -> Vec<i64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let block = 4; // 320 columns for 48 blocks
    let strip = |picture: &[u8]| -> Option<i64> {
        let bits: [bool; 48] = std::array::from_fn(|bit| picture[(block / 2) * 320 + bit * block + block / 2] > 128);
        let time = lightpipe_media::timecode::decode_bits(&bits)?;
        Some(i64::from((now as u32).wrapping_sub(time).cast_signed()))
    };
    pictures.chunks_exact(PICTURE).filter_map(strip).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_native_peers_see_hear_and_chat_with_each_other() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let source = ["--source", "pattern", "--timecode", "--port", "0", "--chat"];
    let (mut ada, bob) = (join(&server, "ada", &source), join(&server, "bob", &source));
    for (me, other) in [(&ada, "bob"), (&bob, "ada")] {
        me.wait("connected", Some(other));
        me.wait("first_picture", Some(other));
        me.wait("first_sound", Some(other));
        let figures = me.wait_figures(other, "30 pictures", |f| f["pictures"].as_u64() > Some(30));
        assert_eq!((&figures["size"], &figures["undecodable"]), (&json!([320, 180]), &0.into()), "{figures}");
        let ages = ages(&me.decoded(other, "--raw"));
        assert!(ages.len() > 20, "{} readable strips", ages.len());
        assert!(ages.windows(2).all(|pair| pair[0] > pair[1]), "they move: {ages:?}");
        assert!(ages.iter().all(|age| (0..10_000).contains(age)), "and are of now: {ages:?}");
        let sound = me.decoded(other, "--pcm");
        let peak = sound.chunks_exact(2).map(|s| i16::from_le_bytes([s[0], s[1]]).unsigned_abs()).max().unwrap();
        assert!(sound.len() > 48_000 * 4 * 2 && peak > 1000, "{} bytes, peak {peak}", sound.len());
    }
    ada.stdin.as_mut().unwrap().write_all("Grüß Gott\n".as_bytes()).unwrap();
    assert_eq!(bob.wait("chat", Some("ada"))["text"], "Grüß Gott");
    // A goodbye is heard at once.
    send_signal(ada.child.id(), Signal::TERM);
    bob.wait("left", Some("ada"));
    assert!(until("ada's end", PATIENCE, || ada.child.try_wait().unwrap()).success());
    // One that is killed is missed.
    let cyd = join(&server, "cyd", &["--source", "pattern"]);
    bob.wait("first_picture", Some("cyd"));
    drop(cyd);
    bob.wait("left", Some("cyd"));
    assert!(!bob.stderr.lock().unwrap().contains("panicked"));
}

/// A page that is a peer as others are: it offers to whom its id is smaller than, and shows red and plays a tone to everybody.
const PAGE: &str = "(async () => {
  const me = 'page', peers = window.peers = {};
  const canvas = Object.assign(document.createElement('canvas'), { width: 320, height: 180 }), context = canvas.getContext('2d');
  setInterval(() => { context.fillStyle = '#f00'; context.fillRect(0, 0, 320, 180); }, 50);
  const sound = window.sound = new AudioContext(), tone = sound.createOscillator(), out = sound.createMediaStreamDestination();
  tone.connect(out); tone.start();
  const ws = window.ws = new WebSocket('URL');
  let last = 0;
  const call = (method, params) => ws.send(JSON.stringify({ jsonrpc: '2.0', id: ++last, method, params }));
  const listen = async (peer, track) => {
    const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
    for (;;) {
      const { value: block, done } = await reader.read();
      if (done) return;
      const samples = new Float32Array(block.numberOfFrames);
      block.copyTo(samples, { planeIndex: 0, format: 'f32-planar' });
      peer.peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), peer.peak);
      block.close();
    }
  };
  const meet = id => {
    if (peers[id]) return peers[id];
    const pc = new RTCPeerConnection(), video = document.body.appendChild(Object.assign(document.createElement('video'), { autoplay: true }));
    const stream = new MediaStream([...canvas.captureStream(15).getTracks(), ...out.stream.getTracks()]);
    const peer = peers[id] = { pc, video, said: [], peak: 0 };
    peer.chat = pc.createDataChannel('chat', { negotiated: true, id: 100 });
    peer.chat.onmessage = ({ data }) => peer.said.push(JSON.parse(data));
    pc.ontrack = ({ track }) => { (video.srcObject ??= new MediaStream()).addTrack(track); if (track.kind === 'audio') listen(peer, track); };
    pc.onicecandidate = ({ candidate }) => call('peer.ice_candidate', { to: id, candidate });
    if (me < id) pc.onnegotiationneeded = async () => {
      await pc.setLocalDescription();
      call('peer.offer', { to: id, sdp: pc.localDescription.sdp });
    };
    if (me < id) stream.getTracks().forEach(track => pc.addTrack(track, stream));
    else peer.add = () => stream.getTracks().forEach(track => pc.addTrack(track, stream));
    return peer;
  };
  ws.onmessage = async ({ data }) => {
    const { id, result, method, params } = JSON.parse(data);
    if (id === 1) result.peers.forEach(peer => meet(peer.peer_id));
    if (method === 'peer.joined') meet(params.peer_id);
    if (method === 'peer.offer') {
      const peer = meet(params.from);
      await peer.pc.setRemoteDescription({ type: 'offer', sdp: params.sdp });
      peer.add?.(); peer.add = null;
      await peer.pc.setLocalDescription();
      call('peer.answer', { to: params.from, sdp: peer.pc.localDescription.sdp });
    }
    if (method === 'peer.answer') await peers[params.from].pc.setRemoteDescription({ type: 'answer', sdp: params.sdp });
    if (method === 'peer.ice_candidate') await peers[params.from].pc.addIceCandidate(params.candidate);
  };
  await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = reject; });
  call('peer.announce', { peer_id: me, room: 'lab', user_data: {} });
  window.inbound = async id => {
    const found = { pictures: 0, energy: 0, peak: peers[id].peak };
    for (const report of (await peers[id].pc.getStats()).values()) {
      if (report.type === 'inbound-rtp' && report.kind === 'video') found.pictures = report.framesDecoded;
      if (report.type === 'inbound-rtp' && report.kind === 'audio') found.energy = report.totalAudioEnergy;
    }
    return found;
  };
})()";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_native_peers_see_and_hear_each_other() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    // One that offers to the page, and one that the page offers to.
    let source = ["--source", "pattern", "--port", "0"];
    let mut natives = [join(&server, "ada", &source), join(&server, "zoe", &[source.as_slice(), &["--chat"]].concat())];
    natives[0].wait("connected", Some("zoe"));
    let browser = chromium().await;
    let page = browser.open(&server.url("/healthz")).await.unwrap();
    page.evaluate(&PAGE.replace("URL", &signalling(&server))).await.unwrap();
    for native in &natives {
        native.wait("connected", Some("page"));
        let seen = format!("inbound('{}').then(f => f.pictures > 20 && (f.energy > 0 || f.peak > 0.02))", native.name);
        page.wait_until(&seen, PATIENCE).await.unwrap_or_else(|error| panic!("{}: {error}", native.name));
        let enough = |f: &Value| f["pictures"].as_u64() > Some(20) && f["audio_packets"].as_u64() > Some(20);
        native.wait_figures("page", "pictures and sound", enough);
        let pictures = native.decoded("page", "--raw");
        assert!(pictures.len() >= PICTURE * 10, "{} bytes", pictures.len());
        let last = &pictures[pictures.len() - PICTURE..];
        let (y, v) = (last[320 * 90 + 160], last[320 * 180 * 5 / 4 + 160 * 45 + 80]);
        assert!((50..110).contains(&y) && v > 200, "red, not Y {y} V {v}");
    }
    natives[1].stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    page.wait_until("peers.zoe.said.some(said => said.type === 'chat' && said.text === 'hello')", PATIENCE)
        .await
        .unwrap();
    page.evaluate("peers.ada.chat.send(JSON.stringify({ type: 'chat', id: 1, text: 'hi', at: Date.now() }))")
        .await
        .unwrap();
    assert_eq!(natives[0].wait("chat", Some("page"))["text"], "hi");
    page.wait_until("peers.ada.said.some(said => said.type === 'ack' && said.id === 1)", PATIENCE).await.unwrap();
    page.evaluate("void (Object.values(peers).forEach(({ pc }) => pc.close()), ws.close())").await.unwrap();
    natives.iter().for_each(|native| _ = native.wait("left", Some("page")));
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_come_in_is_told_why() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let url = signalling(&server);
    let refused = |name: &str, url: &str| {
        run(program().args(["join", "--room", "lab", "--host", "127.0.0.1", "--name", name, "--url", url]))
    };
    let mut members: Vec<Member> = Vec::new();
    for n in 0..10 {
        let member = join(&server, &format!("p{n}"), &[]);
        member.wait("in_room", None);
        members.push(member);
    }
    let (code, said) = refused("p10", &url);
    assert!(code == Some(3) && said.contains("full: 10 peers (-32001)"), "{code:?}: {said}");
    drop(members.pop());
    members[0].wait("left", Some("p9"));
    let (code, said) = refused("p3", &url);
    assert!(code == Some(3) && said.contains("somebody is \"p3\""), "{code:?}: {said}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, said) = refused("x", &format!("ws://{nobody}/ws"));
    assert!(code == Some(3) && said.contains("cannot reach"), "{code:?}: {said}");
    let (code, said) = refused("x", &url.replace("/ws", "/healthz"));
    assert!(code == Some(3) && said.contains("HTTP 200"), "{code:?}: {said}");
    for (name, url) in [("a b", url.as_str()), ("x", "wss://127.0.0.1/ws"), ("x", "http://127.0.0.1/ws")] {
        let (code, said) = refused(name, url);
        assert_eq!(code, Some(2), "{name} {url}: {said}");
    }
    // Nobody minded.
    for member in &members {
        let connected = member.told("connected", None).len();
        assert!(connected >= members.len() - 1 && member.told("lost", None).is_empty(), "{}", member.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_outlive_the_server_and_newcomers_are_met_when_it_is_back() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let port = server.address().port();
    let source = ["--source", "pattern"];
    let members = [join(&server, "ada", &source), join(&server, "bob", &source)];
    members[0].wait("first_picture", Some("bob"));
    members[1].wait("first_picture", Some("ada"));
    drop(server); // kill -9
    members.iter().for_each(|member| _ = member.wait("server_lost", None));
    let pictures = |member: &Member, of: &str| member.figures(of).and_then(|f| f["pictures"].as_u64()).unwrap_or(0);
    let before = pictures(&members[0], "bob");
    members[0].wait_figures("bob", "more pictures", |f| f["pictures"].as_u64() > Some(before + 30));
    let server = serve(&["pattern"]).on_port(port).start();
    members.iter().for_each(|member| _ = member.wait("server_back", None));
    let cyd = join(&server, "cyd", &source);
    for (member, other) in [(&members[0], "bob"), (&members[1], "ada")] {
        member.wait("first_picture", Some("cyd"));
        cyd.wait("first_picture", Some(&member.name));
        assert!(member.told("lost", None).is_empty() && member.told("left", None).is_empty());
        assert_eq!(member.told("connected", Some(other)).len(), 1, "the same connection");
    }
}

/// Ten members with pictures and sound for so long.
async fn ten_members(seconds: u64, first_picture_ms: f64) {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let members: Vec<Member> = (0..10).map(|n| join(&server, &format!("p{n}"), &["--source", "pattern"])).collect();
    let mut first: Vec<f64> = Vec::new();
    for member in &members {
        for other in members.iter().filter(|other| other.name != member.name) {
            first.push(member.wait("first_picture", Some(&other.name))["after_ms"].as_f64().unwrap());
            member.wait("first_sound", Some(&other.name));
        }
    }
    first.sort_by(f64::total_cmp);
    let p95 = first[first.len() * 95 / 100];
    println!(
        "first picture: p50 {:.0} ms, p95 {p95:.0} ms, max {:.0} ms",
        first[first.len() / 2],
        first[first.len() - 1]
    );
    assert!(p95 <= first_picture_ms, "{p95} ms");
    let began = Instant::now();
    let counted =
        |member: &Member, of: &str, what: &str| member.figures(of).and_then(|f| f[what].as_u64()).unwrap_or(0);
    let at_start: Vec<(f64, f64)> = members.iter().map(|member| (member.cpu(), member.rss_mib())).collect();
    let pictures: Vec<u64> = members[1..].iter().map(|member| counted(member, "p0", "pictures")).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    let spent = began.elapsed().as_secs_f64();
    for (member, (cpu, rss)) in members.iter().zip(at_start) {
        let share = (member.cpu() - cpu) / spent * 100.0;
        let threads = member.proc_line("status", "Threads:");
        println!(
            "{}: {share:.1} % of a core, {:.1} MiB (began with {rss:.1}), {threads} threads",
            member.name,
            member.rss_mib()
        );
        assert!(member.rss_mib() < 100.0, "{}", member.rss_mib());
        assert!(member.told("lost", None).is_empty() && member.told("left", None).is_empty(), "{}", member.name);
        assert_eq!(member.told("connected", None).len(), 9, "{}", member.name);
    }
    for (member, before) in members[1..].iter().zip(pictures) {
        let came = counted(member, "p0", "pictures") - before;
        println!("{}: {:.1} pictures/s of p0", member.name, came as f64 / spent);
        assert!(came as f64 > spent * 10.0, "{came} pictures in {spent} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_members_stay_together() {
    ten_members(20, 5000.0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nightly: takes half an hour, measures time"]
async fn ten_members_stay_together_for_half_an_hour() {
    ten_members(1800, 2000.0).await;
}
