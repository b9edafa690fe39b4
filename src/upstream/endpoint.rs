//! One address of an upstream, its own or a mirror's: what belongs to it and what is remembered of it.
//!
//! `walk` sends a request and follows where it leads; `dance` brings challenge, token and retry in.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use tokio::sync::Semaphore;
use url::Url;

use super::address::{AddressHealth, Role};
use super::blob::Span;
use super::breaker::Breaker;
use super::budget::Budgets;
use super::challenge::Demand;
use super::credentials::Credentials;
use super::heads::Heads;
use super::probe::Probes;
use super::token::Tokens;
use super::transport::Transport;
use super::waiting::{Pause, Waiting};
use crate::config::Floor;
use crate::oci::{HostPort, Repository};

/// Repositories whose demand is remembered.
const MAX_REPOSITORIES: u64 = 10_000;

/// One request as the question wants it; everything else is the endpoint's business.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// `manifest`, `blob`, `tags`, `referrers`: the metric's label.
    pub kind: &'static str,
    pub method: &'a Method,
    pub url: &'a Url,
    pub accept: &'static str,
    pub range: Option<Span>,
    /// [`super::transport::Outgoing::as_stored`]
    pub as_stored: bool,
    pub repository: &'a Repository,
    /// Without credentials, whatever there are.
    pub as_nobody: bool,
    /// Told of each exchange, if somebody may lose patience.
    pub(super) waiting: Option<&'a Waiting>,
}

impl Ask<'_> {
    /// Whether it is for one more connection beside the one that does the work: an answer that could be done without.
    pub fn is_extra(&self) -> bool {
        self.range.is_some_and(|range| range.end.is_some())
    }

    /// One exchange has been answered.
    pub(super) fn note_answer(&self) {
        if let Some(waiting) = self.waiting {
            waiting.note_answer();
        }
    }

    /// Waits for credentials, during which nothing is asked of the address.
    pub(super) async fn without_asking<T>(&self, finding: impl Future<Output = T>) -> T {
        if let Some(waiting) = self.waiting {
            waiting.pause(Pause::Credentials);
        }
        let found = finding.await;
        if let Some(waiting) = self.waiting {
            waiting.restart();
        }
        found
    }
}

/// What is known of how a repository wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It answered without Authorization.
    Open,
    Demands(Demand),
}

#[derive(Debug)]
pub struct Endpoint {
    /// As configured, without user info and what follows `/v2/`, ending in `/`.
    pub base: Url,
    /// What it keeps every repository below (R-U50): a Harbor project, say.
    prefix: Option<Repository>,
    /// How this address is doing, and its name.
    pub(super) health: AddressHealth,
    pub(super) probes: Probes,
    pub(super) upstream: Arc<str>,
    pub(super) transport: Transport,
    pub(super) credentials: Credentials,
    pub(super) breaker: Breaker,
    pub(super) tokens: Tokens,
    pub(super) redirect_hosts: Option<Vec<HostPort>>,
    pub(super) trusted_realms: Vec<HostPort>,
    pub(super) read_timeout: Duration,
    /// Token servers that were warned about.
    pub(super) strangers: Mutex<HashSet<Url>>,
    /// What is left of the upstream's limits.
    pub(super) budgets: Budgets,
    pub(super) heads: Heads,
    by_repository: moka::sync::Cache<Repository, Known>,
    /// The last demand of any repository: a guess for those not yet met.
    general: Mutex<Option<Demand>>,
}

/// Where an endpoint is, read from a configured URL.
#[derive(Clone, Debug)]
pub struct Place {
    /// Scheme, host, port and base path.
    pub base: Url,
    prefix: Option<Repository>,
}

impl Place {
    /// User info would become an Authorization of its own: it is left out. What follows `/v2/` in the path is put before
    /// every repository.
    pub fn of(url: &Url) -> Place {
        let mut base = url.clone();
        let _ = base.set_username("");
        let _ = base.set_password(None);
        base.set_query(None);
        base.set_fragment(None);
        let path = format!("{}/", url.path().trim_end_matches('/'));
        let (path, prefix) = match path.split_once("/v2/") {
            Some((before, prefix)) => (format!("{before}/"), prefix.trim_end_matches('/').parse().ok()),
            None => (path, None),
        };
        base.set_path(&path);
        Place { base, prefix }
    }

