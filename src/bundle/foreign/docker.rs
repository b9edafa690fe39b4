//! Docker archives, as `docker save` wrote them before Docker 25 and other tools still do: configs and layers, and no
//! manifest. The manifest is made here; the bytes of config and layers stay as they are (L9).
//!
//! The config names the layers by the digests of their uncompressed tars. Docker, skopeo and podman write them so,
//! and their bytes are checked where all are, in the store. crane, ko, kaniko, jib and Bazel write them compressed:
//! such a layer is unpacked here, within limits, and held against the config, and the manifest names the bytes as
//! they are.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::rc::Rc;

use serde::Deserialize;
use serde_json::json;

use super::super::BUFFER;
use super::super::error::BundleError;
use super::super::select::Platform;
use super::super::unpack::{Compression, Limits, Refusal, Unpacked};
use super::entry::Entry;
use super::tree::Tree;
use super::{Found, Place};
use crate::oci::{Algorithm, Digest, Hasher, media_type};

const MAX_LIST_BYTES: u64 = 16 << 20;
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Configs of all images together, each read once.
const MAX_CONFIGS_BYTES: u64 = 256 << 20;
const MAX_LAYERS: usize = 1000;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// A layer as it is in the archive.
#[derive(Clone, Debug)]
enum Layer {
    /// Its digest is what the config says, or it is found damaged when it is read.
    Plain {
        size: u64,
    },
    Compressed {
        media_type: &'static str,
        digest: Digest,
        size: u64,
        /// Digests of what it unpacks to, by each algorithm that a config uses.
        unpacked: Vec<Digest>,
    },
    Faulty(String),
}

pub(super) fn read(tree: &Tree, found: &mut Found) -> Result<Vec<Entry>, BundleError> {
    let bytes = tree.small("manifest.json", MAX_LIST_BYTES)?;
    let images: Vec<Saved> =
        serde_json::from_slice(&bytes).map_err(|error| BundleError::NotABundle(format!("manifest.json: {error}")))?;
    if images.is_empty() {
        return Err(BundleError::NotABundle("manifest.json names no image".to_owned()));
    }
    let configs = configs(tree, &images)?;
    let layers = measure(tree, &images, &configs)?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut places: HashMap<Digest, usize> = HashMap::new();
    for image in &images {
        let entry = one(image, &configs, &layers, found)?;
        // Listed twice, with other names.
        let place = *places.entry(entry.digest).or_insert(entries.len());
        match entries.get_mut(place) {
            Some(known) => known.names.extend(entry.names),
            None => entries.push(entry),
        }
    }
    Ok(entries)
}

/// A config that was read.
struct Known {
    digest: Digest,
    size: u64,
    platform: Option<String>,
    diff_ids: Vec<Digest>,
    /// Why no image with it can be taken.
    fault: Option<String>,
}

impl Known {
    fn faulty(named: &[u8], fault: String) -> Known {
        Known {
            digest: Digest::sha256(named),
            size: 0,
            platform: None,
            diff_ids: Vec::new(),
            fault: Some(fault),
        }
    }

    fn read(tree: &Tree, name: &str) -> Result<Known, BundleError> {
        if tree.size(name).is_none() {
            let fault = format!("its config {name:?} is not in the archive");
            return Ok(Known::faulty(name.as_bytes(), fault));
        }
        let config = match tree.document(name, MAX_CONFIG_BYTES)? {
            Ok(config) => config,
            Err(why) => {
                let fault = format!("its config cannot be taken: {why}");
                return Ok(Known::faulty(name.as_bytes(), fault));
            }
        };
        Ok(match serde_json::from_slice::<Config>(&config) {
            Ok(parsed) => Known {
                digest: Digest::sha256(&config),
                size: config.len() as u64,
                platform: serde_json::from_slice::<Platform>(&config)
                    .ok()
                    .and_then(|platform| platform.text()),
                diff_ids: parsed.rootfs.diff_ids.unwrap_or_default(),
                fault: None,
            },
            Err(error) => Known::faulty(&config, format!("its config {name:?} cannot be read: {error}")),
        })
    }
}

