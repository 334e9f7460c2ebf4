//! Two equals on one connection: pictures, sound and data both ways, and offers of both at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lightpipe_media::{AccessUnit, AudioPacket, MediaClock, Size, Stages, VideoCodec};
use lightpipe_rtc::{
    ChannelError, ChannelEvent, ChannelInit, Delivery, Identity, Input, MAX_BUFFERED, MAX_MESSAGE_LEN, Message, Output,
    Peer, PeerConfig, PeerEvent, Published, Tracks,
};

use crate::lab::{ms, secs};

/// One way, in which nothing is lost.
const DELAY: Duration = Duration::from_millis(10);

struct Side {
    peer: Peer,
    address: SocketAddr,
    wake_at: Instant,
    events: Vec<PeerEvent>,
    channels: Vec<ChannelEvent>,
    pictures: Vec<Arc<AccessUnit>>,
    sound: usize,
}

struct Pair {
    now: Instant,
    clock: MediaClock,
    sides: [Side; 2],
    mail: Vec<(Instant, usize, Vec<u8>)>,
}

fn channels() -> [ChannelInit; 2] {
    [
        ChannelInit::new("chat").negotiated(100),
        ChannelInit::new("game").negotiated(102).unordered().with_delivery(Delivery::MaxRetransmits(0)),
    ]
}

const TRACKS: Tracks = Tracks { video: Some(VideoCodec::H264), audio: true };

impl Pair {
    fn new(tracks: [Tracks; 2]) -> Self {
        let now = Instant::now() + secs(10);
        let clock = MediaClock::new(now, SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + secs(10));
        let address = |n: u8| SocketAddr::from(([192, 0, 2, n], 5000));
        let config = |n: u8| PeerConfig {
            clock,
            identity: Identity::generate(),
            addresses: vec![address(n)],
            estimate_bandwidth: true,
            desired_bitrate_bps: 1_000_000,
            playout_delay_max: ms(500),
        };
        let (mut one, offer) = Peer::offer_mutual(config(1), tracks[0], &channels(), now).unwrap();
        let (two, answer) = Peer::answer_mutual(config(2), &offer, tracks[1], &channels(), now).unwrap();
        one.accept_answer(&answer, now).unwrap();
        let side = |(peer, n): (Peer, u8)| Side {
            peer,
            address: address(n),
            wake_at: now,
            events: Vec::new(),
            channels: Vec::new(),
            pictures: Vec::new(),
            sound: 0,
        };
        Self { now, clock, sides: [(one, 1), (two, 2)].map(side), mail: Vec::new() }
    }

    fn drain(&mut self, who: usize) {
        let Self { now, sides, mail, .. } = self;
        let side = &mut sides[who];
        loop {
            match side.peer.poll(*now) {
                Output::Send { payload, .. } => mail.push((*now + DELAY, 1 - who, payload)),
                Output::Event(event) => side.events.push(event),
                Output::WakeAt(at) => {
                    side.wake_at = at.max(*now + Duration::from_micros(1));
                    break;
                }
            }
        }
        while let Some(published) = side.peer.take_published() {
            match published {
                Published::Picture { unit, .. } => side.pictures.push(unit),
                Published::Sound(_) => side.sound += 1,
            }
        }
        side.channels.extend(std::iter::from_fn(|| side.peer.take_channel_event()));
    }

