//! A blob for its own sake: nobody reads it, it is only to be held.

use std::sync::Arc;

use super::Pull;
use super::body::Source;
use super::error::PullError;
use super::names::Target;
use crate::oci::Digest;

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It was held, and this repository's to serve.
    Held,
    /// It came, and is held.
    Fetched,
    /// There is no room for it on the disk: it is held nowhere.
    NotKept,
}

impl Pull {
    /// Fetches a blob through the same transfer as everybody (L1) and waits until it is held; `tell` hears how many of its
    /// bytes are there. Dropped, it leaves the transfer as a client does: what is staged is resumed by the next.
    pub async fn bring(
        self: &Arc<Pull>,
        target: &Target,
        digest: &Digest,
        tell: impl Fn(u64),
    ) -> Result<Brought, PullError> {
        // Twice: the first may have joined a transfer at its very end, which brought what was lost since.
        for attempt in 0..2 {
            let mut follower = match self.open_blob(target, digest).await?.source {
                Source::Held(_) if attempt == 0 => return Ok(Brought::Held),
                Source::Held(_) => return Ok(Brought::Fetched),
                Source::Growing(follower) => follower,
            };
            if !follower.kept(&tell).await? {
                return Ok(Brought::NotKept);
            }
            drop(follower);
            // Its readers have everything a moment before it is kept.
            self.flights.ended(&target.key, digest).await;
            if self.store.shown(&target.key, digest).is_some() {
                return Ok(Brought::Fetched);
            }
        }
        Ok(Brought::NotKept)
    }
}
