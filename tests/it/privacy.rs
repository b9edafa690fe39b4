//! L8, R-X8: a digest that one repository has shown is nothing to another. Whoever probes for it gets, to the last
//! header, what a digest gets that exists nowhere.

use bytes::Bytes;
use larder::oci::{Digest, media_type};

use crate::support::client::{Ask, Connection, Response};
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest, noise};

const SECRET: &str = "team/secret";
const OTHER: &str = "team/other";

/// What there is to be found: in `SECRET`, or nowhere.
#[derive(Clone, Copy)]
struct Target {
    blob: Digest,
    manifest: Digest,
}

fn nowhere(seed: u64) -> Target {
    Target {
        blob: Digest::sha256(&noise(seed, 10)),
        manifest: Digest::sha256(&noise(seed, 11)),
    }
}

/// Every question that a stranger can ask with a digest in hand.
fn questions(target: &Target) -> Vec<(&'static str, Digest, Ask)> {
    let on_blob = |method: &str| Ask::new(method, blob(OTHER, target.blob));
    let on_manifest = |method: &str| Ask::new(method, manifest(OTHER, target.manifest));
    let as_manifest = |method: &str| Ask::new(method, manifest(OTHER, target.blob));
    let as_blob = |method: &str| Ask::new(method, blob(OTHER, target.manifest));
    let tag = format!("\"{}\"", target.blob);
    let manifest_tag = format!("\"{}\"", target.manifest);
    let referrers = |digest: &Digest| Ask::get(format!("/v2/{OTHER}/referrers/{digest}"));
    vec![
        ("HEAD blob", target.blob, on_blob("HEAD")),
        ("GET blob", target.blob, on_blob("GET")),
        ("range", target.blob, on_blob("GET").range("bytes=0-9")),
        ("last bytes", target.blob, on_blob("GET").range("bytes=-1")),
        ("several ranges", target.blob, on_blob("GET").range("bytes=0-0,5-6")),
        ("range past it", target.blob, on_blob("GET").range("bytes=999999999-")),
        (
            "HEAD if-none-match",
            target.blob,
            on_blob("HEAD").header("If-None-Match", &tag),
        ),
        (
            "GET if-none-match",
            target.blob,
            on_blob("GET").header("If-None-Match", &tag),
        ),
        (
            "GET if-none-match *",
            target.blob,
            on_blob("GET").header("If-None-Match", "*"),
        ),
        (
            "if-range",
            target.blob,
            on_blob("GET").range("bytes=0-9").header("If-Range", &tag),
        ),
        ("HEAD manifest", target.manifest, on_manifest("HEAD")),
        ("GET manifest", target.manifest, on_manifest("GET")),
        (
            "manifest if-none-match",
            target.manifest,
            on_manifest("GET").header("If-None-Match", &manifest_tag),
        ),
        ("HEAD blob as manifest", target.blob, as_manifest("HEAD")),
        ("GET blob as manifest", target.blob, as_manifest("GET")),
        ("HEAD manifest as blob", target.manifest, as_blob("HEAD")),
        ("GET manifest as blob", target.manifest, as_blob("GET")),
        ("referrers", target.manifest, referrers(&target.manifest)),
        ("referrers of blob", target.blob, referrers(&target.blob)),
    ]
}

/// An answer without what is different each time.
fn shape(response: &Response, digest: &Digest) -> String {
    let mut text = format!("{} {:?}\n", response.status, response.end);
    for (name, value) in &response.headers.0 {
        if !name.eq_ignore_ascii_case("date") {
            text += &format!("{name}: {value}\n");
        }
    }
    text += &String::from_utf8_lossy(&response.body);
    text.replace(&digest.to_string(), "<digest>")
        .replace(digest.hex().as_str(), "<hex>")
}

