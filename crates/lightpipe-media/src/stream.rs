//! The hub: a named live thing, its access units going out, what its outlets want coming back.
//!
//! ```text
//!   encoder ──publish──▶ Stream ──deliver──▶ Outlet (viewer, recorder, …), each with its own bounded queue
//!      ▲                   │
//!      └──────Demand───────┘  keyframe, bitrate, "nobody wants this"
//! ```
//!
//! No outlet waits for another and the producer waits for none: [`Outlet::deliver`] must not block.
//!
//! A stream that we encode ourselves may have alternatives: the same pictures in another coding, for outlets that cannot take
//! the first. Each is a `Stream` of its own with its own demand, and encoded only while that says so. Sound, the source's
//! health and what a source waits for are the main stream's.
//!
//! Each coding may have layers: the same pictures smaller, for networks that carry less. A layer is a `Stream` like an
//! alternative; the one that it was added to is the best of them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::access_unit::{AccessUnit, VideoCodec};
use crate::adapt::OperatingPoint;
use crate::audio::AudioPacket;
use crate::frame::Size;
use crate::histogram::Histogram;
use crate::playout::PlayoutFigures;
use crate::time::MediaTime;

/// Shortest time between two keyframes made on request.
///
/// An IDR is several times the size of the frames around it. Ten viewers joining in the same second
/// must cost a few bursts on the uplink, so requests inside this window share a keyframe.
pub const KEYFRAME_REQUEST_HOLDOFF: Duration = Duration::from_millis(300);

/// The same where requests do not end: each keyframe that was made on request in the last [`REQUESTED_SPAN`] puts the next one off by a
/// holdoff, up to this.
///
/// Of many viewers there is always one that has just lost something, and on a narrow path each keyframe delays the pictures of all the
/// others. Who lost a picture still has one again after about a second. A single viewer asks for nobody but itself.
const KEYFRAME_REQUEST_HOLDOFF_MAX: Duration = Duration::from_secs(1);
const REQUESTED_SPAN: Duration = Duration::from_secs(10);

/// The same while pictures are fewer or smaller than the whole ([`Stream::set_adapted`]). A keyframe has the bytes of some six pictures, at 15 a
/// second 0.4 s of what the network carries: with three of them a second each loses what asks for the next (measured in virtual time, at
/// 150 kbit/s).
pub const KEYFRAME_REQUEST_HOLDOFF_ADAPTED: Duration = Duration::from_secs(1);

/// Share of a network's estimate that pictures may take; the rest is for headers, retransmission and feedback.
pub const ESTIMATE_SHARE: f64 = 0.85;

/// Below this a 720p picture is not worth sending; an outlet that carries less is slow anyway.
const MIN_BITRATE_BPS: u64 = 150_000;

/// Span and number of pictures that [`Stream::rates`] looks at.
const RECENT_SPAN: Duration = Duration::from_secs(2);
const RECENT_MAX: usize = 512;

/// Takes the access units of a stream. Called on the producer's thread: must not block.
pub trait Outlet: Send + Sync {
    /// One more picture.
    fn deliver(&self, unit: &Arc<AccessUnit>);

    /// One more frame of sound. Outlets that have no use for it leave it.
    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        let _ = packet;
    }

    /// Whether a network lies behind it, of which [`Subscription::set_bitrate`] tells what it carries. Others, such as a file, take as much
    /// as there is.
    fn has_network(&self) -> bool {
        false
    }
}

/// What the outlets together want of the producer, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Somebody takes the pictures. Without this an encoder stops.
    pub wanted: bool,
    /// The next picture should be a keyframe.
    pub keyframe: bool,
    /// What the best of the outlets' networks carries, bits per second; `None` while nobody knows, and while an outlet has no network
    /// behind it.
    pub bitrate_bps: Option<u64>,
}

impl Demand {
    /// What an encoder should aim for that is configured for so many bits per second. `floor_bps` is the lowest that it goes to where there
    /// is a layer below it, or where it makes its pictures smaller itself (see [`crate::adapt`]).
    pub fn target_bps(&self, configured_bps: u64, floor_bps: Option<u64>) -> u64 {
        let Some(estimate) = self.bitrate_bps else { return configured_bps };
        let floor = floor_bps.unwrap_or(MIN_BITRATE_BPS).min(configured_bps);
        ((estimate as f64 * ESTIMATE_SHARE) as u64).clamp(floor, configured_bps)
    }
}

/// Where the pictures of a stream come from, for those who look at it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Health {
    /// Not started, or started and no picture yet.
    #[default]
    Starting,
    /// Pictures come.
    Live,
    /// None come; the reason names whose fault it is.
    Failed(String),
}

/// One layer of a ladder: what it aims for.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulcastLayer {
    /// Its name in SDP and in the API (RFC 8851): letters and digits, unique in its ladder.
    pub rid: String,
    /// Size of its pictures.
    pub size: Size,
    /// Target bitrate, bits per second.
    pub bitrate_bps: u64,
    /// Pictures per second at most.
    pub fps: f64,
}

impl SimulcastLayer {
    /// The lowest rate that its encoder goes to while there is a layer below it, bits per second: with less, the layer below looks better.
    pub const fn floor_bps(&self) -> u64 {
        self.bitrate_bps / 2
    }
}

