//! Docker's daemon: `registry-mirrors`, for Docker Hub only; and with containerd's image store `hosts.toml` in
//! /etc/docker/certs.d, for any registry.

use serde_json::Value;

use super::Finding;
use super::clients::{Dialect, Look, few, other_port, report};
use super::hosts::{Folder, Hosts};
use super::naming::without_path;
use super::pulls::{Endpoint, HTTP, HTTPS, Judged, PullVerdict, Takes, Written, judge};
use super::target::Scheme;

const CHECK: &str = "client docker";
const FILE: &str = "etc/docker/daemon.json";
const CERTIFICATES: &str = "etc/docker/certs.d";
const HUB: &str = "docker.io";
/// Earlier ones do not start with a path in a mirror.
const TAKES_PATHS: &str = "Docker 24.0.8, 25 and newer";
/// Keys that people write in the place of the right one. The daemon starts with no key that it does not know.
const NEARLY: &[(&str, &str)] = &[
    ("registry_mirrors", "registry-mirrors"),
    ("registryMirrors", "registry-mirrors"),
    ("mirrors", "registry-mirrors"),
    ("insecure_registries", "insecure-registries"),
];

/// Names of flags, which the daemon takes for keys that it knows and reads over.
const FLAGS: &[(&str, &str)] = &[
    ("registry-mirror", "registry-mirrors"),
    ("insecure-registry", "insecure-registries"),
];

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let (mut findings, store) = match look.read(CHECK, FILE) {
        None => (Vec::new(), None),
        Some(Err(finding)) => (vec![finding], None),
        Some(Ok(text)) => match Daemon::read(&text) {
            Ok(daemon) if daemon.is_overruled(look) => {
                let found = format!("/{CERTIFICATES}/{HUB}/hosts.toml takes the place of registry-mirrors in /{FILE}");
                let note = Finding::note(CHECK, found).advice("only one of them is needed: take the other away");
                (vec![note], daemon.uses_containerd)
            }
            Ok(daemon) => (daemon.findings(look), daemon.uses_containerd),
            Err(refused) => {
                let found = format!("/{FILE}: {}: dockerd does not start with it", refused.why);
                let mut finding = Finding::problem(CHECK, found).advice(refused.advice);
                finding.registries = vec![PullVerdict::failing(HUB, Mirrors.place())];
                (vec![finding], None)
            }
        },
    };
    findings.extend(by_hosts(look, store));
    findings
}

/// The settings of the daemon's file that decide where pulls go.
struct Daemon {
    mirrors: Vec<String>,
    insecure: Vec<String>,
    /// A flag's name that stands in the place of a key, and the key.
    flag: Option<(&'static str, &'static str)>,
    /// True if images are in containerd's store; `None`: as the daemon's version and its first start have it.
    uses_containerd: Option<bool>,
}

/// A file with which the daemon does not start.
struct Refused {
    why: String,
    advice: String,
}

fn refused(why: String, advice: &str) -> Refused {
    Refused {
        why,
        advice: advice.to_owned(),
    }
}

impl Daemon {
    fn read(text: &str) -> Result<Daemon, Refused> {
        // An empty file is one without keys to the daemon.
        let json = match text.trim() {
            "" => Value::Object(serde_json::Map::new()),
            text => serde_json::from_str::<Value>(text)
                .map_err(|error| refused(format!("it is no JSON ({error})"), "put it right"))?,
        };
        let Some(keys) = json.as_object() else {
            let why = "it is JSON, but no object with keys".to_owned();
            return Err(refused(why, "{ \"registry-mirrors\": [\"ADDRESS\"] }"));
        };
        if let Some((found, right)) = NEARLY.iter().find(|(key, _)| keys.contains_key(*key)) {
            let why = format!("it has a key {found:?}, which the daemon does not know");
            return Err(refused(why, &format!("write {right:?}")));
        }
        let daemon = Daemon {
            mirrors: list(keys, "registry-mirrors")?,
            insecure: list(keys, "insecure-registries")?,
            flag: FLAGS.iter().find(|(flag, _)| keys.contains_key(*flag)).copied(),
            uses_containerd: keys
                .get("features")
                .and_then(|features| features.get("containerd-snapshotter"))
                .and_then(Value::as_bool),
        };
        for mirror in &daemon.mirrors {
            validate(mirror)?;
        }
        Ok(daemon)
    }

