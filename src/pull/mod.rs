//! The pull-through service: what is held is served, what is not is fetched, once.
//!
//! `names` says what a client means; `manifest`, `blob` and `lists` answer the three kinds of question (`turns` is how many long lists come at once), and `hot` those that
//! need no waiting; `chunk` is the memory for bytes of `body` that wait for clients. `flight` lists the transfers by digest, and who follows them;
//! `transfer` is what each does, `sink` where its bytes go, `timing` when it gives up. `single` is one question at a time, `client_wait` how long a client waits for an answer; `privacy` knows what
//! needs credentials, `proof` what a claim is worth; `freshness` decides about
//! time, without I/O; `outcome` says how it went and `tally` counts that; `operate` is what operators ask for, `bring`
//! what is fetched ahead, `wishes` what could not be had.

mod blob;
mod blocking;
mod body;
mod bring;
pub mod canary;
mod chunk;
mod client_wait;
pub mod error;
mod flight;
mod freshness;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hot;
mod lists;
mod manifest;
mod names;
mod operate;
mod outcome;
mod privacy;
mod proof;
mod recall;
mod single;
mod sink;
mod tally;
mod timing;
mod transfer;
mod turns;
mod wishes;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use blob::{BlobStat, OpenBlob};
pub use body::{Body, Chunk, Source, Span};
pub use bring::Brought;
pub use canary::{Canaries, CanaryError, MadeCanary, SeenRequest};
pub use chunk::{ChunkMemory, SMALL_BYTES, buffered_bytes};
pub use client_wait::ClientWait;
pub use error::{Absent, PullError};
pub use lists::{ItemFilter, ListReader, Listing};
pub use manifest::{ManifestAnswer, Want};
use names::Scope;
pub use names::{Names, Target};
pub use outcome::Outcome;
pub use tally::{OutcomeCounts, Tally, by_outcome};
pub use timing::{Parallel, Timing};
use turns::Turns;

use crate::config::Config;
use crate::oci::{Digest, HostPort, Tag};
pub use crate::store::{LARGE_MANIFEST_BYTES, Page};
use crate::store::{ListKey, ListRecord, Store};
use crate::upstream::client::BuildError;
pub use crate::upstream::via::{Circle, Forwarded, Via};
pub use crate::upstream::{AddressState, Budget, Probe, Role};
use crate::upstream::{BlobHead, Client, Clients, ManifestHead, UpstreamError};
use flight::Flights;
use single::Single;

/// Answers "it is not there" that are remembered at most.
const MOST_NEGATIVES: u64 = 20_000;
/// Tags of which is remembered which question was answered last, and for how long: longer than a question runs.
const MOST_NOTED_QUESTIONS: u64 = 20_000;
const NOTED_QUESTIONS_FOR: Duration = Duration::from_secs(60 * 60);
/// How long an answer to a HEAD that a GET gave is believed: each costs a broken-off body.
const BY_GET_FOR: Duration = Duration::from_secs(5);
/// Memory for the sizes that manifests claim, and what one of them takes of it beside its repository's name.
const HINTS_BYTES: u64 = 16 << 20;
const HINT_BYTES: u32 = 256;

