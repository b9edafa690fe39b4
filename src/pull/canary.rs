//! Canaries: images that nobody but this proxy can answer, by which the checkup sees whether a client's pulls come here.
//!
//! A canary is a tag of 128 random bits in a repository that is reserved under every upstream ([`REPOSITORY`]). Its image
//! has a few KiB, is made in memory for this tag alone, lives for minutes and is written nowhere. No client's request for
//! that repository goes on to an upstream; without the tag, or a digest that is made from it, the answer is a 404.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;

use crate::oci::{Digest, media_type};

/// Reserved under every upstream, also below another path.
pub use crate::oci::name::RESERVED_REPOSITORY as REPOSITORY;
/// Returns true for the reserved repository, as an upstream would know it.
pub use crate::oci::name::is_reserved as is_canary;

/// How long one is answered.
const LIFE: Duration = Duration::from_secs(300);
/// Canaries at once: a checkup needs two for each registry, one after the other.
const MOST: usize = 64;
/// Requests of one that are remembered.
const MOST_SEEN: usize = 32;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Letters of an architecture's name.
const MOST_LETTERS: usize = 32;

/// A new canary, as its maker is told of it.
#[derive(Clone, Debug)]
pub struct MadeCanary {
    pub tag: String,
    /// The manifest's.
    pub digest: Digest,
    pub life: Duration,
}

/// Why none is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanaryError {
    #[error("there are {} canaries already: they end by themselves, in {} minutes at most", MOST, LIFE.as_secs() / 60)]
    TooMany,
    #[error("the architecture is no name such as amd64 or arm64")]
    Architecture,
    #[error("the system has no random numbers")]
    NoRandom,
}

/// A request for a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// `manifest` or `blob`.
    pub kind: &'static str,
    pub by_digest: bool,
    /// The upstream and the repository that the proxy took it for.
    pub image: String,
    /// Path and query as they came.
    pub path: String,
    pub client: String,
    /// False if the caller has no right to anything under that name.
    pub is_allowed: bool,
}

/// A document that is given out for a request.
#[derive(Clone, Debug)]
pub struct CanaryDocument {
    pub digest: Digest,
    pub media_type: &'static str,
    pub bytes: Bytes,
}

struct Canary {
    tag: String,
    until: Instant,
    /// The manifest first.
    documents: Vec<CanaryDocument>,
    seen: Vec<SeenRequest>,
}

/// The canaries that are alive.
#[derive(Default)]
pub struct Canaries {
    live: Mutex<Vec<Canary>>,
}

impl Canaries {
    /// Makes one. `architecture` is the client's, in Go's words: a client refuses an image for another.
    pub fn make(&self, architecture: &str) -> Result<MadeCanary, CanaryError> {
        let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if architecture.is_empty() || architecture.len() > MOST_LETTERS || !architecture.bytes().all(is_letter) {
            return Err(CanaryError::Architecture);
        }
        let mut random = [0; 16];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| CanaryError::NoRandom)?;
        let tag: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let documents = documents(&tag, architecture);
        let mut live = self.live();
        if live.len() >= MOST {
            return Err(CanaryError::TooMany);
        }
        let digest = documents[0].digest;
        live.push(Canary {
            tag: tag.clone(),
            until: Instant::now() + LIFE,
            documents,
            seen: Vec::new(),
        });
        Ok(MadeCanary {
            tag,
            digest,
            life: LIFE,
        })
    }

    /// The manifest of a tag, and a note that it was asked for.
    pub fn by_tag(&self, tag: &str, seen: SeenRequest) -> Option<CanaryDocument> {
        self.find(seen, |canary| (canary.tag == tag).then_some(0))
    }

    /// A manifest or blob by its digest, likewise.
    pub fn by_digest(&self, digest: &Digest, seen: SeenRequest) -> Option<CanaryDocument> {
        let is_manifest = seen.kind == "manifest";
        self.find(seen, |canary| {
            let at = canary
                .documents
                .iter()
                .position(|document| document.digest == *digest)?;
            (is_manifest == (at == 0)).then_some(at)
        })
    }

    fn find(&self, seen: SeenRequest, at: impl Fn(&Canary) -> Option<usize>) -> Option<CanaryDocument> {
        let mut live = self.live();
        let (canary, at) = live.iter_mut().find_map(|canary| at(canary).map(|at| (canary, at)))?;
        if canary.seen.len() < MOST_SEEN {
            canary.seen.push(seen);
        }
        Some(canary.documents[at].clone())
    }

    /// The requests that came for one, in their order. `None`: there is none of that tag, or no longer.
    pub fn seen(&self, tag: &str) -> Option<Vec<SeenRequest>> {
        let live = self.live();
        live.iter()
            .find(|canary| canary.tag == tag)
            .map(|canary| canary.seen.clone())
    }

    /// Ends one. Returns true if there was one.
    pub fn remove(&self, tag: &str) -> bool {
        let mut live = self.live();
        let before = live.len();
        live.retain(|canary| canary.tag != tag);
        live.len() < before
    }

    /// Drops the canaries whose time is over, and locks the others.
    fn live(&self) -> MutexGuard<'_, Vec<Canary>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        live.retain(|canary| canary.until > now);
        live
    }
}

