//! The wire as containerd, nerdctl, CRI, k3s, dockerd's containerd store and BuildKit use it: header for header.

use larder::oci::{Digest, media_type};

use crate::support::client::{Ask, Connection, End, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::upstream::{Fault, On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";
/// R-C3: one line, and anything at its end.
const RESOLVE: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, */*";
/// R-C9, R-W6.
const PACKINGS: &str = "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5";

fn check_named(response: &Response, kind: &str, digest: &Digest, size: usize) {
    assert_eq!(response.header("content-type"), Some(kind), "{response:?}");
    assert_eq!(response.header("docker-content-digest"), Some(&*digest.to_string()));
    assert_eq!(response.header("content-length"), Some(&*size.to_string()));
    assert_eq!(response.header("oci-namespace"), Some("docker.io"));
}

/// R-C1, R-C3, R-C9, R-W5, R-W6, R-W7: no ping; HEAD by tag, GET by digest with that one type, blobs with packings that
/// nobody acts on.
#[tokio::test]
async fn a_pull() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[5000, 100_000]);
    let index = upstream.index(REPO, "multi", &[image.manifest]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let ns = |path: String| format!("{path}?ns=docker.io");
    for _cold_then_hot in 0..2 {
        let resolve = Ask::head(ns(manifest(REPO, "multi"))).header("Accept", RESOLVE);
        let resolved = resolve.send(larder.registry()).await.expect(200);
        check_named(&resolved, media_type::OCI_INDEX, &index.manifest, index.bytes.len());
        for (digest, kind) in [
            (index.manifest, media_type::OCI_INDEX),
            (image.manifest, media_type::OCI_MANIFEST),
        ] {
            let fetch = Ask::get(ns(manifest(REPO, digest))).header("Accept", format!("{kind}, */*"));
            let fetched = fetch.send(larder.registry()).await;
            assert_eq!(fetched.header("content-type"), Some(kind));
            fetched.expect_content(&digest);
        }
        for digest in image.blobs() {
            let layer = "application/vnd.oci.image.layer.v1.tar+gzip, */*";
            let fetch = Ask::get(ns(blob(REPO, digest))).header("Accept", layer);
            let fetched = fetch.header("Accept-Encoding", PACKINGS).send(larder.registry()).await;
            assert_eq!(fetched.header("content-encoding"), None);
            let size = upstream.bytes(&digest).len();
            check_named(&fetched, "application/octet-stream", &digest, size);
            fetched.expect_content(&digest);
        }
    }
    for asked in upstream.requests() {
        assert_eq!(asked.header("accept-encoding"), Some("identity"), "{asked:?}");
        assert_eq!(asked.query, None);
    }
    assert_eq!(upstream.count(On::Manifests.get()), 2, "{}", upstream.print());
    assert_eq!(upstream.count(On::Blobs), 3, "{}", upstream.print());
}

/// R-C2, R-C50, R-C83, R-C96: BuildKit and kaniko put the mirror's path behind `/v2/`, k3s and dockerd before it; with or
/// without `ns`, encoded or not.
#[tokio::test]
async fn where_a_prefix_may_stand() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "aliases", vec!["hub"]);
        t.upstream("registry.example:5000", "url", upstream.url());
    })
    .await;
    for path in [
        "/v2/docker.io/library/alpine/manifests/1?ns=docker.io",
        "/v2/hub/library/alpine/manifests/1?ns=docker.io",
        "/hub/v2/library/alpine/manifests/1?ns=docker.io",
        "/docker.io/v2/library/alpine/manifests/1",
        "/v2/library/alpine/manifests/1?ns=registry.example:5000",
        "/v2/library/alpine/manifests/1?ns=registry.example%3A5000",
        "/v2/library/alpine/manifests/1?ns=DOCKER.IO",
    ] {
        larder.get(path).await.expect_content(&image.manifest);
    }
    let clash = larder.get("/v2/hub/library/alpine/manifests/1?ns=registry.example:5000");
    assert_eq!(clash.await.expect(400).error_code(), "NAME_INVALID");
}

