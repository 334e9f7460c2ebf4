//! Publishers of one media thread: what they send goes to their streams, what the streams want goes back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use lightpipe_media::stream::Health;
use lightpipe_media::{EventKind, Stream};
use lightpipe_rtc::{DisconnectCause, Offered, PeerError, PeerEvent, Published, Publisher, ReceivedLayer};
use tokio::sync::watch;
use tracing::{error, info};

use super::engine::Phase;
use super::incoming::Incoming;
use super::routes::Registration;
use super::socket::{MediaSocket, SendRun};
use super::table::{EngineCounters, IncomingLayer, public_part};
use super::worker::Shared;

/// A publisher on its way to its thread.
pub(crate) struct NewPublisher {
    pub(crate) key: u64,
    pub(crate) id: String,
    pub(crate) publisher: Publisher,
    pub(crate) stream: Arc<Stream>,
    pub(crate) created: Instant,
    pub(crate) registration: Registration,
    /// Told how far the session is.
    pub(crate) phase: watch::Sender<Phase>,
}

impl NewPublisher {
    /// Ends it before it began.
    pub(crate) fn refuse(self, shared: &Shared, cause: DisconnectCause) {
        shared.table.remove(self.key, cause.as_str());
        self.phase.send_replace(Phase::Closed(cause));
    }
}

struct Slot {
    new: NewPublisher,
    arrivals: Arrivals,
    wake_at: Instant,
    connected: bool,
}

/// What comes from the other side of a session, on its way to a stream.
pub(super) struct Arrivals {
    pub(super) stream: Arc<Stream>,
    incoming: Incoming,
    /// A picture or sound came.
    live: bool,
    /// When one came last.
    gave: Instant,
}

impl Arrivals {
    /// Into a stream that may have had another source before; in these layers, if there are several.
    pub(super) fn new(stream: Arc<Stream>, layers: &[String], created: Instant) -> Self {
        Self { incoming: Incoming::new(&stream, layers, created), stream, live: false, gave: created }
    }

    /// One picture, or one frame of sound.
    pub(super) fn publish(&mut self, now: Instant, published: Published, shared: &Shared) {
        self.gave = now;
        if let Published::Picture { unit, .. } = &published
            && unit.codec != self.stream.codec()
        {
            // The sender may choose among what was agreed.
            self.stream.set_tracks(Some(unit.codec), self.stream.has_audio());
        }
        if !std::mem::replace(&mut self.live, true) {
            self.stream.set_health(Health::Live);
            let at = shared.clock.at(now);
            shared.events.push(at, self.stream.name(), EventKind::FirstFrameIngested);
            let codec = self.stream.has_video().then(|| self.stream.codec());
            shared.events.push(at, self.stream.name(), EventKind::TrackActive { codec, rid: None });
        }
        match published {
            Published::Picture { layer, unit } => self.incoming.publish(now, layer, &unit),
            Published::Sound(packet) => self.stream.publish_audio(&packet, None),
        }
    }

    /// The layers of which a keyframe is wanted now.
    pub(super) fn wanted_keyframes(&mut self, now: Instant, shared: &Shared) -> Vec<usize> {
        self.incoming.wanted_keyframes(now, shared.clock.at(now))
    }

    /// Once a second; answers which layers come.
    pub(super) fn look(&mut self, now: Instant) -> Vec<bool> {
        self.incoming.look(now);
        self.incoming.coming(now)
    }

    /// When something came last.
    pub(super) const fn gave(&self) -> Instant {
        self.gave
    }

    /// Nothing more comes.
    pub(super) fn fail(&self, reason: &str) {
        self.incoming.fail(reason);
    }
}

/// The publishers of one thread, by key.
#[derive(Default)]
pub(crate) struct Publishers {
    slots: HashMap<u64, Slot>,
}

/// What a turn gave: the call's result if it did not panic, and what happened.
type Turn<T> = (Option<Result<T, PeerError>>, Vec<PeerEvent>);

impl Publishers {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn has(&self, key: u64) -> bool {
        self.slots.contains_key(&key)
    }

    pub(crate) fn keys(&self) -> Vec<u64> {
        self.slots.keys().copied().collect()
    }

    pub(crate) fn wakes_at(&self, key: u64, at: Instant) -> bool {
        self.slots.get(&key).is_some_and(|slot| slot.wake_at == at)
    }

    pub(crate) fn registration(&mut self, key: u64) -> Option<&mut Registration> {
        self.slots.get_mut(&key).map(|slot| &mut slot.new.registration)
    }

    /// What an answer brought: its stream learns what will come.
    pub(crate) fn begin(&self, key: u64, shared: &Shared) {
        if let Some(slot) = self.slots.get(&key) {
            let Offered { video, audio, .. } = *slot.new.publisher.offered();
            slot.new.stream.set_tracks(video, audio);
            shared.table.update(key, |info| info.codec = video);
        }
    }

