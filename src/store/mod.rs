//! Bytes by digest; tags, links, recency. Has never heard of registries: a repository is a key.
//!
//! [`Store`] is the only face. Blobs lie as files in an OCI image layout (`keys` draws the tree); `index`
//! knows in memory what is held and what must go; `hot` tells what needs nothing else; `database` writes that down;
//! `tags` and `lists` are what upstreams change at will; `state` is small files of others; `writer` is the only way in and the one place where a digest is verified.

mod beside;
mod clock;
mod copy;
mod database;
mod disk;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod guard;
mod hot;
mod images;
mod index;
mod keys;
mod lines;
mod lists;
mod mend;
mod opened;
mod pages;
mod place;
mod privacy;
mod proof;
mod queue;
mod records;
mod recovery;
mod relief;
mod reservation;
mod reveal;
#[doc(hidden)]
pub mod scale;
mod space;
mod startup;
mod state;
mod survey;
mod tags;
mod verify;
mod wishes;
mod writer;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};

#[cfg(any(test, fuzzing))]
pub(crate) use queue::fuzz as queue_fuzz;

pub use clock::{now_by_clock_of, unix_ms, watch_clock};
pub use disk::{DiskOp, Fault, Faults};
pub use error::{Mismatch, StoreError};
pub use hot::Shown;
pub use images::{Image, ImageName, Part, Removed};
pub use keys::{lock_file, staging_key};
pub use lines::Page;
pub use lists::{ListRecord, ListSpool, Loan};
pub use privacy::{PUBLIC_FOR, ToNobody};
pub use queue::{Batch, Line, Lost, Queue, Waiting};
pub use records::{ListKey, Move, TagRecord};
pub use recovery::{IndexState, Recovery};
pub use reveal::{Keep, Reveal, RevealError};
pub use state::{Paper, State};
pub use survey::{Row, Survey};
pub use verify::{Check, Verdict};
pub use wishes::{MOST_WISHES, Wish};
pub use writer::{Hashing, Remains, Writer, verify};

use crate::config::Config;
use crate::events::Events;
use crate::oci::Digest;
use database::{Database, Op, Table};
use disk::Disk;
use index::{Index, Kind, Staging, on_disk};
use keys::Tree;
use records::{BlobRecord, in_repository};

/// Manifests kept in memory, in bytes.
const HOT_MANIFEST_BYTES: u64 = 64 << 20;
/// From here on it costs less to have the kernel send a manifest from a file in memory than to have it copy our bytes.
pub const LARGE_MANIFEST_BYTES: u64 = 64 * 1024;
const HOT_TAGS: u64 = 50_000;
/// A use is written down at most this often for one blob: recency within it is lost by a crash, no more.
const TOUCH_EVERY_MS: u64 = 60_000;
/// A failing disk is told to the log this often.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// A disk that did not fail for so long is well again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// The larder itself. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    tree: Tree,
    max_size: AtomicU64,
    min_free: AtomicU64,
    index: Mutex<Index>,
    /// Held while room is made.
    room: Mutex<()>,
    /// Bytes of what was found damaged and put aside.
    aside: AtomicU64,
    database: Database,
    manifests: moka::sync::Cache<Digest, Manifest>,
    tags: moka::sync::Cache<Vec<u8>, Option<Arc<TagRecord>>>,
    lists: lists::Lists,
    evicted: AtomicU64,
    disk: Disk,
    trouble: Mutex<Option<Trouble>>,
    private: privacy::Marks,
    wishes: wishes::Shared,
    hashers: beside::Hashers,
    opened: opened::Opened,
    events: Events,
    /// The folder as it was opened, and its lock, which is kept for as long as the store lives.
    ground: mend::Ground,
    copying: recovery::Copying,
    recovery: Option<Recovery>,
}

/// When and how the disk failed last.
struct Trouble {
    told: Instant,
    seen: Instant,
    text: String,
}

/// A held blob, open: while it is, it is not evicted; and if it is removed it stays readable.
#[derive(Clone)]
pub struct Held {
    pub file: Arc<File>,
    pub size: u64,
    /// Let go of with the last clone.
    lease: Arc<Lease>,
}

impl Held {
    /// Says that the file's bytes could not be read. If they are lost, the blob is put aside, and fetched again when it is
    /// asked for; of any other error nothing comes. Blocking, briefly.
    pub fn note_read_error(&self, error: &std::io::Error) {
        let store = Store {
            inner: self.lease.inner.clone(),
        };
        let digest = &self.lease.digest;
        if disk::is_damage(error) && store.inner.is_in_place(digest, &self.file) {
            store.quarantine_for(digest, "read");
        }
    }
}

