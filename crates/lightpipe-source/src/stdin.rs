//! `-`: pictures from our own standard input.
//!
//! It is read once: when it ends the stream says so, and no retry can bring it back.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use lightpipe_media::EventKind;
use lightpipe_media::stream::Health;

use crate::pipe::{self, Feed, PipeFormat, Run};
use crate::supervisor::{SourceError, check_format};
use crate::{SourceHandle, VideoSink};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Delivers the pictures on standard input until it ends or the handle is dropped. Works once in a process.
pub fn start(format: PipeFormat, sink: VideoSink) -> Result<Box<dyn SourceHandle>, SourceError> {
    check_format(format)?;
    if TAKEN.swap(true, Relaxed) {
        return Err(SourceError::StdinTaken);
    }
    read_from(std::io::stdin(), format, sink)
}

#[derive(Debug)]
struct Reading {
    run: Arc<Run>,
    done: Receiver<()>,
}

impl SourceHandle for Reading {
    fn child_pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.run.end();
        // A read of standard input cannot be interrupted. The thread is given a moment, then left: it
        // delivers nothing any more and ends with its input or with the process.
        let _ = self.done.recv_timeout(Duration::from_millis(50));
    }
}

fn read_from(
    input: impl Read + Send + 'static,
    format: PipeFormat,
    sink: VideoSink,
) -> Result<Box<dyn SourceHandle>, SourceError> {
    let feed = Feed::new(sink.into(), Duration::ZERO, None);
    let run = Run::new(&feed, Duration::ZERO);
    let (ended, done) = channel();
    let reading = {
        let run = Arc::clone(&run);
        move || {
            let result = pipe::read_to_end(input, format, &run);
            let reason = match result {
                Ok(()) => format!("standard input ended after {} pictures", run.pictures()),
                Err(e) => format!("standard input: the program {e}"),
            };
            if !run.is_ended() {
                let sink = feed.sink();
                tracing::warn!(target: "events::source_failed", stream = sink.stream.name(), reason);
                sink.set_health(Health::Failed(reason.clone()));
                sink.event(EventKind::SourceFailed { reason });
            }
            let _ = ended.send(());
        }
    };
    std::thread::Builder::new().name("source-stdin".to_owned()).spawn(reading).map_err(SourceError::Thread)?;
    Ok(Box::new(Reading { run, done }))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pipe::RawFormat;
    use lightpipe_media::{EventLog, FrameQueue, MediaClock, PixelFormat, Size, Stream, VideoCodec};

    fn run(input: Vec<u8>, format: PipeFormat) -> (VideoSink, String) {
        let sink = VideoSink {
            stream: Stream::new("in", VideoCodec::H264),
            frames: Arc::new(FrameQueue::new(100)),
            clock: MediaClock::new(Instant::now(), Duration::ZERO),
            events: EventLog::new(),
        };
        let handle = read_from(std::io::Cursor::new(input), format, sink.clone()).expect("a thread for the test");
        let end = sink
            .events
            .wait_for(0, Duration::from_secs(30), |e| matches!(e.kind, EventKind::SourceFailed { .. }))
            .expect("the end of the input is reported");
        drop(handle);
        let EventKind::SourceFailed { reason } = end.kind else { unreachable!("just matched") };
        assert_eq!(sink.stream.health(), Health::Failed(reason.clone()));
        (sink, reason)
    }

    const RAW: RawFormat = RawFormat { size: Size::new(4, 2), pixels: PixelFormat::Bgra };

    #[track_caller]
    fn check(input: &[u8], format: PipeFormat, pictures: u64, expected: &str) {
        let (sink, reason) = run(input.to_vec(), format);
        assert_eq!(reason, expected);
        assert_eq!(sink.frames.pushed() + sink.stream.stats().published, pictures);
    }

    #[test]
    fn end_of_standard_input_is_reported_with_its_reason() {
        let raw = PipeFormat::Raw(RAW);
        let detect = PipeFormat::Detect(RAW);
        check(&[7; 96], raw, 3, "standard input ended after 3 pictures");
        check(&[7; 96], detect, 3, "standard input ended after 3 pictures");
        check(&[], detect, 0, "standard input ended after 0 pictures");
        check(
            &[7; 100],
            raw,
            3,
            "standard input: the program ended inside a picture, after 4 of 32 bytes; \
             is the picture size 4x2 right?",
        );
        check(&[7; 100], PipeFormat::Nut, 0, "standard input: the program wrote 100 bytes that are no NUT");
        check(
            &[7; 100],
            PipeFormat::AnnexB,
            0,
            "standard input: the program wrote 100 bytes that are no H.264 in Annex-B",
        );
        let sps = [
            0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x88, 0x46, 0xa0, 0, 0,
            0, 1, 0x68, 0xce, 0x3c, 0x80,
        ];
        let pictures = [0, 0, 1, 0x65, 0x88, 0x84, 0x21, 0, 0, 0, 1, 0x41, 0x9a, 0x24, 0x33];
        check(&[&sps[..], &pictures].concat(), detect, 2, "standard input ended after 2 pictures");
    }
}
