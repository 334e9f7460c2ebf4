//! A conference: each participant hears all the others, and not himself.

use std::collections::BTreeMap;
use std::hash::Hash;

use super::speaker::ActiveSpeaker;
use super::{Level, SAMPLE_RATE_HZ};

/// Who adds nothing for so long hears the same as all who add nothing: one mix, encoded once. Every change is another encoder for him, so
/// pauses between words are not worth one. Samples of one channel.
const HANGOVER: u64 = 2 * SAMPLE_RATE_HZ as u64;

/// What nobody hears: -70 dBov. Noise of a microphone is above it.
const SILENCE: Level = Level::from_dbov(-70.0);

/// Up to here a mix is a sum; above, its gain falls. 0.9 leaves room for what an encoder adds.
const CEILING: f32 = 0.9;

/// A gain that was turned down comes back by so much in a second, as a factor.
const RELEASE_PER_SECOND: f32 = 2.0;

/// Samples over which a gain changes, 2.5 ms: no click.
const RAMP: usize = 120;

/// Mixes blocks of one length for participants that are known by `K`.
///
/// For each block: [`Self::add`] of whoever gives sound, then [`Self::mixes`] once.
#[derive(Debug)]
pub struct Mixer<K> {
    channels: usize,
    participants: BTreeMap<K, Participant>,
    /// Gain of what the silent ones hear.
    shared: Limiter,
    total: Vec<f32>,
    speaker: ActiveSpeaker<K>,
}

#[derive(Debug)]
struct Participant {
    block: Vec<f32>,
    added: bool,
    level: Level,
    /// Samples since it was last heard.
    silent_for: u64,
    limiter: Limiter,
}

/// What some participants hear.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix<K> {
    /// Who.
    pub listeners: Vec<K>,
    /// Whose own mix it is; none for that of all who are silent. Each wants an encoder of its own.
    pub talker: Option<K>,
    /// Interleaved, within ±1.
    pub samples: Vec<f32>,
}

impl<K: Ord + Clone + Hash> Mixer<K> {
    /// A conference without participants, of 1 or 2 channels.
    pub fn new(channels: usize) -> Self {
        Self {
            channels: channels.max(1),
            participants: BTreeMap::new(),
            shared: Limiter::default(),
            total: Vec::new(),
            speaker: ActiveSpeaker::new(),
        }
    }

    /// One more participant, who hears the others from the next block on.
    pub fn join(&mut self, who: K) {
        self.participants.entry(who).or_insert_with(|| Participant {
            block: Vec::new(),
            added: false,
            level: Level::MIN,
            silent_for: HANGOVER,
            limiter: Limiter::default(),
        });
    }

    /// One less.
    pub fn leave(&mut self, who: &K) {
        self.participants.remove(who);
        self.speaker.forget(who);
    }

    /// What a participant gives of this block, interleaved. `level` is what its packet said (RFC 6464), if it did; else it is measured. Who did
    /// not join is not heard.
    pub fn add(&mut self, who: &K, samples: &[f32], level: Option<Level>) {
        let Some(participant) = self.participants.get_mut(who) else { return };
        participant.level = level.unwrap_or_else(|| Level::of(samples));
        participant.block.clear();
        // One value that is no number would silence everybody.
        participant.block.extend(samples.iter().map(|s| if s.is_finite() { s.clamp(-2.0, 2.0) } else { 0.0 }));
        participant.added = true;
    }

