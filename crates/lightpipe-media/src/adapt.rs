//! Fewer pictures, then smaller ones, for a network that carries too little for the whole.
//!
//! A stream that is encoded once has no layer below it. Its encoder follows the best of its outlets' networks (see
//! [`Demand`](crate::Demand)), first with its bitrate alone; where that leaves too few bits for a pixel, with half the pictures a second,
//! and then with half the sides. [`Adaptation`] chooses, who encodes leaves out and scales. By default, kbit/s:
//!
//! ```text
//!   1280×720, 30 ── 415 ──▶ 15 ── 207 ──▶ 640×360 ── 52 ──▶ 320×180 ── 13 ──▶ 160×90     down, within half a second
//!                ◀── 498 ──    ◀── 249 ──          ◀── 62 ──         ◀── 16 ──           up, after three seconds
//! ```

use std::time::Duration;

use crate::convert;
use crate::frame::Size;
use crate::time::MediaTime;

/// The lowest rate that an encoder goes to which adapts, bits per second: a picture of 160×90 that still shows who moves.
pub const MIN_BITRATE_BPS: u64 = 30_000;

/// Fewer bits for a pixel than these are blocks and smear; half the pixels with twice the bits look better. A sixth of what layers
/// are configured with by default.
const BITS_PER_PIXEL: f64 = 0.015;

/// The same for text and flat areas, which take 3.5 times fewer bits (measured; see `Content` in `lightpipe-codec`).
const BITS_PER_PIXEL_DETAIL: f64 = 0.0045;

/// Somebody who configures few bits for a pixel wants the whole picture with them: nothing is left out above this share of the configured
/// rate.
const MAX_SHARE: f64 = 0.3;

/// Fewer pictures a second than these are a slide show.
const MIN_FPS: f64 = 12.0;

/// The same for text: it is read, not watched.
const MIN_FPS_DETAIL: f64 = 5.0;

/// Fewer samples than in a picture of 160×90 show nothing, and no encoder of ours takes a shorter side.
const MIN_SAMPLES: u64 = 160 * 90;
const MIN_SIDE: u32 = 16;

/// What there must be for a better point, beyond what it needs. An estimate that wanders by a tenth up and down does not stay above this and
/// below that for as long as it must.
const UP_MARGIN: f64 = 1.2;

/// Too little for so long is no single wrong estimate.
const DOWN_AFTER: Duration = Duration::from_millis(500);

/// Less than this share of what is needed is not waited for where the picture is to be a keyframe anyway, as after a network that suddenly
/// carries less: two keyframes would cost twice as much, and the second one be held off.
const AT_ONCE: f64 = 0.7;

/// Enough for so long is not just a probe that went well. Each change of size costs a keyframe.
const UP_AFTER: Duration = Duration::from_secs(3);

/// Who must leave a point so soon after going up to it waits twice as long before going there again, up to the longest. What stands above
/// it needs much more, and there being that much is news.
const RELAPSE: Duration = Duration::from_secs(30);
const LONGEST_UP_AFTER: Duration = Duration::from_secs(48);

/// What goes first where there is not enough for both, as `RTCDegradationPreference` of WebRTC has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// Half of the pictures, then half of the sides.
    #[default]
    Balanced,
    /// The picture keeps its size as long as it can: text that is scaled down cannot be read.
    MaintainResolution,
}

/// What is encoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OperatingPoint {
    /// Size of the pictures.
    pub size: Size,
    /// Pictures per second at most.
    pub fps: f64,
}

/// Chooses what an encoder makes of its source's pictures.
#[derive(Debug, Clone)]
pub struct Adaptation {
    /// From the whole to the least; never empty.
    steps: Vec<Step>,
    at: usize,
    /// Since when there is too little for this point.
    too_little: Option<MediaTime>,
    /// When it last went up.
    raised: Option<MediaTime>,
}

#[derive(Debug, Clone)]
struct Step {
    point: OperatingPoint,
    /// Bits per second below which the next one looks better.
    needs_bps: f64,
    /// Since when there is enough to go up to it, and how long there must be.
    enough: Option<MediaTime>,
    up_after: Duration,
}

