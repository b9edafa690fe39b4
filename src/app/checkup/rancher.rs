//! k3s and rke2: `registries.yaml`.
//!
//! Read line by line for the addresses in it, each for the registry whose key stands last above it: that is all there is
//! to know here, and no reason for a parser of YAML.

use super::Finding;
use super::clients::{Look, few, wrong_scheme, wrong_way};
use super::naming::{Way, before_name, path_of, without_path};
use super::target::Match;

const CHECKS: [(&str, &str); 2] = [
    ("client k3s", "etc/rancher/k3s/registries.yaml"),
    ("client rke2", "etc/rancher/rke2/registries.yaml"),
];

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    CHECKS.iter().flat_map(|(check, path)| one(look, check, path)).collect()
}

fn one(look: &Look<'_>, check: &str, path: &str) -> Vec<Finding> {
    let text = match look.read(check, path) {
        None => return Vec::new(),
        Some(Err(finding)) => return vec![finding],
        Some(Ok(text)) => text,
    };
    let mirrors = mirrors(&text);
    let mut here: Vec<String> = Vec::new();
    let mut findings = Vec::new();
    for (registry, endpoint) in &mirrors.endpoints {
        let found = match look.fits(endpoint) {
            Match::Elsewhere => continue,
            Match::Here => wrong_endpoint(look, check, path, registry, endpoint),
            Match::WrongScheme(right) => Some(wrong_scheme(check, path, endpoint, right)),
        };
        match found {
            Some(finding) if !findings.contains(&finding) => findings.push(finding),
            Some(_) => {}
            None => here.push(registry.clone()),
        }
    }
    for (registry, pattern, replacement) in &mirrors.rewrites {
        if here.contains(registry) && !keeps_names(look, registry, pattern, replacement) {
            let found = format!(
                "/{path}: the rewrite of {pattern:?} to {replacement:?} gives images of {registry} other names on their way here"
            );
            findings.push(Finding::warning(check, found).advice(
                "take the rewrite away: the proxy is told which registry is meant, and keeps the names of its images",
            ));
        }
    }
    if here.is_empty() && findings.is_empty() {
        let found = format!("/{path} leads to no registry by this proxy");
        return vec![
            Finding::new(check, look.level(), found)
                .advice("larder client-config k3s prints what to write; then restart it"),
        ];
    }
    if !here.is_empty() {
        let found = format!("pulls from {} come here", few(&here));
        // A star stands for all registries.
        let missing = match here.iter().any(|name| name == ALL) {
            true => Vec::new(),
            false => look.missing(&here),
        };
        findings.insert(
            0,
            match missing.is_empty() {
                true => Finding::ok(check, found),
                false => Finding::note(check, format!("{found}; not from {}", few(&missing)))
                    .advice("larder client-config k3s prints the others"),
            },
        );
    }
    findings
}

const ALL: &str = "*";

/// k3s takes the path of an endpoint as it is, unless that is only `/v2`, and names the registry by `ns` (R-C96).
fn wrong_endpoint(look: &Look<'_>, check: &str, path: &str, registry: &str, endpoint: &str) -> Option<Finding> {
    let verbatim = !matches!(path_of(endpoint), "" | "v2");
    let way = match before_name(path_of(endpoint), verbatim) {
        None => Way::Refused("there is no registry at that path, to which k3s adds no /v2".to_owned()),
        Some(below) if registry == ALL && below.is_empty() => Way::Right,
        Some(below) if registry == ALL => {
            Way::Refused(format!("the path {below} is for one registry, and {ALL} is for all"))
        }
        Some(below) => look.target.naming.judge(registry, &below, true),
    };
    let right = format!("endpoint: [\"{}\"]", without_path(endpoint));
    wrong_way(check, path, endpoint, &way, right)
}