/// A response is being sent from a blob.
struct Lease {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.index().release(&self.digest);
    }
}

/// A held manifest, in memory.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Bytes,
    pub media_type: Arc<str>,
    /// When its last use from memory was noted, Unix milliseconds.
    use_noted_ms: Arc<AtomicU64>,
    /// Made when it is first wanted.
    file: Arc<OnceLock<Option<Arc<File>>>>,
}

impl Manifest {
    /// What it takes of the memory that manifests may take: those that are sent as files are there twice.
    fn weight(&self) -> u32 {
        let bytes = self.bytes.len() as u64;
        let copies = if bytes < LARGE_MANIFEST_BYTES { 1 } else { 2 };
        u32::try_from(bytes * copies + 256).unwrap_or(u32::MAX)
    }

    fn new(bytes: Bytes, media_type: Arc<str>) -> Manifest {
        Manifest {
            bytes,
            media_type,
            use_noted_ms: Arc::default(),
            file: Arc::default(),
        }
    }

    /// The same bytes as a file that is nowhere but in memory, for who has files sent by the kernel: it takes them as they
    /// are, where it would copy bytes of ours. `None` where there is no such thing, and for one that is not large.
    pub fn file(&self) -> Option<Arc<File>> {
        if (self.bytes.len() as u64) < LARGE_MANIFEST_BYTES {
            return None;
        }
        let make = || file_in_memory(&self.bytes).ok().map(Arc::new);
        self.file.get_or_init(make).clone()
    }
}

fn file_in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let file = File::from(memfd_create("manifest", MemfdFlags::CLOEXEC)?);
    (&file).write_all(bytes)?;
    Ok(file)
}

/// What the disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Blobs, transfers, lists, the index's own file and what was found damaged and put aside: what `du` finds of
    /// files.
    pub used_bytes: u64,
    /// Of these, transfers: staged or announced.
    pub staged_bytes: u64,
    /// The index's own file and its copy, which are among the used bytes.
    pub index_bytes: u64,
    /// Files of long tag lists and lists of referrers, part of the used bytes.
    pub list_bytes: u64,
    pub max_bytes: u64,
    pub blobs: usize,
    pub evicted: u64,
    /// Held bytes of each upstream, and its own limit.
    pub shelves: Vec<(Arc<str>, u64, Option<u64>)>,
}

impl Store {
    /// Opens or creates the folder, takes its lock and fills the index. Blocking; the disk is walked behind it.
    ///
    /// Errors: `Locked` when another larder has it, `Io` with the path, `Index`.
    pub fn open(config: &Config) -> Result<Store, StoreError> {
        Store::open_with(config, None)
    }

    /// Opens a folder that no proxy runs on, for a look or for repairs: whatever the limits are, nothing is evicted.
    /// The proxy may have had others than this process was told.
    pub fn open_at_rest(config: &Config) -> Result<Store, StoreError> {
        let mut config = config.clone();
        (config.cache.max_size, config.cache.min_free) = (u64::MAX, 0);
        for upstream in &mut config.upstreams {
            upstream.max_size = None;
        }
        Store::open(&config)
    }

