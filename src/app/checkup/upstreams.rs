//! Each upstream, by the way that pulls take: name, connection, `/v2/`, token, the head of a public image, budget.
//!
//! All are asked side by side, by clients made as the proxy's own are (proxies, authorities, credentials), each within
//! [`PATIENCE`]. One that is offline is not dialled (L10).

use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use url::Host;

use super::{Finding, PATIENCE, Scope};
use crate::admin::views::{AddressView, StatsView};
use crate::config::{Config, Upstream, show_key};
use crate::oci::{Reference, Repository};
use crate::upstream::{Client, Clients, ErrorKind, Greeting, Sources, Tuning, UpstreamError};

/// A public image of each registry, known to be there for years; asking for its head counts nowhere.
const PUBLIC: &[(&str, &str, &str)] = &[
    ("docker.io", "library/alpine", "latest"),
    ("ghcr.io", "actions/actions-runner", "latest"),
    ("quay.io", "prometheus/busybox", "latest"),
    ("gcr.io", "distroless/static-debian12", "latest"),
    ("registry.k8s.io", "pause", "3.9"),
    ("mcr.microsoft.com", "hello-world", "latest"),
    ("public.ecr.aws", "docker/library/alpine", "latest"),
    ("nvcr.io", "nvidia/cuda", "12.2.0-base-ubuntu22.04"),
    ("lscr.io", "linuxserver/swag", "latest"),
    ("registry.access.redhat.com", "ubi9/ubi-minimal", "latest"),
    ("docker.elastic.co", "elasticsearch/elasticsearch", "8.15.0"),
    ("cgr.dev", "chainguard/static", "latest"),
];
/// Stands for no image: a token is asked for a repository.
const NO_IMAGE: &str = "larder/doctor";
/// One step of several; together they fit into the patience.
const STEP: Duration = Duration::from_secs(6);

/// Findings, and by how many seconds this machine is ahead of each upstream that told its time.
pub(super) async fn check(config: &Config, scope: &Scope, stats: Option<&StatsView>) -> (Vec<Finding>, Vec<i64>) {
    let wanted: Vec<&Upstream> = config
        .upstreams
        .iter()
        .filter(|u| is_wanted(config, scope, u))
        .collect();
    let sources = Sources::from_env(|name| std::env::var(name).ok());
    let tuning = Tuning {
        headers: STEP,
        document: STEP,
        retries: 0,
        ..Tuning::default()
    };
    let clients = match Clients::with(config, &sources, tuning) {
        Ok(clients) => clients,
        Err(error) => {
            let advice = "the proxy does not start with this: put the file right, or take the key away";
            return (
                vec![Finding::problem("upstreams", error.to_string()).advice(advice)],
                Vec::new(),
            );
        }
    };
    let has_proxies = sources.http_proxy.is_some() || sources.https_proxy.is_some();
    let asking = wanted.iter().map(|upstream| async {
        let check = format!("upstream {}", upstream.name);
        if !scope.network {
            return (vec![Finding::note(&check, "not asked")], None);
        }
        if config.cache.offline || upstream.offline {
            return (
                vec![Finding::note(&check, "offline by configuration: not dialled")],
                None,
            );
        }
        let Some(client) = clients.get(&upstream.name) else {
            return (Vec::new(), None);
        };
        let known = stats.and_then(|stats| {
            stats
                .upstreams
                .iter()
                .find(|known| known.name == upstream.name.as_str())
        });
        let one = One {
            addresses: known.map_or(&[], |known| &known.addresses),
            check: &check,
            upstream,
            client,
            by_proxy: upstream.proxy.is_some() || has_proxies,
        };
        let mut offset = None;
        let asked = tokio::time::timeout(PATIENCE, one.ask(&mut offset)).await;
        let late = || {
            let found = format!("does not answer within {} s", PATIENCE.as_secs());
            vec![Finding::problem(&check, found).advice(UNREACHED)]
        };
        (asked.unwrap_or_else(|_| late()), offset)
    });
    let (findings, offsets): (Vec<_>, Vec<_>) = join_all(asking).await.into_iter().unzip();
    (findings.concat(), offsets.into_iter().flatten().collect())
}

fn is_wanted(config: &Config, scope: &Scope, upstream: &Upstream) -> bool {
    if !scope.upstreams.is_empty() {
        return scope.upstreams.contains(&upstream.name);
    }
    scope.all || upstream.name == config.cache.default_upstream || is_configured(config, upstream)
}

/// Whether the operator gave any key of it.
fn is_configured(config: &Config, upstream: &Upstream) -> bool {
    let table = show_key(&["upstream", upstream.name.as_str()]);
    let is_of = |key: &String| {
        key.strip_prefix(&table)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    config.origins.keys().any(is_of)
}

const UNREACHED: &str =
    "is the way there open (firewall, proxy)? If it never will be, set offline = true for it: what is held is served";

/// One that is asked.
struct One<'a> {
    check: &'a str,
    /// How its addresses are doing, by the proxy that runs.
    addresses: &'a [AddressView],
    upstream: &'a Upstream,
    client: &'a Client,
    /// Whether a proxy looks names up.
    by_proxy: bool,
}

