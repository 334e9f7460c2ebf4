//! The desktop of this machine in every browser that looks. Needs FFmpeg, and on Linux an X display.
//!
//! `cargo run -p lightpipe --example desktop_to_browser`, then open the printed address. PORT chooses another port than 8080.
#![expect(clippy::print_stdout, reason = "the address is for a person to open")]

use lightpipe::config::ContentHint;
use lightpipe::{Config, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.video.content = ContentHint::Screen; // sharper text for fewer bits, at the price of CPU
    if let Ok(port) = std::env::var("PORT") {
        config.server.port = port.parse()?;
    }

    let server = Server::start(config)?;
    server.add_source(&"desktop".parse()?)?; // any source as after --source, e.g. "cam=camera:/dev/video0"
    println!("open {}/watch/desktop", server.url());

    loop {
        std::thread::park(); // the server works in threads of its own, until it is dropped or Ctrl-C ends us
    }
}
