//! What a site has, so that the next bundle brings the rest.
//!
//! Only what is pinned counts: the rest may be evicted before that bundle comes. A receipt names digests and tags and
//! holds no content.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::catalog::{Base, Catalog};
use super::error::BundleError;
use super::pack::Packed;
use crate::oci::Digest;
use crate::store::Store;

/// Largest receipt or catalogue that is read, in bytes: more than a million digests.
pub const MAX_RECEIPT_BYTES: u64 = 64 << 20;
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub larder_receipt: u32,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// What its people call it.
    pub site: String,
    pub blobs: Packed,
    /// By name, where it points.
    pub tags: BTreeMap<String, Digest>,
    /// What was asked for here and is not here.
    #[serde(default)]
    pub wishes: Vec<Value>,
}

impl Receipt {
    /// Of a store, now. `wishes` is what its clients missed.
    pub fn of(store: &Store, site: &str, created_ms: u64, wishes: Vec<Value>) -> Receipt {
        let blobs: BTreeSet<Digest> = store.pinned_digests().into_iter().collect();
        let names = store.image_names().into_iter();
        let tags = names
            .filter(|(name, digest)| !name.reference.contains(':') && blobs.contains(digest))
            .map(|(name, digest)| (name.to_string(), digest))
            .collect();
        Receipt {
            larder_receipt: VERSION,
            created_ms,
            site: site.to_owned(),
            blobs: Packed::of(&blobs),
            tags,
            wishes,
        }
    }
}

/// What the other side is known to have: told by its receipt, or by the catalogue of the last bundle that went there.
#[derive(Clone, Debug)]
pub struct Known {
    pub what: Base,
    /// Of the file.
    pub digest: Digest,
    pub blobs: BTreeSet<Digest>,
    /// By name.
    pub tags: BTreeMap<String, Digest>,
}

impl Known {
    /// Reads either.
    pub fn parse(bytes: &[u8]) -> Result<Known, BundleError> {
        let neither = |why: String| {
            BundleError::Bad(format!(
                "--since: this is neither a receipt nor a bundle's catalogue: {why}"
            ))
        };
        if bytes.len() as u64 > MAX_RECEIPT_BYTES {
            return Err(neither(format!("larger than {MAX_RECEIPT_BYTES} bytes")));
        }
        let digest = Digest::sha256(bytes);
        if let Ok(receipt) = serde_json::from_slice::<Receipt>(bytes) {
            if receipt.larder_receipt != VERSION {
                let found = receipt.larder_receipt;
                return Err(neither(format!("a receipt of version {found}, expected {VERSION}")));
            }
            return Ok(Known {
                what: Base::Receipt,
                digest,
                blobs: receipt.blobs.digests()?,
                tags: receipt.tags,
            });
        }
        let catalog = Catalog::from_bytes(bytes).map_err(|error| neither(error.to_string()))?;
        let tagged = catalog.images.iter().filter(|image| image.tag.is_some());
        Ok(Known {
            what: Base::Catalog,
            digest,
            blobs: catalog.all_digests()?,
            tags: tagged.map(|image| (image.name(), image.digest)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_receipt_is_read_by_the_other_side() {
        let digest = Digest::sha256(b"x");
        let receipt = Receipt {
            larder_receipt: 1,
            created_ms: 5,
            site: "ward 3".to_owned(),
            blobs: Packed::of(&BTreeSet::from([digest])),
            tags: BTreeMap::from([("docker.io/library/a:1".to_owned(), digest)]),
            wishes: Vec::new(),
        };
        let known = Known::parse(&serde_json::to_vec(&receipt).unwrap()).unwrap();
        assert_eq!(
            (known.what, known.blobs, known.tags),
            (Base::Receipt, BTreeSet::from([digest]), receipt.tags.clone())
        );
        let newer = Receipt {
            larder_receipt: 2,
            ..receipt
        };
        assert!(Known::parse(&serde_json::to_vec(&newer).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Known::parse(&bytes);
        }
    }
}
