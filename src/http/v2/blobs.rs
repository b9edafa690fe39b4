//! `GET` and `HEAD` of `/v2/<name>/blobs/<digest>`, whole and by Range, hot and cold (R-S13, R-C42, R-C67, R-C95).

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE};
use axum::http::{HeaderValue, StatusCode};
use bytes::Bytes;
use futures_util::stream;

use super::super::error::{ApiError, Subject};
use super::super::multipart::{self, Piece};
use super::super::outbox::Outbox;
use super::super::range::{self, Wanted};
use super::hot::{self, Again};
use super::{Ask, IMMUTABLE, Response, etag, not_modified, tell_digest, tell_outcome};
use crate::http::payload::Payload;
use crate::oci::{Digest, Reference, media_type};
use crate::pull::{self, Chunk, OpenBlob, PullError, Source};

pub(super) async fn answer(ask: &Ask, digest: &str) -> Result<Response, ApiError> {
    let digest: Digest = digest.parse().map_err(|error| ApiError::bad_digest(&error))?;
    let answered = if ask.has(&digest) {
        unchanged(ask, &digest).await
    } else if ask.is_head {
        head(ask, &digest).await
    } else {
        get(ask, &digest).await
    };
    answered.map_err(|error| {
        let reference = Reference::Digest(digest);
        ask.wish(&error, &reference, false);
        ApiError::of_pull(&error.about(&reference), Subject::Blob, Some(&ask.target))
    })
}

/// Who has it already is told so; nothing has to be fetched for that.
async fn unchanged(ask: &Ask, digest: &Digest) -> Result<Response, PullError> {
    let stat = ask.pull.stat_blob(&ask.target, digest).await?;
    let mut response = not_modified(digest, IMMUTABLE);
    tell_outcome(&mut response, &stat.outcome);
    Ok(response)
}

async fn head(ask: &Ask, digest: &Digest) -> Result<Response, PullError> {
    let stat = ask.pull.stat_blob(&ask.target, digest).await?;
    let (size, outcome) = match stat.size {
        Some(size) => (size, stat.outcome),
        // The upstream does not say; a HEAD without a length is useless to every client (R-C40). The
        // transfer that tells it is the one that the GET will want.
        None => {
            let mut open = ask.pull.open_blob(&ask.target, digest).await?;
            (open.source.total().await?, open.outcome)
        }
    };
    let mut response = whole(Payload::empty(), digest, Some(size));
    tell_outcome(&mut response, &outcome);
    Ok(hot::may_repeat(response, again(ask, digest, size)))
}

fn again(ask: &Ask, digest: &Digest, size: u64) -> Again {
    Again::Blob {
        target: ask.target.clone(),
        digest: *digest,
        size,
    }
}

async fn get(ask: &Ask, digest: &Digest) -> Result<Response, PullError> {
    let OpenBlob {
        mut source,
        total,
        claimed,
        outcome,
    } = ask.pull.open_blob(&ask.target, digest).await?;
    let may_range = ask.headers.get(IF_RANGE).is_none() || range::if_range(ask.header(IF_RANGE), &etag(digest));
    let mut response = match ask
        .header(RANGE)
        .filter(|_| may_range)
        .and_then(|header| range::parse_unknown(Some(header)))
    {
        None => {
            let response = whole(
                stream_of(ask.outbox.clone(), source.body(*digest, 0, total)),
                digest,
                total,
            );
            match total {
                Some(size) => hot::may_repeat(response, again(ask, digest, size)),
                None => response,
            }
        }
        // A Range needs the exact total (R-C42), which a cold blob may not have told yet. A wrong claim ends the answer short.
        Some(spec) => {
            let total = match total.or(claimed) {
                Some(total) => total,
                None => source.total().await?,
            };
            by_range(ask, source, digest, spec.resolve(total), total)
        }
    };
    tell_outcome(&mut response, &outcome);
    Ok(response)
}

