//! WebSocket signalling, dialects *plain*, *room* and *JSON-RPC*; the first message decides which.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::SinkExt;
use lightpipe_media::Stream;
use lightpipe_rtc::{Candidate, DisconnectCause};
use lightpipe_signal::conference::{ANNOUNCE_LIMIT, Conference};
use lightpipe_signal::message::{MAX_MESSAGE_LEN, Route};
use lightpipe_signal::room::{BOT, Destination};
use lightpipe_signal::{ClientMessage, Rooms, ServerMessage, jsonrpc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use super::App;
use super::problem::{Problem, describe};
use crate::media::Transport;

/// Messages on their way to one client: more than another one may say in a second. A client that does not read its signalling is closed.
const OUTGOING: usize = 256;

/// A silent client is closed after this.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// Messages per second of one client; more are a mistake or an attack.
const MESSAGES_PER_SECOND: u32 = 200;

/// Candidates that may come before their offer was answered.
const EARLY_CANDIDATES: usize = 64;

/// The rooms and the connections in them.
pub(crate) struct RoomHub {
    rooms: Mutex<Rooms>,
    conference: Mutex<Conference>,
    connections: Mutex<HashMap<u64, mpsc::Sender<String>>>,
    next_id: AtomicU64,
}

impl RoomHub {
    pub(crate) fn new(rooms: Mutex<Rooms>) -> Self {
        Self { rooms, conference: Mutex::default(), connections: Mutex::default(), next_id: AtomicU64::new(1) }
    }

    fn conference(&self) -> MutexGuard<'_, Conference> {
        self.conference.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<String>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_to(&self, id: u64, text: String) {
        let mut connections = self.connections();
        if connections.get(&id).is_some_and(|sender| sender.try_send(text).is_err()) {
            // Its queue is full or it is gone. Without a sender its conversation ends after what is queued.
            connections.remove(&id);
        }
    }
}

/// Removes a connection from rooms and tables however it ends.
struct Member {
    app: App,
    id: u64,
    viewers: HashMap<String, u64>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.app.rooms.connections().remove(&self.id);
        let goodbyes = self.app.rooms.rooms().leave(self.id);
        for (to, message) in goodbyes {
            self.app.rooms.send_to(to, message.to_json());
        }
        let goodbyes = self.app.rooms.conference().gone(self.id);
        for (to, text) in goodbyes {
            self.app.rooms.send_to(to, text);
        }
        for key in self.viewers.values() {
            self.app.engine.close(*key, DisconnectCause::SignallingClosed);
        }
    }
}

pub(crate) async fn upgrade(
    State(app): State<App>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !same_origin(&headers) {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "WebSocket signalling from another origin is refused.",
        )
        .into_response();
    }
    if !app.limiter.admit(from.ip(), Instant::now()) {
        return Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            "Too many connections from this address.",
        )
        .into_response();
    }
    upgrade
        .max_message_size(MAX_MESSAGE_LEN)
        .max_frame_size(MAX_MESSAGE_LEN)
        .on_upgrade(move |socket| converse(app, socket))
}

/// Browsers always send `Origin`; programs usually none. A page of another site must not use its visitor's network position.
fn same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|v| v.to_str().ok()) else { return true };
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
}

async fn converse(app: App, mut socket: WebSocket) {
    let id = app.rooms.next_id.fetch_add(1, Relaxed);
    let (sender, mut outgoing) = mpsc::channel(OUTGOING);
    app.rooms.connections().insert(id, sender);
    let mut stopping = app.stopping.clone();
    let mut session = Conversation {
        member: Member { app, id, viewers: HashMap::new() },
        rpc: None,
        room: None,
        early: Vec::new(),
        closed: JoinSet::new(),
    };
    let mut budget = Budget::new(Instant::now());
    let announced_by = tokio::time::sleep(ANNOUNCE_LIMIT);
    tokio::pin!(announced_by);
    let mut may_be_mute = false;
    loop {
        tokio::select! {
            text = outgoing.recv() => {
                let Some(text) = text else { break };
                if socket.send(Message::Text(text.into())).await.is_err() { break }
            }
            message = tokio::time::timeout(IDLE_LIMIT, socket.recv()) => {
                let text = match message {
                    Err(_) => { close(&mut socket, close_code::POLICY, "nothing was said for five minutes").await; break }
                    Ok(None | Some(Err(_) | Ok(Message::Close(_)))) => break,
                    Ok(Some(Ok(Message::Text(text)))) => text,
                    Ok(Some(Ok(Message::Binary(_)))) => { close(&mut socket, close_code::UNSUPPORTED, "signalling is text").await; break }
                    Ok(Some(Ok(_))) => continue,
                };
                if !budget.take(Instant::now()) {
                    close(&mut socket, close_code::POLICY, "too many messages").await;
                    break;
                }
                let mut failed = false;
                for reply in session.on_text(&text).await {
                    failed |= socket.send(Message::Text(reply.into())).await.is_err();
                }
                if failed { break }
            }
            () = &mut announced_by, if !may_be_mute => {
                if session.is_unannounced() {
                    close(&mut socket, close_code::POLICY, "no peer.announce within ten seconds").await;
                    break;
                }
                may_be_mute = true;
            }
            Some(Ok(cause)) = session.closed.join_next() => {
                let reply = ServerMessage::error(cause.as_str(), cause.sentence());
                if socket.send(Message::Text(reply.to_json().into())).await.is_err() { break }
            }
            // The guard that `wait_for` gives must not live across the close below.
            () = async { drop(stopping.wait_for(|stop| *stop).await) } => {
                close(&mut socket, close_code::AWAY, "the server is shutting down").await;
                break;
            }
        }
    }
    debug!(connection = id, "signalling connection ends");
}

