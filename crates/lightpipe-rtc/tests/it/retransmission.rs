//! Lost packets come again, and only as often as is good for the others.

use std::collections::BTreeSet;

use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, ms, secs};
use crate::raw::RawConfig;

const MEDIA: u8 = 102;
const RTX: u8 = 103;

#[test]
fn lost_packet_comes_again_within_a_round_trip_of_its_nack() {
    let link = LinkConfig::default().with_delay_millis(20);
    let mut lab = Lab::seeded(1);
    let viewer = lab.join_raw(&RawConfig::default(), link.clone(), link);
    lab.connect();
    lab.run_for(secs(2));
    lab.pairs[viewer].swallow = Some(|rtp, count| rtp.payload_type == MEDIA && count % 97 == 0);
    lab.run_for(secs(10));
    lab.pairs[viewer].swallow = None;
    lab.run_for(secs(1));
    let pair = &mut lab.pairs[viewer];
    assert!(pair.peer.counters().nacks > 10, "{:?}", pair.peer.counters());
    let sent = pair.rtp.iter().filter(|p| p.payload_type == MEDIA).count();
    let resent = pair.rtp.iter().filter(|p| p.payload_type == RTX).count();
    let mut seen: Vec<_> = pair.viewer.raw().seen.iter().map(|s| (s.seq_no, s.at)).collect();
    let distinct: BTreeSet<u64> = seen.iter().map(|(seq_no, _)| *seq_no).collect();
    // A packet that came after a later one came by RTX. A gap shows when the packet behind it comes; the viewer's engine
    // collects gaps for 33 ms.
    let mut worst = std::time::Duration::ZERO;
    let mut repaired = 0;
    seen.sort_by_key(|(_, at)| *at);
    for (index, (seq_no, at)) in seen.iter().enumerate() {
        if let Some((_, noticed)) =
            seen[..index].iter().rev().take(200).filter(|(other, _)| other > seq_no).min_by_key(|(_, at)| *at)
        {
            worst = worst.max(*at - *noticed);
            repaired += 1;
        }
    }
    println!("{resent} of {sent} packets again, {repaired} repaired, the slowest {worst:?} after its gap showed");
    assert_eq!(distinct.len(), sent, "every packet arrives at last");
    assert!(
        (repaired as i64 - resent as i64).abs() <= 2 && resent * 97 <= sent * 3 / 2,
        "{repaired} repaired by {resent}"
    );
    assert!(worst <= ms(40 + 33 + 1), "{worst:?}");
}

/// A viewer that asks for every packet, again and again, gets a bounded share; the picture goes on.
#[test]
fn nack_storm_is_bounded_and_does_not_stop_media() {
    let link = LinkConfig::default().with_delay_millis(10);
    let mut lab = Lab::seeded(2);
    let viewer = lab.join_raw(&RawConfig::default(), link.clone(), link);
    lab.connect();
    lab.run_for(secs(2));
    // No retransmission arrives, and of the packets one in twelve: enough to ask for the eleven others each time.
    lab.pairs[viewer].swallow = Some(|rtp, count| rtp.payload_type == RTX || count % 12 != 0);
    let at = lab.now;
    lab.run_for(secs(20));
    let pair = &mut lab.pairs[viewer];
    let bytes = |payload_type| {
        pair.rtp.iter().filter(|p| p.at > at && p.payload_type == payload_type).map(|p| p.len).sum::<usize>()
    };
    let (media, again) = (bytes(MEDIA), bytes(RTX));
    println!("storm: {media} bytes of media, {again} again, {} NACKs", pair.peer.counters().nacks);
    assert!(pair.peer.counters().nacks > 100, "{:?}", pair.peer.counters());
    assert!(again as f64 <= 0.6 * (media + again) as f64, "{again} of {}", media + again);
    assert!(media * 8 / 20 > 2_200_000, "{media} bytes of media in 20 s");
    assert!(pair.offered - pair.peer.counters().sent_frames <= 2, "{:?}", pair.peer.counters());
}
