//! A stream, its peers and their viewers, joined by two links each, on a virtual clock.
//!
//! ```text
//!   Encoder ──media──▶ Peer ──down──▶ Viewer (the crate's Receiver or Publisher, or a bare engine)
//!      ▲                │  ◀──up────
//!      └─ KeyframeWanted, Estimate
//! ```
//!
//! Time moves from one event to the next: a wake-up, an arrival, a picture. The real clock is read once, for the base.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use lightpipe_media::packetize::RtpPayloads;
use lightpipe_media::stream::KEYFRAME_REQUEST_HOLDOFF;
use lightpipe_media::{AccessUnit, MediaClock, MediaTime, Size, Stages, VideoCodec};
use lightpipe_rtc::receiver::{Picture, Receiver};
use lightpipe_rtc::{Identity, Input, Output, Peer, PeerConfig, PeerError, PeerEvent, Published, Publisher, Tracks};
use lightpipe_testkit::netlab::{Link, LinkConfig, Packet};

use crate::raw::{RawConfig, RawViewer};

/// IPv4 and UDP headers, for the links' rates.
const IP_UDP_LEN: usize = 28;

/// A loop that handles this many events at one instant makes no progress.
const MAX_STEPS_AT_ONE_INSTANT: usize = 2_000;

/// The server's address.
pub(crate) fn server() -> SocketAddr {
    "192.0.2.1:8080".parse().unwrap()
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A datagram under way.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Vec<u8>,
    sent: Instant,
}

impl Packet for Datagram {
    fn wire_len(&self) -> usize {
        self.payload.len() + IP_UDP_LEN
    }

    fn duplicate(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// What can be read of a sent RTP packet without keys: its header.
#[derive(Debug, Clone)]
pub(crate) struct Rtp {
    pub(crate) at: Instant,
    pub(crate) payload_type: u8,
    pub(crate) marker: bool,
    pub(crate) seq_no: u16,
    pub(crate) timestamp: u32,
    pub(crate) ssrc: u32,
    pub(crate) header_len: usize,
    /// Bytes of the whole datagram.
    pub(crate) len: usize,
    /// Header extensions: id and value.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
}

impl Rtp {
    /// RTP and nothing else: RFC 7983 for the first byte, RFC 5761 for the second.
    fn parse(at: Instant, datagram: &[u8]) -> Option<Self> {
        if !(128..192).contains(datagram.first()?) || (192..224).contains(datagram.get(1)?) {
            return None;
        }
        let word = |at: usize| datagram.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().unwrap()));
        let mut header_len = 12 + 4 * usize::from(datagram[0] & 0x0f);
        let mut extensions = Vec::new();
        if datagram[0] & 0x10 != 0 {
            let head = word(header_len)?;
            assert_eq!(head >> 16, 0xbede, "one-byte header extensions (RFC 8285 §4.2)");
            let end = header_len + 4 + 4 * (head & 0xffff) as usize;
            let mut rest = datagram.get(header_len + 4..end)?;
            while let Some((first, after)) = rest.split_first() {
                if *first == 0 {
                    rest = after;
                    continue;
                }
                let len = usize::from(first & 0x0f) + 1;
                extensions.push((first >> 4, after.get(..len)?.to_vec()));
                rest = &after[len..];
            }
            header_len = end;
        }
        Some(Self {
            at,
            payload_type: datagram[1] & 0x7f,
            marker: datagram[1] & 0x80 != 0,
            seq_no: u16::from_be_bytes([datagram[2], datagram[3]]),
            timestamp: word(4)?,
            ssrc: word(8)?,
            header_len,
            len: datagram.len(),
            extensions,
        })
    }

    pub(crate) fn extension(&self, id: u8) -> Option<&[u8]> {
        self.extensions.iter().find(|(found, _)| *found == id).map(|(_, value)| value.as_slice())
    }
}

/// The far end of a pair.
#[derive(Debug)]
pub(crate) enum Viewer {
    Native(Box<Receiver>),
    Raw(Box<RawViewer>),
    /// A server that we publish to, or a player that makes a stream of what it gets.
    Publisher(Box<Publisher>),
    /// It vanished: nothing answers any more.
    Gone,
}

impl Viewer {
    pub(crate) fn raw(&mut self) -> &mut RawViewer {
        let Self::Raw(viewer) = self else { panic!("not a raw viewer") };
        viewer
    }

