//! One question at a time: whoever asks the same while it is asked shares the answer.
//!
//! A client waits for an answer no longer than `client_wait` says. Where one was told to come back, the answer is kept for a
//! moment, so that it is found also where nobody else keeps it: a HEAD's, or that there is nothing.
//!
//! A question that its upstream has been asked goes on without anybody waiting for it. One that still waits for a
//! connection (`max_connections`) is dropped after a while: a registry that hangs would otherwise gather one for each
//! client that left.

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
use crate::upstream::queue::QueueWatch;
use crate::upstream::via;

/// How long an answer is kept that a client was told to come back for, which it is to do after 5 s.
const LATE_KEPT_FOR: Duration = Duration::from_secs(10);
/// How long a question stays in its upstream's queue while nobody waits for it.
const QUEUED_FOR: Duration = Duration::from_secs(30);
/// As [`QUEUED_FOR`], if somebody was told to come back, or has been given something stale meanwhile.
const AWAITED_FOR: Duration = Duration::from_secs(300);

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
    /// Set once somebody left it whose next request is to find the answer.
    is_awaited: Arc<AtomicBool>,
    /// How many wait for it.
    waiters: Arc<watch::Sender<usize>>,
    /// Tells if it waits for one of its upstream's `max_connections`.
    queue: QueueWatch,
}

impl<V> Asking<V> {
    /// Returns whether nobody waits for it, and nobody has been asked yet.
    fn is_idle(&self) -> bool {
        *self.waiters.borrow() == 0 && self.queue.is_waiting()
    }

    /// Returns once it has been idle for too long.
    async fn idle_for_long(&self) {
        let mut waiters = self.waiters.subscribe();
        loop {
            // Never closed: the sender is ours.
            let _ = waiters.wait_for(|waiters| *waiters == 0).await;
            self.queue.queued().await;
            let most = match self.is_awaited.load(Ordering::Acquire) {
                true => AWAITED_FOR,
                false => QUEUED_FOR,
            };
            tokio::select! {
                () = tokio::time::sleep(most) => return,
                _ = waiters.wait_for(|waiters| *waiters > 0) => {}
                () = self.queue.admitted() => {}
            }
        }
    }
}

/// One who waits.
struct Waiter(Arc<watch::Sender<usize>>);

impl Waiter {
    fn of<V>(asking: &Asking<V>) -> Waiter {
        asking.waiters.send_modify(|waiters| *waiters += 1);
        Waiter(asking.waiters.clone())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.send_modify(|waiters| *waiters -= 1);
    }
}

