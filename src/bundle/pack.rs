//! Many digests in little room: sorted, their hashes one behind the other, in base64.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::error::BundleError;
use crate::oci::{Algorithm, Digest};

/// By algorithm. 44 bytes for a SHA-256 digest; whole hashes, so that no two are ever taken for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packed {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sha256: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sha512: String,
}

impl Packed {
    pub fn of(digests: &BTreeSet<Digest>) -> Packed {
        let hashes = |algorithm| {
            let hashes = digests.iter().filter(|d| d.algorithm() == algorithm);
            STANDARD.encode(hashes.flat_map(|d| d.hash().iter().copied()).collect::<Vec<u8>>())
        };
        Packed {
            sha256: hashes(Algorithm::Sha256),
            sha512: hashes(Algorithm::Sha512),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.sha256.is_empty() && self.sha512.is_empty()
    }

    /// Errors: no base64, or no whole hashes.
    pub fn digests(&self) -> Result<BTreeSet<Digest>, BundleError> {
        let mut digests = BTreeSet::new();
        for (algorithm, tag, text) in [
            (Algorithm::Sha256, 1, &self.sha256),
            (Algorithm::Sha512, 2, &self.sha512),
        ] {
            let name = algorithm.as_str();
            let bad = |why: String| BundleError::NotABundle(format!("its {name} digests {why}"));
            let bytes = STANDARD
                .decode(text)
                .map_err(|error| bad(format!("are no base64: {error}")))?;
            let hashes = bytes.chunks_exact(algorithm.hash_len());
            if !hashes.remainder().is_empty() {
                return Err(bad(format!(
                    "are {} bytes, which is no whole number of them",
                    bytes.len()
                )));
            }
            for hash in hashes {
                digests.extend(Digest::from_key(&[&[tag], hash].concat()));
            }
        }
        Ok(digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digests_come_back(seeds in proptest::collection::btree_set(any::<(bool, u16)>(), 0..40)) {
            let digest = |(wide, seed): &(bool, u16)| Digest::of(Algorithm::ALL[usize::from(*wide)], &seed.to_le_bytes());
            let digests: BTreeSet<Digest> = seeds.iter().map(digest).collect();
            prop_assert_eq!(Packed::of(&digests).digests().unwrap(), digests);
        }

        #[test]
        fn any_text_is_read_or_refused(sha256 in ".{0,90}", sha512 in "[A-Za-z0-9+/=]{0,90}") {
            let _ = Packed { sha256, sha512 }.digests();
        }
    }
}
