//! Token issuers of others (OIDC): their public keys, and whom their tokens name.
//!
//! The floor has no network: what is at an issuer's `jwks_url` is brought by a function that `app` hands in. It is asked for
//! when the first token comes, again every hour, and for a key that is not known at most once a minute, once for all who
//! wait. What was had last holds while an issuer cannot be reached.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::jws::{Algorithm, Token, TokenError, VerifyingKey};
use super::policy::Identity;
use crate::config::{Issuer as Settings, JwksAt};
use crate::text::is_visible;

/// Most keys of one issuer.
const MAX_KEYS: usize = 100;
const FRESH_FOR: Duration = Duration::from_secs(3600);
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Longest identity, bytes.
const MAX_NAME: usize = 512;

/// Brings the document at an address, or says why not. Has its own limits of size and time.
pub type Fetch = Arc<dyn Fn(&JwksAt) -> Fetching + Send + Sync>;
pub type Fetching = Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;

/// Keys by `kid`. Those without one, and those that are not for signatures, are left out.
#[derive(Debug, Default)]
pub struct Keys(HashMap<String, VerifyingKey>);

impl Keys {
    /// RFC 7517. Errors: what the document is, in place of a key set.
    pub fn parse(document: &[u8]) -> Result<Keys, &'static str> {
        let json: Value = serde_json::from_slice(document).map_err(|_| "it is not JSON")?;
        let Some(list) = json.get("keys").and_then(Value::as_array) else {
            return Err("it has no list of keys");
        };
        let keys = list.iter().take(MAX_KEYS).filter_map(key);
        Ok(Keys(keys.collect()))
    }

    pub fn get(&self, kid: &str) -> Option<&VerifyingKey> {
        self.0.get(kid)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key(jwk: &Value) -> Option<(String, VerifyingKey)> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?.trim_end_matches('=')).ok();
    if text("use").is_some_and(|kind| kind != "sig") {
        return None;
    }
    // One algorithm for each key: what the document says, else the usual one for its kind.
    let only = |usual: Algorithm, others: &[Algorithm]| match text("alg") {
        None => Some(usual),
        Some(said) => [usual].iter().chain(others).find(|a| a.as_str() == said).copied(),
    };
    let point = |coordinate: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        (x.len() == coordinate && y.len() == coordinate).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
    };
    let made = match (text("kty")?, text("crv")) {
        ("RSA", _) => VerifyingKey::Rsa {
            algorithm: only(Algorithm::Rs256, &[Algorithm::Rs384, Algorithm::Rs512])?,
            n: bytes("n")?,
            e: bytes("e")?,
        },
        ("EC", Some("P-256")) => VerifyingKey::Curve {
            algorithm: only(Algorithm::Es256, &[])?,
            point: point(32)?,
        },
        ("EC", Some("P-384")) => VerifyingKey::Curve {
            algorithm: only(Algorithm::Es384, &[])?,
            point: point(48)?,
        },
        ("OKP", Some("Ed25519")) => {
            only(Algorithm::EdDsa, &[])?;
            VerifyingKey::Ed25519(bytes("x").filter(|x| x.len() == 32)?)
        }
        // A shared secret in a public document is none.
        _ => return None,
    };
    Some((text("kid")?.to_owned(), made))
}

#[derive(Default)]
struct Known {
    keys: Arc<Keys>,
    /// When they were had.
    had: Option<Instant>,
    /// When they were asked for.
    asked: Option<Instant>,
}

/// One issuer.
pub struct Issuer {
    settings: Settings,
    fetch: Fetch,
    known: Mutex<Known>,
    asking: tokio::sync::Mutex<()>,
}

impl Issuer {
    pub fn new(settings: Settings, fetch: Fetch) -> Issuer {
        Issuer {
            settings,
            fetch,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// What its identities begin with.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether these settings are its own.
    pub fn is_asked_as(&self, settings: &Settings) -> bool {
        self.settings == *settings
    }

    /// Whether a token that says so would have to be one of its.
    pub fn is_called(&self, issuer: &str) -> bool {
        self.settings.issuer == issuer
    }

    /// Whom the token names, and until when. `now` in seconds since 1970.
    pub async fn read(&self, token: Token<'_>, now: u64) -> Result<(Identity, u64), TokenError> {
        let kid = token.kid.clone().ok_or(TokenError::UnknownKey)?;
        let keys = self.keys_with(&kid).await;
        let Some(key) = keys.get(&kid) else {
            let error = if keys.is_empty() {
                TokenError::NoKeys
            } else {
                TokenError::UnknownKey
            };
            return Err(error);
        };
        let claims = token.verify(key)?;
        claims.check(&self.settings.issuer, &self.settings.audience, now)?;
        let name = claims.claim(&self.settings.identity).ok_or(TokenError::Identity)?;
        if name.is_empty() || name.len() > MAX_NAME || !is_visible(name) {
            return Err(TokenError::Identity);
        }
        let who = format!("{}:{name}", self.settings.name);
        Ok((Some(who.into()), claims.expires().unwrap_or(now)))
    }

    async fn keys_with(&self, kid: &str) -> Arc<Keys> {
        if !self.is_due(kid) {
            return self.known().keys.clone();
        }
        // Whoever comes meanwhile waits, and then finds that it is done.
        let _alone = self.asking.lock().await;
        if self.is_due(kid) {
            self.known().asked = Some(Instant::now());
            self.ask().await;
        }
        self.known().keys.clone()
    }

    fn is_due(&self, kid: &str) -> bool {
        let known = self.known();
        let older = |at: Option<Instant>, than: Duration| at.is_none_or(|at| at.elapsed() >= than);
        let wanted = older(known.had, FRESH_FOR) || known.keys.get(kid).is_none();
        wanted && older(known.asked, ASK_AGAIN)
    }

    async fn ask(&self) {
        let (name, at) = (&self.settings.name, &self.settings.jwks);
        let read = (self.fetch)(at).await;
        match read.and_then(|document| Keys::parse(&document).map_err(str::to_owned)) {
            Ok(keys) => {
                tracing::info!(issuer = %name, keys = keys.len(), "the keys of a token issuer were read");
                let mut known = self.known();
                known.keys = Arc::new(keys);
                known.had = Some(Instant::now());
            }
            Err(error) => {
                tracing::warn!(issuer = %name, at = %at, error, "the keys of a token issuer cannot be had: those of before hold");
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
