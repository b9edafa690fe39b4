//! What every request passes before the handler, and every response after it, whatever was asked.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use axum::response::IntoResponse;
use bytes::Buf as _;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::delivery::{Delivery, Reported, Running, Tracked};
use super::gate::{Full, Gate, Pass};
use super::handler::{Caller, Handler, Peer, Sender};
use super::pulse::{Break, Pulse};
use super::{LiveLimits, LiveProxies, REFUSALS};
use crate::config::Limits;
use crate::http::access_log::log_failure;
use crate::http::error::ApiError;
use crate::http::outbox::{Outbox, Piece};
use crate::oci::ErrorCode;

/// Longest path and query (R-X13).
pub(super) const MAX_URI: usize = 16 * 1024;

/// A GET may carry a body (R-S8); up to this much of it is read and thrown away (R-X14).
const DRAINED: usize = 64 * 1024;

/// What the requests of a connection share.
pub(super) struct Connection<H> {
    pub(super) handler: H,
    pub(super) caller: Caller,
    pub(super) limits: Limits,
    /// As they are now; those above are as they were when the connection came.
    pub(super) live: LiveLimits,
    pub(super) pulse: Arc<Pulse>,
    pub(super) proxies: LiveProxies,
    /// Counts connections, and for the clients of a proxy their requests.
    pub(super) gate: Arc<Gate>,
    /// Counts what HTTP/2 requests there are beside others of their connection.
    pub(super) requests: Arc<Gate>,
    /// Counts those that are told that this was one too many.
    pub(super) refusals: Arc<Gate>,
}

impl<H> Connection<H> {
    /// A pass for a request that comes beside others by HTTP/2, or the refusal. The first of a connection needs none: the connection
    /// itself is counted, and nobody who asks for one thing at a time can be locked out.
    ///
    /// On a proxy's connection each request counts as if its client had made a connection for it; and what the proxy
    /// asks for without naming a client counts for nobody.
    fn admit(&self, sender: Option<Sender>, is_beside_others: bool) -> Result<Option<Pass>, ApiError> {
        let behind = match sender.map(|sender| sender.address) {
            Some(Peer::Behind(client)) => Some(client),
            _ => None,
        };
        if behind.is_none() && !is_beside_others {
            return Ok(None);
        }
        let limits = self.live.now();
        let (most, most_per_client) = (limits.max_connections, limits.max_connections_per_client);
        let share = behind.map(|client| self.gate.share(client, most_per_client));
        let share = share.transpose().map_err(|full| too_many("of one client", full))?;
        if !is_beside_others {
            return Ok(share);
        }
        // A request through a proxy is in the share of its client, if it names one, already.
        let pass = match sender.is_some_and(|sender| sender.is_proxy) {
            true => self.requests.enter_for_nobody(most),
            false => self.requests.enter(self.client(sender), most, most_per_client),
        };
        let pass = pass.map_err(|full| too_many("over HTTP/2", full))?;
        Ok(Some(match share {
            Some(share) => pass.with(share),
            None => pass,
        }))
    }

    fn client(&self, sender: Option<Sender>) -> IpAddr {
        let address = self.address(sender);
        address.ip().unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// The address that log lines show.
    fn address(&self, sender: Option<Sender>) -> Peer {
        sender.map_or(self.caller.address, |sender| sender.address)
    }
}

fn too_many(which: &str, full: Full) -> ApiError {
    let message = format!(
        "too many requests at once {which} (limits.{}): try again later",
        full.as_str()
    );
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message).retry_after(5)
}

