//! Somebody who publishes to us: the receiving end of WHIP, and of WHEP where we are the player.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_media::time::VIDEO_CLOCK_RATE_HZ;
use lightpipe_media::{AccessUnit, ArrivalClock, AudioPacket, MediaTime, Size, Stages, TrackClock, VideoCodec};
use str0m::change::SdpPendingOffer;
use str0m::media::{Direction, MediaKind, Mid, Rid};
use str0m::net::{Protocol, Receive};
use str0m::rtp::{RtpPacket, Ssrc};
use str0m::{IceConnectionState, IceCreds, Rtc, RtcConfig};

use crate::inbound::Inbound;
use crate::negotiate::{self, AnswerError, Candidate, CandidateError, MAX_CANDIDATES, OfferError};
use crate::peer::{Credentials, DisconnectCause, Output, PeerConfig, PeerError, PeerEvent, SERVER_SILENCE};
use crate::receiver::ReceiverCounters;
use crate::{demux, simulcast};

/// Time for connectivity checks to find a path: of a new session, and after an ICE restart.
const ICE_CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// After this long without a working candidate pair the publisher is gone.
const ICE_DISCONNECTED_LIMIT: Duration = Duration::from_secs(5);

/// Time for the goodbye to leave.
const CLOSE_DRAIN_LIMIT: Duration = Duration::from_millis(250);

/// A hole in the sound over this ends a talk spurt.
const AUDIO_GAP: Duration = Duration::from_millis(60);

/// Frames of sound that wait to be taken; the caller takes them after every call.
const MAX_AUDIO: usize = 64;

/// What a publisher sends, for [`lightpipe_media::Stream`].
#[derive(Debug, Clone)]
pub enum Published {
    /// One picture.
    Picture {
        /// Which of [`Offered::layers`] it is of; 0 where there are none.
        layer: usize,
        /// The picture.
        unit: Arc<AccessUnit>,
    },
    /// One frame of sound.
    Sound(Arc<AudioPacket>),
}

/// What a publisher offered and we took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offered {
    /// Codec of its pictures.
    pub video: Option<VideoCodec>,
    /// It has sound, in Opus.
    pub audio: bool,
    /// RIDs of its simulcast layers, at most [`crate::MAX_LAYERS`], the one that it prefers first; empty where the pictures come in one
    /// size.
    pub layers: Vec<String>,
}

/// What came of one encoding of a publisher's pictures.
#[derive(Debug, Clone)]
pub struct ReceivedLayer {
    /// Its RID; none where there is no simulcast.
    pub rid: Option<String>,
    /// Size of its last keyframe.
    pub size: Option<Size>,
    /// What was counted.
    pub counters: ReceiverCounters,
}

/// One peer connection that receives pictures and sound. Same calling contract as [`crate::Peer`]; take what it published with [`Self::take`].
pub struct Publisher {
    rtc: Rtc,
    config: PeerConfig,
    /// We offered, and wait for the answer.
    pending: Option<SdpPendingOffer>,
    offer: String,
    offered: Offered,
    /// One for each layer, as in `offered`; one where there is no simulcast.
    video: Vec<Video>,
    audio: Option<Sound>,
    wall: ArrivalClock,
    unknown_packets: u64,
    candidates: usize,
    created: Instant,
    connected: bool,
    /// When the server whose client we are was heard last; none if we are the server.
    server_heard: Option<Instant>,
    path_deadline: Option<Instant>,
    closing: Option<(DisconnectCause, Instant)>,
    said_goodbye: bool,
    closed: bool,
    events: VecDeque<PeerEvent>,
    published: VecDeque<Published>,
}

/// One encoding of the pictures, with its own SSRC, sequence numbers, retransmissions and RTP clock (RFC 8853 §6.1).
struct Video {
    rid: Option<Rid>,
    inbound: Inbound,
    clock: TrackClock,
}

