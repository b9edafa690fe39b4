//! Lists on a real disk: a budget of their own, and no crash that loses one.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::tests::{lines_of, put_tags, record, tags_of};
use super::*;

const MIB: u64 = 1 << 20;

fn config(path: &Path, max_size: u64) -> Config {
    let mut config = Config::default_config().unwrap();
    config.cache.path = path.to_owned();
    config.cache.max_size = max_size;
    config.cache.min_free = 0;
    config
}

/// Tags in order, some 13 bytes each.
fn tags(from: u64, bytes: u64) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut n = from * 10_000_000;
    while (lines.len() as u64) < bytes {
        lines.extend_from_slice(format!("v{n:011}\n").as_bytes());
        n += 1;
    }
    lines
}

fn list_files(folder: &Path) -> (usize, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let files = std::fs::read_dir(folder.join("lists")).unwrap();
    let sizes: Vec<u64> = files
        .map(|file| file.unwrap().metadata().unwrap().blocks() * 512)
        .collect();
    (sizes.len(), sizes.iter().sum())
}

fn staged(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("staging")).unwrap().count()
}

/// Short and long lists come back, also after a restart, and what takes another's place leaves nothing of it.
#[test]
fn lists_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 100 * MIB);
    let store = Store::open(&config).unwrap();
    let (short, long, longer) = (tags(1, 100), tags(2, MIB), tags(3, 2 * MIB));
    for lines in [&short, &long, &longer, &short, &long] {
        let kept = put_tags(&store, "r/a", 7, lines);
        assert_eq!((&lines_of(&kept), kept.checked_ms), (lines, 7));
        assert_eq!(&tags_of(&store, "r/a").unwrap(), lines);
        let on_disk = list_files(folder.path());
        assert_eq!(
            (store.usage().list_bytes, on_disk.0),
            (on_disk.1, usize::from(lines.len() > 16_384))
        );
        assert_eq!(staged(folder.path()), 0);
    }
    put_tags(&store, "r/b", 8, b"");
    assert_eq!(tags_of(&store, "r/c"), None);
    drop(store);
    let store = Store::open(&config).unwrap();
    assert_eq!(tags_of(&store, "r/a").unwrap(), long);
    assert_eq!(tags_of(&store, "r/b").unwrap(), b"");
    assert_eq!(store.usage().list_bytes, list_files(folder.path()).1);
    // A list that is open stays readable when another takes its place.
    let open = store.list("r/a", &ListKey::Tags).unwrap();
    put_tags(&store, "r/a", 9, &longer);
    assert_eq!(lines_of(&open), long);
}

/// Tags that come in no order, and twice, are kept in order and once: from memory, from a file, and where the disk
/// fails.
#[test]
fn lists_are_put_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let on = Arc::new(AtomicBool::new(false));
    let faults: Faults = {
        let on = on.clone();
        Arc::new(move |op, path: &Path| {
            let is_list = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("list."));
            let error = std::io::Error::from_raw_os_error(28);
            (op == DiskOp::Write && is_list && on.load(Ordering::SeqCst)).then_some(Fault::Short(7, error))
        })
    };
    let store = Store::open_with(&config(folder.path(), 100 * MIB), Some(faults)).unwrap();
    for (bytes, fails) in [(200, false), (300_000, false), (300_000, true)] {
        on.store(fails, Ordering::SeqCst);
        let mut lines: Vec<Vec<u8>> = tags(1, bytes)
            .split_inclusive(|b| *b == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        let want = lines.concat();
        lines.extend(lines.clone());
        fastrand::Rng::with_seed(bytes).shuffle(&mut lines);
        // A tag that is another's beginning, with what sorts before a line break's byte behind it.
        let kept = put_tags(&store, "r", 1, &lines.concat());
        assert_eq!(lines_of(&kept), want, "{bytes} {fails}");
        assert_eq!(kept.count(), Some(want.len() as u64 / 13));
    }
    // The disk did not take the last one: what it had before is still kept.
    assert_eq!(tags_of(&store, "r").unwrap().len(), tags(1, 300_000).len());
    assert_eq!(staged(folder.path()), 0);
}

