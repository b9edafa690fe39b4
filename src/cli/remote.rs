//! A running proxy, asked over its admin API.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::app::admin_address::AdminAddress;
use crate::config::Secret;
use crate::text;

/// On the same machine or the same network: whoever does not take a connection by then is not there.
const CONNECT: Duration = Duration::from_secs(3);
/// A removal or a survey of a large cache on a slow disk takes a while.
const SILENCE: Duration = Duration::from_secs(120);

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody there.
    #[error("nothing answers at {0}: {1}")]
    Unreachable(String, String),
    /// The proxy wants a token, or another one; in its words.
    #[error("{0}")]
    Unauthorized(String),
    /// The proxy's own words.
    #[error("{0}")]
    Refused(String),
    /// What it was to read makes no sense; also in its words.
    #[error("{0}")]
    Configuration(String),
    /// Nothing was sent: nobody named the address.
    #[error("{0}")]
    Unnamed(String),
    #[error("what answers at {0} is no larder, or one of another version: {1}")]
    Strange(String, String),
}

pub struct Remote {
    http: reqwest::Client,
    /// For archives.
    patient: reqwest::Client,
    /// For bodies whose length is not known before: HTTP/1.1 would send them in chunks, which the proxy does not take.
    uploads: reqwest::Client,
    base: Url,
    shown: String,
    token: Mutex<Option<Secret>>,
    /// Looks for the token again: a proxy that was restarted has made another.
    look_again: Option<LookAgain>,
}

type LookAgain = Box<dyn Fn() -> Option<Secret> + Send + Sync>;

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorText,
}

#[derive(Deserialize)]
struct ErrorText {
    #[serde(default)]
    code: String,
    message: String,
}

impl Remote {
    /// Dials nothing yet. `token` is what the proxy may ask for.
    pub fn new(address: &AdminAddress, token: Option<Secret>) -> Result<Remote, String> {
        let build = |http2: bool| Ok::<_, String>(address.client(http2)?.connect_timeout(CONNECT));
        let client = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| error.to_string());
        Ok(Remote {
            http: client(build(false)?.read_timeout(SILENCE))?,
            patient: client(build(false)?)?,
            uploads: client(build(true)?)?,
            base: address.url.clone(),
            shown: address.shown(),
            token: Mutex::new(token),
            look_again: None,
        })
    }

    /// A call whose token is refused is tried once more with what this gives.
    pub fn looking_again(self, look_again: impl Fn() -> Option<Secret> + Send + Sync + 'static) -> Remote {
        Remote {
            look_again: Some(Box::new(look_again)),
            ..self
        }
    }

    /// Where it is, for people.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn token(&self) -> Option<Secret> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the token of now. `false`: it is the one of before.
    fn renew(&self) -> bool {
        let Some(found) = self.look_again.as_ref().and_then(|look| look()) else {
            return false;
        };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = token.as_ref() != Some(&found);
        *token = Some(found);
        is_other
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T, CallError> {
        self.call(Method::GET, path, query, None).await
    }

    /// `path` below `/api/v1`, in pieces that are encoded here.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<T, CallError> {
        match self.call_once(&method, path, query, body).await {
            Err(CallError::Unauthorized(_)) if self.renew() => self.call_once(&method, path, query, body).await,
            outcome => outcome,
        }
    }

    async fn call_once<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<T, CallError> {
        let url = self.url(path, query)?;
        let changes = *method != Method::GET;
        let mut request = self.http.request(method.clone(), url);
        if changes {
            request = request.header("content-type", "application/json");
        }
        if let Some(token) = self.token() {
            request = request.bearer_auth(token.reveal());
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        self.read(response).await
    }

    fn url(&self, path: &[&str], query: &[(&str, String)]) -> Result<Url, CallError> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(["api", "v1"]).extend(path),
            Err(()) => {
                let why = "it is no address of a server".to_owned();
                return Err(CallError::Strange(self.shown.clone(), why));
            }
        };
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn unreachable(&self, error: &reqwest::Error) -> CallError {
        CallError::Unreachable(self.shown.clone(), innermost(error))
    }

    /// A call with an order, that brings an archive: nobody knows how long it takes.
    pub async fn order(&self, path: &[&str], order: String) -> Result<reqwest::Response, CallError> {
        let url = self.url(path, &[])?;
        let once = || {
            let request = self.patient.post(url.clone());
            self.send(request.header("content-type", "application/json").body(order.clone()))
        };
        match once().await {
            Err(CallError::Unauthorized(_)) if self.renew() => once().await,
            outcome => outcome,
        }
    }

    /// A call that sends an archive. Its bytes come but once, and some are gone before a refusal is heard: a call that costs
    /// nothing finds out first whether the token is the one of now.
    pub async fn upload(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: reqwest::Body,
    ) -> Result<reqwest::Response, CallError> {
        self.get::<Value>(&["stats"], &[]).await?;
        let request = self.uploads.post(self.url(path, query)?);
        self.send(request.header("content-type", "application/x-tar").body(body))
            .await
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<reqwest::Response, CallError> {
        if let Some(token) = self.token() {
            request = request.bearer_auth(token.reveal());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(match self.read::<Value>(response).await {
                Err(error) => error,
                Ok(_) => CallError::Strange(self.shown.clone(), "an error that is none".to_owned()),
            }),
        }
    }

    /// An answer in JSON, or why there is none.
    pub async fn read<T: DeserializeOwned>(&self, response: reqwest::Response) -> Result<T, CallError> {
        let strange = |why: String| CallError::Strange(self.shown.clone(), why);
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| strange(text::excerpt(&error)));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error }) if error.code == "bad-configuration" => {
                Err(CallError::Configuration(text::report(&error.message)))
            }
            Ok(body) if status == StatusCode::UNAUTHORIZED => {
                Err(CallError::Unauthorized(text::report(&body.error.message)))
            }
            Ok(body) => Err(CallError::Refused(text::report(&body.error.message))),
            Err(_) => Err(strange(format!("it answered {status}"))),
        }
    }
}

