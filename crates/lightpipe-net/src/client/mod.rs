//! WHIP and WHEP from the other side: our stream to somebody else's server, or theirs to us.
//!
//! ```text
//!  Stream ─▶ WhipClient ─ offer, DELETE ─▶ server        server ─▶ WhepClient ─▶ Stream
//!              └─ Peer on a media thread ═▶                          Publisher on a media thread
//! ```
//!
//! Both are the same state machine over a [`WhipSignaling`] and a [`WebRtcSession`]: a session is asked for, lives, ends, and the
//! next one is asked for after a pause. Our offers carry all candidates, so no PATCH is ever sent: nothing can fail that a server does not have.

mod files;
mod http;
mod machine;
pub mod mesh;
pub mod reference;
mod session;
mod signaling;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::http::Uri;
use lightpipe_media::stream::Health;
use lightpipe_media::{AccessUnit, Outlet, Stream};
use lightpipe_rtc::SentLayer;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::files::{FileDirection, FileError, FileInfo, FileState, ReceiveFiles};
pub use self::http::{HttpError, tls};
pub use self::mesh::{Company, Mesh, MeshConfig, MeshError, MeshEvent, MeshHandle, MeshPeer};
pub use self::session::WebRtcSession;
pub use self::signaling::{Accepted, HttpSignaling, Reply, SignalingError, WhipSignaling};
pub use self::status::{ClientState, ClientStatus};

use self::machine::Machine;
use self::session::{Direction, EngineSession};
use self::status::SharedStatus;
use crate::media::{MediaEngine, public_part};

/// How often a waiting client looks at its tracks.
const TRACK_CHECK: Duration = Duration::from_millis(20);

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Endpoint, where offers are posted.
    pub url: Uri,
    /// Bearer token, if the server wants one.
    pub token: Option<String>,
    /// How long an offer waits until each of the stream's tracks gives something. Nothing is offered while none does.
    pub wait_for_tracks: Duration,
    /// Offer all of the stream's layers side by side (RFC 8853). A server that takes fewer gets those, one that takes none gets the layer that
    /// its network carries.
    pub simulcast: bool,
}

impl ClientConfig {
    /// Waits 5 s for tracks, and offers simulcast.
    pub const fn new(url: Uri) -> Self {
        Self { url, token: None, wait_for_tracks: Duration::from_secs(5), simulcast: true }
    }
}

/// A running WHIP or WHEP client. Dropping it ends its session with a DELETE, if the runtime lives long enough; [`Self::stop`] waits for that.
#[derive(Debug)]
pub struct Client {
    stream: String,
    host: String,
    status: SharedStatus,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Publishes a stream to a WHIP server, again and again until stopped. Call inside a tokio runtime.
    pub fn publish(engine: Arc<MediaEngine>, stream: Arc<Stream>, config: ClientConfig) -> Self {
        let signaling = HttpSignaling::whip(config.url.clone(), config.token.clone());
        let direction = Direction::Push { simulcast: config.simulcast };
        let session = EngineSession::new(engine, Arc::clone(&stream), direction);
        let wait = config.wait_for_tracks;
        let ready = {
            let stream = Arc::clone(&stream);
            move || wait_for_tracks(Arc::clone(&stream), wait)
        };
        Self::with_parts(stream.name(), &config.url, signaling, session, ready)
    }

    /// Feeds a stream with what a WHEP server sends, again and again until stopped. Call inside a tokio runtime.
    pub fn play(engine: Arc<MediaEngine>, stream: Arc<Stream>, config: ClientConfig) -> Self {
        let signaling = HttpSignaling::whep(config.url.clone(), config.token.clone());
        // Who comes before the server's answer is told of sound: a line that stays silent does no harm, a missing one would.
        stream.add_audio();
        let session = EngineSession::new(engine, Arc::clone(&stream), Direction::Play);
        let client = Self::with_parts(stream.name(), &config.url, signaling, session, || std::future::ready(()));
        tokio::spawn(show_in_health(client.status.clone(), stream));
        client
    }

