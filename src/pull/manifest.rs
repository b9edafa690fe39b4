//! Manifests, by tag and by digest.
//!
//! By tag: the tag's record × what of it is held × now × policy gives Fresh, Revalidate or Fetch (`freshness`); the upstream is asked by
//! HEAD (which costs nothing on Docker Hub, R-U31), and by GET only for what is not held. Whatever
//! goes wrong upstream, what is held is served within `stale_if_error` (L3). So it is below an upstream's `budget_floor`: what
//! can be answered from what is held costs no pull then. A HEAD is still sent where it is free, and what it confirms is
//! fresh; a tag that has moved to something that is not held stays where it was.
//!
//! A client's HEAD promises what its GET will get. Of a tag of which something is held, what the upstream's HEAD names is
//! fetched before the tag moves there; if it cannot be had, the held one is served stale. A HEAD that may have been refused
//! only as a HEAD is followed by a GET (R-U27), and what a HEAD was refused is never remembered for GETs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::blocking::{blocking, tell_not_kept};
use super::error::PullError;
use super::freshness::{Freshness, Holding, judge_tag, may_be_stale};
use super::names::Target;
use super::outcome::Outcome;
use super::proof::Proof;
use super::{Pull, Question};
use crate::events::{Action, Event};
use crate::oci::manifest::{Manifest, ManifestError};
use crate::oci::{Algorithm, Digest, Reference, Tag, media_type};
use crate::store::{self, StoreError, TagRecord, now_by_clock_of, unix_ms};
use crate::telemetry::trace::{self, Kind};
use crate::upstream::{Client, DistrustReason, ErrorKind, ManifestBody, ManifestHead};

/// Manifests from so many bytes on are read off the async threads, and so many of them at once: what is read takes a
/// multiple of its bytes meanwhile.
const LARGE_BYTES: usize = 64 * 1024;
pub(super) const LARGE_AT_ONCE: usize = 4;

/// Everything an answer needs; `bytes` only if they were asked for.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: Arc<str>,
    pub size: u64,
    pub bytes: Option<Bytes>,
    pub outcome: Outcome,
}

/// Whether the bytes are wanted or a HEAD will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    Head,
    Body,
}

impl Pull {
    /// A manifest by tag or digest.
    pub async fn manifest(
        self: &Arc<Pull>,
        target: &Target,
        reference: &Reference,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        match reference {
            Reference::Digest(digest) => self.by_digest(target, digest, want).await,
            Reference::Tag(tag) => self.by_tag(target, tag, want).await,
        }
    }

    // --- by tag -------------------------------------------------------------------------------------

    async fn by_tag(self: &Arc<Pull>, target: &Target, tag: &Tag, want: Want) -> Result<ManifestAnswer, PullError> {
        let record = self.store.tag(&target.key, tag.as_str());
        let offline = self.is_offline(target);
        let checked = record.as_ref().map(|r| r.checked_ms);
        let holding = self.holding(target, record.as_deref());
        let freshness = judge_tag(checked, holding, unix_ms(), target.upstream.tag_ttl, offline);
        match (freshness, record) {
            (Freshness::Fresh, Some(record)) => match self.serve(target, &record, want, Outcome::Hit).await {
                // The upstream let go of what the tag pointed at: the tag has moved.
                Err(error) if error.is_definite() => self.ask_tag(target, tag, Some(record), want).await,
                Err(error) => self.stale(target, &record, want, error.as_str()).await?.ok_or(error),
                served => served,
            },
            (_, record) => self.ask_tag(target, tag, record, want).await,
        }
    }

