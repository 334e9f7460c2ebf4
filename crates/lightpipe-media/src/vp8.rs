//! VP8 frames and their RTP payloads (RFC 7741, RFC 6386).

use std::sync::Arc;

use crate::frame::Size;
use crate::packetize::{DepacketizeError, Depacketizer, RtpPayloads};

/// Start of a partition, in the payload descriptor (RFC 7741 §4.2).
const START: u8 = 0x10;

/// Whether a frame decodes without any other (RFC 6386 §9.1).
pub fn is_keyframe(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 == 0)
}

/// Picture size of a keyframe; `None` for other frames and for what is no VP8.
pub fn size_of(frame: &[u8]) -> Option<Size> {
    let header = frame.get(..10).filter(|h| is_keyframe(h) && h[3..6] == [0x9d, 0x01, 0x2a])?;
    // The two highest bits are the upscaling that a player may do.
    let side = |at: usize| u32::from(u16::from_le_bytes([header[at], header[at + 1]]) & 0x3fff);
    let size = Size::new(side(6), side(8));
    (size.width > 0 && size.height > 0).then_some(size)
}

/// RTP payloads of a frame, of about equal size and at most `max_len` bytes each.
pub fn packetize(frame: &[u8], max_len: usize) -> RtpPayloads {
    let room = max_len.saturating_sub(1).max(1);
    let count = frame.len().div_ceil(room).max(1);
    let share = frame.len().div_ceil(count).max(1);
    let payload = |(index, part): (usize, &[u8])| -> Arc<[u8]> {
        // The shortest descriptor: no picture id, no layers; packets of one frame share its timestamp.
        let descriptor = if index == 0 { START } else { 0 };
        std::iter::once(descriptor).chain(part.iter().copied()).collect()
    };
    frame.chunks(share).enumerate().map(payload).collect()
}

/// Puts payloads back together, in sequence order. Same contract as [`Depacketizer`] for H.264.
#[derive(Debug, Default)]
pub struct Vp8Depacketizer {
    frame: Vec<u8>,
}

impl Vp8Depacketizer {
    /// Adds one payload.
    pub fn push(&mut self, payload: &[u8]) -> Result<(), DepacketizeError> {
        let (descriptor, data) = split_descriptor(payload)?;
        if self.frame.len() + data.len() > Depacketizer::MAX_ACCESS_UNIT {
            return Err(DepacketizeError::TooLarge);
        }
        // The first packet of a frame starts partition 0; one that does not continues what never began.
        if self.frame.is_empty() && (descriptor & START == 0 || descriptor & 0x0f != 0) {
            return Err(DepacketizeError::OrphanFragment);
        }
        self.frame.extend_from_slice(data);
        Ok(())
    }

    /// The frame collected so far; empty when nothing came. Starts the next one.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.frame)
    }

    /// Forgets a damaged frame.
    pub fn reset(&mut self) {
        self.frame.clear();
    }
}

/// First byte of the payload descriptor, and what comes behind all of it.
fn split_descriptor(payload: &[u8]) -> Result<(u8, &[u8]), DepacketizeError> {
    const TRUNCATED: DepacketizeError = DepacketizeError::Truncated("VP8 payload descriptor");
    let first = *payload.first().ok_or(DepacketizeError::Empty)?;
    let mut len = 1;
    if first & 0x80 != 0 {
        let extension = *payload.get(len).ok_or(TRUNCATED)?;
        len += 1;
        if extension & 0x80 != 0 {
            // The picture id has 7 or 15 bits.
            len += if *payload.get(len).ok_or(TRUNCATED)? & 0x80 != 0 { 2 } else { 1 };
        }
        len += usize::from(extension & 0x40 != 0);
        len += usize::from(extension & 0x30 != 0);
    }
    let data = payload.get(len..).filter(|data| !data.is_empty()).ok_or(TRUNCATED)?;
    Ok((first, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of a keyframe of 640×360.
    fn keyframe(len: usize) -> Vec<u8> {
        let mut frame = vec![0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01];
        frame.resize(len.max(10), 0x5a);
        frame
    }

    #[test]
    fn frames_survive_packets_of_any_size() {
        for len in [10, 11, 999, 1127, 1128, 5000, 90_000] {
            let frame = keyframe(len);
            let payloads = packetize(&frame, 1128);
            let (shortest, longest) =
                (payloads.iter().map(|p| p.len()).min().expect("one"), payloads.iter().map(|p| p.len()).max());
            assert!(longest <= Some(1128) && longest.expect("one") - shortest <= payloads.len(), "{len}");
            let mut depacketizer = Vp8Depacketizer::default();
            for payload in payloads.iter() {
                depacketizer.push(payload).expect("our own");
            }
            assert_eq!(depacketizer.take(), frame);
            assert!(depacketizer.take().is_empty());
        }
    }

    #[track_caller]
    fn check(payload: &[u8], expected: Result<&[u8], DepacketizeError>) {
        let mut depacketizer = Vp8Depacketizer::default();
        let got = depacketizer.push(payload).map(|()| depacketizer.take());
        assert_eq!(got, expected.map(<[u8]>::to_vec), "{payload:x?}");
    }

    #[test]
    fn descriptors_of_other_senders() {
        check(&[0x10, 7], Ok(&[7]));
        check(&[0x90, 0x80, 0x11, 7], Ok(&[7])); // 7 bits of picture id
        check(&[0x90, 0x80, 0x91, 0x22, 7], Ok(&[7])); // 15 bits
        check(&[0x90, 0xf0, 0x91, 0x22, 1, 2, 7], Ok(&[7])); // id, TL0PICIDX, TID and KEYIDX
        check(&[0x90, 0x20, 2, 7], Ok(&[7])); // TID alone
        check(&[0x00, 7], Err(DepacketizeError::OrphanFragment));
        check(&[0x11, 7], Err(DepacketizeError::OrphanFragment)); // partition 1
        check(&[], Err(DepacketizeError::Empty));
        for cut in
            [&[0x10][..], &[0x90], &[0x90, 0x80], &[0x90, 0x80, 0x91], &[0x90, 0x80, 0x91, 1], &[0x90, 0xf0, 1, 2, 3]]
        {
            check(cut, Err(DepacketizeError::Truncated("VP8 payload descriptor")));
        }
    }

    #[test]
    fn keyframes_tell_their_size() {
        assert_eq!(size_of(&keyframe(20)), Some(Size::new(640, 360)));
        assert!(is_keyframe(&keyframe(20)) && !is_keyframe(&[0x31]) && !is_keyframe(&[]));
        let mut other = keyframe(20);
        other[3] = 0;
        assert_eq!(size_of(&other), None);
        assert_eq!(size_of(&keyframe(20)[..9]), None);
    }
}
