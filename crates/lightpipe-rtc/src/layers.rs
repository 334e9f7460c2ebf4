//! Which layer of a ladder a viewer gets: as much as its network carries, without swinging.
//!
//! Down at once when it must be, up when there has been room for a while. Before a change up padding fills the gap to what the better layer
//! will take: whether the network carries that shows before a picture depends on it. Who could not keep that up, or had to come down soon
//! after going up, waits longer each time before the next attempt. A change takes effect with a keyframe of the new layer; until then the
//! old one goes on.

use std::time::{Duration, Instant};

use lightpipe_media::Size;

/// How long an estimate must be too low before the layer is left. A single low value is often corrected by the next.
const DOWN_AFTER: Duration = Duration::from_millis(400);

/// Below this part of what the layer needs it is left at once: a queue of a second builds up within a second.
const FAR_BELOW: f64 = 0.6;

/// How far an estimate may lie below what the layer in use needs.
const DOWN_MARGIN: f64 = 0.95;

/// How far it must lie above what a better layer needs, and for how long.
const UP_MARGIN: f64 = 1.1;
const UP_AFTER: Duration = Duration::from_millis(400);

/// How long padding must have filled the gap to a better layer before it is wanted, and the first pause after that was too much. An
/// estimate comes of short bursts; a second is longer than the queues that hide what is too much.
const TRIAL: Duration = Duration::from_secs(1);
const TRIAL_PAUSE: Duration = Duration::from_secs(5);

/// How long padding may go on where it was not too much, and the estimate is still on its way.
const TRIAL_LIMIT: Duration = Duration::from_secs(3);

/// Padding beyond what a layer's pictures take: headers, and the room that there has to be in order to stay.
const TRIAL_MARGIN: f64 = 1.15;

/// Pause after coming down before going up again.
const UP_PAUSE: Duration = Duration::from_secs(2);

/// The same for the layer that was left within [`FAILED_WITHIN`] of the way up to it, and those above: the network does not carry what its
/// estimate said. Doubles each time.
const FAILED_PAUSE: Duration = Duration::from_secs(10);
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(80);
const FAILED_WITHIN: Duration = Duration::from_secs(10);

/// After this long on the better layer the attempt has succeeded.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(20);

/// How long a viewer that fell behind stays below the layer with which it did. Each further time within that it goes one lower.
const BEHIND_PAUSE: Duration = Duration::from_secs(30);

/// How long a keyframe of a new layer is waited for. An encoder that starts needs a tenth of it.
const SWITCH_LIMIT: Duration = Duration::from_secs(3);

/// A layer that gave no keyframe is not tried again for so long.
const BARREN_PAUSE: Duration = Duration::from_secs(10);

/// One layer of a viewer's stream, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerState {
    /// Its name.
    pub rid: String,
    /// Size of its pictures.
    pub size: Size,
    /// The lowest rate that its encoder goes to, bits per second.
    pub floor_bps: u64,
    /// What its encoder aims for, bits per second; `None` while it rests.
    pub target_bps: Option<u64>,
    /// Pictures can be had.
    pub available: bool,
}

/// Whose pictures a viewer gets, and whose it will get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUse {
    /// The layer whose pictures go out; counts from the best, 0.
    pub sends: usize,
    /// The layer whose keyframe is waited for; the same when none is.
    pub wants: usize,
}

/// Padding instead of a better layer's pictures, from then on until they come.
#[derive(Debug, Clone, Copy)]
struct Trial {
    layer: usize,
    since: Instant,
    fills_bps: u64,
}

/// The choice for one viewer.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    layers: Vec<LayerState>,
    sends: usize,
    wants: usize,
    /// The viewer's own wish.
    chosen: Option<usize>,
    /// Nothing better than this, until then.
    ceiling: Option<(usize, Instant)>,
    wanted_at: Option<Instant>,
    /// Since when another layer would be right, and which.
    better: Option<(usize, Instant)>,
    raised_at: Option<Instant>,
    up_not_before: Option<Instant>,
    trial: Option<Trial>,
    failed_pause: Option<Duration>,
    /// Neither this layer nor a better one before then.
    failed: Option<(usize, Instant)>,
    barren: Option<(usize, Instant)>,
    switches: u64,
}