    /// Asks the upstream about a tag; serves what is held if that fails or takes too long.
    async fn ask_tag(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        record: Option<Arc<TagRecord>>,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        let fallback = record.filter(|r| self.best_stale(target, r).is_some());
        // Beside the others, whose questions are not for this caller.
        if target.held_only {
            let record = fallback.ok_or_else(|| PullError::NotHeld(target.key.to_string()))?;
            let held = self.stale(target, &record, want, "not-asked").await?;
            return held.ok_or_else(|| PullError::NotHeld(target.key.to_string()));
        }
        if fallback.is_none() {
            self.check_negative(target, &Question::Tag(tag.clone()))?;
            // A HEAD's refusal is no answer to a GET (R-U27).
            if want == Want::Head {
                self.check_negative(target, &Question::TagHead(tag.clone()))?;
            }
        }
        // What can be answered without it may be spared.
        let spare = fallback.is_some();
        let key = (target.scope(), tag.clone(), want, spare);
        let (pull, to, asked) = (self.clone(), target.clone(), tag.clone());
        let mut pending = self
            .tag_questions
            .join(key, || async move { pull.resolve_tag(&to, &asked, want, spare).await });
        let joined = pending.joined;
        let Some(fallback) = fallback else {
            let question = match want {
                Want::Head => Question::TagHead(tag.clone()),
                Want::Body => Question::Tag(tag.clone()),
            };
            let answer = pending
                .wait()
                .await
                .inspect_err(|e| self.note_negative(target, question, e));
            return answer.map(|a| if joined { collapsed(a) } else { a });
        };
        let (patience, reason) = self.patience(target);
        let error = match tokio::time::timeout(patience, pending.wait()).await {
            Ok(Ok(answer)) => return Ok(if joined { collapsed(answer) } else { answer }),
            Ok(Err(error @ PullError::Spared(_))) => {
                tracing::debug!(repository = %target.key, %tag, "a tag is served unchecked to spare the pull limit");
                error
            }
            Ok(Err(error)) => {
                let trace_id = trace::id();
                match self.warns_of_stale(target) {
                    true => {
                        tracing::warn!(repository = %target.key, %tag, %error, trace_id, "the upstream could not confirm a tag: serving what is cached")
                    }
                    false => {
                        tracing::debug!(repository = %target.key, %tag, %error, trace_id, "the upstream could not confirm a tag: serving what is cached")
                    }
                }
                error
            }
            Err(_) => {
                // The question goes on; its answer is for those who come later.
                pending.will_come_back();
                let reason = self.failing(target).unwrap_or(reason);
                if !patience.is_zero() {
                    self.note_trouble(target, reason);
                }
                return match self.stale(target, &fallback, want, reason).await? {
                    Some(answer) => Ok(answer),
                    None => pending.wait().await,
                };
            }
        };
        self.stale(target, &fallback, want, error.as_str()).await?.ok_or(error)
    }

    /// The question itself, asked once for all. Its result is written down before it is told.
    pub(super) async fn resolve_tag(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        want: Want,
        spare: bool,
    ) -> Result<ManifestAnswer, PullError> {
        let begun = Instant::now();
        let record = self.store.tag(&target.key, tag.as_str());
        let spare = spare && self.is_budget_low(target);
        let outcome = self.resolve_tag_from(target, tag, record, want, spare).await;
        self.note_verdict(target, outcome.as_ref().err(), begun.elapsed());
        outcome
    }

