//! Calls to clouds: small, few, and bounded in size and time.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::super::body::{self, MAX_TOKEN_BYTES};
use super::super::transport::{Transport, failure, shown};
use crate::config::Secret;

/// Of a service in the cloud.
const FAR: Duration = Duration::from_secs(15);
/// Of a metadata service on this machine or beside it.
const NEAR: Duration = Duration::from_secs(5);

/// Whose way a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// That of the upstream: through its proxy, by its authorities.
    Far,
    /// Straight: no proxy leads to a metadata address.
    Near,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub way: Way,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: String,
}

impl Call {
    pub fn get(way: Way, url: Url) -> Call {
        Call {
            way,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: String::new(),
        }
    }

    pub fn post(way: Way, url: Url, content_type: &'static str, body: String) -> Call {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Call {
            way,
            method: Method::POST,
            url,
            headers,
            body,
        }
    }

    pub fn form(way: Way, url: Url, fields: &[(&str, &str)]) -> Call {
        Call::post(way, url, "application/x-www-form-urlencoded", super::form(fields))
    }

    /// Marked sensitive, whatever it holds.
    ///
    /// Errors: characters that no header can carry.
    pub fn with(mut self, name: &'static str, value: &str) -> Result<Call, String> {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("what goes into the header {name} holds strange characters"))?;
        value.set_sensitive(true);
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }
}

/// The two ways.
#[derive(Clone)]
pub struct Http {
    far: reqwest::Client,
    near: reqwest::Client,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cloud::Http")
    }
}

impl Http {
    pub fn of(transport: &Transport) -> Http {
        Http {
            far: transport.trusted(),
            near: transport.near(),
        }
    }

    /// The body of a 200.
    ///
    /// Errors: where it was, the status, and what it said of itself, without any of `secrets`.
    pub async fn send(&self, call: Call, secrets: &[&str]) -> Result<Bytes, String> {
        let place = shown(&call.url);
        let (client, patience) = match call.way {
            Way::Far => (&self.far, FAR),
            Way::Near => (&self.near, NEAR),
        };
        let request = client
            .request(call.method, call.url)
            .headers(call.headers)
            .body(call.body);
        let answering = async {
            let response = request.send().await.map_err(|error| failure(error).to_string())?;
            let status = response.status().as_u16();
            if status == 200 {
                let whole = body::whole(response, MAX_TOKEN_BYTES, patience).await;
                return whole.map_err(|kind| kind.to_string());
            }
            Err(format!("{status}: {}", body::detail(response, secrets).await))
        };
        match tokio::time::timeout(patience, answering).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(what)) => Err(format!("{place} answered: {what}")),
            Err(_) => Err(format!("{place} did not answer within {} s", patience.as_secs())),
        }
    }

    pub async fn json(&self, call: Call, secrets: &[&str]) -> Result<Json, String> {
        let place = shown(&call.url);
        let bytes = self.send(call, secrets).await?;
        let value =
            serde_json::from_slice(&bytes).map_err(|_| format!("{place} answered with something else than JSON"))?;
        Ok(Json { place, value })
    }
}

/// An answer of which nothing may be repeated.
pub struct Json {
    place: String,
    value: serde_json::Value,
}

impl Json {
    /// A text that has to be there; `path` as in a JSON pointer.
    pub fn text(&self, path: &str) -> Result<&str, String> {
        let found = self.value.pointer(path).and_then(serde_json::Value::as_str);
        found
            .filter(|text| !text.is_empty())
            .ok_or_else(|| format!("{} answered without {path}", self.place))
    }

    pub fn secret(&self, path: &str) -> Result<Secret, String> {
        self.text(path).map(Secret::new)
    }

    /// Also where it is written as a text. Never infinite nor NaN, which no duration can be made of.
    pub fn number(&self, path: &str) -> Option<f64> {
        let found = self.value.pointer(path)?;
        let number: Option<f64> = found.as_f64().or_else(|| found.as_str()?.parse().ok());
        number.filter(|number| number.is_finite())
    }

    /// A time to come.
    pub fn seconds(&self, path: &str) -> Option<Duration> {
        let seconds = self.number(path).filter(|seconds| (0.0..=1e6).contains(seconds));
        seconds.map(Duration::from_secs_f64)
    }
}
