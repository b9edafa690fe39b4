//! A response's bytes, from a held blob or one that is still coming: the reader cannot tell.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};

use super::error::PullError;
use super::flight::{Follower, Release, Run};
use crate::oci::Digest;
use crate::store::Held;

/// Bytes a reader takes at once; what a slow client costs in memory.
const CHUNK_BYTES: usize = 256 * 1024;

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
            tail: VecDeque::new(),
        }
    }
}

/// One run of bytes of one blob.
pub struct Body {
    source: Source,
    digest: Digest,
    at: u64,
    end: Option<u64>,
    /// The last bytes of a part of what passes through memory, read in time, until the verdict (L2). At most
    /// [`super::flight::HOLD_BACK_BYTES`].
    tail: VecDeque<Bytes>,
}

impl Body {
    /// The next bytes, at most 256 KiB; `None` at the end. An error ends the response short (L2).
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        while self.tail.is_empty() || self.end.is_some_and(|end| self.at < end) {
            match self.read().await? {
                None => break,
                Some((bytes, Release::Now)) if self.tail.is_empty() => return Ok(Some(bytes)),
                Some((bytes, _)) => self.tail.push_back(bytes),
            }
        }
        if let Source::Growing(follower) = &mut self.source
            && !self.tail.is_empty()
        {
            follower.advance(self.at);
            follower.verified().await?;
        }
        Ok(self.tail.pop_front())
    }

    /// The next bytes, and whether they may be sent at once.
    async fn read(&mut self) -> Result<Option<(Bytes, Release)>, PullError> {
        let (run, upto, release) = match &mut self.source {
            Source::Held(held) => (
                Run::File(held.file.clone()),
                self.end.unwrap_or(held.size).min(held.size),
                Release::Now,
            ),
            Source::Growing(follower) => follower.readable(self.at, self.end).await?,
        };
        let want = usize::try_from(upto.saturating_sub(self.at))
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        if want == 0 {
            return Ok(None);
        }
        let bytes = match run {
            Run::File(file) => read_at(file, self.at, want).await?,
            Run::Window(window) => window.read(self.at, want).ok_or(PullError::LeftBehind)?,
        };
        if bytes.is_empty() {
            // Somebody cut the file behind our back. The digest is named, so that it can be looked for.
            tracing::error!(digest = %self.digest, at = self.at, "a blob's file ends early");
            return Err(PullError::Internal("a blob's file ends early"));
        }
        self.at += bytes.len() as u64;
        Ok(Some((bytes, release)))
    }
}

/// Reads at most `want` bytes: at once if the kernel has them in memory, else off the async threads.
async fn read_at(file: Arc<File>, at: u64, want: usize) -> Result<Bytes, PullError> {
    let mut buffer = BytesMut::zeroed(want);
    match rustix::io::preadv2(
        &*file,
        &mut [std::io::IoSliceMut::new(&mut buffer)],
        at,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(n) if n > 0 => {
            buffer.truncate(n);
            return Ok(buffer.freeze());
        }
        // Not in memory, or a file system that cannot say.
        Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {}
        Err(error) => tracing::debug!(%error, "preadv2"),
    }
    let read = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt;
        let n = file.read_at(&mut buffer, at)?;
        buffer.truncate(n);
        Ok::<_, std::io::Error>(buffer.freeze())
    });
    match read.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            tracing::error!(%error, at, "a blob could not be read");
            Err(PullError::Internal("a blob could not be read"))
        }
        Err(_) => Err(PullError::Internal("disk work was dropped")),
    }
}
