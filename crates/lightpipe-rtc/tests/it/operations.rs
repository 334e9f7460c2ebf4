//! Whatever is done to a peer in whatever order: no panic, and an end.

use fastrand::Rng;
use lightpipe_rtc::control::ViewerStats;
use lightpipe_rtc::{Candidate, Credentials, DisconnectCause, PeerEvent};
use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, Viewer, ms, secs, server};
use crate::raw::RawConfig;

fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rng.usize(0..120)).map(|_| rng.u8(..)).collect();
    // Half of it looks like something: STUN, DTLS, RTP, RTCP.
    if bytes.len() > 20 && rng.bool() {
        let head: &[u8] =
            [&[0, 1, 0, 100, 0x21, 0x12, 0xa4, 0x42][..], &[22, 0xfe, 0xfd, 0], &[0x80, 102], &[0x81, 205, 0, 9]]
                [rng.usize(..4)];
        bytes[..head.len()].copy_from_slice(head);
    }
    bytes
}

fn operate(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let link =
        LinkConfig::default().with_delay_millis(rng.u64(0..40)).with_loss(rng.f64() * 0.1).with_reorder(0.05, ms(10));
    let mut lab = Lab::seeded(seed);
    lab.config.estimate_bandwidth = rng.bool();
    let viewer = lab.join_raw(&RawConfig { channel: true, ..RawConfig::default() }, link.clone(), link);
    for _ in 0..rng.usize(20..120) {
        let now = lab.now;
        let recorded = lab.pairs[viewer].stun_up.last().cloned();
        let pair = &mut lab.pairs[viewer];
        match rng.u8(..14) {
            0 => pair.peer.send_stats(&ViewerStats::default()),
            1 => {
                let port = rng.u16(..);
                let candidate = Candidate::parse(&format!("candidate:1 1 udp 2130706431 203.0.113.9 {port} typ host"));
                _ = candidate.map(|c| pair.peer.add_candidate(&c));
            }
            2 => _ = pair.peer.add_candidate(&Candidate::EndOfCandidates),
            3 => {
                let credentials =
                    Credentials { ufrag: format!("u{}", rng.u32(..)), pwd: "0123456789abcdefghijklmn".into() };
                _ = pair.peer.restart_ice(&credentials);
            }
            4 => {
                let (offer, _) = pair.viewer.raw().restart_offer();
                if let Ok(answer) = pair.peer.reoffer(&offer) {
                    pair.viewer.raw().accept_answer(&answer);
                }
                lab.drain_viewer(viewer);
            }
            5 => _ = pair.peer.reoffer("v=0\r\n"),
            6 => pair.public.set_port(rng.u16(1024..)),
            7 => _ = pair.viewer.raw().send_message(rng.bool(), &garbage(&mut rng)),
            8 => {
                if let Some(mut stun) = recorded {
                    let at = rng.usize(..stun.len());
                    stun[at] ^= 1 << rng.u8(..8);
                    _ = lab.inject(viewer, "203.0.113.9:9".parse().unwrap(), &stun);
                }
            }
            9 if rng.u8(..20) == 0 => pair.peer.close(now, DisconnectCause::Shutdown),
            9..=11 => {
                let from = if rng.bool() { pair.public } else { server() };
                let datagram = garbage(&mut rng);
                _ = lab.inject(viewer, from, &datagram);
            }
            _ => lab.run_for(ms(rng.u64(0..400))),
        }
        lab.drain_peer(viewer);
        lab.run_for(ms(rng.u64(0..50)));
    }
    if rng.bool() {
        let now = lab.now;
        lab.pairs[viewer].peer.close(now, DisconnectCause::SignallingClosed);
        lab.drain_peer(viewer);
    }
    lab.pairs[viewer].viewer = Viewer::Gone;
    lab.run_for(secs(60));
    let ends: Vec<_> = lab.pairs[viewer].events.iter().filter(|(_, e)| matches!(e, PeerEvent::Closed(_))).collect();
    assert_eq!(ends.len(), 1, "seed {seed}: {:?}", lab.pairs[viewer].events);
}

#[test]
fn random_operations_end_in_exactly_one_closed() {
    (0..60).for_each(operate);
}
