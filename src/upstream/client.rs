//! One upstream, asked five questions: the face of this floor.
//!
//! How a question is brought to an answer is in `ask`; what counts as one, in `question`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::ask::{Body, Reply};
pub use super::blob::BlobStream;
use super::blob::Span;
use super::body;
use super::budget::Budget;
use super::cloud;
use super::credentials::{self, Credentials, Logins, Sources};
use super::endpoint::{Endpoint, Place, Settings};
use super::error::{ErrorKind, UpstreamError};
use super::items::{ItemKind, ListSink};
use super::late::LateQuestions;
use super::lease::Lease;
use super::pacer::Pacer;
use super::question::{Kind, List, Question, Take, blob, manifest};
use super::transport::Transport;
use super::via::Via;
use crate::config::{Config, Lender, Upstream};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Digest, HostPort, Reference, Repository, media_type};

/// Most bytes of a tag list, in all its pages.
pub const MAX_TAGS_BYTES: usize = 16 * 1024 * 1024;
const MAX_REFERRERS_BYTES: usize = 4 * 1024 * 1024;
const MAX_REPOSITORIES: u64 = 10_000;

/// Figures that only tests change.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How long answers may take to begin that others can take the place of: a mirror's, a part's of a blob, what a checkup
    /// asks. Whatever else takes longer is late, and allowed `answer_timeout`.
    pub headers: Duration,
    /// For the whole of a small document, or of a list with all its pages.
    pub document: Duration,
    /// Repeats after a failure that may pass, before the first byte.
    pub retries: u32,
    /// The pause before a repeat is between these.
    pub pause: (Duration, Duration),
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            headers: Duration::from_secs(20),
            document: Duration::from_secs(60),
            retries: 2,
            pause: (Duration::from_millis(50), Duration::from_millis(400)),
        }
    }
}

/// Every upstream's client, built once.
#[derive(Debug)]
pub struct Clients {
    all: Vec<Arc<Client>>,
    by_name: HashMap<HostPort, usize>,
    /// Where they were built from, to build others.
    logins: Arc<Logins>,
    sources: Sources,
    tuning: Tuning,
    via: Via,
}

impl Clients {
    /// Reads CA files and client certificates; dials nothing. Login files and proxies are found by this process's environment.
    pub fn new(config: &Config) -> Result<Clients, BuildError> {
        let sources = Sources::from_env(|name| std::env::var(name).ok());
        Clients::with(config, &sources, Tuning::default())
    }

    /// The same, with everything from outside given.
    pub fn with(config: &Config, sources: &Sources, tuning: Tuning) -> Result<Clients, BuildError> {
        let none = Clients {
            all: Vec::new(),
            by_name: HashMap::new(),
            logins: Arc::new(Logins::new(sources)),
            sources: sources.clone(),
            tuning,
            via: Via::random(),
        };
        none.renewed(config)
    }

    /// Those of another configuration. A client of an upstream that is asked as before is the same one, with its tokens
    /// and connections; another goes on with what was known of limits and pauses. Files of certificates are read again.
    pub fn renewed(&self, config: &Config) -> Result<Clients, BuildError> {
        let mut clients = Clients {
            all: Vec::new(),
            by_name: HashMap::new(),
            logins: self.logins.clone(),
            sources: self.sources.clone(),
            tuning: self.tuning,
            via: self.via.clone(),
        };
        for upstream in &config.upstreams {
            let before = self.get(&upstream.name);
            let asked = asked_as(upstream, config.cache.offline);
            let has_files = upstream.ca_file.is_some() || upstream.client_cert.is_some();
            let client = match before.filter(|before| before.asked == asked && !has_files) {
                Some(same) => same.clone(),
                None => {
                    let built = Client::build(asked, &clients.logins, &self.sources, self.tuning, &self.via);
                    let client = built.map_err(|what| BuildError {
                        upstream: upstream.name.to_string(),
                        what,
                    })?;
                    if let Some(before) = before {
                        client.own.inherit(&before.own);
                    }
                    Arc::new(client)
                }
            };
            clients.by_name.insert(upstream.name.clone(), clients.all.len());
            clients.all.push(client);
        }
        Ok(clients)
    }

