//! Authenticated peers that send what they should not: what is refused is counted, and what comes after it is taken.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lightpipe_media::{AccessUnit, MediaTime, Size, Stages, VideoCodec};
use lightpipe_rtc::{Output, Published, Publisher};
use str0m::change::SdpAnswer;
use str0m::media::{Direction, KeyframeRequestKind, MediaKind, Mid, Rid, Simulcast, SimulcastLayer};
use str0m::net::{Protocol, Receive};
use str0m::rtp::{RtpWrite, Ssrc};
use str0m::{Candidate, Input, Rtc};

use crate::lab::{Lab, ms, secs, server};
use crate::raw::RawConfig;

const PT: u8 = 96;

/// A publisher on the bare engine, and our end of its session, on a perfect network.
struct Session {
    now: Instant,
    sender: Rtc,
    mid: Mid,
    address: SocketAddr,
    publisher: Publisher,
    seq_nos: HashMap<Ssrc, u64>,
    timestamp: u32,
    pictures: u64,
    /// Of each layer, where there are any.
    of_layers: [u64; 3],
    /// RTP packets that are lost next.
    losing: usize,
}

impl Session {
    fn connected() -> Self {
        Self::with_layers(&[])
    }

    fn with_layers(rids: &[&str]) -> Self {
        let lab = Lab::seeded(81);
        let now = lab.now;
        let address: SocketAddr = "198.51.100.9:40000".parse().unwrap();
        let mut config = Rtc::builder().set_rtp_mode(true).clear_codecs();
        config.codec_config().add_h264(PT.into(), Some((PT + 1).into()), true, 0x42_e01f);
        let mut sender = config.build(now);
        sender.add_local_candidate(Candidate::host(address, Protocol::Udp).unwrap());
        let mut change = sender.sdp_api();
        let mut simulcast = Simulcast::new();
        rids.iter().for_each(|rid| simulcast.add_send_layer(SimulcastLayer::new(rid)));
        let simulcast = (!rids.is_empty()).then_some(simulcast);
        let mid = change.add_media(MediaKind::Video, Direction::SendOnly, None, None, simulcast);
        let (offer, pending) = change.apply().unwrap();
        let (publisher, answer) = Publisher::answer(lab.config.clone(), &offer.to_sdp_string(), None, now).unwrap();
        sender.sdp_api().accept_answer(pending, SdpAnswer::from_sdp_string(&answer).unwrap()).unwrap();
        let mut session = Self {
            now,
            sender,
            mid,
            address,
            publisher,
            seq_nos: HashMap::new(),
            timestamp: 7,
            pictures: 0,
            of_layers: [0; 3],
            losing: 0,
        };
        for _ in 0..500 {
            session.step();
        }
        assert!(session.publisher.is_connected());
        session
    }

    /// A millisecond, and everything that is due in it.
    fn step(&mut self) {
        self.now += ms(1);
        self.sender.handle_input(Input::Timeout(self.now)).unwrap();
        _ = self.publisher.tick(self.now);
        loop {
            let up = self.drain_sender();
            let down = self.drain_publisher();
            if up.is_empty() && down.is_empty() {
                break;
            }
            for datagram in up {
                let is_rtp = matches!(datagram[..], [128..=191, second, ..] if !(192..224).contains(&second));
                if is_rtp && self.losing > 0 {
                    self.losing -= 1;
                    continue;
                }
                _ = self.publisher.handle(self.now, self.address, server(), &datagram);
            }
            for datagram in down {
                let receive = Receive::new(Protocol::Udp, server(), self.address, &datagram).unwrap();
                let input = Input::Receive(self.now, receive);
                if self.sender.accepts(&input) {
                    self.sender.handle_input(input).unwrap();
                }
            }
        }
        while let Some(published) = self.publisher.take() {
            if let Published::Picture { layer, .. } = published {
                self.pictures += 1;
                self.of_layers[layer] += 1;
            }
        }
    }

    fn drain_sender(&mut self) -> VecDeque<Vec<u8>> {
        let mut out = VecDeque::new();
        loop {
            match self.sender.poll_output().unwrap() {
                str0m::Output::Transmit(t) => out.push_back(t.contents.into()),
                str0m::Output::Event(_) => {}
                str0m::Output::Timeout(_) => return out,
            }
        }
    }

