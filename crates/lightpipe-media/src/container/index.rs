//! Where one can seek to.

/// Points that are remembered. When there are more, every second one is forgotten: after nine hours of a keyframe every second,
/// one can seek to each second keyframe. 512 KiB.
const MAX_POINTS: usize = 32_768;

/// A fragment that begins with a keyframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// Time of the keyframe, in the container's ticks.
    pub(super) time: u64,
    /// Where the fragment stands in the file.
    pub(super) offset: u64,
}

/// The points of a file, in order.
#[derive(Debug)]
pub(super) struct Index {
    points: Vec<Point>,
    /// Of so many points one is remembered.
    stride: u64,
    seen: u64,
}

impl Index {
    pub(super) const fn new() -> Self {
        Self { points: Vec::new(), stride: 1, seen: 0 }
    }

    pub(super) fn push(&mut self, time: u64, offset: u64) {
        if self.seen.is_multiple_of(self.stride) {
            self.points.push(Point { time, offset });
        }
        self.seen += 1;
        if self.points.len() >= MAX_POINTS {
            self.points = self.points.iter().copied().step_by(2).collect();
            self.stride *= 2;
        }
    }

    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_recording_is_indexed_evenly_in_bounded_memory() {
        let mut index = Index::new();
        for n in 0..200_000 {
            index.push(n, n * 10);
        }
        let points = index.points();
        assert!((MAX_POINTS / 2..MAX_POINTS).contains(&points.len()), "{}", points.len());
        let stride = points[1].time;
        assert!(points.iter().enumerate().all(|(n, p)| p.time == n as u64 * stride && p.offset == p.time * 10));
    }
}