/// L5: many lists stay within their part of the cache, the least recently used go, and no blob goes for them at the
/// next start.
#[test]
fn lists_have_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 64 * MIB);
    let store = Store::open(&config).unwrap();
    let blob = Digest::sha256(&vec![7; 40 << 20]);
    let mut writer = store.stage("r", &blob).unwrap();
    writer.expect(40 * MIB).unwrap();
    writer.append(&[Bytes::from(vec![7; 40 << 20])]).unwrap();
    writer.verify().unwrap();
    writer.commit("r").unwrap();
    for n in 0..40 {
        put_tags(&store, &format!("r/{n}"), n, &tags(n, 3 * MIB / 2));
        assert!(tags_of(&store, &format!("r/{n}")).is_some(), "the newest is kept");
        let usage = store.usage();
        assert!(usage.list_bytes <= 8 * MIB && usage.used_bytes <= 64 * MIB, "{usage:?}");
        assert_eq!(list_files(folder.path()).1, usage.list_bytes);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let kept: Vec<u64> = (0..40)
        .filter(|n| tags_of(&store, &format!("r/{n}")).is_some())
        .collect();
    assert!(
        kept.len() >= 4 && kept == ((40 - kept.len() as u64)..40).collect::<Vec<_>>(),
        "{kept:?}"
    );
    // One that is larger than all lists may be together is returned, not kept, and pushes out nothing.
    let large = put_tags(&store, "r/large", 1, &tags(1, 9 * MIB));
    assert!(large.is_in_memory() && lines_of(&large) == tags(1, 9 * MIB));
    assert_eq!(tags_of(&store, "r/large"), None);
    assert_eq!(
        (0..40).filter(|n| tags_of(&store, &format!("r/{n}")).is_some()).count(),
        kept.len()
    );
    // Short ones count as well.
    for n in 0..1100 {
        put_tags(&store, &format!("s/{n}"), n, &tags(n, 8 * 1024));
    }
    store.inner.database.settle();
    let short = (0..1100)
        .filter(|n| tags_of(&store, &format!("s/{n}")).is_some())
        .count();
    assert!((500..1024).contains(&short), "{short}");
    assert_eq!(list_files(folder.path()).0, 0);
    drop((store, large));
    let store = Store::open(&config).unwrap();
    store.reconcile().unwrap();
    assert!(store.size(&blob).is_some(), "evicted for lists");
    // A lower limit is kept at once.
    put_tags(&store, "r/1", 1, &tags(1, 3 * MIB));
    let mut lower = config.clone();
    lower.cache.max_size = 48 * MIB;
    store.set_limits(&lower);
    store.reconcile().unwrap();
    assert!(store.usage().used_bytes <= 48 * MIB);
}

/// L6: a file without a record goes with the next start, a record without a file too, and a newer file stays under
/// its older record.
#[test]
fn records_and_files_are_made_to_agree() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 100 * MIB);
    let store = Store::open(&config).unwrap();
    for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        put_tags(&store, name, 1, &tags(n as u64, MIB));
    }
    let path = |name: &str| store.inner.tree.list(&ListKey::Tags.to_key(name));
    let (a, b, c, d) = (path("a"), path("b"), path("c"), path("d"));
    drop(store);
    std::fs::remove_file(&b).unwrap();
    std::fs::write(&c, tags(9, MIB / 2)).unwrap();
    std::fs::write(folder.path().join("lists/stray"), "x").unwrap();
    std::fs::write(folder.path().join("staging/list.7.tmp"), "x").unwrap();
    let store = Store::open(&config).unwrap();
    assert_eq!(tags_of(&store, "a").unwrap(), tags(0, MIB));
    assert_eq!(tags_of(&store, "b"), None);
    assert_eq!(tags_of(&store, "c").unwrap(), tags(9, MIB / 2));
    assert_eq!(store.usage().list_bytes, list_files(folder.path()).1);
    let page = store.list("c", &ListKey::Tags).unwrap().page(None, None).unwrap();
    assert_eq!(page.count, Some(tags(9, MIB / 2).len() as u64 / 13));
    assert_eq!((list_files(folder.path()).0, staged(folder.path())), (3, 0));
    // Damage that is met while it runs: the list is forgotten, and asked for again.
    std::fs::write(&a, "no line break").unwrap();
    let damaged = store.list("a", &ListKey::Tags).unwrap();
    assert!(damaged.for_each(|_| true).is_err());
    assert_eq!(tags_of(&store, "a"), None);
    // So is one that is damaged while the next one comes: it is replaced.
    put_tags(&store, "a", 2, &tags(0, MIB));
    let same_length = vec![b'x'; tags(0, MIB).len()];
    std::fs::write(&a, same_length).unwrap();
    put_tags(&store, "a", 3, &tags(0, MIB));
    assert_eq!(tags_of(&store, "a").unwrap(), tags(0, MIB));
    // A file that is gone is asked for again too; its record alone says nothing.
    std::fs::remove_file(&d).unwrap();
    assert_eq!(tags_of(&store, "d"), None);
    put_tags(&store, "d", 2, &tags(4, MIB));
    assert_eq!(tags_of(&store, "d").unwrap(), tags(4, MIB));
}

