//! Browsers and what the tests do with the player in them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use lightpipe_browser::{Browser, Kind, Options, Page};
use serde_json::Value;

use super::{PATIENCE, Server};

/// The player of the page.
pub(crate) const PLAYER: &str = "document.querySelector('lightpipe-player')";

pub(crate) async fn chromium() -> Browser {
    Browser::launch(Kind::Chromium, Options::default().with_command_timeout(Duration::from_secs(120))).await.unwrap()
}

pub(crate) async fn firefox() -> Browser {
    firefox_with(true).await
}

/// As one without the OpenH264 plugin: it decodes VP8 only.
#[cfg(feature = "vpx")]
pub(crate) async fn firefox_without_h264() -> Browser {
    firefox_with(false).await
}

async fn firefox_with(h264: bool) -> Browser {
    // A server on 127.0.0.1 is a lab's need. Firefox checks loopback addresses only when told to, and pairs its own
    // address with one only when the server's check comes first, for which the server must know that address.
    let options = Options::default()
        .with_firefox_system_h264(h264)
        .with_firefox_pref("media.peerconnection.ice.loopback", "true")
        .with_firefox_pref("media.peerconnection.ice.obfuscate_host_addresses", "false")
        .with_command_timeout(Duration::from_secs(120));
    Browser::launch(Kind::Firefox, options).await.unwrap()
}

/// Opens the watch page of a stream and waits for a moving picture.
pub(crate) async fn watch(browser: &Browser, server: &Server, stream: &str) -> Page {
    let page = browser.open(&server.url(&format!("/watch/{stream}"))).await.unwrap();
    wait_playing(&page).await;
    page
}

/// Waits for a moving picture.
pub(crate) async fn wait_playing(page: &Page) {
    let playing = format!("{PLAYER}.state.state === 'playing' && {PLAYER}.video.currentTime > 0.2");
    page.wait_until(&playing, PATIENCE).await.unwrap();
}

/// The `inbound-rtp` statistics of the page's video, as the browser tells them at this moment.
pub(crate) async fn inbound(page: &Page, connection: &str) -> Value {
    let script = format!(
        "(async () => [...(await ({connection}).getStats()).values()].find(s => s.type === 'inbound-rtp' && s.kind === 'video') ?? null)()"
    );
    page.evaluate(&script).await.unwrap()
}

/// Waits until the browser has decoded so many more pictures.
pub(crate) async fn wait_decoded(page: &Page, connection: &str, more: u64) {
    let before = inbound(page, connection).await["framesDecoded"].as_u64().unwrap_or(0);
    let condition = format!(
        "(async () => [...(await ({connection}).getStats()).values()].some(s => s.type === 'inbound-rtp' && s.kind === 'video' && s.framesDecoded >= {}))()",
        before + more
    );
    page.wait_until(&condition, PATIENCE).await.unwrap();
}

/// Starts to note the time between shown pictures; `window.gaps.longest` is the longest, ms.
pub(crate) async fn note_gaps(page: &Page) {
    let script = format!(
        "void (() => {{ window.gaps = {{ longest: 0, frames: 0, last: performance.now() }};
            {PLAYER}.onFrame(s => {{ gaps.longest = Math.max(gaps.longest, s.at_ms - gaps.last); gaps.last = s.at_ms; gaps.frames += 1; }}); }})()"
    );
    page.evaluate(&script).await.unwrap();
}

/// The longest time without a new picture since the last call, ms, the present one included.
pub(crate) async fn take_longest_gap(page: &Page) -> f64 {
    let script = "(() => { const longest = Math.max(gaps.longest, performance.now() - gaps.last); gaps.longest = 0; return longest })()";
    page.evaluate(script).await.unwrap().as_f64().unwrap()
}

/// Serves one page of HTML on a port of its own, which makes it another origin, until the process ends.
pub(crate) fn foreign_page(html: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let html = html.clone();
            // Browsers open connections that they do not use yet, so each is served by itself.
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    request.push(byte[0]);
                }
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nConnection: close";
                _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{html}", html.len());
            });
        }
    });
    url
}
