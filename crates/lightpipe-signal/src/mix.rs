//! The data channel `mix`, which a peer opens that mixes a room for each of its members: who speaks, and how loud everybody is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::message::is_name;

/// Label of the channel: ordered and reliable, opened by who mixes (RFC 8832).
pub const LABEL: &str = "mix";

/// Longest message, bytes of JSON.
pub const MAX_MESSAGE_LEN: usize = 4 << 10;

/// Most peers in [`Message::Levels`].
const MAX_LEVELS: usize = 64;

/// A message of the channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Somebody else speaks than before. The first message says who does when the channel opens.
    Speaker {
        /// Who; none while nobody has spoken, or who did has left.
        peer: Option<String>,
    },
    /// How loud those are who are mixed.
    Levels {
        /// dBov, −127 (silence) to 0 (RFC 6464 §3).
        levels: BTreeMap<String, i8>,
    },
}

/// The other side sent no message of this channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no message of the channel mix: {0}")]
pub struct Malformed(String);

impl Message {
    /// Reads a text message.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > MAX_MESSAGE_LEN {
            return Err(Malformed(format!("{} bytes, {MAX_MESSAGE_LEN} are allowed", text.len())));
        }
        let message = serde_json::from_str(text).map_err(|error| Malformed(error.to_string()))?;
        match &message {
            Self::Speaker { peer: Some(peer) } if !is_name(peer) => Err(Malformed("no name of a peer".into())),
            Self::Levels { levels } if levels.len() > MAX_LEVELS => Err(Malformed("too many levels".into())),
            Self::Levels { levels }
                if !levels.iter().all(|(peer, dbov)| is_name(peer) && (-127..=0).contains(dbov)) =>
            {
                Err(Malformed("levels are from -127 to 0, by peer".into()))
            }
            _ => Ok(message),
        }
    }

    /// The message's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers under fixed keys always serialize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_and_nothing_else() {
        let check = |message: Message, text: &str| {
            assert_eq!((message.to_json().as_str(), Message::parse(text)), (text, Ok(message)));
        };
        check(Message::Speaker { peer: Some("ada".into()) }, r#"{"type":"speaker","peer":"ada"}"#);
        check(Message::Speaker { peer: None }, r#"{"type":"speaker","peer":null}"#);
        check(
            Message::Levels { levels: [("ada".to_owned(), -20), ("bob".to_owned(), -127)].into() },
            r#"{"type":"levels","levels":{"ada":-20,"bob":-127}}"#,
        );
        for text in [
            "",
            "{}",
            "[]",
            r#"{"type":"dance"}"#,
            r#"{"type":"speaker","peer":"a b"}"#,
            r#"{"type":"speaker","peer":7}"#,
            r#"{"type":"levels"}"#,
            r#"{"type":"levels","levels":{"ada":1}}"#,
            r#"{"type":"levels","levels":{"ada":-128}}"#,
            r#"{"type":"levels","levels":{"ada":-1e9}}"#,
            r#"{"type":"levels","levels":{"a b":-1}}"#,
        ] {
            assert!(Message::parse(text).is_err(), "{text}");
        }
        assert!(Message::parse(&" ".repeat(MAX_MESSAGE_LEN + 1)).is_err());
    }
}
