//! One answer of the upstream, taken in: to the disk as long as that can, else through memory (L5).

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ahead::{Ahead, Meeting, Next};
use super::sources::Sources;
use super::{Hold, PATIENCE, Poured, Transfer, judge};
use crate::oci::manifest::Manifest;
use crate::oci::media_type;
use crate::pull::blocking::blocking;
use crate::pull::error::PullError;
use crate::pull::flight::{FRONT_BYTES, Phase, SMALL_BYTES};
use crate::pull::sink::{Passage, Sink};
use crate::store::{StoreError, Writer};
use crate::upstream::{BlobStream, DistrustReason, ErrorKind, UpstreamError};

/// No file can be larger, and figures below it can be added without care.
pub(in crate::pull) const MAX_BLOB_BYTES: u64 = 1 << 62;
/// What may queue up in memory while the disk writes. No more than a processor's cache holds: what has left it costs half as
/// much again to hash (benches/README.md).
const QUEUE_BYTES: usize = 1 << 20;
/// What comes fast is written in multiples of this, from one to the next: each write wakes others, and one that ends within
/// a page of the kernel's cache leaves two small ones there.
const BATCH_BYTES: u64 = 256 << 10;
/// How often it is looked whether a mirror has proved itself.
const HOLD_LOOK: Duration = Duration::from_millis(20);
/// What comes slowly waits for the rest of its batch no longer than this.
const GATHERING: Duration = Duration::from_millis(4);

impl Transfer {
    /// Takes in one answer of the upstream.
    pub(super) async fn pour(&mut self, mut sink: Sink, stream: BlobStream) -> Result<(Sink, Poured), PullError> {
        let total = stream.total.or(self.flight.state().total);
        if let Some(absurd) = total.filter(|total| *total > MAX_BLOB_BYTES) {
            return Ok((sink, Poured::Fatal(self.upset(format!("a blob of {absurd} bytes")))));
        }
        if let Some(problem) = self.check_total(sink.len(), total, &stream) {
            if self.streaming {
                return Ok((sink, Poured::Fatal(problem)));
            }
            // The registry itself has the last word.
            let by_mirror = self.source.is_none() && self.sources.blame(DistrustReason::Size, &problem);
            sink = self.restart(sink).await?;
            if stream.start != 0 {
                self.flight.tell(|state| state.total = None);
                let ended = if by_mirror { Poured::Left } else { Poured::Fatal };
                return Ok((sink, ended(problem)));
            }
        }
        if total.is_none() && self.order.hint.is_none() {
            self.order.hint = self.claimed_by_manifests().await?;
        }
        // A mirror that does not say how long the blob is, is held to what the manifest says.
        let total = total.or(self.order.hint.filter(|_| self.source.is_some()));
        // R-U25: an upstream that ignored the Range sends what is there already once more.
        let skip = sink.len() - stream.start.min(sink.len());
        sink = match (sink, total.or(self.order.hint)) {
            (Sink::Disk(writer), Some(total)) if !writer.expects(total) => self.expect(writer, total).await?,
            (sink, _) => sink,
        };
        self.was_unpacked |= stream.was_unpacked;
        self.sources.note(&stream);
        let odd = stream.was_unpacked
            || stream.content_type.as_deref().is_some_and(media_type::is_web_page)
            || self.order.hint.zip(total).is_some_and(|(hint, total)| hint != total);
        self.set_hold(odd, total);
        let odd = odd || self.hold.is_some();
        self.flight.tell(|state| {
            state.phase = Phase::Streaming;
            state.total = total;
            state.file = sink.file();
            state.window = sink.window();
            state.written = sink.len();
            state.came = 0;
            state.doubtful |= odd;
        });
        // What has begun goes on, whatever is odd about this answer.
        self.streaming |= self.flight.state().is_decided();
        let mut intake = Intake {
            at: sink.len(),
            ahead: self.take_ahead(&stream, sink.len(), total),
            stream: Some(stream),
            skip,
            total,
            end: None,
        };
        let outcome = self.pour_in(sink, &mut intake, total).await;
        if self.flight.state().is_decided() {
            (self.hold, self.streaming) = (None, true);
        }
        self.ahead = intake.ahead;
        self.note_waste(skip.saturating_sub(intake.skip));
        outcome
    }

