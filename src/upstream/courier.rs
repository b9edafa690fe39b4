//! Brings small documents to an address that the operator named: what webhooks are told.
//!
//! It goes there and nowhere else (L10): redirects are not followed, proxies of the environment are not used. Of the answer only
//! status and `Retry-After` count.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use url::Url;

use super::breaker::read_retry_after;
use super::documents::said;
use super::tls;
use crate::config::Secret;

const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));
/// Of an answer's body, so much is read and thrown away, so that the connection can be used again; bytes.
const MAX_ANSWER: usize = 16 << 10;
/// And for so long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// What was said to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    pub retry_after: Option<Duration>,
}

/// A client of one address.
#[derive(Clone)]
pub struct Courier {
    http: reqwest::Client,
    url: Url,
}

impl Courier {
    /// Reads `ca_file`; dials nothing. `timeout` is for a delivery, from connecting to the answer.
    ///
    /// Errors: a sentence without secrets.
    pub fn new(url: &Url, ca_file: Option<&Path>, proxy: Option<&Url>, timeout: Duration) -> Result<Courier, String> {
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::trusting(ca_file)?)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout)
            .no_proxy();
        if let Some(proxy) = proxy {
            let proxy = reqwest::Proxy::all(proxy.clone()).map_err(|error| said(&error.without_url()))?;
            builder = builder.proxy(proxy);
        }
        let http = builder.build().map_err(|error| said(&error.without_url()))?;
        Ok(Courier { http, url: url.clone() })
    }

    /// Errors: why nothing was said to it, without the address.
    pub async fn post(
        &self,
        content_type: &'static str,
        headers: &[(String, Secret)],
        body: Bytes,
    ) -> Result<Said, String> {
        let mut all = HeaderMap::new();
        all.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, value) in headers {
            let name: HeaderName = name.parse().map_err(|_| format!("{name} is no name of a header"))?;
            let mut value = HeaderValue::from_str(value.reveal()).map_err(|_| format!("{name} has a bad value"))?;
            value.set_sensitive(true);
            all.append(name, value);
        }
        all.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let request = self.http.post(self.url.clone()).headers(all).body(body);
        let mut response = request.send().await.map_err(|error| said(&error.without_url()))?;
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let answer = Said {
            status: response.status().as_u16(),
            retry_after: after.and_then(read_retry_after),
        };
        let drain = async {
            let mut got = 0;
            while let Ok(Some(piece)) = response.chunk().await {
                got += piece.len();
                if got > MAX_ANSWER {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(ANSWER_PATIENCE, drain).await;
        Ok(answer)
    }
}

/// Connects, and shakes hands where that is TLS; sends nothing. Behind a proxy, to that.
///
/// Errors: a sentence.
pub async fn reach(url: &Url, ca_file: Option<&Path>, timeout: Duration) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let connecting = async {
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| error.to_string())?;
        if url.scheme() != "https" {
            return Ok(());
        }
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls::trusting(ca_file)?));
        connector
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        Ok(())
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("nothing answers within {} s", timeout.as_secs_f64())),
    }
}
