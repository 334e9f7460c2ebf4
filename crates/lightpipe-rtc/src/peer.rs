//! Sends a stream's pictures and sound to one viewer, or to a server that takes our stream. The session's life itself is in
//! [`crate::session`].

mod encodings;
mod mutual;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_media::stream::ESTIMATE_SHARE;
use lightpipe_media::time::VIDEO_CLOCK_RATE_HZ;
use lightpipe_media::{AccessUnit, AudioPacket, RtpClock, VideoCodec};
use str0m::bwe::{Bitrate, BweKind};
use str0m::channel::ChannelId;
use str0m::media::{Direction, MediaKind, MediaTime as RtcTime, Mid};
use str0m::rtp::{AbsCaptureTime, ExtensionValues, RtpWrite, Ssrc, StreamTx};
use str0m::{PacerReason, Reason, RtcConfig};

use crate::climb::Climb;
use crate::collapse::{self, CollapseWatch, Finding};
use crate::control::{self, FromPage, ToPage, ViewerStats};
use crate::layers::{LayerState, LayerUse, Layers};
use crate::negotiate::{self, AnswerError, Candidate, OfferError, SendLine};
use crate::pacer::{Admitted, Pacer};
use crate::session::{
    Credentials, DisconnectCause, GuardStep, Output, PeerConfig, PeerError, PeerEvent, STUN_RETRANSMITS, Session, Turn,
};
use crate::{demux, simulcast};

use self::encodings::Encodings;
pub use self::encodings::{EncodingCounters, SentLayer};
use self::mutual::Mutual;

/// Packets kept for retransmission. Covers [`RTX_CACHE_AGE`] of a 6 Mbit/s stream; payloads are shared between viewers, so an
/// entry costs its header only.
const RTX_CACHE_PACKETS: usize = 768;

/// Age up to which a lost packet is sent again. Later than this the receiver has given up and asked for a keyframe.
const RTX_CACHE_AGE: Duration = Duration::from_millis(1200);

/// Share of retransmissions above which the engine stops answering NACKs for a moment. Its default of 0.15 gives up at the
/// loss that a bad Wi-Fi has every evening; half of the traffic still ends a NACK storm.
const RTX_RATIO_CAP: f32 = 0.5;

/// The same for a while after a collapse, where each packet that is sent again pushes another one out of the queue.
const RTX_RATIO_CAP_SETTLING: f32 = 0.15;

/// First retransmission of a connectivity check; doubles from there. RFC 8445 §14.3 wants 500 ms for strangers' networks, but a viewer
/// asked for these checks, and they are one small datagram each.
const INITIAL_STUN_RTO: Duration = Duration::from_millis(50);

/// How often playout-delay and capture time are repeated.
const EXTENSION_INTERVAL: Duration = Duration::from_millis(500);

/// How often the bandwidth estimator is served when nothing happens: like the engine's own pacer. Every picture and every
/// datagram serves it too. On loopback it asks for a turn every 0.3 ms, a third of the cost of a viewer.
const IDLE_ESTIMATOR_INTERVAL: Duration = Duration::from_millis(40);

/// The same while it probes: the probe's own times may hide behind the estimator's.
const PROBING_ESTIMATOR_INTERVAL: Duration = Duration::from_millis(5);

/// What can wait (reports, statistics, upkeep) happens at multiples of this, for all peers in one wake-up of their thread. Many
/// viewers woke it 280 times a second for nothing else (measured with 25 viewers a thread).
const SHARED_TURNS: Duration = Duration::from_millis(20);

/// A probe is over when none of its packets left for so long.
const PROBE_PAUSE: Duration = Duration::from_millis(50);

/// How far the engine's time may run ahead while a batch goes through its pacer, which takes a microsecond for each packet.
const ENGINE_TURNS: Duration = Duration::from_micros(200);

/// After this long without loss, an estimate below a third of the desired rate is doubted: the estimator begins again, at twice
/// as much, with its probes.
///
/// Losses of a start that was too fast hold the estimate at a tenth of a 1 Mbit/s path, and it grows back by 8 % each second
/// (measured in virtual time, `tests/it/estimate.rs`). Beginning low instead costs every viewer on a LAN seconds of a poor picture: a
/// probe that leaves in one run of datagrams arrives within one tick of the feedback's clock and tells nothing.
const DOUBT_AFTER: Duration = Duration::from_secs(2);

/// Longest pause before a doubt: each one doubles it, because a path may really be that narrow.
const DOUBT_MAX: Duration = Duration::from_secs(60);

/// An estimate that stays up for so long has proved the doubt right; the next one may come soon again.
const DOUBT_FORGOTTEN_AFTER: Duration = Duration::from_secs(15);

/// How often the estimate is read while it is wanted. The engine's own events are means over three seconds: a viewer whose
/// network got worse would drown in a full queue meanwhile.
const ESTIMATE_INTERVAL: Duration = Duration::from_millis(200);

/// A picture that follows one up to this much younger, in ticks, follows it directly all the same.
const SAME_TIME_TICKS: u32 = VIDEO_CLOCK_RATE_HZ;

/// IPv4, UDP, RTP, its extension and SRTP's tag around a frame of sound, bytes.
const AUDIO_OVERHEAD: usize = 20 + 8 + 12 + 8 + 10;

/// A backlog this old, for this long, is a layer too much: the pacer itself drops at [`crate::pacer`]'s limit only, after which a
/// keyframe makes the next one.
const BACKLOG_BEHIND: Duration = Duration::from_millis(150);
const BACKLOG_BEHIND_FOR: Duration = Duration::from_millis(700);

/// Shortest time between two steps against pictures that come ever later: the last one must be able to show what it did.
const GUARD_INTERVAL: Duration = Duration::from_secs(3);

/// Change of the estimate that is worth an event.
const ESTIMATE_STEP: f64 = 0.05;

/// What a stream has to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracks {
    /// Pictures, and their codec. A viewer that cannot take them is refused.
    pub video: Option<VideoCodec>,
    /// Sound. Beside pictures a viewer may leave it.
    pub audio: bool,
}

impl Tracks {
    /// Pictures only, H.264.
    pub const VIDEO: Self = Self { video: Some(VideoCodec::H264), audio: false };
}

