//! Keys and variables of another registry, which people bring along: CNCF Distribution (`registry:2`, `registry:3`), in whose
//! place as a mirror Larder is often put. Each is answered with the key that does the same here.

use std::collections::BTreeMap;

/// Most keys of one section that are shown.
const MOST_KEYS: usize = 50;

/// Its keys, and what stands in their place.
const KEYS: &[(&str, &str)] = &[
    (
        "proxy.remoteurl",
        "upstreams are called by name, and the usual ones are built in: cache.default_upstream says which one names without a registry \
         come from, [upstream.\"registry.example\"] with url adds another",
    ),
    ("proxy.username", "upstream.\"docker.io\".username"),
    ("proxy.password", "upstream.\"docker.io\".password_file"),
    ("proxy.exec.command", "upstream.\"docker.io\".credential_helper"),
    (
        "proxy.ttl",
        "nothing is removed by age: cache.max_size says when room is made, cache.tag_ttl how long a tag is trusted",
    ),
    ("storage.filesystem.rootdirectory", "cache.path"),
    ("storage.filesystem.maxthreads", "there is no such limit"),
    ("storage.s3", "the cache is a folder: cache.path"),
    ("storage.gcs", "the cache is a folder: cache.path"),
    ("storage.azure", "the cache is a folder: cache.path"),
    (
        "storage.inmemory",
        "the cache is a folder: cache.path, which may be a tmpfs",
    ),
    ("storage.delete", "`larder rm` removes images"),
    (
        "storage.cache",
        "recent manifests and the index are kept in memory anyway",
    ),
    ("storage.maintenance", "interrupted transfers are cleaned up anyway"),
    ("storage.redirect", "clients are never redirected"),
    ("http.addr", "server.listen"),
    ("http.host", "access.realm"),
    ("http.secret", "nothing here is signed with it"),
    ("http.tls.certificate", "server.tls.cert"),
    ("http.tls.key", "server.tls.key"),
    ("http.tls.clientcas", "server.tls.client_ca"),
    ("http.tls.letsencrypt", "[acme], and server.tls.acme = true"),
    ("http.debug.addr", "admin.listen"),
    ("http.debug.prometheus", "metrics are at admin.listen, /metrics"),
    ("http.draintimeout", "server.shutdown_grace"),
    ("auth.htpasswd.path", "access.htpasswd_file"),
    ("auth.htpasswd.realm", "logins need none"),
    ("auth.token", "[access.oidc.NAME]"),
    ("auth.silly", "[[access.rule]]"),
    ("log.formatter", "log.format"),
    ("log.accesslog", "log.level: each request is logged at info"),
    ("log.fields", "there are no fields of your own"),
    ("notifications.endpoints", "[webhook.NAME]"),
    ("health", "/readyz and /healthz at admin.listen"),
    ("redis", "nothing is kept in Redis"),
    ("version", "this file has no version"),
];

/// Sections, or whole keys, of which none has a namesake here.
const SECTIONS: [&str; 8] = [
    "proxy",
    "storage",
    "http",
    "auth",
    "notifications",
    "health",
    "redis",
    "version",
];

/// Returns the problems of a key that is unknown here and known there: each of its keys by its path, with what to write.
/// `None`: it is none of these.
pub fn problems(path: &[String], value: &toml::Value) -> Option<Vec<(Vec<String>, String)>> {
    let [section, rest @ ..] = path else { return None };
    let is_section = rest.is_empty() && SECTIONS.contains(&section.as_str());
    if !is_section && own_key(path).is_none() {
        return None;
    }
    let mut found = Vec::new();
    collect(&mut path.to_vec(), value, &mut found);
    Some(found)
}

fn collect(path: &mut Vec<String>, value: &toml::Value, found: &mut Vec<(Vec<String>, String)>) {
    if found.len() >= MOST_KEYS {
        return;
    }
    match (
        own_key(path),
        value.as_table().filter(|table| !table.is_empty() && path.len() < 4),
    ) {
        (Some(here), _) => found.push((path.clone(), message(here))),
        (None, Some(table)) => {
            for (key, value) in table {
                path.push(key.clone());
                collect(path, value, found);
                path.pop();
            }
        }
        (None, None) => found.push((path.clone(), message("there is nothing like it"))),
    }
}

