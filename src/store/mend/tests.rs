//! The folder is emptied, removed, taken over or not there while a store uses it.

use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::config::Config;
use crate::oci::Digest;
use crate::store::TagRecord;
use crate::store::database::{Op, Table};

const REPOSITORY: &str = "docker.io/library/a";

fn config(path: &Path) -> Config {
    let mut config = Config::default_config().unwrap();
    config.cache.path = path.to_owned();
    config.cache.min_free = 0;
    config
}

fn open(path: &Path) -> Store {
    Store::open(&config(path)).unwrap()
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut writer = store.stage(REPOSITORY, &digest).unwrap();
    writer.append(&[Bytes::copy_from_slice(bytes)]).unwrap();
    writer.commit(REPOSITORY).unwrap();
    digest
}

fn tagged(store: &Store, tag: &str, digest: Digest) {
    let record = TagRecord {
        digest,
        media_type: "x/y".into(),
        size: 5,
        checked_ms: 7,
        moves: Vec::new(),
    };
    store.put_tag_durably(REPOSITORY, tag, record);
    assert!(store.pin(REPOSITORY, tag));
}

/// Removes what is in a folder.
fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
}

fn until_mended(store: &Store) {
    let begun = Instant::now();
    while store.is_mending() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is never mended");
        std::thread::yield_now();
    }
}

/// Tags and pins of what was there and of what comes later outlive it, and so do blobs that come later.
fn is_mended(root: &Path, remove: &dyn Fn()) {
    let store = open(root);
    let old = put(&store, b"old");
    tagged(&store, "old", old);
    assert!(store.copy_now());
    let mut half = store.stage(REPOSITORY, &Digest::sha256(b"half")).unwrap();
    half.append(&[Bytes::from_static(b"ha")]).unwrap();
    drop(half);
    assert!(store.usage().staged_bytes > 0);
    remove();
    // Whoever writes first finds it.
    let new = put(&store, b"new");
    tagged(&store, "new", new);
    store.probe().unwrap();
    until_mended(&store);
    assert_eq!(store.trouble(), None);
    assert_eq!((store.size(&old), store.size(&new)), (None, Some(3)));
    assert!(store.open_blob(&new).unwrap().is_some());
    assert_eq!(store.usage().staged_bytes, 0);
    assert_eq!(store.tag(REPOSITORY, "old").unwrap().digest, old);
    // One folder, one owner, still.
    assert!(matches!(Store::open(&config(root)), Err(StoreError::Locked { .. })));
    put(&store, b"later");
    // As after `kill -9`: without the copy that a stop makes.
    store.inner.database.stop();
    drop(store);
    let store = open(root);
    store.reconcile().unwrap();
    assert_eq!(store.index_state().recovery, None);
    for bytes in [&b"new"[..], b"later"] {
        let digest = Digest::sha256(bytes);
        assert!(store.linked(REPOSITORY, &digest) && store.open_blob(&digest).unwrap().is_some());
    }
    let pinned: Vec<(String, bool)> = store
        .images()
        .into_iter()
        .map(|image| (image.name.to_string(), image.pinned))
        .collect();
    let name = |tag: &str| (format!("{REPOSITORY}:{tag}"), true);
    assert!(
        pinned.contains(&name("old")) && pinned.contains(&name("new")),
        "{pinned:?}"
    );
}

#[test]
fn an_emptied_folder_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    is_mended(folder.path(), &|| empty(folder.path()));
}

#[test]
fn a_removed_folder_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a/cache");
    is_mended(&root, &|| std::fs::remove_dir_all(&root).unwrap());
    let root = folder.path().join("b/cache");
    is_mended(&root, &|| std::fs::remove_dir_all(folder.path().join("b")).unwrap());
}

#[test]
fn a_folder_that_was_replaced_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("cache");
    is_mended(&root, &|| {
        std::fs::rename(&root, folder.path().join("before")).unwrap();
        std::fs::create_dir(&root).unwrap();
    });
}