    fn drain_publisher(&mut self) -> VecDeque<Vec<u8>> {
        let mut out = VecDeque::new();
        loop {
            match self.publisher.poll(self.now) {
                Output::Send { payload, .. } => out.push_back(payload),
                Output::Event(event) => assert!(!matches!(event, lightpipe_rtc::PeerEvent::Closed(_)), "{event:?}"),
                Output::WakeAt(_) => return out,
            }
        }
    }

    fn ssrc(&mut self) -> Ssrc {
        self.ssrc_of(None)
    }

    fn ssrc_of(&mut self, rid: Option<&str>) -> Ssrc {
        self.sender.direct_api().stream_tx_by_mid(self.mid, rid.map(Rid::from)).unwrap().ssrc()
    }

    /// Sends one packet, and lets it arrive.
    fn send(&mut self, ssrc: Ssrc, payload: Arc<[u8]>, marker: bool) {
        let mut direct = self.sender.direct_api();
        let stream = direct.stream_tx(&ssrc).unwrap();
        let seq_no = self.seq_nos.entry(ssrc).or_insert(100);
        stream.write_rtp(
            RtpWrite::new(PT.into(), (*seq_no).into(), self.timestamp, self.now, payload).marker(marker).nackable(true),
        );
        *seq_no += 1;
        self.step();
    }

    /// Sends a whole picture.
    fn send_picture(&mut self, ssrc: Ssrc, keyframe: bool) {
        let sps = [0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x88, 0x46, 0xa0];
        let mut data = Vec::new();
        let nals: &[&[u8]] = if keyframe {
            &[&sps, &[0x68, 0xce, 0x3c, 0x80], &[0x65, 0x88, 0x84, 1, 2, 3]]
        } else {
            &[&[0x41, 0x9a, 1, 2, 3]]
        };
        for nal in nals {
            data.extend_from_slice(&[0, 0, 0, 1]);
            data.extend_from_slice(nal);
            data.extend(std::iter::repeat_n(7, 1500));
        }
        let at = MediaTime::ZERO;
        let unit = AccessUnit::new(VideoCodec::H264, data, at, keyframe, Size::new(1280, 720), Stages::all_at(at));
        let all = unit.rtp_payloads();
        let payloads: Vec<Arc<[u8]>> = (0..all.len()).filter_map(|n| all.get(n).cloned()).collect();
        let last = payloads.len() - 1;
        self.timestamp = self.timestamp.wrapping_add(3000);
        for (index, payload) in payloads.into_iter().enumerate() {
            self.send(ssrc, payload, index == last);
        }
    }
}

#[test]
fn payloads_of_every_wrong_kind_cost_their_picture_and_nothing_else() {
    let mut session = Session::connected();
    let ssrc = session.ssrc();
    session.send_picture(ssrc, true);
    session.send_picture(ssrc, false);
    assert_eq!(session.pictures, 2);
    let mut random = Rng::with_seed(4);
    for n in 0..400u32 {
        // FU-A without its start, aggregates that run out, reserved types, single bytes, noise.
        let mut payload: Vec<u8> = (0..random.usize(1..60)).map(|_| random.u8(..)).collect();
        payload[0] = match n % 5 {
            0 => 28,
            1 => 24,
            2 => 30,
            3 => 0,
            _ => payload[0],
        };
        session.timestamp = session.timestamp.wrapping_add(3000);
        session.send(ssrc, payload.into(), random.bool());
    }
    let counters = session.publisher.counters();
    assert!(counters.undecodable > 100, "{counters:?}");
    assert!(counters.keyframe_requests >= 1, "it asks for a keyframe: {counters:?}");
    let before = session.pictures;
    session.send_picture(ssrc, true);
    session.send_picture(ssrc, true);
    session.send_picture(ssrc, false);
    assert!(session.pictures >= before + 2, "{} after {before}", session.pictures);
}

