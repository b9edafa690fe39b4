//! How bytes come in: stage → hash → verdict → fsync → rename → index.
//!
//! The one place where a digest is verified (L2): cold pulls, prefetch and import all pass here. A
//! writer that is dropped keeps what it staged, so that a later one goes on where it stopped;
//! `cancel` throws it away. Everything here blocks; callers run it off the async threads.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::{Mismatch, StoreError};
use super::{Arrival, Inner, on_disk};
use crate::oci::{Digest, Hasher};

/// A blob on its way in.
pub struct Writer {
    store: Arc<Inner>,
    digest: Digest,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    len: u64,
    /// Whether it has the digest's one place among what is staged and counted. Small things have none.
    counted: bool,
    /// False for a blob that is larger than the cache: it passes through and is not kept.
    keep: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Verified,
    /// Renamed or unlinked: nothing in the staging folder belongs to this writer.
    Gone,
}

impl Writer {
    /// Stages `digest`, going on with what an earlier writer left if `resumable`.
    pub(super) fn begin(store: Arc<Inner>, digest: Digest, resumable: bool) -> Result<Writer, StoreError> {
        let path = if resumable {
            store.tree.part(&digest)
        } else {
            store.tree.temporary(&digest)
        };
        let (file, hasher, len) = match resumable.then(|| open_part(&path, digest)).flatten() {
            Some(part) => part,
            None => (create(&path)?, Hasher::new(digest.algorithm()), 0),
        };
        Ok(Writer {
            store,
            digest,
            path,
            file: Arc::new(file),
            hasher,
            len,
            counted: resumable,
            keep: true,
            state: State::Open,
        })
    }

    /// Bytes staged so far; the offset at which the next ones belong.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether what is staged is all of it already.
    pub fn is_whole(&self) -> bool {
        compare(self.digest, self.hasher.clone(), self.len).is_ok()
    }

    /// The staged file, for readers that follow it as it grows. Stays readable after commit and cancel.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Makes room for a blob of `total` bytes ahead of its bytes, evicting what was used least recently.
    /// For one that is larger than the cache nothing is evicted: it could not be kept anyway.
    pub fn reserve(&mut self, total: u64) {
        if on_disk(total) > self.store.max_size {
            self.let_pass();
        } else if self.keep && self.counted {
            self.store.make_room(&self.digest, total.max(self.len));
        }
    }

    fn let_pass(&mut self) {
        if self.keep && self.counted {
            self.store.index().stop_counting(&self.digest);
        }
        self.keep = false;
    }

    /// Appends and hashes. On an error nothing is appended.
    pub fn append(&mut self, pieces: &[Bytes]) -> Result<u64, StoreError> {
        let more: u64 = pieces.iter().map(|p| p.len() as u64).sum();
        self.reserve(self.len + more);
        if !self.keep {
            self.store.evict_down(more);
        }
        let mut at = self.len;
        for piece in pieces {
            self.file
                .write_all_at(piece, at)
                .map_err(StoreError::io("write", &self.path))?;
            at += piece.len() as u64;
        }
        for piece in pieces {
            self.hasher.update(piece);
        }
        self.len = at;
        Ok(at)
    }

    /// Forgets what was staged and begins at byte 0: the upstream no longer agrees with it.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        // A new file, because readers may still follow the old one.
        let _ = std::fs::remove_file(&self.path);
        self.file = Arc::new(create(&self.path)?);
        self.hasher = Hasher::new(self.digest.algorithm());
        self.len = 0;
        self.state = State::Open;
        Ok(())
    }

    /// Whether the staged bytes are what the digest says. On a mismatch they are gone from disk.
    pub fn verify(&mut self) -> Result<(), StoreError> {
        let verdict = compare(self.digest, self.hasher.clone(), self.len);
        match verdict {
            Ok(()) => self.state = State::Verified,
            Err(_) => self.discard(),
        }
        verdict
    }

    /// Makes verified bytes held: on disk for good, in the index, linked to `repository` (L6).
    /// Returns whether they are held; not if the blob is larger than the cache.
    pub fn commit(mut self, repository: &str, media_type: Option<&str>) -> Result<bool, StoreError> {
        if self.state != State::Verified {
            self.verify()?;
        }
        if !self.keep {
            self.discard();
            return Ok(false);
        }
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))?;
        let noted = self.store.admit(&Arrival {
            digest: self.digest,
            size: self.len,
            path: &self.path,
            counted: self.counted,
            repository,
            media_type,
        })?;
        self.state = State::Gone;
        self.counted = false;
        sync_folder(self.store.tree.blob(&self.digest).parent().unwrap_or(Path::new(".")))?;
        // Nothing more can be done if it cannot be written down; the file is found again at the next start.
        let _ = noted.recv();
        Ok(true)
    }

    /// Throws the staged bytes away.
    pub fn cancel(mut self) {
        self.discard();
    }

    fn discard(&mut self) {
        if self.state != State::Gone {
            let _ = std::fs::remove_file(&self.path);
            self.state = State::Gone;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !(self.keep && self.counted) {
            self.discard();
        }
        if self.counted {
            let left = (self.state != State::Gone).then_some(self.len);
            self.store.end_staging(&self.digest, left);
        }
    }
}

/// Whether bytes in memory are what the digest says.
pub fn verify(digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    compare(*digest, hasher, bytes.len() as u64)
}

fn compare(expected: Digest, hasher: Hasher, bytes: u64) -> Result<(), StoreError> {
    let found = hasher.finish();
    if found == expected {
        Ok(())
    } else {
        Err(StoreError::Mismatch(Box::new(Mismatch { expected, found, bytes })))
    }
}

/// A regular file that an earlier transfer left, hashed; what is no such thing or cannot be read is removed.
fn open_part(path: &Path, digest: Digest) -> Option<(File, Hasher, u64)> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let mut hasher = Hasher::new(digest.algorithm());
        let len = hash_file(&file, &mut hasher)?;
        Ok::<_, std::io::Error>((file, hasher, len))
    };
    match open() {
        Ok(part) => Some(part),
        Err(_) => {
            let _ = std::fs::remove_file(path);
            None
        }
    }
}

fn create(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io("create", path))
}

fn hash_file(mut file: &File, hasher: &mut Hasher) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(len),
            n => {
                hasher.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

/// Makes a rename last through a power cut.
fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::io("sync", path))
}
