//! Opening the folder: one owner, index filled from the database, index and disk made to agree.
//!
//! The index alone is enough to serve: each blob's size is checked when it is opened. So walking the
//! folders, which takes seconds for a million blobs, happens behind the first hits.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Inner;
use super::database::{Database, Op, Table};
use super::error::StoreError;
use super::index::{Index, Kind, Staging};
use super::keys::Tree;
use super::records::BlobRecord;
use crate::oci::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::oci::{Algorithm, Digest};

/// Staged bytes that nobody asked for again for so long are dropped at start.
const KEEP_PARTS: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

pub(super) fn make_folders(tree: &Tree) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let folders = Algorithm::ALL.map(|a| tree.blobs(a));
    for folder in [tree.root().to_owned(), tree.staging(), tree.lists()]
        .iter()
        .chain(&folders)
    {
        builder.create(folder).map_err(StoreError::io("create", folder))?;
    }
    let private = std::fs::Permissions::from_mode(0o700);
    // Best effort: a folder that someone else owns may still be usable.
    let _ = std::fs::set_permissions(tree.root(), private);
    let (mark, text) = (tree.layout_mark(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    // Not only when it is missing: a crash may have left an empty one.
    if std::fs::read(&mark).is_ok_and(|found| found == text) {
        return Ok(());
    }
    std::fs::write(&mark, text).map_err(StoreError::io("write", &mark))?;
    Ok(())
}

pub(super) fn take_lock(tree: &Tree) -> Result<File, StoreError> {
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
            pid: pid.lines().next().and_then(|pid| pid.trim().parse().ok()),
        });
    }
    let note = || -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(lock_text().as_bytes())
    };
    let mut note = note;
    note().map_err(StoreError::io("write", &path))?;
    Ok(file)
}

/// Returns what this process writes to its lock file: its number, for people, and a word that no other process has.
pub(super) fn lock_text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("{}\n{:016x}\n", std::process::id(), fastrand::u64(..)))
}

/// Returns true if anything is in the folders of blobs.
pub(super) fn has_blobs(tree: &Tree) -> bool {
    let has_some = |algorithm| std::fs::read_dir(tree.blobs(algorithm)).is_ok_and(|mut folder| folder.next().is_some());
    Algorithm::ALL.into_iter().any(has_some)
}