impl Layers {
    /// There are these layers, best first, and the one in use is `sends`. Empty: no ladder.
    pub(crate) fn set(&mut self, layers: Vec<LayerState>, sends: usize) {
        let rid = self.chosen.and_then(|chosen| self.layers.get(chosen)).map(|layer| layer.rid.clone());
        let same = self.layers.len() == layers.len() && self.sends == sends;
        self.layers = layers;
        self.chosen = rid.and_then(|rid| self.index_of(&rid));
        if !same {
            let last = self.layers.len().saturating_sub(1);
            (self.sends, self.wants) = (sends.min(last), sends.min(last));
            (self.better, self.wanted_at, self.barren, self.trial) = (None, None, None, None);
        }
    }

    pub(crate) fn all(&self) -> &[LayerState] {
        &self.layers
    }

    pub(crate) const fn usage(&self) -> LayerUse {
        LayerUse { sends: self.sends, wants: self.wants }
    }

    pub(crate) const fn switches(&self) -> u64 {
        self.switches
    }

    /// The viewer's wish, if it has one.
    pub(crate) fn chosen(&self) -> Option<&str> {
        Some(self.layers.get(self.chosen?)?.rid.as_str())
    }

    /// The viewer wants this layer whatever the estimate says, or leaves the choice to us. False when there is no such layer.
    pub(crate) fn choose(&mut self, rid: Option<&str>) -> bool {
        let chosen = match rid {
            None => None,
            Some(rid) => match self.index_of(rid) {
                None => return false,
                found => found,
            },
        };
        self.chosen = chosen;
        (self.better, self.up_not_before, self.failed, self.barren, self.trial) = (None, None, None, None, None);
        true
    }

    /// The viewer falls behind with the layer that it gets, whatever its network's estimate says: a device too slow to decode it, for
    /// one. False when there is nothing less to give.
    pub(crate) fn fell_behind(&mut self, now: Instant) -> bool {
        let lower = (self.wants + 1..self.layers.len()).find(|layer| self.can_be_had(*layer));
        if let Some(lower) = lower.filter(|_| self.chosen.is_none()) {
            self.ceiling = Some((lower, now + BEHIND_PAUSE));
            self.trial = None;
            return true;
        }
        false
    }

