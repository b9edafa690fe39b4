//! Why a bundle was not made or not taken. Each says what was found, what was expected and where; what it repeats of
//! the archive is cut and written out where it is shown.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::unpack::Refusal;
use crate::oci::Digest;
use crate::store::StoreError;
use crate::text::{message, os_error};

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot {doing} {path}: {}", os_error(source))]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The archive's bytes did not come.
    #[error("the archive cannot be read on: {}", os_error(.0))]
    Read(io::Error),
    #[error("the archive cannot be written on: {}", os_error(.0))]
    Write(io::Error),
    /// It ends too early: a copy that was cut off.
    #[error("the archive ends too early, {}: is the copy complete?", message(.0))]
    Short(String),
    /// Something that no honest archive holds.
    #[error("the archive is refused: {}", message(.0))]
    Hostile(String),
    #[error("this is no bundle: {}", message(.0))]
    NotABundle(String),
    #[error("{}", message(.0))]
    Signature(String),
    #[error("{}", message(.0))]
    Key(String),
    #[error(
        "no room: the bundle brings {needed} bytes that are not held here, and there is room for {room}. Raise cache.max_size, let pinned images go, or free some of the disk"
    )]
    NoRoom { needed: u64, room: u64 },
    #[error("not cached completely: {}. Pull them first, or leave them out with --partial", list(.0))]
    Incomplete(Vec<String>),
    #[error("nothing to bundle: {}", message(.0))]
    Nothing(String),
    #[error("{digest} is damaged on this disk: `larder verify --repair` fetches it again")]
    Rotten { digest: Box<Digest> },
    #[error("{0} was held a moment ago and is gone: try again")]
    Gone(Box<Digest>),
    #[error("{}", message(.0))]
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

    /// An archive's bytes did not come, or what they unpack to is refused.
    pub(super) fn reading(error: io::Error) -> BundleError {
        match Refusal::of(&error) {
            // Blobs that came whole out of a damaged copy are kept for the next attempt.
            None | Some(Refusal::Damaged(..)) => BundleError::Read(error),
            Some(Refusal::Short(name)) => BundleError::Short(format!("within its {name} stream")),
            Some(refusal) => BundleError::Hostile(refusal.to_string()),
        }
    }

    pub(super) fn hostile(why: impl Into<String>) -> BundleError {
        BundleError::Hostile(why.into())
    }

    /// One word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            BundleError::File { .. } | BundleError::Write(_) => "io",
            // Its sender was given up.
            BundleError::Read(error) if error.kind() == io::ErrorKind::TimedOut => "too-slow",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_archive_says_is_bounded_and_visible() {
        let hostile = || format!("a\u{202e}b{}", "x".repeat(40 << 20));
        for error in [
            BundleError::Short(hostile()),
            BundleError::Hostile(hostile()),
            BundleError::NotABundle(hostile()),
            BundleError::Signature(hostile()),
            BundleError::Key(hostile()),
            BundleError::Nothing(hostile()),
            BundleError::Bad(hostile()),
        ] {
            let text = error.to_string();
            assert!(text.len() < 3000 && text.contains("a\\u{202e}bx"), "{}", text.len());
        }
    }
}
