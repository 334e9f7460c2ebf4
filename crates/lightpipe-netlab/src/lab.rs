//! Servers, viewers and transfers on networks, on a virtual clock.
//!
//! ```text
//!   Ladder ──▶ Stream ──▶ Peer ──▶ line of the path ──▶ Receiver         a viewer; its feedback goes the other line
//!                ▲         │                                             several viewers and transfers may share a path
//!                └─ Demand ┘  keyframe, estimate
//! ```
//!
//! Time moves from one event to the next: a wake-up, an arrival, a picture.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::{MediaClock, Subscription, VideoCodec};
use lightpipe_rtc::receiver::Receiver;
use lightpipe_rtc::{Identity, Input, LayerUse, Output, Peer, PeerConfig, PeerError, PeerEvent, Tracks};

use crate::link::{Link, LinkConfig, Packet, QueueLimit};
use crate::profile::{EventKind, Profile};
use crate::report::{Record, Report, Sample, Shown};
use crate::source::{self, Inbox, Ladder, Source};
use crate::tcp::{self, Segment, TcpId, Transfer};

/// IPv4 and UDP headers, for the rates of lines.
const IP_UDP_LEN: usize = 28;

/// A loop that handles this many events at one instant makes no progress.
const MAX_STEPS_AT_ONE_INSTANT: usize = 20_000;

/// How often the state of everything is written down.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// How often viewers hear how the layers of their stream are, as from the media threads.
const LAYERS_INTERVAL: Duration = Duration::from_millis(200);

/// A line that stalls has this rate; what waits is held, not lost.
const STALLED_BPS: u64 = 1;

/// What may wait before a stalled line without a rate of its own.
const STALLED_QUEUE_BYTES: usize = 1 << 20;

/// A path of a [`Lab`]: both directions of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathId(usize);

/// A viewer of a [`Lab`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewerId(usize);

/// Why something in a lab did not work. Not the network's doing: those are what a lab is for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A session could not be set up; a fault of ours.
    #[error("a session could not be set up")]
    Session(#[from] PeerError),
}

/// The laboratory.
#[derive(Debug)]
pub struct Lab {
    now: Instant,
    base: Instant,
    config: PeerConfig,
    seed: u64,
    lines: Vec<Line>,
    paths: Vec<Path>,
    sources: Vec<Source>,
    viewers: Vec<Viewer>,
    transfers: Vec<Sharer>,
    /// What is to come, by time and order.
    agenda: BTreeMap<(Instant, usize), (PathId, Step)>,
    planned: usize,
    next_sample: Instant,
    next_layers: Instant,
    steps_now: usize,
}

#[derive(Debug)]
struct Path {
    profile: Profile,
    down: usize,
    up: usize,
}

/// One direction of a path.
#[derive(Debug)]
struct Line {
    link: Link<Parcel>,
    /// Its configuration when nothing is wrong.
    normal: LinkConfig,
    cut: bool,
    stalled: bool,
}

impl Line {
    fn new(seed: u64, config: LinkConfig) -> Self {
        Self { link: Link::new(seed, config.clone()), normal: config, cut: false, stalled: false }
    }

    fn apply(&mut self, now: Instant) {
        let mut config = self.normal.clone();
        if self.cut {
            config.loss = 1.0;
        }
        if self.stalled {
            config.queue = match (config.queue, config.rate_bps) {
                (QueueLimit::Time(limit), Some(rate)) => {
                    QueueLimit::Bytes((limit.as_secs_f64() * rate as f64 / 8.0) as usize)
                }
                (QueueLimit::Time(_), None) => QueueLimit::Bytes(STALLED_QUEUE_BYTES),
                (bytes, _) => bytes,
            };
            config.rate_bps = Some(STALLED_BPS);
        }
        self.link.reconfigure(now, config);
    }

    fn capacity_bps(&self) -> Option<u64> {
        if self.cut || self.stalled { Some(0) } else { self.normal.rate_bps }
    }
}

