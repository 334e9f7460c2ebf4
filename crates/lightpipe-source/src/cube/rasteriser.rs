//! The cube drawn by the CPU, straight into I420: always there, needs no driver.
//!
//! A cube is convex, so leaving out the faces that look away replaces a depth buffer. The outline is
//! filled first as one polygon; neighbouring faces then have no seam through which the stage would show.

use lightpipe_media::convert::to_i420;
use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size, VideoFrame};

use super::scene::{self, Pose, Shape};
use crate::canvas::{Canvas, Ink, yuv};

/// Draws pictures of one size.
#[derive(Debug)]
pub(super) struct Rasteriser {
    shapes: Vec<Shape>,
    /// The stage behind the cube, tightly packed I420.
    stage: VideoFrame,
    pool: FramePool,
    points: Vec<[f32; 2]>,
}

impl Rasteriser {
    /// `size` has been checked and is even.
    pub(super) fn new(size: Size) -> Self {
        let pool = FramePool::new();
        let rgba = scene::stage(size);
        let stage = VideoFrame::copied_from(&pool, MediaTime::ZERO, size, PixelFormat::Rgba, &rgba)
            .ok()
            .and_then(|rgba| to_i420(&rgba, &pool, size).ok())
            .expect("a checked size makes a picture");
        Self { shapes: scene::shapes(), stage, pool, points: Vec::new() }
    }

    /// The picture of a time.
    pub(super) fn render(&mut self, at: MediaTime) -> VideoFrame {
        let size = self.stage.size();
        let mut buffer = self.pool.take(PixelFormat::I420.packed_len(size));
        let mut rest = &mut buffer[..];
        for plane in 0..3 {
            let bytes = self.stage.plane(plane);
            let (to, after) = rest.split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            rest = after;
        }
        let mut frame =
            VideoFrame::packed(at, size, PixelFormat::I420, buffer).expect("the stage has this size already");
        self.draw(&Pose::at(at, size), &mut Canvas::new(&mut frame));
        frame
    }

    fn draw(&mut self, pose: &Pose, canvas: &mut Canvas<'_>) {
        let height = self.stage.size().height as f32;
        self.points.clear();
        let edges = self.shapes.iter().filter(|s| s.is_edge);
        let corners = edges.clone().flat_map(|s| &s.points);
        self.points.extend(corners.map(|p| pose.project(*p)));
        if let Some(edge) = edges.clone().next() {
            canvas.convex(&hull(&mut self.points), lit(edge.colour, 1.0, height));
        }
        for shape in &self.shapes {
            if shape.is_edge || !pose.faces_camera(shape.normal) {
                continue;
            }
            self.points.clear();
            self.points.extend(shape.points.iter().map(|p| pose.project(*p)));
            let ink = lit(shape.colour, pose.light(shape.normal), height);
            canvas.convex(&self.points, ink);
        }
    }
}

/// A colour under light. Dimming R'G'B' dims all three of Y′CbCr about black, so it can be done there.
fn lit(colour: [f32; 3], light: f32, height: f32) -> Ink {
    const BLACK: [f32; 3] = [16.0, 128.0, 128.0];
    let colour = yuv(colour);
    let scaled = |factor: f32| std::array::from_fn(|n| (colour[n] - BLACK[n]) * light * factor);
    let top: [f32; 3] = scaled(scene::LIGHT_TOP);
    Ink { top: std::array::from_fn(|n| BLACK[n] + top[n]), per_row: scaled(scene::LIGHT_FALL / height) }
}

/// Convex hull (Andrew's monotone chain). Sorts `points`.
fn hull(points: &mut [[f32; 2]]) -> Vec<[f32; 2]> {
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    let turn = |a: [f32; 2], b: [f32; 2], c: [f32; 2]| (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
    let mut hull: Vec<[f32; 2]> = Vec::with_capacity(points.len());
    let mut chain = |points: &mut dyn Iterator<Item = [f32; 2]>| {
        let base = hull.len();
        for point in points {
            while hull.len() >= base + 2 && turn(hull[hull.len() - 2], hull[hull.len() - 1], point) <= 1e-3 {
                hull.pop();
            }
            hull.push(point);
        }
        // The last point begins the other chain.
        hull.pop();
    };
    chain(&mut points.iter().copied());
    chain(&mut points.iter().rev().copied());
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hull_of_a_cube_seen_from_a_corner_is_a_hexagon() {
        let pose = Pose::at(MediaTime::from_micros(1_125_000), Size::new(1280, 720));
        let mut points: Vec<_> = scene::shapes()
            .iter()
            .filter(|s| s.is_edge)
            .flat_map(|s| s.points.clone())
            .map(|p| pose.project(p))
            .collect();
        assert_eq!(points.len(), 24);
        assert_eq!(hull(&mut points).len(), 6);
    }
}
