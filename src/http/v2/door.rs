//! Who may come in by this listener, and what they may have (R-C36, R-X7, R-X8).
//!
//! Stands before everything that names an image, `hot` included. An identity is made once for each request; a right, of it
//! and the image, where the name is known. What is forbidden looks like what is not there: to callers who could log in
//! like a 401 in either case, to others like a 404.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;

use super::token;
use crate::auth::bearer::SERVICE;
use crate::auth::{Asked, Claim, Gate, Identity, Origin, Place, Recognised, Right, shown};
use crate::config::TrustedProxies;
use crate::http::error::{ApiError, Subject};
use crate::http::forwarded;
use crate::http::server::Caller;
use crate::oci::HostPort;
use crate::pull::{Probe, Pull, Target, View};

/// One listener's, by one configuration: who may, and what is meant. A request takes it once and goes by it to its end.
pub struct Door {
    gate: Arc<Gate>,
    view: View,
    listener: Arc<str>,
    tls: bool,
    proxies: TrustedProxies,
    /// Everybody may fetch what is public: no rule has to be read for that.
    open: bool,
}

/// The way to a listener's door as it is now. Cheap to clone; a reload hangs another door.
#[derive(Clone)]
pub struct Entrance(Arc<ArcSwap<Door>>);

impl Entrance {
    pub fn new(door: Door) -> Entrance {
        Entrance(Arc::new(ArcSwap::from_pointee(door)))
    }

    /// For every request from now on, whatever its connection.
    pub fn hang(&self, door: Door) {
        self.0.store(Arc::new(door));
    }

    /// Without a lock. Not to be held across a wait: see [`Guard::into_inner`].
    pub(super) fn now(&self) -> Guard<Arc<Door>> {
        self.0.load()
    }
}

/// Who stands there.
pub(super) struct Visitor {
    pub(super) who: Identity,
    pub(super) claim: Claim,
    pub(super) by_password: bool,
    /// The user of a password that was wrong, in this request or in the one that got its token.
    pub(super) mistaken: Option<Arc<str>>,
    from: Option<IpAddr>,
    /// The request's headers count for host and path.
    is_by_proxy: bool,
}

impl Visitor {
    fn new(recognised: Recognised, caller: &Caller) -> Visitor {
        Visitor {
            who: recognised.who,
            claim: recognised.claim,
            by_password: recognised.by_password,
            mistaken: recognised.mistaken,
            from: caller.address.ip(),
            is_by_proxy: caller.is_by_proxy,
        }
    }
}

impl Door {
    pub fn new(gate: Arc<Gate>, view: View, listener: &str, tls: bool, proxies: TrustedProxies) -> Door {
        Door {
            open: gate.policy().is_open(listener),
            gate,
            view,
            listener: listener.into(),
            tls,
            proxies,
        }
    }

    /// Returns the caller that a trusted proxy speaks for; `None`: it is the other end of the connection.
    pub(super) fn behind_proxies(&self, headers: &HeaderMap, caller: &Caller) -> Option<Caller> {
        caller.behind_proxies(headers, &self.proxies)
    }

