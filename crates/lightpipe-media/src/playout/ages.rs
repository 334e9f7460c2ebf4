//! How old media was when it came: what a jitter buffer has to hold.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::MediaTime;

/// How long what a network did is remembered. A burst within this time is expected to come again; after it the buffer shrinks.
const MEMORY: Duration = Duration::from_secs(10);

/// Packets that are remembered: 10 s of 5 ms each.
const MOST: usize = 2048;

/// Ages of the last packets or pictures on arrival.
#[derive(Debug, Clone, Default)]
pub(super) struct Ages {
    seen: VecDeque<(MediaTime, i64)>,
    scratch: Vec<i64>,
    /// The last answer, until something comes: it is asked for with each block.
    known: Option<(f64, Duration)>,
}

impl Ages {
    /// One came that was captured then.
    pub(super) fn push(&mut self, captured: MediaTime, arrived: MediaTime) {
        while self.seen.front().is_some_and(|(at, _)| arrived.since(*at) > MEMORY) || self.seen.len() >= MOST {
            self.seen.pop_front();
        }
        self.known = None;
        self.seen.push_back((arrived, arrived.as_micros().saturating_sub(captured.as_micros())));
    }

    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.known = None;
    }

    /// The age that a share of them did not exceed; none without any.
    pub(super) fn quantile(&mut self, share: f64) -> Option<Duration> {
        if let Some((_, age)) = self.known.filter(|(of, _)| *of == share) {
            return Some(age);
        }
        let rank = ((self.seen.len() as f64 * share).ceil() as usize).checked_sub(1)?;
        self.scratch.clear();
        self.scratch.extend(self.seen.iter().map(|(_, age)| *age));
        let (_, age, _) = self.scratch.select_nth_unstable(rank);
        let age = Duration::from_micros(u64::try_from(*age).unwrap_or(0));
        self.known = Some((share, age));
        Some(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut ages = Ages::default();
        assert_eq!(ages.quantile(0.99), None);
        let at = |ms: i64| MediaTime::from_micros(ms * 1000);
        for n in 0..500 {
            ages.push(at(n * 20), at(n * 20 + if n < 100 { 80 } else { 5 }));
        }
        assert_eq!(ages.quantile(1.0), Some(Duration::from_millis(80)));
        assert_eq!(ages.quantile(0.5), Some(Duration::from_millis(5)));
        for n in 500..700 {
            ages.push(at(n * 20), at(n * 20 + 5));
        }
        assert_eq!(ages.quantile(1.0), Some(Duration::from_millis(5)), "10 s later");
        assert!(ages.len() <= 501);
    }
}