/// The service. Shared by every request.
pub struct Pull {
    store: Store,
    /// What the configuration says, exchanged as a whole by a reload. Read without a lock.
    policy: ArcSwap<Policy>,
    timing: Timing,
    via: Via,
    flights: Flights,
    tag_questions: Single<TagQuestion, Result<ManifestAnswer, PullError>>,
    tag_bodies: Single<(Scope, Tag), Result<ManifestAnswer, PullError>>,
    /// Number of the last question about a tag.
    last_tag_question: AtomicU64,
    /// Numbers of the questions whose answers tags point by: an older question that ends later may not move a tag back.
    noted_tag_questions: Arc<moka::sync::Cache<(Arc<str>, Tag), u64>>,
    /// The last: whether the registry itself is asked, and no mirror.
    manifest_heads: Single<(Scope, Digest, bool), Result<ManifestHead, PullError>>,
    manifest_bodies: Single<(Scope, Digest), Result<ManifestAnswer, PullError>>,
    /// The last: whether the registry itself is asked, and no mirror.
    blob_heads: Single<(Scope, Digest, blob::Asked, bool), Result<BlobHead, PullError>>,
    /// Answers to HEADs that a GET gave.
    heads_by_get: moka::sync::Cache<(Scope, Digest, bool), BlobHead>,
    list_questions: Single<(Scope, ListKey), Result<Arc<ListRecord>, PullError>>,
    /// For lists that are long, while they come.
    long_lists: Arc<Turns>,
    /// For manifests that are large, while they are read.
    large_manifests: Arc<Semaphore>,
    /// "It is not there", as upstreams said it lately.
    negatives: moka::sync::Cache<(Arc<str>, Question), Negative>,
    /// Sizes that a repository's manifests claim for its blobs. Anybody may write a manifest somewhere that claims
    /// anything of any digest: what it says counts in its own repository only.
    hints: moka::sync::Cache<(Arc<str>, Digest), u64>,
    /// Upstreams that failed or used up a client's patience: until when stale is served at once, and why.
    troubled: Mutex<HashMap<HostPort, (Instant, &'static str)>>,
    /// Upstreams that did not confirm a tag, and when that was logged.
    told_stale: Mutex<HashMap<HostPort, Instant>>,
    /// Whether a repository answers to nobody.
    privacy_questions: Single<(Scope, Probe), Result<Option<bool>, PullError>>,
    privacy_doubts: moka::sync::Cache<privacy::Doubt, ()>,
    /// Under which configuration that was so.
    public_just_now: moka::sync::Cache<Arc<str>, u64>,
    /// Registries that were asked to confirm something, or what is public, and did not answer in time.
    silent_registries: moka::sync::Cache<HostPort, ()>,
    tally: Tally,
    /// For images that a missing digest is part of.
    wish_searches: Arc<Semaphore>,
    canaries: Canaries,
}

/// The last: whether it may be left out to spare a pull limit.
type TagQuestion = (Scope, Tag, Want, bool);

/// What of the configuration answers depend on.
#[derive(Debug)]
struct Policy {
    names: Names,
    clients: Clients,
    offline: bool,
    /// How long "it is not there" is believed.
    negative_ttl: Duration,
    /// Bytes that a manifest may have.
    manifest_size: usize,
    /// Descriptors that a manifest may have.
    manifest_descriptors: usize,
}

impl Policy {
    fn new(config: &Config, names: Names, clients: Clients) -> Policy {
        Policy {
            names,
            clients,
            offline: config.cache.offline,
            negative_ttl: config.cache.negative_ttl,
            manifest_size: config.limits.manifest_size,
            manifest_descriptors: config.limits.manifest_descriptors,
        }
    }
}

/// What one configuration means by names and whom it asks. A request goes by one from its beginning to its end, whatever
/// is reloaded meanwhile.
#[derive(Clone, Debug)]
pub struct View(Arc<Policy>);

impl View {
    /// The repository that a name and `ns` mean. Errors: also for that of canaries.
    pub fn resolve(&self, name: &str, ns: Option<&str>) -> Result<Target, PullError> {
        self.0.names.resolve(name, ns).map(|target| self.with_client(target))
    }

    /// The repository that a client's request means, which may be that of canaries.
    pub fn resolve_request(&self, name: &str, ns: Option<&str>) -> Result<Target, PullError> {
        let target = self.0.names.resolve_request(name, ns);
        target.map(|target| self.with_client(target))
    }

    fn with_client(&self, target: Target) -> Target {
        let policy = &self.0;
        Target {
            client: policy.clients.get(&target.upstream.name).cloned(),
            offline: policy.offline || target.offline,
            ..target
        }
    }

    /// The repository that is held under this key, if it still has an upstream, whose `allow` and `deny` permit it. Whether
    /// who asks may pull from it is another question.
    fn held(&self, key: &str) -> Option<Target> {
        self.resolve(key, None).ok().filter(|target| *target.key == *key)
    }

    /// Whether the text names an upstream.
    pub fn is_upstream(&self, text: &str) -> bool {
        self.0.names.is_known(text)
    }

