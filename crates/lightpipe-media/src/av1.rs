//! AV1 in RTP payloads (AOM's RTP payload format, 1.0): what somebody else packetized, and goes on as it came.

use crate::bits::Bits;
use crate::frame::Size;
use crate::packetize::{DepacketizeError, Depacketizer};

const OBU_SEQUENCE_HEADER: u8 = 1;
const OBU_TEMPORAL_DELIMITER: u8 = 2;
const OBU_FRAME_HEADER: u8 = 3;
const OBU_FRAME: u8 = 6;

/// In an OBU's header: a second byte follows, a length follows.
const EXTENSION: u8 = 0x04;
const HAS_SIZE: u8 = 0x02;

/// Whether a temporal unit, as [`Av1Depacketizer::take`] gives it, decodes without any other: a sequence header, and a key frame that
/// is shown (AV1 bitstream specification §7.20).
pub fn is_keyframe(unit: &[u8]) -> bool {
    let mut obus = Obus(unit);
    let frame = |obu: &Obu<'_>| matches!(obu.kind, OBU_FRAME | OBU_FRAME_HEADER);
    // No earlier frame shown again, frame type 0, shown.
    size_of(unit).is_some() && obus.find(frame).is_some_and(|obu| obu.body.first().is_some_and(|b| b & 0xf0 == 0x10))
}

/// Largest picture size of the sequence that begins with a temporal unit; `None` if none does.
pub fn size_of(unit: &[u8]) -> Option<Size> {
    Some(Sequence::parse(Obus(unit).find(|obu| obu.kind == OBU_SEQUENCE_HEADER)?.body)?.size)
}

/// `AV1CodecConfigurationRecord` of the sequence that begins with a temporal unit (AV1 in ISOBMFF §2.3), which files want in front. `None` if none
/// does, or in another profile than Main.
pub fn configuration(unit: &[u8]) -> Option<Vec<u8>> {
    let obu = Obus(unit).find(|obu| obu.kind == OBU_SEQUENCE_HEADER)?;
    let header = Sequence::parse(obu.body)?;
    if header.profile != 0 {
        return None;
    }
    // Marker and version; Main is 4:2:0, and where its chroma samples stand may stay unsaid.
    let flags =
        u8::from(header.tier) << 7 | u8::from(header.high_bitdepth) << 6 | u8::from(header.monochrome) << 4 | 0x0c;
    let mut record = vec![0x81, header.level, flags, 0, OBU_SEQUENCE_HEADER << 3 | HAS_SIZE];
    push_leb128(&mut record, obu.body.len());
    record.extend_from_slice(obu.body);
    Some(record)
}

/// What of a sequence header is of use (AV1 bitstream specification §5.5).
struct Sequence {
    profile: u8,
    /// Of the first operating point, and so is the tier.
    level: u8,
    tier: bool,
    size: Size,
    high_bitdepth: bool,
    monochrome: bool,
}

impl Sequence {
    fn parse(header: &[u8]) -> Option<Self> {
        let mut bits = Bits::new(header);
        let (profile, _still_picture, reduced) = (bits.take(3)? as u8, bits.flag()?, bits.flag()?);
        let (mut level, mut tier) = (0, false);
        if reduced {
            level = bits.take(5)? as u8;
        } else {
            let mut decoder_delay_bits = None;
            if bits.flag()? {
                let (_tick, _scale) = (bits.take(32)?, bits.take(32)?);
                if bits.flag()? {
                    skip_uvlc(&mut bits)?;
                }
                if bits.flag()? {
                    decoder_delay_bits = Some(bits.take(5)? + 1);
                    bits.take(32)?;
                    bits.take(10)?;
                }
            }
            let display_delay = bits.flag()?;
            for point in 0..=bits.take(5)? {
                bits.take(12)?;
                let its_level = bits.take(5)? as u8;
                let its_tier = its_level > 7 && bits.flag()?;
                if point == 0 {
                    (level, tier) = (its_level, its_tier);
                }
                if let Some(count) = decoder_delay_bits
                    && bits.flag()?
                {
                    let (_decoder, _encoder, _low_delay) = (bits.take(count)?, bits.take(count)?, bits.flag()?);
                }
                if display_delay && bits.flag()? {
                    bits.take(4)?;
                }
            }
        }
        let (width_bits, height_bits) = (bits.take(4)? + 1, bits.take(4)? + 1);
        let size = Size::new(bits.take(width_bits)? + 1, bits.take(height_bits)? + 1);
        if !reduced && bits.flag()? {
            bits.take(7)?; // lengths of frame ids
        }
        bits.take(3)?; // superblocks, two intra filters
        if !reduced {
            bits.take(4)?; // four kinds of inter prediction
            let order_hint = bits.flag()?;
            if order_hint {
                bits.take(2)?;
            }
            // Screen content tools: each picture decides, or all or none have them; with them, integer motion vectors likewise.
            if (bits.flag()? || bits.flag()?) && !bits.flag()? {
                bits.flag()?;
            }
            if order_hint {
                bits.take(3)?;
            }
        }
        bits.take(3)?; // superres, CDEF, restoration
        let high_bitdepth = bits.flag()?;
        let monochrome = profile == 0 && bits.flag()?;
        Some(Self { profile, level, tier, size, high_bitdepth, monochrome })
    }
}

