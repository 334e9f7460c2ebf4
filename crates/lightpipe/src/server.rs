//! A lightpipe server inside a program.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lightpipe_codec::CpuBudget;
use lightpipe_media::{EventLog, FramePool, FrameQueue, MediaClock, Size, Stream, VideoCodec};
use lightpipe_net::client::wait_for_tracks;
use lightpipe_net::{
    Client, ClientConfig, Clients, EngineConfig, HttpConfig, HttpServer, IceServer, MediaEngine, Mesh, MeshConfig,
    MeshError, NameTaken, PublishConfig, Streams,
};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::config::{Config, ValueError};
use crate::endpoint::Endpoint;
use crate::frames::FrameSender;
use crate::source::{self, Running, Sound, Workshop};
use crate::spec::{NamedSource, SourceSpec, SpecError, stream_name};

/// How long open HTTP requests may take to finish at the end.
const HTTP_STOP_LIMIT: Duration = Duration::from_secs(2);

/// How long a room waits for what we publish in it.
const TRACKS_LIMIT: Duration = Duration::from_secs(5);

/// Why a server or one of its streams did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A configuration value is out of range.
    #[error(transparent)]
    Config(#[from] ValueError),
    /// The port is taken or not ours to take.
    #[error(
        "cannot listen on {address} ({transport}): {error}. Another program may use the port; choose one with --port"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// TCP or UDP.
        transport: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// A room could not be joined.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// Threads or a runtime could not be started.
    #[error("cannot start: {0}")]
    Start(#[source] std::io::Error),
    /// Two streams of one name.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// Not a stream name.
    #[error(transparent)]
    Name(#[from] SpecError),
    /// No stream of that name.
    #[error("there is no stream {0:?} to publish")]
    NoStream(String),
    /// A source refused to start.
    #[error("stream {stream:?}: {reason}")]
    Source {
        /// The stream.
        stream: String,
        /// Why, and what helps.
        reason: String,
    },
}

/// What feeds a stream.
#[derive(Debug)]
struct Source {
    stream: Arc<Stream>,
    pictures: Option<Running>,
    /// Sound from a source of its own. It takes the place of what the pictures' source would have.
    sound: Option<Sound>,
    /// What people are told of both.
    text: String,
}

/// A running server: streams, viewers, pages. Dropping it says goodbye to every viewer and ends everything.
#[derive(Debug)]
pub struct Server {
    config: Config,
    streams: Streams,
    engine: Arc<MediaEngine>,
    clock: MediaClock,
    events: EventLog,
    /// Of the encoders of all streams.
    budget: Option<Arc<CpuBudget>>,
    address: SocketAddr,
    sources: Mutex<Vec<Source>>,
    clients: Clients,
    stop_http: Mutex<Option<oneshot::Sender<()>>>,
    runtime: Mutex<Option<Runtime>>,
}

impl Server {
    /// Listens and serves. Sources named in the configuration are started, none by default; add some with [`Self::add_source`]
    /// or [`Self::frames`].
    pub fn start(config: Config) -> Result<Self, ServerError> {
        Self::launch(config, true)
    }

    /// Only the media side, on UDP: no pages, no API, nobody can watch or publish here. For programs that publish elsewhere.
    pub fn headless(config: Config) -> Result<Self, ServerError> {
        Self::launch(config, false)
    }

    fn launch(config: Config, pages: bool) -> Result<Self, ServerError> {
        config.check()?;
        let clock = MediaClock::new(Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let events = EventLog::new();
        let (listener, engine) = if pages {
            let (listener, engine) = listen(&config, clock, &events)?;
            (Some(listener), engine)
        } else {
            let address = SocketAddr::new(config.server.host, config.server.port);
            let fault = |error| ServerError::Listen { address, transport: "UDP", error };
            (None, start_engine(&config, address, clock, &events).map_err(fault)?)
        };
        let address = SocketAddr::new(config.server.host, engine.port());
        let engine = Arc::new(engine);
        let streams = Streams::new();
        let clients = Clients::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(ServerError::Start)?;
        let http_config = HttpConfig {
            posts_per_second: config.server.posts_per_second,
            ice_servers: ice_servers(&config),
            publish: PublishConfig {
                enabled: config.publish.enabled,
                takeover: config.publish.takeover,
                token: config.publish.token.clone(),
                origins: config.publish.origins.clone(),
            },
        };
        let (stop_http, stopped) = oneshot::channel();
        if let Some(listener) = listener {
            let _inside = runtime.enter();
            let http = HttpServer::new(listener, Arc::clone(&engine), streams.clone(), clients.clone(), http_config)
                .map_err(ServerError::Start)?;
            runtime.spawn(async move {
                let stop = async {
                    let _ = stopped.await;
                };
                if let Err(error) = http.serve(stop).await {
                    tracing::error!(%error, "HTTP ends");
                }
            });
        }
        let server = Self {
            streams,
            engine,
            clock,
            events,
            budget: config.simulcast.budget(),
            address,
            sources: Mutex::default(),
            clients,
            stop_http: Mutex::new(Some(stop_http)),
            runtime: Mutex::new(Some(runtime)),
            config,
        };
        for (name, texts) in &server.config.sources {
            for text in texts.iter() {
                server.add_source(&NamedSource {
                    name: stream_name(name)?,
                    spec: text.parse()?,
                    text: text.to_owned(),
                })?;
            }
        }
        for (name, endpoint) in &server.config.push {
            let endpoint: Endpoint = endpoint
                .parse()
                .map_err(|error| ServerError::Source { stream: name.clone(), reason: format!("[push]: {error}") })?;
            server.publish(name, &endpoint, None)?;
        }
        Ok(server)
    }

    /// A stream fed by a source. What goes wrong later (a child that dies) shows in the stream's health, not here.
    ///
    /// A source of pictures and one of sound (`mic`) with the same name make one stream.
    pub fn add_source(&self, named: &NamedSource) -> Result<(), ServerError> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let text = named.spec.public_text(&named.text);
        let taken = || NameTaken(named.name.clone());
        if let Some(source) = sources.iter_mut().find(|source| source.stream.name() == named.name) {
            if named.spec.is_sound() {
                if source.sound.is_some() {
                    return Err(taken().into());
                }
                if let Some(pictures) = &mut source.pictures {
                    pictures.sound = None;
                }
                source.sound = Some(source::start_sound(&named.spec, &source.stream, self.workshop())?);
            } else {
                if source.pictures.is_some() {
                    return Err(taken().into());
                }
                let pictures = source::start(&named.spec, &source.stream, self.workshop(), false)?;
                source.stream.add_video();
                source.pictures = Some(pictures);
            }
            source.text = format!("{} + {text}", source.text);
            self.streams.set_source(&named.name, source.text.clone());
            return Ok(());
        }
        let stream = Stream::new(named.name.clone(), VideoCodec::H264);
        if named.spec.is_sound() {
            stream.without_video();
        }
        self.streams.add(Arc::clone(&stream), text.clone())?;
        if let SourceSpec::Whep(endpoint) = &named.spec {
            let config = ClientConfig { token: endpoint.token.clone(), ..ClientConfig::new(endpoint.url.clone()) };
            self.start_client(|| Client::play(Arc::clone(&self.engine), stream, config));
            return Ok(());
        }
        let started = if named.spec.is_sound() {
            source::start_sound(&named.spec, &stream, self.workshop()).map(|sound| (None, Some(sound)))
        } else {
            source::start(&named.spec, &stream, self.workshop(), true).map(|pictures| (Some(pictures), None))
        };
        match started {
            Ok((pictures, sound)) => {
                sources.push(Source { stream, pictures, sound, text });
                Ok(())
            }
            Err(error) => {
                self.streams.remove(&named.name);
                Err(error)
            }
        }
    }

    const fn workshop(&self) -> Workshop<'_> {
        Workshop { clock: self.clock, events: &self.events, config: &self.config, budget: self.budget.as_ref() }
    }

    /// Publishes a stream to somebody else's WHIP server, again and again until the server stops or refuses. The offer waits up to `wait_for_tracks`
    /// (5 s if not given) until each of the stream's tracks gives something. All of the stream's layers are offered, unless `simulcast.push` says
    /// otherwise.
    pub fn publish(
        &self,
        stream: &str,
        endpoint: &Endpoint,
        wait_for_tracks: Option<Duration>,
    ) -> Result<Arc<Client>, ServerError> {
        let found = self.streams.find(stream).ok_or_else(|| ServerError::NoStream(stream.to_owned()))?;
        let mut config = ClientConfig { token: endpoint.token.clone(), ..ClientConfig::new(endpoint.url.clone()) };
        config.wait_for_tracks = wait_for_tracks.unwrap_or(config.wait_for_tracks);
        config.simulcast = self.config.simulcast.push;
        self.start_client(|| Client::publish(Arc::clone(&self.engine), found, config))
            .ok_or_else(|| ServerError::NoStream(stream.to_owned()))
    }

    /// Joins a room of somebody's server (or of ours), and publishes a stream in it, if one is named. What the others send is among
    /// [`Self::streams`] as `ROOM.PEER`. Resolves when the room's server has let us in, or refused. The announcement waits up to 5 s until each of the stream's
    /// tracks gives something.
    pub async fn join(&self, publish: Option<&str>, config: MeshConfig) -> Result<Mesh, ServerError> {
        let find = |name: &str| self.streams.find(name).ok_or_else(|| ServerError::NoStream(name.to_owned()));
        let publish = publish.map(find).transpose()?;
        let stopped = || MeshError::Gone;
        let handle = {
            let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
            runtime.as_ref().ok_or_else(stopped)?.handle().clone()
        };
        let (engine, streams) = (Arc::clone(&self.engine), self.streams.clone());
        // On the server's own runtime, which may outlive the caller's.
        let joined = handle.spawn(async move {
            if let Some(stream) = &publish {
                wait_for_tracks(Arc::clone(stream), TRACKS_LIMIT).await;
            }
            Mesh::join(engine, publish, streams, config).await
        });
        Ok(joined.await.unwrap_or(Err(MeshError::Gone))?)
    }

    /// None when the server has stopped.
    fn start_client(&self, start: impl FnOnce() -> Client) -> Option<Arc<Client>> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let _inside = runtime.as_ref()?.enter();
        Some(self.clients.add(start()))
    }

    /// The connections to other servers.
    pub const fn clients(&self) -> &Clients {
        &self.clients
    }

    /// A stream fed by this program, with pictures of `size`, about `fps` a second.
    pub fn frames(&self, name: &str, size: Size, fps: f64) -> Result<FrameSender, ServerError> {
        let name = stream_name(name)?;
        let video = crate::config::VideoConfig { fps, ..self.config.video.clone() };
        let even = size.to_even();
        let wanted = crate::config::VideoConfig { width: even.width, height: even.height, ..video.clone() };
        Config { video: wanted, ..Config::default() }.check()?;
        let stream = Stream::new(name, VideoCodec::H264);
        self.streams.add(Arc::clone(&stream), "frames")?;
        let frames = Arc::new(FrameQueue::new(video.queue_frames));
        let how = (&video, &self.config.simulcast, self.budget.as_ref());
        let encoder = source::encoder(&stream, &frames, self.clock, &self.events, how, even, video.timecode)
            .map_err(ServerError::Start)?;
        Ok(FrameSender {
            size,
            frames,
            stream,
            clock: self.clock,
            pool: FramePool::new(),
            streams: self.streams.clone(),
            audio: self.config.audio.clone(),
            _encoder: encoder,
        })
    }

    /// Where the pages are: `http://HOST:PORT`, with an address that a browser can use.
    pub fn url(&self) -> String {
        let ip = self.address.ip();
        let host = if ip.is_unspecified() {
            // The first candidate is what viewers elsewhere use as well.
            self.engine.addresses().first().map_or(ip, SocketAddr::ip)
        } else {
            ip
        };
        format!("http://{}", SocketAddr::new(host, self.address.port()))
    }

    /// The bound address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The streams.
    pub const fn streams(&self) -> &Streams {
        &self.streams
    }

    /// The media engine: viewers and counters.
    pub const fn engine(&self) -> &Arc<MediaEngine> {
        &self.engine
    }

    /// Lifecycle events.
    pub const fn events(&self) -> &EventLog {
        &self.events
    }

    /// The media clock: capture times of all streams are on it.
    pub const fn clock(&self) -> MediaClock {
        self.clock
    }

    /// Process ids of the children of sources, by stream.
    pub fn children(&self) -> Vec<(String, u32)> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut children = Vec::new();
        for source in sources.iter() {
            let own = source.sound.as_ref().and_then(Sound::child_pid);
            let pids = source.pictures.iter().flat_map(Running::child_pids).chain(own);
            children.extend(pids.map(|pid| (source.stream.name().to_owned(), pid)));
        }
        children
    }

    /// Says goodbye to viewers, ends sources and their children, frees the port. Also done on drop.
    pub fn stop(&self) {
        // Other servers first: their sessions end with a DELETE, and what they show should not freeze before that. Elsewhere, because
        // waiting inside another runtime panics: embedders have an async `main`.
        let handle = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|r| r.handle().clone());
        if let Some(handle) = handle {
            let clients = self.clients.clone();
            let _ = std::thread::spawn(move || handle.block_on(clients.stop())).join();
        }
        // Viewers next: they should hear of the end, not of a source that stopped.
        if let Some(stop) = self.stop_http.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stop.send(());
        }
        self.engine.stop();
        let sources = std::mem::take(&mut *self.sources.lock().unwrap_or_else(PoisonError::into_inner));
        for source in sources {
            source.stream.close();
            drop(source);
        }
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            // Elsewhere for the same reason.
            let _ = std::thread::spawn(move || runtime.shutdown_timeout(HTTP_STOP_LIMIT)).join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Free numbers tried where the configured one is 0: what TCP gets may be taken for UDP.
