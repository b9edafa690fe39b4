//! containerd: what pulls for Kubernetes reads, as `config.toml` and the files that it imports have it.
//!
//! `config_path` names folders of `hosts.toml`s; `registry.mirrors` has the addresses in the file itself. Without either
//! only nerdctl and ctr look into the usual folder.

use std::collections::VecDeque;

use toml::{Table, Value};

use super::clients::{Dialect, Look, few, other_port, report};
use super::hosts::{Folder, Hosts};
use super::naming::without_path;
use super::pulls::{Endpoint, HTTP, HTTPS, PullVerdict, Takes, Written, judge};
use super::{Finding, Level};

const CHECK: &str = "client containerd";
const NERDCTL: &str = "client nerdctl";
const FOLDER: &str = "etc/containerd/certs.d";
const CONFIG: &str = "etc/containerd/config.toml";
/// The plugins that pull for Kubernetes: of containerd 2, of containerd 1, and that one by the names of the first files.
const PLUGIN: &str = "io.containerd.cri.v1.images";
const OLD_PLUGIN: &str = "io.containerd.grpc.v1.cri";
const OLDEST_PLUGIN: &str = "cri";
/// The mirror for every registry that has none of its own.
const ALL: &str = "*";
/// Files that are imported, at most.
const MOST_IMPORTS: usize = 100;
const RESTART: &str = "then restart containerd";
const ADVICE: &str = "in config.toml, below [plugins.\"io.containerd.cri.v1.images\".registry] (containerd 1: plugins.\"io.containerd.grpc.v1.cri\".registry): config_path = \"/etc/containerd/certs.d\", then restart containerd";

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let usual = Hosts::new(vec![FOLDER.to_owned()]);
    match Cri::read(look) {
        None if !usual.has_files(look) => Vec::new(),
        None => {
            let mut findings = usual.findings(look, &Folder::new(CHECK, FOLDER));
            if comes_here(&findings) {
                let found = format!(
                    "there is no /{CONFIG}: nerdctl reads /{FOLDER}, and Kubernetes' pulls do not unless config_path says so"
                );
                findings.push(Finding::note(CHECK, found).advice(ADVICE));
            }
            findings
        }
        Some(Err(finding)) => vec![*finding],
        Some(Ok(cri)) => cri.findings(look, &usual),
    }
}

fn comes_here(findings: &[Finding]) -> bool {
    let verdicts = findings.iter().flat_map(|finding| &finding.registries);
    verdicts.into_iter().any(PullVerdict::names_this_proxy)
}

/// The settings of the plugin that pulls for Kubernetes, in the form of containerd 2.
struct Cri {
    /// The first file's: from 3 on nothing but containerd 2 reads it.
    version: i64,
    section: Table,
    /// There is a section with a registry that this version of the file does not have.
    misplaced: bool,
    /// A file that only containerd 2 reads the section of, though containerd 1 reads the file.
    is_only_new: bool,
    disabled: bool,
    /// Imports that were not followed.
    unread: Vec<String>,
}

impl Cri {
    /// `None`: there is no configuration.
    fn read(look: &Look<'_>) -> Option<Result<Cri, Box<Finding>>> {
        let mut cri = Cri {
            version: 1,
            section: Table::new(),
            misplaced: false,
            is_only_new: false,
            disabled: false,
            unread: Vec::new(),
        };
        let mut pending = VecDeque::from([CONFIG.to_owned()]);
        let mut seen: Vec<String> = Vec::new();
        while let Some(path) = pending.pop_front() {
            if seen.contains(&path) {
                continue;
            }
            if seen.len() == MOST_IMPORTS {
                cri.unread.push(path);
                break;
            }
            let table = match look.read_toml(CHECK, &path, "containerd does not start with it") {
                None if seen.is_empty() => return None,
                None => {
                    seen.push(path);
                    continue;
                }
                Some(Err(finding)) => return Some(Err(Box::new(finding))),
                Some(Ok(table)) => table,
            };
            cri.take(&table, seen.is_empty());
            let imports = table.get("imports").and_then(Value::as_array);
            for import in imports.into_iter().flatten().filter_map(Value::as_str) {
                // containerd 1 looks for those from wherever it was started.
                let is_anywhere = cri.version < 3 && import.contains('*') && !import.starts_with('/');
                match matching(look, &path, import).filter(|_| !is_anywhere) {
                    Some(paths) => pending.extend(paths),
                    None => cri.unread.push(import.to_owned()),
                }
            }
            seen.push(path);
        }
        Some(Ok(cri))
    }

