//! Files over the data channel `files` of two peers: offered, accepted, sent in chunks, checked, and resumed after a cut.
//!
//! ```text
//!   sender    offer ────────▶ │ ◀─ accept(offset) │ chunk chunk chunk … ─▶ │ ◀─ progress … │ end(sha256) ─▶ │ ◀─ done
//!   receiver                  │    or refuse      │                        │               │                │    or failed
//! ```
//!
//! [`Transfers`] is everything between two peers, in both directions, over as many connections as it takes. It has no files, no sockets and no clock.
//! Call [`connected`](Transfers::connected) when the channel opens and [`disconnected`](Transfers::disconnected) when it is gone; give it what comes by
//! [`text`](Transfers::text) and [`binary`](Transfers::binary). After each call, and when more than it asked for has left the channel's buffer,
//! [`poll`](Transfers::poll) until [`Output::WakeAt`], and carry out what it says in that order.
//!
//! A transfer that is cut waits for the next connection ([`RESUME_LIMIT`]); the sender offers it again under the same id, the receiver accepts it from where
//! its bytes end, and only the rest is sent again. A receiver that begins anew with half a file accepts with what it has of it, see [`Partial`].

mod message;
pub mod name;
mod receiver;
mod sender;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use message::reason;
pub use message::{CHUNK_HEADER_LEN, Chunk, Control, Digest, MAX_CHUNK_LEN, MAX_CONTROL_LEN, MessageError, TransferId};
pub use name::NameError;
use receiver::Incoming;
use sender::Outgoing;

/// Largest file, bytes.
pub const MAX_SIZE: u64 = 2 << 30;

/// Most transfers at a time, in each direction.
pub const MAX_TRANSFERS: usize = 8;

/// The receiver says how far it is after so many bytes.
pub const PROGRESS_STEP: u64 = 256 << 10;

/// Most bytes of a file under way without the receiver's word. At 40 ms of round trip this carries 100 MiB/s.
pub const WINDOW: u64 = 4 << 20;

/// The sender keeps the channel's buffer below this, so that a message of its own does not wait behind seconds of file.
pub const MAX_BUFFERED: usize = 1 << 20;

/// An offer that nobody answers: a person may have to look up first.
pub const OFFER_LIMIT: Duration = Duration::from_secs(300);

/// A connected transfer of which nothing comes.
pub const STALL_LIMIT: Duration = Duration::from_secs(120);

/// For so long a cut transfer waits for the next connection.
pub const RESUME_LIMIT: Duration = Duration::from_secs(600);

/// Received files that are remembered, in case that the connection was cut before the sender heard so.
const REMEMBERED: usize = 64;

/// What a file is, before its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name, without a path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Media type; empty where unknown.
    pub mime: String,
}

/// The beginning of a file, from before; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct Partial {
    hash: Sha256,
    len: u64,
}

