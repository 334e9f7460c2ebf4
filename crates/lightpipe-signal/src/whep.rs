//! What WHEP requests mean (draft-ietf-wish-whep-03; PATCH as in RFC 9725 §4.3).

use crate::sdpfrag::{SdpFrag, SdpFragError};

/// Media type of an offer.
pub const SDP: &str = "application/sdp";
/// Media type of a trickle fragment.
pub const TRICKLE: &str = "application/trickle-ice-sdpfrag";

/// An answer to a bad request: status, machine-readable cause, one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Machine-readable cause.
    pub cause: &'static str,
    /// One sentence for people.
    pub detail: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(status: u16, cause: &'static str, detail: impl Into<String>) -> Self {
        Self { status, cause, detail: detail.into() }
    }
}

/// Whether a `Content-Type` header names `wanted`, parameters aside.
pub fn content_type_is(header: Option<&str>, wanted: &str) -> bool {
    header.is_some_and(|h| h.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case(wanted)))
}

/// Checks a POST's headers.
pub fn check_post(content_type: Option<&str>) -> Result<(), Refusal> {
    if content_type_is(content_type, SDP) {
        Ok(())
    } else {
        Err(Refusal::new(415, "wrong_content_type", format!("a WHEP offer is sent as {SDP}")))
    }
}

/// What a valid PATCH asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patch {
    /// Add these candidates: 204.
    Trickle(Vec<String>),
    /// Restart ICE with these credentials and candidates: 200 with our new ones and a new ETag.
    Restart {
        /// The peer's new ufrag.
        ufrag: String,
        /// The peer's new password.
        pwd: String,
        /// Its candidates so far.
        candidates: Vec<String>,
    },
}

/// Checks a PATCH against the session's `etag` (with quotes) and remote `ufrag`.
///
/// `If-Match` is required (428), must name the current ICE session (412), and `*` stands for a restart (RFC 9725 §4.3.2).
pub fn check_patch(
    content_type: Option<&str>,
    if_match: Option<&str>,
    body: &str,
    etag: &str,
    remote_ufrag: &str,
) -> Result<Patch, Refusal> {
    if !content_type_is(content_type, TRICKLE) {
        return Err(Refusal::new(415, "wrong_content_type", format!("a WHEP PATCH is sent as {TRICKLE}")));
    }
    let Some(if_match) = if_match.map(str::trim) else {
        return Err(Refusal::new(428, "if_match_missing", "a WHEP PATCH needs If-Match with the session's ETag"));
    };
    let frag = SdpFrag::parse(body).map_err(|error| {
        let status = if matches!(error, SdpFragError::TooLarge(_)) { 413 } else { 400 };
        Refusal::new(status, "bad_sdpfrag", error.to_string())
    })?;
    let any = if_match == "*";
    if !any && !if_match.split(',').any(|t| t.trim() == etag) {
        return Err(Refusal::new(412, "stale_etag", "If-Match names another ICE session than the current one"));
    }
    match frag.credentials {
        Some((ufrag, pwd)) if ufrag != remote_ufrag => {
            if any {
                Ok(Patch::Restart { ufrag, pwd, candidates: frag.candidates })
            } else {
                Err(Refusal::new(412, "stale_etag", "an ICE restart needs If-Match: *"))
            }
        }
        _ => Ok(Patch::Trickle(frag.candidates)),
    }
}

/// The first `a=ice-ufrag` of an SDP.
pub fn ice_ufrag(sdp: &str) -> &str {
    sdp.lines().find_map(|l| l.strip_prefix("a=ice-ufrag:")).map_or("", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAG: &str =
        "a=ice-ufrag:same\r\na=ice-pwd:0123456789abcdefghijklmn\r\na=candidate:1 1 udp 1 192.0.2.1 5 typ host\r\n";

    #[track_caller]
    fn check(content_type: Option<&str>, if_match: Option<&str>, body: &str, expected: Result<Patch, u16>) {
        let got = check_patch(content_type, if_match, body, "\"e1\"", "same");
        assert_eq!(got.map_err(|r| r.status), expected, "{content_type:?} {if_match:?} {body:?}");
    }

    #[test]
    fn patches_are_trickle_restart_or_refused() {
        let candidate = || vec!["candidate:1 1 udp 1 192.0.2.1 5 typ host".to_owned()];
        let other = FRAG.replace("same", "other");
        check(Some(TRICKLE), Some("\"e1\""), FRAG, Ok(Patch::Trickle(candidate())));
        check(
            Some("Application/Trickle-ICE-sdpfrag; charset=utf-8"),
            Some("\"e1\""),
            FRAG,
            Ok(Patch::Trickle(candidate())),
        );
        check(Some(TRICKLE), Some("\"e0\", \"e1\""), "", Ok(Patch::Trickle(vec![])));
        check(Some(TRICKLE), Some("*"), FRAG, Ok(Patch::Trickle(candidate())));
        let restart =
            Patch::Restart { ufrag: "other".into(), pwd: "0123456789abcdefghijklmn".into(), candidates: candidate() };
        check(Some(TRICKLE), Some("*"), &other, Ok(restart));
        check(Some(TRICKLE), Some("\"e1\""), &other, Err(412));
        check(Some(TRICKLE), Some("\"old\""), FRAG, Err(412));
        check(Some(TRICKLE), None, FRAG, Err(428));
        check(Some(SDP), Some("\"e1\""), FRAG, Err(415));
        check(None, Some("\"e1\""), FRAG, Err(415));
        check(Some(TRICKLE), Some("\"e1\""), "garbage", Err(400));
        check(Some(TRICKLE), Some("\"e1\""), &"a=x\r\n".repeat(9000), Err(413));
    }

    #[test]
    fn offers_need_their_content_type() {
        assert!(check_post(Some("application/sdp; charset=utf-8")).is_ok());
        assert_eq!(check_post(Some("text/plain")).expect_err("refused").status, 415);
        assert_eq!(check_post(None).expect_err("refused").status, 415);
    }
}
