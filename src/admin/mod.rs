//! What an operator may ask of Larder: plain functions, and views of what they give. No HTTP.
//!
//! [`Admin`] stands in front of store, service and verification; `views` is what it shows, `show` makes those from
//! what the floors below say, `names` reads what images are called, `error` says why not. `prefetch` is about images that
//! are fetched ahead; `recent` knows what was counted in the last hour and the last day; `token` is the file with which commands show the API who they are,
//! `listening` sees to it that they show it to nobody else.

mod bundle;
mod canary;
pub mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod listening;
mod names;
mod pattern;
pub mod prefetch;
mod recent;
mod show;
pub mod token;
pub mod views;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use bundle::{BundleOrder, ImportOrder, ImportPatience, PlanView, Planned};
pub use error::AdminError;

pub use crate::pull::canary::REPOSITORY as CANARY_REPOSITORY;

use arc_swap::ArcSwap;

use crate::events::{Action, Event};
use crate::jobs::{Prefetcher, Progress, Verifier, Webhooks};
use crate::oci::Reference;
use crate::oci::reference::without_transport;
use crate::pull::{AddressState, Budget, Pull};
use crate::store::{ImageName, Store};
use names::Wanted;
use recent::{Recent, Sample};
use views::{
    AddressView, ApiView, BudgetView, DuView, ImageList, ImageRow, ImageView, LogView, PeriodView, PeriodsView,
    PinView, RefreshView, ReloadView, RemovedView, StatsView, UpstreamView, VerifyView, WebhookView,
};

/// Longest page (R-X20).
pub const MOST_ROWS: usize = 1000;

/// Limits that are shown in place of the store's own, which are lifted while a folder is at rest; and who may send
/// bundles.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub max_bytes: u64,
    /// By the upstream's name.
    pub upstreams: BTreeMap<String, u64>,
    /// Public keys, as texts.
    pub bundle_keys: Vec<String>,
    /// Bytes that a manifest of a bundle may have; `None`: as many as any may.
    pub manifest_size: Option<usize>,
    /// Descriptors that a manifest of a bundle may have; `None`: any number.
    pub manifest_descriptors: Option<usize>,
    /// Names of the command line's options that gave settings, which no other command sees.
    pub options: Vec<String>,
}

/// Body bytes since the start, by upstream, as the metrics count them.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Bytes of content sent to clients.
    pub served: BTreeMap<String, u64>,
    /// Bytes of content sent to clients that came from the cache.
    pub cached: BTreeMap<String, u64>,
    /// Received from upstreams.
    pub fetched: BTreeMap<String, u64>,
}

/// Asked whenever somebody wants to see the traffic.
pub type Meter = Arc<dyn Fn() -> Traffic + Send + Sync>;

/// Takes another level. Errors: why it is none.
pub type ChangeLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// How much the process tells of itself, and the way to change that.
#[derive(Clone)]
pub struct LogControl {
    pub level: Arc<dyn Fn() -> String + Send + Sync>,
    pub change: ChangeLevel,
}

/// Asked whenever somebody wants to see what the API takes for proof.
pub type ApiShown = Arc<dyn Fn() -> ApiView + Send + Sync>;

/// Reads the configuration again. Errors: it is refused, or nobody does it.
pub type Reload = Arc<dyn Fn() -> Reloading + Send + Sync>;
pub type Reloading = Pin<Box<dyn Future<Output = Result<ReloadView, AdminError>> + Send>>;

/// The operators' counter. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    inner: Arc<Inner>,
    log: Option<LogControl>,
    hooks: Option<Webhooks>,
    reload: Option<Reload>,
    api: Option<ApiShown>,
    patience: ImportPatience,
}

struct Inner {
    pull: Arc<Pull>,
    verifier: Arc<Verifier>,
    prefetcher: Arc<Prefetcher>,
    limits: ArcSwap<Limits>,
    meter: Meter,
    started: Instant,
    recent: Mutex<Recent>,
    /// Held while a bundle is imported.
    importing: Arc<tokio::sync::Mutex<()>>,
}

impl Admin {
    pub fn new(
        pull: Arc<Pull>,
        verifier: Arc<Verifier>,
        prefetcher: Arc<Prefetcher>,
        limits: Limits,
        meter: Meter,
    ) -> Admin {
        let started = Instant::now();
        Admin {
            inner: Arc::new(Inner {
                pull,
                verifier,
                prefetcher,
                limits: ArcSwap::from_pointee(limits),
                meter,
                started,
                recent: Mutex::new(Recent::new(started)),
                importing: Arc::default(),
            }),
            log: None,
            hooks: None,
            reload: None,
            api: None,
            patience: ImportPatience::default(),
        }
    }

    /// For a process that runs on.
    pub fn with_log(self, log: LogControl) -> Admin {
        Admin { log: Some(log), ..self }
    }

