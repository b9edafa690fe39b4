//! The way to the authority: requests go to the host that the operator named, and nowhere else (L10).
//!
//! A directory says where its resources are. They have to be at its own scheme, host and port: what it says is not the operator's
//! word, and what is sent there is signed. Redirects are not followed, answers are bounded in size and time.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use url::Url;

use super::error::{Fault, one_line};
use crate::config::Acme;
use crate::upstream::documents;

const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A chain has some ten thousand bytes.
const MAX_BYTES: usize = 256 << 10;

/// Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    client: reqwest::Client,
    home: Url,
    /// When the last refusal said that we might come again.
    not_before: Arc<Mutex<Option<SystemTime>>>,
}

impl Directory {
    /// Reads the CA file.
    ///
    /// Errors: what is wrong on this side.
    pub fn new(acme: &Acme) -> Result<Directory, Fault> {
        let client = documents::by_proxy(&acme.directory, acme.ca_file.as_deref(), acme.proxy.as_ref(), PATIENCE);
        Ok(Directory {
            client: client.map_err(|what| Fault::Ours(format!("acme: {what}")))?,
            home: acme.directory.clone(),
            not_before: Arc::default(),
        })
    }

    /// Host and port, for messages.
    pub fn shown(&self) -> String {
        let host = self.home.host_str().unwrap_or_default();
        match self.home.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// What the directory asked for last, once.
    pub fn take_not_before(&self) -> Option<SystemTime> {
        self.not_before.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What an error of the library means.
    pub fn fault(&self, error: Error) -> Fault {
        let place = self.shown();
        match error {
            Error::Api(problem) => Fault::of_problem(&problem, &place),
            Error::Other(inner) => match inner.downcast::<Fault>() {
                Ok(fault) => *fault,
                Err(other) => Fault::Broken(place, one_line(&other.to_string())),
            },
            Error::Json(_) => Fault::Broken(
                place,
                "it answered what is no ACME; acme.directory has to be the address of a directory".to_owned(),
            ),
            Error::Timeout(_) => Fault::Broken(place, "it did not come to an end with the order".to_owned()),
            Error::KeyRejected => Fault::Ours("the account's key cannot be used".to_owned()),
            other => Fault::Broken(place, one_line(&other.to_string())),
        }
    }

    async fn send(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, Fault> {
        let place = self.shown();
        let (parts, body) = request.into_parts();
        let url = self.checked(&parts.uri.to_string())?;
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let mut headers = parts.headers;
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let sending = self
            .client
            .request(parts.method, url)
            .headers(headers)
            .body(body)
            .send();
        let mut response = sending
            .await
            .map_err(|error| Fault::Unreachable(place.clone(), one_line(&documents::said(&error.without_url()))))?;
        let status = response.status();
        self.note(status, response.headers());
        let mut bytes = BytesMut::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| Fault::Unreachable(place.clone(), one_line(&documents::said(&error.without_url()))))?
        {
            if bytes.len() + piece.len() > MAX_BYTES {
                return Err(Fault::Broken(
                    place,
                    format!("its answer is larger than {MAX_BYTES} bytes"),
                ));
            }
            bytes.extend_from_slice(&piece);
        }
        self.judge(status, response.headers(), &bytes)?;
        let mut answer = Response::new(Full::new(bytes.freeze()));
        *answer.status_mut() = status;
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }

    fn checked(&self, text: &str) -> Result<Url, Fault> {
        let url = Url::parse(text).ok();
        match url {
            Some(url) if url.origin() == self.home.origin() => Ok(url),
            other => {
                let origin = other.map_or_else(|| one_line(text), |url| url.origin().ascii_serialization());
                Err(Fault::Broken(
                    self.shown(),
                    format!(
                        "it leads to {origin}, which is not where acme.directory is: if that is right, name it there"
                    ),
                ))
            }
        }
    }

    /// Only a refusal asks to stay away; other answers say when to look again at an order.
    fn note(&self, status: StatusCode, headers: &HeaderMap) {
        if status.is_client_error() || status.is_server_error() {
            let at = headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok())
                .and_then(retry_after);
            *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
    }

    /// What is no answer of a directory: a redirect, or an error without a problem document.
    fn judge(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), Fault> {
        let place = self.shown();
        if status.is_redirection() {
            let target = headers
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("nowhere");
            let target = one_line(target.split('?').next().unwrap_or_default());
            return Err(Fault::Broken(
                place,
                format!(
                    "it answered {} and leads to {target}: if that is right, name it as acme.directory",
                    status.as_u16()
                ),
            ));
        }
        let is_problem = || serde_json::from_slice::<instant_acme::Problem>(body).is_ok();
        if status.is_success() || is_problem() {
            return Ok(());
        }
        let said = format!("it answered {status}");
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => Fault::RateLimited(place, said),
            _ => Fault::Broken(place, said),
        })
    }
}

/// Seconds, or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(text: &str) -> Option<SystemTime> {
    match u64::from_str(text.trim()) {
        Ok(seconds) => SystemTime::now().checked_add(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}

impl HttpClient for Directory {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let answer = this.send(request).await;
            answer
                .map(BytesResponse::from)
                .map_err(|fault| Error::Other(Box::new(fault)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn directory(url: &str) -> Directory {
        let text = format!(
            "[server]\ntls = {{ acme = true }}\n[acme]\naccept_terms = true\nnames = [\"a.example\"]\ndirectory = \"{url}\"\n"
        );
        Directory::new(&Config::from_toml(&text).unwrap().acme.unwrap()).unwrap()
    }

    #[test]
    fn it_leads_nowhere_else() {
        let directory = directory("https://ca.example/acme/directory");
        assert!(directory.checked("https://ca.example/other").is_ok());
        assert!(directory.checked("https://ca.example:443/other").is_ok());
        for bad in [
            "http://ca.example/acme",
            "https://ca.example:8443/",
            "https://169.254.169.254/latest",
            "https://ca.example.evil.example/",
            "https://x@evil.example/",
            "/relative",
            "",
        ] {
            let fault = directory.checked(bad).unwrap_err().to_string();
            assert!(fault.contains("which is not where acme.directory is"), "{bad}: {fault}");
        }
    }

    #[test]
    fn only_directories_answers_count() {
        let directory = directory("https://ca.example/directory");
        let judge = |status: u16, body: &str| {
            directory.judge(
                StatusCode::from_u16(status).unwrap(),
                &HeaderMap::new(),
                body.as_bytes(),
            )
        };
        assert!(judge(200, "").is_ok() && judge(400, r#"{"type":"x"}"#).is_ok());
        assert!(matches!(judge(502, "<html>"), Err(Fault::Broken(..))));
        assert!(matches!(judge(429, "slow down"), Err(Fault::RateLimited(..))));
        assert!(matches!(judge(302, ""), Err(Fault::Broken(..))));
    }

    #[test]
    fn patience_is_asked_for_by_refusals() {
        let directory = directory("https://ca.example/directory");
        let headers = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(value).unwrap())]);
        directory.note(StatusCode::OK, &headers("60"));
        assert_eq!(directory.take_not_before(), None);
        directory.note(StatusCode::TOO_MANY_REQUESTS, &headers("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(
            directory.take_not_before(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
        );
        assert_eq!(directory.take_not_before(), None);
        directory.note(StatusCode::SERVICE_UNAVAILABLE, &headers("3600"));
        assert!(directory.take_not_before().unwrap() > SystemTime::now() + Duration::from_secs(3590));
        directory.note(StatusCode::SERVICE_UNAVAILABLE, &headers("99999999999999999999"));
        assert_eq!(directory.take_not_before(), None);
    }
}
