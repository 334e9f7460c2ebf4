//! Offers as Chromium writes them, and what an answer to one must look like.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::{Flaw, Verdict, ensure, skip};

/// ICE credentials (RFC 8839 §5.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) ufrag: String,
    pub(crate) pwd: String,
}

impl Credentials {
    pub(crate) fn random() -> Self {
        Self { ufrag: random_ice_chars(4), pwd: random_ice_chars(24) }
    }
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Only the uniqueness of a test session hangs on it.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

/// Text of `ice-char`s.
pub(crate) fn random_ice_chars(len: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    random_bytes::<32>().iter().take(len).map(|byte| char::from(ALPHABET[usize::from(byte & 63)])).collect()
}

/// A video codec of an offer, with its retransmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Video {
    /// Payload type 96, rtx 97.
    Vp8,
    /// Constrained Baseline, packetization-mode 1. Payload type 103, rtx 104.
    H264,
}

/// What to offer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    /// `sendonly` for WHIP, `recvonly` for WHEP.
    pub(crate) direction: &'static str,
    /// `actpass`, or `active` for a client that is DTLS client only.
    pub(crate) setup: &'static str,
    pub(crate) audio: bool,
    pub(crate) video: &'static [Video],
    pub(crate) datachannel: bool,
    /// Send the picture in three sizes, [`RIDS`].
    pub(crate) simulcast: bool,
}

/// RIDs of an offer's simulcast, the one that is wanted most first.
const RIDS: [&str; 3] = ["f", "h", "q"];

impl Offer {
    /// Opus, VP8 and H.264, without a data channel.
    pub(crate) const fn new(direction: &'static str) -> Self {
        let video = &[Video::Vp8, Video::H264];
        Self { direction, setup: "actpass", audio: true, video, datachannel: false, simulcast: false }
    }

    pub(crate) fn to_sdp(self, ice: &Credentials) -> String {
        let fingerprint = random_bytes::<32>().map(|byte| format!("{byte:02X}")).join(":");
        let stream = random_ice_chars(20).replace(['+', '/'], "x");
        let sends = self.direction == "sendonly";
        let kinds = [(self.audio, "audio"), (!self.video.is_empty(), "video"), (self.datachannel, "application")];
        let kinds: Vec<&str> = kinds.into_iter().filter_map(|(wanted, kind)| wanted.then_some(kind)).collect();
        let mids: Vec<String> = (0..kinds.len()).map(|mid| mid.to_string()).collect();
        let mut sdp = format!(
            "v=0\no=- {} 2 IN IP4 127.0.0.1\ns=-\nt=0 0\na=group:BUNDLE {}\na=extmap-allow-mixed\na=msid-semantic: WMS{}\n",
            u64::from_be_bytes(random_bytes()) >> 1,
            mids.join(" "),
            if sends { format!(" {stream}") } else { String::new() },
        );
        for (kind, mid) in kinds.iter().zip(&mids) {
            let formats = match *kind {
                "audio" => "UDP/TLS/RTP/SAVPF 111".to_owned(),
                "video" => format!("UDP/TLS/RTP/SAVPF {}", self.video_payload_types()),
                _ => "UDP/DTLS/SCTP webrtc-datachannel".to_owned(),
            };
            let Credentials { ufrag, pwd } = ice;
            let _ = write!(
                sdp,
                "m={kind} 9 {formats}\nc=IN IP4 0.0.0.0\na=ice-ufrag:{ufrag}\na=ice-pwd:{pwd}\na=ice-options:trickle\na=fingerprint:sha-256 {fingerprint}\na=setup:{}\na=mid:{mid}\n",
                self.setup
            );
            if *kind == "application" {
                sdp.push_str("a=sctp-port:5000\na=max-message-size:262144\n");
                continue;
            }
            let _ = write!(sdp, "a=rtcp:9 IN IP4 0.0.0.0\n{EXTENSIONS}a={}\n", self.direction);
            if sends {
                let _ = writeln!(sdp, "a=msid:{stream} {kind}-track");
            }
            sdp.push_str("a=rtcp-mux\na=rtcp-rsize\n");
            if *kind == "audio" {
                sdp.push_str(
                    "a=rtpmap:111 opus/48000/2\na=rtcp-fb:111 transport-cc\na=fmtp:111 minptime=10;useinbandfec=1\n",
                );
            } else {
                self.write_video(&mut sdp);
            }
            if self.simulcast && *kind == "video" {
                // Browsers name no SSRC here.
                RIDS.iter().for_each(|rid| sdp.push_str(&format!("a=rid:{rid} send\n")));
                let _ = writeln!(sdp, "a=simulcast:send {}", RIDS.join(";"));
            } else if sends {
                let ssrc = u32::from_be_bytes(random_bytes()) | 1;
                let _ = writeln!(sdp, "a=ssrc:{ssrc} cname:{stream}");
            }
        }
        sdp.replace('\n', "\r\n")
    }

