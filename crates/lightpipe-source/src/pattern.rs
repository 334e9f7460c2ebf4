//! Source `pattern`: a test picture that shows at a glance what is wrong with a connection.
//!
//! Proportions are those of 1280×720; other sizes are scaled. From top to bottom:
//!
//! | rows | what | shows |
//! |---|---|---|
//! | 0–31 | [timecode strip](lightpipe_media::timecode), name, size and frame rate | age of the picture, to the machine |
//! | 32–399 | colour bars (BT.709, 75 %, white 100 %), a sweeping line, a bouncing ball | colour matrix and range; stutter, tearing |
//! | 400–431 | eleven grey steps, black to white | range, banding |
//! | 432–479 | a ramp that runs from right to left | banding, even motion |
//! | 480–719 | zone plate, clock (UTC) and frame number, flash | sharpness and aliasing; age, drops; A/V sync |
//!
//! The **flash** is the square at ([`FLASH`]): white for the first 100 ms of each second of Unix time, black
//! otherwise; the beep of the audio side begins at the same instants.

use std::f32::consts::TAU;

use lightpipe_media::{FramePool, MediaClock, MediaTime, PixelFormat, Size, VideoFrame, timecode};

use crate::canvas::{Canvas, Ink, Yuv, hex, yuv};
use crate::ticker::{PacedSource, StartError, check_picture, unix_ms};
use crate::{SourceHandle, VideoSink};

/// How the pattern is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Size of the picture; odd sides are rounded down. Default 1280×720.
    pub size: Size,
    /// Pictures per second, above 0 and up to 240. Default 30.
    pub fps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { size: Size::new(1280, 720), fps: 30.0 }
    }
}

/// Where the flash is, in parts of the picture's width and height: left, top, right, bottom. The outer
/// tenth of it is a frame; look at the middle.
pub const FLASH: [f32; 4] = [1080.0 / 1280.0, 512.0 / 720.0, 1240.0 / 1280.0, 672.0 / 720.0];

/// How long the flash is white after each whole second of Unix time.
pub const FLASH_MILLIS: u32 = 100;

/// Starts the source.
pub fn start(config: Config, sink: VideoSink) -> Result<Box<dyn SourceHandle>, StartError> {
    let mut pattern = Pattern::new(config, sink.clock)?;
    let fps = pattern.fps;
    let render = move |at| Ok(pattern.render(at));
    Ok(Box::new(PacedSource::spawn("pattern", fps, sink, render)?))
}

/// Draws the pattern at given times. [`start`] puts one behind a clock; tests and tools use it directly.
#[derive(Debug)]
pub struct Pattern {
    fps: f64,
    clock: MediaClock,
    layout: Layout,
    /// All that does not move.
    still: VideoFrame,
    zone: Zone,
    pool: FramePool,
    luma: Vec<u8>,
}

impl Pattern {
    /// A pattern whose clock face and timecode follow `clock`.
    pub fn new(config: Config, clock: MediaClock) -> Result<Self, StartError> {
        let size = config.size.to_even();
        check_picture(size, config.fps)?;
        let layout = Layout { size };
        let pool = FramePool::new();
        let buffer = pool.take(PixelFormat::I420.packed_len(size));
        let mut still = VideoFrame::packed(MediaTime::ZERO, size, PixelFormat::I420, buffer)
            .expect("a checked size makes a picture");
        layout.draw_still(&mut Canvas::new(&mut still), config.fps);
        Ok(Self { fps: config.fps, clock, layout, still, zone: Zone::new(&layout), pool, luma: Vec::new() })
    }

    /// The picture of a time, I420, timecode included.
    pub fn render(&mut self, at: MediaTime) -> VideoFrame {
        let size = self.layout.size;
        let mut buffer = self.pool.take(PixelFormat::I420.packed_len(size));
        let mut rest = &mut buffer[..];
        for plane in 0..3 {
            let bytes = self.still.plane(plane);
            let (to, after) = rest.split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            rest = after;
        }
        let mut frame = VideoFrame::packed(at, size, PixelFormat::I420, buffer).expect("the still part has this size");
        self.draw_moving(at, &mut Canvas::new(&mut frame));
        timecode::paint(&mut frame, unix_ms(&self.clock, at));
        frame
    }

