//! podman, buildah, skopeo and CRI-O (`registries.conf`), and BuildKit, whose file is made alike.

use super::Finding;
use super::clients::{Look, few, wrong_scheme};
use super::target::Match;

const CHECK: &str = "client podman, cri-o";
const FILE: &str = "etc/containers/registries.conf";
const FOLDER: &str = "etc/containers/registries.conf.d";
const BUILDKIT: &str = "client buildkit";
const BUILDKIT_FILE: &str = "etc/buildkit/buildkitd.toml";

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut here = Vec::new();
    let mut is_there = false;
    for path in files(look) {
        let table = match look.read_toml(CHECK, &path) {
            None => continue,
            Some(Err(finding)) => {
                findings.push(finding);
                continue;
            }
            Some(Ok(table)) => table,
        };
        is_there = true;
        for registry in tables(&table, "registry") {
            findings.extend(one(look, &path, registry, &mut here));
        }
    }
    if here.is_empty() && findings.is_empty() && is_there {
        let found = format!("/{FILE} and /{FOLDER} lead to no registry by this proxy");
        findings.push(
            Finding::new(CHECK, look.level(), found)
                .advice(format!("larder client-config podman --write /{FOLDER} writes it")),
        );
    }
    if !here.is_empty() {
        findings.insert(
            0,
            comes(
                look,
                CHECK,
                &here,
                &format!("larder client-config podman --write /{FOLDER}"),
            ),
        );
    }
    findings
}

fn files(look: &Look<'_>) -> Vec<String> {
    let mut files = vec![FILE.to_owned()];
    if let Ok(entries) = std::fs::read_dir(look.root.join(FOLDER)) {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".conf")).collect();
        names.sort();
        files.extend(names.into_iter().map(|name| format!("{FOLDER}/{name}")));
    }
    files
}

fn tables<'a>(table: &'a toml::Table, key: &str) -> Vec<&'a toml::Table> {
    let all = table.get(key).and_then(toml::Value::as_array);
    all.into_iter().flatten().filter_map(toml::Value::as_table).collect()
}

fn text<'a>(table: &'a toml::Table, key: &str) -> &'a str {
    table.get(key).and_then(toml::Value::as_str).unwrap_or_default()
}

/// One registry: the place that is asked itself, or a mirror before it.
fn one(look: &Look<'_>, path: &str, registry: &toml::Table, here: &mut Vec<String>) -> Option<Finding> {
    let mirrors = tables(registry, "mirror");
    let mut places = mirrors.into_iter().chain([registry]);
    let place = places.find(|place| look.fits(text(place, "location")) != Match::Elsewhere)?;
    let location = text(place, "location");
    let insecure = place.get("insecure").and_then(toml::Value::as_bool).unwrap_or(false);
    let name = match text(registry, "prefix") {
        "" => text(registry, "location"),
        prefix => prefix,
    };
    here.push(name.to_owned());
    match look.scheme(location) {
        Some("http") if !insecure => Some(
            Finding::problem(
                CHECK,
                format!("/{path}: {location} is without insecure = true, and the proxy speaks http there"),
            )
            .advice("insecure = true beside that location, or TLS for the proxy"),
        ),
        Some("https") if insecure => Some(
            Finding::note(
                CHECK,
                format!("/{path}: {location} is insecure, so that its certificate is not looked at"),
            )
            .advice("take insecure away: the proxy speaks TLS there"),
        ),
        _ => None,
    }
}

fn comes(look: &Look<'_>, check: &str, here: &[String], how: &str) -> Finding {
    let found = format!("pulls from {} come here", few(here));
    let missing = look.missing(here);
    match missing.is_empty() {
        true => Finding::ok(check, found),
        false => Finding::note(check, format!("{found}; not from {}", few(&missing)))
            .advice(format!("{how} writes the others")),
    }
}

pub(super) fn check_buildkit(look: &Look<'_>) -> Vec<Finding> {
    let table = match look.read_toml(BUILDKIT, BUILDKIT_FILE) {
        None => return Vec::new(),
        Some(Err(finding)) => return vec![finding],
        Some(Ok(table)) => table,
    };
    let registries = table.get("registry").and_then(toml::Value::as_table);
    let mut here = Vec::new();
    let mut findings = Vec::new();
    for (name, keys) in registries.into_iter().flatten() {
        let mirrors = keys.get("mirrors").and_then(toml::Value::as_array);
        let mirrors: Vec<&str> = mirrors.into_iter().flatten().filter_map(toml::Value::as_str).collect();
        let Some(mirror) = mirrors.iter().find(|mirror| look.fits(mirror) != Match::Elsewhere) else {
            continue;
        };
        here.push(name.clone());
        if let Match::WrongScheme(right) = look.fits(mirror) {
            findings.push(wrong_scheme(BUILDKIT, BUILDKIT_FILE, mirror, right));
            continue;
        }
        let host = mirror.split("://").last().unwrap_or(mirror);
        let host = host.split('/').next().unwrap_or(host);
        let of_host = registries.and_then(|all| all.get(host));
        let is_plain = of_host.and_then(|keys| keys.get("http")).and_then(toml::Value::as_bool) == Some(true);
        if look.scheme(host) == Some("http") && !is_plain && !mirror.starts_with("http://") {
            let found = format!("/{BUILDKIT_FILE} does not say that {host} speaks http");
            let advice = format!("[registry.\"{host}\"] with http = true");
            findings.push(Finding::problem(BUILDKIT, found).advice(advice));
        }
    }
    findings.dedup();
    if here.is_empty() {
        let found = format!("/{BUILDKIT_FILE} leads to no registry by this proxy");
        return vec![
            Finding::new(BUILDKIT, look.level(), found).advice("larder client-config buildkit prints what to write"),
        ];
    }
    findings.insert(
        0,
        comes(
            look,
            BUILDKIT,
            &here,
            "larder client-config buildkit --write /etc/buildkit",
        ),
    );
    findings
}