    fn video_payload_types(self) -> String {
        let both = |codec: &Video| if *codec == Video::Vp8 { "96 97" } else { "103 104" };
        self.video.iter().map(both).collect::<Vec<_>>().join(" ")
    }

    fn write_video(self, sdp: &mut String) {
        for codec in self.video {
            let (pt, rtx, name) = if *codec == Video::Vp8 { (96, 97, "VP8") } else { (103, 104, "H264") };
            let _ = writeln!(sdp, "a=rtpmap:{pt} {name}/90000");
            for feedback in ["goog-remb", "transport-cc", "ccm fir", "nack", "nack pli"] {
                let _ = writeln!(sdp, "a=rtcp-fb:{pt} {feedback}");
            }
            if *codec == Video::H264 {
                let _ =
                    writeln!(sdp, "a=fmtp:{pt} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f");
            }
            let _ = write!(sdp, "a=rtpmap:{rtx} rtx/90000\na=fmtp:{rtx} apt={pt}\n");
        }
    }
}

const EXTENSIONS: &str = "a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=extmap:10 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id
a=extmap:11 urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id
";

/// An SDP, cut into lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sdp {
    session: Vec<(char, String)>,
    media: Vec<Media>,
}

/// One m-section.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Media {
    kind: String,
    port: u16,
    protocol: String,
    formats: Vec<String>,
    lines: Vec<(char, String)>,
}

fn attributes<'a>(lines: &'a [(char, String)], name: &str) -> impl Iterator<Item = &'a str> {
    let attributes = lines.iter().filter(|(kind, _)| *kind == 'a');
    attributes.filter_map(move |(_, line)| {
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        (key == name).then_some(value.trim())
    })
}

impl Media {
    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        attributes(&self.lines, name)
    }

    fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    fn mid(&self) -> &str {
        self.all("mid").next().unwrap_or_default()
    }

    fn is_rtp(&self) -> bool {
        self.protocol.contains("RTP")
    }

    /// A zero port rejects (RFC 3264 §6), save for an m-line that lives in another's transport only (RFC 9725, figure 2).
    fn is_accepted(&self) -> bool {
        self.port != 0 || self.has("bundle-only")
    }

    /// Without an attribute it is `sendrecv` (RFC 8866 §6.7).
    fn direction(&self) -> &str {
        let known = ["sendonly", "recvonly", "sendrecv", "inactive"];
        known.into_iter().find(|direction| self.has(direction)).unwrap_or("sendrecv")
    }

    /// Payload type and what stands behind it, of attributes such as `rtpmap` and `fmtp`.
    fn by_payload_type<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.all(name).filter_map(|value| value.split_once(' ')).map(|(pt, rest)| (pt, rest.trim()))
    }

    /// The codec behind a payload type, in lower case.
    fn codec(&self, pt: &str) -> Option<String> {
        let (_, codec) = self.by_payload_type("rtpmap").find(|(number, _)| *number == pt)?;
        Some(codec.to_ascii_lowercase())
    }

    fn parameter(&self, pt: &str, name: &str) -> Option<&str> {
        let (_, parameters) = self.by_payload_type("fmtp").find(|(number, _)| *number == pt)?;
        let pairs = parameters.split(';').filter_map(|pair| pair.trim().split_once('='));
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

impl Sdp {
    /// The order of RFC 8866 §5, as far as receivers depend on it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut sdp = Self { session: Vec::new(), media: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let Some((kind, value)) = line.split_once('=').filter(|(kind, _)| kind.len() == 1) else {
                return Err(format!("line {} is no SDP line", index + 1));
            };
            let kind = kind.chars().next().unwrap_or_default();
            let value = value.trim_end().to_owned();
            match (index, kind) {
                (0, 'v') if value == "0" => {}
                (0, _) => return Err("it does not begin with v=0".into()),
                (1, 'o') if value.split_ascii_whitespace().count() == 6 => {}
                (1, _) => return Err("its second line is no complete o=".into()),
                (2, 's') if !value.is_empty() => {}
                (2, _) => return Err("its third line is no s= with at least one character".into()),
                (_, 'm') => {
                    let mut fields = value.split_ascii_whitespace().map(str::to_owned);
                    let (Some(kind), Some(port), Some(protocol)) = (fields.next(), fields.next(), fields.next()) else {
                        return Err(format!("line {} is no complete m-line", index + 1));
                    };
                    let port = port.parse().map_err(|_| format!("line {} has no port", index + 1))?;
                    let formats = fields.collect();
                    sdp.media.push(Media { kind, port, protocol, formats, lines: Vec::new() });
                    continue;
                }
                _ => {}
            }
            let lines = sdp.media.last_mut().map_or(&mut sdp.session, |media| &mut media.lines);
            lines.push((kind, value));
        }
        if sdp.session.is_empty() {
            return Err("it is empty".into());
        }
        if !sdp.session.iter().any(|(kind, _)| *kind == 't') {
            return Err("it has no t=".into());
        }
        if sdp.media.is_empty() {
            return Err("it has no m-line".into());
        }
        Ok(sdp)
    }

    /// Mids of the BUNDLE groups.
    fn bundles(&self) -> Vec<Vec<&str>> {
        let groups = attributes(&self.session, "group").filter_map(|group| group.strip_prefix("BUNDLE"));
        groups.map(|mids| mids.split_ascii_whitespace().collect()).collect()
    }

    /// The m-section whose transport all others use (RFC 9143 §7.3): the first of the group.
    fn tagged(&self) -> Option<&Media> {
        let first = self.bundles().first().and_then(|mids| mids.first().copied());
        let by_mid = first.and_then(|mid| self.media.iter().find(|media| media.mid() == mid));
        by_mid.or_else(|| self.media.iter().find(|media| media.is_accepted()))
    }

    /// An attribute of the transport: of the tagged m-section, else of the session.
    fn transport(&self, name: &str) -> Option<&str> {
        let tagged = self.tagged().and_then(|media| attributes(&media.lines, name).next());
        tagged.or_else(|| attributes(&self.session, name).next())
    }

    pub(crate) fn credentials(&self) -> Option<Credentials> {
        Some(Credentials { ufrag: self.transport("ice-ufrag")?.to_owned(), pwd: self.transport("ice-pwd")?.to_owned() })
    }

    fn accepted(&self) -> impl Iterator<Item = &Media> {
        self.media.iter().filter(|media| media.is_accepted())
    }
}

