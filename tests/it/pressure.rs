//! The store under pressure (L5): more than it can hold, too large for it at all, disks that fill up and fail.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use larder::oci::Digest;
use larder::pull::Timing;
use larder::store::{DiskOp, Fault as DiskFault, Faults, TagRecord};

use crate::support::client::{Ask, Connection, End};
use crate::support::disk::{Sampler, SmallDisk, du, free};
use crate::support::gate::Gate;
use crate::support::larder::{Larder, quick};
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, logged, manifest};

const REPO: &str = "library/alpine";
const KEY: &str = "docker.io/library/alpine";
const MIB: u64 = 1 << 20;
const LARGE: usize = 40 << 20;

async fn get(larder: &Larder, digest: &Digest) {
    larder.get(blob(REPO, digest)).await.expect_content(digest);
}

/// When nothing moves, what is counted is what is there.
async fn check_accounts(larder: &Larder) {
    larder.until_idle().await;
    let usage = larder.store().usage();
    assert_eq!(usage.used_bytes, du(&larder.cache()), "{usage:?}");
}

// --- the limit ------------------------------------------------------------------------------------------

/// Several times its size is pulled through a small cache by clients that are quick, slow, gone half-way or after a
/// part only. `du` is watched all the time, and every answer is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_more_than_it_holds() {
    const MAX: u64 = 48 * MIB;
    const CLIENTS: u64 = 12;
    const PULLS: usize = 18;
    let upstream = Upstream::start().await;
    let mut sizes = fastrand::Rng::with_seed(1);
    let blobs: Arc<[(Digest, usize)]> = (0..64)
        .map(|_| {
            let size = sizes.usize(500_000..6 << 20);
            (upstream.blob(REPO, size), size)
        })
        .collect();
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("max_size", "48MiB");
    })
    .await;
    let sampler = Sampler::of_folder(larder.cache());
    let to = larder.registry();
    let clients = (0..CLIENTS).map(|client| {
        let blobs = blobs.clone();
        tokio::spawn(async move {
            let mut dice = fastrand::Rng::with_seed(client);
            let mut bytes = 0;
            for _ in 0..PULLS {
                let (digest, size) = blobs[dice.usize(..blobs.len())];
                let ask = Ask::get(blob(REPO, digest));
                match dice.u8(..10) {
                    // Slow: half of it, then all of another one, then the rest.
                    0 | 1 => {
                        let connection = Connection::open_with_buffer(to, 16 << 10).await;
                        let mut slow = connection.exchange(&ask).await;
                        slow.read_at_least(size / 2).await;
                        let (other, more) = blobs[dice.usize(..blobs.len())];
                        Ask::get(blob(REPO, other)).send(to).await.expect_content(&other);
                        slow.rest().await.expect_content(&digest);
                        bytes += size + more;
                    }
                    // Gone half-way.
                    2 => {
                        let mut exchange = ask.open(to).await;
                        exchange.read_at_least(size / 3).await;
                        exchange.abort();
                    }
                    3 => {
                        let (from, until) = (size / 4, size / 2);
                        let part = ask.range(&format!("bytes={from}-{}", until - 1)).send(to).await;
                        assert_eq!(part.expect(206).body.len(), until - from);
                    }
                    _ => {
                        ask.send(to).await.expect_content(&digest);
                        bytes += size;
                    }
                }
            }
            bytes
        })
    });
    let mut pulled = 0;
    for client in clients.collect::<Vec<_>>() {
        pulled += client.await.expect("a client that is content");
    }
    check_accounts(&larder).await;
    let (most, samples) = sampler.finish();
    assert!(pulled as u64 > 8 * MAX, "only {pulled} bytes went through");
    assert!(most <= MAX, "{most} bytes on disk in one of {samples} samples");
    assert!(
        most > MAX / 2 && samples > 100,
        "{most} bytes at most in {samples} samples"
    );
    assert!(larder.store().usage().evicted > 0);
    upstream.check();
}

