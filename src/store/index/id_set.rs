//! A small set of numbers: an entry's repositories, or the pins that reach it.

/// Nearly always one number, so that one takes no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum IdSet {
    #[default]
    None,
    One(u32),
    /// In order of their numbers.
    Many(Vec<u32>),
}

impl IdSet {
    pub(super) fn ids(&self) -> &[u32] {
        match self {
            IdSet::None => &[],
            IdSet::One(id) => std::slice::from_ref(id),
            IdSet::Many(ids) => ids,
        }
    }

    /// Returns whether it is new.
    pub(super) fn add(&mut self, id: u32) -> bool {
        let Err(at) = self.ids().binary_search(&id) else {
            return false;
        };
        *self = match std::mem::take(self) {
            IdSet::None => IdSet::One(id),
            IdSet::One(other) => IdSet::Many(vec![other.min(id), other.max(id)]),
            IdSet::Many(mut ids) => {
                ids.insert(at, id);
                IdSet::Many(ids)
            }
        };
        true
    }

    /// Returns whether it was there.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let Ok(at) = self.ids().binary_search(&id) else {
            return false;
        };
        *self = match std::mem::take(self) {
            IdSet::None | IdSet::One(_) => IdSet::None,
            IdSet::Many(mut ids) => {
                ids.remove(at);
                match ids[..] {
                    [] => IdSet::None,
                    [id] => IdSet::One(id),
                    _ => IdSet::Many(ids),
                }
            }
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(ops in proptest::collection::vec((any::<bool>(), 0..8u32), 0..60)) {
            let (mut set, mut model) = (IdSet::None, BTreeSet::new());
            for (add, id) in ops {
                if add {
                    prop_assert_eq!(set.add(id), model.insert(id));
                } else {
                    prop_assert_eq!(set.remove(id), model.remove(&id));
                }
                prop_assert!(set.ids().iter().eq(model.iter()));
            }
        }
    }
}
