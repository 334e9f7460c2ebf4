//! WHEP: POST makes a session, PATCH trickles or restarts ICE, DELETE ends it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use lightpipe_rtc::{MAX_SDP_LEN, PeerError};
use lightpipe_signal::whep;

use super::App;
use super::problem::Problem;
use super::session::{admit, text_body, text_header};
use crate::media::{NewSession, Transport, ViewerError};

/// `POST /whep/{stream}`.
pub(crate) async fn create(
    State(app): State<App>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    admit(&app, from.ip())?;
    let stream = app.streams.find(&name).ok_or_else(|| Problem::no_such_stream(&name, &app.streams.names()))?;
    whep::check_post(text_header(&headers, header::CONTENT_TYPE))?;
    let offer = text_body(body, MAX_SDP_LEN).await?;
    let engine = Arc::clone(&app.engine);
    let counters = whep::takes_counter_offers(text_header(&headers, header::ACCEPT));
    // Key and certificate work: a few milliseconds that other requests should not wait for.
    let given = offer.clone();
    let made = tokio::task::spawn_blocking(move || match engine.add_viewer(&stream, &given, Transport::Whep) {
        Err(error) if counters && is_answered_by_a_counter_offer(&error) => {
            engine.offer_stream(&stream, Transport::Whep).map(Made::CounterOffer)
        }
        made => made.map(Made::Answer),
    });
    let made = made.await.map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", "The session could not be set up.")
    })??;
    Ok(match made {
        Made::Answer(viewer) => app.sessions.open(&app, "whep", &name, &offer, viewer, || std::future::ready(())),
        Made::CounterOffer(session) => app.sessions.counter(&app, &name, session),
    })
}

/// What became of an offer.
enum Made {
    Answer(NewSession),
    CounterOffer(NewSession),
}

/// Whether the offer was fine but for what it offers, so that one of ours may be answered (draft §4.2.2).
const fn is_answered_by_a_counter_offer(error: &ViewerError) -> bool {
    use lightpipe_rtc::OfferError::{NoAudio, NoCommonCodec, NoVideo};
    matches!(error, ViewerError::Peer(PeerError::Offer(NoCommonCodec { .. } | NoVideo | NoAudio)))
}

/// `GET` and `HEAD` of an endpoint, which has no representation: success without content (draft §4.1).
pub(crate) async fn endpoint(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.streams.find(&name).ok_or_else(|| Problem::no_such_stream(&name, &app.streams.names()))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The same of a session.
pub(crate) async fn session(
    State(app): State<App>,
    Path((stream, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    app.sessions.look(&stream, &id)
}

/// `PATCH /whep/{stream}/{session}`.
pub(crate) async fn patch(
    State(app): State<App>,
    Path((stream, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    app.sessions.patch(&app, &stream, &id, &headers, body).await
}

/// `DELETE /whep/{stream}/{session}`.
pub(crate) async fn delete(
    State(app): State<App>,
    Path((stream, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    app.sessions.delete(&app, &stream, &id)
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        "POST an offer to /whep/{stream}; PATCH and DELETE go to the session's own URL. To watch in a browser open /watch/{stream}.",
    )
}
