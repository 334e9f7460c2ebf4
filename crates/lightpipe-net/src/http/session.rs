//! Sessions of WHEP and WHIP: what both have in common. A POST made them, PATCH trickles or restarts ICE, DELETE ends them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lightpipe_rtc::{Candidate, Credentials, DisconnectCause};
use lightpipe_signal::SdpFrag;
use lightpipe_signal::whep::{self, EventType, Patch};

use super::App;
use super::problem::Problem;
use super::whep_extensions;
use crate::media::{NewSession, random_id};

/// A body must be there within this; a slower sender is no peer.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How long a counter-offer waits for its answer.
const COUNTER_OFFER_LIMIT: Duration = Duration::from_secs(30);

/// Event streams of one session at a time.
const MAX_EVENT_STREAMS: usize = 4;

/// Longest fragment of a PATCH that is read; the parser's own limit is lower.
const FRAGMENT_LIMIT: usize = 64 << 10;

/// Open sessions by id.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_id: Mutex<HashMap<String, Session>>,
}

#[derive(Debug, Clone)]
struct Session {
    key: u64,
    stream: String,
    /// Names the current ICE session (RFC 9725 §4.3.1), with quotes.
    etag: String,
    remote_ufrag: String,
    restarts: u32,
    /// False while an offer of ours waits for its answer.
    answered: bool,
    /// Index of the m-line with video.
    video_line: usize,
    /// Event streams by id: what each wants to hear of.
    events: HashMap<String, Vec<EventType>>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str, stream: &str) -> Result<Session, Problem> {
        self.lock().get(id).filter(|s| s.stream == stream).cloned().ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "no_such_session", "There is no such session; it may have ended.")
        })
    }

    /// The key of a session of that stream.
    pub(crate) fn of_stream(&self, stream: &str) -> Option<u64> {
        self.lock().values().find(|s| s.stream == stream).map(|s| s.key)
    }

    /// Enters a new session of `endpoint` (`whep` or `whip`) and answers its POST. The session is forgotten when its peer is gone; `then` runs
    /// after that.
    pub(crate) fn open<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        app: &App,
        endpoint: &str,
        stream: &str,
        offer: &str,
        peer: NewSession,
        then: impl FnOnce() -> F + Send + 'static,
    ) -> Response {
        let NewSession { id, key, sdp: answer, mut phase } = peer;
        let etag = format!("\"{id}-0\"");
        let remote_ufrag = whep::ice_ufrag(offer).to_owned();
        let session = Session {
            key,
            stream: stream.to_owned(),
            etag: etag.clone(),
            remote_ufrag,
            restarts: 0,
            answered: true,
            video_line: whep::video_line(offer),
            events: HashMap::new(),
        };
        self.lock().insert(id.clone(), session);
        tokio::spawn({
            let (sessions, id) = (Arc::clone(self), id.clone());
            async move {
                phase.closed().await;
                sessions.lock().remove(&id);
                then().await;
            }
        });
        let location = format!("/{endpoint}/{}/{id}", urlencode(stream));
        let extensions = if endpoint == "whep" { whep_extensions::links(&location).to_vec() } else { Vec::new() };
        let mut response = (
            StatusCode::CREATED,
            [(header::CONTENT_TYPE, whep::SDP.to_owned()), (header::LOCATION, location), (header::ETAG, etag)],
            answer,
        )
            .into_response();
        add_ice_servers(app, &mut response);
        for link in extensions {
            if let Ok(value) = http::HeaderValue::from_str(&link) {
                response.headers_mut().append(header::LINK, value);
            }
        }
        response
    }

    /// Enters a session whose offer is ours, and answers 406 with it (WHEP draft §4.2.2). It ends if no answer comes in time.
    pub(crate) fn counter(self: &Arc<Self>, app: &App, stream: &str, peer: NewSession) -> Response {
        let valid_until = httpdate::fmt_http_date(SystemTime::now() + COUNTER_OFFER_LIMIT);
        let (key, id) = (peer.key, peer.id.clone());
        let offer = peer.sdp.clone();
        let mut response = self.open(app, "whep", stream, &offer, peer, || std::future::ready(()));
        if let Some(session) = self.lock().get_mut(&id) {
            session.answered = false;
        }
        tokio::spawn({
            let (sessions, engine) = (Arc::clone(self), Arc::clone(&app.engine));
            async move {
                tokio::time::sleep(COUNTER_OFFER_LIMIT).await;
                if sessions.lock().get(&id).is_some_and(|session| !session.answered) {
                    engine.close(key, DisconnectCause::SignallingClosed);
                }
            }
        });
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        if let Ok(kind) = http::HeaderValue::from_str(&format!("{}; valid-until=\"{valid_until}\"", whep::SDP)) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    }

    /// The answer to a counter-offer of ours.
    async fn answered(&self, app: &App, id: &str, session: &Session, body: String) -> Result<Response, Problem> {
        let remote_ufrag = whep::ice_ufrag(&body).to_owned();
        app.engine.accept_answer(session.key, body).await?;
        if let Some(entry) = self.lock().get_mut(id) {
            (entry.answered, entry.remote_ufrag) = (true, remote_ufrag);
        }
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// Adds an event stream to a session; its id.
    pub(crate) fn add_events(&self, stream: &str, id: &str, wanted: Vec<EventType>) -> Result<String, Problem> {
        self.find(id, stream)?;
        let mut all = self.lock();
        let Some(session) = all.get_mut(id).filter(|session| session.events.len() < MAX_EVENT_STREAMS) else {
            return Err(Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_event_streams",
                format!("A session has {MAX_EVENT_STREAMS} event streams at most; DELETE one."),
            ));
        };
        let events = random_id();
        session.events.insert(events.clone(), wanted);
        Ok(events)
    }

    /// What an event stream of a session wants to hear of.
    pub(crate) fn events(&self, stream: &str, id: &str, events: &str) -> Result<Vec<EventType>, Problem> {
        self.find(id, stream)?.events.remove(events).ok_or_else(no_event_stream)
    }

    /// Ends an event stream.
    pub(crate) fn remove_events(&self, stream: &str, id: &str, events: &str) -> Result<(), Problem> {
        self.events(stream, id, events)?;
        if let Some(session) = self.lock().get_mut(id) {
            session.events.remove(events);
        }
        Ok(())
    }

    /// Index of the m-line with video of a session.
    pub(crate) fn video_line(&self, stream: &str, id: &str) -> Result<usize, Problem> {
        self.find(id, stream).map(|session| session.video_line)
    }

    /// `GET` and `HEAD` of a session, which has no representation: success without content.
    pub(crate) fn look(&self, stream: &str, id: &str) -> Result<StatusCode, Problem> {
        self.find(id, stream).map(|_| StatusCode::NO_CONTENT)
    }

    /// The engine's number of a session.
    pub(crate) fn key_of(&self, stream: &str, id: &str) -> Result<u64, Problem> {
        self.find(id, stream).map(|session| session.key)
    }

    /// `PATCH` of a session.
    pub(crate) async fn patch(
        &self,
        app: &App,
        stream: &str,
        id: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Problem> {
        let session = self.find(id, stream)?;
        let body = text_body(body, FRAGMENT_LIMIT).await?;
        if !session.answered && whep::content_type_is(text_header(headers, header::CONTENT_TYPE), whep::SDP) {
            return self.answered(app, id, &session, body).await;
        }
        let patch = whep::check_patch(
            text_header(headers, header::CONTENT_TYPE),
            text_header(headers, header::IF_MATCH),
            &body,
            &session.etag,
            &session.remote_ufrag,
        )?;
        match patch {
            Patch::Trickle(candidates) => {
                trickle(app, session.key, &candidates)?;
                // Without an ETag, which only a restart changes (RFC 9725 §4.3.2, WHEP draft §4.4.2).
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            Patch::Restart { ufrag, pwd, candidates } => {
                let local = app.engine.restart_ice(session.key, Credentials { ufrag: ufrag.clone(), pwd }).await?;
                trickle(app, session.key, &candidates)?;
                let restarts = session.restarts + 1;
                let etag = format!("\"{id}-{restarts}\"");
                if let Some(entry) = self.lock().get_mut(id) {
                    entry.etag.clone_from(&etag);
                    entry.remote_ufrag = ufrag;
                    entry.restarts = restarts;
                }
                let ours: Vec<String> =
                    app.engine.addresses().iter().enumerate().map(|(n, a)| host_candidate(n, a)).collect();
                let answer = SdpFrag::answer(&local.ufrag, &local.pwd, &ours);
                Ok((StatusCode::OK, [(header::CONTENT_TYPE, whep::TRICKLE.to_owned()), (header::ETAG, etag)], answer)
                    .into_response())
            }
        }
    }

    /// `DELETE` of a session.
    pub(crate) fn delete(&self, app: &App, stream: &str, id: &str) -> Result<StatusCode, Problem> {
        let session = self.find(id, stream)?;
        self.lock().remove(id);
        app.engine.close(session.key, DisconnectCause::SignallingClosed);
        Ok(StatusCode::OK)
    }
}

fn no_event_stream() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_event_stream", "There is no such event stream; POST makes one.")
}

