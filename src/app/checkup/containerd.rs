//! containerd: `hosts.toml`, a folder a registry, and `config_path`, without which Kubernetes' side reads none of them.

use super::clients::{Look, few, wrong_scheme, wrong_way};
use super::naming::{Way, before_name, path_of, without_path};
use super::target::Match;
use super::{Finding, Level};

const CHECK: &str = "client containerd";
const FOLDER: &str = "etc/containerd/certs.d";
const CONFIG: &str = "etc/containerd/config.toml";
/// The plugin that pulls for Kubernetes in containerd 1.
const OLD_PLUGIN: &str = "io.containerd.grpc.v1.cri";

/// What was seen in all the files.
#[derive(Default)]
struct Seen {
    here: Vec<String>,
    elsewhere: Vec<String>,
    slow: Vec<String>,
    /// Registries whose own address is the way around this proxy.
    around: usize,
    findings: Vec<Finding>,
}

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let mut seen = Seen::default();
    for name in folders(look) {
        let path = format!("{FOLDER}/{name}/hosts.toml");
        match look.read_toml(CHECK, &path) {
            None => {}
            Some(Err(finding)) => seen.findings.push(finding),
            Some(Ok(table)) => one(look, &name, &path, &table, &mut seen),
        }
    }
    let has_config = look.root.join(CONFIG).exists();
    if seen.here.is_empty() && seen.elsewhere.is_empty() && seen.findings.is_empty() && !has_config {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if !seen.here.is_empty() || seen.findings.is_empty() {
        findings.push(summary(look, &seen));
    }
    findings.append(&mut seen.findings);
    if !seen.here.is_empty() {
        findings.extend(config_path(look));
        if !seen.slow.is_empty() {
            let found = format!("without dial_timeout: {}", few(&seen.slow));
            findings.push(Finding::note(CHECK, found).advice(
                "when the proxy is away each pull waits 30 s: dial_timeout = \"1s\" (containerd 2.1 and newer)",
            ));
        }
    }
    findings
}

fn folders(look: &Look<'_>) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(look.root.join(FOLDER)) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn one(look: &Look<'_>, name: &str, path: &str, table: &toml::Table, seen: &mut Seen) {
    let hosts = table.get("host").and_then(toml::Value::as_table);
    let here = hosts
        .into_iter()
        .flatten()
        .filter(|(host, _)| look.fits(host) != Match::Elsewhere);
    let (mut is_here, mut is_right) = (false, false);
    for (host, keys) in here {
        is_here = true;
        is_right |= one_host(look, name, (path, host), keys, seen);
    }
    let server = table.get("server").and_then(toml::Value::as_str);
    let server = server.filter(|server| look.fits(server) != Match::Elsewhere);
    if let Some(server) = server {
        is_here = true;
        let wrong = wrong_path(look, name, (path, server), table);
        is_right |= wrong.is_none();
        seen.findings.extend(wrong);
    }
    if !is_here {
        seen.elsewhere.push(name.to_owned());
    }
    if is_right {
        seen.here.push(registry_of(name));
        seen.around += usize::from(server.is_none());
    }
}

/// A host by which pulls from `name` come here. Returns true if they are those images.
fn one_host(look: &Look<'_>, name: &str, (path, host): (&str, &str), keys: &toml::Value, seen: &mut Seen) -> bool {
    if let Match::WrongScheme(right) = look.fits(host) {
        seen.findings.push(wrong_scheme(CHECK, path, host, right));
        return false;
    }
    if let Some(wrong) = keys
        .as_table()
        .and_then(|keys| wrong_path(look, name, (path, host), keys))
    {
        seen.findings.push(wrong);
        return false;
    }
    let capabilities = keys.get("capabilities").and_then(toml::Value::as_array);
    // Without any a host may do everything.
    let is = |one: &toml::Value, what: &str| one.as_str().is_some_and(|one| one.eq_ignore_ascii_case(what));
    let can = |what: &str| capabilities.is_none_or(|all| all.is_empty() || all.iter().any(|one| is(one, what)));
    if !can("pull") || !can("resolve") {
        seen.findings.push(
            Finding::warning(
                CHECK,
                format!("/{path} gives {host} not both of the capabilities pull and resolve"),
            )
            .advice("capabilities = [\"pull\", \"resolve\"], or containerd asks the registry itself for tags"),
        );
    }
    if keys.get("dial_timeout").is_none() {
        seen.slow.push(name.to_owned());
    }
    true
}

/// containerd asks by `ns` for the registry that the folder is named after, below the path of the address.
fn wrong_path(look: &Look<'_>, name: &str, (path, address): (&str, &str), keys: &toml::Table) -> Option<Finding> {
    let verbatim = keys.get("override_path").and_then(toml::Value::as_bool) == Some(true);
    let way = match before_name(path_of(address), verbatim) {
        None => Way::Refused(format!(
            "there is no registry at that path{}",
            if verbatim {
                ", to which override_path has no /v2 added"
            } else {
                ""
            }
        )),
        // Stands for every registry, so that no path is right but none.
        Some(below) if name == DEFAULT && below.is_empty() => Way::Right,
        Some(below) if name == DEFAULT => Way::Refused(format!(
            "the path {below} is for one registry, and {DEFAULT} is for all"
        )),
        Some(below) => look.target.naming.judge(&registry_of(name), &below, true),
    };
    let right = format!(
        "[host.\"{}\"] without a path and without override_path",
        without_path(address)
    );
    wrong_way(CHECK, path, address, &way, right)
}

/// The folder for every registry that has none of its own.
const DEFAULT: &str = "_default";

