//! Reads the NUT container from a pipe, as FFmpeg writes it (nut.txt of the NUT project, version 3 and 4).
//!
//! NUT tells the length and the exact time of every packet in front of it, so a picture can leave the
//! moment its last byte is there. [`Demuxer`] is incremental and knows no pipe: bytes go in, stream
//! headers and packets come out. After damage it looks for the next startcode and goes on.
//!
//! Left out: the index (a pipe has no end to find it at), info packets and side data (skipped),
//! seeking.

use std::collections::VecDeque;

/// What a NUT stream begins with.
pub const FILE_ID: &[u8; 25] = b"nut/multimedia container\0";

/// Bytes without anything of NUT after which a stream is called noise.
///
/// FFmpeg writes its headers in the first kilobyte. Sixty-four of them leave room for a program that
/// prints something first.
pub const NOISE_LIMIT: usize = 64 * 1024;

const MAIN: [u8; 8] = [b'N', b'M', 0x7a, 0x56, 0x1f, 0x5f, 0x04, 0xad];
const STREAM: [u8; 8] = [b'N', b'S', 0x11, 0x40, 0x5b, 0xf2, 0xf9, 0xdb];
const SYNCPOINT: [u8; 8] = [b'N', b'K', 0xe4, 0xad, 0xee, 0xca, 0x45, 0x69];
const INDEX: [u8; 8] = [b'N', b'X', 0xdd, 0x67, 0x2f, 0x23, 0xe6, 0x4e];
const INFO: [u8; 8] = [b'N', b'I', 0xab, 0x68, 0xb5, 0x96, 0xba, 0x78];

/// Streams of one file; FFmpeg's own limit is of this order, and a child carries one medium.
const MAX_STREAMS: u64 = 64;
/// Largest header, info or index packet that is kept or skipped over.
const MAX_HEADER_LEN: u64 = 1024 * 1024;
/// Packets longer than this carry a checksum of their `forward_ptr`, and frames longer than this no elided
/// header (nut.txt, "packet_header" and "header_idx").
const SMALL: u64 = 4096;

const FLAG_KEY: u64 = 1;
const FLAG_EOR: u64 = 2;
const FLAG_CODED_PTS: u64 = 8;
const FLAG_STREAM_ID: u64 = 16;
const FLAG_SIZE_MSB: u64 = 32;
const FLAG_CHECKSUM: u64 = 64;
const FLAG_RESERVED: u64 = 128;
const FLAG_SM_DATA: u64 = 256;
const FLAG_HEADER_IDX: u64 = 1024;
const FLAG_MATCH_TIME: u64 = 2048;
const FLAG_CODED: u64 = 4096;
const FLAG_INVALID: u64 = 8192;

/// `main_flags` of version 4: syncpoints carry the time of sending.
const BROADCAST_MODE: u64 = 1;

/// Why bytes are not the NUT they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NutError {
    /// Nothing of NUT at all.
    #[error("{bytes} bytes that are no NUT")]
    NotNut {
        /// Bytes skipped in a row.
        bytes: usize,
    },
    /// Something else where a frame or a startcode should begin, or a startcode that does not exist.
    #[error("no NUT frame or startcode where one should begin")]
    LostSync,
    /// A packet or frame header ends before its last field.
    #[error("NUT {0} ends early")]
    Truncated(&'static str),
    /// The checksum does not fit the bytes.
    #[error("NUT {0}: wrong checksum")]
    Checksum(&'static str),
    /// A field has a value that the format forbids, or that this reader refuses.
    #[error("NUT {0}: bad {1}")]
    Bad(&'static str, &'static str),
    /// A version that this reader does not know.
    #[error("NUT version {0}; versions 2 to 4 can be read")]
    Version(u64),
    /// A packet longer than the limit.
    #[error("NUT {what} of {len} bytes, the limit is {limit}")]
    TooLong {
        /// Frame or kind of packet.
        what: &'static str,
        /// Declared length.
        len: u64,
        /// The reader's limit.
        limit: u64,
    },
}

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamKind {
    /// Pictures.
    Video {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// Sound.
    Audio {
        /// Sample rate, samples per second, rounded down.
        sample_rate_hz: u32,
        /// Channels.
        channels: u32,
    },
    /// Subtitles, user data.
    Other,
}

/// One stream of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHeader {
    /// Index in the container, the `stream_index` of its packets.
    pub index: usize,
    /// What it carries.
    pub kind: StreamKind,
    /// Coding, e.g. `H264`; two or four bytes.
    pub fourcc: Vec<u8>,
    /// Unit of time stamps, seconds: numerator and denominator.
    pub time_base: (u32, u32),
    /// Codec private data; for H.264 parameter sets, as Annex-B or (a copied MP4) as `avcC`.
    pub extradata: Vec<u8>,
    /// Pictures by which the decoder's output lags; 0 without B-frames.
    pub decode_delay: u64,
}

/// One packet of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which stream.
    pub stream_index: usize,
    /// Presentation time in the stream's time base.
    pub pts: i64,
    /// The same in microseconds; its origin is the writer's.
    pub pts_micros: i64,
    /// Decoding can begin here.
    pub keyframe: bool,
    /// The payload.
    pub data: Vec<u8>,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// A stream's header. Once per stream and file; FFmpeg's repetitions are left out.
    Stream(StreamHeader),
    /// Every stream's header has come.
    HeadersDone,
    /// A packet.
    Packet(Packet),
}

