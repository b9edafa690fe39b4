//! The index against a plain model, and its rules one by one.

use std::collections::BTreeSet;

use super::*;
use proptest::prelude::*;

fn digest(n: u8) -> Digest {
    Digest::sha256(&[n])
}

fn manifest(children: &[u8]) -> Kind {
    let children: Vec<Digest> = children.iter().map(|n| digest(*n)).collect();
    Kind::manifest("x/y".into(), children)
}

fn victim(index: &mut Index) -> Option<Victim> {
    index.evict(Scope::All, u64::MAX).map(|(victim, _)| victim)
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u8, u16, u8),
    /// A manifest that names the digests from one to another.
    Manifest(u8, u8, u8),
    Touch(u8),
    Remove(u8),
    Evict(Option<u8>),
    Link(u8, u8),
    Lease(u8),
    Release(u8),
    Pin(u8, u8),
    Unpin(u8),
    Stage(u8, u16),
    Unstage(u8),
}

const SHELVES: u8 = 3;

fn op() -> impl Strategy<Value = Op> {
    let d = || 0..20u8;
    prop_oneof![
        4 => (d(), any::<u16>(), 0..SHELVES).prop_map(|(d, s, h)| Op::Insert(d, s, h)),
        // Children have smaller numbers than their parents: content addresses make no circles.
        2 => (10..20u8, 0..10u8, 0..10u8).prop_map(|(d, a, b)| Op::Manifest(d, a.min(b), a.max(b))),
        3 => d().prop_map(Op::Touch),
        1 => d().prop_map(Op::Remove),
        2 => proptest::option::of(0..SHELVES).prop_map(Op::Evict),
        2 => (d(), 0..4u8).prop_map(|(d, r)| Op::Link(d, r)),
        1 => d().prop_map(Op::Lease),
        1 => d().prop_map(Op::Release),
        1 => (0..3u8, d()).prop_map(|(p, d)| Op::Pin(p, d)),
        1 => (0..3u8).prop_map(Op::Unpin),
        1 => (20..25u8, any::<u16>()).prop_map(|(d, s)| Op::Stage(d, s)),
        1 => (20..25u8).prop_map(Op::Unstage),
    ]
}

/// The plainest thing that could be right: a vector, oldest first, and everything looked up by walking it.
#[derive(Clone, Debug)]
struct Item {
    digest: u8,
    size: u64,
    children: Option<Vec<u8>>,
    shelf: u8,
    leases: u32,
    links: BTreeSet<u8>,
}

#[derive(Default)]
struct Model {
    items: Vec<Item>,
    pins: BTreeMap<u8, u8>,
    staged: BTreeMap<u8, u64>,
}

impl Model {
    fn at(&self, d: u8) -> Option<usize> {
        self.items.iter().position(|i| i.digest == d)
    }

    fn renew(&mut self, d: u8) {
        if let Some(at) = self.at(d) {
            let item = self.items.remove(at);
            self.items.push(item);
        }
    }

    fn insert(&mut self, d: u8, size: u64, children: Option<Vec<u8>>, shelf: u8) {
        let old = self.at(d).map(|at| self.items.remove(at));
        let children = children.or_else(|| old.as_ref().and_then(|o| o.children.clone()));
        let (shelf, leases, links) = old.map_or((shelf, 0, BTreeSet::new()), |o| (o.shelf, o.leases, o.links));
        self.items.push(Item {
            digest: d,
            size,
            children,
            shelf,
            leases,
            links,
        });
    }

    fn is_pinned(&self, d: u8) -> bool {
        fn reaches(model: &Model, from: u8, to: u8) -> bool {
            let children = model
                .at(from)
                .and_then(|at| model.items[at].children.clone())
                .unwrap_or_default();
            from == to || children.iter().any(|c| reaches(model, *c, to))
        }
        self.pins.values().any(|root| reaches(self, *root, d))
    }

    fn bytes(&self, keep: impl Fn(&Item) -> bool) -> u64 {
        self.items.iter().filter(|i| keep(i)).map(|i| on_disk(i.size)).sum()
    }

