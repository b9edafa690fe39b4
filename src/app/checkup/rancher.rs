//! k3s and rke2: `registries.yaml`.
//!
//! Read line by line for the addresses in it, each for the registry whose key stands last above it: that is all there is
//! to know here, and no reason for a parser of YAML.

use super::Finding;
use super::clients::{Look, few, wrong_scheme};
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
    let mut here = Vec::new();
    let mut findings = Vec::new();
    for (registry, endpoint) in endpoints(&text) {
        match look.fits(&endpoint) {
            Match::Elsewhere => {}
            Match::Here => here.push(registry),
            Match::WrongScheme(right) => {
                let finding = wrong_scheme(check, path, &endpoint, right);
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
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
        let missing = match here.iter().any(|name| name == "*") {
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

/// Registry and address of every endpoint below `mirrors`.
pub(super) fn endpoints(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut section, mut registry) = (String::new(), String::new());
    for line in text.lines() {
        let line = line.split_once(" #").map_or(line, |(line, _)| line);
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let key = content
            .split_once(": ")
            .map_or(content.strip_suffix(':'), |(key, _)| Some(key));
        let is_top = !line.starts_with([' ', '\t']);
        match key {
            Some(key) if is_top => section = key.to_owned(),
            Some(key) if !content.starts_with('-') && !matches!(key, "endpoint" | "rewrite") => {
                registry = key.trim_matches(['"', '\'']).to_owned();
            }
            _ => {}
        }
        if section == "mirrors" {
            let words = content.split(['"', '\'', ' ', ',', '[', ']']);
            let addresses = words.filter(|word| word.starts_with("http://") || word.starts_with("https://"));
            found.extend(addresses.map(|address| (registry.clone(), address.to_owned())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_list() {
        let text = "# a comment http://no:1\nmirrors:\n  \"docker.io\":\n    endpoint: [\"http://a:1\", 'https://b']\n  ghcr.io:\n    endpoint:\n      - \"http://c:2\"   # here\n\
                    configs:\n  \"a:1\":\n    auth:\n      username: http://d\n";
        let found = endpoints(text);
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
        assert!(endpoints("").is_empty());
    }
}
