//! The UDP socket of a media thread: runs of equal datagrams leave in one call (UDP GSO), arrive in one (GRO).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use lightpipe_rtc::{Output, PeerEvent, demux};
use mio::net::UdpSocket;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use super::routes::Registration;

/// Socket buffers asked of the kernel: a second of fifty 2.5 Mbit/s viewers. The kernel may give less.
const BUFFER_BYTES: usize = 8 << 20;

/// Messages per receive call, each up to 64 segments.
const RECEIVE_BATCH: usize = 4;

/// Longest run that the kernel takes in one call.
const MAX_RUN_BYTES: usize = 60_000;

/// A bound, non-blocking UDP socket.
pub(crate) struct MediaSocket {
    pub(crate) socket: UdpSocket,
    state: UdpSocketState,
    port: u16,
    local_ip: IpAddr,
    receive_buffer: Vec<u8>,
    segment_room: usize,
}

impl MediaSocket {
    /// Binds `address`; several sockets may share it when `shared` (SO_REUSEPORT).
    pub(crate) fn bind(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        #[cfg(unix)]
        if shared {
            socket.set_reuse_port(true)?;
        }
        #[cfg(not(unix))]
        let _ = shared;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from_std(socket.into());
        let state = UdpSocketState::new((&socket).into())?;
        // Refused sizes are no failure: the default buffers work, with less headroom.
        let _ = state.set_send_buffer_size((&socket).into(), BUFFER_BYTES);
        let _ = state.set_recv_buffer_size((&socket).into(), BUFFER_BYTES);
        let local = socket.local_addr()?;
        let segment_room = 1500 * state.gro_segments().max(1);
        Ok(Self {
            socket,
            state,
            port: local.port(),
            local_ip: local.ip(),
            receive_buffer: vec![0; segment_room * RECEIVE_BATCH],
            segment_room,
        })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Receives what is there, one call's worth. `each` gets (source, our address, datagram). Returns how many messages came;
    /// 0 when the socket is drained.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(SocketAddr, SocketAddr, &[u8])) -> io::Result<usize> {
        let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
        let received = {
            let mut chunks = self.receive_buffer.chunks_mut(self.segment_room);
            let mut slices: [IoSliceMut<'_>; RECEIVE_BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            match self.state.recv((&self.socket).into(), &mut slices, &mut metas) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error),
            }
        };
        for (meta, buffer) in metas.iter().zip(self.receive_buffer.chunks(self.segment_room)).take(received) {
            let to = SocketAddr::new(meta.dst_ip.unwrap_or(self.local_ip), self.port);
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                each(meta.addr, to, datagram);
            }
        }
        Ok(received)
    }
}

/// Collects datagrams and sends each run (same route, same length; the last may be shorter) by one call.
#[derive(Default)]
pub(crate) struct SendRun {
    bytes: Vec<u8>,
    segment_len: usize,
    segments: usize,
    route: Option<(SocketAddr, SocketAddr)>,
    pub(crate) counters: SendCounters,
}

/// What went to the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SendCounters {
    pub(crate) calls: u64,
    pub(crate) datagrams: u64,
    /// Datagrams that the kernel did not take: its buffer was full, or the route is gone. Retransmission repairs it.
    pub(crate) refused: u64,
}

impl SendRun {
    /// Takes all that a session has to say now: datagrams, and what happened to it. Answers when it wants to be asked again, never in the
    /// past by more than now, or the loop would spin on a session that is behind.
    pub(crate) fn drain(
        &mut self,
        now: Instant,
        socket: &MediaSocket,
        registration: &mut Registration,
        happened: &mut Vec<PeerEvent>,
        mut poll: impl FnMut(Instant) -> Output,
    ) -> Instant {
        loop {
            match poll(now) {
                Output::Send { from, to, payload } => {
                    if demux::is_stun(&payload) {
                        registration.add_check(to);
                    }
                    self.push(socket, from, to, &payload);
                }
                Output::Event(event) => happened.push(event),
                Output::WakeAt(at) => return at.max(now),
            }
        }
    }

    /// Adds a datagram, sending the run before it when it does not fit.
    pub(crate) fn push(&mut self, socket: &MediaSocket, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let fits = self.route == Some((from, to))
            && datagram.len() <= self.segment_len
            // Only the last segment of a run may be shorter.
            && self.bytes.len() == self.segment_len * self.segments
            && self.segments < socket.state.max_gso_segments()
            && self.bytes.len() + datagram.len() <= MAX_RUN_BYTES;
        if !fits {
            self.flush(socket);
            self.route = Some((from, to));
            self.segment_len = datagram.len();
        }
        self.bytes.extend_from_slice(datagram);
        self.segments += 1;
    }

    /// Sends what is collected.
    pub(crate) fn flush(&mut self, socket: &MediaSocket) {
        let Some((from, to)) = self.route.take() else { return };
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: &self.bytes,
            segment_size: (self.segments > 1).then_some(self.segment_len),
            src_ip: (!from.ip().is_unspecified()).then(|| from.ip()),
        };
        self.counters.calls += 1;
        self.counters.datagrams += self.segments as u64;
        if socket.state.try_send((&socket.socket).into(), &transmit).is_err() {
            self.counters.refused += self.segments as u64;
        }
        self.bytes.clear();
        self.segments = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_arrive_as_the_datagrams_that_were_pushed() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let sender = MediaSocket::bind(loopback, false).expect("binds");
        let mut receiver = MediaSocket::bind(loopback, false).expect("binds");
        let from = SocketAddr::from(([127, 0, 0, 1], sender.port()));
        let to = SocketAddr::from(([127, 0, 0, 1], receiver.port()));
        let sent: Vec<Vec<u8>> = [1000, 1000, 1000, 400, 1000, 1000, 1100, 20]
            .iter()
            .enumerate()
            .map(|(i, len)| vec![i as u8; *len])
            .collect();
        let mut run = SendRun::default();
        for datagram in &sent {
            run.push(&sender, from, to, datagram);
        }
        run.flush(&sender);
        assert_eq!((run.counters.datagrams, run.counters.refused), (8, 0));
        assert!(run.counters.calls <= 8);
        let mut got: Vec<Vec<u8>> = Vec::new();
        while got.len() < sent.len() {
            receiver
                .receive(|source, our, datagram| {
                    assert_eq!((source, our), (from, to));
                    got.push(datagram.to_vec());
                })
                .expect("receives");
        }
        assert_eq!(got, sent);
    }
}
