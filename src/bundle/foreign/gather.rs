//! A manifest and all that it names, as far as it is in the archive.
//!
//! An index is whole with the platforms that are here whole: exports of one platform leave the others out, and Docker
//! writes their manifests without their layers. Each manifest is read once, however often it is named.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::error::BundleError;
use super::super::select::{Platform, is_kept_elsewhere, platforms_of};
use super::entry::{Entry, Kind};
use super::tree::Tree;
use super::{Found, Place};
use crate::oci::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::text::excerpt;

const MAX_DEPTH: usize = 8;
/// Blobs that all manifests together may name, each with everything below it: some hundred bytes of memory each.
const MAX_PARTS: usize = 2_000_000;
/// Larger configs and payloads are not read.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// How an archive names the file of a blob.
#[derive(Clone, Copy)]
pub(super) enum Naming {
    /// `blobs/sha256/<hex>` (image-spec, image-layout.md)
    Layout,
    /// `<hex>`, and `<hex>.manifest.json` for what an index names (containers/image, `dir:`)
    Folder,
}

impl Naming {
    fn place(self, digest: &Digest, is_manifest: bool) -> String {
        match self {
            Naming::Layout => format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()),
            Naming::Folder => {
                let stem = match digest.algorithm() {
                    Algorithm::Sha256 => digest.hex(),
                    other => format!("{}-{}", other.as_str(), digest.hex()),
                };
                let ending = if is_manifest { ".manifest.json" } else { "" };
                format!("{stem}{ending}")
            }
        }
    }
}

/// A manifest with everything below it.
pub(super) struct Gathered {
    media_type: String,
    size: u64,
    subject: Option<Digest>,
    manifests: BTreeSet<Digest>,
    parts: BTreeSet<Digest>,
    absent: BTreeSet<Digest>,
    platforms: Vec<String>,
    fault: Option<String>,
    /// Set if bytes are not those of their digest: never a platform that was only left out.
    is_damaged: bool,
}

impl Gathered {
    fn damaged(digest: &Digest) -> Rc<Gathered> {
        let why =
            format!("its manifest {digest} has other bytes than its digest says: it is damaged in this copy, or false");
        Rc::new(Gathered {
            is_damaged: true,
            ..Gathered::without(why)
        })
    }

    fn faulty(why: String) -> Rc<Gathered> {
        Rc::new(Gathered::without(why))
    }

    fn without(why: String) -> Gathered {
        Gathered {
            media_type: String::new(),
            size: 0,
            subject: None,
            manifests: BTreeSet::new(),
            parts: BTreeSet::new(),
            absent: BTreeSet::new(),
            platforms: Vec::new(),
            fault: Some(why),
            is_damaged: false,
        }
    }
}

/// Reads manifests out of an archive.
pub(super) struct Gatherer<'a> {
    tree: &'a Tree,
    naming: Naming,
    known: HashMap<Digest, Rc<Gathered>>,
    /// Counted over all that is known.
    parts: usize,
}

