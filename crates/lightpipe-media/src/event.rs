//! Lifecycle events: what happened to sources, tracks and peers, in order.
//!
//! A contract with tests (`ffmpeg_spawned → first_frame_ingested → track_active → peer_connected`, and their
//! endings with reasons) and the API's `/api/v1/events`. Logging is separate and derived.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::access_unit::VideoCodec;
use crate::frame::Size;
use crate::time::MediaTime;

/// What happened. The name in snake case ([`Self::name`]) is part of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// An FFmpeg (or `exec`) child runs.
    FfmpegSpawned {
        /// Process id.
        pid: u32,
    },
    /// The first picture of a (re)started source arrived.
    FirstFrameIngested,
    /// A child ended; it will be started again after `retry_in`, or stays down without one.
    FfmpegExited {
        /// Why, with the child's own last words.
        reason: String,
        /// Pause before the next start.
        retry_in: Option<Duration>,
    },
    /// A child that gives the sound of a stream runs.
    AudioSpawned {
        /// Process id.
        pid: u32,
    },
    /// The first sound of a (re)started source arrived.
    FirstAudioIngested,
    /// A source of sound ended or failed; it is tried again after `retry_in`, or stays down without one.
    AudioExited {
        /// Why, and what helps.
        reason: String,
        /// Pause before the next start.
        retry_in: Option<Duration>,
    },
    /// A source failed otherwise.
    SourceFailed {
        /// Why, and what helps.
        reason: String,
    },
    /// The first access unit of a track was published since it last became wanted.
    TrackActive {
        /// Of its pictures; `None` where there is only sound.
        codec: Option<VideoCodec>,
        /// The layer, where there are several.
        rid: Option<String>,
    },
    /// Nobody wants the track any more; its encoder stopped.
    TrackIdle {
        /// As above: a track that is encoded twice is idle twice.
        codec: Option<VideoCodec>,
        /// As above.
        rid: Option<String>,
    },
    /// A layer is left out, the others go on; it is tried again after `retry_in`.
    LayerDropped {
        /// Of its pictures.
        codec: VideoCodec,
        /// Its name; `None` of the only one.
        rid: Option<String>,
        /// A machine-readable cause: `encoder_failed`, `too_slow`, `cpu_budget`.
        cause: &'static str,
        /// Why, and what helps.
        reason: String,
        /// Pause before the next try.
        retry_in: Duration,
    },
    /// A stream that is encoded once is encoded in other pictures from now on, because of what its viewers' networks carry.
    EncodingAdapted {
        /// Of its pictures.
        codec: VideoCodec,
        /// Their size.
        size: Size,
        /// From one to the next.
        interval: Duration,
        /// What the encoder aims for, bits per second.
        target_bps: u64,
    },
    /// A viewer shows pictures ever later, and something was done about it.
    FellBehind {
        /// Peer id.
        peer: String,
        /// What was done about it: `lower_layer`, `keyframe`, `restart`.
        step: &'static str,
        /// By how much, beyond what it had been.
        by: Duration,
    },
    /// A peer finished ICE and DTLS.
    PeerConnected {
        /// Peer id.
        peer: String,
        /// From the offer's arrival.
        took: Duration,
    },
    /// A publisher finished ICE and DTLS.
    PublisherConnected {
        /// Peer id.
        peer: String,
        /// From the offer's arrival.
        took: Duration,
    },
    /// A publisher is gone; its stream waits for it to come back.
    PublisherDisconnected {
        /// Peer id.
        peer: String,
        /// A machine-readable cause.
        cause: &'static str,
    },
    /// A peer is gone.
    PeerDisconnected {
        /// Peer id.
        peer: String,
        /// A machine-readable cause, e.g. `closed_by_peer`, `ice_timeout`, `shutdown`.
        cause: &'static str,
    },
}

impl EventKind {
    /// Name in the API and in the logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::FfmpegSpawned { .. } => "ffmpeg_spawned",
            Self::FirstFrameIngested => "first_frame_ingested",
            Self::FfmpegExited { .. } => "ffmpeg_exited",
            Self::AudioSpawned { .. } => "audio_spawned",
            Self::FirstAudioIngested => "first_audio_ingested",
            Self::AudioExited { .. } => "audio_exited",
            Self::SourceFailed { .. } => "source_failed",
            Self::TrackActive { .. } => "track_active",
            Self::TrackIdle { .. } => "track_idle",
            Self::LayerDropped { .. } => "layer_dropped",
            Self::EncodingAdapted { .. } => "encoding_adapted",
            Self::FellBehind { .. } => "fell_behind",
            Self::PeerConnected { .. } => "peer_connected",
            Self::PublisherConnected { .. } => "publisher_connected",
            Self::PublisherDisconnected { .. } => "publisher_disconnected",
            Self::PeerDisconnected { .. } => "peer_disconnected",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts all events of the log, from 0.
    pub seq: u64,
    /// When.
    pub at: MediaTime,
    /// The stream concerned.
    pub stream: String,
    /// What happened.
    pub kind: EventKind,
}

/// The last [`EventLog::CAPACITY`] events; older ones are forgotten. Cloning shares the log.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    shared: Arc<(Mutex<Inner>, Condvar)>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    next_seq: u64,
}

impl EventLog {
    /// Events kept.
    pub const CAPACITY: usize = 1024;

    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event.
    pub fn push(&self, at: MediaTime, stream: &str, kind: EventKind) {
        {
            let mut inner = self.lock();
            let seq = inner.next_seq;
            inner.next_seq += 1;
            if inner.events.len() == Self::CAPACITY {
                inner.events.pop_front();
            }
            inner.events.push_back(Event { seq, at, stream: stream.to_owned(), kind });
        }
        self.shared.1.notify_all();
    }

    /// Kept events with a sequence number of at least `seq`, oldest first.
    pub fn since(&self, seq: u64) -> Vec<Event> {
        self.lock().events.iter().filter(|e| e.seq >= seq).cloned().collect()
    }

    /// Waits up to `timeout` for an event at or after `seq` that satisfies `wanted`.
    pub fn wait_for(&self, seq: u64, timeout: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let find = |inner: &Inner| inner.events.iter().find(|e| e.seq >= seq && wanted(e)).cloned();
        let (inner, _) = self
            .shared
            .1
            .wait_timeout_while(self.lock(), timeout, |inner| find(inner).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_keeps_order() {
        let log = EventLog::new();
        for n in 0..EventLog::CAPACITY as i64 + 10 {
            log.push(MediaTime::from_micros(n), "s", EventKind::FirstFrameIngested);
        }
        let events = log.since(0);
        assert_eq!(events.len(), EventLog::CAPACITY);
        assert_eq!(events[0].seq, 10);
        assert!(events.windows(2).all(|w| w[0].seq + 1 == w[1].seq));
        assert!(
            log.wait_for(0, Duration::ZERO, |e| e.kind == EventKind::TrackIdle { codec: None, rid: None }).is_none()
        );
    }
}
