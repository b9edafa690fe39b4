//! Behind reverse proxies: whose word makes a client's address, and what clients are told of where they are.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::client::{Ask, Connection, Response, http2};
use crate::support::larder::Larder;
use crate::support::process::LarderProcess;
use crate::support::toml::Toml;
use crate::support::upstream::{Upstream, basic};
use crate::support::{blob, manifest};

const REPO: &str = "library/alpine";

/// Header lines.
type Lines = [(&'static str, &'static str)];

/// This machine is a proxy, and so is 10.0.0.0/8; only 203.0.113.0/24 may pull.
fn trusting(toml: &mut Toml) {
    toml.server("trusted_proxies", vec!["127.0.0.1".to_owned(), "10.0.0.0/8".to_owned()]);
    rules(
        toml,
        json!([{ "from": "203.0.113.0/24", "may": "fetch", "private": true }]),
    );
}

fn trusting_others(toml: &mut Toml) {
    toml.server("trusted_proxies", vec!["127.0.0.9".to_owned()]);
}

fn rules(toml: &mut Toml, rules: Value) {
    let rules: toml::Value = serde_json::from_value(rules).unwrap();
    toml.set(&["access"], "rule", rules);
}

fn passwords() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = format!("alice:{}\n", bcrypt::hash("pw", 4).unwrap());
    std::fs::write(file.path(), line).unwrap();
    file
}

/// A GET behind a PROXY header.
async fn introduced(to: SocketAddr, header: &[u8], ask: &Ask) -> Response {
    let mut connection = Connection::open(to).await;
    connection.write(header).await;
    connection.exchange(ask).await.rest().await
}

fn line(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 10.0.0.1 4711 443\r\n").into_bytes()
}

/// Version 2.
fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [
        b"\r\n\r\n\0\r\nQUIT\n",
        &[0x20 | command, family][..],
        &length,
        addresses,
    ]
    .concat()
}

const INSIDE: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0, 1, 0, 2];

#[tokio::test]
async fn what_trusted_proxies_say_is_the_address() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    let mut larder = Larder::start(&upstream, trusting).await;
    let at = larder.registry();
    let (usual, standard) = ("X-Forwarded-For", "Forwarded");
    let cases: &[(&Lines, bool)] = &[
        (&[], false),
        (&[(usual, "203.0.113.9")], true),
        (&[(usual, "203.0.113.9:80, 10.1.1.1")], true),
        (&[(usual, "203.0.113.9"), (usual, "10.1.1.1")], true),
        (&[(usual, "::ffff:203.0.113.9")], true),
        // A client writes before what its proxy adds.
        (&[(usual, "203.0.113.9, 198.51.100.7")], false),
        (&[(usual, "203.0.113.9"), (usual, "198.51.100.7")], false),
        (&[(usual, "203.0.113.9, unknown, 10.1.1.1")], false),
        (&[(usual, "203.0.113.9, caf\u{e9}")], false),
        (&[(standard, "for=203.0.113.9")], true),
        (
            &[(standard, "for=\"203.0.113.9:_x\";proto=https, for=\"10.1.1.1\"")],
            true,
        ),
        (&[(standard, "for=203.0.113.9, for=\"[2001:db8::1]:80\"")], false),
        (&[(standard, "for=\", for=203.0.113.9")], true),
        (&[(standard, "for=unknown")], false),
        (&[(usual, "198.51.100.7"), (standard, "for=203.0.113.9")], false),
        (&[(usual, "unknown"), (standard, "for=203.0.113.9")], false),
        (&[(usual, "203.0.113.9"), (standard, "for=198.51.100.7")], true),
    ];
    // Cold and hot, by both versions of HTTP.
    for _ in 0..2 {
        for (headers, may) in cases {
            let ask = headers
                .iter()
                .fold(Ask::get(manifest(REPO, "1")), |ask, (name, value)| {
                    ask.header(name, value)
                });
            for answer in [ask.clone().send(at).await, http2(at, ask).await] {
                assert_eq!(answer.status, if *may { 200 } else { 403 }, "{headers:?}: {answer:?}");
            }
        }
    }
    let ask = Ask::get(manifest(REPO, "1"));
    let claiming = ask.clone().header(usual, "203.0.113.9");
    let v6: std::net::Ipv6Addr = "::ffff:203.0.113.9".parse().unwrap();
    let v6 = [&v6.octets()[..], &[0; 20]].concat();
    let introductions: Vec<(Vec<u8>, &Ask, bool)> = vec![
        (line("203.0.113.9"), &ask, true),
        (line("198.51.100.7"), &ask, false),
        // It is that client who speaks HTTP: what it claims counts no more than any client's.
        (line("198.51.100.7"), &claiming, false),
        // Unless it is a proxy of its own.
        (line("10.1.1.1"), &claiming, true),
        (b"PROXY UNKNOWN\r\n".to_vec(), &ask, false),
        (b"PROXY UNKNOWN\r\n".to_vec(), &claiming, false),
        (binary(1, 0x11, &INSIDE), &ask, true),
        (binary(1, 0x21, &v6), &ask, true),
        (binary(1, 0x11, &[&INSIDE[..], &[4, 0, 1, 0]].concat()), &ask, true),
        (binary(1, 0x00, &INSIDE), &claiming, false),
        // The proxy itself.
        (binary(0, 0x11, &INSIDE), &ask, false),
        (binary(0, 0x00, &[]), &claiming, true),
    ];
    for (header, ask, may) in &introductions {
        let answer = introduced(at, header, ask).await;
        let shown = String::from_utf8_lossy(header);
        assert_eq!(
            answer.status,
            if *may { 200 } else { 403 },
            "{shown:?} {ask:?}: {answer:?}"
        );
    }
    // An open connection keeps what its header said, as long as its proxy is trusted.
    let mut connection = Connection::open(at).await;
    connection.write(&line("203.0.113.9")).await;
    let (answer, connection) = connection.ask(&ask).await;
    answer.expect_content(&image.manifest);

    // Nobody else is believed, and nothing of it is an error.
    let reloaded = larder.reload(trusting_others).unwrap();
    assert_eq!(reloaded.changed, ["server.trusted_proxies"]);
    connection.ask(&ask).await.0.expect(403);
    for (headers, _) in cases {
        let ask = headers
            .iter()
            .fold(Ask::get(manifest(REPO, "1")), |ask, (name, value)| {
                ask.header(name, value)
            });
        ask.clone().send(at).await.expect(403);
        http2(at, ask).await.expect(403);
    }
    for (header, ask, _) in &introductions {
        introduced(at, header, ask).await.expect(403);
    }
    larder.reload(trusting).unwrap();
    claiming.send(at).await.expect_content(&image.manifest);
}

