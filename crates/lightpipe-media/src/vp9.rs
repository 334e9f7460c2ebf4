//! VP9 in RTP payloads (RFC 9628): what somebody else packetized, and goes on as it came.

use crate::bits::Bits;
use crate::frame::Size;
use crate::packetize::{DepacketizeError, Depacketizer};

/// Layer frames of one picture: RFC 9628 has three bits for the spatial layer, and the superframe index as many.
const MAX_LAYERS: usize = 8;

/// Whether a frame decodes without any other (VP9 bitstream specification §6.2).
pub fn is_keyframe(frame: &[u8]) -> bool {
    header(frame).is_some()
}

/// Picture size of a keyframe; `None` for other frames and for what is no VP9 of profile 0, the one that is negotiated. Of several
/// spatial layers it is the lowest one's.
pub fn size_of(frame: &[u8]) -> Option<Size> {
    header(frame)
}

fn header(frame: &[u8]) -> Option<Size> {
    // Frame marker, profile 0, shows no earlier frame, key frame; shown and error resilient may be anything.
    if frame.first()? & 0xfc != 0x80 || frame.get(1..4)? != [0x49, 0x83, 0x42] {
        return None;
    }
    let mut bits = Bits::new(&frame[4..]);
    let (_color_space, _color_range) = (bits.take(3)?, bits.take(1)?);
    Some(Size::new(bits.take(16)? + 1, bits.take(16)? + 1))
}

/// Puts payloads back together, in sequence order. Same contract as [`Depacketizer`] for H.264.
///
/// What comes out is the frame; of a picture with several spatial layers their superframe (VP9 bitstream specification, annex B).
#[derive(Debug, Default)]
pub struct Vp9Depacketizer {
    frame: Vec<u8>,
    /// Where the layer frames of the picture end.
    ends: Vec<usize>,
    largest: Option<Size>,
}

impl Vp9Depacketizer {
    /// Adds one payload.
    pub fn push(&mut self, payload: &[u8]) -> Result<(), DepacketizeError> {
        let descriptor = Descriptor::parse(payload)?;
        if self.frame.len() + descriptor.data.len() > Depacketizer::MAX_ACCESS_UNIT {
            return Err(DepacketizeError::TooLarge);
        }
        let inside = self.frame.len() > self.ends.last().copied().unwrap_or(0);
        // A packet that begins no frame continues one, and one begins where another ended.
        if descriptor.begins == inside {
            return Err(DepacketizeError::OrphanFragment);
        }
        if self.frame.is_empty() {
            self.largest = None;
        }
        self.largest = descriptor.largest.or(self.largest);
        self.frame.extend_from_slice(descriptor.data);
        if descriptor.ends {
            if self.ends.len() == MAX_LAYERS {
                return Err(DepacketizeError::TooLarge);
            }
            self.ends.push(self.frame.len());
        }
        Ok(())
    }

    /// The picture collected so far; empty when nothing came, or not its end. Starts the next one.
    pub fn take(&mut self) -> Vec<u8> {
        let mut picture = std::mem::take(&mut self.frame);
        let ends = std::mem::take(&mut self.ends);
        if ends.last() != Some(&picture.len()) {
            return Vec::new();
        }
        if ends.len() > 1 {
            // Sizes of four bytes, the least significant first.
            let marker = 0xc0 | 3 << 3 | (ends.len() - 1) as u8;
            picture.push(marker);
            let begins = std::iter::once(0).chain(ends.iter().copied());
            for (begin, end) in begins.zip(&ends) {
                // Below `MAX_ACCESS_UNIT`.
                picture.extend_from_slice(&((end - begin) as u32).to_le_bytes());
            }
            picture.push(marker);
        }
        picture
    }

    /// Size of the highest spatial layer, if the picture taken last or being collected told it.
    pub const fn largest_layer(&self) -> Option<Size> {
        self.largest
    }

