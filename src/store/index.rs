//! What is held, in memory: sizes, recency, links, pins, and what must go when room is needed.
//!
//! A plain data structure without I/O; `database` writes down what it says. Every operation is O(log n) for
//! each entry it touches. Sizes are counted as the disk counts them: in blocks.
//!
//! What goes first: transfers that nobody goes on with; then blobs, least recently used first, where a use of a
//! manifest is a use of what it names, so that a layer shared by a live image outlives a dead image's own; then
//! manifests, which are small and tell what the rest is for. What is pinned or being sent stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::oci::Digest;

const BLOCK_BYTES: u64 = 4096;
/// Manifests may fill this part of the used room before they stop outliving blobs.
const MANIFEST_SHARE: u64 = 4;

/// Bytes that a file of `size` bytes takes on disk.
pub(super) fn on_disk(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// What a held digest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Blob,
    /// With its media type and what it names.
    Manifest {
        media_type: Arc<str>,
        children: Arc<[Digest]>,
    },
}

impl Kind {
    pub(super) fn media_type(&self) -> Option<&Arc<str>> {
        match self {
            Kind::Blob => None,
            Kind::Manifest { media_type, .. } => Some(media_type),
        }
    }

    pub(super) fn children(&self) -> Arc<[Digest]> {
        match self {
            Kind::Blob => Arc::default(),
            Kind::Manifest { children, .. } => children.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) size: u64,
    /// Unix milliseconds of the last use that was written down; the true order is that of the ticks.
    pub(super) used_ms: u64,
    pub(super) kind: Kind,
    shelf: usize,
    tick: u64,
    /// Responses that are being sent from it.
    leases: u32,
    /// Counted and in its place, but not in the database yet: nobody is told that it is held.
    hidden: bool,
}

/// One upstream's part of the cache. The store knows only its name: a repository's key up to its first slash.
#[derive(Default)]
struct Shelf {
    name: Arc<str>,
    max_bytes: Option<u64>,
    held_bytes: u64,
    manifest_bytes: u64,
    /// Bytes of transfers.
    staged_bytes: u64,
    /// Held bytes of what may go.
    loose_bytes: u64,
    /// What may go, oldest first.
    blobs: BTreeMap<u64, Digest>,
    manifests: BTreeMap<u64, Digest>,
}

#[derive(Clone, Copy, Debug)]
struct Staged {
    bytes: u64,
    /// Of these, what is in the file by now.
    written: u64,
    state: Staging,
    shelf: usize,
}

/// What becomes of staged bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Staging {
    /// A writer is at it.
    Active,
    /// The disk was given up on: what is there is still being read, and then gone.
    Detached,
    /// For a later writer to go on with; goes first when room is needed.
    Idle,
}

/// What has to be deleted from disk to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Part(Digest),
    Blob(Digest),
}

/// Whose room is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Shelf(usize),
}

#[derive(Default)]
pub(super) struct Index {
    entries: HashMap<Digest, Entry>,
    shelves: Vec<Shelf>,
    shelf_ids: HashMap<Arc<str>, usize>,
    links: HashMap<Digest, BTreeSet<Arc<str>>>,
    repositories: BTreeMap<Arc<str>, usize>,
    staged: HashMap<Digest, Staged>,
    staged_bytes: u64,
    /// Of all staged bytes, those that are announced but not in a file yet.
    unwritten_bytes: u64,
    /// Staged bytes that can be let go of.
    idle_bytes: u64,
    /// Small things on their way in.
    small_bytes: u64,
    held_bytes: u64,
    /// Pinned by name: what each pin points at.
    pins: BTreeMap<Arc<str>, Digest>,
    /// How many pins reach a digest, held or not.
    pinned: HashMap<Digest, u32>,
    next_tick: u64,
}

impl Index {
    // --- shelves ------------------------------------------------------------------------------------

