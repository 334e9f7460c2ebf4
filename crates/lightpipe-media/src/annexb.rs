//! Cuts an H.264 byte stream (ITU-T H.264 annex B) from a pipe into access units, without waiting for the
//! next one.
//!
//! An Annex-B stream says where a NAL unit begins, never where it ends, so a reader that waits for the
//! next start code holds every picture back for a frame. [`Reader`] leaves that decision to its caller's
//! pipe: a pipe that stays empty for [`Reader::patience`] after a slice has ended the picture.
//!
//! Pictures are told apart as in §7.4.1.2.3, by what a live stream really contains: an access unit
//! delimiter, a parameter set or SEI after a slice, or a slice whose `first_mb_in_slice` is 0. Several
//! slices of one picture stay together. Left out: arbitrary slice order, redundant pictures, MVC and SVC.

use std::collections::VecDeque;
use std::time::Duration;

use crate::h264::{START_CODE, find_start_code, starts_picture};
use crate::time::MediaTime;

/// How long a pipe must be empty before the picture in hand counts as whole.
///
/// A writer hands a picture over in one go, in far less than this; the next picture is at least 8 ms
/// away (120 fps). The wait is pure latency, so it is as short as a loaded scheduler permits.
pub const IDLE: Duration = Duration::from_millis(2);

/// The same, when the picture looks unfinished: fewer slices than the one before, a last byte that ends
/// no NAL unit, or a burst of whole 4 KiB blocks, which is how FFmpeg (32 KiB) and stdio write the
/// inner parts of a long picture. A writer that lost the processor comes back within this.
pub const IDLE_UNFINISHED: Duration = Duration::from_millis(20);

/// Bytes without a NAL unit after which a stream is called noise. A start code turns up in random bytes
/// every 16 MiB, in any real stream within its largest picture.
pub const NOISE_LIMIT: usize = 256 * 1024;

/// One access unit: every NAL unit of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Annex-B bytes, beginning with a four-byte start code.
    pub data: Vec<u8>,
    /// When its first byte arrived.
    pub started: MediaTime,
}

/// What was wrong with the bytes. The reader has already resynchronised; reading may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A picture without end.
    #[error("an access unit is longer than {limit} bytes")]
    UnitTooLong {
        /// The reader's limit.
        limit: usize,
    },
    /// Nothing that begins a picture in all these bytes.
    #[error("{bytes} bytes without an H.264 NAL unit")]
    NoStartCode {
        /// Bytes skipped in a row.
        bytes: usize,
    },
}

/// The incremental reader.
///
/// Call [`Self::push`] with what the pipe gave, then [`Self::pop`] until it answers `None`. When the pipe
/// stays empty for [`Self::patience`], call [`Self::flush_idle`] and pop again; at the end of the stream
/// call [`Self::finish`] and pop the rest.
#[derive(Debug)]
pub struct Reader {
    limit: usize,
    /// The unit in hand, from its first start code (`00 00 01`) on; outside a unit only the last bytes,
    /// which may be the beginning of a start code.
    buf: Vec<u8>,
    /// No start code begins before this offset of `buf` that has not been looked at.
    scanned: usize,
    /// Where in `buf` the last pushes began, and when. A unit's beginning is recognised at most six
    /// bytes later, so a handful is enough however small the pushes are.
    arrivals: VecDeque<(usize, MediaTime)>,
    unit: Option<InHand>,
    ready: VecDeque<Unit>,
    /// Bytes since the pipe was last empty.
    burst: usize,
    slices_before: u32,
    skipped: u64,
    skipped_in_a_row: usize,
}

#[derive(Debug, Clone, Copy)]
struct InHand {
    started: MediaTime,
    /// Slices seen; the picture exists from the first one on.
    slices: u32,
}

/// What a NAL unit does to the access units around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// First slice of a picture.
    FirstSlice,
    /// A further slice of a picture.
    FurtherSlice,
    /// Stands in front of a picture's first slice: AUD, SPS, PPS, SEI and their like.
    Leading,
    /// Stands behind a picture's last slice, or anywhere.
    Trailing,
    /// No NAL unit of any stream: the forbidden bit is set.
    Broken,
}

