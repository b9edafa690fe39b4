//! Reasons of failures as operators read them: the access log's line says why, in words that name the host and no library, and never a secret.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::client::{Ask, Connection};
use crate::support::gate::Gate;
use crate::support::process::LarderProcess;
use crate::support::upstream::{On, Upstream};
use crate::support::{blob, manifest, within};

const REPO: &str = "library/alpine";

/// Words of libraries.
const DIALECT: [&str; 9] = [
    "error sending",
    "client error",
    "dns error",
    "tcp connect",
    "os error",
    "invalid peer",
    "UnknownIssuer",
    "hyper",
    "reqwest",
];

/// The line of the access log about `path`, in JSON, when it is there.
async fn line(larder: &LarderProcess, path: &str) -> Value {
    let wanted = format!("\"path\":\"{path}\"");
    let line = larder.wait_for_log(&wanted).await;
    serde_json::from_str(&line).unwrap()
}

#[track_caller]
fn is_plain(text: &str) {
    for word in DIALECT {
        assert!(!text.contains(word), "{word:?} in {text}");
    }
    assert!(!text.contains("hunter2"), "a secret in {text}");
}

/// A server that shakes hands with a certificate for `name` that ends in `year`, and answers nothing. Gives its address and
/// writes its authority into `folder`.
async fn tls(folder: &Path, name: &str, year: i32) -> SocketAddr {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(folder.join(format!("{year}.pem")), authority.pem()).unwrap();
    let issuer = Issuer::new(params, &key);
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], secret)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

/// A server that says `words` to whatever it is asked, and closes.
async fn says(words: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(words).await;
        }
    });
    address
}

/// A registry with one fault, which all of its requests meet.
async fn faulty(fault: impl FnOnce(&Upstream)) -> Upstream {
    let upstream = Upstream::start().await;
    fault(&upstream);
    upstream
}

/// Each way in which a registry can fail, asked for a manifest; in JSON, as text, and for everything else that is pulled.
#[tokio::test]
async fn every_failure_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (stranger, expired, other) = tokio::join!(
        tls(folder.path(), "127.0.0.1", 2041),
        tls(folder.path(), "127.0.0.1", 2021),
        tls(folder.path(), "other.example", 2042),
    );
    let (plain, garbage) = tokio::join!(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), says(b"SSH-2.0-x\r\n"));
    let broken = faulty(|u| drop(u.on(On::Any).always().status(500))).await;
    let limited = faulty(|u| drop(u.on(On::Any).always().rate_limit(Some("77")))).await;
    let closing = faulty(|u| drop(u.on(On::Any).always().drop_connection())).await;
    let hanging = faulty(|u| drop(u.on(On::Any).always().hang_connection())).await;
    let large = faulty(|u| {
        u.put_manifest(
            "app",
            Some("1"),
            "application/vnd.oci.image.manifest.v1+json",
            vec![b' '; 5 << 20],
        );
    })
    .await;
    let cases = [
        (
            "dns",
            "https://no-such-host.invalid".to_owned(),
            503,
            "no address found for no-such-host.invalid (DNS",
        ),
        (
            "refused",
            "http://127.0.0.1:1".to_owned(),
            503,
            "the connection to 127.0.0.1:1 was refused",
        ),
        (
            "stranger",
            format!("https://{stranger}"),
            503,
            "is not trusted: its issuer is unknown here",
        ),
        (
            "expired",
            format!("https://{expired}"),
            503,
            "has expired on 2021-01-01",
        ),
        (
            "name",
            format!("https://{other}"),
            503,
            "is for another name: other.example",
        ),
        (
            "plain",
            format!("https://{plain}"),
            503,
            "does not speak TLS at this port",
        ),
        ("garbage", format!("http://{garbage}"), 503, "is not HTTP"),
        ("status", broken.url(), 503, "answered 500"),
        (
            "limited",
            limited.url(),
            503,
            "asks to be left alone for 77 s (429 Too Many Requests)",
        ),
        (
            "closing",
            closing.url(),
            503,
            "closed the connection instead of answering",
        ),
        ("hanging", hanging.url(), 504, "did not answer within 1 s"),
        (
            "large",
            large.url(),
            502,
            "it has 5242880 bytes, more than the 4194304 that limits.manifest_size allows",
        ),
    ];
    for format in ["json", "text"] {
        let larder = LarderProcess::start(&broken, |toml| {
            toml.set(&["log"], "format", format);
            toml.everybody_may_pull();
            for (name, url, ..) in &cases {
                let name = format!("{name}.example");
                toml.upstream(&name, "url", url.as_str());
                toml.upstream(&name, "username", "someone");
                toml.upstream(&name, "password", "hunter2");
                toml.upstream(&name, "answer_timeout", "1s");
            }
            for (name, year) in [("expired.example", 2021), ("name.example", 2042)] {
                let authority = folder.path().join(format!("{year}.pem"));
                toml.upstream(name, "ca_file", authority.to_str().unwrap());
            }
        })
        .await;
        let asked = cases.iter().map(async |(name, _, status, words)| {
            let path = format!("/v2/{name}.example/app/manifests/1");
            larder.get(&path).await.expect(*status);
            let error = match format {
                "json" => {
                    let line = line(&larder, &path).await;
                    assert_eq!(line["status"], *status, "{line}");
                    line["error"]
                        .as_str()
                        .unwrap_or_else(|| panic!("no error in {line}"))
                        .to_owned()
                }
                _ => {
                    let line = larder.wait_for_log(&format!("path=\"{path}\"")).await;
                    let (_, error) = line
                        .split_once(" error=\"")
                        .unwrap_or_else(|| panic!("no error in {line}"));
                    error.split_once('"').unwrap().0.to_owned()
                }
            };
            assert!(
                error.starts_with(&format!("{name}.example")) && error.contains(words),
                "{error}"
            );
            is_plain(&error);
        });
        join_all(asked).await;
        let digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
        for (method, path) in [
            ("HEAD", "manifests/2"),
            ("GET", &format!("manifests/{digest}")),
            ("GET", &format!("blobs/{digest}")),
            ("HEAD", &format!("blobs/{digest}")),
            ("GET", "tags/list"),
            ("GET", &format!("referrers/{digest}")),
        ] {
            // Each path once, as lines are found by it.
            let path = format!("/v2/refused.example/{}/{path}", method.to_ascii_lowercase());
            Ask::new(method, &path).send(larder.registry()).await.expect(503);
            let line = larder.wait_for_log(&path).await;
            assert!(
                line.contains("refused.example: the connection to 127.0.0.1:1 was refused"),
                "{method} {path}: {line}"
            );
        }
        is_plain(&larder.logs());
    }
}

