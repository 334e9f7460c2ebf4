//! What goes over a clean network: timestamps, markers, reports, extensions.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, Rtp, ms, secs};
use crate::raw::{ABS_CAPTURE_TIME_ID, PLAYOUT_DELAY_ID, RawConfig};

fn lan() -> LinkConfig {
    LinkConfig::default().with_delay_millis(2)
}

/// Media packets by RTP timestamp, in sending order.
fn by_picture(rtp: &[Rtp]) -> Vec<Vec<&Rtp>> {
    let media_pt = rtp[0].payload_type;
    let mut pictures: Vec<Vec<&Rtp>> = Vec::new();
    for packet in rtp.iter().filter(|p| p.payload_type == media_pt) {
        match pictures.last_mut() {
            Some(last) if last[0].timestamp == packet.timestamp => last.push(packet),
            _ => pictures.push(vec![packet]),
        }
    }
    pictures
}

/// Traps: one RTP sample per NAL unit; each slice of x264's zerolatency taken for a picture.
#[test]
fn a_picture_of_many_nal_units_has_one_timestamp_and_one_marker() {
    for slices in [1, 4] {
        let mut lab = Lab::seeded(3);
        lab.encoder.slices = slices;
        let viewer = lab.join(lan(), lan());
        lab.connect();
        lab.run_for(secs(10));
        lab.encoder.paused = true;
        lab.run_for(ms(100));
        let pair = &mut lab.pairs[viewer];
        let pictures = by_picture(&pair.rtp);
        assert_eq!(pictures.len() as u64, pair.peer.counters().sent_frames, "one timestamp for each picture");
        for packets in &pictures {
            let (last, before) = packets.split_last().unwrap();
            assert!(
                last.marker && before.iter().all(|p| !p.marker),
                "the marker is on the last packet and nowhere else"
            );
        }
        let sequence: Vec<u16> = pictures.iter().flatten().map(|p| p.seq_no).collect();
        assert!(sequence.windows(2).all(|w| w[1] == w[0].wrapping_add(1)), "sequence numbers count packets");
        let counters = pair.viewer.native().counters();
        assert_eq!((counters.lost_packets, counters.undecodable, counters.keyframe_requests), (0, 0, 0));
        assert_eq!(pair.pictures.len() as u64, pair.peer.counters().sent_frames);
        assert!(pair.offered - pair.peer.counters().sent_frames <= 1, "at most the one before the keyframe");
    }
}

/// Trap: a fixed sample duration of 33 ms makes the RTP clock of a 60 fps source run twice as fast.
#[test]
fn rtp_clock_follows_capture_times_at_every_rate() {
    for fps in [24, 30, 60] {
        let mut lab = Lab::seeded(4).with_fps(fps);
        let viewer = lab.join(lan(), lan());
        lab.connect();
        lab.run_for(secs(20));
        let pictures = &lab.pairs[viewer].pictures;
        let (first, last) = (pictures.first().unwrap(), pictures.last().unwrap());
        let media = f64::from(last.rtp_timestamp.wrapping_sub(first.rtp_timestamp)) / 90_000.0;
        let wall = ((last.completed - last.age) - (first.completed - first.age)).as_secs_f64();
        println!("{fps} fps: {media:.4} s of RTP clock in {wall:.4} s");
        assert!((media / wall - 1.0).abs() < 0.001, "{fps} fps: {media} s of RTP clock in {wall} s");
        let step = 90_000 / fps;
        for pair in pictures.windows(2) {
            let ticks = pair[1].rtp_timestamp.wrapping_sub(pair[0].rtp_timestamp);
            assert!(ticks.abs_diff(step) <= 1, "{fps} fps: a step of {ticks}");
        }
    }
}

/// A source whose rate changes under way keeps its clock.
#[test]
fn rtp_clock_goes_on_when_the_frame_rate_changes() {
    let mut lab = Lab::seeded(4);
    let viewer = lab.join(lan(), lan());
    lab.connect();
    for fps in [60, 24, 15] {
        lab.run_for(secs(2));
        lab.encoder.set_fps(fps);
    }
    lab.run_for(secs(2));
    let pictures = &lab.pairs[viewer].pictures;
    let (first, last) = (pictures.first().unwrap(), pictures.last().unwrap());
    let media = f64::from(last.rtp_timestamp.wrapping_sub(first.rtp_timestamp)) / 90_000.0;
    let wall = ((last.completed - last.age) - (first.completed - first.age)).as_secs_f64();
    assert!((media - wall).abs() < 0.001, "{media} s of RTP clock in {wall} s");
}