fn skip_uvlc(bits: &mut Bits<'_>) -> Option<()> {
    let mut zeros = 0;
    while !bits.flag()? {
        zeros += 1;
    }
    // With 32 and more it has no value bits (§4.10.3).
    bits.take(if zeros < 32 { zeros } else { 0 }).map(drop)
}

/// Puts payloads back together, in sequence order. Same contract as [`Depacketizer`] for H.264.
///
/// What comes out is a temporal unit without its delimiter, each OBU with its length, as files have it (AV1 bitstream specification §5.2).
#[derive(Debug, Default)]
pub struct Av1Depacketizer {
    unit: Vec<u8>,
    /// An OBU of which the next payload has more.
    open: Option<Vec<u8>>,
}

impl Av1Depacketizer {
    /// Adds one payload.
    pub fn push(&mut self, payload: &[u8]) -> Result<(), DepacketizeError> {
        let (aggregation, mut rest) = payload.split_first().ok_or(DepacketizeError::Empty)?;
        if self.unit.len() + self.open.as_ref().map_or(0, Vec::len) + payload.len() > Depacketizer::MAX_ACCESS_UNIT {
            return Err(DepacketizeError::TooLarge);
        }
        let (continues, goes_on) = (aggregation & 0x80 != 0, aggregation & 0x40 != 0);
        if continues != self.open.is_some() {
            return Err(DepacketizeError::OrphanFragment);
        }
        // Of a known number of elements the last has no length.
        let count = usize::from(aggregation >> 4 & 3);
        let mut index = 0;
        while !rest.is_empty() || index < count.max(1) {
            index += 1;
            let element = if index == count {
                std::mem::take(&mut rest)
            } else {
                let (len, after) = leb128(rest).ok_or(TRUNCATED)?;
                let (element, after) = after.split_at_checked(len).ok_or(TRUNCATED)?;
                rest = after;
                element
            };
            let mut obu = self.open.take().unwrap_or_default();
            obu.extend_from_slice(element);
            if goes_on && rest.is_empty() && index >= count {
                self.open = Some(obu);
            } else {
                self.append(&obu)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, obu: &[u8]) -> Result<(), DepacketizeError> {
        let header = *obu.first().ok_or(TRUNCATED)?;
        if header >> 3 & 15 == OBU_TEMPORAL_DELIMITER {
            return Ok(());
        }
        if header & HAS_SIZE != 0 {
            // The sender left it in, which the format allows.
            Obus(obu).next().filter(|one| one.len == obu.len()).ok_or(TRUNCATED)?;
            self.unit.extend_from_slice(obu);
            return Ok(());
        }
        let header_len = if header & EXTENSION != 0 { 2 } else { 1 };
        let (head, body) = obu.split_at_checked(header_len).ok_or(TRUNCATED)?;
        self.unit.push(header | HAS_SIZE);
        self.unit.extend_from_slice(&head[1..]);
        push_leb128(&mut self.unit, body.len());
        self.unit.extend_from_slice(body);
        Ok(())
    }

    /// The temporal unit collected so far; empty when nothing came, or not its end. Starts the next one.
    pub fn take(&mut self) -> Vec<u8> {
        let unit = std::mem::take(&mut self.unit);
        if self.open.take().is_some() { Vec::new() } else { unit }
    }

    /// Forgets a damaged temporal unit.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

const TRUNCATED: DepacketizeError = DepacketizeError::Truncated("AV1 OBU element");

/// A number of seven bits a byte, the least significant first (§4.10.5), and what comes behind it.
fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(8) {
        value |= u64::from(byte & 0x7f) << (at * 7);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[at + 1..]));
        }
    }
    None
}

