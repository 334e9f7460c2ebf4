//! WHEP: POST makes a session, PATCH trickles or restarts ICE, DELETE ends it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use lightpipe_rtc::MAX_SDP_LEN;
use lightpipe_signal::whep;

use super::App;
use super::problem::Problem;
use super::session::{admit, text_body, text_header};
use crate::media::Transport;

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
    // Key and certificate work: a few milliseconds that other requests should not wait for.
    let given = offer.clone();
    let viewer =
        tokio::task::spawn_blocking(move || engine.add_viewer(&stream, &given, Transport::Whep)).await.map_err(
            |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", "The session could not be set up."),
        )??;
    Ok(app.sessions.open(&app, "whep", &name, &offer, viewer, || std::future::ready(())))
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