/// Only one of the two, or neither, is kept: the room is there once.
#[tokio::test]
async fn two_that_do_not_fit_together() {
    let upstream = Upstream::start().await;
    let pair = [upstream.blob(REPO, 14 << 20), upstream.blob(REPO, 14 << 20)];
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("max_size", "24MiB");
    })
    .await;
    let sampler = Sampler::of_folder(larder.cache());
    let gate = Gate::closed();
    let mut coming = Vec::new();
    for digest in &pair {
        upstream.on(On::Blob(*digest).get()).stall_after(MIB, &gate);
        let mut exchange = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        exchange.read_at_least(1).await;
        coming.push(exchange);
    }
    gate.open();
    let rest = coming.into_iter().map(|exchange| tokio::spawn(exchange.rest()));
    for (digest, rest) in pair.iter().zip(rest.collect::<Vec<_>>()) {
        rest.await.unwrap().expect_content(digest);
    }
    check_accounts(&larder).await;
    let (most, _) = sampler.finish();
    assert!(most <= 24 * MIB, "{most} bytes on disk");
    let kept = pair.iter().filter(|d| larder.store().size(d).is_some()).count();
    assert!(kept <= 1, "both are kept");
}

/// What cannot make room does not empty the cache in trying.
#[tokio::test]
async fn nothing_goes_in_vain() {
    let upstream = Upstream::start().await;
    let held = upstream.blob(REPO, 4 << 20);
    let (first, second) = (upstream.blob(REPO, 14 << 20), upstream.blob(REPO, 14 << 20));
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("max_size", "24MiB");
    })
    .await;
    get(&larder, &held).await;
    larder.until_held(&blob(REPO, held)).await;
    let gate = Gate::closed();
    upstream.on(On::Blob(first).get()).stall_after(MIB, &gate);
    let mut exchange = Ask::get(blob(REPO, first)).open(larder.registry()).await;
    exchange.read_at_least(1).await;
    get(&larder, &second).await;
    assert!(larder.store().size(&held).is_some(), "evicted for nothing");
    gate.open();
    exchange.rest().await.expect_content(&first);
}

/// Twenty blobs of 2 MiB in a cache of 50 MiB, least recently used first.
async fn nearly_full(upstream: &Upstream) -> (Larder, Vec<Digest>) {
    let larder = Larder::start(upstream, |toml| {
        toml.cache("max_size", "50MiB");
    })
    .await;
    let held: Vec<Digest> = (0..20).map(|_| upstream.blob(REPO, 2 << 20)).collect();
    for digest in &held {
        get(&larder, digest).await;
        larder.until_held(&blob(REPO, digest)).await;
    }
    (larder, held)
}

fn left(larder: &Larder, held: &[Digest]) -> usize {
    held.iter()
        .filter(|digest| larder.store().size(digest).is_some())
        .count()
}

/// A size that an upstream announces evicts nothing, whoever else asks meanwhile; the bytes that it sends do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_makes_no_room() {
    let upstream = Upstream::start().await;
    let (larder, held) = nearly_full(&upstream).await;
    let claims = [upstream.blob(REPO, 45 << 20), upstream.blob(REPO, 40 << 20)];
    let gate = Gate::closed();
    let mut coming = Vec::new();
    for digest in &claims {
        upstream.on(On::Blob(*digest).get()).stall_after(0, &gate);
        coming.push(Ask::get(blob(REPO, digest)).open(larder.registry()).await);
    }
    gate.wait_for_arrivals(2).await;
    assert_eq!(left(&larder, &held), 20);
    let small = upstream.blob(REPO, 100_000);
    get(&larder, &small).await;
    assert_eq!(left(&larder, &held), 20, "nor do others' claims for it");
    gate.open();
    for (digest, exchange) in claims.iter().zip(coming) {
        exchange.rest().await.expect_content(digest);
    }
    check_accounts(&larder).await;
    assert!(left(&larder, &held) < 20);
    upstream.check();
}

