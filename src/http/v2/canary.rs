//! `GET` and `HEAD` of a canary: answered from memory, and noted for whoever made it.

use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};

use super::route::What;
use super::{Door, NO_CACHE, Response, Visitor, refused, subject, tell_digest};
use crate::auth::Right;
use crate::http::error::ApiError;
use crate::http::payload::Payload;
use crate::http::server::Caller;
use crate::oci::Reference;
use crate::pull::{Pull, SeenRequest, Target};

/// Letters of a path that are noted.
const MOST_PATH: usize = 512;

/// A request for something in the repository that canaries have.
pub(super) struct Asked<'a> {
    pub(super) target: &'a Target,
    pub(super) what: &'a What,
    pub(super) parts: &'a Parts,
}

/// Asks no upstream, not even whether the repository is public. What is not a living canary's is not there.
pub(super) fn answer(pull: &Pull, door: &Door, visitor: &Visitor, caller: &Caller, asked: &Asked<'_>) -> Response {
    let right = door.right_now(visitor, pull, asked.target);
    // Where it depends on the upstream the rules are as good as open: the tag is secret enough.
    let is_allowed = right != Some(Right::Nothing);
    let path = asked.parts.uri.path_and_query().map_or("", |path| path.as_str());
    let seen = |kind: &'static str, by_digest: bool| SeenRequest {
        kind,
        by_digest,
        image: asked.target.key.to_string(),
        path: path.chars().take(MOST_PATH).collect(),
        client: match caller.address.ip() {
            Some(ip) => ip.to_canonical().to_string(),
            None => caller.address.to_string(),
        },
        is_allowed,
    };
    let canaries = pull.canaries();
    let found = match asked.what {
        What::Manifest(reference) => match reference.parse() {
            Ok(Reference::Tag(tag)) => canaries.by_tag(tag.as_str(), seen("manifest", false)),
            Ok(Reference::Digest(digest)) => canaries.by_digest(&digest, seen("manifest", true)),
            Err(_) => None,
        },
        What::Blob(digest) => digest
            .parse()
            .ok()
            .and_then(|digest| canaries.by_digest(&digest, seen("blob", true))),
        What::Tags | What::Referrers(_) => None,
    };
    let Some(document) = found.filter(|_| is_allowed) else {
        let subject = subject(asked.what);
        return refused(match is_allowed {
            true => ApiError::not_there_for_you(&asked.target.key, subject),
            false => door.refusal(visitor, &asked.parts.headers, asked.target, subject),
        });
    };
    let length = document.bytes.len();
    let mut response = Response::new(match asked.parts.method == Method::HEAD {
        true => Payload::empty(),
        false => Payload::from(document.bytes),
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(document.media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, NO_CACHE);
    tell_digest(headers, &document.digest);
    response
}
