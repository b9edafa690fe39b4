//! Where a staged copy's bytes come from, and which mirrors are left out while it comes.
//!
//! A mirror that breaks off is passed over, and the next address goes on from there. One that contradicts what is known of the
//! blob is distrusted before a byte of it is taken. After a mismatch every mirror that contributed is distrusted, because
//! nobody can say whose bytes are wrong; the registry itself never is.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::oci::{Digest, Repository, media_type};
use crate::pull::flight::{Order, SMALL_BYTES};
use crate::upstream::{BlobStream, Client, DistrustReason, ErrorKind};

/// A mirror that sent wrong bytes a while ago may send so much at most before the verdict: nobody is given any of it until then.
const MAX_DOUBTFUL_BYTES: u64 = 64 << 20;

/// Shared by a transfer and its parts.
pub(super) struct Sources {
    client: Arc<Client>,
    digest: Digest,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Mirrors whose bytes are in the staged copy, and whether they called them a web page.
    contributors: Vec<(Arc<str>, bool)>,
    /// Mirrors that are left out until all other addresses have failed.
    passed_over: Vec<Arc<str>>,
    /// Mirrors that are taken as they are, because all other addresses have failed.
    needed: Vec<Arc<str>>,
    /// Mirrors that announced another size than the manifest names, and that size.
    accused: Vec<(Arc<str>, u64)>,
}

/// What speaks against an answer before any of its bytes is taken.
pub(super) enum Objection {
    /// It is wrong.
    Wrong(DistrustReason, String),
    /// It may be right, and there are others to ask.
    Doubt,
}

impl Sources {
    pub(super) fn new(order: &Order) -> Sources {
        Sources {
            client: order.client.clone(),
            digest: order.digest,
            known: Mutex::default(),
        }
    }

    /// The mirror that sends this, if one does and not the registry itself.
    pub(super) fn mirror_of(&self, stream: &BlobStream) -> Option<Arc<str>> {
        self.client.is_mirror(&stream.address).then(|| stream.address.clone())
    }

    /// Looks at the head of an answer of `mirror`. `hint`: the size that a manifest names. `is_seen`: whether bytes are given out
    /// as they come.
    pub(super) fn objection(
        &self,
        mirror: &Arc<str>,
        stream: &BlobStream,
        hint: Option<u64>,
        is_seen: bool,
    ) -> Option<Objection> {
        let is_page = is_web_page(stream);
        let wrong = |reason, what| Some(Objection::Wrong(reason, what));
        match (stream.total, hint) {
            (Some(0), _) if Digest::of(self.digest.algorithm(), b"") != self.digest => {
                return wrong(DistrustReason::Empty, "0 bytes".to_owned());
            }
            (Some(total), Some(hint)) if total != hint => {
                self.known().accused.push((mirror.clone(), total));
                let reason = match is_page {
                    true => DistrustReason::WebPage,
                    false => DistrustReason::Size,
                };
                return wrong(reason, format!("{total} bytes, where the manifest names {hint}"));
            }
            (None, _) if is_page => {
                return wrong(DistrustReason::WebPage, "a web page of unknown length".to_owned());
            }
            _ => {}
        }
        let is_small = stream.total.or(hint).is_some_and(|total| total <= MAX_DOUBTFUL_BYTES);
        let is_doubtful = self.is_doubtful(mirror) && (is_seen || !is_small);
        (is_doubtful && !self.known().needed.contains(mirror)).then_some(Objection::Doubt)
    }

    /// Returns whether bytes of this address are given to nobody before the verdict, if they are few enough.
    pub(super) fn is_doubtful(&self, mirror: &Arc<str>) -> bool {
        self.client.is_on_probation(mirror)
    }

    /// Returns whether a whole blob that was right has come from there.
    pub(super) fn is_proven(&self, mirror: &Arc<str>) -> bool {
        self.client.is_proven(mirror)
    }

    /// Returns whether so many bytes are few enough for that.
    pub(super) fn may_wait(total: Option<u64>) -> bool {
        total.is_some_and(|total| total <= MAX_DOUBTFUL_BYTES)
    }

    /// Notes where bytes that are staged come from.
    pub(super) fn note(&self, stream: &BlobStream) {
        if let Some(mirror) = self.mirror_of(stream) {
            let mut known = self.known();
            if !known.contributors.iter().any(|(other, _)| *other == mirror) {
                known.contributors.push((mirror, is_web_page(stream)));
            }
        }
    }

    /// Mirrors that are left out at present.
    pub(super) fn left_out(&self) -> Vec<Arc<str>> {
        self.known().passed_over.clone()
    }

    pub(super) fn pass_over(&self, mirror: &Arc<str>) {
        let mut known = self.known();
        if !known.passed_over.contains(mirror) {
            known.passed_over.push(mirror.clone());
        }
    }

    /// All other addresses have failed: mirrors that were passed over are asked again. Returns whether there are any.
    pub(super) fn take_back(&self) -> bool {
        let mut known = self.known();
        let passed_over = std::mem::take(&mut known.passed_over);
        let are_some = !passed_over.is_empty();
        known.needed.extend(passed_over);
        are_some
    }

    /// Distrusts one mirror for this blob.
    pub(super) fn distrust(&self, mirror: &Arc<str>, reason: DistrustReason, what: &dyn Display) {
        self.client.distrust_blob(mirror, &self.digest, reason, what);
    }

    /// Counts an answer that broke off without a byte.
    pub(super) fn note_cut(&self, mirror: &Arc<str>, what: &dyn Display) {
        self.client.note_cut(mirror, &self.digest, what);
    }

    /// Reports that a mirror stopped sending in the middle of an answer, after so many bytes of it.
    pub(super) fn note_stall(&self, mirror: &Arc<str>, repository: &Repository, bytes: u64, error: &ErrorKind) {
        self.client.note_stall(mirror, repository, &self.digest, bytes, error);
    }

    /// Reports that an answer of a mirror has come to its end, with so many bytes.
    pub(super) fn note_delivery(&self, mirror: &Arc<str>, bytes: u64) {
        self.client.note_delivery(mirror, bytes);
    }

    /// Distrusts every mirror that contributed, for this blob. Returns whether any did.
    pub(super) fn blame(&self, reason: DistrustReason, what: &dyn Display) -> bool {
        let contributors = std::mem::take(&mut self.known().contributors);
        for (mirror, is_page) in &contributors {
            let reason = match is_page {
                true => DistrustReason::WebPage,
                false => reason,
            };
            self.distrust(mirror, reason, what);
        }
        !contributors.is_empty()
    }

    /// What is staged is thrown away.
    pub(super) fn forget(&self) {
        self.known().contributors.clear();
    }

    /// Returns whether something that called itself a web page is staged.
    pub(super) fn has_web_page(&self) -> bool {
        self.known().contributors.iter().any(|(_, is_page)| *is_page)
    }

    /// The blob is right and has this size. A mirror that contributed has proved itself, unless the blob is so small that it is
    /// never given out before the verdict: who has those right may have large ones wrong. One that announced this size
    /// was right, and the manifest was not.
    pub(super) fn absolve(&self, size: u64) {
        let known = self.known();
        for (mirror, _) in known.contributors.iter().filter(|_| size > SMALL_BYTES) {
            self.client.note_proven(mirror);
        }
        for (mirror, announced) in &known.accused {
            if *announced == size {
                self.client.trust_again(mirror, &self.digest);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_web_page(stream: &BlobStream) -> bool {
    stream.content_type.as_deref().is_some_and(media_type::is_web_page)
}
