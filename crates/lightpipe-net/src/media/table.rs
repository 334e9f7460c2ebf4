//! What is known of all peers and counters of the engine: written by the media threads, read by the API.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lightpipe_media::playout::PlayoutFigures;
use lightpipe_media::{Histogram, Size, VideoCodec};
use lightpipe_rtc::receiver::ReceiverCounters;
use lightpipe_rtc::{Counters, SentLayer};

/// How a peer signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WHEP over HTTP.
    Whep,
    /// WHIP over HTTP: it publishes, all others watch.
    Whip,
    /// We are the WHIP client: it is somebody else's server.
    WhipClient,
    /// We are the WHEP client.
    WhepClient,
    /// WebSocket, plain dialect.
    WsPlain,
    /// WebSocket, room dialect.
    WsRoom,
    /// A peer of a room, with which we are in a mesh: it watches and publishes.
    Mesh,
}

impl Transport {
    /// Name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whep => "whep",
            Self::Whip => "whip",
            Self::WhipClient => "whip-client",
            Self::WhepClient => "whep-client",
            Self::WsPlain => "ws-plain",
            Self::WsRoom => "ws-room",
            Self::Mesh => "mesh",
        }
    }
}

/// The part of a session's id that lists and logs may show: the whole id is the right to end the session.
pub(crate) fn public_part(id: &str) -> &str {
    id.get(..10).unwrap_or(id)
}

/// One simulcast layer of a publisher.
#[derive(Debug, Clone)]
pub struct IncomingLayer {
    /// Its RID.
    pub rid: String,
    /// Size of its last keyframe.
    pub size: Option<Size>,
    /// It is sent at present.
    pub coming: bool,
    /// What came of it.
    pub received: ReceiverCounters,
}

/// One peer, as of the last second.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Public id.
    pub id: String,
    /// Stream that it watches or publishes.
    pub stream: String,
    /// Coding of the pictures that it gets or sends; `None` where there is only sound.
    pub codec: Option<VideoCodec>,
    /// Name of the layer that it gets; `None` without a ladder.
    pub layer: Option<String>,
    /// Name of the layer that it chose itself; `None`: what its network carries.
    pub chosen_layer: Option<String>,
    /// How it signalled.
    pub transport: Transport,
    /// When its offer came.
    pub created: Instant,
    /// ICE and DTLS are done.
    pub connected: bool,
    /// It is connected, and nothing came from it for so long that it is given nothing.
    pub silent: bool,
    /// What was sent to it.
    pub counters: Counters,
    /// What it sent to us, if it publishes.
    pub received: Option<ReceiverCounters>,
    /// Stream that it feeds beside, if it is an equal.
    pub feeds: Option<String>,
    /// How that is played here.
    pub playout: Option<Arc<PlayoutFigures>>,
    /// What we send to it side by side, if it takes simulcast of us; the best first.
    pub sent_layers: Vec<SentLayer>,
    /// Its simulcast layers, if it publishes with any; the one that it prefers first.
    pub incoming_layers: Vec<IncomingLayer>,
    /// When it last gave a picture or sound, if it publishes; its offer until then.
    pub gave: Instant,
    /// Encoded to the last packet handed to the kernel.
    pub send: Histogram,
    /// Captured to the last packet handed to the kernel.
    pub capture_to_sent: Histogram,
}

impl PeerInfo {
    /// It gets a stream of ours.
    fn watches(&self) -> bool {
        self.received.is_none() || self.transport == Transport::Mesh
    }

    /// How far its session is, in the words of the API and of metrics.
    pub fn state(&self) -> &'static str {
        match (self.connected, self.silent) {
            (false, _) => "connecting",
            (true, false) => "connected",
            (true, true) => "silent",
        }
    }
}

/// Counts of the whole engine since the start.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct EngineCounters {
    /// Calls that sent datagrams; divide `datagrams_sent` by this for the length of runs.
    pub send_calls: AtomicU64,
    /// Datagrams given to the kernel.
    pub datagrams_sent: AtomicU64,
    /// Datagrams that the kernel refused.
    pub datagrams_refused: AtomicU64,
    /// Datagrams received.
    pub datagrams_received: AtomicU64,
    /// Received datagrams that belonged to nobody.
    pub datagrams_unknown: AtomicU64,
    /// Steps taken against pictures that viewers show ever later.
    pub guard_steps: AtomicU64,
    /// Datagrams handed to another media thread.
    pub datagrams_handed_over: AtomicU64,
    /// Peers that connected.
    pub peers_connected: AtomicU64,
    /// Peers that ended, connected or not.
    pub peers_ended: AtomicU64,
    /// Sessions ended by a bug of ours that was contained.
    pub peer_panics: AtomicU64,
    /// Pictures that found the inbox of a media thread full.
    pub inbox_dropped: AtomicU64,
}

impl EngineCounters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        if n > 0 {
            counter.fetch_add(n, Relaxed);
        }
    }
}

/// All peers by key.
#[derive(Debug, Default)]
pub(crate) struct PeerTable {
    peers: Mutex<HashMap<u64, PeerInfo>>,
    pub(crate) counters: EngineCounters,
    /// Disconnects by cause.
    causes: Mutex<HashMap<&'static str, u64>>,
}

impl PeerTable {
    pub(crate) fn insert(&self, key: u64, info: PeerInfo) {
        self.lock().insert(key, info);
    }

    pub(crate) fn update(&self, key: u64, change: impl FnOnce(&mut PeerInfo)) {
        if let Some(info) = self.lock().get_mut(&key) {
            change(info);
        }
    }

    pub(crate) fn remove(&self, key: u64, cause: &'static str) {
        self.lock().remove(&key);
        *self.causes.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_default() += 1;
        EngineCounters::add(&self.counters.peers_ended, 1);
    }

    pub(crate) fn get(&self, key: u64) -> Option<PeerInfo> {
        self.lock().get(&key).cloned()
    }

    pub(crate) fn all(&self) -> Vec<PeerInfo> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|p| p.created);
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn viewers_of(&self, stream: &str) -> usize {
        self.lock().values().filter(|p| p.connected && p.watches() && p.stream == stream).count()
    }

    /// Viewers of a stream, connected or not.
    pub(crate) fn viewer_keys(&self, stream: &str) -> Vec<u64> {
        let is_viewer = |info: &PeerInfo| info.watches() && info.stream == stream;
        self.lock().iter().filter(|(_, info)| is_viewer(info)).map(|(key, _)| *key).collect()
    }

    pub(crate) fn pending(&self) -> usize {
        self.lock().values().filter(|p| !p.connected).count()
    }

    pub(crate) fn causes(&self) -> Vec<(&'static str, u64)> {
        let mut all: Vec<_> =
            self.causes.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(k, v)| (*k, *v)).collect();
        all.sort_unstable();
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, PeerInfo>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
