//! A response's bytes, from a held blob or one that is still coming: the reader cannot tell.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};

use super::chunk::{Buffer, ChunkMemory, Chunks};
use super::error::PullError;
use super::flight::{Follower, Run};
use super::recall::Recall;
use crate::oci::Digest;
use crate::store::Held;

/// Bytes that are read at once where the kernel has them, and their reader is not accounted for by [`ChunkMemory`].
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes that are waited for where the kernel has let go of them, at first. It is more for who takes them quickly.
const DISK_BYTES: usize = 256 * 1024;

/// Bytes of a file that are handed out at once to be sent from there. Until they are sent the log takes them for sent,
/// and a response for running.
const RUN_BYTES: usize = 1024 * 1024;
/// Whoever took the last run quickly is handed one twice as long, up to this: what goes on around a run costs the same for
/// each. Who is slow is not, as what is in memory now may be gone when its turn comes.
const MAX_RUN_BYTES: usize = 8 * 1024 * 1024;
/// What quickly is.
const QUICK: Duration = Duration::from_millis(20);
/// A shorter run is read: that costs less than to send it by itself.
const MIN_RUN_BYTES: usize = 64 * 1024;
/// How far apart at least the bytes are that tell whether a run is in memory, and how many do. Each costs a system call.
const PROBE_BYTES: usize = 1024 * 1024;
const PROBES: usize = 2;

/// Some of a blob's bytes.
pub enum Chunk {
    Memory(Bytes),
    File(Span),
}

/// A stretch of a file, in the kernel's memory as far as one can tell.
#[derive(Clone, Debug)]
pub struct Span {
    pub file: Arc<File>,
    pub at: u64,
    pub len: u64,
    /// Whether the bytes behind it are there too and come next: a socket may hold back what fills no packet.
    pub more: bool,
}

/// Where a blob's bytes come from.
#[derive(Clone)]
pub enum Source {
    Held(Held),
    Growing(Follower),
}

impl Source {
    /// Bytes of the whole blob, waiting for them to be known.
    pub async fn total(&mut self) -> Result<u64, PullError> {
        match self {
            Source::Held(held) => Ok(held.size),
            Source::Growing(follower) => follower.sized().await,
        }
    }

    /// Whether the bytes can be had only once and in their order.
    pub fn is_passing(&self) -> bool {
        matches!(self, Source::Growing(follower) if follower.is_passing())
    }

    /// The bytes from `start` to `end`; to the end of the blob when `end` is `None`.
    pub fn body(self, digest: Digest, start: u64, end: Option<u64>) -> Body {
        if let Source::Growing(follower) = &self {
            follower.begin(start, end);
        }
        Body {
            source: self,
            digest,
            at: start,
            end,
            run: RunLength::default(),
            chunks: Chunks::default(),
            recall: Recall::default(),
        }
    }
}

/// One run of bytes of one blob.
pub struct Body {
    source: Source,
    digest: Digest,
    at: u64,
    end: Option<u64>,
    run: RunLength,
    chunks: Chunks,
    recall: Recall,
}

/// How long the next run is to be.
#[derive(Default)]
struct RunLength {
    /// When the last one was handed out, and its length.
    last: Option<(Instant, usize)>,
}

impl RunLength {
    /// At most so many bytes, now that the last run has been taken; `first` unless that was quick.
    fn most(&self, now: Instant, first: usize) -> usize {
        match self.last {
            Some((then, bytes)) if now.duration_since(then) < QUICK => (bytes * 2).clamp(first, MAX_RUN_BYTES),
            _ => first,
        }
    }
}

