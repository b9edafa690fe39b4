//! The upstream's content, made and changed from a seed.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use fastrand::Rng;
use larder::oci::{Digest, media_type};
use serde_json::json;

use crate::facts::Facts;
use crate::support;
use crate::support::upstream::Upstream;

/// Layers that images share. Edges of blocks, of what is verified before its header goes out, of one write;
/// and some that take a while.
const LAYER_SIZES: [usize; 14] = [
    0, 1, 100, 4095, 4096, 4097, 16_384, 60_000, 65_537, 300_000, 1_100_000, 1_500_000, 2_500_000, 3_200_000,
];
pub const REPOS: [&str; 4] = ["team/alpha", "team/beta", "gamma/one", "gamma/two"];
const TAGS: [&str; 4] = ["latest", "1", "1.2", "edge"];

/// Something that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    pub repo: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    Blob(Digest),
    Manifest(Digest),
    Tag(String),
    Tags,
}

impl Item {
    pub fn new(repo: &str, what: What) -> Item {
        Item {
            repo: repo.to_owned(),
            what,
        }
    }

    pub fn digest(&self) -> Option<Digest> {
        match &self.what {
            What::Blob(digest) | What::Manifest(digest) => Some(*digest),
            What::Tag(_) | What::Tags => None,
        }
    }

    pub fn path(&self) -> String {
        match &self.what {
            What::Blob(digest) => support::blob(&self.repo, digest),
            What::Manifest(digest) => support::manifest(&self.repo, digest),
            What::Tag(tag) => support::manifest(&self.repo, tag),
            What::Tags => format!("/v2/{}/tags/list", self.repo),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

pub struct World {
    pub upstream: Upstream,
    facts: Mutex<Facts>,
}

impl World {
    pub async fn new(rng: &mut Rng) -> World {
        let world = World {
            upstream: Upstream::start().await,
            facts: Mutex::default(),
        };
        for size in LAYER_SIZES {
            let layer = world.fresh(size);
            world.facts().layers.push(layer);
        }
        for repo in REPOS {
            for tag in TAGS {
                world.add_image(repo, tag, rng);
            }
        }
        world
    }

    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tags move, images come.
    pub fn evolve(&self, rng: &mut Rng) {
        for _ in 0..rng.usize(1..=3) {
            let (repo, tag) = (pick(rng, &REPOS), pick(rng, &TAGS));
            if rng.bool() {
                let fresh = format!("v{}", rng.u32(..10_000));
                self.add_image(repo, if rng.bool() { tag } else { &fresh }, rng);
            } else {
                let images = self.facts().images_of(repo);
                self.point(repo, tag, pick(rng, &images));
            }
        }
    }

    /// An image of layers that others have too and one that is its own.
    fn add_image(&self, repo: &str, tag: &str, rng: &mut Rng) {
        let mut layers = self.facts().layers.clone();
        rng.shuffle(&mut layers);
        layers.truncate(rng.usize(1..=3));
        let own = if rng.u8(..4) == 0 {
            rng.usize(1_000_000..3_000_000)
        } else {
            rng.usize(..200_000)
        };
        layers.push(self.fresh(own));
        let config = self.fresh(rng.usize(100..3000));
        let described = |digest: &Digest, kind: &str| {
            let size = self.bytes(digest).len();
            json!({"mediaType": kind, "digest": digest, "size": size})
        };
        let layer = |digest| described(digest, "application/vnd.oci.image.layer.v1.tar+gzip");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": described(&config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let bytes = Bytes::from(manifest.to_string());
        let digest = Digest::sha256(&bytes);
        layers.push(config);
        {
            let mut facts = self.facts();
            facts.bytes.insert(digest, bytes.clone());
            facts.images.insert(digest, (repo.to_owned(), layers.clone()));
            for part in layers.iter().chain([&digest]) {
                facts.holds.entry((repo.to_owned(), *part)).or_insert_with(Instant::now);
            }
        }
        for part in &layers {
            self.upstream.put_blob(repo, self.bytes(part));
        }
        self.upstream.put_manifest(repo, None, media_type::OCI_MANIFEST, bytes);
        self.point(repo, tag, &digest);
    }

    /// Written down before anybody can see it.
    fn point(&self, repo: &str, tag: &str, to: &Digest) {
        let mut facts = self.facts();
        let key = (repo.to_owned(), tag.to_owned());
        facts.history.entry(key).or_default().push(*to);
        let list = facts.tags_of(repo);
        facts.lists.entry(repo.to_owned()).or_default().insert(list);
        self.upstream.move_tag(repo, tag, to);
    }

    fn fresh(&self, size: usize) -> Digest {
        let mut facts = self.facts();
        facts.next += 1;
        let bytes = Bytes::from(support::noise(facts.next, size));
        let digest = Digest::sha256(&bytes);
        facts.bytes.insert(digest, bytes);
        digest
    }

    pub fn bytes(&self, digest: &Digest) -> Bytes {
        let found = self.facts().bytes.get(digest).cloned();
        found.unwrap_or_else(|| panic!("nobody ever had {digest}"))
    }

    /// Bytes of what the world knows; 0 for what it does not.
    pub fn size(&self, digest: &Digest) -> u64 {
        self.facts().bytes.get(digest).map_or(0, |bytes| bytes.len() as u64)
    }
}

pub fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}
