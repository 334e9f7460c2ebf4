//! Sound of the embedding program.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lightpipe::config::SourceTexts;
use lightpipe::{Config, Server, ServerError, Size, SoundError};
use lightpipe_media::{AccessUnit, AudioPacket, Outlet};

use crate::server;

/// Hears a stream as viewers do: packet by packet.
#[derive(Default)]
struct Ear(Mutex<Vec<Arc<AudioPacket>>>);

impl Outlet for Ear {
    fn deliver(&self, _: &Arc<AccessUnit>) {}

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        self.0.lock().expect("no panic").push(Arc::clone(packet));
    }
}

/// Pushes two seconds of a tone in pieces of this many milliseconds, as they come, and finds its pitch in what was encoded.
#[track_caller]
fn check(rate_hz: u32, channels: usize, piece_millis: u64) {
    let server = server();
    let scene = server.frames("scene", Size::new(320, 180), 30.0).expect("a new stream");
    let voice = scene.sound(rate_hz, channels).expect("a good rate");
    let ear = Arc::new(Ear::default());
    let _listening = server.streams().find("scene").expect("just made").subscribe(ear.clone());
    assert!(voice.is_heard());
    let len = u64::from(rate_hz) * piece_millis / 1000;
    let began = Instant::now();
    for piece in 0..2000 / piece_millis {
        let due = began + Duration::from_millis(piece_millis * (piece + 1));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let tone = (piece * len..(piece + 1) * len).flat_map(|n| {
            vec![(n as f64 / f64::from(rate_hz) * 440.0 * std::f64::consts::TAU).sin() as f32 / 2.0; channels]
        });
        voice.push(&tone.collect::<Vec<_>>());
    }
    let packets = ear.0.lock().expect("no panic").clone();
    assert!((85..=101).contains(&packets.len()), "{} packets of 20 ms in two seconds", packets.len());
    assert!(packets.windows(2).all(|pair| pair[1].captured > pair[0].captured));
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).expect("a decoder");
    let mut samples = Vec::new();
    for packet in &packets {
        let mut pcm = vec![0.0; 5760];
        let len = decoder.decode_float(&packet.data, &mut pcm, false).expect("Opus");
        samples.extend_from_slice(&pcm[..len]);
    }
    // The decoder's first packets swell.
    let settled = &samples[4800..];
    let crossings = settled.windows(2).filter(|pair| pair[0] < 0.0 && pair[1] >= 0.0).count();
    let hz = crossings as f64 * 48_000.0 / settled.len() as f64;
    assert!((430.0..450.0).contains(&hz), "{rate_hz} Hz, {channels} channels, {piece_millis} ms: {hz} Hz");
    let peak = settled.iter().fold(0.0f32, |peak, sample| peak.max(sample.abs()));
    assert!((0.4..0.6).contains(&peak), "{peak}");
}

#[test]
fn a_programs_sound_is_heard_from_any_rate_and_in_pieces_of_any_length() {
    check(48_000, 2, 20);
    check(44_100, 1, 50);
    check(16_000, 3, 10);
}

#[test]
fn sound_that_cannot_be_is_refused() {
    let server = server();
    let scene = server.frames("scene", Size::new(320, 180), 30.0).expect("a new stream");
    assert!(matches!(scene.sound(4000, 2), Err(SoundError::Rate(4000))));
    assert!(matches!(scene.sound(48_000, 0), Err(SoundError::Channels(0))));
    let voice = scene.sound(48_000, 2).expect("sound");
    assert!(matches!(scene.sound(48_000, 2), Err(SoundError::Taken(name)) if name == "scene"));
    voice.push(&[]);
    voice.push(&[0.5]);
}

#[test]
fn a_source_of_pictures_and_one_of_sound_with_one_name_are_one_stream_in_either_order() {
    for sources in [["me=pattern", "me=mic:nowhere"], ["me=mic:nowhere", "me=pattern"]] {
        let server = server();
        for source in sources {
            server.add_source(&source.parse().expect("a source")).expect("joins");
        }
        let told: Vec<(String, String)> =
            server.streams().all().into_iter().map(|entry| (entry.stream.name().to_owned(), entry.source)).collect();
        let both = sources.map(|source| &source[3..]).join(" + ");
        assert_eq!(told, [("me".to_owned(), both)]);
        let stream = server.streams().find("me").expect("just added");
        assert!(stream.has_video() && stream.has_audio());
        for second in ["me=cube", "me=mic"] {
            let refused = server.add_source(&second.parse().expect("a source"));
            assert!(matches!(refused, Err(ServerError::NameTaken(_))), "{second}: {refused:?}");
        }
    }
}

#[test]
fn a_list_in_the_configuration_is_one_stream() {
    let mut config = Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    config.sources.insert("me".into(), SourceTexts::Several(vec!["pattern".into(), "mic:nowhere".into()]));
    config.sources.insert("one".into(), SourceTexts::One("cube".into()));
    let server = Server::start(config).expect("a good configuration");
    assert_eq!(server.streams().names(), ["me", "one"]);
}

#[test]
fn sound_that_is_switched_off_is_of_no_source() {
    let mut config = Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    config.audio.enabled = false;
    let server = Server::start(config).expect("a good configuration");
    server.add_source(&"pattern".parse().expect("a source")).expect("silent");
    assert!(!server.streams().find("pattern").expect("just added").has_audio());
    let refused = server.add_source(&"mic".parse().expect("a source")).expect_err("no sound is wanted");
    assert_eq!(refused.to_string(), "stream \"mic\": sound is switched off: audio.enabled = false");
    assert_eq!(server.streams().names(), ["pattern"]);
}
