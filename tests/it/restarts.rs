//! Stops and reloads while slow clients are being sent what is cached: nobody's answer is cut, and the log is true.
//!
//! The real binary, 20 clients a round, over plain HTTP/1.1 (the kernel sends the file), TLS and HTTP/2. `LARDER_LONG=1` runs 50 rounds of
//! each at 1–2 MiB/s.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::oci::Digest;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::support::client::Ask;
use crate::support::process::LarderProcess;
use crate::support::tls::Anybody;
use crate::support::toml::Toml;
use crate::support::upstream::Upstream;
use crate::support::{blob, within};

const REPO: &str = "library/alpine";
const MIB: usize = 1 << 20;
const LEN: usize = 16 * MIB;
const CLIENTS: usize = 20;
/// Rounds that run side by side in the long form.
const SIDE_BY_SIDE: usize = 5;

fn is_long() -> bool {
    std::env::var_os("LARDER_LONG").is_some_and(|value| value == "1")
}

/// Which HTTP a client speaks, and over what.
#[derive(Clone, Copy, Debug)]
enum Speaks {
    Http1,
    Http2,
    Http1OverTls,
    Http2OverTls,
}

const ALL: [Speaks; 4] = [Speaks::Http1, Speaks::Http1OverTls, Speaks::Http2, Speaks::Http2OverTls];

/// What ends the connections.
#[derive(Clone, Copy, Debug)]
enum End {
    Stop,
    /// The listeners of the clients are taken out of the configuration.
    Reload,
}

/// A client that takes `rate` bytes a second: how many bytes of the body came, and whether they are the right ones.
async fn pull(to: [SocketAddr; 2], speaks: Speaks, digest: Digest, rate: f64, takes_little: bool) -> (usize, bool) {
    let to = match speaks {
        Speaks::Http1 | Speaks::Http2 => to[0],
        Speaks::Http1OverTls | Speaks::Http2OverTls => to[1],
    };
    let socket = TcpSocket::new_v4().unwrap();
    // Else the client's kernel takes megabytes at once: then Larder hands hyper long runs, else short ones.
    if takes_little {
        socket.set_recv_buffer_size(64 * 1024).unwrap();
    }
    let tcp = socket.connect(to).await.unwrap();
    let body = match speaks {
        Speaks::Http1 => http1(tcp, digest, rate).await,
        Speaks::Http2 => http2(tcp, to, digest, rate).await,
        Speaks::Http1OverTls => http1(secure(tcp, b"http/1.1").await, digest, rate).await,
        Speaks::Http2OverTls => http2(secure(tcp, b"h2").await, to, digest, rate).await,
    };
    (body.len(), Digest::of(digest.algorithm(), &body) == digest)
}

async fn secure(tcp: TcpStream, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let mut config = builder
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("larder").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// Waits until `taken` bytes are no more than `rate` allows.
async fn keep_to(rate: f64, since: Instant, taken: usize) {
    tokio::time::sleep_until(since + Duration::from_secs_f64(taken as f64 / rate)).await;
}

/// With a connection that stays open behind the answer, as clients keep them.
async fn http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, digest: Digest, rate: f64) -> Vec<u8> {
    let request = format!("GET {} HTTP/1.1\r\nHost: larder\r\n\r\n", blob(REPO, digest));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::with_capacity(LEN + 4096);
    let begin = Instant::now();
    let mut head = None;
    loop {
        let before = all.len();
        let wanted = (64 * 1024).min(head.map_or(4096, |head| head + LEN - before)) as u64;
        let mut limited = (&mut stream).take(wanted);
        // An error is a reset: what came before it counts.
        let Ok(1..) = within("more of a body", limited.read_buf(&mut all)).await else {
            break;
        };
        head = head.or_else(|| Some(all.windows(4).position(|four| four == b"\r\n\r\n")? + 4));
        if head.is_some_and(|head| all.len() == head + LEN) {
            break;
        }
        keep_to(rate, begin, all.len()).await;
    }
    all.split_off(head.unwrap_or(all.len()))
}

