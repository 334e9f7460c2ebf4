//! The jitter buffer of one peer's sound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Adjustable, Async, FixedAsync, PolynomialDegree, Resampler};

use super::ages::Ages;
use super::drift::DriftEstimator;
use super::stretch;
use super::{BLOCK_SAMPLES, PlayoutConfig, PlayoutState, SoundDecoder, SoundFigures};
use crate::audio::{AudioPacket, RtpOrigin, SAMPLE_RATE_HZ, span};
use crate::time::MediaTime;

/// Packets that may wait; when there is no room, the oldest is dropped. 200 ms of the shortest, four seconds of ordinary ones.
const MOST_WAITING: usize = 200;

/// The buffer holds what all packets but this share of the last ten seconds need.
const IN_TIME: f64 = 0.995;

/// Packets after which the measured jitter is believed; until then the delay is [`PlayoutConfig::initial`].
const TRUSTED: usize = 50;

/// A block of output begins to be made with the packet before, and needs this much beside: the resampler's own piece, and what a
/// machine's timers are late by.
const MARGIN: Duration = Duration::from_millis(2);

/// Largest correction of the speed: a sixth of a semitone.
pub(super) const MOST_CORRECTION: f64 = 0.01;

/// By how much the correction changes from one block to the next: from nothing to all of it in 100 ms.
const EASING: f64 = MOST_CORRECTION / 10.0;

/// Strength of the correction: 10 ms off is 1 % faster or slower.
const PROPORTIONAL: f64 = 1.0;

/// Weight of one block's delay in the smoothed one: some 200 ms.
const SMOOTHING: f64 = 0.05;

/// Further off than this the speed alone takes too long: pieces of sound are taken out or played twice.
const STRETCH_FROM: f64 = 0.015;

/// Blocks between two such pieces.
const STRETCH_PAUSE: u32 = 6;

/// Further off than this it is no matter of speed: who pulls has paused.
const FAR_OFF: f64 = 0.5;

/// Missing sound is made up for so long, then there is silence until something comes: the sender has paused, or the network is gone.
const MOST_EXPANDED: u64 = SAMPLE_RATE_HZ as u64 / 10;

/// Packets nearer than this to their place follow each other: times that come from no RTP clock are rounded.
const TOLERANCE: u64 = 120;

/// A piece that is made up at once: 20 ms at most, in steps that Opus has.
const LONGEST_PIECE: u64 = 960;
const STEP: u64 = 120;

/// A sender's clock that jumps back by more than this begins anew; packets are not overtaken by a whole second.
const JUMP_BACK: u64 = SAMPLE_RATE_HZ as u64;

/// The same forward, against the time that passed.
const JUMP_AHEAD: Duration = Duration::from_secs(5);

/// How samples between samples are found: by the polynomial through the six around. With the speed so near to one there is nothing to fold, and it
/// takes less of the highest (0.4 dB at 12 kHz, 2 dB at 16 kHz) than a sinc of 32 taps (2 and 15 dB), for half the CPU and a fifth of the delay.
const BETWEEN: PolynomialDegree = PolynomialDegree::Quintic;

/// Sound of one peer.
pub(super) struct SoundBuffer<D> {
    config: PlayoutConfig,
    decoder: D,
    waiting: BTreeMap<u64, Waiting>,
    ssrc: Option<u32>,
    newest: Option<Newest>,
    /// RTP time of what is decoded next.
    next: Option<u64>,
    last_seq_no: Option<u64>,
    /// Decoded and not yet played, interleaved.
    pcm: Vec<f32>,
    resampler: Option<Async<f32>>,
    output: Vec<f32>,
    state: PlayoutState,
    /// Made up since the last packet without knowing what was missing, samples.
    expanded: u64,
    /// The same with the silence after it.
    unexplained: u64,
    ages: Ages,
    /// At least this much delay, for pictures or other peers.
    floor: Duration,
    target: Duration,
    /// Delay less target, seconds, smoothed.
    error: f64,
    speed: f64,
    /// Sound that waits, seconds, smoothed: it grows by a packet and shrinks by blocks.
    depth: f64,
    stretch_pause: u32,
    drift: DriftEstimator,
    figures: SoundFigures,
}

struct Waiting {
    packet: Arc<AudioPacket>,
    seq_no: Option<u64>,
}

/// The packet with the latest RTP time.
#[derive(Clone, Copy)]
struct Newest {
    rtp: u64,
    captured: MediaTime,
    arrived: MediaTime,
}