fn message(here: &str) -> String {
    format!("this is a key of the registry of CNCF Distribution; here: {here}")
}

fn own_key(path: &[String]) -> Option<&'static str> {
    let shown = path.join(".");
    KEYS.iter().find(|(key, _)| *key == shown).map(|(_, here)| *here)
}

/// Returns a warning for each variable that sets one of its keys (`REGISTRY_PROXY_REMOTEURL`). It is no error, since the variable
/// may be there for somebody else. Not a value of any of them is repeated.
pub fn warnings(variables: &BTreeMap<String, String>) -> Vec<String> {
    let named = |(key, here): &(&str, &str)| {
        let name = format!("REGISTRY_{}", key.replace('.', "_").to_ascii_uppercase());
        let is_set = variables.iter().any(|(variable, value)| {
            // Below a whole section there are variables for each of its keys.
            let is_own = *variable == name || variable.strip_prefix(&name).is_some_and(|rest| rest.starts_with('_'));
            is_own && !value.is_empty()
        });
        // A short name, or one with a token in it, may be anybody's.
        let is_certain = key.contains('.') && *key != "auth.token";
        (is_set && is_certain).then(|| {
            format!("{name}: this is a variable of the registry of CNCF Distribution, and sets nothing; here: {here}")
        })
    };
    KEYS.iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::keys;

    #[test]
    fn each_key_of_another_registry_is_answered() {
        let text = "[proxy]\nremoteurl = \"https://user:secret@registry-1.docker.io\"\n\n[storage.filesystem]\nrootdirectory = \"/x\"\n\n[http]\naddr = \":5000\"\nheaders = { X = [\"y\"] }\n[http.tls]\ncertificate = \"/c\"\n[log]\nformatter = \"json\"\n";
        let error = Config::from_toml(text).unwrap_err().to_string();
        let lines: Vec<&str> = error.lines().collect();
        for (line, words) in lines.iter().zip([
            ("proxy.toml:2: proxy.remoteurl: ", "cache.default_upstream"),
            ("proxy.toml:5: storage.filesystem.rootdirectory: ", "here: cache.path"),
            ("proxy.toml:8: http.addr: ", "here: server.listen"),
            ("proxy.toml:9: http.headers.X: ", "nothing like it"),
            ("proxy.toml:11: http.tls.certificate: ", "here: server.tls.cert"),
            ("proxy.toml:13: log.formatter: ", "here: log.format"),
        ]) {
            assert!(line.starts_with(words.0) && line.contains(words.1), "{words:?}: {line}");
        }
        assert_eq!(lines.len(), 6, "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn its_variables_are_warnings() {
        let warned = |name: &str| {
            let variables = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
            warnings(&variables)
        };
        let remote = warned("REGISTRY_PROXY_REMOTEURL");
        assert!(
            remote.len() == 1 && remote[0].contains("cache.default_upstream"),
            "{remote:?}"
        );
        assert_eq!(warned("REGISTRY_STORAGE_S3_BUCKET").len(), 1);
        // The login file of podman and skopeo, which Larder reads.
        for other in [
            "REGISTRY_AUTH_FILE",
            "REGISTRY",
            "REGISTRY_VERSION",
            "REGISTRY_AUTH_TOKEN",
            "MY_REGISTRY_HTTP_ADDR",
        ] {
            assert_eq!(warned(other), [""; 0], "{other}");
        }
    }

    /// A key of this program is never answered as one of another.
    #[test]
    fn they_are_unknown_here() {
        for (key, _) in KEYS {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            let (last, section) = path.split_last().unwrap();
            assert!(!keys::names_in(section).contains(&last.as_str()), "{key}");
            let is_listed = SECTIONS.contains(&path[0].as_str());
            assert_eq!(is_listed, keys::find(keys::ROOT, &path[0]).is_none(), "{key}");
        }
    }
}