async fn http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    to: SocketAddr,
    digest: Digest,
    rate: f64,
) -> Vec<u8> {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = within("a handshake", handshake).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get(format!("http://{to}{}", blob(REPO, digest)));
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let answer = within("an answer", sender.send_request(request)).await.unwrap();
    let (begin, mut body, mut all) = (Instant::now(), answer.into_body(), Vec::with_capacity(LEN));
    while let Some(Ok(frame)) = within("a frame", body.frame()).await {
        all.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
        keep_to(rate, begin, all.len()).await;
    }
    driver.abort();
    all
}

/// A proxy with a listener `plain` and one with TLS, `secret`, that holds a blob.
async fn holding(upstream: &Upstream, keys: &Path, grace: &str) -> (LarderProcess, [SocketAddr; 2], Digest) {
    let file = |name: &str| keys.join(name).to_str().unwrap().to_owned();
    let larder = LarderProcess::start(upstream, |t| {
        t.server("shutdown_grace", grace);
        t.set(&["listener", "plain"], "listen", "127.0.0.1:0");
        t.set(&["listener", "secret"], "listen", "127.0.0.1:0");
        t.set(&["listener", "secret", "tls"], "cert", file("cert.pem"));
        t.set(&["listener", "secret", "tls"], "key", file("key.pem"));
    })
    .await;
    let mut at = Vec::new();
    for name in ["(plain)", "(secret)"] {
        let line = larder.wait_for_log(name).await;
        let address = line.split("://").nth(1).and_then(|rest| rest.split(' ').next());
        at.push(address.unwrap().parse().unwrap());
    }
    let digest = upstream.blob(REPO, LEN);
    larder.get(blob(REPO, digest)).await.expect_content(&digest);
    within("the blob to be cached", async {
        while larder.head(blob(REPO, digest)).await.header("cache-status") != Some("larder; hit") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (larder, [at[0], at[1]], digest)
}

fn keys() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
    std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    folder
}

/// Clients whose rate in MiB/s goes by their number.
fn pulling(to: [SocketAddr; 2], digest: Digest, rate: impl Fn(usize) -> f64) -> JoinSet<(Speaks, usize, bool)> {
    (0..CLIENTS)
        .map(|n| {
            let (speaks, rate) = (ALL[n % ALL.len()], rate(n) * MIB as f64);
            async move {
                let takes_little = (n / ALL.len()).is_multiple_of(2);
                let (came, right) = pull(to, speaks, digest, rate, takes_little).await;
                (speaks, came, right)
            }
        })
        .collect()
}

fn reload_without_listeners(larder: &LarderProcess) {
    let file = larder.folder().join("proxy.toml");
    let mut toml = Toml::parse(&std::fs::read_to_string(&file).unwrap());
    toml.unset(&["listener"], "plain").unset(&["listener"], "secret");
    let beside = larder.folder().join("proxy.toml.new");
    std::fs::write(&beside, toml.text()).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    let pid = i32::try_from(larder.pid()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
}

/// The answers of `LEN` bytes that the access log calls complete, or not.
fn logged(larder: &LarderProcess, complete: bool) -> usize {
    let complete = format!("complete={complete}");
    let logs = larder.logs();
    let lines = logs
        .lines()
        .filter(|line| line.contains("/blobs/") && line.contains("GET"));
    lines.filter(|line| line.contains(&complete)).count()
}

/// One round; the clients whose answer was not whole.
async fn round(end: End, rates: (f64, f64)) -> Vec<(Speaks, usize)> {
    let (upstream, keys) = (Upstream::start().await, keys());
    let (mut larder, to, digest) = holding(&upstream, keys.path(), "30s").await;
    let between = |n: usize| rates.0 + (rates.1 - rates.0) * n as f64 / (CLIENTS - 1) as f64;
    let mut clients = pulling(to, digest, between);
    // The sending has to be well under way, and is far from its end: the slowest takes several seconds.
    tokio::time::sleep(Duration::from_secs(2)).await;
    match end {
        End::Stop => larder.terminate(),
        End::Reload => reload_without_listeners(&larder),
    }
    let mut cut = Vec::new();
    while let Some(client) = clients.join_next().await {
        let (speaks, came, right) = client.unwrap();
        if !right {
            cut.push((speaks, came));
        }
    }
    match end {
        End::Stop => assert_eq!(within("the exit", larder.stop()).await, Some(0)),
        End::Reload => {
            assert_eq!(Ask::get("/v2/").send(larder.registry()).await.status, 200, "main stays");
            assert!(TcpStream::connect(to[0]).await.is_err(), "plain is gone");
            larder.stop().await;
        }
    }
    if cut.is_empty() {
        // The one that filled the cache as well.
        assert_eq!((logged(&larder, true), logged(&larder, false)), (CLIENTS + 1, 0));
    }
    cut
}

async fn rounds(end: End) {
    let (rounds, rates) = match is_long() {
        true => (50, (1.0, 2.0)),
        false => (2, (1.5, 3.0)),
    };
    let mut cut = Vec::new();
    for first in (0..rounds).step_by(SIDE_BY_SIDE) {
        let group = (first..rounds.min(first + SIDE_BY_SIDE)).map(|_| round(end, rates));
        for short in futures_util::future::join_all(group).await {
            cut.extend(short);
        }
    }
    println!(
        "{end:?}: {rounds} rounds of {CLIENTS} clients, {} answers short",
        cut.len()
    );
    assert!(cut.is_empty(), "{end:?}: of {rounds} rounds, short: {cut:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_cuts_nobodys_answer() {
    rounds(End::Stop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_takes_the_listener_away_cuts_nobodys_answer() {
    rounds(End::Reload).await;
}

/// Where the grace is too short, the log says of each answer what its client saw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_a_stop_cuts_is_logged_as_cut() {
    let (upstream, keys) = (Upstream::start().await, keys());
    let (mut larder, to, digest) = holding(&upstream, keys.path(), "1s").await;
    let mut clients = pulling(to, digest, |n| if n < CLIENTS / 2 { 0.5 } else { 1000.0 });
    within("half of them to have all", async {
        while logged(&larder, true) < 1 + CLIENTS / 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(larder.stop().await, Some(0));
    let mut whole = 0;
    let mut bytes = Vec::new();
    while let Some(client) = clients.join_next().await {
        let (speaks, came, right) = client.unwrap();
        whole += usize::from(right);
        bytes.push((speaks, came));
    }
    assert_eq!(whole, CLIENTS / 2, "{bytes:?}");
    assert_eq!(
        (logged(&larder, true), logged(&larder, false)),
        (whole + 1, CLIENTS - whole),
        "{bytes:?}\n{}",
        larder.logs()
    );
}

/// The head of a frame of HTTP/2.
fn frame(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let mut head = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
    head.extend([kind, flags]);
    head.extend(stream.to_be_bytes());
    head
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
/// Larger than the blob: Larder need not wait for the window.
const WINDOW: u32 = 1 << 28;

fn more_window(bytes: u32) -> Vec<u8> {
    [frame(4, WINDOW_UPDATE, 0, 0), bytes.to_be_bytes().to_vec()].concat()
}

/// A request as it opens a connection.
fn opening(path: &str) -> Vec<u8> {
    // `:method: GET` and `:scheme: http` stand in the static table; `:path` and `:authority` have literal values.
    let mut head = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    head.extend(path.as_bytes());
    head.extend([0x01, 6]);
    head.extend(b"larder");
    let initial_window = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(initial_window.len(), SETTINGS, 0, 0),
        initial_window,
        more_window(WINDOW),
        // END_HEADERS too.
        frame(head.len(), HEADERS, END_STREAM | 0x4, 1),
        head,
    ]
    .concat()
}

/// Bytes that a reader leaves for later, of those that its kernel has.
const TAIL: usize = 400 * 1024;
/// Bytes a second at which it takes them then.
const CRAWL: f64 = 100.0 * 1024.0;

/// A client that calls `at_tail` when only the tail is left, and reads that slowly, telling of each piece. What of the body came until the
/// answer was over or the connection failed, and how it failed.
async fn crawl<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    digest: Digest,
    at_tail: impl FnOnce(),
) -> (Vec<u8>, std::io::Result<()>) {
    let mut body = Vec::with_capacity(LEN);
    let read = within("an answer", crawl_into(stream, digest, at_tail, &mut body)).await;
    (body, read)
}

async fn crawl_into<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    digest: Digest,
    at_tail: impl FnOnce(),
    body: &mut Vec<u8>,
) -> std::io::Result<()> {
    stream.write_all(&opening(&blob(REPO, digest))).await?;
    stream.flush().await?;
    let (mut at_tail, mut slow_since) = (Some(at_tail), Instant::now());
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let (length, kind, flags) = (u32::from_be_bytes([0, head[0], head[1], head[2]]), head[3], head[4]);
        let mut payload = vec![0; length as usize];
        let mut read = 0;
        while read < payload.len() {
            let piece = payload.len().min(read + 4096);
            read += stream.read_exact(&mut payload[read..piece]).await?;
            if at_tail.is_none() && kind == DATA {
                let taken = body.len() + read - (LEN - TAIL);
                keep_to(CRAWL, slow_since, taken).await;
                stream.write_all(&more_window(4096)).await?;
                stream.flush().await?;
            }
        }
        match kind {
            DATA => body.extend(&payload),
            PING if flags & ACK == 0 => stream.write_all(&[frame(8, PING, ACK, 0), payload].concat()).await?,
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(0, SETTINGS, ACK, 0)).await?,
            _ => {}
        }
        stream.flush().await?;
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(());
        }
        if body.len() >= LEN - TAIL
            && let Some(at_tail) = at_tail.take()
        {
            slow_since = Instant::now();
            at_tail();
        }
    }
}

async fn with_room(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1 << 20).unwrap();
    socket.connect(to).await.unwrap()
}

