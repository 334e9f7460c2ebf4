//! From the bytes of a pipe to pictures in a [`VideoSink`] or sound in an [`AudioSink`].
//!
//! ```text
//!             ┌─ raw:     straight into pooled buffers ─────────────▶ FrameQueue
//!             ├─ NUT:     Demuxer ──▶ Normalizer, TimeAnchor ───────▶ Stream
//!   pipe ─────┤             ├───────▶ TimeAnchor ───────────────────▶ AudioQueue
//!             │             └───────▶ Playhead, when it is due ─────▶ any of the three
//!             └─ Annex-B: reader thread ──chunks──▶ annexb::Reader ─▶ Stream
//! ```
//!
//! Everything here blocks; a source gives it a thread. Annex-B needs to know when the pipe is *empty*, which
//! no portable read tells, so there the blocking read has a thread of its own and the silence is measured
//! between its chunks.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lightpipe_media::access_unit::{AccessUnit, Stages, VideoCodec};
use lightpipe_media::frame::FrameError;
use lightpipe_media::nut::{self, NutError, StreamHeader, StreamKind};
use lightpipe_media::stream::Health;
use lightpipe_media::{
    AudioBlock, AudioQueue, EventKind, EventLog, FramePool, FrameQueue, MediaClock, MediaTime, PixelFormat, Size,
    Stream, VideoFrame, annexb,
};

use crate::encoded::{Normalizer, Refused, TimeAnchor};
use crate::ticker::sleep_until;
use crate::timeline::{Playhead, Timeline, Turn};
use crate::{AudioSink, VideoSink};

/// Bytes asked of a pipe at once when it carries encoded pictures.
const CHUNK: usize = 64 * 1024;
/// Chunks between the two threads of an Annex-B pipe. When full the reading thread waits, then the pipe
/// fills, then the child waits: nothing is lost, and publishing never blocks for long.
const CHUNKS: usize = 16;

/// Size and layout of raw pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFormat {
    /// Columns and rows.
    pub size: Size,
    /// Sample layout, without padding.
    pub pixels: PixelFormat,
}

/// What a program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PipeFormat {
    /// Raw pictures one behind the other.
    Raw(RawFormat),
    /// H.264 in NUT: every picture with its time.
    Nut,
    /// An H.264 byte stream; a picture's time is when its first byte arrives.
    AnnexB,
    /// NUT or Annex-B where the first bytes say so, else raw pictures of this format.
    Detect(RawFormat),
    /// Raw pictures in NUT: every picture with its time.
    RawInNut(RawFormat),
    /// Sound as 16-bit samples, little endian, in NUT.
    SoundInNut,
}

/// Why the bytes of a pipe could not be used. The supervisor puts the program's name in front.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipeError {
    /// The pipe broke.
    #[error("its output could not be read: {0}")]
    Read(#[from] std::io::Error),
    /// Something else than NUT.
    #[error("wrote {bytes} bytes that are no NUT")]
    NotNut {
        /// Bytes seen.
        bytes: u64,
    },
    /// Something else than H.264.
    #[error("wrote {bytes} bytes that are no H.264 in Annex-B")]
    NotAnnexB {
        /// Bytes seen.
        bytes: u64,
    },
    /// NUT of something else.
    #[error("wrote NUT without H.264 video (it has {found}); add `-c:v libx264`")]
    NoH264 {
        /// Codings of its streams.
        found: String,
    },
    /// NUT of something else.
    #[error("wrote NUT without {wanted} (it has {found})")]
    OtherNut {
        /// What should be in it.
        wanted: &'static str,
        /// Codings of its streams.
        found: String,
    },
    /// Raw pictures cut off.
    #[error("ended inside a picture, after {got} of {needed} bytes; is the picture size {size} right?")]
    CutPicture {
        /// Bytes of the last picture.
        got: usize,
        /// Bytes of a whole one.
        needed: usize,
        /// Configured size.
        size: Size,
    },
    /// A raw geometry that no picture can have.
    #[error(transparent)]
    Geometry(#[from] FrameError),
}

/// Where the medium of a child goes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) stream: Arc<Stream>,
    pub(crate) clock: MediaClock,
    events: EventLog,
    queue: RawQueue,
}