    /// One file's settings, over those of the files before it.
    fn take(&mut self, table: &Table, is_first: bool) {
        let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
        if is_first {
            self.version = version;
        }
        let disabled = table.get("disabled_plugins").and_then(Value::as_array);
        let is_cri = |one: &Value| matches!(one.as_str(), Some(OLDEST_PLUGIN | OLD_PLUGIN | PLUGIN));
        self.disabled |= disabled.into_iter().flatten().any(is_cri);
        let Some(plugins) = table.get("plugins").and_then(Value::as_table) else {
            return;
        };
        let section = |name: &str| plugins.get(name).and_then(Value::as_table);
        let has_registry = |name: &str| section(name).is_some_and(|section| section.contains_key("registry"));
        let (old, new) = match version {
            3.. => (None, section(PLUGIN)),
            2 => (section(OLD_PLUGIN), section(PLUGIN)),
            _ => (section(OLDEST_PLUGIN), None),
        };
        let unread: &[&str] = match version {
            3.. => &[OLD_PLUGIN, OLDEST_PLUGIN],
            2 => &[OLDEST_PLUGIN],
            _ => &[OLD_PLUGIN, PLUGIN],
        };
        self.misplaced |= unread.iter().any(|name| has_registry(name));
        if let Some(new) = new {
            self.is_only_new |= version < 3 && new.contains_key("registry");
            merge(&mut self.section, new);
        }
        if let Some(old) = old {
            let old = of_old(old);
            match version {
                // containerd 1 takes a plugin's section from the last file that has one.
                ..3 if new.is_none() => self.section = old,
                _ => merge(&mut self.section, &old),
            }
        }
    }

    fn registry(&self, key: &str) -> Option<&Value> {
        self.section.get("registry")?.get(key)
    }

    fn has_entries(&self, key: &str) -> bool {
        let table = self.registry(key).and_then(Value::as_table);
        table.is_some_and(|table| !table.is_empty())
    }

    fn config_path(&self) -> Option<&str> {
        let path = self.registry("config_path").and_then(Value::as_str);
        path.filter(|path| !path.is_empty())
    }

    /// True if the plugin pulls by itself also in containerd 2.1 and newer, for a reason that its code has a list of.
    fn pulls_locally(&self) -> bool {
        let is = |key: &str| self.section.get(key).and_then(Value::as_bool);
        let downloads = self.section.get("max_concurrent_downloads");
        is("use_local_image_pull") == Some(true)
            || is("discard_unpacked_layers") == Some(true)
            || is("image_pull_with_sync_fs") == Some(true)
            || is("disable_snapshot_annotations") == Some(false)
            || downloads.and_then(Value::as_integer).is_some_and(|most| most != 3)
            || ["mirrors", "configs", "auths"].iter().any(|key| self.has_entries(key))
    }

