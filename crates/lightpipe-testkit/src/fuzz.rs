//! Every parser of bytes from outside, under bytes that no well-meaning program sends.
//!
//! Each [`Target`] is a function over bytes and some valid inputs to start from. `fuzz/` hands it to libFuzzer, which needs
//! a nightly compiler; the smoke test runs it for a moment on each change, with the seeded [`Mutator`] below. A target fails
//! by a panic: the parser's own, or one of the assertions here.

mod rooms;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fastrand::Rng;
use lightpipe_media::access_unit::Stages;
use lightpipe_media::av1::{self, Av1Depacketizer};
use lightpipe_media::container::{self, FragmentLimits, Write};
use lightpipe_media::packetize::{self, Depacketizer};
use lightpipe_media::vp8::{self, Vp8Depacketizer};
use lightpipe_media::vp9::{self, Vp9Depacketizer};
use lightpipe_media::{
    AccessUnit, ArrivalClock, AudioPacket, FramePool, MediaClock, MediaTime, PixelFormat, Size, TrackClock, VideoCodec,
    VideoFrame, annexb, h264, nut, timecode,
};
use lightpipe_rtc::control::FromPage;
use lightpipe_rtc::{Candidate, Identity, Input, Output, Peer, PeerConfig, Publisher, Tracks, demux};
use lightpipe_signal::transfer::{self, Partial, Transfers};
use lightpipe_signal::{Chat, ClientMessage, Conference, SdpFrag, chat, mix, whep};

/// One parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, that of its file in `fuzz/fuzz_targets` too.
    pub name: &'static str,
    /// Runs the parser once.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "annexb", run: annexb, seeds: annexb_seeds },
    Target { name: "nut", run: nut, seeds: nut_seeds },
    Target { name: "offer", run: offer, seeds: offer_seeds },
    Target { name: "candidate", run: candidate, seeds: candidate_seeds },
    Target { name: "sdpfrag", run: sdpfrag, seeds: sdpfrag_seeds },
    Target { name: "message", run: message, seeds: message_seeds },
    Target { name: "jsonrpc", run: jsonrpc, seeds: jsonrpc_seeds },
    Target { name: "rooms", run: |bytes| rooms::run(bytes, CONFIG.1), seeds: rooms::seeds },
    Target { name: "transfer", run: transfer, seeds: transfer_seeds },
    Target { name: "chat", run: chat, seeds: chat_seeds },
    Target { name: "mix", run: mix, seeds: mix_seeds },
    Target { name: "depacketize", run: depacketize, seeds: depacketize_seeds },
    Target { name: "publish", run: publish, seeds: offer_seeds },
    Target { name: "vp8", run: vp8, seeds: vp8_seeds },
    Target { name: "vp9", run: vp9, seeds: vp9_seeds },
    Target { name: "av1", run: av1, seeds: av1_seeds },
    Target { name: "opus", run: opus, seeds: opus_seeds },
    Target { name: "sps", run: sps, seeds: sps_seeds },
    Target { name: "datagram", run: datagram, seeds: datagram_seeds },
    Target { name: "timecode", run: timecode, seeds: timecode_seeds },
    Target { name: "container", run: container, seeds: container_seeds },
];

/// Runs the target of that name once. Panics when there is none.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of that name").run)(bytes);
}

/// What all peers of the targets share; making a certificate for each would be most of the work.
static CONFIG: LazyLock<(PeerConfig, Instant)> = LazyLock::new(|| {
    let now = Instant::now();
    let config = PeerConfig {
        clock: MediaClock::new(now, UNIX_EPOCH.elapsed().unwrap_or_default()),
        identity: Identity::generate(),
        addresses: vec![SocketAddr::from(([192, 0, 2, 1], 8080))],
        estimate_bandwidth: true,
        desired_bitrate_bps: 2_500_000,
        playout_delay_max: Duration::from_millis(500),
    };
    (config, now)
});

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first byte, as a parameter of the run, and the rest.
fn parameter(bytes: &[u8]) -> (usize, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (usize::from(*first), rest))
}

/// An H.264 byte stream in pieces, with and without pauses in between.
fn annexb(bytes: &[u8]) {
    const LIMIT: usize = 4096;
    let (chunk, bytes) = parameter(bytes);
    let mut reader = annexb::Reader::new(LIMIT);
    let mut total = 0;
    let mut pop = |reader: &mut annexb::Reader| {
        while let Some(unit) = reader.pop() {
            // A three-byte start code grows by a byte.
            assert!(unit.data.len() <= LIMIT + 4 && unit.data.starts_with(&h264::START_CODE));
            total += unit.data.len();
        }
    };
    for (index, piece) in bytes.chunks(chunk.max(1)).enumerate() {
        _ = reader.push(piece, MediaTime::from_micros(index as i64 * 1000));
        pop(&mut reader);
        if index % 3 == 2 && reader.patience().is_some() {
            reader.flush_idle();
            pop(&mut reader);
        }
    }
    reader.finish();
    pop(&mut reader);
    assert!(total <= bytes.len() * 4 / 3 + 4, "{total} bytes out of {}", bytes.len());
}

