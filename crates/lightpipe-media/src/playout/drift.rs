//! How much faster than ours a sender's clock runs.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::MediaTime;

/// Of the packets of so much time only the fastest counts: what the network did to the others says nothing about clocks.
const BUCKET: Duration = Duration::from_secs(1);

/// Fastest packets that are remembered: three minutes. Longer would be more exact, and would miss that a crystal warms up.
const BUCKETS: usize = 180;

/// Fewer say nothing: two for each of [`BLOCKS`].
const LEAST_BUCKETS: usize = 16;

/// While there are fewer the line is laid with each new one, then once for so many: it changes slowly.
const EACH_UNTIL: usize = 40;
const LAID_EVERY: usize = 5;

/// An estimate this uncertain is not told, ppm: crystals are seldom off by more.
const MOST_ERROR_PPM: f64 = 100.0;

/// So many fastest packets in a row on one side of the line are another path or a clock that was set, not noise.
const STEP_BUCKETS: usize = 3;

/// The shortest delay itself changes by about so much, seconds: timers, queues, a sender that starts.
const WANDER: f64 = 0.000_25;

/// This share of the points is below the line. What the network and busy machines add is never less than nothing, so the lowest points know best;
/// the very lowest may be a fault of somebody's clock. (A line through the lower half of the points, chosen again and again by the line itself, keeps
/// the slope that it began with.)
const BELOW: f64 = 0.1;

/// The line is laid so often with a part of the points left out, each time another: by what it turns then one sees how sure it is, also where
/// neighbouring points have the same fault (a jackknife over blocks).
const BLOCKS: usize = 8;

/// Standard errors on either side that hold the truth nineteen times out of twenty, if they are known from so few blocks (Student's t).
const STUDENT: f64 = 2.36;

/// No clock is faster or slower than this.
const MOST_SLOPE: f64 = 0.005;

/// Halvings of what is left of the slope by the golden section: to a hundredth of a ppm.
const SECTIONS: usize = 28;

/// Nearer to the line than this is noise, whatever the line's own spread, seconds.
const LEAST_STEP: f64 = 0.005;

/// How much faster a clock runs than ours, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Parts per million; negative for a slow clock.
    pub ppm: f64,
    /// What blocks of the points say differently, and what the shortest delay may have changed by, ppm: nineteen times out of twenty the truth is
    /// nearer than this.
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
    /// Points since the line was laid.
    not_laid: usize,
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
    /// Where the line is in the middle of the points.
    mean: Point,
    /// How far above the line points are in the mean, seconds.
    spread: f64,
}

impl DriftEstimator {
    /// For an RTP clock that counts so many ticks a second.
    pub fn new(rate_hz: u32) -> Self {
        Self {
            rate_hz: f64::from(rate_hz.max(1)),
            origin: None,
            open: None,
            line: VecDeque::new(),
            not_laid: 0,
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

    /// Lays the line through the points, and says how sure that is.
    fn lay(&mut self) {
        self.not_laid += 1;
        let len = self.line.len();
        if len < LEAST_BUCKETS || (self.fit.is_some() && len > EACH_UNTIL && self.not_laid < LAID_EVERY) {
            return;
        }
        self.not_laid = 0;
        let points: Vec<Point> = self.line.iter().copied().collect();
        let fit = Fit::through(&points);
        let mut part = Vec::with_capacity(len);
        let slopes: [f64; BLOCKS] = std::array::from_fn(|block| {
            part.clear();
            part.extend_from_slice(&points[..block * len / BLOCKS]);
            part.extend_from_slice(&points[(block + 1) * len / BLOCKS..]);
            Fit::through(&part).slope
        });
        let blocks = BLOCKS as f64;
        let mean = slopes.iter().sum::<f64>() / blocks;
        let variance = slopes.iter().map(|slope| (slope - mean).powi(2)).sum::<f64>() * (blocks - 1.0) / blocks;
        let span = points[len - 1].at - points[0].at;
        let error_ppm = (STUDENT * variance.sqrt() + WANDER / span.max(1.0)) * 1e6;
        self.fit = Some(fit);
        if error_ppm <= MOST_ERROR_PPM {
            self.known = Some(Drift { ppm: -fit.slope * 1e6, error_ppm });
        }
    }
}

impl Fit {
    /// The line with a share of [`BELOW`] of the points below it: where what they are off, weighted by that, is least (quantile regression, Koenker
    /// and Bassett, 1978). That is a convex function of the slope. At least one point.
    fn through(points: &[Point]) -> Self {
        let middle = points.iter().map(|p| p.at).sum::<f64>() / points.len() as f64;
        let rank = (BELOW * points.len() as f64) as usize;
        let mut off = Vec::with_capacity(points.len());
        let mut weigh = |slope: f64| {
            off.clear();
            off.extend(points.iter().map(|p| p.delay - slope * (p.at - middle)));
            let height = *off.select_nth_unstable_by(rank, f64::total_cmp).1;
            let weight = |off: f64| if off > height { BELOW * (off - height) } else { (1.0 - BELOW) * (height - off) };
            (off.iter().map(|off| weight(*off)).sum::<f64>(), height)
        };
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        let (mut low, mut high) = (-MOST_SLOPE, MOST_SLOPE);
        let (mut left, mut right) = (high - golden * (high - low), low + golden * (high - low));
        let (mut of_left, mut of_right) = (weigh(left).0, weigh(right).0);
        for _ in 0..SECTIONS {
            if of_left <= of_right {
                (high, right, of_right) = (right, left, of_left);
                left = high - golden * (high - low);
                of_left = weigh(left).0;
            } else {
                (low, left, of_left) = (left, right, of_right);
                right = low + golden * (high - low);
                of_right = weigh(right).0;
            }
        }
        let slope = f64::midpoint(low, high);
        let (weight, height) = weigh(slope);
        let spread = weight / (BELOW * points.len() as f64);
        Self { slope, mean: Point { at: middle, delay: height }, spread }
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

    /// Two minutes over a path that keeps the order: who was lucky waits for those before him, so that hardly a packet a second is fast.
    #[test]
    fn the_stated_error_holds_where_few_packets_are_fast() {
        let (mut held, mut worst) = (0, 0.0f64);
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut estimator = DriftEstimator::new(48_000);
            let sounds = (0..6000i64).map(|n| (n * 20_000, true));
            // Three packets each.
            let pictures = (0..3 * 3600i64).map(|n| (n / 3 * 33_333 + n % 3 * 100, false));
            let mut sent: Vec<(i64, bool)> = sounds.chain(pictures).collect();
            sent.sort_unstable();
            let mut before = 0;
            for (at, sound) in sent {
                let left = (at as f64 / 1.0001) as i64 + random.i64(0..600);
                before = before.max(left + 10_000 + random.i64(0..30_000));
                if sound {
                    estimator.push(at as u64 * 48 / 1000, MediaTime::from_micros(before + random.i64(0..600)));
                }
            }
            let drift = estimator.drift().expect("two minutes tell");
            let off = (drift.ppm - 100.0).abs();
            held += u32::from(off <= drift.error_ppm);
            worst = worst.max(off);
            assert!(drift.error_ppm < 30.0, "{drift:?}");
        }
        assert!(held >= 18, "{held} of 20");
        assert!(worst <= 10.0, "{worst} ppm");
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
