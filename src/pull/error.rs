//! Why a pull did not give what was asked for. Clonable: all waiters of a flight get the same.

use std::time::Duration;

use jiff::Timestamp;

use crate::oci::Reference;
use crate::oci::manifest::ManifestError;
use crate::oci::name::{HostError, MAX_NAME_BYTES, NameError};
use crate::store::StoreError;
use crate::upstream::{ErrorKind, UpstreamError};

#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    /// The name breaks the grammar.
    #[error(transparent)]
    Name(#[from] NameError),
    /// `?ns=` is no host.
    #[error("the ns parameter: {0}")]
    Namespace(#[from] HostError),
    /// Path and `ns` name two upstreams (R-D1).
    #[error("the path names the upstream {path} but ns names {ns}: they must agree")]
    Conflict { path: String, ns: String },
    /// The world is closed (L10).
    #[error(
        "{0} is not an upstream of this proxy; nothing was asked of it. Add [upstream.{0:?}] to the configuration to allow it"
    )]
    UnknownUpstream(String),
    /// `allow` and `deny` of the upstream's configuration.
    #[error("the configuration of this proxy does not allow {upstream}/{repository}")]
    NotAllowed { upstream: String, repository: String },
    /// The repository of canaries, which no upstream is asked for.
    #[error("{0} is reserved for the images that larder doctor makes: no upstream is asked for it")]
    Reserved(String),
    /// Not held, and no upstream may be asked.
    #[error(transparent)]
    NotInMirror(Absent),
    /// Not held, and who asks may not have it fetched.
    #[error("{0} is not cached here")]
    NotHeld(String),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A client waited as long as it may. What it asked for goes on.
    #[error(
        "{upstream} has not answered for {} s; the request goes on, and the answer will be kept: try again", waited.as_secs()
    )]
    Late { upstream: String, waited: Duration },
    /// Few pulls are left of the upstream's limit, and this one can be done without.
    #[error("few pulls are left of the limit of {0}: what is held is served unchecked")]
    Spared(String),
    /// The upstream's document is no manifest that may be passed on (R-X10).
    #[error("{upstream} sent a manifest that is refused: {error}")]
    Manifest { upstream: String, error: ManifestError },
    /// The upstream's bytes contradict themselves or what is known of them.
    #[error("{upstream} sent something wrong: {what}")]
    Upset { upstream: String, what: String },
    /// The blob passes through memory, and this reader stood still for too long.
    #[error("the blob passed by while its reader stood still")]
    LeftBehind,
    /// Too many long lists come at once.
    #[error("too many long lists come at once: try again in a moment")]
    Busy,
    /// A task of ours ended without a result.
    #[error("an internal task ended early: {0}")]
    Internal(&'static str),
}

/// What is not in a mirror that may ask nobody, and when that was filled last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// A repository; or an image or blob of one.
    what: String,
    /// When, and by what.
    filled: Option<(Timestamp, String)>,
}

impl Absent {
    /// `filled`: Unix milliseconds, and by what.
    pub fn new(what: &str, filled: Option<(u64, String)>) -> Absent {
        let filled = filled.and_then(|(ms, by)| {
            let seconds = i64::try_from(ms / 1000).ok()?;
            Some((Timestamp::from_second(seconds).ok()?, by))
        });
        Absent {
            what: what.to_owned(),
            filled,
        }
    }

    pub fn filled(&self) -> Option<&(Timestamp, String)> {
        self.filled.as_ref()
    }
}

impl std::error::Error for Absent {}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is not in this mirror, which is offline and contacts no upstream; ",
            self.what
        )?;
        match &self.filled {
            Some((when, by)) => write!(f, "it was last filled {when} by {by}"),
            None => f.write_str("it was never filled by a bundle or a prefetch"),
        }
    }
}

impl PullError {
    /// `host` is what a client wrote, of any length and with any characters: as much of it as a host can have, written out.
    pub fn unknown_upstream(host: &str) -> PullError {
        PullError::UnknownUpstream(host.escape_debug().take(MAX_NAME_BYTES).collect())
    }

