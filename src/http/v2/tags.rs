//! `tags/list`, and the catalogue of what is held: pages cut from whole lists (R-S17, R-S18, R-C79, R-X20).

use axum::http::HeaderValue;
use axum::http::header::LINK;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::super::error::{ApiError, Subject};
use super::route::Query;
use super::{Ask, Response, json as document, tell_outcome};
use crate::pull::{Pull, Target, View};

/// Most entries of one page, whatever `n` says.
const MAX_TAGS: usize = 10_000;
const MAX_REPOSITORIES: usize = 1_000;
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'/');

pub(super) async fn answer(ask: &Ask) -> Result<Response, ApiError> {
    let size = page_size(&ask.query, MAX_TAGS)?;
    let listing = ask
        .pull
        .tags(&ask.target)
        .await
        .map_err(|error| ApiError::of_pull(&error, Subject::Tags, Some(&ask.target)))?;
    let all: Vec<&str> = listing.items.items.iter().filter_map(|tag| tag.as_str()).collect();
    let (page, more) = cut(&all, ask.query.last.as_deref(), size.unwrap_or(usize::MAX));
    let mut response = document(json!({ "name": ask.target.client_name, "tags": page }).to_string());
    if let Some(last) = page.last().filter(|_| more) {
        link_to_next(&mut response, &ask.path, last, page.len(), ask.query.ns.as_deref());
    }
    tell_outcome(&mut response, &listing.outcome);
    Ok(response)
}

/// Repositories of which something is held, by their full names; none that who asks could not pull from (R-X7).
pub(super) fn catalog(
    pull: &Pull,
    view: &View,
    query: &Query,
    may_pull: impl Fn(&Target) -> bool,
) -> Result<Response, ApiError> {
    let size = page_size(query, MAX_REPOSITORIES)?.unwrap_or(MAX_REPOSITORIES);
    let mut names = pull.catalog(view, query.last.as_deref().unwrap_or(""), size + 1, may_pull);
    let more = names.len() > size && size > 0;
    names.truncate(size);
    let mut response = document(json!({ "repositories": names }).to_string());
    if let Some(last) = names.last().filter(|_| more) {
        link_to_next(&mut response, "/v2/_catalog", last, size, None);
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

/// The page after `last`, and whether more follow. `all` is sorted. `n=0` is an empty page, the last one.
pub(super) fn cut<'a>(all: &[&'a str], last: Option<&str>, size: usize) -> (Vec<&'a str>, bool) {
    let from = last.map_or(0, |last| all.partition_point(|tag| *tag <= last));
    let rest = &all[from..];
    let page = &rest[..rest.len().min(size)];
    (page.to_vec(), size > 0 && rest.len() > page.len())
}

/// Path-relative, on the path that the client used: right behind any proxy (R-C79). One link, plain (R-C48).
fn link_to_next(response: &mut Response, path: &str, last: &str, n: usize, ns: Option<&str>) {
    let last = utf8_percent_encode(last, IN_QUERY);
    let ns = ns
        .map(|ns| format!("&ns={}", utf8_percent_encode(ns, IN_QUERY)))
        .unwrap_or_default();
    let link = format!("<{path}?last={last}&n={n}{ns}>; rel=\"next\"");
    if let Ok(value) = HeaderValue::from_str(&link) {
        response.headers_mut().insert(LINK, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages() {
        let all = ["a", "b", "c"];
        assert_eq!(cut(&all, None, 2), (vec!["a", "b"], true));
        assert_eq!(cut(&all, Some("b"), 2), (vec!["c"], false));
        assert_eq!(cut(&all, Some("bb"), 9), (vec!["c"], false));
        assert_eq!(cut(&all, None, 0), (vec![], false));
        assert_eq!(cut(&all, None, 3), (vec!["a", "b", "c"], false));
        assert_eq!(cut(&all, Some("z"), 3), (vec![], false));
    }

    proptest! {
        /// Following the pages gives every entry once.
        #[test]
        fn pages_add_up(names in proptest::collection::btree_set("[a-z]{1,3}", 0..30), size in 1usize..7) {
            let all: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut seen = Vec::new();
            let mut last: Option<String> = None;
            loop {
                let (page, more) = cut(&all, last.as_deref(), size);
                seen.extend(page.iter().map(|t| t.to_string()));
                last = page.last().map(|t| t.to_string());
                if !more { break; }
            }
            prop_assert_eq!(seen, all.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        }
    }
}
