//! What images of other archives are called here.

use super::super::error::BundleError;
use crate::oci::name::looks_like_host;
use crate::oci::{Digest, Repository, Tag};

/// A repository as the store calls it, and what was said of the image there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) repository: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<Digest>,
}

/// Reads a name as Docker does: what names no host is at docker.io, and one word there is an official image.
pub(super) fn parse(text: &str) -> Result<Name, BundleError> {
    let bad = |why: String| BundleError::Bad(format!("{text:?} is no name for an image: {why}"));
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|error| bad(format!("{error}")))?)),
        None => (text, None),
    };
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[slash..].find(':') {
        Some(at) => (&name[..slash + at], Some(&name[slash + at + 1..])),
        None => (name, None),
    };
    if let Some(tag) = tag {
        let _: Tag = tag.parse().map_err(|error| bad(format!("{error}")))?;
    }
    let (host, name) = match path.split_once('/') {
        Some((host, name)) if looks_like_host(host) => (host.to_ascii_lowercase(), name.to_owned()),
        _ => ("docker.io".to_owned(), path.to_owned()),
    };
    let host = if host == "index.docker.io" {
        "docker.io".to_owned()
    } else {
        host
    };
    let name = match host == "docker.io" && !name.contains('/') {
        true => format!("library/{name}"),
        false => name,
    };
    let _: Repository = name.parse().map_err(|error| bad(format!("{error}")))?;
    let repository = format!("{host}/{name}");
    super::super::catalog::check_repository(&repository).map_err(bad)?;
    Ok(Name {
        repository,
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// The tag in what an archive calls an image among its others: `1` or `alpine:1`.
pub(super) fn short_tag(short: &str) -> Option<String> {
    match short.parse::<Tag>() {
        Ok(_) => Some(short.to_owned()),
        Err(_) => full_tag(short),
    }
}

/// The tag of a name, also of one whose repository no registry could have.
pub(super) fn full_tag(name: &str) -> Option<String> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let (_, tag) = last.split_once(':')?;
    tag.parse::<Tag>().ok().map(|_| tag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_docker_reads_them() {
        for (text, repository, tag) in [
            ("alpine", "docker.io/library/alpine", None),
            ("alpine:3.22", "docker.io/library/alpine", Some("3.22")),
            ("a/b:1", "docker.io/a/b", Some("1")),
            ("registry.example:5000/a/b:1", "registry.example:5000/a/b", Some("1")),
            ("localhost/a:1", "localhost/a", Some("1")),
            ("Index.docker.io/a/b", "docker.io/a/b", None),
        ] {
            let name = parse(text).unwrap();
            assert_eq!(
                (name.repository.as_str(), name.tag.as_deref()),
                (repository, tag),
                "{text}"
            );
        }
        for bad in ["", "a b", "../x", "Alpine", "alpine:", "a/../b:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_with_digests() {
        let digest = Digest::sha256(b"x");
        let name = parse(&format!("alpine:3.22@{digest}")).unwrap();
        assert_eq!(
            (name.repository.as_str(), name.tag.as_deref(), name.digest),
            ("docker.io/library/alpine", Some("3.22"), Some(digest))
        );
        let name = parse(&format!("registry.example:5000/a/b@{digest}")).unwrap();
        assert_eq!((name.tag, name.digest), (None, Some(digest)));
        for bad in ["alpine@", "alpine@sha256:abc", "alpine@3.22", "a@b@c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_in_short_names() {
        for (short, tag) in [
            ("3.22", Some("3.22")),
            ("alpine:3.22", Some("3.22")),
            ("docker.io/library/alpine:1", Some("1")),
            ("alpine:", None),
            ("@sha256:x", None),
        ] {
            assert_eq!(short_tag(short).as_deref(), tag, "{short}");
        }
    }
}
