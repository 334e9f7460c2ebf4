//! Sessions that we offer: to a server that takes our stream, and for a stream that we play.

use lightpipe_media::VideoCodec;
use lightpipe_rtc::{AnswerError, DisconnectCause, Peer, PeerError, PeerEvent, Publisher, Tracks};
use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, Viewer, ms, secs};

fn lossy(loss: f64) -> LinkConfig {
    LinkConfig::default().with_delay_millis(20).with_loss(loss)
}

#[track_caller]
fn check_all_arrive(mut lab: Lab, loss: f64) {
    lab.connect_quietly();
    lab.set_network(0, lossy(loss), lossy(loss));
    lab.run_for(secs(20));
    // All but the last picture: whose end is lost, nobody misses.
    lab.encoder.paused = true;
    lab.run_for(secs(1));
    let pair = &lab.pairs[0];
    let (offered, came) = (pair.offered as usize, pair.pictures.len());
    assert!(
        pair.pictures[0].keyframe && came + 1 >= offered,
        "{came} of {offered} of {:?} at {loss}",
        lab.encoder.codec
    );
    let oldest = pair.pictures.iter().map(|picture| picture.age).max().unwrap();
    assert!(oldest < ms(450), "{oldest:?}");
}

const RUNS: [(f64, VideoCodec); 6] = [
    (0.0, VideoCodec::H264),
    (0.02, VideoCodec::H264),
    (0.05, VideoCodec::H264),
    (0.02, VideoCodec::Vp8),
    (0.02, VideoCodec::Vp9),
    (0.02, VideoCodec::Av1),
];

#[test]
fn a_pushed_stream_arrives_whole() {
    for (loss, codec) in RUNS {
        let mut lab = Lab::seeded(71).with_codec(codec);
        lab.push(lossy(0.0), lossy(0.0));
        check_all_arrive(lab, loss);
    }
}

#[test]
fn a_played_stream_arrives_whole() {
    for (loss, codec) in RUNS {
        let mut lab = Lab::seeded(72).with_codec(codec);
        lab.play(lossy(0.0), lossy(0.0));
        check_all_arrive(lab, loss);
    }
}

/// Trap: the engine stops the whole thread at a packet that it has no room for.
#[test]
fn payloads_too_long_to_be_passed_on_are_not() {
    for codec in [VideoCodec::Vp9, VideoCodec::Av1] {
        for (part_len, comes) in [(1380, true), (1401, false), (1900, false)] {
            let mut lab = Lab::seeded(77).with_codec(codec);
            lab.encoder.part_len = part_len;
            lab.push(lossy(0.0), lossy(0.0));
            lab.connect_quietly();
            lab.run_for(secs(2));
            let pair = &lab.pairs[0];
            assert_eq!(!pair.pictures.is_empty(), comes, "{codec:?} {part_len}");
            let Viewer::Publisher(publisher) = &pair.viewer else { panic!("a publisher") };
            let damaged = publisher.counters().undecodable;
            assert!(if comes { damaged == 0 } else { damaged > 50 }, "{codec:?} {part_len}: {damaged}");
        }
    }
}

#[test]
fn a_server_that_falls_silent_is_given_up_after_eight_seconds() {
    let mut lab = Lab::seeded(73);
    lab.push(lossy(0.0), lossy(0.0));
    lab.connect_quietly();
    lab.run_for(secs(5));
    lab.pairs[0].viewer = Viewer::Gone;
    let took = lab.run_until(secs(20), |lab| {
        lab.pairs[0].events.iter().any(|(_, event)| *event == PeerEvent::Closed(DisconnectCause::IceTimeout))
    });
    assert!(took > secs(7) && took < ms(8100), "{took:?}");
}

#[test]
fn so_is_one_that_we_watch() {
    let mut lab = Lab::seeded(76);
    lab.play(lossy(0.0), lossy(0.0));
    lab.connect_quietly();
    lab.run_for(secs(5));
    // Its network swallows everything.
    lab.set_network(0, lossy(1.0), lossy(1.0));
    let took = lab.run_until(secs(20), |lab| {
        lab.pairs[0].viewer_events.iter().any(|(_, event)| *event == PeerEvent::Closed(DisconnectCause::IceTimeout))
    });
    assert!(took > secs(7) && took < ms(8100), "{took:?}");
}