/// After a reload that trusts a proxy, its open connections stay those of the clients that their headers named: what
/// such a client writes into its requests is no proxy's word.
#[tokio::test]
async fn a_header_from_before_the_reload_that_trusts_its_proxy_counts() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    let mut larder = Larder::start(&upstream, |toml| {
        trusting(toml);
        trusting_others(toml);
    })
    .await;
    let ask = Ask::get(manifest(REPO, "1"));
    let claiming = ask.clone().header("X-Forwarded-For", "203.0.113.9");
    let mut kept = Vec::new();
    for header in [line("198.51.100.7"), b"PROXY UNKNOWN\r\n".to_vec(), line("203.0.113.9")] {
        let mut connection = Connection::open(larder.registry()).await;
        connection.write(&header).await;
        let (answer, connection) = connection.ask(&ask).await;
        answer.expect(403);
        kept.push(connection);
    }
    larder.reload(trusting).unwrap();
    let inside = kept.pop().unwrap();
    for outside in kept {
        outside.ask(&claiming).await.0.expect(403);
    }
    inside.ask(&ask).await.0.expect_content(&image.manifest);
}

/// The log names the client that a limit refuses, and says what is wrong with a PROXY header.
#[tokio::test]
async fn refusals_and_bad_headers_are_logged() {
    let upstream = Upstream::start().await;
    let larder = LarderProcess::start(&upstream, |toml| {
        toml.set(&["log"], "format", "json");
        toml.set(&["limits"], "max_connections_per_client", 1);
        toml.server("trusted_proxies", vec!["127.0.0.1".to_owned()]);
    })
    .await;
    let at = larder.registry();
    let ping = Ask::get("/v2/");
    let mut idle = Connection::open(at).await;
    idle.write(&line("203.0.113.9")).await;
    let (answer, idle) = idle.ask(&ping).await;
    answer.expect(200);
    ping.clone()
        .header("X-Forwarded-For", "203.0.113.9")
        .send(at)
        .await
        .expect(503);
    let logged = larder.wait_for_log("too many requests at once").await;
    let logged: Value = serde_json::from_str(&logged).unwrap();
    assert_eq!(
        (&logged["target"], &logged["client"]),
        (&json!("larder::access"), &json!("203.0.113.9")),
        "{logged}"
    );
    drop(idle);

    for _ in 0..2 {
        let mut broken = Connection::open(at).await;
        broken.write(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711\r\n").await;
        assert_eq!(broken.read_to_end().await.0, b"");
    }
    let logged = larder.wait_for_log("a PROXY header that is broken").await;
    assert!(
        logged.contains("WARN") && logged.contains("expected two addresses and two ports"),
        "{logged}"
    );
    // Where no proxy is ever believed it is no use to look for this one in the list.
    introduced(larder.admin(), &line("203.0.113.9"), &Ask::get("/healthz"))
        .await
        .expect(200);
    let logged = larder.wait_for_log("a PROXY protocol header is ignored").await;
    assert!(
        logged.contains("WARN") && logged.contains("not the registry's") && !logged.contains("is not in"),
        "{logged}"
    );
    assert_eq!(larder.logs().matches("a PROXY header that is broken").count(), 1);
}

/// The audit log and the list of wishes name the client, not the proxy.
#[tokio::test]
async fn what_is_written_down_names_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    let larder = Larder::start(&upstream, |toml| {
        toml.set(&["audit"], "file", file.to_str().unwrap());
        toml.server("trusted_proxies", vec!["127.0.0.1".to_owned()]);
    })
    .await;
    let at = larder.registry();
    let ask = Ask::get(manifest(REPO, "1")).header("Host", "inside:5000");
    let by_header = ask.clone().header("X-Forwarded-For", "192.0.2.1, 203.0.113.9");
    let by_header = by_header
        .header("X-Forwarded-Host", "larder.example")
        .header("X-Forwarded-Proto", "https");
    by_header.send(at).await.expect_content(&image.manifest);
    introduced(at, &line("203.0.113.8"), &ask).await.expect(200);
    let stopped = larder.stop().await;
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let pulls: Vec<&Value> = lines.iter().filter(|line| line["action"] == "pull").collect();
    let mut clients: Vec<&str> = pulls.iter().map(|pull| pull["client"].as_str().unwrap()).collect();
    clients.sort_unstable();
    assert_eq!(clients, ["203.0.113.8:4711", "203.0.113.9"], "{text}");

    let larder = stopped
        .start(|toml| {
            toml.cache("offline", true);
        })
        .await;
    let missing = Ask::get(manifest("library/none", "1")).header("X-Forwarded-For", "203.0.113.7");
    missing.send(larder.registry()).await.expect(404);
    let wishes = Ask::get("/api/v1/wishes").send(larder.admin()).await.expect(200);
    let wishes = String::from_utf8(wishes.body).unwrap();
    assert!(
        wishes.contains("203.0.113.7") && !wishes.contains("127.0.0.1"),
        "{wishes}"
    );
}

