//! `hosts.toml`, a folder a registry, as containerd's library reads it for containerd, nerdctl and Docker.
//!
//! A folder in which the file cannot be read as the library wants it counts as one without: then the registry itself is
//! asked, and the log of the client is the only place that says so.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Finding;
use super::clients::{Dialect, Look, few, other_port, report};
use super::naming::{Way, path_of, without_path};
use super::pulls::{
    Endpoint, HTTP, HTTPS, HTTPS_THEN_HTTP, Judged, PullVerdict, Takes, Trouble, Written, clean, judge,
};

/// The folder for every registry that has none of its own.
pub(super) const DEFAULT: &str = "_default";
const FILE: &str = "hosts.toml";
/// Registries that [`DEFAULT`] is tried with.
const EXAMPLES: &[&str] = &["docker.io", "quay.io", "ghcr.io"];

/// Folders of registries' folders, the first that has a registry's counts. Paths are below the root.
pub(super) struct Hosts {
    folders: Vec<String>,
}

/// A registry's hosts.
#[derive(Debug)]
pub(super) struct Read {
    /// The last is the registry itself, or what `server` names in its place.
    pub(super) endpoints: Vec<Endpoint>,
    /// Hosts without a `dial_timeout`.
    slow: Vec<String>,
    only: Option<Only>,
}

/// Versions of containerd's library that take a file, if not all of them do.
#[derive(Clone, Copy, Debug)]
struct Only {
    versions: &'static str,
    why: &'static str,
    advice: &'static str,
}

/// A registry's file that is not read as it is meant.
#[derive(Debug)]
pub(super) struct Unread {
    path: String,
    why: String,
    /// False if the client asks the registry itself then.
    fails: bool,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Host>,
    #[serde(flatten)]
    root: Host,
}

#[derive(Deserialize)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<toml::Value>,
    client: Option<toml::Value>,
    skip_verify: Option<bool>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<toml::Value>,
    header: Option<toml::Table>,
}

impl Hosts {
    pub(super) fn new(folders: Vec<String>) -> Hosts {
        Hosts { folders }
    }

    /// True if there is a `hosts.toml` at all.
    pub(super) fn has_files(&self, look: &Look<'_>) -> bool {
        !self.named(look).is_empty()
    }

    /// The registries that have a `hosts.toml`, by their folders.
    fn named(&self, look: &Look<'_>) -> Vec<String> {
        let mut named = Vec::new();
        for folder in &self.folders {
            for name in look.names_in(folder) {
                let has_file = look.root.join(format!("{folder}/{name}/{FILE}")).exists();
                let registry = registry_of(&name);
                if has_file && !named.contains(&registry) {
                    named.push(registry);
                }
            }
        }
        named
    }

    /// The folder that counts for a registry.
    fn folder(&self, look: &Look<'_>, registry: &str) -> Option<String> {
        let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
        let names: Vec<&str> = with_port.as_deref().into_iter().chain([registry, DEFAULT]).collect();
        self.folders.iter().find_map(|folder| {
            let paths = names.iter().map(|name| format!("{folder}/{name}"));
            paths.into_iter().find(|path| look.root.join(path).exists())
        })
    }

