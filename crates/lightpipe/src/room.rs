//! A room that is heard: its members played together, or mixed for each of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightpipe_codec::{Audience, Conference, ConferenceConfig, Participant};
use lightpipe_media::Stream;
use lightpipe_net::Company;
use serde_json::Value;

use crate::server::{Server, ServerError};

/// In what a member says of itself: true of one that mixes the room for the others.
const MIXES: &str = "mixes";

/// Plays the members of a room. Give it to [`MeshConfig::with_company`](crate::MeshConfig::with_company).
///
/// Who mixes a room says so (`mixes` in its user data). While there is a mixer, only that is heard: all others are in its sound. Mixers do not hear
/// each other.
#[derive(Debug)]
pub struct RoomSound {
    conference: Conference,
    mixes: bool,
    /// Only these are heard, if any are named.
    only: Vec<String>,
    present: Mutex<BTreeMap<String, Present>>,
}

#[derive(Debug)]
struct Present {
    stream: Arc<Stream>,
    mixes: bool,
}

impl RoomSound {
    /// Plays into `audience`.
    pub fn start(
        server: &Server,
        config: ConferenceConfig,
        audience: impl Audience + 'static,
    ) -> Result<Self, ServerError> {
        let mixes = config.mix.is_some();
        let conference = Conference::start(config, server.clock(), audience).map_err(ServerError::Start)?;
        Ok(Self { conference, mixes, only: Vec::new(), present: Mutex::default() })
    }

    /// Hears these and nobody else, whoever mixes.
    #[must_use]
    pub fn with_only(self, only: Vec<String>) -> Self {
        Self { only, ..self }
    }

    /// What a member that works like this says of itself: to be added to the user data of its [`MeshConfig`](crate::MeshConfig).
    pub fn announcement(&self) -> Option<(&'static str, Value)> {
        self.mixes.then(|| (MIXES, true.into()))
    }

    /// Who is heard, and how.
    pub fn participants(&self) -> Vec<Participant> {
        self.conference.participants()
    }

    fn present(&self) -> MutexGuard<'_, BTreeMap<String, Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears whom it should, of those who are present.
    fn choose(&self, present: &BTreeMap<String, Present>) {
        let mixed = present.values().any(|present| present.mixes);
        for (peer, present) in present {
            let heard = match (self.only.is_empty(), self.mixes) {
                (false, _) => self.only.contains(peer),
                (true, true) => !present.mixes,
                (true, false) => present.mixes == mixed,
            };
            if !heard {
                self.conference.remove(peer);
            } else if let Err(error) = self.conference.add(peer, &present.stream) {
                tracing::warn!(peer, %error, "a peer cannot be played");
            }
        }
    }
}

impl Company for RoomSound {
    fn sends_sound(&self) -> bool {
        self.mixes
    }

    fn joined(&self, peer: &str, user_data: &Value, stream: &Arc<Stream>) -> Option<Arc<Stream>> {
        let mixes = user_data.get(MIXES).and_then(Value::as_bool).unwrap_or(false);
        let mut all = self.present();
        // Who is there anew under the same name sends in another stream.
        self.conference.remove(peer);
        all.insert(peer.to_owned(), Present { stream: Arc::clone(stream), mixes });
        self.choose(&all);
        drop(all);
        self.conference.sends(peer)
    }

    fn left(&self, peer: &str) {
        let mut all = self.present();
        all.remove(peer);
        self.conference.remove(peer);
        self.choose(&all);
    }
}
