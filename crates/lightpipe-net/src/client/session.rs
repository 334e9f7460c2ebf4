//! The media half of a WHIP or WHEP client's session.

use std::sync::Arc;

use lightpipe_media::{Stream, VideoCodec};
use lightpipe_rtc::DisconnectCause;

use crate::media::{MediaEngine, NewSession, PeerInfo, Transport, ViewerError};

/// One peer connection after another, for one stream. Replaceable: the client's state machine runs over this.
pub trait WebRtcSession: Send + 'static {
    /// Begins a new session; its offer.
    fn open(&mut self) -> impl Future<Output = Result<String, ViewerError>> + Send;

    /// Takes the answer.
    fn accept(&mut self, answer: String) -> impl Future<Output = Result<(), ViewerError>> + Send;

    /// Takes the server's counter-offer instead; our answer.
    fn counter(&mut self, offer: String) -> impl Future<Output = Result<String, ViewerError>> + Send;

    /// Resolves when media may flow, or with the cause of the end.
    fn connected(&mut self) -> impl Future<Output = Result<(), DisconnectCause>> + Send;

    /// Resolves with the cause when the session ends.
    fn closed(&mut self) -> impl Future<Output = DisconnectCause> + Send;

    /// Ends the session.
    fn close(&mut self, cause: DisconnectCause);

    /// The engine's figures of the present session.
    fn figures(&self) -> Option<PeerInfo>;
}

/// Which way media goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The stream goes to the server, with all its layers or with one.
    Push {
        /// Offer all of them.
        simulcast: bool,
    },
    /// The server's stream feeds ours.
    Play,
}

/// A session of the media engine.
#[derive(Debug)]
pub(crate) struct EngineSession {
    engine: Arc<MediaEngine>,
    stream: Arc<Stream>,
    direction: Direction,
    current: Option<NewSession>,
    /// What our viewers were told: those of another codec must ask again.
    codec: Option<VideoCodec>,
}

impl EngineSession {
    pub(crate) fn new(engine: Arc<MediaEngine>, stream: Arc<Stream>, direction: Direction) -> Self {
        let codec = stream.has_video().then(|| stream.codec());
        Self { engine, stream, direction, current: None, codec }
    }
}

impl EngineSession {
    /// A played stream's codec may be another one after its server came back.
    fn settle_codec(&mut self) {
        if self.direction == Direction::Play {
            let codec = self.stream.has_video().then(|| self.stream.codec());
            if self.codec != codec {
                self.engine.close_viewers_of(self.stream.name(), DisconnectCause::StreamEnded);
            }
            self.codec = codec;
        }
    }
}

impl WebRtcSession for EngineSession {
    async fn open(&mut self) -> Result<String, ViewerError> {
        let (engine, stream, direction) = (Arc::clone(&self.engine), Arc::clone(&self.stream), self.direction);
        // Key and certificate work: a few milliseconds.
        let session = tokio::task::spawn_blocking(move || match direction {
            Direction::Push { simulcast: true } => engine.offer_simulcast(&stream, Transport::WhipClient),
            Direction::Push { simulcast: false } => engine.offer_stream(&stream, Transport::WhipClient),
            Direction::Play => engine.offer_to_receive(&stream, Transport::WhepClient),
        })
        .await
        .map_err(|_| ViewerError::Gone)??;
        let sdp = session.sdp.clone();
        self.current = Some(session);
        Ok(sdp)
    }

    async fn accept(&mut self, answer: String) -> Result<(), ViewerError> {
        let session = self.current.as_ref().ok_or(ViewerError::Gone)?;
        self.engine.accept_answer(session.key, answer).await?;
        self.settle_codec();
        Ok(())
    }

    async fn counter(&mut self, offer: String) -> Result<String, ViewerError> {
        self.close(DisconnectCause::SignallingClosed);
        let (engine, stream) = (Arc::clone(&self.engine), Arc::clone(&self.stream));
        let session =
            tokio::task::spawn_blocking(move || engine.answer_to_receive(&stream, &offer, Transport::WhepClient))
                .await
                .map_err(|_| ViewerError::Gone)??;
        let sdp = session.sdp.clone();
        self.current = Some(session);
        self.settle_codec();
        Ok(sdp)
    }

    async fn connected(&mut self) -> Result<(), DisconnectCause> {
        match &mut self.current {
            Some(session) => session.phase.connected().await,
            None => Err(DisconnectCause::Failed),
        }
    }

    async fn closed(&mut self) -> DisconnectCause {
        match &mut self.current {
            Some(session) => session.phase.closed().await,
            None => DisconnectCause::Failed,
        }
    }

    fn close(&mut self, cause: DisconnectCause) {
        if let Some(session) = self.current.take() {
            self.engine.close(session.key, cause);
        }
    }

    fn figures(&self) -> Option<PeerInfo> {
        self.engine.peer(self.current.as_ref()?.key)
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.close(DisconnectCause::SignallingClosed);
    }
}