    /// Decides whether bytes of this answer wait for a mirror to prove itself: by a whole blob that is right, this one or another.
    /// One that was caught with wrong bytes has to prove each blob. `odd`: they wait for the verdict anyway.
    fn set_hold(&mut self, odd: bool, total: Option<u64>) {
        if odd || self.streaming || (self.flight.state().doubtful && self.hold.is_none()) {
            self.hold = None;
            return;
        }
        let Some(mirror) = self.source.clone() else { return };
        if self.sources.is_doubtful(&mirror) && Sources::may_wait(total) {
            self.hold = Some(Hold { mirror, until: None });
        } else if self.hold.is_none() && !self.sources.is_proven(&mirror) {
            let until = Some(Instant::now() + self.timing.prove_for);
            self.hold = Some(Hold { mirror, until });
        }
    }

    /// Gives out what came, if it waits for a mirror to prove itself and that has, or has had its time.
    fn look_at_hold(&self, hold: &mut Option<Hold>) {
        let now = Instant::now();
        let is_over = |hold: &mut Hold| {
            let until = hold.until.as_ref();
            until.is_some_and(|until| *until <= now || self.sources.is_proven(&hold.mirror))
        };
        if hold.take_if(is_over).is_some() {
            self.flight.tell(|state| state.doubtful = false);
        }
    }

    /// What fetches ahead beside this answer, if that may be: it takes ranges, a size, and bytes that are wanted.
    fn take_ahead(&mut self, stream: &BlobStream, at: u64, total: Option<u64>) -> Option<Ahead> {
        let known = self.ahead.take();
        let is_wanted = self.streaming || self.hold.is_some();
        let total = total.filter(|_| is_wanted && !stream.no_ranges && stream.start == at)?;
        let (policy, client) = (&self.timing.parallel, &self.order.client);
        let is_far = policy.on_this_machine || !client.is_on_this_machine();
        let may = policy.connections > 1 && is_far && self.lines.may(client.name());
        known.or_else(|| {
            may.then(|| {
                let (lines, sources) = (self.lines.clone(), self.sources.clone());
                Ahead::new(&self.order, &self.timing.parallel, lines, sources, total)
            })
        })
    }

    async fn pour_in(&self, sink: Sink, intake: &mut Intake, total: Option<u64>) -> Result<(Sink, Poured), PullError> {
        let poured = match sink {
            Sink::Disk(writer) if writer.is_empty() && total.is_some_and(|total| total <= SMALL_BYTES) => {
                self.pour_small(writer, intake, total).await?
            }
            Sink::Disk(writer) => self.pour_to_disk(writer, intake, Queue::default(), total).await?,
            Sink::Memory(passage) => (Sink::Memory(passage), Poured::Complete),
        };
        match poured {
            (Sink::Memory(passage), Poured::Complete) => self.pour_through(passage, intake, total).await,
            other => Ok(other),
        }
    }

    /// A small blob is told right from wrong before the disk has it: what comes is hashed where it comes, and written by
    /// the commit. If that is not all of it, or it does not come to its end, it is staged as others are.
    async fn pour_small(
        &self,
        mut writer: Writer,
        intake: &mut Intake,
        total: Option<u64>,
    ) -> Result<(Sink, Poured), PullError> {
        let mut queue = Queue::default();
        while intake.end.is_none() && queue.bytes as u64 <= SMALL_BYTES {
            intake.next_into(&mut queue).await;
        }
        let is_whole = matches!(intake.end, Some(End::Body(Ok(())))) && Some(queue.bytes as u64) == total;
        if !is_whole || queue.pieces.is_empty() {
            return self.pour_to_disk(writer, intake, queue, total).await;
        }
        let mut at = 0;
        let pieces = queue.take();
        writer.hold(&pieces);
        for piece in pieces {
            let len = piece.len() as u64;
            self.flight.front.push(at, piece);
            at += len;
        }
        self.flight.tell(|state| state.came = at);
        Ok((Sink::Disk(writer), Poured::Complete))
    }

