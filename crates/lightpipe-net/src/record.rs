//! A stream into a file.
//!
//! ```text
//!  producer ──deliver──▶ Inbox (bounded) ──▶ thread `record`: Container ──▶ file
//!                                  Subscription ◀── keyframe wishes ──┘
//! ```
//!
//! A disk that is slower than the stream never holds up the stream: see [`MAX_QUEUED_BYTES`].
//!
//! **What survives what.** Each fragment is handed to the system as soon as it is whole, so a process that is killed loses at most the fragment
//! that it was collecting (1 s). Nothing is forced onto the disk before [`FileRecorder::finish`]: a machine that loses its power loses what
//! the system had not written yet, on Linux some 30 s, because an fsync each second would stall other programs' writes for a loss
//! that is rare.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::container::{self, Container, FragmentLimits, Progress, Tracks, Write};
use lightpipe_media::{AccessUnit, AudioPacket, Outlet, Stream, Subscription, VideoCodec};

/// Media that may wait for the disk: at 2.5 Mbit/s a hundred seconds. When full, pictures are dropped until a keyframe finds room, and one is
/// asked for; packets of sound are dropped one by one.
pub const MAX_QUEUED_BYTES: usize = 32 << 20;

/// Pictures and packets that may wait for the disk, whatever their size.
const MAX_QUEUED: usize = 8192;

/// Pictures come, but none of them a keyframe with parameter sets: ask again after this time.
const KEYFRAME_PATIENCE: Duration = Duration::from_secs(1);

/// How to record.
#[derive(Debug, Clone, Copy, Default)]
pub struct RecordOptions {
    /// When a fragment ends.
    pub fragment: FragmentLimits,
    /// What to record. Default: what the stream has when its first picture or packet comes; that of another server's stream turns out
    /// with its answer.
    pub tracks: Option<Tracks>,
}

/// Why a recording did not start, or ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The path is wrong, or not ours to write.
    #[error("cannot create {}: {error}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: Arc<io::Error>,
    },
    /// The file's name says another container than the one that holds the stream's codec.
    #[error("{} cannot hold the stream's {}: name the file .{wanted}", path.display(), codec.name())]
    WrongName {
        /// The file.
        path: PathBuf,
        /// The stream's codec.
        codec: VideoCodec,
        /// Extension that fits.
        wanted: &'static str,
    },
    /// The stream's source came back with another codec. The file is whole, and ends before it.
    #[error("the stream changed from {} to {}: {} ends there", from.name(), to.name(), path.display())]
    CodecChanged {
        /// The file.
        path: PathBuf,
        /// What is in it.
        from: VideoCodec,
        /// What came.
        to: VideoCodec,
    },
    /// The disk is full or broken. What was written before plays.
    #[error("cannot write {} behind {written} bytes: {error}; what is in it plays", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Bytes that are in it.
        written: u64,
        /// What the system said.
        error: Arc<io::Error>,
    },
    /// No keyframe came (no packet, for a stream of sound), so the file is empty.
    #[error("nothing was recorded: the stream gave no keyframe")]
    Nothing,
    /// No thread could be started.
    #[error("cannot start recording: {0}")]
    Thread(#[source] Arc<io::Error>),
}

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordStats {
    /// What is in the file, and what could not go into it.
    pub progress: Progress,
    /// Pictures dropped because the disk was too slow; divide by these and `progress.pictures`.
    pub dropped_pictures: u64,
    /// Packets of sound dropped because the disk was too slow.
    pub dropped_packets: u64,
    /// Keyframes asked for, besides the first.
    pub keyframe_requests: u64,
}

