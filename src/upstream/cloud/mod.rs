//! Short-lived tokens of the clouds' registries, got by the identity that this machine or process has there.
//!
//! `aws` speaks with ECR, `google` with Artifact Registry, `azure` with ACR; `sigv4` signs for the first, `http` carries all.
//! Where to ask is known for each cloud, or said by the same variables of the environment that its own programs read
//! (`Sources::cloud`). Nothing here is dialled, metadata addresses least of all, unless an upstream's `cloud` names that
//! cloud (L10); what comes back goes only to that upstream's own URL (L7).

mod aws;
mod azure;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod google;
mod http;
mod sigv4;

use std::collections::BTreeMap;

use url::Url;

use super::credentials::Sources;
use super::lease::Lease;
use super::transport::Transport;
use crate::config::{Cloud, Password, Secret};
use http::Http;

/// What gives out tokens for the registry at `base`.
pub fn lease(cloud: Cloud, base: &Url, transport: &Transport, sources: &Sources) -> Lease {
    let http = Http::of(transport);
    let variables = Variables(sources.cloud.clone());
    match cloud {
        Cloud::Aws => Lease::of(aws::Aws::new(base, http, variables)),
        Cloud::Google => Lease::of(google::Google::new(http, variables)),
        Cloud::Azure => Lease::of(azure::Azure::new(base, http, variables)),
    }
}

/// What the environment says; only the variables that clouds are known to set, and none of them empty.
#[derive(Debug)]
struct Variables(BTreeMap<String, Secret>);

impl Variables {
    fn secret(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::reveal)
    }

    fn need(&self, name: &str) -> Result<&str, String> {
        self.get(name).ok_or_else(|| format!("the variable {name} is not set"))
    }

    /// An address that a variable gives, else the usual one.
    fn address(&self, name: &str, usual: &str) -> Result<Url, String> {
        let text = self.get(name).unwrap_or(usual);
        text.parse().map_err(|_| format!("the variable {name} is not a URL"))
    }

    /// What is in the file that a variable names; read each time, for it is replaced before it ends.
    async fn file(&self, name: &str) -> Result<Secret, String> {
        let path = self.need(name)?.into();
        let reading = tokio::task::spawn_blocking(move || Password::File(path).read());
        let read = reading.await.map_err(|_| "a task ended early".to_owned())?;
        read.map_err(|what| format!("{name}: {what}"))
    }
}

/// `path` below an address, whether or not that ends in `/`.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// Fields joined as a form.
fn form(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}
