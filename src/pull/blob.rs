//! Blobs: held and linked, else asked for.

use std::sync::Arc;

use super::body::Source;
use super::error::PullError;
use super::flight::{Order, blocking};
use super::names::Target;
use super::outcome::Outcome;
use super::{Pull, Question};
use crate::oci::Digest;
use crate::upstream::Client;

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
    pub outcome: Outcome,
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
            self.store.link(&target.key, digest);
            return Ok(BlobStat {
                size: Some(held),
                outcome: Outcome::Revalidated,
            });
        }
        Ok(BlobStat {
            size: size.or(self.hint(digest)),
            outcome: Outcome::Passed,
        })
    }

    /// Opens a blob for reading; returns when the status line may go out (R-D3).
    pub async fn open_blob(&self, target: &Target, digest: &Digest) -> Result<OpenBlob, PullError> {
        let mut outcome = Outcome::Hit;
        if self.store.size(digest).is_some() {
            if !self.store.linked(&target.key, digest) {
                self.confirm_blob(target, digest).await?;
                self.store.link(&target.key, digest);
                outcome = Outcome::Revalidated;
            }
            let (store, wanted) = (self.store.clone(), *digest);
            if let Some(held) = blocking(move || Ok(store.open_blob(&wanted))).await? {
                let total = Some(held.size);
                return Ok(OpenBlob {
                    source: Source::Held(held),
                    total,
                    outcome,
                });
            }
        }
        self.fetch_blob(target, digest).await
    }

    async fn fetch_blob(&self, target: &Target, digest: &Digest) -> Result<OpenBlob, PullError> {
        self.check_negative(target, &Question::Blob(*digest))?;
        let client = self.client(target)?;
        // Whoever joins a transfer that another repository began must hold the digest himself (L8).
        if let Some(beginner) = self.flights.begun_by(digest)
            && beginner != target.key
        {
            self.confirm_blob(target, digest).await?;
        }
        for again in [true, false] {
            let mut follower = self.flights.join_or_begin(self.order(target, client, digest));
            let joined = follower.joined;
            match follower.decided().await {
                Ok(state) => {
                    let outcome = if joined { Outcome::Collapsed } else { Outcome::Stored };
                    return Ok(OpenBlob {
                        source: Source::Growing(follower),
                        total: state.total,
                        outcome,
                    });
                }
                // Another repository's refusal says nothing about this one.
                Err(error) if joined && again && error.is_definite() => {}
                Err(error) => {
                    self.note_negative(target, Question::Blob(*digest), &error);
                    return Err(error);
                }
            }
        }
        Err(PullError::Internal("a transfer refused twice"))
    }

    fn order(&self, target: &Target, client: &Arc<Client>, digest: &Digest) -> Order {
        Order {
            client: client.clone(),
            repository: target.repository.clone(),
            key: target.key.clone(),
            digest: *digest,
            hint: self.hint(digest),
        }
    }

    /// Whether this repository's upstream says that it holds the blob, and its size. One HEAD for all who ask.
    async fn confirm_blob(&self, target: &Target, digest: &Digest) -> Result<Option<u64>, PullError> {
        let question = Question::Blob(*digest);
        self.check_negative(target, &question)?;
        let client = self.client(target)?.clone();
        let (repository, wanted) = (target.repository.clone(), *digest);
        let mut pending = self.blob_heads.join((target.key.clone(), *digest), || async move {
            Ok(client.head_blob(&repository, &wanted).await?.size)
        });
        pending
            .wait()
            .await
            .inspect_err(|error| self.note_negative(target, question, error))
    }
}
