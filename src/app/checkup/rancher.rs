//! k3s and rke2: `registries.yaml`, from which they write containerd's files when they start.

use serde_json::Value;

use super::Finding;
use super::clients::{Dialect, Look, other_port, with_more};
use super::naming::{PROBE, Way, path_of, without_path};
use super::pulls::{Arrival, Endpoint, HTTP, HTTPS, HTTPS_THEN_HTTP, Judged, PullVerdict, Takes, Written, judge};
use super::yaml;

const K3S: Rancher = Rancher {
    check: "client k3s",
    place: "/etc/rancher/k3s/registries.yaml",
    name: "k3s",
};
const RKE2: Rancher = Rancher {
    check: "client rke2",
    place: "/etc/rancher/rke2/registries.yaml",
    name: "rke2",
};
/// The mirror for every registry that has none of its own.
const ALL: &str = "*";

struct Rancher {
    check: &'static str,
    place: &'static str,
    name: &'static str,
}

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    [K3S, RKE2].iter().flat_map(|rancher| rancher.findings(look)).collect()
}

impl Rancher {
    fn findings(&self, look: &Look<'_>) -> Vec<Finding> {
        let text = match look.read(self.check, self.place.trim_start_matches('/')) {
            None => return Vec::new(),
            Some(Err(finding)) => return vec![finding],
            Some(Ok(text)) => text,
        };
        let file = match yaml::parse(&text).and_then(|file| File::read(&file)) {
            Ok(file) => file,
            Err(why) => {
                let found = format!("{}: {why}: {} does not start with it", self.place, self.name);
                return vec![Finding::problem(self.check, found).advice("put it right")];
            }
        };
        self.judged(look, &file)
    }

    fn judged(&self, look: &Look<'_>, file: &File) -> Vec<Finding> {
        let (mut judged, mut more, mut near): (Vec<Judged>, _, _) = (Vec::new(), Vec::new(), None);
        for mirror in &file.mirrors {
            if mirror.registry.contains('/') {
                let found = format!(
                    "{}: {} is the name of no registry, which has neither scheme nor path: nothing is pulled by it",
                    self.place, mirror.registry
                );
                more.push(Finding::problem(self.check, found).advice("such as \"docker.io\", or \"*\" for all"));
                continue;
            }
            if let Some(key) = mirror.strange.first() {
                let found = format!(
                    "{}: {} has a key {key:?}, which {} ignores",
                    self.place, mirror.registry, self.name
                );
                more.push(Finding::warning(self.check, found).advice("the addresses stand under endpoint, as a list"));
            }
            let name = if mirror.registry == ALL {
                "docker.io"
            } else {
                &mirror.registry
            };
            let mut endpoints = Vec::new();
            for written in &mirror.endpoints {
                match endpoint(file, name, written) {
                    Some(endpoint) => endpoints.push(endpoint),
                    None => {
                        let found = format!("{}: {written:?} is no address, and is left out", self.place);
                        more.push(Finding::problem(self.check, found).advice("such as \"http://HOST:PORT\""));
                    }
                }
            }
            near = near.or_else(|| other_port(look, self.check, self.place, &endpoints));
            endpoints.push(Endpoint::registry(name).naming(name));
            let mut one = judge(look, name, &endpoints);
            if let (ALL, Some(endpoint)) = (mirror.registry.as_str(), endpoints.first()) {
                for trouble in &mut one.troubles {
                    if let super::pulls::Trouble::Way(written, way) = trouble
                        && !matches!(path_of(written), "" | "v2")
                        && look.is_here(&endpoint.authority)
                    {
                        let path = path_of(written);
                        *way = Way::Refused(format!("the path {path} is for one registry, and {ALL} is for all"));
                    }
                }
            }
            mirror.registry.clone_into(&mut one.verdict.registry);
            if one.verdict.arrives() {
                more.extend(self.rewrites(look, name, mirror, &mut one.verdict));
            }
            judged.push(one);
        }
        let mut findings = with_more(look, self, judged, more);
        findings.extend(near);
        findings
    }

