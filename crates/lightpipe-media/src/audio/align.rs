//! Brings sound of a device's own clock onto the media clock, at 48 kHz.
//!
//! A sound card's crystal is some ten ppm off ours: after an hour that is a third of a second between lips and voice. The aligner
//! compares the capture times that blocks come with to the ones that their sample count says, and resamples by so little more
//! or less that both stay together. Nothing is cut out or repeated, so there is nothing to hear.

use std::time::Duration;

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{
    Adjustable, Async, FixedAsync, Resampler, SincInterpolationParameters, SincInterpolationType, WindowFunction,
};

use super::{AudioBlock, SAMPLE_RATE_HZ};
use crate::time::MediaTime;

/// Largest relative correction, which is also what a device's clock may be off. 0.5 % is a twelfth of a semitone.
pub const MAX_DRIFT: f64 = 0.005;

/// A block this far from its place does not belong to what came before: the aligner begins again there.
const JUMP: Duration = Duration::from_millis(100);

/// Input of one resampling step: 2.5 ms, which is what the aligner adds to the age of sound, beside the filter's 1.3 ms.
const STEPS_PER_SECOND: u32 = 400;

/// Taps of the filter.
const TAPS: usize = 128;

/// Strength of the correction: 1 ms off is 0.2 ‰ faster or slower, gone in some five seconds. Stronger makes the jitter of capture
/// times audible as vibrato, weaker takes longer after the start.
const PROPORTIONAL: f64 = 0.2;

/// The same for what stays: a constant drift is followed without a remaining offset. A quarter of the square of the above is
/// the fastest that does not swing.
const INTEGRAL: f64 = PROPORTIONAL * PROPORTIONAL / 4.0;

/// How long single capture times are averaged, seconds.
const SMOOTHING: f64 = 0.5;

/// Rates that a device may have, samples per second.
const RATES: std::ops::RangeInclusive<u32> = 8_000..=192_000;

/// Resamples the blocks of one device. Its output follows itself exactly, at 48 kHz of the media clock, until the input jumps.
#[derive(Debug, Default)]
pub struct Aligner {
    current: Option<Current>,
    jumps: u64,
    refused: u64,
}

/// One uninterrupted stretch of sound.
struct Current {
    rate_hz: u32,
    channels: usize,
    resampler: Async<f32>,
    /// Input that fills no step yet, interleaved.
    pending: Vec<f32>,
    output: Vec<f32>,
    /// Time of the first sample put out, in seconds of media time.
    start: f64,
    /// Samples of one channel put out.
    produced: u64,
    /// Mean distance of capture times from their place, seconds.
    error: f64,
    /// Correction for the drift that stays.
    drift: f64,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("rate_hz", &self.rate_hz).field("drift", &self.drift).finish_non_exhaustive()
    }
}

impl Aligner {
    /// An aligner that has heard nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a block of any length and gives what can be given now. A block that cannot be (no channels, a rate of no device) is
    /// left out and counted.
    pub fn push(&mut self, block: &AudioBlock) -> Option<AudioBlock> {
        if block.is_empty() || block.channels > 8 || !RATES.contains(&block.rate_hz) {
            self.refused += 1;
            return None;
        }
        let same = |c: &Current| c.rate_hz == block.rate_hz && c.channels == block.channels;
        if self.current.as_ref().is_some_and(|c| !same(c) || c.distance(block).abs() > JUMP.as_secs_f64()) {
            self.jumps += 1;
            self.current = None;
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => none.insert(Current::new(block)?),
        };
        current.follow(block);
        current.resample(block)
    }

    /// How much faster the device's clock runs than ours, in ppm; zero while nothing is known.
    pub fn drift_ppm(&self) -> f64 {
        // The correction stretches what a fast clock counted too much of.
        self.current.as_ref().map_or(0.0, |c| -c.drift * 1e6)
    }

    /// Times that it began again because sound was missing or came twice, and blocks that it could not take.
    pub const fn faults(&self) -> (u64, u64) {
        (self.jumps, self.refused)
    }
}

