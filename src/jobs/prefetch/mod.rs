//! Images that are fetched before anybody asks for them.
//!
//! What people write is read by [`crate::config::wanted`]. `plan` finds what an image consists of, `job` fetches it and tells
//! `progress`; `used` says which platforms are meant where nobody does; `schedule` begins jobs by the clock. [`Prefetcher`]
//! keeps the jobs of this process. All of it asks and fetches by way of [`Pull`], as clients do: the same questions, transfers,
//! verification and links.

mod job;
mod plan;
mod progress;
mod schedule;
mod used;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use job::Job;
pub use progress::{Image, ImageState, Phase, Progress, Totals};
pub use schedule::{BeginError, Scheduled};

use crate::config::Prefetch;
use crate::config::wanted::{Platforms, Wanted};
use crate::pull::Pull;
use crate::store::unix_ms;

/// Jobs that run at the same time.
const MOST_RUNNING: usize = 8;
/// Ended jobs that can still be looked at.
const MOST_KEPT: usize = 30;
/// Blobs that come at the same time, where nobody says.
pub const PARALLEL: usize = 6;

/// What a job is to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// For people and metrics: that of the configuration, or `command`.
    pub name: String,
    pub wanted: Vec<Wanted>,
    /// `None`: what this site uses.
    pub platforms: Option<Platforms>,
    /// Whether signatures, SBOMs and attestations come along.
    pub referrers: bool,
    /// Whether to stop when it is known what would be fetched.
    pub dry_run: bool,
    /// Blobs at the same time.
    pub parallel: usize,
}

/// How long a job bears with an upstream.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Further attempts at what failed for a moment.
    pub retries: u32,
    /// Before the first of them; then twice as long.
    pub backoff: Duration,
    /// An upstream that asks to be left alone for longer ends what needs it.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            retries: 2,
            backoff: Duration::from_millis(500),
            longest_pause: Duration::from_secs(600),
        }
    }
}

/// Enough jobs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_RUNNING} prefetches run already: wait for one to end, or cancel it")]
pub struct TooMany;

/// The jobs of this process, those that run and the last that ran.
pub struct Prefetcher {
    pull: Arc<Pull>,
    tasks: TaskTracker,
    stop: CancellationToken,
    patience: Patience,
    schedules: ArcSwap<Vec<Arc<Scheduled>>>,
    /// Told when there are others.
    rescheduled: Notify,
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    last_id: u64,
    list: VecDeque<Arc<Job>>,
}

impl Prefetcher {
    /// `tasks` counts the jobs, `stop` ends them.
    pub fn new(
        pull: Arc<Pull>,
        tasks: TaskTracker,
        stop: CancellationToken,
        patience: Patience,
        schedules: &[Prefetch],
    ) -> Arc<Prefetcher> {
        let prefetcher = Arc::new(Prefetcher {
            pull,
            tasks,
            stop,
            patience,
            schedules: ArcSwap::default(),
            rescheduled: Notify::new(),
            jobs: Mutex::default(),
        });
        prefetcher.set_schedules(schedules);
        prefetcher
    }

    pub fn start(&self, request: Request) -> Result<Arc<Job>, TooMany> {
        let job = {
            let mut jobs = self.jobs();
            let running = jobs.list.iter().filter(|job| job.phase() == Phase::Running).count();
            if running >= MOST_RUNNING {
                return Err(TooMany);
            }
            jobs.last_id += 1;
            let job = Arc::new(Job::new(
                jobs.last_id,
                request,
                self.pull.clone(),
                self.patience.clone(),
                self.stop.child_token(),
            ));
            jobs.list.push_back(job.clone());
            while jobs.list.len() > MOST_KEPT + MOST_RUNNING {
                let ended = jobs.list.iter().position(|job| job.phase() != Phase::Running);
                let Some(at) = ended else { break };
                jobs.list.remove(at);
            }
            job
        };
        let running = job.clone();
        self.tasks.spawn(async move {
            let ended = Ended(&running);
            let whole = tokio::select! {
                () = running.run() => true,
                () = running.cancel.cancelled() => false,
            };
            ended.with(whole).await;
        });
        Ok(job)
    }

    pub fn job(&self, id: u64) -> Option<Arc<Job>> {
        self.jobs().list.iter().find(|job| job.id == id).cloned()
    }

    /// The oldest first.
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.jobs().list.iter().cloned().collect()
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody waits for a job for ever, whatever becomes of its task.
struct Ended<'a>(&'a Arc<Job>);

impl Ended<'_> {
    async fn with(self, whole: bool) {
        let job = self.0;
        let totals = job.look(Progress::totals);
        let phase = match (
            whole,
            job.look(|p| p.images.iter().any(|image| image.state == ImageState::Failed)),
        ) {
            (false, _) => Phase::Cancelled,
            (true, true) => Phase::Incomplete,
            (true, false) => Phase::Done,
        };
        if !job.request.dry_run {
            tell(job, phase, &totals);
            if totals.held > 0 {
                let (store, what) = (job.pull().store().clone(), format!("prefetch {}", job.request.name));
                // Ends early only with the process.
                let _ = tokio::task::spawn_blocking(move || store.set_filled(unix_ms(), &what)).await;
            }
        }
        end(job, phase);
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        end(self.0, Phase::Cancelled);
    }
}

fn end(job: &Job, phase: Phase) {
    if job.phase() == Phase::Running {
        job.note(|progress| {
            progress.phase = phase;
            progress.finished_ms = Some(unix_ms());
            progress.waits = None;
        });
    }
}

fn tell(job: &Job, phase: Phase, totals: &Totals) {
    let name = || job.request.name.clone();
    metrics::counter!("larder_prefetch_runs_total", "prefetch" => name(), "result" => phase.as_str()).increment(1);
    metrics::counter!("larder_prefetch_images_total", "prefetch" => name(), "result" => "held")
        .increment(totals.held as u64);
    metrics::counter!("larder_prefetch_images_total", "prefetch" => name(), "result" => "failed")
        .increment(totals.failed as u64);
    if phase == Phase::Done {
        metrics::gauge!("larder_prefetch_last_success_timestamp_seconds", "prefetch" => name())
            .set(unix_ms() as f64 / 1000.0);
    }
    tracing::info!(
        job = %job.request.name,
        result = phase.as_str(),
        images = totals.images,
        failed = totals.failed,
        fetched_bytes = totals.fetched_bytes,
        "a prefetch has ended"
    );
}
