//! Addresses that sent something wrong: for ten minutes such a mirror is not asked again for that.
//!
//! A mirror is believed until what it sent fails verification. Whoever verifies (`pull`, or `ask` for what shows in an answer's
//! head) reports it here; the same request then goes to the next address, and so does every other one for that digest, because
//! `ask` looks here first. What has no digest yet, a tag or a list, is remembered by its path.
//!
//! The registry itself is never distrusted: it has the last word.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;

use super::ask::Reply;
use super::body;
use super::client::Client;
use super::error::ErrorKind;
use super::question::{Kind, Question, WEB_PAGE};
use crate::oci::{Digest, Reference, Repository};

const DISTRUSTED_FOR: Duration = Duration::from_secs(600);
const MAX_ENTRIES: u64 = 10_000;
/// More addresses than a configuration has.
const MAX_ADDRESSES: u64 = 1_000;
/// Answers that broke off without a byte, or before anything of them could be used.
const MAX_CUTS: u8 = 3;
/// Longest part of what was wrong that is logged.
const MAX_DETAIL_CHARS: usize = 300;

/// Why an address is not asked again for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DistrustReason {
    /// The bytes are not what their digest says.
    Mismatch,
    /// A web page in place of a manifest, a list or a blob.
    WebPage,
    /// A document that is no manifest.
    NoManifest,
    /// An answer that breaks the protocol.
    Protocol,
    /// Nothing, where there is something.
    Empty,
    /// Another size than the manifest names, or than the answer before.
    Size,
    /// It broke off three times without progress.
    Cuts,
}

impl DistrustReason {
    /// One word for the log and the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            DistrustReason::Mismatch => "mismatch",
            DistrustReason::WebPage => "web_page",
            DistrustReason::NoManifest => "no_manifest",
            DistrustReason::Protocol => "protocol",
            DistrustReason::Empty => "empty",
            DistrustReason::Size => "size",
            DistrustReason::Cuts => "cuts",
        }
    }

    /// Whether it shows only after bytes were taken for right: other blobs from there deserve a second look as well.
    fn shows_late(self) -> bool {
        matches!(self, DistrustReason::Mismatch)
    }
}

/// What an address is not asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Digest(Digest),
    /// Behind `/v2/`: `library/alpine/manifests/3.22`.
    Path(Arc<str>),
}

impl Subject {
    /// The end of a path is a digest where one is asked for: a tag has no colon.
    fn of(question: &Question<'_>) -> Subject {
        let last = || question.path.rsplit('/').next()?.parse().ok();
        let digest = match question.kind {
            Kind::Manifest | Kind::Blob => last(),
            // Of a subject, whose own bytes are something else.
            Kind::Tags | Kind::Referrers => None,
        };
        digest.map_or_else(|| Subject::Path(question.path.as_str().into()), Subject::Digest)
    }

    fn of_manifest(repository: &Repository, reference: &Reference) -> Subject {
        match reference {
            Reference::Digest(digest) => Subject::Digest(*digest),
            Reference::Tag(_) => Subject::Path(format!("{repository}/manifests/{reference}").into()),
        }
    }
}

type Key = (Arc<str>, Subject);

/// What is remembered of all addresses of one upstream. A clone shares it.
#[derive(Clone, Debug)]
pub(super) struct Distrust {
    marks: moka::sync::Cache<Key, DistrustReason>,
    /// Answers that broke off without progress, one after the other.
    cuts: moka::sync::Cache<Key, u8>,
    /// Addresses of which bytes of a blob were wrong.
    caught: moka::sync::Cache<Arc<str>, ()>,
    /// Addresses from which a whole blob was right, and none was wrong since.
    proven: moka::sync::Cache<Arc<str>, ()>,
}

impl Default for Distrust {
    fn default() -> Distrust {
        Distrust::lasting(DISTRUSTED_FOR)
    }
}

impl Distrust {
    fn lasting(time: Duration) -> Distrust {
        Distrust {
            marks: cache(MAX_ENTRIES, time),
            cuts: cache(MAX_ENTRIES, time),
            caught: cache(MAX_ADDRESSES, time),
            proven: moka::sync::Cache::new(MAX_ADDRESSES),
        }
    }

    fn has(&self, address: &Arc<str>, subject: Subject) -> bool {
        self.marks.contains_key(&(address.clone(), subject))
    }

    /// Returns whether that is news.
    fn mark(&self, address: &Arc<str>, subject: Subject, reason: DistrustReason) -> bool {
        if reason.shows_late() {
            self.caught.insert(address.clone(), ());
            self.proven.invalidate(address);
        }
        let key = (address.clone(), subject);
        self.cuts.invalidate(&key);
        let is_news = !self.marks.contains_key(&key);
        self.marks.insert(key, reason);
        is_news
    }

    /// Counts an answer that broke off without progress. Returns whether there have been too many.
    fn cut(&self, address: &Arc<str>, subject: Subject) -> bool {
        let key = (address.clone(), subject);
        let cuts = self.cuts.get(&key).unwrap_or_default().saturating_add(1);
        self.cuts.insert(key, cuts);
        cuts >= MAX_CUTS
    }
}

