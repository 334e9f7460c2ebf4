//! One monotonic media clock, and its images on the wire: RTP timestamps and Unix time.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

/// RTP clock rate of every video payload format that lightpipe sends, ticks per second (RFC 6184 §5.1).
pub const VIDEO_CLOCK_RATE_HZ: u32 = 90_000;

/// An instant on the media clock: microseconds since the clock's origin.
///
/// A capture time is taken once, where the picture comes into being, and travels with it. It is
/// never derived from a frame count or an assumed frame duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MediaTime(i64);

impl MediaTime {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// From microseconds since the origin; negative before it.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// How much later than `earlier` this is; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for MediaTime {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros(by)))
    }
}

impl Sub<Duration> for MediaTime {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(micros(by)))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Ties the media clock to the process's monotonic clock and to Unix time.
///
/// Both readings are taken once, by whoever owns the clock: later steps of the wall clock do not
/// move media time, so sender reports and capture times always agree with each other.
#[derive(Debug, Clone, Copy)]
pub struct MediaClock {
    origin: Instant,
    unix_at_origin: Duration,
}

impl MediaClock {
    /// `unix_at_origin` is the Unix time (since 1970, UTC) read at the instant `origin`.
    pub const fn new(origin: Instant, unix_at_origin: Duration) -> Self {
        Self { origin, unix_at_origin }
    }

    /// Media time of an instant. An instant before the origin is negative.
    pub fn at(&self, instant: Instant) -> MediaTime {
        match instant.checked_duration_since(self.origin) {
            Some(after) => MediaTime(micros(after)),
            None => MediaTime(-micros(self.origin.duration_since(instant))),
        }
    }

    /// The instant of a media time; the origin's for times that the platform's `Instant` cannot hold.
    pub fn instant(&self, time: MediaTime) -> Instant {
        let distance = Duration::from_micros(time.0.unsigned_abs());
        let instant = if time.0 < 0 { self.origin.checked_sub(distance) } else { self.origin.checked_add(distance) };
        instant.unwrap_or(self.origin)
    }

    /// Unix time of a media time, microseconds since 1970 (UTC).
    pub fn unix_micros(&self, time: MediaTime) -> i64 {
        micros(self.unix_at_origin).saturating_add(time.0)
    }
}

/// Maps capture times to RTP timestamps of one outgoing stream (RFC 3550 §5.1).
///
/// Counts ticks of the negotiated clock: 90 000 per second for video, 48 000 for Opus whatever the
/// sample rate (RFC 7587 §4.1). Wraps at 2³², every 13 h 15 min of video. The base is random per
/// stream, as the RFC asks, and supplied by the caller.
#[derive(Debug, Clone, Copy)]
pub struct RtpClock {
    base: u32,
    rate_hz: u32,
}

impl RtpClock {
    /// A clock whose timestamp at media time zero is `base`.
    pub const fn new(base: u32, rate_hz: u32) -> Self {
        Self { base, rate_hz }
    }

    /// RTP timestamp of a capture time. A time before the origin maps backwards, so a reordered
    /// picture keeps its place.
    pub fn timestamp_at(&self, captured: MediaTime) -> u32 {
        let ticks = i128::from(captured.0) * i128::from(self.rate_hz);
        // Rounded to the nearest tick; truncation to 32 bits is the wrap the RFC defines.
        let ticks = (ticks + 500_000).div_euclid(1_000_000);
        self.base.wrapping_add(ticks.rem_euclid(1 << 32) as u32)
    }

    /// Ticks per second.
    pub const fn rate_hz(&self) -> u32 {
        self.rate_hz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(base: u32, rate: u32, micros: i64, expected: u32) {
        let clock = RtpClock::new(base, rate);
        assert_eq!(
            clock.timestamp_at(MediaTime::from_micros(micros)),
            expected,
            "base {base}, {micros} µs at {rate} Hz"
        );
    }

    #[test]
    fn rtp_timestamps_count_ticks_of_capture_time_and_wrap() {
        check(0, 90_000, 0, 0);
        check(1000, 90_000, 1_000_000, 91_000);
        check(0, 90_000, 33_333, 3000);
        check(0, 90_000, 16_667, 1500);
        check(0, 48_000, 20_000, 960);
        check(u32::MAX, 90_000, 11, 0);
        check(0, 90_000, -1_000_000, 0u32.wrapping_sub(90_000));
        // 2³² ticks at 90 kHz are 47 721.858 844 4… s.
        check(5, 90_000, 47_721_858_845, 5);
        // A year of uptime must not overflow anything.
        check(0, 90_000, 365 * 86_400 * 1_000_000, ((365u64 * 86_400 * 90_000) % (1 << 32)) as u32);
    }

    #[test]
    fn sixty_fps_source_gets_half_the_ticks_of_thirty() {
        // Trap: a fixed 33 ms sample duration made the RTP clock of a 60 fps source run twice as fast.
        for fps in [24u32, 30, 60] {
            let clock = RtpClock::new(7, VIDEO_CLOCK_RATE_HZ);
            let frames = fps * 60;
            let first = clock.timestamp_at(MediaTime::ZERO);
            let last = clock.timestamp_at(MediaTime::from_micros(i64::from(frames) * 1_000_000 / i64::from(fps)));
            assert_eq!(last.wrapping_sub(first), 60 * VIDEO_CLOCK_RATE_HZ, "{fps} fps");
        }
    }

    #[test]
    fn clock_maps_instants_both_ways() {
        let origin = Instant::now();
        let clock = MediaClock::new(origin, Duration::from_secs(1_700_000_000));
        let later = origin + Duration::from_micros(1234);
        assert_eq!(clock.at(later), MediaTime::from_micros(1234));
        assert_eq!(clock.instant(MediaTime::from_micros(1234)), later);
        assert_eq!(clock.unix_micros(MediaTime::from_micros(5)), 1_700_000_000_000_005);
    }
}