#[derive(Debug, Clone)]
enum RawQueue {
    Pictures(Arc<FrameQueue>),
    Sound(Arc<AudioQueue>),
}

impl From<VideoSink> for Target {
    fn from(sink: VideoSink) -> Self {
        let VideoSink { stream, frames, clock, events } = sink;
        Self { stream, clock, events, queue: RawQueue::Pictures(frames) }
    }
}

impl From<AudioSink> for Target {
    fn from(sink: AudioSink) -> Self {
        let AudioSink { stream, blocks, clock, events } = sink;
        Self { stream, clock, events, queue: RawQueue::Sound(blocks) }
    }
}

impl Target {
    /// What messages call one of the things that should come.
    pub(crate) const fn noun(&self) -> &'static str {
        match self.queue {
            RawQueue::Pictures(_) => "picture",
            RawQueue::Sound(_) => "sound",
        }
    }

    /// Sets the state that people see.
    pub(crate) fn set_health(&self, health: Health) {
        match self.queue {
            RawQueue::Pictures(_) => self.stream.set_health(health),
            RawQueue::Sound(_) => self.stream.set_audio_health(health),
        }
    }

    /// Notes an event. Those of sound have names of their own: the order of the pictures' is a contract.
    pub(crate) fn event(&self, kind: EventKind) {
        let kind = match (&self.queue, kind) {
            (RawQueue::Pictures(_), kind) => kind,
            (_, EventKind::FfmpegSpawned { pid }) => EventKind::AudioSpawned { pid },
            (_, EventKind::FirstFrameIngested) => EventKind::FirstAudioIngested,
            (_, EventKind::FfmpegExited { reason, retry_in }) => EventKind::AudioExited { reason, retry_in },
            (_, EventKind::SourceFailed { reason }) => EventKind::AudioExited { reason, retry_in: None },
            (_, kind) => kind,
        };
        self.events.push(self.clock.at(Instant::now()), self.stream.name(), kind);
    }
}

/// What outlives the runs of a source's child.
#[derive(Debug)]
pub(crate) struct Feed {
    sink: Target,
    /// Taken off the arrival time; see [`crate::ffmpeg::Input::capture_delay`].
    capture_delay: Duration,
    /// Says when what a child tells the times of is due; otherwise all of it is shown when it comes.
    timeline: Option<Arc<Timeline>>,
    pool: FramePool,
    /// Capture time of the last picture, micros: times rise across restarts too.
    last_captured: AtomicI64,
    /// Somebody watched the last encoded picture. For raw pictures the encoder knows.
    watched: AtomicBool,
}

impl Feed {
    pub(crate) fn new(sink: Target, capture_delay: Duration, timeline: Option<Arc<Timeline>>) -> Arc<Self> {
        Arc::new(Self {
            sink,
            capture_delay,
            timeline,
            pool: FramePool::new(),
            last_captured: AtomicI64::new(i64::MIN),
            watched: AtomicBool::new(false),
        })
    }

    /// Where in a film the next run should begin.
    pub(crate) fn position(&self) -> Duration {
        let now = self.sink.clock.at(Instant::now());
        self.timeline.as_ref().map_or(Duration::ZERO, |timeline| timeline.position(now))
    }

    /// Encoded pictures have no encoder of ours that would say when their track begins and ends to be watched.
    fn tell_activity(&self) {
        let watched = self.sink.stream.outlets() > 0;
        if self.watched.swap(watched, Relaxed) != watched {
            let codec = Some(VideoCodec::H264);
            let rid = None;
            let kind =
                if watched { EventKind::TrackActive { codec, rid } } else { EventKind::TrackIdle { codec, rid } };
            tracing::info!(target: "events::track", stream = self.sink.stream.name(), event = kind.name());
            self.sink.event(kind);
        }
    }

    pub(crate) fn sink(&self) -> &Target {
        &self.sink
    }
}

