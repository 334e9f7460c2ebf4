//! From what a source delivers to what an encoder takes: I420, BT.709 limited range, at the layer's size.
//!
//! An encoder thread holds a [`Converter`] and sends every picture through it. A picture that is right
//! already passes untouched. Pixel conversion is the `yuv` crate's; scaling is our own: a 2×2 box where a layer
//! is half of its picture, a triangle filter (bilinear, widened when it shrinks) for all other ratios.
//! Aspect ratio is the caller's business: a picture is stretched to the target.

use yuv::{
    BufferStoreMut, YuvConversionMode, YuvPlanarImageMut, YuvRange, YuvStandardMatrix, bgra_to_yuv420, rgba_to_yuv420,
};

use crate::frame::{FrameError, FramePool, PixelFormat, Size, VideoFrame};

/// Brings pictures into the form that an encoder takes.
#[derive(Debug, Clone, Default)]
pub struct Converter {
    pool: FramePool,
    /// Of pictures on the way to a smaller one.
    between: FramePool,
}

impl Converter {
    /// A converter that takes its buffers from `pool`.
    pub fn new(pool: FramePool) -> Self {
        Self { pool, between: FramePool::new() }
    }

    /// `frame` as I420 of `target` (made even). Returns the very same buffer when it is that already.
    pub fn convert(&self, frame: VideoFrame, target: Size) -> Result<VideoFrame, ConvertError> {
        if frame.format() == PixelFormat::I420 && frame.size() == target.to_even() {
            return Ok(frame);
        }
        to_i420(&frame, &self.pool, target)
    }

    /// An I420 picture again as one of `target` (made even): halved as often as that goes, the rest of the way by the filter for all other
    /// ratios. The capture time is kept.
    ///
    /// Half of an odd number of samples is rounded down, see [`half`]: up to two columns and rows are cut off.
    pub fn scale(&self, frame: &VideoFrame, target: Size) -> Result<VideoFrame, ConvertError> {
        let target = target.to_even();
        let next = half(frame.size());
        if next == target {
            return halved(frame, &self.pool);
        }
        if next.width < target.width || next.height < target.height {
            return scaled(frame, frame.size().to_even(), &self.pool, target);
        }
        let mut between = halved(frame, &self.between)?;
        loop {
            let next = half(between.size());
            if next == target {
                return halved(&between, &self.pool);
            }
            if next.width < target.width || next.height < target.height {
                return scaled(&between, between.size(), &self.pool, target);
            }
            between = halved(&between, &self.between)?;
        }
    }
}

/// The size of a picture with half as many columns and rows, both even.
pub const fn half(size: Size) -> Size {
    Size::new(size.width / 2, size.height / 2).to_even()
}

/// How often a picture of `from` is halved to become one of `to`; `None` where that is not the way.
pub fn halvings(from: Size, to: Size) -> Option<u32> {
    let sizes = std::iter::successors(Some(from), |size| (size.width > 2 && size.height > 2).then(|| half(*size)));
    sizes.take_while(|size| size.width >= to.width).zip(0..).find(|(size, _)| *size == to).map(|(_, n)| n)
}

/// Why a picture was not converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The target is no size of a picture.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The conversion library refused a geometry that we checked: our mistake.
    #[error("colour conversion refused {format:?} of {size}: {reason}")]
    Refused {
        /// Format of the picture.
        format: PixelFormat,
        /// Its size.
        size: Size,
        /// The library's words.
        reason: String,
    },
}

/// A new I420 picture (BT.709, limited range) of `target` (made even) from a picture of any format.
///
/// An odd last column or row is cut off rather than scaled away. The capture time is kept.
pub fn to_i420(frame: &VideoFrame, pool: &FramePool, target: Size) -> Result<VideoFrame, ConvertError> {
    let (source, target) = (frame.size().to_even(), target.to_even());
    if frame.format() == PixelFormat::I420 && source != target {
        return scaled(frame, source, pool, target);
    }
    let mut full = new_i420(frame, pool, source)?;
    match frame.format() {
        PixelFormat::I420 => {
            for plane in 0..3 {
                copy_plane(frame, &mut full, plane);
            }
        }
        PixelFormat::Nv12 => {
            copy_plane(frame, &mut full, 0);
            split_chroma(frame, &mut full);
        }
        PixelFormat::Rgba | PixelFormat::Bgra => convert_rgb(frame, &mut full)?,
    }
    if source == target {
        return Ok(full);
    }
    scaled(&full, source, pool, target)
}

