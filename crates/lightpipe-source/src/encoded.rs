//! Pictures that a child has encoded already: what must be true of them before they are published.
//!
//! Plain logic. [`Normalizer`] makes any H.264 packet what [`AccessUnit::data`] promises (Annex-B, parameter
//! sets in front of every IDR); [`TimeAnchor`] puts a child's time stamps on our clock.
//!
//! [`AccessUnit::data`]: lightpipe_media::AccessUnit::data

use std::collections::VecDeque;
use std::time::Duration;

use lightpipe_media::h264::{self, NalType, START_CODE};
use lightpipe_media::{MediaTime, Size};

/// A picture ready to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) data: Vec<u8>,
    pub(crate) keyframe: bool,
    pub(crate) size: Size,
}

/// Why a packet gives no picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Before the first IDR nothing can be decoded.
    BeforeKeyframe,
    /// An IDR whose parameter sets never came.
    MissingParameterSets,
    /// No slice in it, or lengths that lead outside of it.
    Empty,
}

/// Completes the access units of one run of a child.
#[derive(Debug, Default)]
pub(crate) struct Normalizer {
    /// Bytes of a NAL unit's length, when packets carry lengths in place of start codes (`avcC`).
    length_bytes: Option<usize>,
    sps: Vec<Vec<u8>>,
    pps: Vec<Vec<u8>>,
    size: Option<Size>,
    begun: bool,
}

impl Normalizer {
    /// Takes a container's codec private data: Annex-B parameter sets, or `avcC` (ISO/IEC 14496-15
    /// §5.3.3.1). Anything else is ignored; the stream may bring its own.
    pub(crate) fn set_extradata(&mut self, extradata: &[u8]) {
        if extradata.first() == Some(&1) {
            if self.read_avcc(extradata).is_none() {
                self.length_bytes = None;
            }
        } else {
            self.learn(&h264::nals(extradata).collect::<Vec<_>>());
        }
    }

    fn read_avcc(&mut self, avcc: &[u8]) -> Option<()> {
        self.length_bytes = Some(usize::from(avcc.get(4)? & 3) + 1);
        let mut rest = avcc.get(5..)?;
        let mut nals = Vec::new();
        for mask in [0x1f, 0xff] {
            let (count, mut after) = rest.split_first()?;
            for _ in 0..count & mask {
                let len = usize::from(u16::from_be_bytes([*after.first()?, *after.get(1)?]));
                nals.push(after.get(2..2 + len)?);
                after = &after[2 + len..];
            }
            rest = after;
        }
        self.learn(&nals);
        Some(())
    }

    /// Remembers the parameter sets among `nals`. A unit that brings some replaces all older ones of
    /// their type.
    fn learn(&mut self, nals: &[&[u8]]) {
        // A stream has one or two; more than this is no use to a decoder either (§7.4.2.1.1).
        const MAX_SETS: usize = 32;
        let all = |wanted: NalType| -> Vec<Vec<u8>> {
            nals.iter().filter(|n| NalType::of(n) == wanted).take(MAX_SETS).map(|n| n.to_vec()).collect()
        };
        let (sps, pps) = (all(NalType::Sps), all(NalType::Pps));
        if let Some(parsed) = sps.iter().find_map(|s| h264::Sps::parse(s).ok()) {
            self.size = Some(parsed.size);
            self.sps = sps;
        }
        if !pps.is_empty() {
            self.pps = pps;
        }
    }

    /// Completes one packet.
    pub(crate) fn picture(&mut self, packet: Vec<u8>) -> Result<Picture, Refused> {
        let nals = match self.length_bytes {
            Some(width) => split_by_length(&packet, width).ok_or(Refused::Empty)?,
            None => h264::nals(&packet).collect(),
        };
        self.learn(&nals);
        let has = |wanted: NalType| nals.iter().any(|n| NalType::of(n) == wanted);
        let keyframe = has(NalType::Idr);
        if !keyframe && !has(NalType::Slice) {
            return Err(Refused::Empty);
        }
        if !keyframe && !self.begun {
            return Err(Refused::BeforeKeyframe);
        }
        let (Some(size), false) = (self.size, self.pps.is_empty()) else {
            return Err(Refused::MissingParameterSets);
        };
        self.begun = true;
        let complete = !keyframe || (has(NalType::Sps) && has(NalType::Pps));
        let data = if complete && self.length_bytes.is_none() {
            packet
        } else {
            let sets = self.sps.iter().chain(&self.pps).map(Vec::as_slice);
            let sets = sets.filter(|_| !complete);
            // A delimiter must come first, so with something new in front of it it goes; so do the sets
            // that are in front already.
            let own = nals.iter().copied().filter(|n| {
                complete || !matches!(NalType::of(n), NalType::AccessUnitDelimiter | NalType::Sps | NalType::Pps)
            });
            let mut data = Vec::with_capacity(packet.len() + 64);
            for nal in sets.chain(own) {
                data.extend_from_slice(&START_CODE);
                data.extend_from_slice(nal);
            }
            data
        };
        Ok(Picture { data, keyframe, size })
    }
}