fn realm(answer: &Response) -> String {
    let challenge = answer.header("www-authenticate").unwrap();
    let rest = challenge.strip_prefix("Bearer realm=\"").unwrap();
    assert!(rest.contains("service=\"larder\""), "{challenge}");
    rest.split('"').next().unwrap().to_owned()
}

/// Scheme, host and path of the token server and of the next page are as the client sees them.
#[tokio::test]
async fn clients_are_told_their_own_address() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    upstream.image(REPO, "2", &[]);
    let users = passwords();
    let mut larder = Larder::start(&upstream, |toml| {
        toml.set(&["access"], "htpasswd_file", users.path().to_str().unwrap());
        rules(toml, json!([{ "who": "alice", "may": "fetch", "private": true }]));
        toml.server("trusted_proxies", vec!["127.0.0.1".to_owned()]);
    })
    .await;
    let at = larder.registry();
    let ask = |path: &str, headers: &[(&str, &str)]| {
        let ask = Ask::get(path).header("Host", "inside:5000");
        headers.iter().fold(ask, |ask, (name, value)| ask.header(name, value))
    };
    let (proto, host, prefix) = ("X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Prefix");
    let paths = ["/v2/", &manifest(REPO, "1"), "/v2/_catalog"];
    let cases: &[(&Lines, &str, &str)] = &[
        (&[], "http://inside:5000/v2/_token", "/v2/library/alpine"),
        (
            &[(proto, "https")],
            "https://inside:5000/v2/_token",
            "/v2/library/alpine",
        ),
        (
            &[(proto, "https"), (host, "larder.example"), (prefix, "/registry")],
            "https://larder.example/registry/v2/_token",
            "/registry/v2/library/alpine",
        ),
        (
            &[(host, "larder.example:8443"), (prefix, "/v2/mirror/")],
            "http://larder.example:8443/v2/mirror/_token",
            "/v2/mirror/library/alpine",
        ),
        // Anything but a host and a path changes nothing.
        (
            &[(host, "me@evil.example"), (prefix, "//evil.example")],
            "http://inside:5000/v2/_token",
            "/v2/library/alpine",
        ),
        (
            &[(host, "evil.example/x"), (prefix, "/a\">; rel=\"next\", <b")],
            "http://inside:5000/v2/_token",
            "/v2/library/alpine",
        ),
    ];
    let alice = basic("alice", "pw");
    for (headers, wanted, below) in cases {
        for path in paths {
            assert_eq!(
                realm(&ask(path, headers).send(at).await.expect(401)),
                *wanted,
                "{path} {headers:?}"
            );
        }
        let page = ask(&format!("/v2/{REPO}/tags/list?n=1"), headers).header("Authorization", &alice);
        let page = page.send(at).await.expect(200);
        let link = format!("<{below}/tags/list?last=1&n=1>; rel=\"next\"");
        assert_eq!(page.header("link"), Some(&*link), "{headers:?}");
    }
    // From anybody else only the scheme, and that only for the realm.
    let all = cases[2].0;
    ask(&manifest(REPO, "1"), all)
        .header("Authorization", &alice)
        .send(at)
        .await
        .expect_content(&image.manifest);
    ask(&manifest(REPO, "2"), all)
        .header("Authorization", &alice)
        .send(at)
        .await
        .expect(200);
    upstream.image("library/other", "1", &[]);
    ask(&manifest("library/other", "1"), all)
        .header("Authorization", &alice)
        .send(at)
        .await
        .expect(200);
    let catalog = ask("/v2/_catalog?n=1", all)
        .header("Authorization", &alice)
        .send(at)
        .await
        .expect(200);
    let link = catalog.header("link").unwrap();
    assert!(link.starts_with("</registry/v2/_catalog?last="), "{link}");
    larder.reload(trusting_others).unwrap();
    let refused = ask("/v2/", all).send(at).await.expect(401);
    assert_eq!(realm(&refused), "https://inside:5000/v2/_token");
    let page = ask(&format!("/v2/{REPO}/tags/list?n=1"), all)
        .header("Authorization", &alice)
        .send(at)
        .await;
    assert_eq!(
        page.header("link"),
        Some("</v2/library/alpine/tags/list?last=1&n=1>; rel=\"next\"")
    );
    // Nor from a client that a proxy speaks for by a PROXY header.
    larder
        .reload(|toml| {
            toml.server("trusted_proxies", vec!["127.0.0.1".to_owned()]);
        })
        .unwrap();
    let refused = introduced(at, &line("203.0.113.9"), &ask("/v2/", all)).await;
    assert_eq!(realm(&refused), "https://inside:5000/v2/_token");
}

