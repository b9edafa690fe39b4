//! Bytes by digest; tags, links, recency. Has never heard of registries: a repository is a key.
//!
//! [`Store`] is the only face. Blobs lie as files in an OCI image layout (`keys` draws the tree); `index`
//! knows in memory what is held and what must go; `database` writes that down; `writer` is the only
//! way in and the one place where a digest is verified.

mod database;
mod error;
mod index;
mod keys;
mod records;
mod writer;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

pub use error::{Mismatch, StoreError};
pub use records::{ListKey, ListRecord, Move, TagRecord, unix_ms};
pub use writer::{Writer, verify};

use crate::config;
use crate::oci::{Algorithm, Digest};
use database::{Database, Op, Table};
use index::{Index, Victim, on_disk};
use keys::Tree;
use records::{BlobRecord, in_repository};

/// Manifests kept in memory, in bytes.
const HOT_MANIFEST_BYTES: u64 = 64 << 20;
const HOT_TAGS: u64 = 50_000;
/// Lists kept in memory, in bytes: one may have 16 MiB.
const HOT_LIST_BYTES: u64 = 64 << 20;
/// A use is written down at most this often for one blob: recency within it is lost by a crash, no more.
const TOUCH_EVERY_MS: u64 = 60_000;
/// Staged bytes that nobody asked for again for so long are dropped at start.
const KEEP_PARTS: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// The larder itself. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    tree: Tree,
    max_size: u64,
    min_free: u64,
    index: Mutex<Index>,
    database: Database,
    manifests: moka::sync::Cache<Digest, Manifest>,
    tags: moka::sync::Cache<Vec<u8>, Option<Arc<TagRecord>>>,
    lists: moka::sync::Cache<Vec<u8>, Option<Arc<ListRecord>>>,
    evicted: AtomicU64,
    /// Keeps the lock for as long as the store lives.
    _lock: File,
}

/// A held blob, open: it stays readable even if it is evicted meanwhile.
#[derive(Clone, Debug)]
pub struct Held {
    pub file: Arc<File>,
    pub size: u64,
}

/// A held manifest, in memory.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Bytes,
    pub media_type: Arc<str>,
}

/// What the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used_bytes: u64,
    pub max_bytes: u64,
    pub blobs: usize,
    pub evicted: u64,
}

impl Store {
    /// Opens or creates the folder, takes its lock, and reconciles index and disk. Blocking.
    ///
    /// Errors: `Locked` when another larder has it, `Io` with the path, `Index`.
    pub fn open(cache: &config::Cache) -> Result<Store, StoreError> {
        let tree = Tree::new(&cache.path);
        make_folders(&tree)?;
        let lock = take_lock(&tree)?;
        let database = Database::open(&tree.index())?;
        let mut index = Index::default();
        load(&database, &mut index)?;
        reconcile(&tree, &database, &mut index)?;
        let inner = Inner {
            tree,
            max_size: cache.max_size,
            min_free: cache.min_free,
            index: Mutex::new(index),
            database,
            manifests: moka::sync::Cache::builder()
                .weigher(|_: &Digest, m: &Manifest| u32::try_from(m.bytes.len() + 256).unwrap_or(u32::MAX))
                .max_capacity(HOT_MANIFEST_BYTES)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            // LRU: the default policy may refuse what is new, and until it is on disk it is nowhere else.
            tags: moka::sync::Cache::builder()
                .max_capacity(HOT_TAGS)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            lists: moka::sync::Cache::builder()
                .weigher(|_: &Vec<u8>, list: &Option<Arc<ListRecord>>| list.as_ref().map_or(256, |l| l.weight()))
                .max_capacity(HOT_LIST_BYTES)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            evicted: AtomicU64::new(0),
            _lock: lock,
        };
        // A limit that was lowered since the last run is kept from the first moment.
        inner.evict_down(0);
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Bytes of a held blob. Memory only.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.inner.index().get(digest).map(|e| e.size)
    }

