//! What clients may cost (R-X13).

use super::*;

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: larder\r\n{headers}\r\n")
}

#[tokio::test]
async fn long_paths_and_headers_are_refused() {
    let server = start(roomy()).await;
    let long = |length| format!("/{}", "x".repeat(length));
    assert!(server.tell(get(&long(17_000), "")).await.starts_with("HTTP/1.1 414 "));
    assert!(server.tell(get(&long(70_000), "")).await.starts_with("HTTP/1.1 414 "));
    let header = |length: usize| format!("Range: bytes={}\r\n", "0-1,".repeat(length / 4));
    let answer = server.tell(get("/", &header(80_000))).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 "),
        "a full download follows (R-C67): {answer}"
    );
    assert!(
        server
            .tell(get("/", &header(500_000)))
            .await
            .starts_with("HTTP/1.1 431 ")
    );
    assert!(
        server
            .tell(get("/", &"X: y\r\n".repeat(120)))
            .await
            .starts_with("HTTP/1.1 431 ")
    );
    assert_eq!(server.seen.load(Ordering::Relaxed), 0);
    let fine = get("/", &format!("{}Connection: close\r\n", header(60_000)));
    assert!(server.tell(fine).await.starts_with("HTTP/1.1 200 "));
    server.stopped().await;
}

#[tokio::test]
async fn http2_headers_are_limited_too() {
    let server = start(roomy()).await;
    let client = http2_client();
    let ask = |length| {
        client
            .get(format!("http://{}/", server.address))
            .header("range", "x".repeat(length))
            .send()
    };
    assert_eq!(ask(80_000).await.unwrap().status(), 400);
    assert_eq!(ask(60_000).await.unwrap().status(), 200);
    if let Ok(answer) = ask(300_000).await {
        assert_eq!(answer.status(), 431);
    }
    server.stopped().await;
}

#[tokio::test]
async fn half_a_request_has_its_time() {
    let server = start(Limits {
        header_timeout: Duration::from_millis(300),
        ..roomy()
    })
    .await;
    for half in [
        "G",
        "PRI * HT",
        "GET / HTTP/1.1\r\nHost: lar",
        "GET / HTTP/1.1\r\nHost: larder\r\nContent-Length: 5\r\n\r\nab",
    ] {
        assert_eq!(server.tell(half).await, "", "{half}");
    }
    // The second request of a connection as well, while a running response has all the time it needs.
    let mut tcp = server.connect().await;
    tcp.write_all(get("/", "").as_bytes()).await.unwrap();
    read_until(&mut tcp, "bytes").await;
    tcp.write_all(b"GET / HT").await.unwrap();
    assert_eq!(read_to_end(&mut tcp).await, "");
    assert_eq!(server.seen.load(Ordering::Relaxed), 1);
    server.stopped().await;
}

#[tokio::test]
async fn silence_has_its_time() {
    let server = start(Limits {
        idle_timeout: Duration::from_millis(300),
        ..roomy()
    })
    .await;
    assert_eq!(server.tell("").await, "", "never said a word");
    assert_eq!(
        server.tell(get("/", "")).await.matches("HTTP/1.1 200").count(),
        1,
        "said no more"
    );
    // A response that takes its time is no silence.
    let mut tcp = server.connect().await;
    tcp.write_all(get("/gated", "").as_bytes()).await.unwrap();
    read_until(&mut tcp, "first ").await;
    server.tell("").await;
    server.gate.notify_one();
    assert_eq!(read_to_end(&mut tcp).await, "second");
    server.stopped().await;
}

#[tokio::test]
async fn too_many_connections_are_told_so() {
    for (overall, per_client) in [(2, 9), (9, 2)] {
        let limits = Limits {
            max_connections: overall,
            max_connections_per_client: per_client,
            ..roomy()
        };
        let server = start(limits).await;
        let (mut first, mut second) = (server.connect().await, server.connect().await);
        for inside in [&mut first, &mut second] {
            inside.write_all(get("/", "").as_bytes()).await.unwrap();
            read_until(inside, "bytes").await;
        }
        let answer = server.tell(get("/", "")).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("Connection: close"),
            "{answer}"
        );
        drop((first, second));
        // Places come free when the server has seen them go.
        while !server
            .tell(get("/", "Connection: close\r\n"))
            .await
            .starts_with("HTTP/1.1 200 ")
        {}
        server.stopped().await;
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let server = start(roomy()).await;
    let error = Bound::bind(&Listen::Tcp(server.address), &[]).unwrap_err().to_string();
    assert!(
        error.contains(&format!("cannot listen on {}", server.address)),
        "{error}"
    );
    assert!(error.contains("another process"), "{error}");
    server.stopped().await;
}

