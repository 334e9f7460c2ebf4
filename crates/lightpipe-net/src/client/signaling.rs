//! What a WHIP or WHEP client says to its server.

use std::time::Duration;

use http::{Method, Uri, header};

use super::http::{Answer, Http, HttpError, excerpt};
use super::reference::resolve;

/// Time for the answer to an offer, redirects not counted.
const OFFER_LIMIT: Duration = Duration::from_secs(10);

/// Time for the answer to a DELETE: a server that does not answer must not keep us from ending.
const DELETE_LIMIT: Duration = Duration::from_secs(2);

const WHEP: &str = "WHEP";

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignalingError {
    /// No HTTP answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server will not have us: a wrong token, no such endpoint, an offer that it cannot use.
    #[error("the server refuses with {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said about it.
        said: String,
    },
    /// Not now: too many sessions, the stream is taken, the server fails.
    #[error("the server answers {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    NotNow {
        /// HTTP status.
        status: u16,
        /// What it said about it.
        said: String,
        /// When to come again, if it told.
        retry_after: Option<Duration>,
    },
    /// A success that brings no SDP: what is at this URL is something else.
    #[error("what answers at {url} is no {protocol} endpoint: {status} with {media_type:?}", url = .host)]
    NoEndpoint {
        /// Who answered.
        host: String,
        /// WHIP or WHEP.
        protocol: &'static str,
        /// HTTP status.
        status: u16,
        /// Its content type.
        media_type: String,
    },
    /// The task that asked was ended.
    #[error("the request was given up")]
    GivenUp,
}

impl SignalingError {
    /// Whether trying again is useless: as long as nobody changes something, the answer will be the same.
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::NoEndpoint { .. }
                | Self::Http(
                    HttpError::RedirectLoop { .. } | HttpError::InsecureRedirect { .. } | HttpError::BadRedirect { .. }
                )
        )
    }

    /// When the server wants us to come again.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotNow { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What the server sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Its answer to our offer.
    Answer(String),
    /// An offer of its own instead (WHEP draft §4.2.2): to be answered with [`WhipSignaling::answer`].
    CounterOffer(String),
}

/// A session that the server made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its SDP.
    pub reply: Reply,
    /// The session's URL; none where a server sends no `Location` that one could use, and then the session cannot be ended by DELETE.
    pub resource: Option<Uri>,
}

/// The HTTP half of a WHIP or WHEP session. Replaceable: the client's state machine runs over this.
pub trait WhipSignaling: Send + Sync + 'static {
    /// Sends an offer.
    fn offer(&self, sdp: String) -> impl Future<Output = Result<Accepted, SignalingError>> + Send;

    /// Answers the server's counter-offer.
    fn answer(&self, resource: Uri, sdp: String) -> impl Future<Output = Result<(), SignalingError>> + Send;

    /// Ends a session.
    fn end(&self, resource: Uri) -> impl Future<Output = Result<(), SignalingError>> + Send;
}

/// A real server.
#[derive(Debug, Clone)]
pub struct HttpSignaling {
    http: Http,
    endpoint: Uri,
    protocol: &'static str,
}

impl HttpSignaling {
    /// For a WHIP endpoint (RFC 9725).
    pub fn whip(endpoint: Uri, token: Option<String>) -> Self {
        Self { http: Http::new(token), endpoint, protocol: "WHIP" }
    }

    /// For a WHEP endpoint (draft-ietf-wish-whep-03).
    pub fn whep(endpoint: Uri, token: Option<String>) -> Self {
        Self { http: Http::new(token), endpoint, protocol: WHEP }
    }

    /// The HTTP library blocks; requests are few.
    async fn send(&self, method: Method, url: Uri, sdp: String, limit: Duration) -> Result<Answer, SignalingError> {
        let http = self.http.clone();
        let asked = tokio::task::spawn_blocking(move || http.send(&method, &url, &sdp, limit));
        Ok(asked.await.map_err(|_| SignalingError::GivenUp)??)
    }
}

impl WhipSignaling for HttpSignaling {
    async fn offer(&self, sdp: String) -> Result<Accepted, SignalingError> {
        let answer = self.send(Method::POST, self.endpoint.clone(), sdp, OFFER_LIMIT).await?;
        read_answer(&answer, self.protocol)
    }

    async fn answer(&self, resource: Uri, sdp: String) -> Result<(), SignalingError> {
        let answer = self.send(Method::PATCH, resource, sdp, OFFER_LIMIT).await?;
        match answer.status {
            200..=299 => Ok(()),
            status => Err(SignalingError::Refused { status, said: said(&answer) }),
        }
    }

    async fn end(&self, resource: Uri) -> Result<(), SignalingError> {
        let answer = self.send(Method::DELETE, resource, String::new(), DELETE_LIMIT).await?;
        match answer.status {
            // Gone already: the same to us.
            200..=299 | 404 | 410 => Ok(()),
            status => Err(SignalingError::Refused { status, said: said(&answer) }),
        }
    }
}

