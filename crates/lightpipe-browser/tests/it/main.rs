//! Both browsers, for real. A machine without one of them fails here with the name of the package to install.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what the browsers list")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lightpipe_browser::{Browser, BrowserError, Kind, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BLANK: &str = "data:text/html,<title>t</title><body style='margin:0;background:%23c00'>";

async fn launch(kind: Kind) -> Browser {
    Browser::launch(kind, Options::default()).await.unwrap()
}

/// Serves a page that counts how often it was loaded, on loopback, until the test ends.
async fn counting_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/page", listener.local_addr().unwrap());
    tokio::spawn(serve(listener));
    url
}

async fn serve(listener: TcpListener) {
    let loads = Arc::new(AtomicU32::new(0));
    // Browsers open connections that they do not use yet, so each is served by itself.
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, Arc::clone(&loads)));
    }
}

async fn answer(mut stream: TcpStream, loads: Arc<AtomicU32>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        request.push(byte);
    }
    let loads = loads.fetch_add(u32::from(request.starts_with(b"GET /page")), Ordering::SeqCst) + 1;
    let body = format!("<link rel=icon href=data:,><p id=loads>{loads}</p>");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nCache-Control: no-store\r\nConnection: close";
    let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    _ = stream.write_all(answer.as_bytes()).await;
}

async fn values_promises_and_exceptions(kind: Kind) {
    let browser = launch(kind).await;
    assert_eq!(browser.kind(), kind);
    assert!(browser.version().chars().any(|c| c.is_ascii_digit()), "{}", browser.version());
    let page = browser.open(BLANK).await.unwrap();

    for (expression, expected) in [
        ("1 + 1", json!(2)),
        ("'ä' + \"\\n\";", json!("ä\n")),
        ("({ a: [1, null, 'x'], b: undefined })", json!({ "a": [1, null, "x"] })),
        ("undefined", Value::Null),
        ("new Promise(r => setTimeout(() => r({ late: true }), 20))", json!({ "late": true })),
        ("document.title // a comment", json!("t")),
        ("(() => { const x = 3; return x * x })()", json!(9)),
        ("[innerWidth, innerHeight, devicePixelRatio]", json!([1280, 720, 1])),
        ("matchMedia('(prefers-color-scheme: dark)').matches", json!(false)),
    ] {
        assert_eq!(page.evaluate(expression).await.unwrap(), expected, "{kind}: {expression}");
    }
    for (expression, words) in [
        ("(function outer() { throw new Error('broken here') })()", ["broken here", "outer"]),
        ("Promise.reject(new TypeError('refused so'))", ["refused so", "TypeError"]),
        ("nonsense nonsense", ["SyntaxError", ""]),
        ("noSuchName", ["noSuchName", "ReferenceError"]),
    ] {
        let error = page.evaluate(expression).await.unwrap_err();
        let BrowserError::Script(message) = &error else { panic!("{kind}: {expression}: {error}") };
        assert!(words.iter().all(|word| message.contains(word)), "{kind}: {expression}: {message}");
    }
    browser.close().await.unwrap();
}

