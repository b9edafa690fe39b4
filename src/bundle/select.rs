//! What the named images need, and what of it is held.
//!
//! Held means held for the image's own repository: a manifest may name any digest in the world, also one that another
//! repository keeps to itself (L8). An index counts as whole with the platforms that are held; its bytes stay as they
//! are, and the catalogue names those that are not. What refers to an image goes with it, if it is held.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Deserialize;
use serde_json::Value;

use super::catalog::{Image, Referrers};
use super::error::BundleError;
use crate::oci::Digest;
use crate::oci::manifest::Manifest;
use crate::store::{ImageName, ListKey, Store, StoreError};
use crate::text::is_visible;

/// Indexes within indexes.
const MAX_DEPTH: usize = 8;
/// Larger configs are not read for their platform.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// What signs an image under a tag made from its digest (cosign); the bare tag lists referrers (R-S21).
const TAG_ENDINGS: [&str; 4] = ["", ".sig", ".att", ".sbom"];

/// The images of a bundle and all that they need.
#[derive(Debug, Default)]
pub struct Selection {
    /// By name.
    pub images: Vec<Image>,
    pub needs: BTreeMap<Digest, Need>,
    /// Names of those that are not held whole, which are not among the images.
    pub incomplete: Vec<String>,
}

/// A blob that goes with an image.
#[derive(Clone, Debug)]
pub struct Need {
    pub size: u64,
    /// Of manifests.
    pub media_type: Option<String>,
    /// The first image that needs it.
    pub image: u32,
}

/// Looks the images up. Errors: one of them is not known.
pub fn select(store: &Store, names: &[ImageName]) -> Result<Selection, BundleError> {
    let mut wanted: BTreeSet<ImageName> = names.iter().cloned().collect();
    let mut queue: VecDeque<ImageName> = wanted.iter().cloned().collect();
    let mut found = BTreeMap::new();
    let mut selection = Selection::default();
    while let Some(name) = queue.pop_front() {
        let image = store.image(&name.repository, &name.reference);
        let image = image.ok_or_else(|| BundleError::Nothing(format!("{name} is not held")))?;
        let Some(whole) = whole_image(store, &image)? else {
            selection.incomplete.push(name.to_string());
            continue;
        };
        for tag in signing_tags(store, &name.repository, &whole.manifests) {
            let more = ImageName::new(&name.repository, &tag);
            if wanted.insert(more.clone()) {
                queue.push_back(more);
            }
        }
        found.insert(name, whole);
    }
    for (at, (_, whole)) in found.into_iter().enumerate() {
        let at = u32::try_from(at).map_err(|_| BundleError::Bad("too many images".to_owned()))?;
        for digest in whole.parts {
            let size = store.size(&digest).ok_or_else(|| BundleError::Gone(Box::new(digest)))?;
            let media_type = store.media_type(&digest).map(|media_type| media_type.to_string());
            selection.needs.entry(digest).or_insert(Need {
                size,
                media_type,
                image: at,
            });
        }
        selection.images.push(whole.image);
    }
    selection.incomplete.sort_unstable();
    Ok(selection)
}

struct Whole {
    image: Image,
    parts: BTreeSet<Digest>,
    manifests: Vec<Digest>,
}

/// What one image needs; `None` if some of it is not held.
fn whole_image(store: &Store, image: &crate::store::Image) -> Result<Option<Whole>, BundleError> {
    let repository = &*image.name.repository;
    let look = Look {
        store,
        repository,
        unreadable: RefCell::default(),
    };
    let whole = whole_from(&look, image);
    // A blob that cannot be read at the moment is not missing: a bundle without it would be taken for all there is.
    match look.unreadable.into_inner() {
        Some(error) => Err(error.into()),
        None => Ok(whole),
    }
}

fn whole_from(look: &Look<'_>, image: &crate::store::Image) -> Option<Whole> {
    let Look { store, repository, .. } = look;
    let mut tree = look.tree(&image.digest, 0)?;
    let referrers = look.referrers(&mut tree);
    let media_type = store.media_type(&image.digest)?;
    let tag = image.record.as_ref().map(|_| image.name.reference.clone());
    Some(Whole {
        image: Image {
            repository: (*repository).to_owned(),
            tag,
            digest: image.digest,
            media_type: media_type.to_string(),
            size: store.size(&image.digest)?,
            platforms: tree.platforms,
            absent: tree.absent.iter().copied().collect(),
            checked_ms: image.record.as_ref().map(|record| record.checked_ms),
            private: store.is_private(repository),
            referrers,
        },
        parts: tree.parts,
        manifests: tree.manifests,
    })
}

fn signing_tags(store: &Store, repository: &str, manifests: &[Digest]) -> Vec<String> {
    let of = |digest: &Digest| {
        let stem = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        TAG_ENDINGS.map(|ending| format!("{stem}{ending}"))
    };
    let is_held = |tag: &String| {
        store
            .tag(repository, tag)
            .is_some_and(|record| store.size(&record.digest).is_some())
    };
    manifests.iter().flat_map(of).filter(is_held).collect()
}

/// A manifest and everything below it that is held.
#[derive(Default)]
struct Tree {
    parts: BTreeSet<Digest>,
    manifests: Vec<Digest>,
    absent: BTreeSet<Digest>,
    platforms: Vec<String>,
}