    fn give(&mut self, who: usize, input: Input<'_>) {
        let now = self.now;
        self.sides[who].peer.handle(now, input).unwrap();
        self.drain(who);
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let arrival = self.mail.iter().map(|(at, ..)| *at).min();
            let next = self.sides.iter().map(|side| side.wake_at).chain(arrival).min().unwrap();
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let now = self.now;
            let (due, later): (Vec<_>, Vec<_>) = self.mail.drain(..).partition(|(at, ..)| *at <= now);
            self.mail = later;
            for (_, to, payload) in due {
                let (from, to_address) = (self.sides[1 - to].address, self.sides[to].address);
                self.give(to, Input::Datagram { from, to: to_address, payload: &payload });
            }
            for who in 0..2 {
                if self.sides[who].wake_at <= now {
                    self.give(who, Input::Tick);
                }
            }
        }
    }

    /// A picture and two frames of sound from each, for so many fifteenths of a second.
    fn send_media(&mut self, pictures: usize) {
        for number in 0..pictures {
            for who in 0..2 {
                let at = self.clock.at(self.now);
                let keyframe = number == 0;
                // Parameter sets of 1280×720, and a slice without zeros.
                let mut data = Vec::new();
                if keyframe {
                    data.extend_from_slice(&[
                        0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00,
                    ]);
                    data.extend_from_slice(&[0xf0, 0x88, 0x46, 0xa0]);
                    data.extend_from_slice(&[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80]);
                }
                data.extend_from_slice(&[0, 0, 0, 1, if keyframe { 0x65 } else { 0x41 }, 0x88]);
                data.extend(std::iter::repeat_n(7 + who as u8, 1500));
                let size = Size::new(1280, 720);
                let unit = AccessUnit::new(VideoCodec::H264, data, at, keyframe, size, Stages::all_at(at));
                self.give(who, Input::Media(&Arc::new(unit)));
                for frame in 0..2 {
                    let captured = at + ms(20 * frame);
                    let data: Arc<[u8]> = vec![0xfc; 80].into();
                    let packet = AudioPacket {
                        data,
                        captured,
                        duration: ms(20),
                        encoded: at,
                        starts_talkspurt: number == 0,
                        origin: None,
                    };
                    self.give(who, Input::Audio(&Arc::new(packet)));
                }
            }
            self.run(ms(66));
        }
    }

    fn send(&mut self, who: usize, label: &str, message: Message) -> Result<usize, ChannelError> {
        let sent = self.sides[who].peer.send_message(label, message);
        self.drain(who);
        sent
    }

    /// Messages that one side got on a channel.
    fn got(&self, who: usize, on: &str) -> Vec<Message> {
        let on_it = |event: &ChannelEvent| match event {
            ChannelEvent::Message { label, message } if label == on => Some(message.clone()),
            _ => None,
        };
        self.sides[who].channels.iter().filter_map(on_it).collect()
    }
}

#[test]
fn pictures_and_sound_go_both_ways() {
    let mut pair = Pair::new([TRACKS, TRACKS]);
    pair.run(secs(2));
    pair.send_media(30);
    pair.run(secs(1));
    for (who, side) in pair.sides.iter().enumerate() {
        assert!(side.events.contains(&PeerEvent::Connected), "{:?}", side.events);
        assert_eq!((side.pictures.len(), side.sound), (30, 60));
        assert!(side.pictures.iter().all(|unit| unit.data.ends_with(&[8 - who as u8; 9])), "those of the other one");
        assert_eq!(side.peer.received().unwrap().undecodable, 0);
    }
}

#[test]
fn who_has_nothing_to_send_only_receives() {
    let mut pair = Pair::new([Tracks { video: None, audio: false }, TRACKS]);
    pair.run(secs(2));
    pair.send_media(10);
    pair.run(secs(1));
    assert_eq!((pair.sides[0].pictures.len(), pair.sides[1].pictures.len()), (10, 0));
    assert_eq!((pair.sides[0].sound, pair.sides[1].sound), (20, 0));
}

