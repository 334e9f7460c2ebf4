//! One source, several sizes: each picture is converted once, scaled for the layers that somebody wants, and handed to their
//! encoders. The largest goes out first, so that the smaller ones cost it no time.

use std::sync::Arc;
use std::time::Instant;

use lightpipe_media::convert::{self, Converter};
use lightpipe_media::queue::Pop;
use lightpipe_media::stream::Health;
use lightpipe_media::{FramePool, FrameQueue, MediaClock, MediaTime, Size, Stream, VideoFrame, timecode};
use tracing::{debug, warn};

use crate::budget::CpuBudget;
use crate::encoder::EncodeError;
use crate::layer::{Feed, IDLE_CHECK, Picture};

/// Failures in a row after which the stream is shown as failed.
const FAILURE_LIMIT: u32 = 5;

/// One size of the pictures, and who encodes it: the same layer in each coding.
pub(crate) struct Rung {
    size: Size,
    /// Of a layer with fewer pictures than the source.
    thinning: Option<Thinning>,
    /// Each with a pool of its own: a buffer that changes its length is cleared each time.
    converter: Converter,
    feeds: Vec<Arc<Feed>>,
}

impl Rung {
    /// A layer of `size` and `fps` out of a source of `source_fps`.
    pub(crate) fn new(size: Size, fps: f64, source_fps: f64) -> Self {
        let thinning = (fps < source_fps).then(|| Thinning::new(fps, source_fps));
        Self { size, thinning, converter: Converter::new(FramePool::new()), feeds: Vec::new() }
    }

    pub(crate) fn add(&mut self, feed: Arc<Feed>) {
        self.feeds.push(feed);
    }

    /// Whether a picture taken at `captured` is one of this layer's, and somebody wants it.
    fn takes(&mut self, captured: MediaTime, now: MediaTime) -> bool {
        let wanted = self.feeds.iter().any(|feed| feed.is_wanted(now));
        wanted && self.thinning.as_mut().is_none_or(|thinning| thinning.keeps(captured))
    }

    fn feed(&self, frame: &VideoFrame, number: u64, now: MediaTime) {
        for feed in self.feeds.iter().filter(|feed| feed.is_wanted(now)) {
            feed.push(Picture { frame: frame.clone(), number }, now);
        }
    }
}

/// Takes raw pictures and feeds the layers, from the best to the least; ends with its queue.
pub(crate) struct Ladder {
    stream: Arc<Stream>,
    frames: Arc<FrameQueue>,
    clock: MediaClock,
    /// Paint the strip.
    timecode: bool,
    /// What all layers are made of: the best one, or what it would be.
    full: Size,
    converter: Converter,
    rungs: Vec<Rung>,
    budget: Option<Arc<CpuBudget>>,
    /// Pictures that somebody wanted so far.
    taken: u64,
    failures: u32,
}

impl Ladder {
    /// `full`: what pictures are converted to before they are scaled.
    pub(crate) fn new(
        stream: Arc<Stream>,
        frames: Arc<FrameQueue>,
        clock: MediaClock,
        timecode: bool,
        full: Size,
        rungs: Vec<Rung>,
        budget: Option<Arc<CpuBudget>>,
    ) -> Self {
        let converter = Converter::new(FramePool::new());
        Self { stream, frames, clock, timecode, full, converter, rungs, budget, taken: 0, failures: 0 }
    }

    pub(crate) fn run(mut self) {
        loop {
            match self.frames.pop(IDLE_CHECK) {
                Pop::Item(frame) => match self.on_frame(frame) {
                    Ok(()) => self.failures = 0,
                    Err(error) => self.fail(&error),
                },
                Pop::TimedOut => {}
                Pop::Closed => break,
            }
        }
        debug!(stream = self.stream.name(), "ladder ends");
    }

    fn on_frame(&mut self, frame: VideoFrame) -> Result<(), EncodeError> {
        let now = self.clock.at(Instant::now());
        let captured = frame.captured;
        let takes: Vec<bool> = self.rungs.iter_mut().map(|rung| rung.takes(captured, now)).collect();
        if !takes.contains(&true) {
            return Ok(());
        }
        if let Some(budget) = &self.budget {
            budget.look(now);
        }
        let number = self.taken;
        self.taken += 1;
        let full = self.prepare(frame)?;
        // Asked for once, and only where there is something to do about it.
        let mut strip = None;
        let mut made = vec![full];
        for (rung, _) in self.rungs.iter().zip(takes).filter(|(_, takes)| *takes) {
            let [full, ..] = made.as_slice() else { break };
            if let Some(same) = made.iter().find(|one| one.size() == rung.size) {
                rung.feed(same, number, now);
                continue;
            }
            // Halving the least one that leads there is fastest; what is filtered is best made of the original.
            let from = made.iter().rev().find(|one| convert::halvings(one.size(), rung.size).is_some()).unwrap_or(full);
            let strip = *strip.get_or_insert_with(|| timecode::read(full));
            let picture = scaled(&rung.converter, from, rung.size, strip)?;
            rung.feed(&picture, number, now);
            made.push(picture);
        }
        Ok(())
    }

