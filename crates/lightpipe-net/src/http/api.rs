//! JSON for programs and for our own pages.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use lightpipe_media::stream::{Health, StreamStats};
use lightpipe_media::{EventKind, MediaTime, Stream, VideoCodec};
use lightpipe_rtc::control::Percentiles;
use lightpipe_rtc::receiver::ReceiverCounters;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::media::{IncomingLayer, public_part};
use crate::playout_to_json;

pub(crate) async fn streams(State(app): State<App>) -> Json<Value> {
    let now = app.engine.clock().at(Instant::now());
    let streams: Vec<Value> = app
        .streams
        .all()
        .iter()
        .map(|entry| {
            let stats = entry.stream.stats();
            let (health, reason) = told(entry.stream.health());
            let (audio_health, audio_reason) = told(entry.stream.audio_health());
            let alternatives = entry.stream.alternatives();
            // All codings have the same pictures, and any of them may be the only one that somebody takes.
            let size = stats.size.or_else(|| alternatives.iter().find_map(|s| s.stats().size));
            let figures = json!({
                "name": entry.stream.name(),
                "codec": entry.stream.has_video().then_some(entry.stream.codec().name()),
                "source": entry.source,
                "health": health,
                "reason": reason,
                "viewers": app.engine.viewers_of(entry.stream.name()),
                "width": size.map(|s| s.width),
                "height": size.map(|s| s.height),
                "playout": stats.playout.as_deref().map(playout_to_json),
                "layers": layers(&entry.stream, now),
                "alternatives": alternatives.iter().map(|s| alternative(s, now)).collect::<Vec<_>>(),
                "audio": entry.stream.has_audio().then(|| json!({
                    "codec": "opus",
                    "health": audio_health,
                    "reason": audio_reason,
                    "published": stats.audio.published,
                    "bytes": stats.audio.bytes,
                    "level_dbfs": stats.audio.level.filter(|level| *level > 0.0).map(|level| 20.0 * level.log10()),
                    "drift_ppm": stats.audio.drift_ppm,
                    "encoder_errors": stats.audio.errors,
                    "drops": { "raw_queue": stats.audio.blocks_dropped },
                })),
            });
            with(figures, &encoding(&entry.stream, &stats, now))
        })
        .collect();
    Json(json!({ "streams": streams }))
}

/// The encoding of a stream in another codec, by the names of the stream's own.
fn alternative(stream: &Arc<Stream>, now: MediaTime) -> Value {
    let (_, reason) = told(stream.health());
    let figures = json!({ "codec": stream.codec().name(), "reason": reason, "layers": layers(stream, now) });
    with(figures, &encoding(stream, &stream.stats(), now))
}

/// The layers of a stream's ladder, best first; none without one.
fn layers(stream: &Arc<Stream>, now: MediaTime) -> Vec<Value> {
    let layers = stream.layers();
    if layers.len() < 2 {
        return Vec::new();
    }
    let told = layers.iter().filter_map(|stream| {
        let layer = stream.layer()?;
        let (health, reason) = told(stream.layer_health());
        let figures = json!({
            "rid": layer.rid,
            "width": layer.size.width,
            "height": layer.size.height,
            "configured_bitrate_bps": layer.bitrate_bps,
            "wanted": stream.own_outlets() > 0,
            "health": health,
            "reason": reason,
        });
        Some(with(figures, &encoding(stream, &stream.stats(), now)))
    });
    told.collect()
}

/// The figures of one encoding.
fn encoding(stream: &Stream, stats: &StreamStats, now: MediaTime) -> Value {
    let rate = stream.rates(now);
    json!({
        "fps": rate.fps,
        "bitrate_bps": rate.bitrate_bps,
        "target_bitrate_bps": stats.target_bitrate_bps,
        "adapted": stats.adapted.map(|point| {
            json!({ "width": point.size.width, "height": point.size.height, "fps": point.fps })
        }),
        "adaptations": stats.adaptations,
        "published": stats.published,
        "keyframes": stats.keyframes,
        "keyframe_requests": stats.keyframe_requests,
        "encoder_starts": stats.encoder_starts,
        "encoder_cores": stats.encoder_cores,
        "encoder_errors": stats.encoder_errors,
        "drops": { "raw_queue": stats.raw_dropped, "encoder_skip": stats.encoder_skipped },
        "stages_ms": {
            "capture": Percentiles::from(&stats.capture),
            "queue": Percentiles::from(&stats.queue),
            "encode": Percentiles::from(&stats.encode),
        },
    })
}

/// An object with the fields of another one.
fn with(mut object: Value, more: &Value) -> Value {
    if let (Some(object), Some(more)) = (object.as_object_mut(), more.as_object()) {
        object.extend(more.clone());
    }
    object
}

/// A state in the API's words, and why it is so.
fn told(health: Health) -> (&'static str, Option<String>) {
    match health {
        Health::Live => ("live", None),
        Health::Failed(reason) => ("failed", Some(reason)),
        _ => ("starting", None),
    }
}

