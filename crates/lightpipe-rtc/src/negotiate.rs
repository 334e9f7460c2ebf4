//! Offers and candidates from strangers: limits first, then the engine; and which codec a viewer gets.

use std::borrow::Cow;
use std::net::SocketAddr;

use lightpipe_media::VideoCodec;
use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::format::{Codec, FormatParams, PayloadParams};
use str0m::media::{Frequency, MediaKind, Mid, Pt};
use str0m::net::Protocol;
use str0m::{Rtc, RtcConfig};

/// Longest SDP accepted, bytes.
pub const MAX_SDP_LEN: usize = 64 << 10;
/// Most m-lines accepted.
pub const MAX_MEDIA_LINES: usize = 16;
/// Most remote candidates of one peer, in the offer and trickled together.
pub const MAX_CANDIDATES: usize = 64;

/// Why an offer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// Over a limit of ours.
    #[error("the offer has {what}, more than the {limit} allowed")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: usize,
    },
    /// Not SDP, or SDP that breaks its RFCs.
    #[error("the offer is not valid SDP: {0}")]
    Malformed(String),
    /// Valid, but nothing in it wants video.
    #[error("the offer has no video m-line that receives")]
    NoVideo,
    /// The stream is sound only, and nothing in the offer wants that.
    #[error("this stream is sound only, and the offer has no audio m-line that receives Opus")]
    NoAudio,
    /// A publisher's offer without anything that we can take.
    #[error(
        "nothing in the offer can be taken: H.264 (packetization-mode 1), VP8, VP9, AV1 (both of profile 0) and Opus are, the offer sends {offered}"
    )]
    NothingPublished {
        /// Codecs of the offer's video m-lines.
        offered: String,
    },
    /// No codec in common. `offered` names the peer's.
    #[error("no common video codec: this stream is {ours}, the offer has {offered}")]
    NoCommonCodec {
        /// What the stream is, or can be had in.
        ours: String,
        /// Codecs of the offer's video m-lines.
        offered: String,
    },
}

/// Why an answer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// Over a limit of ours.
    #[error("the answer has {what}, more than the {limit} allowed")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: usize,
    },
    /// Not SDP, or none that answers our offer.
    #[error("the answer is not valid: {0}")]
    Malformed(String),
    /// Every track was rejected.
    #[error("the answer takes none of the offered tracks")]
    NothingTaken,
    /// There was an answer already, or never an offer.
    #[error("no answer is waited for")]
    NotAwaited,
}

/// What is wrong with SDP before its content is looked at.
enum SdpFlaw {
    TooLarge { what: String, limit: usize },
    Malformed(String),
}

impl From<SdpFlaw> for OfferError {
    fn from(flaw: SdpFlaw) -> Self {
        match flaw {
            SdpFlaw::TooLarge { what, limit } => Self::TooLarge { what, limit },
            SdpFlaw::Malformed(what) => Self::Malformed(what),
        }
    }
}

impl From<SdpFlaw> for AnswerError {
    fn from(flaw: SdpFlaw) -> Self {
        match flaw {
            SdpFlaw::TooLarge { what, limit } => Self::TooLarge { what, limit },
            SdpFlaw::Malformed(what) => Self::Malformed(what),
        }
    }
}

/// Checks limits and parses.
pub(crate) fn parse_offer(sdp: &str) -> Result<SdpOffer, OfferError> {
    SdpOffer::from_sdp_string(&as_meant(&usable(sdp)?)).map_err(|e| OfferError::Malformed(e.to_string()))
}

/// The same for an answer.
pub(crate) fn parse_answer(sdp: &str) -> Result<SdpAnswer, AnswerError> {
    SdpAnswer::from_sdp_string(&usable(sdp)?).map_err(|e| AnswerError::Malformed(e.to_string()))
}

