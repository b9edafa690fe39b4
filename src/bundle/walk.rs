//! From a manifest down to all that it names, leaving out what is not to be reached.

use std::collections::HashSet;

use crate::oci::Digest;
use crate::store::Store;

/// Everything that `roots` reach through held manifests, each once, roots first; nothing of what `leave` names.
pub(super) fn reach(store: &Store, roots: &[Digest], leave: &HashSet<Digest>) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let mut order: Vec<Digest> = Vec::new();
    let mut take = |digest: Digest, order: &mut Vec<Digest>| {
        if !leave.contains(&digest) && seen.insert(digest) {
            order.push(digest);
        }
    };
    for root in roots {
        take(*root, &mut order);
    }
    let mut at = 0;
    while let Some(digest) = order.get(at).copied() {
        at += 1;
        for child in store.children(&digest) {
            take(child, &mut order);
        }
    }
    order
}