/// Rewrites an I420 picture from the matrix of BT.709 to that of BT.601; other formats stay as they are.
///
/// A VP8 frame cannot say which matrix it has: "similar to BT.601" is all that its header knows (RFC 6386 §9.2), and that is
/// how receivers show it.
pub fn to_bt601(frame: &mut VideoFrame) {
    if frame.format() != PixelFormat::I420 {
        return;
    }
    let strides: [usize; 3] = std::array::from_fn(|n| frame.layout(n).stride);
    let width = frame.layout(0).row_bytes;
    let [luma, u, v] = frame.planes_mut();
    let chroma = u.chunks_mut(strides[1]).zip(v.chunks_mut(strides[2]));
    let mut shift = vec![0i16; width.next_multiple_of(2)];
    for (rows, (u, v)) in luma.chunks_mut(strides[0] * 2).zip(chroma) {
        for ((shift, u), v) in shift.chunks_exact_mut(2).zip(u).zip(v) {
            let (cb, cr) = (i32::from(*u) - 128, i32::from(*v) - 128);
            shift.fill(rounded(cb * matrix_601::Y_CB + cr * matrix_601::Y_CR) as i16);
            *u = chroma_sample(cb * matrix_601::CB_CB + cr * matrix_601::CB_CR);
            *v = chroma_sample(cb * matrix_601::CR_CB + cr * matrix_601::CR_CR);
        }
        for row in rows.chunks_mut(strides[0]) {
            for (sample, shift) in row.iter_mut().zip(&shift) {
                *sample = (i16::from(*sample) + shift).clamp(0, 255) as u8;
            }
        }
    }
}

/// From Y'CbCr of BT.709 to Y'CbCr of BT.601, limited range both, 16 fraction bits: the product of one's matrix to R'G'B' and
/// of the other's from there.
mod matrix_601 {
    pub(super) const Y_CB: i32 = 6_658; // 0.101 58
    pub(super) const Y_CR: i32 = 12_850; // 0.196 08
    pub(super) const CB_CB: i32 = 64_871; // 0.989 85
    pub(super) const CB_CR: i32 = -7_252; // -0.110 65
    pub(super) const CR_CB: i32 = -4_748; // -0.072 45
    pub(super) const CR_CR: i32 = 64_448; // 0.983 40
}

const fn rounded(product: i32) -> i32 {
    (product + (1 << 15)) >> 16
}

fn chroma_sample(product: i32) -> u8 {
    (rounded(product) + 128).clamp(0, 255) as u8
}

fn new_i420(frame: &VideoFrame, pool: &FramePool, size: Size) -> Result<VideoFrame, FrameError> {
    let buffer = pool.take(PixelFormat::I420.packed_len(size));
    VideoFrame::packed(frame.captured, size, PixelFormat::I420, buffer)
}

/// Copies what fits: the destination is never larger than the source.
fn copy_plane(from: &VideoFrame, to: &mut VideoFrame, plane: usize) {
    let (source, target) = (from.layout(plane), to.layout(plane));
    let rows = from.plane(plane).chunks(source.stride);
    for (to, from) in to.plane_mut(plane).chunks_mut(target.stride).zip(rows) {
        to[..target.row_bytes].copy_from_slice(&from[..target.row_bytes]);
    }
}