/// What the world tells a peer.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram for this peer's session.
    Datagram {
        /// Who sent it.
        from: SocketAddr,
        /// Which of our addresses it came to.
        to: SocketAddr,
        /// Its content.
        payload: &'a [u8],
    },
    /// The next picture of the stream.
    Media(&'a Arc<AccessUnit>),
    /// The next picture of one layer of the stream's ladder, by its place in [`Peer::set_layers`].
    Layer(&'a Arc<AccessUnit>, usize),
    /// The next frame of its sound.
    Audio(&'a Arc<AudioPacket>),
    /// The instant asked for by [`Output::WakeAt`] has come.
    Tick,
}

/// What a peer counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Counters {
    /// RTP and other bytes given out for sending.
    pub sent_bytes: u64,
    /// Datagrams given out for sending.
    pub sent_packets: u64,
    /// Pictures sent.
    pub sent_frames: u64,
    /// Pictures not sent because a keyframe had to come first.
    pub dropped_wait_keyframe: u64,
    /// Pictures dropped because the backlog was too old.
    pub dropped_backlog: u64,
    /// NACK messages received.
    pub nacks: u64,
    /// Keyframe requests received (PLI and FIR).
    pub keyframe_requests: u64,
    /// Packet loss that the receiver reported last, 0 to 1.
    pub loss: Option<f32>,
    /// Frames of sound sent.
    pub sent_audio_frames: u64,
    /// Loss of sound that the receiver reported last, 0 to 1.
    pub audio_loss: Option<f32>,
    /// Round-trip time, if known.
    pub rtt: Option<Duration>,
    /// Last bandwidth estimate, bits per second.
    pub estimate_bps: Option<u64>,
    /// Changes from one layer to another.
    pub layer_switches: u64,
    /// Steps taken against pictures that come ever later, see [`GuardStep`].
    pub guard_steps: u64,
}

/// A picture whose last packet was given out: measure when it reaches the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Its capture time and stages.
    pub captured: lightpipe_media::MediaTime,
    /// When its bytes were ready.
    pub encoded: lightpipe_media::MediaTime,
}

/// One peer connection that sends a stream's video and audio.
///
/// Calls: [`Self::answer`] makes it, or [`Self::offer`] and [`Self::accept_answer`]; begin with [`Self::handle`] and [`Input::Tick`]. After every call of [`Self::handle`], [`Self::add_candidate`], [`Self::reoffer`], [`Self::restart_ice`],
/// [`Self::send_stats`] or [`Self::close`] call [`Self::poll`] until it answers [`Output::WakeAt`]; at that
/// instant call `handle` with [`Input::Tick`]. After [`PeerEvent::Closed`] drop it.
#[derive(Debug)]
pub struct Peer {
    session: Session,
    config: PeerConfig,
    tracks: Tracks,
    video: Option<Outgoing>,
    audio: Option<Outgoing>,
    pacer: Pacer,
    watch: CollapseWatch,
    climb: Climb,
    /// The engine was told to want less, so that wanting more makes it probe.
    probe_prepared: bool,
    layers: Layers,
    /// What padding fills the rate of everything up to, bits per second; 0 where none is sent.
    filled_bps: u64,
    /// The RIDs that go out side by side; none to a viewer, which has one video stream.
    encodings: Encodings,
    /// When something was last done against pictures that come ever later.
    guarded_at: Option<Instant>,
    /// Since when the oldest queued picture has been older than [`BACKLOG_BEHIND`].
    backlog_since: Option<Instant>,
    /// RTP timestamp of the picture that was queued last.
    last_timestamp: Option<u32>,
    /// What sound takes of the network, bits per second.
    audio_bps: f64,
    channel: Option<ChannelId>,
    /// What comes, where both sides send.
    mutual: Option<Box<Mutual>>,
    /// Nothing was sent since the last input.
    idle_turn: bool,
    /// Media packets that the engine was given and has not sent.
    in_engine: usize,
    /// The engine's time; may be ahead of the world's by a microsecond for each packet of a batch.
    engine_now: Instant,
    /// When the engine last sent packets of its own: probes, resends.
    probed: Option<Instant>,
    /// The engine's mean estimate of the last three seconds.
    mean_estimate: Option<Bitrate>,
    /// Its estimate when it was last read.
    current_estimate: Option<Bitrate>,
    doubt: Doubt,
    counters: Counters,
    keyframe_asked: bool,
    extensions_sent: Option<Instant>,
    last_capture: Option<(u32, lightpipe_media::MediaTime)>,
    last_audio_capture: Option<(u32, lightpipe_media::MediaTime)>,
    sent: Vec<Sent>,
}

/// One RTP stream that we send.
#[derive(Debug)]
struct Outgoing {
    line: SendLine,
    ssrc: Ssrc,
    clock: RtpClock,
    next_seq_no: u64,
}

impl Outgoing {
    fn new(line: SendLine, ssrc: Ssrc, clock_rate_hz: u32) -> Self {
        // RFC 3550 §5.1: both start at random. Half the sequence space stays below the first wrap: SRTP's rollover counter starts at zero.
        Self {
            line,
            ssrc,
            clock: RtpClock::new(fastrand::u32(..), clock_rate_hz),
            next_seq_no: fastrand::u64(1..0x8000),
        }
    }

    /// Gives the engine what the pacer lets go now; tells each packet's picture, RTP timestamp and payload length, and whether it is the
    /// picture's last.
    fn release(
        &mut self,
        now: Instant,
        stream: &mut StreamTx,
        pacer: &mut Pacer,
        extensions_sent: &mut Option<Instant>,
        config: &PeerConfig,
        mut wrote: impl FnMut(&AccessUnit, u32, usize, bool),
    ) {
        let Self { line, next_seq_no, .. } = self;
        let repeat_extensions =
            extensions_sent.is_none_or(|at| now.saturating_duration_since(at) >= EXTENSION_INTERVAL);
        // What all packets of a picture share; worked out once.
        let mut shared: Option<(u32, Instant, Option<ExtensionValues>)> = None;
        pacer.release(now, |unit, rtp_timestamp, index| {
            let payloads = unit.rtp_payloads();
            let Some(payload) = payloads.get(index) else { return };
            if shared.as_ref().is_none_or(|(of, ..)| *of != rtp_timestamp) {
                // All packets of a picture carry the same extensions, so that they have equal lengths and leave in one call.
                let extended = unit.keyframe || (repeat_extensions && index == 0);
                if extended && index == 0 {
                    *extensions_sent = Some(now);
                }
                let extensions = extended.then(|| extensions_of(config, unit));
                shared = Some((rtp_timestamp, config.clock.instant(unit.captured), extensions));
            }
            let Some((_, wallclock, extensions)) = &shared else { return };
            let marker = index + 1 == payloads.len();
            let mut packet =
                RtpWrite::new(line.pt, (*next_seq_no).into(), rtp_timestamp, *wallclock, Arc::clone(payload))
                    .marker(marker)
                    .nackable(true);
            if let Some(extensions) = extensions {
                packet = packet.ext_vals(extensions.clone());
            }
            stream.write_rtp(packet);
            *next_seq_no += 1;
            wrote(unit, rtp_timestamp, payload.len(), marker);
        });
    }
}

