//! Reservations under concurrency: threads do to one store whatever transfers do, in an order that nobody chose.
//!
//! At every moment what is counted is within the limit. Whenever all threads rest, what is counted is exactly what a
//! plain look at the folder adds up to.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

use super::*;

const MAX: u64 = 12 << 20;
const LARGEST: usize = 3 << 20;
const BLOBS: u64 = 14;
const THREADS: u64 = 4;
const PHASES: usize = 6;
const STEPS: usize = 25;
const REPOSITORIES: [&str; 3] = ["docker.io/library/a", "ghcr.io/a/b", "ghcr.io/a/c"];
const SHELF: (&str, u64) = ("ghcr.io", 5 << 20);

fn open(path: &Path) -> Store {
    let mut config = Config::default_config().unwrap();
    config.cache.path = path.to_owned();
    config.cache.max_size = MAX;
    config.cache.min_free = 0;
    for upstream in &mut config.upstreams {
        if upstream.name.as_str() == SHELF.0 {
            upstream.max_size = Some(SHELF.1);
        }
    }
    let store = Store::open(&config).unwrap();
    store.reconcile().unwrap();
    store
}

/// The same few for all, so that threads meet.
fn blobs() -> Vec<(Digest, Bytes)> {
    let mut dice = fastrand::Rng::with_seed(9);
    let blob = |n: u64| {
        let mut bytes = vec![0; dice.usize(1..LARGEST)];
        fastrand::Rng::with_seed(n).fill(&mut bytes);
        (Digest::sha256(&bytes), Bytes::from(bytes))
    };
    (0..BLOBS).map(blob).collect()
}

/// What a thread has open from one step to the next.
#[derive(Default)]
struct Hands {
    writers: Vec<(usize, Writer)>,
    remains: Vec<Remains>,
    held: Vec<Held>,
}

fn step(store: &Store, blobs: &[(Digest, Bytes)], dice: &mut fastrand::Rng, hands: &mut Hands) {
    let at = dice.usize(..blobs.len());
    let (digest, bytes) = &blobs[at];
    let repository = REPOSITORIES[dice.usize(..REPOSITORIES.len())];
    match dice.u8(..16) {
        0..=3 if hands.writers.len() < 3 => {
            if let Ok(mut writer) = store.stage(repository, digest) {
                // Announced, or not.
                if dice.bool() {
                    let _ = writer.expect(bytes.len() as u64);
                }
                hands.writers.push((at, writer));
            }
        }
        4..=8 => {
            if let Some((at, mut writer)) = hands.writers.pop() {
                let (_, bytes) = &blobs[at];
                let from = writer.len() as usize;
                let to = (from + dice.usize(1..LARGEST)).min(bytes.len());
                match writer.append(&[bytes.slice(from..to)]) {
                    Ok(len) if len == bytes.len() as u64 && dice.u8(..4) > 0 => writer.commit(repository).unwrap(),
                    Ok(_) => hands.writers.insert(0, (at, writer)),
                    Err(StoreError::NoRoom(_)) => hands.remains.push(writer.detach().1),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        9 => drop(hands.writers.pop()),
        10 => {
            if let Some((_, writer)) = hands.writers.pop() {
                writer.cancel();
            }
        }
        11 => drop(hands.remains.pop()),
        12 => hands.held.extend(store.open_blob(digest).unwrap()),
        13 => drop(hands.held.pop()),
        14 => {
            let small = Bytes::from(format!("{{\"n\":{}}}", dice.u64(..)));
            let put = store.put_manifest(repository, &Digest::sha256(&small), "x/y", &[*digest], &small);
            assert!(matches!(put, Ok(()) | Err(StoreError::NoRoom(_))), "{put:?}");
        }
        _ => match dice.bool() {
            true => store.remove(digest),
            false => store.quarantine(digest),
        },
    }
}

fn work(store: &Store, blobs: &[(Digest, Bytes)], dice: &mut fastrand::Rng) {
    let mut hands = Hands::default();
    for _ in 0..STEPS {
        step(store, blobs, dice, &mut hands);
        let usage = store.usage();
        assert!(usage.used_bytes <= MAX, "{usage:?}");
    }
}

/// Files by folder, with their bytes on disk.
fn files(folder: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap());
    entries
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                on_disk(e.metadata().unwrap().len()),
            )
        })
        .collect()
}

/// With nothing in anybody's hands.
fn check_at_rest(store: &Store) {
    store.inner.database.settle();
    let root = store.path();
    let [blobs, staged, aside] = ["blobs/sha256", "staging", "quarantine"].map(|folder| files(&root.join(folder)));
    let sum = |files: &BTreeMap<String, u64>| files.values().sum::<u64>();
    let usage = store.usage();
    assert_eq!(usage.staged_bytes, sum(&staged), "{staged:?}");
    assert_eq!(usage.blobs, blobs.len());
    let counted = usage.used_bytes - usage.index_bytes;
    assert_eq!(counted, sum(&blobs) + sum(&staged) + sum(&aside), "{usage:?}");
    let held: u64 = usage.shelves.iter().map(|(_, held, _)| held).sum();
    assert_eq!(held, sum(&blobs));
    let index = store.inner.index();
    assert_eq!(
        (index.unwritten_bytes(), index.loose_bytes(index::Scope::All)),
        (0, held + sum(&staged))
    );
    // A manifest may come to a shelf that is full of what is being sent; at rest it is within its limit again.
    for (name, held, most) in usage.shelves {
        assert!(
            most.is_none_or(|most| held <= most + (64 << 10)),
            "{name}: {held} of {most:?}"
        );
    }
}

#[test]
fn reservations_add_up() {
    for seed in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let blobs = blobs();
        let (rest, failed) = (Barrier::new(THREADS as usize), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (store, blobs, rest, failed) = (&store, &blobs, &rest, &failed);
                scope.spawn(move || {
                    let mut dice = fastrand::Rng::with_seed(seed * THREADS + thread);
                    for _ in 0..PHASES {
                        let worked = catch_unwind(AssertUnwindSafe(|| work(store, blobs, &mut dice)));
                        failed.fetch_or(worked.is_err(), Ordering::SeqCst);
                        rest.wait();
                        let checked = catch_unwind(AssertUnwindSafe(|| {
                            if thread == 0 {
                                check_at_rest(store);
                            }
                        }));
                        failed.fetch_or(checked.is_err(), Ordering::SeqCst);
                        rest.wait();
                        // Nobody waits for one who has failed.
                        assert!(!failed.load(Ordering::SeqCst), "seed {seed}: see above");
                    }
                });
            }
        });
        let before = store.usage();
        drop(store);
        // Nothing is lost by a start but parts of what is held by now, and what makes room for the index; and what is
        // counted is what lies there.
        let again = open(folder.path());
        assert!(again.usage().blobs <= before.blobs && again.usage().staged_bytes <= before.staged_bytes);
        assert_eq!(
            before.blobs - again.usage().blobs,
            usize::try_from(again.usage().evicted).unwrap()
        );
        check_at_rest(&again);
    }
}
