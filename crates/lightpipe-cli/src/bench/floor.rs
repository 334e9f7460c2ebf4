//! The least that sending encrypted packets can cost: AES-128-GCM and one GSO call per picture, nothing else.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::cpu;

/// Encrypts and sends `pictures` pictures of `packets` packets of `bytes` bytes to a socket of this process; CPU time of one packet.
pub(crate) fn measure(pictures: u32, packets: usize, bytes: usize) -> io::Result<Duration> {
    let (sender, sink) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    let (send_state, sink_state) =
        (UdpSocketState::new(UdpSockRef::from(&sender))?, UdpSocketState::new(UdpSockRef::from(&sink))?);
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(|_| io::Error::other("AES-128-GCM key"))?;
    let key = LessSafeKey::new(key);
    let segment = bytes + 12 + 16;
    let payload = vec![0x5a; bytes];
    let destination = sink.local_addr()?;
    let mut run: Vec<u8> = Vec::with_capacity(segment * packets);
    let mut nonce = 0u64;
    let mut receive = vec![0u8; 1 << 16];
    let mut cost = Duration::ZERO;
    for _ in 0..pictures {
        let before = cpu::this_thread();
        run.clear();
        for _ in 0..packets {
            let start = run.len();
            run.extend_from_slice(&[0x80; 12]);
            let body = run.len();
            run.extend_from_slice(&payload);
            nonce += 1;
            let mut iv = [0; 12];
            iv[4..].copy_from_slice(&nonce.to_be_bytes());
            let header: [u8; 12] = run[start..body].try_into().expect("twelve bytes were just written");
            let tag = key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(header), &mut run[body..])
                .map_err(|_| io::Error::other("AES-128-GCM"))?;
            run.extend_from_slice(tag.as_ref());
        }
        let transmit = Transmit { destination, ecn: None, contents: &run, segment_size: Some(segment), src_ip: None };
        send_state.try_send(UdpSockRef::from(&sender), &transmit)?;
        cost += cpu::this_thread().saturating_sub(before);
        // Emptied outside the measurement, so that the kernel never drops.
        let mut slices = [IoSliceMut::new(&mut receive)];
        let mut metas = [RecvMeta::default()];
        while sink_state.recv(UdpSockRef::from(&sink), &mut slices, &mut metas).is_ok() {}
    }
    let total = f64::from(pictures) * packets as f64;
    Ok(Duration::from_secs_f64(cost.as_secs_f64() / total))
}
