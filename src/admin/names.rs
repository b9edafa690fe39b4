//! What an operator calls an image: as clients do, `latest` where no tag is given.
//!
//! What was held under an upstream that is no longer configured, or that the configuration now forbids, can still be
//! looked at and removed: by the name that `ls` shows.

use super::{Admin, AdminError};
use crate::events::{Action, Event, Events};
use crate::oci::reference::{split_image, without_transport};
use crate::oci::{Reference, Tag};
use crate::pull::{PullError, Target};
use crate::store::ImageName;

/// An image as it is meant.
pub struct Wanted {
    /// The repository in the store.
    pub key: String,
    pub reference: Reference,
    /// Whom to ask for it, or why nobody.
    pub target: Result<Target, PullError>,
}

impl Wanted {
    /// As the store has it.
    pub fn reference(&self) -> String {
        self.reference.to_string()
    }

    /// An operator did something about it.
    pub fn note(&self, events: &Events, action: Action, bytes: Option<u64>) {
        events.emit(action, |bare| Event {
            repository: Some(self.key.as_str().into()),
            reference: Some(self.reference().into()),
            digest: match self.reference {
                Reference::Digest(digest) => Some(digest),
                Reference::Tag(_) => None,
            },
            bytes,
            ..bare
        });
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        ImageName::new(&self.key, &self.reference()).fmt(f)
    }
}

/// Repository and reference. A digest wins over a tag beside it, as with every client.
pub(super) fn split(text: &str) -> Result<(&str, Reference), AdminError> {
    let (name, tag, digest) = split_image(text);
    let tag = tag.map(str::parse::<Tag>).transpose()?;
    let reference = match (digest, tag) {
        (Some(digest), _) => Reference::Digest(digest.parse()?),
        (None, Some(tag)) => Reference::Tag(tag),
        (None, None) => Reference::Tag("latest".parse()?),
    };
    Ok((name, reference))
}

impl Admin {
    pub(super) async fn wanted(&self, text: &str) -> Result<Wanted, AdminError> {
        let (name, reference) = split(without_transport(text.trim())?)?;
        match self.inner.pull.resolve(name, None) {
            Ok(target) => Ok(Wanted {
                key: target.key.to_string(),
                reference,
                target: Ok(target),
            }),
            Err(error) => {
                let (key, known) = (name.to_owned(), ImageName::new(name, &reference.to_string()));
                let is_held = self
                    .work(move |admin| admin.store().image(&known.repository, &known.reference).is_some())
                    .await?;
                if !is_held {
                    return Err(AdminError::Name(error));
                }
                Ok(Wanted {
                    key,
                    reference,
                    target: Err(error),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, name, reference) in [
            ("alpine", "alpine", "latest"),
            ("alpine:3.22", "alpine", "3.22"),
            ("docker.io/library/alpine", "docker.io/library/alpine", "latest"),
            ("registry.example:5000/a/b", "registry.example:5000/a/b", "latest"),
            ("registry.example:5000/a/b:1", "registry.example:5000/a/b", "1"),
            (&format!("alpine@{digest}"), "alpine", &digest),
            (&format!("alpine:3.22@{digest}"), "alpine", &digest),
        ] {
            let (found, parsed) = split(text).unwrap();
            assert_eq!((found, parsed.to_string().as_str()), (name, reference), "{text}");
        }
        for bad in ["alpine:", "alpine:-x", "alpine@sha256:1", "alpine@", "a:b@x"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