/// Content that needs credentials for all that is known is refused while its upstream cannot be asked; the log says that it could not.
#[tokio::test]
async fn a_refusal_for_want_of_an_answer_says_so() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.upstream("refused.example", "url", "http://127.0.0.1:1");
        toml.upstream("refused.example", "username", "someone");
        toml.upstream("refused.example", "password", "hunter2");
    })
    .await;
    let path = "/v2/refused.example/app/manifests/1";
    let answer = larder.get(path).await.expect(404);
    assert!(
        !String::from_utf8_lossy(&answer.body).contains("127.0.0.1"),
        "{answer:?}"
    );
    let line_of = line(&larder, path).await;
    assert_eq!(line_of["outcome"], "refused", "{line_of}");
    let error = line_of["error"]
        .as_str()
        .unwrap_or_else(|| panic!("no error in {line_of}"));
    assert!(
        error.contains("refused.example: the connection to 127.0.0.1:1 was refused"),
        "{error}"
    );
    is_plain(&larder.logs());
}

/// A 404 is `missing` only if the registry says so. Denied access and a miss of an offline mirror are failed pulls with a reason,
/// and count in the ratio of hits.
#[tokio::test]
async fn a_404_that_stands_for_a_failure_says_why() {
    let upstream = Upstream::start().await;
    let denying = faulty(|u| drop(u.on(On::Any).always().status(403))).await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.everybody_may_pull();
        toml.upstream("denying.example", "url", denying.url());
        toml.upstream("denying.example", "username", "someone");
        toml.upstream("denying.example", "password", "hunter2");
        toml.upstream("offline.example", "url", upstream.url());
        toml.upstream("offline.example", "offline", true);
    })
    .await;
    for (name, outcome, words) in [
        ("denying.example", "error", "403"),
        ("offline.example", "error", "is not in this mirror"),
        ("docker.io", "missing", ""),
    ] {
        let path = format!("/v2/{name}/library/app/manifests/1");
        larder.get(&path).await.expect(404);
        let line_of = line(&larder, &path).await;
        assert_eq!(line_of["outcome"], outcome, "{line_of}");
        let error = line_of["error"].as_str().unwrap_or_default();
        assert!(
            error.contains(words) && error.is_empty() == words.is_empty(),
            "{line_of}"
        );
    }
    let stats = Ask::get("/api/v1/stats").send(larder.admin()).await.expect(200).json();
    let ratio = (&stats["hit_ratio"], &stats["served_bytes"], &stats["byte_hit_ratio"]);
    assert_eq!(ratio, (&json!(0.0), &json!(0), &Value::Null), "{stats:#}");
    is_plain(&larder.logs());
}