    /// The shelf that a repository's content stands on.
    pub(super) fn shelf(&mut self, repository: &str) -> usize {
        let name = repository.split('/').next().unwrap_or(repository);
        if let Some(id) = self.shelf_ids.get(name) {
            return *id;
        }
        let name: Arc<str> = name.into();
        self.shelves.push(Shelf {
            name: name.clone(),
            ..Shelf::default()
        });
        self.shelf_ids.insert(name, self.shelves.len() - 1);
        self.shelves.len() - 1
    }

    pub(super) fn limit_shelf(&mut self, name: &str, max_bytes: u64) {
        let id = self.shelf(name);
        self.shelves[id].max_bytes = Some(max_bytes);
    }

    /// Bytes over the shelf's own limit when `more` come to it, staged ones counted.
    pub(super) fn over_limit(&self, shelf: usize, more: u64) -> u64 {
        let Some(shelf_ref) = self.shelves.get(shelf) else {
            return 0;
        };
        let Some(max) = shelf_ref.max_bytes else { return 0 };
        (shelf_ref.held_bytes + shelf_ref.staged_bytes)
            .saturating_add(more)
            .saturating_sub(max)
    }

    /// A shelf, other than those to skip, that holds more than its own limit allows, or will when `more` comes to
    /// `growing`.
    pub(super) fn crowded(&self, skip: &[usize], growing: Option<usize>, more: u64) -> Option<usize> {
        let more = |shelf: usize| if growing == Some(shelf) { more } else { 0 };
        (0..self.shelves.len()).find(|shelf| self.over_limit(*shelf, more(*shelf)) > 0 && !skip.contains(shelf))
    }

    /// Whether `more` bytes could stand on a shelf once all that may go from it has gone.
    pub(super) fn could_stand(&self, shelf: usize, more: u64) -> bool {
        let Some(max) = self.shelf_limit(shelf) else {
            return true;
        };
        let counted = self.shelves.get(shelf).map_or(0, |s| s.held_bytes + s.staged_bytes);
        counted
            .saturating_sub(self.loose_bytes(Scope::Shelf(shelf)))
            .saturating_add(more)
            <= max
    }

    /// Bytes of all that may go.
    pub(super) fn loose_bytes(&self, scope: Scope) -> u64 {
        let idle = |shelf: usize| -> u64 {
            let idle = self
                .staged
                .values()
                .filter(|s| s.state == Staging::Idle && s.shelf == shelf);
            idle.map(|s| s.bytes).sum()
        };
        match scope {
            Scope::All => self.shelves.iter().map(|s| s.loose_bytes).sum::<u64>() + self.idle_bytes,
            Scope::Shelf(id) => self.shelves.get(id).map_or(0, |s| s.loose_bytes) + idle(id),
        }
    }

    pub(super) fn shelf_limit(&self, shelf: usize) -> Option<u64> {
        self.shelves.get(shelf).and_then(|s| s.max_bytes)
    }

    /// Name and held bytes of every shelf.
    pub(super) fn shelves(&self) -> Vec<(Arc<str>, u64, Option<u64>)> {
        self.shelves
            .iter()
            .map(|s| (s.name.clone(), s.held_bytes, s.max_bytes))
            .collect()
    }

    pub(super) fn shelf_name(&self, entry: &Entry) -> &str {
        self.shelves.get(entry.shelf).map_or("", |shelf| &shelf.name)
    }