    pub(crate) fn native(&mut self) -> &mut Receiver {
        let Self::Native(viewer) = self else { panic!("not a native viewer") };
        viewer
    }

    fn handle(&mut self, now: Instant, datagram: &Datagram) -> Result<(), PeerError> {
        let Datagram { from, to, payload, .. } = datagram;
        match self {
            Self::Native(viewer) => viewer.handle(now, *from, *to, payload),
            Self::Raw(viewer) => viewer.handle(now, *from, *to, payload),
            Self::Publisher(publisher) => publisher.handle(now, *from, *to, payload),
            Self::Gone => Ok(()),
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        match self {
            Self::Native(viewer) => viewer.tick(now),
            Self::Raw(viewer) => viewer.tick(now),
            Self::Publisher(publisher) => publisher.tick(now),
            Self::Gone => Ok(()),
        }
    }

    fn poll(&mut self, now: Instant) -> Output {
        match self {
            Self::Native(viewer) => viewer.poll(now),
            Self::Raw(viewer) => viewer.poll(now),
            Self::Publisher(publisher) => publisher.poll(now),
            Self::Gone => Output::WakeAt(now + secs(3_600)),
        }
    }
}

/// One viewer's session, both ends, and what was seen of it.
pub(crate) struct Pair {
    pub(crate) peer: Peer,
    pub(crate) viewer: Viewer,
    pub(crate) down: Link<Datagram>,
    pub(crate) up: Link<Datagram>,
    /// The viewer's own address.
    pub(crate) local: SocketAddr,
    /// What the network makes of it; a change is a NAT rebinding.
    pub(crate) public: SocketAddr,
    pub(crate) answer: String,
    /// Events of the peer and when they came.
    pub(crate) events: Vec<(Instant, PeerEvent)>,
    pub(crate) viewer_events: Vec<(Instant, PeerEvent)>,
    /// RTP packets as they left the peer.
    pub(crate) rtp: Vec<Rtp>,
    /// Datagrams that the peer refused.
    pub(crate) not_mine: u64,
    /// Pictures of a native viewer, without their bytes.
    pub(crate) pictures: Vec<Arrived>,
    /// STUN requests of the viewer, as they went up.
    pub(crate) stun_up: Vec<Vec<u8>>,
    /// Which datagrams to the viewer are swallowed.
    pub(crate) swallow: Option<fn(&Rtp, u64) -> bool>,
    /// Pictures given to the peer while it was connected.
    pub(crate) offered: u64,
    /// How often the peer wanted to be woken.
    pub(crate) ticks: u64,
    /// Longest that a packet was under way beyond the link's delay, by second of the run.
    pub(crate) queue_delay: BTreeMap<u64, Duration>,
    peer_wake: Instant,
    viewer_wake: Instant,
}

/// A picture that a viewer completed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    pub(crate) rtp_timestamp: u32,
    pub(crate) keyframe: bool,
    pub(crate) completed: Instant,
    /// Since it was published.
    pub(crate) age: Duration,
}

/// A synthetic encoder: sizes like those of a real one, bytes that are none.
pub(crate) struct Encoder {
    pub(crate) codec: VideoCodec,
    pub(crate) fps: u32,
    pub(crate) bitrate_bps: u64,
    /// Size of a keyframe; six ordinary pictures when not said.
    pub(crate) idr_len: Option<usize>,
    /// Slices per picture.
    pub(crate) slices: usize,
    /// Longest part of a picture that comes with its payloads, bytes.
    pub(crate) part_len: usize,
    /// Time between capture and access unit.
    pub(crate) takes: Duration,
    /// Follow the first peer's estimate with this factor.
    pub(crate) follow: Option<f64>,
    /// Publish nothing.
    pub(crate) paused: bool,
    /// Most it may use when it follows.
    pub(crate) bitrate_max_bps: u64,
    count: u64,
    first_at: Instant,
    keyframe_wanted: bool,
    last_keyframe: Option<Instant>,
    rng: Rng,
}

impl Encoder {
    fn next_at(&self) -> Instant {
        self.first_at + Duration::from_nanos(self.count * 1_000_000_000 / u64::from(self.fps))
    }

