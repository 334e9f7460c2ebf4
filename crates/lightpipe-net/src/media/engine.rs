//! Starts the media threads and hands peers to them.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::stream::SimulcastLayer;
use lightpipe_media::{EventLog, Histogram, MediaClock, Stream, VideoCodec};
use lightpipe_rtc::receiver::ReceiverCounters;
use lightpipe_rtc::{
    Candidate, ChannelInit, Counters, Credentials, DisconnectCause, Identity, Message, OfferError, Offered, Peer,
    PeerConfig, PeerError, Publisher, Tracks,
};
use mio::{Poll, Waker};
use tokio::sync::{oneshot, watch};

use super::inbox::{Command, Inbox};
use super::mutual::{LinkOutlet, Mutual};
use super::priority::{Priorities, Priority, Realtime};
use super::publishers::NewPublisher;
use super::routes::{Place, Registration};
use super::socket::MediaSocket;
use super::table::{EngineCounters, PeerInfo, Transport};
use super::worker::{Shared, Viewer, WAKER, Worker};

/// Sessions that may wait for their first connectivity check at a time.
const MAX_PENDING: usize = 256;

/// How long a stop waits for goodbyes.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How the engine works.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Address and port of the UDP sockets.
    pub address: SocketAddr,
    /// Addresses to tell peers instead of those found on the interfaces, e.g. the public one behind a 1:1 NAT.
    pub advertise: Vec<IpAddr>,
    /// Media threads; 0: one per core, at most 8.
    pub threads: usize,
    /// When the media threads go before other threads.
    pub realtime: Realtime,
    /// Estimate each viewer's bandwidth.
    pub estimate_bandwidth: bool,
    /// What a stream wants to send at best, bits per second.
    pub desired_bitrate_bps: u64,
    /// Largest playout delay that a receiver may choose.
    pub playout_delay_max: Duration,
    /// The media clock.
    pub clock: MediaClock,
    /// Lifecycle events.
    pub events: EventLog,
}

/// Why a viewer was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewerError {
    /// Its offer was refused.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Too many sessions wait for their first connectivity check.
    #[error("{MAX_PENDING} sessions wait for their connection already; try again")]
    Busy,
    /// No such session (any more).
    #[error("there is no such session")]
    Gone,
}

/// A session that was made.
#[derive(Debug)]
pub struct NewSession {
    /// Public id, unguessable.
    pub id: String,
    /// Number for further calls.
    pub key: u64,
    /// Our answer, or our offer; all our candidates inside.
    pub sdp: String,
    /// How far the session is.
    pub phase: Phases,
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// ICE and DTLS are under way.
    Connecting,
    /// Media may flow.
    Connected,
    /// The end.
    Closed(DisconnectCause),
}

/// Follows one session.
#[derive(Debug)]
pub struct Phases(watch::Receiver<Phase>);

impl Phases {
    /// A session's beginning, and who follows it.
    pub(crate) fn new() -> (watch::Sender<Phase>, Self) {
        let (sender, receiver) = watch::channel(Phase::Connecting);
        (sender, Self(receiver))
    }

    /// Resolves when media may flow, or with the cause of the end.
    pub async fn connected(&mut self) -> Result<(), DisconnectCause> {
        let past = self.0.wait_for(|phase| *phase != Phase::Connecting).await;
        match past.map(|phase| *phase) {
            Ok(Phase::Closed(cause)) => Err(cause),
            Ok(_) => Ok(()),
            Err(_) => Err(DisconnectCause::Shutdown),
        }
    }

    /// Resolves with the cause when the session ends.
    pub async fn closed(&mut self) -> DisconnectCause {
        let past = self.0.wait_for(|phase| matches!(phase, Phase::Closed(_))).await;
        match past.map(|phase| *phase) {
            Ok(Phase::Closed(cause)) => cause,
            // The thread that had it is gone.
            _ => DisconnectCause::Shutdown,
        }
    }
}

