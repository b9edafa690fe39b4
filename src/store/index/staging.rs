//! Bytes that transfers take, by staging key ([`crate::store::staging_key`]): one place each.

use super::{Index, on_disk};
use crate::oci::Digest;

#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    pub(super) bytes: u64,
    /// Of these, what is in the file by now.
    written: u64,
    pub(super) state: Staging,
    pub(super) shelf: usize,
    /// A manifest or the upstream announced at least so many bytes.
    announced: bool,
}

/// What becomes of staged bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Staging {
    /// A writer is at it.
    Active,
    /// The disk was given up on: what is there is still being read, and then gone.
    Detached,
    /// For a later writer to go on with; goes first when room is needed.
    Idle,
}

impl Index {
    /// Bytes staged by transfers that nobody goes on with: the first to go.
    pub(in crate::store) fn idle_staged_bytes(&self) -> u64 {
        self.idle_bytes
    }

    /// All of these transfers.
    pub(in crate::store) fn all_idle_staged(&self) -> Vec<Digest> {
        let idle = self.staged.iter().filter(|(_, staged)| staged.state == Staging::Idle);
        idle.map(|(key, _)| *key).collect()
    }

    /// One of these transfers.
    pub(super) fn idle_staged(&self, in_scope: impl Fn(usize) -> bool) -> Option<Digest> {
        let is_idle = |s: &Staged| s.state == Staging::Idle && in_scope(s.shelf);
        let found = || self.staged.iter().find(|(_, s)| is_idle(s));
        (self.idle_bytes > 0).then(found)?.map(|(digest, _)| *digest)
    }

    pub(in crate::store) fn staged_bytes(&self) -> u64 {
        self.staged_bytes.saturating_add(self.small_bytes)
    }

    /// Bytes that are counted but not on the disk yet.
    pub(in crate::store) fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes.saturating_add(self.small_bytes)
    }

    /// Counts a small thing that is on its way in, beside what is staged by digest.
    pub(in crate::store) fn add_small(&mut self, bytes: u64) {
        self.small_bytes = self.small_bytes.saturating_add(bytes);
    }

    pub(in crate::store) fn sub_small(&mut self, bytes: u64) {
        self.small_bytes = self.small_bytes.saturating_sub(bytes);
    }

    /// Counts `size` bytes for a transfer. Grows, never shrinks, while it runs.
    pub(in crate::store) fn stage(&mut self, digest: &Digest, size: u64, state: Staging, shelf: usize) {
        let bytes = on_disk(size);
        let old = self.take_staged(digest);
        let running = old.filter(|old| state == Staging::Active && old.state == Staging::Active);
        let staged = Staged {
            bytes: running.map_or(bytes, |old| old.bytes.max(bytes)),
            written: match state {
                Staging::Active => old.map_or(0, |old| old.written),
                Staging::Detached | Staging::Idle => bytes,
            },
            state,
            shelf,
            announced: old.is_none_or(|old| old.announced),
        };
        self.put_staged(*digest, staged);
    }

    /// Counts exactly `size` bytes, all of them in the file, for a transfer that has just begun or begins anew. Returns
    /// what that takes on disk.
    pub(in crate::store) fn restage(&mut self, digest: &Digest, size: u64) -> u64 {
        let bytes = on_disk(size);
        if let Some(staged) = self.take_staged(digest) {
            let counted = Staged {
                bytes,
                written: bytes,
                announced: true,
                ..staged
            };
            self.put_staged(*digest, counted);
        }
        bytes
    }

    /// Notes whether a transfer's size was announced.
    pub(in crate::store) fn set_announced(&mut self, digest: &Digest, announced: bool) {
        if let Some(staged) = self.take_staged(digest) {
            self.put_staged(*digest, Staged { announced, ..staged });
        }
    }

    /// Bytes of running transfers whose size nobody announced.
    pub(in crate::store) fn unannounced_bytes(&self) -> u64 {
        self.unannounced_bytes
    }

    /// Whether its one place among what is staged is taken.
    pub(in crate::store) fn staging(&self, digest: &Digest) -> Option<Staging> {
        self.staged.get(digest).map(|s| s.state)
    }

    /// Bytes counted for a transfer, and its shelf.
    pub(in crate::store) fn staged(&self, digest: &Digest) -> (u64, usize) {
        self.staged.get(digest).map_or((0, 0), |s| (s.bytes, s.shelf))
    }

    /// Notes how much of a transfer is in its file.
    pub(in crate::store) fn set_written(&mut self, digest: &Digest, size: u64) {
        if let Some(staged) = self.take_staged(digest) {
            let written = on_disk(size);
            self.put_staged(*digest, Staged { written, ..staged });
        }
    }

    pub(in crate::store) fn unstage(&mut self, digest: &Digest) {
        self.take_staged(digest);
    }

    fn put_staged(&mut self, digest: Digest, staged: Staged) {
        self.count_staged(&staged, true);
        self.staged.insert(digest, staged);
    }

    fn take_staged(&mut self, digest: &Digest) -> Option<Staged> {
        let staged = self.staged.remove(digest)?;
        self.count_staged(&staged, false);
        Some(staged)
    }

    fn count_staged(&mut self, staged: &Staged, add: bool) {
        let change = |count: &mut u64, bytes: u64| {
            *count = if add {
                count.saturating_add(bytes)
            } else {
                count.saturating_sub(bytes)
            }
        };
        change(&mut self.staged_bytes, staged.bytes);
        change(&mut self.unwritten_bytes, staged.bytes.saturating_sub(staged.written));
        match staged.state {
            Staging::Idle => change(&mut self.idle_bytes, staged.bytes),
            Staging::Active | Staging::Detached if !staged.announced => {
                change(&mut self.unannounced_bytes, staged.bytes);
            }
            Staging::Active | Staging::Detached => {}
        }
        if let Some(shelf) = self.shelves.get_mut(staged.shelf) {
            change(&mut shelf.staged_bytes, staged.bytes);
        }
    }
}