fn split_chroma(from: &VideoFrame, to: &mut VideoFrame) {
    let (source, target) = (from.layout(1), to.layout(1));
    let [_, u, v] = to.planes_mut();
    let rows = from.plane(1).chunks(source.stride);
    let targets = u.chunks_mut(target.stride).zip(v.chunks_mut(target.stride));
    for ((u, v), uv) in targets.zip(rows) {
        for ((u, v), uv) in u.iter_mut().zip(v).zip(uv.chunks_exact(2)) {
            (*u, *v) = (uv[0], uv[1]);
        }
    }
}

fn convert_rgb(from: &VideoFrame, to: &mut VideoFrame) -> Result<(), ConvertError> {
    let (size, format) = (to.size(), from.format());
    let strides: [u32; 3] = std::array::from_fn(|n| to.layout(n).stride as u32);
    let [y, u, v] = to.planes_mut();
    let mut image = YuvPlanarImageMut {
        y_plane: BufferStoreMut::Borrowed(y),
        y_stride: strides[0],
        u_plane: BufferStoreMut::Borrowed(u),
        u_stride: strides[1],
        v_plane: BufferStoreMut::Borrowed(v),
        v_stride: strides[2],
        width: size.width,
        height: size.height,
    };
    let convert = if format == PixelFormat::Rgba { rgba_to_yuv420 } else { bgra_to_yuv420 };
    let stride = from.layout(0).stride;
    // Exactly the rows that are wanted: an odd last row is not the library's to see.
    let bytes = &from.plane(0)[..stride * size.height as usize];
    convert(&mut image, bytes, stride as u32, YuvRange::Limited, YuvStandardMatrix::Bt709, YuvConversionMode::Balanced)
        .map_err(|reason| ConvertError::Refused { format, size, reason: reason.to_string() })
}

/// Scales the top left `visible` part of an I420 picture.
fn scaled(frame: &VideoFrame, visible: Size, pool: &FramePool, target: Size) -> Result<VideoFrame, ConvertError> {
    let mut out = new_i420(frame, pool, target)?;
    for plane in 0..3 {
        let shift = u32::from(plane > 0);
        let part = |size: Size| ((size.width >> shift) as usize, (size.height >> shift) as usize);
        let (from, to) = (part(visible), part(target));
        let stride = frame.layout(plane).stride;
        let target = out.plane_mut(plane);
        if from == (to.0 * 2, to.1 * 2) {
            halve_plane(frame.plane(plane), stride, target, to.0);
        } else {
            resample_plane(frame.plane(plane), stride, from, target, to);
        }
    }
    Ok(out)
}

fn halved(frame: &VideoFrame, pool: &FramePool) -> Result<VideoFrame, ConvertError> {
    let target = half(frame.size());
    let mut out = new_i420(frame, pool, target)?;
    for plane in 0..3 {
        let width = out.layout(plane).row_bytes;
        halve_plane(frame.plane(plane), frame.layout(plane).stride, out.plane_mut(plane), width);
    }
    Ok(out)
}

/// Samples that [`halve_plane`] makes at a time.
const BLOCK: usize = 16;

/// Each sample of `to` is the rounded mean of 2×2 samples of `from`, of which columns and rows may be left over.
///
/// A block's length is known to the compiler, and both samples of a pair stand in one lane of 16 bits, so that nothing has to be sorted: this
/// becomes vector instructions, five times as fast as going by pairs.
fn halve_plane(from: &[u8], stride: usize, to: &mut [u8], width: usize) {
    let pair_sum = |pair: [u8; 2]| {
        let both = u16::from_le_bytes(pair);
        (both & 0xff) + (both >> 8)
    };
    for (to, pair) in to.chunks_exact_mut(width).zip(from.chunks(stride * 2)) {
        let (upper, lower) = pair.split_at(stride);
        let (blocks, rest) = to.as_chunks_mut::<BLOCK>();
        let (upper_blocks, lower_blocks) = (upper.as_chunks::<{ 2 * BLOCK }>().0, lower.as_chunks::<{ 2 * BLOCK }>().0);
        for ((to, a), b) in blocks.iter_mut().zip(upper_blocks).zip(lower_blocks) {
            let mut means = [0u16; BLOCK];
            for (n, mean) in means.iter_mut().enumerate() {
                *mean = (pair_sum([a[2 * n], a[2 * n + 1]]) + pair_sum([b[2 * n], b[2 * n + 1]]) + 2) >> 2;
            }
            *to = means.map(|mean| mean as u8);
        }
        let done = 2 * (width - rest.len());
        let (upper, lower) = (upper[done..].as_chunks().0, lower[done..].as_chunks().0);
        for ((to, a), b) in rest.iter_mut().zip(upper).zip(lower) {
            *to = ((pair_sum(*a) + pair_sum(*b) + 2) >> 2) as u8;
        }
    }
}