/// A running recording: an outlet of a stream that writes a file. Dropping it finishes the file, and hides what went wrong.
#[derive(Debug)]
#[must_use = "the recording ends when this is dropped"]
pub struct FileRecorder {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl FileRecorder {
    /// Starts to record a stream: H.264 as fragmented MP4, the others as WebM; which one turns out with the first picture or packet. A file
    /// of that name is replaced. What is no regular file (a FIFO) gets the same bytes, without the duration that is written over
    /// the beginning in the end.
    pub fn start(stream: &Arc<Stream>, path: impl Into<PathBuf>, options: RecordOptions) -> Result<Self, RecordError> {
        let path = path.into();
        let file =
            File::create(&path).map_err(|error| RecordError::Create { path: path.clone(), error: Arc::new(error) })?;
        let patchable = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let inbox = Arc::new(Inbox::default());
        let recording = Recording {
            container: None,
            stream: Arc::downgrade(stream),
            options,
            file,
            path,
            patchable,
            written: 0,
            inbox: Arc::clone(&inbox),
            subscription: stream.subscribe(Arc::clone(&inbox) as Arc<dyn Outlet>),
            asked: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("record".to_owned())
            .spawn(move || recording.run())
            .map_err(|error| RecordError::Thread(Arc::new(error)))?;
        Ok(Self { inbox, thread: Some(thread) })
    }

    /// Counters, up to what was written last.
    pub fn stats(&self) -> RecordStats {
        self.inbox.lock().stats
    }

    /// Why the recording ended by itself; `None` while it goes on.
    pub fn error(&self) -> Option<RecordError> {
        self.inbox.lock().error.clone()
    }

    /// Writes what is queued, the index and the durations, and forces all of it onto the disk. Takes as long as the disk does.
    ///
    /// # Errors
    /// What [`Self::error`] tells, and [`RecordError::Nothing`].
    pub fn finish(mut self) -> Result<RecordStats, RecordError> {
        self.end();
        let inner = self.inbox.lock();
        match &inner.error {
            Some(error) => Err(error.clone()),
            None if !inner.stats.progress.started => Err(RecordError::Nothing),
            None => Ok(inner.stats),
        }
    }

    fn end(&mut self) {
        self.inbox.close();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, the file is as after a kill.
            let _ = thread.join();
        }
    }
}

impl Drop for FileRecorder {
    fn drop(&mut self) {
        self.end();
    }
}

fn check_name(path: &Path, codec: VideoCodec) -> Result<(), RecordError> {
    let wanted = container::extension(codec);
    let given = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
    // WebM is Matroska. Names that say nothing are the caller's matter.
    let other: &[&str] = if wanted == "mp4" { &["webm", "mkv"] } else { &["mp4", "m4v", "mov"] };
    if other.contains(&given.as_str()) {
        return Err(RecordError::WrongName { path: path.to_owned(), codec, wanted });
    }
    Ok(())
}

enum Item {
    Picture(Arc<AccessUnit>),
    Packet(Arc<AudioPacket>),
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Picture(unit) => unit.data.len(),
            Self::Packet(packet) => packet.data.len(),
        }
    }
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    bytes: usize,
    /// A picture was dropped; the ones behind it wait for a keyframe.
    broken: bool,
    keyframe_wanted: bool,
    closed: bool,
    stats: RecordStats,
    error: Option<RecordError>,
}

/// What waits for the disk.
#[derive(Default)]
struct Inbox {
    inner: Mutex<Inner>,
    filled: Condvar,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("queued", &self.lock().items.len()).finish_non_exhaustive()
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// Waits for media and takes the oldest. `None` when the inbox is closed and empty.
    fn take(&self) -> Option<(Item, bool)> {
        let mut inner = self
            .filled
            .wait_while(self.lock(), |inner| inner.items.is_empty() && !inner.closed)
            .unwrap_or_else(PoisonError::into_inner);
        let item = inner.items.pop_front()?;
        inner.bytes -= item.len();
        Some((item, std::mem::take(&mut inner.keyframe_wanted)))
    }
}

impl Inner {
    fn has_room(&self, item: &Item) -> bool {
        self.items.len() < MAX_QUEUED && self.bytes + item.len() <= MAX_QUEUED_BYTES
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.len();
        self.items.push_back(item);
    }
}

impl Outlet for Inbox {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        let item = Item::Picture(Arc::clone(unit));
        let room = inner.has_room(&item);
        if !room || (inner.broken && !unit.keyframe) {
            inner.stats.dropped_pictures += 1;
            // Again when it was a keyframe itself that found no room.
            inner.keyframe_wanted |= !inner.broken || unit.keyframe;
            inner.broken = true;
            return;
        }
        inner.broken = false;
        inner.push(item);
        drop(inner);
        self.filled.notify_one();
    }

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        let item = Item::Packet(Arc::clone(packet));
        if !inner.has_room(&item) {
            inner.stats.dropped_packets += 1;
            return;
        }
        inner.push(item);
        drop(inner);
        self.filled.notify_one();
    }
}

