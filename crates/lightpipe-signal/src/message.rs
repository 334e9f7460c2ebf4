//! WebSocket messages, dialects *plain* and *room*, as real clients send them.
//!
//! Plain: `{"type":"offer","sdp":…}` is answered by `{"type":"answer","sdp":…}`, both sides send
//! `{"type":"ice","candidate":…,"sdpMLineIndex":…}`; `"stream"` chooses one, `{"type":"ready"}` may come first.
//! Room: `join`, `leave`, `offer`, `answer`, `ice_candidate`, each with `from` and `to`. The first message decides
//! the dialect: a `join` makes it *room*.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest message accepted, bytes.
pub const MAX_MESSAGE_LEN: usize = 1 << 20;
/// Longest SDP inside a message, bytes.
pub const MAX_SDP_LEN: usize = 64 << 10;

/// A candidate, whatever form it came in: a string, an object, or a string that holds an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CandidateInit {
    /// The candidate attribute; empty at the end of candidates.
    pub candidate: String,
    /// The m-line's mid, if given.
    pub sdp_mid: Option<String>,
    /// The m-line's index, if given.
    pub sdp_m_line_index: Option<u16>,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientMessage {
    /// "Tell me when you are": answered by `ready`.
    Ready {
        /// The stream that it will ask for.
        stream: Option<String>,
    },
    /// An offer.
    Offer {
        /// Its SDP.
        sdp: String,
        /// Plain dialect: the stream, or the default one.
        stream: Option<String>,
        /// Room dialect: from whom to whom.
        route: Option<Route>,
    },
    /// An answer, in rooms between browsers.
    Answer {
        /// Its SDP.
        sdp: String,
        /// From whom to whom.
        route: Option<Route>,
    },
    /// A candidate.
    Ice {
        /// The candidate.
        candidate: CandidateInit,
        /// Room dialect: from whom to whom.
        route: Option<Route>,
    },
    /// Enter a room.
    Join {
        /// Its name.
        room: String,
        /// Who.
        from: String,
    },
    /// Leave the room.
    Leave,
}

/// Sender and receiver of a room message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Who says it.
    pub from: String,
    /// To whom.
    pub to: String,
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Over a size limit.
    #[error("{what} is {len} bytes, {limit} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// No JSON object.
    #[error("not a JSON object: {0}")]
    NotJson(String),
    /// A required field is missing or of another type.
    #[error("field {0:?} is missing or of the wrong type")]
    Field(&'static str),
    /// A `type` that we do not know.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// A name that breaks `^[A-Za-z0-9_-]{1,64}$`.
    #[error("{0:?} is not a valid name: 1 to 64 letters, digits, '_' or '-'")]
    BadName(String),
}

impl ClientMessage {
    /// Parses one text message.
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        check_len("the message", text.len(), MAX_MESSAGE_LEN)?;
        let value: Value = serde_json::from_str(text).map_err(|e| MessageError::NotJson(e.to_string()))?;
        if !value.is_object() {
            return Err(MessageError::NotJson("another JSON type".into()));
        }
        let kind = string(&value, "type")?.ok_or(MessageError::Field("type"))?;
        match kind.as_str() {
            "ready" => Ok(Self::Ready { stream: string(&value, "stream")? }),
            "offer" => Ok(Self::Offer { sdp: sdp(&value)?, stream: string(&value, "stream")?, route: route(&value)? }),
            "answer" => Ok(Self::Answer { sdp: sdp(&value)?, route: route(&value)? }),
            "ice" | "ice_candidate" | "candidate" => {
                Ok(Self::Ice { candidate: candidate(&value)?, route: route(&value)? })
            }
            "join" => Ok(Self::Join {
                room: name(string(&value, "room")?.ok_or(MessageError::Field("room"))?)?,
                from: name(string(&value, "from")?.ok_or(MessageError::Field("from"))?)?,
            }),
            "leave" | "bye" => Ok(Self::Leave),
            _ => Err(MessageError::UnknownType(kind.chars().take(40).collect())),
        }
    }
}

fn check_len(what: &'static str, len: usize, limit: usize) -> Result<(), MessageError> {
    if len > limit { Err(MessageError::TooLarge { what, len, limit }) } else { Ok(()) }
}

