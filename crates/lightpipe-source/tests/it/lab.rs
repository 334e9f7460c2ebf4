//! A sink for one source, and waiting without sleeping.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lightpipe_media::queue::Pop;
use lightpipe_media::stream::Health;
use lightpipe_media::{
    AccessUnit, Event, EventKind, EventLog, FrameQueue, MediaClock, Outlet, Stream, Subscription, VideoCodec,
    VideoFrame,
};
use lightpipe_source::VideoSink;

/// Longer than anything takes on a busy two-core machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a source delivers to.
pub(crate) struct Lab {
    pub(crate) sink: VideoSink,
    units: Arc<Units>,
    _subscription: Subscription,
}

#[derive(Default)]
struct Units {
    taken: Mutex<Vec<Arc<AccessUnit>>>,
    more: std::sync::Condvar,
}

impl Outlet for Units {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        self.taken.lock().expect("no panic").push(Arc::clone(unit));
        self.more.notify_all();
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let stream = Stream::new("lab", VideoCodec::H264);
        let units = Arc::new(Units::default());
        let subscription = stream.subscribe(units.clone());
        Self {
            sink: VideoSink {
                stream,
                frames: Arc::new(FrameQueue::new(4)),
                clock: MediaClock::new(Instant::now(), Duration::from_secs(1_700_000_000)),
                events: EventLog::new(),
            },
            units,
            _subscription: subscription,
        }
    }

    /// The next raw picture.
    #[track_caller]
    pub(crate) fn frame(&self) -> VideoFrame {
        match self.sink.frames.pop(PATIENCE) {
            Pop::Item(frame) => frame,
            other => panic!("{other:?}, {:?}", self.sink.stream.health()),
        }
    }

    /// The first `count` access units.
    #[track_caller]
    pub(crate) fn units(&self, count: usize) -> Vec<Arc<AccessUnit>> {
        let taken = self.units.taken.lock().expect("no panic");
        let (taken, timeout) =
            self.units.more.wait_timeout_while(taken, PATIENCE, |t| t.len() < count).expect("no panic");
        assert!(!timeout.timed_out(), "{} of {count} units, {:?}", taken.len(), self.sink.stream.health());
        taken[..count].to_vec()
    }

    /// Waits for an event at or after `seq`.
    #[track_caller]
    pub(crate) fn event(&self, seq: u64, name: &str) -> Event {
        let found = self.sink.events.wait_for(seq, PATIENCE, |e| e.kind.name() == name);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.sink.events.since(0)))
    }

    /// The reason of the first `ffmpeg_exited` or `source_failed`.
    #[track_caller]
    pub(crate) fn failure(&self) -> String {
        let ended = |e: &Event| matches!(e.kind, EventKind::FfmpegExited { .. } | EventKind::SourceFailed { .. });
        match self.sink.events.wait_for(0, PATIENCE, ended).map(|e| e.kind) {
            Some(EventKind::FfmpegExited { reason, .. } | EventKind::SourceFailed { reason }) => reason,
            _ => panic!("no failure in {:?}", self.sink.events.since(0)),
        }
    }

    pub(crate) fn event_names(&self) -> Vec<&'static str> {
        self.sink.events.since(0).iter().map(|e| e.kind.name()).collect()
    }

    pub(crate) fn health(&self) -> Health {
        self.sink.stream.health()
    }
}

/// Whether a process exists (a zombie does not count: it has ended).
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is the letter behind the name, which is in parentheses and may hold anything.
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    !matches!(state, None | Some("Z" | "X"))
}

/// Sends a signal by the `kill` program: tests have no unsafe code.
pub(crate) fn kill_9(pid: u32) {
    let status =
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("`kill` is installed");
    assert!(status.success());
}

/// Polls for something that sends no event.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
