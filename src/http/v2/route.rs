//! What a path under `/v2/` asks for. Pure.
//!
//! By hand, because names contain slashes and may have components called `manifests` or `blobs`: the split is at
//! the last one (R-S6). Components are decoded one by one, so that `%2F` never becomes a separator.

use percent_encoding::percent_decode_str;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Root,
    /// `/v2/`, and the same below a prefix.
    Ping {
        prefix: Option<String>,
    },
    Catalog,
    /// Everything that names a repository.
    Repository {
        name: Name,
        what: What,
    },
    /// Nothing that a registry has.
    Unknown,
    /// A component that cannot be decoded, or decodes to a separator.
    Malformed,
}

/// A repository's name in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it stands after `/v2/`: what the client takes for the repository's name.
    pub visible: String,
    /// With the prefix before `/v2/`, if there is one: what names the upstream (R-D1 c).
    pub full: String,
    pub prefix: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Manifest(String),
    Blob(String),
    Tags,
    Referrers(String),
}

/// Parameters that Larder reads; all others are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub ns: Option<String>,
    pub n: Option<String>,
    pub last: Option<String>,
    pub artifact_type: Option<String>,
}

/// Reads a raw (undecoded) path.
pub fn parse(path: &str) -> Route {
    if path == "/" || path.is_empty() {
        return Route::Root;
    }
    let mut parts = Vec::new();
    for raw in path.trim_start_matches('/').split('/') {
        match decode(raw) {
            Some(part) if !part.contains('/') && !part.chars().any(char::is_control) => parts.push(part),
            _ => return Route::Malformed,
        }
    }
    match parts.first().map(String::as_str) {
        Some("v2") => below_v2(None, &parts[1..]),
        // `/<prefix>/v2/…`: where clients put a path that was configured on a mirror.
        Some(prefix) if parts.get(1).is_some_and(|p| p == "v2") => below_v2(Some(prefix.to_owned()), &parts[2..]),
        _ => Route::Unknown,
    }
}

fn below_v2(prefix: Option<String>, parts: &[String]) -> Route {
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (name, what) = match parts.as_slice() {
        [] | [""] => return Route::Ping { prefix },
        ["_catalog"] if prefix.is_none() => return Route::Catalog,
        [name @ .., "manifests", reference] => (name, What::Manifest((*reference).to_owned())),
        [name @ .., "blobs", digest] => (name, What::Blob((*digest).to_owned())),
        [name @ .., "tags", "list"] => (name, What::Tags),
        [name @ .., "referrers", digest] => (name, What::Referrers((*digest).to_owned())),
        _ => return Route::Unknown,
    };
    if name.is_empty() {
        return Route::Unknown;
    }
    let visible = name.join("/");
    let full = match &prefix {
        Some(prefix) => format!("{prefix}/{visible}"),
        None => visible.clone(),
    };
    Route::Repository {
        name: Name { visible, full, prefix },
        what,
    }
}

/// Reads a raw query. The first of several wins. `+` stands for itself: nothing here can contain a blank, and media
/// types contain pluses that people forget to escape.
pub fn query(raw: Option<&str>) -> Query {
    let mut query = Query::default();
    for pair in raw.unwrap_or("").split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match key {
            "ns" => &mut query.ns,
            "n" => &mut query.n,
            "last" => &mut query.last,
            "artifactType" => &mut query.artifact_type,
            _ => continue,
        };
        if slot.is_none() {
            *slot = Some(decode(value).unwrap_or_else(|| value.to_owned()));
        }
    }
    query
}

fn decode(raw: &str) -> Option<String> {
    percent_decode_str(raw)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repository(path: &str) -> Option<(String, What)> {
        match parse(path) {
            Route::Repository { name, what } => Some((name.full, what)),
            _ => None,
        }
    }

    #[test]
    fn the_split_is_at_the_last_marker() {
        let manifest = |r: &str| What::Manifest(r.to_owned());
        assert_eq!(repository("/v2/a/manifests/1"), Some(("a".into(), manifest("1"))));
        assert_eq!(
            repository("/v2/foo/manifests/bar/manifests/latest"),
            Some(("foo/manifests/bar".into(), manifest("latest")))
        );
        assert_eq!(
            repository("/v2/a/blobs/b/tags/list"),
            Some(("a/blobs/b".into(), What::Tags))
        );
        assert_eq!(
            repository("/v2/a/blobs/sha256%3Aab"),
            Some(("a".into(), What::Blob("sha256:ab".into())))
        );
        assert_eq!(
            repository("/hub/v2/a/b/manifests/1"),
            Some(("hub/a/b".into(), manifest("1")))
        );
        assert_eq!(repository("/v2/a%2Fb/manifests/1"), None);
        assert_eq!(parse("/v2/a%2Fb/manifests/1"), Route::Malformed);
        assert_eq!(parse("/v2/a%00b/manifests/1"), Route::Malformed);
        assert_eq!(parse("/v2/%ff/manifests/1"), Route::Malformed);
        for path in [
            "/v2/manifests/1",
            "/v2/a",
            "/v2/a/tags",
            "/v2/a/manifests/1/",
            "/v3/",
            "/x",
            "/v2/a/blobs/uploads/",
        ] {
            assert_eq!(parse(path), Route::Unknown, "{path}");
        }
        for path in ["/v2", "/v2/"] {
            assert_eq!(parse(path), Route::Ping { prefix: None });
        }
        assert_eq!(
            parse("/hub/v2/"),
            Route::Ping {
                prefix: Some("hub".into())
            }
        );
        assert_eq!(parse("/v2/_catalog"), Route::Catalog);
        assert_eq!(parse("/"), Route::Root);
    }

    #[test]
    fn queries() {
        let q = query(Some(
            "ns=registry.example%3A5000&n=5&last=a&artifactType=a/b%2Bjson&x=1&ns=other",
        ));
        assert_eq!(q.ns.as_deref(), Some("registry.example:5000"));
        assert_eq!((q.n.as_deref(), q.last.as_deref()), (Some("5"), Some("a")));
        assert_eq!(q.artifact_type.as_deref(), Some("a/b+json"));
        assert_eq!(
            query(Some("artifactType=a/b+json")).artifact_type.as_deref(),
            Some("a/b+json")
        );
        assert_eq!(query(None), Query::default());
    }

    proptest! {
        #[test]
        fn nothing_panics(path in "/?[a-z%0-9/:._-]{0,60}", raw in "[a-z=&%0-9+]{0,60}") {
            let _ = parse(&path);
            let _ = query(Some(&raw));
        }
    }
}
