//! The sender's estimate of what a viewer's network carries.

use std::time::Duration;

use lightpipe_rtc::PeerEvent;
use lightpipe_testkit::netlab::{LinkConfig, QueueLimit};

use crate::lab::{Lab, Pair, ms, secs};

/// Estimates after `from` seconds of the run.
fn estimates(lab: &Lab, pair: &Pair, from: Duration) -> Vec<u64> {
    let wanted = pair.events.iter().filter(|(at, _)| *at - lab.base >= from);
    wanted.filter_map(|(_, event)| if let PeerEvent::Estimate(bps) = event { Some(*bps) } else { None }).collect()
}

/// Trap: bandwidth estimation switched on but never given a desired rate sends one third of the frames.
#[test]
fn estimation_on_a_clean_network_costs_no_picture() {
    for (seed, bitrate, delay) in [(1, 2_500_000, 2), (2, 2_500_000, 0), (3, 400_000, 2), (4, 2_500_000, 40)] {
        let link = LinkConfig::default().with_delay_millis(delay).with_rate_bps(100_000_000);
        let mut lab = Lab::seeded(seed).with_estimation();
        lab.encoder.bitrate_bps = bitrate;
        let viewer = lab.join(link.clone(), link);
        lab.connect();
        lab.run_for(secs(60));
        lab.encoder.paused = true;
        lab.run_for(ms(500));
        let pair = &lab.pairs[viewer];
        let (all, late) = (estimates(&lab, pair, Duration::ZERO), estimates(&lab, pair, secs(5)));
        let counters = pair.peer.counters();
        let lowest = late.iter().min().copied().or(counters.estimate_bps).unwrap();
        let enough =
            pair.events.iter().find(|(_, event)| matches!(event, PeerEvent::Estimate(bps) if *bps >= 2_250_000));
        let after = enough.map(|(at, _)| *at - pair.events[0].0);
        println!(
            "100 Mbit/s, {delay} ms, encoder {bitrate}: {} of {} pictures sent, {} whole; 90 % of desired after {after:?}, {} estimates, lowest {:?}, lowest after 5 s {lowest}, last {:?}",
            counters.sent_frames,
            pair.offered,
            pair.pictures.len(),
            all.len(),
            all.iter().min(),
            counters.estimate_bps,
        );
        assert!(pair.offered - counters.sent_frames <= 1 && counters.dropped_backlog == 0, "{counters:?}");
        assert_eq!(pair.pictures.len() as u64, counters.sent_frames);
        assert!(after.is_some_and(|after| after < secs(1)), "90 % of the desired rate after {after:?}");
        assert!(lowest >= 2_250_000, "the estimate fell to {lowest}");
    }
}

/// With jitter as on a Wi-Fi, an estimate below the stream's rate would make the picture worse for nothing.
#[test]
fn jitter_alone_does_not_starve_the_stream() {
    for seed in 1..=3 {
        let down = LinkConfig::default().with_delay_millis(8).with_jitter_millis(6).with_rate_bps(30_000_000);
        let mut lab = Lab::seeded(seed).with_estimation();
        let viewer = lab.join(down.clone(), down);
        lab.connect();
        lab.run_for(secs(40));
        let pair = &lab.pairs[viewer];
        let late = estimates(&lab, pair, secs(5));
        let lowest = late.iter().min().copied().or_else(|| pair.peer.counters().estimate_bps).unwrap();
        println!(
            "jitter, seed {seed}: lowest after 5 s {lowest}, {} of {} pictures",
            pair.pictures.len(),
            pair.offered
        );
        assert!(lowest >= 2_000_000, "the estimate fell to {lowest}");
        assert!(pair.pictures.len() as u64 + 3 >= pair.offered);
    }
}

/// Without feedback the engine's estimator wants to be woken once per round trip: on loopback that was a busy loop.
#[test]
fn idle_viewer_on_loopback_lets_the_thread_sleep() {
    let mut lab = Lab::seeded(6).with_estimation();
    let viewer = lab.join(LinkConfig::default(), LinkConfig::default());
    lab.connect();
    lab.run_for(secs(5));
    let playing = std::mem::take(&mut lab.pairs[viewer].ticks);
    lab.encoder.paused = true;
    lab.run_for(secs(5));
    let idle = lab.pairs[viewer].ticks;
    println!("wake-ups in 5 s: playing {playing}, idle {idle}");
    assert!(playing <= 5 * 450 && idle <= 5 * 450, "{playing} {idle}");
}

