//! What every session has, whichever way its media goes: a life from the first candidate to the goodbye.
//!
//! ```text
//!   offer, answer ─▶ checks ─▶ connected ─▶ closing ─▶ closed       one of: we say goodbye, they do, no path was found, it is lost
//!                                 ▲   │ another address, an ICE restart
//!                                 └───┘
//! ```
//!
//! [`crate::Peer`] sends with one, [`crate::Publisher`] and [`crate::receiver::Receiver`] receive; what they do with media is theirs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lightpipe_media::MediaClock;
use str0m::change::{SdpApi, SdpOffer, SdpPendingOffer};
use str0m::config::DtlsCert;
use str0m::net::{Protocol, Receive};
use str0m::{IceConnectionState, IceCreds, Rtc, RtcConfig};

use crate::channels::ChannelError;
use crate::demux;
use crate::layers::LayerUse;
use crate::negotiate::{self, AnswerError, Candidate, CandidateError, MAX_CANDIDATES, OfferError};

/// After this long without any candidate pair that could still work a session is over. The engine itself takes up to 45 s to
/// call a silent pair dead, see [`STUN_RETRANSMITS`].
const ICE_DISCONNECTED_LIMIT: Duration = Duration::from_secs(5);

/// Checks without an answer after which the engine calls a pair dead: half a minute without a network, a lift or a tunnel, is survived. The
/// engine's own nine are over after half of that.
pub(crate) const STUN_RETRANSMITS: usize = 16;

/// Time for connectivity checks to find a path: of a new session, and after an ICE restart.
const ICE_CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Silence of the media path after which another checked path takes over. A viewer's receiver reports come every
/// second, its checks every two or three; the engine would stay on a path of higher priority until that is dead for good.
const PATH_SILENCE: Duration = Duration::from_millis(2500);

/// Silence of a server, whose client we are, after which it is gone. It answers our checks every two or three seconds; a viewer is given
/// longer, because it may be walking between networks, and because here somebody waits to connect again.
const SERVER_SILENCE: Duration = Duration::from_secs(8);

/// Silence of a viewer after which it is given nothing until it is heard again: it may be in a tunnel, and nobody should encode for it
/// meanwhile. Its checks are two or three seconds apart, its reports less.
const VIEWER_SILENCE: Duration = Duration::from_secs(5);

/// Time for BYE and DTLS close_notify to leave.
const CLOSE_DRAIN_LIMIT: Duration = Duration::from_millis(250);

/// DTLS identity, shared by all peers of a process.
#[derive(Debug, Clone)]
pub struct Identity(DtlsCert);

impl Identity {
    /// A fresh self-signed certificate.
    pub fn generate() -> Self {
        let provider = str0m::crypto::from_feature_flags();
        Self(provider.dtls_provider.generate_certificate().expect("the aws-lc-rs provider generates certificates"))
    }

    /// The engine's settings to begin with: this certificate, and the DTLS that speaks for it.
    pub(crate) fn engine(&self) -> RtcConfig {
        let config = Rtc::builder().set_dtls_cert(self.0.clone());
        #[cfg(feature = "rsa")]
        let config = config.set_crypto_provider(crate::dtls::provider());
        config
    }
}

/// What every peer of a process shares.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// The media clock that stamps access units.
    pub clock: MediaClock,
    /// Our DTLS certificate.
    pub identity: Identity,
    /// Addresses of our UDP socket that peers can reach: our host candidates.
    pub addresses: Vec<SocketAddr>,
    /// Estimate each peer's bandwidth (costs about a third more CPU per packet; needs the browser's transport-wide feedback).
    pub estimate_bandwidth: bool,
    /// What the stream wants to send at best, bits per second. The estimator probes up to this; without it the estimate
    /// starves the stream.
    pub desired_bitrate_bps: u64,
    /// Largest playout delay that the receiver may choose. Not zero: zero is another, undelayed-at-any-price path in libwebrtc.
    pub playout_delay_max: Duration,
}

/// What a peer asks of the world.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Send {
        /// From which of our addresses.
        from: SocketAddr,
        /// To whom.
        to: SocketAddr,
        /// Its content.
        payload: Vec<u8>,
    },
    /// Something happened.
    Event(PeerEvent),
    /// Nothing more to do before this instant.
    WakeAt(Instant),
}

