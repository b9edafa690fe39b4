//! An index that is damaged or gone, its copy, and what cannot be read at the moment.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Weak;
use std::sync::atomic::AtomicI32;

use fastrand::Rng;

use super::tests::{put_tags, tags_of};
use super::*;
use crate::oci::Algorithm;

fn config(path: &Path) -> Config {
    let mut config = Config::default_config().unwrap();
    config.cache.path = path.to_owned();
    config.cache.min_free = 0;
    config
}

fn open(path: &Path) -> Store {
    let store = Store::open(&config(path)).unwrap();
    store.reconcile().unwrap();
    store
}

fn put(store: &Store, repository: &str, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut writer = store.stage(repository, &digest).unwrap();
    writer.append(&[Bytes::copy_from_slice(bytes)]).unwrap();
    writer.commit(repository).unwrap();
    digest
}

fn record(digest: Digest) -> TagRecord {
    TagRecord {
        digest,
        media_type: "x/y".into(),
        size: 5,
        checked_ms: 7,
        moves: Vec::new(),
    }
}

const REPOSITORIES: usize = 5;
const BLOBS: usize = 60;

fn repository(n: usize) -> String {
    format!("docker.io/library/image-{}", n % REPOSITORIES)
}

/// Blobs, a tag for each of them, pins, marks and wishes: some pages of each.
fn fill(path: &Path) -> Store {
    let store = open(path);
    for n in 0..BLOBS {
        let digest = put(&store, &repository(n), &n.to_le_bytes());
        for tag in ["v", "long-name-of-a-tag-that-takes-some-room-in-the-index"] {
            store.put_tag(&repository(n), &format!("{tag}{n}"), record(digest));
        }
        if n % 3 == 0 {
            assert!(store.pin(&repository(n), &format!("v{n}")));
        }
        store.wish(&format!("docker.io/library/missing:{n}"), None, "192.0.2.1");
    }
    store.set_private(&repository(0), true);
    store.set_filled(1_000, "bundle 1");
    store.flush_wishes();
    store
}

/// All that the copy has to bring back.
fn state(store: &Store) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for image in store.images() {
        state.insert(image.name.to_string(), format!("{} {}", image.digest, image.pinned));
    }
    for wish in store.wishes() {
        state.insert(wish.image, wish.count.to_string());
    }
    for n in 0..REPOSITORIES {
        state.insert(repository(n), store.had_credentials(&repository(n)).to_string());
    }
    state.insert("filled".to_owned(), format!("{:?}", store.filled()));
    state
}

/// Every blob can be had, by whom it belonged to and by nobody else (L8).
fn check_blobs(store: &Store) {
    for n in 0..BLOBS {
        let digest = Digest::sha256(&n.to_le_bytes());
        let held = store.open_blob(&digest).unwrap();
        assert!(held.is_some_and(|held| held.size == 8), "{n}");
        assert!(store.linked(&repository(n), &digest), "{n}");
        assert!(!store.linked(&repository(n + 1), &digest), "{n}");
    }
}

/// The file of an index, damaged somehow.
fn damaged(good: &[u8], rng: &mut Rng, kind: u64) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let at = rng.usize(..bytes.len());
    match kind % 4 {
        0 => bytes[at] = rng.u8(..),
        1 => bytes[at] ^= 1 << rng.u8(..8),
        2 => {
            let page = at / 4096 * 4096;
            let end = (page + 4096).min(bytes.len());
            bytes[page..end].fill(0);
        }
        _ => bytes.truncate(at),
    }
    bytes
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in walk(from) {
        let place = to.join(entry.strip_prefix(from).unwrap());
        match entry.is_dir() {
            true => std::fs::create_dir_all(&place).unwrap(),
            false => {
                std::fs::copy(&entry, &place).unwrap();
            }
        }
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(walk(&path)),
            false => all.push(path),
        }
    }
    all
}

fn put_aside(path: &Path) -> usize {
    let names = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("index.redb.damaged-"))
        .count()
}