/// Where a proxy passes `/v2/` and nothing else, a login works; where clients know the old path, it does too.
#[tokio::test]
async fn tokens_are_given_below_v2() {
    let upstream = Upstream::start().await;
    let image = upstream.image(REPO, "1", &[1000]);
    let users = passwords();
    let with_users = |toml: &mut Toml| {
        toml.set(&["access"], "htpasswd_file", users.path().to_str().unwrap());
        rules(toml, json!([{ "who": "alice", "may": "fetch", "private": true }]));
    };
    let larder = Larder::start(&upstream, with_users).await;
    let at = larder.registry();
    let realm = realm(&larder.get("/v2/").await.expect(401));
    assert_eq!(realm, format!("http://{at}/v2/_token"));
    let form = "grant_type=password&service=larder&username=alice&password=pw";
    for path in ["/v2/_token", "/token"] {
        let by_basic = Ask::get(format!("{path}?service=larder&scope=repository:{REPO}:pull"));
        let by_form = Ask::new("POST", path)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form);
        for ask in [by_basic.header("Authorization", basic("alice", "pw")), by_form] {
            let answer = ask.send(at).await.expect(200);
            let token = answer.json()["token"].as_str().unwrap().to_owned();
            // One is as good as the other.
            let pull = Ask::get(blob(REPO, image.layers[0])).header("Authorization", format!("Bearer {token}"));
            pull.send(at).await.expect_content(&image.layers[0]);
        }
        let wrong = Ask::get(format!("{path}?service=larder")).header("Authorization", basic("alice", "wrong"));
        wrong.send(at).await.expect(401);
        Ask::new("PUT", path).send(at).await.expect(404);
    }
    // Nobody's repository is there.
    for path in ["/v2/_token/manifests/1", "/v2/_token/tags/list"] {
        let answer = Ask::get(path)
            .header("Authorization", basic("alice", "pw"))
            .send(at)
            .await
            .expect(400);
        assert_eq!(answer.error_code(), "NAME_INVALID");
    }
    let open = Larder::start(&upstream, |_| {}).await;
    for path in ["/v2/_token", "/token"] {
        open.get(path).await.expect(404);
    }
}
