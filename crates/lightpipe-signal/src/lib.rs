//! Signalling without sockets: WebSocket messages of the plain, room and JSON-RPC dialects, rooms, what WHEP requests mean, and what peers tell each other
//! over data channels.
//!
//! Requests and messages go in as text, decisions come out; `lightpipe-net` carries them out.

pub mod chat;
pub mod conference;
pub mod jsonrpc;
pub mod mesh;
pub mod message;
pub mod mix;
pub mod reconnect;
pub mod room;
pub mod sdpfrag;
pub mod transfer;
pub mod whep;

pub use chat::Chat;
pub use conference::Conference;
pub use message::{CandidateInit, ClientMessage, MessageError, ServerMessage};
pub use room::{PeerId, Rooms};
pub use sdpfrag::SdpFrag;
pub use transfer::Transfers;
