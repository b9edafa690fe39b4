//! The pass that an operator starts: everything held, at the disk's speed, with progress, and repair if that is wished.
//!
//! What is damaged is put aside in any case. Repair fetches it again at once, through a repository that has shown that
//! it holds it; else the next client that asks for it does.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::hashing::{Hashing, note_finished, put_aside};
use super::idle::Idle;
use crate::oci::Digest;
use crate::pull::Pull;
use crate::store::{Store, Verdict, unix_ms};

/// Damaged blobs that are named one by one; all are counted.
const MOST_FOUND: usize = 1000;

/// What a pass is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// None has run since the start.
    #[default]
    Never,
    Running,
    Done,
    Cancelled,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Never => "never",
            Phase::Running => "running",
            Phase::Done => "done",
            Phase::Cancelled => "cancelled",
        }
    }
}

/// How far a pass has come, or what came of the last one.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub phase: Phase,
    pub repair: bool,
    pub started_ms: u64,
    pub finished_ms: Option<u64>,
    pub blobs: u64,
    pub blobs_total: u64,
    pub bytes: u64,
    pub bytes_total: u64,
    pub bad: u64,
    pub repaired: u64,
    /// Blobs that could not be read at that moment: nothing is known of them, and nothing was done to them.
    pub unreadable: u64,
    /// The first thousand damaged blobs.
    pub found: Vec<Found>,
}

/// A damaged blob.
#[derive(Clone, Debug)]
pub struct Found {
    pub digest: Digest,
    pub verdict: Verdict,
    /// Repositories that it belonged to.
    pub repositories: Vec<Arc<str>>,
    pub repair: Repair,
}

/// What was done about it, beside putting it aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is fetched when a client asks for it.
    Left,
    Fetched,
    /// Not yet: why.
    Failed(String),
}

/// A pass runs already, and without the repair that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a check without repair is running already: wait for its end, or cancel it")]
pub struct Busy;

/// Hashes what is held. One operator's pass at a time.
pub struct Verifier {
    store: Store,
    pull: Arc<Pull>,
    tasks: TaskTracker,
    stop: CancellationToken,
    progress: watch::Sender<Progress>,
    cancel: watch::Sender<CancellationToken>,
    idle: Idle,
}

impl Verifier {
    /// `tasks` counts the passes, `stop` ends them.
    pub fn new(pull: Arc<Pull>, tasks: TaskTracker, stop: CancellationToken) -> Arc<Verifier> {
        Arc::new(Verifier {
            store: pull.store().clone(),
            pull,
            tasks,
            progress: watch::Sender::default(),
            cancel: watch::Sender::new(stop.child_token()),
            stop,
            idle: Idle::default(),
        })
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn pull(&self) -> &Arc<Pull> {
        &self.pull
    }

    pub fn idle(&self) -> &Idle {
        &self.idle
    }

    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn is_running(&self) -> bool {
        self.progress.borrow().phase == Phase::Running
    }

    /// Starts a pass, or joins the one that runs if that does what is asked for.
    pub fn start(self: &Arc<Verifier>, repair: bool) -> Result<Progress, Busy> {
        let mut busy = false;
        let begun = self.progress.send_if_modified(|progress| {
            if progress.phase == Phase::Running {
                busy = repair && !progress.repair;
                return false;
            }
            *progress = Progress {
                phase: Phase::Running,
                repair,
                started_ms: unix_ms(),
                ..Progress::default()
            };
            true
        });
        if busy {
            return Err(Busy);
        }
        if begun {
            let cancel = self.stop.child_token();
            self.cancel.send_replace(cancel.clone());
            let verifier = self.clone();
            self.tasks.spawn(async move {
                let ended = Ended(&verifier);
                let phase = tokio::select! {
                    () = verifier.pass(repair) => Phase::Done,
                    () = cancel.cancelled() => Phase::Cancelled,
                };
                ended.with(phase);
            });
        }
        Ok(self.progress())
    }

    /// Ends the pass that runs. `false` if none does.
    pub fn cancel(&self) -> bool {
        let running = self.is_running();
        self.cancel.borrow().cancel();
        running
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    async fn pass(&self, repair: bool) {
        let store = self.store.clone();
        let listing = tokio::task::spawn_blocking(move || {
            let digests = store.digests_after(None, usize::MAX);
            let bytes = digests.iter().filter_map(|digest| store.size(digest)).sum();
            (digests, bytes)
        });
        let (digests, bytes_total): (Vec<Digest>, u64) = listing.await.unwrap_or_default();
        self.note(|progress| {
            progress.blobs_total = digests.len() as u64;
            progress.bytes_total = bytes_total;
        });
        for digest in &digests {
            let mut hashing = Hashing::begin(&self.store, digest).await;
            while let Some(bytes) = hashing.next().await {
                self.note(|progress| progress.bytes += bytes);
            }
            let verdict = hashing.verdict().await;
            if verdict.is_bad() {
                let found = self.deal_with(digest, verdict, repair).await;
                self.note(|progress| {
                    progress.bad += 1;
                    progress.repaired += u64::from(found.repair == Repair::Fetched);
                    if progress.found.len() < MOST_FOUND {
                        progress.found.push(found);
                    }
                });
            }
            self.note(|progress| {
                progress.blobs += 1;
                progress.unreadable += u64::from(verdict == Verdict::Unreadable);
            });
        }
        note_finished(&self.store).await;
    }

    async fn deal_with(&self, digest: &Digest, verdict: Verdict, repair: bool) -> Found {
        let repositories = self.store.links(digest);
        let is_manifest = self.store.media_type(digest).is_some();
        put_aside(&self.store, digest, verdict).await;
        let repair = match repair {
            true => self.fetch_again(digest, is_manifest, &repositories).await,
            false => Repair::Left,
        };
        Found {
            digest: *digest,
            verdict,
            repositories,
            repair,
        }
    }

    /// From the first repository whose upstream gives it. All that held it hold it again: the bytes are the same.
    async fn fetch_again(&self, digest: &Digest, is_manifest: bool, repositories: &[Arc<str>]) -> Repair {
        let mut why = "no repository is known to hold it".to_owned();
        for repository in repositories {
            let fetched = match self.pull.resolve(repository, None) {
                Ok(target) => self.pull.refetch(&target, digest, is_manifest).await,
                Err(error) => Err(error),
            };
            match fetched {
                Ok(true) => {
                    let (store, also, digest) = (self.store.clone(), repositories.to_vec(), *digest);
                    // Ends early only with the process.
                    let _ = tokio::task::spawn_blocking(move || store.link(&also, &digest)).await;
                    return Repair::Fetched;
                }
                Ok(false) => why = "it came, but could not be kept".to_owned(),
                Err(error) => why = error.to_string(),
            }
        }
        Repair::Failed(why)
    }
}

/// Nobody waits for a pass for ever, whatever becomes of its task.
struct Ended<'a>(&'a Verifier);

impl Ended<'_> {
    fn with(self, phase: Phase) {
        self.0.note(|progress| {
            progress.phase = phase;
            progress.finished_ms = Some(unix_ms());
        });
        // The next pass may have begun already: its state is not ours to end.
        std::mem::forget(self);
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.progress.send_if_modified(|progress| {
            let dangling = progress.phase == Phase::Running;
            if dangling {
                progress.phase = Phase::Cancelled;
            }
            dangling
        });
    }
}
