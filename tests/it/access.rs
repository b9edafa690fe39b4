//! Who may pull: every rule, login and refusal over real sockets (R-C36, R-C46, R-X7, R-X8, R-X21, R-X22; L8).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use larder::config::Listen;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::support::client::{Ask, Response, http2};
use crate::support::larder::Larder;
use crate::support::process::{LarderProcess, command};
use crate::support::toml::Toml;
use crate::support::upstream::{On, TokenPolicy, Upstream, basic};
use crate::support::{blob, manifest};

const PUBLIC: &str = "library/open";
const SECRET: &str = "acme/secret";

/// An upstream where one repository is open to all, and the rest to Larder's credentials.
async fn hub() -> Upstream {
    let upstream = Upstream::start().await;
    upstream.require_token(
        TokenPolicy::new()
            .credentials("larder", "hub-password")
            .anonymous_for(PUBLIC),
    );
    upstream
}

fn log_in_upstream(toml: &mut Toml) {
    toml.upstream("docker.io", "username", "larder");
    toml.upstream("docker.io", "password", "hub-password");
}

/// A folder with a password file in it.
fn passwords(users: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    write_passwords(&path, users);
    (folder, path)
}

fn write_passwords(path: &Path, users: &[(&str, &str)]) {
    let lines: Vec<String> = users
        .iter()
        .map(|(name, password)| format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap()))
        .collect();
    std::fs::write(path, lines.concat()).unwrap();
}

fn with_passwords(toml: &mut Toml, path: &Path) {
    toml.set(&["access"], "htpasswd_file", path.to_str().unwrap());
}

fn rules(toml: &mut Toml, rules: Value) {
    let rules: toml::Value = serde_json::from_value(rules).unwrap();
    toml.set(&["access"], "rule", rules);
}

async fn ask(to: SocketAddr, path: &str, header: Option<&str>) -> Response {
    let ask = Ask::get(path);
    let ask = match header {
        Some(header) => ask.header("Authorization", header),
        None => ask,
    };
    ask.send(to).await
}

/// Gets a token as Docker does.
async fn token(to: SocketAddr, login: Option<(&str, &str)>, query: &str) -> Response {
    let header = login.map(|(user, password)| basic(user, password));
    ask(to, &format!("/token?service=larder{query}"), header.as_deref()).await
}

fn bearer(response: &Response) -> String {
    let json = response.json();
    assert_eq!(json["token"], json["access_token"]);
    format!("Bearer {}", json["token"].as_str().unwrap())
}

fn challenge(response: &Response) -> &str {
    let all = response.headers.all("www-authenticate");
    assert_eq!(all.len(), 1, "one challenge in one line (R-C21)");
    all[0]
}

/// Without rules: what is public is for everybody although credentials fetch it, what is not is for nobody; shown by one
/// question as nobody, which costs no pull at the Hub (R-U31).
#[tokio::test]
async fn private_is_shown_not_assumed() {
    let upstream = hub().await;
    let (open, secret) = (
        upstream.image(PUBLIC, "1", &[1000]),
        upstream.image(SECRET, "1", &[2000]),
    );
    let larder = Larder::start(&upstream, log_in_upstream).await;
    larder.get("/v2/").await.expect(200);
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&open.manifest);
    larder
        .get(blob(PUBLIC, open.layers[0]))
        .await
        .expect_content(&open.layers[0]);
    larder.head(manifest(PUBLIC, "1")).await.expect(200);
    larder.get(format!("/v2/{PUBLIC}/tags/list")).await.expect(200);
    let answered = |method: &str| {
        let asked = upstream.matching(On::Manifest("1".into()).method(method).repo(PUBLIC));
        asked.iter().filter(|request| request.status == Some(200)).count()
    };
    assert_eq!((answered("HEAD"), answered("GET")), (1, 1), "{}", upstream.print());
    // The one that fetched it came with the credentials' token, the question did not.
    let tokens = upstream.matching(On::Token);
    assert!(
        tokens.iter().any(|t| t.header("authorization").is_none()),
        "{}",
        upstream.print()
    );
    assert!(
        tokens.iter().any(|t| t.header("authorization").is_some()),
        "{}",
        upstream.print()
    );
    assert!(!larder.store().is_private(&format!("docker.io/{PUBLIC}")));

    for path in [
        manifest(SECRET, "1"),
        manifest(SECRET, secret.manifest),
        blob(SECRET, secret.layers[0]),
        format!("/v2/{SECRET}/tags/list"),
        format!("/v2/{SECRET}/referrers/{}", secret.manifest),
    ] {
        for method in ["GET", "HEAD"] {
            let response = Ask::new(method, &*path).send(larder.registry()).await.expect(404);
            assert_eq!(response.header("www-authenticate"), None, "no login would help");
        }
        Ask::get(&*path)
            .range("bytes=0-3")
            .send(larder.registry())
            .await
            .expect(404);
    }
    let fetched = upstream.matching(On::Any.repo(SECRET).get());
    let with_token = fetched.iter().filter(|request| request.status == Some(200)).count();
    assert_eq!(with_token, 0, "{}", upstream.print());
}

