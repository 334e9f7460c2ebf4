//! The timecode strip: a capture time that is part of the picture and survives encoding.
//!
//! `pattern` paints it always, other sources on `--timecode`. Whoever sees a decoded picture (a test, the page's
//! latency meter) reads it back and knows how old that picture is. This module is the definition that
//! the page's reader follows.
//!
//! From the top left corner of the picture, left to right, 48 square blocks, white = 1, black = 0:
//!
//! ```text
//!   8 bits 10101010 │ 32 bits Unix milliseconds mod 2³², most significant first │ 8 bits CRC-8 of those 4 bytes
//! ```
//!
//! The CRC has polynomial 0x07 and initial value 0. Blocks are 16×16 px in pictures at least 768 px wide.
//! Narrower pictures carry blocks of `width / 80` px (rounded, at least 4): what a picture of
//! 1280 px shows once it is scaled down. Below 192 px there is no room, and no strip.

use crate::frame::{PixelFormat, Size, VideoFrame};

/// Number of blocks.
pub const BITS: usize = 48;

/// Side of a block in pictures that have room for it, px.
pub const BLOCK: u32 = 16;

/// Smallest block, px. A 4×4 block is one transform block of H.264 and keeps two clear samples in its centre.
pub const MIN_BLOCK: u32 = 4;

/// First byte of the strip.
const SYNC: u8 = 0b1010_1010;

/// Side of a block in a picture of `size`, px; `None` where the strip does not fit.
pub const fn block_size(size: Size) -> Option<u32> {
    let block = if size.width >= BLOCK * BITS as u32 {
        BLOCK
    } else {
        let scaled = (size.width + 40) / 80;
        if scaled > MIN_BLOCK { scaled } else { MIN_BLOCK }
    };
    if fits(size, block) { Some(block) } else { None }
}

const fn fits(size: Size, block: u32) -> bool {
    size.width >= block * BITS as u32 && size.height >= block
}

/// The strip's blocks for a capture time, left to right.
pub fn encode_bits(unix_ms: u32) -> [bool; BITS] {
    let time = unix_ms.to_be_bytes();
    let bytes = [SYNC, time[0], time[1], time[2], time[3], crc8(&time)];
    std::array::from_fn(|n| bytes[n / 8] & (0x80 >> (n % 8)) != 0)
}

/// The capture time of a strip; `None` when the sync byte or the checksum is wrong.
pub fn decode_bits(bits: &[bool; BITS]) -> Option<u32> {
    let mut bytes = [0u8; BITS / 8];
    for (n, bit) in bits.iter().enumerate() {
        bytes[n / 8] |= u8::from(*bit) << (7 - n % 8);
    }
    let [sync, a, b, c, d, crc] = bytes;
    let time = [a, b, c, d];
    (sync == SYNC && crc == crc8(&time)).then(|| u32::from_be_bytes(time))
}

/// Paints the strip into a picture of any format. A picture without room for it stays as it is.
pub fn paint(frame: &mut VideoFrame, unix_ms: u32) {
    let Some(block) = block_size(frame.size()) else {
        return;
    };
    let bits = encode_bits(unix_ms);
    let block = block as usize;
    match frame.format() {
        PixelFormat::Rgba | PixelFormat::Bgra => {
            let stride = frame.layout(0).stride;
            for row in frame.plane_mut(0).chunks_mut(stride).take(block) {
                for (cell, bit) in row.chunks_exact_mut(block * 4).zip(bits) {
                    let level = if bit { 255 } else { 0 };
                    for pixel in cell.chunks_exact_mut(4) {
                        pixel.copy_from_slice(&[level, level, level, 255]);
                    }
                }
            }
        }
        PixelFormat::I420 => {
            paint_luma(frame, block, &bits);
            for plane in 1..3 {
                grey_chroma(frame, plane, block, (block * BITS).div_ceil(2));
            }
        }
        PixelFormat::Nv12 => {
            paint_luma(frame, block, &bits);
            grey_chroma(frame, 1, block, (block * BITS).next_multiple_of(2));
        }
    }
}

/// The capture time in a picture's strip, Unix milliseconds mod 2³²; `None` without a readable strip.
///
/// Knows the block sizes that [`paint`] uses and those of a strip that was halved with its picture, so
/// the lower layers of any ladder are readable too.
pub fn read(frame: &VideoFrame) -> Option<u32> {
    let size = frame.size();
    block_size(size)
        .into_iter()
        .chain([BLOCK, BLOCK / 2, BLOCK / 4])
        .filter(|block| fits(size, *block))
        .find_map(|block| decode_bits(&std::array::from_fn(|n| block_is_white(frame, block, n))))
}

/// Compares the mean of a block's middle quarter with mid-grey. The middle is what ringing and
/// deblocking at the block's edges spoil last, and a mean survives noise that single samples do not.
fn block_is_white(frame: &VideoFrame, block: u32, n: usize) -> bool {
    let block = block as usize;
    let margin = block / 4;
    let xs = n * block + margin..(n + 1) * block - margin;
    let layout = frame.layout(0);
    let rows = frame.plane(0).chunks(layout.stride);
    let rows = rows.take(block - margin).skip(margin);
    let (mut sum, mut samples) = (0u32, 0u32);
    let threshold = match frame.format() {
        PixelFormat::I420 | PixelFormat::Nv12 => {
            for row in rows {
                for sample in &row[xs.clone()] {
                    sum += u32::from(*sample);
                    samples += 1;
                }
            }
            (16 + 235) / 2
        }
        PixelFormat::Rgba | PixelFormat::Bgra => {
            for row in rows {
                for pixel in row[xs.start * 4..xs.end * 4].chunks_exact(4) {
                    sum += pixel[..3].iter().map(|c| u32::from(*c)).sum::<u32>();
                    samples += 3;
                }
            }
            127
        }
    };
    sum > threshold * samples
}