/// A response that breaks off says why: what the upstream did, or that the proxy ended it.
#[tokio::test]
async fn a_response_that_breaks_off_says_why() {
    let upstream = Upstream::start().await;
    let cut = upstream.blob(REPO, 1_000_000);
    let running = upstream.blob(REPO, 1_000_000);
    let left = upstream.blob(REPO, 1_000_000);
    let never = Gate::closed();
    upstream.on(On::Blob(cut).ranged()).always().status(500);
    upstream.on(On::Blob(cut).get()).next(1).cut_after(500_000);
    upstream.on(On::Blob(cut).get()).always().status(500);
    upstream.on(On::Blob(running)).stall_after(500_000, &never);
    upstream.on(On::Blob(left)).stall_after(500_000, &never);
    let mut larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.server("shutdown_grace", "100ms");
    })
    .await;
    let broken = larder.get(blob(REPO, cut)).await;
    assert!(broken.status == 200 && !broken.is_complete(), "{broken:?}");
    let line_of = line(&larder, &blob(REPO, cut)).await;
    assert_eq!(
        (&line_of["ended"], &line_of["complete"]),
        (&json!("broken"), &json!(false))
    );
    let error = line_of["error"].as_str().unwrap();
    assert!(error.starts_with("docker.io: answered 500"), "{error}");

    // A client that leaves is no failure.
    let mut exchange = Ask::get(blob(REPO, left)).open(larder.registry()).await;
    exchange.read_at_least(100_000).await;
    exchange.abort();
    let line_of = line(&larder, &blob(REPO, left)).await;
    assert_eq!((&line_of["ended"], line_of.get("error")), (&json!("aborted"), None));

    let mut exchange = Ask::get(blob(REPO, running)).open(larder.registry()).await;
    exchange.read_at_least(100_000).await;
    assert_eq!(larder.stop().await, Some(0), "{}", larder.logs());
    assert!(!exchange.rest().await.is_complete());
    let line_of = line(&larder, &blob(REPO, running)).await;
    assert_eq!(
        (&line_of["ended"], &line_of["error"]),
        (
            &json!("aborted"),
            &json!("the proxy stops, and cuts running responses (server.shutdown_grace)")
        )
    );
}

/// A stale answer says what the upstream did; one that goes down is one warning, however many ask; and one line when it is
/// back.
#[tokio::test]
async fn an_upstream_that_goes_down_is_told_of_once() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let missing = upstream.blob(REPO, 1000);
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.cache("tag_ttl", "0s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(200);
    upstream.go_down().await;
    // Until all repeats have failed.
    larder.get(manifest(REPO, "other")).await.expect(503);
    larder.wait_for_log("the registry is down").await;
    for _ in 0..20 {
        larder.get(manifest(REPO, "1")).await.expect(200);
        larder.get(manifest("library/other", "1")).await.expect(503);
        larder.get(blob(REPO, missing)).await.expect(503);
    }
    let lines = || -> Vec<Value> {
        let logs = larder.logs();
        let lines = logs.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.collect()
    };
    let refused = format!("the connection to {} was refused", upstream.address());
    let stale = within("a stale answer in the log", async {
        loop {
            if let Some(line) = lines().into_iter().find(|line| line["outcome"] == "stale") {
                return line;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(stale["error"], format!("docker.io: {refused}"), "{stale}");
    let warnings: Vec<Value> = lines().into_iter().filter(|line| line["level"] == "WARN").collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert_eq!(warnings[0]["address"], upstream.url(), "{warnings:#?}");
    assert_eq!(warnings[0]["reason"], refused, "{warnings:#?}");
    upstream.come_up().await;
    let back = larder.wait_for_log("answers again").await;
    assert!(back.contains(&upstream.url()) && back.contains("\"down_s\":"), "{back}");
    assert_eq!(larder.logs().matches("answers again").count(), 1);
}

/// A registry that keeps failing is down also where `answer_timeout` ends before all repeats have been sent.
#[tokio::test]
async fn a_short_answer_timeout_hides_no_outage() {
    let upstream = faulty(|u| drop(u.on(On::Any).always().status(500))).await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.upstream("docker.io", "answer_timeout", "1s");
    })
    .await;
    larder.get(manifest(REPO, "1")).await.expect(503);
    larder.wait_for_log("the registry is down").await;
}

/// A repeat that has little of `answer_timeout` left and is not answered in it hides no reason: that of the request before is told.
#[tokio::test]
async fn a_repeat_without_time_hides_no_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            // The first is closed when most of the time is over, its repeat is left without an answer.
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => tokio::time::sleep(Duration::from_millis(1300)).await,
                _ => kept.push(stream),
            }
        }
    });
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.upstream("late.example", "url", url.as_str());
        toml.upstream("late.example", "answer_timeout", "2s");
    })
    .await;
    let path = "/v2/late.example/app/manifests/1";
    larder.get(path).await.expect(503);
    let line = larder.wait_for_log(&format!("path=\"{path}\"")).await;
    assert!(line.contains("closed the connection instead of answering"), "{line}");
    assert!(asked.load(Ordering::SeqCst) > 1, "no repeat was sent");
}

