//! The store on a real disk.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// What blobs are counted in here: large beside the index's own file.
const UNIT: u64 = 8 << 20;
const UNIT_BYTES: usize = UNIT as usize;

/// Room for so many units, and for the index.
fn room(path: &Path, units: u64) -> Config {
    let mut config = Config::default_config().unwrap();
    config.cache.path = path.to_owned();
    config.cache.max_size = units * UNIT + UNIT / 2;
    config.cache.min_free = 0;
    config
}

fn open(path: &Path, units: u64) -> Store {
    let store = Store::open(&room(path, units)).unwrap();
    store.reconcile().unwrap();
    store
}

/// Bytes of blobs and transfers.
fn used(store: &Store) -> u64 {
    let usage = store.usage();
    usage.used_bytes - usage.index_bytes
}

/// Keeps a tag list of these lines.
pub(super) fn put_tags(store: &Store, repository: &str, checked_ms: u64, lines: &[u8]) -> Arc<ListRecord> {
    let mut spool = store.list_spool();
    for piece in lines.split_inclusive(|byte| *byte == b'\n') {
        spool.push(piece);
        if spool.len() % 65_536 < 64 {
            spool.flush();
        }
    }
    store.put_list(repository, &ListKey::Tags, spool, checked_ms).unwrap()
}

pub(super) fn tags_of(store: &Store, repository: &str) -> Option<Vec<u8>> {
    store.list(repository, &ListKey::Tags).map(|list| lines_of(&list))
}

pub(super) fn lines_of(list: &ListRecord) -> Vec<u8> {
    let mut all = Vec::new();
    list.for_each(|line| {
        all.extend_from_slice(line);
        all.push(b'\n');
        true
    })
    .unwrap();
    all
}

fn put(store: &Store, repository: &str, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut writer = store.stage(repository, &digest).unwrap();
    writer.expect(bytes.len() as u64).unwrap();
    writer.append(&[Bytes::copy_from_slice(bytes)]).unwrap();
    writer.verify().unwrap();
    writer.commit(repository).unwrap();
    digest
}

fn read(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    let held = store.open_blob(digest).unwrap()?;
    let mut bytes = Vec::new();
    (&*held.file).read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

/// L11: each repository stages for itself, beside others and after them. L5: both are counted, and of a blob that comes
/// twice the second copy goes, so that a response that is being sent keeps no file that nobody counts.
#[test]
fn a_blob_that_comes_twice_is_kept_once() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 12);
    let bytes = Bytes::from(vec![7; 10_000]);
    let digest = Digest::sha256(&bytes);
    let mut first = store.stage("a/x", &digest).unwrap();
    first.expect(10_000).unwrap();
    first.append(&[bytes.slice(..6_000)]).unwrap();
    let mut second = store.stage("b/y", &digest).unwrap();
    assert_eq!(second.len(), 0, "another's bytes");
    assert!(store.is_staged("a/x", &digest) && !store.is_staged("c/z", &digest));
    second.expect(10_000).unwrap();
    second.append(&[bytes.slice(..9_000)]).unwrap();
    assert_eq!(used(&store), 2 * 12_288, "each is counted");
    first.append(&[bytes.slice(6_000..)]).unwrap();
    first.commit("a/x").unwrap();
    let held = store.open_blob(&digest).unwrap().unwrap();
    second.append(&[bytes.slice(9_000..)]).unwrap();
    second.commit("b/y").unwrap();
    assert!(store.linked("a/x", &digest) && store.linked("b/y", &digest));
    let inode = |file: &File| file.metadata().unwrap().ino();
    let now = store.open_blob(&digest).unwrap().unwrap();
    assert_eq!(inode(&held.file), inode(&now.file), "the first stays");
    assert_eq!((used(&store), store.usage().staged_bytes), (12_288, 0));
    let staging = folder.path().join("staging");
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0);

    // One that is not there any more, or not whole, is replaced.
    let place = folder.path().join("blobs/sha256").join(digest.hex());
    let damages: [fn(&Path) -> std::io::Result<()>; 2] = [
        |place| std::fs::remove_file(place),
        |place| std::fs::write(place, b"short"),
    ];
    for damage in damages {
        let mut third = store.stage("c/z", &digest).unwrap();
        third.append(std::slice::from_ref(&bytes)).unwrap();
        damage(&place).unwrap();
        third.commit("c/z").unwrap();
        assert_eq!(read(&store, &digest).as_deref(), Some(&bytes[..]));
        assert_eq!(used(&store), 12_288);
    }

    // A part is its owner's, also after a restart; one that is named as earlier versions did is nobody's.
    let other = Digest::sha256(b"other");
    let mut part = store.stage("a/x", &other).unwrap();
    part.append(&[Bytes::from_static(b"oth")]).unwrap();
    drop(part);
    drop((held, now, store));
    std::fs::write(staging.join(format!("sha256-{}.part", digest.hex())), &bytes).unwrap();
    let store = open(folder.path(), 12);
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 1);
    assert_eq!(store.stage("b/y", &other).unwrap().len(), 0);
    assert_eq!(store.stage_for("bundle", "a/x", &other).unwrap().len(), 0);
    assert_eq!(store.stage("a/x", &other).unwrap().len(), 3);
}