fn split_by_length(mut packet: &[u8], width: usize) -> Option<Vec<&[u8]>> {
    let mut nals = Vec::new();
    while !packet.is_empty() {
        let (len, rest) = packet.split_at_checked(width)?;
        let len = len.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let (nal, rest) = rest.split_at_checked(len)?;
        if !nal.is_empty() {
            nals.push(nal);
        }
        packet = rest;
    }
    Some(nals)
}

/// Puts a child's time stamps on our clock.
///
/// The two clocks differ by an unknown offset, seen only through arrivals, each late by encoding, the
/// pipe and scheduling. The smallest `arrival − pts` of the last [`Self::WINDOW`] is the offset with the
/// least of that, so `pts + offset` has the child's even pacing, is never later than the arrival, and
/// follows the drift of the child's clock. It is late by the child's *smallest* delay, which nobody
/// outside the child can see.
#[derive(Debug, Default)]
pub(crate) struct TimeAnchor {
    /// Candidates for the smallest offset: arrival and offset, micros, both rising.
    window: VecDeque<(i64, i64)>,
}

impl TimeAnchor {
    /// Long enough to hold a picture that was lucky, short enough to follow a clock that drifts.
    const WINDOW: Duration = Duration::from_secs(2);
    /// A picture older than this on arrival is no slow picture: the child's time stamps jumped back.
    const MAX_AGE: Duration = Duration::from_secs(1);