    fn draw_moving(&mut self, at: MediaTime, canvas: &mut Canvas<'_>) {
        let Self { layout, luma, .. } = self;
        // Phases are taken from the Unix time, so that two machines show the same picture.
        let unix_micros = self.clock.unix_micros(at);
        let phase = |period: f64| (unix_micros as f64 / 1e6 / period).rem_euclid(1.0) as f32;
        let width = layout.size.width as f32;

        layout.ramp(phase(4.0), luma);
        let (top, bottom) = (layout.y(432.0), layout.y(480.0));
        canvas.luma_rows(0, top as usize, (bottom - top) as usize, luma);

        let (top, bottom) = (layout.y(32.0) as f32, layout.y(400.0) as f32);
        let x = phase(4.0) * width;
        for (half, colour) in [(5.0, BLACK), (2.5, WHITE)] {
            let half = half * layout.unit();
            canvas
                .convex(&[[x - half, top], [x + half, top], [x + half, bottom], [x - half, bottom]], Ink::flat(colour));
        }

        let radius = 34.0 * layout.unit();
        // A thrown ball: even across, a parabola up and down.
        let triangle = |phase: f32| 1.0 - (2.0 * phase - 1.0).abs();
        let across = triangle(phase(6.0));
        let fall = 2.0 * phase(1.5) - 1.0;
        let centre =
            [radius + across * (width - 2.0 * radius), top + radius + fall * fall * (bottom - top - 2.0 * radius)];
        canvas.disc(centre, radius, Ink::flat(BLACK));
        canvas.disc(centre, radius * 0.88, Ink::flat(yuv(hex(0xFF_6B_2C))));
        let glint = [centre[0] - radius * 0.3, centre[1] - radius * 0.35];
        canvas.disc(glint, radius * 0.2, Ink::flat(yuv(hex(0xFF_D9_C2))));

        self.zone.draw(phase(1.0), canvas);

        let [left, top, right, bottom] = layout.flash();
        let inset = (right - left) / 10;
        let lit = unix_micros.rem_euclid(1_000_000) < i64::from(FLASH_MILLIS) * 1000;
        let (side, height) = (right - left - 2 * inset, bottom - top - 2 * inset);
        canvas.rect(left + inset, top + inset, side, height, if lit { WHITE } else { BLACK });

        let ms = unix_micros.div_euclid(1000).rem_euclid(86_400_000);
        let clock = format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
        // Periods of the frame rate in media time: a picture that was skipped leaves a gap.
        let number = (at.as_micros() as f64 * self.fps / 1e6).round().rem_euclid(1e8);
        layout.text(canvas, 260.0, 516.0, 10.0, WHITE, &clock);
        layout.text(canvas, 260.0, 618.0, 6.0, yuv(hex(0x7F_D1_FF)), &format!("FRAME {number:08}"));
    }
}

const BLACK: Yuv = [16.0, 128.0, 128.0];
const WHITE: Yuv = [235.0, 128.0, 128.0];
/// Ground of the text areas.
const PANEL: Yuv = [26.0, 131.0, 126.0];

/// Turns coordinates of the 1280×720 drawing into those of the picture.
#[derive(Debug, Clone, Copy)]
struct Layout {
    size: Size,
}

impl Layout {
    /// Even columns and rows: chroma edges fall on chroma samples.
    fn x(&self, x: f32) -> i32 {
        (x * self.size.width as f32 / 2560.0).round() as i32 * 2
    }

    fn y(&self, y: f32) -> i32 {
        (y * self.size.height as f32 / 1440.0).round() as i32 * 2
    }

