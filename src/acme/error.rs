//! What can go wrong on the way to a certificate, whose fault it is, and when to try again.

use std::time::SystemTime;

use instant_acme::Problem;

use super::plan::Failure;
use crate::store::StoreError;

/// Longest part of a directory's message that is passed on, characters.
const MAX_DETAIL: usize = 500;

/// Texts hold no key and no token of a challenge.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct AcmeError {
    pub fault: Fault,
    /// The directory asked to be left alone until then.
    pub not_before: Option<SystemTime>,
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0} cannot be reached: {1}; check acme.directory, acme.ca_file and the way there")]
    Unreachable(String, String),
    /// 5xx, and answers that nobody can read.
    #[error("{0} does not work as it should: {1}")]
    Broken(String, String),
    #[error("{0} asks for patience: {1}")]
    RateLimited(String, String),
    /// It understood, and does not want to.
    #[error("{0} refused it: {1}")]
    Refused(String, String),
    /// The directory looked, and did not find our answer.
    #[error("{0}")]
    Challenge(String),
    /// What came is not what was ordered.
    #[error("what {0} issued is not used: {1}")]
    Useless(String, String),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// On this side.
    #[error("{0}")]
    Ours(String),
    #[error("{0} took too long: no certificate within {1} s")]
    Slow(String, u64),
}

impl Fault {
    pub fn kind(&self) -> Failure {
        match self {
            Fault::Unreachable(..) => Failure::Unreachable,
            Fault::Broken(..) | Fault::Slow(..) => Failure::Broken,
            Fault::RateLimited(..) => Failure::RateLimited,
            _ => Failure::Refused,
        }
    }

    /// What a problem document says (RFC 8555, 6.7); `what` is who says it.
    pub fn of_problem(problem: &Problem, what: &str) -> Fault {
        let said = said(problem);
        let kind = problem.r#type.as_deref().unwrap_or_default();
        match kind.rsplit(':').next() {
            Some("rateLimited") => Fault::RateLimited(what.to_owned(), said),
            Some("serverInternal" | "badNonce") => Fault::Broken(what.to_owned(), said),
            _ if problem.status == Some(429) => Fault::RateLimited(what.to_owned(), said),
            _ if problem.status.is_some_and(|status| status >= 500) => Fault::Broken(what.to_owned(), said),
            _ => Fault::Refused(what.to_owned(), said),
        }
    }
}

/// A problem's own words, on one line.
pub fn said(problem: &Problem) -> String {
    let mut text = problem.detail.clone().unwrap_or_else(|| "no reason given".to_owned());
    for sub in &problem.subproblems {
        if let Some(detail) = &sub.detail {
            text += &format!("; {detail}");
        }
    }
    if let Some(kind) = &problem.r#type {
        text += &format!(" ({})", kind.trim_start_matches("urn:ietf:params:acme:error:"));
    }
    one_line(&text)
}

/// Without hidden characters, and not longer than it is useful.
pub fn one_line(text: &str) -> String {
    crate::text::one_line(text, MAX_DETAIL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Problem {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn problems_have_a_kind() {
        for (json, kind) in [
            (
                r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}"#,
                Failure::RateLimited,
            ),
            (r#"{"status":429}"#, Failure::RateLimited),
            (
                r#"{"type":"urn:ietf:params:acme:error:serverInternal"}"#,
                Failure::Broken,
            ),
            (r#"{"status":503}"#, Failure::Broken),
            (
                r#"{"type":"urn:ietf:params:acme:error:rejectedIdentifier","status":400}"#,
                Failure::Refused,
            ),
        ] {
            assert_eq!(Fault::of_problem(&problem(json), "it").kind(), kind, "{json}");
        }
    }

    #[test]
    fn their_words_are_passed_on_in_one_line() {
        let problem = problem(
            r#"{"type":"urn:ietf:params:acme:error:malformed","detail":"no\nway","subproblems":[{"detail":"not \u001b[31mthis"}]}"#,
        );
        assert_eq!(said(&problem), "no way; not  [31mthis (malformed)");
    }
}
