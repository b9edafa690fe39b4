//! The dance that gets an answer out of an endpoint.
//!
//! A request goes out with what was learned from the last ones (the demand remembered for its repository or for
//! the whole endpoint), so that a hot upstream costs no 401 per request. An answer of 400, 401 or 403 to something
//! remembered is not believed at once: it is forgotten, the request repeated without Authorization, and
//! the challenge that comes then is answered afresh, once (R-U3, R-U43, R-U47). Every repeat is built from the
//! question again, so that none loses its Accept or Range (R-U51).

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use reqwest::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode};

use super::challenge::{self, Demand};
use super::credentials::Credential;
use super::endpoint::{Ask, Endpoint, Known};
use super::error::ErrorKind;
use super::rate_limit::RateLimit;
use super::token::{self, Token, TokenKey};
use super::walk::{Walked, Wanted, demand_of};
use super::{body, breaker};
use crate::oci::Digest;

/// A success: 200 or 206, after all redirects and authentication.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    /// Docker-Content-Digest of the first hop that had one (R-U22).
    pub digest: Option<Digest>,
    /// Whether stored credentials were behind it (L8).
    pub with_credentials: bool,
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

impl Endpoint {
    /// The verdict. Time is bounded by the caller.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, ErrorKind> {
        if ask.as_nobody {
            return self.ask_as(ask, Arc::new(Credential::Anonymous)).await;
        }
        // A helper program may take its time: that is not the address's.
        let found = ask.without_asking(self.credentials.find(Some(ask.repository))).await;
        let found = found.map_err(|e| ErrorKind::Auth(e.into()))?;
        let outcome = self.ask_as(ask, found.credential.clone()).await;
        let (Err(refusal), Some(lease)) = (&outcome, &found.lease) else {
            return outcome;
        };
        if !may_be_its_age(refusal) {
            return outcome;
        }
        // What was given out for a while may have ended before its time (R-U43). Another is worth one more try.
        match ask.without_asking(lease.renew(&found.credential)).await {
            Some(another) => self.ask_as(ask, another).await,
            None => outcome,
        }
    }

    async fn ask_as(&self, ask: &Ask<'_>, credential: Arc<Credential>) -> Result<Answer, ErrorKind> {
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
        // Large, and reached through many layers: on the heap, so that none of them carries it on its thread's stack.
        dance.run().boxed().await
    }
}

/// 401, and where a registry says it with 400 or 403; by the registry or by its token server.
fn may_be_its_age(refusal: &ErrorKind) -> bool {
    matches!(
        refusal,
        ErrorKind::Denied { .. } | ErrorKind::Auth(_) | ErrorKind::Status { status: 400, .. }
    )
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
            self.note_budget(&walked, &carried);
            let status = walked.response.status().as_u16();
            if !walked.is_home || !matches!(status, 400 | 401 | 403) {
                return self.finish(walked, &carried).await;
            }
            if let Carried::Nothing = carried {
                let Some(demand) = self.demand(&walked.response).await? else {
                    return self.finish(walked, &carried).await;
                };
                body::drain(walked.response).await;
                carried = self.satisfy(demand).await?;
            } else if self.is_doubtful(&carried, &walked.response) {
                if let Carried::Token { key, token, .. } = &carried
                    && token.born < self.started
                {
                    self.endpoint.tokens.drop_refused(key, token).await;
                }
                body::drain(walked.response).await;
                self.has_doubted = true;
                self.answered = None;
                carried = Carried::Nothing;
            } else {
                return self.finish(walked, &carried).await;
            }
        }
    }

    /// What the endpoint says is left is whose Authorization it was sent.
    fn note_budget(&self, walked: &Walked, carried: &Carried) {
        if let Some(limit) = RateLimit::read(walked.response.headers()).filter(|_| walked.is_home) {
            let who = match carried.with_credentials() {
                true => &self.credential,
                false => &Credential::Anonymous,
            };
            self.endpoint.budgets.note(who, limit);
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
            match demand_of(headers) {
                Ok(demand) => return Ok(Some(demand)),
                Err(schemes) if !schemes.is_empty() => {
                    let schemes = body::one_line(&schemes, 60);
                    let what = format!("it asks for authentication that Larder does not speak ({schemes})");
                    return Err(ErrorKind::Auth(what.into()));
                }
                Err(_) => {}
            }
        }
        // Google's registries leave the challenge out on objects; `/v2/` has it (R-U42).
        let root = self.endpoint.url("");
        let ping = Ask {
            url: &root,
            method: &Method::GET,
            accept: "*/*",
            range: None,
            as_stored: false,
            ..*self.ask
        };
        let walked = self.endpoint.walk(&ping, None).await?;
        let demand = demand_of(walked.response.headers()).ok().filter(|_| walked.is_home);
        body::drain(walked.response).await;
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
        self.ask.note_answer();
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
        if let Some(known) = known.filter(|_| was_let_in && !self.ask.as_nobody) {
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
        // The address that a registry redirects to may be signed for GET only: it says nothing to HEAD (R-U27).
        let is_signed = !walked.is_home && *self.ask.method == Method::HEAD;
        if status == 404 && (walked.is_registry || !is_signed) {
            body::drain(walked.response).await;
            return ErrorKind::NotFound { status };
        }
        if status == 429 {
            let retry_after = body::text(walked.response.headers(), &RETRY_AFTER);
            let retry_after = if self.ask.is_extra() {
                // It was asked for more at once than usual. The next usual question finds out whether that is
                // refused as well; if this one kept them all away, a transfer that was going well would fail for it.
                breaker::pause(retry_after)
            } else {
                self.endpoint.breaker.open(&self.credential, retry_after)
            };
            return ErrorKind::RateLimited { retry_after };
        }
        if status < 400 {
            return ErrorKind::Protocol(format!("status {status}").into());
        }
        let mut secrets: Vec<&str> = self.credential.secret().into_iter().collect();
        if let Carried::Token { token, .. } = carried {
            secrets.push(token.value.reveal());
        }
        // `Basic` credentials as they were sent, too.
        let sent = carried
            .header()
            .and_then(|h| h.to_str().ok())
            .and_then(|h| h.split_once(' '));
        secrets.extend(sent.map(|(_, encoded)| encoded));
        secrets.extend(walked.secrets.iter().map(String::as_str));
        let retry_after = body::text(walked.response.headers(), &RETRY_AFTER).and_then(breaker::read_retry_after);
        let mut detail = body::detail(walked.response, &secrets).await;
        if !walked.is_home {
            detail = format!("{}, where it redirects to: {detail}", walked.host);
        }
        let detail = detail.into();
        match status {
            // A store's or a firewall's 403 says nothing about what the registry has.
            401 | 403 if walked.is_home || (walked.is_registry && !is_signed) => ErrorKind::Denied { status, detail },
            _ => ErrorKind::Status {
                status,
                detail,
                retry_after,
            },
        }
    }
}
