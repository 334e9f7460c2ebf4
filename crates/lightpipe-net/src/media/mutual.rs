//! Connections between equals on a media thread: what a viewer has, and what comes from the other side.

use std::sync::Arc;
use std::time::Instant;

use lightpipe_media::Stream;
use lightpipe_rtc::{ChannelEvent, DisconnectCause, Peer};
use tracing::debug;

use super::publishers::Arrivals;
use super::table::public_part;
use super::worker::Shared;

/// What becomes of a connection between equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Media and data may flow.
    Connected,
    /// Nothing has come for five seconds.
    Silent,
    /// Something came again.
    Heard,
    /// The end.
    Closed(DisconnectCause),
}

/// Hears of a connection between equals. Called on a media thread: must not wait.
pub trait LinkOutlet: Send + Sync {
    /// It is in another state now.
    fn state(&self, state: LinkState);

    /// Something happened to a data channel. False when there is no room for it: a channel that is reliable must not lose a message,
    /// so it is closed.
    fn channel(&self, event: ChannelEvent) -> bool;
}

/// The half of a connection between equals that comes to us.
pub(crate) struct Mutual {
    pub(super) arrivals: Arrivals,
    pub(super) outlet: Arc<dyn LinkOutlet>,
}

impl Mutual {
    pub(crate) fn new(receives: Arc<Stream>, outlet: Arc<dyn LinkOutlet>, created: Instant) -> Self {
        Self { arrivals: Arrivals::new(receives, &[], created), outlet }
    }

    /// What an offer and its answer brought: the stream learns what will come.
    pub(super) fn begin(&self, peer: &Peer) {
        if let Some(offered) = peer.offered() {
            self.arrivals.stream.set_tracks(offered.video, offered.audio);
        }
    }

    /// Hands on what came; asks the other side for the keyframes that are wanted. True when it did.
    pub(super) fn hand_on(&mut self, now: Instant, id: &str, peer: &mut Peer, shared: &Shared) -> bool {
        while let Some(published) = peer.take_published() {
            self.arrivals.publish(now, published, shared);
        }
        while let Some(event) = peer.take_channel_event() {
            let label = match &event {
                ChannelEvent::Message { label, .. } => Some(label.clone()),
                _ => None,
            };
            if !self.outlet.channel(event)
                && let Some(label) = label
            {
                debug!(peer = public_part(id), label, "nobody takes so many messages; the channel is closed");
                peer.close_channel(&label, "its reader is too slow");
            }
        }
        let wanted = if peer.is_connected() { self.arrivals.wanted_keyframes(now, shared) } else { Vec::new() };
        for layer in &wanted {
            peer.request_keyframe(*layer, now);
        }
        !wanted.is_empty()
    }
}
