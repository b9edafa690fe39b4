//! What is held, in memory: sizes, recency, links, pins, and what must go when room is needed.
//!
//! A plain data structure without I/O; `database` writes down what it says. Every operation is O(log n) for
//! each entry it touches. Sizes are counted as the disk counts them: in blocks.
//!
//! What goes first: transfers that nobody goes on with; then blobs, least recently used first, where a use of a
//! manifest is a use of what it names, so that a layer shared by a live image outlives a dead image's own; then
//! manifests, which are small and tell what the rest is for. What is pinned or being sent stays.

mod digest_map;
mod entries;
mod id_set;
mod links;
mod pins;
mod repositories;
mod shelves;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use digest_map::DigestMap;
use entries::{Entries, Slot};
use id_set::IdSet;
use pins::Pin;
use repositories::Repositories;
use shelves::Shelf;
use staging::Staged;

use crate::oci::Digest;

pub(super) use entries::{Children, Entry, Kind};
pub(super) use staging::Staging;

const BLOCK_BYTES: u64 = 4096;
/// Manifests may fill this part of the used room before they stop outliving blobs.
const MANIFEST_SHARE: u64 = 4;

/// Bytes that a file of `size` bytes takes on disk.
pub(super) fn on_disk(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// A sum of what was written down or announced: too large is as large as can be, and never little.
pub(super) fn sum(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// What has to be deleted from disk to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// By its staging key.
    Part(Digest),
    Blob(Digest),
}

/// Whose room is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Shelf(usize),
    /// The memory's: manifests that name very much.
    Wide,
}

#[derive(Default)]
pub(super) struct Index {
    entries: Entries,
    repositories: Repositories,
    shelves: Vec<Shelf>,
    shelf_ids: HashMap<Arc<str>, usize>,
    staged: DigestMap<Staged>,
    staged_bytes: u64,
    /// Of all staged bytes, those that are announced but not in a file yet.
    unwritten_bytes: u64,
    /// Staged bytes that can be let go of.
    idle_bytes: u64,
    /// Staged bytes of running transfers whose size nobody announced.
    unannounced_bytes: u64,
    /// Small things on their way in.
    small_bytes: u64,
    held_bytes: u64,
    /// Memory that the names in manifests with very many of them take, and those that may go, by tick, oldest first.
    wide_bytes: u64,
    wide: BTreeMap<u64, Slot>,
    pins: BTreeMap<Arc<str>, Pin>,
    /// What each pin's number points at.
    pin_roots: HashMap<u32, Digest>,
    free_pins: Vec<u32>,
    next_pin: u32,
    /// The pins that reach a digest, held or not.
    pinned: DigestMap<IdSet>,
    next_tick: u64,
}

