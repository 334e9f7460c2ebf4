//! Data channels of a connection between equals (RFC 8831): by label, with limits, and with what they still hold.
//!
//! Everything that waits is in one queue for each channel; the engine's own buffer is kept short, because a long one is searched at each
//! acknowledgement. What comes is counted against a rate: a peer that says more than anybody can take loses the channel.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use str0m::Rtc;
use str0m::channel::{ChannelConfig, ChannelData, ChannelId, Reliability};

use crate::control;

/// Longest message, bytes; both sides say so in their SDP (RFC 8841 §6).
pub const MAX_MESSAGE_LEN: usize = 64 << 10;

/// Most that one channel holds for a slow network, bytes.
pub const MAX_BUFFERED: usize = 1 << 20;

/// Most channels of one connection; those that the other side opens beyond are closed.
pub const MAX_CHANNELS: usize = 16;

/// Longest label, bytes.
const MAX_LABEL_LEN: usize = 64;

/// Most messages and bytes that may come in one second: above what a local network carries in messages of a file, below what would
/// fill our memory while the receiver of the messages reads.
const MAX_MESSAGES_PER_SECOND: u32 = 20_000;
const MAX_BYTES_PER_SECOND: usize = 256 << 20;

/// How a channel delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Delivery {
    /// Everything.
    #[default]
    Reliable,
    /// A message is given up after so many retransmissions (RFC 3758).
    MaxRetransmits(u16),
    /// A message is given up so long after it was sent; whole milliseconds, up to 65 s.
    MaxLifetime(Duration),
}

/// A data channel to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInit {
    /// Its name on this connection.
    pub label: String,
    /// Its number, where both sides open it by themselves (RFC 8832 §2); none to tell the other side of it.
    pub id: Option<u16>,
    /// Messages arrive in the order in which they were sent.
    pub ordered: bool,
    /// Whether all of them arrive.
    pub delivery: Delivery,
    /// [`ChannelEvent::Low`] comes when it holds no more than so many bytes again.
    pub low_threshold: usize,
}

impl ChannelInit {
    /// Ordered, reliable, announced to the other side; low at a quarter of what it may hold.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            id: None,
            ordered: true,
            delivery: Delivery::Reliable,
            low_threshold: MAX_BUFFERED / 4,
        }
    }

    /// Both sides open it under this number.
    pub fn negotiated(self, id: u16) -> Self {
        Self { id: Some(id), ..self }
    }

    /// In whatever order they arrive.
    pub fn unordered(self) -> Self {
        Self { ordered: false, ..self }
    }

    /// Not everything arrives.
    pub fn with_delivery(self, delivery: Delivery) -> Self {
        Self { delivery, ..self }
    }

    fn config(&self) -> ChannelConfig {
        ChannelConfig {
            label: self.label.clone(),
            ordered: self.ordered,
            reliability: match self.delivery {
                Delivery::Reliable => Reliability::Reliable,
                Delivery::MaxRetransmits(retransmits) => Reliability::MaxRetransmits { retransmits },
                Delivery::MaxLifetime(span) => {
                    Reliability::MaxPacketLifetime { lifetime: u16::try_from(span.as_millis()).unwrap_or(u16::MAX) }
                }
            },
            negotiated: self.id,
            protocol: String::new(),
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// UTF-8.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

impl Message {
    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes.as_slice(),
        }
    }
}

/// What happened to a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelEvent {
    /// Messages may be sent.
    Open {
        /// Which channel.
        label: String,
    },
    /// One came.
    Message {
        /// Which channel.
        label: String,
        /// What was said.
        message: Message,
    },
    /// It holds little enough for more.
    Low {
        /// Which channel.
        label: String,
    },
    /// The other side closed it, or broke a limit.
    Closed {
        /// Which channel.
        label: String,
        /// Why, if it was us.
        reason: Option<&'static str>,
    },
}

