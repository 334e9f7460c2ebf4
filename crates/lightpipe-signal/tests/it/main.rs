//! Peers over channels that are slow, late, and cut at any moment; and our traffic against the published schema.

mod channel;
mod chat;
mod schema;
mod transfer;
