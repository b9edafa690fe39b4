//! One connection from its first byte to its last.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Request;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Connection};
use super::handler::{Caller, Handler, Peer};
use super::proxy_header::{self, Beginning, Malformed, Told};
use super::pulse::{Break, Overdue, Pulse, STALLED};
use super::tls::{self, Certificates};
use super::wire::{self, Transport, Wire};
use super::{LAST_WORDS, Shared, Way};
use crate::http::outbox::Outbox;

/// A TLS record that begins a handshake.
const CLIENT_HELLO: u8 = 0x16;

/// PROXY headers of those who are no trusted proxies are logged at most this often, and so are broken ones.
const LOG_HEADERS_EVERY: Duration = Duration::from_secs(60);

/// hyper's own limit. Told any, even this one, it fills a table of that size for every request.
const HYPER_HEADERS: usize = 100;

/// What waits in memory for a client of HTTP/1, about.
const BUFFER_BYTES: usize = 128 * 1024;

/// Requests that an HTTP/2 connection may have open. Each may hold a small chunk of memory for as long as its client does not read.
const STREAMS: u32 = 100;

/// A client of HTTP/2 that was sent no more than this, the window that each begins with, need not open one while it reads.
const UNNOTICED: u64 = 65_535;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Go's servers answer HTTP with these very words, and clients know them (R-C25).
const HTTP_TO_TLS: &str = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// containerd falls back to HTTP when its handshake is answered by something that begins like this (R-W4, R-C25).
const TLS_TO_HTTP: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 53\r\n\
    Connection: close\r\n\r\nClient sent a TLS handshake to a plain HTTP server.\r\n";