    /// The hosts of a registry, in the order in which they are asked.
    pub(super) fn read(&self, look: &Look<'_>, registry: &str) -> Result<Read, Unread> {
        let itself = |slow| Read {
            endpoints: vec![Endpoint::registry(registry).naming(registry)],
            slow,
            only: None,
        };
        let Some(folder) = self.folder(look, registry) else {
            return Ok(itself(Vec::new()));
        };
        let path = format!("{folder}/{FILE}");
        let unread = |why: String, fails: bool| Unread {
            path: path.clone(),
            why,
            fails,
        };
        let text = match look.read("", &path) {
            None => return Ok(itself(Vec::new())),
            Some(Ok(text)) if text.is_empty() => return Ok(itself(Vec::new())),
            Some(Err(finding)) => return Err(unread(finding.found, true)),
            Some(Ok(text)) => text,
        };
        let file: File = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let why = match text.parse::<toml::Table>() {
                Err(_) => format!("is no TOML: {}", error.message()),
                Ok(_) => format!("is not understood: {}", error.message()),
            };
            unread(why, false)
        })?;
        let mut read = Read {
            endpoints: Vec::new(),
            slow: Vec::new(),
            only: None,
        };
        for name in in_order(&text, &file) {
            if let Some(host) = file.host.get(&name) {
                let endpoint = endpoint(look, &folder, registry, &name, host);
                read.endpoints
                    .push(endpoint.map_err(|wrong| unread(wrong.why, wrong.fails))?);
                read.note(host, &name);
            }
        }
        if file.root.dial_timeout.is_some() {
            read.note(&file.root, "server");
        }
        if file.host.is_empty() {
            read.only = Some(Only {
                versions: "containerd 2",
                why: "a file without a [host] is ignored by containerd 1 (and Docker before 29)",
                advice: "[host.\"ADDRESS\"] with the same address beside server",
            });
        }
        read.endpoints.push(match file.server.as_deref() {
            None | Some("") => Endpoint::registry(registry).naming(registry),
            Some(server) => {
                endpoint(look, &folder, registry, server, &file.root).map_err(|wrong| unread(wrong.why, wrong.fails))?
            }
        });
        Ok(read)
    }

    /// A registry's verdict, and what its file has besides.
    fn judge(&self, look: &Look<'_>, registry: &str) -> Result<(Judged, Read), Unread> {
        if registry != DEFAULT {
            let read = self.read(look, registry)?;
            let mut judged = judge(look, registry, &read.endpoints);
            judged.verdict.only = read.only.map(|only| only.versions.to_owned());
            return Ok((judged, read));
        }
        // Stands for all that have no folder: the first that goes wrong tells what is wrong with it.
        let is_by_default = |name: &&&str| {
            let folder = self.folder(look, name);
            folder.is_some_and(|folder| folder.ends_with(&format!("/{DEFAULT}")))
        };
        let mut last = None;
        for name in EXAMPLES.iter().filter(is_by_default) {
            let read = self.read(look, name)?;
            let mut judged = judge(look, name, &read.endpoints);
            judged.verdict.registry = DEFAULT.to_owned();
            judged.verdict.only = read.only.map(|only| only.versions.to_owned());
            for trouble in &mut judged.troubles {
                if let Trouble::Way(written, way) = trouble
                    && !path_of(written).is_empty()
                {
                    let path = path_of(written);
                    *way = Way::Refused(format!("the path {path} is for one registry, and {DEFAULT} is for all"));
                }
            }
            let is_right = judged.verdict.arrives();
            last = Some((judged, read));
            if !is_right {
                break;
            }
        }
        last.ok_or_else(|| Unread {
            path: format!("{}/{DEFAULT}/{FILE}", self.folders.first().map_or("", String::as_str)),
            why: "is used by no registry: each has a folder of its own".to_owned(),
            fails: false,
        })
    }

    /// Everything about these folders.
    pub(super) fn findings(&self, look: &Look<'_>, dialect: &Folder) -> Vec<Finding> {
        let (mut judged, mut problems) = (Vec::new(), Vec::new());
        let (mut slow, mut near, mut only) = (Vec::new(), None, None);
        for registry in self.named(look) {
            match self.judge(look, &registry) {
                Ok((one, read)) => {
                    // How names with the proxy's own address before them are pulled: no other registry is meant.
                    let is_itself = look.is_here(&registry);
                    if is_itself && one.troubles.iter().all(|trouble| matches!(trouble, Trouble::Way(..))) {
                        continue;
                    }
                    if one.verdict.arrives() && read.slow.iter().any(|host| look.is_here(authority_of(host))) {
                        slow.push(registry.clone());
                    }
                    if one.verdict.names_this_proxy() {
                        only = only.or(read.only);
                    }
                    let place = format!("/{}", self.folder(look, &registry).unwrap_or_default());
                    near = near.or_else(|| other_port(look, dialect.check(), &place, &read.endpoints));
                    judged.push(one);
                }
                Err(unread) => problems.push(unread.finding(dialect, &registry)),
            }
        }
        let is_default_here = judged
            .iter()
            .any(|one| one.verdict.registry == DEFAULT && one.verdict.arrives());
        let hidden = if is_default_here { self.empty(look) } else { Vec::new() };
        // A file that is not read is all that is to be said, if there is no other.
        let mut findings = match judged.is_empty() && !problems.is_empty() {
            true => Vec::new(),
            false => report(look, dialect, judged),
        };
        findings.append(&mut problems);
        findings.extend(near);
        if let Some(only) = only {
            let found = format!("{}: {}: it is read by {}", dialect.place(), only.why, only.versions);
            findings.push(Finding::warning(dialect.check(), found).advice(only.advice));
        }
        if !hidden.is_empty() {
            let found = format!(
                "{} has folders without {FILE}, which hide {DEFAULT}: pulls from {} go past this proxy",
                dialect.place(),
                few(&hidden)
            );
            findings.push(
                Finding::warning(dialect.check(), found).advice("write a hosts.toml there, or take the folders away"),
            );
        }
        if !slow.is_empty() {
            let found = format!("without dial_timeout: {}", few(&slow));
            findings.push(Finding::note(dialect.check(), found).advice(
                "when the proxy is away each pull waits 30 s: dial_timeout = \"1s\" (containerd 2.1 and newer)",
            ));
        }
        findings
    }

    /// Registries whose folder has no `hosts.toml`.
    fn empty(&self, look: &Look<'_>) -> Vec<String> {
        let mut empty = Vec::new();
        for folder in &self.folders {
            let names = look.names_in(folder).into_iter();
            let without = names.filter(|name| !look.root.join(format!("{folder}/{name}/{FILE}")).exists());
            empty.extend(without.map(|name| registry_of(&name)));
        }
        empty
    }
}

