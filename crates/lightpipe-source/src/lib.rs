//! Where pictures and sound come from: cube, pattern, FFmpeg, desktop, camera, microphone, pipes.
//!
//! Every source ends in a [`VideoSink`] or an [`AudioSink`]: raw pictures go into the encoder's [`FrameQueue`], encoded ones
//! straight to the [`Stream`], sound into the [`AudioQueue`]. A source owns its threads and its child, and both end when its
//! [`SourceHandle`] is dropped.

pub mod beep;
mod canvas;
mod child;
pub mod cube;
pub mod devices;
mod encoded;
pub mod exec;
pub mod ffmpeg;
#[cfg(feature = "mic")]
pub mod mic;
pub mod pattern;
pub mod pipe;
pub mod stderr_ring;
pub mod stdin;
pub mod supervisor;
pub mod ticker;
pub mod timeline;
#[cfg(target_os = "linux")]
pub mod x11;

use std::sync::Arc;

use lightpipe_media::{AudioQueue, EventLog, FrameQueue, MediaClock, Stream};

/// Where a source delivers, and the clock it stamps pictures with.
#[derive(Debug, Clone)]
pub struct VideoSink {
    /// The stream that the source feeds. Its `wait_wanted` and `demand` tell a renderer when to pause;
    /// its health is the source's to set.
    pub stream: Arc<Stream>,
    /// Raw pictures on their way to the encoder.
    pub frames: Arc<FrameQueue>,
    /// The process's media clock.
    pub clock: MediaClock,
    /// Lifecycle events.
    pub events: EventLog,
}

/// Where a source of sound delivers, and the clock it stamps blocks with.
#[derive(Debug, Clone)]
pub struct AudioSink {
    /// The stream that the source feeds.
    pub stream: Arc<Stream>,
    /// Raw sound on its way to the encoder.
    pub blocks: Arc<AudioQueue>,
    /// The process's media clock.
    pub clock: MediaClock,
    /// Lifecycle events.
    pub events: EventLog,
}

/// A running source. Dropping it stops the source, ends its child and waits for its threads.
pub trait SourceHandle: Send + std::fmt::Debug {
    /// Process id of the child, when there is one now.
    fn child_pid(&self) -> Option<u32>;
}