/// A NUT stream in pieces. As it is, and with right checksums: few mutations would get past them.
fn nut(bytes: &[u8]) {
    let (chunk, bytes) = parameter(bytes);
    let read = |bytes: &[u8]| {
        let mut demuxer = nut::Demuxer::new(1 << 16);
        let mut polls = 0;
        for piece in bytes.chunks(chunk * 16 + 1) {
            demuxer.push(piece);
            while !matches!(demuxer.poll(), Ok(None)) {
                polls += 1;
                assert!(polls <= 2 * bytes.len() + 16, "no progress in {} bytes", bytes.len());
            }
        }
    };
    read(bytes);
    read(&resealed(bytes));
}

/// Rights the checksum of each NUT packet whose startcode and length are whole.
fn resealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..out.len().saturating_sub(9) {
        // Startcodes begin with `N` and the packet's letter: main, stream, syncpoint, index, info.
        if out[at] != b'N' || !b"MSKXI".contains(&out[at + 1]) {
            continue;
        }
        let mut body = at + 8;
        let mut len = 0usize;
        while let Some(byte) = out.get(body).copied() {
            body += 1;
            len = (len << 7 | usize::from(byte & 0x7f)) & 0xffff;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if (4..=4096).contains(&len) && body + len <= out.len() {
            let sum = crc(&out[body..body + len - 4]);
            out[body + len - 4..body + len].copy_from_slice(&sum.to_be_bytes());
        }
    }
    out
}

/// CRC-32, generator 0x04C11DB7, as NUT has it.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| crc << 1 ^ if crc >> 31 != 0 { 0x04c1_1db7 } else { 0 })
    })
}

/// An offer of a stranger, and what the peer that it makes does first.
fn offer(bytes: &[u8]) {
    let (config, now) = &*CONFIG;
    let offer = text(bytes);
    let Ok((mut peer, answer)) = Peer::answer(config.clone(), &offer, Tracks::VIDEO, *now) else { return };
    assert!(answer.contains("m=video") && answer.ends_with("\r\n"));
    _ = peer.handle(*now, Input::Tick);
    drain(&mut peer, *now);
    _ = peer.reoffer(&offer);
    let credentials = peer.local_credentials();
    _ = peer.restart_ice(&credentials);
    drain(&mut peer, *now);
}

/// The offer of somebody who publishes.
fn publish(bytes: &[u8]) {
    let (config, now) = &*CONFIG;
    // The seeds want to receive; whoever publishes sends.
    let offer = text(bytes).replace("a=recvonly", "a=sendonly");
    let Ok((mut publisher, answer)) = Publisher::answer(config.clone(), &offer, None, *now) else { return };
    assert!(answer.ends_with("\r\n"));
    _ = publisher.tick(*now);
    let outputs = (0..10_000).take_while(|_| !matches!(publisher.poll(*now), Output::WakeAt(_))).count();
    assert!(outputs < 10_000, "a publisher without an end of outputs");
    let credentials = publisher.local_credentials();
    _ = publisher.restart_ice(&credentials);
}

/// A message of the channel `mix`.
fn mix(bytes: &[u8]) {
    if let Ok(message) = mix::Message::parse(&text(bytes)) {
        assert_eq!(mix::Message::parse(&message.to_json()), Ok(message), "what is read can be said");
    }
}

fn mix_seeds() -> Vec<Vec<u8>> {
    let speaker = mix::Message::Speaker { peer: Some("ada".into()) };
    let levels = mix::Message::Levels { levels: [("ada".to_owned(), -20), ("bob".to_owned(), -127)].into() };
    [speaker, mix::Message::Speaker { peer: None }, levels].map(|message| message.to_json().into_bytes()).to_vec()
}

/// RTP payloads, each behind its length; a length of zero ends the frame.
fn payloads(bytes: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (len, after) = rest.split_first()?;
        let (payload, after) = after.split_at(usize::from(*len).min(after.len()));
        rest = after;
        Some((*len > 0).then_some(payload))
    })
}

fn vp8(bytes: &[u8]) {
    let mut depacketizer = Vp8Depacketizer::default();
    for payload in payloads(bytes) {
        if let Some(payload) = payload {
            if depacketizer.push(payload).is_err() {
                depacketizer.reset();
            }
            continue;
        }
        let frame = depacketizer.take();
        _ = vp8::size_of(&frame);
        if !frame.is_empty() {
            for payload in vp8::packetize(&frame, 100).iter() {
                assert!(payload.len() <= 100);
                depacketizer.push(payload).expect("our own payloads");
            }
            assert_eq!(depacketizer.take(), frame);
        }
    }
}

fn vp8_seeds() -> Vec<Vec<u8>> {
    let keyframe = [0x10, 2, 0, 0x9d, 1, 0x2a, 0x80, 2, 0x68, 1, 7, 7];
    let one = [&[13, 0x10][..], &keyframe, &[0]].concat();
    let extended = [&[17, 0x90, 0xf0, 0x91, 0x22, 1][..], &keyframe, &[2, 0x00, 9, 0]].concat();
    vec![one, extended]
}

fn vp9(bytes: &[u8]) {
    let mut depacketizer = Vp9Depacketizer::default();
    let mut pushed = 0;
    for payload in payloads(bytes) {
        if let Some(payload) = payload {
            pushed += payload.len();
            if depacketizer.push(payload).is_err() {
                depacketizer.reset();
            }
            continue;
        }
        let frame = depacketizer.take();
        // With the superframe's index.
        assert!(frame.len() <= pushed + 2 + 4 * 8);
        assert_eq!(vp9::is_keyframe(&frame), vp9::size_of(&frame).is_some());
        assert!(depacketizer.largest_layer().is_none_or(|size| size.width > 0 && size.height > 0));
        pushed = 0;
    }
}

