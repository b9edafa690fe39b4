//! A response's bytes, from a held blob or one that is still coming: the reader cannot tell.

use std::fs::File;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};

use super::error::PullError;
use super::flight::{Follower, Run};
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
        }
    }
}

/// One run of bytes of one blob.
pub struct Body {
    source: Source,
    digest: Digest,
    at: u64,
    end: Option<u64>,
}

impl Body {
    /// The next bytes, at most 256 KiB; `None` at the end. An error ends the response short (L2).
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        let (run, upto) = match &mut self.source {
            Source::Held(held) => (
                Run::File(held.file.clone()),
                self.end.unwrap_or(held.size).min(held.size),
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
            Run::Kept(bytes) => bytes,
            Run::Window(window) => window.read(self.at, want).ok_or(PullError::LeftBehind)?,
        };
        if bytes.is_empty() {
            // Somebody cut the file behind our back. The digest is named, so that it can be looked for.
            tracing::error!(digest = %self.digest, at = self.at, "a blob's file ends early");
            return Err(PullError::Internal("a blob's file ends early"));
        }
        self.at += bytes.len() as u64;
        Ok(Some(bytes))
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
