//! What people see: the cube, the right way up, in its colours.

use lightpipe_browser::{Browser, Page};

use crate::lab::browser::{PLAYER, inbound, watch};
use crate::lab::{LAVFI, PATIENCE, Server, chromium, firefox, quiet, serve, shared};

/// Sorts the saturated pixels of the shown picture by hue. Light changes a face's brightness, never its hue.
const COLOURS: &str = "(() => {
  const video = PLAYER.video, canvas = Object.assign(document.createElement('canvas'), { width: 320, height: 180 });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(video, 0, 0, 320, 180);
  const { data } = context.getImageData(0, 0, 320, 180);
  const faces = { red: 354, amber: 39, green: 162, indigo: 240, sky: 201, magenta: 292 };
  const seen = Object.fromEntries([...Object.keys(faces), 'other'].map(name => [name, { n: 0, y: 0 }]));
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
    const max = Math.max(r, g, b), span = max - Math.min(r, g, b);
    if (max < 100 || span < 0.5 * max) continue;
    const hue = 60 * (max === r ? ((g - b) / span + 6) % 6 : max === g ? (b - r) / span + 2 : (r - g) / span + 4);
    const away = name => Math.abs((hue - faces[name] + 540) % 360 - 180);
    const nearest = Object.keys(faces).reduce((a, b) => (away(a) <= away(b) ? a : b));
    const entry = seen[away(nearest) <= 12 ? nearest : 'other'];
    entry.n += 1;
    entry.y += (i / 4 / 320) | 0;
  }
  for (const entry of Object.values(seen)) entry.y = entry.n ? entry.y / entry.n : null;
  return { seen, currentTime: video.currentTime };
})()";

/// Looks at the cube until every side came round, half a turn per 4.5 s.
async fn look_at_the_cube(page: &Page, name: &str) {
    let script = COLOURS.replace("PLAYER", PLAYER);
    let mut sides_seen = std::collections::BTreeSet::new();
    let mut last_time = -1.0;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while sides_seen.len() < 3 {
        assert!(std::time::Instant::now() < end, "{name}: only saw {sides_seen:?}");
        page.wait_until(&format!("{PLAYER}.video.currentTime > {last_time} + 0.2"), PATIENCE).await.unwrap();
        let look = page.evaluate(&script).await.unwrap();
        last_time = look["currentTime"].as_f64().unwrap();
        let seen = &look["seen"];
        let pixels = |face: &str| seen[face]["n"].as_u64().unwrap();
        let height = |face: &str| seen[face]["y"].as_f64().unwrap();
        assert!(pixels("sky") > 200, "{name}: the top face shows: {seen}");
        assert!(pixels("magenta") < 20, "{name}: the bottom face never shows: {seen}");
        let sides: Vec<&str> = ["red", "amber", "green", "indigo"].into_iter().filter(|s| pixels(s) > 200).collect();
        assert!(!sides.is_empty(), "{name}: a side shows: {seen}");
        let all: u64 = sides.iter().map(|s| pixels(s)).sum::<u64>() + pixels("sky");
        assert!(pixels("other") * 10 < all, "{name}: the colours are the cube's: {seen}");
        for side in sides {
            // y counts downwards from the top of the picture.
            assert!(height("sky") + 10.0 < height(side), "{name}: the top face is above the {side} one: {seen}");
            sides_seen.insert(side);
        }
    }
}