/// Something that happens to a path at an instant.
#[derive(Debug, Clone, Copy)]
enum Step {
    DownRate(u64),
    UpRate(u64),
    Cut(bool),
    Stall(bool),
    Rebind,
    Move,
    /// A viewer's offer of a restart reaches the server, and its answer the viewer.
    Restarted,
}

/// What is under way.
#[derive(Debug, Clone)]
enum Parcel {
    Datagram { viewer: usize, to_viewer: bool, from: SocketAddr, to: SocketAddr, payload: Vec<u8> },
    Tcp { transfer: usize, segment: Segment },
}

impl Packet for Parcel {
    fn wire_len(&self) -> usize {
        match self {
            Self::Datagram { payload, .. } => payload.len() + IP_UDP_LEN,
            Self::Tcp { segment: Segment::Data { .. }, .. } => tcp::SEGMENT_LEN,
            Self::Tcp { segment: Segment::Ack { .. }, .. } => tcp::ACK_LEN,
        }
    }

    fn duplicate(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// A viewer's session, both ends.
#[derive(Debug)]
struct Viewer {
    peer: Peer,
    receiver: Receiver,
    path: PathId,
    source: usize,
    usage: LayerUse,
    /// The layers that it takes: the one whose pictures go out, and the one whose keyframe is waited for.
    takes: Vec<Take>,
    /// Lines on which media goes and feedback comes.
    media: usize,
    feedback: usize,
    /// The viewer's own address, and what the network makes of it.
    local: SocketAddr,
    public: SocketAddr,
    rtx_ssrc: Option<u32>,
    record: Record,
    peer_wake: Instant,
    receiver_wake: Instant,
}

impl Viewer {
    fn request_keyframe(&self) {
        if let Some(take) = self.takes.iter().find(|take| take.layer == self.usage.sends) {
            take.subscription.request_keyframe();
        }
    }

    fn pass_on_estimate(&self) {
        for take in &self.takes {
            take.subscription.set_bitrate(self.peer.video_estimate_bps());
        }
    }
}

/// A layer that a viewer takes.
#[derive(Debug)]
struct Take {
    layer: usize,
    subscription: Subscription,
    inbox: Arc<Inbox>,
}

impl Take {
    fn new(source: &Source, layer: usize) -> Self {
        let inbox = Arc::new(Inbox::default());
        let outlet: Arc<Inbox> = Arc::clone(&inbox);
        Self { layer, subscription: source.stream(layer).subscribe(outlet), inbox }
    }
}

/// A TCP transfer on a path.
#[derive(Debug)]
struct Sharer {
    transfer: Transfer,
    begins: Instant,
    data: usize,
    acks: usize,
}

/// The server's address.
fn server() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 8080))
}

impl Lab {
    /// An empty one, with bandwidth estimation. The seed decides sizes, losses and jitter; it begins a little after `now`, which is
    /// `unix` after 1970.
    pub fn new(seed: u64, now: Instant, unix: Duration) -> Self {
        // The engine freezes its own pair of clock readings on first use and complains about earlier instants.
        let head_start = Duration::from_secs(10);
        let base = now + head_start;
        let config = PeerConfig {
            clock: MediaClock::new(base, unix + head_start),
            identity: Identity::generate(),
            addresses: vec![server()],
            estimate_bandwidth: true,
            desired_bitrate_bps: 0,
            playout_delay_max: Duration::from_millis(500),
        };
        Self {
            now: base,
            base,
            config,
            seed,
            lines: Vec::new(),
            paths: Vec::new(),
            sources: Vec::new(),
            viewers: Vec::new(),
            transfers: Vec::new(),
            agenda: BTreeMap::new(),
            planned: 0,
            next_sample: base + SAMPLE_INTERVAL,
            next_layers: base + LAYERS_INTERVAL,
            steps_now: 0,
        }
    }

