//! Pictures in the order of decoding, held until their sound is heard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::ages::Ages;
use crate::access_unit::AccessUnit;
use crate::histogram::Histogram;
use crate::time::MediaTime;

/// Pictures that may wait: two seconds at 30 a second. When there is no room, all are dropped until a keyframe comes.
const MOST_WAITING: usize = 64;

/// Pictures wait for all but the latest: a keyframe that takes ten times as long as the others is shown late by itself.
const SHARE: f64 = 0.95;

/// Further off than this is another clock, not lips that are out of step.
const LARGEST_SKEW: Duration = Duration::from_secs(2);

/// Pictures of one peer.
#[derive(Debug, Default)]
pub(super) struct PictureBuffer {
    waiting: VecDeque<Arc<AccessUnit>>,
    ages: Ages,
    /// Something was dropped since the last keyframe.
    broken: bool,
    keyframe_wanted: bool,
    figures: PictureFigures,
    skew: Histogram,
}

/// What became of a peer's pictures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PictureFigures {
    /// Given out.
    pub shown: u64,
    /// Of those, came after their time.
    pub late: u64,
    /// Never given out, because nobody took pictures for two seconds.
    pub dropped: u64,
    /// Waiting now.
    pub waiting: usize,
}

impl PictureBuffer {
    pub(super) fn push(&mut self, arrived: MediaTime, unit: &Arc<AccessUnit>) {
        self.ages.push(unit.captured, arrived);
        if unit.keyframe {
            self.broken = false;
        }
        if self.waiting.len() >= MOST_WAITING {
            self.figures.dropped += self.waiting.len() as u64;
            self.waiting.clear();
            self.broken = !unit.keyframe;
        }
        if self.broken {
            self.figures.dropped += 1;
            self.keyframe_wanted = true;
        } else {
            self.waiting.push_back(Arc::clone(unit));
        }
    }

    /// How long pictures have to be held so that nearly all are there in time; none without pictures.
    pub(super) fn need(&mut self) -> Option<Duration> {
        self.ages.quantile(SHARE)
    }

    /// When the next one is to be shown, if everything is shown so long after it was captured.
    pub(super) fn next_at(&self, delay: Duration) -> Option<MediaTime> {
        self.waiting.front().map(|unit| unit.captured + delay)
    }

    /// The next one whose time has come.
    pub(super) fn pull(&mut self, now: MediaTime, delay: Duration, with_sound: bool) -> Option<Arc<AccessUnit>> {
        if self.next_at(delay)? > now {
            return None;
        }
        let unit = self.waiting.pop_front()?;
        self.figures.shown += 1;
        let skew = now.since(unit.captured + delay);
        if with_sound && skew < LARGEST_SKEW {
            self.skew.record(skew);
        }
        // Until the caller's next turn it is in time.
        if skew > super::BLOCK {
            self.figures.late += 1;
        }
        Some(unit)
    }

    pub(super) fn take_keyframe_wanted(&mut self) -> bool {
        std::mem::take(&mut self.keyframe_wanted)
    }

    pub(super) fn figures(&self) -> PictureFigures {
        PictureFigures { waiting: self.waiting.len(), ..self.figures }
    }

    /// How much later than their sound pictures were given out.
    pub(super) const fn skew(&self) -> &Histogram {
        &self.skew
    }
}