/// What was learned is kept over a restart, and stands while the upstream fails; unknown is private.
#[tokio::test]
async fn what_was_learned_stands() {
    let upstream = hub().await;
    let (open, other) = (upstream.image(PUBLIC, "1", &[]), upstream.image(SECRET, "1", &[]));
    let everything = |toml: &mut Toml| {
        log_in_upstream(toml);
        rules(toml, json!([{ "may": "fetch", "private": true }]));
    };
    let larder = Larder::start(&upstream, everything).await;
    larder.get(manifest(SECRET, "1")).await.expect_content(&other.manifest);
    let larder = larder.stop().await.start(|toml| {
        toml.unset(&["access"], "rule");
    });
    let larder = larder.await;
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&open.manifest);
    larder.get(manifest(SECRET, "1")).await.expect(404);
    larder.until_idle().await;
    upstream.go_down().await;
    let larder = larder.restart().await;
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&open.manifest);
    larder.get(manifest(SECRET, "1")).await.expect(404);
    larder.get(manifest("library/never", "1")).await.expect(404);
    // Only what may be pulled is in the catalogue.
    let all = larder.get("/v2/_catalog").await.expect(200).json();
    assert_eq!(all["repositories"], json!([format!("docker.io/{PUBLIC}")]));
}

/// Many callers, one question as nobody.
#[tokio::test]
async fn one_question_for_all_who_wait() {
    let upstream = hub().await;
    let open = upstream.image(PUBLIC, "1", &[]);
    let larder = Larder::start(&upstream, log_in_upstream).await;
    let gate = crate::support::gate::Gate::closed();
    upstream.on(On::Manifest("1".into()).head()).stall_headers(&gate);
    let asking: Vec<_> = (0..10)
        .map(|_| tokio::spawn(Ask::get(manifest(PUBLIC, "1")).send(larder.registry())))
        .collect();
    gate.wait_for_arrivals(1).await;
    gate.open();
    for one in asking {
        one.await.unwrap().expect_content(&open.manifest);
    }
    let heads = upstream.matching(On::Manifest("1".into()).head());
    let answered = heads.iter().filter(|request| request.status == Some(200)).count();
    assert_eq!(answered, 1, "{}", upstream.print());
}

/// A tag that is not there says nothing of its repository: the next one is asked about anew.
#[tokio::test]
async fn a_missing_tag_makes_nothing_private() {
    let upstream = hub().await;
    let open = upstream.image(PUBLIC, "1", &[]);
    let larder = Larder::start(&upstream, log_in_upstream).await;
    larder.get(manifest(PUBLIC, "nosuch")).await.expect(404);
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&open.manifest);
    larder.get(manifest(PUBLIC, "nosuch")).await.expect(404);
}

/// R-X8: what is held and forbidden looks like what never was, to callers with and without a login.
#[tokio::test]
async fn no_oracle() {
    let upstream = hub().await;
    let secret = upstream.image(SECRET, "1", &[500]);
    let (_folder, path) = passwords(&[("alice", "a"), ("bob", "b")]);
    let configure = |toml: &mut Toml| {
        log_in_upstream(toml);
        with_passwords(toml, &path);
        rules(
            toml,
            json!([{ "who": "alice", "may": "fetch", "private": true }, { "who": "*", "may": "fetch" }]),
        );
    };
    let (with, without) = (
        Larder::start(&upstream, configure).await,
        Larder::start(&upstream, configure).await,
    );
    let alice = basic("alice", "a");
    ask(with.registry(), &manifest(SECRET, "1"), Some(&alice))
        .await
        .expect_content(&secret.manifest);
    let layer = blob(SECRET, secret.layers[0]);
    ask(with.registry(), &layer, Some(&alice))
        .await
        .expect_content(&secret.layers[0]);
    with.until_idle().await;
    // No `www-authenticate` differs but by the port in its realm, and the name.
    let shape = |response: &Response, larder: &Larder, repo: &str| {
        let mut text = format!("{}\n", response.status);
        for (name, value) in &response.headers.0 {
            if !name.eq_ignore_ascii_case("date") {
                text += &format!("{name}: {value}\n");
            }
        }
        text += &String::from_utf8_lossy(&response.body);
        text.replace(&larder.registry().to_string(), "<us>")
            .replace(repo, "<repo>")
    };
    // As long as the other.
    let ghost = "acme/secrex".to_owned();
    let bob = basic("bob", "b");
    for end in [
        "manifests/1".to_owned(),
        format!("manifests/{}", secret.manifest),
        format!("blobs/{}", secret.layers[0]),
        "tags/list".to_owned(),
        format!("referrers/{}", secret.manifest),
    ] {
        for header in [None, Some(bob.as_str())] {
            for method in ["GET", "HEAD"] {
                let send = async |larder: &Larder, repo: &str| {
                    let ask = Ask::new(method, format!("/v2/{repo}/{end}"));
                    let ask = match header {
                        Some(header) => ask.header("Authorization", header),
                        None => ask,
                    };
                    shape(&ask.send(larder.registry()).await, larder, repo)
                };
                let found = send(&with, SECRET).await;
                assert_eq!(found, send(&without, SECRET).await, "{method} {end}");
                assert_eq!(found, send(&with, &ghost).await, "{method} {end}");
                let status = if header.is_none() { "401" } else { "404" };
                assert!(found.starts_with(status), "{found}");
            }
        }
    }
    let catalog = async |header| ask(with.registry(), "/v2/_catalog", header).await.json()["repositories"].clone();
    assert_eq!(catalog(None).await, json!([]));
    assert_eq!(catalog(Some(&bob)).await, json!([]));
    assert_eq!(catalog(Some(&alice)).await, json!([format!("docker.io/{SECRET}")]));
}