const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 79\r\n\
    Docker-Distribution-API-Version: registry/2.0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n\
    {\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"too many connections; try later\"}]}";

/// Serves a connection until one side has had enough.
///
/// A future is as large as its largest step, and keeps that much for as long as its client stays, idle or not: so each
/// large step is in a box of its own, which only those have who come to it.
pub(super) async fn run(tcp: TcpStream, peer: SocketAddr, way: Arc<Way>, shared: Arc<Shared<impl Handler>>) {
    let Some(first) = begun(&tcp, &way, &shared).await else {
        return;
    };
    if proxy_header::may_begin_with(first) {
        return Box::pin(introduced(tcp, peer, &way, &shared)).await;
    }
    let client = Client::of(Peer::Tcp(peer));
    follow(tcp, (first, Bytes::new()), client, &way, &shared).await;
}

/// The first byte of what a client says, when it begins; `None` if there will be none.
async fn begun<H>(tcp: &TcpStream, way: &Way, shared: &Shared<H>) -> Option<u8> {
    let first = tokio::select! {
        // A client that has asked already is answered: to close with its request unread would be a reset.
        biased;
        first = tokio::time::timeout(shared.limits.now().idle_timeout, first_byte(tcp)) => first,
        () = way.turn.cancelled() => return None,
    };
    first.ok()?.ok()?
}

/// The other end of a connection, and what a PROXY header said of it.
#[derive(Clone, Copy)]
struct Client {
    address: Peer,
    /// The statement of the PROXY header, kept also if the sender is no trusted proxy: a reload may make it one, and
    /// the requests on this connection are then still the client's, not the proxy's.
    told: Option<Told>,
    /// True if the sender was trusted when the connection came. Log lines then show the client's address.
    is_believed: bool,
}

impl Client {
    fn of(address: Peer) -> Client {
        Client {
            address,
            told: None,
            is_believed: false,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.told {
            Some(Told::Client(client)) if self.is_believed => client.fmt(f),
            _ => self.address.fmt(f),
        }
    }
}

/// Serves a connection that may begin with a PROXY header. A header from an untrusted address is skipped; if it is
/// broken, HTTP refuses it with 400, because a proxy that got no answer at all would take the server for failed.
async fn introduced(mut tcp: TcpStream, peer: SocketAddr, way: &Way, shared: &Shared<impl Handler>) {
    let limits = shared.limits.now();
    let begins = tokio::select! {
        biased;
        begins = tokio::time::timeout(limits.header_timeout, beginning(&mut tcp)) => begins,
        () = way.turn.cancelled() => return,
    };
    let address = Peer::Tcp(peer);
    let is_proxy = |address: SocketAddr| shared.proxies.now().contains(address.ip());
    let is_believed = is_proxy(peer);
    let told = match begins {
        Ok(Ok(Beginning::Header(told))) => told,
        Ok(Ok(Beginning::Broken(error, _))) if is_believed => {
            metrics::counter!("larder_connections_ended_total", "reason" => "proxy_header").increment(1);
            log_broken(peer, error, shared);
            return wire::linger(tcp).await;
        }
        Ok(Ok(Beginning::Other(read) | Beginning::Broken(_, read))) => {
            let first = read.first().copied().unwrap_or_default();
            return follow(tcp, (first, read), Client::of(address), way, shared).await;
        }
        Ok(Err(_)) | Err(_) => return wire::linger(tcp).await,
    };
    let share = match told {
        _ if !is_believed => {
            log_stranger(peer, shared);
            None
        }
        Told::Client(client) if !is_proxy(client) => {
            match shared.gate.share(client.ip(), limits.max_connections_per_client) {
                Ok(share) => Some(share),
                Err(full) => {
                    if let Some(_pass) = super::refused(full, client, shared) {
                        refuse(tcp, way.tls.is_some()).await;
                    }
                    return;
                }
            }
        }
        _ => None,
    };
    if let Some(first) = begun(&tcp, way, shared).await {
        let client = Client {
            address,
            told: Some(told),
            is_believed,
        };
        follow(tcp, (first, Bytes::new()), client, way, shared).await;
    }
    drop(share);
}

/// Reads the PROXY header, if there is one, in one go where all of it has come.
async fn beginning(tcp: &mut TcpStream) -> io::Result<Beginning> {
    let mut seen = [0; proxy_header::USUAL];
    let length = tcp.peek(&mut seen).await?;
    proxy_header::read(tcp, &seen[..length]).await
}

/// Warns that a proxy may have been forgotten in the configuration, or that a client plays one.
fn log_stranger<H>(peer: SocketAddr, shared: &Shared<H>) {
    if !is_due(&shared.logged_stranger) {
        return;
    }
    match shared.may_have_proxies {
        true => tracing::warn!(
            from = %peer,
            "a PROXY protocol header is ignored: it came from an address that is not in server.trusted_proxies"
        ),
        false => tracing::warn!(
            from = %peer,
            "a PROXY protocol header is ignored: it came to an address that is not the registry's, where \
             server.trusted_proxies does not count"
        ),
    }
}

/// Warns that the connections of a trusted proxy end unanswered, which its users see as an outage.
fn log_broken<H>(peer: SocketAddr, error: Malformed, shared: &Shared<H>) {
    match is_due(&shared.logged_broken) {
        true => tracing::warn!(from = %peer, %error, "the connection of a trusted proxy was closed"),
        false => tracing::debug!(client = %peer, %error, "connection ended"),
    }
}

/// Returns whether a line may be logged again, and counts it as logged then.
fn is_due(logged: &Mutex<Option<std::time::Instant>>) -> bool {
    let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = logged.is_none_or(|at| at.elapsed() >= LOG_HEADERS_EVERY);
    if is_due {
        *logged = Some(std::time::Instant::now());
    }
    is_due
}

/// Serves what comes behind a PROXY header, or without one. `first` is its first byte; bytes that were read already come with it.
async fn follow(tcp: TcpStream, (first, read): (u8, Bytes), client: Client, way: &Way, shared: &Shared<impl Handler>) {
    match (&way.tls, first) {
        (None, CLIENT_HELLO) => say(tcp, TLS_TO_HTTP, "tls_to_plain").await,
        (None, _) => Box::pin(plain(tcp, read, client, way, shared)).await,
        (Some(certificates), CLIENT_HELLO) => Box::pin(secure(tcp, certificates, client, way, shared)).await,
        (Some(_), _) => say(tcp, HTTP_TO_TLS, "plain_to_tls").await,
    }
}

/// The same by a Unix socket, where nobody speaks TLS.
pub(super) async fn run_unix(stream: UnixStream, way: Arc<Way>, shared: Arc<Shared<impl Handler>>) {
    let first = tokio::select! {
        biased;
        first = tokio::time::timeout(shared.limits.now().idle_timeout, stream.readable()) => first,
        () = way.turn.cancelled() => return,
    };
    if let Ok(Ok(())) = first {
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        let client = Client::of(Peer::Unix(uid));
        Box::pin(plain(stream, Bytes::new(), client, &way, &shared)).await;
    }
}

async fn secure(tcp: TcpStream, certificates: &Certificates, client: Client, way: &Way, shared: &Shared<impl Handler>) {
    let handshake = Box::pin(certificates.shake_hands(tcp));
    let handshake = tokio::select! {
        () = way.turn.cancelled() => return,
        handshake = tokio::time::timeout(shared.limits.now().header_timeout, handshake) => handshake,
    };
    match handshake {
        Ok(Ok(None)) => tracing::debug!(%client, "a certificate authority had its challenge answered"),
        Ok(Ok(Some(stream))) => {
            let session = stream.get_ref().1;
            let http2 = session.alpn_protocol() == Some(b"h2");
            let shown = session.peer_certificates().and_then(|chain| chain.first());
            let certificate = shown.and_then(tls::identity_in);
            Box::pin(speak(stream, Bytes::new(), http2, (client, certificate), way, shared)).await;
        }
        Ok(Err(error)) => tracing::debug!(%client, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%client, "TLS handshake took too long"),
    }
}

pub(super) async fn refuse_unix(mut stream: UnixStream) {
    let _ = stream.write_all(TOO_MANY.as_bytes()).await;
    wire::linger(stream).await;
}

/// Tells a client that there is no place for it; a TLS client just sees the end.
pub(super) async fn refuse(mut tcp: TcpStream, tls: bool) {
    if !tls {
        // Clients take an answer that comes before they have asked for a broken connection.
        let _ = tokio::time::timeout(LAST_WORDS, first_byte(&tcp)).await;
        let _ = tcp.write_all(TOO_MANY.as_bytes()).await;
    }
    wire::linger(tcp).await;
}

async fn say(mut tcp: TcpStream, words: &str, reason: &'static str) {
    metrics::counter!("larder_connections_ended_total", "reason" => reason).increment(1);
    let _ = tcp.write_all(words.as_bytes()).await;
    wire::linger(tcp).await;
}

/// The first byte, left where it is; `None` if the client closed without any.
async fn first_byte(tcp: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((tcp.peek(&mut byte).await? > 0).then_some(byte[0]))
}

async fn plain<S: Transport>(mut tcp: S, read: Bytes, client: Client, way: &Way, shared: &Shared<impl Handler>) {
    let told = tokio::select! {
        biased;
        told = tokio::time::timeout(shared.limits.now().header_timeout, preface(&mut tcp, &read)) => told,
        () = way.turn.cancelled() => return,
    };
    match told {
        Ok(Ok(prefix)) => {
            let http2 = prefix == HTTP2_PREFACE;
            Box::pin(speak(tcp, prefix, http2, (client, None), way, shared)).await;
        }
        Ok(Err(_)) => {}
        Err(_) => wire::linger(tcp).await,
    }
}

/// Reads on, until it is clear whether HTTP/2 is spoken without further ado; what was read, `before` included.
async fn preface(tcp: &mut (impl AsyncRead + Unpin), before: &[u8]) -> io::Result<Bytes> {
    let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
    read.extend_from_slice(before);
    while read.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&read) {
        let left = HTTP2_PREFACE.len() - read.len();
        if (&mut *tcp).take(left as u64).read_buf(&mut read).await? == 0 {
            break;
        }
    }
    Ok(read.into())
}

/// HTTP, over whatever it is.
async fn speak<S: Transport>(
    stream: S,
    prefix: Bytes,
    http2: bool,
    (client, certificate): (Client, Option<Arc<str>>),
    way: &Way,
    shared: &Shared<impl Handler>,
) {
    let pulse = Pulse::new(http2);
    // hyper passes the tickets of an outbox on unseen in HTTP/1 only, where it writes vectored.
    let tls = stream.is_tls();
    let outbox = Arc::new(match !http2 && stream.plain().is_some() {
        true => Outbox::default(),
        false => Outbox::of_memory(http2),
    });
    let files = outbox.sends_files().then(|| outbox.clone());
    let (wire, back) = Wire::new(stream, prefix, pulse.clone(), files);
    let io = TokioIo::new(wire);
    let of_all = Arc::new(Connection {
        handler: shared.handler.clone(),
        caller: Caller {
            address: client.address,
            told: client.told,
            is_by_proxy: false,
            certificate,
            tls,
            outbox: Some(outbox),
        },
        limits: (*shared.limits.now()).clone(),
        live: shared.limits.clone(),
        pulse: pulse.clone(),
        proxies: shared.proxies.clone(),
        gate: shared.gate.clone(),
        requests: shared.requests.clone(),
        refusals: shared.refusals.clone(),
    });
    let service = service_fn(move |request: Request<Incoming>| answer::answer(request, of_all.clone()));
    // The blocks see to it that hyper's connection is gone, and the stream on its way back, before it is waited for.
    let ended = if http2 {
        let mut connection = Box::pin(http2_builder(shared).serve_connection(io, service));
        drive(connection.as_mut(), &pulse, client, way, shared).await
    } else {
        let mut connection = Box::pin(http1_builder(shared).serve_connection(io, service));
        drive(connection.as_mut(), &pulse, client, way, shared).await
    };
    if let Ok(stream) = back.await {
        if ended != Ended::Cut && pulse.broken() != Some(Break::Reset) {
            tokio::select! {
                () = wire::until_taken(&stream) => {}
                () = shared.cut.cancelled() => {}
                () = tokio::time::sleep(STALLED) => {}
            }
        }
        if http2 && ended == Ended::InOrder && pulse.broken() != Some(Break::Reset) && pulse.has_sent() > UNNOTICED {
            return tokio::select! {
                () = wire::linger_while_it_reads(stream) => {}
                () = hurry(&shared.cut) => {}
                () = tokio::time::sleep(STALLED) => {}
            };
        }
        tokio::select! {
            () = wire::end(stream, &pulse) => {}
            () = hurry(&way.turn) => {}
        }
    }
}

/// While a server stops, no client may keep it by not closing its side.
async fn hurry(end: &CancellationToken) {
    end.cancelled().await;
    tokio::time::sleep(LAST_WORDS / 4).await;
}

/// How hyper's part of a connection ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// What was to be sent is with the socket.
    InOrder,
    /// The same, and it has been for so long that the client has read it.
    Idle,
    /// The client had its time, or the grace period is over.
    Cut,
}

