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

/// Keys of dockerd's file, from 20.10 to 29, and names of its flags. It starts with no other.
const KNOWN: &str = "
    add-runtime allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugin
    authorization-plugins bip bip6 bridge bridge-accept-fwmark builder cdi-spec-dir cdi-spec-dirs
    cgroup-parent cluster-advertise cluster-store cluster-store-opt cluster-store-opts config-file containerd
    containerd-namespace containerd-plugins-namespace cpu-rt-period cpu-rt-runtime cri-containerd data-root
    debug default-address-pool default-address-pools default-cgroupns-mode default-gateway default-gateway-v6
    default-ipc-mode default-network-opt default-network-opts default-runtime default-shm-size
    default-stop-timeout default-ulimit default-ulimits deprecated-key-path dns dns-opt dns-opts dns-search
    exec-opt exec-opts exec-root experimental feature features firewall-backend fixed-cidr fixed-cidr-v6
    graph group help host host-gateway-ip host-gateway-ips hosts http-proxy https-proxy icc init init-path
    insecure-registries insecure-registry ip ip-forward ip-forward-no-drop ip-masq ip6tables iptables ipv6
    label labels live-restore log-driver log-format log-level log-opt log-opts max-concurrent-downloads
    max-concurrent-uploads max-download-attempts metrics-addr mtu network-control-plane-mtu
    network-diagnostic-port no-new-privileges no-proxy node-generic-resource node-generic-resources nri-opts
    oom-score-adjust pidfile proxies raw-logs registry-mirror registry-mirrors restart rootless runtimes
    seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opt storage-opts
    swarm-default-advertise-addr swarm-raft-election-tick swarm-raft-heartbeat-tick tls tlscacert tlscert
    tlskey tlsverify userland-proxy userland-proxy-path userns-remap validate version
";

/// Keys whose values have one type; dockerd starts with no other.
const TYPES: &[(&str, &str)] = &[
    (
        "true or false",
        "debug icc init ip-forward ip-masq ip6tables iptables ipv6 live-restore no-new-privileges raw-logs \
         selinux-enabled tls tlsverify userland-proxy experimental",
    ),
    (
        "a whole number",
        "max-concurrent-downloads max-concurrent-uploads max-download-attempts mtu shutdown-timeout",
    ),
    (
        "a text",
        "bip bridge cgroup-parent containerd data-root default-runtime exec-root fixed-cidr group log-driver \
         log-level metrics-addr pidfile seccomp-profile storage-driver userns-remap http-proxy https-proxy \
         no-proxy tlscacert tlscert tlskey",
    ),
    (
        "a list of texts",
        "authorization-plugins dns dns-opts dns-search exec-opts hosts labels storage-opts \
         node-generic-resources",
    ),
    ("a map of keys", "log-opts runtimes features default-ulimits"),
];
/// Keys whose values are maps that dockerd takes as one value; the keys in any other map count as if they stood outside.
const MAPS: &[&str] = &[
    "cluster-store-opts",
    "default-network-opts",
    "log-opts",
    "runtimes",
    "default-ulimits",
    "features",
    "builder",
    "nri-opts",
];