/// The registry that a folder is for: `registry.example_5000_` is registry.example:5000.
fn registry_of(folder: &str) -> String {
    match folder.strip_suffix('_').and_then(|name| name.rsplit_once('_')) {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{host}:{port}")
        }
        _ => folder.to_owned(),
    }
}

fn summary(look: &Look<'_>, seen: &Seen) -> Finding {
    if seen.here.is_empty() {
        let found = match seen.elsewhere.is_empty() {
            true => format!("no registry in /{FOLDER} leads to this proxy"),
            false => format!("/{FOLDER} leads elsewhere for {}", few(&seen.elsewhere)),
        };
        return Finding::new(CHECK, look.level(), found).advice(format!(
            "larder client-config containerd --write /{FOLDER} writes it; containerd reads it with the next pull"
        ));
    }
    let mut found = format!("pulls from {} come here", few(&seen.here));
    if seen.around > 0 {
        found += "; past this proxy when it refuses or is away";
    }
    let missing = match seen.here.iter().any(|name| name == DEFAULT) {
        true => Vec::new(),
        false => look.missing(&seen.here),
    };
    match missing.is_empty() {
        true => Finding::ok(CHECK, found),
        false => Finding::note(CHECK, format!("{found}; not from {}", few(&missing))).advice(format!(
            "larder client-config containerd --write /{FOLDER} writes the others"
        )),
    }
}

/// nerdctl and ctr read the folder by themselves; what Kubernetes asks for is pulled by a plugin that has to be told.
fn config_path(look: &Look<'_>) -> Option<Finding> {
    let advice = "in config.toml, below [plugins.\"io.containerd.cri.v1.images\".registry] (containerd 1: plugins.\"io.containerd.grpc.v1.cri\".registry): config_path = \"/etc/containerd/certs.d\", then restart containerd";
    let table = match look.read_toml(CHECK, CONFIG) {
        None => {
            let found = format!(
                "there is no /{CONFIG}: whether Kubernetes' pulls read /{FOLDER} depends on containerd's version"
            );
            return Some(Finding::note(CHECK, found).advice(advice));
        }
        Some(Err(finding)) => return Some(finding),
        Some(Ok(table)) => table,
    };
    let version = table.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
    let registries = Registries::of(&table, version);
    if let Some(path) = registries.config_path() {
        return of_path(path, version, &registries);
    }
    let found = format!("/{CONFIG} does not set config_path: Kubernetes' pulls do not read /{FOLDER}");
    let found = match registries.misplaced {
        true => format!("{found} (it stands in a section of containerd 1, which version = {version} does not read)"),
        false => found,
    };
    // It may stand in a file that this one imports.
    Some(match table.contains_key("imports") {
        true => Finding::note(CHECK, format!("{found}, unless a file that it imports does")).advice(advice),
        false => Finding::warning(CHECK, found).advice(advice),
    })
}

/// The sections of plugins that pull for Kubernetes.
struct Registries<'a> {
    plugins: Vec<&'a toml::Table>,
    /// There is one that this version of the file does not have.
    misplaced: bool,
}

impl<'a> Registries<'a> {
    fn of(table: &'a toml::Table, version: i64) -> Registries<'a> {
        let plugins = table.get("plugins").and_then(toml::Value::as_table);
        let with_registry = plugins
            .into_iter()
            .flatten()
            .filter_map(|(name, plugin)| Some((name, plugin.as_table()?)))
            .filter(|(_, plugin)| plugin.get("registry").is_some_and(toml::Value::is_table));
        let (old, read): (Vec<_>, Vec<_>) = with_registry.partition(|(name, _)| version >= 3 && *name == OLD_PLUGIN);
        Registries {
            misplaced: !old.is_empty(),
            plugins: read.into_iter().map(|(_, plugin)| plugin).collect(),
        }
    }

    fn registries(&self) -> impl Iterator<Item = &'a toml::Table> {
        self.plugins
            .iter()
            .filter_map(|plugin| plugin.get("registry")?.as_table())
    }

    /// One that has the folder in it.
    fn config_path(&self) -> Option<&'a str> {
        let mut paths = self
            .registries()
            .filter_map(|registry| registry.get("config_path")?.as_str());
        paths.find(|path| path.split(':').any(is_folder))
    }

    fn has_mirrors(&self) -> bool {
        self.registries().any(|registry| registry.get("mirrors").is_some())
    }

    /// Returns true if they pull by themselves in any case, as before containerd 2.1.
    fn pull_locally(&self) -> bool {
        let is_set = |plugin: &toml::Table, key: &str| plugin.get(key).and_then(toml::Value::as_bool) == Some(true);
        let keys = ["use_local_image_pull", "discard_unpacked_layers"];
        self.plugins
            .iter()
            .any(|plugin| keys.iter().any(|key| is_set(plugin, key)))
    }
}

fn is_folder(path: &str) -> bool {
    path.trim_end_matches('/').strip_prefix('/') == Some(FOLDER)
}

/// Since containerd 2.1 another service pulls, which takes the text for one path, a list as well.
fn of_path(path: &str, version: i64, registries: &Registries<'_>) -> Option<Finding> {
    if registries.has_mirrors() {
        let found = format!("/{CONFIG} has both config_path and registry.mirrors: the plugin does not start");
        return Some(Finding::problem(CHECK, found).advice("take registry.mirrors away"));
    }
    if is_folder(path) || registries.pull_locally() {
        return None;
    }
    let found = format!(
        "/{CONFIG}: config_path = {path:?} is one path to containerd 2.1 and newer, and there is none: Kubernetes' pulls go past this proxy, to the registries themselves"
    );
    let level = match version {
        3.. => Level::Problem,
        _ => Level::Warning,
    };
    Some(Finding::new(CHECK, level, found).advice(format!(
        "config_path = \"/{FOLDER}\" and nothing else, then restart containerd"
    )))
}