fn by_range(ask: &Ask, source: Source, digest: &Digest, wanted: Wanted, total: u64) -> Response {
    let partial = |body: Payload, length: u64, name, value: String| {
        let mut response = whole(body, digest, Some(length));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
        response
    };
    match wanted {
        // Several runs at several places of something that passes by once; a client takes the whole as well (R-C67).
        Wanted::Many(_) if source.is_passing() => whole(
            stream_of(ask.outbox.clone(), source.body(*digest, 0, Some(total))),
            digest,
            Some(total),
        ),
        Wanted::Whole => whole(
            stream_of(ask.outbox.clone(), source.body(*digest, 0, Some(total))),
            digest,
            Some(total),
        ),
        Wanted::One(Range { start, end }) => {
            let place = format!("bytes {start}-{}/{total}", end - 1);
            partial(
                stream_of(ask.outbox.clone(), source.body(*digest, start, Some(end))),
                end - start,
                CONTENT_RANGE,
                place,
            )
        }
        Wanted::Many(ranges) => {
            let plan = multipart::plan(&ranges, total, media_type::OCTET_STREAM);
            let (length, kind) = (plan.length, plan.content_type);
            partial(
                stream_of_parts(ask, source, *digest, plan.pieces),
                length,
                CONTENT_TYPE,
                kind,
            )
        }
        Wanted::Unsatisfiable => {
            let mut response = ApiError::unsatisfiable(total).map(Payload::from);
            tell_digest(response.headers_mut(), digest);
            response
        }
    }
}

/// The headers that every blob answer has.
fn whole(body: Payload, digest: &Digest, length: Option<u64>) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCTET_STREAM));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    tell_digest(headers, digest);
    response
}

/// An error ends the stream, and with it the connection, short (L2, R-C14).
pub(super) fn stream_of(outbox: Option<Arc<Outbox>>, body: pull::Body) -> Payload {
    Body::from_stream(stream::try_unfold((body, outbox), |(mut body, outbox)| async move {
        let next = next_of(&mut body, outbox.as_deref()).await?;
        Ok::<_, PullError>(next.map(|bytes| (bytes, (body, outbox))))
    }))
    .into()
}

/// The next bytes, or a ticket for them where the connection fetches them itself.
async fn next_of(body: &mut pull::Body, outbox: Option<&Outbox>) -> Result<Option<Bytes>, PullError> {
    let outbox = match outbox {
        None => return body.next().await,
        Some(outbox) if !outbox.sends_files() => return body.next_within(outbox.memory()).await,
        Some(outbox) => outbox,
    };
    Ok(body.next_chunk().await?.map(|chunk| match chunk {
        Chunk::Memory(bytes) => bytes,
        Chunk::File(span) => outbox.ticket(*body.digest(), span),
    }))
}

fn stream_of_parts(ask: &Ask, source: Source, digest: Digest, pieces: Vec<Piece>) -> Payload {
    enum Part {
        Text(Bytes),
        Run(pull::Body),
    }
    let parts: Vec<Part> = pieces
        .into_iter()
        .rev()
        .map(|piece| match piece {
            Piece::Text(text) => Part::Text(text),
            Piece::Bytes(range) => Part::Run(source.clone().body(digest, range.start, Some(range.end))),
        })
        .collect();
    let outbox = ask.outbox.clone();
    Body::from_stream(stream::try_unfold((parts, outbox), |(mut parts, outbox)| async move {
        loop {
            match parts.pop() {
                None => return Ok::<_, PullError>(None),
                Some(Part::Text(text)) => return Ok(Some((text, (parts, outbox)))),
                Some(Part::Run(mut run)) => {
                    if let Some(bytes) = next_of(&mut run, outbox.as_deref()).await? {
                        parts.push(Part::Run(run));
                        return Ok(Some((bytes, (parts, outbox))));
                    }
                }
            }
        }
    }))
    .into()
}
