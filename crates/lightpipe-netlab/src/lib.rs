//! Bad networks in virtual time, and what our sessions make of them.
//!
//! [`link`] is one direction of a network, [`profile`] a table of networks as people have them, [`Lab`] a server and its viewers
//! on such networks: real ICE, DTLS, SRTP, RTCP and bandwidth estimation of `lightpipe-rtc`, a model of an encoder instead of one, and
//! no socket and no waiting. `lightpipe lab`, the scenario tests and, through `lightpipe-testkit`, the networks between
//! real processes use the same code. The same seed gives the same network; keys and sequence numbers stay random.

mod lab;
pub mod link;
pub mod plot;
pub mod profile;
mod report;
mod source;
mod tcp;

pub use lab::{Lab, LabError, PathId, ViewerId};
pub use report::{Change, Freezes, Report, Sample, Share, freezes, jain};
pub use source::Ladder;
pub use tcp::TcpId;