    /// By canonical name, as in `Config::upstreams`.
    pub fn get(&self, name: &HostPort) -> Option<&Arc<Client>> {
        self.all.get(*self.by_name.get(name)?)
    }

    /// The name that their requests go out by.
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// All, for readiness and metrics.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.all.iter()
    }
}

/// A file that the configuration names and that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {what}")]
pub struct BuildError {
    pub upstream: String,
    pub what: String,
}

/// A client of one upstream. Every method: token flow, redirects, mirrors, breaker, `answer_timeout`
/// and the quick retries before the first byte are inside; what comes out is the verdict.
#[derive(Debug)]
pub struct Client {
    pub(super) name: Arc<str>,
    /// What it was built from.
    asked: Upstream,
    /// The mirrors in order, then the upstream itself.
    pub(super) mirrors: Vec<Endpoint>,
    pub(super) own: Endpoint,
    pub(super) offline: bool,
    pub(super) read_timeout: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) tuning: Tuning,
    pub(super) late: LateQuestions,
    /// `max_connections`: requests in flight, bodies included.
    pub(super) slots: Option<Arc<Semaphore>>,
    /// `max_bandwidth`.
    pacer: Option<Arc<Pacer>>,
    /// Whether stored credentials were behind a repository's last answer.
    pub(super) logins_used: moka::sync::Cache<Repository, bool>,
}

/// In which form bytes are asked for, of a store that packed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Plain,
    /// Packed as they lie there: what was pushed may have been that (R-U26).
    AsStored,
}

/// Something of a repository that can be asked for as nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    Manifest(Reference),
    Blob(Digest),
    Tags,
}

/// What a HEAD of a manifest told; `None` where the upstream left it out.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    /// Essence, lower-case.
    pub media_type: Option<String>,
    pub size: Option<u64>,
    /// Set if the registry itself said it, and not a mirror.
    pub by_itself: bool,
}

/// A manifest's bytes, at most `MAX_MANIFEST_BYTES`, unverified.
#[derive(Clone, Debug)]
pub struct ManifestBody {
    pub bytes: Bytes,
    /// The Content-Type header as it came.
    pub content_type: Option<String>,
    /// Docker-Content-Digest of the first hop that had one (R-U22).
    pub digest: Option<Digest>,
}

#[derive(Clone, Debug)]
pub struct BlobHead {
    pub size: Option<u64>,
}

/// Outcome of asking an upstream for referrers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referrers {
    /// The sink has the `manifests` of every page.
    Listed,
    /// 404, 405, 400 or another Content-Type: the upstream has no such API (R-S21).
    Unsupported,
}

impl Client {
    fn build(
        asked: Upstream,
        logins: &Arc<Logins>,
        sources: &Sources,
        tuning: Tuning,
        via: &Via,
    ) -> Result<Client, String> {
        let upstream = &asked;
        let name: Arc<str> = upstream.name.as_str().into();
        let endpoint = |url: &Url, is_own: bool| {
            let place = Place::of(url);
            let base = &place.base;
            let transport = Transport::new(base, upstream, sources, via)?;
            // A mirror is another host: the upstream's password is none of its business (L7).
            let fixed = upstream.credentials.clone().filter(|_| is_own);
            let lender = match &upstream.lender {
                Some(lender) if is_own => Some(Arc::new(lease(lender, base, &transport, sources))),
                _ => None,
            };
            let credentials = Credentials::new(fixed, lender, logins.clone(), base);
            let settings = Settings {
                upstream: name.clone(),
                redirect_hosts: upstream.redirect_hosts.clone(),
                trusted_realms: upstream.trusted_realms.clone(),
                read_timeout: upstream.read_timeout,
                budget_floor: upstream.budget_floor,
            };
            Ok::<_, String>(Endpoint::new(place, transport, credentials, settings))
        };
        let mirrors: Result<Vec<_>, _> = upstream.mirrors.iter().map(|url| endpoint(url, false)).collect();
        Ok(Client {
            mirrors: mirrors?,
            own: endpoint(&upstream.url, true)?,
            offline: upstream.offline,
            read_timeout: upstream.read_timeout,
            answer_timeout: upstream.answer_timeout,
            late: LateQuestions::new(name.clone(), tuning.headers, upstream.max_connections),
            tuning,
            slots: upstream
                .max_connections
                .map(|n| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)))),
            pacer: upstream.max_bandwidth.map(|rate| Arc::new(Pacer::new(&name, rate))),
            logins_used: moka::sync::Cache::new(MAX_REPOSITORIES),
            name,
            asked,
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns whether there are mirrors, which are asked before the registry itself.
    pub fn has_mirrors(&self) -> bool {
        !self.mirrors.is_empty()
    }

