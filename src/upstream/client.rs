//! One upstream, asked five questions.
//!
//! Here: mirrors in their order, the deadline for headers, the quick retries, and what counts as an answer to which
//! question. How an endpoint is brought to answer is in `endpoint`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use url::Url;

pub use super::blob::BlobStream;
use super::blob::Extent;
use super::credentials::{Credentials, Logins, Sources};
use super::endpoint::{Answer, Ask, Endpoint, Settings};
use super::error::{ErrorKind, UpstreamError};
use super::transport::Transport;
use super::{body, link};
use crate::config::{Config, Upstream};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
use crate::oci::{Digest, HostPort, Reference, Repository, Tag, media_type};

const MAX_TAGS_BYTES: usize = 16 * 1024 * 1024;
const MAX_REFERRERS_BYTES: usize = 4 * 1024 * 1024;
const MAX_PAGES: usize = 1_000;
const MAX_REPOSITORIES: u64 = 10_000;

/// Figures that only tests change.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// For tokens, redirects and the request together: containerd gives up after 30 s without headers (R-C18).
    pub headers: Duration,
    /// For the whole of a small document.
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
}

impl Clients {
    /// Reads CA files and client certificates; dials nothing. Login files and proxies are found by this process's environment.
    pub fn new(config: &Config) -> Result<Clients, BuildError> {
        let sources = Sources::from_env(|name| std::env::var(name).ok());
        Clients::with(config, &sources, Tuning::default())
    }

    /// The same, with everything from outside given.
    pub fn with(config: &Config, sources: &Sources, tuning: Tuning) -> Result<Clients, BuildError> {
        let logins = Arc::new(Logins::new(sources));
        let mut clients = Clients {
            all: Vec::new(),
            by_name: HashMap::new(),
        };
        for upstream in &config.upstreams {
            let built = Client::build(upstream, config.cache.offline, &logins, sources, tuning);
            let client = built.map_err(|what| BuildError {
                upstream: upstream.name.to_string(),
                what,
            })?;
            clients.by_name.insert(upstream.name.clone(), clients.all.len());
            clients.all.push(Arc::new(client));
        }
        Ok(clients)
    }

    /// By canonical name, as in `Config::upstreams`.
    pub fn get(&self, name: &HostPort) -> Option<&Arc<Client>> {
        self.all.get(*self.by_name.get(name)?)
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

/// A client of one upstream. Every method: token flow, redirects, mirrors, breaker, header deadline
/// and the quick retries before the first byte are inside; what comes out is the verdict.
#[derive(Debug)]
pub struct Client {
    name: Arc<str>,
    /// The mirrors in order, then the upstream itself.
    mirrors: Vec<Endpoint>,
    own: Endpoint,
    offline: bool,
    read_timeout: Duration,
    tuning: Tuning,
    /// `max_connections`: requests in flight, bodies included.
    slots: Option<Arc<Semaphore>>,
    /// Whether stored credentials were behind a repository's last answer.
    logins_used: moka::sync::Cache<Repository, bool>,
}

/// What a HEAD of a manifest told; `None` where the upstream left it out.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    /// Essence, lower-case.
    pub media_type: Option<String>,
    pub size: Option<u64>,
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

/// Descriptors as they came, pages merged.
#[derive(Clone, Debug)]
pub enum Referrers {
    /// The answer of the referrers API: the `manifests` of every page.
    Listed(Vec<serde_json::Value>),
    /// 404, 405, 400 or another Content-Type: the upstream has no such API (R-S21).
    Unsupported,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Blob => "blob",
            Kind::Tags => "tags",
            Kind::Referrers => "referrers",
        }
    }
}

/// One question, as it goes to any endpoint.
struct Question<'a> {
    kind: Kind,
    method: Method,
    repository: &'a Repository,
    /// Behind `/v2/`.
    path: String,
    query: Option<&'static str>,
    accept: &'static str,
    from: Option<u64>,
    take: Take,
}

/// What of the answer is wanted.
#[derive(Clone, Copy)]
enum Take {
    Head,
    /// A document of at most so many bytes.
    Whole(usize),
    /// A list, page after page, of at most so many bytes in all.
    Pages(usize),
    Stream,
}

struct Reply {
    headers: HeaderMap,
    digest: Option<Digest>,
    with_credentials: bool,
    body: Body,
}

enum Body {
    None,
    Documents(Vec<Bytes>),
    Stream(Box<(Extent, reqwest::Response)>),
}

