//! A stream's outlet that is heard and seen here: [`Playout`] with Opus, fed by whatever thread publishes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lightpipe_media::playout::{Playout, PlayoutConfig, PlayoutFigures};
use lightpipe_media::{AccessUnit, AudioPacket, MediaTime, Outlet};

use crate::encoder::EncodeError;
use crate::opus::OpusDecoder;

/// What is published on one side, what is pulled on the other. Subscribe it to a stream; one thread pulls. Nobody waits longer than the decoding
/// of a packet takes.
#[derive(Debug)]
pub struct Playback {
    playout: Mutex<Playout<OpusDecoder>>,
}

impl Playback {
    /// Nothing has come yet.
    pub fn new(config: PlayoutConfig) -> Result<Arc<Self>, EncodeError> {
        let decoder = OpusDecoder::new(config.channels)?;
        Ok(Arc::new(Self { playout: Mutex::new(Playout::new(config, decoder)) }))
    }

    /// [`Playout::pull_sound`].
    pub fn pull_sound(&self, now: MediaTime, out: &mut Vec<f32>) {
        self.lock().pull_sound(now, out);
    }

    /// [`Playout::pull_picture`].
    pub fn pull_picture(&self, now: MediaTime) -> Option<Arc<AccessUnit>> {
        self.lock().pull_picture(now)
    }

    /// [`Playout::next_picture_at`].
    pub fn next_picture_at(&self) -> Option<MediaTime> {
        self.lock().next_picture_at()
    }

    /// [`Playout::take_keyframe_wanted`].
    pub fn take_keyframe_wanted(&self) -> bool {
        self.lock().take_keyframe_wanted()
    }

    /// [`Playout::needed`].
    pub fn needed(&self) -> Duration {
        self.lock().needed()
    }

    /// [`Playout::set_floor`].
    pub fn set_floor(&self, floor: Duration) {
        self.lock().set_floor(floor);
    }

    /// [`Playout::figures`].
    pub fn figures(&self) -> PlayoutFigures {
        self.lock().figures()
    }

    fn lock(&self) -> MutexGuard<'_, Playout<OpusDecoder>> {
        // A panic of another thread leaves figures that are off, not memory.
        self.playout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet for Playback {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        self.lock().push_picture(unit);
    }

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        self.lock().push_sound(packet);
    }
}