/// An offer and its answer.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) offer: Sdp,
    pub(crate) answer: Sdp,
}

impl Exchange {
    /// Accepted m-sections of the answer, each with the offer's.
    fn accepted(&self) -> impl Iterator<Item = (&Media, &Media)> {
        self.offer.media.iter().zip(&self.answer.media).filter(|(_, answer)| answer.is_accepted())
    }

    fn accepted_rtp(&self) -> impl Iterator<Item = (&Media, &Media)> {
        self.accepted().filter(|(offer, answer)| offer.is_rtp() && answer.is_rtp())
    }
}

/// A rule for answers.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) section: &'static str,
    pub(crate) check: fn(&Exchange) -> Verdict,
}

const fn rule(name: &'static str, section: &'static str, check: fn(&Exchange) -> Verdict) -> Rule {
    Rule { name, section, check }
}

/// What holds for every answer, to a publisher or a viewer.
pub(crate) const RULES: &[Rule] = &[
    rule("answer has the offer's m-lines in order", "RFC 3264 §6", m_lines),
    rule("answer mirrors the mids", "RFC 9429 §5.3.1", mids),
    rule("answer accepts at least one m-line", "RFC 3264 §6", something_accepted),
    rule("answer has one BUNDLE group of the offer's mids", "RFC 9143 §7.3", bundle),
    rule("no bundled m-line has port 0", "RFC 9143 §7.3", ports),
    rule("answer multiplexes RTCP (rtcp-mux)", "RFC 9143 §9.3", rtcp_mux),
    rule("ICE credentials are long enough and clean", "RFC 8839 §5.4", credentials),
    rule("bundled m-lines share one transport", "RFC 9143 §7.3", one_transport),
    rule("answer has a certificate fingerprint", "RFC 8122 §5", fingerprint),
    rule("DTLS role is passive or active", "RFC 8842 §5.3", setup),
    rule("payload types are the offer's, with its codecs", "RFC 9429 §5.3.1", payload_types),
    rule("rtx belongs to an answered payload type", "RFC 4588 §8.6", retransmission),
    rule("H.264 parameters match the offer's", "RFC 6184 §8.2.2", h264),
    rule("RTCP feedback was offered", "RFC 4585 §4.2", feedback),
    rule("header extensions are the offer's, with its ids", "RFC 8285 §7", extensions),
    rule("answer holds candidates", "RFC 9429 §5.3.1", candidates_present),
    rule("candidates are well-formed", "RFC 8839 §5.1", candidates),
    rule("answer says trickle or end-of-candidates", "RFC 8840", trickle),
];

fn m_lines(exchange: &Exchange) -> Verdict {
    let shape = |sdp: &Sdp| sdp.media.iter().map(|m| format!("{} {}", m.kind, m.protocol)).collect::<Vec<_>>();
    let (offered, answered) = (shape(&exchange.offer), shape(&exchange.answer));
    ensure(offered == answered, || format!("offered {}, answered {}", offered.join(", "), answered.join(", ")))
}