async fn close(socket: &mut WebSocket, code: u16, reason: &'static str) {
    let _ = socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    let _ = socket.flush().await;
}

/// Messages that a client may still send in the current second.
struct Budget {
    since: Instant,
    left: u32,
}

impl Budget {
    const fn new(now: Instant) -> Self {
        Self { since: now, left: MESSAGES_PER_SECOND }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let admitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        admitted
    }
}

struct Conversation {
    member: Member,
    /// Whether it is held in JSON-RPC; the first message tells.
    rpc: Option<bool>,
    /// Set by `join`: the dialect is *room*.
    room: Option<String>,
    early: Vec<(String, Candidate)>,
    /// Each ends with the cause when a session does.
    closed: JoinSet<DisconnectCause>,
}

/// The only peer of the plain dialect.
const PLAIN: &str = "";

impl Conversation {
    async fn on_text(&mut self, text: &str) -> Vec<String> {
        if *self.rpc.get_or_insert_with(|| jsonrpc::opens(text)) {
            let rooms = &self.member.app.rooms;
            let (answer, told) = rooms.conference().message(Instant::now(), self.member.id, text);
            for (to, text) in told {
                rooms.send_to(to, text);
            }
            return answer.into_iter().collect();
        }
        self.on_message(text).await.iter().map(ServerMessage::to_json).collect()
    }

    /// In JSON-RPC, and still nobody.
    fn is_unannounced(&self) -> bool {
        self.rpc == Some(true) && !self.member.app.rooms.conference().knows(self.member.id)
    }

    async fn on_message(&mut self, text: &str) -> Vec<ServerMessage> {
        let message = match ClientMessage::parse(text) {
            Ok(message) => message,
            Err(error) => return vec![ServerMessage::error("bad_message", error)],
        };
        let app = self.member.app.clone();
        match message {
            ClientMessage::Ready { .. } => vec![ServerMessage::Ready { streams: app.streams.names() }],
            ClientMessage::Join { room, from } => self.join(&room, &from),
            ClientMessage::Leave => {
                self.room = None;
                let goodbyes = app.rooms.rooms().leave(self.member.id);
                for (to, message) in goodbyes {
                    app.rooms.send_to(to, message.to_json());
                }
                for (_, key) in self.member.viewers.drain() {
                    app.engine.close(key, DisconnectCause::SignallingClosed);
                }
                Vec::new()
            }
            ClientMessage::Offer { sdp, route: Some(route), .. } => match self.destination(&route) {
                Ok(Destination::Stream(peer)) => vec![self.offer_to_bot(&route, &peer, sdp).await],
                Ok(Destination::Connection(to)) => self.forward(to, text),
                Err(reply) => vec![reply],
            },
            ClientMessage::Offer { sdp, stream, route: None } => vec![self.plain_offer(stream, sdp).await],
            ClientMessage::Ice { candidate, route } => {
                let peer = match &route {
                    None => PLAIN.to_owned(),
                    Some(route) => match self.destination(route) {
                        Ok(Destination::Stream(peer)) => peer,
                        Ok(Destination::Connection(to)) => return self.forward(to, text),
                        Err(reply) => return vec![reply],
                    },
                };
                self.ice(&peer, &candidate.candidate)
            }
            ClientMessage::Answer { route: Some(route), .. } => match self.destination(&route) {
                Ok(Destination::Connection(to)) => self.forward(to, text),
                Ok(Destination::Stream(_)) => {
                    vec![ServerMessage::error("unexpected_answer", "streams answer offers, they make none")]
                }
                Err(reply) => vec![reply],
            },
            ClientMessage::Answer { route: None, .. } => {
                vec![ServerMessage::error("unexpected_answer", "the server makes no offers here")]
            }
            _ => vec![ServerMessage::error("bad_message", "not understood")],
        }
    }

