//! When to try again: capped exponential backoff, a pure function of what happened.

use std::time::Duration;

/// First pause; each failure in a row doubles it.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A session that lasted so long was a success: the next failure is the first again.
pub const SUCCESS: Duration = Duration::from_secs(10);
/// Longest wish of a server (`Retry-After`) that is granted.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

/// Failures in a row, and the pause that follows from them.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to pause after an attempt whose session lasted `lasted` (zero if none came about). `jitter` from 0 to 1 takes up to a
    /// quarter off, so that the clients of a server that was restarted don't come back all at once. `retry_after` is what the server
    /// asked for; it is never shortened.
    pub fn after(&mut self, lasted: Duration, retry_after: Option<Duration>, jitter: f64) -> Duration {
        if lasted >= SUCCESS {
            self.failures = 0;
        }
        let doubled = FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        let pause = doubled.min(LONGEST_PAUSE).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0);
        retry_after.map_or(pause, |wish| pause.max(wish.min(LONGEST_RETRY_AFTER)))
    }

    /// Failures in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lasted_s: &[u64], expected_ms: &[u128]) {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> =
            lasted_s.iter().map(|s| backoff.after(Duration::from_secs(*s), None, 0.0).as_millis()).collect();
        assert_eq!(pauses, expected_ms);
    }

    #[test]
    fn pauses_double_up_to_the_cap_and_a_success_forgets_them() {
        check(&[0; 7], &[1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        check(&[0, 0, 3600, 0], &[1000, 2000, 1000, 2000]);
        check(&[0, 9, 10], &[1000, 2000, 1000]);
    }

    #[test]
    fn a_server_may_ask_for_more_but_not_for_ever() {
        let after = |wish| Backoff::default().after(Duration::ZERO, Some(Duration::from_secs(wish)), 1.0);
        assert_eq!(after(0), Duration::from_millis(750));
        assert_eq!(after(7), Duration::from_secs(7));
        assert_eq!(after(u64::MAX / 2), LONGEST_RETRY_AFTER);
    }
}