/// What happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// ICE and DTLS are done; media may flow.
    Connected,
    /// Nothing has come from this viewer for five seconds. Its session goes on, and it takes no media until [`Self::Heard`].
    Silent,
    /// Something came from it again: media from now on, and a keyframe first.
    Heard,
    /// The viewer cannot decode without a keyframe (it said so, or we dropped for it).
    KeyframeWanted,
    /// What its network carries, bits per second.
    Estimate(u64),
    /// Pictures of these layers are to be given from now on, and of no others.
    Layer(LayerUse),
    /// The same of simulcast: all of these go out side by side.
    Simulcast(Vec<usize>),
    /// One of them cannot be decoded without a keyframe; the others can.
    LayerKeyframeWanted(usize),
    /// It noticed that it shows pictures ever later, or we did, and this was done about it.
    FellBehind {
        /// What was done.
        step: GuardStep,
        /// By how much, beyond what it had been.
        by: Duration,
    },
    /// Its display would show pictures just as soon if they were taken this much later.
    CaptureLater(Duration),
    /// The end. Nothing comes after this.
    Closed(DisconnectCause),
}

/// What was done against pictures that come ever later; the names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuardStep {
    /// It gets a smaller layer for half a minute.
    LowerLayer,
    /// There is no smaller layer, or the viewer chose this one: its backlog is dropped, and a keyframe comes.
    Keyframe,
    /// Neither helped: the player connects anew, with empty buffers.
    Restart,
}

impl GuardStep {
    /// Name in the API and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LowerLayer => "lower_layer",
            Self::Keyframe => "keyframe",
            Self::Restart => "restart",
        }
    }
}

/// Why a session ended; the text is part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectCause {
    /// The peer said goodbye.
    ClosedByPeer,
    /// We did, because the program ends.
    Shutdown,
    /// We did, because the signalling session ended (DELETE, closed WebSocket).
    SignallingClosed,
    /// The stream that was watched is no more.
    StreamEnded,
    /// Another publisher took the stream over.
    TakenOver,
    /// No connectivity check ever succeeded: a firewall or NAT is in the way of our UDP port.
    IceNeverConnected,
    /// It was connected and then fell silent.
    IceTimeout,
    /// The DTLS handshake or the engine failed.
    Failed,
}

impl DisconnectCause {
    /// Name in the API and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClosedByPeer => "closed_by_peer",
            Self::Shutdown => "shutdown",
            Self::SignallingClosed => "signalling_closed",
            Self::StreamEnded => "stream_ended",
            Self::TakenOver => "taken_over",
            Self::IceNeverConnected => "ice_never_connected",
            Self::IceTimeout => "ice_timeout",
            Self::Failed => "failed",
        }
    }

    /// One sentence about a server whose client we are.
    pub const fn sentence_of_server(self) -> &'static str {
        match self {
            Self::ClosedByPeer => "The server ended the session.",
            Self::IceNeverConnected => {
                "No network path to the server's media port was found; a firewall may block UDP, here or there."
            }
            Self::IceTimeout => "The server fell silent.",
            _ => self.sentence(),
        }
    }

    /// One sentence for the viewer.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::ClosedByPeer => "The page closed the connection.",
            Self::Shutdown => "The server is shutting down.",
            Self::SignallingClosed => "The session was ended through its signalling connection.",
            Self::StreamEnded => "The stream ended.",
            Self::TakenOver => "Another publisher took the stream over.",
            Self::IceNeverConnected => {
                "No network path to the server's UDP port was found; a firewall or NAT may block it."
            }
            Self::IceTimeout => "The network path was lost.",
            Self::Failed => "The secure connection failed.",
        }
    }
}

/// Why a call on a peer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The offer was refused.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The answer to our offer was refused.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// A candidate was refused.
    #[error(transparent)]
    Candidate(#[from] CandidateError),
    /// A data channel could not be had.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Bytes that do not belong to this peer; count and ignore.
    #[error("datagram does not belong to this session")]
    NotMine,
    /// The engine gave up; the session is over.
    #[error("session failed: {0}")]
    Engine(#[from] str0m::RtcError),
}

/// ICE credentials of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `a=ice-ufrag`.
    pub ufrag: String,
    /// `a=ice-pwd`.
    pub pwd: String,
}