/// Whatever is damaged, Larder starts, and all that the copy has is there. Stopped in good order and by a crash.
#[test]
fn any_damage_is_survived() {
    let rounds = if std::env::var_os("LARDER_LONG").is_some() {
        500
    } else {
        100
    };
    let origin = tempfile::tempdir().unwrap();
    let store = fill(origin.path());
    let expected = state(&store);
    assert!(store.copy_now());
    // The last transaction is one that a crash may have to give up.
    store.put_tag(&repository(0), "v0", record(Digest::sha256(&0usize.to_le_bytes())));
    store.settle();
    let crashed = tempfile::tempdir().unwrap();
    copy_folder(origin.path(), crashed.path());
    store.close();
    drop(store);
    let goods = [origin.path(), crashed.path()].map(|path| std::fs::read(path.join("index.redb")).unwrap());
    let copies = [origin.path(), crashed.path()].map(|path| std::fs::read(path.join("index.copy")).unwrap());
    let mut rebuilt = 0;
    for round in 0..rounds {
        let mut rng = Rng::with_seed(round);
        let which = usize::from(round % 8 >= 4);
        let bytes = damaged(&goods[which], &mut rng, round);
        std::fs::write(origin.path().join("index.redb"), bytes).unwrap();
        std::fs::write(origin.path().join("index.copy"), &copies[which]).unwrap();
        let store = open(origin.path());
        assert_eq!(state(&store), expected, "round {round}");
        check_blobs(&store);
        let index = store.index_state();
        assert!(
            index.damage.is_none() && index.copied_ms.is_some(),
            "round {round}: {index:?}"
        );
        if let Some(recovery) = index.recovery {
            assert!(
                recovery.is_whole && recovery.copy_ms == index.copied_ms,
                "round {round}: {recovery:?}"
            );
            rebuilt += 1;
        }
        // It is one that can be used.
        store.put_tag("r", "new", record(Digest::sha256(b"new")));
        store.settle();
        drop(store);
        assert!(put_aside(origin.path()) <= 2, "they are bounded");
    }
    assert!(
        rebuilt * 4 > rounds,
        "{rebuilt} of {rounds} were damaged where it matters"
    );
}

/// Without a copy too, and with one that is damaged itself: then nothing private is opened by it.
#[test]
fn damage_of_both_is_survived() {
    let origin = tempfile::tempdir().unwrap();
    let store = fill(origin.path());
    let expected = state(&store);
    store.close();
    drop(store);
    let copy = std::fs::read(origin.path().join("index.copy")).unwrap();
    let mut lost = 0;
    for round in 0..30 {
        let mut rng = Rng::with_seed(round);
        std::fs::write(origin.path().join("index.redb"), b"spoilt").unwrap();
        match round {
            0 => std::fs::remove_file(origin.path().join("index.copy")).unwrap(),
            _ => std::fs::write(origin.path().join("index.copy"), damaged(&copy, &mut rng, round)).unwrap(),
        }
        let store = open(origin.path());
        let state = state(&store);
        lost += expected
            .iter()
            .filter(|(name, value)| state.get(*name) != Some(value))
            .count();
        let first = Digest::sha256(&0usize.to_le_bytes());
        if store.linked(&repository(0), &first) {
            assert!(
                store.had_credentials(&repository(0)),
                "round {round}: a link without its mark"
            );
        }
        for n in 0..BLOBS {
            assert!(store.open_blob(&Digest::sha256(&n.to_le_bytes())).unwrap().is_some());
        }
        let recovery = store.index_state().recovery.unwrap();
        assert_eq!(recovery.copy_ms.is_none(), round == 0, "{recovery:?}");
        if round == 0 {
            assert!(store.index_state().trouble().unwrap().contains("pins are lost"));
        }
    }
    assert!(lost > 0);
}

#[test]
fn an_index_that_is_gone_or_empty_or_old_comes_from_the_copy() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index.redb");
    let store = fill(folder.path());
    store.close();
    drop(store);
    let old = std::fs::read(&index).unwrap();
    let store = open(folder.path());
    assert_eq!(store.index_state().recovery, None);
    assert!(store.pin(&repository(1), "v1") && store.unpin(&repository(0), "v0"));
    let expected = state(&store);
    store.close();
    drop(store);
    let spoil: [&dyn Fn(); 3] = [
        &|| std::fs::remove_file(&index).unwrap(),
        &|| std::fs::write(&index, b"").unwrap(),
        &|| std::fs::write(&index, &old).unwrap(),
    ];
    for (spoil, found) in spoil.into_iter().zip(["gone", "empty", "older than its copy"]) {
        spoil();
        let store = open(folder.path());
        let recovery = store.index_state().recovery.unwrap();
        assert!(recovery.found.contains(found), "{recovery:?}");
        assert_eq!(state(&store), expected, "{found}");
        check_blobs(&store);
    }
    // A folder of nothing has lost nothing.
    let new = tempfile::tempdir().unwrap();
    assert_eq!(open(new.path()).index_state(), IndexState::default());
}

