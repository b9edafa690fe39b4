//! A transfer: asks the upstream, mends cuts (L4), waits for the verdict (L2) and commits.
//!
//! `pour` takes in one answer of the upstream; this is what happens around it. Where connections are slow, `ahead`
//! fetches parts beside that answer; `plan` decides how many and which. `sources` knows which mirrors the bytes come from: what is
//! wrong there is fetched from the next address, as long as nobody has seen a byte.

mod ahead;
mod plan;
mod pour;
mod sources;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use ahead::Ahead;
use sources::{Objection, Sources};

use super::blocking::{blocking, tell_not_kept};
use super::error::PullError;
use super::flight::{Entry, Flight, Order, Phase, SMALL_BYTES};
use super::sink::Sink;
use super::timing::Timing;
use crate::events::{Action, Event};
use crate::store::{Store, StoreError, Writer};
use crate::telemetry::trace::{self, Kind};
use crate::upstream::{BlobStream, DistrustReason, ErrorKind, Form, GetFallback, UpstreamError};

pub(super) use ahead::Lines;
pub(super) use pour::MAX_BLOB_BYTES;

pub(super) struct Transfer {
    flight: Arc<Flight>,
    order: Order,
    store: Store,
    timing: Arc<Timing>,
    lines: Arc<Lines>,
    /// Set if another transfer stages the same for the same repository: this one passes through memory.
    is_beside: bool,
    /// Parts that come beside the answer that is poured; they outlive it when it breaks off.
    ahead: Option<Ahead>,
    /// Whether followers may have seen bytes: from then on the staged file cannot be begun anew.
    streaming: bool,
    /// In which form the bytes are asked for, and whether the plain one was said to be another than the stored one (R-U26).
    form: Form,
    was_unpacked: bool,
    /// The upstream's answer from byte 0, asked for while the place for it was made.
    early: Option<Result<BlobStream, UpstreamError>>,
    ranges: Ranges,
    sources: Arc<Sources>,
    /// The mirror that gave the last answer; `None` if the registry itself did, or nobody.
    source: Option<Arc<str>>,
    /// How often wrong bytes of mirrors were thrown away.
    restarts: usize,
    /// Set while nobody is given a byte because a mirror has yet to prove itself.
    hold: Option<Hold>,
    /// The longest that its upstream has taken to begin an answer.
    slowest_answer: Duration,
}

/// A mirror that has yet to prove itself.
#[derive(Clone)]
struct Hold {
    mirror: Arc<str>,
    /// For so long that is waited for; `None`: until the verdict on this blob.
    until: Option<tokio::time::Instant>,
}

/// Remembers how an upstream answers requests with Range for one blob.
#[derive(Debug, Default)]
struct Ranges {
    /// The upstream refused a Range and then answered with the whole: it is sent no more ranges.
    refused: bool,
    /// Requests with Range, one after the other, that failed in a way that may pass, or were answered without a byte.
    failed: u32,
    /// The last answer was one to a Range.
    answered: bool,
    /// Answers that began at byte 0 although some of the blob was staged.
    from_zero: u32,
}

impl Ranges {
    /// Returns whether to ask without Range, because a request with Range ended in `error`. `patient`: a second request
    /// with Range may come first, if the failure may pass.
    fn are_refused(&mut self, error: &UpstreamError, patient: bool) -> bool {
        let may_pass = match &error.kind {
            // Without Range they end no better.
            ErrorKind::RateLimited { .. }
            | ErrorKind::Connect(_)
            | ErrorKind::Refused(_)
            | ErrorKind::Auth(_)
            | ErrorKind::Unwanted
            | ErrorKind::Offline => return false,
            ErrorKind::TooLarge { .. } => return false,
            ErrorKind::NotFound { .. } | ErrorKind::Denied { .. } | ErrorKind::Protocol(_) => false,
            ErrorKind::Status { status, .. } => *status >= 500 && *status != 501,
            ErrorKind::Timeout(_) | ErrorKind::TooSlow | ErrorKind::Cut(_) => true,
        };
        self.failed += 1;
        !may_pass || !patient || self.failed >= MOST_FAILED_RANGES
    }
}

