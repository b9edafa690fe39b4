//! Every path on disk, built here and nowhere else, from parsed digests only (R-X23).
//!
//! ```text
//! <cache.path>/
//!   larder.lock                     one folder, one owner; holds the owner's pid
//!   index.redb                      sizes, recency, tags, links, short lists
//!   index.redb.new                  one that is being built in its place
//!   index.redb.damaged-<time>       one that was damaged; the last ones, for a look at them
//!   index.damaged                   says that the index was found damaged while it was in use
//!   index.copy                      what cannot be found again without the index (`copy`)
//!   oci-layout                      marks the folder as an OCI image layout
//!   blobs/sha256/<hex>              held: verified, fsynced, renamed into place
//!   blobs/sha512/<hex>
//!   lists/<hex>                     a long list, one item a line; named by the hash of its key in the index
//!   staging/<hex>.part              on its way in for one repository (`staging_key`); resumed after a restart
//!   staging/sha256-<hex>.<n>.tmp    small things on their way in, evicted ones on their way out; swept at start
//!   staging/list.<n>.tmp            a long list on its way in; swept at start
//!   quarantine/sha256-<hex>         found damaged; the last few, for a look at them
//!   webhooks/<name>/<number>.jsonl  what waits for a webhook, one event a line; the last number is written to
//!   webhooks/<name>/cursor          how much of that was delivered
//!   acme/accounts.json              who we are to certificate authorities (`state`)
//!   acme/certificate.json           the certificate that the last order brought, and its key
//!   acme/attempts.json              orders that failed, so that a restart does not try at once again
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::oci::{Algorithm, Digest};

const DAMAGED: &str = "index.redb.damaged";

#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

/// The lock of the process that has this cache folder: its owner is that process's user.
pub fn lock_file(root: &Path) -> PathBuf {
    root.join("larder.lock")
}