/// Files that are not damaged are left alone: another version's, and one that cannot be opened.
#[test]
fn what_is_not_damaged_is_not_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).close();
    let path = folder.path().join("index.redb");
    let good = std::fs::read(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in [64, 192] {
        file.write_all_at(&[4], at).unwrap();
    }
    let refused = Store::open(&config(folder.path())).err().unwrap();
    assert!(
        matches!(
            refused,
            StoreError::IndexFormat {
                found: 4,
                expected: 3,
                ..
            }
        ),
        "{refused}"
    );
    // In one of the two places only, it is damage.
    std::fs::write(&path, &good).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[4], 64).unwrap();
    assert!(open(folder.path()).index_state().recovery.is_some());
    assert_eq!(put_aside(folder.path()), 1);

    std::fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    std::fs::create_dir(&path).unwrap();
    let refused = Store::open(&config(folder.path())).err().unwrap();
    assert!(refused.to_string().contains("index.redb"), "{refused}");
    assert!(path.is_dir() && put_aside(folder.path()) == 1);
}

/// Found while it runs: what is in memory goes on, nothing is lost of what the copy has, and the next start mends it.
#[test]
fn damage_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).close();
    // Opened anew, it has not read what is not needed for a start.
    let store = open(folder.path());
    // Every page but the header: whatever redb reads next is spoilt.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("index.redb"))
        .unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    file.write_all_at(&vec![0x55; len - 4096], 4096).unwrap();
    store.inner.tags.invalidate_all();
    for n in 0..BLOBS {
        let found = store.tag(&repository(n), &format!("v{n}")).unwrap();
        assert_eq!(found.digest, Digest::sha256(&n.to_le_bytes()), "{n}");
        if n == 3 {
            put(&store, "r/new", b"something new");
        }
    }
    check_blobs(&store);
    assert!(store.linked("r/new", &Digest::sha256(b"something new")));
    // Its cache may have had all of it so far.
    for n in 0..2000u32 {
        if store.index_state().damage.is_some() {
            break;
        }
        store.put_tag("r", &n.to_string(), record(Digest::sha256(b"x")));
        store.settle();
        let _ = store.known_tags(&repository(1));
        store.inner.tags.invalidate_all();
        let _ = store.inner.database.scan_all(&super::copy::TABLES, |_, _, _| true);
    }
    let state_now = store.index_state();
    assert!(state_now.damage.is_some() && state_now.trouble().unwrap().contains("a restart rebuilds it"));
    let copied = std::fs::read(folder.path().join("index.copy")).unwrap();
    store.close();
    drop(store);
    assert_eq!(
        std::fs::read(folder.path().join("index.copy")).unwrap(),
        copied,
        "the good one stays"
    );
    let store = open(folder.path());
    let recovery = store.index_state().recovery.unwrap();
    assert!(recovery.found.contains("while it was in use"), "{recovery:?}");
    let state = state(&store);
    let tags = state.keys().filter(|name| name.contains(":v")).count();
    let pins = state.values().filter(|value| value.ends_with(" true")).count();
    assert_eq!((tags, pins), (BLOBS, BLOBS / 3));
    check_blobs(&store);
    drop(store);
    assert_eq!(open(folder.path()).index_state().recovery, None, "it is said once");
}