/// Reads each config once, however many images and names share it.
fn configs<'a>(tree: &Tree, images: &'a [Saved]) -> Result<HashMap<&'a str, Rc<Known>>, BundleError> {
    let mut configs: HashMap<&str, Rc<Known>> = HashMap::new();
    let mut by_offset: HashMap<u64, Rc<Known>> = HashMap::new();
    let mut bytes = 0;
    for image in images {
        let name = image.config.as_str();
        if configs.contains_key(name) {
            continue;
        }
        let offset = tree.offset(name);
        let known = match offset.and_then(|offset| by_offset.get(&offset)) {
            Some(known) => known.clone(),
            None => {
                bytes += tree.size(name).unwrap_or(0).min(MAX_CONFIG_BYTES);
                if bytes > MAX_CONFIGS_BYTES {
                    return Err(BundleError::hostile(format!(
                        "the configs of its images have more than {MAX_CONFIGS_BYTES} bytes"
                    )));
                }
                Rc::new(Known::read(tree, name)?)
            }
        };
        if let Some(offset) = offset {
            by_offset.insert(offset, known.clone());
        }
        configs.insert(name, known);
    }
    Ok(configs)
}

/// Looks at every layer once, in the order in which they stand.
fn measure(
    tree: &Tree,
    images: &[Saved],
    configs: &HashMap<&str, Rc<Known>>,
) -> Result<HashMap<String, Layer>, BundleError> {
    // Several names may lead to one file, which is read once.
    let mut files: BTreeMap<(Option<u64>, &str), Vec<&str>> = BTreeMap::new();
    for name in images.iter().filter_map(|image| image.layers.as_ref()).flatten() {
        if tree.size(name).is_none() {
            continue;
        }
        let key = match tree.offset(name) {
            Some(offset) => (Some(offset), ""),
            None => (None, name.as_str()),
        };
        files.entry(key).or_default().push(name);
    }
    let mut algorithms = vec![Algorithm::Sha256];
    let is_sha512 = |digest: &Digest| digest.algorithm() == Algorithm::Sha512;
    if configs.values().any(|config| config.diff_ids.iter().any(is_sha512)) {
        algorithms.push(Algorithm::Sha512);
    }
    // Shared by all layers: many small ones must not unpack to more than one large one.
    let mut free = Limits::FILES.free;
    let mut cursor = tree.cursor();
    let mut layers = HashMap::new();
    for names in files.into_values() {
        let Some(name) = names.first() else { continue };
        let layer = match tree.compression(name)? {
            None => Layer::Plain {
                size: tree.size(name).unwrap_or(0),
            },
            Some(compression @ (Compression::Bzip2 | Compression::Xz)) => Layer::Faulty(format!(
                "its layer {name:?} is compressed by {}, for which image manifests have no type",
                compression.as_str()
            )),
            Some(compression) => {
                let (mut content, size) = cursor.open(name)?;
                let layer = unpack(&mut *content, compression, size, &algorithms, &mut free)?;
                match layer {
                    Layer::Faulty(why) => Layer::Faulty(format!("its layer {name:?} is refused: {why}")),
                    layer => layer,
                }
            }
        };
        for name in names {
            layers.insert(name.to_owned(), layer.clone());
        }
    }
    Ok(layers)
}

/// Passes on what is read, and hashes it.
struct Hashed<'a> {
    inner: &'a mut dyn Read,
    hasher: Hasher,
    bytes: u64,
    failed: Option<std::io::Error>,
}

impl Read for &mut Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.hasher.update(&buffer[..count]);
                self.bytes += count as u64;
                Ok(count)
            }
            Err(error) => {
                // Kept: it is the archive's error, not this layer's.
                let told = std::io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(told)
            }
        }
    }
}

