//! How long a client waits for an upstream, which is not how long the upstream may take.
//!
//! Clients give up after 30 s without headers (R-C18). So whoever answers one waits in its own task no longer than 20 s
//! in all, then tells it to come back; the question or transfer is a task of its own and goes on, and whoever comes next
//! joins it. The wait goes with the task that answers ([`ClientWait::over`]) and not with those that it begins: what
//! they ask each other for, and what jobs ask for, may take as long as the upstream is allowed.
//!
//! - **Manifests, HEADs, lists, privacy**: all are questions of [`super::single`], whose `wait` is bounded here.
//! - **Blobs**: `Pull::fetch_blob` waits for a transfer to be answered; what comes then is waited for as long as it takes.
//! - **What something stale can stand in for** is waited for far less (`Timing::patience`); so is a confirmation beside mirrors.
//! - **Jobs** (`bring`, `refetch`) are in no such wait: they have until `answer_timeout`. An operator who asks for a tag's
//!   truth (`refresh`) waits as a client does.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Pull;
use super::error::PullError;
use super::names::Target;
use crate::oci::HostPort;

tokio::task_local! {
    static WAIT: ClientWait;
}

/// One client's wait, from its request on.
#[derive(Clone, Debug)]
pub struct ClientWait {
    upstream: HostPort,
    all: Duration,
    until: Instant,
}

impl ClientWait {
    /// Runs `answering`: what that waits for of an upstream ends with this wait.
    pub fn over<F: Future>(&self, answering: F) -> impl Future<Output = F::Output> + use<F> {
        WAIT.scope(self.clone(), answering)
    }

    #[cfg(test)]
    pub(super) fn lasting(all: Duration) -> ClientWait {
        ClientWait {
            upstream: "docker.io".parse().unwrap(),
            all,
            until: Instant::now() + all,
        }
    }

    /// Returns whether nothing more is waited for.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// What a client is told whose wait is over.
    pub fn late(&self) -> PullError {
        PullError::Late {
            upstream: self.upstream.to_string(),
            waited: self.all,
        }
    }
}

impl Pull {
    /// Begins the wait of a client that asks for something of this repository.
    pub fn client_wait(&self, target: &Target) -> ClientWait {
        ClientWait {
            upstream: target.upstream.name.clone(),
            all: self.timing.client_wait,
            until: Instant::now() + self.timing.client_wait,
        }
    }
}

/// Waits for an upstream, if a client waits for this task no longer than that client does. What is here already is given
/// to one whose wait is over, too.
pub(super) async fn bounded<T>(waiting: impl Future<Output = T>) -> Result<T, PullError> {
    let Ok(wait) = WAIT.try_with(ClientWait::clone) else {
        return Ok(waiting.await);
    };
    timeout_at(wait.until, waiting).await.map_err(|_| wait.late())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn all_that_a_client_waits_for_has_one_end() {
        let begun = Instant::now();
        let wait = ClientWait::lasting(CLIENT);
        let answering = async {
            let slow = || tokio::time::sleep(Duration::from_secs(15));
            bounded(slow()).await.unwrap();
            let late = bounded(slow()).await.unwrap_err();
            assert_eq!(begun.elapsed(), Duration::from_secs(20));
            assert_eq!(
                late.to_string(),
                "docker.io has not answered for 20 s; the request goes on, and the answer will be kept: try again"
            );
            assert!(bounded(tokio::time::sleep(Duration::from_millis(1))).await.is_err());
            assert_eq!(
                bounded(std::future::ready(7)).await.unwrap(),
                7,
                "what is here costs no wait"
            );
        };
        assert!(!wait.is_over());
        wait.over(answering).await;
        assert!(wait.is_over());
    }

    /// What a client began has the time that its upstream is given.
    #[tokio::test(start_paused = true)]
    async fn a_task_of_its_own_waits_on() {
        let begun = Instant::now();
        let asking = ClientWait::lasting(CLIENT).over(async {
            let task = tokio::spawn(async { bounded(tokio::time::sleep(Duration::from_secs(60))).await.is_ok() });
            task.await.unwrap()
        });
        assert!(asking.await);
        assert_eq!(begun.elapsed(), Duration::from_secs(60));
    }
}
