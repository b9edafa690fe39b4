//! A request as a span, in the words of OpenTelemetry's conventions for HTTP servers.
//!
//! It begins with the request and goes with its line of the access log to the answer's last byte. Low-cardinality names; no
//! query, no Authorization (L7). A client that went away is no error of ours and is told as `larder.ended`.

use axum::http::header::{HOST, RANGE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Version};

use super::labels::Labels;
use super::server::{Caller, Peer};
use crate::telemetry::trace::context::{Context, TRACEPARENT, TRACESTATE, TraceId};
use crate::telemetry::trace::{Begun, Span, Tracer};

/// The span of one request, where it is recorded, and its trace.
#[derive(Debug, Default)]
pub struct Traced(Begun);

impl Traced {
    pub fn begin(tracer: &Tracer, request: &Parts, caller: &Caller, scheme: &'static str) -> Traced {
        let begun = tracer.request("HTTP", || parent(&request.headers));
        if begun.span.is_recorded() {
            describe(&begun.span, request, caller, scheme);
        }
        Traced(begun)
    }

    pub fn span(&self) -> &Span {
        &self.0.span
    }

    pub fn id(&self) -> Option<TraceId> {
        self.0.id
    }

    /// Its answer's head is known.
    pub fn answered(&self, method: &Method, status: u16, labels: &Labels) {
        let span = self.span();
        if !span.is_recorded() {
            return;
        }
        let route = route(labels.route);
        span.rename(|| match route {
            Some(route) => format!("{} {route}", known(method).unwrap_or("HTTP")),
            None => known(method).unwrap_or("HTTP").to_owned(),
        });
        span.set_some("http.route", route);
        span.set("http.response.status_code", status);
        span.set_some("larder.cache", labels.outcome);
        span.set_some("larder.upstream", labels.upstream.as_ref());
        if let Some(subject) = &labels.subject {
            span.set("larder.repository", &subject.repository);
            span.set("larder.reference", &subject.reference);
        }
        if status >= 500 {
            span.fail(status.to_string(), &"");
        }
    }

    /// Its answer has ended, `how`, after so many bytes of its body.
    pub fn ended(&self, how: &'static str, sent: u64) {
        let span = self.span();
        if !span.is_recorded() {
            return;
        }
        span.set("http.response.body.size", sent);
        span.set("larder.ended", how);
        if how == "broken" {
            span.fail(how, &"the answer broke off");
        }
        span.end();
    }
}

/// More than one `traceparent` is none.
fn parent(headers: &HeaderMap) -> Option<Context> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let (one, None) = (all.next()?, all.next()) else {
        return None;
    };
    let state = headers.get_all(TRACESTATE).iter().map(|line| line.as_bytes());
    Context::read(one.as_bytes(), state)
}

fn describe(span: &Span, request: &Parts, caller: &Caller, scheme: &'static str) {
    let header = |name| Some(String::from_utf8_lossy(request.headers.get(name)?.as_bytes()).into_owned());
    match known(&request.method) {
        Some(method) => span.set("http.request.method", method),
        None => {
            span.set("http.request.method", "_OTHER");
            span.set("http.request.method_original", request.method.to_string());
        }
    }
    span.set("url.path", request.uri.path().to_owned());
    span.set("url.scheme", scheme);
    if let Some(host) = header(HOST) {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
            _ => (host.as_str(), None),
        };
        span.set("server.address", name.to_owned());
        span.set_some("server.port", port);
    }
    if let Some(address) = caller.address.ip() {
        span.set("client.address", address.to_canonical().to_string());
    }
    if let Peer::Tcp(address) = caller.address {
        span.set("client.port", address.port());
    }
    span.set_some("network.protocol.version", version(request.version));
    span.set_some("user_agent.original", header(USER_AGENT));
    span.set_some("larder.range", header(RANGE));
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

fn known(method: &Method) -> Option<&'static str> {
    [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE",
    ]
    .into_iter()
    .find(|known| *known == method.as_str())
}

/// What a kind of endpoint answers at; `None` for paths that are nothing's.
fn route(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "root" => "/",
        "ping" => "/v2/",
        "catalog" => "/v2/_catalog",
        "manifest" => "/v2/{name}/manifests/{reference}",
        "blob" => "/v2/{name}/blobs/{digest}",
        "tags" => "/v2/{name}/tags/list",
        "referrers" => "/v2/{name}/referrers/{digest}",
        "token" => "/v2/_token",
        _ => return None,
    })
}