    /// True if the daemon has hosts for Docker Hub, beside which it does not look at its mirrors (R-C30).
    fn is_overruled(&self, look: &Look<'_>) -> bool {
        let hosts = Hosts::new(vec![CERTIFICATES.to_owned()]);
        self.uses_containerd == Some(true)
            && !self.mirrors.is_empty()
            && hosts.read(look, HUB).is_ok_and(|read| read.endpoints.len() > 1)
    }

    fn findings(&self, look: &Look<'_>) -> Vec<Finding> {
        let mut findings = self.by_mirrors(look);
        if let Some((flag, key)) = self.flag {
            let found = format!("/{FILE} has {flag:?}, which is the name of a flag: dockerd reads over it");
            findings.push(
                Finding::problem(CHECK, found).advice(format!("write {key:?}, with a list; then restart docker")),
            );
        }
        findings
    }

    fn by_mirrors(&self, look: &Look<'_>) -> Vec<Finding> {
        if self.mirrors.is_empty() {
            let found = format!("/{FILE} has no registry-mirrors: pulls go to Docker Hub");
            let mut finding = Finding::new(CHECK, look.level(), found).advice(Mirrors.recipe());
            finding.registries = vec![PullVerdict::elsewhere(HUB, Mirrors.place())];
            return vec![finding];
        }
        let endpoints: Vec<Endpoint> = self.mirrors.iter().map(|mirror| self.endpoint(look, mirror)).collect();
        let near = other_port(look, CHECK, &format!("/{FILE}"), &endpoints);
        let hub = std::iter::once(Endpoint::registry(HUB));
        let mut judged = judge(look, HUB, &endpoints.iter().cloned().chain(hub).collect::<Vec<_>>());
        let has_path = |mirror: &&String| Written::read(mirror).is_some_and(|read| !matches!(read.path, "" | "/"));
        let path = self.mirrors.iter().find(has_path);
        if path.is_some() {
            judged.verdict.only = Some(TAKES_PATHS.to_owned());
        }
        let arrives = judged.verdict.arrives();
        let leads_nowhere = judged.troubles.is_empty() && !arrives;
        let mut findings = match leads_nowhere {
            true => vec![self.elsewhere(look, judged)],
            false => report(look, &Mirrors, vec![judged]),
        };
        findings.extend(near);
        if let (true, Some(mirror)) = (arrives, path) {
            findings.push(Finding::warning(CHECK, format!("/{FILE}: {mirror} has a path: only {TAKES_PATHS} start with it")).advice(
                "Docker 20.10, 23 and 24.0.0 to 24.0.7 need a mirror without a path: cache.default_upstream = \"docker.io\" at the proxy does without",
            ));
        }
        findings.extend(self.by_name(look, arrives));
        findings
    }

    fn elsewhere(&self, look: &Look<'_>, judged: Judged) -> Finding {
        let found = format!("registry-mirrors of /{FILE} lead elsewhere: {}", few(&self.mirrors));
        let mut finding = Finding::new(CHECK, look.level(), found).advice(Mirrors.recipe());
        finding.registries = vec![judged.verdict];
        finding
    }

    /// Puts `/v2` behind the mirror's path, and names Docker Hub by `ns` only with containerd's image store (R-C30,
    /// R-C38).
    fn endpoint(&self, look: &Look<'_>, mirror: &str) -> Endpoint {
        let read = Written::read(mirror);
        let (scheme, authority, path) = match &read {
            Some(read) => (read.scheme, read.authority, read.path.trim_end_matches('/')),
            None => (None, mirror, ""),
        };
        let schemes = if scheme == Some("http") { HTTP } else { HTTPS };
        let is_new = self.uses_containerd == Some(true);
        let endpoint = Endpoint {
            path: match path.ends_with("/v2") && is_new {
                true => path.to_owned(),
                false => format!("{path}/v2"),
            },
            has_trust: self.insecure.iter().any(|entry| entry == authority) || has_authority(look, authority),
            written: mirror.to_owned(),
            ..Endpoint::new(schemes, authority)
        };
        match is_new {
            true => endpoint.naming(HUB),
            false => endpoint,
        }
    }

    /// Names with the proxy's address before them are no matter of mirrors.
    fn by_name(&self, look: &Look<'_>, arrives: bool) -> Option<Finding> {
        let mirror = self.mirrors.iter().find(|mirror| mirror.starts_with("http://"))?;
        let host = without_path(mirror).trim_start_matches("http://");
        let is_needed = arrives && !look.target.is_loopback() && !self.insecure.iter().any(|entry| entry == host);
        is_needed.then(|| {
            Finding::note(
                CHECK,
                format!("names with {host} before them do not work: it is not in insecure-registries"),
            )
            .advice("only needed for registries other than Docker Hub; add it, or give the proxy TLS")
        })
    }
}