/// L6: the file of a list that becomes short goes after the record that needs it no more is on disk.
#[test]
fn a_file_goes_after_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path(), 100 * MIB)).unwrap();
    let key = ListKey::Tags.to_key("r");
    let path = store.inner.tree.list(&key);
    for n in 0..8 {
        put_tags(&store, "r", n, &tags(n, MIB));
        store.inner.database.settle();
        std::thread::scope(|scope| {
            let putting = scope.spawn(|| put_tags(&store, "r", n, b"1\n"));
            while !putting.is_finished() {
                if !path.exists() {
                    let record = store.inner.database.get(Table::Lists, &key).unwrap().unwrap();
                    // The form, three figures, and then the place: a file is 1.
                    assert_eq!(record[25], 0, "its file is gone before");
                }
            }
        });
        assert!(!path.exists());
    }
}

/// A list that came for an import is counted while it waits for that, and goes if that fails; one that was fetched
/// meanwhile stays.
#[test]
fn prepared_lists_are_shown_or_go() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 100 * MIB);
    let store = Store::open(&config).unwrap();
    let key = ListKey::Tags.to_key("r");
    let agree = |store: &Store| assert_eq!(store.usage().list_bytes, list_files(folder.path()).1);
    let list = |n: u64, bytes: u64| ListRecord::of_lines(5, tags(n, bytes));
    let before = store.usage().used_bytes;
    let prepared = store.prepare_list(&key, &list(1, MIB)).unwrap();
    assert!(store.usage().used_bytes >= before + MIB, "not counted");
    drop(prepared);
    assert_eq!((tags_of(&store, "r"), list_files(folder.path()).0), (None, 0));
    // In the place of another: that is the newer one under the older record.
    put_tags(&store, "r", 3, &tags(2, MIB));
    drop(store.prepare_list(&key, &list(1, 2 * MIB)).unwrap());
    assert_eq!(tags_of(&store, "r").unwrap(), tags(1, 2 * MIB));
    agree(&store);
    for (imported, fetched) in [(3 * MIB, MIB), (MIB, 100), (100, MIB), (100, 200)] {
        let prepared = store.prepare_list(&key, &list(3, imported)).unwrap();
        assert!(store.inner.database.write_durably(prepared.op().into_iter().collect()));
        put_tags(&store, "r", 9, &tags(4, fetched));
        store.show_list(prepared);
        assert_eq!(tags_of(&store, "r").unwrap(), tags(4, fetched));
        agree(&store);
    }
    let prepared = store.prepare_list(&key, &list(5, MIB)).unwrap();
    assert!(store.inner.database.write_durably(prepared.op().into_iter().collect()));
    store.show_list(prepared);
    assert_eq!(tags_of(&store, "r").unwrap(), tags(5, MIB));
    agree(&store);
    drop(store);
    let store = Store::open(&config).unwrap();
    assert_eq!(tags_of(&store, "r").unwrap(), tags(5, MIB));
    agree(&store);
}