/// Fills the index from the database. Two tables are read side by side, and joined in the order that both are in or
/// can be put in: looking up a million links one by one would take longer than all the rest.
pub(super) fn load(database: &Database, index: &mut Index) -> Result<(), StoreError> {
    let links = std::thread::scope(|scope| {
        let links = scope.spawn(|| Links::read(database));
        let mut loading = index.load(database.count(Table::Blobs)?);
        let mut last = None;
        database.scan(Table::Blobs, &[], |key, value| {
            if let (Some(digest), Some(record)) = (Digest::from_key(key), BlobRecord::from_bytes(value)) {
                let shelf = match &last {
                    Some((name, shelf)) if *name == record.shelf => *shelf,
                    _ => {
                        let shelf = loading.shelf(&record.shelf);
                        last = Some((record.shelf.into_owned(), shelf));
                        shelf
                    }
                };
                loading.add(digest, record.size, record.used_ms, record.kind, shelf);
            }
            true
        })?;
        loading.finish();
        // It panics only if this code is wrong, and then there is nothing better to do.
        links.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let names = &links.repositories;
    index.link_all(names, links.common.iter().map(|link| (link.digest(), link.repository)));
    index.link_all(names, links.rare.iter().copied());
    database.scan(Table::Pins, &[], |key, value| {
        if let (Ok(name), Some(digest)) = (std::str::from_utf8(key), Digest::from_key(value)) {
            index.pin(&name.into(), digest);
        }
        true
    })
}

/// The links as they were written down.
#[derive(Default)]
struct Links {
    repositories: Vec<Arc<str>>,
    /// Of SHA-256, in order.
    common: Vec<Link>,
    /// Of any other algorithm, with the number of the repository; in order.
    rare: Vec<(Digest, u32)>,
}

/// Half the size of a digest with all its room: there may be a million.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    hash: [u8; 32],
    repository: u32,
}

impl Link {
    fn digest(&self) -> Digest {
        Digest::from_sha256(self.hash)
    }
}

impl Links {
    fn read(database: &Database) -> Result<Links, StoreError> {
        let mut links = Links::default();
        links.common.reserve(database.count(Table::Links)?);
        database.scan(Table::Links, &[], |key, _| {
            let Some(end) = key.iter().position(|b| *b == 0) else {
                return true;
            };
            let (Ok(name), Some(digest)) = (std::str::from_utf8(&key[..end]), Digest::from_key(&key[end + 1..])) else {
                return true;
            };
            if links.repositories.last().is_none_or(|last| **last != *name) {
                links.repositories.push(name.into());
            }
            let Ok(repository) = u32::try_from(links.repositories.len() - 1) else {
                return false;
            };
            match digest.hash().try_into() {
                Ok(hash) => links.common.push(Link { hash, repository }),
                Err(_) => links.rare.push((digest, repository)),
            }
            true
        })?;
        // As many ascending runs as repositories: what a stable sort is good at.
        links.common.sort();
        links.rare.sort();
        Ok(links)
    }

    /// The repositories that are linked to a digest.
    fn of(&self, digest: &Digest) -> impl Iterator<Item = &Arc<str>> {
        let common = self.common.partition_point(|link| link.digest() < *digest);
        let rare = self.rare.partition_point(|(rare, _)| rare < digest);
        let common = self.common[common..]
            .iter()
            .map(|link| (link.digest(), link.repository));
        let of_it = move |link: &(Digest, u32)| link.0 == *digest;
        let links = common
            .take_while(of_it)
            .chain(self.rare[rare..].iter().copied().take_while(of_it));
        links.filter_map(|(_, repository)| self.repositories.get(usize::try_from(repository).ok()?))
    }
}

/// Makes index and disk agree: the disk is the truth for bytes (L6). Runs beside requests.
pub(super) fn reconcile(inner: &Inner) -> Result<(), StoreError> {
    // By place in the index. A place that changes hands meanwhile does no harm: what is missing is looked for again.
    let mut seen: Vec<bool> = Vec::new();
    let before = inner.index().count();
    // A damaged copy may have lost the records of blobs whose links it has.
    let waiting = match inner.recovery {
        Some(_) => waiting_links(inner)?,
        None => Links::default(),
    };
    for algorithm in Algorithm::ALL {
        for (name, path, meta) in files(&inner.tree.blobs(algorithm))? {
            match Digest::from_hex(algorithm, &name).filter(|_| meta.is_file()) {
                Some(digest) => {
                    let place = adopt(inner, &waiting, &digest, &path, meta.len());
                    if let Some(place) = place.and_then(|place| usize::try_from(place).ok()) {
                        seen.resize(seen.len().max(place + 1), false);
                        seen[place] = true;
                    }
                }
                None => tracing::warn!(path = %path.display(), "not a blob: left alone"),
            }
        }
    }
    let mut missing = Vec::new();
    inner.walk(|_, place, entry| {
        if !usize::try_from(place).is_ok_and(|place| seen.get(place) == Some(&true)) {
            missing.push(entry.digest);
        }
    });
    for digest in missing {
        inner.forget_if_gone(&digest);
    }
    let found = inner.index().count().saturating_sub(before);
    if before == 0 && found > 0 {
        tracing::info!(blobs = found, "the index is rebuilt");
    }
    forget_loose_links(inner)?;
    inner.evict_down();
    inner.database.settle();
    inner.evict_for_index();
    Ok(())
}

/// Links of what is not held yet. Blobs are given them as they are found, and not later: one that had been evicted and
/// brought by another repository meanwhile must not get them (L8).
fn waiting_links(inner: &Inner) -> Result<Links, StoreError> {
    let mut links = Links::read(&inner.database)?;
    let is_waiting = |digest: &Digest| inner.index().get(digest).is_none();
    links.common.retain(|link| is_waiting(&link.digest()));
    links.rare.retain(|(digest, _)| is_waiting(digest));
    Ok(links)
}

/// Links of what is not held: the crash came between an eviction and the end of the commit that it overtook. They would
/// come to life when another repository brings the same bytes (L8).
fn forget_loose_links(inner: &Inner) -> Result<(), StoreError> {
    let mut loose = Vec::new();
    inner.database.scan(Table::Links, &[], |key, _| {
        let end = key.iter().position(|b| *b == 0);
        let digest = end.and_then(|end| Digest::from_key(&key[end + 1..]));
        let digest = digest.filter(|digest| inner.index().get(digest).is_none());
        loose.extend(digest.map(|digest| (digest, key.to_vec())));
        true
    })?;
    for (digest, key) in loose {
        // With the index held still: what is admitted meanwhile brings its own link, perhaps this one.
        let index = inner.index();
        if index.get(&digest).is_none() {
            inner.database.write(vec![Op::Delete(Table::Links, key)]);
        }
    }
    Ok(())
}

/// A file in a blob's place. One that the index does not know was renamed there, so it was verified, and the crash
/// came before the index knew; or the index is a new one. It is linked to nothing but what was written down (`waiting`): any
/// other repository has to show again that it holds it (L8). Returns its place in the index.
fn adopt(inner: &Inner, waiting: &Links, digest: &Digest, path: &Path, len: u64) -> Option<u32> {
    let known = {
        let index = inner.index();
        let entry = index.get(digest);
        if entry.is_some_and(|entry| entry.size == len) {
            return index.place(digest);
        }
        entry.is_some()
    };
    let kind = match known {
        true => Kind::Blob,
        // Taken for a blob, a manifest could be served as nothing else. The next start looks again.
        false => match kind_of(path) {
            Ok(kind) => kind,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a blob that is not in the index cannot be read: left alone");
                return None;
            }
        },
    };
    // With the index held still: a blob may be admitted or evicted at this moment.
    let mut index = inner.index();
    let len = std::fs::metadata(path).ok()?.len();
    match index.get(digest).map(|entry| entry.size) {
        Some(size) if size == len => {}
        Some(size) => {
            tracing::error!(%digest, expected = size, found = len, "a held blob has another size than it had: removed");
            inner.drop_entry(&mut index, digest);
        }
        None => {
            let shelf = index.shelf("");
            index.insert(*digest, len, 0, kind, shelf);
            for repository in waiting.of(digest) {
                index.link(repository, digest);
            }
            let record = BlobRecord::of(&index, digest).map(|record| record.put(digest));
            inner.database.write(record.into_iter().collect());
        }
    }
    index.place(digest)
}

