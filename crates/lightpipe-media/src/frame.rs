//! Raw pictures: sized, strided, pooled.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::time::MediaTime;

/// Width and height in luma samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// A size of `width` columns and `height` rows.
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// The same size with both sides rounded down to even numbers, at least 2×2: what 4:2:0 needs.
    pub const fn to_even(self) -> Self {
        const fn even(n: u32) -> u32 {
            if n < 2 { 2 } else { n & !1 }
        }
        Self::new(even(self.width), even(self.height))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// How the samples of a picture lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PixelFormat {
    /// Three planes Y, U, V; chroma halved both ways. BT.709, limited range.
    I420,
    /// Two planes Y and interleaved UV; chroma halved both ways. BT.709, limited range.
    Nv12,
    /// One plane, 4 bytes a pixel: R, G, B, A. Alpha is ignored.
    Rgba,
    /// One plane, 4 bytes a pixel: B, G, R, A. Alpha is ignored, so FFmpeg's `bgr0` is this too.
    Bgra,
}

/// One plane of a picture: where it starts and how far apart its rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneLayout {
    /// Offset of the first row in the buffer, bytes.
    pub offset: usize,
    /// Distance between rows, bytes.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
    /// Bytes of a row that carry samples.
    pub row_bytes: usize,
}

impl PixelFormat {
    /// Layout of a tightly packed picture of `size` in this format. Unused entries have no rows.
    pub fn packed_layout(self, size: Size) -> [PlaneLayout; 3] {
        let (w, h) = (size.width as usize, size.height as usize);
        let (cw, ch) = (w.div_ceil(2), h.div_ceil(2));
        let plane = |offset, row_bytes, rows| PlaneLayout { offset, stride: row_bytes, rows, row_bytes };
        let none = plane(0, 0, 0);
        match self {
            Self::I420 => [plane(0, w, h), plane(w * h, cw, ch), plane(w * h + cw * ch, cw, ch)],
            Self::Nv12 => [plane(0, w, h), plane(w * h, cw * 2, ch), none],
            Self::Rgba | Self::Bgra => [plane(0, w * 4, h), none, none],
        }
    }

    /// Bytes of a tightly packed picture of `size`.
    pub fn packed_len(self, size: Size) -> usize {
        self.packed_layout(size).iter().map(|p| p.stride * p.rows).sum()
    }
}

