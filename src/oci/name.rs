//! Repository names and upstream hosts (distribution-spec § Pulling manifests; R-S4, R-C2).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name accepted, host included (R-S4, R-X13).
pub const MAX_NAME_BYTES: usize = 255;

/// A repository name as an upstream knows it: `library/alpine`. Matches the specification's grammar.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

/// Why a text names no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a repository name: {reason}")]
pub struct NameError {
    found: String,
    reason: &'static str,
}

impl NameError {
    pub fn new(found: &str, reason: &'static str) -> NameError {
        NameError {
            found: found.chars().take(MAX_NAME_BYTES).collect(),
            reason,
        }
    }
}

impl Repository {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This one as a registry knows it that keeps it below a name of its own (R-U50). It may be longer than what is accepted
    /// from outside.
    #[must_use]
    pub fn below(&self, prefix: &Repository) -> Repository {
        Repository(format!("{prefix}/{self}").into())
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Repository, NameError> {
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::new(text, "longer than 255 bytes"));
        }
        if !text.split('/').all(is_component) {
            return Err(NameError::new(
                text,
                "expected lower-case letters and digits, joined by '.', '_', '__' or dashes, in components separated by '/'",
            ));
        }
        Ok(Repository(text.into()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
pub fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !word(*first) || !word(*last) {
        return false;
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let words = rest.iter().take_while(|b| word(**b)).count();
        rest = &rest[words..];
        let joint = rest.iter().take_while(|b| !word(**b)).count();
        let (between, after) = rest.split_at(joint);
        let fits = matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|b| *b == b'-');
        if !fits {
            return false;
        }
        rest = after;
    }
    true
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `host[:port]` in lower case: how an upstream is named in `?ns=`, a path prefix and the configuration.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort(Arc<str>);

/// Why a text names no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a registry host: expected host or host:port, such as docker.io or registry.example:5000")]
pub struct HostError(String);

impl HostPort {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the port, and without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        match self.0.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.0.split(':').next().unwrap_or(&self.0),
        }
    }
}

/// Whether a first path component can only be meant as a registry host (R-D1), as Docker decides it.
pub fn looks_like_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

impl FromStr for HostPort {
    type Err = HostError;

    fn from_str(text: &str) -> Result<HostPort, HostError> {
        let error = || HostError(text.chars().take(MAX_NAME_BYTES).collect());
        let lower = text.to_ascii_lowercase();
        if lower.len() > MAX_NAME_BYTES {
            return Err(error());
        }
        let (host_ok, port) = if let Some(rest) = lower.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or_else(error)?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(error)?),
            };
            (inside.parse::<std::net::Ipv6Addr>().is_ok(), port)
        } else {
            let (host, port) = match lower.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (lower.as_str(), None),
            };
            (host.split('.').all(is_label), port)
        };
        let port_ok = port.is_none_or(|p| {
            p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|n| n > 0)
        });
        if host_ok && port_ok {
            Ok(HostPort(lower.into()))
        } else {
            Err(error())
        }
    }
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The repository of canaries, by which a checkup sees whether a client's pulls come here: reserved under every upstream,
/// also below another path. Nothing that an upstream or an archive has may stand in it.
pub const RESERVED_REPOSITORY: &str = "larder-doctor/canary";

/// Returns true for the reserved repository, as an upstream would know it.
pub fn is_reserved(repository: &str) -> bool {
    let before = repository.strip_suffix(RESERVED_REPOSITORY);
    before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names() {
        for good in [
            "a",
            "library/alpine",
            "foo/manifests/bar",
            "a.b/c_d/e__f/g---h",
            "registry.k8s.io/pause",
        ] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            "a/../b",
            "a b",
            "é",
            "host:5000/a",
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
        assert!("a".repeat(256).parse::<Repository>().is_err());
        assert!("a".repeat(255).parse::<Repository>().is_ok());
    }

    #[test]
    fn hosts() {
        for (text, want) in [
            ("Docker.IO", "docker.io"),
            ("localhost", "localhost"),
            ("registry.example:5000", "registry.example:5000"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().as_str(), want);
        }
        for bad in [
            "", "a/b", "http://a", "a:0", "a:99999", "a:", "a:b", "a b", "a@b", "..", "-a.b", "[::1", "[x]", "a.b\r\nc",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        assert_eq!("[::1]:5000".parse::<HostPort>().unwrap().host(), "::1");
        assert_eq!("a.b:1".parse::<HostPort>().unwrap().host(), "a.b");
    }

    proptest! {
        /// The hand-written matcher and the grammar of the specification agree on assembled names.
        #[test]
        fn assembled_names_parse(parts in proptest::collection::vec("[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}", 1..6)) {
            let text = parts.join("/");
            prop_assume!(text.len() <= MAX_NAME_BYTES);
            let parsed = text.parse::<Repository>();
            prop_assert!(parsed.is_ok());
        }

        #[test]
        fn nothing_that_parses_can_escape_a_path(text in "[a-z0-9./_:%\\\\-]{0,40}") {
            if let Ok(name) = text.parse::<Repository>() {
                prop_assert!(!name.as_str().contains(".."));
                prop_assert!(!name.as_str().starts_with('/'));
                prop_assert!(!name.as_str().contains("//"));
                prop_assert!(!name.as_str().contains(['%', ':', '\\']));
            }
        }
    }
}