impl Tree {
    pub(super) fn new(root: &Path) -> Tree {
        Tree { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        lock_file(&self.root)
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index.redb")
    }

    /// Renamed to [`Tree::index`] when it is whole.
    pub(super) fn new_index(&self) -> PathBuf {
        self.root.join("index.redb.new")
    }

    /// Says that the index is damaged.
    pub(super) fn index_mark(&self) -> PathBuf {
        self.root.join("index.damaged")
    }

    /// Where a damaged index is put aside.
    pub(super) fn damaged_index(&self, when: &str) -> PathBuf {
        self.root.join(format!("{DAMAGED}-{when}"))
    }

    /// Where a copy of the index is put aside that this version cannot read.
    pub(super) fn foreign_copy(&self, when: &str) -> PathBuf {
        self.root.join(format!("{DAMAGED}-{when}.copy"))
    }

    /// Returns true for names of files that were put aside. Earlier versions gave them no time.
    pub(super) fn is_put_aside(name: &str) -> bool {
        name.starts_with(DAMAGED)
    }

    /// Returns true for a name of [`Tree::foreign_copy`].
    pub(super) fn is_foreign_copy(name: &str) -> bool {
        Tree::is_put_aside(name) && name.ends_with(".copy")
    }

    pub(super) fn copy(&self) -> PathBuf {
        self.root.join("index.copy")
    }

    /// Renamed to [`Tree::copy`] when it is whole.
    pub(super) fn new_copy(&self) -> PathBuf {
        self.root.join("index.copy.tmp")
    }

    pub(super) fn layout_mark(&self) -> PathBuf {
        self.root.join("oci-layout")
    }

    /// The folder of the folders of blobs.
    pub(super) fn all_blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.all_blobs().join(algorithm.as_str())
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(super) fn lists(&self) -> PathBuf {
        self.root.join("lists")
    }

    /// The list with this key in the index. A hash, because names of repositories are no names of files.
    pub(super) fn list(&self, key: &[u8]) -> PathBuf {
        self.lists().join(Digest::sha256(key).hex())
    }

    /// A list on its way in; no two the same.
    pub(super) fn list_temporary(&self) -> PathBuf {
        self.staging().join(format!("list.{}.tmp", next_number()))
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs(digest.algorithm()).join(digest.hex())
    }

    /// Returns the path of a staged file by its [`staging_key`]: the same each time, so that a restart finds it.
    pub(super) fn part(&self, key: &Digest) -> PathBuf {
        self.staging().join(format!("{}.part", key.hex()))
    }

    /// A name of its own every time: manifests may be written twice at once.
    pub(super) fn temporary(&self, digest: &Digest) -> PathBuf {
        self.staging().join(format!(
            "{}-{}.{}.tmp",
            digest.algorithm().as_str(),
            digest.hex(),
            next_number()
        ))
    }

    /// A file that comes and goes, to see whether anything can be written; no two the same.
    pub(super) fn probe(&self) -> PathBuf {
        self.staging().join(format!("probe.{}.tmp", next_number()))
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine()
            .join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }

    /// What waits to be delivered, a folder for each queue.
    pub(super) fn queues(&self) -> PathBuf {
        self.root.join("webhooks")
    }

    /// `name` is a word of the configuration: letters, digits, `-` and `_`.
    pub(super) fn queue(&self, name: &str) -> QueueTree {
        QueueTree(self.queues().join(name))
    }

    pub(super) fn acme(&self) -> PathBuf {
        self.root.join("acme")
    }

    pub(super) fn paper(&self, paper: Paper) -> PathBuf {
        self.acme().join(paper.file_name())
    }

    /// Renamed to [`Tree::paper`] when it is whole.
    pub(super) fn new_paper(&self, paper: Paper) -> PathBuf {
        self.acme().join(format!("{}.tmp", paper.file_name()))
    }

    /// The [`staging_key`] of a file in the staging folder, if it is one to resume. Earlier versions named it
    /// by its digest alone: nobody can say whose bytes these are, so they are not resumed.
    pub(super) fn part_key(name: &str) -> Option<Digest> {
        Digest::from_hex(Algorithm::Sha256, name.strip_suffix(".part")?)
    }
}

/// The folder of one queue.
#[derive(Clone, Debug)]
pub(super) struct QueueTree(PathBuf);

impl QueueTree {
    pub(super) fn root(&self) -> &Path {
        &self.0
    }

    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:020}.jsonl"))
    }

    /// The number of a file in the folder, if it is a segment.
    pub(super) fn segment_number(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(".jsonl")?;
        let fits = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| fits)
    }

    pub(super) fn cursor(&self) -> PathBuf {
        self.0.join("cursor")
    }

    pub(super) fn new_cursor(&self) -> PathBuf {
        self.0.join("cursor.tmp")
    }
}

/// Small private files that are no content; [`super::State`] reads and writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paper {
    Accounts,
    Certificate,
    Attempts,
}

impl Paper {
    fn file_name(self) -> &'static str {
        match self {
            Paper::Accounts => "accounts.json",
            Paper::Certificate => "certificate.json",
            Paper::Attempts => "attempts.json",
        }
    }
}

/// Names what `owner`, usually a repository, has staged of a digest. Each owner stages for itself: bytes that one
/// repository's upstream sent are given to nobody by the word of another one (L11), also after a restart.
pub fn staging_key(owner: &str, digest: &Digest) -> Digest {
    Digest::sha256(format!("{owner}\0{digest}").as_bytes())
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_round_trip() {
        let tree = Tree::new(Path::new("/x"));
        let digest = Digest::of(Algorithm::Sha512, b"a");
        let key = staging_key("r/a", &digest);
        let part = tree.part(&key);
        assert_eq!(Tree::part_key(part.file_name().unwrap().to_str().unwrap()), Some(key));
        assert_eq!(Tree::part_key("zz.part"), None);
        assert_eq!(Tree::part_key(&format!("sha256-{}.part", key.hex())), None);
        assert_ne!(key, staging_key("r/b", &digest));
        assert_ne!(key, staging_key("r/a", &Digest::of(Algorithm::Sha512, b"b")));
        assert_ne!(tree.temporary(&digest), tree.temporary(&digest));
        let segment = tree.queue("ci").segment(7);
        assert_eq!(
            QueueTree::segment_number(segment.file_name().unwrap().to_str().unwrap()),
            Some(7)
        );
        assert_eq!(QueueTree::segment_number("7.jsonl"), None);
    }
}