/// A blob that comes while the folder is emptied is kept, whether that has been found or not, and whatever is gone.
#[test]
fn what_comes_meanwhile_is_kept() {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let digest = Digest::sha256(&bytes);
    type Remove = fn(&Path);
    let all: Remove = |root| empty(root);
    let whole: Remove = |root| std::fs::remove_dir_all(root).unwrap();
    let blobs: Remove = |root| std::fs::remove_dir_all(root.join("blobs")).unwrap();
    let staging: Remove = |root| std::fs::remove_dir_all(root.join("staging")).unwrap();
    for (n, remove) in [all, whole, blobs, staging].into_iter().enumerate() {
        for is_found_first in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("cache");
            let store = open(&root);
            let mut writer = store.stage(REPOSITORY, &digest).unwrap();
            writer.append(&[Bytes::copy_from_slice(&bytes[..1_000_000])]).unwrap();
            remove(&root);
            if is_found_first {
                store.probe().unwrap();
                until_mended(&store);
            }
            writer.append(&[Bytes::copy_from_slice(&bytes[1_000_000..])]).unwrap();
            let committed = writer.commit(REPOSITORY);
            until_mended(&store);
            assert!(committed.is_ok(), "{n}, {is_found_first}: {committed:?}");
            assert_eq!(
                (store.usage().staged_bytes, store.trouble()),
                (0, None),
                "{n}, {is_found_first}"
            );
            let held = store.open_blob(&digest).unwrap().unwrap();
            assert_eq!(held.size, bytes.len() as u64);
            assert!(std::fs::read(store.inner.tree.blob(&digest)).unwrap() == bytes);
            assert!(store.linked(REPOSITORY, &digest));
            let parts = std::fs::read_dir(store.inner.tree.staging()).unwrap().count();
            assert_eq!(parts, 0, "{n}, {is_found_first}");
        }
    }
}

/// A disk that does not take it once more keeps nothing of it, on it or in the count.
#[test]
fn a_copy_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let is_full = Arc::new(AtomicBool::new(false));
    let faults: crate::store::Faults = {
        let is_full = is_full.clone();
        Arc::new(move |op, _: &Path| {
            let fails = op == crate::store::DiskOp::Write && is_full.load(Ordering::Relaxed);
            fails.then(|| crate::store::Fault::Short(10, std::io::ErrorKind::StorageFull.into()))
        })
    };
    let store = Store::open_with(&config(folder.path()), Some(faults)).unwrap();
    let bytes = vec![7; 200_000];
    let digest = Digest::sha256(&bytes);
    let mut writer = store.stage(REPOSITORY, &digest).unwrap();
    writer.append(&[bytes.into()]).unwrap();
    empty(folder.path());
    is_full.store(true, Ordering::Relaxed);
    assert!(writer.commit(REPOSITORY).is_err());
    until_mended(&store);
    assert_eq!((store.size(&digest), store.usage().staged_bytes), (None, 0));
    assert_eq!(std::fs::read_dir(store.inner.tree.staging()).unwrap().count(), 0);
}

/// Staged bytes that are gone with their folder are not counted when their writer gives up.
#[test]
fn what_is_broken_off_meanwhile_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let digest = Digest::sha256(b"whole");
    let begin = || {
        let mut writer = store.stage(REPOSITORY, &digest).unwrap();
        writer.append(&[Bytes::from_static(b"who")]).unwrap();
        writer
    };
    drop(begin());
    assert!(store.usage().staged_bytes > 0, "a later one goes on with it");
    let writer = begin();
    empty(folder.path());
    store.probe().unwrap();
    until_mended(&store);
    drop(writer);
    assert_eq!(store.usage().staged_bytes, 0);
    // And begins anew where it has to.
    let mut writer = begin();
    assert_eq!(writer.len(), 3);
    std::fs::remove_dir_all(store.inner.tree.staging()).unwrap();
    writer.restart().unwrap();
    writer.append(&[Bytes::from_static(b"whole")]).unwrap();
    writer.commit(REPOSITORY).unwrap();
    assert_eq!((store.size(&digest), store.usage().staged_bytes), (Some(5), 0));
}

