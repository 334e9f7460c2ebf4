//! A member of a room: finds the others over JSON-RPC, and has a connection with each of them.
//!
//! ```text
//!  Stream ──▶ Mesh ── peer.announce, peer.offer, … ──▶ server's /ws ──▶ the others
//!               ├─ a Peer for each of them, on the media threads ═▶ pictures, sound, data both ways
//!  Stream ◀─────┘  one for each of them, named ROOM.PEER
//! ```
//!
//! What happens when is [`lightpipe_signal::mesh`]'s to say; here it is carried out. The connections do not end with the one to the server.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::http::Uri;
use futures_util::{SinkExt, StreamExt};
use lightpipe_media::{Stream, VideoCodec};
use lightpipe_rtc::{Candidate, ChannelError, ChannelEvent, ChannelInit, DisconnectCause, Message, PeerError};
use lightpipe_signal::jsonrpc::{self, Heard, Refusal};
use lightpipe_signal::mesh::{self, Action, LinkId, News};
use lightpipe_signal::reconnect::Backoff;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tracing::{debug, info, warn};

use super::files::{FileError, FileInfo, FileState, Files, Folder, Line, ReceiveFiles};
use crate::media::{LinkOutlet, LinkState, MediaEngine, PeerInfo, ViewerError};
use crate::registry::Streams;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The conversation, and who is there.
type Connected = Result<(Socket, Vec<(String, Value)>), MeshError>;

type Attempt = Pin<Box<dyn Future<Output = Connected> + Send>>;

/// Label and number of the channel for chat, which every member opens by itself (RFC 8832 §2).
pub const CHAT: (&str, u16) = ("chat", 100);

/// The same of the channel for files. What is said on it is the mesh's own, see [`MeshHandle::send_file`].
pub const FILES: (&str, u16) = ("files", 101);

/// How long the server may take to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How often the server is asked whether it is there; it must have answered by the next time but one.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long the goodbye may take.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Longest message of the server, bytes.
const MAX_MESSAGE_LEN: usize = 1 << 20;

/// Messages of others that may wait to be read, and their bytes. A channel that brings more is closed.
const MAX_WAITING_MESSAGES: usize = 8192;
const MAX_WAITING_BYTES: usize = 16 << 20;

/// What a member of a room needs to know.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// The server's signalling, `ws://host:port/ws`.
    pub url: Uri,
    /// The room: 1 to 64 letters, digits, `_` or `-`.
    pub room: String,
    /// Our id in it, of the same form; nobody else may have it.
    pub id: String,
    /// What we say of ourselves, an object. `session` is added.
    pub user_data: Value,
    /// Data channels to each peer.
    pub channels: Vec<ChannelInit>,
    /// What becomes of files that others offer. Nothing, unless [`FILES`] is among the channels.
    pub receive_files: ReceiveFiles,
    /// Who takes part in it beside us.
    company: Option<Arc<dyn Company>>,
    /// By which we take our place again, although the server has not noticed that we were gone.
    resume: String,
}

impl MeshConfig {
    /// With the channels [`CHAT`] and [`FILES`], and nothing to say of ourselves.
    pub fn new(url: Uri, room: impl Into<String>, id: impl Into<String>) -> Self {
        let channels = [CHAT, FILES].map(|(label, id)| ChannelInit::new(label).negotiated(id)).to_vec();
        Self {
            url,
            room: room.into(),
            id: id.into(),
            user_data: json!({}),
            channels,
            receive_files: ReceiveFiles::default(),
            company: None,
            resume: crate::media::random_id(),
        }
    }

    /// Tells `company` who comes and goes, and sends each what it says.
    #[must_use]
    pub fn with_company(self, company: Arc<dyn Company>) -> Self {
        Self { company: Some(company), ..self }
    }
}

/// What takes part in a room beside its [`Mesh`]: plays what the others send, or sends something to each of them that is for him alone. Called on
/// the room's task: must not wait.
pub trait Company: Send + Sync + std::fmt::Debug {
    /// Whether it sends sound: who announces itself says so.
    fn sends_sound(&self) -> bool;
    /// Somebody is there; what it sends will be in `stream`. What it is sent; none: what everybody is.
    fn joined(&self, peer: &str, user_data: &Value, stream: &Arc<Stream>) -> Option<Arc<Stream>>;
    /// It is not any more.
    fn left(&self, peer: &str);
}