/// A manifest's word is a claim too, and enough for a body that does not tell its size: also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_s_claim_makes_no_room() {
    use crate::support::upstream::Fault;
    for restarts in [false, true] {
        let upstream = Upstream::start().await;
        let image = upstream.image(REPO, "1", &[45 << 20]);
        let (mut larder, held) = nearly_full(&upstream).await;
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        if restarts {
            larder = larder.restart().await;
        }
        let layer = image.layers[0];
        let gate = Gate::closed();
        let stall = Fault::StallAfter(0, gate.clone());
        upstream.on(On::Blob(layer).get()).does([stall, Fault::Chunked]);
        // Its header is out: what it announces has been looked at.
        let coming = Ask::get(blob(REPO, layer)).open(larder.registry()).await;
        assert_eq!(left(&larder, &held), 20);
        gate.open();
        coming.rest().await.expect_content(&layer);
        larder.until_held(&blob(REPO, layer)).await;
        check_accounts(&larder).await;
    }
}

/// A body that nobody announced the size of gets what is free, and 5 % of the limit; then it passes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_body_takes_a_small_part() {
    let upstream = Upstream::start().await;
    let (larder, held) = nearly_full(&upstream).await;
    for _ in 0..3 {
        let endless = upstream.blob(REPO, 60 << 20);
        upstream.on(On::Blob(endless).get()).no_content_length();
        get(&larder, &endless).await;
        assert!(left(&larder, &held) >= 19, "{} are left", left(&larder, &held));
        check_accounts(&larder).await;
        assert_eq!(larder.store().size(&endless), None);
    }
    let readiness = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    assert_eq!(readiness["status"], "ready", "{readiness}");
    // One that fits into what is free is kept.
    let fits = upstream.blob(REPO, 4 << 20);
    upstream.on(On::Blob(fits).get()).no_content_length();
    get(&larder, &fits).await;
    larder.until_held(&blob(REPO, fits)).await;
}

/// The operator's limit is kept before the first request after a restart.
#[tokio::test]
async fn a_lowered_limit() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let digests: Vec<Digest> = (0..6).map(|_| upstream.blob(REPO, 3 << 20)).collect();
    for digest in &digests {
        get(&larder, digest).await;
        larder.until_held(&blob(REPO, digest)).await;
    }
    assert!(du(&larder.cache()) > 18 * MIB);
    let larder = larder.stop().await.start(|toml| {
        toml.cache("max_size", "10MiB");
    });
    let larder = larder.await;
    assert!(du(&larder.cache()) <= 10 * MIB, "{} bytes on disk", du(&larder.cache()));
    check_accounts(&larder).await;
    upstream.forget();
    get(&larder, &digests[5]).await;
    assert_eq!(upstream.requests().len(), 0, "the last one used is the last one to go");
}

/// One upstream's limit is its own: the others' content does not make way for it.
#[tokio::test]
async fn a_limit_of_one_upstream() {
    let (hub, noisy) = (Upstream::start().await, Upstream::start().await);
    let larder = Larder::start(&hub, |toml| {
        toml.upstream("ghcr.io", "url", noisy.url());
        toml.upstream("ghcr.io", "max_size", "6MiB");
    })
    .await;
    let quiet = hub.blob(REPO, 2 << 20);
    get(&larder, &quiet).await;
    let shelf = |name: &str| {
        let shelves = larder.store().usage().shelves;
        shelves.into_iter().find(|s| *s.0 == *name).unwrap()
    };
    for _ in 0..6 {
        let digest = noisy.blob("team/app", 2 << 20);
        let path = blob("ghcr.io/team/app", digest);
        larder.get(&path).await.expect_content(&digest);
        larder.until_held(&path).await;
        assert!(shelf("ghcr.io").1 <= 6 * MIB);
    }
    let too_large = noisy.blob("team/app", 7 << 20);
    let response = larder.get(blob("ghcr.io/team/app", too_large)).await;
    response.expect_content(&too_large);
    larder.until_idle().await;
    assert_eq!(larder.store().size(&too_large), None);
    assert_eq!(shelf("ghcr.io"), ("ghcr.io".into(), 6 * MIB, Some(6 * MIB)));
    hub.forget();
    get(&larder, &quiet).await;
    assert_eq!(hub.requests().len(), 0, "{}", hub.print());
}

