//! The wire as dockerd's own store uses it: no `ns`, bare Hub names, separate Accept lines, errors that it parses.

use larder::oci::{Digest, media_type};

use crate::support::client::Ask;
use crate::support::larder::Larder;
use crate::support::upstream::{On, ReferrersApi, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/nginx";
/// Each a line of its own (R-C39).
const ACCEPTED: [&str; 6] = [
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
    media_type::OCI_INDEX,
    media_type::OCI_MANIFEST,
];

/// R-C38, R-C39, R-C41, R-C68: whatever their order and number, lines of Accept change nothing; nor does their absence.
#[tokio::test]
async fn separate_accept_lines_in_any_order() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[10]);
    let index = upstream.index(REPO, "latest", &[image.manifest]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut lines = ACCEPTED;
    for round in 0..8 {
        fastrand::shuffle(&mut lines);
        let with = |ask: Ask| {
            lines
                .iter()
                .take(round)
                .fold(ask, |ask, line| ask.header("Accept", line))
        };
        let head = with(Ask::head(manifest(REPO, "latest")))
            .send(larder.registry())
            .await
            .expect(200);
        assert_eq!(head.header("content-type"), Some(media_type::OCI_INDEX));
        assert_eq!(head.header("docker-content-digest"), Some(&*index.manifest.to_string()));
        let got = with(Ask::get(manifest(REPO, index.manifest)))
            .send(larder.registry())
            .await;
        got.expect_content(&index.manifest);
        with(Ask::get(manifest(REPO, image.manifest)))
            .send(larder.registry())
            .await
            .expect_content(&image.manifest);
    }
    assert_eq!(upstream.count(On::Manifest("latest".into())), 1, "{}", upstream.print());
    assert_eq!(upstream.count(On::Manifests.get()), 2, "{}", upstream.print());
}

/// R-C35, R-C49, R-C61: the door is open whatever becomes of the upstream, and says which protocol this is; `/` is no locked
/// door either (R-C93).
#[tokio::test]
async fn the_door_does_not_depend_on_the_upstream() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    upstream.on(On::Any).always().rate_limit(Some("3600"));
    let refused = larder.get(manifest(REPO, "1")).await.expect(503);
    // R-S24: whole seconds.
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
    for is_down in [false, true] {
        if is_down {
            upstream.go_down().await;
        }
        for _ in 0..50 {
            let ping = larder.get("/v2/").await.expect(200);
            assert_eq!(ping.header("docker-distribution-api-version"), Some("registry/2.0"));
        }
        larder.get("/").await.expect(200);
    }
}

/// R-C45, R-S3, R-C10: every refusal has an error in it that dockerd can read, and comes before any byte of content.
#[tokio::test]
async fn every_error_can_be_read() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[10]);
    upstream.on(On::Manifest("500".into())).always().status(500);
    upstream.on(On::Manifest("429".into())).always().rate_limit(None);
    upstream.on(On::Manifest("403".into())).always().status(403);
    upstream.on(On::Manifest("html".into())).always().html_page();
    upstream.on(On::Manifest("gone".into())).always().drop_connection();
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "deny", vec!["library/forbidden"]);
    })
    .await;
    let digest = Digest::sha256(b"x");
    let asks = [
        (Ask::get(manifest(REPO, "none")), 404),
        (Ask::get(manifest(REPO, digest)), 404),
        (Ask::get(blob(REPO, digest)), 404),
        (Ask::get(blob(REPO, "sha256:x")), 400),
        (Ask::get(manifest("library/forbidden", "1")), 403),
        (Ask::get(manifest("UPPER", "1")), 400),
        (Ask::get(manifest("evil.example/x", "1")), 404),
        (Ask::get(format!("{}?ns=evil.example", manifest(REPO, "1"))), 404),
        (Ask::get("/v2/nothing"), 404),
        (Ask::get("/v2/library/none/tags/list"), 404),
        (Ask::get(format!("/v2/{REPO}/tags/list?n=x")), 400),
        (Ask::new("PUT", manifest(REPO, "1")), 405),
        (Ask::new("DELETE", manifest(REPO, digest)), 405),
        (Ask::new("POST", format!("/v2/{REPO}/blobs/uploads/")), 405),
        (Ask::get(manifest(REPO, "500")), 503),
        (Ask::get(manifest(REPO, "403")), 404),
        (Ask::get(manifest(REPO, "html")), 502),
        (Ask::get(manifest(REPO, "gone")), 503),
        (Ask::get(manifest(REPO, "429")), 503),
    ];
    for (ask, status) in asks {
        let what = format!("{ask:?}");
        let response = ask.open(larder.registry()).await.rest().await;
        assert_eq!(response.status, status, "{what}: {response:?}");
        assert_eq!(
            response.header("docker-distribution-api-version"),
            Some("registry/2.0"),
            "{what}"
        );
        assert!(!response.error_code().is_empty(), "{what}");
        assert_eq!(
            response.header("cache-control"),
            None,
            "{what}: no cache in front keeps an error"
        );
        if status == 405 {
            assert_eq!(response.header("allow"), Some("GET, HEAD"));
            assert_eq!(response.header("connection"), Some("close"));
        }
    }
}

