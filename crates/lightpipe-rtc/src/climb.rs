//! What to believe of the engine's estimate, and when to ask it for more.
//!
//! By itself the estimate grows by 8 % a second until a queue builds up, and then falls by a quarter: every four seconds on a path that
//! carries always the same. And it grows blindly, so that a path that carries four times as much again is filled after fifteen seconds.
//! So a wall that was met is remembered for a while, and probes look behind it: a short burst tells what the path carries before any
//! picture depends on it.

use std::time::{Duration, Instant};

/// A fall of the estimate by this part, from one look to the next, is a wall. Looks are 200 ms apart.
const WALL: f64 = 0.9;

/// A rise by this part, from one look to the next, is what a probe found: by itself the estimate grows by less.
const FOUND: f64 = 1.12;

/// How long after a probe began its result may come, and by how much it differs from how the estimate moves by itself.
const RESULT_WITHIN: Duration = Duration::from_millis(1000);
const RESULT_DIFFERS: f64 = 0.03;

/// The estimator answers congestion with this share of what came through.
const BACKOFF: f64 = 0.85;

/// Share of what came through at a wall that is believed afterwards.
const BELIEVED: f64 = 0.95;

/// How long a wall is believed as it was; after that by so much more each second.
const HOLD: Duration = Duration::from_secs(10);
const SOFTENING: f64 = 0.015;

/// Pause between probes, and after a wall before the first. One is five packets or fifteen milliseconds of twice the estimate.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_AFTER_WALL: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(crate) struct Climb {
    last: Option<u64>,
    wall: Option<(u64, Instant)>,
    met: Option<Instant>,
    probed: Option<Instant>,
}

impl Climb {
    /// The engine's estimate is `bps` now.
    pub(crate) fn look(&mut self, now: Instant, bps: u64) {
        let Some(last) = self.last.replace(bps) else {
            self.probed = Some(now);
            return;
        };
        let change = bps as f64 / last.max(1) as f64;
        if change < WALL {
            self.wall = Some(((bps as f64 / BACKOFF * BELIEVED) as u64, now));
            self.met = Some(now);
            return;
        }
        let Some((wall, _)) = self.wall.filter(|(wall, _)| bps > *wall) else { return };
        let probing = self.probed.is_some_and(|at| now.saturating_duration_since(at) <= RESULT_WITHIN);
        if change > FOUND {
            self.wall = None;
        } else if probing && (change - 1.0).abs() > RESULT_DIFFERS {
            self.wall = Some((wall.max((bps as f64 * BELIEVED) as u64), now));
        }
    }

    /// What to believe of an estimate of `bps`.
    pub(crate) fn believed(&self, now: Instant, bps: u64) -> u64 {
        let Some((wall, met)) = self.wall else { return bps };
        let old = now.saturating_duration_since(met).saturating_sub(HOLD);
        bps.min((wall as f64 * (1.0 + SOFTENING * old.as_secs_f64())) as u64)
    }

    /// The network has carried this for a while.
    pub(crate) fn shown(&mut self, bps: u64) {
        if let Some((wall, _)) = &mut self.wall {
            *wall = bps.max(*wall);
        }
    }

    /// The network carries no more than this: something else told so.
    pub(crate) fn meet(&mut self, now: Instant, bps: u64) {
        self.wall = Some((bps, now));
        self.met = Some(now);
    }

    /// The engine was told to begin again at `bps`, which nobody has measured: `believed` is as much as before.
    pub(crate) fn begins_again(&mut self, now: Instant, bps: u64, believed: u64) {
        self.last = Some(bps);
        self.wall = Some((believed, now));
    }

    /// Whether to probe for more than `believed`, where `desired` would be used.
    pub(crate) fn probe_is_due(&mut self, now: Instant, believed: u64, desired: u64) -> bool {
        let since = |at: Option<Instant>, pause| at.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        let due = believed < desired && since(self.probed, PROBE_EVERY) && since(self.met, PROBE_AFTER_WALL);
        if due {
            self.probed = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 200 ms.
    fn looks(climb: &mut Climb, start: Instant, from_ms: u64, to_ms: u64, bps: impl Fn(u64) -> u64) {
        (from_ms..to_ms).step_by(200).for_each(|ms| climb.look(start + Duration::from_millis(ms), bps(ms)));
    }

    #[test]
    fn a_wall_is_remembered_and_then_tried_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut climb = Climb::default();
        looks(&mut climb, start, 0, 2_000, |_| 1_400_000);
        assert_eq!(climb.believed(at(1), 1_400_000), 1_400_000);
        looks(&mut climb, start, 2_000, 2_200, |_| 1_020_000);
        assert_eq!(climb.believed(at(2), 1_020_000), 1_020_000);
        looks(&mut climb, start, 2_200, 9_000, |ms| 1_020_000 + 50 * (ms - 2_200));
        assert_eq!(climb.believed(at(9), 1_360_000), 1_140_000, "95 % of the 1.2 Mbit/s that came through");
        assert_eq!(climb.believed(at(22), 2_000_000), 1_311_000);
    }

    #[test]
    fn what_a_probe_finds_is_believed_at_once() {
        let start = Instant::now();
        let mut climb = Climb::default();
        looks(&mut climb, start, 0, 200, |_| 3_000_000);
        looks(&mut climb, start, 200, 400, |_| 800_000);
        looks(&mut climb, start, 400, 600, |_| 1_700_000);
        assert_eq!(climb.believed(start + Duration::from_millis(600), 1_700_000), 1_700_000);
    }

    #[test]
    fn a_probe_that_finds_little_more_moves_the_wall_a_little() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut climb = Climb::default();
        climb.look(at(0), 1_300_000);
        climb.look(at(200), 850_000);
        climb.look(at(3_000), 940_000);
        climb.look(at(3_200), 1_300_000);
        climb.look(at(3_400), 1_030_000);
        assert_eq!(climb.believed(at(3_400), 1_300_000), 1_151_176, "met");
        assert!(climb.probe_is_due(at(9_000), 900_000, 2_500_000));
        climb.look(at(9_200), 1_150_000);
        climb.look(at(9_400), 1_240_000);
        assert_eq!(climb.believed(at(9_400), 1_300_000), 1_178_000, "measured");
    }

    #[test]
    fn a_new_beginning_is_not_a_measurement() {
        let start = Instant::now();
        let mut climb = Climb::default();
        looks(&mut climb, start, 0, 200, |_| 300_000);
        climb.begins_again(start, 600_000, 300_000);
        looks(&mut climb, start, 200, 1_000, |_| 600_000);
        assert_eq!(climb.believed(start + Duration::from_secs(1), 600_000), 300_000);
        looks(&mut climb, start, 1_000, 1_200, |_| 900_000);
        assert_eq!(climb.believed(start + Duration::from_secs(2), 900_000), 900_000);
    }

    #[test]
    fn probes_have_their_pauses() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut climb = Climb::default();
        climb.look(start, 1_000_000);
        assert!(!climb.probe_is_due(at(4_900), 1_000_000, 2_500_000));
        assert!(climb.probe_is_due(at(5_000), 1_000_000, 2_500_000));
        assert!(!climb.probe_is_due(at(9_800), 1_000_000, 2_500_000));
        climb.look(at(9_800), 700_000);
        assert!(!climb.probe_is_due(at(12_000), 700_000, 2_500_000), "right behind a wall");
        assert!(climb.probe_is_due(at(12_800), 700_000, 2_500_000));
        assert!(!climb.probe_is_due(at(60_000), 2_500_000, 2_500_000), "nothing to be had");
    }
}