/// Answers with a stream in its codec, or in that of an alternative where the offer has only that. The refusal names all of them.
fn in_some_coding(
    stream: &Arc<Stream>,
    mut answer: impl FnMut(Tracks) -> Result<(Peer, String), PeerError>,
) -> Result<(Peer, String, Arc<Stream>), PeerError> {
    let audio = stream.has_audio();
    let mut refused = match answer(Tracks { video: stream.has_video().then(|| stream.codec()), audio }) {
        Ok((peer, sdp)) => return Ok((peer, sdp, Arc::clone(stream))),
        Err(refused) => refused,
    };
    for alternative in stream.alternatives() {
        let PeerError::Offer(OfferError::NoCommonCodec { ours, .. }) = &mut refused else { break };
        match answer(Tracks { video: Some(alternative.codec()), audio }) {
            Ok((peer, sdp)) => return Ok((peer, sdp, alternative)),
            Err(PeerError::Offer(OfferError::NoCommonCodec { ours: also, .. })) => *ours = format!("{ours} or {also}"),
            Err(other) => return Err(other),
        }
    }
    Err(refused)
}

/// The media threads of a process. Dropping it ends all sessions.
pub struct MediaEngine {
    config: EngineConfig,
    identity: Identity,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    next_key: AtomicU64,
}