    /// The same over other parts: another way to signal, other media. An attempt begins when `ready` resolves.
    pub fn with_parts<S: WhipSignaling, W: WebRtcSession, F: Future<Output = ()> + Send + 'static>(
        stream: &str,
        url: &Uri,
        signaling: S,
        session: W,
        ready: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        let status = SharedStatus::new();
        let (stop, stopped) = watch::channel(false);
        let machine = Machine { signaling, session, status: status.clone(), stop: stopped };
        let task = tokio::spawn(machine.run(ready));
        Self { stream: stream.to_owned(), host: http::host_of(url), status, stop, task: Mutex::new(Some(task)) }
    }

    /// Name of its stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Host and port of its server; the rest of the URL may hold secrets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// State and figures now.
    pub fn status(&self) -> ClientStatus {
        self.status.read(Instant::now())
    }

    /// State and figures, as the API tells them: times in seconds, the engine's id of the present session as in the list of peers.
    pub fn to_json(&self) -> serde_json::Value {
        let status = self.status();
        let in_state: serde_json::Map<String, serde_json::Value> = ClientState::ALL
            .iter()
            .zip(status.in_state)
            .map(|(state, spent)| (state.as_str().to_owned(), spent.as_secs_f64().into()))
            .collect();
        serde_json::json!({
            "stream": self.stream,
            "server": self.host,
            "state": status.state.as_str(),
            "in_state_s": in_state,
            "attempts": status.attempts,
            "sessions": status.sessions,
            "last_error": status.last_error,
            "peer": status.peer.as_ref().map(|peer| public_part(&peer.id).to_owned()),
            "layers": status.peer.as_ref().map(|peer| peer.sent_layers.iter().map(sent_layer).collect::<Vec<_>>()),
        })
    }

    /// Resolves when the state is another one than `known`.
    pub async fn changed(&self, known: ClientState) -> ClientStatus {
        self.status.changed(known).await
    }

    /// Asks it to end, without waiting.
    pub fn request_stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Ends the session, with its DELETE, and waits for that: up to about 4 s when the server does not answer.
    pub async fn stop(&self) {
        self.request_stop();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.request_stop();
    }
}

/// One RID that we send.
fn sent_layer(layer: &SentLayer) -> serde_json::Value {
    let c = &layer.counters;
    serde_json::json!({
        "rid": layer.rid,
        "ssrc": layer.ssrc,
        "sent": layer.active,
        "sent_packets": c.sent_packets,
        "sent_bytes": c.sent_bytes,
        "sent_frames": c.sent_frames,
        "drops": { "wait_keyframe": c.dropped_wait_keyframe, "backlog": c.dropped_backlog },
        "nacks": c.nacks,
        "plis": c.keyframe_requests,
        "loss": c.loss,
    })
}

/// A stream without its server says why.
async fn show_in_health(status: SharedStatus, stream: Arc<Stream>) {
    let mut known = ClientState::WaitingForTracks;
    while !known.is_end() {
        let now = status.changed(known).await;
        known = now.state;
        if matches!(known, ClientState::BackingOff | ClientState::Refused) {
            stream.set_health(Health::Failed(now.last_error.unwrap_or_default()));
        }
    }
}

/// The clients of a process.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    all: Arc<Mutex<Vec<Arc<Client>>>>,
}

impl Clients {
    /// Takes one more.
    pub fn add(&self, client: Client) -> Arc<Client> {
        let client = Arc::new(client);
        self.lock().push(Arc::clone(&client));
        client
    }

    /// All, in the order of their beginning.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.lock().clone()
    }

    /// Ends all at once, and waits.
    pub async fn stop(&self) {
        let all = std::mem::take(&mut *self.lock());
        all.iter().for_each(|client| client.request_stop());
        for client in all {
            client.stop().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes a stream's encoders up before anybody takes what they give.
struct Waker;

impl Outlet for Waker {
    fn deliver(&self, _: &Arc<AccessUnit>) {}

    /// It stands for the server that will take them: nothing is encoded better for it meanwhile.
    fn has_network(&self) -> bool {
        true
    }
}

/// Resolves when each track of the stream gave something, or one did and `limit` is over.
pub async fn wait_for_tracks(stream: Arc<Stream>, limit: Duration) {
    let _awake = stream.subscribe(Arc::new(Waker));
    let before = stream.stats();
    let started = tokio::time::Instant::now();
    loop {
        let stats = stream.stats();
        let pictures = stats.published > before.published;
        let sound = stats.audio.published > before.audio.published;
        let all = (pictures || !stream.has_video()) && (sound || !stream.has_audio());
        if all || ((pictures || sound) && started.elapsed() >= limit) {
            return;
        }
        tokio::time::sleep(TRACK_CHECK).await;
    }
}
