//! Shelves: one upstream's part of the cache each, with a limit of its own if the operator gave it one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entries::{Entry, Kind, Slot};
use super::staging::Staging;
use super::{Index, Scope, sum};

/// One upstream's part of the cache. The store knows only its name: a repository's key up to its first slash.
#[derive(Default)]
pub(super) struct Shelf {
    name: Arc<str>,
    max_bytes: Option<u64>,
    pub(super) held_bytes: u64,
    pub(super) manifest_bytes: u64,
    /// Bytes of transfers.
    pub(super) staged_bytes: u64,
    /// Held bytes of what may go.
    pub(super) loose_bytes: u64,
    /// What may go, by tick, oldest first.
    pub(super) blobs: BTreeMap<u64, Slot>,
    pub(super) manifests: BTreeMap<u64, Slot>,
}

impl Shelf {
    fn used_bytes(&self) -> u64 {
        self.held_bytes.saturating_add(self.staged_bytes)
    }

    /// Where an entry of this kind waits for its turn to go.
    pub(super) fn list(&mut self, kind: &Kind) -> &mut BTreeMap<u64, Slot> {
        match kind {
            Kind::Blob => &mut self.blobs,
            Kind::Manifest(_) => &mut self.manifests,
        }
    }
}

impl Index {
    /// The shelf that a repository's content stands on.
    pub(in crate::store) fn shelf(&mut self, repository: &str) -> usize {
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

    pub(in crate::store) fn limit_shelf(&mut self, name: &str, max_bytes: Option<u64>) {
        let id = self.shelf(name);
        self.shelves[id].max_bytes = max_bytes;
    }

    pub(in crate::store) fn lift_shelf_limits(&mut self) {
        for shelf in &mut self.shelves {
            shelf.max_bytes = None;
        }
    }

    /// Bytes over the shelf's own limit when `more` come to it, staged ones counted.
    pub(in crate::store) fn over_limit(&self, shelf: usize, more: u64) -> u64 {
        let Some(shelf_ref) = self.shelves.get(shelf) else {
            return 0;
        };
        let Some(max) = shelf_ref.max_bytes else { return 0 };
        shelf_ref.used_bytes().saturating_add(more).saturating_sub(max)
    }

    /// Bytes that can come to a shelf before it is over its own limit.
    pub(in crate::store) fn free_on_shelf(&self, shelf: usize) -> u64 {
        let free = |shelf: &Shelf| Some(shelf.max_bytes?.saturating_sub(shelf.used_bytes()));
        self.shelves.get(shelf).and_then(free).unwrap_or(u64::MAX)
    }

    /// A shelf, other than those to skip, that holds more than its own limit allows, or will when `more` comes to
    /// `growing`.
    pub(in crate::store) fn crowded(&self, skip: &[usize], growing: Option<usize>, more: u64) -> Option<usize> {
        let more = |shelf: usize| if growing == Some(shelf) { more } else { 0 };
        (0..self.shelves.len()).find(|shelf| self.over_limit(*shelf, more(*shelf)) > 0 && !skip.contains(shelf))
    }

    /// Whether `more` bytes could stand on a shelf once all that may go from it has gone.
    pub(in crate::store) fn could_stand(&self, shelf: usize, more: u64) -> bool {
        let Some(max) = self.shelf_limit(shelf) else {
            return true;
        };
        let counted = self.shelves.get(shelf).map_or(0, Shelf::used_bytes);
        counted
            .saturating_sub(self.loose_bytes(Scope::Shelf(shelf)))
            .saturating_add(more)
            <= max
    }

    /// Bytes of all that may go.
    pub(in crate::store) fn loose_bytes(&self, scope: Scope) -> u64 {
        let idle = |shelf: usize| -> u64 {
            let idle = self
                .staged
                .values()
                .filter(|s| s.state == Staging::Idle && s.shelf == shelf);
            sum(idle.map(|s| s.bytes))
        };
        match scope {
            Scope::All => sum(self.shelves.iter().map(|s| s.loose_bytes)).saturating_add(self.idle_bytes),
            Scope::Wide => 0,
            Scope::Shelf(id) => self
                .shelves
                .get(id)
                .map_or(0, |s| s.loose_bytes)
                .saturating_add(idle(id)),
        }
    }

    pub(in crate::store) fn shelf_limit(&self, shelf: usize) -> Option<u64> {
        self.shelves.get(shelf).and_then(|s| s.max_bytes)
    }

    /// Name and held bytes of every shelf.
    pub(in crate::store) fn shelves(&self) -> Vec<(Arc<str>, u64, Option<u64>)> {
        self.shelves
            .iter()
            .map(|s| (s.name.clone(), s.held_bytes, s.max_bytes))
            .collect()
    }

    pub(in crate::store) fn shelf_name(&self, entry: &Entry) -> &str {
        self.shelves.get(entry.shelf as usize).map_or("", |shelf| &shelf.name)
    }
}