fn push_leb128(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

struct Obu<'a> {
    kind: u8,
    body: &'a [u8],
    /// Header and length included.
    len: usize,
}

/// OBUs with their lengths, one behind the other. Ends at what is none.
struct Obus<'a>(&'a [u8]);

impl<'a> Iterator for Obus<'a> {
    type Item = Obu<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = *self.0.first().filter(|header| *header & HAS_SIZE != 0)?;
        let (len, rest) = leb128(self.0.get(if header & EXTENSION != 0 { 2 } else { 1 }..)?)?;
        let (body, after) = rest.split_at_checked(len)?;
        let len = self.0.len() - after.len();
        self.0 = after;
        Some(Obu { kind: header >> 3 & 15, body, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequence headers as libaom (320×180) and SVT-AV1 (640×360) write them, without header and length.
    const LIBAOM: [u8; 11] = [0x00, 0x00, 0x00, 0x04, 0x3c, 0xfe, 0xcc, 0xda, 0xf9, 0x00, 0x40];
    const SVT: [u8; 11] = [0x00, 0x00, 0x00, 0x0c, 0xc4, 0xff, 0x67, 0x3e, 0xfe, 0x40, 0x10];

    /// Bits as they are written down.
    fn bits(text: &str) -> Vec<u8> {
        let bits: Vec<u8> = text.bytes().map(|b| b - b'0').collect();
        bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |all, (at, bit)| all | bit << (7 - at))).collect()
    }

    #[test]
    fn sequence_headers_tell_the_size() {
        // What comes behind the size: no frame ids, an order hint of 7 bits, each picture decides; 8 bits.
        let rest = "0 000 0000 1 00 1 1 110 000 0 0";
        let size = "0111 0111 01111111 01001111"; // 128×80 in 8 bits each
        let zeros = "0".repeat(64);
        let point = "000000000000 00101";
        let written = [
            ("reduced", format!("000 1 1 00101 {size} 000 000 0 0")),
            ("plain", format!("000 0 0 0 0 00000 {point} {size} {rest}")),
            ("frame ids", format!("000 0 0 0 0 00000 {point} {size} 1 0000000 000 0000 0 0 0 000 0 0")),
            ("integer vectors", format!("000 0 0 0 0 00000 {point} {size} 0 000 0000 0 0 1 0 1 000 0 0")),
            ("timing", format!("000 0 0 1 {zeros} 0 0 0 00000 {point} {size} {rest}")),
            (
                "uvlc",
                format!("000 0 0 1 {zeros} 1 00101 1 {} 0000000000 0 00000 {point} 0 {size} {rest}", &zeros[..37]),
            ),
            (
                "decoder model",
                format!(
                    "000 0 0 1 {zeros} 0 1 00011 {} 0000000000 1 00001 {point} 1 0000 1111 0 1 0101 000000000000 01000 1 0 0 {size} {rest}",
                    &zeros[..32]
                ),
            ),
        ];
        for (name, text) in &written {
            let text: String = text.split(' ').collect();
            let header = bits(&text);
            let parsed = Sequence::parse(&header).expect(name);
            assert_eq!((parsed.size, parsed.level, parsed.tier), (Size::new(128, 80), 5, false), "{name}");
            assert!(!parsed.high_bitdepth && !parsed.monochrome, "{name}");
            for len in 0..text.len() / 8 {
                assert!(Sequence::parse(&header[..len]).is_none(), "{name}, {len} bytes");
            }
        }
        assert!(Sequence::parse(&[0xff; 40]).is_some_and(|header| header.profile == 7));
    }