#[test]
fn encoder_that_follows_the_estimate_empties_a_slow_links_queue() {
    for seed in 1..=3 {
        let slow =
            LinkConfig::default().with_delay_millis(20).with_rate_bps(1_000_000).with_queue(QueueLimit::Time(ms(300)));
        let mut lab = Lab::seeded(seed).with_estimation();
        lab.encoder.follow = Some(0.85);
        let viewer = lab.join(slow, LinkConfig::default().with_delay_millis(20));
        lab.connect();
        lab.run_for(secs(40));
        let pair = &lab.pairs[viewer];
        let below = |from: u64| pair.queue_delay.range(from..40).filter(|(_, worst)| **worst < ms(150)).count();
        let calm = (0..40).find(|second| below(*second) as u64 == 40 - second);
        let last: Vec<_> = pair.pictures.iter().filter(|p| p.completed - lab.base > secs(20)).collect();
        let worst: Vec<u128> = pair.queue_delay.values().map(Duration::as_millis).collect();
        println!(
            "1 Mbit/s, seed {seed}: queue below 150 ms for good after {calm:?} s; worst per second {worst:?} ms; encoder at {} bit/s; {} pictures in the last 20 s; overflowed {}, backlog drops {}",
            lab.encoder.bitrate_bps,
            last.len(),
            pair.down.counters().overflowed,
            pair.peer.counters().dropped_backlog,
        );
        let returned = pair
            .queue_delay
            .iter()
            .find(|(second, worst)| **second > 0 && **worst < ms(150))
            .map(|(second, _)| *second);
        assert!(returned.is_some_and(|second| second <= 5), "below 150 ms for the first time after {returned:?} s");
        // Probing for more fills it again for a moment, now and then.
        assert!(below(10) >= 22, "below 150 ms in {} of the last 30 seconds", below(10));
        assert!(pair.queue_delay.range(5..).all(|(_, worst)| *worst < ms(290)), "full again");
        assert!(last.len() >= 570, "{} pictures of 600", last.len());
        assert!(lab.encoder.bitrate_bps >= 350_000, "the encoder is down at {}", lab.encoder.bitrate_bps);
    }
}

/// The estimator is made to begin again after a collapse; on a path that is really narrow that must stay rare.
#[test]
fn narrow_path_is_not_overrun_by_doubts() {
    let narrow =
        LinkConfig::default().with_delay_millis(30).with_rate_bps(300_000).with_queue(QueueLimit::Time(ms(400)));
    let mut lab = Lab::seeded(7).with_estimation();
    lab.encoder.follow = Some(0.85);
    let viewer = lab.join(narrow, LinkConfig::default().with_delay_millis(30));
    lab.connect();
    lab.run_for(secs(20));
    let before = lab.pairs[viewer].down.counters();
    let pictures = lab.pairs[viewer].pictures.len();
    lab.run_for(secs(60));
    let pair = &lab.pairs[viewer];
    let after = pair.down.counters();
    let lost = (after.overflowed - before.overflowed) as f64 / (after.sent - before.sent) as f64;
    let full = pair.queue_delay.range(20..).filter(|(_, worst)| **worst > ms(300)).count();
    println!(
        "300 kbit/s: {:.1} % lost, queue over 300 ms in {full} of 60 s, {} of 1800 pictures",
        lost * 100.0,
        pair.pictures.len() - pictures
    );
    assert!(lost < 0.05 && full <= 15, "{lost} {full}");
    assert!(pair.pictures.len() - pictures > 1_500);
}

#[test]
fn estimate_recovers_when_the_network_does() {
    let fast = LinkConfig::default().with_delay_millis(15).with_rate_bps(20_000_000);
    let slow = fast.clone().with_rate_bps(1_000_000).with_queue(QueueLimit::Time(ms(300)));
    let mut lab = Lab::seeded(5).with_estimation();
    lab.encoder.follow = Some(0.85);
    let viewer = lab.join(fast.clone(), fast.clone());
    lab.connect();
    lab.run_for(secs(10));
    let before = lab.encoder.bitrate_bps;
    lab.pairs[viewer].down.reconfigure(lab.now, slow);
    lab.run_for(secs(15));
    let during = lab.encoder.bitrate_bps;
    lab.pairs[viewer].down.reconfigure(lab.now, fast);
    let took = lab.run_until(secs(60), |lab| lab.encoder.bitrate_bps >= 1_900_000);
    println!("encoder before {before}, on 1 Mbit/s {during}, back at 1.9 Mbit/s after {took:?}");
    assert!(before >= 1_900_000, "{before}");
    assert!(during <= 1_000_000, "{during}");
    assert!(took < secs(30), "{took:?}");
}
