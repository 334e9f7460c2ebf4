//! Notices that a network suddenly carries much less than what is being sent.
//!
//! What was sent too much stands in a queue on the way by then, and the end of that queue has been dropped. Everything that is sent
//! before it is empty only makes it longer: pictures that refer to lost ones, and retransmissions, each of which is asked for again and
//! again while it stands in that queue (a link of 0.8 Mbit/s got 10 Mbit/s of them, `lightpipe lab --profile step`). So all of it is
//! given up, and a keyframe of the new size begins when the queue is empty.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Span over which is counted what was sent: about the time that the estimator needs to notice.
const WINDOW: Duration = Duration::from_millis(450);

/// How many times the estimate was sent when it counts as a collapse. Less than that the encoder's new rate puts right.
const COLLAPSE: f64 = 1.5;

/// How much longer than the shortest the way takes when there is a queue that has to be waited for, when there is none, and when there may be
/// one of a single keyframe: with the first of a better layer the estimator falls to a share of what the layer before sent.
const QUEUED: Duration = Duration::from_millis(120);
const UNQUEUED: Duration = Duration::from_millis(60);
const QUEUED_KEYFRAME: Duration = Duration::from_millis(100);

/// How many times what is sent an estimate is when it is not what limits us. The estimator takes a fall to a share of what came through
/// even then, although nobody tried more; jitter is enough for it.
const LIMITED_BY_US: f64 = 1.1;
const FALL: f64 = 0.9;

/// Losses that come within [`SUDDEN`], with a queue, tell the same, and earlier where jitter hides the queue from the estimator.
const LOSSLESS: f32 = 0.02;
const LOSSY: f32 = 0.05;
const LOST: f32 = 0.2;
const SUDDEN: Duration = Duration::from_millis(1000);

/// The estimator answers congestion with this share of what came through.
const BACKOFF: f64 = 0.85;

/// Longest silence.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The estimate goes on falling for a second after a collapse; so much of it is believed at once.
const BELIEVED: f64 = 0.75;

/// After a collapse the estimate goes on falling for a while.
pub(crate) const SETTLING: Duration = Duration::from_secs(2);

/// How long the shortest round trip counts: a way that became longer is no queue for ever.
const SHORTEST_KEPT: Duration = Duration::from_secs(15);

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Finding {
    /// The network carries much less than what is sent.
    Collapse {
        /// How long nothing should be sent, until what waits on the way is through.
        pause: Duration,
        /// What to believe that the network carries, bits per second.
        carried_bps: u64,
        /// The estimator did not notice itself.
        unnoticed: bool,
    },
    /// The estimator says so, and is wrong: nothing waits and nothing is lost. It holds losses of a start that was too fast against a
    /// network for seconds.
    Mistaken {
        /// What gets through, bits per second.
        carried_bps: u64,
    },
}

#[derive(Debug, Default)]
pub(crate) struct CollapseWatch {
    sent: VecDeque<(Instant, usize)>,
    bytes: usize,
    lossy_since: Option<Instant>,
    collapsed: Option<Instant>,
    last_bps: Option<u64>,
    /// The shortest round trips of this interval and of the one before.
    shortest: Option<(Instant, Duration, Duration)>,
}

impl CollapseWatch {
    /// A datagram goes out.
    pub(crate) fn sent(&mut self, now: Instant, bytes: usize) {
        self.forget(now);
        self.bytes += bytes;
        match self.sent.back_mut() {
            // A batch is one entry.
            Some((at, sum)) if *at == now => *sum += bytes,
            _ => self.sent.push_back((now, bytes)),
        }
    }