/// One run of a child, seen from both ends: the reader counts, the supervisor watches.
#[derive(Debug)]
pub(crate) struct Run {
    feed: Arc<Feed>,
    /// Where in a film it begins.
    begins: Duration,
    bytes: AtomicU64,
    pictures: AtomicU64,
    /// When the last picture (or before it, the first byte) came, media time in micros.
    progress: AtomicI64,
    /// When the first picture came, for the backoff's idea of success.
    first_picture: Mutex<Option<Instant>>,
    /// Pictures are discarded from now on, while the pipe is still emptied.
    ended: AtomicBool,
}

impl Run {
    pub(crate) fn new(feed: &Arc<Feed>, begins: Duration) -> Arc<Self> {
        Arc::new(Self {
            feed: Arc::clone(feed),
            begins,
            bytes: AtomicU64::new(0),
            pictures: AtomicU64::new(0),
            progress: AtomicI64::new(0),
            first_picture: Mutex::new(None),
            ended: AtomicBool::new(false),
        })
    }

    /// Bytes read.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Pictures or blocks of sound read, those included that came before the first keyframe.
    pub(crate) fn pictures(&self) -> u64 {
        self.pictures.load(Relaxed)
    }

    /// When something last came; meaningless before the first byte.
    pub(crate) fn progress(&self) -> MediaTime {
        MediaTime::from_micros(self.progress.load(Relaxed))
    }

