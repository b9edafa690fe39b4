//! How long a request has been waiting for an answer, exchange by exchange: challenge, token, redirects, the answer itself.
//!
//! An address that is far away needs several seconds for all of them together and is well all the same; one that hangs sends
//! nothing at all. So each exchange is waited for by itself. Time that Larder needs for itself is no address's.

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
    /// Set while Larder itself does something before the next exchange.
    pause: Option<Pause>,
    /// Whether the headers of the answer itself have come.
    is_over: bool,
}

/// Something that Larder itself does while nothing is asked of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// A queue of its own, which is short.
    Queue,
    /// Waits for who gives out credentials, such as a helper program.
    Credentials,
}

/// A patience has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// The address has sent nothing for so long.
    Silent(Duration),
    /// There were no credentials to ask it with.
    WithoutCredentials,
}

impl Waiting {
    pub(super) fn begin() -> Waiting {
        Waiting(Mutex::new(Wait {
            since: Instant::now(),
            longest: Duration::ZERO,
            pause: None,
            is_over: false,
        }))
    }

    /// The next exchange begins: the last one was answered, or was Larder's own preparation.
    pub(super) fn restart(&self) {
        let mut wait = self.wait();
        wait.since = Instant::now();
        wait.pause = None;
    }

    /// Until `restart` nothing is asked of the address.
    pub(super) fn pause(&self, pause: Pause) {
        let mut wait = self.wait();
        wait.since = Instant::now();
        wait.pause = Some(pause);
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

    /// Returns when one exchange has taken longer than `patience`, if ever. `for_credentials`: whether they are waited
    /// for no longer than that either.
    pub(super) async fn exceeds(&self, patience: Duration, for_credentials: bool) -> Exceeded {
        loop {
            let (since, pause, is_over) = {
                let wait = self.wait();
                (wait.since, wait.pause, wait.is_over)
            };
            if is_over {
                return std::future::pending().await;
            }
            let due = since + patience;
            let is_due = Instant::now() >= due;
            let until = match pause {
                None if is_due => return Exceeded::Silent(since.elapsed()),
                Some(Pause::Credentials) if is_due && for_credentials => return Exceeded::WithoutCredentials,
                // The next exchange cannot have taken as long before that.
                Some(_) if is_due => Instant::now() + patience,
                _ => due,
            };
            tokio::time::sleep_until(until).await;
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
            waited = waiting.exceeds(SECOND, true) => waited,
            () = answering => unreachable!(),
        };
        assert_eq!(waited, Exceeded::Silent(SECOND));
        assert_eq!(begun.elapsed(), SECOND * 34 / 10);
        assert_eq!(waiting.longest(), SECOND * 8 / 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_its_time() {
        let waiting = Waiting::begin();
        waiting.note_answer();
        waiting.end();
        let exceeding = tokio::time::timeout(SECOND * 3600, waiting.exceeds(SECOND, true));
        assert!(exceeding.await.is_err());
    }

    /// Time that Larder needs for itself is not the address's. For credentials it may be left all the same.
    #[tokio::test(start_paused = true)]
    async fn a_pause_is_nobodys_silence() {
        for (pause, for_credentials, expected) in [
            (Pause::Queue, true, (Exceeded::Silent(SECOND), SECOND * 45 / 10)),
            (Pause::Credentials, false, (Exceeded::Silent(SECOND), SECOND * 45 / 10)),
            (
                Pause::Credentials,
                true,
                (Exceeded::WithoutCredentials, SECOND * 15 / 10),
            ),
        ] {
            let (waiting, begun) = (Waiting::begin(), Instant::now());
            let asking = async {
                tokio::time::sleep(SECOND / 2).await;
                waiting.pause(pause);
                tokio::time::sleep(SECOND * 3).await;
                waiting.restart();
                std::future::pending::<()>().await;
            };
            let exceeded = tokio::select! {
                exceeded = waiting.exceeds(SECOND, for_credentials) => exceeded,
                () = asking => unreachable!(),
            };
            assert_eq!((exceeded, begun.elapsed()), expected, "{pause:?}");
            assert_eq!(waiting.longest(), Duration::ZERO);
        }
    }
}
