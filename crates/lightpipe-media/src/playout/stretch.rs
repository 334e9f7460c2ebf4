//! Sound made shorter or longer by a turn of its own wave, without a change of pitch (as WSOLA does: Verhelst and Roelands, 1993).

/// Shortest and longest piece that is taken out or played twice, samples: 2.5 to 15 ms, turns of 400 to 67 Hz.
const LAGS: std::ops::RangeInclusive<usize> = 120..=720;

/// Over so many samples one piece is faded into the other: 5 ms.
const OVERLAP: usize = 240;

/// Samples that have to be there.
pub(super) const NEEDED: usize = *LAGS.end() + OVERLAP;

/// How alike both pieces have to be: 1 are equal. Below this one hears it.
const LEAST_LIKENESS: f32 = 0.8;

/// Mean square of what nobody hears, -55 dBFS.
const QUIET: f32 = 3e-6;

/// Lags are searched on every fourth sample first.
const COARSE: usize = 4;

/// Takes a piece out of the beginning; answers the samples of one channel that are gone, zero if nothing fits.
pub(super) fn shorten(samples: &mut Vec<f32>, channels: usize) -> usize {
    let Some(lag) = lag(samples, channels) else { return 0 };
    for n in 0..OVERLAP {
        for channel in 0..channels {
            let at = n * channels + channel;
            samples[at] = faded(samples[at], samples[at + lag * channels], n);
        }
    }
    samples.drain(OVERLAP * channels..(OVERLAP + lag) * channels);
    lag
}

/// Plays a piece of the beginning twice; answers the samples of one channel that there are more, zero if nothing fits.
pub(super) fn lengthen(samples: &mut Vec<f32>, channels: usize) -> usize {
    let Some(lag) = lag(samples, channels) else { return 0 };
    let mut more = samples[..(lag + OVERLAP) * channels].to_vec();
    for n in 0..OVERLAP {
        for channel in 0..channels {
            let at = n * channels + channel;
            more[at + lag * channels] = faded(more[at + lag * channels], samples[at], n);
        }
    }
    samples.splice(..OVERLAP * channels, more);
    lag
}

fn faded(from: f32, to: f32, n: usize) -> f32 {
    let share = (n as f32 + 0.5) / OVERLAP as f32;
    from + (to - from) * share
}

/// The distance at which the beginning sounds most like itself.
fn lag(samples: &[f32], channels: usize) -> Option<usize> {
    if channels == 0 || samples.len() < NEEDED * channels {
        return None;
    }
    let mono: Vec<f32> = samples.chunks_exact(channels).take(NEEDED).map(|frame| frame.iter().sum()).collect();
    let power = mono.iter().map(|s| s * s).sum::<f32>() / (NEEDED * channels * channels) as f32;
    if power < QUIET {
        return Some(*LAGS.end());
    }
    let best = |lags: &mut dyn Iterator<Item = usize>, step: usize| {
        lags.map(|lag| (lag, likeness(&mono, lag, step))).max_by(|a, b| a.1.total_cmp(&b.1))
    };
    let (coarse, _) = best(&mut LAGS.step_by(COARSE), COARSE)?;
    let near = coarse.saturating_sub(COARSE).max(*LAGS.start())..=(coarse + COARSE).min(*LAGS.end());
    let (lag, likeness) = best(&mut near.into_iter(), 1)?;
    (likeness >= LEAST_LIKENESS).then_some(lag)
}

/// Correlation of the beginning with what comes so much later, normalised.
fn likeness(mono: &[f32], lag: usize, step: usize) -> f32 {
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for n in (0..OVERLAP).step_by(step) {
        let (a, b) = (mono[n], mono[n + lag]);
        both += a * b;
        first += a * a;
        second += b * b;
    }
    both / (first * second).sqrt().max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f32::consts::TAU;

    fn tone(hz: f32, channels: usize) -> Vec<f32> {
        (0..4800).flat_map(|n| std::iter::repeat_n((n as f32 * hz * TAU / 48_000.0).sin() * 0.5, channels)).collect()
    }

    /// The sharpest corner, which a click would be.
    fn sharpest(samples: &[f32], channels: usize) -> f32 {
        let one: Vec<f32> = samples.iter().step_by(channels).copied().collect();
        one.windows(3).map(|w| (w[0] - 2.0 * w[1] + w[2]).abs()).fold(0.0, f32::max)
    }

    #[track_caller]
    fn check(hz: f32, channels: usize) {
        for (change, sign) in [(shorten as fn(&mut Vec<f32>, usize) -> usize, -1), (lengthen, 1)] {
            let before = tone(hz, channels);
            let mut after = before.clone();
            let lag = change(&mut after, channels) as i64;
            assert!(lag > 0, "{hz} Hz");
            assert_eq!(after.len() as i64, before.len() as i64 + sign * lag * channels as i64, "{hz} Hz");
            assert!(sharpest(&after, channels) < 1.3 * sharpest(&before, channels) + 1e-4, "{hz} Hz: a click");
            assert_eq!(after[after.len() - 100..], before[before.len() - 100..], "the rest is as it was");
        }
    }

    #[test]
    fn a_tone_gets_shorter_and_longer_without_a_click() {
        for hz in [80.0, 150.0, 440.0, 1000.0, 3000.0] {
            check(hz, 1);
            check(hz, 2);
        }
    }

    #[test]
    fn noise_stays_as_it_is_and_silence_does_not() {
        let mut random = fastrand::Rng::with_seed(9);
        let mut noise: Vec<f32> = (0..2000).map(|_| random.f32() - 0.5).collect();
        assert_eq!(shorten(&mut noise, 1), 0, "no piece is like another");
        assert_eq!(shorten(&mut vec![0.0; 2000], 1), 720);
        assert_eq!(shorten(&mut vec![0.0; 1000], 2), 0, "too short");
    }
}
