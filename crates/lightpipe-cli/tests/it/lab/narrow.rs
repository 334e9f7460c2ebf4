//! A narrow place between a server and viewers on this machine, without namespaces: a relay for datagrams.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lightpipe_testkit::netlab::{Link, LinkConfig, Packet, QueueLimit};

/// How often the relay looks.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// IPv4 and UDP headers.
const HEADERS: usize = 28;

/// Whoever sends to its port reaches the server, and what the server answers goes through a link of some rate with a queue of 300 ms. Viewers
/// must know this port in place of the server's. Dropping it ends it.
pub(crate) struct Narrow {
    port: u16,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    link: Link<Datagram>,
    ended: bool,
}

/// On its way to a viewer.
struct Datagram {
    to: SocketAddr,
    payload: Vec<u8>,
}

impl Packet for Datagram {
    fn wire_len(&self) -> usize {
        self.payload.len() + HEADERS
    }

    fn duplicate(&self) -> Option<Self> {
        None
    }
}

fn link(rate_bps: u64) -> LinkConfig {
    LinkConfig::default().with_rate_bps(rate_bps).with_queue(QueueLimit::Time(Duration::from_millis(300)))
}

impl Narrow {
    /// In front of a server.
    pub(crate) fn before(server: SocketAddr, rate_bps: u64) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_nonblocking(true).unwrap();
        let port = front.local_addr().unwrap().port();
        let shared = Arc::new(Mutex::new(Shared { link: Link::new(1, link(rate_bps)), ended: false }));
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || relay(server, &front, &shared)
        });
        Self { port, shared, thread: Some(thread) }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// From now on it carries so much.
    pub(crate) fn carry(&self, rate_bps: u64) {
        self.shared.lock().unwrap().link.reconfigure(Instant::now(), link(rate_bps));
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        // A relay that panicked says so itself.
        if let Ok(mut shared) = self.shared.lock() {
            shared.ended = true;
        }
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn relay(server: SocketAddr, front: &UdpSocket, shared: &Mutex<Shared>) {
    // A socket for each viewer's address, by which the server tells them apart.
    let mut backs: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut buf = [0; 2048];
    loop {
        while let Ok((len, from)) = front.recv_from(&mut buf) {
            let back = backs.entry(from).or_insert_with(|| {
                let back = UdpSocket::bind("127.0.0.1:0").unwrap();
                back.connect(server).unwrap();
                back.set_nonblocking(true).unwrap();
                back
            });
            // A lost datagram is no error.
            _ = back.send(&buf[..len]);
        }
        {
            let (now, mut shared) = (Instant::now(), shared.lock().unwrap());
            if shared.ended {
                return;
            }
            for (viewer, back) in &backs {
                while let Ok(len) = back.recv(&mut buf) {
                    _ = shared.link.send(now, Datagram { to: *viewer, payload: buf[..len].to_vec() });
                }
            }
            while let Some(Datagram { to, payload }) = shared.link.poll(now) {
                _ = front.send_to(&payload, to);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
