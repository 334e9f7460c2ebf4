//! Pictures of the embedding program.

use std::sync::Arc;
use std::time::Instant;

use lightpipe_codec::EncodeThread;
use lightpipe_media::frame::FrameError;
use lightpipe_media::{FramePool, FrameQueue, MediaClock, PixelFormat, Size, Stream, VideoFrame};
use lightpipe_net::Streams;

/// Takes the pictures of a stream from a program. Dropping it ends the stream and frees its name.
///
/// [`Self::push`] never waits: a picture that the encoder has no time for replaces the oldest one that waits.
#[derive(Debug)]
pub struct FrameSender {
    pub(crate) size: Size,
    pub(crate) frames: Arc<FrameQueue>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) clock: MediaClock,
    pub(crate) pool: FramePool,
    pub(crate) streams: Streams,
    pub(crate) _encoder: EncodeThread,
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        self.streams.remove(self.stream.name());
        self.stream.close();
    }
}

impl FrameSender {
    /// Sends a picture that was taken now. `pixels` are tightly packed rows in `format`, of the size given at the start.
    pub fn push(&self, format: PixelFormat, pixels: &[u8]) -> Result<(), FrameError> {
        self.push_captured(Instant::now(), format, pixels)
    }

    /// Sends a picture that was taken at `captured`.
    pub fn push_captured(&self, captured: Instant, format: PixelFormat, pixels: &[u8]) -> Result<(), FrameError> {
        let mut frame = VideoFrame::copied_from(&self.pool, self.clock.at(captured), self.size, format, pixels)?;
        frame.received = self.clock.at(Instant::now());
        self.frames.push(frame);
        Ok(())
    }

    /// Whether somebody watches. Without viewers a renderer may rest; pictures pushed then are dropped unencoded.
    pub fn is_watched(&self) -> bool {
        self.stream.outlets() > 0
    }

    /// Waits up to `timeout` for somebody to watch; true when somebody does.
    pub fn wait_watched(&self, timeout: std::time::Duration) -> bool {
        self.stream.wait_wanted(timeout)
    }

    /// The picture's size.
    pub const fn size(&self) -> Size {
        self.size
    }
}
