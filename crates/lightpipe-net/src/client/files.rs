//! Files of a room's members: what [`lightpipe_signal::transfer`] decides, carried out with real files and real channels.
//!
//! ```text
//!  media threads ── messages, room in the channel ──▶ ┐                      ┌─▶ files, the folder
//!  MeshHandle::send_file ───────────────────────────▶ ├─ thread `files` ─────┼─▶ messages, to the media threads
//!  the mesh: who left ──────────────────────────────▶ ┘  Transfers per peer  └─▶ MeshEvent::File
//! ```
//!
//! One thread for all peers, because hashing and disks take time that neither a media thread nor a task has. It never waits for a peer: of a file no more
//! is read than its channel has room for, and what comes and is not written yet is bounded by [`MAX_WAITING`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lightpipe_rtc::Message;
use lightpipe_signal::mesh::LinkId;
use lightpipe_signal::transfer::{self, End, Output, TransferError, TransferId, Transfers, name};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::mesh::{Events, FILES, MeshEvent};
use crate::media::{MediaEngine, random_id};

/// Bytes of one connection that may wait for the disk: the windows of all files that it may bring, and what is said of them. Who sends more does not keep
/// to the window, and loses the channel.
const MAX_WAITING: usize = transfer::MAX_TRANSFERS * transfer::WINDOW as usize + (1 << 20);

/// What a message that waits counts beside its bytes: a flood of small ones takes memory, too.
const MESSAGE_COST: usize = 64;

/// Files that wait until fewer are on their way to a peer.
const MAX_QUEUED: usize = 256;

/// How often progress is told of a file, but for its end. The eye sees no more.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Peers that left and may come back to what was cut. The one that is gone for longest is forgotten first.
const MAX_ABSENT: usize = 16;

/// What unfinished files are called in the folder, with a word by chance between.
const PART: (&str, &str) = (".lightpipe-", ".part");

/// What becomes of files that others offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ReceiveFiles {
    /// None are taken; who offers one is told so.
    #[default]
    Refuse,
    /// All are taken, into this folder, which is made where it is missing. A name that is there already gets a number; nothing is ever replaced.
    Into(PathBuf),
}

/// Which way a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileDirection {
    /// From us to the peer.
    Outgoing,
    /// From the peer to us.
    Incoming,
}

/// A file between us and a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Names the transfer, the same over all connections that it takes.
    pub id: String,
    /// Without a path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Which way it goes.
    pub direction: FileDirection,
}

/// How far a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileState {
    /// The receiver takes it. Of an outgoing file it is said again after each cut.
    Began {
        /// From this byte on; what lies before it is there.
        offset: u64,
    },
    /// So many bytes are there. Only ever grows; at most ten times a second, and at the end.
    Progress {
        /// Bytes.
        bytes: u64,
    },
    /// It is there, and the same.
    Done {
        /// Of the whole, hexadecimal.
        sha256: String,
        /// Where it is on our side.
        path: PathBuf,
        /// Bytes that were put into the channel, or came from it: those that were sent twice counted twice.
        carried: u64,
    },
    /// It is over, and nothing of it is kept.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why a file is not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Nobody of this id is in the room.
    #[error("{0:?} is not in the room")]
    NotThere(String),
    /// The system does not let us read it.
    #[error("{path}: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A folder, a device or a pipe.
    #[error("{0} is no file")]
    NotAFile(PathBuf),
    /// Too large, or of a name that no receiver takes.
    #[error(transparent)]
    Unfit(#[from] TransferError),
    /// Too many wait already.
    #[error("{MAX_QUEUED} files wait for this peer, more are not taken")]
    TooMany,
    /// This member has no channel for files, see [`MeshConfig::channels`](super::MeshConfig::channels).
    #[error("this member joined without a channel for files")]
    NoChannel,
    /// We left.
    #[error("this member has left the room")]
    Gone,
}

