//! The state machine of WHIP and WHEP clients.

use std::pin::pin;
use std::time::Duration;

use ::http::Uri;
use lightpipe_rtc::DisconnectCause;
use lightpipe_signal::reconnect::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::session::WebRtcSession;
use super::signaling::{Reply, SignalingError, WhipSignaling};
use super::status::{ClientState, SharedStatus};
use crate::media::ViewerError;

/// How long an offer that is under way may hold up the end: its session would otherwise stay behind on the server.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How often the engine's figures are copied into the status.
const FIGURES_INTERVAL: Duration = Duration::from_millis(500);

/// What a client runs on.
pub(crate) struct Machine<S, W> {
    /// Its server.
    pub(crate) signaling: S,
    /// Its media.
    pub(crate) session: W,
    pub(crate) status: SharedStatus,
    /// Turns true, or is dropped, when it should end.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Why an attempt is over.
enum End {
    /// We were told to stop.
    Stopped,
    /// The server did not take the offer.
    Signaling(SignalingError),
    /// Our engine did not take the answer, or could not offer.
    Media(ViewerError),
    /// It was a session, or became none.
    Closed(DisconnectCause),
}

impl<S: WhipSignaling, W: WebRtcSession> Machine<S, W> {
    /// Keeps one session after the other until it is stopped or refused. `ready` resolves when there is something to offer.
    pub(crate) async fn run<F: Future<Output = ()> + Send>(mut self, ready: impl Fn() -> F + Send + Sync) {
        let mut backoff = Backoff::default();
        let mut was_connected = false;
        let last = loop {
            self.enter(ClientState::WaitingForTracks);
            let mut stop = self.stop.clone();
            tokio::select! {
                () = ready() => {}
                () = stopped(&mut stop) => break ClientState::Stopped,
            }
            let (end, lasted) = self.attempt().await;
            was_connected |= lasted.is_some();
            let (error, retry_after) = match end {
                End::Stopped => break ClientState::Stopped,
                End::Signaling(error) => {
                    // What worked once will work again: a server that restarts does not know its streams at first.
                    if error.is_final() && !was_connected {
                        self.status.update(|status| status.last_error = Some(error.to_string()));
                        break ClientState::Refused;
                    }
                    (error.to_string(), error.retry_after())
                }
                End::Media(error) => (error.to_string(), None),
                End::Closed(cause) => (cause.sentence_of_server().to_owned(), None),
            };
            let pause = backoff.after(lasted.unwrap_or_default(), retry_after, fastrand::f64());
            warn!(
                error,
                failures = backoff.failures(),
                retry_in_ms = pause.as_millis() as u64,
                "no connection to the server"
            );
            self.status.update(|status| status.last_error = Some(error));
            self.enter(ClientState::BackingOff);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(&mut stop) => break ClientState::Stopped,
            }
        };
        self.enter(last);
    }

    fn enter(&self, state: ClientState) {
        self.status.enter(state, std::time::Instant::now());
    }

