//! Room is made for bytes that came, not for sizes that somebody claims (L5).

use std::path::Path;

use super::*;

const MIB: u64 = 1 << 20;
const MAX: u64 = 100 * MIB;

/// A cache of 100 MiB; `change` sets the rest.
fn open(path: &Path, change: impl FnOnce(&mut Config)) -> Store {
    let mut config = Config::default_config().unwrap();
    config.cache.path = path.to_owned();
    config.cache.max_size = MAX;
    config.cache.min_free = 0;
    change(&mut config);
    let store = Store::open(&config).unwrap();
    store.reconcile().unwrap();
    store
}

fn bytes(mib: u64, n: u8) -> Bytes {
    vec![n; usize::try_from(mib * MIB).unwrap()].into()
}

fn put(store: &Store, repository: &str, bytes: &Bytes) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut writer = store.stage(repository, &digest).unwrap();
    writer.expect(bytes.len() as u64).unwrap();
    writer.append(std::slice::from_ref(bytes)).unwrap();
    writer.commit(repository).unwrap();
    digest
}

/// Twenty blobs of 5 MiB of one repository, or as many as stay.
fn fill(store: &Store, repository: &str) -> Vec<Digest> {
    let held: Vec<Digest> = (0..20).map(|n| put(store, repository, &bytes(5, n))).collect();
    held.into_iter().filter(|digest| store.size(digest).is_some()).collect()
}

fn left(store: &Store, held: &[Digest]) -> usize {
    held.iter().filter(|digest| store.size(digest).is_some()).count()
}

fn claim(store: &Store, repository: &str, n: u8) -> Writer {
    store.stage(repository, &Digest::sha256(&[n, 200])).unwrap()
}

/// Bytes of blobs and transfers.
fn used(store: &Store) -> u64 {
    let usage = store.usage();
    usage.used_bytes - usage.index_bytes
}

#[test]
fn a_claim_evicts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let held = fill(&store, "r");
    assert!(held.len() >= 19, "{}", held.len());
    let before = used(&store);
    let mut writers: Vec<Writer> = (0..20).map(|n| claim(&store, "r", n)).collect();
    for writer in &mut writers {
        writer.expect(90 * MIB).unwrap();
    }
    assert_eq!(left(&store, &held), held.len());
    assert!(used(&store) <= before + 5 * MIB, "at most what was free is counted");
    // A first byte makes room for one step, in whole blobs.
    writers[0].append(&[Bytes::from_static(b"x")]).unwrap();
    assert!(left(&store, &held) >= held.len() - 1);
    drop(writers);
    assert_eq!(
        used(&store),
        5 * MIB * left(&store, &held) as u64 + 4096,
        "claims are gone with their writers"
    );
}

/// Reserved are the bytes that came, as many again, and no more than 64 MiB beyond them.
#[test]
fn room_is_made_as_bytes_come() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let held = fill(&store, "r");
    let mut writer = claim(&store, "r", 0);
    writer.expect(90 * MIB).unwrap();
    let piece = bytes(1, 7);
    for came in 1..=90 {
        writer.append(std::slice::from_ref(&piece)).unwrap();
        let most = (came + came.clamp(1, 64)).min(90) * MIB;
        let counted = used(&store) - 5 * MIB * left(&store, &held) as u64;
        assert!(
            (came * MIB..=most).contains(&counted),
            "{came} MiB came, {counted} bytes are counted"
        );
        assert!(store.usage().used_bytes <= MAX);
        let gone = (held.len() - left(&store, &held)) as u64 * 5 * MIB;
        assert!(gone <= most + 5 * MIB, "{came} MiB came, {gone} bytes are gone");
    }
    assert_eq!(left(&store, &held), 1, "all that it announced came");
}

/// The second of two that fit alone, and not together, gives up where the room ends; and nothing goes in vain for it.
#[test]
fn two_that_do_not_fit_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let piece = bytes(1, 7);
    let (mut first, mut second) = (claim(&store, "r", 1), claim(&store, "r", 2));
    for writer in [&mut first, &mut second] {
        writer.expect(60 * MIB).unwrap();
    }
    for _ in 0..60 {
        first.append(std::slice::from_ref(&piece)).unwrap();
    }
    let mut came = 0;
    let refused = loop {
        match second.append(std::slice::from_ref(&piece)) {
            Ok(_) => came += 1,
            Err(error) => break error,
        }
        assert!(store.usage().used_bytes <= MAX);
    };
    assert!(
        matches!(refused, StoreError::NoRoom(_)) && (30..40).contains(&came),
        "{came}: {refused}"
    );
    let (_, remains) = second.detach();
    drop(remains);
    assert_eq!(used(&store), 60 * MIB);
}