    /// One unit of the drawing where it must keep its shape.
    fn unit(&self) -> f32 {
        (self.size.width as f32 / 1280.0).min(self.size.height as f32 / 720.0)
    }

    fn flash(&self) -> [i32; 4] {
        let [left, top, right, bottom] = FLASH;
        [self.x(left * 1280.0), self.y(top * 720.0), self.x(right * 1280.0), self.y(bottom * 720.0)]
    }

    fn draw_still(&self, canvas: &mut Canvas<'_>, fps: f64) {
        let (width, height) = (self.size.width as i32, self.size.height as i32);
        canvas.rect(0, 0, width, height, PANEL);
        canvas.rect(0, 0, width, self.y(32.0), BLACK);

        let bars = [0xFFFFFF, 0xBFBF00, 0x00BFBF, 0x00BF00, 0xBF00BF, 0xBF0000, 0x0000BF, 0x000000];
        for (n, colour) in bars.into_iter().enumerate() {
            let (left, right) = (self.x(n as f32 * 160.0), self.x((n + 1) as f32 * 160.0));
            canvas.rect(left, self.y(32.0), right - left, self.y(400.0) - self.y(32.0), yuv(hex(colour)));
        }
        for n in 0..11 {
            let (left, right) = (self.x(n as f32 * 1280.0 / 11.0), self.x((n + 1) as f32 * 1280.0 / 11.0));
            let grey = [16.0 + 21.9 * n as f32, 128.0, 128.0];
            canvas.rect(left, self.y(400.0), right - left, self.y(432.0) - self.y(400.0), grey);
        }
        canvas.rect(0, self.y(432.0), width, self.y(480.0) - self.y(432.0), [126.0, 128.0, 128.0]);

        let [left, top, right, bottom] = self.flash();
        canvas.rect(left, top, right - left, bottom - top, [90.0, 128.0, 128.0]);

        let strip = timecode::block_size(self.size).map_or(0, |block| block * timecode::BITS as u32);
        let text =
            format!("LIGHTPIPE  {}X{}  {} FPS", self.size.width, self.size.height, (fps * 100.0).round() / 100.0);
        let start = strip as f32 * 1280.0 / self.size.width as f32 + 24.0;
        self.text(canvas, start, 9.0, 2.0, [180.0, 128.0, 128.0], &text);
        let grey = [150.0, 130.0, 127.0];
        self.text(canvas, 260.0, 678.0, 2.0, grey, "CLOCK UTC, FLASH 100 MS AT EACH WHOLE SECOND");
    }

    /// One row of the running ramp: black to white and back over the width, twice.
    fn ramp(&self, phase: f32, row: &mut Vec<u8>) {
        let width = self.size.width as f32;
        row.clear();
        row.extend((0..self.size.width).map(|x| {
            let at = (x as f32 / width * 2.0 + phase * 2.0).fract();
            (16.5 + 219.0 * (1.0 - (2.0 * at - 1.0).abs())) as u8
        }));
    }

    /// Writes `text` with its top left corner at (x, y) and pixels of `scale`, all in units of the drawing.
    fn text(&self, canvas: &mut Canvas<'_>, x: f32, y: f32, scale: f32, colour: Yuv, text: &str) {
        let dot = (scale * self.unit()).round().max(1.0) as i32;
        let (mut left, top) = (self.x(x), self.y(y));
        for letter in text.chars() {
            for (row, bits) in glyph(letter).into_iter().enumerate() {
                // Neighbouring dots are one rectangle: fewer and larger fills.
                let mut column = 0;
                while column < 5 {
                    let run = (column..5).take_while(|c| bits >> (4 - c) & 1 == 1).count() as i32;
                    if run > 0 {
                        canvas.rect(left + column as i32 * dot, top + row as i32 * dot, run * dot, dot, colour);
                    }
                    column += run.max(1) as usize;
                }
            }
            left += 6 * dot;
        }
    }
}

