//! What is held, as images: a name and everything it reaches. For operators; nothing here is on a hit's way.
//!
//! A name is a repository with a tag, or with a digest that no tag of it points at and none of its manifests names:
//! what clients pulled by digest, and where a tag pointed before it moved. `survey` says what they cost together.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::database::{Op, Table};
use super::index::{Index, Kind, sum};
use super::tags::tag_key;
use super::{Store, TagRecord, link_key};
use crate::oci::Digest;

/// How an image is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    pub repository: Arc<str>,
    /// A tag, or a digest: the one with a colon.
    pub reference: String,
}

impl ImageName {
    pub fn new(repository: &str, reference: &str) -> ImageName {
        ImageName {
            repository: repository.into(),
            reference: reference.to_owned(),
        }
    }

    fn digest(&self) -> Option<Digest> {
        self.reference.parse().ok()
    }
}

/// `docker.io/library/alpine:3.22` or `docker.io/library/alpine@sha256:…`; pins are called so too.
impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joint = if self.reference.contains(':') { '@' } else { ':' };
        write!(f, "{}{joint}{}", self.repository, self.reference)
    }
}

/// A name and what it points at.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: ImageName,
    pub digest: Digest,
    /// `None` for what is called by its digest.
    pub record: Option<Arc<TagRecord>>,
    pub pinned: bool,
    /// The last use of its manifest that was written down, Unix milliseconds; `None` if that is not held.
    pub used_ms: Option<u64>,
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
    /// Of these, bytes that the disk gets back only when the responses that are being sent have ended.
    pub later_bytes: u64,
}

/// The parts of an image that others reach.
#[derive(Default)]
struct Reached {
    /// Other images of the same repository.
    here: HashSet<Digest>,
    elsewhere: HashSet<Digest>,
}

impl Image {
    pub fn held_bytes(&self) -> u64 {
        sum(self.parts.iter().filter_map(|p| p.held))
    }

    /// Whether the manifest itself is held.
    pub fn is_held(&self) -> bool {
        self.parts.first().is_some_and(|p| p.held.is_some())
    }

    /// How many of its parts are not held.
    pub fn missing(&self) -> usize {
        self.parts.iter().filter(|p| p.held.is_none()).count()
    }
}

impl Store {
    /// Every name that is known and what it points at, by name. Blocking: reads the whole table of tags.
    pub fn image_names(&self) -> Vec<(ImageName, Digest)> {
        let mut names = self.tagged();
        let mut tagged: HashMap<Digest, BTreeSet<Arc<str>>> = HashMap::new();
        for (name, digest) in &names {
            tagged.entry(*digest).or_default().insert(name.repository.clone());
        }
        names.extend(self.untagged(&tagged));
        names.sort_unstable();
        names
    }

    fn tagged(&self) -> Vec<(ImageName, Digest)> {
        // What was noted a moment ago counts too.
        self.inner.database.settle();
        let mut names = Vec::new();
        let mut last: Arc<str> = "".into();
        let scan = self.inner.database.scan(Table::Tags, &[], |key, value| {
            let Some(end) = key.iter().position(|b| *b == 0) else {
                return true;
            };
            let (Ok(repository), Ok(tag), Ok(record)) = (
                std::str::from_utf8(&key[..end]),
                std::str::from_utf8(&key[end + 1..]),
                serde_json::from_slice::<TagRecord>(value),
            ) else {
                return true;
            };
            if *last != *repository {
                last = repository.into();
            }
            let reference = tag.to_owned();
            let name = ImageName {
                repository: last.clone(),
                reference,
            };
            names.push((name, record.digest));
            true
        });
        self.report(scan);
        names
    }

    /// Held manifests of a repository that none of its tags points at and none of its manifests names.
    fn untagged(&self, tagged: &HashMap<Digest, BTreeSet<Arc<str>>>) -> Vec<(ImageName, Digest)> {
        let mut manifests: HashMap<Digest, (Kind, Vec<Arc<str>>)> = HashMap::new();
        self.inner.walk(|index, _, entry| {
            if entry.kind != Kind::Blob {
                manifests.insert(entry.digest, (entry.kind.clone(), index.links_of(&entry.digest)));
            }
        });
        let mut parents: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for (digest, (kind, _)) in &manifests {
            for child in kind.children().iter().filter(|child| manifests.contains_key(child)) {
                parents.entry(child).or_default().push(*digest);
            }
        }
        let linked = |repository: &Arc<str>, digest: &Digest| {
            let links = manifests.get(digest).map(|(_, links)| links);
            links.is_some_and(|links| links.binary_search(repository).is_ok())
        };
        let mut names = Vec::new();
        for (digest, (_, links)) in &manifests {
            for repository in links {
                let is_tagged = tagged.get(digest).is_some_and(|set| set.contains(repository));
                let mut parents = parents.get(digest).into_iter().flatten();
                if !is_tagged && !parents.any(|parent| linked(repository, parent)) {
                    let name = ImageName {
                        repository: repository.clone(),
                        reference: digest.to_string(),
                    };
                    names.push((name, *digest));
                }
            }
        }
        names
    }

