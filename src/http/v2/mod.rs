//! The registry: the distribution specification's pull and content-discovery categories (R-S1).
//!
//! One handler: `hot` tells again what was told before; for all else `route` reads the path once, `pull` says what the
//! name means, and a file per kind of question turns the answer into headers. Names contain slashes, which no router can
//! split; see `route`.

mod blobs;
mod canary;
mod door;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hot;
mod listed;
mod manifests;
mod meaning;
mod referrers;
mod route;
mod tags;
mod timing;
mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VIA, WARNING};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body::Body as _;

use arc_swap::Guard;

use self::door::Visitor;
pub use self::door::{Door, Entrance};
use self::hot::{Again, Heads};
pub use self::meaning::{Meaning, meaning};
use self::route::{Name, Query, Route, What};
use super::access_log::{Line, Logged};
use super::error::{API_VERSION, ApiError, Subject};
use super::forwarded;
use super::labels::{self, Labels};
use super::outbox::Outbox;
use super::payload::Payload;
use super::range;
use super::server::{Caller, Handler, Peer};
use crate::auth::{Claim, Identity, Right};
use crate::oci::{Digest, Reference};
use crate::pull::canary::is_canary;
use crate::pull::{Circle, Forwarded, Outcome, Probe, Pull, PullError, Target, View};
use crate::telemetry::trace::Tracer;

/// Clients give up on headers after 30 s (R-C18); an answer has to be there before.
const DEADLINE: Duration = Duration::from_secs(25);

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A digest's bytes never change; a tag's target does, and no cache in front of Larder may freeze it (R-S27).
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// The answer to `/v2/`.
const PONG: Bytes = Bytes::from_static(b"{}");

type Response = axum::http::Response<Payload>;

/// The registry, with its access log.
#[derive(Clone)]
pub struct Registry {
    pull: Arc<Pull>,
    heads: Arc<Heads>,
    entrance: Entrance,
    /// Whether every answer says where its time went.
    timed: Arc<AtomicBool>,
    tracer: Tracer,
}

impl Registry {
    /// `timed`: every answer says where its time went, asked or not.
    pub fn new(pull: Arc<Pull>, timed: Arc<AtomicBool>, entrance: Entrance) -> Registry {
        Registry {
            pull,
            timed,
            heads: Arc::default(),
            entrance,
            tracer: Tracer::default(),
        }
    }

    /// Requests are recorded by this.
    pub fn traced(self, tracer: Tracer) -> Registry {
        Registry { tracer, ..self }
    }

    /// The same registry behind another listener.
    pub fn behind(&self, entrance: Entrance) -> Registry {
        Registry {
            entrance,
            ..self.clone()
        }
    }

    /// After a reload: what was told under another configuration only takes room.
    pub fn forget_heads(&self) {
        self.heads.clear();
    }

    /// What was told before, if it may be told to this visitor again.
    fn told(&self, door: &Door, visitor: &Visitor, parts: &Parts, caller: &Caller) -> Option<(Response, Labels)> {
        let may = |target: Option<&Target>| match target {
            None => door.ping(visitor, &parts.headers).is_ok(),
            Some(target) => door.right_now(visitor, &self.pull, target) >= Some(Right::Held),
        };
        self.heads
            .answer(&self.pull, door.view(), parts, caller.outbox.as_ref(), may)
    }
}

impl Handler for Registry {
    type Body = Logged<Payload>;

