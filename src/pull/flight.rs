//! One transfer per digest, joined by all who may have what it brings (L1, L11): the list of the transfers under way, and
//! who may join which.
//!
//! A transfer is a task of its own (`transfer`), which outlives the client that began it. Everyone follows it through
//! [`Follower`]: a state that is watched, and the staged file, which each reads at its own pace; a reader that stands
//! still holds up nobody (R-W3).

mod follower;
mod front;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
use crate::upstream::queue::QueueWatch;
use crate::upstream::{Client, via};
pub use follower::{Follower, HOLD_BACK_BYTES, Phase, Run, SMALL_BYTES, State};
pub use front::FRONT_BYTES;
use front::Front;

/// A transfer under way.
pub struct Flight {
    pub digest: Digest,
    state: watch::Sender<State>,
    /// Followers; when the last leaves, `left` tells the transfer, and `came` when another one comes.
    followers: AtomicUsize,
    left: Notify,
    came: Notify,
    /// Tells if it waits for one of its upstream's `max_connections`: then nothing has been asked for yet.
    queue: QueueWatch,
    /// Set once a client was told to come back for it.
    is_promised: AtomicBool,
    /// Set once somebody hears its upstream's verdict on behalf of clients that waited in vain.
    is_heard: AtomicBool,
    pub(super) positions: Positions,
    pub(super) front: Front,
    /// The repository that began it, and who asks for it: under another configuration that may be with other credentials.
    began: Arc<str>,
    client: Arc<Client>,
    /// Repositories, beside that one, that have shown that they may follow it, and who asks for them.
    also: Mutex<Vec<(Arc<str>, Arc<Client>)>>,
    /// In the trace of whoever began it; it may outlast that request.
    pub(super) span: Span,
}

/// What somebody finds who wants a digest.
pub enum Place {
    /// A transfer to follow.
    Among(Follower),
    /// It has been admitted to the store.
    Held,
    /// Another repository's transfer, or one by other credentials. Whether it may be followed has not been judged yet.
    Foreign(Arc<Flight>),
}

/// Verdicts that one request has reached about a digest so far.
#[derive(Default)]
pub struct Judged {
    /// Transfers of others, and whether they may be followed.
    flights: Vec<(Arc<Flight>, bool)>,
    /// The held copy is not for this repository before its own upstream has sent it (L11).
    pub apart: bool,
}

impl Judged {
    pub fn note(&mut self, flight: Arc<Flight>, may_follow: bool) {
        self.flights.push((flight, may_follow));
    }

    fn verdict(&self, flight: &Arc<Flight>) -> Option<bool> {
        let known = self.flights.iter().find(|(other, _)| Arc::ptr_eq(other, flight));
        known.map(|(_, may_follow)| *may_follow)
    }
}

