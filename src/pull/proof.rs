//! How a repository has to prove that its upstream has what another one brought, before it is given out for it too (L11).
//!
//! A claim, which is what an answer to HEAD is, costs its upstream nothing. It suffices for what a public repository has:
//! anybody gets that there. What only private repositories have is given out for another one of the same upstream if the
//! registry itself confirms it, with the credentials in force and not by way of a mirror; for one of another upstream
//! only after the bytes came from there. Until then it is answered, by status, headers and body, as if it were not cached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::names::Target;
use super::{Pull, PullError};
use crate::oci::{Digest, Reference};
use crate::telemetry::stopwatch::unmeasured;
use crate::upstream::Probe;

/// Repositories that are asked as nobody, one after another, before the bytes have to prove it.
const MOST_PROBES: usize = 4;

/// How long a registry that did not answer in time is not asked again to confirm something.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(10);

/// The proof that suffices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// An answer of the upstream, or of one of its mirrors.
    Claim,
    /// An answer of the registry itself.
    Registry,
    /// The bytes.
    Bytes,
}

impl Pull {
    /// Returns the proof that is needed for a cached blob to which `target` is not linked.
    pub(super) async fn proof_of_blob(self: &Arc<Pull>, target: &Target, digest: &Digest) -> Proof {
        let holders = self.store.links(digest);
        self.proof(target, &holders, &Probe::Blob(*digest)).await
    }

    /// Returns the proof that is needed for a cached manifest to which `target` is not linked.
    pub(super) async fn proof_of_manifest(self: &Arc<Pull>, target: &Target, digest: &Digest) -> Proof {
        let holders = self.store.links(digest);
        let probe = Probe::Manifest(Reference::Digest(*digest));
        self.proof(target, &holders, &probe).await
    }

    /// Returns the proof that is needed for content that these repositories have. Where it is not known whether one is
    /// public it is asked as nobody, by `probe`, and not waited for longer than a client's patience.
    pub(super) async fn proof(self: &Arc<Pull>, target: &Target, holders: &[Arc<str>], probe: &Probe) -> Proof {
        // An index that was lost, or a bundle that is coming in: nobody knows whose it is. That there are no credentials
        // here says nothing: a bundle brings what they got elsewhere, and with an index its marks are lost.
        if holders.is_empty() {
            return Proof::Bytes;
        }
        let view = self.view();
        let mut is_of_same = false;
        let mut unknown = Vec::new();
        for key in holders {
            // Without an upstream, or closed by the operator: not to be asked, and not public.
            let holder = view.held(key);
            is_of_same |= holder.as_ref().is_some_and(|h| h.upstream.name == target.upstream.name);
            match holder.as_ref().map(|holder| self.needs_credentials_now(holder)) {
                Some(Some(false)) => return Proof::Claim,
                Some(None) => unknown.extend(holder),
                Some(Some(true)) | None => {}
            }
        }
        let has_mirrors = || self.upstream_of(target).is_some_and(|client| client.has_mirrors());
        // The registry itself is asked in either case.
        if is_of_same && !has_mirrors() {
            return Proof::Registry;
        }
        let begun = Instant::now();
        let is_heard = |holder: &&Target| !self.silent_registries.contains_key(&holder.upstream.name);
        for holder in unknown.iter().filter(is_heard).take(MOST_PROBES) {
            let left = self.timing.patience.saturating_sub(begun.elapsed());
            let asking = unmeasured(self.needs_credentials(holder, probe));
            match tokio::time::timeout(left, asking).await {
                Ok(false) => return Proof::Claim,
                Ok(true) => {}
                // The question goes on; its answer is for those who come later.
                Err(_) => {
                    self.silent_registries.insert(holder.upstream.name.clone(), ());
                    break;
                }
            }
        }
        match is_of_same {
            true => Proof::Registry,
            false => Proof::Bytes,
        }
    }

    /// Waits for the word of a registry that has mirrors, which may have what it has not, or cannot be reached to confirm:
    /// no longer than a client's patience, and nobody is to see that. `None`: it confirms nothing.
    pub(super) async fn beside_mirrors<T>(
        &self,
        target: &Target,
        asking: impl Future<Output = Result<T, PullError>>,
    ) -> Option<T> {
        let name = &target.upstream.name;
        if self.silent_registries.contains_key(name) {
            return None;
        }
        let said = tokio::time::timeout(self.timing.patience, unmeasured(asking)).await;
        if said
            .as_ref()
            .map_or(true, |said| said.as_ref().is_err_and(PullError::is_transient))
        {
            self.silent_registries.insert(name.clone(), ());
        }
        said.ok()?.ok()
    }
}