impl Index {
    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.entries.get(digest)
    }

    /// The same, if a crash at this moment would not lose it.
    pub(super) fn held(&self, digest: &Digest) -> Option<&Entry> {
        self.get(digest).filter(|entry| !entry.hidden)
    }

    /// The entries in places `from` to `from + count`, for walks that let others in between, and where to go on;
    /// `None` at the end. What stays in the index meanwhile stays in its place.
    pub(super) fn page(&self, from: u32, count: u32) -> (impl Iterator<Item = (u32, &Entry)>, Option<u32>) {
        self.entries.page(from, count)
    }

    /// The place of an entry in [`Index::page`].
    pub(super) fn place(&self, digest: &Digest) -> Option<u32> {
        self.entries.find(digest)
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether a response is being sent from it.
    pub(super) fn is_leased(&self, digest: &Digest) -> bool {
        self.entries.get(digest).is_some_and(|entry| entry.leases > 0)
    }

    /// Bytes on disk: held blobs, and staged or reserved ones.
    pub(super) fn used_bytes(&self) -> u64 {
        self.held_bytes
            .saturating_add(self.staged_bytes)
            .saturating_add(self.small_bytes)
    }

    /// Bytes of memory that the names in manifests with very many of them take.
    pub(super) fn wide_bytes(&self) -> u64 {
        self.wide_bytes
    }

    /// Admits a blob at the young end, or tells it anew. It stays on the shelf that had it first.
    pub(super) fn insert(&mut self, digest: Digest, size: u64, used_ms: u64, kind: Kind, shelf: usize) {
        let tick = self.tick();
        let known = self.entries.find(&digest);
        if let Some(slot) = known {
            self.delist(slot);
            self.count_bytes(slot, false);
        }
        let slot = match known.and_then(|slot| Some((slot, self.entries.at_mut(slot)?))) {
            Some((slot, entry)) => {
                (entry.size, entry.used_ms, entry.tick) = (size, used_ms, tick);
                // A manifest that is also fetched as a blob stays a manifest.
                if kind != Kind::Blob {
                    entry.kind = kind;
                }
                slot
            }
            None => self.entries.add(new_entry(digest, size, used_ms, kind, shelf, tick)),
        };
        self.count_bytes(slot, true);
        self.enlist(slot);
        self.extend_pins(&digest);
    }

    /// Begins to fill an empty index from what was written down, in any order.
    pub(super) fn load(&mut self, count: usize) -> Load<'_> {
        self.entries.reserve(count);
        Load { index: self }
    }

    /// Keeps an entry from [`Index::held`] until it is shown. Returns whether it is there.
    pub(super) fn set_hidden(&mut self, digest: &Digest, hidden: bool) -> bool {
        let entry = self.entries.get_mut(digest);
        entry.map(|entry| entry.hidden = hidden).is_some()
    }

    /// Moves an entry to the young end, and with a manifest what it names. Returns whether it is held.
    pub(super) fn touch(&mut self, digest: &Digest) -> bool {
        let Some(slot) = self.entries.find(digest) else {
            return false;
        };
        let document = self.entries.at(slot).and_then(|entry| entry.kind.document().cloned());
        for child in document.iter().flat_map(|document| document.children.iter()) {
            if let Some(child) = self.entries.find(&child) {
                self.renew(child);
            }
        }
        self.renew(slot);
        true
    }

    /// Notes that a use at `now_ms` is being written down.
    pub(super) fn set_used(&mut self, digest: &Digest, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.used_ms = now_ms;
        }
    }

    /// Takes an entry out; its links go with it. Returns the repositories it was linked to.
    pub(super) fn remove(&mut self, digest: &Digest) -> Vec<Arc<str>> {
        let Some(slot) = self.entries.find(digest) else {
            return Vec::new();
        };
        let pins = self.suspend_pins(digest);
        self.delist(slot);
        self.count_bytes(slot, false);
        let links = self.entries.take(slot).map(|entry| entry.links).unwrap_or_default();
        self.restore_pins(pins);
        let names = self.names(&links);
        for id in links.ids() {
            self.repositories.discount(*id);
        }
        names
    }

    /// A response is being sent from it: it stays until [`Index::release`].
    pub(super) fn lease(&mut self, digest: &Digest) -> bool {
        let Some(slot) = self.entries.find(digest) else {
            return false;
        };
        self.delist(slot);
        if let Some(entry) = self.entries.at_mut(slot) {
            entry.leases += 1;
        }
        true
    }

    pub(super) fn release(&mut self, digest: &Digest) {
        let Some(slot) = self.entries.find(digest) else { return };
        if let Some(entry) = self.entries.at_mut(slot) {
            entry.leases = entry.leases.saturating_sub(1);
            self.enlist(slot);
        }
    }

    // --- eviction -----------------------------------------------------------------------------------

    /// The next thing to delete, unless that takes more than `most` bytes on disk. Already taken out of the index when
    /// this returns, with the repositories that it was linked to.
    pub(super) fn evict(&mut self, scope: Scope, most: u64) -> Option<(Victim, Vec<Arc<str>>)> {
        if scope == Scope::Wide {
            let slot = *self.wide.first_key_value()?.1;
            let entry = self.entries.at(slot).filter(|entry| on_disk(entry.size) <= most)?;
            let digest = entry.digest;
            return Some((Victim::Blob(digest), self.remove(&digest)));
        }
        let in_scope = |shelf: usize| scope == Scope::All || scope == Scope::Shelf(shelf);
        if let Some(digest) = self.idle_staged(in_scope) {
            if self.staged(&digest).0 > most {
                return None;
            }
            self.unstage(&digest);
            return Some((Victim::Part(digest), Vec::new()));
        }
        let shelves = || {
            let shelves = self.shelves.iter().enumerate();
            shelves.filter(|(id, _)| in_scope(*id)).map(|(_, shelf)| shelf)
        };
        let oldest = |lists: &mut dyn Iterator<Item = &BTreeMap<u64, Slot>>| {
            lists
                .filter_map(|list| list.first_key_value())
                .min_by_key(|(tick, _)| **tick)
                .map(|(_, slot)| *slot)
        };
        let blob = oldest(&mut shelves().map(|s| &s.blobs));
        let manifest = oldest(&mut shelves().map(|s| &s.manifests));
        let held = sum(shelves().map(|s| s.held_bytes));
        let manifests = sum(shelves().map(|s| s.manifest_bytes));
        let slot = match (blob, manifest) {
            (Some(_), Some(manifest)) if manifests > held / MANIFEST_SHARE => manifest,
            (Some(blob), _) => blob,
            (None, manifest) => manifest?,
        };
        let entry = self.entries.at(slot)?;
        if on_disk(entry.size) > most {
            return None;
        }
        let digest = entry.digest;
        Some((Victim::Blob(digest), self.remove(&digest)))
    }

    fn count_bytes(&mut self, slot: Slot, add: bool) {
        let Some(entry) = self.entries.at(slot) else { return };
        let bytes = on_disk(entry.size);
        let change = |count: &mut u64| {
            *count = if add {
                count.saturating_add(bytes)
            } else {
                count.saturating_sub(bytes)
            }
        };
        change(&mut self.held_bytes);
        let wide = entry.kind.wide_bytes();
        self.wide_bytes = if add {
            self.wide_bytes + wide
        } else {
            self.wide_bytes.saturating_sub(wide)
        };
        if let Some(shelf) = self.shelves.get_mut(entry.shelf as usize) {
            change(&mut shelf.held_bytes);
            if entry.kind != Kind::Blob {
                change(&mut shelf.manifest_bytes);
            }
        }
    }

    fn renew(&mut self, slot: Slot) {
        self.delist(slot);
        let tick = self.tick();
        if let Some(entry) = self.entries.at_mut(slot) {
            entry.tick = tick;
            self.enlist(slot);
        }
    }

    /// Puts an entry among those that may go, unless something holds it.
    fn enlist(&mut self, slot: Slot) {
        let Some(entry) = self.entries.at(slot) else { return };
        if entry.leases > 0 || self.is_pinned(&entry.digest) {
            return;
        }
        if let Some(shelf) = self.shelves.get_mut(entry.shelf as usize)
            && shelf.list(&entry.kind).insert(entry.tick, slot).is_none()
        {
            shelf.loose_bytes = shelf.loose_bytes.saturating_add(on_disk(entry.size));
        }
        if entry.kind.wide_bytes() > 0 {
            self.wide.insert(entry.tick, slot);
        }
    }

    fn delist(&mut self, slot: Slot) {
        let Some(entry) = self.entries.at(slot) else { return };
        if let Some(shelf) = self.shelves.get_mut(entry.shelf as usize)
            && shelf.list(&entry.kind).remove(&entry.tick).is_some()
        {
            shelf.loose_bytes = shelf.loose_bytes.saturating_sub(on_disk(entry.size));
        }
        self.wide.remove(&entry.tick);
    }

    fn tick(&mut self) -> u64 {
        self.next_tick += 1;
        self.next_tick
    }
}