#[test]
fn nothing_happens_before_the_answer_and_the_time_limit_starts_with_it() {
    let mut lab = Lab::seeded(74);
    let (mut peer, offer) = Peer::offer(lab.config.clone(), Tracks::VIDEO, lab.now).unwrap();
    // A slow server: the session is not given up meanwhile.
    let later = lab.now + secs(60);
    peer.handle(later, lightpipe_rtc::Input::Tick).unwrap();
    assert!(!matches!(peer.poll(later), lightpipe_rtc::Output::Event(_)));
    let (_, answer) = Publisher::answer(lab.config.clone(), &offer, None, later).unwrap();
    peer.accept_answer(&answer, later).unwrap();
    let again = peer.accept_answer(&answer, later);
    assert!(matches!(again, Err(PeerError::Answer(AnswerError::NotAwaited))), "{again:?}");
    lab.run_for(ms(1));
}

#[track_caller]
fn check_answer(change: impl Fn(&str) -> String, expected: impl Fn(&Result<(), PeerError>) -> bool) {
    let lab = Lab::seeded(75);
    let (mut peer, offer) = Peer::offer(lab.config.clone(), Tracks { audio: true, ..Tracks::VIDEO }, lab.now).unwrap();
    let (_, answer) = Publisher::answer(lab.config.clone(), &offer, None, lab.now).unwrap();
    let result = peer.accept_answer(&change(&answer), lab.now);
    assert!(expected(&result), "{result:?}");
}

#[test]
fn answers_of_servers_good_and_bad() {
    let malformed = |result: &Result<(), PeerError>| {
        matches!(result, Err(PeerError::Answer(AnswerError::Malformed(_) | AnswerError::TooLarge { .. })))
    };
    check_answer(str::to_owned, Result::is_ok);
    // A rejected track is not sent; the other one is.
    check_answer(|answer| rejected(answer, "m=audio"), Result::is_ok);
    check_answer(|answer| rejected(answer, "m=video"), Result::is_ok);
    check_answer(
        |answer| rejected(&rejected(answer, "m=audio"), "m=video"),
        |result| matches!(result, Err(PeerError::Answer(AnswerError::NothingTaken))),
    );
    // Names that only its own network resolves.
    let mdns = "a=candidate:1 1 udp 2113937151 0c6a9ba0-1111.local 54400 typ host\r\n";
    check_answer(|answer| format!("{answer}{mdns}"), Result::is_ok);
    check_answer(|_| String::new(), malformed);
    check_answer(|_| "<html>not found</html>".into(), malformed);
    check_answer(|answer| answer.replace("a=fingerprint", "a=finger"), malformed);
    check_answer(|answer| answer.replace("a=ice-pwd", "a=ice-word"), malformed);
    check_answer(|answer| answer.split("m=video").next().unwrap().to_owned(), malformed);
    check_answer(|answer| answer.repeat(40), malformed);
}

/// An answer that rejects a track: port 0, not in the bundle (RFC 8843 §7.3.3).
fn rejected(answer: &str, line: &str) -> String {
    let mid = answer.split(line).nth(1).and_then(|section| section.split("a=mid:").nth(1)).unwrap();
    let mid = mid.lines().next().unwrap();
    let (head, tail) = answer.split_once(line).unwrap();
    let head = head
        .lines()
        .map(|l| match l.strip_prefix("a=group:BUNDLE") {
            Some(mids) => {
                let kept: Vec<&str> = mids.split_ascii_whitespace().filter(|m| *m != mid).collect();
                format!("a=group:BUNDLE {}\r\n", kept.join(" "))
            }
            None => format!("{l}\r\n"),
        })
        .collect::<String>();
    format!("{head}{line} 0{}", tail.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()))
}
