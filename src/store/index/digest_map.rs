//! Hashing digests cheaply. A digest is already a hash: eight of its bytes, stirred with a secret, are as good a
//! hash as any. The secret matters: who can choose content can choose digests that begin alike.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::oci::Digest;

pub(in crate::store) type DigestMap<V> = HashMap<Digest, V, DigestState>;

/// Stirs with secrets of its own.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct DigestState {
    mask: u64,
    factor: u64,
}

impl Default for DigestState {
    fn default() -> DigestState {
        let secret = |n: u64| RandomState::new().hash_one(n);
        DigestState {
            mask: secret(1),
            factor: secret(2) | 1,
        }
    }
}

impl DigestState {
    pub(super) fn digest(&self, digest: &Digest) -> u64 {
        let head = digest.hash().first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
        self.stir(head)
    }

    /// Both halves of the product: its low bits choose the bucket, its high ones tell neighbours apart.
    fn stir(&self, value: u64) -> u64 {
        let product = u128::from(value ^ self.mask) * u128::from(self.factor);
        #[allow(clippy::cast_possible_truncation)]
        let (low, high) = (product as u64, (product >> 64) as u64);
        low ^ high
    }
}

impl BuildHasher for DigestState {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher { state: *self, sum: 0 }
    }
}

/// Takes the first bytes of a long piece for the whole: made for digests, right for anything.
pub(in crate::store) struct DigestHasher {
    state: DigestState,
    sum: u64,
}

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.sum
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(head) = bytes.first_chunk() {
            self.write_u64(u64::from_le_bytes(*head));
        } else {
            for byte in bytes {
                self.write_u64(u64::from(*byte));
            }
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.sum = self.state.stir(self.sum.rotate_left(23) ^ value);
    }

    // What comes before the hash in a digest: which algorithm, how long. No two digests differ in these alone.
    fn write_isize(&mut self, _: isize) {}

    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests that begin alike end up far apart, and apart from one process to the next.
    #[test]
    fn spreads() {
        let state = DigestState::default();
        let mut buckets = [0u32; 256];
        for n in 0..25_600u64 {
            let mut hash = [0u8; 32];
            hash[..8].copy_from_slice(&(n << 40).to_le_bytes());
            let key: Vec<u8> = std::iter::once(1).chain(hash).collect();
            let digest = Digest::from_key(&key).unwrap();
            buckets[(state.digest(&digest) % 256) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (30..300).contains(n)), "{buckets:?}");
        let digest = Digest::sha256(b"x");
        assert_ne!(state.digest(&digest), DigestState::default().digest(&digest));
        assert_eq!(state.hash_one(digest), state.hash_one(digest));
    }
}
