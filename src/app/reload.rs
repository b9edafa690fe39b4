//! Another configuration for a proxy that runs.
//!
//! Walk: everything that can fail is done first and changes nothing: certificates of upstreams and listeners are loaded, files
//! of `[access]` read, new addresses bound, the audit file opened, queues of webhooks made. Then all is exchanged, in an order in which nothing can
//! fail: what names mean and whom they ask (`pull`), who may (`auth`), each listener's door with both, so that a request sees
//! the one configuration or the other; then sockets and certificates, limits, token, schedules, the audit log. What cannot
//! change while a folder is open is named, as it is and as it is wanted, and stays as it was until a restart. Requests under way
//! finish as they began.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use super::api_token::ApiTokens;
use super::certificates::{self, CertificateFile};
use super::changes::{self, Fixed};
use super::limits;
use super::listeners::{self, ListenError, Listeners};
use crate::acme::Issued;
use crate::admin::views::{FixedView, ReloadView};
use crate::admin::{Admin, AdminError, Reload};
use crate::auth::jwks::Fetch;
use crate::auth::{Gate, GateError};
use crate::config::{Config, ConfigError};
use crate::http::server::LiveLimits;
use crate::jobs::audit::Audit;
use crate::jobs::webhook::HookError;
use crate::jobs::{Prefetcher, Webhooks};
use crate::pull::Pull;
use crate::telemetry::log;
use crate::upstream::client::BuildError;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// With file, line, key and what was expected.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It would be all defaults, which nobody asked for.
    #[error(
        "{file}: found {found}, expected at least one key, because the active configuration has keys from that file; to go back to the defaults, restart"
    )]
    Empty { file: String, found: &'static str },
    #[error("{before} is gone: found {found}; put it back, or restart to run with what is found")]
    OtherFile { before: String, found: String },
    #[error(transparent)]
    Upstream(#[from] BuildError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Webhook(#[from] HookError),
    #[error("a certificate by [acme] is got by a proxy that was started with it: restart, or name cert and key")]
    Acme,
    #[error("audit.file: cannot write {0}: {1}")]
    Audit(String, std::io::Error),
    #[error(transparent)]
    Level(#[from] log::BadLevel),
    #[error("the work was dropped")]
    Dropped,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that differ from what held before.
    pub changed: Vec<String>,
    /// Of these, those that take a restart.
    pub needs_restart: Vec<Fixed>,
    /// What works but should not stay so.
    pub warnings: Vec<String>,
}

impl Reloaded {
    pub fn view(&self) -> ReloadView {
        let fixed = |fixed: &Fixed| FixedView {
            key: fixed.key.to_owned(),
            holds: fixed.holds.clone(),
            wanted: fixed.wanted.clone(),
        };
        ReloadView {
            changed: self.changed.clone(),
            needs_restart: self.needs_restart.iter().map(fixed).collect(),
            warnings: self.warnings.clone(),
        }
    }
}

/// An operator who wants the configuration to be read again, and what came of it or why nothing was changed.
pub type ReloadRequest = oneshot::Sender<Result<Reloaded, String>>;

/// Whoever reads the configuration hears the requests here, once there is such.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Mutex<Option<mpsc::Sender<ReloadRequest>>>>);

impl Requests {
    pub(super) fn hear(&self) -> mpsc::Receiver<ReloadRequest> {
        let (sender, receiver) = mpsc::channel(16);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// For operators.
    pub(super) fn control(&self) -> Reload {
        let requests = self.clone();
        Arc::new(move || {
            let sender = requests.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Box::pin(async move {
                let sender = sender.ok_or(AdminError::NoReload)?;
                let (request, answer) = oneshot::channel();
                sender.send(request).await.map_err(|_| AdminError::NoReload)?;
                match answer.await {
                    Ok(Ok(reloaded)) => Ok(reloaded.view()),
                    Ok(Err(why)) => Err(AdminError::Reload(why)),
                    Err(_) => Err(AdminError::Dropped),
                }
            })
        })
    }
}

/// Everything that a running proxy's configuration reaches.
pub(super) struct Reloader {
    pub pull: Arc<Pull>,
    pub admin: Admin,
    pub hooks: Webhooks,
    /// What listeners show whose certificate Larder gets.
    pub issued: Arc<Issued>,
    pub limits: LiveLimits,
    pub tokens: ApiTokens,
    pub timed: Arc<AtomicBool>,
    pub prefetcher: Arc<Prefetcher>,
    pub listeners: Listeners,
    /// Brings keys of token issuers.
    pub fetch: Fetch,
    pub holds: Mutex<Holds>,
    pub refused: Refused,
}

/// Why the last one was refused.
pub(super) type Refused = Arc<Mutex<Option<String>>>;

/// What holds now.
pub(super) struct Holds {
    pub config: Config,
    pub gate: Arc<Gate>,
    pub audit: Option<Audit>,
}

impl Reloader {
    /// Takes what was read, or notes why it is refused.
    pub async fn take(self: &Arc<Reloader>, read: Result<Config, ConfigError>) -> Result<Reloaded, ReloadError> {
        let outcome = match read {
            Ok(config) => self.apply(config).await,
            Err(error) => Err(error.into()),
        };
        self.note(outcome.as_ref().err());
        outcome
    }

    async fn apply(self: &Arc<Reloader>, config: Config) -> Result<Reloaded, ReloadError> {
        let reloader = self.clone();
        // Files are read, and a lower limit may evict.
        let work = tokio::task::spawn_blocking(move || reloader.exchange(config));
        work.await.map_err(|_| ReloadError::Dropped)?
    }

    fn holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, config: Config) -> Result<Reloaded, ReloadError> {
        // One at a time.
        let mut holds = self.holds();
        check_file(&holds.config, &config)?;
        log::check(&config.log.level)?;
        let view = self.pull.prepare(&config)?;
        let gate = Arc::new(holds.gate.after(&config.access, &self.fetch)?);
        if config.acme.is_some() && holds.config.acme.is_none() {
            return Err(ReloadError::Acme);
        }
        let plan = listeners::plan(&config, &self.listeners.holding(), &self.issued)?;
        self.hooks.check(&config.webhooks)?;
        // The last, since they may make files.
        let has_other_audit = config.audit != holds.config.audit;
        let audit = match &config.audit {
            Some(audit) if has_other_audit => Some(
                Audit::prepare(audit).map_err(|error| ReloadError::Audit(audit.file.display().to_string(), error))?,
            ),
            _ => None,
        };
        self.hooks.set(&config.webhooks)?;
        if config.log.level != holds.config.log.level {
            log::set_level(&config.log.level)?;
        }

        // Nothing fails from here on.
        self.pull.adopt(&view);
        // A port that is given up keeps no file, and no call comes to a new one before it has its own.
        self.tokens.set(&config.admin, &plan.admin());
        self.listeners.apply(plan, &gate, &view, &config.server.trusted_proxies);
        self.pull.store().set_limits(&config);
        self.limits.set(config.limits.clone());
        self.admin.set_limits(limits(&config));
        self.timed.store(config.server.server_timing, Ordering::Relaxed);
        self.prefetcher.set_schedules(&config.prefetch);
        if has_other_audit {
            let (before, events) = (holds.audit.take(), self.pull.store().events());
            match (audit, before) {
                (Some(audit), before) => holds.audit = Some(audit.succeed(before, events)),
                (None, Some(before)) => before.end(events),
                (None, None) => {}
            }
        }
        let given = self.listeners.are_given();
        let reloaded = Reloaded {
            changed: changes::between(&holds.config, &config),
            needs_restart: changes::fixed(&holds.config, &config, given),
            warnings: config.warnings.clone(),
        };
        holds.gate = gate;
        holds.config = changes::as_it_holds(&holds.config, config, given);
        Ok(reloaded)
    }

    /// How long running responses may take to finish after a stop was asked for.
    pub fn grace(&self) -> Duration {
        self.holds().config.server.shutdown_grace
    }

    pub fn take_audit(&self) -> Option<Audit> {
        self.holds().audit.take()
    }

    /// The file of the configuration, if there is one.
    pub fn file(&self) -> Option<PathBuf> {
        self.holds().config.file.clone()
    }

    /// Files that are read with the configuration and by nobody else: when one changes, all is to be read again.
    pub fn files(&self) -> Vec<PathBuf> {
        let holds = self.holds();
        let upstreams = holds.config.upstreams.iter();
        let of = |upstream: &crate::config::Upstream| {
            [&upstream.ca_file, &upstream.client_cert, &upstream.client_key].map(Option::clone)
        };
        let files = upstreams
            .flat_map(of)
            .chain([holds.config.access.token_key_file.clone()]);
        files.flatten().collect()
    }

    /// Files of certificates that the configuration names.
    pub fn certificate_files(&self) -> Vec<CertificateFile> {
        certificates::files(&self.holds().config)
    }

    fn note(&self, error: Option<&ReloadError>) {
        let result = if error.is_some() { "refused" } else { "ok" };
        metrics::counter!("larder_config_reloads_total", "result" => result).increment(1);
        tell(error.is_none());
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = error.map(ToString::to_string);
    }
}

/// Refuses a configuration whose file is empty or gone: an editor, or whatever else writes it, may be in the middle of
/// it, and the defaults are nothing that an operator asks for by that.
fn check_file(active: &Config, read: &Config) -> Result<(), ReloadError> {
    let Some(before) = &active.file else { return Ok(()) };
    let found = match &read.file {
        Some(file) if file == before => {
            if !active.has_keys_of_file() || read.has_keys_of_file() {
                return Ok(());
            }
            let is_empty = std::fs::metadata(file).is_ok_and(|meta| meta.len() == 0);
            return Err(ReloadError::Empty {
                file: file.display().to_string(),
                found: match is_empty {
                    true => "an empty file",
                    false => "nothing but comments and blanks",
                },
            });
        }
        Some(other) => format!("{} in its place", other.display()),
        None => "no configuration file".to_owned(),
    };
    let before = before.display().to_string();
    Err(ReloadError::OtherFile { before, found })
}

/// For the gauges: whether what was read last holds, and since when.
pub(super) fn tell(is_good: bool) {
    metrics::gauge!("larder_config_last_reload_ok").set(f64::from(u8::from(is_good)));
    if is_good {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |now| now.as_secs_f64());
        metrics::gauge!("larder_config_loaded_timestamp_seconds").set(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    /// The usual files, found and not found.
    #[test]
    fn an_empty_file_and_one_that_is_gone_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment {
            cwd: folder.path().to_owned(),
            etc: folder.path().join("etc"),
            home: Some(folder.path().to_owned()),
            ..Environment::default()
        };
        let file = folder.path().join("proxy.toml");
        let read = |text: Option<&str>| {
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => drop(std::fs::remove_file(&file)),
            }
            Config::load(None, &environment).unwrap()
        };
        let (none, empty) = (read(None), read(Some("")));
        let full = read(Some("[cache]\nmax_size = \"1GiB\"\n"));
        let refused = |active: &Config, text| check_file(active, &read(text)).map_err(|error| error.to_string());
        for (text, found) in [
            (Some(""), "found an empty file"),
            (
                Some("# max_size = \"1GiB\"\n\n"),
                "found nothing but comments and blanks",
            ),
            (None, "found no configuration file"),
        ] {
            let why = refused(&full, text).unwrap_err();
            assert!(
                why.contains("proxy.toml") && why.contains(found) && why.contains("restart"),
                "{why}"
            );
        }
        std::fs::create_dir_all(folder.path().join("etc/larder")).unwrap();
        std::fs::write(
            folder.path().join("etc/larder/proxy.toml"),
            "[cache]\ntag_ttl = \"1s\"\n",
        )
        .unwrap();
        let why = refused(&full, None).unwrap_err();
        assert!(why.contains("etc/larder/proxy.toml in its place"), "{why}");
        // Whoever began with the defaults has lost nothing, and may write a file later.
        for active in [&none, &empty] {
            refused(active, Some("")).unwrap();
            refused(active, Some("[cache]\ntag_ttl = \"1s\"\n")).unwrap();
        }
        refused(&full, Some("[cache]\n")).unwrap();
    }
}