/// The incremental demultiplexer.
///
/// Call [`Self::push`] with what the pipe gave, then [`Self::poll`] until it answers `Ok(None)`; that bounds
/// what is kept to one packet. An `Err` tells of something skipped: poll on, the next startcode is looked for.
#[derive(Debug)]
pub struct Demuxer {
    limit: u64,
    buf: Vec<u8>,
    at: usize,
    sync: Sync,
    skipped: u64,
    skipped_in_a_row: usize,
    main: Option<Main>,
    streams: Vec<Option<Stream>>,
    out: VecDeque<Item>,
}

/// Where in the format the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// At a frame or startcode.
    Locked,
    /// Looking for a startcode.
    Searching,
}

#[derive(Debug)]
struct Main {
    /// The packet's bytes, to tell a repetition from the beginning of another file.
    bytes: Vec<u8>,
    version: u64,
    flags: u64,
    max_distance: u64,
    time_bases: Vec<(u32, u32)>,
    codes: Vec<FrameCode>,
    elided: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct FrameCode {
    flags: u64,
    stream: u64,
    size_mul: u64,
    size_lsb: u64,
    pts_delta: i64,
    reserved: u64,
    header: u64,
}

#[derive(Debug)]
struct Stream {
    index: usize,
    time_base: (u32, u32),
    msb_pts_shift: u32,
    max_pts_distance: u64,
    last_pts: i64,
}

/// A parse that needs more bytes, or failed.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    NeedMore,
    Error(NutError),
}

impl From<NutError> for Stop {
    fn from(e: NutError) -> Self {
        Self::Error(e)
    }
}

impl Demuxer {
    /// Default limit of one packet.
    pub const MAX_PACKET_LEN: u64 = 8 * 1024 * 1024;