/// Trap: RTCP not drained, no sender reports. And the other half: a report that says another time than the pictures.
#[test]
fn sender_reports_agree_with_the_media_clock() {
    let mut lab = Lab::seeded(5);
    lab.encoder.takes = ms(7);
    let viewer = lab.join_raw(&RawConfig::default(), lan(), lan());
    lab.connect();
    lab.run_for(secs(20));
    let (rtp, captured) = lab.pairs[viewer].peer.last_capture().unwrap();
    let clock = lab.clock;
    let mut reports = BTreeMap::new();
    for seen in &lab.pairs[viewer].viewer.raw().seen {
        if let Some(report) = seen.report {
            reports.insert(report.ntp_time, report);
        }
    }
    assert!(reports.len() >= 10, "{} sender reports in 20 s", reports.len());
    let mut worst: f64 = 0.0;
    for (ntp, report) in &reports {
        // Unix time at which, by this report, the last picture was captured.
        let ticks = rtp.wrapping_sub(report.rtp_time.numer() as u32) as i32;
        let by_report = ntp.duration_since(UNIX_EPOCH).unwrap().as_secs_f64() + f64::from(ticks) / 90_000.0;
        let by_clock = clock.unix_micros(captured) as f64 / 1e6;
        worst = worst.max((by_report - by_clock).abs());
        assert!(report.sender_packet_count > 0 && report.sender_octet_count > 0, "{report:?}");
    }
    println!("{} sender reports, worst disagreement {:.3} ms", reports.len(), worst * 1000.0);
    assert!(worst < 0.001, "a sender report is {:.3} ms off", worst * 1000.0);
}

#[test]
fn keyframes_carry_playout_delay_and_capture_time_in_equal_headers() {
    let mut lab = Lab::seeded(6);
    lab.encoder.takes = ms(5);
    let viewer = lab.join_raw(&RawConfig::default(), lan(), lan());
    lab.connect();
    lab.run_for(secs(5));
    lab.encoder.paused = true;
    lab.run_for(ms(100));
    let clock = lab.clock;
    let published: Vec<_> = lab.published.values().map(|(_, unit)| unit.clone()).collect();
    let pair = &mut lab.pairs[viewer];
    let pictures = by_picture(&pair.rtp);
    let sent = &published[published.len() - pictures.len()..];
    let mut extended = 0;
    for (packets, unit) in pictures.iter().zip(sent) {
        let lengths: Vec<usize> = packets.iter().map(|p| p.header_len).collect();
        assert!(lengths.windows(2).all(|w| w[0] == w[1]), "headers of one picture: {lengths:?}");
        let Some(delay) = packets[0].extension(PLAYOUT_DELAY_ID) else {
            assert!(!unit.keyframe, "a keyframe without playout-delay");
            continue;
        };
        extended += 1;
        let (min, max) = (
            u16::from(delay[0]) << 4 | u16::from(delay[1]) >> 4,
            u16::from(delay[1] & 0x0f) << 8 | u16::from(delay[2]),
        );
        assert_eq!((min, max), (0, 50), "hundredths of a second");
        let capture = packets[0].extension(ABS_CAPTURE_TIME_ID).expect("both or none");
        let ntp = u64::from_be_bytes(capture[..8].try_into().unwrap());
        let unix = (ntp >> 32) as f64 - 2_208_988_800.0 + (ntp & 0xffff_ffff) as f64 / 2f64.powi(32);
        assert!((unix - clock.unix_micros(unit.captured) as f64 / 1e6).abs() < 0.0005, "capture time {unix}");
    }
    // On the first keyframe, and each half second.
    assert!((9..=20).contains(&extended), "{extended} pictures with extensions in 5 s");
    let max = pair.viewer.raw().seen.iter().find_map(|s| s.values.play_delay_max).unwrap();
    assert_eq!(Duration::from(max), ms(500));
}

#[test]
fn nothing_is_sent_under_ids_that_were_not_negotiated() {
    let mut lab = Lab::seeded(6);
    let viewer = lab.join_raw(&RawConfig { extensions: false, ..RawConfig::default() }, lan(), lan());
    lab.connect();
    lab.run_for(secs(2));
    let pair = &lab.pairs[viewer];
    assert!(!pair.answer.contains("playout-delay") && !pair.answer.contains("abs-capture-time"), "{}", pair.answer);
    for packet in &pair.rtp {
        for (id, _) in &packet.extensions {
            assert!(pair.answer.contains(&format!("a=extmap:{id} ")), "id {id} is not in the answer");
        }
    }
}

#[test]
fn two_viewers_get_the_same_pictures_under_their_own_numbers() {
    let mut lab = Lab::seeded(9);
    let first = lab.join(lan(), lan());
    lab.run_for(ms(30));
    let second = lab.join(lan(), LinkConfig::default().with_delay_millis(30));
    lab.connect();
    lab.run_for(secs(3));
    let of = |index: usize| lab.pairs[index].pictures.iter().map(|p| p.completed - p.age).collect::<Vec<_>>();
    let (a, b) = (of(first), of(second));
    let shared = &b[..60];
    assert!(a.windows(60).any(|run| run == shared), "sixty pictures in a row that both have");
    assert_ne!(lab.pairs[first].rtp[0].ssrc, lab.pairs[second].rtp[0].ssrc);
}
