//! Logins that are wrong: they are refused as such, logged within bounds, and never in the way of a daemon that brings
//! the password of another registry (R-C23, R-C36, R-C37, R-C45).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use larder::oci::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::support::client::{Ask, Response};
use crate::support::process::LarderProcess;
use crate::support::toml::Toml;
use crate::support::upstream::{TokenPolicy, Upstream, basic};
use crate::support::{blob, manifest};

const PUBLIC: &str = "library/open";
const SECRET: &str = "acme/secret";

/// An upstream that gives one repository to everybody, and all others to Larder's credentials.
async fn hub() -> Upstream {
    let upstream = Upstream::start().await;
    let policy = TokenPolicy::new().credentials("larder", "hub-password");
    upstream.require_token(policy.anonymous_for(PUBLIC));
    upstream
}

/// A password file with `alice`, whose password is "a".
fn passwords() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("htpasswd");
    std::fs::write(&path, format!("alice:{}\n", bcrypt::hash("a", 4).unwrap())).unwrap();
    (folder, path)
}

fn with_passwords(toml: &mut Toml, path: &std::path::Path) {
    toml.set(&["access"], "htpasswd_file", path.to_str().unwrap());
}

fn log_in_upstream(toml: &mut Toml) {
    toml.upstream("docker.io", "username", "larder");
    toml.upstream("docker.io", "password", "hub-password");
}

fn rules(toml: &mut Toml, rules: Value) {
    let rules: toml::Value = serde_json::from_value(rules).unwrap();
    toml.set(&["access"], "rule", rules);
}

async fn ask(to: SocketAddr, path: &str, header: &str) -> Response {
    Ask::get(path).header("Authorization", header).send(to).await
}

async fn token(to: SocketAddr, login: &str, scopes: &[&str]) -> Response {
    let scopes: String = scopes
        .iter()
        .map(|name| format!("&scope=repository:{name}:pull"))
        .collect();
    ask(to, &format!("/token?service=larder{scopes}"), login).await
}

fn bearer(response: Response) -> String {
    let json = response.expect(200).json();
    format!("Bearer {}", json["token"].as_str().unwrap())
}

#[track_caller]
fn is_wrong_login(response: Response) {
    let response = response.expect(401);
    assert_eq!(response.error_code(), "UNAUTHORIZED");
    let text = String::from_utf8_lossy(&response.body).into_owned();
    assert!(text.contains("does not know this user and password"), "{text}");
}

/// 401 at the registry. Docker reports `invalid_token` as "unauthorized", and `insufficient_scope` as an image that may
/// not exist.
#[track_caller]
fn is_invalid(response: Response) {
    let challenge = response.header("www-authenticate").unwrap_or_default().to_owned();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    is_wrong_login(response);
}

/// A wrong password is called wrong, although anonymous callers may pull something here.
#[tokio::test]
async fn a_wrong_password_is_called_wrong() {
    let upstream = hub().await;
    let (open, secret) = (upstream.image(PUBLIC, "1", &[]), upstream.image(SECRET, "1", &[]));
    let (_folder, path) = passwords();
    let larder = LarderProcess::start(&upstream, |toml| {
        log_in_upstream(toml);
        with_passwords(toml, &path);
    })
    .await;
    let at = larder.registry();
    let wrong = basic("alice", "typo");
    // Nobody knows yet if the repository is public: the request finds out.
    let given = bearer(token(at, &wrong, &[SECRET]).await);
    is_invalid(ask(at, &manifest(SECRET, "1"), &given).await);
    // From then on it is known.
    is_wrong_login(token(at, &wrong, &[SECRET]).await);
    is_wrong_login(token(at, &basic("nobody-here", "a"), &[SECRET]).await);
    is_wrong_login(token(at, &wrong, &[PUBLIC, SECRET]).await);
    is_wrong_login(token(at, &wrong, &["nowhere.example/a"]).await);
    is_wrong_login(token(at, &wrong, &[]).await);
    is_wrong_login(ask(at, "/token?service=larder&scope=registry:catalog:*", &wrong).await);
    is_invalid(ask(at, &manifest(SECRET, "1"), &wrong).await);
    is_invalid(ask(at, "/v2/", &wrong).await);
    // Somebody without any login hears what he always heard.
    let nobody = Ask::get(format!("/token?scope=repository:{SECRET}:pull"))
        .send(at)
        .await;
    let refused = ask(at, &manifest(SECRET, "1"), &bearer(nobody)).await.expect(401);
    assert!(
        refused
            .header("www-authenticate")
            .is_some_and(|challenge| challenge.contains("insufficient_scope"))
    );
    let right = bearer(token(at, &basic("alice", "a"), &[SECRET]).await);
    ask(at, &manifest(SECRET, "1"), &right)
        .await
        .expect_content(&secret.manifest);
    // R-C37: a daemon brings the Hub's password to what everybody may have.
    for login in [wrong, basic("hub-user", "hub-secret")] {
        let given = bearer(token(at, &login, &[PUBLIC]).await);
        ask(at, &manifest(PUBLIC, "1"), &given)
            .await
            .expect_content(&open.manifest);
        let plugin = format!("/token?scope=repository(plugin):{PUBLIC}:pull");
        bearer(ask(at, &plugin, &login).await);
    }
}

