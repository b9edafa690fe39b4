//! What was told before, and is still right, is told again in the same words.
//!
//! The head of an answer from what is held depends on the path, the configuration and the digest, and on nothing else. So
//! it is kept under its path, and whoever asks for the same gets a copy of it: if what it speaks of is, at this
//! moment, held in memory and shown by this very repository (L8), by tag still fresh and the same, and open to this caller. Names are
//! not parsed again and no header is written again. Whatever is not so takes the whole way; nothing here waits.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Body;
use axum::http::header::{IF_NONE_MATCH, RANGE};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Method, StatusCode};
use futures_util::stream;

use super::{PONG, Response, blobs};
use crate::http::labels::Labels;
use crate::http::outbox::Outbox;
use crate::http::payload::Payload;
use crate::oci::{Digest, Reference};
use crate::pull::{LARGE_MANIFEST_BYTES, Outcome, Pull, PullError, Span, Target, View, Want};

/// Heads of a generation, at most; there are two. A head is some 2 KiB.
const GENERATION: usize = 6144;
/// A path that is longer is nobody's image.
const PATH_BYTES: usize = 1024;

/// On a response: what has to hold for it to be given again.
#[derive(Clone, Debug)]
pub(super) enum Again {
    Ping,
    Manifest {
        target: Target,
        reference: Reference,
        digest: Digest,
        media_type: Arc<str>,
        size: u64,
    },
    /// A blob, by HEAD or whole by GET.
    Blob {
        target: Target,
        digest: Digest,
        size: u64,
    },
}

/// Marks a response as one that may be given again.
pub(super) fn may_repeat(mut response: Response, again: Again) -> Response {
    // A target that is as good as offline would be so for the next caller too.
    if let Again::Manifest { target, .. } | Again::Blob { target, .. } = &again
        && target.held_only
    {
        return response;
    }
    response.extensions_mut().insert(again);
    response
}

fn sent_by_kernel(outbox: &Outbox, digest: &Digest, span: Span) -> Payload {
    // Not as bytes: a ticket's length is not that of what it stands for.
    let ticket = outbox.ticket(*digest, span);
    Body::from_stream(stream::iter([Ok::<_, PullError>(ticket)])).into()
}

struct Head {
    again: Again,
    headers: HeaderMap,
    labels: Labels,
}

/// The heads of answers, by path and query.
#[derive(Default)]
pub(super) struct Heads(RwLock<Generations<Arc<Head>>>);

/// What was put in or asked for lately. When the young are many they become the old, and the old go, other than those
/// that were asked for meanwhile: so what is hot stays, however many paths there are.
struct Generations<T> {
    young: HashMap<Box<str>, T>,
    old: HashMap<Box<str>, T>,
}

impl<T> Default for Generations<T> {
    fn default() -> Generations<T> {
        let (young, old) = Default::default();
        Generations { young, old }
    }
}

impl<T> Generations<T> {
    fn insert(&mut self, path: Box<str>, value: T) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&path) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(path, value);
    }
}

impl Heads {
    /// The answer, if it is one that was given before and is right now.
    ///
    /// `view` is the configuration that the request goes by: what was meant under another is not told at all, since names,
    /// rights and times are others. `may` says whether who asks may have what it is about; `Again::Ping` is about nothing.
    pub(super) fn answer(
        &self,
        pull: &Pull,
        view: &View,
        asked: &Parts,
        outbox: Option<&Arc<Outbox>>,
        may: impl Fn(Option<&Target>) -> bool,
    ) -> Option<(Response, Labels)> {
        let want = match asked.method {
            Method::GET => Want::Body,
            Method::HEAD => Want::Head,
            _ => return None,
        };
        // Who has it already is told something else.
        if asked.headers.contains_key(IF_NONE_MATCH) {
            return None;
        }
        let head = self.get(asked.uri.path_and_query()?.as_str())?;
        let target = match &head.again {
            Again::Ping => None,
            Again::Manifest { target, .. } | Again::Blob { target, .. } => Some(target),
        };
        if target.is_some_and(|target| !view.meant(target)) || !may(target) {
            return None;
        }
        let body = match &head.again {
            Again::Ping => PONG.into(),
            Again::Manifest {
                target,
                reference,
                digest,
                media_type,
                size,
            } => {
                let found = pull.hot_manifest(target, reference, want)?;
                // What was told before it was held is what an upstream said of it.
                if found.digest != *digest || found.media_type != *media_type || found.size != *size {
                    return None;
                }
                let is_file =
                    |outbox: &&Arc<Outbox>| outbox.sends_files() && want == Want::Body && *size >= LARGE_MANIFEST_BYTES;
                let file = match outbox.filter(is_file) {
                    Some(outbox) => pull.hot_manifest_file(target, digest).map(|span| (outbox, span)),
                    None => None,
                };
                match file {
                    Some((outbox, span)) => sent_by_kernel(outbox, digest, span),
                    None => found.bytes.unwrap_or_default().into(),
                }
            }
            Again::Blob { target, digest, size } if want == Want::Head => {
                pull.hot_blob(target, digest).filter(|held| held == size)?;
                Payload::empty()
            }
            Again::Blob { .. } if asked.headers.contains_key(RANGE) => return None,
            Again::Blob { target, digest, size } => {
                let body = pull.hot_blob_body(target, digest, *size)?;
                blobs::stream_of(outbox.cloned(), body)
            }
        };
        let mut response = Response::new(body);
        *response.headers_mut() = head.headers.clone();
        Some((response, head.labels.clone()))
    }

    /// Forgets all of it, when what it says is of another time.
    pub(super) fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Generations::default();
    }

    fn get(&self, path: &str) -> Option<Arc<Head>> {
        let old = {
            let heads = self.0.read().unwrap_or_else(PoisonError::into_inner);
            match heads.young.get(path) {
                Some(head) => return Some(head.clone()),
                None => heads.old.get(path)?.clone(),
            }
        };
        self.insert(path, old.clone());
        Some(old)
    }

    fn insert(&self, path: &str, head: Arc<Head>) {
        let mut heads = self.0.write().unwrap_or_else(PoisonError::into_inner);
        heads.insert(path.into(), head);
    }

    /// Keeps the head of an answer, if it may be given again.
    pub(super) fn note(&self, path: Option<PathAndQuery>, response: &mut Response, labels: &Labels) {
        let again = response.extensions_mut().remove::<Again>();
        let (Some(again), Some(path), StatusCode::OK) = (again, path, response.status()) else {
            return;
        };
        let is_hit = labels.outcome.is_none_or(|outcome| outcome == Outcome::Hit.as_str());
        if !is_hit || path.as_str().len() > PATH_BYTES {
            return;
        }
        let head = Head {
            again,
            headers: response.headers().clone(),
            labels: labels.clone(),
        };
        self.insert(path.as_str(), Arc::new(head));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_their_number_is_bounded() {
        let mut heads = Generations::default();
        for n in 0..5 * GENERATION {
            heads.insert(n.to_string().into(), n);
            // As `Heads::get` does.
            if let (None, Some(hot)) = (heads.young.get("7"), heads.old.get("7").copied()) {
                heads.insert("7".into(), hot);
            }
            assert!(heads.young.len() <= GENERATION && heads.old.len() <= GENERATION);
        }
        assert_eq!(heads.young.get("7").or(heads.old.get("7")), Some(&7));
        assert_eq!(heads.young.get("8").or(heads.old.get("8")), None);
    }
}