impl Peer {
    /// Answers an offer with what a stream has. The first picture sent will be a keyframe.
    pub fn answer(config: PeerConfig, offer: &str, tracks: Tracks, now: Instant) -> Result<(Self, String), PeerError> {
        let parsed = negotiate::parse_offer(offer)?;
        let mut peer = Self::new(rtc_config(&config, tracks), config, tracks, now);
        let answer = peer.session.accept_offer(parsed, offer)?;
        peer.session.rest_in_silence();
        peer.open_lines(&negotiate::mids_of(&answer));
        if let Some(codec) = tracks.video.filter(|_| peer.video.is_none()) {
            return Err(no_video(offer, codec).into());
        }
        if peer.video.is_none() && peer.audio.is_none() {
            return Err(OfferError::NoAudio.into());
        }
        let answer = peer.told(&answer);
        Ok((peer, answer))
    }

    /// Offers what a stream has: the sending end of WHIP. [`Self::accept_answer`] comes next; until then the session waits, for as
    /// long as the caller likes. The first picture sent will be a keyframe.
    pub fn offer(config: PeerConfig, tracks: Tracks, now: Instant) -> Result<(Self, String), PeerError> {
        Self::offer_layers(config, tracks, &[], now)
    }

    /// The same with simulcast of these RIDs, best first, where there are two or more; at most [`crate::MAX_LAYERS`]. The answer may take
    /// some of them, or one video stream as without.
    pub fn offer_layers(
        config: PeerConfig,
        tracks: Tracks,
        rids: &[String],
        now: Instant,
    ) -> Result<(Self, String), PeerError> {
        let simulcast = simulcast::offered(rids);
        // RFC 8843 §15 wants MID in an offer, and a server that reads no `a=ssrc` needs it.
        let mut rtc_config = rtc_config(&config, tracks).set_extension(4, str0m::rtp::Extension::RtpMid);
        if simulcast.is_some() {
            rtc_config = rtc_config
                .set_extension(10, str0m::rtp::Extension::RtpStreamId)
                .set_extension(11, str0m::rtp::Extension::RepairedRtpStreamId);
        }
        let mut peer = Self::new(rtc_config, config, tracks, now);
        peer.encodings.offer(simulcast.is_some().then_some(rids));
        // One media stream (RFC 8830) for both, or a receiver would not play them in sync.
        let stream = Some(format!("{:016x}", fastrand::u64(..)));
        let kinds = [(tracks.video.is_some(), MediaKind::Video), (tracks.audio, MediaKind::Audio)];
        let (offer, ()) = peer.session.offer(|change| {
            for (_, kind) in kinds.into_iter().filter(|(has, _)| *has) {
                let simulcast = simulcast.clone().filter(|_| kind == MediaKind::Video);
                change.add_media(kind, Direction::SendOnly, stream.clone(), None, simulcast);
            }
        })?;
        Ok((peer, offer))
    }

    /// Takes the answer to [`Self::offer`]. A track that the other side does not take is not sent; none at all is an error, and so is
    /// a second answer.
    pub fn accept_answer(&mut self, answer: &str, now: Instant) -> Result<(), PeerError> {
        if self.mutual.is_some() {
            return self.accept_mutual_answer(answer, now);
        }
        self.session.accept_answer(answer)?;
        self.session.begin_as_client(now);
        let mids = negotiate::mids_of(self.session.offered());
        self.open_encodings(&mids, answer);
        self.open_lines(&mids);
        if self.video.is_none() && self.encodings.is_empty() && self.audio.is_none() {
            return Err(AnswerError::NothingTaken.into());
        }
        Ok(())
    }

    fn new(rtc_config: RtcConfig, config: PeerConfig, tracks: Tracks, now: Instant) -> Self {
        let mut session = Session::new(rtc_config, &config.addresses, now);
        if config.estimate_bandwidth {
            session.rtc.bwe().set_bitrate(Bitrate::ZERO, Bitrate::from(config.desired_bitrate_bps));
        }
        Self {
            session,
            config,
            tracks,
            video: None,
            audio: None,
            pacer: Pacer::new(),
            watch: CollapseWatch::default(),
            climb: Climb::default(),
            probe_prepared: false,
            layers: Layers::default(),
            filled_bps: 0,
            encodings: Encodings::default(),
            guarded_at: None,
            backlog_since: None,
            last_timestamp: None,
            audio_bps: 0.0,
            channel: None,
            mutual: None,
            idle_turn: false,
            in_engine: 0,
            engine_now: now,
            probed: None,
            mean_estimate: None,
            current_estimate: None,
            doubt: Doubt::new(),
            counters: Counters::default(),
            keyframe_asked: false,
            extensions_sent: None,
            last_capture: None,
            last_audio_capture: None,
            sent: Vec::new(),
        }
    }