impl One<'_> {
    async fn ask(&self, offset: &mut Option<i64>) -> Vec<Finding> {
        let mut told = Vec::new();
        match self.resolve().await {
            Ok(addresses) => told.extend(addresses),
            Err(finding) => return vec![finding],
        }
        let image = self.image();
        let Ok(any) = NO_IMAGE.parse::<Repository>() else {
            return Vec::new();
        };
        let repository = image.as_ref().map_or(&any, |(repository, _)| repository);
        let begun = Instant::now();
        let greeting = match self.client.greet(repository).await {
            Ok(greeting) => greeting,
            Err(error) => return vec![self.unreached(&error)],
        };
        *offset = greeting.date.map(ahead_of);
        told.push(format!("answers in {} ms", begun.elapsed().as_millis()));
        told.extend(greeting.asks.as_ref().map(|asks| format!("asks for {asks}")));
        let mut findings = Vec::new();
        findings.extend(self.strange(&greeting));
        match self.pull(&greeting, image.as_ref(), repository).await {
            Ok(more) => told.extend(more),
            Err(finding) => findings.push(finding),
        }
        findings.extend(self.budget(&mut told));
        findings.extend(self.health(&mut told));
        findings.extend(self.mirrors(repository).await);
        if findings.iter().all(|finding| finding.level < super::Level::Warning) {
            findings.insert(0, Finding::ok(self.check, told.join(", ")));
        }
        findings
    }

    /// What its name resolves to, for people; nothing where that is a proxy's business.
    async fn resolve(&self) -> Result<Option<String>, Finding> {
        let Some(Host::Domain(host)) = self.upstream.url.host() else {
            return Ok(None);
        };
        let port = self.upstream.url.port_or_known_default().unwrap_or(443);
        let looked = tokio::time::timeout(STEP, tokio::net::lookup_host((host, port))).await;
        let why = match looked {
            Ok(Ok(found)) => {
                let mut found: Vec<String> = found.map(|at| at.ip().to_string()).collect();
                found.dedup();
                match found.len() {
                    0 => "the name has no address".to_owned(),
                    n if n > 3 => return Ok(Some(format!("{host} is {} and {} more", found[..2].join(", "), n - 2))),
                    _ => return Ok(Some(format!("{host} is {}", found.join(", ")))),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", STEP.as_secs()),
        };
        if self.by_proxy {
            return Ok(None);
        }
        let found = format!("{host} does not resolve: {why}");
        Err(Finding::problem(self.check, found)
            .advice("look at /etc/resolv.conf (getent hosts), or at the url of this upstream"))
    }

    fn image(&self) -> Option<(Repository, Reference)> {
        let (_, repository, tag) = PUBLIC.iter().find(|(name, ..)| *name == self.upstream.name.as_str())?;
        let is_permitted = self.upstream.permits(repository);
        is_permitted.then_some((repository.parse().ok()?, tag.parse().ok()?))
    }

    /// An answer that no registry gives at its door.
    fn strange(&self, greeting: &Greeting) -> Option<Finding> {
        if greeting.status < 400 || matches!(greeting.status, 401 | 403 | 429) {
            return None;
        }
        let found = format!("/v2/ answers {}", greeting.status);
        let advice =
            "is this a registry? Some products have theirs under a path: it belongs to the url of this upstream";
        Some(match greeting.status {
            500.. => Finding::warning(self.check, found).advice("it has trouble of its own: ask again later"),
            _ => Finding::warning(self.check, found).advice(advice),
        })
    }

    /// The head of a public image, or with credentials at least the door.
    async fn pull(
        &self,
        greeting: &Greeting,
        image: Option<&(Repository, Reference)>,
        repository: &Repository,
    ) -> Result<Vec<String>, Finding> {
        let has_login = self.client.may_log_in(repository);
        let asked = match image {
            Some((repository, reference)) => self.client.see(repository, reference).await,
            None if has_login => self.client.enter(repository).await,
            None => {
                let closed = greeting.asks.is_some();
                return Ok(closed
                    .then(|| "whether it lets Larder pull depends on the repository".to_owned())
                    .into_iter()
                    .collect());
            }
        };
        let shown = image.map(|(repository, reference)| format!("{repository}:{reference}"));
        match asked {
            Ok(with_credentials) => {
                let mut told: Vec<String> = shown.map(|shown| format!("{shown} is there")).into_iter().collect();
                told.extend(with_credentials.then(|| "credentials accepted".to_owned()));
                Ok(told)
            }
            // It let Larder in, to look for something that this registry need not have.
            Err(UpstreamError {
                kind: ErrorKind::NotFound { .. },
                ..
            }) => Ok(vec![format!(
                "{} is not there, but it was looked for",
                shown.unwrap_or_default()
            )]),
            Err(error) => Err(self.refused(&error, has_login)),
        }
    }

    fn refused(&self, error: &UpstreamError, has_login: bool) -> Finding {
        let found = error.kind.to_string();
        match &error.kind {
            ErrorKind::Denied { .. } | ErrorKind::Auth(_) if has_login => Finding::problem(self.check, format!("the credentials are refused: {found}"))
                .advice("look at username and password (or password_file) of this upstream, or at the login file: are they still good, and may they pull?"),
            ErrorKind::Denied { .. } => Finding::warning(self.check, format!("without credentials it is closed: {found}"))
                .advice("give this upstream username and password_file"),
            ErrorKind::RateLimited { .. } => Finding::problem(self.check, found)
                .advice("its limit is used up: credentials raise it, a longer tag_ttl asks less; what is held is served"),
            ErrorKind::Refused(_) => Finding::problem(self.check, found)
                .advice("if that address is meant, name it in redirect_hosts or trusted_realms of this upstream"),
            _ => Finding::warning(self.check, found).advice("ask again later; if it stays, look at url, proxy and ca_file of this upstream"),
        }
    }

    fn unreached(&self, error: &UpstreamError) -> Finding {
        let found = error.kind.to_string();
        let lower = found.to_ascii_lowercase();
        let advice = match &error.kind {
            ErrorKind::Connect(_) if lower.contains("certificate") => {
                "its certificate is not believed: name its authority in ca_file of this upstream, and look at this machine's clock"
            }
            ErrorKind::Refused(_) => "if that address is meant, name it in redirect_hosts of this upstream",
            _ => UNREACHED,
        };
        Finding::problem(self.check, found).advice(advice)
    }

    /// What is left of the pull limit, for who was just asked as.
    fn budget(&self, told: &mut Vec<String>) -> Vec<Finding> {
        let advice =
            "credentials raise the limit, mirrors and a longer tag_ttl ask less; what is held is served all the same";
        let mut findings = Vec::new();
        for budget in self.client.budgets() {
            let of = budget.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
            let within = budget
                .window
                .map(|window| format!(" per {}", crate::config::units::show_duration(window)));
            let found = format!("{}{of} pulls are left{}", budget.remaining, within.unwrap_or_default());
            if budget.remaining == 0 {
                findings.push(Finding::problem(self.check, found).advice(advice));
            } else if budget.is_low {
                findings.push(Finding::warning(self.check, found).advice(advice));
            } else {
                told.push(found);
            }
        }
        findings
    }

    /// What the proxy that runs has found of its addresses.
    fn health(&self, told: &mut Vec<String>) -> Vec<Finding> {
        let mut findings = Vec::new();
        for view in self.addresses {
            let (address, failures) = (&view.address, view.failures);
            if view.state == "down" {
                let why = view.last_error.as_deref().unwrap_or("no reason is known");
                let found =
                    format!("to the proxy that runs {address} is down: {why} ({failures} failures since its start)");
                findings.push(Finding::warning(self.check, found).advice(match view.role.as_str() {
                    "mirror" => {
                        "other addresses are asked before it until it answers: mend it, or take it out of mirrors"
                    }
                    _ => "what is held is served: is the way there open (firewall, proxy)?",
                }));
            } else if let (Some(p50), Some(p95)) = (view.first_byte_p50_ms, view.first_byte_p95_ms) {
                told.push(format!(
                    "{address} begins to answer in {p50} ms (median), {p95} ms (p95)"
                ));
            }
        }
        findings
    }

    /// Those that are tried first: one that is away costs a miss some time now and then.
    async fn mirrors(&self, repository: &Repository) -> Vec<Finding> {
        let greeted = self.client.greet_mirrors(repository).await;
        let away = greeted.into_iter().filter_map(|(mirror, greeting)| {
            let error = greeting.err()?;
            Some(
                Finding::warning(self.check, format!("its mirror {mirror}: {}", error.kind))
                    .advice("misses wait for it now and then: mend it, or take it out of mirrors"),
            )
        });
        away.collect()
    }
}

/// Seconds; what is within the second that `Date` tells counts as none.
fn ahead_of(theirs: SystemTime) -> i64 {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(theirs) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_public_image_is_of_a_built_in_registry() {
        let config = Config::default_config().unwrap();
        for (name, repository, tag) in PUBLIC {
            assert!(config.upstreams.iter().any(|u| u.name.as_str() == *name), "{name}");
            assert!(
                repository.parse::<Repository>().is_ok() && tag.parse::<Reference>().is_ok(),
                "{repository}:{tag}"
            );
        }
    }

    #[test]
    fn who_is_asked() {
        let config = Config::from_toml(
            "[upstream.\"ghcr.io\"]\ntag_ttl = \"1m\"\n[upstream.localhost]\nurl = \"http://localhost:1\"\n",
        )
        .unwrap();
        let names = |upstreams: &[&str], all| {
            let scope = Scope {
                upstreams: upstreams.iter().map(|name| name.parse().unwrap()).collect(),
                all,
                network: false,
                root: "/".into(),
                home: None,
                registries_conf: None,
                address: None,
                admin: super::super::AdminScope::default(),
            };
            let wanted = config.upstreams.iter().filter(|u| is_wanted(&config, &scope, u));
            wanted.map(|u| u.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[], false), ["docker.io", "ghcr.io", "localhost"]);
        assert_eq!(names(&["quay.io"], false), ["quay.io"]);
        assert_eq!(names(&[], true).len(), config.upstreams.len());
    }
}
