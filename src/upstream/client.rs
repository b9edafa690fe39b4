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

use super::address::{self, AddressState, Role};
use super::ask::{Body, Reply};
pub use super::blob::BlobStream;
use super::blob::Span;
use super::body;
use super::budget::Budget;
use super::cloud;
use super::credentials::{self, Credential, Credentials, Logins, Sources};
use super::distrust::Distrust;
use super::endpoint::{Endpoint, Place, Settings};
use super::error::{ErrorKind, UpstreamError};
use super::heads::{Doubt, GetFallback};
use super::items::{ItemKind, ListSink};
use super::late::LateQuestions;
use super::lease::Lease;
use super::pacer::Pacer;
use super::probe;
use super::question::{Kind, List, Question, Take, WEB_PAGE, blob, manifest};
use super::retry::{Policy, Repeats};
use super::transport::Transport;
use super::via::Via;
use crate::config::{Config, Lender, Upstream};
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
    /// The first pause before a repeat; each is twice as long as the last, times 0.5 to 1.
    pub pause: Duration,
    /// Nothing is repeated so long after the first failure.
    pub ride_out: Duration,
    /// The pause before an address that went down is probed for the first time.
    pub first_pause: Duration,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            headers: Duration::from_secs(20),
            document: Duration::from_secs(60),
            retries: 5,
            pause: Duration::from_millis(100),
            ride_out: Duration::from_secs(5),
            first_pause: address::FIRST_PAUSE,
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
                    let pacer = before.map(|before| before.pacer.clone());
                    let built = Client::build(asked, pacer, &clients.logins, &self.sources, self.tuning, &self.via);
                    let mut client = built.map_err(|what| BuildError {
                        upstream: upstream.name.to_string(),
                        what,
                    })?;
                    if let Some(before) = before {
                        client.inherit(before);
                    }
                    Arc::new(client)
                }
            };
            clients.by_name.insert(upstream.name.clone(), clients.all.len());
            clients.all.push(client);
        }
        Ok(clients)
    }

    /// Makes the rates of this configuration hold, for downloads that began under another one as well.
    pub fn adopt(&self) {
        for client in &self.all {
            client.pacer.set_rate(client.asked.max_bandwidth);
        }
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
/// and the repeats before the first byte are inside; what comes out is the verdict.
#[derive(Debug)]
pub struct Client {
    pub(super) name: Arc<str>,
    /// What it was built from.
    asked: Upstream,
    /// The mirrors in order, then the upstream itself.
    pub(super) mirrors: Vec<Arc<Endpoint>>,
    pub(super) own: Arc<Endpoint>,
    pub(super) repeats: Repeats,
    pub(super) offline: bool,
    pub(super) read_timeout: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) tuning: Tuning,
    pub(super) late: LateQuestions,
    /// `max_connections`: requests in flight, bodies included.
    pub(super) slots: Option<Arc<Semaphore>>,
    /// `max_bandwidth`, for this client and for those of earlier configurations whose downloads run.
    pacer: Arc<Pacer>,
    /// What mirrors got wrong.
    pub(super) distrust: Distrust,
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
    /// The address that said it: `https://mirror.example`.
    pub address: Arc<str>,
}

/// A manifest's bytes, unverified.
#[derive(Clone, Debug)]
pub struct ManifestBody {
    pub bytes: Bytes,
    /// The Content-Type header as it came.
    pub content_type: Option<String>,
    /// Docker-Content-Digest of the first hop that had one (R-U22).
    pub digest: Option<Digest>,
    /// The address that sent it: `https://mirror.example`.
    pub address: Arc<str>,
}

#[derive(Clone, Debug)]
pub struct BlobHead {
    pub size: Option<u64>,
    /// Set if a GET said it, which was broken off.
    pub by_get: bool,
    /// Set if a HEAD was refused and the headers of a GET say the contrary, or if what is there calls itself a web page. That
    /// answers a HEAD; it shows nothing of a repository that would have to prove what it has (L11).
    pub proves_nothing: bool,
}

