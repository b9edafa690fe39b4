//! The checkup: what an operator would look at, asked in one go and answered with what to do.
//!
//! configuration and scope → each topic's own questions → findings, in the order in which they are read. `settings`,
//! `access`, `certificate`, `disk` and `limits` look at this machine; `running` asks the proxy that runs; `upstreams`
//! and `clock` ask the registries, side by side and each within [`PATIENCE`]; `webhooks` connects to their endpoints,
//! `traces` asks the collector; `clients` (with `docker`, `containerd`, `containers`, `rancher`, `buildkit`) reads the
//! files of clients on this machine as requests, `pulls` says where those arrive, `naming` which images they stand for, and
//! `reach` tries the way that they take.
//!
//! Nothing is changed anywhere, no blob is fetched, and no finding holds a secret.

mod access;
mod buildkit;
mod certificate;
mod clients;
mod clock;
mod containerd;
mod containers;
mod disk;
mod docker;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hosts;
mod limits;
mod naming;
mod pulls;
mod rancher;
mod reach;
mod running;
mod settings;
mod target;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_forms;
mod traces;
mod upstreams;
mod webhooks;
mod yaml;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::app::admin_address::AdminAddress;
use crate::config::Config;
use crate::oci::HostPort;

pub use containers::NAMED_FILE as NAMED_PODMAN_FILE;
pub use pulls::{Arrival, PullVerdict};
pub use target::Address;

/// For everything that is asked of one upstream.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, and will not always.
    Warning,
    /// Pulls fail, or will.
    Problem,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `disk`, `upstream docker.io`, `client containerd`
    pub check: String,
    pub level: Level,
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
    /// About a client's file: where pulls from each registry that it names go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<PullVerdict>,
}

impl Finding {
    pub fn new(check: &str, level: Level, found: impl Into<String>) -> Finding {
        Finding {
            check: check.to_owned(),
            level,
            found: found.into(),
            advice: None,
            registries: Vec::new(),
        }
    }

    pub fn ok(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, found)
    }

    pub fn note(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Note, found)
    }

    pub fn warning(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Warning, found)
    }

    pub fn problem(check: &str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Problem, found)
    }

    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Finding {
        self.advice = Some(advice.into());
        self
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Scope {
    /// These upstreams; empty: the default one and those that the operator configured.
    pub upstreams: Vec<HostPort>,
    /// Every upstream.
    pub all: bool,
    /// Whether anything is dialled, or a name looked up.
    pub network: bool,
    /// Where this machine's files begin: `/`, but for tests.
    pub root: PathBuf,
    /// The home of whoever asks, below `root`.
    pub home: Option<PathBuf>,
    /// The file that `CONTAINERS_REGISTRIES_CONF` names to whoever asks, where `root` is this machine's.
    pub registries_conf: Option<PathBuf>,
    /// How clients reach the proxy, where that is not the address it listens on.
    pub address: Option<Address>,
    /// How the proxy's admin API is reached, where somebody says it.
    pub admin: AdminScope,
}

/// What somebody says of a running proxy's admin API, before what the configuration says.
#[derive(Clone, Debug, Default)]
pub struct AdminScope {
    pub address: Option<AdminAddress>,
    pub token_file: Option<PathBuf>,
    /// True if a token may go there unencrypted, and to whichever user listens.
    pub insecure: bool,
}

/// Everything, in the order in which it is shown.
pub async fn checkup(config: Config, scope: Scope) -> Vec<Finding> {
    let mut findings = settings::check(&config);
    let running = match scope.network {
        true => running::find(&config, &scope.admin).await,
        false => running::State::NotAsked,
    };
    findings.extend(running::check(&running, &config));
    findings.extend(access::check(&config));
    findings.extend(certificate::check(&config, scope.address.as_ref()));
    findings.extend(disk::check(&config, running.stats()));
    findings.extend(limits::check(&config, running.stats().map(|stats| stats.pid)));
    let (asked, offsets) = upstreams::check(&config, &scope, running.stats()).await;
    findings.extend(clock::check(&offsets));
    findings.extend(asked);
    findings.extend(webhooks::check(&config, running.stats(), scope.network).await);
    findings.extend(traces::check(&config, scope.network).await);
    let target = target::Target::of(&config, scope.address.as_ref());
    findings.extend(on_this_machine(target, &scope).await);
    findings
}

/// The proxy that runs with this configuration, as its admin address, and the options that it was started with. `None`: none
/// is found.
pub async fn running_options(config: &Config) -> Option<(String, Vec<String>)> {
    match running::find(config, &AdminScope::default()).await {
        running::State::Runs { at, stats } => Some((at, stats.options)),
        _ => None,
    }
}

/// Only what clients on this machine do, and whether the proxy is reached from here: for a machine without a
/// configuration of Larder's.
pub async fn checkup_of_clients(address: Address, scope: Scope) -> Vec<Finding> {
    let reached = match scope.network {
        true => Some(reach::find(&address).await),
        false => None,
    };
    let scheme = reached.as_ref().and_then(|reached| reached.scheme).or(address.scheme);
    let mut target = target::Target::at(address, scheme);
    target.is_distrusted = reached.as_ref().is_some_and(|reached| reached.is_distrusted);
    let mut findings: Vec<Finding> = reached.into_iter().map(|reached| reached.finding).collect();
    findings.extend(on_this_machine(target, &scope).await);
    findings
}

async fn on_this_machine(target: target::Target, scope: &Scope) -> Vec<Finding> {
    let (root, home, look_up) = (scope.root.clone(), scope.home.clone(), scope.network);
    let conf = scope.registries_conf.clone();
    let reading = tokio::task::spawn_blocking(move || clients::check(&root, home.as_deref(), conf, &target, look_up));
    reading.await.unwrap_or_default()
}