    fn evict(&mut self, scope: Option<u8>) -> Option<u8> {
        let inside = |i: &Item| scope.is_none_or(|s| s == i.shelf);
        let free = |m: &Model, i: &Item| inside(i) && i.leases == 0 && !m.is_pinned(i.digest);
        let first = |m: &Model, manifest: bool| {
            m.items
                .iter()
                .position(|i| i.children.is_some() == manifest && free(m, i))
        };
        let manifests = self.bytes(|i| inside(i) && i.children.is_some());
        let crowded = manifests > self.bytes(inside) / MANIFEST_SHARE;
        let at = match (first(self, false), first(self, true)) {
            (Some(_), Some(m)) if crowded => m,
            (Some(b), _) => b,
            (None, m) => m?,
        };
        Some(self.items.remove(at).digest)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn behaves_like_the_model(ops in proptest::collection::vec(op(), 0..150)) {
        let mut index = Index::default();
        let shelves: Vec<usize> = (0..SHELVES).map(|s| index.shelf(&format!("s{s}/r"))).collect();
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Insert(d, size, shelf) => {
                    index.insert(digest(d), u64::from(size), 0, Kind::Blob, shelves[usize::from(shelf)]);
                    model.insert(d, u64::from(size), None, shelf);
                }
                Op::Manifest(d, a, b) => {
                    // One digest is one document: what it names never changes.
                    let known = model.at(d).and_then(|at| model.items[at].children.clone());
                    let children = known.unwrap_or_else(|| (a..b).collect());
                    index.insert(digest(d), 100, 0, manifest(&children), shelves[0]);
                    model.insert(d, 100, Some(children), 0);
                }
                Op::Touch(d) => {
                    prop_assert_eq!(index.touch(&digest(d)), model.at(d).is_some());
                    if let Some(at) = model.at(d) {
                        for child in model.items[at].children.clone().unwrap_or_default() {
                            model.renew(child);
                        }
                        model.renew(d);
                    }
                }
                Op::Remove(d) => {
                    index.remove(&digest(d));
                    model.items.retain(|i| i.digest != d);
                }
                Op::Evict(scope) => {
                    let place = scope.map_or(Scope::All, |s| Scope::Shelf(shelves[usize::from(s)]));
                    let gone = index.evict(place, u64::MAX).map(|(v, _)| v);
                    prop_assert_eq!(gone, model.evict(scope).map(|d| Victim::Blob(digest(d))));
                }
                Op::Link(d, r) => {
                    if let Some(at) = model.at(d) {
                        prop_assert_eq!(index.link(&format!("r{r}").into(), &digest(d)), model.items[at].links.insert(r));
                    }
                }
                Op::Lease(d) => {
                    prop_assert_eq!(index.lease(&digest(d)), model.at(d).is_some());
                    if let Some(at) = model.at(d) { model.items[at].leases += 1; }
                }
                Op::Release(d) => {
                    index.release(&digest(d));
                    if let Some(at) = model.at(d) {
                        model.items[at].leases = model.items[at].leases.saturating_sub(1);
                    }
                }
                Op::Pin(p, d) => {
                    index.pin(&format!("p{p}").into(), digest(d));
                    model.pins.insert(p, d);
                }
                Op::Unpin(p) => {
                    prop_assert_eq!(index.unpin(&format!("p{p}")), model.pins.remove(&p).map(digest));
                }
                Op::Stage(d, size) => {
                    index.stage(&digest(d), u64::from(size), Staging::Active, shelves[0]);
                    let bytes = model.staged.entry(d).or_default();
                    *bytes = (*bytes).max(on_disk(u64::from(size)));
                }
                Op::Unstage(d) => {
                    index.unstage(&digest(d));
                    model.staged.remove(&d);
                }
            }
            prop_assert_eq!(index.used_bytes(), model.bytes(|_| true) + model.staged.values().sum::<u64>());
            prop_assert_eq!(index.count(), model.items.len());
            for d in 0..20 {
                prop_assert_eq!(index.is_pinned(&digest(d)), model.is_pinned(d), "pin of {}", d);
            }
            let names: BTreeSet<String> = model.items.iter().flat_map(|i| i.links.iter().map(|r| format!("r{r}"))).collect();
            let told: BTreeSet<String> = index.repositories("", 100).iter().map(|n| n.to_string()).collect();
            prop_assert_eq!(names, told);
            for (shelf, (_, held, _)) in index.shelves().iter().enumerate() {
                prop_assert_eq!(*held, model.bytes(|i| usize::from(i.shelf) == shelf));
            }
        }
    }
}