/// What goes while it is being sent is sent to its end; the next one who asks gets it anew.
#[tokio::test]
async fn removed_while_it_is_sent() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "latest", &[8 << 20]);
    let layer = image.blobs()[1];
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "latest")).await.expect(200);
    get(&larder, &layer).await;
    larder.until_held(&blob(REPO, layer)).await;
    let connection = Connection::open_with_buffer(larder.registry(), 16 << 10).await;
    let mut slow = connection.exchange(&Ask::get(blob(REPO, layer))).await;
    slow.read_at_least(1 << 20).await;
    let store = larder.store();
    let removed = tokio::task::spawn_blocking(move || store.remove_image(KEY, "latest")).await;
    let removed = removed.unwrap().expect("a tag that is known");
    assert!(removed.bytes >= 8 * MIB, "{removed:?}");
    assert_eq!(larder.store().size(&layer), None);
    slow.rest().await.expect_content(&layer);
    get(&larder, &layer).await;
    assert_eq!(upstream.count(On::Blob(layer).get()), 2, "{}", upstream.print());
    check_accounts(&larder).await;
}

// --- larger than the cache --------------------------------------------------------------------------------

/// Room for nothing that is `LARGE`. What passes through has 16 MiB of memory.
async fn tiny(upstream: &Upstream, timing: Timing) -> Larder {
    Larder::start_timed(upstream, timing, |toml| {
        toml.cache("max_size", "8MiB");
    })
    .await
}

/// For one, for a part of it, and for ten at once, who share one transfer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_larger_than_the_cache() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, LARGE);
    let larder = tiny(&upstream, quick()).await;
    let sampler = Sampler::of_folder(larder.cache());
    get(&larder, &digest).await;
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    for (from, until) in [(35_000_000, 36_000_000), (0, 10), (LARGE - 5, LARGE), (0, LARGE)] {
        larder.until_idle().await;
        let ask = Ask::get(blob(REPO, digest)).range(&format!("bytes={from}-{}", until - 1));
        let part = ask.send(larder.registry()).await.expect(206);
        assert_eq!(part.body, upstream.bytes(&digest)[from..until]);
    }
    larder.until_idle().await;
    upstream.forget();
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(MIB, &gate);
    let mut readers = Vec::new();
    for _ in 0..10 {
        let mut reader = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        reader.read_at_least(1).await;
        readers.push(reader);
    }
    gate.open();
    for reader in readers.into_iter().map(|r| tokio::spawn(r.rest())).collect::<Vec<_>>() {
        reader.await.unwrap().expect_content(&digest);
    }
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    assert_eq!(larder.store().size(&digest), None);
    let metrics = larder.metrics().await;
    assert!(metrics.contains("larder_transfers_passed_through_total"), "{metrics}");
    check_accounts(&larder).await;
    let (most, _) = sampler.finish();
    assert!(most <= 8 * MIB, "{most} bytes on disk");
}

/// Who comes when the first bytes have gone by gets a transfer of his own, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_joiner_of_a_large_blob() {
    let upstream = Upstream::start().await;
    let larder = tiny(&upstream, quick()).await;
    // Announced, and not: then the disk takes what it can before it gives up.
    for framed in [true, false] {
        let digest = upstream.blob(REPO, LARGE);
        let gate = Gate::closed();
        let stall = crate::support::upstream::Fault::StallAfter(36 * MIB, gate.clone());
        let chunked = (!framed).then_some(crate::support::upstream::Fault::Chunked);
        upstream
            .on(On::Blob(digest).get())
            .does([stall].into_iter().chain(chunked));
        let mut first = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        assert!(first.read_at_least(30 << 20).await.len() >= 30 << 20);
        get(&larder, &digest).await;
        assert_eq!(upstream.count(On::Blob(digest).get()), 2, "{}", upstream.print());
        gate.open();
        first.rest().await.expect_content(&digest);
        check_accounts(&larder).await;
    }
}

