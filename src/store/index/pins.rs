//! Pins: by name, each reaching all that its manifest names, all the way down.
//!
//! A digest keeps the numbers of the pins that reach it, held or not. A set and not a count: one document may name
//! another twice, and a few dozen that do so make more paths than there are atoms.

use std::sync::Arc;

use super::Index;
use crate::oci::Digest;

/// What a name pins.
pub(super) struct Pin {
    pub(super) digest: Digest,
    id: u32,
}

impl Index {
    /// Pins what `digest` names, all the way down, under a name of its own; a name that pinned something else
    /// lets go of that.
    pub(in crate::store) fn pin(&mut self, name: &Arc<str>, digest: Digest) {
        self.unpin(name);
        let id = self.free_pins.pop().unwrap_or(self.next_pin);
        self.next_pin = self.next_pin.max(id.saturating_add(1));
        self.pins.insert(name.clone(), Pin { digest, id });
        self.pin_roots.insert(id, digest);
        self.reach(id, vec![digest]);
    }

    /// What the name had pinned.
    pub(in crate::store) fn unpin(&mut self, name: &str) -> Option<Digest> {
        let Pin { digest, id } = self.pins.remove(name)?;
        self.pin_roots.remove(&id);
        self.let_go(id, digest);
        self.free_pins.push(id);
        Some(digest)
    }

    pub(in crate::store) fn is_pinned(&self, digest: &Digest) -> bool {
        self.pinned.contains_key(digest)
    }

    /// What a name pins.
    pub(in crate::store) fn pin_of(&self, name: &str) -> Option<&Digest> {
        self.pins.get(name).map(|pin| &pin.digest)
    }

    /// A manifest has come: the pins that reach it reach what it names.
    pub(super) fn extend_pins(&mut self, digest: &Digest) {
        let ids = self
            .pinned
            .get(digest)
            .map(|set| set.ids().to_vec())
            .unwrap_or_default();
        for id in ids {
            self.reach(id, self.children_of(digest));
        }
    }

    /// A manifest is about to go. Returns what [`Index::restore_pins`] needs when it has gone.
    pub(super) fn suspend_pins(&mut self, digest: &Digest) -> Vec<u32> {
        if self.children_of(digest).is_empty() {
            return Vec::new();
        }
        let ids = self
            .pinned
            .get(digest)
            .map(|set| set.ids().to_vec())
            .unwrap_or_default();
        for id in &ids {
            if let Some(root) = self.pin_roots.get(id).copied() {
                self.let_go(*id, root);
            }
        }
        ids
    }

    pub(super) fn restore_pins(&mut self, ids: Vec<u32>) {
        for id in ids {
            if let Some(root) = self.pin_roots.get(&id).copied() {
                self.reach(id, vec![root]);
            }
        }
    }

    fn reach(&mut self, id: u32, mut queue: Vec<Digest>) {
        while let Some(digest) = queue.pop() {
            if self.pinned.entry(digest).or_default().add(id) {
                if let Some(slot) = self.entries.find(&digest) {
                    self.delist(slot);
                }
                queue.extend(self.children_of(&digest));
            }
        }
    }

    fn let_go(&mut self, id: u32, root: Digest) {
        let mut queue = vec![root];
        while let Some(digest) = queue.pop() {
            let Some(set) = self.pinned.get_mut(&digest) else {
                continue;
            };
            if set.remove(id) {
                if set.ids().is_empty() {
                    self.pinned.remove(&digest);
                    if let Some(slot) = self.entries.find(&digest) {
                        self.enlist(slot);
                    }
                }
                queue.extend(self.children_of(&digest));
            }
        }
    }

    fn children_of(&self, digest: &Digest) -> Vec<Digest> {
        let entry = self.entries.get(digest);
        entry.map(|entry| entry.kind.children().to_vec()).unwrap_or_default()
    }
}