/// Answers one request of a connection.
pub(super) async fn answer<H: Handler>(
    request: Request<Incoming>,
    connection: Arc<Connection<H>>,
) -> Result<Response<Watched<H::Body>>, Infallible> {
    let Connection {
        handler,
        caller,
        limits,
        pulse,
        ..
    } = &*connection;
    let (mut parts, body) = request.into_parts();
    let http2 = parts.version == Version::HTTP_2;
    let head = parts.method == Method::HEAD;
    let mut close = false;
    let refused = refuse(&parts.uri, &parts.headers, parts.version, limits.header_bytes);
    let body = match parts.method {
        // Before the request counts as running: its body arrives within the time for its head, or not at all.
        // In HTTP/1 that time runs already; an HTTP/2 stream has none of its own.
        // Nearly always there is none, and nothing to wait for.
        Method::GET | Method::HEAD if refused.is_none() && body.is_end_stream() => Body::empty(),
        Method::GET | Method::HEAD if refused.is_none() => {
            close = match http2 {
                true => !matches!(
                    tokio::time::timeout(limits.header_timeout, drained(body)).await,
                    Ok(true)
                ),
                false => !drained(body).await,
            };
            // Whoever handles it sees no body, so it must not see the length of one either.
            parts.headers.remove(CONTENT_LENGTH);
            Body::empty()
        }
        _ => Body::new(body),
    };
    let (mut running, others) = Running::begin(pulse);
    let mut is_bodiless = false;
    let sender = caller.sender(&parts.headers, &connection.proxies.now());
    let refused = match refused {
        None => match connection.admit(sender, http2 && others > 0) {
            Ok(pass) => {
                if let Some(pass) = pass {
                    running.hold(pass);
                }
                None
            }
            Err(error) => {
                // A client that reads nothing is not to hold the words either.
                match connection.refusals.enter(connection.client(sender), REFUSALS, REFUSALS) {
                    Ok(pass) => running.hold(pass),
                    Err(_) => is_bodiless = true,
                }
                Some(error)
            }
        },
        refused => refused,
    };
    let version = parts.version;
    let mut response = match refused {
        Some(error) => {
            // The access log stands behind the handler's door.
            metrics::counter!("larder_requests_refused_total", "status" => error.status.as_u16().to_string())
                .increment(1);
            let client = connection.address(sender);
            if error.status.is_server_error() {
                let asked = Some((&parts.method, &parts.uri));
                log_failure(asked, client, error.status, Instant::now(), error.cause());
            }
            tracing::debug!(%client, status = error.status.as_u16(), reason = error.message, "request refused");
            close = true;
            let mut response = error.into_response();
            if is_bodiless {
                response.headers_mut().remove(CONTENT_LENGTH);
                *response.body_mut() = Body::empty();
            }
            response.map(H::Body::from)
        }
        None => handler.handle(Request::from_parts(parts, body), caller).await,
    };
    if close && !http2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let (parts, body) = response.into_parts();
    // The length of a body that is not sent is no promise.
    let bodiless = head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let left = match bodiless {
        true => None,
        // Of bytes in memory nobody has to read the header.
        false => body.size_hint().exact().or_else(|| declared(&parts.headers)),
    };
    let on_break = match version {
        Version::HTTP_2 => OnBreak::EndStream,
        // Without a length HTTP/1.0 knows only the end of the connection.
        Version::HTTP_10 if left.is_none() && !bodiless => OnBreak::Close(Break::Reset),
        _ => OnBreak::Close(Break::Short),
    };
    Ok(Response::from_parts(
        parts,
        Watched {
            body,
            left,
            on_break,
            broken: false,
            last: 0,
            outbox: caller.outbox.clone().filter(|outbox| outbox.sends_files()),
            delivery: Delivery::Begun(running),
        },
    ))
}

