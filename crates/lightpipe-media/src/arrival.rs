//! When was it captured? Times of a foreign clock, brought onto ours.
//!
//! A publisher stamps media with its own clocks: one RTP clock per track, and sender reports that tie each to its wall clock
//! (RFC 3550 §6.4.1). Of ours it knows nothing. The fastest way that a packet took tells the offset of both clocks, but for the shortest delay of
//! the network, which stays unknown and counts as none.

use std::time::Duration;

use crate::time::MediaTime;

/// How long the fastest packet is remembered, at most twice. Crystals drift up to 100 ppm, half a millisecond in this time.
const WINDOW: Duration = Duration::from_secs(5);

/// Offset of a foreign clock to ours, from the packets that came fastest.
#[derive(Debug, Clone, Default)]
pub struct ArrivalClock {
    /// Smallest arrival minus sending time, microseconds: of this window and of the one before.
    current: Option<i64>,
    previous: Option<i64>,
    since: Option<MediaTime>,
}

impl ArrivalClock {
    /// A packet that the foreign clock stamped `sent` microseconds arrived now.
    pub fn observe(&mut self, sent: i64, arrived: MediaTime) {
        let offset = arrived.as_micros().saturating_sub(sent);
        if self.since.is_none_or(|since| arrived.since(since) >= WINDOW) {
            self.previous = self.current.take();
            self.since = Some(arrived);
        }
        self.current = Some(self.current.map_or(offset, |current| current.min(offset)));
    }

    /// Our time of a foreign one; `None` before anything was observed.
    pub fn map(&self, sent: i64) -> Option<MediaTime> {
        let offset = self.current.into_iter().chain(self.previous).min()?;
        Some(MediaTime::from_micros(sent.saturating_add(offset)))
    }
}

/// Share of time by which a track's times may be moved to agree with the other track's: 20 ms a second is not seen and, on
/// sound, hardly heard.
const SLEW: f64 = 0.02;

/// Further off than this is no matter of drift: the clock was set, and times jump with it.
const JUMP: Duration = Duration::from_millis(500);

/// A sender's clock that goes back by this, or ahead of the time that passes by [`AHEAD`], was set: no packet is overtaken by a second.
const BACK: Duration = Duration::from_secs(1);

/// The same ahead: longer than a sender pauses without its clock.
const AHEAD: Duration = Duration::from_secs(5);

/// Tracks are never this far apart. Reports that say so come from a wall clock that was set, and count for nothing.
const UNBELIEVABLE: Duration = Duration::from_secs(1);

/// Capture times of one track. Until the publisher's first sender report the track stands for itself; from then on all tracks that share a
/// `wall` clock agree, and the change is made slowly.
#[derive(Debug, Clone)]
pub struct TrackClock {
    rate_hz: u32,
    own: ArrivalClock,
    /// RTP time (extended, ticks) and wall time (microseconds) of the last sender report.
    report: Option<(u64, i64)>,
    /// By how much the times given out are off `own`, microseconds.
    shift: Option<i64>,
    last: Option<MediaTime>,
    /// Own time, microseconds, and arrival of the packet before.
    before: Option<(i64, MediaTime)>,
}

impl TrackClock {
    /// A track whose RTP clock counts so many ticks a second.
    pub const fn new(rate_hz: u32) -> Self {
        Self {
            rate_hz,
            own: ArrivalClock { current: None, previous: None, since: None },
            report: None,
            shift: None,
            last: None,
            before: None,
        }
    }

    /// A sender report: this RTP time (extended) was that wall time of the publisher's, microseconds.
    pub fn report(&mut self, rtp: u64, wall: i64) {
        self.report = Some((rtp, wall));
    }

