//! `GET /v2/<name>/referrers/<digest>` (R-S20, R-C80, R-C92).

use std::borrow::Cow;
use std::sync::Arc;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use serde::Deserialize;

use super::super::error::{ApiError, Subject};
use super::listed::Document;
use super::{Ask, Response, tell_outcome};
use crate::oci::{Digest, media_type};
use crate::pull::{ItemFilter, PullError};

pub(super) async fn answer(ask: &Ask, subject: &str) -> Result<Response, ApiError> {
    let subject: Digest = subject.parse().map_err(|error| ApiError::bad_digest(&error))?;
    let failed = |error: PullError| ApiError::of_pull(&error, Subject::Referrers, Some(&ask.target));
    let listing = ask.pull.referrers(&ask.target, &subject).await.map_err(failed)?;
    let wanted = ask.query.artifact_type.as_deref().filter(|wanted| !wanted.is_empty());
    let filter = wanted.map(|wanted| -> ItemFilter {
        let wanted = wanted.to_owned();
        Arc::new(move |item| artifact_type(item).is_some_and(|found| *found == *wanted))
    });
    let document = Document {
        head: format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"manifests\":[",
            media_type::OCI_INDEX
        ),
        quoted: false,
        tail: "]}",
    };
    let whole = listing.whole();
    let count = listing.items.count().filter(|_| filter.is_none());
    let reader = listing.read(whole.clone(), filter);
    let mut response = document.answer(reader, whole, count).await.map_err(failed)?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if wanted.is_some() {
        headers.insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    tell_outcome(&mut response, &listing.outcome);
    Ok(response)
}

/// The `artifactType` of a descriptor, if it has one that is a text.
fn artifact_type(item: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Descriptor<'a> {
        #[serde(borrow, rename = "artifactType")]
        artifact_type: Option<Cow<'a, str>>,
    }
    let descriptor: Descriptor<'_> = serde_json::from_slice(item).ok()?;
    descriptor.artifact_type
}
