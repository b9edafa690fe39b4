//! Transfers under bad stars: cuts before and after the first byte, what earlier runs left behind, lengths and
//! claims that are lies, and strangers on the same flight.

use std::path::PathBuf;

use bytes::Bytes;
use larder::oci::{Digest, media_type};
use serde_json::json;

use crate::support::blob;
use crate::support::client::{Ask, End};
use crate::support::gate::Gate;
use crate::support::larder::{Larder, Stopped};
use crate::support::manifest;
use crate::support::upstream::{Fault, On, Upstream};

const REPO: &str = "library/alpine";
const OTHER: &str = "library/other";

/// L4: also while nobody has seen a byte because the verdict is waited for.
#[tokio::test]
async fn a_cut_in_a_small_blob_is_mended() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 20_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.on(On::Blob(digest).get()).next(3).cut_after(4_000);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blob(digest).ranged()), 3, "{}", upstream.print());
}

/// L4, R-U25: a storage that answers from the wrong place is asked again like one that broke off.
#[tokio::test]
async fn a_resumed_transfer_that_starts_elsewhere() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.on(On::Blob(digest).whole()).cut_after(400_000);
    let shifted = upstream.on(On::Blob(digest).ranged()).shift_range(7);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(shifted.hits(), 1);
}

/// Where something is staged for `REPO`.
fn part(stopped: &Stopped, digest: &Digest) -> PathBuf {
    let key = larder::store::staging_key(&format!("docker.io/{REPO}"), digest);
    stopped.cache().join("staging").join(format!("{}.part", key.hex()))
}

/// L1, L8: a part that is whole already crosses no more, but only for who may have it.
#[tokio::test]
async fn what_was_staged_whole_is_not_fetched_again() {
    let upstream = Upstream::start().await;
    for length in [3_000, 300_000] {
        let digest = upstream.blob(REPO, length);
        let stopped = Larder::start(&upstream, |_| {}).await.stop().await;
        std::fs::write(part(&stopped, &digest), upstream.bytes(&digest)).unwrap();
        let larder = stopped.start(|_| {}).await;
        larder.get(blob(OTHER, digest)).await.expect(404);
        let response = larder.get(blob(REPO, digest)).await;
        response.expect_content(&digest);
        larder.until_held(&blob(REPO, digest)).await;
        // Of what is staged for REPO nothing is OTHER's: a transfer of its own asks, and hears 404.
        assert_eq!(
            upstream.count(On::Blob(digest).get().repo(REPO)),
            0,
            "{}",
            upstream.print()
        );
    }
}

/// L2, L4: a part that was spoilt (a power cut leaves zeros) is found out; a small blob heals at once, a large one,
/// of which bytes are out already, with the next request.
#[tokio::test]
async fn what_was_staged_wrongly_heals() {
    let upstream = Upstream::start().await;
    let small = upstream.blob(REPO, 30_000);
    let large = upstream.blob(REPO, 300_000);
    let stopped = Larder::start(&upstream, |_| {}).await.stop().await;
    for digest in [small, large] {
        std::fs::write(part(&stopped, &digest), vec![0; 10_000]).unwrap();
    }
    let larder = stopped.start(|_| {}).await;
    larder.get(blob(REPO, small)).await.expect_content(&small);
    let short = larder.get(blob(REPO, large)).await;
    assert_eq!((short.status, short.end), (200, End::Short));
    larder.get(blob(REPO, large)).await.expect_content(&large);
}

/// L8, L3: two registries hold the same layer; the one that is in trouble does not take the other's client with it.
#[tokio::test]
async fn a_foreign_failure_is_not_ours() {
    let hub = Upstream::start().await;
    let other = Upstream::start().await;
    let larder = Larder::start(&hub, |toml| {
        toml.upstream("ghcr.io", "url", other.url());
    })
    .await;
    for status in [404, 500, 403] {
        let digest = hub.blob(REPO, 100_000);
        other.put_blob("team/app", hub.bytes(&digest));
        let gate = Gate::closed();
        let (headers, body) = (Vec::new(), Bytes::new());
        let refusal = Fault::Status { status, headers, body };
        let stall = Fault::StallHeaders(gate.clone());
        hub.on(On::Blob(digest).get()).always().does([stall, refusal]);
        let first = tokio::spawn(Ask::get(blob(REPO, digest)).send(larder.registry()));
        gate.wait_for_arrivals(1).await;
        let second = tokio::spawn(Ask::get(blob("ghcr.io/team/app", digest)).send(larder.registry()));
        // It asks for the right to follow; whether it follows by then or comes too late, it gets its blob.
        other.wait_for(On::Blob(digest).head(), 1).await;
        gate.open();
        assert!(first.await.unwrap().status >= 404);
        second.await.unwrap().expect_content(&digest);
    }
}

/// L5: what an upstream announces is no reason to empty the cache, nor a number to calculate with.
#[tokio::test]
async fn an_announced_length_is_a_claim() {
    let upstream = Upstream::start().await;
    let held = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("max_size", "4MiB");
    })
    .await;
    larder.get(blob(REPO, held)).await.expect_content(&held);
    for length in ["9223372036854775807", "4611686018427387904", "5000000"] {
        let liar = upstream.blob(REPO, 500_000);
        upstream.on(On::Blob(liar)).always().header("Content-Length", length);
        let response = larder.get(blob(REPO, liar)).await;
        assert!(response.status >= 500 || response.end != End::Complete, "{response:?}");
        upstream.clear_script();
        larder.get(blob(REPO, liar)).await.expect_content(&liar);
    }
    upstream.forget();
    larder.get(blob(REPO, held)).await.expect_content(&held);
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
}

