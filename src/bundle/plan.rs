//! What goes into a bundle, in which order and into which volume: the catalogue, made before a byte is written.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use serde_json::json;

use super::archive::{BLOCK, space};
use super::catalog::{Blob, Catalog, Image, Piece, Since, VERSION, piece_name};
use super::error::BundleError;
use super::pack::Packed;
use super::receipt::Known;
use super::select::Selection;
use super::{BUFFER, CATALOG};
use crate::oci::{Algorithm, Digest, Hasher, media_type};
use crate::store::{Hashing, Keep, Store};

/// Smaller volumes would hold little but catalogues.
pub const MIN_VOLUME_BYTES: u64 = 1 << 20;
/// Room in each volume for a signature, the volume's number and the layout's mark.
const FIXED: u64 = 8 * BLOCK;
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A bundle that can be written. What it needs is kept from eviction as long as it lives.
pub struct Plan {
    pub catalog: Catalog,
    /// The catalogue as it is written and signed.
    pub bytes: Vec<u8>,
    pub(super) index: Vec<u8>,
    _keeps: Vec<Keep>,
}

/// How to make it.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Bytes of a volume; `None` for one archive.
    pub volume_size: Option<u64>,
    /// In place of the newest date inside, Unix milliseconds.
    pub created_ms: Option<u64>,
}

impl Plan {
    /// Blocking: where blobs are cut into pieces these are hashed.
    ///
    /// Errors: there is nothing to send, volumes are too small, something went missing.
    pub fn new(
        store: &Store,
        selection: Selection,
        known: Option<&Known>,
        wanted: &Wanted,
    ) -> Result<Plan, BundleError> {
        if selection.images.is_empty() {
            return Err(BundleError::Nothing(
                "no image that was chosen is held whole".to_owned(),
            ));
        }
        let mut keeps = Vec::new();
        let mut omitted = BTreeSet::new();
        let mut saved_bytes = 0;
        let mut blobs = Vec::new();
        for (digest, need) in &selection.needs {
            if known.is_some_and(|known| known.blobs.contains(digest)) {
                omitted.insert(*digest);
                saved_bytes += need.size;
                continue;
            }
            keeps.push(store.keep(digest).ok_or_else(|| BundleError::Gone(Box::new(*digest)))?);
            blobs.push(Blob {
                digest: *digest,
                size: need.size,
                media_type: need.media_type.clone(),
                image: need.image,
                volume: 1,
                pieces: Vec::new(),
            });
        }
        // Manifests last: whoever reads them has all that they name.
        blobs.sort_by_key(Blob::is_manifest);
        let newest = selection.images.iter().filter_map(|image| image.checked_ms).max();
        let mut catalog = Catalog {
            larder_bundle: VERSION,
            created_ms: wanted.created_ms.or(newest).unwrap_or(0),
            since: known.map(|known| Since {
                what: known.what,
                digest: known.digest,
                saved_bytes,
            }),
            volumes: 1,
            images: selection.images,
            blobs,
            omitted: Packed::of(&omitted),
        };
        let index = index(&catalog)?;
        if let Some(size) = wanted.volume_size {
            deal(&mut catalog, size, index.len() as u64)?;
            hash_pieces(store, &mut catalog)?;
        }
        Ok(Plan {
            bytes: catalog.to_bytes()?,
            catalog,
            index,
            _keeps: keeps,
        })
    }

    /// Bytes of all its archives, but for signatures.
    pub fn archive_bytes(&self) -> u64 {
        let head = fixed(self.bytes.len() as u64, self.index.len() as u64);
        let parts = (1..=self.catalog.volumes).flat_map(|volume| self.catalog.parts(volume));
        head * u64::from(self.catalog.volumes) + parts.map(|part| entry(&part.name, part.size)).sum::<u64>()
    }
}

/// What other tools read: the images whose manifests are inside.
pub(super) fn index(catalog: &Catalog) -> Result<Vec<u8>, BundleError> {
    let inside: BTreeSet<Digest> = catalog.blobs.iter().map(|blob| blob.digest).collect();
    let descriptor = |image: &Image| {
        let name = image.name();
        json!({
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": image.size,
            "annotations": {
                // The one is the specification's (image-spec, annotations), the other is containerd's and Docker's.
                "org.opencontainers.image.ref.name": name,
                "io.containerd.image.name": name,
            },
        })
    };
    let manifests: Vec<_> = catalog
        .images
        .iter()
        .filter(|i| inside.contains(&i.digest))
        .map(descriptor)
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests });
    serde_json::to_vec(&index).map_err(|error| BundleError::Bad(error.to_string()))
}

/// Bytes that every volume has, whatever is in it.
fn fixed(catalog: u64, index: u64) -> u64 {
    space(catalog) + space(index) + FIXED + 2 * BLOCK
}

/// Bytes of one file; a long name costs two more blocks.
fn entry(name: &str, size: u64) -> u64 {
    space(size) + if name.len() > 100 { 2 * BLOCK } else { 0 }
}