/// Names of flags, which the daemon takes for keys that it knows and ignores.
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
    /// Versions that do not start with the file though others do, and what to do.
    limit: Option<(&'static str, &'static str)>,
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
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        // An empty file, and null, are one without keys to the daemon.
        let json = match values.next() {
            None | Some(Ok(Value::Null)) => Value::Object(serde_json::Map::new()),
            Some(read) => read.map_err(|error| refused(format!("it is no JSON ({error})"), "put it right"))?,
        };
        let is_one = text[values.byte_offset()..].trim().is_empty();
        let limits = [
            (
                text.trim().is_empty(),
                "is empty, and Docker 20.10 does not start with it",
                "write {} into it",
            ),
            (
                !is_one,
                "has more behind its first value, and only Docker 20.10 starts with it",
                "take the rest away",
            ),
        ];
        let limit = limits.into_iter().find(|(is_it, ..)| *is_it);
        let limit = limit.map(|(_, what, advice)| (what, advice));
        let Some(keys) = json.as_object() else {
            let why = "it is JSON, but no object with keys".to_owned();
            return Err(refused(why, "{ \"registry-mirrors\": [\"ADDRESS\"] }"));
        };
        if let Some((found, right)) = NEARLY.iter().find(|(key, _)| keys.contains_key(*key)) {
            let why = format!("it has a key {found:?}, which the daemon does not know");
            return Err(refused(why, &format!("write {right:?}")));
        }
        known(keys)?;
        let daemon = Daemon {
            limit,
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
        for entry in &daemon.insecure {
            validate_insecure(entry)?;
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
            let found = format!("/{FILE} has {flag:?}, which is the name of a flag: dockerd ignores it");
            findings.push(
                Finding::problem(CHECK, found).advice(format!("write {key:?}, with a list; then restart docker")),
            );
        }
        if let Some((what, advice)) = self.limit {
            findings.push(Finding::warning(CHECK, format!("/{FILE} {what}")).advice(advice));
        }
        // dockerd looks for the scheme in small letters, and puts https:// before what has none.
        for mirror in self.mirrors.iter().filter(|mirror| !has_scheme(mirror)) {
            let found =
                format!("/{FILE}: nothing is asked of {mirror}: dockerd knows its scheme in small letters only");
            findings.push(Finding::problem(CHECK, found).advice("write http:// or https:// in small letters"));
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
        let authority = if has_scheme(mirror) { authority } else { "" };
        let schemes = if scheme == Some("http") { HTTP } else { HTTPS };
        let is_new = self.uses_containerd == Some(true);
        let endpoint = Endpoint {
            path: match path.ends_with("/v2") && is_new {
                true => path.to_owned(),
                false => format!("{path}/v2"),
            },
            has_trust: self.is_insecure(authority) || has_authority(look, authority),
            written: mirror.to_owned(),
            ..Endpoint::new(schemes, authority)
        };
        match is_new {
            true => endpoint.naming(HUB),
            false => endpoint,
        }
    }

    fn is_insecure(&self, authority: &str) -> bool {
        self.insecure.iter().any(|entry| bare(entry) == authority)
    }

    /// Names with the proxy's address before them are no matter of mirrors.
    fn by_name(&self, look: &Look<'_>, arrives: bool) -> Option<Finding> {
        let mirror = self.mirrors.iter().find(|mirror| mirror.starts_with("http://"))?;
        let host = without_path(mirror).trim_start_matches("http://");
        let is_needed = arrives && !look.target.is_loopback() && !self.is_insecure(host);
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

fn has_scheme(mirror: &str) -> bool {
    mirror.starts_with("http://") || mirror.starts_with("https://")
}

/// An insecure registry less its scheme, which dockerd takes away.
fn bare(entry: &str) -> &str {
    let schemes = ["http://", "https://"].iter();
    let mut bare = schemes.filter_map(|scheme| {
        let begin = entry.get(..scheme.len())?;
        begin.eq_ignore_ascii_case(scheme).then(|| &entry[scheme.len()..])
    });
    bare.next().unwrap_or(entry)
}

/// Refuses what dockerd does not start with: keys that it does not know, and values of other types.
fn known(keys: &serde_json::Map<String, Value>) -> Result<(), Refused> {
    for (key, value) in keys {
        let inner = value.as_object().filter(|_| !MAPS.contains(&key.as_str()));
        let unknown = match inner {
            Some(inner) => inner.keys().find(|key| !is_known(key)),
            None => (!is_known(key)).then_some(key),
        };
        if let Some(key) = unknown {
            let why = format!("it has a key {key:?}, and a dockerd of version 20.10 to 29 does not know it");
            let lower = key.to_ascii_lowercase();
            return Err(match is_known(&lower) {
                true => refused(why, &format!("write {lower:?}")),
                false => refused(why, "take it away, or put it right"),
            });
        }
        let types = TYPES.iter().find(|(_, names)| names.split(' ').any(|name| name == key));
        if let Some((expected, _)) = types.filter(|(expected, _)| !is_of(expected, value)) {
            return Err(refused(
                format!("{key} is {value}, where {expected} is expected"),
                "put it right",
            ));
        }
    }
    Ok(())
}

fn is_known(key: &str) -> bool {
    KNOWN.split_whitespace().any(|known| known == key)
}

/// True if a value is of the type that [`TYPES`] has a name for. Null leaves what is there without it.
fn is_of(expected: &str, value: &Value) -> bool {
    value.is_null()
        || match expected {
            "true or false" => value.is_boolean(),
            "a whole number" => value.is_i64(),
            "a text" => value.is_string(),
            "a list of texts" => value
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one.is_string() || one.is_null())),
            _ => value.is_object(),
        }
}

/// As the daemon looks at each insecure registry when it starts: an address less a path, or a network.
fn validate_insecure(entry: &str) -> Result<(), Refused> {
    let bare = bare(entry);
    let is_network = bare
        .split_once('/')
        .is_some_and(|(address, bits)| address.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok());
    let is_address = || bare.parse::<std::net::IpAddr>().is_ok() || bare.parse::<crate::oci::HostPort>().is_ok();
    match is_network || is_address() {
        true => Ok(()),
        false => Err(refused(
            format!("insecure-registries has {entry:?}, which is neither HOST:PORT nor a network"),
            "such as \"larder.example:5000\" or \"10.0.0.0/8\"",
        )),
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
