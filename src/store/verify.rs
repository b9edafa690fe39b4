//! Looking for rot: what is held, hashed again.

use std::fs::File;
use std::sync::atomic::Ordering;

use super::database::{Op, Table};
use super::index::on_disk;
use super::writer::{Hashing, hash_file};
use super::{Inner, Store, unlink};
use crate::oci::Digest;

/// How a held blob was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its bytes are what its digest says.
    Right,
    /// They are not.
    Wrong,
    /// The index has it, the disk does not.
    Missing,
    /// It is not held any more.
    Gone,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Right => "right",
            Verdict::Wrong => "wrong",
            Verdict::Missing => "missing",
            Verdict::Gone => "gone",
        }
    }

    pub fn is_bad(self) -> bool {
        matches!(self, Verdict::Wrong | Verdict::Missing)
    }
}

/// Where a background pass has come to, in [`Table::Meta`].
const CURSOR: &[u8] = b"verify-cursor";
/// Damaged blobs kept for a look at what happened to them.
const QUARANTINED: usize = 4;

impl Inner {
    /// Deletes what is put aside but for the last few small ones. Gives the bytes on disk that are left, a damaged
    /// index among them.
    pub(super) fn trim_aside(&self) -> u64 {
        let room = self.max_size / 100;
        let mut kept: Vec<_> = std::fs::read_dir(self.tree.quarantine())
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let meta = entry.metadata().ok()?;
                Some((meta.modified().ok()?, entry.path(), meta.len()))
            })
            .collect();
        kept.sort();
        let mut excess = kept.len().saturating_sub(QUARANTINED);
        kept.retain(|(_, path, len)| {
            let goes = excess > 0 || *len > room;
            if goes {
                excess = excess.saturating_sub(1);
                unlink(Some(path.clone()));
            }
            !goes
        });
        let blobs: u64 = kept.iter().map(|(_, _, len)| on_disk(*len)).sum();
        blobs + std::fs::metadata(self.tree.damaged_index()).map_or(0, |meta| on_disk(meta.len()))
    }
}

impl Store {
    /// Hashes one held blob. Blocking, for as long as that takes.
    pub fn check(&self, digest: &Digest) -> Verdict {
        let Some(size) = self.size(digest) else {
            return Verdict::Gone;
        };
        let path = self.inner.tree.blob(digest);
        let mut hashing = Hashing::new(*digest);
        let hashed = File::open(&path).and_then(|file| hash_file(&file, &mut hashing));
        let verdict = match hashed {
            Ok(()) if hashing.len() == size && hashing.verify().is_ok() => Verdict::Right,
            Ok(()) => Verdict::Wrong,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Verdict::Missing,
            Err(error) => {
                tracing::error!(%digest, path = %path.display(), %error, "a held blob cannot be read");
                Verdict::Wrong
            }
        };
        // Evicted while it was hashed: nothing can be said, and nothing is wrong.
        if verdict.is_bad() && self.size(digest).is_none() {
            Verdict::Gone
        } else {
            verdict
        }
    }

    /// Lets go of a damaged blob: it is put aside and fetched again when somebody asks for it. Blocking.
    pub fn quarantine(&self, digest: &Digest) {
        metrics::counter!("larder_damaged_total", "found" => "hash").increment(1);
        tracing::error!(%digest, "a held blob is damaged: put aside, and fetched again when it is asked for");
        let aside = self.inner.tree.quarantine();
        let _ = std::fs::create_dir(&aside);
        let place = self.inner.tree.quarantined(digest);
        let _ = std::fs::rename(self.inner.tree.blob(digest), &place);
        // Counted before the entry is not any more.
        let kept = self.inner.trim_aside();
        self.inner.aside.store(kept, Ordering::Relaxed);
        self.remove(digest);
    }

    /// Held digests in an order that does not change, after `last`; for walks that go on after a restart.
    pub fn digests_after(&self, last: Option<&Digest>, limit: usize) -> Vec<Digest> {
        let mut digests: Vec<Digest> = {
            let index = self.inner.index();
            index
                .digests()
                .filter(|d| last.is_none_or(|last| *d > last))
                .copied()
                .collect()
        };
        if digests.len() > limit {
            digests.select_nth_unstable(limit);
            digests.truncate(limit);
        }
        digests.sort_unstable();
        digests
    }

    /// Where the background pass goes on.
    pub fn verify_cursor(&self) -> Option<Digest> {
        let key = self.inner.database.get(Table::Meta, CURSOR).ok()??;
        Digest::from_key(&key)
    }

    pub fn set_verify_cursor(&self, digest: Option<&Digest>) {
        self.inner.database.write(vec![match digest {
            Some(digest) => Op::Put(Table::Meta, CURSOR.to_vec(), digest.to_key()),
            None => Op::Delete(Table::Meta, CURSOR.to_vec()),
        }]);
    }
}
