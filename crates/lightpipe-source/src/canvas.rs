//! Drawing straight into I420: rectangles, anti-aliased convex polygons, discs, small text.
//!
//! For pictures that we make ourselves, drawing in the encoder's own format saves the conversion. Each
//! shape is drawn into luma at full and into chroma at half resolution, both with proper coverage at
//! its edges. Coordinates are luma samples, y downwards; whatever lies outside is clipped.

use lightpipe_media::VideoFrame;

/// A colour in BT.709 limited range: Y, Cb, Cr as stored, not rounded yet.
pub(crate) type Yuv = [f32; 3];

/// BT.709 limited range of an R'G'B' colour, components 0 to 1.
pub(crate) fn yuv([r, g, b]: [f32; 3]) -> Yuv {
    let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    [16.0 + 219.0 * y, 128.0 + 224.0 * (b - y) / 1.8556, 128.0 + 224.0 * (r - y) / 1.5748]
}

/// R'G'B' from a colour written as in a style sheet, 0xRRGGBB.
pub(crate) fn hex(rgb: u32) -> [f32; 3] {
    [rgb >> 16, rgb >> 8, rgb].map(|c| (c & 0xFF) as f32 / 255.0)
}

/// A colour that changes evenly from the top of the picture to its bottom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ink {
    /// The colour at y = 0.
    pub(crate) top: Yuv,
    /// Its change per luma row.
    pub(crate) per_row: Yuv,
}

impl Ink {
    /// The same colour everywhere.
    pub(crate) const fn flat(top: Yuv) -> Self {
        Self { top, per_row: [0.0; 3] }
    }

    fn at(&self, plane: usize, y: f32) -> f32 {
        self.top[plane] + self.per_row[plane] * y
    }
}

/// An I420 picture to draw on.
pub(crate) struct Canvas<'a> {
    planes: [Plane<'a>; 3],
}

struct Plane<'a> {
    bytes: &'a mut [u8],
    stride: usize,
    width: usize,
    height: usize,
    /// Luma samples per sample of this plane, both ways.
    step: f32,
}

impl<'a> Canvas<'a> {
    /// Draws on `frame`, which must be I420.
    pub(crate) fn new(frame: &'a mut VideoFrame) -> Self {
        let layouts: [_; 3] = std::array::from_fn(|n| frame.layout(n));
        let mut n = 0;
        let planes = frame.planes_mut().map(|bytes| {
            let layout = layouts[n];
            n += 1;
            Plane {
                bytes,
                stride: layout.stride,
                width: layout.row_bytes,
                height: layout.rows,
                step: if n == 1 { 1.0 } else { 2.0 },
            }
        });
        Self { planes }
    }

    /// Fills a rectangle. Chroma covers whatever even samples it touches, so even coordinates look best.
    pub(crate) fn rect(&mut self, x: i32, y: i32, width: i32, height: i32, colour: Yuv) {
        if width <= 0 || height <= 0 {
            return;
        }
        for (plane, colour) in self.planes.iter_mut().zip(colour) {
            let step = plane.step as i32;
            let clip = |from: i32, len: i32, limit: usize| {
                let first = from.div_euclid(step).clamp(0, limit as i32);
                let end = (from + len + step - 1).div_euclid(step);
                first as usize..end.clamp(first, limit as i32) as usize
            };
            let columns = clip(x, width, plane.width);
            for row in clip(y, height, plane.height) {
                plane.row(row)[columns.clone()].fill(to_sample(colour));
            }
        }
    }

    /// Writes luma samples `values` over a row from column `x` on, repeated on `rows` rows.
    pub(crate) fn luma_rows(&mut self, x: usize, y: usize, rows: usize, values: &[u8]) {
        let plane = &mut self.planes[0];
        let end = (x + values.len()).min(plane.width);
        let Some(values) = end.checked_sub(x).and_then(|len| values.get(..len)) else {
            return;
        };
        for row in y..(y + rows).min(plane.height) {
            plane.row(row)[x..end].copy_from_slice(values);
        }
    }

    /// Fills a convex polygon of either winding, with anti-aliased edges.
    pub(crate) fn convex(&mut self, points: &[[f32; 2]], ink: Ink) {
        let mut edges = Vec::with_capacity(points.len());
        for (n, plane) in self.planes.iter_mut().enumerate() {
            edges.clear();
            Edge::collect(points, plane.step, &mut edges);
            if !edges.is_empty() {
                plane.convex(points, &edges, |y| ink.at(n, y));
            }
        }
    }

    /// Fills a disc, with an anti-aliased rim.
    pub(crate) fn disc(&mut self, centre: [f32; 2], radius: f32, ink: Ink) {
        for (n, plane) in self.planes.iter_mut().enumerate() {
            plane.disc(centre, radius, |y| ink.at(n, y));
        }
    }
}

