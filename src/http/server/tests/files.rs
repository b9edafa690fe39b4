//! Files that go from the disk to the socket past this process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Weak;

use super::*;
use crate::http::labels::SendsFiles;
use crate::oci::Digest;
use crate::pull::Span;

const GET: &str = "GET /file HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n";
const MIB: u64 = 1 << 20;

/// A server of one file, handed out in runs of so many bytes; requests that came with an outbox are counted.
async fn serving(file: &Arc<File>, from: u64, to: u64, run: u64) -> Server {
    let file = Arc::downgrade(file);
    let route = move |_, seen: Arc<AtomicUsize>, _| {
        let answer = move |request: Request| async move {
            let outbox = request.extensions().get::<SendsFiles>().cloned();
            seen.fetch_add(usize::from(outbox.is_some()), Ordering::Relaxed);
            (
                [("content-length", (to - from).to_string())],
                body(&file, outbox, from, to, run),
            )
        };
        Router::new()
            .route("/file", get(answer))
            .route("/", get(async || "bytes"))
    };
    start_router(route, roomy(), None, HANG).await
}

fn body(file: &Weak<File>, outbox: Option<SendsFiles>, from: u64, to: u64, run: u64) -> Body {
    let file = file.upgrade().unwrap();
    let runs = futures_util::stream::unfold(from, move |at| {
        let len = run.min(to - at);
        let data = match &outbox {
            Some(outbox) => {
                let (file, more) = (file.clone(), at + len < to);
                outbox.0.ticket(Digest::sha256(b""), Span { file, at, len, more })
            }
            None => {
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                file.read_exact_at(&mut bytes, at).unwrap();
                bytes.into()
            }
        };
        std::future::ready((len > 0).then_some((io::Result::Ok(data), at + len)))
    });
    Body::from_stream(runs)
}

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

fn file_of(content: &[u8]) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(content, 0).unwrap();
    Arc::new(file)
}

/// The body of an answer, read to the FIN.
async fn rest(tcp: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let ended = tokio::time::timeout(HANG, tcp.read_to_end(&mut read)).await;
    ended.expect("the connection ends").expect("a FIN");
    read
}

async fn ask(server: &Server) -> TcpStream {
    let mut tcp = server.connect().await;
    tcp.write_all(GET.as_bytes()).await.unwrap();
    read_until(&mut tcp, "\r\n\r\n").await;
    tcp
}

#[tokio::test]
async fn every_size_of_run_and_both_versions() {
    let content = pattern(3 * MIB + 17);
    let file = file_of(&content);
    for (from, to, run) in [
        (0, 3 * MIB + 17, MIB),
        (0, 3 * MIB + 17, u64::MAX),
        (MIB - 1, 2 * MIB + 1, 70_001),
        (5, 6, MIB),
        (1000, 9000, 100),
    ] {
        let server = serving(&file, from, to, run).await;
        let wanted = &content[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
        for _ in 0..2 {
            assert!(rest(&mut ask(&server).await).await == wanted, "{from} {to} {run}");
        }
        assert_eq!(server.seen.load(Ordering::Relaxed), 2);
        let answer = http2_client()
            .get(format!("http://{}/file", server.address))
            .send()
            .await;
        assert!(answer.unwrap().bytes().await.unwrap() == wanted, "{from} {to} {run}");
        assert_eq!(server.seen.load(Ordering::Relaxed), 2, "HTTP/2 reads");
        server.stopped().await;
    }
}

#[tokio::test]
async fn answers_follow_one_another_on_one_connection() {
    let content = pattern(300_000);
    let file = file_of(&content);
    let server = serving(&file, 0, 300_000, 100_000).await;
    let mut tcp = server.connect().await;
    let keep = "GET /file HTTP/1.1\r\nHost: larder\r\n\r\n";
    tcp.write_all(format!("{keep}{}{GET}", keep.replace("/file", "/")).as_bytes())
        .await
        .unwrap();
    for wanted in [&content[..], b"bytes", &content[..]] {
        read_until(&mut tcp, "\r\n\r\n").await;
        let mut body = vec![0; wanted.len()];
        tcp.read_exact(&mut body).await.unwrap();
        assert!(body == wanted, "{}", wanted.len());
    }
    assert!(rest(&mut tcp).await.is_empty());
    server.stopped().await;
}

#[tokio::test]
async fn a_slow_reader_gets_everything_and_holds_up_nobody() {
    let content = pattern(24 * MIB);
    let file = file_of(&content);
    let server = serving(&file, 0, 24 * MIB, MIB).await;
    let mut slow = ask(&server).await;
    let mut read = vec![0; 100_000];
    slow.read_exact(&mut read).await.unwrap();
    for _ in 0..3 {
        assert!(rest(&mut ask(&server).await).await == content);
    }
    read.extend(rest(&mut slow).await);
    assert!(read == content, "{}", read.len());
    server.stopped().await;
}

/// Nothing of a file is held when its client has gone, nor by a connection that lives on.
#[tokio::test]
async fn a_client_that_leaves_lets_go_of_the_file() {
    let file = file_of(&pattern(24 * MIB));
    let server = serving(&file, 0, 24 * MIB, MIB).await;
    let mut tcp = ask(&server).await;
    tcp.read_u8().await.unwrap();
    assert!(Arc::strong_count(&file) > 1);
    drop(tcp);
    while Arc::strong_count(&file) > 1 {
        tokio::task::yield_now().await;
    }
    let mut idle = server.connect().await;
    idle.write_all(b"GET /file HTTP/1.1\r\nHost: larder\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut idle, "\r\n\r\n").await;
    let mut read = vec![0; usize::try_from(24 * MIB).unwrap()];
    idle.read_exact(&mut read).await.unwrap();
    while Arc::strong_count(&file) > 1 {
        tokio::task::yield_now().await;
    }
    server.stopped().await;
}

/// Somebody truncates a file while it is sent: what there is, then FIN; the server lives on.
#[tokio::test]
async fn a_file_that_is_cut_ends_its_answer_short() {
    let content = pattern(48 * MIB);
    let file = file_of(&content);
    let server = serving(&file, 0, 48 * MIB, MIB).await;
    let mut tcp = ask(&server).await;
    let mut read = vec![0; 1000];
    tcp.read_exact(&mut read).await.unwrap();
    file.set_len(0).unwrap();
    read.extend(rest(&mut tcp).await);
    // What is in the kernel's hands already may read as zeroes.
    assert!(
        read.len() < content.len() && read[..1000] == content[..1000],
        "{}",
        read.len()
    );
    // At once, too: a head with nothing behind it.
    assert!(rest(&mut ask(&server).await).await.is_empty());
    assert!(
        server
            .tell("GET / HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
            .await
            .ends_with("bytes")
    );
    server.stopped().await;
}

/// One run of more than four GiB, and more than a sendfile takes at once; most of it a hole.
#[tokio::test]
async fn more_than_four_gib() {
    let (at, end) = ((4 << 30) + 5, (4 << 30) + 8);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"end", at).unwrap();
    let file = Arc::new(file);
    let server = serving(&file, 0, end, u64::MAX).await;
    let mut tcp = ask(&server).await;
    let (mut count, mut last) = (0, Vec::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match tokio::time::timeout(HANG, tcp.read(&mut buffer))
            .await
            .expect("bytes come")
            .unwrap()
        {
            0 => break,
            n => {
                count += n as u64;
                last.extend_from_slice(&buffer[..n][n.saturating_sub(3)..]);
                last.drain(..last.len().saturating_sub(3));
            }
        }
    }
    assert_eq!((count, &last[..]), (end, &b"end"[..]));
    server.stopped().await;
}
