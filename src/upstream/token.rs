//! Tokens: got once for many, kept until shortly before they expire, dropped when they are refused.
//!
//! GET with or without Basic credentials is the usual way, POST (OAuth2) the one for refresh tokens; where one is answered
//! as if it did not exist, the other is tried once and what worked is remembered (R-U7). One key, one request: however
//! many blobs of an image are asked for at once, the token server hears of it once (R-W10). A key holds everything
//! that a token depends on, so that none is ever used for another repository or credential (R-X6).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use moka::policy::EvictionPolicy;
use reqwest::header::{HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response};
use url::Url;
use url::form_urlencoded::Serializer;

use super::breaker::{self, Breaker};
use super::credentials::Credential;
use super::error::ErrorKind;
use super::transport::{Named, Outgoing, Transport, shown};
use super::{body, redirect};
use crate::config::Secret;
use crate::telemetry::stopwatch::{Part, measure};
use crate::telemetry::trace;

const CLIENT_ID: &str = "larder";
/// What a token is good for when the server does not say, and at least (R-U3).
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
const MAX_TOKENS: u64 = 10_000;
/// The user name that stands for a refresh token in Basic credentials (R-U44).
const REFRESH_TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// What a token depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenKey {
    /// Scheme, host and port that asked for it and that alone will see it.
    pub origin: String,
    pub realm: Url,
    pub service: Option<String>,
    pub scope: Option<String>,
    /// `Anonymous` where the realm is not trusted, whatever is known.
    pub credential: Arc<Credential>,
}

#[derive(Debug)]
pub struct Token {
    /// The whole header value, marked sensitive.
    pub header: HeaderValue,
    pub value: Secret,
    /// A token from before a request began may be refused for its age; a newer one may not.
    pub born: Instant,
    pub(super) good_for: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Get,
    Post,
}

/// The tokens of one endpoint.
#[derive(Debug)]
pub struct Tokens {
    kept: moka::future::Cache<TokenKey, Arc<Token>>,
    flows: Mutex<HashMap<Url, Flow>>,
    upstream: Arc<str>,
    /// When the log last said that there is no token.
    logged: Mutex<Option<Instant>>,
}

/// The time between two lines of the log about tokens that are refused.
const EVERY: Duration = Duration::from_secs(60);

struct ByLifetime;

impl moka::Expiry<TokenKey, Arc<Token>> for ByLifetime {
    fn expire_after_create(&self, _: &TokenKey, token: &Arc<Token>, _: Instant) -> Option<Duration> {
        Some(token.good_for)
    }
}

/// What a token request needs beside its key.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub transport: &'a Transport,
    pub breaker: &'a Breaker,
    pub named: Named,
    pub read_timeout: Duration,
}

impl Tokens {
    pub fn new(upstream: Arc<str>) -> Tokens {
        Tokens {
            // LRU: a new token must never be refused admission, or its request would be repeated for each blob.
            kept: moka::future::Cache::builder()
                .max_capacity(MAX_TOKENS)
                .eviction_policy(EvictionPolicy::lru())
                .expire_after(ByLifetime)
                .build(),
            flows: Mutex::new(HashMap::new()),
            upstream,
            logged: Mutex::new(None),
        }
    }