async fn shows_the_cube(browser: Browser, server: &Server) {
    let name = browser.version().to_owned();
    let page = watch(&browser, server, "cube").await;
    look_at_the_cube(&page, &name).await;
    let stats = inbound(&page, &format!("{PLAYER}.peerConnection")).await;
    assert!(stats["framesDecoded"].as_u64().unwrap() > 30, "{name}: {stats}");
    assert_eq!((stats["frameWidth"].as_u64(), stats["frameHeight"].as_u64()), (Some(640), Some(360)), "{name}");
    let codec = page.evaluate(&format!("{PLAYER}.stats.codec")).await.unwrap();
    assert!(codec.as_str().is_none_or(|codec| codec == "H264"), "{name}: {codec}");
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_shows_the_cube_upright_and_in_its_colours() {
    let _machine = quiet().await;
    let server = serve(&["cube"]).size(640, 360).start();
    shows_the_cube(chromium().await, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn firefox_shows_the_cube_upright_and_in_its_colours() {
    let _machine = quiet().await;
    let server = serve(&["cube"]).size(640, 360).start();
    shows_the_cube(firefox().await, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_a_live_preview_of_every_stream() {
    let _machine = quiet().await;
    let server = serve(&["cube", "pattern", &format!("cam={LAVFI}")]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/")).await.unwrap();
    let live = "(() => { const players = [...document.querySelectorAll('lightpipe-player')];
        return players.length === 3 && players.every(p => p.state.state === 'playing' && p.video.currentTime > 0.5) })()";
    page.wait_until(live, PATIENCE).await.unwrap();
    server.wait_peers(3, PATIENCE);
    let complaints: Vec<String> = page.console().into_iter().filter(|l| !l.starts_with("[log]")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    browser.close().await.unwrap();
}

/// Waits for the display, and what the player asks of the source for them.
#[tokio::test(flavor = "multi_thread")]
async fn waits_for_the_display_become_one_wish_for_later_pictures() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/assets/icon.svg")).await.unwrap();
    let script = "(async () => {
        const { DisplayPhase } = await import('/player.js');
        const ask = waits => {
            const phase = new DisplayPhase();
            let later = null;
            waits.forEach((wait, i) => {
                later = phase.frame(i * 33, { presentationTime: wait, receiveTime: 0, processingDuration: 0 }) ?? later;
            });
            return later;
        };
        const sixty = wait => Array.from({ length: 60 }, (_, i) => wait(i));
        // A compositor that needs four milliseconds: what is ready later waits for the refresh after.
        const slow = ready => (ready % 16.667 < 4 ? ready % 16.667 + 16.667 : ready % 16.667);
        const phase = new DisplayPhase();
        let ready = 12;
        for (let look = 0; look < 4; look++) {
            for (let i = 0; i < 60; i++) {
                const at = look * 10_000 + i * 33;
                const metadata = { presentationTime: slow(ready), receiveTime: 0, processingDuration: 0 };
                const later = phase.frame(at, metadata);
                if (later !== null) ready = (((ready - later) % 16.667) + 16.667) % 16.667;
            }
        }
        return [ask(sixty(() => 12)), ask(sixty(() => 1.5)), ask(sixty(i => (i % 2 ? 16.4 : 0.3))), ask(sixty(i => i * 16.667 / 60)), slow(ready)];
    })()";
    let wishes = page.evaluate(script).await.unwrap();
    let wish = |n: usize| wishes[n].as_f64();
    assert!((wish(0).unwrap() - 10.5).abs() < 0.01, "the wait less the margin: {wishes}");
    assert_eq!(wish(1), None, "just in time is left alone");
    assert!(
        (wish(2).unwrap() - 14.6).abs() < 0.2,
        "half of them miss a refresh: later by all but two milliseconds: {wishes}"
    );
    assert!(wish(4).unwrap() < 8.0, "a busy compositor gets its pictures earlier: {wishes}");
    assert_eq!(wish(3), None, "a frame rate that does not divide the refresh rate has no phase");
    browser.close().await.unwrap();
}

/// Pictures and sound in front of a display that is made up: pictures are shown at the first refresh after what they are held to, give or
/// take a millisecond. Yields what share of the pictures is shown within so many milliseconds of their sound, and how often the hold changes.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_held_for_their_sound_and_kept_off_the_edge_of_a_refresh() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/assets/icon.svg")).await.unwrap();
    let script = "(async () => {
        const { LipSync } = await import('/player.js');
        const REFRESH = 1000 / 60;
        const play = ({ fps, follows, sound, beat = 0 }) => {
            const lips = new LipSync();
            let [seed, hold, taken, changes] = [1, 0, 3, 0];
            const noise = () => { seed = (seed * 16807) % 2147483647; return seed / 2147483647 - 0.5; };
            const apart = [];
            for (; taken < 120_000; taken += 1000 / fps + beat / fps) {
                const ready = taken + Math.max(12, hold) + 2 * noise();
                const shown = Math.ceil(ready / REFRESH) * REFRESH;
                const heard = sound(taken);
                if (taken > 30_000) apart.push(Math.abs(heard - (shown - taken)));
                const wish = lips.look(shown, heard + 10 * noise(), shown - taken);
                if (!wish) continue;
                if (taken > 30_000) changes += 1;
                hold = wish.videoMs;
                if (follows) taken += wish.takeLaterMs ?? 0;
            }
            return { changes, within: [4.5, 9.5, 18].map(ms => apart.filter(x => x <= ms).length / apart.length) };
        };
        const steady = () => 57; // pictures can be 47 or 64 ms old, if their source does not follow
        return {
            follows: play({ fps: 30, follows: true, sound: steady }),
            follows60: play({ fps: 60, follows: true, sound: steady }),
            alone: play({ fps: 30, follows: false, sound: steady }),
            steps: play({ fps: 30, follows: true, sound: at => (at % 40_000 < 20_000 ? 55 : 70) }),
            beat: play({ fps: 30, follows: true, sound: steady, beat: 0.3 }),
            film: play({ fps: 24, follows: false, sound: steady }),
        };
    })()";
    let played = page.evaluate(script).await.unwrap();
    let check = |case: &str, share: [f64; 3], changes: u64| {
        let got = &played[case];
        for (n, share) in share.iter().enumerate() {
            assert!(got["within"][n].as_f64().unwrap() >= *share, "{case}: {got}");
        }
        assert!(got["changes"].as_u64().unwrap() <= changes, "{case}: {got}");
    };
    println!("{played}");
    check("follows", [0.99, 1.0, 1.0], 4);
    check("follows60", [0.99, 1.0, 1.0], 4);
    check("alone", [0.0, 0.99, 1.0], 4);
    check("steps", [0.75, 0.75, 0.99], 20);
    check("beat", [0.9, 0.95, 1.0], 60);
    check("film", [0.0, 0.5, 0.99], 30);
    browser.close().await.unwrap();
}
