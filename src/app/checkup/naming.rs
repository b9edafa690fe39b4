//! Which images a client gets by an address that leads to this proxy: what its path names, against what the file is
//! for.
//!
//! Clients differ in where they put a path (R-D1): docker and containerd before `/v2/`, podman and BuildKit behind it.
//! Only containerd and BuildKit name the registry by `?ns=` as well. A path that names no upstream, from a client that
//! sends no `ns`, is a name at the default upstream: another image, which nobody notices.

use std::collections::HashMap;

use crate::config::Config;
use crate::oci::name::looks_like_host;

/// Names of upstreams as the proxy takes them.
#[derive(Debug)]
pub(super) struct Naming {
    /// Names, aliases and synonyms, and the upstream that each stands for.
    upstreams: HashMap<String, String>,
    default: String,
    /// False if the proxy's configuration is not known here, so that these are what holds without one.
    is_known: bool,
}

/// The outcome of pulls by an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Right,
    /// The client gets another image; which one, in a sentence for people.
    WrongImage(String),
    /// The proxy refuses, so that the client goes around it or its pulls fail; why.
    Refused(String),
}

impl Naming {
    pub(super) fn of(config: &Config) -> Naming {
        let mut upstreams = HashMap::new();
        for upstream in &config.upstreams {
            let synonyms = upstream.synonyms.iter().map(|host| host.as_str().to_owned());
            for name in upstream.aliases.iter().cloned().chain(synonyms) {
                upstreams.entry(name).or_insert_with(|| upstream.name.to_string());
            }
        }
        for upstream in &config.upstreams {
            upstreams.insert(upstream.name.to_string(), upstream.name.to_string());
        }
        Naming {
            upstreams,
            default: config.cache.default_upstream.to_string(),
            is_known: true,
        }
    }

    /// As without a configuration.
    pub(super) fn of_defaults() -> Naming {
        let known = Config::default_config().map(|config| Naming::of(&config)).ok();
        Naming {
            is_known: false,
            ..known.unwrap_or(Naming {
                upstreams: HashMap::new(),
                default: "docker.io".to_owned(),
                is_known: false,
            })
        }
    }

    fn find(&self, name: &str) -> Option<&str> {
        let found = self.upstreams.get(name);
        let found = found.or_else(|| self.upstreams.get(&name.to_ascii_lowercase()));
        found.map(String::as_str)
    }

    fn canonical<'a>(&'a self, registry: &'a str) -> &'a str {
        self.find(registry).unwrap_or(registry)
    }

    pub(super) fn is_default(&self, registry: &str) -> bool {
        self.canonical(registry) == self.default
    }

    /// Judges pulls of `wanted` (a registry, or what is below a path of one) that are asked for below `path`. `ns`:
    /// whether the client names the registry as well.
    pub(super) fn judge(&self, wanted: &str, path: &str, ns: bool) -> Way {
        let (registry, below) = wanted.split_once('/').unwrap_or((wanted, ""));
        let of_client = self.canonical(registry);
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let (upstream, found) = match self.find(first).filter(|_| !first.is_empty()) {
            Some(named) if ns && named != of_client => {
                return Way::Refused(format!(
                    "its path names {named}, and the client asks for {registry} there"
                ));
            }
            Some(named) => (named, rest),
            None if ns => (of_client, path),
            None if looks_like_host(first) => {
                let known = if self.is_known { "" } else { " that is known here" };
                return match self.is_known || first != registry {
                    true => Way::Refused(format!("its path names {first}, which is no upstream{known}")),
                    false => Way::Right,
                };
            }
            None => (self.default.as_str(), path),
        };
        if upstream == of_client && found == below {
            return Way::Right;
        }
        let gets = [upstream, found, "IMAGE"].join("/").replace("//", "/");
        let unless = match (self.is_known, self.find(first).is_some(), first) {
            (true, ..) | (_, true, _) => String::new(),
            (false, _, "") if !ns => format!(", unless {registry} is the proxy's default upstream"),
            (false, _, "") => String::new(),
            (false, _, first) => format!(", unless {first} is an alias at the proxy"),
        };
        Way::WrongImage(format!("who pulls {wanted}/IMAGE gets {gets}{unless}"))
    }
}

