//! Opus (RFC 6716) by libopus, and its decoder.

use std::time::Duration;

use lightpipe_media::audio::{SAMPLE_RATE_HZ, opus_duration};
use lightpipe_media::playout::SoundDecoder;
use opus::{Application, Bitrate, Channels, Signal};

use crate::audio_encoder::{AudioContent, AudioEncoder, AudioEncoderConfig};
use crate::encoder::EncodeError;

const NAME: &str = "libopus";

/// Longest packet of one frame (RFC 6716 §3.4).
const MAX_PACKET_LEN: usize = 1275;

/// Longest packet's sound, samples of one channel: 120 ms (RFC 6716 §3.4).
const MAX_DECODED_SAMPLES: usize = 5760;

/// Below this share of lost packets a copy of the last one is not worth its bits.
const FEC_FROM_LOSS: f32 = 0.01;

/// The encoder.
pub struct OpusEncoder {
    encoder: opus::Encoder,
    config: AudioEncoderConfig,
    look_ahead: Duration,
    clean: Vec<f32>,
}

impl std::fmt::Debug for OpusEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpusEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl OpusEncoder {
    /// Bitrates that Opus has, bits per second (RFC 7587 §3.1.1 names 6 000 to 510 000).
    pub const BITRATES: std::ops::RangeInclusive<u32> = 6_000..=510_000;

    /// An encoder.
    pub fn new(config: AudioEncoderConfig) -> Result<Self, EncodeError> {
        let channels = channels(config.channels)?;
        let (application, signal) = match config.content {
            // Without the speech coder the look-ahead is 2.5 ms instead of 6.5, and at such rates it would not be used.
            AudioContent::Music => (Application::LowDelay, Signal::Music),
            AudioContent::Speech => (Application::Voip, Signal::Voice),
        };
        let mut encoder = opus::Encoder::new(SAMPLE_RATE_HZ, channels, application).map_err(failed("create"))?;
        encoder.set_signal(signal).map_err(failed("set_signal"))?;
        encoder.set_complexity(i32::from(config.complexity.min(10))).map_err(failed("set_complexity"))?;
        encoder.set_vbr(config.variable_bitrate).map_err(failed("set_vbr"))?;
        // A packet of a burst may be twice the mean, not ten times: it shares the network with video.
        encoder.set_vbr_constraint(true).map_err(failed("set_vbr_constraint"))?;
        let samples = encoder.get_lookahead().map_err(failed("get_lookahead"))?;
        let look_ahead =
            Duration::from_micros(u64::try_from(samples).unwrap_or(0) * 1_000_000 / u64::from(SAMPLE_RATE_HZ));
        let mut this = Self { encoder, config, look_ahead, clean: Vec::new() };
        this.set_bitrate(config.bitrate_bps)?;
        Ok(this)
    }
}

impl AudioEncoder for OpusEncoder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn encode(&mut self, samples: &[f32]) -> Result<Vec<u8>, EncodeError> {
        let expected = self.config.frame_samples * self.config.channels;
        if samples.len() != expected {
            return Err(EncodeError::WrongPicture {
                expected: format!("{expected} samples"),
                got: format!("{} samples", samples.len()),
            });
        }
        // One value that is no number would silence the encoder for good.
        self.clean.clear();
        self.clean.extend(samples.iter().map(|s| if s.is_finite() { s.clamp(-2.0, 2.0) } else { 0.0 }));
        self.encoder.encode_vec_float(&self.clean, MAX_PACKET_LEN).map_err(failed("encode_float"))
    }

    fn look_ahead(&self) -> Duration {
        self.look_ahead
    }

    fn set_bitrate(&mut self, bps: u32) -> Result<(), EncodeError> {
        let bps = bps.clamp(*Self::BITRATES.start(), *Self::BITRATES.end());
        self.encoder.set_bitrate(Bitrate::Bits(bps as i32)).map_err(failed("set_bitrate"))?;
        self.config.bitrate_bps = bps;
        Ok(())
    }

    fn set_loss(&mut self, loss: f32) -> Result<(), EncodeError> {
        let useful = self.config.fec && self.config.content == AudioContent::Speech && loss >= FEC_FROM_LOSS;
        let percent = (loss.clamp(0.0, 1.0) * 100.0).round() as i32;
        self.encoder.set_packet_loss_perc(percent).map_err(failed("set_packet_loss_perc"))?;
        self.encoder.set_inband_fec(useful).map_err(failed("set_inband_fec"))
    }

    fn config(&self) -> &AudioEncoderConfig {
        &self.config
    }
}

/// The decoder. Also makes up what is missing.
pub struct OpusDecoder {
    decoder: opus::Decoder,
    channels: usize,
}

