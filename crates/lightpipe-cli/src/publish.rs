//! `lightpipe publish`: one stream to somebody else's WHIP server, until a signal comes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use lightpipe::{Client, ClientState, ClientStatus, Endpoint, NamedSource, Server};
use lightpipe_media::Stream;
use lightpipe_rtc::control::Percentiles;
use serde_json::{Value, json};

use crate::cli::PublishFlags;
use crate::process::{Signals, init_logging, start_with};
use crate::{output, settings};

/// How often figures are printed with `--json`.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn run(flags: &PublishFlags) -> anyhow::Result<ExitCode> {
    init_logging(flags.serve.log_json);
    let mut config = settings::load(&flags.serve, std::env::vars())?;
    let sources: Vec<NamedSource> = flags.serve.sources.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let Some(name) = sources.first().map(|source| source.name.clone()) else {
        bail!(settings::SettingsError::new("say what to publish: --source cube, --source desktop, …"));
    };
    if let Some(other) = sources.iter().find(|source| source.name != name) {
        let both = format!("one stream is published, not {name} and {}; a WHIP session carries one", other.name);
        bail!(settings::SettingsError::new(both));
    }
    let endpoint = Endpoint { token: token(flags), ..flags.whip.clone() };
    config.simulcast.push &= !flags.no_simulcast;
    let (runtime, signals) = Signals::listen()?;
    let pages = flags.serve.port.is_some();
    let server = start_with(config, &sources, pages)?;
    if pages {
        output::note(format_args!("see it at {}/watch/{name}", server.url()));
    }
    let client = server.publish(&name, &endpoint, Some(Duration::from_secs_f64(flags.wait_for_tracks)))?;
    let refused = runtime.block_on(async {
        tokio::select! {
            signal = signals.wait() => {
                tracing::info!(signal, "stopping");
                None
            }
            refused = tell(&client) => Some(refused),
            () = report(&server, &client, flags.json) => None,
        }
    });
    server.stop();
    match refused {
        Some(status) => bail!("cannot publish to {}: {}", client.host(), status.last_error.unwrap_or_default()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// From the flag or its variable, the URL, or the variable that Cloudflare's documents use.
fn token(flags: &PublishFlags) -> Option<String> {
    let cloudflare = || std::env::var("CLOUDFLARE_STREAM_TOKEN").ok();
    flags.token.clone().or_else(|| flags.whip.token.clone()).or_else(cloudflare).filter(|token| !token.is_empty())
}

/// Says on stderr what happens; resolves when there is no more hope.
async fn tell(client: &Client) -> ClientStatus {
    let mut known = ClientState::WaitingForTracks;
    let mut offered = Instant::now();
    loop {
        let status = client.changed(known).await;
        known = status.state;
        let host = client.host();
        match known {
            ClientState::Offering => offered = status.since,
            ClientState::Connected => {
                let took = (status.since - offered).as_millis();
                output::note(format_args!("publishing {} to {host}, connected after {took} ms", client.stream()));
            }
            ClientState::BackingOff => {
                let error = status.last_error.unwrap_or_default();
                output::note(format_args!("{host}: {error} Trying again."));
            }
            ClientState::Refused => return status,
            _ => {}
        }
    }
}

/// Prints figures as JSON lines on stdout, if wanted; never resolves.
async fn report(server: &Server, client: &Client, json: bool) {
    let mut turn = tokio::time::interval(REPORT_INTERVAL);
    loop {
        turn.tick().await;
        if json && let Some(stream) = server.streams().find(client.stream()) {
            output::line(figures(server, client, &stream));
        }
    }
}

/// One line of figures: the client, what its stream's encoders do, and what the server's RTCP tells.
fn figures(server: &Server, client: &Client, stream: &Arc<Stream>) -> Value {
    let stats = stream.stats();
    let rate = stream.rates(server.engine().clock().at(Instant::now()));
    let mut figures = client.to_json();
    let peer = client.status().peer.map(|peer| {
        let c = peer.counters;
        json!({
            "sent_packets": c.sent_packets,
            "sent_bytes": c.sent_bytes,
            "sent_frames": c.sent_frames,
            "sent_audio_frames": c.sent_audio_frames,
            "rtt_ms": c.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            "loss": c.loss,
            "audio_loss": c.audio_loss,
            "nacks": c.nacks,
            "plis": c.keyframe_requests,
            "estimate_bps": c.estimate_bps,
            "packets_per_s": c.sent_packets as f64 / peer.created.elapsed().as_secs_f64().max(0.001),
            "send_ms": Percentiles::from(&peer.send),
            "capture_to_sent_ms": Percentiles::from(&peer.capture_to_sent),
        })
    });
    let more = json!({
        "fps": rate.fps,
        "bitrate_bps": rate.bitrate_bps,
        "target_bitrate_bps": stats.target_bitrate_bps,
        "encode_ms": Percentiles::from(&stats.encode),
        "audio_packets": stats.audio.published,
        "session": peer,
    });
    if let (Some(figures), Some(more)) = (figures.as_object_mut(), more.as_object()) {
        figures.extend(more.clone());
    }
    figures
}