/// The life of one peer connection. Its owner calls as [`crate::Peer`] says, and adds what it does with media.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) rtc: Rtc,
    /// For the owner's caller.
    pub(crate) events: VecDeque<PeerEvent>,
    /// We offered, and wait for the answer.
    pending: Option<SdpPendingOffer>,
    /// Whoever's: what both sides agreed on.
    offer: String,
    candidates: usize,
    created: Instant,
    connected: bool,
    path: Path,
    /// When the other side was heard last, and what its silence means.
    heard: Instant,
    silence: Silence,
    /// That media rests was the last that was said of it.
    silent: bool,
    /// Without a working candidate pair until then, the session is over.
    path_deadline: Option<Instant>,
    closing: Option<(DisconnectCause, Instant)>,
    said_goodbye: bool,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    Nothing,
    /// Media rests: see [`VIEWER_SILENCE`].
    Rest,
    /// The end: see [`SERVER_SILENCE`].
    End,
}

/// What [`Session::poll`] found to do.
#[expect(clippy::large_enum_variant, reason = "it lives for one match; a box for each packet would cost more")]
pub(crate) enum Turn {
    /// It is for the owner's caller.
    Output(Output),
    /// The engine says something about media.
    Media(str0m::Event),
    /// The engine has nothing to do before this instant. What the session itself has is [`Session::wake_at`].
    Rest(Instant),
}

impl Session {
    /// One that can be reached at these addresses.
    pub(crate) fn new(rtc_config: RtcConfig, addresses: &[SocketAddr], now: Instant) -> Self {
        let mut rtc = rtc_config.build(now);
        negotiate::add_host_candidates(&mut rtc, addresses);
        Self {
            rtc,
            events: VecDeque::new(),
            pending: None,
            offer: String::new(),
            candidates: 0,
            created: now,
            connected: false,
            path: Path::default(),
            heard: now,
            silence: Silence::Nothing,
            silent: false,
            path_deadline: None,
            closing: None,
            said_goodbye: false,
            closed: false,
        }
    }

    /// Takes the other side's offer, the first or a later one; answers with the engine's answer.
    pub(crate) fn accept_offer(&mut self, parsed: SdpOffer, offer: &str) -> Result<String, OfferError> {
        // Theirs takes the place of ours, if there is one under way (RFC 3264 §4; JSEP calls it a rollback).
        self.pending = None;
        let answer = self.rtc.sdp_api().accept_offer(parsed).map_err(|e| OfferError::Malformed(e.to_string()))?;
        offer.clone_into(&mut self.offer);
        self.candidates = count_candidates(offer);
        Ok(answer.to_sdp_string())
    }

    /// Makes an offer of a change. [`Self::accept_answer`] comes next; until then nothing is in a hurry.
    pub(crate) fn offer<T>(&mut self, change: impl FnOnce(&mut SdpApi<'_>) -> T) -> Result<(String, T), OfferError> {
        let mut api = self.rtc.sdp_api();
        let made = change(&mut api);
        let (offer, pending) = api.apply().ok_or(OfferError::NoVideo)?;
        self.pending = Some(pending);
        self.offer = offer.to_sdp_string();
        Ok((self.offer.clone(), made))
    }

    /// Takes the answer to [`Self::offer`]. A second one is an error.
    pub(crate) fn accept_answer(&mut self, answer: &str) -> Result<(), AnswerError> {
        negotiate::accept_answer(&mut self.rtc, &mut self.pending, answer)?;
        self.candidates = count_candidates(answer);
        Ok(())
    }

    /// A server answered now: its time to connect begins, and its silence counts.
    pub(crate) fn begin_as_client(&mut self, now: Instant) {
        self.begin(now);
        self.silence = Silence::End;
    }

    /// The other side is a server, which answered our offer.
    pub(crate) fn is_client(&self) -> bool {
        self.silence == Silence::End
    }

    /// The other side answered now: its time to connect begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.created, self.heard) = (now, now);
    }

    /// The other side is a viewer, for which media rests while it is silent.
    pub(crate) fn rest_in_silence(&mut self) {
        self.silence = Silence::Rest;
    }

    /// The offer of whichever side made it.
    pub(crate) fn offered(&self) -> &str {
        &self.offer
    }

    /// Restarts ICE with the other side's new credentials (RFC 8445 §9); ours are [`Self::local_credentials`] afterwards.
    pub(crate) fn restart_ice(&mut self, remote: &Credentials) -> Result<(), OfferError> {
        let offer = negotiate::with_credentials(&self.offer, &remote.ufrag, &remote.pwd);
        let parsed = negotiate::parse_offer(&offer)?;
        self.accept_offer(parsed, &offer).map(drop)
    }

