//! WHIP (RFC 9725): POST publishes a stream, PATCH trickles or restarts ICE, DELETE ends it.
//!
//! A stream of a publisher outlives it for [`GRACE`]: its viewers keep their connections and see the new picture when the publisher
//! comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use lightpipe_media::Stream;
use lightpipe_media::stream::Health;
use lightpipe_rtc::{DisconnectCause, MAX_SDP_LEN, Offered};
use lightpipe_signal::message::is_name;
use lightpipe_signal::whep;

use super::App;
use super::problem::Problem;
use super::session::{self, text_body, text_header};

/// How long a stream waits for its publisher to come back.
const GRACE: Duration = Duration::from_secs(60);

/// A publisher that gave nothing for so long does not hold its name against another one, who probably is the same program started again.
const SILENT: Duration = Duration::from_secs(3);

/// Streams of publishers at a time.
const MAX_STREAMS: usize = 64;

/// What the API says of the origin of such a stream.
pub(crate) const SOURCE: &str = "whip";

/// How publishing is allowed.
#[derive(Debug, Clone, Default)]
pub struct PublishConfig {
    /// Take publishers at all.
    pub enabled: bool,
    /// A second publisher of a name ends the first; otherwise it is refused.
    pub takeover: bool,
    /// Bearer token that publishers need; none where it is empty.
    pub token: String,
    /// Origins of foreign pages that may publish, such as `https://studio.example`; `*` is all.
    pub origins: Vec<String>,
}

/// Publishing changes what others see, so unlike watching it is not open to every page and everybody.
fn admit(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let config = &app.config.publish;
    if !config.enabled {
        return Err(Problem::new(StatusCode::FORBIDDEN, "publishing_disabled", "This server takes no publishers."));
    }
    if let Some(origin) = text_header(headers, header::ORIGIN) {
        let own = text_header(headers, header::HOST).is_some_and(|host| {
            origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host)
        });
        if !own && !config.origins.iter().any(|listed| listed == origin || listed == "*") {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "foreign_origin",
                "Pages of this origin may not publish here; publish.origins lists those that may.",
            ));
        }
    }
    let given = text_header(headers, header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    if !config.token.is_empty() && !given.is_some_and(|given| same(given.trim(), &config.token)) {
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "wrong_token",
            "Publishing needs the server's token: Authorization: Bearer TOKEN.",
        ));
    }
    Ok(())
}

/// Compares without telling by the time it takes how much was right.
fn same(given: &str, expected: &str) -> bool {
    given.len() == expected.len() && given.bytes().zip(expected.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// `POST /whip/{stream}`.
pub(crate) async fn create(
    State(app): State<App>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    session::admit(&app, from.ip())?;
    admit(&app, &headers)?;
    if !is_name(&name) {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "bad_stream_name",
            "A stream's name has 1 to 64 letters, digits, '_' or '-'.",
        ));
    }
    whep::check_post(text_header(&headers, header::CONTENT_TYPE))?;
    let offer = text_body(body, MAX_SDP_LEN).await?;
    make_way(&app, &name).await?;
    let existing = app.streams.find(&name);
    let prefer = existing.as_ref().filter(|stream| stream.has_video()).map(|stream| stream.codec());
    let publisher = {
        let (app, name, offer) = (app.clone(), name.clone(), offer.clone());
        // Key and certificate work: a few milliseconds that other requests should not wait for.
        tokio::task::spawn_blocking(move || {
            app.engine.add_publisher(&offer, prefer, |offered| stream_for(&app, &name, existing, offered))
        })
        .await
        .map_err(|_| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", "The session could not be set up.")
        })??
    };
    let left = {
        let (app, name) = (app.clone(), name.clone());
        || async move {
            tokio::time::sleep(GRACE).await;
            forget(&app, &name);
        }
    };
    Ok(app.publications.open(&app, "whip", &name, &offer, publisher, left))
}

