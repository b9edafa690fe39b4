//! Small documents of others than registries: the keys of token issuers, what certificate authorities say.

use std::path::Path;
use std::time::Duration;

use reqwest::Client;
use url::Url;

use super::credentials::Sources;
use super::reason::{self, Peer};
use super::{tls, transport};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The document at an address that the operator named, of `most` bytes at most. Follows no redirect, and uses no proxy of
/// the environment: what comes decides who may log in.
///
/// Errors: a sentence without secrets.
pub async fn get(url: &Url, ca_file: Option<&Path>, most: u64) -> Result<Vec<u8>, String> {
    let client = direct(ca_file, TIMEOUT)?;
    let request = client.get(url.clone()).header("accept", "application/json");
    let mut response = request.send().await.map_err(|error| said(&error.without_url()))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("it answered {}", response.status().as_u16()));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| said(&error.without_url()))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > most {
            return Err(format!("its document is larger than {most} bytes"));
        }
    }
    Ok(bytes)
}

/// A client that goes where it is sent and nowhere else: no redirects, no proxy.
///
/// Errors: a sentence without secrets.
pub fn direct(ca_file: Option<&Path>, timeout: Duration) -> Result<Client, String> {
    Client::builder()
        .tls_backend_preconfigured(tls::trusting(ca_file)?)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .no_proxy()
        .build()
        .map_err(|error| error.without_url().to_string())
}

/// The same for what is at `home`, by the way that upstreams are reached: through the proxy that was given, else the one that the
/// environment names.
///
/// Errors: a sentence without secrets.
pub fn by_proxy(home: &Url, ca_file: Option<&Path>, proxy: Option<&Url>, timeout: Duration) -> Result<Client, String> {
    let sources = Sources::from_env(|name| std::env::var(name).ok());
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls::trusting(ca_file)?)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .no_proxy();
    for (_, proxy) in transport::proxies(home, proxy, &sources)? {
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|error| error.without_url().to_string())
}

/// Why an exchange failed, in one line.
pub fn said(error: &(dyn std::error::Error + 'static)) -> String {
    reason::of(error, &Peer::default())
}