impl std::fmt::Debug for OpusDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpusDecoder").field("channels", &self.channels).finish_non_exhaustive()
    }
}

impl OpusDecoder {
    /// A decoder to 1 or 2 channels at 48 kHz, whatever the packets hold.
    pub fn new(channel_count: usize) -> Result<Self, EncodeError> {
        let decoder = opus::Decoder::new(SAMPLE_RATE_HZ, channels(channel_count)?).map_err(failed("create"))?;
        Ok(Self { decoder, channels: channel_count })
    }

    /// Interleaved samples of a packet. Bytes that are no Opus are an error and change nothing.
    pub fn decode(&mut self, packet: &[u8]) -> Result<Vec<f32>, EncodeError> {
        // To libopus an empty packet is a lost one.
        if packet.is_empty() {
            return Err(EncodeError::Backend { backend: NAME, call: "decode", code: -4 });
        }
        self.run(packet, MAX_DECODED_SAMPLES)
    }

    /// Makes up `samples` of one channel (a multiple of 120: 2.5 ms) in place of a lost packet.
    pub fn conceal(&mut self, samples: usize) -> Result<Vec<f32>, EncodeError> {
        self.run(&[], samples.clamp(120, MAX_DECODED_SAMPLES) / 120 * 120)
    }

    fn run(&mut self, packet: &[u8], room: usize) -> Result<Vec<f32>, EncodeError> {
        let mut samples = Vec::new();
        self.append(packet, room, false, &mut samples).map_err(failed("decode_float"))?;
        Ok(samples)
    }

    /// Appends what the decoder makes of a packet, or of the copy in it of the one before. An error appends nothing.
    fn append(&mut self, packet: &[u8], room: usize, copy: bool, out: &mut Vec<f32>) -> opus::Result<()> {
        let before = out.len();
        out.resize(before + room * self.channels, 0.0);
        let made = self.decoder.decode_float(packet, &mut out[before..], copy);
        out.truncate(before + made.as_ref().map_or(0, |made| made * self.channels));
        made.map(drop)
    }
}

impl SoundDecoder for OpusDecoder {
    fn decode(&mut self, packet: &[u8], out: &mut Vec<f32>) -> bool {
        // To libopus an empty packet is a lost one. The sound that a packet holds is what it says: no room is made for more.
        let room = span_samples(opus_duration(packet));
        !packet.is_empty() && self.append(packet, room, false, out).is_ok()
    }

    fn recover(&mut self, next: &[u8], samples: usize, out: &mut Vec<f32>) -> bool {
        has_copy(next) && self.append(next, samples, true, out).is_ok()
    }

    fn conceal(&mut self, samples: usize, out: &mut Vec<f32>) {
        // Only a wrong length fails, and what is missing is silence.
        let _ = self.append(&[], samples, false, out);
    }

    fn reset(&mut self) {
        // Fails for decoders that were never made.
        let _ = self.decoder.reset_state();
    }
}

/// Whether a packet holds a copy of the one before: behind the TOC byte of a packet of one frame with the speech coder come the voice flags
/// and then the LBRR flag, of the first channel (RFC 6716 §4.2.3, §4.2.4).
fn has_copy(packet: &[u8]) -> bool {
    let [toc, first, ..] = packet else { return false };
    let (config, one_frame) = (toc >> 3, toc & 3 == 0);
    // A SILK frame is 20 ms at most; 40 and 60 ms are two and three of them, each with a flag of its own.
    let frames = match config {
        0..=11 => [1, 1, 2, 3][usize::from(config & 3)],
        12..=15 => 1,
        _ => return false,
    };
    one_frame && first >> (7 - frames) & 1 == 1
}

/// Samples of one channel.
fn span_samples(span: Duration) -> usize {
    (span.as_micros() * u128::from(SAMPLE_RATE_HZ) / 1_000_000) as usize
}

fn channels(count: usize) -> Result<Channels, EncodeError> {
    match count {
        1 => Ok(Channels::Mono),
        2 => Ok(Channels::Stereo),
        _ => Err(EncodeError::Unsupported { backend: NAME, what: format!("{count} channels; 1 and 2 are possible") }),
    }
}