/// `docker login`, the token flow and Basic itself; and every refusal.
#[tokio::test]
async fn logins() {
    let upstream = hub().await;
    let secret = upstream.image(SECRET, "1", &[]);
    let (_folder, path) = passwords(&[("alice", "p:ä+ß word")]);
    let larder = Larder::start(&upstream, |toml| {
        log_in_upstream(toml);
        with_passwords(toml, &path);
        rules(toml, json!([{ "who": "alice", "may": "fetch", "private": true }]));
    })
    .await;
    let at = larder.registry();
    let alice = ("alice", "p:ä+ß word");

    // R-C36: 401 where nobody may pull as nobody; the realm is where the client came.
    let ping = larder.get("/v2/").await.expect(401);
    assert_eq!(ping.error_code(), "UNAUTHORIZED");
    assert_eq!(
        challenge(&ping),
        format!("Bearer realm=\"http://{at}/v2/_token\",service=\"larder\"")
    );
    let refused = larder.get(manifest(SECRET, "1")).await.expect(401);
    assert!(challenge(&refused).ends_with(&format!(",scope=\"repository:{SECRET}:pull\"")));
    // Also of upstreams that do not exist, and of names that are none.
    for path in [
        "/v2/nowhere.example/a/b/manifests/1",
        "/v2/A/manifests/1",
        "/v2/_catalog",
    ] {
        larder.get(path).await.expect(401);
    }
    let forwarded = Ask::get("/v2/").header("X-Forwarded-Proto", "https").send(at).await;
    assert!(challenge(&forwarded).contains("https://"));

    let scope = format!("&scope=repository:{SECRET}:pull");
    // Somebody who brought no login is told to log in, and somebody who brought a wrong one that it is wrong.
    let message = |response: &Response| response.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    for query in ["", &scope] {
        let without = token(at, None, query).await.expect(401);
        assert_eq!(message(&without), "log in to this proxy to pull this");
        assert_eq!(challenge(&without), "Basic realm=\"larder\"");
        let wrong = token(at, Some(("alice", "wrong")), query).await.expect(401);
        assert_eq!(message(&wrong), "this proxy does not know this user and password");
        assert_eq!(challenge(&wrong), "Basic realm=\"larder\"");
    }
    let answer = token(at, Some(alice), &scope).await.expect(200);
    let json = answer.json();
    assert_eq!(json["expires_in"], 300);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(json["issued_at"].as_str().unwrap().ends_with('Z'));
    let header = bearer(&answer);
    ask(at, &manifest(SECRET, "1"), Some(&header))
        .await
        .expect_content(&secret.manifest);
    ask(at, "/v2/", Some(&header)).await.expect(200);
    // By HTTP/2 as well.
    let by_h2 = http2(at, Ask::get(manifest(SECRET, "1")).header("Authorization", &header)).await;
    by_h2.expect_content(&secret.manifest);

    // R-C22, R-U7: by a form.
    let form = format!(
        "grant_type=password&client_id=containerd-client&service=larder&scope=repository:{SECRET}:pull&username=alice&password=p%3A%C3%A4%2B%C3%9F+word"
    );
    let post = |form: String| {
        Ask::new("POST", "/token")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form)
            .send(at)
    };
    let header = bearer(&post(form.clone()).await.expect(200));
    ask(at, &manifest(SECRET, "1"), Some(&header)).await.expect(200);
    post(form.replace("ssword=p", "ssword=q")).await.expect(401);
    post("grant_type=refresh_token&refresh_token=x".to_owned())
        .await
        .expect(400);

    let right = basic("alice", "p:ä+ß word");
    ask(at, &manifest(SECRET, "1"), Some(&right)).await.expect(200);
    ask(at, "/v2/", Some(&right)).await.expect(200);
    for wrong in [
        basic("alice", "wrong"),
        basic("bob", "p:ä+ß word"),
        "Basic !".to_owned(),
        "Basic Og==".to_owned(),
        "Bearer nonsense".to_owned(),
        format!("{header}x"),
        "Negotiate x".to_owned(),
    ] {
        ask(at, "/v2/", Some(&wrong)).await.expect(401);
        ask(at, &manifest(SECRET, "1"), Some(&wrong)).await.expect(401);
        let asked = Ask::get("/token?service=larder")
            .header("Authorization", &wrong)
            .send(at)
            .await;
        assert_eq!(asked.expect(401).error_code(), "UNAUTHORIZED");
    }
    let none = token(at, None, &scope).await.expect(401);
    assert_eq!(none.header("www-authenticate"), Some("Basic realm=\"larder\""));
    // A password in a query is nobody's login.
    token(at, None, "&username=alice&password=p%3A%C3%A4%2B%C3%9F+word")
        .await
        .expect(401);
}

