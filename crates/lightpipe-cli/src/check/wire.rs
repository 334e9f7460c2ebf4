//! The signalling checker's WebSocket client: one message at a time, and every way in which a server may end a conversation is an answer.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Uri, header};
use rustls_platform_verifier::BuilderVerifierExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::{IntoClientRequest, client_with_config};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::Flaw;

/// An answer must be there within this.
const LIMIT: Duration = Duration::from_secs(3);

/// What is not to come is waited for so long.
const QUIET: Duration = Duration::from_millis(150);

/// How often a server that limits how fast connections come is asked again, a second later.
const RETRIES: usize = 5;

trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// No conversation came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("the address")]
    Address(#[source] std::io::Error),
    #[error("TLS")]
    Tls(#[source] rustls::Error),
    #[error("the WebSocket handshake")]
    Handshake(#[source] Box<Error>),
    #[error("the URL has no host")]
    NoHost,
}

impl From<Unreachable> for Flaw {
    fn from(error: Unreachable) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Failed(format!("no connection: {error}{cause}"))
    }
}

/// A message, or the end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    /// JSON.
    Message(Value),
    /// The server ended it, with this code if it said one.
    Closed(Option<u16>),
    /// Nothing within the limit.
    Nothing,
}

/// A connection to the server under test.
pub(crate) struct Wire {
    socket: WebSocket<Box<dyn Duplex>>,
    tcp: TcpStream,
    next_id: u64,
    /// Notifications that came while an answer was waited for.
    news: VecDeque<Value>,
}

impl Wire {
    /// Connects; again where the server limits how fast one comes.
    pub(crate) fn open(url: &Uri, token: Option<&str>) -> Result<Self, Unreachable> {
        let mut tries = 0;
        loop {
            match Self::open_once(url, token) {
                Err(Unreachable::Handshake(error))
                    if tries < RETRIES
                        && matches!(&*error, Error::Http(answer) if matches!(answer.status().as_u16(), 429 | 503)) =>
                {
                    tries += 1;
                    std::thread::sleep(Duration::from_secs(1));
                }
                other => return other,
            }
        }
    }

