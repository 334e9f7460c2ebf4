//! The words of lightpipe: time, pictures, access units, bytes of H.264 and its kin, RTP payloads, streams.
//!
//! Everything here is plain data and plain logic. There are no sockets, no tasks and no clock: an
//! instant is always an argument, so that every behaviour can be tested in virtual time.
//!
//! The flow through the types: a source makes [`VideoFrame`]s and pushes them into a [`FrameQueue`];
//! an encoder turns them into [`AccessUnit`]s and publishes them on a [`Stream`]; each [`Outlet`]
//! takes them from there, and what the outlets want flows back as [`Demand`].

pub mod access_unit;
pub mod adapt;
pub mod annexb;
pub mod arrival;
pub mod audio;
pub mod av1;
mod bits;
pub mod container;
pub mod convert;
pub mod event;
pub mod frame;
pub mod h264;
pub mod histogram;
pub mod nut;
pub mod packetize;
pub mod playout;
pub mod queue;
pub mod stream;
pub mod time;
pub mod timecode;
pub mod vp8;
pub mod vp9;

pub use access_unit::{AccessUnit, Stages, VideoCodec};
pub use arrival::{ArrivalClock, TrackClock};
pub use audio::{AudioBlock, AudioPacket};
pub use event::{Event, EventKind, EventLog};
pub use frame::{FramePool, PixelFormat, Size, VideoFrame};
pub use histogram::Histogram;
pub use queue::{AudioQueue, FrameQueue};
pub use stream::{Demand, Outlet, SimulcastLayer, Stream, Subscription};
pub use time::{MediaClock, MediaTime, RtpClock};
