//! When the packets of a picture leave.
//!
//! An ordinary picture leaves at once: about ten packets, one call to the kernel. A large one (an IDR can be
//! 90 kB) is cut into batches spread over at most half a frame interval, so that it does not overflow a shallow queue
//! on the way; on a path whose estimate is low, batches follow the estimate instead. On our own network there is
//! no such queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::packetize::MAX_PAYLOAD_LEN;
use lightpipe_media::{AccessUnit, MediaTime};

/// Packets that leave together. An ordinary 2.5 Mbit/s picture at 30 fps has ten; 16 × 1.2 kB is also what a
/// home router's queue takes without loss.
pub(crate) const BATCH_PACKETS: usize = 16;

/// Longest pause after a batch that no estimate asks for: 51 Mbit/s. Half of the interval of 20 fps made a picture of two batches 12 ms older.
const LONGEST_GAP: Duration = Duration::from_millis(3);

/// Pacing above the estimate: a paced queue must drain faster than the average rate fills it, or every picture
/// would wait for the one before. libwebrtc has 2.5, with which a keyframe is a queue of 100 ms that the estimator takes for congestion.
const HEADROOM: f64 = 1.6;

/// The same for a while after a collapse: the keyframe that makes the new beginning has to fit through, and the estimate is still falling.
const HEADROOM_SETTLING: f64 = 1.0;

/// Slowest pacing, bits per second: what an encoder goes down to has to fit through whatever the estimate says.
const SLOWEST_BPS: f64 = 400_000.0;

/// Longest that one picture is spread by a low estimate.
const LONGEST_SPREAD: Duration = Duration::from_millis(250);

/// Time that one batch takes at the pace of a low estimate. All sixteen packets at once are 200 ms of a path of 0.8 Mbit/s.
const BATCH_TIME: Duration = Duration::from_millis(10);

/// A viewer with a round trip under this, at best of so many reports, is on our own network: what its estimate is low for is its machine, or
/// that little is sent. An ordinary picture of nine packets leaves at once there, in place of 14 ms later...
const NEAR: Duration = Duration::from_millis(5);
const NEAR_REPORTS: usize = 10;

/// ...and a large one pauses so long after each batch: 150 Mbit/s.
const NEAR_GAP: Duration = Duration::from_millis(1);

/// How early before the end of a silence a keyframe is kept, and is asked for.
const EARLY_KEYFRAME: Duration = Duration::from_millis(300);
const ASK_BEFORE: Duration = Duration::from_millis(70);

/// Fewest packets that leave together.
const SMALLEST_BATCH: usize = 2;

/// Oldest picture that may still be sent. A viewer that is further behind than this sees better what comes after the
/// next keyframe.
const MAX_BACKLOG: Duration = Duration::from_millis(400);

/// One picture on its way out.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) unit: Arc<AccessUnit>,
    /// Of its packets.
    rtp_timestamp: u32,
    /// Next payload to send.
    pub(crate) next: usize,
    queued: Instant,
}

