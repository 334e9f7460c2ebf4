//! What both containers do before they write a sample: what is no media is dropped, the rest gets its time in the file.

use std::collections::VecDeque;
use std::time::Duration;

use super::timeline::{Place, Timeline};
use super::{MAX_HELD_PACKETS, MAX_SAMPLE_BYTES, Progress, Tracks};
use crate::access_unit::AccessUnit;
use crate::audio::AudioPacket;
use crate::time::MediaTime;

/// Tracks by their place in the file, from 0.
pub(super) const VIDEO: usize = 0;
pub(super) const AUDIO: usize = 1;

/// Time that a picture stands which has no successor, and no predecessor that tells better.
const ORDINARY_STEP: Duration = Duration::from_micros(33_333);

/// A picture before which nothing came for longer tells nothing of the next one.
const LONGEST_STEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Intake {
    tracks: Tracks,
    timeline: Option<Timeline>,
    held: VecDeque<AudioPacket>,
    last_picture: Option<u64>,
    step: Duration,
    finished: bool,
    pub(super) progress: Progress,
}

impl Intake {
    pub(super) fn new(tracks: Tracks) -> Self {
        let (timeline, held, progress) = (None, VecDeque::new(), Progress::default());
        Self { tracks, timeline, held, last_picture: None, step: ORDINARY_STEP, finished: false, progress }
    }

    pub(super) const fn tracks(&self) -> Tracks {
        self.tracks
    }

    pub(super) const fn started(&self) -> bool {
        self.timeline.is_some()
    }

    /// Whether there is something to do with a unit.
    pub(super) fn wants(&mut self, unit: &AccessUnit) -> bool {
        let wanted = self.tracks.video && !self.finished;
        let good = !unit.data.is_empty() && unit.data.len() <= MAX_SAMPLE_BYTES;
        self.progress.dropped_bad += u64::from(wanted && !good);
        wanted && good
    }

    /// The file begins with the sample captured then. Gives back what sound was held for it.
    pub(super) fn start(&mut self, origin: MediaTime) -> VecDeque<AudioPacket> {
        self.timeline = Some(Timeline::starting_at(origin));
        self.progress.started = true;
        let held = self.held.len();
        self.held.retain(|packet| packet.captured >= origin);
        self.progress.dropped_before_start += (held - self.held.len()) as u64;
        std::mem::take(&mut self.held)
    }

    /// Time of a picture in the file, microseconds.
    pub(super) fn picture(&mut self, captured: MediaTime, keyframe: bool) -> Option<u64> {
        let timeline = self.timeline.as_mut()?;
        // How long it stands shows when it has its place.
        let at = match timeline.place(VIDEO, captured, Duration::ZERO) {
            Place::At(at) => {
                let step = self.last_picture.map(|last| Duration::from_micros(at.saturating_sub(last)));
                self.step = step.filter(|step| *step <= LONGEST_STEP).unwrap_or(self.step);
                at
            }
            // Dropping it would break the pictures that refer to it.
            Place::Behind(at) => {
                timeline.force(VIDEO, at);
                self.progress.moved_forwards += 1;
                at
            }
            Place::BeforeStart => {
                self.progress.dropped_before_start += 1;
                return None;
            }
        };
        timeline.extend(VIDEO, at.saturating_add(self.step.as_micros() as u64));
        self.last_picture = Some(at);
        self.progress.pictures += 1;
        self.progress.keyframes += u64::from(keyframe);
        Some(at)
    }

    /// Time of a packet in the file, microseconds. While the first keyframe is awaited, the packet is kept.
    pub(super) fn packet(&mut self, packet: &AudioPacket) -> Option<u64> {
        if !self.tracks.audio || self.finished {
            return None;
        }
        if packet.data.is_empty() || packet.data.len() > MAX_SAMPLE_BYTES {
            self.progress.dropped_bad += 1;
            return None;
        }
        if self.timeline.is_none() {
            if self.tracks.video {
                if self.held.len() == MAX_HELD_PACKETS {
                    self.held.pop_front();
                    self.progress.dropped_before_start += 1;
                }
                self.held.push_back(packet.clone());
                return None;
            }
            self.start(packet.captured);
        }
        match self.timeline.as_mut()?.place(AUDIO, packet.captured, duration(packet)) {
            Place::At(at) => {
                self.progress.packets += 1;
                Some(at)
            }
            Place::Behind(_) => {
                self.progress.dropped_backwards += 1;
                None
            }
            Place::BeforeStart => {
                self.progress.dropped_before_start += 1;
                None
            }
        }
    }

    /// How long the last picture stands: as long as the one before it.
    pub(super) const fn step(&self) -> Duration {
        self.step
    }

    /// Nothing is taken any more. False when that was so before.
    pub(super) fn finish(&mut self) -> bool {
        !std::mem::replace(&mut self.finished, true)
    }

    pub(super) fn progress(&self) -> Progress {
        let timeline = self.timeline.as_ref();
        Progress {
            duration: timeline.map_or(Duration::ZERO, Timeline::duration),
            clock_jumps: timeline.map_or(0, Timeline::jumps),
            ..self.progress
        }
    }
}

/// Sound in a packet: what Opus can have (RFC 6716 §3.4), whatever the packet says.
pub(super) fn duration(packet: &AudioPacket) -> Duration {
    packet.duration.clamp(Duration::from_micros(2_500), Duration::from_millis(120))
}
