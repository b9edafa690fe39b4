//! `/api/v1/…` on the operators' address: what [`Admin`] can do, as routes.
//!
//! The table below is all there is; `openapi.json` beside it describes each, and a test holds one to the other. What
//! changes something takes JSON and nothing else, which no web page can send here (R-X16); lists are clamped (R-X20).

mod bundle;

use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::operators::OperatorError;
use crate::admin::prefetch::PrefetchOrder;
use crate::admin::{Admin, MOST_ROWS};
use crate::oci::media_type;
use crate::text;

/// Largest body of a call.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Largest list of images to be fetched ahead.
pub const MAX_ORDER_BYTES: usize = 4 << 20;
/// Rows of a list when the call does not say.
const ROWS: usize = 100;

const DESCRIPTION: &str = include_str!("admin/openapi.json");

type Answer = Result<Response, OperatorError>;

/// Every route: its path, what it takes, and who answers.
fn routes() -> [(&'static str, &'static [&'static str], MethodRouter<Admin>); 19] {
    [
        ("/api/v1/images", &["GET"], get(images)),
        (
            "/api/v1/images/{*image}",
            &["GET", "DELETE"],
            get(inspect).delete(remove),
        ),
        ("/api/v1/du", &["GET"], get(du)),
        ("/api/v1/stats", &["GET"], get(stats)),
        ("/api/v1/pins", &["POST", "DELETE"], post(pin).merge(delete(unpin))),
        ("/api/v1/refresh", &["POST"], post(refresh)),
        (
            "/api/v1/verify",
            &["GET", "POST", "DELETE"],
            get(verification).post(verify).delete(cancel_verify),
        ),
        (
            "/api/v1/log-level",
            &["GET", "POST"],
            get(log_level).post(set_log_level),
        ),
        ("/api/v1/reload", &["POST"], post(reload)),
        ("/api/v1/prefetch", &["GET", "POST"], get(prefetches).post(prefetch)),
        (
            "/api/v1/prefetch/{job}",
            &["GET", "DELETE"],
            get(prefetch_job).delete(cancel_prefetch),
        ),
        ("/api/v1/wishes", &["GET", "DELETE"], get(wishes).delete(clear_wishes)),
        ("/api/v1/bundle/plan", &["POST"], post(bundle::plan)),
        ("/api/v1/bundle/create", &["POST"], post(bundle::create)),
        ("/api/v1/bundle/import", &["POST"], post(bundle::import)),
        ("/api/v1/bundle/receipt", &["GET"], get(bundle::receipt)),
        ("/api/v1/canary", &["POST"], post(make_canary)),
        (
            "/api/v1/canary/{tag}",
            &["GET", "DELETE"],
            get(canary).delete(end_canary),
        ),
        ("/api/v1/openapi.json", &["GET"], get(description)),
    ]
}

/// To be merged into the operators' router, whose Host check it needs.
pub fn router(admin: Admin) -> Router {
    let router = routes()
        .into_iter()
        .fold(Router::new(), |router, (path, takes, answer)| {
            let refuse = move || async move { OperatorError::wrong_method(takes.join(", ")) };
            router.route(path, answer.fallback(refuse))
        });
    router.with_state(admin)
}

async fn images(State(admin): State<Admin>, request: Request) -> Answer {
    let mut query = query(&request, &["pattern", "after", "n"])?;
    let rows = rows(&query)?;
    let (pattern, after) = (query.remove("pattern"), query.remove("after"));
    Ok(json(&admin.images(pattern, after, rows).await?))
}

/// What stands behind `/images/`, decoded.
type Named = Result<Path<String>, PathRejection>;

fn named(image: Named) -> Result<String, OperatorError> {
    let Path(image) = image.map_err(|error| OperatorError::bad_request(error.body_text()))?;
    Ok(image)
}

async fn inspect(State(admin): State<Admin>, image: Named) -> Answer {
    Ok(json(&admin.inspect(&named(image)?).await?))
}

async fn remove(State(admin): State<Admin>, image: Named, request: Request) -> Answer {
    demand_json(request.headers())?;
    let image = named(image)?;
    let query = query(&request, &["force"])?;
    let force = match query.get("force").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let message = format!("force={other:?}: expected true or false");
            return Err(OperatorError::bad_request(message));
        }
    };
    Ok(json(&admin.remove(&image, force).await?))
}