/// Why a message or a channel was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// No channel of this label.
    #[error("there is no data channel {0:?}")]
    NoSuchChannel(String),
    /// It is not open yet; [`ChannelEvent::Open`] says when.
    #[error("data channel {0:?} is not open yet")]
    NotOpen(String),
    /// Over [`MAX_MESSAGE_LEN`].
    #[error("a message of {len} bytes; {MAX_MESSAGE_LEN} are allowed")]
    TooLarge {
        /// Bytes.
        len: usize,
    },
    /// The network is slower than the sender; try again after [`ChannelEvent::Low`].
    #[error("data channel {label:?} holds {buffered} bytes already")]
    Full {
        /// Which channel.
        label: String,
        /// What it holds, bytes.
        buffered: usize,
    },
    /// There is a channel of this label or number.
    #[error("there is a data channel {0:?} already")]
    Taken(String),
    /// Over [`MAX_CHANNELS`].
    #[error("no more than {MAX_CHANNELS} data channels on a connection")]
    TooMany,
    /// Empty, over 64 bytes, or what we use ourselves.
    #[error("{0:?} is no name for a data channel")]
    BadLabel(String),
}

#[derive(Debug)]
struct Channel {
    id: ChannelId,
    init: ChannelInit,
    open: bool,
    queue: VecDeque<Message>,
    queued: usize,
    /// It held more than its threshold since [`ChannelEvent::Low`] was said last.
    was_high: bool,
}

/// The channels of one connection.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    all: Vec<Channel>,
    events: VecDeque<ChannelEvent>,
    /// What came in the current second.
    since: Option<Instant>,
    messages: u32,
    bytes: usize,
}

impl Channels {
    /// Whether one more can be opened.
    pub(crate) fn check(&self, init: &ChannelInit) -> Result<(), ChannelError> {
        if init.label.is_empty() || init.label.len() > MAX_LABEL_LEN || init.label == control::LABEL {
            return Err(ChannelError::BadLabel(init.label.clone()));
        }
        let same = |open: &&Channel| open.init.label == init.label || (init.id.is_some() && open.init.id == init.id);
        if self.all.iter().any(|open| same(&open)) {
            return Err(ChannelError::Taken(init.label.clone()));
        }
        if self.all.len() >= MAX_CHANNELS {
            return Err(ChannelError::TooMany);
        }
        Ok(())
    }

    /// Opens one, by `create`.
    pub(crate) fn add(
        &mut self,
        init: ChannelInit,
        create: impl FnOnce(ChannelConfig) -> ChannelId,
    ) -> Result<(), ChannelError> {
        self.check(&init)?;
        let id = create(init.config());
        self.push(id, init);
        Ok(())
    }

    fn push(&mut self, id: ChannelId, init: ChannelInit) {
        self.all.push(Channel { id, init, open: false, queue: VecDeque::new(), queued: 0, was_high: false });
    }

    /// None are wanted.
    pub(crate) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// One is open: ours, or one that the other side opened.
    pub(crate) fn on_open(&mut self, id: ChannelId, label: String, rtc: &mut Rtc) {
        if let Some(channel) = self.all.iter_mut().find(|channel| channel.id == id) {
            channel.open = true;
            self.events.push_back(ChannelEvent::Open { label: channel.init.label.clone() });
            return;
        }
        let init = ChannelInit::new(label.clone());
        if self.check(&init).is_err() {
            rtc.direct_api().close_data_channel(id);
            return;
        }
        self.push(id, init);
        if let Some(channel) = self.all.last_mut() {
            channel.open = true;
        }
        self.events.push_back(ChannelEvent::Open { label });
    }

    pub(crate) fn on_close(&mut self, id: ChannelId) {
        if let Some(at) = self.all.iter().position(|channel| channel.id == id) {
            let channel = self.all.remove(at);
            self.events.push_back(ChannelEvent::Closed { label: channel.init.label, reason: None });
        }
    }