    /// Returns whether Larder shows the upstream a certificate of its own: a credential that no question can do without.
    pub fn has_certificate(&self) -> bool {
        self.asked.client_cert.is_some()
    }

    /// Whether the upstream's address is a loopback one.
    pub fn is_on_this_machine(&self) -> bool {
        match self.own.base.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.to_canonical().is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }

    /// Returns whether credentials were behind this repository's last answer (L8), sent to the registry or for a token;
    /// an anonymous token does not count, a client certificate does. `Some(false)`: the registry itself has just answered
    /// without any. Where only a mirror did, nobody knows: if there are credentials that the registry would have been
    /// sent, they count as used, else it is `None`.
    pub fn has_credentials(&self, repository: &Repository) -> Option<bool> {
        if self.has_certificate() {
            return Some(true);
        }
        let has_login = || self.own.has_login(repository) || self.mirrors.iter().any(|m| m.has_login(repository));
        self.logins_used.get(repository).or_else(|| has_login().then_some(true))
    }

    /// Whether there are credentials that a question about this repository would be asked with.
    pub fn may_log_in(&self, repository: &Repository) -> bool {
        self.own.may_log_in(repository) || self.mirrors.iter().any(|mirror| mirror.may_log_in(repository))
    }

    /// What the upstream itself says to somebody without credentials: `Some(true)`, it answers; `Some(false)`, it asks
    /// for credentials or refuses (401, 403); `None`, it does not have it, which says nothing of the repository.
    ///
    /// Errors: it says nothing at all.
    pub async fn shows_to_nobody(&self, repository: &Repository, probe: &Probe) -> Result<Option<bool>, UpstreamError> {
        let mut question = match probe {
            Probe::Manifest(reference) => manifest(Method::HEAD, repository, reference, Take::Head),
            Probe::Blob(digest) => blob(Method::HEAD, repository, digest, Take::Head),
            Probe::Tags => Question {
                kind: Kind::Tags,
                method: Method::GET,
                repository,
                path: format!("{repository}/tags/list"),
                query: Some("n=1"),
                accept: "application/json",
                range: None,
                as_stored: false,
                take: Take::Head,
                within: None,
                as_nobody: true,
                list: None,
            },
        };
        question.as_nobody = true;
        let mut asked = self.ask_itself(&question).await;
        // R-U27: where HEAD is not understood, a GET whose body nobody reads.
        if is_no_head(&asked) {
            question.method = Method::GET;
            asked = self.ask_itself(&question).await;
        }
        match asked {
            Ok(_) => Ok(Some(true)),
            Err(error) => match error.kind {
                ErrorKind::Denied { .. } => Ok(Some(false)),
                ErrorKind::NotFound { .. } => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The time left until the breaker closes, if it is open.
    pub fn paused(&self) -> Option<Duration> {
        self.own.paused()
    }

    /// What the upstream said last about its pull limits, where it says anything (R-U32).
    pub fn budgets(&self) -> Vec<Budget> {
        self.own.budgets.all()
    }

    /// Whether few pulls are left for who asks for this repository: fewer than `budget_floor`.
    pub fn is_budget_low(&self, repository: &Repository) -> bool {
        self.own.is_budget_low(repository)
    }

    /// Brings gauges up to date that change by time alone.
    pub fn export(&self) {
        self.own.budgets.export();
    }

    /// Some upstreams answer HEAD with 405, 400, 501 or even 404 and 403 where a GET would do (R-U27): the caller, who
    /// knows what a GET costs, decides.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let (reply, _) = self
            .ask(&manifest(Method::HEAD, repository, reference, Take::Head))
            .await?;
        Ok(head_of(&reply))
    }

    /// HEAD of a manifest at the registry itself, mirrors left aside: what it confirms may be given out from the cache (L11).
    pub async fn confirm_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let question = manifest(Method::HEAD, repository, reference, Take::Head);
        Ok(head_of(&self.ask_to_confirm(&question).await?))
    }

    pub async fn get_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestBody, UpstreamError> {
        let question = manifest(Method::GET, repository, reference, Take::Whole(MAX_MANIFEST_BYTES));
        let (reply, _) = self.ask(&question).await?;
        let Body::Document(bytes) = reply.body else {
            return Err(self.error(ErrorKind::Protocol("no document".into())));
        };
        Ok(ManifestBody {
            bytes,
            content_type: body::text(&reply.headers, &CONTENT_TYPE).map(str::to_owned),
            digest: reply.digest,
        })
    }

    pub async fn head_blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobHead, UpstreamError> {
        let (reply, _) = self.ask(&blob(Method::HEAD, repository, digest, Take::Head)).await?;
        Ok(BlobHead {
            size: body::content_length(&reply.headers),
        })
    }

    /// HEAD of a blob at the registry itself, mirrors left aside: what it confirms may be given out from the cache (L11).
    pub async fn confirm_blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobHead, UpstreamError> {
        let mut question = blob(Method::HEAD, repository, digest, Take::Head);
        let mut asked = self.ask_to_confirm(&question).await;
        // R-U27: as in `shows_to_nobody`.
        if is_no_head(&asked) {
            question.method = Method::GET;
            asked = self.ask_to_confirm(&question).await;
        }
        Ok(BlobHead {
            size: body::content_length(&asked?.headers),
        })
    }

    /// `offset` > 0 asks with `Range: bytes=offset-`. A 416 is `Protocol`.
    pub async fn get_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        self.get_blob_in(Form::Plain, repository, digest, offset, None).await
    }

