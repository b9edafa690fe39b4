//! An error as clients see it: the specification's JSON body, and headers that a client can act on (R-S3).
//!
//! The only room that turns an error into a status.

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::oci::ErrorCode;

/// dockerd's classic store looks for this on every answer of a registry (protocol 0.3).
pub const API_VERSION: (HeaderName, HeaderValue) = (
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderValue::from_static("registry/2.0"),
);

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
}

impl ApiError {
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            code,
            message: message.into(),
            detail: Value::Null,
            headers: Vec::new(),
        }
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

    fn body(&self) -> String {
        let mut error = json!({ "code": self.code.as_str(), "message": self.message });
        if !self.detail.is_null() {
            error["detail"] = self.detail.clone();
        }
        json!({ "errors": [error] }).to_string()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let body = self.body();
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
            json!({"errors": [{"code": "TOOMANYREQUESTS", "message": "slow \"down\"\r\n", "detail": {"upstream": "docker.io"}}]})
        );
        assert_eq!(head.status(), 429);
        assert_eq!(head.headers()["content-type"], "application/json");
        assert_eq!(head.headers()["content-length"], body.len().to_string().as_str());
        assert_eq!(head.headers()["docker-distribution-api-version"], "registry/2.0");
        assert_eq!(head.headers()["retry-after"], "7");
    }

    #[tokio::test]
    async fn no_detail_is_left_out() {
        let (_, body) = sent(ApiError::new(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, "gone")).await;
        assert_eq!(body, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}"#);
    }
}