impl<D: SoundDecoder> SoundBuffer<D> {
    pub(super) fn new(config: PlayoutConfig, decoder: D) -> Self {
        Self {
            resampler: resampler(config.channels),
            output: vec![0.0; BLOCK_SAMPLES * config.channels],
            target: config.initial,
            config,
            decoder,
            waiting: BTreeMap::new(),
            ssrc: None,
            newest: None,
            next: None,
            last_seq_no: None,
            pcm: Vec::new(),
            state: PlayoutState::Waiting,
            expanded: 0,
            unexplained: 0,
            ages: Ages::default(),
            floor: Duration::ZERO,
            error: 0.0,
            speed: 0.0,
            depth: 0.0,
            stretch_pause: 0,
            drift: DriftEstimator::new(SAMPLE_RATE_HZ),
            figures: SoundFigures::default(),
        }
    }

    pub(super) fn push(&mut self, packet: &Arc<AudioPacket>) {
        // Sound of our own has no RTP clock: its capture times are exact.
        let ticks = || u64::try_from(packet.captured.as_micros()).unwrap_or(0) * u64::from(SAMPLE_RATE_HZ) / 1_000_000;
        let (rtp, seq_no, ssrc) = match packet.origin {
            Some(RtpOrigin { ssrc, seq_no, rtp_time, .. }) => (rtp_time, Some(seq_no), Some(ssrc)),
            None => (ticks(), None, None),
        };
        let arrived = packet.encoded;
        if std::mem::replace(&mut self.ssrc, ssrc) != ssrc || self.jumps(rtp, arrived) {
            self.restart();
        }
        self.figures.packets += 1;
        self.drift.push(rtp, arrived);
        self.ages.push(packet.captured, arrived);
        if self.newest.is_none_or(|newest| rtp >= newest.rtp) {
            self.newest = Some(Newest { rtp, captured: packet.captured, arrived });
        }
        if self.next.is_some_and(|next| rtp + TOLERANCE < next) {
            self.figures.late_packets += 1;
            return;
        }
        if self.waiting.insert(rtp, Waiting { packet: Arc::clone(packet), seq_no }).is_some() {
            self.figures.duplicate_packets += 1;
        }
        if self.waiting.len() > MOST_WAITING {
            self.waiting.pop_first();
            self.figures.dropped_packets += 1;
        }
    }

    /// Whether a packet is of another stretch of the sender's clock.
    fn jumps(&self, rtp: u64, arrived: MediaTime) -> bool {
        self.newest.is_some_and(|newest| {
            let passed = arrived.since(newest.arrived) + JUMP_AHEAD;
            rtp.saturating_add(JUMP_BACK) < newest.rtp || span(rtp.saturating_sub(newest.rtp)) > passed
        })
    }

    /// Forgets a sender that is another one now.
    fn restart(&mut self) {
        if self.newest.take().is_some() {
            self.figures.restarts += 1;
        }
        self.waiting.clear();
        self.ages.clear();
        self.drift.restart();
        self.decoder.reset();
        (self.next, self.last_seq_no) = (None, None);
        self.pause();
    }

    /// Nothing more to play until something comes.
    fn pause(&mut self) {
        self.state = PlayoutState::Waiting;
        self.pcm.clear();
        self.expanded = 0;
        (self.error, self.speed) = (0.0, 0.0);
        if let Some(resampler) = &mut self.resampler {
            resampler.reset();
        }
    }

    /// One block, always whole.
    pub(super) fn pull(&mut self, now: MediaTime, out: &mut Vec<f32>) {
        out.clear();
        self.set_target();
        if self.state == PlayoutState::Waiting && !self.begin(now) {
            if self.next.is_some() {
                self.unexplained += BLOCK_SAMPLES as u64;
                self.figures.silent_samples += BLOCK_SAMPLES as u64;
            }
            out.resize(BLOCK_SAMPLES * self.config.channels, 0.0);
            return;
        }
        self.depth += (self.held_now().as_secs_f64() - self.depth) * SMOOTHING;
        self.steer(now);
        let needed = self.resampler.as_ref().map_or(BLOCK_SAMPLES, Resampler::input_frames_next);
        self.state = PlayoutState::Playing;
        self.fill(needed);
        self.play(needed, out);
        self.figures.played_samples += BLOCK_SAMPLES as u64;
        if self.expanded >= MOST_EXPANDED {
            self.pause();
        }
    }

    fn set_target(&mut self) {
        // A packet is needed when the block begins in which its first sample is.
        let jitter = self.ages.quantile(IN_TIME).unwrap_or_default() + super::BLOCK + MARGIN;
        let known = self.ages.len() >= TRUSTED;
        let own = if known { jitter } else { jitter.max(self.config.initial) };
        self.figures.needed = own;
        self.target = own.max(self.floor).clamp(self.config.least, self.config.most);
    }

