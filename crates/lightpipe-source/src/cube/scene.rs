//! What both renderers draw: the shapes on the cube, where it stands at a time, its light and its stage.
//!
//! One description keeps them alike. View space is right-handed with the camera at its origin looking along
//! −z and y up; the picture's y points down, and [`Pose::project`] is where it turns over.

use std::f64::consts::TAU;

use lightpipe_media::{MediaTime, Size};

use crate::canvas::hex;

/// A flat convex shape on a face of the cube (which spans −1 to 1), counter-clockwise seen from outside.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) points: Vec<[f32; 3]>,
    pub(super) colour: [f32; 3],
    /// Outward direction of the face.
    pub(super) normal: [f32; 3],
    /// The face's own quad, drawn under the rest; it shows as the thin line along the cube's edges.
    pub(super) is_edge: bool,
}

struct Face {
    normal: [f32; 3],
    /// What is right and what is up when one looks at it.
    right: [f32; 3],
    up: [f32; 3],
    colour: u32,
}

const fn face(normal: [f32; 3], right: [f32; 3], up: [f32; 3], colour: u32) -> Face {
    Face { normal, right, up, colour }
}

const FACES: [Face; 6] = [
    face([0., 0., 1.], [1., 0., 0.], [0., 1., 0.], 0xFF_4D_5E),
    face([1., 0., 0.], [0., 0., -1.], [0., 1., 0.], 0xFF_B0_20),
    face([0., 0., -1.], [-1., 0., 0.], [0., 1., 0.], 0x12_B8_86),
    face([-1., 0., 0.], [0., 0., 1.], [0., 1., 0.], 0x5B_5B_F0),
    face([0., 1., 0.], [1., 0., 0.], [0., 0., -1.], 0x2E_B4_F6),
    face([0., -1., 0.], [1., 0., 0.], [0., 0., 1.], 0xD9_46_EF),
];

/// The line along the edges, the body between the panels, the marks on them.
const EDGE: u32 = 0xDD_E5_F2;
const BODY: u32 = 0x1C_24_38;
const MARK: u32 = 0xFF_FF_FF;

/// Every shape of the cube; shapes of one face in the order in which they cover each other.
pub(super) fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for Face { normal, right, up, colour } in FACES {
        let mut add = |outline: &[[f32; 2]], colour: u32, is_edge: bool| {
            let place =
                |&[x, y]: &[f32; 2]| -> [f32; 3] { std::array::from_fn(|n| normal[n] + right[n] * x + up[n] * y) };
            shapes.push(Shape { points: outline.iter().map(place).collect(), colour: hex(colour), normal, is_edge });
        };
        add(&rounded_square(1.0, 0.0), EDGE, true);
        add(&rounded_square(0.982, 0.04), BODY, false);
        add(&rounded_square(0.88, 0.2), colour, false);
        if normal[1] == 0.0 {
            // An arrow that points up, so that a glance at any screenshot tells which way up it is.
            add(&[[-0.4, 0.02], [0.4, 0.02], [0.0, 0.5]], MARK, false);
            add(&[[-0.15, -0.5], [0.15, -0.5], [0.15, 0.06], [-0.15, 0.06]], MARK, false);
        } else {
            add(&rounded_square(0.36, 0.36), MARK, false);
        }
    }
    shapes
}

/// A square of half side `half` whose corners are quarter circles of `radius`.
fn rounded_square(half: f32, radius: f32) -> Vec<[f32; 2]> {
    const STEPS: usize = 7;
    let corners = [(1., 1.), (-1., 1.), (-1., -1.), (1., -1.)];
    if radius == 0.0 {
        return corners.map(|(x, y)| [x * half, y * half]).to_vec();
    }
    let mut points = Vec::new();
    for (quarter, (x, y)) in corners.into_iter().enumerate() {
        // A full circle has no straight sides: neighbouring quarters share their end points.
        let steps = if radius == half { STEPS - 1 } else { STEPS };
        for step in 0..steps {
            let turn = quarter as f32 + step as f32 / (STEPS - 1) as f32;
            let (sin, cos) = (turn * std::f32::consts::FRAC_PI_2).sin_cos();
            points.push([x * (half - radius) + radius * cos, y * (half - radius) + radius * sin]);
        }
    }
    points
}

/// Where the cube stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pose {
    /// Rows of the rotation matrix from the cube to view space.
    pub(super) rotation: [[f32; 3]; 3],
    /// The cube's centre in view space.
    pub(super) centre: [f32; 3],
    /// From view-space slopes to normalised device coordinates, across and up.
    pub(super) focal: [f32; 2],
    size: Size,
}

impl Pose {
    /// The pose at a time. A function of time alone: dropped frames leave no trace in the motion.
    pub(super) fn at(time: MediaTime, size: Size) -> Self {
        let seconds = time.as_micros() as f64 / 1e6;
        // Reduced before it loses precision: after weeks of uptime the cube still turns smoothly.
        let wave = |period: f64| (seconds / period).rem_euclid(1.0) * TAU;
        let yaw = wave(9.0) as f32;
        let pitch = (0.44 + 0.13 * wave(7.0).sin()) as f32;
        let lift = (0.05 * wave(4.5).sin()) as f32;
        let (ys, yc) = yaw.sin_cos();
        let (ps, pc) = pitch.sin_cos();
        let (width, height) = (size.width as f32, size.height as f32);
        let focal = 2.5 * (width / height).min(1.0);
        Self {
            // Turn about the vertical, then tip the top towards the camera.
            rotation: [[yc, 0.0, ys], [ps * ys, pc, -ps * yc], [-pc * ys, ps, pc * yc]],
            centre: [0.0, 0.13 + lift, -6.2],
            focal: [focal * height / width, focal],
            size,
        }
    }

