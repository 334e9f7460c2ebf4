//! Peers that are heard over bad networks: real Opus, the networks of the laboratory, two clocks that are not the same.
//!
//! A beep and a flash belong together at the sender. When the beep leaves the jitter buffer is found in the samples that come out, so that what is
//! measured is what is heard, not what the buffer says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_codec::opus::{OpusDecoder, OpusEncoder};
use lightpipe_codec::{AudioContent, AudioEncoder, AudioEncoderConfig};
use lightpipe_media::audio::{FRAME_SAMPLES, RtpOrigin};
use lightpipe_media::playout::{BLOCK, BLOCK_SAMPLES, Playout, PlayoutConfig, PlayoutFigures};
use lightpipe_media::{AccessUnit, ArrivalClock, AudioPacket, MediaTime, Size, Stages, TrackClock, VideoCodec};
use lightpipe_netlab::link::{GilbertElliott, Link, LinkConfig, Packet};

/// Time of one picture, microseconds: 30 a second.
const PICTURE: i64 = 33_333;

/// How old a picture is when it leaves: it was rendered and encoded, and is more than one packet.
const PICTURE_AGE: i64 = 12_000;

const SECOND: i64 = 1_000_000;

/// What travels, with what its RTP header says.
#[derive(Debug, Clone)]
enum Media {
    Sound { rtp: u64, seq_no: u64, ssrc: u32, data: Arc<[u8]> },
    Picture { rtp: u64, number: i64, bytes: usize },
    Report { sound: (u64, i64), picture: (u64, i64) },
}

impl Packet for Media {
    fn wire_len(&self) -> usize {
        match self {
            Self::Sound { data, .. } => data.len() + 60,
            Self::Picture { bytes, .. } => *bytes,
            Self::Report { .. } => 80,
        }
    }

