//! When a transfer gives up, waits or goes on.

use std::time::Duration;

/// When to give up, wait or go on.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a transfer that nobody waits for goes on if it is not worth finishing.
    pub grace: Duration,
    /// A transfer with at most this left, or half done, is finished without anybody waiting.
    pub finish_bytes: u64,
    /// Attempts without a byte of progress before a transfer fails.
    pub attempts: u32,
    /// First pause between attempts; doubles, with jitter.
    pub backoff: Duration,
    pub longest_backoff: Duration,
    /// How long a client waits for an upstream when something stale could be served instead (R-W9).
    pub patience: Duration,
    /// After a failure, or after that was used up, how long stale is served at once.
    pub trouble_for: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            grace: Duration::from_secs(30),
            finish_bytes: 256 << 20,
            attempts: 6,
            backoff: Duration::from_millis(200),
            longest_backoff: Duration::from_secs(5),
            patience: Duration::from_millis(1500),
            trouble_for: Duration::from_secs(5),
        }
    }
}

impl Timing {
    /// Whether a transfer that nobody waits for is finished all the same.
    pub(super) fn worth_finishing(&self, written: u64, total: Option<u64>) -> bool {
        total.is_some_and(|total| total.saturating_sub(written) <= self.finish_bytes || written >= total / 2)
    }

    pub(super) fn pause(&self, failures: u32) -> Duration {
        let full = self
            .backoff
            .saturating_mul(1 << failures.min(10))
            .min(self.longest_backoff);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_done_is_finished() {
        let timing = Timing::default();
        let gib = 1 << 30;
        assert!(timing.worth_finishing(0, Some(256 << 20)));
        assert!(!timing.worth_finishing(0, Some(gib)));
        assert!(timing.worth_finishing(gib / 2, Some(gib)));
        assert!(!timing.worth_finishing(5, None));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let timing = Timing::default();
        for failures in 0..40 {
            let pause = timing.pause(failures);
            assert!(
                pause >= timing.backoff / 2 && pause <= timing.longest_backoff,
                "{pause:?}"
            );
        }
    }
}