fn cache<K, V>(entries: u64, time: Duration) -> moka::sync::Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder()
        .max_capacity(entries)
        .time_to_live(time)
        // The default policy may refuse what is new, which is what is asked for next.
        .eviction_policy(moka::policy::EvictionPolicy::lru())
        .build()
}

impl Client {
    /// Returns whether this is one of the upstream's mirrors, and not the registry itself.
    pub fn is_mirror(&self, address: &str) -> bool {
        **self.own.health.name() != *address && self.mirrors.iter().any(|mirror| **mirror.health.name() == *address)
    }

    /// How many addresses there are beside the registry itself.
    pub fn mirror_count(&self) -> usize {
        self.mirrors.len()
    }

    /// Reports that an address sent a blob that is not right. For ten minutes it is not asked for that digest.
    ///
    /// Returns false for the registry itself, which is asked all the same.
    pub fn distrust_blob(
        &self,
        address: &Arc<str>,
        digest: &Digest,
        reason: DistrustReason,
        what: &dyn Display,
    ) -> bool {
        self.report(address, Subject::Digest(*digest), "blob", reason, what)
    }

    /// Reports that an address sent a manifest that is not right. For ten minutes it is not asked for that one.
    ///
    /// Returns false for the registry itself, which is asked all the same.
    pub fn distrust_manifest(
        &self,
        address: &Arc<str>,
        repository: &Repository,
        reference: &Reference,
        reason: DistrustReason,
        what: &dyn Display,
    ) -> bool {
        let subject = Subject::of_manifest(repository, reference);
        self.report(address, subject, "manifest", reason, what)
    }

    /// Takes a report back: the address was right.
    pub fn trust_again(&self, address: &Arc<str>, digest: &Digest) {
        self.distrust
            .marks
            .invalidate(&(address.clone(), Subject::Digest(*digest)));
    }

    /// Reports that an answer with a blob broke off before it brought a byte.
    pub fn note_cut(&self, address: &Arc<str>, digest: &Digest, what: &dyn Display) {
        let subject = Subject::Digest(*digest);
        if self.is_mirror(address) && self.distrust.cut(address, subject.clone()) {
            self.report(address, subject, "blob", DistrustReason::Cuts, what);
        }
    }

    /// Returns whether an address is not asked for this blob or manifest at present.
    pub fn is_distrusted(&self, address: &Arc<str>, digest: &Digest) -> bool {
        self.distrust.has(address, Subject::Digest(*digest))
    }

    /// Returns whether wrong bytes of some blob came from there in the last ten minutes.
    pub fn is_on_probation(&self, address: &Arc<str>) -> bool {
        self.distrust.caught.contains_key(address)
    }

    /// Reports that a whole blob from there was right.
    pub fn note_proven(&self, address: &Arc<str>) {
        self.distrust.proven.insert(address.clone(), ());
    }

    /// Returns whether a whole blob from there was right in the life of this process, and none was wrong since.
    pub fn is_proven(&self, address: &Arc<str>) -> bool {
        self.distrust.proven.contains_key(address)
    }

    /// Returns whether a mirror is not to be asked this question.
    pub(super) fn is_left_out(&self, address: &Arc<str>, question: &Question<'_>) -> bool {
        question.without.contains(address) || self.distrust.has(address, Subject::of(question))
    }

    /// Looks at what a mirror made of a question: what shows in its answer already is remembered.
    ///
    /// Errors: there is no answer, or none that may be passed on.
    pub(super) fn judge_mirror(
        &self,
        address: &Arc<str>,
        question: &Question<'_>,
        outcome: Result<Reply, ErrorKind>,
    ) -> Result<Reply, ErrorKind> {
        match outcome {
            Ok(reply) if self.is_credible(address, question, &reply) => Ok(reply),
            Ok(_) => Err(ErrorKind::Protocol("it contradicts what is known".into())),
            Err(error) => {
                self.note_wrong_answer(address, question, &error);
                Err(error)
            }
        }
    }

    /// Returns whether what the head of a mirror's answer says may be passed on. Nothing verifies an answer to HEAD.
    fn is_credible(&self, address: &Arc<str>, question: &Question<'_>, reply: &Reply) -> bool {
        if question.kind == Kind::Blob {
            return question.method != Method::HEAD || !reply.is_web_page();
        }
        let Some(named) = reply.digest else { return true };
        // It names something that it has sent wrongly.
        if self.is_distrusted(address, &named) {
            return false;
        }
        match Subject::of(question) {
            Subject::Digest(wanted) if question.method == Method::HEAD => {
                named == wanted || named.algorithm() != wanted.algorithm()
            }
            _ => true,
        }
    }

