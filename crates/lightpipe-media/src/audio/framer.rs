//! Cuts sound of any chunk size into frames of one exact length.

use std::collections::VecDeque;
use std::time::Duration;

use super::{AudioBlock, SAMPLE_RATE_HZ, span};
use crate::time::MediaTime;

/// A block this far from where the one before ended still follows it: capture times are rounded, and read by a busy thread.
const TOLERANCE: Duration = Duration::from_millis(5);

/// What a block brings twice is left out up to this much; more is another run.
const MAX_OVERLAP: Duration = Duration::from_millis(200);

/// A frame's worth of sound at 48 kHz.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Capture time of the first sample.
    pub captured: MediaTime,
    /// Interleaved.
    pub samples: Vec<f32>,
    /// The frame does not follow the one before.
    pub starts_run: bool,
}

/// Re-cuts blocks at 48 kHz. Frames of one run follow each other at exactly their length of capture time, whatever the chunks were.
#[derive(Debug)]
pub struct Framer {
    channels: usize,
    /// Samples of one channel in a frame.
    frame: usize,
    run: Option<Run>,
    pending: VecDeque<f32>,
    /// Samples of one channel that came too early or twice and were left out.
    dropped: u64,
    /// Samples of one channel that were missing and made up as silence.
    filled: u64,
}

#[derive(Debug)]
struct Run {
    /// Capture time of its first sample.
    start: MediaTime,
    /// Samples of one channel taken into frames or pending since.
    received: u64,
    /// Frames made.
    frames: u64,
}

impl Framer {
    /// A framer for 1 or 2 channels, and frames of so many samples of one channel.
    pub fn new(channels: usize, frame: usize) -> Self {
        Self {
            channels: channels.clamp(1, 2),
            frame: frame.max(1),
            run: None,
            pending: VecDeque::new(),
            dropped: 0,
            filled: 0,
        }
    }

    /// Takes a block and gives the frames that it completes. A block of another rate than 48 kHz or of no channels is left out
    /// and counted; one channel becomes two and two become one as needed.
    pub fn push(&mut self, block: &AudioBlock, mut each: impl FnMut(Frame)) {
        if block.is_empty() || block.rate_hz != SAMPLE_RATE_HZ {
            self.dropped += block.len() as u64;
            return;
        }
        let mut skip = 0;
        if let Some(run) = &mut self.run {
            let expected = run.start + span(run.received);
            let late = block.captured.since(expected);
            let early = expected.since(block.captured);
            // A hole is known only when it is over. Frames of silence for it would all leave then, at once and late, and the
            // receiver would keep them: 200 ms filled were heard as 150 ms of delay for four seconds.
            if late > span(self.frame as u64) || early > MAX_OVERLAP {
                self.finish(&mut each);
            } else if late > TOLERANCE {
                let missing = samples_in(late);
                run.received += missing;
                self.filled += missing;
                self.pending.extend(std::iter::repeat_n(0.0, missing as usize * self.channels));
            } else if early > TOLERANCE {
                skip = (samples_in(early) as usize).min(block.len());
                self.dropped += skip as u64;
            }
        }
        let run = self.run.get_or_insert(Run { start: block.captured, received: 0, frames: 0 });
        run.received += (block.len() - skip) as u64;
        let whole = &block.samples[skip * block.channels..block.len() * block.channels];
        match (block.channels, self.channels) {
            (1, 2) => self.pending.extend(whole.iter().flat_map(|s| [*s, *s])),
            (from, 1) if from > 1 => {
                self.pending.extend(whole.chunks_exact(from).map(|c| (c[0] + c[1]) / 2.0));
            }
            (from, 2) if from > 2 => self.pending.extend(whole.chunks_exact(from).flat_map(|c| [c[0], c[1]])),
            _ => self.pending.extend(whole),
        }
        while self.pending.len() >= self.frame * self.channels {
            self.emit(&mut each);
        }
    }

    /// Ends the run: what is pending leaves, filled up with silence. The next block begins a new run.
    pub fn finish(&mut self, mut each: impl FnMut(Frame)) {
        if !self.pending.is_empty() {
            self.pending.resize(self.frame * self.channels, 0.0);
            self.emit(&mut each);
        }
        self.run = None;
    }

    /// Samples of one channel left out, and made up.
    pub const fn repairs(&self) -> (u64, u64) {
        (self.dropped, self.filled)
    }

    fn emit(&mut self, each: &mut impl FnMut(Frame)) {
        let Some(run) = &mut self.run else { return };
        let captured = run.start + span(run.frames * self.frame as u64);
        let starts_run = run.frames == 0;
        run.frames += 1;
        let samples = self.pending.drain(..self.frame * self.channels).collect();
        each(Frame { captured, samples, starts_run });
    }
}

