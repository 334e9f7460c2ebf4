//! Signalling without sockets: WebSocket messages of the plain and room dialects, rooms, and what WHEP requests mean.
//!
//! Requests and messages go in as text, decisions come out; `lightpipe-net` carries them out.

pub mod message;
pub mod reconnect;
pub mod room;
pub mod sdpfrag;
pub mod whep;

pub use message::{CandidateInit, ClientMessage, MessageError, ServerMessage};
pub use room::{PeerId, Rooms};
pub use sdpfrag::SdpFrag;
