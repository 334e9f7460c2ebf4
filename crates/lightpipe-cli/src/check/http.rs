//! The checkers' HTTP client: one connection per request, no redirect followed, every status an answer.

use std::time::Duration;

use http::{HeaderMap, Method, Uri, header};

use lightpipe_net::client;

use super::Flaw;

/// From name resolution to the end of the body.
const LIMIT: Duration = Duration::from_secs(10);

/// Longest body that is read; an SDP or a problem is far smaller.
const MAX_BODY: u64 = 1 << 20;

/// How often a request is repeated for a server that is busy or limits how often we come.
const RETRIES: usize = 3;

/// A server that says when to come again is obeyed up to this long.
const LONGEST_RETRY_AFTER: u64 = 5;

/// What goes into `Authorization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authorization {
    /// The token from the command line, if any.
    Ours,
    /// A bearer token that no server knows.
    Unknown,
    /// No header: a browser sends none with a preflight.
    Absent,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    method: Method,
    url: &'a Uri,
    headers: Vec<(&'static str, String)>,
    body: Option<&'a str>,
    authorization: Authorization,
}

impl<'a> Request<'a> {
    pub(crate) const fn new(method: Method, url: &'a Uri) -> Self {
        Self { method, url, headers: Vec::new(), body: None, authorization: Authorization::Ours }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) const fn with_body(mut self, body: &'a str) -> Self {
        self.body = Some(body);
        self
    }

    pub(crate) const fn with_authorization(mut self, authorization: Authorization) -> Self {
        self.authorization = authorization;
        self
    }
}

/// No HTTP answer came.
#[derive(Debug, thiserror::Error)]
#[error("no answer to {method}")]
pub(crate) struct Unanswered {
    method: Method,
    source: ureq::Error,
}

impl From<Unanswered> for Flaw {
    fn from(error: Unanswered) -> Self {
        Self::Failed(format!("no answer to {}: {}", error.method, error.source))
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// A header's first value.
    pub(crate) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
    }

    /// All values of a header that holds a list, comma by comma.
    pub(crate) fn list(&self, name: impl header::AsHeaderName) -> impl Iterator<Item = &str> {
        let values = self.headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
    }

    /// Whether a header that holds a list has an item, whatever its case.
    pub(crate) fn lists(&self, name: impl header::AsHeaderName, item: &str) -> bool {
        self.list(name).any(|listed| listed.eq_ignore_ascii_case(item))
    }

    /// The media type, without parameters and in lower case.
    pub(crate) fn media_type(&self) -> String {
        let value = self.header(header::CONTENT_TYPE).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    pub(crate) const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// Sends requests to the server under test.
pub(crate) struct Client {
    agent: ureq::Agent,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .tls_config(client::tls())
            .timeout_global(Some(LIMIT))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A connection that the server has closed meanwhile must not look like a refusal.
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .proxy(None)
            .user_agent(concat!("lightpipe-check/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), token }
    }

    pub(crate) const fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a request; again if the server limits how often we come.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer, Unanswered> {
        let mut answer = self.send_once(request)?;
        for _ in 0..RETRIES {
            let Some(pause) = retry_after(&answer) else { break };
            std::thread::sleep(pause);
            answer = self.send_once(request)?;
        }
        Ok(answer)
    }

    fn send_once(&self, request: &Request<'_>) -> Result<Answer, Unanswered> {
        let unanswered = |source: ureq::Error| Unanswered { method: request.method.clone(), source };
        let mut head = http::Request::builder().method(request.method.clone()).uri(request.url.clone());
        for (name, value) in &request.headers {
            head = head.header(*name, value);
        }
        let token = match request.authorization {
            Authorization::Ours => self.token.as_deref(),
            Authorization::Unknown => Some("lightpipe-check-sends-a-token-that-nobody-knows"),
            Authorization::Absent => None,
        };
        if let Some(token) = token {
            head = head.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = match request.body {
            Some(body) => self.agent.run(head.body(body.as_bytes()).map_err(|e| unanswered(e.into()))?),
            None => self.agent.run(head.body(()).map_err(|e| unanswered(e.into()))?),
        };
        let (head, mut body) = response.map_err(unanswered)?.into_parts();
        let bytes = body.with_config().limit(MAX_BODY).read_to_vec().map_err(unanswered)?;
        let body = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}

/// How long to wait before asking again, if that is what the answer says.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let seconds: u64 = answer.header(header::RETRY_AFTER)?.parse().ok()?;
    let busy = matches!(answer.status, 429 | 503) && seconds <= LONGEST_RETRY_AFTER;
    busy.then(|| Duration::from_secs(seconds))
}
