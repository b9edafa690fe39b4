//! Repositories of which something is held, by number.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A repository's number, as long as anything is linked to it.
pub(super) type Id = u32;

struct Repository {
    name: Arc<str>,
    /// Entries linked to it.
    links: usize,
}

/// The names of repositories of which something is held.
#[derive(Default)]
pub(super) struct Repositories {
    ids: BTreeMap<Arc<str>, Id>,
    by_id: Vec<Option<Repository>>,
    free: Vec<Id>,
}

impl Repositories {
    /// The number of a repository, a new one if it has none. To be followed by [`Repositories::count`].
    pub(super) fn enter(&mut self, name: &Arc<str>) -> Id {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let repository = Some(Repository {
            name: name.clone(),
            links: 0,
        });
        let id = match self.free.pop() {
            Some(id) => {
                self.by_id[id as usize] = repository;
                id
            }
            None => {
                self.by_id.push(repository);
                Id::try_from(self.by_id.len() - 1).unwrap_or(Id::MAX)
            }
        };
        self.ids.insert(name.clone(), id);
        id
    }

    pub(super) fn id(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }

    pub(super) fn name(&self, id: Id) -> Option<&Arc<str>> {
        let repository = self.by_id.get(id as usize)?.as_ref()?;
        Some(&repository.name)
    }

    /// One more entry is linked to it.
    pub(super) fn count(&mut self, id: Id) {
        if let Some(Some(repository)) = self.by_id.get_mut(id as usize) {
            repository.links += 1;
        }
    }

    /// One entry less is; a repository without any is forgotten.
    pub(super) fn discount(&mut self, id: Id) {
        let Some(place) = self.by_id.get_mut(id as usize) else {
            return;
        };
        let Some(repository) = place else { return };
        repository.links = repository.links.saturating_sub(1);
        if repository.links == 0 {
            self.ids.remove(&repository.name);
            *place = None;
            self.free.push(id);
        }
    }

    /// Names in byte order, after `last`.
    pub(super) fn after(&self, last: &str, limit: usize) -> Vec<Arc<str>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let names = self.ids.range::<str, _>((Excluded(last), Unbounded));
        names.take(limit).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_lives_as_long_as_its_links() {
        let mut repositories = Repositories::default();
        let (a, b) = (repositories.enter(&"a".into()), repositories.enter(&"b".into()));
        for id in [a, a, b] {
            repositories.count(id);
        }
        repositories.discount(a);
        assert_eq!(repositories.id("a"), Some(a));
        repositories.discount(a);
        assert_eq!((repositories.id("a"), repositories.name(a)), (None, None));
        assert_eq!(repositories.enter(&"c".into()), a, "numbers are used again");
        assert_eq!(repositories.after("", 9), ["b".into(), "c".into()]);
    }
}