    /// Capture time of an extended RTP timestamp that arrived now. `wall` is what the publisher's tracks share.
    pub fn capture(&mut self, rtp: u64, arrived: MediaTime, wall: &mut ArrivalClock) -> MediaTime {
        let own = (i128::from(rtp) * 1_000_000 / i128::from(self.rate_hz.max(1))) as i64;
        if let Some((before, then)) = self.before {
            let passed = arrived.as_micros().saturating_sub(then.as_micros());
            let step = own.saturating_sub(before);
            if step < -(BACK.as_micros() as i64) || step.saturating_sub(passed) > AHEAD.as_micros() as i64 {
                *self = Self::new(self.rate_hz);
            }
        }
        self.before = Some((own, arrived));
        self.own.observe(own, arrived);
        let alone = self.own.map(own).unwrap_or(arrived);
        let together = self.report.and_then(|(at, time)| {
            let ticks = i128::from(rtp) - i128::from(at);
            let sent = time.saturating_add((ticks * 1_000_000 / i128::from(self.rate_hz.max(1))) as i64);
            wall.observe(sent, arrived);
            wall.map(sent)
        });
        let wanted = together.map_or(0, |together| together.as_micros().saturating_sub(alone.as_micros()));
        let wanted = if wanted.unsigned_abs() < UNBELIEVABLE.as_micros() as u64 { wanted } else { 0 };
        let shift = match (self.shift, self.last) {
            (Some(shift), Some(last)) if (wanted - shift).unsigned_abs() < JUMP.as_micros() as u64 => {
                let most = (alone.since(last).as_micros() as f64 * SLEW) as i64;
                shift + (wanted - shift).clamp(-most, most)
            }
            _ => wanted,
        };
        self.shift = Some(shift);
        self.last = Some(alone);
        MediaTime::from_micros(alone.as_micros() + shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> MediaTime {
        MediaTime::from_micros(micros)
    }

    #[test]
    fn the_fastest_packet_tells_the_offset_and_is_forgotten_in_time() {
        let mut clock = ArrivalClock::default();
        assert_eq!(clock.map(0), None);
        for (sent, delay) in [(0, 30_000), (20_000, 9_000), (40_000, 50_000)] {
            clock.observe(sent, at(1_000_000 + sent + delay));
        }
        assert_eq!(clock.map(40_000), Some(at(1_049_000)));
        // The path got 20 ms longer for good: after two windows that is the fastest.
        for n in 0..600 {
            let sent = 60_000 + n * 20_000;
            clock.observe(sent, at(1_000_000 + sent + 29_000));
        }
        assert_eq!(clock.map(0), Some(at(1_029_000)));
    }

    #[test]
    fn a_drifting_publisher_stays_on_our_clock() {
        let mut clock = TrackClock::new(90_000);
        let mut wall = ArrivalClock::default();
        let mut random = fastrand::Rng::with_seed(2);
        let mut worst = 0;
        // 200 ppm fast for ten minutes, up to 15 ms of jitter.
        for n in 0..18_000i64 {
            let real = n * 33_333;
            let rtp = (real as f64 * 1.0002 * 0.09) as u64;
            let captured = clock.capture(rtp, at(real + random.i64(0..15_000)), &mut wall);
            if n > 300 {
                worst = worst.max((captured.as_micros() - real).abs());
            }
        }
        assert!(worst < 4_000, "{worst} µs off");
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        for set in [-20_000_000i64, -2_000_000, 30_000_000] {
            // Both clocks in turn: the track's, and the wall clock of its reports.
            for of_track in [true, false] {
                let (mut clock, mut wall) = (TrackClock::new(48_000), ArrivalClock::default());
                let mut worst = 0;
                for n in 0..1000i64 {
                    let (time, set) = (n * 20_000, if n < 500 { 0 } else { set });
                    let rtp = |time: i64| ((60_000_000 + time + if of_track { set } else { 0 }) * 48 / 1000) as u64;
                    if n % 50 == 0 {
                        clock.report(rtp(time), 1_700_000_000_000_000 + time + if of_track { 0 } else { set });
                    }
                    let captured = clock.capture(rtp(time), at(time + 5_000), &mut wall);
                    worst = worst.max((captured.as_micros() - time - 5_000).abs());
                }
                assert!(worst <= 40, "set by {set} µs, the track's: {of_track}: {worst} µs off");
            }
        }
    }

    #[test]
    fn tracks_with_different_delays_agree_after_their_first_reports() {
        // Video is 60 ms old when it leaves, sound 20; both clocks start anywhere.
        let (mut video, mut audio) = (TrackClock::new(90_000), TrackClock::new(48_000));
        let mut wall = ArrivalClock::default();
        let (wall_offset, video_base, audio_base) = (1_700_000_000_000_000, 5_000_000u64, 99_000u64);
        let skew = |video: &mut TrackClock, audio: &mut TrackClock, wall: &mut ArrivalClock, time: i64| {
            let v = video.capture(video_base + (time as f64 * 0.09) as u64, at(time + 60_000), wall);
            let a = audio.capture(audio_base + (time as f64 * 0.048) as u64, at(time + 20_000), wall);
            v.as_micros() - a.as_micros()
        };
        assert_eq!(skew(&mut video, &mut audio, &mut wall, 0), 40_000, "each for itself");
        video.report(video_base, wall_offset);
        audio.report(audio_base, wall_offset);
        let mut before = 40_000;
        for n in 1..400 {
            let now = skew(&mut video, &mut audio, &mut wall, n * 20_000);
            assert!((now - before).abs() <= 900, "no jump: {before} to {now}");
            before = now;
        }
        assert!(before.abs() < 1_000, "{before} µs apart");
    }
}
