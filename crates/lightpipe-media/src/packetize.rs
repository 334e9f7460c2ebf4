//! H.264 access units to RTP payloads and back (RFC 6184, packetization-mode 1).
//!
//! A picture is packetized once, whatever the number of viewers. Fragments of one NAL unit have
//! equal sizes, so that a run of datagrams can leave in one call to the kernel (UDP GSO wants equal
//! segments, only the last may be shorter).

use std::sync::Arc;

use crate::h264::{self, NalType};

/// Longest RTP payload, bytes.
///
/// 1 200 bytes of UDP payload pass every path that WebRTC is used on (libwebrtc's own limit); 12 bytes
/// RTP header, up to 40 bytes of extensions, 2 bytes original sequence number in RTX and 16 bytes GCM tag
/// come off it.
pub const MAX_PAYLOAD_LEN: usize = 1128;

/// Longest RTP payload that is passed on as it came, bytes. What [`MAX_PAYLOAD_LEN`] lists fits beside it into the 1500 bytes of an Ethernet
/// frame over IPv4.
pub const MAX_FORWARDED_LEN: usize = 1400;

/// Payloads of one access unit, in sending order. The last carries the RTP marker bit.
#[derive(Debug, Clone, Default)]
pub struct RtpPayloads {
    payloads: Vec<Arc<[u8]>>,
    bytes: usize,
}

impl RtpPayloads {
    /// The payloads, in sending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<[u8]>> {
        self.payloads.iter()
    }

    /// Payload `index`.
    pub fn get(&self, index: usize) -> Option<&Arc<[u8]>> {
        self.payloads.get(index)
    }

    /// Number of payloads; zero for an access unit without NAL units.
    pub fn len(&self) -> usize {
        self.payloads.len()
    }

    /// No payload at all.
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// Sum of all payload lengths.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, payload: Arc<[u8]>) {
        self.bytes += payload.len();
        self.payloads.push(payload);
    }
}

impl FromIterator<Arc<[u8]>> for RtpPayloads {
    fn from_iter<I: IntoIterator<Item = Arc<[u8]>>>(payloads: I) -> Self {
        let mut all = Self::default();
        for payload in payloads {
            all.push(payload);
        }
        all
    }
}

const NAL_TYPE_STAP_A: u8 = 24;
const NAL_TYPE_FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;

/// Cuts one access unit in Annex-B form into payloads of at most `max_len` bytes.
///
/// Parameter sets and SEI travel together in one STAP-A in front of the picture; every slice is a
/// single NAL unit packet or a run of FU-A fragments of equal length. Access unit delimiters and filler stay behind: RTP's
/// marker says the same (RFC 6184 §5.3 leaves the choice to the sender).
pub fn h264(annexb: &[u8], max_len: usize) -> RtpPayloads {
    let mut out = RtpPayloads::default();
    let mut small: Vec<&[u8]> = Vec::new();
    let mut small_len = 1;
    for nal in h264::nals(annexb) {
        match NalType::of(nal) {
            NalType::AccessUnitDelimiter | NalType::Filler | NalType::EndOfSequence | NalType::EndOfStream => {}
            // Unspecified in H.264, aggregation and fragments in RTP: a receiver would take them for those.
            NalType::Other(0 | 24..) => {}
            NalType::Sps | NalType::Pps | NalType::Sei if small_len + 2 + nal.len() <= max_len => {
                small.push(nal);
                small_len += 2 + nal.len();
            }
            _ => {
                flush_aggregate(&mut small, &mut small_len, &mut out);
                push_nal(nal, max_len, &mut out);
            }
        }
    }
    flush_aggregate(&mut small, &mut small_len, &mut out);
    out
}

/// RFC 6184 §5.7.1: a STAP-A's F bit is the OR and its NRI the maximum of those inside.
fn flush_aggregate(nals: &mut Vec<&[u8]>, aggregate_len: &mut usize, out: &mut RtpPayloads) {
    match nals.as_slice() {
        [] => return,
        [single] => out.push(Arc::from(*single)),
        several => {
            let forbidden = several.iter().fold(0, |f, n| f | (n[0] & 0x80));
            let nri = several.iter().map(|n| n[0] & 0x60).max().unwrap_or(0);
            let mut payload = Vec::with_capacity(*aggregate_len);
            payload.push(forbidden | nri | NAL_TYPE_STAP_A);
            for nal in several {
                // Every NAL here is shorter than `max_len`, itself well under 2¹⁶.
                payload.extend_from_slice(&(nal.len() as u16).to_be_bytes());
                payload.extend_from_slice(nal);
            }
            out.push(payload.into());
        }
    }
    nals.clear();
    *aggregate_len = 1;
}

