//! How much faster than ours a sender's clock runs.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::MediaTime;

/// Of the packets of so much time only the fastest counts: what the network did to the others says nothing about clocks.
const BUCKET: Duration = Duration::from_secs(1);

/// Fastest packets that are remembered: three minutes. Longer would be more exact, and would miss that a crystal warms up.
const BUCKETS: usize = 180;

/// Fewer say nothing.
const LEAST_BUCKETS: usize = 8;

/// An estimate this uncertain is not told, ppm: crystals are seldom off by more.
const MOST_ERROR_PPM: f64 = 100.0;

/// So many fastest packets in a row on one side of the line are another path or a clock that was set, not noise.
const STEP_BUCKETS: usize = 3;

/// The shortest delay itself changes by about so much, seconds: timers, queues, a sender that starts.
const WANDER: f64 = 0.000_25;

/// How often the line is laid through the lower half of the points again.
const LOWERED: usize = 3;

/// One point of so many may be below the line by a fault.
const FAULTY: usize = 20;

/// Nearer to the line than this is noise, whatever the line's own spread, seconds.
const LEAST_STEP: f64 = 0.005;

/// How much faster a clock runs than ours, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Parts per million; negative for a slow clock.
    pub ppm: f64,
    /// Two standard errors and what the shortest delay may have changed by, ppm: nineteen times out of twenty the truth is nearer than this.
    pub error_ppm: f64,
}

/// Estimates the drift of a sender's RTP clock against ours from times of arrival: the least delay of each second falls by as much as the
/// sender's clock is fast. A line is laid through those of the last minutes.
#[derive(Debug, Clone)]
pub struct DriftEstimator {
    rate_hz: f64,
    /// RTP time and arrival of the first packet.
    origin: Option<(u64, MediaTime)>,
    /// The second under way: its number, and the fastest packet's arrival and delay, seconds.
    open: Option<(u64, Point)>,
    line: VecDeque<Point>,
    /// Fastest packets that do not lie on the line.
    astray: Vec<Point>,
    fit: Option<Fit>,
    known: Option<Drift>,
}

/// Arrival and delay against the first packet, seconds.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: f64,
    delay: f64,
}

#[derive(Debug, Clone, Copy)]
struct Fit {
    slope: f64,
    mean: Point,
    /// Standard deviation of the points from the line, seconds.
    spread: f64,
    error: f64,
}

impl DriftEstimator {
    /// For an RTP clock that counts so many ticks a second.
    pub fn new(rate_hz: u32) -> Self {
        Self {
            rate_hz: f64::from(rate_hz.max(1)),
            origin: None,
            open: None,
            line: VecDeque::new(),
            astray: Vec::new(),
            fit: None,
            known: None,
        }
    }

    /// A packet of this extended RTP time came then.
    pub fn push(&mut self, rtp: u64, arrived: MediaTime) {
        let (first, since) = *self.origin.get_or_insert((rtp, arrived));
        let at = (i128::from(arrived.as_micros()) - i128::from(since.as_micros())) as f64 / 1e6;
        let sent = (i128::from(rtp) - i128::from(first)) as f64 / self.rate_hz;
        let point = Point { at, delay: at - sent };
        let bucket = (at.max(0.0) / BUCKET.as_secs_f64()) as u64;
        match &mut self.open {
            Some((open, fastest)) if *open == bucket => {
                if point.delay < fastest.delay {
                    *fastest = point;
                }
            }
            open => {
                if let Some((_, fastest)) = open.replace((bucket, point)) {
                    self.close(fastest);
                }
            }
        }
    }

    /// The estimate; none while it would be a guess.
    pub const fn drift(&self) -> Option<Drift> {
        self.known
    }

    /// The sender's clock begins anew: another SSRC, or it was set. What is known of its drift stays until more is.
    pub fn restart(&mut self) {
        (self.origin, self.open, self.fit) = (None, None, None);
        self.line.clear();
        self.astray.clear();
    }

    fn close(&mut self, point: Point) {
        if let Some(fit) = self.fit {
            let off = fit.off(point);
            if off.abs() > LEAST_STEP.max(6.0 * fit.spread) {
                if self.astray.last().is_some_and(|last| (last.delay - point.delay).abs() > off.abs()) {
                    self.astray.clear();
                }
                self.astray.push(point);
                if self.astray.len() < STEP_BUCKETS {
                    return;
                }
                self.line.clear();
                self.line.extend(self.astray.drain(..));
                self.fit = None;
                return;
            }
        }
        self.astray.clear();
        if self.line.len() == BUCKETS {
            self.line.pop_front();
        }
        self.line.push_back(point);
        self.lay();
    }