    /// Whether this is the configuration that the target was resolved by.
    pub fn meant(&self, target: &Target) -> bool {
        target.edition == self.0.names.edition()
    }
}

/// An upstream's answer that it does not have something, or does not give it.
#[derive(Clone, Debug)]
struct Negative {
    error: UpstreamError,
    answered: Instant,
    /// How long it is believed.
    ttl: Duration,
}

/// Removes each negative answer from memory when its own time is over.
struct NegativeExpiry;

impl moka::Expiry<(Arc<str>, Question), Negative> for NegativeExpiry {
    fn expire_after_create(&self, _: &(Arc<str>, Question), negative: &Negative, _: Instant) -> Option<Duration> {
        Some(negative.ttl)
    }

    fn expire_after_update(
        &self,
        _: &(Arc<str>, Question),
        negative: &Negative,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(negative.ttl)
    }
}

/// The key of a negative answer. A HEAD's refusal is remembered apart: it is no answer to a GET.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Question {
    Tag(Tag),
    TagHead(Tag),
    Manifest(Digest),
    ManifestHead(Digest),
    Blob(Digest),
    BlobHead(Digest),
    List(ListKey),
}

impl Pull {
    /// A repository has just shown that it has what is held: on disk before anybody is answered by it (L6, L8).
    async fn note_link(&self, target: &names::Target, digest: &Digest) {
        let (store, key, digest) = (self.store.clone(), target.key.clone(), *digest);
        // Ends early only with the process.
        let _ = blocking::blocking(move || {
            store.link(&[key], &digest);
            Ok(())
        })
        .await;
    }

