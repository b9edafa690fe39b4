//! One transfer per digest, joined by all (L1).
//!
//! The transfer is a task of its own: it asks the upstream, stages and hashes what comes, mends cuts (L4),
//! waits for the verdict (L2) and commits. Everyone else follows it through [`Flight`]: a state that is watched, and
//! the staged file, which each reads at its own pace; a reader that stands still holds up nobody (R-W3).

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::PullError;
use super::sink::{Passage, Positions, Sink, Window};
use crate::oci::{Digest, Repository, media_type};
use crate::store::{Store, StoreError, Writer};
use crate::upstream::{BlobStream, Client, ErrorKind, UpstreamError};

/// Bytes at the end of every response that wait for the verdict (L2).
pub const HOLD_BACK_BYTES: u64 = 16 * 1024;
/// Blobs up to this size are verified before their header goes out: a bad one is then a clean error.
const SMALL_BYTES: u64 = 64 * 1024;
/// No file can be larger, and figures below it can be added without care.
const MAX_BLOB_BYTES: u64 = 1 << 62;
/// What may queue up in memory while the disk writes.
const QUEUE_BYTES: usize = 4 << 20;

/// When to give up, wait or go on.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a transfer that nobody waits for goes on if it is not worth finishing.
    pub grace: Duration,
    /// A transfer with at most this left, or half done, is finished without anybody waiting.
    pub finish_bytes: u64,
    /// Attempts without a byte of progress before a transfer fails.
    pub attempts: u32,
    /// First pause between attempts; doubles, with jitter.
    pub backoff: Duration,
    pub longest_backoff: Duration,
    /// How long a client waits for an upstream when something stale could be served instead (R-W9).
    pub patience: Duration,
    /// After a failure, or after that was used up, how long stale is served at once.
    pub trouble_for: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            grace: Duration::from_secs(30),
            finish_bytes: 256 << 20,
            attempts: 6,
            backoff: Duration::from_millis(200),
            longest_backoff: Duration::from_secs(5),
            patience: Duration::from_millis(1500),
            trouble_for: Duration::from_secs(5),
        }
    }
}

impl Timing {
    /// Whether a transfer that nobody waits for is finished all the same.
    fn worth_finishing(&self, written: u64, total: Option<u64>) -> bool {
        total.is_some_and(|total| total.saturating_sub(written) <= self.finish_bytes || written >= total / 2)
    }

    fn pause(&self, failures: u32) -> Duration {
        let full = self
            .backoff
            .saturating_mul(1 << failures.min(10))
            .min(self.longest_backoff);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[derive(Clone, Debug)]
pub enum Phase {
    /// The upstream has not answered yet: nobody gets a status line (R-D3).
    Asking,
    /// Bytes come; what they are is not known yet.
    Streaming,
    /// The digest is right.
    Verified,
    Failed(PullError),
}

/// What followers see.
#[derive(Clone, Debug)]
pub struct State {
    pub phase: Phase,
    /// Bytes staged: readable up to here.
    pub written: u64,
    /// Bytes of the whole blob, once known.
    pub total: Option<u64>,
    pub file: Option<Arc<File>>,
    /// Set when the bytes pass through memory: from its base on they are there, not in the file.
    pub window: Option<Arc<Window>>,
    /// Something about the answer is odd (a web page, an unexpected size): nothing goes out before the verdict.
    pub doubtful: bool,
}

impl State {
    /// Whether a response may begin, or must be an error.
    fn is_decided(&self) -> bool {
        match self.phase {
            Phase::Asking => false,
            Phase::Streaming => !self.doubtful && self.total.is_none_or(|total| total > SMALL_BYTES),
            Phase::Verified | Phase::Failed(_) => true,
        }
    }

    /// Up to where a response that ends at `end` may be sent now.
    fn released(&self, end: Option<u64>) -> u64 {
        match (&self.phase, end.or(self.total)) {
            (Phase::Verified, end) => end.unwrap_or(self.written).min(self.written),
            (_, Some(end)) => self.written.min(end.saturating_sub(HOLD_BACK_BYTES)),
            (_, None) => self.written.saturating_sub(HOLD_BACK_BYTES),
        }
    }
}

/// A transfer under way.
pub struct Flight {
    pub digest: Digest,
    state: watch::Sender<State>,
    /// Followers; when the last leaves, `left` tells the transfer.
    followers: AtomicUsize,
    left: Notify,
    positions: Positions,
    /// The repository that began it.
    began: Arc<str>,
    /// Repositories, beside that one, that have shown that they hold the digest.
    also: Mutex<BTreeSet<Arc<str>>>,
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

/// Where a run of bytes is.
pub enum Run {
    File(Arc<File>),
    Window(Arc<Window>),
    /// Taken out of the window, to wait for the verdict.
    Kept(Bytes),
}

/// A place among a flight's followers.
pub struct Follower {
    flight: Arc<Flight>,
    id: u64,
    state: watch::Receiver<State>,
    /// Whether somebody else began the transfer.
    pub joined: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight.positions.leave(self.id);
        if self.flight.followers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flight.left.notify_one();
        }
    }
}

impl Clone for Follower {
    fn clone(&self) -> Follower {
        self.flight.follow(self.joined)
    }
}

impl Follower {
    /// Whether the transfer asks an upstream on behalf of another repository than `key`.
    pub fn is_foreign_to(&self, key: &str) -> bool {
        *self.flight.began != *key
    }

