//! The server on real sockets, asked by raw bytes where the bytes are the point.
//!
//! Nothing here measures time: each test waits for the event itself, and a guard turns a hang into a failure.

mod ends;
mod files;
mod limits;
mod proxies;
mod requests;
mod secure;

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Listen;
use crate::http::labels::ClientAddr;

/// Long enough for any machine; only a hang gets here.
const HANG: Duration = Duration::from_secs(60);

/// A server on a port of its own.
struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    /// Lets `/gated` go on.
    gate: Arc<Notify>,
    /// Requests that reached a route.
    seen: Arc<AtomicUsize>,
    /// Bytes that `/endless` was asked for.
    asked_for: Arc<AtomicUsize>,
}

fn roomy() -> Limits {
    Limits {
        max_connections: 100,
        max_connections_per_client: 100,
        header_bytes: 64 * 1024,
        headers: 100,
        header_timeout: HANG,
        idle_timeout: HANG,
        manifest_size: 1 << 20,
        manifest_descriptors: 1,
    }
}

async fn start(limits: Limits) -> Server {
    start_with(limits, None, HANG).await
}

async fn start_with(limits: Limits, tls: Option<tls::Certificates>, grace: Duration) -> Server {
    start_router(router, limits, tls, grace).await
}

async fn start_router(
    router: impl FnOnce(Arc<Notify>, Arc<AtomicUsize>, Arc<AtomicUsize>) -> Router,
    limits: Limits,
    tls: Option<tls::Certificates>,
    grace: Duration,
) -> Server {
    start_behind(&LiveProxies::default(), router, limits, tls, grace).await
}

async fn start_behind(
    proxies: &LiveProxies,
    router: impl FnOnce(Arc<Notify>, Arc<AtomicUsize>, Arc<AtomicUsize>) -> Router,
    limits: Limits,
    tls: Option<tls::Certificates>,
    grace: Duration,
) -> Server {
    let bound = Bound::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap()), &[]).unwrap();
    let Listen::Tcp(address) = *bound.at() else {
        panic!("a port")
    };
    let stop = CancellationToken::new();
    let (gate, seen, asked_for) = <(Arc<Notify>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let router = router(gate.clone(), seen.clone(), asked_for.clone());
    let serving = {
        let server = super::Server::behind(proxies, router, limits, tls, &stop);
        let stop = stop.clone();
        server.listen_at(&[bound]);
        tokio::spawn(async move {
            stop.cancelled().await;
            server.finish(grace, &CancellationToken::new()).await;
        })
    };
    Server {
        address,
        stop,
        serving,
        gate,
        seen,
        asked_for,
    }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes` on a connection of their own and reads until the server closes it.
    async fn tell(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut tcp = self.connect().await;
        tcp.write_all(bytes.as_ref()).await.unwrap();
        read_to_end(&mut tcp).await
    }

    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(HANG, self.serving)
            .await
            .expect("the server stops")
            .unwrap();
    }
}

/// A client that speaks HTTP/2 without asking first.
fn http2_client() -> reqwest::Client {
    // reqwest wants one in any case; another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .http2_prior_knowledge()
        .no_proxy()
        .build()
        .unwrap()
}

/// Until the FIN; a reset fails the test.
async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut read = Vec::new();
    let ended = tokio::time::timeout(HANG, stream.read_to_end(&mut read))
        .await
        .expect("the connection ends");
    ended.unwrap_or_else(|e| panic!("no FIN but {e} after {:?}", String::from_utf8_lossy(&read)));
    String::from_utf8(read).unwrap()
}

/// Until what was read ends with `end`.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut read = String::new();
    while !read.ends_with(end) {
        let byte = tokio::time::timeout(HANG, stream.read_u8()).await.expect("bytes come");
        read.push(char::from(byte.unwrap_or_else(|e| panic!("{e} after {read:?}"))));
    }
    read
}

/// A body of `length` declared bytes that fails after `sent`.
fn broken(length: Option<u64>, sent: Bytes) -> Response {
    let frames = futures_util::stream::iter([Ok(sent), Err(io::Error::other("upstream is gone"))]);
    let mut response = Body::from_stream(frames).into_response();
    if let Some(length) = length {
        response
            .headers_mut()
            .insert("content-length", HeaderValue::from(length));
    }
    response
}

/// First `first`, and when the gate opens, `second`.
fn gated(gate: Arc<Notify>) -> Response {
    let second = futures_util::stream::once(async move {
        gate.notified().await;
        io::Result::Ok(Bytes::from_static(b"second"))
    });
    let frames = futures_util::stream::iter([Ok(Bytes::from_static(b"first "))]).chain(second);
    ([("content-length", "12")], Body::from_stream(frames)).into_response()
}

/// Zeroes, as many as somebody takes.
fn endless(asked_for: Arc<AtomicUsize>) -> Response {
    let piece = Bytes::from(vec![0; 64 * 1024]);
    let pieces = futures_util::stream::repeat_with(move || {
        asked_for.fetch_add(piece.len(), Ordering::Relaxed);
        io::Result::Ok(piece.clone())
    });
    Body::from_stream(pieces).into_response()
}

fn router(gate: Arc<Notify>, seen: Arc<AtomicUsize>, asked_for: Arc<AtomicUsize>) -> Router {
    let client = async |request: Request| {
        let client = request.extensions().get::<ClientAddr>().unwrap().0.ip().to_string();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        format!("{client} sent {} bytes", body.len())
    };
    let missing = async || {
        crate::http::error::ApiError::new(StatusCode::NOT_FOUND, crate::oci::ErrorCode::BlobUnknown, "not here")
    };
    let big = Bytes::from(vec![b'x'; 8 * 1024 * 1024]);
    Router::new()
        .route("/", get(client))
        .route("/missing", get(missing))
        .route("/endless", get(move || async { endless(asked_for) }))
        .route("/gated", get(move || async { gated(gate) }))
        .route(
            "/broken",
            get(async || broken(Some(100), Bytes::from_static(b"what there is"))),
        )
        .route(
            "/broken/chunked",
            get(async || broken(None, Bytes::from_static(b"what there is"))),
        )
        .route("/broken/at-once", get(async || broken(Some(100), Bytes::new())))
        .route("/broken/big", get(async move || broken(Some(9 * 1024 * 1024), big)))
        .route(
            "/short",
            get(async || {
                (
                    [("content-length", "100")],
                    Body::from_stream(futures_util::stream::iter([io::Result::Ok("too little")])),
                )
            }),
        )
        .layer(axum::middleware::map_request(move |request: Request| {
            seen.fetch_add(1, Ordering::Relaxed);
            async { request }
        }))
}