/// Its kernel has everything long before it has read it: a reset by then would answer its next window update.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_a_slow_reader_of_http2_read_what_its_kernel_has() {
    let (upstream, keys) = (Upstream::start().await, keys());
    for speaks in [Speaks::Http2, Speaks::Http2OverTls] {
        let (mut larder, to, digest) = holding(&upstream, keys.path(), "30s").await;
        let (body, read) = match speaks {
            Speaks::Http2OverTls => {
                let mut stream = secure(with_room(to[1]).await, b"h2").await;
                crawl(&mut stream, digest, || larder.terminate()).await
            }
            _ => crawl(&mut with_room(to[0]).await, digest, || larder.terminate()).await,
        };
        assert!(
            read.is_ok() && Digest::of(digest.algorithm(), &body) == digest,
            "{speaks:?}: {read:?} after {} of {LEN} bytes\n{}",
            body.len(),
            larder.logs()
        );
        assert_eq!(larder.stop().await, Some(0));
        assert_eq!((logged(&larder, true), logged(&larder, false)), (2, 0));
    }
}

/// A client that has read all, says nothing and does not close keeps nobody; the limit is about time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_of_http2_holds_up_no_stop() {
    let (upstream, keys) = (Upstream::start().await, keys());
    let (mut larder, to, _) = holding(&upstream, keys.path(), "60s").await;
    let mut stream = with_room(to[0]).await;
    stream.write_all(&opening("/v2/")).await.unwrap();
    let mut some = [0; 1024];
    assert!(within("an answer", stream.read(&mut some)).await.unwrap() > 0);
    let begin = Instant::now();
    assert_eq!(larder.stop().await, Some(0));
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}