    fn duplicate(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// One peer, from its microphone to our ear. All times are ours, microseconds; the sender counts by its own clock.
struct Call {
    start: Instant,
    link: Link<Media>,
    encoder: OpusEncoder,
    /// How much faster its clock is.
    fast: f64,
    /// Its RTP clocks' beginnings, and what was added to them since.
    base: [u64; 2],
    ssrc: u32,
    heard_ssrc: u32,
    seq_no: u64,
    /// Sends no sound while nothing is to be heard but now and then.
    dtx: bool,
    next_sound: i64,
    next_picture: i64,
    next_report: i64,
    wall: ArrivalClock,
    clocks: [TrackClock; 2],
    playout: Playout<OpusDecoder>,
    next_pull: i64,
    now: i64,
    quiet: usize,
    /// When the beep and the flash of each of the sender's seconds came out.
    beeps: BTreeMap<i64, i64>,
    flashes: BTreeMap<i64, i64>,
    /// Sound in the buffer at each second, and the figures of then.
    depths: Vec<f64>,
    targets: Vec<f64>,
}

impl Call {
    fn new(seed: u64, ppm: f64, network: LinkConfig) -> Self {
        let speech = AudioEncoderConfig {
            channels: 1,
            bitrate_bps: 32_000,
            content: AudioContent::Speech,
            complexity: 3,
            ..AudioEncoderConfig::default()
        };
        let mut encoder = OpusEncoder::new(speech).unwrap();
        encoder.set_loss(0.1).unwrap();
        Self {
            start: Instant::now(),
            link: Link::new(seed, network),
            encoder,
            fast: 1.0 + ppm / 1e6,
            // The first wraps within the run, as 32 bits.
            base: [u64::from(u32::MAX) - 48_000 * 30, 9_000_000],
            ssrc: 1,
            heard_ssrc: 1,
            seq_no: 65_000,
            dtx: false,
            next_sound: 0,
            next_picture: 0,
            next_report: 500_000,
            wall: ArrivalClock::default(),
            clocks: [TrackClock::new(48_000), TrackClock::new(90_000)],
            playout: Playout::new(
                PlayoutConfig { channels: 1, ..PlayoutConfig::default() },
                OpusDecoder::new(1).unwrap(),
            ),
            next_pull: 5_000,
            now: 0,
            quiet: 0,
            beeps: BTreeMap::new(),
            flashes: BTreeMap::new(),
            depths: Vec::new(),
            targets: Vec::new(),
        }
    }

    fn at(&self, micros: i64) -> Instant {
        self.start + Duration::from_micros(micros as u64)
    }

    /// Ticks of the sender's clock at a time of ours.
    fn ticks(&self, track: usize, at: i64) -> u64 {
        let rate = [48_000.0, 90_000.0][track];
        self.base[track] + ((at + SECOND) as f64 * self.fast * rate / 1e6).round() as u64
    }

    fn reconfigure(&mut self, network: LinkConfig) {
        let now = self.at(self.now);
        self.link.reconfigure(now, network);
    }

    fn run(&mut self, seconds: i64) {
        let end = self.now + seconds * SECOND;
        loop {
            // To the next microsecond, or it would not be there yet.
            let arrival = self.link.next_at().map(|at| at.duration_since(self.start).as_nanos().div_ceil(1000) as i64);
            let next = [self.next_sound, self.next_picture, self.next_report, self.next_pull]
                .into_iter()
                .chain(arrival)
                .min()
                .unwrap();
            if next >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let now = self.at(self.now);
            while let Some(media) = self.link.poll(now) {
                self.receive(media);
            }
            if self.next_sound <= self.now {
                self.send_sound();
            }
            if self.next_picture <= self.now {
                let number = self.next_picture;
                // A keyframe each ten seconds is ten times as large, but on these links nothing is narrow.
                let picture = Media::Picture { rtp: self.ticks(1, number - PICTURE_AGE), number, bytes: 3_000 };
                self.link.send(now, picture);
                self.next_picture += PICTURE;
            }
            if self.next_report <= self.now {
                let wall = (self.now as f64 * self.fast) as i64 + 1_700_000_000 * SECOND;
                let report =
                    Media::Report { sound: (self.ticks(0, self.now), wall), picture: (self.ticks(1, self.now), wall) };
                self.link.send(now, report);
                self.next_report += SECOND;
            }
            if self.next_pull <= self.now {
                self.pull();
            }
        }
    }

    /// 20 ms by the sender's clock that end now: a hum, and a beep at the beginning of each second.
    fn send_sound(&mut self) {
        let span = 20_000.0 / self.fast;
        let begins = self.next_sound as f64 - span;
        let sample = |n: usize| {
            let at = begins + n as f64 * span / FRAME_SAMPLES as f64;
            let second = at.rem_euclid(1e6);
            let fade = (second.min(100_000.0 - second) / 1000.0).clamp(0.0, 1.0);
            let hum = if self.dtx { 0.0 } else { 0.02 * (at / 1e6 * 150.0 * std::f64::consts::TAU).sin() };
            (fade * (second / 1e6 * 1000.0 * std::f64::consts::TAU).sin() * 0.5 + hum) as f32
        };
        let samples: Vec<f32> = (0..FRAME_SAMPLES).map(sample).collect();
        let data = self.encoder.encode(&samples).unwrap();
        let silent = samples.iter().all(|s| *s == 0.0);
        // One packet in twenty goes on in silence (RFC 7587 §3.1.3), without a gap in the numbers.
        if !self.dtx || !silent || (self.next_sound / 20_000) % 20 == 0 {
            let rtp = self.ticks(0, begins.round() as i64).next_multiple_of(2);
            let sound = Media::Sound { rtp, seq_no: self.seq_no, ssrc: self.ssrc, data: data.into() };
            self.seq_no += 1;
            let now = self.at(self.now);
            self.link.send(now, sound);
        }
        self.next_sound = ((self.next_sound as f64 / span).round() * span + span).round() as i64;
    }

    /// What [`lightpipe_rtc::Publisher`] does with packets.
    fn receive(&mut self, media: Media) {
        let arrived = MediaTime::from_micros(self.now);
        match media {
            Media::Sound { rtp, seq_no, ssrc, data } => {
                if std::mem::replace(&mut self.heard_ssrc, ssrc) != ssrc {
                    self.clocks = [TrackClock::new(48_000), TrackClock::new(90_000)];
                }
                let captured = self.clocks[0].capture(rtp, arrived, &mut self.wall);
                let duration = Duration::from_millis(20);
                let origin = Some(RtpOrigin { ssrc, seq_no, rtp_time: rtp, level: None });
                let packet =
                    AudioPacket { data, captured, duration, encoded: arrived, starts_talkspurt: false, origin };
                self.playout.push_sound(&Arc::new(packet));
            }
            Media::Picture { rtp, number, .. } => {
                let captured = self.clocks[1].capture(rtp, arrived, &mut self.wall);
                let data = number.to_be_bytes();
                let (size, stages) = (Size::new(320, 180), Stages::all_at(arrived));
                let unit = AccessUnit::new(VideoCodec::H264, &data[..], captured, true, size, stages);
                self.playout.push_picture(&Arc::new(unit));
            }
            Media::Report { sound, picture } => {
                self.clocks[0].report(sound.0, sound.1);
                self.clocks[1].report(picture.0, picture.1);
            }
        }
    }

    fn pull(&mut self) {
        let now = MediaTime::from_micros(self.now);
        let mut samples = Vec::new();
        self.playout.pull_sound(now, &mut samples);
        assert_eq!(samples.len(), BLOCK_SAMPLES);
        for (n, sample) in samples.iter().enumerate() {
            if sample.abs() < 0.05 {
                self.quiet += 1;
                continue;
            }
            // Of 1 kHz: the first sample above a tenth of the loudness is within a third of a millisecond of the beginning.
            if self.quiet > 24_000 {
                let heard = self.now + n as i64 * SECOND / 48_000;
                self.beeps.insert(heard / SECOND, heard % SECOND);
            }
            self.quiet = 0;
        }
        while let Some(unit) = self.playout.pull_picture(now) {
            let number = i64::from_be_bytes(unit.data[..].try_into().unwrap());
            let taken = number - PICTURE_AGE;
            // Pictures do not begin with the second: the one around it stands for its flash.
            if taken.rem_euclid(SECOND) < PICTURE {
                self.flashes.insert(taken / SECOND, self.now - taken);
            }
        }
        self.next_pull += BLOCK.as_micros() as i64;
        if self.next_pull / SECOND != self.now / SECOND {
            let figures = self.playout.figures();
            self.depths.push(figures.sound.depth.as_secs_f64() * 1e3);
            self.targets.push(figures.sound.target.as_secs_f64() * 1e3);
        }
    }

    fn figures(&self) -> PlayoutFigures {
        self.playout.figures()
    }

    /// By how much the picture was shown later than its beep was heard, ms, second by second from then on.
    fn skews(&self, from: i64) -> Vec<f64> {
        let both = self.beeps.range(from..).filter_map(|(second, beep)| Some(self.flashes.get(second)? - beep));
        both.map(|skew| skew as f64 / 1e3).collect()
    }

    /// How old beeps were when they were heard, ms.
    fn ages(&self, from: i64) -> Vec<f64> {
        self.beeps.range(from..).map(|(_, age)| *age as f64 / 1e3).collect()
    }
}

fn quantile(values: impl IntoIterator<Item = f64>, q: f64) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1]
}

