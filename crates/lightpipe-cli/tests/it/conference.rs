//! Rooms that are heard: native members that play what they receive, and one that mixes it for them.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::lab::http::request;
use crate::lab::{PATIENCE, quiet, send_signal, serve, until};
use crate::mesh::{Member, join};

/// Ends a member as a user does.
#[track_caller]
fn end(mut member: Member) {
    send_signal(member.child.id(), Signal::TERM);
    assert!(until("its end", PATIENCE, || member.child.try_wait().unwrap()).success());
}

/// One channel of a WAV file with so many, -1 to 1.
#[track_caller]
fn wav(path: &Path, channels: usize) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!((&bytes[..4], &bytes[8..16], usize::from(bytes[22])), (&b"RIFF"[..], &b"WAVEfmt "[..], channels));
    assert_eq!((number(24), number(4) + 8, number(40) + 44), (48_000, bytes.len(), bytes.len()));
    let samples = bytes[44..].chunks_exact(2 * channels);
    samples.map(|frame| f32::from(i16::from_le_bytes([frame[0], frame[1]])) / 32_768.0).collect()
}

/// Amplitude of a tone in a piece of sound.
fn amount(samples: &[f32], hz: f32) -> f32 {
    let turn = hz * std::f32::consts::TAU / 48_000.0;
    let (sine, cosine) = samples.iter().enumerate().fold((0.0, 0.0), |(sine, cosine), (n, sample)| {
        let phase = n as f32 * turn;
        (sine + sample * phase.sin(), cosine + sample * phase.cos())
    });
    2.0 * f32::hypot(sine, cosine) / samples.len() as f32
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_member_plays_the_others_in_time() {
    let _machine = quiet().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heard.wav");
    let server = serve(&["pattern"]).start();
    let ada = join(&server, "ada", &["--source", "pattern"]);
    let bob = join(&server, "bob", &["--listen", "--sound", file.to_str().unwrap(), "--port", "0"]);
    let figures = bob.wait_figures("ada", "a drift", |f| f["playout"]["drift_ppm"].is_number());
    let playout = &figures["playout"];
    // What a machine that others use does to sound is heard, too; that most of it came and pictures with it is ours.
    assert!(playout["pictures"]["shown"].as_u64() > Some(60), "{playout}");
    assert!(playout["lip_sync_ms"]["p50"].as_f64() <= Some(20.0), "{playout}");
    assert!(playout["concealed_share"].as_f64() < Some(0.05), "{playout}");
    // The first that is told, of one and the same clock: with twice the error that it states one is hardly ever wrong.
    assert!(playout["drift_ppm"].as_f64().unwrap().abs() <= 2.0 * playout["drift_error_ppm"].as_f64().unwrap() + 20.0);
    assert!(figures["level_dbov"].is_number(), "{figures}");
    let address = bob.url().strip_prefix("http://").unwrap().parse().unwrap();
    let told = |path: &str, list: &str, is_it: &dyn Fn(&Value) -> bool| {
        let answer = request(address, "GET", path, &[], b"").unwrap().json();
        answer[list].as_array().unwrap().iter().find(|one| is_it(one)).cloned().unwrap_or_default()
    };
    let peer = told("/api/v1/peers", "peers", &|peer| peer["feeds"] == "lab.ada");
    assert!(peer["playout"]["depth_ms"].is_number() && peer["playout"]["state"].is_string(), "{peer}");
    let stream = told("/api/v1/streams", "streams", &|stream| stream["name"] == "lab.ada");
    assert!(stream["playout"]["target_ms"].as_f64() > Some(5.0), "{stream}");
    end(bob);
    let heard = wav(&file, 2);
    let loud: Vec<usize> = (0..heard.len()).filter(|n| heard[*n].abs() > 0.02).collect();
    let beeps: Vec<usize> = loud.windows(2).filter(|pair| pair[1] - pair[0] > 24_000).map(|pair| pair[1]).collect();
    let seconds: Vec<usize> = beeps.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("{playout}; beeps after {seconds:?} samples");
    // A turn of the wave more or less is how a delay is changed.
    let right = seconds.iter().filter(|samples| samples.abs_diff(48_000) < 1500).count();
    assert!(right >= 8 && right * 10 >= seconds.len() * 8, "a beep each second: {seconds:?}");
    end(ada);
}

/// Who has which tone, and talks a third of how many seconds.
const TALKERS: [(&str, f32, f32); 3] = [("ada", 600.0, 5.0), ("bob", 1000.0, 6.0), ("cyd", 1700.0, 7.0)];

/// Amplitude of their tones.
const LOUD: f32 = 0.2;

/// 20 ms: whole turns of each tone.
const PIECE: usize = 960;

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_the_mixers_stream_hears_the_others_and_not_himself() {
    let _machine = quiet().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(format!("{name}.wav"));
    let server = serve(&["pattern"]).start();
    let mixer = join(&server, "mixer", &["--mix", "--sound", file("mixer").to_str().unwrap()]);
    mixer.wait("in_room", None);
    let members: Vec<Member> = TALKERS
        .iter()
        .map(|(name, hz, period)| {
            let source = format!(
                "ffmpeg:-re -f lavfi -i testsrc2=size=320x180:rate=15 -re -f lavfi -i \
                 aevalsrc={LOUD}*sin(2*PI*{hz}*t)*(1+sgn(sin(2*PI*t/{period})-0.5))/2:s=48000:c=mono"
            );
            join(&server, name, &["--source", &source, "--listen", "--sound", file(name).to_str().unwrap()])
        })
        .collect();
    for (name, ..) in TALKERS {
        until("everybody has spoken three times", PATIENCE * 2, || {
            (mixer.told("speaker", Some(name)).len() >= 3).then_some(())
        });
    }
    for member in &members {
        let figures = member.wait_figures("mixer", "sound", |f| f["playout"]["state"].is_string());
        assert!(figures["playout"]["packets"].as_u64() > Some(100), "{figures}");
        // All the others are in that.
        let (other, ..) = TALKERS.iter().find(|(name, ..)| *name != member.name).unwrap();
        assert!(member.figures(other).unwrap()["playout"].is_null(), "{}", member.name);
        for (name, ..) in TALKERS {
            assert_eq!(member.wait("speaker", Some(name))["by"], "mixer");
        }
    }
    let speakers: Vec<(f64, String)> = mixer
        .told("speaker", None)
        .iter()
        .filter_map(|told| Some((told["at_ms"].as_f64()?, told["peer"].as_str()?.to_owned())))
        .collect();
    members.into_iter().for_each(end);
    end(mixer);
    for (me, ..) in TALKERS {
        let heard = wav(&file(me), 2);
        for (other, hz, _) in TALKERS {
            let amounts: Vec<f32> = heard.chunks_exact(PIECE).map(|piece| amount(piece, hz)).collect();
            let loud = amounts.iter().filter(|amount| **amount > LOUD / 2.0).count();
            let most = amounts.iter().copied().fold(0.0, f32::max);
            println!("{me} hears {other} in {loud} of {} pieces, {most:.3} at most", amounts.len());
            if me == other {
                assert!(most < LOUD / 8.0, "{me} hears himself: {most}");
            } else {
                assert!(loud > 100, "{me} hears {other} in {loud} pieces");
            }
        }
    }
    // By what is in the mix, and counted in it: whoever alone was heard for 300 ms is the one who speaks.
    let mix = wav(&file("mixer"), 1);
    let loud = |piece: &[f32]| TALKERS.map(|(_, hz, _)| amount(piece, hz) > LOUD / 8.0);
    let mut alone: Option<(usize, usize)> = None;
    let (mut right, mut wrong) = ([0; 3], Vec::new());
    for (n, piece) in mix.chunks_exact(PIECE).enumerate() {
        let only = match loud(piece) {
            [true, false, false] => Some(0),
            [false, true, false] => Some(1),
            [false, false, true] => Some(2),
            _ => None,
        };
        alone = only.map(|who| (who, alone.filter(|(before, _)| *before == who).map_or(n, |(_, since)| since)));
        let (Some((who, since)), now) = (alone, (n + 1) as f64 * 20.0) else { continue };
        let told = speakers.iter().rev().find(|(at, _)| *at <= now).map(|(_, peer)| peer.as_str());
        // What was told last, was when the members were asked to end.
        if n + 1 - since <= 15 || now > speakers.last().unwrap().0 {
            continue;
        }
        if told == Some(TALKERS[who].0) { right[who] += 1 } else { wrong.push((now, TALKERS[who].0, told)) }
    }
    println!("right in {right:?} pieces; {speakers:?}");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(right.iter().all(|right| *right >= 10), "each was alone for a while: {right:?}");
}
