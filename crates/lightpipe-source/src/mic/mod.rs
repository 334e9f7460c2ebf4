//! `mic`: audio inputs, and the monitors of outputs, which give what is played there.
//!
//! On Linux through PulseAudio's protocol, which PipeWire speaks too (`pulse`), elsewhere through `cpal` (`device`). A device that is not there,
//! or goes, is the health of the stream's sound, and is tried again as children are.

#[cfg(not(target_os = "linux"))]
mod device;
#[cfg(target_os = "linux")]
mod pulse;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::stream::Health;
use lightpipe_media::{AudioBlock, EventKind};

#[cfg(not(target_os = "linux"))]
use self::device as system;
#[cfg(target_os = "linux")]
use self::pulse as system;
use crate::devices::Device;
use crate::pipe::Target;
use crate::supervisor::{Backoff, SourceError};
use crate::{AudioSink, SourceHandle};

/// What a device is called that gives what the default output plays.
pub const MONITOR: &str = "monitor";

/// How often a device is asked whether it is still there.
const CHECK: Duration = Duration::from_millis(200);

/// Which input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of an input, or of an output whose monitor is meant; [`MONITOR`] for that of the default output. The default input without.
    pub device: Option<String>,
    /// 1 or 2.
    pub channels: usize,
}

/// Why there is no sound from a device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MicError {
    /// Nobody to ask.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "the system itself is the server there"))]
    #[error("no PulseAudio or PipeWire server answers ({0}); start one, or run as the user whose desktop it is")]
    NoServer(String),
    /// No such device.
    #[error("there is no audio input or output {wanted:?}; `lightpipe devices` lists them: {known}")]
    NoDevice { wanted: String, known: String },
    /// No device at all.
    #[error("there is no audio input; plug one in, or name one that `lightpipe devices` lists")]
    NoDefault,
    /// It was there, and is not any more.
    #[error("the audio input is gone ({0})")]
    Gone(String),
    /// It refuses.
    #[error("the audio input cannot be opened: {0}")]
    Refused(String),
}

/// Opens the device and keeps it open until the handle is dropped.
pub fn start(config: Config, sink: AudioSink) -> Result<Box<dyn SourceHandle>, SourceError> {
    let (stop, stopped) = channel();
    let mic = Listening { config, target: Target::from(sink.clone()), sink, stopped };
    let thread =
        std::thread::Builder::new().name("mic".to_owned()).spawn(move || mic.run()).map_err(SourceError::Thread)?;
    Ok(Box::new(Mic { stop: Some(stop), thread: Some(thread) }))
}

/// Audio inputs and monitors of this machine. Empty when there are none, or nobody can tell.
pub fn list() -> Vec<Device> {
    system::list()
}

#[derive(Debug)]
struct Mic {
    /// Dropping it stops the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SourceHandle for Mic {
    fn child_pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for Mic {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by the panic hook.
            _ = thread.join();
        }
    }
}

struct Listening {
    config: Config,
    sink: AudioSink,
    target: Target,
    stopped: Receiver<()>,
}

impl Listening {
    fn run(self) {
        let mut backoff = Backoff::default();
        // An end of the same kind is told once, not every five seconds.
        let mut told = String::new();
        while let Some((error, success)) = self.listen() {
            let reason = error.to_string();
            let retry_in = backoff.after_failure(success);
            if told != reason || !success.is_zero() {
                tracing::warn!(target: "events::audio_exited", stream = self.sink.stream.name(), reason);
                told.clone_from(&reason);
            }
            self.target.set_health(Health::Failed(reason.clone()));
            self.target.event(EventKind::FfmpegExited { reason, retry_in: Some(retry_in) });
            if self.waited(retry_in) {
                return;
            }
        }
    }

    /// Listens until the device fails; `None` when stopped. Answers for how long there was sound.
    fn listen(&self) -> Option<(MicError, Duration)> {
        let first: Arc<Mutex<Option<Instant>>> = Arc::default();
        let take = {
            let (sink, target, first) = (self.sink.clone(), self.target.clone(), Arc::clone(&first));
            // Called for each piece, on the device's thread, when its last sample is there.
            move |rate_hz: u32, channels: usize, samples: Vec<f32>| {
                let arrived = sink.clock.at(Instant::now());
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.is_none() {
                    *first = Some(Instant::now());
                    target.set_health(Health::Live);
                    target.event(EventKind::FirstFrameIngested);
                    tracing::info!(target: "events::first_audio_ingested", stream = sink.stream.name(), rate_hz, channels);
                }
                let len = (samples.len() / channels.max(1)) as u64;
                let span = Duration::from_micros(len * 1_000_000 / u64::from(rate_hz.max(1)));
                sink.blocks.push(AudioBlock { captured: arrived - span, rate_hz, channels, samples });
            }
        };
        let heard = || {
            let first = *first.lock().unwrap_or_else(PoisonError::into_inner);
            first.map_or(Duration::ZERO, |at| at.elapsed())
        };
        let device = match system::Open::new(&self.config, take) {
            Ok(device) => device,
            Err(error) => return (!self.waited(Duration::ZERO)).then_some((error, Duration::ZERO)),
        };
        loop {
            if self.waited(CHECK) {
                return None;
            }
            if let Err(error) = device.check() {
                return Some((error, heard()));
            }
        }
    }

    /// Waits; true when the source was stopped meanwhile.
    fn waited(&self, pause: Duration) -> bool {
        !matches!(self.stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
    }
}
