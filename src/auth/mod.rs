//! Who is asking, and what they may pull.
//!
//! A request comes with an `Authorization` header, a client certificate, both or neither. [`Gate::recognise`] makes
//! an identity of them: `basic` knows passwords (`login_queue` says whose is hashed next), `bearer` the tokens that
//! Larder issued itself, `jwks` those of other issuers, and `jws` what a signed token is. `policy` makes a right of
//! identity, place and image; `hint` knows what operators should hear of it, and `wrong_logins` which wrong logins are
//! logged.
//!
//! Nothing here reaches the network, and nothing knows HTTP: a header comes as its text, and the keys of other issuers by
//! a function that is handed in. A login that is wrong makes a caller anonymous; what becomes of it is for `http` to say.

pub mod basic;
pub mod bearer;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hint;
pub mod jwks;
pub mod jws;
mod login_queue;
mod login_turns;
pub mod policy;
mod wrong_logins;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom as _, SystemRandom};

use self::basic::{Htpasswd, HtpasswdError, Login};
use self::bearer::Mint;
pub use self::hint::{UnusedCredentials, hints, knows_own_names, unused_credentials};
use self::jwks::{Fetch, Issuer};
use self::jws::{Token, TokenError};
use self::login_queue::Client;
use self::policy::CERTIFICATE;
pub use self::policy::{Asked, Explanation, Identity, Place, Policy, Right, shown};
use self::wrong_logins::WrongLogins;
use crate::config::Access;
use crate::oci::Digest;

/// How long a token that was right is believed without looking at its signature again, if it does not expire before.
const REMEMBERED: Duration = Duration::from_secs(60);
const MAX_REMEMBERED: u64 = 10_000;
/// As long as a token can be good at most.
const MISTAKES_FOR: Duration = Duration::from_secs(3600);

/// What a caller's login was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// There was none, or one that says "nobody".
    None,
    Good,
    /// It is not one of ours. A daemon may have sent what belongs to somebody else (R-C31).
    Wrong,
    /// Too many logins are being looked at.
    Busy,
    /// A password that was not looked at, because nothing depended on it.
    Unchecked,
}

/// The connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// `None`: a Unix socket.
    pub address: Option<IpAddr>,
    /// The identity in its client certificate.
    pub certificate: &'a Identity,
}

/// A caller, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    pub who: Identity,
    pub claim: Claim,
    /// True if what was judged was a password: refusals of those keep a pace.
    pub by_password: bool,
    /// The user of a password that was wrong.
    pub mistaken: Option<Arc<str>>,
}

/// Files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("access.htpasswd_file: {0}")]
    Htpasswd(#[from] HtpasswdError),
    #[error("the system has no randomness to make keys of")]
    NoRandomness,
    #[error("access.token_key_file: {file}: {reason}")]
    TokenKey { file: String, reason: String },
}

/// Everything that is known of callers and rules. One for all listeners.
pub struct Gate {
    policy: Policy,
    users: Option<Arc<Htpasswd>>,
    mint: Mint,
    issuers: Vec<Arc<Issuer>>,
    /// Where clients get tokens, if the operator says so.
    realm: Option<Arc<str>>,
    /// Tokens that were right, by their hash: whom they name, and until when they are believed.
    right: moka::sync::Cache<Digest, (Identity, Instant)>,
    /// Anonymous tokens that were given out although the login was wrong, by their hash: whose login that was.
    mistaken: moka::sync::Cache<Digest, Arc<str>>,
    wrong: Arc<WrongLogins>,
}

impl Gate {
    /// Reads the files that `access` names; asks nobody.
    pub fn new(access: &Access, fetch: &Fetch) -> Result<Gate, GateError> {
        Gate::build(access, fetch, None)
    }

    /// That of another configuration, after this one: files are read again. Tokens that were signed with a key of this process
    /// still say who somebody is, and what is known of an issuer's keys and of passwords that were right stays
    /// known, where they are asked as before. What somebody may is asked of the new rules.
    pub fn after(&self, access: &Access, fetch: &Fetch) -> Result<Gate, GateError> {
        Gate::build(access, fetch, Some(self))
    }

