//! A folder at rest: no proxy runs on it, and operators look at it or mend it all the same.
//!
//! Everything is built as for the proxy, but for listeners and background work; so a refresh or a repair can ask
//! upstreams. Nothing is evicted for being opened, unless it is opened to be filled.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{StartError, hooks, limits};
use crate::admin::{Admin, Traffic};
use crate::config::Config;
use crate::jobs::audit::Audit;
use crate::jobs::prefetch::Patience;
use crate::jobs::{Prefetcher, Verifier, Webhooks};
use crate::pull::{Pull, Timing};
use crate::store::{Store, StoreError};
use crate::upstream::Clients;

/// An open folder. [`AtRest::close`] writes down what is known.
pub struct AtRest {
    pub admin: Admin,
    pull: Arc<Pull>,
    told: Option<Told>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl AtRest {
    /// Takes the folder's lock. Errors: `StartError::Store` with `Locked` when a larder has it.
    pub async fn open(config: Config) -> Result<AtRest, StartError> {
        AtRest::open_by(config, Store::open_at_rest).await
    }

    /// The same for who brings something into it: it is made if it is not there, and its limits hold (L5).
    pub async fn open_to_fill(config: Config) -> Result<AtRest, StartError> {
        let mut rest = AtRest::open_by(config.clone(), Store::open).await?;
        let store = rest.pull.store().clone();
        let telling = tokio::task::spawn_blocking(move || Told::of(&config, &store));
        rest.told = telling.await.ok();
        Ok(rest)
    }

    async fn open_by(
        config: Config,
        open: impl FnOnce(&Config) -> Result<Store, StoreError> + Send + 'static,
    ) -> Result<AtRest, StartError> {
        let at = config.clone();
        let store = tokio::task::spawn_blocking(move || open(&at))
            .await
            .map_err(|_| StartError::Task)??;
        let clients = Clients::new(&config)?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let pull = Pull::new(&config, store, clients, Timing::default(), tasks.clone(), stop.clone())
            .ok_or_else(|| StartError::DefaultUpstream(config.cache.default_upstream.clone()))?;
        let verifier = Verifier::new(pull.clone(), tasks.clone(), stop.clone());
        let prefetcher = Prefetcher::new(
            pull.clone(),
            tasks.clone(),
            stop.clone(),
            Patience::default(),
            &config.prefetch,
        );
        let meter = Arc::new(Traffic::default);
        Ok(AtRest {
            admin: Admin::new(pull.clone(), verifier, prefetcher, limits(&config), meter),
            pull,
            told: None,
            tasks,
            stop,
        })
    }

    /// Makes index and disk agree, as the proxy does behind its first hits: after a crash they may not.
    pub async fn reconcile(&self) -> Result<(), StartError> {
        let store = self.pull.store().clone();
        let reconciled = tokio::task::spawn_blocking(move || store.reconcile()).await;
        Ok(reconciled.map_err(|_| StartError::Task)??)
    }

    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let (store, told) = (self.pull.store().clone(), self.told);
        let _ = tokio::task::spawn_blocking(move || {
            store.close();
            store.events().close();
            if let Some(told) = told {
                told.join();
            }
        })
        .await;
    }
}

/// Those who hear of what is brought in: the audit log, and webhooks' queues, which the proxy delivers when it runs again.
struct Told {
    audit: Option<Audit>,
    hooks: Webhooks,
}

impl Told {
    /// What cannot be written keeps nothing from being brought in; the log is told. Blocking.
    fn of(config: &Config, store: &Store) -> Told {
        let audit = config.audit.as_ref().and_then(|audit| {
            let started = Audit::start(audit, store.events());
            started
                .inspect_err(
                    |error| tracing::error!(file = %audit.file.display(), %error, "the audit log cannot be written"),
                )
                .ok()
        });
        let source = hooks::source(&config.server.listen);
        let hooks = Webhooks::at_rest(store.clone(), hooks::couriers(), source);
        if let Err(error) = hooks.set(&config.webhooks) {
            tracing::error!(%error, "webhooks are not told of this");
        }
        Told { audit, hooks }
    }

    fn join(self) {
        if let Some(audit) = self.audit {
            audit.join();
        }
        self.hooks.join();
    }
}
