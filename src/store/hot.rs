//! What is told from memory: one look at the index, and never at disk or database.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::records::TagRecord;
use super::tags::tag_key;
use super::{Manifest, Store, unix_ms};
use crate::oci::Digest;

/// A use is noted at most this often for one manifest: each means moving all that it names in the order of recency,
/// under the index's lock.
const NOTE_USE_EVERY_MS: u64 = 1_000;

/// What the index says of a digest that a repository may show.
#[derive(Clone, Debug)]
pub struct Shown {
    pub size: u64,
    /// Of a manifest.
    pub media_type: Option<Arc<str>>,
}

impl Store {
    /// What is held of a digest, if `repository` has shown that it has it (L8).
    pub fn shown(&self, repository: &str, digest: &Digest) -> Option<Shown> {
        let index = self.inner.index();
        let entry = index.held(digest)?;
        index.linked(repository, digest).then(|| Shown {
            size: entry.size,
            media_type: entry.kind.media_type().cloned(),
        })
    }

    /// A held manifest, if `repository` has shown it (L8) and its bytes are in memory.
    pub fn hot_manifest(&self, repository: &str, digest: &Digest) -> Option<Manifest> {
        self.shown(repository, digest)?.media_type?;
        let hot = self.inner.manifests.get(digest)?;
        let now = unix_ms();
        let noted = hot.use_noted_ms.load(Ordering::Relaxed);
        // A clock that was set back must not keep a use from being noted for as long as that.
        if now.abs_diff(noted) >= NOTE_USE_EVERY_MS {
            hot.use_noted_ms.store(now, Ordering::Relaxed);
            self.touch(digest);
        }
        Some(hot)
    }

    /// A tag's record, if it is in memory.
    pub fn hot_tag(&self, repository: &str, tag: &str) -> Option<Arc<TagRecord>> {
        self.inner.tags.get(tag_key(repository, tag).as_slice()).flatten()
    }
}