    #[test]
    fn encoders_sequences_are_described_for_files() {
        let with = |header: &[u8]| [&[0x0a, header.len() as u8], header].concat();
        // As FFmpeg writes the record for the same streams.
        for (header, size, front) in
            [(LIBAOM, Size::new(320, 180), [0x81, 0, 0x0c, 0]), (SVT, Size::new(640, 360), [0x81, 1, 0x0c, 0])]
        {
            let unit = with(&header);
            assert_eq!(size_of(&unit), Some(size));
            assert_eq!(configuration(&unit), Some([&front, &unit[..]].concat()));
        }
        let high = with(&[0x20 | LIBAOM[0], LIBAOM[1], LIBAOM[2], LIBAOM[3], 0x3c, 0xfe, 0xcc, 0xda, 0xf9, 0, 0x40]);
        assert!(size_of(&high).is_some() && configuration(&high).is_none());
    }

    #[track_caller]
    fn check(payloads: &[&[u8]], expected: Result<&[u8], DepacketizeError>) {
        let mut depacketizer = Av1Depacketizer::default();
        let got = payloads.iter().try_for_each(|payload| depacketizer.push(payload)).map(|()| depacketizer.take());
        assert_eq!(got, expected.map(<[u8]>::to_vec), "{payloads:x?}");
    }

    #[test]
    fn elements_become_obus_with_lengths() {
        check(&[&[0x10, 0x30, 7]], Ok(&[0x32, 1, 7])); // one element
        check(&[&[0x20, 2, 0x08, 5, 0x30, 7]], Ok(&[0x0a, 1, 5, 0x32, 1, 7])); // two
        check(&[&[0x00, 2, 0x08, 5, 2, 0x30, 7]], Ok(&[0x0a, 1, 5, 0x32, 1, 7])); // each with its length
        check(&[&[0x10, 0x34, 0x28, 7]], Ok(&[0x36, 0x28, 1, 7])); // layers
        check(&[&[0x10, 0x32, 1, 7]], Ok(&[0x32, 1, 7])); // a length that stayed
        check(&[&[0x20, 1, 0x10, 0x30, 7]], Ok(&[0x32, 1, 7])); // a temporal delimiter
        check(&[&[0x50, 0x30, 1], &[0xd0, 2], &[0x90, 3]], Ok(&[0x32, 3, 1, 2, 3])); // in three packets
        check(&[&[0x60, 2, 0x08, 5, 0x30, 1], &[0xa0, 1, 2, 0x30, 3]], Ok(&[0x0a, 1, 5, 0x32, 2, 1, 2, 0x32, 1, 3]));
        let long = [&[0x10, 0x30][..], &[9; 300]].concat();
        check(&[&long], Ok(&[&[0x32, 0xac, 2][..], &[9; 300]].concat()));
    }

    #[test]
    fn units_are_whole_or_none() {
        check(&[&[]], Err(DepacketizeError::Empty));
        check(&[&[0x50, 0x30, 1]], Ok(&[])); // the end is missing
        check(&[&[0x90, 1]], Err(DepacketizeError::OrphanFragment));
        check(&[&[0x50, 0x30, 1], &[0x10, 0x30, 1]], Err(DepacketizeError::OrphanFragment));
        for cut in [
            &[0x10][..],
            &[0x00],
            &[0x20, 2, 0x08, 5],
            &[0x20, 9, 0x08],
            &[0x00, 2, 0x08],
            &[0x00, 0],
            &[0x10, 0x34],
            &[0x10, 0x32, 9, 7],
            &[0x10, 0x32, 0, 7],
            &[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ] {
            check(&[cut], Err(TRUNCATED));
        }
    }

    #[test]
    fn keyframes_have_a_sequence_header_and_are_shown() {
        let unit = |frame: u8| [&[0x0a, 11][..], &LIBAOM, &[0x32, 2, frame, 0]].concat();
        assert!(is_keyframe(&unit(0x10)) && size_of(&unit(0x10)) == Some(Size::new(320, 180)));
        // Not shown, an inter frame, one shown again.
        for frame in [0x00, 0x30, 0x90] {
            assert!(!is_keyframe(&unit(frame)), "{frame:x}");
        }
        for none in [&[][..], &[0x32, 1, 0x10], &unit(0x10)[..13], &[0x0a, 11, 0, 0], &[0x08, 1]] {
            assert!(!is_keyframe(none), "{none:x?}");
        }
    }
}
