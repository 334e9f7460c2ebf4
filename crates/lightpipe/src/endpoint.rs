//! Somebody else's WHIP or WHEP endpoint, as people write it.

use std::str::FromStr;

use http::Uri;

/// Where offers are posted, and the token for it.
///
/// Written as `https://host/path`, or with a bearer token as `https://TOKEN@host/path`. Its [`std::fmt::Debug`] shows neither the token nor the path, which
/// holds the secret at some services.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The URL, without the token.
    pub url: Uri,
    /// Bearer token.
    pub token: Option<String>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("host", &self.url.authority()).finish_non_exhaustive()
    }
}

/// Why text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; an endpoint is an http or https URL, such as https://media.example/whip/cam")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| EndpointError("there is no scheme".into()))?;
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(EndpointError(format!("{scheme}:// is not spoken")));
        }
        let authority_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (token, host) = match rest[..authority_ends].rsplit_once('@') {
            // `user:TOKEN@` is how some tools write it.
            Some((userinfo, host)) => (Some(userinfo.rsplit(':').next().unwrap_or(userinfo).to_owned()), host),
            None => (None, &rest[..authority_ends]),
        };
        let path = rest[authority_ends..].split('#').next().unwrap_or_default();
        let url: Uri = format!("{scheme}://{host}{path}").parse().map_err(|error| EndpointError(format!("{error}")))?;
        if url.host().is_none_or(str::is_empty) {
            return Err(EndpointError("there is no host".into()));
        }
        Ok(Self { url, token: token.filter(|token| !token.is_empty()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, Option<&str>)>) {
        let parsed = text.parse::<Endpoint>().ok();
        let seen = parsed.as_ref().map(|e| (e.url.to_string(), e.token.as_deref()));
        assert_eq!(seen, expected.map(|(url, token)| (url.to_owned(), token)), "{text:?}");
    }

    #[test]
    fn endpoints_as_people_write_them() {
        check("http://127.0.0.1:8080/whep/cube", Some(("http://127.0.0.1:8080/whep/cube", None)));
        check("https://[::1]/whip?key=1#part", Some(("https://[::1]/whip?key=1", None)));
        check("https://secret@media.example/whip/a@b", Some(("https://media.example/whip/a@b", Some("secret"))));
        check("https://user:secret@media.example", Some(("https://media.example/", Some("secret"))));
        check("https://@media.example/x", Some(("https://media.example/x", None)));
        check("ftp://media.example/x", None);
        check("media.example/x", None);
        check("https:///x", None);
        check("", None);
    }

    #[test]
    fn secrets_do_not_show() {
        let endpoint: Endpoint = "https://token@media.example/secret/path".parse().expect("an endpoint");
        let shown = format!("{endpoint:?}");
        assert!(!shown.contains("token") && !shown.contains("secret"), "{shown}");
    }
}