/// A layer that a live image shares outlives a dead image's own; manifests outlive layers.
#[test]
fn use_is_of_the_image() {
    let mut index = Index::default();
    let shelf = index.shelf("docker.io/library/a");
    let mib = 1 << 20;
    for layer in [1, 2, 3] {
        index.insert(digest(layer), mib, 0, Kind::Blob, shelf);
    }
    index.insert(digest(10), 500, 0, manifest(&[1, 2]), shelf);
    index.insert(digest(11), 500, 0, manifest(&[2, 3]), shelf);
    index.touch(&digest(10));
    assert_eq!(
        victim(&mut index),
        Some(Victim::Blob(digest(3))),
        "only the dead image has it"
    );
    assert_eq!(victim(&mut index), Some(Victim::Blob(digest(1))));
    assert_eq!(victim(&mut index), Some(Victim::Blob(digest(2))));
    assert_eq!(victim(&mut index), Some(Victim::Blob(digest(11))));
    assert_eq!(victim(&mut index), Some(Victim::Blob(digest(10))));
    assert_eq!(victim(&mut index), None);
}

#[test]
fn abandoned_transfers_go_first_and_running_ones_stay() {
    let mut index = Index::default();
    let shelf = index.shelf("r");
    index.insert(digest(1), 10, 1, Kind::Blob, shelf);
    index.stage(&digest(2), 10_000, Staging::Active, shelf);
    index.stage(&digest(3), 5_000, Staging::Idle, shelf);
    assert_eq!(index.used_bytes(), 4096 + 12_288 + 8192);
    assert_eq!(victim(&mut index), Some(Victim::Part(digest(3))));
    assert_eq!(victim(&mut index), Some(Victim::Blob(digest(1))));
    assert_eq!(victim(&mut index), None);
    index.unstage(&digest(2));
    assert_eq!(index.used_bytes(), 0);
}

#[test]
fn shelves_have_limits_of_their_own() {
    let mut index = Index::default();
    index.limit_shelf("ghcr.io", Some(4096));
    let (ghcr, hub) = (index.shelf("ghcr.io/a/b"), index.shelf("docker.io/library/a"));
    index.insert(digest(1), 1, 0, Kind::Blob, hub);
    index.insert(digest(2), 1, 0, Kind::Blob, ghcr);
    index.stage(&digest(3), 1, Staging::Active, ghcr);
    assert_eq!((index.over_limit(ghcr, 0), index.over_limit(hub, 0)), (4096, 0));
    assert_eq!(
        index.evict(Scope::Shelf(ghcr), u64::MAX).map(|v| v.0),
        Some(Victim::Blob(digest(2)))
    );
    assert_eq!(index.evict(Scope::Shelf(ghcr), u64::MAX).map(|v| v.0), None);
    assert_eq!(index.over_limit(ghcr, 0), 0);
}

/// Sixty documents, each naming the next one twice, make 2^60 paths: a pin takes each document once.
#[test]
fn a_pin_walks_documents_and_not_paths() {
    let mut index = Index::default();
    let shelf = index.shelf("r");
    for n in 0..60 {
        index.insert(digest(n), 1, 0, manifest(&[n + 1, n + 1]), shelf);
    }
    index.insert(digest(60), 1, 0, Kind::Blob, shelf);
    index.pin(&"p".into(), digest(0));
    assert!(index.is_pinned(&digest(60)));
    // A document that goes takes the pin off what only it named, and brings it back.
    index.remove(&digest(30));
    assert!(index.is_pinned(&digest(30)) && !index.is_pinned(&digest(31)));
    index.insert(digest(30), 1, 0, manifest(&[31, 31]), shelf);
    assert!(index.is_pinned(&digest(60)));
    index.unpin("p");
    assert!((0..=60).all(|n| !index.is_pinned(&digest(n))));
    assert!(victim(&mut index).is_some());
}

/// What was loaded goes in the order of its last use, whatever the order it was read in.
#[test]
fn a_load_puts_in_order() {
    let mut index = Index::default();
    let mut load = index.load(6);
    let (a, b) = (load.shelf("a/x"), load.shelf("b/x"));
    for (n, used_ms) in [(1, 50), (2, 20), (3, 40), (4, 10), (5, 30)] {
        let kind = if n == 4 { manifest(&[1]) } else { Kind::Blob };
        let size = if n == 4 { 500 } else { 1 << 20 };
        load.add(digest(n), size, used_ms, kind, if n % 2 == 0 { a } else { b });
    }
    load.finish();
    let bytes = (4 << 20) + 4096;
    assert_eq!((index.used_bytes(), index.loose_bytes(Scope::All)), (bytes, bytes));
    index.touch(&digest(2));
    let order: Vec<_> = std::iter::from_fn(|| victim(&mut index)).collect();
    assert_eq!(order, [5, 3, 1, 2, 4].map(|n| Victim::Blob(digest(n))));
    assert_eq!(index.used_bytes(), 0);
}
