//! Simulcast that we send (RFC 8853): for each RID its own SSRC, sequence numbers, retransmissions and pacing; and which of them our own
//! network carries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe_media::AccessUnit;
use lightpipe_media::stream::ESTIMATE_SHARE;
use lightpipe_media::time::VIDEO_CLOCK_RATE_HZ;
use str0m::media::{Mid, Rid};
use str0m::stats::MediaEgressStats;

use super::{Outgoing, Peer, RTX_CACHE_AGE, RTX_CACHE_PACKETS, RTX_RATIO_CAP, Sent};
use crate::layers::LayerState;
use crate::pacer::{Admitted, Pacer};
use crate::session::PeerEvent;
use crate::{negotiate, simulcast};

/// How often the estimate is shared out.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long there must have been room for one more layer, and how much above its lowest rate.
const UP_AFTER: Duration = Duration::from_secs(1);
const UP_MARGIN: f64 = 1.1;

/// How long the room must have been too little for a layer before it is left out.
const DOWN_AFTER: Duration = Duration::from_millis(400);
const DOWN_MARGIN: f64 = 0.95;

/// What simulcast has beside the one video stream of a viewer.
#[derive(Debug, Default)]
pub(super) struct Encodings {
    /// RIDs in our offer, best first.
    offered: Vec<String>,
    /// What the answer took of them.
    all: Vec<Encoding>,
    /// Layers that the caller was told to give.
    told: Vec<usize>,
    shared_at: Option<Instant>,
}

/// One RID that the other side takes.
#[derive(Debug)]
struct Encoding {
    rid: Rid,
    /// Its place in [`Peer::set_layers`]; none while the stream has no such layer.
    layer: Option<usize>,
    /// Our network carries it.
    active: bool,
    /// What it may take of the whole estimate, bits per second.
    share_bps: Option<u64>,
    outgoing: Outgoing,
    pacer: Pacer,
    keyframe_asked: bool,
    extensions_sent: Option<Instant>,
    counters: EncodingCounters,
    /// Since when the opposite of `active` would be right.
    doubted: Option<Instant>,
}

impl Encoding {
    fn new(rid: Rid, outgoing: Outgoing) -> Self {
        Self {
            rid,
            layer: None,
            active: true,
            share_bps: None,
            outgoing,
            pacer: Pacer::new(),
            keyframe_asked: false,
            extensions_sent: None,
            counters: EncodingCounters::default(),
            doubted: None,
        }
    }
}

/// What one RID counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct EncodingCounters {
    /// RTP packets with pictures; retransmissions are not among them.
    pub sent_packets: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// Pictures sent.
    pub sent_frames: u64,
    /// Pictures not sent because a keyframe had to come first.
    pub dropped_wait_keyframe: u64,
    /// Pictures dropped because the backlog was too old.
    pub dropped_backlog: u64,
    /// NACK messages received.
    pub nacks: u64,
    /// Keyframe requests received (PLI and FIR).
    pub keyframe_requests: u64,
    /// Loss that the receiver reported last, 0 to 1.
    pub loss: Option<f32>,
}

/// One RID that we send, as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct SentLayer {
    /// Its name.
    pub rid: String,
    /// Its SSRC.
    pub ssrc: u32,
    /// It is sent at present.
    pub active: bool,
    /// What was counted.
    pub counters: EncodingCounters,
}

impl Encodings {
    pub(super) fn offer(&mut self, rids: Option<&[String]>) {
        self.offered = rids.unwrap_or_default().to_vec();
    }

    /// There is no simulcast, or not yet.
    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn has(&self, ssrc: u32) -> bool {
        self.all.iter().any(|encoding| *encoding.outgoing.ssrc == ssrc)
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.all.iter().filter_map(|encoding| encoding.pacer.wake_at()).min()
    }

    /// Pacing goes by what all of them have together: a keyframe of one leaves while the others send little.
    pub(super) fn set_estimate(&mut self, bps: Option<u64>) {
        for encoding in &mut self.all {
            encoding.pacer.set_estimate(bps);
        }
    }
}

impl Peer {
    /// What goes out side by side; empty without simulcast.
    pub fn sent_layers(&self) -> Vec<SentLayer> {
        let sent = |encoding: &Encoding| SentLayer {
            rid: encoding.rid.to_string(),
            ssrc: *encoding.outgoing.ssrc,
            active: encoding.active && encoding.layer.is_some(),
            counters: encoding.counters,
        };
        self.encodings.all.iter().map(sent).collect()
    }

