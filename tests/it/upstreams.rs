//! Registries as they are: those that keep all below a name or a path, those that err in their own words, and stores that
//! unpack what they send.

use std::io::Write as _;

use larder::oci::Digest;
use serde_json::json;

use crate::support::larder::Larder;
use crate::support::upstream::{Fault, LinkStyle, On, TokenPolicy, Upstream};
use crate::support::{blob, manifest, noise};

const REPO: &str = "library/alpine";

/// R-U48, R-U49, R-U50: a Harbor project, an Artifactory repository, GitLab's dependency proxy: everything lies below a name,
/// in paths and in what a token is for; a base path comes before `/v2/` beside it.
#[tokio::test]
async fn below_a_name() {
    for (base, prefix) in [("", "hub-proxy"), ("/artifactory", "group/dependency_proxy/containers")] {
        let upstream = Upstream::start().await;
        upstream.set_base_path(base);
        let inner = format!("{prefix}/{REPO}");
        let image = upstream.oci_image(&inner, "1", &[5000]);
        upstream.artifact(&inner, image.manifest, "application/vnd.example.sig");
        upstream.set_listing(|listing| {
            listing.page = Some(1);
            listing.link = LinkStyle::Relative;
        });
        upstream.move_tag(&inner, "2", &image.manifest);
        upstream.require_token(TokenPolicy::new());
        let larder = Larder::start(&upstream, |t| {
            t.upstream("docker.io", "url", format!("{}{base}/v2/{prefix}", upstream.url()));
        })
        .await;
        for name in ["alpine", REPO, "docker.io/library/alpine"] {
            larder.get(manifest(name, "1")).await.expect_content(&image.manifest);
        }
        let layer = image.layers[0];
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
        let tags = larder.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
        assert_eq!(tags.json(), json!({"name": REPO, "tags": ["1", "2"]}));
        let referrers = larder
            .get(format!("/v2/{REPO}/referrers/{}", image.manifest))
            .await
            .expect(200);
        assert_eq!(referrers.json()["manifests"].as_array().unwrap().len(), 1);
        for asked in upstream.matching(On::Token) {
            assert_eq!(asked.query_values("scope"), [format!("repository:{inner}:pull")]);
        }
        for asked in upstream.requests().iter().filter(|r| r.path.contains("/v2/")) {
            assert!(
                asked.path.starts_with(&format!("{base}/v2/{inner}/")),
                "{}",
                upstream.print()
            );
        }
        // Held under its own name: it is the Hub's image, wherever it came from.
        let held = larder.get("/v2/_catalog").await.expect(200).json();
        assert_eq!(held["repositories"], json!(["docker.io/library/alpine"]));
    }
}

/// The same for a mirror, whose name the registry behind it does not share.
#[tokio::test]
async fn a_mirror_below_a_name() {
    let (upstream, mirror) = (Upstream::start().await, Upstream::start().await);
    let near = mirror.image("hub-proxy/library/alpine", "1", &[100]);
    let far = upstream.image("library/busybox", "1", &[100]);
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "mirrors", vec![format!("{}/v2/hub-proxy/", mirror.url())]);
    })
    .await;
    larder.get(manifest("alpine", "1")).await.expect_content(&near.manifest);
    assert_eq!(upstream.connections(), 0);
    larder.get(manifest("busybox", "1")).await.expect_content(&far.manifest);
    assert_eq!(
        upstream.count(On::Manifests.repo("library/busybox")),
        1,
        "{}",
        upstream.print()
    );
}

