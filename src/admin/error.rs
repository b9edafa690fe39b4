//! Why an operator did not get what was asked for. Each says what to do.

use crate::bundle::BundleError;
use crate::jobs::Busy;
use crate::jobs::prefetch::TooMany;
use crate::oci::digest::DigestError;
use crate::oci::reference::TagError;
use crate::pull::PullError;

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The name's repository or upstream.
    #[error(transparent)]
    Name(PullError),
    #[error(transparent)]
    Tag(#[from] TagError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("{0} is not held here: `larder ls` shows what is")]
    NotHeld(String),
    #[error("{0} is not pinned")]
    NotPinned(String),
    #[error("{0} is pinned: unpin it first, or remove it all the same (--force, force=true)")]
    Pinned(String),
    #[error("{0} is called by its digest, which never points anywhere else: only a tag can be refreshed")]
    NoTag(String),
    #[error("{image} stays as it is held: {error}")]
    Refresh { image: String, error: PullError },
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("{0}")]
    Level(String),
    /// Of a folder at rest.
    #[error("no proxy runs: there is no log level to show or change")]
    NoLog,
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("a bundle is being imported: wait for its end")]
    Importing,
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("there is no prefetch {0}: the last ones are at /api/v1/prefetch")]
    NoJob(u64),
    #[error("{0}")]
    BadOrder(String),
    /// A task of ours ended without a result; the log says why.
    #[error("the work was dropped: the log says why")]
    Dropped,
}

impl AdminError {
    /// One word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            AdminError::Name(error) => error.as_str(),
            AdminError::Tag(_) | AdminError::Digest(_) => "bad-name",
            AdminError::NotHeld(_) => "not-held",
            AdminError::NotPinned(_) => "not-pinned",
            AdminError::Pinned(_) => "pinned",
            AdminError::NoTag(_) => "no-tag",
            AdminError::Refresh { error, .. } => error.as_str(),
            AdminError::Busy(_) | AdminError::TooMany(_) => "busy",
            AdminError::Level(_) => "bad-level",
            AdminError::NoLog => "no-proxy",
            AdminError::NoJob(_) => "no-job",
            AdminError::BadOrder(_) => "bad-request",
            AdminError::Bundle(error) => error.as_str(),
            AdminError::Importing => "busy",
            AdminError::Dropped => "internal",
        }
    }
}
