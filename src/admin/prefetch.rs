//! Fetching ahead, for operators: jobs are begun, looked at and cancelled; and what a site wished for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Admin, AdminError};
use crate::config::BY_COMMAND;
use crate::config::wanted::{MAX_IMAGES, Platforms, Wanted, parse_line};
use crate::jobs::prefetch::{Image, Job, PARALLEL, Phase, Progress, Request, Scheduled, Totals};
use crate::store::Wish;

/// Blobs that one job may fetch at the same time.
pub const MOST_PARALLEL: usize = 64;

/// What is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefetchOrder {
    /// One of the configuration's `[[prefetch]]`, by name, whose images, platforms and referrers it says; then none are named here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<String>,
    /// Lines, as in a list file: `alpine:3.22`, `alpine:3.* newest=3`.
    #[serde(default)]
    pub images: Vec<String>,
    /// `all`, or platforms; left out: what this site uses.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Whether signatures, SBOMs and attestations come along.
    #[serde(default = "yes")]
    pub referrers: bool,
    /// Whether to stop when it is known what would be fetched.
    #[serde(default)]
    pub dry_run: bool,
    /// Blobs at the same time, 1 to 64.
    #[serde(default)]
    pub parallel: Option<usize>,
}

fn yes() -> bool {
    true
}

/// A job, with those of its images that have changed since it was looked at last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchView {
    pub id: u64,
    /// That of the configuration, or `command`.
    pub name: String,
    /// `running`, `done`, `incomplete` or `cancelled`.
    pub state: String,
    pub dry_run: bool,
    pub referrers: bool,
    pub started_ms: u64,
    pub finished_ms: Option<u64>,
    /// What is taken of images for several platforms, and who says so.
    pub platforms: Vec<String>,
    pub platforms_from: String,
    /// Why it waits, while it does.
    pub waits: Option<String>,
    /// Grows with every change.
    pub version: u64,
    pub totals: PrefetchTotals,
    /// Left out in lists of jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PrefetchImage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchTotals {
    pub images: usize,
    /// Of these, those of which is known what they need.
    pub planned: usize,
    pub held: usize,
    pub failed: usize,
    /// Bytes of all blobs, as manifests say; those that several images share count for each.
    pub bytes: u64,
    /// Blobs that were not held, each once.
    pub new_blobs: usize,
    pub new_bytes: u64,
    /// Of these, what has come.
    pub fetched_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchImage {
    /// Its place in the job: images keep it.
    pub at: usize,
    pub name: String,
    /// The line that asked for it.
    pub wanted: String,
    /// `waiting`, `asking`, `listed` (a pattern, or named before), `planned`, `fetching`, `held` or `failed`.
    pub state: String,
    pub digest: Option<String>,
    pub platforms: Vec<String>,
    pub manifests: usize,
    /// Of these, signatures, SBOMs and attestations.
    pub referrers: usize,
    pub blobs: usize,
    pub bytes: u64,
    pub new_blobs: usize,
    pub new_bytes: u64,
    pub fetched_bytes: u64,
    pub error: Option<String>,
    pub notes: Vec<String>,
}

/// The jobs of this process: those that run and the last that ran, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchList {
    pub jobs: Vec<PrefetchView>,
    /// `[[prefetch]]` of the configuration.
    pub schedules: Vec<ScheduleView>,
}

/// One `[[prefetch]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleView {
    pub name: String,
    /// Five fields of cron.
    pub schedule: String,
    pub next_ms: Option<u64>,
    /// Of this process.
    pub last_job: Option<u64>,
}

/// What a site wished for and could not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WishList {
    /// The most wanted first.
    pub wishes: Vec<Wish>,
    /// When the mirror was filled last, Unix milliseconds, and by what.
    pub filled_ms: Option<u64>,
    pub filled_by: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearedView {
    pub cleared: usize,
}

impl Admin {
    /// Begins a job.
    pub async fn prefetch(&self, order: &PrefetchOrder) -> Result<PrefetchView, AdminError> {
        let prefetcher = &self.inner.prefetcher;
        let Some(name) = &order.configured else {
            return Ok(view(&*prefetcher.start(request(order)?)?, Some(0)));
        };
        if !order.images.is_empty() || !order.platforms.is_empty() {
            let message =
                "configured: the configuration says which images and platforms: leave images and platforms out";
            return Err(AdminError::BadOrder(message.to_owned()));
        }
        let schedules = prefetcher.schedules();
        let Some(scheduled) = schedules.iter().find(|scheduled| scheduled.config.name == *name) else {
            return Err(AdminError::NoPrefetch {
                name: name.chars().take(200).collect(),
                known: schedules
                    .iter()
                    .map(|scheduled| scheduled.config.name.clone())
                    .collect(),
            });
        };
        let job = prefetcher.begin(scheduled, order.dry_run, parallel(order)?).await?;
        Ok(view(&job, Some(0)))
    }

    /// A job, with the images that have changed after that version.
    pub fn prefetch_job(&self, id: u64, after: u64) -> Result<PrefetchView, AdminError> {
        Ok(view(&*self.find_job(id)?, Some(after)))
    }

    pub fn cancel_prefetch(&self, id: u64) -> Result<PrefetchView, AdminError> {
        let job = self.find_job(id)?;
        job.cancel();
        Ok(view(&job, None))
    }

