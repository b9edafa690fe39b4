//! containerd: `hosts.toml`, a folder a registry, and `config_path`, without which Kubernetes' side reads none of them.

use super::Finding;
use super::clients::{Look, few, wrong_scheme};
use super::target::Match;

const CHECK: &str = "client containerd";
const FOLDER: &str = "etc/containerd/certs.d";
const CONFIG: &str = "etc/containerd/config.toml";

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
    let mut findings = vec![summary(look, &seen)];
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
    let mut hosts = hosts.into_iter().flatten();
    let found = hosts.find_map(|(host, keys)| match look.fits(host) {
        Match::Elsewhere => None,
        fits => Some((host, keys, fits)),
    });
    let Some((host, keys, fits)) = found else {
        seen.elsewhere.push(name.to_owned());
        return;
    };
    if let Match::WrongScheme(right) = fits {
        seen.findings.push(wrong_scheme(CHECK, path, host, right));
        return;
    }
    seen.here.push(name.to_owned());
    let capabilities = keys.get("capabilities").and_then(toml::Value::as_array);
    // Without the key a host may do everything.
    let can = |what: &str| capabilities.is_none_or(|all| all.iter().any(|one| one.as_str() == Some(what)));
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
    let server = table.get("server").and_then(toml::Value::as_str);
    if server.is_none_or(|server| look.fits(server) == Match::Elsewhere) {
        seen.around += 1;
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
    let missing = look.missing(&seen.here);
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
    let plugins = table.get("plugins").and_then(toml::Value::as_table);
    let registries: Vec<&toml::Table> = plugins
        .into_iter()
        .flatten()
        .filter_map(|(_, plugin)| plugin.get("registry")?.as_table())
        .collect();
    let wanted = format!("/{FOLDER}");
    let is_set = registries.iter().any(|registry| {
        let path = registry.get("config_path").and_then(toml::Value::as_str);
        path.is_some_and(|path| path.split(':').any(|part| part.trim_end_matches('/') == wanted))
    });
    if is_set {
        let both = registries.iter().any(|registry| registry.get("mirrors").is_some());
        return both.then(|| {
            Finding::problem(
                CHECK,
                format!("/{CONFIG} has both config_path and registry.mirrors: the plugin does not start"),
            )
            .advice("take registry.mirrors away")
        });
    }
    let found = format!("/{CONFIG} does not set config_path: Kubernetes' pulls do not read /{FOLDER}");
    // It may stand in a file that this one imports.
    Some(match table.contains_key("imports") {
        true => Finding::note(CHECK, format!("{found}, unless a file that it imports does")).advice(advice),
        false => Finding::warning(CHECK, found).advice(advice),
    })
}