    pub(crate) fn add(&mut self, new: NewPublisher) {
        let arrivals = Arrivals::new(Arc::clone(&new.stream), &new.publisher.offered().layers, new.created);
        let slot = Slot { wake_at: new.created, new, arrivals, connected: false };
        self.slots.insert(slot.new.key, slot);
    }

    /// One call on a publisher, then everything that it wants done. A panic ends the publisher, not the thread.
    pub(crate) fn turn<T>(
        &mut self,
        key: u64,
        call: impl FnOnce(&mut Publisher, Instant) -> Result<T, PeerError>,
        socket: &mut MediaSocket,
        run: &mut SendRun,
        timers: &mut BinaryHeap<Reverse<(Instant, u64)>>,
        shared: &Shared,
    ) -> Option<Turn<T>> {
        let slot = self.slots.get_mut(&key)?;
        let mut happened = Vec::new();
        let done = catch_unwind(AssertUnwindSafe(|| {
            let now = Instant::now();
            let result = call(&mut slot.new.publisher, now);
            slot.drain(now, socket, run, &mut happened);
            slot.publish(now, shared);
            let wanted = if slot.connected { slot.arrivals.wanted_keyframes(now, shared) } else { vec![] };
            for layer in &wanted {
                slot.new.publisher.request_keyframe(*layer, now);
            }
            if !wanted.is_empty() {
                slot.drain(now, socket, run, &mut happened);
            }
            run.flush(socket);
            result
        }));
        let result = match done {
            Ok(result) => {
                timers.push(Reverse((slot.wake_at, key)));
                Some(result)
            }
            Err(_) => {
                EngineCounters::add(&shared.table.counters.peer_panics, 1);
                error!(peer = public_part(&slot.new.id), "a bug ended this publisher; the others go on");
                happened.push(PeerEvent::Closed(DisconnectCause::Failed));
                None
            }
        };
        Some((result, happened))
    }

    pub(crate) fn on_connected(&mut self, key: u64, shared: &Shared) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        slot.connected = true;
        slot.new.phase.send_replace(Phase::Connected);
        let (id, stream) = (slot.new.id.clone(), slot.new.stream.name());
        let took = slot.new.created.elapsed();
        shared.table.update(key, |info| info.connected = true);
        EngineCounters::add(&shared.table.counters.peers_connected, 1);
        info!(target: "events::publisher_connected", peer = public_part(&id), stream, took_ms = took.as_millis() as u64);
        shared.events.push(shared.clock.at(Instant::now()), stream, EventKind::PublisherConnected { peer: id, took });
    }

    /// Takes a publisher off; answers its addresses.
    pub(crate) fn remove(&mut self, key: u64, cause: DisconnectCause, shared: &Shared) -> Vec<SocketAddr> {
        let Some(Slot { new, arrivals, .. }) = self.slots.remove(&key) else { return Vec::new() };
        let stream = new.stream.name();
        info!(target: "events::publisher_disconnected", peer = public_part(&new.id), stream, cause = cause.as_str());
        if new.publisher.is_client() {
            arrivals.fail(cause.sentence_of_server());
        } else {
            arrivals.fail(&format!("the publisher left: {}", cause.sentence()));
        }
        shared.events.push(
            shared.clock.at(Instant::now()),
            stream,
            EventKind::PublisherDisconnected { peer: new.id.clone(), cause: cause.as_str() },
        );
        shared.table.remove(key, cause.as_str());
        let addresses = new.registration.addresses().to_vec();
        new.phase.send_replace(Phase::Closed(cause));
        addresses
    }

    /// Once a second: layers that end or have become others, and figures for the API.
    pub(crate) fn report(&mut self, shared: &Shared) {
        let now = Instant::now();
        for (key, slot) in &mut self.slots {
            let coming = slot.arrivals.look(now);
            let publisher = &slot.new.publisher;
            let layers = publisher.received().into_iter().zip(coming);
            let layer = |(ReceivedLayer { rid, size, counters }, coming)| {
                Some(IncomingLayer { rid: rid?, size, coming, received: counters })
            };
            let layers: Vec<IncomingLayer> = layers.filter_map(layer).collect();
            let counters = publisher.counters();
            shared.table.update(*key, |info| {
                (info.received, info.gave, info.incoming_layers) = (Some(counters), slot.arrivals.gave(), layers);
            });
        }
    }
}

impl Slot {
    fn drain(&mut self, now: Instant, socket: &mut MediaSocket, run: &mut SendRun, happened: &mut Vec<PeerEvent>) {
        let NewPublisher { publisher, registration, .. } = &mut self.new;
        self.wake_at = run.drain(now, socket, registration, happened, |now| publisher.poll(now));
    }

    fn publish(&mut self, now: Instant, shared: &Shared) {
        while let Some(published) = self.new.publisher.take() {
            self.arrivals.publish(now, published, shared);
        }
    }
}