/// Long lists that an earlier version kept in the index are forgotten, and give their room back before any blob has to.
#[test]
fn long_lists_of_earlier_versions_give_their_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 60 * MIB);
    let store = Store::open(&config).unwrap();
    let blob = Bytes::from(vec![7; 20 << 20]);
    let digest = Digest::sha256(&blob);
    let mut writer = store.stage("r", &digest).unwrap();
    writer.expect(20 * MIB).unwrap();
    writer.append(&[blob]).unwrap();
    writer.verify().unwrap();
    writer.commit("r").unwrap();
    let short = br#"{"checked_ms":5,"items":["1","2"]}"#;
    let key = |name: &str| ListKey::Tags.to_key(name);
    let long = |n: u64| {
        let lines = String::from_utf8(tags(n, 8 * MIB)).unwrap();
        let items: Vec<&str> = lines.lines().collect();
        serde_json::to_vec(&serde_json::json!({ "checked_ms": 5, "items": items })).unwrap()
    };
    let mut ops = vec![Op::Put(Table::Lists, key("short"), short.to_vec())];
    ops.extend((0..6).map(|n| Op::Put(Table::Lists, key(&format!("long{n}")), long(n))));
    assert!(store.inner.database.write_durably(ops));
    assert!(store.usage().index_bytes > 60 * MIB);
    drop(store);
    let store = Store::open(&config).unwrap();
    assert!(store.usage().index_bytes < 10 * MIB, "{:?}", store.usage());
    assert!(store.size(&digest).is_some(), "evicted for lists of an earlier version");
    let list = store.list("short", &ListKey::Tags).unwrap();
    assert_eq!((lines_of(&list), list.checked_ms), (b"1\n2\n".to_vec(), 5));
    assert_eq!(tags_of(&store, "long1"), None);
}

/// With a removed image of a repository of which nothing else is left its lists go, files and all.
#[test]
fn lists_go_with_their_repository() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path(), 100 * MIB)).unwrap();
    let bytes = Bytes::from_static(b"{}");
    let digest = Digest::sha256(&bytes);
    store.put_manifest("r", &digest, "x/y", &[], &bytes).unwrap();
    store.put_tag_durably("r", "1", record(digest, 1));
    put_tags(&store, "r", 1, &tags(1, MIB));
    put_tags(&store, "other", 1, &tags(1, MIB));
    store.remove_image("r", "1").unwrap();
    assert_eq!((tags_of(&store, "r"), list_files(folder.path()).0), (None, 1));
    assert_eq!(store.usage().list_bytes, list_files(folder.path()).1);
}

/// Manifests that name very much are held to a part of the memory: the least recently used go, a pinned one stays.
#[test]
fn names_in_manifests_have_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path(), 200 * MIB)).unwrap();
    let put = |n: u32, names: u32| {
        let children: Vec<Digest> = (0..names)
            .map(|i| Digest::sha256(format!("{n}-{i}").as_bytes()))
            .collect();
        let bytes = Bytes::from(n.to_le_bytes().to_vec());
        let digest = Digest::sha256(&bytes);
        store.put_manifest("r", &digest, "x/y", &children, &bytes).unwrap();
        digest
    };
    let small = put(1000, 400);
    let pinned = put(1001, 60_000);
    store.put_tag_durably("r", "1", record(pinned, 1));
    assert!(store.pin("r", "1"));
    let wide: Vec<Digest> = (0..20).map(|n| put(n, 60_000)).collect();
    assert!(store.inner.index().wide_bytes() <= 32 * MIB);
    let held: Vec<bool> = wide.iter().map(|digest| store.size(digest).is_some()).collect();
    let first = held.iter().position(|held| *held).unwrap();
    assert!(
        (5..8).contains(&first) && held[first..].iter().all(|held| *held),
        "{held:?}"
    );
    assert!(store.size(&small).is_some() && store.size(&pinned).is_some());
    assert_eq!(store.children(&wide[19]).len(), 60_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever order lists come in, are replaced and forgotten, the figures are those of the files.
    #[test]
    fn figures_are_those_of_the_files(steps in proptest::collection::vec((0u64..4, prop_oneof![Just(0u64), 1u64..40_000, 100_000u64..400_000], any::<bool>()), 1..14)) {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), 8 * MIB);
        let mut store = Store::open(&config).unwrap();
        for (n, bytes, reopen) in steps {
            let lines = tags(n, bytes);
            put_tags(&store, &format!("r/{n}"), 1, &lines);
            let kept = tags_of(&store, &format!("r/{n}"));
            prop_assert_eq!(kept.as_ref(), Some(&lines));
            if reopen {
                drop(store);
                store = Store::open(&config).unwrap();
            }
            prop_assert_eq!(store.usage().list_bytes, list_files(folder.path()).1);
            prop_assert!(store.usage().list_bytes <= MIB);
            prop_assert_eq!(staged(folder.path()), 0);
        }
    }
}