/// R-C7: a digest that is no manifest is asked for as a blob next; neither is asked of the upstream again for a while, and
/// what is a manifest is shown as a blob to nobody who may not see it.
#[tokio::test]
async fn a_digest_that_is_not_there() {
    let upstream = Upstream::start().await;
    let image = upstream.image("library/other", "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest("library/other", image.manifest)).await.expect(200);
    upstream.forget();
    for digest in [Digest::sha256(b"nowhere"), image.manifest] {
        for _ in 0..4 {
            let missing = larder.head(manifest(REPO, digest)).await.expect(404);
            assert_eq!(missing.header("content-type"), Some("application/json"));
            larder.head(blob(REPO, digest)).await.expect(404);
        }
        // A HEAD that finds nothing is made sure of by a GET (R-U27).
        assert!(
            upstream.count(On::Manifest(digest.to_string())) <= 2,
            "{}",
            upstream.print()
        );
        assert!(upstream.count(On::Blob(digest)) <= 2, "{}", upstream.print());
    }
}

/// R-C8, R-C60: a mirror for digests only is asked for an index and its children by nothing else, the child first even.
#[tokio::test]
async fn digests_only_and_cold() {
    let upstream = Upstream::start().await;
    let (one, two) = (
        upstream.untagged_image(REPO, &[10]),
        upstream.untagged_image(REPO, &[20]),
    );
    let index = upstream.index(REPO, "multi", &[one.manifest, two.manifest]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for digest in [two.manifest, index.manifest, one.manifest] {
        larder.get(manifest(REPO, digest)).await.expect_content(&digest);
    }
    for digest in two.blobs().into_iter().chain(one.blobs()) {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    for asked in upstream.matching(On::Manifests) {
        assert!(asked.path.contains("/sha256:"), "{}", upstream.print());
    }
}

/// R-C13: a 304 is an error without a way back to a client that did not ask for it.
#[tokio::test]
async fn unchanged_only_to_who_asks() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[5000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for path in [manifest(REPO, "1"), blob(REPO, image.layers[0])] {
        larder.get(&path).await.expect(200);
        let etag = larder.head(&path).await.expect(200).header("etag").unwrap().to_owned();
        let conditional = Ask::get(&path).header("If-None-Match", &etag);
        conditional.send(larder.registry()).await.expect(304);
        for _ in 0..2 {
            larder.get(&path).await.expect(200);
            larder.head(&path).await.expect(200);
        }
        let since = Ask::get(&path).header("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT");
        since.send(larder.registry()).await.expect(200);
    }
    // An upstream that says it unasked is not believed either.
    upstream.on(On::Manifest("2".into())).always().answer(304, &[], "");
    let odd = larder.get(manifest(REPO, "2")).await;
    assert!(odd.status >= 500, "{odd:?}");
}

/// R-C15, R-C17, R-C19, R-C42: parallel ranges to the end, cold; each starts where it was asked to, all share one transfer,
/// those whose bytes are there get them at once, and a client that hangs up holds up nobody.
#[tokio::test]
async fn open_ended_ranges_on_a_cold_blob() {
    const SIZE: usize = 900_000;
    const THERE: usize = 500_000;
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let bytes = upstream.bytes(&digest);
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(THERE as u64, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut open = Vec::new();
    for from in [0usize, 100_000, 300_000] {
        let ask = Ask::get(blob(REPO, digest)).range(&format!("bytes={from}-"));
        let mut exchange = ask.open(larder.registry()).await;
        assert_eq!(exchange.status, 206);
        let place = format!("bytes {from}-{}/{SIZE}", SIZE - 1);
        assert_eq!(exchange.headers.all("content-range"), [place]);
        assert_eq!(
            exchange.headers.get("content-length"),
            Some(&*(SIZE - from).to_string())
        );
        let read = exchange.read_at_least(100_000).await;
        assert!(*read == bytes[from..from + read.len()], "from {from}");
        open.push((from, exchange));
    }
    let (_, leaver) = open.remove(1);
    leaver.abort();
    gate.open();
    for (from, exchange) in open {
        assert!(exchange.rest().await.expect(206).body == bytes[from..], "from {from}");
    }
    assert_eq!(upstream.count(On::Blobs), 1, "{}", upstream.print());
}

/// R-C42, R-C66: where the upstream does not tell the size, a manifest has, and a Range is answered from there at once.
#[tokio::test]
async fn a_range_of_a_cold_blob_whose_size_only_its_manifest_tells() {
    const SIZE: usize = 900_000;
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[SIZE]);
    let layer = image.layers[0];
    let bytes = upstream.bytes(&layer);
    let gate = Gate::closed();
    let stall = Fault::StallAfter(500_000, gate.clone());
    upstream.on(On::Blob(layer).get()).does([Fault::Chunked, stall]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    let ask = Ask::get(blob(REPO, layer)).range("bytes=200000-");
    let mut exchange = ask.open(larder.registry()).await;
    assert_eq!(exchange.status, 206);
    let place = format!("bytes 200000-{}/{SIZE}", SIZE - 1);
    assert_eq!(exchange.headers.get("content-range"), Some(&*place));
    let read = exchange.read_at_least(200_000).await;
    assert!(*read == bytes[200_000..200_000 + read.len()]);
    gate.open();
    assert!(exchange.rest().await.expect(206).body == bytes[200_000..]);
}

/// L2: a manifest that claims too much of its blob gets nobody a complete answer to a Range that reaches beyond.
#[tokio::test]
async fn a_range_by_a_false_claim_ends_short() {
    let upstream = Upstream::start().await;
    let layer = upstream.blob(REPO, 300_000);
    let config = upstream.blob(REPO, 10);
    let claims = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","size":10,"digest":"{config}"}},
            "layers":[{{"mediaType":"a/b","size":400000,"digest":"{layer}"}}]}}"#
    );
    upstream.put_manifest(REPO, Some("1"), media_type::OCI_MANIFEST, claims);
    upstream.on(On::Blob(layer).get()).always().no_content_length();
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    let ask = Ask::get(blob(REPO, layer)).range("bytes=200000-");
    let short = ask.open(larder.registry()).await.rest().await;
    assert!(short.status != 206 || !short.is_complete(), "{short:?}");
    // What came was right, and is held.
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
}

/// R-C20, R-C82: clients are sent nowhere else, wherever the upstream sends Larder.
#[tokio::test]
async fn nobody_is_redirected() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[5000]);
    let cdn = upstream.start_cdn().await;
    upstream.redirect_blobs_to(&cdn);
    let larder = Larder::start(&upstream, |_| {}).await;
    for path in [manifest(REPO, "1"), blob(REPO, image.layers[0])] {
        let response = larder.get(path).await.expect(200);
        assert_eq!(response.header("location"), None);
    }
    assert_eq!(cdn.count(On::Storage), 1);
}