/// What the thread owns.
struct Recording {
    /// With the first item.
    container: Option<(VideoCodec, Box<dyn Container>)>,
    stream: Weak<Stream>,
    options: RecordOptions,
    file: File,
    path: PathBuf,
    patchable: bool,
    /// Bytes that are in the file.
    written: u64,
    inbox: Arc<Inbox>,
    subscription: Subscription,
    /// When a keyframe was asked for last.
    asked: Instant,
}

impl Recording {
    fn run(mut self) {
        let result = self.record();
        let progress = self.progress();
        let mut inner = self.inbox.lock();
        inner.stats.progress = progress;
        inner.error = result.err();
        inner.closed = true;
        inner.items.clear();
    }

    fn record(&mut self) -> Result<(), RecordError> {
        while let Some((item, keyframe_wanted)) = self.inbox.take() {
            let container = match self.container_for(&item) {
                Err(error @ RecordError::CodecChanged { .. }) => return self.finish().and(Err(error)),
                other => other?,
            };
            match item {
                Item::Picture(unit) => container.video(&unit),
                Item::Packet(packet) => container.audio(&packet),
            }
            self.write()?;
            let progress = self.progress();
            let waits = !progress.started && progress.dropped_before_start + progress.dropped_bad > 0;
            let ask = keyframe_wanted || (waits && self.asked.elapsed() >= KEYFRAME_PATIENCE);
            if ask {
                self.subscription.request_keyframe();
                self.asked = Instant::now();
            }
            let stats = &mut self.inbox.lock().stats;
            stats.progress = progress;
            stats.keyframe_requests += u64::from(ask);
        }
        self.finish()
    }

    fn progress(&self) -> Progress {
        self.container.as_ref().map_or_else(Progress::default, |(_, container)| container.progress())
    }

    /// The container that an item goes into.
    fn container_for(&mut self, item: &Item) -> Result<&mut dyn Container, RecordError> {
        let stream = self.stream.upgrade();
        let told = stream.as_ref().map_or(VideoCodec::H264, |stream| stream.codec());
        let codec = match (item, &self.container) {
            (Item::Picture(unit), _) => unit.codec,
            (Item::Packet(_), Some((codec, _))) => *codec,
            (Item::Packet(_), None) => told,
        };
        let container = match self.container.take() {
            Some((from, container)) if from != codec && container.progress().started => {
                self.container = Some((from, container));
                return Err(RecordError::CodecChanged { path: self.path.clone(), from, to: codec });
            }
            Some((from, container)) if from == codec => container,
            _ => {
                check_name(&self.path, codec)?;
                let tracks = self.options.tracks.unwrap_or_else(|| Tracks {
                    video: stream.as_ref().is_none_or(|stream| stream.has_video()),
                    audio: stream.as_ref().is_some_and(|stream| stream.has_audio()),
                });
                container::for_codec(codec, tracks, self.options.fragment)
            }
        };
        let (_, container) = self.container.insert((codec, container));
        Ok(&mut **container)
    }

    /// Writes the end of the file.
    fn finish(&mut self) -> Result<(), RecordError> {
        if let Some((_, container)) = &mut self.container {
            container.finish();
        }
        self.write()?;
        if self.patchable { self.file.sync_all().map_err(|error| self.failed(error)) } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), RecordError> {
        while let Some(write) = self.container.as_mut().and_then(|(_, container)| container.poll()) {
            if let Err(error) = self.apply(&write) {
                // Half a fragment helps nobody, and where the disk is full its room is needed.
                if self.patchable {
                    let _ = self.file.set_len(self.written);
                }
                return Err(self.failed(error));
            }
        }
        Ok(())
    }

    fn apply(&mut self, write: &Write) -> io::Result<()> {
        match write {
            Write::Append(bytes) => {
                self.file.write_all(bytes)?;
                self.written += bytes.len() as u64;
            }
            Write::Patch { offset, bytes } if self.patchable => {
                self.file.seek(SeekFrom::Start(*offset))?;
                self.file.write_all(bytes)?;
                self.file.seek(SeekFrom::Start(self.written))?;
            }
            Write::Patch { .. } => {}
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> RecordError {
        RecordError::Write { path: self.path.clone(), written: self.written, error: Arc::new(error) }
    }
}
