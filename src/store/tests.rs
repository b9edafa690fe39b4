//! The store on a real disk.

use super::*;

const MIB: u64 = 1 << 20;

fn cache(path: &Path, max_size: u64) -> config::Cache {
    config::Cache {
        path: path.to_owned(),
        max_size,
        min_free: 0,
        tag_ttl: std::time::Duration::from_secs(300),
        stale_if_error: std::time::Duration::from_secs(3600),
        default_upstream: "docker.io".parse().unwrap(),
        offline: false,
    }
}

fn put(store: &Store, repository: &str, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut writer = store.stage(&digest).unwrap();
    writer.reserve(bytes.len() as u64);
    writer.append(&[Bytes::copy_from_slice(bytes)]).unwrap();
    writer.verify().unwrap();
    writer.commit(repository, None).unwrap();
    digest
}

fn read(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    let held = store.open_blob(digest)?;
    let mut bytes = Vec::new();
    (&*held.file).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn what_is_committed_is_held_and_survives_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    let digest = put(&store, "r/a", b"hello");
    let empty = put(&store, "r/a", b"");
    store.put_tag(
        "r/a",
        "latest",
        TagRecord {
            digest,
            media_type: "x/y".into(),
            size: 5,
            checked_ms: 7,
            moves: Vec::new(),
        },
    );
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"hello"[..]));
    drop(store);
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"hello"[..]));
    assert_eq!(read(&store, &empty).as_deref(), Some(&b""[..]), "R-S15");
    assert!(store.linked("r/a", &digest) && !store.linked("r/b", &digest), "L8");
    assert_eq!(store.tag("r/a", "latest").unwrap().digest, digest);
    assert_eq!(store.known_tags("r/a"), ["latest"]);
    assert_eq!(
        store
            .repositories("", 10)
            .iter()
            .map(|r| r.to_string())
            .collect::<Vec<_>>(),
        ["r/a"]
    );
    let mode = std::fs::metadata(folder.path().join("blobs/sha256").join(digest.hex()))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "R-X23");
}

/// L2: nothing of it stays, and the next attempt starts clean.
#[test]
fn a_mismatch_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    let digest = Digest::sha256(b"right");
    let mut writer = store.stage(&digest).unwrap();
    assert!(matches!(store.stage(&digest), Err(StoreError::Busy(_))));
    writer.append(&[Bytes::from_static(b"wrong")]).unwrap();
    assert!(matches!(writer.verify(), Err(StoreError::Mismatch(m)) if m.bytes == 5));
    drop(writer);
    assert_eq!(store.size(&digest), None);
    assert_eq!(store.stage(&digest).unwrap().len(), 0);
    assert_eq!(store.usage().used_bytes, 0);
    // Commit alone verifies too.
    let mut writer = store.stage(&digest).unwrap();
    writer.append(&[Bytes::from_static(b"wrong")]).unwrap();
    assert!(matches!(writer.commit("r", None), Err(StoreError::Mismatch(_))));
}

/// L4: staged bytes are gone on with, also after a restart.
#[test]
fn staged_bytes_are_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"hello world");
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    let mut writer = store.stage(&digest).unwrap();
    writer.append(&[Bytes::from_static(b"hello ")]).unwrap();
    drop(writer);
    assert_eq!(store.usage().used_bytes, 4096);
    drop(store);
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    assert_eq!(store.usage().used_bytes, 4096);
    let mut writer = store.stage(&digest).unwrap();
    assert_eq!(writer.len(), 6);
    writer.append(&[Bytes::from_static(b"world")]).unwrap();
    assert!(writer.commit("r", None).unwrap());
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"hello world"[..]));
    assert_eq!(store.usage().used_bytes, 4096);
}