    /// Lays a path. Its events happen until `until` has passed since the beginning of the lab.
    pub fn path(&mut self, profile: Profile, until: Duration) -> PathId {
        let id = PathId(self.paths.len());
        let line = self.lines.len();
        let seed = self.seed * 1_000 + line as u64;
        self.lines.push(Line::new(seed, profile.down.clone()));
        self.lines.push(Line::new(seed + 1, profile.up.clone()));
        for event in profile.events_until(until) {
            let at = self.base + event.at;
            let steps: &[(Duration, Step)] = match event.kind {
                EventKind::DownRate(bps) => &[(Duration::ZERO, Step::DownRate(bps))],
                EventKind::UpRate(bps) => &[(Duration::ZERO, Step::UpRate(bps))],
                EventKind::Outage(span) => &[(Duration::ZERO, Step::Cut(true)), (span, Step::Cut(false))],
                EventKind::Stall(span) => &[(Duration::ZERO, Step::Stall(true)), (span, Step::Stall(false))],
                EventKind::Rebind => &[(Duration::ZERO, Step::Rebind)],
                EventKind::Move => {
                    &[(Duration::ZERO, Step::Move), (profile.down.delay + profile.up.delay, Step::Restarted)]
                }
            };
            for (later, step) in steps {
                self.plan(at + *later, id, *step);
            }
        }
        self.paths.push(Path { profile, down: line, up: line + 1 });
        id
    }

    /// Sets up a source; answers its number.
    pub fn source(&mut self, ladder: &Ladder) -> usize {
        let index = self.sources.len();
        // Not all in step with each other and with the lab.
        let first_at = self.now + Duration::from_millis(5 + 7 * index as u64);
        self.sources.push(Source::new(ladder, first_at, self.seed * 1_000 + index as u64));
        index
    }

    /// A viewer at the far end of a path joins now.
    pub fn watch(&mut self, source: usize, path: PathId) -> Result<ViewerId, LabError> {
        let Path { down, up, .. } = self.paths[path.0];
        self.join(source, path, down, up)
    }

    /// A viewer at the near end joins: its media goes the path's way back, beside the feedback of others.
    pub fn watch_backwards(&mut self, source: usize, path: PathId) -> Result<ViewerId, LabError> {
        let Path { down, up, .. } = self.paths[path.0];
        self.join(source, path, up, down)
    }

    fn join(&mut self, source: usize, path: PathId, media: usize, feedback: usize) -> Result<ViewerId, LabError> {
        let index = self.viewers.len();
        let local = SocketAddr::from(([198, 51, 100, (index % 250 + 1) as u8], 50_000 + (index / 250) as u16));
        let (mut receiver, offer) = Receiver::offer(&Identity::generate(), local, self.now)?;
        let desired_bitrate_bps = self.sources[source].best_bps();
        let config = PeerConfig { desired_bitrate_bps, ..self.config.clone() };
        let tracks = Tracks { video: Some(VideoCodec::H264), audio: false };
        let (peer, answer) = Peer::answer(config, &offer, tracks, self.now)?;
        receiver.accept_answer(&answer)?;
        self.viewers.push(Viewer {
            peer,
            receiver,
            path,
            source,
            usage: LayerUse { sends: 0, wants: 0 },
            takes: vec![Take::new(&self.sources[source], 0)],
            media,
            feedback,
            local,
            public: local,
            rtx_ssrc: rtx_ssrc(&answer),
            record: Record::new(self.now),
            peer_wake: self.now,
            receiver_wake: self.now,
        });
        Ok(ViewerId(index))
    }

    /// A TCP transfer along a path towards the viewers, from `begins` to `ends` since the beginning of the lab.
    pub fn transfer(&mut self, path: PathId, begins: Duration, ends: Duration) -> TcpId {
        let Path { down, up, .. } = self.paths[path.0];
        let transfer = Transfer::new(self.base + ends);
        self.transfers.push(Sharer { transfer, begins: self.base + begins, data: down, acks: up });
        TcpId(self.transfers.len() - 1)
    }

