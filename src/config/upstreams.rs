//! From figures to meaning: the registries. What they are called is judged in `names`.

use url::Url;

use super::file::quoted;
use super::findings::Findings;
use super::raw::{Raw, RawUpstream};
use super::{Cache, Password, Secret, StaticCredentials, Upstream, builtin, care, names};
use crate::oci::{HostPort, Repository};

const MIB: u64 = 1 << 20;

/// Every upstream, sorted by name. `inherited` is the `[cache]` that they take their terms from.
pub fn upstreams(findings: &mut Findings<'_>, raw: &Raw, inherited: &Cache) -> Vec<Upstream> {
    let mut out: Vec<Upstream> = raw
        .upstream
        .iter()
        .filter_map(|(name, raw)| {
            // `file` let only hosts through.
            let host = name.parse::<HostPort>().ok()?;
            upstream(findings, host, raw, inherited)
        })
        .collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    names::check_aliases(findings, &out);
    out
}

fn upstream(findings: &mut Findings<'_>, name: HostPort, raw: &RawUpstream, inherited: &Cache) -> Option<Upstream> {
    let own = name.clone();
    let at = |key: &'static str| ["upstream", own.as_str(), key];
    let default_url = format!("https://{name}");
    let url = registry_url(findings, &at("url"), raw.url.as_deref().unwrap_or(&default_url));
    let mirrors = raw.mirrors.iter();
    let mirrors = mirrors
        .filter_map(|text| registry_url(findings, &at("mirrors"), text))
        .collect();
    let credentials = credentials(findings, &own, raw);
    let lender = care::lender(findings, &own, raw);
    if let Some(url) = url
        .as_ref()
        .filter(|url| (credentials.is_some() || lender.is_some()) && is_open_http(url))
    {
        let host = url.host_str().unwrap_or_default();
        findings.warn(&at("url"), format!("the password goes to {host} without encryption"));
    }
    let client_cert = findings.file(&at("client_cert"), raw.client_cert.as_ref());
    let client_key = findings.secret_file(&at("client_key"), raw.client_key.as_ref());
    match (&client_cert, &client_key) {
        (Some(_), None) => findings.refuse(&at("client_cert"), "expected client_key beside it"),
        (None, Some(_)) => findings.refuse(&at("client_key"), "expected client_cert beside it"),
        _ => {}
    }
    let term = |findings: &mut Findings<'_>, key: &'static str, given: &Option<_>, inherited| match given {
        Some(figure) => findings.term(&at(key), figure),
        None => inherited,
    };
    Some(Upstream {
        mirrors,
        aliases: raw.aliases.clone(),
        synonyms: builtin::synonyms_of(own.as_str())
            .iter()
            .filter_map(|host| host.parse().ok())
            .collect(),
        credentials,
        lender,
        tag_ttl: term(findings, "tag_ttl", &raw.tag_ttl, inherited.tag_ttl),
        stale_if_error: term(
            findings,
            "stale_if_error",
            &raw.stale_if_error,
            inherited.stale_if_error,
        ),
        offline: raw.offline.unwrap_or(inherited.offline),
        max_size: raw
            .max_size
            .as_ref()
            .map(|figure| findings.size(&at("max_size"), figure, MIB)),
        allow: patterns(findings, &at("allow"), &raw.allow),
        deny: patterns(findings, &at("deny"), &raw.deny),
        redirect_hosts: raw
            .redirect_hosts
            .as_ref()
            .map(|list| hosts(findings, &at("redirect_hosts"), list)),
        trusted_realms: hosts(findings, &at("trusted_realms"), &raw.trusted_realms),
        ca_file: findings.file(&at("ca_file"), raw.ca_file.as_ref()),
        client_cert,
        client_key,
        proxy: raw
            .proxy
            .as_ref()
            .and_then(|text| proxy_url(findings, &at("proxy"), text)),
        connect_timeout: findings.timeout(&at("connect_timeout"), &raw.connect_timeout),
        read_timeout: findings.timeout(&at("read_timeout"), &raw.read_timeout),
        answer_timeout: findings.timeout(&at("answer_timeout"), &raw.answer_timeout),
        max_connections: raw
            .max_connections
            .map(|count| findings.count(&at("max_connections"), count, 1_000_000)),
        budget_floor: care::floor(findings, &at("budget_floor"), &raw.budget_floor),
        max_bandwidth: raw
            .max_bandwidth
            .as_ref()
            .and_then(|text| care::bandwidth(findings, &at("max_bandwidth"), text)),
        url: url?,
        name,
    })
}