    /// Says that this follower reads these bytes and no others.
    pub(super) fn begin(&self, from: u64, end: Option<u64>) {
        self.flight.positions.begin(self.id, from, end);
    }

    /// Waits until a response may begin: the upstream has answered and, where that matters, the digest is right.
    pub async fn decided(&mut self) -> Result<State, PullError> {
        self.wait_for(State::is_decided).await
    }

    /// Waits until the whole size is known.
    pub async fn sized(&mut self) -> Result<u64, PullError> {
        let state = self.wait_for(|s| s.total.is_some() && s.is_decided()).await?;
        state.total.ok_or(PullError::Internal("a verified blob without a size"))
    }

    /// Waits until bytes from `at` may be sent in a response that ends at `end`; gives where they are and up to where.
    /// `at` itself means that there are no more.
    pub async fn readable(&mut self, at: u64, end: Option<u64>) -> Result<(Run, u64), PullError> {
        self.flight.positions.advance(self.id, at);
        if let Some(end) = end
            && let Some(kept) = self.keep_end(at, end).await?
        {
            self.wait_for(|s| matches!(s.phase, Phase::Verified)).await?;
            let upto = at + kept.len() as u64;
            return Ok((Run::Kept(kept), upto));
        }
        let state = self
            .wait_for(|s| matches!(s.phase, Phase::Verified) || s.released(end) > at)
            .await?;
        let upto = state.released(end).max(at);
        match (state.window, state.file) {
            (Some(window), _) if window.covers(at) => Ok((Run::Window(window), upto)),
            (Some(window), Some(file)) => Ok((Run::File(file), upto.min(window.base()))),
            (None, Some(file)) => Ok((Run::File(file), upto)),
            (_, None) => Err(PullError::Internal("a transfer without a file")),
        }
    }

    /// What is left of a response that ends at `end` and may not go out before the verdict, if the blob passes through
    /// memory: it is taken along, so that the window moves on without this reader. Else it would wait for a
    /// verdict that itself keeps from coming.
    async fn keep_end(&mut self, at: u64, end: u64) -> Result<Option<Bytes>, PullError> {
        let state = self
            .wait_for(|s| {
                let passes_by = s.window.is_some() && s.written >= end;
                matches!(s.phase, Phase::Verified) || s.released(Some(end)) > at || passes_by
            })
            .await?;
        let (false, Some(window)) = (
            matches!(state.phase, Phase::Verified) || state.released(Some(end)) > at,
            state.window,
        ) else {
            return Ok(None);
        };
        let mut kept = BytesMut::new();
        if let Some(file) = state.file.filter(|_| !window.covers(at)) {
            // At most what is held back, and just written: no disk is waited for.
            kept.resize(usize::try_from(end.min(window.base()) - at).unwrap_or_default(), 0);
            file.read_exact_at(&mut kept, at)
                .map_err(|_| PullError::Internal("a staged blob could not be read"))?;
        }
        while let Some(left) = end.checked_sub(at + kept.len() as u64).filter(|left| *left > 0) {
            let want = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = window.read(at + kept.len() as u64, want);
            kept.extend_from_slice(&piece.ok_or(PullError::LeftBehind)?);
        }
        self.flight.positions.advance(self.id, u64::MAX);
        Ok(Some(kept.freeze()))
    }

    /// Whether the bytes pass through memory, once and in their order.
    pub fn is_passing(&self) -> bool {
        self.flight.is_passing()
    }

