//! Frame pacing for sources that make their own pictures: when the next one is due, and the thread
//! that makes it.
//!
//! [`Schedule`] is the arithmetic and knows no clock. `PacedSource` is the thread around it: it renders
//! while somebody watches the stream, sleeps while nobody does, and ends when its handle is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lightpipe_media::stream::Health;
use lightpipe_media::{EventKind, MediaClock, MediaTime, Size, VideoFrame};

use crate::{SourceHandle, VideoSink};

/// Longest sleep between two looks at the stop flag: how long dropping a source may take.
const STOP_LATENCY: Duration = Duration::from_millis(50);

/// When pictures are due: number `n` at `start + n / fps`, rounded to the microsecond.
///
/// Each deadline comes from the start and not from the one before, so no frame rate drifts. A
/// caller that is late by more than one frame skips what it missed: a burst of old pictures helps nobody.
#[derive(Debug, Clone)]
pub struct Schedule {
    start: MediaTime,
    fps: f64,
    next: u64,
}

impl Schedule {
    /// Picture 0 is due at `start`. `fps` is positive.
    pub const fn new(start: MediaTime, fps: f64) -> Self {
        Self { start, fps, next: 0 }
    }

    /// When picture `n` is due.
    pub fn due(&self, n: u64) -> MediaTime {
        // Exact up to 2^53 µs, 285 years.
        self.start + Duration::from_micros((n as f64 * 1e6 / self.fps).round() as u64)
    }

    /// When the next picture is due, seen at `now`. A time in the past means: at once.
    pub fn next(&mut self, now: MediaTime) -> MediaTime {
        if self.due(self.next + 1) < now {
            let elapsed = now.since(self.start).as_micros() as f64;
            let current = (elapsed * self.fps / 1e6).floor() as u64;
            self.next = self.next.max(current);
        }
        let due = self.due(self.next);
        self.next += 1;
        due
    }

    /// Moves all pictures to come by this much: a display's phase, not a change of rate.
    pub fn delay(&mut self, by: Duration) {
        self.start = self.start + by;
    }
}

/// Why a rendered source (`cube`, `pattern`) did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The caller asked for an impossible picture.
    #[error("a picture of {0} cannot be made: both sides must be 16 to 8192")]
    BadSize(Size),
    /// The caller asked for an impossible frame rate.
    #[error("{0} frames per second cannot be made: above 0 and up to 240 is possible")]
    BadFps(f64),
    /// This program has no GPU renderer in it.
    #[error("this build has no GPU renderer (cargo feature `gpu`): use --renderer cpu or auto")]
    BuiltWithoutGpu,
    /// The machine has no usable graphics driver.
    #[error(
        "no graphics adapter for --renderer gpu ({reason}): install a Vulkan or EGL driver (Debian, Ubuntu: \
         mesa-vulkan-drivers libegl1 libgl1-mesa-dri), or use --renderer cpu"
    )]
    NoAdapter {
        /// The graphics library's words.
        reason: String,
    },
    /// The adapter is there, but it refused.
    #[error("the graphics adapter {adapter} cannot draw: {reason}; --renderer cpu needs none")]
    AdapterFailed {
        /// Its name.
        adapter: String,
        /// The graphics library's words.
        reason: String,
    },
    /// The system refused a thread.
    #[error("cannot start the renderer's thread")]
    Thread(#[from] std::io::Error),
}

/// Checks what every rendered source is asked for. `size` is even already.
pub(crate) fn check_picture(size: Size, fps: f64) -> Result<(), StartError> {
    let sides = 16..=VideoFrame::MAX_SIDE;
    if !sides.contains(&size.width) || !sides.contains(&size.height) {
        return Err(StartError::BadSize(size));
    }
    if !(fps > 0.0 && fps <= 240.0) {
        return Err(StartError::BadFps(fps));
    }
    Ok(())
}

/// What the timecode strip carries for a capture time.
pub(crate) fn unix_ms(clock: &MediaClock, at: MediaTime) -> u32 {
    // Modulo 2³² by the strip's definition.
    clock.unix_micros(at).div_euclid(1000) as u32
}

/// What makes the pictures of a [`PacedSource`]. Errors are whole sentences for people.
pub(crate) trait PictureMaker: Send + 'static {
    /// Called before the first picture and again and again while nobody watches: can pictures be made?
    fn idle(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// The picture of now; `at` is now.
    fn picture(&mut self, at: MediaTime) -> Result<VideoFrame, String>;

    /// How long after an error it is worth another try; `None` when an error is the end.
    fn retry(&self) -> Option<Duration> {
        None
    }
}

impl<F: FnMut(MediaTime) -> Result<VideoFrame, String> + Send + 'static> PictureMaker for F {
    fn picture(&mut self, at: MediaTime) -> Result<VideoFrame, String> {
        self(at)
    }
}

/// How long dropping a source waits for its thread, which may be held up by an X server.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A thread that makes pictures at an even pace while somebody watches. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct PacedSource {
    stop: Arc<AtomicBool>,
    /// Closed when the thread is done.
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl PacedSource {
    /// Starts the thread. `render` makes the picture of a capture time; an error that it returns ends
    /// the source with that reason.
    pub(crate) fn spawn(
        name: &str,
        fps: f64,
        sink: VideoSink,
        render: impl FnMut(MediaTime) -> Result<VideoFrame, String> + Send + 'static,
    ) -> std::io::Result<Self> {
        // Ready to make pictures is all that such a source can be; nothing is rendered unwatched.
        sink.stream.set_health(Health::Live);
        Self::spawn_maker(name, fps, sink, render)
    }

    /// Starts the thread around something that can fail and recover.
    pub(crate) fn spawn_maker(
        name: &str,
        fps: f64,
        sink: VideoSink,
        maker: impl PictureMaker,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ending, done) = channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                Paced { stop: &stop, fps, sink: &sink, maker, failed: false, delivered: false }.run();
                drop(ending);
            }
        })?;
        Ok(Self { stop, done, thread: Some(thread) })
    }
}