/// Change per minute of what was noted each second, by least squares.
fn trend(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let (x, y) = ((n - 1.0) / 2.0, values.iter().sum::<f64>() / n);
    let over: f64 = values.iter().enumerate().map(|(at, value)| (at as f64 - x) * (value - y)).sum();
    60.0 * over / values.iter().enumerate().map(|(at, _)| (at as f64 - x).powi(2)).sum::<f64>()
}

fn tell(what: &str, call: &Call) {
    let PlayoutFigures { sound, pictures, .. } = call.figures();
    let (skews, ages) = (call.skews(10), call.ages(10));
    println!(
        "{what}: drift {:?}; concealed {:.3} %; |lip sync| p95 {:.1} ms of {}; age p50 {:.1} p95 {:.1} ms; depth {:?} trend {:.2} ms/min; \
         target {:?}; {sound:?} {pictures:?}",
        sound.drift,
        100.0 * sound.concealed_share(),
        quantile(skews.iter().map(|s| s.abs()), 0.95),
        skews.len(),
        quantile(ages.iter().copied(), 0.5),
        quantile(ages.iter().copied(), 0.95),
        sound.depth,
        trend(&call.depths[20..]),
        call.targets.iter().step_by(call.targets.len() / 12).map(|t| t.round() as i64).collect::<Vec<_>>(),
    );
}