#[test]
fn what_is_committed_is_held_and_survives_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 12);
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
    let store = open(folder.path(), 12);
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
    let store = open(folder.path(), 12);
    let digest = Digest::sha256(b"right");
    let mut writer = store.stage("r", &digest).unwrap();
    assert!(matches!(store.stage("r", &digest), Err(StoreError::Busy(_))));
    writer.append(&[Bytes::from_static(b"wrong")]).unwrap();
    assert!(matches!(writer.verify(), Err(StoreError::Mismatch(m)) if m.bytes == 5));
    drop(writer);
    assert_eq!(store.size(&digest), None);
    assert_eq!(store.stage("r", &digest).unwrap().len(), 0);
    assert_eq!(used(&store), 0);
    // Commit alone verifies too.
    let mut writer = store.stage("r", &digest).unwrap();
    writer.append(&[Bytes::from_static(b"wrong")]).unwrap();
    assert!(matches!(writer.commit("r"), Err(StoreError::Mismatch(_))));
}

/// L4: staged bytes are gone on with, also after a restart.
#[test]
fn staged_bytes_are_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"hello world");
    let store = open(folder.path(), 12);
    let mut writer = store.stage("r", &digest).unwrap();
    writer.append(&[Bytes::from_static(b"hello ")]).unwrap();
    drop(writer);
    assert_eq!(used(&store), 4096);
    drop(store);
    let store = open(folder.path(), 12);
    assert_eq!(used(&store), 4096);
    let mut writer = store.stage("r", &digest).unwrap();
    assert_eq!(writer.len(), 6);
    writer.append(&[Bytes::from_static(b"world")]).unwrap();
    writer.commit("r").unwrap();
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"hello world"[..]));
    assert_eq!(used(&store), 4096);
}

#[test]
fn the_least_recently_used_goes_and_readers_keep_their_handle() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 3);
    let blob = |n: u8| vec![n; UNIT_BYTES];
    let (a, b, c) = (
        put(&store, "r", &blob(1)),
        put(&store, "r", &blob(2)),
        put(&store, "r", &blob(3)),
    );
    let held = store.open_blob(&a).unwrap().unwrap();
    let held_b = store.open_blob(&b).unwrap().unwrap();
    store.open_blob(&a).unwrap().unwrap();
    let d = put(&store, "r", &blob(4));
    assert_eq!(store.size(&c), None, "c was used least recently");
    assert!([&a, &b, &d].iter().all(|x| store.size(x).is_some()));
    put(&store, "r", &blob(5));
    assert_eq!(store.size(&d), None, "a and b are being sent");
    // Even what is removed while it is being sent is sent to its end.
    store.quarantine(&b);
    let mut bytes = Vec::new();
    (&*held_b.file).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, blob(2));
    drop(held);
    assert!(used(&store) <= 3 * UNIT);
    assert_eq!(store.usage().evicted, 2);
}

/// Reading for an operator changes neither what is evicted next nor what is kept open for clients.
#[test]
fn a_look_is_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 3);
    let blob = |n: u8| vec![n; UNIT_BYTES];
    let layer = put(&store, "r", &blob(1));
    let manifest = Bytes::from_static(b"{}");
    let digest = Digest::sha256(&manifest);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    store
        .put_manifest("r", &digest, media_type, &[layer], &manifest)
        .unwrap();
    let other = put(&store, "r", &blob(2));
    drop(store.peek_blob(&layer).unwrap().unwrap());
    assert_eq!(store.peek_manifest(&digest).unwrap().unwrap().bytes, manifest);
    assert!(store.open_hot(&layer).is_none(), "it is not kept open");
    let last = put(&store, "r", &blob(3));
    put(&store, "r", &blob(4));
    assert_eq!(store.size(&layer), None, "it was pulled before all others");
    assert!([&other, &last].iter().all(|digest| store.size(digest).is_some()));
    // While it is read it stays.
    let read = store.peek_blob(&other).unwrap().unwrap();
    put(&store, "r", &blob(5));
    assert!(store.size(&other).is_some() && store.size(&last).is_none());
    drop(read);
}