/// By a form: containerd offers the pull secrets of a registry to its mirrors (R-C23), and a daemon with an identity
/// token of the Hub knows no other way.
#[tokio::test]
async fn forms() {
    let upstream = hub().await;
    let open = upstream.image(PUBLIC, "1", &[]);
    upstream.image(SECRET, "1", &[]);
    let (_folder, path) = passwords();
    let larder = LarderProcess::start(&upstream, |toml| {
        log_in_upstream(toml);
        with_passwords(toml, &path);
    })
    .await;
    let at = larder.registry();
    larder.get(manifest(PUBLIC, "1")).await.expect(200);
    larder.get(manifest(SECRET, "1")).await.expect(401);
    let post = async |form: &str, name: &str| {
        Ask::new("POST", "/token")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("service=larder&scope=repository:{name}:pull&{form}"))
            .send(at)
            .await
    };
    let password = "grant_type=password&username=hub-user&password=hub-secret";
    let identity = "grant_type=refresh_token&refresh_token=of-the-hub";
    for form in [password, identity] {
        let given = bearer(post(form, PUBLIC).await);
        ask(at, &manifest(PUBLIC, "1"), &given)
            .await
            .expect_content(&open.manifest);
    }
    is_wrong_login(post(password, SECRET).await);
    post(identity, SECRET).await.expect(400);
    post("grant_type=other", PUBLIC).await.expect(400);
    post("grant_type=password&username=alice&password=a", SECRET)
        .await
        .expect(200);
}

/// Where anonymous callers may have what is cached: who brought a wrong password is not told that an image is not
/// there.
#[tokio::test]
async fn what_only_a_right_login_would_fetch() {
    let upstream = Upstream::start().await;
    let cached = upstream.image(PUBLIC, "1", &[1_000]);
    let other = upstream.image("library/other", "1", &[1_000]);
    let (_folder, path) = passwords();
    let larder = LarderProcess::start(&upstream, |toml| {
        with_passwords(toml, &path);
        rules(
            toml,
            json!([{ "who": "alice", "may": "fetch" }, { "may": "pull-held" }]),
        );
    })
    .await;
    let at = larder.registry();
    ask(at, &manifest(PUBLIC, "1"), &basic("alice", "a")).await.expect(200);
    let not_cached: [String; 3] = [
        manifest("library/other", "1"),
        blob("library/other", other.layers[0]),
        manifest("library/other", Digest::sha256(b"not there at all")),
    ];
    let wrong = basic("alice", "typo");
    let given = bearer(token(at, &wrong, &["library/other"]).await);
    for header in [wrong, given] {
        ask(at, &manifest(PUBLIC, "1"), &header)
            .await
            .expect_content(&cached.manifest);
        for path in &not_cached {
            is_invalid(ask(at, path, &header).await);
        }
    }
    let nobody = bearer(Ask::get("/token?scope=repository:library/other:pull").send(at).await);
    for path in &not_cached {
        larder.get(path).await.expect(404);
        ask(at, path, &nobody).await.expect(404);
    }
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| !request.path.contains("other"))
    );
    ask(at, &not_cached[0], &basic("alice", "a"))
        .await
        .expect_content(&other.manifest);
}

/// One request from another address of this machine; the status of its answer.
async fn from(address: Ipv4Addr, to: SocketAddr, path: &str, login: &str) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(address), 0)).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: larder\r\nAuthorization: {login}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The log names user and address, once a minute for each address; no password, and nothing of logins that were never
/// refused.
#[tokio::test]
async fn wrong_logins_are_logged_within_bounds() {
    let upstream = Upstream::start().await;
    upstream.image(PUBLIC, "1", &[]);
    let (_folder, path) = passwords();
    let mut larder = LarderProcess::start(&upstream, |toml| {
        with_passwords(toml, &path);
        rules(
            toml,
            json!([{ "who": "alice", "may": "fetch", "private": true }, { "images": ["docker.io/library/*"], "may": "fetch" }]),
        );
    })
    .await;
    let to = larder.registry();
    let secret = format!("/token?scope=repository:{SECRET}:pull");
    let open = format!("/token?scope=repository:{PUBLIC}:pull");
    let daemon = Ipv4Addr::new(127, 0, 0, 7);
    for path in [open.as_str(), &manifest(PUBLIC, "1")] {
        assert_eq!(from(daemon, to, path, &basic("hub-user", "hub-secret")).await, 200);
    }
    let ways = [secret.as_str(), "/token", "/v2/", &manifest(SECRET, "1")];
    for (number, path) in ways.into_iter().cycle().take(24).enumerate() {
        let login = basic(&format!("user-{number}\n"), "never-in-a-log");
        assert_eq!(from(Ipv4Addr::new(127, 0, 0, 8), to, path, &login).await, 401, "{path}");
    }
    let long = "x".repeat(5_000);
    let login = basic(&long, "never-in-a-log");
    assert_eq!(from(Ipv4Addr::new(127, 0, 0, 9), to, &secret, &login).await, 401);
    larder.stop().await;
    let log = larder.logs();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("a login was refused"))
        .collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains("user-0") && lines[0].contains("127.0.0.8"),
        "{lines:#?}"
    );
    assert!(
        lines[1].contains("127.0.0.9") && lines[1].contains("unlogged=23") && lines[1].len() < 400,
        "{lines:#?}"
    );
    assert!(!log.contains("never-in-a-log") && !log.contains("hub-secret"), "L7");
    assert!(lines.iter().all(|line| !line.contains("hub-user")), "R-C37");
}