    pub(crate) fn local_credentials(&mut self) -> Credentials {
        let IceCreds { ufrag, pass } = self.rtc.direct_api().local_ice_credentials();
        Credentials { ufrag, pwd: pass }
    }

    /// Adds a trickled candidate.
    pub(crate) fn add_candidate(&mut self, candidate: &Candidate) -> Result<(), CandidateError> {
        if self.candidates >= MAX_CANDIDATES {
            return Err(CandidateError::TooMany);
        }
        self.candidates += 1;
        if let Candidate::Usable(text) = candidate {
            let parsed =
                str0m::Candidate::from_sdp_string(text).map_err(|_| CandidateError::Malformed(text.clone()))?;
            self.rtc.add_remote_candidate(parsed);
        }
        Ok(())
    }

    /// Whether ICE and DTLS are done.
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether media may flow: the goodbye has not begun either.
    pub(crate) const fn is_open(&self) -> bool {
        self.connected && self.closing.is_none()
    }

    /// Whether nothing has come from a viewer for so long that media rests.
    pub(crate) const fn is_silent(&self) -> bool {
        self.silent
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends the session. True when a goodbye goes out first: there is time for a last word before [`Self::poll`].
    pub(crate) fn close(&mut self, now: Instant, cause: DisconnectCause) -> bool {
        if self.closing.is_some() || self.closed {
            return false;
        }
        if !self.rtc.is_connected() {
            self.finish(cause);
            return false;
        }
        // The engine's own goodbye follows in `poll`, behind the last word: closing drops what a channel still holds.
        self.closing = Some((cause, now + CLOSE_DRAIN_LIMIT));
        true
    }

    /// Takes a datagram. Errors: [`PeerError::NotMine`] is to be counted and ignored, the others ended the session.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), PeerError> {
        let receive = Receive::new(Protocol::Udp, from, to, payload).map_err(|_| PeerError::NotMine)?;
        let input = str0m::Input::Receive(now, receive);
        // The engine checks the source of a datagram here and nowhere else.
        if !self.rtc.accepts(&input) {
            return Err(PeerError::NotMine);
        }
        self.path.heard(now, from, payload);
        self.heard = now;
        if std::mem::take(&mut self.silent) {
            self.events.push_back(PeerEvent::Heard);
        }
        self.engine(input)
    }

    /// Moves the engine's time to `now`.
    pub(crate) fn advance(&mut self, now: Instant) -> Result<(), PeerError> {
        self.engine(str0m::Input::Timeout(now))
    }

    fn engine(&mut self, input: str0m::Input<'_>) -> Result<(), PeerError> {
        self.rtc.handle_input(input).map_err(|error| {
            self.finish(DisconnectCause::Failed);
            error.into()
        })
    }