/// Checks limits, and leaves out what the engine must not see.
fn usable(sdp: &str) -> Result<String, SdpFlaw> {
    if sdp.len() > MAX_SDP_LEN {
        return Err(SdpFlaw::TooLarge { what: format!("{} bytes", sdp.len()), limit: MAX_SDP_LEN });
    }
    let media_lines = sdp.lines().filter(|l| l.starts_with("m=")).count();
    if media_lines > MAX_MEDIA_LINES {
        return Err(SdpFlaw::TooLarge { what: format!("{media_lines} m-lines"), limit: MAX_MEDIA_LINES });
    }
    // The engine drops an m-line that it cannot read and answers as if it had not been there. RFC 8866 §5.14: four fields.
    if let Some(short) = sdp.lines().find(|l| l.starts_with("m=") && l.split_ascii_whitespace().count() < 4) {
        return Err(SdpFlaw::Malformed(format!("incomplete m-line {:?}", short.chars().take(80).collect::<String>())));
    }
    let candidates = sdp.lines().filter(|l| l.starts_with("a=candidate:")).count();
    if candidates > MAX_CANDIDATES {
        return Err(SdpFlaw::TooLarge { what: format!("{candidates} candidates"), limit: MAX_CANDIDATES });
    }
    // Browsers behind mDNS write candidates that nobody but their own network resolves. The engine parses
    // addresses only, so these lines leave before it sees them; the peer-reflexive pair does the work.
    let av1 = payload_types_of(sdp, " av1/90000");
    let lines = sdp.lines().filter(|l| !is_mdns_candidate(l)).map(str::trim_end);
    Ok(lines.filter_map(|l| without_av1_level(l, &av1)).flat_map(|l| [l, Cow::Borrowed("\r\n")]).collect())
}

/// Payload types whose `rtpmap` ends like this, in lower case.
fn payload_types_of<'a>(sdp: &'a str, codec: &str) -> Vec<&'a str> {
    let maps = sdp.lines().filter(|line| line.trim_end().to_ascii_lowercase().ends_with(codec));
    maps.filter_map(|line| payload_type(line, "a=rtpmap:")).collect()
}

/// The engine takes AV1 of one level and tier only. Both are the most that the writer of the line can receive (AOM's RTP payload format
/// §7.2), and pictures that are passed on are as large as they are, whatever either side wrote.
fn without_av1_level<'a>(line: &'a str, av1: &[&str]) -> Option<Cow<'a, str>> {
    if payload_type(line, "a=fmtp:").is_none_or(|pt| !av1.contains(&pt)) {
        return Some(Cow::Borrowed(line));
    }
    let (head, parameters) = line.split_once(' ')?;
    let of_level = |parameter: &&str| matches!(parameter.split('=').next().map(str::trim), Some(name) if name.eq_ignore_ascii_case("level-idx") || name.eq_ignore_ascii_case("tier"));
    let rest: Vec<&str> = parameters.split(';').filter(|parameter| !of_level(parameter)).collect();
    (!rest.is_empty()).then(|| Cow::Owned(format!("{head} {}", rest.join(";"))))
}

/// Hands the engine the answer to an offer of ours, which is `pending` once.
pub(crate) fn accept_answer(
    rtc: &mut Rtc,
    pending: &mut Option<SdpPendingOffer>,
    answer: &str,
) -> Result<(), AnswerError> {
    let parsed = parse_answer(answer)?;
    let pending = pending.take().ok_or(AnswerError::NotAwaited)?;
    rtc.sdp_api().accept_answer(pending, parsed).map_err(|e| AnswerError::Malformed(e.to_string()))
}

/// Tells the engine where peers can reach us.
pub(crate) fn add_host_candidates(rtc: &mut Rtc, addresses: &[SocketAddr]) {
    for address in addresses.iter().filter(|a| is_advertisable(a)) {
        if let Ok(candidate) = str0m::Candidate::host(*address, Protocol::Udp) {
            rtc.add_local_candidate(candidate);
        }
    }
}

