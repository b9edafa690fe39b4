//! What is inside a bundle, as it says itself: written first, signed, and all that an import goes by.
//!
//! The same holdings give the same bytes: nothing in it comes from a clock or from chance. Its date is the newest of the
//! dates inside, or `SOURCE_DATE_EPOCH`. Only a signature differs each time.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::archive::MAX_FILE_BYTES;
use super::error::BundleError;
use super::pack::Packed;
use super::{CATALOG, MAX_CATALOG_BYTES};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::name::is_reserved;
use crate::oci::{Digest, HostPort, Repository, Tag};
use crate::text::is_visible;

/// The version that this Larder writes and reads.
pub const VERSION: u32 = 1;
const MAX_IMAGES: usize = 200_000;
const MAX_BLOBS: usize = 1_000_000;
const MAX_VOLUMES: u32 = 9_999;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    pub larder_bundle: u32,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// What the other side was known to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    /// Files that the bundle is made of, 1 if it is one.
    pub volumes: u32,
    /// By name.
    pub images: Vec<Image>,
    /// What is inside, in the order in which it is.
    pub blobs: Vec<Blob>,
    /// What the images need too and the other side has.
    #[serde(default, skip_serializing_if = "Packed::is_empty")]
    pub omitted: Packed,
}

/// What an increment builds upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    pub what: Base,
    /// Of the receipt's or catalogue's bytes.
    pub digest: Digest,
    /// Bytes that are not inside because of it.
    pub saved_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    Receipt,
    Catalog,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// With its upstream: `docker.io/library/alpine`.
    pub repository: String,
    /// `None` for an image that is called by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub digest: Digest,
    pub media_type: String,
    /// Bytes of its manifest.
    pub size: u64,
    /// `linux/arm64/v8`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Manifests and layers that it names and that nobody gets with it: other platforms, and layers that their
    /// publisher keeps elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Digest>,
    /// When the upstream last said that the tag points here, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_ms: Option<u64>,
    /// The upstream gave it to credentials only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private: bool,
    /// Signatures, SBOMs and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<Referrers>,
}

/// What refers to a manifest, as its registry lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Referrers {
    pub subject: Digest,
    pub checked_ms: u64,
    pub items: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
    /// Of manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The first image that needs it: its place in the list.
    pub image: u32,
    /// The volume that it is in, from 1; of one in pieces, the first of them.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub volume: u32,
    /// Of a blob that is larger than a volume: from the first on, each in the next volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    pub size: u64,
    pub digest: Digest,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's call")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

/// A file in a bundle's volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The blob's place in the list.
    pub blob: usize,
    pub name: String,
    /// Where it begins in the blob.
    pub offset: u64,
    pub size: u64,
    /// Of these bytes alone.
    pub digest: Digest,
}

impl Image {
    /// `docker.io/library/alpine:3.22`
    pub fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.repository),
            None => format!("{}@{}", self.repository, self.digest),
        }
    }

    /// The tag, or the digest.
    pub fn reference(&self) -> String {
        self.tag.clone().unwrap_or_else(|| self.digest.to_string())
    }
}

impl Blob {
    pub fn is_manifest(&self) -> bool {
        self.media_type.is_some()
    }

    /// `blobs/sha256/<hex>`
    pub fn name(&self) -> String {
        format!("blobs/{}/{}", self.digest.algorithm().as_str(), self.digest.hex())
    }
}

/// Of the piece at that place.
pub fn piece_name(blob: &Blob, at: usize) -> String {
    format!("larder/pieces/{}.{:04}", blob.digest.hex(), at + 1)
}