    /// Ends the schedule of the old rate and starts that of the new.
    pub(crate) fn set_fps(&mut self, fps: u32) {
        self.first_at = self.next_at();
        self.count = 0;
        self.fps = fps;
    }

    fn encode(&mut self, now: Instant, clock: &MediaClock) -> Arc<AccessUnit> {
        let held_off = self.last_keyframe.is_some_and(|at| now - at < KEYFRAME_REQUEST_HOLDOFF);
        let keyframe = self.last_keyframe.is_none() || (self.keyframe_wanted && !held_off);
        let ordinary = self.bitrate_bps as f64 / 8.0 / f64::from(self.fps);
        let len = if keyframe {
            self.keyframe_wanted = false;
            self.last_keyframe = Some(now);
            self.idr_len.unwrap_or(ordinary as usize * 6)
        } else {
            (ordinary * (0.7 + 0.6 * self.rng.f64())) as usize
        };
        let mut data = Vec::with_capacity(len + 64);
        if matches!(self.codec, VideoCodec::Vp9 | VideoCodec::Av1) {
            let body: Vec<u8> = (0..len.max(1)).map(|_| self.rng.u8(..)).collect();
            let (data, payloads) = match self.codec {
                VideoCodec::Vp9 => vp9(keyframe, self.count, &body, self.part_len),
                _ => av1(keyframe, &body, self.part_len),
            };
            let unit = Arc::into_inner(self.unit(now, clock, data, keyframe)).expect("ours alone");
            return Arc::new(unit.with_payloads(payloads));
        }
        if self.codec == VideoCodec::Vp8 {
            // 1280×720, and one byte that says no keyframe (RFC 6386 §9.1).
            let head: &[u8] = if keyframe { &[0x10, 2, 0, 0x9d, 0x01, 0x2a, 0x00, 0x05, 0xd0, 0x02] } else { &[0x11] };
            data.extend_from_slice(head);
            data.extend((0..len).map(|_| self.rng.u8(..)));
            return self.unit(now, clock, data, keyframe);
        }
        if keyframe {
            // 1280×720.
            let sps = [0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x88, 0x46, 0xa0];
            for parameter_set in [&sps[..], &[0x68, 0xce, 0x3c, 0x80], &[0x06, 0x05, 0x01, 0x80]] {
                data.extend_from_slice(&[0, 0, 0, 1]);
                data.extend_from_slice(parameter_set);
            }
        }
        for slice in 0..self.slices {
            data.extend_from_slice(&[
                0,
                0,
                0,
                1,
                if keyframe { 0x65 } else { 0x41 },
                if slice == 0 { 0x88 } else { 0x48 },
            ]);
            // Without zeros there is no start code inside.
            data.extend((0..(len / self.slices).max(8)).map(|_| self.rng.u8(1..)));
        }
        self.unit(now, clock, data, keyframe)
    }

    fn unit(&self, now: Instant, clock: &MediaClock, data: Vec<u8>, keyframe: bool) -> Arc<AccessUnit> {
        let (captured, encoded) = (clock.at(now - self.takes), clock.at(now));
        let stages = Stages { received: captured, encode_started: captured, encoded };
        Arc::new(AccessUnit::new(self.codec, data, captured, keyframe, Size::new(1280, 720), stages))
    }
}

/// A VP9 frame of 1280×720 with payloads as libwebrtc makes them: flexible mode off, one layer, a picture id of 15 bits.
fn vp9(keyframe: bool, count: u64, body: &[u8], part_len: usize) -> (Vec<u8>, RtpPayloads) {
    let head: &[u8] = if keyframe { &[0x82, 0x49, 0x83, 0x42, 0x00, 0x4f, 0xf0, 0x2c, 0xf0] } else { &[0x86] };
    let frame = [head, body].concat();
    let parts: Vec<&[u8]> = frame.chunks(part_len).collect();
    let payload = |(index, part): (usize, &&[u8])| -> Arc<[u8]> {
        let (first, last) = (index == 0, index + 1 == parts.len());
        let flags = 0xa0
            | if keyframe { 0 } else { 0x40 }
            | if first { 0x08 } else { 0 }
            | if last { 0x04 } else { 0 }
            | if first && keyframe { 0x02 } else { 0 };
        let mut payload = vec![flags, 0x80 | (count >> 8 & 0x7f) as u8, count as u8, 0, count as u8];
        if first && keyframe {
            payload.extend_from_slice(&[0x18, 0x05, 0x00, 0x02, 0xd0, 1, 0x04, 1]);
        }
        payload.extend_from_slice(part);
        payload.into()
    };
    let payloads = parts.iter().enumerate().map(payload).collect();
    (frame, payloads)
}