    /// One session from its offer to its DELETE. How long it was connected, if it was.
    async fn attempt(&mut self) -> (End, Option<Duration>) {
        self.enter(ClientState::Offering);
        let offer = match self.session.open().await {
            Ok(offer) => offer,
            Err(error) => return (End::Media(error), None),
        };
        let mut stop = self.stop.clone();
        let accepted = {
            let mut asked = pin!(self.signaling.offer(offer));
            tokio::select! {
                accepted = &mut asked => Some(accepted),
                () = stopped(&mut stop) => tokio::time::timeout(STOP_LIMIT, asked).await.ok(),
            }
        };
        let accepted = match accepted {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                self.session.close(DisconnectCause::SignallingClosed);
                return (End::Signaling(error), None);
            }
            None => {
                self.session.close(DisconnectCause::SignallingClosed);
                return (End::Stopped, None);
            }
        };
        let (end, lasted) = self.live(accepted.reply, accepted.resource.clone(), &mut stop).await;
        self.finish(accepted.resource).await;
        (end, lasted)
    }

    async fn live(
        &mut self,
        reply: Reply,
        resource: Option<Uri>,
        stop: &mut watch::Receiver<bool>,
    ) -> (End, Option<Duration>) {
        if *stop.borrow() {
            return (End::Stopped, None);
        }
        self.enter(ClientState::Connecting);
        let agreed = match reply {
            Reply::Answer(answer) => self.session.accept(answer).await,
            Reply::CounterOffer(offer) => match self.session.counter(offer).await {
                Ok(answer) => {
                    // Without a resource there is nowhere to send it: the session will not connect, and says so.
                    if let Some(resource) = resource
                        && let Err(error) = self.signaling.answer(resource, answer).await
                    {
                        return (End::Signaling(error), None);
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = agreed {
            return (End::Media(error), None);
        }
        tokio::select! {
            connected = self.session.connected() => {
                if let Err(cause) = connected {
                    return (End::Closed(cause), None);
                }
            }
            () = stopped(stop) => return (End::Stopped, None),
        }
        self.enter(ClientState::Connected);
        info!("connected to the server");
        let since = Instant::now();
        let mut figures = tokio::time::interval(FIGURES_INTERVAL);
        loop {
            let end = tokio::select! {
                cause = self.session.closed() => End::Closed(cause),
                () = stopped(stop) => End::Stopped,
                _ = figures.tick() => {
                    let peer = self.session.figures();
                    self.status.update(|status| status.peer = peer);
                    continue;
                }
            };
            return (end, Some(since.elapsed()));
        }
    }

    /// Every way out of a session that the server made leads here. The DELETE first: the server should not hear of the end from us
    /// falling silent.
    async fn finish(&mut self, resource: Option<Uri>) {
        if let Some(resource) = resource
            && let Err(error) = self.signaling.end(resource).await
        {
            warn!(%error, "the server did not confirm the end of the session");
        }
        self.session.close(DisconnectCause::SignallingClosed);
        self.status.update(|status| status.peer = None);
    }
}

/// Resolves when a client should end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender is a dropped client.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::super::{Accepted, Client, HttpError};
    use super::*;
    use crate::media::PeerInfo;
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    /// What the server does with one offer.
    #[derive(Clone, Copy)]
    enum Server {
        Takes,
        /// Answers so late.
        TakesAfter(Duration),
        AnswersNonsense,
        Counters,
        Refuses(u16),
        Busy(u64),
        Absent,
    }

    /// What becomes of one session.
    #[derive(Clone, Copy)]
    enum Media {
        LivesFor(Duration),
        NeverConnects,
    }

    /// Both halves, and a log of what was asked of them at which second.
    #[derive(Clone)]
    struct Script {
        began: Instant,
        server: Arc<Mutex<VecDeque<Server>>>,
        media: Arc<Mutex<VecDeque<Media>>>,
        log: Arc<Mutex<Vec<String>>>,
    }

    impl Script {
        fn new(server: &[Server], media: &[Media]) -> Self {
            let queue = |items: &[_]| Arc::new(Mutex::new(items.iter().copied().collect()));
            let media = Arc::new(Mutex::new(media.iter().copied().collect()));
            Self { began: Instant::now(), server: queue(server), media, log: Arc::default() }
        }

        fn seconds_of(&self, what: &str) -> Vec<u64> {
            let log = self.log.lock().expect("log");
            let entries = log.iter().filter_map(|line| line.split_once(' ')).filter(|(_, said)| *said == what);
            entries.map(|(at, _)| at.parse().expect("seconds")).collect()
        }

        fn note(&self, what: &str) {
            // Jitter takes up to a quarter of each pause off; whole seconds upwards are the same without.
            let at = self.began.elapsed().as_secs_f64().ceil();
            self.log.lock().expect("log").push(format!("{at} {what}"));
        }
    }

    impl WhipSignaling for Script {
        async fn offer(&self, _: String) -> Result<Accepted, SignalingError> {
            let server = self.server.lock().expect("script").pop_front().unwrap_or(Server::Takes);
            self.note("POST");
            let accepted = |answer: &str| Accepted {
                reply: Reply::Answer(answer.to_owned()),
                resource: Some("http://media.example/s/1".parse().expect("a URL")),
            };
            match server {
                Server::Takes => Ok(accepted("v=0")),
                Server::TakesAfter(late) => {
                    tokio::time::sleep(late).await;
                    Ok(accepted("v=0"))
                }
                Server::AnswersNonsense => Ok(accepted("nonsense")),
                Server::Counters => Ok(Accepted { reply: Reply::CounterOffer("v=0".into()), ..accepted("") }),
                Server::Refuses(status) => Err(SignalingError::Refused { status, said: String::new() }),
                Server::Busy(seconds) => Err(SignalingError::NotNow {
                    status: 503,
                    said: String::new(),
                    retry_after: Some(Duration::from_secs(seconds)),
                }),
                Server::Absent => {
                    let reason = "connection refused".to_owned();
                    Err(HttpError::Unanswered { host: "media.example".into(), reason }.into())
                }
            }
        }

        async fn answer(&self, _: Uri, _: String) -> Result<(), SignalingError> {
            self.note("PATCH");
            Ok(())
        }

        async fn end(&self, _: Uri) -> Result<(), SignalingError> {
            self.note("DELETE");
            Ok(())
        }
    }

    impl WebRtcSession for Script {
        async fn open(&mut self) -> Result<String, ViewerError> {
            Ok("v=0".into())
        }

        async fn accept(&mut self, answer: String) -> Result<(), ViewerError> {
            if answer == "v=0" { Ok(()) } else { Err(ViewerError::Gone) }
        }

        async fn counter(&mut self, _: String) -> Result<String, ViewerError> {
            Ok("v=0".into())
        }

        async fn connected(&mut self) -> Result<(), DisconnectCause> {
            let front = self.media.lock().expect("script").front().copied();
            match front {
                Some(Media::NeverConnects) => {
                    tokio::time::sleep(Duration::from_secs(15)).await;
                    self.media.lock().expect("script").pop_front();
                    Err(DisconnectCause::IceNeverConnected)
                }
                _ => Ok(()),
            }
        }

        async fn closed(&mut self) -> DisconnectCause {
            let front = self.media.lock().expect("script").front().copied();
            let Some(Media::LivesFor(span)) = front else { std::future::pending().await };
            tokio::time::sleep_until(self.began + span).await;
            self.media.lock().expect("script").pop_front();
            DisconnectCause::IceTimeout
        }

        fn close(&mut self, _: DisconnectCause) {
            self.note("close");
        }

        fn figures(&self) -> Option<PeerInfo> {
            None
        }
    }

    fn client_of(script: &Script) -> Client {
        let url = "http://media.example/whip".parse().expect("a URL");
        Client::with_parts("s", &url, script.clone(), script.clone(), || std::future::ready(()))
    }

    /// Runs a client for some virtual seconds, stops it, and compares what was asked of server and media.
    async fn check(server: &[Server], media: &[Media], seconds: f64, state: ClientState, expected: &[&str]) {
        let script = Script::new(server, media);
        let client = client_of(&script);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        assert_eq!(client.status().state, state, "{:?}", script.log.lock());
        client.stop().await;
        assert!(client.status().state.is_end());
        assert_eq!(*script.log.lock().expect("log"), expected);
    }

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    #[tokio::test(start_paused = true)]
    async fn a_session_is_ended_when_we_are() {
        check(&[], &[], 5.5, ClientState::Connected, &["0 POST", "6 DELETE", "6 close"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_server_is_asked_again_and_its_old_session_ended() {
        let media = [Media::LivesFor(SECS(20))];
        let expected = ["0 POST", "20 DELETE", "20 close", "21 POST", "30 DELETE", "30 close"];
        check(&[], &media, 29.5, ClientState::Connected, &expected).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_absent_server_is_asked_until_it_is_there_and_a_busy_one_when_it_wishes() {
        let script = Script::new(&[Server::Absent, Server::Absent, Server::Busy(20)], &[]);
        let client = client_of(&script);
        tokio::time::sleep(SECS(40)).await;
        let posts: Vec<u64> = script.seconds_of("POST");
        // After pauses of at most 1 and 2 s, and then of 20.
        let pauses: Vec<u64> = posts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(matches!(pauses[..], [1, 1..=2, 20..=21]), "{posts:?}");
        assert_eq!((client.status().sessions, client.status().attempts), (1, 4));
        assert!(client.status().last_error.is_some_and(|said| said.contains("503")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_unless_it_worked_before() {
        check(&[Server::Refuses(401)], &[], 1.0, ClientState::Refused, &["0 POST", "0 close"]).await;
        let server = [Server::Takes, Server::Refuses(404)];
        let media = [Media::LivesFor(SECS(20))];
        let script = Script::new(&server, &media);
        let client = client_of(&script);
        tokio::time::sleep(SECS(30)).await;
        assert_eq!(client.status().state, ClientState::Connected);
        assert_eq!(client.status().attempts, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_cannot_be_used_is_ended_on_the_server_too() {
        let expected = ["0 POST", "0 DELETE", "0 close", "1 POST", "5 DELETE", "5 close"];
        check(&[Server::AnswersNonsense], &[], 4.5, ClientState::Connected, &expected).await;
        let expected = ["0 POST", "15 DELETE", "15 close", "16 POST", "17 DELETE", "17 close"];
        check(&[], &[Media::NeverConnects], 16.5, ClientState::Connected, &expected).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_counter_offer_is_answered() {
        let expected = ["0 POST", "0 PATCH", "3 DELETE", "3 close"];
        check(&[Server::Counters], &[], 2.5, ClientState::Connected, &expected).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_while_we_end_is_still_ended() {
        let server = [Server::TakesAfter(SECS(2))];
        check(&server, &[], 1.5, ClientState::Offering, &["0 POST", "2 DELETE", "2 close"]).await;
        // One that comes too late is not waited for.
        let server = [Server::TakesAfter(SECS(20))];
        check(&server, &[], 1.5, ClientState::Offering, &["0 POST", "4 close"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_client_ends_its_session() {
        let script = Script::new(&[], &[]);
        let client = client_of(&script);
        tokio::time::sleep(SECS(1)).await;
        drop(client);
        tokio::time::sleep(SECS(1)).await;
        assert_eq!(*script.log.lock().expect("log"), ["0 POST", "1 DELETE", "1 close"]);
    }
}
