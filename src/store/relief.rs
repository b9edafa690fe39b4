//! Room for an index that is built anew on a full disk. Nothing can be evicted yet: what is held is in that index.
//!
//! Freed is what is worth least, a step at a time: leftovers of what was being written; transfers that can be resumed; what
//! was put aside for a look; the damaged index itself, which would be put aside; then blobs, the oldest files first. Not what
//! is pinned, as far as the copy says so: its owner was promised that it stays.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::copy;
use super::database::Table;
use super::error::StoreError;
use super::keys::Tree;
use super::{recovery, startup};
use crate::oci::{Algorithm, Digest};

/// Blobs are deleted until so many bytes are free, or as many as the attempt that failed had written.
const LEAST_BYTES: u64 = 4 << 20;
/// An index that is opened and used grows.
const SPARE_BYTES: u64 = 1 << 20;

/// Returns true if an error says that the disk is full.
pub(super) fn is_full(error: &StoreError) -> bool {
    let is_full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    match error {
        StoreError::Index { source, .. } => matches!(&**source, redb::Error::Io(error) if is_full(error)),
        StoreError::Io { source, .. } => is_full(source),
        _ => false,
    }
}

pub(super) struct Relief<'a> {
    tree: &'a Tree,
    copy: Option<&'a File>,
    steps: std::slice::Iter<'static, Step>,
    /// The newest first. `None`: not looked for yet.
    blobs: Option<Vec<(SystemTime, u64, Digest)>>,
    /// Blobs are deleted until so many bytes are free.
    wanted: u64,
}

#[derive(Clone, Copy)]
enum Step {
    Leftovers,
    Staging,
    Aside,
    Damaged,
}

const STEPS: [Step; 4] = [Step::Leftovers, Step::Staging, Step::Aside, Step::Damaged];

impl<'a> Relief<'a> {
    pub(super) fn of(tree: &'a Tree, copy: Option<&'a File>) -> Relief<'a> {
        Relief {
            tree,
            copy,
            steps: STEPS.iter(),
            blobs: None,
            wanted: LEAST_BYTES,
        }
    }

    /// Frees some room, at the cost of what is worth least of what there is. `false`: there is nothing left that may go.
    pub(super) fn free(&mut self) -> bool {
        while let Some(step) = self.steps.next() {
            let bytes = self.take(*step);
            if bytes > 0 {
                return true;
            }
        }
        self.delete_blobs()
    }

    /// Frees some room if there is next to none: a start needs a little. No blobs go for that.
    pub(super) fn leave_some(&mut self) {
        let is_short = |tree: &Tree| {
            let stat = rustix::fs::statvfs(tree.root());
            stat.is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < SPARE_BYTES)
        };
        while is_short(self.tree)
            && let Some(step) = self.steps.next()
        {
            self.take(*step);
        }
    }

    /// Gives the bytes that it has freed.
    fn take(&self, step: Step) -> u64 {
        let tree = self.tree;
        let (what, bytes) = match step {
            // What is left of an index, each attempt deletes itself.
            Step::Leftovers => ("leftovers", delete(&tree.new_copy())),
            Step::Staging => ("unfinished transfers", delete_in(&tree.staging())),
            Step::Aside => {
                let indexes = recovery::put_aside(tree).into_iter().map(|(_, path, _)| path);
                // One that another version can read may be all that is left of its pins.
                let is_ours = |path: &Path| {
                    let name = path.file_name().and_then(|name| name.to_str());
                    name.is_some_and(|name| !Tree::is_foreign_copy(name))
                };
                let indexes: u64 = indexes.filter(|path| is_ours(path)).map(|path| delete(&path)).sum();
                ("what was put aside", delete_in(&tree.quarantine()) + indexes)
            }
            Step::Damaged => ("the damaged index", delete(&tree.index())),
        };
        if bytes > 0 {
            tracing::warn!(what, bytes, "the disk is full: deleted, for an index to be rebuilt");
        }
        bytes
    }

    fn delete_blobs(&mut self) -> bool {
        let blobs = self.blobs.get_or_insert_with(|| oldest(self.tree, self.copy));
        let (mut count, mut freed) = (0u64, 0u64);
        while freed < self.wanted
            && let Some((_, _, digest)) = blobs.pop()
        {
            let bytes = delete(&self.tree.blob(&digest));
            (count, freed) = (count + u64::from(bytes > 0), freed + bytes);
        }
        if freed > 0 {
            tracing::error!(
                blobs = count,
                bytes = freed,
                "the disk is full: the oldest blobs were deleted, for an index to be rebuilt"
            );
        }
        // Each attempt reads the whole copy: not too many of them.
        self.wanted = self.wanted.saturating_mul(2);
        freed > 0
    }
}

/// The blobs that may go, the newest first.
fn oldest(tree: &Tree, copy: Option<&File>) -> Vec<(SystemTime, u64, Digest)> {
    let pinned = pinned(tree, copy);
    let mut blobs = Vec::new();
    for algorithm in Algorithm::ALL {
        let folder = tree.blobs(algorithm);
        let Ok(files) = startup::files(&folder) else {
            continue;
        };
        for (name, _, meta) in files {
            let digest = Digest::from_hex(algorithm, &name).filter(|digest| !pinned.contains(digest));
            // To delete one that has another name as well frees nothing.
            let Some(digest) = digest.filter(|_| meta.is_file() && meta.nlink() == 1) else {
                continue;
            };
            if let Ok(modified) = meta.modified() {
                blobs.push((modified, meta.len(), digest));
            }
        }
    }
    blobs.sort_unstable();
    blobs.reverse();
    blobs
}

/// What is pinned by the copy, with all that its manifests name.
fn pinned(tree: &Tree, copy: Option<&File>) -> HashSet<Digest> {
    let mut coming = Vec::new();
    if let Some(file) = copy {
        let read = copy::read(file, |table, _, value| {
            coming.extend(Digest::from_key(value).filter(|_| table == Table::Pins));
            Ok::<_, io::Error>(())
        });
        if let Err(error) = read {
            tracing::error!(%error, "what is pinned could not be read from the copy of the index");
        }
    }
    let mut pinned = HashSet::new();
    while let Some(digest) = coming.pop() {
        if pinned.insert(digest)
            && let Ok(kind) = startup::kind_of(&tree.blob(&digest))
        {
            coming.extend(kind.children().iter());
        }
    }
    pinned
}

/// Gives the bytes on disk that this has freed.
fn delete(path: &Path) -> u64 {
    let bytes = path.symlink_metadata().map_or(0, |meta| meta.blocks() * 512);
    match std::fs::remove_file(path) {
        Ok(()) => bytes,
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "could not be deleted");
            }
            0
        }
    }
}

fn delete_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| delete(&entry.path())).sum()
}
