//! The composition root: builds everything once, runs it, stops it.
//!
//! [`start`] is the proxy, `reload` gives it another configuration; `rest` opens a folder that none runs on, for operators;
//! `listeners` is where it can be reached, `api_token` is what its admin API takes for proof and `admin_address` the way there; `acme` has its
//! certificate kept, `certificates` says when those in files expire, `memory` gives back what was freed; `checkup` looks at everything that can be wrong.

mod acme;
pub mod admin_address;
mod api_token;
mod certificates;
mod changes;
pub mod checkup;
mod explain;
mod hooks;
mod keys;
mod listeners;
mod memory;
mod reload;
mod rest;
mod review;
mod traces;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use acme::certificate;
pub use changes::Fixed;
pub use explain::{AccessCheck, explain};
pub use hooks::test_webhook;
pub use listeners::ListenError;
pub use reload::{ReloadError, ReloadRequest, Reloaded};
pub use rest::AtRest;
pub use review::{User, review};

use crate::acme::Keeper;
use crate::admin::views::ApiView;
use crate::admin::{Admin, ImportPatience, Limits, LogControl, Meter, Traffic};
use crate::auth::{Gate, GateError};
use crate::config::{Config, ConfigError, Listen, MAIN_LISTENER};
use crate::http::ops::{self, Readiness, ReadinessCheck};
use crate::http::server::LiveLimits;
use crate::http::{admin as api, v2};
use crate::jobs::audit::Audit;
use crate::jobs::prefetch::Patience;
use crate::jobs::webhook::HookError;
use crate::jobs::{Pace, Prefetcher, Verifier, Webhooks};
use crate::oci::{Hasher, HostPort};
use crate::pull::{Pull, Timing, buffered_bytes};
use crate::store::{Faults, Store, StoreError, watch_clock};
use crate::telemetry::log;
use crate::telemetry::metrics::{self, InstallError};
use crate::telemetry::process::Certificates;
use crate::telemetry::trace::Exporter;
use crate::upstream::Clients;
use crate::upstream::client::BuildError;
use api_token::ApiTokens;
use listeners::{Holding, Listeners, addresses};
use memory::Trimmer;
use reload::{Holds, Refused, Reloader, Requests};

/// Gauges are brought up to date, histograms folded, and the limit looked after, this often.
const UPKEEP: Duration = Duration::from_secs(5);

/// Files of certificates are looked at this often.
const LOOK_AT_CERTIFICATES: Duration = Duration::from_secs(60);

/// Why Larder did not start. Each names what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Upstream(#[from] BuildError),
    #[error(transparent)]
    Metrics(#[from] InstallError),
    #[error("the default upstream {0} is not among the upstreams")]
    DefaultUpstream(HostPort),
    #[error("cannot use the sockets that this process was started with: {0}")]
    Sockets(std::io::Error),
    #[error("audit.file: cannot write {0}: {1}")]
    Audit(String, std::io::Error),
    #[error(transparent)]
    Webhook(#[from] HookError),
    #[error("traces: {0}")]
    Traces(String),
    #[error("a start-up task ended early")]
    Task,
}

impl StartError {
    /// Set when another larder has the folder: its pid, where the lock tells.
    pub fn lock_holder(&self) -> Option<Option<u32>> {
        match self {
            StartError::Store(StoreError::Locked { pid, .. }) => Some(*pid),
            _ => None,
        }
    }
}

/// A proxy that serves. Dropping it cuts it off; [`Running::stop`] lets it finish.
pub struct Running {
    /// Where the registry listened at the start; port 0 has become a real one. [`Running::open`] knows what is now.
    pub registry: Vec<SocketAddr>,
    /// The addresses among those of [`Running::operators`].
    pub admin: Vec<SocketAddr>,
    /// Where operators connected at the start.
    pub operators: Open,
    /// Whether the registry speaks TLS.
    pub tls: bool,
    /// The further listeners of the registry.
    pub listeners: Vec<Open>,
    pull: Arc<Pull>,
    reloader: Arc<Reloader>,
    requests: Requests,
    hooks: Webhooks,
    exporter: Option<Exporter>,
    stop: CancellationToken,
    cut: CancellationToken,
    /// Ends the wait for running responses.
    hurry: CancellationToken,
    transfers: TaskTracker,
    /// What goes on beside requests.
    background: Vec<JoinHandle<()>>,
}

/// A listener of the registry, or that of operators.
#[derive(Clone, Debug)]
pub struct Open {
    pub name: String,
    /// Port 0 has become a real one.
    pub at: Vec<Listen>,
    pub tls: bool,
}

/// Sockets that the process was started with; where there are any, the configured addresses are not bound.
#[derive(Debug, Default)]
pub struct Sockets {
    pub registry: Vec<TcpListener>,
    pub admin: Vec<TcpListener>,
}

/// Starts with the usual timing. Dials no upstream (L3).
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_with(config, Timing::default()).await
}

