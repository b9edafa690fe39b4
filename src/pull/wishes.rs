//! What was asked for and is not in a mirror that is offline: noted for whoever fills it.
//!
//! A tag is noted as it was asked for. A manifest or blob by digest is part of something: the image that names it is
//! looked for among what is held, off the async threads, and that is noted with its platform. What nothing here names is
//! noted by its digest if it was asked for as a manifest; nobody could fetch a bare blob.

use std::sync::Arc;

use super::Pull;
use super::error::PullError;
use super::names::Target;
use crate::oci::manifest::Manifest;
use crate::oci::{Digest, Platform, Reference};

/// Searches at the same time: who asks for more at once has wished for something already.
pub(super) const MOST_SEARCHES: usize = 8;

impl Pull {
    /// Notes a miss, if that is what the error is; `by`: who asked, as operators call him. Returns at once.
    pub fn wish(
        self: &Arc<Pull>,
        error: &PullError,
        target: &Target,
        missing: &Reference,
        is_manifest: bool,
        by: &str,
    ) {
        if !matches!(error, PullError::NotInMirror(_)) {
            return;
        }
        match missing {
            // What clients look for beside an image comes with it, and most images have none.
            Reference::Tag(tag) if tag.is_companion() => {}
            Reference::Tag(tag) => self.store.wish(&format!("{}:{tag}", target.key), None, by),
            Reference::Digest(digest) => {
                let Ok(permit) = self.wish_searches.clone().try_acquire_owned() else {
                    return;
                };
                let (pull, key, digest, by) = (self.clone(), target.key.clone(), *digest, by.to_owned());
                tokio::task::spawn_blocking(move || {
                    let found = pull.owner(&key, &digest);
                    let bare = || is_manifest.then(|| (format!("{key}@{digest}"), None));
                    if let Some((image, platform)) = found.or_else(bare) {
                        let platform = platform.map(|platform| platform.to_string());
                        pull.store.wish(&image, platform.as_deref(), &by);
                    }
                    drop(permit);
                });
            }
        }
    }

    /// The image of this repository that a digest is part of, and for which platform. Blocking.
    fn owner(&self, key: &str, digest: &Digest) -> Option<(String, Option<Platform>)> {
        let mut at = *digest;
        let mut platform = None;
        let mut name = None;
        // A blob's manifest, its index, and an index of those.
        for _ in 0..4 {
            let Some(parent) = self.store.parents(key, &at).into_iter().next() else {
                break;
            };
            platform = platform.or_else(|| self.platform_of(&parent, &at));
            at = parent;
            let tag = self.store.tags_at(key, &at).into_iter().find(|tag| !is_companion(tag));
            name = tag.map(|tag| format!("{key}:{tag}")).or(name);
        }
        (at != *digest).then(|| (name.unwrap_or_else(|| format!("{key}@{at}")), platform))
    }

    /// What an index says that a manifest is for.
    fn platform_of(&self, index: &Digest, child: &Digest) -> Option<Platform> {
        let manifest = Manifest::parse(&self.store.peek_manifest(index).ok()??.bytes, None).ok()?;
        let entry = manifest.descriptors.into_iter().find(|entry| entry.digest == *child);
        entry.filter(|entry| entry.is_manifest)?.platform
    }
}

fn is_companion(tag: &str) -> bool {
    tag.parse::<crate::oci::Tag>().is_ok_and(|tag| tag.is_companion())
}