struct Sound {
    mid: Mid,
    clock: TrackClock,
    next_seq_no: Option<u64>,
    last: Option<MediaTime>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("offered", &self.offered).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Answers the offer of somebody who wants to send. Of the video codecs in it that we carry the first is taken, or `prefer` where that is
    /// among them: what viewers of the stream decode already.
    pub fn answer(
        config: PeerConfig,
        offer: &str,
        prefer: Option<VideoCodec>,
        now: Instant,
    ) -> Result<(Self, String), PeerError> {
        let offer = &simulcast::with_our_layers(offer)?;
        let parsed = negotiate::parse_offer(offer)?;
        let codec = negotiate::published_codec(offer, prefer);
        // One codec only: the stream's viewers are told it before the first packet comes.
        let codecs: Vec<VideoCodec> = codec.into_iter().collect();
        let mut publisher = Self::new(rtc_config(&config, &codecs), config, now);
        let answer = publisher.rtc.sdp_api().accept_offer(parsed).map_err(|e| OfferError::Malformed(e.to_string()))?;
        let answer = answer.to_sdp_string();
        publisher.open_lines(&negotiate::mids_of(&answer), codec, offer);
        if publisher.video.is_empty() && publisher.audio.is_none() {
            return Err(OfferError::NothingPublished { offered: negotiate::offered_video_codecs(offer) }.into());
        }
        publisher.candidates = offer.matches("a=candidate:").count();
        offer.clone_into(&mut publisher.offer);
        Ok((publisher, answer))
    }

    /// Asks for a stream: the receiving end of WHEP. H.264 is wanted most, then VP8, VP9, AV1. [`Self::accept_answer`] comes next; until
    /// then the session waits, for as long as the caller likes.
    pub fn offer(config: PeerConfig, now: Instant) -> Result<(Self, String), PeerError> {
        let codecs = [VideoCodec::H264, VideoCodec::Vp8, VideoCodec::Vp9, VideoCodec::Av1];
        let mut publisher = Self::new(rtc_config(&config, &codecs), config, now);
        let mut change = publisher.rtc.sdp_api();
        change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        change.add_media(MediaKind::Audio, Direction::RecvOnly, None, None, None);
        let (offer, pending) = change.apply().ok_or(OfferError::NoVideo)?;
        publisher.pending = Some(pending);
        publisher.offer = offer.to_sdp_string();
        let offer = publisher.offer.clone();
        Ok((publisher, offer))
    }

    /// Takes the answer to [`Self::offer`]; what will come is [`Self::offered`] then. One without any track is an error, and so is a
    /// second answer.
    pub fn accept_answer(&mut self, answer: &str, now: Instant) -> Result<(), PeerError> {
        negotiate::accept_answer(&mut self.rtc, &mut self.pending, answer)?;
        self.created = now;
        self.server_heard = Some(now);
        self.candidates = answer.matches("a=candidate:").count();
        let mids = negotiate::mids_of(&self.offer);
        self.open_lines(&mids, negotiate::published_codec(answer, None), "");
        if self.video.is_empty() && self.audio.is_none() {
            return Err(AnswerError::NothingTaken.into());
        }
        Ok(())
    }

    fn new(rtc_config: RtcConfig, config: PeerConfig, now: Instant) -> Self {
        let mut rtc = rtc_config.build(now);
        negotiate::add_host_candidates(&mut rtc, &config.addresses);
        Self {
            rtc,
            candidates: 0,
            config,
            pending: None,
            offer: String::new(),
            offered: Offered::default(),
            video: Vec::new(),
            audio: None,
            wall: ArrivalClock::default(),
            unknown_packets: 0,
            created: now,
            connected: false,
            server_heard: None,
            path_deadline: None,
            closing: None,
            said_goodbye: false,
            closed: false,
            events: VecDeque::new(),
            published: VecDeque::new(),
        }
    }

    /// Finds the lines on which we receive, once both sides have agreed. `offer` is the other side's, where that says the layers.
    fn open_lines(&mut self, mids: &[Mid], codec: Option<VideoCodec>, offer: &str) {
        let receiving = |kind: MediaKind| {
            mids.iter().copied().find(|mid| {
                self.rtc
                    .media(*mid)
                    .is_some_and(|m| m.kind() == kind && m.direction().is_receiving() && !m.remote_pts().is_empty())
            })
        };
        let video = codec.and_then(|codec| Some((codec, receiving(MediaKind::Video)?)));
        let audio = receiving(MediaKind::Audio);
        let layers = video.map(|(_, mid)| simulcast::layers_of(offer, &mid)).unwrap_or_default();
        let rids = layers.iter().map(|rid| Some(Rid::from(rid.as_str()))).chain(layers.is_empty().then_some(None));
        self.video = video.map_or_else(Vec::new, |(codec, mid)| {
            let video = |rid| Video { rid, inbound: Inbound::new(mid, codec), clock: video_clock() };
            rids.map(video).collect()
        });
        self.audio =
            audio.map(|mid| Sound { mid, clock: TrackClock::new(SAMPLE_RATE_HZ), next_seq_no: None, last: None });
        self.offered = Offered { video: video.map(|(codec, _)| codec), audio: audio.is_some(), layers };
    }

