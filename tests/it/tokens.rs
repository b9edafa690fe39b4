//! Authentication towards upstreams: the flows, the odd ones, and who may see which secret (L7).

use larder::oci::Digest;

use crate::support::client::Ask;
use crate::support::gate::Gate;
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::toml::Toml;
use crate::support::upstream::{On, TokenField, TokenPolicy, Upstream, basic};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";
const PASSWORD: &str = "p#&+% /w:ord";

fn login(t: &mut Toml) {
    t.upstream("docker.io", "username", "me");
    t.upstream("docker.io", "password", PASSWORD);
    t.everybody_may_pull();
}

/// R-U1, R-W10: one token for all of a repository, however many ask at once.
#[tokio::test]
async fn one_token_a_repository() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new());
    let image = upstream.image(REPO, "1", &[1000; 10]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let gate = Gate::closed();
    upstream.on(On::Token).stall_headers(&gate);
    let asking: Vec<_> = image
        .blobs()
        .into_iter()
        .map(|digest| {
            let ask = Ask::get(blob(REPO, digest)).send(larder.registry());
            tokio::spawn(async move { ask.await.expect_content(&digest) })
        })
        .collect();
    gate.wait_for_arrivals(1).await;
    gate.open();
    for one in asking {
        one.await.unwrap();
    }
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    assert_eq!(upstream.count(On::Token), 1, "{}", upstream.print());
    let asked = &upstream.matching(On::Token)[0];
    assert_eq!(asked.query_values("scope"), [format!("repository:{REPO}:pull")]);
    assert_eq!(asked.query_value("service").as_deref(), Some("registry.test"));
    assert_eq!(asked.header("authorization"), None);
}

/// R-U4, R-X6: never one repository's token for another.
#[tokio::test]
async fn tokens_are_not_shared() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new());
    let (one, two) = (upstream.image("a/one", "1", &[]), upstream.image("a/two", "1", &[]));
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest("a/one", "1")).await.expect_content(&one.manifest);
    larder.get(manifest("a/two", "1")).await.expect_content(&two.manifest);
    assert_eq!(upstream.count(On::Token), 2);
    let to_one: Vec<_> = upstream.matching(On::Any.repo("a/one").authorized());
    let to_two: Vec<_> = upstream.matching(On::Any.repo("a/two").authorized());
    assert_ne!(
        to_one.last().unwrap().header("authorization"),
        to_two.last().unwrap().header("authorization")
    );
}

/// R-U2, R-U3, R-U5, R-U8, R-U40, R-U42, R-U47: challenges and token answers as they are in the wild.
#[tokio::test]
async fn flows_in_the_wild() {
    let policies: Vec<(&str, TokenPolicy)> = vec![
        ("token only", TokenPolicy::new().field(TokenField::Token)),
        ("access_token only", TokenPolicy::new().field(TokenField::AccessToken)),
        ("no expires_in", TokenPolicy::new().no_expires_in()),
        ("expires at once", TokenPolicy::new().expires_in(0)),
        ("no service", TokenPolicy::new().no_service()),
        (
            "service is a URL",
            TokenPolicy::new().service("https://x.example/v2/token"),
        ),
        (
            "realm with a query",
            TokenPolicy::new().realm_path("/token?service=x&a=b"),
        ),
        (
            "a scope that lies",
            TokenPolicy::new().challenge_scope("repository:user/image:pull"),
        ),
        ("no scope", TokenPolicy::new().no_challenge_scope()),
        (
            "pull and push",
            TokenPolicy::new().challenge_scope(&format!("repository:{REPO}:pull,push")),
        ),
        (
            "another kind of scope",
            TokenPolicy::new().challenge_scope("aws").any_scope(),
        ),
        ("challenge on ping only", TokenPolicy::new().challenge_only_on_ping()),
        (
            "unquoted, odd case and spaces",
            TokenPolicy::new().challenge(&["bEARER  REALM=\"{realm}\" ,  Service={service},scope={scope}"]),
        ),
        (
            "several lines",
            TokenPolicy::new().challenge(&[
                "Negotiate",
                "Basic realm=\"x\"",
                "Bearer realm=\"{realm}\",service=\"s\"",
            ]),
        ),
        (
            "several in one line",
            TokenPolicy::new().challenge(&["Basic realm=\"a, b\", Bearer realm=\"{realm}\",scope=\"{scope}\""]),
        ),
    ];
    for (what, policy) in policies {
        let upstream = Upstream::start().await;
        upstream.require_token(policy);
        let image = upstream.image(REPO, "1", &[100]);
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(manifest(REPO, "1")).await;
        assert_eq!(response.status, 200, "{what}: {response:?}\n{}", upstream.print());
        response.expect_content(&image.manifest);
        let layer = image.layers[0];
        larder.get(blob(REPO, layer)).await.expect_content(&layer);
    }
}

