//! Parts of a blob that come beside the answer that is poured, each over a connection of its own.
//!
//! The pour stays one line: bytes are hashed and written in their order, and followers see nothing of this. A part is
//! copied into memory of its own size until it is its turn; how many there may be is bounded for a blob and for all of
//! them. The first connection goes on until it reaches a part that is coming, and ends there: what was on its way by
//! then is all that crosses twice. A part that fails costs nothing but its own rest, which the transfer then asks for
//! as it does after any cut; the first connection does not end for a part that has not been answered.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::plan::{Plan, Step};
use super::sources::Sources;
use crate::pull::flight::Order;
use crate::pull::timing::Parallel;
use crate::telemetry::trace;
use crate::upstream::{ErrorKind, UpstreamError};

/// What is given to the pour at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What all transfers share: memory for parts, and the upstreams that are left alone.
pub(in crate::pull) struct Lines {
    memory: Arc<Semaphore>,
    refrained: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Lines {
    pub(in crate::pull) fn new(policy: &Parallel) -> Lines {
        Lines {
            memory: Arc::new(Semaphore::new(policy.parts_in_all.min(Semaphore::MAX_PERMITS))),
            refrained: Mutex::default(),
        }
    }

    /// Whether this upstream may be asked over several connections.
    pub(super) fn may(&self, upstream: &str) -> bool {
        let refrained = self.refrained.lock().unwrap_or_else(PoisonError::into_inner);
        refrained.get(upstream).is_none_or(|until| *until <= Instant::now())
    }

    fn refrain(&self, upstream: &Arc<str>, pause: Duration) {
        let until = Instant::now() + pause;
        // As many as there are upstreams in the configuration.
        let mut refrained = self.refrained.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = refrained.entry(upstream.clone()).or_insert(until);
        *entry = (*entry).max(until);
    }
}

/// What the first connection does where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    GoesOn,
    /// From here the parts have it.
    Takes,
}

/// What the parts have next.
pub(super) enum Next {
    Piece(Bytes),
    /// Something changed: look again.
    Look,
    /// Nothing is coming for this place.
    Gap,
}

/// The parts of one transfer.
pub(super) struct Ahead {
    order: Order,
    policy: Parallel,
    lines: Arc<Lines>,
    sources: Arc<Sources>,
    total: u64,
    plan: Plan,
    /// In their order, without overlap. Those that failed leave gaps.
    parts: VecDeque<Part>,
    signals: Arc<Signals>,
    /// Of the first connection.
    came: u64,
    held_up: Duration,
    /// Connections are to be added.
    wants_more: bool,
    /// The last part for which one was added, until it is answered.
    fresh: Option<Arc<Held>>,
    was_used: bool,
}

#[derive(Default)]
struct Signals {
    /// A part was answered, is all there, or failed.
    changed: Notify,
    /// The same, or bytes came.
    came: Notify,
    /// Bytes over all parts.
    bytes: AtomicU64,
}

/// Dropped, its connection is closed.
struct Part {
    span: Range<u64>,
    held: Arc<Held>,
    task: AbortHandle,
    _memory: OwnedSemaphorePermit,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Held(Mutex<Bytewise>);

/// A part's bytes that have not been poured.
struct Bytewise {
    bytes: BytesMut,
    /// Where they begin.
    at: u64,
    state: State,
}

enum State {
    Asked,
    Answered,
    /// All of it came.
    Whole,
    /// No more will come. The reason, until it has been drawn a conclusion from.
    Failed(Option<Trouble>),
}

/// What a failed part says about others.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// `max_connections` is reached.
    NoSlot,
    /// It may pass.
    Passing,
    /// This blob, over this upstream: better alone.
    Blob,
    /// The upstream does not do it, or asks to be spared, at least for so long.
    Upstream(Duration),
}