/// Reasons of the proxy's own: too many connections, and content that cannot be read.
#[tokio::test]
async fn local_failures_say_why() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[300_000]);
    let layer = image.layers[0];
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.set(&["limits"], "max_connections_per_client", 1);
    })
    .await;
    larder.get(blob(REPO, layer)).await.expect_content(&layer);
    let file = larder.cache().join("blobs/sha256").join(layer.hex());
    within("the blob to be stored", async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The connection before may still have the one place.
    let first = within("a place for a connection", async {
        loop {
            let connection = Connection::open(larder.registry()).await;
            let (answer, connection) = connection.ask(&Ask::get("/v2/")).await;
            if answer.status == 200 {
                return connection;
            }
        }
    })
    .await;
    Ask::get("/v2/").send(larder.registry()).await.expect(503);
    let line_of = larder.wait_for_log("too many connections").await;
    let line_of: Value = serde_json::from_str(&line_of).unwrap();
    assert_eq!(
        (&line_of["target"], &line_of["status"], &line_of["error"]),
        (
            &json!("larder::access"),
            &json!(503),
            &json!("too many connections (limits.max_connections_per_client)")
        )
    );
    drop(first);

    // A link to itself is neither damage nor readable; and the upstream does not help.
    let larder = larder.restart().await;
    upstream.go_down().await;
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let path = blob(REPO, layer);
    within("the connection of before to be gone", async {
        while larder.get(&path).await.header("retry-after") != Some("2") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let line_of = larder.wait_for_log("cannot be read at the moment").await;
    let line_of: Value = serde_json::from_str(&line_of).unwrap();
    assert!(
        line_of["error"]
            .as_str()
            .is_some_and(|error| error.contains(&layer.to_string())),
        "{line_of}"
    );
    is_plain(&larder.logs());
}

/// A failure on the admin address has a line too; and an image that a prefetch did not bring is named.
#[tokio::test]
async fn failures_of_the_admin_address_and_of_prefetches_say_what_of() {
    let upstream = Upstream::start().await;
    upstream.image(REPO, "1", &[]);
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.upstream("refused.example", "url", "http://127.0.0.1:1");
    })
    .await;
    let call = |path: &str, body: Value| {
        Ask::new("POST", path)
            .header("content-type", "application/json")
            .body(body.to_string())
    };
    let refresh = call("/api/v1/refresh", json!({ "image": "refused.example/app:1" }));
    refresh.send(larder.admin()).await.expect(502);
    let line_of = line(&larder, "/api/v1/refresh").await;
    assert_eq!(
        (&line_of["status"], &line_of["method"]),
        (&json!(502), &json!("POST")),
        "{line_of}"
    );
    let error = line_of["error"].as_str().unwrap();
    assert!(
        error.contains("refused.example/app:1") && error.contains("the connection to 127.0.0.1:1 was refused"),
        "{error}"
    );

    let order = json!({ "images": ["alpine:1", "alpine:no-such-tag", "refused.example/app:2"], "referrers": false });
    call("/api/v1/prefetch", order).send(larder.admin()).await.expect(202);
    for (image, why) in [
        ("docker.io/library/alpine:no-such-tag", "answered 404"),
        ("refused.example/app:2", "the connection to 127.0.0.1:1 was refused"),
    ] {
        let line_of = larder.wait_for_log(&format!("\"image\":\"{image}\"")).await;
        let line_of: Value = serde_json::from_str(&line_of).unwrap();
        assert_eq!(line_of["level"], "WARN", "{line_of}");
        assert!(
            line_of["error"].as_str().is_some_and(|error| error.contains(why)),
            "{line_of}"
        );
    }
    is_plain(&larder.logs());
}

/// Anybody may ask for blobs that are not there: a line of the access log for each is enough.
#[tokio::test]
async fn missing_blobs_are_no_warnings() {
    for status in [404, 403, 429] {
        let upstream = Upstream::start().await;
        upstream.on(On::Any).always().status(status);
        let larder = LarderProcess::start(&upstream, |toml| {
            toml.set(&["log"], "format", "json");
        })
        .await;
        let paths: Vec<String> = (0..5)
            .map(|number| blob(REPO, format!("sha256:{number:064x}")))
            .collect();
        for path in &paths {
            let answer = Ask::get(path.clone()).send(larder.registry()).await;
            assert!(answer.status >= 400, "{}", answer.status);
            line(&larder, path).await;
        }
        let logs = larder.logs();
        assert!(!logs.contains("transfer failed"), "{status}: {logs}");
    }
}
