//! Why an operator did not get what was asked for. Each says what to do.

use crate::bundle::BundleError;
use crate::jobs::Busy;
pub use crate::jobs::prefetch::BeginError;
use crate::jobs::prefetch::TooMany;
use crate::oci::digest::DigestError;
use crate::oci::reference::{TagError, TransportError};
use crate::pull::{CanaryError, PullError};

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The name's repository or upstream.
    #[error(transparent)]
    Name(PullError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Tag(#[from] TagError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("{0} is not cached here: `larder ls` lists what is")]
    NotHeld(String),
    #[error("{0} is not pinned")]
    NotPinned(String),
    #[error("{0}: it holds for now, but could not be written down, and a restart may undo it: the log says why")]
    NotWritten(String),
    #[error("{0} is pinned: unpin it first, or remove it all the same (--force, force=true)")]
    Pinned(String),
    #[error("{0} is called by its digest, which never points anywhere else: only a tag can be refreshed")]
    NoTag(String),
    #[error("{}", not_refreshed(.image, *.is_cached, .error))]
    Refresh {
        image: String,
        is_cached: bool,
        error: PullError,
    },
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("{0}")]
    Level(String),
    /// Of a folder at rest.
    #[error("no proxy runs: there is no log level to show or change")]
    NoLog,
    /// With file, line, key and what was expected.
    #[error("the configuration is refused, and the previous configuration stays active: {0}")]
    Reload(String),
    #[error("nobody here reads the configuration again: no proxy runs, or it has none")]
    NoReload,
    #[error("there is no [[prefetch]] named {name:?}; {}", those_known(.known))]
    NoPrefetch { name: String, known: Vec<String> },
    #[error(transparent)]
    Begin(#[from] BeginError),
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
    #[error(transparent)]
    Canary(#[from] CanaryError),
    #[error("there is no canary with that tag, or no longer")]
    NoCanary,
    /// A task of ours ended without a result; the log says why.
    #[error("the work was dropped: the log says why")]
    Dropped,
}

fn not_refreshed(image: &str, is_cached: bool, error: &PullError) -> String {
    match (is_cached, error.is_offline()) {
        (true, true) => format!("{image} stays as it is cached: it is offline here, so its upstream was not asked"),
        (true, false) => format!("{image} stays as it is cached: {error}"),
        // It names the image itself.
        (false, true) => error.to_string(),
        (false, false) => format!("{image} is not cached here, and could not be fetched: {error}"),
    }
}

fn those_known(names: &[String]) -> String {
    match names {
        [] => "the configuration has none".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    }
}

impl AdminError {
    /// One word for programs.
    pub fn as_str(&self) -> &'static str {
        match self {
            AdminError::Name(error) => error.as_str(),
            AdminError::Transport(_) | AdminError::Tag(_) | AdminError::Digest(_) => "bad-name",
            AdminError::NotHeld(_) => "not-held",
            AdminError::NotPinned(_) => "not-pinned",
            AdminError::NotWritten(_) => "store",
            AdminError::Pinned(_) => "pinned",
            AdminError::NoTag(_) => "no-tag",
            AdminError::Refresh { error, .. } => error.as_str(),
            AdminError::Busy(_) | AdminError::TooMany(_) => "busy",
            AdminError::Level(_) => "bad-level",
            AdminError::NoLog | AdminError::NoReload => "no-proxy",
            AdminError::Reload(_) => "bad-configuration",
            AdminError::NoPrefetch { .. } => "no-prefetch",
            AdminError::Begin(BeginError::List(_)) => "bad-list",
            AdminError::Begin(_) => "busy",
            AdminError::NoJob(_) => "no-job",
            AdminError::BadOrder(_) | AdminError::Canary(CanaryError::Architecture) => "bad-request",
            AdminError::Canary(CanaryError::TooMany) => "busy",
            AdminError::Canary(CanaryError::NoRandom) => "internal",
            AdminError::NoCanary => "no-canary",
            AdminError::Bundle(error) => error.as_str(),
            AdminError::Importing => "busy",
            AdminError::Dropped => "internal",
        }
    }
}
