//! HEADs that are refused where a GET is answered (R-U27).
//!
//! Addresses that are signed for GET only answer HEAD with 403; some registries and stores answer it with 404, 405 or 500, or
//! close the connection. So a refused HEAD is no verdict where that may be HEAD's fault: a GET decides, which is broken off
//! after its headers. A 404 of the registry itself is mostly honest: it is checked by a GET as well, but not again for a
//! moment after a GET has agreed, unless another one has contradicted. A 401 or 403 of the registry itself is a verdict.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use reqwest::Method;
use tokio::time::Instant;

use super::ask::Reply;
use super::client::Client;
use super::endpoint::Endpoint;
use super::error::{ErrorKind, UpstreamError};
use super::question::{Kind, Question};
use super::waiting::{Pause, Waiting};

/// How long the 404s of an address to HEAD are believed after a GET was answered with 404, too.
const CONFIRMED_FOR: Duration = Duration::from_secs(30);
/// How long none of them is believed after a GET was answered with 200.
const CONTRADICTED_FOR: Duration = Duration::from_secs(600);
/// How long a HEAD that was answered with 404 waits for its turn to be checked; then it is believed.
const TURN_FOR: Duration = Duration::from_secs(1);
/// How long a GET that checks a 404 may take to begin its answer; then the 404 is believed.
const CHECK_FOR: Duration = Duration::from_secs(5);
/// How long a HEAD is not repeated at an address after one failed and a GET was answered.
const FAILING_FOR: Duration = Duration::from_secs(600);

/// When a HEAD that was refused is followed by a GET, which is broken off after its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetFallback {
    Never,
    /// Where HEAD is not answered at all.
    Unsupported,
    /// Also where HEAD is answered with what may be true.
    Doubtful,
}

/// Why a refused HEAD is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// 400, 405 and 501, and what a redirect target refuses: there is no HEAD here, and a GET stands in for it.
    Unsupported,
    /// 404, 5xx, a closed connection, an answer that makes no sense: true, or HEAD's fault.
    Refused,
}

impl ErrorKind {
    /// Returns why a HEAD that failed so is no verdict; `None` if a GET would fail in the same way.
    ///
    /// A registry's own 401, 403 and 404 are `Denied` and `NotFound`. So a `Status` of those is a redirect target's.
    pub(super) fn doubt_of_head(&self) -> Option<Doubt> {
        match self {
            ErrorKind::Status {
                status: 400 | 401 | 403 | 404 | 405 | 501,
                ..
            } => Some(Doubt::Unsupported),
            ErrorKind::Status { .. } | ErrorKind::NotFound { .. } | ErrorKind::Cut(_) | ErrorKind::Protocol(_) => {
                Some(Doubt::Refused)
            }
            _ => None,
        }
    }
}

impl UpstreamError {
    /// Returns true if a HEAD failed in a way that may be HEAD's fault: only a GET can be believed.
    pub fn is_doubtful_head(&self) -> bool {
        self.kind.doubt_of_head().is_some()
    }
}

impl Question<'_> {
    /// Returns the doubt that an error leaves, if this is a HEAD that a GET may follow for it.
    pub(super) fn falls_back(&self, error: &ErrorKind) -> Option<Doubt> {
        let doubt = error.doubt_of_head().filter(|_| self.method == Method::HEAD)?;
        let allowed = match self.get_fallback {
            GetFallback::Never => false,
            GetFallback::Unsupported => doubt == Doubt::Unsupported,
            GetFallback::Doubtful => true,
        };
        allowed.then_some(doubt)
    }

    /// Returns whether an error may be HEAD's fault, and no GET has followed: it says nothing of how the address is doing.
    pub(super) fn says_little(&self, error: &ErrorKind) -> bool {
        self.method == Method::HEAD && error.doubt_of_head().is_some() && self.falls_back(error).is_none()
    }

    /// Returns the error to report after all addresses failed, given a mirror's `earlier` one: if a HEAD that no GET has
    /// followed was refused there, and not by a mere 404, the caller has to know that a GET may be answered.
    pub(super) fn worst_of(&self, earlier: Option<ErrorKind>, last: ErrorKind) -> ErrorKind {
        let leaves_doubt = |error: &ErrorKind| {
            self.method == Method::HEAD
                && self.get_fallback == GetFallback::Never
                && error.doubt_of_head().is_some()
                && !matches!(error, ErrorKind::NotFound { .. })
        };
        match earlier.filter(leaves_doubt) {
            Some(earlier) if last.doubt_of_head().is_none() => earlier,
            _ => last,
        }
    }
}

impl Client {
    /// Asks an endpoint once. A HEAD that leaves doubt is followed by a GET there, if the question allows it.
    pub(super) async fn attempt(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        deadline: Instant,
        waiting: &Waiting,
    ) -> Result<Reply, ErrorKind> {
        let asked = self.once(endpoint, question, deadline, waiting).boxed().await;
        let Some((error, doubt)) = asked.as_ref().err().and_then(|e| Some((e, question.falls_back(e)?))) else {
            return asked;
        };
        let evidence = endpoint.heads.of(question.kind);
        let is_not_found = matches!(error, ErrorKind::NotFound { .. });
        let mut _turn = None;
        if is_not_found {
            // One check at a time: many HEADs of what is not there are not as many GETs.
            if !evidence.is_contradicted() {
                let patience = deadline.min(Instant::now() + TURN_FOR);
                waiting.pause(Pause::Queue);
                let turn = tokio::time::timeout_at(patience, evidence.turn.lock()).await;
                waiting.restart();
                // A check that hangs keeps nobody else, nor the places that they hold.
                let Ok(turn) = turn else { return asked };
                _turn = Some(turn);
            }
            if evidence.is_confirmed() {
                return asked;
            }
        }
        tracing::debug!(upstream = %self.name, %error, "a HEAD was refused: asking by GET");
        let get = Question {
            method: Method::GET,
            get_fallback: GetFallback::Never,
            ..question.clone()
        };
        let until = match is_not_found {
            true => deadline.min(Instant::now() + CHECK_FOR),
            false => deadline,
        };
        let verdict = self.once(endpoint, &get, until, waiting).await;
        if is_not_found {
            evidence.note(&verdict);
            if matches!(verdict, Err(ErrorKind::Timeout(_))) {
                return asked;
            }
        }
        verdict.map(|reply| Reply {
            get_for_head: Some(doubt),
            ..reply
        })
    }