/// An answer to come.
pub struct Pending<V> {
    asking: Asking<V>,
    _waiter: Waiter,
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
                _waiter: Waiter::of(asking),
                asking: asking.clone(),
                joined: true,
            };
        }
        let (sender, answer) = watch::channel(None);
        let begun = Asking {
            answer,
            asked_in: trace::here(),
            is_promised: Arc::default(),
            is_awaited: Arc::default(),
            waiters: Arc::new(watch::Sender::new(0)),
            queue: QueueWatch::default(),
        };
        let pending = Pending {
            _waiter: Waiter::of(&begun),
            asking: begun.clone(),
            joined: false,
        };
        let is_promised = begun.is_promised.clone();
        running.insert(key.clone(), begun.clone());
        let guard = Leave {
            running: self.running.clone(),
            key,
            asking: begun.clone(),
        };
        let asking = begun.queue.over(ask());
        tokio::spawn(via::carry(telemetry::carry(async move {
            let mut asking = Box::pin(asking);
            let value = loop {
                tokio::select! {
                    biased;
                    value = &mut asking => break value,
                    () = begun.idle_for_long() => {
                        if guard.leave_if(Asking::is_idle) {
                            return;
                        }
                    }
                }
            };
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
        pending
    }

    /// Has whoever comes from now on ask anew. Those who wait get the answer that they wait for.
    pub fn forget(&self, key: &K) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Takes the question off the list, also when its task panics.
struct Leave<K: Eq + Hash, V> {
    running: Running<K, V>,
    key: K,
    /// The question itself: another one may be under the same key.
    asking: Asking<V>,
}

impl<K: Eq + Hash, V> Leave<K, V> {
    /// Takes it off the list, if it may go: nobody can join meanwhile. Returns whether it may.
    fn leave_if(&self, may_go: impl Fn(&Asking<V>) -> bool) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let asking = running.get(&self.key);
        match asking.filter(|asking| Arc::ptr_eq(&asking.waiters, &self.asking.waiters)) {
            Some(asking) if !may_go(asking) => false,
            Some(_) => running.remove(&self.key).is_some(),
            // It was forgotten, and another one may be in its place. It may have been asked since it was found idle.
            None => may_go(&self.asking),
        }
    }
}

impl<K: Eq + Hash, V> Drop for Leave<K, V> {
    fn drop(&mut self) {
        self.leave_if(|_| true);
    }
}

impl<T: Clone> Pending<Result<T, PullError>> {
    /// Says that the next request of whoever leaves now is to find the answer.
    pub fn will_come_back(&self) {
        self.asking.is_awaited.store(true, Ordering::Release);
    }

    /// Waits for the answer, for a client no longer than it may. May be dropped and taken up again.
    pub async fn wait(&mut self) -> Result<T, PullError> {
        let span = match self.joined {
            true => trace::start("wait for answer", Kind::Internal),
            false => trace::Span::default(),
        };
        span.link(self.asking.asked_in.as_ref().filter(|_| self.joined));
        let queue = self.asking.queue.clone();
        let waiting = client_wait::bounded(self.asking.answer.wait_for(Option::is_some));
        let answer = tokio::select! {
            biased;
            answer = waiting => answer,
            // A question that asks another one waits in the queue as long as that does.
            never = queue.follow() => match never {},
        };
        let answer = answer.inspect_err(|late| {
            self.asking.is_promised.store(true, Ordering::Release);
            self.asking.is_awaited.store(true, Ordering::Release);
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

    /// A question that waits for a connection is dropped when nobody has waited for it for a while; one that is asked
    /// is not.
    #[tokio::test(start_paused = true)]
    async fn nobody_s_question_leaves_the_queue() {
        let second = Duration::from_secs(1);
        let slots = Arc::new(tokio::sync::Semaphore::new(0));
        let single: Single<u8, Result<u8, PullError>> = Single::default();
        let queued = |key: u8| {
            let slots = slots.clone();
            single.join(key, || async move {
                let _slot = crate::upstream::queue::waited(slots.acquire()).await;
                tokio::time::sleep(second).await;
                Ok(key)
            })
        };
        let is_there = |key: u8| single.running.lock().unwrap().contains_key(&key);
        let almost = QUEUED_FOR - second;
        let (mut waits, left, awaited) = (queued(1), queued(2), queued(3));
        tokio::time::sleep(QUEUED_FOR * 2).await;
        assert!(is_there(2), "as long as somebody waits");
        awaited.will_come_back();
        drop((left, awaited));
        tokio::time::sleep(almost).await;
        // Whoever comes begins its time anew.
        let comes = queued(2);
        tokio::time::sleep(second / 2).await;
        drop(comes);
        tokio::time::sleep(almost).await;
        assert!(is_there(2));
        tokio::time::sleep(second * 2).await;
        assert!(!is_there(2) && is_there(3));
        tokio::time::sleep(AWAITED_FOR).await;
        assert!(!is_there(3) && is_there(1));
        // Asked, it goes on, whoever leaves.
        let asked = queued(4);
        drop(asked);
        slots.add_permits(2);
        assert_eq!(waits.wait().await.unwrap(), 1);
        assert_eq!(queued(4).wait().await.unwrap(), 4);
    }

    /// So does the question that waits for it, and no sooner.
    #[tokio::test(start_paused = true)]
    async fn who_asks_a_question_in_the_queue_waits_in_it() {
        let slots = Arc::new(tokio::sync::Semaphore::new(0));
        let outer: Single<u8, Result<u8, PullError>> = Single::default();
        let inner: Arc<Single<u8, Result<u8, PullError>>> = Arc::default();
        let asks = || {
            let (inner, slots) = (inner.clone(), slots.clone());
            outer.join(1, || async move {
                let mut pending = inner.join(1, || async move {
                    let _slot = crate::upstream::queue::waited(slots.acquire()).await;
                    Ok(7)
                });
                pending.wait().await
            })
        };
        drop(asks());
        tokio::time::sleep(QUEUED_FOR * 3).await;
        assert!(outer.running.lock().unwrap().is_empty() && inner.running.lock().unwrap().is_empty());
        let mut again = asks();
        tokio::time::sleep(QUEUED_FOR * 3).await;
        slots.add_permits(1);
        assert_eq!(again.wait().await.unwrap(), 7);
    }

    /// A forgotten question that has left the queue meanwhile goes on: its upstream has been asked.
    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_and_asked_goes_on() {
        let slots = Arc::new(tokio::sync::Semaphore::new(0));
        let single: Single<u8, Result<u8, PullError>> = Single::default();
        let waits = slots.clone();
        let pending = single.join(1, || async move {
            let _slot = crate::upstream::queue::waited(waits.acquire()).await;
            std::future::pending().await
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let leave = Leave {
            running: single.running.clone(),
            key: 1,
            asking: pending.asking.clone(),
        };
        single.forget(&1);
        drop(pending);
        assert!(
            leave.leave_if(Asking::is_idle),
            "it waits for a connection, and nobody waits for it"
        );
        slots.add_permits(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!leave.leave_if(Asking::is_idle));
    }

    /// A question that was forgotten is asked anew, also while a late answer is kept. Those who wait get that answer.
    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_asked_anew() {
        let single: Single<u8, Result<u8, PullError>> = Single::default();
        let after = |seconds, value| {
            move || async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(value)
            }
        };
        let mut first = single.join(1, after(25, 7));
        assert!(
            ClientWait::lasting(Duration::from_secs(20))
                .over(first.wait())
                .await
                .is_err()
        );
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(single.join(1, after(0, 9)).wait().await.unwrap(), 7, "it is kept");
        single.forget(&1);
        let mut second = single.join(1, after(60, 9));
        assert!(!second.joined);
        // The end of the first one leaves the second where it is.
        tokio::time::sleep(LATE_KEPT_FOR).await;
        assert!(single.join(1, after(0, 3)).joined);
        single.forget(&1);
        assert_eq!(single.join(1, after(0, 5)).wait().await.unwrap(), 5);
        assert_eq!((first.wait().await.unwrap(), second.wait().await.unwrap()), (7, 9));
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
