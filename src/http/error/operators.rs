//! An error as operators and their programs see it: `{"error": {"code": …, "message": …}}`, one shape for the whole
//! operators' address.

use axum::body::Body;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

use crate::admin::AdminError;
use crate::admin::error::BeginError;
use crate::http::labels::Cause;
use crate::pull::{CanaryError, PullError};
use crate::text;

/// One error, ready to be sent.
#[derive(Clone, Debug)]
pub struct OperatorError {
    pub status: StatusCode,
    /// One word for programs.
    pub code: &'static str,
    /// What is wrong and what to do, for a person.
    pub message: String,
    /// For 405.
    allow: Option<String>,
}

impl OperatorError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> OperatorError {
        OperatorError {
            status,
            code,
            message: message.into(),
            allow: None,
        }
    }

    /// A question that cannot be read.
    pub fn bad_request(message: impl Into<String>) -> OperatorError {
        OperatorError::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    pub fn no_such_path() -> OperatorError {
        let message = "no such path; / lists those that exist, /api/v1/openapi.json describes the API";
        OperatorError::new(StatusCode::NOT_FOUND, "no-such-path", message)
    }

    pub fn unknown_host() -> OperatorError {
        let message = "this address answers by plain HTTP to IP addresses, localhost, names without a dot and names that end in .svc, .svc.cluster.local or .internal: use one of these, or HTTPS (admin.tls)";
        OperatorError::new(StatusCode::MISDIRECTED_REQUEST, "unknown-host", message)
    }

    /// One answer for a token that is missing and one that is wrong.
    pub fn no_token() -> OperatorError {
        let message = "this needs the admin token, as Authorization: Bearer …: that of admin.token or admin.token_file where one is configured, else the one in the file that the proxy named at its start (admin-PORT.token)";
        OperatorError::new(StatusCode::UNAUTHORIZED, "no-token", message)
    }

    /// There is nothing that a call could bring.
    pub fn closed(why: &str) -> OperatorError {
        let message = format!(
            "the API is closed, because {why}: set admin.token_file, or a Unix socket in admin.listen (\"unix:/run/larder/admin.sock\")"
        );
        OperatorError::new(StatusCode::FORBIDDEN, "closed", message)
    }

    pub fn cross_site() -> OperatorError {
        let message = "the API answers no web page of another site (Origin, Sec-Fetch-Site)";
        OperatorError::new(StatusCode::FORBIDDEN, "cross-site", message)
    }

    pub fn wrong_method(allow: String) -> OperatorError {
        let message = format!("that cannot be done to this path: it takes {allow}");
        OperatorError {
            allow: Some(allow),
            ..OperatorError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", message)
        }
    }

    /// R-X16: a web page can make its visitor's browser send anything but this.
    pub fn not_json() -> OperatorError {
        let message = "calls that change something need the header Content-Type: application/json";
        OperatorError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", message)
    }

    pub fn too_large(limit: usize) -> OperatorError {
        let message = format!("the body is larger than {limit} bytes");
        OperatorError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
    }
}

impl From<AdminError> for OperatorError {
    fn from(error: AdminError) -> OperatorError {
        let status = match &error {
            AdminError::Name(error) => of_name(error),
            AdminError::Transport(_)
            | AdminError::Tag(_)
            | AdminError::Digest(_)
            | AdminError::NoTag(_)
            | AdminError::Level(_)
            | AdminError::BadOrder(_) => StatusCode::BAD_REQUEST,
            AdminError::NotHeld(_) | AdminError::NotPinned(_) | AdminError::NoJob(_) | AdminError::NoCanary => {
                StatusCode::NOT_FOUND
            }
            AdminError::Canary(CanaryError::TooMany) => StatusCode::CONFLICT,
            AdminError::Canary(CanaryError::Architecture) => StatusCode::BAD_REQUEST,
            AdminError::Canary(CanaryError::NoRandom) => StatusCode::INTERNAL_SERVER_ERROR,
            AdminError::Pinned(_) | AdminError::Busy(_) | AdminError::TooMany(_) | AdminError::NoLog => {
                StatusCode::CONFLICT
            }
            AdminError::Refresh { error, .. } => of_upstream(error),
            AdminError::Bundle(error) => of_bundle(error.as_str()),
            AdminError::Importing | AdminError::NoReload => StatusCode::CONFLICT,
            AdminError::Reload(_) | AdminError::Begin(BeginError::List(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            AdminError::NoPrefetch { .. } => StatusCode::NOT_FOUND,
            AdminError::Begin(_) => StatusCode::CONFLICT,
            AdminError::Dropped | AdminError::NotWritten(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        OperatorError::new(status, error.as_str(), error.to_string())
    }
}

/// By the error's word: the bundle is not as it should be, or this machine is not.
fn of_bundle(word: &str) -> StatusCode {
    match word {
        "signature" => StatusCode::FORBIDDEN,
        "nothing" => StatusCode::NOT_FOUND,
        "incomplete" | "gone" => StatusCode::CONFLICT,
        "too-slow" => StatusCode::REQUEST_TIMEOUT,
        "no-room" => StatusCode::INSUFFICIENT_STORAGE,
        "store" | "io" | "damaged" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn of_name(error: &PullError) -> StatusCode {
    match error {
        PullError::UnknownUpstream(_) => StatusCode::NOT_FOUND,
        PullError::NotAllowed { .. } | PullError::Reserved(_) => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// Whose fault it is that a tag could not be confirmed.
fn of_upstream(error: &PullError) -> StatusCode {
    match error {
        PullError::NotInMirror(_) => StatusCode::CONFLICT,
        PullError::Store(_) | PullError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        error if error.is_definite() => StatusCode::NOT_FOUND,
        _ => StatusCode::BAD_GATEWAY,
    }
}

impl IntoResponse for OperatorError {
    fn into_response(self) -> Response<Body> {
        // It may have several lines: the mistakes in a configuration.
        let message = text::report(&self.message);
        let body = json!({ "error": { "code": self.code, "message": message } });
        let cause = self
            .status
            .is_server_error()
            .then(|| Cause(text::message(&self.message).into()));
        let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
        let mut response = (self.status, headers, format!("{body}\n")).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"larder\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if let Some(value) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            response.headers_mut().insert(ALLOW, value);
        }
        if let Some(cause) = cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}
