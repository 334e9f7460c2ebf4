//! `play --live`: a stream in real time, through the jitter buffer.
//!
//! One thread takes 10 ms of sound each 10 ms, and pictures when their sound is heard; what is asked for goes to standard output. Who reads too
//! slowly makes it pause: it goes on with what is then, and does not fall behind.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_codec::{Playback, VideoDecoder, decoder_for};
use lightpipe_media::audio::SAMPLE_RATE_HZ;
use lightpipe_media::playout::{BLOCK, PlayoutConfig};
use lightpipe_media::{AccessUnit, MediaClock, Size, Stream, Subscription};
use tokio::sync::oneshot;

use super::raw::{CHANNELS, Medium, write_samples};
use crate::output;

/// A turn that comes later than this is not made up for: the sound of that time is gone.
const PAUSED: Duration = Duration::from_millis(200);

/// How often figures are told.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Plays until it is dropped, or until nobody reads any more.
pub(super) struct LiveOutput {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LiveOutput {
    /// Starts it; `medium` goes to standard output. The receiver hears of the end.
    pub(super) fn start(
        stream: &Arc<Stream>,
        clock: MediaClock,
        medium: Option<Medium>,
        json: bool,
    ) -> anyhow::Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let playback = Playback::new(PlayoutConfig { channels: CHANNELS, ..PlayoutConfig::default() })?;
        let subscription = stream.subscribe(playback.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, end) = oneshot::channel();
        let player = Player {
            playback,
            subscription,
            stream: Arc::clone(stream),
            clock,
            medium,
            decoder: None,
            size: None,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("playout".into()).spawn(move || {
            let _ = ended.send(player.run(json));
        })?;
        Ok((Self { stop, thread: Some(thread) }, end))
    }
}

impl Drop for LiveOutput {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Player {
    playback: Arc<Playback>,
    subscription: Subscription,
    stream: Arc<Stream>,
    clock: MediaClock,
    medium: Option<Medium>,
    decoder: Option<Box<dyn VideoDecoder>>,
    size: Option<Size>,
    stop: Arc<AtomicBool>,
}

impl Player {
    fn run(mut self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.medium == Some(Medium::Sound) {
            output::note(format_args!("sound: s16le, {SAMPLE_RATE_HZ} Hz, {CHANNELS} channels"));
        }
        let mut samples = Vec::new();
        let mut turn = Instant::now();
        let mut report = turn + REPORT_INTERVAL;
        while !self.stop.load(Relaxed) {
            let now = Instant::now();
            if now >= turn {
                // By the turn's time and not by the machine's: the jitter of its timers is not the network's.
                self.playback.pull_sound(self.clock.at(turn), &mut samples);
                if self.medium == Some(Medium::Sound) {
                    write_samples(&mut out, &samples)?;
                    out.flush()?;
                }
                turn += BLOCK;
                if turn.elapsed() > PAUSED {
                    turn = Instant::now();
                }
            }
            while let Some(unit) = self.playback.pull_picture(self.clock.at(Instant::now())) {
                self.show(&unit, &mut out)?;
            }
            if self.playback.take_keyframe_wanted() {
                self.subscription.request_keyframe();
            }
            if json && now >= report {
                self.report();
                report += REPORT_INTERVAL;
            }
            let picture = self.playback.next_picture_at().map(|at| self.clock.instant(at));
            let next = picture.map_or(turn, |at| at.min(turn));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        if json {
            self.report();
        }
        Ok(())
    }

    fn report(&self) {
        output::note(lightpipe_net::playout_to_json(&self.playback.figures()));
    }

    fn show(&mut self, unit: &AccessUnit, out: &mut impl Write) -> io::Result<()> {
        if self.medium != Some(Medium::Pictures) {
            return Ok(());
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(decoder_for(self.stream.codec()).map_err(io::Error::other)?),
        };
        let frame = match decoder.decode(unit) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, "decoding");
                self.subscription.request_keyframe();
                return Ok(());
            }
        };
        if self.size.replace(frame.size()) != Some(frame.size()) {
            output::note(format_args!("pictures: I420, {}", frame.size()));
        }
        for plane in 0..3 {
            out.write_all(frame.plane(plane))?;
        }
        out.flush()
    }
}