/// Role of a NAL unit from its first two bytes; `None` when the second is needed and not there yet.
fn role(header: u8, next: Option<u8>) -> Option<Role> {
    if header & 0x80 != 0 {
        return Some(Role::Broken);
    }
    Some(match header & 0x1f {
        1 | 2 | 5 if starts_picture(&[header, next?]) => Role::FirstSlice,
        // Partitions B and C (3, 4) carry no `first_mb_in_slice` and follow their A.
        1..=5 => Role::FurtherSlice,
        6..=9 | 15..=18 => Role::Leading,
        _ => Role::Trailing,
    })
}

impl Reader {
    /// Default limit of one access unit: several times the largest IDR that a level allows in practice.
    pub const MAX_UNIT_LEN: usize = 8 * 1024 * 1024;

    /// A reader that refuses access units longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            buf: Vec::new(),
            scanned: 0,
            arrivals: VecDeque::new(),
            unit: None,
            ready: VecDeque::new(),
            burst: 0,
            slices_before: 0,
            skipped: 0,
            skipped_in_a_row: 0,
        }
    }

    /// Takes bytes that arrived at `now`. Units found before an error can still be popped.
    pub fn push(&mut self, bytes: &[u8], now: MediaTime) -> Result<(), ReadError> {
        const ARRIVALS: usize = 8;
        if bytes.is_empty() {
            return Ok(());
        }
        if self.arrivals.len() == ARRIVALS {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back((self.buf.len(), now));
        self.burst = self.burst.saturating_add(bytes.len());
        self.buf.extend_from_slice(bytes);
        self.scan();
        if self.unit.is_none() {
            // Everything before `scanned` has been looked at and begins nothing.
            self.skip(self.scanned);
        } else if self.buf.len() > self.limit {
            self.skip(self.buf.len());
            self.unit = None;
            return Err(ReadError::UnitTooLong { limit: self.limit });
        }
        if self.skipped_in_a_row > NOISE_LIMIT {
            let bytes = std::mem::take(&mut self.skipped_in_a_row);
            return Err(ReadError::NoStartCode { bytes });
        }
        Ok(())
    }

    /// The next complete access unit.
    pub fn pop(&mut self) -> Option<Unit> {
        self.ready.pop_front()
    }

    /// How long the pipe should stay empty before [`Self::flush_idle`]; `None` when there is no picture
    /// to wait for.
    pub fn patience(&self) -> Option<Duration> {
        let unit = self.unit.filter(|u| u.slices > 0)?;
        let blocks = self.burst.is_multiple_of(4096);
        // The last byte of a NAL unit holds its stop bit and is never 0 (§7.4.1).
        let cut = self.buf.last() == Some(&0);
        Some(if blocks || cut || unit.slices < self.slices_before { IDLE_UNFINISHED } else { IDLE })
    }

    /// The pipe was empty for [`Self::patience`]: a picture of which a slice has come is complete.
    ///
    /// Should more of it come all the same, that remainder is skipped and counted.
    pub fn flush_idle(&mut self) {
        self.burst = 0;
        if self.unit.is_some_and(|u| u.slices > 0) {
            // Zeros at the end may already belong to the next start code.
            let zeros = self.buf.iter().rev().take_while(|b| **b == 0).count();
            self.release(self.buf.len() - zeros.min(3));
        }
    }

    /// The stream ended: what is in hand is all there will be. A half start code is dropped.
    pub fn finish(&mut self) {
        self.flush_idle();
        self.skip(self.buf.len());
        self.unit = None;
    }

    /// Bytes that belonged to no access unit: noise, the rest of a picture that was joined half-way.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn scan(&mut self) {
        while let Some(at) = find_start_code(&self.buf, self.scanned) {
            let header = self.buf.get(at + 3).copied();
            let Some(role) = header.and_then(|h| role(h, self.buf.get(at + 4).copied())) else {
                self.scanned = at;
                return;
            };
            self.scanned = at + 3;
            match (self.unit, role) {
                (_, Role::Broken) => {
                    self.skip(self.scanned);
                    self.unit = None;
                }
                (None, Role::FirstSlice | Role::Leading) => {
                    self.skip(at);
                    self.begin(role);
                }
                // The rest of a picture whose beginning nobody has.
                (None, Role::FurtherSlice | Role::Trailing) => {}
                (Some(unit), Role::FirstSlice | Role::Leading) if unit.slices > 0 => {
                    self.release(at);
                    self.begin(role);
                }
                (Some(mut unit), Role::FirstSlice | Role::FurtherSlice) => {
                    // A further slice in front of any first one: the picture's head was lost.
                    if role == Role::FirstSlice || unit.slices > 0 {
                        unit.slices += 1;
                        self.unit = Some(unit);
                    }
                }
                (Some(_), Role::Leading | Role::Trailing) => {}
            }
        }
        self.scanned = self.scanned.max(self.buf.len().saturating_sub(2));
    }

    /// A unit begins where `buf` now begins.
    fn begin(&mut self, role: Role) {
        let started = self.arrivals.front().map_or(MediaTime::ZERO, |a| a.1);
        self.skipped_in_a_row = 0;
        self.unit = Some(InHand { started, slices: u32::from(role == Role::FirstSlice) });
    }

    /// Moves `buf[..end]` out as a unit.
    fn release(&mut self, end: usize) {
        let Some(unit) = self.unit.take() else { return };
        let body = &self.buf[..end];
        let zeros = body.iter().rev().take_while(|b| **b == 0).count();
        let body = &body[..end - zeros];
        let mut data = Vec::with_capacity(body.len() + 1);
        data.push(START_CODE[0]);
        data.extend_from_slice(body);
        self.ready.push_back(Unit { data, started: unit.started });
        self.slices_before = unit.slices;
        self.drain(end);
    }

    fn skip(&mut self, end: usize) {
        // The zeros of a four-byte start code are no loss.
        let lost = self.buf[..end].iter().rev().skip_while(|b| **b == 0).count();
        self.skipped += lost as u64;
        self.skipped_in_a_row += end;
        self.drain(end);
    }

    fn drain(&mut self, end: usize) {
        self.buf.drain(..end);
        self.scanned = self.scanned.saturating_sub(end);
        for arrival in &mut self.arrivals {
            arrival.0 = arrival.0.saturating_sub(end);
        }
        // Of the pushes that now begin at 0 only the last brought the byte that is first now.
        while self.arrivals.len() > 1 && self.arrivals[1].0 == 0 {
            self.arrivals.pop_front();
        }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self::new(Self::MAX_UNIT_LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x1f];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
    const SEI: &[u8] = &[0, 0, 1, 0x06, 0x05, 0x01, 0xaa, 0x80];
    const AUD: &[u8] = &[0, 0, 0, 1, 0x09, 0xf0];
    const IDR: &[u8] = &[0, 0, 1, 0x65, 0x88, 0x84, 0x21];
    const IDR_MORE: &[u8] = &[0, 0, 1, 0x65, 0x40, 0x84, 0x22];
    const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 0x24, 0x33];
    const P_MORE: &[u8] = &[0, 0, 1, 0x41, 0x46, 0x24, 0x34];
    const FILLER: &[u8] = &[0, 0, 1, 0x0c, 0xff, 0x80];
    const END: &[u8] = &[0, 0, 1, 0x0a];

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    fn cat(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// The unit that the reader makes of `parts`: four-byte start code first, the rest as it came.
    fn unit(parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = parts.concat();
        if bytes.starts_with(&[0, 0, 1]) {
            bytes.insert(0, 0);
        }
        bytes
    }

    fn read(stream: &[u8], chunk: usize) -> Vec<Vec<u8>> {
        let mut reader = Reader::default();
        let mut units = Vec::new();
        for bytes in stream.chunks(chunk) {
            reader.push(bytes, at(0)).expect("a good stream");
            units.extend(std::iter::from_fn(|| reader.pop()).map(|u| u.data));
        }
        reader.finish();
        units.extend(std::iter::from_fn(|| reader.pop()).map(|u| u.data));
        units
    }

    #[track_caller]
    fn check(stream: &[&[u8]], expected: &[&[&[u8]]]) {
        let expected: Vec<Vec<u8>> = expected.iter().map(|parts| unit(parts)).collect();
        let stream = cat(stream);
        for chunk in [1, 2, 3, 5, 7, 4096] {
            assert_eq!(read(&stream, chunk), expected, "{stream:02x?} in chunks of {chunk}");
        }
    }

    #[test]
    fn sps_pps_sei_and_idr_are_one_access_unit() {
        // Trap: one RTP sample per NAL, so that clock and marker advance per NAL.
        check(&[SPS, PPS, SEI, IDR, P, P], &[&[SPS, PPS, SEI, IDR], &[P], &[P]]);
    }

    #[test]
    fn several_slices_of_a_picture_are_one_access_unit() {
        // Trap: x264 zerolatency emits several slices per picture; each VCL NAL is not a frame.
        check(
            &[SPS, PPS, IDR, IDR_MORE, IDR_MORE, P, P_MORE, P_MORE, P, P_MORE],
            &[&[SPS, PPS, IDR, IDR_MORE, IDR_MORE], &[P, P_MORE, P_MORE], &[P, P_MORE]],
        );
    }

    #[test]
    fn delimiters_parameter_sets_and_sei_after_a_slice_begin_a_unit() {
        check(&[AUD, SPS, PPS, IDR, AUD, P], &[&[AUD, SPS, PPS, IDR], &[AUD, P]]);
        check(&[SPS, PPS, IDR, SEI, P], &[&[SPS, PPS, IDR], &[SEI, P]]);
        check(&[SPS, PPS, IDR, PPS, P], &[&[SPS, PPS, IDR], &[PPS, P]]);
        check(&[SPS, PPS, IDR, FILLER, END, SPS, PPS, IDR], &[&[SPS, PPS, IDR, FILLER, END], &[SPS, PPS, IDR]]);
    }

    #[test]
    fn rest_of_a_picture_joined_half_way_is_skipped() {
        check(&[&[9, 9, 9], IDR_MORE, FILLER, P, P_MORE], &[&[P, P_MORE]]);
        check(&[P_MORE], &[]);
        check(&[&[0; 40]], &[]);
        check(&[], &[]);
        // A set forbidden bit is damage: that NAL unit and the picture around it go.
        check(&[P, &[0, 0, 1, 0xe5, 1], P_MORE, P], &[&[P]]);
    }

    #[test]
    fn parameter_sets_alone_are_no_picture() {
        check(&[SPS, PPS], &[]);
        let mut reader = Reader::default();
        reader.push(&cat(&[SPS, PPS]), at(0)).expect("good bytes");
        assert_eq!(reader.patience(), None, "nothing to release");
        reader.flush_idle();
        assert_eq!(reader.pop(), None);
        reader.push(IDR, at(5)).expect("good bytes");
        reader.flush_idle();
        let got = reader.pop().expect("the parameter sets waited for their picture");
        assert_eq!((got.data, got.started), (unit(&[SPS, PPS, IDR]), at(0)));
    }

    #[test]
    fn picture_is_released_before_the_next_start_code() {
        // Trap: waiting for the next start code to release a frame costs one frame of latency.
        let mut reader = Reader::default();
        for n in 0..5 {
            let picture = if n == 0 { cat(&[SPS, PPS, IDR]) } else { cat(&[P, P_MORE]) };
            reader.push(&picture, at(n * 100)).expect("good bytes");
            if n > 1 {
                assert_eq!(reader.patience(), Some(IDLE), "picture {n}");
            }
            reader.flush_idle();
            let got = reader.pop().expect("released with nothing behind it");
            assert_eq!((got.data, got.started), (unit(&[&picture]), at(n * 100)));
            assert_eq!(reader.pop(), None);
        }
        assert_eq!(reader.skipped(), 0);
    }

    #[test]
    fn time_of_a_unit_is_when_its_first_byte_arrived() {
        let mut reader = Reader::default();
        let times = |reader: &mut Reader| -> Vec<MediaTime> {
            std::iter::from_fn(|| reader.pop()).map(|u| u.started).collect()
        };
        reader.push(&IDR[..5], at(1)).expect("good bytes");
        reader.push(&cat(&[&IDR[5..], P, &P[..4]]), at(2)).expect("good bytes");
        assert_eq!(times(&mut reader), [at(1)]);
        reader.push(&P[4..], at(3)).expect("good bytes");
        reader.flush_idle();
        // Of the last unit's start code only `00 00 00 01` had come at 2 ms: still its first bytes.
        assert_eq!(times(&mut reader), [at(2), at(2)]);
        // Byte by byte: a start code's own first byte counts, not the byte that made it recognisable.
        let mut reader = Reader::default();
        for (n, byte) in cat(&[IDR, P, P]).iter().enumerate() {
            reader.push(&[*byte], at(n as i64)).expect("good bytes");
        }
        reader.finish();
        assert_eq!(times(&mut reader), [at(0), at(8), at(16)]);
    }

    #[test]
    fn picture_that_looks_unfinished_gets_more_patience() {
        let mut reader = Reader::default();
        reader.push(&cat(&[IDR, IDR_MORE]), at(0)).expect("good bytes");
        assert_eq!(reader.patience(), Some(IDLE));
        reader.flush_idle();
        reader.push(P, at(1)).expect("good bytes");
        assert_eq!(reader.patience(), Some(IDLE_UNFINISHED), "one slice of two");
        reader.push(P_MORE, at(1)).expect("good bytes");
        assert_eq!(reader.patience(), Some(IDLE));
        reader.push(&[0], at(1)).expect("good bytes");
        assert_eq!(reader.patience(), Some(IDLE_UNFINISHED), "a NAL unit ends in no 0");
        reader.flush_idle();
        let mut block = cat(&[P, P_MORE]);
        block.resize(4096, 0x55);
        reader.push(&block, at(2)).expect("good bytes");
        assert_eq!(reader.patience(), Some(IDLE_UNFINISHED), "a whole block");
        reader.push(&[0x55; 10], at(2)).expect("good bytes");
        assert_eq!(reader.patience(), Some(IDLE));
    }

    #[test]
    fn start_code_that_straddles_an_idle_pipe_is_not_lost() {
        let mut reader = Reader::default();
        reader.push(&cat(&[IDR, &[0, 0]]), at(0)).expect("good bytes");
        reader.flush_idle();
        reader.push(&cat(&[&P[2..], P]), at(9)).expect("good bytes");
        reader.finish();
        let units: Vec<_> = std::iter::from_fn(|| reader.pop()).map(|u| u.data).collect();
        assert_eq!(units, [unit(&[IDR]), unit(&[P]), unit(&[P])]);
    }

    #[test]
    fn remains_of_a_picture_flushed_too_early_are_skipped_and_counted() {
        let mut reader = Reader::default();
        reader.push(&IDR[..6], at(0)).expect("good bytes");
        reader.flush_idle();
        reader.push(&cat(&[&IDR[6..], IDR_MORE, P]), at(9)).expect("good bytes");
        reader.finish();
        let units: Vec<_> = std::iter::from_fn(|| reader.pop()).map(|u| u.data).collect();
        assert_eq!(units, [unit(&[&IDR[..6]]), unit(&[P])]);
        assert_eq!(reader.skipped(), 1 + IDR_MORE.len() as u64);
    }

    #[test]
    fn noise_and_endless_pictures_are_errors_with_bounded_memory() {
        let mut reader = Reader::new(10_000);
        let mut errors = 0;
        for _ in 0..600 {
            match reader.push(&[0x55; 1000], at(0)) {
                Ok(()) => {}
                Err(ReadError::NoStartCode { bytes }) => {
                    assert!(bytes > NOISE_LIMIT);
                    errors += 1;
                }
                Err(e) => panic!("{e}"),
            }
            assert!(reader.buf.len() < 1010);
        }
        assert_eq!(errors, 2);
        reader.push(P, at(0)).expect("good bytes after noise");
        let mut too_long = 0;
        for _ in 0..50 {
            if let Err(e) = reader.push(&[0x55; 1000], at(0)) {
                assert_eq!(e, ReadError::UnitTooLong { limit: 10_000 });
                assert_eq!(e.to_string(), "an access unit is longer than 10000 bytes");
                too_long += 1;
            }
            assert!(reader.buf.len() <= 11_000);
        }
        assert_eq!(too_long, 1, "the rest of it is skipped quietly");
        reader.push(&cat(&[P, P]), at(0)).expect("good bytes after an endless picture");
        assert_eq!(reader.pop().map(|u| u.data), Some(unit(&[P])));
    }

    #[test]
    fn random_and_mutated_streams_never_panic() {
        let mut rng = fastrand::Rng::with_seed(1);
        let good = cat(&[AUD, SPS, PPS, SEI, IDR, IDR_MORE, P, P_MORE, FILLER, P, END]);
        for round in 0..3000 {
            let mut bytes = good.repeat(1 + round % 3);
            for _ in 0..rng.usize(0..12) {
                let at = rng.usize(0..bytes.len());
                match rng.u8(0..3) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, rng.u8(0..2)),
                }
            }
            let mut reader = Reader::new(200);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(rng.usize(1..=rest.len()));
                let _ = reader.push(chunk, at(0));
                if rng.bool() {
                    reader.flush_idle();
                }
                while let Some(unit) = reader.pop() {
                    assert!(unit.data.starts_with(&START_CODE));
                    assert!(unit.data.len() <= bytes.len() + 1);
                }
                rest = tail;
            }
            reader.finish();
        }
    }
}
