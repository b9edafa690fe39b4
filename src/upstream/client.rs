//! One upstream, asked five questions.

use std::sync::Arc;

use bytes::Bytes;

use super::error::UpstreamError;
use crate::config::Config;
use crate::oci::{Digest, HostPort, Reference, Repository};

/// Every upstream's client, built once.
pub struct Clients {}

impl Clients {
    /// Reads CA files and client certificates; dials nothing.
    pub fn new(_config: &Config) -> Result<Clients, BuildError> {
        unreachable!()
    }

    /// By canonical name, as in `Config::upstreams`.
    pub fn get(&self, _name: &HostPort) -> Option<&Arc<Client>> {
        None
    }

    /// All, for readiness and metrics.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Client>> {
        std::iter::empty()
    }
}

/// A file that the configuration names and that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {what}")]
pub struct BuildError {
    pub upstream: String,
    pub what: String,
}

/// A client of one upstream. Every method: token flow, redirects, mirrors, breaker, header deadline
/// and the quick retries before the first byte are inside; what comes out is the verdict.
pub struct Client {}

/// What a HEAD of a manifest told; `None` where the upstream left it out.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    /// Essence, lower-case.
    pub media_type: Option<String>,
    pub size: Option<u64>,
}

/// A manifest's bytes, at most `MAX_MANIFEST_BYTES`, unverified.
#[derive(Clone, Debug)]
pub struct ManifestBody {
    pub bytes: Bytes,
    /// The Content-Type header as it came.
    pub content_type: Option<String>,
    /// Docker-Content-Digest of the first hop that had one (R-U22).
    pub digest: Option<Digest>,
}

#[derive(Clone, Debug)]
pub struct BlobHead {
    pub size: Option<u64>,
}

/// Descriptors as they came, pages merged.
#[derive(Clone, Debug)]
pub enum Referrers {
    /// The answer of the referrers API: the `manifests` of every page.
    Listed(Vec<serde_json::Value>),
    /// 404, 405, 400 or another Content-Type: the upstream has no such API (R-S21).
    Unsupported,
}

/// A blob's bytes as they come.
pub struct BlobStream {
    /// Offset in the blob of the first byte that [`BlobStream::next`] gives. It is the offset asked for, or 0 when
    /// the upstream ignored the Range (R-U25).
    pub start: u64,
    /// Size of the whole blob, where the answer tells it.
    pub total: Option<u64>,
    pub content_type: Option<String>,
}

impl BlobStream {
    /// The next piece; `Ok(None)` at the end of a body that was complete by its own framing.
    /// Errors: `Timeout` after `read_timeout` without a byte, `Cut` when the connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        unreachable!()
    }
}

impl Client {
    pub fn name(&self) -> &Arc<str> {
        unreachable!()
    }

    /// Whether a token server or credentials were needed for this repository's last answer (L8).
    pub fn has_credentials(&self, _repository: &Repository) -> bool {
        unreachable!()
    }

    /// The time left until the breaker closes, if it is open.
    pub fn paused(&self) -> Option<std::time::Duration> {
        unreachable!()
    }

    pub async fn head_manifest(&self, _: &Repository, _: &Reference) -> Result<ManifestHead, UpstreamError> {
        unreachable!()
    }

    pub async fn get_manifest(&self, _: &Repository, _: &Reference) -> Result<ManifestBody, UpstreamError> {
        unreachable!()
    }

    pub async fn head_blob(&self, _: &Repository, _: &Digest) -> Result<BlobHead, UpstreamError> {
        unreachable!()
    }

    /// `offset` > 0 asks with `Range: bytes=offset-`. A 416 is `Protocol`.
    pub async fn get_blob(&self, _: &Repository, _: &Digest, _offset: u64) -> Result<BlobStream, UpstreamError> {
        unreachable!()
    }

    /// Every tag, pages followed.
    pub async fn tags(&self, _: &Repository) -> Result<Vec<String>, UpstreamError> {
        unreachable!()
    }

    pub async fn referrers(&self, _: &Repository, _: &Digest) -> Result<Referrers, UpstreamError> {
        unreachable!()
    }
}
