//! Keeps a child running: starts it, watches it, names what went wrong, starts it again.
//!
//! ```text
//!   SourceHandle ──Stop──▶ supervisor thread ──spawns──▶ child ──stdout──▶ reader thread ──▶ VideoSink or AudioSink
//!                             ▲      ▲                        └──stderr──▶ ring thread
//!                             │      └──────ReaderEnded────────────────────┘
//!                             └── reads the Run's counters when a watchdog is due
//! ```
//!
//! The retry of a source lives here and nowhere else.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::EventKind;
use lightpipe_media::frame::FrameError;
use lightpipe_media::stream::Health;
use lightpipe_media::{FramePool, MediaTime, VideoFrame};

use crate::SourceHandle;
use crate::child::{self, Farewell, Running};
use crate::pipe::{self, Feed, PipeError, PipeFormat, Run, Target};
use crate::stderr_ring::StderrRing;
use crate::timeline::Timeline;

/// Why a source could not be started. What fails later is the stream's health and an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The configured picture cannot exist.
    #[error(transparent)]
    BadPicture(#[from] FrameError),
    /// A pixel format that FFmpeg has no name for here.
    #[error("FFmpeg cannot be asked for {0:?} pictures")]
    PixelFormat(lightpipe_media::PixelFormat),
    /// A frame rate of 0 or beyond reason.
    #[error("{0} frames per second; 1 to 240 are possible")]
    BadFps(u32),
    /// The command to run is empty.
    #[error("no command to run")]
    NoCommand,
    /// Standard input can feed one stream.
    #[error("standard input already feeds a stream")]
    StdinTaken,
    /// The operating system gives no thread.
    #[error("no thread for the source")]
    Thread(#[source] std::io::Error),
}

/// How long silence is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchdog {
    /// From the start to the first byte. Cameras and network inputs take seconds. Default 10 s.
    pub first_byte: Duration,
    /// Between two pictures. [`Duration::MAX`] for a program that only writes when its picture changes.
    /// Default 5 s.
    pub stall: Duration,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(10), stall: Duration::from_secs(5) }
    }
}

/// Pauses between the starts of a child that fails: 100 ms, doubled up to 5 s.
///
/// The first is short because most ends are single (a camera unplugged for a moment, a kill) and the
/// picture should be back within 2 s; the last spares a machine on which the child cannot run, and still
/// finds out within 5 s that it can again. No jitter: one child has nobody to collide with.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const CAP: Duration = Duration::from_secs(5);
    /// A run that delivered pictures for this long worked; what comes after it is a new misfortune.
    const REAL_SUCCESS: Duration = Duration::from_secs(10);
    /// Failures in a row from which on the message says that this does not heal by itself.
    const HOPELESS: u32 = 10;

    pub(crate) fn after_failure(&mut self, success: Duration) -> Duration {
        if success >= Self::REAL_SUCCESS {
            self.failures = 0;
        }
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        Self::FIRST.saturating_mul(1 << doublings).min(Self::CAP)
    }

    fn hopeless(&self) -> bool {
        self.failures >= Self::HOPELESS
    }
}

/// What to run and how to understand it.
pub(crate) struct Plan {
    /// What messages call the child: `ffmpeg`, or the command.
    pub(crate) name: String,
    /// Makes the command anew for every start; of a film, from this position on.
    pub(crate) command: Box<dyn Fn(Duration) -> Command + Send>,
    /// The whole sentence for a program that does not exist.
    pub(crate) missing: String,
    pub(crate) farewell: Farewell,
    pub(crate) format: PipeFormat,
    pub(crate) watchdog: Watchdog,
    pub(crate) capture_delay: Duration,
    /// The input may have no such track. That is no failure: there is none then.
    pub(crate) may_be_absent: bool,
    /// The film that it plays. Its end is where the next run begins, and no failure.
    pub(crate) timeline: Option<Arc<Timeline>>,
}

/// What FFmpeg says when an input has nothing of the kind that an output wants.
const NO_TRACK: &str = "does not contain any stream";