    /// Finds the lines on which we send, once both sides have agreed.
    fn open_lines(&mut self, mids: &[Mid]) {
        let one = self.encodings.is_empty();
        let video =
            self.tracks.video.filter(|_| one).and_then(|codec| negotiate::video_line(&self.session.rtc, mids, codec));
        let audio = if self.tracks.audio { negotiate::audio_line(&self.session.rtc, mids) } else { None };
        let is_open = |open: &Option<Outgoing>, line: &Option<SendLine>| {
            open.as_ref()
                .is_some_and(|open| line.is_some_and(|line| line.mid == open.line.mid && line.pt == open.line.pt))
        };
        let (keeps_video, keeps_audio) = (is_open(&self.video, &video), is_open(&self.audio, &audio));
        let mut direct = self.session.rtc.direct_api();
        let new_video = video.filter(|_| !keeps_video).and_then(|line| {
            let stream = direct.stream_tx_by_mid(line.mid, None)?;
            stream.set_unpaced(true); // Our pacer paces; the engine's would hold an IDR back for hundreds of milliseconds.
            stream.set_rtx_cache(RTX_CACHE_PACKETS, RTX_CACHE_AGE, Some(RTX_RATIO_CAP));
            Some(Outgoing::new(line, stream.ssrc(), VIDEO_CLOCK_RATE_HZ))
        });
        let new_audio = audio.filter(|_| !keeps_audio).and_then(|line| {
            let stream = direct.stream_tx_by_mid(line.mid, None)?;
            stream.set_unpaced(true);
            Some(Outgoing::new(line, stream.ssrc(), SAMPLE_RATE_HZ))
        });
        if !keeps_video {
            self.video = new_video;
        }
        if !keeps_audio {
            self.audio = new_audio;
        }
    }

    /// Accepts a new offer for the same session (renegotiation, or an ICE restart by a whole offer).
    pub fn reoffer(&mut self, offer: &str) -> Result<String, PeerError> {
        let parsed = negotiate::parse_offer(offer)?;
        let answer = self.session.accept_offer(parsed, offer)?;
        if self.mutual.is_some() {
            self.open_mutual(&answer, offer);
        }
        Ok(self.told(&answer))
    }

    /// The engine's answer as the viewer gets it.
    fn told(&self, answer: &str) -> String {
        let answer = negotiate::in_one_stream(answer);
        if self.mutual.is_some() {
            return negotiate::receiving_only(&answer, self.tracks.video.is_none(), !self.tracks.audio);
        }
        if self.tracks.video.is_some() { answer } else { negotiate::without_pictures(&answer) }
    }

    /// Restarts ICE with the peer's new credentials (RFC 8445 §9); the answer's are [`Self::local_credentials`] afterwards.
    pub fn restart_ice(&mut self, remote: &Credentials) -> Result<(), PeerError> {
        Ok(self.session.restart_ice(remote)?)
    }

    /// Our current ICE credentials.
    pub fn local_credentials(&mut self) -> Credentials {
        self.session.local_credentials()
    }

    /// Adds a trickled candidate.
    pub fn add_candidate(&mut self, candidate: &Candidate) -> Result<(), PeerError> {
        Ok(self.session.add_candidate(candidate)?)
    }

    /// Whether ICE and DTLS are done.
    pub const fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    /// What it counted so far.
    pub const fn counters(&self) -> Counters {
        Counters { layer_switches: self.layers.switches(), ..self.counters }
    }

    /// What its network carries of pictures, bits per second: sound comes first.
    pub fn video_estimate_bps(&self) -> Option<u64> {
        let all = self.counters.estimate_bps?;
        Some(all.saturating_sub(if self.audio.is_some() { self.audio_bps as u64 } else { 0 }))
    }

    /// The stream's pictures come in these layers, best first; what goes out now is layer `sends`. Tell again when something
    /// changes; [`PeerEvent::Layer`] says what to give.
    pub fn set_layers(&mut self, now: Instant, layers: Vec<LayerState>, sends: usize) {
        if self.layers.usage().sends != sends {
            // Nobody knows what this layer's pictures refer to.
            self.pacer.require_keyframe();
        }
        self.layers.set(layers, sends);
        self.place_encodings();
        self.look_at_layers(now);
    }

    /// Which layers are in use.
    pub const fn layer_use(&self) -> LayerUse {
        self.layers.usage()
    }

    /// The layer that the viewer chose itself.
    pub fn chosen_layer(&self) -> Option<&str> {
        self.layers.chosen()
    }

    /// From now on this layer, whatever the network carries; or again the one that it carries. False when there is no such layer.
    pub fn choose_layer(&mut self, now: Instant, rid: Option<&str>) -> bool {
        let known = self.layers.choose(rid);
        self.look_at_layers(now);
        known
    }

    fn look_at_layers(&mut self, now: Instant) {
        if !self.encodings.is_empty() {
            self.look_at_encodings(now);
            return;
        }
        let share = self.video_estimate_bps().map(|bps| (bps as f64 * ESTIMATE_SHARE) as u64);
        if self.takes_media() && self.layers.look(now, share) {
            self.session.events.push_back(PeerEvent::Layer(self.layers.usage()));
        }
        self.fill_up();
    }

    /// Before a better layer comes padding fills the gap to it.
    fn fill_up(&mut self) {
        let bps = self.layers.fills_up_to_bps();
        if bps != self.filled_bps {
            self.filled_bps = bps;
            self.probe_prepared = false;
            self.aim_for(self.config.desired_bitrate_bps);
        }
    }

    /// What the engine should find out whether the network carries it. It probes at once where that is more than before.
    fn aim_for(&mut self, bps: u64) {
        let sound = if self.filled_bps > 0 && self.audio.is_some() { self.audio_bps as u64 } else { 0 };
        self.session.rtc.bwe().set_bitrate(Bitrate::from(self.filled_bps + sound), Bitrate::from(bps));
    }

    /// Pictures whose last packet was given out since the last call. The caller knows when they reached the kernel.
    pub fn take_sent(&mut self, mut each: impl FnMut(Sent)) {
        self.sent.drain(..).for_each(&mut each);
    }

    /// RTP timestamp and capture time of the picture that was sent last.
    pub const fn last_capture(&self) -> Option<(u32, lightpipe_media::MediaTime)> {
        self.last_capture
    }

    /// The same of the frame of sound that was sent last.
    pub const fn last_audio_capture(&self) -> Option<(u32, lightpipe_media::MediaTime)> {
        self.last_audio_capture
    }

    /// What it sends: less than the stream has where the viewer did not ask for it.
    pub const fn tracks(&self) -> Tracks {
        Tracks { video: self.tracks.video, audio: self.audio.is_some() }
    }

    /// Says goodbye and ends the session; [`PeerEvent::Closed`] comes when the goodbye is out.
    pub fn close(&mut self, now: Instant, cause: DisconnectCause) {
        let says_why = matches!(cause, DisconnectCause::Shutdown | DisconnectCause::StreamEnded);
        if self.session.close(now, cause) && says_why {
            self.write_control(&ToPage::Bye { cause: cause.as_str(), text: cause.sentence() });
        }
    }