/// Mids of a description, in order.
pub(crate) fn mids_of(sdp: &str) -> Vec<Mid> {
    sdp.lines().filter_map(|l| l.strip_prefix("a=mid:")).map(|m| Mid::from(m.trim())).collect()
}

/// Says in an offer what its writer left out and means nevertheless. GStreamer's receivers take every packetization of H.264 and write
/// none of the parameters that say so.
///
/// - H.264 without `packetization-mode` would be mode 0 (RFC 6184 §8.1), which no WebRTC program sends. Browsers that write such a
///   payload type offer one of mode 1 beside it; where there is none, mode 1 is what was meant.
/// - Opus without its channels, which are always two (RFC 7587 §4.1).
fn as_meant(sdp: &str) -> String {
    let has_mode = |line: &str| line.to_ascii_lowercase().contains("packetization-mode=");
    let modeless = if sdp.lines().any(has_mode) { Vec::new() } else { payload_types_of(sdp, " h264/90000") };
    let mut meant = String::with_capacity(sdp.len());
    for line in sdp.lines() {
        meant.push_str(line);
        if payload_type(line, "a=fmtp:").is_some_and(|pt| modeless.contains(&pt)) {
            meant.push_str(";packetization-mode=1");
        } else if let Some(pt) = payload_type(line, "a=rtpmap:") {
            if line.to_ascii_lowercase().ends_with(" opus/48000") {
                meant.push_str("/2");
            } else if modeless.contains(&pt) && !sdp.lines().any(|l| payload_type(l, "a=fmtp:") == Some(pt)) {
                meant.push_str(&format!("\r\na=fmtp:{pt} profile-level-id=42e01f;packetization-mode=1"));
            }
        }
        meant.push_str("\r\n");
    }
    meant
}

/// The payload type of an attribute that begins with it.
fn payload_type<'a>(line: &'a str, attribute: &str) -> Option<&'a str> {
    line.strip_prefix(attribute)?.split(' ').next()
}

fn is_mdns_candidate(line: &str) -> bool {
    line.starts_with("a=candidate:") && connection_address(&line["a=".len()..]).is_some_and(|a| a.ends_with(".local"))
}

/// The fifth field of a candidate attribute (RFC 8839 §5.1).
fn connection_address(candidate: &str) -> Option<&str> {
    candidate.split_ascii_whitespace().nth(4)
}

/// Whether an m-line of the offer wants to receive video. Without a direction attribute it does (RFC 8866 §6.7).
pub(crate) fn wants_video(sdp: &str) -> bool {
    let mut sections = sdp.split("\nm=").skip(1);
    sections.any(|section| {
        section.starts_with("video") && !section.lines().any(|l| matches!(l.trim_end(), "a=sendonly" | "a=inactive"))
    })
}

