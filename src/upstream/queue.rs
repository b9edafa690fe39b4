//! Requests that wait for one of an upstream's `max_connections`.
//!
//! That queue is Larder's own: nothing has been sent yet. A registry that hangs keeps its connections for minutes, so
//! whoever owns a request has to know whether it still waits here, and gives up what nobody wants any more. Else the
//! queue would grow by each request that a client has left.
//!
//! The knowledge goes with the task that asks ([`QueueWatch::over`]); a task that waits for the answer to another one's
//! request counts as waiting as long as that one does ([`QueueWatch::follow`]).

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::watch;

tokio::task_local! {
    static WATCH: QueueWatch;
}

/// Tells whether a task waits for a connection.
#[derive(Clone, Debug)]
pub struct QueueWatch(Arc<watch::Sender<usize>>);

impl Default for QueueWatch {
    fn default() -> QueueWatch {
        QueueWatch(Arc::new(watch::Sender::new(0)))
    }
}

impl QueueWatch {
    /// Runs `asking`: what that waits for in a queue is seen here.
    pub fn over<F: Future>(&self, asking: F) -> impl Future<Output = F::Output> + use<F> {
        WATCH.scope(self.clone(), asking)
    }

    pub fn is_waiting(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Returns once it waits in a queue.
    pub async fn queued(&self) {
        self.until(true).await;
    }

    /// Returns once it waits in no queue.
    pub async fn admitted(&self) {
        self.until(false).await;
    }

    async fn until(&self, is_waiting: bool) {
        // Never closed: the sender is ours.
        let _ = self.0.subscribe().wait_for(|waits| (*waits > 0) == is_waiting).await;
    }

    /// Has the task that calls it count as waiting whenever this one does. Never returns.
    pub async fn follow(&self) -> Infallible {
        let Ok(own) = WATCH.try_with(QueueWatch::clone) else {
            return std::future::pending().await;
        };
        loop {
            self.queued().await;
            let wait = Wait::begin(&own);
            self.admitted().await;
            drop(wait);
        }
    }
}

/// Waits for `turn`: meanwhile the task that calls it counts as waiting.
pub async fn waited<T>(turn: impl Future<Output = T>) -> T {
    // Without a watch nobody wants to know.
    let _wait = WATCH.try_with(Wait::begin).ok();
    turn.await
}

/// One wait. Ends when it is dropped.
struct Wait(QueueWatch);

impl Wait {
    fn begin(of: &QueueWatch) -> Wait {
        of.0.send_modify(|waits| *waits += 1);
        Wait(of.clone())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.0.send_modify(|waits| *waits -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_is_seen_by_whoever_owns_the_task() {
        let (own, other) = (QueueWatch::default(), QueueWatch::default());
        let asking = own.over(async {
            let both = waited(async {
                waited(std::future::ready(())).await;
                assert!(own.is_waiting() && !other.is_waiting());
            });
            both.await;
            assert!(!own.is_waiting());
        });
        asking.await;
        waited(async { assert!(!own.is_waiting()) }).await;
    }

    #[tokio::test]
    async fn who_waits_for_a_task_in_the_queue_waits_in_it() {
        let (asks, waits) = (QueueWatch::default(), QueueWatch::default());
        let (follows, of) = (waits.clone(), asks.clone());
        let following = tokio::spawn(async move { follows.over(async { of.follow().await }).await });
        for _ in 0..2 {
            let wait = Wait::begin(&asks);
            waits.queued().await;
            drop(wait);
            waits.admitted().await;
        }
        let _wait = Wait::begin(&asks);
        waits.queued().await;
        following.abort();
        waits.admitted().await;
    }
}