    async fn wait_for(&mut self, done: impl Fn(&State) -> bool) -> Result<State, PullError> {
        let settled = |s: &State| matches!(s.phase, Phase::Failed(_)) || done(s);
        let state = self
            .state
            .wait_for(settled)
            .await
            .map_err(|_| PullError::Internal("a transfer was dropped"))?;
        match &state.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(state.clone()),
        }
    }
}

impl Flight {
    fn follow(self: &Arc<Flight>, joined: bool) -> Follower {
        self.followers.fetch_add(1, Ordering::AcqRel);
        Follower {
            id: self.positions.enter(),
            flight: self.clone(),
            state: self.state.subscribe(),
            joined,
        }
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
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
}

/// The transfers under way.
pub struct Flights {
    running: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    /// Told whenever one leaves the list.
    ended: watch::Sender<()>,
    store: Store,
    timing: Arc<Timing>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Flights {
    pub fn new(store: Store, timing: Timing, tasks: TaskTracker, stop: CancellationToken) -> Flights {
        Flights {
            running: Arc::default(),
            ended: watch::Sender::new(()),
            store,
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
            if flight.began != order.key {
                let mut also = flight.also.lock().unwrap_or_else(PoisonError::into_inner);
                if !shown && !also.contains(&order.key) {
                    return Place::Foreign;
                }
                also.insert(order.key.clone());
            }
            let follower = flight.follow(true);
            if flight.has_all() {
                return Place::Among(follower);
            }
            // Its first bytes have passed through and are kept nowhere: another transfer takes its line in the list.
        }
        // A transfer leaves the list after it has been admitted.
        if self.store.size(&order.digest).is_some() {
            return Place::Held;
        }
        let state = State {
            phase: Phase::Asking,
            written: 0,
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
            began: order.key.clone(),
            also: Mutex::default(),
        });
        running.insert(order.digest, flight.clone());
        let follower = flight.follow(false);
        let entry = Entry {
            running: self.running.clone(),
            ended: self.ended.clone(),
            flight: flight.clone(),
        };
        let transfer = Transfer {
            flight,
            order,
            store: self.store.clone(),
            timing: self.timing.clone(),
            streaming: false,
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            transfer.run(&entry, &stop).await;
        });
        Place::Among(follower)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Flight>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight's line in the list. Dropped, also by a panic, it is off the list and nobody is left waiting.
struct Entry {
    running: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    ended: watch::Sender<()>,
    flight: Arc<Flight>,
}

impl Entry {
    /// Off the list, if it is (still) this flight's and `may_go`. Nobody can join meanwhile.
    fn remove_if(&self, may_go: impl FnOnce(&Flight) -> bool) -> bool {
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
    async fn abandoned(&self, timing: &Timing) {
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
    }
}

struct Transfer {
    flight: Arc<Flight>,
    order: Order,
    store: Store,
    timing: Arc<Timing>,
    /// Whether followers may have seen bytes: from then on the staged file cannot be begun anew.
    streaming: bool,
}

/// How one upstream answer ended.
enum Poured {
    /// Everything is staged.
    Complete,
    /// Worth another attempt from where it stopped.
    Broken(PullError),
    /// Not worth it.
    Fatal(PullError),
}

impl Transfer {
    async fn run(mut self, entry: &Entry, stop: &CancellationToken) {
        let flight = self.flight.clone();
        let timing = self.timing.clone();
        let outcome = tokio::select! {
            outcome = self.fetch() => outcome,
            () = entry.abandoned(&timing) => {
                tracing::info!(digest = %flight.digest, "nobody waits for this transfer any more: stopped, what came is kept");
                return;
            }
            () = stop.cancelled() => return,
        };
        let (sink, total) = match outcome {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(digest = %flight.digest, repository = %self.order.key, %error, "transfer failed");
                metrics::counter!("larder_transfers_total", "result" => error.as_str()).increment(1);
                // Off the list before it is told: whoever asks again on hearing it starts clean (L2).
                entry.remove_if(|_| true);
                flight.tell(|state| state.phase = Phase::Failed(error));
                return;
            }
        };
        // Followers get their last bytes now; making it durable is nobody's wait.
        flight.tell(|state| {
            state.phase = Phase::Verified;
            state.written = total;
            state.total = Some(total);
        });
        metrics::counter!("larder_transfers_total", "result" => "ok").increment(1);
        let Sink::Disk(writer) = sink else {
            tracing::debug!(digest = %flight.digest, total, "passed through, not kept");
            return;
        };
        let key = self.order.key.clone();
        match blocking(move || writer.commit(&key)).await {
            Ok(()) => {
                let also = std::mem::take(&mut *flight.also.lock().unwrap_or_else(PoisonError::into_inner));
                for repository in also {
                    self.store.link(&repository, &flight.digest);
                }
            }
            Err(error) => tell_not_kept(&flight.digest, &error),
        }
    }