    /// Bytes that a transfer has brought to the other side, headers included.
    pub fn transferred_bytes(&self, transfer: TcpId) -> u64 {
        self.transfers[transfer.0].transfer.delivered() * tcp::SEGMENT_LEN as u64
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.now - self.base
    }

    /// What a viewer saw so far.
    pub fn report(&self, viewer: ViewerId) -> Report {
        let viewer = &self.viewers[viewer.0];
        let line = &self.lines[viewer.media];
        Report::of(
            &viewer.record,
            &self.paths[viewer.path.0].profile,
            self.base,
            self.now,
            viewer.peer.counters(),
            viewer.receiver.counters(),
            line.link.counters(),
            &self.sources[viewer.source],
        )
    }

    /// Lets virtual time pass.
    ///
    /// # Panics
    ///
    /// When something asks for a turn at one instant for ever: a fault of ours.
    pub fn run_for(&mut self, span: Duration) {
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

    fn next_at(&self) -> Option<Instant> {
        let of_viewers = self.viewers.iter().flat_map(|viewer| [viewer.peer_wake, viewer.receiver_wake]);
        let of_lines = self.lines.iter().filter_map(|line| line.link.next_at());
        let of_sources = self.sources.iter().map(Source::next_at);
        let of_transfers = self.transfers.iter().filter_map(|sharer| {
            if sharer.begins > self.now { Some(sharer.begins) } else { sharer.transfer.wake_at() }
        });
        let planned = self.agenda.keys().next().map(|(at, _)| *at);
        let all = of_viewers.chain(of_lines).chain(of_sources).chain(of_transfers).chain(planned);
        all.chain([self.next_sample, self.next_layers]).min().map(|at| at.max(self.now))
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= now) {
            let (path, step) = entry.remove();
            self.take_step(path, step);
        }
        for line in 0..self.lines.len() {
            while let Some(parcel) = self.lines[line].link.poll(now) {
                self.arrive(parcel);
            }
        }
        for index in 0..self.viewers.len() {
            if self.viewers[index].peer_wake <= now {
                _ = self.viewers[index].peer.handle(now, Input::Tick);
                self.drain_peer(index);
            }
            if self.viewers[index].receiver_wake <= now {
                _ = self.viewers[index].receiver.tick(now);
                self.drain_receiver(index);
            }
        }
        for index in 0..self.transfers.len() {
            self.transfers[index].transfer.tick(now);
            self.drain_transfer(index);
        }
        for index in 0..self.sources.len() {
            if self.sources[index].next_at() <= now {
                self.take_picture(index);
            }
        }
        if self.next_layers <= now {
            self.next_layers += LAYERS_INTERVAL;
            self.tell_layers();
        }
        if self.next_sample <= now {
            self.next_sample += SAMPLE_INTERVAL;
            self.sample();
        }
    }

    fn plan(&mut self, at: Instant, path: PathId, step: Step) {
        self.planned += 1;
        self.agenda.insert((at, self.planned), (path, step));
    }

    fn take_step(&mut self, path: PathId, step: Step) {
        let now = self.now;
        let Path { down, up, .. } = self.paths[path.0];
        match step {
            Step::DownRate(bps) => self.lines[down].normal.rate_bps = Some(bps),
            Step::UpRate(bps) => self.lines[up].normal.rate_bps = Some(bps),
            Step::Cut(cut) => [down, up].into_iter().for_each(|line| self.lines[line].cut = cut),
            Step::Stall(stalled) => [down, up].into_iter().for_each(|line| self.lines[line].stalled = stalled),
            Step::Rebind | Step::Move => {
                for viewer in self.viewers.iter_mut().filter(|viewer| viewer.path == path) {
                    viewer.public.set_port(viewer.public.port() + 1);
                    if matches!(step, Step::Move) {
                        viewer.local = viewer.public;
                    }
                }
            }
            Step::Restarted => {
                for index in 0..self.viewers.len() {
                    if self.viewers[index].path == path {
                        self.restart(index);
                    }
                }
            }
        }
        for line in [down, up] {
            self.lines[line].apply(now);
        }
    }