/// Refuses a second publisher of a name, or ends the first one.
async fn make_way(app: &App, name: &str) -> Result<(), Problem> {
    let taken = |cause, detail: &str| Err(Problem::new(StatusCode::CONFLICT, cause, detail));
    if app.streams.all().iter().any(|entry| entry.stream.name() == name && entry.source != SOURCE) {
        return taken("stream_has_a_source", "A stream of this name is fed by the server itself.");
    }
    let Some(key) = app.publications.of_stream(name) else { return Ok(()) };
    let silent = app.engine.peer(key).is_none_or(|peer| peer.gave.elapsed() >= SILENT);
    if !app.config.publish.takeover && !silent {
        return taken(
            "already_published",
            "This stream is being published already; publish.takeover would let you take it over.",
        );
    }
    app.engine.close(key, DisconnectCause::TakenOver);
    // The old publisher says goodbye within a quarter of a second, or is dropped.
    let gone = async {
        while app.publications.of_stream(name) == Some(key) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(2), gone).await.is_err() {
        return taken("already_published", "The present publisher does not let go.");
    }
    Ok(())
}

/// The stream that a publisher feeds: the one that waits for it, where its viewers can decode what is offered now, or a new one.
fn stream_for(app: &App, name: &str, existing: Option<Arc<Stream>>, offered: &Offered) -> Result<Arc<Stream>, Problem> {
    if let Some(stream) = existing {
        let fits = stream.has_video().then(|| stream.codec()) == offered.video;
        if fits {
            if offered.audio {
                stream.add_audio();
            }
            return Ok(stream);
        }
        end(app, &stream);
    }
    let published = app.streams.all().iter().filter(|entry| entry.source == SOURCE).count();
    if published >= MAX_STREAMS {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_streams",
            format!("{MAX_STREAMS} streams are published already."),
        ));
    }
    let stream = Stream::new(name, offered.video.unwrap_or(lightpipe_media::VideoCodec::H264));
    if offered.video.is_none() {
        stream.without_video();
    }
    if offered.audio {
        stream.add_audio();
    }
    app.streams
        .add(Arc::clone(&stream), SOURCE)
        .map_err(|taken| Problem::new(StatusCode::CONFLICT, "already_published", format!("{taken}.")))?;
    Ok(stream)
}

/// Takes a stream off whose publisher did not come back.
fn forget(app: &App, name: &str) {
    if app.publications.of_stream(name).is_some() {
        return;
    }
    let entry = app.streams.all().into_iter().find(|entry| entry.stream.name() == name && entry.source == SOURCE);
    if let Some(entry) = entry.filter(|entry| matches!(entry.stream.health(), Health::Failed(_) | Health::Starting)) {
        end(app, &entry.stream);
    }
}

fn end(app: &App, stream: &Arc<Stream>) {
    app.streams.remove(stream.name());
    stream.close();
    app.engine.close_viewers_of(stream.name(), DisconnectCause::StreamEnded);
}

/// GET and HEAD are reserved (RFC 9725 §4.1): success without content.
pub(crate) async fn endpoint() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The same of a session.
pub(crate) async fn session(
    State(app): State<App>,
    Path((stream, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    app.publications.look(&stream, &id)
}

/// `PATCH /whip/{stream}/{session}`.
pub(crate) async fn patch(
    State(app): State<App>,
    Path((stream, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    app.publications.patch(&app, &stream, &id, &headers, body).await
}

/// `DELETE /whip/{stream}/{session}`.
pub(crate) async fn delete(
    State(app): State<App>,
    Path((stream, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    app.publications.delete(&app, &stream, &id)
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        "POST an offer to /whip/{stream}; PATCH and DELETE go to the session's own URL. To publish from a browser open /publish/{stream}.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(same("secret", "secret"));
        for wrong in ["", "secre", "secret!", "Secret"] {
            assert!(!same(wrong, "secret"), "{wrong:?}");
        }
    }
}
