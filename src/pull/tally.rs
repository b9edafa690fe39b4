//! How many requests were answered how, since the start; and when the last one was.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The words of [`crate::pull::Outcome`], one for what does not exist, one for requests that failed, and one for callers that
/// had no right.
const WORDS: [&str; 10] = [
    "hit",
    "miss",
    "pass",
    "collapsed",
    "revalidated",
    "refreshed",
    "stale",
    "missing",
    "error",
    "refused",
];

/// A count of each word, in one order.
pub type OutcomeCounts = [u64; WORDS.len()];

/// The words with their counts.
pub fn by_outcome(counts: &OutcomeCounts) -> impl Iterator<Item = (&'static str, u64)> {
    WORDS.iter().zip(counts).map(|(word, count)| (*word, *count))
}

/// Counts by outcome. Nobody waits for anybody.
#[derive(Debug)]
pub struct Tally {
    counts: [AtomicU64; WORDS.len()],
    begun: Instant,
    /// Milliseconds from `begun` to the last answer, and one; 0: there was none.
    last: AtomicU64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            begun: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Tally {
    /// An answer goes out; `None` and unknown words are answers that were nobody's pull.
    pub fn note(&self, outcome: Option<&str>, now: Instant) {
        let slot = WORDS.iter().position(|word| Some(*word) == outcome);
        if let Some(count) = slot.and_then(|slot| self.counts.get(slot)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.last.store(self.ms_until(now) + 1, Ordering::Relaxed);
    }

    /// Every count, as [`by_outcome`] names them.
    pub fn counts(&self) -> OutcomeCounts {
        std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed))
    }

    /// How long nothing was answered.
    pub fn quiet_for(&self) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            last => Duration::from_millis(self.ms_until(Instant::now()).saturating_sub(last - 1)),
        }
    }

    fn ms_until(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_word() {
        let tally = Tally::default();
        assert_eq!(tally.quiet_for(), Duration::MAX);
        for word in [Some("hit"), Some("hit"), Some("stale"), Some("never heard of"), None] {
            tally.note(word, Instant::now());
        }
        let counts = tally.counts();
        let counted: Vec<_> = by_outcome(&counts).filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("hit", 2), ("stale", 1)]);
        assert!(tally.quiet_for() < Duration::MAX);
    }

    /// Every outcome there is has a place.
    #[test]
    fn no_outcome_is_missing() {
        use crate::pull::Outcome::*;
        let stale = Stale {
            overdue_s: 1,
            reason: "slow",
        };
        for outcome in [Hit, Stored, Passed, Collapsed, Revalidated, Refreshed, stale] {
            assert!(WORDS.contains(&outcome.as_str()), "{outcome:?}");
        }
    }
}
