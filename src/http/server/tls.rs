//! The certificates that this side shows, and whose clients it takes.
//!
//! Where the proxy gets its certificate itself, [`Issued`] has it, and answers authorities that look whether its names are ours: they bring
//! no certificate, and hear no HTTP.
//!
//! Files are looked at again every few seconds when a client comes, so that a renewed certificate needs no restart.
//! One that cannot be used leaves the old one in place: a botched renewal must not be an outage before the expiry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::acme::Issued;
use crate::auth::policy::CERTIFICATE;
use crate::config::{ServerTls, TlsIdentity};
use crate::text;

/// How often the files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} {file}: {reason}; a PEM file is expected")]
    File {
        what: &'static str,
        file: PathBuf,
        reason: String,
    },
    #[error("certificate {cert} and key {key} cannot be used: {reason}")]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        reason: String,
    },
    #[error("TLS cannot be set up: {0}")]
    SetUp(#[from] rustls::Error),
}

/// The identity that a client's certificate gives, as rules know it: `cert:` and the subject's common name, else the
/// first name that it is for. The handshake has verified it.
///
/// A subject with several common names gives none: authorities and programs differ in which of them counts, so one
/// that checked the first would vouch for the last.
pub(super) fn identity_in(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let read = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut common = common_names(read.subject());
    if common.windows(2).any(|pair| pair[0] != pair[1]) {
        let names = text::excerpt(&format!("{common:?}"));
        tracing::warn!(
            names,
            "a client certificate has several common names and therefore gives no identity: expected one"
        );
        return None;
    }
    let name = common.pop().flatten().or_else(|| {
        let mut names = read.valid_dns_names().chain(read.valid_uri_names());
        names.next().map(str::to_owned)
    })?;
    let fits = !name.is_empty() && name.len() <= 255 && text::is_visible(&name);
    fits.then(|| format!("{CERTIFICATE}{name}").into())
}

/// The common names (2.5.4.3) of a subject: the contents of its sequence, in DER. `None` for one in an encoding that
/// is not read.
fn common_names(mut subject: &[u8]) -> Vec<Option<String>> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    let mut found = Vec::new();
    while let Some((_set, mut attributes, rest)) = element(subject) {
        subject = rest;
        while let Some((_sequence, pair, rest)) = element(attributes) {
            attributes = rest;
            let Some((0x06, kind, value)) = element(pair) else {
                continue;
            };
            if kind == COMMON_NAME {
                found.push(match element(value) {
                    // UTF8String, PrintableString, IA5String.
                    Some((0x0c | 0x13 | 0x16, text, _)) => std::str::from_utf8(text).ok().map(str::to_owned),
                    _ => None,
                });
            }
        }
    }
    found
}

/// The first element: its tag, its contents, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => {
            let (length, rest) = rest.split_at_checked(2)?;
            (usize::from(length[0]) << 8 | usize::from(length[1]), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// When and how long each file was.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// The certificates as last loaded. Cheap to clone.
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    files: ServerTls,
    issued: Arc<Issued>,
    look_again: Duration,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamp: Stamp,
    looked: Instant,
}

impl Certificates {
    /// `issued` is what is shown where no files are named.
    pub fn load(files: &ServerTls, issued: &Arc<Issued>) -> Result<Certificates, TlsError> {
        Certificates::load_with(files, issued, LOOK_AGAIN)
    }

    pub(super) fn load_with(
        files: &ServerTls,
        issued: &Arc<Issued>,
        look_again: Duration,
    ) -> Result<Certificates, TlsError> {
        // Before reading: a change in between is then seen as one.
        let stamp = stamp(files);
        let loaded = Loaded {
            config: read(files, issued)?,
            stamp,
            looked: Instant::now(),
        };
        Ok(Certificates(Arc::new(Inner {
            files: files.clone(),
            issued: issued.clone(),
            look_again,
            loaded: Mutex::new(loaded),
        })))
    }

    /// Shakes hands. `None`: it was an authority that looked for our answer; it has it, and the connection is closed.
    pub(super) async fn shake_hands(&self, tcp: TcpStream) -> io::Result<Option<TlsStream<TcpStream>>> {
        let acceptor = self.acceptor().await;
        if !self.0.files.is_acme() || !self.0.issued.is_challenged() {
            return acceptor.accept(tcp).await.map(Some);
        }
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let Some(challenge) = self.0.issued.handshake(&start.client_hello()) else {
            return start.into_stream(acceptor.config().clone()).await.map(Some);
        };
        let mut stream = start.into_stream(challenge).await?;
        stream.shutdown().await?;
        Ok(None)
    }

    /// What to shake hands with now.
    async fn acceptor(&self) -> TlsAcceptor {
        let due = {
            let mut loaded = self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let due = loaded.looked.elapsed() >= self.0.look_again;
            if due {
                // The others go on with what there is.
                loaded.looked = Instant::now();
            }
            due
        };
        if due {
            let inner = self.0.clone();
            let _ = tokio::task::spawn_blocking(move || inner.look()).await;
        }
        let loaded = self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(loaded.config.clone())
    }
}

impl Inner {
    fn look(&self) {
        let now = stamp(&self.files);
        if self.loaded.lock().unwrap_or_else(PoisonError::into_inner).stamp == now {
            return;
        }
        let config = read(&self.files, &self.issued);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match config {
            Ok(config) => {
                tracing::info!(files = %shown(&self.files), "TLS certificate reloaded");
                loaded.config = config;
                loaded.stamp = now;
            }
            // The stamp stays old: certificate and key are rarely written at once, and the next look may succeed.
            Err(error) => tracing::warn!(%error, "the changed TLS certificate is not used"),
        }
    }
}

/// The files that are read, in their order.
fn paths(files: &ServerTls) -> impl Iterator<Item = &PathBuf> {
    let pair = match &files.identity {
        TlsIdentity::Files { cert, key } => [Some(cert), Some(key)],
        TlsIdentity::Acme => [None, None],
    };
    pair.into_iter().flatten().chain(&files.client_ca)
}

fn shown(files: &ServerTls) -> String {
    paths(files)
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn stamp(files: &ServerTls) -> Stamp {
    let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
    paths(files).map(stamp).collect()
}

fn read(files: &ServerTls, issued: &Arc<Issued>) -> Result<Arc<ServerConfig>, TlsError> {
    let pair = match &files.identity {
        TlsIdentity::Acme => None,
        TlsIdentity::Files { cert, key } => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_file("TLS key", key, &e))?;
            Some((certificates("TLS certificate", cert)?, secret, cert, key))
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("client CA", file)? {
                roots.add(certificate).map_err(|e| bad_file("client CA", file, &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| bad_file("client CA", file, &e))?)
        }
    };
    let mut config = match pair {
        None => builder.with_cert_resolver(issued.clone()),
        Some((chain, secret, cert, key)) => {
            let bad_pair = |e: rustls::Error| TlsError::Pair {
                cert: cert.clone(),
                key: key.clone(),
                reason: e.to_string(),
            };
            builder.with_single_cert(chain, secret).map_err(bad_pair)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|e| bad_file(what, file, &e))?;
    match certificates.is_empty() {
        true => Err(bad_file(what, file, &"it holds no certificate")),
        false => Ok(certificates),
    }
}

fn bad_file(what: &'static str, file: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::File {
        what,
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}
