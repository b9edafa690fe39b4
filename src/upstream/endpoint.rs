//! One address of an upstream, its own or a mirror's, and the dance that gets an answer out of it.
//!
//! A request goes out with what was learned from the last ones (the demand remembered for its repository or for
//! the whole endpoint), so that a hot upstream costs no 401 per request. An answer of 400, 401 or 403 to something
//! remembered is not believed at once: it is forgotten, the request repeated without Authorization, and
//! the challenge that comes then is answered afresh, once (R-U3, R-U43, R-U47). Every repeat is built from the
//! question again, so that none loses its Accept or Range (R-U51).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::breaker::Breaker;
use super::challenge::{self, Demand};
use super::credentials::{Credential, Credentials};
use super::error::ErrorKind;
use super::realm::{self, Trust};
use super::token::{self, Context, Token, TokenKey, Tokens};
use super::transport::{Named, Outgoing, Transport, count_refusal, shown};
use super::{body, redirect};
use crate::oci::{Digest, HostPort, Repository};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Repositories whose demand is remembered.
const MAX_REPOSITORIES: u64 = 10_000;

/// One request as the question wants it; everything else is this room's business.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// `manifest`, `blob`, `tags`, `referrers`: the metric's label.
    pub kind: &'static str,
    pub method: &'a Method,
    pub url: &'a Url,
    pub accept: &'static str,
    pub from: Option<u64>,
    pub repository: &'a Repository,
}

/// A success: 200 or 206, after all redirects and authentication.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    /// Docker-Content-Digest of the first hop that had one (R-U22).
    pub digest: Option<Digest>,
    /// Whether stored credentials were behind it (L8).
    pub with_credentials: bool,
}

/// What is known of how a repository wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// It answered without Authorization.
    Open,
    Demands(Demand),
}

#[derive(Debug)]
pub struct Endpoint {
    /// As configured, without user info, ending in `/`.
    pub base: Url,
    upstream: Arc<str>,
    transport: Transport,
    credentials: Credentials,
    breaker: Breaker,
    tokens: Tokens,
    redirect_hosts: Option<Vec<HostPort>>,
    trusted_realms: Vec<HostPort>,
    read_timeout: Duration,
    by_repository: moka::sync::Cache<Repository, Known>,
    /// The last demand of any repository: a guess for those not yet met.
    general: Mutex<Option<Demand>>,
}

/// The Authorization of one attempt.
enum Carried {
    Nothing,
    Token {
        key: TokenKey,
        token: Arc<Token>,
        /// Got for a demand that was remembered, not made just now.
        guessed: bool,
    },
    Basic(HeaderValue),
    /// `registrytoken`: there is no other.
    Fixed(HeaderValue),
}

/// A Bearer demand, and who made it.
struct Wanted<'a> {
    origin: &'a Url,
    realm: &'a str,
    service: Option<String>,
    scope: Option<String>,
}

/// Where the last hop of one attempt ended.
struct Walked {
    response: Response,
    digest: Option<Digest>,
    /// Whether the endpoint itself gave this answer, to the Authorization it was sent.
    is_home: bool,
    host: String,
}

pub struct Settings {
    pub upstream: Arc<str>,
    pub redirect_hosts: Option<Vec<HostPort>>,
    pub trusted_realms: Vec<HostPort>,
    pub read_timeout: Duration,
}

impl Endpoint {
    pub fn new(base: Url, transport: Transport, credentials: Credentials, settings: Settings) -> Endpoint {
        Endpoint {
            base,
            transport,
            credentials,
            breaker: Breaker::default(),
            tokens: Tokens::new(settings.upstream.clone()),
            upstream: settings.upstream,
            redirect_hosts: settings.redirect_hosts,
            trusted_realms: settings.trusted_realms,
            read_timeout: settings.read_timeout,
            by_repository: moka::sync::Cache::new(MAX_REPOSITORIES),
            general: Mutex::new(None),
        }
    }

