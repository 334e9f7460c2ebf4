//! HTTP on tokio: pages, WHEP, WebSocket signalling, the API, metrics. All on one TCP port.

mod api;
mod limit;
mod metrics;
mod pages;
mod problem;
mod session;
mod whep;
mod whep_extensions;
mod whip;
mod ws;

pub use whip::PublishConfig;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::routing::{any, get};
use lightpipe_signal::Rooms;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::client::Clients;
use crate::media::MediaEngine;
use crate::registry::Streams;

/// How the HTTP side works.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// POSTs per second and address that make sessions; bursts of four times that pass. 0: no limit.
    pub posts_per_second: u32,
    /// STUN and TURN servers told to viewers in `Link` headers (RFC 9725 §4.6). None are needed in a LAN.
    pub ice_servers: Vec<IceServer>,
    /// Who may publish.
    pub publish: PublishConfig,
}

/// A STUN or TURN server for viewers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IceServer {
    /// `stun:host:port` or `turn:host:port?transport=udp`.
    pub url: String,
    /// TURN user and password.
    pub credentials: Option<(String, String)>,
}

impl IceServer {
    /// The value of a `Link` header.
    fn to_link(&self) -> String {
        let mut link = format!("<{}>; rel=\"ice-server\"", self.url);
        if let Some((user, password)) = &self.credentials {
            let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            link.push_str(&format!(
                "; username=\"{}\"; credential=\"{}\"; credential-type=\"password\"",
                quoted(user),
                quoted(password)
            ));
        }
        link
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { posts_per_second: 5, ice_servers: Vec::new(), publish: PublishConfig::default() }
    }
}

/// What every handler sees.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) engine: Arc<MediaEngine>,
    pub(crate) streams: Streams,
    pub(crate) clients: Clients,
    pub(crate) sessions: Arc<session::Sessions>,
    pub(crate) publications: Arc<session::Sessions>,
    pub(crate) rooms: Arc<ws::RoomHub>,
    pub(crate) limiter: Arc<limit::PostLimiter>,
    pub(crate) config: Arc<HttpConfig>,
    pub(crate) started: Instant,
    /// Turns true when the server stops: WebSockets close, readiness ends.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// A bound HTTP server.
pub struct HttpServer {
    listener: TcpListener,
    router: Router,
    stop: watch::Sender<bool>,
}

impl std::fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpServer").field("address", &self.listener.local_addr().ok()).finish_non_exhaustive()
    }
}

impl HttpServer {
    /// Takes a bound, non-blocking listener. Call inside a tokio runtime.
    pub fn new(
        listener: std::net::TcpListener,
        engine: Arc<MediaEngine>,
        streams: Streams,
        clients: Clients,
        config: HttpConfig,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let (stop, stopping) = watch::channel(false);
        let app = App {
            engine,
            streams,
            clients,
            sessions: Arc::default(),
            publications: Arc::default(),
            rooms: Arc::new(ws::RoomHub::new(Mutex::new(Rooms::new()))),
            limiter: Arc::new(limit::PostLimiter::new(config.posts_per_second)),
            config: Arc::new(config),
            started: Instant::now(),
            stopping,
        };
        Ok(Self { listener, router: router(app), stop })
    }

    /// Its address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves, then closes WebSockets and finishes what is under way.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let Self { listener, router, stop: stopping } = self;
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, service)
            .with_graceful_shutdown(async move {
                stop.await;
                let _ = stopping.send(true);
            })
            .await
    }
}

fn router(app: App) -> Router {
    let public = Router::new()
        .route(
            "/whep/{stream}",
            get(whep::endpoint).post(whep::create).options(session::options).fallback(whep::wrong_method),
        )
        .route(
            "/whep/{stream}/{session}",
            get(whep::session)
                .patch(whep::patch)
                .delete(whep::delete)
                .options(session::options)
                .fallback(whep::wrong_method),
        )
        .route(
            "/whep/{stream}/{session}/events",
            axum::routing::post(whep_extensions::create).options(session::options).fallback(whep::wrong_method),
        )
        .route(
            "/whep/{stream}/{session}/events/{id}",
            get(whep_extensions::deliver)
                .delete(whep_extensions::end)
                .options(session::options)
                .fallback(whep::wrong_method),
        )
        .route(
            "/whep/{stream}/{session}/layer",
            axum::routing::post(whep_extensions::choose_layer).options(session::options).fallback(whep::wrong_method),
        )
        .route(
            "/whip/{stream}",
            axum::routing::post(whip::create)
                .options(session::options)
                .get(whip::endpoint)
                .fallback(whip::wrong_method),
        )
        .route(
            "/whip/{stream}/{session}",
            axum::routing::patch(whip::patch)
                .delete(whip::delete)
                .options(session::options)
                .get(whip::session)
                .fallback(whip::wrong_method),
        )
        .route("/player.js", get(pages::player))
        .route("/schema/signaling.json", get(pages::schema))
        .layer(axum::middleware::map_response(open_to_foreign_pages));
    let own = Router::new()
        .route("/", get(pages::dashboard))
        .route("/watch/{stream}", get(pages::watch))
        .route("/assets/{*path}", get(pages::asset))
        .route("/favicon.ico", get(pages::favicon))
        .route("/publish/{stream}", get(pages::publish))
        .route("/room/{room}", get(pages::room))
        .route("/ws", any(ws::upgrade))
        .route("/api/v1/streams", get(api::streams))
        .route("/api/v1/peers", get(api::peers))
        .route("/api/v1/clients", get(api::clients))
        .route("/api/v1/events", get(api::events))
        .route("/api/v1/info", get(api::info))
        .route("/metrics", get(metrics::page))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz));
    public.merge(own).fallback(pages::not_found).layer(axum::middleware::map_response(security_headers)).with_state(app)
}

/// CORS for what a viewer on a foreign page needs: nothing here changes anything but the viewer's own session. Publishing does, and checks the
/// origin itself; the page may read why it was refused. The
/// handlers of OPTIONS stay ours, because WHEP says more in their answers than CORS does.
async fn open_to_foreign_pages(mut response: axum::response::Response) -> axum::response::Response {
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET, POST, PATCH, DELETE, OPTIONS"),
        ("access-control-allow-headers", "content-type, if-match, authorization, accept"),
        ("access-control-expose-headers", "location, etag, link, retry-after"),
        ("access-control-max-age", "600"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// A page of ours loads nothing from elsewhere and is not sniffed.
async fn security_headers(mut response: axum::response::Response) -> axum::response::Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        HeaderName::from_static("content-security-policy"),
        HeaderValue::from_static(
            "default-src 'self'; connect-src *; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self'",
        ),
    );
    headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("same-origin"));
    response
}