    fn build(access: &Access, fetch: &Fetch, before: Option<&Gate>) -> Result<Gate, GateError> {
        let users = match &access.htpasswd_file {
            Some(path) => {
                let users = Htpasswd::load(path, &random_bytes()?)?;
                let known = before.and_then(|before| before.users.as_ref());
                Some(match known {
                    Some(known) => users.remembering(known),
                    None => users,
                })
            }
            None => None,
        };
        let own = before.and_then(|before| before.mint.renewed(access.token_ttl));
        let mint = match (&access.token_key_file, own) {
            (None, Some(mint)) => mint,
            (None, None) => Mint::random(access.token_ttl)?,
            (Some(path), _) => Mint::from_file(path, access.token_ttl).map_err(|reason| GateError::TokenKey {
                file: path.display().to_string(),
                reason,
            })?,
        };
        let issuer = |issuer: &crate::config::Issuer| {
            let mut known = before.into_iter().flat_map(|before| &before.issuers);
            match known.find(|known| known.is_asked_as(issuer)) {
                Some(same) => same.clone(),
                None => Arc::new(Issuer::new(issuer.clone(), fetch.clone())),
            }
        };
        Ok(Gate {
            policy: Policy::new(access),
            users: users.map(Arc::new),
            mint,
            issuers: access.issuers.iter().map(issuer).collect(),
            realm: access.realm.as_ref().map(|url| url.as_str().into()),
            right: moka::sync::Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(REMEMBERED)
                .build(),
            mistaken: match before {
                Some(before) => before.mistaken.clone(),
                None => moka::sync::Cache::builder()
                    .max_capacity(MAX_REMEMBERED)
                    .time_to_live(MISTAKES_FOR)
                    .build(),
            },
            wrong: before.map(|before| before.wrong.clone()).unwrap_or_default(),
        })
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where clients get tokens; `None`: at the address that they ask.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    pub fn mint(&self) -> &Mint {
        &self.mint
    }

    /// Whether there is any way to log in: only then does a challenge help.
    pub fn knows_logins(&self) -> bool {
        self.users.is_some() || !self.issuers.is_empty()
    }

    /// Who is asking, where that needs no waiting.
    pub fn recognise_now(&self, authorization: Option<&str>, origin: Origin<'_>) -> Option<Recognised> {
        let certificate = origin.certificate;
        let without = |claim| {
            Some(Recognised {
                who: certificate.clone(),
                claim,
                by_password: false,
                mistaken: None,
            })
        };
        let good = |who: Identity| {
            let who = who.or_else(|| certificate.clone());
            Some(Recognised {
                who,
                claim: Claim::Good,
                by_password: false,
                mistaken: None,
            })
        };
        match Credentials::read(authorization) {
            Credentials::None => without(Claim::None),
            Credentials::Unreadable => without(Claim::Wrong),
            Credentials::Basic(name, password) => {
                if let Some(users) = &self.users
                    && users.remembers(&name, password.reveal())
                {
                    return good(Some(name.into()));
                }
                if let Some(who) = self.remembered(password.reveal(), origin) {
                    return good(who);
                }
                match self.knows_logins() {
                    true => None,
                    false => without(Claim::Wrong),
                }
            }
            Credentials::Bearer(token) => match self.remembered(token, origin) {
                Some(who) => good(who),
                None => None,
            },
        }
    }

    /// The same, with whatever it takes.
    pub async fn recognise(&self, authorization: Option<&str>, origin: Origin<'_>) -> Recognised {
        if let Some(recognised) = self.recognise_now(authorization, origin) {
            return recognised;
        }
        let certificate = origin.certificate;
        let credentials = Credentials::read(authorization);
        let by_password = matches!(credentials, Credentials::Basic(..));
        let mut mistaken = None;
        let login = match credentials {
            Credentials::Basic(name, password) => {
                let login = self.log_in(&name, password.reveal(), origin).await;
                mistaken = (login == Err(Claim::Wrong)).then(|| name.into());
                login
            }
            Credentials::Bearer(token) => self.read_token(token, origin).await.map_err(|_| Claim::Wrong),
            Credentials::None | Credentials::Unreadable => Err(Claim::Wrong),
        };
        let (who, claim) = match login {
            // An anonymous token on a connection with a certificate.
            Ok(who) => (who.or_else(|| certificate.clone()), Claim::Good),
            Err(claim) => (certificate.clone(), claim),
        };
        Recognised {
            who,
            claim,
            by_password,
            mistaken,
        }
    }

    /// For a request that may have all it asks for without the login: a password is checked only if it is known or
    /// nothing else is to be done, so that whoever brings one that is meant for another registry waits for nobody.
    pub async fn recognise_if_idle(&self, authorization: Option<&str>, origin: Origin<'_>) -> Recognised {
        if let Some(recognised) = self.recognise_now(authorization, origin) {
            return recognised;
        }
        let (Some(users), Credentials::Basic(name, password)) = (&self.users, Credentials::read(authorization)) else {
            return self.recognise(authorization, origin).await;
        };
        if self.is_token(password.reveal()) {
            return self.recognise(authorization, origin).await;
        }
        let client = Client::of(origin.address);
        let mut mistaken = None;
        let (who, claim) = match users.check_if_idle(&name, password.reveal(), client).await {
            Some(Login::Right) => (Some(name.into()), Claim::Good),
            Some(Login::Wrong) => {
                mistaken = Some(name.into());
                (origin.certificate.clone(), Claim::Wrong)
            }
            Some(Login::Busy) | None => (origin.certificate.clone(), Claim::Unchecked),
        };
        Recognised {
            who,
            claim,
            by_password: true,
            mistaken,
        }
    }

    /// Logs that a login of `user` was refused because it is wrong, unless there were many such lines already.
    /// `address` is the client's; `None`: it came by a Unix socket.
    pub fn note_wrong_login(&self, user: &str, listener: &str, address: Option<IpAddr>) {
        self.wrong.note(user, listener, address);
    }

    /// Notes that an anonymous token was given to somebody whose login as `user` was wrong.
    ///
    /// Anybody may send names of 64 KB, as many as there is room for here: only what is shown of them is kept.
    pub fn note_mistake(&self, token: &str, user: &Arc<str>) {
        let user = wrong_logins::shortened(user);
        self.mistaken.insert(Digest::sha256(token.as_bytes()), user);
    }

    /// The user of the wrong login that an anonymous token was given for, if there was one.
    pub fn mistake_behind(&self, authorization: Option<&str>) -> Option<Arc<str>> {
        match Credentials::read(authorization) {
            Credentials::Bearer(token) => self.mistaken.get(&Digest::sha256(token.as_bytes())),
            _ => None,
        }
    }

    /// To be awaited before a password is refused, or sent away for want of a place.
    pub async fn pace_refusal(&self, origin: Origin<'_>) {
        if let Some(users) = &self.users {
            users.pace_refusal(Client::of(origin.address)).await;
        }
    }

    /// True if what stands in place of a password is the token of an issuer.
    fn is_token(&self, password: &str) -> bool {
        !self.issuers.is_empty() && Token::parse(password).is_ok()
    }

    /// By name and password. In place of a password there may be the token of an issuer, whatever the name: `docker
    /// login` knows no other way to bring one.
    pub async fn log_in(&self, name: &str, password: &str, origin: Origin<'_>) -> Result<Identity, Claim> {
        if self.is_token(password) {
            return self.read_token(password, origin).await.map_err(|_| Claim::Wrong);
        }
        let Some(users) = &self.users else {
            return Err(Claim::Wrong);
        };
        match users.check(name, password, Client::of(origin.address)).await {
            Login::Right => Ok(Some(name.into())),
            Login::Wrong => Err(Claim::Wrong),
            Login::Busy => Err(Claim::Busy),
        }
    }

    fn remembered(&self, token: &str, origin: Origin<'_>) -> Option<Identity> {
        let (who, until) = self.right.get(&Digest::sha256(token.as_bytes()))?;
        (Instant::now() < until && self.still_knows(&who) && may_bear(&who, origin)).then_some(who)
    }

    /// Whether somebody whom a token names could still get one: who is taken out of the password file, or whose issuer is taken
    /// out of the configuration, does not stay until his token ends. A key from a file may be another proxy's too, which
    /// has users of its own; where there is no password file, that is for it to say.
    fn still_knows(&self, who: &Identity) -> bool {
        let Some(name) = who else { return true };
        match (name.split_once(':'), &self.users) {
            (None, Some(users)) => users.has(name),
            (None, None) => !self.mint.is_own(),
            (Some((issuer, _)), _) => {
                !self.mint.is_own() || name.starts_with(CERTIFICATE) || self.issuers.iter().any(|i| i.name() == issuer)
            }
        }
    }

    async fn read_token(&self, text: &str, origin: Origin<'_>) -> Result<Identity, TokenError> {
        if let Some(who) = self.remembered(text, origin) {
            return Ok(who);
        }
        let now = unix_seconds();
        let read = match Token::parse(text) {
            Ok(token) => {
                let claimed = token.claimed_issuer().map(str::to_owned);
                let issuer = claimed.and_then(|name| self.issuers.iter().find(|issuer| issuer.is_called(&name)));
                match issuer {
                    Some(issuer) => issuer.read(token, now).await,
                    None => self
                        .mint
                        .read(token, now)
                        .and_then(|read| match self.still_knows(&read.0) {
                            true => Ok(read),
                            false => Err(TokenError::Identity),
                        }),
                }
            }
            Err(error) => Err(error),
        };
        match read {
            Ok((who, expires)) => {
                let left = Duration::from_secs(expires.saturating_sub(now)).min(REMEMBERED);
                let until = Instant::now() + left;
                self.right.insert(Digest::sha256(text.as_bytes()), (who.clone(), until));
                match may_bear(&who, origin) {
                    true => Ok(who),
                    false => Err(TokenError::Certificate),
                }
            }
            Err(error) => Err(error),
        }
        .inspect_err(|error| tracing::debug!(%error, "a token is not believed"))
    }
}

/// Returns whether a token that names `who` is good on this connection. A name that a client certificate proved is
/// proved by that certificate only: whoever gets hold of such a token, which lies in logs and files as others do,
/// cannot use it elsewhere.
fn may_bear(who: &Identity, origin: Origin<'_>) -> bool {
    let needs_certificate = who.as_ref().is_some_and(|name| name.starts_with(CERTIFICATE));
    !needs_certificate || who == origin.certificate
}

/// What stands in an `Authorization` header.
enum Credentials<'a> {
    /// Nothing, or nobody: `Basic Og==` is an empty name and an empty password (R-C62).
    None,
    Basic(String, crate::config::Secret),
    Bearer(&'a str),
    Unreadable,
}

impl Credentials<'_> {
    fn read(header: Option<&str>) -> Credentials<'_> {
        let Some(header) = header else { return Credentials::None };
        let Some((scheme, rest)) = header.trim().split_once(' ') else {
            return Credentials::Unreadable;
        };
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() && rest.len() <= jws::MAX_TOKEN {
            return Credentials::Bearer(rest);
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Credentials::Unreadable;
        }
        match basic::pair(rest) {
            Some((name, password)) if name.is_empty() && password.reveal().is_empty() => Credentials::None,
            Some((name, password)) => Credentials::Basic(name, password),
            None => Credentials::Unreadable,
        }
    }
}

/// By the wall clock.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// 32 bytes that nobody can guess.
fn random_bytes() -> Result<[u8; 32], GateError> {
    let mut bytes = [0; 32];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(GateError::NoRandomness),
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
