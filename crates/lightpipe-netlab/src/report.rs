//! What a viewer saw of a run, in figures.

use std::time::{Duration, Instant};

use lightpipe_rtc::Counters as PeerCounters;
use lightpipe_rtc::receiver::ReceiverCounters;
use serde::Serialize;

use crate::lab::SAMPLE_INTERVAL;
use crate::link::Counters as LinkCounters;
use crate::profile::{EventKind, Profile};
use crate::source::Source;

/// A picture longer on the screen than three of its kind, and than one and 150 ms, is a freeze: as `freezeCount` in W3C's webrtc-stats.
const FREEZE_FACTOR: u32 = 3;
const FREEZE_MARGIN: Duration = Duration::from_millis(150);

/// Pictures of which the mean interval is taken for that.
const FREEZE_WINDOW: usize = 30;

/// What a viewer of a [`Lab`](crate::Lab) saw. Times are since the beginning of the lab, sizes with IP and UDP headers.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Name of its network.
    pub profile: String,
    /// How long it watched.
    pub seconds: f64,
    /// Joining until ICE and DTLS were done; none if that never was.
    pub connected_after_ms: Option<f64>,
    /// Joining until the first picture.
    pub first_picture_after_ms: Option<f64>,
    /// Pictures that the encoder made for it while it was connected.
    pub pictures_offered: u64,
    /// Pictures that it got whole and decodable.
    pub pictures_shown: u64,
    /// Pauses between pictures.
    pub freezes: Freezes,
    /// What its network did, and how long it took until the next picture.
    pub changes: Vec<Change>,
    /// Pictures shown in another layer than the one before.
    pub layer_switches: u64,
    /// Changes of the size or rate of pictures that are encoded once.
    pub adaptations: u64,
    /// Age of its pictures when they were complete.
    pub age_ms: Share,
    /// How long its media waited before the narrowest place.
    pub queue_ms: Share,
    /// Bits per second that reached it.
    pub received_bps: f64,
    /// Mean of the capacity, where there is a limit.
    pub capacity_bps: Option<f64>,
    /// Packets that it sent negative acknowledgements for.
    pub nacks: u64,
    /// Packets that were sent again, and probes.
    pub resent_packets: u64,
    /// Requests for keyframes that the server got.
    pub keyframe_requests: u64,
    /// Keyframes that were made, of each layer, for whomever.
    pub keyframes: Vec<u64>,
    /// Packets that were given up.
    pub lost_packets: u64,
    /// Pictures that the server left out because too much waited.
    pub dropped_backlog: u64,
    /// Packets lost on the line of its media, whoever's they were.
    pub line_lost: u64,
    /// Packets that the queue of that line had no room for.
    pub line_overflowed: u64,
    /// What went wrong with the session.
    pub failures: Vec<String>,
    /// The state of everything, ten times a second.
    pub samples: Vec<Sample>,
    /// When pictures were complete, milliseconds.
    #[serde(skip)]
    pub shown_ms: Vec<f64>,
    /// When the same were taken.
    #[serde(skip)]
    pub taken_ms: Vec<f64>,
}

/// Pauses between pictures, of those that count as freezes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Freezes {
    /// How many.
    pub count: u64,
    /// Together, milliseconds.
    pub total_ms: f64,
    /// The longest, milliseconds.
    pub longest_ms: f64,
}

/// Something that happened to a network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// When it was over.
    pub at_ms: u64,
    /// What it was.
    pub what: &'static str,
    /// Bits per second or milliseconds, as it may be.
    pub value: Option<u64>,
    /// From then to the next picture; none if there was none.
    pub picture_after_ms: Option<f64>,
}

/// How a figure was spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    /// Half were below.
    pub p50: f64,
    /// 95 of a hundred were below.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Share {
    /// Of these, in any order.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get(((values.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.0);
        Self { p50: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// The state of a session at one moment, and what happened since the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Milliseconds since the beginning.
    pub at_ms: u64,
    /// What its network carries, bits per second.
    pub capacity_bps: Option<u64>,
    /// What the server believes that it carries.
    pub estimate_bps: Option<u64>,
    /// What the encoder of its layer aims for.
    pub target_bps: Option<u64>,
    /// Bits per second sent since the last sample.
    pub sent_bps: f64,
    /// Those received.
    pub received_bps: f64,
    /// The longest wait before the narrowest place.
    pub queue_ms: f64,
    /// The layer of the last picture, 0 the best.
    pub layer: usize,
    /// Rows of the last picture; 0 before the first.
    pub rows: u32,
    /// Pictures per second that the encoder of its layer makes at most.
    pub fps: f64,
}

