//! A refused Range is no verdict on a blob (L4): what was cut is asked for whole, and only what that is answered counts.

use larder::oci::Digest;

use crate::support::client::{Ask, End};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";
/// REPO, as the store names it.
const KEY: &str = "docker.io/library/alpine";
const SIZE: usize = 2_000_000;
const CUT: u64 = 800_000;

fn status(status: u16) -> Fault {
    Fault::Status {
        status,
        headers: Vec::new(),
        body: "no".into(),
    }
}

/// Every way in which an upstream may refuse a Range of a blob that it has.
fn refusals() -> Vec<Fault> {
    let statuses = [400, 401, 403, 404, 405, 408, 410, 416, 500, 501, 502, 503, 504];
    let others = [
        Fault::NoHead { reset: false },
        Fault::NoHead { reset: true },
        // Answered, and closed without a byte.
        Fault::CutAfter(0),
        Fault::ResetAfter(0),
        Fault::ShiftRange(10),
        Fault::Header("Content-Range".into(), "bytes 0-99/2000000".into()),
        Fault::Header("Content-Range".into(), "nonsense".into()),
        Fault::NoHeader("Content-Range".into()),
        Fault::Header("Content-Encoding".into(), "gzip".into()),
    ];
    statuses.into_iter().map(status).chain(others).collect()
}

/// A blob of which the next answer is cut.
async fn cut_once(size: usize, at: u64) -> (Upstream, Digest) {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, size);
    upstream.on(On::Blob(digest).whole()).cut_after(at);
    (upstream, digest)
}

/// Begins a transfer and leaves it broken off, with some of it staged: nobody is given any more of it.
async fn broken_off(upstream: &Upstream, digest: Digest, larder: &Larder) {
    let dead = upstream.on(On::Blob(digest)).always().drop_connection();
    let broken = larder.get(blob(REPO, digest)).await;
    assert_eq!((broken.status, broken.end), (200, End::Short));
    larder.until_idle().await;
    assert!(larder.store().is_staged(KEY, &digest));
    dead.remove();
    upstream.forget();
}

fn delete(path: &str) -> Ask {
    Ask::new("DELETE", path).header("Content-Type", "application/json")
}

fn wasted(metrics: &str, reason: &str) -> u64 {
    let name = format!("larder_transfer_wasted_bytes_total{{upstream=\"docker.io\",reason=\"{reason}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |number| number.parse().unwrap())
}

/// In the middle of a running response: the client does not notice, nor does one that follows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inside_a_response() {
    for refusal in refusals() {
        let (upstream, digest) = cut_once(SIZE, CUT).await;
        upstream.on(On::Blobs.ranged()).always().does([refusal.clone()]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let before = wasted(&larder.metrics().await, "range_refused");
        let asks = [(); 2].map(|()| tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry())));
        for ask in asks {
            let response = ask.await.unwrap();
            assert_eq!(
                (response.status, response.end),
                (200, End::Complete),
                "{refusal:?}\n{}",
                upstream.print()
            );
            response.expect_content(&digest);
        }
        assert_eq!(
            upstream.count(On::Blobs.whole()),
            2,
            "{refusal:?}\n{}",
            upstream.print()
        );
        larder.until_held(&blob(REPO, digest)).await;
        let wasted = wasted(&larder.metrics().await, "range_refused") - before;
        // Metrics are this process's: other tests may count as well.
        assert!(wasted >= CUT, "{refusal:?}: {wasted}");
    }
}

/// Before anybody has seen a byte, and after a stop or a crash of Larder: what is staged does not stand in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_an_earlier_transfer_left() {
    for (n, refusal) in refusals().into_iter().enumerate() {
        let (upstream, digest) = cut_once(SIZE, CUT).await;
        let larder = Larder::start(&upstream, |_| {}).await;
        broken_off(&upstream, digest, &larder).await;
        let larder = match n % 3 {
            0 => larder,
            1 => larder.restart().await,
            _ => larder.crash().start(|_| {}).await,
        };
        upstream.on(On::Blobs.ranged()).always().does([refusal.clone()]);
        let response = larder.get(blob(REPO, digest)).await;
        assert_eq!(response.status, 200, "{refusal:?}\n{}", upstream.print());
        response.expect_content(&digest);
        assert_eq!(
            upstream.count(On::Blobs.whole()),
            1,
            "{refusal:?}\n{}",
            upstream.print()
        );
        larder.until_held(&blob(REPO, digest)).await;
    }
}

