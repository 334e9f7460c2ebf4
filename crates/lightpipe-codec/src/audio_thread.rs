//! One thread per stream with sound: raw blocks in, Opus packets out, while somebody listens.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::audio::{Aligner, Frame, Framer, span};
use lightpipe_media::queue::Pop;
use lightpipe_media::{AudioBlock, AudioPacket, AudioQueue, MediaClock, Stream};
use tracing::{debug, info, warn};

use crate::audio_encoder::{AudioEncoder, AudioEncoderConfig};
use crate::encoder::EncodeError;
use crate::opus::OpusEncoder;

/// How often an idle thread looks whether it is still needed.
const IDLE_CHECK: Duration = Duration::from_millis(250);

/// Smallest change of the reported loss that the encoder is told.
const LOSS_STEP: f32 = 0.01;

/// What an audio thread works with.
#[derive(Debug)]
pub struct AudioSetup {
    /// Where packets go.
    pub stream: Arc<Stream>,
    /// Where blocks come from. Closing it ends the thread.
    pub blocks: Arc<AudioQueue>,
    /// The media clock of the blocks.
    pub clock: MediaClock,
    /// Channels, bitrate, content.
    pub config: AudioEncoderConfig,
    /// Blocks are at 48 kHz of the media clock already. Otherwise they are brought onto it, see [`Aligner`].
    pub exact: bool,
}

/// A running audio thread. Dropping it closes the queue and waits for the thread.
#[derive(Debug)]
pub struct AudioThread {
    blocks: Arc<AudioQueue>,
    thread: Option<JoinHandle<()>>,
}

impl AudioThread {
    /// Starts the thread; the stream has sound from now on.
    pub fn spawn(setup: AudioSetup) -> std::io::Result<Self> {
        setup.stream.add_audio();
        let blocks = Arc::clone(&setup.blocks);
        let name = format!("audio-{}", setup.stream.name());
        let thread = std::thread::Builder::new().name(name).spawn(move || Worker::new(setup).run())?;
        Ok(Self { blocks, thread: Some(thread) })
    }
}

impl Drop for AudioThread {
    fn drop(&mut self) {
        self.blocks.close();
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Worker {
    setup: AudioSetup,
    aligner: Option<Aligner>,
    framer: Framer,
    encoder: Option<OpusEncoder>,
    loss: f32,
    failed: bool,
}

impl Worker {
    fn new(setup: AudioSetup) -> Self {
        let framer = Framer::new(setup.config.channels, setup.config.frame_samples);
        let aligner = (!setup.exact).then(Aligner::new);
        Self { setup, aligner, framer, encoder: None, loss: 0.0, failed: false }
    }

    fn run(mut self) {
        loop {
            match self.setup.blocks.pop(IDLE_CHECK) {
                Pop::Item(block) => self.on_block(&block),
                Pop::TimedOut => {}
                Pop::Closed => break,
            }
            if self.setup.stream.outlets() == 0 && self.encoder.take().is_some() {
                // Whoever comes next hears what is then, not the rest of this.
                self.framer = Framer::new(self.setup.config.channels, self.setup.config.frame_samples);
            }
        }
        debug!(stream = self.setup.stream.name(), "audio thread ends");
    }

    fn on_block(&mut self, block: &AudioBlock) {
        // The aligner hears everything: it has to know the device's clock when somebody comes.
        let aligned = match &mut self.aligner {
            Some(aligner) => aligner.push(block),
            None => None,
        };
        if self.aligner.is_some() && aligned.is_none() {
            return;
        }
        if self.setup.stream.outlets() == 0 {
            return;
        }
        let mut frames = Vec::new();
        self.framer.push(aligned.as_ref().unwrap_or(block), |frame| frames.push(frame));
        for frame in frames {
            match self.encode(&frame) {
                Ok(packet) => {
                    self.failed = false;
                    let level = Some(level(&frame.samples));
                    self.setup.stream.publish_audio(&Arc::new(packet), level);
                }
                Err(error) => {
                    self.encoder = None;
                    self.setup.stream.update_stats(|s| s.audio.errors += 1);
                    if !std::mem::replace(&mut self.failed, true) {
                        warn!(stream = self.setup.stream.name(), %error, "encoding sound failed");
                    }
                }
            }
        }
        let dropped = self.setup.blocks.dropped();
        let drift_ppm = self.aligner.as_ref().map(Aligner::drift_ppm);
        self.setup.stream.update_stats(|s| (s.audio.blocks_dropped, s.audio.drift_ppm) = (dropped, drift_ppm));
    }

    fn encode(&mut self, frame: &Frame) -> Result<AudioPacket, EncodeError> {
        let AudioSetup { stream, config, clock, .. } = &self.setup;
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => {
                let encoder = OpusEncoder::new(*config)?;
                info!(
                    stream = stream.name(),
                    backend = encoder.name(),
                    bitrate_kbps = config.bitrate_bps / 1000,
                    "audio encoder started"
                );
                self.loss = 0.0;
                none.insert(encoder)
            }
        };
        let loss = stream.audio_loss();
        if (loss - self.loss).abs() >= LOSS_STEP {
            encoder.set_loss(loss)?;
            self.loss = loss;
        }
        let data = encoder.encode(&frame.samples)?;
        Ok(AudioPacket {
            data: data.into(),
            captured: frame.captured - encoder.look_ahead(),
            duration: span(config.frame_samples as u64),
            encoded: clock.at(Instant::now()),
            starts_talkspurt: frame.starts_run,
            origin: None,
        })
    }
}

/// Root mean square of a frame, 0 to 1.
fn level(samples: &[f32]) -> f32 {
    (samples.iter().map(|s| s * s).sum::<f32>() / samples.len().max(1) as f32).sqrt()
}
