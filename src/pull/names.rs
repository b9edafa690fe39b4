//! Which upstream and repository a client means (product naming table; R-D1, R-D2, R-C2).
//!
//! Precedence: the path's first component, if it is an upstream's name or alias; then `?ns=`; then the default
//! upstream. A first component that can only be a host and is none of ours ends it: nothing is dialled (L10).

use std::collections::HashMap;
use std::sync::Arc;

use super::canary;
use super::error::PullError;
use crate::config::{Config, Upstream};
use crate::oci::name::{self, HostPort, Repository};
use crate::upstream::Client;

/// A repository at an upstream.
#[derive(Clone, Debug)]
pub struct Target {
    pub upstream: Arc<Upstream>,
    /// As the upstream knows it, `library/` added.
    pub repository: Repository,
    /// `docker.io/library/alpine`: the same for every spelling.
    pub key: Arc<str>,
    /// As the client spelled it: `name` in its tag list, and the path of its Link (R-S17).
    pub client_name: String,
    /// Which configuration said so: each reload is another.
    pub edition: u64,
    /// Who asks the upstream, as that configuration has it: so a request goes by one from its beginning to its end.
    /// `None` where nobody asks.
    pub(super) client: Option<Arc<Client>>,
    /// The upstream is not to be asked: its own setting or that of all.
    pub(super) offline: bool,
    /// Who asks may have what is held, and nobody may be asked for it: as if its upstream were offline.
    pub held_only: bool,
}

/// A repository as one configuration means it: questions and transfers are shared by those who mean the same.
pub(super) type Scope = (Arc<str>, u64);

impl Target {
    pub(super) fn scope(&self) -> Scope {
        (self.key.clone(), self.edition)
    }
}

/// Every name that stands for an upstream.
#[derive(Debug)]
pub struct Names {
    by_name: HashMap<String, Arc<Upstream>>,
    default: Arc<Upstream>,
    edition: u64,
}

impl Names {
    /// `None` if the default upstream is not among them, which the configuration rules out.
    pub fn new(config: &Config) -> Option<Names> {
        let mut by_name = HashMap::new();
        let mut default = None;
        for upstream in &config.upstreams {
            let shared = Arc::new(upstream.clone());
            if upstream.name == config.cache.default_upstream {
                default = Some(shared.clone());
            }
            let hosts = upstream.synonyms.iter().map(|s| s.as_str().to_owned());
            for name in upstream.aliases.iter().cloned().chain(hosts) {
                by_name.entry(name).or_insert_with(|| shared.clone());
            }
            // A canonical name wins over anybody's alias.
            by_name.insert(upstream.name.as_str().to_owned(), shared);
        }
        Some(Names {
            by_name,
            default: default?,
            edition: 0,
        })
    }

    /// Those of another configuration, after `before`.
    pub fn after(before: &Names, config: &Config) -> Option<Names> {
        Some(Names {
            edition: before.edition + 1,
            ..Names::new(config)?
        })
    }

    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// Whether the text is an upstream's name, alias or synonym.
    pub fn is_known(&self, text: &str) -> bool {
        self.find(text).is_some()
    }

    /// The name of the upstream that the text stands for.
    pub fn upstream_name(&self, text: &str) -> Option<&str> {
        self.find(text).map(|upstream| upstream.name.as_str())
    }

    fn find(&self, text: &str) -> Option<&Arc<Upstream>> {
        self.by_name
            .get(text)
            .or_else(|| self.by_name.get(&text.to_ascii_lowercase()))
    }

    /// `name` is what stands between `/v2/` and `/manifests/`, decoded; `ns` the parameter, decoded.
    ///
    /// Errors: also for the repository of canaries, so that nothing asks an upstream for it or keeps anything under it.
    pub fn resolve(&self, name: &str, ns: Option<&str>) -> Result<Target, PullError> {
        let target = self.resolve_request(name, ns)?;
        match canary::is_canary(target.repository.as_str()) {
            true => Err(PullError::Reserved(target.key.to_string())),
            false => Ok(target),
        }
    }

    /// Resolves the name in a client's request, which may be that of canaries: those are answered from memory.
    pub fn resolve_request(&self, name: &str, ns: Option<&str>) -> Result<Target, PullError> {
        let ns = ns
            .filter(|text| !text.is_empty())
            .map(str::parse::<HostPort>)
            .transpose()?;
        let by_ns = match &ns {
            Some(host) => Some(
                self.find(host.as_str())
                    .ok_or_else(|| PullError::unknown_upstream(host.as_str()))?,
            ),
            None => None,
        };
        let explicit = name
            .split_once('/')
            .and_then(|(first, rest)| self.find(first).map(|upstream| (first, upstream, rest)));
        let (upstream, rest) = match explicit {
            Some((first, upstream, rest)) => {
                if let (Some(other), Some(ns)) = (by_ns.filter(|other| other.name != upstream.name), &ns) {
                    tracing::debug!(path = %upstream.name, ns = %other.name, "conflicting upstreams");
                    return Err(PullError::Conflict {
                        path: first.to_owned(),
                        ns: ns.to_string(),
                    });
                }
                (upstream, rest)
            }
            None => {
                let first = name
                    .split_once('/')
                    .map(|(first, _)| first)
                    .filter(|f| name::looks_like_host(f));
                if let (Some(host), None) = (first, by_ns) {
                    return Err(PullError::unknown_upstream(host));
                }
                (by_ns.unwrap_or(&self.default), name)
            }
        };
        target(upstream, rest, name, self.edition)
    }
}

fn target(upstream: &Arc<Upstream>, rest: &str, client_name: &str, edition: u64) -> Result<Target, PullError> {
    // R-D2: Docker Hub's own names have a `library/` that people leave out.
    let repository: Repository = match upstream.name.as_str() {
        "docker.io" if !rest.contains('/') => format!("library/{rest}").parse()?,
        _ => rest.parse()?,
    };
    // Images of the upstream are what `allow` and `deny` are about. Canaries are none, and are never asked of it.
    let is_canary = canary::is_canary(repository.as_str());
    if !is_canary && !upstream.permits(repository.as_str()) {
        return Err(PullError::NotAllowed {
            upstream: upstream.name.to_string(),
            repository: repository.to_string(),
        });
    }
    let key = format!("{}/{repository}", upstream.name).into();
    Ok(Target {
        offline: upstream.offline,
        client: None,
        upstream: upstream.clone(),
        repository,
        key,
        client_name: client_name.to_owned(),
        edition,
        held_only: false,
    })
}
