//! One media thread: a poll loop over its socket, its inbox and its timers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lightpipe_media::{
    AccessUnit, AudioPacket, EventKind, EventLog, Histogram, MediaClock, MediaTime, Stream, Subscription,
};
use lightpipe_rtc::control::{Percentiles, StagePercentiles, ViewerStats};
use lightpipe_rtc::{
    Counters, DisconnectCause, Input, LayerState, LayerUse, Peer, PeerError, PeerEvent, Publisher, demux,
};
use mio::{Events, Interest, Poll, Token};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::engine::Phase;
use super::inbox::{Command, Inbox, Pending, StreamOutlet};
use super::layers::{self, Ladder};
use super::mutual::{LinkState, Mutual};
use super::priority::{Priorities, Priority};
use super::publishers::Publishers;
use super::routes::{Place, Registration, Routes};
use super::socket::{MediaSocket, SendRun};
use super::table::{EngineCounters, PeerTable, public_part};

const SOCKET: Token = Token(0);
pub(crate) const WAKER: Token = Token(1);

/// Receive calls per turn of the loop: a flood on the socket must not starve media that waits to be sent.
const MAX_RECEIVES_PER_TURN: usize = 64;

/// Age of the last keyframe up to which a new viewer starts with it: while requests for another one are held off anyway.
const REPLAY_SPAN: Duration = lightpipe_media::stream::KEYFRAME_REQUEST_HOLDOFF;

/// How often viewers hear how the layers of their stream are. Encoders follow estimates within a picture.
const LAYERS_INTERVAL: Duration = Duration::from_millis(200);

/// How often viewers and the API get fresh figures.
const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// A peer on its way to its thread.
pub(crate) struct Viewer {
    pub(crate) key: u64,
    pub(crate) id: String,
    pub(crate) peer: Peer,
    pub(crate) stream: Arc<Stream>,
    /// Where this is a connection between equals.
    pub(crate) mutual: Option<Mutual>,
    pub(crate) created: Instant,
    pub(crate) registration: Registration,
    /// Told how far the session is.
    pub(crate) phase: watch::Sender<Phase>,
}

impl Viewer {
    fn tell(&self, state: LinkState) {
        if let Some(mutual) = &self.mutual {
            mutual.outlet.state(state);
        }
    }
}

/// What the threads of an engine share.
pub(crate) struct Shared {
    pub(crate) routes: Arc<Routes>,
    pub(crate) table: Arc<PeerTable>,
    pub(crate) events: EventLog,
    pub(crate) clock: MediaClock,
    pub(crate) inboxes: Vec<Arc<Inbox>>,
    pub(super) priorities: Priorities,
}

pub(crate) struct Worker {
    index: usize,
    poll: Poll,
    socket: MediaSocket,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    peers: HashMap<u64, Slot>,
    publishers: Publishers,
    by_address: HashMap<SocketAddr, u64>,
    fans: HashMap<FanKey, Fan>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    run: SendRun,
    stats_at: Instant,
    layers_at: Instant,
    /// The socket may hold datagrams.
    readable: bool,
    stopping: bool,
    priority: Priority,
}

struct Slot {
    viewer: Viewer,
    /// What it may get, best first; the stream alone where there is no ladder.
    layers: Vec<Arc<Stream>>,
    /// Which of them it is in the fans of.
    usage: LayerUse,
    /// Nothing came from it for so long that it is in none.
    silent: bool,
    /// With simulcast: all of them that go out.
    side_by_side: Option<Vec<usize>>,
    /// What the peer was told of them.
    told: Vec<LayerState>,
    /// When the peer wants to be called; older entries in the heap are stale.
    wake_at: Instant,
    send: Histogram,
    capture_to_sent: Histogram,
    connected_at: Option<MediaTime>,
}

impl Slot {
    /// The stream whose pictures go out, and with them the sound.
    fn sends(&self) -> &Arc<Stream> {
        let first = self.side_by_side.as_ref().and_then(|layers| layers.first());
        self.layers.get(*first.unwrap_or(&self.usage.sends)).unwrap_or(&self.viewer.stream)
    }

    /// The streams whose pictures the peer wants.
    fn takes(&self) -> impl Iterator<Item = &Arc<Stream>> {
        let more = match &self.side_by_side {
            Some(layers) => layers.get(1..).unwrap_or_default(),
            None if self.usage.wants != self.usage.sends => std::slice::from_ref(&self.usage.wants),
            None => &[],
        };
        let all = std::iter::once(self.sends()).chain(more.iter().filter_map(|layer| self.layers.get(*layer)));
        all.filter(|_| !self.silent)
    }

    fn drain(&mut self, now: Instant, socket: &mut MediaSocket, run: &mut SendRun, happened: &mut Vec<PeerEvent>) {
        let Viewer { peer, registration, .. } = &mut self.viewer;
        self.wake_at = run.drain(now, socket, registration, happened, |now| peer.poll(now));
    }

