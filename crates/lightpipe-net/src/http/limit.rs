//! How often an address may make sessions: a token bucket each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Addresses remembered. Beyond this the fullest buckets (nothing owed) are forgotten.
const MAX_ADDRESSES: usize = 4096;

/// A burst of this many seconds' worth passes: a dashboard opens all its previews at once.
const BURST_SECONDS: f64 = 4.0;

/// Limits POSTs by source address.
#[derive(Debug)]
pub(crate) struct PostLimiter {
    per_second: f64,
    buckets: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl PostLimiter {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), buckets: Mutex::default() }
    }

    /// Whether one more may pass at `now`.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> bool {
        if self.per_second == 0.0 {
            return true;
        }
        let burst = self.per_second * BURST_SECONDS;
        let refilled = |(tokens, since): (f64, Instant)| {
            (tokens + now.saturating_duration_since(since).as_secs_f64() * self.per_second).min(burst)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_ADDRESSES {
            buckets.retain(|_, bucket| refilled(*bucket) < burst);
            if buckets.len() >= MAX_ADDRESSES {
                return false; // A flood from thousands of addresses: newcomers wait.
            }
        }
        let bucket = buckets.entry(address).or_insert((burst, now));
        let tokens = refilled(*bucket);
        *bucket = (if tokens >= 1.0 { tokens - 1.0 } else { tokens }, now);
        tokens >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn bursts_pass_floods_do_not_and_the_table_is_bounded() {
        let start = Instant::now();
        let limiter = PostLimiter::new(5);
        let me = IpAddr::from([192, 0, 2, 1]);
        let admitted = (0..100).filter(|_| limiter.admit(me, start)).count();
        assert_eq!(admitted, 20);
        assert!(limiter.admit(IpAddr::from([192, 0, 2, 2]), start), "others are not disturbed");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| limiter.admit(me, later)).count(), 5);
        for n in 0..10_000u32 {
            limiter.admit(IpAddr::from(n.to_be_bytes()), later);
        }
        assert!(limiter.buckets.lock().expect("not poisoned").len() <= MAX_ADDRESSES);
        assert!(PostLimiter::new(0).admit(me, start));
    }
}