#[tokio::test]
async fn a_reader_that_stands_still_costs_a_buffer_and_stops_nobody() {
    let server = start(roomy()).await;
    let client = http2_client();
    let mut standing = server.connect().await;
    standing.write_all(get("/endless", "").as_bytes()).await.unwrap();
    read_until(&mut standing, "\r\n\r\n").await;
    let _standing = client
        .get(format!("http://{}/endless", server.address))
        .send()
        .await
        .unwrap();
    for _ in 0..20 {
        assert!(server.tell(get("/broken/big", "")).await.len() > 8 * 1024 * 1024);
        let asked_for = server.asked_for.load(Ordering::Relaxed);
        assert!(
            asked_for < 24 * 1024 * 1024,
            "sockets' buffers and ours, but no more: {asked_for}"
        );
    }
}

/// Each connection may have one request in any case; what comes beside it counts against the limits of connections.
#[tokio::test]
async fn too_many_requests_by_http2_are_told_so() {
    let limits = Limits {
        max_connections_per_client: 2,
        ..roomy()
    };
    let server = start(limits).await;
    let client = http2_client();
    let gated = || client.get(format!("http://{}/gated", server.address)).send();
    let mut running = Vec::new();
    for _ in 0..3 {
        let mut answer = gated().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "first ");
        running.push(answer);
    }
    let refused = gated().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "5");
    assert!(refused.text().await.unwrap().contains("max_connections_per_client"));
    // Another connection, alone on it.
    let other = http2_client();
    let plain = || other.get(format!("http://{}/", server.address)).send();
    assert_eq!(plain().await.unwrap().status(), 200);
    for answer in running {
        server.gate.notify_one();
        assert_eq!(answer.text().await.unwrap(), "second");
    }
    let mut again = loop {
        let answer = gated().await.unwrap();
        if answer.status() == 200 {
            break answer;
        }
    };
    assert_eq!(again.chunk().await.unwrap().unwrap(), "first ");
    server.gate.notify_one();
    drop((again, client, other));
    server.stopped().await;
}

/// One frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// GET of `/` over http for `x`, by HPACK's static table.
const HEAD: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'x'];

/// Sends what a hostile client would until the server ends the connection; how many of the `bytes` it had taken by then.
async fn flood(server: &Server, bytes: Vec<u8>) -> usize {
    let (mut reading, mut writing) = server.connect().await.into_split();
    let sending = tokio::spawn(async move {
        writing.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        writing.write_all(&frame(4, 0, 0, &[])).await?;
        for (n, piece) in bytes.chunks(4096).enumerate() {
            if writing.write_all(piece).await.is_err() {
                return Ok(n * 4096);
            }
        }
        // Without a FIN: the server is to end it.
        writing.forget();
        io::Result::Ok(bytes.len())
    });
    let mut read = Vec::new();
    let ended = tokio::time::timeout(HANG, reading.read_to_end(&mut read)).await;
    let _ = ended.expect("the connection ends");
    sending.await.unwrap().unwrap_or(0)
}

#[tokio::test]
async fn floods_by_http2_end_the_connection() {
    let server = start(roomy()).await;
    // Requests that are reset at once (CVE-2023-44487).
    let resets: Vec<u8> = (1..20_000_u32)
        .step_by(2)
        .flat_map(|stream| [frame(1, 5, stream, HEAD), frame(3, 0, stream, &8_u32.to_be_bytes())].concat())
        .collect();
    flood(&server, resets).await;
    // A list of headers that never ends (CVE-2024-27316).
    let mut headers = frame(1, 1, 1, HEAD);
    // More than a connection that ends listens to.
    for _ in 0..10_000 {
        headers.extend(frame(
            9,
            0,
            1,
            &[&[0x00, 1, b'y', 0x7f, 0xd1, 0x0e][..], &[b'x'; 2000]].concat(),
        ));
    }
    let all = headers.len();
    let taken = flood(&server, headers).await;
    assert!(taken < all, "{taken} of {all} bytes were taken");
    assert!(server.tell(get("/", "Connection: close\r\n")).await.contains("200 OK"));
    server.stopped().await;
}
