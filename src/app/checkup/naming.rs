//! Which images a client gets by an address that leads to this proxy: the request that it sends, read as the proxy reads
//! it, against the image that is wanted.
//!
//! Clients differ in where they put a path (R-D1): docker and containerd before `/v2/`, podman and BuildKit behind it.
//! Only containerd, BuildKit and docker with containerd's image store name the registry by `?ns=` as well. A path that
//! names no upstream, from a client that sends no `ns`, is a name at the default upstream: another image, which nobody
//! notices.

use crate::config::Config;
use crate::http::v2::{Meaning, meaning};
use crate::pull::{Names, PullError};

/// The repository, below a registry, that requests are made up for. Of two components, so that nothing is added to it.
pub(super) const PROBE: &str = "owner/probe";
/// [`PROBE`] for people.
const IMAGE: &str = "IMAGE";
/// An upstream that is known without a configuration, in the place of one that may be in it.
const STAND_IN: &str = "quay.io";

/// Names of upstreams as the proxy takes them.
#[derive(Debug)]
pub(super) struct Naming {
    names: Option<Names>,
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
        Naming {
            names: Names::new(config),
            is_known: true,
        }
    }

    /// As without a configuration.
    pub(super) fn of_defaults() -> Naming {
        let names = Config::default_config().ok().and_then(|config| Names::new(&config));
        Naming { names, is_known: false }
    }

    fn canonical<'a>(&'a self, registry: &'a str) -> &'a str {
        let names = self.names.as_ref();
        names
            .and_then(|names| names.upstream_name(registry))
            .unwrap_or(registry)
    }

    fn is_upstream(&self, text: &str) -> bool {
        self.names.as_ref().is_some_and(|names| names.is_known(text))
    }

    /// Judges the request that a client sends for [`PROBE`] below `wanted`, a registry or what is below a path of one.
    pub(super) fn judge(&self, wanted: &str, path_and_query: &str) -> Way {
        let (registry, below) = wanted.split_once('/').unwrap_or((wanted, ""));
        if !self.is_known && !self.is_upstream(registry) && registry != STAND_IN {
            // It may be an upstream there, so it is judged as one that is.
            let swapped = |text: &str, from: &str, to: &str| text.replace(from, to);
            let way = self.judge(
                &swapped(wanted, registry, STAND_IN),
                &swapped(path_and_query, registry, STAND_IN),
            );
            return match way {
                Way::Right => Way::Right,
                Way::WrongImage(what) => Way::WrongImage(swapped(&what, STAND_IN, registry)),
                Way::Refused(why) => Way::Refused(swapped(&why, STAND_IN, registry)),
            };
        }
        let Some(names) = &self.names else { return Way::Right };
        match meaning(names, path_and_query) {
            Meaning::NoEndpoint => Way::Refused("there is no registry at that path".to_owned()),
            Meaning::Refused(PullError::Conflict { path, ns }) => {
                Way::Refused(format!("its path names {path}, and the client asks for {ns} there"))
            }
            Meaning::Refused(PullError::UnknownUpstream(name)) => {
                let known = if self.is_known { "" } else { " that is known here" };
                Way::Refused(match name == registry && path_and_query.contains("?ns=") {
                    true => format!("{name} is no upstream of this proxy: it needs [upstream.{name:?}]"),
                    false => format!("its path names {name}, which is no upstream{known}"),
                })
            }
            Meaning::Refused(error) => Way::Refused(error.to_string()),
            Meaning::Repository { upstream, repository } => {
                let expected = match below {
                    "" => PROBE.to_owned(),
                    below => format!("{below}/{PROBE}"),
                };
                if upstream == self.canonical(registry) && repository == expected {
                    return Way::Right;
                }
                let gets = format!("{upstream}/{repository}").replace(PROBE, IMAGE);
                let unless = self.unless(registry, path_and_query);
                Way::WrongImage(format!("who pulls {wanted}/{IMAGE} gets {gets}{unless}"))
            }
        }
    }

    /// Names what may be in a configuration that is not known here, and would make it right.
    fn unless(&self, registry: &str, path_and_query: &str) -> String {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let path = path.trim_start_matches('/');
        let first = path.strip_prefix("v2/").unwrap_or(path).split('/').next();
        let first = first.unwrap_or_default();
        match PROBE.split('/').next() == Some(first) {
            _ if self.is_known || self.is_upstream(first) => String::new(),
            true if query.is_empty() => format!(", unless {registry} is the proxy's default upstream"),
            true => String::new(),
            false => format!(", unless {first} is an alias at the proxy"),
        }
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

    /// As podman asks: a path behind `/v2/`, no `ns`.
    fn behind(naming: &Naming, wanted: &str, path: &str) -> Way {
        let slash = if path.is_empty() { "" } else { "/" };
        naming.judge(wanted, &format!("/v2/{path}{slash}{PROBE}/manifests/1"))
    }

    /// As BuildKit asks: the same, with `ns`.
    fn behind_with_ns(naming: &Naming, wanted: &str, path: &str) -> Way {
        let slash = if path.is_empty() { "" } else { "/" };
        naming.judge(wanted, &format!("/v2/{path}{slash}{PROBE}/manifests/1?ns={wanted}"))
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
            assert_eq!(behind(&naming, wanted, path), Way::Right, "{wanted} {path}");
        }
        wrong(
            &behind(&naming, "quay.io", ""),
            "pulls quay.io/IMAGE gets docker.io/IMAGE",
        );
        wrong(&behind(&naming, "quay.io", "quay"), "gets docker.io/quay/IMAGE");
        wrong(&behind(&naming, "quay.io", "ghcr.io"), "gets ghcr.io/IMAGE");
        wrong(&behind(&naming, "quay.io/org", "quay.io"), "gets quay.io/IMAGE");
        wrong(&behind(&naming, "quay.io", "quay.io/org"), "gets quay.io/org/IMAGE");
        assert!(matches!(behind(&naming, "r.example", "r.example"), Way::Refused(_)));
        let other = super::tests::naming("[cache]\ndefault_upstream = \"quay.io\"\n");
        wrong(&behind(&other, "docker.io", ""), "gets quay.io/IMAGE");
        assert_eq!(behind(&other, "quay.io", ""), Way::Right);
    }

    #[test]
    fn names_with_ns() {
        let naming = naming("");
        for path in ["", "quay.io"] {
            assert_eq!(behind_with_ns(&naming, "quay.io", path), Way::Right, "{path}");
        }
        assert!(matches!(behind_with_ns(&naming, "quay.io", "ghcr.io"), Way::Refused(_)));
        wrong(
            &behind_with_ns(&naming, "quay.io", "mirror"),
            "gets quay.io/mirror/IMAGE",
        );
        // Nothing is asked of a registry that nobody named (L10).
        let unknown = behind_with_ns(&naming, "r.example:8443", "");
        assert!(
            matches!(&unknown, Way::Refused(why) if why.contains("is no upstream of this proxy")),
            "{unknown:?}"
        );
    }

    /// On a node nobody knows the proxy's configuration.
    #[test]
    fn what_is_not_known_is_said() {
        let naming = Naming::of_defaults();
        wrong(
            &behind(&naming, "quay.io", ""),
            "unless quay.io is the proxy's default upstream",
        );
        wrong(&behind(&naming, "quay.io", "q"), "unless q is an alias");
        wrong(
            &behind(&naming, "r.example", "q"),
            "pulls r.example/IMAGE gets docker.io/q/IMAGE",
        );
        assert_eq!(behind(&naming, "r.example", "r.example"), Way::Right);
        assert_eq!(behind_with_ns(&naming, "r.example:8443", ""), Way::Right);
        wrong(
            &behind_with_ns(&naming, "r.example", "mirror"),
            "gets r.example/mirror/IMAGE",
        );
    }

    #[test]
    fn addresses_and_paths() {
        assert_eq!(path_of("http://x:1/docker.io/"), "docker.io");
        assert_eq!(path_of("x:1"), "");
        assert_eq!(without_path("http://x:1/a/b"), "http://x:1");
        assert_eq!(without_path("x:1/a"), "x:1");
    }
}