/// A circular zone plate whose rings run outwards: frequency grows with the radius.
#[derive(Debug)]
struct Zone {
    left: usize,
    top: usize,
    /// For each row of the disc: its first column, and the phase of each sample in 1/256 turns.
    rows: Vec<(usize, Vec<u8>)>,
}

impl Zone {
    fn new(layout: &Layout) -> Self {
        let radius = 100.0 * layout.unit();
        let (left, top) = (layout.x(30.0), layout.y(500.0));
        let side = (2.0 * radius) as usize;
        let rows = (0..side)
            .map(|y| {
                let dy = y as f32 + 0.5 - radius;
                let half = (radius * radius - dy * dy).max(0.0).sqrt();
                let first = (radius - half).ceil() as usize;
                let end = ((radius + half) as usize).clamp(first, side);
                let phase = |x: usize| {
                    let dx = x as f32 + 0.5 - radius;
                    // At the rim a ring is 6 drawing units wide: sharp, and still no torture for an encoder.
                    let turns = (dx * dx + dy * dy) / (radius * radius) * (radius / layout.unit() / 12.0);
                    (turns.fract() * 256.0) as u8
                };
                (first, (first..end).map(phase).collect())
            })
            .collect();
        Self { left: left.max(0) as usize, top: top.max(0) as usize, rows }
    }

    fn draw(&self, phase: f32, canvas: &mut Canvas<'_>) {
        let shift = (phase * 256.0) as u8;
        let wave: [u8; 256] = std::array::from_fn(|n| {
            let turns = (n as u8).wrapping_sub(shift);
            (126.0 + 100.0 * (f32::from(turns) / 256.0 * TAU).cos()) as u8
        });
        let mut luma = Vec::new();
        for (row, (first, phases)) in self.rows.iter().enumerate() {
            luma.clear();
            luma.extend(phases.iter().map(|phase| wave[usize::from(*phase)]));
            canvas.luma_rows(self.left + first, self.top + row, 1, &luma);
        }
    }
}