impl Partial {
    /// What follows on it.
    pub fn push(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Nothing is there.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What a transfer asks of the world. Carry it out before the next is polled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this text.
    Text(String),
    /// Send these bytes.
    Binary(Vec<u8>),
    /// Read this of an outgoing file, then call [`Transfers::provide`].
    Read {
        /// Whose file.
        id: TransferId,
        /// From here.
        offset: u64,
        /// Bytes, up to 256 KiB; the file has them.
        len: usize,
    },
    /// Write this into an incoming file; each follows on the one before.
    Write {
        /// Whose file.
        id: TransferId,
        /// Where it belongs.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// The incoming file is whole and its checksum right: keep it, then call [`Transfers::saved`] or [`Transfers::fail`].
    Save {
        /// Whose file.
        id: TransferId,
    },
    /// Something happened.
    Event(Event),
    /// Nothing more to do before this instant, or before something comes.
    WakeAt(Option<Instant>),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The other side has a file for us: [`Transfers::accept`] or [`Transfers::refuse`] it.
    Offered {
        /// Its transfer.
        id: TransferId,
        /// What it is; the name is safe, see [`name::safe`].
        file: File,
    },
    /// The other side will have our file.
    Accepted {
        /// Its transfer.
        id: TransferId,
        /// From this byte on.
        offset: u64,
    },
    /// So far it is, in either direction. Only ever grows, whatever is sent again.
    Progress {
        /// Its transfer.
        id: TransferId,
        /// Bytes that are there.
        bytes: u64,
        /// Bytes of the whole.
        size: u64,
    },
    /// It is over.
    Ended {
        /// Its transfer.
        id: TransferId,
        /// How.
        end: End,
    },
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// The receiver has the whole file, of this SHA-256.
    #[error("done")]
    Done(Digest),
    /// The receiver does not want it.
    #[error("refused: {0}")]
    Refused(String),
    /// The other side changed its mind.
    #[error("cancelled by the other side: {0}")]
    CancelledByPeer(String),
    /// This side did.
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// The receiver could not keep it, or got something else than was sent.
    #[error("failed: {0}")]
    Failed(String),
    /// Nobody answered, nothing came, or no connection came back.
    #[error("given up: {0}")]
    TimedOut(&'static str),
}

/// Why a call or a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The other side sent what is no message. Nothing has changed.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The other side broke the protocol; this transfer is over.
    #[error("transfer {id}: the other side {what}")]
    Misbehaved {
        /// Which.
        id: TransferId,
        /// What it did.
        what: &'static str,
    },
    /// This side named a transfer that is not there or not so far.
    #[error("transfer {0} waits for no such call")]
    NotNow(TransferId),
    /// This side offers a file of the id of another one.
    #[error("there is a transfer {0} already")]
    IdTaken(TransferId),
    /// This side offers too much.
    #[error("a file of {0} bytes, {MAX_SIZE} are allowed")]
    TooLarge(u64),
    /// This side offers too many.
    #[error("{MAX_TRANSFERS} files are on their way, more have to wait")]
    TooMany,
    /// This side's file has a name that no receiver takes.
    #[error("the file's name: {0}")]
    Name(#[from] NameError),
}

/// A received file whose sender may not know it yet.
#[derive(Debug)]
struct Kept {
    id: TransferId,
    size: u64,
    sha256: Digest,
}

/// All files between two peers.
#[derive(Debug, Default)]
pub struct Transfers {
    connected: bool,
    outgoing: Vec<Outgoing>,
    incoming: Vec<Incoming>,
    /// The oldest is forgotten beyond [`REMEMBERED`]; its sender would get it refused as cut off, not written twice.
    kept: VecDeque<Kept>,
    /// What this side ended while no channel was open: said on the next one, where an offer of it may cross that word. At most [`REMEMBERED`].
    cancelled: VecDeque<TransferId>,
    /// A handful per message, polled after each; chunks only as many as the buffer has room for.
    queue: VecDeque<Output>,
    next_number: u32,
    /// Which outgoing file is read next: they take turns.
    turn: usize,
    stray_chunks: u64,
}

impl Transfers {
    /// Nothing is on its way, and no channel is open.
    pub fn new() -> Self {
        Self::default()
    }

    /// The channel is open. What was cut is offered again.
    pub fn connected(&mut self, now: Instant) {
        if self.connected {
            self.disconnected(now);
        }
        self.connected = true;
        for id in self.cancelled.clone() {
            self.say(&Control::Cancel { id, reason: "cancelled".into() });
        }
        for at in 0..self.outgoing.len() {
            self.offer_again(now, at);
        }
    }

    /// The channel is gone, and what was under way with it.
    pub fn disconnected(&mut self, now: Instant) {
        self.connected = false;
        self.cancelled.clear();
        self.queue.retain(|output| !matches!(output, Output::Text(_) | Output::Binary(_)));
        self.outgoing.iter_mut().for_each(|transfer| transfer.cut(now));
        self.incoming.iter_mut().for_each(|transfer| transfer.cut(now));
    }

    /// A text message came.
    pub fn text(&mut self, now: Instant, text: &str) -> Result<(), TransferError> {
        match Control::parse(text)? {
            Control::Offer { id, number, name, size, mime } => {
                self.on_offer(now, id, number, File { name, size, mime })
            }
            Control::Accept { id, offset } => self.on_accept(now, &id, offset),
            Control::Progress { id, received } => self.on_progress(now, &id, received),
            Control::End { id, size, sha256 } => self.on_end(&id, size, sha256),
            Control::Done { id } => self.on_done(&id),
            Control::Refuse { id, reason: why } => self.outgoing_ended(&id, End::Refused(reason(&why))),
            Control::Failed { id, reason: why } => self.outgoing_ended(&id, End::Failed(reason(&why))),
            Control::Cancel { id, reason: why } => {
                self.end(&id, End::CancelledByPeer(reason(&why)));
                Ok(())
            }
        }
    }

    /// A binary message came.
    pub fn binary(&mut self, now: Instant, message: &[u8]) -> Result<(), TransferError> {
        let chunk = Chunk::parse(message)?;
        self.on_chunk(now, chunk)
    }

    /// Ends a transfer, whichever direction it has.
    pub fn cancel(&mut self, id: &TransferId, why: &str) -> Result<(), TransferError> {
        if !self.outgoing.iter().any(|t| t.id == *id) && !self.incoming.iter().any(|t| t.id == *id) {
            return Err(TransferError::NotNow(id.clone()));
        }
        self.say(&Control::Cancel { id: id.clone(), reason: reason(why) });
        self.end(id, End::Cancelled(reason(why)));
        Ok(())
    }

    /// What to do next. `buffered`: bytes that wait in the channel's own buffer; below [`MAX_BUFFERED`] more of a file is read.
    pub fn poll(&mut self, now: Instant, buffered: usize) -> Output {
        if self.queue.is_empty() {
            self.give_up(now);
        }
        if let Some(output) = self.queue.pop_front() {
            return output;
        }
        self.next_read(buffered).unwrap_or_else(|| Output::WakeAt(self.wake_at()))
    }

    /// Chunks that belonged to nothing: after a cancel some are still under way.
    pub const fn stray_chunks(&self) -> u64 {
        self.stray_chunks
    }

    /// Transfers under way: outgoing, incoming.
    pub const fn len(&self) -> (usize, usize) {
        (self.outgoing.len(), self.incoming.len())
    }

    /// Nothing is under way.
    pub const fn is_empty(&self) -> bool {
        self.outgoing.is_empty() && self.incoming.is_empty()
    }

    fn say(&mut self, message: &Control) {
        if self.connected {
            self.queue.push_back(Output::Text(message.to_json()));
        }
    }

    fn tell(&mut self, event: Event) {
        self.queue.push_back(Output::Event(event));
    }

    /// Forgets a transfer. What is queued of it goes, but for messages.
    fn end(&mut self, id: &TransferId, end: End) {
        let before = self.outgoing.len() + self.incoming.len();
        let numbers: Vec<u32> = self.outgoing.iter().filter(|t| t.id == *id).map(|t| t.number).collect();
        self.outgoing.retain(|transfer| transfer.id != *id);
        self.incoming.retain(|transfer| transfer.id != *id);
        if self.outgoing.len() + self.incoming.len() == before {
            return;
        }
        if !self.connected && !matches!(end, End::Done(_)) {
            self.cancelled.push_back(id.clone());
            if self.cancelled.len() > REMEMBERED {
                self.cancelled.pop_front();
            }
        }
        self.queue.retain(|output| match output {
            Output::Binary(bytes) => !Chunk::parse(bytes).is_ok_and(|chunk| numbers.contains(&chunk.number)),
            Output::Write { id: of, .. } | Output::Save { id: of } => of != id,
            _ => true,
        });
        self.tell(Event::Ended { id: id.clone(), end });
    }

    /// The other side broke the protocol in this transfer.
    fn misbehaved(&mut self, id: &TransferId, what: &'static str) -> TransferError {
        let incoming = self.incoming.iter().any(|transfer| transfer.id == *id);
        let (id, why) = (id.clone(), what.to_owned());
        self.say(&if incoming {
            Control::Failed { id: id.clone(), reason: why }
        } else {
            Control::Cancel { id: id.clone(), reason: why }
        });
        self.end(&id, End::Failed(format!("the other side {what}")));
        TransferError::Misbehaved { id, what }
    }

    fn wake_at(&self) -> Option<Instant> {
        let outgoing = self.outgoing.iter().filter_map(|transfer| transfer.deadline);
        outgoing.chain(self.incoming.iter().filter_map(|transfer| transfer.deadline)).min()
    }

    /// Ends what is over its time.
    fn give_up(&mut self, now: Instant) {
        let late = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let outgoing = self.outgoing.iter().filter(|t| late(t.deadline)).map(|t| (t.id.clone(), t.waits_for()));
        let incoming = self.incoming.iter().filter(|t| late(t.deadline)).map(|t| (t.id.clone(), t.waits_for()));
        let over: Vec<_> = outgoing.chain(incoming).collect();
        for (id, what) in over {
            self.say(&Control::Cancel { id: id.clone(), reason: what.to_owned() });
            self.end(&id, End::TimedOut(what));
        }
    }
}
