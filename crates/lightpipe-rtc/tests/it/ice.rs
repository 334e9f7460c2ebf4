//! Paths: restarts, new addresses, strangers.

use std::net::SocketAddr;

use lightpipe_rtc::{DisconnectCause, PeerError, PeerEvent};
use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, ms, secs};
use crate::raw::RawConfig;

fn link() -> LinkConfig {
    LinkConfig::default().with_delay_millis(10)
}

fn stranger() -> SocketAddr {
    "203.0.113.66:6666".parse().unwrap()
}

#[track_caller]
fn assert_not_mine(lab: &mut Lab, viewer: usize, what: &str, payload: &[u8]) {
    let result = lab.inject(viewer, stranger(), payload);
    assert!(matches!(result, Err(PeerError::NotMine)), "{what}: {result:?}");
}

/// An answer to a restart that came as a fragment: the old answer with the peer's new credentials.
fn renewed(answer: &str, old_ufrag: &str, ufrag: &str, pwd: &str) -> String {
    let answer = answer.replace(&format!("ufrag {old_ufrag}"), &format!("ufrag {ufrag}"));
    let lines = answer.lines().map(|line| match line {
        l if l.starts_with("a=ice-ufrag:") => format!("a=ice-ufrag:{ufrag}\r\n"),
        l if l.starts_with("a=ice-pwd:") => format!("a=ice-pwd:{pwd}\r\n"),
        l => format!("{l}\r\n"),
    });
    lines.collect()
}

#[test]
fn media_goes_on_through_an_ice_restart() {
    for whole_offer in [false, true] {
        let mut lab = Lab::seeded(1);
        let viewer = lab.join_raw(&RawConfig::default(), link(), link());
        lab.connect();
        lab.run_for(secs(2));
        let old_request = lab.pairs[viewer].stun_up.last().unwrap().clone();
        let before = lab.pairs[viewer].peer.local_credentials();

        let pair = &mut lab.pairs[viewer];
        let (offer, credentials) = pair.viewer.raw().restart_offer();
        let answer = if whole_offer {
            pair.peer.reoffer(&offer).unwrap()
        } else {
            pair.peer.restart_ice(&credentials).unwrap();
            let after = pair.peer.local_credentials();
            renewed(&pair.answer, &before.ufrag, &after.ufrag, &after.pwd)
        };
        let after = pair.peer.local_credentials();
        assert_ne!(before, after, "a restart has new credentials on both sides");
        assert!(
            after.ufrag.bytes().chain(after.pwd.bytes()).all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
        );
        pair.viewer.raw().accept_answer(&answer);
        lab.drain_peer(viewer);
        lab.drain_viewer(viewer);

        let seen_before = lab.pairs[viewer].viewer.raw().seen.len();
        lab.run_for(secs(30));
        let seen = &lab.pairs[viewer].viewer.raw().seen[seen_before - 1..];
        let longest = seen.windows(2).map(|w| w[1].at - w[0].at).max().unwrap();
        println!("restart by {}: longest pause {longest:?}", if whole_offer { "offer" } else { "fragment" });
        assert!(longest < ms(100), "a pause of {longest:?}");
        assert!(seen.len() > 30 * 250, "{} packets in 30 s", seen.len());
        assert_not_mine(&mut lab, viewer, "a check with the credentials of before", &old_request);
        let new_request = lab.pairs[viewer].stun_up.last().unwrap().clone();
        let result = lab.inject(viewer, stranger(), &new_request);
        assert!(result.is_ok(), "a check with those of now is one: {result:?}");
    }
}

#[test]
fn restart_that_nobody_finishes_ends_the_session() {
    let mut lab = Lab::seeded(1);
    let viewer = lab.join_raw(&RawConfig::default(), link(), link());
    lab.connect();
    lab.run_for(secs(2));
    let (_, credentials) = lab.pairs[viewer].viewer.raw().restart_offer();
    lab.pairs[viewer].peer.restart_ice(&credentials).unwrap();
    lab.drain_peer(viewer);
    lab.pairs[viewer].viewer = crate::lab::Viewer::Gone;
    lab.run_for(secs(60));
    let last = lab.pairs[viewer].events.last().unwrap();
    assert_eq!(last.1, PeerEvent::Closed(DisconnectCause::IceTimeout), "after {:?}", last.0 - lab.base);
}