/// Refuses an address that asks for sessions too often.
pub(crate) fn admit(app: &App, address: IpAddr) -> Result<(), Problem> {
    if app.limiter.admit(address, Instant::now()) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_requests",
        "Too many sessions were asked for from this address.",
    ))
}

/// `OPTIONS`. A CORS preflight is told no ICE servers: TURN passwords are for whoever posts an offer (RFC 9725 §4.6).
pub(crate) async fn options(State(app): State<App>, headers: HeaderMap) -> Response {
    let mut response = (StatusCode::NO_CONTENT, [("accept-post", whep::SDP)]).into_response();
    if !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        add_ice_servers(&app, &mut response);
    }
    response
}

pub(crate) fn text_header(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

pub(crate) async fn text_body(body: Body, limit: usize) -> Result<String, Problem> {
    let bytes = tokio::time::timeout(BODY_LIMIT, to_bytes(body, limit))
        .await
        .map_err(|_| {
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "The request's body did not come in time.")
        })?
        .map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("The body is larger than {limit} bytes, or was cut off."),
            )
        })?;
    String::from_utf8(bytes.into())
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "bad_encoding", "The body is not UTF-8."))
}

fn trickle(app: &App, key: u64, candidates: &[String]) -> Result<(), Problem> {
    for text in candidates {
        let candidate = Candidate::parse(text)
            .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "bad_candidate", e.to_string()))?;
        app.engine.add_candidate(key, candidate);
    }
    Ok(())
}