    /// The network carries `estimate_bps`, as it seems now, lost this part of the last second, and its last report was so old. `enough`:
    /// until now it carried all that is wanted.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        estimate_bps: u64,
        loss: Option<f32>,
        rtt: Option<Duration>,
        enough: bool,
    ) -> Option<Finding> {
        self.forget(now);
        let last_bps = self.last_bps.replace(estimate_bps);
        let loss = loss.unwrap_or(0.0);
        self.lossy_since = if loss > LOSSY { self.lossy_since.or(Some(now)) } else { None };
        let queue = self.queue(now, rtt?);
        let rate = self.bytes as f64 * 8.0 / WINDOW.as_secs_f64();
        if self.collapsed.is_some_and(|at| now.saturating_duration_since(at) < SETTLING) {
            return None;
        }
        let far_above = rate >= estimate_bps as f64 * COLLAPSE;
        let fell = last_bps.is_some_and(|last| (estimate_bps as f64) < last as f64 / COLLAPSE);
        if queue < QUEUED_KEYFRAME && loss < LOSSLESS {
            let last = last_bps.unwrap_or(estimate_bps) as f64;
            let limited_by_us = enough && queue < UNQUEUED && last > rate * LIMITED_BY_US;
            let for_jitter = limited_by_us && (estimate_bps as f64) < (last * FALL).min(rate * LIMITED_BY_US);
            let carried_bps = if far_above && fell {
                (rate * BACKOFF) as u64
            } else if for_jitter {
                (last * BACKOFF).min(rate * COLLAPSE) as u64
            } else {
                return None;
            };
            self.last_bps = Some(carried_bps);
            return Some(Finding::Mistaken { carried_bps });
        }
        let sudden = loss >= LOST && self.lossy_since.is_some_and(|at| now.saturating_duration_since(at) <= SUDDEN);
        if queue < QUEUED || !(far_above || sudden) {
            return None;
        }
        self.collapsed = Some(now);
        let by_loss = rate * f64::from(1.0 - loss.min(0.9)) * BACKOFF;
        let unnoticed = !far_above && estimate_bps as f64 > by_loss;
        let carried = if unnoticed { by_loss } else { estimate_bps as f64 * BELIEVED };
        Some(Finding::Collapse { pause: queue.min(LONGEST_PAUSE), carried_bps: carried as u64, unnoticed })
    }

    /// Whether the time after a collapse is over by now, for the first time.
    pub(crate) fn has_settled(&mut self, now: Instant) -> bool {
        let settled = self.collapsed.is_some_and(|at| now.saturating_duration_since(at) >= SETTLING);
        if settled {
            self.collapsed = None;
        }
        settled
    }

    /// How much longer than the shortest a round trip is.
    fn queue(&mut self, now: Instant, rtt: Duration) -> Duration {
        let (since, current, before) = self.shortest.get_or_insert((now, rtt, rtt));
        if now.saturating_duration_since(*since) >= SHORTEST_KEPT {
            (*since, *before, *current) = (now, *current, rtt);
        }
        *current = rtt.min(*current);
        rtt.saturating_sub((*current).min(*before))
    }

    fn forget(&mut self, now: Instant) {
        while let Some((_, bytes)) = self.sent.front().filter(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.bytes -= bytes;
            self.sent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(50));
    const LONG: Option<Duration> = Some(Duration::from_millis(350));

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    /// After a second of 2.4 Mbit/s on a network without a queue.
    fn sending(start: Instant) -> CollapseWatch {
        let mut watch = CollapseWatch::default();
        (0..100).for_each(|n| watch.sent(at(start, n * 10), 3_000));
        assert_eq!(watch.look(at(start, 800), 2_600_000, None, SHORT, false), None);
        watch
    }

    const PAUSE: Duration = Duration::from_millis(300);

    #[test]
    fn a_collapse_is_far_below_what_is_sent_with_a_queue_and_only_once() {
        let start = Instant::now();
        let mut watch = sending(start);
        assert_eq!(watch.look(at(start, 1_000), 2_000_000, None, LONG, false), None, "the encoder follows");
        let collapse = watch.look(at(start, 1_000), 1_000_000, Some(0.1), LONG, false);
        assert_eq!(collapse, Some(Finding::Collapse { pause: PAUSE, carried_bps: 750_000, unnoticed: false }));
        assert_eq!(watch.look(at(start, 1_200), 400_000, None, LONG, false), None, "it goes on falling");
        assert_eq!([2_900, 3_000, 3_100].map(|ms| watch.has_settled(at(start, ms))), [false, true, false]);
        assert_eq!(watch.look(at(start, 4_000), 400_000, None, LONG, false), None, "nothing was sent meanwhile");
    }

    #[test]
    fn sudden_losses_with_a_queue_are_a_collapse_and_others_are_not() {
        let start = Instant::now();
        let look = |loss, rtt| sending(start).look(at(start, 1_000), 2_600_000, Some(loss), rtt, false);
        assert_eq!(look(0.4, SHORT), None, "a radio link");
        assert_eq!(look(0.1, LONG), None);
        let Some(Finding::Collapse { pause: PAUSE, carried_bps: bps, unnoticed: true }) = look(0.4, LONG) else {
            panic!("none")
        };
        assert!((1_150_000..1_300_000).contains(&bps), "{bps}");
        let mut watch = sending(start);
        for ms in (1_000..2_200).step_by(200) {
            watch.sent(at(start, ms), 60_000);
            assert_eq!(watch.look(at(start, ms), 2_600_000, Some(0.1), LONG, false), None);
        }
        assert_eq!(watch.look(at(start, 2_200), 2_600_000, Some(0.3), LONG, false), None, "it came slowly");
    }

    #[test]
    fn an_estimate_that_falls_for_nothing_is_mistaken() {
        let start = Instant::now();
        let look = |loss, rtt| sending(start).look(at(start, 1_000), 300_000, loss, rtt, false);
        assert!(matches!(look(None, SHORT), Some(Finding::Mistaken { carried_bps: 1_900_000..2_100_000 })));
        assert_eq!(look(Some(0.05), SHORT), None, "there are losses");
    }

    #[test]
    fn an_estimate_that_nobody_used_does_not_fall_for_jitter() {
        let start = Instant::now();
        let mut watch = sending(start);
        assert_eq!(watch.look(at(start, 900), 4_000_000, None, SHORT, false), None);
        let Some(Finding::Mistaken { carried_bps }) = watch.look(at(start, 1_000), 2_100_000, None, SHORT, true) else {
            panic!("it was believed")
        };
        assert!((3_300_000..=3_700_000).contains(&carried_bps), "{carried_bps}");
    }

    #[test]
    fn a_way_that_became_longer_is_no_queue_for_ever() {
        let start = Instant::now();
        let mut watch = sending(start);
        for ms in (1_000..40_000).step_by(200) {
            watch.look(at(start, ms), 2_600_000, None, LONG, false);
        }
        assert_eq!(watch.queue(at(start, 40_000), Duration::from_millis(350)), Duration::ZERO);
    }
}