/// One listener for all: who has no login gets what is public, also with somebody else's password (R-C31, R-C37).
#[tokio::test]
async fn public_and_private_behind_one_address() {
    let upstream = hub().await;
    let (open, secret) = (upstream.image(PUBLIC, "1", &[]), upstream.image(SECRET, "1", &[]));
    let (_folder, path) = passwords(&[("alice", "a")]);
    let larder = Larder::start(&upstream, |toml| {
        log_in_upstream(toml);
        with_passwords(toml, &path);
    })
    .await;
    let at = larder.registry();
    // Who could log in is asked to; a token for nobody opens what is public.
    challenge(&larder.get("/v2/").await.expect(401));
    let open_scope = format!("&scope=repository:{PUBLIC}:pull");
    for login in [None, Some(("hub-user", "hub-secret"))] {
        let nobody = bearer(&token(at, login, &open_scope).await.expect(200));
        ask(at, "/v2/", Some(&nobody)).await.expect(200);
        ask(at, &manifest(PUBLIC, "1"), Some(&nobody))
            .await
            .expect_content(&open.manifest);
        let refused = ask(at, &manifest(SECRET, "1"), Some(&nobody)).await.expect(401);
        // A login that was wrong is named once something is refused.
        let error = login.map_or("insufficient_scope", |_| "invalid_token");
        assert!(challenge(&refused).contains(&format!("error=\"{error}\"")));
    }
    // A login is not a pull: this one is wrong.
    token(at, Some(("hub-user", "hub-secret")), "").await.expect(401);
    ask(at, "/v2/", Some(&basic("hub-user", "hub-secret")))
        .await
        .expect(401);
    ask(at, &manifest(PUBLIC, "1"), Some(&basic("hub-user", "hub-secret")))
        .await
        .expect_content(&open.manifest);
    ask(at, &manifest(PUBLIC, "1"), Some("Basic Og==")).await.expect(200);
    larder.get(manifest(PUBLIC, "1")).await.expect(200);
    ask(at, &manifest(SECRET, "1"), Some(&basic("alice", "a")))
        .await
        .expect_content(&secret.manifest);
    // Hot by now, and still not for everybody.
    for _ in 0..3 {
        larder.get(manifest(SECRET, "1")).await.expect(401);
        larder.head(manifest(SECRET, secret.manifest)).await.expect(401);
    }
    // R-X5: nobody's header went on.
    let sent = upstream.print();
    for request in upstream.requests() {
        let header = request.header("authorization").unwrap_or_default();
        assert!(
            header != basic("hub-user", "hub-secret") && header != basic("alice", "a"),
            "{sent}"
        );
    }
}