/// Reuses picture buffers, so that a running stream allocates no pictures.
///
/// Cloning shares the pool. A buffer goes back when its last user drops it; at most
/// [`FramePool::MAX_IDLE`] wait for reuse, the rest is freed.
#[derive(Debug, Clone, Default)]
pub struct FramePool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl FramePool {
    /// Idle buffers kept. One picture being captured, two queued, one being encoded, two of slack.
    pub const MAX_IDLE: usize = 6;

    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of exactly `len` bytes with unspecified content (zero, or an older picture's).
    pub fn take(&self, len: usize) -> PooledBuffer {
        let mut bytes = self.lock().pop().unwrap_or_default();
        bytes.resize(len, 0);
        PooledBuffer { bytes, pool: self.clone() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        // A panic elsewhere cannot leave a list of buffers inconsistent.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that return to their [`FramePool`] on drop.
#[derive(Debug)]
pub struct PooledBuffer {
    bytes: Vec<u8>,
    pool: FramePool,
}

impl std::ops::Deref for PooledBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Clone for PooledBuffer {
    /// A copy in another buffer of the pool.
    fn clone(&self) -> Self {
        let mut copy = self.pool.take(self.bytes.len());
        copy.copy_from_slice(&self.bytes);
        copy
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = self.pool.lock();
        if idle.len() < FramePool::MAX_IDLE {
            idle.push(bytes);
        }
    }
}

/// Why bytes are not a picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The caller's buffer is shorter than the declared geometry needs.
    #[error("a {size} {format:?} picture needs {needed} bytes, the buffer has {got}")]
    TooShort {
        /// Declared size.
        size: Size,
        /// Declared format.
        format: PixelFormat,
        /// Bytes that the geometry needs.
        needed: usize,
        /// Bytes supplied.
        got: usize,
    },
    /// Zero, odd beyond repair or absurd dimensions.
    #[error("a picture of {0} cannot be encoded: both sides must be 2 to 8192")]
    BadSize(Size),
}

/// One raw picture with its capture time.
///
/// A clone shares the samples; whoever writes into a shared picture gets a copy of its own first.
#[derive(Debug, Clone)]
pub struct VideoFrame {
    /// When the picture was taken.
    pub captured: MediaTime,
    /// When our process had the whole picture; as `captured` until the source says otherwise.
    pub received: MediaTime,
    size: Size,
    format: PixelFormat,
    planes: [PlaneLayout; 3],
    buffer: Arc<PooledBuffer>,
}

impl VideoFrame {
    /// Largest side accepted, in samples.
    pub const MAX_SIDE: u32 = 8192;

    /// A tightly packed picture in `buffer`, which may be longer than needed.
    pub fn packed(
        captured: MediaTime,
        size: Size,
        format: PixelFormat,
        buffer: PooledBuffer,
    ) -> Result<Self, FrameError> {
        Self::check_size(size)?;
        let needed = format.packed_len(size);
        if buffer.len() < needed {
            return Err(FrameError::TooShort { size, format, needed, got: buffer.len() });
        }
        let planes = format.packed_layout(size);
        Ok(Self { captured, received: captured, size, format, planes, buffer: Arc::new(buffer) })
    }

    fn check_size(size: Size) -> Result<(), FrameError> {
        let range = 2..=Self::MAX_SIDE;
        if range.contains(&size.width) && range.contains(&size.height) {
            Ok(())
        } else {
            Err(FrameError::BadSize(size))
        }
    }

    /// Copies tightly packed `bytes` into a buffer of `pool`.
    pub fn copied_from(
        pool: &FramePool,
        captured: MediaTime,
        size: Size,
        format: PixelFormat,
        bytes: &[u8],
    ) -> Result<Self, FrameError> {
        // First: the length of an absurd picture does not fit into a number.
        Self::check_size(size)?;
        let needed = format.packed_len(size);
        let Some(bytes) = bytes.get(..needed) else {
            return Err(FrameError::TooShort { size, format, needed, got: bytes.len() });
        };
        let mut buffer = pool.take(needed);
        buffer.copy_from_slice(bytes);
        Self::packed(captured, size, format, buffer)
    }

    /// Columns and rows.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Sample layout.
    pub const fn format(&self) -> PixelFormat {
        self.format
    }

    /// Layout of plane `index` (0 to 2).
    pub fn layout(&self, index: usize) -> PlaneLayout {
        self.planes[index]
    }

    /// Bytes of plane `index` from its first row on, rows [`PlaneLayout::stride`] apart.
    pub fn plane(&self, index: usize) -> &[u8] {
        let p = self.planes[index];
        &self.buffer[p.offset..p.offset + p.stride * p.rows]
    }

    /// Mutable bytes of plane `index`.
    pub fn plane_mut(&mut self, index: usize) -> &mut [u8] {
        let p = self.planes[index];
        &mut self.own_buffer()[p.offset..p.offset + p.stride * p.rows]
    }

    /// All three planes of a planar picture, mutable at once.
    pub fn planes_mut(&mut self) -> [&mut [u8]; 3] {
        let [a, b, c] = self.planes;
        let (first, rest) = self.own_buffer().split_at_mut(a.stride * a.rows);
        let (second, rest) = rest.split_at_mut(b.stride * b.rows);
        let third = &mut rest[..c.stride * c.rows];
        [first, second, third]
    }

    /// The buffer, which nobody else sees any more.
    fn own_buffer(&mut self) -> &mut PooledBuffer {
        Arc::make_mut(&mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_the_pool_is_bounded() {
        let pool = FramePool::new();
        let buffers: Vec<_> = (0..20).map(|_| pool.take(100)).collect();
        drop(buffers);
        assert_eq!(pool.lock().len(), FramePool::MAX_IDLE);
        assert_eq!(pool.take(50).len(), 50, "a reused buffer has the length that was asked for");
    }

    #[track_caller]
    fn check_len(format: PixelFormat, size: Size, expected: usize) {
        assert_eq!(format.packed_len(size), expected, "{format:?} {size}");
    }

    #[test]
    fn packed_lengths() {
        check_len(PixelFormat::I420, Size::new(4, 2), 12);
        check_len(PixelFormat::I420, Size::new(5, 3), 15 + 6 + 6);
        check_len(PixelFormat::Nv12, Size::new(4, 4), 24);
        check_len(PixelFormat::Rgba, Size::new(3, 2), 24);
        check_len(PixelFormat::Bgra, Size::new(1280, 720), 3_686_400);
    }

    #[test]
    fn bad_pictures_are_refused_with_figures() {
        let pool = FramePool::new();
        let at = MediaTime::ZERO;
        let short = VideoFrame::copied_from(&pool, at, Size::new(4, 4), PixelFormat::Rgba, &[0; 63]);
        assert_eq!(
            short.expect_err("one byte short").to_string(),
            "a 4x4 Rgba picture needs 64 bytes, the buffer has 63"
        );
        let absurd = Size::new(u32::MAX, u32::MAX);
        let refused = VideoFrame::copied_from(&pool, at, absurd, PixelFormat::Rgba, &[]);
        assert_eq!(refused.expect_err("no such picture"), FrameError::BadSize(absurd));
        for size in [Size::new(0, 4), Size::new(4, 1), Size::new(9000, 4)] {
            let buffer = pool.take(size.width as usize * size.height as usize * 4);
            assert_eq!(
                VideoFrame::packed(at, size, PixelFormat::Rgba, buffer).expect_err("no such picture"),
                FrameError::BadSize(size)
            );
        }
    }

    #[test]
    fn a_clone_shares_the_samples_until_one_of_the_two_is_written() {
        let pool = FramePool::new();
        let size = Size::new(4, 2);
        let mut one = VideoFrame::copied_from(&pool, MediaTime::ZERO, size, PixelFormat::I420, &[7; 12]).expect("fits");
        let mut other = one.clone();
        assert!(std::ptr::eq(one.plane(0), other.plane(0)));
        other.plane_mut(0)[0] = 9;
        assert_eq!((one.plane(0)[0], other.plane(0)[..2].to_vec()), (7, vec![9, 7]));
        let alone = one.plane(0).as_ptr();
        one.plane_mut(0)[0] = 8;
        assert_eq!(one.plane(0).as_ptr(), alone, "nothing to copy for a picture of its own");
    }

    #[test]
    fn planes_mut_covers_every_plane() {
        let pool = FramePool::new();
        let size = Size::new(6, 4);
        let mut frame = VideoFrame::packed(MediaTime::ZERO, size, PixelFormat::I420, pool.take(36))
            .expect("36 bytes hold 6x4 I420");
        let [y, u, v] = frame.planes_mut();
        assert_eq!((y.len(), u.len(), v.len()), (24, 6, 6));
    }
}
