//! Who may operate the proxy over its API (R-X16): whoever brings the token, or comes by a Unix socket as the proxy's own
//! user or root. Being on this machine is no proof: every user of it and every pod in the host's network is there.
//!
//! Health and metrics are for everybody who reaches the address: probes and scrapers carry no secrets. A web page is
//! refused before its token is looked at: a browser says so in `Sec-Fetch-Site` or `Origin`.

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::error::operators::OperatorError;
use super::labels::UnixPeer;
use crate::config::{Password, Secret};

/// What calls have to bring.
#[derive(Clone, Debug)]
pub enum ApiToken {
    /// By the operator.
    Configured(Password),
    /// By this process, for as long as it lives.
    Made(Secret),
    /// Nothing lets a call in but a Unix socket. The reason, for people.
    Closed(String),
}

impl Default for ApiToken {
    fn default() -> ApiToken {
        ApiToken::Closed("there is no token yet".to_owned())
    }
}

/// What holds now; a reload may change it.
pub type Token = Arc<ArcSwap<ApiToken>>;

/// Lets a call to the API through, or says what is missing.
pub(super) async fn guard(State(token): State<Token>, request: Request, next: Next) -> Response {
    if let Err(error) = check_site(&request) {
        return error.into_response();
    }
    let peer = request.extensions().get::<UnixPeer>().copied();
    let verdict = match peer.is_some_and(is_own) {
        true => Ok(()),
        false => check(token.load_full(), request.headers()).await,
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// True if the kernel vouches that the caller is this process's user, or root.
fn is_own(UnixPeer(uid): UnixPeer) -> bool {
    uid.is_some_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw())
}

/// Refuses what a browser sends on behalf of another site. Programs send neither header.
fn check_site(request: &Request) -> Result<(), OperatorError> {
    let headers = request.headers();
    let fetched = headers.get_all("sec-fetch-site");
    let is_foreign = |site: &[u8]| !matches!(site, b"same-origin" | b"none");
    if fetched.iter().any(|site| is_foreign(site.as_bytes())) {
        return Err(OperatorError::cross_site());
    }
    // HTTP/2 puts the host into the URI.
    let named = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let host = named.or(headers.get(HOST).map(|host| host.as_bytes()));
    let host = host.map(<[u8]>::to_ascii_lowercase);
    for origin in headers.get_all(ORIGIN) {
        let origin = origin.as_bytes().to_ascii_lowercase();
        let authority = [&b"http://"[..], b"https://"]
            .iter()
            .find_map(|scheme| origin.strip_prefix(*scheme));
        if authority.is_none() || authority != host.as_deref() {
            return Err(OperatorError::cross_site());
        }
    }
    Ok(())
}

async fn check(token: Arc<ApiToken>, headers: &HeaderMap) -> Result<(), OperatorError> {
    if let ApiToken::Closed(why) = &*token {
        return Err(OperatorError::closed(why));
    }
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let Some((_, given)) = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        return Err(OperatorError::no_token());
    };
    let given = Secret::new(given.trim());
    // A file, perhaps, and read each time: a token that was changed counts at once.
    let wanted = tokio::task::spawn_blocking(move || match &*token {
        ApiToken::Configured(password) => password.read_token(),
        ApiToken::Made(secret) => Ok(secret.clone()),
        ApiToken::Closed(why) => Err(why.clone()),
    })
    .await;
    let wanted = match wanted {
        Ok(Ok(wanted)) => wanted,
        Ok(Err(error)) => {
            tracing::error!(%error, "admin.token_file: nobody can call the API");
            return Err(OperatorError::no_token());
        }
        Err(_) => return Err(OperatorError::no_token()),
    };
    match is_same(&given, &wanted) {
        true => Ok(()),
        false => Err(OperatorError::no_token()),
    }
}