/// R-U3, R-U43, R-U47: a token that is no longer good is dropped, and the request repeated once.
#[tokio::test]
async fn tokens_that_went_bad() {
    let policies: Vec<(&str, TokenPolicy)> = vec![
        ("401 with a challenge", TokenPolicy::new()),
        (
            "401 with a useless realm",
            TokenPolicy::new().bad_token_realm("http://127.0.0.9:1/token"),
        ),
        ("bare 400", TokenPolicy::new().bad_token_status(400)),
        ("bare 401", TokenPolicy::new().bad_token_status(401)),
        ("bare 403", TokenPolicy::new().bad_token_status(403)),
    ];
    for (what, policy) in policies {
        let upstream = Upstream::start().await;
        upstream.require_token(policy);
        let first = upstream.image(REPO, "1", &[]);
        let second = upstream.image(REPO, "2", &[]);
        let larder = Larder::start(&upstream, |_| {}).await;
        larder.get(manifest(REPO, "1")).await.expect_content(&first.manifest);
        upstream.revoke_tokens();
        let response = larder.get(manifest(REPO, "2")).await;
        assert_eq!(response.status, 200, "{what}: {response:?}\n{}", upstream.print());
        response.expect_content(&second.manifest);
        assert_eq!(upstream.count(On::Token), 2, "{what}");
    }
}

/// R-U12: what an upstream says of the private and the missing is 404 here, and no reason to ask for ever.
#[tokio::test]
async fn refusals() {
    for status in [401, 403] {
        let upstream = Upstream::start().await;
        upstream.image("private/app", "1", &[]);
        upstream.require_token(TokenPolicy::new().refuse("private/app", status));
        let larder = Larder::start(&upstream, |_| {}).await;
        let response = larder.get(manifest("private/app", "1")).await.expect(404);
        assert_eq!(response.error_code(), "MANIFEST_UNKNOWN");
        let text = String::from_utf8(response.body).unwrap();
        assert!(text.contains(&status.to_string()), "the real status is named: {text}");
    }
    let upstream = Upstream::start().await;
    upstream.image("private/app", "1", &[]);
    upstream.require_token(TokenPolicy::new().reduce("private/app"));
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.get(manifest("private/app", "1")).await.expect(404);
    assert!(upstream.count(On::Token) <= 2, "{}", upstream.print());
    assert!(upstream.count(On::Manifests) <= 3, "{}", upstream.print());
}

/// A token server that fails is an upstream that fails: nothing is concluded (R-C81).
#[tokio::test]
async fn a_token_server_that_fails() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new());
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, |_| {}).await;
    let failing = upstream.on(On::Token).always().status(500);
    let response = larder.get(manifest(REPO, "1")).await;
    assert!(matches!(response.status, 502..=504), "{response:?}");
    failing.remove();
    let page = upstream.on(On::Token).always().html_page();
    let response = larder.get(manifest(REPO, "1")).await;
    assert!(matches!(response.status, 502..=504), "{response:?}");
    page.remove();
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
}

/// R-U7, R-U11, R-U13: name and password go by GET and Basic, exactly as they are.
#[tokio::test]
async fn credentials() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new().credentials("me", PASSWORD));
    let image = upstream.image(REPO, "1", &[]);
    let larder = Larder::start(&upstream, login).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    let objects = upstream.matching(On::Manifests);
    assert!(
        objects
            .iter()
            .all(|r| !r.header("authorization").unwrap_or("").starts_with("Basic"))
    );

    let without = Larder::start(&upstream, |_| {}).await;
    without.get(manifest(REPO, "1")).await.expect(404);
}