/// L5, L6: a copy counts, one that cannot be written leaves the last one, and nothing stays of it.
#[test]
fn a_copy_that_fails_leaves_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).close();
    let copy = folder.path().join("index.copy");
    for op in DiskOp::CHANGES {
        let before = std::fs::read(&copy).unwrap();
        let faults: Faults = Arc::new(move |found, path: &Path| {
            let is_copy = path.to_string_lossy().contains("index.copy");
            (found == op && is_copy).then(|| Fault::Error(std::io::ErrorKind::StorageFull.into()))
        });
        let store = Store::open_with(&config(folder.path()), Some(faults)).unwrap();
        store.pin(&repository(2), "v2");
        assert!(!store.copy_now() && store.trouble().is_some(), "{op:?}");
        drop(store);
        if op != DiskOp::SyncFolder {
            assert!(std::fs::read(&copy).unwrap() == before, "{op:?}");
        }
        assert!(!folder.path().join("index.copy.tmp").exists(), "{op:?}");
        assert_eq!(
            open(folder.path()).index_state().recovery.map(|r| r.is_whole),
            None,
            "{op:?}"
        );
    }
    let store = open(folder.path());
    assert!(store.copy_now());
    let on_disk = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().blocks() * 512;
    assert_eq!(store.usage().index_bytes, on_disk("index.redb") + on_disk("index.copy"));
    // A limit that leaves no room for one.
    let mut small = config(folder.path());
    small.cache.max_size = store.usage().index_bytes;
    store.set_limits(&small);
    assert!(!store.copy_now());
}

/// A pin is copied soon; what changes all the time is not.
#[test]
fn copies_are_made_when_they_are_due() {
    let folder = tempfile::tempdir().unwrap();
    let store = fill(folder.path());
    assert!(store.copy_now());
    let looked = |store: &Store| {
        // Copies are told apart by their time.
        std::thread::sleep(Duration::from_millis(2));
        store.copy_if_due();
        store.index_state().copied_ms
    };
    let made = store.index_state().copied_ms;
    store.pin(&repository(1), "v1");
    store.settle();
    assert_eq!(looked(&store), made, "not at once");
    store.inner.copying.no_pause();
    let again = looked(&store);
    assert_ne!(again, made);
    store.put_tag("r", "x", record(Digest::sha256(b"x")));
    store.settle();
    store.inner.copying.no_pause();
    assert_eq!(looked(&store), again);
}

/// Spoils every frame of one table of a copy.
fn without_table(copy: &[u8], table: u8) -> Vec<u8> {
    let mut spoilt = copy.to_vec();
    let frame = [0xf1, b'L', b'i', b'x', table];
    let places = copy
        .windows(frame.len())
        .enumerate()
        .filter(|(_, found)| *found == frame);
    for (at, _) in places {
        spoilt[at + 20] ^= 1;
    }
    assert_ne!(spoilt, copy);
    spoilt
}

/// The records of blobs are lost and the links are not: what is found on the disk belongs to whom it belonged (L3).
#[test]
fn a_copy_that_lost_its_blobs_still_says_whose_they_are() {
    const BLOBS_TABLE: u8 = 5;
    let folder = tempfile::tempdir().unwrap();
    let store = fill(folder.path());
    let expected = state(&store);
    store.close();
    drop(store);
    let copy = folder.path().join("index.copy");
    let spoilt = without_table(&std::fs::read(&copy).unwrap(), BLOBS_TABLE);
    std::fs::write(&copy, spoilt).unwrap();
    std::fs::write(folder.path().join("index.redb"), b"spoilt").unwrap();
    for is_rebuilt in [true, false] {
        let store = open(folder.path());
        assert_eq!(store.index_state().recovery.is_some(), is_rebuilt);
        check_blobs(&store);
        assert_eq!(state(&store), expected);
    }
}

/// Lists, short ones and those in files of their own.
#[test]
fn lists_come_from_the_copy() {
    const MARKS_TABLE: u8 = 1;
    let folder = tempfile::tempdir().unwrap();
    let store = fill(folder.path());
    let lines = |n: usize| {
        let lines: Vec<String> = (0..n).map(|n| format!("tag-{n:09}\n")).collect();
        lines.concat().into_bytes()
    };
    let (short, long, later) = (lines(20), lines(5_000), lines(6_000));
    put_tags(&store, "r/short", 7, &short);
    put_tags(&store, "r/long", 7, &long);
    assert!(store.copy_now());
    let copy = std::fs::read(folder.path().join("index.copy")).unwrap();
    put_tags(&store, "r/later", 7, &later);
    store.settle();
    drop(store);
    std::fs::write(folder.path().join("index.copy"), &copy).unwrap();
    std::fs::write(folder.path().join("index.redb"), b"spoilt").unwrap();
    let store = open(folder.path());
    assert!(tags_of(&store, "r/short") == Some(short) && tags_of(&store, "r/long") == Some(long));
    // Nothing says whose that file is.
    assert_eq!(tags_of(&store, "r/later"), None);
    assert_eq!(std::fs::read_dir(folder.path().join("lists")).unwrap().count(), 1);
    drop(store);
    // Where a mark may be missing, a private repository's list is given to nobody (L8).
    std::fs::write(folder.path().join("index.copy"), without_table(&copy, MARKS_TABLE)).unwrap();
    std::fs::write(folder.path().join("index.redb"), b"spoilt").unwrap();
    let store = open(folder.path());
    assert!(tags_of(&store, "r/short").is_none() && tags_of(&store, "r/long").is_none());
    assert_eq!(std::fs::read_dir(folder.path().join("lists")).unwrap().count(), 0);
}