#[test]
fn the_least_recently_used_goes_and_readers_keep_their_handle() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 3 * MIB)).unwrap();
    let blob = |n: u8| vec![n; MIB as usize];
    let (a, b, c) = (
        put(&store, "r", &blob(1)),
        put(&store, "r", &blob(2)),
        put(&store, "r", &blob(3)),
    );
    let held = store.open_blob(&a).unwrap();
    let held_b = store.open_blob(&b).unwrap();
    store.open_blob(&a).unwrap();
    let d = put(&store, "r", &blob(4));
    assert_eq!(store.size(&c), None, "c was used least recently");
    assert!([&a, &b, &d].iter().all(|x| store.size(x).is_some()));
    put(&store, "r", &blob(5));
    assert_eq!(store.size(&b), None);
    let mut bytes = Vec::new();
    (&*held_b.file).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, blob(2));
    drop(held);
    assert!(store.usage().used_bytes <= 3 * MIB);
    assert_eq!(store.usage().evicted, 2);
}

#[test]
fn a_blob_larger_than_the_cache_passes_through() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), MIB)).unwrap();
    let bytes = vec![7; 2 * MIB as usize];
    let digest = Digest::sha256(&bytes);
    let mut writer = store.stage(&digest).unwrap();
    writer.reserve(bytes.len() as u64);
    writer.append(&[bytes.into()]).unwrap();
    writer.verify().unwrap();
    assert!(!writer.commit("r", None).unwrap());
    assert_eq!(store.size(&digest), None);
    assert_eq!(store.usage().used_bytes, 0);
}

#[test]
fn one_folder_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let _store = Store::open(&cache(folder.path(), MIB)).unwrap();
    let error = Store::open(&cache(folder.path(), MIB)).err().unwrap();
    assert!(
        error.to_string().contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
}

/// L6: the disk is the truth for bytes; the index follows.
#[test]
fn index_and_disk_are_reconciled() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    let (kept, lost, cut) = (
        put(&store, "r", b"kept"),
        put(&store, "r", b"lost"),
        put(&store, "r", b"cut short"),
    );
    drop(store);
    let place = |d: &Digest| folder.path().join("blobs/sha256").join(d.hex());
    std::fs::remove_file(place(&lost)).unwrap();
    std::fs::write(place(&cut), b"cut").unwrap();
    let adopted = Digest::sha256(b"renamed before the crash");
    std::fs::write(place(&adopted), b"renamed before the crash").unwrap();
    std::fs::write(folder.path().join("staging/sha256-junk.1.tmp"), b"junk").unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    assert!(store.size(&kept).is_some() && store.size(&adopted).is_some());
    assert!(store.size(&lost).is_none() && store.size(&cut).is_none());
    assert!(!store.linked("r", &adopted));
    assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_damaged_index_is_rebuilt_from_the_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    let digest = put(&store, "r", b"held");
    drop(store);
    std::fs::write(folder.path().join("index.redb"), b"not a database at all").unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"held"[..]));
    assert!(folder.path().join("index.redb.damaged").exists());
}

/// A manifest may be fetched as a blob at the same time: the small writer leaves the large one's place alone.
#[test]
fn a_manifest_does_not_unseat_the_writer_of_the_same_digest() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 100 * MIB)).unwrap();
    let bytes = Bytes::from_static(b"{}");
    let digest = Digest::sha256(&bytes);
    let mut writer = store.stage(&digest).unwrap();
    writer.reserve(5 * MIB);
    let reserved = store.usage().used_bytes;
    store.put_manifest("r", &digest, "x/y", &bytes).unwrap();
    assert_eq!(store.usage().used_bytes, reserved + 4096);
    assert!(matches!(store.stage(&digest), Err(StoreError::Busy(_))));
    drop(writer);
    assert_eq!(store.usage().used_bytes, 4096);
}

/// L5: what cannot be kept makes no room for itself at the cost of everything else.
#[test]
fn a_blob_larger_than_the_cache_evicts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 2 * MIB)).unwrap();
    let held = put(&store, "r", b"held");
    let bytes = Bytes::from(vec![7; 3 * MIB as usize]);
    let digest = Digest::sha256(&bytes);
    let mut writer = store.stage(&digest).unwrap();
    writer.reserve(bytes.len() as u64);
    writer.append(std::slice::from_ref(&bytes)).unwrap();
    assert_eq!(store.usage().used_bytes, 4096);
    writer.verify().unwrap();
    assert!(!writer.commit("r", None).unwrap());
    assert!(store.size(&held).is_some());
    // What an upstream claims is no number to calculate with.
    let mut writers: Vec<Writer> = (0..3u8).map(|n| store.stage(&Digest::sha256(&[n])).unwrap()).collect();
    for writer in &mut writers {
        writer.reserve(u64::MAX - 2);
    }
    assert_eq!(store.usage().used_bytes, 4096);
    drop(writers);
    assert!(store.size(&held).is_some());
}