    /// What a layer may take of our network, headers and all, bits per second; as [`Self::video_estimate_bps`] where there is no simulcast.
    pub fn layer_estimate_bps(&self, layer: usize) -> Option<u64> {
        if self.encodings.is_empty() {
            return self.video_estimate_bps();
        }
        self.encodings.all.iter().find(|encoding| encoding.layer == Some(layer))?.share_bps
    }

    /// Opens what an answer takes of the offered RIDs. Where that is none there will be one video stream, without a RID.
    pub(super) fn open_encodings(&mut self, mids: &[Mid], answer: &str) {
        let Some(codec) = self.tracks.video.filter(|_| !self.encodings.offered.is_empty()) else { return };
        let Some(line) = negotiate::video_line(&self.session.rtc, mids, codec) else { return };
        let taken = simulcast::taken(answer, &line.mid, &self.encodings.offered);
        let mut direct = self.session.rtc.direct_api();
        let mut first = None;
        for rid in self.encodings.offered.iter().map(|rid| Rid::from(rid.as_str())) {
            let Some(stream) = direct.stream_tx_by_mid(line.mid, Some(rid)) else { continue };
            let (ssrc, rtx) = (stream.ssrc(), stream.rtx());
            if !taken.contains(&rid) {
                first = first.or(Some((ssrc, rtx)));
                direct.remove_stream_tx(ssrc);
                continue;
            }
            stream.set_unpaced(true); // As in `open_lines`.
            stream.set_rtx_cache(RTX_CACHE_PACKETS, RTX_CACHE_AGE, Some(RTX_RATIO_CAP));
            self.encodings.all.push(Encoding::new(rid, Outgoing::new(line, ssrc, VIDEO_CLOCK_RATE_HZ)));
        }
        if taken.is_empty()
            && let Some((ssrc, rtx)) = first
        {
            direct.declare_stream_tx(ssrc, rtx, line.mid, None);
        }
        self.place_encodings();
    }

    /// The stream's layers are others, or in another order.
    pub(super) fn place_encodings(&mut self) {
        let layers = self.layers.all();
        let place_of = |rid: Rid| layers.iter().position(|layer| *layer.rid == *rid);
        // A stream that has become one of other layers, or of none, goes out on the best RID.
        let stray = self.encodings.all.iter().all(|encoding| place_of(encoding.rid).is_none());
        for (rank, encoding) in self.encodings.all.iter_mut().enumerate() {
            let place = if stray { (rank == 0).then_some(0) } else { place_of(encoding.rid) };
            if encoding.layer != place {
                encoding.layer = place;
                encoding.pacer.require_keyframe();
            }
        }
        self.tell_encodings();
    }