#[test]
fn messages_arrive_whole_and_in_order_and_a_slow_network_is_told() {
    let mut pair = Pair::new([TRACKS, TRACKS]);
    assert_eq!(pair.send(0, "chat", Message::Text("early".into())), Err(ChannelError::NotOpen("chat".into())));
    assert_eq!(pair.send(0, "nobody", Message::Text("x".into())), Err(ChannelError::NoSuchChannel("nobody".into())));
    pair.run(secs(2));
    for side in &pair.sides {
        for label in ["chat", "game"] {
            assert!(side.channels.contains(&ChannelEvent::Open { label: label.into() }), "{:?}", side.channels);
        }
    }
    let long = Message::Binary(vec![1; MAX_MESSAGE_LEN + 1]);
    assert_eq!(pair.send(0, "chat", long), Err(ChannelError::TooLarge { len: MAX_MESSAGE_LEN + 1 }));
    let message = |n: u32| Message::Binary([n.to_be_bytes().as_slice(), &vec![0; 16 << 10]].concat());
    let mut sent = 0;
    let refused = loop {
        match pair.send(0, "chat", message(sent)) {
            Ok(buffered) => assert!(buffered <= MAX_BUFFERED),
            Err(refused) => break refused,
        }
        sent += 1;
    };
    assert!(
        matches!(refused, ChannelError::Full { buffered, .. } if buffered > MAX_BUFFERED - (17 << 10)),
        "{refused}"
    );
    pair.send(0, "game", Message::Text("ä".into())).unwrap();
    pair.send(1, "chat", Message::Text("back".into())).unwrap();
    pair.run(secs(20));
    assert_eq!(pair.got(1, "chat"), (0..sent).map(message).collect::<Vec<_>>());
    assert_eq!(pair.got(1, "game"), [Message::Text("ä".into())]);
    assert_eq!(pair.got(0, "chat"), [Message::Text("back".into())]);
    let low = |event: &&ChannelEvent| **event == ChannelEvent::Low { label: "chat".into() };
    assert_eq!(pair.sides[0].channels.iter().filter(low).count(), 1);
    assert_eq!(pair.sides[0].peer.buffered_amount("chat"), 0);

    // One more, of which the other side is told; and what cannot be opened.
    pair.sides[1].peer.open_channel(ChannelInit::new("score")).unwrap();
    let taken = pair.sides[1].peer.open_channel(ChannelInit::new("other").negotiated(100));
    assert_eq!(taken, Err(ChannelError::Taken("other".into())));
    let bad = pair.sides[1].peer.open_channel(ChannelInit::new("lightpipe"));
    assert_eq!(bad, Err(ChannelError::BadLabel("lightpipe".into())));
    pair.drain(1);
    pair.run(secs(1));
    pair.send(0, "score", Message::Text("1:0".into())).unwrap();
    pair.run(secs(1));
    assert_eq!(pair.got(1, "score"), [Message::Text("1:0".into())]);
    pair.sides[0].peer.close_channel("score", "enough");
    pair.drain(0);
    pair.run(secs(1));
    let closed = ChannelEvent::Closed { label: "score".into(), reason: None };
    assert!(pair.sides[1].channels.contains(&closed), "{:?}", pair.sides[1].channels.last());
}

#[test]
fn ice_restarts_and_of_two_offers_at_once_one_stands() {
    let mut pair = Pair::new([TRACKS, TRACKS]);
    pair.run(secs(2));
    pair.send_media(5);
    let impolite = pair.sides[0].peer.restart_offer().unwrap();
    let polite = pair.sides[1].peer.restart_offer().unwrap();
    assert!(polite.contains("a=ice-ufrag:"));
    // The polite side steps back; what it offered is over, and an answer to it is nobody's.
    let answer = pair.sides[1].peer.reoffer(&impolite).unwrap();
    pair.drain(1);
    let now = pair.now;
    assert!(pair.sides[1].peer.accept_answer(&answer, now).is_err());
    pair.sides[0].peer.accept_answer(&answer, now).unwrap();
    pair.drain(0);
    pair.run(secs(3));
    let before: Vec<usize> = pair.sides.iter().map(|side| side.pictures.len()).collect();
    pair.send_media(15);
    pair.run(secs(1));
    for (side, before) in pair.sides.iter().zip(before) {
        assert!(side.pictures.len() >= before + 14, "{} after {before}", side.pictures.len());
        assert!(!side.events.iter().any(|event| matches!(event, PeerEvent::Closed(_))), "{:?}", side.events);
    }
}