    /// [`Store::open`] on a disk that fails when it is told to; for tests.
    pub fn open_with(config: &Config, faults: Option<Faults>) -> Result<Store, StoreError> {
        let cache = &config.cache;
        let tree = Tree::new(&cache.path);
        startup::make_folders(&tree)?;
        let lock = startup::take_lock(&tree)?;
        let ground = mend::Ground::of(&tree, lock)?;
        let shelves = |index: &mut Index| {
            for upstream in &config.upstreams {
                if let Some(max) = upstream.max_size {
                    index.limit_shelf(upstream.name.as_str(), Some(max));
                }
            }
        };
        let recovery::Opened {
            database,
            mut index,
            private,
            wishes,
            copying,
            recovery,
        } = recovery::open(&tree, shelves)?;
        startup::sweep_staging(&tree, &mut index)?;
        let lists = lists::Lists::load(&database, &tree)?;
        let inner = Inner {
            tree,
            max_size: AtomicU64::new(cache.max_size),
            min_free: AtomicU64::new(cache.min_free),
            index: Mutex::new(index),
            room: Mutex::default(),
            aside: AtomicU64::new(0),
            database,
            manifests: moka::sync::Cache::builder()
                .weigher(|_: &Digest, manifest: &Manifest| manifest.weight())
                .max_capacity(HOT_MANIFEST_BYTES)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            // LRU: the default policy may refuse what is new, and until it is on disk it is nowhere else.
            tags: moka::sync::Cache::builder()
                .max_capacity(HOT_TAGS)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
            lists,
            evicted: AtomicU64::new(0),
            disk: Disk::with(faults),
            trouble: Mutex::default(),
            private,
            wishes,
            hashers: beside::Hashers::default(),
            opened: opened::Opened::default(),
            events: Events::default(),
            ground,
            copying,
            recovery,
        };
        // A limit that was lowered since the last run is kept from the first moment.
        inner.aside.store(inner.trim_aside(), Ordering::Relaxed);
        inner.trim_lists(None);
        inner.evict_down();
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Walks the folders and makes index and disk agree (L6). Blocking, for seconds with a million blobs; everything
    /// works meanwhile.
    pub fn reconcile(&self) -> Result<(), StoreError> {
        startup::reconcile(&self.inner)
    }

    /// Bytes of a held blob. Memory only.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.inner.index().held(digest).map(|e| e.size)
    }

    /// Media type of a held manifest. Memory only.
    pub fn media_type(&self, digest: &Digest) -> Option<Arc<str>> {
        self.inner
            .index()
            .held(digest)
            .and_then(|e| e.kind.media_type().cloned())
    }