    /// What to do next.
    #[inline]
    pub(crate) fn poll(&mut self, now: Instant) -> Turn {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Turn::Output(Output::Event(event));
            }
            if self.closed {
                return Turn::Output(Output::WakeAt(now + Duration::from_secs(3600)));
            }
            match self.rtc.poll_output() {
                Ok(str0m::Output::Transmit(t)) => {
                    let to = self.path.route(now, t.destination, &t.contents);
                    return Turn::Output(Output::Send { from: t.source, to, payload: t.contents.into() });
                }
                Ok(str0m::Output::Event(str0m::Event::Connected)) => {
                    if !std::mem::replace(&mut self.connected, true) {
                        self.events.push_back(PeerEvent::Connected);
                    }
                }
                Ok(str0m::Output::Event(str0m::Event::IceConnectionStateChange(state))) => {
                    self.on_ice_state(now, state);
                }
                Ok(str0m::Output::Event(str0m::Event::Closed)) => self.finish_by(DisconnectCause::ClosedByPeer),
                Ok(str0m::Output::Event(event)) => return Turn::Media(event),
                Ok(str0m::Output::Timeout(at)) => {
                    if let Some((cause, _)) = self.closing
                        && !std::mem::replace(&mut self.said_goodbye, true)
                    {
                        if self.rtc.close().is_err() {
                            self.finish(cause);
                        }
                    } else if self.rtc.is_alive() {
                        return Turn::Rest(at);
                    } else {
                        self.finish_by(DisconnectCause::ClosedByPeer);
                    }
                }
                Err(_) => self.finish_by(DisconnectCause::Failed),
            }
        }
    }

    /// When [`Self::check_limits`] has something to find, as things stand.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let closing = self.closing.map(|(_, limit)| limit);
        let connecting = (!self.connected && self.pending.is_none()).then(|| self.created + ICE_CONNECT_LIMIT);
        closing.into_iter().chain(connecting).chain(self.path_ends()).chain(self.falls_silent()).min()
    }

    /// Ends the session when it took too long to connect, lost its path, or has said its goodbye. A viewer may have fallen silent.
    pub(crate) fn check_limits(&mut self, now: Instant) {
        if let Some((cause, limit)) = self.closing {
            if now >= limit {
                self.finish(cause);
            }
        } else if !self.connected {
            // The clock starts with the answer.
            if self.pending.is_none() && now >= self.created + ICE_CONNECT_LIMIT {
                self.finish(DisconnectCause::IceNeverConnected);
            }
        } else if self.path_ends().is_some_and(|end| now >= end) {
            self.finish(DisconnectCause::IceTimeout);
        } else if self.falls_silent().is_some_and(|at| now >= at) {
            self.silent = true;
            self.events.push_back(PeerEvent::Silent);
        }
    }

    /// When media rests, as things stand.
    fn falls_silent(&self) -> Option<Instant> {
        (self.silence == Silence::Rest && self.is_open() && !self.silent).then(|| self.heard + VIEWER_SILENCE)
    }

    /// When an established connection counts as lost, as things stand.
    fn path_ends(&self) -> Option<Instant> {
        let silence = (self.silence == Silence::End).then(|| self.heard + SERVER_SILENCE);
        self.path_deadline.into_iter().chain(silence).min().filter(|_| self.connected)
    }

    /// The end, at once.
    pub(crate) fn finish(&mut self, cause: DisconnectCause) {
        if !std::mem::replace(&mut self.closed, true) {
            self.events.push_back(PeerEvent::Closed(cause));
            self.rtc.disconnect();
        }
    }

    /// The same for this cause, unless we were closing anyway.
    fn finish_by(&mut self, cause: DisconnectCause) {
        self.finish(self.closing.map_or(cause, |(cause, _)| cause));
    }

    /// `Checking` is the beginning, a restart, or the time after the last pair died while others are still being tried. None of
    /// them may last for ever, and changing between states must not buy time.
    fn on_ice_state(&mut self, now: Instant, state: IceConnectionState) {
        let limit = match state {
            IceConnectionState::Connected | IceConnectionState::Completed => {
                self.path_deadline = None;
                return;
            }
            IceConnectionState::Disconnected if self.connected => ICE_DISCONNECTED_LIMIT,
            IceConnectionState::Disconnected | IceConnectionState::New | IceConnectionState::Checking => {
                ICE_CONNECT_LIMIT
            }
        };
        let deadline = now + limit;
        self.path_deadline = Some(self.path_deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }
}

fn count_candidates(sdp: &str) -> usize {
    sdp.matches("a=candidate:").count()
}

/// Where media goes.
///
/// A NAT that gives the viewer a new address leaves the engine on the old pair for most of half a minute. So when the path
/// is silent and another one, checked in both directions, carries datagrams, media takes that.
#[derive(Debug, Default)]
struct Path {
    /// Where the engine sends, and when that (or the detour) was last heard.
    engine: Option<(SocketAddr, Instant)>,
    /// Where we send instead.
    detour: Option<SocketAddr>,
}

impl Path {
    /// A datagram that the engine accepts came from this address.
    fn heard(&mut self, now: Instant, from: SocketAddr, payload: &[u8]) {
        let Some((to, last)) = &mut self.engine else { return };
        if from == self.detour.unwrap_or(*to) {
            *last = now;
        } else if now.saturating_duration_since(*last) >= PATH_SILENCE && demux::proves_path(payload) {
            self.detour = (from != *to).then_some(from);
            *last = now;
        }
    }

    /// Where to send what the engine addressed to `to`. Connectivity checks go where they belong.
    fn route(&mut self, now: Instant, to: SocketAddr, payload: &[u8]) -> SocketAddr {
        if demux::is_stun(payload) {
            return to;
        }
        if self.engine.is_none_or(|(known, _)| known != to) {
            *self = Self { engine: Some((to, now)), detour: None };
        }
        self.detour.unwrap_or(to)
    }
}