/// The same, on sockets that are bound already.
pub async fn start_on(config: Config, sockets: Sockets) -> Result<Running, StartError> {
    launch(config, sockets, Timing::default(), None).await
}

/// Starts with other patience.
pub async fn start_with(config: Config, timing: Timing) -> Result<Running, StartError> {
    start_full(config, timing, None).await
}

/// Starts, on a disk that fails when it is told to (for tests).
pub async fn start_full(config: Config, timing: Timing, faults: Option<Faults>) -> Result<Running, StartError> {
    launch(config, Sockets::default(), timing, faults).await
}

/// Ports are bound first, so that a second proxy fails before it touches anything.
async fn launch(
    config: Config,
    sockets: Sockets,
    timing: Timing,
    faults: Option<Faults>,
) -> Result<Running, StartError> {
    tracing::debug!(sha256_by = Hasher::sha256_by(), "starting");
    let expiries = Certificates::default();
    let handle = metrics::install()?.with_certificates(expiries.clone());
    let acme = acme::Acme::bind(&config)?;
    let given = Holding::given(sockets).map_err(StartError::Sockets)?;
    let plan = listeners::plan(&config, &given, &acme.issued)?;
    let fetch = keys::fetch();
    let gate = Arc::new(Gate::new(&config.access, &fetch)?);
    let at = config.clone();
    let store = tokio::task::spawn_blocking(move || Store::open_with(&at, faults))
        .await
        .map_err(|_| StartError::Task)??;
    let audit = match &config.audit {
        Some(audit) => Some(Audit::start(audit, store.events()).map_err(|error| {
            let file = audit.file.display().to_string();
            StartError::Audit(file, error)
        })?),
        None => None,
    };
    let clients = Clients::new(&config)?;
    let (tracer, exporter) = traces::start(config.traces.as_ref()).map_err(StartError::Traces)?;
    // Behind the first hits: a million files take seconds to look at.
    let walked = store.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = walked.reconcile() {
            tracing::error!(%error, "the cache folder could not be compared with the index");
        }
    });
    let (stop, cut, transfers) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let source = hooks::source(&plan.registry());
    let hooks = Webhooks::new(store.clone(), hooks::couriers(), source, cut.clone());
    let (setting, wanted) = (hooks.clone(), config.webhooks.clone());
    // What waits is counted, and authorities are read.
    tokio::task::spawn_blocking(move || setting.set(&wanted))
        .await
        .map_err(|_| StartError::Task)??;
    let patience = ImportPatience {
        silence: timing.import_silence,
        ..ImportPatience::default()
    };
    let pull = Pull::new(&config, store, clients, timing, transfers.clone(), cut.clone())
        .ok_or_else(|| StartError::DefaultUpstream(config.cache.default_upstream.clone()))?;

    let verifier = Verifier::new(pull.clone(), transfers.clone(), cut.clone());
    let (tries, schedules) = (Patience::default(), &config.prefetch);
    let prefetcher = Prefetcher::new(pull.clone(), transfers.clone(), cut.clone(), tries, schedules);
    let desk = Admin::new(
        pull.clone(),
        verifier.clone(),
        prefetcher.clone(),
        limits(&config),
        meter(&handle),
    )
    .with_log(log_control())
    .with_import_patience(patience)
    .with_webhooks(hooks.clone());
    let requests = Requests::default();
    let tokens = ApiTokens::default();
    tokens.set(&config.admin, &plan.admin());
    let timed = Arc::new(AtomicBool::new(config.server.server_timing));
    let (client_limits, refused) = (LiveLimits::from(config.limits.clone()), Refused::default());
    reload::tell(true);
    let (shown, kept) = (tokens.clone(), tokens.clone());
    let answering = desk.clone().with_reload(requests.control());
    let api = api::router(answering.with_api(Arc::new(move || shown.shown())));
    let readiness = readiness(&pull, &refused, acme.keeper.clone(), &stop);
    let ops = ops::router(readiness, handle.clone(), api, tokens.admitted(), Vec::new());
    let view = pull.view();
    let entrance = v2::Entrance::new(v2::Door::new(
        gate.clone(),
        view.clone(),
        MAIN_LISTENER,
        config.server.tls.is_some(),
        config.server.trusted_proxies.clone(),
    ));
    let registry = v2::Registry::new(pull.clone(), timed.clone(), entrance.clone()).traced(tracer);
    let listeners = Listeners::new((registry, entrance), ops, client_limits.clone(), stop.clone(), &cut);
    listeners.apply(plan, &gate, &view, &config.server.trusted_proxies);
    let issued = acme.issued.clone();
    let keeping = acme.run(&client_limits, &cut);
    let reloader = Arc::new(Reloader {
        pull: pull.clone(),
        admin: desk,
        hooks: hooks.clone(),
        issued,
        limits: client_limits,
        tokens,
        timed,
        prefetcher: prefetcher.clone(),
        listeners,
        fetch,
        holds: Mutex::new(Holds { config, gate, audit }),
        refused,
    });
    let mut background = vec![
        tokio::spawn(keep_up(pull.clone(), hooks.clone(), handle, cut.clone())),
        tokio::spawn(take_samples(reloader.clone(), cut.clone())),
        tokio::spawn(watch_certificates(reloader.clone(), expiries, cut.clone())),
        tokio::spawn(look_for_rot(verifier, cut.clone())),
        tokio::spawn(copy_index(pull.clone(), cut.clone())),
        tokio::spawn(fetch_ahead(prefetcher, cut.clone())),
        tokio::spawn(api_token::keep(kept, cut.clone())),
    ];
    background.extend(keeping);
    let mut open = reloader.listeners.open();
    let main = open.remove(0);
    let operators = reloader.listeners.admin();
    Ok(Running {
        registry: addresses(main.at.iter()),
        admin: addresses(operators.at.iter()),
        operators,
        tls: main.tls,
        listeners: open,
        pull,
        reloader,
        requests,
        hooks,
        exporter,
        stop,
        cut,
        hurry: CancellationToken::new(),
        transfers,
        background,
    })
}

