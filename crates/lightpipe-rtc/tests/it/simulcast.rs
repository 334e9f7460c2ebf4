//! Three layers side by side, from our client to our server, on a virtual clock: what is lost of one is repaired on that one.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use lightpipe_media::stream::KEYFRAME_REQUEST_HOLDOFF;
use lightpipe_media::{AccessUnit, MediaClock, Size, Stages, VideoCodec};
use lightpipe_rtc::{
    AnswerError, Identity, Input, LayerState, Output, Peer, PeerConfig, PeerError, PeerEvent, Published, Publisher,
    Tracks,
};

const RIDS: [&str; 3] = ["f", "h", "q"];
const SIZES: [Size; 3] = [Size::new(1280, 720), Size::new(640, 360), Size::new(320, 184)];
const RATES_BPS: [u64; 3] = [2_000_000, 500_000, 150_000];
/// Sequence parameter sets of these sizes, Constrained Baseline.
const SPS: [&[u8]; 3] = [
    &[0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x88, 0x46, 0xa0],
    &[0x67, 0x42, 0xc0, 0x1e, 0x8c, 0x8d, 0x40, 0x50, 0x17, 0xfc, 0xb0, 0x0f, 0x08, 0x84, 0x6a],
    &[0x67, 0x42, 0xc0, 0x0d, 0x8c, 0x8d, 0x40, 0xa0, 0xcb, 0xcb, 0x00, 0xf0, 0x88, 0x46, 0xa0],
];
const DELAY: Duration = Duration::from_millis(20);
const STEP: Duration = Duration::from_millis(1);

fn ours() -> SocketAddr {
    "192.0.2.1:8080".parse().unwrap()
}

fn theirs() -> SocketAddr {
    "198.51.100.1:8080".parse().unwrap()
}

fn rids() -> Vec<String> {
    RIDS.map(str::to_owned).to_vec()
}

fn states() -> Vec<LayerState> {
    let state = |n: usize| LayerState {
        rid: RIDS[n].to_owned(),
        size: SIZES[n],
        floor_bps: RATES_BPS[n] / 2,
        target_bps: Some(RATES_BPS[n]),
        available: true,
    };
    (0..3).map(state).collect()
}

/// What an encoder of one layer does with requests for keyframes.
#[derive(Default)]
struct Encoder {
    keyframe_wanted: bool,
    last_keyframe: Option<Instant>,
    keyframes: u64,
}

/// Our client and a server of ours, and what goes between them.
struct Session {
    now: Instant,
    clock: MediaClock,
    rng: Rng,
    peer: Peer,
    publisher: Publisher,
    offer: String,
    wakes: [Instant; 2],
    down: VecDeque<(Instant, Vec<u8>)>,
    up: VecDeque<(Instant, Vec<u8>)>,
    /// Losses of the layer with this number, and of what comes back.
    loss: (usize, f64),
    encoders: [Encoder; 3],
    pictures: u64,
    paused: bool,
    /// RTP packets by SSRC, those that were lost included.
    packets: BTreeMap<u32, u64>,
    /// Layers that are to be given.
    given: Vec<usize>,
    /// Keyframes that the peer asked of each layer.
    asked: [u64; 3],
    /// Pictures of each layer that came, and the sizes that they had.
    came: [u64; 3],
    sizes: [Option<Size>; 3],
}

impl Session {
    /// Agreed, with whatever becomes of our offer on its way.
    fn new(seed: u64, estimate: bool, change: impl Fn(&str) -> String) -> Self {
        Self::agreed(seed, estimate, change, str::to_owned)
    }

    /// The same of the answer, too.
    fn agreed(
        seed: u64,
        estimate: bool,
        change: impl Fn(&str) -> String,
        change_answer: impl Fn(&str) -> String,
    ) -> Self {
        let head_start = Duration::from_secs(10);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Instant::now() + head_start;
        let clock = MediaClock::new(now, unix + head_start);
        let config = |address| PeerConfig {
            clock,
            identity: Identity::generate(),
            addresses: vec![address],
            estimate_bandwidth: estimate,
            desired_bitrate_bps: 3_300_000,
            playout_delay_max: Duration::from_millis(500),
        };
        let (mut peer, offer) = Peer::offer_layers(config(ours()), Tracks::VIDEO, &rids(), now).unwrap();
        let (publisher, answer) = Publisher::answer(config(theirs()), &change(&offer), None, now).unwrap();
        peer.set_layers(now, states(), 0);
        peer.accept_answer(&change_answer(&answer), now).unwrap();
        let mut session = Self {
            now,
            clock,
            rng: Rng::with_seed(seed),
            peer,
            publisher,
            offer,
            wakes: [now; 2],
            down: VecDeque::new(),
            up: VecDeque::new(),
            loss: (0, 0.0),
            encoders: Default::default(),
            pictures: 0,
            paused: true,
            packets: BTreeMap::new(),
            given: vec![0],
            asked: [0; 3],
            came: [0; 3],
            sizes: [None; 3],
        };
        session.drain();
        for _ in 0..5_000 {
            session.step();
            if session.peer.is_connected() && session.publisher.is_connected() {
                break;
            }
        }
        assert!(session.peer.is_connected());
        session.run(Duration::from_secs(1));
        session.paused = false;
        session
    }