impl Client {
    fn build(
        upstream: &Upstream,
        offline: bool,
        logins: &Arc<Logins>,
        sources: &Sources,
        tuning: Tuning,
    ) -> Result<Client, String> {
        let name: Arc<str> = upstream.name.as_str().into();
        let endpoint = |url: &Url, is_own: bool| {
            let base = base(url);
            let transport = Transport::new(&base, upstream, sources)?;
            // A mirror is another host: the upstream's password is none of its business (L7).
            let fixed = upstream.credentials.clone().filter(|_| is_own);
            let credentials = Credentials::new(fixed, logins.clone(), &base);
            let settings = Settings {
                upstream: name.clone(),
                redirect_hosts: upstream.redirect_hosts.clone(),
                trusted_realms: upstream.trusted_realms.clone(),
                read_timeout: upstream.read_timeout,
            };
            Ok::<_, String>(Endpoint::new(base, transport, credentials, settings))
        };
        let mirrors: Result<Vec<_>, _> = upstream.mirrors.iter().map(|url| endpoint(url, false)).collect();
        Ok(Client {
            mirrors: mirrors?,
            own: endpoint(&upstream.url, true)?,
            offline: offline || upstream.offline,
            read_timeout: upstream.read_timeout,
            tuning,
            slots: upstream
                .max_connections
                .map(|n| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)))),
            logins_used: moka::sync::Cache::new(MAX_REPOSITORIES),
            name,
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether stored credentials were behind this repository's last answer (L8), sent to the registry or for a
    /// token; an anonymous token does not count. Before the first answer: whether there are any to send.
    pub fn has_credentials(&self, repository: &Repository) -> bool {
        let known = self.logins_used.get(repository);
        known.unwrap_or_else(|| self.own.has_login(repository) || self.mirrors.iter().any(|m| m.has_login(repository)))
    }

    /// The time left until the breaker closes, if it is open.
    pub fn paused(&self) -> Option<Duration> {
        self.own.paused()
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
        Ok(ManifestHead {
            digest: reply.digest,
            media_type: body::text(&reply.headers, &CONTENT_TYPE).and_then(media_type::essence),
            size: body::content_length(&reply.headers),
        })
    }