/// R-C25, R-C75: a handshake on the plain port ends at once, whatever comes behind it.
#[tokio::test]
async fn tls_garbage() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for hello in [&[0x16u8][..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &[0x16; 600]] {
        let mut connection = Connection::open(larder.registry()).await;
        connection.write(hello).await;
        let (answer, end) = connection.read_to_end().await;
        assert!(matches!(end, End::Short | End::Reset));
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
    }
}

/// R-C26, R-C47, R-C71: what a layer says about other places is not followed; there is the digest, or there is not.
#[tokio::test]
async fn foreign_layers_are_not_fetched_elsewhere() {
    let (upstream, elsewhere) = (Upstream::start().await, Upstream::start_at([127, 0, 0, 3]).await);
    let config = upstream.blob(REPO, 10);
    let foreign = elsewhere.blob("x/y", 5000);
    let url = format!("{}{}", elsewhere.url(), blob("x/y", foreign));
    let windows = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","size":10,"digest":"{config}"}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "size":5000,"digest":"{foreign}","urls":["{url}"]}}]}}"#
    );
    let windows = upstream.put_manifest(REPO, Some("1"), media_type::OCI_MANIFEST, windows);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&windows);
    assert_eq!(
        larder.get(blob(REPO, foreign)).await.expect(404).error_code(),
        "BLOB_UNKNOWN"
    );
    assert_eq!(elsewhere.connections(), 0);
    // Pushed as a client may push it, it is a blob like others.
    upstream.put_blob("library/pushed", elsewhere.bytes(&foreign));
    larder
        .get(blob("library/pushed", foreign))
        .await
        .expect_content(&foreign);
}

/// R-C27, R-S25: referrers with `ns`, one document and nothing behind it; headers of pushes are not replayed.
#[tokio::test]
async fn referrers_by_a_mirror() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[]);
    upstream.artifact(REPO, image.manifest, "application/vnd.example.sig");
    upstream.on(On::Any).always().does([
        Fault::Header("OCI-Subject".into(), image.manifest.to_string()),
        Fault::Header("X-Registry-Supports-Signatures".into(), "1".into()),
        Fault::Header("Set-Cookie".into(), "a=b".into()),
    ]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let query = "artifactType=application%2Fvnd.example.sig&ns=docker.io";
    let listed = larder
        .get(format!("/v2/{REPO}/referrers/{}?{query}", image.manifest))
        .await
        .expect(200);
    assert_eq!(listed.header("content-type"), Some(media_type::OCI_INDEX));
    assert_eq!(listed.header("oci-namespace"), Some("docker.io"));
    assert_eq!(listed.json()["manifests"].as_array().unwrap().len(), 1);
    let fetched = larder.get(manifest(REPO, "1")).await.expect(200);
    for response in [&listed, &fetched] {
        for name in ["oci-subject", "x-registry-supports-signatures", "set-cookie"] {
            assert_eq!(response.header(name), None, "{response:?}");
        }
    }
}
