//! The time of a file that plays in a loop, shared by the children that give its pictures and its sound.
//!
//! Each child reads as fast as its pipe is emptied and tells the file's own times. The timeline ties these to the media clock
//! once, when the first of them delivers; from then on either child's reader waits until what it holds is due. So it does not matter
//! when a child started or how long it took, and one that died goes on where the film is by now.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lightpipe_media::MediaTime;

/// Something later than this is left out, so that what is due now comes sooner.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// Who begins, or left something out, leaves out until it is no later than this. A receiver that got a tenth of a second of sound
/// late and at once would keep that delay for seconds.
const CAUGHT_UP: Duration = Duration::from_millis(10);

/// How long a child may try to catch up. After that the machine is too slow for this film, and all of it waits.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Where a file is in its loop. Positions count from its first beginning, through all loops.
#[derive(Debug)]
pub struct Timeline {
    length: Duration,
    /// Media time of position zero, once something was delivered.
    zero: Mutex<Option<MediaTime>>,
}

impl Timeline {
    /// Shortest loop that is played. A picture of a few milliseconds is no film.
    pub const SHORTEST: Duration = Duration::from_millis(200);

    /// A file that begins again after `length`.
    pub fn new(length: Duration) -> Self {
        Self { length: length.max(Self::SHORTEST), zero: Mutex::new(None) }
    }

    /// Length of one loop.
    pub const fn length(&self) -> Duration {
        self.length
    }

    /// Where a child that starts now should begin.
    pub(crate) fn position(&self, now: MediaTime) -> Duration {
        self.zero().map_or(Duration::ZERO, |zero| now.since(zero))
    }

    /// When to show what stands at `position`. The first call decides: that one is due now.
    pub(crate) fn due(&self, position: Duration, now: MediaTime) -> MediaTime {
        *self.zero().get_or_insert(now - position) + position
    }

    /// Everything happens so much later from now on.
    pub(crate) fn delay(&self, by: Duration) {
        if let Some(zero) = self.zero().as_mut() {
            *zero = *zero + by;
        }
    }

    fn zero(&self) -> MutexGuard<'_, Option<MediaTime>> {
        self.zero.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do with something that a child delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Wait until then, then show it.
    At(MediaTime),
    /// It is too late.
    Missed,
}

/// One child's reading of a [`Timeline`].
#[derive(Debug, Default)]
pub(crate) struct Playhead {
    /// What came last was in time.
    caught_up: bool,
    /// Since when everything came too late.
    behind: Option<MediaTime>,
}

impl Playhead {
    pub(crate) fn turn(&mut self, timeline: &Timeline, position: Duration, now: MediaTime) -> Turn {
        let due = timeline.due(position, now);
        let late = now.since(due);
        if late <= if self.caught_up { LATE } else { CAUGHT_UP } {
            *self = Self { caught_up: true, behind: None };
            return Turn::At(due);
        }
        self.caught_up = false;
        if now.since(*self.behind.get_or_insert(now)) < CATCH_UP {
            return Turn::Missed;
        }
        *self = Self { caught_up: true, behind: None };
        timeline.delay(late);
        Turn::At(timeline.due(position, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn whoever_delivers_first_sets_the_time_for_both() {
        let film = Timeline::new(ms(5000));
        assert_eq!(film.position(at(700)), Duration::ZERO, "nothing plays yet");
        let (mut pictures, mut sound) = (Playhead::default(), Playhead::default());
        assert_eq!(pictures.turn(&film, ms(23), at(1023)), Turn::At(at(1023)));
        assert_eq!(pictures.turn(&film, ms(63), at(1024)), Turn::At(at(1063)));
        // The sound's child took 300 ms longer: its beginning is over.
        assert_eq!(sound.turn(&film, ms(0), at(1300)), Turn::Missed);
        assert_eq!(sound.turn(&film, ms(199), at(1300)), Turn::Missed);
        assert_eq!(sound.turn(&film, ms(280), at(1300)), Turn::Missed, "so much at once would be kept as delay");
        assert_eq!(sound.turn(&film, ms(291), at(1300)), Turn::At(at(1291)));
        assert_eq!(sound.turn(&film, ms(400), at(1301)), Turn::At(at(1400)));
        // A pause of the machine is made up for.
        assert_eq!(sound.turn(&film, ms(420), at(1510)), Turn::At(at(1420)));
        // A child that starts again in the third loop.
        assert_eq!(film.position(at(13_000)), ms(12_000));
    }

    #[test]
    fn a_machine_that_never_catches_up_plays_later_rather_than_nothing() {
        let film = Timeline::new(ms(5000));
        let mut pictures = Playhead::default();
        assert_eq!(pictures.turn(&film, ms(0), at(0)), Turn::At(at(0)));
        for n in 0..50 {
            assert_eq!(pictures.turn(&film, ms(n * 40), at(1000 + n as i64 * 100)), Turn::Missed, "{n}");
        }
        assert_eq!(pictures.turn(&film, ms(2000), at(6000)), Turn::At(at(6000)));
        assert_eq!(film.due(ms(2040), at(6001)), at(6040), "the sound waits as well");
    }
}