/// Names of the codecs in the offer's video m-lines, for an error message.
pub(crate) fn offered_video_codecs(sdp: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut in_video = false;
    for line in sdp.lines() {
        if line.starts_with("m=") {
            in_video = line.starts_with("m=video");
        } else if in_video
            && let Some(map) = line.strip_prefix("a=rtpmap:")
            && let Some(name) = map.split_once(' ').and_then(|(_, codec)| codec.split('/').next())
            && !matches!(name, "rtx" | "red" | "ulpfec" | "flexfec-03")
            && !names.contains(&name)
            && names.len() < 16
        {
            names.push(name);
        }
    }
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The codec that a publisher's pictures will have: `prefer` if its first sending video m-line has it, else the first of that line
/// that we carry.
pub(crate) fn published_codec(offer: &str, prefer: Option<VideoCodec>) -> Option<VideoCodec> {
    let mut sections = offer.split("\nm=").skip(1);
    let section = sections.find(|section| {
        section.starts_with("video") && !section.lines().any(|l| matches!(l.trim_end(), "a=recvonly" | "a=inactive"))
    })?;
    let order = section.lines().next()?.split_ascii_whitespace().skip(3);
    let codec_of = |pt: &str| {
        let attribute = |name: &str| {
            let prefix = format!("a={name}:{pt} ");
            section.lines().find_map(|l| l.trim_end().strip_prefix(&prefix).map(str::to_ascii_lowercase))
        };
        let format = attribute("fmtp").unwrap_or_default().replace(' ', "");
        let parameter =
            |name: &str| format.split(';').find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
        let map = attribute("rtpmap")?;
        match map.split('/').next()? {
            "vp8" => Some(VideoCodec::Vp8),
            // RFC 9628 §6.1, and §7.2 of AV1's: 4:2:0 of 8 bits (AV1: or 10), which is also what is meant without the parameter.
            "vp9" => parameter("profile-id").is_none_or(|profile| profile == "0").then_some(VideoCodec::Vp9),
            "av1" => parameter("profile").is_none_or(|profile| profile == "0").then_some(VideoCodec::Av1),
            "h264" => {
                // RFC 6184 §8.1: without the parameter it is mode 0, one packet per NAL unit.
                let mode = parameter("packetization-mode")?;
                let baseline = parameter("profile-level-id")?.starts_with("42");
                (baseline && mode == "1").then_some(VideoCodec::H264)
            }
            _ => None,
        }
    };
    let codecs: Vec<VideoCodec> = order.filter_map(codec_of).collect();
    prefer.filter(|codec| codecs.contains(codec)).or_else(|| codecs.first().copied())
}

/// The codec of pictures that we carry, by the engine's name.
pub(crate) const fn ours(codec: Codec) -> Option<VideoCodec> {
    match codec {
        Codec::H264 => Some(VideoCodec::H264),
        Codec::Vp8 => Some(VideoCodec::Vp8),
        Codec::Vp9 => Some(VideoCodec::Vp9),
        Codec::Av1 => Some(VideoCodec::Av1),
        _ => None,
    }
}

/// The engine with one more codec, and the payload types that it has in offers of ours.
pub(crate) fn with_codec(mut config: RtcConfig, codec: VideoCodec) -> RtcConfig {
    match codec {
        VideoCodec::Vp8 => config.enable_vp8(true),
        VideoCodec::Vp9 => {
            // The engine's own way would take 10-bit pictures, too, which viewers need not decode.
            let format = FormatParams { profile_id: Some(0), ..FormatParams::default() };
            config.codec_config().add_config(
                98.into(),
                Some(99.into()),
                Codec::Vp9,
                Frequency::NINETY_KHZ,
                None,
                format,
            );
            config
        }
        VideoCodec::Av1 => config.enable_av1(true),
        _ => {
            let codecs = config.codec_config();
            codecs.add_h264(108.into(), Some(109.into()), true, 0x42_e01f);
            codecs.add_h264(127.into(), Some(121.into()), true, 0x42_001f);
            config
        }
    }
}

/// The m-line and payload type on which a peer receives our H.264.
///
/// Constrained Baseline (`42e01f`) first, then Baseline; always packetization-mode 1. The payload type is the
/// negotiated one, never a constant of ours.
pub(crate) fn choose_h264(remote_pts: &[Pt], params: &[PayloadParams]) -> Option<Pt> {
    let usable = |p: &&PayloadParams| {
        p.spec().codec == Codec::H264 && p.spec().format.packetization_mode == Some(1) && remote_pts.contains(&p.pt())
    };
    let preference = |p: &&PayloadParams| match p.spec().format.profile_level_id.map(|id| id >> 8) {
        Some(0x42e0) => 0,
        Some(0x4200) => 1,
        _ => 2,
    };
    params.iter().filter(usable).min_by_key(preference).map(PayloadParams::pt)
}

/// What a viewer's video or audio goes out on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendLine {
    pub(crate) mid: Mid,
    pub(crate) pt: Pt,
}

