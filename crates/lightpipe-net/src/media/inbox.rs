//! What other threads tell a media thread: access units, datagrams of its peers, commands.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightpipe_media::{AccessUnit, AudioPacket, Outlet, Stream};
use lightpipe_rtc::{Candidate, ChannelError, ChannelInit, Credentials, DisconnectCause, Message, PeerError};
use tokio::sync::oneshot;

use super::publishers::NewPublisher;
use super::table::EngineCounters;
use super::worker::Viewer;

/// Pictures that may wait for a media thread; at 60 fps a quarter of a second of four streams. When full, new ones are dropped
/// until a keyframe: the stream's viewers on this thread then resume with it.
const MAX_UNITS: usize = 64;

/// Frames of sound that may wait for a media thread: over a second of four streams. When full, new ones are dropped.
const MAX_AUDIO: usize = 256;

/// Datagrams handed over and not yet taken. Beyond this they are dropped like on a full socket.
const MAX_DATAGRAMS: usize = 4096;

pub(crate) enum Command {
    Add(Box<Viewer>),
    AddPublisher(Box<NewPublisher>),
    Candidate {
        key: u64,
        candidate: Candidate,
    },
    Restart {
        key: u64,
        remote: Credentials,
        reply: oneshot::Sender<Result<Credentials, PeerError>>,
    },
    Reoffer {
        key: u64,
        offer: String,
        reply: oneshot::Sender<Result<String, PeerError>>,
    },
    Answer {
        key: u64,
        answer: String,
        reply: oneshot::Sender<Result<(), PeerError>>,
    },
    RestartOffer {
        key: u64,
        reply: oneshot::Sender<Result<String, PeerError>>,
    },
    Message {
        key: u64,
        label: String,
        message: Message,
        reply: oneshot::Sender<Result<usize, ChannelError>>,
    },
    Messages {
        key: u64,
        label: &'static str,
        messages: VecDeque<Message>,
        /// What the channel holds then, and what it had no room for.
        reply: SyncSender<Result<(usize, VecDeque<Message>), ChannelError>>,
    },
    OpenChannel {
        key: u64,
        init: ChannelInit,
        reply: oneshot::Sender<Result<(), ChannelError>>,
    },
    ChooseLayer {
        key: u64,
        rid: Option<String>,
        /// Whether there is such a layer.
        reply: oneshot::Sender<bool>,
    },
    Close {
        key: u64,
        cause: DisconnectCause,
    },
    /// Say goodbye to all, end when they are gone.
    Stop,
}

#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) units: VecDeque<(Arc<Stream>, Arc<AccessUnit>)>,
    pub(crate) audio: VecDeque<(Arc<Stream>, Arc<AudioPacket>)>,
    pub(crate) datagrams: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// Unbounded by itself; bounded by who sends: one per HTTP request or message, which are limited; of messages for data
    /// channels one per sender, which waits for its reply.
    pub(crate) commands: VecDeque<Command>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.units.is_empty() && self.audio.is_empty() && self.datagrams.is_empty() && self.commands.is_empty()
    }
}

/// The inbox of one media thread.
pub(crate) struct Inbox {
    pending: Mutex<Pending>,
    waker: mio::Waker,
}

impl Inbox {
    pub(crate) fn new(waker: mio::Waker) -> Self {
        Self { pending: Mutex::default(), waker }
    }

    pub(crate) fn command(&self, command: Command) {
        self.put(|pending| pending.commands.push_back(command));
    }

    /// False when there was no room.
    pub(crate) fn datagram(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> bool {
        self.put(|pending| {
            let room = pending.datagrams.len() < MAX_DATAGRAMS;
            if room {
                pending.datagrams.push_back((from, to, bytes.to_vec()));
            }
            room
        })
    }

    /// Changes what is pending, and wakes the thread when that was nothing before: it takes all at once.
    fn put<T>(&self, change: impl FnOnce(&mut Pending) -> T) -> T {
        let mut pending = self.lock();
        let idle = pending.is_empty();
        let result = change(&mut pending);
        let wake = idle && !pending.is_empty();
        drop(pending);
        if wake {
            // The only failure is a closed poll: the thread has ended and takes nothing any more.
            let _ = self.waker.wake();
        }
        result
    }

    /// Takes everything, leaving the (emptied) buffers of `into` behind.
    pub(crate) fn take(&self, into: &mut Pending) {
        std::mem::swap(&mut *self.lock(), into);
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream's outlet into one media thread: a picture crosses over once, whatever the number of viewers there.
pub(crate) struct StreamOutlet {
    pub(crate) stream: std::sync::Weak<Stream>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) counters: Arc<super::table::PeerTable>,
    pub(crate) broken: Mutex<bool>,
}

impl Outlet for StreamOutlet {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        let Some(stream) = self.stream.upgrade() else { return };
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        self.inbox.put(|pending| {
            if pending.units.len() >= MAX_UNITS {
                *broken = true;
            } else if *broken && unit.keyframe {
                *broken = false;
            }
            if !*broken {
                pending.units.push_back((stream, Arc::clone(unit)));
            }
        });
        if *broken {
            EngineCounters::add(&self.counters.counters.inbox_dropped, 1);
        }
    }

    fn has_network(&self) -> bool {
        true
    }

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        let Some(stream) = self.stream.upgrade() else { return };
        let taken = self.inbox.put(|pending| {
            let room = pending.audio.len() < MAX_AUDIO;
            if room {
                pending.audio.push_back((stream, Arc::clone(packet)));
            }
            room
        });
        if !taken {
            EngineCounters::add(&self.counters.counters.inbox_dropped, 1);
        }
    }
}