/// A picture that a viewer completed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) at: Instant,
    pub(crate) age: Duration,
    pub(crate) layer: usize,
    pub(crate) rows: u32,
}

/// What is written down of a session while it runs.
#[derive(Debug)]
pub(crate) struct Record {
    joined: Instant,
    pub(crate) connected: Option<Instant>,
    pub(crate) offered: u64,
    pub(crate) shown: Vec<Shown>,
    pub(crate) failures: Vec<String>,
    samples: Vec<Sample>,
    waits: Vec<f64>,
    resent: u64,
    received_bytes: u64,
    /// Since the last sample.
    recent: (u64, u64, f64),
}

impl Record {
    pub(crate) fn new(joined: Instant) -> Self {
        Self {
            joined,
            connected: None,
            offered: 0,
            shown: Vec::new(),
            failures: Vec::new(),
            samples: Vec::new(),
            waits: Vec::new(),
            resent: 0,
            received_bytes: 0,
            recent: (0, 0, 0.0),
        }
    }

    pub(crate) fn sent(&mut self, bytes: u64, again: bool, waits: Option<Duration>) {
        let waits = waits.map(millis);
        self.waits.extend(waits);
        self.resent += u64::from(again);
        self.recent.0 += bytes;
        self.recent.2 = self.recent.2.max(waits.unwrap_or(0.0));
    }

    pub(crate) fn received(&mut self, bytes: u64) {
        self.received_bytes += bytes;
        self.recent.1 += bytes;
    }

    pub(crate) fn sample(&mut self, sample: Sample) {
        let (sent, received, queue_ms) = std::mem::take(&mut self.recent);
        let bps = |bytes: u64| bytes as f64 * 8.0 / SAMPLE_INTERVAL.as_secs_f64();
        self.samples.push(Sample { sent_bps: bps(sent), received_bps: bps(received), queue_ms, ..sample });
    }
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000.0
}

/// Pauses between pictures that were shown at these times, milliseconds, until `end_ms`.
pub fn freezes(shown_ms: &[f64], end_ms: f64) -> Freezes {
    let mut found = Freezes::default();
    let gaps: Vec<f64> = shown_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let last = shown_ms.last().map(|last| end_ms - last);
    for (index, gap) in gaps.iter().copied().chain(last).enumerate() {
        let before = &gaps[index.saturating_sub(FREEZE_WINDOW)..index.min(gaps.len())];
        let mean = before.iter().sum::<f64>() / before.len().max(1) as f64;
        if !before.is_empty() && gap > (mean * f64::from(FREEZE_FACTOR)).max(mean + millis(FREEZE_MARGIN)) {
            found.count += 1;
            found.total_ms += gap;
            found.longest_ms = found.longest_ms.max(gap);
        }
    }
    found
}

/// Jain's index of fairness: one when all have the same, towards one by their number when one has all.
pub fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    if squares > 0.0 { sum * sum / (rates.len() as f64 * squares) } else { 0.0 }
}

