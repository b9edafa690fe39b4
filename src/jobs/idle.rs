//! The background pass: everything held is hashed once in a while, slowly, when nobody needs the disk.
//!
//! It goes on where it stopped, also after a restart. What is damaged is put aside, and fetched again when a client
//! asks for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::hashing::{Hashing, note_finished, put_aside};
use super::verify::Verifier;
use crate::oci::Digest;
use crate::store::now_by_clock_of;

/// Digests taken from the index at once.
const BATCH: usize = 1024;
/// Work that a restart may cost: the place is written down after so many blobs or bytes.
const NOTE_BLOBS: u64 = 64;
const NOTE_BYTES: u64 = 256 << 20;
/// How often an idle pass looks whether it may go on, or whether it is time again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const LONGEST_NAP: Duration = Duration::from_secs(3600);

/// How gently.
#[derive(Clone, Debug)]
pub struct Pace {
    pub bytes_per_second: u64,
    /// It goes on when nothing was answered for so long.
    pub quiet: Duration,
    /// From the end of a pass to the beginning of the next.
    pub every: Duration,
    /// From the start of the process to the first blob.
    pub first_after: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            bytes_per_second: 32 << 20,
            quiet: Duration::from_secs(1),
            every: Duration::from_secs(7 * 24 * 3600),
            first_after: Duration::from_secs(300),
        }
    }
}

impl Pace {
    fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.max(1) as f64)
    }
}

/// How far the background pass has come, for operators.
#[derive(Debug, Default)]
pub struct Idle {
    pub blobs: AtomicU64,
    pub bytes: AtomicU64,
    pub bad: AtomicU64,
}

impl Verifier {
    /// Runs passes for as long as it is polled. Dropping it loses a few blobs' work.
    pub async fn run_idle(&self, pace: &Pace) {
        tokio::time::sleep(pace.first_after).await;
        loop {
            // A pass that ended in the future is a clock that was set back. It counts as one that ends now, or none
            // would be due for as long as that.
            let finished_ms = self.store().verify_finished_ms();
            if finished_ms.is_some_and(|finished_ms| finished_ms > now_by_clock_of(finished_ms)) {
                note_finished(self.store()).await;
            }
            match self.until_due(pace.every) {
                Duration::ZERO => self.idle_pass(pace).await,
                wait => tokio::time::sleep(wait.min(LONGEST_NAP)).await,
            }
        }
    }

    fn until_due(&self, every: Duration) -> Duration {
        let Some(finished_ms) = self.store().verify_finished_ms() else {
            return Duration::ZERO;
        };
        every.saturating_sub(Duration::from_millis(
            now_by_clock_of(finished_ms).saturating_sub(finished_ms),
        ))
    }

    /// One pass, from where the last one stopped to the end.
    pub async fn idle_pass(&self, pace: &Pace) {
        let store = self.store();
        let mut cursor = store.verify_cursor();
        let (mut blobs, mut bytes) = (0, 0);
        loop {
            let batch = self.batch_after(cursor).await;
            if batch.is_empty() {
                note_finished(store).await;
                tracing::info!(
                    blobs = self.idle().blobs.load(Ordering::Relaxed),
                    "everything held was hashed again"
                );
                return;
            }
            for digest in batch {
                self.may_go_on(pace).await;
                let hashed = self.idle_check(&digest, pace).await;
                (blobs, bytes) = (blobs + 1, bytes + hashed);
                cursor = Some(digest);
                if blobs >= NOTE_BLOBS || bytes >= NOTE_BYTES {
                    store.set_verify_cursor(&digest);
                    (blobs, bytes) = (0, 0);
                }
            }
            if let Some(digest) = &cursor {
                store.set_verify_cursor(digest);
            }
        }
    }

    async fn batch_after(&self, cursor: Option<Digest>) -> Vec<Digest> {
        let store = self.store().clone();
        let batch = tokio::task::spawn_blocking(move || store.digests_after(cursor.as_ref(), BATCH));
        batch.await.unwrap_or_default()
    }

    async fn idle_check(&self, digest: &Digest, pace: &Pace) -> u64 {
        let mut hashed = 0;
        let mut hashing = Hashing::begin(self.store(), digest).await;
        while let Some(bytes) = hashing.next().await {
            hashed += bytes;
            self.idle().bytes.fetch_add(bytes, Ordering::Relaxed);
            tokio::time::sleep(pace.time_for(bytes)).await;
            self.may_go_on(pace).await;
        }
        let verdict = hashing.verdict().await;
        self.idle().blobs.fetch_add(1, Ordering::Relaxed);
        if verdict.is_bad() {
            self.idle().bad.fetch_add(1, Ordering::Relaxed);
            put_aside(self.store(), digest, verdict).await;
        }
        hashed
    }

    /// Waits while clients are served, something is fetched, or an operator's own pass runs.
    async fn may_go_on(&self, pace: &Pace) {
        while self.is_running() || !self.pull().is_quiet(pace.quiet) {
            tokio::time::sleep(LOOK_AGAIN.min(pace.quiet)).await;
        }
    }
}
