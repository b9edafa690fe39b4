//! `/v2/_token`: a login becomes a token (Docker's token flow; R-C22, R-C46, R-C51, R-U7).
//!
//! `GET` with `Basic` credentials or none, `POST` with a form (`grant_type=password`). A login that is wrong is
//! refused, so that a client reports the password and not a missing image. Excepted is a pull of what everybody may
//! have: it gets an anonymous token whatever it brought, since a Docker daemon brings the Hub's password, or an
//! identity token in its place, to every mirror that asks (R-C37). A repository of which nobody knows yet if it is
//! public counts as such here. If the request that follows is refused all the same, its answer names the login.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use super::door::{Door, Visitor, origin};
use super::{Response, json as document};
use crate::auth::{Claim, Identity, Right, unix_seconds};
use crate::config::Secret;
use crate::http::error::ApiError;
use crate::http::server::Caller;
use crate::pull::Pull;

/// Largest form, bytes: a password may be a token.
const MAX_FORM: usize = 64 * 1024;
const FORM_WITHIN: Duration = Duration::from_secs(10);
/// Scopes of one request that are looked at.
const MAX_SCOPES: usize = 64;

/// Below `/v2/`, for proxies that let nothing else through. No repository can be there: no component of a name begins with `_` (R-S4).
pub(super) const PATH: &str = "/v2/_token";
/// Where it was before, for clients that were told so by `access.realm`.
const OLD_PATH: &str = "/token";

pub(super) fn is_at(path: &str) -> bool {
    path == PATH || path == OLD_PATH
}

/// What is asked for.
#[derive(Default)]
struct Request {
    scopes: Vec<String>,
    login: Option<(String, Secret)>,
    grant_type: Option<String>,
}

impl Request {
    fn read(pairs: &str) -> Request {
        let mut request = Request::default();
        let (mut username, mut password) = (None, None);
        for (key, value) in url::form_urlencoded::parse(pairs.as_bytes()) {
            match &*key {
                // Repeated, or in one with blanks between (R-C22).
                "scope" => request
                    .scopes
                    .extend(value.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned)),
                "username" => username = Some(value.into_owned()),
                "password" => password = Some(Secret::new(value)),
                "grant_type" => request.grant_type = Some(value.into_owned()),
                _ => {}
            }
        }
        request.scopes.truncate(MAX_SCOPES);
        request.login = username.zip(password);
        request
    }
}

/// The answer, and whom the token names.
pub(super) async fn answer(
    door: &Door,
    pull: &Arc<Pull>,
    parts: &Parts,
    body: Body,
    caller: &Caller,
) -> (Result<Response, ApiError>, Identity) {
    let request = match parts.method {
        // A password in a query would be in somebody's log.
        Method::GET | Method::HEAD => Request {
            login: None,
            ..Request::read(parts.uri.query().unwrap_or(""))
        },
        Method::POST => match form(body).await {
            Ok(request) => request,
            Err(error) => return (Err(error), None),
        },
        _ => return (Err(ApiError::no_such_endpoint(PATH)), None),
    };
    let is_bad =
        |kind: &&str| *kind != "password" && !(*kind == "refresh_token" && is_excused(door, pull, &request, caller));
    if let Some(kind) = request.grant_type.as_deref().filter(is_bad) {
        return (Err(ApiError::bad_grant(kind)), None);
    }
    let mut visitor = match takes_no_login(door, pull, &request, caller) {
        true => door.visitor_if_idle(&parts.headers, caller).await,
        false => door.visitor(&parts.headers, caller).await,
    };
    if let Some((name, password)) = &request.login {
        visitor.by_password = true;
        match door.gate().log_in(name, password.reveal(), origin(caller)).await {
            Ok(who) => (visitor.who, visitor.claim) = (who, Claim::Good),
            Err(claim) => {
                visitor.claim = claim;
                visitor.mistaken = (claim == Claim::Wrong).then(|| name.as_str().into());
            }
        }
    }
    let is_refused = visitor.claim == Claim::Wrong && !is_excused(door, pull, &request, caller);
    let answer = match is_refused {
        true => Err(ApiError::wrong_login()),
        false => {
            let is_brought = request.login.is_some() || parts.headers.contains_key(AUTHORIZATION);
            decide(door, pull, &visitor, &request, is_brought)
        }
    };
    if answer.is_err() {
        door.note_wrong_login(&visitor);
        door.pace_refusal(&visitor, caller).await;
    }
    (answer, visitor.who)
}

/// True if every scope that is asked for may be had without a login, as far as is known now. Without scope it is the
/// login itself that is asked about. The form's is a login that somebody made on purpose.
fn takes_no_login(door: &Door, pull: &Pull, request: &Request, caller: &Caller) -> bool {
    let may_fetch = |right| right == Some(Right::Fetch);
    request.login.is_none() && all_scopes(door, pull, request, caller, may_fetch)
}

/// True if some of every scope that is asked for may be had without a login, or may turn out to be: then a login that
/// is wrong may be meant for another registry.
fn is_excused(door: &Door, pull: &Pull, request: &Request, caller: &Caller) -> bool {
    all_scopes(door, pull, request, caller, |right| right != Some(Right::Nothing))
}

