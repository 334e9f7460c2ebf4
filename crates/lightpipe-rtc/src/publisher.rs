//! Somebody who publishes to us: the receiving end of WHIP, and of WHEP where we are the player.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use lightpipe_media::audio::{Level, RtpOrigin, SAMPLE_RATE_HZ};
use lightpipe_media::time::VIDEO_CLOCK_RATE_HZ;
use lightpipe_media::{AccessUnit, ArrivalClock, AudioPacket, MediaTime, Size, Stages, TrackClock, VideoCodec};
use str0m::RtcConfig;
use str0m::media::{Direction, MediaKind, Mid, Rid};
use str0m::rtp::{RtpPacket, Ssrc};

use crate::inbound::Inbound;
use crate::negotiate::{self, AnswerError, Candidate, OfferError};
use crate::receiver::ReceiverCounters;
use crate::session::{Credentials, DisconnectCause, Output, PeerConfig, PeerError, Session, Turn};
use crate::{demux, simulcast};

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
    session: Session,
    config: PeerConfig,
    offered: Offered,
    /// One for each layer, as in `offered`; one where there is no simulcast.
    video: Vec<Video>,
    audio: Option<Sound>,
    wall: ArrivalClock,
    unknown_packets: u64,
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
    ssrc: Option<Ssrc>,
    clock: TrackClock,
    next_seq_no: Option<u64>,
    last: Option<MediaTime>,
}

