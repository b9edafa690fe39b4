//! How connections end: with FIN, with everything that was sent before, and in time (R-C14).

use super::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: larder\r\n\r\n")
}

#[tokio::test]
async fn a_response_that_breaks_off_ends_short_with_fin() {
    let server = start(roomy()).await;
    for path in ["/broken", "/broken/at-once", "/short"] {
        let answer = server.tell(get(path)).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.contains("content-length: 100"),
            "{answer}"
        );
        let sent = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            sent,
            match path {
                "/broken" => "what there is",
                "/short" => "too little",
                _ => "",
            }
        );
    }
    server.stopped().await;
}

#[tokio::test]
async fn unread_requests_do_not_turn_the_fin_into_a_reset() {
    let server = start(roomy()).await;
    let answer = server
        .tell(format!("{}{}", get("/broken"), get("/").repeat(5000)))
        .await;
    assert!(answer.ends_with("what there is"), "{answer}");
    server.stopped().await;
}

#[tokio::test]
async fn all_that_was_sent_before_a_break_arrives() {
    let server = start(roomy()).await;
    let answer = server.tell(get("/broken/big")).await;
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 8 * 1024 * 1024);
    server.stopped().await;
}

#[tokio::test]
async fn a_chunked_response_that_breaks_off_has_no_last_chunk() {
    let server = start(roomy()).await;
    let answer = server.tell(get("/broken/chunked")).await;
    assert!(answer.ends_with("\r\n\r\nD\r\nwhat there is\r\n"), "{answer}");
    server.stopped().await;
}

#[tokio::test]
async fn where_the_end_of_the_connection_is_the_end_of_the_body_a_break_is_a_reset() {
    let server = start(roomy()).await;
    let mut tcp = server.connect().await;
    tcp.write_all(b"GET /broken/chunked HTTP/1.0\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    let ended = tokio::time::timeout(HANG, tcp.read_to_end(&mut read)).await.unwrap();
    assert_eq!(ended.expect_err("no clean end").kind(), io::ErrorKind::ConnectionReset);
    server.stopped().await;
}

#[tokio::test]
async fn http2_ends_the_stream_short_and_keeps_the_connection() {
    let server = start(roomy()).await;
    let client = http2_client();
    for path in ["/broken", "/broken/chunked", "/short", "/broken"] {
        // Without a length the stream is reset, which may overtake the head.
        match client.get(format!("http://{}{path}", server.address)).send().await {
            Ok(answer) => drop(answer.bytes().await.expect_err("not taken for complete")),
            Err(_) => assert_eq!(path, "/broken/chunked"),
        }
    }
    server.stopped().await;
}

#[tokio::test]
async fn a_stop_lets_a_running_response_finish_and_closes_idle_connections() {
    let server = start(roomy()).await;
    let mut idle = server.connect().await;
    idle.write_all(get("/").as_bytes()).await.unwrap();
    read_until(&mut idle, "bytes").await;
    let mut silent = server.connect().await;
    let mut running = server.connect().await;
    running.write_all(get("/gated").as_bytes()).await.unwrap();
    read_until(&mut running, "first ").await;

    server.stop.cancel();
    assert_eq!(read_to_end(&mut idle).await, "");
    assert_eq!(read_to_end(&mut silent).await, "");
    assert!(!server.serving.is_finished());
    server.gate.notify_one();
    assert_eq!(read_to_end(&mut running).await, "second");
    drop((idle, silent, running));
    let address = server.address;
    server.stopped().await;
    TcpStream::connect(address).await.expect_err("nobody listens");
}

#[tokio::test]
async fn a_stop_ends_http2_as_well() {
    let server = start(roomy()).await;
    let client = http2_client();
    let mut running = client
        .get(format!("http://{}/gated", server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(running.chunk().await.unwrap().unwrap(), "first ");
    server.stop.cancel();
    server.gate.notify_one();
    assert_eq!(running.text().await.unwrap(), "second");
    server.stopped().await;
}

#[tokio::test]
async fn the_grace_period_is_bounded_and_ends_with_fin() {
    let server = start_with(roomy(), None, Duration::from_millis(50)).await;
    let mut running = server.connect().await;
    running.write_all(get("/gated").as_bytes()).await.unwrap();
    read_until(&mut running, "first ").await;
    server.stop.cancel();
    assert_eq!(read_to_end(&mut running).await, "");
    server.stopped().await;
}
