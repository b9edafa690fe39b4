//! One login file of Docker or podman, read (R-U60, R-U61).
//!
//! A login may be here, or only the name of the program that knows it (`credHelpers`, `credsStore`): `helper` runs that.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::credentials::Credential;
use crate::config::{Secret, is_helper_name};

/// What a file holds, by host and then by repository prefix.
#[derive(Debug, Default)]
pub struct AuthFile {
    entries: Vec<(Key, Credential)>,
    /// `credHelpers`: by host.
    helpers: Vec<(Key, String)>,
    /// `credsStore`: for every host.
    store: Option<String>,
}

/// What a file knows of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    Here(Credential),
    /// The name of a helper, and whether it was given for this very host.
    Helper {
        name: String,
        is_own: bool,
    },
}

/// What a key of `auths` stands for: a host, and perhaps a namespace or repository in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    host: String,
    path: String,
}

impl Key {
    /// `quay.io`, `host:5000`, `https://index.docker.io/v1/`, `quay.io/org/repo`.
    fn parse(text: &str) -> Key {
        let bare = text
            .split_once("://")
            .map_or(text, |(_, rest)| rest)
            .trim_end_matches('/');
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        let is_api = matches!(path, "v1" | "v2");
        Key {
            host: Key::host_of(host),
            path: if is_api { String::new() } else { path.to_owned() },
        }
    }

    /// Lower case, and Docker Hub's many names as one (R-U30).
    pub fn host_of(host: &str) -> String {
        let host = host.to_ascii_lowercase();
        let bare = host.strip_suffix(":443").unwrap_or(&host);
        match bare {
            "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
            "docker.io" => bare.to_owned(),
            _ => host,
        }
    }

    /// How specific the match is: the length of the prefix; `None` when it is none.
    fn fits(&self, hosts: &[String], repository: &str) -> Option<usize> {
        let within = match repository.strip_prefix(&self.path) {
            Some(rest) => self.path.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        };
        (within && hosts.contains(&self.host)).then_some(self.path.len())
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    auths: BTreeMap<String, RawEntry>,
    #[serde(rename = "credsStore")]
    creds_store: Option<serde_json::Value>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: BTreeMap<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthFile {
    /// `name` is how warnings call it. Never fails: what cannot be read is said once and left out.
    pub fn parse(bytes: &[u8], name: &str) -> AuthFile {
        let raw: Raw = match serde_json::from_slice(bytes) {
            Ok(raw) => raw,
            Err(error) => {
                // serde's message may quote a value, and a value here may be a password: only where, not what.
                let (line, column) = (error.line(), error.column());
                tracing::warn!(
                    file = name,
                    line,
                    column,
                    "this login file is not what Docker or podman writes"
                );
                return AuthFile::default();
            }
        };
        let helper = |value: serde_json::Value| match value.as_str() {
            Some("") => None,
            Some(helper) if is_helper_name(helper) => Some(helper.to_owned()),
            _ => {
                tracing::warn!(file = name, "a credential helper with a strange name is left out");
                None
            }
        };
        let store = raw.creds_store.and_then(helper);
        let helpers = raw
            .cred_helpers
            .into_iter()
            .filter_map(|(key, value)| Some((Key::parse(&key), helper(value)?)))
            .collect();
        let mut entries = Vec::new();
        for (key, entry) in raw.auths {
            match entry.read() {
                Ok(Some(credential)) => entries.push((Key::parse(&key), credential)),
                // An empty object marks "kept by a helper" (R-U60).
                Ok(None) => {}
                Err(what) => tracing::warn!(file = name, key, what, "this login is left out"),
            }
        }
        AuthFile {
            entries,
            helpers,
            store,
        }
    }

    /// The host's own helper, else the most specific login, else the helper for all.
    pub fn find(&self, hosts: &[String], repository: &str) -> Option<Login> {
        let helper = |name: &String, is_own| Login::Helper {
            name: name.clone(),
            is_own,
        };
        let own = self
            .helpers
            .iter()
            .find(|(key, _)| key.fits(hosts, repository).is_some());
        own.map(|(_, name)| helper(name, true))
            .or_else(|| self.find_here(hosts, repository).map(Login::Here))
            .or_else(|| self.store.as_ref().map(|name| helper(name, false)))
    }

    fn find_here(&self, hosts: &[String], repository: &str) -> Option<Credential> {
        let fitting = self
            .entries
            .iter()
            .filter_map(|(key, c)| Some((key.fits(hosts, repository)?, c)));
        fitting.max_by_key(|(specific, _)| *specific).map(|(_, c)| c.clone())
    }
}

impl RawEntry {
    fn read(self) -> Result<Option<Credential>, &'static str> {
        let filled = |text: Option<String>| text.filter(|t| !t.is_empty());
        if let Some(token) = filled(self.registrytoken) {
            return Ok(Some(Credential::Bearer(Secret::new(token))));
        }
        let (mut username, mut password) = (filled(self.username), filled(self.password));
        if let Some(auth) = filled(self.auth) {
            let (user, pass) = decode(&auth)?;
            username = Some(user);
            password = filled(Some(pass)).or(password);
        }
        if let Some(token) = filled(self.identitytoken) {
            return Ok(Some(Credential::Identity {
                username: username.unwrap_or_default(),
                token: Secret::new(token),
            }));
        }
        match (username, password) {
            (Some(username), Some(password)) if username == "<token>" => Ok(Some(Credential::Identity {
                username: String::new(),
                token: Secret::new(password),
            })),
            (Some(username), Some(password)) => Ok(Some(Credential::Basic {
                username,
                password: Secret::new(password),
            })),
            (None, None) => Ok(None),
            _ => Err("it has a user name without a password, or the reverse"),
        }
    }
}

/// base64 of `user:password`, with or without padding; the password may contain `:` and end in zero bytes.
fn decode(auth: &str) -> Result<(String, String), &'static str> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    let bytes = engine.decode(auth.trim()).map_err(|_| "`auth` is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "`auth` is not text")?;
    let (user, password) = text.split_once(':').ok_or("`auth` is not user:password")?;
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    fn found(json: &str, host: &str, repository: &str) -> Option<Credential> {
        AuthFile::parse(json.as_bytes(), "test").find_here(&[Key::host_of(host)], repository)
    }