    /// Forgets a damaged picture.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What is of use in a payload descriptor (RFC 9628 §4.2).
struct Descriptor<'a> {
    /// Starts a frame.
    begins: bool,
    /// Ends it.
    ends: bool,
    /// Size of the highest spatial layer, from the scalability structure.
    largest: Option<Size>,
    data: &'a [u8],
}

impl<'a> Descriptor<'a> {
    fn parse(payload: &'a [u8]) -> Result<Self, DepacketizeError> {
        if payload.is_empty() {
            return Err(DepacketizeError::Empty);
        }
        let mut fields = Fields(payload);
        let flags = fields.byte()?;
        let has = |bit: u8| flags & bit != 0;
        let (picture_id, predicted, layers, flexible) = (has(0x80), has(0x40), has(0x20), has(0x10));
        // The picture id has 7 or 15 bits.
        if picture_id && fields.byte()? & 0x80 != 0 {
            fields.byte()?;
        }
        if layers {
            fields.byte()?;
            if !flexible {
                fields.byte()?; // TL0PICIDX
            }
        }
        if predicted && flexible {
            // Up to three reference indices; N says that another one follows.
            for _ in 0..3 {
                if fields.byte()? & 1 == 0 {
                    break;
                }
            }
        }
        let largest = if has(0x02) { fields.scalability_structure()? } else { None };
        if fields.0.is_empty() {
            return Err(TRUNCATED);
        }
        Ok(Self { begins: has(0x08), ends: has(0x04), largest, data: fields.0 })
    }
}

