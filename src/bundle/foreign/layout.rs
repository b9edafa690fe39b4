//! OCI image layouts (image-spec, image-layout.md): `skopeo copy … oci:` and `oci-archive:`, podman, buildah, oras,
//! crane, cosign, Hauler, `ctr image export`, and `docker save` since Docker 25.

use std::collections::HashMap;

use serde::Deserialize;

use super::super::error::BundleError;
use super::Found;
use super::entry::{Entry, Kind};
use super::gather::{Gatherer, Naming};
use super::tree::Tree;
use crate::oci::Digest;

const MAX_INDEX_BYTES: u64 = 64 << 20;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Digest,
    media_type: Option<String>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

pub(super) fn read(tree: &Tree, found: &mut Found) -> Result<Vec<Entry>, BundleError> {
    let bytes = tree.small("index.json", MAX_INDEX_BYTES)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|error| BundleError::NotABundle(format!("index.json: {error}")))?;
    let listed = index.manifests.unwrap_or_default();
    if listed.is_empty() {
        return Err(BundleError::NotABundle("index.json names no image".to_owned()));
    }
    let mut gatherer = Gatherer::new(tree, Naming::Layout);
    let mut entries: Vec<Entry> = Vec::new();
    let mut places: HashMap<Digest, usize> = HashMap::new();
    for descriptor in &listed {
        let place = *places.entry(descriptor.digest).or_insert(entries.len());
        let annotation = |key: &str| descriptor.annotations.as_ref()?.get(key).map(String::as_str);
        let kind = annotation("kind").map_or(Kind::Image, Kind::of);
        if place == entries.len() {
            let mut entry = Entry::new(descriptor.digest);
            entry.kind = kind;
            gatherer.fill(&mut entry, descriptor.media_type.as_deref(), None, found)?;
            entries.push(entry);
        } else if kind == Kind::Image {
            // Listed for itself as well as for an image.
            entries[place].kind = Kind::Image;
        }
        add_labels(&mut entries[place], annotation(IMAGE_NAME), annotation(REF_NAME));
    }
    Ok(entries)
}

/// `full`: containerd's annotation, a full name. `short`: the specification's, a tag for some tools and a full name for
/// others. Where both are there they say the same.
fn add_labels(entry: &mut Entry, full: Option<&str>, short: Option<&str>) {
    match full.filter(|name| !name.is_empty()) {
        // Kubelet calls images by their IDs too.
        Some(id) if id.parse::<Digest>().is_ok() => entry.id = id.parse().ok(),
        Some(name) => {
            entry.names.insert(name.to_owned());
        }
        None => {}
    }
    match short.filter(|name| !name.is_empty()) {
        Some(name) if name.parse::<Digest>().is_ok() || name.starts_with('@') => {}
        Some(name) if name.contains('/') && full.is_none() => {
            entry.names.insert(name.to_owned());
        }
        Some(name) if name.contains('/') => {}
        Some(name) => {
            entry.shorts.insert(name.to_owned());
        }
        None => {}
    }
}