/// Only what is not there is forgotten: an error of the moment says nothing.
#[test]
fn a_part_that_cannot_be_looked_at_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let digest = Digest::sha256(b"half");
    let mut writer = store.stage(REPOSITORY, &digest).unwrap();
    writer.append(&[Bytes::from_static(b"ha")]).unwrap();
    drop(writer);
    let staged = store.usage().staged_bytes;
    // Looked at through a file, each path is an error, and none of them ENOENT.
    let (staging, aside) = (store.inner.tree.staging(), folder.path().join("aside"));
    std::fs::rename(&staging, &aside).unwrap();
    std::fs::write(&staging, b"").unwrap();
    store.inner.forget_gone_parts();
    assert_eq!(store.usage().staged_bytes, staged);
    std::fs::remove_file(&staging).unwrap();
    store.inner.forget_gone_parts();
    assert_eq!(store.usage().staged_bytes, staged, "its folder is away");
    std::fs::rename(&aside, &staging).unwrap();
    let part = staging.join(
        std::fs::read_dir(&staging)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .file_name(),
    );
    std::fs::remove_file(part).unwrap();
    store.inner.forget_gone_parts();
    assert_eq!(store.usage().staged_bytes, 0);
}

/// The blobs are there still.
#[test]
fn an_index_that_is_removed_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let blob = put(&store, b"blob");
    tagged(&store, "1", blob);
    assert!(store.copy_now());
    std::fs::remove_file(folder.path().join("index.redb")).unwrap();
    std::fs::remove_file(folder.path().join("index.copy")).unwrap();
    store.probe().unwrap();
    until_mended(&store);
    assert!(store.open_blob(&blob).unwrap().is_some());
    store.inner.copying.no_pause();
    store.copy_if_due();
    assert!(folder.path().join("index.copy").exists());
    store.inner.database.stop();
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.index_state().recovery, None);
    assert!(store.linked(REPOSITORY, &blob) && store.tag(REPOSITORY, "1").is_some());
}

/// Whoever takes the folder meanwhile has it: nothing more is written there by the one that lost it.
#[test]
fn a_folder_that_another_has_taken_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    put(&store, b"old");
    empty(folder.path());
    let other = open(folder.path());
    assert!(matches!(store.probe(), Err(StoreError::Locked { .. })));
    assert!(store.stage(REPOSITORY, &Digest::sha256(b"x")).is_err());
    put(&other, b"theirs");
    assert!(matches!(store.probe(), Err(StoreError::Locked { .. })));
    store.close();
    assert!(!folder.path().join("index.copy").exists());
    drop(other);
    store.probe().unwrap();
    until_mended(&store);
}

/// Stopped a moment later, before anybody looks.
#[test]
fn a_stop_writes_the_index_down_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    tagged(&store, "1", put(&store, b"blob"));
    empty(folder.path());
    store.close();
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.index_state().recovery, None);
    assert!(store.images().iter().any(|image| image.pinned) && store.tag(REPOSITORY, "1").is_some());
}

