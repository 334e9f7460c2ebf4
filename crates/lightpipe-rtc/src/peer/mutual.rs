//! A connection between equals, as in a mesh: both sides send and receive on the same lines, open data channels, and may negotiate again.

use std::collections::VecDeque;
use std::time::Instant;

use lightpipe_media::VideoCodec;
use str0m::RtcConfig;
use str0m::media::{Direction, MediaKind};

use super::{Peer, Tracks, no_video, rtc_config};
use crate::channels::{ChannelError, ChannelEvent, ChannelInit, Channels, Message};
use crate::intake::{Intake, Offered, Published, ReceivedLayer};
use crate::negotiate::{self, AnswerError};
use crate::receiver::ReceiverCounters;
use crate::session::{PeerConfig, PeerError};

/// What a connection between equals has beside that of a viewer.
#[derive(Debug, Default)]
pub(super) struct Mutual {
    pub(super) intake: Intake,
    pub(super) channels: Channels,
}

impl Peer {
    /// Offers pictures and sound in both directions, and these data channels. We send what `tracks` says, and take H.264, VP8, VP9, AV1 and Opus;
    /// [`Self::accept_answer`] comes next.
    pub fn offer_mutual(
        config: PeerConfig,
        tracks: Tracks,
        channels: &[ChannelInit],
        now: Instant,
    ) -> Result<(Self, String), PeerError> {
        let mut peer = Self::new(mutual_config(&config, tracks), config, tracks, now);
        let mut mutual = Mutual::default();
        let stream = Some(format!("{:016x}", fastrand::u64(..)));
        let direction = |sends: bool| if sends { Direction::SendRecv } else { Direction::RecvOnly };
        let (offer, opened) = peer.session.offer(|change| {
            change.add_media(MediaKind::Video, direction(tracks.video.is_some()), stream.clone(), None, None);
            change.add_media(MediaKind::Audio, direction(tracks.audio), stream.clone(), None, None);
            let mut open =
                |init: &ChannelInit| mutual.channels.add(init.clone(), |config| change.add_channel_with_config(config));
            channels.iter().try_for_each(&mut open)
        })?;
        opened?;
        peer.mutual = Some(Box::new(mutual));
        Ok((peer, offer))
    }

    /// Answers such an offer. Where the other side wants pictures and takes none of our codec, it is an error that says so: another coding of the
    /// same stream may do.
    pub fn answer_mutual(
        config: PeerConfig,
        offer: &str,
        tracks: Tracks,
        channels: &[ChannelInit],
        now: Instant,
    ) -> Result<(Self, String), PeerError> {
        let parsed = negotiate::parse_offer(offer)?;
        let mut peer = Self::new(mutual_config(&config, tracks), config, tracks, now);
        let answer = peer.session.accept_offer(parsed, offer)?;
        peer.session.rest_in_silence();
        peer.mutual = Some(Box::default());
        peer.open_mutual(&answer, offer);
        if let Some(codec) = tracks.video.filter(|_| peer.video.is_none() && negotiate::wants_video(offer)) {
            return Err(no_video(offer, codec).into());
        }
        for init in channels {
            peer.open_channel(init.clone())?;
        }
        let answer = peer.told(&answer);
        Ok((peer, answer))
    }

    /// Takes the answer to one of our offers, the first or a later one.
    pub(super) fn accept_mutual_answer(&mut self, answer: &str, now: Instant) -> Result<(), PeerError> {
        let first = !self.session.is_connected();
        self.session.accept_answer(answer)?;
        if first {
            self.session.begin(now);
            self.session.rest_in_silence();
        }
        let ours = self.session.offered().to_owned();
        self.open_mutual(&ours, answer);
        let channels = self.mutual.as_ref().is_some_and(|mutual| !mutual.channels.is_empty());
        let receives = self.mutual.as_ref().is_some_and(|mutual| !mutual.intake.is_empty());
        if self.video.is_none() && self.audio.is_none() && !channels && !receives {
            return Err(AnswerError::NothingTaken.into());
        }
        Ok(())
    }

    /// Finds the lines that both sides agreed on, by our description and theirs. Those that are open stay as they are.
    pub(super) fn open_mutual(&mut self, ours: &str, theirs: &str) {
        let mids = negotiate::mids_of(ours);
        self.open_lines(&mids);
        let codec = negotiate::published_codec(theirs, None);
        if let Some(mutual) = &mut self.mutual {
            mutual.intake.open_lines(&self.session.rtc, &mids, codec, "");
        }
    }

