//! Blobs: held and linked, else asked for.

use std::sync::Arc;

use super::blocking::blocking;
use super::body::Source;
use super::error::PullError;
use super::flight::{Follower, Order, Place};
use super::names::Target;
use super::outcome::Outcome;
use super::{Pull, Question};
use crate::oci::Digest;
use crate::telemetry::trace::{self, Kind, Span};
use crate::upstream::{Client, ErrorKind, UpstreamError};

/// Transfers of other repositories that may fail under a client before it is told.
const FOREIGN_FAILURES: u32 = 4;

/// What a HEAD of a blob answers.
#[derive(Clone, Debug)]
pub struct BlobStat {
    /// Bytes, where the upstream tells them.
    pub size: Option<u64>,
    pub outcome: Outcome,
}

/// A blob whose response may begin.
pub struct OpenBlob {
    pub source: Source,
    /// Bytes; `None` while an upstream that does not announce them is still sending.
    pub total: Option<u64>,
    /// Bytes that a manifest of this repository claims: who asks has them from there, too.
    pub claimed: Option<u64>,
    pub outcome: Outcome,
}

/// The wait for a transfer's first bytes, told where it is somebody else's: what it does is in the trace of that request.
fn wait_span(follower: &Follower) -> Span {
    if !follower.joined {
        return Span::default();
    }
    let span = trace::start("wait for transfer", Kind::Internal);
    span.link(follower.trace());
    span
}

impl Pull {
    /// Size and existence. A blob that is not held is asked for by HEAD; nothing is fetched.
    pub async fn stat_blob(&self, target: &Target, digest: &Digest) -> Result<BlobStat, PullError> {
        if let Some(size) = self.store.size(digest)
            && self.store.linked(&target.key, digest)
        {
            return Ok(BlobStat {
                size: Some(size),
                outcome: Outcome::Hit,
            });
        }
        let size = self.confirm_blob(target, digest).await?;
        // Held, but shown by this repository only now (L8).
        if let Some(held) = self.store.size(digest) {
            self.note_link(target, digest).await;
            return Ok(BlobStat {
                size: Some(held),
                outcome: Outcome::Revalidated,
            });
        }
        Ok(BlobStat {
            size: size.or(self.hint(target, digest)),
            outcome: Outcome::Passed,
        })
    }

    /// Opens a blob for reading; returns when the status line may go out (R-D3).
    pub async fn open_blob(&self, target: &Target, digest: &Digest) -> Result<OpenBlob, PullError> {
        loop {
            match self.open_held(target, digest).await {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => {}
                // Held, and out of reach for the moment: what the upstream says of it is no reason to deny it (L3).
                Err(error) if error.is_unreadable() => match self.fetch_blob(target, digest, true).await {
                    Ok(Some(passing)) => return Ok(passing),
                    Ok(None) | Err(_) => return Err(error),
                },
                Err(error) => return Err(error),
            }
            // `None`: its transfer ended just now.
            if let Some(coming) = self.fetch_blob(target, digest, false).await? {
                return Ok(coming);
            }
        }
    }

    async fn open_held(&self, target: &Target, digest: &Digest) -> Result<Option<OpenBlob>, PullError> {
        if self.store.size(digest).is_none() {
            return Ok(None);
        }
        let mut outcome = Outcome::Hit;
        if !self.store.linked(&target.key, digest) {
            self.confirm_blob(target, digest).await?;
            self.note_link(target, digest).await;
            outcome = Outcome::Revalidated;
        }
        let held = match self.store.open_hot(digest) {
            Some(held) => Some(held),
            None => {
                let (store, wanted) = (self.store.clone(), *digest);
                blocking(move || store.open_blob(&wanted)).await?
            }
        };
        Ok(held.map(|held| OpenBlob {
            total: Some(held.size),
            claimed: None,
            source: Source::Held(held),
            outcome,
        }))
    }

    /// `None` if it is held by now. `is_held`: it is, and cannot be read; then its bytes are not kept.
    async fn fetch_blob(&self, target: &Target, digest: &Digest, is_held: bool) -> Result<Option<OpenBlob>, PullError> {
        self.check_negative(target, &Question::Blob(*digest))?;
        let client = self.client(target)?;
        let mut shown = false;
        let mut foreign_failures = 0;
        loop {
            let order = Order {
                is_held,
                ..self.order(target, &client, digest)
            };
            let mut follower = match self.flights.join_or_begin(order, shown) {
                Place::Among(follower) => follower,
                Place::Held => return Ok(None),
                // Whoever joins a transfer that another repository began must hold the digest himself (L8).
                Place::Foreign => {
                    self.confirm_blob(target, digest).await?;
                    shown = true;
                    continue;
                }
            };
            let wait = wait_span(&follower);
            let decided = follower.decided().await;
            if let Err(error) = &decided {
                wait.fail(error.as_str(), error);
            }
            drop(wait);
            match decided {
                Ok(state) => {
                    let outcome = match follower.joined {
                        true => Outcome::Collapsed,
                        false if state.window.is_some() => Outcome::Passed,
                        false => Outcome::Stored,
                    };
                    return Ok(Some(OpenBlob {
                        source: Source::Growing(follower),
                        total: state.total,
                        claimed: self.hint(target, digest),
                        outcome,
                    }));
                }
                // Another repository's refusal, or its registry's trouble, says nothing about this one.
                Err(error) if follower.is_foreign_to(&target.key) => {
                    foreign_failures += 1;
                    if foreign_failures >= FOREIGN_FAILURES {
                        return Err(error);
                    }
                }
                Err(error) => {
                    self.note_negative(target, Question::Blob(*digest), &error);
                    return Err(error);
                }
            }
        }
    }

    fn order(&self, target: &Target, client: &Arc<Client>, digest: &Digest) -> Order {
        Order {
            client: client.clone(),
            repository: target.repository.clone(),
            key: target.key.clone(),
            digest: *digest,
            hint: self.hint(target, digest),
            is_held: false,
        }
    }

    /// Whether this repository's upstream says that it holds the blob, and its size. One HEAD for all who ask.
    async fn confirm_blob(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, PullError> {
        let question = Question::Blob(*digest);
        self.check_negative(target, &question)?;
        let client = self.client(target)?.clone();
        let (repository, wanted) = (target.repository.clone(), *digest);
        let mut pending = self.blob_heads.join((target.scope(), *digest), || async move {
            match client.head_blob(&repository, &wanted).await {
                Ok(head) => Ok(head.size),
                // R-U27: where HEAD is not understood only a GET can be believed. Its bytes are not needed.
                Err(UpstreamError {
                    kind:
                        ErrorKind::Status {
                            status: 400 | 405 | 501,
                            ..
                        },
                    ..
                }) => Ok(client.get_blob(&repository, &wanted, 0).await?.total),
                Err(error) => Err(error.into()),
            }
        });
        let size = pending
            .wait()
            .await
            .inspect_err(|error| self.note_negative(target, question, error))?;
        self.note_privacy(target);
        Ok(size)
    }
}