    /// Media type of a held manifest. Memory only.
    pub fn media_type(&self, digest: &Digest) -> Option<Arc<str>> {
        self.inner.index().get(digest).and_then(|e| e.media_type.clone())
    }

    /// Opens a held blob and counts it as used. `None` when it is not held, or when the file is gone
    /// or has another size than it was admitted with: then it is forgotten. Blocking, briefly.
    pub fn open_blob(&self, digest: &Digest) -> Option<Held> {
        let size = self.size(digest)?;
        let path = self.inner.tree.blob(digest);
        let open = |size| match File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((len, file)) if len == size => Ok(file),
            other => Err(other.map(|(len, _)| len)),
        };
        let file = match open(size) {
            Ok(file) => file,
            // Evicted a moment ago, or damaged: with the index held still it is the one or the other.
            Err(_) => {
                let mut index = self.inner.index();
                let size = index.get(digest)?.size;
                match open(size) {
                    Ok(file) => file,
                    Err(found) => {
                        tracing::error!(%digest, path = %path.display(), expected = size, ?found, "a held blob is damaged or gone: forgotten, and fetched again when it is asked for");
                        let links = index.remove(digest);
                        let gone = self.inner.take_away(&Victim::Blob(*digest), &links);
                        drop(index);
                        unlink(gone);
                        return None;
                    }
                }
            }
        };
        self.touch(digest);
        Some(Held {
            file: Arc::new(file),
            size,
        })
    }

    /// A held manifest's bytes. From memory when hot; else a blocking read of at most 4 MiB.
    pub fn manifest(&self, digest: &Digest) -> Option<Manifest> {
        let media_type = self.media_type(digest)?;
        if let Some(hot) = self.inner.manifests.get(digest) {
            self.touch(digest);
            return Some(hot);
        }
        let held = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        (&*held.file).read_to_end(&mut bytes).ok()?;
        // Manifests are small: rot is looked for each time one comes from the disk.
        if let Err(error) = verify(digest, &bytes) {
            tracing::error!(%error, "a held manifest has rotted: forgotten");
            self.remove(digest);
            return None;
        }
        let manifest = Manifest {
            bytes: bytes.into(),
            media_type,
        };
        self.inner.manifests.insert(*digest, manifest.clone());
        Some(manifest)
    }

    /// Whether [`Store::manifest`] would answer from memory.
    pub fn is_hot(&self, digest: &Digest) -> bool {
        self.inner.manifests.contains_key(digest)
    }

    /// Verifies and holds a manifest, linked to `repository`. Blocking.
    pub fn put_manifest(
        &self,
        repository: &str,
        digest: &Digest,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        let mut writer = Writer::begin(self.inner.clone(), *digest, false)?;
        writer.append(std::slice::from_ref(bytes))?;
        writer.verify()?;
        let manifest = Manifest {
            bytes: bytes.clone(),
            media_type: media_type.into(),
        };
        if writer.commit(repository, Some(media_type))? {
            self.inner.manifests.insert(*digest, manifest);
        }
        Ok(())
    }

    /// Begins or resumes a blob. Blocking: what was staged before is hashed again.
    ///
    /// Errors: `Busy` while another writer has this digest.
    pub fn stage(&self, digest: &Digest) -> Result<Writer, StoreError> {
        {
            let mut index = self.inner.index();
            if index.is_staging(digest) {
                return Err(StoreError::Busy(Box::new(*digest)));
            }
            let staged = index.staged(digest);
            index.stage(digest, staged, true);
        }
        Writer::begin(self.inner.clone(), *digest, true).inspect_err(|_| self.inner.end_staging(digest, None))
    }

    /// Whether this repository's upstream has shown that it holds this digest (L8).
    pub fn linked(&self, repository: &str, digest: &Digest) -> bool {
        self.inner.index().linked(repository, digest)
    }

    /// Notes that it has. Only for held digests: a link without bytes says nothing worth keeping.
    pub fn link(&self, repository: &str, digest: &Digest) {
        let mut index = self.inner.index();
        if index.get(digest).is_some() && index.link(&repository.into(), digest) {
            // Queued before anybody can evict it: what the database hears is in the index's order.
            self.inner
                .database
                .write(vec![Op::Put(Table::Links, link_key(repository, digest), Vec::new())]);
        }
    }

    /// A tag's record. From memory when hot; else one blocking read of the index.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<Arc<TagRecord>> {
        let key = tag_key(repository, tag);
        if let Some(hot) = self.inner.tags.get(&key) {
            return hot;
        }
        let read = || self.read_record(Table::Tags, &key).map(Arc::new);
        upsert(&self.inner.tags, &key, |known| known.unwrap_or_else(read))
    }

    /// Notes what a tag points at. Seen at once; on disk soon.
    pub fn put_tag(&self, repository: &str, tag: &str, record: TagRecord) -> Arc<TagRecord> {
        let key = tag_key(repository, tag);
        let mut noted = None;
        upsert(&self.inner.tags, &key, |known| {
            let earlier = known.unwrap_or_else(|| self.read_record(Table::Tags, &key).map(Arc::new));
            let record = Arc::new(record.clone().after(earlier.as_deref()));
            self.put_record(Table::Tags, key.clone(), &*record);
            noted = Some(record.clone());
            Some(record)
        });
        noted.unwrap_or_else(|| Arc::new(record))
    }

    /// Tags of a repository that have a record, in byte order.
    pub fn known_tags(&self, repository: &str) -> Vec<String> {
        let prefix = in_repository(repository);
        let mut tags = Vec::new();
        let scan = self.inner.database.scan(Table::Tags, &prefix, |key, _| {
            tags.push(String::from_utf8_lossy(&key[prefix.len()..]).into_owned());
            true
        });
        self.report(scan);
        tags
    }

    /// Whether [`Store::list`] would answer from memory.
    pub fn is_hot_list(&self, repository: &str, which: &ListKey) -> bool {
        self.inner.lists.contains_key(&which.to_key(repository))
    }

    /// A list as an upstream gave it. From memory when hot; else a blocking read of at most some 16 MiB.
    pub fn list(&self, repository: &str, which: &ListKey) -> Option<Arc<ListRecord>> {
        let key = which.to_key(repository);
        if let Some(hot) = self.inner.lists.get(&key) {
            return hot;
        }
        let read = || self.read_record(Table::Lists, &key).map(Arc::new);
        upsert(&self.inner.lists, &key, |known| known.unwrap_or_else(read))
    }

    /// Notes a list. Blocking for as long as it takes to write it out.
    pub fn put_list(&self, repository: &str, which: &ListKey, record: ListRecord) -> Arc<ListRecord> {
        let record = Arc::new(record);
        let key = which.to_key(repository);
        upsert(&self.inner.lists, &key, |_| {
            self.put_record(Table::Lists, key.clone(), &*record);
            Some(record.clone())
        });
        record
    }

    /// Names of repositories of which something is held, in byte order, after `last` (R-X20).
    pub fn repositories(&self, last: &str, limit: usize) -> Vec<Arc<str>> {
        self.inner.index().repositories(last, limit)
    }

    pub fn usage(&self) -> Usage {
        let index = self.inner.index();
        Usage {
            used_bytes: index.used_bytes(),
            max_bytes: self.inner.max_size,
            blobs: index.count(),
            evicted: self.inner.evicted.load(Ordering::Relaxed),
        }
    }

    /// Whether the folder can be written, for readiness. Blocking.
    pub fn probe(&self) -> Result<(), StoreError> {
        let path = self.inner.tree.probe();
        std::fs::write(&path, b"")
            .and_then(|()| std::fs::remove_file(&path))
            .map_err(StoreError::io("write", &path))
    }

    pub fn path(&self) -> &Path {
        self.inner.tree.root()
    }

    /// Writes what is queued. Blocking.
    pub fn close(&self) {
        self.inner.database.stop();
    }

    fn touch(&self, digest: &Digest) {
        let now = unix_ms();
        let mut index = self.inner.index();
        index.touch(digest);
        let Some(entry) = index.get(digest) else { return };
        if now.saturating_sub(entry.used_ms) >= TOUCH_EVERY_MS {
            let record = BlobRecord {
                size: entry.size,
                used_ms: now,
                media_type: entry.media_type.clone(),
            };
            index.set_used(digest, now);
            self.put_record(Table::Blobs, digest.to_key(), &record);
        }
    }

    fn remove(&self, digest: &Digest) {
        let gone = {
            let mut index = self.inner.index();
            let links = index.remove(digest);
            self.inner.take_away(&Victim::Blob(*digest), &links)
        };
        unlink(gone);
    }

    fn read_record<T: serde::de::DeserializeOwned>(&self, table: Table, key: &[u8]) -> Option<T> {
        let bytes = match self.inner.database.get(table, key) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::error!(%error, "the index could not be read");
                return None;
            }
        };
        serde_json::from_slice(&bytes).ok()
    }

    fn put_record<T: serde::Serialize>(&self, table: Table, key: Vec<u8>, record: &T) {
        if let Ok(value) = serde_json::to_vec(record) {
            self.inner.database.write(vec![Op::Put(table, key, value)]);
        }
    }

    fn report(&self, outcome: Result<(), StoreError>) {
        if let Err(error) = outcome {
            tracing::error!(%error, "the index could not be read");
        }
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `bytes` for a transfer and evicts until that fits, as far as anything can go.
    fn make_room(&self, digest: &Digest, bytes: u64) {
        let grown = {
            let mut index = self.index();
            let before = index.staged(digest);
            // Writers of small things stage under their own temporary name and are not counted.
            if !index.is_staging(digest) || on_disk(bytes) <= before {
                return;
            }
            index.stage(digest, bytes, true);
            index.staged(digest) - before
        };
        self.evict_down(grown);
    }

    /// Evicts until the limit holds and `growth` more bytes leave `min_free` of the file system.
    fn evict_down(&self, growth: u64) {
        let mut lacking = self.lacking_free(growth);
        loop {
            let gone = {
                let mut index = self.index();
                if index.used_bytes() <= self.max_size && lacking == 0 {
                    return;
                }
                let before = index.used_bytes();
                let Some((victim, links)) = index.evict() else { return };
                lacking = lacking.saturating_sub(before - index.used_bytes());
                self.take_away(&victim, &links)
            };
            unlink(gone);
            self.evicted.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("larder_evictions_total").increment(1);
        }
    }

    /// Bytes that must go so that `min_free` stays free after `growth` more.
    fn lacking_free(&self, growth: u64) -> u64 {
        let Ok(stat) = rustix::fs::statvfs(self.tree.root()) else {
            return 0;
        };
        (self.min_free.saturating_add(growth)).saturating_sub(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Moves what the index has just let go of out of the way, and gives the place to unlink it from: that takes
    /// long for large files. Called with the index locked, so that nobody stages or admits the same digest
    /// before its file is out of there. Open readers keep their handle.
    fn take_away(&self, victim: &Victim, links: &BTreeSet<Arc<str>>) -> Option<PathBuf> {
        let (digest, place) = match victim {
            Victim::Part(digest) => (digest, self.tree.part(digest)),
            Victim::Blob(digest) => {
                self.manifests.invalidate(digest);
                let mut ops = vec![Op::Delete(Table::Blobs, digest.to_key())];
                ops.extend(
                    links
                        .iter()
                        .map(|repository| Op::Delete(Table::Links, link_key(repository, digest))),
                );
                self.database.write(ops);
                (digest, self.tree.blob(digest))
            }
        };
        let aside = self.tree.temporary(digest);
        std::fs::rename(&place, &aside).is_ok().then_some(aside)
    }

    /// Moves a verified blob into its place and enters it, in one: whoever evicts it takes away this file and no
    /// other. What it returns tells when the database has it too.
    fn admit(&self, arrival: &Arrival<'_>) -> Result<Receiver<bool>, StoreError> {
        let now = unix_ms();
        let (digest, repository) = (&arrival.digest, arrival.repository);
        let place = self.tree.blob(digest);
        let noted = {
            let mut index = self.index();
            std::fs::rename(arrival.path, &place).map_err(StoreError::io("move into place", &place))?;
            if arrival.counted {
                index.unstage(digest);
            }
            index.insert(*digest, arrival.size, now, arrival.media_type.map(Into::into));
            index.link(&repository.into(), digest);
            let record = BlobRecord {
                size: arrival.size,
                used_ms: now,
                media_type: index.get(digest).and_then(|e| e.media_type.clone()),
            };
            let mut ops = vec![Op::Put(Table::Links, link_key(repository, digest), Vec::new())];
            ops.extend(
                serde_json::to_vec(&record)
                    .ok()
                    .map(|value| Op::Put(Table::Blobs, digest.to_key(), value)),
            );
            self.database.write_noted(ops)
        };
        self.evict_down(0);
        Ok(noted)
    }

    /// A writer is done with `digest`; `left` bytes stay staged.
    fn end_staging(&self, digest: &Digest, left: Option<u64>) {
        let mut index = self.index();
        match left {
            Some(bytes) if bytes > 0 => index.stage(digest, bytes, false),
            _ => index.unstage(digest),
        }
    }
}

/// A verified blob that is to be held.
struct Arrival<'a> {
    digest: Digest,
    size: u64,
    /// Where it is staged.
    path: &'a Path,
    /// Whether its staging was counted.
    counted: bool,
    repository: &'a str,
    media_type: Option<&'a str>,
}

/// Reads or writes a record one after another for each key: whoever read the database before a record was noted
/// cannot put what it found in that record's place. `change` gets what is in memory, if anything is.
fn upsert<T: Clone + Send + Sync + 'static>(
    cache: &moka::sync::Cache<Vec<u8>, Option<T>>,
    key: &[u8],
    change: impl FnOnce(Option<Option<T>>) -> Option<T>,
) -> Option<T> {
    cache
        .entry(key.to_vec())
        .and_upsert_with(|known| change(known.map(moka::Entry::into_value)))
        .into_value()
}