/// Why a room could not be joined, or a message not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// No conversation with the server came about.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What the system or the server said.
        reason: String,
    },
    /// The server said no; the same will be refused again.
    #[error("the server refuses: {0}")]
    Refused(Refusal),
    /// There is nobody of this id, or no connection to it at present.
    #[error("there is no connection to {0:?}")]
    NotConnected(String),
    /// A data channel did not take a message.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The folder for files cannot be made or read.
    #[error("{path}: {error}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The system gives us no thread for files.
    #[error("no thread for files")]
    Thread(#[source] std::io::Error),
    /// We left.
    #[error("this member has left the room")]
    Gone,
}

/// What happens in a room.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MeshEvent {
    /// Somebody is there.
    Joined {
        /// Who.
        peer: String,
        /// What it says of itself.
        user_data: Value,
        /// What it will send.
        stream: Arc<Stream>,
    },
    /// Media and data flow.
    Connected {
        /// With whom.
        peer: String,
        /// From the first attempt, or from the loss.
        took: Duration,
        /// It was connected before.
        again: bool,
    },
    /// Nothing comes any more; it is tried again.
    Lost {
        /// From whom.
        peer: String,
    },
    /// Somebody is not there any more.
    Left {
        /// Who.
        peer: String,
    },
    /// Something happened to a data channel, a message for instance.
    Channel {
        /// To whose.
        peer: String,
        /// What.
        event: ChannelEvent,
    },
    /// A file goes to a peer, or comes from it. Who leaves thousands of events unread misses some of these.
    File {
        /// To or from whom.
        peer: String,
        /// Which.
        file: FileInfo,
        /// How far it is.
        state: FileState,
    },
    /// Somebody says something about itself to the room.
    State {
        /// Who.
        peer: String,
        /// What, in its words.
        state: String,
    },
    /// The server cannot be reached. Connections stay; nobody new comes.
    ServerLost {
        /// Why.
        error: String,
    },
    /// It is there again.
    ServerBack,
}

/// One of the others.
#[derive(Debug, Clone)]
pub struct MeshPeer {
    /// Its id.
    pub id: String,
    /// What it sends.
    pub stream: Arc<Stream>,
    /// Whether there is a connection that media flows on.
    pub connected: bool,
    /// The engine's figures of the connection.
    pub info: Option<PeerInfo>,
}

/// Membership in a room. Dropping it leaves, if the runtime lives long enough; [`Self::leave`] waits for that.
#[derive(Debug)]
pub struct Mesh {
    handle: MeshHandle,
    events: mpsc::UnboundedReceiver<MeshEvent>,
    task: Option<JoinHandle<()>>,
}

/// What can be done in a room by several at once.
#[derive(Debug, Clone)]
pub struct MeshHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: Arc<MediaEngine>,
    peers: Mutex<BTreeMap<String, Entry>>,
    events: Arc<Events>,
    /// None without a channel for them.
    files: Option<Files>,
    stop: watch::Sender<bool>,
    said: mpsc::Sender<String>,
}

#[derive(Debug)]
struct Entry {
    stream: Arc<Stream>,
    /// What it is sent.
    sends: Arc<Stream>,
    connected: bool,
    /// The engine's number of the connection.
    key: Option<u64>,
    low: Arc<Notify>,
}

