//! How a request was answered: one word for the log, a metric label, and the Cache-Status header (RFC 9211).

/// What happened between the question and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// From what is held; no upstream was asked.
    Hit,
    /// The upstream was asked, and its answer is kept.
    Stored,
    /// The upstream was asked; nothing is kept (a HEAD, a blob larger than the cache, a list that the disk does not take).
    Passed,
    /// Another request had asked already; this one shares the answer.
    Collapsed,
    /// The upstream said that what is held is still right.
    Revalidated,
    /// The upstream said that the tag has moved; the new manifest was fetched or is held.
    Refreshed,
    /// The upstream failed; what is held was served although its time was over.
    Stale {
        /// Seconds since its time was over.
        overdue_s: u64,
        /// [`crate::pull::PullError::as_str`], or `slow`.
        reason: &'static str,
    },
}

impl Outcome {
    pub fn as_str(&self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Stored => "miss",
            Outcome::Passed => "pass",
            Outcome::Collapsed => "collapsed",
            Outcome::Revalidated => "revalidated",
            Outcome::Refreshed => "refreshed",
            Outcome::Stale { .. } => "stale",
        }
    }

    /// The Cache-Status member.
    pub fn cache_status(&self) -> String {
        match self {
            Outcome::Hit => "larder; hit".to_owned(),
            Outcome::Stored => "larder; fwd=miss; stored".to_owned(),
            Outcome::Passed => "larder; fwd=miss".to_owned(),
            Outcome::Collapsed => "larder; fwd=miss; collapsed".to_owned(),
            Outcome::Revalidated => "larder; fwd=stale; fwd-status=304".to_owned(),
            Outcome::Refreshed => "larder; fwd=stale; fwd-status=200; stored".to_owned(),
            Outcome::Stale { overdue_s, reason } => {
                let detail = match *reason {
                    "connect" | "timeout" | "cut" | "status" => "upstream-down",
                    "slow" => "upstream-slow",
                    other => other,
                };
                format!("larder; hit; ttl=-{overdue_s}; detail={detail}")
            }
        }
    }

    /// The Warning header of a stale answer (R-S28).
    pub fn warning(&self) -> Option<String> {
        match self {
            Outcome::Stale { overdue_s, reason } => Some(format!(
                "299 - \"served from the cache, {overdue_s} s past its time: the upstream could not confirm it ({reason})\""
            )),
            _ => None,
        }
    }
}