    /// A direction of the cube in view space.
    pub(super) fn rotate(&self, p: [f32; 3]) -> [f32; 3] {
        self.rotation.map(|row| dot(row, p))
    }

    /// A point of the cube in view space.
    pub(super) fn place(&self, p: [f32; 3]) -> [f32; 3] {
        let p = self.rotate(p);
        std::array::from_fn(|n| p[n] + self.centre[n])
    }

    /// Where a point of the cube appears in the picture, y downwards.
    pub(super) fn project(&self, p: [f32; 3]) -> [f32; 2] {
        let [x, y, z] = self.place(p);
        let (width, height) = (self.size.width as f32, self.size.height as f32);
        [(1.0 + self.focal[0] * x / -z) * 0.5 * width, (1.0 - self.focal[1] * y / -z) * 0.5 * height]
    }

    /// Whether the camera sees the outside of a face.
    pub(super) fn faces_camera(&self, normal: [f32; 3]) -> bool {
        dot(self.rotate(normal), self.place(normal)) < 0.0
    }

    /// Brightness of a face, 0 to 1: a lamp above, in front and to the left.
    pub(super) fn light(&self, normal: [f32; 3]) -> f32 {
        const LAMP: [f32; 3] = [-0.36, 0.72, 0.6];
        0.8 + 0.2 * dot(self.rotate(normal), LAMP).max(0.0)
    }
}

/// Brightness over the height of the picture: this much at the top, and the change to its bottom.
pub(super) const LIGHT_TOP: f32 = 1.12;
pub(super) const LIGHT_FALL: f32 = -0.26;

/// The stage as RGBA: a studio backdrop that is lighter at the top, and the cube's shadow on the floor.
pub(super) fn stage(size: Size) -> Vec<u8> {
    let (width, height) = (size.width as f32, size.height as f32);
    let top = hex(0xF5_F8_FD);
    let horizon = hex(0xC3_CF_E2);
    let floor = hex(0x8C_9B_B6);
    let small = width.min(height);
    let mut bytes = Vec::with_capacity(size.width as usize * size.height as usize * 4);
    for y in 0..size.height {
        let v = (y as f32 + 0.5) / height;
        let base =
            if v < 0.66 { mix(top, horizon, smooth(v / 0.66)) } else { mix(horizon, floor, smooth((v - 0.66) / 0.34)) };
        for x in 0..size.width {
            let dx = (x as f32 + 0.5 - width / 2.0) / small;
            let dy = (y as f32 + 0.5 - height * 0.5) / small;
            let down = dy - 0.37;
            let soft = (-(dx * dx / 0.085 + down * down / 0.0045)).exp();
            let core = (-(dx * dx / 0.03 + down * down / 0.0012)).exp();
            let shade = (1.0 - 0.06 * (dx * dx + dy * dy)) * (1.0 - 0.30 * soft - 0.18 * core);
            let pixel = base.map(|c| (c * shade * 255.0 + 0.5) as u8);
            bytes.extend_from_slice(&[pixel[0], pixel[1], pixel[2], 255]);
        }
    }
    bytes
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn mix(a: [f32; 3], b: [f32; 3], t: f32) -> [f32; 3] {
    std::array::from_fn(|n| a[n] + (b[n] - a[n]) * t)
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size::new(1280, 720);

    #[test]
    fn up_on_the_cube_is_up_in_the_picture_at_all_times() {
        for tenth in 0..1000 {
            let pose = Pose::at(MediaTime::from_micros(tenth * 100_000), SIZE);
            let [top, bottom] = [1.0, -1.0].map(|y| pose.project([0.0, y, 0.0]));
            assert!(top[1] + 100.0 < bottom[1], "at {tenth}/10 s");
            assert!((top[0] - 640.0).abs() < 1.0);
            assert!(pose.faces_camera([0.0, 1.0, 0.0]), "seen from above");
            assert!(!pose.faces_camera([0.0, -1.0, 0.0]));
        }
    }

    #[test]
    fn the_cube_stays_inside_any_picture() {
        for size in [SIZE, Size::new(320, 180), Size::new(480, 640), Size::new(64, 64)] {
            for tenth in 0..300 {
                let pose = Pose::at(MediaTime::from_micros(tenth * 100_000), size);
                for shape in shapes() {
                    for point in shape.points {
                        let [x, y] = pose.project(point);
                        assert!((0.0..size.width as f32).contains(&x), "{size}: {x}");
                        assert!((0.0..size.height as f32).contains(&y), "{size}: {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn shapes_wind_counter_clockwise_seen_from_outside() {
        for shape in shapes() {
            let p = &shape.points;
            let side = |a: [f32; 3], b: [f32; 3]| -> [f32; 3] { std::array::from_fn(|n| b[n] - a[n]) };
            for n in 0..p.len() {
                let (a, b, c) = (p[n], p[(n + 1) % p.len()], p[(n + 2) % p.len()]);
                let [u, v] = [side(a, b), side(b, c)];
                let cross = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
                assert!(dot(cross, shape.normal) > -1e-6, "convex, {:?}", shape.normal);
            }
        }
    }

    #[test]
    fn the_pose_repeats_exactly_after_months() {
        // 9, 7 and 4.5 s all divide 63 s.
        let pose = |seconds: i64| {
            let pose = Pose::at(MediaTime::from_micros(seconds * 1_000_000 + 123_456), SIZE);
            pose.project([1.0, 1.0, 1.0])
        };
        let [a, b] = [pose(0), pose(63 * 100_000)];
        assert!((a[0] - b[0]).abs() < 0.01 && (a[1] - b[1]).abs() < 0.01);
    }
}