fn new_entry(digest: Digest, size: u64, used_ms: u64, kind: Kind, shelf: usize, tick: u64) -> Entry {
    Entry {
        digest,
        size,
        used_ms,
        kind,
        links: IdSet::None,
        tick,
        // As many shelves as upstreams were ever configured.
        shelf: u32::try_from(shelf).unwrap_or(u32::MAX),
        leases: 0,
        hidden: false,
    }
}

/// Fills an index at start-up: entries first, in any order, and then all of them put in order of their last use at
/// once, which is several times faster than one by one.
pub(super) struct Load<'a> {
    index: &'a mut Index,
}

impl Load<'_> {
    pub(super) fn shelf(&mut self, repository: &str) -> usize {
        self.index.shelf(repository)
    }

    /// Each digest once.
    pub(super) fn add(&mut self, digest: Digest, size: u64, used_ms: u64, kind: Kind, shelf: usize) {
        let slot = self.index.entries.add(new_entry(digest, size, used_ms, kind, shelf, 0));
        self.index.count_bytes(slot, true);
    }

    /// Ends it. Links and pins are for afterwards.
    pub(super) fn finish(self) {
        let index = self.index;
        let mut order: Vec<(u64, Slot)> = index.entries.slots().map(|(slot, e)| (e.used_ms, slot)).collect();
        order.sort_unstable();
        let mut lists: Vec<[Vec<(u64, Slot)>; 2]> = index.shelves.iter().map(|_| Default::default()).collect();
        for (_, slot) in order {
            index.next_tick += 1;
            let Some(entry) = index.entries.at_mut(slot) else {
                continue;
            };
            entry.tick = index.next_tick;
            if entry.kind.wide_bytes() > 0 {
                index.wide.insert(entry.tick, slot);
            }
            let shelf = entry.shelf as usize;
            if let (Some([blobs, manifests]), Some(shelf)) = (lists.get_mut(shelf), index.shelves.get_mut(shelf)) {
                let list = if entry.kind == Kind::Blob { blobs } else { manifests };
                list.push((entry.tick, slot));
                shelf.loose_bytes = shelf.loose_bytes.saturating_add(on_disk(entry.size));
            }
        }
        for (shelf, [blobs, manifests]) in index.shelves.iter_mut().zip(lists) {
            shelf.blobs = blobs.into_iter().collect();
            shelf.manifests = manifests.into_iter().collect();
        }
    }
}
