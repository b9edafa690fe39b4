//! Who may operate the proxy over its API (R-X16): whoever knows the token; without a token, this machine.
//!
//! Health and metrics are for everybody who reaches the address: probes and scrapers carry no secrets.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::operators::OperatorError;
use super::labels::ClientAddr;
use crate::config::Password;
use crate::oci::Digest;

/// What the operator configured; a reload may change it.
pub type Token = Arc<ArcSwapOption<Password>>;

/// Lets a call to the API through, or says what is missing.
pub(super) async fn guard(State(token): State<Token>, request: Request, next: Next) -> Response {
    let verdict = match token.load_full() {
        Some(token) => check(token, request.headers()).await,
        None => is_local(&request),
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn is_local(request: &Request) -> Result<(), OperatorError> {
    let caller = request.extensions().get::<ClientAddr>();
    // A dual-stack listener shows 127.0.0.1 as ::ffff:127.0.0.1.
    match caller.is_some_and(|ClientAddr(address)| address.ip().to_canonical().is_loopback()) {
        true => Ok(()),
        false => Err(OperatorError::from_elsewhere()),
    }
}

async fn check(token: Arc<Password>, headers: &HeaderMap) -> Result<(), OperatorError> {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let Some((_, given)) = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        return Err(OperatorError::no_token());
    };
    // A file, perhaps, and read each time: a token that was changed counts at once.
    let wanted = tokio::task::spawn_blocking(move || token.read()).await;
    let wanted = match wanted {
        Ok(Ok(wanted)) => wanted,
        Ok(Err(error)) => {
            tracing::error!(%error, "admin.token_file: nobody can call the API");
            return Err(OperatorError::no_token());
        }
        Err(_) => return Err(OperatorError::no_token()),
    };
    // Of hashes, so that how far a guess is right does not show in the time it takes.
    match Digest::sha256(given.trim().as_bytes()) == Digest::sha256(wanted.reveal().as_bytes()) {
        true => Ok(()),
        false => Err(OperatorError::no_token()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Secret;

    async fn ask(token: Option<Arc<Password>>, from: Option<&str>, header: Option<&str>) -> StatusCode {
        let token: Token = Arc::new(ArcSwapOption::new(token));
        let router = Router::new()
            .route("/", get(|| async { "in" }))
            .route_layer(from_fn_with_state(token, guard));
        let mut request = Request::new(Body::empty());
        if let Some(from) = from {
            let address: SocketAddr = from.parse().unwrap();
            request.extensions_mut().insert(ClientAddr(address));
        }
        if let Some(header) = header {
            request.headers_mut().insert(AUTHORIZATION, header.parse().unwrap());
        }
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn without_a_token_this_machine_may() {
        for (from, expected) in [
            (Some("127.0.0.1:1"), StatusCode::OK),
            (Some("[::1]:1"), StatusCode::OK),
            (Some("[::ffff:127.0.0.1]:1"), StatusCode::OK),
            (Some("10.0.0.1:1"), StatusCode::FORBIDDEN),
            (Some("[::ffff:10.0.0.1]:1"), StatusCode::FORBIDDEN),
            (None, StatusCode::FORBIDDEN),
        ] {
            assert_eq!(ask(None, from, Some("Bearer anything")).await, expected, "{from:?}");
        }
    }

    #[tokio::test]
    async fn with_a_token_who_brings_it_may() {
        let token = || Some(Arc::new(Password::Value(Secret::new("sixteen-letters!"))));
        for (header, expected) in [
            (Some("Bearer sixteen-letters!"), StatusCode::OK),
            (Some("bearer sixteen-letters!"), StatusCode::OK),
            (Some("Bearer sixteen-letters?"), StatusCode::UNAUTHORIZED),
            (Some("Bearer "), StatusCode::UNAUTHORIZED),
            (Some("Basic sixteen-letters!"), StatusCode::UNAUTHORIZED),
            (Some("sixteen-letters!"), StatusCode::UNAUTHORIZED),
            (None, StatusCode::UNAUTHORIZED),
        ] {
            // Also on this machine.
            assert_eq!(ask(token(), Some("127.0.0.1:1"), header).await, expected, "{header:?}");
            assert_eq!(ask(token(), Some("10.0.0.1:1"), header).await, expected, "{header:?}");
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = Some(Arc::new(Password::File(file.path().to_owned())));
        let ask = async |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            ask(token.clone(), None, Some("Bearer first-token-of-two")).await
        };
        assert_eq!(ask("first-token-of-two\n").await, StatusCode::OK);
        assert_eq!(ask("another-token-of-two\n").await, StatusCode::UNAUTHORIZED);
        // An empty file is no empty token.
        assert_eq!(ask("").await, StatusCode::UNAUTHORIZED);
    }
}