    async fn resolve_tag_from(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        record: Option<Arc<TagRecord>>,
        want: Want,
        spare: bool,
    ) -> Result<ManifestAnswer, PullError> {
        // Nothing known and the bytes wanted: one GET says everything.
        if record.is_none() && want == Want::Body {
            return self.fetch_by_tag(target, tag, Outcome::Stored).await;
        }
        let moved = if record.is_some() {
            Outcome::Refreshed
        } else {
            Outcome::Passed
        };
        let client = self.client(target)?;
        if spare && target.upstream.counts_heads() {
            return Err(self.spared(target));
        }
        let question = self.number_tag_question();
        let holds = record.as_deref().is_some_and(|r| self.best_stale(target, r).is_some());
        // A registry's own 401 or 403 answers a HEAD of what is not held, but no GET, nor is a held tag given up for it.
        let has_other_answer = want == Want::Body || holds;
        let head = match client
            .head_manifest(&target.repository, &Reference::Tag(tag.clone()))
            .await
        {
            Ok(head) => {
                self.note_privacy(target);
                head
            }
            // HEAD is where upstreams differ; only a GET can be believed (R-U27). It is small, so it is read and kept.
            Err(error) if error.is_doubtful_head() || (error.is_definite() && has_other_answer) => {
                if spare {
                    return Err(self.spared(target));
                }
                let outcome = if record.is_some() {
                    Outcome::Refreshed
                } else {
                    Outcome::Stored
                };
                let fetched = self.fetch_by_tag(target, tag, outcome).await;
                if fetched.is_ok() {
                    client.note_failing_heads(&error);
                }
                return fetched;
            }
            Err(error) => return Err(error.into()),
        };
        let is_here = match &head.digest {
            Some(digest) => self.link_named(target, digest, &head).await,
            None => false,
        };
        // A HEAD may be free, but what it leads to is not, unless it is held.
        if spare && !is_here {
            return Err(self.spared(target));
        }
        let Some(digest) = head.digest else {
            return self.fetch_by_tag(target, tag, moved).await;
        };
        // Whoever resolves a tag by HEAD fetches by digest: what cannot be had is not promised while something older is
        // held (L3). Where nothing is held a HEAD stays a HEAD, which costs no pull.
        if want == Want::Head && !is_here && holds {
            return self.follow_tag(target, tag, &digest, question).await;
        }
        // A mirror that named what it sends wrongly is not believed any more: the registry says where the tag points.
        let is_misled = || client.is_distrusted(&head.address, &digest);
        if let Some(record) = record.filter(|r| r.digest == digest) {
            let confirmed = TagRecord {
                checked_ms: unix_ms(),
                ..(*record).clone()
            };
            let is_newest = self.newest_question(target, tag, question);
            let record = self
                .store
                .put_tag_if(&target.key, tag.as_str(), confirmed, false, is_newest);
            return match self.serve(target, &record, want, Outcome::Revalidated).await {
                Err(_) if is_misled() => self.fetch_by_tag(target, tag, moved).await,
                served => served,
            };
        }
        let here = || Some((self.store.media_type(&digest)?, self.store.size(&digest)?));
        match here().filter(|_| is_here).or_else(|| self.said_of(&head)) {
            Some((media_type, size)) => {
                let record = TagRecord {
                    digest,
                    media_type,
                    size,
                    checked_ms: unix_ms(),
                    moves: Vec::new(),
                };
                // The bytes first: a tag that moved to something that cannot be had stays where it was (L3).
                let answer = match self.serve(target, &record, want, moved.clone()).await {
                    Err(_) if is_misled() => return self.fetch_by_tag(target, tag, moved).await,
                    served => served?,
                };
                self.note_tag(target, tag, record, question).await;
                Ok(answer)
            }
            None => self.fetch_by_tag(target, tag, moved).await,
        }
    }

    /// Fetches what a HEAD has named, and moves the tag there.
    async fn follow_tag(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        digest: &Digest,
        question: u64,
    ) -> Result<ManifestAnswer, PullError> {
        let by_digest = Question::Manifest(*digest);
        // Many HEADs of a tag whose target cannot be had yet are not as many GETs.
        self.check_negative(target, &by_digest)?;
        let fetched = self.fetch_by_digest(target, digest).await;
        let fetched = fetched.inspect_err(|error| self.note_negative(target, by_digest, error))?;
        let record = TagRecord {
            digest: *digest,
            media_type: fetched.media_type.clone(),
            size: fetched.size,
            checked_ms: unix_ms(),
            moves: Vec::new(),
        };
        self.note_tag(target, tag, record, question).await;
        Ok(ManifestAnswer {
            outcome: Outcome::Refreshed,
            bytes: None,
            ..fetched
        })
    }

    pub(super) fn is_budget_low(&self, target: &Target) -> bool {
        let client = self.upstream_of(target);
        client.is_some_and(|client| client.is_budget_low(&target.repository))
    }

    /// A question is left out.
    pub(super) fn spared(&self, target: &Target) -> PullError {
        let upstream = target.upstream.name.to_string();
        metrics::counter!("larder_upstream_questions_spared_total", "upstream" => upstream.clone()).increment(1);
        PullError::Spared(upstream)
    }

    /// Returns whether a manifest is held for this repository: a HEAD has just named it, which may be proof enough (L11).
    async fn link_named(self: &Arc<Pull>, target: &Target, digest: &Digest, head: &ManifestHead) -> bool {
        if self.store.media_type(digest).is_none() {
            return false;
        }
        if self.store.linked(&target.key, digest) {
            return true;
        }
        let is_shown = match self.proof_of_manifest(target, digest).await {
            _ if !self.is_called_so(digest, head) => false,
            Proof::Claim => true,
            Proof::Registry => head.by_itself,
            Proof::Bytes => false,
        };
        if is_shown {
            self.note_link(target, digest).await;
        }
        is_shown
    }