/// An upstream that never said how much would come: once it is more than fits, the rest passes through.
#[test]
fn an_endless_blob_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), MIB)).unwrap();
    let mut writer = store.stage(&Digest::sha256(b"never")).unwrap();
    for _ in 0..8 {
        writer.append(&[Bytes::from(vec![1; MIB as usize / 2])]).unwrap();
        assert!(store.usage().used_bytes <= MIB);
    }
    drop(writer);
    assert_eq!(store.usage().used_bytes, 0);
    assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 0);
}

/// Each thread evicts what the other has just staged, admitted or opened: whatever the order, the index and the
/// disk tell the same story.
#[test]
fn eviction_and_admission_race() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), 2 * MIB)).unwrap();
    let blob = |n: u8| vec![n; MIB as usize * 3 / 4];
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0..60u8 {
                    let bytes = Bytes::from(blob((round + thread) % 5));
                    let digest = Digest::sha256(&bytes);
                    if round % 3 == 0 {
                        store.put_manifest("r", &digest, "x/y", &bytes).unwrap();
                    } else if let Ok(mut writer) = store.stage(&digest) {
                        let from = writer.len() as usize;
                        let half = (bytes.len() / 2).max(from);
                        writer.append(&[bytes.slice(from..half)]).unwrap();
                        if round % 4 != 0 {
                            writer.append(&[bytes.slice(half..)]).unwrap();
                            writer.verify().unwrap();
                            assert!(writer.commit("r", None).unwrap());
                        }
                    }
                    if let Some(held) = store.open_blob(&digest) {
                        assert_eq!(held.size, bytes.len() as u64);
                    }
                }
            });
        }
    });
    let on_disk = std::fs::read_dir(folder.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(store.usage().blobs, on_disk);
    for n in 0..5 {
        let digest = Digest::sha256(&blob(n));
        assert_eq!(store.size(&digest).is_some(), store.open_blob(&digest).is_some());
    }
    let staged = std::fs::read_dir(folder.path().join("staging")).unwrap();
    let names: Vec<_> = staged.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.ends_with(".part")), "{names:?}");
    let used = store.usage().used_bytes;
    drop(store);
    let again = Store::open(&cache(folder.path(), 2 * MIB)).unwrap();
    assert_eq!(again.usage().used_bytes, used);
}

/// What cannot be read of a staged part is no reason to refuse the blob.
#[test]
fn a_part_that_is_no_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), MIB)).unwrap();
    let digest = Digest::sha256(b"x");
    let part = folder.path().join(format!("staging/sha256-{}.part", digest.hex()));
    std::os::unix::fs::symlink("/dev/null", &part).unwrap();
    let mut writer = store.stage(&digest).unwrap();
    writer.append(&[Bytes::from_static(b"x")]).unwrap();
    assert!(writer.commit("r", None).unwrap());
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"x"[..]));
}

/// Two who ask at once whether the folder can be written do not take each other's file away.
#[test]
fn probes_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), MIB)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    store.probe().unwrap();
                }
            });
        }
    });
}

/// A reader that found nothing does not hide what was noted meanwhile.
#[test]
fn a_noted_tag_is_seen_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&cache(folder.path(), MIB)).unwrap();
    let record = |n: u64| TagRecord {
        digest: Digest::sha256(&n.to_be_bytes()),
        media_type: "x/y".into(),
        size: 1,
        checked_ms: n,
        moves: Vec::new(),
    };
    for round in 0..300 {
        let tag = format!("t{round}");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| store.tag("r", &tag));
            }
            scope.spawn(|| store.put_tag("r", &tag, record(round)));
        });
        assert_eq!(store.tag("r", &tag).map(|r| r.checked_ms), Some(round));
    }
}
