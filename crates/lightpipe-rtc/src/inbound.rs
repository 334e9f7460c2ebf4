//! One received video track: packets into order, order into whole pictures, gaps into keyframe requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::av1::{self, Av1Depacketizer};
use lightpipe_media::h264::{self, NalType};
use lightpipe_media::packetize::{DepacketizeError, Depacketizer, MAX_FORWARDED_LEN};
use lightpipe_media::vp8::{self, Vp8Depacketizer};
use lightpipe_media::vp9::{self, Vp9Depacketizer};
use lightpipe_media::{Size, VideoCodec};
use str0m::Rtc;
use str0m::media::{KeyframeRequestKind, Mid};
use str0m::rtp::{RtpPacket, Ssrc};

use crate::receiver::{Picture, ReceiverCounters};

/// How long a gap may hold up what came after it. Three attempts at the round trip of 100 ms that the engine assumes until reports
/// tell it better, plus its NACK interval of 33 ms and jitter.
pub const REORDER_WAIT: Duration = Duration::from_millis(400);

/// Shortest time between two keyframe requests.
const KEYFRAME_RETRY: Duration = Duration::from_millis(400);

/// Packets waiting behind a gap; over this the gap is given up.
const MAX_WAITING: usize = 2048;

struct Waiting {
    arrived: Instant,
    rtp_timestamp: u32,
    /// Extended.
    rtp_time: u64,
    marker: bool,
    payload: Arc<[u8]>,
}

/// Payloads of one picture that are kept to be passed on. A picture of [`Depacketizer::MAX_ACCESS_UNIT`] has fewer, unless they are crumbs.
const MAX_PAYLOADS: usize = 16_384;

#[derive(Debug)]
enum Collect {
    H264(Depacketizer),
    Vp8(Vp8Depacketizer),
    Vp9(Vp9Depacketizer),
    Av1(Av1Depacketizer),
}

impl Collect {
    fn new(codec: VideoCodec) -> Self {
        match codec {
            VideoCodec::Vp8 => Self::Vp8(Vp8Depacketizer::default()),
            VideoCodec::Vp9 => Self::Vp9(Vp9Depacketizer::default()),
            VideoCodec::Av1 => Self::Av1(Av1Depacketizer::default()),
            _ => Self::H264(Depacketizer::default()),
        }
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), DepacketizeError> {
        match self {
            Self::H264(d) => d.push(payload),
            Self::Vp8(d) => d.push(payload),
            Self::Vp9(d) => d.push(payload),
            Self::Av1(d) => d.push(payload),
        }
    }

    fn take(&mut self) -> Vec<u8> {
        match self {
            Self::H264(d) => d.take(),
            Self::Vp8(d) => d.take(),
            Self::Vp9(d) => d.take(),
            Self::Av1(d) => d.take(),
        }
    }

    fn reset(&mut self) {
        match self {
            Self::H264(d) => d.reset(),
            Self::Vp8(d) => d.reset(),
            Self::Vp9(d) => d.reset(),
            Self::Av1(d) => d.reset(),
        }
    }

    /// Whether payloads go on as they came.
    const fn keeps_payloads(&self) -> bool {
        matches!(self, Self::Vp9(_) | Self::Av1(_))
    }
}

/// A received video track.
pub(crate) struct Inbound {
    mid: Mid,
    ssrc: Option<Ssrc>,
    waiting: BTreeMap<u64, Waiting>,
    next_seq_no: Option<u64>,
    collect: Collect,
    /// What the picture being collected came in, of the codecs that go on as they came.
    payloads: Vec<Arc<[u8]>>,
    /// When the first packet of the picture being collected arrived.
    began: Option<Instant>,
    /// RTP timestamp of the picture being collected.
    collecting: u32,
    /// The picture being collected is damaged.
    damaged: bool,
    /// Pictures depend on one that is missing.
    needs_keyframe: bool,
    size: Option<Size>,
    last_request: Option<Instant>,
    keyframe_wanted: bool,
    pub(crate) pictures: VecDeque<Picture>,
    pub(crate) counters: ReceiverCounters,
}