#[test]
fn another_ssrc_on_the_same_line_begins_anew() {
    let mut session = Session::connected();
    let first = session.ssrc();
    session.send_picture(first, true);
    session.send_picture(first, false);
    let (second, rtx) = (Ssrc::from(4_000_000_001), Ssrc::from(4_000_000_002));
    let mid = session.mid;
    // The sending engine serves one stream of a line, whichever it finds first.
    session.sender.direct_api().remove_stream_tx(first);
    session.sender.direct_api().declare_stream_tx(second, Some(rtx), mid, None);
    session.seq_nos.insert(second, 1000);
    session.timestamp = 99;
    // Its pictures depend on one that nobody has, until a keyframe comes.
    session.send_picture(second, false);
    assert_eq!(session.pictures, 2);
    session.send_picture(second, true);
    session.send_picture(second, false);
    for _ in 0..500 {
        session.step();
    }
    assert_eq!(session.pictures, 4, "{:?}", session.publisher.counters());
}

/// A publisher that restarts the encoder of one layer: nothing but the RID says where its packets belong.
#[test]
fn another_ssrc_of_a_rid_begins_its_layer_anew() {
    const RIDS: [&str; 3] = ["f", "h", "q"];
    let mut session = Session::with_layers(&RIDS);
    assert_eq!(session.publisher.offered().layers, RIDS);
    for rid in RIDS {
        let ssrc = session.ssrc_of(Some(rid));
        session.send_picture(ssrc, true);
        session.send_picture(ssrc, false);
    }
    assert_eq!(session.of_layers, [2, 2, 2]);
    let (first, mid) = (session.ssrc_of(Some("h")), session.mid);
    let (second, rtx) = (Ssrc::from(4_000_000_001), Ssrc::from(4_000_000_002));
    let mut direct = session.sender.direct_api();
    direct.remove_stream_tx(first);
    direct.declare_stream_tx(second, Some(rtx), mid, Some("h".into()));
    (session.timestamp, _) = (99, session.seq_nos.insert(second, 40_000));
    // Its pictures depend on one that nobody has, until a keyframe comes; those of the others depend on nothing new.
    for (rid, expected) in [("h", [2, 2, 2]), ("f", [3, 2, 2]), ("q", [3, 2, 3])] {
        let ssrc = session.ssrc_of(Some(rid));
        session.send_picture(ssrc, false);
        assert_eq!(session.of_layers, expected, "{rid}");
    }
    session.send_picture(second, true);
    session.send_picture(second, false);
    assert_eq!(session.of_layers, [3, 4, 3]);

    // What is lost of it is sent again on its own new SSRC.
    session.losing = 1;
    session.send_picture(second, false);
    assert_eq!(session.of_layers, [3, 4, 3]);
    for _ in 0..300 {
        session.step();
    }
    assert_eq!(session.of_layers, [3, 5, 3], "{:?}", session.publisher.counters());
    let counters = session.publisher.received().into_iter().map(|layer| layer.counters).collect::<Vec<_>>();
    assert_eq!(counters.iter().map(|c| c.ssrc_changes).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(counters.iter().map(|c| c.lost_packets).sum::<u64>(), 0, "{counters:?}");
    assert_eq!(session.publisher.counters().unknown_packets, 0);
}

#[test]
fn a_flood_of_keyframe_requests_costs_few_keyframes() {
    let mut lab = Lab::seeded(82);
    lab.join(Default::default(), Default::default());
    let flooding = lab.join_raw(&RawConfig::default(), Default::default(), Default::default());
    lab.connect();
    lab.run_for(secs(1));
    let (quiet, keyframes) = (lab.pairs[0].pictures.len(), keyframes(&lab));
    for _ in 0..2000 {
        lab.pairs[flooding].viewer.raw().request_keyframe(KeyframeRequestKind::Pli);
        lab.drain_viewer(flooding);
        lab.run_for(Duration::from_millis(1));
    }
    let extra = self::keyframes(&lab) - keyframes;
    assert!((1..=8).contains(&extra), "{extra} keyframes in two seconds: one per holdoff");
    assert!(lab.pairs[0].pictures.len() >= quiet + 58, "the other viewer sees every picture");
    assert!(lab.pairs[flooding].peer.is_connected());
}

fn keyframes(lab: &Lab) -> usize {
    lab.published.values().filter(|(_, unit)| unit.keyframe).count()
}
