//! One attempt: a request, and the redirects it leads through.
//!
//! Authorization goes to the endpoint's own origin and stays there; a foreign host that wants a token gets an anonymous one
//! of its own (R-U45, R-X4). Each hop is checked before it is dialled (R-X3).

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use url::Url;

use super::challenge::{self, Demand};
use super::credentials::Credential;
use super::endpoint::{Ask, Endpoint};
use super::error::ErrorKind;
use super::realm::{self, Trust};
use super::token::{Context, Token, TokenKey};
use super::transport::{Named, Outgoing, count_refusal, shown};
use super::{body, redirect};
use crate::oci::Digest;
use crate::telemetry::stopwatch::{Part, measure};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Token servers of which it is remembered that they were warned about: their names come from outside.
const MAX_STRANGERS: usize = 100;

/// A Bearer demand, and who made it.
pub(super) struct Wanted<'a> {
    pub(super) origin: &'a Url,
    pub(super) realm: &'a str,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

/// Where the last hop of one attempt ended.
pub(super) struct Walked {
    pub(super) response: Response,
    pub(super) digest: Option<Digest>,
    /// Whether the endpoint itself gave this answer, to the Authorization it was sent.
    pub(super) is_home: bool,
    /// Whether the path of the last hop is a registry's, and not a store's.
    pub(super) is_registry: bool,
    pub(super) host: String,
    /// Values of the addresses that it was redirected to: signatures are among them.
    pub(super) secrets: Vec<String>,
}

impl Endpoint {
    /// A token for a Bearer demand that came from `wanted.origin`.
    pub(super) async fn token(
        &self,
        wanted: Wanted<'_>,
        credential: &Arc<Credential>,
    ) -> Result<(TokenKey, Arc<Token>), ErrorKind> {
        let (realm, trust) =
            realm::judge(wanted.origin, wanted.realm, &self.trusted_realms).map_err(|e| self.refuse(e))?;
        let may_see = trust != Trust::Stranger;
        if !may_see && !credential.is_anonymous() {
            self.warn_of(&realm);
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
        let token = self.tokens.get(&key, context).await;
        let token = token.map_err(|error| self.said_of(&key.realm, error))?;
        Ok((key, token))
    }

    /// An error on the way to `url`, which may be another host than this address.
    fn said_of(&self, url: &Url, error: ErrorKind) -> ErrorKind {
        let is_here =
            url.host_str() == self.base.host_str() && url.port_or_known_default() == self.base.port_or_known_default();
        match is_here {
            true => error,
            false => error.beyond(&body::one_line(url.host_str().unwrap_or_default(), 100)),
        }
    }

    /// Once for each: a token is asked for many times a minute.
    fn warn_of(&self, realm: &Url) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() < MAX_STRANGERS && strangers.insert(realm.clone()) {
            let (upstream, realm) = (&self.upstream, shown(realm));
            tracing::warn!(%upstream, realm, "this token server is neither in trusted_realms nor on the registry's own domain and port: asked without credentials");
        }
    }

    /// One attempt: the request and the redirects it leads through.
    pub(super) async fn walk(&self, ask: &Ask<'_>, authorization: Option<&HeaderValue>) -> Result<Walked, ErrorKind> {
        let mut url = ask.url.clone();
        let mut authorization = authorization.cloned();
        let mut is_home = true;
        let mut digest = None;
        let mut redirects = 0;
        let mut secrets = Vec::new();
        let started = Instant::now();
        // The anonymous token of the foreign host that is being asked.
        let mut foreign: Option<(TokenKey, Arc<Token>)> = None;
        loop {
            let named = match is_home || redirect::listed(&url, self.redirect_hosts.as_deref()) == Some(true) {
                true => Named::ByOperator,
                false => Named::ByUpstream,
            };
            let response = self.hop(ask, &url, named, authorization.as_ref()).await;
            let response = response.map_err(|error| self.said_of(&url, error))?;
            ask.note_answer();
            let said = body::text(response.headers(), &DOCKER_CONTENT_DIGEST);
            digest = digest.or_else(|| said.and_then(|text| text.parse().ok()));
            let host = url.host_str().unwrap_or_default().to_owned();
            if redirect::is_redirect(response.status()) {
                redirects += 1;
                if redirects > redirect::MAX_HOPS {
                    return Err(self.refuse(format!("more than {} redirects", redirect::MAX_HOPS)));
                }
                let next = self.next_hop(&url, response.headers())?;
                body::drain(response).await;
                if next.origin() != url.origin() {
                    authorization = None;
                    foreign = None;
                    is_home = false;
                }
                secrets.extend(body::secrets_of(&next));
                url = next;
                continue;
            }
            // A token from before may have aged; one that was got in this attempt is refused for good.
            let may_answer = !is_home && foreign.as_ref().is_none_or(|(_, token)| token.born < started);
            if response.status() == StatusCode::UNAUTHORIZED
                && may_answer
                && let Ok(demand @ Demand::Bearer { .. }) = demand_of(response.headers())
            {
                body::drain(response).await;
                if let Some((key, token)) = foreign.take() {
                    self.tokens.drop_refused(&key, &token).await;
                }
                let (key, token) = self.foreign_token(&url, demand).await?;
                ask.note_answer();
                authorization = Some(token.header.clone());
                foreign = Some((key, token));
                continue;
            }
            return Ok(Walked {
                response,
                digest,
                is_home,
                is_registry: redirect::is_registry(&url),
                host,
                secrets,
            });
        }
    }

    /// The host that we were sent to wants a token of its own: the anonymous one, with the scope that it names, because
    /// what the repository is called there only it knows (R-U45).
    async fn foreign_token(&self, origin: &Url, demand: Demand) -> Result<(TokenKey, Arc<Token>), ErrorKind> {
        let Demand::Bearer { realm, service, scope } = demand else {
            return Err(ErrorKind::Auth(
                "a host that it redirects to asks for a password".into(),
            ));
        };
        let wanted = Wanted {
            origin,
            realm: &realm,
            service,
            scope,
        };
        self.token(wanted, &Arc::new(Credential::Anonymous)).await
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
            range: ask.range,
            as_stored: ask.as_stored,
            authorization,
            form: None,
        };
        let outcome = measure(Part::Upstream, self.transport.send(url, named, &out)).await;
        let took = started.elapsed();
        let status = match &outcome {
            Ok(response) => response.status().as_u16().to_string(),
            Err(_) => "error".to_owned(),
        };
        tracing::debug!(
            upstream = %self.upstream,
            method = %ask.method,
            url = shown(url),
            status,
            ms = took.as_millis() as u64,
            "upstream request"
        );
        metrics::counter!(
            "larder_upstream_requests_total",
            "upstream" => self.upstream.to_string(),
            "kind" => ask.kind,
            "status" => status
        )
        .increment(1);
        if outcome.is_ok() {
            metrics::histogram!(
                "larder_upstream_answer_seconds",
                "upstream" => self.upstream.to_string(),
                "kind" => ask.kind
            )
            .record(took.as_secs_f64());
        }
        outcome
    }
}

/// What a 401 demands; `Err` names what it offered instead.
pub(super) fn demand_of(headers: &HeaderMap) -> Result<Demand, String> {
    let lines = headers.get_all(WWW_AUTHENTICATE);
    challenge::choose(&challenge::parse(lines.iter().map(HeaderValue::as_bytes)))
}