    fn join(&mut self, room: &str, from: &str) -> Vec<ServerMessage> {
        let app = &self.member.app;
        let joined = app.rooms.rooms().join(self.member.id, room, from, &app.streams.names());
        match joined {
            Ok(messages) => {
                self.room = Some(room.to_owned());
                let (mine, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(|(to, _)| *to == self.member.id);
                for (to, message) in others {
                    app.rooms.send_to(to, message.to_json());
                }
                mine.into_iter().map(|(_, message)| message).collect()
            }
            Err(error) => vec![ServerMessage::error(error.code(), error)],
        }
    }

    fn destination(&self, route: &Route) -> Result<Destination, ServerMessage> {
        let app = &self.member.app;
        app.rooms
            .rooms()
            .route(self.member.id, &route.from, &route.to, &app.streams.names())
            .map_err(|error| ServerMessage::error(error.code(), error))
    }

    fn forward(&self, to: u64, text: &str) -> Vec<ServerMessage> {
        self.member.app.rooms.send_to(to, text.to_owned());
        Vec::new()
    }

    async fn plain_offer(&mut self, stream: Option<String>, sdp: String) -> ServerMessage {
        let app = self.member.app.clone();
        let found = match &stream {
            Some(name) => app.streams.find(name),
            None => app.streams.default_stream(),
        };
        let Some(found) = found else {
            let Problem(refusal) =
                Problem::no_such_stream(stream.as_deref().unwrap_or("(default)"), &app.streams.names());
            return ServerMessage::error(refusal.cause, refusal.detail);
        };
        match self.negotiate(PLAIN, found, sdp, Transport::WsPlain).await {
            Ok(sdp) => ServerMessage::Answer { sdp, room: None, from: None, to: None },
            Err(reply) => reply,
        }
    }

    async fn offer_to_bot(&mut self, route: &Route, peer: &str, sdp: String) -> ServerMessage {
        let app = self.member.app.clone();
        let found = if peer == BOT { app.streams.default_stream() } else { app.streams.find(peer) };
        let Some(found) = found else { return ServerMessage::error("peer_not_found", format!("{peer} has no stream")) };
        match self.negotiate(peer, found, sdp, Transport::WsRoom).await {
            Ok(sdp) => ServerMessage::Answer {
                sdp,
                room: self.room.clone(),
                from: Some(peer.to_owned()),
                to: Some(route.from.clone()),
            },
            Err(reply) => reply,
        }
    }

    /// A first offer makes a session, a later one renegotiates it.
    async fn negotiate(
        &mut self,
        peer: &str,
        stream: Arc<Stream>,
        sdp: String,
        transport: Transport,
    ) -> Result<String, ServerMessage> {
        let engine = Arc::clone(&self.member.app.engine);
        let refuse = |error: crate::media::ViewerError| ServerMessage::error(describe(&error).1, error);
        if let Some(key) = self.member.viewers.get(peer).copied() {
            match engine.reoffer(key, sdp.clone()).await {
                Ok(answer) => return Ok(answer),
                // The page made a new peer connection on the same socket (a reload of the player): the old session is over.
                Err(_) => engine.close(key, DisconnectCause::ClosedByPeer),
            }
        }
        let mut viewer = tokio::task::spawn_blocking(move || engine.add_viewer(&stream, &sdp, transport))
            .await
            .map_err(|_| ServerMessage::error("engine_failed", "the session could not be set up"))?
            .map_err(refuse)?;
        self.member.viewers.insert(peer.to_owned(), viewer.key);
        self.closed.spawn(async move { viewer.phase.closed().await });
        let engine = &self.member.app.engine;
        self.early.retain(|(to, candidate)| {
            if to == peer {
                engine.add_candidate(viewer.key, candidate.clone());
            }
            to != peer
        });
        Ok(viewer.sdp)
    }

    fn ice(&mut self, peer: &str, text: &str) -> Vec<ServerMessage> {
        match Candidate::parse(text) {
            Ok(candidate) => {
                match self.member.viewers.get(peer) {
                    Some(key) => self.member.app.engine.add_candidate(*key, candidate),
                    // Real clients trickle before their offer went out.
                    None if self.early.len() < EARLY_CANDIDATES => self.early.push((peer.to_owned(), candidate)),
                    None => return vec![ServerMessage::error("too_many_candidates", "candidates without an offer")],
                }
                Vec::new()
            }
            Err(error) => vec![ServerMessage::error("bad_candidate", error)],
        }
    }
}
