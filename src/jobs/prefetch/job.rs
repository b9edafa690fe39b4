//! One job: what is wanted is found, then fetched, a few images at a time.
//!
//! lines → tags (`tags`) → for each image: plan (`plan`) → blobs, through the transfers that clients share (L1) → a look
//! whether all of it is held. What is held costs nothing; what broke off is resumed by the transfer. Everything is told
//! to [`Progress`]. Dropping the job's task ends it, and what it follows goes on as if a client had left.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, Planner};
use super::progress::{Image, ImageState, Phase, Progress};
use super::used::{self, Chosen};
use super::{Patience, Request};
use crate::config::wanted::{Choice, Platforms, Wanted, Which};
use crate::oci::{Digest, Reference};
use crate::pull::{Brought, Listing, Pull, PullError, Target};
use crate::store::unix_ms;
use crate::text::count;

/// Images that are looked at, or waited for, at the same time.
const IMAGES: usize = 8;
/// Tags that one pattern may give.
const MOST_TAGS: usize = 2_000;

/// Why a step was given up.
#[derive(Clone, Debug)]
pub enum Stop {
    /// This image fails.
    Failed(String),
    /// Its upstream allows no more for a while: so do all that follow.
    Limited(String),
}

impl Stop {
    fn why(self) -> String {
        match self {
            Stop::Failed(why) | Stop::Limited(why) => why,
        }
    }
}

/// A prefetch that runs or has run.
pub struct Job {
    pub id: u64,
    pub request: Request,
    pull: Arc<Pull>,
    patience: Patience,
    state: Mutex<Progress>,
    version: watch::Sender<u64>,
    pub(super) cancel: CancellationToken,
    /// Blobs that come at the same time.
    blobs: Arc<Semaphore>,
    /// Blobs that some image of this job has counted as new.
    counted: Mutex<HashSet<Digest>>,
}

/// An image, resolved.
struct Item {
    row: usize,
    target: Target,
    reference: Reference,
    platforms: Option<Platforms>,
    referrers: bool,
}

impl Job {
    pub(super) fn new(
        id: u64,
        request: Request,
        pull: Arc<Pull>,
        patience: Patience,
        cancel: CancellationToken,
    ) -> Job {
        let images = request.wanted.iter().map(|wanted| Image {
            name: wanted.to_string(),
            wanted: wanted.to_string(),
            ..Image::default()
        });
        let progress = Progress {
            phase: Phase::Running,
            started_ms: unix_ms(),
            finished_ms: None,
            platforms: Vec::new(),
            platforms_from: "",
            waits: None,
            version: 1,
            images: images.collect(),
        };
        Job {
            id,
            blobs: Arc::new(Semaphore::new(request.parallel.clamp(1, 64))),
            request,
            pull,
            patience,
            state: Mutex::new(progress),
            version: watch::Sender::new(1),
            cancel,
            counted: Mutex::default(),
        }
    }

    pub(super) fn pull(&self) -> &Arc<Pull> {
        &self.pull
    }

    /// Everything, as it is now.
    pub fn progress(&self) -> Progress {
        self.state().clone()
    }