    async fn handle(&self, request: Request<Body>, caller: &Caller) -> axum::http::Response<Logged<Payload>> {
        let (mut parts, body) = request.into_parts();
        let events = self.pull.store().events();
        let watch = timing::wanted(self.timed.load(Ordering::Relaxed), &parts.headers);
        let is_head = parts.method == Method::HEAD;
        door::settle_host(&mut parts);
        // Once: whatever is reloaded meanwhile, this request goes by one configuration.
        let door = self.entrance.now();
        let behind = door.behind_proxies(&parts.headers, caller);
        let caller = behind.as_ref().unwrap_or(caller);
        if caller.is_by_proxy {
            forwarded::settle_host(&mut parts.headers);
        }
        let scheme = door.scheme(&parts.headers, caller);
        let mut line = Line::begin(&parts, caller).heard(events, &parts, caller, scheme);
        let span = line.traced(&self.tracer, &parts, caller, scheme);
        // Before all else: what came back waits for itself, and what is held here is no confirmation of what is held here.
        let through = through(&self.pull, &parts.headers);
        let (mut response, labels) = if let Err(circle) = &through {
            let mut response = failed(ApiError::in_a_circle(*circle));
            let labels = Labels::of(kind(&route::parse(parts.uri.path())), &mut response);
            (response, labels)
        } else if token::is_at(parts.uri.path()) && door.gate().knows_logins() {
            let door = Guard::into_inner(door);
            let (response, who) = Box::pin(span.over(self.token(&door, &parts, body, caller))).await;
            line.known_as(who);
            response
        } else {
            let known = door.visitor_now(&parts.headers, caller);
            let told = known
                .as_ref()
                .and_then(|visitor| self.told(&door, visitor, &parts, caller));
            match (told, known) {
                (Some(told), Some(visitor)) => {
                    line.known_as(visitor.who);
                    told
                }
                (_, known) => {
                    let door = Guard::into_inner(door);
                    // In a box: it is large, and hyper moves the future of every request.
                    let asking = through.unwrap_or_default().over(self.ask(&door, parts, known, caller));
                    let asking = Box::pin(asking);
                    // Once more where there is something around it, or each layer would hold it twice.
                    let (answer, who) = match &watch {
                        None if !span.is_recorded() => asking.await,
                        None => Box::pin(span.over(asking)).await,
                        Some(watch) => Box::pin(watch.clone().over(span.over(asking))).await,
                    };
                    line.known_as(who);
                    answer
                }
            }
        };
        if let Some(watch) = watch {
            timing::tell(&mut response, labels.outcome, &watch);
        }
        if is_head {
            // hyper would send it by HTTP/2.
            *response.body_mut() = Payload::empty();
        }
        let now = Instant::now();
        self.pull.tally().note(labels.outcome, now);
        line.answered(response, labels, now)
    }
}

/// The path of a request as its client sees it.
fn client_path(headers: &HeaderMap, caller: &Caller, path: &str) -> String {
    match caller.is_by_proxy {
        true => forwarded::client_path(headers, path),
        false => path.to_owned(),
    }
}

/// The Larders that a request has been through.
fn through(pull: &Pull, headers: &HeaderMap) -> Result<Forwarded, Circle> {
    match headers.contains_key(VIA) {
        false => Ok(Forwarded::default()),
        true => pull.via().read(headers.get_all(VIA).iter().map(HeaderValue::as_bytes)),
    }
}

/// A question about a repository, ready to be answered.
struct Ask {
    pull: Arc<Pull>,
    target: Target,
    query: Query,
    /// The path as the client sees it: what a Link leads back to (R-C79).
    path: String,
    headers: HeaderMap,
    is_head: bool,
    /// Who asks, and from where.
    who: Identity,
    by: Peer,
    /// Where files can be handed to, if the connection takes them.
    outbox: Option<Arc<Outbox>>,
}

impl Ask {
    /// Whether the client says that it has this already.
    fn has(&self, digest: &Digest) -> bool {
        let known = self.header(IF_NONE_MATCH);
        known.is_some() && range::if_none_match(known, &etag(digest))
    }

    /// A miss where nobody may be asked is a wish.
    fn wish(&self, error: &PullError, missing: &Reference, is_manifest: bool) {
        let by = match (&self.who, self.by.ip()) {
            (Some(name), _) => name.to_string(),
            (None, Some(ip)) => ip.to_canonical().to_string(),
            (None, None) => self.by.to_string(),
        };
        self.pull.wish(error, &self.target, missing, is_manifest, &by);
    }