    /// Opens a held blob and counts it as used. `None` when it is not held, or when it is lost: the file is gone, has another
    /// size than it was admitted with, or the disk cannot give it. Then it is forgotten. Blocking, briefly.
    ///
    /// Error: `Unreadable` for every other reason that the file cannot be opened for. It may be quite right, and stays.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<Held>, StoreError> {
        let as_of = self.inner.opened.as_of_now();
        let Some((file, size)) = self.open_file(digest)? else {
            return Ok(None);
        };
        self.touch(digest);
        let held = self.lend(digest, size, file);
        self.inner.opened.put(*digest, held.file.clone(), &as_of);
        Ok(Some(held))
    }

    /// Opens a held blob as [`Store::open_blob`] does, without counting it as used: what operators read of the cache
    /// must not change what is evicted next.
    pub fn peek_blob(&self, digest: &Digest) -> Result<Option<Held>, StoreError> {
        let opened = self.open_file(digest)?;
        Ok(opened.map(|(file, size)| self.lend(digest, size, file)))
    }

    /// The file of a held blob, and its size.
    fn open_file(&self, digest: &Digest) -> Result<Option<(Arc<File>, u64)>, StoreError> {
        let Some(size) = self.size(digest) else { return Ok(None) };
        let path = self.inner.tree.blob(digest);
        let open = |size| match self
            .inner
            .disk
            .open(&path)
            .and_then(|file| Ok((file.metadata()?.len(), file)))
        {
            Ok((len, file)) if len == size => Ok(file),
            other => Err(other.map(|(len, _)| len)),
        };
        let file = match open(size) {
            Ok(file) => file,
            // Evicted a moment ago, or damaged: with the index held still it is the one or the other.
            Err(_) => {
                let mut index = self.inner.index();
                let Some(size) = index.get(digest).map(|entry| entry.size) else {
                    return Ok(None);
                };
                match open(size) {
                    Ok(file) => file,
                    Err(Err(error)) if !self.inner.is_lost(digest, &error) => {
                        drop(index);
                        return Err(self.inner.unreadable(digest, error));
                    }
                    Err(found) => {
                        tracing::error!(%digest, path = %path.display(), expected = size, ?found, "a held blob is damaged or gone: forgotten, and fetched again when it is asked for");
                        metrics::counter!("larder_damaged_total", "found" => "size").increment(1);
                        self.inner.drop_entry(&mut index, digest);
                        return Ok(None);
                    }
                }
            }
        };
        Ok(Some((Arc::new(file), size)))
    }

    /// A held blob that was opened a moment ago, counted as used. `None` says only that it takes longer to find out:
    /// [`Store::open_blob`] knows. Does not wait for the disk.
    pub fn open_hot(&self, digest: &Digest) -> Option<Held> {
        let size = self.size(digest)?;
        let file = self.inner.opened.get(digest, size)?;
        self.touch(digest);
        Some(self.lend(digest, size, file))
    }

    /// Whether a response is being sent from a held blob. Memory only.
    pub fn is_being_sent(&self, digest: &Digest) -> bool {
        self.inner.index().is_leased(digest)
    }

    fn lend(&self, digest: &Digest, size: u64, file: Arc<File>) -> Held {
        // Evicted since it was opened: readable all the same, there is just nothing left to hold on to.
        self.inner.index().lease(digest);
        let lease = Lease {
            inner: self.inner.clone(),
            digest: *digest,
        };
        Held {
            file,
            size,
            lease: Arc::new(lease),
        }
    }

    /// A held manifest's bytes. From memory when hot; else a blocking read of at most 4 MiB. `None` and errors are those of
    /// [`Store::open_blob`].
    pub fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        let Some(media_type) = self.media_type(digest) else {
            return Ok(None);
        };
        if let Some(hot) = self.inner.manifests.get(digest) {
            self.touch(digest);
            return Ok(Some(hot));
        }
        let Some(held) = self.open_blob(digest)? else {
            return Ok(None);
        };
        let Some(manifest) = self.read_manifest(digest, &held, media_type)? else {
            return Ok(None);
        };
        self.inner.manifests.insert(*digest, manifest.clone());
        Ok(Some(manifest))
    }

    /// A held manifest's bytes, read from the disk without counting as a use. `None` and errors are those of
    /// [`Store::open_blob`]. Blocking.
    pub fn peek_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        let Some(media_type) = self.media_type(digest) else {
            return Ok(None);
        };
        match self.peek_blob(digest)? {
            Some(held) => self.read_manifest(digest, &held, media_type),
            None => Ok(None),
        }
    }

    /// `None`: what the disk gives is not the manifest, which is forgotten.
    fn read_manifest(
        &self,
        digest: &Digest,
        held: &Held,
        media_type: Arc<str>,
    ) -> Result<Option<Manifest>, StoreError> {
        let bytes = match self.inner.disk.read_to_end(&held.file, &self.inner.tree.blob(digest)) {
            Ok(bytes) => bytes,
            Err(error) if disk::is_damage(&error) => {
                held.note_read_error(&error);
                return Ok(None);
            }
            Err(error) => return Err(self.inner.unreadable(digest, error)),
        };
        // Manifests are small: rot is looked for each time one comes from the disk.
        if let Err(error) = verify(digest, &bytes) {
            tracing::error!(%error, "a held manifest has rotted: forgotten");
            // Not another that was put in its place since.
            if self.inner.is_in_place(digest, &held.file) {
                self.remove(digest);
            }
            return Ok(None);
        }
        Ok(Some(Manifest::new(bytes.into(), media_type)))
    }

    /// Whether [`Store::manifest`] would answer from memory.
    pub fn is_hot(&self, digest: &Digest) -> bool {
        self.inner.manifests.contains_key(digest)
    }

    /// Verifies and holds a manifest that names `children`, linked to `repository`. Blocking.
    pub fn put_manifest(
        &self,
        repository: &str,
        digest: &Digest,
        media_type: &str,
        children: &[Digest],
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        let manifest = Manifest::new(bytes.clone(), media_type.into());
        self.write_manifest(
            repository,
            digest,
            Kind::manifest(media_type.into(), children),
            bytes,
            true,
        )?;
        self.inner.manifests.insert(*digest, manifest);
        Ok(())
    }

    fn write_manifest(
        &self,
        repository: &str,
        digest: &Digest,
        kind: Kind,
        bytes: &Bytes,
        linked: bool,
    ) -> Result<(), StoreError> {
        let mut writer = Writer::begin(self.inner.clone(), *digest, None)?;
        writer.append(std::slice::from_ref(bytes))?;
        writer.verify()?;
        writer.commit_as(repository, kind, linked)
    }

    /// Begins or resumes a blob for `repository`. Blocking: what was staged before for the same one is hashed again.
    ///
    /// Errors: `Busy` while another writer has this digest for it, `NoRoom` while one that gave up on the disk is still
    /// read.
    pub fn stage(&self, repository: &str, digest: &Digest) -> Result<Writer, StoreError> {
        self.stage_for(repository, repository, digest)
    }

    /// Begins or resumes a blob apart from what the repository's upstream sends: only this `owner` goes on with it.
    pub fn stage_for(&self, owner: &str, repository: &str, digest: &Digest) -> Result<Writer, StoreError> {
        let key = keys::staging_key(owner, digest);
        let staged = {
            let mut index = self.inner.index();
            match index.staging(&key) {
                Some(Staging::Active) => return Err(StoreError::Busy(Box::new(*digest))),
                // For as long as somebody reads what the disk did take of it.
                Some(Staging::Detached) => return Err(StoreError::NoRoom(Box::new(*digest))),
                Some(Staging::Idle) | None => {}
            }
            let (staged, _) = index.staged(&key);
            let shelf = index.shelf(repository);
            index.stage(&key, staged, Staging::Active, shelf);
            staged
        };
        Writer::begin(self.inner.clone(), *digest, Some(key)).inspect_err(|_| {
            // A part that could not be opened at this moment is there still, and takes room; also if it cannot be
            // looked at.
            let left = match std::fs::symlink_metadata(self.inner.tree.part(&key)) {
                Ok(meta) => meta.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                Err(_) => staged,
            };
            self.inner.end_staging(&key, Some(left));
        })
    }

    /// Returns whether some of this digest is staged for `repository`, or a writer is at it. Memory only.
    pub fn is_staged(&self, repository: &str, digest: &Digest) -> bool {
        let key = keys::staging_key(repository, digest);
        self.inner.index().staging(&key).is_some()
    }

    /// Whether this repository's upstream has shown that it holds this digest (L8).
    pub fn linked(&self, repository: &str, digest: &Digest) -> bool {
        self.inner.index().linked(repository, digest)
    }

    /// Notes that these have. Only for held digests: a link without bytes says nothing worth keeping. What is news is
    /// on disk before it is seen: a hit that was answered once may not need the upstream after a crash (L6). Blocking,
    /// and if the index fails it is seen all the same.
    pub fn link(&self, repositories: &[Arc<str>], digest: &Digest) {
        let (news, written) = {
            let index = self.inner.index();
            let is_news = |repository: &&Arc<str>| !index.linked(repository, digest);
            let news: Vec<Arc<str>> = repositories.iter().filter(is_news).cloned().collect();
            if news.is_empty() || index.get(digest).is_none() {
                return;
            }
            let put = |repository: &Arc<str>| Op::Put(Table::Links, link_key(repository, digest), Vec::new());
            let written = self.inner.database.write_noted(news.iter().map(put).collect());
            (news, written)
        };
        let _ = written.recv();
        let mut index = self.inner.index();
        if index.get(digest).is_some() {
            for repository in &news {
                index.link(repository, digest);
            }
        } else {
            // Evicted meanwhile, by somebody who knew nothing of these links.
            let delete = |repository: &Arc<str>| Op::Delete(Table::Links, link_key(repository, digest));
            self.inner.database.write(news.iter().map(delete).collect());
        }
    }

    /// Names of repositories of which something is held, in byte order, after `last` (R-X20).
    pub fn repositories(&self, last: &str, limit: usize) -> Vec<Arc<str>> {
        self.inner.index().repositories(last, limit)
    }

    pub fn usage(&self) -> Usage {
        let index = self.inner.index();
        Usage {
            used_bytes: self.inner.used_bytes(&index),
            staged_bytes: index.staged_bytes(),
            index_bytes: self.inner.index_bytes(),
            list_bytes: self.inner.lists.file_bytes(),
            max_bytes: self.inner.max_size(),
            blobs: index.count(),
            evicted: self.inner.evicted.load(Ordering::Relaxed),
            shelves: index.shelves(),
        }
    }

    /// Where it is told what happens here; others tell there what they do.
    pub fn events(&self) -> &Events {
        &self.inner.events
    }

    /// Other limits, kept from now on. Blocking: lower ones evict.
    pub fn set_limits(&self, config: &Config) {
        let inner = &self.inner;
        inner.max_size.store(config.cache.max_size, Ordering::Relaxed);
        inner.min_free.store(config.cache.min_free, Ordering::Relaxed);
        {
            let mut index = inner.index();
            index.lift_shelf_limits();
            for upstream in config.upstreams.iter().filter(|upstream| upstream.max_size.is_some()) {
                index.limit_shelf(upstream.name.as_str(), upstream.max_size);
            }
        }
        inner.trim_lists(None);
        inner.evict_down();
    }

    /// Evicts for what the index has grown by: tags, links and lists come in without anything being admitted (L5).
    /// Blocking.
    pub fn keep_limit(&self) {
        self.inner.evict_for_index();
    }

    /// How the disk failed, if it did in the last minute.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.inner.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble
            .as_ref()
            .filter(|t| t.seen.elapsed() < WELL_AFTER)
            .map(|t| t.text.clone())
    }

    /// Notes a failure of the disk that somebody else met.
    pub fn note_trouble(&self, error: &StoreError) {
        if matches!(error, StoreError::Io { .. }) {
            self.inner.note_trouble(error);
        }
    }

    /// Looks whether the folder can be written, for readiness, and makes again what somebody removed of it. Blocking.
    ///
    /// Error: also where the folder is not the one that was opened, as while its file system is not mounted.
    pub fn probe(&self) -> Result<(), StoreError> {
        self.inner.mend()?;
        let path = self.inner.tree.probe();
        std::fs::write(&path, b"")
            .and_then(|()| std::fs::remove_file(&path))
            .map_err(StoreError::io("write", &path))
    }

    pub fn path(&self) -> &Path {
        self.inner.tree.root()
    }

    /// Writes what is queued, and a copy of the index if it has changed since the last one. Blocking.
    pub fn close(&self) {
        self.flush_wishes();
        self.inner.mend_at_the_end();
        self.copy_at_the_end();
        self.inner.database.stop();
    }

    fn touch(&self, digest: &Digest) {
        let now = unix_ms();
        let mut index = self.inner.index();
        index.touch(digest);
        let Some(entry) = index.get(digest) else { return };
        // A clock that was set back must not keep a use from being noted for as long as that.
        if now.abs_diff(entry.used_ms) >= TOUCH_EVERY_MS {
            // What a manifest names was used with it, and is written down with it.
            let mut used: Vec<Digest> = entry.kind.children().to_vec();
            used.push(*digest);
            let mut ops = Vec::new();
            for digest in used {
                index.set_used(&digest, now);
                ops.extend(BlobRecord::of(&index, &digest).map(|record| record.put(&digest)));
            }
            self.inner.database.write(ops);
        }
    }

    fn remove(&self, digest: &Digest) {
        self.inner.drop_entry(&mut self.inner.index(), digest);
    }

    fn report(&self, outcome: Result<(), StoreError>) {
        if let Err(error) = outcome {
            tracing::error!(%error, "the index could not be read");
        }
    }
}

