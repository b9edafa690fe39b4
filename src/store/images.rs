//! What is held, as images: a name and everything it reaches. For operators; nothing here is on a hit's way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::database::{Op, Table};
use super::index::Index;
use super::records::in_repository;
use super::{Store, TagRecord, link_key, tag_key};
use crate::oci::Digest;

/// A tag and what it points at.
#[derive(Clone, Debug)]
pub struct Image {
    pub repository: String,
    pub tag: String,
    pub record: TagRecord,
    pub pinned: bool,
    /// Everything its manifest reaches and names, itself first.
    pub parts: Vec<Part>,
}

/// One blob or manifest of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub digest: Digest,
    /// Bytes on disk; `None` if it is not held.
    pub held: Option<u64>,
    /// Set for held manifests.
    pub media_type: Option<Arc<str>>,
}

/// What a removal took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub blobs: usize,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Image {
    pub fn held_bytes(&self) -> u64 {
        self.parts.iter().filter_map(|p| p.held).sum()
    }

    /// Whether the manifest itself is held.
    pub fn is_held(&self) -> bool {
        self.parts.first().is_some_and(|p| p.held.is_some())
    }
}

/// How a pin is called.
pub fn pin_name(repository: &str, tag: &str) -> String {
    format!("{repository}:{tag}")
}

impl Store {
    /// Every tag that is known, by name. Blocking: reads the whole table.
    pub fn images(&self) -> Vec<Image> {
        // What was noted a moment ago counts too.
        self.inner.database.settle();
        let mut records = Vec::new();
        let scan = self.inner.database.scan(Table::Tags, &[], |key, value| {
            let name = key.iter().position(|b| *b == 0).and_then(|end| {
                let (repository, tag) = (&key[..end], &key[end + 1..]);
                Some((
                    std::str::from_utf8(repository).ok()?.to_owned(),
                    std::str::from_utf8(tag).ok()?.to_owned(),
                ))
            });
            records.extend(name.zip(serde_json::from_slice::<TagRecord>(value).ok()));
            true
        });
        self.report(scan);
        let index = self.inner.index();
        let image = |((repository, tag), record): ((String, String), TagRecord)| {
            let pinned = index.pin_of(&pin_name(&repository, &tag)).is_some();
            let parts = parts(&index, &record.digest);
            Image {
                repository,
                tag,
                record,
                pinned,
                parts,
            }
        };
        records.into_iter().map(image).collect()
    }

    /// One tag.
    pub fn image(&self, repository: &str, tag: &str) -> Option<Image> {
        let record = (*self.tag(repository, tag)?).clone();
        let index = self.inner.index();
        Some(Image {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            pinned: index.pin_of(&pin_name(repository, tag)).is_some(),
            parts: parts(&index, &record.digest),
            record,
        })
    }

    /// Pins an image: what its tag reaches stays until [`Store::unpin`]. When the tag moves the pin moves with it.
    /// `false` if the tag is not known.
    pub fn pin(&self, repository: &str, tag: &str) -> bool {
        let Some(record) = self.tag(repository, tag) else {
            return false;
        };
        self.set_pin(&pin_name(repository, tag), record.digest);
        true
    }

    fn set_pin(&self, name: &str, digest: Digest) {
        let mut index = self.inner.index();
        index.pin(&name.into(), digest);
        self.inner
            .database
            .write(vec![Op::Put(Table::Pins, name.as_bytes().to_vec(), digest.to_key())]);
    }

    /// Lets go of a pin. `false` if there was none.
    pub fn unpin(&self, repository: &str, tag: &str) -> bool {
        let name = pin_name(repository, tag);
        let mut index = self.inner.index();
        let gone = index.unpin(&name).is_some();
        if gone {
            self.inner
                .database
                .write(vec![Op::Delete(Table::Pins, name.into_bytes())]);
        }
        gone
    }

