//! OCI image layouts (image-spec, image-layout.md): `skopeo copy … oci:` and `oci-archive:`, podman, buildah, oras, and
//! `docker save` since Docker 25.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::super::catalog::Image;
use super::super::error::BundleError;
use super::name::choose;
use super::tree::Tree;
use super::{Found, Place};
use crate::oci::Digest;
use crate::oci::manifest::{MAX_MANIFEST_BYTES, Manifest};

const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_DEPTH: usize = 8;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Digest,
    media_type: Option<String>,
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

pub(super) fn read(tree: &Tree, given: Option<&str>, found: &mut Found) -> Result<(), BundleError> {
    let bytes = tree.small("index.json", MAX_INDEX_BYTES)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|error| BundleError::NotABundle(format!("index.json: {error}")))?;
    if index.manifests.is_empty() {
        return Err(BundleError::Nothing("index.json names no image".to_owned()));
    }
    let mut seen = BTreeSet::new();
    let digests: BTreeSet<&Digest> = index.manifests.iter().map(|descriptor| &descriptor.digest).collect();
    let alone = digests.len() == 1;
    for descriptor in &index.manifests {
        let short = descriptor
            .annotations
            .get("org.opencontainers.image.ref.name")
            .map(String::as_str);
        let own: Vec<String> = [
            descriptor
                .annotations
                .get("io.containerd.image.name")
                .map(String::as_str),
            short,
        ]
        .into_iter()
        .flatten()
        .filter(|name| name.contains('/'))
        .map(str::to_owned)
        .collect();
        // Two of them say the same.
        let names = choose(given, &own[..own.len().min(1)], short, alone)?;
        let mut absent = BTreeSet::new();
        let (media_type, size) = gather(tree, descriptor, 0, found, &mut absent)?;
        for name in names {
            if seen.insert((name.repository.clone(), name.tag.clone())) {
                found.images.push(Image {
                    repository: name.repository,
                    tag: name.tag,
                    digest: descriptor.digest,
                    media_type: media_type.clone(),
                    size,
                    platforms: Vec::new(),
                    absent: absent.iter().copied().collect(),
                    checked_ms: None,
                    private: false,
                    referrers: Vec::new(),
                });
            }
        }
    }
    Ok(())
}

/// A manifest and all below it that is there. Children of an index that are not are noted; anything else that is not is
/// an error.
fn gather(
    tree: &Tree,
    descriptor: &Descriptor,
    depth: usize,
    found: &mut Found,
    absent: &mut BTreeSet<Digest>,
) -> Result<(String, u64), BundleError> {
    if depth > MAX_DEPTH {
        return Err(BundleError::hostile("indexes within indexes without end"));
    }
    let name = place(&descriptor.digest);
    let bytes = tree.small(&name, MAX_MANIFEST_BYTES as u64)?;
    let manifest = Manifest::parse(&bytes, descriptor.media_type.as_deref())
        .map_err(|error| BundleError::NotABundle(format!("{}: {error}", descriptor.digest)))?;
    let size = bytes.len() as u64;
    found.add(
        descriptor.digest,
        size,
        Some(manifest.media_type.clone()),
        Place::File(name),
    )?;
    for child in &manifest.descriptors {
        let name = place(&child.digest);
        match (tree.size(&name), child.is_manifest) {
            (Some(_), true) => {
                let below = Descriptor {
                    digest: child.digest,
                    media_type: child.media_type.clone(),
                    annotations: Default::default(),
                };
                gather(tree, &below, depth + 1, found, absent)?;
            }
            (Some(size), false) => found.add(child.digest, size, None, Place::File(name))?,
            (None, true) => {
                absent.insert(child.digest);
            }
            (None, false) => {
                return Err(BundleError::Incomplete(vec![format!(
                    "{} of {}",
                    child.digest, descriptor.digest
                )]));
            }
        }
    }
    Ok((manifest.media_type, size))
}

fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}