impl Read {
    fn note(&mut self, host: &Host, name: &str) {
        match &host.dial_timeout {
            None => self.slow.push(without_user_and_query(name)),
            Some(toml::Value::String(text)) if text.is_empty() || is_duration(text) => {}
            // Earlier ones do not know the key.
            Some(_) => {
                self.only = Some(Only {
                    versions: "containerd before 2.1",
                    why: "a dial_timeout that is no duration makes containerd 2.1 and newer ignore the file",
                    advice: "dial_timeout = \"1s\"",
                });
            }
        }
        let capabilities = host.capabilities.iter().flatten();
        if capabilities
            .into_iter()
            .any(|one| one.eq_ignore_ascii_case("referrers"))
        {
            self.only = Some(Only {
                versions: "containerd 2.2 and newer",
                why: "the capability referrers is not known to others, which ignore the file",
                advice: "capabilities = [\"pull\", \"resolve\"]",
            });
        }
    }
}

impl Unread {
    fn finding(self, dialect: &Folder, registry: &str) -> Finding {
        let Unread { path, why, fails } = self;
        let (check, place) = (dialect.check(), dialect.place());
        let (found, verdict) = match fails {
            true => (
                format!("/{path}: {why}: pulls from {registry} fail"),
                PullVerdict::failing(registry, place),
            ),
            false => (
                format!("/{path} {why}: the file is ignored, and pulls from {registry} go past this proxy"),
                PullVerdict::elsewhere(registry, place),
            ),
        };
        let mut finding = Finding::problem(check, found).advice(match fails {
            true => "put it right, or ask as root if it is only this command that may not read it",
            false => "put it right: the client's log says failed to decode hosts.toml meanwhile",
        });
        finding.registries = vec![verdict];
        finding
    }
}

/// A host whose keys make no sense.
struct Wrong {
    why: String,
    fails: bool,
}

