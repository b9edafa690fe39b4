//! What operators ask of the service: a tag's truth now, a damaged blob again, and how its upstreams are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::PullError;
use super::manifest::{ManifestAnswer, Want};
use super::names::Target;
use super::tally::Tally;
use super::{Pull, Question};
use crate::oci::{Digest, Reference, Tag};

impl Pull {
    /// Asks the upstream about a tag now, however young its record is, and fetches what it points at if that is not
    /// held. Nothing stale is given: the error says what the upstream said, and what is held stays. Nor is an answer to
    /// what was asked before, or that is kept because it came late. Waits as long as a client does.
    pub async fn refresh(self: &Arc<Pull>, target: &Target, tag: &Tag) -> Result<ManifestAnswer, PullError> {
        self.client(target)?;
        // An operator knows what it costs.
        let key = (target.scope(), tag.clone(), Want::Body, false);
        self.tag_questions.forget(&key);
        self.tag_bodies.forget(&(target.scope(), tag.clone()));
        let (pull, to, asked) = (self.clone(), target.clone(), tag.clone());
        let mut pending =
            self.tag_questions.join(
                key,
                || async move { pull.resolve_tag(&to, &asked, Want::Body, false).await },
            );
        let answer = self.client_wait(target).over(pending.wait()).await?;
        for question in [Question::Tag(tag.clone()), Question::TagHead(tag.clone())] {
            self.negatives.invalidate(&(target.key.clone(), question));
        }
        Ok(answer)
    }

    /// Fetches a blob or manifest for its own sake and waits until it is held; `false` if it could not be kept.
    pub async fn refetch(
        self: &Arc<Pull>,
        target: &Target,
        digest: &Digest,
        is_manifest: bool,
    ) -> Result<bool, PullError> {
        if is_manifest {
            self.manifest(target, &Reference::Digest(*digest), Want::Body).await?;
            return Ok(self.store.shown(&target.key, digest).is_some());
        }
        // Twice: the first may have joined a transfer at its very end, which brought what was lost since.
        for _ in 0..2 {
            let open = self.open_blob(target, digest).await?;
            let mut body = open.source.body(*digest, 0, open.total);
            while body.next().await?.is_some() {}
            drop(body);
            // Its readers have everything a moment before it is kept.
            self.flights.ended(&target.key, digest).await;
            if self.store.shown(&target.key, digest).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was answered since the start.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether nothing was answered for so long and nothing is being fetched.
    pub fn is_quiet(&self, quiet: Duration) -> bool {
        self.transfers() == 0 && self.tally.quiet_for() >= quiet
    }

    /// Upstreams that failed just now and are not waited for, and why.
    pub fn troubles(&self) -> Vec<(String, &'static str)> {
        let now = Instant::now();
        let troubled = self.troubled();
        let mut troubles: Vec<_> = troubled
            .iter()
            .filter(|(_, (until, _))| now < *until)
            .map(|(name, (_, reason))| (name.to_string(), *reason))
            .collect();
        troubles.sort_unstable();
        troubles
    }
}