    /// Place of a stream among the layers.
    fn layer_of(&self, stream: &Arc<Stream>) -> usize {
        self.layers.iter().position(|layer| Arc::ptr_eq(layer, stream)).unwrap_or(0)
    }
}

/// A stream by its address: it has its name in common with its layers and its alternatives in other codings. A fan keeps its
/// stream, so that no other one comes to lie there meanwhile.
type FanKey = usize;

fn fan_key(stream: &Arc<Stream>) -> FanKey {
    Arc::as_ptr(stream).addr()
}

/// A stream on this thread, from the first offer for it on: its encoder starts while the viewer still shakes hands.
struct Fan {
    stream: Arc<Stream>,
    /// Connected ones.
    peers: Vec<u64>,
    /// Connected or not; the fan ends with the last.
    members: usize,
    /// Pictures since the last keyframe, while that is young. Whoever connects now starts with them at once and costs no
    /// keyframe of its own.
    recent: VecDeque<Arc<AccessUnit>>,
    outlet: Arc<StreamOutlet>,
    subscription: Subscription,
    published: u64,
    fps: f64,
}

impl Fan {
    /// Keeps a picture for those who connect soon.
    fn remember(&mut self, unit: &Arc<AccessUnit>) {
        if unit.keyframe {
            self.recent.clear();
        } else if self.recent.is_empty() {
            return;
        }
        let first = self.recent.front().map_or(unit.captured, |first| first.captured);
        if unit.captured.since(first) > REPLAY_SPAN {
            // Older pictures would cost more to catch up with than a keyframe.
            self.recent.clear();
        } else {
            self.recent.push_back(Arc::clone(unit));
        }
    }
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        mut socket: MediaSocket,
        poll: Poll,
        inbox: Arc<Inbox>,
        shared: Arc<Shared>,
        priority: Priority,
    ) -> io::Result<Self> {
        poll.registry().register(&mut socket.socket, SOCKET, Interest::READABLE)?;
        Ok(Self {
            index,
            poll,
            socket,
            inbox,
            shared,
            peers: HashMap::new(),
            publishers: Publishers::default(),
            by_address: HashMap::new(),
            fans: HashMap::new(),
            timers: BinaryHeap::new(),
            run: SendRun::default(),
            stats_at: Instant::now() + STATS_INTERVAL,
            layers_at: Instant::now() + LAYERS_INTERVAL,
            readable: false,
            stopping: false,
            priority,
        })
    }

    /// Runs until stopped and all peers are gone.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(8);
        let mut pending = Pending::default();
        while !(self.stopping && self.peers.is_empty() && self.publishers.is_empty()) {
            self.priority.follow(&self.shared.priorities);
            let now = Instant::now();
            let mut next = self.timers.peek().map_or(self.stats_at, |Reverse((at, _))| (*at).min(self.stats_at));
            // Some peer's timer is nearly always sooner; only else is it worth looking for one with layers.
            if self.layers_at < next && self.peers.values().any(|slot| slot.layers.len() > 1) {
                next = self.layers_at;
            }
            // What the last turn left in the socket announces itself no second time.
            let patience = if self.readable { Duration::ZERO } else { next.saturating_duration_since(now) };
            if let Err(error) = self.poll.poll(&mut events, Some(patience))
                && error.kind() != io::ErrorKind::Interrupted
            {
                error!(thread = self.index, %error, "media thread cannot wait for its socket; it ends");
                break;
            }
            self.readable |= events.iter().any(|event| event.token() == SOCKET);
            self.inbox.take(&mut pending);
            // First: a frame of sound is one small packet, and late sound is heard.
            for (stream, packet) in pending.audio.drain(..) {
                self.fan_out_audio(&stream, &packet);
            }
            for (stream, unit) in pending.units.drain(..) {
                self.fan_out(&stream, &unit);
            }
            for command in pending.commands.drain(..) {
                self.obey(command);
            }
            for (from, to, bytes) in pending.datagrams.drain(..) {
                self.on_datagram(from, to, &bytes, false);
            }
            if self.readable {
                self.receive();
            }
            self.on_timers();
        }
        debug!(thread = self.index, "media thread ends");
    }

    fn receive(&mut self) {
        // Copied out of the socket's buffer, because serving them needs all of `self`. What comes in is feedback, a small
        // part of what goes out.
        let mut datagrams = Vec::new();
        for _ in 0..MAX_RECEIVES_PER_TURN {
            let received = self.socket.receive(|from, to, bytes| datagrams.push((from, to, bytes.to_vec())));
            match received {
                Ok(0) => {
                    self.readable = false;
                    break;
                }
                Ok(_) => {}
                Err(error) => {
                    // An ICMP error of some peer's address; the next call goes on.
                    debug!(thread = self.index, %error, "receive");
                    break;
                }
            }
            EngineCounters::add(&self.shared.table.counters.datagrams_received, datagrams.len() as u64);
            for (from, to, bytes) in datagrams.drain(..) {
                self.on_datagram(from, to, &bytes, true);
            }
        }
    }

    fn on_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8], may_hand_over: bool) {
        // STUN names its session; everything else must come from an address that passed a check.
        let is_stun = demux::is_stun(bytes);
        let by_ufrag =
            is_stun.then(|| demux::local_ufrag(bytes)).flatten().and_then(|ufrag| self.shared.routes.of_ufrag(ufrag));
        let place = by_ufrag
            .or_else(|| self.by_address.get(&from).map(|key| Place { worker: self.index, key: *key }))
            .or_else(|| self.shared.routes.of_address(from))
            .or_else(|| is_stun.then(|| self.shared.routes.of_check(from)).flatten());
        let Some(place) = place else {
            EngineCounters::add(&self.shared.table.counters.datagrams_unknown, 1);
            return;
        };
        if place.worker != self.index {
            let taken = may_hand_over
                && self.shared.inboxes.get(place.worker).is_some_and(|inbox| inbox.datagram(from, to, bytes));
            let counters = &self.shared.table.counters;
            EngineCounters::add(if taken { &counters.datagrams_handed_over } else { &counters.datagrams_unknown }, 1);
            return;
        }
        if self.publishers.has(place.key) {
            let accepted = self.publish(place.key, |publisher, now| publisher.handle(now, from, to, bytes));
            match accepted {
                Some(Ok(())) if is_stun => {
                    if let Some(registration) = self.publishers.registration(place.key) {
                        if let Some(old) = registration.add_address(from) {
                            self.by_address.remove(&old);
                        }
                        self.by_address.insert(from, place.key);
                    }
                }
                Some(Ok(())) | None => {}
                Some(Err(PeerError::NotMine)) => EngineCounters::add(&self.shared.table.counters.datagrams_unknown, 1),
                Some(Err(error)) => debug!(peer = place.key, %error, "session failed"),
            }
            return;
        }
        let accepted = self.turn(place.key, |peer, now| peer.handle(now, Input::Datagram { from, to, payload: bytes }));
        match accepted {
            Some(Ok(())) if is_stun => {
                // The engine checked the message integrity: from now on this address belongs to the peer.
                if let Some(slot) = self.peers.get_mut(&place.key) {
                    if let Some(old) = slot.viewer.registration.add_address(from) {
                        self.by_address.remove(&old);
                    }
                    self.by_address.insert(from, place.key);
                }
            }
            Some(Ok(())) | None => {}
            Some(Err(PeerError::NotMine)) => EngineCounters::add(&self.shared.table.counters.datagrams_unknown, 1),
            Some(Err(error)) => debug!(peer = place.key, %error, "session failed"),
        }
    }

    fn fan_out(&mut self, stream: &Arc<Stream>, unit: &Arc<AccessUnit>) {
        let Some(fan) = self.fans.get_mut(&fan_key(stream)) else { return };
        fan.remember(unit);
        for key in fan.peers.clone() {
            self.give(key, stream, unit);
        }
    }

    fn give(&mut self, key: u64, stream: &Arc<Stream>, unit: &Arc<AccessUnit>) {
        let Some(slot) = self.peers.get(&key) else { return };
        let layer = slot.layer_of(stream);
        let _ = self.turn(key, |peer, now| peer.handle(now, Input::Layer(unit, layer)));
    }

    fn fan_out_audio(&mut self, stream: &Arc<Stream>, packet: &Arc<AudioPacket>) {
        let Some(fan) = self.fans.get(&fan_key(stream)) else { return };
        for key in fan.peers.clone() {
            // Who is about to change to this layer has the sound from the other one.
            let takes = |slot: &Slot| slot.viewer.peer.tracks().audio && Arc::ptr_eq(slot.sends(), stream);
            if self.peers.get(&key).is_some_and(takes) {
                let _ = self.turn(key, |peer, now| peer.handle(now, Input::Audio(packet)));
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(viewer) => self.add(*viewer),
            Command::AddPublisher(publisher) => {
                let key = publisher.key;
                if self.stopping {
                    publisher.refuse(&self.shared, DisconnectCause::Shutdown);
                } else {
                    self.publishers.add(*publisher);
                    self.shared.priorities.add_publisher();
                    let _ = self.publish(key, |publisher, now| publisher.tick(now));
                }
            }
            Command::Candidate { key, candidate } if self.publishers.has(key) => {
                let _ = self.publish(key, |publisher, _| publisher.add_candidate(&candidate));
            }
            Command::Restart { key, remote, reply } if self.publishers.has(key) => {
                let result = self.publish(key, |publisher, _| {
                    publisher.restart_ice(&remote).map(|()| publisher.local_credentials())
                });
                if let Some(result) = result {
                    if let (Ok(local), Some(registration)) = (&result, self.publishers.registration(key)) {
                        registration.add_ufrag(local.ufrag.clone());
                    }
                    let _ = reply.send(result);
                }
            }
            Command::Answer { key, answer, reply } if self.publishers.has(key) => {
                let result = self.publish(key, |publisher, now| publisher.accept_answer(&answer, now));
                if let Some(result) = result {
                    if result.is_ok() {
                        self.publishers.begin(key, &self.shared);
                    }
                    let _ = reply.send(result);
                }
            }
            Command::Answer { key, answer, reply } => {
                let result = self.turn(key, |peer, now| {
                    peer.accept_answer(&answer, now)?;
                    // The checks begin now, not at the next shared turn.
                    peer.handle(now, Input::Tick)
                });
                if let Some(result) = result {
                    self.begin_mutual(key);
                    let _ = reply.send(result);
                }
            }
            Command::RestartOffer { key, reply } => {
                let result = self.turn(key, |peer, _| peer.restart_offer());
                if let Some(result) = result {
                    // The other side's checks may come before its answer.
                    let ufrag = result.as_ref().ok().and_then(|offer| ufrag_of(offer));
                    if let (Some(ufrag), Some(slot)) = (ufrag, self.peers.get_mut(&key)) {
                        slot.viewer.registration.add_ufrag(ufrag);
                    }
                    let _ = reply.send(result);
                }
            }
            Command::Message { key, label, message, reply } => {
                if let Some(Ok(result)) = self.turn(key, |peer, _| Ok(peer.send_message(&label, message))) {
                    let _ = reply.send(result);
                }
            }
            Command::Messages { key, label, mut messages, reply } => {
                if let Some(Ok(result)) = self.turn(key, |peer, _| Ok(peer.send_messages(label, &mut messages))) {
                    let _ = reply.send(result.map(|buffered| (buffered, messages)));
                }
            }
            Command::OpenChannel { key, init, reply } => {
                if let Some(Ok(result)) = self.turn(key, |peer, _| Ok(peer.open_channel(init))) {
                    let _ = reply.send(result);
                }
            }
            Command::Close { key, cause } if self.publishers.has(key) => {
                let _ = self.publish(key, |publisher, now| {
                    publisher.close(now, cause);
                    Ok(())
                });
            }
            Command::Candidate { key, candidate } => {
                let added = self.turn(key, |peer, _| peer.add_candidate(&candidate));
                if let Some(Err(error)) = added {
                    debug!(peer = key, %error, "candidate refused");
                }
            }
            Command::Restart { key, remote, reply } => {
                let result = self.turn(key, |peer, _| peer.restart_ice(&remote).map(|()| peer.local_credentials()));
                if let Some(result) = result {
                    if let (Ok(local), Some(slot)) = (&result, self.peers.get_mut(&key)) {
                        slot.viewer.registration.add_ufrag(local.ufrag.clone());
                    }
                    let _ = reply.send(result);
                }
            }
            Command::Reoffer { key, offer, reply } => {
                let result =
                    self.turn(key, |peer, _| peer.reoffer(&offer).map(|answer| (answer, peer.local_credentials())));
                if let Some(result) = result {
                    if let (Ok((_, local)), Some(slot)) = (&result, self.peers.get_mut(&key)) {
                        slot.viewer.registration.add_ufrag(local.ufrag.clone());
                    }
                    self.begin_mutual(key);
                    let _ = reply.send(result.map(|(answer, _)| answer));
                }
            }
            Command::ChooseLayer { key, rid, reply } => {
                let known = self.turn(key, |peer, now| Ok(peer.choose_layer(now, rid.as_deref())));
                if let Some(Ok(known)) = known {
                    let _ = reply.send(known);
                }
            }
            Command::Close { key, cause } => {
                let _ = self.turn(key, |peer, now| {
                    peer.close(now, cause);
                    Ok(())
                });
            }
            Command::Stop => {
                self.stopping = true;
                for key in self.peers.keys().copied().collect::<Vec<_>>() {
                    let _ = self.turn(key, |peer, now| {
                        peer.close(now, DisconnectCause::Shutdown);
                        Ok(())
                    });
                }
                for key in self.publishers.keys() {
                    let _ = self.publish(key, |publisher, now| {
                        publisher.close(now, DisconnectCause::Shutdown);
                        Ok(())
                    });
                }
            }
        }
    }

    /// One call on a publisher, then everything that it wants done: datagrams sent, media published.
    fn publish<T>(
        &mut self,
        key: u64,
        call: impl FnOnce(&mut Publisher, Instant) -> Result<T, PeerError>,
    ) -> Option<Result<T, PeerError>> {
        let (result, happened) =
            self.publishers.turn(key, call, &mut self.socket, &mut self.run, &mut self.timers, &self.shared)?;
        for event in happened {
            match event {
                PeerEvent::Connected => self.publishers.on_connected(key, &self.shared),
                PeerEvent::Closed(cause) => {
                    for address in self.publishers.remove(key, cause, &self.shared) {
                        if self.by_address.get(&address) == Some(&key) {
                            self.by_address.remove(&address);
                        }
                    }
                }
                _ => {}
            }
        }
        result
    }

    fn add(&mut self, viewer: Viewer) {
        let key = viewer.key;
        if self.stopping {
            self.shared.table.remove(key, DisconnectCause::Shutdown.as_str());
            viewer.phase.send_replace(Phase::Closed(DisconnectCause::Shutdown));
            viewer.tell(LinkState::Closed(DisconnectCause::Shutdown));
            return;
        }
        let slot = Slot {
            wake_at: viewer.created,
            layers: vec![Arc::clone(&viewer.stream)],
            usage: LayerUse { sends: 0, wants: 0 },
            silent: false,
            side_by_side: None,
            told: Vec::new(),
            viewer,
            send: Histogram::default(),
            capture_to_sent: Histogram::default(),
            connected_at: None,
        };
        self.join_fan(&slot.viewer.stream);
        self.peers.insert(key, slot);
        self.tell_layers(Some(key));
        let _ = self.turn(key, |peer, now| peer.handle(now, Input::Tick));
    }

    fn on_timers(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, key))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            // A peer that was called since then has a later entry.
            if self.publishers.wakes_at(key, at) {
                let _ = self.publish(key, |publisher, now| publisher.tick(now));
            }
            if self.peers.get(&key).is_some_and(|slot| slot.wake_at == at) {
                let _ = self.turn(key, |peer, now| peer.handle(now, Input::Tick));
            }
        }
        if now >= self.layers_at {
            self.layers_at = now + LAYERS_INTERVAL;
            self.tell_layers(None);
        }
        if now >= self.stats_at {
            self.stats_at = now + STATS_INTERVAL;
            self.report();
        }
    }

    /// One call on a peer, then everything that it wants done. A panic ends the peer, not the thread.
    fn turn<T>(
        &mut self,
        key: u64,
        call: impl FnOnce(&mut Peer, Instant) -> Result<T, PeerError>,
    ) -> Option<Result<T, PeerError>> {
        let Self { peers, socket, run, shared, timers, .. } = self;
        let slot = peers.get_mut(&key)?;
        let mut happened = Vec::new();
        let done = catch_unwind(AssertUnwindSafe(|| {
            let now = Instant::now();
            let result = call(&mut slot.viewer.peer, now);
            slot.drain(now, socket, run, &mut happened);
            let Viewer { id, peer, mutual, .. } = &mut slot.viewer;
            if mutual.as_mut().is_some_and(|mutual| mutual.hand_on(now, id, peer, shared)) {
                slot.drain(now, socket, run, &mut happened);
            }
            run.flush(socket);
            let Slot { viewer, send, capture_to_sent, connected_at, .. } = slot;
            let mut handed_over = None;
            viewer.peer.take_sent(|sent| {
                let at = *handed_over.get_or_insert_with(|| shared.clock.at(Instant::now()));
                // What a new viewer was given from before its time says nothing about ours.
                if connected_at.is_some_and(|connected| sent.captured >= connected) {
                    send.record(at.since(sent.encoded));
                    capture_to_sent.record(at.since(sent.captured));
                }
            });
            result
        }));
        let result = match done {
            Ok(result) => {
                timers.push(Reverse((slot.wake_at, key)));
                Some(result)
            }
            Err(_) => {
                EngineCounters::add(&shared.table.counters.peer_panics, 1);
                error!(peer = public_part(&slot.viewer.id), "a bug ended this session; the others go on");
                happened.push(PeerEvent::Closed(DisconnectCause::Failed));
                None
            }
        };
        for event in happened {
            self.on_event(key, &event);
        }
        result
    }

    fn on_event(&mut self, key: u64, event: &PeerEvent) {
        match event {
            PeerEvent::Connected => self.on_connected(key),
            PeerEvent::Silent => self.rest(key, true),
            PeerEvent::Heard => self.rest(key, false),
            PeerEvent::KeyframeWanted => {
                let taken: Vec<FanKey> =
                    self.peers.get(&key).map_or_else(Vec::new, |slot| slot.takes().map(fan_key).collect());
                for fan in taken.iter().filter_map(|fan| self.fans.get(fan)) {
                    fan.subscription.request_keyframe();
                }
            }
            PeerEvent::LayerKeyframeWanted(layer) => {
                let stream = self.peers.get(&key).and_then(|slot| slot.layers.get(*layer));
                if let Some(fan) = stream.and_then(|stream| self.fans.get(&fan_key(stream))) {
                    fan.subscription.request_keyframe();
                }
            }
            PeerEvent::Layer(usage) => self.change_layer(key, |slot| slot.usage = *usage),
            PeerEvent::Simulcast(layers) => self.change_layer(key, |slot| slot.side_by_side = Some(layers.clone())),
            PeerEvent::Estimate(_) => self.pass_on_estimates(key),
            PeerEvent::FellBehind { step, by } => {
                EngineCounters::add(&self.shared.table.counters.guard_steps, 1);
                if let Some(slot) = self.peers.get(&key) {
                    let (stream, peer) = (slot.viewer.stream.name(), slot.viewer.id.clone());
                    info!(target: "events::fell_behind", peer = public_part(&peer), stream, step = step.as_str(), by_ms = by.as_millis() as u64);
                    let kind = EventKind::FellBehind { peer, step: step.as_str(), by: *by };
                    self.shared.events.push(self.shared.clock.at(Instant::now()), stream, kind);
                }
            }
            // Several displays have several phases; the picture can follow one.
            PeerEvent::CaptureLater(by) => {
                if let Some(slot) = self.peers.get(&key)
                    && self.shared.table.viewers_of(slot.viewer.stream.name()) == 1
                {
                    slot.viewer.stream.delay_capture(*by);
                }
            }
            PeerEvent::Closed(cause) => self.remove(key, *cause),
            _ => {}
        }
    }

    fn on_connected(&mut self, key: u64) {
        let Some(slot) = self.peers.get_mut(&key) else { return };
        slot.connected_at = Some(self.shared.clock.at(Instant::now()));
        slot.viewer.phase.send_replace(Phase::Connected);
        slot.viewer.tell(LinkState::Connected);
        let streams: Vec<Arc<Stream>> = slot.takes().cloned().collect();
        let stream = Arc::clone(slot.sends());
        let (id, took) = (slot.viewer.id.clone(), slot.viewer.created.elapsed());
        self.shared.table.update(key, |info| info.connected = true);
        EngineCounters::add(&self.shared.table.counters.peers_connected, 1);
        info!(target: "events::peer_connected", peer = public_part(&id), stream = stream.name(), took_ms = took.as_millis() as u64);
        let at = self.shared.clock.at(Instant::now());
        self.shared.events.push(at, stream.name(), EventKind::PeerConnected { peer: id, took });
        for stream in streams {
            let Some(fan) = self.fans.get_mut(&fan_key(&stream)) else { continue };
            fan.peers.push(key);
            if fan.recent.is_empty() {
                fan.subscription.request_keyframe();
                continue;
            }
            for unit in fan.recent.clone() {
                self.give(key, &stream, &unit);
            }
        }
    }

    /// Tells peers how the layers of their streams are, one of them or all; who was on a layer that is no more changes over.
    fn tell_layers(&mut self, one: Option<u64>) {
        let keys: Vec<u64> = one.map_or_else(|| self.peers.keys().copied().collect(), |key| vec![key]);
        let media_now = self.shared.clock.at(Instant::now());
        let mut ladders: HashMap<FanKey, Ladder> = HashMap::new();
        for key in keys {
            let Some(slot) = self.peers.get(&key) else { continue };
            let ladder = ladders
                .entry(fan_key(&slot.viewer.stream))
                .or_insert_with(|| layers::of(&slot.viewer.stream, media_now));
            if ladder.streams.len() == 1 && slot.layers.len() == 1 {
                continue;
            }
            let Ladder { streams, states } = ladder;
            let same = slot.layers.len() == streams.len()
                && slot.layers.iter().zip(streams.iter()).all(|(a, b)| Arc::ptr_eq(a, b));
            if same && slot.told == *states {
                continue;
            }
            let sends = streams.iter().position(|stream| Arc::ptr_eq(stream, slot.sends())).unwrap_or(0);
            let before: Vec<Arc<Stream>> = slot.takes().cloned().collect();
            let Some(slot) = self.peers.get_mut(&key) else { continue };
            slot.told.clone_from(states);
            if !same {
                slot.layers.clone_from(streams);
                slot.usage = LayerUse { sends, wants: sends };
                self.change_fans(key, &before);
            }
            let states = states.clone();
            let _ = self.turn(key, |peer, now| {
                peer.set_layers(now, states, sends);
                Ok(())
            });
        }
    }

    /// A viewer fell silent, so that nobody needs to encode for it; or it is heard again.
    fn rest(&mut self, key: u64, silent: bool) {
        self.change_layer(key, |slot| slot.silent = silent);
        if let Some(slot) = self.peers.get(&key) {
            slot.viewer.tell(if silent { LinkState::Silent } else { LinkState::Heard });
        }
        self.shared.table.update(key, |info| info.silent = silent);
    }

    fn change_layer(&mut self, key: u64, change: impl FnOnce(&mut Slot)) {
        let Some(slot) = self.peers.get_mut(&key) else { return };
        let before: Vec<Arc<Stream>> = slot.takes().cloned().collect();
        change(slot);
        let Slot { viewer, usage, silent, side_by_side, .. } = slot;
        debug!(
            peer = public_part(&viewer.id),
            sends = usage.sends,
            wants = usage.wants,
            ?side_by_side,
            silent,
            "layer"
        );
        self.change_fans(key, &before);
        self.pass_on_estimates(key);
    }

    /// Takes a peer out of the fans that it does not take pictures of any more, and puts it into those that it does now.
    fn change_fans(&mut self, key: u64, before: &[Arc<Stream>]) {
        let Some(slot) = self.peers.get(&key) else { return };
        let connected = slot.connected_at.is_some();
        let now: Vec<Arc<Stream>> = slot.takes().cloned().collect();
        let only_in = |these: &[Arc<Stream>], those: &[Arc<Stream>]| -> Vec<Arc<Stream>> {
            these.iter().filter(|stream| !those.iter().any(|other| Arc::ptr_eq(stream, other))).cloned().collect()
        };
        for stream in only_in(&now, before) {
            self.join_fan(&stream);
            if let Some(fan) = self.fans.get_mut(&fan_key(&stream))
                && connected
            {
                fan.peers.push(key);
                fan.subscription.request_keyframe();
            }
        }
        for stream in only_in(before, &now) {
            self.leave_fan(key, &stream);
        }
    }

    fn leave_fan(&mut self, key: u64, stream: &Arc<Stream>) {
        let Some(fan) = self.fans.get_mut(&fan_key(stream)) else { return };
        fan.peers.retain(|k| *k != key);
        fan.members -= 1;
        if fan.members == 0 {
            self.fans.remove(&fan_key(stream));
        }
    }

    /// Counts one more member of a stream's fan, which begins with the first.
    fn join_fan(&mut self, stream: &Arc<Stream>) {
        if let Some(fan) = self.fans.get_mut(&fan_key(stream)) {
            fan.members += 1;
            return;
        }
        let outlet = Arc::new(StreamOutlet {
            stream: Arc::downgrade(stream),
            inbox: Arc::clone(&self.inbox),
            counters: Arc::clone(&self.shared.table),
            broken: Mutex::new(false),
        });
        let fan = Fan {
            subscription: stream.subscribe(outlet.clone()),
            published: stream.stats().published,
            stream: Arc::clone(stream),
            peers: Vec::new(),
            members: 1,
            recent: VecDeque::new(),
            outlet,
            fps: 0.0,
        };
        self.fans.insert(fan_key(stream), fan);
    }

    /// Streams hear of their best viewer on this thread; they take the best of all threads themselves.
    fn pass_on_estimates(&mut self, key: u64) {
        let Some(slot) = self.peers.get(&key) else { return };
        for stream in slot.takes() {
            if let Some(fan) = self.fans.get(&fan_key(stream)) {
                fan.subscription.set_bitrate(best_estimate(fan, &self.peers));
            }
        }
    }

    fn remove(&mut self, key: u64, cause: DisconnectCause) {
        let Some(slot) = self.peers.remove(&key) else { return };
        let taken: Vec<Arc<Stream>> = slot.takes().cloned().collect();
        let Slot { viewer, connected_at, .. } = slot;
        let connected = connected_at.is_some();
        for address in viewer.registration.addresses() {
            if self.by_address.get(address) == Some(&key) {
                self.by_address.remove(address);
            }
        }
        let name = viewer.stream.name();
        for stream in taken {
            self.leave_fan(key, &stream);
        }
        self.shared.table.remove(key, cause.as_str());
        let at = self.shared.clock.at(Instant::now());
        info!(target: "events::peer_disconnected", peer = public_part(&viewer.id), stream = name, cause = cause.as_str(), connected);
        self.shared.events.push(
            at,
            name,
            EventKind::PeerDisconnected { peer: viewer.id.clone(), cause: cause.as_str() },
        );
        if let Some(mutual) = &viewer.mutual {
            mutual.arrivals.fail(&format!("the connection ended: {}", cause.sentence()));
        }
        viewer.tell(LinkState::Closed(cause));
        viewer.phase.send_replace(Phase::Closed(cause));
    }

    /// What both sides agreed on, for the first time or again.
    fn begin_mutual(&self, key: u64) {
        let Some(slot) = self.peers.get(&key) else { return };
        if let Some(mutual) = &slot.viewer.mutual {
            mutual.begin(&slot.viewer.peer);
        }
    }

    /// Once a second: figures for the API and for each player.
    fn report(&mut self) {
        let counters = std::mem::take(&mut self.run.counters);
        let shared = &self.shared.table.counters;
        EngineCounters::add(&shared.send_calls, counters.calls);
        EngineCounters::add(&shared.datagrams_sent, counters.datagrams);
        EngineCounters::add(&shared.datagrams_refused, counters.refused);
        if counters.refused > 0 {
            warn!(thread = self.index, refused = counters.refused, "the kernel refused datagrams in the last second");
        }
        let mut of_stream: HashMap<FanKey, (StagePercentiles, Option<u64>, usize, f64)> = HashMap::new();
        for (fan_key, fan) in &mut self.fans {
            let stats = fan.stream.stats();
            fan.fps = (stats.published - fan.published.min(stats.published)) as f64 / STATS_INTERVAL.as_secs_f64();
            fan.published = stats.published;
            let stages = StagePercentiles {
                capture: Percentiles::from(&stats.capture),
                queue: Percentiles::from(&stats.queue),
                encode: Percentiles::from(&stats.encode),
                send: Percentiles::default(),
            };
            let viewers = self.shared.table.viewers_of(fan.stream.name());
            of_stream.insert(*fan_key, (stages, stats.target_bitrate_bps, viewers, fan.fps));
            let loss = fan.peers.iter().filter_map(|key| self.peers.get(key)?.viewer.peer.counters().audio_loss);
            fan.subscription.set_viewers(fan.peers.len());
            fan.subscription.set_audio_loss(loss.fold(0.0, f32::max));
            // The best one may have left.
            fan.subscription.set_bitrate(best_estimate(fan, &self.peers));
            if *fan.outlet.broken.lock().unwrap_or_else(PoisonError::into_inner) {
                fan.subscription.request_keyframe();
            }
        }
        self.publishers.report(&self.shared);
        // A pipe that was expected to be raw brought encoded pictures: there are none in this coding after all.
        let withdrawn = self.peers.iter().filter(|(_, slot)| slot.viewer.stream.is_withdrawn());
        for key in withdrawn.map(|(key, _)| *key).collect::<Vec<_>>() {
            let _ = self.turn(key, |peer, now| {
                peer.close(now, DisconnectCause::StreamEnded);
                Ok(())
            });
        }
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(slot) = self.peers.get_mut(&key) else { continue };
            let received = slot.viewer.peer.received();
            let gave = slot.viewer.mutual.as_mut().map(|mutual| {
                mutual.arrivals.look(Instant::now());
                mutual.arrivals.gave()
            });
            let fed = slot.viewer.mutual.as_ref().map(|mutual| &mutual.arrivals.stream);
            let (feeds, playout) = (fed.map(|fed| fed.name().to_owned()), fed.and_then(|fed| fed.stats().playout));
            let counters: Counters = slot.viewer.peer.counters();
            let layer = slot.sends().layer().map(|layer| layer.rid);
            let sent_layers = slot.viewer.peer.sent_layers();
            let chosen_layer = slot.viewer.peer.chosen_layer().map(str::to_owned);
            self.shared.table.update(key, |info| {
                info.counters = counters;
                info.received = received;
                info.gave = gave.unwrap_or(info.gave);
                (info.feeds, info.playout) = (feeds, playout);
                info.sent_layers = sent_layers;
                info.layer.clone_from(&layer);
                info.chosen_layer.clone_from(&chosen_layer);
                info.send = slot.send.clone();
                info.capture_to_sent = slot.capture_to_sent.clone();
            });
            let Some((stages, target_bps, viewers, fps)) = of_stream.get(&fan_key(slot.sends())) else {
                continue;
            };
            let unix_ms = |at| self.shared.clock.unix_micros(at) as f64 / 1000.0;
            let audio = slot.viewer.peer.last_audio_capture().map(|(rtp, captured)| (rtp, unix_ms(captured)));
            let Some((rtp, captured)) = slot.viewer.peer.last_capture() else { continue };
            let stats = ViewerStats {
                rtp,
                capture_ms: unix_ms(captured),
                audio,
                clock_rate: lightpipe_media::time::VIDEO_CLOCK_RATE_HZ,
                stages_ms: StagePercentiles { send: Percentiles::from(&slot.send), ..*stages },
                target_bps: *target_bps,
                estimate_bps: counters.estimate_bps,
                rtt_ms: counters.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                viewers: *viewers,
                fps: *fps,
                layers: layers::told(&slot.layers),
                layer,
                chosen_layer,
            };
            let _ = self.turn(key, |peer, _| {
                peer.send_stats(&stats);
                Ok(())
            });
        }
    }
}

/// The ICE credential by which checks name their session.
fn ufrag_of(sdp: &str) -> Option<String> {
    sdp.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).map(|ufrag| ufrag.trim().to_owned())
}

/// What the network of a fan's best viewer carries.
fn best_estimate(fan: &Fan, peers: &HashMap<u64, Slot>) -> Option<u64> {
    let estimate = |slot: &Slot| slot.viewer.peer.layer_estimate_bps(slot.layer_of(&fan.stream));
    fan.peers.iter().filter_map(|key| estimate(peers.get(key)?)).max()
}