/// A changed password file counts without a restart.
#[tokio::test]
async fn the_password_file_is_read_again() {
    let upstream = hub().await;
    let (_folder, path) = passwords(&[("alice", "one")]);
    let larder = Larder::start(&upstream, |toml| {
        with_passwords(toml, &path);
        rules(toml, json!([{ "who": "authenticated", "may": "fetch" }]));
    })
    .await;
    let at = larder.registry();
    let status = async |user: &str, password: &str| ask(at, "/v2/", Some(&basic(user, password))).await.status;
    assert_eq!((status("alice", "one").await, status("bob", "two").await), (200, 401));
    write_passwords(&path, &[("alice", "other"), ("bob", "two")]);
    crate::support::within("the file to be read again", async {
        while status("bob", "two").await != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(
        (status("alice", "one").await, status("alice", "other").await),
        (401, 200)
    );
}

/// "May pull what is held" and "may cause a fetch" are two rights.
#[tokio::test]
async fn held_but_not_fetched() {
    let upstream = Upstream::start().await;
    let image = upstream.image(PUBLIC, "1", &[700]);
    let later = upstream.image(PUBLIC, "2", &[800]);
    let (_folder, path) = passwords(&[("ci", "c")]);
    let larder = Larder::start(&upstream, |toml| {
        with_passwords(toml, &path);
        toml.cache("tag_ttl", "0s");
        rules(toml, json!([{ "who": "ci", "may": "fetch" }, { "may": "pull-held" }]));
    })
    .await;
    let (at, ci) = (larder.registry(), basic("ci", "c"));
    let none = larder.get(manifest(PUBLIC, "1")).await.expect(404);
    assert_eq!(none.error_code(), "MANIFEST_UNKNOWN");
    larder.get(blob(PUBLIC, image.layers[0])).await.expect(404);
    larder.head(blob(PUBLIC, image.layers[0])).await.expect(404);
    larder.get(format!("/v2/{PUBLIC}/tags/list")).await.expect(404);
    let list = larder.get(format!("/v2/{PUBLIC}/referrers/{}", image.manifest));
    // With another code oras gives the whole repository up (R-C92).
    assert_eq!(list.await.expect(404).error_code(), "MANIFEST_UNKNOWN");
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
    ask(at, &manifest(PUBLIC, "1"), Some(&ci))
        .await
        .expect_content(&image.manifest);
    for digest in image.blobs() {
        ask(at, &blob(PUBLIC, digest), Some(&ci)).await.expect_content(&digest);
        larder.until_idle().await;
    }
    upstream.move_tag(PUBLIC, "1", &later.manifest);
    upstream.forget();
    // Though the tag is not trusted any more.
    for _ in 0..2 {
        larder.get(manifest(PUBLIC, "1")).await.expect_content(&image.manifest);
        larder.head(manifest(PUBLIC, "1")).await.expect(200);
        larder
            .get(blob(PUBLIC, image.layers[0]))
            .await
            .expect_content(&image.layers[0]);
    }
    let tags = larder.get(format!("/v2/{PUBLIC}/tags/list")).await.expect(200).json();
    assert_eq!(tags["tags"], json!(["1"]));
    larder.get(manifest(PUBLIC, "2")).await.expect(404);
    larder.get(blob(PUBLIC, later.layers[0])).await.expect(404);
    assert_eq!(upstream.requests().len(), 0, "{}", upstream.print());
    ask(at, &manifest(PUBLIC, "1"), Some(&ci))
        .await
        .expect_content(&later.manifest);
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&later.manifest);
}

/// Rules for listeners and addresses; a Unix socket is a listener too.
#[tokio::test]
async fn several_listeners() {
    let upstream = Upstream::start().await;
    let image = upstream.image(PUBLIC, "1", &[300_000]);
    let (folder, path) = passwords(&[("alice", "a")]);
    let socket = folder.path().join("registry.sock");
    // Left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let larder = Larder::start(&upstream, |toml| {
        with_passwords(toml, &path);
        toml.set(&["listener", "dockerd"], "listen", "127.0.0.1:0");
        toml.set(&["listener", "elsewhere"], "listen", "127.0.0.1:0");
        toml.set(&["listener", "local"], "listen", format!("unix:{}", socket.display()));
        rules(
            toml,
            json!([
                { "listeners": "dockerd", "from": "127.0.0.0/8", "images": "docker.io/library/*", "may": "fetch", "private": true },
                { "listeners": "elsewhere", "from": "10.0.0.0/8", "may": "fetch" },
                { "listeners": "local", "may": "fetch", "private": true },
                { "listeners": "main", "who": "alice", "may": "fetch" },
            ]),
        );
    })
    .await;
    let by_name = |name: &str| {
        let open = larder.listeners().into_iter().find(|open| open.name == name).unwrap();
        match open.at[0] {
            Listen::Tcp(address) => address,
            Listen::Unix(_) => panic!("no address"),
        }
    };
    let (dockerd, elsewhere) = (by_name("dockerd"), by_name("elsewhere"));
    // No challenge where a login gets nobody more: a daemon keeps the Hub's password (R-C23).
    ask(dockerd, "/v2/", None).await.expect(200);
    ask(dockerd, &manifest(PUBLIC, "1"), None)
        .await
        .expect_content(&image.manifest);
    // Whatever it brings, where no login could get it more.
    let hubs = basic("hub-user", "hub-secret");
    ask(dockerd, "/v2/", Some(&hubs)).await.expect(200);
    ask(dockerd, &manifest(PUBLIC, "1"), Some(&hubs)).await.expect(200);
    let closed = ask(dockerd, "/v2/quay.io/a/b/manifests/1", None).await.expect(404);
    assert_eq!(closed.header("www-authenticate"), None);
    ask(larder.registry(), "/v2/", None).await.expect(401);
    ask(larder.registry(), &manifest(PUBLIC, "1"), None).await.expect(401);
    ask(larder.registry(), &manifest(PUBLIC, "1"), Some(&basic("alice", "a")))
        .await
        .expect(200);
    // Hot there is not hot here.
    ask(larder.registry(), &manifest(PUBLIC, "1"), None).await.expect(401);
    ask(elsewhere, "/v2/", None).await.expect(403);
    ask(elsewhere, &manifest(PUBLIC, "1"), None).await.expect(403);

    let over_socket = async |path: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        let at = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        (String::from_utf8(all[..at].to_vec()).unwrap(), all[at + 4..].to_vec())
    };
    let (head, _) = over_socket("/v2/").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (head, body) = over_socket(&blob(PUBLIC, image.layers[0])).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(larder::oci::Digest::sha256(&body), image.layers[0]);
    let _stopped = larder.stop().await;
    assert!(!socket.exists(), "its file goes with it");
}

