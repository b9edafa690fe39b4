//! A client as any other: it pulls over HTTP, as container engines do, and believes nothing that it has not hashed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;

use super::image::Image;
use crate::oci::manifest::{Descriptor, Manifest, ManifestError};
use crate::oci::{Algorithm, Digest, Hasher, media_type};

/// Layers at once; what Docker does.
const AT_ONCE: usize = 3;
const CONNECT: Duration = Duration::from_secs(10);
/// Between two pieces: far more than the tour's link ever takes.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a pull failed; the text names the request.
#[derive(Debug, thiserror::Error)]
pub enum PullFault {
    #[error("the HTTP client cannot be built: {0}")]
    Client(String),
    #[error("{what}: {error}")]
    Http { what: String, error: reqwest::Error },
    #[error("{what}: answered {status}: {body}")]
    Status {
        what: String,
        status: StatusCode,
        body: String,
    },
    #[error("{what}: got bytes with the digest {found}")]
    Digest { what: String, found: Digest },
    #[error("{what}: got {found} bytes where the manifest says {expected}")]
    Size { what: String, expected: u64, found: u64 },
    #[error("the tag points at {found:?}, not at {expected}")]
    Tag { expected: Digest, found: Option<String> },
    #[error("the manifest is refused: {0}")]
    Manifest(#[from] ManifestError),
}

/// What pulls came to, as their clients saw it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pulled {
    pub clients: u64,
    pub requests: u64,
    /// Of bodies.
    pub bytes: u64,
    pub seconds: f64,
    /// Answers by their Cache-Status.
    pub outcomes: BTreeMap<String, u64>,
    /// Cache-Status of each question for a tag.
    pub tags: Vec<String>,
    /// Warning headers.
    pub warnings: Vec<String>,
}

impl Pulled {
    /// Sums; the time is whatever the caller measured around them.
    pub fn add(&mut self, other: Pulled) {
        self.clients += other.clients;
        self.requests += other.requests;
        self.bytes += other.bytes;
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.tags.extend(other.tags);
        self.warnings.extend(other.warnings);
    }

    fn note(&mut self, response: &Response) -> String {
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let status = header("cache-status").unwrap_or_default();
        self.requests += 1;
        *self.outcomes.entry(status.clone()).or_default() += 1;
        self.warnings.extend(header("warning"));
        status
    }
}

/// One client with connections of its own.
pub struct Client {
    http: reqwest::Client,
    registry: SocketAddr,
}

impl Client {
    pub fn new(registry: SocketAddr) -> Result<Client, PullFault> {
        let unbuilt = |error: &dyn std::fmt::Display| PullFault::Client(error.to_string());
        // Loopback without TLS: nobody's certificate is trusted, because none is needed.
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unbuilt(&error))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .no_proxy()
            .build()
            .map_err(|error| unbuilt(&error))?;
        Ok(Client { http, registry })
    }

    /// The tag by HEAD, the manifest by digest, then config and layers; every byte verified.
    pub async fn pull(&self, image: &Image) -> Result<Pulled, PullFault> {
        let begun = Instant::now();
        let mut pulled = Pulled {
            clients: 1,
            ..Pulled::default()
        };
        let tag = self.head_tag(image, &mut pulled).await?;
        pulled.tags.push(tag);
        let what = format!("manifests/{}", image.digest);
        let response = self.ask(Method::GET, image.repository, &what).await?;
        pulled.note(&response);
        let manifest = whole(response, &what, &image.digest).await?;
        pulled.bytes += manifest.len() as u64;
        let manifest = Manifest::parse(&manifest, Some(media_type::OCI_MANIFEST))?;
        let blobs = stream::iter(manifest.descriptors.into_iter().map(|blob| self.blob(image, blob)));
        let blobs: Vec<Pulled> = blobs.buffer_unordered(AT_ONCE).try_collect().await?;
        for blob in blobs {
            pulled.add(blob);
        }
        pulled.seconds = begun.elapsed().as_secs_f64();
        Ok(pulled)
    }

    /// The Cache-Status of a HEAD by tag, once it is clear that the tag points at the image.
    pub async fn head_tag(&self, image: &Image, pulled: &mut Pulled) -> Result<String, PullFault> {
        let what = format!("manifests/{}", image.tag);
        let response = self.ask(Method::HEAD, image.repository, &what).await?;
        let status = pulled.note(&response);
        let found = response.headers().get("docker-content-digest");
        let found = found.and_then(|value| value.to_str().ok());
        match found == Some(image.digest.to_string().as_str()) {
            true => Ok(status),
            false => Err(PullFault::Tag {
                expected: image.digest,
                found: found.map(str::to_owned),
            }),
        }
    }

    async fn blob(&self, image: &Image, blob: Descriptor) -> Result<Pulled, PullFault> {
        let what = format!("blobs/{}", blob.digest);
        let response = self.ask(Method::GET, image.repository, &what).await?;
        let mut pulled = Pulled::default();
        pulled.note(&response);
        pulled.bytes = discard(response, &what, &blob.digest).await?;
        match blob.size {
            Some(expected) if expected != pulled.bytes => Err(PullFault::Size {
                what,
                expected,
                found: pulled.bytes,
            }),
            _ => Ok(pulled),
        }
    }

    async fn ask(&self, method: Method, repository: &str, what: &str) -> Result<Response, PullFault> {
        let url = format!("http://{}/v2/{repository}/{what}", self.registry);
        let request = self.http.request(method.clone(), url);
        let request = request.header("accept", media_type::MANIFEST_ACCEPT);
        let what = format!("{method} {repository}/{what}");
        let response = request.send().await.map_err(|error| http(&what, error))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        let body = body.chars().take(200).collect();
        Err(PullFault::Status { what, status, body })
    }
}

fn http(what: &str, error: reqwest::Error) -> PullFault {
    PullFault::Http {
        what: what.to_owned(),
        error,
    }
}

/// A small body, whose digest is right.
async fn whole(response: Response, what: &str, digest: &Digest) -> Result<BytesMut, PullFault> {
    let mut all = BytesMut::new();
    read(response, what, digest, |piece| all.extend_from_slice(piece)).await?;
    Ok(all)
}

/// The length of a body whose digest is right.
async fn discard(response: Response, what: &str, digest: &Digest) -> Result<u64, PullFault> {
    let mut length = 0;
    read(response, what, digest, |piece| length += piece.len() as u64).await?;
    Ok(length)
}

async fn read(
    mut response: Response,
    what: &str,
    digest: &Digest,
    mut take: impl FnMut(&[u8]),
) -> Result<(), PullFault> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while let Some(piece) = response.chunk().await.map_err(|error| http(what, error))? {
        hasher.update(&piece);
        take(&piece);
    }
    match hasher.finish() {
        found if found == *digest => Ok(()),
        found => Err(PullFault::Digest {
            what: what.to_owned(),
            found,
        }),
    }
}