    /// `<base>/v2/<rest>`: a base path of the product's comes first (R-U50).
    pub fn url(&self, rest: &str) -> Url {
        let mut url = self.base.clone();
        let path = format!("{}/v2/{rest}", self.base.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    pub fn paused(&self) -> Option<Duration> {
        self.breaker.longest_left()
    }

    /// Whether stored credentials exist for this repository.
    pub fn has_login(&self, repository: &Repository) -> bool {
        self.credentials
            .find(Some(repository))
            .map_or(true, |c| !c.is_anonymous())
    }

    /// The verdict. Time is bounded by the caller.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, ErrorKind> {
        let credential = self
            .credentials
            .find(Some(ask.repository))
            .map_err(|e| ErrorKind::Auth(e.into()))?;
        if let Some(retry_after) = self.breaker.left(&credential) {
            return Err(ErrorKind::RateLimited { retry_after });
        }
        let mut dance = Dance {
            endpoint: self,
            ask,
            credential,
            started: Instant::now(),
            answered: None,
            failed: None,
            has_doubted: false,
        };
        dance.run().await
    }

    fn known(&self, repository: &Repository) -> (Option<Known>, Option<Demand>) {
        let own = self.by_repository.get(repository);
        let general = self.general.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (own, general)
    }

    fn learn(&self, repository: &Repository, known: Known) {
        if let Known::Demands(demand) = &known {
            let mut general = self.general.lock().unwrap_or_else(PoisonError::into_inner);
            if general.as_ref() != Some(demand) {
                *general = Some(demand.clone());
            }
        }
        if self.by_repository.get(repository).as_ref() != Some(&known) {
            self.by_repository.insert(repository.clone(), known);
        }
    }

    async fn token(
        &self,
        wanted: Wanted<'_>,
        credential: &Arc<Credential>,
    ) -> Result<(TokenKey, Arc<Token>), ErrorKind> {
        let (realm, trust) =
            realm::judge(wanted.origin, wanted.realm, &self.trusted_realms).map_err(|e| self.refuse(e))?;
        let may_see = trust != Trust::Stranger;
        if !may_see && !credential.is_anonymous() {
            let realm = shown(&realm);
            tracing::warn!(upstream = %self.upstream, realm, "this token server is not in trusted_realms: asked without credentials");
        }
        let key = TokenKey {
            origin: wanted.origin.origin().ascii_serialization(),
            realm,
            service: wanted.service,
            scope: wanted.scope,
            credential: if may_see {
                credential.clone()
            } else {
                Arc::new(Credential::Anonymous)
            },
        };
        let context = Context {
            transport: &self.transport,
            breaker: &self.breaker,
            named: if trust == Trust::Named {
                Named::ByOperator
            } else {
                Named::ByUpstream
            },
            read_timeout: self.read_timeout,
        };
        let token = self.tokens.get(&key, context).await?;
        Ok((key, token))
    }

    /// One attempt: the request and the redirects it leads through.
    async fn walk(&self, ask: &Ask<'_>, authorization: Option<&HeaderValue>) -> Result<Walked, ErrorKind> {
        let mut url = ask.url.clone();
        let mut authorization = authorization.cloned();
        let mut is_home = true;
        let mut digest = None;
        let mut redirects = 0;
        // Foreign hosts that were sent an anonymous token already.
        let mut answered: HashSet<String> = HashSet::new();
        loop {
            let named = match is_home || redirect::listed(&url, self.redirect_hosts.as_deref()) == Some(true) {
                true => Named::ByOperator,
                false => Named::ByUpstream,
            };
            let response = self.hop(ask, &url, named, authorization.as_ref()).await?;
            let said = body::text(response.headers(), &DOCKER_CONTENT_DIGEST);
            digest = digest.or_else(|| said.and_then(|text| text.parse().ok()));
            let host = url.host_str().unwrap_or_default().to_owned();
            if redirect::is_redirect(response.status()) {
                redirects += 1;
                if redirects > redirect::MAX_HOPS {
                    return Err(self.refuse(format!("more than {} redirects", redirect::MAX_HOPS)));
                }
                let next = self.next_hop(&url, response.headers())?;
                body::drain(response, self.read_timeout).await;
                if next.origin() != url.origin() {
                    authorization = None;
                    is_home = false;
                }
                url = next;
                continue;
            }
            let origin = url.origin().ascii_serialization();
            if response.status() == StatusCode::UNAUTHORIZED && !is_home && answered.insert(origin) {
                // The host that we were sent to wants a token of its own: the anonymous one (R-U45).
                if let Ok(Demand::Bearer { realm, service, scope }) = demand_of(response.headers()) {
                    body::drain(response, self.read_timeout).await;
                    let wanted = Wanted {
                        origin: &url,
                        realm: &realm,
                        service,
                        scope,
                    };
                    let (_, token) = self.token(wanted, &Arc::new(Credential::Anonymous)).await?;
                    authorization = Some(token.header.clone());
                    continue;
                }
            }
            return Ok(Walked {
                response,
                digest,
                is_home,
                host,
            });
        }
    }

    fn next_hop(&self, url: &Url, headers: &HeaderMap) -> Result<Url, ErrorKind> {
        let next = redirect::target(url, headers.get(LOCATION)).map_err(|e| self.refuse(e))?;
        let leaves = next.host_str() != self.base.host_str()
            || next.port_or_known_default() != self.base.port_or_known_default();
        if leaves && redirect::listed(&next, self.redirect_hosts.as_deref()) == Some(false) {
            return Err(self.refuse(format!("{} is not in redirect_hosts", shown(&next))));
        }
        Ok(next)
    }

    fn refuse(&self, what: String) -> ErrorKind {
        count_refusal(&self.upstream);
        ErrorKind::Refused(what.into())
    }

    async fn hop(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        named: Named,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, ErrorKind> {
        let started = Instant::now();
        let out = Outgoing {
            method: ask.method,
            accept: ask.accept,
            from: ask.from,
            authorization,
            form: None,
        };
        let outcome = self.transport.send(url, named, &out).await;
        let status = match &outcome {
            Ok(response) => response.status().as_u16().to_string(),
            Err(_) => "error".to_owned(),
        };
        tracing::debug!(
            upstream = %self.upstream,
            method = %ask.method,
            url = shown(url),
            status,
            ms = started.elapsed().as_millis() as u64,
            "upstream request"
        );
        metrics::counter!(
            "larder_upstream_requests_total",
            "upstream" => self.upstream.to_string(),
            "kind" => ask.kind,
            "status" => status
        )
        .increment(1);
        outcome
    }
}

fn demand_of(headers: &HeaderMap) -> Result<Demand, String> {
    let lines = headers.get_all(WWW_AUTHENTICATE);
    challenge::choose(&challenge::parse(lines.iter().map(HeaderValue::as_bytes)))
}

impl Carried {
    fn header(&self) -> Option<&HeaderValue> {
        match self {
            Carried::Nothing => None,
            Carried::Token { token, .. } => Some(&token.header),
            Carried::Basic(header) | Carried::Fixed(header) => Some(header),
        }
    }

    fn with_credentials(&self) -> bool {
        match self {
            Carried::Nothing => false,
            Carried::Token { key, .. } => !key.credential.is_anonymous(),
            Carried::Basic(_) | Carried::Fixed(_) => true,
        }
    }
}

/// One question at one endpoint.
struct Dance<'a> {
    endpoint: &'a Endpoint,
    ask: &'a Ask<'a>,
    credential: Arc<Credential>,
    started: Instant,
    /// The demand that the current Authorization answers; remembered if it works.
    answered: Option<Demand>,
    /// A remembered demand that could not be met; not tried again if the endpoint insists on it.
    failed: Option<(Demand, ErrorKind)>,
    /// Whether something remembered was refused and then forgotten. That happens once.
    has_doubted: bool,
}

impl Dance<'_> {
    async fn run(&mut self) -> Result<Answer, ErrorKind> {
        let mut carried = self.guess().await?;
        // Ends: from nothing it goes on to something, and back to nothing only once.
        loop {
            let walked = self.endpoint.walk(self.ask, carried.header()).await?;
            let status = walked.response.status().as_u16();
            if !walked.is_home || !matches!(status, 400 | 401 | 403) {
                return self.finish(walked, &carried).await;
            }
            if let Carried::Nothing = carried {
                let Some(demand) = self.demand(&walked.response).await? else {
                    return self.finish(walked, &carried).await;
                };
                body::drain(walked.response, self.endpoint.read_timeout).await;
                carried = self.satisfy(demand).await?;
            } else if self.is_doubtful(&carried, &walked.response) {
                if let Carried::Token { key, token, .. } = &carried
                    && token.born < self.started
                {
                    self.endpoint.tokens.drop_refused(key, token).await;
                }
                body::drain(walked.response, self.endpoint.read_timeout).await;
                self.has_doubted = true;
                self.answered = None;
                carried = Carried::Nothing;
            } else {
                return self.finish(walked, &carried).await;
            }
        }
    }