    /// Tells the player what it cannot measure itself.
    pub fn send_stats(&mut self, stats: &ViewerStats) {
        self.write_control(&ToPage::Stats(stats));
    }

    /// Takes one input. Errors: [`PeerError::NotMine`] is to be counted and ignored, the others ended the session.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) -> Result<(), PeerError> {
        if self.session.is_closed() {
            return Ok(());
        }
        self.idle_turn = true;
        match input {
            Input::Datagram { from, to, payload } => {
                self.pacer.set_same_machine(from.ip() == to.ip());
                let was_silent = self.session.is_silent();
                self.session.receive(now, from, to, payload)?;
                self.engine_now = self.engine_now.max(now);
                if was_silent {
                    self.layers.interrupt(now);
                }
                if let Some(mutual) = &mut self.mutual {
                    mutual.intake.look_at(payload, &mut self.session.rtc);
                }
            }
            Input::Media(unit) => self.on_picture(now, unit, 0)?,
            Input::Layer(unit, layer) => self.on_picture(now, unit, layer)?,
            Input::Audio(packet) => {
                if self.takes_media() && self.write_audio(packet) {
                    self.advance(now)?;
                }
            }
            Input::Tick => {
                if let Some(mutual) = &mut self.mutual {
                    mutual.intake.tick(now, self.config.clock, &mut self.session.rtc);
                }
                self.advance(now)?;
            }
        }
        self.look_at_layers(now);
        let was_silent = self.session.is_silent();
        self.session.check_limits(now);
        if self.session.is_silent() && !was_silent {
            self.counters.dropped_backlog += self.pacer.drop_backlog();
            self.keyframe_asked = false;
            self.layers.interrupt(now);
            self.fill_up();
        }
        Ok(())
    }

    /// Whether there is somebody to send pictures and sound to.
    const fn takes_media(&self) -> bool {
        self.session.is_open() && !self.session.is_silent()
    }

    /// What to do next. Call until it answers [`Output::WakeAt`].
    pub fn poll(&mut self, now: Instant) -> Output {
        loop {
            match self.session.poll(now) {
                Turn::Output(output) => {
                    if let Output::Send { payload, .. } = &output {
                        self.on_sent(now, payload);
                    }
                    return output;
                }
                Turn::Media(event) => self.on_event(now, event),
                Turn::Rest(at) => {
                    // What `on_media_out` does, for the engine's own packets.
                    let turn = !self.idle_turn
                        && at <= now + ENGINE_TURNS
                        && self.session.rtc.last_timeout_reason() == Reason::Pacer(PacerReason::Immediate);
                    if !turn {
                        if self.flush_channels() {
                            continue;
                        }
                        return Output::WakeAt(self.next_wake(now, at));
                    }
                    self.idle_turn = true;
                    self.engine_turn(at.max(now));
                }
            }
        }
    }

    /// Gives the engine messages that it has room for. True when it took some, and has more to do.
    fn flush_channels(&mut self) -> bool {
        let open = self.session.is_open();
        let Some(mutual) = self.mutual.as_mut().filter(|_| open) else { return false };
        mutual.channels.flush(&mut self.session.rtc)
    }

    fn on_sent(&mut self, now: Instant, datagram: &[u8]) {
        self.idle_turn = false;
        match demux::rtp_ssrc(datagram) {
            Some(ssrc) if self.video.as_ref().is_some_and(|video| *video.ssrc == ssrc) => self.on_media_out(now),
            Some(ssrc) if self.encodings.has(ssrc) => self.on_media_out(now),
            Some(ssrc) if self.audio.as_ref().is_some_and(|audio| *audio.ssrc == ssrc) => {}
            Some(_) => self.probed = Some(now),
            None => {}
        }
        self.counters.sent_packets += 1;
        self.counters.sent_bytes += datagram.len() as u64;
        self.watch.sent(now, datagram.len());
    }

    /// The engine's pacer lets one packet through per turn, even of a stream that it does not pace. The turns happen here, so that
    /// a batch leaves as one run of datagrams; without asking the engine in between what it wants, which it would say is this (a
    /// sixth of the cost of a packet, measured).
    fn on_media_out(&mut self, now: Instant) {
        self.in_engine = self.in_engine.saturating_sub(1);
        if self.in_engine > 0 && self.config.estimate_bandwidth {
            self.engine_turn(now.max(self.engine_now + Duration::from_micros(1)));
        }
    }

    fn engine_turn(&mut self, at: Instant) {
        self.engine_now = at;
        // An error is the end of the session, which says so itself.
        let _ = self.session.advance(at);
    }

    fn next_wake(&self, now: Instant, engine: Instant) -> Instant {
        let mut at = engine;
        let open = self.session.is_open();
        // Without feedback the estimator asks to be woken once per round trip, on loopback without end. It can wait: the engine
        // holds no packet back but those of its probes.
        let reason = self.session.rtc.last_timeout_reason();
        if reason == Reason::BweDelayControl {
            if !self.is_probing(now) {
                at = at.max(now + IDLE_ESTIMATOR_INTERVAL);
            } else if self.idle_turn {
                at = at.max(now + PROBING_ESTIMATOR_INTERVAL);
            }
        }
        if open && !self.is_probing(now) && can_wait(reason) {
            at = self.next_shared_turn(at);
        }
        let gaps = self.mutual.as_ref().and_then(|mutual| mutual.intake.wake_at());
        let pace = self.pacer.wake_at().into_iter().chain(self.encodings.wake_at()).chain(gaps).min();
        at.min(pace.filter(|_| open).unwrap_or(at)).min(self.session.wake_at().unwrap_or(at))
    }

    fn is_probing(&self, now: Instant) -> bool {
        self.probed.is_some_and(|last| now.saturating_duration_since(last) < PROBE_PAUSE)
    }

    /// The first instant from `at` on at which all peers of a clock do what can wait.
    fn next_shared_turn(&self, at: Instant) -> Instant {
        let since_zero = self.config.clock.at(at).since(lightpipe_media::MediaTime::ZERO);
        let over = since_zero.as_micros() % SHARED_TURNS.as_micros();
        at + Duration::from_micros(((SHARED_TURNS.as_micros() - over) % SHARED_TURNS.as_micros()) as u64)
    }

    fn on_picture(&mut self, now: Instant, unit: &Arc<AccessUnit>, layer: usize) -> Result<(), PeerError> {
        if self.session.is_silent() {
            // Every call puts off what can wait, so that it has to be done here.
            return self.advance(now);
        }
        if !self.takes_media() {
            return Ok(());
        }
        if !self.encodings.is_empty() {
            self.offer_to_encoding(now, unit, layer);
            return self.advance(now);
        }
        let before = self.layers.usage();
        let taken = self.layers.takes(layer, unit.keyframe);
        if self.layers.usage() != before {
            self.session.events.push_back(PeerEvent::Layer(self.layers.usage()));
        }
        if taken {
            let waits = self.pacer.backlog_age(now);
            if waits < BACKLOG_BEHIND {
                self.backlog_since = None;
            } else if now.saturating_duration_since(*self.backlog_since.get_or_insert(now)) >= BACKLOG_BEHIND_FOR {
                self.backlog_since = None;
                self.on_behind(now, waits, false);
            }
            self.offer_unit(now, unit);
            self.advance(now)?;
        }
        Ok(())
    }

    fn offer_unit(&mut self, now: Instant, unit: &Arc<AccessUnit>) {
        let Some(video) = &self.video else { return };
        // Layers are encoded side by side: the first picture of another one may have been taken with, or before, the last that went out.
        let taken_at = video.clock.timestamp_at(unit.captured);
        let rtp_timestamp = match self.last_timestamp {
            Some(last) if last.wrapping_sub(taken_at) < SAME_TIME_TICKS => last.wrapping_add(1),
            _ => taken_at,
        };
        let admitted = self.pacer.offer(now, unit, rtp_timestamp);
        if !matches!(admitted, Admitted::WaitsForKeyframe | Admitted::Silent) {
            self.last_timestamp = Some(rtp_timestamp);
        }
        match admitted {
            Admitted::Queued => {
                if unit.keyframe {
                    self.keyframe_asked = false;
                }
            }
            Admitted::WaitsForKeyframe => {
                self.counters.dropped_wait_keyframe += 1;
                self.ask_keyframe_once();
            }
            Admitted::Silent => self.counters.dropped_backlog += 1,
            Admitted::Overrun { dropped } => {
                self.counters.dropped_backlog += dropped;
                if self.pacer.needs_keyframe() {
                    self.ask_keyframe_once();
                }
            }
        }
    }

    /// While waiting, one request is enough: the stream remembers it.
    fn ask_keyframe_once(&mut self) {
        if !std::mem::replace(&mut self.keyframe_asked, true) {
            self.session.events.push_back(PeerEvent::KeyframeWanted);
        }
    }

    /// Moves the engine's time to `now`, with whatever the pacer releases by then.
    fn advance(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.session.is_open() {
            self.release_batch(now);
            self.release_encodings(now);
        }
        self.engine_now = self.engine_now.max(now);
        self.session.advance(now)
    }

    fn release_batch(&mut self, now: Instant) {
        let Self {
            session,
            pacer,
            counters,
            config,
            video: Some(video),
            extensions_sent,
            last_capture,
            sent,
            in_engine,
            ..
        } = self
        else {
            return;
        };
        let mut direct = session.rtc.direct_api();
        let Some(stream) = direct.stream_tx(&video.ssrc) else { return };
        video.release(now, stream, pacer, extensions_sent, config, |unit, rtp_timestamp, _, marker| {
            *in_engine += 1;
            if marker {
                counters.sent_frames += 1;
                *last_capture = Some((rtp_timestamp, unit.captured));
                sent.push(Sent { captured: unit.captured, encoded: unit.stages.encoded });
            }
        });
    }

    /// Sound goes out at once: a frame is one small packet, and what was lost of it comes too late again. False when this viewer
    /// takes none.
    fn write_audio(&mut self, packet: &AudioPacket) -> bool {
        let Self { session, audio: Some(Outgoing { line, ssrc, clock, next_seq_no }), config, .. } = self else {
            return false;
        };
        let mut direct = session.rtc.direct_api();
        let Some(stream) = direct.stream_tx(ssrc) else { return false };
        let rtp_timestamp = clock.timestamp_at(packet.captured);
        let wallclock = config.clock.instant(packet.captured);
        stream.write_rtp(
            RtpWrite::new(line.pt, (*next_seq_no).into(), rtp_timestamp, wallclock, Arc::clone(&packet.data))
                .marker(packet.starts_talkspurt),
        );
        *next_seq_no += 1;
        self.counters.sent_audio_frames += 1;
        let bits = (packet.data.len() + AUDIO_OVERHEAD) as f64 * 8.0;
        self.audio_bps += (bits / packet.duration.as_secs_f64().max(0.0025) - self.audio_bps) / 32.0;
        self.last_audio_capture = Some((rtp_timestamp, packet.captured));
        true
    }

    fn on_event(&mut self, now: Instant, event: str0m::Event) {
        match event {
            str0m::Event::KeyframeRequest(request) => {
                self.counters.keyframe_requests += 1;
                if self.encodings.is_empty() {
                    self.session.events.push_back(PeerEvent::KeyframeWanted);
                } else {
                    self.on_encoding_keyframe_request(request.rid);
                }
            }
            str0m::Event::EgressBitrateEstimate(BweKind::Twcc { estimate, .. }) => {
                // The first is where it begins: a target for the encoder, no reason to hold packets back.
                let measured = self.mean_estimate.replace(estimate).is_some();
                self.on_estimate(
                    now,
                    self.current_estimate.map_or(estimate, |current| current.min(estimate)),
                    measured,
                );
            }
            str0m::Event::PeerStats(stats) => {
                // RTCP's round trip follows the media path; ICE's keepalive is there before the first report.
                let ice = stats.selected_candidate_pair.and_then(|p| p.current_round_trip_time);
                self.counters.rtt = stats.rtt.or(ice).or(self.counters.rtt);
                if self.session.is_silent() {
                    return; // What was under way when it vanished says nothing of what its network will carry.
                }
                if let Some(rtt) = self.counters.rtt {
                    self.pacer.set_round_trip(rtt);
                }
                self.current_estimate = stats.bwe_tx;
                if let Some(current) = stats.bwe_tx {
                    self.climb.look(now, current.as_u64());
                    if let Some(bps) = self.layers.shown_bps(now) {
                        self.climb.shown(bps.min(current.as_u64()));
                    }
                }
                self.notice_collapse(now, stats.egress_loss_fraction, stats.rtt);
                self.doubt_estimate(now, stats.egress_loss_fraction);
                self.probe_for_more(now);
                if let (Some(current), Some(mean)) = (self.current_estimate, self.mean_estimate) {
                    self.on_estimate(now, current.min(mean), true); // down at once, up with the mean
                }
            }
            str0m::Event::MediaEgressStats(stats) => {
                let is = |track: &Option<Outgoing>| track.as_ref().is_some_and(|track| track.line.mid == stats.mid);
                if !self.encodings.is_empty() && self.on_encoding_stats(&stats) {
                    // Counted by RID.
                } else if is(&self.video) {
                    self.counters.nacks = stats.nacks;
                    self.counters.loss = stats.loss.or(self.counters.loss);
                } else if is(&self.audio) {
                    self.counters.audio_loss = stats.loss.or(self.counters.audio_loss);
                }
            }
            str0m::Event::RtpPacket(packet) => {
                if let Some(mutual) = &mut self.mutual {
                    mutual.intake.on_packet(now, packet, self.config.clock, &mut self.session.rtc);
                }
            }
            str0m::Event::ChannelOpen(id, label) if label == control::LABEL => self.channel = Some(id),
            str0m::Event::ChannelClose(id) if self.channel == Some(id) => self.channel = None,
            str0m::Event::ChannelData(data) if self.channel == Some(data.id) => {
                self.on_page_message(now, FromPage::parse(&data.data));
            }
            event => self.on_channel_event(now, event),
        }
    }

    /// Channels of a connection between equals; a viewer has none but ours.
    fn on_channel_event(&mut self, now: Instant, event: str0m::Event) {
        let Some(Mutual { channels, .. }) = self.mutual.as_deref_mut() else { return };
        let rtc = &mut self.session.rtc;
        match event {
            str0m::Event::ChannelOpen(id, label) => channels.on_open(id, label, rtc),
            str0m::Event::ChannelClose(id) => channels.on_close(id),
            str0m::Event::ChannelData(data) => channels.on_data(now, data, rtc),
            _ => {}
        }
    }

    fn on_page_message(&mut self, now: Instant, message: Option<FromPage>) {
        match message {
            Some(FromPage::Ping { t }) => {
                let server_ms = self.config.clock.unix_micros(self.config.clock.at(now)) as f64 / 1000.0;
                self.write_control(&ToPage::Pong { t, server_ms });
            }
            Some(FromPage::Layer { rid }) => {
                let _ = self.choose_layer(now, rid.as_deref());
            }
            Some(FromPage::Behind { ms, restart }) if (1.0..=60_000.0).contains(&ms) => {
                self.on_behind(now, Duration::from_secs_f64(ms / 1000.0), restart);
            }
            // Over a whole interval of the slowest display is no phase but a mistake.
            Some(FromPage::Phase { later_ms }) if (0.0..=50.0).contains(&later_ms) => {
                self.session.events.push_back(PeerEvent::CaptureLater(Duration::from_secs_f64(later_ms / 1000.0)));
            }
            _ => {}
        }
    }

    fn on_behind(&mut self, now: Instant, by: Duration, restart: bool) {
        // A page that says so all the time changes nothing more often than one that waits for what came of it.
        if self.guarded_at.is_some_and(|at| now.saturating_duration_since(at) < GUARD_INTERVAL) {
            return;
        }
        self.guarded_at = Some(now);
        let step = if restart {
            GuardStep::Restart
        } else if self.layers.fell_behind(now) {
            self.look_at_layers(now);
            GuardStep::LowerLayer
        } else {
            self.counters.dropped_backlog += self.pacer.drop_backlog();
            self.ask_keyframe_once();
            GuardStep::Keyframe
        };
        self.counters.guard_steps += 1;
        self.session.events.push_back(PeerEvent::FellBehind { step, by });
    }

    fn on_estimate(&mut self, now: Instant, estimate: Bitrate, measured: bool) {
        let bps = self.climb.believed(now, estimate.as_u64());
        if self.counters.estimate_bps.is_some_and(|last| (bps as f64 / last as f64 - 1.0).abs() < ESTIMATE_STEP) {
            return;
        }
        self.counters.estimate_bps = Some(bps);
        // Probes stop at the desired rate: an estimate above it says that there is room, not how much.
        let pace = (measured && bps < self.config.desired_bitrate_bps).then_some(bps);
        self.pacer.set_estimate(pace);
        self.encodings.set_estimate(pace);
        self.session.events.push_back(PeerEvent::Estimate(bps));
    }

    /// What is under way is lost or late, or the estimator thinks so: see [`CollapseWatch`].
    fn notice_collapse(&mut self, now: Instant, loss: Option<f32>, rtt: Option<Duration>) {
        // Of several encodings side by side each has its own queue; the least simply goes on.
        let one = self.session.is_connected() && self.encodings.is_empty();
        let Some(current) = self.current_estimate.filter(|_| one) else { return };
        if self.watch.has_settled(now) {
            self.forget_sent(RTX_RATIO_CAP);
        }
        let enough = self.counters.estimate_bps.is_some_and(|bps| bps >= self.config.desired_bitrate_bps);
        match self.watch.look(now, current.as_u64(), loss, rtt, enough) {
            None => {}
            Some(Finding::Mistaken { carried_bps }) => self.begin_estimate_again(now, carried_bps, carried_bps),
            Some(Finding::Collapse { pause, carried_bps, unnoticed }) => {
                self.forget_sent(RTX_RATIO_CAP_SETTLING);
                if unnoticed {
                    self.begin_estimate_again(now, carried_bps, carried_bps);
                }
                self.climb.meet(now, carried_bps);
                self.counters.dropped_backlog += self.pacer.fall_silent(now, pause, collapse::SETTLING);
                self.keyframe_asked = false;
                self.guarded_at = Some(now);
                self.counters.guard_steps += 1;
                self.session.events.push_back(PeerEvent::FellBehind { step: GuardStep::Keyframe, by: pause });
            }
        }
    }

    /// Nothing that was sent so far will be sent again, and of what comes no more than this share.
    fn forget_sent(&mut self, rtx_ratio_cap: f32) {
        let Some(ssrc) = self.video.as_ref().map(|video| video.ssrc) else { return };
        if let Some(stream) = self.session.rtc.direct_api().stream_tx(&ssrc) {
            stream.set_rtx_cache(RTX_CACHE_PACKETS, RTX_CACHE_AGE, Some(rtx_ratio_cap));
        }
    }

    /// The estimator forgets what it knows and starts at `bps`, of which so much is to be believed until it has measured.
    fn begin_estimate_again(&mut self, now: Instant, bps: u64, believed: u64) {
        self.session.rtc.bwe().reset(Bitrate::from(bps));
        self.climb.begins_again(now, bps, believed);
        self.current_estimate = Some(Bitrate::from(bps));
    }

    /// The engine probes at once where it is told to want more than before.
    fn probe_for_more(&mut self, now: Instant) {
        let desired = self.config.desired_bitrate_bps;
        if std::mem::take(&mut self.probe_prepared) {
            self.aim_for(desired);
            return;
        }
        if self.filled_bps > 0 {
            return; // Padding tells more than a short burst, and a burst beside it would be too much.
        }
        let Some(current) = self.current_estimate.filter(|_| self.session.is_connected()) else { return };
        let believed = self.climb.believed(now, current.as_u64());
        if self.climb.probe_is_due(now, believed, desired) {
            self.aim_for(believed / 2);
            self.probe_prepared = true;
        }
    }

    fn doubt_estimate(&mut self, now: Instant, loss: Option<f32>) {
        let Some(current) = self.current_estimate else { return };
        let low = current.as_u64() < self.config.desired_bitrate_bps / 3;
        let lossless = loss.is_none_or(|loss| loss < 0.01);
        if self.doubt.is_due(now, low, lossless) {
            let believed = self.climb.believed(now, current.as_u64());
            self.begin_estimate_again(now, current.as_u64() * 2, believed);
        }
    }

    /// Best effort: an unopened channel or a full buffer loses the message; the next one says it again.
    fn write_control(&mut self, message: &ToPage<'_>) {
        if let Some(id) = self.channel
            && let Some(mut channel) = self.session.rtc.channel(id)
        {
            let _ = channel.write(false, &message.to_json());
        }
    }
}