/// RFC 8839 §5.1; the priority formula of RFC 8445 §5.1.2.1 for a host candidate, earlier addresses preferred.
fn host_candidate(index: usize, address: &SocketAddr) -> String {
    let priority = (126u32 << 24) | (65_535u32.saturating_sub(index as u32) << 8) | 255;
    format!("candidate:{} 1 udp {priority} {} {} typ host", index + 1, address.ip(), address.port())
}

/// RFC 9725 §4.6.
fn add_ice_servers(app: &App, response: &mut Response) {
    for server in &app.config.ice_servers {
        if let Ok(value) = http::HeaderValue::from_str(&server.to_link()) {
            response.headers_mut().append(header::LINK, value);
        }
    }
}

/// Percent-encodes a path segment (RFC 3986 §2.3: all but unreserved characters).
fn urlencode(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_candidates_parse() {
        let text = host_candidate(0, &SocketAddr::from(([127, 0, 0, 1], 8080)));
        assert_eq!(Candidate::parse(&text), Ok(Candidate::Usable(text.clone())));
    }

    #[test]
    fn stream_names_are_safe_in_a_location() {
        assert_eq!(urlencode("a b/é"), "a%20b%2F%C3%A9");
        assert_eq!(urlencode("cube-1_2.x~"), "cube-1_2.x~");
    }
}