    /// Moves the pin of a tag that has moved.
    pub(super) fn move_pin(&self, repository: &str, tag: &str, digest: &Digest) {
        let name = pin_name(repository, tag);
        let moved = self.inner.index().pin_of(&name).is_some_and(|pinned| pinned != digest);
        if moved {
            self.set_pin(&name, *digest);
        }
    }

    /// Whether anything pins this digest.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.inner.index().is_pinned(digest)
    }

    /// Forgets a tag and deletes what no other tag reaches. Blocking. `None` if the tag is not known.
    ///
    /// What another repository also holds, and what is pinned, stays; the count says what really went.
    pub fn remove_image(&self, repository: &str, tag: &str) -> Option<Removed> {
        let record = self.tag(repository, tag)?;
        self.unpin(repository, tag);
        self.inner.tags.insert(tag_key(repository, tag), None);
        self.inner
            .database
            .write_durably(vec![Op::Delete(Table::Tags, tag_key(repository, tag))]);
        let others: BTreeSet<Digest> = self
            .images()
            .iter()
            .flat_map(|image| image.parts.iter().map(|part| part.digest))
            .collect();
        let mut removed = Removed::default();
        let mut index = self.inner.index();
        for part in parts(&index, &record.digest) {
            let Some(bytes) = part.held else { continue };
            if others.contains(&part.digest) || index.is_pinned(&part.digest) {
                continue;
            }
            // Held through another repository too: this one's claim goes, the bytes stay.
            if index.linked_elsewhere(repository, &part.digest) {
                if index.unlink(repository, &part.digest) {
                    self.inner
                        .database
                        .write(vec![Op::Delete(Table::Links, link_key(repository, &part.digest))]);
                }
                continue;
            }
            self.inner.drop_entry(&mut index, &part.digest);
            removed.blobs += 1;
            removed.bytes += bytes;
        }
        drop(index);
        // Lists of a repository of which nothing is left are of no use.
        if self.known_tags(repository).is_empty() {
            self.forget_lists(repository);
        }
        Some(removed)
    }

    fn forget_lists(&self, repository: &str) {
        let prefix = in_repository(repository);
        let mut keys = Vec::new();
        let scan = self.inner.database.scan(Table::Lists, &prefix, |key, _| {
            keys.push(key.to_vec());
            true
        });
        self.report(scan);
        for key in &keys {
            self.inner.lists.insert(key.clone(), None);
        }
        self.inner
            .database
            .write(keys.into_iter().map(|key| Op::Delete(Table::Lists, key)).collect());
    }

    /// Bytes that only one image reaches, for each, and those that several share. In the order of `images`.
    pub fn exclusive_bytes(images: &[Image]) -> Vec<u64> {
        let mut owners: BTreeMap<Digest, u32> = BTreeMap::new();
        for image in images {
            let own: BTreeSet<Digest> = image.parts.iter().map(|p| p.digest).collect();
            for digest in own {
                *owners.entry(digest).or_default() += 1;
            }
        }
        let exclusive = |image: &Image| {
            let mut seen = BTreeSet::new();
            let own = image
                .parts
                .iter()
                .filter(|p| owners.get(&p.digest) == Some(&1) && seen.insert(p.digest));
            own.filter_map(|p| p.held).sum()
        };
        images.iter().map(exclusive).collect()
    }
}

/// A digest and all it reaches and names, each once, itself first.
fn parts(index: &Index, root: &Digest) -> Vec<Part> {
    let mut seen = BTreeSet::from([*root]);
    let mut queue = vec![*root];
    let mut at = 0;
    while let Some(digest) = queue.get(at).copied() {
        at += 1;
        let children = index
            .get(&digest)
            .map(|entry| entry.kind.children())
            .unwrap_or_default();
        queue.extend(children.iter().copied().filter(|child| seen.insert(*child)));
    }
    let part = |digest: Digest| {
        let entry = index.get(&digest);
        Part {
            digest,
            held: entry.map(|e| super::on_disk(e.size)),
            media_type: entry.and_then(|e| e.kind.media_type().cloned()),
        }
    };
    queue.into_iter().map(part).collect()
}