/// L5: what is evicted or found damaged is not kept open for those who ask next: it would take room that is not counted.
#[test]
fn what_goes_is_not_kept_open() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 2);
    let blob = |n: u8| vec![n; UNIT_BYTES];
    let handles = |digest: &Digest| {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let names = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
        names
            .filter(|name| name.to_string_lossy().contains(&digest.hex()))
            .count()
    };
    let (a, b) = (put(&store, "r", &blob(1)), put(&store, "r", &blob(2)));
    for digest in [&a, &b] {
        assert!(store.open_hot(digest).is_none(), "nobody has opened it");
        drop(store.open_blob(digest).unwrap().unwrap());
        let mut held = store.open_hot(digest).unwrap();
        assert!(store.is_being_sent(digest));
        held = held.clone();
        drop(held);
        assert_eq!((store.is_being_sent(digest), handles(digest)), (false, 1));
    }
    // b was used last.
    put(&store, "r", &blob(3));
    assert_eq!((store.size(&a), handles(&a)), (None, 0));
    assert!(store.open_hot(&a).is_none() && store.open_hot(&b).is_some());
    store.quarantine(&b);
    assert_eq!(handles(&b), 0);
    // It comes again, and what was damaged is not given out for it.
    put(&store, "r", &blob(2));
    assert!(store.open_hot(&b).is_none());
    assert_eq!(read(&store, &b), Some(blob(2)));
}

#[test]
fn one_folder_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let _store = open(folder.path(), 1);
    let error = Store::open(&room(folder.path(), 1)).err().unwrap();
    assert!(
        error.to_string().contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
}

/// L6: the disk is the truth for bytes; the index follows.
#[test]
fn index_and_disk_are_reconciled() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 12);
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
    let store = open(folder.path(), 12);
    assert!(store.size(&kept).is_some() && store.size(&adopted).is_some());
    assert!(store.size(&lost).is_none() && store.size(&cut).is_none());
    assert!(!store.linked("r", &adopted));
    assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_damaged_index_is_rebuilt_from_the_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 12);
    let digest = put(&store, "r", b"held");
    let text = format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{digest}","size":4}}],"config":{{}}}}"#);
    let (bytes, config) = (
        Bytes::from(text.clone()),
        Bytes::from_static(br#"{"architecture":"amd64"}"#),
    );
    let manifest = Digest::sha256(&bytes);
    store.put_manifest("r", &manifest, "x/y", &[digest], &bytes).unwrap();
    let config = put(&store, "r", &config);
    drop(store);
    std::fs::write(folder.path().join("index.redb"), b"not a database at all").unwrap();
    let store = open(folder.path(), 12);
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"held"[..]));
    let names = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let aside = names.filter(|name| name.to_string_lossy().starts_with("index.redb.damaged-"));
    assert_eq!(aside.count(), 1);
    // Manifests are told by what they say of themselves; links have to be shown again (L8).
    assert_eq!(store.manifest(&manifest).unwrap().unwrap().bytes, text);
    assert_eq!(store.media_type(&config), None);
    assert!(!store.linked("r", &manifest));
}

/// A manifest may be fetched as a blob at the same time: the small writer leaves the large one's place alone.
#[test]
fn a_manifest_does_not_unseat_the_writer_of_the_same_digest() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 12);
    let bytes = Bytes::from_static(b"{}");
    let digest = Digest::sha256(&bytes);
    let mut writer = store.stage("r", &digest).unwrap();
    writer.expect(2 * UNIT).unwrap();
    let reserved = used(&store);
    assert!(reserved > 0);
    store.put_manifest("r", &digest, "x/y", &[], &bytes).unwrap();
    assert_eq!(used(&store), reserved + 4096);
    assert!(matches!(store.stage("r", &digest), Err(StoreError::Busy(_))));
    drop(writer);
    assert_eq!(used(&store), 4096);
}

/// L5: what cannot be kept makes no room for itself at the cost of everything else.
#[test]
fn a_blob_larger_than_the_cache_evicts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 2);
    let held = put(&store, "r", b"held");
    let mut writer = store.stage("r", &Digest::sha256(b"large")).unwrap();
    assert!(matches!(writer.expect(3 * UNIT), Err(StoreError::NoRoom(_))));
    assert_eq!(used(&store), 4096);
    // What an upstream claims is no number to calculate with.
    let mut writers: Vec<Writer> = (0..3u8)
        .map(|n| store.stage("r", &Digest::sha256(&[n])).unwrap())
        .collect();
    for writer in &mut writers {
        for absurd in [u64::MAX, u64::MAX - 2, u64::MAX - 4096, 1 << 63] {
            assert!(matches!(writer.expect(absurd), Err(StoreError::NoRoom(_))));
        }
    }
    assert_eq!(used(&store), 4096);
    drop(writers);
    assert!(store.size(&held).is_some());
}