/// What a server's answer to an offer means. 201 is the rule (RFC 9725 §4.2); 200 and others of its kind are seen.
fn read_answer(answer: &Answer, protocol: &'static str) -> Result<Accepted, SignalingError> {
    let status = answer.status;
    match status {
        200..=299 => {}
        406 if answer.body.starts_with("v=") && protocol == WHEP => {}
        // The stream is taken (the session that we had may be the one that takes it), or there are too many.
        408 | 409 | 425 | 429 | 500..=599 => {
            let retry_after = answer.header(header::RETRY_AFTER).and_then(|s| s.parse().ok()).map(Duration::from_secs);
            return Err(SignalingError::NotNow { status, said: said(answer), retry_after });
        }
        _ => return Err(SignalingError::Refused { status, said: said(answer) }),
    }
    // By content, not by type: servers have sent SDP as text/plain.
    if !answer.body.starts_with("v=") {
        return Err(SignalingError::NoEndpoint {
            host: super::http::host_of(&answer.url),
            protocol,
            status,
            media_type: excerpt(answer.header(header::CONTENT_TYPE).unwrap_or_default()),
        });
    }
    let resource = answer.header(header::LOCATION).and_then(|location| resolve(&answer.url, location));
    let reply = if status == 406 { Reply::CounterOffer } else { Reply::Answer };
    Ok(Accepted { reply: reply(answer.body.clone()), resource })
}

/// The server's own words: the detail of a problem (RFC 9457), or the beginning of its text.
fn said(answer: &Answer) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_str(&answer.body).ok();
    let field = |name: &str| problem.as_ref().and_then(|p| p.get(name)).and_then(|text| text.as_str());
    let html = answer.header(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"));
    let text = field("detail").or_else(|| field("title")).or_else(|| field("error")).unwrap_or(&answer.body);
    if html { String::new() } else { excerpt(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(header::HeaderName, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value"))).collect();
        let url = "https://media.example/live/cam?key=1".parse().expect("a URL");
        Answer { url, status, headers, body: body.to_owned() }
    }

    #[track_caller]
    fn check_location(location: Option<&str>, expected: Option<&str>) {
        let headers: Vec<_> = location.iter().map(|l| (header::LOCATION, *l)).collect();
        let accepted = read_answer(&answer(201, &headers, "v=0\r\n"), "WHIP").expect("accepted");
        assert_eq!(accepted.resource.map(|url| url.to_string()).as_deref(), expected, "{location:?}");
    }

    #[test]
    fn locations_as_servers_send_them() {
        check_location(Some("https://b.example/s/1"), Some("https://b.example/s/1"));
        check_location(Some("/whip/4fT?token=x"), Some("https://media.example/whip/4fT?token=x"));
        check_location(Some("cam/4fT"), Some("https://media.example/live/cam/4fT"));
        check_location(None, None);
        check_location(Some("nowhere://"), None);
    }

    #[track_caller]
    fn check_refusal(status: u16, body: &str, is_final: bool, text: &str) {
        let headers =
            [(header::CONTENT_TYPE, if body.starts_with('<') { "text/html" } else { "application/problem+json" })];
        let error = read_answer(&answer(status, &headers, body), "WHIP").expect_err("refused");
        assert_eq!((error.is_final(), error.to_string().as_str()), (is_final, text), "{status}");
    }

    #[test]
    fn refusals_tell_what_the_server_said() {
        check_refusal(
            401,
            r#"{"title":"Unauthorized","detail":"Publishing needs a token."}"#,
            true,
            "the server refuses with 401: Publishing needs a token.",
        );
        check_refusal(404, "<html>not here</html>", true, "the server refuses with 404");
        check_refusal(400, r#"{"error":"no codecs"}"#, true, "the server refuses with 400: no codecs");
        check_refusal(409, "stream exists", false, "the server answers 409: stream exists");
        check_refusal(502, "", false, "the server answers 502");
        check_refusal(
            200,
            "<html>hello</html>",
            true,
            "what answers at media.example is no WHIP endpoint: 200 with \"text/html\"",
        );
    }

    #[test]
    fn a_counter_offer_is_one_for_whep_only() {
        let countered = answer(406, &[(header::LOCATION, "/s/1")], "v=0\r\n");
        let accepted = read_answer(&countered, WHEP).expect("a session");
        assert_eq!(accepted.reply, Reply::CounterOffer("v=0\r\n".into()));
        assert!(read_answer(&countered, "WHIP").is_err_and(|error| error.is_final()));
        assert!(read_answer(&answer(406, &[], "not for you"), WHEP).is_err());
    }

    #[test]
    fn a_busy_server_says_when_to_come_again() {
        let wish = |value: &str| {
            read_answer(&answer(503, &[(header::RETRY_AFTER, value)], ""), "WHEP").expect_err("busy").retry_after()
        };
        assert_eq!(wish("7"), Some(Duration::from_secs(7)));
        assert_eq!(wish("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
