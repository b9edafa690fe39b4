//! Harnesses for what comes in a request's line: path, query, pages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::route::{self, Name, Query, Route, What};
use super::tags;
use crate::fuzzing::{Harness, check_error, text, texts};
use crate::http::error::ApiError;
use crate::oci::Reference;

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "route",
        run: routes,
        seeds: || {
            texts(&[
                "/v2/library/alpine/manifests/3.22?ns=docker.io",
                "/v2/a/blobs/sha256%3Aab",
                "/v2/foo/manifests/bar/manifests/latest",
                "/hub/v2/a/b/tags/list?n=5&last=a",
                "/v2/a/referrers/sha256:ab?artifactType=a/b%2Bjson&x=1&ns=other",
                "/v2/",
                "/",
                "/v2/_catalog?n=2",
                "/v2/a%2Fb/manifests/1",
                "/v2/%2e%2e/%2e%2e/etc/blobs/passwd",
            ])
        },
        words: &[
            "/",
            "v2/",
            "manifests/",
            "blobs/",
            "tags/list",
            "referrers/",
            "%2f",
            "%",
            "..",
            "?",
            "ns=",
            "&",
            "n=",
            "%00",
        ],
    },
    Harness {
        name: "pages",
        run: pages,
        seeds: || texts(&["2", "0", "99999999999999999999", "x"]),
        words: &["a", "1", "0", "-", "+", "é"],
    },
];

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A path, `?` and a query.
fn routes(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let read = route::query(query);
    let values = [
        ("ns", &read.ns),
        ("n", &read.n),
        ("last", &read.last),
        ("artifactType", &read.artifact_type),
    ];
    let written = values
        .iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", encoded(value.as_ref()?))));
    let written = written.collect::<Vec<_>>().join("&");
    assert_eq!(route::query(Some(&written)), read, "{written:?}");
    assert_eq!(route::query(None), Query::default());

    match route::parse(path) {
        Route::Repository { name, what } => repository(&name, &what),
        Route::Malformed => check_error(ApiError::bad_path(path).message),
        Route::Unknown => check_error(ApiError::no_such_endpoint(path).message),
        Route::Ping { prefix } => assert!(prefix.is_none_or(|prefix| !prefix.contains(['/', '\0']))),
        Route::Root | Route::Catalog => {}
    }
}

fn repository(name: &Name, what: &What) {
    assert!(!name.full.contains(char::is_control));
    match &name.prefix {
        Some(prefix) => assert_eq!(name.full, format!("{prefix}/{}", name.visible)),
        None => assert_eq!(name.full, name.visible),
    }
    let (marker, last) = match what {
        What::Manifest(reference) => ("manifests", reference.as_str()),
        What::Blob(digest) => ("blobs", digest.as_str()),
        What::Tags => ("tags", "list"),
        What::Referrers(digest) => ("referrers", digest.as_str()),
    };
    assert!(!last.contains('/') && !last.contains(char::is_control));
    // Every part escaped, it is the same question.
    let visible: Vec<String> = name.visible.split('/').map(encoded).collect();
    let prefix = name
        .prefix
        .as_deref()
        .map(|prefix| format!("/{}", encoded(prefix)))
        .unwrap_or_default();
    let path = format!("{prefix}/v2/{}/{marker}/{}", visible.join("/"), encoded(last));
    let again = route::parse(&path);
    let is_same = matches!(&again, Route::Repository { name: n, what: w } if n == name && w == what);
    assert!(is_same, "{path:?} is {again:?}");
    if let Err(error) = last.parse::<Reference>() {
        check_error(error);
    }
}

/// Sizes of pages are digits, and are clamped; pages themselves are the store's.
fn pages(data: &[u8]) {
    let Some(n) = text(data) else { return };
    let query = Query {
        n: Some(n.to_owned()),
        ..Query::default()
    };
    match tags::page_size(&query, 1000) {
        Ok(size) => assert!(size.expect("it was given") <= 1000 && n.bytes().all(|byte| byte.is_ascii_digit())),
        Err(error) => {
            assert!(!n.bytes().all(|byte| byte.is_ascii_digit()) || n.is_empty(), "{n:?}");
            check_error(error.message);
        }
    }
}
