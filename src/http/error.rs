//! An error as clients see it: the specification's JSON body, and headers that a client can act on (R-S3).
//!
//! The only room that turns an error into a status; `operators` is its door to the operators' address.

pub mod operators;

use axum::body::Body;
use axum::http::header::{
    AGE, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use std::time::Duration;

use super::labels::Cause;
use crate::oci::ErrorCode;
use crate::oci::digest::DigestError;
use crate::oci::manifest::ManifestError;
use crate::oci::reference::TagError;
use crate::pull::{Circle, PullError, Target};
use crate::store::StoreError;
use crate::text;
use crate::upstream::{ErrorKind, UpstreamError};

/// dockerd's classic store looks for this on every answer of a registry (protocol 0.3).
pub const API_VERSION: (HeaderName, HeaderValue) = (
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderValue::from_static("registry/2.0"),
);

/// Where tokens are given out a login comes as `Basic`.
const TOKEN_CHALLENGE: &str = "Basic realm=\"larder\"";

/// One error, ready to be sent.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: ErrorCode,
    /// What is wrong, for a person. Clients show it.
    pub message: String,
    /// What to do about it: text or a small object; left out when null.
    pub detail: Value,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Why it failed, for the access log; `None`: as the message says.
    cause: Option<String>,
    /// Set if a 404 stands for a failed pull: no upstream has said that the content does not exist.
    is_failed_pull: bool,
}

impl ApiError {
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            code,
            message: message.into(),
            detail: Value::Null,
            headers: Vec::new(),
            cause: None,
            is_failed_pull: false,
        }
    }

    /// The outcome that logs and counters give this error; `None` for a mistake of the client's, which is no pull.
    pub fn outcome(&self) -> Option<&'static str> {
        match self.status {
            StatusCode::NOT_FOUND if !self.is_failed_pull => Some("missing"),
            status if status.is_client_error() && !self.is_failed_pull => None,
            _ => Some("error"),
        }
    }

    /// Marks a 404 by which clients go on elsewhere, although the content may exist.
    fn failed_pull(mut self) -> ApiError {
        self.is_failed_pull = true;
        self
    }

    /// Why it failed, for the log of the proxy: one sentence, which need not repeat what was asked for.
    pub fn cause(&self) -> &str {
        self.cause.as_deref().unwrap_or(&self.message)
    }

    pub fn detail(mut self, detail: impl Into<Value>) -> ApiError {
        self.detail = detail.into();
        self
    }

    /// `Retry-After` in seconds.
    pub fn retry_after(self, seconds: u64) -> ApiError {
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.headers.push((name, value));
        self
    }

    /// Foreign text in it is bounded and written out.
    fn body(&self) -> String {
        let mut error = json!({ "code": self.code.as_str(), "message": text::message(&self.message) });
        if !self.detail.is_null() {
            error["detail"] = shown(&self.detail);
        }
        json!({ "errors": [error] }).to_string()
    }
}

