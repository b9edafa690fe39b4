//! When the certificates expire that the configuration names in files, for the metrics.
//!
//! A chain ends with the first of its certificates that expires. A file of authorities is of use as long as one of them is valid: it
//! holds the old and the new one while they change.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::config::{Config, JwksAt, ServerTls, TlsIdentity};
use crate::telemetry::process::{CertificateExpiry, CertificateRole};

/// A file of certificates, and what names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CertificateFile {
    role: CertificateRole,
    key: String,
    path: PathBuf,
}

/// The files that `config` names.
pub(super) fn files(config: &Config) -> Vec<CertificateFile> {
    let mut files = Vec::new();
    let mut note = |role, key: String, path: Option<&PathBuf>| {
        files.extend(path.map(|path| CertificateFile {
            role,
            key,
            path: path.clone(),
        }));
    };
    let further = config.listeners.iter();
    let further = further.map(|listener| (format!("listener.{}", listener.name), listener.tls.as_ref()));
    let listeners = [
        ("server".to_owned(), config.server.tls.as_ref()),
        ("admin".to_owned(), config.admin.tls.as_ref()),
    ];
    for (section, tls) in listeners.into_iter().chain(further) {
        let Some(ServerTls { identity, client_ca }) = tls else {
            continue;
        };
        // A certificate that Larder got by ACME has a metric of its own.
        if let TlsIdentity::Files { cert, .. } = identity {
            note(CertificateRole::Server, format!("{section}.tls.cert"), Some(cert));
        }
        let key = format!("{section}.tls.client_ca");
        note(CertificateRole::Authority, key, client_ca.as_ref());
    }
    for upstream in &config.upstreams {
        let key = |key: &str| format!("upstream.{}.{key}", upstream.name);
        note(
            CertificateRole::Client,
            key("client_cert"),
            upstream.client_cert.as_ref(),
        );
        note(CertificateRole::Authority, key("ca_file"), upstream.ca_file.as_ref());
    }
    for webhook in &config.webhooks {
        let key = format!("webhook.{}.ca_file", webhook.name);
        note(CertificateRole::Authority, key, webhook.ca_file.as_ref());
    }
    for issuer in &config.access.issuers {
        if let JwksAt::Url { ca_file, .. } = &issuer.jwks {
            let key = format!("access.oidc.{}.ca_file", issuer.name);
            note(CertificateRole::Authority, key, ca_file.as_ref());
        }
    }
    let traces = config.traces.as_ref().and_then(|traces| traces.ca_file.as_ref());
    note(CertificateRole::Authority, "traces.ca_file".to_owned(), traces);
    let acme = config.acme.as_ref().and_then(|acme| acme.ca_file.as_ref());
    note(CertificateRole::Authority, "acme.ca_file".to_owned(), acme);
    files
}

/// When they expire. A file that cannot be read at this moment is left out.
pub(super) fn expiries(files: &[CertificateFile]) -> Vec<CertificateExpiry> {
    let expiry = |file: &CertificateFile| {
        let dates = dates(&file.path)?;
        let not_after = match file.role {
            CertificateRole::Server | CertificateRole::Client => dates.into_iter().min(),
            CertificateRole::Authority => dates.into_iter().max(),
        };
        Some(CertificateExpiry {
            role: file.role,
            key: file.key.clone(),
            file: file.path.display().to_string(),
            not_after: not_after?,
        })
    };
    files.iter().filter_map(expiry).collect()
}

/// Ends of the certificates in a PEM file, Unix seconds.
fn dates(path: &Path) -> Option<Vec<i64>> {
    let mut dates = Vec::new();
    for certificate in CertificateDer::pem_file_iter(path).ok()? {
        let certificate = certificate.ok()?;
        let (_, read) = X509Certificate::from_der(&certificate).ok()?;
        dates.push(read.validity().not_after.timestamp());
    }
    Some(dates)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate in PEM that is valid until a year's first day.
    fn until(year: i32) -> String {
        let mut params = rcgen::CertificateParams::new(vec!["larder.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_chain_ends_with_its_first_and_authorities_with_their_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("two.pem");
        std::fs::write(&path, until(2040) + &until(2030)).unwrap();
        let (first, last) = (1_893_456_000, 2_208_988_800);
        let file = |role| CertificateFile {
            role,
            key: "x".to_owned(),
            path: path.clone(),
        };
        let of = |role| expiries(&[file(role)])[0].not_after;
        assert_eq!(of(CertificateRole::Server), first);
        assert_eq!(of(CertificateRole::Client), first);
        assert_eq!(of(CertificateRole::Authority), last);
        std::fs::write(&path, "no PEM").unwrap();
        assert_eq!(expiries(&[file(CertificateRole::Server)]), []);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(expiries(&[file(CertificateRole::Server)]), []);
    }
}