/// An upstream that never said how much would come: once it is more than fits, the writer gives up, and what it
/// staged is readable, counted and then gone.
#[test]
fn an_endless_blob_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 2);
    let piece = Bytes::from(vec![1; UNIT_BYTES]);
    let mut writer = store.stage("r", &Digest::sha256(b"never")).unwrap();
    writer.append(std::slice::from_ref(&piece)).unwrap();
    writer.append(std::slice::from_ref(&piece)).unwrap();
    let refused = writer.append(std::slice::from_ref(&piece));
    assert!(matches!(refused, Err(StoreError::NoRoom(_))), "{refused:?}");
    let (mut hashing, remains) = writer.detach();
    assert_eq!(
        (hashing.len(), remains.len, used(&store)),
        (2 * UNIT, 2 * UNIT, 2 * UNIT)
    );
    hashing.update(&piece);
    assert!(matches!(hashing.verify(), Err(StoreError::Mismatch(_))));
    drop(remains);
    assert_eq!(used(&store), 0);
    assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 0);
}

/// What is pinned or being sent stays, whatever else has to go.
#[test]
fn pins_and_leases_hold() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let layer = put(&store, "r", &vec![1; UNIT_BYTES]);
    let sent = put(&store, "r", &vec![2; UNIT_BYTES]);
    let bytes = Bytes::from_static(b"{\"a\":1}");
    let digest = Digest::sha256(&bytes);
    store.put_manifest("r", &digest, "x/y", &[layer], &bytes).unwrap();
    store.put_tag("r", "1", record(digest, 1));
    assert!(store.pin("r", "1") && !store.pin("r", "2"));
    let response = store.open_blob(&sent).unwrap().unwrap();
    for n in 3..8 {
        put(&store, "r", &vec![n; UNIT_BYTES]);
    }
    assert!(store.size(&layer).is_some() && store.size(&sent).is_some() && store.size(&digest).is_some());
    drop(response);
    drop(store);
    // Pins outlive the process.
    let store = open(folder.path(), 4);
    for n in 10..15 {
        put(&store, "r", &vec![n; UNIT_BYTES]);
    }
    assert!(store.size(&layer).is_some() && store.size(&sent).is_none());
    assert!(store.unpin("r", "1"));
    for n in 20..25 {
        put(&store, "r", &vec![n; UNIT_BYTES]);
    }
    assert!(store.size(&layer).is_none());
    assert!(store.size(&digest).is_some(), "manifests outlive layers");
}

/// The pin of a tag moves with the tag.
#[test]
fn a_pin_follows_its_tag() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let digests = [b"{\"a\":1}", b"{\"a\":2}"].map(|text| {
        let bytes = Bytes::from_static(text);
        let digest = Digest::sha256(&bytes);
        store.put_manifest("r", &digest, "x/y", &[], &bytes).unwrap();
        digest
    });
    store.put_tag("r", "1", record(digests[0], 1));
    store.pin("r", "1");
    store.put_tag("r", "1", record(digests[1], 2));
    assert!(!store.is_pinned(&digests[0]) && store.is_pinned(&digests[1]));
}

/// L6: what `put_tag_durably` has noted is on disk, with the pin that moved; and no failing index keeps it from being
/// seen.
#[test]
fn a_tag_that_moved_is_on_disk_with_its_pin() {
    let (folder, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(folder.path(), 4);
    let digests = [b"{\"a\":1}", b"{\"a\":2}"].map(|text| {
        let bytes = Bytes::from_static(text);
        let digest = Digest::sha256(&bytes);
        store.put_manifest("r", &digest, "x/y", &[], &bytes).unwrap();
        digest
    });
    store.put_tag_durably("r", "1", record(digests[0], 1));
    store.pin("r", "1");
    store.put_tag_durably("r", "1", record(digests[1], 2));
    // The folder as a crash at this moment would leave it.
    std::fs::copy(folder.path().join("index.redb"), crashed.path().join("index.redb")).unwrap();
    let found = Store::open(&room(crashed.path(), 4)).unwrap();
    let tag = found.tag("r", "1").unwrap();
    assert_eq!((tag.digest, tag.moves.len()), (digests[1], 1));
    assert!(found.is_pinned(&digests[1]) && !found.is_pinned(&digests[0]));

    // A list, too.
    put_tags(&store, "r", 1, b"1\n");
    drop(found);
    std::fs::copy(folder.path().join("index.redb"), crashed.path().join("index.redb")).unwrap();
    let found = Store::open(&room(crashed.path(), 4)).unwrap();
    assert_eq!(tags_of(&found, "r").unwrap(), b"1\n");

    store.inner.database.stop();
    store.put_tag_durably("r", "1", record(digests[0], 3));
    assert_eq!(store.tag("r", "1").unwrap().digest, digests[0]);
}

/// L8: a repository's link goes with the blob, also on disk: it does not come back when another repository brings the
/// same bytes again.
#[test]
fn links_go_with_the_blob() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 2);
    let shared = put(&store, "r/a", b"shared");
    put(&store, "r/a", &vec![1; UNIT_BYTES]);
    put(&store, "r/a", &vec![2; 2 * UNIT_BYTES]);
    assert_eq!(store.size(&shared), None, "evicted");
    assert_eq!(put(&store, "r/b", b"shared"), shared);
    drop(store);
    let store = open(folder.path(), 2);
    assert!(store.linked("r/b", &shared) && !store.linked("r/a", &shared));
}