/// What the thread is told. Messages are bounded by [`Line`], the others by the calls and connections that they come from.
enum Mail {
    Opened {
        peer: String,
        link: LinkId,
        key: u64,
    },
    Gone {
        peer: String,
        link: LinkId,
    },
    Low {
        peer: String,
        link: LinkId,
    },
    Message {
        peer: String,
        link: LinkId,
        message: Message,
        waiting: Arc<AtomicUsize>,
    },
    Send {
        peer: String,
        path: PathBuf,
        reply: oneshot::Sender<Result<String, FileError>>,
    },
    Cancel {
        peer: String,
        id: String,
    },
    Joined {
        peer: String,
    },
    /// With a word: it will not come back to what is under way.
    Goodbye {
        peer: String,
    },
    Left {
        peer: String,
    },
    Stop {
        done: oneshot::Sender<()>,
    },
}

/// The thread, for those who have to do with it. It ends with the last of these.
#[derive(Debug, Clone)]
pub(super) struct Files {
    mail: mpsc::Sender<Mail>,
}

impl Files {
    /// `low_threshold`: below how many bytes the channel says that it has room.
    pub(super) fn start(
        engine: Arc<MediaEngine>,
        events: Arc<Events>,
        folder: Option<Folder>,
        low_threshold: usize,
    ) -> io::Result<Self> {
        let (sender, mail) = mpsc::channel();
        let porter = Porter {
            world: World { engine, events, folder, low_threshold },
            peers: HashMap::new(),
            absent: VecDeque::new(),
        };
        std::thread::Builder::new().name("files".into()).spawn(move || porter.run(&mail))?;
        Ok(Self { mail: sender })
    }

    /// What one connection says to the thread.
    pub(super) fn line(&self, peer: String, link: LinkId) -> Line {
        Line { files: self.clone(), peer, link, waiting: Arc::default() }
    }

    fn tell(&self, mail: Mail) {
        // It ends before the last of its handles only after a stop, when nothing matters any more.
        let _ = self.mail.send(mail);
    }

    pub(super) async fn send(&self, peer: &str, path: PathBuf) -> Result<String, FileError> {
        let (reply, taken) = oneshot::channel();
        self.tell(Mail::Send { peer: peer.to_owned(), path, reply });
        taken.await.unwrap_or(Err(FileError::Gone))
    }

    pub(super) fn cancel(&self, peer: &str, id: &str) {
        self.tell(Mail::Cancel { peer: peer.to_owned(), id: id.to_owned() });
    }

    pub(super) fn joined(&self, peer: &str) {
        self.tell(Mail::Joined { peer: peer.to_owned() });
    }

    pub(super) fn goodbye(&self, peer: &str) {
        self.tell(Mail::Goodbye { peer: peer.to_owned() });
    }

    pub(super) fn left(&self, peer: &str) {
        self.tell(Mail::Left { peer: peer.to_owned() });
    }

    /// Cancels everything; resolves when the others were told.
    pub(super) async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        self.tell(Mail::Stop { done });
        let _ = stopped.await;
    }
}

/// The channel of one connection, as the media thread knows it. Nothing here waits.
pub(super) struct Line {
    files: Files,
    peer: String,
    link: LinkId,
    waiting: Arc<AtomicUsize>,
}

impl Line {
    /// `key`: the engine's number of the connection.
    pub(super) fn opened(&self, key: u64) {
        self.files.tell(Mail::Opened { peer: self.peer.clone(), link: self.link, key });
    }

    pub(super) fn gone(&self) {
        self.files.tell(Mail::Gone { peer: self.peer.clone(), link: self.link });
    }

    pub(super) fn low(&self) {
        self.files.tell(Mail::Low { peer: self.peer.clone(), link: self.link });
    }

    /// False when too much waits for the disk.
    pub(super) fn message(&self, message: Message) -> bool {
        let cost = message.as_bytes().len() + MESSAGE_COST;
        if self.waiting.load(Relaxed) + cost > MAX_WAITING {
            return false;
        }
        self.waiting.fetch_add(cost, Relaxed);
        let waiting = Arc::clone(&self.waiting);
        self.files.tell(Mail::Message { peer: self.peer.clone(), link: self.link, message, waiting });
        true
    }
}

/// Where incoming files go.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Names that files on their way will have: who was offered first is named first, whichever is there first.
    promised: Arc<Mutex<HashSet<String>>>,
}

