//! `lightpipe play`: a WHEP server's stream into a file, or decoded to standard output.

mod live;
mod raw;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use lightpipe::{Client, ClientState, Endpoint, NamedSource, SourceSpec};
use lightpipe_media::{MediaClock, Stream};
use lightpipe_net::record::{FileRecorder, RecordError, RecordOptions, RecordStats};

use self::live::LiveOutput;
use self::raw::{Medium, RawOutput};
use crate::cli::PlayFlags;
use crate::process::{Signals, init_logging, start_with};
use crate::{output, settings};

/// The stream's name inside of this process.
const NAME: &str = "play";

/// How often the recorder is asked whether it still records.
const FAILURE_CHECK: Duration = Duration::from_millis(100);

/// How often progress is told.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn run(flags: &PlayFlags) -> anyhow::Result<ExitCode> {
    init_logging(flags.log_json);
    let mut config = settings::load(&Default::default(), std::env::vars())?;
    config.server.host = flags.host.unwrap_or(config.server.host);
    let (runtime, signals) = Signals::listen()?;
    let endpoint = Endpoint { token: flags.token.clone().or_else(|| flags.url.token.clone()), ..flags.url.clone() };
    let source = NamedSource { name: NAME.into(), spec: SourceSpec::Whep(endpoint), text: "whep".into() };
    let server = start_with(config, &[source], false)?;
    let stream = server.streams().find(NAME).context("the stream was just added")?;
    let client = server.clients().all().pop().context("its client, too")?;
    // Before the first picture comes: it is the keyframe with which the file begins.
    let recorder = match &flags.output {
        Some(path) => Some(FileRecorder::start(&stream, path, RecordOptions::default())?),
        None => None,
    };
    let played = runtime.block_on(async {
        let limit = async {
            match flags.seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.wait() => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            played = play(flags, &client, (&stream, server.clock()), recorder.as_ref(), limit) => played,
        }
    });
    // The file first: what came is whole in it, however long the server takes to say goodbye.
    let recorded = recorder.map(FileRecorder::finish);
    server.stop();
    played?;
    if let Some(recorded) = recorded {
        tell_recorded(flags, &recorded?);
    }
    Ok(ExitCode::SUCCESS)
}

/// One line about the file.
fn tell_recorded(flags: &PlayFlags, stats: &RecordStats) {
    let Some(path) = &flags.output else { return };
    let progress = &stats.progress;
    let dropped = stats.dropped_pictures + stats.dropped_packets;
    let dropped = if dropped > 0 { format!(", {dropped} dropped because the disk is too slow") } else { String::new() };
    output::note(format_args!(
        "{}: {} pictures, {} packets of sound, {:.1} s{dropped}",
        path.display(),
        progress.pictures,
        progress.packets,
        progress.duration.as_secs_f64()
    ));
}

/// Plays until `limit` resolves, counted from the first picture or sound, or until there is no more hope.
async fn play(
    flags: &PlayFlags,
    client: &Client,
    (stream, clock): (&Arc<Stream>, MediaClock),
    recorder: Option<&FileRecorder>,
    limit: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    wait_connected(client).await?;
    let medium = if flags.raw { Some(Medium::Pictures) } else { flags.pcm.then_some(Medium::Sound) };
    if medium == Some(Medium::Pictures) && !stream.has_video() {
        bail!("{} sends no pictures; --pcm gives its sound", client.host());
    }
    if medium == Some(Medium::Sound) && !stream.has_audio() {
        bail!("{} sends no sound", client.host());
    }
    let live = flags.live.then(|| LiveOutput::start(stream, clock, medium, flags.json)).transpose()?;
    let (_live, live_end) = live.unzip();
    let raw = medium.filter(|_| !flags.live).map(|medium| RawOutput::start(stream, medium)).transpose()?;
    let (_raw, end) = raw.unzip();
    let end = live_end.or(end);
    let written = async {
        match end {
            Some(end) => end.await.unwrap_or(Ok(())),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        written = written => match written {
            // Who read it has enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("standard output"),
        },
        () = async { first(stream).await; limit.await } => Ok(()),
        ended = watch(client) => ended,
        error = failure(recorder) => Err(error.into()),
        () = report(flags, stream) => Ok(()),
    }
}

/// Resolves when the first session is there.
async fn wait_connected(client: &Client) -> anyhow::Result<()> {
    let mut status = client.status();
    loop {
        match status.state {
            ClientState::Connected => return Ok(()),
            ClientState::Refused => {
                bail!("cannot play from {}: {}", client.host(), status.last_error.unwrap_or_default())
            }
            ClientState::BackingOff => {
                output::note(format_args!(
                    "{}: {} Trying again.",
                    client.host(),
                    status.last_error.unwrap_or_default()
                ));
            }
            _ => {}
        }
        status = client.changed(status.state).await;
    }
}

/// Resolves when the recording ended by itself.
async fn failure(recorder: Option<&FileRecorder>) -> RecordError {
    let Some(recorder) = recorder else { return std::future::pending().await };
    loop {
        if let Some(error) = recorder.error() {
            return error;
        }
        tokio::time::sleep(FAILURE_CHECK).await;
    }
}

/// Resolves when something came.
async fn first(stream: &Stream) {
    loop {
        let stats = stream.stats();
        if stats.published + stats.audio.published > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Says when the server goes and comes back; resolves when there is no more hope.
async fn watch(client: &Client) -> anyhow::Result<()> {
    let mut known = client.status().state;
    loop {
        let status = client.changed(known).await;
        known = status.state;
        let error = status.last_error.unwrap_or_default();
        match known {
            ClientState::Connected => output::note(format_args!("{}: connected again", client.host())),
            ClientState::BackingOff => output::note(format_args!("{}: {error} Trying again.", client.host())),
            ClientState::Refused => bail!("cannot play from {}: {error}", client.host()),
            _ => {}
        }
    }
}

/// Tells on stderr what comes, if somebody looks; never resolves.
async fn report(flags: &PlayFlags, stream: &Stream) {
    let mut turn = tokio::time::interval(REPORT_INTERVAL);
    let mut last = stream.stats();
    loop {
        turn.tick().await;
        let stats = stream.stats();
        let (pictures, packets) = (stats.published - last.published, stats.audio.published - last.audio.published);
        if flags.verbose {
            let size = stats.size.map(|size| format!(", {size}")).unwrap_or_default();
            let kbps = (stats.bytes - last.bytes) * 8 / 1000;
            output::note(format_args!("{pictures} pictures/s{size}, {kbps} kbit/s, {packets} packets of sound/s"));
        }
        last = stats;
    }
}