fn mids(exchange: &Exchange) -> Verdict {
    let mids = |sdp: &Sdp| sdp.media.iter().map(|m| m.mid().to_owned()).collect::<Vec<_>>();
    let (offered, answered) = (mids(&exchange.offer), mids(&exchange.answer));
    ensure(offered == answered, || format!("offered mids {offered:?}, answered {answered:?}"))
}

fn something_accepted(exchange: &Exchange) -> Verdict {
    ensure(exchange.accepted_rtp().next().is_some(), || "every m-line of audio and video is rejected".into())
}

fn bundle(exchange: &Exchange) -> Verdict {
    let groups = exchange.answer.bundles();
    let [group] = groups.as_slice() else {
        return Err(Flaw::Failed(format!("{} BUNDLE groups", groups.len())));
    };
    let offered: HashSet<&str> = exchange.offer.bundles().concat().into_iter().collect();
    if let Some(stranger) = group.iter().find(|mid| !offered.contains(**mid)) {
        return Err(Flaw::Failed(format!("mid {stranger:?} is in the group and was not offered")));
    }
    let outside = exchange.answer.accepted().find(|media| !group.contains(&media.mid()));
    ensure(outside.is_none(), || {
        format!("accepted mid {:?} is not in the group", outside.map(Media::mid).unwrap_or_default())
    })
}

fn ports(exchange: &Exchange) -> Verdict {
    let group = exchange.answer.bundles().concat();
    let closed = exchange.answer.media.iter().find(|media| group.contains(&media.mid()) && !media.is_accepted());
    ensure(closed.is_none(), || {
        let mid = closed.map(Media::mid).unwrap_or_default();
        format!("mid {mid:?} is in the BUNDLE group, but its port is 0, which rejects it")
    })
}

fn rtcp_mux(exchange: &Exchange) -> Verdict {
    let Some(tagged) = exchange.answer.tagged().filter(|media| media.is_rtp()) else {
        return skip("the transport belongs to no m-line of RTP");
    };
    ensure(tagged.has("rtcp-mux"), || format!("mid {:?} lacks a=rtcp-mux", tagged.mid()))
}

fn credentials(exchange: &Exchange) -> Verdict {
    let Some(Credentials { ufrag, pwd }) = exchange.answer.credentials() else {
        return Err(Flaw::Failed("a=ice-ufrag or a=ice-pwd is missing".into()));
    };
    ice_text("ice-ufrag", &ufrag, 4)?;
    ice_text("ice-pwd", &pwd, 22)
}

fn ice_text(name: &str, text: &str, shortest: usize) -> Verdict {
    ensure((shortest..=256).contains(&text.len()), || {
        format!("{name} has {} characters, {shortest} to 256 are allowed", text.len())
    })?;
    let strange = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"+/".contains(*c));
    ensure(strange.is_none(), || format!("{name} holds {:?}", strange.unwrap_or_default()))
}

fn one_transport(exchange: &Exchange) -> Verdict {
    for name in ["ice-ufrag", "ice-pwd", "fingerprint", "setup"] {
        let tagged = exchange.answer.transport(name);
        let other = exchange.answer.accepted().flat_map(|media| media.all(name).next()).find(|v| Some(*v) != tagged);
        ensure(other.is_none(), || format!("a={name} differs between bundled m-lines"))?;
    }
    Ok(())
}

fn fingerprint(exchange: &Exchange) -> Verdict {
    let Some(value) = exchange.answer.transport("fingerprint") else {
        return Err(Flaw::Failed("a=fingerprint is missing".into()));
    };
    let (hash, digest) = value.split_once(' ').unwrap_or((value, ""));
    let bytes = match hash.to_ascii_lowercase().as_str() {
        "sha-1" => 20,
        "sha-224" => 28,
        "sha-256" => 32,
        "sha-384" => 48,
        "sha-512" => 64,
        other => return Err(Flaw::Failed(format!("unknown hash {other:?}"))),
    };
    let pairs: Vec<&str> = digest.split(':').collect();
    let hex = pairs.iter().all(|pair| pair.len() == 2 && pair.chars().all(|c| c.is_ascii_hexdigit()));
    ensure(hex && pairs.len() == bytes, || format!("the digest is not {bytes} bytes of hexadecimal digits"))
}

fn setup(exchange: &Exchange) -> Verdict {
    let answered = exchange.answer.transport("setup").unwrap_or("absent");
    let wanted: &[&str] = match exchange.offer.transport("setup") {
        Some("active") => &["passive"],
        Some("passive") => &["active"],
        _ => &["passive", "active"],
    };
    ensure(wanted.contains(&answered), || format!("a=setup is {answered}, it must be {}", wanted.join(" or ")))
}

/// Whether accepted audio and video flow this way, the server's view.
pub(crate) fn direction(exchange: &Exchange, wanted: &str) -> Verdict {
    if exchange.accepted_rtp().next().is_none() {
        return skip("nothing is accepted");
    }
    let wrong = exchange.accepted_rtp().find(|(_, answer)| answer.direction() != wanted);
    ensure(wrong.is_none(), || {
        let (mid, direction) = wrong.map(|(_, m)| (m.mid(), m.direction())).unwrap_or_default();
        format!("mid {mid:?} is {direction}, it must be {wanted}")
    })
}

