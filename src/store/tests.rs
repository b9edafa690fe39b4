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