async fn waiting_ends_with_the_value_or_with_the_whole_story(kind: Kind) {
    let browser = launch(kind).await;
    let page = browser.open(BLANK).await.unwrap();

    page.evaluate("void setTimeout(() => { window.ready = { n: 7 } }, 100)").await.unwrap();
    let value = page.wait_until("window.ready", Duration::from_secs(5)).await.unwrap();
    assert_eq!(value, json!({ "n": 7 }), "{kind}");

    page.evaluate("(console.log('one', 2, true), console.warn('careful'), 0)").await.unwrap();
    page.evaluate("void setTimeout(() => { throw new Error('uncaught one') })").await.unwrap();
    let began = Instant::now();
    let error = page.wait_until("document.body.childElementCount - 0", Duration::from_millis(300)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3), "{kind}: {:?}", began.elapsed());
    let story = error.to_string();
    for part in
        ["document.body.childElementCount", "last value: 0", "[log] one 2 true", "[warning] careful", "uncaught one"]
    {
        assert!(story.contains(part), "{kind}: no {part:?} in {story}");
    }

    let error = page.wait_until("nobody.home", Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(error.contains("threw ReferenceError"), "{kind}: {error}");
    let error = page.wait_until("new Promise(() => {})", Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(error.contains("does not settle"), "{kind}: {error}");
    let error = page.wait_until("this is no JavaScript", Duration::from_secs(9)).await.unwrap_err();
    assert!(matches!(error, BrowserError::Script(_)), "{kind}: {error}");
    browser.close().await.unwrap();
}

async fn pages_load_reload_and_survive_their_own_navigation(kind: Kind) {
    let url = counting_server().await;
    let browser = launch(kind).await;
    let page = browser.open(&url).await.unwrap();
    let loads = "Number(document.querySelector('#loads').textContent)";
    assert_eq!(page.evaluate(loads).await.unwrap(), 1, "{kind}");
    page.reload().await.unwrap();
    assert_eq!(page.evaluate(loads).await.unwrap(), 2, "{kind}");
    page.navigate(&format!("{url}#part")).await.unwrap();
    assert_eq!(page.evaluate("location.hash").await.unwrap(), "#part", "{kind}");
    page.navigate(BLANK).await.unwrap();
    page.navigate(&url).await.unwrap();
    page.evaluate("void setTimeout(() => location.reload(), 100)").await.unwrap();
    assert_eq!(page.wait_until(&format!("{loads} === 4 && 'there'"), Duration::from_secs(10)).await.unwrap(), "there");

    // Nobody listens on the port of a listener that is gone.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = browser.open(&format!("http://{dead}/")).await.unwrap_err();
    assert!(matches!(error, BrowserError::Navigation { .. }), "{kind}: {error}");

    // Two windows: neither may fall asleep because the other is in front.
    let other = browser.open(BLANK).await.unwrap();
    let frames = "new Promise(r => { let n = 0; const f = () => ++n < 10 ? requestAnimationFrame(f) : r(n); f() })";
    for page in [&page, &other] {
        assert_eq!(page.evaluate(frames).await.unwrap(), 10, "{kind}");
        assert_eq!(page.evaluate("document.visibilityState").await.unwrap(), "visible", "{kind}");
    }
    other.close().await.unwrap();
    assert_eq!(page.evaluate("1").await.unwrap(), 1, "{kind}: one window's end is not the other's");
    browser.close().await.unwrap();
}

/// Width and height from the header chunk of a PNG.
fn png_size(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

async fn screenshots_have_the_size_of_the_viewport(kind: Kind) {
    let browser = Browser::launch(kind, Options::default().with_viewport(640, 360, true)).await.unwrap();
    let page = browser.open(BLANK).await.unwrap();
    assert_eq!(png_size(&page.screenshot().await.unwrap()), (640, 360), "{kind}");
    assert_eq!(page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches").await.unwrap(), true, "{kind}");
    page.set_viewport(390, 844, true).await.unwrap();
    assert_eq!(png_size(&page.screenshot().await.unwrap()), (390, 844), "{kind}");
    let light = page.set_viewport(400, 300, false).await;
    assert_eq!(png_size(&page.screenshot().await.unwrap()), (400, 300), "{kind}");
    match kind {
        Kind::Chromium => light.unwrap(),
        Kind::Firefox => assert!(matches!(light.unwrap_err(), BrowserError::Unsupported { .. })),
    }
    browser.close().await.unwrap();
}

async fn dropping_leaves_neither_process_nor_profile(kind: Kind) {
    let browser = launch(kind).await;
    let page = browser.open(BLANK).await.unwrap();
    let pid = browser.pid();
    let profile = profile_of(pid);
    drop(browser);
    if cfg!(target_os = "linux") {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{kind}: process {pid} is still there");
        assert!(!std::path::Path::new(&profile.unwrap()).exists(), "{kind}: the profile is still there");
    }
    let error = page.evaluate("1").await.unwrap_err();
    assert!(matches!(error, BrowserError::Disconnected), "{kind}: {error}");
}

/// The profile's folder from the command line of a process; Linux only.
fn profile_of(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = String::from_utf8_lossy(&line).into_owned();
    let args = args.split('\0').collect::<Vec<_>>();
    args.iter().find_map(|arg| arg.strip_prefix("--user-data-dir=").map(str::to_owned)).or_else(|| {
        let at = args.iter().position(|arg| *arg == "--profile")?;
        args.get(at + 1).map(|path| (*path).to_owned())
    })
}

macro_rules! in_both_browsers {
    ($($name:ident),* $(,)?) => {
        mod chromium {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Kind::Chromium).await;
            })*
        }
        mod firefox {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Kind::Firefox).await;
            })*
        }
    };
}

