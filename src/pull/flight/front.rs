//! A blob's first bytes on their way to the disk: who waits for them need not wait for it.
//!
//! What has come and is not in the staged file yet, as far as it begins in the first [`FRONT_BYTES`]. Behind that followers wait for the file,
//! from where sending costs less. A small blob stays here whole until its transfer ends.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Pieces that begin before this are given out before the disk has them. They are in memory anyway, waiting to be written.
pub const FRONT_BYTES: u64 = 1 << 20;

/// Pieces in their order, without gaps.
#[derive(Debug, Default)]
pub struct Front(Mutex<VecDeque<(u64, Bytes)>>);

impl Front {
    /// A piece that came, and where it belongs.
    pub fn push(&self, at: u64, piece: Bytes) {
        self.lock().push_back((at, piece));
    }

    /// At most `want` bytes from `at`, if they are here.
    pub fn read(&self, at: u64, want: u64) -> Option<Bytes> {
        let want = usize::try_from(want).unwrap_or(usize::MAX);
        self.lock().iter().find_map(|(begin, piece)| {
            let skip = usize::try_from(at.checked_sub(*begin)?).ok()?;
            (skip < piece.len()).then(|| piece.slice(skip..skip.saturating_add(want).min(piece.len())))
        })
    }

    /// Lets go of the pieces that end at `upto` or before: they are in the file.
    pub fn let_go(&self, upto: u64) {
        let mut pieces = self.lock();
        while let Some((at, piece)) = pieces.front()
            && at + piece.len() as u64 <= upto
        {
            pieces.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Bytes)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_from_any_place_and_let_go_in_order() {
        let front = Front::default();
        assert_eq!(front.read(0, 1), None);
        front.push(10, Bytes::from_static(b"abcd"));
        front.push(14, Bytes::from_static(b"efg"));
        assert_eq!(front.read(9, 5), None);
        assert_eq!(front.read(10, u64::MAX).as_deref(), Some(&b"abcd"[..]));
        assert_eq!(front.read(12, 1).as_deref(), Some(&b"c"[..]));
        assert_eq!(front.read(14, 2).as_deref(), Some(&b"ef"[..]));
        assert_eq!(front.read(17, 1), None);
        front.let_go(13);
        assert!(front.read(10, 1).is_some(), "half of it is not in the file");
        front.let_go(14);
        assert_eq!(
            (front.read(10, 1), front.read(16, 9).as_deref()),
            (None, Some(&b"g"[..]))
        );
        front.let_go(u64::MAX);
        assert_eq!(front.read(16, 1), None);
    }
}