/// Polls the connection until it ends by itself, is overdue, or the server stops.
async fn drive<C: GracefulConnection, H>(
    mut connection: Pin<&mut C>,
    pulse: &Pulse,
    client: Client,
    way: &Way,
    shared: &Shared<H>,
) -> Ended {
    let limits = shared.limits.now();
    let overdue = tokio::select! {
        // Nothing else is there to be decided in a connection that goes on.
        biased;
        _ended = connection.as_mut() => return Ended::InOrder,
        overdue = pulse.overdue(&limits) => Some(overdue),
        () = way.turn.cancelled() => None,
    };
    if let Some(why) = overdue {
        metrics::counter!("larder_connections_ended_total", "reason" => why.as_str()).increment(1);
        tracing::debug!(%client, reason = why.as_str(), "connection ended");
        if why != Overdue::Idle {
            pulse.cut(why.why());
            return Ended::Cut;
        }
    }
    let idle_for = pulse.idle_since().map(|since| since.elapsed());
    let sent = pulse.has_sent();
    // A stream may still have been opened before the client heard of the end.
    let in_order = || match idle_for {
        Some(idle) if idle >= wire::SILENCE && pulse.has_sent() == sent => Ended::Idle,
        _ => Ended::InOrder,
    };
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ended = connection.as_mut() => in_order(),
        _still_idle = still_idle(pulse) => in_order(),
        why = pulse.overdue(&limits), if overdue.is_none() => {
            pulse.cut(why.why());
            Ended::Cut
        }
        () = shared.cut.cancelled() => {
            pulse.cut("the proxy stops, and cuts running responses (server.shutdown_grace)");
            Ended::Cut
        }
    }
}

