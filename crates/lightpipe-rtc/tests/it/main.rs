//! Scenarios of the peer in virtual time over a seeded network: real ICE, DTLS, SRTP, RTCP and SCTP, no socket, no waiting.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it measured")]

mod channel;
mod estimate;
mod hostile;
mod ice;
mod lab;
mod lifetime;
mod loss;
mod mutual;
mod negotiation;
mod offers;
mod operations;
mod pacing;
mod raw;
mod retransmission;
mod simulcast;
mod wire;
