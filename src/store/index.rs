//! What is held, in memory: sizes, recency, links, and what must go when room is needed.
//!
//! A plain data structure without I/O; `database` writes down what it says. All operations are
//! O(log n). Sizes are counted as the disk counts them: in blocks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::oci::Digest;

const BLOCK_BYTES: u64 = 4096;

/// Bytes that a file of `size` bytes takes on disk.
pub(super) fn on_disk(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) size: u64,
    /// Unix milliseconds of the last use that was written down; the true order is `order`.
    pub(super) used_ms: u64,
    /// Set for manifests.
    pub(super) media_type: Option<Arc<str>>,
    // Where it stands in `order`.
    tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Staged {
    bytes: u64,
    active: bool,
}

/// What has to be deleted from disk to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Part(Digest),
    Blob(Digest),
}

#[derive(Default)]
pub(super) struct Index {
    blobs: HashMap<Digest, Entry>,
    /// Least recently used first.
    order: BTreeMap<u64, Digest>,
    links: HashMap<Digest, BTreeSet<Arc<str>>>,
    repositories: BTreeMap<Arc<str>, usize>,
    staged: HashMap<Digest, Staged>,
    held_bytes: u64,
    staged_bytes: u64,
    next_tick: u64,
}

impl Index {
    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.blobs.get(digest)
    }

    pub(super) fn count(&self) -> usize {
        self.blobs.len()
    }

    /// Bytes on disk: held blobs, and staged or reserved ones.
    pub(super) fn used_bytes(&self) -> u64 {
        self.held_bytes.saturating_add(self.staged_bytes)
    }

    /// Admits a blob at the young end, or tells it anew.
    pub(super) fn insert(&mut self, digest: Digest, size: u64, used_ms: u64, media_type: Option<Arc<str>>) {
        // A manifest that is also fetched as a blob stays a manifest.
        let media_type = media_type.or_else(|| self.blobs.get(&digest).and_then(|e| e.media_type.clone()));
        self.forget_entry(&digest);
        let tick = self.tick();
        self.order.insert(tick, digest);
        self.held_bytes += on_disk(size);
        self.blobs.insert(
            digest,
            Entry {
                size,
                used_ms,
                media_type,
                tick,
            },
        );
    }

    /// Moves a blob to the young end. Returns whether it is held.
    pub(super) fn touch(&mut self, digest: &Digest) -> bool {
        let tick = self.tick();
        let Some(entry) = self.blobs.get_mut(digest) else {
            return false;
        };
        self.order.remove(&entry.tick);
        entry.tick = tick;
        self.order.insert(tick, *digest);
        true
    }

    /// Notes that a use at `now_ms` is being written down.
    pub(super) fn set_used(&mut self, digest: &Digest, now_ms: u64) {
        if let Some(entry) = self.blobs.get_mut(digest) {
            entry.used_ms = now_ms;
        }
    }

    /// Takes a blob out; its links go with it. Returns the repositories it was linked to.
    pub(super) fn remove(&mut self, digest: &Digest) -> BTreeSet<Arc<str>> {
        self.forget_entry(digest);
        let repositories = self.links.remove(digest).unwrap_or_default();
        for repository in &repositories {
            self.uncount(repository);
        }
        repositories
    }

    /// Notes that `repository` has shown that it holds `digest` (L8). Returns whether that is news.
    pub(super) fn link(&mut self, repository: &Arc<str>, digest: &Digest) -> bool {
        let new = self.links.entry(*digest).or_default().insert(repository.clone());
        if new {
            *self.repositories.entry(repository.clone()).or_default() += 1;
        }
        new
    }

    pub(super) fn linked(&self, repository: &str, digest: &Digest) -> bool {
        self.links.get(digest).is_some_and(|set| set.contains(repository))
    }

    /// Names of repositories of which something is held, in byte order, after `last`.
    pub(super) fn repositories(&self, last: &str, limit: usize) -> Vec<Arc<str>> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.repositories
            .range::<str, _>((Excluded(last), Unbounded))
            .take(limit)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Counts `size` bytes for a transfer. Grows, never shrinks, while it runs.
    pub(super) fn stage(&mut self, digest: &Digest, size: u64, active: bool) {
        let bytes = on_disk(size);
        let slot = self.staged.entry(*digest).or_insert(Staged { bytes: 0, active });
        let bytes = if active && slot.active {
            bytes.max(slot.bytes)
        } else {
            bytes
        };
        self.staged_bytes = self.staged_bytes - slot.bytes + bytes;
        *slot = Staged { bytes, active };
    }

    pub(super) fn is_staging(&self, digest: &Digest) -> bool {
        self.staged.get(digest).is_some_and(|s| s.active)
    }

    pub(super) fn staged(&self, digest: &Digest) -> u64 {
        self.staged.get(digest).map_or(0, |s| s.bytes)
    }

    /// What a running transfer stages from now on is not to be kept, so nothing makes room for it.
    pub(super) fn stop_counting(&mut self, digest: &Digest) {
        if let Some(staged) = self.staged.get_mut(digest) {
            self.staged_bytes -= std::mem::take(&mut staged.bytes);
        }
    }

    pub(super) fn unstage(&mut self, digest: &Digest) {
        if let Some(staged) = self.staged.remove(digest) {
            self.staged_bytes -= staged.bytes;
        }
    }

    /// The next thing to delete: abandoned transfers first, then the least recently used blob.
    /// Already taken out of the index when this returns.
    pub(super) fn evict(&mut self) -> Option<(Victim, BTreeSet<Arc<str>>)> {
        let idle = self.staged.iter().find(|(_, s)| !s.active).map(|(d, _)| *d);
        if let Some(digest) = idle {
            self.unstage(&digest);
            return Some((Victim::Part(digest), BTreeSet::new()));
        }
        let digest = *self.order.first_key_value()?.1;
        Some((Victim::Blob(digest), self.remove(&digest)))
    }

    fn forget_entry(&mut self, digest: &Digest) {
        if let Some(entry) = self.blobs.remove(digest) {
            self.order.remove(&entry.tick);
            self.held_bytes -= on_disk(entry.size);
        }
    }

    fn uncount(&mut self, repository: &Arc<str>) {
        if let Some(count) = self.repositories.get_mut(repository) {
            *count -= 1;
            if *count == 0 {
                self.repositories.remove(repository);
            }
        }
    }

    fn tick(&mut self) -> u64 {
        self.next_tick += 1;
        self.next_tick
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(n: u8) -> Digest {
        Digest::sha256(&[n])
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u8, u16),
        Touch(u8),
        Remove(u8),
        Evict,
        Link(u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..20u8, any::<u16>()).prop_map(|(d, s)| Op::Insert(d, s)),
            (0..20u8).prop_map(Op::Touch),
            (0..20u8).prop_map(Op::Remove),
            Just(Op::Evict),
            (0..20u8, 0..4u8).prop_map(|(d, r)| Op::Link(d, r)),
        ]
    }

    proptest! {
        /// Against the plainest model there is: a vector, oldest first.
        #[test]
        fn behaves_like_a_list(ops in proptest::collection::vec(op(), 0..200)) {
            let mut index = Index::default();
            let mut model: Vec<(u8, u64, BTreeSet<u8>)> = Vec::new();
            for (now, op) in ops.into_iter().enumerate() {
                let now = now as u64;
                match op {
                    Op::Insert(d, size) => {
                        index.insert(digest(d), u64::from(size), now, None);
                        let links = model.iter().find(|m| m.0 == d).map(|m| m.2.clone()).unwrap_or_default();
                        model.retain(|m| m.0 != d);
                        model.push((d, u64::from(size), links));
                    }
                    Op::Touch(d) => {
                        let held = index.touch(&digest(d));
                        let at = model.iter().position(|m| m.0 == d);
                        prop_assert_eq!(held, at.is_some());
                        if let Some(at) = at {
                            let item = model.remove(at);
                            model.push(item);
                        }
                    }
                    Op::Remove(d) => {
                        index.remove(&digest(d));
                        model.retain(|m| m.0 != d);
                    }
                    Op::Evict => {
                        let victim = index.evict().map(|(v, _)| v);
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(victim, expected.map(|m| Victim::Blob(digest(m.0))));
                    }
                    Op::Link(d, r) => {
                        // The store links only what is held.
                        if let Some(item) = model.iter_mut().find(|m| m.0 == d) {
                            let new = index.link(&format!("r{r}").into(), &digest(d));
                            prop_assert_eq!(new, item.2.insert(r));
                        }
                    }
                }
                prop_assert_eq!(index.used_bytes(), model.iter().map(|m| on_disk(m.1)).sum::<u64>());
                prop_assert_eq!(index.count(), model.len());
                let names: BTreeSet<String> = model.iter().flat_map(|m| m.2.iter().map(|r| format!("r{r}"))).collect();
                let told: BTreeSet<String> = index.repositories("", 100).iter().map(|n| n.to_string()).collect();
                prop_assert_eq!(names, told);
            }
        }
    }

    #[test]
    fn abandoned_transfers_go_first_and_running_ones_stay() {
        let mut index = Index::default();
        index.insert(digest(1), 10, 1, None);
        index.stage(&digest(2), 10_000, true);
        index.stage(&digest(3), 5_000, false);
        assert_eq!(index.used_bytes(), 4096 + 12_288 + 8192);
        assert_eq!(index.evict().map(|v| v.0), Some(Victim::Part(digest(3))));
        assert_eq!(index.evict().map(|v| v.0), Some(Victim::Blob(digest(1))));
        assert_eq!(index.evict().map(|v| v.0), None);
        index.unstage(&digest(2));
        assert_eq!(index.used_bytes(), 0);
    }
}