impl std::fmt::Debug for MediaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MediaEngine").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl MediaEngine {
    /// Binds the sockets and starts the threads. Port 0 takes a free one, see [`Self::port`].
    pub fn start(config: EngineConfig) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Several sockets on one port share its datagrams on Linux only; elsewhere one thread has the port.
        let threads =
            if cfg!(target_os = "linux") { if config.threads == 0 { cores.min(8) } else { config.threads } } else { 1 };
        let first = MediaSocket::bind(config.address, threads > 1)?;
        let bound = SocketAddr::new(config.address.ip(), first.port());
        let mut sockets = vec![first];
        for _ in 1..threads {
            sockets.push(MediaSocket::bind(bound, true)?);
        }
        let polls: Vec<Poll> = (0..threads).map(|_| Poll::new()).collect::<io::Result<_>>()?;
        let inboxes: Vec<Arc<Inbox>> = polls
            .iter()
            .map(|poll| Waker::new(poll.registry(), WAKER).map(|waker| Arc::new(Inbox::new(waker))))
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            routes: Arc::default(),
            table: Arc::default(),
            events: config.events.clone(),
            clock: config.clock,
            inboxes: inboxes.clone(),
            priorities: Priorities::default(),
        });
        let mut handles = Vec::new();
        for (index, ((socket, poll), inbox)) in sockets.into_iter().zip(polls).zip(inboxes).enumerate() {
            let worker = Worker::new(index, socket, poll, inbox, Arc::clone(&shared), Priority::new(config.realtime))?;
            handles.push(std::thread::Builder::new().name(format!("media-{index}")).spawn(move || worker.run())?);
        }
        let addresses = reachable_addresses(bound, &config.advertise);
        Ok(Self {
            config,
            identity: Identity::generate(),
            addresses,
            shared,
            threads: Mutex::new(handles),
            next_key: AtomicU64::new(1),
        })
    }

    /// Media threads, and how many of them have real-time priority.
    pub fn threads(&self) -> (usize, usize) {
        (self.shared.inboxes.len(), self.shared.priorities.realtime())
    }

    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.addresses.first().map_or_else(|| self.config.address.port(), SocketAddr::port)
    }

    /// Our host candidates.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers an offer for `stream`: in its codec, or in that of an alternative where the offer has only that.
    /// Costs some milliseconds of the caller's thread, none of a media thread.
    pub fn add_viewer(
        &self,
        stream: &Arc<Stream>,
        offer: &str,
        transport: Transport,
    ) -> Result<NewSession, ViewerError> {
        if self.shared.table.pending() >= MAX_PENDING {
            return Err(ViewerError::Busy);
        }
        let created = Instant::now();
        let (peer, answer, stream) =
            in_some_coding(stream, |tracks| Peer::answer(self.peer_config(), offer, tracks, created))?;
        Ok(self.take_in(peer, answer, stream, transport, None, created))
    }

    /// Offers a stream to somebody else's server; [`Self::accept_answer`] comes next. The stream's encoder starts at once.
    pub fn offer_stream(&self, stream: &Arc<Stream>, transport: Transport) -> Result<NewSession, ViewerError> {
        self.offer_stream_and_layers(stream, &[], transport)
    }

    /// The same with all of the stream's layers side by side (RFC 8853), where it has several. Those that the answer does not take are not
    /// encoded; where it takes none there is one video stream, as without.
    pub fn offer_simulcast(&self, stream: &Arc<Stream>, transport: Transport) -> Result<NewSession, ViewerError> {
        let layers: Vec<SimulcastLayer> = stream.layers().iter().filter_map(|layer| layer.layer()).collect();
        self.offer_stream_and_layers(stream, &layers, transport)
    }

    fn offer_stream_and_layers(
        &self,
        stream: &Arc<Stream>,
        layers: &[SimulcastLayer],
        transport: Transport,
    ) -> Result<NewSession, ViewerError> {
        let created = Instant::now();
        let mut config = self.peer_config();
        // The estimator looks for as much as all of them need.
        let all: u64 = layers.iter().map(|layer| layer.bitrate_bps).sum();
        config.desired_bitrate_bps = config.desired_bitrate_bps.max(all * 5 / 4);
        let rids: Vec<String> = layers.iter().map(|layer| layer.rid.clone()).collect();
        let tracks = Tracks { video: stream.has_video().then(|| stream.codec()), audio: stream.has_audio() };
        let (peer, offer) = Peer::offer_layers(config, tracks, &rids, created)?;
        Ok(self.take_in(peer, offer, Arc::clone(stream), transport, None, created))
    }

    fn take_in(
        &self,
        mut peer: Peer,
        sdp: String,
        stream: Arc<Stream>,
        transport: Transport,
        mutual: Option<Mutual>,
        created: Instant,
    ) -> NewSession {
        let (key, id, registration) = self.enrol(peer.local_credentials().ufrag);
        let (phase, phases) = Phases::new();
        self.enter(key, &id, &stream, transport, created, peer.received());
        let viewer = Viewer { key, id: id.clone(), peer, stream, mutual, created, registration, phase };
        self.command(key, Command::Add(Box::new(viewer)));
        NewSession { id, key, sdp, phase: phases }
    }

    /// Answers the offer of somebody who wants to publish, and takes it with the stream that `stream_for` gives for what is offered.
    ///
    /// `prefer` is the codec that viewers of that stream decode already. Costs some milliseconds of the caller's thread.
    pub fn add_publisher<E: From<ViewerError>>(
        &self,
        offer: &str,
        prefer: Option<VideoCodec>,
        stream_for: impl FnOnce(&Offered) -> Result<Arc<Stream>, E>,
    ) -> Result<NewSession, E> {
        if self.shared.table.pending() >= MAX_PENDING {
            return Err(ViewerError::Busy.into());
        }
        let created = Instant::now();
        let (publisher, answer) =
            Publisher::answer(self.peer_config(), offer, prefer, created).map_err(ViewerError::from)?;
        let stream = stream_for(publisher.offered())?;
        Ok(self.take_in_publisher(publisher, answer, stream, Transport::Whip, created))
    }

    /// Asks somebody else's server for a stream, which then feeds `stream`; [`Self::accept_answer`] comes next and settles its codec.
    pub fn offer_to_receive(&self, stream: &Arc<Stream>, transport: Transport) -> Result<NewSession, ViewerError> {
        let created = Instant::now();
        let (publisher, offer) = Publisher::offer(self.peer_config(), created)?;
        Ok(self.take_in_publisher(publisher, offer, Arc::clone(stream), transport, created))
    }

    /// Answers the offer of somebody else's server to feed `stream`.
    pub fn answer_to_receive(
        &self,
        stream: &Arc<Stream>,
        offer: &str,
        transport: Transport,
    ) -> Result<NewSession, ViewerError> {
        let created = Instant::now();
        let (publisher, answer) = Publisher::answer(self.peer_config(), offer, None, created)?;
        let Offered { video, audio, .. } = *publisher.offered();
        stream.set_tracks(video, audio);
        Ok(self.take_in_publisher(publisher, answer, Arc::clone(stream), transport, created))
    }

    fn take_in_publisher(
        &self,
        mut publisher: Publisher,
        sdp: String,
        stream: Arc<Stream>,
        transport: Transport,
        created: Instant,
    ) -> NewSession {
        let (key, id, registration) = self.enrol(publisher.local_credentials().ufrag);
        let (phase, phases) = Phases::new();
        self.enter(key, &id, &stream, transport, created, Some(publisher.counters()));
        let publisher = NewPublisher { key, id: id.clone(), publisher, stream, created, registration, phase };
        self.command(key, Command::AddPublisher(Box::new(publisher)));
        NewSession { id, key, sdp, phase: phases }
    }

    /// Offers a connection between equals: `sends` goes there, what comes from there feeds `receives`, and these data channels are opened.
    /// [`Self::accept_answer`] comes next.
    pub fn offer_mutual(
        &self,
        sends: &Arc<Stream>,
        receives: &Arc<Stream>,
        channels: &[ChannelInit],
        outlet: Arc<dyn LinkOutlet>,
    ) -> Result<NewSession, ViewerError> {
        let created = Instant::now();
        let tracks = Tracks { video: sends.has_video().then(|| sends.codec()), audio: sends.has_audio() };
        let (peer, offer) = Peer::offer_mutual(self.peer_config(), tracks, channels, created)?;
        let mutual = Mutual::new(Arc::clone(receives), outlet, created);
        Ok(self.take_in(peer, offer, Arc::clone(sends), Transport::Mesh, Some(mutual), created))
    }

    /// Answers such an offer, in the codec of `sends` or in that of an alternative where the offer has only that.
    pub fn answer_mutual(
        &self,
        sends: &Arc<Stream>,
        receives: &Arc<Stream>,
        offer: &str,
        channels: &[ChannelInit],
        outlet: Arc<dyn LinkOutlet>,
    ) -> Result<NewSession, ViewerError> {
        let created = Instant::now();
        let (peer, answer, stream) =
            in_some_coding(sends, |tracks| Peer::answer_mutual(self.peer_config(), offer, tracks, channels, created))?;
        let mutual = Mutual::new(Arc::clone(receives), outlet, created);
        mutual.begin(&peer);
        Ok(self.take_in(peer, answer, stream, Transport::Mesh, Some(mutual), created))
    }

    /// An offer of new ICE credentials for a connection between equals; [`Self::accept_answer`] comes next, or [`Self::reoffer`] in its place.
    pub async fn restart_offer(&self, key: u64) -> Result<String, ViewerError> {
        let (reply, offer) = oneshot::channel();
        self.command(key, Command::RestartOffer { key, reply });
        Ok(offer.await.map_err(|_| ViewerError::Gone)??)
    }

    /// Gives a data channel of a connection between equals a message; what the channel holds with it, bytes.
    pub async fn send_message(&self, key: u64, label: String, message: Message) -> Result<usize, ViewerError> {
        let (reply, taken) = oneshot::channel();
        self.command(key, Command::Message { key, label, message, reply });
        Ok(taken.await.map_err(|_| ViewerError::Gone)?.map_err(PeerError::from)?)
    }

    /// Gives a data channel of a connection between equals as many messages as it has room for; what it holds with them, bytes, and the others.
    /// Waits for the media thread: not for tasks.
    pub(crate) fn send_messages(
        &self,
        key: u64,
        label: &'static str,
        messages: VecDeque<Message>,
    ) -> Result<(usize, VecDeque<Message>), ViewerError> {
        let (reply, taken) = mpsc::sync_channel(1);
        self.command(key, Command::Messages { key, label, messages, reply });
        // A thread that has ended leaves its commands unanswered.
        Ok(taken.recv_timeout(STOP_LIMIT).map_err(|_| ViewerError::Gone)?.map_err(PeerError::from)?)
    }

    /// Opens a data channel on a connection between equals.
    pub async fn open_channel(&self, key: u64, init: ChannelInit) -> Result<(), ViewerError> {
        let (reply, opened) = oneshot::channel();
        self.command(key, Command::OpenChannel { key, init, reply });
        Ok(opened.await.map_err(|_| ViewerError::Gone)?.map_err(PeerError::from)?)
    }

    /// Enters a new session into the table of peers. `received` of one that sends to us.
    fn enter(
        &self,
        key: u64,
        id: &str,
        stream: &Stream,
        transport: Transport,
        created: Instant,
        received: Option<ReceiverCounters>,
    ) {
        self.shared.table.insert(
            key,
            PeerInfo {
                id: id.to_owned(),
                stream: stream.name().to_owned(),
                codec: stream.has_video().then(|| stream.codec()),
                transport,
                created,
                connected: false,
                silent: false,
                layer: None,
                chosen_layer: None,
                counters: Counters::default(),
                received,
                sent_layers: Vec::new(),
                feeds: None,
                playout: None,
                incoming_layers: Vec::new(),
                gave: created,
                send: Histogram::default(),
                capture_to_sent: Histogram::default(),
            },
        );
    }

    fn peer_config(&self) -> PeerConfig {
        PeerConfig {
            clock: self.config.clock,
            identity: self.identity.clone(),
            addresses: self.addresses.clone(),
            estimate_bandwidth: self.config.estimate_bandwidth,
            desired_bitrate_bps: self.config.desired_bitrate_bps,
            playout_delay_max: self.config.playout_delay_max,
        }
    }

    /// A key, a public id and the routes of a new peer.
    fn enrol(&self, ufrag: String) -> (u64, String, Registration) {
        let key = self.next_key.fetch_add(1, Relaxed);
        let place = Place { worker: (key as usize) % self.shared.inboxes.len(), key };
        (key, random_id(), Registration::new(Arc::clone(&self.shared.routes), place, ufrag))
    }

    /// Adds a trickled candidate.
    pub fn add_candidate(&self, key: u64, candidate: Candidate) {
        self.command(key, Command::Candidate { key, candidate });
    }

    /// Restarts ICE; answers our new credentials.
    pub async fn restart_ice(&self, key: u64, remote: Credentials) -> Result<Credentials, ViewerError> {
        let (reply, answer) = oneshot::channel();
        self.command(key, Command::Restart { key, remote, reply });
        Ok(answer.await.map_err(|_| ViewerError::Gone)??)
    }

    /// Accepts a new offer on a session; answers the answer.
    pub async fn reoffer(&self, key: u64, offer: String) -> Result<String, ViewerError> {
        let (reply, answer) = oneshot::channel();
        self.command(key, Command::Reoffer { key, offer, reply });
        Ok(answer.await.map_err(|_| ViewerError::Gone)??)
    }

    /// Takes the answer to an offer of ours.
    pub async fn accept_answer(&self, key: u64, answer: String) -> Result<(), ViewerError> {
        let (reply, done) = oneshot::channel();
        self.command(key, Command::Answer { key, answer, reply });
        Ok(done.await.map_err(|_| ViewerError::Gone)??)
    }

    /// Gives a viewer this layer whatever its network carries, or with none the one that it carries. False when its stream has no such layer.
    pub async fn choose_layer(&self, key: u64, rid: Option<String>) -> Result<bool, ViewerError> {
        let (reply, known) = oneshot::channel();
        self.command(key, Command::ChooseLayer { key, rid, reply });
        known.await.map_err(|_| ViewerError::Gone)
    }

    /// One peer, as of the last second.
    pub fn peer(&self, key: u64) -> Option<PeerInfo> {
        self.shared.table.get(key)
    }

    /// Ends a session.
    pub fn close(&self, key: u64, cause: DisconnectCause) {
        self.command(key, Command::Close { key, cause });
    }

    /// Ends the sessions of a stream's viewers.
    pub fn close_viewers_of(&self, stream: &str, cause: DisconnectCause) {
        for key in self.shared.table.viewer_keys(stream) {
            self.close(key, cause);
        }
    }

    /// All peers, oldest first.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.shared.table.all()
    }

    /// Number of peers, connected or not.
    pub fn peer_count(&self) -> usize {
        self.shared.table.len()
    }

    /// Connected viewers of a stream.
    pub fn viewers_of(&self, stream: &str) -> usize {
        self.shared.table.viewers_of(stream)
    }

    /// Counters since the start.
    pub fn counters(&self) -> &EngineCounters {
        &self.shared.table.counters
    }

    /// Ended sessions by cause.
    pub fn disconnect_causes(&self) -> Vec<(&'static str, u64)> {
        self.shared.table.causes()
    }

    /// Lifecycle events.
    pub fn events(&self) -> &EventLog {
        &self.config.events
    }

    /// The media clock.
    pub const fn clock(&self) -> MediaClock {
        self.config.clock
    }

    /// Says goodbye to every viewer and ends the threads.
    pub fn stop(&self) {
        let handles = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for inbox in &self.shared.inboxes {
            inbox.command(Command::Stop);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        for handle in handles {
            while !handle.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if handle.is_finished() {
                let _ = handle.join();
            }
        }
    }

    fn command(&self, key: u64, command: Command) {
        let worker = (key as usize) % self.shared.inboxes.len();
        self.shared.inboxes[worker].command(command);
    }
}

