//! `algorithm:hex`, and the hash that proves it (image-spec, descriptor § Digests; R-S5, R-S16).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// The registered hash algorithms. Anything else is refused where it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// As in a digest and as the folder name under `blobs/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the hash in bytes.
    pub fn hash_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// Every algorithm, for walking the folders of a layout.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];
}

/// A parsed digest: 33 to 65 bytes, cheap to copy, orders by algorithm then hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    // sha256 fills the first 32 bytes; the rest stays zero so that derived equality holds.
    hash: [u8; 64],
}

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("{0:?} is not a digest: expected `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits")]
    Malformed(String),
    #[error("digest algorithm {0:?} is not supported: expected sha256 or sha512")]
    Algorithm(String),
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, bytes)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash itself, 32 or 64 bytes.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..self.algorithm.hash_len()]
    }

    /// The hash as lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(128);
        for byte in self.hash() {
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        out
    }

    /// Algorithm tag and hash as one compact key: 33 or 65 bytes.
    pub fn to_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(65);
        self.write_key(&mut key);
        key
    }

    /// Appends [`Digest::to_key`] to `bytes`.
    pub fn write_key(&self, bytes: &mut Vec<u8>) {
        bytes.push(match self.algorithm {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        });
        bytes.extend_from_slice(self.hash());
    }

    /// The reverse of [`Digest::to_key`]; `None` for bytes that no digest gives.
    pub fn from_key(key: &[u8]) -> Option<Digest> {
        let (algorithm, hash) = Digest::split_tag(key)?;
        Digest::from_hash(algorithm, hash)
    }

    /// The key at the start of `bytes`, and what comes behind it.
    pub fn split_key(bytes: &[u8]) -> Option<(Digest, &[u8])> {
        let (algorithm, rest) = Digest::split_tag(bytes)?;
        let (hash, rest) = rest.split_at_checked(algorithm.hash_len())?;
        Some((Digest::from_hash(algorithm, hash)?, rest))
    }

    fn split_tag(key: &[u8]) -> Option<(Algorithm, &[u8])> {
        let (tag, rest) = key.split_first()?;
        match tag {
            1 => Some((Algorithm::Sha256, rest)),
            2 => Some((Algorithm::Sha512, rest)),
            _ => None,
        }
    }

    /// The SHA-256 digest with this hash.
    pub fn from_sha256(sha256: [u8; 32]) -> Digest {
        let mut hash = [0u8; 64];
        hash[..32].copy_from_slice(&sha256);
        Digest {
            algorithm: Algorithm::Sha256,
            hash,
        }
    }

    /// From an algorithm and lower-case hex, as they stand in a file name.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Option<Digest> {
        if hex.len() != algorithm.hash_len() * 2 {
            return None;
        }
        let mut hash = [0u8; 64];
        for (slot, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *slot = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest { algorithm, hash })
    }

    fn from_hash(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
        if bytes.len() != algorithm.hash_len() {
            return None;
        }
        let mut hash = [0u8; 64];
        hash[..bytes.len()].copy_from_slice(bytes);
        Some(Digest { algorithm, hash })
    }
}

/// All of the hash and nothing else: what people ask for need not be the hash of anything, so no part of it can be
/// trusted to tell two digests apart.
impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.hash());
    }
}

// Upper case is refused: two spellings of one digest would be two keys (R-S5).
fn nibble(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let shown = || text.chars().take(160).collect::<String>();
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Malformed(shown()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other if is_algorithm_name(other) => {
                return Err(DigestError::Algorithm(other.chars().take(64).collect()));
            }
            _ => return Err(DigestError::Malformed(shown())),
        };
        Digest::from_hex(algorithm, hex).ok_or_else(|| DigestError::Malformed(shown()))
    }
}

fn is_algorithm_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .split(['+', '.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A running hash. The store's writer is the only one that decides by it.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// What SHA-256 is computed by here: the same question that sha2 asks the processor.
    pub fn sha256_by() -> &'static str {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("sha") && std::arch::is_x86_feature_detected!("sse4.1") {
            return "SHA-NI";
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("sha2") {
            return "ARMv8 SHA-2";
        }
        "software"
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let mut hash = [0u8; 64];
        let algorithm = match self {
            Hasher::Sha256(hasher) => {
                hash[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            Hasher::Sha512(hasher) => {
                hash.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_hashes() {
        assert_eq!(
            Digest::sha256(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert!(
            Digest::of(Algorithm::Sha512, b"")
                .to_string()
                .starts_with("sha512:cf83e1357eefb8bd")
        );
    }

    /// R-S5: exact length, lower case, known algorithm.
    #[test]
    fn refuses_what_is_no_digest() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:totallywrong",
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha256:{hex}0"),
            &format!("sha512:{hex}"),
            &format!("SHA256:{hex}"),
            &format!("sha256:../{hex}"),
            &format!(":{hex}"),
        ] {
            assert!(matches!(bad.parse::<Digest>(), Err(DigestError::Malformed(_))), "{bad}");
        }
        assert_eq!(
            format!("blake3:{hex}").parse::<Digest>(),
            Err(DigestError::Algorithm("blake3".to_owned()))
        );
    }

    proptest! {
        #[test]
        fn text_and_key_round_trip(bytes: Vec<u8>, wide: bool) {
            let algorithm = if wide { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::of(algorithm, &bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            prop_assert_eq!(Digest::from_key(&digest.to_key()), Some(digest));
        }

        #[test]
        fn parsing_never_panics(text: String) {
            let _ = text.parse::<Digest>();
        }
    }
}
