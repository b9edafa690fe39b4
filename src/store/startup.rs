//! Opening the folder: one owner, index filled from the database, index and disk made to agree.
//!
//! The index alone is enough to serve: each blob's size is checked when it is opened. So walking the
//! folders, which takes seconds for a million blobs, happens behind the first hits.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    for folder in [tree.root().to_owned(), tree.staging()].iter().chain(&folders) {
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

/// Fills the index from the database. What is loaded is in order of last use.
pub(super) fn load(database: &Database, index: &mut Index) -> Result<(), StoreError> {
    let mut blobs = Vec::new();
    database.scan(Table::Blobs, &[], |key, value| {
        blobs.extend(Digest::from_key(key).zip(serde_json::from_slice::<BlobRecord>(value).ok()));
        true
    })?;
    blobs.sort_by_key(|(_, record)| record.used_ms);
    for (digest, record) in blobs {
        let shelf = index.shelf(&record.shelf);
        let kind = match record.media_type {
            Some(media_type) => Kind::Manifest {
                media_type,
                children: record.children.into(),
            },
            None => Kind::Blob,
        };
        index.insert(digest, record.size, record.used_ms, kind, shelf);
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
    })?;
    database.scan(Table::Pins, &[], |key, value| {
        if let (Ok(name), Some(digest)) = (std::str::from_utf8(key), Digest::from_key(value)) {
            index.pin(&name.into(), digest);
        }
        true
    })
}

/// Makes index and disk agree: the disk is the truth for bytes (L6). Runs beside requests.
pub(super) fn reconcile(inner: &Inner) -> Result<(), StoreError> {
    let mut present = std::collections::HashSet::new();
    for algorithm in Algorithm::ALL {
        for (name, path, meta) in files(&inner.tree.blobs(algorithm))? {
            match Digest::from_hex(algorithm, &name).filter(|_| meta.is_file()) {
                Some(digest) => {
                    present.insert(digest);
                    adopt(inner, &digest, &path);
                }
                None => tracing::warn!(path = %path.display(), "not a blob: left alone"),
            }
        }
    }
    let indexed: Vec<Digest> = inner.index().digests().copied().collect();
    for digest in indexed.into_iter().filter(|d| !present.contains(d)) {
        inner.forget_if_gone(&digest);
    }
    forget_loose_links(inner)?;
    inner.evict_down();
    inner.database.settle();
    inner.evict_for_index();
    Ok(())
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
/// came before the index knew; or the index is a new one. It is linked to nothing: a repository has to show again that
/// it holds it (L8).
fn adopt(inner: &Inner, digest: &Digest, path: &Path) {
    let is_known = inner.index().get(digest).is_some();
    let kind = if is_known { Kind::Blob } else { kind_of(path) };
    // With the index held still: a blob may be admitted or evicted at this moment.
    let mut index = inner.index();
    let Ok(len) = std::fs::metadata(path).map(|meta| meta.len()) else {
        return;
    };
    match index.get(digest).map(|entry| entry.size) {
        Some(size) if size == len => {}
        Some(size) => {
            tracing::error!(%digest, expected = size, found = len, "a held blob has another size than it had: removed");
            inner.drop_entry(&mut index, digest);
        }
        None => {
            let shelf = index.shelf("");
            index.insert(*digest, len, 0, kind, shelf);
            let record = index.get(digest).map(|entry| BlobRecord::of(entry, ""));
            let value = record.and_then(|record| serde_json::to_vec(&record).ok());
            let op = value.map(|value| Op::Put(Table::Blobs, digest.to_key(), value));
            inner.database.write(op.into_iter().collect());
        }
    }
}

/// What a blob of unknown kind is, by its own word: a manifest says so in its first bytes.
fn kind_of(path: &Path) -> Kind {
    let read = || {
        let mut file = File::open(path).ok()?;
        let mut bytes = vec![0];
        file.read_exact(&mut bytes).ok()?;
        let small = file.metadata().ok()?.len() <= MAX_MANIFEST_BYTES as u64;
        if bytes != b"{" || !small {
            return None;
        }
        file.read_to_end(&mut bytes).ok()?;
        Manifest::parse(&bytes, None).ok()
    };
    read().map_or(Kind::Blob, |manifest| Kind::Manifest {
        media_type: manifest.media_type.into(),
        children: manifest.descriptors.iter().map(|child| child.digest).collect(),
    })
}

/// Counts what can be resumed; removes what nobody will.
pub(super) fn sweep_staging(tree: &Tree, index: &mut Index) -> Result<(), StoreError> {
    for (name, path, meta) in files(&tree.staging())? {
        let young = meta
            .modified()
            .ok()
            .and_then(|m| m.elapsed().ok())
            .is_none_or(|age| age < KEEP_PARTS);
        match Tree::part_digest(&name).filter(|_| meta.is_file() && young && meta.len() > 0) {
            Some(digest) if index.get(&digest).is_none() => {
                let shelf = index.shelf("");
                index.stage(&digest, meta.len(), Staging::Idle, shelf);
            }
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