impl<'a> Gatherer<'a> {
    pub(super) fn new(tree: &'a Tree, naming: Naming) -> Gatherer<'a> {
        Gatherer {
            tree,
            naming,
            known: HashMap::new(),
            parts: 0,
        }
    }

    /// Fills in what the manifest of an entry says. `root`: its file, where that is not called by its digest.
    pub(super) fn fill(
        &mut self,
        entry: &mut Entry,
        media_type: Option<&str>,
        root: Option<&str>,
        found: &mut Found,
    ) -> Result<(), BundleError> {
        let place = root.map_or_else(|| self.naming.place(&entry.digest, true), str::to_owned);
        let gathered = self.gather(&entry.digest, &place, media_type, 0, found)?;
        entry.media_type.clone_from(&gathered.media_type);
        entry.size = gathered.size;
        entry.subject = gathered.subject;
        entry.manifests.extend(&gathered.manifests);
        entry.parts = gathered.parts.iter().copied().collect();
        entry.absent = gathered.absent.difference(&gathered.parts).copied().collect();
        entry.platforms.clone_from(&gathered.platforms);
        entry.fault.clone_from(&gathered.fault);
        if entry.fault.is_none() && (entry.subject.is_some() || entry.kind != Kind::Image) {
            let bytes = self.tree.small(&place, MAX_MANIFEST_BYTES as u64)?;
            let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            entry.listed = entry.subject.map(|_| listed(entry, &manifest));
            entry.signs = self.signed(&manifest);
        }
        Ok(())
    }

    fn gather(
        &mut self,
        digest: &Digest,
        place: &str,
        media_type: Option<&str>,
        depth: usize,
        found: &mut Found,
    ) -> Result<Rc<Gathered>, BundleError> {
        if let Some(known) = self.known.get(digest) {
            return Ok(known.clone());
        }
        if depth > MAX_DEPTH {
            return Err(BundleError::hostile("indexes within indexes without end"));
        }
        let refused = |why: String| Gathered::faulty(format!("its manifest {digest} cannot be taken: {why}"));
        let gathered = match self.tree.size(place) {
            None => Gathered::faulty(format!("its manifest {digest} is not in the archive")),
            Some(_) => match self.tree.document(place, MAX_MANIFEST_BYTES as u64)? {
                Err(why) => refused(why),
                // Lists of referrers and names are made of it, also where the store has the right bytes already and
                // reads no others.
                Ok(bytes) if !is_of(&bytes, digest) => Gathered::damaged(digest),
                Ok(bytes) => match Manifest::parse(&bytes, media_type) {
                    Err(error) => refused(error.to_string()),
                    Ok(manifest) => {
                        let kind = Some(manifest.media_type.clone());
                        found.add(*digest, bytes.len() as u64, kind, Place::File(place.to_owned()));
                        self.below(*digest, &bytes, manifest, depth, found)?
                    }
                },
            },
        };
        self.parts += gathered.parts.len() + gathered.absent.len();
        if self.parts > MAX_PARTS {
            return Err(BundleError::hostile(format!(
                "its manifests name more than {MAX_PARTS} blobs, each counted as often as it is named"
            )));
        }
        self.known.insert(*digest, gathered.clone());
        Ok(gathered)
    }

    fn below(
        &mut self,
        digest: Digest,
        bytes: &[u8],
        manifest: Manifest,
        depth: usize,
        found: &mut Found,
    ) -> Result<Rc<Gathered>, BundleError> {
        let is_index = manifest.descriptors.iter().any(|child| child.is_manifest);
        let platforms = match is_index {
            true => platforms_of(bytes),
            false => BTreeMap::new(),
        };
        let mut gathered = Gathered {
            media_type: manifest.media_type,
            size: bytes.len() as u64,
            subject: manifest.subject,
            manifests: BTreeSet::from([digest]),
            parts: BTreeSet::from([digest]),
            absent: BTreeSet::new(),
            platforms: Vec::new(),
            fault: None,
            is_damaged: false,
        };
        let (mut images, mut first_fault) = (0, None);
        for child in &manifest.descriptors {
            let place = self.naming.place(&child.digest, child.is_manifest);
            if !child.is_manifest {
                let elsewhere = child.media_type.as_deref().is_some_and(is_kept_elsewhere);
                match self.tree.size(&place) {
                    Some(size) => {
                        found.add(child.digest, size, None, Place::File(place));
                        gathered.parts.insert(child.digest);
                    }
                    None if elsewhere => {
                        gathered.absent.insert(child.digest);
                    }
                    None => {
                        gathered.fault = Some(format!("{} of {digest} is not in the archive", child.digest));
                        break;
                    }
                }
                continue;
            }
            let below = self.gather(&child.digest, &place, child.media_type.as_deref(), depth + 1, found)?;
            if let Some(fault) = &below.fault {
                if below.is_damaged {
                    gathered.fault = Some(fault.clone());
                    gathered.is_damaged = true;
                    break;
                }
                first_fault.get_or_insert_with(|| fault.clone());
                gathered.absent.insert(child.digest);
                continue;
            }
            gathered.manifests.extend(&below.manifests);
            gathered.parts.extend(&below.parts);
            gathered.absent.extend(&below.absent);
            match platforms.get(&child.digest) {
                // An attestation is no image.
                Some(platform) if platform == "unknown/unknown" => {}
                platform => {
                    images += 1;
                    gathered.platforms.extend(platform.cloned());
                }
            }
        }
        if is_index && images == 0 && !gathered.is_damaged {
            let why = first_fault.unwrap_or_else(|| "it has attestations only".to_owned());
            gathered.fault = Some(format!("none of its platforms is here whole: {why}"));
        }
        if !is_index && gathered.fault.is_none() {
            gathered.platforms = self.platform(&manifest.descriptors).into_iter().collect();
        }
        Ok(Rc::new(gathered))
    }

    /// The platform of a single image, by its config.
    fn platform(&self, descriptors: &[crate::oci::manifest::Descriptor]) -> Option<String> {
        let is_config =
            |media_type: &str| media_type.contains("image.config") || media_type.contains("container.image");
        let config = descriptors.first()?;
        config
            .media_type
            .as_deref()
            .filter(|media_type| is_config(media_type))?;
        let bytes = self.document(&config.digest)?;
        serde_json::from_slice::<Platform>(&bytes).ok()?.text()
    }

    fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let place = self.naming.place(digest, false);
        let bytes = self.tree.small(&place, MAX_DOCUMENT_BYTES).ok()?;
        is_of(&bytes, digest).then_some(bytes)
    }

    /// The manifest that a signature of cosign is about: by its payload, or by the statement that an attestation
    /// wraps. It decides under which tag clients find the signature; they check it, nobody does here.
    fn signed(&self, manifest: &Value) -> Option<Digest> {
        let payload = manifest["layers"][0]["digest"].as_str()?.parse().ok()?;
        let payload: Value = serde_json::from_slice(&self.document(&payload)?).ok()?;
        if let Some(digest) = payload["critical"]["image"]["docker-manifest-digest"].as_str() {
            return digest.parse().ok();
        }
        let statement = STANDARD.decode(payload["payload"].as_str()?).ok()?;
        let statement: Value = serde_json::from_slice(&statement).ok()?;
        Digest::from_hex(Algorithm::Sha256, statement["subject"][0]["digest"]["sha256"].as_str()?)
    }
}

fn is_of(bytes: &[u8], digest: &Digest) -> bool {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    hasher.finish() == *digest
}

/// The entry as lists of referrers have it (distribution-spec, listing referrers).
fn listed(entry: &Entry, manifest: &Value) -> Value {
    let own = manifest["artifactType"].as_str().filter(|text| !text.is_empty());
    let kind = own.or(manifest["config"]["mediaType"].as_str());
    let mut item = json!({
        "mediaType": entry.media_type,
        "digest": entry.digest,
        "size": entry.size,
    });
    if let Some(kind) = kind {
        item["artifactType"] = json!(excerpt(kind));
    }
    if manifest["annotations"].is_object() {
        item["annotations"] = manifest["annotations"].clone();
    }
    item
}