    /// As logs and errors name it: `https://mirror.example`, with the path where there is one.
    fn name(&self) -> String {
        let mut name = self.base.origin().ascii_serialization();
        name.push_str(self.base.path().trim_end_matches('/'));
        if let Some(prefix) = &self.prefix {
            name = format!("{name}/v2/{prefix}");
        }
        name
    }
}

pub struct Settings {
    pub upstream: Arc<str>,
    pub role: Role,
    /// The pause before the first probe.
    pub first_pause: Duration,
    /// `max_connections`.
    pub slots: Option<Arc<Semaphore>>,
    pub redirect_hosts: Option<Vec<HostPort>>,
    pub trusted_realms: Vec<HostPort>,
    pub read_timeout: Duration,
    pub budget_floor: Floor,
}

impl Endpoint {
    pub fn new(place: Place, transport: Transport, credentials: Credentials, settings: Settings) -> Endpoint {
        let name = Arc::from(place.name());
        Endpoint {
            health: AddressHealth::new(name, settings.upstream.clone(), settings.role, settings.first_pause),
            probes: Probes::new(settings.slots),
            base: place.base,
            prefix: place.prefix,
            transport,
            credentials,
            breaker: Breaker::default(),
            tokens: Tokens::new(settings.upstream.clone()),
            budgets: Budgets::new(settings.upstream.clone(), settings.budget_floor),
            upstream: settings.upstream,
            heads: Heads::default(),
            redirect_hosts: settings.redirect_hosts,
            trusted_realms: settings.trusted_realms,
            read_timeout: settings.read_timeout,
            strangers: Mutex::new(HashSet::new()),
            by_repository: moka::sync::Cache::new(MAX_REPOSITORIES),
            general: Mutex::new(None),
        }
    }

    /// Goes on where another endpoint at the same address stood: how it is doing, what is left of limits, and who is to be
    /// left alone.
    pub fn inherit(&self, before: &Endpoint) {
        if self.base == before.base && self.prefix == before.prefix {
            self.health.inherit(&before.health);
            self.probes.inherit(&before.probes);
            self.budgets.inherit(&before.budgets);
            self.breaker.inherit(&before.breaker);
        }
    }

    /// `<base>/v2/<prefix>/<rest>`: a base path of the product's comes first (R-U50). Without `rest` the door, which has no
    /// prefix.
    pub fn url(&self, rest: &str) -> Url {
        let mut url = self.base.clone();
        let base = self.base.path().trim_end_matches('/');
        let path = match self.prefix.as_ref().filter(|_| !rest.is_empty()) {
            Some(prefix) => format!("{base}/v2/{prefix}/{rest}"),
            None => format!("{base}/v2/{rest}"),
        };
        url.set_path(&path);
        url
    }

    /// What a repository is called here: in scopes, and in files of logins.
    pub(super) fn name_of<'a>(&self, repository: &'a Repository) -> Cow<'a, Repository> {
        match &self.prefix {
            Some(prefix) => Cow::Owned(repository.below(prefix)),
            None => Cow::Borrowed(repository),
        }
    }

    /// Whether the pulls of who would be asked for this repository are to be spared.
    pub fn is_budget_low(&self, repository: &Repository) -> bool {
        let credential = self.credentials.at_hand(Some(&self.name_of(repository)));
        credential.is_some_and(|credential| self.budgets.is_low(&credential))
    }

    pub fn paused(&self) -> Option<Duration> {
        self.breaker.longest_left()
    }

    /// Whether stored credentials exist for this repository.
    pub fn has_login(&self, repository: &Repository) -> bool {
        self.credentials
            .at_hand(Some(&self.name_of(repository)))
            .is_none_or(|credential| !credential.is_anonymous())
    }

    /// Whether credentials are configured for it, or found in a login file.
    pub fn may_log_in(&self, repository: &Repository) -> bool {
        self.credentials.are_there(&self.name_of(repository))
    }

    pub(super) fn known(&self, repository: &Repository) -> (Option<Known>, Option<Demand>) {
        let own = self.by_repository.get(repository);
        let general = self.general.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (own, general)
    }

    pub(super) fn learn(&self, repository: &Repository, known: Known) {
        if let Known::Demands(demand) = &known {
            let mut general = self.general.lock().unwrap_or_else(PoisonError::into_inner);
            if general.as_ref() != Some(demand) {
                *general = Some(demand.clone());
            }
        }
        if self.by_repository.get(repository).as_ref() != Some(&known) {
            self.by_repository.insert(repository.clone(), known);
        }
    }
}