/// OIDC: the keys come from the address that is configured, and a login may be such a token.
#[tokio::test]
async fn tokens_of_an_issuer() {
    let upstream = hub().await;
    let secret = upstream.image(SECRET, "1", &[]);
    let issuer = Upstream::start().await;
    let pair =
        Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": x }] });
    let serving = issuer.on(On::Path("/jwks".into())).always();
    let rule = serving.answer(200, &[("Content-Type", "application/json")], keys.to_string());
    let larder = Larder::start(&upstream, |toml| {
        log_in_upstream(toml);
        let github = ["access", "oidc", "github"];
        toml.set(&github, "issuer", "https://token.example");
        toml.set(&github, "jwks_url", format!("{}/jwks", issuer.url()));
        toml.set(&github, "audience", "larder");
        toml.set(&github, "identity", "repository");
        rules(
            toml,
            json!([{ "who": "github:acme/*", "may": "fetch", "private": true, "images": "docker.io/acme/*" }]),
        );
    })
    .await;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let token_of = |repository: &str, audience: &str, exp: u64| {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "EdDSA", "kid": "a", "typ": "JWT" }));
        let claims = part(json!({
            "iss": "https://token.example", "aud": audience, "repository": repository, "exp": exp, "nbf": now, "sub": "repo:x",
        }));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(format!("{header}.{claims}").as_bytes()));
        format!("{header}.{claims}.{signature}")
    };
    let at = larder.registry();
    let good = token_of("acme/app", "larder", now + 300);
    let as_bearer = format!("Bearer {good}");
    ask(at, &manifest(SECRET, "1"), Some(&as_bearer))
        .await
        .expect_content(&secret.manifest);
    let as_password = format!("Basic {}", STANDARD.encode(format!("oidc:{good}")));
    ask(at, &manifest(SECRET, "1"), Some(&as_password)).await.expect(200);
    ask(at, "/v2/", Some(&as_password)).await.expect(200);
    let exchanged = ask(at, "/token?service=larder", Some(&as_password)).await.expect(200);
    ask(at, &manifest(SECRET, "1"), Some(&bearer(&exchanged)))
        .await
        .expect(200);
    for bad in [
        token_of("acme/app", "another", now + 300),
        token_of("acme/app", "larder", now - 61),
        format!("{good}A"),
    ] {
        ask(at, &manifest(SECRET, "1"), Some(&format!("Bearer {bad}")))
            .await
            .expect(401);
        ask(at, "/v2/", Some(&format!("Bearer {bad}"))).await.expect(401);
    }
    // Known, and without a right.
    let evil = format!("Bearer {}", token_of("evil/acme", "larder", now + 300));
    ask(at, &manifest(SECRET, "1"), Some(&evil)).await.expect(404);
    ask(at, &manifest(SECRET, "1"), None).await.expect(401);
    assert_eq!(rule.hits(), 1, "asked once");
    drop(larder);
}

/// The access log says who it was, and no secret.
#[tokio::test]
async fn the_log_knows_who() {
    let upstream = hub().await;
    upstream.image(PUBLIC, "1", &[]);
    let (_folder, path) = passwords(&[("alice", "never-in-a-log")]);
    let mut larder = LarderProcess::start(&upstream, |toml| {
        with_passwords(toml, &path);
        toml.set(&["log"], "level", "debug");
    })
    .await;
    let at = larder.registry();
    let login = basic("alice", "never-in-a-log");
    ask(at, &manifest(PUBLIC, "1"), Some(&login)).await.expect(200);
    ask(at, &manifest(PUBLIC, "1"), Some(&basic("alice", "never-either")))
        .await
        .expect(200);
    let answer = token(at, Some(("alice", "never-in-a-log")), "").await.expect(200);
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    ask(at, &manifest(PUBLIC, "1"), Some(&format!("Bearer {token}")))
        .await
        .expect(200);
    larder.stop().await;
    let log = larder.logs();
    assert!(log.contains("user=\"alice\"") || log.contains("user=alice"), "{log}");
    let signature = token.rsplit_once('.').unwrap().1;
    for secret in [
        "never-in-a-log",
        "never-either",
        &token,
        signature,
        login.split_once(' ').unwrap().1,
    ] {
        assert!(!log.contains(secret), "{secret}");
    }
}

/// Files that cannot be used stop the start, and name themselves.
#[tokio::test]
async fn bad_files() {
    let folder = tempfile::tempdir().unwrap();
    let text = |extra: &str| {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[cache]\npath = {:?}\n[access]\n{extra}",
            folder.path().join("cache")
        )
    };
    let bad = folder.path().join("bad");
    std::fs::write(&bad, "alice:plain-password\n").unwrap();
    for key in ["htpasswd_file", "token_key_file"] {
        let config = larder::config::Config::from_toml(&text(&format!("{key} = {bad:?}\n"))).unwrap();
        let error = larder::app::start(config).await.err().unwrap().to_string();
        assert!(error.contains(key) && error.contains("bad"), "{error}");
        assert!(!error.contains("plain-password"), "{error}");
    }
}

/// A client of the listener `tls` with a certificate of its own: the answer's status and body.
struct Certified {
    connector: tokio_rustls::TlsConnector,
    to: SocketAddr,
}

impl Certified {
    async fn ask(&self, path: &str) -> (String, Vec<u8>) {
        self.ask_with(path, "").await
    }

    /// With a header line.
    async fn ask_with(&self, path: &str, header: &str) -> (String, Vec<u8>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let tcp = tokio::net::TcpStream::connect(self.to).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("larder").unwrap();
        let mut stream = self.connector.connect(name, tcp).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let text = String::from_utf8_lossy(&all);
        let status = text.split(' ').nth(1).unwrap_or("none").to_owned();
        (status, all)
    }

    /// The token that `/token` gives for the certificate alone.
    async fn token(&self) -> String {
        let (status, all) = self.ask("/token?service=larder").await;
        assert_eq!(status, "200");
        let text = String::from_utf8(all).unwrap();
        let json: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        json["token"].as_str().unwrap().to_owned()
    }
}