/// Events on their way to whoever reads them. Those of the room are few; messages and files are bounded.
#[derive(Debug)]
pub(super) struct Events {
    sender: mpsc::UnboundedSender<MeshEvent>,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Events {
    fn push(&self, event: MeshEvent) {
        // Nobody reads any more: the member is about to leave.
        let _ = self.sender.send(event);
    }

    /// False when too much waits.
    fn push_channel(&self, peer: &str, event: ChannelEvent) -> bool {
        self.push_bounded(MeshEvent::Channel { peer: peer.to_owned(), event })
    }

    /// False when too much waits.
    pub(super) fn push_file(&self, event: MeshEvent) -> bool {
        self.push_bounded(event)
    }

    fn push_bounded(&self, event: MeshEvent) -> bool {
        if let Some(len) = len_of(&event) {
            if self.messages.load(Relaxed) >= MAX_WAITING_MESSAGES || self.bytes.load(Relaxed) + len > MAX_WAITING_BYTES
            {
                return false;
            }
            self.messages.fetch_add(1, Relaxed);
            self.bytes.fetch_add(len, Relaxed);
        }
        self.push(event);
        true
    }

    fn was_read(&self, event: &MeshEvent) {
        if let Some(len) = len_of(event) {
            self.messages.fetch_sub(1, Relaxed);
            self.bytes.fetch_sub(len, Relaxed);
        }
    }
}

/// Bytes of what is bounded.
const fn len_of(event: &MeshEvent) -> Option<usize> {
    match event {
        MeshEvent::Channel { event: ChannelEvent::Message { message, .. }, .. } => Some(message.as_bytes().len()),
        MeshEvent::File { .. } => Some(0),
        _ => None,
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears of one connection on its media thread.
struct Outlet {
    peer: String,
    link: LinkId,
    /// The engine's number of it; known before its description is sent, so before anything comes.
    key: OnceLock<u64>,
    files: Option<Line>,
    low: Arc<Notify>,
    shared: Arc<Shared>,
    states: mpsc::UnboundedSender<(LinkId, LinkState)>,
}

impl LinkOutlet for Outlet {
    fn state(&self, state: LinkState) {
        let _ = self.states.send((self.link, state));
        if matches!(state, LinkState::Closed(_)) {
            self.low.notify_waiters();
            if let Some(files) = &self.files {
                files.gone();
            }
        }
    }

    fn channel(&self, event: ChannelEvent) -> bool {
        if let Some(files) = &self.files {
            match event {
                ChannelEvent::Message { label, message } if label == FILES.0 => return files.message(message),
                ChannelEvent::Low { label } if label == FILES.0 => {
                    files.low();
                    return true;
                }
                // These two are told, too.
                ChannelEvent::Open { ref label } if label == FILES.0 => {
                    if let Some(key) = self.key.get() {
                        files.opened(*key);
                    }
                }
                ChannelEvent::Closed { ref label, .. } if label == FILES.0 => files.gone(),
                _ => {}
            }
        }
        if matches!(event, ChannelEvent::Low { .. } | ChannelEvent::Closed { .. }) {
            self.low.notify_waiters();
        }
        self.shared.events.push_channel(&self.peer, event)
    }
}

impl Mesh {
    /// Joins a room and publishes a stream in it, if there is one. What the others send is in `streams` as `ROOM.PEER`. Resolves when the server has let us in, or
    /// refused; afterwards a server that is gone is looked for again. Call inside a tokio runtime.
    pub async fn join(
        engine: Arc<MediaEngine>,
        publish: Option<Arc<Stream>>,
        streams: Streams,
        mut config: MeshConfig,
    ) -> Result<Self, MeshError> {
        let sends = publish.unwrap_or_else(|| {
            let nothing = Stream::new(format!("{}.{}", config.room, config.id), VideoCodec::H264);
            nothing.without_video();
            if config.company.as_ref().is_some_and(|company| company.sends_sound()) {
                nothing.add_audio();
            }
            nothing
        });
        if let Some(user_data) = config.user_data.as_object_mut() {
            // Tells others that it is still us when we come back.
            user_data.insert("session".into(), crate::media::random_id().into());
        }
        let (sender, events) = mpsc::unbounded_channel();
        let waiting = Events { sender, messages: AtomicUsize::new(0), bytes: AtomicUsize::new(0) };
        let waiting = Arc::new(waiting);
        // Before others see us: what they offer is taken, then.
        let files = start_files(&engine, &waiting, &config).await?;
        let (socket, present) = connect(&config, &sends).await?;
        let (stop, stopped) = watch::channel(false);
        let (said, to_say) = mpsc::channel(64);
        let shared = Arc::new(Shared { engine, peers: Mutex::default(), events: waiting, files, stop, said });
        let (states_sender, states) = mpsc::unbounded_channel();
        let driver = Driver {
            mesh: mesh::Mesh::new(config.id.clone(), fastrand::u64(..)),
            config,
            sends,
            streams,
            shared: Arc::clone(&shared),
            links: HashMap::new(),
            states_sender,
            calls: HashMap::new(),
            next_call: 2,
        };
        let task = tokio::spawn(driver.run(socket, present, states, stopped, to_say));
        Ok(Self { handle: MeshHandle { shared }, events, task: Some(task) })
    }

    /// What happens next; none after the end.
    pub async fn next(&mut self) -> Option<MeshEvent> {
        let event = self.events.recv().await?;
        self.handle.shared.events.was_read(&event);
        Some(event)
    }

    /// For who wants to send while another one reads.
    pub const fn handle(&self) -> &MeshHandle {
        &self.handle
    }

    /// Leaves, and waits for the goodbye: 2 s at most.
    pub async fn leave(mut self) {
        self.handle.leave();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.handle.leave();
    }
}

impl MeshHandle {
    /// Everybody else in the room.
    pub fn peers(&self) -> Vec<MeshPeer> {
        let engine = &self.shared.engine;
        let peer = |(id, entry): (&String, &Entry)| MeshPeer {
            id: id.clone(),
            stream: Arc::clone(&entry.stream),
            connected: entry.connected,
            info: entry.key.and_then(|key| engine.peer(key)),
        };
        self.shared.peers().iter().map(peer).collect()
    }

    /// Sends a message on a data channel of a peer. Waits while the channel holds too much; what it holds with the message, bytes.
    pub async fn send(&self, peer: &str, label: &str, message: Message) -> Result<usize, MeshError> {
        loop {
            let not_connected = || MeshError::NotConnected(peer.to_owned());
            let low = self.entry(peer).ok_or_else(not_connected)?.1;
            let room = low.notified();
            match self.try_send(peer, label, message.clone()).await {
                Err(MeshError::Channel(ChannelError::Full { .. })) => room.await,
                done => return done,
            }
        }
    }

    /// The same without waiting: a channel that holds too much refuses.
    pub async fn try_send(&self, peer: &str, label: &str, message: Message) -> Result<usize, MeshError> {
        let not_connected = || MeshError::NotConnected(peer.to_owned());
        if label == FILES.0 && self.shared.files.is_some() {
            return Err(ChannelError::BadLabel(label.to_owned()).into());
        }
        let key = self.entry(peer).and_then(|(key, _)| key).ok_or_else(not_connected)?;
        match self.shared.engine.send_message(key, label.to_owned(), message).await {
            Ok(buffered) => Ok(buffered),
            Err(ViewerError::Peer(PeerError::Channel(error))) => Err(error.into()),
            Err(_) => Err(not_connected()),
        }
    }

    /// Sends a file to a peer, who is in the room and may be connected later; [`MeshEvent::File`] tells how far it is. A cut is gone over: when there is
    /// a connection again within ten minutes, the rest is sent. Eight files are on their way at a time, others wait. The transfer's id.
    pub async fn send_file(&self, peer: &str, path: impl Into<PathBuf>) -> Result<String, FileError> {
        let files = self.shared.files.as_ref().ok_or(FileError::NoChannel)?;
        if !self.shared.peers().contains_key(peer) {
            return Err(FileError::NotThere(peer.to_owned()));
        }
        files.send(peer, path.into()).await
    }

    /// Ends a transfer, whichever way it goes; [`FileState::Failed`] follows. One that is over stays so.
    pub fn cancel_file(&self, peer: &str, id: &str) {
        if let Some(files) = &self.shared.files {
            files.cancel(peer, id);
        }
    }

    /// Opens one more data channel to a peer, by telling it of it; [`ChannelEvent::Open`] says when it may be used. It ends with the connection.
    pub async fn open_channel(&self, peer: &str, init: ChannelInit) -> Result<(), MeshError> {
        let not_connected = || MeshError::NotConnected(peer.to_owned());
        let key = self.entry(peer).and_then(|(key, _)| key).ok_or_else(not_connected)?;
        match self.shared.engine.open_channel(key, init).await {
            Ok(()) => Ok(()),
            Err(ViewerError::Peer(PeerError::Channel(error))) => Err(error.into()),
            Err(_) => Err(not_connected()),
        }
    }

    /// Says something about ourselves to the room, a word or two.
    pub async fn say_state(&self, state: impl Into<String>) -> Result<(), MeshError> {
        self.shared.said.send(state.into()).await.map_err(|_| MeshError::Gone)
    }

    /// Leaves the room, without waiting.
    pub fn leave(&self) {
        let _ = self.shared.stop.send(true);
    }

    fn entry(&self, peer: &str) -> Option<(Option<u64>, Arc<Notify>)> {
        self.shared.peers().get(peer).map(|entry| (entry.key, Arc::clone(&entry.low)))
    }
}

/// The thread for files, where there is a channel for them.
async fn start_files(
    engine: &Arc<MediaEngine>,
    events: &Arc<Events>,
    config: &MeshConfig,
) -> Result<Option<Files>, MeshError> {
    let is_it = |init: &&ChannelInit| init.label == FILES.0 && init.id == Some(FILES.1);
    let Some(channel) = config.channels.iter().find(is_it) else { return Ok(None) };
    let folder = match &config.receive_files {
        ReceiveFiles::Refuse => None,
        ReceiveFiles::Into(path) => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || {
                Folder::open(&path).map_err(|error| MeshError::Folder { path, error })
            });
            Some(opened.await.unwrap_or(Err(MeshError::Gone))?)
        }
    };
    let (engine, events) = (Arc::clone(engine), Arc::clone(events));
    Files::start(engine, events, folder, channel.low_threshold).map(Some).map_err(MeshError::Thread)
}

/// Opens the conversation and announces us; answers who is there.
async fn connect(config: &MeshConfig, sends: &Stream) -> Connected {
    let host = config.url.authority().map(ToString::to_string).unwrap_or_default();
    let unreachable = |reason: String| MeshError::Unreachable { host: host.clone(), reason };
    let attempt = async {
        let limits =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_LEN)).max_frame_size(Some(MAX_MESSAGE_LEN));
        // Small messages that somebody waits for.
        let connected = tokio_tungstenite::connect_async_with_config(config.url.to_string(), Some(limits), true).await;
        let mut socket = match connected {
            Ok((socket, _)) => socket,
            Err(tungstenite::Error::Http(response)) => {
                return Err(unreachable(format!("HTTP {}", response.status())));
            }
            Err(error) => return Err(unreachable(error.to_string())),
        };
        let mut capabilities = vec!["data"];
        if sends.has_video() {
            capabilities.push("video");
        }
        if sends.has_audio() {
            capabilities.push("audio");
        }
        let params = json!({
            "peer_id": config.id, "room": config.room, "capabilities": capabilities, "user_data": config.user_data,
            "resume": config.resume,
        });
        let announce = jsonrpc::request(1, "peer.announce", &params);
        socket.send(Frame::text(announce)).await.map_err(|error| unreachable(error.to_string()))?;
        while let Some(frame) = socket.next().await {
            let frame = frame.map_err(|error| unreachable(error.to_string()))?;
            let Frame::Text(text) = frame else {
                if let Frame::Close(Some(close)) = frame {
                    return Err(unreachable(close.reason.to_string()));
                }
                continue;
            };
            for heard in jsonrpc::heard(&text) {
                match heard {
                    Heard::Answer { id: 1, result: Ok(result) } => return Ok((socket, present(&result))),
                    Heard::Answer { id: 1, result: Err(refusal) } => return Err(MeshError::Refused(refusal)),
                    _ => {}
                }
            }
        }
        Err(unreachable("the server closed the connection".into()))
    };
    tokio::time::timeout(CONNECT_LIMIT, attempt)
        .await
        .unwrap_or_else(|_| Err(unreachable(format!("no answer within {CONNECT_LIMIT:?}"))))
}

