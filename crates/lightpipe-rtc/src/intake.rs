//! What one session receives: pictures and sound in order, with capture times on our clock.
//!
//! [`crate::Publisher`] has nothing else; [`crate::Peer`] has it beside what it sends when both sides of a connection send.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use lightpipe_media::audio::{Level, RtpOrigin, SAMPLE_RATE_HZ};
use lightpipe_media::time::VIDEO_CLOCK_RATE_HZ;
use lightpipe_media::{
    AccessUnit, ArrivalClock, AudioPacket, MediaClock, MediaTime, Size, Stages, TrackClock, VideoCodec,
};
use str0m::Rtc;
use str0m::media::{MediaKind, Mid, Pt, Rid};
use str0m::rtp::{RtpPacket, Ssrc};

use crate::inbound::Inbound;
use crate::receiver::ReceiverCounters;
use crate::{demux, negotiate, simulcast};

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

/// The receiving half of a session.
#[derive(Default)]
pub(crate) struct Intake {
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

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("offered", &self.offered).finish_non_exhaustive()
    }
}

impl Intake {
    /// Finds the lines on which we receive, once both sides have agreed, for the first time or again. `offer` is the other side's, where that
    /// says the layers.
    pub(crate) fn open_lines(&mut self, rtc: &Rtc, mids: &[Mid], codec: Option<VideoCodec>, offer: &str) {
        let receiving = |kind: MediaKind| {
            mids.iter().copied().find(|mid| {
                rtc.media(*mid)
                    .is_some_and(|m| m.kind() == kind && m.direction().is_receiving() && !m.remote_pts().is_empty())
            })
        };
        let video = codec.and_then(|codec| Some((codec, receiving(MediaKind::Video)?)));
        let audio = receiving(MediaKind::Audio);
        let layers = video.map(|(_, mid)| simulcast::layers_of(offer, &mid)).unwrap_or_default();
        let same = |open: &Self| {
            let mid = open.video.first().map(|video| video.inbound.mid());
            mid == video.map(|(_, mid)| mid) && open.offered.layers == layers
        };
        if !same(self) {
            let rids = layers.iter().map(|rid| Some(Rid::from(rid.as_str()))).chain(layers.is_empty().then_some(None));
            self.video = video.map_or_else(Vec::new, |(codec, mid)| {
                let video = |rid| Video { rid, inbound: Inbound::new(mid, codec), clock: video_clock() };
                rids.map(video).collect()
            });
            self.offered.video = video.map(|(codec, _)| codec);
        }
        if self.audio.as_ref().map(|sound| sound.mid) != audio {
            self.audio = audio.map(Sound::new);
        }
        self.offered = Offered { video: self.offered.video, audio: audio.is_some(), layers };
    }

    /// Nothing comes.
    pub(crate) const fn is_empty(&self) -> bool {
        self.video.is_empty() && self.audio.is_none()
    }

    pub(crate) const fn offered(&self) -> &Offered {
        &self.offered
    }

    /// What its video track counted, all layers together.
    pub(crate) fn counters(&self) -> ReceiverCounters {
        let mut all = ReceiverCounters { unknown_packets: self.unknown_packets, ..ReceiverCounters::default() };
        for video in &self.video {
            all += video.inbound.counters;
        }
        all
    }

    /// The same of each layer, as in [`Offered::layers`].
    pub(crate) fn received(&self) -> Vec<ReceivedLayer> {
        let rids = self.offered.layers.iter().cloned().map(Some).chain(std::iter::repeat(None));
        let layer = |(video, rid): (&Video, _)| ReceivedLayer {
            rid,
            size: video.inbound.size(),
            counters: video.inbound.counters,
        };
        self.video.iter().zip(rids).map(layer).collect()
    }

    /// Asks for a keyframe of one layer.
    pub(crate) fn request_keyframe(&mut self, layer: usize, now: Instant, rtc: &mut Rtc) {
        if let Some(Video { inbound, .. }) = self.video.get_mut(layer) {
            inbound.want_keyframe();
            inbound.send_request(now, rtc);
        }
    }

    /// What came since the last call, in order.
    pub(crate) fn take(&mut self) -> Option<Published> {
        self.published.pop_front()
    }

    /// Counts a datagram that the session accepted, if nothing that was agreed has such packets.
    pub(crate) fn look_at(&mut self, datagram: &[u8], rtc: &mut Rtc) {
        if demux::rtp_ssrc(datagram).is_some_and(|ssrc| !self.knows(ssrc.into(), rtc)) {
            self.unknown_packets += 1;
        }
    }

    /// Whether an SSRC is of a stream that was agreed, or repairs one.
    fn knows(&self, ssrc: Ssrc, rtc: &mut Rtc) -> bool {
        let mut direct = rtc.direct_api();
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
    pub(crate) fn tick(&mut self, now: Instant, media_clock: MediaClock, rtc: &mut Rtc) {
        for Video { inbound, .. } in &mut self.video {
            inbound.release(now);
            inbound.send_request(now, rtc);
        }
        self.give_out(now, media_clock);
    }

    /// When to call [`Self::tick`] although nothing came.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.video.iter().filter_map(|video| video.inbound.wake_at()).min()
    }

    /// A packet of this session.
    pub(crate) fn on_packet(&mut self, now: Instant, packet: RtpPacket, media_clock: MediaClock, rtc: &mut Rtc) {
        let stream = rtc.direct_api().stream_rx(&packet.header.ssrc).map(|stream| (stream.mid(), stream.rid()));
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
            let at = media_clock.at(now);
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
            // Where several codecs were agreed, the sender takes the one that it likes, and may take another one later (RFC 3264 §5.1).
            if let Some(codec) = codec_of(rtc, packet.header.payload_type)
                && self.offered.video.is_some_and(|before| before != codec)
            {
                self.offered.video = Some(codec);
                video.inbound = video.inbound.in_codec(codec);
            }
            if video.inbound.changes_source(packet.header.ssrc) {
                // RFC 3550 §5.1: its timestamps start anywhere.
                video.clock = video_clock();
            }
            if let Some((rtp, wall)) = report {
                video.clock.report(rtp, wall);
            }
            video.inbound.push(now, packet);
            video.inbound.send_request(now, rtc);
            self.give_out(now, media_clock);
        }
    }

    fn give_out(&mut self, now: Instant, media_clock: MediaClock) {
        let Some(codec) = self.offered.video else { return };
        for (layer, video) in self.video.iter_mut().enumerate() {
            while let Some(picture) = video.inbound.pictures.pop_front() {
                let Some(size) = picture.size else { continue };
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

/// The codec of pictures with this payload type.
fn codec_of(rtc: &Rtc, pt: Pt) -> Option<VideoCodec> {
    let params = rtc.codec_config().params().iter().find(|params| params.pt() == pt)?;
    negotiate::ours(params.spec().codec)
}