fn unlink(path: Option<PathBuf>) {
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}

fn tag_key(repository: &str, tag: &str) -> Vec<u8> {
    let mut key = in_repository(repository);
    key.extend_from_slice(tag.as_bytes());
    key
}

fn link_key(repository: &str, digest: &Digest) -> Vec<u8> {
    let mut key = in_repository(repository);
    key.extend_from_slice(&digest.to_key());
    key
}

fn make_folders(tree: &Tree) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let folders = Algorithm::ALL.map(|a| tree.blobs(a));
    for folder in [tree.root().to_owned(), tree.staging()].iter().chain(&folders) {
        builder.create(folder).map_err(StoreError::io("create", folder))?;
    }
    let private = std::fs::Permissions::from_mode(0o700);
    // Best effort: a folder that someone else owns may still be usable.
    let _ = std::fs::set_permissions(tree.root(), private);
    let mark = tree.layout_mark();
    if !mark.exists() {
        std::fs::write(&mark, br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(StoreError::io("write", &mark))?;
    }
    Ok(())
}

fn take_lock(tree: &Tree) -> Result<File, StoreError> {
    let path = tree.lock();
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        return Err(StoreError::Locked {
            path: tree.root().to_owned(),
            pid: pid.trim().parse().ok(),
        });
    }
    let note = || -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    let mut note = note;
    note().map_err(StoreError::io("write", &path))?;
    Ok(file)
}

