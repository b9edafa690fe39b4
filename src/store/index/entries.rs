//! The held entries: a slab of them, and a table that finds their slots by digest.
//!
//! A million entries are an everyday cache of small layers, so an entry is kept once and everything else (order,
//! lists, table) knows it by its slot, four bytes.

use std::sync::Arc;

use hashbrown::HashTable;

use super::digest_map::DigestState;
use super::id_set::IdSet;
use crate::oci::Digest;

/// From so many bytes of names on, a manifest's share of the memory is counted: some 500 descriptors.
const WIDE_BYTES: u64 = 16 * 1024;

/// What a held digest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    Blob,
    Manifest(Arc<Document>),
}

/// Of a manifest: its media type and what it names.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) struct Document {
    pub(in crate::store) media_type: Arc<str>,
    pub(in crate::store) children: Children,
}

/// Digests as their keys, one behind the other: 33 bytes for nearly all, where a [`Digest`] takes 65. An index may name
/// ten thousand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Children(Box<[u8]>);

impl Children {
    pub(in crate::store) fn new(digests: &[Digest]) -> Children {
        let mut keys = Vec::with_capacity(digests.len() * 33);
        for digest in digests {
            digest.write_key(&mut keys);
        }
        Children(keys.into())
    }

    /// From keys; `None` for bytes that are none.
    pub(in crate::store) fn from_keys(keys: &[u8]) -> Option<Children> {
        let mut rest = keys;
        while !rest.is_empty() {
            (_, rest) = Digest::split_key(rest)?;
        }
        Some(Children(keys.into()))
    }

    pub(in crate::store) fn keys(&self) -> &[u8] {
        &self.0
    }

    pub(in crate::store) fn iter(&self) -> impl Iterator<Item = Digest> + use<'_> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (digest, behind) = Digest::split_key(rest)?;
            rest = behind;
            Some(digest)
        })
    }

    pub(in crate::store) fn to_vec(&self) -> Vec<Digest> {
        self.iter().collect()
    }

    pub(in crate::store) fn contains(&self, digest: &Digest) -> bool {
        self.iter().any(|child| child == *digest)
    }
}

/// The children of a blob.
static NO_CHILDREN: std::sync::LazyLock<Children> = std::sync::LazyLock::new(Children::default);

impl Kind {
    pub(in crate::store) fn manifest(media_type: Arc<str>, children: impl AsRef<[Digest]>) -> Kind {
        Kind::with_children(media_type, Children::new(children.as_ref()))
    }

    pub(in crate::store) fn with_children(media_type: Arc<str>, children: Children) -> Kind {
        Kind::Manifest(Arc::new(Document { media_type, children }))
    }

    pub(in crate::store) fn document(&self) -> Option<&Arc<Document>> {
        match self {
            Kind::Blob => None,
            Kind::Manifest(document) => Some(document),
        }
    }

    pub(in crate::store) fn media_type(&self) -> Option<&Arc<str>> {
        self.document().map(|document| &document.media_type)
    }

    pub(in crate::store) fn children(&self) -> &Children {
        self.document().map_or(&NO_CHILDREN, |document| &document.children)
    }

    /// Bytes that what it names takes in memory, if that is much.
    pub(super) fn wide_bytes(&self) -> u64 {
        let bytes = self.children().keys().len() as u64;
        if bytes > WIDE_BYTES { bytes } else { 0 }
    }
}

/// Where an entry is, as long as it is held.
pub(super) type Slot = u32;

#[derive(Debug)]
pub(in crate::store) struct Entry {
    pub(in crate::store) digest: Digest,
    pub(in crate::store) size: u64,
    /// Unix milliseconds of the last use that was written down; the true order is that of the ticks.
    pub(in crate::store) used_ms: u64,
    pub(in crate::store) kind: Kind,
    /// Numbers of the repositories that have shown that they hold it (L8).
    pub(super) links: IdSet,
    pub(super) tick: u64,
    pub(super) shelf: u32,
    /// Responses that are being sent from it.
    pub(super) leases: u32,
    /// Counted and in its place, but not in the database yet: nobody is told that it is held.
    pub(super) hidden: bool,
}

#[derive(Default)]
pub(super) struct Entries {
    slots: Vec<Option<Entry>>,
    free: Vec<Slot>,
    table: HashTable<Slot>,
    state: DigestState,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<Slot> {
        let same = |slot: &Slot| self.at(*slot).is_some_and(|entry| entry.digest == *digest);
        self.table.find(self.state.digest(digest), same).copied()
    }

    /// The same, looking at the next few slots from `near` on before the table is asked.
    pub(super) fn find_from(&self, digest: &Digest, near: Slot) -> Option<Slot> {
        let mut next = (near..near.saturating_add(8)).map_while(|slot| Some((slot, self.at(slot)?)));
        match next.find(|(_, entry)| entry.digest == *digest) {
            Some((slot, _)) => Some(slot),
            None => self.find(digest),
        }
    }

    pub(super) fn at(&self, slot: Slot) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&Entry> {
        self.at(self.find(digest)?)
    }

    pub(super) fn get_mut(&mut self, digest: &Digest) -> Option<&mut Entry> {
        self.at_mut(self.find(digest)?)
    }

    /// Makes room for so many more at once.
    pub(super) fn reserve(&mut self, count: usize) {
        let (slots, state) = (&self.slots, &self.state);
        let hash = |slot: &Slot| hash_of(slots, state, *slot);
        self.table.reserve(count, hash);
        self.slots.reserve(count);
    }

    /// Puts in an entry whose digest is not there yet.
    pub(super) fn add(&mut self, entry: Entry) -> Slot {
        let hash = self.state.digest(&entry.digest);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                // Four thousand million entries take more memory than there is.
                Slot::try_from(self.slots.len() - 1).unwrap_or(Slot::MAX)
            }
        };
        let (slots, state) = (&self.slots, &self.state);
        self.table
            .insert_unique(hash, slot, |slot| hash_of(slots, state, *slot));
        slot
    }

    pub(super) fn take(&mut self, slot: Slot) -> Option<Entry> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        let hash = self.state.digest(&entry.digest);
        if let Ok(place) = self.table.find_entry(hash, |held| *held == slot) {
            place.remove();
        }
        self.free.push(slot);
        Some(entry)
    }

    /// Slots in use.
    pub(super) fn slots(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }

    /// Those in use of the `count` slots from `from` on; the next `from`, or `None` at the end.
    pub(super) fn page(&self, from: Slot, count: u32) -> (impl Iterator<Item = (Slot, &Entry)>, Option<Slot>) {
        let next = from.saturating_add(count);
        let slots = (from..next).map_while(|slot| Some((slot, self.slots.get(slot as usize)?)));
        let used = slots.filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)));
        (used, ((next as usize) < self.slots.len()).then_some(next))
    }
}

fn hash_of(slots: &[Option<Entry>], state: &DigestState, slot: Slot) -> u64 {
    let entry = slots.get(slot as usize).and_then(Option::as_ref);
    entry.map_or(0, |entry| state.digest(&entry.digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Option<Entry>>() <= 144, "{}", size_of::<Option<Entry>>());
    }
}