    /// Returns whether the log is due to say that there is no token: any client's request may be why.
    fn is_due(&self) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = logged.is_none_or(|logged| logged.elapsed() >= EVERY);
        if is_due {
            *logged = Some(Instant::now());
        }
        is_due
    }

    pub async fn get(&self, key: &TokenKey, context: Context<'_>) -> Result<Arc<Token>, ErrorKind> {
        let kept = self
            .kept
            .try_get_with_by_ref(key, measure(Part::Token, self.fetch(key, context)))
            .await;
        kept.map_err(|shared| ErrorKind::clone(&shared))
    }

    /// Forgets `token`, unless another request has replaced it already.
    pub async fn drop_refused(&self, key: &TokenKey, token: &Arc<Token>) {
        if self.kept.get(key).await.is_some_and(|kept| Arc::ptr_eq(&kept, token)) {
            self.kept.invalidate(key).await;
        }
    }

    async fn fetch(&self, key: &TokenKey, context: Context<'_>) -> Result<Arc<Token>, ErrorKind> {
        let remembered = self
            .flows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key.realm)
            .copied();
        let first = remembered.unwrap_or(match *key.credential {
            Credential::Identity { .. } => Flow::Post,
            _ => Flow::Get,
        });
        // Without credentials there is nothing to post.
        let first = if key.credential.is_anonymous() {
            Flow::Get
        } else {
            first
        };
        let mut outcome = self.try_flow(first, key, context).await;
        if let Err(Failed {
            status: Some(400 | 401 | 404 | 405),
            ..
        }) = &outcome
            && !key.credential.is_anonymous()
        {
            let second = if first == Flow::Get { Flow::Post } else { Flow::Get };
            // If both fail, the first word stands: it is about the way that was meant.
            if let Ok(token) = self.try_flow(second, key, context).await {
                self.flows
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(key.realm.clone(), second);
                outcome = Ok(token);
            }
        }
        outcome.map(Arc::new).map_err(|failed| {
            let (upstream, realm, error) = (&self.upstream, shown(&key.realm), &failed.kind);
            match self.is_due() {
                true => tracing::info!(%upstream, realm, %error, trace_id = trace::id(), "no token"),
                false => tracing::debug!(%upstream, realm, %error, trace_id = trace::id(), "no token"),
            }
            failed.kind
        })
    }

    async fn try_flow(&self, flow: Flow, key: &TokenKey, context: Context<'_>) -> Result<Token, Failed> {
        metrics::counter!("larder_upstream_token_requests_total", "upstream" => self.upstream.to_string()).increment(1);
        let response = match flow {
            Flow::Get => get(key, context).await?,
            Flow::Post => {
                let form = form(key);
                let out = Outgoing {
                    method: &Method::POST,
                    accept: "application/json",
                    range: None,
                    as_stored: false,
                    authorization: None,
                    form: Some(&form),
                };
                context.transport.send(&key.realm, context.named, &out).await?
            }
        };
        let status = response.status().as_u16();
        tracing::debug!(upstream = %self.upstream, realm = shown(&key.realm), status, "token request");
        if status == 200 {
            let bytes = body::whole(response, body::MAX_TOKEN_BYTES, context.read_timeout).await?;
            return Ok(read_token(&bytes)?);
        }
        let retry_after = body::text(response.headers(), &RETRY_AFTER).map(str::to_owned);
        let mut secrets = body::secrets_of(&key.realm);
        secrets.extend(key.credential.secret().map(str::to_owned));
        // A redirect may have led it to an address that is signed. Scope and service of the question are no secrets.
        if response.url().path() != key.realm.path() || response.url().origin() != key.realm.origin() {
            secrets.extend(body::secrets_of(response.url()));
        }
        let sent = basic_header(&key.credential)?;
        let sent = sent.as_ref().and_then(|sent| sent.to_str().ok()?.split_once(' '));
        secrets.extend(sent.map(|(_, encoded)| encoded.to_owned()));
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let said = body::detail(response, &secrets).await;
        let detail = format!("the token server {}: {said}", key.realm.host_str().unwrap_or_default());
        let kind = match status {
            401 | 403 => ErrorKind::Denied {
                status,
                detail: detail.into(),
            },
            429 => ErrorKind::RateLimited {
                retry_after: context.breaker.open(&key.credential, retry_after.as_deref()),
            },
            408 | 500.. => ErrorKind::Status {
                status,
                detail: detail.into(),
                retry_after: retry_after.as_deref().and_then(breaker::read_retry_after),
            },
            _ => ErrorKind::Auth(format!("{detail} ({status})").into()),
        };
        Err(Failed {
            status: Some(status),
            kind,
        })
    }
}

/// An error, and the status that decides whether the other flow is worth a try.
struct Failed {
    status: Option<u16>,
    kind: ErrorKind,
}