/// A text, or a small object of them, fit to be shown.
fn shown(detail: &Value) -> Value {
    match detail {
        Value::String(text) => text::message(text).into(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
        Value::Array(list) => list.iter().map(shown).collect(),
        other => other.clone(),
    }
}

/// What was asked for: it decides the code of "not there".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

impl Subject {
    fn unknown(self) -> ErrorCode {
        match self {
            Subject::Manifest => ErrorCode::ManifestUnknown,
            Subject::Blob => ErrorCode::BlobUnknown,
            Subject::Tags => ErrorCode::NameUnknown,
            // Not NAME_UNKNOWN: oras would give up on the repository instead of trying the tag (R-C92).
            Subject::Referrers => ErrorCode::ManifestUnknown,
        }
    }
}

/// Refusals that need no upstream.
impl ApiError {
    pub fn bad_digest(error: &DigestError) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, error.to_string())
    }

    /// R-S7: a tag that cannot exist does not exist.
    pub fn impossible_tag(error: &TagError) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, error.to_string())
    }

    pub fn bad_path(path: &str) -> ApiError {
        let path: String = path.chars().take(300).collect();
        let message = format!("the path {path:?} cannot be read: a part of it is no UTF-8 or hides a separator");
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, message)
    }

    pub fn no_such_endpoint(path: &str) -> ApiError {
        let path: String = path.chars().take(300).collect();
        ApiError::new(
            StatusCode::NOT_FOUND,
            ErrorCode::Unsupported,
            format!("there is nothing at {path:?}"),
        )
        .detail("images are at /v2/<name>/manifests/<tag>, for instance /v2/library/alpine/manifests/latest")
    }

    pub fn bad_page_size(found: &str) -> ApiError {
        let found: String = found.chars().take(100).collect();
        let message = format!("n={found:?} is not a number of entries: expected 0 or more");
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::PaginationNumberInvalid, message)
    }

    /// R-S2. The connection ends with it: nobody reads the upload that may follow.
    pub fn read_only(target: Option<&Target>) -> ApiError {
        let message = "this is a read-only cache: nothing can be pushed to it or deleted through it";
        let place = match target {
            Some(target) => format!("push to the registry itself: {}", target.key),
            None => "push to the registry itself".to_owned(),
        };
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message)
            .detail(place)
            .header(ALLOW, HeaderValue::from_static("GET, HEAD"))
            .header(CONNECTION, HeaderValue::from_static("close"))
    }

    /// 508: the request has come back to where it was sent from, or would go round for ever.
    pub fn in_a_circle(circle: Circle) -> ApiError {
        ApiError::new(StatusCode::LOOP_DETECTED, ErrorCode::Unknown, circle.to_string())
            .detail("look at `url` and `mirrors` of the upstreams of every Larder on the way")
    }

    pub fn too_slow(target: &Target, after: Duration) -> ApiError {
        let message = format!("{} took longer than {} s", target.upstream.name, after.as_secs());
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable, message)
            .detail("what was begun goes on: try again in a moment")
            .retry_after(5)
    }

    /// 416 with the size that would have been (R-S13).
    pub fn unsatisfiable(total: u64) -> Response<Body> {
        let message = format!(
            "the blob has {total} bytes: nothing of it lies in the Range that was asked for, or that is no range at all"
        );
        let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::Unsupported, message);
        let mut response = error.into_response();
        if let Ok(value) = HeaderValue::from_str(&format!("bytes */{total}")) {
            response.headers_mut().insert(CONTENT_RANGE, value);
        }
        response
    }
}

/// Refusals for want of a right. Each says the same whether something is there or not (R-X8).
impl ApiError {
    /// 401 with one challenge, in one line (R-C21).
    pub fn log_in_first(challenge: &str) -> ApiError {
        let error = ApiError::new(
            StatusCode::UNAUTHORIZED,
            ErrorCode::Unauthorized,
            "log in to this proxy to pull this",
        );
        error.challenge(challenge)
    }

    /// 401 to somebody who has logged in, with a password that is wrong.
    pub fn log_in_again(challenge: &str) -> ApiError {
        ApiError::unknown_login().challenge(challenge)
    }

    /// A login that is none of ours, at `/token`.
    pub fn wrong_login() -> ApiError {
        ApiError::unknown_login().challenge(TOKEN_CHALLENGE)
    }

    /// 401 to a request for a token that brought no login.
    pub fn no_login() -> ApiError {
        ApiError::log_in_first(TOKEN_CHALLENGE)
    }

    fn unknown_login() -> ApiError {
        let message = "this proxy does not know this user and password";
        ApiError::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message)
            .detail("these are the proxy's own users, not those of the registries behind it")
    }

    fn challenge(self, challenge: &str) -> ApiError {
        match HeaderValue::from_str(challenge) {
            Ok(value) => self.header(WWW_AUTHENTICATE, value),
            Err(_) => self,
        }
    }

    pub fn bad_grant(found: &str) -> ApiError {
        let found: String = found.chars().take(60).collect();
        let message = format!("grant_type {found:?} is not known here: expected \"password\"");
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
    }

    pub fn bad_form(most: usize) -> ApiError {
        let message = format!("the form did not come, or is larger than {most} bytes");
        ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
    }

    /// Too many passwords are being looked at.
    pub fn busy() -> ApiError {
        let message = "too many logins at once: try again in a moment";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message).retry_after(2)
    }

    /// For a caller to whom nothing is open, and whom a login would not help.
    pub fn nothing_here() -> ApiError {
        let message = "nothing can be pulled from this address of the proxy by you";
        ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
    }

    pub fn not_there_for_you(image: &str, subject: Subject) -> ApiError {
        let message = format!("{image}: it does not exist, or you may not pull it through this proxy");
        ApiError::new(StatusCode::NOT_FOUND, subject.unknown(), message)
    }
}

/// The one total match from what went wrong to what a client is told.
impl ApiError {
    /// `target` is what the client's name meant, once that is known.
    pub fn of_pull(error: &PullError, subject: Subject, target: Option<&Target>) -> ApiError {
        ApiError {
            cause: Some(cause(error, target)),
            ..ApiError::answer_to(error, subject, target)
        }
    }

