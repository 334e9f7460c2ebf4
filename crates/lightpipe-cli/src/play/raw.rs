//! Decoded pictures or sound on standard output.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lightpipe_codec::opus::OpusDecoder;
use lightpipe_codec::{VideoDecoder, decoder_for};
use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_media::queue::{Pop, Queue};
use lightpipe_media::{AccessUnit, AudioPacket, MediaTime, Outlet, Size, Stream, Subscription};
use tokio::sync::oneshot;

use crate::output;

/// Pictures that may wait for the decoder and for who reads the pipe; when full, new ones are dropped until a keyframe.
const MAX_PICTURES: usize = 32;

/// Frames of sound that may wait; when full, the oldest is dropped.
const MAX_SOUND: usize = 64;

/// Channels of the PCM.
pub(super) const CHANNELS: usize = 2;

/// Missing sound up to this is made up by the decoder, the rest is silence.
const CONCEALED: Duration = Duration::from_millis(60);

/// A longer hole is another recording, not a loss: it is not filled.
const LONGEST_HOLE: Duration = Duration::from_secs(5);

/// What goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// I420 pictures, one after the other.
    Pictures,
    /// Signed 16 bit little-endian samples, 48 kHz, two channels interleaved.
    Sound,
}

/// Takes a stream off the network and gives it to the decoding thread.
struct Taker {
    medium: Medium,
    pictures: Queue<Arc<AccessUnit>>,
    sound: Queue<Arc<AudioPacket>>,
    waiting: Mutex<Waiting>,
}

/// How many pictures are in the queue, and whether one was dropped since the last keyframe.
#[derive(Default)]
struct Waiting {
    count: usize,
    broken: bool,
}

impl Outlet for Taker {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        if self.medium != Medium::Pictures {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.count >= MAX_PICTURES {
            waiting.broken = true;
        } else if unit.keyframe {
            waiting.broken = false;
        }
        if !waiting.broken {
            waiting.count += 1;
            self.pictures.push(Arc::clone(unit));
        }
    }

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        if self.medium == Medium::Sound {
            self.sound.push(Arc::clone(packet));
        }
    }
}

/// Decodes a stream to standard output until it is dropped, or until nobody reads any more.
pub(crate) struct RawOutput {
    taker: Arc<Taker>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RawOutput {
    /// Starts it. The receiver hears of the end: how standard output failed, if that was why.
    pub(crate) fn start(
        stream: &Arc<Stream>,
        medium: Medium,
    ) -> anyhow::Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let taker = Arc::new(Taker {
            medium,
            pictures: Queue::new(MAX_PICTURES),
            sound: Queue::new(MAX_SOUND),
            waiting: Mutex::default(),
        });
        let (ended, end) = oneshot::channel();
        let subscription = stream.subscribe(taker.clone());
        let worker = Worker { taker: Arc::clone(&taker), subscription, stream: Arc::clone(stream) };
        let thread = std::thread::Builder::new().name("decode".into()).spawn(move || {
            let _ = ended.send(match medium {
                Medium::Pictures => worker.pictures(),
                Medium::Sound => worker.sound(),
            });
        })?;
        Ok((Self { taker, thread: Some(thread) }, end))
    }
}

impl Drop for RawOutput {
    fn drop(&mut self) {
        self.taker.pictures.close();
        self.taker.sound.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    taker: Arc<Taker>,
    subscription: Subscription,
    stream: Arc<Stream>,
}

const FOREVER: Duration = Duration::from_secs(3600);

impl Worker {
    fn pictures(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mut decoder: Option<Box<dyn VideoDecoder>> = None;
        let mut size: Option<Size> = None;
        loop {
            let unit = match self.taker.pictures.pop(FOREVER) {
                Pop::Item(unit) => unit,
                Pop::TimedOut => continue,
                Pop::Closed => return Ok(()),
            };
            let broken = {
                let mut waiting = self.taker.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.count -= 1;
                waiting.broken
            };
            if broken {
                self.subscription.request_keyframe();
            }
            let decoder = match &mut decoder {
                Some(decoder) => decoder,
                none => none.insert(decoder_for(self.stream.codec()).map_err(io::Error::other)?),
            };
            let frame = match decoder.decode(&unit) {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(%error, "decoding");
                    self.subscription.request_keyframe();
                    continue;
                }
            };
            if size.replace(frame.size()) != Some(frame.size()) {
                output::note(format_args!("pictures: I420, {}", frame.size()));
            }
            for plane in 0..3 {
                out.write_all(frame.plane(plane))?;
            }
            out.flush()?;
        }
    }