impl From<ErrorKind> for Failed {
    fn from(kind: ErrorKind) -> Failed {
        Failed { status: None, kind }
    }
}

/// The GET, through at most a few redirects; credentials stay with the realm's own origin.
async fn get(key: &TokenKey, context: Context<'_>) -> Result<Response, ErrorKind> {
    let mut url = query(key);
    let mut authorization = basic_header(&key.credential)?;
    let mut named = context.named;
    for _ in 0..=redirect::MAX_HOPS {
        let out = Outgoing {
            method: &Method::GET,
            accept: "application/json",
            range: None,
            as_stored: false,
            authorization: authorization.as_ref(),
            form: None,
        };
        let response = context.transport.send(&url, named, &out).await?;
        if !redirect::is_redirect(response.status()) {
            return Ok(response);
        }
        let next =
            redirect::target(&url, response.headers().get(LOCATION)).map_err(|e| ErrorKind::Refused(e.into()))?;
        if next.origin() != url.origin() {
            authorization = None;
            named = Named::ByUpstream;
        }
        url = next;
    }
    Err(ErrorKind::Refused(
        format!("more than {} redirects of the token server", redirect::MAX_HOPS).into(),
    ))
}

/// The realm with our parameters behind its own (R-U8: it may have a query already).
fn query(key: &TokenKey) -> Url {
    let mut url = key.realm.clone();
    let mut pairs = url.query_pairs_mut();
    if let Some(service) = &key.service {
        pairs.append_pair("service", service);
    }
    if let Some(scope) = &key.scope {
        pairs.append_pair("scope", scope);
    }
    pairs.append_pair("client_id", CLIENT_ID);
    drop(pairs);
    url
}

/// Credentials travel in forms and headers only, encoded there (R-U11).
fn form(key: &TokenKey) -> String {
    let mut form = Serializer::new(String::new());
    match &*key.credential {
        Credential::Identity { token, .. } => {
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("refresh_token", token.reveal());
        }
        Credential::Basic { username, password } => {
            form.append_pair("grant_type", "password");
            form.append_pair("username", username);
            form.append_pair("password", password.reveal());
        }
        Credential::Anonymous | Credential::Bearer(_) => {}
    }
    form.append_pair("client_id", CLIENT_ID);
    form.append_pair("service", key.service.as_deref().unwrap_or_default());
    if let Some(scope) = &key.scope {
        form.append_pair("scope", scope);
    }
    form.append_pair("access_type", "offline");
    form.finish()
}

/// `Basic …` for what can be said that way; `None` for the anonymous.
pub fn basic_header(credential: &Credential) -> Result<Option<HeaderValue>, ErrorKind> {
    let (user, password) = match credential {
        Credential::Anonymous | Credential::Bearer(_) => return Ok(None),
        Credential::Basic { username, password } => (username.as_str(), password),
        Credential::Identity { username, token } if username.is_empty() => (REFRESH_TOKEN_USER, token),
        Credential::Identity { username, token } => (username.as_str(), token),
    };
    let pair = STANDARD.encode(format!("{user}:{}", password.reveal()));
    sensitive(&format!("Basic {pair}")).map(Some)
}

pub fn bearer_header(token: &Secret) -> Result<HeaderValue, ErrorKind> {
    sensitive(&format!("Bearer {}", token.reveal()))
}

fn sensitive(text: &str) -> Result<HeaderValue, ErrorKind> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| ErrorKind::Auth("a token or password holds characters that no header can carry".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `token`, else `access_token` (R-U2); `issued_at` is ignored, because clocks differ and a refused token is replaced anyway.
pub(super) fn read_token(bytes: &[u8]) -> Result<Token, ErrorKind> {
    let nonsense = |what: &str| ErrorKind::Auth(format!("the token server's answer {what}").into());
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| nonsense("is not JSON"))?;
    let field = |key: &str| json.get(key)?.as_str().filter(|t| !t.is_empty()).map(Secret::new);
    let value = field("token")
        .or_else(|| field("access_token"))
        .ok_or_else(|| nonsense("holds no token"))?;
    let seconds = json
        .get("expires_in")
        .and_then(|v| v.as_f64().or_else(|| v.as_str()?.parse().ok()))
        .filter(|seconds: &f64| !seconds.is_nan())
        .unwrap_or(0.0);
    Ok(Token {
        header: bearer_header(&value)?,
        value,
        born: Instant::now(),
        good_for: lifetime(seconds),
    })
}