impl Inner {
    /// Returns true if an error of opening a blob's file says that it is lost. ENOENT counts only in the folder that was
    /// opened: one that is not there just now, as its file system is not mounted, has lost nothing.
    fn is_lost(&self, digest: &Digest, error: &std::io::Error) -> bool {
        match error.kind() {
            std::io::ErrorKind::NotFound => self.ground.has_blobs(&self.tree, digest.algorithm()),
            _ => disk::is_damage(error),
        }
    }

    /// An error of the moment, noted as the disk's.
    fn unreadable(&self, digest: &Digest, error: std::io::Error) -> StoreError {
        tracing::debug!(%digest, path = %self.tree.blob(digest).display(), %error, "a held blob cannot be read");
        let error = StoreError::Unreadable {
            digest: Box::new(*digest),
            source: Arc::new(error),
        };
        self.note_trouble(&error);
        error
    }

    /// Returns true if an open file is the one in the blob's place.
    fn is_in_place(&self, digest: &Digest, file: &File) -> bool {
        let place = std::fs::metadata(self.tree.blob(digest));
        let same = place.and_then(|place| {
            let file = file.metadata()?;
            Ok((place.dev(), place.ino()) == (file.dev(), file.ino()))
        });
        same.unwrap_or(false)
    }
}

/// A verified blob that is to be held.
struct Arrival<'a> {
    digest: Digest,
    size: u64,
    /// Where it is staged.
    path: &'a Path,
    /// The staging key that it was counted under.
    counted: Option<Digest>,
    /// Bytes that were counted for it without a name.
    small: u64,
    /// Its upstream's shelf is what it counts on.
    repository: &'a str,
    /// Whether that repository has it from now on.
    linked: bool,
    kind: Kind,
}

fn unlink(path: Option<PathBuf>) {
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}

fn link_key(repository: &str, digest: &Digest) -> Vec<u8> {
    let mut key = in_repository(repository);
    key.extend_from_slice(&digest.to_key());
    key
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_lists;
#[cfg(test)]
mod tests_pressure;
#[cfg(test)]
mod tests_recovery;
#[cfg(test)]
mod tests_room;