impl Trouble {
    fn of(error: &UpstreamError) -> Trouble {
        match &error.kind {
            ErrorKind::RateLimited { retry_after } => Trouble::Upstream(*retry_after),
            ErrorKind::Status { status: 429 | 503, .. } | ErrorKind::Protocol(_) => Trouble::Upstream(Duration::ZERO),
            // It takes no second connection.
            ErrorKind::Connect(_) => Trouble::Upstream(Duration::ZERO),
            _ if error.is_transient() => Trouble::Passing,
            _ => Trouble::Blob,
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Bytewise> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ahead {
    pub(super) fn new(order: &Order, policy: &Parallel, lines: Arc<Lines>, sources: Arc<Sources>, total: u64) -> Ahead {
        Ahead {
            order: order.clone(),
            policy: policy.clone(),
            lines,
            sources,
            total,
            plan: Plan::new(policy.clone()),
            parts: VecDeque::new(),
            signals: Arc::default(),
            came: 0,
            held_up: Duration::ZERO,
            wants_more: false,
            fresh: None,
            was_used: false,
        }
    }

    /// Whether a part was ever asked for.
    pub(super) fn was_used(&self) -> bool {
        self.was_used
    }

    /// No more parts are asked for; those that are coming are poured.
    pub(super) fn stop(&mut self) {
        self.plan.stop();
    }

    /// The network had to wait for the sink.
    pub(super) fn was_held_up(&mut self, time: Duration) {
        self.held_up += time;
    }

    /// Draws conclusions and asks for the parts that are due. `at`: where the transfer stands.
    pub(super) fn look(&mut self, at: u64, with_first: bool) {
        self.mind_failures();
        if self.plan.is_off() {
            return;
        }
        self.mind_rate(at, with_first);
        let more = std::mem::take(&mut self.wants_more);
        let mut coming = self.parts.iter().filter(|part| part.is_coming()).count();
        while coming < self.plan.abreast(with_first)
            && self.parts.len() < self.policy.parts
            && let Some(span) = self.next_span(at, with_first)
            && let Ok(memory) = self.lines.memory.clone().try_acquire_owned()
        {
            let held = self.ask(span, memory);
            if more {
                self.fresh = Some(held);
            }
            coming += 1;
        }
        if more && coming < self.plan.abreast(with_first) {
            // Others have the memory now. It is tried again, when a window has passed.
            self.plan.fewer(coming + usize::from(with_first));
        }
    }

    fn next_span(&self, at: u64, with_first: bool) -> Option<Range<u64>> {
        // After a failure the first connection may have gone beyond what was the last part.
        let last = self.parts.back().map(|part| part.span.end).filter(|last| *last > at);
        self.plan.part(at, with_first, last, self.total)
    }

    fn mind_rate(&mut self, at: u64, with_first: bool) {
        let came = self.came + self.signals.bytes.load(Ordering::Relaxed);
        if let Some(fresh) = &self.fresh {
            if matches!(fresh.lock().state, State::Asked) {
                return;
            }
            self.fresh = None;
            self.plan.begin(Instant::now(), came, self.held_up);
        }
        // Near the end connections run out of work, and at the bound of memory they wait: neither says that they
        // are too many.
        if self.parts.len() >= self.policy.parts || self.next_span(at, with_first).is_none() {
            return;
        }
        let name = self.order.client.name();
        match self
            .plan
            .measure(Instant::now(), came, self.held_up, self.total - at.min(self.total))
        {
            Step::GoOn => {}
            Step::More if !self.lines.may(name) => self.plan.stop(),
            Step::More => {
                self.wants_more = true;
                let connections = self.plan.abreast(true) + 1;
                tracing::debug!(digest = %self.order.digest, at, connections, "this upstream is slow: more connections");
            }
            Step::Useless => {
                tracing::debug!(upstream = %name, "no faster over two connections than over one");
                self.lines.refrain(name, self.policy.refrain_for);
            }
        }
    }

    fn ask(&mut self, span: Range<u64>, memory: OwnedSemaphorePermit) -> Arc<Held> {
        let size = usize::try_from(span.end - span.start).unwrap_or_default();
        let held = Arc::new(Held(Mutex::new(Bytewise {
            // All at once: a slice of the client's buffer would keep that whole buffer, and nobody could tell how
            // much memory a part of many small pieces takes.
            bytes: BytesMut::with_capacity(size),
            at: span.start,
            state: State::Asked,
        })));
        if !self.was_used {
            self.was_used = true;
            metrics::counter!("larder_transfers_parallel_total", "upstream" => self.order.client.name().to_string())
                .increment(1);
        }
        let fetching = fetch(
            self.order.clone(),
            self.sources.clone(),
            span.clone(),
            self.total,
            held.clone(),
            self.signals.clone(),
        );
        self.parts.push_back(Part {
            span,
            held: held.clone(),
            task: tokio::spawn(trace::carry(fetching)).abort_handle(),
            _memory: memory,
        });
        held
    }

    /// Each failure counts once; what is left of a part that failed is poured all the same.
    fn mind_failures(&mut self) {
        let mut troubles = Vec::new();
        self.parts.retain(|part| {
            let mut held = part.held.lock();
            let is_empty = held.bytes.is_empty();
            match &mut held.state {
                State::Failed(trouble) => {
                    troubles.extend(trouble.take());
                    !is_empty
                }
                _ => true,
            }
        });
        let coming = self.parts.iter().filter(|part| part.is_coming()).count();
        for trouble in troubles {
            match trouble {
                Trouble::NoSlot => self.plan.fewer(coming),
                Trouble::Passing => self.plan.failed(),
                Trouble::Blob => self.plan.stop(),
                Trouble::Upstream(pause) => {
                    self.plan.stop();
                    self.lines
                        .refrain(self.order.client.name(), pause.max(self.policy.refrain_for));
                }
            }
        }
    }

    /// What the first connection meets at `at`.
    pub(super) fn meet(&mut self, at: u64) -> Meeting {
        while let Some(front) = self.parts.front()
            && front.span.start <= at
        {
            if front.span.start == at && front.has_answer() {
                return Meeting::Takes;
            }
            // It failed just now: `look` has yet to draw its conclusion.
            if front.has_failed() {
                return Meeting::GoesOn;
            }
            // Not answered in time: it is not needed any more.
            self.parts.pop_front();
            self.fresh = None;
            self.plan.was_late();
        }
        Meeting::GoesOn
    }

    /// Of a piece of the first connection, what is not for a part to give; and whether some of it is, so that this
    /// connection has nothing more to give, whatever becomes of the part.
    pub(super) fn bound(&mut self, at: u64, mut piece: Bytes) -> (Bytes, bool) {
        let all = piece.len();
        if let Some(front) = self.parts.front()
            && front.has_answer()
            && front.span.start >= at
        {
            let most = usize::try_from(front.span.start - at).unwrap_or(usize::MAX);
            piece.truncate(most);
        }
        self.came += piece.len() as u64;
        let is_over = piece.len() < all;
        (piece, is_over)
    }

    /// A part was answered, is whole or failed. May be dropped and asked again.
    pub(super) async fn changed(&self) {
        self.signals.changed.notified().await;
    }

    /// What belongs at `at`. May be dropped and asked again.
    pub(super) async fn next(&mut self, at: u64) -> Next {
        let Some(front) = self.parts.front() else {
            return Next::Gap;
        };
        {
            let mut held = front.held.lock();
            if held.at != at {
                // One before it failed. It stays for the answer that fills the gap.
                return Next::Gap;
            }
            if !held.bytes.is_empty() {
                let size = held.bytes.len().min(PIECE_BYTES);
                let piece = held.bytes.split_to(size).freeze();
                held.at += size as u64;
                return Next::Piece(piece);
            }
            if matches!(held.state, State::Whole | State::Failed(None)) {
                drop(held);
                self.parts.pop_front();
                return Next::Look;
            }
        }
        self.signals.came.notified().await;
        Next::Look
    }
}

impl Part {
    fn is_coming(&self) -> bool {
        matches!(self.held.lock().state, State::Asked | State::Answered)
    }

    fn has_failed(&self) -> bool {
        matches!(self.held.lock().state, State::Failed(Some(_)))
    }

    fn has_answer(&self) -> bool {
        let held = self.held.lock();
        !matches!(held.state, State::Asked) && (!held.bytes.is_empty() || matches!(held.state, State::Answered))
    }
}

async fn fetch(
    order: Order,
    sources: Arc<Sources>,
    span: Range<u64>,
    total: u64,
    held: Arc<Held>,
    signals: Arc<Signals>,
) {
    let outcome = bring(&order, &sources, &span, total, &held, &signals).await;
    let result = match &outcome {
        Ok(true) => "ok",
        Ok(false) => "no-slot",
        Err(error) => error.as_str(),
    };
    metrics::counter!(
        "larder_transfer_parts_total",
        "upstream" => order.client.name().to_string(),
        "result" => result
    )
    .increment(1);
    held.lock().state = match outcome {
        Ok(true) => State::Whole,
        Ok(false) => State::Failed(Some(Trouble::NoSlot)),
        Err(error) => {
            tracing::info!(digest = %order.digest, start = span.start, end = span.end, %error, "a part did not come: its bytes are asked for in their turn");
            State::Failed(Some(Trouble::of(&error)))
        }
    };
    signals.changed.notify_one();
    signals.came.notify_one();
}

/// `false`: there was no connection to be had.
async fn bring(
    order: &Order,
    sources: &Sources,
    span: &Range<u64>,
    total: u64,
    held: &Held,
    signals: &Signals,
) -> Result<bool, UpstreamError> {
    let without = sources.left_out();
    let asked = order
        .client
        .get_blob_part(&order.repository, &order.digest, span.clone(), &without);
    let Some(mut stream) = asked.await? else {
        return Ok(false);
    };
    if let Some(other) = stream.total.filter(|other| *other != total) {
        let kind = ErrorKind::Protocol(format!("first {total} bytes, then {other}").into());
        return Err(UpstreamError::new(order.client.name(), kind));
    }
    sources.note(&stream);
    held.lock().state = State::Answered;
    signals.changed.notify_one();
    while let Some(piece) = stream.next().await? {
        held.lock().bytes.extend_from_slice(&piece);
        signals.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        signals.came.notify_one();
    }
    Ok(true)
}