/// How fast a stream runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Pictures per second.
    pub fps: f64,
    /// Bits per second.
    pub bitrate_bps: u64,
}

/// Counters and last values of a stream's sound.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AudioStats {
    /// Packets published.
    pub published: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Root mean square of the last frame, 0 to 1; `None` for sound that we do not decode.
    pub level: Option<f32>,
    /// Encoder failures.
    pub errors: u64,
    /// Raw blocks dropped before the encoder because it was busy.
    pub blocks_dropped: u64,
    /// How much faster than ours the clock of the sound device runs, parts per million; `None` for sound made by our clock.
    pub drift_ppm: Option<f64>,
}

/// Counters and last values of a stream.
#[derive(Debug, Clone, Default)]
pub struct StreamStats {
    /// Access units published.
    pub published: u64,
    /// Keyframes among them.
    pub keyframes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Keyframe requests of outlets; compare with `keyframes`.
    pub keyframe_requests: u64,
    /// Raw pictures that came from the source (while somebody watched).
    pub raw_frames: u64,
    /// Raw pictures dropped before the encoder because it was busy.
    pub raw_dropped: u64,
    /// Pictures that the encoder's rate control skipped.
    pub encoder_skipped: u64,
    /// Encoder failures.
    pub encoder_errors: u64,
    /// Size of the last access unit's picture.
    pub size: Option<Size>,
    /// Bitrate that the encoder aims for now, bits per second.
    pub target_bitrate_bps: Option<u64>,
    /// What the encoder makes of the source's pictures for want of a network that carries the whole; `None` while it makes the whole.
    pub adapted: Option<OperatingPoint>,
    /// Changes of that, down and up.
    pub adaptations: u64,
    /// What its encoder's thread took of the CPU in the last second, in cores; `None` while it rests.
    pub encoder_cores: Option<f64>,
    /// Times that an encoder was started.
    pub encoder_starts: u64,
    /// Capture to the whole picture in our process.
    pub capture: Histogram,
    /// Waiting for the encoder, colour conversion and scaling included.
    pub queue: Histogram,
    /// Encoding.
    pub encode: Histogram,
    /// Sound.
    pub audio: AudioStats,
    /// How it is played here, as of the last second; `None` while it is not.
    pub playout: Option<Arc<PlayoutFigures>>,
}

/// A named live thing. Shared behind an `Arc` by its producer and its outlets.
#[derive(Debug)]
pub struct Stream {
    name: String,
    state: Mutex<State>,
    /// Signalled when somebody starts wanting the stream, and when it closes.
    wanted: Condvar,
    next_outlet: AtomicU64,
    has_audio: AtomicBool,
    no_video: AtomicBool,
    /// The same pictures in other codings.
    alternatives: Mutex<Vec<Arc<Self>>>,
    /// The same pictures in the same coding, smaller; from the best to the least.
    layers: Mutex<Vec<Arc<Self>>>,
    /// What it is in a ladder.
    layer: Mutex<Option<SimulcastLayer>>,
    /// A layer that was taken off its ladder.
    taken_off: AtomicBool,
    /// Why a layer rests.
    resting: Mutex<Option<String>>,
    /// Of an alternative or a layer: the stream that it belongs to. A lock of the main stream may be held while one of an alternative is
    /// taken, never the other way round.
    main: Option<Weak<Self>>,
    /// What comes from the source is encoded already, so there is nothing for alternatives.
    encoded_before: AtomicBool,
}

struct State {
    codec: VideoCodec,
    outlets: HashMap<u64, OutletEntry>,
    /// Outlets of the alternatives and of all layers.
    outlets_elsewhere: usize,
    keyframe_requested: bool,
    last_keyframe: Option<MediaTime>,
    /// When keyframes were last made on request, for [`REQUESTED_SPAN`].
    requested: VecDeque<MediaTime>,
    closed: bool,
    health: Health,
    /// None: as well as the pictures, with which it comes.
    audio_health: Option<Health>,
    capture_delay: Duration,
    stats: StreamStats,
    /// When the last pictures were published, and their bytes.
    recent: VecDeque<(MediaTime, usize)>,
}

impl State {
    fn new(codec: VideoCodec) -> Self {
        Self {
            codec,
            outlets: HashMap::new(),
            outlets_elsewhere: 0,
            keyframe_requested: false,
            last_keyframe: None,
            requested: VecDeque::new(),
            closed: false,
            health: Health::default(),
            audio_health: None,
            capture_delay: Duration::ZERO,
            stats: StreamStats::default(),
            recent: VecDeque::new(),
        }
    }