    fn basic(user: &str, pass: &str) -> Option<Credential> {
        Some(Credential::Basic {
            username: user.to_owned(),
            password: Secret::new(pass),
        })
    }

    #[test]
    fn keys_in_every_form() {
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
            "https://index.docker.io/v2/",
            "registry-1.docker.io",
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"username":"u","password":"p"}}}}}}"#);
            assert_eq!(
                found(&json, "registry-1.docker.io", "library/alpine"),
                basic("u", "p"),
                "{key}"
            );
            assert_eq!(found(&json, "quay.io", ""), None);
        }
        let json = r#"{"auths":{"http://R.example:5000/":{"username":"u","password":"p"}}}"#;
        assert_eq!(found(json, "r.example:5000", ""), basic("u", "p"));
        assert_eq!(found(json, "r.example", ""), None);
    }

    #[test]
    fn the_most_specific_key_wins() {
        let json = r#"{"auths":{
            "quay.io":{"username":"all","password":"p"},
            "quay.io/org":{"username":"org","password":"p"},
            "quay.io/org/repo":{"username":"repo","password":"p"}}}"#;
        for (repository, user) in [
            ("org/repo", "repo"),
            ("org/repo/sub", "repo"),
            ("org/repository", "org"),
            ("organ/x", "all"),
            ("", "all"),
        ] {
            assert_eq!(found(json, "quay.io", repository), basic(user, "p"), "{repository}");
        }
    }

    #[test]
    fn values_in_every_form() {
        let entry = |json: &str| found(&format!(r#"{{"auths":{{"h.x":{json}}}}}"#), "h.x", "");
        let auth = STANDARD.encode("u:p:#&+% \0\0");
        assert_eq!(entry(&format!(r#"{{"auth":"{auth}"}}"#)), basic("u", "p:#&+% "));
        let unpadded = STANDARD.encode("user:pass").replace('=', "");
        assert_eq!(entry(&format!(r#"{{"auth":"{unpadded}"}}"#)), basic("user", "pass"));
        assert_eq!(entry("{}"), None);
        assert_eq!(entry(r#"{"email":"x@y"}"#), None);
        assert_eq!(entry(r#"{"auth":"!!!"}"#), None);
        assert_eq!(entry(r#"{"username":"only"}"#), None);
        assert_eq!(
            entry(r#"{"registrytoken":"r"}"#),
            Some(Credential::Bearer(Secret::new("r")))
        );
        let identity = format!(r#"{{"auth":"{}","identitytoken":"t"}}"#, STANDARD.encode("u:"));
        assert_eq!(
            entry(&identity),
            Some(Credential::Identity {
                username: "u".to_owned(),
                token: Secret::new("t")
            })
        );
        assert_eq!(found(r#"{"auths":{"h.x":{}}}"#, "h.x", ""), None);
        assert_eq!(found("[1", "h.x", ""), None);
    }

    /// R-U60: a host's own helper before a login, a login before the helper for all.
    #[test]
    fn helpers_by_host_and_for_all() {
        let json = r#"{"auths":{"h.x":{"username":"u","password":"p"},"l.x":{"username":"u","password":"p"},"s.x":{}},
            "credsStore":"desktop","credHelpers":{"h.x":"own","https://index.docker.io/v1/":"hub","e.x":"../evil","n.x":7}}"#;
        let file = AuthFile::parse(json.as_bytes(), "test");
        let at = |host: &str| file.find(&[Key::host_of(host)], "a/b");
        let helper = |name: &str, is_own| {
            Some(Login::Helper {
                name: name.to_owned(),
                is_own,
            })
        };
        assert_eq!(at("h.x"), helper("own", true));
        assert_eq!(at("registry-1.docker.io"), helper("hub", true));
        assert_eq!(at("l.x"), basic("u", "p").map(Login::Here));
        for store in ["s.x", "other.x", "e.x", "n.x"] {
            assert_eq!(at(store), helper("desktop", false), "{store}");
        }
        let without = AuthFile::parse(br#"{"credsStore":""}"#, "test");
        assert_eq!(without.find(&[Key::host_of("h.x")], ""), None);
    }
}