/// Asks everything of what is there and of what is not, twice: what is remembered must look the same, too.
async fn check_same(larder: &Larder, when: &str, secret: &Target, ghost: &Target) {
    for round in 0..2 {
        for ((what, real, ask), (_, unreal, other)) in questions(secret).into_iter().zip(questions(ghost)) {
            let found = shape(&ask.send(larder.registry()).await, &real);
            let nothing = shape(&other.send(larder.registry()).await, &unreal);
            assert_eq!(found, nothing, "{when}, {what}, round {round}");
            let is_referrers = what.starts_with("referrers");
            assert!(!found.starts_with("2") || is_referrers, "{when}, {what}: {found}");
        }
    }
}

async fn secrets(upstream: &Upstream) -> (Target, String) {
    let image = upstream.image(SECRET, "latest", &[300_000]);
    // The repository of the stranger exists; it just has none of this.
    upstream.image(OTHER, "latest", &[1_000]);
    upstream.artifact(SECRET, image.manifest, "application/x.signature");
    let target = Target {
        blob: image.layers[0],
        manifest: image.manifest,
    };
    (target, manifest(SECRET, "latest"))
}

/// Held: with the upstream up, down, and never to be asked.
#[tokio::test]
async fn what_is_held_for_another() {
    let upstream = Upstream::start().await;
    let (secret, tagged) = secrets(&upstream).await;
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(&tagged).await.expect_content(&secret.manifest);
    larder.get(blob(SECRET, secret.blob)).await.expect_content(&secret.blob);
    larder
        .get(format!("/v2/{SECRET}/referrers/{}", secret.manifest))
        .await
        .expect(200);
    larder.get(format!("/v2/{SECRET}/tags/list")).await.expect(200);
    larder.until_held(&blob(SECRET, secret.blob)).await;
    check_same(&larder, "upstream up", &secret, &nowhere(1)).await;

    // From memory, and from the disk.
    let larder = larder.restart().await;
    check_same(&larder, "after a restart", &secret, &nowhere(1)).await;

    upstream.go_down().await;
    let larder = larder.restart().await;
    check_same(&larder, "upstream down", &secret, &nowhere(1)).await;
    check_lists(&larder, "upstream down").await;

    let larder = larder.stop().await.start(|toml| {
        toml.cache("offline", true);
    });
    let larder = larder.await;
    check_same(&larder, "offline", &secret, &nowhere(1)).await;
    check_lists(&larder, "offline").await;
    // All of it is there for whom it belongs to.
    larder.get(&tagged).await.expect_content(&secret.manifest);
    larder.get(blob(SECRET, secret.blob)).await.expect_content(&secret.blob);
}

/// A repository that nobody has asked about has no more tags than one that does not exist, whatever is held beside it.
async fn check_lists(larder: &Larder, when: &str) {
    let list = async |repo: &str| {
        let response = larder.get(format!("/v2/{repo}/tags/list")).await;
        let mut text = format!("{}\n", response.status);
        text += &String::from_utf8_lossy(&response.body);
        text.replace(repo, "<repo>")
    };
    assert_eq!(list("team/secre").await, list("team/never").await, "{when}");
    assert_eq!(list("team").await, list("none").await, "{when}");
}

/// On its way: no door either.
#[tokio::test]
async fn what_is_coming_for_another() {
    let upstream = Upstream::start().await;
    let (secret, _) = secrets(&upstream).await;
    let larder = Larder::start(&upstream, |_| {}).await;
    let gate = Gate::closed();
    upstream.on(On::Blob(secret.blob).get()).stall_after(100_000, &gate);
    let by_digest = On::Manifest(secret.manifest.to_string()).get();
    upstream.on(by_digest).stall_headers(&gate);
    let mut coming = Ask::get(blob(SECRET, secret.blob)).open(larder.registry()).await;
    coming.read_at_least(1).await;
    let document = tokio::spawn(Ask::get(manifest(SECRET, secret.manifest)).send(larder.registry()));
    gate.wait_for_arrivals(2).await;
    check_same(&larder, "in flight", &secret, &nowhere(1)).await;
    gate.open();
    coming.rest().await.expect_content(&secret.blob);
    document.await.unwrap().expect_content(&secret.manifest);
}