/// Who stands still is waited for, and left behind only after the grace; nobody else is held up for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_a_large_blob() {
    let upstream = Upstream::start().await;
    for (grace, patient) in [(Duration::from_secs(600), true), (Duration::from_secs(3), false)] {
        let digest = upstream.blob(REPO, LARGE);
        let larder = tiny(&upstream, Timing { grace, ..quick() }).await;
        let gate = Gate::closed();
        upstream.on(On::Blob(digest).get()).stall_after(MIB, &gate);
        let connection = Connection::open_with_buffer(larder.registry(), 16 << 10).await;
        let mut still = connection.exchange(&Ask::get(blob(REPO, digest))).await;
        still.read_at_least(1).await;
        let mut other = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        other.read_at_least(1).await;
        gate.open();
        if patient {
            // As far as the window reaches, and then on together.
            other.read_at_least(16 << 20).await;
            let rest = tokio::spawn(other.rest());
            still.rest().await.expect_content(&digest);
            rest.await.unwrap().expect_content(&digest);
        } else {
            other.rest().await.expect_content(&digest);
            let left = still.rest().await;
            assert_ne!(left.end, End::Complete, "{left:?}");
        }
        assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    }
}

/// Memory: the upstream is never further ahead of the slowest reader than the window, what gathers before it, and
/// what sockets hold on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_in_little_memory() {
    const AHEAD: u64 = (16 + 4 + 20) * MIB;
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 96 << 20);
    let larder = tiny(&upstream, quick()).await;
    let connection = Connection::open_with_buffer(larder.registry(), 64 << 10).await;
    let mut reader = connection.exchange(&Ask::get(blob(REPO, digest))).await;
    while reader.end().is_none() {
        let read = reader.body().len();
        reader.read_at_least(read + (1 << 20)).await;
        let (sent, read) = (upstream.bytes_sent(On::Blob(digest)), reader.body().len() as u64);
        assert!(sent <= read + AHEAD, "{sent} bytes were sent when {read} had been read");
    }
    reader.rest().await.expect_content(&digest);
}

/// L4 and L2 hold without the disk, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_and_lies_in_a_large_blob() {
    let upstream = Upstream::start().await;
    let larder = tiny(&upstream, quick()).await;
    let cut = upstream.blob(REPO, LARGE);
    upstream.on(On::Blob(cut).whole()).cut_after(20 * MIB);
    get(&larder, &cut).await;
    let resumed = upstream.matching(On::Blob(cut).ranged());
    assert_eq!(resumed.len(), 1, "{}", upstream.print());
    for at in [0, 20 << 20, LARGE - 1] {
        let lie = upstream.blob(REPO, LARGE);
        upstream.on(On::Blob(lie).get()).flip_byte(at);
        let wrong = larder.get(blob(REPO, lie)).await;
        assert!(wrong.end != End::Complete, "{wrong:?}");
        get(&larder, &lie).await;
    }
    check_accounts(&larder).await;
}

// --- disks that fail ----------------------------------------------------------------------------------------

/// Where a disk fails, and how.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    op: DiskOp,
    /// Of the operations of this kind on one file: before it all goes well.
    from: usize,
    errno: i32,
    /// So many bytes of a write reach the file all the same.
    short: Option<usize>,
}

/// Fails as long as it is on. Only transfers of blobs and manifests are hit, not the probe of readiness.
fn failing(trouble: Trouble, on: &Arc<AtomicBool>) -> Faults {
    let (on, seen) = (on.clone(), AtomicUsize::new(0));
    Arc::new(move |op, _: &Path| {
        if op != trouble.op || !on.load(Ordering::SeqCst) || seen.fetch_add(1, Ordering::SeqCst) < trouble.from {
            return None;
        }
        let error = std::io::Error::from_raw_os_error(trouble.errno);
        Some(match trouble.short {
            Some(bytes) => DiskFault::Short(bytes, error),
            None => DiskFault::Error(error),
        })
    })
}

