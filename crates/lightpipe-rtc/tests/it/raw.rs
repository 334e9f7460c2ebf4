//! A viewer on the bare engine: shows packets, reports and messages as they come, and can do what a browser can.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use lightpipe_rtc::{Credentials, DisconnectCause, Output, PeerError, PeerEvent, control};
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::channel::ChannelId;
use str0m::media::{Direction, KeyframeRequestKind, MediaKind};
use str0m::net::{Protocol, Receive};
use str0m::rtp::rtcp::SenderInfo;
use str0m::rtp::{Extension, ExtensionValues, Ssrc};
use str0m::{Candidate, Rtc};

/// Ids of the extensions that this viewer offers on top of the engine's standard ones; not those that we would choose.
pub(crate) const PLAYOUT_DELAY_ID: u8 = 7;
pub(crate) const ABS_CAPTURE_TIME_ID: u8 = 9;

/// What a raw viewer offers.
#[derive(Debug, Clone)]
pub(crate) struct RawConfig {
    /// Payload type of its H.264 42e01f; RTX is the next one.
    pub(crate) payload_type: u8,
    /// Offer playout-delay and abs-capture-time.
    pub(crate) extensions: bool,
    /// Open the data channel of our player.
    pub(crate) channel: bool,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self { payload_type: 102, extensions: true, channel: false }
    }
}

/// A packet as the engine gave it out.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) seq_no: u64,
    pub(crate) values: ExtensionValues,
    pub(crate) report: Option<SenderInfo>,
}

#[derive(Debug)]
pub(crate) struct RawViewer {
    rtc: Rtc,
    pending: Option<SdpPendingOffer>,
    channel: Option<ChannelId>,
    pub(crate) answer: String,
    pub(crate) seen: Vec<Seen>,
    /// Of the streams that came.
    ssrcs: BTreeSet<Ssrc>,
    pub(crate) messages: Vec<(Instant, String)>,
    connected: bool,
    closed: bool,
    events: Vec<PeerEvent>,
}

impl RawViewer {
    pub(crate) fn offer(config: &RawConfig, address: SocketAddr, now: Instant) -> (Self, String) {
        let pt = config.payload_type;
        let mut builder = Rtc::builder().set_rtp_mode(true).clear_codecs();
        builder.codec_config().add_h264(pt.into(), Some((pt + 1).into()), true, 0x42_e01f);
        if config.extensions {
            builder = builder
                .set_extension(PLAYOUT_DELAY_ID, Extension::PlayoutDelay)
                .set_extension(ABS_CAPTURE_TIME_ID, Extension::AbsoluteCaptureTime);
        }
        let mut rtc = builder.build(now);
        rtc.add_local_candidate(Candidate::host(address, Protocol::Udp).unwrap());
        let mut change = rtc.sdp_api();
        change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        if config.channel {
            change.add_channel(control::LABEL.to_owned());
        }
        let (offer, pending) = change.apply().unwrap();
        let viewer = Self {
            rtc,
            pending: Some(pending),
            channel: None,
            answer: String::new(),
            seen: Vec::new(),
            ssrcs: BTreeSet::new(),
            messages: Vec::new(),
            connected: false,
            closed: false,
            events: Vec::new(),
        };
        (viewer, offer.to_sdp_string())
    }

    pub(crate) fn accept_answer(&mut self, answer: &str) {
        let parsed = SdpAnswer::from_sdp_string(answer).unwrap();
        self.rtc.sdp_api().accept_answer(self.pending.take().unwrap(), parsed).unwrap();
        answer.clone_into(&mut self.answer);
    }

    /// The offer of an ICE restart, and its credentials.
    pub(crate) fn restart_offer(&mut self) -> (String, Credentials) {
        let mut change = self.rtc.sdp_api();
        let credentials = change.ice_restart(true);
        let (offer, pending) = change.apply().unwrap();
        self.pending = Some(pending);
        (offer.to_sdp_string(), Credentials { ufrag: credentials.ufrag, pwd: credentials.pass })
    }

    /// Sends a message on the player's channel; false when it is not open.
    pub(crate) fn send_message(&mut self, binary: bool, message: &[u8]) -> bool {
        self.channel.and_then(|id| self.rtc.channel(id)).is_some_and(|mut c| c.write(binary, message).unwrap_or(false))
    }

    pub(crate) const fn channel_is_open(&self) -> bool {
        self.channel.is_some()
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Asks for a keyframe on every stream that it receives, as often as it is called.
    pub(crate) fn request_keyframe(&mut self, kind: KeyframeRequestKind) {
        for ssrc in self.ssrcs.clone() {
            if let Some(stream) = self.rtc.direct_api().stream_rx(&ssrc) {
                stream.request_keyframe(kind);
            }
        }
    }

    pub(crate) fn close(&mut self) {
        _ = self.rtc.close();
    }

    pub(crate) fn handle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), PeerError> {
        let receive = Receive::new(Protocol::Udp, from, to, payload).map_err(|_| PeerError::NotMine)?;
        let input = str0m::Input::Receive(now, receive);
        if !self.rtc.accepts(&input) {
            return Err(PeerError::NotMine);
        }
        Ok(self.rtc.handle_input(input)?)
    }

    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        Ok(self.rtc.handle_input(str0m::Input::Timeout(now))?)
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Output {
        loop {
            if let Some(event) = self.events.pop() {
                return Output::Event(event);
            }
            match self.rtc.poll_output() {
                Ok(str0m::Output::Transmit(t)) => {
                    return Output::Send { from: t.source, to: t.destination, payload: t.contents.into() };
                }
                Ok(str0m::Output::Timeout(at)) => return Output::WakeAt(at),
                Ok(str0m::Output::Event(event)) => self.on_event(now, event),
                // As a page that crashed: it says nothing more.
                Err(_) => {
                    self.rtc.disconnect();
                    self.closed = true;
                }
            }
        }
    }

    fn on_event(&mut self, now: Instant, event: str0m::Event) {
        match event {
            str0m::Event::Connected if !self.connected => {
                self.connected = true;
                self.events.push(PeerEvent::Connected);
            }
            str0m::Event::RtpPacket(packet) => {
                self.ssrcs.insert(packet.header.ssrc);
                self.seen.push(Seen {
                    at: now,
                    seq_no: *packet.seq_no,
                    values: packet.header.ext_vals,
                    report: packet.last_sender_info,
                });
            }
            str0m::Event::ChannelOpen(id, _) => self.channel = Some(id),
            str0m::Event::ChannelData(data) => {
                self.messages.push((now, String::from_utf8_lossy(&data.data).into_owned()));
            }
            str0m::Event::Closed if !self.closed => {
                self.closed = true;
                self.events.push(PeerEvent::Closed(DisconnectCause::ClosedByPeer));
            }
            _ => {}
        }
    }
}
