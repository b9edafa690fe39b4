//! Bundles over the API: archives come and go as streams, and the signing key never comes here.

use std::io;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;

use super::{Answer, OperatorError, body_of, json, query};
use crate::admin::{Admin, BundleOrder, ImportOrder};
use crate::oci::media_type;
use crate::text::is_visible;

/// An order may hold a receipt.
const MAX_ORDER_BYTES: usize = 80 << 20;
/// Longest name of a site.
const MAX_SITE: usize = 255;

pub(super) async fn plan(State(admin): State<Admin>, request: Request) -> Answer {
    let order: BundleOrder = body_of(request, MAX_ORDER_BYTES).await?;
    Ok(json(&admin.plan_bundle(order).await?.view()))
}

/// If it breaks off the answer ends short.
pub(super) async fn create(State(admin): State<Admin>, request: Request) -> Answer {
    let order: BundleOrder = body_of(request, MAX_ORDER_BYTES).await?;
    let planned = admin.plan_bundle(order).await?;
    let (sender, reader) = admin.pipe();
    tokio::task::spawn_blocking(move || planned.write(sender));
    let headers = [(CONTENT_TYPE, "application/x-tar"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(reader.into_stream())).into_response())
}

pub(super) async fn import(State(admin): State<Admin>, request: Request) -> Answer {
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    // As little as JSON can a web page send this (R-X16).
    if kind.and_then(media_type::essence).as_deref() != Some("application/x-tar") {
        return Err(OperatorError::bad_request(
            "a bundle is sent with Content-Type: application/x-tar",
        ));
    }
    let mut query = query(&request, &["key", "unsigned", "older"])?;
    let flag = |value: Option<String>| match value.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(OperatorError::bad_request(format!("{other:?}: expected true or false"))),
    };
    let order = ImportOrder {
        key: query.remove("key"),
        unsigned: flag(query.remove("unsigned"))?,
        older: flag(query.remove("older"))?,
    };
    let (sender, reader) = admin.pipe();
    let mut pieces = request.into_body().into_data_stream();
    let coming = tokio::spawn(async move {
        while let Some(piece) = pieces.next().await {
            if sender.send(piece.map_err(io::Error::other)).await.is_err() {
                break;
            }
        }
        pieces
    });
    let outcome = admin.import_bundle(Box::new(reader), &order).await;
    if outcome.is_err() {
        // What is still being sent is not waited for: the connection ends with the answer.
        coming.abort();
    }
    Ok(json(&outcome?))
}

pub(super) async fn receipt(State(admin): State<Admin>, request: Request) -> Result<Response, OperatorError> {
    let mut query = query(&request, &["site"])?;
    let site = query.remove("site").unwrap_or_default();
    if site.len() > MAX_SITE || !is_visible(&site) {
        return Err(OperatorError::bad_request(format!(
            "site: expected at most {MAX_SITE} letters"
        )));
    }
    Ok(json(&admin.receipt(&site).await?))
}