    /// Notes that a HEAD of a manifest failed with `error` where a GET was answered. HEADs that fail for a moment are repeated,
    /// which those that always fail would only be slower for.
    pub fn note_failing_heads(&self, error: &UpstreamError) {
        if error.is_transient() {
            for endpoint in self.endpoints() {
                endpoint.heads.manifests.look().failing = Some(Instant::now());
            }
        }
    }
}

/// Experience with HEADs at one address.
#[derive(Debug, Default)]
pub(super) struct Heads {
    manifests: Evidence,
    others: Evidence,
}

impl Heads {
    fn of(&self, kind: Kind) -> &Evidence {
        match kind {
            Kind::Manifest => &self.manifests,
            Kind::Blob | Kind::Tags | Kind::Referrers => &self.others,
        }
    }

    /// Returns true if this HEAD is not to be repeated when it fails, since a GET will do better.
    pub(super) fn are_failing(&self, question: &Question<'_>) -> bool {
        let is_recent = |failing: Instant| failing.elapsed() < FAILING_FOR;
        question.method == Method::HEAD && self.of(question.kind).look().failing.is_some_and(is_recent)
    }
}

/// Experience with HEADs for one kind of content.
#[derive(Debug, Default)]
struct Evidence {
    seen: Mutex<Seen>,
    /// Held while a GET checks a 404.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// When a GET was last answered with 404 (or 401, 403) after a HEAD with 404.
    confirmed: Option<Instant>,
    /// When a GET was last answered after a HEAD with 404.
    contradicted: Option<Instant>,
    /// When a GET was last answered after a HEAD that failed.
    failing: Option<Instant>,
}

impl Evidence {
    fn look(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_contradicted(&self) -> bool {
        let contradicted = self.look().contradicted;
        contradicted.is_some_and(|at| at.elapsed() < CONTRADICTED_FOR)
    }

    /// Returns true if a 404 to HEAD is believed without a GET.
    fn is_confirmed(&self) -> bool {
        let confirmed = self.look().confirmed;
        confirmed.is_some_and(|at| at.elapsed() < CONFIRMED_FOR) && !self.is_contradicted()
    }

    /// Notes what a GET was answered after a HEAD with 404.
    fn note(&self, verdict: &Result<Reply, ErrorKind>) {
        let now = Some(Instant::now());
        match verdict {
            Ok(_) => self.look().contradicted = now,
            Err(ErrorKind::NotFound { .. } | ErrorKind::Denied { .. }) => self.look().confirmed = now,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found() -> Result<Reply, ErrorKind> {
        Err(ErrorKind::NotFound { status: 404 })
    }

    fn found() -> Result<Reply, ErrorKind> {
        Ok(Reply {
            headers: reqwest::header::HeaderMap::new(),
            digest: None,
            with_credentials: false,
            by_itself: true,
            get_for_head: None,
            address: "https://r.test".into(),
            body: super::super::ask::Body::None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_404_is_believed_for_a_moment_after_a_get_agreed() {
        let evidence = Evidence::default();
        assert!(!evidence.is_confirmed());
        evidence.note(&Err(ErrorKind::Cut("x".into())));
        assert!(!evidence.is_confirmed());
        evidence.note(&not_found());
        assert!(evidence.is_confirmed());
        tokio::time::advance(CONFIRMED_FOR).await;
        assert!(!evidence.is_confirmed());
        // One that lied is checked each time, whatever agrees with it since.
        evidence.note(&found());
        evidence.note(&not_found());
        assert!(evidence.is_contradicted() && !evidence.is_confirmed());
        tokio::time::advance(CONTRADICTED_FOR).await;
        assert!(!evidence.is_confirmed());
        evidence.note(&not_found());
        assert!(evidence.is_confirmed());
    }

    #[test]
    fn which_errors_leave_doubt() {
        let status = |status| ErrorKind::Status {
            status,
            detail: "".into(),
            retry_after: None,
        };
        let denied = ErrorKind::Denied {
            status: 403,
            detail: "".into(),
        };
        for (error, doubt) in [
            (status(403), Some(Doubt::Unsupported)),
            (status(404), Some(Doubt::Unsupported)),
            (status(405), Some(Doubt::Unsupported)),
            (status(501), Some(Doubt::Unsupported)),
            (status(418), Some(Doubt::Refused)),
            (status(500), Some(Doubt::Refused)),
            (ErrorKind::NotFound { status: 404 }, Some(Doubt::Refused)),
            (ErrorKind::Cut("".into()), Some(Doubt::Refused)),
            (ErrorKind::Protocol("".into()), Some(Doubt::Refused)),
            (denied, None),
            (ErrorKind::Connect("".into()), None),
            (ErrorKind::Timeout(Duration::ZERO), None),
            (ErrorKind::Offline, None),
            (
                ErrorKind::RateLimited {
                    retry_after: Duration::ZERO,
                },
                None,
            ),
        ] {
            assert_eq!(error.doubt_of_head(), doubt, "{error:?}");
        }
    }
}
