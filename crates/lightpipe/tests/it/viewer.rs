//! A viewer without a browser: WHEP by hand, media by [`Receiver`] over a UDP socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lightpipe::{Server, Size};
use lightpipe_rtc::receiver::{Picture, Receiver};
use lightpipe_rtc::{Identity, Output, PeerEvent};

/// Nothing here takes seconds; a machine that is busy with other tests may.
const LIMIT: Duration = Duration::from_secs(30);

/// Pause between two pushed pictures: 30 a second.
const INTERVAL: Duration = Duration::from_millis(33);

pub(crate) struct Viewer {
    socket: UdpSocket,
    local: SocketAddr,
    receiver: Receiver,
    closed: bool,
}

impl Viewer {
    /// Joins a stream by WHEP.
    #[track_caller]
    pub(crate) fn join(server: &Server, stream: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let local = socket.local_addr().expect("bound");
        let (mut receiver, offer) = Receiver::offer(&Identity::generate(), local, Instant::now()).expect("an offer");
        receiver.accept_answer(&post(server.address(), &format!("/whep/{stream}"), &offer)).expect("a good answer");
        Self { socket, local, receiver, closed: false }
    }

    /// Receives `count` pictures, while `push` is called thirty times a second.
    #[track_caller]
    pub(crate) fn watch(&mut self, count: usize, mut push: impl FnMut()) -> Vec<Picture> {
        let started = Instant::now();
        let mut due = started;
        let mut pictures = Vec::new();
        while pictures.len() < count {
            assert!(
                started.elapsed() < LIMIT,
                "{} of {count} pictures: {:?}",
                pictures.len(),
                self.receiver.counters()
            );
            assert!(!self.closed, "the session ended");
            if Instant::now() >= due {
                push();
                due += INTERVAL;
            }
            self.turn();
            pictures.extend(std::iter::from_fn(|| self.receiver.take_picture()));
        }
        pictures
    }

    /// Says goodbye.
    pub(crate) fn leave(mut self) {
        self.receiver.close();
        let started = Instant::now();
        while !self.closed && started.elapsed() < Duration::from_millis(200) {
            self.turn();
        }
    }

    /// Waits for the server's goodbye.
    #[track_caller]
    pub(crate) fn wait_closed(mut self) {
        let started = Instant::now();
        while !self.closed {
            assert!(started.elapsed() < LIMIT, "nobody said goodbye");
            self.turn();
        }
    }

    /// Sends what is to be sent, then takes one datagram or a few milliseconds.
    fn turn(&mut self) {
        let wake_at = loop {
            match self.receiver.poll(Instant::now()) {
                // A server that is gone answers with an ICMP error; the session finds out by itself.
                Output::Send { to, payload, .. } => drop(self.socket.send_to(&payload, to)),
                Output::Event(event) => self.closed |= matches!(event, PeerEvent::Closed(_)),
                Output::WakeAt(at) => break at,
            }
        };
        let wait = wake_at.saturating_duration_since(Instant::now());
        let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(5));
        self.socket.set_read_timeout(Some(wait)).expect("not zero");
        let mut datagram = [0; 2000];
        if let Ok((len, from)) = self.socket.recv_from(&mut datagram) {
            // What is not for this session is not its business.
            drop(self.receiver.handle(Instant::now(), from, self.local, &datagram[..len]));
        }
        // After the end the engine takes no more time.
        drop(self.receiver.tick(Instant::now()));
    }
}

/// POSTs an offer; answers the answer.
#[track_caller]
fn post(to: SocketAddr, path: &str, offer: &str) -> String {
    let mut stream = TcpStream::connect(to).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("not zero");
    let length = offer.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/sdp\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{offer}"
    )
    .expect("the server reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("the server answers");
    let (head, body) = response.split_once("\r\n\r\n").expect("an HTTP response");
    assert!(head.starts_with("HTTP/1.1 201 "), "{response}");
    body.to_owned()
}

/// The last of the pictures as FFmpeg shows it: RGB, tightly packed.
#[track_caller]
pub(crate) fn decode(pictures: &[Picture], size: Size) -> Vec<u8> {
    let mut ffmpeg = Command::new("ffmpeg")
        .args([
            "-hide_banner",
            "-loglevel",
            "error",
            "-f",
            "h264",
            "-i",
            "-",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ffmpeg is installed");
    let mut input = ffmpeg.stdin.take().expect("piped");
    let bytes: Vec<u8> = pictures.iter().flat_map(|picture| picture.data.clone()).collect();
    // From another thread: neither side of the two pipes may wait for the other.
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = ffmpeg.wait_with_output().expect("ffmpeg ends");
    writer.join().expect("no panic").expect("ffmpeg reads to the end");
    assert!(output.status.success());
    let len = size.width as usize * size.height as usize * 3;
    assert!(
        !output.stdout.is_empty() && output.stdout.len().is_multiple_of(len),
        "{} bytes of pictures",
        output.stdout.len()
    );
    output.stdout[output.stdout.len() - len..].to_vec()
}