/// An authority, in files beside a certificate for the proxy.
struct Authority {
    folder: tempfile::TempDir,
    root: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), root.pem()).unwrap();
        let authority = Authority {
            folder,
            root,
            issuer: rcgen::Issuer::new(params, key),
        };
        let (server, key) = authority.issue(&[], &["larder"]);
        std::fs::write(authority.at("server.pem"), server.pem()).unwrap();
        std::fs::write(authority.at("server.key"), key.serialize_pem()).unwrap();
        authority
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// With these common names, the first as authorities write it, and these alternative names.
    fn issue(&self, common: &[&str], names: &[&str]) -> (rcgen::Certificate, rcgen::KeyPair) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !common.is_empty() {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "acme");
        }
        // Two keys of rcgen's for one OID.
        let kinds = [rcgen::DnType::CommonName, rcgen::DnType::CustomDnType(vec![2, 5, 4, 3])];
        for (kind, name) in kinds.into_iter().zip(common) {
            params.distinguished_name.push(kind, *name);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    /// A listener called `tls` that takes clients of this authority.
    fn listener(&self, toml: &mut Toml) {
        toml.set(&["listener", "tls"], "listen", "127.0.0.1:0");
        for (key, file) in [("cert", "server.pem"), ("key", "server.key"), ("client_ca", "ca.pem")] {
            toml.set(&["listener", "tls", "tls"], key, self.at(file).to_str().unwrap());
        }
    }

    fn client(&self, larder: &Larder, common: &[&str], names: &[&str]) -> Certified {
        let Listen::Tcp(to) = larder.listeners()[0].at[0] else {
            panic!("no address")
        };
        let (certificate, key) = self.issue(common, names);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Certified {
            connector: tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)),
            to,
        }
    }
}

/// Client certificates: the name in them is an identity, if it is one name and can be seen.
#[tokio::test]
async fn certificates() {
    let upstream = hub().await;
    upstream.image(SECRET, "1", &[]);
    let authority = Authority::new();
    let larder = Larder::start(&upstream, |toml| {
        log_in_upstream(toml);
        authority.listener(toml);
        rules(
            toml,
            json!([
                { "listeners": "tls", "who": ["cert:node-*", "cert:by-name.example"], "may": "fetch", "private": true },
                { "listeners": "main", "may": "fetch" },
            ]),
        );
    })
    .await;
    for (common, names, may) in [
        (&["node-7"][..], &["other.example"][..], true),
        (&[], &["by-name.example", "x.example"], true),
        (&["stranger"], &["by-name.example"], false),
        (&["a\nnode-7"], &[], false),
        (&["node-\u{202e}7"], &[], false),
        // An authority may have checked the first of two, or the last.
        (&["stranger", "node-7"], &[], false),
        (&["node-7", "stranger"], &["by-name.example"], false),
        (&["node-7", "node-7"], &[], true),
    ] {
        let (status, all) = authority
            .client(&larder, common, names)
            .ask(&manifest(SECRET, "1"))
            .await;
        let text = String::from_utf8_lossy(&all);
        assert_eq!(status == "200", may, "{common:?}: {text}");
        assert!(may || matches!(&*status, "404" | "403"), "{text}");
    }
    assert_eq!(authority.client(&larder, &["node-7"], &[]).ask("/v2/").await.0, "200");
    larder.get(manifest(SECRET, "1")).await.expect(404);
}

/// A token that was made of a client certificate is good with that certificate only: nowhere else, not with another
/// one, and not as a password that makes another token.
#[tokio::test]
async fn tokens_of_certificates() {
    let upstream = hub().await;
    upstream.image(SECRET, "1", &[]);
    let authority = Authority::new();
    let (_folder, users) = passwords(&[("alice", "one")]);
    let larder = Larder::start(&upstream, |toml| {
        log_in_upstream(toml);
        authority.listener(toml);
        with_passwords(toml, &users);
        rules(
            toml,
            json!([
                { "who": ["cert:node-1", "alice"], "may": "fetch", "private": true },
                { "may": "fetch" },
            ]),
        );
    })
    .await;
    let path = manifest(SECRET, "1");
    let (one, two) = (
        authority.client(&larder, &["node-1"], &[]),
        authority.client(&larder, &["node-2"], &[]),
    );
    let token = one.token().await;
    let bearer = format!("Bearer {token}");
    // Twice: also when it is remembered.
    for _ in 0..2 {
        assert_eq!(
            one.ask_with(&path, &format!("Authorization: {bearer}\r\n")).await.0,
            "200"
        );
        let other = two.ask_with(&path, &format!("Authorization: {bearer}\r\n")).await;
        assert!(matches!(&*other.0, "401" | "404"), "{}", other.0);
        ask(larder.registry(), &path, Some(&bearer)).await.expect(401);
        ask(larder.registry(), "/v2/", Some(&bearer)).await.expect(401);
        let as_password = basic("node-1", &token);
        ask(larder.registry(), &path, Some(&as_password)).await.expect(401);
        ask(larder.registry(), "/token?service=larder", Some(&as_password))
            .await
            .expect(401);
    }
    // A token that a password got is good everywhere, as the password is.
    let alice = basic("alice", "one");
    let (status, all) = one
        .ask_with("/token?service=larder", &format!("Authorization: {alice}\r\n"))
        .await;
    assert_eq!(status, "200");
    let text = String::from_utf8(all).unwrap();
    let json: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    let bearer = format!("Bearer {}", json["token"].as_str().unwrap());
    ask(larder.registry(), &path, Some(&bearer)).await.expect(200);
}

