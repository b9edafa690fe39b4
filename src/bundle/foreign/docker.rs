//! What `docker save` wrote before Docker 25, and `skopeo copy … docker-archive:` still does: configs and uncompressed
//! layers, and no manifest. The manifest is made here; the bytes of config and layers stay as they are (L9).

use serde::Deserialize;
use serde_json::json;

use super::super::catalog::Image;
use super::super::error::BundleError;
use super::name::choose;
use super::tree::Tree;
use super::{Found, Place};
use crate::oci::{Digest, media_type};

const MAX_LIST_BYTES: u64 = 16 << 20;
const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_LAYERS: usize = 1000;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

pub(super) fn read(tree: &Tree, given: Option<&str>, found: &mut Found) -> Result<(), BundleError> {
    let bytes = tree.small("manifest.json", MAX_LIST_BYTES)?;
    let images: Vec<Saved> =
        serde_json::from_slice(&bytes).map_err(|error| BundleError::NotABundle(format!("manifest.json: {error}")))?;
    for image in &images {
        one(tree, image, given, images.len() == 1, found)?;
    }
    match found.images.is_empty() {
        true => Err(BundleError::Nothing("manifest.json names no image".to_owned())),
        false => Ok(()),
    }
}

fn one(tree: &Tree, image: &Saved, given: Option<&str>, alone: bool, found: &mut Found) -> Result<(), BundleError> {
    let own = image.repo_tags.clone().unwrap_or_default();
    let names = choose(given, &own, None, alone)?;
    let config = tree.small(&image.config, MAX_CONFIG_BYTES)?;
    let diff_ids = serde_json::from_slice::<Config>(&config)
        .map_err(|error| BundleError::NotABundle(format!("{}: {error}", image.config)))?
        .rootfs
        .diff_ids;
    if diff_ids.len() != image.layers.len() || diff_ids.len() > MAX_LAYERS {
        return Err(BundleError::NotABundle(format!(
            "{} names {} layers, where manifest.json has {}",
            image.config,
            diff_ids.len(),
            image.layers.len()
        )));
    }
    let config_digest = Digest::sha256(&config);
    let mut layers = Vec::new();
    for (diff_id, file) in diff_ids.iter().zip(&image.layers) {
        let size = tree.size(file);
        let size = size.ok_or_else(|| BundleError::NotABundle(format!("it has no file {file:?}")))?;
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": diff_id,
            "size": size,
        }));
        found.add(*diff_id, size, None, Place::File(file.clone()))?;
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config.len(),
        },
        "layers": layers,
    });
    let manifest = serde_json::to_vec(&manifest).map_err(|error| BundleError::Bad(error.to_string()))?;
    let digest = Digest::sha256(&manifest);
    let size = manifest.len() as u64;
    found.add(
        config_digest,
        config.len() as u64,
        None,
        Place::File(image.config.clone()),
    )?;
    found.add(
        digest,
        size,
        Some(media_type::OCI_MANIFEST.to_owned()),
        Place::Made(manifest),
    )?;
    for name in names {
        found.images.push(Image {
            repository: name.repository,
            tag: name.tag,
            digest,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            size,
            platforms: Vec::new(),
            absent: Vec::new(),
            checked_ms: None,
            private: false,
            referrers: Vec::new(),
        });
    }
    Ok(())
}
