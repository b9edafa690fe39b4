//! For `benches/index`, which cannot look inside: an index of a size, and a folder as a cache of that size leaves it.

use std::path::Path;

use super::database::{Database, Op, Table};
use super::error::StoreError;
use super::index::{Index, Kind, Scope};
use super::keys::Tree;
use super::records::{BlobRecord, in_repository};
use super::startup;
use crate::oci::Digest;

/// One in so many is a manifest, which names those before it.
const IMAGE: usize = 10;
/// Images of one repository.
const IMAGES: usize = 20;

/// The n-th of the digests.
pub fn digest(n: usize) -> Digest {
    Digest::sha256(&n.to_le_bytes())
}

/// The repository, as a key, that the n-th belongs to.
pub fn repository(n: usize) -> String {
    format!("docker.io/team-{}/image", n / (IMAGE * IMAGES))
}

/// Bytes of the n-th.
pub fn size(n: usize) -> u64 {
    if n % IMAGE == IMAGE - 1 {
        1500
    } else {
        10_000 + (n as u64 * 7919) % 3_000_000
    }
}

fn kind(n: usize) -> Kind {
    if n % IMAGE < IMAGE - 1 {
        return Kind::Blob;
    }
    let children: Vec<Digest> = (n + 1 - IMAGE..n).map(digest).collect();
    Kind::manifest("application/vnd.oci.image.manifest.v1+json".into(), children)
}

/// An index without a folder.
#[derive(Default)]
pub struct Shelf {
    index: Index,
}

impl Shelf {
    /// Admits the n-th and links it, as a pull does.
    pub fn admit(&mut self, n: usize, digest: Digest, repository: &std::sync::Arc<str>) {
        let shelf = self.index.shelf(repository);
        self.index.insert(digest, size(n), n as u64, kind(n), shelf);
        self.index.link(repository, &digest);
    }

    /// Uses it.
    pub fn touch(&mut self, digest: &Digest) -> bool {
        self.index.touch(digest)
    }

    /// Whether what a hit asks says that it may be served.
    pub fn may_serve(&self, repository: &str, digest: &Digest) -> bool {
        self.index.linked(repository, digest) && self.index.held(digest).is_some()
    }

    /// Evicts one. Returns whether there was one.
    pub fn evict(&mut self) -> bool {
        self.index.evict(Scope::All, u64::MAX).is_some()
    }
}

/// Makes a folder that holds `count` blobs, each a file of its size without a byte on disk.
pub fn fill(path: &Path, count: usize) -> Result<(), StoreError> {
    let tree = Tree::new(path);
    startup::make_folders(&tree)?;
    let database = Database::open(&tree)?;
    let mut index = Index::default();
    let mut ops = Vec::new();
    for n in 0..count {
        let (digest, repository) = (digest(n), repository(n));
        let place = tree.blob(&digest);
        let file = std::fs::File::create(&place).map_err(StoreError::io("create", &place))?;
        file.set_len(size(n)).map_err(StoreError::io("extend", &place))?;
        let shelf = index.shelf(&repository);
        index.insert(digest, size(n), n as u64, kind(n), shelf);
        ops.extend(BlobRecord::of(&index, &digest).map(|record| record.put(&digest)));
        let mut link = in_repository(&repository);
        link.extend_from_slice(&digest.to_key());
        ops.push(Op::Put(Table::Links, link, Vec::new()));
        if ops.len() >= 20_000 || n + 1 == count {
            database.write_durably(std::mem::take(&mut ops));
        }
    }
    Ok(())
}

/// What start-up does before the first hit, in its parts: opened, read; seconds.
pub fn load(path: &Path) -> Result<[f64; 2], StoreError> {
    let started = std::time::Instant::now();
    let database = Database::open(&Tree::new(path))?;
    let opened = started.elapsed();
    let mut index = Index::default();
    startup::load(&database, &mut index)?;
    database.proved()?;
    Ok([opened.as_secs_f64(), (started.elapsed() - opened).as_secs_f64()])
}
