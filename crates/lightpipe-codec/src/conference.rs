//! Everybody of a room, played together; and, if wanted, mixed for each of them without himself.
//!
//! ```text
//!  Stream of a peer ─▶ Playback ─ 10 ms each 10 ms ─▶ Mixer ─▶ all of them ─▶ Audience
//!  Stream of a peer ─▶ Playback ───────────────────▶   └─▶ all but him ─▶ Opus ─▶ Stream to him
//! ```
//!
//! One thread, `playout`, does it all: it neither waits for a peer nor for who listens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::audio::{FRAME_SAMPLES, Level, Mixer, span};
use lightpipe_media::playout::{BLOCK, BLOCK_SAMPLES, PlayoutConfig, PlayoutFigures, together};
use lightpipe_media::{AccessUnit, AudioPacket, MediaClock, MediaTime, Outlet, Stream, Subscription, VideoCodec};
use tracing::warn;

use crate::audio_encoder::{AudioContent, AudioEncoder, AudioEncoderConfig};
use crate::encoder::EncodeError;
use crate::opus::OpusEncoder;
use crate::playback::Playback;

/// How mixes are encoded, if nothing else is asked for: voices, one channel. Complexity 5 is what browsers take on phones; above it the ear of a
/// conference gains nothing.
pub const MIX_ENCODING: AudioEncoderConfig = AudioEncoderConfig {
    channels: 1,
    frame_samples: FRAME_SAMPLES,
    bitrate_bps: 32_000,
    content: AudioContent::Music,
    complexity: 5,
    variable_bitrate: true,
    fec: false,
};

/// A turn that comes later than this is not made up for: the sound of that time is gone.
const PAUSED: Duration = Duration::from_millis(200);

/// How often delays are compared and figures are told.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Smallest change of the reported loss that an encoder is told.
const LOSS_STEP: f32 = 0.01;

/// How a room is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConferenceConfig {
    /// How each peer is.
    pub playout: PlayoutConfig,
    /// Peers wait for each other as long as their delays are no further apart: who is on a worse network stays behind. Default 40 ms.
    pub together: Duration,
    /// Pictures are given out when their sound is, and sound waits for them. Default true.
    pub pictures: bool,
    /// Everybody is sent all the others, encoded like this, by [`Conference::sends`]. Its channels are those of the playout. Default none.
    pub mix: Option<AudioEncoderConfig>,
}

impl Default for ConferenceConfig {
    fn default() -> Self {
        Self { playout: PlayoutConfig::default(), together: Duration::from_millis(40), pictures: true, mix: None }
    }
}

impl ConferenceConfig {
    /// A mixer: sound alone, in one channel.
    pub fn mixer() -> Self {
        Self {
            playout: PlayoutConfig { channels: MIX_ENCODING.channels, ..PlayoutConfig::default() },
            pictures: false,
            mix: Some(MIX_ENCODING),
            ..Self::default()
        }
    }
}

/// Who hears and sees a conference here. Called on its thread: must not wait.
pub trait Audience: Send {
    /// [`BLOCK`] of everybody together, interleaved.
    fn sound(&mut self, samples: &[f32]);
    /// A peer's picture is to be shown now.
    fn picture(&mut self, peer: &str, unit: &Arc<AccessUnit>);
    /// Somebody else speaks than before; none: who did has left. `at` is the end of the block that showed it, counted in sound that was given out.
    fn speaker(&mut self, peer: Option<&str>, at: Duration);
}

/// One who is heard.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Participant {
    /// Who.
    pub peer: String,
    /// How loud the last 10 ms were.
    pub level: Level,
    /// How its playing goes.
    pub figures: PlayoutFigures,
}

/// Peers that are played. Dropping it ends that.
#[derive(Debug)]
pub struct Conference {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    config: ConferenceConfig,
    clock: MediaClock,
    members: Mutex<Members>,
    stop: AtomicBool,
}

