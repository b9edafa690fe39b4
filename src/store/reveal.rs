//! Images that come in whole: their parts are held unseen first, and then shown in one step.
//!
//! Unseen is what no repository is linked to: nothing of it is served (L8). [`Store::reveal`] writes links, tag and pin
//! in one transaction, and only then are they seen: after a crash an image is there, or it is not (L6).

use std::sync::Arc;

use bytes::Bytes;

use super::database::{Op, Table};
use super::images::{ImageName, Part, parts};
use super::index::{Kind, Scope};
use super::lists::{ListRecord, Prepared};
use super::records::{ListKey, TagRecord};
use super::tags::{tag_key, upsert};
use super::{Lease, Store, StoreError, link_key};
use crate::events::{Action, Event};
use crate::oci::Digest;

/// Keeps a held digest from eviction as long as it lives.
pub struct Keep {
    _lease: Lease,
}

/// An image that is to be seen.
pub struct Reveal<'a> {
    pub repository: &'a str,
    /// A tag, or the digest itself.
    pub reference: &'a str,
    pub digest: Digest,
    /// Of a tag: what it says from now on.
    pub record: Option<TagRecord>,
    /// All that the repository has from now on, the image's manifest among it.
    pub parts: &'a [Digest],
    /// Lists of referrers that come with it.
    pub referrers: Vec<(Digest, ListRecord)>,
}

/// Why an image was not shown; nothing of it is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RevealError {
    #[error("{0} is not held any more")]
    Gone(Box<Digest>),
    #[error("the index could not be written: the log says why")]
    NotWritten,
}

impl Store {
    /// Keeps a held digest from eviction until the outcome is dropped; `None` if it is not held. Memory only.
    pub fn keep(&self, digest: &Digest) -> Option<Keep> {
        let leased = self.inner.index().lease(digest);
        leased.then(|| Keep {
            _lease: Lease {
                inner: self.inner.clone(),
                digest: *digest,
            },
        })
    }

    /// Verifies and holds a manifest that names `children`, linked to nobody (see [`super::Writer::commit_unseen`]).
    pub fn put_manifest_unseen(
        &self,
        repository: &str,
        digest: &Digest,
        media_type: &str,
        children: &[Digest],
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        self.write_manifest(
            repository,
            digest,
            Kind::manifest(media_type.into(), children),
            bytes,
            false,
        )
    }

    /// What a held manifest names; nothing for other blobs. Memory only.
    pub fn children(&self, digest: &Digest) -> Vec<Digest> {
        let index = self.inner.index();
        let entry = index.held(digest);
        entry.map(|entry| entry.kind.children().to_vec()).unwrap_or_default()
    }

    /// A digest and all it reaches and names, each once, itself first. Memory only.
    pub fn reach(&self, root: &Digest) -> Vec<Part> {
        parts(&self.inner.index(), root)
    }

    /// Every held digest that a pin reaches. Blocking, briefly at a time.
    pub fn pinned_digests(&self) -> Vec<Digest> {
        let mut pinned = Vec::new();
        self.inner.walk(|index, _, entry| {
            if index.is_pinned(&entry.digest) && index.held(&entry.digest).is_some() {
                pinned.push(entry.digest);
            }
        });
        pinned.sort_unstable();
        pinned
    }

    /// Bytes on disk that could be taken in if all went that may go. `max_size` in place of the store's own limit, for
    /// a folder at rest. Not counted is what is kept by [`Store::keep`].
    pub fn room(&self, max_size: Option<u64>) -> u64 {
        let index = self.inner.index();
        let limit = max_size.map_or_else(|| self.inner.limit(), |max| max.min(self.inner.limit()));
        let fixed = self
            .inner
            .used_bytes(&index)
            .saturating_sub(index.loose_bytes(Scope::All));
        let on_disk = index
            .loose_bytes(Scope::All)
            .saturating_add(self.inner.free_bytes(&index));
        limit.saturating_sub(fixed).min(on_disk)
    }

