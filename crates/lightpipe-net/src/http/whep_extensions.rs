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
use lightpipe_media::stream::Health;
use lightpipe_media::{SimulcastLayer, Size, Stream};
use lightpipe_signal::whep::{self, EventType, LayerChoice, LayerInfo};
use serde_json::{Value, json};

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
        layers: Vec::new(),
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

/// `POST /whep/{stream}/{session}/layer`: this layer, whatever the network carries; without a constraint the one that it carries.
pub(crate) async fn choose_layer(
    State(app): State<App>,
    Path((name, session)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let key = app.sessions.key_of(&name, &session)?;
    let stream = app.streams.find(&name).ok_or_else(|| Problem::no_such_stream(&name, &app.streams.names()))?;
    let text = text_body(body, BODY_LIMIT).await?;
    let choice = LayerChoice::parse(text_header(&headers, header::CONTENT_TYPE), &text)?;
    let ladder: Vec<(Option<SimulcastLayer>, Option<Size>)> =
        stream.layers().iter().map(|stream| (stream.layer(), stream.stats().size)).collect();
    let layers: Vec<LayerInfo<'_>> = ladder
        .iter()
        .map(|(layer, size)| LayerInfo {
            rid: layer.as_ref().filter(|_| ladder.len() > 1).map(|layer| layer.rid.as_str()),
            size: layer.as_ref().map(|layer| layer.size).or(*size).map(|size| (size.width, size.height)),
        })
        .collect();
    let rid = choice.check(app.sessions.video_line(&name, &session)?, &layers)?;
    // A layer that went away meanwhile, or a session that is just ending: there is nothing more to be had.
    match app.engine.choose_layer(key, rid).await {
        Ok(true) => Ok(StatusCode::OK),
        Ok(false) => {
            Err(Problem::new(StatusCode::CONFLICT, "layer_gone", "The stream's layers have just changed; ask again."))
        }
        Err(error) => Err(Problem::from(error)),
    }
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
    /// Columns, rows and bitrate of each layer, told last.
    layers: Vec<(u32, u32, u64)>,
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
        if self.stream.has_video() {
            self.look_at_layers();
        }
    }

    fn look_at_layers(&mut self) {
        let now = self.app.engine.clock().at(Instant::now());
        let mut figures = Vec::new();
        let mut told = Vec::new();
        for stream in self.stream.layers() {
            let (stats, layer) = (stream.stats(), stream.layer());
            let Some(size) = stats.size.or_else(|| Some(layer.as_ref()?.size)) else { continue };
            let bitrate = stream.rates(now).bitrate_bps;
            figures.push((size.width, size.height, bitrate));
            let mut object = json!({
                "spatialLayerId": 0,
                "bitrate": bitrate,
                "targetBitrate": stats.target_bitrate_bps,
                "width": size.width,
                "height": size.height,
            });
            if let Some(layer) = layer {
                object["rid"] = Value::from(layer.rid);
            }
            told.push(object);
        }
        let same = |((width, height, bitrate), old): (&(u32, u32, u64), &(u32, u32, u64))| {
            let change = (*bitrate as f64 - old.2 as f64).abs();
            (*width, *height) == (old.0, old.1) && change <= old.2 as f64 * BITRATE_STEP
        };
        let known = figures.len() == self.layers.len() && figures.iter().zip(&self.layers).all(same);
        if !known {
            self.layers = figures;
            self.tell(EventType::Layers, json!({ self.video_line.to_string(): told }));
        }
    }

    fn tell(&mut self, kind: EventType, data: serde_json::Value) {
        if self.wanted.contains(&kind) {
            self.ready.push_back(Event::default().event(kind.as_str()).data(data.to_string()));
        }
    }
}