in_both_browsers!(
    values_promises_and_exceptions,
    waiting_ends_with_the_value_or_with_the_whole_story,
    pages_load_reload_and_survive_their_own_navigation,
    screenshots_have_the_size_of_the_viewport,
    dropping_leaves_neither_process_nor_profile,
);

/// Video codecs that a page may receive, without repetitions.
async fn receivable(browser: &Browser) -> Vec<String> {
    let page = browser.open(BLANK).await.unwrap();
    let script = "[...new Set(RTCRtpReceiver.getCapabilities('video').codecs.map(c => c.mimeType))]";
    let listed = page.evaluate(script).await.unwrap();
    let offer = page
        .evaluate(
            "(async () => { const pc = new RTCPeerConnection(); pc.addTransceiver('video', { direction: 'recvonly' });
             const { sdp } = await pc.createOffer(); pc.close(); return / H264\\/90000/.test(sdp) })()",
        )
        .await
        .unwrap();
    let mut codecs: Vec<String> = serde_json::from_value(listed).unwrap();
    if offer == true {
        codecs.push("offered H264".to_owned());
    }
    println!("{}: {codecs:?}", browser.version());
    codecs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_offers_to_receive_h264() {
    let browser = launch(Kind::Chromium).await;
    let codecs = receivable(&browser).await;
    assert!(codecs.iter().any(|codec| codec == "offered H264"), "{codecs:?}");
    browser.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_offers_to_receive_h264_through_the_system_ffmpeg() {
    let plain = launch(Kind::Firefox).await;
    let codecs = receivable(&plain).await;
    assert!(codecs.iter().any(|codec| codec == "video/VP8"), "{codecs:?}");
    plain.close().await.unwrap();

    let options = Options::default().with_firefox_system_h264(true);
    let browser = Browser::launch(Kind::Firefox, options).await.unwrap();
    let codecs = receivable(&browser).await;
    assert!(codecs.iter().any(|codec| codec == "offered H264"), "{codecs:?}");
    browser.close().await.unwrap();
}

/// Chromium sends its fake camera as H.264, Firefox shows it: the offer alone would not prove that it decodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_decodes_h264_from_chromium() {
    let url = counting_server().await;
    let options = Options::default().with_fake_media_devices(true).with_firefox_system_h264(true);
    let chromium = Browser::launch(Kind::Chromium, options.clone()).await.unwrap();
    let firefox = Browser::launch(Kind::Firefox, options).await.unwrap();
    let sender = chromium.open(&url).await.unwrap();
    let viewer = firefox.open(&url).await.unwrap();
    let offer = sender
        .evaluate(
            "(async () => {
               const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 240 } });
               window.pc = new RTCPeerConnection();
               const sending = pc.addTransceiver(stream.getVideoTracks()[0], { direction: 'sendonly' });
               const { codecs } = RTCRtpSender.getCapabilities('video');
               sending.setCodecPreferences(codecs.filter(c => c.mimeType === 'video/H264'));
               await pc.setLocalDescription();
               while (pc.iceGatheringState !== 'complete') await new Promise(r => setTimeout(r, 10));
               return pc.localDescription.sdp })()",
        )
        .await
        .unwrap();
    let answer = viewer
        .evaluate(&format!(
            "(async () => {{
               const video = document.body.appendChild(document.createElement('video'));
               video.muted = true;
               window.pc = new RTCPeerConnection();
               pc.ontrack = event => {{ video.srcObject = new MediaStream([event.track]); video.play(); }};
               await pc.setRemoteDescription({{ type: 'offer', sdp: {offer} }});
               await pc.setLocalDescription();
               while (pc.iceGatheringState !== 'complete') await new Promise(r => setTimeout(r, 10));
               return pc.localDescription.sdp }})()"
        ))
        .await
        .unwrap();
    let accept = format!("pc.setRemoteDescription({{ type: 'answer', sdp: {answer} }})");
    sender.evaluate(&accept).await.unwrap();
    let decoded =
        "(async () => [...(await pc.getStats()).values()].find(s => s.type === 'inbound-rtp')?.framesDecoded > 10)()";
    viewer.wait_until(decoded, Duration::from_secs(15)).await.unwrap();
    assert_eq!(viewer.evaluate("document.querySelector('video').videoWidth").await.unwrap(), 320);
}

