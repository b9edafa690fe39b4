//! How a text is made that may be the name of an image: for files that do not say what their texts are.

use crate::oci::name::looks_like_host;
use crate::oci::reference::{split_image, without_transport};
use crate::oci::{Digest, HostPort, Repository, Tag};

/// Parts that a name of an image has, beside its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub has_registry: bool,
    /// A slash within the repository.
    pub has_path: bool,
    pub has_tag: bool,
    pub has_digest: bool,
}

/// The parts of a text that is an image by its grammar; `None` for any other text.
pub fn shape(text: &str) -> Option<Shape> {
    let (name, tag, digest) = split_image(without_transport(text).ok()?);
    if tag.is_some_and(|tag| !Tag::fits(tag)) || digest.is_some_and(|digest| digest.parse::<Digest>().is_err()) {
        return None;
    }
    let host = name.split_once('/').filter(|(host, _)| looks_like_host(host));
    let repository = match host {
        Some((host, rest)) => {
            host.parse::<HostPort>().ok()?;
            rest
        }
        None => name,
    };
    let repository: Repository = repository.parse().ok()?;
    // Numbers alone are ports, addresses and sizes.
    let last = repository.as_str().rsplit('/').next().unwrap_or_default();
    let has_letter = last.contains(|c: char| c.is_ascii_lowercase());
    has_letter.then_some(Shape {
        has_registry: host.is_some(),
        has_path: repository.as_str().contains('/'),
        has_tag: tag.is_some(),
        has_digest: digest.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let parts = |text: &str| {
            let shape = shape(text)?;
            let letter = |has: bool, letter| if has { letter } else { '-' };
            Some(String::from_iter([
                letter(shape.has_registry, 'r'),
                letter(shape.has_path, 'p'),
                letter(shape.has_tag, 't'),
                letter(shape.has_digest, 'd'),
            ]))
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, expected) in [
            ("nginx", Some("----")),
            ("nginx:1.27", Some("--t-")),
            ("library/nginx:1.27", Some("-pt-")),
            ("ghcr.io/x/y:1", Some("rpt-")),
            ("registry.example:5000/y", Some("r---")),
            ("docker://quay.io/x/y:1", Some("rpt-")),
            (&format!("quay.io/x/y:1@{digest}"), Some("rptd")),
            ("8080:80", None),
            ("10.0.0.1:5000", None),
            ("/var/lib:/data", None),
            ("./a:ro", None),
            ("http://ghcr.io/x/y:1", None),
            ("Foo/Bar:1", None),
            ("{{ .Values.image }}", None),
            ("a b", None),
            ("", None),
            ("a@sha256:1", None),
        ] {
            assert_eq!(parts(text).as_deref(), expected, "{text}");
        }
    }
}
