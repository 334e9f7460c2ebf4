//! `lightpipe join`: a member of a room until a signal comes. What happens is printed as lines, or as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lightpipe::{
    ChannelEvent, ChannelInit, FileDirection, FileInfo, FileState, Mesh, MeshConfig, MeshEvent, MeshHandle, Message,
    NamedSource, Participant, ReceiveFiles,
};
use lightpipe_media::{AccessUnit, AudioPacket, Outlet, Stream, Subscription};
use lightpipe_net::client::mesh::CHAT;
use lightpipe_net::playout_to_json;
use lightpipe_signal::message::is_name;
use lightpipe_signal::{Chat, chat, mix};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cli::JoinFlags;
use crate::hear::{Hearing, Written};
use crate::process::{Signals, init_logging, start_with};
use crate::{output, settings};

/// How often figures are printed with `--json`.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How often those who are mixed are told how loud each is.
const LEVELS_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) fn run(flags: &JoinFlags) -> anyhow::Result<ExitCode> {
    init_logging(flags.serve.log_json);
    let mut config = settings::load(&flags.serve, std::env::vars())?;
    let sources: Vec<NamedSource> = flags.serve.sources.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let published = sources.first().map(|source| source.name.clone());
    if let Some(other) = sources.iter().find(|source| Some(&source.name) != published.as_ref()) {
        let both = format!("one stream is published in a room, not {} and {}", sources[0].name, other.name);
        bail!(settings::SettingsError::new(both));
    }
    let name = flags.name.clone().unwrap_or_else(|| format!("peer-{:04x}", std::process::id() & 0xffff));
    for file in &flags.send {
        if !file.is_file() {
            bail!(settings::SettingsError::new(format!("{} is no file that could be sent", file.display())));
        }
    }
    if let Some(word) = [&flags.room, &name].into_iter().chain(&flags.to).find(|word| !is_name(word)) {
        let text = format!("{word:?} is no name for a room or a peer: 1 to 64 letters, digits, _ and -");
        bail!(settings::SettingsError::new(text));
    }
    // Every member has a connection of its own; its picture is not encoded in several sizes for them.
    config.simulcast.enabled &= flags.serve.simulcast.is_some();
    let (runtime, signals) = Signals::listen()?;
    let pages = flags.serve.port.is_some();
    let server = start_with(config, &sources, pages)?;
    let mut mesh_config = MeshConfig::new(flags.url.clone(), &flags.room, &name);
    mesh_config.user_data = json!({ "name": name });
    if let Some(folder) = &flags.save {
        mesh_config.receive_files = ReceiveFiles::Into(folder.clone());
    }
    let mut hearing = Hearing::start(flags, &server)?;
    if let Some(hearing) = &hearing {
        if let Some((key, value)) = hearing.sound.announcement() {
            mesh_config.user_data[key] = value;
        }
        mesh_config = mesh_config.with_company(hearing.sound.clone());
    }
    let written = hearing.as_mut().and_then(|hearing| hearing.written.take());
    let ended = runtime.block_on(async {
        let joined = server.join(published.as_deref(), mesh_config);
        tokio::pin!(joined);
        let signal = signals.wait();
        tokio::pin!(signal);
        let mut mesh = tokio::select! {
            _ = &mut signal => return Ok(()),
            mesh = &mut joined => mesh?,
        };
        if pages {
            output::note(format_args!("see the others at {}", server.url()));
        }
        let limit = async {
            match flags.seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let mut written = written;
        let mut room = Room::new(flags, &name, mesh.handle().clone(), hearing);
        room.say(json!({ "event": "in_room", "room": flags.room, "name": name }), || {
            format!("in room {} as {name}", flags.room)
        });
        tokio::select! {
            signal = &mut signal => tracing::info!(signal, "stopping"),
            () = limit => {}
            () = room.follow(&mut mesh) => {}
            error = failure(&mut written) => match error.kind() {
                // Who read it has enough.
                ErrorKind::BrokenPipe => {}
                _ => return Err(anyhow::Error::from(error).context("writing what is heard")),
            },
        }
        mesh.leave().await;
        if let Some(written) = written {
            written.finish().await.context("writing what is heard")?;
        }
        anyhow::Ok(())
    });
    server.stop();
    ended.map(|()| ExitCode::SUCCESS)
}

/// Resolves when what is heard cannot be written any more.
async fn failure(written: &mut Option<Written>) -> std::io::Error {
    let Some(writing) = written else { return std::future::pending().await };
    match (&mut writing.end).await {
        Ok(Err(error)) => {
            *written = None;
            error
        }
        _ => std::future::pending().await,
    }
}

/// What is told of a room.
struct Room<'a> {
    flags: &'a JoinFlags,
    me: &'a str,
    mesh: MeshHandle,
    watched: BTreeMap<String, Watched>,
    first: mpsc::UnboundedReceiver<(String, &'static str, Instant)>,
    first_sender: mpsc::UnboundedSender<(String, &'static str, Instant)>,
    chat: Chat,
    /// To whom the files were given.
    sent_to: BTreeSet<String>,
    hearing: Option<Hearing>,
    /// Who speaks, if we hear.
    speaker: Option<String>,
    /// Whom we mix for, and who can be told of it.
    mixed: BTreeSet<String>,
}

/// Somebody whose stream we take.
struct Watched {
    stream: Arc<Stream>,
    since: Instant,
    _subscription: Subscription,
}

/// Tells of the first picture and the first sound.
struct First {
    peer: String,
    picture: AtomicBool,
    sound: AtomicBool,
    tell: Mutex<mpsc::UnboundedSender<(String, &'static str, Instant)>>,
}

impl First {
    fn tell(&self, what: &'static str, told: &AtomicBool) {
        if !told.swap(true, Relaxed) {
            let sender = self.tell.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = sender.send((self.peer.clone(), what, Instant::now()));
        }
    }
}

impl Outlet for First {
    fn deliver(&self, _: &Arc<AccessUnit>) {
        self.tell("first_picture", &self.picture);
    }

    fn deliver_audio(&self, _: &Arc<AudioPacket>) {
        self.tell("first_sound", &self.sound);
    }
}

impl<'a> Room<'a> {
    fn new(flags: &'a JoinFlags, me: &'a str, mesh: MeshHandle, hearing: Option<Hearing>) -> Self {
        let (first_sender, first) = mpsc::unbounded_channel();
        Self {
            flags,
            me,
            mesh,
            watched: BTreeMap::new(),
            first,
            first_sender,
            chat: Chat::new(),
            sent_to: BTreeSet::new(),
            hearing,
            speaker: None,
            mixed: BTreeSet::new(),
        }
    }

    /// One thing that happened: for programs, or for people.
    fn say(&self, event: Value, text: impl FnOnce() -> String) {
        if self.flags.json { self.print(event) } else { self.print(text()) }
    }

    fn print(&self, line: impl std::fmt::Display) {
        let taken = self.flags.sound.as_deref() == Some(Path::new("-"));
        if taken { output::note(line) } else { output::line(line) }
    }

    /// Until the mesh ends.
    async fn follow(&mut self, mesh: &mut Mesh) {
        let mut turn = tokio::time::interval(REPORT_INTERVAL);
        let mut levels = tokio::time::interval(LEVELS_INTERVAL);
        levels.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut lines = self.flags.chat.then(lines_of_stdin);
        loop {
            tokio::select! {
                event = mesh.next() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                Some((peer, what, at)) = self.first.recv() => {
                    let Some(watched) = self.watched.get(&peer) else { continue };
                    let took = at.saturating_duration_since(watched.since);
                    self.say(json!({ "event": what, "peer": peer, "after_ms": millis(took) }), || {
                        format!("{peer}: {} after {} ms", what.replace('_', " "), took.as_millis())
                    });
                }
                line = next_line(&mut lines) => match line {
                    Some(line) => self.write(&line).await,
                    None => lines = None,
                },
                Some((peer, at)) = next_speaker(&mut self.hearing) => self.on_speaker(peer, at).await,
                _ = levels.tick(), if self.flags.mix => self.tell_levels().await,
                _ = turn.tick() => if self.flags.json {
                    self.print(self.figures());
                },
            }
        }
    }

    async fn on_event(&mut self, event: MeshEvent) {
        match event {
            MeshEvent::Joined { peer, stream, user_data } => {
                let first = First {
                    peer: peer.clone(),
                    picture: AtomicBool::new(false),
                    sound: AtomicBool::new(false),
                    tell: Mutex::new(self.first_sender.clone()),
                };
                let subscription = stream.subscribe(Arc::new(first));
                let watched = Watched { stream, since: Instant::now(), _subscription: subscription };
                self.watched.insert(peer.clone(), watched);
                self.say(json!({ "event": "joined", "peer": peer, "user_data": user_data }), || {
                    format!("{peer}: here")
                });
                self.send_files(&peer).await;
            }
            MeshEvent::Connected { peer, took, again } => {
                if self.flags.mix {
                    // Refused where the connection is still the one that has it.
                    let _ = self.mesh.open_channel(&peer, ChannelInit::new(mix::LABEL)).await;
                }
                self.say(
                    json!({ "event": "connected", "peer": peer, "took_ms": millis(took), "again": again }),
                    || format!("{peer}: connected{} after {} ms", if again { " again" } else { "" }, took.as_millis()),
                );
            }
            MeshEvent::Lost { peer } => {
                self.say(json!({ "event": "lost", "peer": peer }), || format!("{peer}: lost; trying again"));
            }
            MeshEvent::Left { peer } => {
                self.watched.remove(&peer);
                self.mixed.remove(&peer);
                self.chat.left(&peer);
                self.say(json!({ "event": "left", "peer": peer }), || format!("{peer}: left"));
            }
            MeshEvent::File { peer, file, state } => self.on_file(&peer, &file, &state),
            MeshEvent::State { peer, state } => {
                self.say(json!({ "event": "state", "peer": peer, "state": state }), || format!("{peer}: {state}"));
            }
            MeshEvent::ServerLost { error } => {
                self.say(json!({ "event": "server_lost", "error": error }), || {
                    format!("the server is gone ({error}); connections to the others stay")
                });
            }
            MeshEvent::ServerBack => {
                self.say(json!({ "event": "server_back" }), || "the server is back".to_owned());
            }
            MeshEvent::Channel { peer, event } => self.on_channel(&peer, event).await,
            _ => {}
        }
    }

    /// Gives somebody who came all files, the first time.
    async fn send_files(&mut self, peer: &str) {
        let meant = self.flags.to.is_empty() || self.flags.to.iter().any(|to| to == peer);
        if !meant || !self.sent_to.insert(peer.to_owned()) {
            return;
        }
        for path in &self.flags.send {
            if let Err(error) = self.mesh.send_file(peer, path).await {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let event = json!({
                    "event": "file_failed", "peer": peer, "name": name, "direction": "out", "reason": error.to_string(),
                });
                self.say(event, || format!("{peer}: {name} is not sent: {error}"));
            }
        }
    }

    fn on_file(&self, peer: &str, file: &FileInfo, state: &FileState) {
        let outgoing = file.direction == FileDirection::Outgoing;
        let FileInfo { id, name, size, .. } = file;
        let event = |what: &str, more: Value| {
            let mut event = json!({
                "event": what, "peer": peer, "id": id, "name": name, "size": size,
                "direction": if outgoing { "out" } else { "in" },
            });
            if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
                event.extend(more);
            }
            event
        };
        let from = if outgoing { "to" } else { "from" };
        match state {
            FileState::Began { offset } => self.say(event("file_began", json!({ "offset": offset })), || {
                let again = if *offset > 0 { format!(", the first {offset} are there") } else { String::new() };
                format!("{name} {from} {peer}: {size} bytes{again}")
            }),
            // Not for people: it would be ten lines a second.
            FileState::Progress { bytes } if self.flags.json => {
                output::line(event("file_progress", json!({ "bytes": bytes })));
            }
            FileState::Done { sha256, path, carried } => {
                let more = json!({ "sha256": sha256, "path": path.to_string_lossy(), "carried": carried });
                self.say(event("file_done", more), || {
                    let place = if outgoing { String::new() } else { format!(", in {}", path.display()) };
                    format!("{name} {from} {peer}: done{place}, SHA-256 {sha256}")
                });
            }
            FileState::Failed { reason } => {
                self.say(event("file_failed", json!({ "reason": reason })), || {
                    format!("{name} {from} {peer}: {reason}")
                });
            }
            _ => {}
        }
    }

    async fn on_channel(&mut self, peer: &str, event: ChannelEvent) {
        match event {
            ChannelEvent::Open { label } => {
                if label == CHAT.0 {
                    self.chat.connected(peer);
                }
                if label == mix::LABEL && self.flags.mix {
                    self.mixed.insert(peer.to_owned());
                    let speaker = mix::Message::Speaker { peer: self.speaker.clone() };
                    self.tell_mixed(&[peer.to_owned()], &speaker).await;
                }
                self.say(json!({ "event": "channel_open", "peer": peer, "label": label }), || {
                    format!("{peer}: data channel {label}")
                });
            }
            ChannelEvent::Closed { label, reason } => {
                if label == CHAT.0 {
                    self.chat.disconnected(peer);
                }
                if label == mix::LABEL {
                    self.mixed.remove(peer);
                }
                self.say(json!({ "event": "channel_closed", "peer": peer, "label": label, "reason": reason }), || {
                    format!("{peer}: data channel {label} closed")
                });
            }
            ChannelEvent::Message { label, message: Message::Text(text) } if label == CHAT.0 => {
                if let Err(error) = self.chat.text(unix_ms(), peer, &text) {
                    tracing::debug!(peer, %error, "no chat message");
                }
            }
            ChannelEvent::Message { label, message: Message::Text(text) } if label == mix::LABEL && !self.flags.mix => {
                match mix::Message::parse(&text) {
                    Ok(mix::Message::Speaker { peer: who }) => {
                        self.say(json!({ "event": "speaker", "peer": who, "by": peer }), || match &who {
                            Some(who) => format!("{who} speaks, says {peer}"),
                            None => format!("nobody speaks, says {peer}"),
                        });
                    }
                    Ok(mix::Message::Levels { .. }) => {}
                    Err(error) => tracing::debug!(peer, %error, "not told who speaks"),
                }
            }
            _ => {}
        }
        self.carry_chat().await;
    }

    /// Somebody else speaks, as we hear it.
    async fn on_speaker(&mut self, peer: Option<String>, at: Duration) {
        self.say(json!({ "event": "speaker", "peer": peer, "at_ms": millis(at) }), || match &peer {
            Some(peer) => format!("{peer} speaks"),
            None => "nobody speaks".to_owned(),
        });
        self.speaker.clone_from(&peer);
        let mixed: Vec<String> = self.mixed.iter().cloned().collect();
        self.tell_mixed(&mixed, &mix::Message::Speaker { peer }).await;
    }

    async fn tell_levels(&self) {
        let Some(hearing) = self.hearing.as_ref().filter(|_| !self.mixed.is_empty()) else { return };
        let participants = hearing.sound.participants();
        let level = |participant: &Participant| (participant.peer.clone(), participant.level.dbov().round() as i8);
        let levels = mix::Message::Levels { levels: participants.iter().map(level).collect() };
        let mixed: Vec<String> = self.mixed.iter().cloned().collect();
        self.tell_mixed(&mixed, &levels).await;
    }

    async fn tell_mixed(&self, peers: &[String], message: &mix::Message) {
        let text = message.to_json();
        for peer in peers {
            // Who reads too slowly misses some of it.
            if let Err(error) = self.mesh.try_send(peer, mix::LABEL, Message::Text(text.clone())).await {
                tracing::debug!(peer, %error, "not told who speaks");
            }
        }
    }

    /// Says something to everybody.
    async fn write(&mut self, line: &str) {
        match self.chat.say(unix_ms(), line) {
            Ok(_) | Err(chat::ChatError::Empty) => self.carry_chat().await,
            Err(error) => output::note(error),
        }
    }

    async fn carry_chat(&mut self) {
        while let Some(output) = self.chat.poll() {
            match output {
                chat::Output::Send { peer, text } => {
                    // What does not arrive is not acknowledged, and said again on the next connection.
                    if let Err(error) = self.mesh.try_send(&peer, CHAT.0, Message::Text(text)).await {
                        tracing::debug!(peer, %error, "chat has to wait");
                    }
                }
                chat::Output::Event(chat::Event::Said { peer, id, text, .. }) => {
                    self.say(json!({ "event": "chat", "peer": peer, "id": id, "text": text }), || {
                        format!("{peer}: {text}")
                    });
                }
                chat::Output::Event(chat::Event::Lost { peer, id }) => {
                    output::note(format_args!("{peer} was away for too long: message {id} is lost"));
                }
                chat::Output::Event(chat::Event::Flood { peer }) => {
                    output::note(format_args!("{peer} says too much, some of it is left out"));
                }
                chat::Output::Event(_) => {}
            }
        }
    }

    /// One line of figures.
    fn figures(&self) -> Value {
        let heard = self.hearing.as_ref().map(|hearing| hearing.sound.participants()).unwrap_or_default();
        let peers: Vec<Value> = self
            .mesh
            .peers()
            .iter()
            .map(|peer| {
                let stats = peer.stream.stats();
                let counters = peer.info.as_ref().map(|info| info.counters);
                let received = peer.info.as_ref().and_then(|info| info.received);
                let heard = heard.iter().find(|heard| heard.peer == peer.id);
                json!({
                    "peer": peer.id,
                    "connected": peer.connected,
                    "pictures": stats.published,
                    "size": stats.size.map(|size| [size.width, size.height]),
                    "bytes": stats.bytes,
                    "audio_packets": stats.audio.published,
                    "lost_packets": received.map(|received| received.lost_packets),
                    "undecodable": received.map(|received| received.undecodable),
                    "sent_frames": counters.map(|counters| counters.sent_frames),
                    "sent_audio_frames": counters.map(|counters| counters.sent_audio_frames),
                    "rtt_ms": counters.and_then(|counters| counters.rtt).map(millis),
                    "estimate_bps": counters.and_then(|counters| counters.estimate_bps),
                    "level_dbov": heard.map(|heard| heard.level.dbov()),
                    "playout": heard.map(|heard| playout_to_json(&heard.figures)),
                })
            })
            .collect();
        let watched = self.watched.values().filter(|watched| watched.stream.has_video()).count();
        json!({ "event": "figures", "name": self.me, "peers": peers, "with_pictures": watched })
    }
}

async fn next_speaker(hearing: &mut Option<Hearing>) -> Option<(Option<String>, Duration)> {
    match hearing {
        Some(hearing) => hearing.speaker.recv().await,
        None => std::future::pending().await,
    }
}

/// Lines of standard input, up to its end. One waits at most: who writes faster waits, too.
fn lines_of_stdin() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    // A thread that nobody waits for: a read from a terminal cannot be ended.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

async fn next_line(lines: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match lines {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