fn samples_in(duration: Duration) -> u64 {
    (duration.as_micros() as u64 * u64::from(SAMPLE_RATE_HZ)).div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::FRAME_SAMPLES;
    use crate::time::RtpClock;

    fn ms(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    fn block(captured: MediaTime, len: usize, value: f32) -> AudioBlock {
        AudioBlock { captured, rate_hz: SAMPLE_RATE_HZ, channels: 1, samples: vec![value; len] }
    }

    fn frames_of(framer: &mut Framer, blocks: impl IntoIterator<Item = AudioBlock>) -> Vec<Frame> {
        let mut frames = Vec::new();
        for block in blocks {
            framer.push(&block, |frame| frames.push(frame));
        }
        frames
    }

    #[test]
    fn a_second_in_any_chunking_is_fifty_frames_with_continuous_timestamps() {
        let mut random = fastrand::Rng::with_seed(7);
        for largest in [1, 7, 441, 480, 960, 1024, 4800, 48_000] {
            let mut framer = Framer::new(2, FRAME_SAMPLES);
            let mut at = 0u64;
            let mut blocks = Vec::new();
            while at < 48_000 {
                let len = if largest == 1 { 1 } else { random.u64(1..=largest) }.min(48_000 - at);
                blocks.push(block(ms(1234) + span(at), len as usize, at as f32 / 48_000.0));
                at += len;
            }
            let frames = frames_of(&mut framer, blocks);
            assert_eq!(frames.len(), 50, "chunks up to {largest}");
            let clock = RtpClock::new(u32::MAX - 5000, SAMPLE_RATE_HZ);
            for pair in frames.windows(2) {
                assert_eq!(pair[1].captured.since(pair[0].captured), Duration::from_millis(20));
                let (a, b) = (clock.timestamp_at(pair[0].captured), clock.timestamp_at(pair[1].captured));
                assert_eq!(b.wrapping_sub(a), 960, "RTP ticks, over the wrap too");
            }
            assert!(frames[0].starts_run && !frames[1..].iter().any(|f| f.starts_run));
            assert!(frames.iter().all(|f| f.samples.len() == 1920));
            assert_eq!(framer.repairs(), (0, 0));
        }
    }

    #[test]
    fn a_hole_within_a_frame_is_silence_and_a_longer_one_ends_the_run() {
        let mut framer = Framer::new(1, FRAME_SAMPLES);
        let blocks = [(0, 720), (35, 960), (100, 480), (200, 960)].map(|(at, len)| block(ms(at), len, 1.0));
        let frames = frames_of(&mut framer, blocks);
        let seen: Vec<(i64, f32, bool)> =
            frames.iter().map(|f| (f.captured.as_micros() / 1000, f.samples[959], f.starts_run)).collect();
        assert_eq!(
            seen,
            [(0, 0.0, true), (20, 1.0, false), (40, 0.0, false), (100, 0.0, true), (200, 1.0, true)],
            "no frame is made for the time between"
        );
        assert_eq!(framer.repairs(), (0, 960));
    }

    #[test]
    fn jitter_of_capture_times_moves_nothing_and_overlap_is_left_out() {
        let mut framer = Framer::new(1, FRAME_SAMPLES);
        let jittery = (0..50).map(|n| block(ms(n * 20 + [0, 3, -4][n as usize % 3]), 960, 0.5));
        assert_eq!(frames_of(&mut framer, jittery).len(), 50);
        assert_eq!(framer.repairs(), (0, 0));
        // 20 ms too early: that much was heard already.
        assert_eq!(frames_of(&mut framer, [block(ms(980), 1920, 0.5)]).len(), 1);
        assert_eq!(framer.repairs(), (960, 0));
    }

    #[test]
    fn what_is_pending_at_the_end_leaves_with_silence_behind_it() {
        let mut framer = Framer::new(1, FRAME_SAMPLES);
        assert!(frames_of(&mut framer, [block(ms(0), 500, 0.5)]).is_empty());
        let mut last = Vec::new();
        framer.finish(|frame| last.push(frame));
        assert_eq!((last.len(), last[0].samples[499], last[0].samples[500]), (1, 0.5, 0.0));
        framer.finish(|_| panic!("nothing is left"));
    }

    #[test]
    fn channels_become_what_is_wanted() {
        let stereo = |left: f32, right: f32| AudioBlock {
            captured: ms(0),
            rate_hz: SAMPLE_RATE_HZ,
            channels: 2,
            samples: [left, right].repeat(960),
        };
        assert_eq!(frames_of(&mut Framer::new(1, FRAME_SAMPLES), [stereo(1.0, 0.0)])[0].samples, vec![0.5; 960]);
        assert_eq!(
            frames_of(&mut Framer::new(2, FRAME_SAMPLES), [stereo(1.0, 0.0)])[0].samples[..4],
            [1.0, 0.0, 1.0, 0.0]
        );
        assert_eq!(frames_of(&mut Framer::new(2, FRAME_SAMPLES), [block(ms(0), 960, 0.3)])[0].samples, vec![0.3; 1920]);
        let odd = AudioBlock { samples: vec![0.1; 3], ..stereo(0.0, 0.0) };
        assert_eq!(odd.len(), 1, "half a sample is none");
    }

    #[test]
    fn other_rates_and_empty_blocks_are_left_out() {
        let mut framer = Framer::new(2, FRAME_SAMPLES);
        let other = AudioBlock { rate_hz: 44_100, ..block(ms(0), 960, 0.5) };
        let none = AudioBlock { channels: 0, ..block(ms(0), 960, 0.5) };
        assert!(frames_of(&mut framer, [other, none, block(ms(0), 0, 0.0)]).is_empty());
    }
}