impl Flight {
    pub(super) fn tell(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Not to be held across a wait: it keeps the state from changing.
    pub(super) fn state(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    /// The repository that began it.
    pub fn repository(&self) -> &Arc<str> {
        &self.began
    }

    /// Repositories that joined, beside the one that began it.
    pub(super) fn take_also(&self) -> BTreeSet<Arc<str>> {
        self.also().drain(..).map(|(repository, _)| repository).collect()
    }

    /// Returns whether this very repository began it, by this client, or was allowed to follow it.
    fn is_of(&self, order: &Order) -> bool {
        let is_same = |key: &Arc<str>, client: &Arc<Client>| *key == order.key && Arc::ptr_eq(client, &order.client);
        is_same(&self.began, &self.client) || self.also().iter().any(|(key, client)| is_same(key, client))
    }

    /// Returns whether it brings something for this repository.
    fn is_for(&self, repository: &str) -> bool {
        *self.began == *repository || self.also().iter().any(|(key, _)| **key == *repository)
    }

    fn also(&self) -> MutexGuard<'_, Vec<(Arc<str>, Arc<Client>)>> {
        self.also.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `is_owed`: clients were told to come back for it, and none has yet.
    fn worth_finishing(&self, timing: &Timing, is_owed: bool) -> bool {
        let state = self.state.borrow();
        let is_owed = is_owed && state.total.is_some_and(|total| total <= timing.late_finish_bytes);
        // What passes through is for those who read it.
        state.window.is_none() && (is_owed || timing.worth_finishing(state.written, state.total))
    }

    fn is_asking(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Asking)
    }

    /// Returns whether nobody has been asked for it yet.
    fn is_queued(&self) -> bool {
        self.is_asking() && self.queue.is_waiting()
    }

    /// How long one that is queued stays so without anybody waiting for it.
    fn queue_grace(&self, timing: &Timing) -> Duration {
        match self.is_promised.load(Ordering::Acquire) {
            true => timing.late_grace,
            false => timing.grace,
        }
    }

    /// Waits until its upstream has answered.
    async fn answered(&self) {
        let mut state = self.state.subscribe();
        // Never closed: the sender is ours.
        let _ = state.wait_for(|state| !matches!(state.phase, Phase::Asking)).await;
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

    /// Keeps what passes through memory from going by until somebody comes for it, or the time is over.
    async fn held_back(&self, time: Duration) {
        let place = Held(&self.positions, self.positions.enter());
        let _ = tokio::time::timeout(time, async {
            while self.is_alone() {
                self.came.notified().await;
            }
        })
        .await;
        drop(place);
    }

    /// Whether nobody follows it, and policy says that it is not to be finished for its own sake.
    fn is_abandoned(&self, timing: &Timing, is_owed: bool) -> bool {
        self.is_alone() && !self.worth_finishing(timing, is_owed)
    }

    fn is_alone(&self) -> bool {
        self.followers.load(Ordering::Acquire) == 0
    }
}

/// A place among a transfer's readers that nobody has taken yet.
struct Held<'a>(&'a Positions, u64);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
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

/// Transfers by digest: several where one may not be followed by all who want it (L11), or has lost its first bytes.
type Running = HashMap<Digest, Vec<Arc<Flight>>>;

/// The transfers under way.
pub struct Flights {
    running: Arc<Mutex<Running>>,
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
        self.lock().values().map(Vec::len).sum()
    }

    /// Waits until no transfer of this digest is under way for a repository; what it brought is held by then, if it
    /// could be kept.
    pub async fn ended(&self, repository: &str, digest: &Digest) {
        let mut ended = self.ended.subscribe();
        let is_coming = || {
            let running = self.lock();
            let mut flights = running.get(digest).into_iter().flatten();
            // A transfer that passes through memory leaves nothing that is held.
            flights.any(|flight| flight.is_for(repository) && !flight.is_passing())
        };
        while is_coming() {
            // Never closed: the sender is ours.
            let _ = ended.changed().await;
        }
    }