    /// For a process that delivers them.
    pub fn with_webhooks(self, hooks: Webhooks) -> Admin {
        Admin {
            hooks: Some(hooks),
            ..self
        }
    }

    /// For a process that reads its configuration again.
    pub fn with_reload(self, reload: Reload) -> Admin {
        Admin {
            reload: Some(reload),
            ..self
        }
    }

    /// For a process that answers calls.
    pub fn with_api(self, api: ApiShown) -> Admin {
        Admin { api: Some(api), ..self }
    }

    /// Reads the configuration again; all of it holds then, but for what takes a restart. Refused, it changes nothing.
    pub async fn reload(&self) -> Result<ReloadView, AdminError> {
        match &self.reload {
            Some(reload) => reload().await,
            None => Err(AdminError::NoReload),
        }
    }

    /// Other limits, after a reload.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.limits.store(Arc::new(limits));
    }

    /// How much is told, after a change if one is wanted. It holds until a restart, or until `log.level` is changed.
    pub fn log_level(&self, change: Option<&str>) -> Result<LogView, AdminError> {
        let log = self.log.as_ref().ok_or(AdminError::NoLog)?;
        if let Some(level) = change {
            (log.change)(level).map_err(AdminError::Level)?;
            // At a level that is always told.
            tracing::warn!(level, "the log level was changed");
        }
        Ok(LogView { level: (log.level)() })
    }

    fn store(&self) -> &Store {
        self.inner.pull.store()
    }

    /// Runs disk work off the async threads.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Admin) -> T + Send + 'static) -> Result<T, AdminError> {
        let admin = self.clone();
        let working = tokio::task::spawn_blocking(move || work(&admin));
        working.await.map_err(|_| AdminError::Dropped)
    }

    /// Images whose name fits `pattern`, in the order of names, after `after`; at most `limit`, and [`MOST_ROWS`].
    pub async fn images(
        &self,
        pattern: Option<String>,
        after: Option<String>,
        limit: usize,
    ) -> Result<ImageList, AdminError> {
        let limit = limit.clamp(1, MOST_ROWS);
        let (pattern, after) = (pattern.unwrap_or_default(), after.unwrap_or_default());
        let pattern = without_transport(&pattern).map(str::to_owned).unwrap_or(pattern);
        self.work(move |admin| {
            let mut names: Vec<(String, ImageName)> = admin
                .store()
                .image_names()
                .into_iter()
                .map(|(name, _)| (name.to_string(), name))
                .filter(|(shown, _)| *shown > after && pattern::fits(&pattern, shown))
                .collect();
            names.sort_unstable();
            let more = names.len() > limit;
            names.truncate(limit);
            let next = names.last().filter(|_| more).map(|(shown, _)| shown.clone());
            let image = |(_, name): &(String, ImageName)| admin.store().image(&name.repository, &name.reference);
            let images = names.iter().filter_map(image);
            ImageList {
                images: images.map(|image| ImageRow::of(&image)).collect(),
                next,
            }
        })
        .await
    }

    pub async fn inspect(&self, text: &str) -> Result<ImageView, AdminError> {
        let wanted = self.wanted(text).await?;
        self.work(move |admin| {
            let image = admin.store().image(&wanted.key, &wanted.reference());
            let image = image.ok_or_else(|| AdminError::NotHeld(wanted.to_string()))?;
            Ok(ImageView::of(admin.store(), &image))
        })
        .await?
    }

    /// The totals, and the largest images; at most `limit`, and [`MOST_ROWS`].
    pub async fn du(&self, limit: usize) -> Result<DuView, AdminError> {
        let limit = limit.clamp(1, MOST_ROWS);
        self.work(move |admin| {
            let (usage, survey) = (admin.store().usage(), admin.store().survey());
            let mut view = DuView::of(&usage, survey, limit);
            view.max_bytes = admin.inner.limits.load().max_bytes;
            view.path = admin.store().path().display().to_string();
            view
        })
        .await
    }

    /// Takes a sample of the counters, if the last one is a minute old: call every few seconds.
    pub fn sample(&self) {
        let now = Instant::now();
        if self.recent().is_due(now) {
            let sample = self.counted(&(self.inner.meter)());
            self.recent().note(now, sample);
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.inner.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters as they are now.
    fn counted(&self, traffic: &Traffic) -> Sample {
        Sample {
            requests: self.inner.pull.tally().counts(),
            served: traffic.served.values().sum(),
            cached: traffic.cached.values().sum(),
            fetched: traffic.fetched.values().sum(),
        }
    }

    pub fn stats(&self) -> StatsView {
        let (usage, index) = (self.store().usage(), self.store().index_state());
        let pull = &self.inner.pull;
        let paused: BTreeMap<String, u64> = pull
            .paused()
            .iter()
            .map(|(name, left)| (name.to_string(), left.as_secs().max(1)))
            .collect();
        let troubles: BTreeMap<String, &str> = pull.troubles().into_iter().collect();
        let budgets: BTreeMap<String, Vec<Budget>> = pull
            .budgets()
            .into_iter()
            .map(|(name, budgets)| (name.to_string(), budgets))
            .collect();
        let addresses: BTreeMap<String, Vec<AddressState>> = pull
            .addresses()
            .into_iter()
            .map(|(name, addresses)| (name.to_string(), addresses))
            .collect();
        let limits = self.inner.limits.load();
        let traffic = (self.inner.meter)();
        let held: BTreeMap<String, u64> = usage
            .shelves
            .iter()
            .filter(|(name, ..)| !name.is_empty())
            .map(|(name, bytes, _)| (name.to_string(), *bytes))
            .collect();
        let mut names: Vec<&String> = held
            .keys()
            .chain(paused.keys())
            .chain(troubles.keys())
            .chain(limits.upstreams.keys())
            .chain(budgets.keys())
            .chain(addresses.keys())
            .chain(traffic.fetched.keys())
            .collect();
        names.sort_unstable();
        names.dedup();
        let counted = |of: &BTreeMap<String, u64>, name: &String| of.get(name).copied().unwrap_or(0);
        let upstream = |name: &String| UpstreamView {
            served_bytes: counted(&traffic.served, name),
            fetched_bytes: counted(&traffic.fetched, name),
            cached_bytes: counted(&traffic.cached, name),
            saved_bytes: counted(&traffic.cached, name),
            held_bytes: held.get(name).copied().unwrap_or(0),
            max_bytes: limits.upstreams.get(name).copied(),
            paused_seconds: paused.get(name).copied(),
            trouble: troubles.get(name).map(|why| (*why).to_owned()),
            budgets: budgets
                .get(name)
                .map_or_else(Vec::new, |list| list.iter().map(BudgetView::of).collect()),
            addresses: addresses
                .get(name)
                .map_or_else(Vec::new, |list| list.iter().map(AddressView::of).collect()),
            name: name.clone(),
        };
        let upstreams: Vec<UpstreamView> = names.into_iter().map(upstream).collect();
        let (now, all) = (Instant::now(), self.counted(&traffic));
        let periods = {
            let recent = self.recent();
            PeriodsView {
                last_hour: PeriodView::of(&recent.last_hour(now, &all)),
                last_day: PeriodView::of(&recent.last_day(now, &all)),
                since_start: PeriodView::of(&recent::Period {
                    counted: all,
                    covers: now.saturating_duration_since(self.inner.started),
                }),
            }
        };
        let since_start = periods.since_start.clone();
        StatsView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.inner.started.elapsed().as_secs(),
            path: self.store().path().display().to_string(),
            used_bytes: usage.used_bytes,
            max_bytes: limits.max_bytes,
            staged_bytes: usage.staged_bytes,
            index_bytes: usage.index_bytes,
            list_bytes: usage.list_bytes,
            blobs: usage.blobs,
            evicted: usage.evicted,
            hit_ratio: since_start.hit_ratio,
            requests: since_start.requests,
            served_bytes: since_start.served_bytes,
            cached_bytes: since_start.cached_bytes,
            fetched_bytes: since_start.fetched_bytes,
            saved_bytes: since_start.cached_bytes,
            byte_hit_ratio: since_start.byte_hit_ratio,
            periods: Some(periods),
            transfers: pull.transfers(),
            upstreams,
            disk_trouble: self.store().trouble(),
            index_trouble: index.trouble(),
            index_copied_ms: index.copied_ms,
            verify: self.verification(),
            webhooks: self.hooks.as_ref().map_or_else(Vec::new, webhooks),
            api: self.api.as_ref().map(|api| api()),
            options: limits.options.clone(),
        }
    }

    pub async fn pin(&self, text: &str) -> Result<PinView, AdminError> {
        self.set_pin(text, true).await
    }

    pub async fn unpin(&self, text: &str) -> Result<PinView, AdminError> {
        self.set_pin(text, false).await
    }

    async fn set_pin(&self, text: &str, pinned: bool) -> Result<PinView, AdminError> {
        let wanted = self.wanted(text).await?;
        self.work(move |admin| {
            let (store, key, reference) = (admin.store(), &wanted.key, wanted.reference());
            // Looked at first: what was pinned and is gone is not known any more once it is let go of.
            let image = store.image(key, &reference);
            let done = match pinned {
                true => store.pin(key, &reference),
                false => store.unpin(key, &reference),
            };
            if !done {
                return Err(match image {
                    Some(_) => AdminError::NotPinned(wanted.to_string()),
                    None => AdminError::NotHeld(wanted.to_string()),
                });
            }
            // A pin is a promise: it is on disk before it is given.
            if !store.settle() {
                return Err(AdminError::NotWritten(wanted.to_string()));
            }
            wanted.note(store.events(), if pinned { Action::Pin } else { Action::Unpin }, None);
            Ok(PinView {
                name: wanted.to_string(),
                pinned,
                held_bytes: image.as_ref().map_or(0, |image| image.held_bytes()),
                missing: image.map_or(0, |image| image.missing()),
            })
        })
        .await?
    }

    /// Forgets an image and frees what only it reaches. A pinned one goes only by `force`.
    pub async fn remove(&self, text: &str, force: bool) -> Result<RemovedView, AdminError> {
        let wanted = self.wanted(text).await?;
        self.work(move |admin| {
            let (store, key, reference) = (admin.store(), &wanted.key, wanted.reference());
            let not_held = || AdminError::NotHeld(wanted.to_string());
            let Some(image) = store.image(key, &reference) else {
                // A blob that never came whole is no image; what is staged of it can go all the same.
                let Reference::Digest(digest) = &wanted.reference else {
                    return Err(not_held());
                };
                let freed_bytes = store.drop_staged(key, digest).ok_or_else(not_held)?;
                wanted.note(store.events(), Action::Remove, Some(freed_bytes));
                return Ok(RemovedView {
                    name: wanted.to_string(),
                    freed_bytes,
                    blobs: 1,
                    later_bytes: 0,
                });
            };
            if !force {
                // By its digest an image goes with every tag that points at it.
                let tags = match wanted.reference {
                    Reference::Digest(digest) => store.tags_at(key, &digest),
                    Reference::Tag(_) => Vec::new(),
                };
                let pinned_tag = tags
                    .iter()
                    .find(|tag| store.image(key, tag).is_some_and(|image| image.pinned))
                    .map(|tag| ImageName::new(key, tag).to_string());
                if let Some(name) = pinned_tag.or(image.pinned.then(|| wanted.to_string())) {
                    return Err(AdminError::Pinned(name));
                }
            }
            let removed = store.remove_image(key, &reference).ok_or_else(not_held)?;
            wanted.note(store.events(), Action::Remove, Some(removed.bytes));
            Ok(RemovedView {
                name: wanted.to_string(),
                freed_bytes: removed.bytes,
                blobs: removed.blobs,
                later_bytes: removed.later_bytes,
            })
        })
        .await?
    }

    /// Asks the upstream about a tag now. What is held stays held, whatever it says.
    pub async fn refresh(&self, text: &str) -> Result<RefreshView, AdminError> {
        let Wanted { target, reference, key } = self.wanted(text).await?;
        let name = ImageName::new(&key, &reference.to_string()).to_string();
        let Reference::Tag(tag) = reference else {
            return Err(AdminError::NoTag(name));
        };
        let target = target.map_err(AdminError::Name)?;
        let (repository, asked) = (key.clone(), tag.clone());
        let before = self
            .work(move |admin| admin.store().tag(&repository, asked.as_str()))
            .await?
            .map(|record| record.digest);
        let answer = self.inner.pull.refresh(&target, &tag).await;
        let answer = answer.map_err(|error| AdminError::Refresh {
            image: name.clone(),
            is_cached: before.is_some(),
            error: error.about(&Reference::Tag(tag.clone())),
        })?;
        self.store().events().emit(Action::Refresh, |bare| Event {
            repository: Some(target.key.clone()),
            reference: Some(tag.as_str().into()),
            digest: Some(answer.digest),
            ..bare
        });
        Ok(RefreshView {
            name,
            moved: before.is_some_and(|before| before != answer.digest),
            before: before.map(|digest| digest.to_string()),
            digest: answer.digest.to_string(),
        })
    }

    /// Starts hashing everything held, or joins who does.
    pub fn verify(&self, repair: bool) -> Result<VerifyView, AdminError> {
        self.inner.verifier.start(repair)?;
        Ok(self.verification())
    }

    /// How far that has come.
    pub fn verification(&self) -> VerifyView {
        self.show(&self.inner.verifier.progress())
    }

    /// Ends it before its end.
    pub fn cancel_verify(&self) -> VerifyView {
        self.inner.verifier.cancel();
        self.verification()
    }

    /// The next change of [`Admin::verification`].
    pub async fn verification_changed(&self) {
        // Never closed: the sender is the verifier's, and that is ours.
        let _ = self.inner.verifier.watch().changed().await;
    }

    fn show(&self, progress: &Progress) -> VerifyView {
        VerifyView::of(progress, self.inner.verifier.idle(), self.store().verify_finished_ms())
    }
}

fn webhooks(hooks: &Webhooks) -> Vec<WebhookView> {
    hooks.status().into_iter().map(WebhookView::of).collect()
}