    fn findings(&self, look: &Look<'_>, usual: &Hosts) -> Vec<Finding> {
        if self.disabled {
            // Kubernetes does not pull by it; nerdctl does.
            return match usual.has_files(look) {
                true => usual.findings(look, &Folder::new(NERDCTL, FOLDER)),
                false => Vec::new(),
            };
        }
        let mut findings = match (self.config_path(), self.has_entries("mirrors")) {
            (Some(_), true) => vec![self.both()],
            (None, true) => self.by_mirrors(look),
            (Some(path), false) => self.by_folders(look, path),
            (None, false) => self.by_neither(look, usual),
        };
        if self.registry("config_path").is_some_and(|path| !path.is_str()) {
            let found = format!("/{CONFIG}: config_path is no text: the plugin does not start");
            findings.insert(0, Finding::problem(CHECK, found).advice(ADVICE));
        }
        if self.is_only_new && self.version < 3 {
            let found = format!(
                "/{CONFIG}: containerd 1 does not read plugins.\"{PLUGIN}\", and with version = {} it may be that one",
                self.version
            );
            for verdict in findings.iter_mut().flat_map(|finding| &mut finding.registries) {
                verdict.only = Some("containerd 2".to_owned());
            }
            findings.push(Finding::warning(CHECK, found).advice(format!(
                "containerd 1: plugins.\"{OLD_PLUGIN}\".registry; containerd 2: version = 3; {RESTART}"
            )));
        }
        if !self.unread.is_empty() {
            let found = format!("/{CONFIG} imports {}, which was not looked at", few(&self.unread));
            findings.push(Finding::note(CHECK, found).advice("look whether config_path stands there"));
        }
        findings
    }

    fn both(&self) -> Finding {
        let found = format!("/{CONFIG} has both config_path and registry.mirrors: the plugin does not start");
        let mut finding = Finding::problem(CHECK, found).advice(format!("take registry.mirrors away, {RESTART}"));
        let named = self
            .mirrors()
            .map(|(registry, _)| PullVerdict::failing(registry, Mirrors.place()));
        finding.registries = named.collect();
        finding
    }

    fn mirrors(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        let mirrors = self.registry("mirrors").and_then(Value::as_table);
        mirrors.into_iter().flatten().map(|(registry, mirror)| {
            let endpoints = mirror.get("endpoint").and_then(Value::as_array);
            let endpoints = endpoints.into_iter().flatten().filter_map(Value::as_str);
            (registry.as_str(), endpoints.collect())
        })
    }

    fn by_mirrors(&self, look: &Look<'_>) -> Vec<Finding> {
        let (mut judged, mut near, mut strange) = (Vec::new(), None, Vec::new());
        for (registry, written) in self.mirrors() {
            if registry.contains(['/', ' ']) {
                strange.push(registry.to_owned());
                continue;
            }
            if look.is_here(registry) {
                continue;
            }
            let endpoints = self.endpoints(registry, &written);
            near = near.or_else(|| other_port(look, CHECK, &format!("/{CONFIG}"), &endpoints));
            // Which registry makes no difference to a path, only to what that has to be.
            let wanted = if registry == ALL { "docker.io" } else { registry };
            let mut one = judge(look, wanted, &endpoints);
            registry.clone_into(&mut one.verdict.registry);
            judged.push(one);
        }
        let mut findings = match judged.is_empty() && !strange.is_empty() {
            true => Vec::new(),
            false => report(look, &Mirrors, judged),
        };
        findings.extend(near);
        if !strange.is_empty() {
            let found = format!(
                "/{CONFIG}: registry.mirrors has {}, where a registry is named by its host alone: nothing is pulled by it",
                few(&strange)
            );
            findings.push(Finding::problem(CHECK, found).advice("such as registry.mirrors.\"docker.io\""));
        }
        findings
    }

    /// A mirror's endpoints, each with its path as it is and `/v2` only where there is none; then the registry itself.
    fn endpoints(&self, registry: &str, written: &[&str]) -> Vec<Endpoint> {
        let name = if registry == ALL { "docker.io" } else { registry };
        let mut endpoints = Vec::new();
        for address in written {
            let Some(read) = Written::read(address) else { continue };
            let host = read.authority.rsplit_once(':').map_or(read.authority, |(host, _)| host);
            let is_local = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
            let schemes = match read.scheme {
                Some("http") => HTTP,
                None if is_local => HTTP,
                _ => HTTPS,
            };
            let endpoint = Endpoint {
                path: match read.path {
                    "" => "/v2".to_owned(),
                    path => path.trim_end_matches('/').to_owned(),
                },
                has_trust: self.has_trust(read.authority),
                written: (*address).to_owned(),
                ..Endpoint::new(schemes, read.authority)
            };
            endpoints.push(endpoint.naming(name));
        }
        if endpoints.iter().all(|endpoint| endpoint.authority != name) {
            endpoints.push(Endpoint::registry(name).naming(name));
        }
        endpoints
    }