/// A child under supervision. Dropping it ends the child and waits for the threads.
#[derive(Debug)]
pub(crate) struct Supervised {
    stop: Sender<Message>,
    pid: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Message {
    Stop,
    /// The reader of run number `run` is done with the child's output.
    ReaderEnded {
        run: u64,
        result: Result<(), PipeError>,
    },
}

/// How a run ended.
enum End {
    Stopped,
    Failed {
        reason: String,
        success: Duration,
    },
    /// A child played what it was told to play.
    Played,
    /// The input has nothing of what is wanted, and says so.
    NoTrack,
    /// There never was a child.
    NotStarted {
        reason: String,
    },
}

/// Refuses a raw geometry that no picture can have.
pub(crate) fn check_format(format: PipeFormat) -> Result<(), SourceError> {
    if let PipeFormat::Raw(raw) | PipeFormat::Detect(raw) | PipeFormat::RawInNut(raw) = format {
        let range = 2..=VideoFrame::MAX_SIDE;
        if !range.contains(&raw.size.width) || !range.contains(&raw.size.height) {
            // The constructor words the refusal; it looks at the size first.
            VideoFrame::packed(MediaTime::ZERO, raw.size, raw.pixels, FramePool::new().take(0))?;
        }
    }
    Ok(())
}

/// Starts the supervisor of `plan`.
pub(crate) fn start(plan: Plan, sink: impl Into<Target>) -> Result<Box<dyn SourceHandle>, SourceError> {
    check_format(plan.format)?;
    let (stop, messages) = channel();
    let pid = Arc::new(AtomicU32::new(0));
    let feed = Feed::new(sink.into(), plan.capture_delay, plan.timeline.clone());
    let supervisor = Supervisor { plan, feed, pid: Arc::clone(&pid), own: stop.clone(), messages, runs: 0 };
    let thread = std::thread::Builder::new()
        .name("source-supervisor".to_owned())
        .spawn(move || supervisor.supervise())
        .map_err(SourceError::Thread)?;
    Ok(Box::new(Supervised { stop, pid, thread: Some(thread) }))
}

impl SourceHandle for Supervised {
    fn child_pid(&self) -> Option<u32> {
        Some(self.pid.load(Relaxed)).filter(|pid| *pid != 0)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.stop.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Supervisor {
    plan: Plan,
    feed: Arc<Feed>,
    pid: Arc<AtomicU32>,
    own: Sender<Message>,
    messages: Receiver<Message>,
    runs: u64,
}

impl Supervisor {
    fn supervise(mut self) {
        let mut backoff = Backoff::default();
        loop {
            self.runs += 1;
            let end = self.run_once();
            self.pid.store(0, Relaxed);
            let retry_in = match end {
                End::Stopped => {
                    self.event(EventKind::FfmpegExited { reason: "stopped".to_owned(), retry_in: None });
                    return;
                }
                End::NoTrack => {
                    // No fault of anybody's, and nothing that another start would change.
                    self.feed.sink().stream.remove_audio();
                    tracing::info!(stream = self.feed.sink().stream.name(), "the input has no sound");
                    return;
                }
                End::Played => {
                    tracing::debug!(stream = self.feed.sink().stream.name(), "the film goes on in another child");
                    continue;
                }
                End::NotStarted { reason } => {
                    let retry_in = backoff.after_failure(Duration::ZERO);
                    let said = self.report(&backoff, reason, retry_in);
                    self.event(EventKind::SourceFailed { reason: said });
                    retry_in
                }
                End::Failed { reason, success } => {
                    let retry_in = backoff.after_failure(success);
                    let said = self.report(&backoff, reason.clone(), retry_in);
                    self.event(EventKind::FfmpegExited { reason, retry_in: Some(retry_in) });
                    if backoff.failures == Backoff::HOPELESS {
                        self.event(EventKind::SourceFailed { reason: said });
                    }
                    retry_in
                }
            };
            if self.stopped_within(retry_in) {
                return;
            }
        }
    }

    /// Logs a failure and shows it on the stream; answers what is shown.
    fn report(&self, backoff: &Backoff, reason: String, retry_in: Duration) -> String {
        let stream = &self.feed.sink().stream;
        tracing::warn!(
            target: "events::ffmpeg_exited",
            stream = stream.name(),
            medium = self.feed.sink().noun(),
            reason,
            retry_in_ms = retry_in.as_millis() as u64,
        );
        let said = if backoff.hopeless() {
            format!(
                "{} failed {} times in a row and is started again every {} s: {reason}",
                self.plan.name,
                backoff.failures,
                retry_in.as_secs(),
            )
        } else {
            reason
        };
        self.feed.sink().set_health(Health::Failed(said.clone()));
        said
    }

    fn event(&self, kind: EventKind) {
        self.feed.sink().event(kind);
    }

    /// Waits; true when the source was stopped meanwhile.
    fn stopped_within(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                // A reader that was given up has ended at last.
                Ok(Message::ReaderEnded { .. }) => {}
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    fn run_once(&mut self) -> End {
        let failed = |reason| End::Failed { reason, success: Duration::ZERO };
        let begins = self.feed.position();
        let mut command = (self.plan.command)(begins);
        let mut running = match Running::spawn(&mut command, self.plan.farewell) {
            Ok(running) => running,
            Err(e) => {
                let reason = if e.kind() == std::io::ErrorKind::NotFound {
                    self.plan.missing.clone()
                } else {
                    format!("{} could not be started: {e}", self.plan.name)
                };
                return End::NotStarted { reason };
            }
        };
        let pid = running.pid();
        self.pid.store(pid, Relaxed);
        self.event(EventKind::FfmpegSpawned { pid });
        tracing::info!(
            target: "events::ffmpeg_spawned",
            stream = self.feed.sink().stream.name(),
            medium = self.feed.sink().noun(),
            program = self.plan.name,
            pid,
        );
        let Some((stdout, mut stderr)) = running.take_pipes() else {
            return failed(format!("{} has no pipes", self.plan.name));
        };
        let ring = StderrRing::new();
        let run = Run::new(&self.feed, begins);
        let reader = {
            let (run, own, number) = (Arc::clone(&run), self.own.clone(), self.runs);
            let format = self.plan.format;
            move || {
                let result = pipe::read_to_end(stdout, format, &run);
                let _ = own.send(Message::ReaderEnded { run: number, result });
            }
        };
        let words = {
            let ring = ring.clone();
            move || ring.read_all(&mut stderr)
        };
        // Neither is joined by handle: both end with their pipe, which a process that left the child's
        // group may hold open. The reader's message says that it is done.
        for (name, body) in
            [("source-reader", Box::new(reader) as Box<dyn FnOnce() + Send>), ("source-stderr", Box::new(words))]
        {
            let thread = std::thread::Builder::new().name(name.to_owned());
            if let Err(e) = thread.spawn(body) {
                return failed(format!("no thread for {}: {e}", self.plan.name));
            }
        }
        let end = self.watch(&mut running, &run, &ring);
        run.end();
        end
    }

    /// Waits until the child ends, fails or is stopped, and leaves it dead.
    fn watch(&self, running: &mut Running, run: &Arc<Run>, ring: &StderrRing) -> End {
        let started = self.feed.sink().clock.at(Instant::now());
        let name = &self.plan.name;
        let noun = self.feed.sink().noun();
        loop {
            let now = self.feed.sink().clock.at(Instant::now());
            let (since, limit) = match run.bytes() {
                0 => (started, self.plan.watchdog.first_byte),
                _ => (run.progress(), self.plan.watchdog.stall),
            };
            let silent = now.since(since);
            if silent >= limit {
                // Silence is not politely asked to end: what hangs would hang on.
                let success = run.success();
                run.end();
                running.kill();
                ring.wait_end(Self::LAST_WORDS);
                self.reader_ended(Self::READER_END);
                let what = match (run.bytes(), run.pictures()) {
                    (0, _) => format!("wrote nothing for {:.1} s", limit.as_secs_f64()),
                    (bytes, 0) => format!("wrote {bytes} bytes and no whole {noun} for {:.1} s", limit.as_secs_f64()),
                    _ => format!("wrote no {noun} for {:.1} s", limit.as_secs_f64()),
                };
                return End::Failed { reason: quoted(format!("{name} {what} and was killed"), ring), success };
            }
            // Woken at least once per stall limit: the first byte starts a shorter deadline than its own.
            let nap = (limit - silent).min(self.plan.watchdog.stall);
            match self.messages.recv_timeout(nap) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    // Its output is read on meanwhile, else it could block in a write and not hear us.
                    run.end();
                    running.stop(self.plan.farewell);
                    self.reader_ended(Self::READER_END);
                    return End::Stopped;
                }
                Ok(Message::ReaderEnded { run: number, result }) if number == self.runs => {
                    let success = run.success();
                    let ended = result.is_ok();
                    let reason = self.reason_of_end(running, ring, result);
                    if self.plan.may_be_absent && run.bytes() == 0 && ring.last_lines(5).contains(NO_TRACK) {
                        return End::NoTrack;
                    }
                    let well = ended && running.kill().is_some_and(|status| status.success());
                    if self.plan.timeline.is_some() && well && success >= Self::PLAYED {
                        return End::Played;
                    }
                    return End::Failed { reason, success };
                }
                Ok(Message::ReaderEnded { .. }) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// A run of a film that was shorter than this is no run: it would be started for ever.
    const PLAYED: Duration = Duration::from_secs(1);
    /// How long a child's last lines are waited for: they are in the pipe already when it is dead.
    const LAST_WORDS: Duration = Duration::from_millis(200);
    /// How long a reader may take to see the end of a dead child's pipe.
    const READER_END: Duration = Duration::from_secs(1);

    fn reason_of_end(&self, running: &mut Running, ring: &StderrRing, result: Result<(), PipeError>) -> String {
        let name = &self.plan.name;
        // A child that closed its output is about to end, and its exit code tells more than our kill
        // would. One whose output we refuse is still writing.
        let exited = match result {
            Ok(()) | Err(PipeError::CutPicture { .. } | PipeError::Read(_)) => {
                running.wait_exit(Duration::from_millis(500))
            }
            Err(_) => running.wait_exit(Duration::ZERO),
        };
        let status = running.kill();
        ring.wait_end(Self::LAST_WORDS);
        let end = if exited { child::describe(status) } else { "closed its output and was killed".to_owned() };
        let reason = match result {
            Ok(()) => format!("{name} {end}"),
            // The exit explains a cut picture, unless it claims that all went well.
            Err(PipeError::CutPicture { .. }) if status.is_some_and(|s| !s.success()) => {
                format!("{name} {end}")
            }
            Err(e) => format!("{name} {e}"),
        };
        quoted(reason, ring)
    }

    /// Waits for the end of this run's reader.
    fn reader_ended(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok(Message::ReaderEnded { run, .. }) if run == self.runs => return,
                // A stop that comes now is served by the caller's loop: it must not get lost.
                Ok(Message::Stop) => {
                    let _ = self.own.send(Message::Stop);
                    return;
                }
                Ok(Message::ReaderEnded { .. }) => {}
                Err(_) => {
                    tracing::warn!(
                        stream = self.feed.sink().stream.name(),
                        "the pipe of a dead child is still open; another process holds it"
                    );
                    return;
                }
            }
        }
    }
}

/// A reason with the child's last words.
fn quoted(reason: String, ring: &StderrRing) -> String {
    let words = ring.last_lines(5);
    if words.is_empty() { reason } else { format!("{reason}; it said: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_start_over_after_real_success() {
        let mut backoff = Backoff::default();
        let mut pauses = |successes: &[u64]| -> Vec<u128> {
            successes.iter().map(|s| backoff.after_failure(Duration::from_secs(*s)).as_millis()).collect()
        };
        assert_eq!(pauses(&[0, 0, 9, 0, 0, 0, 0, 0]), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pauses(&[0, 10, 0]), [5000, 100, 200]);
        for _ in 0..100 {
            backoff.after_failure(Duration::ZERO);
        }
        assert!(backoff.hopeless());
        assert_eq!(backoff.after_failure(Duration::ZERO), Backoff::CAP);
        backoff.after_failure(Duration::from_secs(11));
        assert!(!backoff.hopeless());
    }
}
