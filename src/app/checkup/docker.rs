//! Docker's daemon: `registry-mirrors`, for Docker Hub only.

use serde_json::Value;

use super::Finding;
use super::clients::{Look, wrong_scheme, wrong_way};
use super::naming::{Way, before_name, path_of, without_path};
use super::target::Match;

const CHECK: &str = "client docker";
const FILE: &str = "etc/docker/daemon.json";
const HUB: &str = "docker.io";

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let text = match look.read(CHECK, FILE) {
        None => return Vec::new(),
        Some(Err(finding)) => return vec![finding],
        Some(Ok(text)) => text,
    };
    // An empty file is one without keys to the daemon.
    let json = match text.trim() {
        "" => Ok(Value::Null),
        text => serde_json::from_str::<Value>(text),
    };
    let json = match json {
        Ok(json) => json,
        Err(error) => {
            return vec![
                Finding::problem(CHECK, format!("/{FILE} is no JSON: {error}"))
                    .advice("dockerd does not start with it: put it right"),
            ];
        }
    };
    let list = |key: &str| -> Vec<String> {
        let items = json.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let (mirrors, insecure) = (list("registry-mirrors"), list("insecure-registries"));
    let Some((at, mirror, fits)) = mirrors
        .iter()
        .enumerate()
        .map(|(at, mirror)| (at, mirror, look.fits(mirror)))
        .find(|(_, _, fits)| *fits != Match::Elsewhere)
    else {
        let found = match mirrors.is_empty() {
            true => format!("/{FILE} has no registry-mirrors: pulls go to Docker Hub"),
            false => format!("registry-mirrors of /{FILE} lead elsewhere: {}", mirrors.join(", ")),
        };
        return vec![
            Finding::new(CHECK, look.level(), found)
                .advice("larder client-config docker prints what to write; then restart docker"),
        ];
    };
    if let Match::WrongScheme(right) = fits {
        return vec![wrong_scheme(CHECK, FILE, mirror, right)];
    }
    if let Some(wrong) = wrong_path(look, mirror) {
        return vec![wrong];
    }
    let mut findings = vec![match at {
        0 => Finding::ok(CHECK, format!("pulls from Docker Hub come here ({mirror})")),
        _ => Finding::warning(CHECK, format!("{} is asked before {mirror}", mirrors[0]))
            .advice("put this proxy first in registry-mirrors, or what the other one has never comes here"),
    }];
    let plain = mirror.starts_with("http://") && !look.target.is_loopback();
    let host = without_path(mirror).trim_start_matches("http://");
    if plain && !insecure.iter().any(|entry| entry == host) {
        findings.push(
            Finding::note(
                CHECK,
                format!("names with {host} before them do not work: it is not in insecure-registries"),
            )
            .advice("only needed for registries other than Docker Hub; add it, or give the proxy TLS"),
        );
    }
    findings
}

/// Docker puts the path of a mirror before /v2, and names Docker Hub by `ns` only with containerd's image store (R-C30,
/// R-C38).
fn wrong_path(look: &Look<'_>, mirror: &str) -> Option<Finding> {
    let naming = &look.target.naming;
    let way = match before_name(path_of(mirror), false) {
        None => Way::Refused("there is no registry at that path".to_owned()),
        Some(below) => naming.judge(HUB, &below, false),
    };
    let (right, since) = match naming.is_default(HUB) {
        true => (without_path(mirror).to_owned(), ""),
        // Docker Hub's names have to be told from those of the default upstream.
        false => (format!("{}/{HUB}", without_path(mirror)), " (Docker 25 and newer)"),
    };
    wrong_way(
        CHECK,
        FILE,
        mirror,
        &way,
        format!("\"registry-mirrors\": [\"{right}\"]{since}"),
    )
}
