//! Which repository has shown that it holds what (L8).

use std::sync::Arc;

use super::Index;
use super::id_set::IdSet;
use super::repositories::Id;
use crate::oci::Digest;

impl Index {
    /// Notes that `repository` has shown that it holds `digest`. Returns whether that is news; a digest that is not
    /// held takes no links.
    pub(in crate::store) fn link(&mut self, repository: &Arc<str>, digest: &Digest) -> bool {
        let Some(entry) = self.entries.get_mut(digest) else {
            return false;
        };
        let id = self.repositories.enter(repository);
        let is_new = entry.links.add(id);
        if is_new {
            self.repositories.count(id);
        }
        is_new
    }

    /// Notes many links at once, told in order of their digests, with each repository's place in `names`. Quick for an
    /// index that was loaded in the same order.
    pub(in crate::store) fn link_all(&mut self, names: &[Arc<str>], links: impl Iterator<Item = (Digest, u32)>) {
        let mut ids: Vec<Option<Id>> = vec![None; names.len()];
        let mut near = 0;
        for (digest, repository) in links {
            let Some(slot) = self.entries.find_from(&digest, near) else {
                continue;
            };
            near = slot;
            let Some((name, id)) = names.get(repository as usize).zip(ids.get_mut(repository as usize)) else {
                continue;
            };
            let id = *id.get_or_insert_with(|| self.repositories.enter(name));
            if self.entries.at_mut(slot).is_some_and(|entry| entry.links.add(id)) {
                self.repositories.count(id);
            }
        }
    }

    pub(in crate::store) fn linked(&self, repository: &str, digest: &Digest) -> bool {
        let Some(entry) = self.entries.get(digest) else {
            return false;
        };
        match &entry.links {
            IdSet::None => false,
            // Nearly always: no search by name.
            IdSet::One(id) => self.is_named(*id, repository),
            IdSet::Many(ids) => self
                .repositories
                .id(repository)
                .is_some_and(|id| ids.binary_search(&id).is_ok()),
        }
    }

    /// The repositories that have shown that they hold it, in byte order.
    pub(in crate::store) fn links_of(&self, digest: &Digest) -> Vec<Arc<str>> {
        self.entries
            .get(digest)
            .map_or_else(Vec::new, |entry| self.names(&entry.links))
    }

    /// Whether any repository but `repository` is linked to it.
    pub(in crate::store) fn linked_elsewhere(&self, repository: &str, digest: &Digest) -> bool {
        let ids = self.entries.get(digest).map_or(&[][..], |entry| entry.links.ids());
        match ids {
            [] => false,
            [id] => !self.is_named(*id, repository),
            // Of two, one at least is another.
            _ => true,
        }
    }

    /// Takes one repository's link away. Returns whether there was one.
    pub(in crate::store) fn unlink(&mut self, repository: &str, digest: &Digest) -> bool {
        let Some(id) = self.repositories.id(repository) else {
            return false;
        };
        let gone = self.entries.get_mut(digest).is_some_and(|entry| entry.links.remove(id));
        if gone {
            self.repositories.discount(id);
        }
        gone
    }

    /// Names of repositories of which something is held, in byte order, after `last`.
    pub(in crate::store) fn repositories(&self, last: &str, limit: usize) -> Vec<Arc<str>> {
        self.repositories.after(last, limit)
    }

    pub(super) fn names(&self, links: &IdSet) -> Vec<Arc<str>> {
        let names = links.ids().iter().filter_map(|id| self.repositories.name(*id).cloned());
        let mut names: Vec<Arc<str>> = names.collect();
        names.sort_unstable();
        names
    }

    fn is_named(&self, id: Id, repository: &str) -> bool {
        self.repositories.name(id).is_some_and(|name| **name == *repository)
    }
}