    /// The same, of a store whose first answer was `was_unpacked` if `form` says so, and answered `within` some time, if
    /// that is less than `answer_timeout`.
    pub async fn get_blob_in(
        &self,
        form: Form,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
        within: Option<Duration>,
    ) -> Result<BlobStream, UpstreamError> {
        let mut question = blob(Method::GET, repository, digest, Take::Stream);
        question.within = within;
        question.range = (offset > 0).then_some(Span::from(offset));
        question.as_stored = form == Form::AsStored;
        let (reply, slot) = self.ask(&question).await?;
        self.stream(reply, slot)
    }

    /// Bytes `start..end` and no others, for a transfer that has a connection already: where the upstream does not
    /// answer with just these, that is `Protocol`. It is asked once. `None` when `max_connections` leaves no room now.
    pub async fn get_blob_part(
        &self,
        repository: &Repository,
        digest: &Digest,
        span: Range<u64>,
    ) -> Result<Option<BlobStream>, UpstreamError> {
        let slot = match &self.slots {
            // Who needs a first connection comes before who wants another.
            Some(slots) => match slots.clone().try_acquire_owned() {
                Ok(slot) => Some(slot),
                Err(_) => return Ok(None),
            },
            None => None,
        };
        let mut question = blob(Method::GET, repository, digest, Take::Stream);
        question.range = Some(Span::of(span));
        // The transfer does without it sooner.
        question.within = Some(self.tuning.headers);
        let reply = self.ask_in(&question).await?;
        self.stream(reply, slot).map(Some)
    }

