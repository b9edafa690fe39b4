//! One transfer per digest, joined by all (L1): the list of the transfers under way, and who may join which.
//!
//! A transfer is a task of its own (`transfer`), which outlives the client that began it. Everyone follows it through
//! [`Follower`]: a state that is watched, and the staged file, which each reads at its own pace; a reader that stands
//! still holds up nobody (R-W3).

mod follower;
mod front;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::PullError;
use super::sink::Positions;
use super::timing::Timing;
use super::transfer::{Lines, Transfer};
use crate::oci::{Digest, Repository};
use crate::store::Store;
use crate::telemetry;
use crate::telemetry::trace::{self, Kind, Span};
use crate::upstream::Client;
pub use follower::{Follower, HOLD_BACK_BYTES, Phase, Run, SMALL_BYTES, State};
pub use front::FRONT_BYTES;
use front::Front;

/// A transfer under way.
pub struct Flight {
    pub digest: Digest,
    state: watch::Sender<State>,
    /// Followers; when the last leaves, `left` tells the transfer.
    followers: AtomicUsize,
    left: Notify,
    pub(super) positions: Positions,
    pub(super) front: Front,
    /// The repository that began it, and who asks for it: under another configuration that may be with other credentials.
    began: Arc<str>,
    client: Arc<Client>,
    /// Repositories, beside that one, that have shown that they hold the digest.
    also: Mutex<BTreeSet<Arc<str>>>,
    /// In the trace of whoever began it; it may outlast that request.
    pub(super) span: Span,
}

/// What somebody finds who wants a digest.
pub enum Place {
    /// A transfer to follow.
    Among(Follower),
    /// None is needed: it has been admitted to the store.
    Held,
    /// Another repository's transfer, of which this one has not shown yet that it may follow it (L8).
    Foreign,
}

