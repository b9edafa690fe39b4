//! The admin address: is it alive, is it ready, how is it doing.
//!
//! Served on a listener of its own, on loopback unless the operator says otherwise (R-X16).

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::access;
use super::error::operators::OperatorError;
use super::labels::{Cause, OverTls};
use crate::telemetry::metrics;

/// Whether requests should be sent here, and why (not).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// With checks that are not well it is degraded: it serves, but not as it was meant to.
    pub ready: bool,
    /// Name, whether it is well, and what was found, for a person.
    pub checks: Vec<(String, bool, String)>,
}

impl Readiness {
    fn status(&self) -> &'static str {
        match (self.ready, self.checks.iter().all(|(_, ok, _)| *ok)) {
            (true, true) => "ready",
            (true, false) => "degraded",
            (false, _) => "unavailable",
        }
    }
}

/// Asked at each `/readyz`. It may touch the disk: it runs off the async threads.
pub type ReadinessCheck = Arc<dyn Fn() -> Readiness + Send + Sync>;

#[derive(Clone)]
struct Ops {
    readiness: ReadinessCheck,
    metrics: metrics::Handle,
}

/// The routes, and those of the API for whom `token` lets in. `hosts` are names, beside IP addresses and `localhost`, by which operators reach
/// this address without TLS and without a token.
pub fn router(
    readiness: ReadinessCheck,
    metrics: metrics::Handle,
    api: Router,
    token: access::Token,
    hosts: Vec<String>,
) -> Router {
    let hosts: Arc<[String]> = hosts.into_iter().map(|h| h.to_ascii_lowercase()).collect();
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .method_not_allowed_fallback(read_only)
        .with_state(Ops { readiness, metrics })
        .merge(api.route_layer(from_fn_with_state(token, access::guard)))
        .fallback(unknown)
        .layer(from_fn_with_state(hosts, known_host))
}

const INDEX: &str = "\
Larder, the admin address.

/healthz  200 as long as the process lives
/readyz   200 if requests should come here, else 503; says why, and whether it is degraded
/metrics  counters in the Prometheus text format
/api/v1/  what is cached and what to do about it, for those who bring the admin token; /api/v1/openapi.json describes it
";

async fn index() -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], INDEX).into_response()
}

async fn healthz() -> Response {
    (
        [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")],
        "ok\n",
    )
        .into_response()
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let asked = tokio::task::spawn_blocking(move || (ops.readiness)()).await;
    let found = asked.unwrap_or_else(|_| Readiness {
        ready: false,
        checks: vec![("readiness".to_owned(), false, "the check itself failed".to_owned())],
    });
    // Degraded is 200: a probe must not take a proxy out of rotation that works, and whose neighbours may be no better.
    let code = match found.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let checks: Vec<_> = found
        .checks
        .iter()
        .map(|(name, ok, found)| json!({"name": name, "ok": ok, "detail": found}))
        .collect();
    let mut response = plain_json(
        code,
        &json!({"ready": found.ready, "status": found.status(), "checks": checks}),
    );
    if !found.ready {
        let bad = found.checks.iter().filter(|(_, ok, _)| !ok);
        let why: Vec<String> = bad.map(|(name, _, found)| format!("{name}: {found}")).collect();
        response.extensions_mut().insert(Cause(why.join("; ").into()));
    }
    response
}

async fn render(State(ops): State<Ops>) -> Result<Response, OperatorError> {
    // It asks the system how the process is doing.
    let text = tokio::task::spawn_blocking(move || ops.metrics.render()).await;
    let failed = |_| {
        OperatorError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the metrics were not written",
        )
    };
    let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text.map_err(failed)?).into_response())
}

async fn unknown() -> OperatorError {
    OperatorError::no_such_path()
}

async fn read_only() -> OperatorError {
    OperatorError::wrong_method("GET".to_owned())
}

fn plain_json(status: StatusCode, value: &serde_json::Value) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, format!("{value}\n")).into_response()
}

/// Refuses names that somebody else's DNS may have pointed here: a web page could otherwise read this address
/// through its visitor's browser (R-X16). Browsers always send a Host; what sends none is no browser.
///
/// Two kinds of requests may use any name. Over TLS such a page has failed already, since no certificate of ours has its
/// site's name. And a call to the API that brings a token is judged by that: no page knows it. Names of a private network
/// ([`is_private`]) are taken too: a scraper beside Larder in a cluster or a Compose file has no other.
async fn known_host(State(hosts): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let brings_token = request.uri().path().starts_with("/api/") && request.headers().contains_key(AUTHORIZATION);
    let is_proven = brings_token || request.extensions().get::<OverTls>().is_some();
    match host_of(request.uri(), request.headers()) {
        Some(host) if !is_proven && !is_known(&host, &hosts) => OperatorError::unknown_host().into_response(),
        _ => next.run(request).await,
    }
}

/// The host asked for, without port and brackets, in lower case; HTTP/2 puts it into the URI.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let header = || {
        headers
            .get(HOST)
            .map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned())
    };
    let authority = uri.authority().map(|a| a.as_str().to_owned()).or_else(header)?;
    let host = match authority.rsplit_once(':') {
        // The colons of a bare `[::1]` are no port.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => &authority,
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

fn is_known(host: &str, hosts: &[String]) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok() || is_private(host) || hosts.iter().any(|known| known == host)
}

