//! Sessions of WHEP and WHIP: what both have in common. A POST made them, PATCH trickles or restarts ICE, DELETE ends them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lightpipe_rtc::{Candidate, Credentials, DisconnectCause};
use lightpipe_signal::SdpFrag;
use lightpipe_signal::whep::{self, Patch};

use super::App;
use super::problem::Problem;
use crate::media::NewSession;

/// A body must be there within this; a slower sender is no peer.
const BODY_LIMIT: Duration = Duration::from_secs(10);

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
        let session = Session { key, stream: stream.to_owned(), etag: etag.clone(), remote_ufrag, restarts: 0 };
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
        let mut response = (
            StatusCode::CREATED,
            [(header::CONTENT_TYPE, whep::SDP.to_owned()), (header::LOCATION, location), (header::ETAG, etag)],
            answer,
        )
            .into_response();
        add_ice_servers(app, &mut response);
        response
    }

    /// `GET` and `HEAD` of a session, which has no representation: success without content.
    pub(crate) fn look(&self, stream: &str, id: &str) -> Result<StatusCode, Problem> {
        self.find(id, stream).map(|_| StatusCode::NO_CONTENT)
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
