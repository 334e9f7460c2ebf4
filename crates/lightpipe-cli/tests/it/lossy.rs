//! A real Chromium behind a bad network: two namespaces, a veth pair, and a shaper between.

use std::net::IpAddr;
use std::time::Duration;

use lightpipe::{Config, Server};
use lightpipe_browser::{Browser, Kind, Options};
use lightpipe_testkit::netlab::{Lab, LinkConfig, SERVER_ADDR};

/// Plays `pattern` behind `link` (both ways) for `seconds`; gives what the page and the server counted.
fn play_behind(link: LinkConfig, seconds: u64) -> serde_json::Value {
    let lab = Lab::new(link.clone(), link).expect("root, ip and iptables make a lab");
    let server = lab
        .in_server(|| {
            let mut config = Config::default();
            config.server.host = SERVER_ADDR.to_string().parse::<IpAddr>().expect("an address");
            config.server.port = 0;
            let server = Server::start(config).expect("starts");
            server.add_source(&"pattern".parse().expect("a source")).expect("starts");
            server
        })
        .expect("inside the namespace");
    let url = format!("{}/watch/pattern", server.url());
    let published = || server.streams().find("pattern").expect("pattern").stats().published;
    lab.in_client(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let options = Options::default().with_command_timeout(Duration::from_secs(seconds + 60));
            let browser = Browser::launch(Kind::Chromium, options).await.expect("Chromium");
            let page = browser.open(&url).await.expect("the page");
            page.wait_until(
                "document.querySelector('lightpipe-player')?.stats?.frames_decoded > 30",
                Duration::from_secs(30),
            )
            .await
            .expect("a picture");
            let inbound = "(async () => { const player = document.querySelector('lightpipe-player');
                for (const report of (await player.peerConnection.getStats()).values())
                    if (report.type === 'inbound-rtp' && report.kind === 'video') return report; })()";
            let (from, start) = (published(), page.evaluate(inbound).await.expect("stats"));
            page.evaluate(&format!("new Promise(done => setTimeout(done, {seconds} * 1000))")).await.expect("waits");
            let (until, end) = (published(), page.evaluate(inbound).await.expect("stats"));
            browser.close().await.expect("closes");
            let grown = |key: &str| end[key].as_f64().unwrap_or(0.0) - start[key].as_f64().unwrap_or(0.0);
            serde_json::json!({
                "published": until - from,
                "decoded": grown("framesDecoded"),
                "plis": grown("pliCount"),
                "nacks": grown("nackCount"),
                "freezes": grown("freezeCount"),
                "lab": format!("{:?}", lab.counters()),
            })
        })
    })
    .expect("inside the namespace")
}

#[test]
#[ignore = "nightly: needs root, namespaces and a minute"]
fn chromium_decodes_at_two_percent_loss_and_forty_milliseconds() {
    let link = LinkConfig::default().with_delay_millis(20).with_loss(0.02);
    let seen = play_behind(link, 60);
    println!("{seen:#}");
    let share = seen["decoded"].as_f64().expect("a number") / seen["published"].as_f64().expect("a number");
    assert!(share >= 0.99, "{share} of the pictures were decoded");
    assert!(seen["plis"].as_f64().expect("a number") <= 2.0, "keyframe requests in a minute");
}