fn push_nal(nal: &[u8], max_len: usize, out: &mut RtpPayloads) {
    if nal.len() <= max_len {
        out.push(Arc::from(nal));
        return;
    }
    let (header, body) = (nal[0], &nal[1..]);
    let room = max_len - 2;
    let fragments = body.len().div_ceil(room);
    // Equal lengths (the last at most `fragments − 1` bytes shorter) instead of full ones and a small rest.
    let fragment_len = body.len().div_ceil(fragments);
    let count = body.len().div_ceil(fragment_len);
    for (index, part) in body.chunks(fragment_len).enumerate() {
        let mut flags = header & 0x1f;
        if index == 0 {
            flags |= FU_START;
        }
        if index + 1 == count {
            flags |= FU_END;
        }
        let mut payload = Vec::with_capacity(2 + part.len());
        payload.push((header & 0xe0) | NAL_TYPE_FU_A);
        payload.push(flags);
        payload.extend_from_slice(part);
        out.push(payload.into());
    }
}

/// Why a payload cannot be part of an H.264 stream in packetization-mode 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DepacketizeError {
    /// Nothing in it.
    #[error("empty RTP payload")]
    Empty,
    /// A length field points past the end.
    #[error("truncated {0}")]
    Truncated(&'static str),
    /// A continuation of a NAL unit, a frame or an OBU whose start never came, or a start where the one before has not ended.
    #[error("fragment without its start")]
    OrphanFragment,
    /// Interleaved mode or a reserved type: not negotiated.
    #[error("NAL unit type {0} is not part of packetization-mode 1")]
    UnexpectedType(u8),
    /// The access unit outgrew [`Depacketizer::MAX_ACCESS_UNIT`], or its parts what the format has.
    #[error("access unit larger than {} bytes", Depacketizer::MAX_ACCESS_UNIT)]
    TooLarge,
}

/// Puts payloads back together, in sequence order, to Annex-B access units.
///
/// Feed payloads of one stream in order with [`Self::push`]; call [`Self::take`] after the one with the marker
/// bit. After an error or a gap call [`Self::reset`] and wait for the next access unit.
#[derive(Debug, Default)]
pub struct Depacketizer {
    unit: Vec<u8>,
    in_fragment: bool,
}

impl Depacketizer {
    /// Bytes of one access unit accepted from the network.
    pub const MAX_ACCESS_UNIT: usize = 8 << 20;

    /// Adds one payload.
    pub fn push(&mut self, payload: &[u8]) -> Result<(), DepacketizeError> {
        let header = *payload.first().ok_or(DepacketizeError::Empty)?;
        if self.unit.len() + payload.len() > Self::MAX_ACCESS_UNIT {
            return Err(DepacketizeError::TooLarge);
        }
        match header & 0x1f {
            1..=23 => {
                self.in_fragment = false;
                self.append_nal(payload);
            }
            NAL_TYPE_STAP_A => {
                self.in_fragment = false;
                let mut rest = &payload[1..];
                while !rest.is_empty() {
                    let (len, after) =
                        rest.split_first_chunk::<2>().ok_or(DepacketizeError::Truncated("STAP-A length"))?;
                    let len = usize::from(u16::from_be_bytes(*len));
                    let nal = after.get(..len).ok_or(DepacketizeError::Truncated("STAP-A unit"))?;
                    if !nal.is_empty() {
                        self.append_nal(nal);
                    }
                    rest = &after[len..];
                }
            }
            NAL_TYPE_FU_A => {
                let flags = *payload.get(1).ok_or(DepacketizeError::Truncated("FU-A header"))?;
                if flags & FU_START != 0 {
                    self.append_nal(&[(header & 0xe0) | (flags & 0x1f)]);
                    self.in_fragment = true;
                } else if !self.in_fragment {
                    return Err(DepacketizeError::OrphanFragment);
                }
                self.unit.extend_from_slice(&payload[2..]);
                if flags & FU_END != 0 {
                    self.in_fragment = false;
                }
            }
            other => return Err(DepacketizeError::UnexpectedType(other)),
        }
        Ok(())
    }