/// After so many failures in a row it is the Range that may be the reason.
const MOST_FAILED_RANGES: u32 = 2;

/// Answers of mirrors that are left, one after the other, before the registry or all addresses have failed. Each is left out then,
/// so there are as many as mirrors.
const MOST_LEFT: usize = 100;

/// How one upstream answer ended.
enum Poured {
    /// Everything is staged.
    Complete,
    /// A mirror's answer that is not taken: another address is asked.
    Left(PullError),
    /// Parts took over from this answer, and there are no more of them: the rest is to be asked for.
    Handed,
    /// Worth another attempt from where it stopped.
    Broken(PullError),
    /// Not worth it.
    Fatal(PullError),
}

impl Transfer {
    pub(super) fn new(
        flight: Arc<Flight>,
        order: Order,
        store: Store,
        timing: Arc<Timing>,
        lines: Arc<Lines>,
        is_beside: bool,
    ) -> Transfer {
        Transfer {
            sources: Arc::new(Sources::new(&order)),
            source: None,
            restarts: 0,
            hold: None,
            flight,
            order,
            store,
            timing,
            lines,
            is_beside,
            ahead: None,
            streaming: false,
            form: Form::Plain,
            was_unpacked: false,
            early: None,
            ranges: Ranges::default(),
            slowest_answer: Duration::ZERO,
        }
    }