    /// Whether a refusal may be the fault of what was remembered.
    fn is_doubtful(&self, carried: &Carried, refusal: &Response) -> bool {
        let fault = match carried {
            Carried::Nothing | Carried::Fixed(_) => false,
            Carried::Token { token, guessed, .. } => *guessed || token.born < self.started,
            // Passwords do not age; but a registry may want tokens where it took passwords.
            Carried::Basic(_) => matches!(demand_of(refusal.headers()), Ok(Demand::Bearer { .. })),
        };
        fault && !self.has_doubted
    }

    /// What to send with the first attempt: what this repository, or else any other, demanded last.
    async fn guess(&mut self) -> Result<Carried, ErrorKind> {
        if let Credential::Bearer(token) = &*self.credential {
            return Ok(Carried::Fixed(token::bearer_header(token)?));
        }
        let demand = match self.endpoint.known(self.ask.repository) {
            (Some(Known::Open), _) | (None, None) => return Ok(Carried::Nothing),
            (Some(Known::Demands(demand)), _) | (None, Some(demand)) => demand,
        };
        match self.carry(&demand, true).await {
            Err(limited @ ErrorKind::RateLimited { .. }) => Err(limited),
            // The endpoint may have another token server by now, or be open for this repository.
            Err(error) => {
                self.failed = Some((demand, error));
                Ok(Carried::Nothing)
            }
            Ok(carried) => {
                self.answered = Some(demand);
                Ok(carried)
            }
        }
    }