    /// Shortest time from the last keyframe to the next one that is made on request.
    fn holdoff(&mut self, now: MediaTime) -> Duration {
        while self.requested.front().is_some_and(|at| now.since(*at) > REQUESTED_SPAN) {
            self.requested.pop_front();
        }
        if self.stats.adapted.is_some() {
            return KEYFRAME_REQUEST_HOLDOFF_ADAPTED;
        }
        let many = self.outlets.values().map(|entry| entry.viewers).sum::<usize>() > 1;
        let times = if many { self.requested.len().max(1) } else { 1 };
        (KEYFRAME_REQUEST_HOLDOFF * times as u32).min(KEYFRAME_REQUEST_HOLDOFF_MAX)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("outlets", &self.outlets.len())
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

struct OutletEntry {
    outlet: Arc<dyn Outlet>,
    bitrate_bps: Option<u64>,
    audio_loss: f32,
    viewers: usize,
}

/// An outlet's place in a stream. Dropping it takes the outlet off.
#[must_use = "the outlet is removed when this is dropped"]
#[derive(Debug)]
pub struct Subscription {
    stream: Weak<Stream>,
    id: u64,
}

impl Stream {
    /// A stream without a producer yet.
    pub fn new(name: impl Into<String>, codec: VideoCodec) -> Arc<Self> {
        Arc::new(Self::with_main(name.into(), codec, None))
    }

    fn with_main(name: String, codec: VideoCodec, main: Option<Weak<Self>>) -> Self {
        Self {
            name,
            state: Mutex::new(State::new(codec)),
            wanted: Condvar::new(),
            next_outlet: AtomicU64::new(0),
            has_audio: AtomicBool::new(false),
            no_video: AtomicBool::new(false),
            alternatives: Mutex::new(Vec::new()),
            layers: Mutex::new(Vec::new()),
            layer: Mutex::new(None),
            taken_off: AtomicBool::new(false),
            resting: Mutex::new(None),
            main,
            encoded_before: AtomicBool::new(false),
        }
    }

    /// Producer side: from now on the pictures can be had in `codec` as well, from the stream that this answers. Who publishes
    /// there encodes while its [`Self::demand`] says so.
    pub fn add_alternative(self: &Arc<Self>, codec: VideoCodec) -> Arc<Self> {
        let alternative = Arc::new(Self::with_main(self.name.clone(), codec, Some(Arc::downgrade(self))));
        alternative.has_audio.store(self.has_audio(), Relaxed);
        self.lock_alternatives().push(Arc::clone(&alternative));
        alternative
    }

    /// The alternatives that can be had now, in the order in which they were added.
    pub fn alternatives(&self) -> Vec<Arc<Self>> {
        if self.encoded_before.load(Relaxed) { Vec::new() } else { self.lock_alternatives().clone() }
    }

    /// This stream or its alternative in `codec`, if that can be had.
    pub fn in_codec(self: &Arc<Self>, codec: VideoCodec) -> Option<Arc<Self>> {
        if self.codec() == codec {
            return Some(Arc::clone(self));
        }
        self.alternatives().into_iter().find(|alternative| alternative.codec() == codec)
    }

    /// Producer side: whether what comes from the source is encoded already. Then no alternative can be had.
    pub fn set_encoded_before(&self, encoded: bool) {
        self.encoded_before.store(encoded, Relaxed);
    }

    /// Whether this is an alternative or a layer that can be had no longer: no picture will come.
    pub fn is_withdrawn(&self) -> bool {
        self.taken_off.load(Relaxed)
            || self
                .main
                .as_ref()
                .is_some_and(|main| main.upgrade().is_none_or(|main| main.encoded_before.load(Relaxed)))
    }

    /// Producer side: from now on this is the best layer of a ladder, and below it stand the ones that this answers, from the best
    /// to the least. Who publishes there encodes while their [`Self::demand`] says so. Layers that there were are withdrawn.
    pub fn set_layers(self: &Arc<Self>, own: SimulcastLayer, lower: Vec<SimulcastLayer>) -> Vec<Arc<Self>> {
        let main = self.main.clone().unwrap_or_else(|| Arc::downgrade(self));
        let layers: Vec<Arc<Self>> = lower
            .into_iter()
            .map(|layer| {
                let stream = Self::with_main(self.name.clone(), self.codec(), Some(main.clone()));
                stream.has_audio.store(self.has_audio(), Relaxed);
                stream.set_layer(Some(layer));
                Arc::new(stream)
            })
            .collect();
        self.set_layer(Some(own));
        for old in std::mem::replace(&mut *self.lock_layers(), layers.clone()) {
            old.taken_off.store(true, Relaxed);
        }
        layers
    }

    /// Producer side: pictures come in one size only. Layers that there were are withdrawn.
    pub fn without_layers(&self) {
        self.set_layer(None);
        for old in std::mem::take(&mut *self.lock_layers()) {
            old.taken_off.store(true, Relaxed);
        }
    }

    /// Producer side: a layer became another than it was told to be; its name stays.
    pub fn update_layer(&self, layer: SimulcastLayer) {
        self.set_layer(Some(layer));
    }

    /// What this is in a ladder, if it is in one.
    pub fn layer(&self) -> Option<SimulcastLayer> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The layers in this coding that can be had now, from the best to the least: this stream and those below it.
    pub fn layers(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let lower = self.lock_layers().clone();
        std::iter::once(Arc::clone(self)).chain(lower.into_iter().filter(|layer| !layer.is_withdrawn())).collect()
    }

    /// Producer side: why no pictures can be had here for a while, although layers beside it go on; `None` once they can.
    pub fn set_resting(&self, reason: Option<String>) {
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Why this layer is left out now: its encoder fails or is too slow. It is tried again, and meanwhile another one serves.
    pub fn resting(&self) -> Option<String> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// State of this layer by itself: why it rests, else as the stream. The best layer is as well as its source while the others go on.
    pub fn layer_health(&self) -> Health {
        self.resting().map_or_else(|| self.health(), Health::Failed)
    }

    /// The alternatives with all layers, their own and this stream's.
    fn family(&self) -> Vec<Arc<Self>> {
        let mut family = self.lock_layers().clone();
        for alternative in self.lock_alternatives().iter() {
            family.push(Arc::clone(alternative));
            family.extend(alternative.lock_layers().iter().cloned());
        }
        family
    }

    fn set_layer(&self, layer: Option<SimulcastLayer>) {
        *self.layer.lock().unwrap_or_else(PoisonError::into_inner) = layer;
    }

    fn lock_layers(&self) -> MutexGuard<'_, Vec<Arc<Self>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn main(&self) -> Option<Arc<Self>> {
        self.main.as_ref()?.upgrade()
    }

    fn lock_alternatives(&self) -> MutexGuard<'_, Vec<Arc<Self>>> {
        self.alternatives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, unique in a process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Coding of its access units.
    pub fn codec(&self) -> VideoCodec {
        self.lock().codec
    }

    /// Producer side: what will come turned out just now, as with a stream of somebody else's server. Who came before expects what it
    /// was told; end those viewers where the codec changes.
    pub fn set_tracks(&self, video: Option<VideoCodec>, audio: bool) {
        if let Some(codec) = video {
            self.lock().codec = codec;
        }
        self.no_video.store(video.is_none(), Relaxed);
        self.has_audio.store(audio, Relaxed);
    }

    /// Adds an outlet and asks for a keyframe on its behalf.
    pub fn subscribe(self: &Arc<Self>, outlet: Arc<dyn Outlet>) -> Subscription {
        let id = self.next_outlet.fetch_add(1, Relaxed);
        {
            let mut state = self.lock();
            state.outlets.insert(id, OutletEntry { outlet, bitrate_bps: None, audio_loss: 0.0, viewers: 1 });
            state.keyframe_requested = true;
            state.stats.keyframe_requests += 1;
        }
        self.wanted.notify_all();
        if let Some(main) = self.main() {
            main.lock().outlets_elsewhere += 1;
            main.wanted.notify_all();
        }
        Subscription { stream: Arc::downgrade(self), id }
    }

    /// Number of outlets, those of the alternatives and layers included: what a source goes by.
    pub fn outlets(&self) -> usize {
        let state = self.lock();
        state.outlets.len() + state.outlets_elsewhere
    }

    /// Number of outlets that take the pictures in this very coding and layer: what an encoder goes by.
    pub fn own_outlets(&self) -> usize {
        self.lock().outlets.len()
    }

    /// Producer side: sends one access unit to every outlet.
    pub fn publish(&self, unit: &Arc<AccessUnit>) {
        let outlets: Vec<Arc<dyn Outlet>> = {
            let mut state = self.lock();
            let stages = unit.stages;
            let stats = &mut state.stats;
            stats.published += 1;
            stats.bytes += unit.data.len() as u64;
            stats.size = Some(unit.size);
            stats.capture.record(stages.received.since(unit.captured));
            stats.queue.record(stages.encode_started.since(stages.received));
            stats.encode.record(stages.encoded.since(stages.encode_started));
            if unit.keyframe {
                stats.keyframes += 1;
                state.last_keyframe = Some(stages.encoded);
                state.keyframe_requested = false;
            }
            state.health = Health::Live;
            state.recent.push_back((stages.encoded, unit.data.len()));
            while state.recent.len() > RECENT_MAX
                || state.recent.front().is_some_and(|(at, _)| stages.encoded.since(*at) > RECENT_SPAN)
            {
                state.recent.pop_front();
            }
            state.outlets.values().map(|e| Arc::clone(&e.outlet)).collect()
        };
        if let Some(main) = self.main() {
            let mut state = main.lock();
            // While the main stream is encoded too, its own encoder says how it is.
            if state.outlets.is_empty() {
                state.health = Health::Live;
            }
        }
        // Outside the lock: an outlet may call back (drop its subscription, ask for a keyframe).
        for outlet in outlets {
            outlet.deliver(unit);
        }
    }

    /// Producer side: from now on there is sound too. Who came before does not hear it.
    pub fn add_audio(&self) {
        self.has_audio.store(true, Relaxed);
        for other in self.family() {
            other.has_audio.store(true, Relaxed);
        }
    }

    /// Producer side: the input turned out to have no sound. Who was promised some hears nothing.
    pub fn remove_audio(&self) {
        self.has_audio.store(false, Relaxed);
    }

    /// Producer side: there are no pictures, only sound.
    pub fn without_video(&self) {
        self.no_video.store(true, Relaxed);
    }

    /// Producer side: pictures join what was sound alone. Who came before does not see them.
    pub fn add_video(&self) {
        self.no_video.store(false, Relaxed);
    }

    /// Whether there are pictures; ordinarily there are.
    pub fn has_video(&self) -> bool {
        !self.no_video.load(Relaxed)
    }

    /// Whether there is sound.
    pub fn has_audio(&self) -> bool {
        self.has_audio.load(Relaxed)
    }

    /// Producer side: sends one frame of sound to every outlet, those of the alternatives included. `level` is its root mean square, 0 to 1, if known.
    pub fn publish_audio(&self, packet: &Arc<AudioPacket>, level: Option<f32>) {
        let mut outlets: Vec<Arc<dyn Outlet>> = {
            let mut state = self.lock();
            let stats = &mut state.stats.audio;
            stats.published += 1;
            stats.bytes += packet.data.len() as u64;
            stats.level = level;
            state.outlets.values().map(|e| Arc::clone(&e.outlet)).collect()
        };
        for other in self.family() {
            outlets.extend(other.lock().outlets.values().map(|e| Arc::clone(&e.outlet)));
        }
        for outlet in outlets {
            outlet.deliver_audio(packet);
        }
    }

    /// Producer side: the largest share of sound that an outlet's network loses, 0 to 1.
    pub fn audio_loss(&self) -> f32 {
        let own = self.lock().outlets.values().map(|e| e.audio_loss).fold(0.0, f32::max);
        self.family()
            .iter()
            .map(|other| other.lock().outlets.values().map(|e| e.audio_loss).fold(0.0, f32::max))
            .fold(own, f32::max)
    }

    /// Producer side: what is wanted at `now` of this very coding. A keyframe that this reports counts as under way, until
    /// the holdoff is over; a request inside the holdoff waits for its end, it is not lost.
    pub fn demand(&self, now: MediaTime) -> Demand {
        let mut state = self.lock();
        let holdoff = state.holdoff(now);
        let held_off = state.last_keyframe.is_some_and(|at| now.since(at) < holdoff && now >= at);
        let keyframe = state.keyframe_requested && !held_off;
        if keyframe {
            state.keyframe_requested = false;
            state.last_keyframe = Some(now);
            state.requested.push_back(now);
        }
        let limited = state.outlets.values().all(|entry| entry.outlet.has_network());
        Demand {
            wanted: !state.outlets.is_empty(),
            keyframe,
            bitrate_bps: state.outlets.values().filter_map(|e| e.bitrate_bps).max().filter(|_| limited),
        }
    }

    /// Producer side: waits up to `timeout` until somebody wants the stream, in whatever coding. True when somebody does.
    pub fn wait_wanted(&self, timeout: Duration) -> bool {
        let (state, _) = self
            .wanted
            .wait_timeout_while(self.lock(), timeout, |s| s.outlets.is_empty() && s.outlets_elsewhere == 0 && !s.closed)
            .unwrap_or_else(PoisonError::into_inner);
        !state.outlets.is_empty() || state.outlets_elsewhere > 0
    }

    /// Outlet side: the only viewer's display shows pictures just as soon if they are taken this much later.
    pub fn delay_capture(&self, by: Duration) {
        match self.main() {
            Some(main) => main.lock().capture_delay = by,
            None => self.lock().capture_delay = by,
        }
    }

    /// Producer side: how much later to take pictures from now on, once for each wish. Honoured by sources that
    /// choose their own time (`cube`, `pattern`); it takes up to half a display interval off the latency.
    pub fn take_capture_delay(&self) -> Duration {
        std::mem::take(&mut self.lock().capture_delay)
    }

    /// Producer side: what the encoder makes of the source's pictures from now on for want of a network that carries the whole; `None`: the whole.
    /// Keyframes that are asked for are further apart meanwhile.
    pub fn set_adapted(&self, point: Option<OperatingPoint>) {
        let stats = &mut self.lock().stats;
        stats.adaptations += 1;
        stats.adapted = point;
    }

    /// Producer side: changes the counters.
    pub fn update_stats(&self, change: impl FnOnce(&mut StreamStats)) {
        change(&mut self.lock().stats);
    }

    /// Bitrate that the encoder aims for now, bits per second; `None` while there is none.
    pub fn target_bitrate_bps(&self) -> Option<u64> {
        self.lock().stats.target_bitrate_bps
    }

    /// Counters and last values.
    pub fn stats(&self) -> StreamStats {
        self.lock().stats.clone()
    }

    /// Pictures and bits per second around `now`; zero when nothing was published lately.
    pub fn rates(&self, now: MediaTime) -> Rates {
        let state = self.lock();
        let (Some((first, _)), Some((last, _))) = (state.recent.front(), state.recent.back()) else {
            return Rates::default();
        };
        let seconds = last.since(*first).as_secs_f64();
        if seconds <= 0.0 || now.since(*last) > RECENT_SPAN {
            return Rates::default();
        }
        // The first picture opens the interval; what it carried came before.
        let bytes: usize = state.recent.iter().skip(1).map(|(_, bytes)| bytes).sum();
        Rates { fps: (state.recent.len() - 1) as f64 / seconds, bitrate_bps: (bytes as f64 * 8.0 / seconds) as u64 }
    }

    /// State of the source of pictures; of the sound where there is nothing else.
    pub fn health(&self) -> Health {
        let state = self.lock();
        match &state.audio_health {
            Some(health) if !self.has_video() => health.clone(),
            _ => state.health.clone(),
        }
    }

    /// State of the source of sound.
    pub fn audio_health(&self) -> Health {
        let state = self.lock();
        state.audio_health.as_ref().unwrap_or(&state.health).clone()
    }

    /// Source side: sets the state of the sound. Pictures are as well as they were.
    pub fn set_audio_health(&self, health: Health) {
        self.lock().audio_health = Some(health);
    }

    /// Source side: sets the state that people see.
    pub fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    /// Ends the stream: waiting producers wake up, [`Self::is_closed`] turns true.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wanted.notify_all();
    }

    /// Whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Asks for a keyframe soon (a viewer joined, or lost more than retransmission repairs).
    pub fn request_keyframe(&self) {
        if let Some(stream) = self.stream.upgrade() {
            let mut state = stream.lock();
            state.keyframe_requested = true;
            state.stats.keyframe_requests += 1;
        }
    }

    /// Tells how many viewers this outlet serves; one when not said.
    pub fn set_viewers(&self, viewers: usize) {
        if let Some(stream) = self.stream.upgrade()
            && let Some(entry) = stream.lock().outlets.get_mut(&self.id)
        {
            entry.viewers = viewers;
        }
    }

    /// Tells which share of sound this outlet's network loses, 0 to 1.
    pub fn set_audio_loss(&self, loss: f32) {
        if let Some(stream) = self.stream.upgrade()
            && let Some(entry) = stream.lock().outlets.get_mut(&self.id)
        {
            entry.audio_loss = loss;
        }
    }

    /// Tells what this outlet's network carries, bits per second. It counts while each outlet has a network.
    pub fn set_bitrate(&self, bps: Option<u64>) {
        if let Some(stream) = self.stream.upgrade()
            && let Some(entry) = stream.lock().outlets.get_mut(&self.id)
        {
            entry.bitrate_bps = bps;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.upgrade() {
            let removed = stream.lock().outlets.remove(&self.id);
            if let Some(main) = stream.main().filter(|_| removed.is_some()) {
                main.lock().outlets_elsewhere -= 1;
            }
            // The outlet itself is dropped outside the lock.
            drop(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_unit::Stages;

    #[derive(Default)]
    struct Counting(AtomicU64, AtomicU64);

    impl Counting {
        fn pictures(&self) -> u64 {
            self.0.load(Relaxed)
        }

        fn sounds(&self) -> u64 {
            self.1.load(Relaxed)
        }
    }

    impl Outlet for Counting {
        fn deliver(&self, _: &Arc<AccessUnit>) {
            self.0.fetch_add(1, Relaxed);
        }

        fn deliver_audio(&self, _: &Arc<AudioPacket>) {
            self.1.fetch_add(1, Relaxed);
        }
    }

    /// One with a network.
    struct Remote;

    impl Outlet for Remote {
        fn deliver(&self, _: &Arc<AccessUnit>) {}

        fn has_network(&self) -> bool {
            true
        }
    }

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    fn unit(ms: i64, keyframe: bool) -> Arc<AccessUnit> {
        let data: &[u8] = if keyframe { &[0, 0, 0, 1, 0x65, 0x88] } else { &[0, 0, 0, 1, 0x41, 0x9a] };
        Arc::new(AccessUnit::new(VideoCodec::H264, data, at(ms), keyframe, Size::new(16, 16), Stages::all_at(at(ms))))
    }

    fn sound() -> Arc<AudioPacket> {
        Arc::new(AudioPacket {
            data: [1].into(),
            captured: at(0),
            duration: Duration::from_millis(20),
            encoded: at(0),
            starts_talkspurt: false,
            origin: None,
        })
    }

    #[test]
    fn every_outlet_gets_every_unit_and_a_dropped_subscription_none() {
        let stream = Stream::new("s", VideoCodec::H264);
        let (a, b) = (Arc::new(Counting::default()), Arc::new(Counting::default()));
        let _sub_a = stream.subscribe(a.clone());
        let sub_b = stream.subscribe(b.clone());
        stream.publish(&unit(0, true));
        drop(sub_b);
        stream.publish(&unit(33, false));
        assert_eq!((a.pictures(), b.pictures()), (2, 1));
        assert_eq!(stream.outlets(), 1);
        assert_eq!(Arc::strong_count(&b), 1, "no reference to a gone outlet stays behind");
    }

    #[test]
    fn keyframe_requests_of_many_viewers_share_one_idr_per_holdoff() {
        let stream = Stream::new("s", VideoCodec::H264);
        let subs: Vec<_> = (0..10).map(|_| stream.subscribe(Arc::new(Counting::default()))).collect();
        assert!(stream.demand(at(0)).keyframe);
        stream.publish(&unit(0, true));
        for sub in &subs {
            sub.request_keyframe();
        }
        assert!(!stream.demand(at(33)).keyframe, "inside the holdoff");
        assert!(!stream.demand(at(299)).keyframe);
        assert!(stream.demand(at(300)).keyframe, "kept until the holdoff is over, not lost");
        assert!(!stream.demand(at(333)).keyframe, "one is under way");
        assert_eq!(stream.stats().keyframe_requests, 20);
    }

    /// Of many viewers one always asks; a single one asks for itself.
    #[test]
    fn keyframes_that_are_always_asked_for_come_ever_more_seldom() {
        #[track_caller]
        fn check(viewers: usize, pauses: &[i64]) {
            let stream = Stream::new("s", VideoCodec::H264);
            let sub = stream.subscribe(Arc::new(Counting::default()));
            sub.set_viewers(viewers);
            let made = |from: i64, to: i64| -> Vec<i64> {
                let asks = |ms: &i64| {
                    sub.request_keyframe();
                    stream.demand(at(*ms)).keyframe
                };
                (from..to).step_by(100).filter(asks).collect()
            };
            let pauses_of = |made: &[i64]| made.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
            assert_eq!(pauses_of(&made(0, 4_900)), pauses);
            assert_eq!(pauses_of(&made(20_000, 20_700)).first(), Some(&300), "forgotten");
        }
        check(1, &[300; 16]);
        check(2, &[300, 600, 900, 1_000, 1_000, 1_000]);
        check(50, &[300, 600, 900, 1_000, 1_000, 1_000]);
    }

    #[test]
    fn bitrate_demand_is_the_best_outlet_and_forgets_with_it() {
        let stream = Stream::new("s", VideoCodec::H264);
        assert_eq!(stream.demand(at(0)), Demand::default());
        let slow = stream.subscribe(Arc::new(Remote));
        let fast = stream.subscribe(Arc::new(Remote));
        assert_eq!(stream.demand(at(0)).bitrate_bps, None);
        slow.set_bitrate(Some(500_000));
        fast.set_bitrate(Some(4_000_000));
        assert_eq!(stream.demand(at(1)).bitrate_bps, Some(4_000_000));
        drop(fast);
        assert_eq!(stream.demand(at(2)).bitrate_bps, Some(500_000));
        let unknown = stream.subscribe(Arc::new(Remote));
        assert_eq!(stream.demand(at(2)).bitrate_bps, Some(500_000), "who came just now may have no more");
        let file = stream.subscribe(Arc::new(Counting::default()));
        assert_eq!(stream.demand(at(2)).bitrate_bps, None, "a file takes the whole");
        drop(file);
        assert_eq!(stream.demand(at(2)).bitrate_bps, Some(500_000));
        drop((slow, unknown));
        assert!(!stream.demand(at(3)).wanted);
    }

    #[track_caller]
    fn check_target(configured: u64, estimate: Option<u64>, floor: Option<u64>, expected: u64) {
        let demand = Demand { bitrate_bps: estimate, ..Demand::default() };
        assert_eq!(demand.target_bps(configured, floor), expected, "{configured} with {estimate:?}");
    }

    #[test]
    fn bitrate_follows_the_best_outlet_within_bounds() {
        check_target(2_500_000, None, None, 2_500_000);
        check_target(2_500_000, Some(10_000_000), None, 2_500_000);
        check_target(2_500_000, Some(1_000_000), None, 850_000);
        check_target(2_500_000, Some(10_000), None, 150_000);
        check_target(100_000, Some(10_000), None, 100_000);
        check_target(2_500_000, Some(1_000_000), Some(1_250_000), 1_250_000);
        check_target(2_500_000, Some(2_000_000), Some(1_250_000), 1_700_000);
    }

    #[test]
    fn sound_that_fails_is_the_streams_failure_only_where_there_is_nothing_else() {
        let failed = || Health::Failed("no such device".into());
        let stream = Stream::new("s", VideoCodec::H264);
        stream.set_health(Health::Live);
        stream.set_audio_health(failed());
        assert_eq!((stream.health(), stream.audio_health()), (Health::Live, failed()));
        stream.without_video();
        assert_eq!(stream.health(), failed());
        stream.add_video();
        assert_eq!(stream.health(), Health::Live);
    }

    #[test]
    fn a_wish_for_later_pictures_is_given_once() {
        let stream = Stream::new("s", VideoCodec::H264);
        stream.delay_capture(Duration::from_millis(9));
        assert_eq!(stream.take_capture_delay(), Duration::from_millis(9));
        assert_eq!(stream.take_capture_delay(), Duration::ZERO);
    }

    #[test]
    fn rates_are_of_the_last_seconds_and_zero_when_idle() {
        let stream = Stream::new("s", VideoCodec::H264);
        for n in 0..120 {
            stream.publish(&unit(n * 20, n == 0));
        }
        let rates = stream.rates(at(119 * 20));
        assert!((rates.fps - 50.0).abs() < 0.5, "{rates:?}");
        assert_eq!(rates.bitrate_bps, 50 * 6 * 8, "six bytes a picture");
        assert_eq!(stream.rates(at(10_000)), Rates::default());
    }

    #[track_caller]
    fn check_wakes(stream: &Arc<Stream>, asked: &Arc<Stream>) {
        assert!(!stream.wait_wanted(Duration::ZERO));
        let waiter = std::thread::spawn({
            let stream = stream.clone();
            move || stream.wait_wanted(Duration::from_secs(30))
        });
        let _sub = asked.subscribe(Arc::new(Counting::default()));
        assert!(waiter.join().expect("waiter"));
    }

    #[test]
    fn waiting_producer_wakes_when_somebody_comes() {
        let stream = Stream::new("s", VideoCodec::H264);
        check_wakes(&stream, &stream);
        check_wakes(&stream, &stream.add_alternative(VideoCodec::Vp8));
    }

    #[test]
    fn an_alternative_has_its_own_pictures_and_demand_and_the_main_streams_sound() {
        let stream = Stream::new("s", VideoCodec::H264);
        let vp8 = stream.add_alternative(VideoCodec::Vp8);
        stream.add_audio();
        assert!(vp8.has_audio());
        let there = Arc::new(Counting::default());
        let sub = vp8.subscribe(there.clone());
        assert_eq!((stream.outlets(), stream.own_outlets(), vp8.own_outlets()), (1, 0, 1));
        assert_eq!(vp8.demand(at(0)), Demand { wanted: true, keyframe: true, bitrate_bps: None });
        assert_eq!(stream.demand(at(0)), Demand::default(), "nobody takes H.264, and no keyframe of it is asked for");

        stream.publish(&unit(0, true));
        assert_eq!((there.pictures(), stream.stats().published, vp8.stats().published), (0, 1, 0));
        stream.publish_audio(&sound(), None);
        assert_eq!(there.sounds(), 1);
        stream.set_health(Health::Failed("gone".into()));
        vp8.publish(&unit(0, true));
        assert_eq!((there.pictures(), stream.stats().published, vp8.stats().published), (1, 1, 1));
        assert_eq!(stream.health(), Health::Live, "pictures come, if not in its own coding");

        sub.set_audio_loss(0.25);
        assert_eq!(stream.audio_loss(), 0.25);
        vp8.delay_capture(Duration::from_millis(9));
        assert_eq!(stream.take_capture_delay(), Duration::from_millis(9));
        drop(sub);
        assert_eq!((stream.outlets(), vp8.own_outlets()), (0, 0));
    }

    fn layer(rid: &str, width: u32) -> SimulcastLayer {
        SimulcastLayer { rid: rid.into(), size: Size::new(width, width / 2), bitrate_bps: 1000, fps: 30.0 }
    }

    #[test]
    fn layers_have_their_own_demand_and_the_main_streams_sound() {
        let stream = Stream::new("s", VideoCodec::H264);
        let vp8 = stream.add_alternative(VideoCodec::Vp8);
        let rids = |stream: &Arc<Stream>| -> Vec<String> {
            stream.layers().iter().filter_map(|l| l.layer()).map(|l| l.rid).collect()
        };
        assert_eq!((stream.layers().len(), rids(&stream)), (1, vec![]), "no ladder");
        let lower = stream.set_layers(layer("f", 64), vec![layer("h", 32), layer("q", 16)]);
        let vp8_lower = vp8.set_layers(layer("f", 64), vec![layer("q", 16)]);
        assert_eq!(
            (rids(&stream), rids(&vp8)),
            (vec!["f".into(), "h".into(), "q".into()], vec!["f".into(), "q".into()])
        );
        assert_eq!((vp8_lower[0].codec(), vp8_lower[0].name()), (VideoCodec::Vp8, "s"));
        stream.add_audio();
        assert!(lower[1].has_audio() && vp8_lower[0].has_audio());

        let there = Arc::new(Counting::default());
        let sub = vp8_lower[0].subscribe(there.clone());
        assert_eq!((stream.outlets(), stream.own_outlets(), vp8_lower[0].own_outlets()), (1, 0, 1));
        assert!(vp8_lower[0].demand(at(0)).wanted && !stream.demand(at(0)).wanted && !lower[0].demand(at(0)).wanted);
        stream.publish_audio(&sound(), None);
        sub.set_audio_loss(0.5);
        assert_eq!((there.sounds(), stream.audio_loss()), (1, 0.5));
        drop(sub);
        assert_eq!(stream.outlets(), 0);

        let again = stream.set_layers(layer("f", 64), vec![layer("h", 48)]);
        assert!(lower.iter().all(|old| old.is_withdrawn()) && !again[0].is_withdrawn());
        assert_eq!(rids(&stream), ["f", "h"]);
        stream.set_encoded_before(true);
        assert_eq!(stream.layers().len(), 1, "the source encodes, and in one size");
        stream.without_layers();
        assert!(again[0].is_withdrawn() && stream.layer().is_none());
    }

    #[test]
    fn nothing_is_had_in_another_coding_while_the_source_encodes() {
        let stream = Stream::new("s", VideoCodec::H264);
        assert!(stream.in_codec(VideoCodec::Vp8).is_none());
        let vp8 = stream.add_alternative(VideoCodec::Vp8);
        assert!(Arc::ptr_eq(&stream.in_codec(VideoCodec::Vp8).expect("added"), &vp8));
        assert!(Arc::ptr_eq(&stream.in_codec(VideoCodec::H264).expect("itself"), &stream));
        assert!(!vp8.is_withdrawn() && !stream.is_withdrawn());
        stream.set_encoded_before(true);
        assert!(stream.in_codec(VideoCodec::Vp8).is_none() && vp8.is_withdrawn() && !stream.is_withdrawn());
        stream.set_encoded_before(false);
        assert!(stream.in_codec(VideoCodec::Vp8).is_some());
        drop(stream);
        assert!(vp8.is_withdrawn(), "nobody publishes there any more");
    }
}
