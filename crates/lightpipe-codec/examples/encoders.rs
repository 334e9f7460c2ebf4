//! CPU time per 720p picture of VP8 against H.264, at the default bitrate.
//!
//! `cargo run --release -p lightpipe-codec --features vpx --example encoders`. Both encode the same pictures in turn, so that
//! whatever else the machine does hits both; compare the ratio, and only within one run. Linux.
#![expect(clippy::print_stdout, reason = "the figures are for a person to read")]

use std::time::Duration;

use lightpipe_codec::openh264::OpenH264;
use lightpipe_codec::vp8::Vp8;
use lightpipe_codec::{Content, EncoderConfig, VideoEncoder};
use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size, VideoFrame};

const SIZE: Size = Size::new(1280, 720);
const WARM_UP: u32 = 60;
const PICTURES: u32 = 300;

/// A textured scene that pans, with a moving block and a camera's noise.
fn picture(pool: &FramePool, n: u32) -> Result<VideoFrame, Box<dyn std::error::Error>> {
    let at = MediaTime::from_micros(i64::from(n) * 33_333);
    let mut frame = VideoFrame::packed(at, SIZE, PixelFormat::I420, pool.take(PixelFormat::I420.packed_len(SIZE)))?;
    for plane in 0..3 {
        let layout = frame.layout(plane);
        for (y, row) in frame.plane_mut(plane).chunks_mut(layout.stride).enumerate() {
            for (x, sample) in row.iter_mut().enumerate() {
                let (x, y) = (x as u32 + n * 2, y as u32);
                let noise = (x * 7 + y * 131 + n * 977).wrapping_mul(2_654_435_761) >> 30;
                let texture = ((x / 9) ^ (y / 7)) % 48 + (x + y) / 12 % 64;
                let block = if (x % 400).abs_diff(200) < 60 && y.abs_diff(300) < 80 { 70 } else { 0 };
                *sample = if plane == 0 { 40 + texture + block + noise } else { 110 + texture / 4 + noise / 2 } as u8;
            }
        }
    }
    Ok(frame)
}

/// CPU time of all threads of this process.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = |text: String| text.split_ascii_whitespace().next()?.parse::<u64>().ok();
    let each = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok().and_then(nanos));
    Duration::from_nanos(each.sum())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = EncoderConfig {
        size: SIZE,
        fps: 30.0,
        bitrate_bps: 2_500_000,
        keyframe_interval: 60,
        content: Content::Camera,
    };
    let mut encoders: [Box<dyn VideoEncoder>; 2] = [Box::new(OpenH264::new(config)?), Box::new(Vp8::new(config)?)];
    let mut spent = [(Duration::ZERO, Duration::ZERO, 0); 2];
    let pool = FramePool::new();
    for n in 0..WARM_UP + PICTURES {
        let picture = picture(&pool, n)?;
        for (encoder, (used, took, bytes)) in encoders.iter_mut().zip(&mut spent) {
            let before = cpu();
            encoder.submit(&picture)?;
            if let Some(encoded) = encoder.poll().filter(|_| n >= WARM_UP) {
                *used += cpu().saturating_sub(before);
                *took += encoded.took;
                *bytes += encoded.data.len();
            }
        }
    }
    let ms = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(PICTURES);
    for (encoder, (used, took, bytes)) in encoders.iter().zip(spent) {
        let kbps = bytes as f64 * 8.0 * 30.0 / f64::from(PICTURES) / 1000.0;
        println!(
            "{:<9} {:.2} ms of CPU, {:.2} ms until it is there, {kbps:.0} kbit/s",
            encoder.name(),
            ms(used),
            ms(took)
        );
    }
    println!("ratio     {:.2}", spent[1].0.as_secs_f64() / spent[0].0.as_secs_f64());
    Ok(())
}