    /// GET by tag, once for all who ask, whether for the bytes or where a HEAD was no help (L1).
    async fn fetch_by_tag(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        outcome: Outcome,
    ) -> Result<ManifestAnswer, PullError> {
        let (pull, to, asked) = (self.clone(), target.clone(), tag.clone());
        let mut pending = self.tag_bodies.join((target.scope(), tag.clone()), || async move {
            pull.get_by_tag(&to, &asked, outcome).await
        });
        let joined = pending.joined;
        let answer = pending.wait().await?;
        Ok(if joined { collapsed(answer) } else { answer })
    }

    /// Whatever comes is what the tag points at.
    async fn get_by_tag(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        outcome: Outcome,
    ) -> Result<ManifestAnswer, PullError> {
        let client = self.client(target)?;
        let reference = Reference::Tag(tag.clone());
        loop {
            let question = self.number_tag_question();
            let body = self.get_manifest(&client, target, &reference).await?;
            let sent = Sent::of(&body);
            let answer = self.take_tagged(target, tag, body, outcome.clone(), question).await;
            if !sent.is_refused(&client, target, &reference, &answer) {
                return answer;
            }
        }
    }

    /// Verifies, keeps and notes what an upstream sent for a tag.
    async fn take_tagged(
        self: &Arc<Pull>,
        target: &Target,
        tag: &Tag,
        body: ManifestBody,
        outcome: Outcome,
        question: u64,
    ) -> Result<ManifestAnswer, PullError> {
        // sha256, unless the upstream says that it is known by another algorithm (R-S16).
        let algorithm = body.digest.map_or(Algorithm::Sha256, |d| d.algorithm());
        let digest = Digest::of(algorithm, &body.bytes);
        if body.digest.is_some_and(|said| said != digest) {
            let what = format!(
                "a manifest that is not what its Docker-Content-Digest says: expected {}, got {digest}",
                body.digest.unwrap_or(digest)
            );
            return Err(PullError::Upset {
                upstream: target.upstream.name.to_string(),
                what,
            });
        }
        let answer = self.keep(target, digest, body, outcome).await?;
        let record = TagRecord {
            digest,
            media_type: answer.media_type.clone(),
            size: answer.size,
            checked_ms: unix_ms(),
            moves: Vec::new(),
        };
        self.note_tag(target, tag, record, question).await;
        Ok(answer)
    }

    /// Writes down where a tag points, and waits until that is on disk: an answer that somebody has had may not be
    /// taken back by a crash (L6). A disk that fails is no reason to refuse it. The answer to an older question than the tag
    /// points by already is left out.
    async fn note_tag(&self, target: &Target, tag: &Tag, record: TagRecord, question: u64) {
        let is_newest = self.newest_question(target, tag, question);
        let (store, key, tag) = (self.store.clone(), target.key.clone(), tag.clone());
        // Ends early only with the process.
        let _ = blocking(move || Ok(store.put_tag_if(&key, tag.as_str(), record, true, is_newest))).await;
    }