impl Body {
    /// The next bytes, at most 256 KiB; `None` at the end. An error ends the response short (L2).
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        match self.next_run().await? {
            Some((run, upto)) => self.read(run, upto, None).await.map(Some),
            None => Ok(None),
        }
    }

    /// The next bytes for a reader of whom nobody knows how fast it is and that may hold many of them: as many as it has shown to
    /// take quickly and `memory` allows.
    pub async fn next_within(&mut self, memory: &ChunkMemory) -> Result<Option<Bytes>, PullError> {
        let asked = Instant::now();
        let Some((run, upto)) = self.next_run().await? else {
            return Ok(None);
        };
        let bytes = self.read(run, upto, Some((memory, asked))).await?;
        self.chunks.handed_out(bytes.len());
        Ok(Some(bytes))
    }

    /// The same for who can send from a file: at most 1 MiB, and up to 8 for who takes them quickly.
    pub async fn next_chunk(&mut self) -> Result<Option<Chunk>, PullError> {
        let Some((run, upto)) = self.next_run().await? else {
            return Ok(None);
        };
        let now = Instant::now();
        let want = self.want(upto, self.run.most(now, RUN_BYTES));
        let Run::File(file) = &run else {
            return Ok(Some(Chunk::Memory(self.read(run, upto, None).await?)));
        };
        if want < MIN_RUN_BYTES {
            return Ok(Some(Chunk::Memory(self.read(run, upto, None).await?)));
        }
        let len = match !self.recall.has_asked(self.at) && is_in_memory(file, self.at, want) {
            true => {
                self.run.last = Some((now, want));
                want
            }
            false => match self.recalled(file, upto).await {
                Some(len) => len,
                None => return Ok(Some(Chunk::Memory(self.read(run, upto, None).await?))),
            },
        };
        let at = self.at;
        self.at += len as u64;
        Ok(Some(Chunk::File(Span {
            file: file.clone(),
            at,
            len: len as u64,
            more: upto > self.at,
        })))
    }

    /// Waits until the next bytes are in memory, as many as it tells, and has those behind them brought meanwhile. `None`:
    /// they have to be read.
    async fn recalled(&mut self, file: &Arc<File>, upto: u64) -> Option<usize> {
        let most = self.run.most(Instant::now(), DISK_BYTES) as u64;
        let run = |at: u64| at..upto.min(at.saturating_add(most));
        if !self.recall.has_asked(self.at) {
            self.recall.ask(file, run(self.at));
        }
        let end = self.recall.arrived().await?;
        let len = usize::try_from(end.checked_sub(self.at)?).ok()?;
        self.run.last = Some((Instant::now(), len));
        let next = run(end);
        let next_len = usize::try_from(next.end.saturating_sub(end)).ok()?;
        // Where some were gone more will be. To look first would have the kernel fetch that one page by itself.
        if next_len >= MIN_RUN_BYTES {
            self.recall.ask(file, next);
        }
        Some(len)
    }

    /// Where the next bytes are and up to where; `None` at the end.
    async fn next_run(&mut self) -> Result<Option<(Run, u64)>, PullError> {
        let (run, upto) = match &mut self.source {
            Source::Held(held) => (
                Run::File(held.file.clone()),
                self.end.unwrap_or(held.size).min(held.size),
            ),
            Source::Growing(follower) => follower.readable(self.at, self.end).await?,
        };
        Ok((upto > self.at).then_some((run, upto)))
    }

    fn want(&self, upto: u64, most: usize) -> usize {
        usize::try_from(upto.saturating_sub(self.at)).unwrap_or(most).min(most)
    }

    /// Reports a failed read of a held blob to the store, so that the next request does not meet the same lost bytes.
    async fn note_read_error(&self, error: std::io::Error) -> PullError {
        tracing::error!(digest = %self.digest, at = self.at, %error, "a blob could not be read");
        if let Source::Held(held) = &self.source {
            let held = held.clone();
            // A panic is in the log already.
            let _ = tokio::task::spawn_blocking(move || held.note_read_error(&error)).await;
        }
        PullError::Internal("a blob could not be read")
    }

    async fn read(&mut self, run: Run, upto: u64, memory: Option<(&ChunkMemory, Instant)>) -> Result<Bytes, PullError> {
        let bytes = match run {
            Run::File(file) => self.read_file(file, upto, memory).await?,
            Run::Kept(bytes) => bytes,
            Run::Window(window) => {
                let want = self.want(upto, DISK_BYTES);
                window.read(self.at, want).ok_or(PullError::LeftBehind)?
            }
        };
        if bytes.is_empty() {
            // Somebody cut the file behind our back. The digest is named, so that it can be looked for.
            tracing::error!(digest = %self.digest, at = self.at, "a blob's file ends early");
            return Err(PullError::Internal("a blob's file ends early"));
        }
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    async fn read_file(
        &mut self,
        file: Arc<File>,
        upto: u64,
        memory: Option<(&ChunkMemory, Instant)>,
    ) -> Result<Bytes, PullError> {
        let at = self.at;
        let mut buffer = match memory {
            Some((memory, asked)) => self.chunks.next(memory, asked, self.want(upto, usize::MAX)),
            None => Buffer::unleased(self.want(upto, CHUNK_BYTES)),
        };
        if !self.recall.has_asked(at)
            && let Some(len) = read_now(&file, at, buffer.memory())
        {
            return Ok(buffer.filled(len));
        }
        if self.recalled(&file, upto).await.is_some()
            && let Some(len) = read_now(&file, at, buffer.memory())
        {
            return Ok(buffer.filled(len));
        }
        if memory.is_none() {
            buffer = Buffer::unleased(self.want(upto, DISK_BYTES));
        }
        match read_waiting(file, at, buffer).await {
            Ok(read) => read,
            Err(error) => Err(self.note_read_error(error).await),
        }
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// Whether a run can be sent without waiting for the disk, judged by some of its bytes: whoever sends it must not hold
/// up other connections.
fn is_in_memory(file: &File, at: u64, len: usize) -> bool {
    let is_there = |at: u64| {
        let mut byte = [0];
        let read = rustix::io::preadv2(
            file,
            &mut [std::io::IoSliceMut::new(&mut byte)],
            at,
            ReadWriteFlags::NOWAIT,
        );
        matches!(read, Ok(1))
    };
    let apart = (len / PROBES).max(PROBE_BYTES);
    (0..len).step_by(apart).all(|n| is_there(at + n as u64)) && is_there(at + len as u64 - 1)
}

/// Reads into `buffer` if the kernel has the bytes in memory; how many.
fn read_now(file: &File, at: u64, buffer: &mut [u8]) -> Option<usize> {
    let mut slices = [std::io::IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT) {
        Ok(n) if n > 0 => return Some(n),
        // Not in memory, or a file system that cannot say.
        Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {}
        Err(error) => tracing::debug!(%error, "preadv2"),
    }
    None
}

/// Reads into `buffer` off the async threads. Outside: an error of the disk.
async fn read_waiting(file: Arc<File>, at: u64, mut buffer: Buffer) -> std::io::Result<Result<Bytes, PullError>> {
    let read = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt;
        let n = file.read_at(buffer.memory(), at)?;
        Ok::<_, std::io::Error>(buffer.filled(n))
    });
    match read.await {
        Ok(Ok(bytes)) => Ok(Ok(bytes)),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(Err(PullError::Internal("disk work was dropped"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_grow_for_who_takes_them_quickly_and_for_nobody_else() {
        let begin = Instant::now();
        let mut run = RunLength::default();
        assert_eq!(run.most(begin, RUN_BYTES), RUN_BYTES);
        let mut lengths = Vec::new();
        for _ in 0..5 {
            run.last = Some((begin, run.most(begin, RUN_BYTES)));
            lengths.push(run.most(begin, RUN_BYTES) >> 20);
        }
        assert_eq!(lengths, [2, 4, 8, 8, 8]);
        assert_eq!(run.most(begin + QUICK, RUN_BYTES), RUN_BYTES);
        // The end of what had come so far was short: that says nothing about whoever took it.
        run.last = Some((begin, 10));
        assert_eq!(run.most(begin, RUN_BYTES), RUN_BYTES);
        assert_eq!(run.most(begin, 15), 20, "what has to be waited for begins shorter");
    }
}
