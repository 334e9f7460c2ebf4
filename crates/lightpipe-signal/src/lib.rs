//! Signalling without sockets: WebSocket messages of the plain, room and JSON-RPC dialects, rooms, and what WHEP requests mean.
//!
//! Requests and messages go in as text, decisions come out; `lightpipe-net` carries them out.

pub mod conference;
pub mod jsonrpc;
pub mod mesh;
pub mod message;
pub mod reconnect;
pub mod room;
pub mod sdpfrag;
pub mod whep;

pub use conference::Conference;
pub use message::{CandidateInit, ClientMessage, MessageError, ServerMessage};
pub use room::{PeerId, Rooms};
pub use sdpfrag::SdpFrag;
