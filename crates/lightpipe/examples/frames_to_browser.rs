//! Pictures that this program draws itself, live in every browser that looks.
//!
//! `cargo run -p lightpipe --example frames_to_browser`, then open the printed address. PORT chooses another port than 8080.
#![expect(clippy::print_stdout, reason = "the address is for a person to open")]

use std::thread::sleep;
use std::time::{Duration, Instant};

use lightpipe::{Config, PixelFormat, Server, Size};

const SIZE: Size = Size::new(640, 360);
const FPS: f64 = 30.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    if let Ok(port) = std::env::var("PORT") {
        config.server.port = port.parse()?;
    }

    let server = Server::start(config)?;
    let scene = server.frames("scene", SIZE, FPS)?;
    println!("open {}/watch/scene", server.url());

    let mut pixels = vec![0; PixelFormat::Rgba.packed_len(SIZE)];
    let started = Instant::now();
    let mut due = started;
    loop {
        // Drawing for nobody is a waste, so this waits for a first viewer.
        if scene.wait_watched(Duration::from_secs(1)) {
            draw(&mut pixels, started.elapsed().as_secs_f32());
            scene.push(PixelFormat::Rgba, &pixels)?;
            due = (due + Duration::from_secs_f64(1.0 / FPS)).max(Instant::now());
            sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

/// A ball that goes round over a slow gradient; `seconds` is all that it depends on.
fn draw(pixels: &mut [u8], seconds: f32) {
    let (width, height) = (SIZE.width as f32, SIZE.height as f32);
    let ball = (width * (0.5 + 0.35 * seconds.cos()), height * (0.5 + 0.35 * seconds.sin()));
    for (n, pixel) in pixels.chunks_exact_mut(4).enumerate() {
        let (x, y) = ((n % SIZE.width as usize) as f32, (n / SIZE.width as usize) as f32);
        let inside = (x - ball.0).hypot(y - ball.1) < height / 8.0;
        let sky = [40.0 + 80.0 * x / width, 60.0 + 80.0 * y / height, 120.0 + 60.0 * (seconds * 0.5).sin()];
        let [r, g, b] = if inside { [255, 190, 60] } else { sky.map(|level| level as u8) };
        pixel.copy_from_slice(&[r, g, b, 255]);
    }
}
