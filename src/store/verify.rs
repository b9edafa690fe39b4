//! Looking for rot: what is held, hashed again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use super::database::{Op, Table};
use super::index::on_disk;
use super::writer::Hashing;
use super::{Inner, Store, disk, recovery, unlink};
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
    /// It could not be read at this moment, which says nothing about its bytes.
    Unreadable,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Right => "right",
            Verdict::Wrong => "wrong",
            Verdict::Missing => "missing",
            Verdict::Gone => "gone",
            Verdict::Unreadable => "unreadable",
        }
    }

    pub fn is_bad(self) -> bool {
        matches!(self, Verdict::Wrong | Verdict::Missing)
    }
}

/// Where a background pass has come to, in [`Table::Meta`].
const CURSOR: &[u8] = b"verify-cursor";
/// When the last full pass ended, in [`Table::Meta`].
const FINISHED: &[u8] = b"verify-finished";
/// Damaged blobs kept for a look at what happened to them.
const QUARANTINED: usize = 4;
/// And damaged indexes.
const INDEXES: usize = 2;
/// Bytes hashed between two looks at whether to go on.
const STEP_BYTES: usize = 1 << 20;

impl Inner {
    /// Deletes what is put aside but for the last few small ones. Gives the bytes on disk that are left, damaged indexes
    /// among them.
    pub(super) fn trim_aside(&self) -> u64 {
        let room = self.max_size() / 100;
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
        blobs + self.trim_indexes(room)
    }

    /// Deletes damaged indexes but for the last one, whatever its size, and another if both are small.
    fn trim_indexes(&self, room: u64) -> u64 {
        let mut kept: Vec<_> = recovery::put_aside(&self.tree);
        kept.sort();
        kept.reverse();
        let mut bytes = 0;
        for (nth, (_, path, len)) in kept.into_iter().enumerate() {
            if nth > 0 && (nth >= INDEXES || bytes + len > room) {
                unlink(Some(path));
            } else {
                bytes += len;
            }
        }
        bytes
    }
}

/// One held blob being hashed, a step at a time, so that whoever does it can pause, slow down or stop.
pub struct Check {
    store: Store,
    digest: Digest,
    size: u64,
    opened: std::io::Result<(File, u64)>,
    hashing: Hashing,
    buffer: Vec<u8>,
}

impl Check {
    /// Hashes on. Blocking, briefly. Gives how many bytes; 0 at the end, which may be an early one.
    pub fn step(&mut self) -> u64 {
        let Ok((file, _)) = &self.opened else { return 0 };
        if self.buffer.is_empty() {
            self.buffer = vec![0; STEP_BYTES];
        }
        let path = self.store.inner.tree.blob(&self.digest);
        match self.store.inner.disk.read(file, &path, &mut self.buffer) {
            Ok(n) => {
                self.hashing.update(&self.buffer[..n]);
                n as u64
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.step(),
            Err(error) => {
                self.opened = Err(error);
                0
            }
        }
    }

    /// What came of it, once a step gave 0.
    pub fn finish(self) -> Verdict {
        let path = self.store.inner.tree.blob(&self.digest);
        let (verdict, inode) = match &self.opened {
            Ok((_, inode)) if self.hashing.len() == self.size && self.hashing.verify().is_ok() => {
                (Verdict::Right, Some(*inode))
            }
            Ok((_, inode)) => (Verdict::Wrong, Some(*inode)),
            Err(error) => {
                let verdict = match self.store.inner.is_lost(&self.digest, error) {
                    true if disk::is_damage(error) => Verdict::Wrong,
                    true => Verdict::Missing,
                    false => Verdict::Unreadable,
                };
                if verdict != Verdict::Missing {
                    tracing::error!(digest = %self.digest, path = %path.display(), %error, "a held blob cannot be read");
                }
                (verdict, None)
            }
        };
        if !verdict.is_bad() {
            return verdict;
        }
        // Evicted, or evicted and fetched again, while it was hashed: what was read is not what is held.
        let now = std::fs::metadata(&path).ok().map(|meta| meta.ino());
        let is_another = match verdict {
            Verdict::Missing => now.is_some(),
            _ => inode.is_some() && now.is_some() && now != inode,
        };
        if is_another || self.store.size(&self.digest).is_none() {
            Verdict::Gone
        } else {
            verdict
        }
    }
}

impl Store {
    /// Opens a held blob to hash it. `None` if it is not held. Does not count as a use. Blocking, briefly.
    pub fn begin_check(&self, digest: &Digest) -> Option<Check> {
        let size = self.size(digest)?;
        let opened = self.inner.disk.open(&self.inner.tree.blob(digest)).and_then(|file| {
            let inode = file.metadata()?.ino();
            Ok((file, inode))
        });
        Some(Check {
            store: self.clone(),
            digest: *digest,
            size,
            opened,
            hashing: Hashing::new(*digest),
            buffer: Vec::new(),
        })
    }

    /// Hashes one held blob. Blocking, for as long as that takes.
    pub fn check(&self, digest: &Digest) -> Verdict {
        let Some(mut check) = self.begin_check(digest) else {
            return Verdict::Gone;
        };
        while check.step() > 0 {}
        check.finish()
    }

    /// Lets go of a damaged blob: it is put aside and fetched again when somebody asks for it. Blocking.
    pub fn quarantine(&self, digest: &Digest) {
        self.quarantine_for(digest, "hash");
    }

    pub(super) fn quarantine_for(&self, digest: &Digest, found: &'static str) {
        metrics::counter!("larder_damaged_total", "found" => found).increment(1);
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
        let mut digests: Vec<Digest> = Vec::new();
        // The first `limit` of them, without keeping all the others.
        let trim = |digests: &mut Vec<Digest>| {
            if digests.len() > limit {
                digests.select_nth_unstable(limit);
                digests.truncate(limit);
            }
        };
        self.inner.walk(|index, _, entry| {
            let is_after = last.is_none_or(|last| entry.digest > *last);
            // What is not for good yet was verified a moment ago.
            if is_after && index.held(&entry.digest).is_some() {
                digests.push(entry.digest);
            }
            if digests.len() >= limit.saturating_mul(2).max(1024) {
                trim(&mut digests);
            }
        });
        trim(&mut digests);
        digests.sort_unstable();
        digests
    }

    /// Where the background pass goes on.
    pub fn verify_cursor(&self) -> Option<Digest> {
        let key = self.inner.database.get(Table::Meta, CURSOR).ok()??;
        Digest::from_key(&key)
    }

    pub fn set_verify_cursor(&self, digest: &Digest) {
        let op = Op::Put(Table::Meta, CURSOR.to_vec(), digest.to_key());
        self.inner.database.write(vec![op]);
    }

    /// When everything held had been hashed for the last time, Unix milliseconds.
    pub fn verify_finished_ms(&self) -> Option<u64> {
        let value = self.inner.database.get(Table::Meta, FINISHED).ok()??;
        Some(u64::from_le_bytes(value.try_into().ok()?))
    }

    /// Notes that a full pass has ended; the next one begins at the first blob. Blocking.
    pub fn set_verify_finished(&self, now_ms: u64) {
        self.inner.database.write_durably(vec![
            Op::Put(Table::Meta, FINISHED.to_vec(), now_ms.to_le_bytes().to_vec()),
            Op::Delete(Table::Meta, CURSOR.to_vec()),
        ]);
    }

    /// How many blobs are put aside, and what they take.
    pub(super) fn quarantined(&self) -> (usize, u64) {
        let entries = std::fs::read_dir(self.inner.tree.quarantine()).into_iter().flatten();
        let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512));
        sizes.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes))
    }
}