impl Report {
    #[allow(clippy::too_many_arguments, reason = "one caller; each is another part's counters")]
    pub(crate) fn of(
        record: &Record,
        profile: &Profile,
        base: Instant,
        now: Instant,
        peer: PeerCounters,
        receiver: ReceiverCounters,
        line: LinkCounters,
        source: &Source,
    ) -> Self {
        let shown_ms: Vec<f64> = record.shown.iter().map(|shown| millis(shown.at - base)).collect();
        let joined_ms = millis(record.joined - base);
        let seconds = (now - record.joined).as_secs_f64();
        let known: Vec<f64> = record.samples.iter().filter_map(|s| s.capacity_bps).map(|bps| bps as f64).collect();
        let change = |event: crate::profile::Event| {
            let over_ms = millis(event.at + event.kind.lasts());
            let next = shown_ms.partition_point(|at| *at <= over_ms);
            Change {
                at_ms: over_ms as u64,
                what: event.kind.name(),
                value: match event.kind {
                    EventKind::DownRate(bps) | EventKind::UpRate(bps) => Some(bps),
                    EventKind::Outage(span) | EventKind::Stall(span) => Some(span.as_millis() as u64),
                    EventKind::Rebind | EventKind::Move => None,
                },
                picture_after_ms: shown_ms.get(next).map(|at| at - over_ms),
            }
        };
        Self {
            profile: profile.name.clone(),
            seconds,
            connected_after_ms: record.connected.map(|at| millis(at - record.joined)),
            first_picture_after_ms: shown_ms.first().map(|at| at - joined_ms),
            pictures_offered: record.offered,
            pictures_shown: record.shown.len() as u64,
            freezes: freezes(&shown_ms, millis(now - base)),
            changes: profile.events_until(now - base).into_iter().map(change).collect(),
            layer_switches: record.shown.windows(2).filter(|pair| pair[0].layer != pair[1].layer).count() as u64,
            adaptations: source.adaptations(),
            age_ms: Share::of(record.shown.iter().map(|shown| millis(shown.age)).collect()),
            queue_ms: Share::of(record.waits.clone()),
            received_bps: record.received_bytes as f64 * 8.0 / seconds.max(f64::EPSILON),
            capacity_bps: (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64),
            nacks: peer.nacks,
            resent_packets: record.resent,
            keyframe_requests: peer.keyframe_requests,
            keyframes: source.keyframes(),
            lost_packets: receiver.lost_packets,
            dropped_backlog: peer.dropped_backlog,
            line_lost: line.lost,
            line_overflowed: line.overflowed,
            failures: record.failures.clone(),
            samples: record.samples.clone(),
            taken_ms: record.shown.iter().map(|shown| millis(shown.at - base) - millis(shown.age)).collect(),
            shown_ms,
        }
    }

    /// Pauses on the screen of a player that keeps pictures back until they are so much older than the youngest ever was.
    pub fn freezes_with_reserve(&self, reserve_ms: f64) -> Freezes {
        let pictures = || self.shown_ms.iter().copied().zip(self.taken_ms.iter().copied());
        let least = pictures().map(|(shown, taken)| shown - taken).fold(f64::INFINITY, f64::min);
        let displayed: Vec<f64> = pictures().map(|(shown, taken)| shown.max(taken + least + reserve_ms)).collect();
        freezes(&displayed, displayed.last().copied().unwrap_or(0.0))
    }

    /// Samples from `from` to `to` seconds.
    pub fn between(&self, from: f64, to: f64) -> impl Iterator<Item = &Sample> {
        let inside = move |sample: &&Sample| (from * 1e3..to * 1e3).contains(&(sample.at_ms as f64));
        self.samples.iter().filter(inside)
    }

    /// Mean of a figure from `from` to `to` seconds.
    pub fn mean(&self, from: f64, to: f64, figure: impl Fn(&Sample) -> f64) -> f64 {
        let values: Vec<f64> = self.between(from, to).map(figure).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    }

    /// Pauses between pictures from `from` to `to` seconds.
    pub fn freezes_between(&self, from: f64, to: f64) -> Freezes {
        let inside: Vec<f64> = self.shown_ms.iter().copied().filter(|at| (from * 1e3..to * 1e3).contains(at)).collect();
        freezes(&inside, to * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_what_statistics_of_browsers_call_one() {
        #[track_caller]
        fn check(gaps: &[f64], then: f64, expected: Freezes) {
            let mut shown: Vec<f64> = (0..60).map(|n| f64::from(n) * 33.0).collect();
            for gap in gaps {
                shown.push(shown[shown.len() - 1] + gap);
            }
            assert_eq!(freezes(&shown, shown[shown.len() - 1] + then), expected, "{gaps:?} {then}");
        }
        let one = |ms| Freezes { count: 1, total_ms: ms, longest_ms: ms };
        check(&[33.0], 33.0, Freezes::default());
        check(&[180.0], 33.0, Freezes::default());
        check(&[190.0, 33.0], 33.0, one(190.0));
        check(&[], 1_000.0, one(1_000.0));
        check(&[500.0, 900.0], 33.0, Freezes { count: 2, total_ms: 1_400.0, longest_ms: 900.0 });
        assert_eq!(freezes(&[], 5_000.0), Freezes::default());
    }

    #[test]
    fn fairness() {
        assert_eq!(jain(&[1.0, 1.0, 1.0]), 1.0);
        assert_eq!(jain(&[3.0, 0.0]), 0.5);
        assert!((jain(&[2.0, 1.0]) - 0.9).abs() < 1e-9);
    }
}
