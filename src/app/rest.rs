//! A folder at rest: no proxy runs on it, and operators look at it or mend it all the same.
//!
//! Everything is built as for the proxy, but for listeners and background work; so a refresh or a repair can ask
//! upstreams. Nothing is evicted for being opened, unless it is opened to be filled.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{StartError, limits};
use crate::admin::{Admin, Traffic};
use crate::config::Config;
use crate::jobs::prefetch::Patience;
use crate::jobs::{Prefetcher, Verifier};
use crate::pull::{Pull, Timing};
use crate::store::{Store, StoreError};
use crate::upstream::Clients;

/// An open folder. [`AtRest::close`] writes down what is known.
pub struct AtRest {
    pub admin: Admin,
    pull: Arc<Pull>,
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
        AtRest::open_by(config, Store::open).await
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
        let store = self.pull.store().clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}
