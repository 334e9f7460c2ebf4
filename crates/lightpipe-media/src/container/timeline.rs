//! Capture times to times of a file.
//!
//! The file's time 0 is the capture time of its first sample, and one distance holds for all tracks. It changes only when a capture
//! clock jumps: a publisher that started again with times of its own, a clock that was set.

use std::time::Duration;

use crate::time::MediaTime;

/// A step back up to here is jitter or a correction: time stands until it has caught up. A larger one is another clock.
const MAX_BACK: i128 = 5_000_000;

/// A step forward up to here is a pause, and stays one in the file. A larger one is another clock.
const MAX_AHEAD: i128 = 3600 * 1_000_000;

/// Shortest distance of two samples: one tick of 48 kHz is 20.8 µs, and no two may fall onto the same.
const MIN_STEP: i128 = 25;

/// Where a sample belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Microseconds from the beginning of the file.
    At(u64),
    /// Not after the track's last sample; the earliest time that would be.
    Behind(u64),
    /// Before the file begins.
    BeforeStart,
}

#[derive(Debug, Clone, Copy, Default)]
struct Line {
    /// What is added to capture times, microseconds.
    shift: Option<i128>,
    last: Option<i128>,
    end: i128,
}

/// Times of up to two tracks.
#[derive(Debug)]
pub(super) struct Timeline {
    /// What is added since the last jump of any track's clock.
    shift: i128,
    lines: [Line; 2],
    jumps: u64,
}

impl Timeline {
    /// A file whose first sample was captured at `origin`.
    pub(super) fn starting_at(origin: MediaTime) -> Self {
        Self { shift: -i128::from(origin.as_micros()), lines: [Line::default(); 2], jumps: 0 }
    }

    /// Where the sample of a track belongs that was captured then. One that is `Behind` is not in the file, unless it is put there by
    /// [`Self::force`].
    pub(super) fn place(&mut self, track: usize, captured: MediaTime, duration: Duration) -> Place {
        let captured = i128::from(captured.as_micros());
        let end = self.end();
        let line = self.lines[track];
        let reference = line.last.unwrap_or(end);
        // After one track jumped, the other still has samples of before: whichever clock brings it closer is its own.
        let shifts = line.shift.into_iter().chain([self.shift]);
        let mut shift = shifts.min_by_key(|shift| (captured + shift - reference).abs()).unwrap_or(self.shift);
        let mut at = captured + shift;
        if line.last.is_none() && (-MAX_BACK..0).contains(&at) {
            return Place::BeforeStart;
        }
        // A track's first sample may be anywhere in the file.
        let earliest = line.last.map_or(0, |last| last - MAX_BACK);
        if !(earliest..=reference + MAX_AHEAD).contains(&at) {
            shift = end - captured;
            at = end;
            self.shift = shift;
            self.jumps += 1;
        }
        self.lines[track].shift = Some(shift);
        let earliest = line.last.map_or(0, |last| last + MIN_STEP);
        if at < earliest {
            return Place::Behind(u64::try_from(earliest).unwrap_or(0));
        }
        self.put(track, at, duration);
        Place::At(u64::try_from(at).unwrap_or(0))
    }

    /// Puts a sample at a time that [`Place::Behind`] named.
    pub(super) fn force(&mut self, track: usize, at: u64) {
        self.put(track, i128::from(at), Duration::ZERO);
    }

    fn put(&mut self, track: usize, at: i128, duration: Duration) {
        let line = &mut self.lines[track];
        line.last = Some(at);
        line.end = line.end.max(at + duration.as_micros() as i128);
    }

    /// Samples of this track end here at the earliest.
    pub(super) fn extend(&mut self, track: usize, end: u64) {
        let line = &mut self.lines[track];
        line.end = line.end.max(i128::from(end));
    }

    /// End of the last sample of all tracks, microseconds.
    fn end(&self) -> i128 {
        self.lines.iter().map(|line| line.end).max().unwrap_or(0)
    }

    /// End of the last sample of all tracks.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.end()).unwrap_or(0))
    }

    /// Jumps of a clock so far.
    pub(super) const fn jumps(&self) -> u64 {
        self.jumps
    }
}

/// Ticks of a clock at a time of the file, rounded to the nearest.
pub(super) fn ticks(micros: u64, rate_hz: u32) -> u64 {
    let ticks = (u128::from(micros) * u128::from(rate_hz) + 500_000) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: i64 = 7_000_000;

    /// Samples of track 0 or 1 captured at so many ms after the origin, and where they land, ms; `None` where they do not.
    #[track_caller]
    fn check(samples: &[(usize, i64, Option<u64>)], jumps: u64) {
        let mut timeline = Timeline::starting_at(MediaTime::from_micros(ORIGIN));
        for (n, &(track, captured, expected)) in samples.iter().enumerate() {
            let captured = MediaTime::from_micros(ORIGIN + captured * 1000);
            let got = match timeline.place(track, captured, Duration::from_millis(20)) {
                Place::At(at) => Some(at / 1000),
                Place::Behind(_) | Place::BeforeStart => None,
            };
            assert_eq!(got, expected, "sample {n} of {samples:?}");
        }
        assert_eq!(timeline.jumps(), jumps, "{samples:?}");
    }

    #[test]
    fn capture_times_are_kept_and_only_jumps_are_mended() {
        check(&[(0, 0, Some(0)), (1, 5, Some(5)), (0, 33, Some(33)), (1, 25, Some(25))], 0);
        // A pause of half an hour is a pause; sound goes on meanwhile.
        check(&[(0, 0, Some(0)), (0, 1_800_000, Some(1_800_000)), (1, 20, Some(20))], 0);
        // Sound from before the first picture.
        check(&[(0, 0, Some(0)), (1, -10, None), (1, 10, Some(10))], 0);
        // A step back: time stands until it has caught up.
        check(&[(0, 0, Some(0)), (0, 100, Some(100)), (0, 100, None), (0, 60, None), (0, 133, Some(133))], 0);
        // Another clock, both ways: what comes goes on where the file ends, and the other track follows, stragglers first.
        for other in [-60_000, 9_000_000] {
            check(
                &[
                    (0, 0, Some(0)),
                    (1, 10, Some(10)),
                    (0, 40, Some(40)),
                    (0, other, Some(60)),
                    (1, 30, Some(30)),
                    (1, other + 5, Some(65)),
                    (0, other + 33, Some(93)),
                ],
                1,
            );
        }
    }

    #[test]
    fn the_ends_of_time_are_no_trap() {
        let mut timeline = Timeline::starting_at(MediaTime::from_micros(i64::MIN));
        for micros in [i64::MIN, i64::MAX, 0, i64::MAX, i64::MIN + 1] {
            let place = timeline.place(0, MediaTime::from_micros(micros), Duration::from_secs(1));
            assert!(matches!(place, Place::At(at) if at < 10_000_000), "{micros}: {place:?}");
        }
    }

    #[test]
    fn ticks_round_to_the_nearest() {
        let check = |micros, rate, expected| assert_eq!(ticks(micros, rate), expected, "{micros} µs at {rate} Hz");
        check(0, 90_000, 0);
        check(33_333, 90_000, 3000);
        check(2_500, 48_000, 120);
        check(365 * 86_400 * 1_000_000, 48_000, 365 * 86_400 * 48_000);
    }
}
