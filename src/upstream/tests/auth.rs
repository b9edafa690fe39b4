//! Challenges, tokens, credentials and the breaker.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A token per request, and the last one is the only good one.
fn registry(own: &str, seen: &Seen, good: &str) -> Say {
    match seen.path.as_str() {
        "/token" => say(200, format!(r#"{{"token":"{good}"}}"#)),
        _ if seen.authorization() == Some(&format!("Bearer {good}")) => manifest(),
        _ => bearer(own, "/token"),
    }
}

/// R-W10, and no 401 per request once the demand is known.
#[tokio::test]
async fn forty_requests_cost_one_token() {
    let server = Server::start(|own, seen| registry(own, seen, "t1")).await;
    let client = client(upstream(&server.url()));
    let all = (0..40).map(|_| get(&client));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    assert_eq!(server.count("/token"), 1);
    let tokens: Vec<Seen> = server.seen().into_iter().filter(|s| s.path == "/token").collect();
    assert_eq!(tokens[0].param("scope").as_deref(), Some("repository:a/b:pull"));
    assert_eq!(tokens[0].param("service").as_deref(), Some("svc"));
    assert_eq!(tokens[0].param("client_id").as_deref(), Some("larder"));
    assert_eq!(tokens[0].authorization(), None);

    let before = server.count("/v2/");
    get(&client).await.unwrap();
    assert_eq!(server.count("/v2/"), before + 1);
    // Another repository: a token of its own (R-X6), got without a 401 first.
    client
        .get_manifest(&repository("c"), &tag("latest"), MAX_MANIFEST_BYTES)
        .await
        .unwrap();
    assert_eq!((server.count("/token"), server.count("/v2/")), (2, before + 2));
    assert_eq!(client.has_credentials(&repository("a/b")), Some(false));
}

/// R-U3, R-U43, R-U47: whatever status an old token is refused with.
#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    for status in [400, 401, 403] {
        let generation = Arc::new(AtomicUsize::new(1));
        let current = generation.clone();
        let server = Server::start(move |own, seen| {
            let good = format!("t{}", current.load(Ordering::SeqCst));
            match seen.authorization() {
                Some(stale) if stale.starts_with("Bearer") && stale != format!("Bearer {good}") => {
                    // Another realm, as nvcr.io says it: never to be asked.
                    say(status, "").with("www-authenticate", format!(r#"Bearer realm="{own}/other""#))
                }
                _ => registry(own, seen, &good),
            }
        })
        .await;
        let client = client(upstream(&server.url()));
        get(&client).await.unwrap();
        generation.store(2, Ordering::SeqCst);
        get(&client).await.unwrap();
        assert_eq!((server.count("/token"), server.count("/other")), (2, 0), "{status}");
        // Refused, repeated without Authorization, repeated with the new token.
        assert_eq!(server.count("/v2/"), 2 + 3);
        let last = server.seen().pop().unwrap();
        assert!(last.header("accept").unwrap().contains(media_type::OCI_INDEX));
    }
}

#[tokio::test]
async fn forty_refusals_cost_one_token() {
    let generation = Arc::new(AtomicUsize::new(1));
    let current = generation.clone();
    let server =
        Server::start(move |own, seen| registry(own, seen, &format!("t{}", current.load(Ordering::SeqCst)))).await;
    let client = client(upstream(&server.url()));
    get(&client).await.unwrap();
    generation.store(2, Ordering::SeqCst);
    for outcome in futures_util::future::join_all((0..40).map(|_| get(&client))).await {
        outcome.unwrap();
    }
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn schemes_that_nobody_speaks_are_named() {
    let server = Server::start(|_, _| say(401, "").with("www-authenticate", "Negotiate, NTLM")).await;
    let error = get(&client(upstream(&server.url()))).await.unwrap_err();
    assert!(
        matches!(&error.kind, ErrorKind::Auth(text) if text.contains("negotiate, ntlm")),
        "{error}"
    );
}

/// R-U43: an expired token answered 400 or 403, and nothing ever challenges again.
#[tokio::test]
async fn a_refused_token_without_any_challenge_is_replaced_too() {
    let generation = Arc::new(AtomicUsize::new(0));
    let current = generation.clone();
    let server = Server::start(move |own, seen| {
        let good = format!("t{}", current.load(Ordering::SeqCst));
        match (seen.path.as_str(), current.load(Ordering::SeqCst)) {
            ("/token", _) | (_, 0) => registry(own, seen, &good),
            _ if seen.authorization() == Some("Bearer t1") => manifest(),
            _ => say(403, "denied: Your authorization token has expired."),
        }
    })
    .await;
    let client = client(upstream(&server.url()));
    get(&client).await.unwrap();
    generation.store(1, Ordering::SeqCst);
    get(&client).await.unwrap();
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_is_the_last_word() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/token" => say(200, r#"{"access_token":"reduced"}"#),
        _ => bearer(own, "/token"),
    })
    .await;
    let error = get(&client(upstream(&server.url()))).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Denied { status: 401, .. }), "{error}");
    assert_eq!((server.count("/token"), server.count("/v2/")), (1, 2));
    let retry = server.seen().pop().unwrap();
    assert_eq!(retry.authorization(), Some("Bearer reduced"));
}

