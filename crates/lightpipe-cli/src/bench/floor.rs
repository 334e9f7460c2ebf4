//! The least that sending encrypted pictures to N viewers can cost: AES-GCM and one GSO call per viewer and picture.
//!
//! Under the conditions of the real run: as many keys, sockets and sleeping receivers, the same pictures per second. A loop over one
//! hot socket with nobody waiting behind it would be three times cheaper and say nothing.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mio::{Events, Interest, Poll, Token};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

use super::cpu;

/// Pictures per second, as in the real run.
const FPS: u32 = 30;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) viewers: usize,
    /// Packets of a picture.
    pub(crate) packets: usize,
    /// Payload of a packet, bytes.
    pub(crate) bytes: usize,
    pub(crate) seconds: u32,
}

/// CPU time of one packet, user and system, of a thread that does nothing else.
pub(crate) fn measure(load: Load) -> io::Result<Duration> {
    let sinks: Vec<UdpSocket> = (0..load.viewers)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    let addresses: Vec<SocketAddr> = sinks.iter().map(UdpSocket::local_addr).collect::<io::Result<_>>()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| drain(sinks, &done));
        let sent = send(load, &addresses);
        done.store(true, Relaxed);
        sink.join().map_err(|_| io::Error::other("the floor's receiver panicked"))??;
        sent
    })
}

fn send(load: Load, addresses: &[SocketAddr]) -> io::Result<Duration> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    let keys: Vec<LessSafeKey> = (0..addresses.len())
        .map(|n| {
            let key = UnboundKey::new(&AES_256_GCM, &[n as u8; 32]).map_err(|_| io::Error::other("AES-256-GCM key"))?;
            Ok(LessSafeKey::new(key))
        })
        .collect::<io::Result<_>>()?;
    let payload = vec![0x5a; load.bytes];
    let segment = load.bytes + 12 + 16;
    let mut run: Vec<u8> = Vec::with_capacity(segment * load.packets);
    let mut nonce = 0u64;
    let started = Instant::now();
    let before = cpu::this_thread();
    for picture in 0..load.seconds * FPS {
        let due = started + Duration::from_secs(1) * picture / FPS;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        for (key, destination) in keys.iter().zip(addresses) {
            run.clear();
            for _ in 0..load.packets {
                run.extend_from_slice(&[0x80; 12]);
                let body = run.len();
                run.extend_from_slice(&payload);
                nonce += 1;
                let mut iv = [0; 12];
                iv[4..].copy_from_slice(&nonce.to_be_bytes());
                let tag = key
                    .seal_in_place_separate_tag(
                        Nonce::assume_unique_for_key(iv),
                        Aad::from([0x80; 12]),
                        &mut run[body..],
                    )
                    .map_err(|_| io::Error::other("AES-256-GCM"))?;
                run.extend_from_slice(tag.as_ref());
            }
            let segment_size = (load.packets > 1).then_some(segment);
            let transmit =
                Transmit { destination: *destination, ecn: None, contents: &run, segment_size, src_ip: None };
            state.try_send(UdpSockRef::from(&socket), &transmit)?;
        }
    }
    let cost = cpu::this_thread().saturating_sub(before);
    let total = f64::from(load.seconds * FPS) * (load.packets * addresses.len()) as f64;
    Ok(Duration::from_secs_f64(cost.as_secs_f64() / total))
}

/// Receives like the viewers' process, and like browsers: asleep until something comes, one datagram a call, no GRO.
fn drain(sinks: Vec<UdpSocket>, done: &AtomicBool) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut sockets = Vec::new();
    for (index, sink) in sinks.into_iter().enumerate() {
        let mut socket = mio::net::UdpSocket::from_std(sink);
        poll.registry().register(&mut socket, Token(index), Interest::READABLE)?;
        sockets.push(socket);
    }
    let mut events = Events::with_capacity(256);
    let mut buffer = [0u8; 2048];
    while !done.load(Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(50)))?;
        for event in &events {
            let Some(socket) = sockets.get(event.token().0) else { continue };
            while socket.recv_from(&mut buffer).is_ok() {}
        }
    }
    Ok(())
}
