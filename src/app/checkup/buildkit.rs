//! BuildKit's own daemon: `buildkitd.toml`.
//!
//! A mirror is host and path; a scheme before it is read over. Which scheme is spoken stands in the section of the mirror's
//! host.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::Finding;
use super::clients::{Dialect, Look, other_port, report};
use super::naming::{path_of, without_path};
use super::pulls::{Endpoint, HTTP_THEN_HTTPS, HTTPS, HTTPS_THEN_HTTP, Takes, judge};
use super::target::Scheme;

const CHECK: &str = "client buildkit";
const FILE: &str = "etc/buildkit/buildkitd.toml";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

#[derive(Default, Deserialize)]
struct Registry {
    #[serde(default)]
    mirrors: Vec<String>,
    http: Option<bool>,
    insecure: Option<bool>,
    #[serde(default)]
    ca: Vec<String>,
}

pub(super) fn check(look: &Look<'_>) -> Vec<Finding> {
    let text = match look.read(CHECK, FILE) {
        None => return Vec::new(),
        Some(Err(finding)) => return vec![finding],
        Some(Ok(text)) => text,
    };
    let file: File = match toml::from_str(&text) {
        Ok(file) => file,
        Err(error) => {
            let what = match text.parse::<toml::Table>() {
                Err(_) => "is no TOML",
                Ok(_) => "is not understood",
            };
            let found = format!("/{FILE} {what}: {}; buildkitd does not start with it", error.message());
            return vec![Finding::problem(CHECK, found).advice("put it right")];
        }
    };
    let (mut judged, mut near) = (Vec::new(), None);
    for (name, registry) in &file.registry {
        if registry.mirrors.is_empty() {
            continue;
        }
        let mirrors = registry.mirrors.iter().map(|mirror| endpoint(&file, name, mirror));
        let mut endpoints: Vec<Endpoint> = mirrors.collect();
        near = near.or_else(|| other_port(look, CHECK, &format!("/{FILE}"), &endpoints));
        endpoints.push(Endpoint::registry(name).naming(name));
        judged.push(judge(look, name, &endpoints));
    }
    let mut findings = report(look, &BuildKit, judged);
    findings.extend(near);
    findings
}

/// The path comes behind /v2, and the registry is named by ns (R-C50).
fn endpoint(file: &File, registry: &str, mirror: &str) -> Endpoint {
    let bare = mirror.split_once("://").map_or(mirror, |(_, rest)| rest);
    let authority = without_path(bare);
    let of_host = file.registry.get(authority);
    let is_insecure = of_host.and_then(|host| host.insecure) == Some(true);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let is_local = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
    let is_plain = of_host.and_then(|host| host.http).unwrap_or(is_local);
    let path = match path_of(bare) {
        "" => "/v2".to_owned(),
        path => format!("/v2/{path}"),
    };
    let endpoint = Endpoint {
        path,
        has_trust: is_insecure || of_host.is_some_and(|host| !host.ca.is_empty()),
        written: mirror.to_owned(),
        ..Endpoint::new(
            match (is_insecure, is_plain) {
                (true, true) => HTTPS_THEN_HTTP,
                (true, false) => HTTPS,
                (false, true) => HTTP_THEN_HTTPS,
                (false, false) => HTTPS,
            },
            authority,
        )
    };
    endpoint.naming(registry)
}

struct BuildKit;

impl Dialect for BuildKit {
    fn check(&self) -> &'static str {
        CHECK
    }

    fn place(&self) -> &'static str {
        "/etc/buildkit/buildkitd.toml"
    }

    fn right(&self, registry: &str, written: &str) -> String {
        let bare = written.split_once("://").map_or(written, |(_, rest)| rest);
        format!("[registry.\"{registry}\"] with mirrors = [\"{}\"]", without_path(bare))
    }

    fn recipe(&self) -> String {
        "larder client-config buildkit prints what to write; then restart buildkitd".to_owned()
    }

    fn wrong_scheme(&self, written: &str, spoken: Scheme) -> Finding {
        let bare = written.split_once("://").map_or(written, |(_, rest)| rest);
        let bare = without_path(bare);
        let is_plain = spoken == "http";
        Finding::problem(CHECK, format!("/{FILE} does not say that {bare} speaks {spoken}"))
            .advice(format!("[registry.\"{bare}\"] with http = {is_plain}"))
    }

    fn partly(&self, _: &str, written: &str, _: Takes) -> Finding {
        Finding::warning(CHECK, format!("{written} is not asked for everything")).advice(self.recipe())
    }
}
