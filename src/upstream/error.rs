//! What can go wrong between Larder and an upstream, and whose fault it is.

use std::sync::Arc;
use std::time::Duration;

/// How the text begins, and how it ends, of a connection that took longer than `connect_timeout`.
const NO_CONNECTION: &str = "no connection";
const IN_TIME: &str = " within connect_timeout";
/// Stands behind that, if the host is another one than the address that was asked.
const BEYOND: &str = ", where the upstream leads to";

/// Clonable, because every waiter of a shared flight gets the same result.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{upstream}: {kind}{}", since(*age))]
pub struct UpstreamError {
    /// The upstream's name, as images name it.
    pub upstream: Arc<str>,
    pub kind: ErrorKind,
    /// Set if the upstream was not asked now: how long ago it gave this answer (`cache.negative_ttl`).
    pub age: Option<Duration>,
}

/// Ends the message of an answer that is remembered.
fn since(age: Option<Duration>) -> String {
    age.map(|age| format!("; it said so {} s ago", age.as_secs()))
        .unwrap_or_default()
}

/// `10 s`, or `250 ms` for less than a second.
fn patience(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        seconds => format!("{seconds} s"),
    }
}

/// Texts carry no secrets: URLs are cut to scheme, host and path before they come here (R-X17).
#[derive(Clone, Debug, thiserror::Error)]
pub enum ErrorKind {
    /// The upstream says that it does not have it. `status` is what it really said (R-U12).
    #[error("answered {status}: it does not have this")]
    NotFound { status: u16 },
    /// 401 or 403 after authentication was tried: does not exist, or private (R-U12).
    #[error("answered {status}: it does not exist there, or needs other credentials ({detail})")]
    Denied { status: u16, detail: Arc<str> },
    /// 429, or the breaker that a 429 opened is still open (R-U33).
    #[error("asks to be left alone for {} s (429 Too Many Requests)", retry_after.as_secs())]
    RateLimited { retry_after: Duration },
    /// 5xx and statuses that make no sense here.
    #[error("answered {status} ({detail})")]
    Status {
        status: u16,
        detail: Arc<str>,
        /// How long the answer asks to wait, if it does.
        retry_after: Option<Duration>,
    },
    /// There is no connection; the text is a whole sentence.
    #[error("{0}")]
    Connect(Arc<str>),
    #[error("did not answer within {}", patience(*.0))]
    Timeout(Duration),
    /// A long list, while others waited for their turn.
    #[error("sent a long list too slowly while others waited")]
    TooSlow,
    /// Whoever takes it takes no more.
    #[error("sent more than is taken now")]
    Unwanted,
    /// The body ended or the connection broke before all was there; the text is a whole sentence.
    #[error("{0}")]
    Cut(Arc<str>),
    /// A document that is larger than it may be; not read any further. `found`: its bytes, or only those that came.
    #[error("sent {found} bytes or more, where {limit} are allowed")]
    TooLarge { found: u64, is_exact: bool, limit: u64 },
    /// A redirect, realm or link that Larder refuses to follow (R-X1 to R-X3).
    #[error("refused to follow it: {0}")]
    Refused(Arc<str>),
    /// An answer that breaks the protocol.
    #[error("answered what no registry answers: {0}")]
    Protocol(Arc<str>),
    /// `offline = true`: nothing was dialled.
    #[error("Larder is offline by configuration")]
    Offline,
    /// Credentials that could not be read, token servers that answer nonsense.
    #[error("authentication failed: {0}")]
    Auth(Arc<str>),
}

impl UpstreamError {
    pub fn new(upstream: &Arc<str>, kind: ErrorKind) -> UpstreamError {
        UpstreamError {
            upstream: upstream.clone(),
            kind,
            age: None,
        }
    }

    /// "It is not there", said by an upstream that works: 404, 401, 403. Anything else is an upstream
    /// that failed, from which nothing may be concluded (R-C81).
    pub fn is_definite(&self) -> bool {
        matches!(self.kind, ErrorKind::NotFound { .. } | ErrorKind::Denied { .. })
    }

    /// Whether the same request may succeed if it is repeated after a pause.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            ErrorKind::Connect(_) | ErrorKind::Timeout(_) | ErrorKind::TooSlow | ErrorKind::Cut(_) => true,
            ErrorKind::Status { status, .. } => (status >= 500 || status == 408) && !self.kind.is_circle(),
            _ => false,
        }
    }

    /// One word for logs and metric labels.
    pub fn as_str(&self) -> &'static str {
        self.kind.as_str()
    }
}

impl ErrorKind {
    pub(super) fn no_connection() -> ErrorKind {
        ErrorKind::Connect(format!("{NO_CONNECTION}{IN_TIME}").into())
    }

    /// `to`: where to, as ` to registry.example`.
    pub(super) fn no_connection_to(to: &str) -> ErrorKind {
        ErrorKind::Connect(format!("{NO_CONNECTION}{to}{IN_TIME}").into())
    }

    /// Returns whether the address did not even answer to a connection: asking it costs as long each time.
    pub(super) fn is_no_connection(&self) -> bool {
        matches!(self, ErrorKind::Connect(why) if why.starts_with(NO_CONNECTION) && why.ends_with(IN_TIME))
    }

    /// The same, but of a host that the address leads to: that one does not answer, and the address may be well.
    pub(super) fn beyond(self, host: &str) -> ErrorKind {
        match self.is_no_connection() {
            true => ErrorKind::Connect(format!("{NO_CONNECTION} to {host}{IN_TIME}{BEYOND}").into()),
            false => self,
        }
    }

    /// Returns whether a host that the address leads to did not even answer to a connection.
    pub(super) fn is_no_connection_beyond(&self) -> bool {
        matches!(self, ErrorKind::Connect(why)
            if why.strip_suffix(BEYOND).is_some_and(|why| why.starts_with(NO_CONNECTION) && why.ends_with(IN_TIME)))
    }

    /// Returns whether the same request may succeed a moment later: never a verdict, never a 429.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            ErrorKind::Connect(_) | ErrorKind::Cut(_) => true,
            ErrorKind::Status { status, .. } => is_passing(*status),
            _ => false,
        }
    }

    /// Returns whether the upstream says that the request has come back to where it has been: it will again (RFC 5842, 7.2).
    pub fn is_circle(&self) -> bool {
        matches!(self, ErrorKind::Status { status: 508, .. })
    }

    /// One word for logs, metric labels and spans.
    pub fn as_str(&self) -> &'static str {
        match self {
            ErrorKind::NotFound { .. } => "not-found",
            ErrorKind::Denied { .. } => "denied",
            ErrorKind::RateLimited { .. } => "rate-limited",
            ErrorKind::Status { .. } => "status",
            ErrorKind::Connect(_) => "connect",
            ErrorKind::Timeout(_) | ErrorKind::TooSlow => "timeout",
            ErrorKind::Unwanted => "unwanted",
            ErrorKind::Cut(_) => "cut",
            ErrorKind::Refused(_) => "refused",
            ErrorKind::TooLarge { .. } => "too-large",
            ErrorKind::Protocol(_) => "protocol",
            ErrorKind::Offline => "offline",
            ErrorKind::Auth(_) => "auth",
        }
    }
}

/// Returns whether a status speaks of trouble that may pass: 408 and 5xx, but for what is not implemented (501, 505) and for circles (508).
pub(super) fn is_passing(status: u16) -> bool {
    status == 408 || (status >= 500 && !matches!(status, 501 | 505 | 508))
}
