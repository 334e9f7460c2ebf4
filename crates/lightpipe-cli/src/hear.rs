//! What `lightpipe join` hears: played in real time, written into a file or to standard output, and mixed for the others.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;
use lightpipe::{Audience, ConferenceConfig, RoomSound, Server};
use lightpipe_media::AccessUnit;
use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_media::playout::BLOCK_SAMPLES;
use tokio::sync::{mpsc, oneshot};

use crate::cli::JoinFlags;
use crate::output;

/// Blocks of 10 ms that may wait for a slow disk or reader; what does not fit is silence in what is written.
const MAX_WAITING: usize = 100;

/// How long the last of it may take.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Size of a WAV file of unknown length, as far as its header knows.
const UNKNOWN: u32 = u32::MAX;

/// What is heard of a room.
pub(crate) struct Hearing {
    pub(crate) sound: Arc<RoomSound>,
    /// Who speaks, and how much sound had been given out when that turned out.
    pub(crate) speaker: mpsc::UnboundedReceiver<(Option<String>, Duration)>,
    pub(crate) written: Option<Written>,
}

/// A thread that writes sound.
pub(crate) struct Written {
    pieces: SyncSender<Piece>,
    /// How it ended by itself.
    pub(crate) end: oneshot::Receiver<io::Result<()>>,
}

enum Piece {
    /// With its number.
    Block(u64, Vec<f32>),
    End,
}

impl Hearing {
    /// None when nothing is to be heard.
    pub(crate) fn start(flags: &JoinFlags, server: &Server) -> anyhow::Result<Option<Self>> {
        if !flags.listen && !flags.mix {
            return Ok(None);
        }
        let config = if flags.mix { ConferenceConfig::mixer() } else { ConferenceConfig::default() };
        let channels = config.playout.channels;
        let written = flags.sound.as_deref().map(|path| Written::start(path, channels)).transpose()?;
        let (told, speaker) = mpsc::unbounded_channel();
        let ears = Ears { speaker: told, pieces: written.as_ref().map(|written| written.pieces.clone()), blocks: 0 };
        let sound = RoomSound::start(server, config, ears)?.with_only(flags.from.clone());
        Ok(Some(Self { sound: Arc::new(sound), speaker, written }))
    }
}

struct Ears {
    speaker: mpsc::UnboundedSender<(Option<String>, Duration)>,
    pieces: Option<SyncSender<Piece>>,
    blocks: u64,
}

impl Audience for Ears {
    fn sound(&mut self, samples: &[f32]) {
        if let Some(pieces) = &self.pieces {
            // The number tells the writer what it missed.
            let _ = pieces.try_send(Piece::Block(self.blocks, samples.to_vec()));
        }
        self.blocks += 1;
    }

    fn picture(&mut self, _: &str, _: &Arc<AccessUnit>) {
        // No window: that it is given out in time is in the figures.
    }

    fn speaker(&mut self, peer: Option<&str>, at: Duration) {
        let _ = self.speaker.send((peer.map(str::to_owned), at));
    }
}

impl Written {
    fn start(path: &Path, channels: usize) -> anyhow::Result<Self> {
        let (pieces, to_write) = sync_channel(MAX_WAITING);
        let (ended, end) = oneshot::channel();
        let write: Box<dyn FnOnce() -> io::Result<()> + Send> = if path == Path::new("-") {
            output::note(format_args!("sound: s16le, {SAMPLE_RATE_HZ} Hz, {channels} channels"));
            Box::new(move || write_all(&mut io::stdout(), channels, &to_write).map(drop))
        } else {
            let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Box::new(move || {
                file.write_all(&wav_header(channels, UNKNOWN))?;
                let mut out = BufWriter::new(&mut file);
                let bytes = write_all(&mut out, channels, &to_write)?;
                out.flush()?;
                drop(out);
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&wav_header(channels, u32::try_from(bytes).unwrap_or(UNKNOWN)))
            })
        };
        // Its end is waited for by `finish`.
        std::thread::Builder::new().name("sound-file".into()).spawn(move || {
            let _ = ended.send(write());
        })?;
        Ok(Self { pieces, end })
    }

    /// Ends the file, and waits for that, but not for a reader who does not read.
    pub(crate) async fn finish(self) -> io::Result<()> {
        let _ = self.pieces.try_send(Piece::End);
        match tokio::time::timeout(END_LIMIT, self.end).await {
            Ok(Ok(ended)) => ended,
            _ => Ok(()),
        }
    }
}

/// Writes s16le until the end; how many bytes.
fn write_all(out: &mut impl Write, channels: usize, pieces: &Receiver<Piece>) -> io::Result<u64> {
    let mut next = 0;
    let block_len = BLOCK_SAMPLES * channels * 2;
    while let Ok(Piece::Block(number, samples)) = pieces.recv() {
        for _ in next..number {
            out.write_all(&vec![0; block_len])?;
        }
        next = number + 1;
        let bytes: Vec<u8> =
            samples.iter().flat_map(|s| ((s.clamp(-1.0, 1.0) * 32_767.0) as i16).to_le_bytes()).collect();
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(next * block_len as u64)
}

/// The header of 16-bit PCM (RIFF, WAVE_FORMAT_PCM) for so many bytes of sound.
fn wav_header(channels: usize, bytes: u32) -> Vec<u8> {
    let (channels, frame) = (channels as u16, 2 * channels as u16);
    let mut header = Vec::with_capacity(44);
    header.extend_from_slice(b"RIFF");
    header.extend(bytes.saturating_add(36).to_le_bytes());
    header.extend_from_slice(b"WAVEfmt ");
    header.extend(16u32.to_le_bytes());
    header.extend([1u16, channels].iter().flat_map(|value| value.to_le_bytes()));
    header.extend([SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * u32::from(frame)].iter().flat_map(|value| value.to_le_bytes()));
    header.extend([frame, 16].iter().flat_map(|value| value.to_le_bytes()));
    header.extend_from_slice(b"data");
    header.extend(bytes.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_writer_missed_is_silence() {
        let (pieces, to_write) = sync_channel(8);
        pieces.send(Piece::Block(0, vec![0.5; BLOCK_SAMPLES])).expect("room");
        pieces.send(Piece::Block(2, vec![-2.0; BLOCK_SAMPLES])).expect("room");
        pieces.send(Piece::End).expect("room");
        let mut out = Vec::new();
        assert_eq!(write_all(&mut out, 1, &to_write).expect("memory"), 3 * 960);
        let sample = |n: usize| i16::from_le_bytes([out[2 * n], out[2 * n + 1]]);
        assert_eq!([sample(0), sample(480), sample(959), sample(960)], [16_383, 0, 0, -32_767]);
        let header = wav_header(2, 1920);
        assert_eq!((header.len(), &header[..4], &header[4..8]), (44, &b"RIFF"[..], &1956u32.to_le_bytes()[..]));
    }
}
