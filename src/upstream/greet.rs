//! What an upstream says at its door, for a checkup: once to somebody without credentials, once to its own client.
//!
//! Both ask `/v2/` of the upstream itself, mirrors left aside, once and without repeats.

use std::time::SystemTime;

use reqwest::Method;
use reqwest::header::DATE;

use super::challenge::Demand;
use super::client::Client;
use super::endpoint::{Ask, Endpoint};
use super::error::{ErrorKind, UpstreamError};
use super::walk::demand_of;
use super::{body, transport};
use crate::oci::{Reference, Repository, media_type};

/// The first answer.
#[derive(Clone, Debug)]
pub struct Greeting {
    pub status: u16,
    /// What time it is there, to the second.
    pub date: Option<SystemTime>,
    /// The token server, or `a user name and password`; `None` where it asks for nothing.
    pub asks: Option<String>,
}

impl Client {
    /// `/v2/` of the upstream itself, without Authorization. Whatever the status is, it was reached.
    pub async fn greet(&self, repository: &Repository) -> Result<Greeting, UpstreamError> {
        self.greet_at(&self.own, repository).await
    }

    /// The same of each mirror, in order, with its scheme, host and port.
    pub async fn greet_mirrors(&self, repository: &Repository) -> Vec<(String, Result<Greeting, UpstreamError>)> {
        let greeting = self.mirrors.iter().map(async |mirror| {
            let greeting = self.greet_at(mirror, repository).await;
            (mirror.base.origin().ascii_serialization(), greeting)
        });
        futures_util::future::join_all(greeting).await
    }

    /// `/v2/` with all that it asks for; a token is one for `repository`. Tells whether credentials were used.
    pub async fn enter(&self, repository: &Repository) -> Result<bool, UpstreamError> {
        self.let_in(&Method::GET, "", "*/*", repository).await
    }

    /// The head of a manifest. Tells whether credentials were used.
    pub async fn see(&self, repository: &Repository, reference: &Reference) -> Result<bool, UpstreamError> {
        let path = format!("{repository}/manifests/{reference}");
        self.let_in(&Method::HEAD, &path, media_type::MANIFEST_ACCEPT, repository)
            .await
    }

    async fn greet_at(&self, endpoint: &Endpoint, repository: &Repository) -> Result<Greeting, UpstreamError> {
        let ask = Ask {
            kind: "ping",
            method: &Method::GET,
            url: &endpoint.url(""),
            accept: "*/*",
            range: None,
            as_stored: false,
            repository: &endpoint.name_of(repository),
            as_nobody: true,
            waiting: None,
        };
        let walked = self.bounded(endpoint.walk(&ask, None)).await?;
        let headers = walked.response.headers();
        let greeting = Greeting {
            status: walked.response.status().as_u16(),
            date: body::text(headers, &DATE).and_then(|text| httpdate::parse_http_date(text).ok()),
            asks: demand_of(headers).ok().map(|demand| match demand {
                Demand::Bearer { realm, .. } => match realm.parse() {
                    Ok(realm) => format!("a token of {}", transport::shown(&realm)),
                    Err(_) => "a token of a server whose address makes no sense".to_owned(),
                },
                Demand::Basic => "a user name and password".to_owned(),
            }),
        };
        body::drain(walked.response).await;
        Ok(greeting)
    }

    async fn let_in(
        &self,
        method: &Method,
        path: &str,
        accept: &'static str,
        repository: &Repository,
    ) -> Result<bool, UpstreamError> {
        let ask = Ask {
            kind: "ping",
            method,
            url: &self.own.url(path),
            accept,
            range: None,
            as_stored: false,
            repository: &self.own.name_of(repository),
            as_nobody: false,
            waiting: None,
        };
        let answer = self.bounded(self.own.ask(&ask)).await?;
        let with_credentials = answer.with_credentials;
        body::drain(answer.response).await;
        Ok(with_credentials)
    }

    async fn bounded<T>(&self, asking: impl Future<Output = Result<T, ErrorKind>>) -> Result<T, UpstreamError> {
        if self.offline {
            return Err(self.error(ErrorKind::Offline));
        }
        let patience = self.tuning.headers;
        let asked = tokio::time::timeout(patience, asking).await;
        asked
            .unwrap_or(Err(ErrorKind::Timeout(patience)))
            .map_err(|kind| self.error(kind))
    }
}
