//! A long TCP transfer beside our media: Reno (RFC 5681) with selective acknowledgements (RFC 6675).
//!
//! As much of it as another flow can feel: the window, what it does at a loss, its retransmissions. There is always something
//! to send, and the other side takes everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A transfer of a [`Lab`](crate::Lab).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpId(pub(crate) usize);

/// Bytes of a full segment with its headers.
pub(crate) const SEGMENT_LEN: usize = 1_500;

/// Bytes of an acknowledgement with its headers and options.
pub(crate) const ACK_LEN: usize = 64;

/// RFC 6928.
const INITIAL_WINDOW: f64 = 10.0;

/// Segments acknowledged above one that is missing, after which it counts as lost.
const DUPLICATES: usize = 3;

/// Shortest retransmission timeout, as in Linux.
const MIN_RTO: Duration = Duration::from_millis(200);

/// Longest retransmission timeout (RFC 6298 §2.5).
const MAX_RTO: Duration = Duration::from_secs(60);

/// What a segment carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Segment {
    Data {
        number: u64,
        sent: Instant,
    },
    Ack {
        /// Everything before it has come.
        next: u64,
        /// The segment that caused it.
        number: u64,
        /// When that was sent.
        sent: Instant,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flying { again: bool },
    Arrived,
    Lost,
}

/// Both ends of a transfer.
#[derive(Debug)]
pub(crate) struct Transfer {
    window: f64,
    threshold: f64,
    next: u64,
    open: BTreeMap<u64, State>,
    /// Until this is acknowledged, losses belong to the one that was answered.
    recovering: Option<u64>,
    smoothed: Option<(f64, f64)>,
    rto: Duration,
    rto_at: Option<Instant>,
    stop_at: Instant,
    /// Of the receiver: everything before it has come, and what came after it.
    expected: u64,
    early: BTreeSet<u64>,
}

impl Transfer {
    pub(crate) fn new(stop_at: Instant) -> Self {
        Self {
            window: INITIAL_WINDOW,
            threshold: f64::INFINITY,
            next: 0,
            open: BTreeMap::new(),
            recovering: None,
            smoothed: None,
            rto: Duration::from_secs(1),
            rto_at: None,
            stop_at,
            expected: 0,
            early: BTreeSet::new(),
        }
    }

    /// Segments that the receiver has in order.
    pub(crate) fn delivered(&self) -> u64 {
        self.expected
    }

