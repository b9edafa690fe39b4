//! Answers that are not quite what was asked for.

use larder::oci::Digest;

use crate::support::larder::Larder;
use crate::support::manifest;
use crate::support::upstream::{On, ReferrersApi, Upstream};

const REPO: &str = "library/alpine";
const OTHER: &str = "library/other";

/// L8: a HEAD that names another manifest is no proof that this one is there.
#[tokio::test]
async fn a_head_about_something_else_shows_nothing() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[10]);
    let public = upstream.image(OTHER, "1", &[10]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    let said = public.manifest.to_string();
    upstream.on(On::Manifests.repo(OTHER)).always().answer(
        200,
        &[("Content-Type", public.media_type), ("Docker-Content-Digest", &said)],
        public.bytes.clone(),
    );
    let asked = manifest(OTHER, image.manifest);
    assert_eq!(larder.get(&asked).await.status, 502);
    upstream.clear_script();
    larder.get(&asked).await.expect(404);
}

/// R-C81: what a failing upstream did not confirm is not handed on as a fresh list, again and again.
#[tokio::test]
async fn an_unconfirmed_fallback_tag_is_no_fresh_list() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[10]);
    upstream.artifact(REPO, image.manifest, "application/x-sig");
    upstream.put_referrers_tag(REPO, image.manifest);
    upstream.set_referrers(ReferrersApi::Off);
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("tag_ttl", "0s");
    })
    .await;
    let path = format!("/v2/{REPO}/referrers/{}", image.manifest);
    assert!(larder.get(&path).await.expect(200).header("warning").is_none());
    upstream.on(On::Manifests).always().status(503);
    for _ in 0..2 {
        let stale = larder.get(&path).await.expect(200);
        assert!(stale.header("warning").is_some(), "{stale:?}");
    }
    let unknown = Digest::sha256(b"nobody");
    let unknown = larder.get(format!("/v2/{REPO}/referrers/{unknown}")).await;
    assert!(unknown.status >= 500, "{unknown:?}");
}

/// Offline a HEAD is as good as the GET that follows it.
#[tokio::test]
async fn offline_what_is_gone_is_not_there() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    let stopped = larder.stop().await;
    let held = stopped.cache().join("blobs").join(image.manifest.algorithm().as_str());
    std::fs::remove_file(held.join(image.manifest.hex())).unwrap();
    let larder = stopped
        .start(|toml| {
            toml.cache("offline", true);
        })
        .await;
    larder.get(manifest(REPO, "1")).await.expect(404);
    larder.head(manifest(REPO, "1")).await.expect(404);
}
