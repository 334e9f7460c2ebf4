//! Offers of browsers, and of programs that offer too little.

use lightpipe_media::VideoCodec;
use lightpipe_rtc::{OfferError, Peer, PeerError, Publisher, Tracks};
use lightpipe_testkit::netlab::LinkConfig;

use crate::lab::{Lab, secs};
use crate::raw::RawConfig;

const SESSION: &str = "v=0\r\no=- 4611732954219873 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n";
const FINGERPRINT: &str = "a=fingerprint:sha-256 \
    7B:8B:F0:65:5F:78:E2:51:3B:AC:6F:F3:3F:46:1B:35:DC:B8:5F:64:1A:24:C2:43:F0:A1:58:D0:A1:2C:19:08\r\n";

fn transport(setup: &str) -> String {
    format!(
        "c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=ice-ufrag:Yb3x\r\na=ice-pwd:w1mH2bB8Zw9wq4T0qf6sYt3u\r\na=ice-options:trickle\r\n{FINGERPRINT}a=setup:{setup}\r\n"
    )
}

/// An H.264 payload type with its RTX, as browsers write them.
fn h264(pt: u8, profile: &str, mode: u8) -> String {
    let rtx = pt + 1;
    format!(
        "a=rtpmap:{pt} H264/90000\r\na=rtcp-fb:{pt} goog-remb\r\na=rtcp-fb:{pt} transport-cc\r\na=rtcp-fb:{pt} ccm fir\r\na=rtcp-fb:{pt} nack\r\na=rtcp-fb:{pt} nack pli\r\n\
         a=fmtp:{pt} level-asymmetry-allowed=1;packetization-mode={mode};profile-level-id={profile}\r\na=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={pt}\r\n"
    )
}

fn vp8(pt: u8) -> String {
    format!(
        "a=rtpmap:{pt} VP8/90000\r\na=rtcp-fb:{pt} nack\r\na=rtcp-fb:{pt} nack pli\r\na=rtpmap:{} rtx/90000\r\na=fmtp:{} apt={pt}\r\n",
        pt + 1,
        pt + 1
    )
}

/// Another codec's payload type with its RTX and this `fmtp`.
fn other(pt: u8, name: &str, format: &str) -> String {
    let format = if format.is_empty() { String::new() } else { format!("a=fmtp:{pt} {format}\r\n") };
    vp8(pt).replace("VP8", name) + &format
}

const EXTENSIONS: &str = "a=extmap:14 urn:ietf:params:rtp-hdrext:toffset\r\n\
    a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time\r\n\
    a=extmap:13 urn:3gpp:video-orientation\r\n\
    a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
    a=extmap:12 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay\r\n\
    a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid\r\n";

fn video(mid: &str, setup: &str, pts: &[u8], codecs: &str) -> String {
    let list: Vec<String> = pts.iter().flat_map(|pt| [pt.to_string(), (pt + 1).to_string()]).collect();
    format!(
        "m=video 9 UDP/TLS/RTP/SAVPF {}\r\n{}a=mid:{mid}\r\n{EXTENSIONS}a=recvonly\r\na=rtcp-mux\r\na=rtcp-rsize\r\n{codecs}",
        list.join(" "),
        transport(setup)
    )
}

fn audio(mid: &str) -> String {
    format!(
        "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n{}a=mid:{mid}\r\na=recvonly\r\na=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\n",
        transport("actpass")
    )
}

fn application(mid: &str) -> String {
    format!(
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{}a=mid:{mid}\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n",
        transport("actpass")
    )
}

fn chromium() -> String {
    let codecs = [
        vp8(96),
        h264(102, "42001f", 1),
        h264(104, "42001f", 0),
        h264(106, "42e01f", 1),
        h264(108, "42e01f", 0),
        h264(112, "4d001f", 1),
    ]
    .concat();
    format!(
        "{SESSION}a=group:BUNDLE 0 1 2\r\na=extmap-allow-mixed\r\na=msid-semantic: WMS\r\n{}{}{}",
        audio("0"),
        video("1", "actpass", &[96, 102, 104, 106, 108, 112], &codecs),
        application("2")
    )
}

fn firefox() -> String {
    let codecs = [vp8(120), h264(126, "42e01f", 1), h264(97, "42e01f", 0)].concat();
    format!(
        "v=0\r\no=mozilla...THIS_IS_SDPARTA-99.0 5 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=sendrecv\r\n{FINGERPRINT}a=group:BUNDLE 0 1\r\na=ice-options:trickle\r\na=msid-semantic:WMS *\r\n{}{}",
        video("0", "actpass", &[120, 126, 97], &codecs),
        application("1")
    )
}

fn only(codecs: &str, pts: &[u8]) -> String {
    format!("{SESSION}a=group:BUNDLE 0\r\n{}", video("0", "actpass", pts, codecs))
}