impl Catalog {
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let bytes = serde_json::to_vec(self).map_err(|error| BundleError::Bad(error.to_string()))?;
        match bytes.len() as u64 > MAX_CATALOG_BYTES {
            true => Err(BundleError::Bad(format!(
                "the bundle would hold more than its catalogue can ({MAX_CATALOG_BYTES} bytes): choose fewer images"
            ))),
            false => Ok(bytes),
        }
    }

    /// Reads and checks it. What it says may still be a lie: that is found when the archive is held against it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Catalog, BundleError> {
        let read = serde_json::from_slice::<Catalog>(bytes);
        let catalog = read.map_err(|error| {
            let version = serde_json::from_slice::<Value>(bytes).ok();
            match version.and_then(|v| v["larder_bundle"].as_u64()) {
                Some(other) if other != u64::from(VERSION) => BundleError::NotABundle(format!(
                    "{CATALOG} is of version {other}; this larder reads version {VERSION}"
                )),
                _ => BundleError::NotABundle(format!("{CATALOG}: {error}")),
            }
        })?;
        catalog
            .check()
            .map_err(|why| BundleError::hostile(format!("{CATALOG}: {why}")))?;
        Ok(catalog)
    }

    /// A bundle's own name: the digest of its catalogue.
    pub fn id(bytes: &[u8]) -> Digest {
        Digest::sha256(bytes)
    }

    fn check(&self) -> Result<(), String> {
        if self.larder_bundle != VERSION {
            return Err(format!("version {}, expected {VERSION}", self.larder_bundle));
        }
        let counts = [
            (self.images.len(), MAX_IMAGES, "images"),
            (self.blobs.len(), MAX_BLOBS, "blobs"),
        ];
        if let Some((found, most, what)) = counts.into_iter().find(|(found, most, _)| found > most) {
            return Err(format!("{found} {what}, at most {most}"));
        }
        if !(1..=MAX_VOLUMES).contains(&self.volumes) {
            return Err(format!("{} volumes, expected 1 to {MAX_VOLUMES}", self.volumes));
        }
        let mut known = self.omitted.digests().map_err(|error| error.to_string())?;
        let mut total = 0u64;
        for blob in &self.blobs {
            if !known.insert(blob.digest) {
                return Err(format!("{} is there twice", blob.digest));
            }
            let sum = total.checked_add(blob.size).filter(|sum| *sum <= MAX_FILE_BYTES);
            total = sum.ok_or("more bytes than there can be")?;
            self.check_blob(blob).map_err(|why| format!("{}: {why}", blob.digest))?;
        }
        let mut names = HashSet::new();
        for image in &self.images {
            check_image(image, &known).map_err(|why| format!("{:?}: {why}", image.name()))?;
            if !names.insert((&image.repository, image.reference())) {
                return Err(format!("{} is there twice", image.name()));
            }
        }
        Ok(())
    }

    fn check_blob(&self, blob: &Blob) -> Result<(), String> {
        if let Some(media_type) = &blob.media_type {
            check_text(media_type)?;
            if blob.size > MAX_MANIFEST_BYTES as u64 {
                return Err(format!(
                    "a manifest of {} bytes, at most {MAX_MANIFEST_BYTES}",
                    blob.size
                ));
            }
        }
        if blob.image as usize >= self.images.len() {
            return Err("of an image that is not there".to_owned());
        }
        let pieces = u32::try_from(blob.pieces.len()).map_err(|_| "too many pieces")?;
        let last = blob.volume.checked_add(pieces.saturating_sub(1));
        if blob.volume == 0 || last.is_none_or(|last| last > self.volumes) {
            return Err(format!("in a volume that is not one of {}", self.volumes));
        }
        if !blob.pieces.is_empty() {
            let sum = blob
                .pieces
                .iter()
                .try_fold(0u64, |sum, piece| sum.checked_add(piece.size));
            if pieces == 1 || sum != Some(blob.size) || blob.is_manifest() {
                return Err(format!("in pieces that do not make {} bytes", blob.size));
            }
        }
        Ok(())
    }

    /// The files of one volume behind the fixed ones, in their order.
    pub fn parts(&self, volume: u32) -> Vec<Part> {
        let mut parts = Vec::new();
        for (at, blob) in self.blobs.iter().enumerate() {
            if blob.pieces.is_empty() {
                if blob.volume == volume {
                    parts.push(Part {
                        blob: at,
                        name: blob.name(),
                        offset: 0,
                        size: blob.size,
                        digest: blob.digest,
                    });
                }
                continue;
            }
            let number = volume.checked_sub(blob.volume).and_then(|n| usize::try_from(n).ok());
            let Some((number, piece)) = number.and_then(|n| Some((n, blob.pieces.get(n)?))) else {
                continue;
            };
            parts.push(Part {
                blob: at,
                name: piece_name(blob, number),
                offset: blob.pieces[..number].iter().map(|piece| piece.size).sum(),
                size: piece.size,
                digest: piece.digest,
            });
        }
        parts
    }

    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    /// Everything that a site has that took this bundle in.
    pub fn all_digests(&self) -> Result<BTreeSet<Digest>, BundleError> {
        let mut all = self.omitted.digests()?;
        all.extend(self.blobs.iter().map(|blob| blob.digest));
        Ok(all)
    }
}

/// One repository as the store calls it: an upstream and a name.
pub fn check_repository(text: &str) -> Result<(), String> {
    let (host, name) = text.split_once('/').ok_or("no upstream in front of its name")?;
    let parsed: HostPort = host.parse().map_err(|error| format!("{error}"))?;
    if parsed.as_str() != host {
        return Err(format!("the upstream {host:?} is not in lower case"));
    }
    let _: Repository = name.parse().map_err(|error| format!("{error}"))?;
    if is_reserved(name) {
        return Err("the name is reserved for the images that larder doctor makes".to_owned());
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), String> {
    let fits = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        Ok(())
    } else {
        Err(format!(
            "{:?} is no media type",
            text.chars().take(255).collect::<String>()
        ))
    }
}