/// When a low estimate is to be doubted: see [`DOUBT_AFTER`].
#[derive(Debug)]
struct Doubt {
    pause: Duration,
    /// Whether the estimate is low, and since when it has been so, without losses.
    low: bool,
    since: Option<Instant>,
}

impl Doubt {
    const fn new() -> Self {
        Self { pause: DOUBT_AFTER, low: false, since: None }
    }

    fn is_due(&mut self, now: Instant, low: bool, lossless: bool) -> bool {
        if low != self.low || (low && !lossless) {
            *self = Self { pause: self.pause, low, since: None };
        }
        let lasted = now.saturating_duration_since(*self.since.get_or_insert(now));
        if low && lasted >= self.pause {
            *self = Self { pause: (self.pause * 2).min(DOUBT_MAX), low, since: None };
            return true;
        }
        if !low && lasted >= DOUBT_FORGOTTEN_AFTER {
            self.pause = DOUBT_AFTER;
        }
        false
    }
}

/// The engine for what a stream has to send.
fn rtc_config(config: &PeerConfig, tracks: Tracks) -> RtcConfig {
    let mut rtc_config = config
        .identity
        .engine()
        .set_rtp_mode(true)
        .set_stats_interval(Some(if config.estimate_bandwidth { ESTIMATE_INTERVAL } else { Duration::from_secs(1) }))
        .set_sctp_max_buffered_amount(64 << 10)
        .set_sctp_max_message_size(64 << 10)
        .clear_codecs()
        .enable_opus(true, false)
        // Only what is used: each extension costs every packet some bytes. Not MID either: our answer names every SSRC, and
        // the engine never stops sending it to a viewer that has RTX (800 instructions a packet, measured).
        .clear_extension_map()
        .set_extension(5, str0m::rtp::Extension::PlayoutDelay)
        .set_extension(6, str0m::rtp::Extension::AbsoluteCaptureTime);
    if config.estimate_bandwidth {
        // Without it the receiver sends no transport feedback, twenty datagrams a second that nobody would read.
        rtc_config = rtc_config
            .set_extension(3, str0m::rtp::Extension::TransportSequenceNumber)
            .enable_bwe(Some(Bitrate::from(config.desired_bitrate_bps)));
    }
    // Our first check leaves before the viewer has read our answer, and is dropped there; the retransmissions find it ready.
    // At the engine's 250 ms a viewer with a host candidate in its offer needs a second to connect (measured).
    rtc_config.set_initial_stun_rto(INITIAL_STUN_RTO);
    rtc_config.set_max_stun_retransmits(STUN_RETRANSMITS);
    negotiate::with_codec(rtc_config, tracks.video.unwrap_or(VideoCodec::H264))
}

