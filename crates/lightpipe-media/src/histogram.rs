//! Durations counted into buckets of about 4 % width: percentiles without keeping samples.

use std::time::Duration;

/// Buckets per doubling of the duration.
const PER_OCTAVE: f64 = 16.0;
/// Shortest duration told apart from zero: 10 µs.
const FLOOR_MICROS: f64 = 10.0;
/// 24 octaves above the floor: 167 s.
const BUCKETS: usize = 24 * 16;

/// A histogram of durations from 10 µs to 160 s. 3 KiB, no allocation after construction.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: Duration,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum: Duration::ZERO, max: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let micros = duration.as_secs_f64() * 1e6;
        let index = if micros <= FLOOR_MICROS { 0 } else { ((micros / FLOOR_MICROS).log2() * PER_OCTAVE) as usize };
        self.buckets[index.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.sum += duration;
        self.max = self.max.max(duration);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Durations counted.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all durations.
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// The duration that a fraction `q` (0 to 1) of all counted ones do not exceed, to within 5 %; zero when empty.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, n) in self.buckets.iter().enumerate() {
            seen += n;
            if *n > 0 && seen >= rank {
                let upper = FLOOR_MICROS * 2f64.powf((index as f64 + 1.0) / PER_OCTAVE);
                return Duration::from_secs_f64(upper / 1e6).min(self.max);
            }
        }
        Duration::ZERO
    }

    /// p50, p95 and p99 in milliseconds.
    pub fn percentiles_ms(&self) -> [f64; 3] {
        [0.50, 0.95, 0.99].map(|q| self.quantile(q).as_secs_f64() * 1e3)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_five_percent() {
        let mut histogram = Histogram::default();
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        for (q, expected) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = histogram.quantile(q).as_secs_f64() * 1e3;
            assert!((got - expected).abs() / expected < 0.05, "q {q}: {got} instead of {expected}");
        }
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