fn registry_url(findings: &mut Findings<'_>, key: &[&str], text: &str) -> Option<Url> {
    let expected = "expected the address of a registry, such as \"https://registry.example\"";
    let Ok(url) = Url::parse(text) else {
        findings.refuse(key, format!("found {}, {expected}", shown_url(text)));
        return None;
    };
    let v2 = url.path().trim_end_matches('/');
    let wrong = if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        Some(expected.to_owned())
    } else if !url.username().is_empty() || url.password().is_some() {
        Some("expected no user or password in it; they belong in username and password_file".to_owned())
    } else if url.query().is_some() || url.fragment().is_some() {
        Some("expected neither ? nor # in it".to_owned())
    } else if v2 == "/v2" || v2.ends_with("/v2") {
        Some("expected it without /v2, which Larder adds".to_owned())
    } else if let Some((_, prefix)) = v2.split_once("/v2/")
        && let Err(error) = prefix.parse::<Repository>()
    {
        Some(format!(
            "expected a name behind /v2/ that repositories lie below: {error}"
        ))
    } else {
        None
    };
    match wrong {
        None => return Some(url),
        Some(wrong) => findings.refuse(key, format!("found {}, {wrong}", shown_url(text))),
    }
    None
}

pub fn proxy_url(findings: &mut Findings<'_>, key: &[&str], text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https" | "socks5") && url.host_str().is_some_and(|host| !host.is_empty())
    });
    if url.is_none() {
        findings.refuse(
            key,
            format!(
                "found {}, expected a proxy such as \"http://proxy.example:3128\", https:// or socks5://",
                shown_url(text)
            ),
        );
    }
    url
}

/// A query may hold a signature, and is not repeated either (R-X17).
fn shown_url(text: &str) -> String {
    match text.split_once('?') {
        Some((before, _)) => format!("{} and a query", quoted(before)),
        None => quoted(text),
    }
}

pub fn is_open_http(url: &Url) -> bool {
    let local = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && !local
}

fn credentials(findings: &mut Findings<'_>, name: &HostPort, raw: &RawUpstream) -> Option<StaticCredentials> {
    let at = |key: &'static str| ["upstream", name.as_str(), key];
    let file = findings.secret_file(&at("password_file"), raw.password_file.as_ref());
    let password = match (&raw.password, file) {
        (Some(_), Some(_)) => {
            let other = findings.place(&at("password"));
            findings.refuse(
                &at("password_file"),
                format!("expected either password or password_file, but password is given too ({other})"),
            );
            return None;
        }
        (Some(text), None) if text.is_empty() || text.contains(['\n', '\r']) => {
            findings.refuse(
                &at("password"),
                "expected a password, not an empty text or several lines",
            );
            return None;
        }
        (Some(text), None) => {
            findings.warn_about_open_file(&at("password"), "password_file");
            Some((Password::Value(Secret::new(text)), "password"))
        }
        (None, Some(path)) => Some((Password::File(path), "password_file")),
        (None, None) => None,
    };
    match (&raw.username, password) {
        (Some(username), Some(_)) if username.is_empty() || username.contains(':') => {
            // Basic authentication ends the name at the first colon.
            findings.refuse(
                &at("username"),
                format!("found {}, expected a name without colon", quoted(username)),
            );
            None
        }
        (Some(username), Some((password, _))) => Some(StaticCredentials {
            username: username.clone(),
            password,
        }),
        (Some(_), None) => {
            findings.refuse(&at("username"), "expected password or password_file beside it");
            None
        }
        (None, Some((_, key))) => {
            findings.refuse(&at(key), "expected username beside it");
            None
        }
        (None, None) => None,
    }
}

fn hosts(findings: &mut Findings<'_>, key: &[&str], list: &[String]) -> Vec<HostPort> {
    let mut out = Vec::new();
    for text in list {
        match text.parse() {
            Ok(host) => out.push(host),
            Err(_) => findings.refuse(
                key,
                format!(
                    "found {}, expected a host such as \"cdn.example\" or \"10.0.0.7:9000\"",
                    shown_url(text)
                ),
            ),
        }
    }
    out
}

fn patterns(findings: &mut Findings<'_>, key: &[&str], list: &[String]) -> Vec<String> {
    let fits = |text: &str| {
        !text.is_empty()
            && !text.starts_with('/')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"*/._-".contains(&b))
    };
    for text in list.iter().filter(|text| !fits(text)) {
        findings.refuse(
            key,
            format!(
                "found {}, expected repositories such as \"library/*\", in lower case",
                quoted(text)
            ),
        );
    }
    list.to_vec()
}