/// A temporal unit of AV1 with payloads as libwebrtc makes them: a keyframe's first has the sequence header too.
fn av1(keyframe: bool, body: &[u8], part_len: usize) -> (Vec<u8>, RtpPayloads) {
    // 640×360, as SVT-AV1 writes it.
    let sequence: &[u8] = &[0x00, 0x00, 0x00, 0x0c, 0xc4, 0xff, 0x67, 0x3e, 0xfe, 0x40, 0x10];
    let frame = [&[if keyframe { 0x10 } else { 0x30 }], body].concat();
    let mut unit = Vec::new();
    if keyframe {
        unit.extend_from_slice(&[0x0a, sequence.len() as u8]);
        unit.extend_from_slice(sequence);
    }
    unit.push(0x32);
    let mut len = frame.len();
    while len >= 0x80 {
        unit.push(len as u8 | 0x80);
        len >>= 7;
    }
    unit.push(len as u8);
    unit.extend_from_slice(&frame);

    let parts: Vec<&[u8]> = frame.chunks(part_len).collect();
    let payload = |(index, part): (usize, &&[u8])| -> Arc<[u8]> {
        let continues = if index > 0 { 0x80 } else { 0 } | if index + 1 < parts.len() { 0x40 } else { 0 };
        let mut payload = match (index, keyframe) {
            (0, true) => [&[continues | 0x28, sequence.len() as u8 + 1, 0x08], sequence, &[0x30]].concat(),
            (0, false) => vec![continues | 0x10, 0x30],
            _ => vec![continues | 0x10],
        };
        payload.extend_from_slice(part);
        payload.into()
    };
    let payloads = parts.iter().enumerate().map(payload).collect();
    (unit, payloads)
}

/// The laboratory.
pub(crate) struct Lab {
    pub(crate) now: Instant,
    pub(crate) base: Instant,
    pub(crate) clock: MediaClock,
    pub(crate) encoder: Encoder,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) config: PeerConfig,
    /// Published pictures by capture time.
    pub(crate) published: BTreeMap<MediaTime, (Instant, Arc<AccessUnit>)>,
    seed: u64,
    steps_now: usize,
}

/// One reading of both clocks, at the same moment as nearly as a scheduler allows.
fn read_clocks() -> (Instant, Duration) {
    let readings = (0..20).map(|_| {
        let before = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (before.elapsed(), before, unix)
    });
    let (_, instant, unix) = readings.min_by_key(|(took, ..)| *took).unwrap();
    (instant, unix)
}

impl Lab {
    /// 30 fps, 2.5 Mbit/s, one slice, no bandwidth estimation. The seed decides sizes, losses and jitter.
    pub(crate) fn seeded(seed: u64) -> Self {
        // The engine freezes its own pair of clock readings on first use and complains about earlier instants.
        let head_start = secs(10);
        let (instant, unix) = read_clocks();
        let base = instant + head_start;
        let clock = MediaClock::new(base, unix + head_start);
        let config = PeerConfig {
            clock,
            identity: Identity::generate(),
            addresses: vec![server()],
            estimate_bandwidth: false,
            desired_bitrate_bps: 2_500_000,
            playout_delay_max: ms(500),
        };
        let encoder = Encoder {
            codec: VideoCodec::H264,
            fps: 30,
            bitrate_bps: 2_500_000,
            idr_len: None,
            slices: 1,
            part_len: 1100,
            takes: Duration::ZERO,
            follow: None,
            paused: false,
            bitrate_max_bps: 2_500_000,
            count: 0,
            first_at: base + ms(5),
            keyframe_wanted: false,
            last_keyframe: None,
            rng: Rng::with_seed(seed),
        };
        Self {
            now: base,
            base,
            clock,
            encoder,
            pairs: Vec::new(),
            config,
            published: BTreeMap::new(),
            seed,
            steps_now: 0,
        }
    }