/// Fills the index from the database.
fn load(database: &Database, index: &mut Index) -> Result<(), StoreError> {
    let mut blobs = Vec::new();
    database.scan(Table::Blobs, &[], |key, value| {
        blobs.extend(Digest::from_key(key).zip(serde_json::from_slice::<BlobRecord>(value).ok()));
        true
    })?;
    blobs.sort_by_key(|(_, record)| record.used_ms);
    for (digest, record) in blobs {
        index.insert(digest, record.size, record.used_ms, record.media_type);
    }
    let mut last: Option<Arc<str>> = None;
    database.scan(Table::Links, &[], |key, _| {
        let Some(end) = key.iter().position(|b| *b == 0) else {
            return true;
        };
        let (Ok(name), Some(digest)) = (std::str::from_utf8(&key[..end]), Digest::from_key(&key[end + 1..])) else {
            return true;
        };
        let repository = last.take().filter(|l| **l == *name).unwrap_or_else(|| name.into());
        if index.get(&digest).is_some() {
            index.link(&repository, &digest);
        }
        last = Some(repository);
        true
    })
}

/// Makes index and disk agree: the disk is the truth for bytes (L6).
fn reconcile(tree: &Tree, database: &Database, index: &mut Index) -> Result<(), StoreError> {
    let mut ops = Vec::new();
    let mut present = std::collections::HashSet::new();
    for algorithm in Algorithm::ALL {
        for (name, path, meta) in files(&tree.blobs(algorithm))? {
            let digest = Digest::from_hex(algorithm, &name).filter(|_| meta.is_file());
            let Some(digest) = digest else {
                tracing::warn!(path = %path.display(), "not a blob: left alone");
                continue;
            };
            match index.get(&digest).map(|e| e.size) {
                Some(size) if size == meta.len() => {}
                Some(size) => {
                    tracing::error!(%digest, expected = size, found = meta.len(), "a held blob has another size than it had: removed");
                    let _ = std::fs::remove_file(&path);
                    continue;
                }
                // Renamed into place, so it was verified; the crash came before the index knew.
                // Unlinked: a repository has to show again that it holds it (L8).
                None => {
                    index.insert(digest, meta.len(), 0, None);
                    let record = BlobRecord {
                        size: meta.len(),
                        used_ms: 0,
                        media_type: None,
                    };
                    ops.extend(
                        serde_json::to_vec(&record)
                            .ok()
                            .map(|v| Op::Put(Table::Blobs, digest.to_key(), v)),
                    );
                }
            }
            present.insert(digest);
        }
    }
    let mut gone = Vec::new();
    database.scan(Table::Blobs, &[], |key, _| {
        gone.extend(Digest::from_key(key).filter(|d| !present.contains(d)));
        true
    })?;
    for digest in gone {
        ops.push(Op::Delete(Table::Blobs, digest.to_key()));
        ops.extend(
            index
                .remove(&digest)
                .iter()
                .map(|r| Op::Delete(Table::Links, link_key(r, &digest))),
        );
    }
    if !ops.is_empty() {
        database.write_durably(ops);
    }
    sweep_staging(tree, index)
}

/// Counts what can be resumed; removes what nobody will.
fn sweep_staging(tree: &Tree, index: &mut Index) -> Result<(), StoreError> {
    for (name, path, meta) in files(&tree.staging())? {
        let young = meta
            .modified()
            .ok()
            .and_then(|m| m.elapsed().ok())
            .is_none_or(|age| age < KEEP_PARTS);
        match Tree::part_digest(&name).filter(|_| meta.is_file() && young && meta.len() > 0) {
            Some(digest) if index.get(&digest).is_none() => index.stage(&digest, meta.len(), false),
            _ => {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<(String, PathBuf, std::fs::Metadata)>, StoreError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
        let entry = entry.map_err(StoreError::io("list", folder))?;
        // Gone since it was listed: nothing to say about it.
        if let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata()) {
            found.push((name, entry.path(), meta));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