    fn has_trust(&self, authority: &str) -> bool {
        let tls = self
            .registry("configs")
            .and_then(|configs| configs.get(authority)?.get("tls"));
        tls.is_some_and(|tls| {
            let skips = tls.get("insecure_skip_verify").and_then(Value::as_bool) == Some(true);
            skips || tls.get("ca_file").is_some()
        })
    }

    /// Since containerd 2.1 another service pulls, which takes the text for one path, a list as well.
    fn by_folders(&self, look: &Look<'_>, path: &str) -> Vec<Finding> {
        let below = |path: &str| path.trim_matches('/').to_owned();
        let folders: Vec<String> = path.split(':').filter(|path| !path.is_empty()).map(below).collect();
        let is_list = path.contains(':');
        let hosts = Hosts::new(folders.clone());
        let place = Folder::new(CHECK, folders.first().map_or(FOLDER, String::as_str));
        let mut findings = hosts.findings(look, &place);
        if is_list && !self.pulls_locally() && comes_here(&findings) {
            let is_new = self.version >= 3;
            let found = format!(
                "/{CONFIG}: config_path = {path:?} is one path to containerd 2.1 and newer, and there is none: Kubernetes' pulls go past this proxy, to the registries themselves"
            );
            let level = if is_new { Level::Problem } else { Level::Warning };
            let first = folders.first().map_or(FOLDER, String::as_str);
            let mut one_path = Finding::new(CHECK, level, found)
                .advice(format!("config_path = \"/{first}\" and nothing else, {RESTART}"));
            if is_new {
                // Whatever the files say, they are not read.
                let verdicts = findings.iter().flat_map(|finding| &finding.registries);
                let unread = |verdict: &PullVerdict| PullVerdict::elsewhere(&verdict.registry, &verdict.file);
                one_path.registries = verdicts.map(unread).collect();
                findings.clear();
            } else {
                for verdict in findings.iter_mut().flat_map(|finding| &mut finding.registries) {
                    verdict.only = Some("containerd before 2.1".to_owned());
                }
            }
            findings.push(one_path);
        }
        if !folders.iter().any(|folder| folder == FOLDER) {
            let usual = Hosts::new(vec![FOLDER.to_owned()]);
            if usual.has_files(look) {
                let found = format!("/{CONFIG} names {path:?} by config_path: Kubernetes' pulls do not read /{FOLDER}");
                findings.push(Finding::note(CHECK, found).advice("write hosts.toml where config_path says"));
            }
        }
        findings
    }

    /// nerdctl and ctr read the usual folder by themselves; what Kubernetes asks for is pulled by a plugin that has to be
    /// told.
    fn by_neither(&self, look: &Look<'_>, usual: &Hosts) -> Vec<Finding> {
        let by_nerdctl = match usual.has_files(look) {
            true => usual.findings(look, &Folder::new(NERDCTL, FOLDER)),
            false => Vec::new(),
        };
        let misplaced = match self.misplaced {
            true => format!(
                " (it stands in a section of another version, which version = {} does not read)",
                self.version
            ),
            false => String::new(),
        };
        let mut finding = match comes_here(&by_nerdctl) {
            true => Finding::warning(
                CHECK,
                format!("/{CONFIG} does not set config_path{misplaced}: Kubernetes' pulls do not read /{FOLDER}"),
            ),
            false => Finding::new(
                CHECK,
                if self.misplaced { Level::Warning } else { look.level() },
                format!("/{CONFIG} does not set config_path{misplaced}, and leads to no registry by this proxy"),
            ),
        }
        .advice(ADVICE);
        let named = by_nerdctl.iter().flat_map(|finding| &finding.registries);
        finding.registries = named
            .map(|verdict| PullVerdict::elsewhere(&verdict.registry, &verdict.file))
            .collect();
        let mut findings = vec![finding];
        findings.extend(by_nerdctl);
        findings
    }
}