pub(crate) async fn peers(State(app): State<App>) -> Json<Value> {
    let peers: Vec<Value> = app
        .engine
        .peers()
        .iter()
        .map(|peer| {
            let c = peer.counters;
            json!({
                "id": public_part(&peer.id),
                "stream": peer.stream,
                "feeds": peer.feeds,
                "codec": peer.codec.map(VideoCodec::name),
                "transport": peer.transport.as_str(),
                "state": peer.state(),
                "role": if peer.received.is_some() { "publisher" } else { "viewer" },
                "received": peer.received.map(|r| with(received(&r), &json!({
                    "unknown_packets": r.unknown_packets,
                    "layers": peer.incoming_layers.iter().map(incoming_layer).collect::<Vec<_>>(),
                }))),
                "playout": peer.playout.as_deref().map(playout_to_json),
                "age_s": peer.created.elapsed().as_secs_f64(),
                "rtt_ms": c.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                "loss": c.loss,
                "layer": peer.layer,
                "chosen_layer": peer.chosen_layer,
                "layer_switches": c.layer_switches,
                "guard_steps": c.guard_steps,
                "estimate_bps": c.estimate_bps,
                "sent_bytes": c.sent_bytes,
                "sent_packets": c.sent_packets,
                "sent_frames": c.sent_frames,
                "sent_audio_frames": c.sent_audio_frames,
                "audio_loss": c.audio_loss,
                "nacks": c.nacks,
                "plis": c.keyframe_requests,
                "drops": { "wait_keyframe": c.dropped_wait_keyframe, "backlog": c.dropped_backlog },
                "send_ms": Percentiles::from(&peer.send),
                "capture_to_sent_ms": Percentiles::from(&peer.capture_to_sent),
            })
        })
        .collect();
    Json(json!({ "peers": peers }))
}

/// What came of a track.
fn received(counters: &ReceiverCounters) -> Value {
    json!({
        "packets": counters.packets,
        "bytes": counters.bytes,
        "pictures": counters.pictures,
        "lost_packets": counters.lost_packets,
        "undecodable": counters.undecodable,
        "keyframe_requests": counters.keyframe_requests,
        "ssrc_changes": counters.ssrc_changes,
    })
}

/// One layer of a publisher.
fn incoming_layer(layer: &IncomingLayer) -> Value {
    let figures = json!({
        "rid": layer.rid,
        "sent": layer.coming,
        "width": layer.size.map(|size| size.width),
        "height": layer.size.map(|size| size.height),
    });
    with(figures, &received(&layer.received))
}

/// Our connections to other servers.
pub(crate) async fn clients(State(app): State<App>) -> Json<Value> {
    let clients: Vec<Value> = app.clients.all().iter().map(|client| client.to_json()).collect();
    Json(json!({ "clients": clients }))
}

#[derive(Debug, Deserialize)]
pub(crate) struct EventsQuery {
    #[serde(default)]
    since: u64,
}

pub(crate) async fn events(State(app): State<App>, Query(query): Query<EventsQuery>) -> Json<Value> {
    let clock = app.engine.clock();
    let events: Vec<Value> = app
        .engine
        .events()
        .since(query.since)
        .iter()
        .map(|event| {
            let value = json!({
                "seq": event.seq,
                "unix_ms": clock.unix_micros(event.at) as f64 / 1000.0,
                "stream": event.stream,
                "event": event.kind.name(),
            });
            let detail = match &event.kind {
                EventKind::FfmpegSpawned { pid } | EventKind::AudioSpawned { pid } => json!({ "pid": pid }),
                EventKind::FfmpegExited { reason, retry_in } | EventKind::AudioExited { reason, retry_in } => {
                    json!({ "reason": reason, "retry_in_ms": retry_in.map(|d| d.as_millis() as u64) })
                }
                EventKind::TrackActive { codec, rid } | EventKind::TrackIdle { codec, rid } => {
                    json!({ "codec": codec.map(VideoCodec::name), "rid": rid })
                }
                EventKind::LayerDropped { codec, rid, cause, reason, retry_in } => json!({
                    "codec": codec.name(),
                    "rid": rid,
                    "cause": cause,
                    "reason": reason,
                    "retry_in_ms": retry_in.as_millis() as u64,
                }),
                EventKind::EncodingAdapted { codec, size, interval, target_bps } => json!({
                    "codec": codec.name(),
                    "width": size.width,
                    "height": size.height,
                    "fps": (1e3 / interval.as_secs_f64()).round() / 1e3,
                    "target_bps": target_bps,
                }),
                EventKind::SourceFailed { reason } => json!({ "reason": reason }),
                EventKind::FellBehind { peer, step, by } => {
                    json!({ "peer": public_part(peer), "step": step, "by_ms": by.as_secs_f64() * 1000.0 })
                }
                EventKind::PeerConnected { peer, took } => {
                    json!({ "peer": public_part(peer), "took_ms": took.as_secs_f64() * 1000.0 })
                }
                EventKind::PublisherConnected { peer, took } => {
                    json!({ "peer": public_part(peer), "took_ms": took.as_secs_f64() * 1000.0 })
                }
                EventKind::PublisherDisconnected { peer, cause } => {
                    json!({ "peer": public_part(peer), "cause": cause })
                }
                EventKind::PeerDisconnected { peer, cause } => json!({ "peer": public_part(peer), "cause": cause }),
                _ => json!({}),
            };
            with(value, &detail)
        })
        .collect();
    Json(json!({ "events": events }))
}

pub(crate) async fn info(State(app): State<App>) -> Json<Value> {
    let (threads, realtime) = app.engine.threads();
    Json(json!({
        "name": "lightpipe",
        "version": env!("CARGO_PKG_VERSION"),
        "media_threads": threads,
        "realtime_threads": realtime,
        "uptime_s": app.started.elapsed().as_secs_f64(),
    }))
}

/// The process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready for viewers: not stopping, and at least one stream is not failed.
pub(crate) async fn readyz(State(app): State<App>) -> (StatusCode, &'static str) {
    if *app.stopping.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    }
    let streams = app.streams.all();
    let usable = streams.is_empty() || streams.iter().any(|e| !matches!(e.stream.health(), Health::Failed(_)));
    if usable {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "every stream's source has failed\n")
    }
}

/// Reads a counter.
pub(crate) fn value(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Relaxed)
}
