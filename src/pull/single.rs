//! One question at a time: whoever asks the same while it is asked shares the answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::error::PullError;
use crate::telemetry;
use crate::telemetry::trace::context::Context;
use crate::telemetry::trace::{self, Kind};

/// Questions under way, by key. The asking is a task of its own: it outlives whoever began it.
pub struct Single<K, V> {
    running: Running<K, V>,
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

impl<K, V> Default for Single<K, V> {
    fn default() -> Single<K, V> {
        Single {
            running: Arc::default(),
        }
    }
}

impl<K, V> Single<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
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
        tokio::spawn(telemetry::carry(async move {
            let value = asking.await;
            // Out of the map before it is told: whoever comes after the answer asks anew.
            drop(guard);
            let _ = sender.send(Some(value));
        }));
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
    /// Waits for the answer. May be dropped and taken up again.
    pub async fn wait(&mut self) -> Result<T, PullError> {
        let span = match self.joined {
            true => trace::start("wait for answer", Kind::Internal),
            false => trace::Span::default(),
        };
        span.link(self.asked_in.as_ref());
        match self.answer.wait_for(Option::is_some).await {
            Ok(value) => (*value).clone().unwrap_or(Err(PullError::Internal("an empty answer"))),
            Err(_) => Err(PullError::Internal("an upstream question was dropped")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
}