/// An optional string field; `null` counts as absent.
fn string(value: &Value, field: &'static str) -> Result<Option<String>, MessageError> {
    match value.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(MessageError::Field(field)),
    }
}

/// The SDP: a string, or an `RTCSessionDescription` object with one inside.
fn sdp(value: &Value) -> Result<String, MessageError> {
    let sdp = match value.get("sdp") {
        Some(Value::String(text)) => text.clone(),
        Some(inner @ Value::Object(_)) => string(inner, "sdp")?.ok_or(MessageError::Field("sdp"))?,
        _ => return Err(MessageError::Field("sdp")),
    };
    check_len("the SDP", sdp.len(), MAX_SDP_LEN)?;
    Ok(sdp)
}

fn route(value: &Value) -> Result<Option<Route>, MessageError> {
    match (string(value, "from")?, string(value, "to")?) {
        (Some(from), Some(to)) => Ok(Some(Route { from: name(from)?, to: name(to)? })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(MessageError::Field("from")),
        (Some(_), None) => Err(MessageError::Field("to")),
    }
}

/// Whether this may name a peer, a room or a stream (every stream is a peer of every room).
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Checks a peer id or room name.
pub fn name(text: String) -> Result<String, MessageError> {
    if is_name(&text) { Ok(text) } else { Err(MessageError::BadName(text.chars().take(80).collect())) }
}

fn candidate(message: &Value) -> Result<CandidateInit, MessageError> {
    let index = |v: &Value| {
        v.get("sdpMLineIndex")
            .or_else(|| v.get("sdp_m_line_index"))
            .and_then(Value::as_u64)
            .and_then(|n| u16::try_from(n).ok())
    };
    let mid = |v: &Value| v.get("sdpMid").or_else(|| v.get("sdp_mid")).and_then(Value::as_str).map(str::to_owned);
    let from_object = |v: &Value| -> Result<CandidateInit, MessageError> {
        let candidate = string(v, "candidate")?.unwrap_or_default();
        check_len("the candidate", candidate.len(), 2048)?;
        Ok(CandidateInit { candidate, sdp_mid: mid(v), sdp_m_line_index: index(v) })
    };
    match message.get("candidate") {
        None | Some(Value::Null) => Ok(CandidateInit::default()),
        Some(object @ Value::Object(_)) => from_object(object),
        Some(Value::String(text)) if text.trim_start().starts_with('{') => {
            let inner: Value = serde_json::from_str(text).map_err(|_| MessageError::Field("candidate"))?;
            from_object(&inner)
        }
        Some(Value::String(_)) => from_object(message),
        Some(_) => Err(MessageError::Field("candidate")),
    }
}

/// What we say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServerMessage {
    /// We listen; these streams are there.
    Ready {
        /// Names, the default one first.
        streams: Vec<String>,
    },
    /// Answer to an offer.
    Answer {
        /// Its SDP, all our candidates inside.
        sdp: String,
        /// Room dialect only.
        #[serde(skip_serializing_if = "Option::is_none")]
        room: Option<String>,
        /// Room dialect only.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// Room dialect only.
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    /// Somebody is in the room.
    Join {
        /// The room.
        room: String,
        /// Who.
        from: String,
    },
    /// Somebody left it.
    Leave {
        /// The room.
        room: String,
        /// Who.
        from: String,
    },
    /// Something was wrong with what the client said.
    Error {
        /// Machine-readable.
        code: String,
        /// One sentence.
        message: String,
    },
}

impl ServerMessage {
    /// The message's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings under fixed keys always serialize")
    }

    /// An error message.
    pub fn error(code: &str, message: impl std::fmt::Display) -> Self {
        Self::Error { code: code.into(), message: message.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<ClientMessage, MessageError>) {
        assert_eq!(ClientMessage::parse(text), expected, "{text}");
    }

    fn ice(candidate: &str, index: Option<u16>) -> ClientMessage {
        let candidate = CandidateInit { candidate: candidate.into(), sdp_mid: None, sdp_m_line_index: index };
        ClientMessage::Ice { candidate, route: None }
    }

    #[test]
    fn messages_of_real_clients() {
        check(
            r#"{"type":"offer","sdp":"v=0"}"#,
            Ok(ClientMessage::Offer { sdp: "v=0".into(), stream: None, route: None }),
        );
        check(
            r#"{"type":"offer","sdp":{"type":"offer","sdp":"v=0"},"stream":"cube"}"#,
            Ok(ClientMessage::Offer { sdp: "v=0".into(), stream: Some("cube".into()), route: None }),
        );
        check(r#"{"type":"ready"}"#, Ok(ClientMessage::Ready { stream: None }));
        check(r#"{"type":"ice","candidate":"candidate:1","sdpMLineIndex":0}"#, Ok(ice("candidate:1", Some(0))));
        check(r#"{"type":"ice_candidate","candidate":"candidate:1"}"#, Ok(ice("candidate:1", None)));
        check(
            r#"{"type":"ice","candidate":{"candidate":"candidate:1","sdpMLineIndex":1}}"#,
            Ok(ice("candidate:1", Some(1))),
        );
        check(
            r#"{"type":"ice","candidate":"{\"candidate\":\"candidate:1\",\"sdpMLineIndex\":0}"}"#,
            Ok(ice("candidate:1", Some(0))),
        );
        check(r#"{"type":"ice","candidate":null}"#, Ok(ice("", None)));
        check(
            r#"{"type":"join","room":"R","from":"me"}"#,
            Ok(ClientMessage::Join { room: "R".into(), from: "me".into() }),
        );
        check(
            r#"{"type":"offer","from":"me","to":"ffmpeg-bot","sdp":"v=0"}"#,
            Ok(ClientMessage::Offer {
                sdp: "v=0".into(),
                stream: None,
                route: Some(Route { from: "me".into(), to: "ffmpeg-bot".into() }),
            }),
        );
        check(r#"{"type":"leave","from":"me"}"#, Ok(ClientMessage::Leave));
    }

    #[test]
    fn bad_messages_are_named() {
        check("[]", Err(MessageError::NotJson("another JSON type".into())));
        check("{}", Err(MessageError::Field("type")));
        check(r#"{"type":7}"#, Err(MessageError::Field("type")));
        check(r#"{"type":"offer"}"#, Err(MessageError::Field("sdp")));
        check(r#"{"type":"offer","sdp":4}"#, Err(MessageError::Field("sdp")));
        check(r#"{"type":"ice","candidate":[1]}"#, Err(MessageError::Field("candidate")));
        check(r#"{"type":"ice","candidate":"{oops"}"#, Err(MessageError::Field("candidate")));
        check(r#"{"type":"dance"}"#, Err(MessageError::UnknownType("dance".into())));
        check(r#"{"type":"join","room":"../x","from":"me"}"#, Err(MessageError::BadName("../x".into())));
        check(r#"{"type":"join","room":"R"}"#, Err(MessageError::Field("from")));
        check(r#"{"type":"offer","sdp":"v=0","from":"me"}"#, Err(MessageError::Field("to")));
        let big = format!(r#"{{"type":"offer","sdp":"{}"}}"#, "x".repeat(MAX_SDP_LEN + 1));
        check(&big, Err(MessageError::TooLarge { what: "the SDP", len: MAX_SDP_LEN + 1, limit: MAX_SDP_LEN }));
        let huge = " ".repeat(MAX_MESSAGE_LEN + 1);
        assert!(matches!(ClientMessage::parse(&huge), Err(MessageError::TooLarge { what: "the message", .. })));
        assert!(matches!(ClientMessage::parse("{"), Err(MessageError::NotJson(_))));
    }

    #[test]
    fn server_messages_have_their_documented_form() {
        let plain = ServerMessage::Answer { sdp: "v=0".into(), room: None, from: None, to: None };
        assert_eq!(plain.to_json(), r#"{"type":"answer","sdp":"v=0"}"#);
        assert_eq!(
            ServerMessage::error("no_such_stream", "gone").to_json(),
            r#"{"type":"error","code":"no_such_stream","message":"gone"}"#
        );
    }
}
