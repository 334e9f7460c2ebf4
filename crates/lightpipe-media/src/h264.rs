//! H.264 bytes: NAL units, parameter sets, where one picture ends and the next begins.

use crate::bits;
use crate::frame::Size;

/// The four-byte start code that we write.
pub const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// NAL unit types that matter here (ITU-T H.264 table 7-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NalType {
    /// Coded slice of a non-IDR picture, or one of its data partitions.
    Slice,
    /// Coded slice of an IDR picture.
    Idr,
    /// Supplemental enhancement information.
    Sei,
    /// Sequence parameter set.
    Sps,
    /// Picture parameter set.
    Pps,
    /// Access unit delimiter.
    AccessUnitDelimiter,
    /// End of sequence.
    EndOfSequence,
    /// End of stream.
    EndOfStream,
    /// Filler data.
    Filler,
    /// Anything else.
    Other(u8),
}

impl NalType {
    /// Type of a NAL unit without its start code; `Other(0)` when empty.
    pub fn of(nal: &[u8]) -> Self {
        match nal.first().map_or(0, |b| b & 0x1f) {
            1..=4 => Self::Slice,
            5 => Self::Idr,
            6 => Self::Sei,
            7 => Self::Sps,
            8 => Self::Pps,
            9 => Self::AccessUnitDelimiter,
            10 => Self::EndOfSequence,
            11 => Self::EndOfStream,
            12 => Self::Filler,
            other => Self::Other(other),
        }
    }

    /// A slice: part of a picture (VCL NAL unit).
    pub const fn is_vcl(self) -> bool {
        matches!(self, Self::Slice | Self::Idr)
    }
}

/// Finds the next start code `00 00 01` at or after `from`: the position of its first zero.
pub fn find_start_code(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(window) = bytes.get(at..at + 3) {
        // The third byte decides how far we may jump: anything above 1 ends no start code.
        match window {
            [0, 0, 1] => return Some(at),
            [_, _, 0] => at += 1,
            [_, _, 1] | [_, _, _] => at += 3,
            _ => return None,
        }
    }
    None
}

/// The NAL units of an Annex-B byte stream, without start codes and trailing zero bytes. Bytes before
/// the first start code are skipped; empty units are left out.
pub fn nals(annexb: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut next = find_start_code(annexb, 0);
    std::iter::from_fn(move || {
        loop {
            let start = next? + 3;
            next = find_start_code(annexb, start);
            let mut nal = &annexb[start..next.unwrap_or(annexb.len())];
            while let [rest @ .., 0] = nal {
                nal = rest;
            }
            if !nal.is_empty() {
                return Some(nal);
            }
        }
    })
}

/// Whether an access unit holds an IDR slice.
pub fn is_keyframe(annexb: &[u8]) -> bool {
    nals(annexb).any(|n| NalType::of(n) == NalType::Idr)
}

/// Whether a slice is the first of its picture: `first_mb_in_slice`, an Exp-Golomb number, is 0, which is
/// a set top bit in the first payload byte (ITU-T H.264 §7.3.3).
pub fn starts_picture(slice_nal: &[u8]) -> bool {
    slice_nal.get(1).is_some_and(|b| b & 0x80 != 0)
}

/// What a sequence parameter set tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sps {
    /// `profile_idc`: 66 Baseline, 77 Main, 100 High.
    pub profile_idc: u8,
    /// The constraint flags byte.
    pub constraints: u8,
    /// `level_idc`: ten times the level.
    pub level_idc: u8,
    /// Picture size after cropping.
    pub size: Size,
    /// `chroma_format_idc`: 0 monochrome, 1 4:2:0, 2 4:2:2, 3 4:4:4.
    pub chroma_format_idc: u8,
    /// Bits of a luma sample.
    pub bit_depth_luma: u8,
    /// Bits of a chroma sample.
    pub bit_depth_chroma: u8,
}