/// What passes through memory, and is kept nowhere, is no door while it does.
#[tokio::test]
async fn what_passes_through_for_another() {
    let upstream = Upstream::start().await;
    let (mut secret, _) = secrets(&upstream).await;
    secret.blob = upstream.blob(SECRET, 9 << 20);
    let larder = Larder::start(&upstream, |toml| {
        toml.cache("max_size", "4MiB");
    })
    .await;
    let gate = Gate::closed();
    upstream.on(On::Blob(secret.blob).get()).stall_after(1 << 20, &gate);
    let connection = Connection::open_with_buffer(larder.registry(), 16 << 10).await;
    let mut coming = connection.exchange(&Ask::get(blob(SECRET, secret.blob))).await;
    coming.read_at_least(1).await;
    check_same(&larder, "passing through", &secret, &nowhere(1)).await;
    gate.open();
    coming.rest().await.expect_content(&secret.blob);
    check_same(&larder, "passed through", &secret, &nowhere(1)).await;
}

/// One repository's refusal is not another's, nor its consent.
#[tokio::test]
async fn a_refusal_is_one_repositorys() {
    let upstream = Upstream::start().await;
    let larder = Larder::start(&upstream, |_| {}).await;
    for status in [404, 403, 401] {
        let content = upstream.blob(SECRET, 2_000);
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[],"x":{status}}}"#,
            media_type::OCI_INDEX
        );
        let document = upstream.put_manifest(SECRET, None, media_type::OCI_INDEX, Bytes::from(text));
        upstream.on(On::Any.repo(OTHER)).always().status(status);
        larder.get(blob(OTHER, content)).await.expect(404);
        larder.get(manifest(OTHER, document)).await.expect(404);
        larder.get(blob(SECRET, content)).await.expect_content(&content);
        larder.get(manifest(SECRET, document)).await.expect_content(&document);
        larder.get(blob(OTHER, content)).await.expect(404);
        larder.get(manifest(OTHER, document)).await.expect(404);
        upstream.clear_script();
    }
}