/// Unpacks a layer, and keeps nothing of it but its digests. `free`: bytes that it may unpack to beyond
/// [`Limits::ratio`]; reduced by those it did. Errors: the archive cannot be read.
fn unpack(
    content: &mut dyn Read,
    compression: Compression,
    size: u64,
    algorithms: &[Algorithm],
    free: &mut u64,
) -> Result<Layer, BundleError> {
    let mut hashed = Hashed {
        inner: content,
        hasher: Hasher::new(Algorithm::Sha256),
        bytes: 0,
        failed: None,
    };
    let mut unpacked: Vec<Hasher> = algorithms.iter().map(|algorithm| Hasher::new(*algorithm)).collect();
    let limits = Limits {
        free: *free,
        ..Limits::FILES
    };
    let mut total: u64 = 0;
    let mut run = || -> std::io::Result<()> {
        let mut reader = Unpacked::new(&mut hashed, compression, limits)?.strict();
        let mut buffer = vec![0; BUFFER];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(()),
                count => {
                    total += count as u64;
                    unpacked.iter_mut().for_each(|hasher| hasher.update(&buffer[..count]));
                }
            }
        }
    };
    let outcome = run();
    *free = free.saturating_sub(total.saturating_sub(hashed.bytes.saturating_mul(limits.ratio)));
    if let Some(error) = hashed.failed {
        return Err(BundleError::reading(error));
    }
    if let Err(error) = outcome {
        return Ok(Layer::Faulty(match Refusal::of(&error) {
            Some(refusal) => refusal.to_string(),
            None => error.to_string(),
        }));
    }
    if hashed.bytes != size {
        return Err(BundleError::Short(format!(
            "within a layer, after {} bytes",
            hashed.bytes
        )));
    }
    Ok(Layer::Compressed {
        media_type: match compression {
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            _ => "application/vnd.oci.image.layer.v1.tar+zstd",
        },
        digest: hashed.hasher.finish(),
        size,
        unpacked: unpacked.into_iter().map(Hasher::finish).collect(),
    })
}

/// An entry with a fault if it cannot be taken. Errors: the archive cannot be read.
fn one(
    image: &Saved,
    configs: &HashMap<&str, Rc<Known>>,
    layers: &HashMap<String, Layer>,
    found: &mut Found,
) -> Result<Entry, BundleError> {
    let name = &image.config;
    let Some(config) = configs.get(name.as_str()) else {
        return Err(BundleError::NotABundle(format!("it has no file {name:?}")));
    };
    let faulty = |why: String| {
        let mut entry = Entry::new(config.digest);
        entry.names.extend(image.repo_tags.iter().flatten().cloned());
        entry.fault = Some(why);
        Ok(entry)
    };
    if let Some(fault) = &config.fault {
        return faulty(fault.clone());
    }
    let diff_ids = &config.diff_ids;
    let files = image.layers.as_deref().unwrap_or_default();
    if diff_ids.len() != files.len() || diff_ids.len() > MAX_LAYERS {
        let why = format!(
            "its config {name:?} names {} layers, where manifest.json has {} (at most {MAX_LAYERS} are taken)",
            diff_ids.len(),
            files.len()
        );
        return faulty(why);
    }
    let config_digest = config.digest;
    let mut descriptors = Vec::new();
    let mut parts = vec![config_digest];
    for (diff_id, file) in diff_ids.iter().zip(files) {
        let (media_type, digest, size) = match layers.get(file) {
            None => return faulty(format!("its layer {file:?} is not in the archive")),
            Some(Layer::Faulty(why)) => return faulty(why.clone()),
            Some(Layer::Plain { size }) => ("application/vnd.oci.image.layer.v1.tar", *diff_id, *size),
            Some(Layer::Compressed { unpacked, .. }) if !unpacked.contains(diff_id) => {
                let why = format!(
                    "its layer {file:?} unpacks to {}, where its config has {diff_id}: it is damaged in this copy, or of another image",
                    unpacked[0]
                );
                return faulty(why);
            }
            Some(Layer::Compressed {
                media_type,
                digest,
                size,
                ..
            }) => (*media_type, *digest, *size),
        };
        descriptors.push(json!({
            "mediaType": media_type,
            "digest": digest,
            "size": size,
        }));
        found.add(digest, size, None, Place::File(file.clone()));
        parts.push(digest);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config.size,
        },
        "layers": descriptors,
    });
    let manifest = serde_json::to_vec(&manifest).map_err(|error| BundleError::Bad(error.to_string()))?;
    let digest = Digest::sha256(&manifest);
    let size = manifest.len() as u64;
    parts.push(digest);
    found.add(config_digest, config.size, None, Place::File(name.clone()));
    let kind = Some(media_type::OCI_MANIFEST.to_owned());
    found.add(digest, size, kind, Place::Made(manifest));
    let mut entry = Entry::new(digest);
    entry.media_type = media_type::OCI_MANIFEST.to_owned();
    entry.size = size;
    entry.names.extend(image.repo_tags.iter().flatten().cloned());
    entry.id = Some(config_digest);
    entry.parts = parts;
    entry.is_made = true;
    entry.platforms.extend(config.platform.clone());
    Ok(entry)
}