/// Separable triangle filter: rows are mixed first (a loop the compiler vectorises), then columns.
fn resample_plane(
    from: &[u8],
    stride: usize,
    (from_width, from_height): (usize, usize),
    to: &mut [u8],
    (to_width, to_height): (usize, usize),
) {
    let columns = Taps::new(from_width, to_width);
    let rows = Taps::new(from_height, to_height);
    let mut mixed = vec![0u32; from_width];
    for (y, to) in to.chunks_exact_mut(to_width).enumerate() {
        let (first, weights) = rows.of(y);
        mixed.fill(0);
        for (n, weight) in weights.iter().enumerate() {
            let start = (first + n) * stride;
            for (mixed, sample) in mixed.iter_mut().zip(&from[start..start + from_width]) {
                *mixed += u32::from(*sample) * weight;
            }
        }
        // 14 fraction bits here and 14 in the columns' weights would leave 32 bits: keep 4 of these.
        for mixed in &mut mixed {
            *mixed >>= Taps::FRACTION_BITS - 4;
        }
        for (x, to) in to.iter_mut().enumerate() {
            let (first, weights) = columns.of(x);
            let samples = &mixed[first..first + weights.len()];
            let sum: u32 = samples.iter().zip(weights).map(|(s, w)| s * w).sum();
            let half = 1 << (Taps::FRACTION_BITS + 3);
            *to = ((sum + half) >> (Taps::FRACTION_BITS + 4)).min(255) as u8;
        }
    }
}

/// For each output position along one axis: the first input position and the weights from there on.
struct Taps {
    first: Vec<usize>,
    weights: Vec<u32>,
    per_output: usize,
}

impl Taps {
    /// Weights of one output position sum to 1 in this fixed-point format.
    const FRACTION_BITS: u32 = 14;

    fn new(from: usize, to: usize) -> Self {
        let ratio = from as f64 / to as f64;
        let radius = ratio.max(1.0);
        let per_output = (2 * radius.ceil() as usize + 1).min(from);
        let mut taps = Self { first: Vec::with_capacity(to), weights: Vec::with_capacity(to * per_output), per_output };
        let one = 1u32 << Self::FRACTION_BITS;
        for n in 0..to {
            let centre = (n as f64 + 0.5) * ratio - 0.5;
            let lowest = (centre - radius).ceil().max(0.0) as usize;
            let first = lowest.min(from - per_output);
            let raw: Vec<f64> =
                (first..first + per_output).map(|at| (1.0 - (at as f64 - centre).abs() / radius).max(0.0)).collect();
            let total: f64 = raw.iter().sum();
            let start = taps.weights.len();
            taps.weights.extend(raw.iter().map(|w| (w / total * f64::from(one)).round() as u32));
            // Rounding errors go to the largest weight: a flat area must keep its exact value.
            let weights = &mut taps.weights[start..];
            let sum: u32 = weights.iter().sum();
            if let Some(largest) = weights.iter_mut().max() {
                *largest = *largest + one - sum;
            }
            taps.first.push(first);
        }
        taps
    }

