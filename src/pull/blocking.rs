//! Disk work, off the async threads.

use super::error::PullError;
use crate::oci::Digest;
use crate::store::StoreError;
use crate::telemetry::stopwatch::{Part, measure};
use crate::telemetry::trace;

/// Runs disk work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PullError> {
    match measure(Part::Store, tokio::task::spawn_blocking(work)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(PullError::Internal("disk work was dropped")),
    }
}

/// What has been served could not be kept. A disk that fails, or is full, is told of by the store, and not each time.
pub(super) fn tell_not_kept(digest: &Digest, error: &PullError) {
    match error {
        PullError::Store(StoreError::Io { .. } | StoreError::NoRoom(_)) => {
            tracing::debug!(%digest, %error, "served but not kept");
        }
        _ => tracing::error!(%digest, %error, trace_id = trace::id(), "served but not kept"),
    }
}