fn paint_luma(frame: &mut VideoFrame, block: usize, bits: &[bool; BITS]) {
    let stride = frame.layout(0).stride;
    for row in frame.plane_mut(0).chunks_mut(stride).take(block) {
        for (cell, bit) in row.chunks_exact_mut(block).zip(bits) {
            cell.fill(if *bit { 235 } else { 16 });
        }
    }
}

/// Takes the colour out of the first `bytes` of each chroma row beneath the strip.
fn grey_chroma(frame: &mut VideoFrame, plane: usize, block: usize, bytes: usize) {
    let layout = frame.layout(plane);
    let rows = frame.plane_mut(plane).chunks_mut(layout.stride);
    for row in rows.take(block.div_ceil(2)) {
        row[..bytes.min(layout.row_bytes)].fill(128);
    }
}

/// CRC-8, polynomial x⁸+x²+x+1 (0x07), initial value 0, no reflection.
fn crc8(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |crc, byte| (0..8).fold(crc ^ byte, |crc, _| (crc << 1) ^ if crc & 0x80 != 0 { 0x07 } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::to_i420;
    use crate::frame::FramePool;
    use crate::time::MediaTime;

    const FORMATS: [PixelFormat; 4] = [PixelFormat::I420, PixelFormat::Nv12, PixelFormat::Rgba, PixelFormat::Bgra];
    const TIMES: [u32; 5] = [0, 1, 0xDEAD_BEEF, 1_700_000_000, u32::MAX];

    fn picture(size: Size, format: PixelFormat, fill: u8) -> VideoFrame {
        let bytes = vec![fill; format.packed_len(size)];
        VideoFrame::copied_from(&FramePool::new(), MediaTime::ZERO, size, format, &bytes)
            .expect("the buffer has the length of its layout")
    }

    #[test]
    fn checksum_is_the_published_crc_8() {
        assert_eq!(crc8(b"123456789"), 0xF4);
    }

    #[test]
    fn bits_are_sync_then_time_then_checksum() {
        let text: String = encode_bits(0x8000_0001).map(|bit| if bit { '1' } else { '0' }).iter().collect();
        let crc = format!("{:08b}", crc8(&[0x80, 0, 0, 1]));
        assert_eq!(text, format!("10101010{}{crc}", "10000000000000000000000000000001"));
    }

    #[test]
    fn every_format_and_size_carries_it_there_and_back() {
        for format in FORMATS {
            for (width, height) in [(1280, 720), (1920, 1080), (768, 432), (640, 360)].into_iter().chain([
                (400, 226),
                (321, 181),
                (320, 180),
                (192, 108),
            ]) {
                for time in TIMES {
                    let mut frame = picture(Size::new(width, height), format, 90);
                    paint(&mut frame, time);
                    assert_eq!(read(&frame), Some(time), "{format:?} {width}x{height}");
                }
            }
        }
    }

    #[test]
    fn a_picture_without_room_or_without_a_strip_gives_nothing() {
        for format in FORMATS {
            let mut small = picture(Size::new(190, 100), format, 90);
            paint(&mut small, 7);
            assert!(small.plane(0).iter().all(|sample| *sample == 90));
            assert_eq!(read(&small), None);
            for fill in [0, 90, 255] {
                assert_eq!(read(&picture(Size::new(1280, 720), format, fill)), None);
            }
        }
    }

    #[test]
    fn blocks_lie_where_the_page_looks_for_them() {
        let mut frame = picture(Size::new(1280, 720), PixelFormat::I420, 90);
        paint(&mut frame, 0xFFFF_FFFF);
        let y = frame.plane(0);
        assert_eq!((y[0], y[15], y[16], y[31], y[32]), (235, 235, 16, 16, 235));
        assert_eq!((y[15 * 1280], y[16 * 1280]), (235, 90), "16 rows");
        assert_eq!(y[48 * 16], 90, "48 blocks");
        let u = frame.plane(1);
        assert_eq!((u[0], u[383], u[384], u[7 * 640], u[8 * 640]), (128, 128, 90, 128, 90));
    }

    #[test]
    fn a_wrong_bit_is_refused_wherever_it_is() {
        for n in 0..BITS {
            let mut bits = encode_bits(0x1234_5678);
            bits[n] = !bits[n];
            assert_eq!(decode_bits(&bits), None, "bit {n}");
        }
    }

    #[test]
    fn noise_of_a_hard_encode_does_not_hide_it() {
        for format in FORMATS {
            let mut frame = picture(Size::new(640, 360), format, 90);
            paint(&mut frame, 0xDEAD_BEEF);
            let mut seed = 1u32;
            for sample in frame.plane_mut(0) {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (seed >> 24) as i32 * 120 / 255 - 60;
                *sample = (i32::from(*sample) + noise).clamp(0, 255) as u8;
            }
            assert_eq!(read(&frame), Some(0xDEAD_BEEF), "{format:?}");
        }
    }

    #[test]
    fn lower_layers_carry_it_scaled() {
        let pool = FramePool::new();
        for (width, height) in [(1280, 720), (1920, 1080)] {
            let mut frame = picture(Size::new(width, height), PixelFormat::Bgra, 90);
            paint(&mut frame, 0xDEAD_BEEF);
            for part in [1, 2, 4] {
                let size = Size::new(width / part, height / part);
                let layer = to_i420(&frame, &pool, size).expect("a size that can be encoded");
                assert_eq!(read(&layer), Some(0xDEAD_BEEF), "{width}x{height} as {size}");
            }
        }
    }
}
