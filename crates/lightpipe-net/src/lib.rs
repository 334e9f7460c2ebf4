//! Sockets and HTTP around the pure crates.
//!
//! [`media`] moves media: one thread per core, each with its own UDP socket and its own peers, no async runtime.
//! [`client`] is the other side of WHIP and WHEP. [`http`] serves pages, WHEP, WebSocket signalling, the API and metrics on tokio, and talks to the media threads by
//! bounded queues. Both share one port number: TCP for HTTP, UDP for media. [`record`] writes a stream into a file.
//!
//! ```text
//!  Stream ──deliver──▶ Inbox ─┐                          ┌─▶ sendmsg (GSO)
//!  HTTP, WebSocket ─command──▶├─ media thread: Peer, Peer ┤
//!  UDP socket ────datagrams──▶┘                          └─▶ Demand back to Stream
//! ```

pub mod client;
pub mod http;
pub mod media;
mod playout;
pub mod record;
mod registry;

pub use client::{
    Client, ClientConfig, ClientState, ClientStatus, Clients, Company, FileDirection, FileError, FileInfo, FileState,
    Mesh, MeshConfig, MeshError, MeshEvent, MeshHandle, MeshPeer, ReceiveFiles,
};
pub use http::{HttpConfig, HttpServer, IceServer, PublishConfig};
pub use media::{EngineConfig, MediaEngine, NewSession, Phase, Phases, ViewerError};
pub use playout::playout_to_json;
pub use record::{FileRecorder, RecordError, RecordOptions, RecordStats};
pub use registry::{NameTaken, StreamEntry, Streams};