/// The path of a mirror's URL as containerd asks for it, less what it adds: what stands before the name of a
/// repository. `None` if nothing there is a registry's API. `verbatim`: the client adds no `/v2` to the path.
pub(super) fn before_name(path: &str, verbatim: bool) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let parts = match parts.as_slice() {
        [prefix @ .., "v2"] => [prefix, &["v2"]].concat(),
        _ if verbatim => parts,
        _ => [parts.as_slice(), &["v2"]].concat(),
    };
    match parts.as_slice() {
        ["v2", rest @ ..] => Some(rest.join("/")),
        [prefix, "v2", rest @ ..] => Some([&[*prefix], rest].concat().join("/")),
        _ => None,
    }
}

/// The path of an address, `docker.io` in `http://larder.example:5000/docker.io/`.
pub(super) fn path_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split_once('/').map_or("", |(_, path)| path.trim_matches('/'))
}

/// An address less its path.
pub(super) fn without_path(address: &str) -> &str {
    let begin = address.find("://").map_or(0, |at| at + "://".len());
    let end = address[begin..].find('/').map_or(address.len(), |at| begin + at);
    &address[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(text: &str) -> Naming {
        Naming::of(&Config::from_toml(text).unwrap())
    }

    #[track_caller]
    fn wrong(way: &Way, gets: &str) {
        assert!(
            matches!(way, Way::WrongImage(what) if what.contains(gets)),
            "{way:?}, expected {gets}"
        );
    }

    #[test]
    fn names_behind_v2_without_ns() {
        let naming = naming("[upstream.\"docker.io\"]\naliases = [\"hub\"]\n");
        for (wanted, path) in [
            ("docker.io", ""),
            ("docker.io", "docker.io"),
            ("docker.io", "hub"),
            ("index.docker.io", "docker.io"),
            ("docker.io/library", "library"),
            ("docker.io/library", "hub/library"),
            ("quay.io", "quay.io"),
            ("quay.io/org", "quay.io/org"),
        ] {
            assert_eq!(naming.judge(wanted, path, false), Way::Right, "{wanted} {path}");
        }
        wrong(
            &naming.judge("quay.io", "", false),
            "pulls quay.io/IMAGE gets docker.io/IMAGE",
        );
        wrong(&naming.judge("quay.io", "quay", false), "gets docker.io/quay/IMAGE");
        wrong(&naming.judge("quay.io", "ghcr.io", false), "gets ghcr.io/IMAGE");
        wrong(&naming.judge("quay.io/org", "quay.io", false), "gets quay.io/IMAGE");
        wrong(&naming.judge("quay.io", "quay.io/org", false), "gets quay.io/org/IMAGE");
        assert!(matches!(naming.judge("r.example", "r.example", false), Way::Refused(_)));
        let other = super::tests::naming("[cache]\ndefault_upstream = \"quay.io\"\n");
        wrong(&other.judge("docker.io", "", false), "gets quay.io/IMAGE");
        assert_eq!(other.judge("quay.io", "", false), Way::Right);
    }

    #[test]
    fn names_with_ns() {
        let naming = naming("");
        for path in ["", "quay.io"] {
            assert_eq!(naming.judge("quay.io", path, true), Way::Right, "{path}");
        }
        assert!(matches!(naming.judge("quay.io", "ghcr.io", true), Way::Refused(_)));
        wrong(&naming.judge("quay.io", "mirror", true), "gets quay.io/mirror/IMAGE");
    }

    /// On a node nobody knows the proxy's configuration.
    #[test]
    fn what_is_not_known_is_said() {
        let naming = Naming::of_defaults();
        wrong(
            &naming.judge("quay.io", "", false),
            "unless quay.io is the proxy's default upstream",
        );
        wrong(&naming.judge("quay.io", "q", false), "unless q is an alias");
        assert_eq!(naming.judge("r.example", "r.example", false), Way::Right);
    }

    #[test]
    fn paths_of_containerd() {
        for (path, verbatim, want) in [
            ("", false, Some("")),
            ("v2", false, Some("")),
            ("quay.io", false, Some("quay.io")),
            ("quay.io/v2", false, Some("quay.io")),
            ("a/b", false, None),
            ("v2/quay.io", true, Some("quay.io")),
            ("v2/quay.io", false, Some("quay.io/v2")),
            ("quay.io", true, None),
            ("v2", true, Some("")),
            ("", true, None),
        ] {
            assert_eq!(before_name(path, verbatim).as_deref(), want, "{path} {verbatim}");
        }
        assert_eq!(path_of("http://x:1/docker.io/"), "docker.io");
        assert_eq!(path_of("x:1"), "");
        assert_eq!(without_path("http://x:1/a/b"), "http://x:1");
        assert_eq!(without_path("x:1/a"), "x:1");
    }
}
