//! podman, buildah, skopeo and CRI-O (`registries.conf`), and BuildKit, whose file is made alike.

use super::Finding;
use super::clients::{Look, few, wrong_scheme, wrong_way};
use super::naming::{Way, path_of, without_path};
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

/// One registry: the place that is asked itself, and mirrors before it. Each that leads here is looked at.
fn one(look: &Look<'_>, path: &str, registry: &toml::Table, here: &mut Vec<String>) -> Vec<Finding> {
    let name = match text(registry, "prefix") {
        "" => text(registry, "location"),
        prefix => prefix,
    };
    let mirrors = tables(registry, "mirror");
    let mut findings = Vec::new();
    for (place, is_mirror) in mirrors
        .into_iter()
        .map(|mirror| (mirror, true))
        .chain([(registry, false)])
    {
        let location = text(place, "location");
        if look.fits(location) == Match::Elsewhere {
            continue;
        }
        if is_set(registry, "blocked") {
            let found =
                format!("/{path} has blocked = true for {name}: nothing is pulled from there, here or elsewhere");
            findings.push(Finding::problem(CHECK, found).advice("take blocked away"));
            break;
        }
        let way = way(look, name, location);
        let wrong = wrong_way(CHECK, path, location, &way, advice(name, location));
        if let (None, true, Some((key, what))) = (&wrong, is_mirror, left_out(registry, place)) {
            let found =
                format!("/{path} has {key} for {location}: {what} are pulled from {name} itself, past this proxy");
            findings.push(
                Finding::warning(CHECK, found).advice("take that key away: the proxy has tags as well as digests"),
            );
        }
        if wrong.is_none() && here.last().is_none_or(|last| last != name) {
            here.push(name.to_owned());
        }
        findings.extend(wrong);
        findings.extend(security(look, path, place, location));
    }
    findings
}

fn is_set(table: &toml::Table, key: &str) -> bool {
    table.get(key).and_then(toml::Value::as_bool) == Some(true)
}

/// The key by which a mirror is not asked for everything, and what it is not asked for.
fn left_out(registry: &toml::Table, mirror: &toml::Table) -> Option<(&'static str, &'static str)> {
    match text(mirror, "pull-from-mirror") {
        _ if is_set(registry, "mirror-by-digest-only") => Some(("mirror-by-digest-only = true", "tags")),
        "digest-only" => Some(("pull-from-mirror = \"digest-only\"", "tags")),
        "tag-only" => Some(("pull-from-mirror = \"tag-only\"", "digests")),
        _ => None,
    }
}

/// podman puts `location` in the place of the prefix, and never names the registry by `ns` (R-C60).
fn way(look: &Look<'_>, name: &str, location: &str) -> Way {
    // Names that have this proxy's address before them, and nothing else in its place.
    if name == location || look.fits(name) != Match::Elsewhere {
        return Way::Right;
    }
    match name.strip_prefix("*.") {
        Some(domain) => Way::WrongImage(format!(
            "every registry below {domain} is asked for by the same name: who pulls a.{domain}/IMAGE and b.{domain}/IMAGE gets one image"
        )),
        None => look.target.naming.judge(name, path_of(location), false),
    }
}

fn advice(name: &str, location: &str) -> String {
    match name.contains(['*', ':']) {
        true => "podman cannot name such registries in a path: give each an alias at the proxy (aliases = [\"NAME\"]), and write a [[registry]] for it with location = \"ADDRESS/NAME\"".to_owned(),
        false => format!("location = \"{}/{name}\"", without_path(location)),
    }
}

fn security(look: &Look<'_>, path: &str, place: &toml::Table, location: &str) -> Option<Finding> {
    let insecure = place.get("insecure").and_then(toml::Value::as_bool).unwrap_or(false);
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
        let mirrors = mirrors.into_iter().flatten().filter_map(toml::Value::as_str);
        let is_right = |mirror: &&str| buildkit_mirror(look, registries, name, mirror, &mut findings);
        if mirrors.filter(is_right).count() > 0 {
            here.push(name.clone());
        }
    }
    findings.dedup();
    if here.is_empty() && !findings.is_empty() {
        return findings;
    }
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

/// Returns true if pulls from `name` arrive here by a mirror as those images.
fn buildkit_mirror(
    look: &Look<'_>,
    registries: Option<&toml::Table>,
    name: &str,
    mirror: &str,
    findings: &mut Vec<Finding>,
) -> bool {
    match look.fits(mirror) {
        Match::Elsewhere => return false,
        Match::WrongScheme(right) => {
            findings.push(wrong_scheme(BUILDKIT, BUILDKIT_FILE, mirror, right));
            return true;
        }
        Match::Here => {}
    }
    // The path comes behind /v2, and the registry is named by ns (R-C50).
    let way = look.target.naming.judge(name, path_of(mirror), true);
    let bare = without_path(mirror.split("://").last().unwrap_or(mirror));
    let right = format!("[registry.\"{name}\"] with mirrors = [\"{bare}\"]");
    let wrong = wrong_way(BUILDKIT, BUILDKIT_FILE, mirror, &way, right);
    let is_right = wrong.is_none();
    findings.extend(wrong);
    let of_host = registries.and_then(|all| all.get(bare));
    let is_plain = of_host.and_then(|keys| keys.get("http")).and_then(toml::Value::as_bool) == Some(true);
    if look.scheme(bare) == Some("http") && !is_plain && !mirror.starts_with("http://") {
        let found = format!("/{BUILDKIT_FILE} does not say that {bare} speaks http");
        let advice = format!("[registry.\"{bare}\"] with http = true");
        findings.push(Finding::problem(BUILDKIT, found).advice(advice));
    }
    is_right
}
