//! Proxies in front: whose connections and requests count for whom, and what a PROXY header may look like. That their
//! word makes an address is shown where addresses count: `tests/it/proxies.rs`.

use rustls::pki_types::ServerName;

use super::secure::{Files, connector};
use super::*;
use crate::http::server::tls::Certificates;

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: larder\r\n{headers}\r\n")
}

fn proxies(net: &str) -> LiveProxies {
    let proxies = LiveProxies::default();
    proxies.set([net.parse().unwrap()].into_iter().collect());
    proxies
}

/// A client may have two of anything; this machine is a proxy.
async fn start_few() -> Server {
    let limits = Limits {
        max_connections_per_client: 2,
        ..roomy()
    };
    start_behind(&proxies("127.0.0.1/32"), router, limits, None, HANG).await
}

fn line(client: &str) -> String {
    format!("PROXY TCP4 {client} 10.0.0.1 4711 443\r\n")
}

/// Version 2, with an extension that nobody wants.
fn binary(command: u8, client: [u8; 4]) -> Vec<u8> {
    let addresses = [&client[..], &[10, 0, 0, 1], &[0x12, 0x67, 1, 0xbb]].concat();
    let extension = [4, 0, 2, 0, 0];
    let head = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, 0x11, 0, 17]].concat();
    [head, addresses, extension.to_vec()].concat()
}

/// Until `n` requests of a client that is at its limit would be answered.
async fn until_let_in(server: &Server, begin: &[u8], headers: &str) {
    loop {
        let ask = [begin, get("/", &format!("Connection: close\r\n{headers}")).as_bytes()].concat();
        if server.tell(ask).await.starts_with("HTTP/1.1 200 ") {
            return;
        }
    }
}

#[tokio::test]
async fn a_proxy_is_not_limited_and_its_clients_are() {
    let server = start_few().await;
    let one = "X-Forwarded-For: 192.0.2.1, 203.0.113.9\r\n";
    let mut running = Vec::new();
    for _ in 0..2 {
        let mut tcp = server.connect().await;
        tcp.write_all(get("/gated", one).as_bytes()).await.unwrap();
        read_until(&mut tcp, "first ").await;
        running.push(tcp);
    }
    // A claim before what the proxy says makes him nobody else.
    let other_claim = "X-Forwarded-For: 192.0.2.2\r\nX-Forwarded-For: 203.0.113.9, 127.0.0.1\r\n";
    let refused = server.tell(get("/", other_claim)).await;
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("max_connections_per_client"),
        "{refused}"
    );
    assert!(refused.contains("retry-after: 5"), "{refused}");
    // Others are not in the way of anybody, nor is the proxy itself, however many of its connections there are.
    let mut idle = Vec::new();
    for headers in [
        "X-Forwarded-For: 203.0.113.8\r\n",
        "",
        "",
        "",
        "X-Forwarded-For: unknown\r\n",
    ] {
        let mut tcp = server.connect().await;
        tcp.write_all(get("/", headers).as_bytes()).await.unwrap();
        read_until(&mut tcp, "bytes").await;
        idle.push(tcp);
    }
    // A connection that has answered counts for nobody: the next request on it is another client's.
    let mut kept = idle.remove(0);
    kept.write_all(get("/", "X-Forwarded-For: 203.0.113.7\r\n").as_bytes())
        .await
        .unwrap();
    read_until(&mut kept, "bytes").await;
    for mut tcp in running {
        server.gate.notify_one();
        read_until(&mut tcp, "second").await;
    }
    until_let_in(&server, b"", one).await;
    drop((idle, kept));
    server.stopped().await;
}

#[tokio::test]
async fn many_clients_on_one_connection_by_http2() {
    let server = start_few().await;
    let client = http2_client();
    let gated = |from: &str| {
        let ask = client.get(format!("http://{}/gated", server.address));
        ask.header("x-forwarded-for", from).send()
    };
    let mut running = Vec::new();
    for from in [
        "203.0.113.9",
        "203.0.113.9",
        "203.0.113.8",
        "203.0.113.8",
        "203.0.113.7",
    ] {
        let mut answer = gated(from).await.unwrap();
        assert_eq!(answer.status(), 200, "{from}");
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "first ");
        running.push(answer);
    }
    for from in ["203.0.113.9", "192.0.2.5, 203.0.113.8"] {
        let refused = gated(from).await.unwrap();
        assert_eq!(refused.status(), 503, "{from}");
        assert!(refused.text().await.unwrap().contains("of one client"));
    }
    for answer in running {
        server.gate.notify_one();
        assert_eq!(answer.text().await.unwrap(), "second");
    }
    until_let_in(&server, b"", "X-Forwarded-For: 203.0.113.9\r\n").await;
    drop(client);
    server.stopped().await;
}

