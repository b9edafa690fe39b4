//! What can go wrong with the disk and the index, with the path it went wrong at.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::oci::Digest;
use crate::text;

/// Clonable: every reader of a shared transfer gets the same result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {path}: {}", text::os_error(source))]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: Arc<io::Error>,
    },
    #[error(transparent)]
    Mismatch(Box<Mismatch>),
    #[error("there is no room for {0}: it passes through and is not kept")]
    NoRoom(Box<Digest>),
    #[error("there is no room for a copy of the index of {bytes} bytes")]
    NoRoomForCopy { bytes: u64 },
    #[error("{0} is being written already")]
    Busy(Box<Digest>),
    #[error("the cache folder {path} is in use by another larder{}", pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error("the index {path} cannot be used: {source}")]
    Index { path: PathBuf, source: Arc<redb::Error> },
    #[error("the index {path} is damaged: {what}")]
    IndexDamaged { path: PathBuf, what: String },
    /// Not damage: another version can read it.
    #[error(
        "the index {path} has the format {found}, and this version of Larder reads {expected}: start the version that wrote it, or move the file away to have it rebuilt from the blobs"
    )]
    IndexFormat { path: PathBuf, found: u8, expected: u8 },
    /// Cached, and perhaps quite right: the error is one of the moment. Its text is for clients, and names no path.
    #[error("{digest} is cached, but cannot be read at the moment: {}", text::os_error(source))]
    Unreadable {
        digest: Box<Digest>,
        source: Arc<io::Error>,
    },
}

/// Bytes that are not what their digest says (L2).
#[derive(Clone, Debug, thiserror::Error)]
#[error("the bytes are not what the digest says: expected {expected}, got {found} ({bytes} bytes)")]
pub struct Mismatch {
    pub expected: Digest,
    pub found: Digest,
    pub bytes: u64,
}

impl StoreError {
    /// Returns whether a file or folder was not there that should be.
    pub(super) fn is_not_there(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io {
            doing,
            path,
            source: Arc::new(source),
        }
    }
}