/// Whether a wake-up of the engine may come late by [`SHARED_TURNS`]: nothing on the wire waits for it.
const fn can_wait(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Stats
            | Reason::Feedback
            | Reason::Ice
            | Reason::PauseCheck
            | Reason::BweDelayControl
            | Reason::BweProbeControl
            | Reason::BweProbeEstimator
            | Reason::Pacer(PacerReason::Handle)
    )
}

fn extensions_of(config: &PeerConfig, unit: &AccessUnit) -> ExtensionValues {
    let unix = Duration::from_micros(u64::try_from(config.clock.unix_micros(unit.captured)).unwrap_or(0));
    let max_hundredths = u64::try_from(config.playout_delay_max.as_millis() / 10).unwrap_or(0).max(1);
    ExtensionValues {
        play_delay_min: Some(RtcTime::from_hundredths(0)),
        play_delay_max: Some(RtcTime::from_hundredths(max_hundredths)),
        abs_capture_time: Some(AbsCaptureTime { capture_time: std::time::UNIX_EPOCH + unix, clock_offset: None }),
        ..ExtensionValues::default()
    }
}

/// Why there is no video line for an offer.
fn no_video(offer: &str, codec: VideoCodec) -> OfferError {
    if negotiate::wants_video(offer) {
        OfferError::NoCommonCodec {
            ours: match codec {
                VideoCodec::Vp8 => "VP8",
                VideoCodec::Vp9 => "VP9",
                VideoCodec::Av1 => "AV1",
                _ => "H.264 Constrained Baseline",
            }
            .to_owned(),
            offered: negotiate::offered_video_codecs(offer),
        }
    } else {
        OfferError::NoVideo
    }
}