/// Anybody may push a manifest that claims anything of a layer that others use.
#[tokio::test]
async fn a_foreign_claim_of_size_holds_nothing_up() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 1_000_000);
    let lie = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "a/b", "size": 2, "digest": Digest::sha256(b"{}")},
        "layers": [{"mediaType": "a/b", "size": 17, "digest": digest}],
    });
    upstream.put_manifest(OTHER, Some("lie"), media_type::OCI_MANIFEST, lie.to_string());
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(OTHER, "lie")).await.expect(200);
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(500_000, &gate);
    let mut exchange = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    assert!(exchange.read_at_least(400_000).await.len() >= 400_000);
    gate.open();
    exchange.rest().await.expect_content(&digest);
}

/// L1: a client that has it already costs no transfer.
#[tokio::test]
async fn a_cold_blob_that_the_client_has() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    for ask in [Ask::get(blob(REPO, digest)), Ask::head(blob(REPO, digest))] {
        let ask = ask.header("If-None-Match", format!("\"{digest}\""));
        let response = ask.send(larder.registry()).await.expect(304);
        assert_eq!(response.header("docker-content-digest"), Some(&*digest.to_string()));
    }
    assert_eq!(upstream.count(On::Blob(digest).get()), 0, "{}", upstream.print());
    let nobody = Ask::get(blob(OTHER, digest)).header("If-None-Match", "*");
    nobody.send(larder.registry()).await.expect(404);
}

/// One document that is refused says nothing about its registry: other tags are asked about as ever.
#[tokio::test]
async fn a_bad_document_is_no_outage() {
    let upstream = Upstream::start().await;
    let old = upstream.image(REPO, "good", &[10]);
    upstream.put_manifest(
        REPO,
        Some("bad"),
        media_type::OCI_MANIFEST,
        r#"{"manifests":[],"layers":[]}"#,
    );
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "good")).await.expect_content(&old.manifest);
    larder.get(manifest(REPO, "bad")).await.expect(502);
    let new = upstream.image(REPO, "good", &[11]);
    larder.get(manifest(REPO, "good")).await.expect_content(&new.manifest);
}

/// The last bytes of every response wait for the verdict (L2).
const HOLD_BACK: usize = 16 * 1024;

/// L1: whoever joins late gets what is staged by then, also while the upstream stands still: it goes on only when the
/// joiners have it.
#[tokio::test]
async fn late_joiners_need_not_wait_for_the_upstream() {
    const LEN: usize = 1_000_000;
    const STOPS: [usize; 4] = [100_000, 300_000, 600_000, 900_000];
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, LEN);
    let bytes = upstream.bytes(&digest);
    let gates = STOPS.map(|_| Gate::closed());
    let stalls = STOPS.iter().zip(&gates);
    let stalls = stalls.map(|(at, gate)| Fault::StallAfter(*at as u64, gate.clone()));
    upstream.on(On::Blob(digest).get()).does(stalls);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = blob(REPO, digest);
    let first = tokio::spawn(Ask::get(&path).send(larder.registry()));
    let (mut whole, mut ranged) = (Vec::new(), Vec::new());
    for (at, gate) in STOPS.into_iter().zip(&gates) {
        gate.wait_for_arrivals(1).await;
        for _ in 0..20 {
            let mut joiner = Ask::get(&path).open(larder.registry()).await;
            assert_eq!(joiner.headers.get("cache-status"), Some("larder; fwd=miss; collapsed"));
            let read = joiner.read_at_least(at - HOLD_BACK).await;
            assert!(read == &bytes[..read.len()] && read.len() >= at - HOLD_BACK);
            whole.push(joiner);
        }
        let (from, to) = (at / 4, at / 4 * 3);
        for _ in 0..5 {
            let ask = Ask::get(&path).range(&format!("bytes={from}-{}", to - 1));
            let mut joiner = ask.open(larder.registry()).await;
            assert_eq!(joiner.status, 206);
            let read = joiner.read_at_least(to - from - HOLD_BACK).await;
            assert!(read == &bytes[from..from + read.len()] && read.len() >= to - from - HOLD_BACK);
            ranged.push((joiner, from, to));
        }
        gate.open();
    }
    first.await.unwrap().expect_content(&digest);
    for joiner in whole {
        joiner.rest().await.expect_content(&digest);
    }
    for (joiner, from, to) in ranged {
        assert!(joiner.rest().await.expect(206).body == bytes[from..to], "{from}-{to}");
    }
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
}

/// The same of a blob whose size the upstream does not tell. Its ranges have to wait: they need the size (R-C42).
#[tokio::test]
async fn late_joiners_of_a_blob_of_unknown_size() {
    const AT: usize = 300_000;
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 500_000);
    let bytes = upstream.bytes(&digest);
    let gate = Gate::closed();
    let stall = Fault::StallAfter(AT as u64, gate.clone());
    upstream.on(On::Blob(digest).get()).does([Fault::Chunked, stall]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = blob(REPO, digest);
    let first = tokio::spawn(Ask::get(&path).send(larder.registry()));
    gate.wait_for_arrivals(1).await;
    let mut joiner = Ask::get(&path).open(larder.registry()).await;
    let read = joiner.read_at_least(AT - HOLD_BACK).await;
    assert!(read == &bytes[..read.len()] && read.len() >= AT - HOLD_BACK);
    let ranged = tokio::spawn(Ask::get(&path).range("bytes=1000-1999").send(larder.registry()));
    gate.open();
    first.await.unwrap().expect_content(&digest);
    joiner.rest().await.expect_content(&digest);
    assert!(ranged.await.unwrap().expect(206).body == bytes[1000..2000]);
    assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
}