    /// What everybody hears of this block, `len` samples of one channel. Who is silent hears what all the silent ones hear; nobody hears himself.
    pub fn mixes(&mut self, len: usize) -> Vec<Mix<K>> {
        let wanted = len * self.channels;
        self.total.clear();
        self.total.resize(wanted, 0.0);
        for participant in self.participants.values_mut() {
            let heard = std::mem::take(&mut participant.added);
            if !heard {
                (participant.level, participant.block) = (Level::MIN, Vec::new());
            }
            participant.block.resize(wanted, 0.0);
            participant.silent_for =
                if participant.level > SILENCE { 0 } else { participant.silent_for.saturating_add(len as u64) };
            if participant.silent_for < HANGOVER {
                self.total.iter_mut().zip(&participant.block).for_each(|(sum, sample)| *sum += sample);
            }
        }
        self.speaker.push(len, self.participants.iter().map(|(who, participant)| (who, participant.level)));
        let mut mixes = Vec::new();
        let mut silent = Vec::new();
        for (who, participant) in &mut self.participants {
            if participant.silent_for >= HANGOVER {
                silent.push(who.clone());
                // When he talks he goes on with the gain that he heard.
                participant.limiter = self.shared;
                continue;
            }
            let mut samples: Vec<f32> = self.total.iter().zip(&participant.block).map(|(sum, own)| sum - own).collect();
            participant.limiter.apply(&mut samples, self.channels);
            mixes.push(Mix { listeners: vec![who.clone()], talker: Some(who.clone()), samples });
        }
        let mut samples = self.total.clone();
        self.shared.apply(&mut samples, self.channels);
        if !silent.is_empty() {
            mixes.push(Mix { listeners: silent, talker: None, samples });
        }
        mixes
    }

    /// How loud a participant was in the last block.
    pub fn level(&self, who: &K) -> Option<Level> {
        self.participants.get(who).map(|participant| participant.level)
    }

    /// Who speaks; the last one who did while nobody does.
    pub fn active_speaker(&self) -> Option<&K> {
        self.speaker.active()
    }
}

/// Keeps a mix below full scale: the gain falls at once when a block would be too loud, and comes back slowly.
#[derive(Debug, Clone, Copy)]
struct Limiter {
    gain: f32,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { gain: 1.0 }
    }
}

impl Limiter {
    fn apply(&mut self, samples: &mut [f32], channels: usize) {
        let len = samples.len() / channels;
        let peak = samples.iter().fold(0.0f32, |peak, sample| peak.max(sample.abs()));
        let fits = if peak > CEILING { CEILING / peak } else { 1.0 };
        let released = self.gain * RELEASE_PER_SECOND.powf(len as f32 / SAMPLE_RATE_HZ as f32);
        let (from, to) = (self.gain, released.min(fits));
        for (n, frame) in samples.chunks_exact_mut(channels).enumerate() {
            let share = ((n + 1) as f32 / RAMP as f32).min(1.0);
            let gain = from + (to - from) * share;
            // Only the ramp down can be too loud.
            frame.iter_mut().for_each(|sample| *sample = saturated(*sample * gain));
        }
        self.gain = to;
    }
}