#[tokio::test]
async fn a_connection_counts_for_whom_its_header_names() {
    let server = start_few().await;
    let mut inside = Vec::new();
    for header in [line("203.0.113.9").into_bytes(), binary(1, [203, 0, 113, 9])] {
        let mut tcp = server.connect().await;
        tcp.write_all(&header).await.unwrap();
        tcp.write_all(get("/", "").as_bytes()).await.unwrap();
        read_until(&mut tcp, "bytes").await;
        inside.push(tcp);
    }
    // Idle as these are, they are two.
    for header in [line("203.0.113.9").into_bytes(), binary(1, [203, 0, 113, 9])] {
        let refused = server.tell([&header[..], get("/", "").as_bytes()].concat()).await;
        assert!(
            refused.starts_with("HTTP/1.1 503 ") && refused.contains("Connection: close"),
            "{refused}"
        );
    }
    // Headers of a client that came so are its own claims: they are no way out.
    let claimed = get("/", "X-Forwarded-For: 203.0.113.1\r\n");
    let refused = server.tell([line("203.0.113.9"), claimed].concat()).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    // The proxy asks for itself, or does not say for whom.
    for _ in 0..3 {
        for header in [binary(0, [203, 0, 113, 9]), b"PROXY UNKNOWN\r\n".to_vec(), Vec::new()] {
            let ask = [&header[..], get("/", "Connection: close\r\n").as_bytes()].concat();
            let answer = server.tell(&ask).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
    until_let_in(&server, line("203.0.113.8").as_bytes(), "").await;
    // A health check that asks nothing.
    let mut check = server.connect().await;
    check.write_all(&binary(0, [0; 4])).await.unwrap();
    drop(check);
    drop(inside);
    until_let_in(&server, line("203.0.113.9").as_bytes(), "").await;
    server.stopped().await;
}

#[tokio::test]
async fn a_broken_header_ends_the_connection() {
    let limits = Limits {
        header_timeout: Duration::from_millis(300),
        ..roomy()
    };
    let server = start_behind(&proxies("127.0.0.1/32"), router, limits, None, HANG).await;
    let mut version_3 = binary(1, [203, 0, 113, 9]);
    version_3[12] = 0x31;
    for broken in [
        "PROXY TCP4 203.0.113.9 10.0.0.1 4711\r\n".into(),
        "PROXY TCP4 203.0.113.9.1 10.0.0.1 4711 443\r\n".into(),
        format!("PROXY UNKNOWN {}", "x".repeat(200)).into_bytes(),
        version_3,
        // From here on they take too long.
        "PROXY TCP4 203.0.113.9 10.0.0.1 47".into(),
        binary(1, [203, 0, 113, 9])[..20].to_vec(),
        "P".into(),
    ] {
        let ask = [&broken[..], get("/", "").as_bytes()].concat();
        let is_whole = broken.len() > 1 && !broken.ends_with(b"47") && broken.len() != 20;
        let sent = if is_whole { &ask } else { &broken };
        assert_eq!(server.tell(sent).await, "", "{:?}", String::from_utf8_lossy(&broken));
    }
    assert_eq!(server.seen.load(Ordering::Relaxed), 0);
    server.stopped().await;
}

/// A method of that name is a client's: whoever passes it on must see an answer, or takes the server for broken.
#[tokio::test]
async fn a_method_that_is_called_proxy_is_answered() {
    for server in [start(roomy()).await, start_few().await] {
        for path in ["/", "/v2/library/alpine/manifests/1", "http://larder/"] {
            let ask = get(path, "Connection: close\r\n").replacen("GET", "PROXY", 1);
            let wanted = if path.contains("v2") {
                "HTTP/1.1 404 "
            } else {
                "HTTP/1.1 405 "
            };
            let answer = server.tell(&ask).await;
            assert!(answer.starts_with(wanted), "{ask}: {answer}");
            // In pieces.
            let mut tcp = server.connect().await;
            for piece in ask.as_bytes().chunks(3) {
                tcp.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert!(read_to_end(&mut tcp).await.starts_with(wanted));
            let behind = [line("203.0.113.9"), ask].concat();
            assert!(server.tell(behind).await.starts_with(wanted));
        }
        server.stopped().await;
    }
}

/// A broken header from an untrusted address gets HTTP's answer.
#[tokio::test]
async fn broken_headers_of_others_are_answered() {
    let mut version_3 = binary(1, [203, 0, 113, 9]);
    version_3[12] = 0x31;
    let server = start_behind(&proxies("203.0.113.0/24"), router, roomy(), None, HANG).await;
    for broken in [
        b"PROXY TCP4 203.0.113.9 10.0.0.1 4711\r\n".to_vec(),
        format!("PROXY UNKNOWN {}", "x".repeat(200)).into_bytes(),
        version_3,
    ] {
        let answer = server.tell([&broken[..], get("/", "").as_bytes()].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(server.seen.load(Ordering::Relaxed), 0);
    server.stopped().await;
}

/// Idle connections of a proxy leave the share of who comes from the proxy's own address untouched.
#[tokio::test]
async fn connections_of_a_proxy_are_in_nobodys_share() {
    let limits = Limits {
        max_connections_per_client: 2,
        ..roomy()
    };
    let proxies = proxies("127.0.0.1/32");
    let server = start_behind(&proxies, router, limits, None, HANG).await;
    let mut idle = Vec::new();
    for n in 0..7 {
        // The last two are no proxy's any more.
        if n == 5 {
            proxies.set(TrustedProxies::default());
        }
        let mut tcp = server.connect().await;
        tcp.write_all(get("/", "").as_bytes()).await.unwrap();
        let answer = read_until(&mut tcp, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{n}: {answer}");
        idle.push(tcp);
    }
    assert!(server.tell(get("/", "")).await.starts_with("HTTP/1.1 503 "));
    drop(idle);
    server.stopped().await;
}

/// A header from an address that is no trusted proxy is read and not believed; what only looks like one is HTTP.
#[tokio::test]
async fn headers_of_others_change_nothing() {
    for server in [
        start(roomy()).await,
        start_behind(&proxies("203.0.113.0/24"), router, roomy(), None, HANG).await,
    ] {
        for header in [
            line("203.0.113.9").into_bytes(),
            binary(1, [203, 0, 113, 9]),
            Vec::new(),
        ] {
            let headers = "Connection: close\r\nX-Forwarded-For: 203.0.113.9\r\nForwarded: for=\"\r\n";
            let answer = server.tell([&header[..], get("/", headers).as_bytes()].concat()).await;
            assert!(
                answer.contains("200 OK") && answer.ends_with("127.0.0.1 sent 0 bytes"),
                "{answer}"
            );
        }
        let twice = [line("203.0.113.9"), line("203.0.113.9"), get("/", "")].concat();
        assert!(server.tell(twice).await.starts_with("HTTP/1.1 400 "));
        let posted = "POST / HTTP/1.1\r\nHost: larder\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(server.tell(posted).await.starts_with("HTTP/1.1 405 "));
        assert_eq!(
            http2_client()
                .get(format!("http://{}/", server.address))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
        server.stopped().await;
    }
}

#[tokio::test]
async fn tls_begins_behind_the_header() {
    let files = Files::new();
    let trusted = files.renew();
    let certificates = Certificates::load_with(&files.tls, &Arc::default(), Duration::ZERO).unwrap();
    let server = start_behind(&proxies("127.0.0.1/32"), router, roomy(), Some(certificates), HANG).await;
    for header in [
        line("203.0.113.9").into_bytes(),
        binary(1, [203, 0, 113, 9]),
        binary(0, [0; 4]),
        Vec::new(),
    ] {
        let mut tcp = server.connect().await;
        tcp.write_all(&header).await.unwrap();
        let name = ServerName::try_from("larder").unwrap();
        let mut stream = connector(&trusted, &[], None).connect(name, tcp).await.unwrap();
        stream
            .write_all(get("/", "Connection: close\r\n").as_bytes())
            .await
            .unwrap();
        assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
    }
    let plain = [line("203.0.113.9"), get("/", "")].concat();
    assert!(
        server
            .tell(plain)
            .await
            .contains("Client sent an HTTP request to an HTTPS server.")
    );
    server.stopped().await;
}