    /// Returns whether the client's own connection is encrypted, as far as that is known for sure.
    pub(super) fn is_https(&self, headers: &HeaderMap, caller: &Caller) -> bool {
        self.tls || (caller.is_by_proxy && forwarded::is_https(headers))
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Where that needs no waiting.
    pub(super) fn visitor_now(&self, headers: &HeaderMap, caller: &Caller) -> Option<Visitor> {
        let recognised = self.gate.recognise_now(self.login(headers, caller), origin(caller))?;
        Some(Visitor::new(recognised, caller))
    }

    pub(super) async fn visitor(&self, headers: &HeaderMap, caller: &Caller) -> Visitor {
        let login = self.login(headers, caller);
        let recognised = self.gate.recognise(login, origin(caller)).await;
        Visitor::new(recognised, caller)
    }

    /// For what may be had without the login. See [`Gate::recognise_if_idle`].
    pub(super) async fn visitor_if_idle(&self, headers: &HeaderMap, caller: &Caller) -> Visitor {
        let login = self.login(headers, caller);
        let recognised = self.gate.recognise_if_idle(login, origin(caller)).await;
        Visitor::new(recognised, caller)
    }

    /// The caller as he would be without a login.
    pub(super) fn visitor_without_login(&self, caller: &Caller) -> Visitor {
        let recognised = Recognised {
            who: caller.certificate.clone(),
            claim: Claim::None,
            by_password: false,
            mistaken: None,
        };
        Visitor::new(recognised, caller)
    }

    /// To be awaited where a request of this visitor is refused.
    pub(super) async fn pace_refusal(&self, visitor: &Visitor, caller: &Caller) {
        if visitor.by_password && matches!(visitor.claim, Claim::Wrong | Claim::Busy) {
            self.gate.pace_refusal(origin(caller)).await;
        }
    }

    /// Finds out whether an anonymous token was given for a wrong login.
    pub(super) fn look_for_mistake(&self, visitor: &mut Visitor, headers: &HeaderMap) {
        if visitor.who.is_none() && visitor.claim == Claim::Good {
            visitor.mistaken = self.gate.mistake_behind(authorization(headers));
        }
    }

    /// To be called where a request is refused with 401: a wrong password behind it is logged, within bounds.
    pub(super) fn note_wrong_login(&self, visitor: &Visitor) {
        if let Some(user) = &visitor.mistaken {
            self.gate.note_wrong_login(user, &self.listener, visitor.from);
        }
    }

    /// The login that somebody brought; none is looked at where it could get nobody more: a daemon that sends the Hub's
    /// password to every mirror is left in peace (R-C37), and costs no bcrypt.
    fn login<'a>(&self, headers: &'a HeaderMap, caller: &Caller) -> Option<&'a str> {
        let brought = authorization(headers)?;
        let place = Place {
            listener: &self.listener,
            from: caller.address.ip(),
        };
        let counts = self.gate.knows_logins() && self.gate.policy().gains_by_login(place);
        counts.then_some(brought)
    }

    pub(super) fn place(&self, visitor: &Visitor) -> Place<'_> {
        Place {
            listener: &self.listener,
            from: visitor.from,
        }
    }

    fn right(&self, visitor: &Visitor, image: &str, needs_credentials: bool) -> Right {
        if self.open && !needs_credentials {
            return Right::Fetch;
        }
        self.gate.policy().right(&Asked {
            who: &visitor.who,
            place: self.place(visitor),
            image,
            needs_credentials,
        })
    }

    /// `None`: it depends on what the upstream says.
    pub(super) fn right_now(&self, visitor: &Visitor, pull: &Pull, target: &Target) -> Option<Right> {
        if let Some(needs_credentials) = pull.needs_credentials_now(target) {
            return Some(self.right(visitor, &target.key, needs_credentials));
        }
        let public = self.right(visitor, &target.key, false);
        (public == self.right(visitor, &target.key, true)).then_some(public)
    }

    /// `probe` is what the caller asks for: whether that can be had by anybody may have to be asked.
    pub(super) async fn right_to(
        &self,
        visitor: &Visitor,
        pull: &Arc<Pull>,
        target: &Target,
        probe: Option<&Probe>,
    ) -> Right {
        match (self.right_now(visitor, pull, target), probe) {
            (Some(right), _) => right,
            (None, Some(probe)) => {
                let needs_credentials = pull.needs_credentials(target, probe).await;
                self.right(visitor, &target.key, needs_credentials)
            }
            // Nothing that could be asked for: as if it were private.
            (None, None) => self.right(visitor, &target.key, true),
        }
    }

    /// The catalogue: unknown is private, and nobody is asked.
    pub(super) fn may_see(&self, visitor: &Visitor, pull: &Pull, target: &Target) -> bool {
        let needs_credentials = pull.needs_credentials_now(target).unwrap_or(true);
        self.right(visitor, &target.key, needs_credentials) >= Right::Held
    }

    /// Whether there is anything at all that could be pulled.
    pub(super) fn lets_in(&self, who: &Identity, visitor: &Visitor) -> bool {
        self.open || self.gate.policy().may_let_in(who, self.place(visitor))
    }

    /// Whether to ask callers who they are: it could get them more.
    fn asks(&self, visitor: &Visitor) -> bool {
        self.gate.knows_logins() && self.gate.policy().gains_by_login(self.place(visitor))
    }

    /// `/v2/`. Clients take from it whether they have to log in, and some ask nowhere else (R-C35, R-C36).
    pub(super) fn ping(&self, visitor: &Visitor, headers: &HeaderMap) -> Result<(), ApiError> {
        let is_wrong = visitor.claim == Claim::Wrong && self.gate.knows_logins();
        let let_in = self.lets_in(&visitor.who, visitor);
        match (visitor.claim, &visitor.who) {
            (Claim::Busy, _) => Err(ApiError::busy()),
            _ if is_wrong => Err(self.challenge(visitor, headers, None)),
            (_, Some(_)) => Ok(()),
            (Claim::Good, None) if let_in => Ok(()),
            (_, None) if self.asks(visitor) && (!let_in || visitor.claim == Claim::None) => {
                Err(self.challenge(visitor, headers, None))
            }
            (_, None) if let_in => Ok(()),
            _ => Err(ApiError::nothing_here()),
        }
    }

    /// Before a name is read: a caller who may have nothing at all learns nothing, not even which upstreams there are.
    pub(super) fn first_look(&self, visitor: &Visitor, headers: &HeaderMap, name: &str) -> Result<(), ApiError> {
        if visitor.who.is_some() || self.lets_in(&visitor.who, visitor) {
            return Ok(());
        }
        match (visitor.claim, self.asks(visitor)) {
            (Claim::Busy, _) => Err(ApiError::busy()),
            (_, true) => Err(self.challenge(visitor, headers, Some(name))),
            (_, false) => Err(ApiError::nothing_here()),
        }
    }

    /// What somebody without the right is told; the log knows more.
    pub(super) fn refusal(
        &self,
        visitor: &Visitor,
        headers: &HeaderMap,
        target: &Target,
        subject: Subject,
    ) -> ApiError {
        tracing::debug!(
            user = shown(&visitor.who),
            from = visitor.from.map(tracing::field::display),
            listener = %self.listener,
            image = %target.key,
            needs_credentials = target.upstream.credentials.is_some() || target.upstream.client_cert.is_some(),
            "refused: `larder auth check` tells by which rule"
        );
        if visitor.claim == Claim::Busy {
            return ApiError::busy();
        }
        match visitor.who.is_none() && self.asks(visitor) {
            true => self.challenge(visitor, headers, Some(&target.client_name)),
            false => ApiError::not_there_for_you(&target.key, subject),
        }
    }

    /// 401 with the one challenge that there is (R-C21).
    fn challenge(&self, visitor: &Visitor, headers: &HeaderMap, name: Option<&str>) -> ApiError {
        let mut challenge = format!(
            "Bearer realm=\"{}\",service=\"{SERVICE}\"",
            self.realm(visitor, headers)
        );
        // A name of the grammar's letters only: it stands in quotes.
        let is_plain =
            |name: &&str| name.len() <= 512 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:".contains(&b));
        if let Some(name) = name.filter(is_plain) {
            challenge += &format!(",scope=\"repository:{name}:pull\"");
        }
        match (visitor.claim, &visitor.mistaken) {
            // Docker reports this one as "unauthorized", and the other as an image that may not exist (R-C45).
            (Claim::Wrong, _) | (_, Some(_)) => challenge += ",error=\"invalid_token\"",
            (Claim::Good, None) => challenge += ",error=\"insufficient_scope\"",
            _ => {}
        }
        match visitor.mistaken {
            Some(_) => ApiError::log_in_again(&challenge),
            None => ApiError::log_in_first(&challenge),
        }
    }

    /// The scheme that the client of this request speaks.
    pub(super) fn scheme(&self, headers: &HeaderMap, caller: &Caller) -> &'static str {
        if self.is_https(headers, caller) {
            "https"
        } else {
            "http"
        }
    }

    /// Where the client reaches [`token::PATH`]: where it reached us.
    fn realm(&self, visitor: &Visitor, headers: &HeaderMap) -> String {
        if let Some(realm) = self.gate.realm() {
            return realm.to_owned();
        }
        // It is told to nobody but the caller, who may believe of himself what he likes.
        let scheme = match self.tls || forwarded::is_https(headers) {
            true => "https",
            false => "http",
        };
        let host = headers.get(HOST).and_then(|value| value.to_str().ok());
        let host = host.and_then(|host| host.parse::<HostPort>().ok());
        let host = host.map_or_else(|| "localhost".to_owned(), |host| host.to_string());
        let path = match visitor.is_by_proxy {
            true => forwarded::client_path(headers, token::PATH),
            false => token::PATH.to_owned(),
        };
        format!("{scheme}://{host}{path}")
    }
}

/// The connection, as logins are judged by it.
pub(super) fn origin(caller: &Caller) -> Origin<'_> {
    Origin {
        address: caller.address.ip(),
        certificate: &caller.certificate,
    }
}

/// The header's text; `Some("")`: there is one that is no text.
pub(super) fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(AUTHORIZATION)
        .map(|value| value.to_str().unwrap_or_default())
}

/// HTTP/2 has the host in the URI.
pub(super) fn settle_host(parts: &mut Parts) {
    if !parts.headers.contains_key(HOST)
        && let Some(authority) = parts.uri.authority()
        && let Ok(value) = axum::http::HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, value);
    }
}