    /// What it publishes.
    pub const fn offered(&self) -> &Offered {
        &self.offered
    }

    /// What its video track counted, all layers together.
    pub fn counters(&self) -> ReceiverCounters {
        let mut all = ReceiverCounters { unknown_packets: self.unknown_packets, ..ReceiverCounters::default() };
        for video in &self.video {
            all += video.inbound.counters;
        }
        all
    }

    /// The same of each layer, as in [`Offered::layers`].
    pub fn received(&self) -> Vec<ReceivedLayer> {
        let rids = self.offered.layers.iter().cloned().map(Some).chain(std::iter::repeat(None));
        let layer = |(video, rid): (&Video, _)| ReceivedLayer {
            rid,
            size: video.inbound.size(),
            counters: video.inbound.counters,
        };
        self.video.iter().zip(rids).map(layer).collect()
    }

    /// Whether ICE and DTLS are done.
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Asks the publisher for a keyframe of one of [`Offered::layers`], and of no other; 0 where there are none.
    pub fn request_keyframe(&mut self, layer: usize, now: Instant) {
        if let Some(Video { inbound, .. }) = self.video.get_mut(layer) {
            inbound.want_keyframe();
            inbound.send_request(now, &mut self.rtc);
        }
    }

    /// What it published since the last call, in order.
    pub fn take(&mut self) -> Option<Published> {
        self.published.pop_front()
    }

    /// Restarts ICE with the publisher's new credentials; ours are [`Self::local_credentials`] afterwards.
    pub fn restart_ice(&mut self, remote: &Credentials) -> Result<(), PeerError> {
        let offer = negotiate::with_credentials(&self.offer, &remote.ufrag, &remote.pwd);
        let parsed = negotiate::parse_offer(&offer)?;
        self.rtc.sdp_api().accept_offer(parsed).map_err(|e| OfferError::Malformed(e.to_string()))?;
        self.candidates = 0;
        self.offer = offer;
        Ok(())
    }

    /// Our current ICE credentials.
    pub fn local_credentials(&mut self) -> Credentials {
        let IceCreds { ufrag, pass } = self.rtc.direct_api().local_ice_credentials();
        Credentials { ufrag, pwd: pass }
    }

    /// Adds a trickled candidate.
    pub fn add_candidate(&mut self, candidate: &Candidate) -> Result<(), PeerError> {
        if self.candidates >= MAX_CANDIDATES {
            return Err(CandidateError::TooMany.into());
        }
        self.candidates += 1;
        if let Candidate::Usable(text) = candidate {
            let parsed =
                str0m::Candidate::from_sdp_string(text).map_err(|_| CandidateError::Malformed(text.clone()))?;
            self.rtc.add_remote_candidate(parsed);
        }
        Ok(())
    }

    /// Says goodbye and ends the session; [`PeerEvent::Closed`] comes when the goodbye is out.
    pub fn close(&mut self, now: Instant, cause: DisconnectCause) {
        if self.closing.is_some() || self.closed {
            return;
        }
        if !self.rtc.is_connected() {
            self.finish(cause);
            return;
        }
        self.closing = Some((cause, now + CLOSE_DRAIN_LIMIT));
    }