fn counter(metrics: &str, name: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// One after the other, the first in the middle of it when the others come; those who come before the end of what is
/// not kept share the transfer.
async fn pull_by_four(upstream: &Upstream, larder: &Larder, size: usize) -> Digest {
    let digest = upstream.blob(REPO, size);
    let gate = Gate::closed();
    let half = size as u64 / 2;
    upstream.on(On::Blob(digest).get()).stall_after(half, &gate);
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut reader = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
        reader.read_at_least(1).await;
        readers.push(tokio::spawn(reader.rest()));
    }
    gate.open();
    for reader in readers {
        reader.await.unwrap().expect_content(&digest);
    }
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    digest
}

async fn disk_says(larder: &Larder) -> Option<String> {
    let ready = Ask::get("/readyz").send(larder.admin()).await.expect(200).json();
    let checks = ready["checks"].as_array().expect("checks");
    let disk = checks.iter().find(|check| check["name"] == "disk");
    disk.map(|check| check["detail"].as_str().expect("a text").to_owned())
}

/// Every kind of failure at every step: all who wait are served by one transfer, readiness and metrics tell, the log
/// does once, and what is pulled when the disk is well again is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_fail() {
    const ENOSPC: i32 = 28;
    const EDQUOT: i32 = 122;
    const EIO: i32 = 5;
    const EROFS: i32 = 30;
    logged::listen();
    let upstream = Upstream::start().await;
    let mut troubles = Vec::new();
    for errno in [ENOSPC, EDQUOT, EIO, EROFS] {
        troubles.extend(DiskOp::CHANGES.map(|op| (op, 0, errno, None)));
        troubles.extend([(DiskOp::Write, 2, errno, None), (DiskOp::Write, 0, errno, Some(7))]);
        troubles.push((DiskOp::Write, 2, errno, Some(1)));
    }
    for (op, from, errno, short) in troubles {
        let trouble = Trouble { op, from, errno, short };
        let on = Arc::new(AtomicBool::new(true));
        let larder = Larder::start_faulty(&upstream, failing(trouble, &on), |_| {}).await;
        assert_eq!(disk_says(&larder).await, None);
        let before = counter(&larder.metrics().await, "larder_store_errors_total");
        let mut digests = Vec::new();
        for size in [3 << 20, 100_000] {
            digests.push(pull_by_four(&upstream, &larder, size).await);
        }
        let small = upstream.blob(REPO, 1_000);
        get(&larder, &small).await;
        digests.push(small);
        larder.until_idle().await;
        let image = upstream.image(REPO, "latest", &[]);
        let response = larder.get(manifest(REPO, image.manifest)).await;
        response.expect_content(&image.manifest);
        let said = disk_says(&larder).await.unwrap_or_default();
        let reason = larder::text::os_error(&std::io::Error::from_raw_os_error(errno));
        assert!(
            said.contains(op.as_str()) && said.contains(&reason),
            "{trouble:?}: {said:?}"
        );
        let after = counter(&larder.metrics().await, "larder_store_errors_total");
        assert!(after > before, "{trouble:?}");
        let lines = logged::with(larder.cache().to_str().unwrap());
        assert_eq!(lines.len(), 1, "{trouble:?}: {lines:#?}");
        on.store(false, Ordering::SeqCst);
        digests.push(upstream.blob(REPO, 1 << 20));
        for digest in &digests {
            get(&larder, digest).await;
            larder.until_held(&blob(REPO, digest)).await;
        }
        check_accounts(&larder).await;
    }
}

