//! The WebRTC peer: negotiation, media, feedback. The only crate that names the engine (str0m).
//!
//! A [`Peer`] is a plain struct: datagrams, access units and the current time go in; datagrams, events
//! and the next wake-up time come out. There is no socket, no task and no clock in here, so the same code runs behind
//! the media workers and in virtual time over a simulated network.

mod channels;
mod climb;
mod collapse;
pub mod control;
pub mod demux;
#[cfg(feature = "rsa")]
mod dtls;
mod inbound;
mod intake;
mod layers;
mod negotiate;
mod pacer;
mod peer;
mod publisher;
pub mod receiver;
mod session;
mod simulcast;

pub use channels::{
    ChannelError, ChannelEvent, ChannelInit, Delivery, MAX_BUFFERED, MAX_CHANNELS, MAX_MESSAGE_LEN, Message,
};
pub use intake::{Offered, Published, ReceivedLayer};
pub use layers::{LayerState, LayerUse};
pub use negotiate::{AnswerError, Candidate, CandidateError, MAX_CANDIDATES, MAX_MEDIA_LINES, MAX_SDP_LEN, OfferError};
pub use peer::{Counters, EncodingCounters, Input, Peer, Sent, SentLayer, Tracks};
pub use publisher::Publisher;
pub use session::{Credentials, DisconnectCause, GuardStep, Identity, Output, PeerConfig, PeerError, PeerEvent};
pub use simulcast::MAX_LAYERS;

/// Does the costly first-time work of the cryptography (37 ms CPU at the first random number, measured) at a
/// moment of the caller's choice instead of inside the first viewer's handshake.
pub fn warm_up() {
    drop(Identity::generate());
}
