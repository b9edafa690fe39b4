//! One question at a time: whoever asks the same while it is asked shares the answer.
//!
//! A client waits for an answer no longer than `client_wait` says. What comes later than that is kept for a moment, so that
//! whoever was told to come back gets it, also where it is kept nowhere else: a HEAD's answer, or that there is nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::client_wait;
use super::error::PullError;
use crate::telemetry;
use crate::telemetry::trace::context::Context;
use crate::telemetry::trace::{self, Kind};
use crate::upstream::via;

/// How long an answer is kept that came when clients had been told to come back: they are told to do so after 5 s.
const LATE_KEPT_FOR: Duration = Duration::from_secs(10);

/// Questions under way, by key. The asking is a task of its own: it outlives whoever began it.
pub struct Single<K, V> {
    running: Running<K, V>,
    /// From what age of the question on an answer is late.
    late_after: Duration,
}

/// Each with where it is asked among traces, if that is recorded.
type Running<K, V> = Arc<Mutex<HashMap<K, (watch::Receiver<Option<V>>, Option<Context>)>>>;

/// An answer to come.
pub struct Pending<V> {
    answer: watch::Receiver<Option<V>>,
    /// Whether somebody else had asked already.
    pub joined: bool,
    /// The span that somebody else asks in.
    asked_in: Option<Context>,
}

impl<K, V> Single<K, V> {
    pub fn new(late_after: Duration) -> Single<K, V> {
        Single {
            running: Arc::default(),
            late_after,
        }
    }
}

/// An answer that may come late.
pub trait Answer: Clone + Send + Sync + 'static {
    /// Returns whether it is worth keeping for a moment, and not rather asked for again.
    fn is_final(&self) -> bool;
}

impl<T: Clone + Send + Sync + 'static> Answer for Result<T, PullError> {
    fn is_final(&self) -> bool {
        self.as_ref().err().is_none_or(PullError::is_verdict)
    }
}

impl<K, V> Single<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Answer,
{
    /// Joins the question `key`, or begins it with `ask`.
    pub fn join<F>(&self, key: K, ask: impl FnOnce() -> F) -> Pending<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((answer, asked_in)) = running.get(&key) {
            return Pending {
                answer: answer.clone(),
                joined: true,
                asked_in: asked_in.clone(),
            };
        }
        let (sender, answer) = watch::channel(None);
        running.insert(key.clone(), (answer.clone(), trace::here()));
        let guard = Leave {
            running: self.running.clone(),
            key,
        };
        let asking = ask();
        let (begun, late_after) = (Instant::now(), self.late_after);
        tokio::spawn(via::carry(telemetry::carry(async move {
            let value = asking.await;
            if begun.elapsed() >= late_after && value.is_final() {
                let _ = sender.send(Some(value));
                tokio::time::sleep(LATE_KEPT_FOR).await;
                drop(guard);
                return;
            }
            // Out of the map before it is told: whoever comes after the answer asks anew.
            drop(guard);
            let _ = sender.send(Some(value));
        })));
        Pending {
            answer,
            joined: false,
            asked_in: None,
        }
    }
}

/// Takes the question off the list, also when its task panics.
struct Leave<K: Eq + Hash, V> {
    running: Running<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Leave<K, V> {
    fn drop(&mut self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

impl<T: Clone> Pending<Result<T, PullError>> {
    /// Waits for the answer, for a client no longer than it may. May be dropped and taken up again.
    pub async fn wait(&mut self) -> Result<T, PullError> {
        let span = match self.joined {
            true => trace::start("wait for answer", Kind::Internal),
            false => trace::Span::default(),
        };
        span.link(self.asked_in.as_ref());
        let answer = client_wait::bounded(self.answer.wait_for(Option::is_some)).await;
        match answer.inspect_err(|late| span.fail(late.as_str(), late))? {
            Ok(value) => (*value).clone().unwrap_or(Err(PullError::Internal("an empty answer"))),
            Err(_) => Err(PullError::Internal("an upstream question was dropped")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::upstream::{ErrorKind, UpstreamError};

    const LATE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn many_ask_one_answers() {
        let single: Single<u8, Result<usize, PullError>> = Single::new(LATE);
        let asked = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Notify::new());
        let mut pending: Vec<_> = (0..20)
            .map(|_| {
                let (asked, gate) = (asked.clone(), gate.clone());
                single.join(7, || async move {
                    gate.notified().await;
                    Ok(asked.fetch_add(1, Ordering::SeqCst))
                })
            })
            .collect();
        assert_eq!(pending.iter().filter(|p| !p.joined).count(), 1);
        // The one who began it goes away; the others get their answer.
        pending.remove(0);
        gate.notify_one();
        for p in &mut pending {
            assert_eq!(p.wait().await.unwrap(), 0);
        }
        assert!(!single.join(7, || async { Ok(5) }).joined);
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let single: Single<u8, Result<u8, PullError>> = Single::new(LATE);
        let mut pending = single.join(1, || async { panic!("on purpose") });
        assert!(pending.wait().await.is_err());
        assert_eq!(single.join(1, || async { Ok(3) }).wait().await.unwrap(), 3);
    }

    /// What comes late is there for whoever comes back for it, and for no longer; what may pass is asked for again.
    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_kept_for_a_moment() {
        let second = Duration::from_secs(1);
        let failed = |kind| Err(UpstreamError::new(&"docker.io".into(), kind).into());
        let gone: Result<u8, PullError> = failed(ErrorKind::NotFound { status: 404 });
        let cut = failed(ErrorKind::Cut("the connection".into()));
        for (answer, took, is_kept) in [
            (Ok(7), 25 * second, true),
            (gone.clone(), 25 * second, true),
            (cut, 25 * second, false),
            (Ok(7), second, false),
            (gone, second, false),
        ] {
            let single: Single<u8, Result<u8, PullError>> = Single::new(LATE);
            let (text, expected) = (format!("{answer:?} after {took:?}"), format!("{answer:?}"));
            let asking = single.join(1, || async move {
                tokio::time::sleep(took).await;
                answer
            });
            drop(asking);
            tokio::time::sleep(took + 5 * second).await;
            let mut again = single.join(1, || async { Ok(9) });
            assert_eq!(again.joined, is_kept, "{text}");
            let given = again.wait().await;
            assert_eq!(format!("{given:?}") == expected, is_kept, "{text}: {given:?}");
            tokio::time::sleep(LATE_KEPT_FOR).await;
            assert!(!single.join(1, || async { Ok(9) }).joined, "{text}");
        }
    }
}