    /// Rewrites by which images get other names on their way here.
    fn rewrites(&self, look: &Look<'_>, name: &str, mirror: &Mirror, verdict: &mut PullVerdict) -> Vec<Finding> {
        let wrong = mirror
            .rewrites
            .iter()
            .filter(|(pattern, to)| !keeps_names(look, name, mirror, pattern, to));
        let findings: Vec<Finding> = wrong
            .map(|(pattern, to)| {
                let found = format!(
                    "{}: the rewrite of {pattern:?} to {to:?} gives images of {} other names on their way here",
                    self.place, mirror.registry
                );
                Finding::warning(self.check, found).advice(
                    "take the rewrite away: the proxy is told which registry is meant, and keeps the names of its images",
                )
            })
            .collect();
        if !findings.is_empty() {
            verdict.by_tag = Arrival::WrongImage;
            verdict.by_digest = Arrival::WrongImage;
        }
        findings
    }
}

/// Returns true if every name stays as it is, or has its own registry put before it.
fn keeps_names(look: &Look<'_>, name: &str, mirror: &Mirror, pattern: &str, replacement: &str) -> bool {
    let is_all = matches!(pattern, "(.*)" | "^(.*)" | "(.*)$" | "^(.*)$");
    let path = replacement
        .strip_suffix("$1")
        .or_else(|| replacement.strip_suffix("${1}"));
    match path.map(|path| path.trim_matches('/')).filter(|_| is_all) {
        Some("") => true,
        Some(path) => {
            let asked = format!("/v2/{path}/{PROBE}/manifests/1?ns={name}");
            mirror.registry != ALL && look.target.naming.judge(name, &asked) == Way::Right
        }
        None => false,
    }
}

/// A path is taken as it is, unless it is only `/v2`, and the registry is named by `ns` (R-C96).
fn endpoint(file: &File, registry: &str, written: &str) -> Option<Endpoint> {
    let read = Written::read(written)?;
    let (host, port) = match read.authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (read.authority, ""),
    };
    let is_local = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
    let tls = file.tls.iter().find(|tls| tls.host == read.authority);
    let has_tls = tls.is_some();
    let schemes = match read.scheme {
        Some("http") if has_tls && port != "80" => HTTPS_THEN_HTTP,
        Some("http") => HTTP,
        None if is_local && !matches!(port, "" | "443") => HTTP,
        _ => HTTPS,
    };
    let endpoint = Endpoint {
        path: match read.path {
            "" | "/" | "/v2" => "/v2".to_owned(),
            path => path.trim_end_matches('/').to_owned(),
        },
        has_trust: tls.is_some_and(|tls| tls.is_trust),
        written: written.to_owned(),
        ..Endpoint::new(schemes, read.authority)
    };
    Some(endpoint.naming(registry))
}

/// The settings of the file that decide where pulls go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) mirrors: Vec<Mirror>,
    tls: Vec<Tls>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) registry: String,
    pub(super) endpoints: Vec<String>,
    /// Pattern and replacement.
    pub(super) rewrites: Vec<(String, String)>,
    /// Keys that are not known.
    strange: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Tls {
    host: String,
    /// An authority is named, or none is asked for.
    is_trust: bool,
}

impl File {
    /// Errors: what of it is not as it has to be.
    pub(super) fn read(file: &Value) -> Result<File, String> {
        let mut read = File::default();
        for (registry, mirror) in map(file.get("mirrors"), "mirrors")? {
            let what = format!("mirrors.{registry}");
            let keys = map(Some(mirror), &what)?;
            let known = |key: &str| matches!(key, "endpoint" | "rewrite");
            let mut rewrites = Vec::new();
            for (pattern, replacement) in map(mirror.get("rewrite"), &format!("{what}.rewrite"))? {
                let replacement = text(replacement, &format!("{what}.rewrite"))?;
                rewrites.push((pattern.clone(), replacement.to_owned()));
            }
            read.mirrors.push(Mirror {
                registry: registry.clone(),
                endpoints: list(mirror.get("endpoint"), &format!("{what}.endpoint"))?,
                rewrites,
                strange: keys.keys().filter(|key| !known(key)).cloned().collect(),
            });
        }
        for (host, config) in map(file.get("configs"), "configs")? {
            let Some(tls) = config.get("tls").filter(|tls| !tls.is_null()) else {
                continue;
            };
            let skips = tls.get("insecure_skip_verify").and_then(Value::as_bool) == Some(true);
            read.tls.push(Tls {
                host: host.clone(),
                is_trust: skips || tls.get("ca_file").is_some_and(Value::is_string),
            });
        }
        Ok(read)
    }
}

