//! The entries that an archive lists, before it is decided which of them are taken.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::oci::Digest;

/// An image of an archive, or what belongs to one.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    /// Bytes of its manifest.
    pub(super) size: u64,
    /// Full names that the archive gives it, as they stand there.
    pub(super) names: BTreeSet<String>,
    /// Short names among the archive's other images: tags, mostly.
    pub(super) shorts: BTreeSet<String>,
    pub(super) kind: Kind,
    /// The image ID, by which Docker's users know it.
    pub(super) id: Option<Digest>,
    /// The manifest that it refers to by its own word.
    pub(super) subject: Option<Digest>,
    /// The manifest that a signature is about, by its payload.
    pub(super) signs: Option<Digest>,
    /// As a list of referrers has it; for one with a subject.
    pub(super) listed: Option<Value>,
    /// Its own manifest and those below it that are here.
    pub(super) manifests: BTreeSet<Digest>,
    /// Everything that comes with it: manifests, configs, layers.
    pub(super) parts: Vec<Digest>,
    /// Named, and not here whole: other platforms, layers that their publisher keeps elsewhere.
    pub(super) absent: BTreeSet<Digest>,
    pub(super) platforms: Vec<String>,
    /// Set if its manifest was made here.
    pub(super) is_made: bool,
    /// Why it cannot be taken.
    pub(super) fault: Option<String>,
}

/// The kind of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Image,
    /// Found by clients under a tag made from the image's digest and this ending (cosign).
    Signature(&'static str),
    /// Found by clients in the image's list of referrers.
    Referrer,
    Other(String),
}

impl Kind {
    /// Reads a `kind` annotation, as cosign and Hauler write it: `dev.cosignproject.cosign/sigs`, `dev.hauler/image`,
    /// `dev.hauler/referrers/<hex>`.
    pub(super) fn of(annotation: &str) -> Kind {
        let mut parts = annotation.split('/');
        let first = parts.next().unwrap_or_default();
        match parts.next().unwrap_or(first).to_ascii_lowercase().as_str() {
            "" | "image" | "imageindex" | "index" => Kind::Image,
            "sig" | "sigs" | "signature" | "signatures" => Kind::Signature(".sig"),
            "att" | "atts" | "attestation" | "attestations" => Kind::Signature(".att"),
            "sbom" | "sboms" => Kind::Signature(".sbom"),
            "referrer" | "referrers" => Kind::Referrer,
            _ => Kind::Other(annotation.to_owned()),
        }
    }

    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Signature(".sig") => "signature",
            Kind::Signature(".att") => "attestation",
            Kind::Signature(_) => "sbom",
            Kind::Referrer => "referrer",
            Kind::Other(_) => "other",
        }
    }
}

impl Entry {
    /// An entry of which only its digest is known.
    pub(super) fn new(digest: Digest) -> Entry {
        Entry {
            digest,
            media_type: String::new(),
            size: 0,
            names: BTreeSet::new(),
            shorts: BTreeSet::new(),
            kind: Kind::Image,
            id: None,
            subject: None,
            signs: None,
            listed: None,
            manifests: BTreeSet::from([digest]),
            parts: Vec::new(),
            absent: BTreeSet::new(),
            platforms: Vec::new(),
            is_made: false,
            fault: None,
        }
    }

    /// All that the archive calls it.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.names.iter().chain(&self.shorts).map(String::as_str)
    }
}