    /// With the sender's estimate of each viewer's bandwidth.
    pub(crate) fn with_estimation(mut self) -> Self {
        self.config.estimate_bandwidth = true;
        self
    }

    /// The stream, and with it the native viewers, are of this codec.
    pub(crate) fn with_codec(mut self, codec: VideoCodec) -> Self {
        self.encoder.codec = codec;
        self
    }

    pub(crate) fn with_fps(mut self, fps: u32) -> Self {
        self.encoder.fps = fps;
        self
    }

    /// A native viewer joins over these links; answers its index.
    pub(crate) fn join(&mut self, down: LinkConfig, up: LinkConfig) -> usize {
        let local = self.next_address();
        let codec = self.encoder.codec;
        let (receiver, offer) = Receiver::offer_of(codec, &Identity::generate(), local, self.now).unwrap();
        let mut viewer = Viewer::Native(Box::new(receiver));
        let tracks = Tracks { video: Some(codec), audio: false };
        let (peer, answer) = Peer::answer(self.config.clone(), &offer, tracks, self.now).unwrap();
        viewer.native().accept_answer(&answer).unwrap();
        self.add(peer, viewer, local, answer, down, up)
    }

    /// A viewer on the bare engine joins: it shows what the native one keeps to itself.
    pub(crate) fn join_raw(&mut self, raw: &RawConfig, down: LinkConfig, up: LinkConfig) -> usize {
        let local = self.next_address();
        let (mut viewer, offer) = RawViewer::offer(raw, local, self.now);
        let (peer, answer) = Peer::answer(self.config.clone(), &offer, Tracks::VIDEO, self.now).unwrap();
        viewer.accept_answer(&answer);
        self.add(peer, Viewer::Raw(Box::new(viewer)), local, answer, down, up)
    }

    /// A server to which the stream is pushed: we offer, it answers.
    pub(crate) fn push(&mut self, down: LinkConfig, up: LinkConfig) -> usize {
        let local = self.next_address();
        let tracks = Tracks { video: Some(self.encoder.codec), audio: false };
        let (mut peer, offer) = Peer::offer(self.config.clone(), tracks, self.now).unwrap();
        let config = PeerConfig { addresses: vec![local], identity: Identity::generate(), ..self.config.clone() };
        let (publisher, answer) = Publisher::answer(config, &offer, None, self.now).unwrap();
        peer.accept_answer(&answer, self.now).unwrap();
        self.add(peer, Viewer::Publisher(Box::new(publisher)), local, answer, down, up)
    }

    /// A player of ours joins: it offers, the stream's server answers.
    pub(crate) fn play(&mut self, down: LinkConfig, up: LinkConfig) -> usize {
        let local = self.next_address();
        let config = PeerConfig { addresses: vec![local], identity: Identity::generate(), ..self.config.clone() };
        let (mut publisher, offer) = Publisher::offer(config, self.now).unwrap();
        let tracks = Tracks { video: Some(self.encoder.codec), audio: false };
        let (peer, answer) = Peer::answer(self.config.clone(), &offer, tracks, self.now).unwrap();
        publisher.accept_answer(&answer, self.now).unwrap();
        self.add(peer, Viewer::Publisher(Box::new(publisher)), local, answer, down, up)
    }

    fn next_address(&self) -> SocketAddr {
        format!("198.51.100.{}:50000", self.pairs.len() + 1).parse().unwrap()
    }

    fn add(
        &mut self,
        peer: Peer,
        viewer: Viewer,
        local: SocketAddr,
        answer: String,
        down: LinkConfig,
        up: LinkConfig,
    ) -> usize {
        let index = self.pairs.len();
        let seed = self.seed * 1_000 + 2 * index as u64;
        self.pairs.push(Pair {
            peer,
            viewer,
            down: Link::new(seed, down),
            up: Link::new(seed + 1, up),
            local,
            public: local,
            answer,
            events: Vec::new(),
            viewer_events: Vec::new(),
            rtp: Vec::new(),
            not_mine: 0,
            pictures: Vec::new(),
            stun_up: Vec::new(),
            swallow: None,
            offered: 0,
            ticks: 0,
            queue_delay: BTreeMap::new(),
            peer_wake: self.now,
            viewer_wake: self.now,
        });
        index
    }