fn payload_types(exchange: &Exchange) -> Verdict {
    for (offer, answer) in exchange.accepted_rtp() {
        for pt in &answer.formats {
            ensure(offer.formats.contains(pt), || format!("payload type {pt} was not offered"))?;
            let (offered, answered) = (offer.codec(pt), answer.codec(pt));
            ensure(answered.is_some(), || format!("payload type {pt} has no a=rtpmap"))?;
            ensure(offered == answered, || {
                let name = |codec: Option<String>| codec.unwrap_or_default();
                format!("payload type {pt} was offered as {}, answered as {}", name(offered), name(answered))
            })?;
        }
    }
    Ok(())
}

fn retransmission(exchange: &Exchange) -> Verdict {
    let mut seen = false;
    for (_, answer) in exchange.accepted_rtp() {
        for pt in answer.formats.iter().filter(|pt| answer.codec(pt).is_some_and(|codec| codec.starts_with("rtx/"))) {
            seen = true;
            let apt = answer.parameter(pt, "apt").unwrap_or_default();
            ensure(answer.formats.iter().any(|known| known == apt), || {
                format!("rtx {pt} repeats payload type {apt:?}, which is not answered")
            })?;
        }
    }
    if seen { Ok(()) } else { skip("the answer has no rtx") }
}

fn h264(exchange: &Exchange) -> Verdict {
    let mut seen = false;
    for (offer, answer) in exchange.accepted_rtp() {
        for pt in answer.formats.iter().filter(|pt| answer.codec(pt).as_deref() == Some("h264/90000")) {
            seen = true;
            let mode = |media: &Media| media.parameter(pt, "packetization-mode").unwrap_or("0").to_owned();
            ensure(mode(offer) == mode(answer), || {
                format!("packetization-mode {} was offered, {} answered", mode(offer), mode(answer))
            })?;
            // Profile and constraints are symmetric, the level is not.
            let profile = |media: &Media| {
                let id = media.parameter(pt, "profile-level-id").unwrap_or("42000a").to_ascii_lowercase();
                id.get(..4).unwrap_or_default().to_owned()
            };
            ensure(profile(offer) == profile(answer), || {
                format!("profile {} was offered, {} answered", profile(offer), profile(answer))
            })?;
        }
    }
    if seen { Ok(()) } else { skip("the answer has no H.264") }
}

fn feedback(exchange: &Exchange) -> Verdict {
    for (offer, answer) in exchange.accepted_rtp() {
        let offered: HashSet<(&str, &str)> = offer.by_payload_type("rtcp-fb").collect();
        let is_offered = |pt: &str, kind: &str| {
            offered.iter().any(|(known, same)| *same == kind && (pt == "*" || [pt, "*"].contains(known)))
        };
        let stranger = answer.by_payload_type("rtcp-fb").find(|(pt, kind)| !is_offered(pt, kind));
        ensure(stranger.is_none(), || {
            let (pt, kind) = stranger.unwrap_or_default();
            format!("{kind:?} for payload type {pt} was not offered")
        })?;
    }
    Ok(())
}

fn extensions(exchange: &Exchange) -> Verdict {
    for (offer, answer) in exchange.accepted_rtp() {
        let id_and_uri = |value: &str| {
            let mut fields = value.split_ascii_whitespace();
            let id = fields.next().unwrap_or_default().split('/').next().unwrap_or_default().to_owned();
            (id, fields.next().unwrap_or_default().to_owned())
        };
        let offered: HashSet<_> = offer.all("extmap").map(id_and_uri).collect();
        let stranger = answer.all("extmap").map(id_and_uri).find(|pair| !offered.contains(pair));
        ensure(stranger.is_none(), || {
            let (id, uri) = stranger.unwrap_or_default();
            format!("extension {id} {uri} was not offered")
        })?;
    }
    Ok(())
}

fn all_candidates(sdp: &Sdp) -> impl Iterator<Item = &str> {
    let of_media = sdp.media.iter().flat_map(|media| attributes(&media.lines, "candidate"));
    attributes(&sdp.session, "candidate").chain(of_media)
}

fn candidates_present(exchange: &Exchange) -> Verdict {
    ensure(all_candidates(&exchange.answer).next().is_some(), || {
        "no a=candidate, and a server cannot send any later".into()
    })
}

fn candidates(exchange: &Exchange) -> Verdict {
    let mut all = all_candidates(&exchange.answer).peekable();
    if all.peek().is_none() {
        return skip("the answer has no candidates");
    }
    all.try_for_each(candidate)
}