/// The laboratory of namespaces takes a whole runtime with browser: its control connection is on the loopback interface
/// of the namespace, only the page's traffic goes through the bad network.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "nightly: needs root and namespaces"]
fn a_browser_runs_behind_a_bad_network() {
    use lightpipe_testkit::netlab::{Lab, LinkConfig, SERVER_ADDR};

    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let link = LinkConfig::default().with_delay_millis(30);
    let lab = Lab::new(link.clone(), link).unwrap();
    let (_serving, port) = lab
        .in_server(|| {
            let runtime = runtime();
            let listener = runtime.block_on(TcpListener::bind((SERVER_ADDR, 0))).unwrap();
            let port = listener.local_addr().unwrap().port();
            runtime.spawn(serve(listener));
            (runtime, port)
        })
        .unwrap();
    for kind in Kind::ALL {
        let millis = lab
            .in_client(|| {
                runtime().block_on(async {
                    let browser = launch(kind).await;
                    let page = browser.open(&format!("http://{SERVER_ADDR}:{port}/page")).await.unwrap();
                    let script = "(async () => { const t = performance.now(); await (await fetch('/page')).text();
                        return performance.now() - t })()";
                    let millis = page.evaluate(script).await.unwrap().as_f64().unwrap();
                    let began = Instant::now();
                    page.evaluate("1").await.unwrap();
                    assert!(began.elapsed() < Duration::from_millis(50), "the control connection is slow as well");
                    browser.close().await.unwrap();
                    millis
                })
            })
            .unwrap();
        println!("{kind}: a request takes {millis} ms, {:?}", lab.counters());
        // A fresh connection costs one round trip, the request another; browsers often open the connection early.
        assert!((59.0..200.0).contains(&millis), "{kind}: {millis} ms");
    }
}

#[tokio::test]
async fn an_executable_that_is_no_browser_is_quoted_in_the_error() {
    let missing = Options::default().with_executable("/nonexistent/browser");
    let error = Browser::launch(Kind::Chromium, missing).await.unwrap_err();
    assert!(matches!(error, BrowserError::Spawn { .. }), "{error}");
    if cfg!(unix) {
        // `ls` refuses our flags on its standard error, and ends.
        let error = Browser::launch(Kind::Chromium, Options::default().with_executable("/bin/ls")).await.unwrap_err();
        assert!(error.to_string().contains("headless"), "{error}");
    }
}