    /// How long pictures have been coming.
    pub(crate) fn success(&self) -> Duration {
        let first = *self.first_picture.lock().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Discards whatever still comes.
    pub(crate) fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Whether [`Self::end`] was called.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    fn now(&self) -> MediaTime {
        self.feed.sink.clock.at(Instant::now())
    }

    /// Counts bytes; answers when they came.
    fn received(&self, bytes: usize) -> MediaTime {
        let now = self.now();
        if self.bytes.fetch_add(bytes as u64, Relaxed) == 0 {
            self.progress.store(now.as_micros(), Relaxed);
        }
        now
    }

    /// A picture came that cannot be shown yet: the child is alive all the same.
    fn count(&self, now: MediaTime) {
        self.pictures.fetch_add(1, Relaxed);
        self.progress.store(now.as_micros(), Relaxed);
    }

    /// Notes a picture's arrival; answers its capture time, or `None` when the run is over.
    fn ingest(&self, captured: MediaTime, now: MediaTime) -> Option<MediaTime> {
        if self.is_ended() {
            return None;
        }
        self.count(now);
        let sink = &self.feed.sink;
        {
            let mut first = self.first_picture.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_none() {
                *first = Some(Instant::now());
                sink.set_health(Health::Live);
                sink.event(EventKind::FirstFrameIngested);
                tracing::info!(
                    target: "events::first_frame_ingested",
                    stream = sink.stream.name(),
                    medium = sink.noun(),
                );
            }
        }
        let captured = (captured - self.feed.capture_delay).as_micros();
        // One thread feeds a stream at a time; an old run's reader has `ended` set.
        let rising = captured.max(self.feed.last_captured.load(Relaxed).saturating_add(1));
        self.feed.last_captured.store(rising, Relaxed);
        Some(MediaTime::from_micros(rising))
    }

    /// Waits until a part of a film is due that the child places at `pts_micros` and that takes `span`. Answers its capture time; `None`
    /// when it is to be left out.
    fn wait_turn(&self, playhead: &mut Playhead, pts_micros: i64, span: Duration) -> Option<MediaTime> {
        let timeline = self.feed.timeline.as_ref()?;
        let now = self.now();
        match playhead.turn(timeline, self.position(pts_micros)?, now) {
            Turn::At(due) => {
                let clock = &self.feed.sink.clock;
                sleep_until(clock.instant(due + span), || self.is_ended()).then_some(due)
            }
            Turn::Missed => {
                self.count(now);
                None
            }
        }
    }

    /// Position in a film of what the child places at `pts_micros`; `None` before where it was to begin.
    fn position(&self, pts_micros: i64) -> Option<Duration> {
        u64::try_from(pts_micros).ok().map(|micros| self.begins + Duration::from_micros(micros))
    }

    fn publish_raw(
        &self,
        buffer: lightpipe_media::frame::PooledBuffer,
        raw: RawFormat,
        captured: MediaTime,
    ) -> Result<(), PipeError> {
        let now = self.now();
        if let Some(captured) = self.ingest(captured, now) {
            let mut frame = VideoFrame::packed(captured, raw.size, raw.pixels, buffer)?;
            frame.received = now;
            if let RawQueue::Pictures(frames) = &self.feed.sink.queue {
                frames.push(frame);
            }
        }
        Ok(())
    }

    fn publish_sound(&self, block: AudioBlock) {
        if let Some(captured) = self.ingest(block.captured, self.now())
            && let RawQueue::Sound(blocks) = &self.feed.sink.queue
        {
            blocks.push(AudioBlock { captured, ..block });
        }
    }

    /// Publishes an encoded picture if it can be decoded.
    fn publish_encoded(&self, normalizer: &mut Normalizer, data: Vec<u8>, captured: MediaTime, received: MediaTime) {
        match normalizer.picture(data) {
            Ok(picture) => {
                if let Some(captured) = self.ingest(captured, received) {
                    self.feed.tell_activity();
                    self.feed.sink.stream.publish(&Arc::new(AccessUnit::new(
                        VideoCodec::H264,
                        picture.data,
                        captured,
                        picture.keyframe,
                        picture.size,
                        Stages::all_at(received),
                    )));
                }
            }
            Err(refused) => {
                if refused != Refused::Empty {
                    self.count(received);
                }
                tracing::debug!(stream = self.feed.sink.stream.name(), ?refused, "packet left out");
            }
        }
    }
}

/// Reads `pipe` to its end and delivers its pictures.
pub(crate) fn read_to_end(
    mut pipe: impl Read + Send + 'static,
    format: PipeFormat,
    run: &Arc<Run>,
) -> Result<(), PipeError> {
    let mut head = Head::default();
    let format = match format {
        PipeFormat::Detect(raw) => head.detect(&mut pipe, raw, run)?,
        format => format,
    };
    let pipe = Prefixed { head, pipe };
    // Only raw pictures can be encoded in the viewer's coding.
    run.feed.sink.stream.set_encoded_before(matches!(format, PipeFormat::Nut | PipeFormat::AnnexB));
    match format {
        PipeFormat::Raw(raw) | PipeFormat::Detect(raw) => read_raw(pipe, raw, run),
        PipeFormat::Nut => read_nut(pipe, run, EncodedInNut::default()),
        PipeFormat::RawInNut(raw) => read_nut(pipe, run, RawInNut { raw, playhead: Playhead::default() }),
        PipeFormat::SoundInNut => read_nut(pipe, run, SoundInNut::default()),
        PipeFormat::AnnexB => read_annexb(pipe, run),
    }
}

/// The first bytes of a pipe, read to find out what it carries.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    at: MediaTime,
}

impl Head {
    /// Five bytes decide: a start code and the NAL header behind it, or the first letters of NUT's id. Raw
    /// pictures would need a first pixel of exactly these values.
    const DECIDING: usize = 5;

    fn detect(&mut self, pipe: &mut dyn Read, raw: RawFormat, run: &Run) -> Result<PipeFormat, PipeError> {
        let mut buf = [0; Self::DECIDING];
        while self.bytes.len() < Self::DECIDING {
            let want = Self::DECIDING - self.bytes.len();
            let n = read_some(pipe, &mut buf[..want])?;
            if n == 0 {
                break;
            }
            let now = run.received(n);
            if self.bytes.is_empty() {
                self.at = now;
            }
            self.bytes.extend_from_slice(&buf[..n]);
        }
        Ok(detected(&self.bytes, raw))
    }
}

