//! Whom Larder believes to be an upstream, and how it proves itself to one that asks for a certificate.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::config::Upstream;

/// The system's certificates, read once: thirteen upstreams would read them thirteen times.
fn roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut store = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "some of the system's certificates cannot be read");
        }
        store.add_parsable_certificates(native.certs);
        if store.is_empty() {
            tracing::info!("the system has no certificates: using those that Larder was built with");
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Arc::new(store)
    };
    ROOTS.get_or_init(read).clone()
}

/// The system's trust and the operator's `ca_file`.
fn builder(ca_file: Option<&Path>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let mut trust = roots();
    if let Some(path) = ca_file {
        let mut store = RootCertStore::clone(&trust);
        for cert in certificates("ca_file", path)? {
            store
                .add(cert)
                .map_err(|e| format!("ca_file {}: {e}", path.display()))?;
        }
        trust = Arc::new(store);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be set up: {e}"))?
        .with_root_certificates(trust))
}

/// For a client that shows nothing of itself.
pub fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    Ok(builder(ca_file)?.with_no_client_auth())
}

/// The system's trust and the operator's `ca_file`, and the client's own certificate where one is demanded.
pub fn config(upstream: &Upstream) -> Result<ClientConfig, String> {
    let builder = builder(upstream.ca_file.as_deref())?;
    let mut config = match (&upstream.client_cert, &upstream.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates("client_cert", cert)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| format!("client_key {} is not a private key in PEM: {e}", key.display()))?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|e| format!("client_cert {}: {e}", cert.display()))?
        }
        _ => return Err("client_cert and client_key belong together".to_owned()),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{what} {} is not a certificate in PEM: {e}", path.display());
    let certs: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))?.collect();
    let certs = certs.map_err(|e| wrong(&e))?;
    match certs.is_empty() {
        true => Err(wrong(&"it holds none")),
        false => Ok(certs),
    }
}
