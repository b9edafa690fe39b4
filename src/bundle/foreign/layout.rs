//! OCI image layouts (image-spec, image-layout.md): `skopeo copy … oci:` and `oci-archive:`, podman, buildah, oras,
//! crane, cosign, Hauler, `ctr image export`, and `docker save` since Docker 25.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::super::error::BundleError;
use super::super::report::NotTaken;
use super::Found;
use super::entry::{Entry, Kind};
use super::gather::{Gatherer, Naming};
use super::tree::Tree;
use crate::oci::Digest;
use crate::text::excerpt;

const MAX_INDEX_BYTES: u64 = 64 << 20;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

/// A value of another type than expected spoils its own entry alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    digest: Value,
    #[serde(default)]
    media_type: Value,
    #[serde(default)]
    annotations: Value,
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
        let annotation = |key: &str| descriptor.annotations[key].as_str();
        let digest = match descriptor.digest.as_str().unwrap_or_default().parse::<Digest>() {
            Ok(digest) => digest,
            Err(error) => {
                let name = annotation(IMAGE_NAME).or(annotation(REF_NAME));
                found.left.push(unread(&descriptor.digest, name, &error.to_string()));
                continue;
            }
        };
        let place = *places.entry(digest).or_insert(entries.len());
        let kind = annotation("kind").map_or(Kind::Image, Kind::of);
        if place == entries.len() {
            let mut entry = Entry::new(digest);
            entry.kind = kind;
            gatherer.fill(&mut entry, descriptor.media_type.as_str(), None, found)?;
            entries.push(entry);
        } else if kind == Kind::Image {
            // Listed for itself as well as for an image.
            entries[place].kind = Kind::Image;
        }
        add_labels(&mut entries[place], annotation(IMAGE_NAME), annotation(REF_NAME));
    }
    if let (true, Some(left)) = (entries.is_empty(), found.left.first()) {
        return Err(BundleError::Bad(format!("nothing in the archive can be taken: {left}")));
    }
    Ok(entries)
}

fn unread(digest: &Value, name: Option<&str>, why: &str) -> NotTaken {
    let digest = match digest.as_str() {
        Some(text) => excerpt(text),
        None => excerpt(&digest.to_string()),
    };
    NotTaken {
        name: name.map(excerpt),
        digest,
        kind: "other".to_owned(),
        reason: format!("its digest cannot be read: {why}"),
        option: None,
    }
}

/// `full`: containerd's annotation, a full name. `short`: the specification's, a tag for some tools and a full name for
/// others. Where both are there they mostly say the same.
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
        Some(name) if name.contains('/') => {
            let is_other = |full: &str| super::name::parse(full).ok() != super::name::parse(name).ok();
            entry.names.extend(full.is_none_or(is_other).then(|| name.to_owned()));
        }
        Some(name) => {
            entry.shorts.insert(name.to_owned());
        }
        None => {}
    }
}