    /// Numbers a question about a tag, in the order in which the upstream is asked. An operator's refresh lets an older one run
    /// on, which may end last.
    fn number_tag_question(&self) -> u64 {
        self.last_tag_question.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns what decides, once for a record about to be noted, whether no answer to a newer question was noted before.
    fn newest_question(&self, target: &Target, tag: &Tag, question: u64) -> impl FnOnce() -> bool + Send + use<> {
        let (noted, key) = (self.noted_tag_questions.clone(), (target.key.clone(), tag.clone()));
        move || {
            let is_newest = noted.get(&key).is_none_or(|newest| newest <= question);
            if is_newest {
                noted.insert(key, question);
            }
            is_newest
        }
    }

    /// What a record points at: from memory for a HEAD, else from the store or by digest.
    async fn serve(
        self: &Arc<Pull>,
        target: &Target,
        record: &TagRecord,
        want: Want,
        outcome: Outcome,
    ) -> Result<ManifestAnswer, PullError> {
        // Offline, what is not held is not there: a HEAD promises no more than a GET keeps.
        if want == Want::Head && !self.is_offline(target) {
            // The record's size and type are what a HEAD said. Once it is held there is no doubt.
            let digest = &record.digest;
            let linked = self.store.linked(&target.key, digest);
            let held = self
                .store
                .media_type(digest)
                .zip(self.store.size(digest))
                .filter(|_| linked);
            let said = || Some((record.media_type.clone(), record.size)).filter(|(_, size)| self.is_taken(*size));
            if let Some((media_type, size)) = held.or_else(said) {
                return Ok(ManifestAnswer {
                    digest: *digest,
                    media_type,
                    size,
                    bytes: None,
                    outcome,
                });
            }
        }
        match self.held(target, &record.digest, want).await {
            Ok(Some(held)) => return Ok(ManifestAnswer { outcome, ..held }),
            Ok(None) => {}
            Err(error) if error.is_unreadable() => {}
            Err(error) => return Err(error),
        }
        let fetched = self.fetch_by_digest(target, &record.digest).await?;
        let outcome = if outcome == Outcome::Refreshed {
            outcome
        } else {
            fetched.outcome.clone()
        };
        Ok(ManifestAnswer { outcome, ..fetched })
    }

    /// What may be served of a tag although its upstream failed: its record's target or the last one that is held.
    fn best_stale(&self, target: &Target, record: &TagRecord) -> Option<(Digest, u64)> {
        let policy = &target.upstream;
        let now_ms = now_by_clock_of(record.checked_ms);
        let overdue_s = may_be_stale(record.checked_ms, now_ms, policy.tag_ttl, policy.stale_if_error)?;
        Some((self.last_held(target, record)?, overdue_s))
    }

    /// The latest of a tag's targets that is held, and this repository's to serve. Memory only.
    pub(super) fn last_held(&self, target: &Target, record: &TagRecord) -> Option<Digest> {
        let earlier = record.moves.iter().rev().map(|m| m.digest);
        std::iter::once(record.digest)
            .chain(earlier)
            .find(|digest| self.store.media_type(digest).is_some() && self.store.linked(&target.key, digest))
    }

    fn holding(&self, target: &Target, record: Option<&TagRecord>) -> Holding {
        match record.map(|record| (self.last_held(target, record), record.digest)) {
            Some((Some(held), digest)) if held == digest => Holding::Target,
            Some((Some(_), _)) => Holding::Earlier,
            _ => Holding::Nothing,
        }
    }

    /// Error: there is something to be served, and it cannot be read at this moment.
    async fn stale(
        self: &Arc<Pull>,
        target: &Target,
        record: &TagRecord,
        want: Want,
        reason: &'static str,
    ) -> Result<Option<ManifestAnswer>, PullError> {
        let Some((digest, overdue_s)) = self.best_stale(target, record) else {
            return Ok(None);
        };
        let outcome = Outcome::Stale { overdue_s, reason };
        if want == Want::Head && digest == record.digest {
            return Ok(self.serve(target, record, want, outcome).await.ok());
        }
        match self.held(target, &digest, want).await {
            Ok(held) => Ok(held.map(|held| ManifestAnswer { outcome, ..held })),
            Err(error) if error.is_unreadable() => Err(error),
            Err(_) => Ok(None),
        }
    }

    // --- by digest ----------------------------------------------------------------------------------

    async fn by_digest(
        self: &Arc<Pull>,
        target: &Target,
        digest: &Digest,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        let held = self.store.media_type(digest).is_some();
        if held && self.store.linked(&target.key, digest) {
            match self.held(target, digest, want).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(error) if error.is_unreadable() => return self.fetch_by_digest(target, digest).await,
                Err(error) => return Err(error),
            }
        }
        self.check_negative(target, &Question::Manifest(*digest))?;
        let mut question = Question::Manifest(*digest);
        // A HEAD's refusal is no answer to a GET (R-U27).
        if want == Want::Head {
            question = Question::ManifestHead(*digest);
            self.check_negative(target, &question)?;
        }
        self.client(target)?;
        let proof = match held {
            true => self.proof_of_manifest(target, digest).await,
            false => Proof::Bytes,
        };
        let answer = match (proof, want) {
            (Proof::Bytes, Want::Body) => self.fetch_by_digest(target, digest).await,
            _ => self.head_by_digest(target, digest, want, proof).await,
        };
        answer.inspect_err(|error| self.note_negative(target, question, error))
    }