impl BlobHead {
    fn of(reply: &Reply) -> BlobHead {
        BlobHead {
            size: body::content_length(&reply.headers),
            by_get: reply.get_for_head.is_some(),
            proves_nothing: reply.get_for_head == Some(Doubt::Refused) || reply.is_web_page(),
        }
    }
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
    /// `pacer`: that of the configuration before, whose rate is another until [`Clients::adopt`].
    fn build(
        asked: Upstream,
        pacer: Option<Arc<Pacer>>,
        logins: &Arc<Logins>,
        sources: &Sources,
        tuning: Tuning,
        via: &Via,
    ) -> Result<Client, String> {
        let upstream = &asked;
        let name: Arc<str> = upstream.name.as_str().into();
        let slots = upstream
            .max_connections
            .map(|n| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS))));
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
                role: if is_own { Role::Registry } else { Role::Mirror },
                first_pause: tuning.first_pause,
                slots: slots.clone(),
                redirect_hosts: upstream.redirect_hosts.clone(),
                trusted_realms: upstream.trusted_realms.clone(),
                read_timeout: upstream.read_timeout,
                budget_floor: upstream.budget_floor,
            };
            Ok::<_, String>(Arc::new(Endpoint::new(place, transport, credentials, settings)))
        };
        let mirrors: Result<Vec<_>, _> = upstream.mirrors.iter().map(|url| endpoint(url, false)).collect();
        Ok(Client {
            mirrors: mirrors?,
            own: endpoint(&upstream.url, true)?,
            offline: upstream.offline,
            read_timeout: upstream.read_timeout,
            repeats: Repeats::new(Policy {
                pause: tuning.pause,
                repeats: tuning.retries,
                ride_out: tuning.ride_out,
            }),
            answer_timeout: upstream.answer_timeout,
            late: LateQuestions::new(name.clone(), tuning.headers, upstream.max_connections),
            tuning,
            slots,
            pacer: pacer.unwrap_or_else(|| Arc::new(Pacer::new(&name, upstream.max_bandwidth))),
            distrust: Distrust::default(),
            logins_used: moka::sync::Cache::new(MAX_REPOSITORIES),
            name,
            asked,
        })
    }

    /// Goes on with what is known of the addresses that it shares with another client.
    fn inherit(&mut self, before: &Client) {
        self.distrust = before.distrust.clone();
        self.own.inherit(&before.own);
        for mirror in &self.mirrors {
            before.mirrors.iter().for_each(|known| mirror.inherit(known));
        }
        if !self.offline {
            self.endpoints()
                .filter(|endpoint| endpoint.health.is_down())
                .for_each(probe::watch);
        }
    }

    /// The mirrors in order, then the registry itself.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.mirrors.iter().chain([&self.own])
    }

    /// How each address is doing that was asked so far, mirrors first.
    pub fn addresses(&self) -> Vec<AddressState> {
        self.endpoints()
            .filter_map(|endpoint| endpoint.health.state())
            .collect()
    }

    /// Why the registry itself fails at the moment, in one word, if the last request to it did.
    pub fn failing(&self) -> Option<&'static str> {
        self.own.health.failing()
    }

    /// Returns whether the registry itself is down, and a warning has said so.
    pub fn is_logged_down(&self) -> bool {
        self.own.health.is_logged_down()
    }

    /// Why the registry itself fails at the moment, in a sentence, if the last request to it did.
    pub fn why_failing(&self) -> Option<Arc<str>> {
        self.own.health.why_failing()
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
                get_fallback: GetFallback::Never,
                within: None,
                as_nobody: true,
                list: None,
                without: &[],
            },
        };
        question.as_nobody = true;
        // R-U27. A GET of a manifest may count as a pull of the anonymous: not of their last ones.
        let may_cost = matches!(probe, Probe::Manifest(_)) && self.own.budgets.is_low(&Credential::Anonymous);
        if !may_cost {
            question.get_fallback = GetFallback::Doubtful;
        }
        let asked = self.ask_itself(&question).await;
        match asked {
            // A login page is shown to everybody, in place of anything.
            Ok(reply) if reply.is_web_page() => Err(self.error(ErrorKind::Protocol(WEB_PAGE.into()))),
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
        self.endpoints().for_each(|endpoint| endpoint.health.export());
    }

    /// A HEAD may be refused where a GET would do (R-U27, [`UpstreamError::is_doubtful_head`]): the caller, who knows what a
    /// GET costs, decides.
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

    /// A manifest of at most `most` bytes. A larger one is `TooLarge`.
    pub async fn get_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        most: usize,
    ) -> Result<ManifestBody, UpstreamError> {
        let question = manifest(Method::GET, repository, reference, Take::Whole(most));
        let (reply, _) = self.ask(&question).await?;
        let Body::Document(bytes) = reply.body else {
            return Err(self.error(ErrorKind::Protocol("no document".into())));
        };
        Ok(ManifestBody {
            bytes,
            content_type: body::text(&reply.headers, &CONTENT_TYPE).map(str::to_owned),
            digest: reply.digest,
            address: reply.address,
        })
    }

    /// HEAD of a blob, which a GET may follow (`fallback`).
    pub async fn head_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        fallback: GetFallback,
    ) -> Result<BlobHead, UpstreamError> {
        let mut question = blob(Method::HEAD, repository, digest, Take::Head);
        question.get_fallback = fallback;
        let (reply, _) = self.ask(&question).await?;
        Ok(BlobHead::of(&reply))
    }

    /// HEAD of a blob at the registry itself, mirrors left aside: what it confirms may be given out from the cache (L11).
    pub async fn confirm_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        fallback: GetFallback,
    ) -> Result<BlobHead, UpstreamError> {
        let mut question = blob(Method::HEAD, repository, digest, Take::Head);
        question.get_fallback = fallback;
        Ok(BlobHead::of(&self.ask_to_confirm(&question).await?))
    }

    /// `offset` > 0 asks with `Range: bytes=offset-`. A 416 is `Protocol`.
    pub async fn get_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        self.get_blob_in(Form::Plain, repository, digest, offset, &[], None)
            .await
    }

    /// The same, of a store whose first answer was `was_unpacked` if `form` says so, and answered `within` some time, if
    /// that is less than `answer_timeout`. Mirrors that `without` names are left out.
    pub async fn get_blob_in(
        &self,
        form: Form,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
        without: &[Arc<str>],
        within: Option<Duration>,
    ) -> Result<BlobStream, UpstreamError> {
        let mut question = blob(Method::GET, repository, digest, Take::Stream);
        question.within = within;
        question.range = (offset > 0).then_some(Span::from(offset));
        question.as_stored = form == Form::AsStored;
        question.without = without;
        let (reply, slot) = self.ask(&question).await?;
        self.stream(reply, slot)
    }

    /// Bytes `start..end` and no others, for a transfer that has a connection already: where the upstream does not
    /// answer with just these, that is `Protocol`. It is asked once. `None` when `max_connections` leaves no room now.
    /// Mirrors that `without` names are left out.
    pub async fn get_blob_part(
        &self,
        repository: &Repository,
        digest: &Digest,
        span: Range<u64>,
        without: &[Arc<str>],
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
        question.without = without;
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
            reply.address,
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
            get_fallback: GetFallback::Never,
            within: None,
            as_nobody: false,
            list: Some(List {
                field: "tags",
                items: ItemKind::Tags,
                sink,
            }),
            without: &[],
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
            get_fallback: GetFallback::Never,
            within: None,
            as_nobody: false,
            list: Some(List {
                field: "manifests",
                items: ItemKind::Documents,
                sink,
            }),
            without: &[],
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
        address: reply.address.clone(),
    }
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
