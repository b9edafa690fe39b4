//! Why a bundle was not made or not taken. Each says what was found, what was expected and where.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::oci::Digest;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot {doing} {path}: {source}")]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The archive's bytes did not come.
    #[error("the archive cannot be read on: {0}")]
    Read(io::Error),
    #[error("the archive cannot be written on: {0}")]
    Write(io::Error),
    /// It ends too early: a copy that was cut off.
    #[error("the archive ends too early, {0}: is the copy complete?")]
    Short(String),
    /// Something that no honest archive holds.
    #[error("the archive is refused: {0}")]
    Hostile(String),
    #[error("this is no bundle: {0}")]
    NotABundle(String),
    #[error("{0}")]
    Signature(String),
    #[error("{0}")]
    Key(String),
    #[error(
        "no room: the bundle brings {needed} bytes that are not held here, and there is room for {room}. Raise cache.max_size, let pinned images go, or free some of the disk"
    )]
    NoRoom { needed: u64, room: u64 },
    #[error("not held whole: {}. Pull them first, or leave them out with --partial", list(.0))]
    Incomplete(Vec<String>),
    #[error("nothing to bundle: {0}")]
    Nothing(String),
    #[error("{digest} is damaged on this disk: `larder verify --repair` fetches it again")]
    Rotten { digest: Box<Digest> },
    #[error("{0} was held a moment ago and is gone: try again")]
    Gone(Box<Digest>),
    #[error("{0}")]
    Bad(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The first few.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(20).map(String::as_str);
    let more = names.len().saturating_sub(20);
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

impl BundleError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
        let path = path.to_owned();
        move |source| BundleError::File { doing, path, source }
    }

    /// A held blob that cannot be read: lost, or out of reach for the moment.
    pub(super) fn unread(digest: &Digest, error: io::Error) -> BundleError {
        let digest = Box::new(*digest);
        match error.raw_os_error() {
            Some(code) if code != rustix::io::Errno::IO.raw_os_error() => BundleError::Store(StoreError::Unreadable {
                digest,
                source: Arc::new(error),
            }),
            // The file ends early, or the disk has lost it.
            _ => BundleError::Rotten { digest },
        }
    }

    pub(super) fn hostile(why: impl Into<String>) -> BundleError {
        BundleError::Hostile(why.into())
    }

    /// One word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            BundleError::File { .. } | BundleError::Write(_) => "io",
            BundleError::Read(_) | BundleError::Short(_) => "cut-short",
            BundleError::Hostile(_) => "refused",
            BundleError::NotABundle(_) => "not-a-bundle",
            BundleError::Signature(_) | BundleError::Key(_) => "signature",
            BundleError::NoRoom { .. } => "no-room",
            BundleError::Incomplete(_) => "incomplete",
            BundleError::Nothing(_) => "nothing",
            BundleError::Rotten { .. } => "damaged",
            BundleError::Gone(_) => "gone",
            BundleError::Bad(_) => "bad-request",
            BundleError::Store(_) => "store",
        }
    }
}
