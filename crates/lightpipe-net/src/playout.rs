//! How a peer is played, as the API tells it.

use lightpipe_media::playout::{PlayoutFigures, SoundFigures};
use serde_json::{Value, json};

/// Figures as JSON: times in milliseconds, sound in samples of one channel at 48 kHz.
pub fn playout_to_json(figures: &PlayoutFigures) -> Value {
    let SoundFigures { drift, delay, .. } = figures.sound;
    let (sound, pictures) = (&figures.sound, &figures.pictures);
    let ms = |span: std::time::Duration| span.as_secs_f64() * 1e3;
    let [p50, p95, p99] = figures.lip_sync.percentiles_ms();
    json!({
        "state": figures.state.as_str(),
        "needed_ms": ms(sound.needed),
        "target_ms": ms(sound.target),
        "delay_ms": delay.map(ms),
        "depth_ms": ms(sound.depth),
        "drift_ppm": drift.map(|drift| drift.ppm),
        "drift_error_ppm": drift.map(|drift| drift.error_ppm),
        "correction_ppm": sound.correction_ppm,
        "packets": sound.packets,
        "drops": {
            "late": sound.late_packets,
            "duplicate": sound.duplicate_packets,
            "too_old": sound.dropped_packets,
            "undecodable": sound.undecodable_packets,
        },
        "samples": {
            "played": sound.played_samples,
            "concealed": sound.concealed_samples,
            "recovered": sound.recovered_samples,
            "paused": sound.paused_samples,
            "silent": sound.silent_samples,
            "removed": sound.removed_samples,
            "inserted": sound.inserted_samples,
        },
        "concealed_share": sound.concealed_share(),
        "restarts": sound.restarts,
        "pictures": {
            "shown": pictures.shown,
            "late": pictures.late,
            "dropped": pictures.dropped,
            "waiting": pictures.waiting,
        },
        "lip_sync_ms": (figures.lip_sync.count() > 0).then(|| json!({ "p50": p50, "p95": p95, "p99": p99 })),
    })
}