    /// What the endpoint wants. `None`: nothing that could be answered, the status stands.
    async fn demand(&self, response: &Response) -> Result<Option<Demand>, ErrorKind> {
        let headers = response.headers();
        if response.status() != StatusCode::UNAUTHORIZED {
            // 400 or 403 without a challenge, to a request without Authorization: only an expired token of before
            // is a reason to go on, with the demand that is remembered (R-U43).
            return Ok(match self.endpoint.known(self.ask.repository) {
                (Some(Known::Demands(demand)), _) if self.has_doubted => Some(demand),
                _ => None,
            });
        }
        if headers.contains_key(WWW_AUTHENTICATE) {
            return match demand_of(headers) {
                Ok(demand) => Ok(Some(demand)),
                Err(schemes) => Err(ErrorKind::Auth(
                    format!("it asks for authentication that Larder does not speak ({schemes:.100})").into(),
                )),
            };
        }
        // Google's registries leave the challenge out on objects; `/v2/` has it (R-U42).
        let root = self.endpoint.url("");
        let ping = Ask {
            url: &root,
            method: &Method::GET,
            accept: "*/*",
            from: None,
            ..*self.ask
        };
        let walked = self.endpoint.walk(&ping, None).await?;
        let demand = demand_of(walked.response.headers()).ok().filter(|_| walked.is_home);
        body::drain(walked.response, self.endpoint.read_timeout).await;
        Ok(demand)
    }

