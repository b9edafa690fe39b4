//! What upstreams are called: that every alias means one of them only, and which one is the default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::error::show_key;
use super::file::quoted;
use super::findings::Findings;
use super::raw::Raw;
use super::{Upstream, keys};
use crate::oci::HostPort;
use crate::oci::name::is_component;

/// An alias is a first path component that can mean one upstream only.
pub fn check_aliases(findings: &mut Findings<'_>, upstreams: &[Upstream]) {
    let mut taken: BTreeMap<&str, &HostPort> = BTreeMap::new();
    for upstream in upstreams {
        for host in upstream.synonyms.iter().chain([&upstream.name]) {
            taken.insert(host.as_str(), &upstream.name);
        }
    }
    // What the operator wrote is blamed, not what was built in.
    let (given, standard): (Vec<&Upstream>, Vec<&Upstream>) = upstreams.iter().partition(|upstream| {
        let key = ["upstream", upstream.name.as_str(), "aliases"].map(str::to_owned);
        findings.origins.contains_key(key.as_slice())
    });
    for upstream in standard.into_iter().chain(given) {
        let key = ["upstream", upstream.name.as_str(), "aliases"];
        for alias in &upstream.aliases {
            let found = quoted(alias);
            if !is_component(alias) {
                findings.refuse(
                    &key,
                    format!("found {found}, expected one word of lower-case letters and digits, such as \"hub\""),
                );
            } else if alias == "library" {
                findings.refuse(
                    &key,
                    "found \"library\", expected another word: Docker Hub's images begin so",
                );
            } else if let Some(owner) = taken.get(alias.as_str()) {
                let own_key = show_key(&["upstream", owner.as_str(), "aliases"]);
                findings.refuse(&key, format!("found {found}, which means {owner} already ({own_key})"));
            } else {
                taken.insert(alias, &upstream.name);
            }
        }
    }
}

/// Which upstream `cache.default_upstream` means, by name, synonym or alias.
pub fn default_upstream(findings: &mut Findings<'_>, raw: &Raw, upstreams: &[Upstream]) -> Option<HostPort> {
    let text = raw.cache.default_upstream.to_ascii_lowercase();
    let found = upstreams.iter().find(|upstream| {
        upstream.name.as_str() == text
            || upstream.synonyms.iter().any(|host| host.as_str() == text)
            || upstream.aliases.contains(&text)
    });
    // One that is there but broken has been reported already.
    if found.is_none() && !raw.upstream.contains_key(&text) {
        let nearest = upstreams
            .iter()
            .map(|upstream| (keys::distance(upstream.name.as_str(), &text), &upstream.name))
            .filter(|(distance, _)| *distance <= keys::tolerance(&text))
            .min();
        let hint = match nearest {
            Some((_, name)) => format!("; did you mean {name}?"),
            None => String::new(),
        };
        let found = quoted(&raw.cache.default_upstream);
        findings.refuse(
            &["cache", "default_upstream"],
            format!("found {found}, expected an upstream that is built in or configured{hint}"),
        );
    }
    found.map(|upstream| upstream.name.clone())
}

/// An upstream at Larder's own address would have it ask itself until a limit stops it.
pub fn check_not_ourselves(findings: &mut Findings<'_>, upstreams: &[Upstream], listeners: &[SocketAddr]) {
    for upstream in upstreams {
        let urls = upstream.mirrors.iter().map(|url| ("mirrors", url));
        for (key, url) in urls.chain([("url", &upstream.url)]) {
            let ip = match url.host() {
                Some(url::Host::Ipv4(ip)) => IpAddr::V4(ip),
                Some(url::Host::Ipv6(ip)) => IpAddr::V6(ip),
                Some(url::Host::Domain("localhost")) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                _ => continue,
            };
            let port = url.port_or_known_default().unwrap_or(0);
            let same = |own: &&SocketAddr| {
                own.port() == port && (own.ip() == ip || (own.ip().is_unspecified() && ip.is_loopback()))
            };
            if let Some(own) = listeners.iter().find(same) {
                let key = ["upstream", upstream.name.as_str(), key];
                findings.refuse(
                    &key,
                    format!("found {}, where Larder itself listens ({own})", quoted(url.as_str())),
                );
            }
        }
    }
}