    /// Least squares, through the half of the points that are lowest: what the network adds is never less than nothing.
    fn lay(&mut self) {
        if self.line.len() < LEAST_BUCKETS {
            return;
        }
        let mut points: Vec<Point> = self.line.iter().copied().collect();
        let mut fit = Fit::through(&points);
        for _ in 0..LOWERED {
            points = self.line.iter().copied().collect();
            points.sort_by(|a, b| fit.off(*a).total_cmp(&fit.off(*b)));
            points.truncate(self.line.len().div_ceil(2));
            // A single one far below is a fault of somebody's clock.
            points.drain(..self.line.len() / FAULTY);
            fit = Fit::through(&points);
        }
        let span = self.line.back().map_or(0.0, |last| last.at) - self.line.front().map_or(0.0, |first| first.at);
        fit.error += WANDER / span.max(1.0);
        self.fit = Some(fit);
        if fit.error * 1e6 <= MOST_ERROR_PPM {
            self.known = Some(Drift { ppm: -fit.slope * 1e6, error_ppm: fit.error * 1e6 });
        }
    }
}

impl Fit {
    fn through(points: &[Point]) -> Self {
        let n = points.len() as f64;
        let mean = Point {
            at: points.iter().map(|p| p.at).sum::<f64>() / n,
            delay: points.iter().map(|p| p.delay).sum::<f64>() / n,
        };
        let width = points.iter().map(|p| (p.at - mean.at).powi(2)).sum::<f64>().max(1e-9);
        let slope = points.iter().map(|p| (p.at - mean.at) * (p.delay - mean.delay)).sum::<f64>() / width;
        let mut fit = Self { slope, mean, spread: 0.0, error: 0.0 };
        fit.spread = (points.iter().map(|p| fit.off(*p).powi(2)).sum::<f64>() / (n - 2.0).max(1.0)).sqrt();
        fit.error = 2.0 * fit.spread / width.sqrt();
        fit
    }

    /// How far above the line a point is, seconds.
    fn off(&self, point: Point) -> f64 {
        point.delay - self.mean.delay - self.slope * (point.at - self.mean.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten minutes of packets every 20 ms from a clock `ppm` fast; `delay` gives each packet's time on the way, microseconds.
    fn run(ppm: f64, delay: impl Fn(i64, &mut fastrand::Rng) -> i64) -> DriftEstimator {
        let mut random = fastrand::Rng::with_seed(4);
        let mut estimator = DriftEstimator::new(48_000);
        for n in 0..30_000i64 {
            let sent = (n as f64 * 20_000.0 / (1.0 + ppm / 1e6)) as i64;
            estimator.push(7 + n as u64 * 960, MediaTime::from_micros(sent + delay(n, &mut random)));
        }
        estimator
    }

    #[track_caller]
    fn check(ppm: f64, delay: impl Fn(i64, &mut fastrand::Rng) -> i64) {
        let drift = run(ppm, delay).drift().expect("ten minutes are enough");
        assert!((drift.ppm - ppm).abs() < 5.0, "{ppm}: {drift:?}");
        assert!(drift.error_ppm < 10.0, "{ppm}: {drift:?}");
    }

    #[test]
    fn drift_is_seen_through_jitter_and_steps() {
        check(0.0, |_, _| 0);
        for ppm in [100.0, -100.0, 20.0, -500.0] {
            check(ppm, |_, random| 5_000 + random.i64(0..30_000));
        }
        // The path gets 60 ms longer in the middle, and shorter again.
        check(100.0, |n, random| random.i64(0..10_000) + if (12_000..20_000).contains(&n) { 60_000 } else { 0 });
        // Jitter of ten times as much for a minute.
        check(-50.0, |n, random| random.i64(0..if (20_000..23_000).contains(&n) { 100_000 } else { 10_000 }));
    }

    #[test]
    fn nothing_is_claimed_before_it_is_known() {
        let mut estimator = DriftEstimator::new(48_000);
        let mut random = fastrand::Rng::with_seed(1);
        for n in 0..400u64 {
            estimator.push(n * 960, MediaTime::from_micros(n as i64 * 20_000 + random.i64(0..30_000)));
            assert_eq!(estimator.drift(), None, "after {} s", n / 50);
        }
        // A clock that begins anew keeps what was known.
        let mut estimator = run(100.0, |_, _| 0);
        estimator.restart();
        estimator.push(u64::MAX, MediaTime::ZERO);
        estimator.push(0, MediaTime::from_micros(i64::MAX));
        assert!((estimator.drift().expect("known").ppm - 100.0).abs() < 1.0);
    }
}