/// Deals the blobs out, in their order. The catalogue tells where each is and has itself to fit into every volume, so
/// that its size has to be found by trying.
fn deal(catalog: &mut Catalog, size: u64, index: u64) -> Result<(), BundleError> {
    let mut reserve = catalog.to_bytes()?.len() as u64;
    loop {
        let head = fixed(reserve, index);
        let capacity = size
            .checked_sub(head)
            .filter(|rest| size >= MIN_VOLUME_BYTES && *rest >= size / 2);
        let capacity = capacity.ok_or_else(|| {
            BundleError::Bad(format!(
                "volumes of {size} bytes are too small: each holds the catalogue of {head} bytes, and at least as much of the content; the least is {MIN_VOLUME_BYTES}"
            ))
        })?;
        deal_out(catalog, capacity)?;
        let found = catalog.to_bytes()?.len() as u64;
        if found <= reserve {
            return Ok(());
        }
        reserve = found;
    }
}

fn deal_out(catalog: &mut Catalog, capacity: u64) -> Result<(), BundleError> {
    let mut volume = 1u32;
    let mut left = capacity;
    for blob in &mut catalog.blobs {
        blob.pieces.clear();
        let whole = entry(&blob.name(), blob.size);
        if whole <= left {
            (blob.volume, left) = (volume, left - whole);
            continue;
        }
        if left < capacity {
            (volume, left) = (volume + 1, capacity);
        }
        blob.volume = volume;
        if whole <= capacity {
            left -= whole;
            continue;
        }
        // Larger than any volume: a piece in each. Its last one shares a volume with what comes next.
        let head = entry(&piece_name(blob, 0), 0);
        let most = (capacity - head) / BLOCK * BLOCK;
        let mut rest = blob.size;
        while rest > 0 {
            let size = rest.min(most);
            rest -= size;
            blob.pieces.push(Piece {
                size,
                digest: blob.digest,
            });
            if rest > 0 {
                volume += 1;
            } else {
                left = capacity - head - size.next_multiple_of(BLOCK);
            }
        }
    }
    catalog.volumes = volume;
    match volume > 9_999 {
        true => Err(BundleError::Bad(
            "that would be more than 9999 volumes: choose larger ones".to_owned(),
        )),
        false => Ok(()),
    }
}

fn hash_pieces(store: &Store, catalog: &mut Catalog) -> Result<(), BundleError> {
    let mut buffer = vec![0; BUFFER];
    for blob in catalog.blobs.iter_mut().filter(|blob| !blob.pieces.is_empty()) {
        let held = store
            .peek_blob(&blob.digest)?
            .ok_or_else(|| BundleError::Gone(Box::new(blob.digest)))?;
        let mut whole = Hashing::new(blob.digest);
        let mut at = 0;
        for piece in &mut blob.pieces {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let end = at + piece.size;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let read = held.file.read_exact_at(&mut buffer[..most], at);
                read.map_err(|error| BundleError::unread(&blob.digest, error))?;
                hasher.update(&buffer[..most]);
                whole.update(&buffer[..most]);
                at += most as u64;
            }
            piece.digest = hasher.finish();
        }
        whole.verify().map_err(|_| BundleError::Rotten {
            digest: Box::new(blob.digest),
        })?;
    }
    Ok(())
}

/// The text of the file that tells a volume's number.
pub(super) fn volume_text(volume: u32, volumes: u32) -> String {
    format!("volume {volume} of {volumes}; all of them are named in {CATALOG}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No volume is larger than it may be, and every byte of every blob is in one.
        #[test]
        fn volumes_hold_everything(sizes in proptest::collection::vec(0u64..5_000_000, 1..40), volume in MIN_VOLUME_BYTES..4_000_000) {
            let blob = |(at, size): (usize, &u64)| Blob {
                digest: Digest::of(Algorithm::ALL[at % 2], &at.to_le_bytes()),
                size: *size,
                media_type: None,
                image: 0,
                volume: 1,
                pieces: Vec::new(),
            };
            let blobs: Vec<Blob> = sizes.iter().enumerate().map(blob).collect();
            let mut catalog = Catalog {
                larder_bundle: VERSION,
                created_ms: 0,
                since: None,
                volumes: 1,
                images: Vec::new(),
                blobs,
                omitted: Packed::default(),
            };
            deal(&mut catalog, volume, 1000).unwrap();
            let head = fixed(catalog.to_bytes().unwrap().len() as u64, 1000);
            let mut bytes = vec![0; sizes.len()];
            for number in 1..=catalog.volumes {
                let parts = catalog.parts(number);
                prop_assert!(!parts.is_empty());
                prop_assert!(head + parts.iter().map(|p| entry(&p.name, p.size)).sum::<u64>() <= volume);
                for part in parts {
                    prop_assert_eq!(part.offset, bytes[part.blob]);
                    bytes[part.blob] += part.size;
                }
            }
            prop_assert_eq!(bytes, sizes);
        }
    }
}