/// One `a=candidate`, without the name.
pub(crate) fn candidate(text: &str) -> Verdict {
    let wrong = |what: &str| Err(Flaw::Failed(format!("{what} in candidate {text:?}")));
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let [foundation, component, _, priority, address, port, "typ", kind, ..] = fields.as_slice() else {
        return wrong("fields are missing");
    };
    let ice_char = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
    if foundation.len() > 32 || !foundation.chars().all(ice_char) {
        return wrong("a bad foundation");
    }
    if !component.parse::<u16>().is_ok_and(|c| (1..=256).contains(&c)) {
        return wrong("a bad component");
    }
    if !priority.parse::<u32>().is_ok_and(|p| (1..1 << 31).contains(&p)) {
        return wrong("a bad priority");
    }
    if port.parse::<u16>().is_err() || address.is_empty() {
        return wrong("a bad port");
    }
    if !["host", "srflx", "prflx", "relay"].contains(kind) {
        return wrong("an unknown type");
    }
    Ok(())
}

fn trickle(exchange: &Exchange) -> Verdict {
    let answer = &exchange.answer;
    let options = attributes(&answer.session, "ice-options")
        .chain(answer.media.iter().flat_map(|media| attributes(&media.lines, "ice-options")));
    let trickles = options.flat_map(str::split_ascii_whitespace).any(|option| option == "trickle");
    let ends = attributes(&answer.session, "end-of-candidates").next().is_some()
        || answer.media.iter().any(|media| media.has("end-of-candidates"));
    ensure(trickles || ends, || "neither a=ice-options:trickle nor a=end-of-candidates is there".into())
}

/// Whether no m-line was rejected on its own.
pub(crate) fn all_accepted(exchange: &Exchange) -> Verdict {
    let rejected = exchange.answer.media.iter().find(|media| !media.is_accepted());
    ensure(rejected.is_none(), || {
        let (kind, mid) = rejected.map(|m| (m.kind.as_str(), m.mid())).unwrap_or_default();
        format!("the {kind} m-line {mid:?} alone is rejected")
    })
}

/// Whether an answer takes simulcast as it may: some of the offered layers, each by its RID, to be received (RFC 8853 §5.3.2, RFC 8851 §6.3).
pub(crate) fn simulcast(exchange: &Exchange) -> Verdict {
    let video = exchange.answer.media.iter().find(|media| media.kind == "video");
    let Some(video) = video.filter(|video| video.is_accepted()) else { return skip("the answer has no video") };
    let rids: Vec<&str> = video.all("rid").collect();
    let Some(simulcast) = video.all("simulcast").next() else {
        ensure(rids.is_empty(), || format!("a=rid:{} without a=simulcast", rids[0]))?;
        return skip("the server takes one size");
    };
    let Some(("recv", list)) = simulcast.split_once(' ') else {
        return Err(Flaw::Failed(format!("a=simulcast:{simulcast} to an offer that only sends")));
    };
    for layer in list.split([';', ',']).map(|layer| layer.trim_start_matches('~')) {
        ensure(RIDS.contains(&layer), || format!("the RID {layer:?} was not offered"))?;
        let received = rids.iter().any(|rid| rid.split(' ').take(2).eq([layer, "recv"]));
        ensure(received, || format!("no a=rid:{layer} recv"))?;
    }
    // Without it nobody can tell the layers' packets apart (RFC 8852).
    let named = video.all("extmap").any(|extension| extension.ends_with(":sdes:rtp-stream-id"));
    ensure(named, || "layers without the header extension rtp-stream-id".to_owned())
}

/// Whether what a server sends is one stream, so that a player plays it in sync (RFC 8830).
pub(crate) fn one_stream(exchange: &Exchange) -> Verdict {
    let mut streams = HashSet::new();
    for (_, answer) in exchange.accepted_rtp() {
        let stream = answer.all("msid").next().and_then(|msid| msid.split_ascii_whitespace().next());
        let Some(stream) = stream else {
            return Err(Flaw::Failed(format!("mid {:?} has no a=msid", answer.mid())));
        };
        streams.insert(stream);
    }
    ensure(streams.len() <= 1, || format!("{} media streams", streams.len()))
}