/// Free room, and at the cost of others 5 % of the limit; for all such transfers together, and one after the other too.
#[test]
fn an_endless_body_takes_a_small_part() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let held: Vec<Digest> = (0..98).map(|n| put(&store, "r", &bytes(1, n))).collect();
    let before = left(&store, &held);
    assert!(before > 90, "{before}");
    let piece = bytes(1, 7).slice(..300_000);
    for round in 0..5 {
        // Two at a time.
        let mut writers = [claim(&store, "r", round), claim(&store, "r", round + 100)];
        let mut came = [0u64; 2];
        let mut refused = [false; 2];
        while refused != [true; 2] {
            for (n, writer) in writers.iter_mut().enumerate() {
                if refused[n] {
                    continue;
                }
                match writer.append(std::slice::from_ref(&piece)) {
                    Ok(len) => came[n] = len,
                    Err(error) => {
                        assert!(matches!(error, StoreError::NoRoom(_)), "{error}");
                        refused[n] = true;
                    }
                }
            }
        }
        assert!(came.iter().sum::<u64>() > 3 * MIB, "{came:?}");
        // As those who read them go on doing.
        let remains = writers.map(|writer| writer.detach().1);
        assert!(
            left(&store, &held) >= before - 5,
            "round {round}: {} of {before}",
            left(&store, &held)
        );
        drop(remains);
    }
    assert_eq!(
        store.trouble(),
        None,
        "it is no trouble of the disk that somebody sends too much"
    );
    // A transfer whose size was announced has a right to more.
    let mut writer = claim(&store, "r", 50);
    writer.expect(20 * MIB).unwrap();
    for _ in 0..60 {
        writer.append(std::slice::from_ref(&piece)).unwrap();
    }
    assert!(left(&store, &held) < before - 5);
}

/// A body that goes on behind the size that a manifest names is one that nobody announced.
#[test]
fn more_than_was_announced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let held: Vec<Digest> = (0..98).map(|n| put(&store, "r", &bytes(1, n))).collect();
    let before = left(&store, &held);
    let mut writer = claim(&store, "r", 0);
    writer.expect(2 * MIB).unwrap();
    let piece = bytes(1, 7);
    let mut came = 0;
    while writer.append(std::slice::from_ref(&piece)).is_ok() {
        came += 1;
    }
    assert!((3..=10).contains(&came), "{came}");
    assert!(left(&store, &held) >= before - 7);
}

/// Free room is free for everybody.
#[test]
fn an_endless_body_fills_what_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let held: Vec<Digest> = (0..40).map(|n| put(&store, "r", &bytes(1, n))).collect();
    let mut writer = claim(&store, "r", 0);
    let piece = bytes(1, 7);
    let mut came = 0;
    while writer.append(std::slice::from_ref(&piece)).is_ok() {
        came += 1;
    }
    assert!((50..60).contains(&came), "{came}");
    assert_eq!(left(&store, &held), 40);
}

/// An upstream's own limit is kept in the same way: 5 % of that.
#[test]
fn a_quota_is_a_limit_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |config| {
        for upstream in &mut config.upstreams {
            if upstream.name.as_str() == "ghcr.io" {
                upstream.max_size = Some(40 * MIB);
            }
        }
    });
    let quiet = put(&store, "docker.io/library/a", &bytes(5, 200));
    let held: Vec<Digest> = (0..40).map(|n| put(&store, "ghcr.io/a/b", &bytes(1, n))).collect();
    assert_eq!(left(&store, &held), 40);
    let mut writer = claim(&store, "ghcr.io/a/b", 0);
    assert!(matches!(writer.expect(41 * MIB), Err(StoreError::NoRoom(_))));
    writer.expect(40 * MIB).unwrap();
    assert_eq!(left(&store, &held), 40, "a claim");
    drop(writer);
    let mut endless = claim(&store, "ghcr.io/a/b", 1);
    let piece = bytes(1, 7);
    let mut came = 0;
    while endless.append(std::slice::from_ref(&piece)).is_ok() {
        came += 1;
    }
    assert_eq!((came, left(&store, &held)), (2, 38));
    assert!(store.size(&quiet).is_some());
    endless.cancel();
    let mut writer = claim(&store, "ghcr.io/a/b", 2);
    writer.expect(30 * MIB).unwrap();
    for _ in 0..30 {
        writer.append(std::slice::from_ref(&piece)).unwrap();
        let shelf = store
            .usage()
            .shelves
            .into_iter()
            .find(|shelf| *shelf.0 == *"ghcr.io")
            .unwrap();
        assert!(shelf.1 + store.usage().staged_bytes <= 40 * MIB);
    }
    assert!(store.size(&quiet).is_some());
}