/// Returns when a connection that was told to end has been idle for long enough to go without its client's consent:
/// HTTP/2 waits for the client's answer to a GOAWAY.
async fn still_idle(pulse: &Pulse) {
    let told = Instant::now();
    loop {
        let since = pulse.idle_since();
        let due = since.unwrap_or_else(Instant::now).max(told) + LAST_WORDS;
        if since.is_some() && due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

fn http1_builder<H>(shared: &Shared<H>) -> http1::Builder {
    // hyper counts the request line as well, and refuses with 431; up to twice the limit `answer` refuses more kindly.
    let head = (shared.limits.now().header_bytes * 2).saturating_add(answer::MAX_URI);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // It would count idle time too; `pulse` keeps both.
        .header_read_timeout(None)
        .max_header_size(head)
        // It bounds what waits in memory for a slow client, too: hyper takes of a body until it has that much, and asks
        // again only then. Its own default would be three times as much.
        .max_buf_size(head.max(BUFFER_BYTES));
    let headers = shared.limits.now().headers;
    if headers != HYPER_HEADERS {
        builder.max_headers(headers);
    }
    builder
}

fn http2_builder<H>(shared: &Shared<H>) -> http2::Builder<TokioExecutor> {
    let head = u32::try_from(shared.limits.now().header_bytes * 2).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        // Of CONTINUATION frames h2 takes no more than such a list needs.
        .max_header_list_size(head)
        // Streams that are reset before anybody looked at them, and those that a client has us reset: more of them end the connection.
        // hyper's own figures, written down as they are limits of ours.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024)
        // What clients may send us unread: they send requests. What we send is bounded by their windows and by this, and by `delivery`.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_send_buf_size(256 * 1024)
        // A client that vanished in the middle of a response is found out.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}
