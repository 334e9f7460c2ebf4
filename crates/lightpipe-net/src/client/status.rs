//! How a client's connection to its server is, and was.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::media::PeerInfo;

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// Its tracks give nothing yet.
    WaitingForTracks,
    /// The offer is at the server.
    Offering,
    /// ICE and DTLS are under way.
    Connecting,
    /// Media flows.
    Connected,
    /// Waiting before the next attempt.
    BackingOff,
    /// Ended, by us.
    Stopped,
    /// Ended, because trying again is useless.
    Refused,
}

impl ClientState {
    /// All, in the order of [`ClientStatus::in_state`].
    pub const ALL: [Self; 7] = [
        Self::WaitingForTracks,
        Self::Offering,
        Self::Connecting,
        Self::Connected,
        Self::BackingOff,
        Self::Stopped,
        Self::Refused,
    ];

    /// Name in the API and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WaitingForTracks => "waiting_for_tracks",
            Self::Offering => "offering",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::BackingOff => "backing_off",
            Self::Stopped => "stopped",
            Self::Refused => "refused",
        }
    }

    /// No other state follows.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Stopped | Self::Refused)
    }
}

/// A client's state and history.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientStatus {
    /// What it does now.
    pub state: ClientState,
    /// Since when.
    pub since: Instant,
    /// Time in each state, up to now, in the order of [`ClientState::ALL`].
    pub in_state: [Duration; ClientState::ALL.len()],
    /// Offers sent.
    pub attempts: u64,
    /// Sessions that connected.
    pub sessions: u64,
    /// Why the last attempt or session ended, if one did.
    pub last_error: Option<String>,
    /// The present session, as of the last second.
    pub peer: Option<PeerInfo>,
}

/// The status of a running client, shared with those who look at it.
#[derive(Debug, Clone)]
pub(crate) struct SharedStatus {
    inner: Arc<Mutex<ClientStatus>>,
    changed: Arc<tokio::sync::Notify>,
}

impl SharedStatus {
    pub(crate) fn new() -> Self {
        let status = ClientStatus {
            state: ClientState::WaitingForTracks,
            since: Instant::now(),
            in_state: [Duration::ZERO; ClientState::ALL.len()],
            attempts: 0,
            sessions: 0,
            last_error: None,
            peer: None,
        };
        Self { inner: Arc::new(Mutex::new(status)), changed: Arc::default() }
    }

    /// As of `now`.
    pub(crate) fn read(&self, now: Instant) -> ClientStatus {
        let mut status = self.lock().clone();
        let state = status.state as usize;
        status.in_state[state] += now.saturating_duration_since(status.since);
        status
    }

    pub(crate) fn enter(&self, state: ClientState, now: Instant) {
        {
            let mut status = self.lock();
            let old = status.state as usize;
            let spent = now.saturating_duration_since(status.since);
            status.in_state[old] += spent;
            (status.state, status.since) = (state, now);
            status.attempts += u64::from(state == ClientState::Offering);
            status.sessions += u64::from(state == ClientState::Connected);
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut ClientStatus)) {
        change(&mut self.lock());
    }

    /// Resolves when the state is another one than `known`.
    pub(crate) async fn changed(&self, known: ClientState) -> ClientStatus {
        loop {
            let mut change = std::pin::pin!(self.changed.notified());
            // Before the look, or a change between the two would be missed.
            change.as_mut().enable();
            let status = self.read(Instant::now());
            if status.state != known {
                return status;
            }
            change.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, ClientStatus> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_kept_for_each_state() {
        let shared = SharedStatus::new();
        let start = shared.lock().since;
        let at = |s| start + Duration::from_secs(s);
        shared.enter(ClientState::Offering, at(2));
        shared.enter(ClientState::Connecting, at(3));
        shared.enter(ClientState::Connected, at(4));
        shared.enter(ClientState::BackingOff, at(104));
        shared.enter(ClientState::Offering, at(105));
        let status = shared.read(at(107));
        assert_eq!(status.in_state.map(|spent| spent.as_secs()), [2, 3, 1, 100, 1, 0, 0]);
        assert_eq!((status.attempts, status.sessions), (2, 1));
        assert_eq!(ClientState::ALL.map(|state| state as usize), [0, 1, 2, 3, 4, 5, 6]);
    }
}
