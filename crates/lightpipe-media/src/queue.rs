//! The bounded queue between a source and an encoder.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::audio::AudioBlock;
use crate::frame::VideoFrame;

/// Raw pictures on their way to an encoder.
pub type FrameQueue = Queue<VideoFrame>;

/// Sound on its way to an encoder.
pub type AudioQueue = Queue<AudioBlock>;

/// Raw media on its way to an encoder. When full, the **oldest** is dropped: of what is live
/// late is worse than missing, and a source must never wait for an encoder.
#[derive(Debug)]
pub struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Condvar,
    capacity: usize,
    pushed: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// What a wait on the queue ended with.
#[derive(Debug)]
pub enum Pop<T> {
    /// The oldest one.
    Item(T),
    /// Nothing came in time.
    TimedOut,
    /// The queue is closed and empty; nothing will ever come.
    Closed,
}

impl<T> Queue<T> {
    /// A queue of at most `capacity` items (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            inner: Mutex::new(Inner { items: VecDeque::new(), closed: false }),
            filled: Condvar::new(),
            capacity: capacity.max(1),
            pushed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Items that may wait.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds one, never waits. Dropped silently after [`Self::close`].
    pub fn push(&self, item: T) {
        let mut evicted = None;
        {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            self.pushed.fetch_add(1, Relaxed);
            if inner.items.len() >= self.capacity {
                evicted = inner.items.pop_front();
            }
            inner.items.push_back(item);
        }
        self.filled.notify_one();
        if evicted.is_some() {
            self.dropped.fetch_add(1, Relaxed);
        }
        // An evicted picture's buffer goes back to its pool here, outside the lock.
    }

    /// Takes the oldest one, waiting up to `timeout` for one.
    pub fn pop(&self, timeout: Duration) -> Pop<T> {
        let inner = self.lock();
        let (mut inner, _) = self
            .filled
            .wait_timeout_while(inner, timeout, |i| i.items.is_empty() && !i.closed)
            .unwrap_or_else(PoisonError::into_inner);
        match inner.items.pop_front() {
            Some(item) => Pop::Item(item),
            None if inner.closed => Pop::Closed,
            None => Pop::TimedOut,
        }
    }

    /// Ends the queue: what is queued can still be taken, nothing more is accepted.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// Items accepted since the start; divide [`Self::dropped`] by this.
    pub fn pushed(&self) -> u64 {
        self.pushed.load(Relaxed)
    }

    /// Items dropped because the encoder was slower than the source.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FramePool, PixelFormat, Size};
    use crate::time::MediaTime;

    fn frame(micros: i64) -> VideoFrame {
        let pool = FramePool::new();
        VideoFrame::packed(MediaTime::from_micros(micros), Size::new(2, 2), PixelFormat::Rgba, pool.take(16))
            .expect("16 bytes hold 2x2 RGBA")
    }

    #[test]
    fn full_queue_drops_the_oldest_and_counts_it() {
        // Trap: a blocking push to the encoder queue instead of dropping the oldest.
        let queue = FrameQueue::new(2);
        for n in 0..5 {
            queue.push(frame(n));
        }
        assert_eq!((queue.pushed(), queue.dropped()), (5, 3));
        let taken: Vec<i64> = std::iter::from_fn(|| match queue.pop(Duration::ZERO) {
            Pop::Item(f) => Some(f.captured.as_micros()),
            _ => None,
        })
        .collect();
        assert_eq!(taken, [3, 4]);
    }

    #[test]
    fn closing_wakes_the_reader_after_the_rest() {
        let queue = FrameQueue::new(2);
        queue.push(frame(1));
        queue.close();
        queue.push(frame(2));
        assert!(matches!(queue.pop(Duration::from_secs(5)), Pop::Item(f) if f.captured.as_micros() == 1));
        assert!(matches!(queue.pop(Duration::from_secs(5)), Pop::Closed));
    }
}