    /// Shows an image: links, tag and pin in one durable step, and seen behind that. Blocking.
    pub fn reveal(&self, image: Reveal<'_>) -> Result<(), RevealError> {
        let Some(record) = image.record.clone() else {
            self.show_image(&image, Vec::new())?;
            self.tell_of(&image);
            return Ok(());
        };
        let key = tag_key(image.repository, image.reference);
        let mut outcome = Err(RevealError::NotWritten);
        // One after another with everybody else who notes this tag.
        upsert(&self.inner.tags, &key, |known| {
            let earlier = known.unwrap_or_else(|| self.read_record(Table::Tags, &key).map(Arc::new));
            let record = Arc::new(record.after(earlier.as_deref()));
            let put = |value| Op::Put(Table::Tags, key.clone(), value);
            let ops = serde_json::to_vec(&*record).ok().map(put);
            outcome = self.show_image(&image, ops.into_iter().collect());
            if outcome.is_ok() { Some(record) } else { earlier }
        });
        if outcome.is_ok() {
            self.tell_of(&image);
        }
        outcome
    }

    /// An image came from elsewhere and is seen from now on.
    fn tell_of(&self, image: &Reveal<'_>) {
        self.events().emit(Action::Import, |bare| {
            let index = self.inner.index();
            let manifest = index.held(&image.digest);
            Event {
                repository: Some(image.repository.into()),
                reference: Some(image.reference.into()),
                digest: Some(image.digest),
                media_type: manifest.and_then(|entry| entry.kind.media_type().cloned()),
                bytes: Some(
                    image
                        .parts
                        .iter()
                        .filter_map(|part| index.held(part))
                        .map(|part| part.size)
                        .sum(),
                ),
                ..bare
            }
        });
    }

    fn show_image(&self, image: &Reveal<'_>, mut ops: Vec<Op>) -> Result<(), RevealError> {
        let name = ImageName::new(image.repository, image.reference).to_string();
        ops.push(Op::Put(Table::Pins, name.clone().into_bytes(), image.digest.to_key()));
        let links = image.parts.iter().map(|part| link_key(image.repository, part));
        ops.extend(links.map(|key| Op::Put(Table::Links, key, Vec::new())));
        let prepare = |(subject, list): &(Digest, ListRecord)| {
            let key = ListKey::Referrers(*subject).to_key(image.repository);
            self.prepare_list(&key, list)
        };
        let lists: Result<Vec<Prepared>, StoreError> = image.referrers.iter().map(prepare).collect();
        let lists = lists.map_err(|error| {
            tracing::error!(%error, "a list of referrers cannot be kept");
            RevealError::NotWritten
        })?;
        ops.extend(lists.iter().filter_map(Prepared::op));
        let written = {
            let index = self.inner.index();
            if let Some(gone) = image.parts.iter().find(|part| index.held(part).is_none()) {
                return Err(RevealError::Gone(Box::new(*gone)));
            }
            // Queued with the index held: a removal that comes after it is written after it.
            self.inner.database.write_noted(ops)
        };
        if !written.recv().unwrap_or(false) {
            return Err(RevealError::NotWritten);
        }
        self.inner.copying.want();
        let repository: Arc<str> = image.repository.into();
        {
            let mut index = self.inner.index();
            for part in image.parts {
                if !index.link(&repository, part) && index.get(part).is_none() {
                    // Removed meanwhile, by somebody who knew nothing of this link.
                    let link = link_key(image.repository, part);
                    self.inner.database.write(vec![Op::Delete(Table::Links, link)]);
                }
            }
            index.pin(&name.as_str().into(), image.digest);
        }
        for list in lists {
            self.show_list(list);
        }
        self.inner.trim_lists(None);
        Ok(())
    }

    /// Throws away those of `digests` that no repository is linked to and no pin reaches. Blocking.
    pub fn drop_unseen(&self, digests: &[Digest]) {
        for digest in digests {
            let mut index = self.inner.index();
            if index.links_of(digest).is_empty() && !index.is_pinned(digest) && index.get(digest).is_some() {
                self.inner.drop_entry(&mut index, digest);
            }
        }
    }
}
