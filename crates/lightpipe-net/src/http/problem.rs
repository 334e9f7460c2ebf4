//! Errors as `application/problem+json` (RFC 9457), with a machine-readable `cause`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lightpipe_rtc::{OfferError, PeerError};
use lightpipe_signal::whep::Refusal;

use crate::media::ViewerError;

/// An error answer.
#[derive(Debug)]
pub(crate) struct Problem(pub(crate) Refusal);

impl Problem {
    pub(crate) fn new(status: StatusCode, cause: &'static str, detail: impl Into<String>) -> Self {
        Self(Refusal::new(status.as_u16(), cause, detail))
    }

    pub(crate) fn no_such_stream(name: &str, names: &[String]) -> Self {
        let known = if names.is_empty() {
            "there are no streams".to_owned()
        } else {
            format!("streams are: {}", names.join(", "))
        };
        let name: String = name.chars().take(80).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_stream",
            format!("There is no stream \u{201c}{name}\u{201d}; {known}."),
        )
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<ViewerError> for Problem {
    fn from(error: ViewerError) -> Self {
        let (status, cause) = describe(&error);
        let mut detail = error.to_string();
        if let Some(first) = detail.get(..1) {
            detail = format!("{}{}.", first.to_uppercase(), &detail[1..]);
        }
        Self::new(status, cause, detail)
    }
}

/// Status and cause of a refused viewer.
pub(crate) fn describe(error: &ViewerError) -> (StatusCode, &'static str) {
    match error {
        ViewerError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too_many_pending_sessions"),
        ViewerError::Gone => (StatusCode::NOT_FOUND, "no_such_session"),
        ViewerError::Peer(PeerError::Answer(_)) => (StatusCode::BAD_REQUEST, "bad_answer"),
        ViewerError::Peer(PeerError::Offer(offer)) => match offer {
            OfferError::NoCommonCodec { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "no_common_codec"),
            OfferError::NoVideo => (StatusCode::UNPROCESSABLE_ENTITY, "no_video_in_offer"),
            OfferError::NoAudio => (StatusCode::UNPROCESSABLE_ENTITY, "no_audio_in_offer"),
            OfferError::NothingPublished { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "nothing_to_publish"),
            OfferError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "offer_too_large"),
            _ => (StatusCode::BAD_REQUEST, "bad_offer"),
        },
        ViewerError::Peer(PeerError::Candidate(_)) => (StatusCode::BAD_REQUEST, "bad_candidate"),
        ViewerError::Peer(_) => (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed"),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Refusal { status, cause, detail } = self.0;
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let title = code.canonical_reason().unwrap_or("Error");
        let body = serde_json::json!({ "type": "about:blank", "title": title, "status": status, "cause": cause, "detail": detail });
        let mut response =
            (code, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response();
        if code == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
        }
        if matches!(code, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
        }
        response
    }
}