/// R-U9, R-U11.
#[tokio::test]
async fn basic_only() {
    let server = Server::start(|_, seen| match seen.authorization() {
        Some(_) => manifest(),
        None => say(401, "").with("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    let mut with = upstream(&server.url());
    with.credentials = login("robot$a+b", "p#&+% :ü");
    let with = client(with);
    get(&with).await.unwrap();
    get(&with).await.unwrap();
    // base64 of `robot$a+b:p#&+% :ü`
    let want = Some("Basic cm9ib3QkYStiOnAjJislIDrDvA==");
    let said: Vec<_> = server.seen();
    let said: Vec<_> = said.iter().map(Seen::authorization).collect();
    assert_eq!(said, [None, want, want]);
    assert_eq!(with.has_credentials(&repository("a/b")), Some(true));

    let error = get(&client(upstream(&server.url()))).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Denied { status: 401, .. }), "{error}");
}

#[tokio::test]
async fn credentials_get_a_token_by_basic() {
    let server = Server::start(|own, seen| registry(own, seen, "t")).await;
    let mut with = upstream(&server.url());
    with.credentials = login("user", "hunter2");
    let client = client(with);
    get(&client).await.unwrap();
    let token = server.seen().into_iter().find(|s| s.path == "/token").unwrap();
    assert_eq!(token.authorization(), Some("Basic dXNlcjpodW50ZXIy"));
    assert!(!server.seen().iter().any(|s| s.query.contains("hunter2")));
    assert_eq!(client.has_credentials(&repository("a/b")), Some(true));
}

fn identity(server: &Server) -> Sources {
    let json = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"refresh me"}}}}}}"#,
        server.address
    );
    Sources {
        inline: Some(Secret::new(json)),
        ..Sources::default()
    }
}