    pub(super) async fn run(mut self, entry: &Entry, stop: &CancellationToken) {
        let begun = Instant::now();
        let flight = self.flight.clone();
        let timing = self.timing.clone();
        let outcome = tokio::select! {
            outcome = self.fetch() => outcome,
            () = entry.abandoned(&timing) => {
                flight.span.set("larder.ended", "abandoned");
                tracing::info!(digest = %flight.digest, "nobody waits for this transfer any more: stopped, what came is kept");
                return;
            }
            () = stop.cancelled() => return,
        };
        let (sink, total) = match outcome {
            Ok(done) => done,
            Err(error) => {
                flight.span.fail(error.as_str(), &error);
                let trace_id = trace::id();
                let (digest, repository) = (&flight.digest, &self.order.key);
                // Each client's line says why it got nothing. Anybody may ask for blobs that are not there, of a registry
                // that throttles too; while one is down, or gives no token, the log says that once a minute.
                match error.is_routine() || (error.is_trouble() && self.order.client.is_logged_down()) {
                    true => tracing::debug!(%digest, %repository, %error, trace_id, "transfer failed"),
                    false => tracing::warn!(%digest, %repository, %error, trace_id, "transfer failed"),
                }
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
        self.store.events().emit(Action::Fetch, |bare| Event {
            repository: Some(self.order.key.clone()),
            digest: Some(flight.digest),
            upstream: Some(self.order.client.name().clone()),
            bytes: Some(total),
            took: Some(begun.elapsed()),
            ..bare
        });
        flight.span.set("larder.bytes", total);
        let Sink::Disk(writer) = sink else {
            flight.span.set("larder.ended", "passed-through");
            tracing::debug!(digest = %flight.digest, total, "passed through, not kept");
            return;
        };
        let (store, key, done) = (self.store.clone(), self.order.key.clone(), flight.clone());
        let commit = move || {
            writer.commit(&key)?;
            let also: Vec<Arc<str>> = done.take_also().into_iter().collect();
            store.link(&also, &done.digest);
            Ok(())
        };
        let span = trace::start("commit", Kind::Internal);
        if let Err(error) = blocking(commit).await {
            span.fail(error.as_str(), &error);
            tell_not_kept(&flight.digest, &error);
        }
    }

    /// Gets the whole blob and verifies it. Gives where it is, and the size.
    async fn fetch(&mut self) -> Result<(Sink, u64), PullError> {
        let mut sink = self.begin().boxed().await?;
        let mut resumed = sink.len() > 0;
        if !self.is_whole_already(&mut sink).await? {
            sink = self.gather(sink).await?;
        }
        loop {
            let verdict;
            let span = trace::start("verify", Kind::Internal);
            (sink, verdict) = verify(sink).await?;
            if let Err(error) = &verdict {
                span.fail("digest", error);
            }
            drop(span);
            match verdict {
                Ok(()) => break,
                Err(error) => {
                    let was_resumed = std::mem::take(&mut resumed);
                    self.draw_conclusion(error, was_resumed, sink.len())?;
                    sink = self.begin_anew(sink).await?;
                    sink = self.gather(sink).await?;
                }
            }
        }
        let total = sink.len();
        self.sources.absolve(total);
        Ok((sink, total))
    }

    /// Decides what to do about bytes that are not what the digest says. As long as nobody has seen one of them, nobody need
    /// know: they are fetched anew, from elsewhere where mirrors sent them.
    ///
    /// Errors: nothing more can be done.
    fn draw_conclusion(&mut self, error: StoreError, was_resumed: bool, size: u64) -> Result<(), PullError> {
        // A store that unpacks is no liar.
        let was_unpacked = self.was_unpacked && self.form == Form::Plain;
        let reason = match size {
            0 => DistrustReason::Empty,
            _ => DistrustReason::Mismatch,
        };
        let by_mirror = !was_unpacked && self.sources.blame(reason, &error);
        if self.is_seen() {
            return Err(error.into());
        }
        let digest = &self.order.digest;
        if was_resumed {
            // What an earlier transfer left was spoilt.
            tracing::warn!(%digest, %error, "what was staged earlier is spoilt: fetched anew");
        } else if was_unpacked {
            tracing::warn!(%digest, %error, "its store unpacked these bytes on the way: asked for as they are stored");
            self.form = Form::AsStored;
        } else if by_mirror && self.restarts < self.order.client.mirror_count() {
            self.restarts += 1;
            (self.form, self.was_unpacked) = (Form::Plain, false);
        } else {
            return Err(error.into());
        }
        Ok(())
    }

    /// Returns whether somebody may have been given a byte.
    fn is_seen(&self) -> bool {
        let state = self.flight.state();
        self.streaming && state.written.max(state.came) > 0
    }

    /// Begins at byte 0 as if nothing had come. Only while nobody has seen a byte.
    async fn begin_anew(&mut self, sink: Sink) -> Result<Sink, PullError> {
        let (streaming, is_plain) = (self.streaming, self.form == Form::Plain);
        self.flight.tell(|state| {
            (state.written, state.came) = (0, 0);
            // Once responses have begun their length is told.
            if !streaming {
                state.phase = Phase::Asking;
                state.total = None;
                // What was odd is thrown away.
                state.doubtful &= !is_plain;
            }
        });
        self.hold = None;
        self.ranges = Ranges::default();
        self.restart(sink).await
    }

    /// Stages. What nobody has staged any of is asked for at the same time: a first byte need not wait for a file.
    async fn begin(&mut self) -> Result<Sink, PullError> {
        let digest = self.order.digest;
        if !self.is_beside && self.store.is_staged(&self.order.key, &digest) {
            return self.stage().await;
        }
        let Order { client, repository, .. } = self.order.clone();
        let asking = async {
            let begun = Instant::now();
            (client.get_blob(&repository, &digest, 0).await, begun.elapsed())
        };
        let (sink, (answer, took)) = tokio::join!(self.stage(), asking);
        let sink = sink?;
        self.slowest_answer = took;
        // Somebody may have come, staged a little and gone meanwhile.
        self.early = (sink.len() == 0).then_some(answer);
        Ok(sink)
    }

    async fn is_whole_already(&mut self, sink: &mut Sink) -> Result<bool, PullError> {
        let Sink::Disk(writer) = sink else { return Ok(false) };
        if writer.is_empty() || !writer.is_whole() {
            return Ok(false);
        }
        let is_upstream = self.is_upstream(writer).await?;
        if !is_upstream {
            // Behind its end there is nothing to ask for by Range.
            self.ranges.failed = MOST_FAILED_RANGES;
        }
        Ok(is_upstream)
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
        match client.confirm_blob(repository, digest, GetFallback::Unsupported).await {
            Ok(said) if said.proves_nothing => return Ok(false),
            Ok(_) => self.note_privacy(),
            // A mirror may have it: the GET will tell.
            Err(_) if client.has_mirrors() => return Ok(false),
            // R-U27: HEAD is where upstreams differ, also in what they say is not there. The GET will tell.
            Err(error) if error.is_doubtful_head() || error.is_definite() => return Ok(false),
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
        // Where it was when all addresses had failed.
        let mut mark = sink.len();
        let mut left = 0;
        loop {
            let before = sink.len();
            let poured;
            (sink, poured) = self.attempt(sink).await?;
            let (error, is_fatal) = match poured {
                Poured::Complete => {
                    if let Some(mirror) = &self.source {
                        self.sources.note_delivery(mirror, sink.len().saturating_sub(before));
                    }
                    return Ok(sink);
                }
                Poured::Handed => continue,
                Poured::Left(error) if left < MOST_LEFT => {
                    tracing::debug!(%digest, %error, "a mirror's answer is not taken: the next address is asked");
                    left += 1;
                    continue;
                }
                Poured::Left(error) | Poured::Fatal(error) => (error, true),
                Poured::Broken(error) => (error, false),
            };
            if let Some(mirror) = self.source.take().filter(|_| left < MOST_LEFT) {
                left += 1;
                sink = self.leave(sink, &mirror, error, before).await?;
                continue;
            }
            // What the registry says of the blob contradicts what mirrors said.
            if matches!(error, PullError::Upset { .. })
                && self.sources.blame(DistrustReason::Size, &error)
                && !self.is_seen()
            {
                sink = self.begin_anew(sink).await?;
                continue;
            }
            // Mirrors that were left may have what the registry has not, or cannot give at the moment.
            let has_others = self.sources.take_back();
            if is_fatal && !has_others {
                return Err(error);
            }
            left = 0;
            let progress = sink.len() > mark;
            mark = sink.len();
            if progress {
                failures = 0;
                self.ranges.failed = 0;
            } else if self.ranges.answered {
                self.ranges.failed += 1;
                if !self.streaming {
                    self.ranges.failed = MOST_FAILED_RANGES;
                    continue;
                }
            }
            failures += 1;
            // Before anybody has seen a byte a quick error serves better than patience: the client has other
            // places to go (R-D3), and the upstream's client has tried more than once.
            let attempts = match (self.streaming || progress, has_others) {
                (true, _) => self.timing.attempts,
                (false, true) => 2,
                (false, false) => 1,
            };
            if failures >= attempts {
                return Err(error);
            }
            let pause = match &error {
                PullError::Upstream(UpstreamError {
                    kind: ErrorKind::RateLimited { retry_after },
                    ..
                }) if !has_others => *retry_after,
                _ => self.timing.pause(failures),
            };
            let trace_id = trace::id();
            self.flight.span.set("larder.resumed_at", sink.len());
            tracing::info!(%digest, at = sink.len(), failures, pause_ms = pause.as_millis() as u64, %error, trace_id, "transfer broke off: going on from there");
            metrics::counter!("larder_transfers_resumed_total", "upstream" => self.order.client.name().to_string())
                .increment(1);
            tokio::time::sleep(pause).await;
        }
    }

    /// Leaves a mirror whose answer ended in `error`, so that the next address goes on from there. `before`: where the answer
    /// began.
    ///
    /// Errors: what it sent cannot be gone on with, and has been seen.
    async fn leave(&mut self, sink: Sink, mirror: &Arc<str>, error: PullError, before: u64) -> Result<Sink, PullError> {
        match &error {
            PullError::Upset { .. } => self.sources.distrust(mirror, DistrustReason::Size, &error),
            PullError::Upstream(UpstreamError {
                kind: ErrorKind::Protocol(_),
                ..
            }) => self.sources.distrust(mirror, DistrustReason::Protocol, &error),
            _ => {
                self.sources.pass_over(mirror);
                if let PullError::Upstream(UpstreamError {
                    kind: kind @ ErrorKind::Timeout(_),
                    ..
                }) = &error
                {
                    let bytes = sink.len().saturating_sub(before);
                    self.sources.note_stall(mirror, &self.order.repository, bytes, kind);
                }
                if sink.len() == before {
                    self.sources.note_cut(mirror, &error);
                }
            }
        }
        let (at, trace_id) = (sink.len(), trace::id());
        self.flight.span.set("larder.resumed_at", at);
        let digest = self.order.digest;
        tracing::info!(%digest, at, %mirror, %error, trace_id, "a mirror broke off: the next address goes on from there");
        metrics::counter!("larder_transfers_resumed_total", "upstream" => self.order.client.name().to_string())
            .increment(1);
        // Another address has other manners.
        self.ranges = Ranges {
            from_zero: self.ranges.from_zero,
            ..Ranges::default()
        };
        let is_too_long = self.flight.state().total.is_some_and(|total| at > total);
        if at > 0 && !is_too_long && !self.sources.has_web_page() {
            return Ok(sink);
        }
        match self.is_seen() {
            false => self.begin_anew(sink).await,
            true if is_too_long => Err(error),
            true => Ok(sink),
        }
    }

    /// A transfer that was stopped a moment ago may still be putting down its last batch.
    async fn stage(&self) -> Result<Sink, PullError> {
        if self.is_beside || self.order.is_held {
            return Ok(Sink::memory(self.order.digest));
        }
        for _ in 0..250 {
            let (store, digest, key) = (self.store.clone(), self.order.digest, self.order.key.clone());
            let hint = self.order.hint;
            // While the upstream is asked, so that its answer has not to wait for room.
            let staging = move || {
                let mut writer = store.stage(&key, &digest)?;
                match hint {
                    // If it cannot fit, the answer's own size decides.
                    Some(hint) => drop(writer.expect(hint)),
                    None => writer.reserve_free(SMALL_BYTES),
                }
                Ok(writer)
            };
            match blocking(staging).await {
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
    async fn restart(&mut self, sink: Sink) -> Result<Sink, PullError> {
        self.ahead = None;
        self.sources.forget();
        // Those of a small blob stay there until its transfer ends.
        self.flight.front.let_go(u64::MAX);
        self.waste("restart", sink.len());
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
        if let Some(private) = client.has_credentials(repository) {
            self.store.set_private(key, private);
        }
    }

    /// Asks the upstream for what is missing. A Range that is refused is no verdict on the blob: the whole is asked for,
    /// and only what that is answered counts.
    async fn attempt(&mut self, mut sink: Sink) -> Result<(Sink, Poured), PullError> {
        let offset = sink.len();
        self.source = None;
        let mut by_range = offset > 0 && !self.ranges.refused && self.ranges.failed < MOST_FAILED_RANGES;
        let mut answer = match self.early.take() {
            Some(answer) => answer,
            None => self.ask(if by_range { offset } else { 0 }).await,
        };
        if by_range
            && let Err(error) = &answer
            && self.ranges.are_refused(error, self.streaming)
        {
            let digest = &self.order.digest;
            tracing::info!(%digest, offset, %error, "a range was refused: the whole blob is asked for");
            answer = self.ask(0).await;
            by_range = false;
        }
        self.ranges.answered = by_range && answer.is_ok();
        if offset > 0 && !by_range {
            // If that fails too it may be the upstream's trouble, and the next Range may be answered.
            self.ranges.refused |= answer.is_ok();
            self.ranges.failed = 0;
        }
        match answer {
            Ok(stream) => {
                self.note_privacy();
                self.source = self.sources.mirror_of(&stream);
                if let Some(error) = self.objection(&stream) {
                    return Ok((sink, Poured::Left(error)));
                }
                if offset > 0 && stream.start == 0 {
                    self.ranges.from_zero += 1;
                    if self.ranges.from_zero > self.timing.attempts {
                        let what = format!("no ranges, and {} answers that broke off", self.timing.attempts);
                        return Ok((sink, Poured::Fatal(self.upset(what))));
                    }
                    if !self.streaming && self.ranges.refused {
                        // Nobody has seen a byte: with all of it coming once more, what is staged is of no use.
                        sink = self.restart(sink).await?;
                    }
                }
                self.pour(sink, stream).await
            }
            Err(error) => {
                // Where others were asked beside it, a refusal may be our own doing: it is worth a longer wait.
                let patience = if self.ahead.as_ref().is_some_and(Ahead::was_used) {
                    OWN_DOING
                } else {
                    PATIENCE
                };
                Ok((sink, judge(error, self.streaming, patience)))
            }
        }
    }

    /// Returns an error if the answer comes from a mirror and is not taken. Then that one is left out from now on.
    fn objection(&self, stream: &BlobStream) -> Option<PullError> {
        let mirror = self.source.as_ref()?;
        let objection = self
            .sources
            .objection(mirror, stream, self.order.hint, self.streaming)?;
        Some(match objection {
            Objection::Wrong(reason, what) => {
                self.sources.distrust(mirror, reason, &what);
                self.upset(what)
            }
            Objection::Doubt => {
                self.sources.pass_over(mirror);
                self.upset(format!("wrong bytes of another blob came from {mirror} a moment ago"))
            }
        })
    }

    /// Asks for all bytes from `offset` on. Until somebody has had bytes the answer may take as long as the upstream is
    /// allowed. Then responses run, and a question that hangs is asked once more before their clients give up: by what
    /// this upstream took before.
    async fn ask(&mut self, offset: u64) -> Result<BlobStream, UpstreamError> {
        let Order {
            client,
            repository,
            digest,
            ..
        } = &self.order;
        let within = (2 * self.slowest_answer).max(self.timing.client_wait);
        let within = self.streaming.then_some(within);
        let without = self.sources.left_out();
        let begun = Instant::now();
        let answer = client
            .get_blob_in(self.form, repository, digest, offset, &without, within)
            .await;
        if answer.is_ok() {
            self.slowest_answer = self.slowest_answer.max(begun.elapsed());
        }
        answer
    }

    /// Counts bytes that an answer brought although they were here.
    fn note_waste(&self, bytes: u64) {
        let reason = match self.ranges.refused {
            true => "range_refused",
            false => "range_ignored",
        };
        self.waste(reason, bytes);
    }

    fn waste(&self, reason: &'static str, bytes: u64) {
        if bytes > 0 {
            metrics::counter!(
                "larder_transfer_wasted_bytes_total",
                "upstream" => self.order.client.name().to_string(),
                "reason" => reason
            )
            .increment(bytes);
        }
    }
}

/// How long a transfer whose bytes are waited for bears with a 429.
const PATIENCE: Duration = Duration::from_secs(30);
const OWN_DOING: Duration = Duration::from_secs(120);

/// Whether a transfer goes on after this error.
fn judge(error: UpstreamError, streaming: bool, patience: Duration) -> Poured {
    let again = match &error.kind {
        ErrorKind::RateLimited { retry_after } => streaming && *retry_after <= patience,
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

async fn verify(sink: Sink) -> Result<(Sink, Result<(), StoreError>), PullError> {
    match sink {
        Sink::Disk(mut writer) => {
            if writer.verify_held() {
                return Ok((Sink::Disk(writer), Ok(())));
            }
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
