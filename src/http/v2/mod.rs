//! The registry: the distribution specification's pull and content-discovery categories (R-S1).
//!
//! One handler: `route` reads the path once, `pull` says what the name means, and a file per kind of question turns
//! the answer into headers. Names contain slashes, which no router can split; see `route`.

mod blobs;
mod manifests;
mod referrers;
mod route;
mod tags;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, WARNING};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use self::route::{Name, Query, Route, What};
use super::error::{API_VERSION, ApiError, Subject};
use super::outbox::Outbox;
use super::{access_log, labels, range};
use crate::oci::Digest;
use crate::pull::{Outcome, Pull, PullError, Target};

/// Clients give up on headers after 30 s (R-C18); an answer has to be there before.
const DEADLINE: Duration = Duration::from_secs(25);

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A digest's bytes never change; a tag's target does, and no cache in front of Larder may freeze it (R-S27).
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// Every route of the registry, with its access log.
pub fn router(pull: Arc<Pull>) -> Router {
    Router::new()
        .fallback(answer)
        .with_state(pull)
        .layer(from_fn(access_log::record))
}

/// A question about a repository, ready to be answered.
struct Ask {
    pull: Arc<Pull>,
    target: Target,
    query: Query,
    /// The path as it came: what a Link leads back to (R-C79).
    path: String,
    headers: HeaderMap,
    is_head: bool,
    /// Where files can be handed to, if the connection takes them.
    outbox: Option<Arc<Outbox>>,
}

