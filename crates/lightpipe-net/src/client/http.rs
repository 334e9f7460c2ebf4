//! HTTP as WHIP and WHEP clients need it: every status an answer, redirects followed by hand, everything limited in time and size.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri, header};
use lightpipe_signal::whep;
use ureq::tls::{RootCerts, TlsConfig};

use super::reference::resolve;

/// Longest body that is read; an SDP or a problem is far smaller.
const MAX_BODY: u64 = 256 << 10;

/// Redirects followed, one after the other.
const MAX_REDIRECTS: usize = 5;

/// Why no HTTP answer came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// Name, connection, TLS, or the time limit.
    #[error("no answer from {host}: {reason}")]
    Unanswered {
        /// Whom we asked.
        host: String,
        /// What the library said.
        reason: String,
    },
    /// It sends us from one address to the next.
    #[error("{host} redirects more than {MAX_REDIRECTS} times")]
    RedirectLoop {
        /// Whom we asked first.
        host: String,
    },
    /// A redirect without an address, or to one that is no http or https URL.
    #[error("{host} redirects to {location:?}, which is no URL to follow")]
    BadRedirect {
        /// Whom we asked.
        host: String,
        /// Its `Location`.
        location: String,
    },
    /// From https to http: the token would be readable.
    #[error("{host} redirects from https to http; that is not followed")]
    InsecureRedirect {
        /// Whom we asked.
        host: String,
    },
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Who answered, after redirects.
    pub(crate) url: Uri,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// A header's first value.
    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
    }
}

/// TLS with the certificates that this machine trusts and the cryptography that the WebRTC engine brings.
pub fn tls() -> TlsConfig {
    let cryptography = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    TlsConfig::builder()
        .unversioned_rustls_crypto_provider(cryptography)
        // One's own certificate authority included.
        .root_certs(RootCerts::PlatformVerifier)
        .build()
}

/// Sends requests to one server.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    agent: ureq::Agent,
    token: Option<String>,
}

impl Http {
    pub(crate) fn new(token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .tls_config(tls())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lightpipe/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), token }
    }

    /// Sends a request, with an SDP if there is one, within `limit`, from name resolution to the end of the body, and follows 307 and 308 (RFC 9725 §4.5). The
    /// token goes along: the server that has it decides who serves its publishers. Blocks.
    pub(crate) fn send(&self, method: &Method, url: &Uri, sdp: &str, limit: Duration) -> Result<Answer, HttpError> {
        let mut url = url.clone();
        let first_host = host_of(&url);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send_once(method, &url, sdp, limit)?;
            if !matches!(answer.status, 307 | 308) {
                return Ok(answer);
            }
            let location = answer.header(header::LOCATION).unwrap_or_default();
            let next = resolve(&url, location)
                .ok_or_else(|| HttpError::BadRedirect { host: host_of(&url), location: excerpt(location) })?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(HttpError::InsecureRedirect { host: host_of(&url) });
            }
            url = next;
        }
        Err(HttpError::RedirectLoop { host: first_host })
    }

    fn send_once(&self, method: &Method, url: &Uri, sdp: &str, limit: Duration) -> Result<Answer, HttpError> {
        let unanswered = |error: ureq::Error| HttpError::Unanswered { host: host_of(url), reason: error.to_string() };
        let mut request = http::Request::builder().method(method).uri(url);
        if !sdp.is_empty() {
            request = request.header(header::CONTENT_TYPE, whep::SDP).header(header::ACCEPT, whep::SDP);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(sdp).map_err(|error| unanswered(error.into()))?;
        let request = self.agent.configure_request(request).timeout_global(Some(limit)).build();
        let (head, mut body) = self.agent.run(request).map_err(unanswered)?.into_parts();
        let bytes = body.with_config().limit(MAX_BODY).read_to_vec().map_err(unanswered)?;
        Ok(Answer {
            url: url.clone(),
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }
}

/// Host and port, for messages: paths and queries hold secrets (Cloudflare, SRS).
pub(crate) fn host_of(url: &Uri) -> String {
    url.authority()
        .map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default())
        .unwrap_or_default()
        .to_owned()
}

/// The beginning of what somebody sent.
pub(crate) fn excerpt(text: &str) -> String {
    text.trim().chars().take(200).collect()
}