impl Adaptation {
    /// For an encoder that is configured for pictures of `whole` at `bitrate_bps`.
    pub fn new(whole: OperatingPoint, bitrate_bps: u64, preference: Preference) -> Self {
        let (bits, min_fps) = match preference {
            Preference::Balanced => (BITS_PER_PIXEL, MIN_FPS),
            Preference::MaintainResolution => (BITS_PER_PIXEL_DETAIL, MIN_FPS_DETAIL),
        };
        let bits = bits.min(bitrate_bps as f64 * MAX_SHARE / pixels_per_second(whole));
        let next = |point: &OperatingPoint| {
            let (fewer, smaller) = (point.fps / 2.0, convert::half(point.size));
            if fewer >= min_fps {
                return Some(OperatingPoint { fps: fewer, ..*point });
            }
            shows(smaller).then_some(OperatingPoint { size: smaller, ..*point })
        };
        let step = |point| Step { point, needs_bps: bits * pixels_per_second(point), enough: None, up_after: UP_AFTER };
        let steps = std::iter::successors(Some(whole), next).map(step).collect();
        Self { steps, at: 0, too_little: None, raised: None }
    }

    /// What to encode from `now` on, when an encoder of so many bits per second is wanted; `None` while nothing limits it, or nobody knows.
    /// `keyframe`: the picture is to be one anyway. Call it for each picture.
    pub fn choose(&mut self, now: MediaTime, target_bps: Option<u64>, keyframe: bool) -> OperatingPoint {
        match target_bps {
            Some(target) => self.follow(now, target as f64, keyframe),
            None => {
                self.steps.iter_mut().for_each(|step| step.enough = None);
                (self.at, self.too_little, self.raised) = (0, None, None);
            }
        }
        self.point()
    }

    /// What was chosen last.
    pub fn point(&self) -> OperatingPoint {
        self.steps[self.at].point
    }

    fn follow(&mut self, now: MediaTime, target: f64, keyframe: bool) {
        for step in &mut self.steps {
            let enough = target >= step.needs_bps * UP_MARGIN;
            step.enough = if enough { step.enough.or(Some(now)) } else { None };
        }
        let needs = self.steps[self.at].needs_bps;
        if target >= needs {
            self.too_little = None;
            let long_enough = |step: &Step| step.enough.is_some_and(|since| now.since(since) >= step.up_after);
            // All the way at once: each step of its own would cost a keyframe.
            if let Some(better) = self.steps[..self.at].iter().position(long_enough) {
                (self.at, self.raised) = (better, Some(now));
            }
            return;
        }
        let since = *self.too_little.get_or_insert(now);
        let at_once = keyframe && target < needs * AT_ONCE;
        if !at_once && now.since(since) < DOWN_AFTER {
            return;
        }
        let least = self.steps.len() - 1;
        let lower = (self.at + 1..least).find(|n| target >= self.steps[*n].needs_bps).unwrap_or(least);
        if lower == self.at {
            return;
        }
        if let Some(raised) = self.raised.take() {
            let step = &mut self.steps[self.at];
            let relapse = now.since(raised) < RELAPSE;
            step.up_after = if relapse { (step.up_after * 2).min(LONGEST_UP_AFTER) } else { UP_AFTER };
        }
        (self.at, self.too_little) = (lower, None);
    }
}

fn pixels_per_second(point: OperatingPoint) -> f64 {
    samples(point.size) as f64 * point.fps
}

fn samples(size: Size) -> u64 {
    u64::from(size.width) * u64::from(size.height)
}