impl Current {
    fn new(block: &AudioBlock) -> Option<Self> {
        let ratio = f64::from(SAMPLE_RATE_HZ) / f64::from(block.rate_hz);
        let parameters = SincInterpolationParameters {
            sinc_len: TAPS,
            f_cutoff: None,
            oversampling_factor: 128,
            interpolation: SincInterpolationType::Linear,
            window: WindowFunction::BlackmanHarris2,
        };
        let step = (block.rate_hz / STEPS_PER_SECOND) as usize;
        let resampler =
            Async::new_sinc(ratio, 1.0 + 2.0 * MAX_DRIFT, &parameters, step, block.channels, FixedAsync::Input).ok()?;
        let delay = resampler.output_delay() as f64 / f64::from(SAMPLE_RATE_HZ);
        Some(Self {
            rate_hz: block.rate_hz,
            channels: block.channels,
            output: vec![0.0; resampler.output_frames_max() * block.channels],
            resampler,
            pending: Vec::new(),
            start: seconds(block.captured) - delay,
            produced: 0,
            error: 0.0,
            drift: 0.0,
        })
    }

    /// How much later the block was captured than its place in the count says, seconds.
    fn distance(&self, block: &AudioBlock) -> f64 {
        let delay = self.resampler.output_delay() as f64 / f64::from(SAMPLE_RATE_HZ);
        let waiting = (self.pending.len() / self.channels) as f64 / f64::from(self.rate_hz);
        let place = self.start + delay + self.produced as f64 / f64::from(SAMPLE_RATE_HZ) + waiting;
        seconds(block.captured) - place
    }

    /// Turns the ratio towards the block's capture time.
    fn follow(&mut self, block: &AudioBlock) {
        let span = block.len() as f64 / f64::from(block.rate_hz);
        self.error += (self.distance(block) - self.error) * (span / SMOOTHING).min(1.0);
        self.drift = (self.drift + INTEGRAL * self.error * span).clamp(-MAX_DRIFT, MAX_DRIFT);
        let correction = (self.drift + PROPORTIONAL * self.error).clamp(-MAX_DRIFT, MAX_DRIFT);
        // In range by the clamp; a refusal would leave the ratio as it was.
        let _ = self.resampler.set_resample_ratio_relative(1.0 + correction, true);
    }

    fn resample(&mut self, block: &AudioBlock) -> Option<AudioBlock> {
        self.pending.extend_from_slice(&block.samples[..block.len() * block.channels]);
        let captured = self.start + self.produced as f64 / f64::from(SAMPLE_RATE_HZ);
        let mut samples = Vec::new();
        let mut taken = 0;
        loop {
            let step = self.resampler.input_frames_next() * self.channels;
            if self.pending.len() - taken < step {
                break;
            }
            let room = self.output.len() / self.channels;
            let input = InterleavedSlice::new(&self.pending[taken..taken + step], self.channels, step / self.channels);
            let output = InterleavedSlice::new_mut(&mut self.output, self.channels, room);
            let (Ok(input), Ok(mut output)) = (input, output) else { break };
            let Ok((_, made)) = self.resampler.process_into_buffer(&input, &mut output, None) else { break };
            samples.extend_from_slice(&self.output[..made * self.channels]);
            self.produced += made as u64;
            taken += step;
        }
        self.pending.drain(..taken);
        (!samples.is_empty()).then(|| AudioBlock {
            captured: MediaTime::from_micros((captured * 1e6).round() as i64),
            rate_hz: SAMPLE_RATE_HZ,
            channels: self.channels,
            samples,
        })
    }
}