/// A file system in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` if it is not to be had.
    fn of(bytes: usize) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "larder-test"]);
        let is_there = mount.arg(folder.path()).status().is_ok_and(|status| status.success());
        is_there.then_some(SmallDisk(folder))
    }

    /// Takes all that is free.
    fn fill_up(&self, name: &str) {
        use std::io::Write as _;
        let mut file = File::create(self.0.path().join(name)).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

/// On a full disk another index needs room, and gets it from what is worth least: leftovers, what was put aside, the damaged
/// one itself, and then the oldest blobs that nobody has pinned.
#[test]
fn an_index_is_rebuilt_on_a_full_disk() {
    const BIG: usize = 6 << 20;
    for (is_gone, has_copy, has_leftovers) in [
        (false, true, false),
        (false, true, true),
        (true, true, true),
        (true, true, false),
        (true, false, false),
    ] {
        let Some(disk) = SmallDisk::of(48 << 20) else {
            eprintln!("NOT CHECKED: a full disk takes a mount, and that root");
            return;
        };
        let path = disk.0.path();
        let store = fill(path);
        let big = [1u8, 2, 3].map(|n| put(&store, "r/big", &vec![n; BIG]));
        store.put_tag("r/big", "pinned", record(big[0]));
        assert!(store.pin("r/big", "pinned"));
        store.close();
        let expected = state(&store);
        drop(store);
        for (digest, seconds) in big.iter().zip([1000, 2000, 3000]) {
            let file = File::options().write(true).open(place(path, digest)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
                .unwrap();
        }
        let index = path.join("index.redb");
        match is_gone {
            true => std::fs::remove_file(&index).unwrap(),
            false => {
                let file = File::options().write(true).open(&index).unwrap();
                file.write_all_at(&[0x55; 4096], 0).unwrap();
            }
        }
        if !has_copy {
            std::fs::remove_file(path.join("index.copy")).unwrap();
        }
        let leftovers = [
            "index.redb.new",
            "staging/x.part",
            "quarantine/x",
            "index.redb.damaged-1",
        ];
        if has_leftovers {
            std::fs::create_dir_all(path.join("quarantine")).unwrap();
            for name in leftovers {
                std::fs::write(path.join(name), vec![1; 1 << 20]).unwrap();
            }
        }
        disk.fill_up("filler");
        let case = format!("gone {is_gone}, copy {has_copy}, leftovers {has_leftovers}");
        let store = open(path);
        assert!(store.index_state().recovery.is_some(), "{case}");
        assert!(
            path.join("filler").exists() && !path.join("index.redb.new").exists(),
            "{case}"
        );
        let held = big.map(|digest| place(path, &digest).exists());
        let (is_short, is_known) = (is_gone && !has_leftovers, has_copy);
        if is_known {
            assert_eq!(held, [true, !is_short, true], "{case}");
            assert_eq!(state(&store), expected, "{case}");
            check_blobs(&store);
        } else {
            assert_eq!(held, [false, true, true], "{case}: nothing says what is pinned");
        }
        // With what has gone it is one that can be used; else `min_free` sees to that.
        store.put_tag("r", "new", record(big[2]));
        assert!(store.settle() || !is_short, "{case}");
    }
}

/// A cache full of what may not go is no disk that fails: nothing is evicted for a copy that does not fit.
#[test]
fn a_copy_without_room_evicts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = fill(folder.path());
    for n in (0..BLOBS).filter(|n| *n != 1) {
        assert!(store.pin(&repository(n), &format!("v{n}")));
    }
    assert!(store.copy_now());
    let usage = store.usage();
    let mut full = config(folder.path());
    full.cache.max_size = usage.used_bytes * 64 / 63 + 1;
    store.set_limits(&full);
    assert_eq!(store.usage().blobs, BLOBS);
    assert!(!store.copy_now() && !store.copy_now());
    assert_eq!((store.usage().evicted, store.usage().blobs), (usage.evicted, BLOBS));
    assert_eq!(store.trouble(), None);
    assert!(!folder.path().join("index.copy.tmp").exists());
    store.set_limits(&config(folder.path()));
    assert!(store.copy_now());
}

/// L5: the new copy counts at each moment, until it has taken the last one's place.
#[test]
fn a_copy_counts_until_it_is_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).close();
    let inner: Arc<OnceLock<Weak<Inner>>> = Arc::default();
    let seen = Arc::new(AtomicU64::new(0));
    let faults: Faults = {
        let (inner, seen) = (inner.clone(), seen.clone());
        Arc::new(move |op, path: &Path| {
            let is_copy = op == DiskOp::SyncFolder && path.ends_with("index.copy");
            if let Some(inner) = inner.get().and_then(Weak::upgrade).filter(|_| is_copy) {
                seen.store(Store { inner }.usage().used_bytes, Ordering::Relaxed);
            }
            None
        })
    };
    let store = Store::open_with(&config(folder.path()), Some(faults)).unwrap();
    assert!(inner.set(Arc::downgrade(&store.inner)).is_ok());
    assert!(store.copy_now());
    let copy = std::fs::metadata(folder.path().join("index.copy")).unwrap();
    let after = store.usage().used_bytes;
    // The new one beside the last one, which is about as large.
    assert!(
        seen.load(Ordering::Relaxed) >= after + copy.blocks() * 512 / 2,
        "{seen:?} {after}"
    );
}

