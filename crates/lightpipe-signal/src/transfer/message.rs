//! The messages of the data channel `files`: JSON text to agree, binary chunks to carry.

use serde::{Deserialize, Serialize};

use super::MAX_SIZE;

/// Longest control message, bytes.
pub const MAX_CONTROL_LEN: usize = 4 << 10;

/// Number and offset in front of a chunk's bytes.
pub const CHUNK_HEADER_LEN: usize = 12;

/// Most bytes of a file in one chunk: with its header 16 KiB, which every browser takes in one message.
pub const MAX_CHUNK_LEN: usize = (16 << 10) - CHUNK_HEADER_LEN;

/// Longest reason, bytes.
const MAX_REASON_LEN: usize = 256;

/// What names a transfer: 1 to 64 letters, digits, `_` or `-`. The sender makes it at random and says it again when it offers the same file again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TransferId(String);

impl TransferId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TransferId {
    type Error = MessageError;

    fn try_from(text: String) -> Result<Self, MessageError> {
        let text = crate::message::name(text)
            .map_err(|_| MessageError::Malformed("an id is 1 to 64 of A-Za-z0-9_-".into()))?;
        Ok(Self(text))
    }
}

impl From<TransferId> for String {
    fn from(id: TransferId) -> Self {
        id.0
    }
}

impl std::fmt::Display for TransferId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of a whole file; 64 hexadecimal digits in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl TryFrom<String> for Digest {
    type Error = MessageError;

    fn try_from(text: String) -> Result<Self, MessageError> {
        let malformed = || MessageError::Malformed("a sha256 is 64 hexadecimal digits".into());
        let mut digest = [0; 32];
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            let pair = text.get(at..at + 2).ok_or_else(malformed)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        Ok(Self(digest))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A text message. Offer, end and cancel are the sender's, the others the receiver's; either cancels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Will you have this file?
    Offer {
        /// Its transfer.
        id: TransferId,
        /// What names it in chunks, on this connection.
        number: u32,
        /// The file's name, as the sender has it.
        name: String,
        /// Bytes.
        size: u64,
        /// Media type; empty where unknown.
        #[serde(default)]
        mime: String,
    },
    /// Yes, from this byte on.
    Accept {
        /// Which.
        id: TransferId,
        /// What lies before it the receiver has.
        offset: u64,
    },
    /// No.
    Refuse {
        /// Which.
        id: TransferId,
        /// A word for programs, or a sentence.
        #[serde(default)]
        reason: String,
    },
    /// So much of the file is there.
    Progress {
        /// Which.
        id: TransferId,
        /// Bytes from its beginning.
        received: u64,
    },
    /// That was all.
    End {
        /// Which.
        id: TransferId,
        /// Bytes.
        size: u64,
        /// Of the whole file.
        sha256: Digest,
    },
    /// It is whole, and kept.
    Done {
        /// Which.
        id: TransferId,
    },
    /// It is not, and what came of it is thrown away.
    Failed {
        /// Which.
        id: TransferId,
        /// A word for programs, or a sentence.
        #[serde(default)]
        reason: String,
    },
    /// One side has changed its mind.
    Cancel {
        /// Which.
        id: TransferId,
        /// A word for programs, or a sentence.
        #[serde(default)]
        reason: String,
    },
}

impl Control {
    /// Reads a text message.
    pub fn parse(text: &str) -> Result<Self, MessageError> {
        if text.len() > MAX_CONTROL_LEN {
            return Err(MessageError::TooLarge { len: text.len(), limit: MAX_CONTROL_LEN });
        }
        serde_json::from_str(text).map_err(|error| MessageError::Malformed(error.to_string()))
    }

    /// The message's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers under fixed keys always serialize")
    }

    /// Which transfer it is about.
    pub const fn id(&self) -> &TransferId {
        match self {
            Self::Offer { id, .. }
            | Self::Accept { id, .. }
            | Self::Refuse { id, .. }
            | Self::Progress { id, .. }
            | Self::End { id, .. }
            | Self::Done { id }
            | Self::Failed { id, .. }
            | Self::Cancel { id, .. } => id,
        }
    }
}

/// A reason that fits into a message.
pub(super) fn reason(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A piece of a file: a binary message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The offer's number.
    pub number: u32,
    /// Where its bytes belong.
    pub offset: u64,
    /// At least one.
    pub data: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Reads a binary message.
    pub fn parse(message: &'a [u8]) -> Result<Self, MessageError> {
        let Some((number, rest)) = message.split_first_chunk::<4>() else {
            return Err(MessageError::ShortChunk(message.len()));
        };
        let Some((offset, data)) = rest.split_first_chunk::<8>() else {
            return Err(MessageError::ShortChunk(message.len()));
        };
        if data.is_empty() {
            return Err(MessageError::ShortChunk(message.len()));
        }
        if data.len() > MAX_CHUNK_LEN {
            return Err(MessageError::TooLarge { len: message.len(), limit: MAX_CHUNK_LEN + CHUNK_HEADER_LEN });
        }
        let chunk = Self { number: u32::from_be_bytes(*number), offset: u64::from_be_bytes(*offset), data };
        if chunk.offset >= MAX_SIZE {
            return Err(MessageError::Malformed("a chunk behind the end of every file".into()));
        }
        Ok(chunk)
    }

    /// The message's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.number.to_be_bytes()[..], &self.offset.to_be_bytes(), self.data].concat()
    }
}

