//! http-01 (RFC 8555, 8.3): what a certificate authority finds at port 80, and nothing else.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use crate::acme::Issued;

/// Any other path is 404, any other method 405.
pub fn router(issued: Arc<Issued>) -> Router {
    Router::new()
        .route("/.well-known/acme-challenge/{token}", get(answer))
        .with_state(issued)
}

async fn answer(State(issued): State<Arc<Issued>>, Path(token): Path<String>) -> Response {
    match issued.file(&token) {
        Some(text) => (
            [(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "no-store")],
            text,
        )
            .into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
