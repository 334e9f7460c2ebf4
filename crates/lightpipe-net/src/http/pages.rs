//! The pages, embedded in the binary.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::App;
use super::problem::Problem;

#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../../web"]
struct Web;

fn file(path: &str) -> Response {
    let Some(found) = Web::get(path) else {
        return Problem::new(StatusCode::NOT_FOUND, "no_such_file", "There is no such file.").into_response();
    };
    let content_type = match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        // What we publish as JSON is a schema.
        Some("json") => "application/schema+json",
        _ => "application/octet-stream",
    };
    // Embedded files change with the binary only, and a stale player against a new server is a bug report.
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache")], found.data.into_owned())
        .into_response()
}

pub(crate) async fn dashboard() -> Response {
    file("index.html")
}

pub(crate) async fn watch(State(app): State<App>, Path(stream): Path<String>) -> Response {
    let mut page = file("watch.html");
    if app.streams.find(&stream).is_none() {
        // The page itself says what is missing; the status is for programs.
        *page.status_mut() = StatusCode::NOT_FOUND;
    }
    page
}

/// The page itself asks for what it needs; the stream comes into being when it publishes.
pub(crate) async fn publish() -> Response {
    file("publish.html")
}

/// A room is where somebody is; the page itself says what is wrong with a name.
pub(crate) async fn room() -> Response {
    file("room.html")
}

pub(crate) async fn player() -> Response {
    file("player.js")
}

/// What is said on `/ws` and on the data channels of rooms.
pub(crate) async fn schema() -> Response {
    file("schema/signaling.json")
}

pub(crate) async fn asset(Path(path): Path<String>) -> Response {
    file(&path)
}

pub(crate) async fn favicon() -> Response {
    file("icon.svg")
}

pub(crate) async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_page", "There is no such page.")
}
