//! Which peer does a datagram belong to? The local ufrag in a STUN binding request tells, before any state
//! of the peer is touched (RFC 8445 §7.2.2).

const STUN_HEADER_LEN: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const ATTRIBUTE_USERNAME: u16 = 0x0006;
/// RFC 8489 §14.3: fewer than 509 bytes.
const MAX_USERNAME_LEN: usize = 508;

/// Whether this is a STUN message (RFC 7983: first byte 0 to 3, and the magic cookie).
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= STUN_HEADER_LEN && datagram[0] < 4 && datagram[4..8] == MAGIC_COOKIE
}

/// Whether an accepted datagram shows that its path carries both ways: an answer to our check, or what the engine takes only
/// from checked addresses. A request shows one direction.
pub(crate) fn proves_path(datagram: &[u8]) -> bool {
    !is_stun(datagram) || datagram[..2] == BINDING_SUCCESS
}

/// SSRC of an RTP packet; `None` for everything else (RFC 7983; RFC 5761 §4 tells RTCP by its second byte).
pub(crate) fn rtp_ssrc(datagram: &[u8]) -> Option<u32> {
    match datagram {
        [128..=191, second, _, _, _, _, _, _, a, b, c, d, ..] if !(192..=223).contains(second) => {
            Some(u32::from_be_bytes([*a, *b, *c, *d]))
        }
        _ => None,
    }
}

/// The receiving side's ufrag in a STUN binding request: the part of USERNAME before the colon. Nothing here is
/// authenticated; the peer checks the message integrity.
pub fn local_ufrag(datagram: &[u8]) -> Option<&str> {
    if !is_stun(datagram) || datagram[..2] != BINDING_REQUEST {
        return None;
    }
    let declared = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
    let mut rest = datagram.get(STUN_HEADER_LEN..STUN_HEADER_LEN + declared)?;
    while let Some((header, after)) = rest.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let value = after.get(..len)?;
        if kind == ATTRIBUTE_USERNAME {
            if len > MAX_USERNAME_LEN {
                return None;
            }
            let (local, _remote) = std::str::from_utf8(value).ok()?.split_once(':')?;
            return Some(local);
        }
        rest = after.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend_from_slice(&kind.to_be_bytes());
            body.extend_from_slice(&(value.len() as u16).to_be_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = vec![0, 1];
        message.extend_from_slice(&(body.len() as u16).to_be_bytes());
        message.extend_from_slice(&MAGIC_COOKIE);
        message.extend_from_slice(&[7; 12]);
        message.extend(body);
        message
    }

    #[track_caller]
    fn check(datagram: &[u8], expected: Option<&str>) {
        assert_eq!(local_ufrag(datagram), expected, "{datagram:?}");
    }

    #[test]
    fn username_names_the_local_ufrag() {
        check(&request(&[(6, b"abcd:efgh")]), Some("abcd"));
        check(&request(&[(0x24, &[1, 2, 3, 4]), (0x802a, &[0; 8]), (6, b"x:y")]), Some("x"));
        check(&request(&[(6, b"nocolon")]), None);
        check(&request(&[]), None);
        check(&request(&[(6, &[0xff, b':', 0xff])]), None);
        check(&[], None);
        check(&[0; 20], None);
        let mut response = request(&[(6, b"abcd:efgh")]);
        response[0] = 1;
        check(&response, None);
    }

    #[test]
    fn truncated_and_random_datagrams_are_ignored() {
        let whole = request(&[(0x24, &[1, 2, 3, 4]), (6, b"abcd:efgh")]);
        for len in 0..whole.len() {
            assert_eq!(local_ufrag(&whole[..len]), None, "{len} bytes");
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let _ = local_ufrag(&bytes);
        }
    }
}