fn check_image(image: &Image, known: &BTreeSet<Digest>) -> Result<(), String> {
    check_repository(&image.repository)?;
    if let Some(tag) = &image.tag {
        let _: Tag = tag.parse().map_err(|error| format!("{error}"))?;
    }
    check_text(&image.media_type)?;
    if !known.contains(&image.digest) {
        return Err("its manifest is not there".to_owned());
    }
    if image.absent.contains(&image.digest) {
        return Err("its manifest is said to be absent".to_owned());
    }
    let odd = |platform: &String| platform.len() > 255 || !is_visible(platform);
    if image.platforms.iter().any(odd) {
        return Err("a platform that is none".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn catalog() -> Catalog {
        let digest = Digest::sha256(b"m");
        let image = Image {
            repository: "docker.io/library/alpine".to_owned(),
            tag: Some("3.22".to_owned()),
            digest,
            media_type: "x/y".to_owned(),
            size: 1,
            platforms: vec!["linux/amd64".to_owned()],
            absent: Vec::new(),
            checked_ms: Some(7),
            private: false,
            referrers: Vec::new(),
        };
        let blob = |digest, size, media_type: Option<&str>| Blob {
            digest,
            size,
            media_type: media_type.map(str::to_owned),
            image: 0,
            volume: 1,
            pieces: Vec::new(),
        };
        Catalog {
            larder_bundle: VERSION,
            created_ms: 7,
            since: None,
            volumes: 1,
            images: vec![image],
            blobs: vec![blob(Digest::sha256(b"l"), 9, None), blob(digest, 1, Some("x/y"))],
            omitted: Packed::default(),
        }
    }

    #[test]
    fn it_comes_back() {
        let catalog = catalog();
        let bytes = catalog.to_bytes().unwrap();
        assert_eq!(Catalog::from_bytes(&bytes).unwrap(), catalog);
    }

    /// Each lie by itself.
    #[test]
    fn lies_are_refused() {
        type Lie = (&'static str, fn(&mut Catalog));
        let lies: [Lie; 18] = [
            ("version", |c| c.larder_bundle = 2),
            ("volumes", |c| c.volumes = 0),
            ("volumes", |c| c.volumes = 10_000),
            ("twice", |c| c.blobs.push(c.blobs[0].clone())),
            ("twice", |c| c.images.push(c.images[0].clone())),
            ("more bytes", |c| (c.blobs[0].size, c.blobs[1].size) = (u64::MAX, 1)),
            ("more bytes", |c| c.blobs[0].size = u64::MAX - 4096),
            ("more bytes", |c| c.blobs[0].size = 1 << 62),
            ("manifest of", |c| c.blobs[1].size = 17 << 20),
            ("volume", |c| c.blobs[0].volume = 2),
            ("volume", |c| c.blobs[0].volume = 0),
            ("image", |c| c.blobs[0].image = 1),
            ("not there", |c| c.images[0].digest = Digest::sha256(b"x")),
            ("upstream", |c| c.images[0].repository = "alpine".to_owned()),
            ("repository name", |c| {
                c.images[0].repository = "docker.io/../x".to_owned()
            }),
            ("lower case", |c| c.images[0].repository = "Docker.io/x".to_owned()),
            ("tag", |c| c.images[0].tag = Some("../x".to_owned())),
            ("absent", |c| c.images[0].absent = vec![c.images[0].digest]),
        ];
        for (word, lie) in lies {
            let mut catalog = catalog();
            lie(&mut catalog);
            let error = Catalog::from_bytes(&catalog.to_bytes().unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let mut pieces = catalog();
        pieces.volumes = 2;
        let piece = |size| Piece {
            size,
            digest: Digest::sha256(b"p"),
        };
        pieces.blobs[0].pieces = vec![piece(4), piece(5)];
        assert_eq!(pieces.parts(2)[0].offset, 4);
        assert!(Catalog::from_bytes(&pieces.to_bytes().unwrap()).is_ok());
        pieces.blobs[0].pieces = vec![piece(4), piece(u64::MAX)];
        assert!(Catalog::from_bytes(&pieces.to_bytes().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn reading_never_panics(at in 0usize..600, byte: u8) {
            let mut bytes = catalog().to_bytes().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(read) = Catalog::from_bytes(&bytes) {
                let _ = (read.parts(1), read.all_digests());
            }
        }
    }
}
