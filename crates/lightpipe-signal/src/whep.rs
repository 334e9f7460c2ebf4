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

/// Whether a player says that it reads SDP in answers: then an offer that cannot be used is countered by one of ours (406, draft §4.2.2).
/// Players that do not say so get the reason instead, since most of them cannot answer.
pub fn takes_counter_offers(accept: Option<&str>) -> bool {
    accept.is_some_and(|types| types.split(',').any(|listed| content_type_is(Some(listed.trim()), SDP)))
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

/// An event of the server-sent events extension. Advertisements (`scte35`) are nothing that we carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Somebody publishes the stream.
    Active,
    /// Nobody does any more.
    Inactive,
    /// Which layers there are, their sizes and bitrates.
    Layers,
    /// The player should make a new session.
    Reconnect,
    /// How many watch.
    ViewerCount,
}

impl EventType {
    /// All that we send.
    pub const ALL: [Self; 5] = [Self::Active, Self::Inactive, Self::Layers, Self::Reconnect, Self::ViewerCount];

    /// Name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Layers => "layers",
            Self::Reconnect => "reconnect",
            Self::ViewerCount => "viewercount",
        }
    }
}

/// Media type of the extensions' requests.
pub const JSON: &str = "application/json";

/// Reads which events a player wants: all without a body. Names that we do not know are left out.
pub fn parse_events(content_type: Option<&str>, body: &str) -> Result<Vec<EventType>, Refusal> {
    if body.trim().is_empty() {
        return Ok(EventType::ALL.to_vec());
    }
    check_json(content_type)?;
    let names: Vec<String> = serde_json::from_str(body).map_err(|error| {
        Refusal::new(400, "bad_events", format!("the body is no JSON array of event names: {error}"))
    })?;
    Ok(EventType::ALL.into_iter().filter(|kind| names.iter().any(|name| name == kind.as_str())).collect())
}

fn check_json(content_type: Option<&str>) -> Result<(), Refusal> {
    if content_type_is(content_type, JSON) {
        return Ok(());
    }
    Err(Refusal::new(415, "wrong_content_type", format!("this is sent as {JSON}")))
}

/// Which layer a player wants. Without a constraint the choice is ours.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LayerChoice {
    /// Index of the m-line, the first video one if not said.
    pub media_id: Option<String>,
    /// RID of a simulcast encoding; earlier drafts call it `encodingId`.
    #[serde(alias = "encodingId")]
    pub rid: Option<String>,
    /// Spatial layer.
    pub spatial_layer_id: Option<u32>,
    /// Temporal layer.
    pub temporal_layer_id: Option<u32>,
    /// Highest spatial layer.
    pub max_spatial_layer_id: Option<u32>,
    /// Highest temporal layer.
    pub max_temporal_layer_id: Option<u32>,
    /// Most columns.
    pub max_width: Option<u32>,
    /// Most rows.
    pub max_height: Option<u32>,
}

impl LayerChoice {
    /// Reads a request's body.
    pub fn parse(content_type: Option<&str>, body: &str) -> Result<Self, Refusal> {
        check_json(content_type)?;
        serde_json::from_str(body)
            .map_err(|error| Refusal::new(400, "bad_layer", format!("the body is no layer selection: {error}")))
    }

    /// The name of the layer that is asked for, out of these (best first) on m-line `video_line`; `None` leaves the choice to us.
    pub fn check(&self, video_line: usize, layers: &[LayerInfo<'_>]) -> Result<Option<String>, Refusal> {
        let refuse = |what: String| Err(Refusal::new(422, "no_such_layer", what));
        if self.media_id.as_ref().is_some_and(|id| *id != video_line.to_string()) {
            return refuse(format!("the m-line with video is {video_line}"));
        }
        let above_zero = |id: Option<u32>| id.is_some_and(|id| id > 0);
        if above_zero(self.spatial_layer_id) || above_zero(self.temporal_layer_id) {
            return refuse("every encoding of this stream has one spatial and one temporal layer, number 0".into());
        }
        if let Some(rid) = &self.rid {
            if layers.iter().any(|layer| layer.rid == Some(rid)) {
                return Ok(Some(rid.clone()));
            }
            let known: Vec<&str> = layers.iter().filter_map(|layer| layer.rid).collect();
            return refuse(format!(
                "there is no layer {:?}; {}",
                rid.chars().take(40).collect::<String>(),
                if known.is_empty() {
                    "this stream has one, without a RID".into()
                } else {
                    format!("there are {}", known.join(", "))
                }
            ));
        }
        if self.max_width.is_none() && self.max_height.is_none() {
            return Ok(None);
        }
        let fits = |layer: &&LayerInfo<'_>| {
            layer.size.is_none_or(|(width, height)| {
                self.max_width.is_none_or(|limit| width <= limit) && self.max_height.is_none_or(|limit| height <= limit)
            })
        };
        match (layers.iter().find(fits), layers.last().and_then(|least| least.size)) {
            // The best one needs no choice: it comes when the network carries it.
            (Some(first), _) if layers.first() == Some(first) => Ok(None),
            (Some(layer), _) => Ok(layer.rid.map(str::to_owned)),
            (None, Some((width, height))) => refuse(format!("the smallest layer is {width}x{height}")),
            (None, None) => Ok(None),
        }
    }
}

