//! `lightpipe bench mix`: what a conference costs that is mixed for its participants.
//!
//! Every talker's packets go through a jitter buffer and the Opus decoder, everybody is mixed without himself, and each mix is encoded: the
//! whole work of a mixer but its network. CPU time of the one thread that does it, per second of sound.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lightpipe_codec::opus::{OpusDecoder, OpusEncoder};
use lightpipe_codec::{AudioEncoder, MIX_ENCODING};
use lightpipe_media::audio::{FRAME_SAMPLES, Mixer, RtpOrigin, SAMPLE_RATE_HZ, span};
use lightpipe_media::playout::{BLOCK, BLOCK_SAMPLES, Playout, PlayoutConfig};
use lightpipe_media::{AudioPacket, MediaTime};
use serde_json::json;

use super::cpu;
use super::machine::Machine;
use crate::cli::MixFlags;
use crate::output;

/// CPU time of each part of the work.
#[derive(Debug, Default, Clone, Copy)]
struct Spent {
    decode: Duration,
    mix: Duration,
    encode: Duration,
}

pub(crate) fn run(flags: &MixFlags) -> anyhow::Result<ExitCode> {
    let (talkers, listeners) = (flags.talkers as usize, flags.listeners as usize);
    let frames = flags.seconds * SAMPLE_RATE_HZ / FRAME_SAMPLES as u32;
    let packets = (0..talkers).map(|who| voice(who, frames)).collect::<Result<Vec<_>, _>>()?;
    let config = PlayoutConfig { channels: 1, ..PlayoutConfig::default() };
    let mut playouts =
        (0..talkers).map(|_| Ok(Playout::new(config, OpusDecoder::new(1)?))).collect::<anyhow::Result<Vec<_>>>()?;
    // One for each talker, and one for all who listen.
    let mut encoders = (0..=talkers).map(|_| OpusEncoder::new(MIX_ENCODING)).collect::<Result<Vec<_>, _>>()?;
    let mut mixer = Mixer::new(1);
    (0..talkers + listeners).for_each(|who| mixer.join(who));
    let mut waiting = vec![Vec::new(); talkers + 1];
    let (mut spent, mut encoded, mut block) = (Spent::default(), 0u64, Vec::new());
    for turn in 0..frames * 2 {
        let now = MediaTime::from_micros(i64::from(turn) * BLOCK.as_micros() as i64);
        let began = cpu::this_thread();
        for (who, playout) in playouts.iter_mut().enumerate() {
            if turn % 2 == 0 {
                playout.push_sound(&packets[who][turn as usize / 2]);
            }
            playout.pull_sound(now, &mut block);
            mixer.add(&who, &block, None);
        }
        let decoded = cpu::this_thread();
        let mixes = mixer.mixes(BLOCK_SAMPLES);
        let mixed = cpu::this_thread();
        for mix in &mixes {
            let encoder = mix.talker.unwrap_or(talkers);
            let samples = &mut waiting[encoder];
            samples.extend_from_slice(&mix.samples);
            if samples.len() >= FRAME_SAMPLES {
                encoders[encoder].encode(samples)?;
                samples.clear();
                encoded += 1;
            }
        }
        let ended = cpu::this_thread();
        spent.decode += decoded.saturating_sub(began);
        spent.mix += mixed.saturating_sub(decoded);
        spent.encode += ended.saturating_sub(mixed);
    }
    let looks = look() * frames * 2;
    for part in [&mut spent.decode, &mut spent.mix, &mut spent.encode] {
        *part = part.saturating_sub(looks);
    }
    tell(flags, spent, encoded);
    Ok(ExitCode::SUCCESS)
}

/// What a look at the clock costs itself: in each part there is one for each turn, a twentieth of the whole.
fn look() -> Duration {
    const LOOKS: u32 = 1000;
    let began = cpu::this_thread();
    (0..LOOKS).for_each(|_| _ = cpu::this_thread());
    cpu::this_thread().saturating_sub(began) / LOOKS
}

fn tell(flags: &MixFlags, spent: Spent, encoded: u64) {
    let percent = |spent: Duration| 100.0 * spent.as_secs_f64() / f64::from(flags.seconds);
    let parts = [("decode", spent.decode), ("mix", spent.mix), ("encode", spent.encode)];
    let all = parts.iter().map(|(_, spent)| *spent).sum::<Duration>();
    let machine = Machine::this();
    if flags.json {
        output::line(json!({
            "machine": machine,
            "talkers": flags.talkers,
            "listeners": flags.listeners,
            "seconds": flags.seconds,
            "encoded_packets": encoded,
            "percent_of_a_core": { "decode": percent(spent.decode), "mix": percent(spent.mix), "encode": percent(spent.encode), "all": percent(all) },
        }));
        return;
    }
    output::line(&machine);
    output::line(format_args!(
        "{} talk, {} listen, {} s; {encoded} packets encoded",
        flags.talkers, flags.listeners, flags.seconds
    ));
    let rows: Vec<Vec<String>> = parts
        .into_iter()
        .chain([("all", all)])
        .map(|(what, spent)| vec![what.to_owned(), format!("{:.2}", percent(spent))])
        .collect();
    output::table(&["work", "% of a core"], &rows);
}

/// Packets of somebody who says something all the time: a buzz with the rhythm of syllables, and some breath.
fn voice(who: usize, frames: u32) -> anyhow::Result<Vec<Arc<AudioPacket>>> {
    let mut encoder = OpusEncoder::new(MIX_ENCODING)?;
    // A noise that is the same every time.
    let mut noise = who as u32 + 1;
    let pitch = 90.0 + 15.0 * who as f32;
    let mut packets = Vec::with_capacity(frames as usize);
    for frame in 0..u64::from(frames) {
        let samples: Vec<f32> = (0..FRAME_SAMPLES as u64)
            .map(|n| {
                let at = (frame * FRAME_SAMPLES as u64 + n) as f32 / SAMPLE_RATE_HZ as f32;
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let breath = (noise >> 8) as f32 / (1 << 24) as f32 - 0.5;
                let syllable = (at * (3.0 + 0.2 * who as f32) * std::f32::consts::PI).sin().abs();
                let buzz = (at * pitch).fract() - 0.5;
                syllable * (0.15 * buzz + 0.02 * breath)
            })
            .collect();
        let captured = MediaTime::ZERO + span(frame * FRAME_SAMPLES as u64);
        let origin = RtpOrigin { ssrc: who as u32, seq_no: frame, rtp_time: frame * FRAME_SAMPLES as u64, level: None };
        packets.push(Arc::new(AudioPacket {
            data: encoder.encode(&samples)?.into(),
            captured,
            duration: span(FRAME_SAMPLES as u64),
            encoded: captured,
            starts_talkspurt: frame == 0,
            origin: Some(origin),
        }));
    }
    Ok(packets)
}
