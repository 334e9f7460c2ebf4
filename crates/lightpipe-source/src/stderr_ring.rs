//! The last words of a child, for the message that tells why it failed.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Keeps the last lines that a child wrote to its standard error. Cloning shares the ring.
#[derive(Debug, Clone, Default)]
pub struct StderrRing {
    shared: Arc<(Mutex<Inner>, Condvar)>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<String>,
    bytes: usize,
    /// A line without its end yet.
    partial: Vec<u8>,
    ended: bool,
}

impl StderrRing {
    /// Lines kept: FFmpeg explains itself in two to five, after at most a screenful of warnings.
    pub const MAX_LINES: usize = 30;
    /// Bytes kept.
    pub const MAX_BYTES: usize = 4096;
    /// Bytes of one line that are kept; a child that writes no line ends cannot fill the ring with one.
    const MAX_LINE: usize = 512;

    /// An empty ring.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes. `\r` ends a line as `\n` does: progress displays use it.
    pub fn push(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        for &byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                inner.end_line();
            } else if inner.partial.len() < Self::MAX_LINE {
                inner.partial.push(byte);
            }
        }
    }

    /// Reads `from` until it ends.
    pub fn read_all(&self, from: &mut dyn Read) {
        let mut buf = [0; 1024];
        loop {
            match from.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => self.push(&buf[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut inner = self.lock();
        inner.end_line();
        inner.ended = true;
        self.shared.1.notify_all();
    }

    /// Waits up to `timeout` until [`Self::read_all`] has seen the end.
    pub fn wait_end(&self, timeout: Duration) {
        drop(self.shared.1.wait_timeout_while(self.lock(), timeout, |i| !i.ended));
    }

    /// The last `count` lines, oldest first, joined by ` | `; empty when the child said nothing.
    pub fn last_lines(&self, count: usize) -> String {
        let inner = self.lock();
        let from = inner.lines.len().saturating_sub(count);
        let lines: Vec<&str> = inner.lines.range(from..).map(String::as_str).collect();
        lines.join(" | ")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let line = redacted(String::from_utf8_lossy(&line).trim());
        if line.is_empty() {
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > StderrRing::MAX_LINES || self.bytes > StderrRing::MAX_BYTES {
            let Some(gone) = self.lines.pop_front() else { break };
            self.bytes -= gone.len();
        }
    }
}

/// Without the user names and passwords of URLs: FFmpeg repeats the URL that it could not open, and what
/// it says reaches logs and the page.
fn redacted(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c == '/' || c == '?' || c.is_whitespace()).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(user) => {
                out.push_str("***");
                &after[user..]
            }
            None => after,
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_keeps_the_last_lines_and_is_bounded() {
        let ring = StderrRing::new();
        for n in 0..100 {
            ring.push(format!("line {n}\r\n").as_bytes());
        }
        assert_eq!(ring.last_lines(2), "line 98 | line 99");
        assert_eq!(ring.lock().lines.len(), StderrRing::MAX_LINES);
        for _ in 0..100 {
            ring.push(&[b'x'; 1000]);
            ring.push(b"\n");
        }
        let inner = ring.lock();
        assert!(inner.bytes <= StderrRing::MAX_BYTES);
        assert_eq!(inner.bytes, inner.lines.iter().map(String::len).sum::<usize>());
    }

    #[test]
    fn last_line_without_its_end_counts_and_the_end_wakes_the_waiter() {
        let ring = StderrRing::new();
        ring.read_all(&mut &b"frame= 1\rframe= 2\nNo such file\xff"[..]);
        ring.wait_end(Duration::from_secs(60));
        assert_eq!(ring.last_lines(9), "frame= 1 | frame= 2 | No such file\u{fffd}");
    }

    #[test]
    fn passwords_in_urls_are_not_quoted() {
        for (line, expected) in [
            ("plain words", "plain words"),
            ("rtsp://cam/1: refused", "rtsp://cam/1: refused"),
            ("rtsp://me:pa@ss@cam/1: refused", "rtsp://***@cam/1: refused"),
            ("a rtsp://u:p@h and http://v:q@i/", "a rtsp://***@h and http://***@i/"),
            ("http://host/?mail=a@b", "http://host/?mail=a@b"),
            ("://", "://"),
        ] {
            assert_eq!(redacted(line), expected);
        }
    }
}
