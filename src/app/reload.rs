//! Another configuration for a proxy that runs.
//!
//! Walk: the new configuration is held against the old one; everything that can fail (certificates of upstreams) is built
//! first, then all is exchanged: upstreams and policy (`Pull::reload`), webhooks, limits of the store, of connections and of what
//! operators are told, their token, the log level. What cannot change while sockets and folders are open is named, and stays
//! as it was until a restart. Requests under way finish as they began.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::limits;
use crate::admin::Admin;
use crate::config::{Config, ConfigError};
use crate::http::access::Token;
use crate::http::server::LiveLimits;
use crate::jobs::Webhooks;
use crate::jobs::webhook::HookError;
use crate::pull::Pull;
use crate::telemetry::log;
use crate::upstream::client::BuildError;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// With file, line, key and what was expected.
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Upstream(#[from] BuildError),
    #[error(transparent)]
    Webhook(#[from] HookError),
    #[error(transparent)]
    Level(#[from] log::BadLevel),
    #[error("the work was dropped")]
    Dropped,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that differ and that take a restart.
    pub needs_restart: Vec<&'static str>,
}

/// Everything that a running proxy's configuration reaches.
pub(super) struct Reloader {
    pub pull: Arc<Pull>,
    pub admin: Admin,
    pub hooks: Webhooks,
    pub limits: LiveLimits,
    pub token: Token,
    pub timed: Arc<AtomicBool>,
    /// What holds now.
    pub current: Mutex<Config>,
    /// Why the last one was refused.
    pub refused: Mutex<Option<String>>,
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
        // Files of certificates are read, and a lower limit may evict.
        let work = tokio::task::spawn_blocking(move || reloader.exchange(config));
        work.await.map_err(|_| ReloadError::Dropped)?
    }

    fn exchange(&self, config: Config) -> Result<Reloaded, ReloadError> {
        // One at a time.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        log::check(&config.log.level)?;
        self.hooks.check(&config.webhooks)?;
        self.pull.reload(&config)?;
        self.hooks.set(&config.webhooks)?;
        if config.log.level != current.log.level {
            log::set_level(&config.log.level)?;
        }
        self.pull.store().set_limits(&config);
        self.limits.set(config.limits.clone());
        self.admin.set_limits(limits(&config));
        self.token.store(config.admin.token.clone().map(Arc::new));
        self.timed.store(config.server.server_timing, Ordering::Relaxed);
        let needs_restart = fixed(&current, &config);
        *current = config;
        Ok(Reloaded { needs_restart })
    }

    fn note(&self, error: Option<&ReloadError>) {
        let result = if error.is_some() { "refused" } else { "ok" };
        metrics::counter!("larder_config_reloads_total", "result" => result).increment(1);
        tell(error.is_none());
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = error.map(ToString::to_string);
    }
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

/// Keys that are not as they were and that nobody can change while the process runs.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let differ = [
        ("server.listen", old.server.listen != new.server.listen),
        ("server.tls", old.server.tls != new.server.tls),
        (
            "server.shutdown_grace",
            old.server.shutdown_grace != new.server.shutdown_grace,
        ),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("cache.path", old.cache.path != new.cache.path),
        ("log.format", old.log.format != new.log.format),
        ("audit", old.audit != new.audit),
        ("traces", old.traces != new.traces),
        (
            "listener",
            format!("{:?}", old.listeners) != format!("{:?}", new.listeners),
        ),
        ("acme", old.acme != new.acme),
        ("access", format!("{:?}", old.access) != format!("{:?}", new.access)),
        // Their Debug shows all that they are.
        (
            "prefetch",
            format!("{:?}", old.prefetch) != format!("{:?}", new.prefetch),
        ),
    ];
    differ
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_restart_is_named() {
        let of = |text: &str| Config::from_toml(text).unwrap();
        let old = of("");
        assert!(fixed(&old, &of("")).is_empty());
        let new = of(
            "[server]\nlisten = \"127.0.0.1:5002\"\nserver_timing = true\n[cache]\npath = \"/elsewhere\"\n\
                      tag_ttl = \"1m\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n",
        );
        assert_eq!(fixed(&old, &new), ["server.listen", "cache.path", "log.format"]);
    }
}