/// First sending video m-line with a payload type for our codec.
pub(crate) fn video_line(rtc: &Rtc, mids: &[Mid], codec: VideoCodec) -> Option<SendLine> {
    mids.iter().find_map(|mid| {
        let media = rtc.media(*mid)?;
        if media.kind() != MediaKind::Video || !media.direction().is_sending() {
            return None;
        }
        let params = rtc.codec_config().params();
        let first = |codec: Codec| {
            let is_it = |p: &&PayloadParams| p.spec().codec == codec && media.remote_pts().contains(&p.pt());
            params.iter().find(is_it).map(PayloadParams::pt)
        };
        let pt = match codec {
            VideoCodec::Vp8 => first(Codec::Vp8),
            VideoCodec::Vp9 => first(Codec::Vp9),
            VideoCodec::Av1 => first(Codec::Av1),
            _ => choose_h264(media.remote_pts(), params),
        }?;
        Some(SendLine { mid: *mid, pt })
    })
}

/// First sending audio m-line with a payload type for Opus.
pub(crate) fn audio_line(rtc: &Rtc, mids: &[Mid]) -> Option<SendLine> {
    mids.iter().find_map(|mid| {
        let media = rtc.media(*mid)?;
        if media.kind() != MediaKind::Audio || !media.direction().is_sending() {
            return None;
        }
        let is_ours = |p: &&PayloadParams| p.spec().codec == Codec::Opus && media.remote_pts().contains(&p.pt());
        let pt = rtc.codec_config().params().iter().find(is_ours)?.pt();
        Some(SendLine { mid: *mid, pt })
    })
}

/// A remote candidate, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    /// One that connectivity checks can use.
    Usable(String),
    /// An mDNS name: ignored quietly, peer-reflexive pairs do the work.
    Mdns,
    /// The empty string: the peer has no more.
    EndOfCandidates,
}

/// Why a candidate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CandidateError {
    /// Not the syntax of RFC 8839 §5.1.
    #[error("not an ICE candidate: {0}")]
    Malformed(String),
    /// More than [`MAX_CANDIDATES`] of one peer.
    #[error("more than {MAX_CANDIDATES} candidates of one peer")]
    TooMany,
}

impl Candidate {
    /// Parses the `candidate` string of an `RTCIceCandidateInit`, with or without `a=`.
    pub fn parse(text: &str) -> Result<Self, CandidateError> {
        let text = text.trim();
        let text = text.strip_prefix("a=").unwrap_or(text);
        if text.is_empty() || text == "end-of-candidates" {
            return Ok(Self::EndOfCandidates);
        }
        let excerpt = || text.chars().take(80).collect::<String>();
        if text.len() > 1024 || !text.starts_with("candidate:") {
            return Err(CandidateError::Malformed(excerpt()));
        }
        if connection_address(text).is_some_and(|a| a.ends_with(".local")) {
            return Ok(Self::Mdns);
        }
        str0m::Candidate::from_sdp_string(text).map_err(|_| CandidateError::Malformed(excerpt()))?;
        Ok(Self::Usable(text.to_owned()))
    }
}

/// Replaces ICE credentials (and drops candidates) of an offer: an ICE restart arrives as a fragment (RFC 8840 §9),
/// the engine wants whole offers.
pub(crate) fn with_credentials(offer: &str, ufrag: &str, pwd: &str) -> String {
    offer
        .lines()
        .filter(|l| !l.starts_with("a=candidate:") && !l.starts_with("a=end-of-candidates"))
        .map(|line| {
            if line.starts_with("a=ice-ufrag:") {
                format!("a=ice-ufrag:{ufrag}\r\n")
            } else if line.starts_with("a=ice-pwd:") {
                format!("a=ice-pwd:{pwd}\r\n")
            } else {
                format!("{}\r\n", line.trim_end())
            }
        })
        .collect()
}

/// An answer that promises no pictures where there is only sound: the page need not wait for any.
pub(crate) fn without_pictures(answer: &str) -> String {
    let mut in_video = false;
    let line = |line: &str| {
        if line.starts_with("m=") {
            in_video = line.starts_with("m=video");
        }
        if in_video && line.trim_end() == "a=sendonly" { "a=inactive\r\n".to_owned() } else { line.to_owned() }
    };
    answer.split_inclusive('\n').map(line).collect()
}