    pub async fn get_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestBody, UpstreamError> {
        let question = manifest(Method::GET, repository, reference, Take::Whole(MAX_MANIFEST_BYTES));
        let (reply, _) = self.ask(&question).await?;
        let Body::Documents(mut documents) = reply.body else {
            return Err(self.error(ErrorKind::Protocol("no document".into())));
        };
        Ok(ManifestBody {
            bytes: documents.pop().unwrap_or_default(),
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

    /// `offset` > 0 asks with `Range: bytes=offset-`. A 416 is `Protocol`.
    pub async fn get_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        let mut question = blob(Method::GET, repository, digest, Take::Stream);
        question.from = (offset > 0).then_some(offset);
        let (reply, slot) = self.ask(&question).await?;
        let Body::Stream(stream) = reply.body else {
            return Err(self.error(ErrorKind::Protocol("no body".into())));
        };
        let (extent, response) = *stream;
        Ok(BlobStream::new(
            extent,
            response,
            self.name.clone(),
            self.read_timeout,
            slot,
        ))
    }

    /// Every tag, pages followed. What is no tag by the specification's grammar is left out.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, UpstreamError> {
        let question = Question {
            kind: Kind::Tags,
            method: Method::GET,
            repository,
            path: format!("{repository}/tags/list"),
            query: Some("n=1000"),
            accept: "application/json",
            from: None,
            take: Take::Pages(MAX_TAGS_BYTES),
        };
        let mut tags = Vec::new();
        for item in self.list(&question, "tags").await? {
            if let serde_json::Value::String(text) = item
                && text.parse::<Tag>().is_ok()
            {
                tags.push(text);
            }
        }
        Ok(tags)
    }

    pub async fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Referrers, UpstreamError> {
        let question = Question {
            kind: Kind::Referrers,
            method: Method::GET,
            repository,
            path: format!("{repository}/referrers/{subject}"),
            query: None,
            accept: media_type::OCI_INDEX,
            from: None,
            take: Take::Pages(MAX_REFERRERS_BYTES),
        };
        match self.list(&question, "manifests").await {
            Ok(items) => Ok(Referrers::Listed(items)),
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

    /// The array `field` of every page, in one.
    async fn list(&self, question: &Question<'_>, field: &str) -> Result<Vec<serde_json::Value>, UpstreamError> {
        let (reply, _) = self.ask(question).await?;
        let Body::Documents(documents) = reply.body else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for document in documents {
            let json: Result<serde_json::Value, _> = serde_json::from_slice(&document);
            match json.ok().as_mut().and_then(|json| json.as_object_mut()?.remove(field)) {
                Some(serde_json::Value::Array(items)) => all.extend(items),
                // Some registries write null where nothing is left.
                Some(serde_json::Value::Null) => {}
                _ => return Err(self.error(ErrorKind::Protocol(format!("a list without `{field}`").into()))),
            }
        }
        Ok(all)
    }

    fn error(&self, kind: ErrorKind) -> UpstreamError {
        UpstreamError::new(&self.name, kind)
    }

    /// Mirrors first, in order; whatever goes wrong there, the upstream itself has the last word.
    async fn ask(&self, question: &Question<'_>) -> Result<(Reply, Option<OwnedSemaphorePermit>), UpstreamError> {
        if self.offline {
            return Err(self.error(ErrorKind::Offline));
        }
        let slot = match &self.slots {
            // Waiting for a slot is Larder's own queue: the upstream's deadline begins after it.
            Some(slots) => slots.clone().acquire_owned().await.ok(),
            None => None,
        };
        let deadline = Instant::now() + self.tuning.headers;
        let mut behind = self.mirrors.len() as u32;
        for mirror in &self.mirrors {
            // A mirror that hangs must leave time for those behind it.
            let share = deadline.saturating_duration_since(Instant::now()) / (behind + 1);
            behind -= 1;
            match self.at(mirror, question, Instant::now() + share).await {
                Ok(reply) => return Ok((self.note(question, reply), slot)),
                Err(error) => {
                    tracing::debug!(upstream = %self.name, mirror = mirror.base.host_str(), %error, "mirror failed")
                }
            }
        }
        let reply = self
            .at(&self.own, question, deadline)
            .await
            .map_err(|kind| self.error(kind))?;
        Ok((self.note(question, reply), slot))
    }

    fn note(&self, question: &Question<'_>, reply: Reply) -> Reply {
        self.logins_used
            .insert(question.repository.clone(), reply.with_credentials);
        reply
    }

    /// One endpoint, with quick repeats of what may pass. Nothing has been handed out yet, so a repeat is free of doubt.
    async fn at(&self, endpoint: &Endpoint, question: &Question<'_>, deadline: Instant) -> Result<Reply, ErrorKind> {
        let mut repeats = 0;
        loop {
            let error = match self.once(endpoint, question, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let pause = self.pause(repeats);
            if !may_pass(&error) || repeats >= self.tuning.retries || Instant::now() + pause >= deadline {
                return Err(error);
            }
            repeats += 1;
            tracing::debug!(upstream = %self.name, %error, repeats, "asking again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Doubles with each repeat, with jitter so that a fleet does not knock in step.
    fn pause(&self, repeats: u32) -> Duration {
        let (shortest, longest) = self.tuning.pause;
        let full = (shortest * 2u32.pow(repeats.min(8) + 1)).min(longest);
        shortest + full.saturating_sub(shortest).mul_f64(fastrand::f64())
    }

    async fn once(&self, endpoint: &Endpoint, question: &Question<'_>, deadline: Instant) -> Result<Reply, ErrorKind> {
        let mut url = endpoint.url(&question.path);
        url.set_query(question.query);
        let answer = self.answer(endpoint, question, &url, deadline).await?;
        let mut reply = Reply {
            headers: answer.response.headers().clone(),
            digest: answer.digest,
            with_credentials: answer.with_credentials,
            body: Body::None,
        };
        match question.take {
            Take::Head => {}
            Take::Whole(cap) => reply.body = Body::Documents(vec![self.document(answer, cap).await?]),
            Take::Pages(cap) => reply.body = Body::Documents(self.pages(endpoint, question, url, answer, cap).await?),
            Take::Stream => {
                let response = answer.response;
                let extent = Extent::of(response.status(), response.headers(), question.from)?;
                reply.body = Body::Stream(Box::new((extent, response)));
            }
        }
        Ok(reply)
    }

    /// Headers that are what this question may be answered with.
    async fn answer(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        url: &Url,
        deadline: Instant,
    ) -> Result<Answer, ErrorKind> {
        let ask = Ask {
            kind: question.kind.as_str(),
            method: &question.method,
            url,
            accept: question.accept,
            from: question.from,
            repository: question.repository,
        };
        let answer = match tokio::time::timeout_at(deadline, endpoint.ask(&ask)).await {
            Err(_) => return Err(ErrorKind::Timeout(self.tuning.headers)),
            Ok(Err(ErrorKind::Status { status: 416, .. })) => {
                return Err(ErrorKind::Protocol("416 to a Range within the blob".into()));
            }
            Ok(answer) => answer?,
        };
        check(question, answer.response.status(), answer.response.headers())?;
        Ok(answer)
    }

    async fn document(&self, answer: Answer, cap: usize) -> Result<Bytes, ErrorKind> {
        let reading = body::whole(answer.response, cap, self.read_timeout);
        let timeout = self.tuning.document;
        let bytes = tokio::time::timeout(timeout, reading)
            .await
            .map_err(|_| ErrorKind::Timeout(timeout))??;
        metrics::counter!("larder_upstream_bytes_total", "upstream" => self.name.to_string())
            .increment(bytes.len() as u64);
        Ok(bytes)
    }

    /// The first page is here, the others are asked for at the same endpoint (R-X2).
    async fn pages(
        &self,
        endpoint: &Endpoint,
        question: &Question<'_>,
        mut url: Url,
        first: Answer,
        cap: usize,
    ) -> Result<Vec<Bytes>, ErrorKind> {
        let mut seen = HashSet::from([url.clone()]);
        let mut documents = Vec::new();
        let mut left = cap;
        let mut answer = first;
        loop {
            let next = link::next(&endpoint.base, &url, answer.response.headers())
                .map_err(|what| ErrorKind::Refused(what.into()))?;
            let document = self.document(answer, left).await?;
            left -= document.len();
            documents.push(document);
            let Some(next) = next else {
                return Ok(documents);
            };
            if !seen.insert(next.clone()) {
                return Err(ErrorKind::Protocol("its pages lead in a circle".into()));
            }
            if documents.len() >= MAX_PAGES {
                return Err(ErrorKind::Protocol(format!("more than {MAX_PAGES} pages").into()));
            }
            answer = self
                .answer(endpoint, question, &next, Instant::now() + self.tuning.headers)
                .await?;
            url = next;
        }
    }
}

/// Failures after which the same request may succeed a moment later. Never a 429, never a verdict.
fn may_pass(error: &ErrorKind) -> bool {
    match error {
        ErrorKind::Connect(_) | ErrorKind::Cut(_) => true,
        ErrorKind::Status { status, .. } => *status == 408 || (*status >= 500 && *status != 501),
        _ => false,
    }
}

fn check(question: &Question<'_>, status: StatusCode, headers: &HeaderMap) -> Result<(), ErrorKind> {
    let protocol = |what: String| Err(ErrorKind::Protocol(what.into()));
    if status == StatusCode::PARTIAL_CONTENT && question.from.is_none() {
        return protocol("206 to a request without Range".to_owned());
    }
    // Decoding would change the bytes, and a decoder can be bombed (R-X12).
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !matches!(encoding.as_bytes().trim_ascii(), b"" | b"identity")
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes());
        return protocol(format!("Content-Encoding {:?}", body::one_line(&encoding, 40)));
    }
    let content_type = body::text(headers, &CONTENT_TYPE).unwrap_or_default();
    match question.kind {
        // A blob's Content-Type says nothing (R-U25); its digest does.
        Kind::Blob => Ok(()),
        // Not an error: a registry without this API answers with its front page (R-S21).
        Kind::Referrers if media_type::essence(content_type).as_deref() != Some(media_type::OCI_INDEX) => {
            Err(ErrorKind::NotFound { status: 200 })
        }
        _ if media_type::is_web_page(content_type) => protocol("a web page".to_owned()),
        _ => Ok(()),
    }
}

fn manifest<'a>(method: Method, repository: &'a Repository, reference: &Reference, take: Take) -> Question<'a> {
    Question {
        kind: Kind::Manifest,
        method,
        repository,
        path: format!("{repository}/manifests/{reference}"),
        query: None,
        accept: media_type::MANIFEST_ACCEPT,
        from: None,
        take,
    }
}

fn blob<'a>(method: Method, repository: &'a Repository, digest: &Digest, take: Take) -> Question<'a> {
    Question {
        kind: Kind::Blob,
        method,
        repository,
        path: format!("{repository}/blobs/{digest}"),
        query: None,
        accept: "*/*",
        from: None,
        take,
    }
}

/// Scheme, host, port and base path of a configured URL; user info would become an Authorization of its own.
fn base(url: &Url) -> Url {
    let mut base = url.clone();
    let _ = base.set_username("");
    let _ = base.set_password(None);
    base.set_query(None);
    base.set_fragment(None);
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", url.path()));
    }
    base
}
