//! The facade as an embedder sees it: pictures pushed here come out of a native viewer, over real HTTP, ICE, DTLS and SRTP.

mod readme;
#[cfg(target_os = "linux")]
mod record;
mod simulcast;
mod sound;
mod viewer;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lightpipe::{Config, PixelFormat, Server, ServerError, Size};

use self::viewer::{Viewer, decode};

const SIZE: Size = Size::new(320, 180);

/// One colour per quarter: top left, top right, bottom left, bottom right. No two channels are alike, so that swapped
/// channels, planes or halves show.
const QUARTERS: [[u8; 3]; 4] = [[200, 60, 30], [40, 170, 90], [50, 80, 210], [190, 180, 60]];

fn server() -> Server {
    let mut config = Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    Server::start(config).expect("a free port on the loopback interface")
}

fn quarter(x: usize, y: usize) -> [u8; 3] {
    let (right, low) = (x >= SIZE.width as usize / 2, y >= SIZE.height as usize / 2);
    QUARTERS[usize::from(low) * 2 + usize::from(right)]
}

/// BT.709, limited range: what [`PixelFormat`] says of its YUV formats.
fn yuv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = [r, g, b].map(|level| f64::from(level) / 255.0);
    let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let (u, v) = ((b - y) / 1.8556, (r - y) / 1.5748);
    [16.0 + 219.0 * y, 128.0 + 224.0 * u, 128.0 + 224.0 * v].map(|level| level.round() as u8)
}

/// The four quarters in `format`, tightly packed.
fn picture(format: PixelFormat) -> Vec<u8> {
    let (width, height) = (SIZE.width as usize, SIZE.height as usize);
    let all = |each: &dyn Fn([u8; 3]) -> Vec<u8>| -> Vec<u8> {
        (0..width * height).flat_map(|n| each(quarter(n % width, n / width))).collect()
    };
    let chroma = |each: &dyn Fn([u8; 3]) -> Vec<u8>| -> Vec<u8> {
        (0..width / 2 * (height / 2)).flat_map(|n| each(quarter(n % (width / 2) * 2, n / (width / 2) * 2))).collect()
    };
    let luma = || all(&|colour| vec![yuv(colour)[0]]);
    match format {
        PixelFormat::Rgba => all(&|[r, g, b]| vec![r, g, b, 255]),
        PixelFormat::Bgra => all(&|[r, g, b]| vec![b, g, r, 255]),
        PixelFormat::Nv12 => [luma(), chroma(&|colour| yuv(colour)[1..].to_vec())].concat(),
        PixelFormat::I420 => {
            [luma(), chroma(&|colour| vec![yuv(colour)[1]]), chroma(&|colour| vec![yuv(colour)[2]])].concat()
        }
        other => panic!("{other:?} is new here"),
    }
}

/// Pushes pictures in `format`, watches them as a viewer does, and compares the colours in the middle of each quarter.
#[track_caller]
fn check(server: &Server, format: PixelFormat) {
    let name = format!("{format:?}");
    let sender = server.frames(&name, SIZE, 30.0).expect("a new stream");
    let pixels = picture(format);
    assert_eq!(pixels.len(), format.packed_len(SIZE));
    let mut viewer = Viewer::join(server, &name);
    let received = viewer.watch(8, || sender.push(format, &pixels).expect("the length is right"));
    viewer.leave();
    assert!(received[0].keyframe, "{name}: the first picture decodes without any other");

    let shown = decode(&received, SIZE);
    let (width, height) = (SIZE.width as usize, SIZE.height as usize);
    for (x, y) in [(1, 1), (3, 1), (1, 3), (3, 3)].map(|(x, y)| (width * x / 4, height * y / 4)) {
        let at = (y * width + x) * 3;
        let (got, expected) = (&shown[at..at + 3], quarter(x, y));
        let off = got.iter().zip(expected).map(|(got, expected)| got.abs_diff(expected)).max();
        assert!(off <= Some(12), "{name} at {x},{y}: {got:?} in place of {expected:?}");
    }
}

#[test]
fn pictures_arrive_in_their_colours_from_every_format() {
    let server = server();
    for format in [PixelFormat::Rgba, PixelFormat::Bgra, PixelFormat::Nv12, PixelFormat::I420] {
        check(&server, format);
    }
}

