//! When the packets of a picture leave.

use std::time::{Duration, Instant};

use lightpipe_media::MediaTime;
use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, Pair, ms, secs};

/// A picture as it left.
struct Sent {
    published: Instant,
    keyframe: bool,
    /// When each batch left, and its packets.
    batches: Vec<(Instant, usize)>,
}

impl Sent {
    /// From its publication to its last packet.
    fn took(&self) -> Duration {
        self.batches.last().unwrap().0 - self.published
    }
}

fn sent(lab: &Lab, pair: &Pair) -> Vec<Sent> {
    let mut pictures: Vec<(u32, Vec<(Instant, usize)>)> = Vec::new();
    for packet in &pair.rtp {
        if pictures.last().is_none_or(|(timestamp, _)| *timestamp != packet.timestamp) {
            pictures.push((packet.timestamp, Vec::new()));
        }
        let (_, batches) = pictures.last_mut().unwrap();
        match batches.last_mut().filter(|(at, _)| *at == packet.at) {
            Some((_, packets)) => *packets += 1,
            None => batches.push((packet.at, 1)),
        }
    }
    // The last sent picture ties RTP time to capture time.
    let (rtp, captured) = pair.peer.last_capture().unwrap();
    let published = pictures.into_iter().map(|(timestamp, batches)| {
        let before = Duration::from_nanos(u64::from(rtp.wrapping_sub(timestamp)) * 1_000_000_000 / 90_000);
        let near: MediaTime = captured - before;
        let (_, (at, unit)) = lab.published.range(near - ms(1)..near + ms(1)).next().unwrap();
        Sent { published: *at, keyframe: unit.keyframe, batches }
    });
    published.collect()
}

#[test]
fn keyframe_of_ninety_kilobytes_is_spread_and_ordinary_pictures_leave_whole() {
    for (fps, estimate) in [(30, false), (60, false), (30, true)] {
        let link = LinkConfig::default().with_delay_millis(5);
        let mut lab = Lab::seeded(1).with_fps(fps);
        lab.config.estimate_bandwidth = estimate;
        lab.encoder.idr_len = Some(90_000);
        let viewer = lab.join(link.clone(), link);
        // The pacer knows the frame interval after some pictures, so the keyframe looked at is a later one.
        lab.connect();
        lab.run_for(secs(3));
        let sub = lab.join(LinkConfig::default(), LinkConfig::default());
        lab.run_until(secs(2), |lab| lab.pairs[sub].pictures.len() > 10);
        lab.encoder.paused = true;
        lab.run_for(ms(200));
        let sent = sent(&lab, &lab.pairs[viewer]);
        let interval = Duration::from_secs(1) / fps;
        let idr = sent.iter().rev().find(|picture| picture.keyframe).unwrap();
        let (took, batches) = (idr.took(), idr.batches.len());
        println!("{fps} fps, estimation {estimate}: 90 kB in {batches} batches over {took:?}");
        assert!(idr.published > lab.base + secs(2), "a second keyframe, for the second viewer");
        assert!((4..=8).contains(&batches), "{:?}", idr.batches);
        assert!(took <= interval / 2 + ms(1), "{took:?}");
        let learned = lab.base + secs(1)..idr.published;
        let ordinary = sent.iter().filter(|picture| !picture.keyframe && learned.contains(&picture.published));
        let count = ordinary.clone().count();
        assert!(count > 30, "{count} ordinary pictures");
        for picture in ordinary {
            assert_eq!(picture.batches.len(), 1, "{:?}", picture.batches);
            assert!(picture.took() < ms(1));
        }
    }
}

/// Pictures of 8 Mbit/s are longer than a batch; they must not fall behind, and not wait either.
#[test]
fn pictures_of_a_high_rate_leave_within_half_an_interval() {
    let mut lab = Lab::seeded(2);
    lab.encoder.bitrate_bps = 8_000_000;
    let link = LinkConfig::default().with_delay_millis(5);
    let viewer = lab.join(link.clone(), link);
    lab.connect();
    lab.run_for(secs(5));
    let sent = sent(&lab, &lab.pairs[viewer]);
    let worst = sent.iter().filter(|picture| !picture.keyframe).map(Sent::took).max().unwrap();
    println!("8 Mbit/s: the slowest ordinary picture took {worst:?}");
    assert!(worst <= ms(17), "{worst:?}");
    assert_eq!(lab.pairs[viewer].peer.counters().dropped_backlog, 0);
}