/// Returns true if every name stays as it is, or has its own registry put before it.
fn keeps_names(look: &Look<'_>, registry: &str, pattern: &str, replacement: &str) -> bool {
    let is_all = matches!(pattern, "(.*)" | "^(.*)" | "(.*)$" | "^(.*)$");
    let path = replacement
        .strip_suffix("$1")
        .or_else(|| replacement.strip_suffix("${1}"));
    match path.map(|path| path.trim_matches('/')).filter(|_| is_all) {
        Some("") => true,
        Some(path) => registry != ALL && look.target.naming.judge(registry, path, true) == Way::Right,
        None => false,
    }
}

/// The content of the section `mirrors`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mirrors {
    /// Registry and address.
    pub(super) endpoints: Vec<(String, String)>,
    /// Registry, pattern and replacement.
    pub(super) rewrites: Vec<(String, String, String)>,
}

/// Every endpoint and rewrite below `mirrors`, each for the registry whose key stands last above it.
pub(super) fn mirrors(text: &str) -> Mirrors {
    let mut found = Mirrors::default();
    let (mut section, mut registry) = (String::new(), String::new());
    // How far the key `rewrite` is indented, while what follows stands below it.
    let mut rewrites: Option<usize> = None;
    for line in text.lines() {
        let line = line.split_once(" #").map_or(line, |(line, _)| line);
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let key = content
            .split_once(": ")
            .map_or(content.strip_suffix(':'), |(key, _)| Some(key));
        rewrites = rewrites.filter(|above| indent > *above);
        match key {
            Some(key) if indent == 0 => section = key.to_owned(),
            Some(pattern) if rewrites.is_some() => {
                let replacement = content.split_once(": ").map(|(_, replacement)| replacement);
                if let Some(replacement) = replacement.filter(|_| section == "mirrors") {
                    let [pattern, replacement] = [pattern, replacement].map(|text| unquoted(text).to_owned());
                    found.rewrites.push((registry.clone(), pattern, replacement));
                }
                continue;
            }
            Some("rewrite") => rewrites = Some(indent),
            Some(key) if !content.starts_with('-') && key != "endpoint" => registry = unquoted(key).to_owned(),
            _ => {}
        }
        if section == "mirrors" {
            let words = content.split(['"', '\'', ' ', ',', '[', ']']);
            let addresses = words.filter(|word| word.starts_with("http://") || word.starts_with("https://"));
            found
                .endpoints
                .extend(addresses.map(|address| (registry.clone(), address.to_owned())));
        }
    }
    found
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_list() {
        let text = "# a comment http://no:1\nmirrors:\n  \"docker.io\":\n    endpoint: [\"http://a:1\", 'https://b']\n  ghcr.io:\n    endpoint:\n      - \"http://c:2\"   # here\n\
                    configs:\n  \"a:1\":\n    auth:\n      username: http://d\n";
        let found: Vec<_> = mirrors(text).endpoints;
        let found: Vec<_> = found
            .iter()
            .map(|(registry, at)| (registry.as_str(), at.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("docker.io", "http://a:1"),
                ("docker.io", "https://b"),
                ("ghcr.io", "http://c:2")
            ]
        );
        assert_eq!(mirrors(""), Mirrors::default());
    }

    #[test]
    fn rewrites_belong_to_their_registry() {
        let text = "mirrors:\n  docker.io:\n    rewrite:\n      \"^(.*)$\": \"docker.io/$1\"\n      '^a': b\n    endpoint:\n      - http://a:1\n  quay.io:\n    endpoint: [\"http://b:2\"]\n";
        let found = mirrors(text);
        let pair = |at: &str, to: &str| (at.to_owned(), to.to_owned());
        assert_eq!(
            found.endpoints,
            [pair("docker.io", "http://a:1"), pair("quay.io", "http://b:2")]
        );
        let rewrites: Vec<_> = found
            .rewrites
            .iter()
            .map(|(_, from, to)| (from.as_str(), to.as_str()))
            .collect();
        assert_eq!(rewrites, [("^(.*)$", "docker.io/$1"), ("^a", "b")]);
        assert!(found.rewrites.iter().all(|(registry, ..)| registry == "docker.io"));
    }
}
