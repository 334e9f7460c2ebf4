//! A data channel in virtual time: ordered and reliable as SCTP is, with a rate and a delay, and gone from one moment to the next.

use std::collections::VecDeque;

/// A message on its way.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Text(String),
    Binary(Vec<u8>),
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// Bytes per millisecond.
    rate: usize,
    delay_ms: u64,
    /// What the sender's side has not sent yet, as `bufferedAmount` counts it.
    buffer: VecDeque<Message>,
    /// What the rate allows, carried over where a message is longer.
    credit: usize,
    flight: VecDeque<(u64, Message)>,
}

impl Pipe {
    pub(crate) fn new(rate: usize, delay_ms: u64) -> Self {
        Self { rate, delay_ms, ..Self::default() }
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.buffer.push_back(message);
    }

    pub(crate) fn buffered(&self) -> usize {
        self.buffer.iter().map(Message::len).sum()
    }

    /// A millisecond passes; what arrives in it.
    pub(crate) fn pass(&mut self, now_ms: u64) -> Vec<Message> {
        self.credit = if self.buffer.is_empty() { 0 } else { self.credit + self.rate };
        while self.buffer.front().is_some_and(|message| message.len() <= self.credit)
            && let Some(message) = self.buffer.pop_front()
        {
            self.credit -= message.len();
            self.flight.push_back((now_ms + self.delay_ms, message));
        }
        let due = self.flight.iter().take_while(|(due, _)| *due <= now_ms).count();
        self.flight.drain(..due).map(|(_, message)| message).collect()
    }

    /// Everything that is on its way is lost.
    pub(crate) fn cut(&mut self) {
        self.buffer.clear();
        self.flight.clear();
        self.credit = 0;
    }
}
