//! Where a Location may lead (R-U20, R-U21, R-X3, R-X4). Addresses are `guard`'s business; this is about the URL.

use reqwest::StatusCode;
use reqwest::header::HeaderValue;
use url::Url;

use super::body::one_line;
use super::realm::names;
use super::transport::shown;
use crate::oci::HostPort;

/// Redirects that are followed for one request (R-X13).
pub const MAX_HOPS: usize = 5;

pub fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where this hop leads; `Err` says why it may not be followed.
pub fn target(from: &Url, location: Option<&HeaderValue>) -> Result<Url, String> {
    let at = from.host_str().unwrap_or_default();
    let location = location.ok_or_else(|| format!("{at} redirects without saying where"))?;
    // Not `to_str`: paths that are not ASCII come unescaped from some stores.
    let text = std::str::from_utf8(location.as_bytes()).ok();
    let next = text.and_then(|text| from.join(text.trim()).ok());
    let mut next = next.ok_or_else(|| format!("{at} redirects to what is not a URL"))?;
    if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
        let scheme = one_line(next.scheme(), 40);
        return Err(format!("{at} redirects to a {scheme} address"));
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(format!("{at} redirects to {} with user info", shown(&next)));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(format!("{at} redirects from https down to {}", shown(&next)));
    }
    next.set_fragment(None);
    Ok(next)
}

/// Returns true if the path is one of a registry's API. A store may have `/v2/` in its paths, too: the reference registry keeps
/// blobs as `docker/registry/v2/blobs/sha256/…/data`.
pub fn is_registry(url: &Url) -> bool {
    let Some((_, rest)) = url.path().split_once("/v2/") else {
        return false;
    };
    let mut from_end = rest.rsplit('/');
    match (from_end.next(), from_end.next()) {
        (Some(_), Some("blobs" | "manifests" | "referrers")) => true,
        (last, before) => (before, last) == (Some("tags"), Some("list")),
    }
}

/// Whether the operator's `redirect_hosts` decide about `next`: `Some(true)` listed, `Some(false)` not listed although
/// there is a list, `None` no list.
pub fn listed(next: &Url, redirect_hosts: Option<&[HostPort]>) -> Option<bool> {
    redirect_hosts.map(|hosts| hosts.iter().any(|entry| names(entry, next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(from: &str, location: &str) -> Result<String, String> {
        let header = HeaderValue::from_str(location).unwrap();
        target(&from.parse().unwrap(), Some(&header)).map(|url| url.to_string())
    }

    #[test]
    fn relative_locations_belong_to_their_hop() {
        let from = "https://r.example/v2/a/blobs/x?ns=1";
        assert_eq!(go(from, "/data/x?sig=1").unwrap(), "https://r.example/data/x?sig=1");
        assert_eq!(go(from, "y#part").unwrap(), "https://r.example/v2/a/blobs/y");
        assert_eq!(go(from, "//cdn.example/y").unwrap(), "https://cdn.example/y");
        assert_eq!(
            go("http://r.example/", "https://r.example/").unwrap(),
            "https://r.example/"
        );
    }

    #[test]
    fn refusals_say_no_secret() {
        for bad in [
            "http://r.example/x?sig=hunter2",
            "https://user:hunter2@cdn.example/x",
            "ftp://cdn.example/hunter2",
            "file:///etc/hunter2",
            "https://",
            "http://[::1",
        ] {
            let error = go("https://r.example/", bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(target(&"https://r.example/".parse().unwrap(), None).is_err());
        let long = go("https://r.example/", &format!("{}:x", "a".repeat(10_000))).unwrap_err();
        assert!(long.len() < 200, "{} bytes", long.len());
    }

    #[test]
    fn registries_and_stores() {
        for (path, expected) in [
            ("/v2/a/b/blobs/sha256:00", true),
            ("/base/v2/a/manifests/1.0", true),
            ("/v2/a/referrers/sha256:00", true),
            ("/v2/a/tags/list", true),
            ("/docker/registry/v2/blobs/sha256/00/0011/data", false),
            ("/v2/data/x", false),
            ("/v2/", false),
            ("/data/blobs/sha256:00", false),
        ] {
            let url: Url = format!("https://r.example{path}?sig=blobs/x").parse().unwrap();
            assert_eq!(is_registry(&url), expected, "{path}");
        }
    }

    #[test]
    fn the_operators_list() {
        let hosts: Vec<HostPort> = ["cdn.example", "10.0.0.7:9000"]
            .iter()
            .map(|h| h.parse().unwrap())
            .collect();
        let on = |url: &str| listed(&url.parse().unwrap(), Some(&hosts));
        assert_eq!(on("https://cdn.example/x"), Some(true));
        assert_eq!(on("http://10.0.0.7:9000/x"), Some(true));
        assert_eq!(on("http://10.0.0.7/x"), Some(false));
        assert_eq!(on("https://evil.cdn.example/x"), Some(false));
        assert_eq!(listed(&"https://x.example".parse().unwrap(), None), None);
    }
}
