//! `GET` and `HEAD` of `/v2/<name>/manifests/<reference>` (protocol 0.3; R-C4, R-C5, R-C40, R-C76).

use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};

use super::super::error::{ApiError, Subject};
use super::hot::{self, Again};
use super::{Ask, IMMUTABLE, NO_CACHE, Response, not_modified, tell_digest, tell_outcome};
use crate::http::payload::Payload;
use crate::oci::Reference;
use crate::oci::reference::ReferenceError;
use crate::pull::Want;

pub(super) async fn answer(ask: &Ask, reference: &str) -> Result<Response, ApiError> {
    let reference: Reference = match reference.parse() {
        Ok(reference) => reference,
        // R-S7: a tag that cannot exist does not exist. R-S8: a digest that is none is a mistake.
        Err(ReferenceError::Tag(error)) => return Err(ApiError::impossible_tag(&error)),
        Err(ReferenceError::Digest(error)) => return Err(ApiError::bad_digest(&error)),
    };
    let want = if ask.is_head { Want::Head } else { Want::Body };
    let found = ask
        .pull
        .manifest(&ask.target, &reference, want)
        .await
        .map_err(|error| {
            ask.wish(&error, &reference, true);
            ApiError::of_pull(&error.about(&reference), Subject::Manifest, Some(&ask.target))
        })?;
    let cache_control = match &reference {
        Reference::Digest(_) => IMMUTABLE,
        Reference::Tag(_) => NO_CACHE,
    };
    let mut response = if ask.has(&found.digest) {
        not_modified(&found.digest, cache_control)
    } else {
        // Content negotiation ends here: one document per tag, whatever Accept says (R-U54, R-S26).
        let mut response = Response::new(found.bytes.map_or(Payload::empty(), Payload::from));
        let headers = response.headers_mut();
        let media_type = HeaderValue::from_str(&found.media_type);
        headers.insert(
            CONTENT_TYPE,
            media_type.unwrap_or(HeaderValue::from_static("application/octet-stream")),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(found.size));
        headers.insert(CACHE_CONTROL, cache_control);
        tell_digest(headers, &found.digest);
        let again = Again::Manifest {
            target: ask.target.clone(),
            reference,
            digest: found.digest,
            media_type: found.media_type,
            size: found.size,
        };
        hot::may_repeat(response, again)
    };
    tell_outcome(&mut response, &found.outcome);
    Ok(response)
}