/// Returns whether `fits` holds for the right of a caller without login to every scope, as far as it is known now.
/// False without scopes, and for scopes that are about something else than a pull.
fn all_scopes(
    door: &Door,
    pull: &Pull,
    request: &Request,
    caller: &Caller,
    fits: impl Fn(Option<Right>) -> bool,
) -> bool {
    let nobody = door.visitor_without_login(caller);
    let fits_scope = |scope: &String| {
        let target = pulled(scope).and_then(|name| door.view().resolve_request(name, None).ok());
        target.is_some_and(|target| fits(door.right_now(&nobody, pull, &target)))
    };
    !request.scopes.is_empty() && request.scopes.iter().all(fits_scope)
}

/// `is_brought`: a login came, although it may not have been looked at.
fn decide(
    door: &Door,
    pull: &Pull,
    visitor: &Visitor,
    request: &Request,
    is_brought: bool,
) -> Result<Response, ApiError> {
    match visitor.claim {
        Claim::Busy => return Err(ApiError::busy()),
        Claim::Good => {}
        _ if visitor.who.is_some() || door.lets_in(&None, visitor) => {}
        _ if is_brought => return Err(ApiError::wrong_login()),
        _ => return Err(ApiError::no_login()),
    }
    let granted: Vec<Value> = request
        .scopes
        .iter()
        .filter_map(|scope| granted(door, pull, visitor, scope))
        .collect();
    let mint = door.gate().mint();
    let token = mint.issue(&visitor.who, Value::Array(granted), unix_seconds());
    if let Some(user) = &visitor.mistaken {
        door.gate().note_mistake(&token, user);
    }
    let issued_at = issued_at();
    let mut response = document(
        json!({
            "token": token,
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": mint.ttl().as_secs(),
            "issued_at": issued_at,
            "scope": request.scopes.join(" "),
        })
        .to_string(),
    );
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What of a scope may be had, as far as is known now; the request itself is what is decided about.
fn granted(door: &Door, pull: &Pull, visitor: &Visitor, scope: &str) -> Option<Value> {
    let name = pulled(scope)?;
    let target = door.view().resolve_request(name, None).ok()?;
    let right = door.right_now(visitor, pull, &target).unwrap_or(Right::Fetch);
    (right > Right::Nothing).then(|| json!({ "type": "repository", "name": name, "actions": ["pull"] }))
}

/// The repository that a scope is about, if it asks for a pull. Docker writes a class into that of a plugin:
/// `repository(plugin):NAME:pull`.
fn pulled(scope: &str) -> Option<&str> {
    let rest = scope.strip_prefix("repository")?;
    let rest = rest.strip_prefix("(plugin)").unwrap_or(rest);
    let (name, actions) = rest.strip_prefix(':')?.rsplit_once(':')?;
    let pulls = actions.split(',').any(|action| action == "pull" || action == "*");
    pulls.then_some(name)
}

async fn form(body: Body) -> Result<Request, ApiError> {
    let reading = Limited::new(body, MAX_FORM).collect();
    match tokio::time::timeout(FORM_WITHIN, reading).await {
        Ok(Ok(read)) => Ok(Request::read(&String::from_utf8_lossy(&read.to_bytes()))),
        _ => Err(ApiError::bad_form(MAX_FORM)),
    }
}

/// RFC 3339.
fn issued_at() -> String {
    rfc3339(unix_seconds())
}

fn rfc3339(seconds: u64) -> String {
    // An HTTP date has every part (`Sun, 06 Nov 1994 08:49:37 GMT`).
    let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    let text = httpdate::fmt_http_date(at);
    let parts: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, _] = parts.as_slice() else {
        return text;
    };
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = MONTHS.find(month).map_or(1, |at| at / 3 + 1);
    format!("{year}-{month:02}-{day}T{time}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(784_111_777), "1994-11-06T08:49:37Z");
    }

    #[test]
    fn scopes_that_are_pulls() {
        for (scope, name) in [
            ("repository:a/b:pull", Some("a/b")),
            ("repository:a/b:push,pull", Some("a/b")),
            ("repository:host:5000/a:*", Some("host:5000/a")),
            ("repository(plugin):a/b:pull", Some("a/b")),
            ("repository:a/b:push", None),
            ("repository(other):a/b:pull", None),
            ("repositorya/b:pull", None),
            ("registry:catalog:*", None),
            ("", None),
        ] {
            assert_eq!(pulled(scope), name, "{scope}");
        }
    }

    #[test]
    fn what_is_asked_for() {
        let read =
            Request::read("scope=repository:a/b:pull&scope=x%20y+z&username=u&password=p%26q&grant_type=password");
        assert_eq!(read.scopes, ["repository:a/b:pull", "x", "y", "z"]);
        let (name, password) = read.login.unwrap();
        assert_eq!((name.as_str(), password.reveal()), ("u", "p&q"));
        assert!(Request::read("username=u").login.is_none());
    }
}