impl Running {
    /// The service, for those who look at it from inside.
    pub fn pull(&self) -> &Arc<Pull> {
        &self.pull
    }

    /// Takes another configuration, as far as that is possible without a restart. What was read and makes no sense is noted
    /// and changes nothing.
    pub async fn reload(&self, read: Result<Config, ConfigError>) -> Result<Reloaded, ReloadError> {
        self.reloader.take(read).await
    }

    /// The registry's listeners as they are now, that of `[server]` first.
    pub fn open(&self) -> Vec<Open> {
        self.reloader.listeners.open()
    }

    /// What the admin API takes for proof now.
    pub fn api(&self) -> ApiView {
        self.reloader.tokens.shown()
    }

    /// What operators ask for over the admin API, for whoever reads the configuration. Until then they are told that nobody does.
    pub fn reload_requests(&self) -> mpsc::Receiver<ReloadRequest> {
        self.requests.hear()
    }

    /// The file of the configuration that it goes by, if there is one.
    pub fn file(&self) -> Option<std::path::PathBuf> {
        self.reloader.file()
    }

    /// Files beside that of the configuration: when one of them changes, all is to be read again.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        self.reloader.files()
    }

    /// Cancelled, it ends the grace of [`Running::stop`]: running responses are cut.
    pub fn hurry(&self) -> CancellationToken {
        self.hurry.clone()
    }

    /// Accepts nothing more, lets running responses finish within the grace, pauses transfers and writes down what is
    /// known.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.reloader.listeners.finish(self.reloader.grace(), &self.hurry).await;
        // Operators want to see how the stop goes: their address answers until the end.
        self.reloader.tokens.close();
        self.cut.cancel();
        self.reloader.listeners.finish_admin().await;
        for task in std::mem::take(&mut self.background) {
            let _ = task.await;
        }
        self.transfers.close();
        self.transfers.wait().await;
        if let Some(exporter) = self.exporter.take() {
            exporter.close().await;
        }
        let (store, audit, hooks) = (
            self.pull.store().clone(),
            self.reloader.take_audit(),
            self.hooks.clone(),
        );
        let _ = tokio::task::spawn_blocking(move || {
            store.close();
            store.events().close();
            if let Some(audit) = audit {
                audit.join();
            }
            hooks.join();
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.reloader.tokens.close();
        self.pull.store().events().close();
        self.stop.cancel();
        self.cut.cancel();
        for task in &self.background {
            task.abort();
        }
    }
}