fn vp9_seeds() -> Vec<Vec<u8>> {
    let keyframe = [0x82, 0x49, 0x83, 0x42, 0x00, 0x13, 0xf0, 0x0b, 0x36, 0x06];
    let one = [&[21, 0x8e, 0x91, 0x22, 0x18, 1, 0x40, 0, 0xb4, 1, 0x04, 1][..], &keyframe, &[0]].concat();
    let two = [&[14, 0x28, 0, 9, 1][..], &keyframe, &[4, 0x24, 0, 9, 2, 4, 0x2c, 3, 9, 3, 0]].concat();
    let flexible = vec![6, 0xd8, 0x11, 0x03, 0x04, 0x86, 7, 3, 0x04, 8, 9, 0];
    vec![one, two, flexible]
}

fn av1(bytes: &[u8]) {
    let mut depacketizer = Av1Depacketizer::default();
    for payload in payloads(bytes) {
        if let Some(payload) = payload {
            if depacketizer.push(payload).is_err() {
                depacketizer.reset();
            }
            continue;
        }
        let unit = depacketizer.take();
        assert!(!av1::is_keyframe(&unit) || av1::size_of(&unit).is_some());
        if let Some(record) = av1::configuration(&unit) {
            assert_eq!(av1::configuration(&record[4..]), Some(record), "the sequence header is whole in it");
        }
    }
}

fn av1_seeds() -> Vec<Vec<u8>> {
    let sequence: &[u8] = &[0x00, 0x00, 0x00, 0x04, 0x3c, 0xfe, 0xcc, 0xda, 0xf9, 0x00, 0x40];
    let keyframe = [&[18, 0x28, 12, 0x08][..], sequence, &[0x32, 2, 0x10, 7]].concat();
    let split = [&[19, 0x68, 12, 0x08][..], sequence, &[0x30, 0x10, 7, 7, 7, 4, 0xd0, 1, 2, 3, 2, 0x90, 4, 0]].concat();
    let lengths = vec![9, 0x00, 2, 0x12, 0, 3, 0x34, 0x28, 0x30, 0, 0];
    vec![[&keyframe[..], &[0]].concat(), split, lengths]
}

/// How long a packet of Opus is, and times of a clock that is not ours.
fn opus(bytes: &[u8]) {
    let duration = lightpipe_media::audio::opus_duration(bytes);
    assert!(duration > Duration::ZERO && duration <= Duration::from_millis(120));
    let (mut track, mut wall) = (TrackClock::new(48_000), ArrivalClock::default());
    for chunk in bytes.chunks_exact(9) {
        let time = u64::from_le_bytes(chunk[1..].try_into().expect("eight bytes"));
        match chunk[0] & 1 {
            0 => _ = track.capture(time >> 20, MediaTime::from_micros((time >> 24) as i64), &mut wall),
            _ => track.report(time >> 20, (time >> 12) as i64),
        }
    }
}

fn opus_seeds() -> Vec<Vec<u8>> {
    vec![vec![0xfc, 1, 2, 3], (0..90).collect(), vec![0xfb, 3, 0]]
}

fn drain(peer: &mut Peer, now: Instant) {
    let outputs = (0..10_000).take_while(|_| !matches!(peer.poll(now), Output::WakeAt(_))).count();
    assert!(outputs < 10_000, "a peer without an end of outputs");
}

fn candidate(bytes: &[u8]) {
    if let Ok(candidate) = Candidate::parse(&text(bytes)) {
        let (config, now) = &*CONFIG;
        let (mut peer, _) = Peer::answer(config.clone(), OFFER, Tracks::VIDEO, *now).expect("a good offer");
        _ = peer.add_candidate(&candidate);
        _ = peer.handle(*now, Input::Tick);
        drain(&mut peer, *now);
    }
}

fn jsonrpc(bytes: &[u8]) {
    let now = CONFIG.1;
    let mut conference = Conference::new();
    let there = r#"{"jsonrpc":"2.0","id":1,"method":"peer.announce","params":{"peer_id":"a"}}"#;
    assert!(conference.message(now, 1, there).0.is_some_and(|answer| answer.contains("result")));
    let (answer, told) = conference.message(now, 2, &text(bytes));
    for (to, text) in told {
        assert_eq!(to, 1, "{text}");
        assert!(
            serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|said| said["method"].is_string()),
            "{text}"
        );
    }
    if let Some(answer) = answer {
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("our own answer");
        let all = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
        let whole = |one: &serde_json::Value| one["jsonrpc"] == "2.0" && one.get("id").is_some();
        assert!(
            all.iter().all(|one| whole(one) && one.get("result").is_some() != one.get("error").is_some()),
            "{all:?}"
        );
    }
    conference.gone(2);
    assert_eq!(conference.len(), 1);
}

