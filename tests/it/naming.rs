//! How an image is named, and that the world is closed (L10, R-D1, R-D2, R-S4 to R-S6).

use larder::oci::Digest;

use crate::support::client::{Ask, Connection, End};
use crate::support::larder::Larder;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest};

/// All spellings reach the same stored content.
#[tokio::test]
async fn one_image_many_names() {
    let upstream = Upstream::start().await;
    let image = upstream.image("library/alpine", "3.22", &[1000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    for repo in [
        "library/alpine",
        "alpine",
        "docker.io/library/alpine",
        "docker.io/alpine",
        "index.docker.io/library/alpine",
        "hub/library/alpine",
        "hub/alpine",
    ] {
        for ns in ["", "?ns=docker.io"] {
            let response = larder.get(manifest(repo, "3.22") + ns).await;
            let namespace = (!ns.is_empty()).then_some("docker.io");
            assert_eq!(response.header("oci-namespace"), namespace);
            response.expect_content(&image.manifest);
            larder.get(manifest(repo, image.manifest) + ns).await.expect(200);
            let layer = image.layers[0];
            larder.get(blob(repo, layer) + ns).await.expect_content(&layer);
        }
    }
    assert_eq!(upstream.count(On::Any), 2, "{}", upstream.print());
    assert!(
        upstream
            .requests()
            .iter()
            .all(|r| r.path.starts_with("/v2/library/alpine/"))
    );
}

/// Two upstreams hold different things under one name.
#[tokio::test]
async fn upstreams_are_told_apart() {
    let (hub, other) = (Upstream::start().await, Upstream::start().await);
    let at_hub = hub.image("team/app", "1", &[]);
    let at_other = other.image("team/app", "1", &[]);
    let name = other.address().to_string();
    let larder = Larder::start(&hub, |t| {
        t.upstream("ghcr.io", "url", other.url());
        t.upstream("ghcr.io", "aliases", vec!["gh"]);
        t.upstream(&name, "url", other.url());
    })
    .await;
    larder
        .get(manifest("team/app", "1"))
        .await
        .expect_content(&at_hub.manifest);
    for path in [
        manifest("ghcr.io/team/app", "1"),
        manifest("gh/team/app", "1"),
        manifest("team/app", "1") + "?ns=ghcr.io",
        manifest("team/app", "1") + "?ns=GHCR.IO",
        manifest("team/app", "1") + "?ns=" + &name,
    ] {
        larder.get(&path).await.expect_content(&at_other.manifest);
    }
    // No library/ for anybody but Docker Hub.
    let single = other.image("single", "1", &[]);
    larder
        .get(manifest("ghcr.io/single", "1"))
        .await
        .expect_content(&single.manifest);
}

#[tokio::test]
async fn a_conflict_is_not_guessed() {
    let (hub, other) = (Upstream::start().await, Upstream::start().await);
    hub.image("team/app", "1", &[]);
    let larder = Larder::start(&hub, |t| {
        t.upstream("ghcr.io", "url", other.url());
    })
    .await;
    for path in [
        manifest("ghcr.io/team/app", "1") + "?ns=docker.io",
        manifest("hub/team/app", "1") + "?ns=ghcr.io",
    ] {
        let response = larder.get(&path).await.expect(400);
        assert_eq!(response.error_code(), "NAME_INVALID", "{path}");
    }
    assert_eq!(hub.connections() + other.connections(), 0);
}

/// L10: no request makes Larder dial what the operator did not name.
#[tokio::test]
async fn the_world_is_closed() {
    let (upstream, stranger) = (Upstream::start().await, Upstream::start().await);
    stranger.image("team/app", "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let stranger_at = stranger.address().to_string();
    let port = stranger.address().port();
    for ns in [
        &*stranger_at,
        &format!("localhost:{port}"),
        &format!("127.0.0.1:{port}"),
        "169.254.169.254",
        "[::1]:80",
        "registry.example",
        "metadata.google.internal",
    ] {
        let response = larder.get(manifest("team/app", "1") + "?ns=" + ns).await.expect(404);
        assert_eq!(response.error_code(), "NAME_UNKNOWN", "{ns}");
    }
    for prefix in ["registry.example", "169.254.169.254", "localhost"] {
        let response = larder
            .get(manifest(&format!("{prefix}/team/app"), "1"))
            .await
            .expect(404);
        assert_eq!(response.error_code(), "NAME_UNKNOWN", "{prefix}");
    }
    for ns in [
        "http://docker.io",
        "docker.io/x",
        "user@docker.io",
        "a%20b",
        "docker.io%0d%0aX:y",
    ] {
        let response = larder.get(manifest("team/app", "1") + "?ns=" + ns).await;
        assert!(matches!(response.status, 400 | 404), "{ns}: {response:?}");
    }
    assert_eq!((upstream.connections(), stranger.connections()), (0, 0));
}

/// `allow` and `deny`: deny wins; nothing is asked.
#[tokio::test]
async fn what_the_operator_forbids() {
    let upstream = Upstream::start().await;
    for repo in ["library/a", "library/secret", "other/x"] {
        upstream.image(repo, "1", &[]);
    }
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "allow", vec!["library/*"]);
        t.upstream("docker.io", "deny", vec!["*/secret"]);
    })
    .await;
    larder.get(manifest("library/a", "1")).await.expect(200);
    upstream.forget();
    for repo in ["library/secret", "other/x"] {
        let response = larder.get(manifest(repo, "1")).await.expect(403);
        assert_eq!(response.error_code(), "DENIED");
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// R-S4, R-S6: the last key word splits; what is no name is refused before anybody is asked.
#[tokio::test]
async fn paths() {
    let upstream = Upstream::start().await;
    let odd = upstream.image("foo/manifests/bar", "latest", &[10]);
    let tags = upstream.image("a/tags/list", "tags", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder
        .get("/v2/foo/manifests/bar/manifests/latest")
        .await
        .expect_content(&odd.manifest);
    larder
        .get("/v2/a/tags/list/manifests/tags")
        .await
        .expect_content(&tags.manifest);
    let escaped = format!("sha256%3A{}", odd.manifest.hex());
    larder
        .get(manifest("foo/manifests/bar", escaped))
        .await
        .expect_content(&odd.manifest);
    upstream.forget();
    let digest = Digest::sha256(b"x");
    for path in [
        "/v2/UPPER/case/manifests/1",
        "/v2/a//b/manifests/1",
        "/v2/a/../b/manifests/1",
        "/v2/a%2Fb/manifests/1",
        "/v2/a%2f..%2fb/manifests/1",
        "/v2/-a/b/manifests/1",
        "/v2/a/b/manifests/",
        "/v2//manifests/1",
        "/v2/a/b/tags/list/",
        "/v2/a/%ff/manifests/1",
        "/v2/a/b%00/manifests/1",
        &blob("a/.b", digest),
        &manifest(&"a/".repeat(150), "1"),
        &manifest(&format!("a/{}", "b".repeat(300)), "1"),
    ] {
        let response = larder.get(path).await;
        assert!(matches!(response.status, 400 | 404), "{path}: {response:?}");
        assert!(
            ["NAME_INVALID", "NAME_UNKNOWN", "MANIFEST_UNKNOWN", "UNSUPPORTED"].contains(&&*response.error_code()),
            "{path}: {response:?}"
        );
    }
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
}

/// Protocol 0.3: `/v2/` and `/v2`, GET and HEAD, anonymous.
#[tokio::test]
async fn ping() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for path in ["/v2/", "/v2"] {
        let response = larder.get(path).await.expect(200);
        assert_eq!(response.body, b"{}");
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(response.header("x-registry-supports-signatures"), None);
        let head = larder.head(path).await.expect(200);
        assert_eq!(head.header("content-length"), Some("2"));
    }
    larder.get("/v2/_oci/ext/discover").await.expect(404);
    larder.get("/nothing").await.expect(404);
    assert_eq!(upstream.connections(), 0);
}

/// R-W4: a TLS ClientHello on the plain port ends at once, not after ten seconds.
#[tokio::test]
async fn tls_on_the_plain_port() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut connection = Connection::open(larder.registry()).await;
    connection.write(&[0x16, 0x03, 0x01, 0x00, 0x05, 1, 0, 0, 1, 0]).await;
    let (answer, end) = connection.read_to_end().await;
    assert!(matches!(end, End::Short | End::Reset));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
}

/// Several requests over one connection, errors among them.
#[tokio::test]
async fn keep_alive() {
    let upstream = Upstream::start().await;
    let image = upstream.image("library/alpine", "1", &[5000]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let mut connection = Connection::open(larder.registry()).await;
    for _ in 0..2 {
        for (ask, status) in [
            (Ask::get(manifest("alpine", "1")), 200),
            (Ask::head(manifest("alpine", "1")), 200),
            (Ask::get(manifest("alpine", "none")), 404),
            (Ask::head(manifest("alpine", "none")), 404),
            (Ask::get(blob("alpine", image.layers[0])), 200),
            (Ask::get(blob("alpine", image.layers[0])).range("bytes=10-19"), 206),
            (Ask::get(manifest("alpine", "1")).body("ignored"), 200),
        ] {
            let (response, again) = connection.ask(&ask).await;
            response.expect(status);
            connection = again;
        }
    }
}