fn failed(call: &'static str) -> impl Fn(opus::Error) -> EncodeError {
    move |error| EncodeError::Backend { backend: NAME, call, code: error.code() as i64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightpipe_media::audio::FRAME_SAMPLES;
    use std::f32::consts::TAU;

    fn tone(frame: usize, channels: usize) -> Vec<f32> {
        (frame * FRAME_SAMPLES..(frame + 1) * FRAME_SAMPLES)
            .flat_map(|n| {
                let sample = (n as f32 * 440.0 * TAU / 48_000.0).sin() * 0.5;
                std::iter::repeat_n(sample, channels)
            })
            .collect()
    }

    fn power(samples: &[f32]) -> f32 {
        samples.iter().map(|s| s * s).sum::<f32>() / samples.len() as f32
    }

    #[test]
    fn a_tone_comes_back_at_the_time_that_the_look_ahead_says() {
        for content in [AudioContent::Music, AudioContent::Speech] {
            let mut encoder =
                OpusEncoder::new(AudioEncoderConfig { content, ..AudioEncoderConfig::default() }).expect("an encoder");
            let mut decoder = OpusDecoder::new(2).expect("a decoder");
            // Silence, then a tone from frame 10 on: the decoder must begin it `look_ahead` later than the frame.
            let mut decoded = Vec::new();
            for frame in 0..20 {
                let samples = if frame < 10 { vec![0.0; 1920] } else { tone(frame, 2) };
                decoded.extend(decoder.decode(&encoder.encode(&samples).expect("encodes")).expect("decodes"));
            }
            let look_ahead = (encoder.look_ahead().as_micros() as usize * 48).div_ceil(1000);
            assert_eq!(look_ahead, if content == AudioContent::Music { 120 } else { 312 }, "{content:?}");
            let tail = |from: usize| &decoded[(10 * FRAME_SAMPLES + from) * 2..];
            let expected: Vec<f32> = (10..20).flat_map(|frame| tone(frame, 2)).collect();
            let difference = |shift: usize| -> f32 {
                power(&tail(shift)[1920..].iter().zip(&expected[1920..]).map(|(a, b)| a - b).collect::<Vec<_>>())
            };
            // 440 Hz has a period of 109 samples; 15 off is an eighth of it.
            assert!(difference(look_ahead) < 0.005, "{content:?}: {}", difference(look_ahead));
            assert!(difference(look_ahead + 15) > 0.02, "{content:?}: the measurement sees a shift");
        }
    }

    #[test]
    fn bitrate_changes_live_and_constant_means_constant() {
        let config = AudioEncoderConfig { variable_bitrate: false, ..AudioEncoderConfig::default() };
        let mut encoder = OpusEncoder::new(config).expect("an encoder");
        let len = |encoder: &mut OpusEncoder, frame| encoder.encode(&tone(frame, 2)).expect("encodes").len();
        assert_eq!([len(&mut encoder, 0), len(&mut encoder, 1)], [320, 320], "128 kbit/s");
        encoder.set_bitrate(32_000).expect("possible");
        assert_eq!([len(&mut encoder, 2), len(&mut encoder, 3)], [80, 80], "32 kbit/s");
        encoder.set_bitrate(1).expect("taken as the lowest");
        assert_eq!(encoder.config().bitrate_bps, 6000);
    }

    #[test]
    fn lost_speech_packets_come_back_from_the_next_while_viewers_lose_some() {
        let config = AudioEncoderConfig {
            content: AudioContent::Speech,
            channels: 1,
            bitrate_bps: 24_000,
            ..AudioEncoderConfig::default()
        };
        // RFC 6716 §4.2.4: behind the TOC byte of a SILK packet of one frame come the voice and the LBRR flag.
        let copies = |loss: f32| {
            let mut encoder = OpusEncoder::new(config).expect("an encoder");
            encoder.set_loss(loss).expect("possible");
            let packets = (0..20).map(|n| encoder.encode(&tone(n, 1)).expect("encodes"));
            packets.filter(|p| p[0] >> 3 < 16 && p[0] & 3 == 0 && p[1] >> 6 & 1 == 1).count()
        };
        assert!(copies(0.1) >= 15, "{}", copies(0.1));
        assert_eq!(copies(0.0), 0);
    }

    #[test]
    fn bad_input_is_an_error_or_silence_never_a_panic() {
        let mut encoder = OpusEncoder::new(AudioEncoderConfig::default()).expect("an encoder");
        assert!(encoder.encode(&[0.0; 7]).is_err());
        encoder.encode(&vec![f32::NAN; 1920]).expect("silence");
        let mut decoder = OpusDecoder::new(2).expect("a decoder");
        for frame in 0..5 {
            let packet = encoder.encode(&tone(frame, 2)).expect("encodes");
            let samples = decoder.decode(&packet).expect("decodes");
            if frame == 4 {
                assert!(power(&samples) > 0.05, "it recovers");
            }
        }
        assert!(OpusEncoder::new(AudioEncoderConfig { channels: 3, ..AudioEncoderConfig::default() }).is_err());
        assert!(decoder.decode(&[]).is_err());
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..random.usize(1..200)).map(|_| random.u8(..)).collect();
            let _ = decoder.decode(&bytes);
        }
        assert_eq!(decoder.conceal(960).expect("concealed").len(), 1920);
    }
}