    /// Dials nothing. `tasks` counts the transfers; `stop` ends them, keeping what is staged.
    ///
    /// `None` if the configuration's default upstream is not among its upstreams.
    pub fn new(
        config: &Config,
        store: Store,
        clients: Clients,
        timing: Timing,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Option<Arc<Pull>> {
        Some(Arc::new(Pull {
            via: clients.via().clone(),
            policy: ArcSwap::from_pointee(Policy::new(config, Names::new(config)?, clients)),
            flights: Flights::new(store.clone(), timing.clone(), tasks, stop),
            long_lists: Arc::new(Turns::new(store.large_lists_at_once())),
            large_manifests: Arc::new(Semaphore::new(manifest::LARGE_AT_ONCE)),
            store,
            tag_questions: Single::default(),
            tag_bodies: Single::default(),
            last_tag_question: AtomicU64::new(0),
            noted_tag_questions: Arc::new(
                moka::sync::Cache::builder()
                    .max_capacity(MOST_NOTED_QUESTIONS)
                    .time_to_live(NOTED_QUESTIONS_FOR)
                    .build(),
            ),
            manifest_heads: Single::default(),
            manifest_bodies: Single::default(),
            blob_heads: Single::default(),
            heads_by_get: moka::sync::Cache::builder()
                .max_capacity(10_000)
                .time_to_live(BY_GET_FOR)
                .build(),
            list_questions: Single::default(),
            privacy_questions: Single::default(),
            timing,
            negatives: moka::sync::Cache::builder()
                .max_capacity(MOST_NEGATIVES)
                .expire_after(NegativeExpiry)
                .build(),
            hints: moka::sync::Cache::builder()
                .weigher(|(key, _): &(Arc<str>, Digest), _: &u64| {
                    u32::try_from(key.len()).unwrap_or(u32::MAX).saturating_add(HINT_BYTES)
                })
                .max_capacity(HINTS_BYTES)
                // The default policy may refuse what is new, which is what is wanted next.
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            privacy_doubts: moka::sync::Cache::builder()
                .max_capacity(20_000)
                .time_to_live(privacy::IN_DOUBT_FOR)
                .build(),
            public_just_now: moka::sync::Cache::builder()
                .max_capacity(20_000)
                .time_to_live(privacy::JUST_NOW)
                .build(),
            troubled: Mutex::default(),
            told_stale: Mutex::default(),
            silent_registries: moka::sync::Cache::builder()
                .max_capacity(1_000)
                .time_to_live(proof::SILENT_FOR)
                .build(),
            tally: Tally::default(),
            wish_searches: Arc::new(Semaphore::new(wishes::MOST_SEARCHES)),
            canaries: Canaries::default(),
        }))
    }

    /// Images that nobody but this proxy can answer.
    pub fn canaries(&self) -> &Canaries {
        &self.canaries
    }

    /// What holds now.
    pub fn view(&self) -> View {
        View(self.policy.load_full())
    }

    /// What another configuration means, to be adopted. Nothing has changed yet. Blocking: it may read certificates.
    ///
    /// Errors: a file of an upstream's that cannot be used.
    pub fn prepare(&self, config: &Config) -> Result<View, BuildError> {
        let before = self.policy.load();
        let clients = before.clients.renewed(config)?;
        let names = Names::after(&before.names, config).ok_or_else(|| BuildError {
            upstream: config.cache.default_upstream.to_string(),
            what: "it is the default upstream, but not among the upstreams".to_owned(),
        })?;
        Ok(View(Arc::new(Policy::new(config, names, clients))))
    }

    /// Goes by another configuration from now on. Transfers and questions under way go on as they began.
    pub fn adopt(&self, view: &View) {
        self.policy.store(view.0.clone());
        view.0.clients.adopt();
        // They were said to another configuration.
        self.negatives.invalidate_all();
        self.silent_registries.invalidate_all();
        self.troubled().clear();
    }

    /// What is meant by a name and `ns` now.
    pub fn resolve(&self, name: &str, ns: Option<&str>) -> Result<Target, PullError> {
        self.view().resolve(name, ns)
    }

    fn upstream_of(&self, target: &Target) -> Option<Arc<Client>> {
        target.client.clone()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The name by which a request is known that this proxy sent itself.
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// Transfers under way.
    pub fn transfers(&self) -> usize {
        self.flights.count()
    }

    /// Upstreams that asked to be left alone, and for how long still.
    pub fn paused(&self) -> Vec<(Arc<str>, Duration)> {
        let policy = self.policy.load();
        let paused = policy.clients.all();
        paused.filter_map(|c| Some((c.name().clone(), c.paused()?))).collect()
    }

    /// The pull limits of every upstream that speaks of them.
    pub fn budgets(&self) -> Vec<(Arc<str>, Vec<Budget>)> {
        let policy = self.policy.load();
        let all = policy.clients.all();
        let of = |client: &Arc<Client>| (client.name().clone(), client.budgets());
        all.map(of).filter(|(_, budgets)| !budgets.is_empty()).collect()
    }

    /// How the addresses of every upstream are doing that were asked since the start.
    pub fn addresses(&self) -> Vec<(Arc<str>, Vec<AddressState>)> {
        let policy = self.policy.load();
        let all = policy.clients.all();
        let of = |client: &Arc<Client>| (client.name().clone(), client.addresses());
        all.map(of).filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// Brings gauges up to date that change by time alone.
    pub fn export(&self) {
        self.policy.load().clients.all().for_each(|client| client.export());
    }

    fn client(&self, target: &Target) -> Result<Arc<Client>, PullError> {
        if target.held_only {
            return Err(PullError::NotHeld(target.key.to_string()));
        }
        if self.is_offline(target) {
            return Err(self.not_in_mirror(target));
        }
        self.upstream_of(target)
            .ok_or_else(|| PullError::UnknownUpstream(target.upstream.name.to_string()))
    }

    fn not_in_mirror(&self, target: &Target) -> PullError {
        PullError::NotInMirror(Absent::new(&target.key, self.store.filled()))
    }

    fn is_offline(&self, target: &Target) -> bool {
        target.offline || target.held_only
    }

    /// Bytes that a manifest of this repository claims for a blob; not what no file can have.
    fn hint(&self, target: &Target, digest: &Digest) -> Option<u64> {
        let claimed = self.hints.get(&(target.key.clone(), *digest));
        claimed.filter(|size| *size <= transfer::MAX_BLOB_BYTES)
    }

    fn check_negative(&self, target: &Target, question: &Question) -> Result<(), PullError> {
        match self.negatives.get(&(target.key.clone(), question.clone())) {
            Some(negative) if negative.answered.elapsed() < negative.ttl => {
                let age = Some(negative.answered.elapsed());
                Err(UpstreamError { age, ..negative.error }.into())
            }
            _ => Ok(()),
        }
    }

    /// Remembers for `cache.negative_ttl` that something is not there, or is not given out. Only an upstream that works can
    /// say so (R-C81). Never for longer than a tag is trusted, whatever was asked for: a digest, too, may be pushed a
    /// moment later, and an operator who has every tag asked for anew wants to see that at once.
    fn note_negative(&self, target: &Target, question: Question, error: &PullError) {
        let PullError::Upstream(error) = error else { return };
        // What is remembered already grows older, however often it is told again.
        if !error.is_definite() || error.age.is_some() {
            return;
        }
        let ttl = self.policy.load().negative_ttl.min(target.upstream.tag_ttl);
        if ttl.is_zero() {
            return;
        }
        let negative = Negative {
            error: error.clone(),
            answered: Instant::now(),
            ttl,
        };
        self.negatives.insert((target.key.clone(), question), negative);
    }

    /// After an answer: whether the repository gave it to these credentials only is kept with it (R-X7). An answer that does
    /// not tell leaves the mark alone.
    fn note_privacy(&self, target: &Target) {
        let client = self.upstream_of(target);
        if let Some(private) = client.and_then(|client| client.has_credentials(&target.repository)) {
            self.store.set_private(&target.key, private);
        }
    }

    /// How long a client that could be served something stale waits for the upstream, and what it is told when
    /// that time is over. An upstream in trouble is asked all the same, but nobody waits for it (R-W9).
    fn patience(&self, target: &Target) -> (Duration, &'static str) {
        match self.troubled().get(&target.upstream.name) {
            Some((until, reason)) if Instant::now() < *until => (Duration::ZERO, reason),
            _ => (self.timing.patience, "slow"),
        }
    }

    /// Why the upstream fails at the moment, if what was asked of it last did: it is asked again, and may not be slow.
    fn failing(&self, target: &Target) -> Option<&'static str> {
        self.upstream_of(target)?.failing()
    }

    /// Why the upstream fails at the moment, in a sentence that names it, if the last request to the registry itself did.
    pub fn why_failing(&self, target: &Target) -> Option<String> {
        let why = self.upstream_of(target)?.why_failing()?;
        Some(format!("{}: {why}", target.upstream.name))
    }

    fn note_trouble(&self, target: &Target, reason: &'static str) {
        let until = Instant::now() + self.timing.trouble_for;
        self.troubled().insert(target.upstream.name.clone(), (until, reason));
    }

    /// Every question about something mutable ends here: its upstream is well, or in trouble.
    fn note_verdict(&self, target: &Target, error: Option<&PullError>, took: Duration) {
        match error {
            Some(error) if error.is_trouble() => self.note_trouble(target, error.as_str()),
            Some(
                PullError::Store(_)
                | PullError::Internal(_)
                | PullError::Spared(_)
                | PullError::Busy
                | PullError::Late { .. },
            ) => {}
            _ if took < self.timing.patience => {
                self.troubled().remove(&target.upstream.name);
            }
            _ => {}
        }
    }

    /// Returns whether it is to be logged that an upstream did not confirm a tag: once a minute for each, as every request that is served
    /// stale has its own line, and not while a line says that its registry is down.
    fn warns_of_stale(&self, target: &Target) -> bool {
        const EVERY: Duration = Duration::from_secs(60);
        if self.upstream_of(target).is_some_and(|client| client.is_logged_down()) {
            return false;
        }
        let mut told = self.told_stale.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.get(&target.upstream.name).is_none_or(|at| at.elapsed() >= EVERY);
        if is_due {
            told.insert(target.upstream.name.clone(), Instant::now());
        }
        is_due
    }

    /// Grows to the number of upstreams and no further.
    fn troubled(&self) -> MutexGuard<'_, HashMap<HostPort, (Instant, &'static str)>> {
        self.troubled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod names_tests;