    /// Says what of a repository it is that is not there; anything else stays as it is.
    #[must_use]
    pub fn about(self, reference: &Reference) -> PullError {
        match self {
            PullError::NotInMirror(absent) => {
                let joint = match reference {
                    Reference::Tag(_) => ':',
                    Reference::Digest(_) => '@',
                };
                let what = format!("{}{joint}{reference}", absent.what);
                PullError::NotInMirror(Absent { what, ..absent })
            }
            other => other,
        }
    }

    /// "It is not there", said by an upstream that works.
    pub fn is_definite(&self) -> bool {
        matches!(self, PullError::Upstream(error) if error.is_definite())
    }

    /// Said by an upstream that works, about just what it was asked for: it is not there, or what is there is refused.
    pub(super) fn is_verdict(&self) -> bool {
        self.is_definite() || matches!(self, PullError::Manifest { .. } | PullError::Upset { .. })
    }

    /// An upstream that is unwell, for whatever else it would be asked. A document that is refused, or a disk of ours
    /// that fails, says nothing about it.
    pub fn is_trouble(&self) -> bool {
        matches!(self, PullError::Upstream(error)
            if error.is_transient() || matches!(error.kind, ErrorKind::RateLimited { .. } | ErrorKind::Auth(_)))
    }

    /// An answer that any client's request may bring about, also from an upstream that works: there is no such item, it is
    /// not given, or not now.
    pub(super) fn is_routine(&self) -> bool {
        self.is_definite()
            || matches!(self, PullError::Upstream(error)
                if matches!(error.kind, ErrorKind::RateLimited { .. } | ErrorKind::Auth(_)))
    }

    /// Set when the upstream allows no more for now: for how long.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            PullError::Upstream(UpstreamError {
                kind: ErrorKind::RateLimited { retry_after },
                ..
            }) => Some(*retry_after),
            _ => None,
        }
    }

    /// Whether the same may succeed if it is tried again in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            PullError::Upstream(error) => error.is_transient(),
            PullError::Late { .. } | PullError::LeftBehind | PullError::Busy | PullError::Internal(_) => true,
            _ => self.is_unreadable(),
        }
    }

    /// Returns true if it was not waited for any longer: whatever was asked goes on, and nothing is to be asked in its place.
    pub(super) fn is_late(&self) -> bool {
        matches!(self, PullError::Late { .. })
    }

    /// Returns true if the content is cached but its file cannot be read now: the upstream's bytes serve as well, and are not kept.
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(self, PullError::Store(StoreError::Unreadable { .. }))
    }

    /// One word for logs, metrics and the `detail` of Cache-Status.
    pub fn as_str(&self) -> &'static str {
        match self {
            PullError::Name(_) | PullError::Namespace(_) | PullError::Conflict { .. } => "bad-name",
            PullError::UnknownUpstream(_) => "unknown-upstream",
            PullError::NotAllowed { .. } => "not-allowed",
            PullError::Reserved(_) => "reserved",
            PullError::NotInMirror(_) => "offline",
            PullError::NotHeld(_) => "not-held",
            PullError::Upstream(error) => error.as_str(),
            PullError::Late { .. } => "late",
            PullError::Spared(_) => "budget",
            PullError::Store(StoreError::Unreadable { .. }) => "unreadable",
            PullError::Store(_) => "store",
            PullError::Manifest { .. } => "bad-manifest",
            PullError::Upset { .. } => "bad-bytes",
            PullError::LeftBehind => "left-behind",
            PullError::Busy => "busy",
            PullError::Internal(_) => "internal",
        }
    }

    /// Whether nothing was dialled because the operator said so.
    pub fn is_offline(&self) -> bool {
        matches!(self, PullError::NotInMirror(_))
            || matches!(
                self,
                PullError::Upstream(UpstreamError {
                    kind: ErrorKind::Offline,
                    ..
                })
            )
    }
}
