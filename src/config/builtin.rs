//! The registries that Larder knows without being told.
//!
//! With `[upstream."…"]` an operator changes one of these or adds another; nothing else is ever dialled (L10).

use std::collections::BTreeMap;

use super::raw::RawUpstream;

/// A well-known registry.
pub struct Builtin {
    pub name: &'static str,
    pub url: &'static str,
    pub aliases: &'static [&'static str],
    /// Other hosts that mean the same registry and share its part of the cache (R-U30).
    pub synonyms: &'static [&'static str],
}

const fn plain(name: &'static str, url: &'static str) -> Builtin {
    Builtin {
        name,
        url,
        aliases: &[],
        synonyms: &[],
    }
}

/// Whose HEADs are free (R-U31).
pub const DOCKER_HUB: &str = "docker.io";

pub const BUILTIN: [Builtin; 13] = [
    Builtin {
        name: DOCKER_HUB,
        // The host of that name is a web site; the registry answers here.
        url: "https://registry-1.docker.io",
        aliases: &["hub"],
        synonyms: &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"],
    },
    plain("ghcr.io", "https://ghcr.io"),
    plain("quay.io", "https://quay.io"),
    plain("gcr.io", "https://gcr.io"),
    plain("registry.k8s.io", "https://registry.k8s.io"),
    plain("mcr.microsoft.com", "https://mcr.microsoft.com"),
    plain("public.ecr.aws", "https://public.ecr.aws"),
    plain("registry.gitlab.com", "https://registry.gitlab.com"),
    plain("nvcr.io", "https://nvcr.io"),
    plain("lscr.io", "https://lscr.io"),
    plain("registry.access.redhat.com", "https://registry.access.redhat.com"),
    plain("docker.elastic.co", "https://docker.elastic.co"),
    plain("cgr.dev", "https://cgr.dev"),
];

/// The well-known registry that `host` is another name of.
pub fn owner_of_synonym(host: &str) -> Option<&'static Builtin> {
    BUILTIN.iter().find(|builtin| builtin.synonyms.contains(&host))
}

/// The synonyms of `name`; none for registries that are not built in.
pub fn synonyms_of(name: &str) -> &'static [&'static str] {
    BUILTIN
        .iter()
        .find(|builtin| builtin.name == name)
        .map_or(&[], |builtin| builtin.synonyms)
}

/// As the lowest layer of the configuration.
pub fn raw_upstreams() -> BTreeMap<String, RawUpstream> {
    let raw = |builtin: &Builtin| RawUpstream {
        url: Some(builtin.url.to_owned()),
        aliases: builtin.aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        ..RawUpstream::default()
    };
    BUILTIN
        .iter()
        .map(|builtin| (builtin.name.to_owned(), raw(builtin)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::HostPort;

    #[test]
    fn every_name_and_url_is_sound() {
        for builtin in &BUILTIN {
            for host in builtin.synonyms.iter().chain([&builtin.name]) {
                assert_eq!(host.parse::<HostPort>().unwrap().as_str(), *host);
            }
            let url: url::Url = builtin.url.parse().unwrap();
            assert_eq!((url.scheme(), url.path()), ("https", "/"));
        }
        assert_eq!(raw_upstreams().len(), BUILTIN.len());
    }
}
