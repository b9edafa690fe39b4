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