    /// Answers a demand that was just made.
    async fn satisfy(&mut self, demand: Demand) -> Result<Carried, ErrorKind> {
        if let Some((failed, error)) = &self.failed
            && *failed == demand
        {
            return Err(error.clone());
        }
        let carried = self.carry(&demand, false).await?;
        self.answered = Some(demand);
        Ok(carried)
    }

    async fn carry(&self, demand: &Demand, guessed: bool) -> Result<Carried, ErrorKind> {
        let Demand::Bearer { realm, service, scope } = demand else {
            return match token::basic_header(&self.credential)? {
                Some(header) => Ok(Carried::Basic(header)),
                None => Err(ErrorKind::Denied {
                    status: 401,
                    detail: "it asks for a user name and password".into(),
                }),
            };
        };
        // Our own scope, because challenges lie; theirs where it is about another kind of thing (R-U5).
        let scope = match scope {
            Some(theirs) if challenge::is_special_scope(theirs) => theirs.clone(),
            _ => format!("repository:{}:pull", self.ask.repository),
        };
        let wanted = Wanted {
            origin: &self.endpoint.base,
            realm,
            service: service.clone(),
            scope: Some(scope),
        };
        let (key, token) = self.endpoint.token(wanted, &self.credential).await?;
        Ok(Carried::Token { key, token, guessed })
    }

    /// The status becomes the verdict, and what worked is remembered.
    async fn finish(&mut self, walked: Walked, carried: &Carried) -> Result<Answer, ErrorKind> {
        let status = walked.response.status();
        // A redirect elsewhere means that the endpoint itself was content.
        let was_let_in = status.is_success() || status == StatusCode::NOT_FOUND || !walked.is_home;
        let known = match (carried, self.answered.take()) {
            (Carried::Nothing, _) if status.is_success() => Some(Known::Open),
            (Carried::Nothing, _) | (_, None) => None,
            (_, Some(demand)) => Some(Known::Demands(demand)),
        };
        if let Some(known) = known.filter(|_| was_let_in) {
            self.endpoint.learn(self.ask.repository, known);
        }
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(Answer {
                response: walked.response,
                digest: walked.digest,
                with_credentials: carried.with_credentials(),
            });
        }
        Err(self.verdict(walked, carried).await)
    }

    async fn verdict(&self, walked: Walked, carried: &Carried) -> ErrorKind {
        let status = walked.response.status().as_u16();
        if status == 404 {
            body::drain(walked.response, self.endpoint.read_timeout).await;
            return ErrorKind::NotFound { status };
        }
        if status == 429 {
            let retry_after = body::text(walked.response.headers(), &RETRY_AFTER);
            return ErrorKind::RateLimited {
                retry_after: self.endpoint.breaker.open(&self.credential, retry_after),
            };
        }
        if status < 400 {
            return ErrorKind::Protocol(format!("status {status}").into());
        }
        let mut secrets: Vec<&str> = self.credential.secret().into_iter().collect();
        if let Carried::Token { token, .. } = carried {
            secrets.push(token.value.reveal());
        }
        let mut detail = body::detail(walked.response, self.endpoint.read_timeout, &secrets).await;
        if !walked.is_home {
            detail = format!("{}, where it redirects to: {detail}", walked.host);
        }
        let detail = detail.into();
        match status {
            401 | 403 => ErrorKind::Denied { status, detail },
            _ => ErrorKind::Status { status, detail },
        }
    }
}