/// A file system that is really full, by somebody else's doing, in the middle of a transfer. When there is room again
/// it is used again, and lasts through a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let upstream = Upstream::start().await;
    let path = disk.path().join("cache").to_str().unwrap().to_owned();
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("path", path);
        toml.cache("max_size", "1GiB");
    })
    .await;
    let held = upstream.blob(REPO, 1 << 20);
    get(&larder, &held).await;
    larder.until_held(&blob(REPO, held)).await;
    let digest = upstream.blob(REPO, 6 << 20);
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(MIB, &gate);
    let mut exchange = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    exchange.read_at_least(500_000).await;
    let filler = disk.fill();
    gate.open();
    exchange.rest().await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    // Found out by a write, or before it when more room was wanted.
    let said = disk_says(&larder).await.unwrap_or_default();
    assert!(
        said.contains("the disk is full") || said.contains("there is no room"),
        "{said}"
    );
    larder.until_idle().await;
    // Still full: small things and large, manifests and blobs.
    let image = upstream.image(REPO, "latest", &[700_000]);
    for _ in 0..2 {
        larder
            .get(manifest(REPO, "latest"))
            .await
            .expect_content(&image.manifest);
        for part in image.blobs() {
            get(&larder, &part).await;
        }
    }
    get(&larder, &held).await;
    // More than the index's file has room for as it is.
    let (store, noted) = (larder.store(), image.manifest);
    let tags = tokio::task::spawn_blocking(move || {
        for n in 0..4_000 {
            let record = TagRecord {
                digest: noted,
                media_type: "x/y".into(),
                size: 1,
                checked_ms: n,
                moves: Vec::new(),
            };
            store.put_tag("docker.io/many/tags", &format!("v{n}"), record);
        }
    });
    tags.await.unwrap();
    larder.until_idle().await;
    std::fs::remove_file(filler).unwrap();
    larder.until_idle().await;
    larder
        .get(manifest(REPO, image.manifest))
        .await
        .expect_content(&image.manifest);
    for wanted in [digest].into_iter().chain(image.blobs()) {
        get(&larder, &wanted).await;
        larder.until_held(&blob(REPO, wanted)).await;
    }
    let usage = larder.store().usage();
    larder.until_idle().await;
    assert_eq!(
        larder.store().usage().used_bytes,
        du(&disk.path().join("cache")),
        "{usage:?}"
    );
    let larder = larder.restart().await;
    upstream.go_down().await;
    assert_eq!(larder.store().known_tags("docker.io/many/tags").len(), 4_000);
    larder
        .get(manifest(REPO, "latest"))
        .await
        .expect_content(&image.manifest);
    for wanted in [digest].into_iter().chain(image.blobs()) {
        get(&larder, &wanted).await;
    }
}

/// `min_free` of the file system stays free, whatever `max_size` would allow, and whoever transfers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_must_not_fill_up() {
    const MIN_FREE: u64 = 8 * MIB;
    let Some(disk) = SmallDisk::mount(32) else { return };
    let upstream = Upstream::start().await;
    let path = disk.path().join("cache").to_str().unwrap().to_owned();
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("path", path);
        toml.cache("max_size", "1GiB");
        toml.cache("min_free", "8MiB");
    })
    .await;
    let sampler = Sampler::of_free(disk.path().to_owned());
    for _ in 0..5 {
        let digests: Vec<Digest> = (0..4).map(|_| upstream.blob(REPO, 3 << 20)).collect();
        let asks = digests
            .iter()
            .map(|digest| tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry())));
        for (digest, ask) in digests.iter().zip(asks.collect::<Vec<_>>()) {
            ask.await.unwrap().expect_content(digest);
        }
    }
    larder.until_idle().await;
    let (least, samples) = sampler.finish();
    assert!(least >= MIN_FREE, "{least} bytes were free in one of {samples} samples");
    let usage = larder.store().usage();
    assert!(usage.evicted > 0 && usage.blobs > 1, "{usage:?}");
    assert!(free(disk.path()) < MIN_FREE + 8 * MIB, "room was left unused");
}