    /// Asks by HEAD: for a HEAD of what is not held, and for what this repository has not shown yet (L8), where an
    /// answer to that is proof (L11).
    async fn head_by_digest(
        self: &Arc<Pull>,
        target: &Target,
        digest: &Digest,
        want: Want,
        mut proof: Proof,
    ) -> Result<ManifestAnswer, PullError> {
        let itself = proof == Proof::Registry;
        let said = if itself && self.client(target)?.has_mirrors() {
            let asking = self.manifest_head(target, digest, true);
            match (self.beside_mirrors(target, asking).await, want) {
                (Some(head), _) => Ok(head),
                // As if it were not held.
                (None, Want::Body) => return self.fetch_by_digest(target, digest).await,
                (None, Want::Head) => {
                    proof = Proof::Bytes;
                    self.manifest_head(target, digest, false).await
                }
            }
        } else {
            self.manifest_head(target, digest, itself).await
        };
        let head = match said {
            Ok(head) => {
                self.note_privacy(target);
                head
            }
            Err(PullError::Upstream(error)) if error.is_doubtful_head() => {
                let fetched = self.fetch_by_digest(target, digest).await;
                if fetched.is_ok() {
                    self.client(target)?.note_failing_heads(&error);
                }
                return fetched;
            }
            Err(error) if error.is_late() => return Err(error),
            // As if it were not held: then there would have been no HEAD, and the GET may be answered (R-U27).
            Err(_) if want == Want::Body => return self.fetch_by_digest(target, digest).await,
            Err(error) => return Err(error),
        };
        // An answer about something else shows nothing (L8).
        if let Some(said) = head
            .digest
            .filter(|said| said != digest && said.algorithm() == digest.algorithm())
        {
            if want == Want::Body {
                return self.fetch_by_digest(target, digest).await;
            }
            return Err(PullError::Upset {
                upstream: target.upstream.name.to_string(),
                what: format!("a manifest {said}, where {digest} was asked for"),
            });
        }
        if proof != Proof::Bytes && self.store.media_type(digest).is_some() && self.is_called_so(digest, &head) {
            self.note_link(target, digest).await;
            match self.held(target, digest, want).await {
                Ok(Some(held)) => {
                    return Ok(ManifestAnswer {
                        outcome: Outcome::Revalidated,
                        ..held
                    });
                }
                Ok(None) => {}
                Err(error) if error.is_unreadable() => return self.fetch_by_digest(target, digest).await,
                Err(error) => return Err(error),
            }
        }
        match self.said_of(&head) {
            Some((media_type, size)) if want == Want::Head => Ok(ManifestAnswer {
                digest: *digest,
                media_type,
                size,
                bytes: None,
                outcome: Outcome::Passed,
            }),
            _ => self.fetch_by_digest(target, digest).await,
        }
    }

    /// One HEAD for all who ask; `itself`: of the registry, not of one of its mirrors.
    async fn manifest_head(&self, target: &Target, digest: &Digest, itself: bool) -> Result<ManifestHead, PullError> {
        let client = self.client(target)?;
        let (repository, reference) = (target.repository.clone(), Reference::Digest(*digest));
        let mut pending = self
            .manifest_heads
            .join((target.scope(), *digest, itself), || async move {
                let said = match itself {
                    true => client.confirm_manifest(&repository, &reference).await,
                    false => client.head_manifest(&repository, &reference).await,
                };
                said.map_err(PullError::from)
            });
        pending.wait().await
    }

    /// GET by digest, once for all who ask, verified, kept, linked. One that is held and cannot be read at this moment is not
    /// kept again, and whatever the upstream says no reason to deny it (L3).
    async fn fetch_by_digest(self: &Arc<Pull>, target: &Target, digest: &Digest) -> Result<ManifestAnswer, PullError> {
        let client = self.client(target);
        let (pull, to, digest) = (self.clone(), target.clone(), *digest);
        let mut pending = self.manifest_bodies.join((target.scope(), digest), || async move {
            // It may have come between the look into the store and this question.
            let unreadable = match pull.held(&to, &digest, Want::Body).await {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => None,
                Err(error) if error.is_unreadable() => Some(error),
                Err(error) => return Err(error),
            };
            let is_held = unreadable.is_some();
            let fetch = async {
                let (client, reference) = (client?, Reference::Digest(digest));
                loop {
                    let body = pull.get_manifest(&client, &to, &reference).await?;
                    let sent = Sent::of(&body);
                    let answer = pull.accept(&to, digest, body, Outcome::Stored, !is_held).await;
                    if !sent.is_refused(&client, &to, &reference, &answer) {
                        return answer;
                    }
                }
            };
            fetch.await.map_err(|error| unreadable.unwrap_or(error))
        });
        let joined = pending.joined;
        let answer = pending.wait().await?;
        Ok(if joined { collapsed(answer) } else { answer })
    }

