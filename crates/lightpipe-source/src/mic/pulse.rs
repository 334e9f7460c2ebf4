//! A client of PulseAudio, or of PipeWire in its place.

use std::ffi::CString;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use lightpipe_media::audio::SAMPLE_RATE_HZ;
use pulseaudio::protocol::{self, PulseError, SourceInfo};
use pulseaudio::{Client, ClientError, RecordStream};

use super::{Config, MONITOR, MicError};
use crate::devices::{Device, DeviceKind};

/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Length of the secret that clients show.
const COOKIE_LEN: usize = 256;

/// Sound of one piece. The server's own sources give pieces of this order; shorter ones cost CPU for nothing that is heard.
const PIECES_PER_SECOND: u32 = 100;

/// The server's name of the monitor of the default output.
const DEFAULT_MONITOR: &str = "@DEFAULT_MONITOR@";

/// A device that is open.
pub(super) struct Open {
    record: RecordStream,
    /// The connection ends with it.
    _client: Client,
}

impl Open {
    pub(super) fn new(
        config: &Config,
        mut take: impl FnMut(u32, usize, Vec<f32>) + Send + 'static,
    ) -> Result<Self, MicError> {
        let client = connect()?;
        let source = match config.device.as_deref() {
            None => protocol::DEFAULT_SOURCE.to_owned(),
            Some(MONITOR) => name(DEFAULT_MONITOR)?,
            Some(wanted) => find(&client, wanted)?,
        };
        let channels = config.channels.clamp(1, 2);
        let spec = protocol::SampleSpec {
            format: protocol::SampleFormat::Float32Le,
            channels: channels as u8,
            sample_rate: SAMPLE_RATE_HZ,
        };
        let params = protocol::RecordStreamParams {
            sample_spec: spec,
            channel_map: match channels {
                1 => protocol::ChannelMap::mono(),
                _ => protocol::ChannelMap::stereo(),
            },
            source_name: Some(source),
            buffer_attr: protocol::stream::BufferAttr {
                fragment_size: SAMPLE_RATE_HZ / PIECES_PER_SECOND * channels as u32 * 4,
                ..Default::default()
            },
            flags: protocol::stream::StreamFlags {
                // The device itself shall be as quick as we ask, not only the server behind it.
                adjust_latency: true,
                // Who named a device wants that one and no other when it goes.
                no_move: config.device.is_some(),
                ..Default::default()
            },
            ..Default::default()
        };
        let sink = move |bytes: &[u8]| {
            let samples = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            take(SAMPLE_RATE_HZ, channels, samples);
        };
        let record = match answer(client.create_record_stream(params, sink)) {
            Ok(record) => record,
            Err(ClientError::ServerError(PulseError::NoEntity)) => return Err(MicError::NoDefault),
            Err(error) => return Err(MicError::Refused(words(&error))),
        };
        Ok(Self { record, _client: client })
    }

    /// Whether it is still there.
    pub(super) fn check(&self) -> Result<(), MicError> {
        answer(self.record.timing_info()).map(drop).map_err(|error| MicError::Gone(words(&error)))
    }
}

pub(super) fn list() -> Vec<Device> {
    let Ok(client) = connect() else { return Vec::new() };
    let sources = answer(client.list_sources()).unwrap_or_default();
    let device = |source: &SourceInfo| Device {
        kind: if is_monitor(source) { DeviceKind::Monitor } else { DeviceKind::Microphone },
        id: text(&source.name),
        name: source.description.as_ref().map_or_else(|| text(&source.name), text),
    };
    let mut devices: Vec<Device> = sources.iter().map(device).collect();
    devices.sort_by_key(|device| device.kind == DeviceKind::Monitor);
    devices
}

/// The name of the source that somebody means: its own, that for people, or of the output whose monitor it is.
fn find(client: &Client, wanted: &str) -> Result<CString, MicError> {
    let sources = answer(client.list_sources()).map_err(|error| MicError::NoServer(words(&error)))?;
    let matches = |source: &&SourceInfo| {
        let is = |name: Option<&CString>| name.is_some_and(|name| text(name) == wanted);
        is(Some(&source.name)) || is(source.description.as_ref()) || is(source.monitor_of_sink_name.as_ref())
    };
    match sources.iter().find(matches) {
        Some(source) => Ok(source.name.clone()),
        None => {
            let known: Vec<String> = sources.iter().map(|source| text(&source.name)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(MicError::NoDevice { wanted: wanted.to_owned(), known })
        }
    }
}

fn is_monitor(source: &SourceInfo) -> bool {
    source.monitor_of_sink_index.is_some() || source.monitor_of_sink_name.is_some()
}

fn connect() -> Result<Client, MicError> {
    let fault = |error: &dyn std::fmt::Display| MicError::NoServer(error.to_string());
    let path = pulseaudio::socket_path_from_env()
        .ok_or_else(|| fault(&"no socket in $PULSE_SERVER, $PULSE_RUNTIME_PATH or $XDG_RUNTIME_DIR/pulse/native"))?;
    // Even a server that lets everybody in refuses cookies of another length.
    let cookie = pulseaudio::cookie_path_from_env().and_then(|path| std::fs::read(path).ok());
    let cookie = cookie.unwrap_or_else(|| vec![0; COOKIE_LEN]);
    let socket = UnixStream::connect(&path).map_err(|error| fault(&format!("{}: {error}", path.display())))?;
    // The handshake is read without an end otherwise.
    socket.set_read_timeout(Some(ANSWER)).map_err(|error| fault(&error))?;
    Client::new_unix(c"lightpipe", socket, Some(cookie)).map_err(|error| fault(&words(&error)))
}

fn name(text: &str) -> Result<CString, MicError> {
    CString::new(text).map_err(|error| MicError::Refused(error.to_string()))
}

fn text(name: &CString) -> String {
    name.to_string_lossy().into_owned()
}

/// An error with what it is about: the library keeps that to its `source`.
fn words(error: &ClientError) -> String {
    let inner = std::error::Error::source(error).map(|inner| format!(": {inner}")).unwrap_or_default();
    format!("{error}{inner}")
}

/// Waits for an answer of the server, not for ever.
fn answer<T>(question: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut question = pin!(question);
    let deadline = Instant::now() + ANSWER;
    loop {
        if let Poll::Ready(answer) = question.as_mut().poll(&mut context) {
            return answer;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "the server does not answer",
            )));
        }
        std::thread::park_timeout(left);
    }
}
