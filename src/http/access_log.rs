//! One log line and a few counters per request, when its response has ended.
//!
//! Not when its headers left, nor when hyper has its last byte: how many bytes went out, and whether all of them did, is known only
//! when the socket has taken them. [`Line`] goes with a request from its beginning, in its response's body, and then as a
//! [`DeliveryReport`] to the end.
//! Secrets stay out: no `Authorization`, no query string but `ns` (L7, R-X17); what clients send is escaped (R-X15).

use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, RANGE, USER_AGENT};
use axum::http::request;
use axum::http::{HeaderMap, HeaderName, Method, Response, StatusCode, Uri};
use http_body::{Frame, SizeHint};

use super::labels::{Labels, Subject};
use super::outbox::Outbox;
use super::server::{Caller, Delivered, DeliveryReport, Peer, Reported};
use super::traced::Traced;
use crate::events::{Action, Event, Events};
use crate::oci::Digest;
use crate::telemetry::trace::{Span, Tracer};
use crate::text::{cut, message};

/// What the line says of the request.
struct Asked {
    path: String,
    client: Peer,
    user_agent: Option<String>,
    range: Option<String>,
}

impl Asked {
    /// `None` if nobody keeps the log: then nothing of it is written down.
    fn of(request: &request::Parts, caller: &Caller) -> Option<Box<Asked>> {
        let logged = tracing::enabled!(target: "larder::access", tracing::Level::INFO);
        if !logged && !tracing::enabled!(tracing::Level::DEBUG) {
            return None;
        }
        Some(Box::new(Asked {
            path: path_and_ns(request.uri.path(), request.uri.query()),
            client: caller.address,
            user_agent: text(&request.headers, USER_AGENT),
            range: text(&request.headers, RANGE),
        }))
    }
}