/// A link without its blob, as a crash may leave it, is forgotten.
#[test]
fn loose_links_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"shared");
    let store = open(folder.path(), 2);
    let loose = Op::Put(Table::Links, link_key("r/a", &digest), Vec::new());
    store.inner.database.write(vec![loose]);
    drop(store);
    let store = open(folder.path(), 2);
    put(&store, "r/b", b"shared");
    drop(store);
    let store = open(folder.path(), 2);
    assert!(store.linked("r/b", &digest) && !store.linked("r/a", &digest), "L8");
}

/// An empty mark, as a crash may leave it, is written anew.
#[test]
fn the_layout_mark_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("oci-layout");
    for torn in ["", "{\"imageLay"] {
        std::fs::write(&mark, torn).unwrap();
        drop(open(folder.path(), 1));
        assert_eq!(std::fs::read(&mark).unwrap(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    }
}

/// `remove_image` frees what only that image reaches, and says how much.
#[test]
fn a_removal_frees_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let (own, shared) = (put(&store, "r", b"own"), put(&store, "r", b"shared"));
    for (tag, children) in [("1", vec![own, shared]), ("2", vec![shared])] {
        let bytes = Bytes::from(format!("{{\"tag\":{tag}}}"));
        let digest = Digest::sha256(&bytes);
        store.put_manifest("r", &digest, "x/y", &children, &bytes).unwrap();
        store.put_tag("r", tag, record(digest, 1));
    }
    let images = store.images();
    assert_eq!(
        images.iter().map(Image::held_bytes).collect::<Vec<_>>(),
        [3 * 4096, 2 * 4096]
    );
    let survey = store.survey();
    let exclusive: Vec<u64> = survey.rows.iter().map(|row| row.exclusive_bytes).collect();
    assert_eq!((exclusive, survey.shared_bytes), (vec![2 * 4096, 4096], 4096));
    let before = used(&store);
    let removed = store.remove_image("r", "1").unwrap();
    assert_eq!(
        removed,
        Removed {
            blobs: 2,
            bytes: 2 * 4096,
            later_bytes: 0
        }
    );
    assert_eq!(before - used(&store), removed.bytes);
    assert!(store.size(&own).is_none() && store.size(&shared).is_some());
    assert!(store.tag("r", "1").is_none() && store.remove_image("r", "1").is_none());
    drop(store);
    assert!(open(folder.path(), 4).tag("r", "1").is_none());
}

/// What was pulled by digest, and where a tag pointed before it moved, is an image too.
#[test]
fn images_without_a_tag() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let (layer, base) = (put(&store, "r", b"layer"), put(&store, "r", b"base"));
    let document = |repository: &str, text: &'static [u8], children: &[Digest]| {
        let digest = Digest::sha256(text);
        let bytes = Bytes::from_static(text);
        store
            .put_manifest(repository, &digest, "x/y", children, &bytes)
            .unwrap();
        digest
    };
    let (old, new) = (document("r", b"old", &[layer, base]), document("r", b"new", &[base]));
    // A manifest that an index of the same repository names is the index's; in another repository it stands alone.
    let index = document("r", b"index", &[new]);
    document("s", b"new", &[base]);
    store.put_tag("r", "1", record(old, 1));
    store.put_tag("r", "1", record(index, 2));
    let names: Vec<String> = store.images().iter().map(|image| image.name.to_string()).collect();
    assert_eq!(names, ["r:1".to_owned(), format!("r@{old}"), format!("s@{new}")]);
    assert!(store.image("r", &index.to_string()).is_some() && store.image("s", &index.to_string()).is_none());
    assert!(store.pin("s", &new.to_string()) && !store.pin("s", &old.to_string()));
    // The base layer and the manifest stay: the pin in the other repository reaches them.
    let removed = store.remove_image("r", &index.to_string()).unwrap();
    assert_eq!(removed.bytes, 4096);
    assert!(store.tag("r", "1").is_none() && store.size(&base).is_some() && store.size(&new).is_some());
    let removed = store.remove_image("r", &old.to_string()).unwrap();
    assert_eq!((removed.blobs, store.size(&layer)), (2, None));
    drop(store);
    let store = open(folder.path(), 4);
    assert!(store.image("s", &new.to_string()).unwrap().pinned);
    assert_eq!(store.survey().loose_blobs, 0);
}

/// Bytes that a response is being sent from are the disk's again only when it has ended.
#[test]
fn a_removal_says_what_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let layer = put(&store, "r", b"layer");
    let bytes = Bytes::from_static(b"{}");
    let digest = Digest::sha256(&bytes);
    store.put_manifest("r", &digest, "x/y", &[layer], &bytes).unwrap();
    store.put_tag("r", "1", record(digest, 1));
    let reading = store.open_blob(&layer).unwrap().unwrap();
    let survey = store.survey();
    assert_eq!((survey.leased_bytes, survey.evictable_bytes), (4096, 4096));
    let removed = store.remove_image("r", "1").unwrap();
    assert_eq!((removed.bytes, removed.later_bytes), (8192, 4096));
    drop(reading);
}