fn jitter(ms: u64) -> LinkConfig {
    LinkConfig::default().with_delay_millis(20).with_jitter_millis(ms)
}

#[track_caller]
fn check_ten_minutes(seed: u64, ppm: f64) {
    let mut call = Call::new(seed, ppm, jitter(30));
    call.run(600);
    tell(&format!("{ppm} ppm"), &call);
    let sound = call.figures().sound;
    let drift = sound.drift.expect("ten minutes tell");
    assert!((drift.ppm - ppm).abs() <= 10.0 && drift.error_ppm <= 10.0, "{drift:?} of {ppm}");
    assert!(sound.concealed_share() < 0.005, "{sound:?}");
    let skews = call.skews(10);
    assert!(skews.len() > 550, "{}", skews.len());
    assert!(quantile(skews.iter().map(|s| s.abs()), 0.95) <= 20.0, "{skews:?}");
    assert!(trend(&call.depths[20..]).abs() < 0.5, "{} ms a minute", trend(&call.depths[20..]));
    // Beeps come at their age, from the first minute to the last: nothing creeps.
    let ages = call.ages(20);
    let (first, last) = (quantile(ages[..60].to_vec(), 0.5), quantile(ages[ages.len() - 60..].to_vec(), 0.5));
    assert!((first - last).abs() < 5.0, "{first} ms at first, {last} at last");
    // 20 of delay and 20 of the packet itself are nobody's to save.
    assert!(quantile(ages, 0.95) < 20.0 + 20.0 + 30.0 + 25.0);
}

#[test]
fn ten_minutes_with_a_clock_100_ppm_fast_and_30_ms_of_jitter() {
    check_ten_minutes(1, 100.0);
}

#[test]
fn ten_minutes_with_a_clock_100_ppm_slow_and_30_ms_of_jitter() {
    check_ten_minutes(2, -100.0);
}

#[test]
fn on_a_clean_path_sound_is_heard_within_fifty_milliseconds() {
    let mut call = Call::new(3, 20.0, LinkConfig::default().with_delay_millis(1));
    call.run(60);
    tell("clean", &call);
    assert!(quantile(call.ages(3), 0.95) < 50.0, "{:?}", call.ages(3));
    assert_eq!(call.figures().sound.concealed_samples, 0);
}

#[test]
fn the_target_follows_jitter_up_and_comes_down_again() {
    // Trap: a jitter buffer's target that climbs and never falls.
    let mut call = Call::new(4, 100.0, jitter(5));
    call.run(30);
    let before = call.figures().sound;
    call.reconfigure(jitter(90));
    call.run(30);
    let during = call.figures().sound;
    call.reconfigure(jitter(5));
    call.run(40);
    tell("step", &call);
    let after = call.figures().sound;
    let ms = |span: Duration| span.as_secs_f64() * 1e3;
    assert!(ms(before.target) < 30.0 && ms(after.target) < 30.0, "{before:?} {after:?}");
    assert!(ms(during.target) > 70.0, "{during:?}");
    assert!(after.delay.is_some_and(|delay| ms(delay) < 35.0), "and what is played with it: {after:?}");
    // What the step itself costs is heard once.
    let at_steps = during.concealed_samples - before.concealed_samples;
    assert!(at_steps < 48_000 / 2, "{at_steps}");
    assert!(after.concealed_samples - during.concealed_samples < 4_800, "{after:?}");
}

