//! The player's data channel.

use lightpipe_rtc::control::ViewerStats;
use lightpipe_testkit::netlab::LinkConfig;
use serde_json::Value;

use crate::lab::{Lab, ms, secs};
use crate::raw::RawConfig;

fn with_channel(seed: u64) -> Lab {
    let link = LinkConfig::default().with_delay_millis(10);
    let mut lab = Lab::seeded(seed);
    lab.join_raw(&RawConfig { channel: true, ..RawConfig::default() }, link.clone(), link);
    lab.run_until(secs(3), |lab| lab.pairs[0].viewer.raw().channel_is_open());
    lab.run_for(ms(200));
    lab
}

#[test]
fn ping_is_answered_with_the_servers_time() {
    let mut lab = with_channel(1);
    let sent = lab.now;
    assert!(lab.pairs[0].viewer.raw().send_message(false, br#"{"type":"ping","t":1234.5}"#));
    lab.drain_viewer(0);
    lab.run_for(ms(100));
    let clock = lab.clock;
    let (came, text) = lab.pairs[0].viewer.raw().messages.pop().expect("a pong");
    let pong: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&pong["type"], &pong["t"]), (&"pong".into(), &1234.5.into()));
    // The server read its clock half a round trip after the ping left.
    let expected = clock.unix_micros(clock.at(sent + ms(10))) as f64 / 1000.0;
    let server = pong["server_ms"].as_f64().unwrap();
    println!("pong after {:?}, server time {:+.3} ms", came - sent, server - expected);
    assert!((server - expected).abs() < 1.0, "{server} instead of {expected}");
    assert!(came - sent < ms(25));
}

#[test]
fn stats_reach_the_page() {
    let mut lab = with_channel(2);
    lab.pairs[0].peer.send_stats(&ViewerStats {
        rtp: 77,
        capture_ms: 12.25,
        clock_rate: 90_000,
        viewers: 3,
        fps: 30.0,
        ..ViewerStats::default()
    });
    lab.drain_peer(0);
    lab.run_for(ms(50));
    let (_, text) = lab.pairs[0].viewer.raw().messages.pop().expect("stats");
    let stats: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&stats["type"], &stats["rtp"], &stats["viewers"]), (&"stats".into(), &77.into(), &3.into()));
}

#[test]
fn garbage_from_the_page_is_ignored() {
    let mut lab = with_channel(3);
    let long = vec![b'x'; 30_000];
    let cases: [&[u8]; 8] = [
        b"{",
        b"[]",
        b"null",
        &[0xff; 40],
        br#"{"type":"ping"}"#,
        br#"{"type":"wave","x":1}"#,
        br#"{"type":"ping","t":"soon"}"#,
        &long,
    ];
    for round in 0..10 {
        for case in cases {
            assert!(lab.pairs[0].viewer.raw().send_message(round % 2 == 0, case));
            lab.drain_viewer(0);
            lab.run_for(ms(7));
        }
    }
    lab.run_for(secs(1));
    assert_eq!(lab.pairs[0].viewer.raw().messages, []);
    assert!(lab.pairs[0].viewer.raw().send_message(false, br#"{"type":"ping","t":1}"#));
    lab.drain_viewer(0);
    lab.run_for(ms(50));
    assert_eq!(lab.pairs[0].viewer.raw().messages.len(), 1, "and a ping is still answered");
    assert!(lab.now - lab.pairs[0].viewer.raw().seen.last().unwrap().at < ms(60), "and media goes on");
}

#[test]
fn messages_before_the_channel_opens_are_lost_quietly() {
    let link = LinkConfig::default().with_delay_millis(10);
    let mut lab = Lab::seeded(4);
    lab.join_raw(&RawConfig::default(), link.clone(), link);
    lab.run_for(ms(1));
    for _ in 0..20 {
        lab.pairs[0].peer.send_stats(&ViewerStats::default());
        lab.drain_peer(0);
        lab.run_for(ms(50));
    }
    assert!(lab.pairs[0].peer.is_connected());
}
