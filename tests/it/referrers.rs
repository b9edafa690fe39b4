//! `GET` of referrers: by the upstream's API, by the fallback tag, or truly none.

use larder::oci::{Digest, media_type};

use crate::support::client::Response;
use crate::support::larder::Larder;
use crate::support::upstream::{Image, On, ReferrersApi, Upstream};

const REPO: &str = "library/alpine";
const SIGNATURE: &str = "application/vnd.example.sig";

async fn signed() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[10]);
    upstream.artifact(REPO, image.manifest, SIGNATURE);
    upstream.artifact(REPO, image.manifest, "application/vnd.example.sbom");
    (upstream, image)
}

fn path(digest: &Digest) -> String {
    format!("/v2/{REPO}/referrers/{digest}")
}

#[track_caller]
fn listed(response: Response) -> usize {
    let response = response.expect(200);
    assert_eq!(response.header("content-type"), Some(media_type::OCI_INDEX));
    let index = response.json();
    assert_eq!(index["schemaVersion"], 2);
    assert_eq!(index["mediaType"], media_type::OCI_INDEX);
    index["manifests"].as_array().unwrap().len()
}

/// R-S20: with and without a filter, whether or not the upstream filters; pages merged.
#[tokio::test]
async fn by_the_api() {
    for api in [ReferrersApi::On, ReferrersApi::Filtering] {
        let (upstream, image) = signed().await;
        upstream.set_referrers(api);
        upstream.set_listing(|listing| listing.page = Some(1));
        let larder = Larder::start(&upstream, |_| {}).await;
        let all = larder.get(path(&image.manifest)).await;
        assert_eq!(all.header("oci-filters-applied"), None);
        assert_eq!(listed(all), 2);
        let filtered = larder
            .get(format!("{}?artifactType={SIGNATURE}", path(&image.manifest)))
            .await;
        assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
        let first = filtered.json()["manifests"][0].clone();
        assert_eq!(first["artifactType"], SIGNATURE);
        assert_eq!(first["annotations"]["org.example.made-for"], "tests");
        assert_eq!(listed(filtered), 1);
        assert_eq!(listed(larder.get(path(&Digest::sha256(b"nobody"))).await), 0);
    }
}

/// R-S21, R-W8: no API, but the tag that old clients write.
#[tokio::test]
async fn by_the_fallback_tag() {
    let (upstream, image) = signed().await;
    upstream.put_referrers_tag(REPO, image.manifest);
    upstream.set_referrers(ReferrersApi::Off);
    let larder = Larder::start(&upstream, |_| {}).await;
    assert_eq!(listed(larder.get(path(&image.manifest)).await), 2);
    let filtered = larder
        .get(format!("{}?artifactType={SIGNATURE}", path(&image.manifest)))
        .await;
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(listed(filtered), 1);
    assert_eq!(listed(larder.get(path(&Digest::sha256(b"nobody"))).await), 0);

    let (upstream, image) = signed().await;
    upstream.put_referrers_tag(REPO, image.manifest);
    upstream.on(On::Referrers).always().html_page();
    let larder = Larder::start(&upstream, |_| {}).await;
    assert_eq!(listed(larder.get(path(&image.manifest)).await), 2);
}

/// R-C81: a failure is never "there are none".
#[tokio::test]
async fn a_failure_is_no_empty_list() {
    for status in [500, 502, 503, 401, 403, 429] {
        let (upstream, image) = signed().await;
        upstream.on(On::Referrers).always().status(status);
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(path(&image.manifest)).await;
        assert!(matches!(response.status, 502..=504), "{status}: {response:?}");
        response.error_code();
    }
    let (upstream, image) = signed().await;
    upstream.set_referrers(ReferrersApi::Off);
    upstream.on(On::Manifests).always().status(503);
    let larder = Larder::start(&upstream, |_| {}).await;
    let response = larder.get(path(&image.manifest)).await;
    assert!(matches!(response.status, 502..=504), "{response:?}");
    upstream.clear_script();
    assert_eq!(listed(larder.get(path(&image.manifest)).await), 0);
}

#[tokio::test]
async fn what_is_held_outlives_the_upstream() {
    let (upstream, image) = signed().await;
    let larder = Larder::start(&upstream, |t| {
        t.cache("tag_ttl", "0s");
    })
    .await;
    assert_eq!(listed(larder.get(path(&image.manifest)).await), 2);
    upstream.go_down().await;
    let stale = larder.get(path(&image.manifest)).await;
    assert!(stale.header("warning").is_some());
    assert_eq!(listed(stale), 2);
    let larder = larder.restart().await;
    assert_eq!(listed(larder.get(path(&image.manifest)).await), 2);
}

#[tokio::test]
async fn an_invalid_digest() {
    let (upstream, _) = signed().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for digest in ["sha256:short", "latest"] {
        let response = larder.get(format!("/v2/{REPO}/referrers/{digest}")).await.expect(400);
        assert_eq!(response.error_code(), "DIGEST_INVALID");
    }
    assert_eq!(upstream.connections(), 0);
}
