//! Who speaks?

use std::collections::BTreeMap;

use super::{Level, SAMPLE_RATE_HZ};

/// Time constant of the level that says whether somebody speaks, seconds: shorter than a syllable.
const SHORT: f32 = 0.05;

/// The same of the level that says who is louder: longer than a word's pauses.
const LONG: f32 = 0.5;

/// Above his own noise by so much somebody speaks, dB.
const ABOVE_NOISE: f32 = 9.0;

/// And above this, whatever the noise, dBov.
const LEAST: f32 = -55.0;

/// Noise is the least of a participant's levels; by so much it may have grown since, dB a second. A voice that never pauses is noise in the end.
const NOISE_GROWS: f32 = 4.0;

/// Nobody's noise is louder than this, dBov: who joins in the middle of a word is heard as soon as it has an end.
const MOST_NOISE: f32 = -30.0;

/// Speaking for so long, seconds, in all: a cough or a click is shorter.
const SPEAKS_FROM: f32 = 0.12;

/// Silent for so long the active speaker has finished.
const FINISHED_AFTER: f32 = 0.15;

/// Somebody else takes over from one who still speaks by being louder by so much, dB.
const LOUDER: f32 = 6.0;

/// Nobody is active for less than this, seconds, while he speaks.
const LEAST_TURN: f32 = 1.0;

/// Finds the active speaker from levels, with what RFC 6464 calls dBov.
#[derive(Debug)]
pub struct ActiveSpeaker<K> {
    voices: BTreeMap<K, Voice>,
    active: Option<K>,
    /// Seconds since it changed.
    turn: f32,
}

#[derive(Debug, Clone, Copy)]
struct Voice {
    /// dBov.
    short: f32,
    long: f32,
    noise: f32,
    /// How long he has spoken, less how long he has not.
    spoke: f32,
    /// Seconds since.
    quiet: f32,
    present: bool,
}

impl Voice {
    fn push(&mut self, seconds: f32, dbov: f32) {
        let weight = |span: f32| 1.0 - (-seconds / span).exp();
        self.short += (dbov - self.short) * weight(SHORT);
        self.long += (dbov.max(LEAST) - self.long) * weight(LONG);
        self.noise = (self.noise + NOISE_GROWS * seconds).min(self.short).min(MOST_NOISE);
        if self.short > (self.noise + ABOVE_NOISE).max(LEAST) {
            self.spoke = (self.spoke + seconds).min(2.0 * SPEAKS_FROM);
            self.quiet = 0.0;
        } else {
            self.spoke = (self.spoke - seconds).max(0.0);
            self.quiet += seconds;
        }
    }

    fn speaks(&self) -> bool {
        self.spoke >= SPEAKS_FROM && self.quiet < FINISHED_AFTER
    }
}

impl<K: Ord + Clone> ActiveSpeaker<K> {
    /// Nobody has spoken.
    pub const fn new() -> Self {
        Self { voices: BTreeMap::new(), active: None, turn: 0.0 }
    }

    /// The levels of everybody in one block of `samples` of one channel.
    pub fn push<'a>(&mut self, samples: usize, levels: impl Iterator<Item = (&'a K, Level)>)
    where
        K: 'a,
    {
        let seconds = samples as f32 / SAMPLE_RATE_HZ as f32;
        self.turn += seconds;
        self.voices.values_mut().for_each(|voice| voice.present = false);
        for (who, level) in levels {
            let dbov = level.dbov();
            let new = Voice { short: dbov, long: LEAST, noise: dbov, spoke: 0.0, quiet: 0.0, present: true };
            if !self.voices.contains_key(who) {
                self.voices.insert(who.clone(), new);
            }
            if let Some(voice) = self.voices.get_mut(who) {
                voice.present = true;
                voice.push(seconds, dbov);
            }
        }
        self.voices.retain(|_, voice| voice.present);
        self.choose();
    }

    fn choose(&mut self) {
        let current = self.active.as_ref().and_then(|who| self.voices.get(who)).copied();
        let others = self.voices.iter().filter(|(who, voice)| voice.speaks() && Some(*who) != self.active.as_ref());
        let Some((loudest, voice)) = others.max_by(|a, b| a.1.long.total_cmp(&b.1.long)) else { return };
        let yields = current.is_none_or(|current| {
            current.quiet >= FINISHED_AFTER || (voice.long > current.long + LOUDER && self.turn >= LEAST_TURN)
        });
        if yields {
            self.active = Some(loudest.clone());
            self.turn = 0.0;
        }
    }

    /// A participant left.
    pub fn forget(&mut self, who: &K) {
        self.voices.remove(who);
        if self.active.as_ref() == Some(who) {
            self.active = None;
        }
    }

    /// Who speaks; the last one who did while nobody does.
    pub const fn active(&self) -> Option<&K> {
        self.active.as_ref()
    }
}