/// Exact to a tenth of a microsecond for thirty years.
fn seconds(time: MediaTime) -> f64 {
    time.as_micros() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    /// A device whose clock is `ppm` fast, in blocks of 10 ms with capture times that jitter by up to `jitter_us`. It hears a tone
    /// of `hz` of real time.
    struct Device {
        rate_hz: u32,
        ppm: f64,
        jitter_us: i64,
        hz: f64,
        taken: u64,
        random: fastrand::Rng,
    }

    impl Device {
        fn new(rate_hz: u32, ppm: f64, jitter_us: i64, hz: f64) -> Self {
            Self { rate_hz, ppm, jitter_us, hz, taken: 0, random: fastrand::Rng::with_seed(3) }
        }

        fn real(&self, sample: u64) -> f64 {
            1.0 + sample as f64 / (f64::from(self.rate_hz) * (1.0 + self.ppm / 1e6))
        }

        fn block(&mut self) -> AudioBlock {
            let len = u64::from(self.rate_hz / 100);
            let samples = (self.taken..self.taken + len).map(|n| (self.real(n) * self.hz * TAU).sin() as f32).collect();
            let jitter = if self.jitter_us == 0 { 0 } else { self.random.i64(-self.jitter_us..=self.jitter_us) };
            let captured = MediaTime::from_micros((self.real(self.taken) * 1e6) as i64 + jitter);
            self.taken += len;
            AudioBlock { captured, rate_hz: self.rate_hz, channels: 1, samples }
        }
    }

    /// How far the output is from where the tone really was, from the phase of its last tenth of a second, in seconds.
    fn offset(output: &[AudioBlock], hz: f64) -> f64 {
        let (mut sine, mut cosine) = (0.0, 0.0);
        for block in output.iter().rev().take(10) {
            for (n, sample) in block.samples.iter().enumerate() {
                let at = seconds(block.captured) + n as f64 / f64::from(SAMPLE_RATE_HZ);
                sine += f64::from(*sample) * (at * hz * TAU).sin();
                cosine += f64::from(*sample) * (at * hz * TAU).cos();
            }
        }
        cosine.atan2(sine) / TAU / hz
    }

    #[track_caller]
    fn check(rate_hz: u32, ppm: f64, jitter_us: i64, minutes: u64) {
        // One turn of the phase is 10 ms: enough for what may be off.
        let hz = 100.0;
        let mut device = Device::new(rate_hz, ppm, jitter_us, hz);
        let mut aligner = Aligner::new();
        let output: Vec<AudioBlock> = (0..minutes * 6000).filter_map(|_| aligner.push(&device.block())).collect();
        for pair in output.windows(2) {
            let end = seconds(pair[0].captured) + pair[0].len() as f64 / f64::from(SAMPLE_RATE_HZ);
            assert!((seconds(pair[1].captured) - end).abs() < 2e-6, "blocks follow each other");
        }
        // A click is a corner: the tone's own second difference is (2π·100/48000)².
        let samples: Vec<f32> = output.iter().skip(2).flat_map(|b| b.samples.iter().copied()).collect();
        let sharpest = samples.windows(3).map(|w| (w[0] - 2.0 * w[1] + w[2]).abs()).fold(0.0, f32::max);
        assert!(sharpest < 3.0e-4, "{rate_hz} Hz, {ppm} ppm: a corner of {sharpest}");
        let off = offset(&output, hz);
        assert!(off.abs() < 0.0005, "{rate_hz} Hz, {ppm} ppm, ±{jitter_us} µs: {:.3} ms off", off * 1e3);
        assert!((aligner.drift_ppm() - ppm).abs() < 30.0, "{ppm} ppm was seen as {}", aligner.drift_ppm());
        assert_eq!(aligner.faults(), (0, 0));
    }

    #[test]
    fn a_drifting_device_stays_on_the_media_clock_without_clicks() {
        check(48_000, 0.0, 0, 1);
        check(48_000, 100.0, 0, 3);
        check(48_000, -100.0, 2000, 3);
        check(44_100, 100.0, 2000, 3);
        check(16_000, -50.0, 500, 3);
    }

    #[test]
    fn without_correction_the_drift_would_be_seen() {
        // The measurement above must be able to fail: the same device, only counted.
        let mut device = Device::new(48_000, 100.0, 0, 100.0);
        let first = device.block().captured;
        let output: Vec<AudioBlock> = (1..3000u64)
            .map(|n| AudioBlock { captured: first + Duration::from_millis(10 * n), ..device.block() })
            .collect();
        assert!(offset(&output, 100.0).abs() > 0.0025);
    }

    #[test]
    fn a_hole_begins_a_new_stretch_at_its_own_time() {
        let mut device = Device::new(48_000, 0.0, 0, 440.0);
        let mut aligner = Aligner::new();
        for _ in 0..100 {
            aligner.push(&device.block());
        }
        device.taken += 48_000;
        let after = device.block();
        let output = aligner.push(&after).expect("sound");
        assert_eq!(aligner.faults(), (1, 0));
        assert!((seconds(output.captured) - seconds(after.captured)).abs() < 0.002);
    }

    #[test]
    fn what_no_device_sends_is_left_out() {
        let mut aligner = Aligner::new();
        let block = |rate_hz, channels, len| AudioBlock {
            captured: MediaTime::ZERO,
            rate_hz,
            channels,
            samples: vec![f32::NAN; len],
        };
        for (rate, channels, len) in [(0, 1, 10), (48_000, 0, 10), (48_000, 9, 90), (1_000_000, 1, 10), (48_000, 2, 1)]
        {
            assert!(aligner.push(&block(rate, channels, len)).is_none());
        }
        assert_eq!(aligner.faults(), (0, 5));
        aligner.push(&block(48_000, 1, 4800)); // not a number: no panic
    }
}