impl Drop for MediaEngine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// 20 characters of 62: not to be guessed, since knowing a session's URL is the right to end it.
pub(crate) fn random_id() -> String {
    // Seeded by the operating system; `fastrand` alone would be predictable from earlier ids.
    use std::hash::{BuildHasher, Hasher};
    let mut id = String::with_capacity(20);
    while id.len() < 20 {
        let mut bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
        for _ in 0..5 {
            id.push(char::from(
                b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[(bits % 62) as usize],
            ));
            bits /= 62;
        }
    }
    id
}

/// Where peers can reach `bound`: the configured addresses, the bound one, or those of the interfaces.
fn reachable_addresses(bound: SocketAddr, advertise: &[IpAddr]) -> Vec<SocketAddr> {
    let at = |ip| SocketAddr::new(ip, bound.port());
    if !advertise.is_empty() {
        return advertise.iter().copied().map(at).collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let mut ips = interface_addresses();
    ips.retain(|ip| ip.is_ipv4() == bound.is_ipv4());
    if ips.is_empty() {
        // A machine without a network still shows its streams to itself.
        ips.push(if bound.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    ips.into_iter().map(at).take(MAX_CANDIDATES).collect()
}

/// Host candidates that we offer at most; more only make connectivity checks slower.
const MAX_CANDIDATES: usize = 8;

/// Addresses of this machine's interfaces, without loopback and link-local ones.
pub fn interface_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().filter(|i| !i.is_loopback() && !i.is_link_local()).map(|i| i.ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_long_and_different() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| random_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 20 && id.bytes().all(|b| b.is_ascii_alphanumeric())));
    }

    #[test]
    fn a_bound_address_is_the_only_candidate() {
        let bound = SocketAddr::from(([127, 0, 0, 1], 8080));
        assert_eq!(reachable_addresses(bound, &[]), [bound]);
        let public = IpAddr::from([203, 0, 113, 7]);
        assert_eq!(reachable_addresses(bound, &[public]), [SocketAddr::new(public, 8080)]);
        let any = reachable_addresses(SocketAddr::from(([0, 0, 0, 0], 8080)), &[]);
        assert!(!any.is_empty() && any.iter().all(|a| !a.ip().is_unspecified() && a.port() == 8080));
    }
}