fn list(keys: &serde_json::Map<String, Value>, key: &str) -> Result<Vec<String>, Refused> {
    let texts = |items: &Vec<Value>| -> Option<Vec<String>> {
        let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
        texts.collect()
    };
    let wrong = |found: &str| {
        let why = format!("{key} is {found}, where a list of texts is expected");
        refused(why, &format!("{key:?}: [\"ADDRESS\"]"))
    };
    match keys.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => texts(items).ok_or_else(|| wrong("a list of other things")),
        Some(Value::String(_)) => Err(wrong("a text")),
        Some(_) => Err(wrong("something else")),
    }
}

/// As the daemon looks at each mirror when it starts.
fn validate(mirror: &str) -> Result<(), Refused> {
    let wrong = |what: &str, advice: &str| Err(refused(format!("the mirror {mirror:?} {what}"), advice));
    let Some((scheme, rest)) = mirror.split_once("://") else {
        return wrong("has no scheme", &format!("write http://{mirror} or https://{mirror}"));
    };
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return wrong("has another scheme than http and https", "write http:// or https://");
    }
    if mirror.contains(['?', '#']) {
        return wrong("has a query or a fragment", "leave out what begins with ? or #");
    }
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        // Not shown: there is a password in it.
        let why = "a mirror has a user in its address".to_owned();
        return Err(refused(why, "leave it out: Docker logs in to no mirror"));
    }
    if Written::read(mirror).is_none() && !rest.starts_with('/') {
        return wrong("is no address", "write http://HOST:PORT");
    }
    Ok(())
}

/// An authority for one registry, as Docker and podman find it.
pub(super) fn has_authority(look: &Look<'_>, authority: &str) -> bool {
    let names = look.names_in(&format!("{CERTIFICATES}/{authority}"));
    names.iter().any(|name| name.ends_with(".crt"))
}

/// The daemon's mirrors.
struct Mirrors;

impl Dialect for Mirrors {
    fn check(&self) -> &'static str {
        CHECK
    }

    fn place(&self) -> &'static str {
        "/etc/docker/daemon.json"
    }

    fn right(&self, _: &str, written: &str) -> String {
        let bare = without_path(written);
        format!(
            "\"registry-mirrors\": [\"{bare}\"], if docker.io is the proxy's default upstream; else [\"{bare}/{HUB}\"] ({TAKES_PATHS})"
        )
    }

    fn recipe(&self) -> String {
        "larder client-config docker prints what to write; then restart docker".to_owned()
    }

    fn is_for_all(&self) -> bool {
        false
    }

    fn wrong_scheme(&self, written: &str, spoken: Scheme) -> Finding {
        let wrong = format!("{} names {written}, and the proxy speaks {spoken} there", self.place());
        Finding::problem(CHECK, wrong).advice(format!("write {spoken}:// there; then restart docker"))
    }

    fn partly(&self, _: &str, written: &str, _: Takes) -> Finding {
        Finding::warning(CHECK, format!("{written} is not asked for everything")).advice(self.recipe())
    }
}

/// `hosts.toml` below /etc/docker/certs.d, where there is any.
fn by_hosts(look: &Look<'_>, uses_containerd: Option<bool>) -> Vec<Finding> {
    let hosts = Hosts::new(vec![CERTIFICATES.to_owned()]);
    if !hosts.has_files(look) {
        return Vec::new();
    }
    let is_read = match uses_containerd {
        Some(true) => None,
        Some(false) => Some(format!(
            "/{FILE} keeps images out of containerd's store: hosts.toml below /{CERTIFICATES} is not read"
        )),
        None => Some(format!(
            "hosts.toml below /{CERTIFICATES} is read only with containerd's image store (docker info: Storage Driver with driver-type io.containerd.snapshotter)"
        )),
    };
    let mut findings = match uses_containerd {
        Some(false) => Vec::new(),
        _ => hosts.findings(look, &Folder::new(CHECK, CERTIFICATES)),
    };
    if uses_containerd.is_none() {
        for verdict in findings.iter_mut().flat_map(|finding| &mut finding.registries) {
            verdict.only = Some("Docker with containerd's image store".to_owned());
        }
    }
    findings.extend(is_read.map(|found| {
        Finding::note(CHECK, found).advice(
            "\"features\": {\"containerd-snapshotter\": true}, the default of new installations since Docker 29",
        )
    }));
    findings
}