/// What a picture got when it was offered to the pacer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    Queued,
    /// A keyframe has to come first.
    WaitsForKeyframe,
    /// Nothing goes out for a while.
    Silent,
    /// The backlog was too old: it is dropped, a keyframe has to come.
    Overrun {
        dropped: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Pacer {
    queue: VecDeque<Pending>,
    needs_keyframe: bool,
    next_at: Option<Instant>,
    frame_interval: Duration,
    last_captured: Option<MediaTime>,
    estimate_bps: Option<u64>,
    same_machine: bool,
    /// The last ones that were reported.
    round_trips: VecDeque<Duration>,
    silent_until: Option<Instant>,
    settling_until: Option<Instant>,
}

impl Pacer {
    pub(crate) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            needs_keyframe: true,
            next_at: None,
            frame_interval: Duration::from_millis(33),
            last_captured: None,
            estimate_bps: None,
            same_machine: false,
            round_trips: VecDeque::new(),
            silent_until: None,
            settling_until: None,
        }
    }

    pub(crate) fn set_estimate(&mut self, bps: Option<u64>) {
        self.estimate_bps = bps;
    }

    /// The round trip as it is known now.
    pub(crate) fn set_round_trip(&mut self, rtt: Duration) {
        if self.round_trips.front() != Some(&rtt) {
            self.round_trips.truncate(NEAR_REPORTS - 1);
            self.round_trips.push_front(rtt);
        }
    }

    /// Whether there is no network in between at all.
    pub(crate) fn set_same_machine(&mut self, same: bool) {
        self.same_machine = same;
    }

    fn is_near(&self) -> bool {
        self.same_machine || self.round_trips.iter().min().is_some_and(|least| *least < NEAR)
    }

    /// What was queued goes out; after that a keyframe has to come.
    pub(crate) fn require_keyframe(&mut self) {
        self.needs_keyframe = true;
    }

    /// How long the oldest picture has waited.
    pub(crate) fn backlog_age(&self, now: Instant) -> Duration {
        self.queue.front().map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest.queued))
    }

    /// Drops what is queued; a keyframe has to come. Answers how many pictures.
    pub(crate) fn drop_backlog(&mut self) -> u64 {
        self.needs_keyframe = true;
        self.next_at = None;
        std::mem::take(&mut self.queue).len() as u64
    }

    /// The same, and takes nothing for so long; the keyframe then goes out slowly.
    pub(crate) fn fall_silent(&mut self, now: Instant, pause: Duration, settling: Duration) -> u64 {
        self.silent_until = Some(now + pause);
        self.settling_until = Some(now + pause + settling);
        self.drop_backlog()
    }

    pub(crate) const fn needs_keyframe(&self) -> bool {
        self.needs_keyframe
    }

    /// Takes a picture, or says why not.
    pub(crate) fn offer(&mut self, now: Instant, unit: &Arc<AccessUnit>, rtp_timestamp: u32) -> Admitted {
        self.learn_interval(unit.captured);
        if let Some(left) =
            self.silent_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
        {
            // A keyframe that comes a little early waits: another one is not made so soon.
            if !(unit.keyframe && left <= EARLY_KEYFRAME) && self.needs_keyframe {
                return if left <= ASK_BEFORE { Admitted::WaitsForKeyframe } else { Admitted::Silent };
            }
            self.next_at = self.silent_until;
        }
        if self.needs_keyframe && !unit.keyframe {
            return Admitted::WaitsForKeyframe;
        }
        if self.queue.front().is_some_and(|p| now.saturating_duration_since(p.queued) > MAX_BACKLOG) {
            // The first of the backlog may be half sent; its rest would not decode without the others anyway.
            let dropped = self.queue.len() as u64;
            self.queue.clear();
            self.next_at = None;
            if !unit.keyframe {
                self.needs_keyframe = true;
                return Admitted::Overrun { dropped: dropped + 1 };
            }
            self.push(now, unit, rtp_timestamp);
            return Admitted::Overrun { dropped };
        }
        self.push(now, unit, rtp_timestamp);
        Admitted::Queued
    }

    fn push(&mut self, now: Instant, unit: &Arc<AccessUnit>, rtp_timestamp: u32) {
        self.needs_keyframe = false;
        if !unit.rtp_payloads().is_empty() {
            self.queue.push_back(Pending { unit: Arc::clone(unit), rtp_timestamp, next: 0, queued: now });
        }
    }

    /// The next batch due at `now`: calls `send` with each payload's picture, RTP timestamp and index. True when something was sent.
    pub(crate) fn release(&mut self, now: Instant, mut send: impl FnMut(&Arc<AccessUnit>, u32, usize)) -> bool {
        if self.queue.is_empty() || self.next_at.is_some_and(|at| now < at) {
            return false;
        }
        let pace = self.pace_bps(now);
        let mut room = pace.filter(|_| !self.is_near()).map_or(BATCH_PACKETS, |bps| {
            let bytes = bps * BATCH_TIME.as_secs_f64() / 8.0;
            ((bytes / MAX_PAYLOAD_LEN as f64) as usize).clamp(SMALLEST_BATCH, BATCH_PACKETS)
        });
        let batch = room;
        let mut bytes = 0;
        let (mut largest, mut largest_bytes) = (0, 0);
        while room > 0
            && let Some(front) = self.queue.front_mut()
        {
            let payloads = front.unit.rtp_payloads();
            largest = largest.max(payloads.len());
            largest_bytes = largest_bytes.max(front.unit.data.len());
            while room > 0
                && let Some(payload) = payloads.get(front.next)
            {
                send(&front.unit, front.rtp_timestamp, front.next);
                bytes += payload.len();
                front.next += 1;
                room -= 1;
            }
            if front.next >= payloads.len() {
                self.queue.pop_front();
            }
        }
        let gap = self.gap_after(largest, batch, pace, largest_bytes, bytes);
        // Measured from the plan, not from a late wake-up, unless the wake-up was later than a whole gap.
        let base = self.next_at.filter(|at| now.saturating_duration_since(*at) < gap).unwrap_or(now);
        self.next_at = Some(base + gap);
        true
    }

    /// Bits per second at which batches leave, where the estimate is low.
    fn pace_bps(&self, now: Instant) -> Option<f64> {
        let settling = self.settling_until.is_some_and(|until| now < until);
        let headroom = if settling { HEADROOM_SETTLING } else { HEADROOM };
        self.estimate_bps.map(|bps| (bps as f64 * headroom).max(SLOWEST_BPS))
    }

    /// Pause after a batch of up to `batch` packets, with `bytes`, of a picture of `packets` packets.
    fn gap_after(
        &self,
        packets: usize,
        batch: usize,
        pace: Option<f64>,
        picture_bytes: usize,
        bytes: usize,
    ) -> Duration {
        let batches = packets.div_ceil(batch).max(1) as u32;
        let spread = if batches == 1 {
            Duration::ZERO
        } else {
            let longest = if self.is_near() { NEAR_GAP } else { LONGEST_GAP };
            (self.frame_interval / 2 / batches).min(longest)
        };
        let by_estimate = pace.map_or(Duration::ZERO, |bps| {
            let least = picture_bytes as f64 * 8.0 / LONGEST_SPREAD.as_secs_f64();
            Duration::from_secs_f64(bytes as f64 * 8.0 / bps.max(least))
        });
        spread.max(by_estimate)
    }

    /// When [`Self::release`] has something to do next.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then(|| self.next_at.unwrap_or_else(|| self.queue[0].queued))
    }

    fn learn_interval(&mut self, captured: MediaTime) {
        if let Some(last) = self.last_captured.replace(captured) {
            let step = captured.since(last).clamp(Duration::from_millis(4), Duration::from_millis(200));
            self.frame_interval = (self.frame_interval * 7 + step) / 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightpipe_media::{Size, Stages, VideoCodec};

    fn unit(at_ms: i64, bytes: usize, keyframe: bool) -> Arc<AccessUnit> {
        let mut data = vec![0, 0, 0, 1, if keyframe { 0x65 } else { 0x41 }];
        data.resize(5 + bytes, 0xaa);
        let at = MediaTime::from_micros(at_ms * 1000);
        Arc::new(AccessUnit::new(VideoCodec::H264, data, at, keyframe, Size::new(16, 16), Stages::all_at(at)))
    }

    /// Runs a pacer until it is empty; returns (milliseconds since start, packets) per batch.
    fn drain(pacer: &mut Pacer, start: Instant) -> Vec<(u128, usize)> {
        let mut now = start;
        let mut batches = Vec::new();
        loop {
            let mut packets = 0;
            while pacer.release(now, |_, _, _| packets += 1) {}
            if packets > 0 {
                batches.push(((now - start).as_millis(), packets));
            }
            match pacer.wake_at() {
                Some(at) => now = at.max(now),
                None => return batches,
            }
        }
    }

    #[test]
    fn ordinary_picture_leaves_at_once_and_a_large_one_within_half_an_interval() {
        let start = Instant::now();
        let mut pacer = Pacer::new();
        assert_eq!(pacer.offer(start, &unit(0, 90_000, true), 0), Admitted::Queued);
        let batches = drain(&mut pacer, start);
        assert_eq!(batches.iter().map(|b| b.1).sum::<usize>(), 80);
        assert_eq!(batches.len(), 5);
        assert!(batches.last().expect("five").0 <= 17, "{batches:?}");
        let later = start + Duration::from_millis(33);
        assert_eq!(pacer.offer(later, &unit(33, 10_000, false), 0), Admitted::Queued);
        assert_eq!(drain(&mut pacer, later), [(0, 9)]);
    }

    #[test]
    fn low_estimate_spreads_in_small_batches_but_never_for_long() {
        let start = Instant::now();
        let mut pacer = Pacer::new();
        pacer.set_estimate(Some(1_000_000));
        pacer.offer(start, &unit(0, 90_000, true), 0);
        let batches = drain(&mut pacer, start);
        let took = batches.last().expect("some").0;
        assert!((230..=250).contains(&took), "{batches:?}");
        assert!(batches.iter().all(|(_, packets)| *packets <= 3), "{batches:?}");
    }

    #[test]
    fn to_a_near_viewer_ordinary_pictures_leave_whole_and_large_ones_soon() {
        let start = Instant::now();
        let low = Some(2_500_000);
        for (estimate, round_trips, bytes, batches, took) in [
            (low, &[3][..], 10_000, 1, 0..=0),
            (low, &[60], 10_000, 3, 10..=30),
            (low, &[60, 3, 61], 10_000, 1, 0..=0),
            (low, &[3, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69], 10_000, 3, 10..=30),
            (low, &[3], 90_000, 5, 100..=250),
            (None, &[3], 90_000, 5, 4..=4),
            (None, &[60], 90_000, 5, 12..=12),
            (None, &[60], 24_000, 2, 3..=3),
        ] {
            let mut pacer = Pacer::new();
            pacer.set_estimate(estimate);
            round_trips.iter().for_each(|ms| pacer.set_round_trip(Duration::from_millis(*ms)));
            pacer.offer(start, &unit(0, bytes, true), 0);
            let left = drain(&mut pacer, start);
            assert_eq!(left.len(), batches, "{round_trips:?} ms, {bytes} bytes: {left:?}");
            assert!(took.contains(&left.last().expect("some").0), "{round_trips:?} ms, {bytes} bytes: {left:?}");
        }
    }

    #[test]
    fn silence_ends_with_a_keyframe_that_may_come_early() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pacer = Pacer::new();
        let offer = |pacer: &mut Pacer, ms: u64, keyframe| {
            pacer.offer(at(ms), &unit(ms as i64, 1_000, keyframe), 90 * ms as u32)
        };
        assert_eq!(offer(&mut pacer, 0, true), Admitted::Queued);
        assert_eq!(pacer.fall_silent(at(10), Duration::from_millis(390), Duration::from_secs(2)), 1);
        assert_eq!(offer(&mut pacer, 33, true), Admitted::Silent, "too early");
        assert_eq!(offer(&mut pacer, 66, false), Admitted::Silent);
        assert_eq!(offer(&mut pacer, 333, false), Admitted::WaitsForKeyframe, "asks");
        assert_eq!(offer(&mut pacer, 366, true), Admitted::Queued);
        assert_eq!(offer(&mut pacer, 399, false), Admitted::Queued);
        assert_eq!(drain(&mut pacer, at(399)).first(), Some(&(1, 2)));
    }

    #[test]
    fn nothing_before_the_first_keyframe_and_nothing_after_an_overrun_until_the_next() {
        let start = Instant::now();
        let mut pacer = Pacer::new();
        assert_eq!(pacer.offer(start, &unit(0, 100, false), 0), Admitted::WaitsForKeyframe);
        assert_eq!(pacer.offer(start, &unit(33, 100, true), 0), Admitted::Queued);
        assert_eq!(pacer.offer(start, &unit(66, 100, false), 0), Admitted::Queued);
        let late = start + Duration::from_millis(500);
        assert_eq!(pacer.offer(late, &unit(100, 100, false), 0), Admitted::Overrun { dropped: 3 });
        assert!(pacer.needs_keyframe());
        assert_eq!(pacer.offer(late, &unit(133, 100, false), 0), Admitted::WaitsForKeyframe);
        assert_eq!(pacer.offer(late, &unit(166, 100, true), 0), Admitted::Queued);
        assert!(!pacer.needs_keyframe());
    }
}
