//! A native viewer: offers, receives, puts packets in order, gives out whole pictures.
//!
//! The far end of [`crate::Peer`] in benches and virtual-time tests, over real ICE, DTLS and SRTP. Lost
//! packets are asked for again by the engine; what does not come within [`REORDER_WAIT`] is given up, and
//! a keyframe is asked for.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::h264::{self, NalType};
use lightpipe_media::packetize::Depacketizer;
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::media::{Direction, KeyframeRequestKind, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::rtp::Ssrc;
use str0m::{Candidate, IceConnectionState, Rtc};

use crate::peer::{Identity, Output, PeerError, PeerEvent};
use crate::{DisconnectCause, OfferError};

/// How long a gap may hold up what came after it. Three attempts at the round trip of 100 ms that the engine assumes until reports
/// tell it better, plus its NACK interval of 33 ms and jitter.
pub const REORDER_WAIT: Duration = Duration::from_millis(400);

/// Shortest time between two keyframe requests.
const KEYFRAME_RETRY: Duration = Duration::from_millis(400);

/// Packets waiting behind a gap; over this the gap is given up.
const MAX_WAITING: usize = 2048;

/// One received picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Annex-B.
    pub data: Vec<u8>,
    /// RTP timestamp.
    pub rtp_timestamp: u32,
    /// Holds an IDR.
    pub keyframe: bool,
    /// When its last packet was in order.
    pub completed: Instant,
}

/// What a receiver counted.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ReceiverCounters {
    /// RTP packets, retransmissions included.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Whole pictures given out.
    pub pictures: u64,
    /// Packets given up.
    pub lost_packets: u64,
    /// Pictures that could not be decoded: damaged, or after a damaged one and before a keyframe.
    pub undecodable: u64,
    /// Keyframe requests sent.
    pub keyframe_requests: u64,
}

struct Waiting {
    arrived: Instant,
    rtp_timestamp: u32,
    marker: bool,
    payload: Arc<[u8]>,
}

/// A receiving peer connection. Same calling contract as [`crate::Peer`]; events carry no media, take
/// pictures with [`Self::take_picture`].
pub struct Receiver {
    rtc: Rtc,
    pending: Option<SdpPendingOffer>,
    mid: Mid,
    ssrc: Option<Ssrc>,
    connected: bool,
    closed: bool,
    waiting: BTreeMap<u64, Waiting>,
    next_seq_no: Option<u64>,
    depacketizer: Depacketizer,
    /// The picture being collected is damaged.
    damaged: bool,
    /// Pictures depend on one that is missing.
    needs_keyframe: bool,
    last_request: Option<Instant>,
    pictures: VecDeque<Picture>,
    events: VecDeque<PeerEvent>,
    counters: ReceiverCounters,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver and its offer. `address` is its only host candidate.
    pub fn offer(identity: &Identity, address: SocketAddr, now: Instant) -> Result<(Self, String), PeerError> {
        let mut config = Rtc::builder().set_rtp_mode(true).set_dtls_cert(identity.certificate()).clear_codecs();
        config.codec_config().add_h264(108.into(), Some(109.into()), true, 0x42_e01f);
        let mut rtc = config.build(now);
        let candidate = Candidate::host(address, Protocol::Udp).map_err(|e| OfferError::Malformed(e.to_string()))?;
        rtc.add_local_candidate(candidate);
        let mut change = rtc.sdp_api();
        let mid = change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        let (offer, pending) = change.apply().ok_or(OfferError::NoVideo)?;
        let receiver = Self {
            rtc,
            pending: Some(pending),
            mid,
            ssrc: None,
            connected: false,
            closed: false,
            waiting: BTreeMap::new(),
            next_seq_no: None,
            depacketizer: Depacketizer::default(),
            damaged: false,
            needs_keyframe: true,
            last_request: None,
            pictures: VecDeque::new(),
            events: VecDeque::new(),
            counters: ReceiverCounters::default(),
        };
        Ok((receiver, offer.to_sdp_string()))
    }

    /// Takes the answer.
    pub fn accept_answer(&mut self, answer: &str) -> Result<(), PeerError> {
        let malformed = |e: &dyn std::fmt::Display| PeerError::Offer(OfferError::Malformed(e.to_string()));
        let answer = SdpAnswer::from_sdp_string(answer).map_err(|e| malformed(&e))?;
        let pending = self.pending.take().ok_or_else(|| malformed(&"a second answer"))?;
        self.rtc.sdp_api().accept_answer(pending, answer)?;
        Ok(())
    }