/// A small one is not given out before all of it is there.
#[tokio::test]
async fn of_a_small_blob() {
    for refusal in [
        status(403),
        status(404),
        status(503),
        Fault::CutAfter(0),
        Fault::NoHead { reset: false },
    ] {
        let (upstream, digest) = cut_once(50_000, 30_000).await;
        upstream.on(On::Blobs.ranged()).always().does([refusal.clone()]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(blob(REPO, digest)).await;
        assert_eq!(response.status, 200, "{refusal:?}\n{}", upstream.print());
        response.expect_content(&digest);
    }
}

/// A blob that passes through memory is skipped there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_passes_through() {
    for refusal in [status(404), status(501), Fault::CutAfter(0)] {
        let (upstream, digest) = cut_once(24 << 20, 10 << 20).await;
        upstream.on(On::Blobs.ranged()).always().does([refusal]);
        let larder = Larder::start(&upstream, |toml| {
            toml.cache("max_size", "8MiB");
        })
        .await;
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// Only the whole request says what is not there; until then nothing of the blob is thrown away.
#[tokio::test]
async fn the_verdict_is_the_whole_request_s() {
    let (upstream, digest) = cut_once(SIZE, CUT).await;
    let larder = Larder::start(&upstream, |_| {}).await;
    broken_off(&upstream, digest, &larder).await;
    // An upstream in trouble says nothing about the blob, whatever it says to a Range.
    let trouble = [
        upstream.on(On::Blobs.ranged()).always().status(404),
        upstream.on(On::Blobs.whole()).always().status(503),
    ];
    let unwell = larder.get(blob(REPO, digest)).await;
    assert!(matches!(unwell.status, 502..=504), "{unwell:?}");
    for rule in trouble {
        rule.remove();
    }
    upstream.forget();
    let mut first = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    first.read_to_end().await;
    first.rest().await.expect_content(&digest);
    assert_eq!(
        upstream.bytes_sent(On::Blobs),
        SIZE as u64 - CUT,
        "it went on: {}",
        upstream.print()
    );

    let (upstream, digest) = cut_once(SIZE, CUT).await;
    let larder = Larder::start(&upstream, |_| {}).await;
    broken_off(&upstream, digest, &larder).await;
    upstream.remove(REPO, &digest);
    larder.get(blob(REPO, digest)).await.expect(404);
    assert_eq!(upstream.count(On::Blobs.whole().get()), 1, "{}", upstream.print());
    // That it is not there is remembered for a while.
    larder.get(blob(REPO, digest)).await.expect(404);
    assert_eq!(upstream.count(On::Blobs.whole().get()), 1, "{}", upstream.print());
}

/// A blob that is staged whole, by an upstream that answers HEAD with nonsense: the GET has the last word.
#[tokio::test]
async fn staged_whole_and_head_is_refused() {
    for refusal in [Some(403), Some(404), Some(405), Some(500), Some(503), None] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, SIZE);
        let larder = Larder::start(&upstream, |_| {}).await;
        let (store, bytes) = (larder.store(), upstream.bytes(&digest));
        let staging = tokio::task::spawn_blocking(move || {
            let mut writer = store.stage("docker.io/library/alpine", &digest).unwrap();
            writer.append(&[bytes]).unwrap();
        });
        staging.await.unwrap();
        match refusal {
            Some(status) => upstream.on(On::Blobs).always().no_head(status),
            None => upstream.on(On::Blobs.head()).always().drop_connection(),
        };
        upstream.on(On::Blobs.ranged()).always().status(416);
        let response = larder.get(blob(REPO, digest)).await;
        assert_eq!(response.status, 200, "{refusal:?}: {}", upstream.print());
        response.expect_content(&digest);
    }
}

/// The whole that comes then is of another size: a running response ends short, and the next one begins clean.
#[tokio::test]
async fn the_whole_has_another_size() {
    let (upstream, digest) = cut_once(SIZE, CUT).await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let wrong = [
        upstream.on(On::Blobs.ranged()).always().status(404),
        upstream.on(On::Blobs.whole()).always().wrong_bytes(vec![1; 3_000_000]),
    ];
    let short = larder.get(blob(REPO, digest)).await;
    assert_eq!((short.status, short.end), (200, End::Short), "{}", upstream.print());
    assert!(short.body.len() < SIZE);
    larder.until_idle().await;
    let wrong_again = larder.get(blob(REPO, digest)).await;
    assert_ne!(wrong_again.end, End::Complete);
    larder.until_idle().await;
    assert!(
        !larder.store().is_staged(KEY, &digest),
        "nothing of what was wrong is kept"
    );
    for rule in wrong {
        rule.remove();
    }
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
}