    /// Every image, by name. Blocking.
    pub fn images(&self) -> Vec<Image> {
        let names = self.image_names();
        names
            .iter()
            .filter_map(|(name, _)| self.image(&name.repository, &name.reference))
            .collect()
    }

    /// One image, by tag or by digest. `None` if nothing is known of it. Blocking, briefly.
    pub fn image(&self, repository: &str, reference: &str) -> Option<Image> {
        let name = ImageName::new(repository, reference);
        let (digest, record) = self.target_of(&name)?;
        let index = self.inner.index();
        Some(Image {
            pinned: index.pin_of(&name.to_string()).is_some(),
            used_ms: index.get(&digest).map(|entry| entry.used_ms),
            parts: parts(&index, &digest),
            name,
            digest,
            record,
        })
    }

    fn target_of(&self, name: &ImageName) -> Option<(Digest, Option<Arc<TagRecord>>)> {
        let Some(digest) = name.digest() else {
            let record = self.tag(&name.repository, &name.reference)?;
            return Some((record.digest, Some(record)));
        };
        let index = self.inner.index();
        let is_held = index.get(&digest).is_some() && index.linked(&name.repository, &digest);
        (is_held || index.pin_of(&name.to_string()).is_some()).then_some((digest, None))
    }

    /// Pins an image, by tag or digest: what it reaches stays until [`Store::unpin`]. When a tag moves its pin moves
    /// with it. `false` if nothing is known of it.
    pub fn pin(&self, repository: &str, reference: &str) -> bool {
        let name = ImageName::new(repository, reference);
        let Some((digest, _)) = self.target_of(&name) else {
            return false;
        };
        self.set_pin(&name.to_string(), digest);
        true
    }

    fn set_pin(&self, name: &str, digest: Digest) {
        self.inner.copying.want();
        let mut index = self.inner.index();
        index.pin(&name.into(), digest);
        self.inner
            .database
            .write(vec![Op::Put(Table::Pins, name.as_bytes().to_vec(), digest.to_key())]);
    }

    /// Lets go of a pin. `false` if there was none.
    pub fn unpin(&self, repository: &str, reference: &str) -> bool {
        let name = ImageName::new(repository, reference).to_string();
        let mut index = self.inner.index();
        let gone = index.unpin(&name).is_some();
        if gone {
            self.inner.copying.want();
            self.inner
                .database
                .write(vec![Op::Delete(Table::Pins, name.into_bytes())]);
        }
        gone
    }

    /// Waits until what was noted is on disk. Blocking. For answers that promise something. `false`: it is not, and the log
    /// says why.
    pub fn settle(&self) -> bool {
        self.inner.database.settle()
    }

    /// Queues a tag's record and, if the tag is pinned, its pin in one transaction: a crash between the two would leave
    /// the pin on what the tag pointed at before, until it moves again. What it returns tells when it is on disk.
    pub(super) fn write_with_pin(&self, op: Option<Op>, name: &ImageName, digest: &Digest) -> Receiver<bool> {
        let name = name.to_string();
        let mut ops: Vec<Op> = op.into_iter().collect();
        let mut index = self.inner.index();
        if index.pin_of(&name).is_some_and(|pinned| pinned != digest) {
            index.pin(&name.as_str().into(), *digest);
            ops.push(Op::Put(Table::Pins, name.into_bytes(), digest.to_key()));
        }
        // Queued before anybody can unpin it: what the database hears is in the index's order.
        self.inner.database.write_noted(ops)
    }