/// R-U27: an upstream that knows no HEAD is asked by GET.
#[tokio::test]
async fn an_upstream_without_head() {
    let upstream = hub().await;
    let (open, _) = (upstream.image(PUBLIC, "1", &[]), upstream.image(SECRET, "1", &[]));
    upstream.on(On::Manifests).always().no_head(405);
    let larder = Larder::start(&upstream, log_in_upstream).await;
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&open.manifest);
    larder.get(manifest(SECRET, "1")).await.expect(404);
}

/// `larder auth` tells why, and makes lines that let in.
#[tokio::test]
async fn the_command() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |args: &[&str], input: &str| {
        use std::io::Write as _;
        let mut command = command(folder.path());
        command.args(args).stdin(std::process::Stdio::piped());
        let input = input.to_owned();
        let running = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = crate::support::within("the command to end", running).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, line, _) = run(&["auth", "hash", "alice"], "s3cret\n").await;
    assert_eq!(status, Some(0));
    let hash = line.trim().strip_prefix("alice:").unwrap();
    assert!(bcrypt::verify("s3cret", hash).unwrap());
    assert_eq!(run(&["auth", "hash", "a:b"], "s3cret\n").await.0, Some(64));
    assert_eq!(run(&["auth", "hash", "alice"], "").await.0, Some(64));
    let (status, _, error) = run(&["auth", "hash", "alice"], "a\0b\n").await;
    assert!(status == Some(64) && error.contains("NUL byte"), "{error}");
    std::fs::write(folder.path().join("users"), line).unwrap();
    std::fs::write(
        folder.path().join("proxy.toml"),
        r#"
        [upstream."ghcr.io"]
        username = "robot"
        password = "never shown"
        [listener.dockerd]
        listen = "127.0.0.1:5002"
        [access]
        htpasswd_file = "users"
        [[access.rule]]
        listeners = "dockerd"
        from = "10.0.0.0/8"
        may = "pull-held"
        [[access.rule]]
        who = "alice"
        may = "fetch"
        "#,
    )
    .unwrap();
    let (status, out, _) = run(&["auth", "check", "alice", "alpine:3"], "").await;
    assert_eq!(status, Some(0));
    assert!(out.contains("alice asks main for docker.io/library/alpine"), "{out}");
    assert!(
        out.contains("1. * from 10.0.0.0/8 on dockerd: every image → pull-held: it is for other addresses"),
        "{out}"
    );
    assert!(out.contains("2. alice: every image → fetch: matches"), "{out}");
    assert!(out.contains("(fetch)") && !out.contains("note:"), "{out}");
    let (status, out, _) = run(
        &[
            "auth",
            "check",
            "anonymous",
            "ghcr.io/a/b@sha256:00",
            "--listener",
            "dockerd",
            "--from",
            "10.1.1.1",
        ],
        "",
    )
    .await;
    // From a public repository it may have what is cached.
    assert_eq!(status, Some(0));
    assert!(
        out.contains("if the repository is public:") && out.contains("verdict: refused"),
        "{out}"
    );
    let (status, out, _) = run(&["auth", "check", "bob", "alpine"], "").await;
    assert_eq!(status, Some(1), "refused: {out}");
    assert!(
        out.contains("has no such user") && out.contains("no rule matches"),
        "{out}"
    );
    let (_, out, _) = run(&["auth", "check", "alice", "ghcr.io/a/b", "--json"], "").await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&json["public"]["may"], &json["private"]["may"]),
        (&json!("fetch"), &json!("nothing"))
    );
    assert_eq!(json["private"]["rules"][1]["matches"], false);
    assert_eq!(json["refused"], false);
    let (status, out, _) = run(&["auth", "check", "bob", "ghcr.io/a/b", "--json"], "").await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &json["refused"]), (Some(1), &json!(true)));
    assert_eq!(
        run(&["auth", "check", "alice", "nowhere.example/a"], "").await.0,
        Some(64)
    );
    assert_eq!(
        run(&["auth", "check", "alice", "alpine", "--listener", "x"], "")
            .await
            .0,
        Some(64)
    );
    let (status, out, _) = run(&["check-config"], "").await;
    assert_eq!(status, Some(0));
    for wants in [
        "Who may pull",
        "2. alice: every image → fetch",
        "dockerd     127.0.0.1:5002, without TLS",
        "What no rule matches is refused.",
    ] {
        assert!(out.contains(wants), "{out}");
    }
    assert!(!out.contains("never shown") && !out.contains("$2"), "{out}");
}

/// They are told of, and are neither hit nor miss.
#[tokio::test]
async fn refusals_are_counted() {
    let upstream = Upstream::start().await;
    let image = upstream.image(PUBLIC, "1", &[10]);
    let larder = Larder::start(&upstream, |t| {
        rules(
            t,
            json!([{ "may": "nothing", "images": "docker.io/acme/*" }, { "may": "fetch" }]),
        );
    })
    .await;
    let stats = async || Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    larder.get(manifest(SECRET, "1")).await.expect(404);
    let first = stats().await;
    assert_eq!(
        (&first["requests"]["refused"], &first["hit_ratio"]),
        (&1.into(), &Value::Null)
    );
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&image.manifest);
    larder.get(manifest(PUBLIC, "1")).await.expect_content(&image.manifest);
    let second = stats().await;
    assert_eq!(
        (&second["requests"]["refused"], &second["hit_ratio"]),
        (&1.into(), &0.5.into())
    );
}