impl Flight {
    pub(super) fn tell(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Not to be held across a wait: it keeps the state from changing.
    pub(super) fn state(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    /// Repositories that joined, beside the one that began it.
    pub(super) fn take_also(&self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut *self.also.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn worth_finishing(&self, timing: &Timing) -> bool {
        let state = self.state.borrow();
        // What passes through is for those who read it.
        state.window.is_none() && timing.worth_finishing(state.written, state.total)
    }

    fn is_passing(&self) -> bool {
        self.state.borrow().window.is_some()
    }

    /// Whether a follower that comes now can still get everything.
    fn has_all(&self) -> bool {
        self.state
            .borrow()
            .window
            .as_ref()
            .is_none_or(|window| window.is_whole())
    }

    /// Whether nobody follows it, and policy says that it is not to be finished for its own sake.
    fn is_abandoned(&self, timing: &Timing) -> bool {
        self.followers.load(Ordering::Acquire) == 0 && !self.worth_finishing(timing)
    }
}

/// What a transfer is to fetch, and from whom.
#[derive(Clone)]
pub struct Order {
    pub client: Arc<Client>,
    pub repository: Repository,
    /// The repository's key in the store.
    pub key: Arc<str>,
    pub digest: Digest,
    /// Size that a manifest claims.
    pub hint: Option<u64>,
    /// It is held, and cannot be read at this moment: the bytes pass through and touch nothing on the disk.
    pub is_held: bool,
}

/// The transfers under way.
pub struct Flights {
    running: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    /// Told whenever one leaves the list.
    ended: watch::Sender<()>,
    store: Store,
    timing: Arc<Timing>,
    lines: Arc<Lines>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Flights {
    pub fn new(store: Store, timing: Timing, tasks: TaskTracker, stop: CancellationToken) -> Flights {
        Flights {
            running: Arc::default(),
            ended: watch::Sender::new(()),
            store,
            lines: Arc::new(Lines::new(&timing.parallel)),
            timing: Arc::new(timing),
            tasks,
            stop,
        }
    }

    /// Transfers under way.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Waits until no transfer of this digest is under way; what it brought is held by then, if it could be kept.
    pub async fn ended(&self, digest: &Digest) {
        let mut ended = self.ended.subscribe();
        while self.lock().contains_key(digest) {
            // Never closed: the sender is ours.
            let _ = ended.changed().await;
        }
    }

    /// Joins the transfer of this digest, or begins it, unless it is held. `shown`: the order's repository has made
    /// sure that its upstream holds the digest, so that another repository's transfer may be followed (L8).
    ///
    /// All is decided in one: between a look and a leap a transfer could begin, or end (L1).
    pub fn join_or_begin(&self, order: Order, shown: bool) -> Place {
        let mut running = self.lock();
        if let Some(flight) = running.get(&order.digest) {
            if flight.began != order.key || !Arc::ptr_eq(&flight.client, &order.client) {
                let mut also = flight.also.lock().unwrap_or_else(PoisonError::into_inner);
                if !shown && !also.contains(&order.key) {
                    return Place::Foreign;
                }
                also.insert(order.key.clone());
            }
            let follower = Follower::of(flight, true);
            if flight.has_all() {
                return Place::Among(follower);
            }
            // Its first bytes have passed through and are kept nowhere: another transfer takes its line in the list.
        }
        // A transfer leaves the list after it has been admitted.
        if !order.is_held && self.store.size(&order.digest).is_some() {
            return Place::Held;
        }
        let state = State {
            phase: Phase::Asking,
            written: 0,
            came: 0,
            total: None,
            file: None,
            window: None,
            doubtful: false,
        };
        let flight = Arc::new(Flight {
            digest: order.digest,
            state: watch::Sender::new(state),
            followers: AtomicUsize::new(0),
            left: Notify::new(),
            positions: Positions::default(),
            front: Front::default(),
            began: order.key.clone(),
            client: order.client.clone(),
            also: Mutex::default(),
            span: span_of(&order),
        });
        running.insert(order.digest, flight.clone());
        let follower = Follower::of(&flight, false);
        let entry = Entry {
            running: self.running.clone(),
            ended: self.ended.clone(),
            flight: flight.clone(),
        };
        let transfer = Transfer::new(
            flight,
            order,
            self.store.clone(),
            self.timing.clone(),
            self.lines.clone(),
        );
        let stop = self.stop.clone();
        let span = entry.flight.span.clone();
        self.tasks.spawn(telemetry::carry(async move {
            span.over(Box::pin(transfer.run(&entry, &stop))).await;
        }));
        Place::Among(follower)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Flight>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn span_of(order: &Order) -> Span {
    let span = trace::start("transfer", Kind::Internal);
    if span.is_recorded() {
        span.set("larder.upstream", order.client.name());
        span.set("larder.repository", &order.key);
        span.set("larder.digest", order.digest.to_string());
    }
    span
}

/// A flight's line in the list. Dropped, also by a panic, it is off the list and nobody is left waiting.
pub struct Entry {
    running: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    ended: watch::Sender<()>,
    flight: Arc<Flight>,
}

impl Entry {
    /// Off the list, if it is (still) this flight's and `may_go`. Nobody can join meanwhile.
    pub(super) fn remove_if(&self, may_go: impl FnOnce(&Flight) -> bool) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Another transfer of the same digest may have begun since this one left.
        let listed = running
            .get(&self.flight.digest)
            .is_some_and(|f| Arc::ptr_eq(f, &self.flight));
        let goes = listed && may_go(&self.flight);
        if goes {
            running.remove(&self.flight.digest);
            self.ended.send_replace(());
        }
        goes
    }

    /// Resolves when nobody follows and policy says stop; then it is off the list already.
    pub(super) async fn abandoned(&self, timing: &Timing) {
        let flight = &self.flight;
        loop {
            while flight.followers.load(Ordering::Acquire) == 0 {
                if flight.worth_finishing(timing) {
                    // That cannot change for the worse: it only gets closer to its end.
                    return std::future::pending().await;
                }
                if !flight.is_passing() {
                    tokio::time::sleep(timing.grace).await;
                }
                if self.remove_if(|flight| flight.is_abandoned(timing)) {
                    return;
                }
            }
            flight.left.notified().await;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.remove_if(|_| true);
        self.flight.tell(|state| {
            if matches!(state.phase, Phase::Asking | Phase::Streaming) {
                state.phase = Phase::Failed(PullError::Internal("the transfer was stopped"));
            }
        });
        self.flight.span.end();
    }
}

#[cfg(test)]
mod tests;