    /// A message came.
    pub(crate) fn on_data(&mut self, now: Instant, data: ChannelData, rtc: &mut Rtc) {
        let Some(at) = self.all.iter().position(|channel| channel.id == data.id) else { return };
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.messages, self.bytes) = (Some(now), 0, 0);
        }
        self.messages += 1;
        self.bytes += data.data.len();
        let text =
            if data.binary { Ok(Message::Binary(data.data)) } else { String::from_utf8(data.data).map(Message::Text) };
        let fault = if self.messages > MAX_MESSAGES_PER_SECOND || self.bytes > MAX_BYTES_PER_SECOND {
            "too many messages"
        } else {
            match text {
                Ok(message) => {
                    let label = self.all[at].init.label.clone();
                    self.events.push_back(ChannelEvent::Message { label, message });
                    return;
                }
                Err(_) => "text that is not UTF-8",
            }
        };
        self.close(at, fault, rtc);
    }

    fn close(&mut self, at: usize, reason: &'static str, rtc: &mut Rtc) {
        let channel = self.all.remove(at);
        rtc.direct_api().close_data_channel(channel.id);
        self.events.push_back(ChannelEvent::Closed { label: channel.init.label, reason: Some(reason) });
    }

    /// Closes one that its reader cannot follow.
    pub(crate) fn close_label(&mut self, label: &str, reason: &'static str, rtc: &mut Rtc) {
        if let Some(at) = self.all.iter().position(|channel| channel.init.label == label) {
            self.close(at, reason, rtc);
        }
    }

    /// Takes a message to be sent; what the channel holds then.
    pub(crate) fn send(&mut self, label: &str, message: Message, rtc: &mut Rtc) -> Result<usize, ChannelError> {
        let len = message.as_bytes().len();
        let found = self.all.iter_mut().find(|channel| channel.init.label == label);
        let channel = found.ok_or_else(|| ChannelError::NoSuchChannel(label.to_owned()))?;
        if !channel.open {
            return Err(ChannelError::NotOpen(label.to_owned()));
        }
        if len > MAX_MESSAGE_LEN {
            return Err(ChannelError::TooLarge { len });
        }
        let buffered = channel.buffered(rtc);
        if buffered + len > MAX_BUFFERED {
            channel.was_high = true;
            return Err(ChannelError::Full { label: label.to_owned(), buffered });
        }
        channel.queued += len;
        channel.queue.push_back(message);
        let buffered = buffered + len;
        channel.was_high |= buffered > channel.init.low_threshold;
        Ok(buffered)
    }

    /// Takes as many messages as there is room for, and leaves the others; what the channel holds then.
    pub(crate) fn send_all(
        &mut self,
        label: &str,
        messages: &mut VecDeque<Message>,
        rtc: &mut Rtc,
    ) -> Result<usize, ChannelError> {
        let mut buffered = self.buffered(label, rtc);
        while let Some(message) = messages.pop_front() {
            if buffered + message.as_bytes().len() > MAX_BUFFERED {
                messages.push_front(message);
                if let Some(channel) = self.all.iter_mut().find(|channel| channel.init.label == label) {
                    channel.was_high = true;
                }
                break;
            }
            buffered = self.send(label, message, rtc)?;
        }
        Ok(buffered)
    }

    /// What a channel holds that has not left, bytes.
    pub(crate) fn buffered(&self, label: &str, rtc: &mut Rtc) -> usize {
        self.all.iter().find(|channel| channel.init.label == label).map_or(0, |channel| channel.buffered(rtc))
    }

    /// Gives the engine what it has room for, one message of each channel in turn. True when it took some.
    pub(crate) fn flush(&mut self, rtc: &mut Rtc) -> bool {
        let mut wrote = false;
        let mut more = true;
        while more {
            more = false;
            for channel in self.all.iter_mut().filter(|channel| channel.open) {
                let Some(message) = channel.queue.front() else { continue };
                let binary = matches!(message, Message::Binary(_));
                let taken = rtc
                    .channel(channel.id)
                    .is_some_and(|mut engine| matches!(engine.write(binary, message.as_bytes()), Ok(true)));
                if taken {
                    channel.queued -= message.as_bytes().len();
                    channel.queue.pop_front();
                    (wrote, more) = (true, true);
                }
            }
        }
        for channel in self.all.iter_mut().filter(|channel| channel.was_high) {
            if channel.buffered(rtc) <= channel.init.low_threshold {
                channel.was_high = false;
                self.events.push_back(ChannelEvent::Low { label: channel.init.label.clone() });
            }
        }
        wrote
    }

    /// What happened since the last call.
    pub(crate) fn take(&mut self) -> Option<ChannelEvent> {
        self.events.pop_front()
    }
}

impl Channel {
    fn buffered(&self, rtc: &mut Rtc) -> usize {
        self.queued + rtc.channel(self.id).map_or(0, |mut engine| engine.buffered_amount())
    }
}