    fn stream(&self, reply: Reply, slot: Option<OwnedSemaphorePermit>) -> Result<BlobStream, UpstreamError> {
        let Body::Stream(stream) = reply.body else {
            return Err(self.error(ErrorKind::Protocol("no body".into())));
        };
        let (extent, response) = *stream;
        Ok(BlobStream::new(
            extent,
            response,
            self.name.clone(),
            self.read_timeout,
            self.pacer.clone(),
            slot,
        ))
    }

    /// Every tag, pages followed, in the order in which they come. What is no tag by the specification's grammar is
    /// left out.
    pub async fn tags(&self, repository: &Repository, sink: &dyn ListSink) -> Result<(), UpstreamError> {
        let question = Question {
            kind: Kind::Tags,
            method: Method::GET,
            repository,
            path: format!("{repository}/tags/list"),
            query: Some("n=1000"),
            accept: "application/json",
            range: None,
            as_stored: false,
            take: Take::Pages(MAX_TAGS_BYTES),
            within: None,
            as_nobody: false,
            list: Some(List {
                field: "tags",
                items: ItemKind::Tags,
                sink,
            }),
        };
        self.ask(&question).await.map(|_| ())
    }

    /// The descriptors that refer to a subject, pages followed, as they come.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        sink: &dyn ListSink,
    ) -> Result<Referrers, UpstreamError> {
        let question = Question {
            kind: Kind::Referrers,
            method: Method::GET,
            repository,
            path: format!("{repository}/referrers/{subject}"),
            query: None,
            accept: media_type::OCI_INDEX,
            range: None,
            as_stored: false,
            take: Take::Pages(MAX_REFERRERS_BYTES),
            within: None,
            as_nobody: false,
            list: Some(List {
                field: "manifests",
                items: ItemKind::Documents,
                sink,
            }),
        };
        match self.ask(&question).await {
            Ok(_) => Ok(Referrers::Listed),
            Err(error) => match error.kind {
                ErrorKind::NotFound { .. }
                | ErrorKind::Status {
                    status: 400 | 405 | 406,
                    ..
                } => Ok(Referrers::Unsupported),
                _ => Err(error),
            },
        }
    }

    pub(super) fn error(&self, kind: ErrorKind) -> UpstreamError {
        UpstreamError::new(&self.name, kind)
    }
}

fn head_of(reply: &Reply) -> ManifestHead {
    ManifestHead {
        digest: reply.digest,
        media_type: body::text(&reply.headers, &CONTENT_TYPE).and_then(media_type::essence),
        size: body::content_length(&reply.headers),
        by_itself: reply.by_itself,
    }
}

/// Returns whether HEAD was not understood (R-U27).
fn is_no_head(asked: &Result<Reply, UpstreamError>) -> bool {
    let kind = asked.as_ref().err().map(|error| &error.kind);
    matches!(
        kind,
        Some(ErrorKind::Status {
            status: 400 | 405 | 501,
            ..
        })
    )
}

/// What matters to how an upstream is asked; what does not is as if nobody had given it.
fn asked_as(upstream: &Upstream, offline: bool) -> Upstream {
    Upstream {
        aliases: Vec::new(),
        synonyms: Vec::new(),
        tag_ttl: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        offline: offline || upstream.offline,
        max_size: None,
        allow: Vec::new(),
        deny: Vec::new(),
        ..upstream.clone()
    }
}

/// Who gives out credentials for the registry at `base`, by the configuration's word.
fn lease(lender: &Lender, base: &Url, transport: &Transport, sources: &Sources) -> Lease {
    match lender {
        Lender::Helper(name) => credentials::from_helper(name, base, sources),
        Lender::Cloud(cloud) => cloud::lease(*cloud, base, transport, sources),
    }
}