const TRUNCATED: DepacketizeError = DepacketizeError::Truncated("VP9 payload descriptor");

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Result<u8, DepacketizeError> {
        let (first, rest) = self.0.split_first().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(*first)
    }

    fn side(&mut self) -> Result<u32, DepacketizeError> {
        Ok(u32::from(u16::from_be_bytes([self.byte()?, self.byte()?])))
    }

    /// RFC 9628 §4.2.1. The size of the last layer that has one.
    fn scalability_structure(&mut self) -> Result<Option<Size>, DepacketizeError> {
        let flags = self.byte()?;
        let mut largest = None;
        if flags & 0x10 != 0 {
            for _ in 0..=flags >> 5 {
                let size = Size::new(self.side()?, self.side()?);
                largest = Some(size).filter(|size| size.width > 0 && size.height > 0).or(largest);
            }
        }
        if flags & 0x08 != 0 {
            for _ in 0..self.byte()? {
                let references = self.byte()? >> 2 & 3;
                for _ in 0..references {
                    self.byte()?;
                }
            }
        }
        Ok(largest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of a keyframe of 320×180 by libvpx.
    const KEYFRAME: [u8; 12] = [0x82, 0x49, 0x83, 0x42, 0x00, 0x13, 0xf0, 0x0b, 0x36, 0x06, 0x38, 0x24];

    #[track_caller]
    fn check(payloads: &[&[u8]], expected: Result<&[u8], DepacketizeError>) {
        let mut depacketizer = Vp9Depacketizer::default();
        let got = payloads.iter().try_for_each(|payload| depacketizer.push(payload)).map(|()| depacketizer.take());
        assert_eq!(got, expected.map(<[u8]>::to_vec), "{payloads:x?}");
    }

    #[test]
    fn descriptors_of_all_kinds() {
        check(&[&[0x0c, 7]], Ok(&[7]));
        check(&[&[0x8c, 0x11, 7]], Ok(&[7])); // 7 bits of picture id
        check(&[&[0x8c, 0x91, 0x22, 7]], Ok(&[7])); // 15 bits
        check(&[&[0xac, 0x91, 0x22, 0x10, 9, 7]], Ok(&[7])); // layer indices and TL0PICIDX
        check(&[&[0xbc, 0x91, 0x22, 0x10, 7]], Ok(&[7])); // flexible: no TL0PICIDX
        check(&[&[0xdc, 0x11, 0x02, 7]], Ok(&[7])); // one reference
        check(&[&[0xdc, 0x11, 0x03, 0x05, 0x08, 7]], Ok(&[7])); // three
        check(&[&[0xdc, 0x11, 0x03, 0x05, 0x09, 7]], Ok(&[7])); // never more
        // Libwebrtc's keyframe: one layer with its size, a group of one picture.
        check(&[&[0x8e, 0x91, 0x22, 0x18, 1, 0x40, 0, 0xb4, 1, 0x04, 1, 7]], Ok(&[7]));
        check(&[&[0x0e, 0x00, 7]], Ok(&[7])); // a structure that says nothing
    }

    #[test]
    fn pictures_are_whole_or_none() {
        check(&[&[0x08, 1], &[0x00, 2], &[0x04, 3]], Ok(&[1, 2, 3]));
        check(&[&[0x08, 1], &[0x00, 2]], Ok(&[])); // the end is missing
        check(&[&[0x04, 1]], Err(DepacketizeError::OrphanFragment));
        check(&[&[0x08, 1], &[0x08, 1]], Err(DepacketizeError::OrphanFragment));
        check(&[&[0x0c, 1], &[0x04, 1]], Err(DepacketizeError::OrphanFragment));
        // Three spatial layers, of two, one and one packet.
        let layers: [&[u8]; 4] = [&[0x28, 0, 9, 1], &[0x24, 0, 9, 2], &[0x2c, 3, 9, 3], &[0x2c, 5, 9, 4]];
        check(&layers, Ok(&[1, 2, 3, 4, 0xda, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0xda]));
        check(&[&[0x0c, 1][..]; 9], Err(DepacketizeError::TooLarge));
    }

    #[test]
    fn descriptors_that_end_too_early() {
        check(&[&[]], Err(DepacketizeError::Empty));
        for whole in [
            &[0x8c, 0x91, 0x22, 7][..],
            &[0xac, 0x91, 0x22, 0x10, 9, 7],
            &[0xdc, 0x11, 0x03, 0x05, 0x08, 7],
            &[0x8e, 0x91, 0x22, 0x18, 1, 0x40, 0, 0xb4, 1, 0x04, 1, 7],
            &[0x0e, 0x38, 1, 0x40, 0, 0xb4, 2, 0x80, 1, 0x68, 2, 0x04, 1, 0x08, 1, 2, 7],
        ] {
            check(&[whole], Ok(&[7]));
            for len in 1..whole.len() {
                check(&[&whole[..len]], Err(TRUNCATED));
            }
        }
    }

    #[test]
    fn keyframes_tell_their_size() {
        assert_eq!(size_of(&KEYFRAME), Some(Size::new(320, 180)));
        assert!(is_keyframe(&KEYFRAME));
        // One that depends on others, one that shows an earlier one, another sync code, another profile, a cut one.
        for (at, byte) in [(0, 0x86), (0, 0x88), (1, 0x48), (0, 0x92)] {
            let mut other = KEYFRAME;
            other[at] = byte;
            assert!(!is_keyframe(&other) && size_of(&other).is_none(), "{other:x?}");
        }
        assert_eq!(size_of(&KEYFRAME[..8]), None);
        assert!(!is_keyframe(&[]));
    }

    #[test]
    fn the_highest_layer_tells_its_size() {
        let mut depacketizer = Vp9Depacketizer::default();
        let mut after = |payload: &[u8]| {
            depacketizer.push(payload).expect("good");
            depacketizer.take();
            depacketizer.largest_layer()
        };
        let two = [0x0e, 0x30, 1, 0x40, 0, 0xb4, 2, 0x80, 1, 0x68, 7];
        assert_eq!(after(&two), Some(Size::new(640, 360)));
        assert_eq!(after(&[0x0c, 7]), None, "not said for this picture");
        assert_eq!(after(&[0x0e, 0x10, 0, 0, 0, 0, 7]), None);
    }
}