#[test]
fn datagrams_of_strangers_change_nothing() {
    let mut lab = Lab::seeded(2);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(1));
    let mut forged = lab.pairs[viewer].stun_up.last().unwrap().clone();
    let middle = forged.len() - 8 - 10; // inside MESSAGE-INTEGRITY, before FINGERPRINT
    forged[middle] ^= 0x40;
    let mut rtp = vec![0x80, 102, 0, 1];
    rtp.resize(200, 0x55);
    let mut rtcp = vec![0x80, 201, 0, 7];
    rtcp.resize(64, 0);
    let client_hello = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 1][..], &[0; 19]].concat();
    let indication = [&[0x00, 0x11, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[9; 12]].concat();
    let cases: [(&str, &[u8]); 8] = [
        ("RTP", &rtp),
        ("RTCP", &rtcp),
        ("DTLS", &client_hello),
        ("garbage", &[0xff; 100]),
        ("nothing", &[]),
        ("one byte", &[0]),
        ("STUN with a wrong integrity", &forged),
        ("a STUN indication", &indication),
    ];
    for round in 0..50 {
        for (what, payload) in cases {
            assert_not_mine(&mut lab, viewer, what, payload);
        }
        lab.run_for(ms(20 + round));
    }
    lab.run_for(secs(2));
    let pair = &mut lab.pairs[viewer];
    assert!(pair.pictures.len() as u64 + 1 >= pair.peer.counters().sent_frames, "at most one is under way");
    assert_eq!(pair.viewer.native().counters().undecodable, 0);
    assert!(!pair.events.iter().any(|(_, event)| matches!(event, PeerEvent::Closed(_))));
}

/// The address of the nominated pair is no proof either: what comes from there is checked by SRTP, DTLS and STUN.
#[test]
fn forged_datagrams_from_the_viewers_address_do_not_end_the_session() {
    let mut lab = Lab::seeded(3);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(1));
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..500 {
        let public = lab.pairs[viewer].public;
        let first = [0x80, 0x90, 22, 23, 20, 21, 0, 1, 0xff][rng.usize(..9)];
        let mut payload: Vec<u8> = (0..rng.usize(1..200)).map(|_| rng.u8(..)).collect();
        payload[0] = first;
        _ = lab.inject(viewer, public, &payload);
        lab.run_for(ms(3));
    }
    lab.run_for(secs(1));
    let pair = &lab.pairs[viewer];
    let closed: Vec<_> = pair.events.iter().filter(|(_, event)| matches!(event, PeerEvent::Closed(_))).collect();
    assert!(closed.is_empty(), "{closed:?}");
    assert!(lab.now - pair.pictures.last().unwrap().completed < ms(60), "media goes on");
}

#[test]
fn media_follows_a_nat_rebinding() {
    let mut lab = Lab::seeded(4);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(5));
    lab.pairs[viewer].public = "198.51.100.1:61001".parse().unwrap();
    let at = lab.now;
    let took =
        lab.run_until(secs(20), |lab| lab.pairs[viewer].pictures.last().is_some_and(|p| p.completed > at + ms(50)));
    lab.run_for(secs(10));
    let pair = &mut lab.pairs[viewer];
    println!("picture again {took:?} after the rebinding; {} datagrams refused meanwhile", pair.not_mine);
    assert!(took < secs(5), "{took:?}");
    assert!(lab.now - pair.pictures.last().unwrap().completed < ms(100));
    assert!(!pair.events.iter().any(|(_, event)| matches!(event, PeerEvent::Closed(_))));
}

#[test]
fn short_outage_is_survived() {
    let mut lab = Lab::seeded(5);
    let viewer = lab.join(link(), link());
    lab.connect();
    lab.run_for(secs(3));
    for direction in [true, false] {
        let dead = link().with_loss(1.0);
        lab.pairs[viewer].down.reconfigure(lab.now, if direction { dead.clone() } else { link() });
        lab.pairs[viewer].up.reconfigure(lab.now, dead);
        lab.run_for(secs(3));
        lab.pairs[viewer].down.reconfigure(lab.now, link());
        lab.pairs[viewer].up.reconfigure(lab.now, link());
        lab.run_for(secs(4));
        let pair = &lab.pairs[viewer];
        assert!(lab.now - pair.pictures.last().unwrap().completed < ms(100), "no picture after an outage of 3 s");
    }
}