    fn answer_to(error: &PullError, subject: Subject, target: Option<&Target>) -> ApiError {
        let message = match (error, target) {
            // It says itself what it is about.
            (PullError::NotInMirror(_), _) | (_, None) => error.to_string(),
            (_, Some(target)) => format!("{}: {error}", target.key),
        };
        let plain = |status, code| ApiError::new(status, code, message.clone());
        match error {
            PullError::Name(_) | PullError::Namespace(_) | PullError::Conflict { .. } => {
                plain(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid)
            }
            PullError::UnknownUpstream(_) => plain(StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
            PullError::NotAllowed { .. } => plain(StatusCode::FORBIDDEN, ErrorCode::Denied)
                .detail("the operator decides this with `allow` and `deny` of the upstream"),
            PullError::Reserved(_) => plain(StatusCode::FORBIDDEN, ErrorCode::Denied),
            PullError::NotInMirror(absent) => {
                let filled = absent.filled();
                plain(StatusCode::NOT_FOUND, subject.unknown())
                    .detail(json!({
                        "mirror": "offline",
                        "last_filled": filled.map(|(when, _)| when.to_string()),
                        "filled_by": filled.map(|(_, by)| by.as_str()),
                        "do": "ask the operator to bring it in: what is missing is on the list of `larder wishes`",
                    }))
                    .failed_pull()
            }
            PullError::NotHeld(_) => plain(StatusCode::NOT_FOUND, subject.unknown())
                .detail("you may pull what this proxy holds; fetching what it does not hold takes another right"),
            PullError::Upstream(upstream) => {
                let error = ApiError::of_upstream(upstream, subject, message);
                // A HEAD has no message to say so in.
                match upstream.age {
                    Some(age) => error.header(AGE, HeaderValue::from(age.as_secs())),
                    None => error,
                }
            }
            // Repeated by clients that have nowhere else to go; others turn elsewhere (R-C12).
            PullError::Late { .. } => plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable).retry_after(5),
            // Only where what was to be served instead is gone in the same moment.
            PullError::Spared(_) => plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
            PullError::Manifest {
                error: ManifestError::TooLarge { .. } | ManifestError::TooManyDescriptors { .. },
                ..
            } => plain(StatusCode::BAD_GATEWAY, ErrorCode::ManifestInvalid)
                .detail("nothing of it was kept; the operator of this proxy may raise the limit"),
            PullError::Manifest { .. } => plain(StatusCode::BAD_GATEWAY, ErrorCode::ManifestInvalid)
                .detail("nothing of it was kept; the manifest has to be repaired where it was pushed"),
            PullError::Upset { .. } | PullError::Store(StoreError::Mismatch(_)) => {
                let code = if subject == Subject::Manifest {
                    ErrorCode::ManifestInvalid
                } else {
                    ErrorCode::Unknown
                };
                plain(StatusCode::BAD_GATEWAY, code).detail("nothing of it was kept; the next request asks anew")
            }
            // Whoever repeats it in a moment gets it, and a client that has another place to go to goes there.
            PullError::Store(StoreError::Unreadable { .. }) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
                    .retry_after(2)
                    .detail(
                        "it is not lost: the proxy's log says why its file cannot be read, such as too many open files",
                    )
            }
            PullError::Store(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown)
                .detail("the proxy's own disk failed: its log has the details"),
            PullError::Busy => plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable).retry_after(5),
            PullError::LeftBehind | PullError::Internal(_) => {
                plain(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown)
            }
        }
    }

    fn of_upstream(error: &UpstreamError, subject: Subject, message: String) -> ApiError {
        let plain = |status, code| ApiError::new(status, code, message.clone());
        match &error.kind {
            ErrorKind::NotFound { .. } => plain(StatusCode::NOT_FOUND, subject.unknown()),
            // "No referrers" would say "unsigned": whoever may not look does not know (R-C81).
            ErrorKind::Denied { .. } if subject == Subject::Referrers => {
                plain(StatusCode::BAD_GATEWAY, ErrorCode::Unknown)
            }
            ErrorKind::Denied { .. } => plain(StatusCode::NOT_FOUND, subject.unknown()).detail(format!(
                "if it exists and is private, give this proxy credentials: [upstream.{:?}] username and password_file",
                error.upstream
            ))
            .failed_pull(),
            ErrorKind::Offline => plain(StatusCode::NOT_FOUND, subject.unknown())
                .detail("this mirror is offline: it serves what is cached and contacts no upstream")
                .failed_pull(),
            // 503, not 429: clients repeat a 429 at once or stall on it, and turn elsewhere on a 503 (R-C11, R-C65).
            ErrorKind::RateLimited { retry_after } => plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
                .retry_after(retry_after.as_secs().max(1))
                .detail(format!(
                    "{} answered 429: its pull limit is used up. What is held is served meanwhile; credentials in [upstream.{:?}] raise the limit",
                    error.upstream, error.upstream
                )),
            ErrorKind::Timeout(_) | ErrorKind::TooSlow => plain(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable),
            ErrorKind::Connect(_) | ErrorKind::Cut(_) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
                    .detail(format!("{} cannot be reached from this proxy just now", error.upstream))
            }
            // It will be the same whoever repeats it, and a Larder in front has to know.
            kind if kind.is_circle() => plain(StatusCode::LOOP_DETECTED, ErrorCode::Unknown).detail(format!(
                "what [upstream.{:?}] asks leads back to a proxy that has asked already: look at `url` and `mirrors`",
                error.upstream
            )),
            // 503 is repeated by clients that have nowhere else to go, 502 is not (R-C12).
            ErrorKind::Status { status, .. } if *status >= 500 => {
                plain(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
            }
            // A manifest too large, or no manifest at all (R-S9).
            ErrorKind::Protocol(_) | ErrorKind::TooLarge { .. } if subject == Subject::Manifest => {
                plain(StatusCode::BAD_GATEWAY, ErrorCode::ManifestInvalid)
            }
            ErrorKind::Status { .. } | ErrorKind::Unwanted | ErrorKind::Refused(_) | ErrorKind::Protocol(_)
            | ErrorKind::TooLarge { .. } | ErrorKind::Auth(_) => {
                plain(StatusCode::BAD_GATEWAY, ErrorCode::Unknown)
            }
        }
    }
}

