//! Somebody who publishes to us: the receiving end of WHIP, and of WHEP where we are the player.

use std::net::SocketAddr;
use std::time::Instant;

use lightpipe_media::VideoCodec;
use str0m::RtcConfig;
use str0m::media::{Direction, MediaKind};

use crate::intake::{Intake, Offered, Published, ReceivedLayer};
use crate::negotiate::{self, AnswerError, Candidate, OfferError};
use crate::receiver::ReceiverCounters;
use crate::session::{Credentials, DisconnectCause, Output, PeerConfig, PeerError, Session, Turn};
use crate::simulcast;

/// One peer connection that receives pictures and sound. Same calling contract as [`crate::Peer`]; take what it published with [`Self::take`].
pub struct Publisher {
    session: Session,
    config: PeerConfig,
    intake: Intake,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("intake", &self.intake).finish_non_exhaustive()
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
        publisher.intake.open_lines(&publisher.session.rtc, &negotiate::mids_of(&answer), codec, offer);
        if publisher.intake.is_empty() {
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

    /// The other side is a server whose stream we take: [`DisconnectCause::sentence_of_server`] says what its end means.
    pub fn is_client(&self) -> bool {
        self.session.is_client()
    }

    /// Takes the answer to [`Self::offer`]; what will come is [`Self::offered`] then. One without any track is an error, and so is a
    /// second answer.
    pub fn accept_answer(&mut self, answer: &str, now: Instant) -> Result<(), PeerError> {
        self.session.accept_answer(answer)?;
        self.session.begin_as_client(now);
        let mids = negotiate::mids_of(self.session.offered());
        self.intake.open_lines(&self.session.rtc, &mids, negotiate::published_codec(answer, None), "");
        if self.intake.is_empty() {
            return Err(AnswerError::NothingTaken.into());
        }
        Ok(())
    }

    fn new(rtc_config: RtcConfig, config: PeerConfig, now: Instant) -> Self {
        Self { session: Session::new(rtc_config, &config.addresses, now), config, intake: Intake::default() }
    }

    /// What it publishes.
    pub const fn offered(&self) -> &Offered {
        self.intake.offered()
    }

    /// What its video track counted, all layers together.
    pub fn counters(&self) -> ReceiverCounters {
        self.intake.counters()
    }

    /// The same of each layer, as in [`Offered::layers`].
    pub fn received(&self) -> Vec<ReceivedLayer> {
        self.intake.received()
    }

    /// Whether ICE and DTLS are done.
    pub const fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    /// Asks the publisher for a keyframe of one of [`Offered::layers`], and of no other; 0 where there are none.
    pub fn request_keyframe(&mut self, layer: usize, now: Instant) {
        self.intake.request_keyframe(layer, now, &mut self.session.rtc);
    }

    /// What it published since the last call, in order.
    pub fn take(&mut self) -> Option<Published> {
        self.intake.take()
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
        self.intake.look_at(payload, &mut self.session.rtc);
        self.session.check_limits(now);
        Ok(())
    }

    /// Time has come.
    pub fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.session.is_closed() {
            return Ok(());
        }
        self.intake.tick(now, self.config.clock, &mut self.session.rtc);
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
                    self.intake.on_packet(now, packet, self.config.clock, &mut self.session.rtc);
                }
                Turn::Media(_) => {}
                Turn::Rest(at) => {
                    let gaps = self.intake.wake_at().into_iter();
                    return Output::WakeAt(gaps.chain(self.session.wake_at()).fold(at, Instant::min));
                }
            }
        }
    }
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