const FREE_PORT_TRIES: u32 = 16;

/// Binds TCP and UDP on one number.
fn listen(config: &Config, clock: MediaClock, events: &EventLog) -> Result<(TcpListener, MediaEngine), ServerError> {
    let wanted = SocketAddr::new(config.server.host, config.server.port);
    let fault = |transport, address| move |error| ServerError::Listen { address, transport, error };
    let mut tries = if wanted.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let listener = TcpListener::bind(wanted).map_err(fault("TCP", wanted))?;
        listener.set_nonblocking(true).map_err(ServerError::Start)?;
        let address = listener.local_addr().map_err(ServerError::Start)?;
        match start_engine(config, address, clock, events) {
            Ok(engine) => return Ok((listener, engine)),
            Err(_) if tries > 0 => {}
            Err(error) => return Err(fault("UDP", address)(error)),
        }
    }
}

fn start_engine(
    config: &Config,
    address: SocketAddr,
    clock: MediaClock,
    events: &EventLog,
) -> std::io::Result<MediaEngine> {
    MediaEngine::start(EngineConfig {
        address,
        advertise: config.server.advertise.clone(),
        threads: config.server.media_threads,
        realtime: config.server.realtime,
        estimate_bandwidth: config.webrtc.estimate_bandwidth,
        // Video takes 85 % of an estimate at most: the estimator must look for a little more than the stream itself.
        desired_bitrate_bps: config.simulcast.most_bps(&config.video) * 5 / 4,
        playout_delay_max: Duration::from_millis(u64::from(config.webrtc.playout_delay_max_ms)),
        clock,
        events: events.clone(),
    })
}

fn ice_servers(config: &Config) -> Vec<IceServer> {
    let webrtc = &config.webrtc;
    let mut servers = Vec::new();
    if !webrtc.stun_server.is_empty() {
        servers.push(IceServer { url: webrtc.stun_server.clone(), credentials: None });
    }
    if !webrtc.turn_server.is_empty() {
        let credentials = (!webrtc.turn_user.is_empty()).then(|| (webrtc.turn_user.clone(), webrtc.turn_pass.clone()));
        servers.push(IceServer { url: webrtc.turn_server.clone(), credentials });
    }
    servers
}