/// R-X7, R-X8: the catalogue names what whoever asks may pull, and nothing else. A private repository that is held, and
/// that the operator has closed since, looks there and everywhere like one that never was.
#[tokio::test]
async fn the_catalog_names_what_may_be_pulled() {
    let (hub, private) = (Upstream::start().await, Upstream::start().await);
    private.require_basic("me", "hidden");
    let (secret, tagged) = secrets(&private).await;
    let ghost = "team/never";
    let names = [OTHER, SECRET, "team/z"];
    let credentials = |toml: &mut crate::support::toml::Toml| {
        toml.upstream("ghcr.io", "url", private.url());
        toml.upstream("ghcr.io", "username", "me");
        toml.upstream("ghcr.io", "password", "hidden");
        toml.everybody_may_pull();
    };
    let closed = |toml: &mut crate::support::toml::Toml| {
        toml.upstream("ghcr.io", "deny", vec![SECRET, ghost]);
    };
    private.image("team/z", "latest", &[10]);
    let pull = async |larder: &Larder, repo: &str| {
        let path = manifest(&format!("ghcr.io/{repo}"), "latest");
        larder.get(path).await.expect(200);
    };
    // One that holds the secret, and one that never saw it.
    let (open, without) = (
        Larder::start(&hub, credentials).await,
        Larder::start(&hub, credentials).await,
    );
    for repo in names {
        pull(&open, repo).await;
    }
    let layer = blob(&format!("ghcr.io/{SECRET}"), secret.blob);
    open.get(&layer).await.expect_content(&secret.blob);
    open.until_held(&layer).await;
    assert!(tagged.contains(SECRET) && open.store().is_private(&format!("ghcr.io/{SECRET}")));
    for repo in [OTHER, "team/z"] {
        pull(&without, repo).await;
    }
    // By the rule above everybody may pull, and so may know the name.
    let all = open.get("/v2/_catalog").await.expect(200).json();
    let full: Vec<String> = names.iter().map(|name| format!("ghcr.io/{name}")).collect();
    assert_eq!(all["repositories"], serde_json::json!(full));

    let (with, without) = (
        open.stop().await.start(closed).await,
        without.stop().await.start(closed).await,
    );
    assert!(
        with.store()
            .repositories("", 9)
            .iter()
            .any(|name| name.ends_with(SECRET)),
        "still held"
    );
    let before = format!("ghcr.io/{}", &SECRET[..SECRET.len() - 1]);
    for query in [
        String::new(),
        "?n=0".to_owned(),
        "?n=1".to_owned(),
        "?n=2".to_owned(),
        "?n=3".to_owned(),
        format!("?n=1&last=ghcr.io/{OTHER}"),
        format!("?n=1&last={before}"),
        format!("?last=ghcr.io/{SECRET}"),
        "?last=ghcr.io/team/z".to_owned(),
    ] {
        let path = format!("/v2/_catalog{query}");
        let (found, expected) = (with.get(&path).await, without.get(&path).await);
        assert_eq!(shape(&found, &secret.blob), shape(&expected, &secret.blob), "{path}");
    }
    // Everything else that has its name in it.
    let nothing = nowhere(1);
    for end in ["tags/list", "manifests/latest", "referrers/", "blobs/", "manifests/"] {
        let path = |repo: &str, digest: &Digest| match end.ends_with('/') {
            true => format!("/v2/ghcr.io/{repo}/{end}{digest}"),
            false => format!("/v2/ghcr.io/{repo}/{end}"),
        };
        for method in ["GET", "HEAD"] {
            let found = Ask::new(method, path(SECRET, &secret.blob)).send(with.registry()).await;
            let unreal = Ask::new(method, path(ghost, &nothing.blob)).send(with.registry()).await;
            // The name is in the error's text, and not as long.
            let (found, unreal) = (shape(&found, &secret.blob), shape(&unreal, &nothing.blob));
            let hidden = |text: String, repo: &str| {
                let text = text.replace(repo, "<repo>");
                let lines = text.lines().filter(|line| !line.starts_with("content-length"));
                lines.collect::<Vec<_>>().join("\n")
            };
            assert_eq!(hidden(found, SECRET), hidden(unreal, ghost), "{method} {end}");
        }
    }
}

/// R-X7: whether credentials were behind a repository's answers is known, kept, and follows the last answer.
#[tokio::test]
async fn private_repositories_are_marked() {
    let (hub, private) = (Upstream::start().await, Upstream::start().await);
    private.require_basic("me", "hidden");
    let larder = Larder::start(&hub, |toml| {
        toml.upstream("ghcr.io", "url", private.url());
        toml.upstream("ghcr.io", "username", "me");
        toml.upstream("ghcr.io", "password", "hidden");
        toml.everybody_may_pull();
    })
    .await;
    let is_private = |larder: &Larder, key: &str| larder.store().is_private(key);
    let public = hub.blob("team/open", 1_000);
    larder.get(blob("team/open", public)).await.expect_content(&public);
    let by_blob = private.blob("a/blob", 100_000);
    let by_head = private.blob("a/head", 1_000);
    let by_tag = private.image("a/tag", "latest", &[10]);
    let by_digest = private.image("a/digest", "latest", &[10]);
    private.image("a/list", "latest", &[10]);
    larder
        .get(blob("ghcr.io/a/blob", by_blob))
        .await
        .expect_content(&by_blob);
    larder.head(blob("ghcr.io/a/head", by_head)).await.expect(200);
    larder
        .get(manifest("ghcr.io/a/tag", "latest"))
        .await
        .expect_content(&by_tag.manifest);
    larder
        .head(manifest("ghcr.io/a/digest", by_digest.manifest))
        .await
        .expect(200);
    larder.get("/v2/ghcr.io/a/list/tags/list").await.expect(200);
    larder.get(blob("ghcr.io/a/none", public)).await.expect(404);
    let marked = ["a/blob", "a/head", "a/tag", "a/digest", "a/list"].map(|name| format!("ghcr.io/{name}"));
    for key in &marked {
        assert!(is_private(&larder, key), "{key}");
    }
    for key in ["docker.io/team/open", "ghcr.io/a/none", "ghcr.io/a", ""] {
        assert!(!is_private(&larder, key), "{key}");
    }
    let larder = larder.restart().await;
    for key in &marked {
        assert!(is_private(&larder, key), "{key} after a restart");
    }
    // Opened to all, and asked without credentials from now on.
    private.require_nothing();
    let larder = larder.stop().await.start(|toml| {
        toml.unset(&["upstream", "ghcr.io"], "username");
        toml.unset(&["upstream", "ghcr.io"], "password");
    });
    let larder = larder.await;
    let more = private.blob("a/blob", 1_000);
    larder.get(blob("ghcr.io/a/blob", more)).await.expect_content(&more);
    assert!(!is_private(&larder, "ghcr.io/a/blob") && is_private(&larder, "ghcr.io/a/tag"));
    let larder = larder.restart().await;
    assert!(!is_private(&larder, "ghcr.io/a/blob") && is_private(&larder, "ghcr.io/a/tag"));
}