    /// When the sender wants a [`Self::tick`].
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.rto_at
    }

    /// The retransmission timeout is over.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.rto_at.is_none_or(|at| now < at) {
            return;
        }
        self.threshold = (self.flying() as f64 / 2.0).max(2.0);
        self.window = 1.0;
        self.recovering = None;
        for state in self.open.values_mut().filter(|state| **state != State::Arrived) {
            *state = State::Lost;
        }
        self.rto = (self.rto * 2).min(MAX_RTO);
        self.rto_at = Some(now + self.rto);
    }

    /// The next segment that the window allows.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Segment> {
        if self.flying() as f64 + 1.0 > self.window.max(1.0) {
            return None;
        }
        let lost = self.open.iter_mut().find(|(_, state)| **state == State::Lost);
        let number = if let Some((number, state)) = lost {
            *state = State::Flying { again: true };
            *number
        } else if now < self.stop_at {
            self.open.insert(self.next, State::Flying { again: false });
            self.next += 1;
            self.next - 1
        } else {
            return None;
        };
        self.rto_at.get_or_insert(now + self.rto);
        Some(Segment::Data { number, sent: now })
    }

    /// A segment has come, at the receiver or, if it is an acknowledgement, at the sender. Answers what the receiver sends back.
    pub(crate) fn handle(&mut self, now: Instant, segment: Segment) -> Option<Segment> {
        match segment {
            Segment::Data { number, sent } => {
                if number >= self.expected {
                    self.early.insert(number);
                }
                while self.early.remove(&self.expected) {
                    self.expected += 1;
                }
                Some(Segment::Ack { next: self.expected, number, sent })
            }
            Segment::Ack { next, number, sent } => {
                self.on_ack(now, next, number, sent);
                None
            }
        }
    }

    fn on_ack(&mut self, now: Instant, next: u64, number: u64, sent: Instant) {
        self.measure(now - sent);
        if let Some(state) = self.open.get_mut(&number) {
            *state = State::Arrived;
        }
        let before = self.open.len();
        self.open = self.open.split_off(&next);
        let newly = before - self.open.len();
        if newly > 0 {
            self.rto_at = (!self.open.is_empty()).then(|| now + self.rto);
            if self.recovering.is_some_and(|until| next >= until) {
                self.recovering = None;
            }
            if self.recovering.is_none() {
                let slow_start = self.window < self.threshold;
                self.window += if slow_start { newly as f64 } else { newly as f64 / self.window };
            }
        }
        let Some(highest) = self.open.iter().rev().filter(|(_, s)| **s == State::Arrived).nth(DUPLICATES - 1) else {
            return;
        };
        let highest = *highest.0;
        let mut lost = false;
        for (_, state) in self.open.range_mut(..highest).filter(|(_, s)| **s == State::Flying { again: false }) {
            *state = State::Lost;
            lost = true;
        }
        if lost && self.recovering.is_none() {
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = self.threshold;
            self.recovering = Some(self.next);
        }
    }

    fn flying(&self) -> usize {
        self.open.values().filter(|state| matches!(state, State::Flying { .. })).count()
    }

    /// RFC 6298 §2.
    fn measure(&mut self, rtt: Duration) {
        let rtt = rtt.as_secs_f64();
        let (mean, variation) = match self.smoothed {
            None => (rtt, rtt / 2.0),
            Some((mean, variation)) => (mean + (rtt - mean) / 8.0, variation + ((rtt - mean).abs() - variation) / 4.0),
        };
        self.smoothed = Some((mean, variation));
        self.rto = Duration::from_secs_f64(mean + 4.0 * variation).clamp(MIN_RTO, MAX_RTO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Link, LinkConfig, Packet, QueueLimit};

    impl Packet for Segment {
        fn wire_len(&self) -> usize {
            if matches!(self, Self::Data { .. }) { SEGMENT_LEN } else { ACK_LEN }
        }

        fn duplicate(&self) -> Option<Self> {
            None
        }
    }

    /// Mbit/s in order over a link, after a first ten seconds.
    fn goodput(down: LinkConfig) -> f64 {
        let start = Instant::now();
        let (mut now, end) = (start, start + Duration::from_secs(60));
        let mut transfer = Transfer::new(end);
        let mut down = Link::new(1, down);
        let mut up = Link::new(2, LinkConfig::default().with_delay_millis(25));
        let mut early = None;
        while now < end {
            while let Some(segment) = down.poll(now) {
                if let Some(ack) = transfer.handle(now, segment) {
                    up.send(now, ack);
                }
            }
            while let Some(ack) = up.poll(now) {
                transfer.handle(now, ack);
            }
            transfer.tick(now);
            while let Some(segment) = transfer.poll(now) {
                down.send(now, segment);
            }
            if now >= start + Duration::from_secs(10) {
                early.get_or_insert_with(|| transfer.delivered());
            }
            now =
                [down.next_at(), up.next_at(), transfer.wake_at()].into_iter().flatten().min().unwrap_or(end).max(now);
        }
        (transfer.delivered() - early.unwrap_or_default()) as f64 * SEGMENT_LEN as f64 * 8.0 / 50.0 / 1e6
    }

    #[test]
    fn a_transfer_fills_its_link_and_falls_with_losses() {
        let path = || LinkConfig::default().with_delay_millis(25);
        let full = goodput(path().with_rate_bps(2_000_000).with_queue(QueueLimit::Time(Duration::from_millis(300))));
        assert!((1.9..=2.0).contains(&full), "{full} of 2 Mbit/s");
        // Mathis et al. 1997: 1.22 segments of 12 000 bits by 50 ms and the root of 1 %, less timeouts.
        let lossy = goodput(path().with_loss(0.01));
        assert!((2.0..=3.4).contains(&lossy), "{lossy} Mbit/s at 1 % loss");
    }
}