impl Tree {
    fn join(&mut self, other: Tree) {
        self.parts.extend(other.parts);
        self.manifests.extend(other.manifests);
        self.absent.extend(other.absent);
    }
}

struct Look<'a> {
    store: &'a Store,
    repository: &'a str,
    /// The last thing that is held and could not be read.
    unreadable: RefCell<Option<StoreError>>,
}

impl Look<'_> {
    fn readable<T>(&self, read: Result<Option<T>, StoreError>) -> Option<T> {
        read.unwrap_or_else(|error| {
            *self.unreadable.borrow_mut() = Some(error);
            None
        })
    }

    fn has(&self, digest: &Digest) -> bool {
        self.store.size(digest).is_some() && self.store.linked(self.repository, digest)
    }

    /// `None` if something is missing that nobody can do without.
    fn tree(&self, root: &Digest, depth: usize) -> Option<Tree> {
        if depth > MAX_DEPTH || !self.has(root) {
            return None;
        }
        let held = self.readable(self.store.peek_manifest(root))?;
        let manifest = Manifest::parse(&held.bytes, Some(&held.media_type)).ok()?;
        let mut tree = Tree {
            parts: BTreeSet::from([*root]),
            manifests: vec![*root],
            ..Tree::default()
        };
        let is_index = manifest.descriptors.iter().any(|child| child.is_manifest);
        let platforms = if is_index {
            platforms_of(&held.bytes)
        } else {
            BTreeMap::new()
        };
        let mut images = 0;
        for child in &manifest.descriptors {
            if !child.is_manifest {
                let elsewhere = child.media_type.as_deref().is_some_and(is_kept_elsewhere);
                match self.has(&child.digest) {
                    true => tree.parts.insert(child.digest),
                    false if elsewhere => tree.absent.insert(child.digest),
                    false => return None,
                };
                continue;
            }
            match self.tree(&child.digest, depth + 1) {
                Some(below) => {
                    tree.join(below);
                    match platforms.get(&child.digest) {
                        Some(platform) if platform == "unknown/unknown" => {}
                        platform => {
                            images += 1;
                            tree.platforms.extend(platform.cloned());
                        }
                    }
                }
                None => {
                    tree.absent.insert(child.digest);
                }
            }
        }
        // The same child may stand there twice, and be found below another.
        tree.absent.retain(|digest| !tree.parts.contains(digest));
        if is_index && images == 0 {
            return None;
        }
        if !is_index {
            let config = manifest.descriptors.first().filter(|child| {
                let media_type = child.media_type.as_deref().unwrap_or_default();
                media_type.contains("image.config") || media_type.contains("container.image")
            });
            tree.platforms
                .extend(config.and_then(|config| self.platform(&config.digest)));
        }
        Some(tree)
    }

    /// By its config.
    fn platform(&self, config: &Digest) -> Option<String> {
        let held = self
            .readable(self.store.peek_blob(config))
            .filter(|held| held.size <= MAX_CONFIG_BYTES)?;
        let platform: Platform = serde_json::from_reader(std::io::BufReader::new(&*held.file)).ok()?;
        platform.text()
    }

    /// What refers to the tree's manifests, and to that again; it becomes part of the tree.
    fn referrers(&self, tree: &mut Tree) -> Vec<Referrers> {
        let mut lists = Vec::new();
        let mut at = 0;
        while let Some(subject) = tree.manifests.get(at).copied() {
            at += 1;
            let Some(list) = self.store.list(self.repository, &ListKey::Referrers(subject)) else {
                continue;
            };
            let listed = match list.values() {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::error!(%error, "a list of referrers cannot be read: it is left out");
                    continue;
                }
            };
            let mut items = Vec::new();
            for item in &listed {
                let digest = item["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
                let known = digest.filter(|digest| tree.parts.contains(digest));
                let below = digest.and_then(|digest| self.tree(&digest, 0));
                if known.is_some() {
                    items.push(item.clone());
                } else if let Some(below) = below.filter(|below| below.absent.is_empty()) {
                    tree.join(below);
                    items.push(item.clone());
                }
            }
            lists.push(Referrers {
                subject,
                checked_ms: list.checked_ms,
                items,
            });
        }
        lists.sort_by_key(|list| list.subject);
        lists
    }
}

#[derive(Deserialize)]
pub(super) struct Platform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Platform {
    pub(super) fn text(self) -> Option<String> {
        let mut text = format!("{}/{}", self.os?, self.architecture?);
        if let Some(variant) = self.variant.filter(|variant| !variant.is_empty()) {
            text += &format!("/{variant}");
        }
        let fits = text.len() <= 255 && is_visible(&text);
        fits.then_some(text)
    }
}

/// Of an index's children, where it says.
pub(super) fn platforms_of(index: &[u8]) -> BTreeMap<Digest, String> {
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    let children = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let platform = |child: &Value| {
        let digest = child["digest"].as_str()?.parse().ok()?;
        let platform: Platform = serde_json::from_value(child["platform"].clone()).ok()?;
        Some((digest, platform.text()?))
    };
    children.iter().filter_map(platform).collect()
}

/// Layers that registries do not hold (image-spec, non-distributable layers).
pub(super) fn is_kept_elsewhere(media_type: &str) -> bool {
    media_type.contains("nondistributable") || media_type.contains(".foreign.")
}