fn sdpfrag(bytes: &[u8]) {
    let body = text(bytes);
    if let Ok(frag) = SdpFrag::parse(&body)
        && let Some((ufrag, pwd)) = &frag.credentials
    {
        let again = SdpFrag::parse(&SdpFrag::answer(ufrag, pwd, &frag.candidates)).expect("our own fragment");
        assert_eq!((&again.credentials, &again.candidates), (&frag.credentials, &frag.candidates));
    }
    _ = whep::check_patch(Some("application/trickle-ice-sdpfrag"), Some("*"), &body, "\"1\"", "abcd");
    _ = whep::ice_ufrag(&body);
}

/// A message of a WebSocket client, and one on the data channel.
fn message(bytes: &[u8]) {
    _ = ClientMessage::parse(&text(bytes));
    _ = FromPage::parse(bytes);
}

/// Items of a kind, each behind its kind and its length of two bytes.
fn items(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (&[kind, high, low], after) = rest.split_first_chunk()?;
        let (item, after) = after.split_at(usize::from(u16::from_be_bytes([high, low])).min(after.len()));
        rest = after;
        Some((kind, item))
    })
}

fn as_items(items: &[(u8, &[u8])]) -> Vec<u8> {
    let one = |(kind, item): &(u8, &[u8])| [&[*kind], &(item.len() as u16).to_be_bytes()[..], item].concat();
    items.iter().flat_map(one).collect()
}

/// Messages of the channel `files`, cuts and time between them, for somebody who sends a file and takes all that are offered.
fn transfer(bytes: &[u8]) {
    let mut now = CONFIG.1;
    let mut transfers = Transfers::new();
    let id = transfer::TransferId::try_from("own".to_owned()).expect("an id");
    let file = transfer::File { name: "f".into(), size: 40_000, mime: String::new() };
    transfers.connected(now);
    transfers.offer(now, id, file).expect("room for it");
    // By transfer: bytes written, and bytes shown.
    let (mut written, mut shown) = (HashMap::new(), HashMap::new());
    for (kind, item) in items(bytes) {
        match kind % 4 {
            0 => _ = transfers.text(now, &text(item)),
            1 => _ = transfers.binary(now, item),
            2 => now += Duration::from_secs(item.len() as u64),
            _ => {
                transfers.disconnected(now);
                transfers.connected(now);
            }
        }
        let mut outputs = 0;
        loop {
            outputs += 1;
            assert!(outputs < 1000, "no end of outputs");
            match transfers.poll(now, 0) {
                transfer::Output::Text(text) => _ = transfer::Control::parse(&text).expect("our own message"),
                transfer::Output::Binary(bytes) => _ = transfer::Chunk::parse(&bytes).expect("our own chunk"),
                transfer::Output::Read { id, offset, len } => {
                    assert!(offset + len as u64 <= 40_000);
                    transfers.provide(now, &id, offset, &vec![7; len]).expect("asked for");
                }
                transfer::Output::Write { id, offset, data } => {
                    let before = written.entry(id).or_insert(0);
                    assert_eq!(*before, offset);
                    *before += data.len() as u64;
                }
                transfer::Output::Save { id } => transfers.saved(&id).expect("asked for"),
                transfer::Output::Event(transfer::Event::Offered { id, file }) => {
                    assert!(!file.name.contains(['/', '\\', '\0']) && file.size <= transfer::MAX_SIZE);
                    written.remove(&id);
                    // It may have been cancelled already by what came with it.
                    _ = transfers.accept(now, &id, Partial::default());
                }
                transfer::Output::Event(transfer::Event::Progress { id, bytes, size }) => {
                    assert!(bytes <= size && shown.insert(id, bytes) < Some(bytes));
                }
                transfer::Output::Event(transfer::Event::Ended { id, .. }) => {
                    _ = (shown.remove(&id), written.remove(&id))
                }
                transfer::Output::Event(transfer::Event::Accepted { .. }) => {}
                transfer::Output::WakeAt(at) => {
                    assert!(at.is_none_or(|at| at > now), "woken in the past");
                    break;
                }
            }
        }
        let (outgoing, incoming) = transfers.len();
        assert!(outgoing <= 1 && incoming <= transfer::MAX_TRANSFERS);
    }
}

/// Messages of the channel `chat`, cuts and time between them.
fn chat(bytes: &[u8]) {
    let mut chat = Chat::new();
    let mut unix_ms = 1_700_000_000_000;
    chat.connected("a");
    for (kind, item) in items(bytes) {
        match kind % 4 {
            0 => _ = chat.text(unix_ms, "a", &text(item)),
            1 => _ = chat.say(unix_ms, &text(item)),
            2 => unix_ms += item.len() as u64 * 10,
            _ => {
                chat.disconnected("a");
                chat.connected("a");
            }
        }
        while let Some(output) = chat.poll() {
            if let chat::Output::Send { text, .. } = output {
                chat::Message::parse(&text).expect("our own message");
            }
        }
        assert!(chat.unacked("a") <= chat::MAX_UNACKED);
    }
}

/// RTP payloads, each behind its length; a length of zero ends the access unit.
fn depacketize(bytes: &[u8]) {
    let mut depacketizer = Depacketizer::default();
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first() {
        let (payload, after) = after.split_at(usize::from(*len).min(after.len()));
        rest = after;
        if *len > 0 {
            _ = depacketizer.push(payload);
            continue;
        }
        let unit = depacketizer.take();
        // The packetizer sends NAL units of the types that RFC 6184 uses for itself as they are; nobody makes them.
        if h264::nals(&unit).all(|nal| (1..=23).contains(&(nal[0] & 0x1f))) {
            let once = passed_through(&unit);
            assert_eq!(passed_through(&once), once, "a second passage changes nothing more");
        }
    }
}