/// Bends what is above the ceiling so that it stays below one.
fn saturated(sample: f32) -> f32 {
    let over = sample.abs() - CEILING;
    if over <= 0.0 {
        return sample;
    }
    let room = 1.0 - CEILING;
    (CEILING + room * over / (over + room)).copysign(sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::TAU;

    const LEN: usize = 480;

    fn tone(hz: f32, block: usize, amplitude: f32) -> Vec<f32> {
        (block * LEN..(block + 1) * LEN).map(|n| (n as f32 * hz * TAU / 48_000.0).sin() * amplitude).collect()
    }

    /// How much of a tone is in some blocks, as an amplitude.
    fn amount(samples: &[f32], hz: f32) -> f32 {
        let (mut sine, mut cosine) = (0.0, 0.0);
        for (n, sample) in samples.iter().enumerate() {
            let phase = n as f32 * hz * TAU / 48_000.0;
            sine += sample * phase.sin();
            cosine += sample * phase.cos();
        }
        2.0 * sine.hypot(cosine) / samples.len() as f32
    }

    #[test]
    fn everybody_hears_all_others_and_nobody_himself() {
        let mut mixer = Mixer::new(1);
        // 100 Hz apart: a tenth of a second holds whole turns of each.
        let pitches: Vec<f32> = (0..10).map(|n| 300.0 + 100.0 * n as f32).collect();
        (0..13).for_each(|who| mixer.join(who));
        let mut heard: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for block in 0..10 {
            for (who, hz) in pitches.iter().enumerate() {
                mixer.add(&who, &tone(*hz, block, 0.05), None);
            }
            let mixes = mixer.mixes(LEN);
            assert_eq!(mixes.len(), 11, "ten talkers, and one mix for the three who listen");
            assert_eq!(mixes.last().map(|mix| (mix.listeners.clone(), mix.talker)), Some((vec![10, 11, 12], None)));
            for mix in mixes {
                for who in mix.listeners {
                    heard.entry(who).or_default().extend(&mix.samples);
                }
            }
        }
        for (who, samples) in heard {
            for (talker, hz) in pitches.iter().enumerate() {
                let (amount, expected) = (amount(&samples, *hz), if who == talker { 0.0 } else { 0.05 });
                assert!((amount - expected).abs() < 0.001, "{who} hears {amount} of {talker}");
            }
        }
    }

    #[test]
    fn ten_who_shout_do_not_clip() {
        let mut mixer = Mixer::new(2);
        (0..10).for_each(|who| mixer.join(who));
        let mut before = 0.0;
        for block in 0..100 {
            // Two block lengths of whole turns; from the fiftieth on everybody shouts.
            let amplitude = if block < 50 { 0.05 } else { 1.0 };
            let samples: Vec<f32> = tone(300.0, block, amplitude).iter().flat_map(|s| [*s, *s]).collect();
            (0..10).for_each(|who| mixer.add(&who, &samples, None));
            for mix in mixer.mixes(LEN) {
                let peak = mix.samples.iter().fold(0.0f32, |peak, s| peak.max(s.abs()));
                assert!(peak < 1.0, "block {block}: {peak}");
                if block > 51 {
                    // The tone alone, without corners: nothing is cut off.
                    let one: Vec<f32> = mix.samples.iter().step_by(2).copied().collect();
                    let sharpest = one.windows(3).map(|w| (w[0] - 2.0 * w[1] + w[2]).abs()).fold(0.0, f32::max);
                    assert!(sharpest < 0.0016, "block {block}: a corner of {sharpest}");
                    assert!(peak > 0.85, "block {block}: {peak}");
                }
                before = peak;
            }
        }
        assert!(before > 0.85);
        // A second after the shouting a quiet voice is as loud as it is.
        for block in 0..400 {
            mixer.add(&0, &tone(300.0, block, 0.1).iter().flat_map(|s| [*s, *s]).collect::<Vec<_>>(), None);
            let mixes = mixer.mixes(LEN);
            let others = mixes.iter().find(|mix| mix.listeners.contains(&1)).expect("he listens");
            if block == 399 {
                assert!(amount(&others.samples.iter().step_by(2).copied().collect::<Vec<_>>(), 300.0) > 0.099);
                assert_eq!(mixes.len(), 2, "one mix for all who fell silent");
            }
        }
    }

    #[test]
    fn bad_sound_and_strangers_do_no_harm() {
        let mut mixer = Mixer::new(1);
        mixer.join("a");
        mixer.join("b");
        mixer.add(&"a", &[f32::NAN, f32::INFINITY, 9.0], None);
        mixer.add(&"stranger", &[1.0; LEN], None);
        mixer.add(&"b", &[0.1; 2 * LEN], None);
        for mix in mixer.mixes(LEN) {
            assert_eq!(mix.samples.len(), LEN);
            assert!(mix.samples.iter().all(|s| s.is_finite() && s.abs() < 1.0), "{mix:?}");
        }
        mixer.leave(&"b");
        assert_eq!((mixer.level(&"a"), mixer.level(&"b").is_none()), (Some(Level::MIN), true));
    }
}
