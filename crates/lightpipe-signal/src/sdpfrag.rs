//! Trickle ICE fragments: `application/trickle-ice-sdpfrag` (RFC 8840 §9), as WHIP and WHEP send them in a PATCH.

/// Longest fragment accepted, bytes.
pub const MAX_LEN: usize = 16 << 10;

/// A parsed fragment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SdpFrag {
    /// `a=ice-ufrag` and `a=ice-pwd`; other ones than the session's ask for an ICE restart.
    pub credentials: Option<(String, String)>,
    /// Values of `a=candidate:` lines, beginning with `candidate:`.
    pub candidates: Vec<String>,
    /// `a=end-of-candidates` was there.
    pub end_of_candidates: bool,
}

/// Why text is no fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SdpFragError {
    /// Over [`MAX_LEN`].
    #[error("fragment of {0} bytes, {MAX_LEN} are allowed")]
    TooLarge(usize),
    /// A line that is no SDP line.
    #[error("line {0} is no SDP line")]
    BadLine(usize),
    /// A ufrag without pwd or the other way round, or of a forbidden length or character set (RFC 8839 §5.4).
    #[error("a=ice-ufrag and a=ice-pwd must come together and be valid")]
    BadCredentials,
    /// More than 64 candidates.
    #[error("more than 64 candidates")]
    TooManyCandidates,
}

impl SdpFrag {
    /// Parses a fragment. Unknown attributes and m-lines are skipped: a fragment repeats whatever its m-line needs.
    pub fn parse(text: &str) -> Result<Self, SdpFragError> {
        if text.len() > MAX_LEN {
            return Err(SdpFragError::TooLarge(text.len()));
        }
        let mut frag = Self::default();
        let (mut ufrag, mut pwd) = (None, None);
        for (index, line) in text.lines().map(str::trim_end).enumerate() {
            if line.is_empty() {
                continue;
            }
            let Some((kind, value)) = line.split_once('=').filter(|(k, _)| k.len() == 1) else {
                return Err(SdpFragError::BadLine(index + 1));
            };
            if kind != "a" {
                continue;
            }
            if let Some(v) = value.strip_prefix("ice-ufrag:") {
                ufrag = Some(v.to_owned());
            } else if let Some(v) = value.strip_prefix("ice-pwd:") {
                pwd = Some(v.to_owned());
            } else if value.starts_with("candidate:") {
                if frag.candidates.len() >= 64 {
                    return Err(SdpFragError::TooManyCandidates);
                }
                frag.candidates.push(value.to_owned());
            } else if value == "end-of-candidates" {
                frag.end_of_candidates = true;
            }
        }
        frag.credentials = match (ufrag, pwd) {
            (None, None) => None,
            (Some(ufrag), Some(pwd)) if is_ice_chars(&ufrag, 4..=256) && is_ice_chars(&pwd, 22..=256) => {
                Some((ufrag, pwd))
            }
            _ => return Err(SdpFragError::BadCredentials),
        };
        Ok(frag)
    }

    /// The fragment that answers an ICE restart: our new credentials and candidates.
    pub fn answer(ufrag: &str, pwd: &str, candidates: &[String]) -> String {
        let mut text = format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\n");
        for candidate in candidates {
            text.push_str("a=");
            text.push_str(candidate);
            text.push_str("\r\n");
        }
        text.push_str("a=end-of-candidates\r\n");
        text
    }
}

fn is_ice_chars(text: &str, len: std::ops::RangeInclusive<usize>) -> bool {
    len.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<SdpFrag, SdpFragError>) {
        assert_eq!(SdpFrag::parse(text), expected, "{text:?}");
    }

    #[test]
    fn fragments_of_real_clients() {
        let pwd = "0123456789abcdefghijklmn";
        check(
            &format!(
                "a=ice-ufrag:EsAw\r\na=ice-pwd:{pwd}\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 UDP 2 192.0.2.1 61 typ host\r\na=end-of-candidates\r\n"
            ),
            Ok(SdpFrag {
                credentials: Some(("EsAw".into(), pwd.into())),
                candidates: vec!["candidate:1 1 UDP 2 192.0.2.1 61 typ host".into()],
                end_of_candidates: true,
            }),
        );
        check("", Ok(SdpFrag::default()));
        check(
            "a=candidate:1 1 UDP 2 x.local 61 typ host\n",
            Ok(SdpFrag { candidates: vec!["candidate:1 1 UDP 2 x.local 61 typ host".into()], ..SdpFrag::default() }),
        );
    }

    #[test]
    fn bad_fragments_are_named() {
        check("hello", Err(SdpFragError::BadLine(1)));
        check("a=mid:0\r\nice=1", Err(SdpFragError::BadLine(2)));
        check("a=ice-ufrag:EsAw\r\n", Err(SdpFragError::BadCredentials));
        check("a=ice-ufrag:E\r\na=ice-pwd:short\r\n", Err(SdpFragError::BadCredentials));
        check("a=ice-ufrag:Es w\r\na=ice-pwd:0123456789abcdefghijklmn\r\n", Err(SdpFragError::BadCredentials));
        check(&"a=candidate:1\r\n".repeat(65), Err(SdpFragError::TooManyCandidates));
        check(&"a=x\r\n".repeat(5000), Err(SdpFragError::TooLarge(25_000)));
    }

    #[test]
    fn restart_answer_parses_again() {
        let candidates = vec!["candidate:1 1 udp 1 127.0.0.1 8080 typ host".to_owned()];
        let parsed =
            SdpFrag::parse(&SdpFrag::answer("abcd", "0123456789abcdefghijklmn", &candidates)).expect("our own");
        assert_eq!(parsed.candidates, candidates);
        assert_eq!(parsed.credentials.expect("both").0, "abcd");
    }
}
