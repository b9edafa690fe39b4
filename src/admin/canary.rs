//! Canaries for the checkup: images that nobody but this proxy can answer, and who asked for them.

use super::views::{CanaryRequest, CanarySeen, CanaryView};
use super::{Admin, AdminError};
use crate::pull::SeenRequest;
use crate::pull::canary::REPOSITORY;

impl Admin {
    /// Makes one for a client of this architecture, in Go's words.
    pub fn make_canary(&self, architecture: &str) -> Result<CanaryView, AdminError> {
        let made = self.inner.pull.canaries().make(architecture)?;
        Ok(CanaryView {
            repository: REPOSITORY.to_owned(),
            tag: made.tag,
            digest: made.digest.to_string(),
            life_seconds: made.life.as_secs(),
        })
    }

    /// The requests that came for one.
    pub fn canary(&self, tag: &str) -> Result<CanarySeen, AdminError> {
        let seen = self.inner.pull.canaries().seen(tag).ok_or(AdminError::NoCanary)?;
        Ok(CanarySeen {
            requests: seen.into_iter().map(CanaryRequest::of).collect(),
        })
    }

    /// Ends one before its time, and shows what came for it.
    pub fn end_canary(&self, tag: &str) -> Result<CanarySeen, AdminError> {
        let seen = self.canary(tag)?;
        self.inner.pull.canaries().remove(tag);
        Ok(seen)
    }
}

impl CanaryRequest {
    fn of(seen: SeenRequest) -> CanaryRequest {
        CanaryRequest {
            kind: seen.kind.to_owned(),
            by: if seen.by_digest { "digest" } else { "tag" }.to_owned(),
            image: seen.image,
            path: seen.path,
            client: seen.client,
            allowed: seen.is_allowed,
        }
    }
}