/// An access unit, packetized and put together again.
fn passed_through(unit: &[u8]) -> Vec<u8> {
    let mut depacketizer = Depacketizer::default();
    for payload in packetize::h264(unit, 100).iter() {
        assert!(!payload.is_empty() && payload.len() <= 100, "{} bytes in a payload", payload.len());
        depacketizer.push(payload).expect("our own payloads");
    }
    depacketizer.take()
}

fn sps(bytes: &[u8]) {
    _ = h264::Sps::parse(bytes);
    for nal in h264::nals(bytes) {
        assert!(!nal.is_empty());
        _ = h264::Sps::parse(nal);
    }
    _ = h264::is_keyframe(bytes);
}

/// A datagram to the port: the demultiplexer, and a peer that was not asked.
fn datagram(bytes: &[u8]) {
    if let Some(ufrag) = demux::local_ufrag(bytes) {
        assert!(demux::is_stun(bytes) && !ufrag.contains(':'));
    }
    let (config, now) = &*CONFIG;
    thread_local! {
        static PEER: std::cell::RefCell<Option<Peer>> = const { std::cell::RefCell::new(None) };
    }
    PEER.with_borrow_mut(|slot| {
        let peer = slot
            .get_or_insert_with(|| Peer::answer(config.clone(), OFFER, Tracks::VIDEO, *now).expect("a good offer").0);
        let (from, to) = (SocketAddr::from(([203, 0, 113, 9], 9)), config.addresses[0]);
        _ = peer.handle(*now, Input::Datagram { from, to, payload: bytes });
        drain(peer, *now);
        assert!(!peer.is_connected());
    });
}

/// A picture: columns, rows and format in front.
fn timecode(bytes: &[u8]) {
    let Some((&[w0, w1, h, format], samples)) = bytes.split_first_chunk() else { return };
    let size = Size::new(u32::from(u16::from_be_bytes([w0 & 3, w1])), u32::from(h));
    let format = [PixelFormat::Rgba, PixelFormat::Bgra, PixelFormat::I420, PixelFormat::Nv12][usize::from(format % 4)];
    let pool = FramePool::new();
    let mut buffer = pool.take(format.packed_len(size));
    let len = buffer.len();
    for (to, from) in buffer.iter_mut().zip(samples.iter().cycle()).take(len) {
        *to = *from;
    }
    let Ok(mut frame) = VideoFrame::packed(MediaTime::ZERO, size, format, buffer) else { return };
    _ = timecode::read(&frame);
    timecode::paint(&mut frame, 0x1234_5678);
    if timecode::block_size(size).is_some() {
        assert_eq!(timecode::read(&frame), Some(0x1234_5678), "{size:?} {format:?}");
    }
}