    /// The picture as encoders take it, in its largest size, with the strip if that is wanted.
    fn prepare(&self, frame: VideoFrame) -> Result<VideoFrame, EncodeError> {
        let received = frame.received;
        let mut picture = self.converter.convert(frame, self.full).map_err(|error| fault(&error))?;
        picture.received = received;
        if self.timecode {
            let unix_ms = self.clock.unix_micros(picture.captured) / 1000;
            timecode::paint(&mut picture, unix_ms as u32); // modulo 2³² by definition of the strip
        }
        Ok(picture)
    }

    fn fail(&mut self, error: &EncodeError) {
        self.failures += 1;
        self.stream.update_stats(|s| s.encoder_errors += 1);
        if self.failures == 1 || self.failures == FAILURE_LIMIT {
            warn!(stream = self.stream.name(), %error, in_a_row = self.failures, "pictures cannot be converted");
        }
        if self.failures == FAILURE_LIMIT {
            self.stream.set_health(Health::Failed(error.to_string()));
        }
    }
}

/// An I420 picture in another size, with the strip that belongs to it, if any, so that it can be read.
pub(crate) fn scaled(
    converter: &Converter,
    from: &VideoFrame,
    size: Size,
    strip: Option<u32>,
) -> Result<VideoFrame, EncodeError> {
    let mut picture = converter.scale(from, size).map_err(|error| fault(&error))?;
    picture.received = from.received;
    if let Some(time) = strip
        && timecode::read(&picture) != Some(time)
    {
        // Blocks that were not halved to whole samples are read by nobody.
        timecode::paint(&mut picture, time);
    }
    Ok(picture)
}

fn fault(error: &dyn std::fmt::Display) -> EncodeError {
    EncodeError::Unsupported { backend: "colour conversion", what: error.to_string() }
}

/// Leaves pictures out, as evenly as capture times allow.
#[derive(Debug)]
pub(crate) struct Thinning {
    interval_micros: f64,
    /// A picture that comes earlier than it is due by no more than this is the one.
    slack_micros: f64,
    due_micros: Option<f64>,
}

impl Thinning {
    pub(crate) fn new(fps: f64, source_fps: f64) -> Self {
        Self { interval_micros: 1e6 / fps, slack_micros: 0.25e6 / source_fps, due_micros: None }
    }

    pub(crate) fn keeps(&mut self, captured: MediaTime) -> bool {
        let at = captured.as_micros() as f64;
        let due = *self.due_micros.get_or_insert(at);
        // A source that paused, or whose times go back, begins anew.
        if (at - due).abs() > 2.0 * self.interval_micros {
            self.due_micros = Some(at + self.interval_micros);
            return true;
        }
        let keeps = at + self.slack_micros >= due;
        if keeps {
            self.due_micros = Some(due + self.interval_micros);
        }
        keeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_thinned(fps: f64, source_fps: f64, jitter_micros: i64, expected: &[i64]) {
        let mut thinning = Thinning::new(fps, source_fps);
        let kept: Vec<i64> = (0..12)
            .filter(|n| {
                let jitter = if n % 2 == 0 { jitter_micros } else { -jitter_micros };
                thinning.keeps(MediaTime::from_micros((*n as f64 * 1e6 / source_fps) as i64 + jitter))
            })
            .collect();
        assert_eq!(kept, expected, "{fps} of {source_fps}");
    }

    #[test]
    fn pictures_are_thinned_out_evenly() {
        check_thinned(15.0, 30.0, 0, &[0, 2, 4, 6, 8, 10]);
        check_thinned(15.0, 30.0, 3_000, &[0, 2, 4, 6, 8, 10]);
        check_thinned(10.0, 30.0, 3_000, &[0, 3, 6, 9]);
        check_thinned(20.0, 30.0, 0, &[0, 2, 3, 5, 6, 8, 9, 11]);
        check_thinned(7.5, 60.0, 500, &[0, 8]);
    }

    #[test]
    fn a_source_that_is_slower_than_it_should_be_keeps_all_its_pictures() {
        let mut thinning = Thinning::new(15.0, 30.0);
        for n in 0..20 {
            assert!(thinning.keeps(MediaTime::from_micros(n * 70_000)), "{n}");
        }
        assert!(thinning.keeps(MediaTime::from_micros(60_000_000)), "after a pause");
        assert!(thinning.keeps(MediaTime::from_micros(1_000_000)), "times that go back");
    }
}
