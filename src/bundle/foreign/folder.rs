//! The `dir:` form of containers/image, for one image: `skopeo copy … dir:`, `podman save --format docker-dir`. Its
//! `manifest.json` is the image's own manifest, and nothing says where it is from.

use super::super::error::BundleError;
use super::super::report::NotTaken;
use super::Found;
use super::entry::Entry;
use super::gather::{Gatherer, Naming};
use super::tree::Tree;
use crate::oci::Digest;
use crate::oci::manifest::MAX_MANIFEST_BYTES;

const MANIFEST: &str = "manifest.json";

pub(super) fn read(tree: &Tree, found: &mut Found) -> Result<Vec<Entry>, BundleError> {
    let bytes = tree.small(MANIFEST, MAX_MANIFEST_BYTES as u64)?;
    let mut entry = Entry::new(Digest::sha256(&bytes));
    Gatherer::new(tree, Naming::Folder).fill(&mut entry, None, Some(MANIFEST), found)?;
    // Signatures made by GPG, which no registry has a place for.
    let signatures = (1..).map(|n| format!("signature-{n}"));
    for name in signatures.take_while(|name| tree.size(name).is_some()).take(100) {
        found.left.push(NotTaken {
            name: Some(name),
            digest: entry.digest.to_string(),
            kind: "signature".to_owned(),
            reason: "registries have no place for signatures of this form; clients read them from the address that registries.d names".to_owned(),
            option: None,
        });
    }
    Ok(vec![entry])
}