fn endpoint(look: &Look<'_>, folder: &str, registry: &str, name: &str, host: &Host) -> Result<Endpoint, Wrong> {
    let ignored = |why: String| Wrong { why, fails: false };
    // Without a scheme it is https, for localhost as well.
    let name = &without_user_and_query(name);
    let address = match name.starts_with("http") {
        true => name.to_owned(),
        false => format!("https://{name}"),
    };
    let read = Written::read(&address).ok_or_else(|| ignored(format!("names {name:?}, which is no address")))?;
    let has_tls = host.ca.is_some() || host.client.is_some() || host.skip_verify.is_some();
    let is_port_80 = read.authority.ends_with(":80");
    let path = match (read.path, host.override_path) {
        ("", true) => String::new(),
        ("", false) => "/v2".to_owned(),
        (path, verbatim) => {
            let path = clean(path);
            match path.ends_with("/v2") || verbatim {
                true => path,
                false => path + "/v2",
            }
        }
    };
    for ca in authorities(host.ca.as_ref()).map_err(ignored)? {
        let path = match ca.strip_prefix('/') {
            Some(path) => path.to_owned(),
            None => format!("{folder}/{ca}"),
        };
        let holds = |text: String| text.contains("-----BEGIN CERTIFICATE-----");
        if !look.read("", &path).is_some_and(|read| read.is_ok_and(holds)) {
            let why = format!("ca names /{path}, where no certificate can be read");
            return Err(Wrong { why, fails: true });
        }
    }
    for file in client_files(host.client.as_ref()).map_err(ignored)? {
        let path = match file.strip_prefix('/') {
            Some(path) => path.to_owned(),
            None => format!("{folder}/{file}"),
        };
        if look.read("", &path).is_none_or(|read| read.is_err()) {
            let why = format!("client names /{path}, which cannot be read");
            return Err(Wrong { why, fails: true });
        }
    }
    let is_text = |value: &toml::Value| match value {
        toml::Value::Array(all) => all.iter().all(toml::Value::is_str),
        one => one.is_str(),
    };
    let mut headers = host.header.iter().flatten();
    if let Some((header, _)) = headers.find(|(_, value)| !is_text(value)) {
        return Err(ignored(format!(
            "has a header {header} that is neither a text nor a list of texts"
        )));
    }
    let endpoint = Endpoint {
        path,
        takes: takes(host.capabilities.as_deref().unwrap_or_default()).map_err(ignored)?,
        has_trust: host.ca.is_some() || host.skip_verify == Some(true),
        written: name.to_owned(),
        ..Endpoint::new(
            match read.scheme {
                Some("http") if has_tls && !is_port_80 => HTTPS_THEN_HTTP,
                Some("http") => HTTP,
                _ => HTTPS,
            },
            read.authority,
        )
    };
    Ok(endpoint.naming(registry))
}

/// An address as the client takes it apart: users, queries and fragments play no part.
fn without_user_and_query(name: &str) -> String {
    let name = name.split(['?', '#']).next().unwrap_or(name);
    let begin = name.find("://").map_or(0, |at| at + "://".len());
    let end = name[begin..].find('/').map_or(name.len(), |at| begin + at);
    let authority = name[begin..end].rsplit('@').next().unwrap_or_default();
    format!("{}{authority}{}", &name[..begin], &name[end..])
}

/// Files of the client's own certificates and keys: one, a list of them, or a list of pairs.
fn client_files(client: Option<&toml::Value>) -> Result<Vec<&str>, String> {
    let wrong = || "has a client that is neither a text nor a list of texts or pairs".to_owned();
    let mut files = Vec::new();
    match client {
        None => {}
        Some(toml::Value::String(one)) => files.push(one.as_str()),
        Some(toml::Value::Array(all)) => {
            for one in all {
                match one {
                    toml::Value::String(one) => files.push(one.as_str()),
                    toml::Value::Array(pair) if matches!(pair.len(), 1 | 2) => {
                        for one in pair {
                            files.push(one.as_str().ok_or_else(wrong)?);
                        }
                    }
                    _ => return Err(wrong()),
                }
            }
        }
        Some(_) => return Err(wrong()),
    }
    // A pair may leave its key to the certificate's file.
    files.retain(|file| !file.is_empty());
    Ok(files)
}