fn shows(size: Size) -> bool {
    samples(size) >= MIN_SAMPLES && size.width.min(size.height) >= MIN_SIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    const HD: OperatingPoint = point(1280, 720, 30.0);

    const fn point(width: u32, height: u32, fps: f64) -> OperatingPoint {
        OperatingPoint { size: Size::new(width, height), fps }
    }

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    fn text(point: OperatingPoint) -> String {
        format!("{}@{}", point.size, point.fps)
    }

    /// Ten targets a second, kbit/s; answers what was chosen, by the second in which it began.
    fn run(adaptation: &mut Adaptation, seconds: i64, kbps: impl Fn(i64) -> f64) -> Vec<(f64, OperatingPoint)> {
        let mut changes = Vec::new();
        for tenth in 0..seconds * 10 {
            let before = adaptation.point();
            let chosen = adaptation.choose(at(tenth * 100), Some((kbps(tenth) * 1e3) as u64), false);
            if chosen != before {
                changes.push((tenth as f64 / 10.0, chosen));
            }
        }
        changes
    }

    #[track_caller]
    fn check_steps(whole: OperatingPoint, kbps: u64, preference: Preference, expected: &[(&str, u64)]) {
        let adaptation = Adaptation::new(whole, kbps * 1000, preference);
        let steps: Vec<(String, u64)> =
            adaptation.steps.iter().map(|step| (text(step.point), (step.needs_bps / 1e3).round() as u64)).collect();
        let expected: Vec<(String, u64)> = expected.iter().map(|(text, kbps)| ((*text).to_owned(), *kbps)).collect();
        assert_eq!(steps, expected, "{} at {kbps} kbit/s, {preference:?}", text(whole));
    }

    #[test]
    fn pictures_become_fewer_and_then_smaller() {
        use Preference::{Balanced, MaintainResolution};
        check_steps(
            HD,
            2500,
            Balanced,
            &[("1280x720@30", 415), ("1280x720@15", 207), ("640x360@15", 52), ("320x180@15", 13), ("160x90@15", 3)],
        );
        check_steps(
            point(1280, 720, 60.0),
            5000,
            Balanced,
            &[
                ("1280x720@60", 829),
                ("1280x720@30", 415),
                ("1280x720@15", 207),
                ("640x360@15", 52),
                ("320x180@15", 13),
                ("160x90@15", 3),
            ],
        );
        // The size is kept longer, and longer with fewer bits.
        check_steps(
            HD,
            2500,
            MaintainResolution,
            &[
                ("1280x720@30", 124),
                ("1280x720@15", 62),
                ("1280x720@7.5", 31),
                ("640x360@7.5", 8),
                ("320x180@7.5", 2),
                ("160x90@7.5", 0),
            ],
        );
        // Half of 20 would be too few.
        check_steps(point(640, 360, 20.0), 1000, Balanced, &[("640x360@20", 69), ("320x180@20", 17), ("160x90@20", 4)]);
        check_steps(point(320, 180, 24.0), 500, Balanced, &[("320x180@24", 21), ("320x180@12", 10), ("160x90@12", 3)]);
        // An upright picture; one that is no smaller in any way.
        check_steps(point(180, 320, 15.0), 500, Balanced, &[("180x320@15", 13), ("90x160@15", 3)]);
        check_steps(point(64, 48, 15.0), 300, Balanced, &[("64x48@15", 1)]);
        // Configured with little from the beginning: the whole picture down to three tenths of that.
        check_steps(point(640, 360, 15.0), 100, Balanced, &[("640x360@15", 30), ("320x180@15", 8), ("160x90@15", 2)]);
    }

    #[track_caller]
    fn check_settles(kbps: f64, expected: OperatingPoint) {
        let mut adaptation = Adaptation::new(HD, 2_500_000, Preference::Balanced);
        let changes = run(&mut adaptation, 60, |_| kbps);
        assert!(changes.len() <= 1 && changes.iter().all(|(at, _)| *at <= 0.6), "{kbps}: {changes:?}");
        assert_eq!(text(adaptation.point()), text(expected), "{kbps} kbit/s");
    }

    #[test]
    fn each_rate_has_its_point_and_gets_there_by_one_change() {
        check_settles(2500.0, HD);
        check_settles(600.0, HD);
        check_settles(400.0, point(1280, 720, 15.0));
        check_settles(200.0, point(640, 360, 15.0));
        check_settles(110.0, point(640, 360, 15.0));
        check_settles(50.0, point(320, 180, 15.0));
        check_settles(10.0, point(160, 90, 15.0));
        check_settles(0.0, point(160, 90, 15.0));
    }

    #[test]
    fn a_noise_of_a_tenth_changes_nothing_again_and_again() {
        for seed in 0..20 {
            for kbps in (20..1400).step_by(10) {
                let mut rng = fastrand::Rng::with_seed(seed * 10_000 + kbps);
                let noise: Vec<f64> = (0..1200).map(|_| kbps as f64 * (0.9 + 0.2 * rng.f64())).collect();
                let mut adaptation = Adaptation::new(HD, 2_500_000, Preference::Balanced);
                let changes = run(&mut adaptation, 120, |tenth| noise[tenth as usize]);
                // Down, one more where the noise goes across a limit, never up.
                let pixels: Vec<f64> = changes.iter().map(|(_, point)| pixels_per_second(*point)).collect();
                assert!(changes.len() <= 2 && pixels.is_sorted_by(|a, b| a > b), "{kbps} kbit/s: {changes:?}");
            }
        }
    }

    #[test]
    fn down_soon_and_up_after_seconds_of_enough() {
        let mut adaptation = Adaptation::new(HD, 2_500_000, Preference::Balanced);
        let changes = run(&mut adaptation, 60, |tenth| match tenth {
            0..100 => 2000.0,
            100..300 => 120.0,
            _ => 2000.0,
        });
        assert_eq!(changes, [(10.5, point(640, 360, 15.0)), (33.0, HD)]);
        // What comes back sooner was no reason.
        let mut adaptation = Adaptation::new(HD, 2_500_000, Preference::Balanced);
        let dips = run(&mut adaptation, 20, |tenth| if tenth % 10 < 4 { 330.0 } else { 2000.0 });
        assert!(dips.is_empty(), "{dips:?}");
        assert_eq!(run(&mut adaptation, 20, |_| 330.0), [(0.5, point(1280, 720, 15.0))]);
    }

    #[test]
    fn who_comes_down_soon_after_going_up_waits_longer_each_time() {
        let mut adaptation = Adaptation::new(HD, 2_500_000, Preference::Balanced);
        // The network carries 300; whatever goes up meets that two seconds later.
        let (mut ups, mut raised) = (Vec::new(), None);
        for tenth in 0..2400_i64 {
            let before = adaptation.point();
            let kbps = if raised.is_some_and(|since| tenth - since >= 20) { 300_000 } else { 1_500_000 };
            let chosen = adaptation.choose(at(tenth * 100), Some(if tenth < 10 { 300_000 } else { kbps }), false);
            if chosen.fps > before.fps {
                raised = Some(tenth);
                ups.push(tenth);
            } else if chosen.fps < before.fps {
                raised = None;
            }
        }
        let pauses: Vec<i64> = ups.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.is_sorted() && pauses.len() <= 8, "{pauses:?}");
        assert!(pauses.last().is_some_and(|pause| *pause >= 480), "{pauses:?}");
        // Once it stood, the next one comes soon again.
        for tenth in 2400..3600 {
            adaptation.choose(at(tenth * 100), Some(2_000_000), false);
        }
        assert_eq!(adaptation.point(), HD);
        let mut back = 0;
        for tenth in 3600..3800 {
            adaptation.choose(at(tenth * 100), Some(if tenth < 3620 { 300_000 } else { 2_000_000 }), false);
            back += i64::from(adaptation.point() != HD);
        }
        assert!((40..=55).contains(&back), "{back} tenths below");
    }

    #[test]
    fn where_nothing_limits_the_whole_picture_is_there_at_once() {
        let mut adaptation = Adaptation::new(HD, 2_500_000, Preference::Balanced);
        let narrow = Some(100_000);
        assert_eq!(
            adaptation.choose(at(0), narrow, true),
            point(640, 360, 15.0),
            "with a keyframe that is made anyway"
        );
        assert_eq!(adaptation.choose(at(33), None, false), HD);
        assert_eq!(adaptation.choose(at(66), Some(600_000), true), HD);
        assert_eq!(adaptation.choose(at(99), narrow, false), HD);
        assert_eq!(adaptation.choose(at(133), narrow, true), point(640, 360, 15.0));
    }
}