    /// Gets the whole blob and verifies it. Gives where it is, and the size.
    async fn fetch(&mut self) -> Result<(Sink, u64), PullError> {
        let mut sink = self.stage().await?;
        let mut resumed = sink.len() > 0;
        if !self.is_whole_already(&sink).await? {
            sink = self.gather(sink).await?;
        }
        loop {
            let verdict;
            (sink, verdict) = verify(sink).await?;
            match verdict {
                Ok(()) => break,
                // What an earlier transfer left was spoilt. As long as nobody has seen a byte, nobody need know.
                Err(error) if resumed && !self.streaming => {
                    tracing::warn!(%error, "what was staged earlier is spoilt: fetched anew");
                    resumed = false;
                    sink = self.gather(self.restart(sink).await?).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let total = sink.len();
        Ok((sink, total))
    }

    async fn is_whole_already(&mut self, sink: &Sink) -> Result<bool, PullError> {
        match sink {
            Sink::Disk(writer) if !writer.is_empty() && writer.is_whole() => self.is_upstream(writer).await,
            _ => Ok(false),
        }
    }

    /// Whether the upstream holds for this repository what is staged whole already: then no byte has to cross
    /// again (L1), but it takes more than knowing a digest to get it (L8).
    async fn is_upstream(&mut self, writer: &Writer) -> Result<bool, PullError> {
        let Order {
            client,
            repository,
            digest,
            ..
        } = &self.order;
        match client.head_blob(repository, digest).await {
            Ok(_) => self.note_privacy(),
            // R-U27: HEAD is where upstreams differ. The GET will tell.
            Err(error)
                if matches!(
                    error.kind,
                    ErrorKind::Protocol(_) | ErrorKind::Status { status: ..500, .. }
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        self.flight.tell(|state| {
            state.file = Some(writer.file());
            state.total = Some(writer.len());
            state.written = writer.len();
        });
        Ok(true)
    }

    /// Stages until everything is there, going on where it broke off (L4).
    async fn gather(&mut self, mut sink: Sink) -> Result<Sink, PullError> {
        let digest = self.order.digest;
        let mut failures = 0;
        loop {
            let before = sink.len();
            let poured;
            (sink, poured) = self.attempt(sink).await?;
            let error = match poured {
                Poured::Complete => return Ok(sink),
                Poured::Fatal(error) => return Err(error),
                Poured::Broken(error) => error,
            };
            let progress = sink.len() > before;
            if progress {
                failures = 0;
            }
            failures += 1;
            // Before anybody has seen a byte a quick error serves better than patience: the client has other
            // places to go (R-D3), and the upstream's client has tried more than once.
            if failures >= self.timing.attempts || !(self.streaming || progress) {
                return Err(error);
            }
            let pause = match &error {
                PullError::Upstream(UpstreamError {
                    kind: ErrorKind::RateLimited { retry_after },
                    ..
                }) => *retry_after,
                _ => self.timing.pause(failures),
            };
            tracing::info!(%digest, at = sink.len(), failures, pause_ms = pause.as_millis() as u64, %error, "transfer broke off: going on from there");
            metrics::counter!("larder_transfers_resumed_total", "upstream" => self.order.client.name().to_string())
                .increment(1);
            tokio::time::sleep(pause).await;
        }
    }

    /// A transfer that was stopped a moment ago may still be putting down its last batch.
    async fn stage(&self) -> Result<Sink, PullError> {
        for _ in 0..250 {
            let (store, digest, key) = (self.store.clone(), self.order.digest, self.order.key.clone());
            match blocking(move || store.stage(&key, &digest)).await {
                Ok(writer) => return Ok(Sink::Disk(writer)),
                // Still there after all: an earlier transfer that passes through holds the place.
                Err(PullError::Store(StoreError::Busy(_))) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(PullError::Store(error)) => {
                    self.store.note_trouble(&error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Sink::memory(self.order.digest))
    }

    /// The same blob, from byte 0. Only while nobody has seen a byte.
    async fn restart(&self, sink: Sink) -> Result<Sink, PullError> {
        if let Sink::Disk(mut writer) = sink {
            let again = blocking(move || Ok(writer.restart().map(|()| writer))).await?;
            if let Ok(writer) = again {
                return Ok(Sink::Disk(writer));
            }
        }
        Ok(Sink::memory(self.order.digest))
    }

    fn note_privacy(&self) {
        let Order {
            client,
            repository,
            key,
            ..
        } = &self.order;
        self.store.set_private(key, client.has_credentials(repository));
    }

    /// Asks the upstream once, from where the sink stands.
    async fn attempt(&mut self, mut sink: Sink) -> Result<(Sink, Poured), PullError> {
        let Order {
            client,
            repository,
            digest,
            ..
        } = self.order.clone();
        let offset = sink.len();
        let mut answer = client.get_blob(&repository, &digest, offset).await;
        // What an earlier run staged may be all there is, or not be wanted any more (416): begin anew.
        let spoilt = matches!(&answer, Err(error) if matches!(error.kind, ErrorKind::Protocol(_)));
        if spoilt && offset > 0 && !self.streaming {
            sink = self.restart(sink).await?;
            answer = client.get_blob(&repository, &digest, 0).await;
        }
        match answer {
            Ok(stream) => {
                self.note_privacy();
                self.pour(sink, stream).await
            }
            Err(error) => Ok((sink, judge(error, self.streaming))),
        }
    }

    /// Takes in one answer of the upstream.
    async fn pour(&mut self, mut sink: Sink, stream: BlobStream) -> Result<(Sink, Poured), PullError> {
        let total = stream.total.or(self.flight.state.borrow().total);
        if let Some(absurd) = total.filter(|total| *total > MAX_BLOB_BYTES) {
            return Ok((sink, Poured::Fatal(self.upset(format!("a blob of {absurd} bytes")))));
        }
        if let Some(problem) = self.check_total(sink.len(), total, &stream) {
            if self.streaming {
                return Ok((sink, Poured::Fatal(problem)));
            }
            sink = self.restart(sink).await?;
            if stream.start != 0 {
                return Ok((sink, Poured::Fatal(problem)));
            }
        }
        // R-U25: an upstream that ignored the Range sends what is there already once more.
        let skip = sink.len() - stream.start.min(sink.len());
        sink = match (sink, total.or(self.order.hint)) {
            (Sink::Disk(writer), Some(total)) => self.reserve(writer, total).await?,
            (sink, _) => sink,
        };
        let odd = stream.content_type.as_deref().is_some_and(media_type::is_web_page)
            || self.order.hint.zip(total).is_some_and(|(hint, total)| hint != total);
        self.flight.tell(|state| {
            state.phase = Phase::Streaming;
            state.total = total;
            state.file = sink.file();
            state.window = sink.window();
            state.written = sink.len();
            state.doubtful |= odd;
        });
        self.streaming = self.flight.state.borrow().is_decided();
        let mut intake = Intake {
            stream,
            skip,
            end: None,
        };
        let poured = match sink {
            Sink::Disk(writer) => self.pour_to_disk(writer, &mut intake, total).await?,
            Sink::Memory(passage) => (Sink::Memory(passage), Poured::Complete),
        };
        match poured {
            (Sink::Memory(passage), Poured::Complete) => self.pour_through(passage, &mut intake, total).await,
            other => Ok(other),
        }
    }

    /// Stages what comes. Network and disk work side by side: while one batch is written, the next one gathers. Gives a
    /// passage, with `Complete`, when the disk gives up and the rest has to go through memory.
    async fn pour_to_disk(
        &self,
        writer: Writer,
        intake: &mut Intake,
        total: Option<u64>,
    ) -> Result<(Sink, Poured), PullError> {
        let mut queue = Queue::default();
        let mut writing: Option<Batch> = None;
        let mut idle = Some(writer);
        loop {
            if !queue.pieces.is_empty() {
                if let Some(writer) = idle.take() {
                    writing = Some(append(writer, queue.take()));
                }
            } else if let Some(ended) = intake.end.take_if(|_| idle.is_some())
                && let Some(writer) = idle.take()
            {
                let verdict = self.close(total, ended);
                return Ok((Sink::Disk(writer), verdict));
            }
            tokio::select! {
                () = intake.next_into(&mut queue), if intake.end.is_none() && queue.bytes < QUEUE_BYTES => {}
                done = async {
                    match writing.as_mut() {
                        Some(batch) => batch.await,
                        None => std::future::pending().await,
                    }
                } => {
                    writing = None;
                    let (writer, pieces, appended) = done.map_err(|_| PullError::Internal("a write was dropped"))?;
                    match appended {
                        Ok(written) if total.is_some_and(|total| written > total) => {
                            return Ok((Sink::Disk(writer), Poured::Fatal(self.too_much(total))));
                        }
                        Ok(written) => {
                            self.flight.tell(|state| state.written = written);
                            idle = Some(writer);
                        }
                        Err(error) => {
                            let Sink::Memory(mut passage) = self.give_up_disk(writer, &error) else {
                                return Err(error.into());
                            };
                            self.flight.tell(|state| state.window = Some(passage.window.clone()));
                            for piece in pieces.into_iter().chain(queue.take()) {
                                self.pass(&mut passage, &piece).await;
                            }
                            return Ok((Sink::Memory(passage), Poured::Complete));
                        }
                    }
                }
            }
        }
    }

    /// Passes what comes through memory: at the pace of the slowest follower, up to a point.
    async fn pour_through(
        &self,
        mut passage: Passage,
        intake: &mut Intake,
        total: Option<u64>,
    ) -> Result<(Sink, Poured), PullError> {
        let mut queue = Queue::default();
        loop {
            for piece in queue.take() {
                self.pass(&mut passage, &piece).await;
            }
            if total.is_some_and(|total| passage.hashing.len() > total) {
                return Ok((Sink::Memory(passage), Poured::Fatal(self.too_much(total))));
            }
            if let Some(ended) = intake.end.take() {
                let verdict = self.close(total, ended);
                return Ok((Sink::Memory(passage), verdict));
            }
            intake.next_into(&mut queue).await;
        }
    }

    async fn pass(&self, passage: &mut Passage, piece: &Bytes) {
        passage.pass(piece, &self.flight.positions, self.timing.grace).await;
        self.flight.tell(|state| state.written = passage.hashing.len());
    }

    async fn reserve(&self, mut writer: Writer, total: u64) -> Result<Sink, PullError> {
        let (writer, reserved) = blocking(move || {
            let reserved = writer.reserve(total);
            Ok((writer, reserved))
        })
        .await?;
        Ok(match reserved {
            Ok(()) => Sink::Disk(writer),
            Err(error) => self.give_up_disk(writer, &error),
        })
    }

    fn give_up_disk(&self, writer: Writer, error: &StoreError) -> Sink {
        tracing::debug!(digest = %self.order.digest, at = writer.len(), %error, "passing through memory");
        metrics::counter!("larder_transfers_passed_through_total").increment(1);
        Sink::Memory(Sink::detach(writer))
    }

    fn too_much(&self, total: Option<u64>) -> PullError {
        self.upset(format!("more bytes than the {} announced", total.unwrap_or_default()))
    }

    /// Whether what is staged and what the upstream announces can be the same blob.
    fn check_total(&self, offset: u64, total: Option<u64>, stream: &BlobStream) -> Option<PullError> {
        let known = self.flight.state.borrow().total;
        let what = match (known, stream.total) {
            (Some(known), Some(now)) if known != now => format!("first {known} bytes, then {now}"),
            _ if total.is_some_and(|total| offset > total) => {
                format!("{} bytes, but {offset} are staged already", total.unwrap_or_default())
            }
            _ if stream.start > offset => format!("bytes from {}, not from {offset}", stream.start),
            _ => return None,
        };
        Some(self.upset(what))
    }

    /// The verdict on a body that ended, with everything staged.
    fn close(&self, total: Option<u64>, end: Result<(), UpstreamError>) -> Poured {
        let written = self.flight.state.borrow().written;
        match (end, total) {
            (_, Some(total)) if written == total => Poured::Complete,
            (Ok(()), None) => Poured::Complete,
            (Ok(()), Some(total)) => {
                let cut = ErrorKind::Cut(format!("{written} of {total} bytes came").into());
                Poured::Broken(UpstreamError::new(self.order.client.name(), cut).into())
            }
            (Err(error), _) => judge(error, true),
        }
    }

    fn upset(&self, what: String) -> PullError {
        PullError::Upset {
            upstream: self.order.client.name().to_string(),
            what,
        }
    }
}

/// Whether a transfer goes on after this error.
fn judge(error: UpstreamError, streaming: bool) -> Poured {
    let again = match &error.kind {
        ErrorKind::RateLimited { retry_after } => streaming && *retry_after <= Duration::from_secs(30),
        // A token that ran out of luck, a CDN that hiccups: in mid-transfer another attempt costs little.
        ErrorKind::Denied { .. } | ErrorKind::Auth(_) | ErrorKind::Protocol(_) => streaming,
        _ => error.is_transient(),
    };
    if again {
        Poured::Broken(error.into())
    } else {
        Poured::Fatal(error.into())
    }
}

/// One answer of the upstream, as it comes.
struct Intake {
    stream: BlobStream,
    /// Bytes at its front that are there already.
    skip: u64,
    end: Option<Result<(), UpstreamError>>,
}

impl Intake {
    /// Waits for the next piece or the end. May be dropped and taken up again.
    async fn next_into(&mut self, queue: &mut Queue) {
        match self.stream.next().await {
            Ok(Some(piece)) => queue.push(skip_front(piece, &mut self.skip)),
            Ok(None) => self.end = Some(Ok(())),
            Err(error) => self.end = Some(Err(error)),
        }
    }
}

/// The pieces come back with the writer: what the disk does not take goes elsewhere.
type Batch = JoinHandle<(Writer, Vec<Bytes>, Result<u64, StoreError>)>;

fn append(mut writer: Writer, pieces: Vec<Bytes>) -> Batch {
    tokio::task::spawn_blocking(move || {
        let appended = writer.append(&pieces);
        (writer, pieces, appended)
    })
}

async fn verify(sink: Sink) -> Result<(Sink, Result<(), StoreError>), PullError> {
    match sink {
        Sink::Disk(mut writer) => {
            blocking(move || {
                let verdict = writer.verify();
                Ok((Sink::Disk(writer), verdict))
            })
            .await
        }
        Sink::Memory(passage) => {
            let verdict = passage.hashing.verify();
            Ok((Sink::Memory(passage), verdict))
        }
    }
}

#[derive(Default)]
struct Queue {
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push(piece);
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.pieces)
    }
}

fn skip_front(mut piece: Bytes, skip: &mut u64) -> Bytes {
    let cut = usize::try_from(*skip).unwrap_or(usize::MAX).min(piece.len());
    *skip -= cut as u64;
    piece.split_off(cut)
}

/// What has been served could not be kept. A disk that fails, or is full, is told of by the store, and not each time.
pub(super) fn tell_not_kept(digest: &Digest, error: &PullError) {
    match error {
        PullError::Store(StoreError::Io { .. } | StoreError::NoRoom(_)) => {
            tracing::debug!(%digest, %error, "served but not kept");
        }
        _ => tracing::error!(%digest, %error, "served but not kept"),
    }
}

/// Runs disk work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(PullError::Internal("disk work was dropped")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: Phase, written: u64, total: Option<u64>) -> State {
        State {
            phase,
            written,
            total,
            file: None,
            window: None,
            doubtful: false,
        }
    }

    /// L2: whatever a response asks for, its last bytes wait.
    #[test]
    fn the_tail_is_held_back() {
        let mib = 1 << 20;
        let streaming = |written| state(Phase::Streaming, written, Some(mib));
        assert_eq!(streaming(1000).released(None), 1000);
        assert_eq!(streaming(mib).released(None), mib - HOLD_BACK_BYTES);
        assert_eq!(streaming(mib).released(Some(500_000)), 500_000 - HOLD_BACK_BYTES);
        assert_eq!(streaming(mib).released(Some(10)), 0);
        assert_eq!(state(Phase::Streaming, mib, None).released(None), mib - HOLD_BACK_BYTES);
        assert_eq!(state(Phase::Verified, mib, Some(mib)).released(None), mib);
        assert_eq!(state(Phase::Verified, mib, Some(mib)).released(Some(10)), 10);
    }

    #[test]
    fn small_and_doubtful_blobs_wait_for_the_verdict() {
        assert!(!state(Phase::Asking, 0, None).is_decided());
        assert!(!state(Phase::Streaming, 10, Some(SMALL_BYTES)).is_decided());
        assert!(state(Phase::Streaming, 10, Some(SMALL_BYTES + 1)).is_decided());
        assert!(state(Phase::Streaming, 10, None).is_decided());
        let odd = State {
            doubtful: true,
            ..state(Phase::Streaming, 10, Some(1 << 30))
        };
        assert!(!odd.is_decided());
        assert!(state(Phase::Verified, 10, Some(10)).is_decided());
    }

    #[test]
    fn what_is_nearly_done_is_finished() {
        let timing = Timing::default();
        let gib = 1 << 30;
        assert!(timing.worth_finishing(0, Some(256 << 20)));
        assert!(!timing.worth_finishing(0, Some(gib)));
        assert!(timing.worth_finishing(gib / 2, Some(gib)));
        assert!(!timing.worth_finishing(5, None));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let timing = Timing::default();
        for failures in 0..40 {
            let pause = timing.pause(failures);
            assert!(
                pause >= timing.backoff / 2 && pause <= timing.longest_backoff,
                "{pause:?}"
            );
        }
    }

    struct Field {
        flights: Flights,
        client: Arc<Client>,
        store: Store,
        _folder: tempfile::TempDir,
    }

    impl Field {
        /// Its upstream is nowhere: a port that nobody listens on any more.
        fn new() -> Field {
            let folder = tempfile::tempdir().unwrap();
            let free = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let config = crate::config::Config::from_toml(&format!(
                "[cache]\npath = {:?}\nmin_free = \"0B\"\n[upstream.\"docker.io\"]\nurl = \"http://{free}\"\n",
                folder.path()
            ))
            .unwrap();
            let store = Store::open(&config).unwrap();
            let clients = crate::upstream::Clients::new(&config).unwrap();
            let timing = Timing {
                grace: Duration::from_millis(1),
                ..Timing::default()
            };
            Field {
                flights: Flights::new(store.clone(), timing, TaskTracker::new(), CancellationToken::new()),
                client: clients.get(&config.cache.default_upstream).unwrap().clone(),
                store,
                _folder: folder,
            }
        }

        fn join(&self, key: &str, digest: Digest, shown: bool) -> Place {
            let order = Order {
                client: self.client.clone(),
                repository: "library/alpine".parse().unwrap(),
                key: key.into(),
                digest,
                hint: None,
            };
            self.flights.join_or_begin(order, shown)
        }

        fn follow(&self, key: &str, digest: Digest, shown: bool) -> Follower {
            match self.join(key, digest, shown) {
                Place::Among(follower) => follower,
                Place::Held => panic!("held"),
                Place::Foreign => panic!("foreign"),
            }
        }
    }

    /// L1: whoever looked before the transfer was admitted, and leaps after it, does not begin another.
    #[tokio::test]
    async fn what_is_held_is_not_fetched() {
        let field = Field::new();
        let bytes = Bytes::from_static(b"held");
        let digest = Digest::sha256(&bytes);
        field.store.put_manifest("a", &digest, "x/y", &[], &bytes).unwrap();
        assert!(matches!(field.join("a", digest, false), Place::Held));
        assert_eq!(field.flights.count(), 0);
    }

    /// L8: also if it began while nobody looked.
    #[tokio::test]
    async fn a_foreign_transfer_is_joined_only_by_who_may() {
        let field = Field::new();
        let digest = Digest::sha256(b"x");
        let first = field.follow("a", digest, false);
        assert!(!first.joined && !first.is_foreign_to("a"));
        assert!(field.follow("a", digest, false).joined);
        assert!(matches!(field.join("b", digest, false), Place::Foreign));
        let second = field.follow("b", digest, true);
        assert!(second.joined && second.is_foreign_to("b"));
        assert!(field.follow("b", digest, false).joined);
        assert!(matches!(field.join("c", digest, false), Place::Foreign));
    }

    /// L2: who asks again on hearing of a failure does not get the same failure again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_transfer_is_not_joined() {
        let field = Arc::new(Field::new());
        let digests: Vec<Digest> = (0..40u8).map(|n| Digest::sha256(&[n])).collect();
        let asking = digests.into_iter().map(|digest| {
            let field = field.clone();
            tokio::spawn(async move {
                assert!(field.follow("a", digest, false).decided().await.is_err());
                assert!(!field.follow("a", digest, false).joined);
            })
        });
        for asked in asking.collect::<Vec<_>>() {
            asked.await.unwrap();
        }
    }

    #[test]
    fn an_ignored_range_is_skipped() {
        let mut skip = 5;
        assert_eq!(skip_front(Bytes::from_static(b"abc"), &mut skip), "");
        assert_eq!(skip_front(Bytes::from_static(b"defg"), &mut skip), "fg");
        assert_eq!(skip_front(Bytes::from_static(b"hi"), &mut skip), "hi");
    }
}