    fn open_once(url: &Uri, token: Option<&str>) -> Result<Self, Unreachable> {
        let host = url.host().ok_or(Unreachable::NoHost)?.trim_matches(['[', ']']);
        let tls = url.scheme_str() == Some("wss");
        let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).map_err(Unreachable::Address)?;
        let prepared = tcp
            .set_nodelay(true)
            .and_then(|()| tcp.set_read_timeout(Some(LIMIT)))
            .and_then(|()| tcp.set_write_timeout(Some(LIMIT)));
        prepared.map_err(Unreachable::Address)?;
        let handle = tcp.try_clone().map_err(Unreachable::Address)?;
        let stream: Box<dyn Duplex> =
            if tls { Box::new(encrypted(host, tcp).map_err(Unreachable::Tls)?) } else { Box::new(tcp) };
        let handshake = |error: Error| Unreachable::Handshake(Box::new(error));
        let mut request = url.into_client_request().map_err(handshake)?;
        if let Some(token) = token {
            let value = format!("Bearer {token}")
                .parse()
                .map_err(|error: header::InvalidHeaderValue| handshake(error.into()))?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        // What is larger than servers take is sent on purpose.
        let config = WebSocketConfig::default().max_write_buffer_size(usize::MAX);
        match client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => Ok(Self { socket, tcp: handle, next_id: 1000, news: VecDeque::new() }),
            Err(HandshakeError::Failure(error)) => Err(handshake(error)),
            Err(HandshakeError::Interrupted(_)) => Err(handshake(Error::Io(std::io::ErrorKind::TimedOut.into()))),
        }
    }

    pub(crate) fn say(&mut self, text: impl Into<String>) -> Result<(), Flaw> {
        self.socket
            .send(Message::text(text.into()))
            .map_err(|error| Flaw::Failed(format!("the server hung up before it: {error}")))
    }

    /// Bytes in a frame of text or of bytes, whatever they are; the server may hang up in the middle of it.
    pub(crate) fn say_raw(&mut self, text: bool, bytes: Vec<u8>) {
        let kind = if text { Data::Text } else { Data::Binary };
        _ = self.socket.send(Message::Frame(Frame::message(bytes, OpCode::Data(kind), true)));
    }

    /// As much of it as the server takes.
    pub(crate) fn say_often(&mut self, text: &str, times: usize) {
        for _ in 0..times {
            if self.socket.send(Message::text(text.to_owned())).is_err() {
                break;
            }
        }
    }

    pub(crate) fn hear_within(&mut self, limit: Duration) -> Heard {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Nothing;
            }
            if self.tcp.set_read_timeout(Some(left)).is_err() {
                return Heard::Closed(None);
            }
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    // What is no JSON is no answer of this protocol either; the rows say what they expected instead.
                    return Heard::Message(
                        serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.to_string())),
                    );
                }
                Ok(Message::Close(frame)) => return Heard::Closed(frame.map(|frame| frame.code.into())),
                Ok(_) => {}
                Err(Error::Io(error))
                    if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(_) => return Heard::Closed(None),
            }
        }
    }

    /// The next answer; notifications before it are kept.
    pub(crate) fn answer(&mut self) -> Result<Value, Flaw> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.hear_within(deadline.saturating_duration_since(Instant::now())) {
                Heard::Message(news) if news.get("method").is_some() && news.get("id").is_none() => {
                    self.news.push_back(news)
                }
                Heard::Message(answer) => return Ok(answer),
                Heard::Closed(code) => return Err(Flaw::Failed(closed(code))),
                Heard::Nothing => return Err(Flaw::Failed(format!("no answer within {LIMIT:?}"))),
            }
        }
    }

    /// The next notification of this method; others before it are forgotten.
    pub(crate) fn told(&mut self, method: &str) -> Result<Value, Flaw> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let news = match self.news.pop_front() {
                Some(news) => Heard::Message(news),
                None => self.hear_within(deadline.saturating_duration_since(Instant::now())),
            };
            match news {
                Heard::Message(news) if news["method"] == method => return Ok(news["params"].clone()),
                Heard::Message(_) => {}
                Heard::Closed(code) => return Err(Flaw::Failed(format!("no {method}: {}", closed(code)))),
                Heard::Nothing => return Err(Flaw::Failed(format!("no {method} within {LIMIT:?}"))),
            }
        }
    }

    /// What came that nobody asked for, in a moment.
    pub(crate) fn stray(&mut self) -> Option<Value> {
        let news = self.news.pop_front();
        news.or_else(|| match self.hear_within(QUIET) {
            Heard::Message(message) => Some(message),
            Heard::Closed(_) | Heard::Nothing => None,
        })
    }

    /// Forgets what was told so far.
    pub(crate) fn forget(&mut self) {
        while self.stray().is_some() {}
    }

    /// A request: its result, or its error's code.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Result<Result<Value, i64>, Flaw> {
        self.next_id += 1;
        let id = json!(self.next_id);
        self.say(json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string())?;
        let answer = self.answer()?;
        whole(&answer, &id)
    }
}

fn closed(code: Option<u16>) -> String {
    code.map_or_else(
        || "the server closed the connection".to_owned(),
        |code| format!("the server closed the connection ({code})"),
    )
}

/// An answer by §5: its result, or its error's code.
pub(crate) fn whole(answer: &Value, id: &Value) -> Result<Result<Value, i64>, Flaw> {
    let fail = |reason: String| Err(Flaw::Failed(reason));
    let Some(object) = answer.as_object() else { return fail(format!("the answer is no object: {}", short(answer))) };
    if object.get("jsonrpc") != Some(&json!("2.0")) {
        return fail("the answer has no \"jsonrpc\": \"2.0\"".into());
    }
    if object.get("id") != Some(id) {
        return fail(format!("the answer's id is {}, expected {id}", short(&answer["id"])));
    }
    match (object.get("result"), object.get("error")) {
        (Some(result), None) => Ok(Ok(result.clone())),
        (None, Some(error)) => match (error["code"].as_i64(), error["message"].is_string()) {
            (Some(code), true) => Ok(Err(code)),
            _ => fail("the error has no integer code or no message".into()),
        },
        _ => fail("the answer has not exactly one of result and error".into()),
    }
}

/// The beginning of what the server said.
pub(crate) fn short(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

fn encrypted(
    host: &str,
    tcp: TcpStream,
) -> Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>, rustls::Error> {
    let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(cryptography)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::new(config), name)?, tcp))
}