    /// Whether the first packet's time has come. After a pause several may be due; all but the last of these are too old.
    fn begin(&mut self, now: MediaTime) -> bool {
        let due = |captured: MediaTime| captured + self.target <= now;
        while self.waiting.len() > 1 && self.waiting.values().nth(1).is_some_and(|second| due(second.packet.captured)) {
            self.waiting.pop_first();
            self.figures.dropped_packets += 1;
        }
        let Some((rtp, first)) = self.waiting.first_key_value() else { return false };
        if !due(first.packet.captured) {
            return false;
        }
        let (rtp, seq_no) = (*rtp, first.seq_no);
        self.explain(rtp, seq_no);
        self.next = Some(rtp);
        self.error = self.delay(now).map_or(0.0, |delay| delay - self.target.as_secs_f64());
        self.depth = self.held_now().as_secs_f64();
        true
    }

    /// Delay of what would be played now, seconds; none while nothing is.
    fn delay(&self, now: MediaTime) -> Option<f64> {
        let (newest, next) = (self.newest?, self.next?);
        let held = self.pcm.len() / self.config.channels + self.resampler.as_ref().map_or(0, Resampler::output_delay);
        let behind = i128::from(newest.rtp) - i128::from(next) + held as i128;
        let captured = newest.captured.as_micros() as f64 / 1e6 - behind as f64 / f64::from(SAMPLE_RATE_HZ);
        Some(now.as_micros() as f64 / 1e6 - captured)
    }

    /// The smoothed delay of what is played at the last block's beginning; none in a pause.
    pub(super) fn playing_delay(&self) -> Option<Duration> {
        let delay = self.target.as_secs_f64() + self.error;
        (self.state != PlayoutState::Waiting).then(|| Duration::from_secs_f64(delay.max(0.0)))
    }

    /// Turns the speed towards the target.
    fn steer(&mut self, now: MediaTime) {
        let off = self.delay(now).map_or(0.0, |delay| delay - self.target.as_secs_f64());
        if off.abs() > FAR_OFF {
            self.pause();
            if !self.begin(now) {
                return;
            }
        } else {
            self.error += (off - self.error) * SMOOTHING;
        }
        let wanted = (self.error * PROPORTIONAL).clamp(-MOST_CORRECTION, MOST_CORRECTION);
        self.speed += (wanted - self.speed).clamp(-EASING, EASING);
        if let Some(resampler) = &mut self.resampler {
            // In range by the clamp; a refusal would leave the ratio as it was.
            let _ = resampler.set_resample_ratio_relative(1.0 / (1.0 + self.speed), true);
        }
        self.stretch();
    }

    fn stretch(&mut self) {
        self.stretch_pause = self.stretch_pause.saturating_sub(1);
        if self.stretch_pause > 0 || self.error.abs() < STRETCH_FROM {
            return;
        }
        while self.held() < stretch::NEEDED {
            if !self.decode_next() {
                return;
            }
        }
        let channels = self.config.channels;
        let moved = if self.error > 0.0 {
            let gone = stretch::shorten(&mut self.pcm, channels);
            self.figures.removed_samples += gone as u64;
            -(gone as f64)
        } else {
            let more = stretch::lengthen(&mut self.pcm, channels);
            self.figures.inserted_samples += more as u64;
            more as f64
        };
        if moved != 0.0 {
            self.stretch_pause = STRETCH_PAUSE;
            self.error += moved / f64::from(SAMPLE_RATE_HZ);
        }
    }

    fn held(&self) -> usize {
        self.pcm.len() / self.config.channels
    }

    /// Decodes until so many samples of one channel are there, and makes up what is not.
    fn fill(&mut self, needed: usize) {
        while self.held() < needed {
            if !self.decode_next() {
                // Nothing is there: either it was lost or it is late, and the next packet tells which. The delay grows meanwhile.
                let made = self.make_up(BLOCK_SAMPLES as u64);
                self.expanded += made;
                self.unexplained += made;
                self.state = PlayoutState::Concealing;
            }
        }
    }

    /// Decodes the next packet, or makes up a piece of what is missing before it. False if nothing waits.
    fn decode_next(&mut self) -> bool {
        let Some((rtp, first)) = self.waiting.first_key_value() else { return false };
        let (rtp, seq_no) = (*rtp, first.seq_no);
        self.explain(rtp, seq_no);
        let next = self.next.unwrap_or(rtp);
        let gap = rtp.saturating_sub(next);
        if gap > TOLERANCE {
            let packet = Arc::clone(&self.waiting[&rtp].packet);
            self.fill_gap(gap, &packet, seq_no);
            return true;
        }
        let Some(Waiting { packet, .. }) = self.waiting.remove(&rtp) else { return false };
        self.last_seq_no = seq_no;
        let before = self.pcm.len();
        let len = samples(packet.duration);
        if !self.decoder.decode(&packet.data, &mut self.pcm) {
            self.figures.undecodable_packets += 1;
            self.pcm.truncate(before);
            self.figures.concealed_samples += self.make_up(len);
        }
        self.next = Some(rtp + len);
        true
    }