fn map<'a>(value: Option<&'a Value>, what: &str) -> Result<&'a serde_json::Map<String, Value>, String> {
    static NONE: std::sync::LazyLock<serde_json::Map<String, Value>> = std::sync::LazyLock::new(serde_json::Map::new);
    match value {
        None | Some(Value::Null) => Ok(&NONE),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(format!("{what} is no map of keys")),
    }
}

fn list(value: Option<&Value>, what: &str) -> Result<Vec<String>, String> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(|one| text(one, what).map(str::to_owned)).collect(),
        Some(_) => Err(format!("{what} is no list, such as [\"http://HOST:PORT\"]")),
    }
}

fn text<'a>(value: &'a Value, what: &str) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("{what} has something else than a text"))
}

impl Dialect for Rancher {
    fn check(&self) -> &'static str {
        self.check
    }

    fn place(&self) -> &'static str {
        self.place
    }

    fn right(&self, _: &str, written: &str) -> String {
        format!("endpoint: [\"{}\"]", without_path(written))
    }

    fn recipe(&self) -> String {
        format!(
            "larder client-config k3s prints what to write; then restart {}",
            self.name
        )
    }

    fn partly(&self, _: &str, written: &str, _: Takes) -> Finding {
        Finding::warning(self.check, format!("{written} is not asked for everything")).advice(self.recipe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<File, String> {
        yaml::parse(text).and_then(|file| File::read(&file))
    }

    #[test]
    fn both_ways_to_write_a_list() {
        let text = "# a comment http://no:1\nmirrors:\n  \"docker.io\":\n    endpoint: [\"http://a:1\", 'https://b']\n  ghcr.io:\n    endpoint:\n      - \"http://c:2\"   # here\n\
                    configs:\n  \"a:1\":\n    auth:\n      username: http://d\n";
        let file = read(text).unwrap();
        let found: Vec<_> = file
            .mirrors
            .iter()
            .map(|mirror| (mirror.registry.as_str(), mirror.endpoints.join(" ")))
            .collect();
        assert_eq!(
            found,
            [
                ("docker.io", "http://a:1 https://b".to_owned()),
                ("ghcr.io", "http://c:2".to_owned())
            ]
        );
        assert_eq!(read("").unwrap(), File::default());
        let json = read(r#"{"mirrors": {"docker.io": {"endpoint": ["http://a:1"]}}}"#).unwrap();
        assert_eq!(json.mirrors[0].endpoints, ["http://a:1"]);
    }

    #[test]
    fn files_that_stop_it() {
        for (text, why) in [
            ("mirrors:\n  docker.io:\n    endpoint: [\"http://a:1]\n", "line"),
            ("mirrors:\n  docker.io:\n    endpoint: http://a:1\n", "is no list"),
            ("mirrors: [docker.io]\n", "is no map"),
            (
                "mirrors:\n  docker.io:\n    endpoint: [5000]\n",
                "something else than a text",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn rewrites_belong_to_their_registry() {
        let text = "mirrors:\n  docker.io:\n    rewrite:\n      \"^(.*)$\": \"docker.io/$1\"\n      '^a': b\n    endpoint:\n      - http://a:1\n  quay.io:\n    endpoint: [\"http://b:2\"]\n";
        let file = read(text).unwrap();
        let pairs = [("^(.*)$", "docker.io/$1"), ("^a", "b")];
        let pairs = pairs.map(|(from, to)| (from.to_owned(), to.to_owned()));
        assert_eq!(file.mirrors[0].rewrites, pairs);
        assert!(file.mirrors[1].rewrites.is_empty());
    }
}