    fn sound(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mut decoder = OpusDecoder::new(CHANNELS).map_err(io::Error::other)?;
        let mut timeline = Timeline::default();
        output::note(format_args!("sound: s16le, {SAMPLE_RATE_HZ} Hz, {CHANNELS} channels"));
        loop {
            let packet = match self.taker.sound.pop(FOREVER) {
                Pop::Item(packet) => packet,
                Pop::TimedOut => continue,
                Pop::Closed => return Ok(()),
            };
            let hole = timeline.hole(packet.captured, packet.duration);
            if !hole.is_zero() {
                let concealed = decoder.conceal(samples(hole.min(CONCEALED))).unwrap_or_default();
                let silence = (samples(hole) * CHANNELS).saturating_sub(concealed.len());
                write_samples(&mut out, &concealed)?;
                write_samples(&mut out, &vec![0.0; silence])?;
            }
            match decoder.decode(&packet.data) {
                Ok(samples) => write_samples(&mut out, &samples)?,
                Err(error) => tracing::debug!(%error, "decoding"),
            }
            out.flush()?;
        }
    }
}

/// Samples of one channel.
fn samples(span: Duration) -> usize {
    (span.as_micros() * u128::from(SAMPLE_RATE_HZ) / 1_000_000) as usize
}

pub(super) fn write_samples(out: &mut impl Write, samples: &[f32]) -> io::Result<()> {
    let bytes: Vec<u8> = samples.iter().flat_map(|s| ((s.clamp(-1.0, 1.0) * 32_767.0) as i16).to_le_bytes()).collect();
    out.write_all(&bytes)
}

/// Where sound is missing. Capture times wander a little with the sender's reports; only a hole of half a packet is one.
#[derive(Debug, Default)]
struct Timeline {
    end: Option<MediaTime>,
}

impl Timeline {
    /// What is missing before a packet.
    fn hole(&mut self, captured: MediaTime, duration: Duration) -> Duration {
        let end = self.end.replace(captured + duration);
        let hole = end.filter(|end| captured > *end).map_or(Duration::ZERO, |end| captured.since(end));
        if hole >= duration / 2 && hole <= LONGEST_HOLE {
            return hole;
        }
        // What is no hole goes on where the last packet ended, so that many small steps of one direction add up to one.
        if let Some(end) = end.filter(|_| hole < duration / 2 && hole > Duration::ZERO) {
            self.end = Some(end + duration);
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_and_wandering_clocks_are_not() {
        let mut timeline = Timeline::default();
        let packet = Duration::from_millis(20);
        let mut hole = |ms: f64| timeline.hole(MediaTime::from_micros((ms * 1000.0) as i64), packet).as_micros();
        assert_eq!([hole(1000.0), hole(1020.0), hole(1040.0)], [0, 0, 0]);
        assert_eq!(hole(1100.0), 40_000, "two packets are missing");
        assert_eq!([hole(1121.0), hole(1142.0), hole(1163.0)], [0, 0, 0], "a millisecond late, and again");
        let late: Vec<u128> = (0..20).map(|n| hole(1184.0 + 21.0 * f64::from(n))).collect();
        assert_eq!(late.iter().filter(|hole| **hole > 0).count(), 2, "which adds up: {late:?}");
        assert_eq!(hole(60_000.0), 0, "after a minute it is another recording");
    }
}