    /// Shown without a copy of every image.
    pub fn look<T>(&self, at: impl FnOnce(&Progress) -> T) -> T {
        at(&self.state())
    }

    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Tells of every change, by its version.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Ends it before its end. What came stays.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    fn state(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Progress)) {
        let version = {
            let mut state = self.state();
            change(&mut state);
            state.version += 1;
            state.version
        };
        self.version.send_replace(version);
    }

    fn note_image(&self, row: usize, change: impl FnOnce(&mut Image)) {
        self.note(|progress| {
            let next = progress.version + 1;
            if let Some(image) = progress.images.get_mut(row) {
                change(image);
                image.changed = next;
            }
        });
    }

    fn fail(&self, row: usize, why: String) {
        let mut name = String::new();
        self.note_image(row, |image| {
            image.state = ImageState::Failed;
            image.error = Some(why.clone());
            // A line that names no upstream's image has none.
            let shown = if image.name.is_empty() {
                &image.wanted
            } else {
                &image.name
            };
            name.clone_from(shown);
        });
        tracing::warn!(job = %self.request.name, image = %name, error = %why, "an image was not fetched ahead");
    }

    // --- patience -----------------------------------------------------------------------------------

    /// Asks an upstream, as often as makes sense; waits while it wants to be left alone, if that is not too long.
    pub(super) async fn ask<T, F>(&self, row: usize, target: &Target, step: impl Fn() -> F) -> Result<T, Stop>
    where
        F: Future<Output = Result<T, PullError>> + Send,
    {
        let mut failures = 0;
        loop {
            self.until_allowed(target).await?;
            match step().await {
                Ok(answer) => return Ok(answer),
                Err(error) => match error.retry_after() {
                    // Its pause is waited for above, or is too long to be.
                    Some(left) => self.wait_out(target, left.max(self.patience.backoff)).await?,
                    None if error.is_transient() && failures < self.patience.retries => {
                        failures += 1;
                        tracing::debug!(row, %error, "asked again in a moment");
                        tokio::time::sleep(self.patience.backoff * 2u32.pow(failures)).await;
                    }
                    None => return Err(Stop::Failed(error.to_string())),
                },
            }
        }
    }

    async fn until_allowed(&self, target: &Target) -> Result<(), Stop> {
        let left = self
            .pull
            .paused()
            .into_iter()
            .find(|(name, _)| **name == *target.upstream.name.as_str());
        match left {
            Some((_, left)) => self.wait_out(target, left).await,
            None => Ok(()),
        }
    }

    async fn wait_out(&self, target: &Target, left: Duration) -> Result<(), Stop> {
        let name = &target.upstream.name;
        if left > self.patience.longest_pause {
            return Err(Stop::Limited(format!(
                "{name} allows no more pulls for another {}: run it again then, what has come stays",
                span(left)
            )));
        }
        let why = format!("{name} asks to be left alone for another {}", span(left));
        self.note(|progress| progress.waits = Some(why));
        tokio::time::sleep(left).await;
        self.note(|progress| progress.waits = None);
        Ok(())
    }

    // --- the work -----------------------------------------------------------------------------------

    /// All of it. The caller says how it ended.
    pub(super) async fn run(self: &Arc<Job>) {
        let chosen = match &self.request.platforms {
            Some(platforms) => Chosen::named(platforms.clone()),
            None => used::platforms(self.pull.store()).await,
        };
        self.note(|progress| {
            progress.platforms = chosen.platforms.names();
            progress.platforms_from = chosen.from;
        });
        let chosen = Arc::new(chosen);
        let items = self.items().await;
        let mut running = JoinSet::new();
        for item in items {
            while running.len() >= IMAGES {
                running.join_next().await;
            }
            let (job, chosen) = (self.clone(), chosen.clone());
            running.spawn(async move { job.image(item, &chosen).await });
        }
        while running.join_next().await.is_some() {}
    }

    /// Every image once, patterns replaced by what they give.
    async fn items(self: &Arc<Job>) -> Vec<Item> {
        let mut items = Vec::new();
        let mut seen = HashSet::new();
        for (row, wanted) in self.request.wanted.iter().enumerate() {
            let target = match self.pull.resolve(&wanted.name, None) {
                Ok(target) => target,
                Err(error) => {
                    self.fail(row, error.to_string());
                    continue;
                }
            };
            let item = |row, reference| Item {
                row,
                target: target.clone(),
                reference,
                platforms: wanted.platforms.clone(),
                referrers: wanted.referrers.unwrap_or(self.request.referrers),
            };
            match &wanted.which {
                Which::One(reference) => {
                    let is_new = seen.insert((
                        target.key.clone(),
                        reference.clone(),
                        wanted.platforms.as_ref().map(Platforms::names),
                    ));
                    self.name(row, &target, reference, is_new);
                    if is_new {
                        items.push(item(row, reference.clone()));
                    }
                }
                Which::Tags(_) => {
                    for reference in self.expand(row, wanted, &target).await {
                        if seen.insert((
                            target.key.clone(),
                            reference.clone(),
                            wanted.platforms.as_ref().map(Platforms::names),
                        )) {
                            let row = self.add(wanted, &target, &reference);
                            items.push(item(row, reference));
                        }
                    }
                }
            }
        }
        items
    }

    fn name(&self, row: usize, target: &Target, reference: &Reference, is_new: bool) {
        self.note_image(row, |image| {
            image.name = shown(target, reference);
            if !is_new {
                image.state = ImageState::Listed;
                image.notes.push("named before".to_owned());
            }
        });
    }

    fn add(&self, wanted: &Wanted, target: &Target, reference: &Reference) -> usize {
        let mut row = 0;
        self.note(|progress| {
            row = progress.images.len();
            progress.images.push(Image {
                name: shown(target, reference),
                wanted: wanted.to_string(),
                changed: progress.version + 1,
                ..Image::default()
            });
        });
        row
    }

    /// The tags that a line wants, by what its upstream lists.
    async fn expand(&self, row: usize, wanted: &Wanted, target: &Target) -> Vec<Reference> {
        let Which::Tags(choice) = &wanted.which else {
            return Vec::new();
        };
        self.note_image(row, |image| image.state = ImageState::Asking);
        let listing = match self.ask(row, target, || self.pull.tags(target)).await {
            Ok(listing) => listing,
            Err(stop) => {
                self.fail(row, stop.why());
                return Vec::new();
            }
        };
        let (all, references) = match pick(&listing, choice.clone()).await {
            Ok(picked) => picked,
            Err(error) => {
                self.fail(row, error.to_string());
                return Vec::new();
            }
        };
        match references.len() {
            0 => self.fail(row, format!("no tag fits: it has {}", count(all, "tag"))),
            n if n > MOST_TAGS => {
                self.fail(
                    row,
                    format!("{n} tags fit, more than {MOST_TAGS}: narrow it, by newest=100 for instance"),
                );
                return Vec::new();
            }
            n => self.note_image(row, |image| {
                image.state = ImageState::Listed;
                image.notes.push(format!("{n} of {} fit", count(all, "tag")));
            }),
        }
        references
    }

    async fn image(self: Arc<Job>, item: Item, chosen: &Chosen) {
        let row = item.row;
        self.note_image(row, |image| image.state = ImageState::Asking);
        let planner = Planner {
            job: &self,
            row,
            target: &item.target,
            platforms: item.platforms.as_ref().unwrap_or(&chosen.platforms),
            explicit: chosen.is_named || item.platforms.is_some(),
            referrers: item.referrers,
        };
        let plan = match planner.plan(&item.reference).await {
            Ok(plan) => plan,
            Err(stop) => return self.fail(row, stop.why()),
        };
        let key = &item.target.key;
        let new = self.count(row, &plan);
        if self.request.dry_run {
            return match plan.problems.is_empty() {
                true => {}
                false => self.fail(row, plan.problems.join("; ")),
            };
        }
        let mut problems = plan.problems.clone();
        problems.extend(self.clone().blobs_of(&item, &plan, new).await);
        let store = self.pull.store();
        let wanted = plan.manifests.iter().chain(plan.blobs.keys());
        let missing = wanted.filter(|digest| store.shown(key, digest).is_none()).count();
        if problems.is_empty() && missing > 0 {
            problems.push(format!(
                "{} of it came and could not be kept: the cache has no room for it (cache.max_size)",
                count(missing, "blob")
            ));
        }
        match problems.is_empty() {
            true => self.note_image(row, |image| image.state = ImageState::Held),
            false => self.fail(row, problems.join("; ")),
        }
    }

    /// Notes how much there is. Gives the blobs that this image counts as new.
    fn count(&self, row: usize, plan: &Plan) -> HashSet<Digest> {
        let store = self.pull.store();
        let new: HashSet<Digest> = {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            // A blob that is held for other upstreams may have to come once more: that shows when it is asked for.
            let absent = plan.blobs.keys().filter(|digest| store.size(digest).is_none());
            absent.filter(|digest| counted.insert(**digest)).copied().collect()
        };
        let bytes = |blobs: &mut dyn Iterator<Item = &u64>| blobs.fold(0u64, |sum, size| sum.saturating_add(*size));
        let new_bytes = bytes(&mut new.iter().filter_map(|digest| plan.blobs.get(digest)));
        self.note_image(row, |image| {
            image.state = ImageState::Planned;
            image.digest = plan.root;
            image.platforms = plan.platforms.clone();
            image.manifests = plan.manifests.len();
            image.referrers = plan.referrers;
            image.blobs = plan.blobs.len();
            image.bytes = bytes(&mut plan.blobs.values());
            image.new_blobs = new.len();
            image.new_bytes = new_bytes;
            image.notes.extend(plan.notes.iter().cloned());
        });
        new
    }

    /// Fetches what is not held; gives what went wrong.
    async fn blobs_of(self: Arc<Job>, item: &Item, plan: &Plan, new: HashSet<Digest>) -> Vec<String> {
        self.note_image(item.row, |image| image.state = ImageState::Fetching);
        let mut coming = JoinSet::new();
        for (digest, size) in &plan.blobs {
            // Acquired here, in order: thousands of tasks need not wait for it.
            let Ok(permit) = self.blobs.clone().acquire_owned().await else {
                break;
            };
            let (job, target, digest) = (self.clone(), item.target.clone(), *digest);
            let counts = new.contains(&digest).then_some(*size);
            let row = item.row;
            coming.spawn(async move {
                let outcome = job.blob(row, &target, digest, counts).await;
                drop(permit);
                outcome.map_err(|stop| format!("{digest}: {}", stop.why()))
            });
        }
        let mut problems = Vec::new();
        while let Some(outcome) = coming.join_next().await {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(why)) => problems.push(why),
                Err(error) => problems.push(format!("an internal task ended early: {error}")),
            }
        }
        problems.truncate(5);
        problems
    }

    /// `counts`: its size, if this image's figures count it.
    async fn blob(&self, row: usize, target: &Target, digest: Digest, counts: Option<u64>) -> Result<(), Stop> {
        let told = Mutex::new(0u64);
        let tell = |written: u64| {
            let Some(size) = counts else { return };
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            // A transfer that begins anew, elsewhere or after a mismatch, gives back what it had.
            let (written, before) = (written.min(size), std::mem::replace(&mut *told, written.min(size)));
            self.note_image(row, |image| {
                image.fetched_bytes = image.fetched_bytes.saturating_add(written).saturating_sub(before)
            });
        };
        let brought = self
            .ask(row, target, || self.pull.bring(target, &digest, &tell))
            .await?;
        if let (Brought::Held | Brought::Fetched, Some(size)) = (brought, counts) {
            tell(size);
            if brought == Brought::Fetched {
                metrics::counter!("larder_prefetch_bytes_total", "prefetch" => self.request.name.clone())
                    .increment(size);
            }
        }
        match brought {
            Brought::NotKept => Err(Stop::Failed(
                "there is no room for it on the disk (cache.max_size, cache.min_free)".to_owned(),
            )),
            Brought::Held | Brought::Fetched => Ok(()),
        }
    }
}

/// `docker.io/library/alpine:3.22`
fn shown(target: &Target, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{}:{tag}", target.key),
        Reference::Digest(digest) => format!("{}@{digest}", target.key),
    }
}

/// `45 s`, `12 min`, `3 h 5 min`
fn span(time: Duration) -> String {
    match time.as_secs().max(1) {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How many tags a list has, and those of them that are wanted, off the async threads: there may be a million.
async fn pick(listing: &Listing, choice: Choice) -> Result<(usize, Vec<Reference>), PullError> {
    let text = listing.text().await?;
    let picking = tokio::task::spawn_blocking(move || {
        let tags = choice.of(text.lines());
        let references = tags.iter().filter_map(|tag| Some(Reference::Tag(tag.parse().ok()?)));
        (text.lines().count(), references.collect())
    });
    picking
        .await
        .map_err(|_| PullError::Internal("a choice of tags was dropped"))
}