impl Ask {
    /// Whether the client says that it has this already.
    fn has(&self, digest: &Digest) -> bool {
        let known = self.header(IF_NONE_MATCH);
        known.is_some() && range::if_none_match(known, &etag(digest))
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

async fn answer(State(pull): State<Arc<Pull>>, request: Request) -> Response {
    let (parts, _body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = route::query(parts.uri.query());
    let route = route::parse(&path);
    let label = labels::Route(kind(&route));
    let ns = query.ns.clone();
    let service = pull.clone();
    let mut response = if !matches!(parts.method, Method::GET | Method::HEAD) {
        refuse_write(&pull, &path, &query).into_response()
    } else {
        let is_head = parts.method == Method::HEAD;
        match route {
            Route::Root => text_page(is_head),
            Route::Ping { prefix } if prefix.as_deref().is_none_or(|p| pull.is_upstream(p)) => json("{}".to_owned()),
            Route::Catalog => tags::catalog(&pull, &query).unwrap_or_else(IntoResponse::into_response),
            Route::Repository { name, what } => repository(pull, name, what, query, path, parts).await,
            Route::Malformed => ApiError::bad_path(&path).into_response(),
            Route::Ping { .. } | Route::Unknown => ApiError::no_such_endpoint(&path).into_response(),
        }
    };
    response.headers_mut().insert(API_VERSION.0, API_VERSION.1);
    // R-S22. A value that is no host was refused; its echo would be the client's own text all the same.
    if let Some(value) = ns.and_then(|ns| HeaderValue::from_str(&ns).ok()) {
        response.headers_mut().insert(OCI_NAMESPACE, value);
    }
    response.extensions_mut().insert(label);
    let outcome = response.extensions().get::<labels::Outcome>();
    service.tally().note(outcome.map(|outcome| outcome.0));
    response
}

async fn repository(pull: Arc<Pull>, name: Name, what: What, query: Query, path: String, parts: Parts) -> Response {
    let subject = subject(&what);
    let unknown_prefix = name.prefix.as_ref().filter(|p| !pull.is_upstream(p)).cloned();
    let resolved = match unknown_prefix {
        Some(prefix) => Err(PullError::UnknownUpstream(prefix)),
        None => pull.resolve(&name.full, query.ns.as_deref()),
    };
    let target = match resolved {
        Ok(target) => Target {
            client_name: name.visible,
            ..target
        },
        Err(error) => return ApiError::of_pull(&error, subject, None).into_response(),
    };
    let upstream = labels::UpstreamName(target.upstream.name.as_str().into());
    let ask = Ask {
        pull,
        target,
        query,
        path,
        is_head: parts.method == Method::HEAD,
        outbox: parts.extensions.get::<labels::SendsFiles>().map(|o| o.0.clone()),
        headers: parts.headers,
    };
    let answering = async {
        match &what {
            What::Manifest(reference) => manifests::answer(&ask, reference).await,
            What::Blob(digest) => blobs::answer(&ask, digest).await,
            What::Tags => tags::answer(&ask).await,
            What::Referrers(digest) => referrers::answer(&ask, digest).await,
        }
    };
    let answered = match tokio::time::timeout(DEADLINE, answering).await {
        Ok(answered) => answered,
        Err(_) => Err(ApiError::too_slow(&ask.target, DEADLINE)),
    };
    let mut response = answered.unwrap_or_else(|error| {
        let outcome = labels::Outcome("error");
        let mut response = error.into_response();
        response.extensions_mut().insert(outcome);
        response
    });
    response.extensions_mut().insert(upstream);
    response
}

fn kind(route: &Route) -> &'static str {
    match route {
        Route::Root => "root",
        Route::Ping { .. } => "ping",
        Route::Catalog => "catalog",
        Route::Repository {
            what: What::Manifest(_),
            ..
        } => "manifest",
        Route::Repository {
            what: What::Blob(_), ..
        } => "blob",
        Route::Repository { what: What::Tags, .. } => "tags",
        Route::Repository {
            what: What::Referrers(_),
            ..
        } => "referrers",
        Route::Unknown | Route::Malformed => "other",
    }
}

fn subject(what: &What) -> Subject {
    match what {
        What::Manifest(_) => Subject::Manifest,
        What::Blob(_) => Subject::Blob,
        What::Tags => Subject::Tags,
        What::Referrers(_) => Subject::Referrers,
    }
}

/// R-S2: nothing is pushed here; the answer says where it could be.
fn refuse_write(pull: &Pull, path: &str, query: &Query) -> ApiError {
    let name = path.strip_prefix("/v2/").and_then(|rest| {
        ["/blobs/", "/manifests/", "/tags/"]
            .iter()
            .filter_map(|m| rest.rfind(m))
            .max()
            .map(|at| &rest[..at])
    });
    let target = name.and_then(|name| pull.resolve(name, query.ns.as_deref()).ok());
    ApiError::read_only(target.as_ref())
}

fn text_page(is_head: bool) -> Response {
    const PAGE: &str = "Larder: a pull-through cache of container registries. Images are under /v2/.\n";
    let body = if is_head { Body::empty() } else { Body::from(PAGE) };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(PAGE.len()));
    response
}

/// A small JSON document. The length is explicit, so that a HEAD keeps it.
fn json(text: String) -> Response {
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CACHE_CONTROL, NO_CACHE);
    response
}

/// Says how the answer came about: Cache-Status and Warning for clients, a label for log and metrics.
fn tell_outcome(response: &mut Response, outcome: &Outcome) {
    response.extensions_mut().insert(labels::Outcome(outcome.as_str()));
    let headers = response.headers_mut();
    let value = match outcome {
        Outcome::Hit => Ok(HeaderValue::from_static("larder; hit")),
        other => HeaderValue::from_str(&other.cache_status()),
    };
    if let Ok(value) = value {
        headers.insert(CACHE_STATUS, value);
    }
    if let Some(value) = outcome.warning().and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(WARNING, value);
    }
}

/// `Docker-Content-Digest` and the strong `ETag` made from it (R-S11, R-S27), in one piece of memory.
fn tell_digest(headers: &mut HeaderMap, digest: &Digest) {
    let etag = Bytes::from(etag(digest));
    let bare = etag.slice(1..etag.len() - 1);
    if let (Ok(digest), Ok(etag)) = (
        HeaderValue::from_maybe_shared(bare),
        HeaderValue::from_maybe_shared(etag),
    ) {
        headers.insert(CONTENT_DIGEST, digest);
        headers.insert(ETAG, etag);
    }
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn not_modified(digest: &Digest, cache_control: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tell_digest(response.headers_mut(), digest);
    response.headers_mut().insert(CACHE_CONTROL, cache_control);
    response
}
