//! What a registry holds. A repository serves only what was put into it (for L8).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use larder::oci::{Algorithm, Digest, Tag, media_type};
use serde_json::{Value, json};

use crate::support::noise;

/// An image as it was put, with all that a test compares.
#[derive(Clone, Debug)]
pub struct Image {
    pub repo: String,
    pub media_type: &'static str,
    /// Digest of the manifest.
    pub manifest: Digest,
    pub bytes: Bytes,
    pub config: Digest,
    pub layers: Vec<Digest>,
}

impl Image {
    /// Config first, then the layers in order.
    pub fn blobs(&self) -> Vec<Digest> {
        std::iter::once(self.config)
            .chain(self.layers.iter().copied())
            .collect()
    }
}

/// An index or manifest list, or an artifact.
#[derive(Clone, Debug)]
pub struct Document {
    pub repo: String,
    pub media_type: &'static str,
    pub manifest: Digest,
    pub bytes: Bytes,
}

/// How the lists of a registry behave.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Most items on a page, whatever `n` says.
    pub page: Option<usize>,
    pub link: LinkStyle,
    /// `"tags": null` for a repository without tags.
    pub null_tags: bool,
    /// The first page again, whatever `last` says.
    pub ignores_last: bool,
}

#[derive(Clone, Debug)]
pub enum LinkStyle {
    /// `</v2/…>; rel="next"`
    Relative,
    /// On the host that was asked.
    Absolute,
    /// On this base URL, whoever that is.
    On(String),
    /// `<…>; rel=next`
    Unquoted,
    /// The query is right, and the path is this.
    AtPath(String),
    /// `/v2/…; rel="next"`
    Bare,
}

pub struct Content(Mutex<State>);

pub struct State {
    pub repos: BTreeMap<String, Repo>,
    pub listing: Listing,
    pub referrers: ReferrersApi,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferrersApi {
    On,
    /// Filters by artifactType and says so.
    Filtering,
    /// 404, as by registries that have never heard of it.
    Off,
}

#[derive(Default)]
pub struct Repo {
    pub blobs: HashMap<Digest, Bytes>,
    pub manifests: HashMap<Digest, Manifest>,
    pub tags: BTreeMap<String, Digest>,
    // sha512 names of manifests that are listed once, under sha256.
    aliases: HashSet<Digest>,
}

#[derive(Clone)]
pub struct Manifest {
    pub media_type: String,
    pub bytes: Bytes,
}

impl Content {
    pub fn new() -> Content {
        Content(Mutex::new(State {
            repos: BTreeMap::new(),
            listing: Listing {
                page: None,
                link: LinkStyle::Relative,
                null_tags: false,
                ignores_last: false,
            },
            referrers: ReferrersApi::On,
            seed: 0,
        }))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that nothing else here has.
    pub fn fresh_bytes(&self, length: usize) -> Vec<u8> {
        let mut state = self.state();
        state.seed += 1;
        noise(state.seed, length)
    }

    pub fn put_blob(&self, repo: &str, algorithm: Algorithm, bytes: Bytes) -> Digest {
        let digest = Digest::of(algorithm, &bytes);
        self.state().repo(repo).blobs.insert(digest, bytes);
        digest
    }

    pub fn put_manifest(&self, repo: &str, tag: Option<&str>, media_type: &str, bytes: Bytes) -> Digest {
        let digest = Digest::sha256(&bytes);
        let long = Digest::of(Algorithm::Sha512, &bytes);
        let mut state = self.state();
        let repo = state.repo(repo);
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            bytes,
        };
        repo.manifests.insert(long, manifest.clone());
        repo.manifests.insert(digest, manifest);
        repo.aliases.insert(long);
        if let Some(tag) = tag {
            repo.tags.insert(tag.to_owned(), digest);
        }
        digest
    }

