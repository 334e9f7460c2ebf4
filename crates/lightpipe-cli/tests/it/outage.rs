//! What the player does about a server of which it hears nothing any more. Whole networks that are gone: `lossy`.

use std::time::{Duration, Instant};

use lightpipe_browser::Page;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::lab::browser::{PLAYER, note_gaps, take_longest_gap, watch};
use crate::lab::{PATIENCE, chromium, quiet, serve, shared};

/// Plays a world through [`Outage`] of `player.js`, looking four times a second. Nothing is heard from 0 until `heard` ms; `ice` is when its
/// state changes to what; each answer comes `[after ms, news]`. Steps as `[at, step]`.
const WORLD: &str = "
    const live = ({ until, heard = Infinity, ice = {}, asks = true, ask = () => [2500, 'unreachable'], restart = () => [50, 'restarted'] }) => {
        const outage = new Outage(), steps = [], answers = [];
        let state = 'connected';
        outage.heard(0);
        for (let at = 0; at <= until; at += 50) {
            state = ice[at] ?? state;
            if (at >= heard) outage.heard(at);
            while (answers.length && answers[0][0] <= at) outage.told(at, answers.shift()[1]);
            if (at % 250) continue;
            const step = outage.step(at, state, asks);
            if (!step) continue;
            steps.push([at, step]);
            if (step === 'anew') break;
            const [after, news] = (step === 'ask' ? ask : restart)(at);
            answers.push([at + after, news]);
        }
        return steps;
    };";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_asked_for_then_restarted_and_only_then_made_anew() {
    let _machine = shared().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = browser.open(&server.url("/assets/icon.svg")).await.unwrap();
    let page = &page;
    let check = async |what: &str, world: &str, expected: Value| {
        let script = format!(
            "(async () => {{ const {{ Outage }} = await import('/player.js'); {WORLD} return live({world}) }})()"
        );
        assert_eq!(page.evaluate(&script).await.unwrap(), expected, "{what}");
    };
    check("a short gap", "{ until: 9000, heard: 2250 }", json!([])).await;
    check(
        "ICE comes back by itself",
        "{ until: 9000, heard: 5100, ice: { 4500: 'disconnected', 5100: 'connected' } }",
        json!([[2500, "ask"], [5000, "ask"]]),
    )
    .await;
    check(
        "a browser that knows that it is offline, and half a minute later is not",
        "{ until: 12000, heard: 8100, ice: { 5000: 'disconnected', 6000: 'failed' }, ask: (at) => (at < 7000 ? [0, 'unreachable'] : [50, 'there']) }",
        json!([[2500, "ask"], [3500, "ask"], [4500, "ask"], [5500, "ask"], [6500, "ask"], [7500, "ask"], [7750, "restart"]]),
    )
    .await;
    check(
        "the server answers, and its media does not come back",
        "{ until: 40000, ask: () => [50, 'there'] }",
        json!([[2500, "ask"], [4000, "restart"], [7250, "ask"], [8000, "restart"], [11250, "ask"], [11500, "anew"]]),
    )
    .await;
    check("the session is gone", "{ until: 9000, ask: () => [50, 'gone'] }", json!([[2500, "ask"], [2750, "anew"]]))
        .await;
    check(
        "a server that does not restart ICE",
        "{ until: 20000, ask: () => [50, 'there'], restart: () => [50, 'refused'] }",
        json!([[2500, "ask"], [4000, "restart"], [7250, "anew"]]),
    )
    .await;
    check(
        "a session without an address",
        "{ until: 9000, asks: false, ice: { 5000: 'disconnected' } }",
        json!([[5500, "anew"]]),
    )
    .await;
    check("silence alone says nothing there", "{ until: 9000, asks: false }", json!([])).await;
    let asked = "{ until: 70000 }";
    let script = format!(
        "(async () => {{ const {{ Outage }} = await import('/player.js'); {WORLD} return live({asked}).pop() }})()"
    );
    assert_eq!(page.evaluate(&script).await.unwrap(), json!([62500, "anew"]), "no server waits for ever");

    let answer = page
        .evaluate(
            r"(async () => { const { restartedAnswer } = await import('/player.js');
            const old = 'v=0\r\nm=video 9 A 1\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\na=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\nm=audio 9 A 2\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\n';
            const fragment = 'a=ice-ufrag:$&\r\na=ice-pwd:q\r\nm=video 9 A 0\r\na=candidate:2 1 udp 1 10.0.0.2 1 typ host\r\n';
            return [restartedAnswer(old, fragment), restartedAnswer(old, 'a=ice-ufrag:x\r\na=ice-pwd:q\r\n').includes('10.0.0.1'), restartedAnswer(old, '')] })()",
        )
        .await
        .unwrap();
    let renewed = "v=0\r\nm=video 9 A 1\r\na=ice-ufrag:$&\r\na=ice-pwd:q\r\na=candidate:2 1 udp 1 10.0.0.2 1 typ host\r\nm=audio 9 A 2\r\na=ice-ufrag:$&\r\na=ice-pwd:q\r\n";
    assert_eq!(answer, json!([renewed, true, null]));

    let pauses = page
        .evaluate(
            "(async () => { const { Backoff } = await import('/player.js');
            const pauses = (...most) => { const backoff = new Backoff(); return Array.from({ length: 7 }, () => backoff.next(1, null, ...most)) };
            return [pauses(1600), pauses()] })()",
        )
        .await
        .unwrap();
    let refused = json!([625, 1250, 2500, 5000, 10000, 12500, 12500]);
    assert_eq!(pauses, json!([[625, 1250, 2000, 2000, 2000, 2000, 2000], refused]));
    browser.close().await.unwrap();
}

