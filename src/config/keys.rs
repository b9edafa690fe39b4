//! Every key of the configuration, as data: what it may hold and whether its value is secret.
//!
//! `file` and `environment` hold what they read against this list, so that all unknown keys and wrong types
//! are found at once, each with its place; serde alone stops at the first and knows no line. `raw` has the
//! same keys as structs; `example` proves that the two agree.

use super::error::show_key;

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    /// A text that no message may show (R-X17).
    Secret,
    Flag,
    /// A whole number, not negative.
    Count,
    /// Text or a whole number of bytes.
    Size,
    Duration,
    /// Text or a whole number of pulls.
    Floor,
    /// A number from 0 to 1.
    Share,
    List,
    /// A list of texts that no message may show.
    SecretList,
    TextOrList,
    Table(&'static [Key]),
    /// Tables under hosts: the upstreams.
    Named(&'static [Key]),
    /// Tables under words that the operator chooses.
    Tables(&'static [Key]),
    /// A list of tables; a part of a path that stands for one of them is its number, from 1.
    Listed(&'static [Key]),
}

impl Kind {
    /// Ends the sentence "expected …".
    pub fn expected(self) -> &'static str {
        match self {
            Kind::Text | Kind::Secret => "a text in quotes",
            Kind::Flag => "true or false",
            Kind::Count => "a whole number, not negative",
            Kind::Size => super::units::SIZE,
            Kind::Duration => super::units::DURATION,
            Kind::Floor => super::care::FLOOR,
            Kind::Share => "a number from 0 to 1",
            Kind::List | Kind::SecretList => "a list of texts, such as [\"a\", \"b\"]",
            Kind::TextOrList => "a text or a list of texts",
            Kind::Table(_) => "a table",
            Kind::Named(_) => "a table for each name, such as [upstream.\"registry.example\"]",
            Kind::Tables(_) => "a table for each name, such as [listener.dockerd] or [webhook.ci]",
            Kind::Listed(_) => "tables in double brackets, such as [[prefetch]]",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, kind }
}

/// The top level of `proxy.toml`.
pub const ROOT: &[Key] = &[
    key("server", Kind::Table(SERVER)),
    key("admin", Kind::Table(ADMIN)),
    key("cache", Kind::Table(CACHE)),
    key("log", Kind::Table(LOG)),
    key("limits", Kind::Table(LIMITS)),
    key("audit", Kind::Table(AUDIT)),
    key("bundle", Kind::Table(BUNDLE)),
    key("traces", Kind::Table(TRACES)),
    key("listener", Kind::Tables(LISTENER)),
    key("access", Kind::Table(ACCESS)),
    key("acme", Kind::Table(ACME)),
    key("upstream", Kind::Named(UPSTREAM)),
    key("prefetch", Kind::Listed(PREFETCH)),
    key("webhook", Kind::Tables(WEBHOOK)),
];

/// The keys of one `[listener.…]`.
pub const LISTENER: &[Key] = &[key("listen", Kind::TextOrList), key("tls", Kind::Table(TLS))];

pub const ACCESS: &[Key] = &[
    key("htpasswd_file", Kind::Text),
    key("token_key_file", Kind::Text),
    key("token_ttl", Kind::Duration),
    key("realm", Kind::Text),
    key("oidc", Kind::Tables(ISSUER)),
    key("rule", Kind::Listed(RULE)),
];

/// The keys of one `[access.oidc.…]`.
pub const ISSUER: &[Key] = &[
    key("issuer", Kind::Text),
    key("jwks_url", Kind::Text),
    key("jwks_file", Kind::Text),
    key("ca_file", Kind::Text),
    key("audience", Kind::Text),
    key("identity", Kind::Text),
];

/// The keys of one `[[access.rule]]`.
pub const RULE: &[Key] = &[
    key("who", Kind::TextOrList),
    key("from", Kind::TextOrList),
    key("listeners", Kind::TextOrList),
    key("images", Kind::TextOrList),
    key("may", Kind::Text),
    key("private", Kind::Flag),
];

const SERVER: &[Key] = &[
    key("listen", Kind::TextOrList),
    key("tls", Kind::Table(TLS)),
    key("shutdown_grace", Kind::Duration),
    key("server_timing", Kind::Flag),
    key("trusted_proxies", Kind::List),
];

const TLS: &[Key] = &[
    key("cert", Kind::Text),
    key("key", Kind::Text),
    key("client_ca", Kind::Text),
    key("acme", Kind::Flag),
];

const ACME: &[Key] = &[
    key("names", Kind::List),
    key("directory", Kind::Text),
    key("accept_terms", Kind::Flag),
    key("contact", Kind::TextOrList),
    key("challenge", Kind::Text),
    key("http_listen", Kind::TextOrList),
    key("profile", Kind::Text),
    key("ca_file", Kind::Text),
    key("proxy", Kind::Text),
    key("eab_kid", Kind::Text),
    key("eab_key_file", Kind::Text),
];

const ADMIN: &[Key] = &[
    key("listen", Kind::TextOrList),
    key("token", Kind::Secret),
    key("token_file", Kind::Text),
    key("tls", Kind::Table(TLS)),
];

const CACHE: &[Key] = &[
    key("path", Kind::Text),
    key("max_size", Kind::Size),
    key("min_free", Kind::Size),
    key("tag_ttl", Kind::Duration),
    key("negative_ttl", Kind::Duration),
    key("stale_if_error", Kind::Duration),
    key("default_upstream", Kind::Text),
    key("offline", Kind::Flag),
];

const LOG: &[Key] = &[key("level", Kind::Text), key("format", Kind::Text)];

const LIMITS: &[Key] = &[
    key("max_connections", Kind::Count),
    key("max_connections_per_client", Kind::Count),
    key("header_bytes", Kind::Size),
    key("headers", Kind::Count),
    key("header_timeout", Kind::Duration),
    key("idle_timeout", Kind::Duration),
    key("manifest_size", Kind::Size),
    key("manifest_descriptors", Kind::Count),
];

const AUDIT: &[Key] = &[
    key("file", Kind::Text),
    key("max_size", Kind::Size),
    key("keep", Kind::Count),
];

const BUNDLE: &[Key] = &[key("trusted_keys", Kind::List)];

const TRACES: &[Key] = &[
    key("endpoint", Kind::Text),
    key("headers", Kind::Secret),
    key("headers_file", Kind::Text),
    key("service_name", Kind::Text),
    key("resource", Kind::List),
    key("sample", Kind::Share),
    key("propagate", Kind::Flag),
    key("ca_file", Kind::Text),
];

/// The keys of one `[upstream."…"]`.
pub const UPSTREAM: &[Key] = &[
    key("url", Kind::Text),
    key("aliases", Kind::List),
    key("mirrors", Kind::List),
    key("username", Kind::Text),
    key("password", Kind::Secret),
    key("password_file", Kind::Text),
    key("credential_helper", Kind::Text),
    key("cloud", Kind::Text),
    key("tag_ttl", Kind::Duration),
    key("stale_if_error", Kind::Duration),
    key("offline", Kind::Flag),
    key("max_size", Kind::Size),
    key("allow", Kind::List),
    key("deny", Kind::List),
    key("redirect_hosts", Kind::List),
    key("trusted_realms", Kind::List),
    key("ca_file", Kind::Text),
    key("client_cert", Kind::Text),
    key("client_key", Kind::Text),
    key("proxy", Kind::Text),
    key("connect_timeout", Kind::Duration),
    key("read_timeout", Kind::Duration),
    key("answer_timeout", Kind::Duration),
    key("max_connections", Kind::Count),
    key("budget_floor", Kind::Floor),
    key("max_bandwidth", Kind::Text),
];

/// The keys of one `[[prefetch]]`.
pub const PREFETCH: &[Key] = &[
    key("name", Kind::Text),
    key("images", Kind::List),
    key("file", Kind::Text),
    key("platforms", Kind::List),
    key("schedule", Kind::Text),
    key("referrers", Kind::Flag),
];

/// The keys of one `[webhook.…]`.
pub const WEBHOOK: &[Key] = &[
    // Its path may be a secret.
    key("url", Kind::Secret),
    key("events", Kind::TextOrList),
    key("images", Kind::TextOrList),
    key("secret", Kind::Secret),
    key("secret_file", Kind::Text),
    key("headers", Kind::SecretList),
    key("headers_file", Kind::Text),
    key("timeout", Kind::Duration),
    key("backoff", Kind::Duration),
    key("ca_file", Kind::Text),
    key("proxy", Kind::Text),
    key("queue_max", Kind::Size),
    key("max_age", Kind::Duration),
];

pub fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name)
}

/// Which tables stand under names: for the path of the table around them, the names.
pub type Named<'a> = &'a dyn Fn(&[String]) -> Vec<String>;

/// Every key that holds a value, as a path, with a path for each of the tables that `named` names.
pub fn leaves(named: Named<'_>) -> Vec<(Vec<String>, Kind)> {
    fn walk(keys: &'static [Key], at: &[String], named: Named<'_>, out: &mut Vec<(Vec<String>, Kind)>) {
        for key in keys {
            let mut path = at.to_vec();
            path.push(key.name.to_owned());
            match key.kind {
                Kind::Table(inner) => walk(inner, &path, named, out),
                Kind::Named(inner) | Kind::Tables(inner) | Kind::Listed(inner) => {
                    for name in named(&path) {
                        let path = [path.as_slice(), &[name]].concat();
                        walk(inner, &path, named, out);
                    }
                }
                kind => out.push((path, kind)),
            }
        }
    }
    let mut out = Vec::new();
    walk(ROOT, &[], named, &mut out);
    out
}

/// The key that was most likely meant by the unknown `path`, as the operator would write it.
pub fn nearest(path: &[String]) -> Option<String> {
    let (wrong, section) = path.split_last()?;
    // The tables that the wrong key is in; elsewhere, any upstream.
    let named = |table: &[String]| match path.get(table.len()) {
        Some(name) if path.starts_with(table) && path.len() > table.len() + 1 => vec![name.clone()],
        _ if *table == ["upstream"] => vec!["registry.example".to_owned()],
        _ => Vec::new(),
    };
    let mut candidates: Vec<Vec<String>> = leaves(&named).into_iter().map(|(path, _)| path).collect();
    candidates.extend(ROOT.iter().map(|key| vec![key.name.to_owned()]));
    // The keys of the table that it stands in, whichever of several that is.
    candidates.extend(
        names_in(section)
            .into_iter()
            .map(|name| [section, &[name.to_owned()]].concat()),
    );
    let best = candidates.into_iter().filter_map(|candidate| {
        let (name, home) = candidate.split_last()?;
        let distance = distance(wrong, name);
        // A key of another section is meant only if it is spelled exactly: `max_size` under [server].
        let fits = if home == section {
            distance <= tolerance(wrong)
        } else {
            distance == 0
        };
        let rank = (distance, home != section, name.len());
        fits.then(|| (rank, candidate.clone()))
    });
    best.min_by_key(|(rank, _)| *rank).map(|(_, path)| show_key(&path))
}

/// The keys that the table at `path` takes; empty for a path that is none.
pub fn names_in(path: &[String]) -> Vec<&'static str> {
    let mut keys = ROOT;
    let mut parts = path.iter();
    while let Some(part) = parts.next() {
        keys = match find(keys, part).map(|key| key.kind) {
            Some(Kind::Table(inner)) => inner,
            // The next part is the name that the operator chose.
            Some(Kind::Named(inner) | Kind::Tables(inner) | Kind::Listed(inner)) if parts.next().is_some() => inner,
            _ => return Vec::new(),
        };
    }
    keys.iter().map(|key| key.name).collect()
}