    /// An offer of new ICE credentials (RFC 8445 §9), for a path that was lost; [`Self::accept_answer`] comes next. Media goes on where it went
    /// until that comes. An offer of the other side takes its place: perfect negotiation is the caller's, see `lightpipe-signal`.
    pub fn restart_offer(&mut self) -> Result<String, PeerError> {
        let (offer, _) = self.session.offer(|change| change.ice_restart(true))?;
        Ok(offer)
    }

    /// Opens a data channel on a connection between equals; [`ChannelEvent::Open`] tells when it may be used. The other side must have agreed to
    /// data channels at all.
    pub fn open_channel(&mut self, init: ChannelInit) -> Result<(), ChannelError> {
        let Some(mutual) = &mut self.mutual else { return Err(ChannelError::NoSuchChannel(init.label)) };
        let mut direct = self.session.rtc.direct_api();
        mutual.channels.add(init, |config| direct.create_data_channel(config))
    }

    /// Takes a message for a data channel; what the channel holds with it, bytes.
    pub fn send_message(&mut self, label: &str, message: Message) -> Result<usize, ChannelError> {
        let mutual = self.mutual.as_mut().ok_or_else(|| ChannelError::NoSuchChannel(label.to_owned()))?;
        mutual.channels.send(label, message, &mut self.session.rtc)
    }

    /// Takes as many messages for a data channel as it has room for, and leaves the others, for which [`ChannelEvent::Low`] comes; what the channel
    /// holds then, bytes.
    pub fn send_messages(&mut self, label: &str, messages: &mut VecDeque<Message>) -> Result<usize, ChannelError> {
        let mutual = self.mutual.as_mut().ok_or_else(|| ChannelError::NoSuchChannel(label.to_owned()))?;
        mutual.channels.send_all(label, messages, &mut self.session.rtc)
    }

    /// What a data channel holds that has not left, bytes.
    pub fn buffered_amount(&mut self, label: &str) -> usize {
        let rtc = &mut self.session.rtc;
        self.mutual.as_ref().map_or(0, |mutual| mutual.channels.buffered(label, rtc))
    }

    /// Closes a data channel whose messages nobody can take.
    pub fn close_channel(&mut self, label: &str, reason: &'static str) {
        if let Some(mutual) = &mut self.mutual {
            mutual.channels.close_label(label, reason, &mut self.session.rtc);
        }
    }

    /// What happened to data channels since the last call.
    pub fn take_channel_event(&mut self) -> Option<ChannelEvent> {
        self.mutual.as_mut()?.channels.take()
    }

    /// What the other side sent since the last call, in order.
    pub fn take_published(&mut self) -> Option<Published> {
        self.mutual.as_mut()?.intake.take()
    }

    /// What the other side sends, as far as it was agreed; none where this is a viewer.
    pub fn offered(&self) -> Option<&Offered> {
        self.mutual.as_ref().map(|mutual| mutual.intake.offered())
    }

    /// What came of its pictures.
    pub fn received(&self) -> Option<ReceiverCounters> {
        self.mutual.as_ref().map(|mutual| mutual.intake.counters())
    }

    /// The same of each layer.
    pub fn received_layers(&self) -> Vec<ReceivedLayer> {
        self.mutual.as_ref().map_or_else(Vec::new, |mutual| mutual.intake.received())
    }

    /// Asks the other side for a keyframe.
    pub fn request_keyframe(&mut self, layer: usize, now: Instant) {
        if let Some(mutual) = &mut self.mutual {
            mutual.intake.request_keyframe(layer, now, &mut self.session.rtc);
        }
    }
}

/// The engine for a connection between equals: our own codec first, then all that we can pass on.
fn mutual_config(config: &PeerConfig, tracks: Tracks) -> RtcConfig {
    let mut rtc_config = rtc_config(config, tracks)
        .set_extension(4, str0m::rtp::Extension::RtpMid)
        .set_extension(3, str0m::rtp::Extension::TransportSequenceNumber);
    let first = tracks.video.unwrap_or(VideoCodec::H264);
    for codec in [VideoCodec::H264, VideoCodec::Vp8, VideoCodec::Vp9, VideoCodec::Av1] {
        if codec != first {
            rtc_config = negotiate::with_codec(rtc_config, codec);
        }
    }
    rtc_config
}
