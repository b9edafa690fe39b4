//! What images of other archives are called here.

use super::super::error::BundleError;
use crate::oci::name::looks_like_host;
use crate::oci::{Repository, Tag};

/// A repository as the store calls it, and a tag if one was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) repository: String,
    pub(super) tag: Option<String>,
}

/// Reads a name as Docker does: what names no host is at docker.io, and one word there is an official image.
pub(super) fn parse(text: &str) -> Result<Name, BundleError> {
    let bad = |why: String| BundleError::Bad(format!("{text:?} is no name for an image: {why}"));
    let slash = text.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match text[slash..].find(':') {
        Some(at) => (&text[..slash + at], Some(&text[slash + at + 1..])),
        None => (text, None),
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
    })
}

/// The names of one image: the one that was given, or those that the archive gives it.
///
/// `own` are full names, `short` what the archive calls it among its other images. `alone`: there is no other.
pub(super) fn choose(
    given: Option<&str>,
    own: &[String],
    short: Option<&str>,
    alone: bool,
) -> Result<Vec<Name>, BundleError> {
    let Some(given) = given else {
        let names: Vec<Name> = own
            .iter()
            .filter_map(|name| parse(name).ok())
            .filter(|name| name.tag.is_some())
            .collect();
        return match names.is_empty() {
            true => Err(BundleError::Bad(format!(
                "the archive does not say where {} is from: give it a name with --as",
                short.map_or("its image".to_owned(), |short| format!("its image {short}"))
            ))),
            false => Ok(names),
        };
    };
    let mut name = parse(given)?;
    if alone {
        name.tag = name.tag.or_else(|| Some("latest".to_owned()));
        return Ok(vec![name]);
    }
    if name.tag.is_some() {
        return Err(BundleError::Bad(format!(
            "several images are inside: {given} would be the name of all of them. Give --as without a tag"
        )));
    }
    let own = own.iter().find_map(|name| parse(name).ok()?.tag);
    let tag = short
        .filter(|short| short.parse::<Tag>().is_ok())
        .map(str::to_owned)
        .or(own);
    match tag {
        Some(tag) => Ok(vec![Name { tag: Some(tag), ..name }]),
        None => Err(BundleError::Bad(
            "several images are inside, and one of them has no tag".to_owned(),
        )),
    }
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
    fn who_is_called_what() {
        let own = ["docker.io/library/a:1".to_owned()];
        assert_eq!(
            choose(None, &own, Some("1"), false).unwrap()[0].repository,
            "docker.io/library/a"
        );
        let nameless = |short| choose(None, &[], short, true).unwrap_err().to_string();
        assert!(
            nameless(Some("1")).contains("where its image 1 is from"),
            "{}",
            nameless(Some("1"))
        );
        assert!(nameless(None).contains("where its image is from"), "{}", nameless(None));
        assert_eq!(
            choose(Some("x.y/b"), &[], None, true).unwrap()[0].tag.as_deref(),
            Some("latest")
        );
        assert_eq!(
            choose(Some("x.y/b"), &own, Some("2"), false).unwrap()[0].tag.as_deref(),
            Some("2")
        );
        assert!(choose(Some("x.y/b:3"), &own, Some("2"), false).is_err());
    }
}
