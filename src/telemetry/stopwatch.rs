//! Where the time of one request goes, for who asks: `Server-Timing`.
//!
//! A stopwatch goes with the task that answers, and with the tasks that it begins ([`carry`]), so that the floors below
//! need not pass it on. Without one, measuring costs a look at the task and no clock is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

tokio::task_local! {
    static RUNNING: Arc<Stopwatch>;
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The disk.
    Store,
    /// Headers of upstreams, redirects included.
    Upstream,
    /// Tokens that were fetched.
    Token,
}

const PARTS: usize = 3;
/// Of a part that was not waited for.
const NEVER: u64 = 0;

/// The times of one request.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    /// Nanoseconds, by [`Part`]; at least one once it was waited for.
    parts: [AtomicU64; PARTS],
}

impl Stopwatch {
    pub fn start() -> Arc<Stopwatch> {
        Arc::new(Stopwatch {
            started: Instant::now(),
            parts: [const { AtomicU64::new(NEVER) }; PARTS],
        })
    }

    /// Since it was started.
    pub fn total(&self) -> Duration {
        self.started.elapsed()
    }

    /// What was waited for that, so far; `None` if it was not.
    pub fn part(&self, part: Part) -> Option<Duration> {
        let nanoseconds = self.parts[part as usize].load(Ordering::Relaxed);
        (nanoseconds != NEVER).then(|| Duration::from_nanos(nanoseconds))
    }

    /// Runs `future` with this stopwatch.
    pub async fn over<F: Future>(self: Arc<Stopwatch>, future: F) -> F::Output {
        RUNNING.scope(self, future).await
    }

    fn add(&self, part: Part, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(NEVER + 1);
        self.parts[part as usize].fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// `future`, for a task of its own, with the stopwatch of the task that begins it, if it has one.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let running = RUNNING.try_with(Arc::clone).ok();
    async move {
        match running {
            Some(watch) => watch.over(future).await,
            None => future.await,
        }
    }
}

/// Runs `future` without telling the caller's stopwatch: what it waits for would show the client something that is none
/// of its business.
pub async fn unmeasured<F: Future>(future: F) -> F::Output {
    Stopwatch::start().over(future).await
}

/// Waits for `future`; where a stopwatch runs, it tells how long.
pub async fn measure<F: Future>(part: Part, future: F) -> F::Output {
    let Ok(watch) = RUNNING.try_with(Arc::clone) else {
        return future.await;
    };
    let started = Instant::now();
    let output = future.await;
    watch.add(part, started.elapsed());
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_waited_for_is_told_apart_and_goes_along_to_other_tasks() {
        let watch = Stopwatch::start();
        let work = async {
            measure(Part::Store, std::future::ready(())).await;
            tokio::spawn(carry(measure(Part::Token, tokio::task::yield_now())))
                .await
                .unwrap();
            // One that is begun without it knows nothing of it.
            tokio::spawn(measure(Part::Upstream, tokio::task::yield_now()))
                .await
                .unwrap();
        };
        watch.clone().over(work).await;
        measure(Part::Upstream, std::future::ready(())).await;
        let secret = async {
            let asked = tokio::spawn(carry(measure(Part::Upstream, std::future::ready(()))));
            asked.await.unwrap();
        };
        watch.clone().over(unmeasured(secret)).await;
        assert!(watch.part(Part::Store).is_some() && watch.part(Part::Token).is_some());
        assert_eq!(watch.part(Part::Upstream), None);
    }
}