fn detected(head: &[u8], raw: RawFormat) -> PipeFormat {
    // Forbidden bit clear, and a type that an access unit begins with (1, 5 to 9).
    let begins_unit = |header: &u8| header & 0x80 == 0 && matches!(header & 0x1f, 1 | 5..=9);
    match head {
        head if head.starts_with(&nut::FILE_ID[..Head::DECIDING]) => PipeFormat::Nut,
        [0, 0, 1, header, ..] | [0, 0, 0, 1, header, ..] if begins_unit(header) => PipeFormat::AnnexB,
        _ => PipeFormat::Raw(raw),
    }
}

/// A pipe and what was read of it before.
struct Prefixed<R> {
    head: Head,
    pipe: R,
}

impl<R: Read> Prefixed<R> {
    /// Reads something; answers how much and when it came. 0 bytes: the end.
    fn read(&mut self, buf: &mut [u8], run: &Run) -> std::io::Result<(usize, MediaTime)> {
        if !self.head.bytes.is_empty() {
            let n = buf.len().min(self.head.bytes.len());
            buf[..n].copy_from_slice(&self.head.bytes[..n]);
            self.head.bytes.drain(..n);
            return Ok((n, self.head.at));
        }
        let n = read_some(&mut self.pipe, buf)?;
        Ok((n, if n == 0 { run.now() } else { run.received(n) }))
    }
}

