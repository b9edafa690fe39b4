//! One question at a time: whoever asks the same while it is asked shares the answer.
//!
//! A client waits for an answer no longer than `client_wait` says. Where one was told to come back, the answer is kept for a
//! moment, so that it is found also where nobody else keeps it: a HEAD's, or that there is nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::client_wait;
use super::error::PullError;
use crate::telemetry;
use crate::telemetry::trace::context::Context;
use crate::telemetry::trace::{self, Kind};
use crate::upstream::via;

/// How long an answer is kept that a client was told to come back for, which it is to do after 5 s.
const LATE_KEPT_FOR: Duration = Duration::from_secs(10);

/// Questions under way, by key. The asking is a task of its own: it outlives whoever began it.
pub struct Single<K, V> {
    running: Running<K, V>,
}

type Running<K, V> = Arc<Mutex<HashMap<K, Asking<V>>>>;

/// A question under way.
#[derive(Clone)]
struct Asking<V> {
    answer: watch::Receiver<Option<V>>,
    /// Where it is asked among traces, if that is recorded.
    asked_in: Option<Context>,
    /// Set once a client was told to come back for its answer.
    is_promised: Arc<AtomicBool>,
}

/// An answer to come.
pub struct Pending<V> {
    asking: Asking<V>,
    /// Whether somebody else had asked already.
    pub joined: bool,
}

impl<K, V> Default for Single<K, V> {
    fn default() -> Single<K, V> {
        Single {
            running: Arc::default(),
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
        if let Some(asking) = running.get(&key) {
            return Pending {
                asking: asking.clone(),
                joined: true,
            };
        }
        let (sender, answer) = watch::channel(None);
        let begun = Asking {
            answer,
            asked_in: trace::here(),
            is_promised: Arc::default(),
        };
        let is_promised = begun.is_promised.clone();
        running.insert(key.clone(), begun.clone());
        let guard = Leave {
            running: self.running.clone(),
            key,
        };
        let asking = ask();
        tokio::spawn(via::carry(telemetry::carry(async move {
            let value = asking.await;
            if is_promised.load(Ordering::Acquire) && value.is_final() {
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
            asking: begun,
            joined: false,
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
        span.link(self.asking.asked_in.as_ref().filter(|_| self.joined));
        let waiting = self.asking.answer.wait_for(Option::is_some);
        let answer = client_wait::bounded(waiting).await.inspect_err(|late| {
            self.asking.is_promised.store(true, Ordering::Release);
            span.fail(late.as_str(), late);
        });
        match answer? {
            Ok(value) => (*value).clone().unwrap_or(Err(PullError::Internal("an empty answer"))),
            Err(_) => Err(PullError::Internal("an upstream question was dropped")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::pull::client_wait::ClientWait;
    use crate::upstream::{ErrorKind, UpstreamError};

    #[tokio::test]
    async fn many_ask_one_answers() {
        let single: Single<u8, Result<usize, PullError>> = Single::default();
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
        let single: Single<u8, Result<u8, PullError>> = Single::default();
        let mut pending = single.join(1, || async { panic!("on purpose") });
        assert!(pending.wait().await.is_err());
        assert_eq!(single.join(1, || async { Ok(3) }).wait().await.unwrap(), 3);
    }

    /// What a client was told to come back for is there for a moment; what may pass is asked for again.
    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_kept_for_a_moment() {
        let second = Duration::from_secs(1);
        let failed = |kind| Err(UpstreamError::new(&"docker.io".into(), kind).into());
        let gone: Result<u8, PullError> = failed(ErrorKind::NotFound { status: 404 });
        let cut = failed(ErrorKind::Cut("the connection".into()));
        let (client, job) = (20 * second, 3600 * second);
        for (answer, took, waits, is_kept) in [
            (Ok(7), 25 * second, client, true),
            (gone.clone(), 25 * second, client, true),
            (cut, 25 * second, client, false),
            (Ok(7), second, client, false),
            (gone, second, client, false),
            (Ok(7), 25 * second, job, false),
        ] {
            let single: Single<u8, Result<u8, PullError>> = Single::default();
            let (text, expected) = (format!("{answer:?} after {took:?}"), format!("{answer:?}"));
            let begun = tokio::time::Instant::now();
            let mut asking = single.join(1, || async move {
                tokio::time::sleep(took).await;
                answer
            });
            let told = ClientWait::lasting(waits).over(asking.wait()).await;
            assert_eq!(told.is_err_and(|error| error.is_late()), took > waits, "{text}");
            tokio::time::sleep_until(begun + took + 5 * second).await;
            let mut again = single.join(1, || async { Ok(9) });
            assert_eq!(again.joined, is_kept, "{text}");
            let given = again.wait().await;
            assert_eq!(format!("{given:?}") == expected, is_kept, "{text}: {given:?}");
            tokio::time::sleep(LATE_KEPT_FOR).await;
            assert!(!single.join(1, || async { Ok(9) }).joined, "{text}");
        }
    }
}