fn path_and_ns(path: &str, query: Option<&str>) -> String {
    let ns = query
        .into_iter()
        .flat_map(|q| q.split('&'))
        .find(|pair| pair.starts_with("ns="));
    match ns {
        Some(ns) => format!("{}?{}", cut(path, 1024), cut(ns, 260)),
        None => cut(path, 1024),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers
        .get(name)
        .map(|value| cut(&String::from_utf8_lossy(value.as_bytes()), 200))
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
pub struct Line {
    asked: Option<Box<Asked>>,
    method: Method,
    started: Instant,
    /// [`NOT_ANSWERED`] until there is an answer.
    status: u16,
    outcome: &'static str,
    upstream: Option<Arc<str>>,
    /// Whom the caller is known as.
    user: Option<Arc<str>>,
    declared: Option<u64>,
    outbox: Option<Arc<Outbox>>,
    sent: u64,
    ended: Ended,
    /// Why it failed, was served stale, or broke off.
    cause: Option<Arc<str>>,
    /// A blob that was not held, of which nothing has been sent.
    is_cold: bool,
    /// What an event will say of it, if anybody listens.
    heard: Option<Box<Heard>>,
    traced: Traced,
}

/// Of a request, for events.
struct Heard {
    events: Events,
    client: Peer,
    user_agent: Option<Arc<str>>,
    /// Scheme and host that it asked.
    origin: Option<Arc<str>>,
    is_blob: bool,
    /// Whether it showed who it is: the first question of a client that means to log in is answered by 401, and no refusal.
    has_shown: bool,
    subject: Option<Arc<Subject>>,
    digest: Option<Digest>,
    media_type: Option<Arc<str>>,
}

impl Line {
    /// A request is here.
    pub fn begin(request: &request::Parts, caller: &Caller) -> Line {
        Line {
            asked: Asked::of(request, caller),
            method: request.method.clone(),
            started: Instant::now(),
            status: NOT_ANSWERED,
            outcome: "-",
            upstream: None,
            user: None,
            declared: None,
            outbox: caller.outbox.clone(),
            sent: 0,
            ended: Ended::Aborted,
            cause: None,
            is_cold: false,
            heard: None,
            traced: Traced::default(),
        }
    }

    /// Where there are traces, it is one or a part of one.
    pub fn traced(&mut self, tracer: &Tracer, request: &request::Parts, caller: &Caller, scheme: &'static str) -> Span {
        self.traced = Traced::begin(tracer, request, caller, scheme);
        self.traced.span().clone()
    }

    /// It is a client's, and whoever listens to `events` is told what became of it. `scheme` is what the client speaks.
    pub fn heard(mut self, events: &Events, request: &request::Parts, caller: &Caller, scheme: &'static str) -> Line {
        if self.method == Method::GET && events.is_wanted(&[Action::Pull, Action::Refuse]) {
            // That of an HTTP/2 request stands there too.
            let host = text(&request.headers, HOST);
            self.heard = Some(Box::new(Heard {
                events: events.clone(),
                client: caller.address,
                user_agent: text(&request.headers, USER_AGENT).map(Arc::from),
                origin: host.map(|host| format!("{scheme}://{host}").into()),
                is_blob: false,
                has_shown: request.headers.contains_key(AUTHORIZATION),
                subject: None,
                digest: None,
                media_type: None,
            }));
        }
        self
    }

    /// Who it is that asks; `None`: anybody.
    pub fn known_as(&mut self, user: Option<Arc<str>>) {
        self.user = user;
    }

    /// Its answer goes out: counts it, and stays with it until its body has ended.
    pub fn answered<B: http_body::Body>(
        mut self,
        response: Response<B>,
        labels: Labels,
        now: Instant,
    ) -> Response<Logged<B>> {
        self.status = response.status().as_u16();
        self.outcome = labels.outcome.unwrap_or("-");
        self.traced.answered(&self.method, self.status, &labels);
        self.upstream = labels.upstream;
        self.cause = labels.cause;
        if let Some(heard) = &mut self.heard {
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            heard.subject = labels.subject;
            heard.is_blob = labels.route == "blob";
            heard.digest = header("docker-content-digest").and_then(|text| text.parse().ok());
            heard.media_type = header("content-type").map(Arc::from);
        }
        self.is_cold = labels.route == "blob" && matches!(self.outcome, "miss" | "collapsed" | "pass");
        let bodiless = self.method == Method::HEAD
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodiless || response.body().is_end_stream() {
            self.ended = Ended::Complete;
        } else {
            let declared = || response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
            self.declared = response.body().size_hint().exact().or_else(declared);
        }
        self.count(labels.route, now);
        let line = Some(Box::new(self));
        response.map(|body| Logged { body, line })
    }

    /// The body breaks off: on our side, or because it is shorter than it was declared.
    fn broke(&mut self, why: Arc<str>) {
        self.ended = Ended::Broken;
        self.cause = Some(why);
    }

    /// Why a body that has ended is not complete, if it was declared to be longer.
    fn is_short(&self) -> Option<Arc<str>> {
        let declared = self.declared.filter(|declared| self.sent < *declared)?;
        Some(format!("the body ended after {} of {declared} bytes", self.sent).into())
    }

    fn length(&self, data: &Bytes) -> u64 {
        match &self.outbox {
            Some(outbox) => outbox.length(data),
            None => data.len() as u64,
        }
    }

    /// After something was handed over to be sent.
    fn first_byte(&mut self) {
        if self.is_cold && self.sent > 0 {
            self.is_cold = false;
            metrics::histogram!("larder_blob_first_byte_seconds", "outcome" => self.outcome)
                .record(self.started.elapsed().as_secs_f64());
        }
    }

    fn count(&self, route: &'static str, now: Instant) {
        let key = (route, method_label(&self.method), self.status, self.outcome);
        COUNTERS.with(
            &key,
            |(route, method, status, outcome)| {
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
            },
            |(requests, seconds)| {
                requests.increment(1);
                seconds.record(now.saturating_duration_since(self.started).as_secs_f64());
            },
        );
    }
}

impl Line {
    /// A sender that has all the declared bytes need not ask for the end that follows them.
    fn settle_end(&mut self) {
        if self.ended == Ended::Aborted && self.declared == Some(self.sent) {
            self.ended = Ended::Complete;
        }
    }

    /// A pull, or a refusal, as an event. Anything else is for the log only.
    fn tell(&mut self) {
        let Some(heard) = self.heard.take() else { return };
        let action = match self.status {
            200 | 206 => Action::Pull,
            401 if heard.has_shown => Action::Refuse,
            403 => Action::Refuse,
            // Who may not know that it is there.
            404 if self.outcome == "refused" => Action::Refuse,
            _ => return,
        };
        let heard = *heard;
        let (Some(subject), events) = (heard.subject, heard.events) else {
            return;
        };
        events.emit(action, |bare| Event {
            repository: Some(cut(&subject.repository, 512).into()),
            reference: Some(cut(&subject.reference, 256).into()),
            digest: heard.digest,
            media_type: heard.media_type.filter(|_| action == Action::Pull),
            upstream: self.upstream.clone(),
            bytes: (action == Action::Pull).then_some(self.sent),
            took: Some(self.started.elapsed()),
            status: Some(self.status),
            reason: (action == Action::Pull).then_some(self.outcome),
            is_complete: (action == Action::Pull).then_some(self.ended == Ended::Complete),
            client: Some(heard.client.to_string().into()),
            user: self.user.clone(),
            user_agent: heard.user_agent,
            origin: heard.origin,
            is_blob: heard.is_blob,
            ..bare
        });
    }
}

/// Route, method, status and outcome.
type Counted = (&'static str, &'static str, u16, &'static str);

/// Counters by their labels: to look one up in the recorder costs some allocations each time.
static COUNTERS: Handles<Counted, (metrics::Counter, metrics::Histogram)> = Handles::new();
/// Bytes of content sent for each upstream, and the part of them that came from the cache.
static BYTES: Handles<Option<Arc<str>>, (metrics::Counter, metrics::Counter)> = Handles::new();

/// Handles of metrics, as many as there are combinations of labels, all of which are from small fixed sets. In a list, as
/// what is asked for most is met early, and finding it costs less than hashing its labels would.
struct Handles<K, V>(RwLock<Vec<(K, V)>>);

impl<K: Eq + Clone, V> Handles<K, V> {
    const fn new() -> Handles<K, V> {
        Handles(RwLock::new(Vec::new()))
    }

    fn with(&self, key: &K, make: impl FnOnce(K) -> V, then: impl FnOnce(&V)) {
        let find = |known: &[(K, V)]| known.iter().position(|(other, _)| other == key);
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = find(&known) {
            return then(&known[at].1);
        }
        drop(known);
        let handle = make(key.clone());
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if find(&known).is_none() {
            known.push((key.clone(), handle));
        }
        if let Some(at) = find(&known) {
            then(&known[at].1);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.status == NOT_ANSWERED {
            self.count("other", Instant::now());
        }
        self.settle_end();
        if self.sent > 0 && is_content(self.outcome) {
            BYTES.with(
                &self.upstream,
                |upstream| {
                    let label = upstream.map_or(metrics::SharedString::const_str("-"), metrics::SharedString::from);
                    (
                        metrics::counter!("larder_response_bytes_total", "upstream" => label.clone()),
                        metrics::counter!("larder_cached_response_bytes_total", "upstream" => label),
                    )
                },
                |(all, cached)| {
                    all.increment(self.sent);
                    if is_from_cache(self.outcome) {
                        cached.increment(self.sent);
                    }
                },
            );
        }
        self.tell();
        self.traced.ended(self.ended.as_str(), self.sent);
        let asked = self.asked.as_deref();
        tracing::info!(
            target: "larder::access",
            method = %self.method,
            path = asked.map_or("", |asked| &asked.path),
            status = self.status,
            bytes = self.sent,
            ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            outcome = self.outcome,
            upstream = self.upstream.as_deref(),
            client = asked.map(|asked| tracing::field::display(asked.client)),
            user = self.user.as_deref(),
            user_agent = asked.and_then(|asked| asked.user_agent.as_deref()),
            range = asked.and_then(|asked| asked.range.as_deref()),
            complete = self.ended == Ended::Complete,
            ended = self.ended.as_str(),
            error = self.cause.as_deref(),
            trace_id = self.traced.id().map(tracing::field::display),
        );
    }
}

/// Returns whether an answer's body is content of an upstream: the cached part of all bytes says nothing if error bodies count.
fn is_content(outcome: &str) -> bool {
    !matches!(outcome, "-" | "error" | "missing" | "refused")
}

/// Returns whether an answer's body came without a download of its own: it was cached, or came from a download that was under
/// way for another request.
fn is_from_cache(outcome: &str) -> bool {
    matches!(outcome, "hit" | "revalidated" | "stale" | "collapsed")
}

/// The line of an answer that no handler with a log gave: a refusal of the server's, or a failure of the admin address. Only
/// failures have such lines: refusals of what is no valid request, and the scrapes of monitoring, would fill the log.
pub fn log_failure(request: Option<(&Method, &Uri)>, caller: Peer, status: StatusCode, started: Instant, why: &str) {
    tracing::info!(
        target: "larder::access",
        method = request.map(|(method, _)| tracing::field::display(method)),
        path = request.map(|(_, uri)| path_and_ns(uri.path(), uri.query())),
        status = status.as_u16(),
        ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        outcome = "error",
        client = %caller,
        error = why,
    );
}

/// Written down as it is dropped.
impl DeliveryReport for Line {
    fn record(mut self: Box<Self>, delivered: Delivered, cut: Option<&'static str>) {
        if let Delivered::Cut { unsent } = delivered {
            self.settle_end();
            self.sent = self.sent.saturating_sub(unsent);
            // Nor is it complete now that the declared bytes and those that were sent are compared again.
            self.declared = None;
            if self.ended == Ended::Complete {
                self.ended = Ended::Aborted;
            }
        }
        if self.ended == Ended::Aborted && self.declared.is_none_or(|declared| declared > self.sent) {
            self.cause = cut.map(Arc::from).or(self.cause.take());
        }
    }
}

/// The response's body, watched.
pub struct Logged<B> {
    body: B,
    /// `None` for an answer that is no handler's. In a box, as hyper moves a body about, and the report of its end is one.
    line: Option<Box<Line>>,
}

impl<B: From<Body>> From<Body> for Logged<B> {
    fn from(body: Body) -> Logged<B> {
        Logged {
            body: body.into(),
            line: None,
        }
    }
}

impl<B> Reported for Logged<B> {
    fn take_report(&mut self) -> Option<Box<dyn DeliveryReport>> {
        Some(self.line.take()?)
    }
}

impl<B: http_body::Body<Data = Bytes, Error = axum::Error> + Unpin> http_body::Body for Logged<B> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let has_ended = self.body.is_end_stream();
        let Some(line) = &mut self.line else {
            return Poll::Ready(frame);
        };
        match &frame {
            Some(Ok(frame)) => {
                line.sent += frame.data_ref().map_or(0, |data| line.length(data));
                line.first_byte();
            }
            Some(Err(error)) => {
                let path = line.asked.as_ref().map_or("", |asked| &asked.path);
                let trace_id = line.traced.id().map(tracing::field::display);
                tracing::debug!(path, %error, trace_id, "a response broke off");
                line.broke(message(error).into());
            }
            None if line.ended == Ended::Aborted => match line.is_short() {
                Some(why) => line.broke(why),
                None => line.ended = Ended::Complete,
            },
            None => {}
        }
        if line.ended == Ended::Aborted && has_ended {
            match line.is_short() {
                Some(why) => line.broke(why),
                None => line.ended = Ended::Complete,
            }
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
