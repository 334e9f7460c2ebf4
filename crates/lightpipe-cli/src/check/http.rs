//! The checkers' HTTP client: one connection per request, no redirect followed, every status an answer.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};

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
        let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(cryptography)
            // What this machine trusts, the certificate authority of one's own network included.
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
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

/// A reference against the URL that it came from (RFC 3986 §5.2). None if the result is no http or https URL.
pub(crate) fn resolve(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let (path, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let has_scheme = reference.split_once(':').is_some_and(|(before, _)| {
        before.starts_with(|c: char| c.is_ascii_alphabetic())
            && before.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    let absolute = if has_scheme {
        reference.to_owned()
    } else if reference.starts_with("//") {
        format!("{scheme}:{reference}")
    } else {
        let merged = if path.is_empty() {
            base.path().to_owned()
        } else if path.starts_with('/') {
            without_dots(path)
        } else {
            let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            without_dots(&format!("{folder}/{path}"))
        };
        let query = query.or_else(|| base.query().filter(|_| path.is_empty()));
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{scheme}://{authority}{merged}{query}")
    };
    let url: Uri = absolute.parse().ok()?;
    let complete = matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|h| !h.is_empty());
    complete.then_some(url)
}

/// RFC 3986 §5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

/// A `Link` header's entries: target and parameters (RFC 8288 §3). Commas inside `<…>` and quotes do not separate.
pub(crate) fn links(value: &str) -> Result<Vec<Link>, &'static str> {
    let mut links = Vec::new();
    for entry in split_outside(value, ',') {
        let mut parts = split_outside(entry, ';').into_iter();
        let target = parts.next().unwrap_or_default().trim();
        let target = target.strip_prefix('<').and_then(|t| t.strip_suffix('>')).ok_or("its target is not in <…>")?;
        let mut parameters = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim();
            let quoted = value.strip_prefix('"').map(|v| v.strip_suffix('"').ok_or("a quote is not closed"));
            parameters.push((name.trim().to_ascii_lowercase(), quoted.transpose()?.unwrap_or(value).to_owned()));
        }
        links.push(Link { target: target.to_owned(), parameters });
    }
    Ok(links)
}

/// One entry of a `Link` header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) target: String,
    pub(crate) parameters: Vec<(String, String)>,
}

impl Link {
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn split_outside(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped, mut in_target, mut from) = (false, false, false, 0);
    let mut parts = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if !in_target => quoted = !quoted,
            '<' if !quoted => in_target = true,
            '>' if !quoted => in_target = false,
            c if c == separator && !quoted && !in_target => {
                parts.push(&text[from..at]);
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_resolve(reference: &str, expected: Option<&str>) {
        let base: Uri = "https://a.example:8443/live/cam/whip?key=1".parse().expect("a URL");
        assert_eq!(resolve(&base, reference).map(|url| url.to_string()).as_deref(), expected, "{reference:?}");
    }

    #[test]
    fn locations_of_real_servers_resolve() {
        check_resolve("https://b.example/s/1", Some("https://b.example/s/1"));
        check_resolve("/whip/cam/4fT", Some("https://a.example:8443/whip/cam/4fT"));
        check_resolve("4fT", Some("https://a.example:8443/live/cam/4fT"));
        check_resolve("whip/4fT?secret=x", Some("https://a.example:8443/live/cam/whip/4fT?secret=x"));
        check_resolve("../other/./4fT", Some("https://a.example:8443/live/other/4fT"));
        check_resolve("/a/b/..", Some("https://a.example:8443/a/"));
        check_resolve("//c.example/s", Some("https://c.example/s"));
        check_resolve("?session=7", Some("https://a.example:8443/live/cam/whip?session=7"));
        check_resolve("", Some("https://a.example:8443/live/cam/whip?key=1"));
        check_resolve("/s#part", Some("https://a.example:8443/s"));
        check_resolve("ftp://a.example/s", None);
        check_resolve("https://", None);
        check_resolve("/with space", None);
    }

    #[test]
    fn links_split_where_the_rfc_says() {
        // Target, rel and credential of each.
        let check = |value: &str, expected: Result<&[[&str; 3]], &'static str>| {
            let found = links(value);
            let seen = found.as_ref().map_err(|reason| *reason).map(|all| {
                let text = |link: &Link, name| link.parameter(name).unwrap_or_default().to_owned();
                all.iter().map(|l| [l.target.clone(), text(l, "rel"), text(l, "credential")]).collect::<Vec<_>>()
            });
            let expected = expected.map(|all| all.iter().map(|l| l.map(str::to_owned)).collect::<Vec<_>>());
            assert_eq!(seen, expected, "{value}");
        };
        check("<stun:a.example:3478>; rel=\"ice-server\"", Ok(&[["stun:a.example:3478", "ice-server", ""]]));
        check(
            "<turn:a.example?transport=udp>; rel=ice-server; username=\"u\"; credential=\"a,b;c\", <stun:b.example>; rel=\"ice-server\"",
            Ok(&[["turn:a.example?transport=udp", "ice-server", "a,b;c"], ["stun:b.example", "ice-server", ""]]),
        );
        check("stun:a.example; rel=\"ice-server\"", Err("its target is not in <…>"));
        check("<stun:a.example>; rel=\"ice-server", Err("a quote is not closed"));
        check("", Ok(&[]));
    }
}
