//! What the upstream holds, has ever held and has ever said: the truth that every answer is compared with.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use larder::oci::Digest;

use crate::world::{Item, REPOS, What, pick};

/// As long as the program believes that, and some.
const BELIEVED_ABSENT: Duration = Duration::from_secs(15);

/// The name under which Larder stages something of a repository.
pub fn staging_key(repo: &str, digest: &Digest) -> Digest {
    larder::store::staging_key(&format!("docker.io/{repo}"), digest)
}

#[derive(Default)]
pub struct Facts {
    pub bytes: HashMap<Digest, Bytes>,
    /// Which repository has ever held what, and since when.
    pub holds: HashMap<(String, Digest), Instant>,
    /// A manifest's repository and what it names.
    pub images: BTreeMap<Digest, (String, Vec<Digest>)>,
    /// Everything a tag ever pointed at, in order.
    pub history: BTreeMap<(String, String), Vec<Digest>>,
    /// Everything a repository's tag list ever was.
    pub lists: HashMap<String, HashSet<Vec<String>>>,
    pub layers: Vec<Digest>,
    /// Names what is made next.
    pub next: u64,
}

impl Facts {
    pub fn holds(&self, repo: &str, digest: &Digest) -> bool {
        self.holds.contains_key(&(repo.to_owned(), *digest))
    }

    /// Whether a repository may be said not to hold something: it does not, or has not for long. That it is not there is
    /// believed for a while, and the answer may have been on its way when it came.
    pub fn may_lack(&self, repo: &str, digest: &Digest) -> bool {
        let since = self.holds.get(&(repo.to_owned(), *digest));
        since.is_none_or(|since| since.elapsed() < BELIEVED_ABSENT)
    }

    /// Whether a tag ever pointed there.
    pub fn was_target(&self, repo: &str, tag: &str, digest: &Digest) -> bool {
        let history = self.history.get(&(repo.to_owned(), tag.to_owned()));
        history.is_some_and(|history| history.contains(digest))
    }

    /// How often a tag was pointed somewhere.
    pub fn moves(&self, repo: &str, tag: &str) -> usize {
        let key = (repo.to_owned(), tag.to_owned());
        self.history.get(&key).map_or(0, Vec::len)
    }

    /// The place in a tag's history that an answer stands for: the last one before it was asked, when there were
    /// `known`, or else the first one since.
    pub fn place(&self, repo: &str, tag: &str, digest: &Digest, known: usize) -> Option<usize> {
        let history = self.history.get(&(repo.to_owned(), tag.to_owned()))?;
        let (before, since) = history.split_at_checked(known)?;
        let later = || since.iter().position(|d| d == digest).map(|at| known + at);
        before.iter().rposition(|d| d == digest).or_else(later)
    }

    pub fn target(&self, item: &Item, place: usize) -> Option<Digest> {
        let What::Tag(tag) = &item.what else { return None };
        let history = self.history.get(&(item.repo.clone(), tag.clone()))?;
        history.get(place).copied()
    }

    /// What a tag points at now.
    pub fn current(&self, repo: &str, tag: &str) -> Option<Digest> {
        let history = self.history.get(&(repo.to_owned(), tag.to_owned()))?;
        history.last().copied()
    }

    pub fn was_list(&self, repo: &str, tags: &[String]) -> bool {
        self.lists.get(repo).is_some_and(|lists| lists.contains(tags))
    }

    pub fn tags_of(&self, repo: &str) -> Vec<String> {
        let keys = self.history.keys().filter(|(r, _)| r == repo);
        keys.map(|(_, tag)| tag.clone()).collect()
    }

    pub fn images_of(&self, repo: &str) -> Vec<Digest> {
        let images = self.images.iter().filter(|(_, (r, _))| r == repo);
        images.map(|(digest, _)| *digest).collect()
    }

    /// What a manifest names.
    pub fn parts(&self, manifest: &Digest) -> Vec<Digest> {
        self.images
            .get(manifest)
            .map(|(_, parts)| parts.clone())
            .unwrap_or_default()
    }

    pub fn random_tag(&self, rng: &mut Rng) -> Item {
        let keys: Vec<_> = self.history.keys().collect();
        let (repo, tag) = pick(rng, &keys);
        Item::new(repo, What::Tag(tag.clone()))
    }

    pub fn random_blob(&self, rng: &mut Rng) -> Item {
        let images: Vec<_> = self.images.values().collect();
        let (repo, parts) = pick(rng, &images);
        Item::new(repo, What::Blob(*pick(rng, parts)))
    }

    /// A digest that exists, but not in this repository.
    pub fn random_secret(&self, rng: &mut Rng) -> Option<Item> {
        let repo = *pick(rng, &REPOS);
        let is_foreign = |(r, d): &&(String, Digest)| REPOS.contains(&r.as_str()) && !self.holds(repo, d);
        let foreign: BTreeSet<_> = self.holds.keys().filter(is_foreign).collect();
        let foreign: Vec<_> = foreign.into_iter().collect();
        let (_, digest) = foreign.get(rng.usize(..foreign.len().max(1)))?;
        Some(self.item(repo, digest))
    }

    /// As something that a repository holds.
    pub fn owned(&self, digest: &Digest) -> Option<Item> {
        let repo = REPOS.iter().find(|repo| self.holds(repo, digest))?;
        Some(self.item(repo, digest))
    }

    /// Finds what is staged under a key, as something that a repository holds.
    pub fn staged(&self, key: &Digest) -> Option<Item> {
        let mut held = self.holds.keys().filter(|(repo, _)| REPOS.contains(&repo.as_str()));
        let (repo, digest) = held.find(|(repo, digest)| staging_key(repo, digest) == *key)?;
        Some(self.item(repo, digest))
    }

    fn item(&self, repo: &str, digest: &Digest) -> Item {
        let is_manifest = self.images.contains_key(digest);
        Item::new(
            repo,
            if is_manifest {
                What::Manifest(*digest)
            } else {
                What::Blob(*digest)
            },
        )
    }
}