impl Folder {
    /// Makes it where it is missing, and removes what a killed process left unfinished in it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        for entry in fs::read_dir(path)?.flatten() {
            let name = entry.file_name();
            let unfinished = name.to_str().is_some_and(|name| name.starts_with(PART.0) && name.ends_with(PART.1));
            // Who still writes it holds its lock.
            if unfinished && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { path: path.to_owned(), promised: Arc::default() })
    }

    /// Begins a file that was offered under this name.
    fn begin(&self, wanted: &str) -> io::Result<Part> {
        let path = self.path.join(format!("{}{}{}", PART.0, random_id(), PART.1));
        let file = File::create_new(&path)?;
        // A file system without locks: then nobody takes it for a leftover, either.
        let _ = file.try_lock();
        let name = self.free(wanted);
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Ok(Part { file: Some(file), path, name, promised: Arc::clone(&self.promised) })
    }

    /// A name that nothing in the folder has, nor will have.
    fn free(&self, wanted: &str) -> String {
        let promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        name::free(wanted, |name| promised.contains(name) || self.path.join(name).symlink_metadata().is_ok())
    }

    /// Makes an empty file of this name, or of the next one that is free. What is there is never opened, whatever it is or leads to.
    fn claim(&self, wanted: &str) -> io::Result<PathBuf> {
        let mut path = self.path.join(wanted);
        loop {
            match File::create_new(&path) {
                Ok(_) => return Ok(path),
                // Somebody else took it: the next look sees it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.symlink_metadata().is_ok() => {
                    path = self.path.join(self.free(wanted));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The beginning of an incoming file. Dropping it removes it.
#[derive(Debug)]
struct Part {
    file: Option<File>,
    path: PathBuf,
    /// What it will be called.
    name: String,
    promised: Arc<Mutex<HashSet<String>>>,
}

impl Part {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(data))
    }

    /// Gives it its name; where it is then.
    fn keep(mut self, folder: &Folder) -> io::Result<PathBuf> {
        // Some systems rename nothing that is open.
        drop(self.file.take());
        let path = folder.claim(&self.name)?;
        fs::rename(&self.path, &path).inspect_err(|_| _ = fs::remove_file(&path))?;
        Ok(path)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        // After `keep` there is nothing here.
        let _ = fs::remove_file(&self.path);
    }
}

#[derive(Debug)]
enum Place {
    Outgoing {
        file: File,
        path: PathBuf,
    },
    Incoming {
        part: Part,
    },
    /// Kept; the last word is still to be said.
    Kept {
        path: PathBuf,
    },
}

/// A transfer that is under way.
#[derive(Debug)]
struct Moving {
    info: FileInfo,
    place: Place,
    carried: u64,
    told: Option<Instant>,
}

/// What the thread works with.
struct World {
    engine: Arc<MediaEngine>,
    events: Arc<Events>,
    folder: Option<Folder>,
    low_threshold: usize,
}

impl World {
    fn tell(&self, peer: &str, file: &FileInfo, state: FileState) {
        if !self.events.push_file(MeshEvent::File { peer: peer.to_owned(), file: file.clone(), state }) {
            debug!(peer, "nobody reads so many events");
        }
    }
}

/// All files between us and one peer.
#[derive(Default)]
struct Between {
    transfers: Transfers,
    /// The connection whose channel is open, and the engine's number of it.
    link: Option<(LinkId, u64)>,
    /// What the channel holds, at most.
    buffered: usize,
    /// What it has not taken yet.
    unsent: VecDeque<Message>,
    unsent_bytes: usize,
    moving: HashMap<TransferId, Moving>,
    /// What will be offered when less is on its way.
    queued: VecDeque<(FileInfo, PathBuf)>,
    wake_at: Option<Instant>,
}

struct Porter {
    world: World,
    peers: HashMap<String, Between>,
    /// Who left, the first to leave in front.
    absent: VecDeque<String>,
}

impl Porter {
    fn run(mut self, mail: &mpsc::Receiver<Mail>) {
        loop {
            let wake_at = self.peers.values().filter_map(|between| between.wake_at).min();
            let got = match wake_at {
                Some(at) => mail.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => mail.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match got {
                Ok(Mail::Stop { done }) => {
                    self.cancel_all();
                    let _ = done.send(());
                    return;
                }
                Ok(mail) => self.handle(mail),
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    for (peer, between) in &mut self.peers {
                        if between.wake_at.is_some_and(|at| at <= now) {
                            between.carry_out(peer, &self.world);
                        }
                    }
                }
                // Parts are removed with us.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, mail: Mail) {
        let now = Instant::now();
        let peer = match mail {
            Mail::Opened { peer, link, key } => {
                let between = self.peers.entry(peer.clone()).or_default();
                between.forget_unsent();
                between.link = Some((link, key));
                between.transfers.connected(now);
                peer
            }
            Mail::Gone { peer, link } => {
                let Some(between) = self.peers.get_mut(&peer).filter(|between| between.is_on(link)) else { return };
                between.disconnect(now);
                peer
            }
            Mail::Low { peer, link } => {
                let Some(between) = self.peers.get_mut(&peer).filter(|between| between.is_on(link)) else { return };
                between.buffered = between.buffered.min(self.world.low_threshold);
                peer
            }
            Mail::Message { peer, link, message, waiting } => {
                waiting.fetch_sub(message.as_bytes().len() + MESSAGE_COST, Relaxed);
                let Some(between) = self.peers.get_mut(&peer).filter(|between| between.is_on(link)) else { return };
                let heard = match &message {
                    Message::Text(text) => between.transfers.text(now, text),
                    Message::Binary(bytes) => between.transfers.binary(now, bytes),
                };
                if let Err(error) = heard {
                    debug!(peer, %error, "what a peer says of a file");
                }
                peer
            }
            Mail::Send { peer, path, reply } => {
                let sent = self.peers.entry(peer.clone()).or_default().queue(path);
                let _ = reply.send(sent);
                peer
            }
            Mail::Cancel { peer, id } => {
                let Some(between) = self.peers.get_mut(&peer) else { return };
                between.cancel(&peer, &id, &self.world);
                peer
            }
            Mail::Joined { peer } => {
                self.absent.retain(|absent| *absent != peer);
                return;
            }
            Mail::Goodbye { peer } => {
                let Some(between) = self.peers.get_mut(&peer) else { return };
                between.cancel_all(&peer, &self.world, "the other side left");
                return;
            }
            Mail::Left { peer } => {
                self.leave(peer);
                return;
            }
            Mail::Stop { .. } => return,
        };
        if let Some(between) = self.peers.get_mut(&peer) {
            between.carry_out(&peer, &self.world);
        }
    }

    /// What was cut waits for the peer to come back, for as long as the transfer says.
    fn leave(&mut self, peer: String) {
        self.absent.retain(|absent| *absent != peer);
        self.absent.push_back(peer);
        if self.absent.len() > MAX_ABSENT
            && let Some(oldest) = self.absent.pop_front()
            && let Some(mut between) = self.peers.remove(&oldest)
        {
            between.cancel_all(&oldest, &self.world, "the other side left");
        }
    }

    fn cancel_all(&mut self) {
        for (peer, between) in &mut self.peers {
            between.cancel_all(peer, &self.world, "left the room");
        }
    }
}

impl Between {
    fn is_on(&self, link: LinkId) -> bool {
        self.link.is_some_and(|(current, _)| current == link)
    }

    fn forget_unsent(&mut self) {
        self.unsent.clear();
        (self.unsent_bytes, self.buffered) = (0, 0);
    }

    fn disconnect(&mut self, now: Instant) {
        self.link = None;
        self.forget_unsent();
        self.transfers.disconnected(now);
    }

    /// Looks at a file that is to be sent, and puts it behind the others; the transfer's id.
    fn queue(&mut self, path: PathBuf) -> Result<String, FileError> {
        let unreadable = |error| FileError::Unreadable { path: path.clone(), error };
        // Before it is opened, which of a pipe would take until somebody writes into it.
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile(path));
        }
        File::open(&path).map_err(unreadable)?;
        if metadata.len() > transfer::MAX_SIZE {
            return Err(TransferError::TooLarge(metadata.len()).into());
        }
        if self.queued.len() >= MAX_QUEUED {
            return Err(FileError::TooMany);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().replace('\u{fffd}', "_");
        let name = name::safe(&name).map_err(TransferError::from)?.to_owned();
        let id = random_id();
        let info = FileInfo { id: id.clone(), name, size: metadata.len(), direction: FileDirection::Outgoing };
        self.queued.push_back((info, path));
        Ok(id)
    }

    /// Offers what waits, as far as there is room.
    fn feed(&mut self, now: Instant, peer: &str, world: &World) {
        while self.transfers.len().0 < transfer::MAX_TRANSFERS
            && let Some((info, path)) = self.queued.pop_front()
        {
            match self.offer(now, &info, &path) {
                Ok((id, file)) => {
                    let place = Place::Outgoing { file, path };
                    self.moving.insert(id, Moving { info, place, carried: 0, told: None });
                }
                Err(error) => world.tell(peer, &info, FileState::Failed { reason: error.to_string() }),
            }
        }
    }

    fn offer(&mut self, now: Instant, info: &FileInfo, path: &Path) -> Result<(TransferId, File), FileError> {
        let file = File::open(path).map_err(|error| FileError::Unreadable { path: path.to_owned(), error })?;
        let id = TransferId::try_from(info.id.clone()).map_err(TransferError::from)?;
        let offered = transfer::File { name: info.name.clone(), size: info.size, mime: String::new() };
        self.transfers.offer(now, id.clone(), offered)?;
        Ok((id, file))
    }

    fn cancel(&mut self, peer: &str, id: &str, world: &World) {
        if let Some(at) = self.queued.iter().position(|(info, _)| info.id == id)
            && let Some((info, _)) = self.queued.remove(at)
        {
            world.tell(peer, &info, FileState::Failed { reason: "cancelled".into() });
        } else if let Ok(id) = TransferId::try_from(id.to_owned()) {
            // It may be over by now.
            let _ = self.transfers.cancel(&id, "not wanted any more");
        }
    }

    fn cancel_all(&mut self, peer: &str, world: &World, why: &str) {
        for (info, _) in std::mem::take(&mut self.queued) {
            world.tell(peer, &info, FileState::Failed { reason: format!("cancelled: {why}") });
        }
        for id in self.moving.keys().cloned().collect::<Vec<_>>() {
            let _ = self.transfers.cancel(&id, why);
        }
        self.carry_out(peer, world);
    }

    /// Does what the transfers ask for, until they wait for something.
    fn carry_out(&mut self, peer: &str, world: &World) {
        loop {
            let now = Instant::now();
            self.feed(now, peer, world);
            match self.transfers.poll(now, self.buffered + self.unsent_bytes) {
                Output::Text(text) => self.put(Message::Text(text)),
                Output::Binary(bytes) => self.put(Message::Binary(bytes)),
                Output::Read { id, offset, len } => {
                    // The channel works on what was read before while this is read.
                    self.flush(now, world);
                    self.read(now, &id, offset, len);
                }
                Output::Write { id, data, .. } => self.write(&id, &data),
                Output::Save { id } => self.save(&id, world),
                Output::Event(event) => self.on_event(now, peer, event, world),
                Output::WakeAt(at) => {
                    if !self.flush(now, world) {
                        self.wake_at = at;
                        return;
                    }
                }
            }
        }
    }

    fn put(&mut self, message: Message) {
        self.unsent_bytes += message.as_bytes().len();
        self.unsent.push_back(message);
    }

    /// Gives the channel what it has room for. True when there may be more to do then: it took some, or turned out to be gone. What it does not take now it
    /// asks for later.
    fn flush(&mut self, now: Instant, world: &World) -> bool {
        let Some((_, key)) = self.link.filter(|_| !self.unsent.is_empty()) else { return false };
        let before = self.unsent.len();
        match world.engine.send_messages(key, FILES.0, std::mem::take(&mut self.unsent)) {
            Ok((buffered, unsent)) => {
                self.unsent_bytes = unsent.iter().map(|message| message.as_bytes().len()).sum();
                (self.buffered, self.unsent) = (buffered, unsent);
                self.unsent.len() < before
            }
            Err(error) => {
                debug!(%error, "the channel for files is gone");
                self.disconnect(now);
                true
            }
        }
    }

    fn read(&mut self, now: Instant, id: &TransferId, offset: u64, len: usize) {
        let Some(Moving { place: Place::Outgoing { file, .. }, carried, .. }) = self.moving.get_mut(id) else { return };
        let mut bytes = vec![0; len];
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes));
        let provided = match read {
            Ok(()) => {
                *carried += len as u64;
                self.transfers.provide(now, id, offset, &bytes)
            }
            // Shorter than it was.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.transfers.provide(now, id, offset, &[]),
            Err(error) => self.transfers.cancel(id, &format!("the file cannot be read: {error}")),
        };
        if let Err(error) = provided {
            debug!(%id, %error, "a file was read for nobody");
        }
    }

    fn write(&mut self, id: &TransferId, data: &[u8]) {
        let Some(Moving { place: Place::Incoming { part }, carried, .. }) = self.moving.get_mut(id) else { return };
        *carried += data.len() as u64;
        if let Err(error) = part.write(data) {
            self.fail(id, &error);
        }
    }

    fn save(&mut self, id: &TransferId, world: &World) {
        let (Some(moving), Some(folder)) = (self.moving.remove(id), &world.folder) else { return };
        let Moving { info, place: Place::Incoming { part }, carried, told } = moving else { return };
        let saved = part.keep(folder);
        // Of one that could not be kept nothing is left; who sent it is told why.
        let path = saved.as_ref().map(Clone::clone).unwrap_or_default();
        self.moving.insert(id.clone(), Moving { info, place: Place::Kept { path }, carried, told });
        match saved {
            Ok(_) => _ = self.transfers.saved(id),
            Err(error) => self.fail(id, &error),
        }
    }

    fn fail(&mut self, id: &TransferId, error: &io::Error) {
        warn!(%id, %error, "an incoming file cannot be kept");
        let _ = self.transfers.fail(id, &format!("the file cannot be kept: {error}"));
    }

    fn on_event(&mut self, now: Instant, peer: &str, event: transfer::Event, world: &World) {
        match event {
            transfer::Event::Offered { id, file } => {
                let direction = FileDirection::Incoming;
                let info = FileInfo { id: id.as_str().to_owned(), name: file.name, size: file.size, direction };
                self.on_offer(now, peer, id, info, world);
            }
            transfer::Event::Accepted { id, offset } => {
                if let Some(moving) = self.moving.get(&id) {
                    world.tell(peer, &moving.info, FileState::Began { offset });
                }
            }
            transfer::Event::Progress { id, bytes, size } => {
                let Some(moving) = self.moving.get_mut(&id) else { return };
                let due = moving.told.is_none_or(|told| now.saturating_duration_since(told) >= PROGRESS_INTERVAL);
                if due || bytes == size {
                    moving.told = Some(now);
                    world.tell(peer, &moving.info, FileState::Progress { bytes });
                }
            }
            transfer::Event::Ended { id, end } => {
                let Some(Moving { info, place, carried, .. }) = self.moving.remove(&id) else { return };
                let state = match (end, place) {
                    (End::Done(sha256), Place::Outgoing { path, .. } | Place::Kept { path }) => {
                        FileState::Done { sha256: sha256.into(), path, carried }
                    }
                    (end, _) => FileState::Failed { reason: end.to_string() },
                };
                world.tell(peer, &info, state);
            }
        }
    }

    fn on_offer(&mut self, now: Instant, peer: &str, id: TransferId, info: FileInfo, world: &World) {
        let part = match &world.folder {
            Some(folder) => folder.begin(&info.name).map_err(|error| {
                warn!(%error, "no file can be made in the folder for files");
                format!("the file cannot be kept: {error}")
            }),
            None => Err("files are not taken here".to_owned()),
        };
        match part {
            Ok(part) => {
                if self.transfers.accept(now, &id, transfer::Partial::default()).is_ok() {
                    world.tell(peer, &info, FileState::Began { offset: 0 });
                    self.moving.insert(id, Moving { info, place: Place::Incoming { part }, carried: 0, told: None });
                }
            }
            Err(why) => {
                // Its end is told here, because nothing of it was under way.
                let _ = self.transfers.refuse(&id, &why);
                world.tell(peer, &info, FileState::Failed { reason: format!("refused: {why}") });
            }
        }
    }
}