/// `min_free` is kept for what a transfer may write soon, not for all that is announced.
#[test]
fn claims_are_no_promises() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |config| config.cache.max_size = u64::MAX / 2);
    let unwritten = || store.inner.index().unwritten_bytes();
    let mut writers: Vec<Writer> = (0..3).map(|n| claim(&store, "r", n)).collect();
    for writer in &mut writers {
        writer.expect(200 * MIB).unwrap();
    }
    assert!(unwritten() <= 3 * MIB, "{}", unwritten());
    let piece = bytes(1, 7);
    for _ in 0..100 {
        writers[0].append(std::slice::from_ref(&piece)).unwrap();
        assert!(unwritten() <= (64 + 2) * MIB, "{}", unwritten());
    }
    // One that begins anew holds nothing of what it held.
    writers[0].restart().unwrap();
    assert!(unwritten() <= 2 * MIB && used(&store) <= 2 * MIB);
    // With less left than the disk has to keep free, a claim is refused, and evicts nothing.
    drop(writers);
    let held = put(&store, "r", &bytes(1, 1));
    store.inner.min_free.store(u64::MAX / 4, Ordering::Relaxed);
    let mut writer = claim(&store, "r", 9);
    assert!(matches!(writer.expect(2 * MIB), Err(StoreError::NoRoom(_))));
    assert!(store.size(&held).is_some());
}

/// Staged bytes of an earlier run that cannot be read any more are not counted for the next one.
#[test]
fn a_part_that_is_gone_is_no_reservation() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let mut writer = claim(&store, "r", 0);
    writer.append(&[bytes(8, 1)]).unwrap();
    drop(writer);
    assert_eq!(used(&store), 8 * MIB);
    let staging = folder.path().join("staging");
    let part = std::fs::read_dir(&staging).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&part).unwrap();
    let writer = claim(&store, "r", 0);
    assert_eq!((writer.len(), used(&store)), (0, 0));
}

/// `larder rm` takes what broke off with it, of an image's blobs and of a blob by its digest; not from under a transfer.
#[test]
fn a_removal_takes_what_is_staged() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), |_| {});
    let [broken, other, running] = [1u8, 2, 3].map(|n| Digest::sha256(&[n]));
    let document = Bytes::from_static(b"{}");
    let manifest = Digest::sha256(&document);
    store
        .put_manifest("r", &manifest, "x/y", &[broken, running], &document)
        .unwrap();
    store.put_tag(
        "r",
        "1",
        TagRecord {
            digest: manifest,
            media_type: "x/y".into(),
            size: 2,
            checked_ms: 1,
            moves: Vec::new(),
        },
    );
    for digest in [broken, other] {
        let mut writer = store.stage("r", &digest).unwrap();
        writer.append(&[bytes(1, 1)]).unwrap();
    }
    let mut writer = store.stage("r", &running).unwrap();
    writer.append(&[bytes(1, 2)]).unwrap();
    let removed = store.remove_image("r", "1").unwrap();
    assert_eq!((removed.blobs, removed.bytes), (2, 4096 + MIB));
    assert!(!store.is_staged("r", &broken) && store.is_staged("r", &other) && store.is_staged("r", &running));
    assert_eq!(store.drop_staged("r", &running), None);
    assert_eq!(
        (store.drop_staged("r", &other), store.drop_staged("r", &other)),
        (Some(MIB), None)
    );
    assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 1);
    drop(writer);
    assert_eq!(store.drop_staged("r", &running), Some(MIB));
    assert_eq!(used(&store), 0);
}
