//! WHEP's extensions: server-sent events, and which layer a viewer gets.
//!
//! A POST to a session's `events` makes an event stream, its GET delivers, its DELETE ends it. A session's `layer` takes a choice.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use lightpipe_media::Stream;
use lightpipe_media::stream::Health;
use lightpipe_signal::whep::{self, EventType, LayerChoice};
use serde_json::json;

use super::App;
use super::problem::Problem;
use super::session::{text_body, text_header};

/// How often a session's stream is looked at for something to tell.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often layers and viewers are told of, if they changed.
const SLOW_INTERVAL: Duration = Duration::from_secs(2);

/// Change of a bitrate that is worth an event.
const BITRATE_STEP: f64 = 0.2;

/// Longest JSON of a request.
const BODY_LIMIT: usize = 4 << 10;

/// The `Link` values that announce both extensions for a session (draft §4.9).
pub(crate) fn links(session: &str) -> [String; 2] {
    let events = EventType::ALL.map(EventType::as_str).join(",");
    [
        format!("<{session}/events>; rel=\"urn:ietf:params:whep:ext:core:server-sent-events\"; events=\"{events}\""),
        format!("<{session}/layer>; rel=\"urn:ietf:params:whep:ext:core:layer\""),
    ]
}

/// `POST /whep/{stream}/{session}/events`.
pub(crate) async fn create(
    State(app): State<App>,
    Path((name, session)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    app.sessions.look(&name, &session)?;
    let text = text_body(body, BODY_LIMIT).await?;
    let wanted = whep::parse_events(text_header(&headers, header::CONTENT_TYPE), &text)?;
    let id = app.sessions.add_events(&name, &session, wanted)?;
    let location = format!("/whep/{name}/{session}/events/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

/// `GET /whep/{stream}/{session}/events/{id}`: `text/event-stream` until the session ends.
pub(crate) async fn deliver(
    State(app): State<App>,
    Path((name, session, id)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let wanted = app.sessions.events(&name, &session, &id)?;
    let stream = app.streams.find(&name).ok_or_else(|| Problem::no_such_stream(&name, &app.streams.names()))?;
    let video_line = app.sessions.video_line(&name, &session)?;
    let teller = Teller {
        app,
        name,
        session,
        id,
        stream,
        video_line,
        wanted,
        active: None,
        slow_at: Instant::now(),
        layer: None,
        viewers: None,
        ready: VecDeque::new(),
        ended: false,
    };
    let events = stream::unfold(teller, |mut teller| async move {
        let event = teller.next().await?;
        Some((Ok::<_, Infallible>(event), teller))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// `DELETE /whep/{stream}/{session}/events/{id}`.
pub(crate) async fn end(
    State(app): State<App>,
    Path((name, session, id)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    app.sessions.remove_events(&name, &session, &id)?;
    Ok(StatusCode::OK)
}

/// `POST /whep/{stream}/{session}/layer`. A stream has one layer so far: what names another one is refused.
pub(crate) async fn choose_layer(
    State(app): State<App>,
    Path((name, session)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    app.sessions.look(&name, &session)?;
    let stream = app.streams.find(&name).ok_or_else(|| Problem::no_such_stream(&name, &app.streams.names()))?;
    let text = text_body(body, BODY_LIMIT).await?;
    let choice = LayerChoice::parse(text_header(&headers, header::CONTENT_TYPE), &text)?;
    choice.check(app.sessions.video_line(&name, &session)?, stream.stats().size.map(|s| (s.width, s.height)))?;
    Ok(StatusCode::OK)
}

/// Watches a stream on behalf of one event stream.
struct Teller {
    app: App,
    name: String,
    session: String,
    id: String,
    stream: Arc<Stream>,
    video_line: usize,
    wanted: Vec<EventType>,
    /// What was told last: somebody publishes. Nothing yet: an `inactive` is not told first.
    active: Option<bool>,
    slow_at: Instant,
    /// Columns, rows and bitrate told last.
    layer: Option<(u32, u32, u64)>,
    viewers: Option<usize>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Teller {
    /// The next event; none when the event stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let mut stopping = self.app.stopping.clone();
            // Before the session is looked for: it may be over by now for the same reason.
            if *stopping.borrow() {
                // Whoever comes back will find the next server, or this one again.
                self.ended = true;
                self.tell(EventType::Reconnect, json!({}));
                continue;
            }
            if self.app.sessions.events(&self.name, &self.session, &self.id).is_err() {
                return None;
            }
            self.look();
            if self.ready.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    () = async { drop(stopping.wait_for(|stop| *stop).await) } => {}
                }
            }
        }
    }

    fn look(&mut self) {
        let live = self.stream.health() == Health::Live && !self.stream.is_closed();
        match self.active.replace(live) {
            Some(before) if before == live => {}
            None if !live => {}
            _ => self.tell(if live { EventType::Active } else { EventType::Inactive }, json!({})),
        }
        if Instant::now() < self.slow_at {
            return;
        }
        self.slow_at = Instant::now() + SLOW_INTERVAL;
        let viewers = self.app.engine.viewers_of(&self.name);
        if self.viewers.replace(viewers) != Some(viewers) {
            self.tell(EventType::ViewerCount, json!({ "viewercount": viewers }));
        }
        let stats = self.stream.stats();
        let Some(size) = stats.size.filter(|_| self.stream.has_video()) else { return };
        let bitrate = self.stream.rates(self.app.engine.clock().at(Instant::now())).bitrate_bps;
        let known = self.layer.is_some_and(|(width, height, told)| {
            let change = (bitrate as f64 - told as f64).abs();
            (width, height) == (size.width, size.height) && change <= told as f64 * BITRATE_STEP
        });
        if !known {
            self.layer = Some((size.width, size.height, bitrate));
            let layer = json!({
                "spatialLayerId": 0,
                "bitrate": bitrate,
                "targetBitrate": stats.target_bitrate_bps,
                "width": size.width,
                "height": size.height,
            });
            self.tell(EventType::Layers, json!({ self.video_line.to_string(): [layer] }));
        }
    }

    fn tell(&mut self, kind: EventType, data: serde_json::Value) {
        if self.wanted.contains(&kind) {
            self.ready.push_back(Event::default().event(kind.as_str()).data(data.to_string()));
        }
    }
}