/// Ready: nobody asked to stop. A disk that takes nothing is no reason to send requests elsewhere: pulls pass through
/// (L5), so it is told as a check that fails, which makes a proxy degraded and not unready. Upstreams do not count
/// either: what is held is served without them (L3). Those that asked to be left alone are named all the same.
fn readiness(
    pull: &Arc<Pull>,
    refused: &Refused,
    keeper: Option<Arc<Keeper>>,
    stop: &CancellationToken,
) -> ReadinessCheck {
    let (pull, refused, stop) = (pull.clone(), refused.clone(), stop.clone());
    Arc::new(move || {
        let disk = probe_disk(pull.store());
        let stopping = stop.is_cancelled();
        let usage = pull.store().usage();
        let mut checks = vec![
            (
                "cache".to_owned(),
                disk.is_ok(),
                match &disk {
                    Ok(()) => format!(
                        "{}, {} of {} bytes",
                        crate::text::count(usage.blobs, "blob"),
                        usage.used_bytes,
                        usage.max_bytes
                    ),
                    Err(error) => error.to_string(),
                },
            ),
            (
                "serving".to_owned(),
                !stopping,
                if stopping {
                    "stopping".to_owned()
                } else {
                    format!("{} transfers", pull.transfers())
                },
            ),
        ];
        let index = pull.store().index_state();
        if let Some(trouble) = index.trouble() {
            // Rebuilt from a whole copy it is well.
            let is_well = index.damage.is_none() && index.recovery.is_some_and(|r| r.is_whole);
            checks.push(("index".to_owned(), is_well, trouble));
        }
        checks.extend(keeper.as_deref().map(acme::check));
        if let Some(trouble) = pull.store().trouble() {
            checks.push((
                "disk".to_owned(),
                false,
                format!("passing through, not keeping: {trouble}"),
            ));
        }
        let refused = refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(why) = refused {
            let why = why.trim_end();
            checks.push((
                "configuration".to_owned(),
                false,
                format!("refused, the previous configuration stays active: {why}"),
            ));
        }
        for (upstream, left) in pull.paused() {
            checks.push((
                format!("upstream {upstream}"),
                true,
                format!("rate-limited: not asked for another {} s", left.as_secs()),
            ));
        }
        Readiness {
            ready: !stopping,
            checks,
        }
    })
}

/// Whether the folder can be written. Noted as a failed pull would note it, so that the gauge, the error counter and
/// a line a minute tell of a disk that fails while nobody pulls.
fn probe_disk(store: &Store) -> Result<(), StoreError> {
    let probed = store.probe().inspect_err(|error| store.note_trouble(error));
    let degraded = probed.is_err() || store.trouble().is_some();
    ::metrics::gauge!("larder_cache_degraded").set(f64::from(u8::from(degraded)));
    probed
}

/// What operators are told about the limits, and about options.
fn limits(config: &Config) -> Limits {
    let own = |upstream: &crate::config::Upstream| Some((upstream.name.to_string(), upstream.max_size?));
    Limits {
        max_bytes: config.cache.max_size,
        upstreams: config.upstreams.iter().filter_map(own).collect(),
        bundle_keys: config.bundle.trusted_keys.clone(),
        manifest_size: Some(config.limits.manifest_size),
        manifest_descriptors: Some(config.limits.manifest_descriptors),
        options: config.options(),
    }
}

/// How much is told, for operators who want to see more for a while.
fn log_control() -> LogControl {
    LogControl {
        level: Arc::new(log::level),
        change: Arc::new(|level| log::set_level(level).map_err(|error| error.to_string())),
    }
}