/// L2: a whole answer whose bytes are others than those that were staged is found out at its end.
#[tokio::test]
async fn the_whole_has_other_bytes() {
    for at in [0, SIZE / 2, SIZE - 1] {
        let (upstream, digest) = cut_once(SIZE, CUT).await;
        let larder = Larder::start(&upstream, |_| {}).await;
        upstream.on(On::Blobs.ranged()).always().status(404);
        let rule = upstream.on(On::Blobs.whole()).always().flip_byte(at);
        let response = larder.get(blob(REPO, digest)).await;
        if at == 0 {
            // That part was here, and right.
            response.expect_content(&digest);
            continue;
        }
        assert_eq!((response.status, response.end), (200, End::Short));
        larder.until_idle().await;
        assert!(!larder.store().is_staged(KEY, &digest));
        rule.remove();
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// An upstream that refuses ranges and sends a little more each time is not asked without end.
#[tokio::test]
async fn the_whole_is_asked_for_a_few_times_only() {
    for ignores in [false, true] {
        let upstream = Upstream::start().await;
        let digest = upstream.blob(REPO, SIZE);
        let refusal = if ignores { Fault::IgnoreRange } else { status(404) };
        for n in 1..20 {
            upstream.on(On::Blobs.whole()).cut_after(n * 90_000);
            if ignores {
                let cut = Fault::CutAfter((n + 1) * 90_000);
                upstream.on(On::Blobs.ranged()).does([refusal.clone(), cut]);
            }
        }
        if !ignores {
            upstream.on(On::Blobs.ranged()).always().does([refusal]);
        }
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(blob(REPO, digest)).await;
        assert_eq!(
            (response.status, response.end),
            (200, End::Short),
            "{}",
            upstream.print()
        );
        assert!(upstream.count(On::Blobs.get()) <= 9, "{}", upstream.print());
    }
}

/// An upstream that ignores the Range is taken at its word; staged bytes are left out of its answer.
#[tokio::test]
async fn an_ignored_range_counts_as_waste() {
    let (upstream, digest) = cut_once(SIZE, CUT).await;
    upstream.on(On::Blobs.ranged()).ignore_range();
    let larder = Larder::start(&upstream, |_| {}).await;
    let before = wasted(&larder.metrics().await, "range_ignored");
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert!(wasted(&larder.metrics().await, "range_ignored") - before >= CUT);
}

/// An operator's removal takes what is staged with it, of a tag and of a blob by its digest.
#[tokio::test]
async fn a_removal_takes_what_is_staged() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[SIZE]);
    let layer = image.layers[0];
    let larder = Larder::start(&upstream, |_| {}).await;
    for by_digest in [false, true] {
        larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
        upstream.on(On::Blob(layer).whole()).cut_after(CUT);
        broken_off(&upstream, layer, &larder).await;
        let path = match by_digest {
            true => format!("/api/v1/images/docker.io/{REPO}@{layer}"),
            false => "/api/v1/images/alpine:1".to_owned(),
        };
        let removed = delete(&path).send(larder.admin()).await.expect(200).json();
        assert!(
            removed["freed_bytes"].as_u64().unwrap() >= CUT / 4096 * 4096,
            "{removed}"
        );
        assert!(!larder.store().is_staged(KEY, &layer));
        assert_eq!(std::fs::read_dir(larder.cache().join("staging")).unwrap().count(), 0);
        if by_digest {
            delete(&path).send(larder.admin()).await.expect(404);
        }
    }
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
    assert_eq!(upstream.count(On::Blob(layer).ranged()), 0, "{}", upstream.print());
}

/// A response that waits for a mended transfer begins as soon as the whole is answered, and not before.
#[tokio::test]
async fn nobody_gets_a_status_line_for_a_refused_range() {
    let (upstream, digest) = cut_once(SIZE, CUT).await;
    let larder = Larder::start(&upstream, |_| {}).await;
    broken_off(&upstream, digest, &larder).await;
    let gate = Gate::closed();
    upstream.on(On::Blobs.ranged()).always().status(403);
    upstream.on(On::Blobs.whole()).always().stall_headers(&gate);
    let asking = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
    gate.wait_for_arrivals(1).await;
    assert!(!asking.is_finished());
    gate.open();
    asking.await.unwrap().expect_content(&digest);
}