/// R-U26: a store that unpacks what was pushed packed says so; what does not fit the digest is asked for as it lies there.
/// What was pushed unpacked is right as it comes.
#[tokio::test]
async fn a_store_that_unpacks() {
    for size in [3_000, 400_000] {
        let upstream = Upstream::start().await;
        let plain = noise(7, size);
        let packed = [&b"\x1f\x8b\x08"[..], &noise(8, size / 2)].concat();
        let layer = upstream.put_blob(REPO, packed.clone());
        let image = upstream.blob(REPO, size);
        let stored = Fault::Header("X-Goog-Stored-Content-Encoding".into(), "gzip".into());
        upstream.on(On::Blob(image).get()).always().does([stored.clone()]);
        // The first time unpacked, and packed when it is asked for so.
        upstream
            .on(On::Blob(layer).get())
            .always()
            .does([stored.clone(), Fault::Header("Content-Encoding".into(), "gzip".into())]);
        upstream
            .on(On::Blob(layer).get())
            .does([stored, Fault::WrongBytes(plain.into()), Fault::Chunked]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(blob(REPO, layer)).await;
        assert_eq!(response.header("content-encoding"), None, "{response:?}");
        assert!(response.expect_content(&layer) == packed);
        let asked: Vec<_> = upstream.matching(On::Blob(layer));
        let forms: Vec<_> = asked.iter().map(|r| r.header("accept-encoding").unwrap()).collect();
        assert_eq!(forms, ["identity", "gzip"], "{}", upstream.print());
        larder.get(blob(REPO, image)).await.expect_content(&image);
        assert_eq!(upstream.count(On::Blob(image)), 1, "{}", upstream.print());
    }
}

/// L2: and if it does not fit as it lies there either, nobody gets it.
#[tokio::test]
async fn a_store_that_unpacks_something_else() {
    let upstream = Upstream::start().await;
    let layer = upstream.blob(REPO, 200_000);
    upstream.on(On::Blob(layer).get()).always().does([
        Fault::Header("Warning".into(), "214 gcs \"Transformation Applied\"".into()),
        Fault::FlipByte(100),
    ]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let refused = larder.get(blob(REPO, layer)).await.expect(502);
    assert!(!refused.error_code().is_empty());
    assert_eq!(upstream.count(On::Blob(layer)), 2, "{}", upstream.print());
    upstream.clear_script();
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
}

/// R-U12, R-U49: "not there" in the words of Harbor, Nexus and others is 404 to the client, with a message that a person can
/// read; HEAD of what Harbor has not cached yet is not believed (R-U27).
#[tokio::test]
async fn errors_in_their_own_words() {
    let json = ("Content-Type", "application/json");
    let text = ("Content-Type", "text/plain");
    for (status, header, body, wanted) in [
        (
            404,
            json,
            r#"{"errors":[{"code":"NOT_FOUND","message":"artifact not found"}]}"#,
            404,
        ),
        (404, json, r#"{"code":"NOT_FOUND"}"#, 404),
        (404, text, "404 page not found", 404),
        (
            403,
            json,
            r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#,
            404,
        ),
        (401, json, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#, 404),
        (
            500,
            json,
            r#"{"errors":[{"code":"UNKNOWN","message":"unknown: internal"}]}"#,
            503,
        ),
        (
            412,
            json,
            r#"{"errors":[{"code":"PROJECTPOLICYVIOLATION","message":"severity"}]}"#,
            502,
        ),
        (400, text, "", 502),
    ] {
        let upstream = Upstream::start().await;
        upstream.on(On::Manifests).always().answer(status, &[header], body);
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(manifest(REPO, "1")).await;
        assert_eq!(response.status, wanted, "{status} {body}: {response:?}");
        assert!(!response.error_code().is_empty());
    }
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[100]);
    upstream.on(On::Manifests).always().no_head(404);
    let larder = Larder::start(&upstream, |_| {}).await;
    let head = larder.head(manifest(REPO, "1")).await.expect(200);
    assert_eq!(head.header("docker-content-digest"), Some(&*image.manifest.to_string()));
    // A HEAD that tells another length than the GET brings is not kept.
    upstream.clear_script();
    upstream
        .on(On::Manifests)
        .always()
        .does([Fault::NoHeader("Etag".into())]);
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
}

/// R-U41: quay's bursts of 502 and 504 are waited out, each question a few times and no more.
#[tokio::test]
async fn bursts_of_502() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for status in [502, 504] {
        let image = upstream.image(REPO, "1", &[5000]);
        upstream.on(On::Any.get()).next(2).status(status);
        larder
            .get(manifest(REPO, image.manifest))
            .await
            .expect_content(&image.manifest);
        upstream.on(On::Blobs.get()).next(2).status(status);
        let digest = upstream.blob(REPO, 1000);
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        upstream.clear_script();
    }
    upstream.forget();
    upstream.on(On::Any).always().status(502);
    larder.get(manifest(REPO, "2")).await.expect(503);
    assert!(upstream.requests().len() <= 6, "{}", upstream.print());
}

/// R-U24, R-U10, R-S23: blobs come from wherever the registry sends us, several hosts in turn, none of them named anywhere; the
/// login goes to none (L7).
#[tokio::test]
async fn stores_of_any_name() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[5000, 6000]);
    let cdn = upstream.start_cdn().await;
    upstream.require_basic("me", "secret-of-the-registry");
    for status in [301, 302, 303, 307, 308] {
        upstream.clear_script();
        let target = format!("{}/storage/{{digest}}?X-Signature=signed", cdn.url());
        upstream.on(On::Blobs.get()).always().redirect_to(target, status);
        let larder = Larder::start(&upstream, |t| {
            t.upstream("docker.io", "username", "me");
            t.upstream("docker.io", "password", "secret-of-the-registry");
            t.everybody_may_pull();
        })
        .await;
        let layer = image.layers[0];
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
    }
    for asked in cdn.requests() {
        assert_eq!(asked.header("authorization"), None);
        assert_eq!(asked.header("accept-encoding"), Some("identity"));
    }
    assert_eq!(cdn.count(On::Storage), 5);
}

/// R-C16: a held file that is not as long as it was is not served as if it were all.
#[tokio::test]
async fn a_held_file_that_was_cut() {
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, 100_000);
    let larder = Larder::start(&upstream, |_| {}).await;
    for cut in [0u64, 50_000] {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
        larder.until_held(&blob(REPO, digest)).await;
        let path = larder.cache().join("blobs/sha256").join(digest.hex());
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(cut)
            .unwrap();
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
    // And one that is longer is no other blob.
    larder.until_held(&blob(REPO, digest)).await;
    let path = larder.cache().join("blobs/sha256").join(digest.hex());
    std::fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"more")
        .unwrap();
    let response = larder.get(blob(REPO, digest)).await.expect(200);
    assert_eq!(Digest::sha256(&response.body), digest);
}
