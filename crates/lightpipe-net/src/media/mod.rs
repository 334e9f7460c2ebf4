//! The media engine: threads that own sockets and peers.
//!
//! A peer lives on one thread for life. Its datagrams find it by source address (learnt from connectivity checks that
//! passed), else by the ufrag in a STUN request; what reaches another thread's socket is handed over.

mod engine;
mod inbox;
mod incoming;
mod layers;
mod mutual;
mod priority;
mod publishers;
mod routes;
mod socket;
mod table;
mod worker;

pub(crate) use engine::random_id;
pub use engine::{EngineConfig, MediaEngine, NewSession, Phase, Phases, ViewerError, interface_addresses};
pub use mutual::{LinkOutlet, LinkState};
pub use priority::{Realtime, make_realtime};
pub(crate) use table::public_part;
pub use table::{EngineCounters, IncomingLayer, PeerInfo, Transport};