/// What a blob of unknown kind is, by its own word: a manifest says so in its first bytes.
pub(super) fn kind_of(path: &Path) -> std::io::Result<Kind> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut bytes = Vec::new();
    (&file).take(1).read_to_end(&mut bytes)?;
    if bytes != b"{" || len > MAX_MANIFEST_BYTES as u64 {
        return Ok(Kind::Blob);
    }
    (&file).read_to_end(&mut bytes)?;
    Ok(Manifest::parse(&bytes, None).map_or(Kind::Blob, |manifest| {
        let children: Vec<Digest> = manifest.descriptors.iter().map(|child| child.digest).collect();
        Kind::manifest(manifest.media_type.into(), children)
    }))
}

/// Counts what can be resumed; removes what nobody will.
pub(super) fn sweep_staging(tree: &Tree, index: &mut Index) -> Result<(), StoreError> {
    for (name, path, meta) in files(&tree.staging())? {
        let young = meta
            .modified()
            .ok()
            .and_then(|m| m.elapsed().ok())
            .is_none_or(|age| age < KEEP_PARTS);
        match Tree::part_key(&name).filter(|_| meta.is_file() && young && meta.len() > 0) {
            Some(key) => {
                let shelf = index.shelf("");
                index.stage(&key, meta.len(), Staging::Idle, shelf);
            }
            None => {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(())
}

/// Name, path and metadata of what is in a folder, one by one: there may be a million.
pub(super) fn files(folder: &Path) -> Result<impl Iterator<Item = (String, PathBuf, std::fs::Metadata)>, StoreError> {
    let listing = std::fs::read_dir(folder).map_err(StoreError::io("list", folder))?;
    let folder = folder.to_owned();
    let told = move |error: &std::io::Error| {
        tracing::error!(folder = %folder.display(), %error, "a folder could not be listed to its end");
    };
    // A listing that fails goes on failing.
    let entries = listing.map_while(move |entry| entry.inspect_err(&told).ok());
    Ok(entries.filter_map(|entry| {
        // Gone since it was listed: nothing to say about it.
        let (name, meta) = (entry.file_name().into_string().ok()?, entry.metadata().ok()?);
        Some((name, entry.path(), meta))
    }))
}
