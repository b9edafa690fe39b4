//! What a manifest is asked by: a tag or a digest (R-S5).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::{Digest, DigestError};

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true if a text is a tag by the grammar.
    pub fn fits(text: &str) -> bool {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        (1..=128).contains(&bytes.len()) && word(bytes[0]) && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
    }

    /// Whether it is one that tools write beside an image, and not an image's own: `sha256-<64 hex>` and what begins so.
    pub fn is_companion(&self) -> bool {
        let hex = self
            .0
            .strip_prefix("sha256-")
            .or_else(|| self.0.strip_prefix("sha512-"));
        let hex = hex.and_then(|hex| hex.get(..64));
        hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// The tag under which the referrers of `subject` are listed by registries without a referrers
    /// API: `sha256-<hex>`, the encoded part cut to 64 characters (distribution-spec § Referrers Tag Schema; R-S21).
    pub fn of_referrers(subject: &Digest) -> Tag {
        let hex = subject.hex();
        Tag(format!("{}-{}", subject.algorithm().as_str(), &hex[..hex.len().min(64)]).into())
    }
}

/// Why a text is no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tag: expected 1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'")]
pub struct TagError(String);

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Tag, TagError> {
        if Tag::fits(text) {
            Ok(Tag(text.into()))
        } else {
            Err(TagError(text.chars().take(160).collect()))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Words that other tools put before an image in a registry: skopeo and cri-o; Helm, Flux and oras; what Kubernetes reports.
const TRANSPORTS: [&str; 3] = ["docker://", "oci://", "docker-pullable://"];

/// An image without the transport that skopeo, Helm and others write before it.
///
/// Errors: another scheme stands there, such as `https`.
pub fn without_transport(text: &str) -> Result<&str, TransportError> {
    let bare = TRANSPORTS.iter().find_map(|transport| text.strip_prefix(transport));
    match (bare, text.split_once("://")) {
        (Some(image), _) => Ok(image),
        (None, Some((scheme, image))) => Err(TransportError {
            scheme: crate::text::excerpt(scheme),
            image: crate::text::excerpt(image),
        }),
        (None, None) => Ok(text),
    }
}

/// An address where the name of an image belongs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {scheme}://{image}, expected the name of an image: write {image}")]
pub struct TransportError {
    scheme: String,
    image: String,
}

/// What people write for an image, in its parts, none of them checked: name, tag, digest.
///
/// `registry.example:5000/a/b:1@sha256:…` has all three; a colon before the last slash is a port.
pub fn split_image(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    match rest[slash..].find(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..]), digest),
        None => (rest, None, digest),
    }
}

/// A tag or a digest; a digest if and only if it contains `:`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error(transparent)]
    Tag(#[from] TagError),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Ok(if text.contains(':') {
            Reference::Digest(text.parse()?)
        } else {
            Reference::Tag(text.parse()?)
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for good in ["latest", "3.22", "_x", "A", "a-b.c_d"] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".INVALID_MANIFEST_NAME",
            "-a",
            "a/b",
            "a b",
            "a%2f",
            "é",
            &"a".repeat(129),
        ] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn images_are_split() {
        for (text, parts) in [
            ("alpine", ("alpine", None, None)),
            ("alpine:3", ("alpine", Some("3"), None)),
            ("h:5000/a/b", ("h:5000/a/b", None, None)),
            ("h:5000/a/b:1@sha256:x", ("h:5000/a/b", Some("1"), Some("sha256:x"))),
            ("a@", ("a", None, Some(""))),
            (":", ("", Some(""), None)),
        ] {
            assert_eq!(split_image(text), parts, "{text}");
        }
    }

    #[test]
    fn transports_of_other_tools_are_left_out() {
        for (text, image) in [
            ("docker://alpine:3", "alpine:3"),
            ("oci://ghcr.io/x/chart:1", "ghcr.io/x/chart:1"),
            ("h:5000/a/b:1", "h:5000/a/b:1"),
        ] {
            assert_eq!(without_transport(text).unwrap(), image);
        }
        let error = without_transport("https://ghcr.io/x/y").unwrap_err().to_string();
        assert!(
            error.ends_with("expected the name of an image: write ghcr.io/x/y"),
            "{error}"
        );
    }

    #[test]
    fn a_colon_makes_a_digest() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(
            "sha256:totallywrong".parse::<Reference>(),
            Err(ReferenceError::Digest(_))
        ));
    }

    #[test]
    fn referrers_tag_is_cut_to_64() {
        let digest = Digest::of(crate::oci::Algorithm::Sha512, b"x");
        let tag = Tag::of_referrers(&digest);
        assert_eq!(tag.as_str().len(), "sha512-".len() + 64);
        assert!(tag.is_companion() && !"sha256-x".parse::<Tag>().unwrap().is_companion());
        assert!(tag.as_str().parse::<Tag>().is_ok());
    }
}