/// A look at a folder evicts nothing, whatever limit the looker was told.
#[test]
fn a_look_evicts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let digest = put(&store, "r", &vec![7; UNIT_BYTES]);
    drop(store);
    let mut small = room(folder.path(), 4);
    small.cache.max_size = 1;
    let store = Store::open_at_rest(&small).unwrap();
    assert_eq!(store.size(&digest), Some(UNIT));
}

#[test]
fn rot_is_found_and_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    let (right, wrong, missing) = (
        put(&store, "r", b"right"),
        put(&store, "r", b"wrong"),
        put(&store, "r", b"missing"),
    );
    let place = |d: &Digest| folder.path().join("blobs/sha256").join(d.hex());
    std::fs::write(place(&wrong), b"wrxng").unwrap();
    std::fs::remove_file(place(&missing)).unwrap();
    assert_eq!(store.check(&right), Verdict::Right);
    assert_eq!(store.check(&wrong), Verdict::Wrong);
    assert_eq!(store.check(&missing), Verdict::Missing);
    assert_eq!(store.check(&Digest::sha256(b"never")), Verdict::Gone);
    store.quarantine(&wrong);
    assert!(store.size(&wrong).is_none());
    assert!(
        folder
            .path()
            .join(format!("quarantine/sha256-{}", wrong.hex()))
            .exists()
    );
    assert_eq!(store.digests_after(None, 10).len(), 2);
}

/// Every operation on the disk fails once, at every point of a writer's life: the error names the path, nothing
/// half-done is held, and the next attempt succeeds (L5, L6).
#[test]
fn a_failing_disk_costs_one_attempt() {
    use std::io::{Error, ErrorKind};
    let kinds = [
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::Other,
    ];
    for op in DiskOp::CHANGES {
        for kind in kinds {
            for short in [None, Some(3)] {
                let folder = tempfile::tempdir().unwrap();
                let armed = Arc::new(std::sync::atomic::AtomicBool::new(true));
                let hook = armed.clone();
                let faults: Faults = Arc::new(move |asked, _| {
                    let fires = asked == op && hook.swap(false, Ordering::SeqCst);
                    fires.then(|| match short {
                        Some(n) => Fault::Short(n, Error::from(kind)),
                        None => Fault::Error(Error::from(kind)),
                    })
                });
                let store = Store::open_with(&room(folder.path(), 4), Some(faults)).unwrap();
                let bytes = Bytes::from_static(b"some bytes");
                let digest = Digest::sha256(&bytes);
                let attempt = || -> Result<(), StoreError> {
                    let mut writer = store.stage("r", &digest)?;
                    let from = writer.len() as usize;
                    writer.append(&[bytes.slice(from..)])?;
                    writer.commit("r")
                };
                let error = attempt().unwrap_err();
                assert!(error.to_string().contains(op.as_str()), "{op:?}: {error}");
                assert!(store.trouble().is_some_and(|text| text == error.to_string()));
                assert!(!armed.load(Ordering::SeqCst));
                if let Some(held) = store.size(&digest) {
                    // Only when the folder's sync failed: then it is in place and right.
                    assert_eq!((op, held), (DiskOp::SyncFolder, 10));
                } else {
                    attempt().unwrap();
                }
                assert_eq!(read(&store, &digest).as_deref(), Some(&bytes[..]), "{op:?}");
                assert_eq!(used(&store), 4096, "{op:?}");
            }
        }
    }
}

/// Each upstream has a limit of its own, if the operator set one.
#[test]
fn a_noisy_upstream_empties_its_own_shelf() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = room(folder.path(), 10);
    for upstream in &mut config.upstreams {
        if upstream.name.as_str() == "ghcr.io" {
            upstream.max_size = Some(2 * UNIT);
        }
    }
    let store = Store::open(&config).unwrap();
    let quiet = put(&store, "docker.io/library/a", &vec![100; UNIT_BYTES]);
    for n in 0..6 {
        put(&store, "ghcr.io/a/b", &vec![n; UNIT_BYTES]);
    }
    assert!(store.size(&quiet).is_some());
    let shelves = store.usage().shelves;
    let held = |name: &str| shelves.iter().find(|s| *s.0 == *name).map(|s| s.1);
    assert_eq!((held("ghcr.io"), held("docker.io")), (Some(2 * UNIT), Some(UNIT)));
    let mut writer = store.stage("ghcr.io/a/b", &Digest::sha256(b"x")).unwrap();
    assert!(matches!(writer.expect(3 * UNIT), Err(StoreError::NoRoom(_))));
}