    /// A manifest from the store, if this repository may see it.
    async fn held(&self, target: &Target, digest: &Digest, want: Want) -> Result<Option<ManifestAnswer>, PullError> {
        if !self.store.linked(&target.key, digest) {
            return Ok(None);
        }
        let answer = |media_type, size, bytes| {
            Ok(Some(ManifestAnswer {
                digest: *digest,
                media_type,
                size,
                bytes,
                outcome: Outcome::Hit,
            }))
        };
        if want == Want::Head
            && let (Some(media_type), Some(size)) = (self.store.media_type(digest), self.store.size(digest))
        {
            return answer(media_type, size, None);
        }
        let manifest = if self.store.is_hot(digest) {
            self.store.manifest(digest)?
        } else {
            let (store, digest) = (self.store.clone(), *digest);
            blocking(move || store.manifest(&digest)).await?
        };
        match manifest {
            Some(held) => answer(held.media_type, held.bytes.len() as u64, Some(held.bytes)),
            None => Ok(None),
        }
    }

    /// Verifies, reads and stores a manifest that has just come.
    async fn keep(
        &self,
        target: &Target,
        digest: Digest,
        body: ManifestBody,
        outcome: Outcome,
    ) -> Result<ManifestAnswer, PullError> {
        self.accept(target, digest, body, outcome, true).await
    }

    /// Verifies and reads a manifest, and stores it only if it `is_kept`.
    async fn accept(
        &self,
        target: &Target,
        digest: Digest,
        body: ManifestBody,
        outcome: Outcome,
        is_kept: bool,
    ) -> Result<ManifestAnswer, PullError> {
        self.note_privacy(target);
        let size = body.bytes.len() as u64;
        let bytes = body.bytes.clone();
        let manifest = self.read_manifest(&digest, &bytes, body.content_type).await?;
        let manifest = manifest.map_err(|error| PullError::Manifest {
            upstream: target.upstream.name.to_string(),
            error,
        })?;
        for child in &manifest.descriptors {
            if let Some(size) = child.size.filter(|_| !child.is_manifest) {
                self.hints.insert((target.key.clone(), child.digest), size);
            }
        }
        self.store.events().emit(Action::Fetch, |bare| Event {
            repository: Some(target.key.clone()),
            digest: Some(digest),
            media_type: Some(manifest.media_type.as_str().into()),
            upstream: Some(target.upstream.name.as_str().into()),
            bytes: Some(size),
            ..bare
        });
        let children: Vec<Digest> = manifest.descriptors.iter().map(|child| child.digest).collect();
        let media_type: Arc<str> = manifest.media_type.as_str().into();
        if !is_kept {
            return Ok(ManifestAnswer {
                digest,
                media_type,
                size,
                bytes: Some(bytes),
                outcome: Outcome::Passed,
            });
        }
        // What is stored is shared by repositories. A type that the document itself contradicts is this upstream's word, and
        // does not take the place of the one that another has shown.
        let shared = self.store.media_type(&digest).filter(|_| manifest.is_disputed);
        let kind = shared.unwrap_or_else(|| media_type.clone());
        let (store, key) = (self.store.clone(), target.key.clone());
        let span = trace::start("commit", Kind::Internal);
        let kept = blocking(move || store.put_manifest(&key, &digest, &kind, &children, &body.bytes)).await;
        if let Err(error) = kept {
            span.fail(error.as_str(), &error);
            // The bytes are right and in hand: a disk that cannot keep them is no reason to refuse them (L5).
            tell_not_kept(&digest, &error);
        }
        Ok(ManifestAnswer {
            digest,
            media_type,
            size,
            bytes: Some(bytes),
            outcome,
        })
    }
}