    /// Until a job has changed after that version.
    pub async fn prefetch_changed(&self, id: u64, after: u64) {
        let Ok(job) = self.find_job(id) else { return };
        // Never closed: the sender is the job's, and that is ours.
        let _ = job.watch().wait_for(|version| *version > after).await;
    }

    pub fn prefetches(&self) -> PrefetchList {
        let jobs = self.inner.prefetcher.list();
        PrefetchList {
            jobs: jobs.iter().map(|job| view(job, None)).collect(),
            schedules: self
                .inner
                .prefetcher
                .schedules()
                .iter()
                .map(|scheduled| ScheduleView::of(scheduled))
                .collect(),
        }
    }

    fn find_job(&self, id: u64) -> Result<Arc<Job>, AdminError> {
        self.inner.prefetcher.job(id).ok_or(AdminError::NoJob(id))
    }

    pub fn wishes(&self) -> WishList {
        let filled = self.store().filled();
        WishList {
            wishes: self.store().wishes(),
            filled_ms: filled.as_ref().map(|(ms, _)| *ms),
            filled_by: filled.map(|(_, what)| what),
        }
    }

    pub async fn clear_wishes(&self) -> Result<ClearedView, AdminError> {
        let cleared = self.work(|admin| admin.store().clear_wishes()).await?;
        Ok(ClearedView { cleared })
    }
}

/// Reads an order's lines; all that is wrong with them is said at once.
fn request(order: &PrefetchOrder) -> Result<Request, AdminError> {
    let refuse = |message: String| Err(AdminError::BadOrder(message));
    if order.images.len() > MAX_IMAGES {
        return refuse(format!("more than {MAX_IMAGES} images are named"));
    }
    let mut wanted: Vec<Wanted> = Vec::with_capacity(order.images.len());
    for line in &order.images {
        match parse_line(line) {
            Ok(Some(found)) => wanted.push(found),
            Ok(None) => {}
            Err((column, message)) => {
                let line: String = line.chars().take(200).collect();
                return refuse(format!("{line:?}, column {column}: {message}"));
            }
        }
    }
    if wanted.is_empty() {
        return refuse("no image is named".to_owned());
    }
    let platforms = match order.platforms.is_empty() {
        true => None,
        false => Some(Platforms::parse(&order.platforms.join(",")).map_err(AdminError::BadOrder)?),
    };
    let parallel = parallel(order)?;
    Ok(Request {
        name: BY_COMMAND.to_owned(),
        wanted,
        platforms,
        referrers: order.referrers,
        dry_run: order.dry_run,
        parallel,
    })
}

fn parallel(order: &PrefetchOrder) -> Result<usize, AdminError> {
    match order.parallel.unwrap_or(PARALLEL) {
        fits if (1..=MOST_PARALLEL).contains(&fits) => Ok(fits),
        other => Err(AdminError::BadOrder(format!(
            "parallel is {other}: expected 1 to {MOST_PARALLEL}"
        ))),
    }
}

/// `after`: the images that have changed after that version; `None`: no images.
fn view(job: &Job, after: Option<u64>) -> PrefetchView {
    job.look(|progress| PrefetchView {
        id: job.id,
        name: job.request.name.clone(),
        state: progress.phase.as_str().to_owned(),
        dry_run: job.request.dry_run,
        referrers: job.request.referrers,
        started_ms: progress.started_ms,
        finished_ms: progress.finished_ms,
        platforms: progress.platforms.clone(),
        platforms_from: progress.platforms_from.to_owned(),
        waits: progress.waits.clone().filter(|_| progress.phase == Phase::Running),
        version: progress.version,
        totals: PrefetchTotals::of(&progress.totals()),
        images: images(progress, after),
    })
}

fn images(progress: &Progress, after: Option<u64>) -> Vec<PrefetchImage> {
    let Some(after) = after else { return Vec::new() };
    let all = progress.images.iter().enumerate();
    // An image that has not changed yet has no version: everybody sees it the first time.
    let news = all.filter(|(_, image)| after == 0 || image.changed > after);
    news.map(|(at, image)| PrefetchImage::of(at, image)).collect()
}

impl ScheduleView {
    fn of(scheduled: &Scheduled) -> ScheduleView {
        ScheduleView {
            name: scheduled.config.name.clone(),
            schedule: scheduled.config.schedule.as_str().to_owned(),
            next_ms: scheduled.next_ms(),
            last_job: scheduled.last().map(|job| job.id),
        }
    }
}

impl PrefetchTotals {
    fn of(totals: &Totals) -> PrefetchTotals {
        PrefetchTotals {
            images: totals.images,
            planned: totals.planned,
            held: totals.held,
            failed: totals.failed,
            bytes: totals.bytes,
            new_blobs: totals.new_blobs,
            new_bytes: totals.new_bytes,
            fetched_bytes: totals.fetched_bytes,
        }
    }
}

impl PrefetchImage {
    fn of(at: usize, image: &Image) -> PrefetchImage {
        PrefetchImage {
            at,
            name: image.name.clone(),
            wanted: image.wanted.clone(),
            state: image.state.as_str().to_owned(),
            digest: image.digest.map(|digest| digest.to_string()),
            platforms: image.platforms.clone(),
            manifests: image.manifests,
            referrers: image.referrers,
            blobs: image.blobs,
            bytes: image.bytes,
            new_blobs: image.new_blobs,
            new_bytes: image.new_bytes,
            fetched_bytes: image.fetched_bytes,
            error: image.error.clone(),
            notes: image.notes.clone(),
        }
    }
}