    /// The access unit collected so far, Annex-B; empty when nothing came. Starts the next one.
    pub fn take(&mut self) -> Vec<u8> {
        self.in_fragment = false;
        std::mem::take(&mut self.unit)
    }

    /// Forgets a damaged access unit.
    pub fn reset(&mut self) {
        self.unit.clear();
        self.in_fragment = false;
    }

    fn append_nal(&mut self, nal: &[u8]) {
        self.unit.extend_from_slice(&h264::START_CODE);
        self.unit.extend_from_slice(nal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annexb(nals: &[Vec<u8>]) -> Vec<u8> {
        nals.iter().flat_map(|n| [&h264::START_CODE[..], n].concat()).collect()
    }

    fn nal(kind: u8, len: usize) -> Vec<u8> {
        // Bytes that never form a start code.
        std::iter::once(0x60 | kind).chain((1..len).map(|i| 1 + (i % 200) as u8)).collect()
    }

    #[track_caller]
    fn check(nals: &[Vec<u8>], max_len: usize, expected_lens: &[usize]) {
        let unit = annexb(nals);
        let payloads = h264(&unit, max_len);
        let lens: Vec<usize> = payloads.iter().map(|p| p.len()).collect();
        assert_eq!(
            lens,
            expected_lens,
            "payload lengths of {:?} at {max_len}",
            nals.iter().map(Vec::len).collect::<Vec<_>>()
        );
        let mut depacketizer = Depacketizer::default();
        for payload in payloads.iter() {
            depacketizer.push(payload).expect("own payloads depacketize");
        }
        assert_eq!(depacketizer.take(), unit, "round trip");
    }

    #[test]
    fn parameter_sets_aggregate_and_slices_fragment_equally() {
        check(&[nal(7, 10), nal(8, 4), nal(5, 100)], 1128, &[1 + 2 + 10 + 2 + 4, 100]);
        check(&[nal(1, 100)], 1128, &[100]);
        check(&[nal(1, 1128)], 1128, &[1128]);
        // 1 128 body bytes need two fragments: 564 each, not 1 126 and 2.
        check(&[nal(1, 1129)], 1128, &[566, 566]);
        check(&[nal(5, 3000)], 1128, &[1002, 1002, 1001]);
        check(&[nal(7, 10)], 1128, &[10]);
        // x264 zerolatency: several slices, one picture.
        check(&[nal(1, 50), nal(1, 60), nal(1, 70)], 1128, &[50, 60, 70]);
        check(&[], 1128, &[]);
    }

    #[test]
    fn fragments_fit_and_differ_by_little_for_every_length() {
        for len in (2..9000).step_by(7) {
            let payloads = h264(&annexb(&[nal(5, len)]), 1128);
            let lens: Vec<usize> = payloads.iter().map(|p| p.len()).collect();
            let (last, full) = lens.split_last().expect("a NAL makes a payload");
            assert!(lens.iter().all(|l| *l <= 1128), "{len}: {lens:?}");
            assert!(full.windows(2).all(|w| w[0] == w[1]), "{len}: {lens:?}");
            assert!(full.first().is_none_or(|f| last <= f && f - last < lens.len()), "{len}: {lens:?}");
        }
    }

    #[test]
    fn delimiters_stay_behind() {
        let payloads = h264(&annexb(&[nal(9, 2), nal(1, 30), nal(12, 90)]), 1128);
        assert_eq!(payloads.len(), 1);
        assert_eq!(payloads.bytes(), 30);
        // Types 0 and 24 to 31 mean something else in RTP.
        assert_eq!(h264(&annexb(&[nal(24, 9), nal(1, 30), nal(28, 9), nal(0, 9)]), 1128).len(), 1);
    }

    #[track_caller]
    fn check_bad(payload: &[u8], expected: DepacketizeError) {
        assert_eq!(Depacketizer::default().push(payload), Err(expected), "{payload:?}");
    }

    #[test]
    fn malformed_payloads_are_named() {
        check_bad(&[], DepacketizeError::Empty);
        check_bad(&[24, 0], DepacketizeError::Truncated("STAP-A length"));
        check_bad(&[24, 0, 9, 1], DepacketizeError::Truncated("STAP-A unit"));
        check_bad(&[28], DepacketizeError::Truncated("FU-A header"));
        check_bad(&[28, 0x05, 1], DepacketizeError::OrphanFragment);
        check_bad(&[25, 0, 0], DepacketizeError::UnexpectedType(25));
        check_bad(&[0, 1], DepacketizeError::UnexpectedType(0));
    }
}