/// One layer that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInfo<'a> {
    /// Its name; `None` where there is no ladder.
    pub rid: Option<&'a str>,
    /// Columns and rows, if known.
    pub size: Option<(u32, u32)>,
}

/// Index of the first video m-line of an SDP.
pub fn video_line(sdp: &str) -> usize {
    sdp.lines().filter(|l| l.starts_with("m=")).position(|l| l.starts_with("m=video")).unwrap_or(0)
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
    fn events_as_players_ask_for_them() {
        let check = |content_type: Option<&str>, body: &str, expected: Result<&[&str], u16>| {
            let got =
                parse_events(content_type, body).map(|all| all.into_iter().map(EventType::as_str).collect::<Vec<_>>());
            assert_eq!(got.map_err(|r| r.status), expected.map(<[_]>::to_vec), "{body:?}");
        };
        check(None, "", Ok(&["active", "inactive", "layers", "reconnect", "viewercount"]));
        check(Some(JSON), r#"["viewercount","scte35","active"]"#, Ok(&["active", "viewercount"]));
        check(Some("application/json; charset=utf-8"), "[]", Ok(&[]));
        check(Some(JSON), r#"{"active":true}"#, Err(400));
        check(Some("text/plain"), r#"["active"]"#, Err(415));
    }

    #[track_caller]
    fn check_layer(layers: &[LayerInfo<'_>], body: &str, expected: Result<Option<&str>, u16>) {
        let choice = LayerChoice::parse(Some(JSON), body);
        let got = choice.and_then(|choice| choice.check(1, layers));
        assert_eq!(got.map_err(|r| r.status), expected.map(|rid| rid.map(str::to_owned)), "{body}");
    }

    #[test]
    fn layers_are_chosen_by_name_or_size_and_missing_ones_refused() {
        let one = [LayerInfo { rid: None, size: Some((1280, 720)) }];
        for (body, expected) in [
            ("{}", Ok(None)),
            (r#"{"mediaId":"1"}"#, Ok(None)),
            (r#"{"mediaId":"1","spatialLayerId":0,"maxWidth":1920,"unknown":true}"#, Ok(None)),
            (r#"{"mediaId":"0"}"#, Err(422)),
            (r#"{"rid":"h"}"#, Err(422)),
            (r#"{"temporalLayerId":1}"#, Err(422)),
            (r#"{"maxHeight":360}"#, Err(422)),
            (r#"{"maxHeight":"tall"}"#, Err(400)),
            ("hd", Err(400)),
        ] {
            check_layer(&one, body, expected);
        }
        let ladder = [("f", 1280), ("h", 640), ("q", 320)]
            .map(|(rid, width)| LayerInfo { rid: Some(rid), size: Some((width, width * 9 / 16)) });
        for (body, expected) in [
            ("{}", Ok(None)),
            (r#"{"rid":"h"}"#, Ok(Some("h"))),
            (r#"{"encodingId":"f"}"#, Ok(Some("f"))),
            (r#"{"rid":"x"}"#, Err(422)),
            (r#"{"rid":"h","spatialLayerId":1}"#, Err(422)),
            (r#"{"maxHeight":400}"#, Ok(Some("h"))),
            (r#"{"maxWidth":4000}"#, Ok(None)),
            (r#"{"maxWidth":639,"maxHeight":400}"#, Ok(Some("q"))),
            (r#"{"maxWidth":100}"#, Err(422)),
        ] {
            check_layer(&ladder, body, expected);
        }
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