/// Edits between two names; spelling with `-` or in capitals is no edit, and leaving off the end (`user`, `alias`) is one.
pub fn distance(a: &str, b: &str) -> usize {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let (a, b) = (plain(a), plain(b));
    // At least so many, which is more than any typo: counting takes the product of both lengths.
    let edits = match a.len().abs_diff(b.len()) {
        longer if longer > MOST_TYPOS * 4 => longer,
        _ => strsim::damerau_levenshtein(&a, &b),
    };
    let cut = a.len().min(b.len()) >= 3 && (a.starts_with(&b) || b.starts_with(&a));
    if cut { edits.min(1) } else { edits }
}

const MOST_TYPOS: usize = 4;

/// How many edits may still be a typo.
pub fn tolerance(text: &str) -> usize {
    (text.chars().count() / 3).clamp(1, MOST_TYPOS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(path: &[&str]) -> Option<String> {
        nearest(&path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_nearest_key() {
        assert_eq!(near(&["cache", "maxsize"]).as_deref(), Some("cache.max_size"));
        assert_eq!(near(&["cache", "max-size"]).as_deref(), Some("cache.max_size"));
        assert_eq!(near(&["cahce"]).as_deref(), Some("cache"));
        assert_eq!(near(&["server", "max_size"]).as_deref(), Some("cache.max_size"));
        assert_eq!(near(&["tag_ttl"]).as_deref(), Some("cache.tag_ttl"));
        assert_eq!(
            near(&["upstream", "ghcr.io", "pasword"]).as_deref(),
            Some("upstream.\"ghcr.io\".password")
        );
        assert_eq!(
            near(&["upstream", "ghcr.io", "user"]).as_deref(),
            Some("upstream.\"ghcr.io\".username")
        );
        assert_eq!(near(&["cache", "flavour"]), None);
        assert_eq!(
            names_in(&["server".to_owned(), "tls".to_owned()]),
            ["cert", "key", "client_ca", "acme"]
        );
    }
}