/// Says in an answer that we only receive, of the kinds that we have nothing to send of: the engine answers every offer to receive.
pub(crate) fn receiving_only(answer: &str, video: bool, audio: bool) -> String {
    let mut here = false;
    let line = |line: &str| {
        if line.starts_with("m=") {
            here = (video && line.starts_with("m=video")) || (audio && line.starts_with("m=audio"));
        }
        match line.trim_end() {
            "a=sendrecv" if here => "a=recvonly\r\n".to_owned(),
            "a=sendonly" if here => "a=inactive\r\n".to_owned(),
            _ => line.to_owned(),
        }
    };
    answer.split_inclusive('\n').map(line).collect()
}

/// Puts all tracks of an answer into one media stream (RFC 8830), which is what tells a receiver to play them in sync. The engine
/// makes one of each.
pub(crate) fn in_one_stream(answer: &str) -> String {
    let stream_of = |line: &str| {
        let (_, msid) = line.split_once("msid:")?;
        Some(msid.split_ascii_whitespace().next()?.to_owned())
    };
    let is_msid = |line: &&str| line.starts_with("a=msid:") || (line.starts_with("a=ssrc:") && line.contains(" msid:"));
    let Some(first) = answer.lines().filter(is_msid).find_map(stream_of) else { return answer.to_owned() };
    let mut renamed = String::with_capacity(answer.len());
    for line in answer.lines() {
        if line.starts_with("a=msid-semantic:") {
            renamed.push_str(&format!("a=msid-semantic: WMS {first}"));
        } else {
            let own = Some(line).filter(is_msid).and_then(stream_of);
            renamed.push_str(&own.map_or_else(|| line.to_owned(), |own| line.replacen(&own, &first, 1)));
        }
        renamed.push_str("\r\n");
    }
    renamed
}