pub(super) fn record(digest: Digest, checked_ms: u64) -> TagRecord {
    TagRecord {
        digest,
        media_type: "x/y".into(),
        size: 1,
        checked_ms,
        moves: Vec::new(),
    }
}

/// Each thread evicts what the other has just staged, admitted or opened: whatever the order, the index and the
/// disk tell the same story.
#[test]
fn eviction_and_admission_race() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 2);
    let blob = |n: u8| vec![n; UNIT_BYTES * 3 / 4];
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let store = store.clone();
            scope.spawn(move || {
                for round in 0..30u8 {
                    let bytes = Bytes::from(blob((round + thread) % 5));
                    let digest = Digest::sha256(&bytes);
                    if round % 3 == 0 {
                        let put = store.put_manifest("r", &digest, "x/y", &[], &bytes);
                        assert!(matches!(put, Ok(()) | Err(StoreError::NoRoom(_))), "{put:?}");
                    } else if let Ok(mut writer) = store.stage("r", &digest) {
                        let from = writer.len() as usize;
                        let half = (bytes.len() / 2).max(from);
                        // All the room may be other transfers'.
                        let first = writer.append(&[bytes.slice(from..half)]);
                        if round % 4 != 0 && first.is_ok() && writer.append(&[bytes.slice(half..)]).is_ok() {
                            writer.verify().unwrap();
                            writer.commit("r").unwrap();
                        }
                    }
                    if let Some(held) = store.open_blob(&digest).unwrap() {
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
        assert_eq!(
            store.size(&digest).is_some(),
            store.open_blob(&digest).unwrap().is_some()
        );
    }
    let staged = std::fs::read_dir(folder.path().join("staging")).unwrap();
    let names: Vec<_> = staged.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.ends_with(".part")), "{names:?}");
    let before = used(&store);
    drop(store);
    let again = open(folder.path(), 2);
    assert_eq!(used(&again), before);
}

/// What cannot be read of a staged part is no reason to refuse the blob.
#[test]
fn a_part_that_is_no_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1);
    let digest = Digest::sha256(b"x");
    let part = folder
        .path()
        .join(format!("staging/{}.part", staging_key("r", &digest).hex()));
    std::os::unix::fs::symlink("/dev/null", &part).unwrap();
    let mut writer = store.stage("r", &digest).unwrap();
    writer.append(&[Bytes::from_static(b"x")]).unwrap();
    writer.commit("r").unwrap();
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"x"[..]));
}

/// Two who ask at once whether the folder can be written do not take each other's file away.
#[test]
fn probes_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1);
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
    let store = open(folder.path(), 1);
    let record = |n: u64| record(Digest::sha256(&n.to_be_bytes()), n);
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

/// L6: nobody is told that something is held before a crash would leave it so; else what was a hit a moment
/// ago would need its upstream again. Found by tests/crash.
#[test]
fn nothing_is_held_before_it_is_written_down() {
    use std::sync::OnceLock;
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"some bytes");
    let (asked, seen) = (Arc::new(OnceLock::<Store>::new()), Arc::new(Mutex::new(Vec::new())));
    let faults: Faults = {
        let (asked, seen) = (asked.clone(), seen.clone());
        Arc::new(move |op, _: &Path| {
            // It is in its place now, and counted.
            if let (DiskOp::SyncFolder, Some(store)) = (op, asked.get()) {
                assert_eq!(used(store), 4096);
                let held = (store.size(&digest), store.linked("r", &digest));
                seen.lock().unwrap().push((held, read(store, &digest)));
            }
            None
        })
    };
    let store = Store::open_with(&room(folder.path(), 4), Some(faults)).unwrap();
    assert!(asked.set(store.clone()).is_ok());
    assert_eq!(put(&store, "r", b"some bytes"), digest);
    assert_eq!(*seen.lock().unwrap(), [((None, false), None)]);
    assert!(store.size(&digest).is_some() && store.linked("r", &digest));
}

/// L6: a power cut finds nothing in its place whose bytes are not on the disk. Killing a process cannot show that.
#[test]
fn bytes_are_on_the_disk_before_they_are_in_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let faults: Faults = {
        let seen = seen.clone();
        Arc::new(move |op, _: &Path| {
            seen.lock().unwrap().push(op);
            None
        })
    };
    let store = Store::open_with(&room(folder.path(), 4), Some(faults)).unwrap();
    put(&store, "r", b"some bytes");
    use DiskOp::*;
    assert_eq!(*seen.lock().unwrap(), [Create, Write, Sync, Rename, SyncFolder]);
}