    pub(super) fn look_at_encodings(&mut self, now: Instant) {
        let due = self.encodings.shared_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL);
        let Some(estimate) = self.video_estimate_bps().filter(|_| due && self.session.is_connected()) else { return };
        self.encodings.shared_at = Some(now);
        share_out(now, estimate, self.layers.all(), &mut self.encodings.all);
        self.tell_encodings();
    }

    fn tell_encodings(&mut self) {
        let active = self.encodings.all.iter().filter(|encoding| encoding.active);
        let mut wanted: Vec<usize> = active.filter_map(|encoding| encoding.layer).collect();
        wanted.sort_unstable();
        if wanted != self.encodings.told {
            self.encodings.told.clone_from(&wanted);
            self.session.events.push_back(PeerEvent::Simulcast(wanted));
        }
    }

    pub(super) fn offer_to_encoding(&mut self, now: Instant, unit: &Arc<AccessUnit>, layer: usize) {
        let of_layer = |encoding: &&mut Encoding| encoding.layer == Some(layer) && encoding.active;
        let Some(encoding) = self.encodings.all.iter_mut().find(of_layer) else { return };
        let rtp_timestamp = encoding.outgoing.clock.timestamp_at(unit.captured);
        let dropped = match encoding.pacer.offer(now, unit, rtp_timestamp) {
            Admitted::Queued => {
                encoding.keyframe_asked &= !unit.keyframe;
                return;
            }
            Admitted::WaitsForKeyframe => {
                encoding.counters.dropped_wait_keyframe += 1;
                self.counters.dropped_wait_keyframe += 1;
                0
            }
            Admitted::Overrun { dropped } => dropped,
            // Only a single encoding falls silent.
            Admitted::Silent => 1,
        };
        encoding.counters.dropped_backlog += dropped;
        self.counters.dropped_backlog += dropped;
        if encoding.pacer.needs_keyframe() && !std::mem::replace(&mut encoding.keyframe_asked, true) {
            self.session.events.push_back(PeerEvent::LayerKeyframeWanted(layer));
        }
    }

    pub(super) fn release_encodings(&mut self, now: Instant) {
        let Self { session, config, counters, last_capture, sent, in_engine, encodings, .. } = self;
        let mut direct = session.rtc.direct_api();
        for (rank, encoding) in encodings.all.iter_mut().enumerate() {
            let Encoding { outgoing, pacer, extensions_sent, counters: own, .. } = encoding;
            let Some(stream) = direct.stream_tx(&outgoing.ssrc) else { continue };
            outgoing.release(now, stream, pacer, extensions_sent, config, |unit, rtp_timestamp, len, marker| {
                *in_engine += 1;
                own.sent_packets += 1;
                own.sent_bytes += len as u64;
                if !marker {
                    return;
                }
                own.sent_frames += 1;
                counters.sent_frames += 1;
                sent.push(Sent { captured: unit.captured, encoded: unit.stages.encoded });
                if rank == 0 {
                    *last_capture = Some((rtp_timestamp, unit.captured));
                }
            });
        }
    }

    /// A keyframe request for one RID (RFC 8853 §6.2): its layer is asked, and no other.
    pub(super) fn on_encoding_keyframe_request(&mut self, rid: Option<Rid>) {
        let of_rid = |encoding: &&mut Encoding| Some(encoding.rid) == rid;
        let Some(encoding) = self.encodings.all.iter_mut().find(of_rid) else { return };
        encoding.counters.keyframe_requests += 1;
        if let Some(layer) = encoding.layer.filter(|_| encoding.active) {
            self.session.events.push_back(PeerEvent::LayerKeyframeWanted(layer));
        }
    }

    /// False when the figures are of another track.
    pub(super) fn on_encoding_stats(&mut self, stats: &MediaEgressStats) -> bool {
        let is_it =
            |encoding: &&mut Encoding| encoding.outgoing.line.mid == stats.mid && Some(encoding.rid) == stats.rid;
        let Some(encoding) = self.encodings.all.iter_mut().find(is_it) else { return false };
        encoding.counters.nacks = stats.nacks;
        encoding.counters.loss = stats.loss.or(encoding.counters.loss);
        self.counters.nacks = self.encodings.all.iter().map(|encoding| encoding.counters.nacks).sum();
        let losses = self.encodings.all.iter().filter_map(|encoding| encoding.counters.loss);
        self.counters.loss = losses.reduce(f32::max);
        true
    }
}

/// Shares an estimate out among the encodings: the least first, as much as it aims for, what is left to the best that there is room for.
fn share_out(now: Instant, estimate_bps: u64, layers: &[LayerState], encodings: &mut [Encoding]) {
    let mut left = estimate_bps as f64 * ESTIMATE_SHARE;
    let mut best: Option<usize> = None;
    let mut order: Vec<(usize, usize)> =
        encodings.iter().enumerate().filter_map(|(n, encoding)| Some((encoding.layer?, n))).collect();
    order.sort_unstable();
    for (rank, (layer, n)) in order.iter().rev().enumerate() {
        let (Some(state), Some(encoding)) = (layers.get(*layer), encodings.get_mut(*n)) else { continue };
        let floor = state.floor_bps as f64;
        let fits = left >= floor * if encoding.active { DOWN_MARGIN } else { UP_MARGIN };
        // Something always goes out.
        let right = rank == 0 || fits;
        if right == encoding.active {
            encoding.doubted = None;
        } else {
            let since = *encoding.doubted.get_or_insert(now);
            if now.saturating_duration_since(since) >= if right { UP_AFTER } else { DOWN_AFTER } {
                encoding.active = right;
                encoding.doubted = None;
            }
        }
        if !encoding.active {
            encoding.share_bps = None;
            continue;
        }
        // An encoder goes between its floor and twice that.
        let takes = (floor * 2.0).min(left.max(floor));
        left = (left - takes).max(0.0);
        encoding.share_bps = Some((takes / ESTIMATE_SHARE) as u64);
        best = Some(*n);
    }
    if let Some(share) = best.and_then(|n| encodings.get_mut(n)?.share_bps.as_mut()) {
        *share += (left / ESTIMATE_SHARE) as u64;
    }
}