    /// A viewer that has moved restarts ICE through its signalling.
    fn restart(&mut self, index: usize) {
        let viewer = &mut self.viewers[index];
        let restarted = viewer.receiver.restart_offer(viewer.local).and_then(|offer| {
            let answer = viewer.peer.reoffer(&offer)?;
            viewer.receiver.accept_answer(&answer)
        });
        if let Err(error) = restarted {
            viewer.record.failures.push(error.to_string());
        }
        self.drain_peer(index);
        self.drain_receiver(index);
    }

    fn arrive(&mut self, parcel: Parcel) {
        let now = self.now;
        match parcel {
            Parcel::Tcp { transfer, segment } => {
                let Sharer { transfer: both, acks, .. } = &mut self.transfers[transfer];
                if let Some(segment) = both.handle(now, segment) {
                    let line = *acks;
                    self.send(line, Parcel::Tcp { transfer, segment });
                }
                self.drain_transfer(transfer);
            }
            Parcel::Datagram { viewer: index, to_viewer: true, from, to, payload } => {
                let viewer = &mut self.viewers[index];
                if to != viewer.public {
                    return; // The old address behind a NAT that has forgotten it.
                }
                if is_rtp(&payload) {
                    viewer.record.received((payload.len() + IP_UDP_LEN) as u64);
                }
                _ = viewer.receiver.handle(now, from, viewer.local, &payload);
                self.drain_receiver(index);
            }
            Parcel::Datagram { viewer: index, to_viewer: false, from, to, payload } => {
                // An error is a stranger's datagram, or ended the session, which says so itself.
                _ = self.viewers[index].peer.handle(now, Input::Datagram { from, to, payload: &payload });
                self.drain_peer(index);
            }
        }
    }

    fn send(&mut self, line: usize, parcel: Parcel) {
        _ = self.lines[line].link.send(self.now, parcel);
    }

    fn drain_transfer(&mut self, index: usize) {
        let now = self.now;
        if self.transfers[index].begins > now {
            return;
        }
        while let Some(segment) = self.transfers[index].transfer.poll(now) {
            let line = self.transfers[index].data;
            self.send(line, Parcel::Tcp { transfer: index, segment });
        }
    }

    fn drain_peer(&mut self, index: usize) {
        let now = self.now;
        loop {
            let viewer = &mut self.viewers[index];
            match viewer.peer.poll(now) {
                Output::Send { from, to, payload } => {
                    let line = viewer.media;
                    if is_rtp(&payload) {
                        // How long a line that stands still makes it wait is not known yet.
                        let waits = (!self.lines[line].stalled).then(|| self.lines[line].link.backlog(now));
                        let extra = viewer.rtx_ssrc.is_some_and(|rtx| ssrc_of(&payload) == Some(rtx));
                        viewer.record.sent((payload.len() + IP_UDP_LEN) as u64, extra, waits);
                    }
                    self.send(line, Parcel::Datagram { viewer: index, to_viewer: true, from, to, payload });
                }
                Output::Event(event) => match &event {
                    PeerEvent::Connected => {
                        viewer.record.connected.get_or_insert(now);
                        viewer.request_keyframe();
                    }
                    PeerEvent::KeyframeWanted => viewer.request_keyframe(),
                    PeerEvent::Estimate(_) => viewer.pass_on_estimate(),
                    PeerEvent::Layer(usage) => {
                        let usage = *usage;
                        self.change_layer(index, usage);
                    }
                    PeerEvent::Silent => viewer.takes.clear(),
                    PeerEvent::Heard => {
                        let usage = viewer.usage;
                        self.change_layer(index, usage);
                    }
                    PeerEvent::Closed(cause) => viewer.record.failures.push(cause.sentence().to_owned()),
                    _ => {}
                },
                Output::WakeAt(at) => {
                    viewer.peer_wake = at;
                    return;
                }
            }
        }
    }

