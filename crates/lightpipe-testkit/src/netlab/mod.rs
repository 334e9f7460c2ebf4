//! Bad networks, on purpose.
//!
//! [`Link`] of `lightpipe-netlab` is one direction of a network in virtual time: scenario tests of the thinking crates pass datagrams
//! through two of them and the same seed gives the same run. `netns` (Linux) puts the same link between real processes:
//! two network namespaces, joined by a cable that loses and delays what the link decides.

#[cfg(target_os = "linux")]
mod netns;

pub use lightpipe_netlab::link::{Counters, GilbertElliott, Jitter, Link, LinkConfig, Packet, QueueLimit};
#[cfg(target_os = "linux")]
pub use netns::{CLIENT_ADDR, Lab, LabError, SERVER_ADDR};