/// A tenth is given away so that no token expires on its way (R-U3).
///
/// Some servers write a text, and `"NaN"` is one that parses: it counts as none.
fn lifetime(expires_in: f64) -> Duration {
    let expires_in = if expires_in.is_nan() { 0.0 } else { expires_in };
    let seconds = expires_in.clamp(SHORTEST.as_secs_f64(), LONGEST.as_secs_f64() / 0.9);
    Duration::from_secs_f64(seconds * 0.9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(realm: &str, credential: Credential) -> TokenKey {
        TokenKey {
            origin: "https://r.example".to_owned(),
            realm: realm.parse().unwrap(),
            service: Some("a b&c".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
            credential: Arc::new(credential),
        }
    }

    fn awkward() -> Credential {
        Credential::Basic {
            username: "robot$x+y".to_owned(),
            password: Secret::new("p#&+% :ü"),
        }
    }

    #[test]
    fn lifetimes() {
        assert_eq!(lifetime(0.0), Duration::from_secs(54));
        assert_eq!(lifetime(-5.0), Duration::from_secs(54));
        assert_eq!(lifetime(300.0), Duration::from_secs(270));
        assert_eq!(lifetime(1e300), LONGEST);
        for (odd, seconds) in [("NaN", 54), ("-inf", 54), ("inf", 3600), ("1e999", 3600)] {
            let answer = format!(r#"{{"token":"t","expires_in":"{odd}"}}"#);
            assert_eq!(
                read_token(answer.as_bytes()).unwrap().good_for.as_secs(),
                seconds,
                "{odd}"
            );
        }
        let read =
            |json: &str| read_token(json.as_bytes()).map(|t| (t.value.reveal().to_owned(), t.good_for.as_secs()));
        assert_eq!(
            read(r#"{"token":"t","access_token":"a","expires_in":100}"#).unwrap(),
            ("t".to_owned(), 90)
        );
        assert_eq!(
            read(r#"{"access_token":"a","expires_in":"200"}"#).unwrap(),
            ("a".to_owned(), 180)
        );
        assert_eq!(
            read(r#"{"token":"","access_token":"a","expires_in":null}"#).unwrap(),
            ("a".to_owned(), 54)
        );
        for odd in ["NaN", "-NaN", "inf", "-inf", "1e999"] {
            let json = format!(r#"{{"token":"t","expires_in":"{odd}"}}"#);
            assert!((54..=LONGEST.as_secs()).contains(&read(&json).unwrap().1), "{odd}");
        }
        for bad in ["", "[]", "{}", r#"{"token":7}"#, r#"{"token":"a\nb"}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queries_and_forms_are_encoded() {
        let with = query(&key("https://a.example/t?x=1", awkward()));
        assert_eq!(
            with.as_str(),
            "https://a.example/t?x=1&service=a+b%26c&scope=repository%3Aa%2Fb%3Apull&client_id=larder"
        );
        let posted = form(&key("https://a.example/t", awkward()));
        let pairs: HashMap<_, _> = url::form_urlencoded::parse(posted.as_bytes()).into_owned().collect();
        assert_eq!(pairs["password"], "p#&+% :ü");
        assert_eq!(pairs["username"], "robot$x+y");
        let header = basic_header(&awkward()).unwrap().unwrap();
        let encoded = header.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
        assert_eq!(STANDARD.decode(encoded).unwrap(), "robot$x+y:p#&+% :ü".as_bytes());
        assert!(!format!("{header:?}").contains("Basic"));
    }
}