    /// SSRCs of a layer: of its pictures, and of its retransmissions as our offer says them.
    fn ssrcs(&self, layer: usize) -> (u32, u32) {
        let main = self.peer.sent_layers().iter().find(|sent| sent.rid == RIDS[layer]).unwrap().ssrc;
        let group = format!("a=ssrc-group:FID {main} ");
        let line = self.offer.lines().find_map(|line| line.strip_prefix(&group)).unwrap();
        (main, line.trim().parse().unwrap())
    }

    fn run(&mut self, span: Duration) {
        for _ in 0..span.as_millis() {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        while self.down.front().is_some_and(|(at, _)| *at <= now) {
            let (_, payload) = self.down.pop_front().unwrap();
            _ = self.publisher.handle(now, ours(), theirs(), &payload);
            self.drain();
        }
        while self.up.front().is_some_and(|(at, _)| *at <= now) {
            let (_, payload) = self.up.pop_front().unwrap();
            _ = self.peer.handle(now, Input::Datagram { from: theirs(), to: ours(), payload: &payload });
            self.drain();
        }
        if self.wakes[0] <= now {
            _ = self.peer.handle(now, Input::Tick);
            self.drain();
        }
        if self.wakes[1] <= now {
            _ = self.publisher.tick(now);
            self.drain();
        }
        if !self.paused && self.clock.at(now).as_micros() / 1000 % 33 == 0 {
            self.encode();
        }
    }

    /// One picture of each layer that is wanted, all captured now.
    fn encode(&mut self) {
        let now = self.now;
        self.pictures += 1;
        for layer in self.given.clone() {
            let encoder = &mut self.encoders[layer];
            let held_off = encoder.last_keyframe.is_some_and(|at| now - at < KEYFRAME_REQUEST_HOLDOFF);
            let keyframe = encoder.last_keyframe.is_none() || (encoder.keyframe_wanted && !held_off);
            let mut data = Vec::new();
            if keyframe {
                encoder.keyframe_wanted = false;
                encoder.last_keyframe = Some(now);
                encoder.keyframes += 1;
                for nal in [SPS[layer], &[0x68, 0xce, 0x3c, 0x80]] {
                    data.extend_from_slice(&[0, 0, 0, 1]);
                    data.extend_from_slice(nal);
                }
            }
            data.extend_from_slice(&[0, 0, 0, 1, if keyframe { 0x65 } else { 0x41 }, 0x88]);
            let len = RATES_BPS[layer] as usize / 8 / 30 * if keyframe { 6 } else { 1 };
            data.extend((0..len).map(|_| self.rng.u8(1..)));
            let captured = self.clock.at(now);
            let stages = Stages::all_at(captured);
            let unit = Arc::new(AccessUnit::new(VideoCodec::H264, data, captured, keyframe, SIZES[layer], stages));
            _ = self.peer.handle(now, Input::Layer(&unit, layer));
            self.drain();
        }
    }

    fn drain(&mut self) {
        let now = self.now;
        loop {
            match self.peer.poll(now) {
                Output::Send { payload, .. } => {
                    let ssrc = rtp_ssrc(&payload);
                    if let Some(ssrc) = ssrc {
                        *self.packets.entry(ssrc).or_default() += 1;
                    }
                    let lossy = self.loss.1 > 0.0 && {
                        let (main, rtx) = self.ssrcs(self.loss.0);
                        ssrc.is_some_and(|ssrc| [main, rtx].contains(&ssrc))
                    };
                    if !(lossy && self.rng.f64() < self.loss.1) {
                        self.down.push_back((now + DELAY, payload));
                    }
                }
                Output::Event(PeerEvent::Simulcast(layers)) => self.given = layers,
                Output::Event(PeerEvent::LayerKeyframeWanted(layer)) => {
                    self.asked[layer] += 1;
                    self.encoders[layer].keyframe_wanted = true;
                }
                Output::Event(PeerEvent::KeyframeWanted) => self.encoders[0].keyframe_wanted = true,
                Output::Event(_) => {}
                Output::WakeAt(at) => {
                    self.wakes[0] = at;
                    break;
                }
            }
        }
        loop {
            match self.publisher.poll(now) {
                Output::Send { payload, .. } => {
                    if self.rng.f64() >= self.loss.1 {
                        self.up.push_back((now + DELAY, payload));
                    }
                }
                Output::Event(_) => {}
                Output::WakeAt(at) => {
                    self.wakes[1] = at;
                    break;
                }
            }
        }
        while let Some(published) = self.publisher.take() {
            let Published::Picture { layer, unit } = published else { continue };
            self.came[layer] += 1;
            self.sizes[layer] = Some(unit.size);
        }
    }

    fn keyframe_requests(&self) -> Vec<u64> {
        self.publisher.received().iter().map(|layer| layer.counters.keyframe_requests).collect()
    }
}

/// RTP and nothing else: RFC 7983 for the first byte, RFC 5761 for the second.
fn rtp_ssrc(datagram: &[u8]) -> Option<u32> {
    match datagram {
        [128..=191, second, _, _, _, _, _, _, a, b, c, d, ..] if !(192..=223).contains(second) => {
            Some(u32::from_be_bytes([*a, *b, *c, *d]))
        }
        _ => None,
    }
}

/// Trap: only the top simulcast layer answers NACK.
#[test]
fn losses_of_each_layer_are_repaired_on_its_own_ssrc() {
    for layer in 0..3 {
        for (loss, least) in [(0.02, 0.99), (0.05, 0.97), (0.10, 0.90)] {
            let mut session = Session::new(7 + layer as u64, false, str::to_owned);
            session.run(Duration::from_secs(1));
            let (before, packets) = (session.asked, session.packets.clone());
            session.loss = (layer, loss);
            session.run(Duration::from_secs(60));
            session.paused = true;
            session.run(Duration::from_secs(1));
            let share = session.came[layer] as f64 / session.pictures as f64;
            let sent = |ssrc: u32| session.packets.get(&ssrc).unwrap_or(&0) - packets.get(&ssrc).unwrap_or(&0);
            let nacks: Vec<u64> = session.peer.sent_layers().iter().map(|sent| sent.counters.nacks).collect();
            println!(
                "{} {:.0} %: {:.2} % of {} pictures, {} packets sent again, NACKs {nacks:?}, keyframes asked {:?}",
                RIDS[layer],
                loss * 100.0,
                share * 100.0,
                session.pictures,
                sent(session.ssrcs(layer).1),
                session.asked,
            );
            assert!(share >= least, "{share}");
            let (main, rtx) = session.ssrcs(layer);
            assert!(sent(rtx) as f64 >= sent(main) as f64 * loss * 0.8, "{} of {}", sent(rtx), sent(main));
            assert!(nacks[layer] > 0);
            for other in (0..3).filter(|other| *other != layer) {
                assert_eq!((nacks[other], sent(session.ssrcs(other).1)), (0, 0), "{}", RIDS[other]);
                assert_eq!(session.came[other], session.pictures, "{} is whole", RIDS[other]);
                assert_eq!(session.asked[other], before[other], "no keyframe of {}", RIDS[other]);
            }
        }
    }
}

#[test]
fn a_keyframe_request_reaches_its_own_layer_only() {
    let mut session = Session::new(1, false, str::to_owned);
    session.run(Duration::from_secs(2));
    assert_eq!(session.sizes, SIZES.map(Some));
    assert_eq!(session.came, [session.came[0]; 3]);
    for (layer, rid) in RIDS.into_iter().enumerate() {
        let (asked, requests) = (session.asked, session.keyframe_requests());
        let keyframes = session.encoders.each_ref().map(|encoder| encoder.keyframes);
        session.publisher.request_keyframe(layer, session.now);
        session.drain();
        session.run(Duration::from_secs(1));
        for other in 0..3 {
            let more = u64::from(other == layer);
            assert_eq!(session.asked[other], asked[other] + more, "{} asked for {rid}", RIDS[other]);
            assert_eq!(session.keyframe_requests()[other], requests[other] + more);
            assert_eq!(session.encoders[other].keyframes, keyframes[other] + more);
        }
        let told: Vec<u64> = session.peer.sent_layers().iter().map(|sent| sent.counters.keyframe_requests).collect();
        assert_eq!(told, session.asked.to_vec());
    }
}

/// Those that the answer leaves out are never asked for; where it takes none there is one video stream.
#[test]
fn an_answer_may_take_fewer_layers() {
    #[track_caller]
    fn check(change: impl Fn(&str) -> String, given: &[usize], came: &[Size]) {
        let mut session = Session::new(2, false, change);
        session.run(Duration::from_secs(2));
        assert_eq!(session.given, given);
        let sizes: Vec<Size> = session.sizes.iter().flatten().copied().collect();
        assert_eq!(sizes, came);
        assert!(session.came[..came.len()].iter().all(|came| *came >= session.pictures - 2), "{:?}", session.came);
    }
    let without = |rid: &str| {
        let rid = rid.to_owned();
        move |offer: &str| {
            let gone = format!("a=rid:{rid} send\r\n");
            offer.replace(&gone, "").replace(&format!("{rid};"), "").replace(&format!(";{rid}\r\n"), "\r\n")
        }
    };
    check(str::to_owned, &[0, 1, 2], &SIZES);
    check(without("h"), &[0, 2], &[SIZES[0], SIZES[2]]);
    check(|offer| without("f")(&without("h")(offer)), &[2], &[SIZES[2]]);
    let none = |offer: &str| -> String {
        offer.split_inclusive('\n').filter(|l| !l.starts_with("a=rid:") && !l.starts_with("a=simulcast:")).collect()
    };
    check(none, &[0], &[SIZES[0]]);
}

/// What our network carries goes to the least layers first; the best ones rest and come back.
#[test]
fn a_narrow_uplink_gets_the_lower_layers() {
    let mut session = Session::new(3, true, str::to_owned);
    session.run(Duration::from_secs(10));
    assert_eq!(session.given, [0, 1, 2], "{:?}", session.peer.counters());
    // Everything of the best layer is lost: the estimate falls.
    session.loss = (0, 0.6);
    let start = session.now;
    while session.given.contains(&0) && session.now - start < Duration::from_secs(30) {
        session.run(Duration::from_millis(100));
    }
    assert!(!session.given.contains(&0) && session.given.contains(&2), "{:?}", session.given);
    session.loss = (0, 0.0);
    let start = session.now;
    while session.given != [0, 1, 2] && session.now - start < Duration::from_secs(60) {
        session.run(Duration::from_millis(100));
    }
    assert_eq!(session.given, [0, 1, 2], "{:?}", session.peer.counters());
    let came = session.came;
    session.run(Duration::from_secs(2));
    assert!((0..3).all(|layer| session.came[layer] > came[layer] + 30), "{came:?} {:?}", session.came);
}

/// The server took two layers, the client sends all three.
#[test]
fn packets_of_a_rid_that_was_not_agreed_are_counted_and_go_nowhere() {
    let without_h = |offer: &str| offer.replace("a=rid:h send\r\n", "").replace("f;h;q", "f;q");
    let with_h = |answer: &str| answer.replace("a=simulcast:recv f;q", "a=rid:h recv\r\na=simulcast:recv f;h;q");
    let mut session = Session::agreed(4, false, without_h, with_h);
    session.run(Duration::from_secs(3));
    assert_eq!(session.given, [0, 1, 2]);
    assert_eq!(session.sizes, [Some(SIZES[0]), Some(SIZES[2]), None]);
    assert!(session.came[..2].iter().all(|came| *came >= session.pictures - 2), "{:?}", session.came);
    let unknown = session.publisher.counters().unknown_packets;
    let (main, rtx) = session.ssrcs(1);
    let sent: u64 = [main, rtx].iter().filter_map(|ssrc| session.packets.get(ssrc)).sum();
    assert!(unknown > 50 && sent - unknown < 10, "{unknown} of {sent}");
}

#[test]
fn offers_with_broken_rids_are_refused() {
    let head_start = Duration::from_secs(10);
    let now = Instant::now() + head_start;
    let clock = MediaClock::new(now, SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + head_start);
    let config = PeerConfig {
        clock,
        identity: Identity::generate(),
        addresses: vec![ours()],
        estimate_bandwidth: false,
        desired_bitrate_bps: 3_000_000,
        playout_delay_max: Duration::from_millis(500),
    };
    let (mut peer, offer) = Peer::offer_layers(config.clone(), Tracks::VIDEO, &rids(), now).unwrap();
    let answered = |offer: &str| Publisher::answer(config.clone(), offer, None, now);
    let twice = offer.replace("a=rid:h send\r\n", "a=rid:f send\r\n");
    assert!(matches!(answered(&twice), Err(PeerError::Offer(_))), "a RID twice");
    let hundred: String = (0..100).map(|n| format!("a=rid:r{n} send\r\n")).collect();
    let hundred = offer.replace("a=rid:h send\r\n", &format!("a=rid:h send\r\n{hundred}"));
    assert!(matches!(answered(&hundred), Err(PeerError::Offer(_))), "a hundred");
    let (publisher, answer) = answered(&offer.replace("a=simulcast:send f;h;q\r\n", "")).unwrap();
    assert!(publisher.offered().layers.is_empty() && !answer.contains("a=rid:"), "{answer}");
    let (publisher, answer) = answered(&offer).unwrap();
    assert_eq!(publisher.offered().layers, RIDS);
    assert!(answer.contains("a=simulcast:recv f;h;q\r\n") && answer.contains("a=rid:q recv\r\n"), "{answer}");
    let again = peer.accept_answer(&answer, now).and_then(|()| peer.accept_answer(&answer, now));
    assert!(matches!(again, Err(PeerError::Answer(AnswerError::NotAwaited))), "{again:?}");
}