    /// Takes a datagram. [`PeerError::NotMine`] is to be counted and ignored.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<(), PeerError> {
        if self.closed {
            return Ok(());
        }
        let receive = Receive::new(Protocol::Udp, from, to, payload).map_err(|_| PeerError::NotMine)?;
        let input = str0m::Input::Receive(now, receive);
        if !self.rtc.accepts(&input) {
            return Err(PeerError::NotMine);
        }
        self.server_heard = self.server_heard.map(|_| now);
        self.engine(|rtc| rtc.handle_input(input))?;
        if demux::rtp_ssrc(payload).is_some_and(|ssrc| !self.knows(ssrc.into())) {
            self.unknown_packets += 1;
        }
        self.check_limits(now);
        Ok(())
    }

    /// Whether an SSRC is of a stream that was agreed, or repairs one.
    fn knows(&mut self, ssrc: Ssrc) -> bool {
        let mut direct = self.rtc.direct_api();
        // The engine's own use of it: bandwidth probes before there is media.
        ssrc.is_probe()
            || direct.stream_rx(&ssrc).is_some()
            || self
                .video
                .iter()
                .filter_map(|video| video.inbound.ssrc())
                .any(|main| direct.stream_rx(&main).is_some_and(|stream| stream.rtx() == Some(ssrc)))
    }

    /// Time has come.
    pub fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.closed {
            return Ok(());
        }
        for Video { inbound, .. } in &mut self.video {
            inbound.release(now);
            inbound.send_request(now, &mut self.rtc);
        }
        self.give_out(now);
        self.engine(|rtc| rtc.handle_input(str0m::Input::Timeout(now)))?;
        self.check_limits(now);
        Ok(())
    }

    /// What to do next. Call until it answers [`Output::WakeAt`].
    pub fn poll(&mut self, now: Instant) -> Output {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Output::Event(event);
            }
            if self.closed {
                return Output::WakeAt(now + Duration::from_secs(3600));
            }
            match self.rtc.poll_output() {
                Ok(str0m::Output::Transmit(t)) => {
                    return Output::Send { from: t.source, to: t.destination, payload: t.contents.into() };
                }
                Ok(str0m::Output::Event(event)) => self.on_event(now, event),
                Ok(str0m::Output::Timeout(at)) => {
                    if let Some((cause, _)) = self.closing
                        && !std::mem::replace(&mut self.said_goodbye, true)
                    {
                        if self.rtc.close().is_err() {
                            self.finish(cause);
                        }
                        continue;
                    }
                    if !self.rtc.is_alive() {
                        let cause = self.closing.map_or(DisconnectCause::ClosedByPeer, |(cause, _)| cause);
                        self.finish(cause);
                        continue;
                    }
                    let gap = self.video.iter().filter_map(|video| video.inbound.wake_at()).min();
                    let limits = [gap, self.closing.map(|(_, limit)| limit), self.path_ends()];
                    let connect = (!self.connected && self.pending.is_none()).then(|| self.created + ICE_CONNECT_LIMIT);
                    return Output::WakeAt(limits.into_iter().flatten().chain(connect).fold(at, Instant::min));
                }
                Err(_) => self.finish(self.closing.map_or(DisconnectCause::Failed, |(cause, _)| cause)),
            }
        }
    }

    fn check_limits(&mut self, now: Instant) {
        if let Some((cause, limit)) = self.closing {
            if now >= limit {
                self.finish(cause);
            }
        } else if self.pending.is_some() {
            // The clock starts with the answer.
        } else if !self.connected && now >= self.created + ICE_CONNECT_LIMIT {
            self.finish(DisconnectCause::IceNeverConnected);
        } else if self.path_ends().is_some_and(|end| now >= end) {
            self.finish(DisconnectCause::IceTimeout);
        }
    }

    /// When an established connection counts as lost, as things stand.
    fn path_ends(&self) -> Option<Instant> {
        let silence = self.server_heard.map(|at| at + SERVER_SILENCE);
        self.path_deadline.into_iter().chain(silence).min().filter(|_| self.connected)
    }

    fn engine(&mut self, call: impl FnOnce(&mut Rtc) -> Result<(), str0m::RtcError>) -> Result<(), PeerError> {
        call(&mut self.rtc).map_err(|error| {
            self.finish(DisconnectCause::Failed);
            error.into()
        })
    }

    fn finish(&mut self, cause: DisconnectCause) {
        if !std::mem::replace(&mut self.closed, true) {
            self.events.push_back(PeerEvent::Closed(cause));
            self.rtc.disconnect();
        }
    }

    fn on_event(&mut self, now: Instant, event: str0m::Event) {
        match event {
            str0m::Event::Connected if !self.connected => {
                self.connected = true;
                self.events.push_back(PeerEvent::Connected);
            }
            str0m::Event::IceConnectionStateChange(state) => {
                let limit = match state {
                    IceConnectionState::Connected | IceConnectionState::Completed => {
                        self.path_deadline = None;
                        return;
                    }
                    IceConnectionState::Disconnected if self.connected => ICE_DISCONNECTED_LIMIT,
                    _ => ICE_CONNECT_LIMIT,
                };
                let deadline = now + limit;
                self.path_deadline = Some(self.path_deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
            str0m::Event::Closed => {
                self.finish(self.closing.map_or(DisconnectCause::ClosedByPeer, |(cause, _)| cause));
            }
            str0m::Event::RtpPacket(packet) => self.on_packet(now, packet),
            _ => {}
        }
    }

    fn on_packet(&mut self, now: Instant, packet: RtpPacket) {
        let stream = self.rtc.direct_api().stream_rx(&packet.header.ssrc).map(|stream| (stream.mid(), stream.rid()));
        let Some((mid, rid)) = stream else { return };
        let report = packet.last_sender_info.and_then(|info| {
            let wall = info.ntp_time.duration_since(UNIX_EPOCH).ok()?;
            Some((info.rtp_time.numer(), i64::try_from(wall.as_micros()).ok()?))
        });
        if let Some(sound) = self.audio.as_mut().filter(|sound| sound.mid == mid) {
            // Late is lost: what comes after it was given out already.
            let seq_no = *packet.seq_no;
            if packet.payload.is_empty() || sound.next_seq_no.is_some_and(|next| seq_no < next) {
                return;
            }
            sound.next_seq_no = Some(seq_no + 1);
            if let Some((rtp, wall)) = report {
                sound.clock.report(rtp, wall);
            }
            let at = self.config.clock.at(now);
            let captured = sound.clock.capture(packet.time.numer(), at, &mut self.wall);
            let duration = lightpipe_media::audio::opus_duration(&packet.payload);
            let expected = sound.last.replace(captured + duration);
            let packet = AudioPacket {
                data: packet.payload,
                captured,
                duration,
                encoded: at,
                starts_talkspurt: expected.is_none_or(|expected| captured.since(expected) > AUDIO_GAP),
            };
            if self.published.len() < MAX_AUDIO {
                self.published.push_back(Published::Sound(Arc::new(packet)));
            }
            return;
        }
        // Where there is no simulcast a RID says nothing: some write it all the same.
        let of_packet = |video: &&mut Video| video.inbound.mid() == mid && (video.rid.is_none() || video.rid == rid);
        if let Some(video) = self.video.iter_mut().find(of_packet) {
            if video.inbound.changes_source(packet.header.ssrc) {
                // RFC 3550 §5.1: its timestamps start anywhere.
                video.clock = video_clock();
            }
            if let Some((rtp, wall)) = report {
                video.clock.report(rtp, wall);
            }
            video.inbound.push(now, packet);
            video.inbound.send_request(now, &mut self.rtc);
            self.give_out(now);
        }
    }

    fn give_out(&mut self, now: Instant) {
        let Some(codec) = self.offered.video else { return };
        for (layer, video) in self.video.iter_mut().enumerate() {
            while let Some(picture) = video.inbound.pictures.pop_front() {
                let Some(size) = picture.size else { continue };
                let media_clock = &self.config.clock;
                // The layers' clocks agree with each other, as those of pictures and sound do: by what they share.
                let captured = video.clock.capture(picture.rtp_time, media_clock.at(picture.began), &mut self.wall);
                let stages = Stages::all_at(media_clock.at(now).max(captured));
                let mut unit = AccessUnit::new(codec, picture.data, captured, picture.keyframe, size, stages);
                if let Some(payloads) = picture.payloads {
                    unit = unit.with_payloads(payloads);
                }
                self.published.push_back(Published::Picture { layer, unit: Arc::new(unit) });
            }
        }
    }
}

const fn video_clock() -> TrackClock {
    TrackClock::new(VIDEO_CLOCK_RATE_HZ)
}

/// The engine for pictures of these codecs, and sound.
fn rtc_config(config: &PeerConfig, codecs: &[VideoCodec]) -> RtcConfig {
    let mut rtc_config =
        config.identity.engine().set_rtp_mode(true).set_stats_interval(None).clear_codecs().enable_opus(true, false);
    for codec in codecs {
        rtc_config = negotiate::with_codec(rtc_config, *codec);
    }
    rtc_config
}