/// R-U7.
#[tokio::test]
async fn identity_tokens_are_posted() {
    let server = Server::start(|own, seen| registry(own, seen, "t")).await;
    let client = build(upstream(&server.url()), &identity(&server), tuning());
    get(&client).await.unwrap();
    let post = server.seen().into_iter().find(|s| s.path == "/token").unwrap();
    assert_eq!(post.method, "POST");
    for (name, value) in [
        ("grant_type", "refresh_token"),
        ("refresh_token", "refresh me"),
        ("client_id", "larder"),
        ("service", "svc"),
        ("scope", "repository:a/b:pull"),
        ("access_type", "offline"),
    ] {
        assert_eq!(post.field(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(client.has_credentials(&repository("a/b")), Some(true));
}

#[tokio::test]
async fn where_post_is_not_known_get_is_tried_and_remembered() {
    let server = Server::start(|own, seen| match seen.method.as_str() {
        "POST" => say(404, ""),
        _ => registry(own, seen, "t"),
    })
    .await;
    let client = build(upstream(&server.url()), &identity(&server), tuning());
    get(&client).await.unwrap();
    client
        .get_manifest(&repository("c"), &tag("latest"), MAX_MANIFEST_BYTES)
        .await
        .unwrap();
    let methods: Vec<String> = server
        .seen()
        .into_iter()
        .filter(|s| s.path == "/token")
        .map(|s| s.method)
        .collect();
    assert_eq!(methods, ["POST", "GET", "GET"]);
}

/// R-U42.
#[tokio::test]
async fn a_missing_challenge_is_looked_for_at_the_root() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/v2/" | "/token" => registry(own, seen, "t"),
        _ if seen.authorization().is_some() => manifest(),
        _ => say(401, ""),
    })
    .await;
    get(&client(upstream(&server.url()))).await.unwrap();
    assert_eq!(server.seen().iter().filter(|s| s.path == "/v2/").count(), 1);
}

/// R-U5.
#[tokio::test]
async fn scopes_of_another_kind_are_used_as_they_are() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/token" => say(200, r#"{"token":"t"}"#),
        _ if seen.authorization().is_some() => manifest(),
        _ => say(401, "").with(
            "www-authenticate",
            format!("Bearer realm=\"{own}/token\",scope=\"aws\""),
        ),
    })
    .await;
    get(&client(upstream(&server.url()))).await.unwrap();
    let token = server.seen().into_iter().find(|s| s.path == "/token").unwrap();
    assert_eq!(token.param("scope").as_deref(), Some("aws"));
}

/// R-X1: the same machine under another name is another host.
#[tokio::test]
async fn only_trusted_realms_see_credentials() {
    let realm = Server::start(|_, _| say(200, r#"{"token":"t"}"#)).await;
    let port = realm.address.port();
    let server = Server::start(move |_, seen| match seen.authorization() {
        Some("Bearer t") => manifest(),
        _ => bearer(&format!("http://localhost:{port}"), "/token"),
    })
    .await;
    let mut with = upstream(&server.url());
    with.credentials = login("user", "hunter2");
    let error = get(&client(with.clone())).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Refused(_)), "{error}");
    assert_eq!(realm.seen().len(), 0);

    with.trusted_realms = vec![host(&format!("localhost:{port}"))];
    get(&client(with)).await.unwrap();
    assert_eq!(realm.seen()[0].authorization(), Some("Basic dXNlcjpodW50ZXIy"));
}

/// R-X1: a stranger may be asked, but without credentials.
#[tokio::test]
async fn a_stranger_is_asked_anonymously() {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, ca) = authority(dir.path());
    let realm = Server::run(Some(acceptor), |_, _| say(200, r#"{"token":"t"}"#)).await;
    let port = realm.address.port();
    let server = Server::start(move |_, seen| match seen.authorization() {
        Some("Bearer t") => manifest(),
        _ => bearer(&format!("https://localhost:{port}"), "/token"),
    })
    .await;
    let mut with = upstream(&server.url());
    with.ca_file = Some(ca);
    with.credentials = login("user", "hunter2");
    let client = client(with);
    get(&client).await.unwrap();
    assert_eq!(realm.seen().len(), 1);
    assert_eq!(realm.seen()[0].authorization(), None);
    assert_eq!(client.has_credentials(&repository("a/b")), Some(false));
}

/// R-U12: what a token server's status means.
#[tokio::test]
async fn token_servers_that_do_not_give() {
    let ask = async |status: u16| {
        let server = Server::start(move |own, seen| match seen.path.as_str() {
            "/token" => say(status, r#"{"errors":[{"code":"X","message":"echo hunter2"}]}"#),
            _ => bearer(own, "/token"),
        })
        .await;
        let mut with = upstream(&server.url());
        with.credentials = login("user", "hunter2");
        let error = get(&client(with)).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        error
    };
    for status in [401, 403] {
        assert!(matches!(ask(status).await.kind, ErrorKind::Denied { .. }));
    }
    for status in [500, 502, 503] {
        let error = ask(status).await;
        assert!(error.is_transient() && !error.is_definite(), "{error}");
    }
    assert!(matches!(ask(429).await.kind, ErrorKind::RateLimited { .. }));
    assert!(matches!(ask(404).await.kind, ErrorKind::Auth(_)));
}

#[tokio::test]
async fn a_huge_token_is_refused() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/token" => say(200, vec![b' '; 10_000]).chunked(7),
        _ => bearer(own, "/token"),
    })
    .await;
    let error = get(&client(upstream(&server.url()))).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Protocol(_)), "{error}");
}