    /// Whether ICE and DTLS are done.
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    /// What it counted so far.
    pub const fn counters(&self) -> ReceiverCounters {
        self.counters
    }

    /// The next whole picture, in order. Undecodable ones are counted, not given out.
    pub fn take_picture(&mut self) -> Option<Picture> {
        self.pictures.pop_front()
    }

    /// Takes a datagram.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<(), PeerError> {
        let receive = Receive::new(Protocol::Udp, from, to, payload).map_err(|_| PeerError::NotMine)?;
        let input = str0m::Input::Receive(now, receive);
        if !self.rtc.accepts(&input) {
            return Err(PeerError::NotMine);
        }
        self.rtc.handle_input(input)?;
        Ok(())
    }

    /// Time has come.
    pub fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        self.release(now);
        self.rtc.handle_input(str0m::Input::Timeout(now))?;
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
                    if !self.rtc.is_alive() {
                        self.finish(DisconnectCause::ClosedByPeer);
                        continue;
                    }
                    let gap = self.waiting.values().next().map(|w| w.arrived + REORDER_WAIT);
                    return Output::WakeAt(gap.map_or(at, |g| at.min(g)));
                }
                Err(_) => self.finish(DisconnectCause::Failed),
            }
        }
    }

    /// Ends the session at once, telling the other side.
    pub fn close(&mut self) {
        if self.rtc.close().is_err() {
            self.finish(DisconnectCause::Failed);
        }
    }

    fn finish(&mut self, cause: DisconnectCause) {
        if !std::mem::replace(&mut self.closed, true) {
            self.events.push_back(PeerEvent::Closed(cause));
        }
    }

    fn on_event(&mut self, now: Instant, event: str0m::Event) {
        match event {
            str0m::Event::Connected if !self.connected => {
                self.connected = true;
                self.events.push_back(PeerEvent::Connected);
            }
            str0m::Event::IceConnectionStateChange(IceConnectionState::Disconnected) => {
                self.finish(DisconnectCause::IceTimeout)
            }
            str0m::Event::Closed => self.finish(DisconnectCause::ClosedByPeer),
            str0m::Event::RtpPacket(packet) => {
                self.ssrc = Some(packet.header.ssrc);
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
                        marker: packet.header.marker,
                        payload: packet.payload,
                    },
                );
                self.release(now);
            }
            _ => {}
        }
    }

    /// Gives out what is in order, and gives up gaps that are too old.
    fn release(&mut self, now: Instant) {
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
                self.request_keyframe(now);
                self.depacketizer.reset();
                self.next_seq_no = Some(seq_no);
                continue;
            }
            let packet = entry.remove();
            self.next_seq_no = Some(seq_no + 1);
            if !self.damaged && self.depacketizer.push(&packet.payload).is_err() {
                self.damaged = true;
                self.depacketizer.reset();
            }
            if packet.marker {
                self.complete(now, packet.rtp_timestamp);
            }
        }
    }

    fn complete(&mut self, now: Instant, rtp_timestamp: u32) {
        let data = self.depacketizer.take();
        let damaged = std::mem::take(&mut self.damaged) || data.is_empty();
        // Parameter sets come in front of every IDR. One without them lost its beginning before we saw the stream.
        let keyframe =
            !damaged && h264::is_keyframe(&data) && h264::nals(&data).any(|n| NalType::of(n) == NalType::Sps);
        if damaged {
            self.needs_keyframe = true;
        } else if keyframe {
            self.needs_keyframe = false;
        }
        if damaged || self.needs_keyframe {
            self.counters.undecodable += 1;
            // Not before: the first packets of a stream are those of a keyframe under way.
            self.request_keyframe(now);
            return;
        }
        self.counters.pictures += 1;
        self.pictures.push_back(Picture { data, rtp_timestamp, keyframe, completed: now });
    }

    fn request_keyframe(&mut self, now: Instant) {
        // Before the first packet there is no stream to ask on; the sender starts with a keyframe by itself.
        let Some(ssrc) = self.ssrc else { return };
        if self.last_request.is_some_and(|at| now.saturating_duration_since(at) < KEYFRAME_RETRY) {
            return;
        }
        if let Some(stream) = self.rtc.direct_api().stream_rx(&ssrc).filter(|s| s.mid() == self.mid) {
            stream.request_keyframe(KeyframeRequestKind::Pli);
            self.last_request = Some(now);
            self.counters.keyframe_requests += 1;
        }
    }
}