impl Inbound {
    pub(crate) fn new(mid: Mid, codec: VideoCodec) -> Self {
        Self {
            mid,
            ssrc: None,
            waiting: BTreeMap::new(),
            next_seq_no: None,
            collect: Collect::new(codec),
            payloads: Vec::new(),
            began: None,
            collecting: 0,
            damaged: false,
            needs_keyframe: true,
            size: None,
            last_request: None,
            keyframe_wanted: false,
            pictures: VecDeque::new(),
            counters: ReceiverCounters::default(),
        }
    }

    /// The same line, whose sender takes another codec from now on.
    pub(crate) fn in_codec(&self, codec: VideoCodec) -> Self {
        Self { counters: self.counters, ..Self::new(self.mid, codec) }
    }

    /// Whether a packet of this SSRC would begin another stream than the one so far.
    pub(crate) fn changes_source(&self, ssrc: Ssrc) -> bool {
        self.ssrc.is_some_and(|current| current != ssrc)
    }

    /// Where its packets come from; none before the first.
    pub(crate) const fn ssrc(&self) -> Option<Ssrc> {
        self.ssrc
    }

    /// The line that it came on.
    pub(crate) const fn mid(&self) -> Mid {
        self.mid
    }

    /// Size of the last keyframe.
    pub(crate) const fn size(&self) -> Option<Size> {
        self.size
    }

    /// Takes a packet of this track.
    pub(crate) fn push(&mut self, now: Instant, packet: RtpPacket) {
        if self.ssrc != Some(packet.header.ssrc) {
            // Another stream on the same line: its sequence numbers and pictures have nothing to do with the old ones.
            if self.ssrc.replace(packet.header.ssrc).is_some() {
                self.counters.ssrc_changes += 1;
                self.waiting.clear();
                self.next_seq_no = None;
                self.collect.reset();
                self.payloads.clear();
                self.needs_keyframe = true;
            }
        }
        self.counters.packets += 1;
        self.counters.bytes += packet.payload.len() as u64;
        let seq_no = *packet.seq_no;
        if packet.payload.is_empty() || self.next_seq_no.is_some_and(|next| seq_no < next) {
            return;
        }
        // The first packet seen need not be the first sent: start there, the keyframe rule does the rest.
        self.next_seq_no.get_or_insert(seq_no);
        self.waiting.insert(
            seq_no,
            Waiting {
                arrived: now,
                rtp_timestamp: packet.header.timestamp,
                rtp_time: packet.time.numer(),
                marker: packet.header.marker,
                payload: packet.payload,
            },
        );
        self.release(now);
    }

    /// Gives out what is in order, and gives up gaps that are too old.
    pub(crate) fn release(&mut self, now: Instant) {
        while let Some(entry) = self.waiting.first_entry() {
            let seq_no = *entry.key();
            let next = self.next_seq_no.unwrap_or(seq_no);
            if seq_no > next {
                let given_up = now.saturating_duration_since(entry.get().arrived) >= REORDER_WAIT;
                if !given_up && self.waiting.len() <= MAX_WAITING {
                    break;
                }
                self.counters.lost_packets += seq_no - next;
                self.damaged = true;
                self.keyframe_wanted = true;
                self.collect.reset();
                self.next_seq_no = Some(seq_no);
                continue;
            }
            let packet = entry.remove();
            self.next_seq_no = Some(seq_no + 1);
            if self.began.is_some() && self.collecting != packet.rtp_timestamp {
                // The sender gave the last picture up before its end.
                self.abandon();
            }
            self.collecting = packet.rtp_timestamp;
            self.began.get_or_insert(packet.arrived);
            if !self.damaged && self.collect(&packet.payload).is_err() {
                self.damaged = true;
                self.collect.reset();
            }
            if packet.marker {
                self.complete(now, &packet);
            }
        }
    }

