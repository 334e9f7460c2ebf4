//! EBML elements (RFC 8794), as many as WebM needs.

/// A size that is not known yet, eight bytes long (RFC 8794 §6.2).
pub(super) const UNKNOWN_SIZE: [u8; 8] = [0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// `Void`: its data means nothing (RFC 8794 §11.3.2).
const VOID: u32 = 0xec;

/// An element: id with its length marker, size, data.
pub(super) fn element(id: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = id_bytes(id);
    bytes.extend(size(data.len() as u64));
    bytes.extend_from_slice(data);
    bytes
}

/// An element of elements.
pub(super) fn master(id: u32, children: &[Vec<u8>]) -> Vec<u8> {
    element(id, &children.concat())
}

/// An unsigned integer, in as few bytes as it needs.
pub(super) fn uint(id: u32, value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let zeros = bytes.iter().take(7).take_while(|byte| **byte == 0).count();
    element(id, &bytes[zeros..])
}

/// An unsigned integer in eight bytes: its length does not depend on its value.
pub(super) fn uint64(id: u32, value: u64) -> Vec<u8> {
    element(id, &value.to_be_bytes())
}

/// A floating-point number in eight bytes.
pub(super) fn float(id: u32, value: f64) -> Vec<u8> {
    element(id, &value.to_be_bytes())
}

/// Nothing, `len` bytes long: 2 to 128.
pub(super) fn void(len: usize) -> Vec<u8> {
    element(VOID, &vec![0; len.clamp(2, 128) - 2])
}

/// The bytes of an id.
pub(super) fn id_bytes(id: u32) -> Vec<u8> {
    let bytes = id.to_be_bytes();
    bytes[id.leading_zeros() as usize / 8..].to_vec()
}

/// A known size in eight bytes, to stand where [`UNKNOWN_SIZE`] stood.
pub(super) const fn long_size(value: u64) -> [u8; 8] {
    (value & ((1 << 56) - 1) | 1 << 56).to_be_bytes()
}

/// A size in as few bytes as it needs. All ones are reserved.
fn size(value: u64) -> Vec<u8> {
    let len = (1..8).find(|len| value < (1 << (7 * len)) - 1).unwrap_or(8);
    let marked = if len == 8 { u64::from_be_bytes(long_size(value)) } else { value | 1 << (7 * len) };
    marked.to_be_bytes()[8 - len as usize..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_as_the_standard_writes_them() {
        let check = |got: Vec<u8>, expected: &[u8]| assert_eq!(got, expected);
        check(size(0), &[0x80]);
        check(size(126), &[0xfe]);
        check(size(127), &[0x40, 0x7f]);
        check(size(16_382), &[0x7f, 0xfe]);
        check(size(16_383), &[0x20, 0x3f, 0xff]);
        check(size(1 << 50), &[0x01, 0x04, 0, 0, 0, 0, 0, 0]);
        check(long_size(5).to_vec(), &[0x01, 0, 0, 0, 0, 0, 0, 5]);
        check(uint(0xd7, 1), &[0xd7, 0x81, 1]);
        check(uint(0x4286, 0), &[0x42, 0x86, 0x81, 0]);
        check(uint(0x2ad7b1, 1_000_000), &[0x2a, 0xd7, 0xb1, 0x83, 0x0f, 0x42, 0x40]);
        check(uint64(0xf1, 2), &[0xf1, 0x88, 0, 0, 0, 0, 0, 0, 0, 2]);
        check(float(0x4489, 1.0), &[0x44, 0x89, 0x88, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]);
        check(void(4), &[0xec, 0x82, 0, 0]);
        check(master(0x1a45dfa3, &[uint(0x4286, 1)]), &[0x1a, 0x45, 0xdf, 0xa3, 0x84, 0x42, 0x86, 0x81, 1]);
        assert_eq!(void(11).len(), float(0x4489, 0.0).len());
    }
}