/// Five columns by seven rows, the leftmost column in the highest of five bits.
fn glyph(letter: char) -> [u8; 7] {
    match letter {
        '0' => [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
        '1' => [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        '2' => [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
        '3' => [0b11110, 0b00001, 0b00001, 0b01110, 0b00001, 0b00001, 0b11110],
        '4' => [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
        '5' => [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
        '6' => [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
        '7' => [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
        '8' => [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
        '9' => [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
        'A' => [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'C' => [0b01110, 0b10001, 0b10000, 0b10000, 0b10000, 0b10001, 0b01110],
        'D' => [0b11110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b11110],
        'E' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111],
        'F' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b10000],
        'G' => [0b01110, 0b10001, 0b10000, 0b10111, 0b10001, 0b10001, 0b01110],
        'H' => [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'I' => [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        'K' => [0b10001, 0b10010, 0b10100, 0b11000, 0b10100, 0b10010, 0b10001],
        'L' => [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111],
        'M' => [0b10001, 0b11011, 0b10101, 0b10101, 0b10001, 0b10001, 0b10001],
        'N' => [0b10001, 0b11001, 0b10101, 0b10011, 0b10001, 0b10001, 0b10001],
        'O' => [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        'P' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000],
        'R' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001],
        'S' => [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110],
        'T' => [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
        'U' => [0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        'W' => [0b10001, 0b10001, 0b10001, 0b10101, 0b10101, 0b11011, 0b10001],
        'X' => [0b10001, 0b10001, 0b01010, 0b00100, 0b01010, 0b10001, 0b10001],
        ':' => [0b00000, 0b00100, 0b00100, 0b00000, 0b00100, 0b00100, 0b00000],
        '.' => [0b00000, 0b00000, 0b00000, 0b00000, 0b00000, 0b00110, 0b00110],
        ',' => [0b00000, 0b00000, 0b00000, 0b00000, 0b00110, 0b00100, 0b01000],
        _ => [0; 7],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Media time 0 is this Unix time: 42 ms after a whole second.
    const UNIX_AT_ORIGIN: Duration = Duration::from_millis(1_700_000_000_042);

    fn pattern(width: u32, height: u32) -> Pattern {
        let clock = MediaClock::new(Instant::now(), UNIX_AT_ORIGIN);
        let config = Config { size: Size::new(width, height), fps: 30.0 };
        Pattern::new(config, clock).expect("a possible picture")
    }

    fn ms(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    #[test]
    fn every_picture_carries_its_capture_time() {
        for (width, height) in [(1280, 720), (1920, 1080), (640, 360), (320, 180), (500, 402)] {
            let mut pattern = pattern(width, height);
            for at in [0, 1, 33, 1_000_000] {
                let frame = pattern.render(ms(at));
                assert_eq!(frame.captured, ms(at));
                let expected = (1_700_000_000_042u64 + at as u64) as u32;
                assert_eq!(timecode::read(&frame), Some(expected), "{width}x{height} at {at} ms");
            }
        }
    }

    #[test]
    fn any_possible_size_is_drawn_and_absurd_ones_are_refused() {
        for (width, height) in [(16, 16), (17, 400), (400, 18), (322, 182), (3840, 2160)] {
            let frame = pattern(width, height).render(ms(0));
            assert_eq!(frame.size(), Size::new(width, height).to_even());
        }
        let clock = MediaClock::new(Instant::now(), UNIX_AT_ORIGIN);
        for (width, fps) in [(8, 30.0), (9000, 30.0), (640, 0.0), (640, f64::NAN), (640, 1000.0)] {
            let config = Config { size: Size::new(width, 360), fps };
            assert!(Pattern::new(config, clock).is_err(), "{width} at {fps}");
        }
    }

    #[test]
    fn the_flash_is_white_for_the_first_tenth_of_each_unix_second() {
        let mut pattern = pattern(640, 360);
        for (at, white) in [(0, true), (57, true), (58, false), (500, false), (957, false), (958, true), (1058, false)]
        {
            let frame = pattern.render(ms(at));
            let [left, top, right, bottom] = FLASH;
            let x = ((left + right) / 2.0 * 640.0) as usize;
            let y = ((top + bottom) / 2.0 * 360.0) as usize;
            let expected = if white { 235 } else { 16 };
            assert_eq!(frame.plane(0)[y * 640 + x], expected, "{at} ms after the origin");
        }
    }

    #[test]
    fn colour_bars_are_where_and_what_they_should_be() {
        let frame = pattern(1280, 720).render(ms(2200));
        let expected = [[235, 128, 128], [168, 44, 136], [145, 147, 44], [134, 63, 52]].into_iter().chain([
            [63, 193, 204],
            [51, 109, 212],
            [28, 212, 120],
            [16, 128, 128],
        ]);
        for (n, [y, u, v]) in expected.enumerate() {
            // Just above the grey steps, and in the corner of the bar that neither line nor ball is in now.
            let (x, row) = (n * 160 + 12, 396);
            assert!(frame.plane(0)[row * 1280 + x].abs_diff(y) <= 1, "bar {n}");
            assert!(frame.plane(1)[row / 2 * 640 + x / 2].abs_diff(u) <= 1, "bar {n}");
            assert!(frame.plane(2)[row / 2 * 640 + x / 2].abs_diff(v) <= 1, "bar {n}");
        }
    }

    #[test]
    fn it_moves() {
        let mut pattern = pattern(640, 360);
        let (a, b) = (pattern.render(ms(0)), pattern.render(ms(33)));
        let changed = a.plane(0).iter().zip(b.plane(0)).filter(|(a, b)| a != b).count();
        assert!((5_000..120_000).contains(&changed), "{changed} samples changed");
    }

    #[test]
    fn all_letters_of_the_captions_exist() {
        for letter in "LIGHTPIPE X0123456789 FPS CLOCK UTC, FLASH 100 MS AT EACH WHOLE SECOND FRAME :.".chars() {
            assert!(letter == ' ' || glyph(letter) != [0; 7], "{letter}");
        }
    }
}