    fn of(&self, n: usize) -> (usize, &[u32]) {
        let start = n * self.per_output;
        (self.first[n], &self.weights[start..start + self.per_output])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MediaTime;

    const AT: MediaTime = MediaTime::from_micros(1234);

    fn picture(size: Size, format: PixelFormat, bytes: &[u8]) -> VideoFrame {
        VideoFrame::copied_from(&FramePool::new(), AT, size, format, bytes).expect("the test supplies enough bytes")
    }

    fn rgb(size: Size, format: PixelFormat, colour: impl Fn(u32, u32) -> [u8; 3]) -> VideoFrame {
        let mut bytes = Vec::new();
        for y in 0..size.height {
            for x in 0..size.width {
                let [r, g, b] = colour(x, y);
                bytes.extend(match format {
                    PixelFormat::Rgba => [r, g, b, 255],
                    _ => [b, g, r, 0],
                });
            }
        }
        picture(size, format, &bytes)
    }

    fn convert(frame: &VideoFrame, width: u32, height: u32) -> VideoFrame {
        to_i420(frame, &FramePool::new(), Size::new(width, height)).expect("a valid target")
    }

    #[track_caller]
    fn check_near(got: &[u8], expected: u8, within: u8) {
        for sample in got {
            assert!(sample.abs_diff(expected) <= within, "{sample} for {expected}");
        }
    }

    /// 100 % and 75 % colour bars after ITU-R BT.709-6 §3: Y' = 16 + 219·E'y, C = 128 + 224·E'c.
    const BARS: [([u8; 3], [u8; 3]); 11] = [
        ([255, 255, 255], [235, 128, 128]),
        ([255, 255, 0], [219, 16, 138]),
        ([0, 255, 255], [188, 154, 16]),
        ([0, 255, 0], [173, 42, 26]),
        ([255, 0, 255], [78, 214, 230]),
        ([255, 0, 0], [63, 102, 240]),
        ([0, 0, 255], [32, 240, 118]),
        ([0, 0, 0], [16, 128, 128]),
        ([191, 191, 191], [180, 128, 128]),
        ([191, 191, 0], [168, 44, 136]),
        ([191, 0, 0], [51, 109, 212]),
    ];

    #[test]
    fn colour_bars_have_the_values_of_bt_709() {
        for format in [PixelFormat::Rgba, PixelFormat::Bgra] {
            for (colour, [y, u, v]) in BARS {
                // Wide enough for the vector code, and with a tail for the scalar code.
                let frame = rgb(Size::new(74, 6), format, |_, _| colour);
                let out = convert(&frame, 74, 6);
                check_near(out.plane(0), y, 2);
                check_near(out.plane(1), u, 2);
                check_near(out.plane(2), v, 2);
                assert_eq!(out.captured, AT);
            }
        }
    }

    /// The same bars after ITU-R BT.601-7 §2.5.
    const BARS_601: [([u8; 3], [u8; 3]); 8] = [
        ([255, 255, 255], [235, 128, 128]),
        ([255, 255, 0], [210, 16, 146]),
        ([0, 255, 255], [170, 166, 16]),
        ([0, 255, 0], [145, 54, 34]),
        ([255, 0, 255], [106, 202, 222]),
        ([255, 0, 0], [81, 90, 240]),
        ([0, 0, 255], [41, 240, 110]),
        ([0, 0, 0], [16, 128, 128]),
    ];

    #[test]
    fn colour_bars_change_to_the_values_of_bt_601() {
        for (colour, [y, u, v]) in BARS_601 {
            for width in [74, 75] {
                let mut out = convert(&rgb(Size::new(width, 6), PixelFormat::Rgba, |_, _| colour), 74, 6);
                let before = out.clone();
                to_bt601(&mut out);
                check_near(out.plane(0), y, 2);
                check_near(out.plane(1), u, 2);
                check_near(out.plane(2), v, 2);
                check_near(before.plane(1), BARS.iter().find(|(c, _)| *c == colour).map_or(0, |(_, yuv)| yuv[1]), 2);
            }
        }
        // An odd picture has a chroma column and row for its last sample alone.
        let mut odd =
            picture(Size::new(5, 3), PixelFormat::I420, &[[100; 15].as_slice(), &[90; 6], &[240; 6]].concat());
        to_bt601(&mut odd);
        check_near(odd.plane(0), 118, 0);
        check_near(odd.plane(1), 78, 0);
        check_near(odd.plane(2), 241, 0);
        let mut other = rgb(Size::new(4, 4), PixelFormat::Rgba, |_, _| [10, 20, 30]);
        to_bt601(&mut other);
        assert_eq!(other.plane(0)[..4], [10, 20, 30, 255]);
    }

    #[test]
    fn odd_pictures_lose_their_last_column_and_row() {
        for format in [PixelFormat::Rgba, PixelFormat::Bgra] {
            let frame = rgb(Size::new(75, 7), format, |x, y| if x == 74 || y == 6 { [255; 3] } else { [0; 3] });
            let out = convert(&frame, 75, 7);
            assert_eq!(out.size(), Size::new(74, 6));
            check_near(out.plane(0), 16, 0);
        }
        let size = Size::new(5, 3);
        let i420: Vec<u8> = (0..15).chain(20..26).chain(30..36).collect();
        let out = convert(&picture(size, PixelFormat::I420, &i420), 5, 3);
        assert_eq!(out.plane(0), [0, 1, 2, 3, 5, 6, 7, 8]);
        assert_eq!((out.plane(1), out.plane(2)), (&[20, 21][..], &[30, 31][..]));
        let nv12: Vec<u8> = (0..15).chain(20..32).collect();
        let out = convert(&picture(size, PixelFormat::Nv12, &nv12), 5, 3);
        assert_eq!(out.plane(0), [0, 1, 2, 3, 5, 6, 7, 8]);
        assert_eq!((out.plane(1), out.plane(2)), (&[20, 22][..], &[21, 23][..]));
    }

    #[test]
    fn a_picture_that_fits_passes_with_its_buffer() {
        let size = Size::new(8, 4);
        let frame = picture(size, PixelFormat::I420, &[7; 48]);
        let address = frame.plane(0).as_ptr();
        let converter = Converter::new(FramePool::new());
        let out = converter.convert(frame, Size::new(9, 5)).expect("fits");
        assert_eq!(out.plane(0).as_ptr(), address);
        assert_eq!((out.size(), out.captured), (size, AT));
        let out = converter.convert(out, Size::new(4, 2)).expect("halved");
        assert_ne!(out.plane(0).as_ptr(), address);
        assert_eq!(out.captured, AT);
    }

    #[test]
    fn absurd_targets_are_errors() {
        let frame = picture(Size::new(8, 4), PixelFormat::I420, &[7; 48]);
        let error = to_i420(&frame, &FramePool::new(), Size::new(10_000, 4)).expect_err("no such picture");
        assert!(error.to_string().contains("10000x4"), "{error}");
    }

    /// A grey ramp from left to right and a step of `y` per row, scaled: samples keep their place.
    #[track_caller]
    fn check_ramp(from: Size, to: Size) {
        let ramp = |size: Size, x: f64, y: f64| {
            20.0 + 150.0 * (x + 0.5) / f64::from(size.width) + 50.0 * (y + 0.5) / f64::from(size.height)
        };
        let mut bytes = Vec::new();
        for shift in [0, 1, 1] {
            let size = Size::new(from.width >> shift, from.height >> shift);
            for y in 0..size.height {
                for x in 0..size.width {
                    bytes.push(ramp(size, x.into(), y.into()).round() as u8);
                }
            }
        }
        let out = convert(&picture(from, PixelFormat::I420, &bytes), to.width, to.height);
        for plane in 0..3 {
            let shift = u32::from(plane > 0);
            let size = Size::new(to.width >> shift, to.height >> shift);
            let layout = out.layout(plane);
            assert_eq!((layout.row_bytes, layout.rows), (size.width as usize, size.height as usize));
            // The outermost samples see only one side of the filter.
            for y in 1..size.height - 1 {
                for x in 1..size.width - 1 {
                    let got = out.plane(plane)[y as usize * layout.stride + x as usize];
                    let expected = ramp(size, x.into(), y.into());
                    assert!(
                        (f64::from(got) - expected).abs() <= 2.0,
                        "{from} to {to}, plane {plane} at {x},{y}: {got} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn scaling_keeps_a_gradient_in_place() {
        let size = Size::new;
        check_ramp(size(64, 48), size(32, 24));
        check_ramp(size(96, 72), size(64, 48));
        check_ramp(size(128, 96), size(30, 22));
        check_ramp(size(64, 48), size(100, 90));
        check_ramp(size(64, 48), size(64, 24));
    }

    #[test]
    fn scaling_keeps_flat_areas_exactly() {
        for value in [16, 77, 128, 235, 255] {
            let frame = picture(Size::new(66, 34), PixelFormat::I420, &[value; 66 * 34 * 3 / 2]);
            for (width, height) in [(32, 16), (33, 17), (50, 90), (2, 2), (66, 36)] {
                check_near(convert(&frame, width, height).plane(0), value, 0);
                check_near(convert(&frame, width, height).plane(2), value, 0);
            }
        }
    }

    #[test]
    fn halving_averages_four_samples() {
        let bytes: Vec<u8> = [10, 20, 100, 100, 30, 41, 100, 103].repeat(2).into_iter().chain([128; 8]).collect();
        let out = convert(&picture(Size::new(4, 4), PixelFormat::I420, &bytes), 2, 2);
        assert_eq!(out.plane(0), [25, 101, 25, 101]);
    }

    #[track_caller]
    fn check_halvings(from: (u32, u32), to: (u32, u32), expected: Option<u32>) {
        let size = |(width, height)| Size::new(width, height);
        assert_eq!(halvings(size(from), size(to)), expected, "{from:?} to {to:?}");
    }

    #[test]
    fn sizes_that_are_reached_by_halving() {
        check_halvings((1280, 720), (1280, 720), Some(0));
        check_halvings((1280, 720), (320, 180), Some(2));
        check_halvings((1366, 768), (340, 192), Some(2));
        check_halvings((1280, 720), (640, 350), None);
        check_halvings((1280, 720), (960, 540), None);
        check_halvings((640, 360), (1280, 720), None);
        check_halvings((8, 4), (2, 2), None);
    }

    #[test]
    fn layers_are_scaled_step_by_step_and_keep_their_place_and_time() {
        let source = Size::new(100, 76);
        let mut bytes = Vec::new();
        for (width, height) in [(100, 76), (50, 38), (50, 38)] {
            bytes.extend(
                (0..width * height)
                    .map(|n| (n % width) as u8 * 2 + if width == 50 { (n % width) as u8 * 2 } else { 0 }),
            );
        }
        let frame = picture(source, PixelFormat::I420, &bytes);
        let converter = Converter::new(FramePool::new());
        for (width, height) in [(50, 38), (24, 18), (12, 8), (40, 30), (20, 30), (100, 76), (90, 10)] {
            let out = converter.scale(&frame, Size::new(width, height)).expect("a valid target");
            assert_eq!((out.size(), out.captured), (Size::new(width, height), AT));
            for plane in 0..3 {
                let layout = out.layout(plane);
                let row = &out.plane(plane)[layout.stride..][1..layout.row_bytes - 1];
                for (x, got) in row.iter().enumerate() {
                    let expected = 200.0 * (x as f64 + 1.5) / layout.row_bytes as f64;
                    // What an odd picture loses at its edge shifts the rest by that much.
                    assert!(
                        (f64::from(*got) - expected).abs() <= 9.0,
                        "{width}x{height}, plane {plane} at {x}: {got} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn checkerboards_become_grey_not_moire() {
        let frame =
            rgb(Size::new(128, 128), PixelFormat::Rgba, |x, y| if (x + y) % 2 == 0 { [255; 3] } else { [0; 3] });
        check_near(convert(&frame, 64, 64).plane(0), 126, 2);
        check_near(convert(&frame, 40, 40).plane(0), 126, 12);
    }
}