// --- what cannot be read at the moment --------------------------------------------------------------

/// Fails what is opened or read with this error, while it is not 0.
fn failing(op: DiskOp, errno: &Arc<AtomicI32>) -> Faults {
    let errno = errno.clone();
    Arc::new(move |found, _: &Path| {
        let errno = errno.load(Ordering::Relaxed);
        (found == op && errno != 0).then(|| Fault::Error(std::io::Error::from_raw_os_error(errno)))
    })
}

const EIO: i32 = 5;
const ENOENT: i32 = 2;
/// EMFILE, ENFILE, EACCES, ENOMEM, ENOTDIR, ELOOP, EINTR, ESTALE.
const OF_THE_MOMENT: [i32; 8] = [24, 23, 13, 12, 20, 40, 4, 116];

fn place(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// Only what says that the bytes are lost takes them away: for a hit, a manifest, and the check.
#[test]
fn an_error_of_the_moment_deletes_nothing() {
    for op in [DiskOp::Open, DiskOp::Read] {
        for errno in OF_THE_MOMENT {
            // An interrupted read is repeated at once.
            if op == DiskOp::Read && errno == 4 {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let failure = Arc::new(AtomicI32::new(0));
            let store = Store::open_with(&config(folder.path()), Some(failing(op, &failure))).unwrap();
            let blob = put(&store, "r", b"bytes");
            let text = Bytes::from_static(b"{}");
            let manifest = Digest::sha256(&text);
            store.put_manifest("r", &manifest, "x/y", &[blob], &text).unwrap();
            store.put_tag("r", "t", record(manifest));
            assert!(store.pin("r", "t"));
            store.inner.manifests.invalidate_all();
            failure.store(errno, Ordering::Relaxed);
            let unreadable = |error: &StoreError| matches!(error, StoreError::Unreadable { .. });
            if op == DiskOp::Open {
                assert!(store.open_blob(&blob).is_err_and(|error| unreadable(&error)), "{errno}");
            }
            assert!(
                store.manifest(&manifest).is_err_and(|error| unreadable(&error)),
                "{op:?} {errno}"
            );
            assert_eq!(store.check(&blob), Verdict::Unreadable, "{op:?} {errno}");
            assert!(store.trouble().is_some());
            failure.store(0, Ordering::Relaxed);
            for digest in [blob, manifest] {
                assert!(
                    place(folder.path(), &digest).exists() && store.linked("r", &digest) && store.is_pinned(&digest)
                );
                assert_eq!(store.check(&digest), Verdict::Right);
            }
            assert!(store.manifest(&manifest).unwrap().is_some() && store.open_blob(&blob).unwrap().is_some());
            assert!(!folder.path().join("quarantine").exists());
        }
    }
}

#[test]
fn what_the_disk_has_lost_is_let_go_of() {
    for (op, errno) in [(DiskOp::Open, EIO), (DiskOp::Open, ENOENT), (DiskOp::Read, EIO)] {
        let folder = tempfile::tempdir().unwrap();
        let failure = Arc::new(AtomicI32::new(0));
        let store = Store::open_with(&config(folder.path()), Some(failing(op, &failure))).unwrap();
        let (blob, text) = (put(&store, "r", b"bytes"), Bytes::from_static(b"{}"));
        let manifest = Digest::sha256(&text);
        store.put_manifest("r", &manifest, "x/y", &[], &text).unwrap();
        store.inner.manifests.invalidate_all();
        failure.store(errno, Ordering::Relaxed);
        let verdict = store.check(&blob);
        // Under a false ENOENT the file is there all the same.
        let expected = if errno == EIO { Verdict::Wrong } else { Verdict::Gone };
        assert_eq!(verdict, expected);
        assert!(
            store.manifest(&manifest).unwrap().is_none() && store.size(&manifest).is_none(),
            "{op:?} {errno}"
        );
        if op == DiskOp::Open {
            assert!(
                store.open_blob(&blob).unwrap().is_none() && store.size(&blob).is_none(),
                "{op:?} {errno}"
            );
        }
    }
    // In the middle of a response.
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let blob = put(&store, "r", b"bytes");
    let held = store.open_blob(&blob).unwrap().unwrap();
    held.note_read_error(&std::io::Error::from_raw_os_error(24));
    assert!(store.size(&blob).is_some());
    held.note_read_error(&std::io::Error::from_raw_os_error(EIO));
    assert_eq!(store.size(&blob), None);
    // A file that came in its place since is another one.
    put(&store, "r", b"bytes");
    held.note_read_error(&std::io::Error::from_raw_os_error(EIO));
    assert!(store.size(&blob).is_some());
}

/// A file system that is not mounted just now has lost nothing; one file of it that is gone is.
#[test]
fn a_folder_that_is_not_there_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (a, b) = (put(&store, "r", b"a"), put(&store, "r", b"b"));
    let (blobs, away) = (folder.path().join("blobs"), folder.path().join("away"));
    // Nothing in its place, or an empty folder.
    for is_empty in [false, true] {
        std::fs::rename(&blobs, &away).unwrap();
        if is_empty {
            for algorithm in Algorithm::ALL {
                std::fs::create_dir_all(store.inner.tree.blobs(algorithm)).unwrap();
            }
        }
        store.inner.opened.forget(&a);
        assert!(matches!(store.open_blob(&a), Err(StoreError::Unreadable { .. })));
        assert_eq!(store.check(&b), Verdict::Unreadable);
        let walked = store.reconcile();
        assert_eq!(walked.is_ok(), is_empty);
        assert_eq!(store.usage().blobs, 2);
        let _ = std::fs::remove_dir_all(&blobs);
        std::fs::rename(&away, &blobs).unwrap();
    }
    assert!(store.open_blob(&a).unwrap().is_some());
    std::fs::remove_file(place(folder.path(), &b)).unwrap();
    assert!(store.open_blob(&b).unwrap().is_none() && store.usage().blobs == 1);
}

/// Bytes staged by a transfer that broke off are not thrown away because they cannot be opened just now.
#[test]
fn what_is_staged_stays_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let digest = Digest::sha256(b"hello world");
    let mut writer = store.stage("r", &digest).unwrap();
    writer.append(&[Bytes::from_static(b"hello ")]).unwrap();
    drop(writer);
    // Not to be opened: its folder has gone for a moment.
    let (staging, away) = (folder.path().join("staging"), folder.path().join("away"));
    std::fs::rename(&staging, &away).unwrap();
    std::fs::write(&staging, b"no folder").unwrap();
    assert!(store.stage("r", &digest).is_err());
    std::fs::remove_file(&staging).unwrap();
    std::fs::rename(&away, &staging).unwrap();
    assert_eq!(store.stage("r", &digest).unwrap().len(), 6);
}