/// What is at the bottom of it; what is above says only that a request failed.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    source.to_string()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::{get, post};

    use super::*;

    const NOW: &str = "the-token-of-now";

    /// The proxy was started again, and made another token: also calls with an archive look for it, and what they send is
    /// whole.
    #[tokio::test]
    async fn a_token_that_was_made_anew_is_looked_for_by_every_call() {
        fn answer(headers: &HeaderMap, text: String) -> (StatusCode, String) {
            match headers
                .get("authorization")
                .is_some_and(|value| value == &format!("Bearer {NOW}"))
            {
                true => (StatusCode::OK, serde_json::json!({ "heard": text }).to_string()),
                false => (
                    StatusCode::UNAUTHORIZED,
                    r#"{"error":{"code":"unauthorized","message":"no"}}"#.to_owned(),
                ),
            }
        }
        let take = async |headers: HeaderMap, text: String| answer(&headers, text);
        let router = Router::new()
            .route(
                "/api/v1/stats",
                get(async |headers: HeaderMap| answer(&headers, String::new())),
            )
            .route("/api/v1/order", post(take))
            .route("/api/v1/import", post(take));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let address = AdminAddress::at(at.parse().unwrap());
        let remote = || {
            let remote = Remote::new(&address, Some(Secret::new("the-token-of-before"))).unwrap();
            remote.looking_again(|| Some(Secret::new(NOW)))
        };
        let asked = remote();
        let response = asked.order(&["order"], "an order".to_owned()).await.unwrap();
        assert_eq!(asked.read::<Value>(response).await.unwrap()["heard"], "an order");
        let asked = remote();
        let pieces = ["an ", "archive"].map(|piece| Ok::<_, std::io::Error>(piece.to_owned()));
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let response = asked.upload(&["import"], &[], body).await.unwrap();
        assert_eq!(asked.read::<Value>(response).await.unwrap()["heard"], "an archive");
        // Without another token there is no second try.
        let asked = Remote::new(&address, Some(Secret::new("the-token-of-before"))).unwrap();
        let refused = asked.order(&["order"], String::new()).await.unwrap_err();
        assert!(matches!(refused, CallError::Unauthorized(_)), "{refused}");
        serving.abort();
    }
}
