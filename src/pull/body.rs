//! A response's bytes, from a held blob, one that is still coming or one that only passes: the reader cannot tell.

use std::fs::File;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::{Errno, ReadWriteFlags};

use super::error::PullError;
use super::flight::Follower;
use super::passing::{Passing, Stream};
use crate::oci::Digest;
use crate::store::Held;

/// Bytes a reader takes at once; what a slow client costs in memory.
const CHUNK_BYTES: usize = 256 * 1024;

/// Where a blob's bytes come from.
#[derive(Clone)]
pub enum Source {
    Held(Held),
    Growing {
        follower: Follower,
        /// How to go on if the disk fails.
        otherwise: Passing,
    },
    /// Nowhere here: the disk has failed.
    Passing(Passing),
}

impl Source {
    /// Bytes of the whole blob, waiting for them to be known.
    pub async fn total(&mut self) -> Result<u64, PullError> {
        match self {
            Source::Held(held) => Ok(held.size),
            Source::Growing { follower, .. } => follower.sized().await,
            Source::Passing(passing) => passing
                .total
                .ok_or(PullError::Internal("the size of a blob that only passes is not known")),
        }
    }

    /// Whether every run of bytes costs a transfer.
    pub fn is_passing(&self) -> bool {
        matches!(self, Source::Passing(_))
    }

    /// The bytes from `start` to `end`; to the end of the blob when `end` is `None`.
    pub fn body(self, digest: Digest, start: u64, end: Option<u64>) -> Body {
        Body {
            source: self,
            digest,
            at: start,
            end,
            passing: None,
        }
    }
}

/// One run of bytes of one blob.
pub struct Body {
    source: Source,
    digest: Digest,
    at: u64,
    end: Option<u64>,
    passing: Option<Box<Stream>>,
}

impl Body {
    /// The next bytes, at most 256 KiB; `None` at the end. An error ends the response short (L2).
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        let (file, upto) = match &mut self.source {
            Source::Held(held) => (held.file.clone(), self.end.unwrap_or(held.size).min(held.size)),
            Source::Growing { follower, otherwise } => match follower.readable(self.at, self.end).await {
                Err(error) if error.is_disk() => {
                    tracing::warn!(digest = %self.digest, at = self.at, %error, "going on without the disk");
                    self.source = Source::Passing(otherwise.clone());
                    return self.pass().await;
                }
                readable => readable?,
            },
            Source::Passing(_) => return self.pass().await,
        };
        let want = usize::try_from(upto.saturating_sub(self.at))
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        if want == 0 {
            return Ok(None);
        }
        let bytes = read_at(file, self.at, want).await?;
        if bytes.is_empty() {
            // Somebody cut the file behind our back. The digest is named, so that it can be looked for.
            tracing::error!(digest = %self.digest, at = self.at, "a blob's file ends early");
            return Err(PullError::Internal("a blob's file ends early"));
        }
        self.at += bytes.len() as u64;
        Ok(Some(bytes))
    }

    async fn pass(&mut self) -> Result<Option<Bytes>, PullError> {
        let Source::Passing(passing) = &self.source else {
            return Err(PullError::Internal("this blob does not pass"));
        };
        let stream = self.passing.get_or_insert_with(|| Box::new(passing.stream()));
        let bytes = stream.next(self.at, self.end).await?;
        self.at += bytes.as_ref().map_or(0, |b| b.len() as u64);
        Ok(bytes)
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