/// A remembered token server that is gone does not matter to a registry that has another by now.
#[tokio::test]
async fn the_token_server_may_move() {
    let moved = Arc::new(AtomicUsize::new(0));
    let stage = moved.clone();
    let server = Server::start(
        move |own, seen| match (seen.path.as_str(), stage.load(Ordering::SeqCst)) {
            ("/token", 0) | ("/token2", 1) => say(200, r#"{"token":"t"}"#),
            ("/token" | "/token2", _) => say(410, ""),
            _ if seen.authorization().is_some() => manifest(),
            (_, 0) => bearer(own, "/token"),
            _ => bearer(own, "/token2"),
        },
    )
    .await;
    let client = client(upstream(&server.url()));
    get(&client).await.unwrap();
    moved.store(1, Ordering::SeqCst);
    client
        .get_manifest(&repository("c"), &tag("latest"), MAX_MANIFEST_BYTES)
        .await
        .unwrap();
}

/// R-U33.
#[tokio::test]
async fn after_429_nothing_is_dialled() {
    let server = Server::start(|_, _| say(429, "").with("retry-after", "120")).await;
    let client = client(upstream(&server.url()));
    for _ in 0..3 {
        let error = get(&client).await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::RateLimited { .. }), "{error}");
    }
    assert_eq!(server.seen().len(), 1);
    assert!(client.paused().is_some());
}

/// L7, R-X17.
#[tokio::test]
async fn nothing_shows_a_secret() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/token" => say(200, r#"{"token":"tok-tok-tok"}"#),
        _ if seen.authorization().is_some() => say(
            500,
            format!("you said {} to {own}/x?sig=signature", seen.authorization().unwrap()),
        ),
        _ => bearer(own, "/token"),
    })
    .await;
    let mut with = upstream(&server.url());
    with.credentials = login("user", "hunter2");
    with.proxy = None;
    let client = client(with);
    let error = get(&client).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Status { status: 500, .. }), "{error}");
    let shown = format!("{error} {error:?} {client:?}");
    for secret in ["hunter2", "tok-tok-tok", "signature", "dXNlcjpodW50ZXIy"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

/// A store or a token server that repeats the address that it was asked by (R-X17).
#[tokio::test]
async fn signed_addresses_are_not_repeated() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/cdn" => say(503, "<Message>S1GNATURE%2B of a/b (S1GNATURE+) expired</Message>"),
        "/token" => say(
            400,
            format!(r#"{{"details":"key {}"}}"#, seen.param("key").unwrap_or_default()),
        ),
        path if path.contains("/signed/") => say(307, "").with("location", format!("{own}/cdn?X-Sig=S1GNATURE%2B")),
        _ => bearer(own, "/token?key=R3ALMKEY"),
    })
    .await;
    let client = client(upstream(&server.url()));
    for (name, wanted) in [("signed/a", "expired"), ("realm/a", "key [secret]")] {
        let (name, latest) = (repository(name), tag("latest"));
        let asked = client.get_manifest(&name, &latest, MAX_MANIFEST_BYTES).await;
        let error = asked.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(!error.contains("S1GNATURE") && !error.contains("R3ALMKEY"), "{error}");
    }
}