type Name = Arc<str>;
type Members = BTreeMap<Name, Arc<Member>>;

#[derive(Debug)]
struct Member {
    stream: Arc<Stream>,
    playback: Arc<Playback>,
    subscription: Subscription,
    /// What it is sent of the others.
    sends: Option<Arc<Stream>>,
    /// Bits of dBov.
    level: AtomicU32,
}

/// Takes the sound of a stream and leaves its pictures.
struct SoundOnly(Arc<Playback>);

impl Outlet for SoundOnly {
    fn deliver(&self, _: &Arc<AccessUnit>) {}

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        self.0.deliver_audio(packet);
    }
}

impl Conference {
    /// Starts it, without peers. Capture times are on `clock`.
    pub fn start(
        config: ConferenceConfig,
        clock: MediaClock,
        audience: impl Audience + 'static,
    ) -> std::io::Result<Self> {
        let channels = config.playout.channels.clamp(1, 2);
        let mix = config.mix.map(|mix| AudioEncoderConfig { channels, ..mix });
        let config = ConferenceConfig { playout: PlayoutConfig { channels, ..config.playout }, mix, ..config };
        let shared = Arc::new(Shared { config, clock, members: Mutex::default(), stop: AtomicBool::new(false) });
        let player = Player {
            mixer: Mixer::new(channels),
            audience,
            known: Members::new(),
            lines: BTreeMap::new(),
            common: None,
            filled: 0,
            began: MediaTime::ZERO,
            speaker: None,
            given: 0,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new().name("playout".into()).spawn(move || player.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// One more is heard; who is already, is not begun anew.
    pub fn add(&self, peer: &str, stream: &Arc<Stream>) -> Result<(), EncodeError> {
        let config = self.shared.config;
        let mut members = self.shared.members();
        if members.contains_key(peer) {
            return Ok(());
        }
        let playback = Playback::new(config.playout)?;
        let outlet: Arc<dyn Outlet> =
            if config.pictures { playback.clone() } else { Arc::new(SoundOnly(Arc::clone(&playback))) };
        let sends = config.mix.map(|_| {
            let sends = Stream::new(format!("{}.mix", stream.name()), VideoCodec::H264);
            sends.without_video();
            sends.add_audio();
            sends
        });
        let member = Member {
            subscription: stream.subscribe(outlet),
            stream: Arc::clone(stream),
            playback,
            sends,
            level: AtomicU32::new(Level::MIN.dbov().to_bits()),
        };
        members.insert(peer.into(), Arc::new(member));
        Ok(())
    }

    /// One less.
    pub fn remove(&self, peer: &str) {
        let gone = self.shared.members().remove(peer);
        if let Some(sends) = gone.and_then(|member| member.sends.clone()) {
            sends.close();
        }
    }

    /// The others, mixed for a peer; none where nothing is mixed, or who is not here.
    pub fn sends(&self, peer: &str) -> Option<Arc<Stream>> {
        self.shared.members().get(peer)?.sends.clone()
    }

    /// Who is heard, and how.
    pub fn participants(&self) -> Vec<Participant> {
        let members = self.shared.members().clone();
        let participant = |(peer, member): (Name, Arc<Member>)| Participant {
            peer: peer.to_string(),
            level: member.level(),
            figures: member.playback.figures(),
        };
        members.into_iter().map(participant).collect()
    }
}

impl Drop for Conference {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn level(&self) -> Level {
        Level::from_dbov(f32::from_bits(self.level.load(Relaxed)))
    }
}

/// The thread's own. `None` among the mixer's participants are we: silent, so that one mix is of everybody.
struct Player<A> {
    shared: Arc<Shared>,
    mixer: Mixer<Option<Name>>,
    audience: A,
    known: Members,
    lines: BTreeMap<Name, Line>,
    /// Encodes what all hear who are silent.
    common: Option<OpusEncoder>,
    /// Samples of one channel in the frame under way, and the time of its first.
    filled: usize,
    began: MediaTime,
    speaker: Option<Name>,
    /// Blocks that were given out.
    given: u64,
}

/// What goes to one participant.
#[derive(Default)]
struct Line {
    samples: Vec<f32>,
    /// Some of them are his own mix.
    own: bool,
    encoder: Option<OpusEncoder>,
    /// He was sent the frame before.
    running: bool,
    loss: f32,
    failed: bool,
}

impl<A: Audience> Player<A> {
    fn run(mut self) {
        self.mixer.join(None);
        let clock = self.shared.clock;
        let mut turn = Instant::now();
        let mut report = turn + REPORT_INTERVAL;
        while !self.shared.stop.load(Relaxed) {
            if Instant::now() >= turn {
                // By the turn's time and not by the machine's: the jitter of its timers is not the network's.
                self.play(clock.at(turn));
                turn += BLOCK;
                if turn.elapsed() > PAUSED {
                    turn = Instant::now();
                }
            }
            let mut next = turn;
            if self.shared.config.pictures {
                next = self.pictures().map_or(turn, |at| clock.instant(at).min(turn));
            }
            if Instant::now() >= report {
                self.report();
                report += REPORT_INTERVAL;
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// One block of everybody.
    fn play(&mut self, now: MediaTime) {
        if self.filled == 0 {
            // Only between frames: all who are sent one have the whole of it.
            self.meet();
            self.began = now;
        }
        let mut block = Vec::new();
        for (name, member) in &self.known {
            member.playback.pull_sound(now, &mut block);
            self.mixer.add(&Some(Arc::clone(name)), &block, None);
        }
        let mixes = self.mixer.mixes(BLOCK_SAMPLES);
        for mix in &mixes {
            for listener in &mix.listeners {
                let Some(name) = listener else {
                    self.audience.sound(&mix.samples);
                    continue;
                };
                if let Some(line) = self.lines.get_mut(name) {
                    line.samples.extend_from_slice(&mix.samples);
                    line.own |= mix.talker.is_some();
                }
            }
        }
        self.given += 1;
        for (name, member) in &self.known {
            let level = self.mixer.level(&Some(Arc::clone(name))).unwrap_or(Level::MIN);
            member.level.store(level.dbov().to_bits(), Relaxed);
        }
        let speaker = self.mixer.active_speaker().cloned().flatten();
        if speaker != self.speaker {
            let at = u32::try_from(self.given).map_or(Duration::MAX, |given| BLOCK.saturating_mul(given));
            self.audience.speaker(speaker.as_deref(), at);
            self.speaker = speaker;
        }
        self.filled += BLOCK_SAMPLES;
        if let Some(config) = self.shared.config.mix
            && self.filled >= config.frame_samples
        {
            self.send(config);
        }
        if self.shared.config.mix.is_none_or(|config| self.filled >= config.frame_samples) {
            self.filled = 0;
        }
    }

    /// Takes up who came, and lets go who left.
    fn meet(&mut self) {
        let members = self.shared.members().clone();
        for gone in self.known.keys().filter(|name| !members.contains_key(*name)) {
            self.mixer.leave(&Some(Arc::clone(gone)));
            self.lines.remove(gone);
        }
        for (name, member) in &members {
            if self.known.get(name).is_some_and(|known| !Arc::ptr_eq(known, member)) {
                self.lines.remove(name);
            }
            self.mixer.join(Some(Arc::clone(name)));
            if member.sends.is_some() {
                self.lines.entry(Arc::clone(name)).or_default();
            }
        }
        self.known = members;
    }

    /// Encodes a frame for everybody: one for all who hear the same.
    fn send(&mut self, config: AudioEncoderConfig) {
        let mut common = None;
        for (name, line) in &mut self.lines {
            let Some(sends) = self.known.get(name).and_then(|member| member.sends.as_ref()) else { continue };
            let wanted = sends.outlets() > 0;
            let made = if !wanted || line.samples.len() != config.frame_samples * config.channels {
                Ok(None)
            } else if line.own {
                line.encode(config, sends.audio_loss()).map(Some)
            } else {
                // Whose own encoder begins again later begins anew: it does not know what was heard meanwhile.
                line.encoder = None;
                let encoded = match &common {
                    Some(encoded) => Ok(Arc::clone(encoded)),
                    None => encode_with(&mut self.common, config, &line.samples),
                };
                encoded.map(|encoded| Some(Arc::clone(common.insert(encoded))))
            };
            match made {
                Ok(None) => (line.running, line.encoder) = (false, None),
                Ok(Some(data)) => {
                    let packet = AudioPacket {
                        data,
                        captured: self.began - line.look_ahead(self.common.as_ref()),
                        duration: span(config.frame_samples as u64),
                        encoded: self.shared.clock.at(Instant::now()),
                        starts_talkspurt: !std::mem::replace(&mut line.running, true),
                        origin: None,
                    };
                    line.failed = false;
                    sends.publish_audio(&Arc::new(packet), Some(root_mean_square(&line.samples)));
                }
                Err(error) => {
                    (line.running, line.encoder) = (false, None);
                    sends.update_stats(|stats| stats.audio.errors += 1);
                    if !std::mem::replace(&mut line.failed, true) {
                        warn!(peer = &**name, %error, "encoding a mix failed");
                    }
                }
            }
            line.samples.clear();
            line.own = false;
        }
    }

    /// Gives out the pictures whose time has come; when the next one's does.
    fn pictures(&mut self) -> Option<MediaTime> {
        let mut next: Option<MediaTime> = None;
        for (name, member) in &self.known {
            while let Some(unit) = member.playback.pull_picture(self.shared.clock.at(Instant::now())) {
                self.audience.picture(name, &unit);
            }
            if member.playback.take_keyframe_wanted() {
                member.subscription.request_keyframe();
            }
            let at = member.playback.next_picture_at();
            next = next.into_iter().chain(at).min();
        }
        next
    }

    /// Peers are brought into step, and their streams know how they are played.
    fn report(&self) {
        let needed: Vec<Duration> = self.known.values().map(|member| member.playback.needed()).collect();
        let floor = together(&needed, self.shared.config.together);
        for member in self.known.values() {
            member.playback.set_floor(floor);
            let figures = Arc::new(member.playback.figures());
            member.stream.update_stats(|stats| stats.playout = Some(figures));
        }
    }
}

impl Line {
    fn encode(&mut self, config: AudioEncoderConfig, loss: f32) -> Result<Arc<[u8]>, EncodeError> {
        if self.encoder.is_none() {
            self.loss = 0.0;
        }
        let data = encode_with(&mut self.encoder, config, &self.samples)?;
        if (loss - self.loss).abs() >= LOSS_STEP
            && let Some(encoder) = &mut self.encoder
        {
            encoder.set_loss(loss)?;
            self.loss = loss;
        }
        Ok(data)
    }

    fn look_ahead(&self, common: Option<&OpusEncoder>) -> Duration {
        self.encoder.as_ref().or(common).map_or(Duration::ZERO, AudioEncoder::look_ahead)
    }
}

fn encode_with(
    encoder: &mut Option<OpusEncoder>,
    config: AudioEncoderConfig,
    samples: &[f32],
) -> Result<Arc<[u8]>, EncodeError> {
    let encoder = match encoder {
        Some(encoder) => encoder,
        none => none.insert(OpusEncoder::new(config)?),
    };
    Ok(encoder.encode(samples)?.into())
}

fn root_mean_square(samples: &[f32]) -> f32 {
    (samples.iter().map(|s| s * s).sum::<f32>() / samples.len().max(1) as f32).sqrt()
}