/// Compares MACs under a key that nobody knows, so that the time it takes says nothing of either text.
fn is_same(given: &Secret, wanted: &Secret) -> bool {
    static KEY: LazyLock<Option<hmac::Key>> = LazyLock::new(|| {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    });
    let Some(key) = KEY.as_ref() else { return false };
    let tag = hmac::sign(key, wanted.reveal().as_bytes());
    hmac::verify(key, given.reveal().as_bytes(), tag.as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    async fn ask_as(token: ApiToken, peer: Option<UnixPeer>, headers: &[(&'static str, &str)]) -> StatusCode {
        let token: Token = Arc::new(ArcSwap::from_pointee(token));
        let router = Router::new()
            .route("/", get(|| async { "in" }))
            .route_layer(from_fn_with_state(token, guard));
        let mut request = Request::new(Body::empty());
        request.extensions_mut().extend(
            peer.map(|peer| {
                let mut extensions = axum::http::Extensions::new();
                extensions.insert(peer);
                extensions
            })
            .unwrap_or_default(),
        );
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        router.oneshot(request).await.unwrap().status()
    }

    async fn ask(token: ApiToken, header: Option<&str>) -> StatusCode {
        let headers: Vec<_> = header.iter().map(|value| ("authorization", *value)).collect();
        ask_as(token, None, &headers).await
    }

    fn made() -> ApiToken {
        ApiToken::Made(Secret::new("sixteen-letters!"))
    }

    #[tokio::test]
    async fn who_brings_the_token_may() {
        let configured = || ApiToken::Configured(Password::Value(Secret::new("sixteen-letters!")));
        for (header, expected) in [
            (Some("Bearer sixteen-letters!"), StatusCode::OK),
            (Some("bearer sixteen-letters!"), StatusCode::OK),
            (Some("Bearer sixteen-letters?"), StatusCode::UNAUTHORIZED),
            (Some("Bearer sixteen-letters"), StatusCode::UNAUTHORIZED),
            (Some("Bearer "), StatusCode::UNAUTHORIZED),
            (Some("Basic sixteen-letters!"), StatusCode::UNAUTHORIZED),
            (Some("sixteen-letters!"), StatusCode::UNAUTHORIZED),
            (None, StatusCode::UNAUTHORIZED),
        ] {
            for token in [made(), configured()] {
                assert_eq!(ask(token, header).await, expected, "{header:?}");
            }
        }
    }

    #[tokio::test]
    async fn closed_is_closed_whatever_comes() {
        for header in [None, Some("Bearer "), Some("Bearer there is no token yet")] {
            assert_eq!(ask(ApiToken::default(), header).await, StatusCode::FORBIDDEN);
        }
    }

    #[tokio::test]
    async fn by_a_socket_the_own_user_and_root_may() {
        let own = rustix::process::geteuid().as_raw();
        for (uid, expected) in [
            (Some(own), StatusCode::OK),
            (Some(0), StatusCode::OK),
            (Some(own + 4242), StatusCode::FORBIDDEN),
            (None, StatusCode::FORBIDDEN),
        ] {
            let peer = Some(UnixPeer(uid));
            assert_eq!(ask_as(ApiToken::default(), peer, &[]).await, expected, "{uid:?}");
        }
        let stranger = Some(UnixPeer(Some(own + 4242)));
        let token = [("authorization", "Bearer sixteen-letters!")];
        assert_eq!(ask_as(made(), stranger, &token).await, StatusCode::OK);
        assert_eq!(ask_as(made(), stranger, &[]).await, StatusCode::UNAUTHORIZED);
        // A page in root's own browser is a page.
        let page = [("sec-fetch-site", "cross-site")];
        assert_eq!(
            ask_as(made(), Some(UnixPeer(Some(0))), &page).await,
            StatusCode::FORBIDDEN
        );
    }

    #[tokio::test]
    async fn other_sites_are_refused_even_with_the_token() {
        let token = ("authorization", "Bearer sixteen-letters!");
        for (headers, expected) in [
            (vec![("sec-fetch-site", "none")], StatusCode::OK),
            (vec![("sec-fetch-site", "same-origin")], StatusCode::OK),
            (vec![("sec-fetch-site", "same-site")], StatusCode::FORBIDDEN),
            (vec![("sec-fetch-site", "cross-site")], StatusCode::FORBIDDEN),
            (vec![("sec-fetch-site", "")], StatusCode::FORBIDDEN),
            (
                vec![("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
                StatusCode::FORBIDDEN,
            ),
            (
                vec![("host", "localhost:5001"), ("origin", "http://localhost:5001")],
                StatusCode::OK,
            ),
            (
                vec![("host", "LocalHost:5001"), ("origin", "https://localhost:5001")],
                StatusCode::OK,
            ),
            (
                vec![("host", "localhost:5001"), ("origin", "http://localhost:3000")],
                StatusCode::FORBIDDEN,
            ),
            (
                vec![("host", "localhost:5001"), ("origin", "http://evil.example")],
                StatusCode::FORBIDDEN,
            ),
            (
                vec![("host", "localhost:5001"), ("origin", "null")],
                StatusCode::FORBIDDEN,
            ),
            (vec![("host", "null"), ("origin", "null")], StatusCode::FORBIDDEN),
            (vec![("origin", "http://localhost:5001")], StatusCode::FORBIDDEN),
        ] {
            let all: Vec<_> = headers.iter().copied().chain([token]).collect();
            assert_eq!(ask_as(made(), None, &all).await, expected, "{headers:?}");
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = ApiToken::Configured(Password::File(file.path().to_owned()));
        let ask = async |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            ask(token.clone(), Some("Bearer first-token-of-two")).await
        };
        assert_eq!(ask("first-token-of-two\n").await, StatusCode::OK);
        assert_eq!(ask("another-token-of-two\n").await, StatusCode::UNAUTHORIZED);
        // An empty file is no empty token, and what can be guessed is none.
        assert_eq!(ask("").await, StatusCode::UNAUTHORIZED);
        std::fs::write(file.path(), "a\n").unwrap();
        let guessed = ask_as(token.clone(), None, &[("authorization", "Bearer a")]).await;
        assert_eq!(guessed, StatusCode::UNAUTHORIZED);
    }
}
