//! From figures to meaning: the further listeners, and who may pull.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::access::{Access, AccessRule, Issuer, JwksAt, Listen, Listener, MAIN_LISTENER, May};
use super::file::quoted;
use super::findings::Findings;
use super::raw::{OneOrMany, RawAccess, RawIssuer, RawListener, RawRule, RawTls};
use super::{ServerTls, TlsIdentity, Upstream, listen};
use crate::text::is_visible;

/// R-C46: clients take a shorter life for this one, and then bring tokens that have expired.
const SHORTEST_TOKEN: Duration = Duration::from_secs(60);
const LONGEST_TOKEN: Duration = Duration::from_secs(3600);
/// Bits before the IPv4 address in `::ffff:10.0.0.1`.
const MAPPED_BITS: u8 = 96;
/// What a Unix socket's path may be long, bytes: the kernel's limit.
const MAX_SOCKET_PATH: usize = 107;

/// Every listener's certificates are given in the same words.
pub fn tls(findings: &mut Findings<'_>, at: &[&str], raw: Option<&RawTls>) -> Option<ServerTls> {
    let tls = raw?;
    let below = |key: &'static str| [at, &[key]].concat();
    let cert = findings.file(&below("cert"), tls.cert.as_ref());
    let key = findings.secret_file(&below("key"), tls.key.as_ref());
    let client_ca = findings.file(&below("client_ca"), tls.client_ca.as_ref());
    let identity = match (tls.acme, cert, key) {
        (true, None, None) => TlsIdentity::Acme,
        (true, cert, _) => {
            let other = if cert.is_some() { "cert" } else { "key" };
            let place = findings.place(&below(other));
            findings.refuse(
                &below("acme"),
                format!("expected either cert and key or acme = true, but {other} is given too ({place})"),
            );
            return None;
        }
        (false, Some(cert), Some(key)) => TlsIdentity::Files { cert, key },
        (false, ..) => {
            findings.refuse(at, "expected both cert and key, or acme = true");
            return None;
        }
    };
    Some(ServerTls { identity, client_ca })
}

/// Sorted by name. `taken` are the addresses of `[server]` and `[admin]`; `admin` is where operators connect.
pub fn listeners<'a>(
    findings: &mut Findings<'_>,
    raw: impl Iterator<Item = (&'a String, &'a RawListener)>,
    taken: &[SocketAddr],
    admin: &[Listen],
) -> Vec<Listener> {
    let mut taken = taken.to_vec();
    let mut out: Vec<Listener> = Vec::new();
    for (name, raw) in raw {
        let at = ["listener", name.as_str()];
        if !is_word(name) || name == MAIN_LISTENER {
            let why = match name == MAIN_LISTENER {
                true => "that is what the listener of [server] is called".to_owned(),
                false => format!(
                    "found {}, expected a word of lower-case letters and digits",
                    quoted(name)
                ),
            };
            findings.refuse(&at, why);
            continue;
        }
        let key = ["listener", name.as_str(), "listen"];
        let Some(given) = &raw.listen else {
            findings.refuse(
                &at,
                "expected listen: an address such as \"127.0.0.1:5002\" or \"unix:/run/larder.sock\"",
            );
            continue;
        };
        let places = places(findings, &key, given);
        let tcp: Vec<SocketAddr> = tcp_of(&places).collect();
        if let Some((ours, other)) = listen::clash(&tcp, &taken) {
            findings.refuse(
                &key,
                format!("found {ours}, which is taken by another listener ({other})"),
            );
        }
        for place in &places {
            let is_taken = admin.contains(place) || out.iter().any(|other| other.listen.contains(place));
            if matches!(place, Listen::Unix(_)) && is_taken {
                findings.refuse(&key, format!("found {place}, which is taken by another listener"));
            }
        }
        taken.extend(&tcp);
        let tls = tls(findings, &["listener", name, "tls"], raw.tls.as_ref());
        if tls.is_some() && tcp.len() != places.len() {
            findings.refuse(
                &key,
                "found a Unix socket, which needs no TLS: give it a [listener] of its own",
            );
        }
        out.push(Listener {
            name: name.clone(),
            listen: places,
            tls,
        });
    }
    out
}

/// The addresses among places to listen at.
pub fn tcp_of(places: &[Listen]) -> impl Iterator<Item = SocketAddr> + '_ {
    places.iter().filter_map(|place| match place {
        Listen::Tcp(address) => Some(*address),
        Listen::Unix(_) => None,
    })
}