    /// The picture being collected will not be whole.
    fn abandon(&mut self) {
        self.collect.reset();
        self.payloads.clear();
        self.began = None;
        self.damaged = false;
        self.needs_keyframe = true;
        self.keyframe_wanted = true;
        self.counters.undecodable += 1;
    }

    fn collect(&mut self, payload: &Arc<[u8]>) -> Result<(), DepacketizeError> {
        if self.collect.keeps_payloads() {
            if payload.len() > MAX_FORWARDED_LEN || self.payloads.len() == MAX_PAYLOADS {
                return Err(DepacketizeError::TooLarge);
            }
            self.payloads.push(Arc::clone(payload));
        }
        self.collect.push(payload)
    }

    /// When to call [`Self::release`] although nothing came.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.waiting.values().next().map(|waiting| waiting.arrived + REORDER_WAIT)
    }

    /// Asks for a keyframe at the next [`Self::send_request`].
    pub(crate) fn want_keyframe(&mut self) {
        self.keyframe_wanted = true;
    }

    /// Sends the request that is due, if one is.
    pub(crate) fn send_request(&mut self, now: Instant, rtc: &mut Rtc) {
        if !self.keyframe_wanted {
            return;
        }
        // Before the first packet there is no stream to ask on; the sender starts with a keyframe by itself.
        let Some(ssrc) = self.ssrc else { return };
        if self.last_request.is_some_and(|at| now.saturating_duration_since(at) < KEYFRAME_RETRY) {
            return;
        }
        if let Some(stream) = rtc.direct_api().stream_rx(&ssrc).filter(|s| s.mid() == self.mid) {
            stream.request_keyframe(KeyframeRequestKind::Pli);
            self.keyframe_wanted = false;
            self.last_request = Some(now);
            self.counters.keyframe_requests += 1;
        }
    }

    fn complete(&mut self, now: Instant, last: &Waiting) {
        let data = self.collect.take();
        let payloads = std::mem::take(&mut self.payloads);
        let began = self.began.take().unwrap_or(now);
        let damaged = std::mem::take(&mut self.damaged) || data.is_empty();
        let keyframe = !damaged && self.is_keyframe(&data);
        if damaged {
            self.needs_keyframe = true;
        } else if keyframe {
            self.needs_keyframe = false;
        }
        if damaged || self.needs_keyframe {
            self.counters.undecodable += 1;
            // Not before: the first packets of a stream are those of a keyframe under way.
            self.keyframe_wanted = true;
            return;
        }
        self.counters.pictures += 1;
        self.pictures.push_back(Picture {
            data,
            payloads: self.collect.keeps_payloads().then(|| payloads.into_iter().collect()),
            rtp_timestamp: last.rtp_timestamp,
            rtp_time: last.rtp_time,
            keyframe,
            size: self.size,
            began,
            completed: now,
        });
    }

    fn is_keyframe(&mut self, data: &[u8]) -> bool {
        match &self.collect {
            Collect::H264(_) => {
                // Parameter sets come in front of every IDR. One without them lost its beginning before we saw the stream.
                let whole = h264::is_keyframe(data) && h264::nals(data).any(|n| NalType::of(n) == NalType::Sps);
                if whole {
                    self.size = h264::size_of(data).or(self.size);
                }
                whole
            }
            Collect::Vp8(_) => {
                let size = vp8::size_of(data);
                self.size = size.or(self.size);
                size.is_some()
            }
            Collect::Vp9(depacketizer) => {
                let lowest = vp9::size_of(data);
                if lowest.is_some() {
                    self.size = depacketizer.largest_layer().or(lowest);
                }
                lowest.is_some()
            }
            Collect::Av1(_) => {
                let keyframe = av1::is_keyframe(data);
                self.size = av1::size_of(data).filter(|_| keyframe).or(self.size);
                keyframe
            }
        }
    }
}