async fn note_states(page: &Page) {
    let script = format!(
        "void (window.states = [], {PLAYER}.addEventListener('lightpipe-state', (e) => states.push(e.detail.state)))"
    );
    page.evaluate(&script).await.unwrap();
}

async fn wait_pictures_again(page: &Page) -> Duration {
    let began = Instant::now();
    page.evaluate("void (gaps.frames = 0)").await.unwrap();
    page.wait_until(&format!("gaps.frames > 10 && {PLAYER}.state.state === 'playing'"), PATIENCE).await.unwrap();
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_server_that_stands_still() {
    let _machine = quiet().await;
    let server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    note_gaps(&page).await;
    note_states(&page).await;
    let session = page.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap();
    let peers = server.peer_ids();
    server.signal(Signal::STOP);
    page.wait_until("states.includes('reconnecting')", PATIENCE).await.unwrap();
    // Longer than ICE calls a path connected.
    page.wait_until(&format!("{PLAYER}.peerConnection.iceConnectionState !== 'connected'"), PATIENCE).await.unwrap();
    server.signal(Signal::CONT);
    let took = wait_pictures_again(&page).await;
    println!("pictures again after {took:?}, {:.0} ms without", take_longest_gap(&page).await);
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(page.evaluate(&format!("{PLAYER}.sessionUrl")).await.unwrap(), session);
    assert_eq!(server.peer_ids(), peers);
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_back_soon_after_a_killed_server_is() {
    let _machine = quiet().await;
    let mut server = serve(&["pattern"]).start();
    let browser = chromium().await;
    let page = watch(&browser, &server, "pattern").await;
    note_gaps(&page).await;
    server.signal(Signal::KILL);
    server.wait_exit(PATIENCE);
    page.wait_until(&format!("{PLAYER}.state.state === 'reconnecting'"), PATIENCE).await.unwrap();
    let successor = serve(&["pattern"]).on_port(server.address().port()).start();
    let took = wait_pictures_again(&page).await;
    println!("pictures again after {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    successor.wait_peers(1, PATIENCE);
    browser.close().await.unwrap();
}
