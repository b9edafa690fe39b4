//! What users of other caches have suffered from, played again.

use larder::oci::media_type;
use serde_json::json;

use crate::support::client::Ask;
use crate::support::larder::Larder;
use crate::support::toml::Toml;
use crate::support::upstream::{On, TokenPolicy, Upstream, basic};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

/// A cache behind a cache behind a cache: HEAD and Range of what none of them holds, one transfer over each link, and each
/// serves on when the one behind it is gone.
#[tokio::test]
async fn caches_in_a_row() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000, 5_000]);
    let index = upstream.index(REPO, "multi", &[image.manifest]);
    let behind = |larder: &Larder| format!("http://{}", larder.registry());
    let first = Larder::start(&upstream, |_| {}).await;
    let second = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "url", behind(&first));
    })
    .await;
    let third = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "url", behind(&second));
    })
    .await;
    let layer = image.layers[0];
    let head = third.head(manifest(REPO, "multi")).await.expect(200);
    assert_eq!(head.header("docker-content-digest"), Some(&*index.manifest.to_string()));
    assert_eq!(
        third.head(blob(REPO, layer)).await.expect(200).header("content-length"),
        Some("300000")
    );
    assert_eq!(upstream.count(On::Blobs.get()), 0, "{}", upstream.print());
    let part = Ask::get(blob(REPO, layer))
        .range("bytes=100000-199999")
        .send(third.registry())
        .await
        .expect(206);
    assert!(part.body == upstream.bytes(&layer)[100_000..200_000]);
    for digest in [index.manifest, image.manifest] {
        third.get(manifest(REPO, digest)).await.expect_content(&digest);
    }
    for digest in image.blobs() {
        third.get(blob(REPO, digest)).await.expect_content(&digest);
        third.until_held(&blob(REPO, digest)).await;
        assert_eq!(upstream.count(On::Blob(digest).get()), 1, "{}", upstream.print());
    }
    third.get(manifest(REPO, "none")).await.expect(404);
    third.get(format!("/v2/{REPO}/tags/list")).await.expect(200);
    drop(second);
    upstream.go_down().await;
    for larder in [&first, &third] {
        larder
            .get(manifest(REPO, "multi"))
            .await
            .expect_content(&index.manifest);
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
    }
}

/// An image is taken away; another that shares a layer with it is whole, also where nothing can be fetched again.
#[tokio::test]
async fn a_layer_of_two_images() {
    let upstream = Upstream::start().await;
    let one = upstream.oci_image(REPO, "1", &[50_000]);
    upstream.mount(&one.layers[0], "library/busybox");
    let config = upstream.put_blob("library/busybox", "{\"os\":\"linux\"}");
    let two = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 14},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": one.layers[0], "size": 50_000}],
    });
    let two = upstream.put_manifest("library/busybox", Some("1"), media_type::OCI_MANIFEST, two.to_string());
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    larder.get(manifest("library/busybox", "1")).await.expect_content(&two);
    let mut wanted = one.blobs();
    for (repo, digests) in [
        (REPO, &mut wanted),
        ("library/busybox", &mut vec![config, one.layers[0]]),
    ] {
        for digest in digests {
            larder.get(blob(repo, *digest)).await.expect_content(digest);
            larder.until_held(&blob(repo, *digest)).await;
        }
    }
    upstream.go_down().await;
    let remove = Ask::new("DELETE", "/api/v1/images/alpine:1").header("Content-Type", "application/json");
    remove.body("null").send(larder.admin()).await.expect(200);
    larder.get(manifest("library/busybox", "1")).await.expect_content(&two);
    for digest in [config, one.layers[0]] {
        larder
            .get(blob("library/busybox", digest))
            .await
            .expect_content(&digest);
    }
    let larder = larder.restart().await;
    larder
        .get(blob("library/busybox", one.layers[0]))
        .await
        .expect_content(&one.layers[0]);
}

/// R-X8: who may have nothing at all is told nothing, not even which registries there are or what a name may look like.
#[tokio::test]
async fn who_may_have_nothing() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[100]);
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("htpasswd");
    std::fs::write(
        &users,
        format!(
            "anna:{}
",
            bcrypt::hash("anna", 4).unwrap()
        ),
    )
    .unwrap();
    for (rule, status) in [
        (json!([{"from": ["192.0.2.0/24"], "may": "fetch"}]), 403),
        (json!([{"who": "anna", "may": "fetch"}]), 401),
    ] {
        let larder = Larder::start(&upstream, |t: &mut Toml| {
            let rule: toml::Value = serde_json::from_value(rule).unwrap();
            t.set(&["access"], "rule", rule);
            if status == 401 {
                t.set(&["access"], "htpasswd_file", users.to_str().unwrap());
            }
        })
        .await;
        for path in [
            "/v2/".to_owned(),
            "/v2/_catalog".to_owned(),
            manifest(REPO, "1"),
            manifest("evil.example/x", "1"),
            manifest("UPPER", "1"),
            blob(REPO, image.layers[0]),
            format!("{}?ns=evil.example", manifest(REPO, "1")),
            format!("/v2/{REPO}/tags/list"),
        ] {
            larder.get(&path).await.expect(status);
        }
    }
    assert_eq!(upstream.connections(), 0);
}

/// R-C1, R-C93: a private image that one user had is there for that user while its registry is away, and for nobody else; who
/// has to log in is told so at the image itself, and nobody is at `/`.
#[tokio::test]
async fn a_private_image_while_its_registry_is_away() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new().credentials("larder", "hub-password"));
    let image = upstream.image("acme/app", "1", &[5000]);
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("htpasswd");
    let line = |user: &str| format!("{user}:{}\n", bcrypt::hash(user, 4).unwrap());
    std::fs::write(&users, line("anna") + &line("ben")).unwrap();
    let larder = Larder::start(&upstream, |t: &mut Toml| {
        t.cache("tag_ttl", "0s");
        t.upstream("docker.io", "username", "larder");
        t.upstream("docker.io", "password", "hub-password");
        t.set(&["access"], "htpasswd_file", users.to_str().unwrap());
        let rules = json!([{"who": "anna", "may": "fetch", "private": true}, {"may": "fetch"}]);
        let rules: toml::Value = serde_json::from_value(rules).unwrap();
        t.set(&["access"], "rule", rules);
    })
    .await;
    let asked = async |who: Option<&str>, path: String| {
        let ask = Ask::get(path);
        let ask = match who {
            Some(who) => ask.header("Authorization", basic(who, who)),
            None => ask,
        };
        ask.send(larder.registry()).await
    };
    let (tag, layer) = (manifest("acme/app", "1"), blob("acme/app", image.layers[0]));
    for path in [&tag, &layer] {
        let challenge = asked(None, path.clone()).await.expect(401);
        assert_eq!(challenge.headers.all("www-authenticate").len(), 1);
        asked(Some("anna"), path.clone()).await.expect(200);
    }
    larder.get("/").await.expect(200);
    upstream.go_down().await;
    for path in [&tag, &layer] {
        asked(Some("anna"), path.clone()).await.expect(200);
        asked(Some("ben"), path.clone()).await.expect(404);
        asked(None, path.clone()).await.expect(401);
    }
}
