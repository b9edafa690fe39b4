//! Requests and answers as bytes.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: larder\r\n\r\n";
const CLOSE: &str = "GET / HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn http1_keeps_the_connection_and_knows_the_client() {
    let server = start(roomy()).await;
    let mut tcp = server.connect().await;
    for _ in 0..3 {
        tcp.write_all(GET.as_bytes()).await.unwrap();
        assert!(
            read_until(&mut tcp, "127.0.0.1 sent 0 bytes")
                .await
                .starts_with("HTTP/1.1 200 OK\r\n")
        );
    }
    tcp.write_all(format!("{GET}{CLOSE}").as_bytes()).await.unwrap();
    assert_eq!(
        read_to_end(&mut tcp).await.matches("HTTP/1.1 200 OK").count(),
        2,
        "pipelined"
    );
    server.stopped().await;
}

#[tokio::test]
async fn http2_by_prior_knowledge() {
    let server = start(roomy()).await;
    let client = http2_client();
    let ask = || client.get(format!("http://{}/", server.address)).send();
    let answers = futures_util::future::join_all((0..20).map(|_| ask())).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.version(), axum::http::Version::HTTP_2);
        assert_eq!(answer.text().await.unwrap(), "127.0.0.1 sent 0 bytes");
    }
    let missing = client
        .head(format!("http://{}/missing", server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            missing.status().as_u16(),
            missing.headers()["content-length"].to_str().unwrap()
        ),
        (404, "57")
    );
    assert_eq!(missing.bytes().await.unwrap(), "");
    server.stopped().await;
}

#[tokio::test]
async fn a_request_in_small_pieces_that_resembles_http2() {
    let server = start(roomy()).await;
    let mut tcp = server.connect().await;
    // The preface begins with PRI, and a method may do so too.
    for piece in [
        "P",
        "R",
        "IN",
        "T / HTTP/1.1\r\nHost: larder\r\n",
        "Connection: close\r\n\r\n",
    ] {
        tcp.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(read_to_end(&mut tcp).await.starts_with("HTTP/1.1 405 "));
    server.stopped().await;
}

#[tokio::test]
async fn a_head_has_the_length_of_a_get_and_no_body() {
    let server = start(roomy()).await;
    let get = server
        .tell("GET /missing HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n")
        .await;
    let (head, body) = get.split_once("\r\n\r\n").unwrap();
    let length = format!("content-length: {}", body.len());
    assert!(head.contains(&length), "{head}");
    let get = server
        .tell("HEAD /missing HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        get.starts_with("HTTP/1.1 404 ") && get.contains(&length) && get.ends_with("\r\n\r\n"),
        "{get}"
    );
    server.stopped().await;
}

#[tokio::test]
async fn a_get_may_carry_a_body() {
    let server = start(roomy()).await;
    let mut tcp = server.connect().await;
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: larder\r\nContent-Length: 9\r\n\r\n")
        .await
        .unwrap();
    tcp.write_all(b"blablabla").await.unwrap();
    assert!(
        read_until(&mut tcp, "sent 0 bytes")
            .await
            .starts_with("HTTP/1.1 200 OK"),
        "read, but not passed on"
    );
    // The connection is still in step.
    tcp.write_all(CLOSE.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut tcp).await.starts_with("HTTP/1.1 200 OK"));
    server.stopped().await;
}

#[tokio::test]
async fn a_get_with_a_large_body_is_answered_and_ends_the_connection() {
    let server = start(roomy()).await;
    let mut request = b"GET / HTTP/1.1\r\nHost: larder\r\nContent-Length: 1000000\r\n\r\n".to_vec();
    request.resize(request.len() + 1_000_000, b'x');
    let answer = server.tell(request).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"),
        "{answer}"
    );
    server.stopped().await;
}

#[tokio::test]
async fn a_push_is_refused_without_a_reset() {
    let server = start(roomy()).await;
    let mut request = b"PUT / HTTP/1.1\r\nHost: larder\r\nContent-Length: 1000000\r\n\r\n".to_vec();
    request.resize(request.len() + 1_000_000, b'x');
    assert!(server.tell(request).await.starts_with("HTTP/1.1 405 "));
    server.stopped().await;
}

#[tokio::test]
async fn requests_that_two_servers_could_read_differently_are_refused() {
    let server = start(roomy()).await;
    let shapes = [
        "GET / HTTP/1.1\r\nHost: larder\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: larder\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: larder\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\nContent-Length: +5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\nContent-Length : 5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\nHost: other\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: larder\r\n X-Folded: 1\r\n\r\n",
        "\0\r\n\r\n",
    ];
    for shape in shapes {
        let answer = server.tell(shape).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{shape:?}: {answer:?}"
        );
        assert_eq!(
            answer.matches("HTTP/1.").count(),
            1,
            "one answer, then the end: {shape:?}: {answer:?}"
        );
    }
    assert_eq!(server.seen.load(Ordering::Relaxed), 0, "no route saw any of them");
    server.stopped().await;
}

#[tokio::test]
async fn other_shapes_of_target_and_expectations_are_understood() {
    let server = start(roomy()).await;
    let ask =
        |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n{headers}\r\n");
    assert!(
        server
            .tell(ask("GET http://larder/", ""))
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    assert!(server.tell(ask("OPTIONS *", "")).await.starts_with("HTTP/1.1 404 "));
    assert!(
        server
            .tell(ask("CONNECT larder:443", ""))
            .await
            .starts_with("HTTP/1.1 404 ")
    );
    assert!(
        server
            .tell(ask("GET /", "Upgrade: h2c\r\n"))
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    let expecting = ask("GET /", "Content-Length: 2\r\nExpect: 100-continue\r\n");
    let mut tcp = server.connect().await;
    tcp.write_all(expecting.as_bytes()).await.unwrap();
    read_until(&mut tcp, "HTTP/1.1 100 Continue\r\n\r\n").await;
    tcp.write_all(b"ab").await.unwrap();
    assert!(read_to_end(&mut tcp).await.starts_with("HTTP/1.1 200 "));
    server.stopped().await;
}