    /// Capture time of a picture with time stamp `pts_micros` that arrived at `arrival`.
    pub(crate) fn captured(&mut self, pts_micros: i64, arrival: MediaTime) -> MediaTime {
        let arrival_micros = arrival.as_micros();
        let offset = arrival_micros.saturating_sub(pts_micros);
        let expired = arrival_micros - Self::WINDOW.as_micros() as i64;
        while self.window.front().is_some_and(|(at, _)| *at < expired) {
            self.window.pop_front();
        }
        while self.window.back().is_some_and(|(_, o)| *o >= offset) {
            self.window.pop_back();
        }
        self.window.push_back((arrival_micros, offset));
        let smallest = self.window.front().map_or(offset, |(_, o)| *o);
        // Saturating throughout: the child may write any 64 bits as a time stamp.
        let captured = pts_micros.saturating_add(smallest);
        let age = arrival_micros.saturating_sub(captured);
        if !(0..=Self::MAX_AGE.as_micros() as i64).contains(&age) {
            self.window.clear();
            self.window.push_back((arrival_micros, offset));
            return arrival;
        }
        MediaTime::from_micros(captured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by openh264: 1280×720 baseline.
    const SPS: &[u8] = &[0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x88, 0x46, 0xa0];
    const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
    const AUD: &[u8] = &[0x09, 0xf0];
    const IDR: &[u8] = &[0x65, 0x88, 0x84, 0x21];
    const P: &[u8] = &[0x41, 0x9a, 0x24, 0x33];

    fn annexb(nals: &[&[u8]]) -> Vec<u8> {
        nals.iter().flat_map(|n| [&START_CODE[..], n].concat()).collect()
    }

    fn lengths(nals: &[&[u8]]) -> Vec<u8> {
        nals.iter().flat_map(|n| [&(n.len() as u32).to_be_bytes()[..], n].concat()).collect()
    }

    #[track_caller]
    fn check(normalizer: &mut Normalizer, packet: Vec<u8>, expected: Result<&[&[u8]], Refused>) {
        let got = normalizer.picture(packet);
        let size = Size::new(1280, 720);
        assert_eq!(got.map(|p| (p.data, p.size)), expected.map(|nals| (annexb(nals), size)));
    }

    #[test]
    fn every_idr_has_its_parameter_sets_in_front() {
        let mut n = Normalizer::default();
        check(&mut n, annexb(&[P]), Err(Refused::BeforeKeyframe));
        check(&mut n, annexb(&[IDR]), Err(Refused::MissingParameterSets));
        check(&mut n, annexb(&[SPS, PPS, IDR]), Ok(&[SPS, PPS, IDR]));
        check(&mut n, annexb(&[P]), Ok(&[P]));
        check(&mut n, annexb(&[AUD, P]), Ok(&[AUD, P]));
        check(&mut n, annexb(&[IDR]), Ok(&[SPS, PPS, IDR]));
        check(&mut n, annexb(&[AUD, IDR, IDR]), Ok(&[SPS, PPS, IDR, IDR]));
        check(&mut n, annexb(&[PPS, IDR]), Ok(&[SPS, PPS, IDR]));
        check(&mut n, annexb(&[AUD]), Err(Refused::Empty));
        check(&mut n, vec![], Err(Refused::Empty));
    }

    #[test]
    fn parameter_sets_that_only_the_container_knows_are_used() {
        let mut n = Normalizer::default();
        n.set_extradata(&annexb(&[SPS, PPS]));
        check(&mut n, annexb(&[IDR]), Ok(&[SPS, PPS, IDR]));
        let mut n = Normalizer::default();
        let mut avcc = vec![1, 0x42, 0xc0, 0x1f, 0xff, 0xe1, 0, SPS.len() as u8];
        avcc.extend_from_slice(SPS);
        avcc.extend([1, 0, PPS.len() as u8]);
        avcc.extend_from_slice(PPS);
        n.set_extradata(&avcc);
        check(&mut n, lengths(&[AUD, IDR]), Ok(&[SPS, PPS, IDR]));
        check(&mut n, lengths(&[P, P]), Ok(&[P, P]));
        check(&mut n, vec![0, 0, 0, 9, 0x41], Err(Refused::Empty));
        check(&mut n, vec![0, 0], Err(Refused::Empty));
        for len in 0..avcc.len() {
            Normalizer::default().set_extradata(&avcc[..len]);
        }
    }

    fn at(micros: i64) -> MediaTime {
        MediaTime::from_micros(micros)
    }

    #[test]
    fn capture_times_keep_the_childs_pacing_through_late_arrivals() {
        let mut anchor = TimeAnchor::default();
        let mut rng = fastrand::Rng::with_seed(5);
        let mut last = None;
        for n in 0..300 {
            let pts = n * 33_333;
            // One picture in ten comes without delay, the others up to 20 ms late.
            let late = if n % 10 == 0 { 0 } else { rng.i64(0..20_000) };
            let arrival = at(7_000_000 + pts + late);
            let captured = anchor.captured(pts, arrival);
            assert!(captured <= arrival);
            assert_eq!(captured, at(7_000_000 + pts));
            assert!(last.is_none_or(|l| l < captured));
            last = Some(captured);
            assert!(anchor.window.len() < 70, "bounded");
        }
    }

    #[test]
    fn a_drifting_child_clock_is_followed() {
        let mut anchor = TimeAnchor::default();
        for n in 0..30_000i64 {
            // 500 ppm slow: 500 ms in the 1 000 s of this test.
            let arrival = at(n * 33_333 + n * 33_333 / 2000);
            let captured = anchor.captured(n * 33_333, arrival);
            assert!(arrival.since(captured) <= Duration::from_micros(1100), "{n}");
        }
    }

    #[test]
    fn time_stamps_that_jump_are_anchored_anew() {
        let mut anchor = TimeAnchor::default();
        for (pts, arrival, captured) in [
            (30_000_000, 10_000_000, 10_000_000),
            (30_033_333, 10_033_333, 10_033_333),
            // Back to zero: a file that loops.
            (0, 10_066_666, 10_066_666),
            (33_333, 10_099_999, 10_099_999),
            // Far ahead.
            (90_000_000, 10_133_332, 10_133_332),
            (i64::MIN, 10_166_665, 10_166_665),
            (i64::MAX, 10_200_000, 10_200_000),
        ] {
            assert_eq!(anchor.captured(pts, at(arrival)), at(captured), "pts {pts}");
        }
    }
}