/// Ends of names that the public DNS cannot have: Services of Kubernetes, and the top-level domain that is reserved for
/// private use.
const PRIVATE_ENDS: [&str; 3] = [".svc", ".svc.cluster.local", ".internal"];

/// Returns true for a name that nobody outside of this network can point here: a single word, as Compose and Docker name
/// containers, or one of [`PRIVATE_ENDS`].
fn is_private(host: &str) -> bool {
    let is_word = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let ends = PRIVATE_ENDS.iter();
    let above = ends.filter_map(|end| host.strip_suffix(end)).next().unwrap_or(host);
    match above.len() < host.len() {
        true => above.split('.').all(is_word),
        false => is_word(host),
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Secret;

    async fn ask(ready: bool, path: &str, host: &str) -> (StatusCode, String, String) {
        ask_with(ready, ready, path, host).await
    }

    fn routes(ready: bool, disk: bool) -> Router {
        let check: ReadinessCheck = Arc::new(move || Readiness {
            ready,
            checks: vec![("disk".to_owned(), disk, "2 GiB free".to_owned())],
        });
        let token = access::ApiToken::Made(Secret::new("sixteen-letters!"));
        router(
            check,
            metrics::install().unwrap(),
            Router::new().route("/api/v1/stats", get(|| async { "{}" })),
            Arc::new(ArcSwap::from_pointee(token)),
            vec!["Ops.Example".to_owned()],
        )
    }

    async fn ask_with(ready: bool, disk: bool, path: &str, host: &str) -> (StatusCode, String, String) {
        let router = routes(ready, disk);
        let request = Request::builder()
            .uri(path)
            .header(HOST, host)
            .body(Body::empty())
            .unwrap();
        let response = router.oneshot(request).await.unwrap();
        let (status, kind) = (
            response.status(),
            response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned(),
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn alive_and_ready() {
        assert_eq!(ask(false, "/healthz", "localhost").await.2, "ok\n");
        let (status, _, body) = ask(true, "/readyz", "localhost:5001").await;
        assert_eq!(
            (status, body.trim()),
            (
                StatusCode::OK,
                r#"{"checks":[{"detail":"2 GiB free","name":"disk","ok":true}],"ready":true,"status":"ready"}"#
            )
        );
        let (status, _, body) = ask(false, "/readyz", "127.0.0.1").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains(r#""status":"unavailable""#), "{body}");
        let (status, _, body) = ask_with(true, false, "/readyz", "127.0.0.1").await;
        assert_eq!(
            (status, body.trim()),
            (
                StatusCode::OK,
                r#"{"checks":[{"detail":"2 GiB free","name":"disk","ok":false}],"ready":true,"status":"degraded"}"#
            )
        );
    }

    #[tokio::test]
    async fn counters_index_and_the_rest() {
        let (status, kind, _) = ask(true, "/metrics", "[::1]:5001").await;
        assert_eq!(
            (status, kind.as_str()),
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8")
        );
        assert!(ask(true, "/", "[::1]").await.2.contains("/readyz"));
        let (status, kind, _) = ask(true, "/v2/", "10.0.0.7").await;
        assert_eq!((status, kind.as_str()), (StatusCode::NOT_FOUND, "application/json"));
    }

    #[tokio::test]
    async fn unknown_names_are_refused() {
        for host in [
            "evil.example",
            "evil.example:5001",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "larder.svc.evil.example",
            "larder.cluster.local",
            "evil.examplesvc",
            "evil/internal",
            ".internal",
            "",
        ] {
            assert_eq!(
                ask(true, "/metrics", host).await.0,
                StatusCode::MISDIRECTED_REQUEST,
                "{host}"
            );
        }
        for host in [
            "ops.example",
            "OPS.EXAMPLE:5001",
            "ops.example.",
            "LOCALHOST",
            "larder:5001",
            "my_project-larder-1",
            "larder.monitoring.svc:5001",
            "larder.monitoring.svc.cluster.local.",
            "cache.corp.internal",
        ] {
            assert_eq!(ask(true, "/healthz", host).await.0, StatusCode::OK, "{host}");
        }
    }

    /// A page whose name somebody's DNS points here reads nothing: neither as it is, nor with a token that it made up.
    #[tokio::test]
    async fn any_name_will_do_over_tls_and_with_the_token() {
        let ask = async |path: &str, tls: bool, token: Option<&str>| {
            let mut request = Request::builder().uri(path).header(HOST, "larder.example");
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let mut request = request.body(Body::empty()).unwrap();
            if tls {
                request.extensions_mut().insert(OverTls);
            }
            routes(true, true).oneshot(request).await.unwrap().status()
        };
        let (right, wrong) = (Some("sixteen-letters!"), Some("sixteen-letters?"));
        for (path, tls, token, expected) in [
            ("/api/v1/stats", false, None, StatusCode::MISDIRECTED_REQUEST),
            ("/api/v1/stats", false, wrong, StatusCode::UNAUTHORIZED),
            ("/api/v1/stats", false, right, StatusCode::OK),
            ("/api/v1/stats", true, None, StatusCode::UNAUTHORIZED),
            ("/api/v1/stats", true, right, StatusCode::OK),
            ("/metrics", false, right, StatusCode::MISDIRECTED_REQUEST),
            ("/metrics", true, None, StatusCode::OK),
        ] {
            assert_eq!(ask(path, tls, token).await, expected, "{path} {tls} {token:?}");
        }
    }
}