    // --- entries ------------------------------------------------------------------------------------

    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.entries.get(digest)
    }

    /// The same, if a crash at this moment would not lose it.
    pub(super) fn held(&self, digest: &Digest) -> Option<&Entry> {
        self.get(digest).filter(|entry| !entry.hidden)
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.entries.keys()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Digest, &Entry)> {
        self.entries.iter()
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether a response is being sent from it.
    pub(super) fn is_leased(&self, digest: &Digest) -> bool {
        self.entries.get(digest).is_some_and(|entry| entry.leases > 0)
    }

    /// Bytes staged by transfers that nobody goes on with: the first to go.
    pub(super) fn idle_staged_bytes(&self) -> u64 {
        self.staged
            .values()
            .filter(|s| s.state == Staging::Idle)
            .map(|s| s.bytes)
            .sum()
    }

    /// Bytes on disk: held blobs, and staged or reserved ones.
    pub(super) fn used_bytes(&self) -> u64 {
        self.held_bytes
            .saturating_add(self.staged_bytes)
            .saturating_add(self.small_bytes)
    }

    pub(super) fn staged_bytes(&self) -> u64 {
        self.staged_bytes + self.small_bytes
    }

    /// Bytes that are counted but not on the disk yet.
    pub(super) fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes + self.small_bytes
    }

    /// Counts a small thing that is on its way in, beside what is staged by digest.
    pub(super) fn add_small(&mut self, bytes: u64) {
        self.small_bytes += bytes;
    }

    pub(super) fn sub_small(&mut self, bytes: u64) {
        self.small_bytes = self.small_bytes.saturating_sub(bytes);
    }

    /// Admits a blob at the young end, or tells it anew. It stays on the shelf that had it first.
    pub(super) fn insert(&mut self, digest: Digest, size: u64, used_ms: u64, kind: Kind, shelf: usize) {
        let old = self.take_out(&digest);
        let was_manifest = old.as_ref().is_some_and(|old| old.kind != Kind::Blob);
        let (kind, shelf, leases, hidden) = match old {
            // A manifest that is also fetched as a blob stays a manifest.
            Some(old) if kind == Kind::Blob => (old.kind, old.shelf, old.leases, old.hidden),
            Some(old) => (kind, old.shelf, old.leases, old.hidden),
            None => (kind, shelf, 0, false),
        };
        let tick = self.tick();
        let children = kind.children();
        self.count_bytes(shelf, &kind, size, true);
        self.entries.insert(
            digest,
            Entry {
                size,
                used_ms,
                kind,
                shelf,
                tick,
                leases,
                hidden,
            },
        );
        self.enlist(&digest);
        // A pin reaches through a manifest as soon as that is there.
        if let Some(pins) = self.pinned.get(&digest).copied().filter(|_| !was_manifest) {
            for child in children.iter() {
                self.pin_tree(child, i64::from(pins));
            }
        }
    }

    /// Keeps an entry from [`Index::held`] until it is shown. Returns whether it is there.
    pub(super) fn set_hidden(&mut self, digest: &Digest, hidden: bool) -> bool {
        let entry = self.entries.get_mut(digest);
        entry.map(|entry| entry.hidden = hidden).is_some()
    }

    /// Moves an entry to the young end, and with a manifest what it names. Returns whether it is held.
    pub(super) fn touch(&mut self, digest: &Digest) -> bool {
        let Some(entry) = self.entries.get(digest) else {
            return false;
        };
        for child in entry.kind.children().iter() {
            self.renew(child);
        }
        self.renew(digest);
        true
    }

    /// Notes that a use at `now_ms` is being written down.
    pub(super) fn set_used(&mut self, digest: &Digest, now_ms: u64) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.used_ms = now_ms;
        }
    }

    /// Takes an entry out; its links go with it. Returns the repositories it was linked to.
    pub(super) fn remove(&mut self, digest: &Digest) -> BTreeSet<Arc<str>> {
        if let Some(old) = self.take_out(digest)
            && let Some(pins) = self.pinned.get(digest).copied()
        {
            for child in old.kind.children().iter() {
                self.pin_tree(child, -i64::from(pins));
            }
        }
        let repositories = self.links.remove(digest).unwrap_or_default();
        for repository in &repositories {
            if let Some(count) = self.repositories.get_mut(repository) {
                *count -= 1;
                if *count == 0 {
                    self.repositories.remove(repository);
                }
            }
        }
        repositories
    }

    /// A response is being sent from it: it stays until [`Index::release`].
    pub(super) fn lease(&mut self, digest: &Digest) -> bool {
        self.delist(digest);
        let Some(entry) = self.entries.get_mut(digest) else {
            return false;
        };
        entry.leases += 1;
        true
    }

    pub(super) fn release(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.leases = entry.leases.saturating_sub(1);
            self.enlist(digest);
        }
    }

    // --- links --------------------------------------------------------------------------------------

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

    /// The repositories that have shown that they hold it, in byte order.
    pub(super) fn links_of(&self, digest: &Digest) -> impl Iterator<Item = &Arc<str>> {
        self.links.get(digest).into_iter().flatten()
    }

    /// Whether any repository but `repository` is linked to it.
    pub(super) fn linked_elsewhere(&self, repository: &str, digest: &Digest) -> bool {
        self.links
            .get(digest)
            .is_some_and(|set| set.iter().any(|r| **r != *repository))
    }

    /// Takes one repository's link away. Returns whether there was one.
    pub(super) fn unlink(&mut self, repository: &str, digest: &Digest) -> bool {
        let gone = self.links.get_mut(digest).is_some_and(|set| set.remove(repository));
        if gone && let Some(count) = self.repositories.get_mut(repository) {
            *count -= 1;
            if *count == 0 {
                self.repositories.remove(repository);
            }
        }
        gone
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

    // --- pins ---------------------------------------------------------------------------------------

    /// Pins what `digest` names, all the way down, under a name of its own; a name that pinned something else
    /// lets go of that.
    pub(super) fn pin(&mut self, name: &Arc<str>, digest: Digest) {
        self.unpin(name);
        self.pins.insert(name.clone(), digest);
        self.pin_tree(&digest, 1);
    }

    /// What the name had pinned.
    pub(super) fn unpin(&mut self, name: &str) -> Option<Digest> {
        let digest = self.pins.remove(name)?;
        self.pin_tree(&digest, -1);
        Some(digest)
    }

    pub(super) fn is_pinned(&self, digest: &Digest) -> bool {
        self.pinned.contains_key(digest)
    }

    /// What a name pins.
    pub(super) fn pin_of(&self, name: &str) -> Option<&Digest> {
        self.pins.get(name)
    }

    fn pin_tree(&mut self, digest: &Digest, change: i64) {
        let count = i64::from(self.pinned.get(digest).copied().unwrap_or(0)) + change;
        match u32::try_from(count) {
            Ok(count) if count > 0 => {
                self.pinned.insert(*digest, count);
                self.delist(digest);
            }
            _ => {
                self.pinned.remove(digest);
                self.enlist(digest);
            }
        }
        // Content addresses make no circles; a manifest names what was there before it.
        let children = self.entries.get(digest).map(|e| e.kind.children()).unwrap_or_default();
        for child in children.iter() {
            self.pin_tree(child, change);
        }
    }

    // --- transfers ----------------------------------------------------------------------------------

    /// Counts `size` bytes for a transfer. Grows, never shrinks, while it runs.
    pub(super) fn stage(&mut self, digest: &Digest, size: u64, state: Staging, shelf: usize) {
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
        };
        self.put_staged(*digest, staged);
    }

    /// Whether its one place among what is staged is taken.
    pub(super) fn staging(&self, digest: &Digest) -> Option<Staging> {
        self.staged.get(digest).map(|s| s.state)
    }

    /// Bytes counted for a transfer, and its shelf.
    pub(super) fn staged(&self, digest: &Digest) -> (u64, usize) {
        self.staged.get(digest).map_or((0, 0), |s| (s.bytes, s.shelf))
    }

    /// Notes how much of a transfer is in its file.
    pub(super) fn set_written(&mut self, digest: &Digest, size: u64) {
        if let Some(staged) = self.take_staged(digest) {
            let written = on_disk(size);
            self.put_staged(*digest, Staged { written, ..staged });
        }
    }

    pub(super) fn unstage(&mut self, digest: &Digest) {
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
                *count + bytes
            } else {
                count.saturating_sub(bytes)
            }
        };
        change(&mut self.staged_bytes, staged.bytes);
        change(&mut self.unwritten_bytes, staged.bytes.saturating_sub(staged.written));
        if staged.state == Staging::Idle {
            change(&mut self.idle_bytes, staged.bytes);
        }
        if let Some(shelf) = self.shelves.get_mut(staged.shelf) {
            change(&mut shelf.staged_bytes, staged.bytes);
        }
    }

    // --- eviction -----------------------------------------------------------------------------------

    /// The next thing to delete. Already taken out of the index when this returns.
    pub(super) fn evict(&mut self, scope: Scope) -> Option<(Victim, BTreeSet<Arc<str>>)> {
        let in_scope = |shelf: usize| scope == Scope::All || scope == Scope::Shelf(shelf);
        let idle = || {
            let mut staged = self.staged.iter();
            let found = staged.find(|(_, s)| s.state == Staging::Idle && in_scope(s.shelf));
            found.map(|(digest, _)| *digest)
        };
        if self.idle_bytes > 0
            && let Some(digest) = idle()
        {
            self.unstage(&digest);
            return Some((Victim::Part(digest), BTreeSet::new()));
        }
        let shelves = || {
            self.shelves
                .iter()
                .enumerate()
                .filter(|(id, _)| in_scope(*id))
                .map(|(_, shelf)| shelf)
        };
        let oldest = |lists: &mut dyn Iterator<Item = &BTreeMap<u64, Digest>>| {
            lists
                .filter_map(|list| list.first_key_value())
                .min_by_key(|(tick, _)| **tick)
                .map(|(_, digest)| *digest)
        };
        let blob = oldest(&mut shelves().map(|s| &s.blobs));
        let manifest = oldest(&mut shelves().map(|s| &s.manifests));
        let held: u64 = shelves().map(|s| s.held_bytes).sum();
        let manifests: u64 = shelves().map(|s| s.manifest_bytes).sum();
        let digest = match (blob, manifest) {
            (Some(_), Some(manifest)) if manifests > held / MANIFEST_SHARE => manifest,
            (Some(blob), _) => blob,
            (None, manifest) => manifest?,
        };
        Some((Victim::Blob(digest), self.remove(&digest)))
    }

    fn take_out(&mut self, digest: &Digest) -> Option<Entry> {
        self.delist(digest);
        let entry = self.entries.remove(digest)?;
        self.count_bytes(entry.shelf, &entry.kind, entry.size, false);
        Some(entry)
    }

    fn count_bytes(&mut self, shelf: usize, kind: &Kind, size: u64, add: bool) {
        let bytes = on_disk(size);
        let change = |count: &mut u64| {
            *count = if add {
                *count + bytes
            } else {
                count.saturating_sub(bytes)
            }
        };
        change(&mut self.held_bytes);
        if let Some(shelf) = self.shelves.get_mut(shelf) {
            change(&mut shelf.held_bytes);
            if *kind != Kind::Blob {
                change(&mut shelf.manifest_bytes);
            }
        }
    }

    fn renew(&mut self, digest: &Digest) {
        self.delist(digest);
        let tick = self.tick();
        if let Some(entry) = self.entries.get_mut(digest) {
            entry.tick = tick;
            self.enlist(digest);
        }
    }

    /// Puts an entry among those that may go, unless something holds it.
    fn enlist(&mut self, digest: &Digest) {
        let Some(entry) = self.entries.get(digest) else { return };
        if entry.leases > 0 || self.pinned.contains_key(digest) {
            return;
        }
        if let Some(shelf) = self.shelves.get_mut(entry.shelf) {
            let list = if entry.kind == Kind::Blob {
                &mut shelf.blobs
            } else {
                &mut shelf.manifests
            };
            if list.insert(entry.tick, *digest).is_none() {
                shelf.loose_bytes += on_disk(entry.size);
            }
        }
    }

    fn delist(&mut self, digest: &Digest) {
        let Some(entry) = self.entries.get(digest) else { return };
        if let Some(shelf) = self.shelves.get_mut(entry.shelf) {
            let list = if entry.kind == Kind::Blob {
                &mut shelf.blobs
            } else {
                &mut shelf.manifests
            };
            if list.remove(&entry.tick).is_some() {
                shelf.loose_bytes = shelf.loose_bytes.saturating_sub(on_disk(entry.size));
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

    fn manifest(children: &[u8]) -> Kind {
        Kind::Manifest {
            media_type: "x/y".into(),
            children: children.iter().map(|n| digest(*n)).collect(),
        }
    }

    fn victim(index: &mut Index) -> Option<Victim> {
        index.evict(Scope::All).map(|(victim, _)| victim)
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u8, u16, u8),
        /// A manifest that names the digests from one to another.
        Manifest(u8, u8, u8),
        Touch(u8),
        Remove(u8),
        Evict(Option<u8>),
        Link(u8, u8),
        Lease(u8),
        Release(u8),
        Pin(u8, u8),
        Unpin(u8),
        Stage(u8, u16),
        Unstage(u8),
    }

    const SHELVES: u8 = 3;

    fn op() -> impl Strategy<Value = Op> {
        let d = || 0..20u8;
        prop_oneof![
            4 => (d(), any::<u16>(), 0..SHELVES).prop_map(|(d, s, h)| Op::Insert(d, s, h)),
            // Children have smaller numbers than their parents: content addresses make no circles.
            2 => (10..20u8, 0..10u8, 0..10u8).prop_map(|(d, a, b)| Op::Manifest(d, a.min(b), a.max(b))),
            3 => d().prop_map(Op::Touch),
            1 => d().prop_map(Op::Remove),
            2 => proptest::option::of(0..SHELVES).prop_map(Op::Evict),
            2 => (d(), 0..4u8).prop_map(|(d, r)| Op::Link(d, r)),
            1 => d().prop_map(Op::Lease),
            1 => d().prop_map(Op::Release),
            1 => (0..3u8, d()).prop_map(|(p, d)| Op::Pin(p, d)),
            1 => (0..3u8).prop_map(Op::Unpin),
            1 => (20..25u8, any::<u16>()).prop_map(|(d, s)| Op::Stage(d, s)),
            1 => (20..25u8).prop_map(Op::Unstage),
        ]
    }

    /// The plainest thing that could be right: a vector, oldest first, and everything looked up by walking it.
    #[derive(Clone, Debug)]
    struct Item {
        digest: u8,
        size: u64,
        children: Option<Vec<u8>>,
        shelf: u8,
        leases: u32,
        links: BTreeSet<u8>,
    }

    #[derive(Default)]
    struct Model {
        items: Vec<Item>,
        pins: BTreeMap<u8, u8>,
        staged: BTreeMap<u8, u64>,
    }

    impl Model {
        fn at(&self, d: u8) -> Option<usize> {
            self.items.iter().position(|i| i.digest == d)
        }

        fn renew(&mut self, d: u8) {
            if let Some(at) = self.at(d) {
                let item = self.items.remove(at);
                self.items.push(item);
            }
        }

        fn insert(&mut self, d: u8, size: u64, children: Option<Vec<u8>>, shelf: u8) {
            let old = self.at(d).map(|at| self.items.remove(at));
            let children = children.or_else(|| old.as_ref().and_then(|o| o.children.clone()));
            let (shelf, leases, links) = old.map_or((shelf, 0, BTreeSet::new()), |o| (o.shelf, o.leases, o.links));
            self.items.push(Item {
                digest: d,
                size,
                children,
                shelf,
                leases,
                links,
            });
        }

        fn is_pinned(&self, d: u8) -> bool {
            fn reaches(model: &Model, from: u8, to: u8) -> bool {
                let children = model
                    .at(from)
                    .and_then(|at| model.items[at].children.clone())
                    .unwrap_or_default();
                from == to || children.iter().any(|c| reaches(model, *c, to))
            }
            self.pins.values().any(|root| reaches(self, *root, d))
        }

        fn bytes(&self, keep: impl Fn(&Item) -> bool) -> u64 {
            self.items.iter().filter(|i| keep(i)).map(|i| on_disk(i.size)).sum()
        }

        fn evict(&mut self, scope: Option<u8>) -> Option<u8> {
            let inside = |i: &Item| scope.is_none_or(|s| s == i.shelf);
            let free = |m: &Model, i: &Item| inside(i) && i.leases == 0 && !m.is_pinned(i.digest);
            let first = |m: &Model, manifest: bool| {
                m.items
                    .iter()
                    .position(|i| i.children.is_some() == manifest && free(m, i))
            };
            let manifests = self.bytes(|i| inside(i) && i.children.is_some());
            let crowded = manifests > self.bytes(inside) / MANIFEST_SHARE;
            let at = match (first(self, false), first(self, true)) {
                (Some(_), Some(m)) if crowded => m,
                (Some(b), _) => b,
                (None, m) => m?,
            };
            Some(self.items.remove(at).digest)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn behaves_like_the_model(ops in proptest::collection::vec(op(), 0..150)) {
            let mut index = Index::default();
            let shelves: Vec<usize> = (0..SHELVES).map(|s| index.shelf(&format!("s{s}/r"))).collect();
            let mut model = Model::default();
            for op in ops {
                match op {
                    Op::Insert(d, size, shelf) => {
                        index.insert(digest(d), u64::from(size), 0, Kind::Blob, shelves[usize::from(shelf)]);
                        model.insert(d, u64::from(size), None, shelf);
                    }
                    Op::Manifest(d, a, b) => {
                        // One digest is one document: what it names never changes.
                        let known = model.at(d).and_then(|at| model.items[at].children.clone());
                        let children = known.unwrap_or_else(|| (a..b).collect());
                        index.insert(digest(d), 100, 0, manifest(&children), shelves[0]);
                        model.insert(d, 100, Some(children), 0);
                    }
                    Op::Touch(d) => {
                        prop_assert_eq!(index.touch(&digest(d)), model.at(d).is_some());
                        if let Some(at) = model.at(d) {
                            for child in model.items[at].children.clone().unwrap_or_default() {
                                model.renew(child);
                            }
                            model.renew(d);
                        }
                    }
                    Op::Remove(d) => {
                        index.remove(&digest(d));
                        model.items.retain(|i| i.digest != d);
                    }
                    Op::Evict(scope) => {
                        let place = scope.map_or(Scope::All, |s| Scope::Shelf(shelves[usize::from(s)]));
                        let gone = index.evict(place).map(|(v, _)| v);
                        prop_assert_eq!(gone, model.evict(scope).map(|d| Victim::Blob(digest(d))));
                    }
                    Op::Link(d, r) => {
                        if let Some(at) = model.at(d) {
                            prop_assert_eq!(index.link(&format!("r{r}").into(), &digest(d)), model.items[at].links.insert(r));
                        }
                    }
                    Op::Lease(d) => {
                        prop_assert_eq!(index.lease(&digest(d)), model.at(d).is_some());
                        if let Some(at) = model.at(d) { model.items[at].leases += 1; }
                    }
                    Op::Release(d) => {
                        index.release(&digest(d));
                        if let Some(at) = model.at(d) {
                            model.items[at].leases = model.items[at].leases.saturating_sub(1);
                        }
                    }
                    Op::Pin(p, d) => {
                        index.pin(&format!("p{p}").into(), digest(d));
                        model.pins.insert(p, d);
                    }
                    Op::Unpin(p) => {
                        prop_assert_eq!(index.unpin(&format!("p{p}")), model.pins.remove(&p).map(digest));
                    }
                    Op::Stage(d, size) => {
                        index.stage(&digest(d), u64::from(size), Staging::Active, shelves[0]);
                        let bytes = model.staged.entry(d).or_default();
                        *bytes = (*bytes).max(on_disk(u64::from(size)));
                    }
                    Op::Unstage(d) => {
                        index.unstage(&digest(d));
                        model.staged.remove(&d);
                    }
                }
                prop_assert_eq!(index.used_bytes(), model.bytes(|_| true) + model.staged.values().sum::<u64>());
                prop_assert_eq!(index.count(), model.items.len());
                for d in 0..20 {
                    prop_assert_eq!(index.is_pinned(&digest(d)), model.is_pinned(d), "pin of {}", d);
                }
                let names: BTreeSet<String> = model.items.iter().flat_map(|i| i.links.iter().map(|r| format!("r{r}"))).collect();
                let told: BTreeSet<String> = index.repositories("", 100).iter().map(|n| n.to_string()).collect();
                prop_assert_eq!(names, told);
                for (shelf, (_, held, _)) in index.shelves().iter().enumerate() {
                    prop_assert_eq!(*held, model.bytes(|i| usize::from(i.shelf) == shelf));
                }
            }
        }
    }

    /// A layer that a live image shares outlives a dead image's own; manifests outlive layers.
    #[test]
    fn use_is_of_the_image() {
        let mut index = Index::default();
        let shelf = index.shelf("docker.io/library/a");
        let mib = 1 << 20;
        for layer in [1, 2, 3] {
            index.insert(digest(layer), mib, 0, Kind::Blob, shelf);
        }
        index.insert(digest(10), 500, 0, manifest(&[1, 2]), shelf);
        index.insert(digest(11), 500, 0, manifest(&[2, 3]), shelf);
        index.touch(&digest(10));
        assert_eq!(
            victim(&mut index),
            Some(Victim::Blob(digest(3))),
            "only the dead image has it"
        );
        assert_eq!(victim(&mut index), Some(Victim::Blob(digest(1))));
        assert_eq!(victim(&mut index), Some(Victim::Blob(digest(2))));
        assert_eq!(victim(&mut index), Some(Victim::Blob(digest(11))));
        assert_eq!(victim(&mut index), Some(Victim::Blob(digest(10))));
        assert_eq!(victim(&mut index), None);
    }

    #[test]
    fn abandoned_transfers_go_first_and_running_ones_stay() {
        let mut index = Index::default();
        let shelf = index.shelf("r");
        index.insert(digest(1), 10, 1, Kind::Blob, shelf);
        index.stage(&digest(2), 10_000, Staging::Active, shelf);
        index.stage(&digest(3), 5_000, Staging::Idle, shelf);
        assert_eq!(index.used_bytes(), 4096 + 12_288 + 8192);
        assert_eq!(victim(&mut index), Some(Victim::Part(digest(3))));
        assert_eq!(victim(&mut index), Some(Victim::Blob(digest(1))));
        assert_eq!(victim(&mut index), None);
        index.unstage(&digest(2));
        assert_eq!(index.used_bytes(), 0);
    }

    #[test]
    fn shelves_have_limits_of_their_own() {
        let mut index = Index::default();
        index.limit_shelf("ghcr.io", 4096);
        let (ghcr, hub) = (index.shelf("ghcr.io/a/b"), index.shelf("docker.io/library/a"));
        index.insert(digest(1), 1, 0, Kind::Blob, hub);
        index.insert(digest(2), 1, 0, Kind::Blob, ghcr);
        index.stage(&digest(3), 1, Staging::Active, ghcr);
        assert_eq!((index.over_limit(ghcr, 0), index.over_limit(hub, 0)), (4096, 0));
        assert_eq!(
            index.evict(Scope::Shelf(ghcr)).map(|v| v.0),
            Some(Victim::Blob(digest(2)))
        );
        assert_eq!(index.evict(Scope::Shelf(ghcr)).map(|v| v.0), None);
        assert_eq!(index.over_limit(ghcr, 0), 0);
    }
}