    fn index_of(&self, rid: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.rid == rid)
    }

    /// Looks at what is right now that the network carries `share_bps` of video. True when another layer is wanted than before.
    pub(crate) fn look(&mut self, now: Instant, share_bps: Option<u64>) -> bool {
        if self.layers.len() < 2 {
            return false;
        }
        if self.sends != self.wants
            && self.wanted_at.is_some_and(|at| now.saturating_duration_since(at) >= SWITCH_LIMIT)
        {
            self.barren = Some((self.wants, now));
            self.want(now, self.sends);
            return true;
        }
        if self.barren.is_some_and(|(_, at)| now.saturating_duration_since(at) >= BARREN_PAUSE) {
            self.barren = None;
        }
        if self.raised_at.is_some_and(|at| now.saturating_duration_since(at) >= FORGOTTEN_AFTER) {
            (self.raised_at, self.failed_pause) = (None, None);
        }
        self.ceiling = self.ceiling.filter(|(_, until)| now < *until);
        self.failed = self.failed.filter(|(_, until)| now < *until);
        let right = self.right(share_bps);
        if let Some(trial) = self.trial.filter(|trial| trial.layer < self.wants && right > trial.layer) {
            self.trial = None;
            if self.can_be_had(trial.layer) {
                self.fail(now, trial.layer, TRIAL_PAUSE);
            }
        }
        if right == self.wants {
            self.better = None;
            return false;
        }
        let since = match self.better {
            // Which of the lower ones is right may change while the estimate falls.
            Some((layer, since)) if layer == right || (layer > self.wants && right > self.wants) => since,
            _ => now,
        };
        self.better = Some((right, since));
        let lasted = now.saturating_duration_since(since);
        let forced = self.chosen.is_some()
            || !self.can_be_had(self.wants)
            || self.ceiling.is_some_and(|(ceiling, _)| self.wants < ceiling);
        let due = if forced {
            true
        } else if right > self.wants {
            let far_below = share_bps.is_some_and(|bps| (bps as f64) < self.need(self.wants, bps) as f64 * FAR_BELOW);
            lasted >= if far_below { Duration::ZERO } else { DOWN_AFTER }
        } else {
            lasted >= UP_AFTER
                && self.up_not_before.is_none_or(|at| now >= at)
                && self.has_proved(now, right, share_bps)
        };
        if !due {
            return false;
        }
        if right > self.wants {
            if self.raised_at.take().is_some_and(|at| now.saturating_duration_since(at) < FAILED_WITHIN) {
                self.fail(now, self.wants, FAILED_PAUSE);
            }
            self.up_not_before = Some(now + UP_PAUSE);
        } else {
            self.raised_at = Some(now);
        }
        self.want(now, right);
        true
    }

    /// What goes out should be filled up to this rate with padding, bits per second.
    pub(crate) fn fills_up_to_bps(&self) -> u64 {
        self.trial.map_or(0, |trial| trial.fills_bps)
    }

    /// What padding has filled it up to for a while without being too much, bits per second.
    pub(crate) fn shown_bps(&self, now: Instant) -> Option<u64> {
        let trial = self.trial.filter(|trial| now.saturating_duration_since(trial.since) >= TRIAL)?;
        Some(trial.fills_bps)
    }

    /// Whether padding has long enough taken the place of a better layer's pictures; begins with it. Who has no estimate has no trial either.
    fn has_proved(&mut self, now: Instant, layer: usize, share_bps: Option<u64>) -> bool {
        let Some(share) = share_bps else { return true };
        match self.trial {
            Some(trial) if trial.layer == layer => {
                // There must be room for what others hold it at; the estimate grows with what padding shows.
                let held_at = self.layers.get(layer).and_then(|l| l.target_bps).unwrap_or(0);
                let enough = share as f64 >= held_at as f64 * DOWN_MARGIN;
                let lasted = now.saturating_duration_since(trial.since);
                if !enough && lasted >= TRIAL_LIMIT {
                    self.trial = None;
                    self.fail(now, layer, TRIAL_PAUSE);
                }
                enough && lasted >= TRIAL
            }
            _ => {
                // An encoder that starts takes as much as there is, up to its full rate, which is twice its lowest.
                let takes = |l: &LayerState| l.target_bps.unwrap_or_else(|| (l.floor_bps * 2).min(share));
                let takes = self.layers.get(layer).map_or(0, takes).max(self.need(layer, share));
                self.trial = Some(Trial { layer, since: now, fills_bps: (takes as f64 * TRIAL_MARGIN).round() as u64 });
                false
            }
        }
    }

    /// The network does not carry a layer after all.
    fn fail(&mut self, now: Instant, layer: usize, first_pause: Duration) {
        let pause = self.failed_pause.map_or(first_pause, |last| (last * 2).min(FAILED_PAUSE_MAX));
        self.failed_pause = Some(pause);
        self.failed = Some((layer, now + pause));
    }

    /// Whether a picture of `layer` goes out. A keyframe of the layer that is waited for makes the change.
    pub(crate) fn takes(&mut self, layer: usize, keyframe: bool) -> bool {
        if layer == self.wants && layer != self.sends && keyframe {
            self.sends = layer;
            (self.wanted_at, self.trial) = (None, None);
            self.switches += 1;
        }
        layer == self.sends
    }

    /// Pictures stop, or come again: a keyframe that did not come meanwhile is nobody's fault.
    pub(crate) fn interrupt(&mut self, now: Instant) {
        self.wanted_at = self.wanted_at.map(|_| now);
        (self.better, self.trial) = (None, None);
    }

    fn want(&mut self, now: Instant, layer: usize) {
        self.trial = self.trial.filter(|trial| trial.layer == layer);
        self.wants = layer;
        self.wanted_at = Some(now);
        self.better = None;
    }

    fn can_be_had(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|l| l.available) && self.barren.is_none_or(|(barren, _)| barren != layer)
    }

    /// The layer that is right for a share of the network.
    fn right(&self, share_bps: Option<u64>) -> usize {
        if let Some(chosen) = self.chosen.filter(|chosen| self.can_be_had(*chosen)) {
            return chosen;
        }
        let fits = |layer: usize| {
            if layer < self.wants && self.failed.is_some_and(|(failed, _)| layer <= failed) {
                return false;
            }
            let Some(share) = share_bps else { return true };
            let margin = match layer.cmp(&self.wants) {
                // What is on trial has shown more than an estimate says.
                std::cmp::Ordering::Less if self.trial.is_some_and(|trial| trial.layer == layer) => 1.0,
                std::cmp::Ordering::Less => UP_MARGIN,
                std::cmp::Ordering::Equal => DOWN_MARGIN,
                std::cmp::Ordering::Greater => 1.0,
            };
            share as f64 >= self.need(layer, share) as f64 * margin
        };
        let best = self.ceiling.map_or(0, |(ceiling, _)| ceiling);
        let mut there = (best..self.layers.len()).filter(|layer| self.can_be_had(*layer));
        let last = there.clone().next_back().unwrap_or(self.wants);
        there.find(|layer| fits(*layer)).unwrap_or(last)
    }

    /// What a layer takes of a viewer that has `share_bps`. An encoder goes down to its floor for the best of its viewers: where its
    /// target is beyond this viewer's share, it is a better one that holds it there.
    fn need(&self, layer: usize, share_bps: u64) -> u64 {
        let Some(layer) = self.layers.get(layer) else { return 0 };
        let held_up = layer.target_bps.filter(|target| *target as f64 > share_bps as f64 * UP_MARGIN);
        held_up.unwrap_or(layer.floor_bps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(rid: &str, floor_bps: u64, target_bps: Option<u64>) -> LayerState {
        LayerState { rid: rid.into(), size: Size::new(16, 16), floor_bps, target_bps, available: true }
    }

    fn ladder() -> Vec<LayerState> {
        vec![layer("f", 1_250_000, None), layer("h", 250_000, None), layer("q", 150_000, None)]
    }

    /// A viewer whose share of the network is told every 200 ms; keyframes come after 100 ms.
    struct Viewer {
        layers: Layers,
        start: Instant,
        now: Instant,
    }

    impl Viewer {
        fn new(layers: Vec<LayerState>) -> Self {
            let now = Instant::now();
            let mut this = Self { layers: Layers::default(), start: now, now };
            this.layers.set(layers, 0);
            this
        }

        /// The switches of so many milliseconds at this share: when (ms), and to which layer.
        fn run(&mut self, ms: u64, share_bps: impl Fn(u64) -> u64) -> Vec<(u64, usize)> {
            let mut switches = Vec::new();
            for _ in 0..ms / 100 {
                self.now += Duration::from_millis(100);
                let at = (self.now - self.start).as_millis() as u64;
                let wants = self.layers.wants;
                if wants != self.layers.sends && self.layers.takes(wants, true) {
                    switches.push((at, wants));
                }
                self.layers.look(self.now, Some(share_bps(at)));
            }
            switches
        }
    }

    #[test]
    fn down_soon_and_up_when_there_has_been_room() {
        let mut viewer = Viewer::new(ladder());
        assert_eq!(viewer.run(10_000, |_| 2_500_000), []);
        assert_eq!(viewer.run(5_000, |_| 1_100_000), [(10_600, 1)], "a bit too little: after 400 ms");
        assert_eq!(viewer.run(5_000, |_| 200_000), [(15_600, 2)]);
        assert_eq!(viewer.run(5_000, |_| 2_500_000), [(21_600, 0)], "all the way up");
        assert_eq!(viewer.run(5_000, |_| 100_000), [(25_200, 2)], "far below: at once");
        assert_eq!(viewer.layers.switches(), 4);
    }

    #[test]
    fn the_least_layer_is_never_left_for_nothing() {
        let mut viewer = Viewer::new(ladder());
        assert_eq!(viewer.run(20_000, |_| 10_000), [(200, 2)]);
    }

    #[test]
    fn attempts_that_fail_become_rare() {
        // What carries 1 Mbit/s looks like more as long as nobody tries.
        let mut viewer = Viewer::new(ladder());
        viewer.run(2_000, |_| 1_000_000);
        let mut switches = Vec::new();
        for _ in 0..1200 {
            let share = if viewer.layers.usage().sends == 0 { 900_000 } else { 1_500_000 };
            switches.extend(viewer.run(100, |_| share));
        }
        let ups: Vec<u64> = switches.iter().filter(|(_, layer)| *layer == 0).map(|(at, _)| *at).collect();
        assert!((3..=5).contains(&ups.len()), "{ups:?}");
        assert!(ups.windows(2).all(|pair| pair[1] - pair[0] >= 10_000), "{ups:?}");
    }

    #[test]
    fn what_padding_shows_to_be_too_much_is_never_seen() {
        let mut viewer = Viewer::new(ladder());
        viewer.run(2_000, |_| 1_000_000);
        let mut trials = Vec::new();
        for _ in 0..1200 {
            let filled = viewer.layers.fills_up_to_bps();
            assert_eq!(viewer.run(100, |_| if filled > 0 { 900_000 } else { 1_500_000 }), []);
            if filled == 0 && viewer.layers.fills_up_to_bps() > 0 {
                trials.push((viewer.now - viewer.start).as_secs());
                assert_eq!(viewer.layers.fills_up_to_bps(), 1_725_000, "what an encoder would take, and its headers");
            }
        }
        assert!((4..=6).contains(&trials.len()), "{trials:?}");
        assert!(trials.windows(2).all(|pair| pair[1] - pair[0] >= 5), "{trials:?}");
    }

    #[test]
    fn an_attempt_that_failed_holds_nobody_below_the_layers_that_did_not() {
        let mut viewer = Viewer::new(ladder());
        viewer.run(2_000, |_| 1_000_000);
        viewer.run(6_000, |_| 1_500_000);
        assert_eq!(viewer.layers.usage().sends, 0);
        assert_eq!(viewer.run(2_000, |_| 200_000).last().map(|(_, layer)| *layer), Some(2), "all the way down");
        let back = viewer.run(6_000, |_| 1_500_000);
        assert_eq!(
            back.iter().map(|(_, layer)| *layer).collect::<Vec<_>>(),
            [1],
            "the middle one soon, the best not yet: {back:?}"
        );
    }

    #[test]
    fn a_share_that_swings_around_a_limit_changes_nothing() {
        let mut viewer = Viewer::new(ladder());
        assert_eq!(viewer.run(60_000, |at| if at / 300 % 2 == 0 { 1_150_000 } else { 1_400_000 }), []);
    }

    #[test]
    fn a_better_viewer_holds_the_rate_up_and_the_others_make_room() {
        let mut viewer = Viewer::new(ladder());
        assert_eq!(viewer.run(2_000, |_| 1_400_000), [], "alone: the encoder comes down to it");
        let held = vec![layer("f", 1_250_000, Some(2_500_000)), layer("h", 250_000, None), layer("q", 150_000, None)];
        viewer.layers.set(held, 0);
        assert_eq!(viewer.run(2_000, |_| 1_400_000), [(2_200, 1)]);
        assert_eq!(viewer.run(5_000, |_| 2_400_000), [(5_600, 0)], "as good as the other one");
    }

    #[test]
    fn a_wish_is_followed_at_once_whatever_the_network_carries() {
        let mut viewer = Viewer::new(ladder());
        assert!(viewer.layers.choose(Some("q")) && !viewer.layers.choose(Some("x")));
        assert_eq!(viewer.run(1_000, |_| 2_500_000), [(200, 2)]);
        assert!(viewer.layers.choose(Some("f")));
        assert_eq!(viewer.run(1_000, |_| 10_000), [(1_200, 0)]);
        viewer.layers.set(ladder()[..2].to_vec(), 0);
        assert_eq!(viewer.layers.chosen(), Some("f"), "kept by name");
        assert!(viewer.layers.choose(None));
        assert_eq!(viewer.run(1_000, |_| 10_000), [(2_200, 1)]);
    }

    #[test]
    fn who_falls_behind_gets_less_for_a_while() {
        let mut viewer = Viewer::new(ladder());
        viewer.run(1_000, |_| 2_500_000);
        assert!(viewer.layers.fell_behind(viewer.now));
        assert_eq!(viewer.run(5_000, |_| 2_500_000), [(1_200, 1)]);
        assert!(viewer.layers.fell_behind(viewer.now));
        assert_eq!(viewer.run(5_000, |_| 2_500_000), [(6_200, 2)]);
        assert!(!viewer.layers.fell_behind(viewer.now), "there is nothing less");
        assert_eq!(viewer.run(40_000, |_| 2_500_000), [(37_500, 0)], "30 s after the last time");
        assert!(viewer.layers.choose(Some("f")) && !viewer.layers.fell_behind(viewer.now), "its own wish");
    }

    #[test]
    fn layers_that_fail_or_give_no_keyframe_are_passed_over() {
        let mut viewer = Viewer::new(ladder());
        let mut without = ladder();
        without[0].available = false;
        viewer.layers.set(without, 0);
        assert_eq!(viewer.run(1_000, |_| 2_500_000), [(200, 1)]);
        viewer.layers.set(ladder(), 1);
        // The best one is back, and gives nothing.
        for _ in 0..70 {
            viewer.now += Duration::from_millis(100);
            viewer.layers.look(viewer.now, Some(2_500_000));
        }
        assert_eq!(viewer.layers.usage(), LayerUse { sends: 1, wants: 1 }, "given up");
        assert!(viewer.layers.takes(1, false) && !viewer.layers.takes(0, true));
    }

    #[test]
    fn without_estimates_everybody_gets_the_best() {
        let mut layers = Layers::default();
        assert!(!layers.look(Instant::now(), None) && layers.takes(0, false));
        layers.set(ladder(), 0);
        assert!(!layers.look(Instant::now(), None));
    }
}