/// Addresses that a peer can be told about: no multicast, no unspecified ones, no port 0.
pub(crate) fn is_advertisable(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<Candidate, CandidateError>) {
        assert_eq!(Candidate::parse(text), expected, "{text:?}");
    }

    #[test]
    fn sound_alone_promises_no_pictures() {
        assert_eq!(
            without_pictures("v=0\r\nm=video 9 x 96\r\na=sendonly\r\nm=audio 9 x 111\r\na=sendonly\r\n"),
            "v=0\r\nm=video 9 x 96\r\na=inactive\r\nm=audio 9 x 111\r\na=sendonly\r\n"
        );
    }

    #[test]
    fn candidates_as_browsers_send_them() {
        let usable = "candidate:1 1 udp 2130706431 192.0.2.7 50000 typ host generation 0 ufrag abcd network-id 1";
        check(usable, Ok(Candidate::Usable(usable.into())));
        check(&format!("a={usable}"), Ok(Candidate::Usable(usable.into())));
        check("candidate:1 1 udp 2113937151 0c6a9ba0-1111.local 54400 typ host", Ok(Candidate::Mdns));
        check("", Ok(Candidate::EndOfCandidates));
        check("a=end-of-candidates", Ok(Candidate::EndOfCandidates));
        check("candidate:", Err(CandidateError::Malformed("candidate:".into())));
        check("hello", Err(CandidateError::Malformed("hello".into())));
    }

    #[test]
    fn oversized_offers_name_the_limit() {
        let long = "v".repeat(MAX_SDP_LEN + 1);
        assert!(matches!(parse_offer(&long), Err(OfferError::TooLarge { limit: MAX_SDP_LEN, .. })));
        let wide = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n".repeat(MAX_MEDIA_LINES + 1);
        assert!(matches!(parse_offer(&wide), Err(OfferError::TooLarge { limit: MAX_MEDIA_LINES, .. })));
        let chatty = "a=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n".repeat(MAX_CANDIDATES + 1);
        assert!(matches!(parse_offer(&chatty), Err(OfferError::TooLarge { limit: MAX_CANDIDATES, .. })));
        for text in
            ["", "hello", "v=0\r\n", "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video\r\n", "\u{0}\u{1}"]
        {
            assert!(matches!(parse_offer(text), Err(OfferError::Malformed(_))), "{text:?}");
        }
    }

    #[test]
    fn what_an_offer_leaves_out_is_said() {
        #[track_caller]
        fn check(line: &str, expected: &str) {
            assert_eq!(as_meant(line).replace("\r\n", "|"), expected.to_owned() + "|");
        }
        check("a=rtpmap:101 OPUS/48000", "a=rtpmap:101 OPUS/48000/2");
        check("a=rtpmap:101 opus/48000/2", "a=rtpmap:101 opus/48000/2");
        check(
            "a=rtpmap:97 H264/90000\na=fmtp:97 profile-level-id=42e016",
            "a=rtpmap:97 H264/90000|a=fmtp:97 profile-level-id=42e016;packetization-mode=1",
        );
        check(
            "a=rtpmap:103 H264/90000",
            "a=rtpmap:103 H264/90000|a=fmtp:103 profile-level-id=42e01f;packetization-mode=1",
        );
        // Firefox: the payload type without the parameter is mode 0 and meant so.
        let firefox = "a=rtpmap:126 H264/90000|a=fmtp:126 profile-level-id=42e01f;packetization-mode=1|a=rtpmap:97 H264/90000|a=fmtp:97 profile-level-id=42e01f";
        check(&firefox.replace('|', "\n"), firefox);
        let mode0 = "a=rtpmap:97 H264/90000|a=fmtp:97 packetization-mode=0";
        check(&mode0.replace('|', "\n"), mode0);
    }

    #[test]
    fn levels_of_av1_do_not_reach_the_engine() {
        #[track_caller]
        fn check(parameters: &str, expected: &str) {
            let sdp = format!("a=rtpmap:45 AV1/90000\na=fmtp:45 {parameters}\na=fmtp:46 {parameters}");
            let expected = format!("a=rtpmap:45 AV1/90000|{expected}a=fmtp:46 {parameters}|");
            assert_eq!(usable(&sdp).unwrap_or_default().replace("\r\n", "|"), expected);
        }
        check("level-idx=8;profile=0;tier=1", "a=fmtp:45 profile=0|");
        check("profile=1; level-idx=5", "a=fmtp:45 profile=1|");
        check("level-idx=5;tier=0", "");
    }

    #[test]
    fn codecs_of_the_offer_are_named() {
        let sdp = "m=audio 9 x 111\r\na=rtpmap:111 opus/48000/2\r\nm=video 9 x 96 97 98\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=rtpmap:98 VP9/90000\r\n";
        assert_eq!(offered_video_codecs(sdp), "VP8, VP9");
        assert_eq!(offered_video_codecs(""), "none");
    }

    #[test]
    fn only_an_m_line_that_receives_wants_video() {
        let check = |sdp: &str, expected| assert_eq!(wants_video(sdp), expected, "{sdp:?}");
        check("v=0\r\nm=video 9 x 96\r\na=recvonly\r\n", true);
        check("v=0\nm=audio 9 x 0\na=sendonly\nm=video 9 x 96\n", true);
        check("v=0\r\nm=video 9 x 96\r\na=sendonly\r\n", false);
        check("v=0\r\nm=video 9 x 96\r\na=inactive\r\nm=audio 9 x 0\r\na=recvonly\r\n", false);
        check("v=0\r\nm=audio 9 x 0\r\n", false);
        check("", false);
    }

    #[test]
    fn all_tracks_of_an_answer_are_in_one_stream() {
        let answer = "v=0\r\na=msid-semantic:WMS one two\r\nm=audio 9 x 111\r\na=msid:one track-a\r\na=ssrc:1 msid:one track-a\r\nm=video 9 x 96\r\na=msid:two track-v\r\na=ssrc:2 cname:two\r\na=ssrc:2 msid:two track-v\r\n";
        let expected = "v=0\r\na=msid-semantic: WMS one\r\nm=audio 9 x 111\r\na=msid:one track-a\r\na=ssrc:1 msid:one track-a\r\nm=video 9 x 96\r\na=msid:one track-v\r\na=ssrc:2 cname:two\r\na=ssrc:2 msid:one track-v\r\n";
        assert_eq!(in_one_stream(answer), expected);
        assert_eq!(in_one_stream("v=0\r\n"), "v=0\r\n");
    }

    #[test]
    fn the_publishers_first_codec_that_we_carry_is_taken() {
        let line = |text: &str| format!("v=0\r\nm=audio 9 x 111\r\na=rtpmap:111 opus/48000/2\r\n{text}");
        let check =
            |text: &str, prefer, expected| assert_eq!(published_codec(&line(text), prefer), expected, "{text:?}");
        let vp8 = "a=rtpmap:96 VP8/90000\r\n";
        let h264 = "a=rtpmap:97 H264/90000\r\na=fmtp:97 packetization-mode=1;profile-level-id=42e01f\r\n";
        let both = format!("m=video 9 x 98 96 97\r\na=rtpmap:98 H265/90000\r\n{vp8}{h264}");
        check(&both, None, Some(VideoCodec::Vp8));
        check(&both, Some(VideoCodec::H264), Some(VideoCodec::H264));
        check(&format!("m=video 9 x 97 96\r\n{vp8}{h264}"), None, Some(VideoCodec::H264));
        check(&format!("m=video 9 x 96\r\n{vp8}"), Some(VideoCodec::H264), Some(VideoCodec::Vp8));
        check(&format!("m=video 9 x 96\r\na=recvonly\r\n{vp8}"), None, None);
        let high =
            "m=video 9 x 97\r\na=rtpmap:97 H264/90000\r\na=fmtp:97 packetization-mode=1;profile-level-id=640c1f\r\n";
        check(high, None, None);
        let mode0 = "m=video 9 x 97\r\na=rtpmap:97 H264/90000\r\na=fmtp:97 profile-level-id=42e01f\r\n";
        check(mode0, None, None);
        let (ten_bits, vp9) = (
            "a=rtpmap:98 VP9/90000\r\na=fmtp:98 profile-id=2\r\n",
            "a=rtpmap:99 VP9/90000\r\na=fmtp:99 profile-id=0\r\n",
        );
        check(&format!("m=video 9 x 98 99 96\r\n{ten_bits}{vp9}{vp8}"), None, Some(VideoCodec::Vp9));
        check(&format!("m=video 9 x 98 96\r\n{ten_bits}{vp8}"), Some(VideoCodec::Vp9), Some(VideoCodec::Vp8));
        let av1 = "a=rtpmap:45 AV1/90000\r\n";
        let high = "a=fmtp:45 level-idx=5;profile=1;tier=0\r\n";
        check(&format!("m=video 9 x 45 96\r\n{av1}{vp8}"), None, Some(VideoCodec::Av1));
        check(&format!("m=video 9 x 45 96\r\n{av1}{high}{vp8}"), None, Some(VideoCodec::Vp8));
        check(&format!("m=video 9 x 45 96\r\n{av1}{vp8}"), Some(VideoCodec::Vp8), Some(VideoCodec::Vp8));
        check("", None, None);
    }

    #[test]
    fn restart_fragments_become_whole_offers() {
        let offer =
            "v=0\r\na=ice-ufrag:old\r\na=ice-pwd:oldpwd\r\na=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\nm=x\r\n";
        assert_eq!(with_credentials(offer, "new", "newpwd"), "v=0\r\na=ice-ufrag:new\r\na=ice-pwd:newpwd\r\nm=x\r\n");
    }
}