    /// Draws a conclusion from what a mirror answered a question with, if it lies in the answer.
    fn note_wrong_answer(&self, address: &Arc<str>, question: &Question<'_>, error: &ErrorKind) {
        let reason = match error {
            ErrorKind::Protocol(what) if **what == *WEB_PAGE => DistrustReason::WebPage,
            // To HEAD registries answer oddly that are right otherwise (R-U27), and a refused Range is no verdict on the blob.
            _ if question.method == Method::HEAD || question.range.is_some() => return,
            ErrorKind::Protocol(_) => DistrustReason::Protocol,
            ErrorKind::Cut(_) if self.distrust.cut(address, Subject::of(question)) => DistrustReason::Cuts,
            _ => return,
        };
        self.report(address, Subject::of(question), question.kind.noun(), reason, error);
    }

    fn report(
        &self,
        address: &Arc<str>,
        subject: Subject,
        noun: &'static str,
        reason: DistrustReason,
        what: &dyn Display,
    ) -> bool {
        if !self.is_mirror(address) {
            return false;
        }
        if !self.distrust.mark(address, subject.clone(), reason) {
            return true;
        }
        let (digest, path) = match &subject {
            Subject::Digest(digest) => (Some(digest), None),
            Subject::Path(path) => (None, Some(path)),
        };
        tracing::warn!(
            upstream = %self.name,
            %address,
            digest = digest.map(tracing::field::display),
            path = path.map(tracing::field::display),
            reason = %reason.as_str(),
            found = body::one_line(&what.to_string(), MAX_DETAIL_CHARS),
            "not asked for this {noun} for {} min",
            DISTRUSTED_FOR.as_secs() / 60
        );
        metrics::counter!(
            "larder_upstream_distrusted_total",
            "upstream" => self.name.to_string(),
            "address" => address.to_string(),
            "reason" => reason.as_str()
        )
        .increment(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::question::{Take, blob, manifest};
    use super::*;

    fn address(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn what_is_remembered_is_an_address_and_a_digest() {
        let distrust = Distrust::default();
        let (one, other) = (address("https://one.example"), address("https://other.example"));
        let (wrong, right) = (Digest::sha256(b"wrong"), Digest::sha256(b"right"));
        assert!(distrust.mark(&one, Subject::Digest(wrong), DistrustReason::Size));
        assert!(
            !distrust.mark(&one, Subject::Digest(wrong), DistrustReason::Mismatch),
            "no news"
        );
        assert!(distrust.has(&one, Subject::Digest(wrong)));
        assert!(!distrust.has(&one, Subject::Digest(right)));
        assert!(!distrust.has(&other, Subject::Digest(wrong)));
    }

    #[test]
    fn a_question_is_known_by_its_digest_or_else_by_its_path() {
        let repository: Repository = "library/alpine".parse().unwrap();
        let digest = Digest::sha256(b"x");
        let by_digest = manifest(Method::GET, &repository, &Reference::Digest(digest), Take::Head);
        let of_blob = blob(Method::GET, &repository, &digest, Take::Stream);
        assert_eq!(Subject::of(&by_digest), Subject::Digest(digest));
        assert_eq!(Subject::of(&of_blob), Subject::Digest(digest));
        let tag: Reference = "3.22".parse().unwrap();
        let by_tag = manifest(Method::HEAD, &repository, &tag, Take::Head);
        let path = Subject::Path("library/alpine/manifests/3.22".into());
        assert_eq!(Subject::of(&by_tag), path);
        assert_eq!(Subject::of_manifest(&repository, &tag), path);
        assert_eq!(
            Subject::of_manifest(&repository, &Reference::Digest(digest)),
            Subject::Digest(digest)
        );
    }

    #[test]
    fn three_cuts_are_too_many() {
        let distrust = Distrust::default();
        let (one, other) = (address("https://one.example"), address("https://other.example"));
        let digest = || Subject::Digest(Digest::sha256(b"x"));
        assert!(!distrust.cut(&one, digest()));
        assert!(!distrust.cut(&one, digest()));
        assert!(!distrust.cut(&other, digest()));
        assert!(distrust.cut(&one, digest()));
    }

    #[test]
    fn only_wrong_bytes_put_an_address_on_probation() {
        let distrust = Distrust::default();
        let one = address("https://one.example");
        for (reason, on_probation) in [(DistrustReason::WebPage, false), (DistrustReason::Mismatch, true)] {
            distrust.mark(&one, Subject::Digest(Digest::sha256(b"x")), reason);
            assert_eq!(distrust.caught.contains_key(&one), on_probation);
        }
    }

    #[test]
    fn distrust_ends() {
        let distrust = Distrust::lasting(Duration::from_millis(20));
        let (one, digest) = (address("https://one.example"), Digest::sha256(b"x"));
        distrust.mark(&one, Subject::Digest(digest), DistrustReason::Mismatch);
        let begun = std::time::Instant::now();
        while distrust.has(&one, Subject::Digest(digest)) || distrust.caught.contains_key(&one) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        assert!(begun.elapsed() >= Duration::from_millis(15), "{:?}", begun.elapsed());
    }
}
