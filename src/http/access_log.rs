//! One log line and a few counters per request, when its response has ended.
//!
//! Not when its headers left: how many bytes went out, and whether all of them did, is known only at the end.
//! Secrets stay out: no `Authorization`, no query string but `ns` (L7, R-X17); what clients send is escaped (R-X15).

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{LazyLock, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, RANGE, USER_AGENT};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};

use super::labels::{ClientAddr, Outcome, Route, SendsFiles, UpstreamName};

/// The outermost layer: `router.layer(axum::middleware::from_fn(access_log::record))`.
pub async fn record(request: Request, next: Next) -> Response {
    let mut line = Line::begin(&request);
    let (mut parts, body) = next.run(request).await.into_parts();
    line.answered(&mut parts, body.is_end_stream());
    Response::from_parts(parts, Body::new(Logged { body, line }))
}

/// What the line says of the request.
#[derive(Default)]
struct Asked {
    method: Method,
    path: String,
    client: Option<ClientAddr>,
    user_agent: Option<String>,
    range: Option<String>,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        let method = request.method().clone();
        // Nothing of it is written down for a log that nobody keeps.
        let logged = tracing::enabled!(target: "larder::access", tracing::Level::INFO);
        if !logged && !tracing::enabled!(tracing::Level::DEBUG) {
            return Asked {
                method,
                ..Asked::default()
            };
        }
        Asked {
            method,
            path: path_and_ns(request.uri().path(), request.uri().query()),
            client: request.extensions().get().copied(),
            user_agent: text(request.headers(), USER_AGENT),
            range: text(request.headers(), RANGE),
        }
    }
}

fn path_and_ns(path: &str, query: Option<&str>) -> String {
    let ns = query
        .into_iter()
        .flat_map(|q| q.split('&'))
        .find(|pair| pair.starts_with("ns="));
    match ns {
        Some(ns) => format!("{}?{}", printable(path, 1024), printable(ns, 260)),
        None => printable(path, 1024),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers
        .get(name)
        .map(|value| printable(&String::from_utf8_lossy(value.as_bytes()), 200))
}

/// At most `limit` characters, none of which can forge a line or a colour (R-X15).
fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars().take(limit) {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// A fixed set: clients may invent methods, and each label value costs memory.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// How the response's body came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Complete,
    /// Dropped before its end: the client went away, which is normal (R-C17), or the grace period ran out.
    Aborted,
    /// It failed on our side.
    Broken,
}

impl Ended {
    fn as_str(self) -> &'static str {
        match self {
            Ended::Complete => "complete",
            Ended::Aborted => "aborted",
            Ended::Broken => "broken",
        }
    }
}

/// The client left before there was an answer; nginx's number for it.
const NOT_ANSWERED: u16 = 499;

/// Written when it is dropped, as it is dropped once, whatever became of the request.
struct Line {
    asked: Asked,
    started: Instant,
    /// [`NOT_ANSWERED`] until there is an answer.
    status: u16,
    outcome: &'static str,
    upstream: Option<UpstreamName>,
    declared: Option<u64>,
    outbox: Option<SendsFiles>,
    sent: u64,
    ended: Ended,
}

impl Line {
    fn begin(request: &Request) -> Line {
        Line {
            asked: Asked::of(request),
            started: Instant::now(),
            status: NOT_ANSWERED,
            outcome: "-",
            upstream: None,
            declared: None,
            outbox: request.extensions().get().cloned(),
            sent: 0,
            ended: Ended::Aborted,
        }
    }

    fn answered(&mut self, head: &mut Parts, empty: bool) {
        self.status = head.status.as_u16();
        self.outcome = head.extensions.get::<Outcome>().map_or("-", |o| o.0);
        self.upstream = head.extensions.remove();
        self.declared = head
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse().ok());
        let bodiless = self.asked.method == Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodiless || empty {
            self.ended = Ended::Complete;
        }
        self.count(head.extensions.get::<Route>().map_or("other", |r| r.0));
    }

    fn length(&self, data: &Bytes) -> u64 {
        match &self.outbox {
            Some(outbox) => outbox.0.length(data),
            None => data.len() as u64,
        }
    }

    fn count(&self, route: &'static str) {
        let key = (route, method_label(&self.asked.method), self.status, self.outcome);
        let (requests, seconds) = COUNTERS.get(key, |(route, method, status, outcome)| {
            let requests = metrics::counter!(
                "larder_requests_total",
                "route" => route,
                "method" => method,
                "status" => status.to_string(),
                "outcome" => outcome,
            );
            (
                requests,
                metrics::histogram!("larder_request_seconds", "route" => route),
            )
        });
        requests.increment(1);
        seconds.record(self.started.elapsed().as_secs_f64());
    }
}

type Labels = (&'static str, &'static str, u16, &'static str);

/// Counters by their labels: to look one up in the recorder costs some allocations each time.
static COUNTERS: Handles<Labels, (metrics::Counter, metrics::Histogram)> = Handles::new();
static BYTES: Handles<Option<UpstreamName>, metrics::Counter> = Handles::new();

/// Handles of metrics, as many as there are combinations of labels, all of which are from small fixed sets.
struct Handles<K, V>(LazyLock<RwLock<HashMap<K, V>>>);

impl<K: Eq + Hash + Clone, V: Clone> Handles<K, V> {
    const fn new() -> Handles<K, V> {
        Handles(LazyLock::new(RwLock::default))
    }

    fn get(&self, key: K, make: impl FnOnce(K) -> V) -> V {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = known.get(&key) {
            return handle.clone();
        }
        drop(known);
        let handle = make(key.clone());
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert(handle).clone()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.status == NOT_ANSWERED {
            self.count("other");
        }
        // A sender that has all the declared bytes need not ask for the end that follows them.
        if self.ended == Ended::Aborted && self.declared == Some(self.sent) {
            self.ended = Ended::Complete;
        }
        if let (Ended::Aborted, Some(outbox)) = (self.ended, &self.outbox) {
            self.sent = self.sent.saturating_sub(outbox.0.unsent());
        }
        let upstream = self.upstream.as_ref().map(|name| name.0.clone());
        if self.sent > 0 {
            let counter = BYTES.get(self.upstream.clone(), |upstream| {
                let label = upstream.map_or(metrics::SharedString::const_str("-"), |name| name.0.into());
                metrics::counter!("larder_response_bytes_total", "upstream" => label)
            });
            counter.increment(self.sent);
        }
        tracing::info!(
            target: "larder::access",
            method = %self.asked.method,
            path = self.asked.path,
            status = self.status,
            bytes = self.sent,
            ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            outcome = self.outcome,
            upstream = upstream.as_deref(),
            client = self.asked.client.map(|c| tracing::field::display(c.0)),
            user_agent = self.asked.user_agent,
            range = self.asked.range,
            complete = self.ended == Ended::Complete,
            ended = self.ended.as_str(),
        );
    }
}

/// The response's body, watched.
struct Logged {
    body: Body,
    line: Line,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.line.sent += frame.data_ref().map_or(0, |data| self.line.length(data)),
            Some(Err(error)) => {
                tracing::debug!(path = self.line.asked.path, %error, "a response broke off");
                self.line.ended = Ended::Broken;
            }
            None if self.line.ended == Ended::Aborted => self.line.ended = Ended::Complete,
            None => {}
        }
        if self.line.ended == Ended::Aborted && self.body.is_end_stream() {
            self.line.ended = Ended::Complete;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