/// The section of containerd 1 with its keys where containerd 2 has them. `use_local_image_pull` is not among those that
/// containerd 2 takes over.
fn of_old(old: &Table) -> Table {
    let mut new = Table::new();
    let mut take = |from: &Table, keys: &[&str]| {
        for key in keys {
            if let Some(value) = from.get(*key) {
                new.insert((*key).to_owned(), value.clone());
            }
        }
    };
    take(
        old,
        &["registry", "max_concurrent_downloads", "image_pull_with_sync_fs"],
    );
    if let Some(containerd) = old.get("containerd").and_then(Value::as_table) {
        take(containerd, &["disable_snapshot_annotations", "discard_unpacked_layers"]);
    }
    new
}

/// Tables key by key, anything else from the later file.
fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The files, below the root, that an import means. Stars are understood in a file's name; `None`: there are some elsewhere.
fn matching(look: &Look<'_>, importer: &str, import: &str) -> Option<Vec<String>> {
    let folder = importer.rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = match import.strip_prefix('/') {
        Some(path) => path.to_owned(),
        None => format!("{folder}/{import}"),
    };
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let (name, folders) = parts.split_last()?;
    let folder = folders.join("/");
    if folder.contains(['*', '?', '[']) || name.contains(['?', '[']) || folders.contains(&"..") {
        return None;
    }
    if !name.contains('*') {
        return Some(vec![parts.join("/")]);
    }
    let names = look.names_in(&folder).into_iter();
    Some(
        names
            .filter(|one| fits(name, one))
            .map(|one| format!("{folder}/{one}"))
            .collect(),
    )
}

/// True if a pattern with stars fits a name.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(head) else {
        return false;
    };
    let pieces: Vec<&str> = rest.split('*').collect();
    let Some((last, middle)) = pieces.split_last() else {
        return true;
    };
    for piece in middle {
        match name.find(piece) {
            Some(at) => name = &name[at + piece.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

/// `registry.mirrors` of containerd's own file.
struct Mirrors;

impl Dialect for Mirrors {
    fn check(&self) -> &'static str {
        CHECK
    }

    fn place(&self) -> &'static str {
        "/etc/containerd/config.toml"
    }

    fn right(&self, registry: &str, written: &str) -> String {
        let bare = without_path(written);
        format!("registry.mirrors.\"{registry}\" with endpoint = [\"{bare}\"], {RESTART}")
    }

    fn recipe(&self) -> String {
        format!(
            "larder client-config containerd --write /{FOLDER}, and config_path in place of registry.mirrors; {RESTART}"
        )
    }

    fn partly(&self, _: &str, written: &str, _: Takes) -> Finding {
        Finding::warning(CHECK, format!("{written} is not asked for everything")).advice(self.recipe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_stars() {
        for (pattern, name, want) in [
            ("*.toml", "a.toml", true),
            ("*.toml", "a.tom", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c", false),
            ("a", "a", true),
            ("*", "a", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn sections_are_merged_key_by_key() {
        let mut into: Table = "[registry]\na = 1\n[registry.b]\nc = 2\n".parse().unwrap();
        let from: Table = "[registry]\na = 3\n[registry.b]\nd = 4\n".parse().unwrap();
        merge(&mut into, &from);
        assert_eq!(into, "[registry]\na = 3\n[registry.b]\nc = 2\nd = 4\n".parse().unwrap());
    }
}