    /// Joins a transfer of this digest, or begins one, unless it is held. A transfer that another repository began, or
    /// that other credentials did, is joined only as far as `judged` says (L8, L11).
    ///
    /// All is decided in one: between a look and a leap a transfer could begin, or end (L1).
    pub fn join_or_begin(&self, order: Order, judged: &Judged) -> Place {
        let mut running = self.lock();
        let mut foreign = None;
        for flight in running.get(&order.digest).into_iter().flatten() {
            let is_of = flight.is_of(&order);
            match (is_of, judged.verdict(flight)) {
                (true, _) | (_, Some(true)) => {}
                (_, Some(false)) => continue,
                // One without its first bytes is of no use to anybody who comes now.
                (_, None) => {
                    foreign = foreign.or_else(|| flight.has_all().then(|| flight.clone()));
                    continue;
                }
            }
            let follower = Follower::of(flight, true);
            if !flight.has_all() {
                continue;
            }
            if !is_of {
                flight.also().push((order.key.clone(), order.client.clone()));
            }
            return Place::Among(follower);
        }
        if let Some(flight) = foreign {
            return Place::Foreign(flight);
        }
        // A transfer leaves the list after it has been admitted.
        let is_held = !order.is_held && self.store.size(&order.digest).is_some();
        if is_held && (!judged.apart || self.store.linked(&order.key, &order.digest)) {
            return Place::Held;
        }
        // Another one of the same repository, by other credentials, has its place in the staging folder, and keeps the blob.
        let mut listed = running.get(&order.digest).into_iter().flatten();
        let is_beside = listed.any(|flight| flight.began == order.key && !flight.is_passing());
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
            came: Notify::new(),
            queue: QueueWatch::default(),
            is_promised: AtomicBool::new(false),
            is_heard: AtomicBool::new(false),
            positions: Positions::default(),
            front: Front::default(),
            began: order.key.clone(),
            client: order.client.clone(),
            also: Mutex::default(),
            span: span_of(&order),
        });
        running.entry(order.digest).or_default().push(flight.clone());
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
            is_beside,
        );
        let stop = self.stop.clone();
        let span = entry.flight.span.clone();
        let queue = entry.flight.queue.clone();
        self.tasks.spawn(via::carry(telemetry::carry(queue.over(async move {
            span.over(Box::pin(transfer.run(&entry, &stop))).await;
        }))));
        Place::Among(follower)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
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
    running: Arc<Mutex<Running>>,
    ended: watch::Sender<()>,
    flight: Arc<Flight>,
}

impl Entry {
    /// Off the list, if it is (still) this flight's and `may_go`. Nobody can join meanwhile.
    pub(super) fn remove_if(&self, may_go: impl FnOnce(&Flight) -> bool) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listed) = running.get_mut(&self.flight.digest) else {
            return false;
        };
        let is_this = |flight: &Arc<Flight>| Arc::ptr_eq(flight, &self.flight);
        let Some(at) = listed.iter().position(is_this).filter(|_| may_go(&self.flight)) else {
            return false;
        };
        listed.remove(at);
        if listed.is_empty() {
            running.remove(&self.flight.digest);
        }
        self.ended.send_replace(());
        true
    }

    /// Resolves when nobody follows and policy says stop; then it is off the list already. Once its upstream is asked,
    /// not before that has answered: that is what those who come back will ask for.
    pub(super) async fn abandoned(&self, timing: &Timing) {
        let flight = &self.flight;
        loop {
            let mut is_owed = false;
            while flight.is_alone() {
                if flight.is_queued() {
                    if self.left_in_queue(timing).await {
                        return;
                    }
                    continue;
                }
                if flight.is_asking() {
                    tokio::select! {
                        () = flight.answered() => is_owed = flight.is_promised.load(Ordering::Acquire),
                        () = flight.queue.queued() => {}
                    }
                    continue;
                }
                if flight.worth_finishing(timing, is_owed) {
                    // That cannot change for the worse: it only gets closer to its end.
                    return std::future::pending().await;
                }
                match (flight.is_passing(), is_owed) {
                    (false, false) => tokio::time::sleep(timing.grace).await,
                    (false, true) => tokio::time::sleep(timing.late_grace).await,
                    (true, false) => {}
                    (true, true) => flight.held_back(timing.grace).await,
                }
                if self.remove_if(|flight| flight.is_abandoned(timing, is_owed)) {
                    return;
                }
            }
            flight.left.notified().await;
        }
    }
}

impl Entry {
    /// Waits while it is queued and nobody follows. Returns whether that took too long; then it is off the list. A
    /// registry that hangs would otherwise gather a transfer, with an open file, for each client that left.
    async fn left_in_queue(&self, timing: &Timing) -> bool {
        let flight = &self.flight;
        tokio::select! {
            () = tokio::time::sleep(flight.queue_grace(timing)) => {
                self.remove_if(|flight| flight.is_alone() && flight.is_queued())
            }
            () = flight.queue.admitted() => false,
            // Whoever comes begins the time anew by leaving.
            () = flight.came.notified() => false,
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
