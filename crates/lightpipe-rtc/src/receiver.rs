//! A native viewer: offers, receives, puts packets in order, gives out whole pictures.
//!
//! The far end of [`crate::Peer`] in benches and virtual-time tests, over real ICE, DTLS and SRTP. Lost
//! packets are asked for again by the engine; what does not come within [`REORDER_WAIT`] is given up, and
//! a keyframe is asked for.

use std::net::SocketAddr;
use std::time::Instant;

use lightpipe_media::packetize::RtpPayloads;
use lightpipe_media::{Size, VideoCodec};
use str0m::Candidate;
use str0m::media::{Direction, MediaKind};
use str0m::net::Protocol;

use crate::inbound::Inbound;
use crate::negotiate::{self, OfferError};
use crate::session::{DisconnectCause, Identity, Output, PeerError, STUN_RETRANSMITS, Session, Turn};

pub use crate::inbound::REORDER_WAIT;

/// One received picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// As [`lightpipe_media::AccessUnit::data`] says of the codec.
    pub data: Vec<u8>,
    /// What it came in, of a codec that is passed on as it came.
    pub payloads: Option<RtpPayloads>,
    /// RTP timestamp.
    pub rtp_timestamp: u32,
    /// The same without its wraps.
    pub rtp_time: u64,
    /// Decodable by itself.
    pub keyframe: bool,
    /// Columns and rows, from the last keyframe.
    pub size: Option<Size>,
    /// When its first packet arrived.
    pub began: Instant,
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
    /// How often another SSRC took the track's place.
    pub ssrc_changes: u64,
    /// RTP packets that belong to nothing that was agreed: of another RID, or of none where there are layers. Not counted in `packets`.
    pub unknown_packets: u64,
}

impl std::ops::AddAssign for ReceiverCounters {
    fn add_assign(&mut self, other: Self) {
        let Self {
            packets,
            bytes,
            pictures,
            lost_packets,
            undecodable,
            keyframe_requests,
            ssrc_changes,
            unknown_packets,
        } = other;
        self.packets += packets;
        self.bytes += bytes;
        self.pictures += pictures;
        self.lost_packets += lost_packets;
        self.undecodable += undecodable;
        self.keyframe_requests += keyframe_requests;
        self.ssrc_changes += ssrc_changes;
        self.unknown_packets += unknown_packets;
    }
}

/// A receiving peer connection. Same calling contract as [`crate::Peer`]; events carry no media, take
/// pictures with [`Self::take_picture`].
pub struct Receiver {
    session: Session,
    /// Its address from the answer to a restart on.
    moved_to: Option<SocketAddr>,
    inbound: Inbound,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("counters", &self.inbound.counters).finish_non_exhaustive()
    }
}

impl Receiver {
    /// A receiver of H.264 and its offer. `address` is its only host candidate.
    pub fn offer(identity: &Identity, address: SocketAddr, now: Instant) -> Result<(Self, String), PeerError> {
        Self::offer_of(VideoCodec::H264, identity, address, now)
    }

    /// A receiver of one codec, as a browser is that lacks the others.
    pub fn offer_of(
        codec: VideoCodec,
        identity: &Identity,
        address: SocketAddr,
        now: Instant,
    ) -> Result<(Self, String), PeerError> {
        let mut config = identity.engine().set_rtp_mode(true).clear_codecs();
        config.set_max_stun_retransmits(STUN_RETRANSMITS);
        let mut session = Session::new(negotiate::with_codec(config, codec), &[], now);
        session.rtc.add_local_candidate(host(address)?);
        let (offer, mid) =
            session.offer(|change| change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None))?;
        Ok((Self { session, moved_to: None, inbound: Inbound::new(mid, codec) }, offer))
    }

    /// Takes the answer.
    pub fn accept_answer(&mut self, answer: &str) -> Result<(), PeerError> {
        self.session.accept_answer(answer)?;
        if let Some(address) = self.moved_to.take() {
            // The engine forgets the old addresses only now.
            self.session.rtc.add_local_candidate(host(address)?);
        }
        Ok(())
    }

    /// It has another address, and the old one is gone: the offer of an ICE restart (RFC 8445 §9), of which [`Self::accept_answer`] takes
    /// the answer.
    pub fn restart_offer(&mut self, address: SocketAddr) -> Result<String, PeerError> {
        let (offer, _) = self.session.offer(|change| change.ice_restart(false))?;
        self.moved_to = Some(address);
        Ok(offer)
    }

    /// Whether ICE and DTLS are done.
    pub const fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    /// What it counted so far.
    pub const fn counters(&self) -> ReceiverCounters {
        self.inbound.counters
    }

    /// The next whole picture, in order. Undecodable ones are counted, not given out.
    pub fn take_picture(&mut self) -> Option<Picture> {
        self.inbound.pictures.pop_front()
    }

    /// Takes a datagram.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<(), PeerError> {
        self.session.receive(now, from, to, payload)?;
        self.session.check_limits(now);
        Ok(())
    }

    /// Time has come.
    pub fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        self.inbound.release(now);
        self.inbound.send_request(now, &mut self.session.rtc);
        self.session.advance(now)?;
        self.session.check_limits(now);
        Ok(())
    }

    /// What to do next. Call until it answers [`Output::WakeAt`].
    pub fn poll(&mut self, now: Instant) -> Output {
        loop {
            match self.session.poll(now) {
                Turn::Output(output) => return output,
                Turn::Media(str0m::Event::RtpPacket(packet)) => {
                    self.inbound.push(now, packet);
                    self.inbound.send_request(now, &mut self.session.rtc);
                }
                Turn::Media(_) => {}
                Turn::Rest(at) => {
                    let others = self.inbound.wake_at().into_iter().chain(self.session.wake_at());
                    return Output::WakeAt(others.fold(at, Instant::min));
                }
            }
        }
    }

    /// Ends the session at once, telling the other side.
    pub fn close(&mut self) {
        if self.session.rtc.close().is_err() {
            self.session.finish(DisconnectCause::Failed);
        }
    }
}

/// Its only candidate.
fn host(address: SocketAddr) -> Result<Candidate, OfferError> {
    Candidate::host(address, Protocol::Udp).map_err(|e| OfferError::Malformed(e.to_string()))
}
