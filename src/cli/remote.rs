//! A running proxy, asked over its admin API.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

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
    Unreachable(Url, String),
    /// The proxy's own words.
    #[error("{0}")]
    Refused(String),
    /// What it was to read makes no sense; also in its words.
    #[error("{0}")]
    Configuration(String),
    #[error("what answers at {0} is no larder, or one of another version: {1}")]
    Strange(Url, String),
}

pub struct Remote {
    http: reqwest::Client,
    /// For archives.
    patient: reqwest::Client,
    /// For bodies whose length is not known before: HTTP/1.1 would send them in chunks, which the proxy does not take.
    uploads: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

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
    pub fn new(base: Url, token: Option<Secret>) -> Result<Remote, String> {
        let mut roots = rustls::RootCertStore::empty();
        if base.scheme() == "https" {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let build = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .connect_timeout(CONNECT)
                .redirect(reqwest::redirect::Policy::none())
                // A proxy for the internet is no way to the machine beside this one.
                .no_proxy()
        };
        let http = build()
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| error.to_string())?;
        let patient = build().build().map_err(|error| error.to_string())?;
        let uploads = build()
            .http2_prior_knowledge()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Remote {
            http,
            patient,
            uploads,
            base,
            token,
        })
    }

    pub fn base(&self) -> &Url {
        &self.base
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
        let url = self.url(path, query)?;
        let changes = method != Method::GET;
        let mut request = self.http.request(method, url);
        if changes {
            request = request.header("content-type", "application/json");
        }
        if let Some(token) = &self.token {
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
                return Err(CallError::Strange(self.base.clone(), why));
            }
        };
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn unreachable(&self, error: &reqwest::Error) -> CallError {
        CallError::Unreachable(self.base.clone(), innermost(error))
    }

    /// A call with an order, that brings an archive: nobody knows how long it takes.
    pub async fn order(&self, path: &[&str], order: String) -> Result<reqwest::Response, CallError> {
        let request = self.patient.post(self.url(path, &[])?);
        self.send(request.header("content-type", "application/json").body(order))
            .await
    }

    /// A call that sends an archive.
    pub async fn upload(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: reqwest::Body,
    ) -> Result<reqwest::Response, CallError> {
        let request = self.uploads.post(self.url(path, query)?);
        self.send(request.header("content-type", "application/x-tar").body(body))
            .await
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<reqwest::Response, CallError> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(match self.read::<Value>(response).await {
                Err(error) => error,
                Ok(_) => CallError::Strange(self.base.clone(), "an error that is none".to_owned()),
            }),
        }
    }

    /// An answer in JSON, or why there is none.
    pub async fn read<T: DeserializeOwned>(&self, response: reqwest::Response) -> Result<T, CallError> {
        let strange = |why: String| CallError::Strange(self.base.clone(), why);
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| strange(text::excerpt(&error)));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error }) if error.code == "bad-configuration" => {
                Err(CallError::Configuration(text::report(&error.message)))
            }
            Ok(body) => Err(CallError::Refused(text::report(&body.error.message))),
            Err(_) => Err(strange(format!("it answered {status}"))),
        }
    }
}

/// What is at the bottom of it; what is above says only that a request failed.
fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    source.to_string()
}
