//! The proxy's own certificate: what the listeners show of it, who keeps it, and where challenges are answered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ListenError, StartError};
use crate::acme::{Issued, Keeper, Patience, Report};
use crate::config::{Challenge, Config, Listen};
use crate::http::challenge;
use crate::http::server::{Bound, LiveLimits, Server};
use crate::store::State;

/// Bound, and not yet running. Where nobody asked for a certificate it does nothing.
pub(super) struct Acme {
    pub(super) issued: Arc<Issued>,
    pub(super) keeper: Option<Arc<Keeper>>,
    challenges: Vec<Bound>,
}

impl Acme {
    /// Shows the certificate that is kept. Dials nobody.
    pub(super) fn bind(config: &Config) -> Result<Acme, StartError> {
        let Some(acme) = &config.acme else {
            return Ok(Acme {
                issued: Arc::default(),
                keeper: None,
                challenges: Vec::new(),
            });
        };
        let challenges = match &acme.challenge {
            Challenge::TlsAlpn => Vec::new(),
            Challenge::Http { listen } => {
                let places = listen.iter().copied().map(Listen::Tcp);
                let bound: Result<Vec<Bound>, _> = places.map(|place| Bound::bind(&place, &[])).collect();
                bound.map_err(ListenError::from)?
            }
        };
        let issued = Issued::new(&acme.names);
        let state = State::of(&config.cache.path);
        let keeper = Keeper::new(acme.clone(), state, issued.clone(), Patience::default());
        Ok(Acme {
            issued,
            keeper: Some(Arc::new(keeper)),
            challenges,
        })
    }

    /// The tasks, to run until `stop`.
    pub(super) fn run(self, limits: &LiveLimits, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        if !self.challenges.is_empty() {
            let server = Server::new(challenge::router(self.issued), limits.clone(), None, stop);
            let stop = stop.clone();
            tasks.push(tokio::spawn(async move {
                server.listen_at(&self.challenges);
                stop.cancelled().await;
                server.finish(Duration::ZERO, &CancellationToken::new()).await;
            }));
        }
        if let Some(keeper) = self.keeper {
            let stop = stop.clone();
            tasks.push(tokio::spawn(async move {
                tokio::select! {
                    () = keeper.run() => {}
                    () = stop.cancelled() => {}
                }
            }));
        }
        tasks
    }
}

/// For `/readyz`.
pub(super) fn check(keeper: &Keeper) -> (String, bool, String) {
    let (is_well, found) = keeper.status().shown(SystemTime::now());
    ("certificate".to_owned(), is_well, found)
}

/// How it stands with the certificate, from the files; `None` where nobody asked for one. Blocking.
pub fn certificate(config: &Config) -> Option<Report> {
    let acme = config.acme.as_ref()?;
    Some(crate::acme::report(acme, &State::of(&config.cache.path)))
}