/// Why bytes are no sequence parameter set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpsError {
    /// Another NAL unit type.
    #[error("not a sequence parameter set")]
    NotSps,
    /// Ends inside a field.
    #[error("sequence parameter set ends early")]
    Truncated,
    /// A field has a value that the standard forbids.
    #[error("sequence parameter set: bad {0}")]
    Bad(&'static str),
}

impl Sps {
    /// Parses an SPS NAL unit, without start code (ITU-T H.264 §7.3.2.1.1).
    pub fn parse(nal: &[u8]) -> Result<Self, SpsError> {
        if NalType::of(nal) != NalType::Sps {
            return Err(SpsError::NotSps);
        }
        let rbsp = unescape(&nal[1..]);
        let mut bits = Bits(bits::Bits::new(&rbsp));
        let profile_idc = bits.take(8)? as u8;
        let constraints = bits.take(8)? as u8;
        let level_idc = bits.take(8)? as u8;
        bits.ue()?; // seq_parameter_set_id
        let mut chroma_format_idc = 1;
        let (mut bit_depth_luma, mut bit_depth_chroma) = (8, 8);
        if matches!(profile_idc, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
            chroma_format_idc = bits.ue()?;
            if chroma_format_idc > 3 {
                return Err(SpsError::Bad("chroma_format_idc"));
            }
            if chroma_format_idc == 3 {
                bits.take(1)?;
            }
            bit_depth_luma = bits.bit_depth()?;
            bit_depth_chroma = bits.bit_depth()?;
            bits.take(1)?;
            if bits.take(1)? == 1 {
                for list in 0..if chroma_format_idc == 3 { 12 } else { 8 } {
                    if bits.take(1)? == 1 {
                        bits.skip_scaling_list(if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.ue()?; // log2_max_frame_num_minus4
        match bits.ue()? {
            0 => {
                bits.ue()?;
            }
            1 => {
                bits.take(1)?;
                bits.ue()?;
                bits.ue()?;
                let cycle = bits.ue()?;
                if cycle > 255 {
                    return Err(SpsError::Bad("num_ref_frames_in_pic_order_cnt_cycle"));
                }
                for _ in 0..cycle {
                    bits.ue()?;
                }
            }
            2 => {}
            _ => return Err(SpsError::Bad("pic_order_cnt_type")),
        }
        bits.ue()?; // max_num_ref_frames
        bits.take(1)?;
        let width_mbs = bits.ue()?.checked_add(1).ok_or(SpsError::Bad("pic_width_in_mbs"))?;
        let height_units = bits.ue()?.checked_add(1).ok_or(SpsError::Bad("pic_height_in_map_units"))?;
        let frame_mbs_only = bits.take(1)?;
        if frame_mbs_only == 0 {
            bits.take(1)?;
        }
        bits.take(1)?; // direct_8x8_inference_flag
        // 1 024 macroblocks a side is four times the largest level's 4096-sample side.
        if width_mbs > 1024 || height_units > 1024 {
            return Err(SpsError::Bad("picture size"));
        }
        let (mut width, mut height) = (width_mbs * 16, height_units * 16 * (2 - frame_mbs_only));
        if bits.take(1)? == 1 {
            let (left, right, top, bottom) = (bits.ue()?, bits.ue()?, bits.ue()?, bits.ue()?);
            let unit_x = if matches!(chroma_format_idc, 1 | 2) { 2 } else { 1 };
            let unit_y = (if chroma_format_idc == 1 { 2 } else { 1 }) * (2 - frame_mbs_only);
            let crop = |a: u32, b: u32, unit: u32| {
                a.checked_add(b).and_then(|n| n.checked_mul(unit)).ok_or(SpsError::Bad("cropping"))
            };
            width =
                width.checked_sub(crop(left, right, unit_x)?).filter(|w| *w > 0).ok_or(SpsError::Bad("cropping"))?;
            height =
                height.checked_sub(crop(top, bottom, unit_y)?).filter(|h| *h > 0).ok_or(SpsError::Bad("cropping"))?;
        }
        Ok(Self {
            profile_idc,
            constraints,
            level_idc,
            size: Size::new(width, height),
            chroma_format_idc: chroma_format_idc as u8,
            bit_depth_luma,
            bit_depth_chroma,
        })
    }
}

/// Picture size of an access unit that carries an SPS.
pub fn size_of(annexb: &[u8]) -> Option<Size> {
    nals(annexb).find(|n| NalType::of(n) == NalType::Sps).and_then(|n| Sps::parse(n).ok()).map(|s| s.size)
}

/// Removes emulation prevention bytes (ITU-T H.264 §7.4.1).
fn unescape(nal: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

struct Bits<'a>(bits::Bits<'a>);

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<u32, SpsError> {
        self.0.take(count).ok_or(SpsError::Truncated)
    }

    /// Unsigned Exp-Golomb (§9.1), at most 31 leading zeros.
    fn ue(&mut self) -> Result<u32, SpsError> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > 31 {
                return Err(SpsError::Bad("Exp-Golomb number"));
            }
        }
        Ok((1 << zeros) - 1 + self.take(zeros)?)
    }

    fn se(&mut self) -> Result<i64, SpsError> {
        let n = i64::from(self.ue()?);
        Ok(if n % 2 == 0 { -(n / 2) } else { n / 2 + 1 })
    }

    /// `bit_depth_luma_minus8` or `bit_depth_chroma_minus8`, as the depth that it means.
    fn bit_depth(&mut self) -> Result<u8, SpsError> {
        match self.ue()? {
            above @ 0..=6 => Ok(above as u8 + 8),
            _ => Err(SpsError::Bad("bit depth")),
        }
    }

    fn skip_scaling_list(&mut self, len: u32) -> Result<(), SpsError> {
        let (mut last, mut next) = (8i64, 8i64);
        for _ in 0..len {
            if next != 0 {
                next = (last + self.se()?).rem_euclid(256);
            }
            last = if next == 0 { last } else { next };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_nals(bytes: &[u8], expected: &[&[u8]]) {
        assert_eq!(nals(bytes).collect::<Vec<_>>(), expected, "{bytes:?}");
    }

    #[test]
    fn start_codes_split_nal_units() {
        check_nals(&[], &[]);
        check_nals(&[0, 0, 1], &[]);
        check_nals(&[0, 0, 1, 9], &[&[9]]);
        check_nals(&[7, 7, 0, 0, 0, 1, 9, 8, 0, 0, 1, 7], &[&[9, 8], &[7]]);
        check_nals(&[0, 0, 0, 1, 9, 0, 0, 0, 0, 1, 5], &[&[9], &[5]]);
        check_nals(&[0, 0, 1, 0, 0, 1, 5, 0, 2, 0, 0, 3, 1], &[&[5, 0, 2, 0, 0, 3, 1]]);
        check_nals(&[1, 0, 0, 1, 4], &[&[4]]);
    }

    #[track_caller]
    fn check_sps(hex: &str, expected: Result<(u8, Size), SpsError>) {
        let nal: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect();
        assert_eq!(Sps::parse(&nal).map(|s| (s.profile_idc, s.size)), expected, "{hex}");
    }

    #[test]
    fn sequence_parameter_sets_tell_the_size() {
        // Written by openh264 (1280×720 baseline), x264 (1920×1080 high, cropped; 640×480 baseline).
        check_sps("6742c01f8c8d40280 2dd00f08846a0".replace(' ', "").as_str(), Ok((66, Size::new(1280, 720))));
        check_sps(
            "6764002 8acd940780227e5c044000003000400000300f03c60c658".replace(' ', "").as_str(),
            Ok((100, Size::new(1920, 1080))),
        );
        check_sps("68ce3c80", Err(SpsError::NotSps));
        check_sps("67", Err(SpsError::Truncated));
        check_sps("6742c01f", Err(SpsError::Truncated));
        check_sps("6742c01f00000000000000", Err(SpsError::Bad("Exp-Golomb number")));
    }
}