    /// Now it is known what the sound was that was made up: lost, late, or never there.
    fn explain(&mut self, rtp: u64, seq_no: Option<u64>) {
        if self.unexplained > 0 {
            let next = self.next.unwrap_or(rtp);
            let gap = rtp.saturating_sub(next);
            if self.follows(seq_no) && gap > TOLERANCE {
                self.figures.paused_samples += self.unexplained;
            } else {
                self.figures.concealed_samples += self.unexplained;
            }
            // What was made up took the place of what is missing.
            self.next = Some(next + gap.min(self.expanded));
            (self.expanded, self.unexplained) = (0, 0);
        }
    }

    /// Whether nothing was lost before a packet, so far as one can tell.
    fn follows(&self, seq_no: Option<u64>) -> bool {
        matches!((self.last_seq_no, seq_no), (Some(last), Some(this)) if this == last + 1)
    }

    /// A piece of what is missing before a packet.
    fn fill_gap(&mut self, gap: u64, packet: &AudioPacket, seq_no: Option<u64>) {
        let next = self.next.unwrap_or_default();
        // Discontinuous transmission: nothing was lost, there was nothing.
        let paused = self.follows(seq_no);
        let before = self.pcm.len();
        // The copy is of one packet as long as this one.
        let whole = samples(packet.duration);
        let recovers = !paused && gap.abs_diff(whole) <= TOLERANCE;
        let made = if recovers && self.decoder.recover(&packet.data, whole as usize, &mut self.pcm) {
            let made = ((self.pcm.len() - before) / self.config.channels) as u64;
            self.figures.recovered_samples += made;
            made
        } else {
            self.pcm.truncate(before);
            let made = self.make_up(gap.min(LONGEST_PIECE));
            if paused {
                self.figures.paused_samples += made;
            } else {
                self.figures.concealed_samples += made;
                self.state = PlayoutState::Concealing;
            }
            made
        };
        // Less than a step is left: too little to be missed.
        self.next = Some(if gap - made.min(gap) < STEP { next + gap } else { next + made });
    }

    /// Makes up samples of one channel, in steps; answers how many.
    fn make_up(&mut self, wanted: u64) -> u64 {
        let wanted = (wanted.clamp(STEP, LONGEST_PIECE) / STEP * STEP) as usize;
        let end = self.pcm.len() + wanted * self.config.channels;
        self.decoder.conceal(wanted, &mut self.pcm);
        self.pcm.resize(end, 0.0);
        wanted as u64
    }

    /// Resamples what is there into one block.
    fn play(&mut self, needed: usize, out: &mut Vec<f32>) {
        let channels = self.config.channels;
        let taken = needed.min(self.held()) * channels;
        let made = match &mut self.resampler {
            Some(resampler) => {
                let input = InterleavedSlice::new(&self.pcm[..taken], channels, taken / channels);
                let output = InterleavedSlice::new_mut(&mut self.output, channels, BLOCK_SAMPLES);
                match (input, output) {
                    (Ok(input), Ok(mut output)) => {
                        resampler.process_into_buffer(&input, &mut output, None).map_or(0, |(_, made)| made)
                    }
                    _ => 0,
                }
            }
            None => 0,
        };
        out.extend_from_slice(&self.output[..made * channels]);
        out.resize(BLOCK_SAMPLES * channels, 0.0);
        self.pcm.drain(..taken);
    }

    pub(super) fn set_floor(&mut self, floor: Duration) {
        self.floor = floor;
    }

    pub(super) const fn state(&self) -> PlayoutState {
        self.state
    }

    pub(super) const fn target(&self) -> Duration {
        self.target
    }

    /// Sound that waits at this moment.
    fn held_now(&self) -> Duration {
        self.waiting.values().map(|waiting| waiting.packet.duration).sum::<Duration>() + span(self.held() as u64)
    }

    pub(super) fn figures(&self) -> SoundFigures {
        SoundFigures {
            target: self.target,
            delay: self.playing_delay(),
            depth: match self.state {
                PlayoutState::Waiting => self.held_now(),
                _ => Duration::from_secs_f64(self.depth),
            },
            drift: self.drift.drift(),
            correction_ppm: self.speed * 1e6,
            ..self.figures
        }
    }
}

/// Samples of one channel.
fn samples(duration: Duration) -> u64 {
    (duration.as_micros() as u64).saturating_mul(u64::from(SAMPLE_RATE_HZ)) / 1_000_000
}

fn resampler(channels: usize) -> Option<Async<f32>> {
    Async::new_poly(1.0, 1.0 + 2.0 * MOST_CORRECTION, BETWEEN, BLOCK_SAMPLES, channels, FixedAsync::Output).ok()
}
