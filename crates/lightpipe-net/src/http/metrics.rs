//! `/metrics`: Prometheus text exposition format 0.0.4.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use lightpipe_media::{Histogram, VideoCodec};

use super::App;
use super::api::value;
use crate::client::{ClientState, ClientStatus};

/// One page of metrics.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Opens a family. The help text says what is counted, what is left out, and what to divide by.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (key, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{escaped}\"", if index == 0 { "{" } else { "," });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn summary(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        for (quantile, text) in [(0.5, "0.5"), (0.95, "0.95"), (0.99, "0.99")] {
            let mut with = labels.to_vec();
            with.push(("quantile", text));
            self.sample(name, &with, histogram.quantile(quantile).as_secs_f64());
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }
}

pub(crate) async fn page(State(app): State<App>) -> Response {
    let mut page = Page::default();
    let streams: Vec<_> = app
        .streams
        .all()
        .into_iter()
        .map(|e| (e.stream.name().to_owned(), e.stream.stats(), e.stream.health()))
        .collect();

    // Each coding and each layer of a stream has figures of its own; sums over `codec` and `layer` are the whole.
    let encodings: Vec<_> = app
        .streams
        .all()
        .into_iter()
        .flat_map(|e| std::iter::once(Arc::clone(&e.stream)).chain(e.stream.alternatives()).collect::<Vec<_>>())
        .flat_map(|coding| coding.layers())
        .map(|s| {
            let codec = if s.has_video() { s.codec().name() } else { "none" };
            (s.name().to_owned(), codec, s.layer().map_or_else(String::new, |layer| layer.rid), s.stats())
        })
        .collect();

    page.family(
        "lightpipe_stream_up",
        "gauge",
        "1 when pictures come from the source, 0 while it starts or has failed.",
    );
    for (name, _, health) in &streams {
        page.sample(
            "lightpipe_stream_up",
            &[("stream", name)],
            u8::from(*health == lightpipe_media::stream::Health::Live),
        );
    }
    page.family("lightpipe_stream_viewers", "gauge", "Connected viewers.");
    for (name, ..) in &streams {
        page.sample("lightpipe_stream_viewers", &[("stream", name)], app.engine.viewers_of(name));
    }
    type Field = fn(&lightpipe_media::stream::StreamStats) -> u64;
    let counters: [(&str, &str, Field); 6] = [
        ("lightpipe_frames_published_total", "Encoded pictures given to outlets.", |s| s.published),
        ("lightpipe_keyframes_published_total", "Keyframes among the published pictures.", |s| s.keyframes),
        ("lightpipe_keyframe_requests_total", "Keyframe requests of outlets; keyframes answer several at once.", |s| {
            s.keyframe_requests
        }),
        ("lightpipe_published_bytes_total", "Bytes of published pictures, once whatever the number of viewers.", |s| {
            s.bytes
        }),
        ("lightpipe_encoder_errors_total", "Pictures that the encoder failed on.", |s| s.encoder_errors),
        (
            "lightpipe_encoding_adaptations_total",
            "Changes of the size or rate of pictures that are encoded once, down and up, because of what viewers' networks carry.",
            |s| s.adaptations,
        ),
    ];
    for (family, help, field) in counters {
        page.family(family, "counter", help);
        for (name, codec, layer, stats) in &encodings {
            page.sample(family, &[("stream", name), ("codec", codec), ("layer", layer)], field(stats));
        }
    }
    page.family(
        "lightpipe_encoding_adapted",
        "gauge",
        "1 while fewer or smaller pictures are encoded than configured because no viewer's network carries more.",
    );
    for (name, codec, layer, stats) in &encodings {
        let labels = [("stream", name.as_str()), ("codec", codec), ("layer", layer)];
        page.sample("lightpipe_encoding_adapted", &labels, u8::from(stats.adapted.is_some()));
    }
    let counters: [(&str, &str, Field); 4] = [
        ("lightpipe_audio_packets_published_total", "Frames of sound given to outlets, 20 ms each.", |s| {
            s.audio.published
        }),
        ("lightpipe_audio_published_bytes_total", "Their bytes, once whatever the number of viewers.", |s| {
            s.audio.bytes
        }),
        ("lightpipe_audio_encoder_errors_total", "Frames of sound that the encoder failed on.", |s| s.audio.errors),
        (
            "lightpipe_audio_blocks_dropped_total",
            "Raw sound dropped before a busy encoder, in the source's blocks.",
            |s| s.audio.blocks_dropped,
        ),
    ];
    for (family, help, field) in counters {
        page.family(family, "counter", help);
        for (name, stats, _) in &streams {
            page.sample(family, &[("stream", name)], field(stats));
        }
    }
    page.family(
        "lightpipe_frames_dropped_total",
        "counter",
        "Pictures dropped by reason, before encoding; per-viewer drops are lightpipe_viewer_frames_dropped. Divide by lightpipe_frames_published_total.",
    );
    for (name, codec, layer, stats) in &encodings {
        for (reason, count) in [("raw_queue", stats.raw_dropped), ("encoder_skip", stats.encoder_skipped)] {
            let labels = [("stream", name.as_str()), ("codec", codec), ("layer", layer), ("reason", reason)];
            page.sample("lightpipe_frames_dropped_total", &labels, count);
        }
    }
    page.family(
        "lightpipe_stage_seconds",
        "summary",
        "Time of one picture in a stage on our side, since the start of the process.",
    );
    for (name, codec, layer, stats) in &encodings {
        for (stage, histogram) in [("capture", &stats.capture), ("queue", &stats.queue), ("encode", &stats.encode)] {
            let labels = [("stream", name.as_str()), ("codec", codec), ("layer", layer), ("stage", stage)];
            page.summary("lightpipe_stage_seconds", &labels, histogram);
        }
    }

    let peers = app.engine.peers();
    let mut capture_to_sent: Vec<(&str, &str, Histogram)> = Vec::new();
    for peer in &peers {
        let codec = peer.codec.map_or("none", VideoCodec::name);
        match capture_to_sent.iter_mut().find(|(name, of, _)| *name == peer.stream && *of == codec) {
            Some((.., merged)) => merged.merge(&peer.capture_to_sent),
            None => capture_to_sent.push((&peer.stream, codec, peer.capture_to_sent.clone())),
        }
    }
    page.family(
        "lightpipe_capture_to_sent_seconds",
        "summary",
        "Capture to the last packet handed to the kernel, over the present viewers.",
    );
    for (name, codec, histogram) in &capture_to_sent {
        page.summary("lightpipe_capture_to_sent_seconds", &[("stream", name), ("codec", codec)], histogram);
    }
    page.family(
        "lightpipe_viewer_frames_dropped",
        "gauge",
        "Pictures not sent to the present viewers, by reason; ended viewers leave the sum.",
    );
    for (reason, sum) in [
        ("wait_keyframe", peers.iter().map(|p| p.counters.dropped_wait_keyframe).sum::<u64>()),
        ("backlog", peers.iter().map(|p| p.counters.dropped_backlog).sum()),
    ] {
        page.sample("lightpipe_viewer_frames_dropped", &[("reason", reason)], sum);
    }
    page.family("lightpipe_peers", "gauge", "Peer connections by state.");
    for state in ["connected", "connecting", "silent"] {
        page.sample("lightpipe_peers", &[("state", state)], peers.iter().filter(|p| p.state() == state).count());
    }
    page.family("lightpipe_sessions_ended_total", "counter", "Sessions that ended, by cause.");
    for (cause, count) in app.engine.disconnect_causes() {
        page.sample("lightpipe_sessions_ended_total", &[("cause", cause)], count);
    }

    let clients: Vec<_> = app.clients.all().into_iter().map(|client| (client.status(), client)).collect();
    page.family(
        "lightpipe_client_seconds_total",
        "counter",
        "Time that a WHIP or WHEP client of ours spent in a state.",
    );
    for (status, client) in &clients {
        for (state, spent) in ClientState::ALL.iter().zip(status.in_state) {
            let labels = [("stream", client.stream()), ("server", client.host()), ("state", state.as_str())];
            page.sample("lightpipe_client_seconds_total", &labels, spent.as_secs_f64());
        }
    }
    type ClientField = fn(&ClientStatus) -> u64;
    let counters: [(&str, &str, ClientField); 2] = [
        ("lightpipe_client_offers_total", "Offers that a WHIP or WHEP client of ours sent.", |s| s.attempts),
        ("lightpipe_client_sessions_total", "Sessions of it that connected.", |s| s.sessions),
    ];
    for (family, help, field) in counters {
        page.family(family, "counter", help);
        for (status, client) in &clients {
            page.sample(family, &[("stream", client.stream()), ("server", client.host())], field(status));
        }
    }

    let c = app.engine.counters();
    for (name, help, counter) in [
        (
            "lightpipe_datagrams_sent_total",
            "Datagrams given to the kernel; divide by lightpipe_send_calls_total for the length of GSO runs.",
            &c.datagrams_sent,
        ),
        ("lightpipe_send_calls_total", "Calls that sent them.", &c.send_calls),
        (
            "lightpipe_datagrams_refused_total",
            "Datagrams that the kernel refused: full buffer or no route.",
            &c.datagrams_refused,
        ),
        ("lightpipe_datagrams_received_total", "Datagrams received.", &c.datagrams_received),
        (
            "lightpipe_datagrams_unknown_total",
            "Received datagrams from addresses that passed no connectivity check, or for nobody.",
            &c.datagrams_unknown,
        ),
        ("lightpipe_guard_steps_total", "Steps taken against pictures that viewers show ever later.", &c.guard_steps),
        (
            "lightpipe_datagrams_handed_over_total",
            "Datagrams that reached another media thread's socket.",
            &c.datagrams_handed_over,
        ),
        ("lightpipe_inbox_dropped_total", "Pictures that found a media thread's inbox full.", &c.inbox_dropped),
        ("lightpipe_peers_connected_total", "Sessions that finished ICE and DTLS.", &c.peers_connected),
        ("lightpipe_peer_panics_total", "Sessions ended by a contained bug of ours; report these.", &c.peer_panics),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], value(counter));
    }
    page.family("lightpipe_uptime_seconds", "gauge", "Seconds since the server started.");
    page.sample("lightpipe_uptime_seconds", &[], app.started.elapsed().as_secs_f64());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.0).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_escaped_and_typed() {
        let mut page = Page::default();
        page.family("x_total", "counter", "Counts x.");
        page.sample("x_total", &[("stream", "a\"b\\c\nd"), ("reason", "r")], 3);
        assert_eq!(
            page.0,
            "# HELP x_total Counts x.\n# TYPE x_total counter\nx_total{stream=\"a\\\"b\\\\c\\nd\",reason=\"r\"} 3\n"
        );
    }
}