fn answer(offer: &str) -> Result<String, OfferError> {
    let lab = Lab::seeded(1);
    match Peer::answer(lab.config, offer, Tracks::VIDEO, lab.now) {
        Ok((_, answer)) => Ok(answer),
        Err(PeerError::Offer(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// Payload types of the answer's video m-line, with their codec names.
fn answered_codecs(answer: &str) -> Vec<(String, String)> {
    let section = answer.split("m=video").nth(1).unwrap().split("\r\nm=").next().unwrap();
    let maps = section.lines().filter_map(|l| l.strip_prefix("a=rtpmap:")).filter_map(|m| m.split_once(' '));
    maps.map(|(pt, codec)| (pt.to_owned(), codec.to_owned())).collect()
}

#[track_caller]
fn check(offer: &str, payload_type: &str) {
    let answer = answer(offer).unwrap();
    let codecs = answered_codecs(&answer);
    assert!(codecs.iter().any(|(pt, codec)| pt == payload_type && codec == "H264/90000"), "{codecs:?}");
    assert!(codecs.iter().all(|(_, codec)| codec == "H264/90000" || codec == "rtx/90000"), "{codecs:?}");
    for line in answer.lines().filter(|l| l.starts_with("m=")) {
        // The BUNDLE group is what tells an accepted m-line from a refused one; browsers also look at the port.
        let refused = line.split(' ').nth(1) == Some("0");
        let mid = answer.split(line).nth(1).unwrap().lines().find_map(|l| l.strip_prefix("a=mid:")).unwrap();
        let group = answer.lines().find(|l| l.starts_with("a=group:BUNDLE")).unwrap();
        assert_eq!(!refused, group.split(' ').any(|m| m == mid), "{line} against {group}");
    }
    let video = answer.lines().find(|l| l.starts_with("m=video")).unwrap();
    assert!(video.starts_with("m=video 9 "), "{video}");
    assert!(answer.contains("a=sendonly"), "{answer}");
    assert!(!answer.contains("a=setup:actpass"));
    for line in answer.lines() {
        let Some(value) = line.strip_prefix("a=ice-ufrag:").or_else(|| line.strip_prefix("a=ice-pwd:")) else {
            continue;
        };
        assert!(value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/'), "{line} (RFC 8839 §5.4)");
        assert!(value.len() >= if line.contains("pwd") { 22 } else { 4 }, "{line}");
    }
}

#[test]
fn offers_of_browsers_are_answered_with_their_own_payload_types() {
    check(&chromium(), "106");
    check(&firefox(), "126");
    check(&only(&h264(98, "42e01f", 1), &[98]), "98");
    check(&only(&h264(35, "42001f", 1), &[35]), "35");
    // A browser that numbers another codec as we number H.264.
    check(&only(&[vp8(108), h264(45, "42e01f", 1)].concat(), &[108, 45]), "45");
    check(
        &only(&[h264(125, "42001f", 1), h264(108, "42001f", 0), h264(39, "42e01f", 1)].concat(), &[125, 108, 39]),
        "39",
    );
}

/// Offers as aiortc 1.16 and GStreamer 1.22 with gst-plugin-webrtc 0.15 write them; `docs/interop.md` names the tests that run the programs.
#[test]
fn offers_of_other_programs_are_answered_with_what_both_sides_have() {
    #[track_caller]
    fn check(answer: &str, video: &str, audio: &str) {
        let has = |kind: &str, map: &str| {
            let section = answer.split("m=").find(|section| section.starts_with(kind)).unwrap();
            assert!(section.contains(&format!("a=rtpmap:{map}\r\n")), "{map} in {section}");
        };
        has("video 9 ", video);
        has("audio 9 ", audio);
    }
    let lab = Lab::seeded(1);
    let viewed = |offer: &str, codec| {
        let tracks = Tracks { video: Some(codec), audio: true };
        Peer::answer(lab.config.clone(), offer, tracks, lab.now).unwrap().1
    };
    let published = |offer: &str| Publisher::answer(lab.config.clone(), offer, None, lab.now).unwrap().1;
    let aiortc = include_str!("sdp/aiortc-view.sdp");
    check(&viewed(aiortc, VideoCodec::H264), "101 H264/90000", "96 opus/48000/2");
    check(&viewed(aiortc, VideoCodec::Vp8), "97 VP8/90000", "96 opus/48000/2");
    // It names neither the packetization mode of H.264 nor the channels of Opus.
    let gstreamer = include_str!("sdp/gstreamer-whepclientsrc.sdp");
    check(&viewed(gstreamer, VideoCodec::H264), "97 H264/90000", "101 opus/48000/2");
    check(&viewed(gstreamer, VideoCodec::Vp8), "96 VP8/90000", "101 opus/48000/2");
    check(&published(include_str!("sdp/aiortc-publish-h264.sdp")), "99 H264/90000", "96 opus/48000/2");
    check(&published(include_str!("sdp/aiortc-publish-vp8.sdp")), "97 VP8/90000", "96 opus/48000/2");
    check(&published(include_str!("sdp/gstreamer-whipclientsink.sdp")), "96 H264/90000", "97 opus/48000/2");
}

/// VP9 and AV1 of profile 0, whatever level is written; each with its own payload type and RTX.
#[test]
fn streams_that_are_passed_on_are_answered_in_their_own_codec() {
    let lab = Lab::seeded(1);
    let offers = [
        other(98, "VP9", "profile-id=0"),
        other(41, "VP9", ""),
        [other(100, "VP9", "profile-id=2"), other(96, "VP9", "profile-id=0")].concat(),
        other(45, "AV1", "level-idx=5;profile=0;tier=0"),
        other(39, "AV1", "level-idx=13;profile=0;tier=1"),
        other(99, "AV1", ""),
    ];
    let expected = [("98", "VP9"), ("41", "VP9"), ("96", "VP9"), ("45", "AV1"), ("39", "AV1"), ("99", "AV1")];
    for (codecs, (pt, name)) in offers.iter().zip(expected) {
        let pts: Vec<u8> = codecs
            .lines()
            .filter(|line| line.ends_with(&format!("{name}/90000")))
            .filter_map(|line| line.strip_prefix("a=rtpmap:")?.split(' ').next()?.parse().ok())
            .collect();
        let codec = if name == "VP9" { VideoCodec::Vp9 } else { VideoCodec::Av1 };
        let wanted = vec![
            (pt.to_owned(), format!("{name}/90000")),
            ((pt.parse::<u8>().unwrap() + 1).to_string(), "rtx/90000".into()),
        ];
        let offer = only(codecs, &pts);
        let tracks = Tracks { video: Some(codec), audio: false };
        let (_, viewed) = Peer::answer(lab.config.clone(), &offer, tracks, lab.now).unwrap();
        assert_eq!(answered_codecs(&viewed), wanted, "{codecs}");
        let sends = offer.replace("a=recvonly", "a=sendonly");
        let (publisher, published) = Publisher::answer(lab.config.clone(), &sends, None, lab.now).unwrap();
        assert_eq!((publisher.offered().video, answered_codecs(&published)), (Some(codec), wanted), "{codecs}");
        let other_stream = Peer::answer(lab.config.clone(), &offer, Tracks::VIDEO, lab.now);
        assert!(matches!(other_stream, Err(PeerError::Offer(OfferError::NoCommonCodec { .. }))), "{other_stream:?}");
        let refused = Peer::answer(lab.config.clone(), &only(&vp8(96), &[96]), tracks, lab.now);
        let sentence = format!("no common video codec: this stream is {name}, the offer has VP8");
        assert_eq!(refused.unwrap_err().to_string(), sentence);
    }
}

#[test]
fn lines_with_bare_line_feeds_and_mdns_candidates_are_read() {
    check(&chromium().replace("\r\n", "\n"), "106");
    let mdns =
        "a=candidate:1 1 udp 2113937151 0c6a9ba0-1111-4222-8333-444455556666.local 54400 typ host generation 0\r\n";
    check(&firefox().replace("a=recvonly\r\n", &format!("a=recvonly\r\n{mdns}")), "126");
}

#[test]
fn offers_without_our_codec_are_refused_by_name() {
    let no_common = |offer: &str, named: &str| match answer(offer) {
        Err(OfferError::NoCommonCodec { offered, .. }) => assert_eq!(offered, named),
        other => panic!("{other:?}"),
    };
    no_common(&only(&vp8(96), &[96]), "VP8");
    no_common(&only(&h264(102, "42e01f", 0), &[102]), "H264");
    no_common(&only(&[vp8(96), h264(102, "42e01f", 0)].concat(), &[96, 102]), "VP8, H264");
}

#[test]
fn offers_that_want_no_video_are_refused() {
    let audio_only = format!("{SESSION}a=group:BUNDLE 0\r\n{}", audio("0"));
    assert_eq!(answer(&audio_only), Err(OfferError::NoVideo));
    let data_only = format!("{SESSION}a=group:BUNDLE 0\r\n{}", application("0"));
    assert_eq!(answer(&data_only), Err(OfferError::NoVideo));
    // It wants to send, not to receive: a publisher that came to the wrong door.
    let sender = only(&h264(102, "42e01f", 1), &[102]).replace("a=recvonly", "a=sendonly");
    assert_eq!(answer(&sender), Err(OfferError::NoVideo));
}

/// Trap: a constant payload type while the browser's offer says otherwise.
#[test]
fn packets_carry_the_payload_type_of_the_offer() {
    for payload_type in [96, 102, 39, 125] {
        let mut lab = Lab::seeded(2);
        let link = LinkConfig::default().with_delay_millis(5);
        let viewer = lab.join_raw(&RawConfig { payload_type, ..RawConfig::default() }, link.clone(), link);
        lab.connect();
        lab.run_for(secs(2));
        lab.encoder.paused = true;
        lab.run_for(secs(1));
        let pair = &mut lab.pairs[viewer];
        assert!(pair.rtp.len() > 400 && pair.rtp.iter().all(|p| p.payload_type == payload_type), "{payload_type}");
        assert_eq!(pair.viewer.raw().seen.len(), pair.rtp.len(), "the viewer takes every packet for its video");
    }
}