/// What no route has to see; each answer ends the connection.
fn refuse(uri: &Uri, headers: &HeaderMap, version: Version, header_bytes: usize) -> Option<ApiError> {
    let refusal = |status, message: &str| Some(ApiError::new(status, ErrorCode::Unsupported, message));
    let length = uri.path_and_query().map_or(0, |pq| pq.as_str().len());
    if length > MAX_URI {
        return refusal(StatusCode::URI_TOO_LONG, "the path is longer than 16 KiB");
    }
    // ": " and the line's end count too. Not 431: containers/image falls back to a full download after a 400
    // to a long Range, and fails after anything else (R-C67).
    let block: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if block > header_bytes {
        return refusal(
            StatusCode::BAD_REQUEST,
            "the request's headers are longer than limits.header_bytes",
        );
    }
    if version == Version::HTTP_2 {
        return None;
    }
    // hyper drops the Content-Length that stands beside a Transfer-Encoding, so the two cannot be told from one.
    // No client of a registry that takes no uploads needs chunked requests: refuse them all, and with them the shape
    // that two servers may read differently (R-X14).
    if headers.contains_key(TRANSFER_ENCODING) {
        return refusal(
            StatusCode::BAD_REQUEST,
            "a request with Transfer-Encoding is not accepted; send Content-Length",
        );
    }
    match headers.get_all(HOST).iter().count() {
        0 if version == Version::HTTP_11 => refusal(StatusCode::BAD_REQUEST, "the request has no Host"),
        0 | 1 => None,
        _ => refusal(StatusCode::BAD_REQUEST, "the request has more than one Host"),
    }
}

/// Throws a request's body away; false if it was longer than [`DRAINED`] or broke off.
async fn drained(mut body: Incoming) -> bool {
    let mut left = DRAINED;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else {
            return false;
        };
        left = rest;
    }
    true
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a client is to see when a response's body fails half-way.
#[derive(Clone, Copy)]
enum OnBreak {
    /// HTTP/1: all that was sent before, then the end of the connection.
    Close(Break),
    /// HTTP/2: the end of the stream, if it has a length and bytes are missing: clients see that it is short and
    /// resume, where they would give up after RST_STREAM (R-C14). Without a length, RST_STREAM.
    EndStream,
}

/// A response's body on its last yards.
pub(super) struct Watched<B: Reported> {
    body: B,
    /// Bytes to come, if it is known.
    left: Option<u64>,
    on_break: OnBreak,
    broken: bool,
    /// Bytes of the last piece.
    last: u64,
    /// Where files are sent: hyper may take of those what it likes.
    outbox: Option<Arc<Outbox>>,
    delivery: Delivery,
}

/// hyper has all of the body, or wants no more of it: what is to be recorded waits for its pieces.
impl<B: Reported> Drop for Watched<B> {
    fn drop(&mut self) {
        if !matches!(self.delivery, Delivery::Given) {
            let report = self.body.take_report();
            self.delivery.end(report);
        }
    }
}

impl<B: Reported> Watched<B> {
    /// Turns a failure, or an end that comes too early, into what the client is to see.
    fn broke(&mut self, error: axum::Error) -> Poll<Option<Result<Frame<Tracked>, axum::Error>>> {
        match self.on_break {
            OnBreak::Close(how) => {
                // hyper would drop what it has buffered if it saw the error. It sees a body that waits, flushes, and
                // is told by the wire that the connection is over.
                self.broken = true;
                self.delivery.break_off(how);
                Poll::Pending
            }
            OnBreak::EndStream if self.left.is_some_and(|left| left > 0) => Poll::Ready(None),
            OnBreak::EndStream => Poll::Ready(Some(Err(error))),
        }
    }
}

impl<B: http_body::Body<Data = Bytes, Error = axum::Error> + Reported + Unpin> http_body::Body for Watched<B> {
    type Data = Tracked;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Tracked>, axum::Error>>> {
        if self.broken || (self.outbox.is_none() && !self.delivery.has_room(cx, self.last)) {
            return Poll::Pending;
        }
        let this = &mut *self;
        match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let most = this.left.unwrap_or(u64::MAX);
                let frame = frame.map_data(|data| {
                    let piece = Piece::of(data, this.outbox.as_deref(), most);
                    this.last = piece.remaining() as u64;
                    this.left = this.left.map(|left| left.saturating_sub(this.last));
                    match this.left {
                        Some(0) if this.body.is_end_stream() => {
                            this.delivery.track_last(piece, || this.body.take_report())
                        }
                        _ => this.delivery.track(piece),
                    }
                });
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => self.broke(error),
            None if self.left.is_some_and(|left| left > 0) => self.broke(axum::Error::new("the body ended early")),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        // A body that claims to have ended before its length would leave hyper waiting for bytes.
        self.body.is_end_stream() && self.left.is_none_or(|left| left == 0)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