#[test]
fn a_short_buffer_is_refused_with_both_lengths_and_the_next_picture_is_taken() {
    let server = server();
    let sender = server.frames("scene", SIZE, 30.0).expect("a new stream");
    let whole = picture(PixelFormat::Nv12);
    let refused = sender.push(PixelFormat::Nv12, &whole[1..]).expect_err("a byte is missing");
    assert_eq!(refused.to_string(), "a 320x180 Nv12 picture needs 86400 bytes, the buffer has 86399");
    let refused = sender.push(PixelFormat::Rgba, &whole).expect_err("NV12 is shorter than RGBA");
    assert_eq!(refused.to_string(), "a 320x180 Rgba picture needs 230400 bytes, the buffer has 86400");
    assert!(sender.push(PixelFormat::Nv12, &[]).is_err());
    sender.push(PixelFormat::Nv12, &whole).expect("errors leave nothing behind");
}

#[test]
fn a_dropped_sender_ends_its_stream_and_nothing_else() {
    let server = server();
    let sender = server.frames("scene", SIZE, 30.0).expect("a new stream");
    let other = server.frames("other", SIZE, 30.0).expect("a new stream");
    let pixels = picture(PixelFormat::Rgba);
    let mut viewer = Viewer::join(&server, "scene");
    viewer.watch(2, || sender.push(PixelFormat::Rgba, &pixels).expect("the length is right"));
    assert!(sender.is_watched());
    viewer.leave();

    let stream = server.streams().find("scene").expect("the stream is there");
    drop(sender);
    assert_eq!(server.streams().names(), ["other"], "the name is free again");
    // What is left: `stream` itself. The encode thread held one, the sender one, the list of streams one.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Arc::strong_count(&stream) > 1 {
        assert!(Instant::now() < deadline, "{} hold the stream", Arc::strong_count(&stream));
        std::thread::sleep(Duration::from_millis(5));
    }
    let again = server.frames("scene", SIZE, 30.0).expect("a new stream of the old name");
    let mut viewer = Viewer::join(&server, "scene");
    viewer.watch(2, || again.push(PixelFormat::Rgba, &pixels).expect("the length is right"));
    viewer.leave();
    let mut viewer = Viewer::join(&server, "other");
    viewer.watch(2, || other.push(PixelFormat::Rgba, &pixels).expect("the length is right"));
    viewer.leave();
}

#[test]
fn bad_names_rates_and_second_streams_of_a_name_are_refused() {
    let server = server();
    let _scene = server.frames("scene", SIZE, 30.0).expect("a new stream");
    assert!(matches!(server.frames("scene", SIZE, 30.0), Err(ServerError::NameTaken(_))));
    assert!(matches!(server.frames("no/slash", SIZE, 30.0), Err(ServerError::Name(_))));
    assert!(matches!(server.frames("fast", SIZE, 0.0), Err(ServerError::Config(_))));
    assert_eq!(server.streams().names(), ["scene"]);
}

#[test]
fn a_dropped_server_tells_its_viewer_and_frees_its_port() {
    let server = server();
    let address = server.address();
    assert_eq!(server.url(), format!("http://{address}"));
    let sender = server.frames("scene", SIZE, 30.0).expect("a new stream");
    let pixels = picture(PixelFormat::Bgra);
    let mut viewer = Viewer::join(&server, "scene");
    viewer.watch(1, || sender.push(PixelFormat::Bgra, &pixels).expect("the length is right"));

    let taken = Config {
        server: lightpipe::config::ServerConfig { host: address.ip(), port: address.port(), ..Default::default() },
        ..Config::default()
    };
    assert!(matches!(Server::start(taken.clone()), Err(ServerError::Listen { transport: "TCP", .. })));

    drop(server);
    viewer.wait_closed();
    free(address);
    drop(Server::start(taken).expect("the port is free"));
    sender.push(PixelFormat::Bgra, &pixels).expect("a sender outlives its server; its pictures go nowhere");
}

#[track_caller]
fn free(address: SocketAddr) {
    TcpListener::bind(address).expect("the TCP port is free");
    UdpSocket::bind(address).expect("the UDP port is free");
}