/// Files of authorities.
fn authorities(ca: Option<&toml::Value>) -> Result<Vec<&str>, String> {
    let wrong = || "has a ca that is neither a text nor a list of texts".to_owned();
    match ca {
        None => Ok(Vec::new()),
        Some(toml::Value::String(one)) => Ok(vec![one]),
        Some(toml::Value::Array(all)) => all.iter().map(|one| one.as_str().ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

/// Without any a host may do everything.
fn takes(capabilities: &[String]) -> Result<Takes, String> {
    let known = |one: &&String| {
        let one = one.to_ascii_lowercase();
        matches!(one.as_str(), "pull" | "resolve" | "push" | "referrers")
    };
    if let Some(other) = capabilities.iter().find(|one| !known(one)) {
        return Err(format!("has the capability {other:?}, which nobody knows"));
    }
    let can = |what: &str| capabilities.is_empty() || capabilities.iter().any(|one| one.eq_ignore_ascii_case(what));
    Ok(match (can("pull"), can("resolve")) {
        (true, true) => Takes::All,
        (true, false) => Takes::Content,
        (false, true) => Takes::Resolve,
        (false, false) => Takes::Nothing,
    })
}

/// As Go reads one: `1s`, `1m30s`, `.5h`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"];
        let Some(unit) = unit.iter().find(|unit| behind.starts_with(**unit)) else {
            return false;
        };
        if number.parse::<f64>().is_err() {
            return false;
        }
        rest = &behind[unit.len()..];
    }
    true
}

/// The hosts as they stand in the file: that is the order in which they are asked.
fn in_order(text: &str, file: &File) -> Vec<String> {
    let mut places: Vec<(usize, String)> = Vec::new();
    if let Ok(table) = toml::de::DeTable::parse(text) {
        let hosts = table.get_ref().iter().filter(|(key, _)| key.get_ref() == "host");
        let hosts = hosts.filter_map(|(_, value)| value.get_ref().as_table());
        for (key, _) in hosts.flatten() {
            places.push((key.span().start, key.get_ref().to_string()));
        }
    }
    places.sort();
    match places.len() == file.host.len() {
        true => places.into_iter().map(|(_, name)| name).collect(),
        false => file.host.keys().cloned().collect(),
    }
}

fn authority_of(host: &str) -> &str {
    let rest = host.split_once("://").map_or(host, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// The registry that a folder is for: `registry.example_5000_` is registry.example:5000.
fn registry_of(folder: &str) -> String {
    match folder.strip_suffix('_').and_then(|name| name.rsplit_once('_')) {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{host}:{port}")
        }
        _ => folder.to_owned(),
    }
}

/// A folder of registries' folders, and whose it is.
pub(super) struct Folder {
    check: String,
    place: String,
}

impl Folder {
    /// `folder` is below the root.
    pub(super) fn new(check: &str, folder: &str) -> Folder {
        Folder {
            check: check.to_owned(),
            place: format!("/{folder}"),
        }
    }
}

impl Dialect for Folder {
    fn check(&self) -> &str {
        &self.check
    }

    fn place(&self) -> &str {
        &self.place
    }

    fn right(&self, _: &str, written: &str) -> String {
        let bare = without_path(written);
        format!("[host.\"{bare}\"] without a path and without override_path")
    }

    fn recipe(&self) -> String {
        format!(
            "larder client-config containerd --write {} writes it; it is read again with the next pull",
            self.place
        )
    }

    fn partly(&self, registry: &str, written: &str, takes: Takes) -> Finding {
        let what = match takes {
            Takes::Content => "tags are asked of the registry itself",
            Takes::Resolve => "only where a tag points is asked here, and images come from the registry itself",
            _ => "nothing is asked here",
        };
        let found = format!(
            "{} gives {written} not both of the capabilities pull and resolve for {registry}: {what}",
            self.place
        );
        Finding::warning(&self.check, found).advice("capabilities = [\"pull\", \"resolve\"]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        for good in ["1s", "1m30s", ".5h", "200ms", "0", "1.5s"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in ["1", "s", "1 s", "", "1d", "1s2"] {
            assert!(!is_duration(bad), "{bad}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_file() {
        let text = "[host.\"http://z\"]\n[host.\"http://a\"]\n[host.'http://m']\n";
        let file: File = toml::from_str(text).unwrap();
        assert_eq!(in_order(text, &file), ["http://z", "http://a", "http://m"]);
    }

    #[test]
    fn folders_with_ports() {
        assert_eq!(registry_of("registry.example_5000_"), "registry.example:5000");
        assert_eq!(registry_of("a_b"), "a_b");
    }
}