/// Manifest, configuration and one layer, all of them different for each tag, so that no client has any of it already.
fn documents(tag: &str, architecture: &str) -> Vec<CanaryDocument> {
    let document = |media_type: &'static str, bytes: Vec<u8>| CanaryDocument {
        digest: Digest::sha256(&bytes),
        media_type,
        bytes: bytes.into(),
    };
    let layer = document(LAYER, layer(tag));
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Labels": { "larder.canary": tag } },
        "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
    });
    let config = document(CONFIG, config.to_string().into_bytes());
    let descriptor = |document: &CanaryDocument| json!({ "mediaType": document.media_type, "digest": document.digest, "size": document.bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(&config),
        "layers": [descriptor(&layer)],
    });
    vec![
        document(media_type::OCI_MANIFEST, manifest.to_string().into_bytes()),
        config,
        layer,
    ]
}

/// An archive with one small file. Not compressed: it is its own diff ID then.
fn layer(tag: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(tag.len() as u64);
    header.set_mode(0o444);
    // A buffer in memory takes everything.
    let _ = archive.append_data(&mut header, "larder-canary", tag.as_bytes());
    archive.into_inner().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: &'static str) -> SeenRequest {
        SeenRequest {
            kind,
            by_digest: false,
            image: format!("docker.io/{REPOSITORY}"),
            path: "/v2/".to_owned(),
            client: "192.0.2.1".to_owned(),
            is_allowed: true,
        }
    }

    #[test]
    fn the_reserved_name() {
        for name in [REPOSITORY, "org/larder-doctor/canary"] {
            assert!(is_canary(name), "{name}");
        }
        for name in ["a-larder-doctor/canary", "larder-doctor/canary/a", "canary", ""] {
            assert!(!is_canary(name), "{name}");
        }
    }

    #[test]
    fn a_canary_answers_to_its_own_names_only() {
        let canaries = Canaries::default();
        let one = canaries.make("amd64").unwrap();
        let other = canaries.make("amd64").unwrap();
        assert_ne!(one.tag, other.tag);
        let manifest = canaries.by_tag(&one.tag, request("manifest")).unwrap();
        assert_eq!(
            (manifest.digest, manifest.media_type),
            (one.digest, media_type::OCI_MANIFEST)
        );
        let document: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
        for blob in [&document["config"], &document["layers"][0]] {
            let digest: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
            let found = canaries.by_digest(&digest, request("blob")).unwrap();
            assert_eq!(Digest::sha256(&found.bytes), digest);
            assert_eq!(blob["size"].as_u64().unwrap(), found.bytes.len() as u64);
            assert!(canaries.by_digest(&digest, request("manifest")).is_none());
        }
        assert!(canaries.by_digest(&one.digest, request("manifest")).is_some());
        assert!(canaries.by_tag("latest", request("manifest")).is_none());
        assert_eq!(canaries.seen(&one.tag).unwrap().len(), 4);
        assert!(canaries.seen(&other.tag).unwrap().is_empty());
        assert!(canaries.remove(&one.tag) && !canaries.remove(&one.tag));
        assert!(canaries.by_tag(&one.tag, request("manifest")).is_none());
    }

    #[test]
    fn their_number_and_their_notes_are_bounded() {
        let canaries = Canaries::default();
        let first = canaries.make("arm64").unwrap();
        for _ in 1..MOST {
            canaries.make("arm64").unwrap();
        }
        assert_eq!(canaries.make("arm64").unwrap_err(), CanaryError::TooMany);
        for _ in 0..2 * MOST_SEEN {
            canaries.by_tag(&first.tag, request("manifest")).unwrap();
        }
        assert_eq!(canaries.seen(&first.tag).unwrap().len(), MOST_SEEN);
        // One whose time is over makes room, and is answered no more.
        canaries.live.lock().unwrap()[0].until = Instant::now();
        assert!(canaries.by_tag(&first.tag, request("manifest")).is_none());
        canaries.make("arm64").unwrap();
        for bad in ["", "AMD64", "a/b", &"a".repeat(33)] {
            assert_eq!(canaries.make(bad).unwrap_err(), CanaryError::Architecture, "{bad}");
        }
    }
}
