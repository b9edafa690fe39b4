//! The wire as podman, skopeo and CRI-O, and the Go libraries behind crane, cosign, oras, helm, Flux and Trivy use it.

use bytes::Bytes;
use larder::oci::media_type;
use serde_json::json;

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

/// R-C63: containers/image asks by GET only, each type on its line with schema 1 in the middle, and names the protocol.
#[tokio::test]
async fn podman_asks_for_a_manifest() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[10]);
    let index = upstream.index(REPO, "multi", &[image.manifest]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let kinds = [
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        media_type::DOCKER_LIST,
        media_type::OCI_INDEX,
    ];
    for _ in 0..2 {
        let ask = Ask::get(manifest("docker.io/library/alpine", "multi"));
        let ask = ask.header("Docker-Distribution-API-Version", "registry/2.0");
        let ask = kinds.iter().fold(ask, |ask, kind| ask.header("Accept", kind));
        let response = ask.send(larder.registry()).await;
        assert_eq!(response.header("content-type"), Some(media_type::OCI_INDEX));
        response.expect_content(&index.manifest);
    }
    // Never schema 1 first, nor at all (R-U53, R-S26).
    let asked = &upstream.matching(On::Manifests)[0];
    assert!(!asked.header("accept").unwrap().contains("v1+prettyjws"));
}

/// R-C66, R-C91, R-C95: who goes on after a break gets one Content-Range, from where it asked, while the blob still comes;
/// `Accept-Ranges` promises no more than that.
#[tokio::test]
async fn going_on_after_a_break() {
    const SIZE: usize = 700_000;
    let upstream = Upstream::start().await;
    let digest = upstream.blob(REPO, SIZE);
    let bytes = upstream.bytes(&digest);
    let gate = Gate::closed();
    upstream.on(On::Blob(digest).get()).stall_after(400_000, &gate);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut first = Ask::get(blob(REPO, digest)).open(larder.registry()).await;
    assert_eq!(first.headers.get("accept-ranges"), Some("bytes"));
    first.read_at_least(150_000).await;
    first.abort();
    for range in ["bytes=150000-", &format!("bytes=150000-{SIZE}"), "bytes=150000-699999"] {
        let mut again = Ask::get(blob(REPO, digest)).range(range).open(larder.registry()).await;
        assert_eq!(again.status, 206, "{range}");
        let place = format!("bytes 150000-{}/{SIZE}", SIZE - 1);
        assert_eq!(again.headers.all("content-range"), [place], "{range}");
        assert_eq!(again.headers.get("docker-content-digest"), Some(&*digest.to_string()));
        let read = again.read_at_least(50_000).await;
        assert!(*read == bytes[150_000..150_000 + read.len()], "{range}");
    }
    gate.open();
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    assert_eq!(upstream.count(On::Blobs), 1, "{}", upstream.print());
}

/// R-C77, R-C90: crane and oras take exactly 200 and the length that the manifest gives, by any spelling of the name.
#[tokio::test]
async fn whole_blobs_say_their_length() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[0, 1, 70_000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for name in [REPO, "alpine", "docker.io/library/alpine", "docker.io/alpine"] {
        let only = Ask::get(manifest(name, image.manifest)).header("Accept", image.media_type);
        let only = only.send(larder.registry()).await;
        assert_eq!(only.header("content-type"), Some(image.media_type));
        assert_eq!(only.header("content-length"), Some(&*image.bytes.len().to_string()));
        only.expect_content(&image.manifest);
        for digest in image.blobs() {
            let response = larder.get(blob(name, digest)).await;
            let size = upstream.bytes(&digest).len().to_string();
            assert_eq!(response.headers.all("content-length"), [size]);
            assert_eq!(response.headers.all("transfer-encoding"), [""; 0]);
            response.expect_content(&digest);
        }
    }
}

/// R-C54, R-C84, R-C94, R-C5: what a thing is for is told by types that Larder has never heard of; they come through as
/// they are.
#[tokio::test]
async fn any_type_of_config_and_layer() {
    let upstream = Upstream::start().await;
    let blob_of = |text: &'static str| (upstream.put_blob(REPO, Bytes::from_static(text.as_bytes())), text.len());
    let (config, config_size) = blob_of("{}");
    let (layer, layer_size) = blob_of("layer");
    let types = [
        (
            "application/vnd.buildkit.cacheconfig.v0",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        (
            "application/vnd.cncf.helm.config.v1+json",
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        ),
        (
            "application/vnd.aquasec.trivy.config.v1+json",
            "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip",
        ),
        ("application/vnd.wasm.config.v0+json", "application/wasm"),
    ];
    let mut made = Vec::new();
    for (at, (config_type, layer_type)) in types.iter().enumerate() {
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": {"mediaType": config_type, "digest": config, "size": config_size},
            "layers": [{"mediaType": layer_type, "digest": layer, "size": layer_size}],
        });
        // Helm writes `_` for the `+` of a version.
        let tag = format!("1.{at}.0_build.7");
        made.push((
            tag.clone(),
            upstream.put_manifest(REPO, Some(&tag), media_type::OCI_MANIFEST, document.to_string()),
        ));
    }
    // A cache of BuildKit's is an index with its config among the manifests.
    let cache = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_size},
            {"mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": config, "size": config_size},
        ],
    });
    let cache = upstream.put_manifest(REPO, Some("cache"), media_type::OCI_INDEX, cache.to_string());
    made.push(("cache".to_owned(), cache));
    let larder = Larder::start(&upstream, |_| {}).await;
    for (tag, digest) in made {
        for reference in [tag, digest.to_string()] {
            larder.get(manifest(REPO, reference)).await.expect_content(&digest);
        }
    }
    for digest in [config, layer] {
        larder.get(blob(REPO, digest)).await.expect_content(&digest);
    }
}

/// R-S10, R-C5: parameters of an upstream's Content-Type do not come through, and a type that is none is made good from
/// the document.
#[tokio::test]
async fn the_type_of_a_manifest_has_no_parameters() {
    let upstream = Upstream::start().await;
    let image = upstream.oci_image(REPO, "1", &[]);
    for (tag, said) in [
        ("1", format!("{}; charset=utf-8", media_type::OCI_MANIFEST)),
        ("2", "application/json".to_owned()),
        ("3", "text/plain; charset=utf-8".to_owned()),
        ("4", "application/octet-stream".to_owned()),
    ] {
        upstream.move_tag(REPO, tag, &image.manifest);
        upstream.on(On::Manifests).always().header("Content-Type", &said);
        let larder = Larder::start(&upstream, |_| {}).await;
        for response in [
            larder.head(manifest(REPO, tag)).await,
            larder.get(manifest(REPO, tag)).await,
        ] {
            assert_eq!(
                response.header("content-type"),
                Some(media_type::OCI_MANIFEST),
                "{said}: {response:?}"
            );
        }
        upstream.clear_script();
    }
}

/// R-C61, R-C69: the door asks for a login or lets in, and a login that opens nothing is no matter.
#[tokio::test]
async fn logins_that_nobody_asked_for() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for login in ["Basic Og==", "Basic aHViOnBhc3N3b3Jk", "Bearer abc.def", "Nonsense", ""] {
        let ping = Ask::get("/v2/").header("Authorization", login);
        ping.send(larder.registry()).await.expect(200);
        let ask = Ask::get(manifest(REPO, "1")).header("Authorization", login);
        ask.send(larder.registry()).await.expect_content(&image.manifest);
    }
    assert_eq!(upstream.count(On::Any.authorized()), 0);
}