    pub fn image(&self, repo: &str, tag: Option<&str>, layer_sizes: &[usize], docker: bool) -> Image {
        let (media_type, config_type, layer_type) = if docker {
            (
                media_type::DOCKER_MANIFEST,
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            )
        } else {
            (
                media_type::OCI_MANIFEST,
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            )
        };
        let mut layers = Vec::new();
        let mut described = Vec::new();
        for size in layer_sizes {
            let digest = self.put_blob(repo, Algorithm::Sha256, self.fresh_bytes(*size).into());
            described.push(json!({"mediaType": layer_type, "size": size, "digest": digest}));
            layers.push(digest);
        }
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": layers},
            "config": {"Labels": {"made": self.fresh_bytes(4)}},
        });
        let config = Bytes::from(config.to_string());
        let config_size = config.len();
        let config = self.put_blob(repo, Algorithm::Sha256, config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {"mediaType": config_type, "size": config_size, "digest": config},
            "layers": described,
        });
        // Indented on purpose: whoever re-encodes it changes the digest (L9).
        let bytes = Bytes::from(format!("{manifest:#}\n"));
        let manifest = self.put_manifest(repo, tag, media_type, bytes.clone());
        Image {
            repo: repo.to_owned(),
            media_type,
            manifest,
            bytes,
            config,
            layers,
        }
    }

    pub fn index(&self, repo: &str, tag: Option<&str>, children: &[Digest], docker: bool) -> Document {
        let media_type = if docker {
            media_type::DOCKER_LIST
        } else {
            media_type::OCI_INDEX
        };
        let platforms = ["amd64", "arm64", "riscv64", "s390x"];
        let mut described = Vec::new();
        for (at, child) in children.iter().enumerate() {
            let held = self.manifest(repo, child);
            described.push(json!({
                "mediaType": held.media_type,
                "size": held.bytes.len(),
                "digest": child,
                "platform": {"os": "linux", "architecture": platforms[at % platforms.len()]},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": described});
        let bytes = Bytes::from(format!("{index:#}\n"));
        let manifest = self.put_manifest(repo, tag, media_type, bytes.clone());
        Document {
            repo: repo.to_owned(),
            media_type,
            manifest,
            bytes,
        }
    }

    pub fn artifact(&self, repo: &str, subject: Digest, artifact_type: &str) -> Document {
        let held = self.manifest(repo, &subject);
        let blob = self.fresh_bytes(64);
        let layer = self.put_blob(repo, Algorithm::Sha256, blob.clone().into());
        let empty = self.put_blob(repo, Algorithm::Sha256, Bytes::from_static(b"{}"));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": empty},
            "layers": [{"mediaType": artifact_type, "size": blob.len(), "digest": layer}],
            "subject": {"mediaType": held.media_type, "size": held.bytes.len(), "digest": subject},
            "annotations": {"org.example.made-for": "tests"},
        });
        let bytes = Bytes::from(manifest.to_string());
        let manifest = self.put_manifest(repo, None, media_type::OCI_MANIFEST, bytes.clone());
        Document {
            repo: repo.to_owned(),
            media_type: media_type::OCI_MANIFEST,
            manifest,
            bytes,
        }
    }

    /// The index of what refers to `subject`, under its fallback tag.
    pub fn put_referrers_tag(&self, repo: &str, subject: Digest) -> Document {
        let listed = self.state().repo(repo).referrers_of(&subject);
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": listed});
        let bytes = Bytes::from(index.to_string());
        let tag = Tag::of_referrers(&subject);
        let manifest = self.put_manifest(repo, Some(tag.as_str()), media_type::OCI_INDEX, bytes.clone());
        Document {
            repo: repo.to_owned(),
            media_type: media_type::OCI_INDEX,
            manifest,
            bytes,
        }
    }

    fn manifest(&self, repo: &str, digest: &Digest) -> Manifest {
        let state = self.state();
        let found = state.repos.get(repo).and_then(|r| r.manifests.get(digest));
        found
            .cloned()
            .unwrap_or_else(|| panic!("{repo} holds no manifest {digest}"))
    }
}

impl State {
    /// Made if it is not there.
    pub fn repo(&mut self, name: &str) -> &mut Repo {
        self.repos.entry(name.to_owned()).or_default()
    }

    /// Bytes and media type, whatever repository has it.
    pub fn anywhere(&self, digest: &Digest) -> Option<(Bytes, Option<String>)> {
        self.repos.values().find_map(|repo| {
            let blob = repo.blobs.get(digest).map(|bytes| (bytes.clone(), None));
            blob.or_else(|| {
                let manifest = repo.manifests.get(digest)?;
                Some((manifest.bytes.clone(), Some(manifest.media_type.clone())))
            })
        })
    }
}

impl Repo {
    /// Descriptors of every manifest here whose subject it is, by digest.
    pub fn referrers_of(&self, subject: &Digest) -> Vec<Value> {
        let mut found = BTreeMap::new();
        for (digest, manifest) in self.manifests.iter().filter(|(d, _)| !self.aliases.contains(d)) {
            let Ok(document) = serde_json::from_slice::<Value>(&manifest.bytes) else {
                continue;
            };
            if document["subject"]["digest"].as_str() != Some(&subject.to_string()) {
                continue;
            }
            let mut descriptor = json!({
                "mediaType": manifest.media_type,
                "size": manifest.bytes.len(),
                "digest": digest,
            });
            for key in ["artifactType", "annotations"] {
                if !document[key].is_null() {
                    descriptor[key] = document[key].clone();
                }
            }
            found.insert(*digest, descriptor);
        }
        found.into_values().collect()
    }
}