    /// Stages what comes. Network and disk work side by side: while one batch is written, the next one gathers. Gives a
    /// passage, with `Complete`, when the disk gives up and the rest has to go through memory.
    async fn pour_to_disk(
        &self,
        writer: Writer,
        intake: &mut Intake,
        mut queue: Queue,
        total: Option<u64>,
    ) -> Result<(Sink, Poured), PullError> {
        let mut writing: Option<Batch> = None;
        let mut idle = Some(writer);
        let mut hold = self.hold.clone();
        loop {
            self.look_at_hold(&mut hold);
            if let Some(writer) = idle.take() {
                let batch = queue.take_batch(writer.len(), intake.end.is_some());
                if !batch.is_empty() {
                    writing = Some(self.append(writer, batch, total));
                } else if let Some(ended) = intake.end.take() {
                    let verdict = self.close(total, ended);
                    return Ok((Sink::Disk(writer), verdict));
                } else {
                    idle = Some(writer);
                }
            }
            let (is_full, since) = (queue.bytes >= QUEUE_BYTES, Instant::now());
            let gathered = queue.since.filter(|_| idle.is_some()).map(|since| since + GATHERING);
            tokio::select! {
                () = intake.next_into(&mut queue), if intake.end.is_none() && !is_full => self.show(intake.at, &queue),
                () = async {
                    match gathered {
                        Some(when) => tokio::time::sleep_until(when).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = async { tokio::time::sleep(HOLD_LOOK).await }, if hold.is_some() => {}
                done = async {
                    match writing.as_mut() {
                        Some(batch) => batch.await,
                        None => std::future::pending().await,
                    }
                } => {
                    writing = None;
                    if is_full && let Some(ahead) = &mut intake.ahead {
                        ahead.was_held_up(since.elapsed());
                    }
                    let (writer, pieces, appended) = done.map_err(|_| PullError::Internal("a write was dropped"))?;
                    match appended {
                        Ok(written) if total.is_some_and(|total| written > total) => {
                            return Ok((Sink::Disk(writer), Poured::Fatal(self.too_much(total))));
                        }
                        Ok(_) => idle = Some(writer),
                        Err(error) => {
                            let Sink::Memory(mut passage) = self.give_up_disk(writer, &error) else {
                                return Err(error.into());
                            };
                            self.flight.tell(|state| {
                                state.window = Some(passage.window.clone());
                                state.came = 0;
                            });
                            self.flight.front.let_go(u64::MAX);
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

    /// Lets followers have the first of a blob's bytes while the disk has yet to take them. `came`: where the last piece of
    /// the queue ends.
    fn show(&self, came: u64, queue: &Queue) {
        let Some(piece) = queue.pieces.last() else { return };
        let begin = came - piece.len() as u64;
        // Without a new piece it is called too.
        if begin < FRONT_BYTES && came > self.flight.state().came {
            self.flight.front.push(begin, piece.clone());
            self.flight.tell(|state| state.came = came);
        }
    }

    /// Appends off the async threads, and tells followers from there: they need not wait until this task has its turn.
    fn append(&self, mut writer: Writer, pieces: Vec<Bytes>, total: Option<u64>) -> Batch {
        let flight = self.flight.clone();
        tokio::task::spawn_blocking(move || {
            let appended = writer.append(&pieces);
            if let Ok(written) = &appended
                && total.is_none_or(|total| *written <= total)
            {
                flight.tell(|state| state.written = *written);
                flight.front.let_go(*written);
            }
            (writer, pieces, appended)
        })
    }

    /// Passes what comes through memory: at the pace of the slowest follower, up to a point.
    async fn pour_through(
        &self,
        mut passage: Passage,
        intake: &mut Intake,
        total: Option<u64>,
    ) -> Result<(Sink, Poured), PullError> {
        // It goes at its readers' pace, not at the upstream's.
        if let Some(ahead) = &mut intake.ahead {
            ahead.stop();
        }
        // What is not read while it passes is lost.
        if self.hold.is_some() {
            self.flight.tell(|state| state.doubtful = false);
        }
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

    /// Bytes that a cached manifest of this repository claims, for a blob whose size nobody else tells. It looks at
    /// everything that is cached: hints of manifests that came since the start are found first, and most upstreams announce.
    async fn claimed_by_manifests(&self) -> Result<Option<u64>, PullError> {
        let (store, key, digest) = (self.store.clone(), self.order.key.clone(), self.order.digest);
        blocking(move || {
            let claims = store.parents(&key, &digest).into_iter().filter_map(|parent| {
                let manifest = store.peek_manifest(&parent).ok()??;
                let parsed = Manifest::parse(&manifest.bytes, Some(&manifest.media_type)).ok()?;
                parsed.descriptors.iter().find(|child| child.digest == digest)?.size
            });
            Ok(claims.take(1).find(|size| *size <= MAX_BLOB_BYTES))
        })
        .await
    }

    /// Tells the writer how much is to come. What could never fit passes through from its first byte.
    async fn expect(&self, mut writer: Writer, total: u64) -> Result<Sink, PullError> {
        let (writer, expected) = blocking(move || {
            let expected = writer.expect(total);
            Ok((writer, expected))
        })
        .await?;
        Ok(match expected {
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
        let known = self.flight.state().total;
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
    fn close(&self, total: Option<u64>, end: End) -> Poured {
        let written = self.flight.state().written;
        match (end, total) {
            (_, Some(total)) if written == total => Poured::Complete,
            (End::Handed, _) => Poured::Handed,
            (End::Body(Ok(())), None) => Poured::Complete,
            (End::Body(Ok(())), Some(total)) => {
                let cut = ErrorKind::Cut(format!("the answer broke off: {written} of {total} bytes came").into());
                Poured::Broken(UpstreamError::new(self.order.client.name(), cut).into())
            }
            (End::Body(Err(error)), _) => judge(error, true, PATIENCE),
        }
    }

    pub(super) fn upset(&self, what: String) -> PullError {
        PullError::Upset {
            upstream: self.order.client.name().to_string(),
            what,
        }
    }
}

/// One answer of the upstream, as it comes.
struct Intake {
    /// `None` once parts that were fetched ahead have taken over.
    stream: Option<BlobStream>,
    /// Bytes at its front that are there already.
    skip: u64,
    /// Where in the blob the next piece belongs.
    at: u64,
    /// Where the blob ends, if that is known. What comes behind it is left, and the digest decides.
    total: Option<u64>,
    ahead: Option<Ahead>,
    end: Option<End>,
}

/// Why no more comes.
enum End {
    /// The answer's own end.
    Body(Result<(), UpstreamError>),
    /// Parts took over, and they end here.
    Handed,
}

impl Intake {
    /// Waits for the next piece or the end. May be dropped and taken up again.
    async fn next_into(&mut self, queue: &mut Queue) {
        if let Some(ahead) = &mut self.ahead {
            ahead.look(self.at, self.stream.is_some());
            if self.stream.is_some() && ahead.meet(self.at) == Meeting::Takes {
                // Dropped, its connection is closed: what is on its way by now is all that crosses in vain.
                self.stream = None;
            }
        }
        match (&mut self.stream, &mut self.ahead) {
            (Some(stream), ahead) => {
                let came = match ahead {
                    None => stream.next().await,
                    Some(ahead) => tokio::select! {
                        came = stream.next() => came,
                        () = ahead.changed() => return,
                    },
                };
                match came {
                    Ok(Some(piece)) => {
                        let piece = skip_front(piece, &mut self.skip);
                        let (piece, is_over) = match ahead {
                            Some(ahead) => ahead.bound(self.at, piece),
                            None => (piece, false),
                        };
                        if is_over {
                            self.stream = None;
                        }
                        self.push(piece, queue);
                    }
                    Ok(None) => self.end = Some(End::Body(Ok(()))),
                    Err(error) => self.end = Some(End::Body(Err(error))),
                }
            }
            (None, Some(ahead)) => match ahead.next(self.at).await {
                Next::Piece(piece) => self.push(piece, queue),
                Next::Look => {}
                Next::Gap => self.end = Some(End::Handed),
            },
            (None, None) => self.end = Some(End::Handed),
        }
    }

    fn push(&mut self, mut piece: Bytes, queue: &mut Queue) {
        let most = self.total.map_or(u64::MAX, |total| total.saturating_sub(self.at));
        if piece.len() as u64 > most {
            piece.truncate(usize::try_from(most).unwrap_or(usize::MAX));
            self.stream = None;
            self.end = Some(End::Body(Ok(())));
        }
        self.at += piece.len() as u64;
        queue.push(piece);
    }
}

/// The pieces come back with the writer: what the disk does not take goes elsewhere.
type Batch = JoinHandle<(Writer, Vec<Bytes>, Result<u64, StoreError>)>;

#[derive(Default)]
struct Queue {
    pieces: Vec<Bytes>,
    bytes: usize,
    /// How long the first of them has been here.
    since: Option<Instant>,
}

impl Queue {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push(piece);
            self.since.get_or_insert_with(Instant::now);
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        self.since = None;
        std::mem::take(&mut self.pieces)
    }

    /// What is to be written now of bytes that belong at `at`: as far as whole batches go, or all that has waited long
    /// enough or is the last.
    fn take_batch(&mut self, at: u64, is_last: bool) -> Vec<Bytes> {
        let end = at + self.bytes as u64;
        let whole = end - end % BATCH_BYTES;
        let has_waited = || self.since.is_some_and(|since| since.elapsed() >= GATHERING);
        if is_last || whole <= at && has_waited() {
            return self.take();
        }
        let mut more = usize::try_from(whole.saturating_sub(at)).unwrap_or(0);
        if more == 0 {
            return Vec::new();
        }
        let mut batch = self.take();
        let mut count = 0;
        while let Some(piece) = batch.get(count).filter(|piece| piece.len() <= more) {
            more -= piece.len();
            count += 1;
        }
        let mut rest = batch.split_off(count);
        if more > 0
            && let Some(piece) = rest.first_mut()
        {
            batch.push(piece.split_to(more));
        }
        rest.into_iter().for_each(|piece| self.push(piece));
        batch
    }
}

fn skip_front(mut piece: Bytes, skip: &mut u64) -> Bytes {
    let cut = usize::try_from(*skip).unwrap_or(usize::MAX).min(piece.len());
    *skip -= cut as u64;
    piece.split_off(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(sizes: &[usize]) -> Queue {
        let mut queue = Queue::default();
        sizes.iter().for_each(|n| queue.push(vec![7; *n].into()));
        queue
    }

    fn sizes(pieces: &[Bytes]) -> Vec<usize> {
        pieces.iter().map(Bytes::len).collect()
    }

    #[test]
    fn what_comes_fast_is_written_in_whole_batches() {
        const BATCH: usize = 256 << 10;
        assert_eq!(BATCH as u64, BATCH_BYTES);
        let mut few = queue(&[100_000, 100_000]);
        assert!(few.take_batch(0, false).is_empty());
        assert_eq!(few.bytes, 200_000);
        few.push(vec![7; 100_000].into());
        assert_eq!(sizes(&few.take_batch(0, false)), [100_000, 100_000, BATCH - 200_000]);
        assert_eq!(
            (few.bytes, sizes(&few.pieces)),
            (300_000 - BATCH, vec![300_000 - BATCH])
        );
        assert_eq!(sizes(&few.take_batch(BATCH as u64, true)), [300_000 - BATCH]);
        assert_eq!((few.bytes, few.since), (0, None));

        // From an odd place, to the next multiple; and several at once.
        let mut odd = queue(&[50, 50, 3 * BATCH]);
        assert_eq!(sizes(&odd.take_batch(BATCH as u64 - 100, false)), [50, 50, 3 * BATCH]);
        assert!(odd.pieces.is_empty());
    }

    #[test]
    fn what_comes_slowly_waits_for_a_while_only() {
        let mut slow = queue(&[10]);
        slow.since = Instant::now().checked_sub(GATHERING);
        assert_eq!(sizes(&slow.take_batch(5, false)), [10]);
        assert!(slow.take_batch(15, false).is_empty());
    }

    #[test]
    fn an_ignored_range_is_skipped() {
        let mut skip = 5;
        assert_eq!(skip_front(Bytes::from_static(b"abc"), &mut skip), "");
        assert_eq!(skip_front(Bytes::from_static(b"defg"), &mut skip), "fg");
        assert_eq!(skip_front(Bytes::from_static(b"hi"), &mut skip), "hi");
    }
}