/// A trickle fragment (RFC 8840 §9) for the offer's first m-line, which is the BUNDLE group's.
pub(crate) fn fragment(ice: &Credentials, lines: &[&str]) -> String {
    let Credentials { ufrag, pwd } = ice;
    let mut text = format!(
        "a=group:BUNDLE 0 1\r\na=ice-options:trickle\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\n"
    );
    for line in lines {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text
}

/// The credentials in a fragment.
pub(crate) fn credentials_of_fragment(text: &str) -> Result<Credentials, Flaw> {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim().to_owned());
    let (Some(ufrag), Some(pwd)) = (value("a=ice-ufrag:"), value("a=ice-pwd:")) else {
        return Err(Flaw::Failed("the fragment lacks a=ice-ufrag or a=ice-pwd".into()));
    };
    ice_text("ice-ufrag", &ufrag, 4)?;
    ice_text("ice-pwd", &pwd, 22)?;
    Ok(Credentials { ufrag, pwd })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "v=0
o=- 1 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=candidate:1 1 udp 2130706431 192.0.2.1 8080 typ host
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdefghijkl
a=ice-options:trickle
a=fingerprint:sha-256 AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA:AA
a=setup:passive
a=mid:0
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=recvonly
a=rtcp-mux
a=msid:s audio
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
m=video 9 UDP/TLS/RTP/SAVPF 103 104
c=IN IP4 0.0.0.0
a=mid:1
a=recvonly
a=msid:s video
a=rtpmap:103 H264/90000
a=rtcp-fb:103 nack pli
a=fmtp:103 packetization-mode=1;profile-level-id=42E029
a=rtpmap:104 rtx/90000
a=fmtp:104 apt=103
";

    fn exchange(answer: &str) -> Exchange {
        let offer = Offer::new("sendonly").to_sdp(&Credentials::random());
        Exchange { offer: Sdp::parse(&offer).expect("our offer"), answer: Sdp::parse(answer).expect("an SDP") }
    }

    #[test]
    fn simulcast_is_answered_by_its_rids_or_not_at_all() {
        #[track_caller]
        fn check(lines: &str, expected: Option<&str>) {
            let extension = "a=extmap:10 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\n";
            let answer = ANSWER.replace("a=mid:1\n", &format!("a=mid:1\n{extension}{lines}"));
            let found = match simulcast(&exchange(&answer)) {
                Ok(()) => None,
                Err(Flaw::Skipped(_)) => Some("skip"),
                Err(_) => Some("fail"),
            };
            assert_eq!(found, expected, "{lines}");
        }
        let (f, h) = ("a=rid:f recv\n", "a=rid:h recv\n");
        check(&format!("{f}{h}a=simulcast:recv f;~h\n"), None);
        check(&format!("{f}a=simulcast:recv f\n"), None);
        check("", Some("skip"));
        check(f, Some("fail"));
        check(&format!("{f}a=simulcast:recv f;h\n"), Some("fail"));
        check(&format!("{f}a=rid:x recv\na=simulcast:recv f;x\n"), Some("fail"));
        check("a=rid:f send\na=simulcast:recv f\n", Some("fail"));
        check("a=rid:f send\na=simulcast:send f\n", Some("fail"));
    }

    /// Names of the rules that an answer breaks when `from` in a good one becomes `to`.
    fn broken_by(from: &str, to: &str) -> Vec<&'static str> {
        assert!(ANSWER.contains(from), "{from:?}");
        let exchange = exchange(&ANSWER.replace(from, to));
        let failed = |rule: &&Rule| matches!((rule.check)(&exchange), Err(Flaw::Failed(_)));
        RULES.iter().filter(failed).map(|rule| rule.name).collect()
    }

    #[test]
    fn a_good_answer_breaks_no_rule() {
        assert_eq!(broken_by("s=-", "s=-"), [""; 0]);
        assert_eq!(broken_by("\n", "\r\n"), [""; 0]);
        // RFC 9725, figure 2.
        assert_eq!(
            broken_by("m=video 9 UDP/TLS/RTP/SAVPF 103 104\n", "m=video 0 UDP/TLS/RTP/SAVPF 103 104\na=bundle-only\n"),
            [""; 0]
        );
    }

    #[test]
    fn each_fault_breaks_its_own_rule() {
        for (from, to, rule) in [
            ("m=video", "m=application", "answer has the offer's m-lines in order"),
            ("a=group:BUNDLE 0 1\n", "", "answer has one BUNDLE group of the offer's mids"),
            ("BUNDLE 0 1", "BUNDLE 0", "answer has one BUNDLE group of the offer's mids"),
            ("BUNDLE 0 1", "BUNDLE 0 1 7", "answer has one BUNDLE group of the offer's mids"),
            ("m=video 9", "m=video 0", "no bundled m-line has port 0"),
            ("a=rtcp-mux\n", "", "answer multiplexes RTCP (rtcp-mux)"),
            ("a=ice-ufrag:abcd", "a=ice-ufrag:abc", "ICE credentials are long enough and clean"),
            ("a=ice-ufrag:abcd", "a=ice-ufrag:ab-d", "ICE credentials are long enough and clean"),
            ("ghijkl\n", "ghijk\n", "ICE credentials are long enough and clean"),
            ("a=mid:1\n", "a=mid:1\na=ice-ufrag:efgh\n", "bundled m-lines share one transport"),
            ("sha-256 AA:", "sha-256 ", "answer has a certificate fingerprint"),
            ("sha-256", "md5", "answer has a certificate fingerprint"),
            ("a=setup:passive", "a=setup:actpass", "DTLS role is passive or active"),
            ("a=setup:passive\n", "", "DTLS role is passive or active"),
            ("SAVPF 103 104", "SAVPF 103 104 35", "payload types are the offer's, with its codecs"),
            ("103 H264/90000", "103 VP8/90000", "payload types are the offer's, with its codecs"),
            ("apt=103", "apt=96", "rtx belongs to an answered payload type"),
            ("packetization-mode=1", "packetization-mode=0", "H.264 parameters match the offer's"),
            ("42E029", "640c1f", "H.264 parameters match the offer's"),
            ("103 nack pli", "103 nack rpsi", "RTCP feedback was offered"),
            ("extmap:4 ", "extmap:5 ", "header extensions are the offer's, with its ids"),
            ("sdes:mid", "toffset", "header extensions are the offer's, with its ids"),
            (" typ host", "", "candidates are well-formed"),
            ("candidate:1 1 udp 2130706431", "candidate:a-b 1 udp 2130706431", "candidates are well-formed"),
            ("a=candidate:1 1 udp 2130706431 192.0.2.1 8080 typ host\n", "", "answer holds candidates"),
            ("a=ice-options:trickle\n", "", "answer says trickle or end-of-candidates"),
        ] {
            assert_eq!(broken_by(from, to), [rule], "{from:?} → {to:?}");
        }
        assert!(broken_by("a=mid:0\n", "a=mid:audio\n").contains(&"answer mirrors the mids"));
    }

    #[test]
    fn directions_streams_and_partial_answers_are_judged() {
        let good = exchange(ANSWER);
        assert_eq!(direction(&good, "recvonly"), Ok(()));
        assert!(direction(&good, "sendonly").is_err());
        assert!(direction(&exchange(&ANSWER.replacen("a=recvonly\n", "", 1)), "recvonly").is_err(), "sendrecv");
        assert_eq!(one_stream(&good), Ok(()));
        assert!(one_stream(&exchange(&ANSWER.replace("msid:s video", "msid:t video"))).is_err());
        assert!(one_stream(&exchange(&ANSWER.replace("a=msid:s video\n", ""))).is_err());
        assert_eq!(all_accepted(&good), Ok(()));
        assert!(all_accepted(&exchange(&ANSWER.replace("m=audio 9", "m=audio 0"))).is_err());
    }

    #[test]
    fn what_is_no_sdp_is_named() {
        for (text, reason) in [
            ("", "it is empty"),
            ("ok", "line 1 is no SDP line"),
            ("{\"v\"=0}", "line 1 is no SDP line"),
            ("o=- 1 2 IN IP4 127.0.0.1", "it does not begin with v=0"),
            ("v=0\ns=-", "its second line is no complete o="),
            ("v=0\no=- 1 2 IN IP4 127.0.0.1\ns=", "its third line is no s= with at least one character"),
            ("v=0\no=- 1 2 IN IP4 127.0.0.1\ns=-\nt=0 0", "it has no m-line"),
            ("v=0\no=- 1 2 IN IP4 127.0.0.1\ns=-\nm=audio 9 x 1", "it has no t="),
            ("v=0\no=- 1 2 IN IP4 127.0.0.1\ns=-\nt=0 0\nm=audio x x 1", "line 5 has no port"),
        ] {
            assert_eq!(Sdp::parse(text), Err(reason.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn our_offers_hold_what_was_asked_for() {
        let ice = Credentials::random();
        let shape = |offer: Offer| {
            let sdp = Sdp::parse(&offer.to_sdp(&ice)).expect("our offer");
            assert_eq!(sdp.credentials().as_ref(), Some(&ice));
            let lines = sdp.media.iter().map(|m| format!("{} {} {}", m.mid(), m.kind, m.formats.join(" ")));
            (sdp.bundles().concat().join(" "), lines.collect::<Vec<_>>())
        };
        let all = Offer { datachannel: true, ..Offer::new("recvonly") };
        assert_eq!(
            shape(all),
            (
                "0 1 2".into(),
                vec!["0 audio 111".into(), "1 video 96 97 103 104".into(), "2 application webrtc-datachannel".into()]
            )
        );
        let h264 = Offer { audio: false, video: &[Video::H264], ..Offer::new("sendonly") };
        assert_eq!(shape(h264), ("0".into(), vec!["0 video 103 104".into()]));
    }

    #[test]
    fn credentials_of_fragments_are_read_and_judged() {
        let ice = Credentials::random();
        assert_eq!(credentials_of_fragment(&fragment(&ice, &["a=end-of-candidates"])), Ok(ice));
        assert!(credentials_of_fragment("a=ice-ufrag:abcd\r\n").is_err());
        assert!(credentials_of_fragment("a=ice-ufrag:abcd\r\na=ice-pwd:short\r\n").is_err());
    }
}
