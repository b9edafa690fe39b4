//! When a transfer gives up, waits or goes on.

use std::time::Duration;

/// When to give up, wait or go on.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a transfer that nobody waits for goes on if it is not worth finishing.
    pub grace: Duration,
    /// A transfer with at most this left, or half done, is finished without anybody waiting.
    pub finish_bytes: u64,
    /// How long a client waits for an upstream before it is told to come back. Clients give up after 30 s (R-C18).
    pub client_wait: Duration,
    /// As `grace` and `finish_bytes`, for a transfer that clients were told to come back for, and whose answer found nobody.
    /// kubelet comes back within five minutes.
    pub late_grace: Duration,
    pub late_finish_bytes: u64,
    /// Attempts without a byte of progress before a transfer fails.
    pub attempts: u32,
    /// First pause between attempts; doubles, with jitter.
    pub backoff: Duration,
    pub longest_backoff: Duration,
    /// How long a client waits for an upstream when something stale could be served instead (R-W9).
    pub patience: Duration,
    /// After a failure, or after that was used up, how long stale is served at once.
    pub trouble_for: Duration,
    pub parallel: Parallel,
    /// How long nothing is given out of what comes from a mirror of which no whole blob has been verified yet.
    pub prove_for: Duration,
    /// How long an operator who sends a bundle may send nothing before others get their turn.
    pub import_silence: Duration,
}

/// When one blob is fetched over several connections: where each is slow for itself, and several are faster.
#[derive(Clone, Debug)]
pub struct Parallel {
    /// Connections for one blob at most, the first included. 1: never more than that one.
    pub connections: usize,
    /// Also where the upstream is on this machine. There no distance makes a connection slow, but a want of processors,
    /// which more of them make worse.
    pub on_this_machine: bool,
    /// Not worth it for less than this.
    pub least_left: u64,
    /// A connection that brings as many bytes a second is not slow.
    pub slow_below: u64,
    /// The rate is measured over so long.
    pub measure_for: Duration,
    /// Those that are added must each bring this share of what each brought before, or they were too many.
    pub gain: f64,
    /// What is asked for at a time.
    pub part_bytes: u64,
    /// Parts of one blob in memory, coming or waiting for their turn.
    pub parts: usize,
    /// The same of all transfers together.
    pub parts_in_all: usize,
    /// Failures that may pass, of one blob's parts, before it goes on alone.
    pub failures: u32,
    /// How long an upstream is left alone with this that refused it or was not faster by it.
    pub refrain_for: Duration,
}

impl Default for Parallel {
    fn default() -> Parallel {
        Parallel {
            connections: 6,
            on_this_machine: false,
            least_left: 32 << 20,
            slow_below: 64 << 20,
            measure_for: Duration::from_millis(400),
            gain: 0.5,
            part_bytes: 6 << 20,
            parts: 8,
            parts_in_all: 16,
            failures: 3,
            refrain_for: Duration::from_secs(600),
        }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            grace: Duration::from_secs(30),
            finish_bytes: 256 << 20,
            client_wait: Duration::from_secs(20),
            late_grace: Duration::from_secs(300),
            late_finish_bytes: 1 << 30,
            attempts: 6,
            backoff: Duration::from_millis(200),
            longest_backoff: Duration::from_secs(5),
            patience: Duration::from_millis(1500),
            trouble_for: Duration::from_secs(5),
            parallel: Parallel::default(),
            prove_for: Duration::from_secs(1),
            import_silence: Duration::from_secs(60),
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
