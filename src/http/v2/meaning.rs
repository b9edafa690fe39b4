//! Which image a request's path and query mean, found out without answering it: for the checkup, which compares it with
//! what a client wants.

use super::route::{self, Name, Route};
use crate::pull::{Names, PullError};

/// How the proxy understands a request.
#[derive(Debug)]
pub enum Meaning {
    /// An image of a repository, whether or not the configuration's `allow` and `deny` permit it.
    Repository { upstream: String, repository: String },
    /// No endpoint of a registry.
    NoEndpoint,
    /// The name is refused before anything is looked up.
    Refused(PullError),
}

/// Reads a raw (undecoded) path and query as a request for a manifest or blob is read.
pub fn meaning(names: &Names, path_and_query: &str) -> Meaning {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let Route::Repository { name, .. } = route::parse(path) else {
        return Meaning::NoEndpoint;
    };
    let ns = route::query(query).ns;
    let is_upstream = |text: &str| names.is_known(text);
    match resolve(&name, is_upstream, |full| names.resolve_request(full, ns.as_deref())) {
        Ok(target) => Meaning::Repository {
            upstream: target.upstream.name.to_string(),
            repository: target.repository.to_string(),
        },
        Err(PullError::NotAllowed { upstream, repository }) => Meaning::Repository { upstream, repository },
        Err(error) => Meaning::Refused(error),
    }
}

/// Resolves a name with its prefix, which has to be an upstream's (R-D1 c).
pub(super) fn resolve<T>(
    name: &Name,
    is_upstream: impl Fn(&str) -> bool,
    resolve: impl FnOnce(&str) -> Result<T, PullError>,
) -> Result<T, PullError> {
    match name.prefix.as_ref().filter(|prefix| !is_upstream(prefix)) {
        Some(prefix) => Err(PullError::unknown_upstream(prefix)),
        None => resolve(&name.full),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn found(path_and_query: &str) -> String {
        let config = "[upstream.\"docker.io\"]\naliases = [\"hub\"]\nallow = [\"library/*\"]\n";
        let names = Names::new(&Config::from_toml(config).unwrap()).unwrap();
        match meaning(&names, path_and_query) {
            Meaning::Repository { upstream, repository } => format!("{upstream} {repository}"),
            Meaning::NoEndpoint => "none".to_owned(),
            Meaning::Refused(error) => error.to_string(),
        }
    }

    #[test]
    fn as_a_request_is_read() {
        for (asked, want) in [
            ("/v2/alpine/manifests/1", "docker.io library/alpine"),
            ("//v2/alpine/manifests/1", "docker.io library/alpine"),
            ("/v2/a/b/manifests/1?ns=quay.io", "quay.io a/b"),
            ("/hub/v2/a/b/manifests/1", "docker.io a/b"),
            ("/v2/quay.io/a/b/manifests/1", "quay.io a/b"),
            ("/a/manifests/1", "none"),
            ("/a/b/v2/c/manifests/1", "none"),
        ] {
            assert_eq!(found(asked), want, "{asked}");
        }
        for (asked, want) in [
            ("/mirror/v2/a/manifests/1", "mirror is not an upstream"),
            ("/v2/ghcr.io/a/manifests/1?ns=quay.io", "must agree"),
            ("/v2/a/manifests/1?ns=r.example", "r.example is not an upstream"),
        ] {
            assert!(found(asked).contains(want), "{asked}: {}", found(asked));
        }
    }
}