async fn du(State(admin): State<Admin>, request: Request) -> Answer {
    let rows = rows(&query(&request, &["n"])?)?;
    Ok(json(&admin.du(rows).await?))
}

async fn stats(State(admin): State<Admin>) -> Response {
    json(&admin.stats())
}

/// The body of calls about one image.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneImage {
    image: String,
}

async fn pin(State(admin): State<Admin>, request: Request) -> Answer {
    let OneImage { image } = body(request).await?;
    Ok(json(&admin.pin(&image).await?))
}

async fn unpin(State(admin): State<Admin>, request: Request) -> Answer {
    let OneImage { image } = body(request).await?;
    Ok(json(&admin.unpin(&image).await?))
}

async fn refresh(State(admin): State<Admin>, request: Request) -> Answer {
    let OneImage { image } = body(request).await?;
    Ok(json(&admin.refresh(&image).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HowToVerify {
    #[serde(default)]
    repair: bool,
}

async fn verify(State(admin): State<Admin>, request: Request) -> Answer {
    let HowToVerify { repair } = body(request).await?;
    let mut response = json(&admin.verify(repair)?);
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn verification(State(admin): State<Admin>) -> Response {
    json(&admin.verification())
}

async fn cancel_verify(State(admin): State<Admin>, request: Request) -> Answer {
    demand_json(request.headers())?;
    Ok(json(&admin.cancel_verify()))
}

async fn log_level(State(admin): State<Admin>) -> Answer {
    Ok(json(&admin.log_level(None)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedLevel {
    level: String,
}

async fn set_log_level(State(admin): State<Admin>, request: Request) -> Answer {
    let WantedLevel { level } = body(request).await?;
    Ok(json(&admin.log_level(Some(&level))?))
}

async fn reload(State(admin): State<Admin>, request: Request) -> Answer {
    demand_json(request.headers())?;
    Ok(json(&admin.reload().await?))
}

async fn prefetch(State(admin): State<Admin>, request: Request) -> Answer {
    let order: PrefetchOrder = body_of(request, MAX_ORDER_BYTES).await?;
    let mut response = json(&admin.prefetch(&order).await?);
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn prefetches(State(admin): State<Admin>) -> Response {
    json(&admin.prefetches())
}

/// The number of a job, in its path.
type Numbered = Result<Path<u64>, PathRejection>;

fn number(job: Numbered) -> Result<u64, OperatorError> {
    let Path(job) = job.map_err(|error| OperatorError::bad_request(error.body_text()))?;
    Ok(job)
}

async fn prefetch_job(State(admin): State<Admin>, job: Numbered, request: Request) -> Answer {
    let query = query(&request, &["after"])?;
    let after = match query.get("after").map(|text| text.parse::<u64>()) {
        None => 0,
        Some(Ok(after)) => after,
        Some(Err(_)) => return Err(OperatorError::bad_request("after: expected a version that the job had")),
    };
    Ok(json(&admin.prefetch_job(number(job)?, after)?))
}

async fn cancel_prefetch(State(admin): State<Admin>, job: Numbered, request: Request) -> Answer {
    demand_json(request.headers())?;
    Ok(json(&admin.cancel_prefetch(number(job)?)?))
}

async fn wishes(State(admin): State<Admin>) -> Response {
    json(&admin.wishes())
}

async fn clear_wishes(State(admin): State<Admin>, request: Request) -> Answer {
    demand_json(request.headers())?;
    Ok(json(&admin.clear_wishes().await?))
}

/// The body of the call for a canary.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedCanary {
    architecture: String,
}

async fn make_canary(State(admin): State<Admin>, request: Request) -> Answer {
    let WantedCanary { architecture } = body(request).await?;
    Ok(json(&admin.make_canary(&architecture)?))
}

async fn canary(State(admin): State<Admin>, tag: Named) -> Answer {
    Ok(json(&admin.canary(&named(tag)?)?))
}

async fn end_canary(State(admin): State<Admin>, tag: Named, request: Request) -> Answer {
    demand_json(request.headers())?;
    Ok(json(&admin.end_canary(&named(tag)?)?))
}

async fn description() -> Response {
    json_text(DESCRIPTION.to_owned())
}

// --- reading a call -----------------------------------------------------------------------------------

/// The parameters, each at most once and none but those that are `known`: a typo must not widen what is meant.
fn query(request: &Request, known: &[&str]) -> Result<BTreeMap<String, String>, OperatorError> {
    let text = request.uri().query().unwrap_or_default();
    let mut found = BTreeMap::new();
    for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
        if !known.contains(&key.as_ref()) {
            let message = format!("there is no parameter {key:?} here; there are: {}", known.join(", "));
            return Err(OperatorError::bad_request(message));
        }
        if found.insert(key.to_string(), value.into_owned()).is_some() {
            return Err(OperatorError::bad_request(format!(
                "the parameter {key:?} is given twice"
            )));
        }
    }
    Ok(found)
}

/// `n`, clamped.
fn rows(query: &BTreeMap<String, String>) -> Result<usize, OperatorError> {
    let Some(text) = query.get("n") else { return Ok(ROWS) };
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        let message = format!("n={text:?} is not a number of rows: expected 1 to {MOST_ROWS}");
        return Err(OperatorError::bad_request(message));
    }
    Ok(text.parse().unwrap_or(MOST_ROWS).clamp(1, MOST_ROWS))
}

fn demand_json(headers: &HeaderMap) -> Result<(), OperatorError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match kind.and_then(media_type::essence).as_deref() {
        Some("application/json") => Ok(()),
        _ => Err(OperatorError::not_json()),
    }
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, OperatorError> {
    body_of(request, MAX_BODY_BYTES).await
}

async fn body_of<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, OperatorError> {
    demand_json(request.headers())?;
    let bytes = to_bytes(request.into_body(), limit).await;
    let bytes = bytes.map_err(|_| OperatorError::too_large(limit))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| OperatorError::bad_request(format!("the body: {}", text::excerpt(&error))))
}

fn json<T: Serialize>(view: &T) -> Response {
    match serde_json::to_string(view) {
        Ok(text) => json_text(text + "\n"),
        // Maps with keys that are no strings; views have none.
        Err(error) => {
            OperatorError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()).into_response()
        }
    }
}

fn json_text(text: String) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from(text)).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every route is described, and nothing else is. That the answers are as described, `tests/it/admin.rs` tests.
    #[test]
    fn the_description_and_the_routes_agree() {
        let description: serde_json::Value = serde_json::from_str(DESCRIPTION).unwrap();
        assert_eq!(description["openapi"], "3.1.0");
        let described: BTreeSet<(String, String)> = description["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
                methods.map(|method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let routed: BTreeSet<(String, String)> = routes()
            .iter()
            .flat_map(|(path, takes, _)| {
                takes
                    .iter()
                    .map(|method| (path.replace("{*", "{"), (*method).to_owned()))
            })
            .collect();
        assert_eq!(described, routed);
        let operations = description["paths"].as_object().unwrap().values();
        for operation in operations.flat_map(|item| item.as_object().unwrap().values()) {
            if operation.is_object() {
                assert!(operation["operationId"].is_string() && operation["responses"].is_object());
            }
        }
    }

    #[test]
    fn rows_are_clamped() {
        let of = |text: &str| rows(&BTreeMap::from([("n".to_owned(), text.to_owned())])).map_err(|e| e.status);
        assert_eq!(
            (of("0"), of("7"), of("99999999999999999999")),
            (Ok(1), Ok(7), Ok(MOST_ROWS))
        );
        for bad in ["", "-1", "x", "1.5"] {
            assert_eq!(of(bad), Err(StatusCode::BAD_REQUEST), "{bad}");
        }
    }

    #[test]
    fn only_json_changes_something() {
        let with = |text: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, text.parse().unwrap())]);
        for good in ["application/json", "Application/JSON; charset=utf-8"] {
            assert!(demand_json(&with(good)).is_ok(), "{good}");
        }
        for bad in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/jsonp",
        ] {
            assert!(demand_json(&with(bad)).is_err(), "{bad}");
        }
        assert!(demand_json(&HeaderMap::new()).is_err());
    }
}