/// What operators are told of the traffic: the metrics' own figures.
fn meter(handle: &metrics::Handle) -> Meter {
    let handle = handle.clone();
    const NAMES: [&str; 3] = [
        "larder_response_bytes_total",
        "larder_cached_response_bytes_total",
        "larder_upstream_bytes_total",
    ];
    Arc::new(move || {
        let mut counted = handle.counted(&NAMES, "upstream").into_iter();
        let mut next = || counted.next().unwrap_or_default();
        Traffic {
            served: next(),
            cached: next(),
            fetched: next(),
        }
    })
}

async fn look_for_rot(verifier: Arc<Verifier>, stop: CancellationToken) {
    let pace = Pace::default();
    tokio::select! {
        () = verifier.run_idle(&pace) => {}
        () = stop.cancelled() => {}
    }
}

async fn copy_index(pull: Arc<Pull>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = stop.cancelled() => return,
        }
        let store = pull.store().clone();
        // Awaited also when it is time to stop: the store is closed behind it.
        let _ = tokio::task::spawn_blocking(move || store.copy_if_due()).await;
    }
}

async fn fetch_ahead(prefetcher: Arc<Prefetcher>, stop: CancellationToken) {
    tokio::select! {
        () = prefetcher.run_schedules() => {}
        () = stop.cancelled() => {}
    }
}

/// Takes samples of the counters for the figures of the last hour and the last day. Touches no file: one on a hung mount would
/// leave gaps.
async fn take_samples(reloader: Arc<Reloader>, stop: CancellationToken) {
    loop {
        let reloader = reloader.clone();
        // Rendering the counters takes a moment.
        let _ = tokio::task::spawn_blocking(move || reloader.admin.sample()).await;
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Reads the files of certificates from time to time, for the metrics of when they expire.
async fn watch_certificates(reloader: Arc<Reloader>, expiries: Certificates, stop: CancellationToken) {
    let mut looked = None;
    loop {
        let (reloader, expiries, before) = (reloader.clone(), expiries.clone(), looked.take());
        // Files are read, and a reload may hold the configuration for as long as it takes.
        let mut looking =
            tokio::task::spawn_blocking(move || look_at_certificates(reloader.certificate_files(), &expiries, before));
        // A file on a hung mount keeps no process from its end.
        tokio::select! {
            done = &mut looking => looked = done.ok(),
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Files of certificates, and when they were read.
type Looked = (Vec<certificates::CertificateFile>, Instant);

/// Reads the files if there are others than before, or a minute has passed: listeners take up renewed ones without a reload.
fn look_at_certificates(
    files: Vec<certificates::CertificateFile>,
    expiries: &Certificates,
    before: Option<Looked>,
) -> Looked {
    match before {
        Some((known, at)) if known == files && at.elapsed() < LOOK_AT_CERTIFICATES => (known, at),
        _ => {
            expiries.set(certificates::expiries(&files));
            (files, Instant::now())
        }
    }
}

async fn keep_up(pull: Arc<Pull>, hooks: Webhooks, handle: metrics::Handle, stop: CancellationToken) {
    let trimmer = Arc::new(Mutex::new(Trimmer::default()));
    loop {
        let usage = pull.store().usage();
        ::metrics::gauge!("larder_cache_used_bytes").set(usage.used_bytes as f64);
        ::metrics::gauge!("larder_cache_max_bytes").set(usage.max_bytes as f64);
        ::metrics::gauge!("larder_cache_blobs").set(usage.blobs as f64);
        ::metrics::gauge!("larder_cache_staged_bytes").set(usage.staged_bytes as f64);
        ::metrics::gauge!("larder_cache_index_bytes").set(usage.index_bytes as f64);
        ::metrics::gauge!("larder_cache_list_bytes").set(usage.list_bytes as f64);
        ::metrics::gauge!("larder_wishes").set(pull.store().wish_count() as f64);
        ::metrics::gauge!("larder_transfers_in_flight").set(pull.transfers() as f64);
        ::metrics::gauge!("larder_http2_buffered_bytes").set(buffered_bytes() as f64);
        pull.export();
        handle.upkeep();
        let (store, hooks, trimmer) = (pull.store().clone(), hooks.clone(), trimmer.clone());
        watch_clock();
        let _ = tokio::task::spawn_blocking(move || {
            trimmer.lock().unwrap_or_else(PoisonError::into_inner).look();
            store.keep_limit();
            store.flush_wishes();
            hooks.export();
            // What it found is in the metrics and in the log.
            let _ = probe_disk(&store);
        })
        .await;
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {}
            () = stop.cancelled() => return,
        }
    }
}
