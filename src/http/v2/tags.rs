//! `tags/list`, and the catalogue of what is held, page by page (R-S17, R-S18, R-C79, R-X20).

use axum::http::HeaderValue;
use axum::http::header::LINK;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::super::error::{ApiError, Subject};
use super::listed::Document;
use super::route::Query;
use super::{Ask, Response, json as document, tell_outcome};
use crate::pull::{Pull, PullError, Target, View};

/// Most entries of one page, whatever `n` says.
const MAX_TAGS: usize = 10_000;
const MAX_REPOSITORIES: usize = 1_000;
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'/');

pub(super) async fn answer(ask: &Ask) -> Result<Response, ApiError> {
    let failed = |error: PullError| ApiError::of_pull(&error, Subject::Tags, Some(&ask.target));
    let size = page_size(&ask.query, MAX_TAGS)?;
    let listing = ask.pull.tags(&ask.target).await.map_err(failed)?;
    let most = size.map(|size| size as u64);
    let page = listing.page(ask.query.last.as_deref(), most).await.map_err(failed)?;
    let document = Document {
        head: format!("{{\"name\":{},\"tags\":[", json!(ask.target.client_name)),
        quoted: true,
        tail: "]}",
    };
    let reader = listing.read(page.span.clone(), None);
    let mut response = document.answer(reader, page.span, page.count).await.map_err(failed)?;
    if let (Some(last), Some(count)) = (page.last, page.count) {
        link_to_next(&mut response, &ask.path, &last, count, ask.query.ns.as_deref());
    }
    tell_outcome(&mut response, &listing.outcome);
    Ok(response)
}

/// Repositories of which something is held, by their full names, asked for at `path`; none that who asks could not pull from (R-X7).
pub(super) async fn catalog(
    pull: &Pull,
    view: &View,
    query: &Query,
    path: &str,
    may_pull: impl Fn(&Target) -> bool,
) -> Result<Response, ApiError> {
    let size = page_size(query, MAX_REPOSITORIES)?.unwrap_or(MAX_REPOSITORIES);
    let last = query.last.as_deref().unwrap_or("");
    let mut names = pull.catalog(view, last, size + 1, may_pull).await;
    let more = names.len() > size && size > 0;
    names.truncate(size);
    let mut response = document(json!({ "repositories": names }).to_string());
    if let Some(last) = names.last().filter(|_| more) {
        link_to_next(&mut response, path, last, size as u64, None);
    }
    Ok(response)
}

/// `n`, clamped; `None` if it was not given.
pub(super) fn page_size(query: &Query, most: usize) -> Result<Option<usize>, ApiError> {
    match query.n.as_deref() {
        None => Ok(None),
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(Some(digits.parse().unwrap_or(usize::MAX).min(most)))
        }
        Some(other) => Err(ApiError::bad_page_size(other)),
    }
}

/// On the path that the client used, without scheme and host, which a proxy may change (R-C79). One link, plain (R-C48).
fn link_to_next(response: &mut Response, path: &str, last: &str, n: u64, ns: Option<&str>) {
    let last = utf8_percent_encode(last, IN_QUERY);
    let ns = ns
        .map(|ns| format!("&ns={}", utf8_percent_encode(ns, IN_QUERY)))
        .unwrap_or_default();
    let link = format!("<{path}?last={last}&n={n}{ns}>; rel=\"next\"");
    if let Ok(value) = HeaderValue::from_str(&link) {
        response.headers_mut().insert(LINK, value);
    }
}
