//! `GET /v2/<name>/referrers/<digest>` (R-S20, R-C80, R-C92).

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::super::error::{ApiError, Subject};
use super::{Ask, Response, json as document, tell_outcome};
use crate::oci::{Digest, media_type};

pub(super) async fn answer(ask: &Ask, subject: &str) -> Result<Response, ApiError> {
    let subject: Digest = subject.parse().map_err(|error| ApiError::bad_digest(&error))?;
    let listing = ask
        .pull
        .referrers(&ask.target, &subject)
        .await
        .map_err(|error| ApiError::of_pull(&error, Subject::Referrers, Some(&ask.target)))?;
    let wanted = ask.query.artifact_type.as_deref().filter(|wanted| !wanted.is_empty());
    let is_wanted =
        |item: &&Value| wanted.is_none_or(|wanted| item.get("artifactType").and_then(Value::as_str) == Some(wanted));
    let manifests: Vec<&Value> = listing.items.items.iter().filter(is_wanted).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests });
    let mut response = document(index.to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if wanted.is_some() {
        headers.insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    tell_outcome(&mut response, &listing.outcome);
    Ok(response)
}