impl Plane<'_> {
    fn row(&mut self, row: usize) -> &mut [u8] {
        let start = row * self.stride;
        &mut self.bytes[start..start + self.width]
    }

    /// Samples of a row, or rows, whose centres may lie between two coordinates of this plane.
    fn span(from: f32, to: f32, limit: usize) -> std::ops::Range<usize> {
        // `as` saturates, and turns NaN into 0.
        let first = (from - 0.5).ceil().max(0.0) as usize;
        let end = ((to - 0.5).floor() + 1.0).max(0.0) as usize;
        let first = first.min(limit);
        first..end.clamp(first, limit)
    }

    fn convex(&mut self, points: &[[f32; 2]], edges: &[Edge], ink: impl Fn(f32) -> f32) {
        let (mut top, mut bottom) = (f32::INFINITY, f32::NEG_INFINITY);
        for [_, y] in points {
            top = top.min(y / self.step);
            bottom = bottom.max(y / self.step);
        }
        for row in Self::span(top - 0.5, bottom + 0.5, self.height) {
            let y = row as f32 + 0.5;
            // The samples that the polygon touches, and those it covers whole.
            let (mut outer, mut inner) = ((f32::NEG_INFINITY, f32::INFINITY), (f32::NEG_INFINITY, f32::INFINITY));
            for edge in edges {
                edge.narrow(&mut outer, y, -0.5);
                edge.narrow(&mut inner, y, 0.5);
            }
            let outer = Self::span(outer.0, outer.1, self.width);
            let inner = Self::span(inner.0, inner.1, self.width);
            let inner = if inner.is_empty() {
                outer.end..outer.end
            } else {
                inner.start.max(outer.start)..inner.end.min(outer.end)
            };
            let value = ink(y * self.step);
            let samples = self.row(row);
            samples[inner.clone()].fill(to_sample(value));
            for x in (outer.start..inner.start).chain(inner.end..outer.end) {
                let centre = x as f32 + 0.5;
                let distance = edges.iter().map(|edge| edge.distance(centre, y)).fold(f32::INFINITY, f32::min);
                blend(&mut samples[x], value, distance + 0.5);
            }
        }
    }

    fn disc(&mut self, centre: [f32; 2], radius: f32, ink: impl Fn(f32) -> f32) {
        let [cx, cy] = centre.map(|c| c / self.step);
        let radius = radius / self.step;
        for row in Self::span(cy - radius - 0.5, cy + radius + 0.5, self.height) {
            let y = row as f32 + 0.5;
            let value = ink(y * self.step);
            let columns = Self::span(cx - radius - 0.5, cx + radius + 0.5, self.width);
            let samples = self.row(row);
            for x in columns {
                let distance = (x as f32 + 0.5 - cx).hypot(y - cy);
                blend(&mut samples[x], value, radius - distance + 0.5);
            }
        }
    }
}

/// One side of a convex polygon: signed distance `a·x + b·y + c`, positive inside, in samples of a plane.
struct Edge {
    a: f32,
    b: f32,
    c: f32,
    /// 1 / a; infinite for a horizontal edge.
    inverse_a: f32,
}

impl Edge {
    /// Appends the edges of a polygon; none if it has no area.
    fn collect(points: &[[f32; 2]], step: f32, edges: &mut Vec<Self>) {
        let pairs = || points.iter().zip(points.iter().cycle().skip(1));
        let area: f32 = pairs().map(|(p, q)| p[0] * q[1] - q[0] * p[1]).sum();
        if area.is_nan() || area.abs() < 1e-3 {
            return;
        }
        let inward = area.signum();
        for (p, q) in pairs() {
            let [dx, dy] = [(q[0] - p[0]) / step, (q[1] - p[1]) / step];
            let length = dx.hypot(dy);
            if length < 1e-4 {
                continue;
            }
            let a = -dy / length * inward;
            let b = dx / length * inward;
            edges.push(Self { a, b, c: -(a * p[0] + b * p[1]) / step, inverse_a: 1.0 / a });
        }
    }

    fn distance(&self, x: f32, y: f32) -> f32 {
        self.a * x + self.b * y + self.c
    }

    /// Narrows `range` to where the distance along row `y` is at least `least`.
    fn narrow(&self, range: &mut (f32, f32), y: f32, least: f32) {
        let rest = least - self.b * y - self.c;
        if self.a > 1e-6 {
            range.0 = range.0.max(rest * self.inverse_a);
        } else if self.a < -1e-6 {
            range.1 = range.1.min(rest * self.inverse_a);
        } else if rest > 0.0 {
            *range = (0.0, f32::NEG_INFINITY);
        }
    }
}

