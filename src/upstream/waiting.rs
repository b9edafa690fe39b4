//! How long a request has been waiting for an answer, exchange by exchange: challenge, token, redirects, the answer itself.
//!
//! An address that is far away needs several seconds for all of them together and is well all the same; one that hangs sends
//! nothing at all. So each exchange is waited for by itself.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by the request, which notes each answer, and by whoever may lose patience.
#[derive(Debug)]
pub(super) struct Waiting(Mutex<Wait>);

#[derive(Debug)]
struct Wait {
    /// When the exchange that is waited for began.
    since: Instant,
    longest: Duration,
    /// Whether the headers of the answer itself have come.
    is_over: bool,
}

impl Waiting {
    pub(super) fn begin() -> Waiting {
        Waiting(Mutex::new(Wait {
            since: Instant::now(),
            longest: Duration::ZERO,
            is_over: false,
        }))
    }

    /// The next exchange begins: the last one was answered, or was Larder's own preparation.
    pub(super) fn restart(&self) {
        self.wait().since = Instant::now();
    }

    /// One exchange has been answered.
    pub(super) fn note_answer(&self) {
        let now = Instant::now();
        let mut wait = self.wait();
        wait.longest = wait.longest.max(now.saturating_duration_since(wait.since));
        wait.since = now;
    }

    /// The answer itself has begun: nobody may lose patience any more.
    pub(super) fn end(&self) {
        self.wait().is_over = true;
    }

    /// Returns the longest time that one exchange took.
    pub(super) fn longest(&self) -> Duration {
        self.wait().longest
    }

    /// Returns when one exchange has taken longer than `patience`, if ever: with its time so far.
    pub(super) async fn exceeds(&self, patience: Duration) -> Duration {
        loop {
            let (since, is_over) = {
                let wait = self.wait();
                (wait.since, wait.is_over)
            };
            if is_over {
                return std::future::pending().await;
            }
            let due = since + patience;
            if Instant::now() >= due {
                return since.elapsed();
            }
            tokio::time::sleep_until(due).await;
        }
    }

    fn wait(&self) -> MutexGuard<'_, Wait> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn each_exchange_is_waited_for_by_itself() {
        let waiting = Waiting::begin();
        let begun = Instant::now();
        let answering = async {
            for _ in 0..3 {
                tokio::time::sleep(SECOND * 8 / 10).await;
                waiting.note_answer();
            }
            std::future::pending::<()>().await;
        };
        let waited = tokio::select! {
            waited = waiting.exceeds(SECOND) => waited,
            () = answering => unreachable!(),
        };
        assert_eq!(waited, SECOND);
        assert_eq!(begun.elapsed(), SECOND * 34 / 10);
        assert_eq!(waiting.longest(), SECOND * 8 / 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_its_time() {
        let waiting = Waiting::begin();
        waiting.note_answer();
        waiting.end();
        let exceeding = tokio::time::timeout(SECOND * 3600, waiting.exceeds(SECOND));
        assert!(exceeding.await.is_err());
    }
}