impl Pull {
    /// GET of a manifest within `limits.manifest_size`.
    async fn get_manifest(
        &self,
        client: &Client,
        target: &Target,
        reference: &Reference,
    ) -> Result<ManifestBody, PullError> {
        let most = self.policy.load().manifest_size;
        let body = client.get_manifest(&target.repository, reference, most).await;
        body.map_err(|error| match error.kind {
            ErrorKind::TooLarge { found, is_exact, limit } => PullError::Manifest {
                upstream: target.upstream.name.to_string(),
                error: ManifestError::TooLarge { found, is_exact, limit },
            },
            _ => error.into(),
        })
    }

    /// Returns whether a manifest of so many bytes would be taken.
    fn is_taken(&self, size: u64) -> bool {
        size <= self.policy.load().manifest_size as u64
    }

    /// Returns type and size of a manifest from a HEAD that tells both. Not of one that a GET would refuse for its size: a HEAD
    /// promises what a GET keeps, and may be wrong about the size, so the GET has to say so.
    fn said_of(&self, head: &ManifestHead) -> Option<(Arc<str>, u64)> {
        let media_type = head.media_type.as_deref().filter(|t| !media_type::says_nothing(t))?;
        let size = head.size.filter(|size| self.is_taken(*size))?;
        Some((media_type.into(), size))
    }

    /// Returns false if a HEAD calls a cached manifest by another type than it is stored with. Clients go by the type, and the
    /// stored one may be another upstream's invention: then the bytes have to come from here, with the type that is right here.
    fn is_called_so(&self, digest: &Digest, head: &ManifestHead) -> bool {
        let said = head.media_type.as_deref().filter(|t| !media_type::says_nothing(t));
        let stored = self.store.media_type(digest);
        said.zip(stored).is_none_or(|(said, stored)| *said == *stored)
    }

    /// Verifies and reads a manifest.
    async fn read_manifest(
        &self,
        digest: &Digest,
        bytes: &Bytes,
        content_type: Option<String>,
    ) -> Result<Result<Manifest, ManifestError>, PullError> {
        let (digest, text) = (*digest, bytes.clone());
        let limit = self.policy.load().manifest_descriptors;
        let read = move || {
            store::verify(&digest, &text)?;
            Ok::<_, StoreError>(Manifest::parse_within(&text, content_type.as_deref(), limit))
        };
        if bytes.len() < LARGE_BYTES {
            return Ok(read()?);
        }
        // It is never closed.
        let _turn = self.large_manifests.acquire().await.ok();
        blocking(read).await
    }
}

/// What is remembered of a manifest that came while it is verified.
struct Sent {
    address: Arc<str>,
    is_empty: bool,
}

impl Sent {
    fn of(body: &ManifestBody) -> Sent {
        Sent {
            address: body.address.clone(),
            is_empty: body.bytes.is_empty(),
        }
    }

    /// Returns whether it failed verification and came from a mirror. That one is left out from now on, so the next
    /// address is to be asked; the registry itself has the last word.
    fn is_refused(
        &self,
        client: &Client,
        target: &Target,
        reference: &Reference,
        answer: &Result<ManifestAnswer, PullError>,
    ) -> bool {
        let Err(error) = answer else { return false };
        let reason = match error {
            PullError::Store(StoreError::Mismatch(_)) | PullError::Upset { .. } | PullError::Manifest { .. }
                if self.is_empty =>
            {
                DistrustReason::Empty
            }
            PullError::Store(StoreError::Mismatch(_)) | PullError::Upset { .. } => DistrustReason::Mismatch,
            // What a digest names is the same everywhere, and a limit of ours is no fault of the mirror's.
            PullError::Manifest { error, .. }
                if matches!(reference, Reference::Tag(_))
                    && !matches!(error, ManifestError::TooManyDescriptors { .. }) =>
            {
                DistrustReason::NoManifest
            }
            _ => return false,
        };
        client.distrust_manifest(&self.address, &target.repository, reference, reason, error)
    }
}

fn collapsed(answer: ManifestAnswer) -> ManifestAnswer {
    let outcome = match answer.outcome {
        Outcome::Stored | Outcome::Passed => Outcome::Collapsed,
        other => other,
    };
    ManifestAnswer { outcome, ..answer }
}
