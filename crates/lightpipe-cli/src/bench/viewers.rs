//! Native viewers in a process of their own: real ICE, DTLS and SRTP, pictures put together, losses counted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lightpipe_rtc::receiver::Receiver;
use lightpipe_rtc::{Identity, Output, PeerEvent};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use crate::cli::ViewersFlags;
use crate::output;

/// All viewers must be connected by then.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Viewers that shake hands at a time: more would measure handshakes against each other.
const HANDSHAKES: usize = 8;

/// What the viewers counted, from the first picture of each on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) viewers: usize,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Pictures of the viewer that got fewest.
    pub(crate) fewest_pictures: u64,
    pub(crate) pictures: u64,
    pub(crate) lost_packets: u64,
    pub(crate) undecodable: u64,
    pub(crate) disconnected: usize,
}

struct Viewer {
    receiver: Receiver,
    socket: UdpSocket,
    address: SocketAddr,
    wake_at: Instant,
    gone: bool,
}

/// Connects, prints `ready`, receives for the given time, prints what was counted as JSON.
pub(crate) fn run(flags: &ViewersFlags) -> anyhow::Result<ExitCode> {
    let server = flags.url.strip_prefix("http://").context("the URL must begin with http://")?.trim_end_matches('/');
    let identity = Identity::generate();
    let mut poll = Poll::new()?;
    let mut viewers: Vec<Viewer> = Vec::new();
    let mut events = Events::with_capacity(256);
    let deadline = Instant::now() + CONNECT_LIMIT;
    while viewers.len() < flags.count || !viewers.iter().all(|v| v.receiver.is_connected()) {
        if Instant::now() > deadline {
            let connected = viewers.iter().filter(|v| v.receiver.is_connected()).count();
            bail!("only {connected} of {} viewers connected within {CONNECT_LIMIT:?}", flags.count);
        }
        let pending = viewers.iter().filter(|v| !v.receiver.is_connected()).count();
        if viewers.len() < flags.count && pending < HANDSHAKES {
            let viewer = connect(server, &flags.stream, &identity, &mut poll, viewers.len())?;
            viewers.push(viewer);
        }
        turn(&mut poll, &mut events, &mut viewers)?;
    }
    output::line("ready");
    std::io::stdout().flush()?;
    // The server measures in the middle of this time; the ends are slack.
    let until = Instant::now() + Duration::from_secs(flags.seconds);
    while Instant::now() < until {
        turn(&mut poll, &mut events, &mut viewers)?;
    }
    let mut counted = Counted { viewers: viewers.len(), fewest_pictures: u64::MAX, ..Counted::default() };
    for viewer in &viewers {
        let c = viewer.receiver.counters();
        counted.packets += c.packets;
        counted.bytes += c.bytes;
        counted.pictures += c.pictures;
        counted.fewest_pictures = counted.fewest_pictures.min(c.pictures);
        counted.lost_packets += c.lost_packets;
        counted.undecodable += c.undecodable;
        counted.disconnected += usize::from(viewer.gone);
    }
    output::line(serde_json::to_string(&counted)?);
    Ok(ExitCode::SUCCESS)
}

fn connect(server: &str, stream: &str, identity: &Identity, poll: &mut Poll, index: usize) -> anyhow::Result<Viewer> {
    let now = Instant::now();
    let std_socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // A second of a 2.5 Mbit/s stream; the kernel may give less.
    let _ = socket2::SockRef::from(&std_socket).set_recv_buffer_size(512 << 10);
    std_socket.set_nonblocking(true)?;
    let address = std_socket.local_addr()?;
    let mut socket = UdpSocket::from_std(std_socket);
    poll.registry().register(&mut socket, Token(index), Interest::READABLE)?;
    let (mut receiver, offer) = Receiver::offer(identity, address, now)?;
    let answer = post_offer(server, stream, &offer)?;
    receiver.accept_answer(&answer)?;
    let mut viewer = Viewer { receiver, socket, address, wake_at: now, gone: false };
    drain(&mut viewer, now);
    Ok(viewer)
}

/// `POST /whep/{stream}` over one HTTP/1.1 connection.
fn post_offer(server: &str, stream: &str, offer: &str) -> anyhow::Result<String> {
    let mut tcp = TcpStream::connect(server).with_context(|| format!("cannot reach {server}"))?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        tcp,
        "POST /whep/{stream} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{offer}",
        offer.len()
    )?;
    let mut response = String::new();
    tcp.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("the server's answer is no HTTP")?;
    if !head.starts_with("HTTP/1.1 201") {
        bail!("the server refused a viewer: {} {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// One round: wait for datagrams or the next wake-up, serve every viewer concerned.
fn turn(poll: &mut Poll, events: &mut Events, viewers: &mut [Viewer]) -> anyhow::Result<()> {
    let now = Instant::now();
    let next = viewers.iter().map(|v| v.wake_at).min().unwrap_or(now);
    let timeout = next.saturating_duration_since(now).min(Duration::from_millis(20));
    poll.poll(events, Some(timeout))?;
    let mut buffer = [0u8; 2048];
    for event in events.iter() {
        let Some(viewer) = viewers.get_mut(event.token().0) else { continue };
        while let Ok((len, from)) = viewer.socket.recv_from(&mut buffer) {
            let now = Instant::now();
            let _ = viewer.receiver.handle(now, from, viewer.address, &buffer[..len]);
            drain(viewer, now);
        }
    }
    let now = Instant::now();
    for viewer in viewers.iter_mut().filter(|v| v.wake_at <= now) {
        let _ = viewer.receiver.tick(now);
        drain(viewer, now);
    }
    Ok(())
}

fn drain(viewer: &mut Viewer, now: Instant) {
    loop {
        match viewer.receiver.poll(now) {
            Output::Send { to, payload, .. } => _ = viewer.socket.send_to(&payload, to), // a lost datagram is no error
            Output::Event(PeerEvent::Closed(_)) => viewer.gone = true,
            Output::Event(_) => {}
            Output::WakeAt(at) => {
                viewer.wake_at = at;
                break;
            }
        }
    }
    while viewer.receiver.take_picture().is_some() {}
}