/// Addresses and sockets in the file system; sockets first.
pub fn places(findings: &mut Findings<'_>, key: &[&str], raw: &OneOrMany) -> Vec<Listen> {
    let (unix, tcp): (Vec<&String>, Vec<&String>) = raw.as_slice().iter().partition(|text| text.starts_with("unix:"));
    let mut out = Vec::new();
    for text in unix {
        let path = findings.path(key, text.trim_start_matches("unix:"));
        if path.as_os_str().len() > MAX_SOCKET_PATH || path.file_name().is_none() {
            findings.refuse(
                key,
                format!(
                    "found {}, expected unix: and a path of up to {MAX_SOCKET_PATH} bytes",
                    quoted(text)
                ),
            );
        }
        out.push(Listen::Unix(path));
    }
    if out.is_empty() || !tcp.is_empty() {
        let tcp = OneOrMany::Many(tcp.into_iter().cloned().collect());
        out.extend(listen::addresses(findings, key, &tcp).into_iter().map(Listen::Tcp));
    }
    out
}

pub fn access(findings: &mut Findings<'_>, raw: &RawAccess, listeners: &[Listener], upstreams: &[Upstream]) -> Access {
    let issuers: Vec<Issuer> = raw
        .oidc
        .iter()
        .filter_map(|(name, raw)| issuer(findings, name, raw))
        .collect();
    let rules: Vec<AccessRule> = raw
        .rule
        .iter()
        .enumerate()
        .filter_map(|(at, raw)| rule(findings, at + 1, raw, listeners, upstreams))
        .collect();
    let access = Access {
        htpasswd_file: findings.secret_file(&["access", "htpasswd_file"], raw.htpasswd_file.as_ref()),
        token_key_file: findings.secret_file(&["access", "token_key_file"], raw.token_key_file.as_ref()),
        token_ttl: findings.duration(
            &["access", "token_ttl"],
            &raw.token_ttl,
            (SHORTEST_TOKEN, LONGEST_TOKEN),
        ),
        realm: raw.realm.as_ref().and_then(|text| realm(findings, text)),
        issuers,
        rules,
    };
    warn(findings, &access);
    access
}

/// What works, and is hardly what was meant.
fn warn(findings: &mut Findings<'_>, access: &Access) {
    if !access.issuers.is_empty() && access.rules.is_empty() {
        findings.warn(
            &["access", "oidc"],
            "without rules its identities may pull no more than anonymous callers: add an [[access.rule]] that names them",
        );
    }
    for (at, rule) in access.rules.iter().enumerate() {
        let number = (at + 1).to_string();
        let is_wide = rule.who.iter().any(|who| who == "authenticated" || who == "*");
        if is_wide && rule.private && rule.may != May::Nothing && !access.issuers.is_empty() {
            findings.warn(
                &["access", "rule", &number, "who"],
                "with a token issuer configured this lets every identity that it vouches for pull what needs credentials: name the identities, such as \"github:acme/*\"",
            );
        }
    }
}

fn issuer(findings: &mut Findings<'_>, name: &str, raw: &RawIssuer) -> Option<Issuer> {
    let at = |key: &'static str| ["access", "oidc", name, key];
    if !is_word(name) || name == "cert" {
        findings.refuse(
            &["access", "oidc", name],
            "expected a word of lower-case letters and digits, and not cert, which stands for certificates",
        );
        return None;
    }
    let mut required = |key: &'static str, value: &Option<String>| match value.as_deref() {
        Some(text) if !text.is_empty() => Some(text.to_owned()),
        _ => {
            findings.refuse(&at(key), "expected it: without it a token of anybody's would do");
            None
        }
    };
    let (issuer, audience) = (required("issuer", &raw.issuer), required("audience", &raw.audience));
    let identity = raw.identity.clone().unwrap_or_else(|| "sub".to_owned());
    let file = findings.file(&at("jwks_file"), raw.jwks_file.as_ref());
    let ca_file = findings.file(&at("ca_file"), raw.ca_file.as_ref());
    let jwks = match (&raw.jwks_url, file) {
        (Some(_), Some(_)) => {
            let other = findings.place(&at("jwks_url"));
            findings.refuse(
                &at("jwks_file"),
                format!("expected either jwks_url or jwks_file, but jwks_url is given too ({other})"),
            );
            None
        }
        (None, Some(path)) => Some(JwksAt::File(path)),
        (Some(text), None) => https(findings, &at("jwks_url"), text).map(|url| JwksAt::Url { url, ca_file }),
        (None, None) => {
            findings.refuse(
                &at("jwks_url"),
                "expected the address of the issuer's keys, or jwks_file",
            );
            None
        }
    };
    Some(Issuer {
        name: name.to_owned(),
        issuer: issuer?,
        audience: audience?,
        identity,
        jwks: jwks?,
    })
}

/// Keys that came in the open could be anybody's; on this machine there is nobody in between.
pub fn https(findings: &mut Findings<'_>, key: &[&str], text: &str) -> Option<Url> {
    let local = |url: &Url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let url = Url::parse(text).ok().filter(|url| {
        let fits = url.scheme() == "https" || (url.scheme() == "http" && local(url));
        fits && url.username().is_empty() && url.password().is_none()
    });
    if url.is_none() {
        findings.refuse(
            key,
            format!("found {}, expected an address that begins with https://", quoted(text)),
        );
    }
    url
}