fn to_sample(value: f32) -> u8 {
    // `as` saturates.
    (value + 0.5) as u8
}

fn blend(sample: &mut u8, value: f32, coverage: f32) {
    let coverage = coverage.clamp(0.0, 1.0);
    let old = f32::from(*sample);
    *sample = to_sample(old + (value - old) * coverage);
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size};

    fn black(width: u32, height: u32) -> VideoFrame {
        let size = Size::new(width, height);
        let bytes = vec![0; PixelFormat::I420.packed_len(size)];
        VideoFrame::copied_from(&FramePool::new(), MediaTime::ZERO, size, PixelFormat::I420, &bytes)
            .expect("the buffer has the length of its layout")
    }

    const WHITE: Ink = Ink::flat([200.0, 200.0, 200.0]);

    /// Draws a polygon and compares the covered area (in samples) in luma and in chroma.
    #[track_caller]
    fn check_area(points: &[[f32; 2]], expected: f32) {
        let mut frame = black(64, 64);
        Canvas::new(&mut frame).convex(points, WHITE);
        for (plane, scale) in [(0, 1.0), (1, 4.0), (2, 4.0)] {
            let sum: f32 = frame.plane(plane).iter().map(|s| f32::from(*s)).sum();
            let area = sum / 200.0 * scale;
            assert!(
                (area - expected).abs() <= expected * 0.03 + 3.0,
                "plane {plane}: {area} for {expected}, {points:?}"
            );
        }
    }

    #[test]
    fn polygons_cover_their_area_whatever_their_winding() {
        let square = [[10.0, 12.0], [50.0, 12.0], [50.0, 44.0], [10.0, 44.0]];
        check_area(&square, 1280.0);
        let mut reversed = square;
        reversed.reverse();
        check_area(&reversed, 1280.0);
        check_area(&[[10.25, 12.5], [50.75, 12.5], [50.75, 44.5], [10.25, 44.5]], 1296.0);
        check_area(&[[5.0, 60.0], [30.0, 4.0], [60.0, 50.0]], 1412.5);
        check_area(&[[32.0, 2.0], [62.0, 32.0], [32.0, 62.0], [2.0, 32.0]], 1800.0);
        check_area(&[[2.0, 10.0], [62.0, 13.0], [62.0, 15.0], [2.0, 12.0]], 120.0);
    }

    #[test]
    fn whatever_lies_outside_is_clipped() {
        check_area(&[[-100.0, -100.0], [200.0, -100.0], [200.0, 200.0], [-100.0, 200.0]], 4096.0);
        check_area(&[[-50.0, 10.0], [-10.0, 10.0], [-10.0, 50.0]], 0.0);
        check_area(&[[10.0, 10.0], [20.0, 20.0]], 0.0);
        check_area(&[[f32::NAN, 10.0], [20.0, 20.0], [5.0, 40.0]], 0.0);
        let mut frame = black(16, 16);
        let mut canvas = Canvas::new(&mut frame);
        canvas.rect(-10, -10, 5, 5, [200.0; 3]);
        canvas.rect(14, 14, 100, 100, [200.0; 3]);
        canvas.rect(5, 5, -3, 4, [200.0; 3]);
        canvas.disc([-100.0, 8.0], 20.0, WHITE);
        canvas.luma_rows(12, 2, 100, &[]);
        assert_eq!(frame.plane(0).iter().filter(|s| **s == 200).count(), 4);
        assert_eq!(frame.plane(1).iter().filter(|s| **s == 200).count(), 1);
    }

    #[test]
    fn rectangles_and_discs_cover_luma_and_chroma() {
        let mut frame = black(64, 64);
        Canvas::new(&mut frame).rect(10, 20, 8, 6, [200.0, 100.0, 50.0]);
        let count = |frame: &VideoFrame, plane, value| frame.plane(plane).iter().filter(|s| **s == value).count();
        assert_eq!((count(&frame, 0, 200), count(&frame, 1, 100), count(&frame, 2, 50)), (48, 12, 12));
        let mut frame = black(64, 64);
        Canvas::new(&mut frame).disc([32.0, 32.0], 20.0, WHITE);
        let sum: f32 = frame.plane(0).iter().map(|s| f32::from(*s)).sum();
        assert!((sum / 200.0 - 1256.6).abs() < 10.0, "{}", sum / 200.0);
    }

    #[test]
    fn colours_are_bt_709() {
        assert_eq!(yuv([1.0; 3]).map(to_sample), [235, 128, 128]);
        assert_eq!(yuv(hex(0xFF_00_00)).map(to_sample), [63, 102, 240]);
        assert_eq!(yuv(hex(0x00_00_FF)).map(to_sample), [32, 240, 118]);
    }
}