/// A mount that this user may make; false where it may not.
fn mounted(at: &Path) -> bool {
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64m", "larder-test"]).arg(at);
    mount.stderr(std::process::Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}

/// Also while files of it are open.
fn unmount(at: &Path) {
    let status = std::process::Command::new("umount").arg("-l").arg(at).status();
    assert!(status.unwrap().success());
}

/// Files in the mount point would fill another disk, and be hidden as soon as the file system is back.
#[test]
fn nothing_is_written_to_a_mount_point() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // The folder is the mount point itself, or below it.
    for root in [disk.clone(), disk.join("cache")] {
        if !mounted(&disk) {
            eprintln!("NOT CHECKED: a file system that is not mounted takes a mount, and that root");
            return;
        }
        let store = open(&root);
        let blob = put(&store, b"blob");
        unmount(&disk);
        let error = store.probe().unwrap_err().to_string();
        assert!(error.contains("mounted"), "{error}");
        assert!(store.stage(REPOSITORY, &Digest::sha256(b"x")).is_err());
        assert!(
            store
                .put_manifest(
                    REPOSITORY,
                    &Digest::sha256(b"{}"),
                    "x/y",
                    &[],
                    &Bytes::from_static(b"{}")
                )
                .is_err()
        );
        assert_eq!(
            std::fs::read_dir(&disk).unwrap().count(),
            0,
            "nothing in the mount point"
        );
        assert!(store.size(&blob).is_some(), "nothing is forgotten");
        store.close();
        drop(store);
        assert_eq!(
            std::fs::read_dir(&disk).unwrap().count(),
            0,
            "nothing in the mount point"
        );
    }
}

/// Takes what is left of a small file system, and more than that for the index.
fn fill(store: &Store, at: &Path) {
    use std::io::Write as _;
    let mut filler = std::fs::File::create(at.join("filler")).unwrap();
    while filler.write(&[7; 65536]).is_ok_and(|written| written > 0) {}
    let large = Op::Put(Table::Meta, b"large".to_vec(), vec![1; 4 << 20]);
    assert!(!store.inner.database.write_durably(vec![large]), "there is room");
}

/// A write that fails has the index opened again: the one that was removed has the tags, and a new one has none.
#[test]
fn a_full_disk_loses_no_index_that_was_removed() {
    let folder = tempfile::tempdir().unwrap();
    if !mounted(folder.path()) {
        eprintln!("NOT CHECKED: an index that is removed from a full disk takes a mount, and that root");
        return;
    }
    let root = folder.path().join("cache");
    let store = open(&root);
    let blob = put(&store, b"blob");
    tagged(&store, "1", blob);
    std::fs::remove_file(root.join("index.redb")).unwrap();
    fill(&store, folder.path());
    std::fs::remove_file(folder.path().join("filler")).unwrap();
    assert!(store.inner.database.settle());
    let read = |store: &Store| store.inner.database.count(Table::Tags).unwrap();
    assert_eq!(read(&store), 1);
    store.probe().unwrap();
    until_mended(&store);
    assert!(root.join("index.redb").exists());
    assert_eq!(read(&store), 1);
    drop(store);
    unmount(folder.path());
}

/// The same while its file system is not mounted: a new one would be written to the mount point, and take the place of
/// the right one when that is back.
#[test]
fn a_full_disk_that_is_unmounted_gets_no_index_in_its_mount_point() {
    let folder = tempfile::tempdir().unwrap();
    if !mounted(folder.path()) {
        eprintln!("NOT CHECKED: a file system that is not mounted takes a mount, and that root");
        return;
    }
    // The same file system at another place, to mount it anew from.
    let elsewhere = tempfile::tempdir().unwrap();
    let bind = |from: &Path, to: &Path| {
        let status = std::process::Command::new("mount")
            .arg("--bind")
            .args([from, to])
            .status();
        assert!(status.unwrap().success());
    };
    bind(folder.path(), elsewhere.path());
    let store = open(folder.path());
    let blob = put(&store, b"blob");
    tagged(&store, "1", blob);
    unmount(folder.path());
    fill(&store, elsewhere.path());
    assert!(store.probe().is_err());
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing in the mount point"
    );
    std::fs::remove_file(elsewhere.path().join("filler")).unwrap();
    bind(elsewhere.path(), folder.path());
    store.probe().unwrap();
    until_mended(&store);
    assert_eq!(store.inner.database.count(Table::Tags).unwrap(), 1);
    store.close();
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.index_state().recovery, None);
    assert!(store.tag(REPOSITORY, "1").is_some() && store.linked(REPOSITORY, &blob));
    drop(store);
    unmount(folder.path());
    unmount(elsewhere.path());
}
