//! A viewer without a browser: real ICE, DTLS and SRTP on a thread of its own.

use std::collections::VecDeque;
use std::io::Write;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_media::{Size, h264};
use lightpipe_rtc::receiver::Receiver;
use lightpipe_rtc::{DisconnectCause, Identity, Output, PeerEvent};

use super::http::Answer;
use super::{PATIENCE, Server, until};

/// Bytes of pictures kept for decoding; a keyframe starts over.
const KEPT: usize = 8 << 20;

/// What the thread saw.
#[derive(Default)]
struct Seen {
    connected: bool,
    closed: Option<DisconnectCause>,
    pictures: u64,
    /// RTP timestamp and arrival of the last pictures.
    recent: VecDeque<(u32, Instant)>,
    longest_gap: Duration,
    /// Everything since the last keyframe.
    group: Vec<u8>,
    order: Option<Order>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Vanish,
    Close,
}

/// An offer that was answered, and has not been acted upon: no check, no handshake yet.
pub(crate) struct Posted {
    receiver: Receiver,
    socket: UdpSocket,
    pub(crate) answer: Answer,
}

/// A connected viewer. Dropping it vanishes: the server hears nothing more.
pub(crate) struct Viewer {
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
    /// Path of the WHEP session.
    pub(crate) session: String,
    pub(crate) etag: String,
}

impl Viewer {
    /// A WHEP session up to the answer.
    #[track_caller]
    pub(crate) fn post(server: &Server, stream: &str) -> Posted {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (receiver, offer) = Receiver::offer(&Identity::generate(), address, Instant::now()).unwrap();
        let answer = server.post_offer(stream, &offer);
        assert_eq!(answer.status, 201, "{answer:?}");
        Posted { receiver, socket, answer }
    }

    /// Joins and waits for the connection.
    #[track_caller]
    pub(crate) fn join(server: &Server, stream: &str) -> Self {
        let viewer = Self::post(server, stream).connect();
        until("a connected viewer", PATIENCE, || viewer.seen().connected.then_some(()));
        viewer
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Whole decodable pictures so far.
    pub(crate) fn pictures(&self) -> u64 {
        self.seen().pictures
    }

    /// Waits for so many more pictures; answers how long that took.
    #[track_caller]
    pub(crate) fn wait_pictures(&self, more: u64, longest: Duration) -> Duration {
        let (began, target) = (Instant::now(), self.pictures() + more);
        until(&format!("{more} more pictures"), longest, || (self.pictures() >= target).then_some(()));
        began.elapsed()
    }

    /// RTP timestamp and arrival of the last pictures, oldest first; the last 600.
    pub(crate) fn recent(&self) -> Vec<(u32, Instant)> {
        self.seen().recent.iter().copied().collect()
    }

    /// Longest time between two pictures since the last call.
    pub(crate) fn take_longest_gap(&self) -> Duration {
        let mut seen = self.seen();
        let waiting = seen.recent.back().map_or(Duration::ZERO, |(_, at)| at.elapsed());
        std::mem::take(&mut seen.longest_gap).max(waiting)
    }

    pub(crate) fn closed(&self) -> Option<DisconnectCause> {
        self.seen().closed
    }

    /// Size of the picture.
    pub(crate) fn size(&self) -> Option<Size> {
        h264::size_of(&self.seen().group)
    }

    /// The last picture, decoded by FFmpeg: tightly packed RGB.
    #[track_caller]
    pub(crate) fn decode(&self) -> (Size, Vec<u8>) {
        let (size, group) = (self.size().unwrap(), self.seen().group.clone());
        let mut child = Command::new("ffmpeg")
            .args(["-v", "error", "-f", "h264", "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("FFmpeg");
        let mut stdin = child.stdin.take().unwrap();
        let feeding = std::thread::spawn(move || stdin.write_all(&group));
        let rgb = child.wait_with_output().unwrap().stdout;
        feeding.join().unwrap().unwrap();
        let len = size.width as usize * size.height as usize * 3;
        assert!(rgb.len() >= len, "{} bytes of {size}", rgb.len());
        (size, rgb[rgb.len() - len..].to_vec())
    }

    /// Says goodbye on the media connection.
    pub(crate) fn close(mut self) {
        self.end(Order::Close);
    }

    fn end(&mut self, order: Order) {
        self.seen().order.get_or_insert(order);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.end(Order::Vanish);
    }
}

impl Posted {
    /// Takes the answer and starts.
    #[track_caller]
    pub(crate) fn connect(self) -> Viewer {
        let Self { mut receiver, socket, answer } = self;
        receiver.accept_answer(&answer.body).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let thread = std::thread::spawn({
            let seen = Arc::clone(&seen);
            move || drive(receiver, &socket, &seen)
        });
        let (session, etag) = (answer.header("location").to_owned(), answer.header("etag").to_owned());
        Viewer { seen, thread: Some(thread), session, etag }
    }
}

fn drive(mut receiver: Receiver, socket: &UdpSocket, seen: &Mutex<Seen>) {
    let here = socket.local_addr().unwrap();
    let mut buf = [0; 2048];
    loop {
        match seen.lock().unwrap().order.take() {
            Some(Order::Vanish) => return,
            Some(Order::Close) => receiver.close(),
            None => {}
        }
        let wake_at = loop {
            match receiver.poll(Instant::now()) {
                // A lost datagram is no error.
                Output::Send { to, payload, .. } => _ = socket.send_to(&payload, to),
                Output::Event(PeerEvent::Connected) => seen.lock().unwrap().connected = true,
                Output::Event(PeerEvent::Closed(cause)) => {
                    seen.lock().unwrap().closed = Some(cause);
                    return;
                }
                Output::Event(_) => {}
                Output::WakeAt(at) => break at,
            }
        };
        while let Some(picture) = receiver.take_picture() {
            let mut seen = seen.lock().unwrap();
            seen.pictures += 1;
            if let Some((_, before)) = seen.recent.back().copied() {
                seen.longest_gap = seen.longest_gap.max(picture.completed - before);
            }
            seen.recent.push_back((picture.rtp_timestamp, picture.completed));
            if seen.recent.len() > 600 {
                seen.recent.pop_front();
            }
            if picture.keyframe || seen.group.len() > KEPT {
                seen.group.clear();
            }
            seen.group.extend_from_slice(&picture.data);
        }
        let wait = wake_at.saturating_duration_since(Instant::now());
        let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(20));
        socket.set_read_timeout(Some(wait)).unwrap();
        match socket.recv_from(&mut buf) {
            // What is not ours, or broken, disturbs nothing.
            Ok((len, from)) => _ = receiver.handle(Instant::now(), from, here, &buf[..len]),
            Err(_) => _ = receiver.tick(Instant::now()),
        }
    }
}