/// L8: a client certificate of Larder's own is a credential, too. What an upstream gives to it is for nobody without a
/// rule that says so, is marked, and travels so.
#[tokio::test]
async fn a_client_certificate_is_a_credential() {
    let upstream = Upstream::start().await;
    let (secret, tagged) = secrets(&upstream).await;
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = write("larder.crt", made.cert.pem());
    let key = write("larder.key", made.signing_key.serialize_pem());
    // Pulled before there was a certificate: without a mark.
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest(OTHER, "latest")).await.expect(200);
    let larder = larder.stop().await.start(|toml| {
        toml.upstream("docker.io", "client_cert", cert);
        toml.upstream("docker.io", "client_key", key);
    });
    let larder = larder.await;
    upstream.forget();
    let paths = [
        tagged.clone(),
        blob(SECRET, secret.blob),
        manifest(SECRET, secret.manifest),
        format!("/v2/{SECRET}/tags/list"),
        manifest(OTHER, "latest"),
    ];
    for path in &paths {
        for method in ["GET", "HEAD"] {
            let refused = Ask::new(method, path.clone()).send(larder.registry()).await;
            assert!(
                [401, 403, 404].contains(&refused.status),
                "{method} {path}: {refused:?}"
            );
        }
    }
    assert!(upstream.requests().is_empty(), "{}", upstream.print());
    // A rule that does not say so is about public repositories only.
    let rule = |private: bool| {
        let rule = toml::Table::from_iter([
            ("may".to_owned(), toml::Value::from("fetch")),
            ("private".to_owned(), toml::Value::from(private)),
        ]);
        vec![toml::Value::Table(rule)]
    };
    let larder = larder.stop().await.start(|toml| {
        toml.set(&["access"], "rule", rule(false));
    });
    let larder = larder.await;
    let refused = larder.get(&tagged).await;
    assert!([401, 403, 404].contains(&refused.status), "{refused:?}");
    let larder = larder.stop().await.start(|toml| {
        toml.set(&["access"], "rule", rule(true));
    });
    let larder = larder.await;
    larder.get(&tagged).await.expect_content(&secret.manifest);
    larder.get(blob(SECRET, secret.blob)).await.expect_content(&secret.blob);
    let marked = format!("docker.io/{SECRET}");
    assert!(larder.store().is_private(&marked));
    let larder = larder.restart().await;
    assert!(larder.store().is_private(&marked));
    // Nor does it lose the mark with the certificate: nobody has shown yet that it is public.
    let larder = larder.stop().await.start(|toml| {
        toml.unset(&["upstream", "docker.io"], "client_cert");
        toml.unset(&["upstream", "docker.io"], "client_key");
        toml.unset(&["access"], "rule");
    });
    let larder = larder.await;
    upstream.on(On::Any).always().status(401);
    let refused = larder.get(&tagged).await;
    assert!([401, 403, 404].contains(&refused.status), "{refused:?}");
}