fn realm(findings: &mut Findings<'_>, text: &str) -> Option<Url> {
    let url = Url::parse(text).ok().filter(|url| {
        let fits = matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
        fits && url.username().is_empty() && url.password().is_none() && !text.contains(['"', '\\'])
    });
    if url.is_none() {
        findings.refuse(
            &["access", "realm"],
            format!(
                "found {}, expected the address of this proxy's /v2/_token as clients reach it, such as \"https://larder.example/v2/_token\"",
                quoted(text)
            ),
        );
    }
    url
}

fn rule(
    findings: &mut Findings<'_>,
    number: usize,
    raw: &RawRule,
    listeners: &[Listener],
    upstreams: &[Upstream],
) -> Option<AccessRule> {
    let number = number.to_string();
    let at = |key: &'static str| ["access", "rule", number.as_str(), key];
    let list = |given: &Option<OneOrMany>| given.as_ref().map(|list| list.as_slice().to_vec());
    // An empty list would be no condition where the operator wrote one.
    for (key, given) in [
        ("who", &raw.who),
        ("from", &raw.from),
        ("listeners", &raw.listeners),
        ("images", &raw.images),
    ] {
        if given.as_ref().is_some_and(|list| list.as_slice().is_empty()) {
            findings.refuse(&at(key), "found an empty list; leave it out where everything is meant");
        }
    }
    let who = list(&raw.who).unwrap_or_else(|| vec!["*".to_owned()]);
    for name in who.iter().filter(|name| name.is_empty() || !is_visible(name)) {
        let found = quoted(name);
        findings.refuse(
            &at("who"),
            format!("found {found}, expected \"*\", \"anonymous\", \"authenticated\" or a name"),
        );
    }
    let mut from = Vec::new();
    for text in list(&raw.from).unwrap_or_default() {
        match net(&text) {
            Some(net) => from.push(net),
            None => findings.refuse(
                &at("from"),
                format!(
                    "found {}, expected an address or a range such as \"10.0.0.0/8\"",
                    quoted(&text)
                ),
            ),
        }
    }
    let named = list(&raw.listeners).unwrap_or_default();
    for name in &named {
        if name != MAIN_LISTENER && listeners.iter().all(|listener| listener.name != *name) {
            findings.refuse(
                &at("listeners"),
                format!(
                    "found {}, expected \"main\" or the name of a [listener.…]",
                    quoted(name)
                ),
            );
        }
    }
    let images = list(&raw.images).unwrap_or_default();
    for pattern in &images {
        if let Some(expected) = bad_image(pattern, upstreams) {
            findings.refuse(&at("images"), format!("found {}, expected {expected}", quoted(pattern)));
        }
    }
    let may = match raw.may.as_deref() {
        Some("nothing") => May::Nothing,
        Some("pull-held") => May::PullHeld,
        Some("fetch") => May::Fetch,
        other => {
            let found = other.map_or("nothing at all".to_owned(), quoted);
            findings.refuse(
                &at("may"),
                format!("found {found}, expected \"nothing\", \"pull-held\" or \"fetch\""),
            );
            return None;
        }
    };
    Some(AccessRule {
        who,
        from,
        listeners: named,
        images,
        may,
        private: raw.private.unwrap_or(false),
    })
}

/// A range, or one address. A range with bits behind its prefix is a slip. A range of IPv4 in IPv6's clothes
/// (`::ffff:10.0.0.0/104`) is one of IPv4, as the addresses are that it is compared with.
pub fn net(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let net = text.parse::<IpNet>().ok().filter(|net| net.trunc() == *net)?;
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(MAPPED_BITS)) {
        (IpAddr::V4(address), Some(bits)) if net.addr().is_ipv6() => {
            ipnet::Ipv4Net::new(address, bits).ok().map(IpNet::V4)
        }
        _ => Some(net),
    }
}

/// What is wrong with a pattern of images; it has to begin with an upstream, or it would match nothing, or too much.
pub fn bad_image(pattern: &str, upstreams: &[Upstream]) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"*/._-:".contains(&byte);
    if pattern.is_empty() || !pattern.bytes().all(fits) {
        return Some("upstream and repository in lower case, such as \"docker.io/library/*\"".to_owned());
    }
    let host = pattern.split('/').next().unwrap_or(pattern);
    if host.contains('*') || upstreams.iter().any(|upstream| upstream.name.as_str() == host) {
        return None;
    }
    let meant = upstreams.iter().find(|upstream| {
        upstream.aliases.iter().any(|alias| alias == host) || upstream.synonyms.iter().any(|s| s.as_str() == host)
    });
    Some(match meant {
        Some(upstream) => format!("the upstream's own name before the first slash, {}", upstream.name),
        None => "an upstream before the first slash, such as \"docker.io/library/*\"".to_owned(),
    })
}

/// A name that needs no quotes anywhere.
pub fn is_word(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= 64 && text.bytes().all(fits)
}