    /// Returns whether a client sent it, through whatever proxies, and no other Larder.
    fn is_clients(&self) -> bool {
        through(&self.pull, &self.headers).is_ok_and(|forwarded| forwarded.is_empty())
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Registry {
    async fn token(&self, door: &Door, parts: &Parts, body: Body, caller: &Caller) -> ((Response, Labels), Identity) {
        let (answered, who) = token::answer(door, &self.pull, parts, body, caller).await;
        let mut response = answered.unwrap_or_else(respond);
        response.headers_mut().insert(API_VERSION.0, API_VERSION.1);
        let labels = Labels::of("token", &mut response);
        ((response, labels), who)
    }

    /// What takes longer; and who asked.
    async fn ask(
        &self,
        door: &Door,
        parts: Parts,
        known: Option<Visitor>,
        caller: &Caller,
    ) -> ((Response, Labels), Identity) {
        let (mut visitor, told) = match known {
            Some(visitor) => (visitor, None),
            None => {
                let visitor = match self.takes_no_login(door, &parts, caller) {
                    true => door.visitor_if_idle(&parts.headers, caller).await,
                    false => door.visitor(&parts.headers, caller).await,
                };
                let told = self.told(door, &visitor, &parts, caller);
                (visitor, told)
            }
        };
        let who = visitor.who.clone();
        match told {
            Some(told) => (told, who),
            None => {
                door.look_for_mistake(&mut visitor, &parts.headers);
                let answer = self.walk(door, parts, &visitor, caller).await;
                if answer.0.status() == StatusCode::UNAUTHORIZED {
                    door.note_wrong_login(&visitor);
                }
                if matches!(
                    answer.0.status(),
                    StatusCode::UNAUTHORIZED | StatusCode::SERVICE_UNAVAILABLE
                ) {
                    door.pace_refusal(&visitor, caller).await;
                }
                (answer, who)
            }
        }
    }

    /// True if all that is asked for may be had without the login that came with it, as far as is known now. Not so of
    /// `/v2/`, which says whether a login is right, nor of the catalogue, which shows more to some than to others.
    fn takes_no_login(&self, door: &Door, parts: &Parts, caller: &Caller) -> bool {
        let name = match route::parse(parts.uri.path()) {
            _ if !matches!(parts.method, Method::GET | Method::HEAD) => return true,
            Route::Repository { name, .. } => name,
            Route::Root | Route::Malformed | Route::Unknown => return true,
            Route::Ping { .. } | Route::Catalog => return false,
        };
        let nobody = door.visitor_without_login(caller);
        let query = route::query(parts.uri.query());
        match door.view().resolve_request(&name.full, query.ns.as_deref()) {
            Ok(target) => door.right_now(&nobody, &self.pull, &target) == Some(Right::Fetch),
            Err(_) => door.lets_in(&nobody.who, &nobody),
        }
    }

    /// The whole way, for what is not hot.
    async fn walk(&self, door: &Door, parts: Parts, visitor: &Visitor, caller: &Caller) -> (Response, Labels) {
        let pull = self.pull.clone();
        let path = parts.uri.path().to_owned();
        let whole_path = parts.uri.path_and_query().cloned();
        let query = route::query(parts.uri.query());
        let route = route::parse(&path);
        let label = kind(&route);
        let ns = query.ns.clone();
        let mut response = if !matches!(parts.method, Method::GET | Method::HEAD) {
            respond(refuse_write(door.view(), &path, &query))
        } else {
            let is_head = parts.method == Method::HEAD;
            match route {
                Route::Root => text_page(is_head),
                Route::Ping { prefix } if prefix.as_deref().is_none_or(|p| door.view().is_upstream(p)) => {
                    match door.ping(visitor, &parts.headers) {
                        Ok(()) => hot::may_repeat(json(PONG), Again::Ping),
                        Err(error) => respond(error),
                    }
                }
                Route::Catalog => match door.first_look(visitor, &parts.headers, "") {
                    Ok(()) => {
                        let may_pull = |target: &Target| door.may_see(visitor, &pull, target);
                        let at = client_path(&parts.headers, caller, &path);
                        let found = tags::catalog(&pull, door.view(), &query, &at, may_pull).await;
                        found.unwrap_or_else(respond)
                    }
                    Err(error) => respond(error),
                },
                Route::Repository { name, what } => {
                    let door = (door, visitor);
                    repository(pull, door, name, what, query, path, parts, caller).await
                }
                Route::Malformed => respond(ApiError::bad_path(&path)),
                Route::Ping { .. } | Route::Unknown => respond(ApiError::no_such_endpoint(&path)),
            }
        };
        // Before a HEAD loses its body, and with it the length.
        if let (None, Some(length)) = (
            response.headers().get(CONTENT_LENGTH),
            response.body().size_hint().exact(),
        ) && response.status() != StatusCode::NOT_MODIFIED
        {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        response.headers_mut().insert(API_VERSION.0, API_VERSION.1);
        // R-S22. A value that is no host was refused; its echo would be the client's own text all the same.
        if let Some(value) = ns.and_then(|ns| HeaderValue::from_str(&ns).ok()) {
            response.headers_mut().insert(OCI_NAMESPACE, value);
        }
        let labels = Labels::of(label, &mut response);
        self.heads.note(whole_path, &mut response, &labels);
        (response, labels)
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one request, taken apart")]
async fn repository(
    pull: Arc<Pull>,
    (door, visitor): (&Door, &Visitor),
    name: Name,
    what: What,
    query: Query,
    path: String,
    parts: Parts,
    caller: &Caller,
) -> Response {
    let asked_for: Option<Arc<str>> = match &what {
        What::Manifest(reference) | What::Blob(reference) => Some(reference.as_str().into()),
        What::Tags | What::Referrers(_) => None,
    };
    let about = |mut response: Response, repository: &str| {
        if let Some(reference) = asked_for.clone() {
            let repository = repository.into();
            let subject = Arc::new(labels::Subject { repository, reference });
            response.extensions_mut().insert(subject);
        }
        response
    };
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let subject = subject(&what);
    if let Err(error) = door.first_look(visitor, &parts.headers, &name.visible) {
        return about(refused(error), &name.full);
    }
    let view = door.view();
    let is_upstream = |text: &str| view.is_upstream(text);
    let resolved = meaning::resolve(&name, is_upstream, |full| {
        view.resolve_request(full, query.ns.as_deref())
    });
    let target = match resolved {
        Ok(mut target) => {
            target.client_name = name.visible;
            target
        }
        Err(error) => return about(respond(ApiError::of_pull(&error, subject, None)), &name.full),
    };
    if is_canary(target.repository.as_str()) {
        let asked = canary::Asked {
            target: &target,
            what: &what,
            parts: &parts,
        };
        return canary::answer(&pull, door, visitor, caller, &asked);
    }
    let upstream = labels::UpstreamName(target.upstream.name.as_str().into());
    let probe = probe(&what);
    let wait = pull.client_wait(&target);
    let right = wait.over(door.right_to(visitor, &pull, &target, probe.as_ref()));
    let right = tokio::time::timeout_at(deadline, right).await;
    let target = match right {
        Ok(right @ (Right::Fetch | Right::Held)) => {
            let mut target = target;
            target.held_only = right == Right::Held;
            target
        }
        // Whether anybody may have it could not be found out yet.
        Ok(Right::Nothing) if wait.is_over() => {
            let late = ApiError::of_pull(&wait.late(), subject, Some(&target));
            return about(failed(late), &target.key);
        }
        Ok(Right::Nothing) | Err(_) => {
            let mut refusal = refused(door.refusal(visitor, &parts.headers, &target, subject));
            // Nobody could say whether everybody may have it: that is the upstream's failure, which the client is not to know of.
            if door.right_now(visitor, &pull, &target).is_none()
                && let Some(why) = pull.why_failing(&target)
            {
                let why = format!("refused, as the upstream did not tell whether it is public: {why}");
                refusal.extensions_mut().insert(labels::Cause(why.into()));
            }
            return about(refusal, &target.key);
        }
    };
    let ask = Ask {
        pull,
        target,
        query,
        path: client_path(&parts.headers, caller, &path),
        is_head: parts.method == Method::HEAD,
        who: visitor.who.clone(),
        by: caller.address,
        outbox: caller.outbox.clone(),
        headers: parts.headers,
    };
    let answer = async || match &what {
        What::Manifest(reference) => manifests::answer(&ask, reference).await,
        What::Blob(digest) => blobs::answer(&ask, digest).await,
        What::Tags => tags::answer(&ask).await,
        What::Referrers(digest) => referrers::answer(&ask, digest).await,
    };
    let answering = async {
        match answer().await {
            // It may have joined what another Larder's request began, which goes in a circle as this one does not.
            Err(error) if error.status == StatusCode::LOOP_DETECTED && ask.is_clients() => answer().await,
            answered => answered,
        }
    };
    let answered = match tokio::time::timeout_at(deadline, wait.over(answering)).await {
        Ok(answered) => answered,
        Err(_) => Err(ApiError::too_slow(&ask.target, DEADLINE)),
    };
    let mut response = answered.unwrap_or_else(failed);
    // "Not there" would hide that it is the login that is wrong: the right one might have it fetched.
    let is_mistaken = visitor.claim == Claim::Wrong || visitor.mistaken.is_some();
    if is_mistaken && ask.target.held_only && response.status() == StatusCode::NOT_FOUND {
        response = refused(door.refusal(visitor, &ask.headers, &ask.target, subject));
    }
    note_why_stale(&mut response, &ask);
    response.extensions_mut().insert(upstream);
    about(response, &ask.target.key)
}

/// Answers a pull with an error, and labels it with the outcome for logs and counters.
fn failed(error: ApiError) -> Response {
    let outcome = error.outcome();
    let mut response = respond(error);
    if let Some(outcome) = outcome {
        response.extensions_mut().insert(labels::Outcome(outcome));
    }
    response
}

/// For the access log: what the upstream did, in place of the one word that the outcome has for it.
fn note_why_stale(response: &mut Response, ask: &Ask) {
    let is_stale = response.extensions().get() == Some(&labels::Outcome("stale"));
    if is_stale && let Some(why) = ask.pull.why_failing(&ask.target) {
        response.extensions_mut().insert(labels::Cause(why.into()));
    }
}

/// An answer to somebody without the right to another.
fn refused(error: ApiError) -> Response {
    let mut response = respond(error);
    response.extensions_mut().insert(labels::Outcome("refused"));
    response
}

/// What could be asked for as nobody, to see whether it is public.
fn probe(what: &What) -> Option<Probe> {
    match what {
        What::Manifest(reference) => reference.parse().ok().map(Probe::Manifest),
        What::Blob(digest) => digest.parse().ok().map(Probe::Blob),
        What::Tags => Some(Probe::Tags),
        What::Referrers(digest) => digest.parse().ok().map(Reference::Digest).map(Probe::Manifest),
    }
}

fn respond(error: ApiError) -> Response {
    error.into_response().map(Payload::from)
}

fn kind(route: &Route) -> &'static str {
    match route {
        Route::Root => "root",
        Route::Ping { .. } => "ping",
        Route::Catalog => "catalog",
        Route::Repository {
            what: What::Manifest(_),
            ..
        } => "manifest",
        Route::Repository {
            what: What::Blob(_), ..
        } => "blob",
        Route::Repository { what: What::Tags, .. } => "tags",
        Route::Repository {
            what: What::Referrers(_),
            ..
        } => "referrers",
        Route::Unknown | Route::Malformed => "other",
    }
}

fn subject(what: &What) -> Subject {
    match what {
        What::Manifest(_) => Subject::Manifest,
        What::Blob(_) => Subject::Blob,
        What::Tags => Subject::Tags,
        What::Referrers(_) => Subject::Referrers,
    }
}

/// R-S2: nothing is pushed here; the answer says where it could be.
fn refuse_write(view: &View, path: &str, query: &Query) -> ApiError {
    let name = path.strip_prefix("/v2/").and_then(|rest| {
        ["/blobs/", "/manifests/", "/tags/"]
            .iter()
            .filter_map(|m| rest.rfind(m))
            .max()
            .map(|at| &rest[..at])
    });
    let target = name.and_then(|name| view.resolve_request(name, query.ns.as_deref()).ok());
    ApiError::read_only(target.as_ref())
}

fn text_page(is_head: bool) -> Response {
    const PAGE: &str = "Larder: a pull-through cache of container registries. Images are under /v2/.\n";
    let body = if is_head { "" } else { PAGE };
    let mut response = Response::new(Bytes::from_static(body.as_bytes()).into());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(PAGE.len()));
    response
}

/// A small JSON document. The length is explicit, so that a HEAD keeps it.
fn json(text: impl Into<Bytes>) -> Response {
    let text = text.into();
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(text.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CACHE_CONTROL, NO_CACHE);
    response
}

/// Says how the answer came about: Cache-Status and Warning for clients, a label for log and metrics.
fn tell_outcome(response: &mut Response, outcome: &Outcome) {
    response.extensions_mut().insert(labels::Outcome(outcome.as_str()));
    let headers = response.headers_mut();
    let value = match outcome {
        Outcome::Hit => Ok(HeaderValue::from_static("larder; hit")),
        other => HeaderValue::from_str(&other.cache_status()),
    };
    if let Ok(value) = value {
        headers.insert(CACHE_STATUS, value);
    }
    if let Outcome::Stale { reason, .. } = outcome {
        let why = format!("the upstream did not confirm it ({reason})");
        response.extensions_mut().insert(labels::Cause(why.into()));
    }
    let headers = response.headers_mut();
    if let Some(value) = outcome.warning().and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(WARNING, value);
    }
}

/// `Docker-Content-Digest` and the strong `ETag` made from it (R-S11, R-S27), in one piece of memory.
fn tell_digest(headers: &mut HeaderMap, digest: &Digest) {
    let etag = Bytes::from(etag(digest));
    let bare = etag.slice(1..etag.len() - 1);
    if let (Ok(digest), Ok(etag)) = (
        HeaderValue::from_maybe_shared(bare),
        HeaderValue::from_maybe_shared(etag),
    ) {
        headers.insert(CONTENT_DIGEST, digest);
        headers.insert(ETAG, etag);
    }
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn not_modified(digest: &Digest, cache_control: HeaderValue) -> Response {
    let mut response = Response::new(Payload::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tell_digest(response.headers_mut(), digest);
    response.headers_mut().insert(CACHE_CONTROL, cache_control);
    response
}