    /// Whether anything pins this digest.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.inner.index().is_pinned(digest)
    }

    /// Tags of a repository that point at `digest`, in byte order. Blocking.
    pub fn tags_at(&self, repository: &str, digest: &Digest) -> Vec<String> {
        let mut tags = self.known_tags(repository);
        tags.retain(|tag| self.tag(repository, tag).is_some_and(|record| record.digest == *digest));
        tags
    }

    /// Forgets an image, by a tag or by its digest and then with every tag that points at that, and deletes what no
    /// other image reaches. Blocking. `None` if nothing is known of it.
    ///
    /// What another repository also holds, and what is pinned, stays; the count says what really went. Staged bytes
    /// of its blobs, left by transfers that broke off, go too.
    pub fn remove_image(&self, repository: &str, reference: &str) -> Option<Removed> {
        let name = ImageName::new(repository, reference);
        let (root, _) = self.target_of(&name)?;
        let tags = match name.digest() {
            Some(digest) => self.tags_at(repository, &digest),
            None => vec![reference.to_owned()],
        };
        // A copy from before would bring back its name.
        self.inner.copying.want();
        self.unpin(repository, reference);
        for tag in tags {
            self.unpin(repository, &tag);
            // In one with those who note it: a record that is just being written does not come back behind this.
            let key = tag_key(repository, &tag);
            super::tags::upsert(&self.inner.tags, &key, |_| {
                self.inner.database.write(vec![Op::Delete(Table::Tags, key.clone())]);
                None
            });
        }
        self.settle();
        let others = self.reached_by_others(&ImageName::new(repository, &root.to_string()), &root);
        let removed = self.drop_parts(repository, &root, &others);
        // Lists of a repository of which nothing is left are of no use.
        if self.known_tags(repository).is_empty() {
            self.forget_lists(repository);
        }
        self.settle();
        Some(removed)
    }

    /// Throws away what came of a blob for `repository` before its transfer broke off, so that the next one begins at byte
    /// 0. Returns its bytes on disk; `None` if there is nothing, or a transfer is under way.
    pub fn drop_staged(&self, repository: &str, digest: &Digest) -> Option<u64> {
        self.inner.drop_staged(&mut self.inner.index(), repository, digest)
    }

    fn reached_by_others(&self, own: &ImageName, root: &Digest) -> Reached {
        let wanted: HashSet<Digest> = parts(&self.inner.index(), root).iter().map(|p| p.digest).collect();
        let mut reached = Reached::default();
        for (name, digest) in self.image_names() {
            if name == *own {
                continue;
            }
            let parts = parts(&self.inner.index(), &digest);
            let parts = parts.iter().map(|p| p.digest).filter(|d| wanted.contains(d));
            match name.repository == own.repository {
                true => reached.here.extend(parts),
                false => reached.elsewhere.extend(parts),
            }
        }
        reached
    }

    fn drop_parts(&self, repository: &str, root: &Digest, others: &Reached) -> Removed {
        let mut removed = Removed::default();
        let mut index = self.inner.index();
        for part in parts(&index, root) {
            let Some(bytes) = part.held else {
                // A transfer may have broken off and left some of it: the next one begins at byte 0.
                if let Some(bytes) = self.inner.drop_staged(&mut index, repository, &part.digest) {
                    removed.blobs += 1;
                    removed.bytes = removed.bytes.saturating_add(bytes);
                }
                continue;
            };
            if others.here.contains(&part.digest) {
                continue;
            }
            // Held through another repository too: this one's claim goes, the bytes stay.
            let elsewhere = others.elsewhere.contains(&part.digest) || index.linked_elsewhere(repository, &part.digest);
            if elsewhere || index.is_pinned(&part.digest) {
                if index.unlink(repository, &part.digest) {
                    self.inner
                        .database
                        .write(vec![Op::Delete(Table::Links, link_key(repository, &part.digest))]);
                }
                continue;
            }
            if index.is_leased(&part.digest) {
                removed.later_bytes = removed.later_bytes.saturating_add(bytes);
            }
            self.inner.drop_entry(&mut index, &part.digest);
            removed.blobs += 1;
            removed.bytes = removed.bytes.saturating_add(bytes);
        }
        removed
    }

    /// Held manifests of a repository that name a digest. Blocking: looks at everything that is held.
    pub fn parents(&self, repository: &str, digest: &Digest) -> Vec<Digest> {
        let mut parents = Vec::new();
        self.inner.walk(|index, _, entry| {
            if entry.kind.children().contains(digest) && index.linked(repository, &entry.digest) {
                parents.push(entry.digest);
            }
        });
        parents
    }

    /// Bytes on disk of a digest and all that it reaches.
    pub fn held_bytes_of(&self, digest: &Digest) -> u64 {
        let parts = parts(&self.inner.index(), digest);
        sum(parts.iter().filter_map(|part| part.held))
    }

    /// The repositories that have shown that they hold a digest, in byte order.
    pub fn links(&self, digest: &Digest) -> Vec<Arc<str>> {
        self.inner.index().links_of(digest)
    }
}

/// A digest and all it reaches and names, each once, itself first.
pub(super) fn parts(index: &Index, root: &Digest) -> Vec<Part> {
    let mut seen = BTreeSet::from([*root]);
    let mut queue = vec![*root];
    let mut at = 0;
    while let Some(digest) = queue.get(at).copied() {
        at += 1;
        let children = index
            .get(&digest)
            .into_iter()
            .flat_map(|entry| entry.kind.children().iter());
        queue.extend(children.filter(|child| seen.insert(*child)));
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