fn read_some(pipe: &mut dyn Read, buf: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match pipe.read(buf) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn read_raw<R: Read>(mut pipe: Prefixed<R>, raw: RawFormat, run: &Run) -> Result<(), PipeError> {
    let needed = raw.pixels.packed_len(raw.size);
    loop {
        let mut buffer = run.feed.pool.take(needed);
        let (mut filled, mut captured) = (0, MediaTime::ZERO);
        while filled < needed {
            let (n, at) = pipe.read(&mut buffer[filled..needed], run)?;
            if n == 0 {
                return match filled {
                    0 => Ok(()),
                    got => Err(PipeError::CutPicture { got, needed, size: raw.size }),
                };
            }
            if filled == 0 {
                captured = at;
            }
            filled += n;
        }
        run.publish_raw(buffer, raw, captured)?;
    }
}

/// The one stream of a NUT file that is wanted.
trait NutTrack {
    /// Longest packet, bytes.
    const LIMIT: u64;
    /// Whether this stream is the one. Called anew for another file behind the first.
    fn choose(&mut self, header: &StreamHeader) -> bool;
    fn take(&mut self, packet: nut::Packet, arrived: MediaTime, run: &Run) -> Result<(), PipeError>;
    /// The stream is not there, but those.
    fn missing(found: String) -> PipeError;
}

/// H.264 from the child's encoder.
#[derive(Default)]
struct EncodedInNut {
    normalizer: Normalizer,
    anchor: TimeAnchor,
    playhead: Playhead,
}

impl NutTrack for EncodedInNut {
    const LIMIT: u64 = nut::Demuxer::MAX_PACKET_LEN;

    fn choose(&mut self, header: &StreamHeader) -> bool {
        let fourcc = header.fourcc.to_ascii_uppercase();
        let is_h264 = [b"H264", b"X264", b"AVC1", b"DAVC"].iter().any(|name| name[..] == fourcc);
        if !matches!(header.kind, StreamKind::Video { .. }) || !is_h264 {
            return false;
        }
        *self = Self::default();
        self.normalizer.set_extradata(&header.extradata);
        true
    }

    fn take(&mut self, packet: nut::Packet, arrived: MediaTime, run: &Run) -> Result<(), PipeError> {
        let captured = match &run.feed.timeline {
            None => self.anchor.captured(packet.pts_micros, arrived),
            // Later pictures are made of this one, so a late one is shown all the same.
            Some(timeline) => match run.wait_turn(&mut self.playhead, packet.pts_micros, Duration::ZERO) {
                Some(due) => due,
                None => timeline.due(run.position(packet.pts_micros).unwrap_or(run.begins), arrived),
            },
        };
        run.publish_encoded(&mut self.normalizer, packet.data, captured, run.now());
        Ok(())
    }

    fn missing(found: String) -> PipeError {
        PipeError::NoH264 { found }
    }
}

/// Raw pictures of a film.
struct RawInNut {
    raw: RawFormat,
    playhead: Playhead,
}

impl NutTrack for RawInNut {
    /// A picture of the largest size that can be configured, in four bytes a pixel.
    const LIMIT: u64 = 4096 * 4096 * 4;

    fn choose(&mut self, header: &StreamHeader) -> bool {
        matches!(header.kind, StreamKind::Video { .. })
    }

    fn take(&mut self, packet: nut::Packet, _: MediaTime, run: &Run) -> Result<(), PipeError> {
        let needed = self.raw.pixels.packed_len(self.raw.size);
        let got = packet.data.len();
        if got != needed {
            return Err(PipeError::CutPicture { got, needed, size: self.raw.size });
        }
        if let Some(due) = run.wait_turn(&mut self.playhead, packet.pts_micros, Duration::ZERO) {
            let mut buffer = run.feed.pool.take(needed);
            buffer.copy_from_slice(&packet.data);
            run.publish_raw(buffer, self.raw, due)?;
        }
        Ok(())
    }

    fn missing(found: String) -> PipeError {
        PipeError::OtherNut { wanted: "pictures", found }
    }
}

/// Sound, of a film or live.
#[derive(Default)]
struct SoundInNut {
    rate_hz: u32,
    channels: usize,
    anchor: TimeAnchor,
    playhead: Playhead,
}

impl NutTrack for SoundInNut {
    /// FFmpeg's packets are some 20 ms long; a second of eight channels is beyond all of them.
    const LIMIT: u64 = 1024 * 1024;

    fn choose(&mut self, header: &StreamHeader) -> bool {
        let StreamKind::Audio { sample_rate_hz, channels } = header.kind else { return false };
        if header.fourcc != PCM_S16LE || sample_rate_hz == 0 || !(1..=8).contains(&channels) {
            return false;
        }
        *self = Self { rate_hz: sample_rate_hz, channels: channels as usize, ..Self::default() };
        true
    }

    fn take(&mut self, packet: nut::Packet, arrived: MediaTime, run: &Run) -> Result<(), PipeError> {
        let len = packet.data.len() / 2 / self.channels;
        let span = Duration::from_micros(len as u64 * 1_000_000 / u64::from(self.rate_hz));
        let captured = if run.feed.timeline.is_some() {
            // As from a sound card, sound is there when its last sample is.
            run.wait_turn(&mut self.playhead, packet.pts_micros, span)
        } else {
            let end = packet.pts_micros.saturating_add(span.as_micros() as i64);
            Some(self.anchor.captured(end, arrived) - span)
        };
        if let Some(captured) = captured {
            let samples =
                packet.data.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0).collect();
            run.publish_sound(AudioBlock { captured, rate_hz: self.rate_hz, channels: self.channels, samples });
        }
        Ok(())
    }

    fn missing(found: String) -> PipeError {
        PipeError::OtherNut { wanted: "sound", found }
    }
}

/// NUT's name of 16-bit samples, little endian.
const PCM_S16LE: [u8; 4] = [b'P', b'S', b'D', 16];