/// Who is there, by the answer to our announcement.
fn present(result: &Value) -> Vec<(String, Value)> {
    let peers = result.get("peers").and_then(Value::as_array);
    let one = |peer: &Value| {
        let id = peer.get("peer_id")?.as_str()?.to_owned();
        Some((id, peer.get("user_data").cloned().unwrap_or_default()))
    };
    peers.into_iter().flatten().filter_map(one).collect()
}

struct Driver {
    config: MeshConfig,
    sends: Arc<Stream>,
    streams: Streams,
    shared: Arc<Shared>,
    mesh: mesh::Mesh,
    /// The engine's numbers of the connections.
    links: HashMap<LinkId, u64>,
    states_sender: mpsc::UnboundedSender<(LinkId, LinkState)>,
    /// Calls whose refusal ends a connection.
    calls: HashMap<u64, LinkId>,
    next_call: u64,
}

/// What the loop found to do.
enum Turn {
    Frame(Option<Result<Frame, tungstenite::Error>>),
    State(LinkId, LinkState),
    Connected(Box<Connected>),
    Say(String),
    Ping,
    Tick,
    Stop,
}

impl Driver {
    async fn run(
        mut self,
        socket: Socket,
        present: Vec<(String, Value)>,
        mut states: mpsc::UnboundedReceiver<(LinkId, LinkState)>,
        mut stopped: watch::Receiver<bool>,
        mut to_say: mpsc::Receiver<String>,
    ) {
        let mut socket = Some(socket);
        let mut since = Instant::now();
        let mut heard_at = Instant::now();
        let mut attempt: Option<Attempt> = None;
        let mut backoff = Backoff::default();
        let mut ping = tokio::time::interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.mesh.announced(Instant::now(), present);
        loop {
            self.carry_out(&mut socket).await;
            let wake_at = self.mesh.wake_at();
            let turn = tokio::select! {
                biased;
                () = async { drop(stopped.wait_for(|stop| *stop).await) } => Turn::Stop,
                Some((link, state)) = states.recv() => Turn::State(link, state),
                frame = next_frame(&mut socket) => Turn::Frame(frame),
                connected = attempted(&mut attempt) => Turn::Connected(Box::new(connected)),
                Some(state) = to_say.recv() => Turn::Say(state),
                _ = ping.tick() => Turn::Ping,
                () = sleep_until(wake_at) => Turn::Tick,
            };
            let now = Instant::now();
            let mut lost = None;
            match turn {
                Turn::Stop => break,
                Turn::State(link, state) => self.on_state(now, link, state),
                Turn::Frame(Some(Ok(frame))) => {
                    heard_at = now;
                    match frame {
                        Frame::Text(text) => self.on_text(now, &text),
                        Frame::Close(close) => {
                            lost = Some(close.map_or_else(|| "closed".to_owned(), |close| close.reason.to_string()));
                        }
                        _ => {}
                    }
                }
                Turn::Frame(Some(Err(error))) => lost = Some(error.to_string()),
                Turn::Frame(None) => lost = Some("the connection ended".to_owned()),
                Turn::Connected(connected) => match *connected {
                    Ok((new, present)) => {
                        socket = Some(new);
                        (since, heard_at, attempt) = (now, now, None);
                        info!("back in the room");
                        self.shared.events.push(MeshEvent::ServerBack);
                        self.mesh.announced(now, present);
                    }
                    Err(error) => {
                        let pause = backoff.after(Duration::ZERO, None, fastrand::f64()).min(mesh::LONGEST_PAUSE);
                        debug!(%error, retry_in_ms = pause.as_millis() as u64, "the server is not back yet");
                        attempt = Some(self.attempt_after(pause));
                    }
                },
                Turn::Say(state) => {
                    let params = json!({ "state": state });
                    self.call(&mut socket, "peer.state_changed", &params, None).await;
                }
                Turn::Ping => {
                    if now.saturating_duration_since(heard_at) > PING_INTERVAL * 2 {
                        lost = Some("the server fell silent".to_owned());
                    } else if let Some(socket) = &mut socket {
                        let _ = socket.send(Frame::Ping(Default::default())).await;
                    }
                }
                Turn::Tick => self.mesh.tick(now),
            }
            if let Some(error) = lost.filter(|_| socket.is_some()) {
                socket = None;
                self.calls.clear();
                let pause = backoff.after(now.saturating_duration_since(since), None, fastrand::f64());
                warn!(error, "the server is gone; connections to peers stay");
                self.shared.events.push(MeshEvent::ServerLost { error });
                self.mesh.offline(now);
                // The first attempt soon: it may have been restarted.
                attempt = Some(self.attempt_after(pause.min(mesh::LONGEST_PAUSE) / 4));
            }
        }
        if let Some(files) = &self.shared.files {
            // While there are connections to say so on.
            let _ = tokio::time::timeout(STOP_LIMIT, files.stop()).await;
        }
        self.call(&mut socket, "peer.disconnect", &json!({ "reason": "left" }), None).await;
        if let Some(mut socket) = socket {
            let _ = tokio::time::timeout(STOP_LIMIT, socket.close(None)).await;
        }
        self.mesh.leave();
        self.carry_out(&mut None).await;
    }

