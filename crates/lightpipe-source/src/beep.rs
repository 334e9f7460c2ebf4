//! The sound of `pattern`: a beep that begins exactly when the picture flashes.
//!
//! A tone of 1 kHz in the first 100 ms of each second of Unix time, silence otherwise. Each sample's time comes from the media
//! clock, as the picture's does, so whatever lies between flash and beep at the far end was put there on the way.

use std::f64::consts::TAU;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_media::{AudioBlock, MediaClock, MediaTime};

use crate::pattern::FLASH_MILLIS;
use crate::ticker::sleep_until;
use crate::{AudioSink, SourceHandle};

/// Longest block. A block leaves when its last sample's time has come, like a sound card's.
pub const LONGEST_BLOCK: Duration = Duration::from_millis(10);

/// Pitch of the beep. A whole number of turns fits into a millisecond.
const PITCH_HZ: f64 = 1000.0;

/// Loudness of the beep, -12 dBFS.
const AMPLITUDE: f64 = 0.25;

/// The beep's first and last millisecond swell and fade: without that they click.
const FADE: f64 = 0.001;

/// How often a waiting thread looks whether it should end.
const STOP_LATENCY: Duration = Duration::from_millis(50);

/// Longest gap that is caught up with; after more, blocks go on from now.
const CATCH_UP: Duration = Duration::from_millis(100);

/// How the beep is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// Sound per block, up to [`LONGEST_BLOCK`]. Shorter packets want shorter blocks: two in one block leave together, the first of them late.
    pub block: Duration,
    /// How much faster than the media clock the samples run, parts per million: a sound card of that crystal, to see the
    /// correction. The beeps stay on the whole second, there are only more samples to it. Default 0.
    pub drift_ppm: f64,
}

/// Starts the source.
pub fn start(config: Config, sink: AudioSink) -> std::io::Result<Box<dyn SourceHandle>> {
    let stop = Arc::new(AtomicBool::new(false));
    let thread = thread::Builder::new().name("beep".into()).spawn({
        let stop = Arc::clone(&stop);
        move || run(config, &sink, &stop)
    })?;
    Ok(Box::new(Beep { stop, thread: Some(thread) }))
}

#[derive(Debug)]
struct Beep {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SourceHandle for Beep {
    fn child_pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for Beep {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by the panic hook.
            _ = thread.join();
        }
    }
}

fn run(config: Config, sink: &AudioSink, stop: &AtomicBool) {
    let ended = || stop.load(Relaxed) || sink.stream.is_closed();
    let rate = f64::from(SAMPLE_RATE_HZ) * (1.0 + config.drift_ppm / 1e6);
    while !ended() {
        if !sink.stream.wait_wanted(STOP_LATENCY) {
            continue;
        }
        // Blocks lie on a grid of media time, so that a frame of 20 ms begins where a second does.
        let now = sink.clock.at(Instant::now()).as_micros();
        let grid = config.block.min(LONGEST_BLOCK).as_micros().max(1000) as i64;
        let start = MediaTime::from_micros(now.div_euclid(grid) * grid);
        let mut taken = 0;
        while sink.stream.outlets() > 0 {
            let block = block(start, rate, taken, config.block, &sink.clock);
            taken += block.samples.len() as u64;
            let due = sink.clock.instant(at(start, rate, taken));
            if !sleep_until(due, ended) {
                return;
            }
            sink.blocks.push(block);
            if due.elapsed() > CATCH_UP {
                break;
            }
        }
    }
}

/// Capture time of a sample.
fn at(start: MediaTime, rate: f64, sample: u64) -> MediaTime {
    start + Duration::from_micros((sample as f64 * 1e6 / rate).round() as u64)
}

/// The block from a sample on.
fn block(start: MediaTime, rate: f64, first: u64, length: Duration, clock: &MediaClock) -> AudioBlock {
    let len = u64::from(SAMPLE_RATE_HZ) * length.min(LONGEST_BLOCK).as_millis().max(1) as u64 / 1000;
    let origin = (clock.unix_micros(start).rem_euclid(1_000_000)) as f64 / 1e6;
    let samples = (first..first + len).map(|n| sample((origin + n as f64 / rate).rem_euclid(1.0))).collect();
    AudioBlock { captured: at(start, rate, first), rate_hz: SAMPLE_RATE_HZ, channels: 1, samples }
}

/// The sound at a time within a second.
fn sample(second: f64) -> f32 {
    let length = f64::from(FLASH_MILLIS) / 1000.0;
    if second >= length {
        return 0.0;
    }
    let fade = (second.min(length - second) / FADE).min(1.0);
    (AMPLITUDE * fade * (second * PITCH_HZ * TAU).sin()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ppm: f64) {
        // Media time 0 is 42 ms after a whole second: the next one begins at 958 ms.
        let clock = MediaClock::new(Instant::now(), Duration::from_millis(1_700_000_000_042));
        let rate = f64::from(SAMPLE_RATE_HZ) * (1.0 + ppm / 1e6);
        let mut onsets = Vec::new();
        let (mut quiet, mut first) = (0, 0);
        while onsets.len() < 60 {
            let block = block(MediaTime::ZERO, rate, first, LONGEST_BLOCK, &clock);
            for (n, sample) in block.samples.iter().enumerate() {
                quiet = if sample.abs() > 0.001 { 0 } else { quiet + 1 };
                if quiet == 0
                    && n + 1 < block.samples.len()
                    && onsets.last().is_none_or(|last| first + n as u64 - last > 30_000)
                {
                    onsets.push(first + n as u64);
                }
            }
            first += block.samples.len() as u64;
        }
        for (n, onset) in onsets.iter().skip(1).enumerate() {
            let seconds = at(MediaTime::ZERO, rate, *onset).as_micros() as f64 / 1e6;
            assert!((seconds - (n as f64 + 0.958)).abs() < 0.0002, "{ppm} ppm: beep {n} at {seconds} s");
        }
    }

    #[test]
    fn beeps_begin_with_the_second_whatever_the_sample_clock() {
        check(0.0);
        check(100.0);
        check(-100.0);
    }
}