    /// A demultiplexer that refuses packets longer than `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            buf: Vec::new(),
            at: 0,
            sync: Sync::Searching,
            skipped: 0,
            skipped_in_a_row: 0,
            main: None,
            streams: Vec::new(),
            out: VecDeque::new(),
        }
    }

    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.drain(..self.at);
        self.at = 0;
        self.buf.extend_from_slice(bytes);
    }

    /// The next header or packet; `Ok(None)` when more bytes are needed.
    pub fn poll(&mut self) -> Result<Option<Item>, NutError> {
        loop {
            if let Some(item) = self.out.pop_front() {
                return Ok(Some(item));
            }
            if self.sync == Sync::Searching && !self.search()? {
                return Ok(None);
            }
            match self.step() {
                Ok(used) => {
                    self.at += used;
                    self.skipped_in_a_row = 0;
                }
                Err(Stop::NeedMore) => return Ok(None),
                Err(Stop::Error(e)) => {
                    // At least one byte on, else the same startcode would be found again.
                    self.skip(1);
                    self.sync = Sync::Searching;
                    return Err(e);
                }
            }
        }
    }

    /// Bytes that belonged to nothing.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn skip(&mut self, count: usize) {
        let count = count.min(self.buf.len() - self.at);
        self.at += count;
        self.skipped += count as u64;
        self.skipped_in_a_row += count;
    }

    /// Moves to the next startcode that makes sense now. False: more bytes are needed.
    fn search(&mut self) -> Result<bool, NutError> {
        let rest = &self.buf[self.at..];
        if self.main.is_none()
            && let Some(known) = rest.get(..FILE_ID.len().min(rest.len()))
            && FILE_ID.starts_with(known)
        {
            if rest.len() < FILE_ID.len() {
                return Ok(false);
            }
            self.at += FILE_ID.len();
            return self.search();
        }
        let codes: &[[u8; 8]] = if self.main.is_none() { &[MAIN] } else { &[MAIN, STREAM, SYNCPOINT, INDEX, INFO] };
        let found = rest.windows(8).position(|w| w[0] == b'N' && codes.iter().any(|c| c == w));
        if let Some(offset) = found {
            self.skip(offset);
            self.sync = Sync::Locked;
            return Ok(true);
        }
        // The last bytes may be the beginning of a startcode or of the file's id.
        let keep = FILE_ID.len() - 1;
        self.skip(rest.len().saturating_sub(keep));
        if self.skipped_in_a_row > NOISE_LIMIT {
            let bytes = std::mem::take(&mut self.skipped_in_a_row);
            return Err(NutError::NotNut { bytes });
        }
        Ok(false)
    }

    /// Reads one packet or frame at `self.at`; answers its length.
    fn step(&mut self) -> Result<usize, Stop> {
        let rest = &self.buf[self.at..];
        match rest {
            [] => Err(Stop::NeedMore),
            [b'N', ..] => self.packet(),
            // Another file behind this one: a program that was started again on the same pipe.
            _ if rest.starts_with(FILE_ID) => Ok(FILE_ID.len()),
            _ if FILE_ID.starts_with(rest) => Err(Stop::NeedMore),
            _ => self.frame(),
        }
    }

    /// A packet that begins with a startcode.
    fn packet(&mut self) -> Result<usize, Stop> {
        let rest = &self.buf[self.at..];
        let code = rest.get(..8).ok_or(Stop::NeedMore)?;
        let what = match code {
            c if c == MAIN => "main header",
            c if c == STREAM => "stream header",
            c if c == SYNCPOINT => "syncpoint",
            c if c == INDEX => "index",
            c if c == INFO => "info packet",
            _ => return Err(NutError::LostSync.into()),
        };
        let mut r = Fields::new(&rest[8..], "packet header");
        let forward_ptr = r.v().map_err(Fields::more)?;
        if forward_ptr > MAX_HEADER_LEN {
            return Err(NutError::TooLong { what, len: forward_ptr, limit: MAX_HEADER_LEN }.into());
        }
        if forward_ptr > SMALL {
            let covered = 8 + r.at;
            let sum = r.u32().map_err(Fields::more)?;
            if sum != crc(&rest[..covered]) {
                return Err(NutError::Checksum("packet header").into());
            }
        }
        let start = 8 + r.at;
        let end = start + forward_ptr as usize;
        let body = rest.get(start..end).ok_or(Stop::NeedMore)?;
        // The checksum at the end makes the remainder of the whole 0.
        if body.len() < 4 {
            return Err(NutError::Truncated(what).into());
        }
        if crc(body) != 0 {
            return Err(NutError::Checksum(what).into());
        }
        let body = body[..body.len() - 4].to_vec();
        match what {
            "main header" => self.main_header(body)?,
            "stream header" => self.stream_header(&body)?,
            "syncpoint" => self.syncpoint(&body)?,
            _ => {}
        }
        Ok(end)
    }

    fn main_header(&mut self, bytes: Vec<u8>) -> Result<(), NutError> {
        if self.main.as_ref().is_some_and(|m| m.bytes == bytes) {
            return Ok(());
        }
        let (main, streams) = Main::parse(bytes)?;
        self.main = Some(main);
        self.streams = std::iter::repeat_with(|| None).take(streams).collect();
        Ok(())
    }

    fn stream_header(&mut self, body: &[u8]) -> Result<(), NutError> {
        const WHAT: &str = "stream header";
        let bad = |field| NutError::Bad(WHAT, field);
        let main = self.main.as_ref().ok_or(NutError::LostSync)?;
        let mut r = Fields::new(body, WHAT);
        let index = usize::try_from(r.v()?).map_err(|_| bad("stream_id"))?;
        let slot = self.streams.get_mut(index).ok_or_else(|| bad("stream_id"))?;
        if slot.is_some() {
            return Ok(());
        }
        let class = r.v()?;
        let fourcc = r.vb()?;
        if !matches!(fourcc.len(), 2 | 4) {
            return Err(bad("fourcc"));
        }
        let time_base = usize::try_from(r.v()?)
            .ok()
            .and_then(|id| main.time_bases.get(id))
            .copied()
            .ok_or_else(|| bad("time_base_id"))?;
        let msb_pts_shift = r.v()?;
        if msb_pts_shift >= 32 {
            return Err(bad("msb_pts_shift"));
        }
        let max_pts_distance = r.v()?;
        let decode_delay = r.v()?;
        r.v()?; // stream_flags: fixed_fps only
        let extradata = r.vb()?.to_vec();
        let kind = match class {
            0 => {
                let side = |n: u64| {
                    u32::try_from(n).ok().filter(|n| (1..=65_536).contains(n)).ok_or_else(|| bad("picture size"))
                };
                StreamKind::Video { width: side(r.v()?)?, height: side(r.v()?)? }
            }
            1 => {
                let rate = r.v()?.checked_div(r.v()?).ok_or_else(|| bad("sample rate"))?;
                StreamKind::Audio {
                    sample_rate_hz: u32::try_from(rate).map_err(|_| bad("sample rate"))?,
                    channels: u32::try_from(r.v()?).map_err(|_| bad("channel count"))?,
                }
            }
            _ => StreamKind::Other,
        };
        *slot = Some(Stream { index, time_base, msb_pts_shift: msb_pts_shift as u32, max_pts_distance, last_pts: 0 });
        self.out.push_back(Item::Stream(StreamHeader {
            index,
            kind,
            fourcc: fourcc.to_vec(),
            time_base,
            extradata,
            decode_delay,
        }));
        if self.streams.iter().all(Option::is_some) {
            self.out.push_back(Item::HeadersDone);
        }
        Ok(())
    }

    /// Every stream's last time stamp starts again from the syncpoint's time.
    fn syncpoint(&mut self, body: &[u8]) -> Result<(), NutError> {
        let main = self.main.as_ref().ok_or(NutError::LostSync)?;
        let mut r = Fields::new(body, "syncpoint");
        let (base, pts) = r.t(&main.time_bases)?;
        r.v()?; // back_ptr_div16
        if main.version > 3 && main.flags & BROADCAST_MODE != 0 {
            r.t(&main.time_bases)?; // transmit_ts
        }
        for stream in self.streams.iter_mut().flatten() {
            let (num, den) = stream.time_base;
            let ticks = i128::from(pts) * i128::from(base.0) * i128::from(den);
            let ticks = ticks.div_euclid(i128::from(base.1) * i128::from(num));
            stream.last_pts = i64::try_from(ticks).map_err(|_| NutError::Bad("syncpoint", "global_key_pts"))?;
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<usize, Stop> {
        const WHAT: &str = "frame";
        let bad = |field| NutError::Bad(WHAT, field);
        let main = self.main.as_ref().ok_or(NutError::LostSync)?;
        if self.streams.iter().any(Option::is_none) {
            return Err(NutError::LostSync.into());
        }
        let rest = &self.buf[self.at..];
        let mut r = Fields::new(rest, WHAT);
        let code = main.codes[usize::from(r.byte().map_err(Fields::more)?)];
        let mut flags = code.flags;
        if flags & FLAG_INVALID != 0 {
            return Err(NutError::LostSync.into());
        }
        let mut v = || r.v().map_err(Fields::more);
        if flags & FLAG_CODED != 0 {
            flags ^= v()?;
        }
        let stream_id = if flags & FLAG_STREAM_ID != 0 { v()? } else { code.stream };
        let coded_pts = if flags & FLAG_CODED_PTS != 0 { Some(v()?) } else { None };
        let mut size = code.size_lsb;
        if flags & FLAG_SIZE_MSB != 0 {
            size = v()?
                .checked_mul(code.size_mul)
                .and_then(|msb| msb.checked_add(size))
                .ok_or_else(|| bad("data_size_msb"))?;
        }
        if flags & FLAG_MATCH_TIME != 0 {
            v()?;
        }
        let mut header = if flags & FLAG_HEADER_IDX != 0 { v()? } else { code.header };
        let reserved = if flags & FLAG_RESERVED != 0 { v()? } else { code.reserved };
        // FFmpeg writes none; a handful leaves room for a later version.
        if reserved > 64 {
            return Err(bad("reserved_count").into());
        }
        for _ in 0..reserved {
            v()?;
        }
        if size > self.limit {
            return Err(NutError::TooLong { what: WHAT, len: size, limit: self.limit }.into());
        }
        let stream = usize::try_from(stream_id)
            .ok()
            .and_then(|id| self.streams.get_mut(id))
            .and_then(Option::as_mut)
            .ok_or_else(|| bad("stream_id"))?;
        let pts = stream.pts(coded_pts, code.pts_delta).ok_or_else(|| bad("pts"))?;
        let covered = r.at;
        if flags & FLAG_CHECKSUM != 0 {
            if r.u32().map_err(Fields::more)? != crc(&rest[..covered]) {
                return Err(NutError::Checksum(WHAT).into());
            }
        } else if size > main.max_distance.saturating_mul(2) || pts.abs_diff(stream.last_pts) > stream.max_pts_distance
        {
            // The format demands a checksum here, so this is no frame.
            return Err(NutError::LostSync.into());
        }
        if size > SMALL {
            header = 0;
        }
        let elided = usize::try_from(header).ok().and_then(|i| main.elided.get(i)).ok_or_else(|| bad("header_idx"))?;
        let stored = size.checked_sub(elided.len() as u64).ok_or_else(|| bad("data size"))? as usize;
        let start = r.at;
        let payload = rest.get(start..start + stored).ok_or(Stop::NeedMore)?;
        let skipped = if flags & FLAG_SM_DATA != 0 && main.version > 3 { side_data_len(payload)? } else { 0 };
        stream.last_pts = pts;
        if flags & FLAG_EOR == 0 {
            let mut data = Vec::with_capacity(size as usize);
            data.extend_from_slice(elided);
            data.extend_from_slice(&payload[skipped..]);
            self.out.push_back(Item::Packet(Packet {
                stream_index: stream.index,
                pts,
                pts_micros: to_micros(pts, stream.time_base),
                keyframe: flags & FLAG_KEY != 0,
                data,
            }));
        }
        Ok(start + stored)
    }
}

impl Default for Demuxer {
    fn default() -> Self {
        Self::new(Self::MAX_PACKET_LEN)
    }
}

impl Stream {
    /// A packet's time from its coded low bits, or from the frame code's difference.
    fn pts(&self, coded: Option<u64>, delta: i64) -> Option<i64> {
        let Some(coded) = coded else {
            return self.last_pts.checked_add(delta);
        };
        let coded = i64::try_from(coded).ok()?;
        let span = 1i64 << self.msb_pts_shift;
        if coded >= span {
            return Some(coded - span);
        }
        let mask = span - 1;
        let lowest = self.last_pts.checked_sub(mask / 2)?;
        lowest.checked_add(coded.wrapping_sub(lowest) & mask)
    }
}

impl Main {
    /// Parses the body of a main header; also answers the number of streams.
    fn parse(bytes: Vec<u8>) -> Result<(Self, usize), NutError> {
        const WHAT: &str = "main header";
        let bad = |field| NutError::Bad(WHAT, field);
        let mut r = Fields::new(&bytes, WHAT);
        let version = r.v()?;
        if !(2..=4).contains(&version) {
            return Err(NutError::Version(version));
        }
        if version > 3 {
            r.v()?; // minor_version
        }
        let streams = r.v()?;
        if !(1..=MAX_STREAMS).contains(&streams) {
            return Err(bad("stream_count"));
        }
        let max_distance = r.v()?.min(65_536);
        let bases = r.v()?;
        if !(1..=MAX_STREAMS).contains(&bases) {
            return Err(bad("time_base_count"));
        }
        let mut time_bases = Vec::new();
        for _ in 0..bases {
            let mut part =
                || u32::try_from(r.v()?).ok().filter(|n| (1..1 << 31).contains(n)).ok_or_else(|| bad("time_base"));
            time_bases.push((part()?, part()?));
        }
        let codes = Self::frame_codes(&mut r)?;
        let mut elided = vec![Vec::new()];
        let more = r.v()?;
        if more >= 128 {
            return Err(bad("header_count"));
        }
        for _ in 0..more {
            let header = r.vb()?;
            if header.is_empty() || header.len() > 255 {
                return Err(bad("elision header"));
            }
            elided.push(header.to_vec());
        }
        let flags = if version > 3 && !r.is_empty() { r.v()? } else { 0 };
        let main = Self { version, flags, max_distance, time_bases, codes, elided, bytes };
        Ok((main, streams as usize))
    }

    /// The table that says what each of the 256 frame codes stands for (nut.txt, "frame_code table").
    fn frame_codes(r: &mut Fields<'_>) -> Result<Vec<FrameCode>, NutError> {
        let bad = |field| NutError::Bad("main header", field);
        let mut codes = Vec::with_capacity(256);
        let mut code = FrameCode { size_mul: 1, ..FrameCode::default() };
        while codes.len() < 256 {
            code.flags = r.v()?;
            let fields = r.v()?;
            if fields > 0 {
                code.pts_delta = r.s()?;
            }
            if fields > 1 {
                code.size_mul = r.v()?;
            }
            if fields > 2 {
                code.stream = r.v()?;
            }
            let size = if fields > 3 { r.v()? } else { 0 };
            code.reserved = if fields > 4 { r.v()? } else { 0 };
            let count = if fields > 5 {
                r.v()?
            } else {
                code.size_mul.checked_sub(size).ok_or_else(|| bad("frame code size"))?
            };
            if fields > 6 {
                r.s()?; // match_time_delta
            }
            if fields > 7 {
                code.header = r.v()?;
            }
            // Fields of a later version. FFmpeg's own limit is similar.
            if fields > 250 {
                return Err(bad("frame code field count"));
            }
            for _ in 8..fields {
                r.v()?;
            }
            // Fewer are left when 'N', which begins every startcode, is still to come.
            let left = 256 - codes.len() - usize::from(codes.len() <= usize::from(b'N'));
            if count == 0 || count > left as u64 {
                return Err(bad("frame code count"));
            }
            for n in 0..count {
                if codes.len() == usize::from(b'N') {
                    codes.push(FrameCode { flags: FLAG_INVALID, ..code });
                }
                code.size_lsb = size.checked_add(n).ok_or_else(|| bad("frame code size"))?;
                codes.push(code);
            }
            if codes.len() == usize::from(b'N') {
                codes.push(FrameCode { flags: FLAG_INVALID, ..code });
            }
        }
        Ok(codes)
    }
}

/// Microseconds of a time stamp, saturating.
fn to_micros(pts: i64, (num, den): (u32, u32)) -> i64 {
    let micros = i128::from(pts) * i128::from(num) * 1_000_000;
    let micros = micros.div_euclid(i128::from(den));
    i64::try_from(micros).unwrap_or(if micros < 0 { i64::MIN } else { i64::MAX })
}

/// Length of the side data and metadata in front of a payload (version 4).
fn side_data_len(payload: &[u8]) -> Result<usize, NutError> {
    let mut r = Fields::new(payload, "side data");
    for _list in ["side data", "metadata"] {
        let count = r.v()?;
        for _ in 0..count {
            r.vb()?; // name
            match r.s()? {
                -1 => {
                    r.vb()?;
                }
                -2 => {
                    r.vb()?;
                    r.vb()?;
                }
                -3 => {
                    r.s()?;
                }
                -4 => {
                    r.v()?;
                }
                n if n < -4 => {
                    r.s()?;
                }
                _ => {}
            }
        }
    }
    Ok(r.at)
}

/// CRC-32 with generator 0x04C11DB7, most significant bit first, start and end without inversion (nut.txt,
/// "checksum").
fn crc(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut n = 0;
        while n < 256 {
            let mut value = (n as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                value = (value << 1) ^ if value >> 31 == 1 { 0x04c1_1db7 } else { 0 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[((crc >> 24) as u8 ^ byte) as usize])
}

/// Reads NUT's number formats.
#[derive(Debug)]
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, at: 0, what }
    }

    /// For fields in front of a known length: an early end means that more bytes will come.
    fn more(e: NutError) -> Stop {
        match e {
            NutError::Truncated(_) => Stop::NeedMore,
            e => Stop::Error(e),
        }
    }

    fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn byte(&mut self) -> Result<u8, NutError> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte.ok_or(NutError::Truncated(self.what))
    }

    /// `u(32)`.
    fn u32(&mut self) -> Result<u32, NutError> {
        let mut value = 0;
        for _ in 0..4 {
            value = value << 8 | u32::from(self.byte()?);
        }
        Ok(value)
    }

    /// `v`: seven bits a byte, most significant first, the top bit says that another follows.
    fn v(&mut self) -> Result<u64, NutError> {
        let mut value = 0u64;
        loop {
            let byte = self.byte()?;
            if value >> 57 != 0 {
                return Err(NutError::Bad(self.what, "number: more than 64 bits"));
            }
            value = value << 7 | u64::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
    }

    /// `s`: signed, 0, 1, −1, 2, −2 … coded as 0, 1, 2, 3, 4 ….
    fn s(&mut self) -> Result<i64, NutError> {
        let coded = self.v()?;
        // 63 bits: fits without wrapping; only u64::MAX itself would pass i64::MAX by one.
        let half = (coded >> 1) as i64;
        Ok(if coded & 1 == 1 { half.saturating_add(1) } else { -half })
    }

    /// `vb`: bytes after their length.
    fn vb(&mut self) -> Result<&'a [u8], NutError> {
        let len = self.v()?;
        let bytes = usize::try_from(len)
            .ok()
            .and_then(|len| self.bytes.get(self.at..self.at.checked_add(len)?))
            .ok_or(NutError::Truncated(self.what))?;
        self.at += bytes.len();
        Ok(bytes)
    }

    /// `t`: a time and its time base in one number.
    fn t(&mut self, bases: &[(u32, u32)]) -> Result<((u32, u32), i64), NutError> {
        let coded = self.v()?;
        let count = bases.len() as u64;
        let base = bases.get((coded % count.max(1)) as usize).ok_or(NutError::Bad(self.what, "time base"))?;
        // Divided by at least 1 and read as at most 64 bits: only one time base could overflow.
        let pts = i64::try_from(coded / count.max(1)).map_err(|_| NutError::Bad(self.what, "time"))?;
        Ok((*base, pts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Size;
    use crate::h264;
    use std::process::Command;

    /// What a demultiplexer made of a stream.
    #[derive(Debug, Default, PartialEq)]
    struct Read {
        streams: Vec<StreamHeader>,
        packets: Vec<Packet>,
        errors: Vec<NutError>,
        skipped: u64,
    }

    fn read(bytes: &[u8], chunk: usize) -> Read {
        let mut demuxer = Demuxer::default();
        let mut read = Read::default();
        for bytes in bytes.chunks(chunk) {
            demuxer.push(bytes);
            loop {
                match demuxer.poll() {
                    Ok(None) => break,
                    Ok(Some(Item::Stream(s))) => read.streams.push(s),
                    Ok(Some(Item::HeadersDone)) => {}
                    Ok(Some(Item::Packet(p))) => read.packets.push(p),
                    Err(e) => read.errors.push(e),
                }
            }
        }
        read.skipped = demuxer.skipped();
        read
    }

    /// NUT bytes of the FFmpeg that is installed. These tests fail without one: it is what we read.
    fn ffmpeg(args: &str) -> Vec<u8> {
        let output = Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "error", "-nostdin"])
            .args(args.split_whitespace())
            .args(["-f", "nut", "-"])
            .output()
            .expect("ffmpeg is installed");
        assert!(output.status.success(), "ffmpeg {args}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn video(size: &str, fps: u32, frames: u32, more: &str) -> Vec<u8> {
        ffmpeg(&format!(
            "-f lavfi -i testsrc2=size={size}:rate={fps} -frames:v {frames} -c:v libx264 \
             -preset ultrafast -tune zerolatency -threads 4 {more}"
        ))
    }

    fn adler32(bytes: &[u8]) -> u32 {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in bytes {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        b << 16 | a
    }

    /// Stream, time, length, keyframe and hash of every packet, as FFmpeg's own demultiplexer reads them.
    fn ffprobe(nut: &[u8]) -> Vec<(usize, i64, usize, bool, u32)> {
        let path = std::env::temp_dir().join(format!(
            "lightpipe-nut-{}-{:?}.nut",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, nut).expect("a file in the temporary folder");
        let output = Command::new("ffprobe")
            .args(["-v", "error", "-show_packets", "-show_data_hash", "adler32"])
            .args(["-show_entries", "packet=stream_index,pts,size,flags,data_hash"])
            .args(["-of", "default=noprint_wrappers=0:nokey=0"])
            .arg(&path)
            .output()
            .expect("ffprobe is installed");
        std::fs::remove_file(&path).expect("the file just written");
        let text = String::from_utf8(output.stdout).expect("ffprobe writes UTF-8");
        text.split("[/PACKET]")
            .filter(|p| p.contains("stream_index="))
            .map(|packet| {
                let field = |name: &str| {
                    packet.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {packet}"))
                };
                let number = |name: &str| -> i64 { field(name).parse().expect("a number") };
                (
                    number("stream_index=") as usize,
                    number("pts="),
                    number("size=") as usize,
                    field("flags=").starts_with('K'),
                    u32::from_str_radix(field("data_hash=adler32:").trim(), 16).expect("hex"),
                )
            })
            .collect()
    }

    #[track_caller]
    fn check_against_ffmpeg(nut: &[u8], expected_packets: usize) -> Read {
        let got = read(nut, 1 << 20);
        assert_eq!(got.errors, [], "errors");
        assert_eq!(got.skipped, 0, "bytes skipped");
        let ours: Vec<_> =
            got.packets.iter().map(|p| (p.stream_index, p.pts, p.data.len(), p.keyframe, adler32(&p.data))).collect();
        assert_eq!(ours, ffprobe(nut));
        assert_eq!(got.packets.iter().filter(|p| p.stream_index == 0).count(), expected_packets);
        for chunk in [1, 7, 4096] {
            assert_eq!(read(nut, chunk), got, "in chunks of {chunk}");
        }
        got
    }

    #[test]
    fn packets_of_ffmpeg_are_those_that_ffmpeg_reads_back() {
        for (size, fps, frames, more) in [
            ("64x48", 10, 30, "-profile:v baseline"),
            ("320x240", 25, 60, "-g 10"),
            ("1280x720", 60, 20, "-b:v 8M"),
            // Intra only: every packet longer than 4 096 bytes, past the elision limit.
            ("640x360", 30, 20, "-g 1"),
        ] {
            let got = check_against_ffmpeg(&video(size, fps, frames, more), frames as usize);
            let [stream] = &got.streams[..] else { panic!("one stream, not {:?}", got.streams) };
            let (width, height) = size.split_once('x').expect("WxH");
            let size = Size::new(width.parse().expect("a number"), height.parse().expect("a number"));
            assert_eq!(stream.fourcc, b"H264");
            assert_eq!(stream.kind, StreamKind::Video { width: size.width, height: size.height });
            assert_eq!(h264::size_of(&stream.extradata), Some(size), "Annex-B parameter sets");
            for (n, packet) in got.packets.iter().enumerate() {
                let expected = n as i64 * 1_000_000 / i64::from(fps);
                assert!(
                    (packet.pts_micros - expected).abs() <= 1,
                    "packet {n} at {} µs, not {expected}",
                    packet.pts_micros
                );
                assert!(packet.data.starts_with(&[0, 0]), "Annex-B");
            }
        }
    }

    #[test]
    fn audio_beside_the_video_is_told_apart() {
        let nut = ffmpeg(
            "-f lavfi -i testsrc2=size=128x96:rate=30 -f lavfi -i sine=frequency=440:sample_rate=48000 \
             -t 2 -c:v libx264 -preset ultrafast -tune zerolatency -c:a pcm_s16le -ac 2",
        );
        let got = check_against_ffmpeg(&nut, 60);
        assert_eq!(
            got.streams.iter().map(|s| s.kind).collect::<Vec<_>>(),
            [StreamKind::Video { width: 128, height: 96 }, StreamKind::Audio { sample_rate_hz: 48_000, channels: 2 }]
        );
        let samples: usize = got.packets.iter().filter(|p| p.stream_index == 1).map(|p| p.data.len() / 4).sum();
        assert_eq!(samples, 96_000, "two seconds");
    }

    #[test]
    fn other_time_bases_b_frames_and_version_4_are_read() {
        check_against_ffmpeg(
            &ffmpeg("-f lavfi -i testsrc2=size=64x48:rate=30000/1001 -frames:v 40 -c:v libx264 -bf 3"),
            40,
        );
        // FFmpeg's pipe and broadcast modes are version 4; one has no syncpoints.
        for flags in ["-syncpoints none", "-syncpoints timestamped"] {
            check_against_ffmpeg(&video("64x48", 30, 40, &format!("-strict -2 {flags}")), 40);
        }
    }

    #[test]
    fn repeated_headers_are_reported_once_and_a_second_file_anew() {
        let first = video("64x48", 10, 5, "");
        let got = read(&[&first[..], &first[..]].concat(), 999);
        assert_eq!((got.streams.len(), got.packets.len(), got.skipped), (1, 10, 0));
        let second = ffmpeg("-f lavfi -i testsrc2=size=32x32:rate=25 -f lavfi -i sine -t 1 -c:v mpeg4 -c:a pcm_s16le");
        let got = read(&[&first[..], &second[..]].concat(), 999);
        assert_eq!((got.streams.len(), got.errors.len(), got.skipped), (3, 0, 0));
    }

    #[test]
    fn damage_costs_packets_up_to_the_next_startcode_and_no_more() {
        let good = video("320x240", 30, 120, "-g 5 -b:v 2M");
        let whole = read(&good, 4096);
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..20 {
            let mut bad = good.clone();
            let at = rng.usize(2000..good.len() / 2);
            for byte in &mut bad[at..at + 64] {
                *byte = rng.u8(..);
            }
            let got = read(&bad, 4096);
            assert!(
                got.packets.len() * 3 > whole.packets.len(),
                "{} of {} packets after damage at {at}",
                got.packets.len(),
                whole.packets.len()
            );
            assert_eq!(got.packets.last(), whole.packets.last(), "it caught up");
        }
        let mut noisy = vec![0x55; 1000];
        noisy.extend_from_slice(&good);
        let got = read(&noisy, 4096);
        assert_eq!((got.packets, got.skipped), (whole.packets, 1000 + 25));
    }

    fn v(mut value: u64) -> Vec<u8> {
        let mut out = vec![(value & 0x7f) as u8];
        while value >> 7 != 0 {
            value >>= 7;
            out.insert(0, 0x80 | (value & 0x7f) as u8);
        }
        out
    }

    fn packet(code: [u8; 8], body: &[u8]) -> Vec<u8> {
        let mut out = code.to_vec();
        out.extend(v(body.len() as u64 + 4));
        out.extend_from_slice(body);
        out.extend(crc(body).to_be_bytes());
        out
    }

    /// A main header from numbers, with the frame codes all alike.
    fn main_header(version: u64, streams: u64, base: (u64, u64), codes: &[u64], elided: u64) -> Vec<u8> {
        let mut numbers = vec![version];
        if version > 3 {
            numbers.push(0);
        }
        numbers.extend([streams, 32_768, 1, base.0, base.1]);
        numbers.extend_from_slice(codes);
        numbers.push(elided);
        let body: Vec<u8> = numbers.into_iter().flat_map(v).collect();
        packet(MAIN, &body)
    }

    /// 255 frame codes with flags 8192 (invalid).
    const CODES: &[u64] = &[8192, 6, 0, 1, 0, 0, 0, 255];

    fn stream_header(numbers: &[u64]) -> Vec<u8> {
        let (head, tail) = numbers.split_at(2);
        let mut body: Vec<u8> = head.iter().copied().flat_map(v).collect();
        body.extend([4, b'H', b'2', b'6', b'4']);
        body.extend(tail.iter().copied().flat_map(v));
        packet(STREAM, &body)
    }

    #[track_caller]
    fn check_error(parts: &[&[u8]], expected: &str) {
        let mut bytes = FILE_ID.to_vec();
        bytes.extend(parts.concat());
        let got = read(&bytes, 11);
        let first = got.errors.first().map(ToString::to_string);
        assert_eq!(first.as_deref(), Some(expected), "{parts:02x?}");
    }

    #[test]
    fn bad_input_is_refused_with_a_typed_error_that_names_the_field() {
        let base = (1, 30);
        let good = main_header(3, 1, base, CODES, 0);
        // stream_id, class, then after the fourcc: time base, shift, distance, delay, flags, private
        // data, width, height.
        let stream = stream_header(&[0, 0, 0, 7, 30, 0, 0, 0, 64, 48, 1, 1, 0]);
        let got = read(&[&FILE_ID[..], &good, &stream].concat(), 3);
        assert_eq!((got.streams.len(), got.errors), (1, vec![]), "the table's base is good");

        for (version, text) in
            [(1, "NUT version 1; versions 2 to 4 can be read"), (9, "NUT version 9; versions 2 to 4 can be read")]
        {
            check_error(&[&main_header(version, 1, base, CODES, 0)], text);
        }
        for streams in [0, 65, u64::MAX] {
            check_error(&[&main_header(3, streams, base, CODES, 0)], "NUT main header: bad stream_count");
        }
        for base in [(0, 1), (1, 0), (1 << 31, 1)] {
            check_error(&[&main_header(3, 1, base, CODES, 0)], "NUT main header: bad time_base");
        }
        for (codes, text) in [
            (&[0u64, 6, 0, 1, 0, 0, 0, 256][..], "bad frame code count"),
            (&[0, 6, 0, 1, 0, 0, 0, 0], "bad frame code count"),
            (&[0, 4, 0, 1, 0, 2], "bad frame code size"),
            (&[0, 251, 0, 1, 0, 0, 0, 255, 0, 0], "bad frame code field count"),
        ] {
            check_error(&[&main_header(3, 1, base, codes, 0)], &format!("NUT main header: {text}"));
        }
        check_error(&[&main_header(3, 1, base, CODES, 200)], "NUT main header: bad header_count");
        check_error(&[&main_header(3, 1, base, CODES, 2)], "NUT main header ends early");
        check_error(&[&packet(MAIN, &[3, 1])], "NUT main header ends early");
        check_error(&[&packet(MAIN, &[0xff; 12])], "NUT main header: bad number: more than 64 bits");
        let mut wrong = good.clone();
        *wrong.last_mut().expect("bytes") ^= 1;
        check_error(&[&wrong], "NUT main header: wrong checksum");
        check_error(&[&MAIN, &v(1 << 40), &[0; 8]], "NUT main header of 1099511627776 bytes, the limit is 1048576");
        check_error(&[&MAIN, &v(2), &[0; 8]], "NUT main header ends early");
        check_error(&[&MAIN, &v(5000), &[9; 8]], "NUT packet header: wrong checksum");

        for (numbers, field) in [
            (&[1u64, 0, 0, 7, 30, 0, 0, 0, 64, 48][..], "stream_id"),
            (&[0, 0, 3, 7, 30, 0, 0, 0, 64, 48], "time_base_id"),
            (&[0, 0, 0, 32, 30, 0, 0, 0, 64, 48], "msb_pts_shift"),
            (&[0, 0, 0, 7, 30, 0, 0, 0, 0, 48], "picture size"),
            (&[0, 0, 0, 7, 30, 0, 0, 0, 64, 1 << 40], "picture size"),
            (&[0, 1, 0, 7, 30, 0, 0, 0, 48_000, 0, 2], "sample rate"),
        ] {
            check_error(&[&good, &stream_header(numbers)], &format!("NUT stream header: bad {field}"));
        }
        check_error(&[&good, &stream_header(&[0, 0, 0, 7, 30, 0, 0, 200])], "NUT stream header ends early");
        check_error(&[&good, &stream, &[0]], "no NUT frame or startcode where one should begin");
        check_error(&[&good, &stream, b"NZ1234567"], "no NUT frame or startcode where one should begin");
        // A frame code that reads its size: 200 MiB at once.
        let greedy = main_header(3, 1, base, &[32, 6, 0, 1, 0, 0, 0, 255], 0);
        check_error(&[&greedy, &stream, &[0], &v(200 << 20)], "NUT frame of 209715200 bytes, the limit is 8388608");
        check_error(&[&greedy, &stream, &[0], &v(100_000)], "no NUT frame or startcode where one should begin");
    }

    #[test]
    fn noise_is_named_after_a_bounded_wait() {
        let mut demuxer = Demuxer::default();
        let mut pushed = 0;
        let error = loop {
            demuxer.push(&[b'x'; 1000]);
            pushed += 1000;
            assert!(demuxer.buf.len() < 2000);
            match demuxer.poll() {
                Ok(None) => assert!(pushed < 2 * NOISE_LIMIT),
                Ok(Some(item)) => panic!("{item:?} in noise"),
                Err(e) => break e,
            }
        };
        assert!(matches!(error, NutError::NotNut { bytes } if bytes > NOISE_LIMIT));
    }

    #[test]
    fn random_and_mutated_streams_never_panic() {
        let mut rng = fastrand::Rng::with_seed(3);
        let good = [
            video("64x48", 10, 6, "-g 2"),
            ffmpeg("-f lavfi -i testsrc2=size=32x32 -f lavfi -i sine -t 0.3 -c:v mpeg4 -c:a pcm_s16le"),
        ];
        for round in 0..2000 {
            let mut bytes = if round % 10 == 0 {
                let mut noise: Vec<u8> = (0..2000).map(|_| rng.u8(..)).collect();
                noise.splice(100..100, good[0][..200].iter().copied());
                noise
            } else {
                good[round % 2].clone()
            };
            for _ in 0..rng.usize(1..20) {
                // Mostly in the headers, where the structure is.
                let end = if rng.bool() { 400 } else { bytes.len() };
                let at = rng.usize(0..end.min(bytes.len()));
                bytes[at] = rng.u8(..);
            }
            let mut demuxer = Demuxer::new(20_000);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(rng.usize(1..=rest.len()));
                demuxer.push(chunk);
                while !matches!(demuxer.poll(), Ok(None)) {}
                rest = tail;
            }
        }
    }

    #[test]
    fn mutated_headers_with_right_checksums_never_panic() {
        // The checksums would stop most of the damage at the door, so here it is made behind them.
        let mut rng = fastrand::Rng::with_seed(4);
        let base = Main::parse({
            let header = main_header(3, 1, (1, 30), CODES, 0);
            header[9..header.len() - 4].to_vec()
        });
        assert!(base.is_ok(), "{base:?}");
        let body =
            [vec![3, 1, 0x81, 0xff, 0x7f, 1, 1, 30], CODES.iter().copied().flat_map(v).collect(), vec![0]].concat();
        for _ in 0..20_000 {
            let mut bytes = body.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(0..bytes.len());
                bytes[at] = rng.u8(..);
            }
            let mut stream = FILE_ID.to_vec();
            stream.extend(packet(MAIN, &bytes));
            stream.extend(stream_header(&[0, rng.u64(0..3), 0, rng.u64(0..40), rng.u64(..), 0, 0, 0, 64, 48, 1, 1, 0]));
            stream.extend(packet(SYNCPOINT, &[v(rng.u64(..)), v(0)].concat()));
            stream.extend((0..100).map(|_| rng.u8(..)));
            let _ = read(&stream, 64);
        }
    }
}