/// Media for a file: container and tracks in front, then pictures and packets with a kind, a time, a length.
fn container(bytes: &[u8]) {
    let (form, mut rest) = parameter(bytes);
    let codec = match form & 0x19 {
        1 => VideoCodec::Vp8,
        9 => VideoCodec::Vp9,
        17 => VideoCodec::Av1,
        _ => VideoCodec::H264,
    };
    let tracks = container::Tracks { video: form & 2 == 0, audio: form & 4 == 0 };
    let mut writer = container::for_codec(codec, tracks, FragmentLimits::default());
    let mut file = Vec::new();
    let mut apply = |writer: &mut dyn container::Container| {
        while let Some(write) = writer.poll() {
            match write {
                Write::Append(bytes) => file.extend(bytes),
                Write::Patch { offset, bytes } => {
                    file[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
    };
    let mut now = 0i64;
    while let Some((&[kind, step, len], after)) = rest.split_first_chunk() {
        rest = after;
        now = match kind & 6 {
            // Milliseconds on, back, or anywhere.
            0 | 2 => now.wrapping_add(i64::from(step) * 1000),
            4 => now.wrapping_sub(i64::from(step) * 100_000),
            _ => i64::from(step).wrapping_mul(0x0123_4567_89ab_cdef),
        };
        let (data, after) = rest.split_at(usize::from(len).min(rest.len()));
        rest = after;
        let captured = MediaTime::from_micros(now);
        if kind & 1 == 0 {
            let stages = Stages::all_at(captured);
            writer.video(&AccessUnit::new(codec, data, captured, kind & 8 == 0, Size::new(64, 48), stages));
        } else {
            let duration = Duration::from_micros(u64::from(kind) * 1000);
            let packet = AudioPacket {
                data: data.into(),
                captured,
                duration,
                encoded: captured,
                starts_talkspurt: false,
                origin: None,
            };
            writer.audio(&packet);
        }
        apply(&mut *writer);
    }
    writer.finish();
    apply(&mut *writer);
    let progress = writer.progress();
    assert_eq!((progress.bytes, progress.started), (file.len() as u64, !file.is_empty()));
    assert!(progress.fragments >= u64::from(progress.pictures + progress.packets > 0));
    if codec == VideoCodec::H264 {
        // Boxes one behind the other, up to the end.
        let mut at = 0;
        while let Some(size) = file.get(at..at + 4) {
            at += u32::from_be_bytes([size[0], size[1], size[2], size[3]]).max(8) as usize;
        }
        assert_eq!(at, file.len());
    }
}

/// A small offer of a viewer: H.264, a data channel, two candidates.
const OFFER: &str = "v=0\r\no=- 46117329 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n\
m=video 9 UDP/TLS/RTP/SAVPF 96 102 103\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:Yb3x\r\na=ice-pwd:w1mH2bB8Zw9wq4T0qf6sYt3u\r\n\
a=ice-options:trickle\r\na=fingerprint:sha-256 7B:8B:F0:65:5F:78:E2:51:3B:AC:6F:F3:3F:46:1B:35:DC:B8:5F:64:1A:24:C2:43:F0:A1:58:D0:A1:2C:19:08\r\n\
a=setup:actpass\r\na=mid:0\r\na=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=recvonly\r\na=rtcp-mux\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:102 H264/90000\r\n\
a=rtcp-fb:102 transport-cc\r\na=rtcp-fb:102 nack\r\na=rtcp-fb:102 nack pli\r\n\
a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\na=rtpmap:103 rtx/90000\r\na=fmtp:103 apt=102\r\n\
a=candidate:1 1 udp 2130706431 198.51.100.7 50000 typ host generation 0\r\n\
a=candidate:2 1 udp 2113937151 0c6a9ba0-1111-4222-8333-444455556666.local 54400 typ host\r\n\
m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:Yb3x\r\na=ice-pwd:w1mH2bB8Zw9wq4T0qf6sYt3u\r\n\
a=fingerprint:sha-256 7B:8B:F0:65:5F:78:E2:51:3B:AC:6F:F3:3F:46:1B:35:DC:B8:5F:64:1A:24:C2:43:F0:A1:58:D0:A1:2C:19:08\r\n\
a=setup:actpass\r\na=mid:1\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n";

/// SPS (1280×720, Constrained Baseline 3.1), PPS, IDR, and two pictures of two slices each.
fn h264_stream() -> Vec<u8> {
    let nals: [&[u8]; 8] = [
        &[0x09, 0x10],
        &[
            0x67, 0x42, 0xc0, 0x1f, 0xd9, 0x00, 0x50, 0x05, 0xbb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00, 0x00,
            0x03, 0x03, 0xc0, 0xf1, 0x83, 0x24, 0x80,
        ],
        &[0x68, 0xcb, 0x83, 0xcb, 0x20],
        &[0x65, 0x88, 0x84, 0x0a, 0xf2, 0x62, 0x80, 0x00, 0xa7, 0xbc],
        &[0x41, 0x9a, 0x21, 0x6c, 0x42],
        &[0x41, 0x42, 0x9a, 0x21, 0x6c],
        &[0x41, 0x9a, 0x42, 0x11, 0x22],
        &[0x41, 0x42, 0x11, 0x9a, 0x77],
    ];
    let start_codes = [&[0, 0, 0, 1][..], &[0, 0, 1]].into_iter().cycle();
    nals.iter().zip(start_codes).flat_map(|(nal, start)| [start, nal].concat()).collect()
}

/// A good stream with sound, for each container and choice of tracks.
fn container_seeds() -> Vec<Vec<u8>> {
    let item = |kind: u8, step: u8, data: &[u8]| [&[kind, step, data.len() as u8], data].concat();
    let h264 = h264_stream();
    let slice: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 0x21];
    let vp8: &[u8] = &[0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01, 7];
    let media = |key: &[u8], delta: &[u8]| {
        let start = [item(0, 0, key), item(1, 5, &[0xfc, 1]), item(8, 33, delta), item(1, 15, &[0xfc, 2])];
        let jumps =
            [item(8, 250, delta), item(12, 99, delta), item(15, 3, &[0xfc]), item(6, 200, key), item(8, 9, delta)];
        [start.concat(), jumps.concat()].concat()
    };
    let (h264, vp8) = (media(&h264, slice), media(vp8, &[0x11, 1, 2]));
    let vp9 = media(&[0x82, 0x49, 0x83, 0x42, 0x00, 0x13, 0xf0, 0x0b, 0x36, 0x06], &[0x86, 1]);
    let sequence = [0x0a, 11, 0x00, 0x00, 0x00, 0x04, 0x3c, 0xfe, 0xcc, 0xda, 0xf9, 0x00, 0x40];
    let av1 = media(&[&sequence[..], &[0x32, 2, 0x10, 7]].concat(), &[0x32, 2, 0x30, 7]);
    [(0u8, &h264), (1, &vp8), (2, &h264), (4, &h264), (5, &vp8), (9, &vp9), (17, &av1)]
        .map(|(form, media)| [&[form], &media[..]].concat())
        .into()
}

fn annexb_seeds() -> Vec<Vec<u8>> {
    [1, 7, 255].map(|chunk| [&[chunk][..], &h264_stream()].concat()).into()
}

/// Two streams' headers, a syncpoint and frames, as FFmpeg writes them; without FFmpeg, headers only.
fn nut_seeds() -> Vec<Vec<u8>> {
    let clip = |args: &str| {
        let command = std::process::Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "quiet", "-nostdin"])
            .args(args.split(' '))
            .args(["-f", "nut", "-"])
            .output();
        command.map(|output| output.stdout).unwrap_or_default()
    };
    let video = clip(
        "-f lavfi -i testsrc2=size=64x48:rate=10 -frames:v 3 -c:v libx264 -preset ultrafast -tune zerolatency -bf 0",
    );
    let raw = clip("-f lavfi -i color=size=16x16:rate=5 -frames:v 2 -c:v rawvideo");
    let whole = [video, raw].into_iter().map(|clip| [&[3][..], &clip].concat());
    whole.chain([b"\x20nut/multimedia container\0NMz\x56\x1f\x5f\x04\xad".to_vec()]).collect()
}

fn offer_seeds() -> Vec<Vec<u8>> {
    let layers = "a=rid:f send\r\na=rid:h send max-width=640\r\na=rid:q send pt=102\r\na=simulcast:send f,h;~q\r\na=recvonly\r\n";
    let simulcast = OFFER.replacen("a=recvonly\r\n", layers, 1);
    vec![OFFER.into(), OFFER.replace("\r\n", "\n").into(), OFFER.replace("102", "45").into(), simulcast.into()]
}

fn candidate_seeds() -> Vec<Vec<u8>> {
    let all = [
        "candidate:1 1 udp 2130706431 192.0.2.7 50000 typ host generation 0 ufrag abcd network-id 1",
        "candidate:842163049 1 udp 1677729535 203.0.113.5 61665 typ srflx raddr 192.168.0.7 rport 61665",
        "candidate:3 1 tcp 1518280447 2001:db8::7 9 typ host tcptype active",
        "a=candidate:4 1 udp 2113937151 0c6a9ba0-1111.local 54400 typ host",
        "a=end-of-candidates",
    ];
    all.map(|c| c.as_bytes().to_vec()).into()
}

fn sdpfrag_seeds() -> Vec<Vec<u8>> {
    let frag = "a=ice-ufrag:EsAw\r\na=ice-pwd:0123456789abcdefghijklmn\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n\
                a=candidate:1 1 UDP 2 192.0.2.1 61 typ host\r\na=end-of-candidates\r\n";
    vec![frag.into(), frag.replace("EsAw", "abcd").into()]
}

fn jsonrpc_seeds() -> Vec<Vec<u8>> {
    let all = [
        r#"{"jsonrpc":"2.0","id":1,"method":"peer.announce","params":{"peer_id":"b","capabilities":["audio"],"user_data":{},"room":"default"}}"#,
        r#"[{"jsonrpc":"2.0","id":"x","method":"announce","params":{"peerId":"b"}},{"jsonrpc":"2.0","method":"offer","params":{"to":"a","sdp":"v=0"}}]"#,
        r#"[{"jsonrpc":"2.0","method":"announce","params":{"peer_id":"b"}},{"jsonrpc":"2.0","id":1,"method":"peer.ice_candidate","params":{"to":"a","candidate":"{\"candidate\":\"\"}","sdpMid":"0"}}]"#,
        r#"[{"jsonrpc":"2.0","method":"announce","params":{"peer_id":"b"}},{"jsonrpc":"2.0","id":1,"method":"peer.disconnect","params":{"reason":"bye"}}]"#,
    ];
    all.map(|m| m.as_bytes().to_vec()).into()
}

fn transfer_seeds() -> Vec<Vec<u8>> {
    let chunk = transfer::Chunk { number: 5, offset: 0, data: b"hello" }.to_bytes();
    let offer = br#"{"type":"offer","id":"a","number":5,"name":"../f.txt","size":5,"mime":"text/plain"}"#;
    let end = br#"{"type":"end","id":"a","size":5,"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}"#;
    let receives: &[(u8, &[u8])] = &[(0, offer), (1, &chunk), (0, end), (3, b""), (0, offer), (0, end)];
    let sends: &[(u8, &[u8])] = &[
        (0, br#"{"type":"accept","id":"own","offset":10}"#),
        (0, br#"{"type":"progress","id":"own","received":32768}"#),
        (3, b""),
        (0, br#"{"type":"accept","id":"own","offset":32768}"#),
        (0, br#"{"type":"done","id":"own"}"#),
    ];
    let cut: &[(u8, &[u8])] = &[
        (0, offer),
        (1, &chunk[..15]),
        (2, &[0; 130]),
        (3, b""),
        (0, br#"{"type":"cancel","id":"own","reason":"x"}"#),
    ];
    [receives, sends, cut].map(as_items).into()
}

fn chat_seeds() -> Vec<Vec<u8>> {
    let talk: &[(u8, &[u8])] = &[
        (0, br#"{"type":"chat","id":1,"text":"hello","at":1700000000000}"#),
        (1, b"hello"),
        (0, br#"{"type":"ack","id":1}"#),
        (0, br#"{"type":"state","muted":true,"camera":false,"name":"Ada"}"#),
        (3, b""),
        (0, br#"{"type":"chat","id":1,"text":"hello","at":1700000000000}"#),
        (2, &[0; 200]),
    ];
    vec![as_items(talk), as_items(&[(1, b"hello"), (3, b""), (1, b"again"), (0, br#"{"type":"ack","id":2}"#)])]
}

fn message_seeds() -> Vec<Vec<u8>> {
    let all = [
        r#"{"type":"offer","sdp":"v=0\r\n","stream":"cube"}"#,
        r#"{"type":"ice","candidate":"{\"candidate\":\"candidate:1 1 udp 2 192.0.2.7 5 typ host\",\"sdpMLineIndex\":0}","sdpMLineIndex":0}"#,
        r#"{"type":"join","room":"main","from":"browser-1"}"#,
        r#"{"type":"ice_candidate","candidate":{"candidate":"","sdpMid":"0"},"from":"a","to":"ffmpeg-bot"}"#,
        r#"{"type":"answer","sdp":{"type":"answer","sdp":"v=0\r\n"},"from":"a","to":"b"}"#,
        r#"{"type":"ping","t":12.5}"#,
    ];
    all.map(|m| m.as_bytes().to_vec()).into()
}

fn depacketize_seeds() -> Vec<Vec<u8>> {
    let long = [&[0, 0, 0, 1, 0x65, 0x88][..], &[0x11; 400]].concat();
    let units = [h264_stream(), long].map(|unit| {
        let payloads = packetize::h264(&unit, 100);
        let framed = payloads.iter().flat_map(|p| [&[p.len() as u8][..], p].concat());
        framed.chain([0]).collect()
    });
    units.into()
}

fn sps_seeds() -> Vec<Vec<u8>> {
    let stream = h264_stream();
    let sps = h264::nals(&stream).find(|nal| h264::NalType::of(nal) == h264::NalType::Sps).map(<[u8]>::to_vec);
    sps.into_iter().chain([stream.clone()]).collect()
}

/// A binding request, a DTLS ClientHello, RTP and RTCP.
fn datagram_seeds() -> Vec<Vec<u8>> {
    let user = b"abcd:efgh";
    let mut stun = vec![
        0, 1, 0, 24, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x80, 0x2a, 0, 8, 1, 2, 3, 4, 5, 6,
        7, 8, 0, 6, 0, 9,
    ];
    stun.extend_from_slice(user);
    stun.extend_from_slice(&[0; 3]);
    stun[3] = (stun.len() - 20) as u8;
    let hello = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 1][..], &[0; 19]].concat();
    let rtp = [&[0x90, 102, 0, 1, 0, 0, 0, 9, 0, 0, 0, 7, 0xbe, 0xde, 0, 1, 0x31, 0, 5, 0][..], &[0x41; 60]].concat();
    let rtcp = vec![0x81, 205, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 5, 0, 9];
    vec![stun, hello, rtp, rtcp]
}

fn timecode_seeds() -> Vec<Vec<u8>> {
    (0..4).map(|format| vec![3, 0, 16, format, 255, 0, 255, 255, 0]).collect()
}

/// Makes bad inputs out of good ones: flipped bits, other bytes, pieces cut, repeated, inserted, exchanged between inputs.
#[derive(Debug)]
pub struct Mutator {
    rng: Rng,
    seeds: Vec<Vec<u8>>,
    /// Mutants that are mutated further: one step seldom gets deep into a format.
    kept: Vec<Vec<u8>>,
}

impl Mutator {
    /// Inputs stay shorter than this.
    pub const MAX_LEN: usize = 1 << 16;

    /// The same seed and inputs give the same mutants.
    pub fn seeded(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        Self { rng: Rng::with_seed(seed), seeds, kept: Vec::new() }
    }

    /// The next mutant.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut bytes = self.pick();
        for _ in 0..self.rng.usize(1..8) {
            self.mutate(&mut bytes);
        }
        bytes.truncate(Self::MAX_LEN);
        if self.rng.u8(..8) == 0 {
            let keep = 32;
            if self.kept.len() == keep {
                let at = self.rng.usize(..keep);
                self.kept.swap_remove(at);
            }
            self.kept.push(bytes.clone());
        }
        bytes
    }

    fn pick(&mut self) -> Vec<u8> {
        let from = if self.rng.u8(..4) == 0 && !self.kept.is_empty() { &self.kept } else { &self.seeds };
        from.get(self.rng.usize(..from.len().max(1))).cloned().unwrap_or_default()
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let at = self.rng.usize(..=len);
        let to = self.rng.usize(at..=len.min(at + 64));
        match self.rng.u8(..10) {
            0 | 1 if at < len => bytes[at] ^= 1 << self.rng.u8(..8),
            2 if at < len => bytes[at] = self.rng.u8(..),
            // Values at which lengths and signs turn over.
            3 if at < len => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, b'\r', b'\n', b' ', b':'][self.rng.usize(..10)],
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..to)),
            6 => {
                let piece = bytes[at..to].to_vec();
                let times = 1 + self.rng.usize(..8);
                bytes.splice(at..at, piece.repeat(times));
            }
            7 => {
                let random: Vec<u8> = (0..self.rng.usize(..12)).map(|_| self.rng.u8(..)).collect();
                bytes.splice(at..at, random);
            }
            8 => {
                let other = self.pick();
                let from = self.rng.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            // A number in text becomes another one.
            _ => {
                let digits = bytes[at..].iter().position(u8::is_ascii_digit).map(|n| at + n);
                if let Some(start) = digits {
                    let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(len, |n| start + n);
                    let number =
                        ["0", "-1", "65536", "4294967296", "18446744073709551616", "1e999", ""][self.rng.usize(..7)];
                    bytes.splice(start..end, number.bytes());
                }
            }
        }
    }
}