    fn drain_receiver(&mut self, index: usize) {
        let now = self.now;
        loop {
            let viewer = &mut self.viewers[index];
            match viewer.receiver.poll(now) {
                Output::Send { from, to, payload } => {
                    if from != viewer.local {
                        continue; // That interface is gone.
                    }
                    let (line, from) = (viewer.feedback, viewer.public);
                    self.send(line, Parcel::Datagram { viewer: index, to_viewer: false, from, to, payload });
                }
                Output::Event(_) => {}
                Output::WakeAt(at) => {
                    viewer.receiver_wake = at;
                    break;
                }
            }
        }
        let viewer = &mut self.viewers[index];
        while let Some(picture) = viewer.receiver.take_picture() {
            let mark = source::mark_of(&picture.data);
            let Some((taken, layer, size)) = mark.and_then(|mark| self.sources[viewer.source].picture(mark)) else {
                viewer.record.failures.push("a picture that nobody took".to_owned());
                continue;
            };
            viewer.record.shown.push(Shown { at: now, age: now - taken, layer, rows: size.height });
        }
    }

    fn take_picture(&mut self, index: usize) {
        let now = self.now;
        for (stream, unit) in self.sources[index].take_picture(now, &self.config.clock) {
            stream.publish(&unit);
        }
        for index in 0..self.viewers.len() {
            let viewer = &mut self.viewers[index];
            let units: Vec<_> = viewer.takes.iter().filter_map(|take| Some((take.layer, take.inbox.take()?))).collect();
            for (layer, unit) in units {
                let viewer = &mut self.viewers[index];
                viewer.record.offered += u64::from(viewer.peer.is_connected() && layer == viewer.usage.sends);
                _ = viewer.peer.handle(now, Input::Layer(&unit, layer));
                self.drain_peer(index);
            }
        }
    }

    /// As the media threads do it: from now on these layers' pictures, and of no others.
    fn change_layer(&mut self, index: usize, usage: LayerUse) {
        let viewer = &mut self.viewers[index];
        viewer.usage = usage;
        let layers = [usage.sends, usage.wants];
        viewer.takes.retain(|take| layers.contains(&take.layer));
        for layer in layers {
            if !viewer.takes.iter().any(|take| take.layer == layer) {
                viewer.takes.push(Take::new(&self.sources[viewer.source], layer));
            }
        }
        viewer.pass_on_estimate();
    }

    /// As the media threads do it: viewers hear how the layers of their stream are.
    fn tell_layers(&mut self) {
        for index in 0..self.viewers.len() {
            let viewer = &mut self.viewers[index];
            let states = self.sources[viewer.source].layer_states();
            if states.len() > 1 {
                viewer.peer.set_layers(self.now, states, viewer.usage.sends);
                self.drain_peer(index);
            }
        }
    }

    fn sample(&mut self) {
        for viewer in &mut self.viewers {
            let at = self.now - self.base;
            let (layer, rows) = viewer.record.shown.last().map_or((0, 0), |shown| (shown.layer, shown.rows));
            let sample = Sample {
                at_ms: at.as_millis() as u64,
                capacity_bps: self.lines[viewer.media].capacity_bps(),
                estimate_bps: viewer.peer.counters().estimate_bps,
                target_bps: self.sources[viewer.source].target_bps(layer),
                layer,
                rows,
                fps: self.sources[viewer.source].fps(layer),
                ..Sample::default()
            };
            viewer.record.sample(sample);
        }
    }
}

/// RTP and nothing else: RFC 7983 for the first byte, RFC 5761 for the second.
fn is_rtp(datagram: &[u8]) -> bool {
    matches!(datagram, [128..=191, second, ..] if !(192..224).contains(second))
}

fn ssrc_of(rtp: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(rtp.get(8..12)?.try_into().ok()?))
}

/// The SSRC of retransmissions in an answer (RFC 5576 §4.2).
fn rtx_ssrc(answer: &str) -> Option<u32> {
    let group = answer.lines().find_map(|line| line.trim().strip_prefix("a=ssrc-group:FID "))?;
    group.split_whitespace().nth(1)?.parse().ok()
}