    /// The next attempt to reach the server.
    fn attempt_after(&self, pause: Duration) -> Attempt {
        let (config, sends) = (self.config.clone(), Arc::clone(&self.sends));
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            connect(&config, &sends).await
        })
    }

    fn on_state(&mut self, now: Instant, link: LinkId, state: LinkState) {
        let peer = self.mesh.peer_of(link).map(str::to_owned);
        match state {
            LinkState::Connected => self.mesh.up(now, link),
            LinkState::Heard => self.mesh.heard(now, link),
            LinkState::Silent => self.mesh.silent(now, link),
            LinkState::Closed(cause) => {
                debug!(link, cause = cause.as_str(), "connection to a peer ended");
                self.links.remove(&link);
                self.mesh.down(now, link);
            }
        }
        let up = matches!(state, LinkState::Connected | LinkState::Heard);
        if let Some(peer) = peer
            && let Some(entry) = self.shared.peers().get_mut(&peer)
        {
            entry.connected = up;
            if matches!(state, LinkState::Closed(_)) {
                entry.key = None;
            }
        }
    }

    fn on_text(&mut self, now: Instant, text: &str) {
        for heard in jsonrpc::heard(text) {
            match heard {
                Heard::Notification { method, params } => self.on_news(now, &method, &params),
                Heard::Answer { id, result } => {
                    let link = self.calls.remove(&id);
                    if let (Err(refusal), Some(link)) = (result, link) {
                        debug!(%refusal, link, "the server refuses");
                        self.mesh.refused(now, link);
                    }
                }
            }
        }
    }

    fn on_news(&mut self, now: Instant, method: &str, params: &Value) {
        let word = |key: &str| params.get(key).and_then(Value::as_str).map(str::to_owned);
        let sdp = || word("sdp").unwrap_or_default();
        let Some(peer) = word("from").or_else(|| word("peer_id")) else { return };
        match method {
            "peer.joined" => self.mesh.joined(now, &peer, params.get("user_data").cloned().unwrap_or_default()),
            "peer.left" => {
                if let Some(files) = &self.shared.files {
                    files.goodbye(&peer);
                }
                self.mesh.left(&peer);
            }
            "peer.disconnected" => self.mesh.vanished(&peer),
            "peer.offer" => self.mesh.offered(now, &peer, sdp()),
            "peer.answer" => self.mesh.answered(now, &peer, sdp()),
            "peer.ice_candidate" => {
                self.mesh.candidate(&peer, params.get("candidate").cloned().unwrap_or_default());
            }
            "peer.state_changed" => {
                let state = word("state").unwrap_or_default();
                self.shared.events.push(MeshEvent::State { peer, state });
            }
            _ => {}
        }
    }

    /// Does what the mesh wants, and what follows from that.
    async fn carry_out(&mut self, socket: &mut Option<Socket>) {
        while let Some(action) = self.mesh.take() {
            match action {
                Action::Offer { peer, link } => self.open(socket, peer, link, None).await,
                Action::Answer { peer, link, sdp } => self.open(socket, peer, link, Some(sdp)).await,
                Action::Renegotiate { peer, link, sdp } => {
                    let Some(key) = self.links.get(&link).copied() else { continue };
                    match self.shared.engine.reoffer(key, sdp).await {
                        Ok(answer) => self.send(socket, "peer.answer", &peer, answer, link).await,
                        Err(error) => self.refuse(&peer, link, &error),
                    }
                }
                Action::Accept { link, sdp } => {
                    let Some(key) = self.links.get(&link).copied() else { continue };
                    if let Err(error) = self.shared.engine.accept_answer(key, sdp).await {
                        self.refuse("", link, &error);
                    }
                }
                Action::Candidate { link, candidate } => {
                    if let (Some(key), Some(candidate)) = (self.links.get(&link), candidate_of(&candidate)) {
                        self.shared.engine.add_candidate(*key, candidate);
                    }
                }
                Action::Restart { peer, link } => {
                    let Some(key) = self.links.get(&link).copied() else { continue };
                    match self.shared.engine.restart_offer(key).await {
                        Ok(offer) => self.send(socket, "peer.offer", &peer, offer, link).await,
                        Err(error) => self.refuse(&peer, link, &error),
                    }
                }
                Action::Close { link } => {
                    if let Some(key) = self.links.remove(&link) {
                        for entry in self.shared.peers().values_mut().filter(|entry| entry.key == Some(key)) {
                            (entry.key, entry.connected) = (None, false);
                        }
                        self.shared.engine.close(key, DisconnectCause::SignallingClosed);
                    }
                }
                Action::Tell(news) => self.tell(news),
            }
        }
    }

    fn refuse(&mut self, peer: &str, link: LinkId, error: &ViewerError) {
        warn!(peer, link, %error, "what a peer sent cannot be used");
        self.mesh.refused(Instant::now(), link);
    }

    /// A new connection: of our offer, or of that of the other side.
    async fn open(&mut self, socket: &mut Option<Socket>, peer: String, link: LinkId, offer: Option<String>) {
        let (sends, receives, low) = {
            let peers = self.shared.peers();
            let Some(entry) = peers.get(&peer) else { return };
            (Arc::clone(&entry.sends), Arc::clone(&entry.stream), Arc::clone(&entry.low))
        };
        let outlet = Arc::new(Outlet {
            peer: peer.clone(),
            link,
            key: OnceLock::new(),
            files: self.shared.files.as_ref().map(|files| files.line(peer.clone(), link)),
            low,
            shared: Arc::clone(&self.shared),
            states: self.states_sender.clone(),
        });
        let method = if offer.is_some() { "peer.answer" } else { "peer.offer" };
        let engine = Arc::clone(&self.shared.engine);
        let channels = self.config.channels.clone();
        let told = Arc::clone(&outlet);
        // Key work: a few milliseconds.
        let made = tokio::task::spawn_blocking(move || match offer {
            Some(offer) => engine.answer_mutual(&sends, &receives, &offer, &channels, outlet),
            None => engine.offer_mutual(&sends, &receives, &channels, outlet),
        });
        match made.await.unwrap_or(Err(ViewerError::Gone)) {
            Ok(session) => {
                self.links.insert(link, session.key);
                let _ = told.key.set(session.key);
                if let Some(entry) = self.shared.peers().get_mut(&peer) {
                    entry.key = Some(session.key);
                }
                self.send(socket, method, &peer, session.sdp, link).await;
            }
            Err(error) => {
                warn!(peer, %error, "no connection to a peer");
                self.mesh.down(Instant::now(), link);
            }
        }
    }

    async fn send(&mut self, socket: &mut Option<Socket>, method: &str, peer: &str, sdp: String, link: LinkId) {
        self.call(socket, method, &json!({ "to": peer, "sdp": sdp }), Some(link)).await;
    }

    async fn call(&mut self, socket: &mut Option<Socket>, method: &str, params: &Value, link: Option<LinkId>) {
        let Some(socket) = socket else { return };
        let id = self.next_call;
        self.next_call += 1;
        if let Some(link) = link {
            self.calls.insert(id, link);
        }
        let call = jsonrpc::request(id, method, params);
        // A server that reads nothing is as good as gone; the reading side finds out.
        let _ = tokio::time::timeout(STOP_LIMIT, socket.send(Frame::text(call))).await;
    }

    fn tell(&self, news: News) {
        let event = match news {
            News::Joined { peer, user_data } => {
                let stream = Stream::new(format!("{}.{peer}", self.config.room), VideoCodec::H264);
                // Who watches before it sends is told of sound, too: a line that stays silent does no harm.
                stream.add_audio();
                let _ = self.streams.add(Arc::clone(&stream), format!("{peer} in room {}", self.config.room));
                let company = self.config.company.as_ref();
                let sends = company.and_then(|company| company.joined(&peer, &user_data, &stream));
                let entry = Entry {
                    stream: Arc::clone(&stream),
                    sends: sends.unwrap_or_else(|| Arc::clone(&self.sends)),
                    connected: false,
                    key: None,
                    low: Arc::default(),
                };
                self.shared.peers().insert(peer.clone(), entry);
                if let Some(files) = &self.shared.files {
                    files.joined(&peer);
                }
                MeshEvent::Joined { peer, user_data, stream }
            }
            News::Connected { peer, took, again } => MeshEvent::Connected { peer, took, again },
            News::Lost { peer } => MeshEvent::Lost { peer },
            News::Left { peer } => {
                if let Some(files) = &self.shared.files {
                    files.left(&peer);
                }
                if let Some(company) = &self.config.company {
                    company.left(&peer);
                }
                if let Some(entry) = self.shared.peers().remove(&peer) {
                    self.streams.remove(entry.stream.name());
                    self.shared.engine.close_viewers_of(entry.stream.name(), DisconnectCause::StreamEnded);
                    entry.stream.close();
                    entry.low.notify_waiters();
                }
                MeshEvent::Left { peer }
            }
            _ => return,
        };
        self.shared.events.push(event);
    }
}

/// A candidate in any of the forms that the server lets through.
fn candidate_of(value: &Value) -> Option<Candidate> {
    let text = match value {
        Value::Null => return Some(Candidate::EndOfCandidates),
        Value::Object(object) => object.get("candidate")?.as_str()?.to_owned(),
        Value::String(text) if text.trim_start().starts_with('{') => {
            let inner: Value = serde_json::from_str(text).ok()?;
            inner.get("candidate")?.as_str()?.to_owned()
        }
        Value::String(text) => text.clone(),
        _ => return None,
    };
    Candidate::parse(&text).ok()
}

async fn next_frame(socket: &mut Option<Socket>) -> Option<Result<Frame, tungstenite::Error>> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}

async fn attempted(attempt: &mut Option<Attempt>) -> Connected {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