impl Sound {
    const fn new(mid: Mid) -> Self {
        Self { mid, ssrc: None, clock: TrackClock::new(SAMPLE_RATE_HZ), next_seq_no: None, last: None }
    }
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
        let answer = publisher.session.accept_offer(parsed, offer)?;
        publisher.open_lines(&negotiate::mids_of(&answer), codec, offer);
        if publisher.video.is_empty() && publisher.audio.is_none() {
            return Err(OfferError::NothingPublished { offered: negotiate::offered_video_codecs(offer) }.into());
        }
        Ok((publisher, answer))
    }

    /// Asks for a stream: the receiving end of WHEP. H.264 is wanted most, then VP8, VP9, AV1. [`Self::accept_answer`] comes next; until
    /// then the session waits, for as long as the caller likes.
    pub fn offer(config: PeerConfig, now: Instant) -> Result<(Self, String), PeerError> {
        let codecs = [VideoCodec::H264, VideoCodec::Vp8, VideoCodec::Vp9, VideoCodec::Av1];
        let mut publisher = Self::new(rtc_config(&config, &codecs), config, now);
        let (offer, ()) = publisher.session.offer(|change| {
            change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
            change.add_media(MediaKind::Audio, Direction::RecvOnly, None, None, None);
        })?;
        Ok((publisher, offer))
    }

    /// Takes the answer to [`Self::offer`]; what will come is [`Self::offered`] then. One without any track is an error, and so is a
    /// second answer.
    pub fn accept_answer(&mut self, answer: &str, now: Instant) -> Result<(), PeerError> {
        self.session.accept_answer(answer)?;
        self.session.begin_as_client(now);
        let mids = negotiate::mids_of(self.session.offered());
        self.open_lines(&mids, negotiate::published_codec(answer, None), "");
        if self.video.is_empty() && self.audio.is_none() {
            return Err(AnswerError::NothingTaken.into());
        }
        Ok(())
    }

    fn new(rtc_config: RtcConfig, config: PeerConfig, now: Instant) -> Self {
        Self {
            session: Session::new(rtc_config, &config.addresses, now),
            config,
            offered: Offered::default(),
            video: Vec::new(),
            audio: None,
            wall: ArrivalClock::default(),
            unknown_packets: 0,
            published: VecDeque::new(),
        }
    }

    /// Finds the lines on which we receive, once both sides have agreed. `offer` is the other side's, where that says the layers.
    fn open_lines(&mut self, mids: &[Mid], codec: Option<VideoCodec>, offer: &str) {
        let receiving = |kind: MediaKind| {
            mids.iter().copied().find(|mid| {
                self.session
                    .rtc
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
        self.audio = audio.map(Sound::new);
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
        self.session.is_connected()
    }

    /// Asks the publisher for a keyframe of one of [`Offered::layers`], and of no other; 0 where there are none.
    pub fn request_keyframe(&mut self, layer: usize, now: Instant) {
        if let Some(Video { inbound, .. }) = self.video.get_mut(layer) {
            inbound.want_keyframe();
            inbound.send_request(now, &mut self.session.rtc);
        }
    }

    /// What it published since the last call, in order.
    pub fn take(&mut self) -> Option<Published> {
        self.published.pop_front()
    }

    /// Restarts ICE with the publisher's new credentials; ours are [`Self::local_credentials`] afterwards.
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

    /// Says goodbye and ends the session; [`crate::PeerEvent::Closed`] comes when the goodbye is out.
    pub fn close(&mut self, now: Instant, cause: DisconnectCause) {
        self.session.close(now, cause);
    }

    /// Takes a datagram. [`PeerError::NotMine`] is to be counted and ignored.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<(), PeerError> {
        if self.session.is_closed() {
            return Ok(());
        }
        self.session.receive(now, from, to, payload)?;
        if demux::rtp_ssrc(payload).is_some_and(|ssrc| !self.knows(ssrc.into())) {
            self.unknown_packets += 1;
        }
        self.session.check_limits(now);
        Ok(())
    }

    /// Whether an SSRC is of a stream that was agreed, or repairs one.
    fn knows(&mut self, ssrc: Ssrc) -> bool {
        let mut direct = self.session.rtc.direct_api();
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
        if self.session.is_closed() {
            return Ok(());
        }
        for Video { inbound, .. } in &mut self.video {
            inbound.release(now);
            inbound.send_request(now, &mut self.session.rtc);
        }
        self.give_out(now);
        self.session.advance(now)?;
        self.session.check_limits(now);
        Ok(())
    }

    /// What to do next. Call until it answers [`Output::WakeAt`].
    pub fn poll(&mut self, now: Instant) -> Output {
        loop {
            match self.session.poll(now) {
                Turn::Output(output) => return output,
                Turn::Media(str0m::Event::RtpPacket(packet)) => self.on_packet(now, packet),
                Turn::Media(_) => {}
                Turn::Rest(at) => {
                    let gaps = self.video.iter().filter_map(|video| video.inbound.wake_at());
                    return Output::WakeAt(gaps.chain(self.session.wake_at()).fold(at, Instant::min));
                }
            }
        }
    }

    fn on_packet(&mut self, now: Instant, packet: RtpPacket) {
        let stream =
            self.session.rtc.direct_api().stream_rx(&packet.header.ssrc).map(|stream| (stream.mid(), stream.rid()));
        let Some((mid, rid)) = stream else { return };
        let report = packet.last_sender_info.and_then(|info| {
            let wall = info.ntp_time.duration_since(UNIX_EPOCH).ok()?;
            Some((info.rtp_time.numer(), i64::try_from(wall.as_micros()).ok()?))
        });
        if let Some(sound) = self.audio.as_mut().filter(|sound| sound.mid == mid) {
            if sound.ssrc != Some(packet.header.ssrc) {
                // RFC 3550 §5.1: its sequence numbers and timestamps start anywhere.
                *sound = Sound { ssrc: Some(packet.header.ssrc), ..Sound::new(mid) };
            }
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
            let origin = RtpOrigin {
                ssrc: *packet.header.ssrc,
                seq_no,
                rtp_time: packet.time.numer(),
                level: packet.header.ext_vals.audio_level.map(|dbov| Level::from_dbov(dbov.into())),
            };
            let expected = sound.last.replace(captured + duration);
            let packet = AudioPacket {
                data: packet.payload,
                captured,
                duration,
                encoded: at,
                starts_talkspurt: expected.is_none_or(|expected| captured.since(expected) > AUDIO_GAP),
                origin: Some(origin),
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
            video.inbound.send_request(now, &mut self.session.rtc);
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