impl SourceHandle for PacedSource {
    fn child_pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for PacedSource {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let Some(thread) = self.thread.take() else { return };
        if self.done.recv_timeout(END_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(source = thread.thread().name(), "the source does not end; it is left behind");
            return;
        }
        // A panic in the thread has been reported by the panic hook.
        _ = thread.join();
    }
}

/// The thread of a [`PacedSource`].
struct Paced<'a, M> {
    stop: &'a AtomicBool,
    fps: f64,
    sink: &'a VideoSink,
    maker: M,
    failed: bool,
    delivered: bool,
}

impl<M: PictureMaker> Paced<'_, M> {
    fn run(mut self) {
        while !self.ended() {
            let result = match self.maker.idle() {
                Ok(()) => {
                    self.recovered();
                    self.show()
                }
                Err(reason) => Err(reason),
            };
            if let Err(reason) = result {
                self.fail(reason);
                let Some(pause) = self.maker.retry() else { return };
                sleep_until(Instant::now() + pause, || self.ended());
            }
        }
    }

    /// Waits a moment for somebody who watches; makes pictures until nobody does.
    fn show(&mut self) -> Result<(), String> {
        let sink = self.sink;
        if !sink.stream.wait_wanted(STOP_LATENCY) {
            return Ok(());
        }
        let now = || sink.clock.at(Instant::now());
        // Whoever came first waits for no tick: the schedule starts now.
        let mut schedule = Schedule::new(now(), self.fps);
        while sink.stream.outlets() > 0 {
            schedule.delay(sink.stream.take_capture_delay());
            let due = schedule.next(now());
            if !sleep_until(sink.clock.instant(due), || self.ended()) {
                return Ok(());
            }
            let mut frame = self.maker.picture(now())?;
            frame.received = now();
            sink.frames.push(frame);
            if !std::mem::replace(&mut self.delivered, true) {
                sink.events.push(now(), sink.stream.name(), EventKind::FirstFrameIngested);
            }
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        self.stop.load(Relaxed) || self.sink.stream.is_closed()
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failed) || self.sink.stream.health() == Health::Starting {
            self.delivered = false;
            self.sink.stream.set_health(Health::Live);
        }
    }

    /// Said once; the tries after it are silent until one succeeds.
    fn fail(&mut self, reason: String) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.sink.stream.set_health(Health::Failed(reason.clone()));
        let at = self.sink.clock.at(Instant::now());
        self.sink.events.push(at, self.sink.stream.name(), EventKind::SourceFailed { reason });
    }
}

/// Sleeps until `deadline`; false when `ended` turned true meanwhile.
///
/// The system's sleep is late by its timer slack (50 µs on Linux), never early. Spinning through that
/// would cost more than it is worth: capture times are read after the sleep.
pub(crate) fn sleep_until(deadline: Instant, ended: impl Fn() -> bool) -> bool {
    while !ended() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(STOP_LATENCY));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> MediaTime {
        MediaTime::from_micros(micros)
    }

    #[track_caller]
    fn check_due(fps: f64, n: u64, micros: i64) {
        let schedule = Schedule::new(at(1_000_000), fps);
        assert_eq!(schedule.due(n), at(1_000_000 + micros), "{n} at {fps} fps");
    }

    #[test]
    fn no_frame_rate_drifts() {
        check_due(30.0, 1, 33_333);
        check_due(30.0, 2, 66_667);
        for fps in [24.0, 25.0, 30.0, 50.0, 60.0, 144.0] {
            let day = 86_400;
            check_due(fps, fps as u64, 1_000_000);
            check_due(fps, fps as u64 * day, day as i64 * 1_000_000);
        }
        check_due(30_000.0 / 1001.0, 30_000, 1_001_000_000);
    }

    #[test]
    fn a_delay_moves_the_pictures_to_come_and_keeps_the_rate() {
        let mut schedule = Schedule::new(at(0), 50.0);
        assert_eq!(schedule.next(at(0)), at(0));
        schedule.delay(Duration::from_millis(9));
        assert_eq!(schedule.next(at(0)), at(29_000));
        assert_eq!(schedule.next(at(29_000)), at(49_000));
    }

    /// Asks at each of `nows` and compares the answers.
    #[track_caller]
    fn check_next(nows: &[i64], expected: &[i64]) {
        let mut schedule = Schedule::new(at(0), 50.0);
        let got: Vec<_> = nows.iter().map(|now| schedule.next(at(*now))).collect();
        let expected: Vec<_> = expected.iter().map(|micros| at(*micros)).collect();
        assert_eq!(got, expected, "asking at {nows:?}");
    }

    #[test]
    fn the_first_picture_is_due_at_once_and_the_rest_on_the_grid() {
        check_next(&[0, 100, 21_000, 40_500], &[0, 20_000, 40_000, 60_000]);
    }

    #[test]
    fn a_little_late_keeps_the_grid() {
        check_next(&[0, 39_000, 41_000], &[0, 20_000, 40_000]);
    }

    #[test]
    fn late_by_more_than_a_frame_skips_instead_of_bursting() {
        check_next(&[0, 105_000, 106_000], &[0, 100_000, 120_000]);
        check_next(&[0, 3_600_000_000, 3_600_000_001], &[0, 3_600_000_000, 3_600_020_000]);
    }
}