/// L5: the index's own file counts, also when it grows by what is not admitted. Found by tests/crash.
#[test]
fn what_the_index_grows_by_is_evicted_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = room(folder.path(), 2);
    config.cache.max_size = 4 << 20;
    let over = |store: &Store| store.usage().used_bytes.saturating_sub(config.cache.max_size);
    let store = Store::open(&config).unwrap();
    for n in 0..1100u32 {
        put(&store, "r", &n.to_le_bytes());
        assert_eq!(over(&store), 0, "after {n}");
    }
    // Tags with long names come without being admitted.
    for n in 0..3000u32 {
        let tag = format!("{n}-{}", "x".repeat(400));
        store.put_tag("r", &tag, record(Digest::sha256(b"x"), 1));
    }
    store.inner.database.settle();
    assert!(over(&store) > 0, "nothing grew");
    store.keep_limit();
    assert_eq!(over(&store), 0);
    drop(store);
    // Found again, one by one, by a start that knows of none of them.
    std::fs::remove_file(folder.path().join("index.redb")).unwrap();
    let store = Store::open(&config).unwrap();
    store.reconcile().unwrap();
    assert_eq!(over(&store), 0);
    assert!(store.usage().blobs > 100);
}

#[test]
fn what_is_held_back_from_the_disk_is_written_by_the_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 12);
    let digest = Digest::sha256(b"hello world");
    let mut writer = store.stage("r", &digest).unwrap();
    assert!(!writer.expects(11));
    writer.reserve_free(11);
    assert!(writer.expects(11));
    writer.hold(&[Bytes::from_static(b"hello "), Bytes::from_static(b"world")]);
    assert_eq!((writer.len(), writer.file().metadata().unwrap().len()), (11, 0));
    assert!(writer.verify_held());
    writer.commit("r").unwrap();
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"hello world"[..]));
    assert_eq!(used(&store), 4096);
    // What is not committed was never there.
    let digest = Digest::sha256(b"hello again");
    let mut writer = store.stage("r", &digest).unwrap();
    writer.hold(&[Bytes::from_static(b"hello agein")]);
    assert!(!writer.verify_held() && writer.verify().is_err());
    drop(writer);
    let mut writer = store.stage("r", &digest).unwrap();
    writer.hold(&[Bytes::from_static(b"hello again")]);
    assert!(writer.verify_held());
    drop(writer);
    assert_eq!((used(&store), store.stage("r", &digest).unwrap().len()), (4096, 0));
}

/// L5: nothing goes for what has not been announced, and what is full is full.
#[test]
fn free_room_is_taken_and_none_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 2);
    let held = put(&store, "r", &vec![1; UNIT_BYTES]);
    let digest = Digest::sha256(b"x");
    let mut writer = store.stage("r", &digest).unwrap();
    writer.reserve_free(2 * UNIT);
    assert!(!writer.expects(2 * UNIT) && store.size(&held).is_some());
    writer.reserve_free(UNIT);
    assert!(writer.expects(UNIT) && used(&store) == 2 * UNIT);
}

/// What is sent from a file in memory is there twice, and counted so.
#[test]
fn large_manifests_weigh_twice() {
    let manifest = |bytes: u64| Manifest::new(vec![b' '; usize::try_from(bytes).unwrap()].into(), "x/y".into());
    let (small, large) = (manifest(LARGE_MANIFEST_BYTES - 1), manifest(LARGE_MANIFEST_BYTES));
    assert!(small.file().is_none());
    assert_eq!(large.file().unwrap().metadata().unwrap().len(), LARGE_MANIFEST_BYTES);
    assert!(u64::from(small.weight()) < LARGE_MANIFEST_BYTES + 1024);
    assert!(u64::from(large.weight()) >= 2 * LARGE_MANIFEST_BYTES);
}

/// What an import announced goes with it, unless somebody else has said so meanwhile.
#[test]
fn announced_marks_are_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    store.set_private("before", true);
    let announced = store.announce_private(["before", "refused", "pulled", "refused"]);
    assert_eq!(announced, ["refused".into(), "pulled".into()]);
    let have = |store: &Store| ["before", "refused", "pulled"].map(|name| store.is_private(name));
    assert_eq!(have(&store), [true; 3]);
    // An answer to credentials comes while the import runs.
    store.set_private("pulled", true);
    store.withdraw_private(&announced);
    assert_eq!(have(&store), [true, false, true]);
    // Nor what an earlier import left.
    let announced = store.announce_private(["refused"]);
    store.confirm_private(&announced);
    store.withdraw_private(&announced);
    assert_eq!(have(&store), [true; 3]);
    drop(store);
    assert_eq!(have(&open(folder.path(), 4)), [true; 3]);
}

/// A repository that was shown to be public may have been closed since.
#[test]
fn what_was_public_long_ago_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4);
    store.set_private("r", true);
    let day = u64::try_from(PUBLIC_FOR.as_millis()).unwrap();
    for (age, is_private) in [(0, false), (day - 60_000, false), (day, true), (10 * day, true)] {
        store.note_shown(
            "r",
            ToNobody {
                is_public: true,
                checked_ms: unix_ms() - age,
            },
        );
        assert_eq!(store.is_private("r"), is_private, "{age}");
    }
}
