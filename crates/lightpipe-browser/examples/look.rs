//! Opens a URL in a headless browser, waits for a playing `<lightpipe-player>`, and takes a screenshot.
//!
//! `cargo run -p lightpipe-browser --example look -- http://127.0.0.1:8080/watch/cube cube.png [chromium|firefox]`

#![allow(clippy::print_stdout)] // An example talks to its user.

use std::time::Duration;

use lightpipe_browser::{Browser, Kind, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("which URL?")?;
    let file = args.next().ok_or("which file?")?;
    let kind = if args.next().as_deref() == Some("firefox") { Kind::Firefox } else { Kind::Chromium };
    let options = Options::default()
        .with_viewport(1280, 900, false)
        .with_fake_media_devices(true)
        .with_firefox_system_h264(true)
        // Firefox uses loopback addresses, and shows its own, only when told so.
        .with_firefox_pref("media.peerconnection.ice.loopback", "true")
        .with_firefox_pref("media.peerconnection.ice.obfuscate_host_addresses", "false");
    let browser = Browser::launch(kind, options).await?;
    let page = browser.open(&url).await?;
    let playing = "[...document.querySelectorAll('lightpipe-player')].some(p => p.stats?.frames_decoded > 60) && document.querySelector('lightpipe-player').stats";
    match page.wait_until(playing, Duration::from_secs(15)).await {
        Ok(stats) => println!("{stats:#}"),
        Err(error) => println!("not playing: {error}"),
    }
    println!("{:#?}", page.console());
    std::fs::write(&file, page.screenshot().await?)?;
    browser.close().await?;
    Ok(())
}
