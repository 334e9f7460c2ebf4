//! The control connection. DevTools and BiDi frame their messages alike: `{id, method, params}` is answered by
//! `{id, result}` or `{id, error}`, and a message without an id is an event.
//!
//! ```text
//!   Page ── Command ──▶ task ── text ──▶ WebSocket ─▶ browser
//!   Page ◀── oneshot ── task ◀── text ── WebSocket ◀─
//!                        ├─ console events ─▶ Consoles
//!                        └─ other events ───▶ broadcast, whoever waits for a load
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::BrowserError;
use crate::console::Consoles;

/// Commands that may wait for the socket; when full the caller waits.
const COMMANDS: usize = 64;
/// Events that may wait for a slow listener; when full it loses the oldest and notices.
const EVENTS: usize = 256;
/// Largest message: a screenshot of a large page as base64.
const MESSAGE_BYTES: usize = 256 << 20;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A message that the browser sent unasked.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// The page that it is about, where the protocol tells in the envelope (CDP session).
    pub(crate) session: Option<String>,
    pub(crate) method: String,
    pub(crate) params: Value,
}

/// Sorts an event: a console message becomes the page's key and a line, all else is passed on.
pub(crate) type Sort = fn(&Event) -> Option<(String, String)>;

#[derive(Debug)]
struct Command {
    session: Option<String>,
    method: &'static str,
    params: Value,
    /// `None` where nobody waits for the answer.
    reply: Option<oneshot::Sender<Result<Value, String>>>,
}

/// The control connection's near end. Its task ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<Event>,
    consoles: Arc<Consoles>,
    longest: Duration,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn connect(url: &str, longest: Duration, sort: Sort) -> Result<Arc<Self>, BrowserError> {
        let config =
            WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES)).max_frame_size(Some(MESSAGE_BYTES));
        let connecting = connect_async_with_config(url, Some(config), true);
        let (socket, _) = tokio::time::timeout(longest, connecting)
            .await
            .map_err(|_| BrowserError::Silent { method: "the WebSocket handshake".to_owned(), waited: longest })?
            .map_err(|error| BrowserError::PeerMisbehaved(format!("WebSocket handshake: {error}")))?;
        let (command_tx, command_rx) = mpsc::channel(COMMANDS);
        let (event_tx, _) = broadcast::channel(EVENTS);
        let consoles = Arc::default();
        let task = tokio::spawn(converse(socket, command_rx, event_tx.clone(), Arc::clone(&consoles), sort));
        Ok(Arc::new(Self { commands: command_tx, events: event_tx, consoles, longest, task }))
    }

    /// Sends a command and waits for its result, as long as the options allow.
    pub(crate) async fn call(
        &self,
        session: Option<&str>,
        method: &'static str,
        params: Value,
    ) -> Result<Value, BrowserError> {
        self.call_within(self.longest, session, method, params).await
    }

    /// Like [`call`](Self::call) with a time limit of its own.
    pub(crate) async fn call_within(
        &self,
        longest: Duration,
        session: Option<&str>,
        method: &'static str,
        params: Value,
    ) -> Result<Value, BrowserError> {
        let (reply_tx, reply_rx) = oneshot::channel();
        let command = Command { session: session.map(str::to_owned), method, params, reply: Some(reply_tx) };
        self.commands.send(command).await.map_err(|_| BrowserError::Disconnected)?;
        match tokio::time::timeout(longest, reply_rx).await {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(Ok(Err(message))) => Err(BrowserError::Refused { method: method.to_owned(), message }),
            Ok(Err(_)) => Err(BrowserError::Disconnected),
            Err(_) => Err(BrowserError::Silent { method: method.to_owned(), waited: longest }),
        }
    }

    /// Sends a command whose answer nobody needs; lost when the connection is gone or its queue full.
    pub(crate) fn tell(&self, session: Option<&str>, method: &'static str, params: Value) {
        _ = self.commands.try_send(Command { session: session.map(str::to_owned), method, params, reply: None });
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits for the first event that `wanted` answers with a value.
    pub(crate) async fn next_event<T>(
        &self,
        events: &mut broadcast::Receiver<Event>,
        what: &str,
        mut wanted: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T, BrowserError> {
        let search = async {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        if let Some(found) = wanted(&event) {
                            return Ok(found);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(BrowserError::Disconnected),
                }
            }
        };
        tokio::select! {
            found = tokio::time::timeout(self.longest, search) => found
                .unwrap_or_else(|_| Err(BrowserError::Silent { method: what.to_owned(), waited: self.longest })),
            // We hold an end of the broadcast ourselves, so only this one tells that the task is gone.
            () = self.commands.closed() => Err(BrowserError::Disconnected),
        }
    }

    pub(crate) fn consoles(&self) -> &Consoles {
        &self.consoles
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(
    mut socket: Socket,
    mut commands: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
    consoles: Arc<Consoles>,
    sort: Sort,
) {
    let mut waiting = HashMap::new();
    let mut last_id: u64 = 0;
    loop {
        tokio::select! {
            command = commands.recv() => {
                let Some(Command { session, method, params, reply }) = command else { return };
                last_id += 1;
                let mut message = json!({ "id": last_id, "method": method, "params": params });
                if let Some(session) = session {
                    message["sessionId"] = Value::String(session);
                }
                if let Some(reply) = reply {
                    waiting.insert(last_id, reply);
                }
                if let Err(error) = socket.send(Message::text(message.to_string())).await {
                    tracing::debug!(%error, "browser connection");
                    return;
                }
            }
            message = socket.next() => {
                let text = match message {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => continue,
                };
                let Ok(message) = serde_json::from_str::<Value>(&text) else {
                    tracing::warn!("the browser sent something that is not JSON");
                    continue;
                };
                match message["id"].as_u64() {
                    Some(id) => {
                        if let Some(reply) = waiting.remove(&id) {
                            _ = reply.send(outcome(message));
                        }
                    }
                    None => {
                        let event = event(message);
                        match sort(&event) {
                            Some((page, line)) => consoles.push(&page, line),
                            // An error means that nobody listens at the moment.
                            None => _ = events.send(event),
                        }
                    }
                }
            }
        }
    }
}

/// CDP: `{error: {message, data?}}`. BiDi: `{type: "error", error: code, message}`.
fn outcome(mut message: Value) -> Result<Value, String> {
    match &message["error"] {
        Value::Null => Ok(message["result"].take()),
        Value::String(code) => Err(format!("{code}: {}", message["message"].as_str().unwrap_or_default())),
        error => {
            let text = error["message"].as_str().unwrap_or("no message");
            Err(match error["data"].as_str() {
                Some(data) => format!("{text} ({data})"),
                None => text.to_owned(),
            })
        }
    }
}

fn event(mut message: Value) -> Event {
    Event {
        session: message["sessionId"].as_str().map(str::to_owned),
        method: message["method"].as_str().unwrap_or_default().to_owned(),
        params: message["params"].take(),
    }
}