/// The image is in the log's line already; an error that does not name its upstream gets that name.
fn cause(error: &PullError, target: Option<&Target>) -> String {
    match (error, target) {
        (PullError::Store(StoreError::Mismatch(_)), Some(target)) => format!("{}: {error}", target.upstream.name),
        _ => error.to_string(),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let body = self.body();
        let has_cause = self.status.is_server_error() || self.is_failed_pull;
        let cause = has_cause.then(|| Cause(text::message(self.cause()).into()));
        let length = HeaderValue::from(body.len());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Explicit: the answer to a HEAD loses its body on the way and would lose its length with it (R-S14).
        headers.insert(CONTENT_LENGTH, length);
        headers.insert(API_VERSION.0, API_VERSION.1);
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        if let Some(cause) = cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn sent(error: ApiError) -> (Response<()>, String) {
        let (parts, body) = error.into_response().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (
            Response::from_parts(parts, ()),
            String::from_utf8(bytes.to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn the_specifications_shape() {
        let error = ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::TooManyRequests,
            "slow \"down\"\r\n",
        )
        .detail(json!({"upstream": "docker.io"}))
        .retry_after(7);
        let (head, body) = sent(error).await;
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            json!({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow \"down\"\\r\\n", "detail": {"upstream": "docker.io"}}]})
        );
        assert_eq!(head.status(), 429);
        assert_eq!(head.headers()["content-type"], "application/json");
        assert_eq!(head.headers()["content-length"], body.len().to_string().as_str());
        assert_eq!(head.headers()["docker-distribution-api-version"], "registry/2.0");
        assert_eq!(head.headers()["retry-after"], "7");
    }

    #[tokio::test]
    async fn what_others_wrote_is_bounded_and_visible() {
        let hostile = format!("a\u{202e}b\u{85}{}", "x".repeat(40 << 20));
        let error = ApiError::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, &*hostile);
        let (_, body) = sent(error.detail(json!({ "said": [hostile] }))).await;
        assert!(body.len() < 3 * text::MESSAGE, "{} bytes", body.len());
        let answer: Value = serde_json::from_str(&body).unwrap();
        for text in [
            &answer["errors"][0]["message"],
            &answer["errors"][0]["detail"]["said"][0],
        ] {
            let text = text.as_str().unwrap();
            assert!(text.starts_with("a\\u{202e}b\\u{85}x") && text.ends_with("x…"));
        }
    }

    #[tokio::test]
    async fn no_detail_is_left_out() {
        let (_, body) = sent(ApiError::new(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, "gone")).await;
        assert_eq!(body, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}"#);
    }
}