/// Bytes that are no message of this protocol: the other side's program is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Over a limit.
    #[error("a message of {len} bytes, {limit} are allowed")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// No JSON, or not what its type has.
    #[error("no message of this channel: {0}")]
    Malformed(String),
    /// A binary message without a header, or with nothing behind it.
    #[error("a chunk of {0} bytes, header and all")]
    ShortChunk(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Control) {
        assert_eq!(Control::parse(text), Ok(expected.clone()), "{text}");
        assert_eq!(Control::parse(&expected.to_json()), Ok(expected), "{text} said again");
    }

    fn id() -> TransferId {
        TransferId::try_from("aZ_-9".to_owned()).expect("an id")
    }

    #[test]
    fn every_message_is_read_as_it_is_written() {
        let offer =
            |mime: &str| Control::Offer { id: id(), number: 7, name: "ü.txt".into(), size: 9, mime: mime.into() };
        check(
            r#"{"type":"offer","id":"aZ_-9","number":7,"name":"ü.txt","size":9,"mime":"text/plain"}"#,
            offer("text/plain"),
        );
        check(r#"{"type":"offer","id":"aZ_-9","number":7,"name":"ü.txt","size":9,"later":true}"#, offer(""));
        check(r#"{"type":"accept","id":"aZ_-9","offset":4096}"#, Control::Accept { id: id(), offset: 4096 });
        check(r#"{"type":"refuse","id":"aZ_-9","reason":"no"}"#, Control::Refuse { id: id(), reason: "no".into() });
        check(r#"{"type":"progress","id":"aZ_-9","received":5}"#, Control::Progress { id: id(), received: 5 });
        let sha256 = Digest([0xab; 32]);
        check(
            &format!(r#"{{"type":"end","id":"aZ_-9","size":9,"sha256":"{}"}}"#, "aB".repeat(32)),
            Control::End { id: id(), size: 9, sha256 },
        );
        check(r#"{"type":"done","id":"aZ_-9"}"#, Control::Done { id: id() });
        check(r#"{"type":"failed","id":"aZ_-9"}"#, Control::Failed { id: id(), reason: String::new() });
        check(r#"{"type":"cancel","id":"aZ_-9","reason":"x"}"#, Control::Cancel { id: id(), reason: "x".into() });
    }

    #[test]
    fn what_is_no_message_is_named() {
        for bad in [
            "",
            "hello",
            "[]",
            "7",
            "{}",
            r#"{"type":"dance","id":"a"}"#,
            r#"{"type":"done"}"#,
            r#"{"type":"done","id":""}"#,
            r#"{"type":"done","id":"../a"}"#,
            r#"{"type":"done","id":7}"#,
            r#"{"type":"accept","id":"a","offset":-1}"#,
            r#"{"type":"accept","id":"a","offset":1.5}"#,
            r#"{"type":"accept","id":"a","offset":"1"}"#,
            r#"{"type":"offer","id":"a","number":4294967296,"name":"n","size":1}"#,
            r#"{"type":"end","id":"a","size":1,"sha256":"abc"}"#,
        ] {
            assert!(matches!(Control::parse(bad), Err(MessageError::Malformed(_))), "{bad}: {:?}", Control::parse(bad));
        }
        let digits = "é".repeat(32);
        let bad = format!(r#"{{"type":"end","id":"a","size":1,"sha256":"{digits}"}}"#);
        assert!(matches!(Control::parse(&bad), Err(MessageError::Malformed(_))), "64 bytes, no digits");
        let long = format!(r#"{{"type":"cancel","id":"a","reason":"{}"}}"#, "x".repeat(MAX_CONTROL_LEN));
        assert!(matches!(Control::parse(&long), Err(MessageError::TooLarge { limit: MAX_CONTROL_LEN, .. })));
    }

    #[test]
    fn chunks_have_a_header_and_at_least_a_byte() {
        let bytes = [0, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 42];
        let chunk = Chunk { number: 7, offset: 65_536, data: &[42] };
        assert_eq!((Chunk::parse(&bytes), chunk.to_bytes()), (Ok(chunk), bytes.to_vec()));
        for len in 0..=CHUNK_HEADER_LEN {
            assert_eq!(Chunk::parse(&bytes[..len]), Err(MessageError::ShortChunk(len)));
        }
        assert!(Chunk::parse(&vec![0; 16 << 10]).is_ok());
        let error = MessageError::TooLarge { len: (16 << 10) + 1, limit: 16 << 10 };
        assert_eq!(Chunk::parse(&vec![0; (16 << 10) + 1]), Err(error));
        assert!(matches!(Chunk::parse(&[0xff; 20]), Err(MessageError::Malformed(_))));
    }

    #[test]
    fn reasons_are_cut_between_letters() {
        assert_eq!(reason("no"), "no");
        assert_eq!(reason(&"ä".repeat(200)).chars().count(), 128);
        assert_eq!(reason(&format!("x{}", "ä".repeat(200))).len(), 255);
    }
}