fn read_nut<R: Read, T: NutTrack>(mut pipe: Prefixed<R>, run: &Run, mut track: T) -> Result<(), PipeError> {
    let mut demuxer = nut::Demuxer::new(T::LIMIT);
    let mut chosen = None;
    let mut found = Vec::new();
    let mut buf = vec![0; CHUNK];
    loop {
        let (n, now) = pipe.read(&mut buf, run)?;
        if n == 0 {
            return match run.bytes() {
                // A few bytes are less than the noise limit, and no NUT either.
                bytes @ 1.. if found.is_empty() => Err(PipeError::NotNut { bytes }),
                _ => Ok(()),
            };
        }
        demuxer.push(&buf[..n]);
        loop {
            match demuxer.poll() {
                Ok(None) => break,
                Ok(Some(nut::Item::Stream(header))) => {
                    if track.choose(&header) {
                        chosen = Some(header.index);
                    }
                    found.push(String::from_utf8_lossy(&header.fourcc).escape_default().to_string());
                    found.truncate(16);
                }
                Ok(Some(nut::Item::HeadersDone)) if chosen.is_none() => {
                    return Err(T::missing(found.join(", ")));
                }
                Ok(Some(nut::Item::Packet(packet))) if Some(packet.stream_index) == chosen => {
                    track.take(packet, now, run)?;
                }
                Ok(Some(_)) => {}
                Err(NutError::NotNut { .. }) if chosen.is_none() => {
                    return Err(PipeError::NotNut { bytes: run.bytes() });
                }
                Err(error) => {
                    tracing::debug!(stream = run.feed.sink.stream.name(), %error, "NUT resynchronises");
                }
            }
        }
    }
}

fn read_annexb<R: Read + Send + 'static>(mut pipe: Prefixed<R>, run: &Arc<Run>) -> Result<(), PipeError> {
    type Chunk = std::io::Result<(Vec<u8>, MediaTime)>;
    let (chunks, arriving) = sync_channel::<Chunk>(CHUNKS);
    let mut reading = {
        let run = Arc::clone(run);
        move |chunks: SyncSender<Chunk>| {
            let mut buf = vec![0; CHUNK];
            loop {
                let chunk = match pipe.read(&mut buf, &run) {
                    Ok((0, _)) => return,
                    Ok((n, at)) => Ok((buf[..n].to_vec(), at)),
                    Err(e) => Err(e),
                };
                let failed = chunk.is_err();
                // Nobody listens any more: the bytes were refused, the child is being killed.
                if chunks.send(chunk).is_err() || failed {
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name("annexb-pipe".to_owned()).spawn(move || reading(chunks))?;
    let mut reader = annexb::Reader::default();
    let mut normalizer = Normalizer::default();
    let mut ended = false;
    while !ended {
        let waited = match reader.patience() {
            Some(patience) => arriving.recv_timeout(patience),
            None => arriving.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match waited {
            Ok(chunk) => {
                let (bytes, at) = chunk?;
                match reader.push(&bytes, at) {
                    Ok(()) => {}
                    Err(annexb::ReadError::NoStartCode { .. }) if run.pictures() == 0 => {
                        return Err(PipeError::NotAnnexB { bytes: run.bytes() });
                    }
                    Err(error) => {
                        tracing::debug!(
                            stream = run.feed.sink.stream.name(),
                            %error,
                            "Annex-B resynchronises"
                        );
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => reader.flush_idle(),
            Err(RecvTimeoutError::Disconnected) => {
                reader.finish();
                ended = true;
            }
        }
        while let Some(unit) = reader.pop() {
            run.publish_encoded(&mut normalizer, unit.data, unit.started, run.now());
        }
    }
    match run.bytes() {
        bytes @ 1.. if run.pictures() == 0 => Err(PipeError::NotAnnexB { bytes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_pipe_carries() {
        let raw = RawFormat { size: Size::new(64, 48), pixels: PixelFormat::Bgra };
        let raw_found = PipeFormat::Raw(raw);
        for (head, expected) in [
            (&b"nut/m"[..], PipeFormat::Nut),
            (b"nut/", raw_found),
            (b"nutty", raw_found),
            (&[0, 0, 0, 1, 0x67], PipeFormat::AnnexB),
            (&[0, 0, 1, 0x09, 0xf0], PipeFormat::AnnexB),
            (&[0, 0, 1, 0x65, 0x88], PipeFormat::AnnexB),
            (&[0, 0, 0, 1, 0xe7], raw_found),
            (&[0, 0, 0, 1, 0], raw_found),
            (&[0, 0, 0, 0, 0], raw_found),
            (&[16, 16, 16, 16, 16], raw_found),
            (&[0, 0, 0, 1], raw_found),
            (&[], raw_found),
        ] {
            assert_eq!(detected(head, raw), expected, "{head:02x?}");
        }
    }
}