#[tokio::test]
async fn a_password_file_that_changes() {
    let upstream = Upstream::start().await;
    upstream.require_basic("me", "first");
    let (one, two) = (upstream.image(REPO, "1", &[]), upstream.image(REPO, "2", &[]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let larder = Larder::start(&upstream, |t| {
        t.upstream("docker.io", "username", "me");
        t.upstream("docker.io", "password_file", file.to_str().unwrap());
        t.everybody_may_pull();
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect_content(&one.manifest);
    upstream.require_basic("me", "second");
    std::fs::write(&file, "second").unwrap();
    larder.get(manifest(REPO, "2")).await.expect_content(&two.manifest);
}

/// R-U9: Basic only after it was asked for.
#[tokio::test]
async fn basic_only() {
    let upstream = Upstream::start().await;
    upstream.require_basic("me", PASSWORD);
    let image = upstream.image(REPO, "1", &[100]);
    let larder = Larder::start(&upstream, login).await;
    larder.get(manifest(REPO, "1")).await.expect_content(&image.manifest);
    larder.get(blob(REPO, image.layers[0])).await.expect(200);
    let seen = upstream.requests();
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].header("authorization"), Some(&*basic("me", PASSWORD)));
    assert_eq!(upstream.count(On::Blobs), 1, "remembered: {}", upstream.print());
}

/// R-X1, L7: a realm is what an upstream says; the password goes only where the operator or the domain says so.
#[tokio::test]
async fn whom_a_realm_may_be() {
    for trusted in [false, true] {
        let upstream = Upstream::start().await;
        let auth = Upstream::start_at([127, 0, 0, 2]).await;
        upstream.require_token(TokenPolicy::new().credentials("me", PASSWORD).issued_by(&auth));
        upstream.image(REPO, "1", &[]);
        let larder = Larder::start(&upstream, |t| {
            login(t);
            if trusted {
                t.upstream("docker.io", "trusted_realms", vec![auth.address().to_string()]);
            }
        })
        .await;
        let response = larder.get(manifest(REPO, "1")).await;
        let told = auth.count(On::Any.authorized());
        if trusted {
            response.expect(200);
            assert_eq!(told, 1);
        } else {
            assert!(response.status >= 400, "{response:?}");
            assert_eq!(told, 0, "{}", auth.print());
        }
    }
    for realm in [
        "ftp://127.0.0.2/token",
        "http://me:x@127.0.0.1/token",
        "file:///etc/passwd",
        "nonsense",
    ] {
        let upstream = Upstream::start().await;
        upstream.image(REPO, "1", &[]);
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        upstream.require_token(TokenPolicy::new().challenge(&[&challenge]));
        let larder = Larder::start(&upstream, login).await;
        let response = larder.get(manifest(REPO, "1")).await;
        assert!(response.status >= 400, "{realm}: {response:?}");
        response.error_code();
    }
}

/// R-U60, R-U61: Docker's and podman's files, the most specific entry; an identity token goes by POST (R-U7).
/// A login belongs to the host that is dialled, not to the name it goes by (L7).
#[tokio::test]
async fn docker_config_json() {
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new().credentials("robot", PASSWORD));
    let image = upstream.image("team/app", "1", &[]);
    let folder = tempfile::tempdir().unwrap();
    let write = |text: serde_json::Value| std::fs::write(folder.path().join("config.json"), text.to_string()).unwrap();
    let auth = |user: &str, password: &str| basic(user, password).replace("Basic ", "");
    let host = upstream.address();
    write(serde_json::json!({"auths": {
        "https://index.docker.io/v1/": {"auth": auth("hub", "only")},
        format!("{host}"): {"auth": auth("wrong", "wrong")},
        format!("{host}/team"): {"auth": auth("robot", PASSWORD)},
        format!("{host}/te"): {"auth": auth("half", "a name")},
    }}));
    let environment = [("DOCKER_CONFIG", folder.path().to_str().unwrap())];
    let larder = LarderProcess::start_with(&upstream, &environment, |t| {
        t.everybody_may_pull();
    })
    .await;
    larder
        .get(manifest("team/app", "1"))
        .await
        .expect_content(&image.manifest);
    assert_eq!(upstream.count(On::Token), 1, "{}", upstream.print());

    upstream.require_token(TokenPolicy::new().refresh_token("identity+/="));
    write(serde_json::json!({"auths": {format!("{host}"): {"identitytoken": "identity+/="}}}));
    let larder = LarderProcess::start_with(&upstream, &environment, |t| {
        t.everybody_may_pull();
    })
    .await;
    larder
        .get(manifest("team/app", "1"))
        .await
        .expect_content(&image.manifest);

    upstream.forget();
    write(serde_json::json!({"auths": {"https://index.docker.io/v1/": {"auth": auth("hub", "only")}}}));
    let larder = LarderProcess::start_with(&upstream, &environment, |t| {
        t.everybody_may_pull();
    })
    .await;
    let refused = larder.get(manifest("team/app", "1")).await;
    assert!(refused.status >= 400, "{refused:?}");
    assert_eq!(upstream.count(On::Any.authorized()), 0, "{}", upstream.print());
}

/// L7, R-X17: whatever happens, and however much is told, no secret is in the log, an error or the metrics.
#[tokio::test]
async fn no_secret_is_told() {
    let upstream = Upstream::start().await;
    let cdn = upstream.start_cdn().await;
    upstream.require_token(TokenPolicy::new().credentials("me", PASSWORD));
    let image = upstream.image(REPO, "1", &[5000]);
    upstream.redirect_blobs_to(&cdn);
    for format in ["text", "json"] {
        let mut larder = LarderProcess::start(&upstream, |t| {
            login(t);
            t.set(&["log"], "level", "trace");
            t.set(&["log"], "format", format);
            t.cache("tag_ttl", "0s");
        })
        .await;
        let mut told = String::new();
        let client = |path: String| Ask::get(path).header("Authorization", "Basic Y2xpZW50LXNlY3JldA==");
        let missing = Digest::sha256(b"missing");
        for path in [
            manifest(REPO, "1"),
            blob(REPO, image.layers[0]),
            blob(REPO, missing),
            manifest(REPO, "none"),
            manifest("other/private", "1"),
        ] {
            let response = client(path).send(larder.registry()).await;
            told += &format!("{response:?}");
        }
        upstream.revoke_tokens();
        cdn.go_down().await;
        told += &format!("{:?}", larder.get(blob(REPO, image.config)).await);
        cdn.come_up().await;
        upstream.on(On::Token).always().status(500);
        told += &format!("{:?}", larder.get(manifest(REPO, "1")).await);
        upstream.clear_script();
        upstream.redirect_blobs_to(&cdn);
        told += &String::from_utf8_lossy(&Ask::get("/metrics").send(larder.admin()).await.body);
        larder.stop().await;
        told += &larder.logs();
        let encoded = basic("me", PASSWORD);
        for secret in [
            PASSWORD,
            encoded.trim_start_matches("Basic "),
            "secret-token-",
            "signed-secret",
            "Y2xpZW50LXNlY3JldA",
        ] {
            if let Some(at) = told.find(secret) {
                let from = told[..at].rfind('\n').unwrap_or(0);
                let to = told[at..].find('\n').map_or(told.len(), |to| at + to);
                panic!("{secret:?} was told ({format}): {}", &told[from..to]);
            }
        }
    }
}

/// A whole image, cold, as containerd pulls it: the upstream sees the client's own questions, one each, and a token
/// for all of them. Nothing is asked ahead, and a connection serves again.
#[tokio::test]
async fn a_whole_image_asks_no_more_than_its_client() {
    const AT_ONCE: usize = 6;
    let upstream = Upstream::start().await;
    upstream.require_token(TokenPolicy::new());
    let image = upstream.untagged_image(REPO, &[3000; 40]);
    let other = upstream.untagged_image(REPO, &[3000; 3]);
    let index = upstream.index(REPO, "1", &[image.manifest, other.manifest]);
    let larder = Larder::start(&upstream, |_| {}).await;
    larder.head(manifest(REPO, "1")).await.expect(200);
    larder.get(manifest(REPO, index.manifest.to_string())).await.expect(200);
    larder
        .get(manifest(REPO, image.manifest.to_string()))
        .await
        .expect_content(&image.manifest);
    let mut wanted = image.blobs().into_iter();
    let queue = std::sync::Mutex::new(&mut wanted);
    let next = || queue.lock().unwrap().next();
    let client = || async {
        while let Some(digest) = next() {
            larder.get(blob(REPO, digest)).await.expect_content(&digest);
        }
    };
    futures_util::future::join_all((0..AT_ONCE).map(|_| client())).await;
    assert_eq!(upstream.count(On::Token), 1, "{}", upstream.print());
    // The first question is told to bring a token and comes again with it, as with any client.
    let told = upstream.requests().iter().filter(|r| r.status == Some(401)).count();
    assert!(told <= 1, "{}", upstream.print());
    let manifests = [
        upstream.count(On::Manifests.head()),
        upstream.count(On::Manifests.get()),
    ];
    assert_eq!(
        manifests.iter().sum::<usize>() + upstream.count(On::Ping),
        3 + told,
        "{}",
        upstream.print()
    );
    assert_eq!(upstream.count(On::Blobs), image.blobs().len(), "{}", upstream.print());
    let connections: std::collections::BTreeSet<u64> = upstream.requests().iter().map(|r| r.connection).collect();
    assert!(connections.len() <= AT_ONCE + 1, "{}", upstream.print());
}
