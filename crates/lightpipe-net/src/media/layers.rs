//! The layers of a stream, as viewers choose from them.

use std::sync::Arc;

use lightpipe_media::stream::Health;
use lightpipe_media::{MediaTime, Stream};
use lightpipe_rtc::LayerState;
use lightpipe_rtc::control::LayerStats;

/// What a viewer of a stream may get.
pub(crate) struct Ladder {
    /// Best first. One: there is no ladder.
    pub(crate) streams: Vec<Arc<Stream>>,
    /// The same for the peer; empty without a ladder.
    pub(crate) states: Vec<LayerState>,
}

/// The layers of a stream as they are now.
pub(crate) fn of(stream: &Arc<Stream>, now: MediaTime) -> Ladder {
    let streams = stream.layers();
    let states: Option<Vec<LayerState>> = streams.iter().map(|stream| state(stream, now)).collect();
    match states {
        Some(states) if states.len() > 1 => Ladder { streams, states },
        _ => Ladder { streams: vec![Arc::clone(stream)], states: Vec::new() },
    }
}

fn state(stream: &Stream, now: MediaTime) -> Option<LayerState> {
    let layer = stream.layer()?;
    let target_bps = stream.target_bitrate_bps();
    let rate = stream.rates(now).bitrate_bps;
    // Nobody here encodes what comes all the same: it will not come smaller.
    let fixed = target_bps.is_none() && rate > 0;
    Some(LayerState {
        floor_bps: if fixed { rate } else { layer.floor_bps() },
        rid: layer.rid,
        size: layer.size,
        target_bps: if fixed { Some(rate) } else { target_bps },
        available: available(stream),
    })
}

fn available(stream: &Stream) -> bool {
    !matches!(stream.layer_health(), Health::Failed(_))
}

/// For a player's menu; empty without a ladder.
pub(crate) fn told(streams: &[Arc<Stream>]) -> Vec<LayerStats> {
    if streams.len() < 2 {
        return Vec::new();
    }
    let told = streams.iter().filter_map(|stream| {
        let layer = stream.layer()?;
        let available = available(stream);
        Some(LayerStats { rid: layer.rid, width: layer.size.width, height: layer.size.height, available })
    });
    told.collect()
}