/// R-S27: what a cache in front may keep, hot and cold, in whole and in part: what a digest names for ever, all else not at all.
#[tokio::test]
async fn what_a_cache_in_front_may_keep() {
    const FOR_EVER: &str = "max-age=31536000, immutable";
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[70_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let (by_digest, layer) = (manifest(REPO, image.manifest), blob(REPO, image.layers[0]));
    let unchanged = |path: &str, digest: &Digest| Ask::get(path).header("If-None-Match", format!("\"{digest}\""));
    for _ in 0..2 {
        for (ask, status, wanted) in [
            (Ask::get("/v2/"), 200, "no-cache"),
            (Ask::get(manifest(REPO, "1")), 200, "no-cache"),
            (Ask::head(manifest(REPO, "1")), 200, "no-cache"),
            (unchanged(&manifest(REPO, "1"), &image.manifest), 304, "no-cache"),
            (Ask::get(format!("/v2/{REPO}/tags/list")), 200, "no-cache"),
            (
                Ask::get(format!("/v2/{REPO}/referrers/{}", image.manifest)),
                200,
                "no-cache",
            ),
            (Ask::get("/v2/_catalog"), 200, "no-cache"),
            (Ask::get(&by_digest), 200, FOR_EVER),
            (Ask::head(&by_digest), 200, FOR_EVER),
            (unchanged(&by_digest, &image.manifest), 304, FOR_EVER),
            (Ask::get(&layer), 200, FOR_EVER),
            (Ask::head(&layer), 200, FOR_EVER),
            (Ask::get(&layer).range("bytes=5-9"), 206, FOR_EVER),
            (Ask::get(&layer).range("bytes=5-9,20-29"), 206, FOR_EVER),
            (unchanged(&layer, &image.layers[0]), 304, FOR_EVER),
        ] {
            let what = format!("{ask:?}");
            let response = ask.send(larder.registry()).await.expect(status);
            assert_eq!(response.header("cache-control"), Some(wanted), "{what}");
        }
    }
}

/// R-C33, R-C70: what is looked for beside each image and is mostly not there costs the upstream one question, not one a
/// pull.
#[tokio::test]
async fn what_is_not_there_is_cheap() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[]);
    upstream.set_referrers(ReferrersApi::Off);
    let larder = Larder::start(&upstream, |_| {}).await;
    let signature = format!("sha256-{}.sig", image.manifest.hex());
    let list = format!("/v2/{REPO}/referrers/{}", image.manifest);
    for _ in 0..10 {
        let unsigned = larder.get(manifest(REPO, &signature)).await.expect(404);
        assert_eq!(unsigned.error_code(), "MANIFEST_UNKNOWN");
        let none = larder.get(&list).await.expect(200);
        assert_eq!(none.json()["manifests"].as_array().unwrap().len(), 0);
    }
    assert_eq!(upstream.count(On::Manifest(signature)), 1, "{}", upstream.print());
    assert_eq!(upstream.count(On::Referrers), 1, "{}", upstream.print());
    let fallback = format!("sha256-{}", image.manifest.hex());
    assert_eq!(upstream.count(On::Manifest(fallback)), 1, "{}", upstream.print());
}

/// R-C81: "unsigned" is never what an upstream's trouble means, and is not believed when nothing may be trusted for long.
#[tokio::test]
async fn a_signature_that_comes_later_is_seen() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    let signature = format!("sha256-{}.sig", image.manifest.hex());
    let list = format!("/v2/{REPO}/referrers/{}", image.manifest);
    upstream.on(On::Manifest(signature.clone())).always().status(503);
    let unknown = larder.get(manifest(REPO, &signature)).await;
    assert!(unknown.status >= 500, "{unknown:?}");
    upstream.clear_script();
    larder.get(manifest(REPO, &signature)).await.expect(404);
    assert_eq!(larder.get(&list).await.json()["manifests"].as_array().unwrap().len(), 0);
    upstream.move_tag(REPO, &signature, &image.manifest);
    upstream.artifact(REPO, image.manifest, "application/vnd.example.sig");
    larder.get(manifest(REPO, &signature)).await.expect(200);
    assert_eq!(larder.get(&list).await.json()["manifests"].as_array().unwrap().len(), 1);
}

/// R-C34, R-C85: who polls tags for many asks the upstream once a `tag_ttl`, and all who poll at once share that.
#[tokio::test]
async fn polling_tags() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let gate = crate::support::gate::Gate::closed();
    upstream.on(On::Tags).stall_headers(&gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let path = format!("/v2/{REPO}/tags/list");
    let asking: Vec<_> = (0..12)
        .map(|_| tokio::spawn(Ask::get(&path).send(larder.registry())))
        .collect();
    gate.wait_for_arrivals(1).await;
    gate.open();
    for asked in asking {
        asked.await.unwrap().expect(200);
    }
    larder.get(&path).await.expect(200);
    assert_eq!(upstream.count(On::Tags), 1, "{}", upstream.print());
    // R-U34: nobody's catalogue is asked for.
    larder.get("/v2/_catalog").await.expect(200);
    assert_eq!(upstream.count(On::Path("/v2/_catalog".into())), 0);
}