impl<K: Ord + Clone> Default for ActiveSpeaker<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of 10 ms. Each participant has noise and says something in some spans: words of 200 to 400 ms with pauses between.
    struct Room {
        random: fastrand::Rng,
        noise: Vec<f32>,
        said: Vec<(usize, f32, f32, f32)>,
        speaker: ActiveSpeaker<usize>,
        /// When who became active, seconds.
        changes: Vec<(f32, usize)>,
    }

    impl Room {
        fn new(noise: &[f32]) -> Self {
            Self {
                random: fastrand::Rng::with_seed(6),
                noise: noise.to_vec(),
                said: Vec::new(),
                speaker: ActiveSpeaker::new(),
                changes: Vec::new(),
            }
        }

        fn run(&mut self, seconds: f32) {
            for block in 0..(seconds * 100.0) as usize {
                let now = block as f32 / 100.0;
                let levels: Vec<(usize, Level)> = (0..self.noise.len())
                    .map(|who| {
                        // Noise of 10 ms swings by a few dB; a voice by twenty within a word, and it pauses between words.
                        let mut dbov = self.noise[who] + self.random.f32() * 6.0 - 3.0;
                        for (_, from, to, level) in self.said.iter().filter(|said| said.0 == who) {
                            let word = (now - from) % 0.35;
                            if (*from..*to).contains(&now) && word < 0.28 {
                                dbov = dbov.max(level + 8.0 * (word * 40.0).sin() - 6.0 + self.random.f32() * 4.0);
                            }
                        }
                        (who, Level::from_dbov(dbov))
                    })
                    .collect();
                self.speaker.push(480, levels.iter().map(|(who, level)| (who, *level)));
                let active = self.speaker.active().copied();
                if active != self.changes.last().map(|(_, who)| *who) {
                    self.changes.extend(active.map(|who| (now, who)));
                }
            }
        }
    }

    #[test]
    fn the_speaker_is_right_within_three_hundred_milliseconds() {
        let mut room = Room::new(&[-60.0, -50.0, -70.0, -90.0]);
        room.said = vec![(0, 1.0, 6.0, -25.0), (1, 6.2, 10.0, -30.0), (3, 10.2, 14.0, -20.0), (2, 14.2, 20.0, -35.0)];
        room.run(20.0);
        let who: Vec<usize> = room.changes.iter().map(|(_, who)| *who).collect();
        assert_eq!(who, [0, 1, 3, 2], "{:?}", room.changes);
        for ((at, _), expected) in room.changes.iter().zip([1.0, 6.2, 10.2, 14.2]) {
            assert!((0.0..=0.3).contains(&(at - expected)), "{:?}", room.changes);
        }
    }

    #[test]
    fn noise_and_a_cough_change_nothing() {
        let mut room = Room::new(&[-45.0, -40.0, -60.0]);
        room.said = vec![(2, 2.0, 60.0, -30.0), (0, 20.0, 20.09, -15.0), (1, 30.0, 30.09, -15.0)];
        room.run(60.0);
        assert_eq!(room.changes.iter().map(|(_, who)| *who).collect::<Vec<_>>(), [2], "{:?}", room.changes);
        // Noise alone.
        let mut room = Room::new(&[-45.0, -40.0, -60.0]);
        room.run(60.0);
        assert!(room.changes.is_empty(), "{:?}", room.changes);
    }

    #[test]
    fn two_at_once_do_not_flap() {
        let mut room = Room::new(&[-60.0, -60.0]);
        room.said = vec![(0, 1.0, 30.0, -25.0), (1, 5.0, 30.0, -25.0)];
        room.run(30.0);
        assert!(room.changes.len() <= 2, "{:?}", room.changes);
        // Who is much louder takes over.
        let mut room = Room::new(&[-60.0, -60.0]);
        room.said = vec![(0, 1.0, 30.0, -40.0), (1, 5.0, 30.0, -20.0)];
        room.run(30.0);
        assert_eq!(room.changes.iter().map(|(_, who)| *who).collect::<Vec<_>>(), [0, 1], "{:?}", room.changes);
    }

    #[test]
    fn who_left_speaks_no_more() {
        let mut room = Room::new(&[-60.0, -60.0]);
        room.said = vec![(0, 0.5, 5.0, -25.0)];
        room.run(5.0);
        room.speaker.forget(&0);
        assert_eq!(room.speaker.active(), None);
    }
}