    /// Virtual time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.base
    }

    /// Lets virtual time pass.
    pub(crate) fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(next) = self.next_at().filter(|at| *at <= until) {
            if next > self.now {
                self.now = next;
                self.steps_now = 0;
            }
            self.steps_now += 1;

            assert!(self.steps_now < MAX_STEPS_AT_ONE_INSTANT, "no progress at {:?}", self.elapsed());
            self.step();
        }
        self.now = until;
        self.steps_now = 0;
    }

    /// Until the condition holds; fails after `limit`.
    #[track_caller]
    pub(crate) fn run_until(&mut self, limit: Duration, mut holds: impl FnMut(&mut Self) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(self.now - start < limit, "did not happen within {limit:?}");
            self.run_for(ms(1));
        }
        self.now - start
    }

    /// Runs until every peer is connected.
    #[track_caller]
    pub(crate) fn connect(&mut self) -> Duration {
        self.run_until(secs(10), |lab| lab.pairs.iter().all(|pair| pair.peer.is_connected()))
    }

    /// From now on the pair has this network. What the seed decides begins here: a handshake has random sizes and repetitions.
    pub(crate) fn set_network(&mut self, index: usize, down: LinkConfig, up: LinkConfig) {
        let seed = self.seed * 1_000 + 2 * index as u64;
        self.pairs[index].down = Link::new(seed, down);
        self.pairs[index].up = Link::new(seed + 1, up);
    }

    /// Runs until viewers and peers are connected, without media.
    pub(crate) fn connect_quietly(&mut self) {
        self.encoder.paused = true;
        self.connect();
        self.run_for(secs(1));
        self.encoder.paused = false;
    }

    /// Gives the pair's peer a datagram out of nowhere.
    pub(crate) fn inject(&mut self, index: usize, from: SocketAddr, payload: &[u8]) -> Result<(), PeerError> {
        let now = self.now;
        let result = self.pairs[index].peer.handle(now, Input::Datagram { from, to: server(), payload });
        self.drain_peer(index);
        result
    }

    /// Something was done to the peer from outside; its outputs are due.
    pub(crate) fn drain_peer(&mut self, index: usize) {
        let Self { now, pairs, encoder, .. } = self;
        let pair = &mut pairs[index];
        loop {
            match pair.peer.poll(*now) {
                Output::Send { from, to, payload } => {
                    let swallowed = Rtp::parse(*now, &payload).is_some_and(|rtp| {
                        let count = pair.rtp.len() as u64;
                        let swallowed = pair.swallow.is_some_and(|swallow| swallow(&rtp, count));
                        pair.rtp.push(rtp);
                        swallowed
                    });
                    if !swallowed {
                        pair.down.send(*now, Datagram { from, to, payload, sent: *now });
                    }
                }
                Output::Event(event) => {
                    match &event {
                        // The worker asks for one when a viewer connects.
                        PeerEvent::Connected | PeerEvent::KeyframeWanted => encoder.keyframe_wanted = true,
                        PeerEvent::Estimate(bps) if index == 0 => {
                            if let Some(factor) = encoder.follow {
                                encoder.bitrate_bps =
                                    ((*bps as f64 * factor) as u64).clamp(100_000, encoder.bitrate_max_bps);
                            }
                        }
                        _ => {}
                    }
                    pair.events.push((*now, event));
                }
                Output::WakeAt(at) => {
                    pair.peer_wake = at;
                    break;
                }
            }
        }
    }

    /// Something was done to the viewer from outside; its outputs are due.
    pub(crate) fn drain_viewer(&mut self, index: usize) {
        let Self { now, pairs, published, clock, .. } = self;
        let pair = &mut pairs[index];
        loop {
            match pair.viewer.poll(*now) {
                Output::Send { to, payload, .. } => {
                    if lightpipe_rtc::demux::local_ufrag(&payload).is_some() {
                        pair.stun_up.push(payload.clone());
                    }
                    pair.up.send(*now, Datagram { from: pair.public, to, payload, sent: *now });
                }
                Output::Event(event) => pair.viewer_events.push((*now, event)),
                Output::WakeAt(at) => {
                    pair.viewer_wake = at;
                    break;
                }
            }
        }
        // The bytes say which picture it is. Of a codec that is passed on as it came, they are in the same payloads as before.
        let published_at = |data: &[u8], payloads: Option<&RtpPayloads>| {
            let recent = published.range(clock.at(*now - secs(5))..).map(|(_, entry)| entry);
            let original = recent.rev().find(|(_, unit)| *unit.data == *data);
            let (at, unit) = original.expect("a whole picture is one that was published, byte for byte");
            assert!(payloads.is_none_or(|payloads| payloads.iter().eq(unit.rtp_payloads().iter())));
            assert_eq!(payloads.is_some(), matches!(unit.codec, VideoCodec::Vp9 | VideoCodec::Av1));
            *at
        };
        match &mut pair.viewer {
            Viewer::Native(receiver) => {
                while let Some(picture) = receiver.take_picture() {
                    let Picture { rtp_timestamp, keyframe, completed, .. } = picture;
                    let age = completed - published_at(&picture.data, picture.payloads.as_ref());
                    pair.pictures.push(Arrived { rtp_timestamp, keyframe, completed, age });
                }
            }
            Viewer::Publisher(publisher) => {
                while let Some(published) = publisher.take() {
                    let Published::Picture { unit, .. } = published else { continue };
                    let passed_on = matches!(unit.codec, VideoCodec::Vp9 | VideoCodec::Av1);
                    let age = *now - published_at(&unit.data, passed_on.then(|| unit.rtp_payloads()));
                    // Its own clock's: what the RTP timestamp was is not kept.
                    let rtp_timestamp = unit.captured.as_micros() as u32;
                    pair.pictures.push(Arrived { rtp_timestamp, keyframe: unit.keyframe, completed: *now, age });
                }
            }
            Viewer::Raw(_) | Viewer::Gone => {}
        }
    }

    fn next_at(&self) -> Option<Instant> {
        let of_pairs = self.pairs.iter().flat_map(|pair| {
            [Some(pair.peer_wake), Some(pair.viewer_wake), pair.down.next_at(), pair.up.next_at()].into_iter().flatten()
        });
        of_pairs.chain([self.encoder.next_at()]).min().map(|at| at.max(self.now))
    }

    fn step(&mut self) {
        let now = self.now;
        for index in 0..self.pairs.len() {
            while let Some(datagram) = self.pairs[index].up.poll(now) {
                let Datagram { from, to, payload, .. } = &datagram;
                match self.pairs[index].peer.handle(now, Input::Datagram { from: *from, to: *to, payload }) {
                    Ok(()) => {}
                    Err(PeerError::NotMine) => self.pairs[index].not_mine += 1,
                    Err(error) => println!("{:?}: {error}", self.elapsed()),
                }
                self.drain_peer(index);
            }
            while let Some(mut datagram) = self.pairs[index].down.poll(now) {
                let second = self.elapsed().as_secs();
                let pair = &mut self.pairs[index];
                let waited = (now - datagram.sent).saturating_sub(pair.down.config().delay);
                let worst = pair.queue_delay.entry(second).or_default();
                *worst = waited.max(*worst);
                if datagram.to != pair.public {
                    continue; // the old address behind a NAT that has forgotten it
                }
                datagram.to = pair.local;
                _ = pair.viewer.handle(now, &datagram);
                self.drain_viewer(index);
            }
            if self.pairs[index].peer_wake <= now {
                self.pairs[index].ticks += 1;
                _ = self.pairs[index].peer.handle(now, Input::Tick);
                self.drain_peer(index);
            }
            if self.pairs[index].viewer_wake <= now {
                _ = self.pairs[index].viewer.tick(now);
                self.drain_viewer(index);
            }
        }
        if self.encoder.next_at() <= now {
            // As in the product: nothing is encoded while nobody watches, and then a keyframe comes first.
            if !self.encoder.paused && self.pairs.iter().any(|pair| pair.peer.is_connected()) {
                let unit = self.encoder.encode(now, &self.clock);
                self.publish(&unit);
            }
            self.encoder.count += 1;
        }
    }

    fn publish(&mut self, unit: &Arc<AccessUnit>) {
        let now = self.now;
        self.published.insert(unit.captured, (now, Arc::clone(unit)));
        for index in 0..self.pairs.len() {
            let pair = &mut self.pairs[index];
            pair.offered += u64::from(pair.peer.is_connected());
            _ = pair.peer.handle(now, Input::Media(unit));
            self.drain_peer(index);
        }
    }
}
