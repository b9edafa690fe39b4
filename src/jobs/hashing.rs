//! One blob hashed off the async threads, a piece at a time, and what becomes of it when it is damaged.

use crate::oci::Digest;
use crate::store::{Check, Store, Verdict, unix_ms};

/// A held blob being hashed. `None` inside: it is gone, or its task was dropped.
pub struct Hashing(Option<Check>);

impl Hashing {
    pub async fn begin(store: &Store, digest: &Digest) -> Hashing {
        let (store, digest) = (store.clone(), *digest);
        let opening = tokio::task::spawn_blocking(move || store.begin_check(&digest));
        Hashing(opening.await.ok().flatten())
    }

    /// The next piece: its bytes, or `None` at the end.
    pub async fn next(&mut self) -> Option<u64> {
        let mut check = self.0.take()?;
        let stepping = tokio::task::spawn_blocking(move || {
            let bytes = check.step();
            (check, bytes)
        });
        let (check, bytes) = stepping.await.ok()?;
        self.0 = Some(check);
        metrics::counter!("larder_verified_bytes_total").increment(bytes);
        (bytes > 0).then_some(bytes)
    }

    /// What came of it, after the last piece.
    pub async fn verdict(self) -> Verdict {
        let Some(check) = self.0 else {
            return Verdict::Gone;
        };
        let verdict = tokio::task::spawn_blocking(move || check.finish()).await;
        let verdict = verdict.unwrap_or(Verdict::Gone);
        if !matches!(verdict, Verdict::Gone | Verdict::Unreadable) {
            metrics::counter!("larder_verified_blobs_total").increment(1);
        }
        verdict
    }
}

/// Notes that everything held was hashed.
pub async fn note_finished(store: &Store) {
    let store = store.clone();
    let _ = tokio::task::spawn_blocking(move || store.set_verify_finished(unix_ms())).await;
}

/// Puts a damaged blob aside, whoever found it: it must not be served again (L2).
pub async fn put_aside(store: &Store, digest: &Digest, verdict: Verdict) {
    metrics::counter!("larder_verify_bad_total", "found" => verdict.as_str()).increment(1);
    let (store, digest) = (store.clone(), *digest);
    // A panic of that work is in the log already.
    let _ = tokio::task::spawn_blocking(move || store.quarantine(&digest)).await;
}