#[test]
fn bursts_of_loss_are_concealed_and_no_more_than_they_are() {
    let mut call = Call::new(5, 0.0, jitter(10).with_bursts(GilbertElliott::lossy(0.03, 3.0)));
    call.run(120);
    tell("bursts", &call);
    let sound = call.figures().sound;
    let lost = call.link.counters().lost as f64 / call.link.counters().sent as f64;
    let share = (sound.concealed_samples + sound.recovered_samples) as f64 / sound.played_samples as f64;
    assert!((share - lost).abs() < 0.01, "{share} made up of {lost} lost: {sound:?}");
    assert!(trend(&call.depths[20..]).abs() < 3.0);
}

#[test]
fn a_lost_packet_comes_back_from_the_copy_in_the_next() {
    // Jitter that makes the buffer hold the next one already.
    let mut call = Call::new(11, 0.0, jitter(40).with_loss(0.05));
    call.run(60);
    tell("loss", &call);
    let sound = call.figures().sound;
    // Of 150 lost packets: the encoder copies what is a tenth of the time, the beep; the hum is not worth it.
    assert!(sound.recovered_samples >= 8 * 960, "{sound:?}");
}

#[test]
fn a_sender_that_pauses_loses_nothing() {
    let mut call = Call::new(6, 50.0, jitter(10));
    call.dtx = true;
    call.run(120);
    tell("dtx", &call);
    let sound = call.figures().sound;
    assert_eq!(sound.late_packets, 0, "{sound:?}");
    assert!(sound.concealed_share() < 0.005, "{sound:?}");
    assert!(call.beeps.len() >= 117, "{:?}", call.beeps);
    assert!(quantile(call.ages(10), 0.95) < 85.0, "{:?}", call.ages(10));
}

#[test]
fn a_sender_that_begins_again_is_heard_again() {
    let mut call = Call::new(7, 100.0, jitter(10));
    call.run(60);
    // Another SSRC: numbers and times begin anywhere, the same crystal.
    (call.ssrc, call.seq_no, call.base) = (2, 3, [12_345, 99]);
    call.run(60);
    tell("restart", &call);
    let sound = call.figures().sound;
    assert_eq!(sound.restarts, 1);
    assert!(call.beeps.len() >= 116, "{:?}", call.beeps);
    assert!(sound.drift.is_some_and(|drift| (drift.ppm - 100.0).abs() < 15.0), "{sound:?}");
}

#[test]
fn a_clock_that_is_set_is_heard_again_at_once() {
    for seconds in [-20, -2, 30] {
        let mut call = Call::new(8, 0.0, jitter(10));
        call.run(40);
        let set = |base: u64, rate: i64| base.checked_add_signed(seconds * rate).unwrap();
        call.base = [set(call.base[0], 48_000), set(call.base[1], 90_000)];
        call.run(40);
        tell(&format!("set by {seconds} s"), &call);
        assert!(call.beeps.len() >= 76, "{seconds}: {:?}", call.beeps);
        assert!(quantile(call.ages(60), 0.95) < 85.0, "{seconds}: {:?}", call.ages(60));
        assert!(call.figures().sound.concealed_share() < 0.02, "{seconds}: {:?}", call.figures());
    }
}

#[test]
fn an_outage_ends_with_the_same_delay_as_before() {
    let mut call = Call::new(9, 0.0, jitter(10));
    call.run(30);
    let before = call.figures().sound;
    call.reconfigure(jitter(10).with_loss(1.0));
    call.run(5);
    call.reconfigure(jitter(10));
    call.run(30);
    tell("outage", &call);
    let after = call.figures().sound;
    let missing = after.concealed_samples - before.concealed_samples;
    assert!((230_000..260_000).contains(&missing), "five seconds are missing: {missing}");
    let (before, after) = (before.delay.unwrap(), after.delay.unwrap());
    assert!(after.abs_diff(before) < Duration::from_millis(10), "{before:?} {after:?}");
}

#[test]
fn the_same_seed_gives_the_same_sound() {
    let run = || {
        let mut call = Call::new(10, 100.0, jitter(30).with_loss(0.02));
        call.run(20);
        (call.beeps.clone(), call.figures().sound)
    };
    assert_eq!(run(), run());
}
