//! A certificate and its key, checked: what is kept and what listeners show is one of these.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::CertificateIdentifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::plan;

/// A chain has two or three.
const MAX_CHAIN: usize = 16;

#[derive(Clone, Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Certificate {
    /// The chain, the own certificate first, and its key, both in PEM.
    ///
    /// Errors: why they cannot be used.
    pub fn read(chain: &str, key: &str) -> Result<Certificate, String> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        // The library's errors repeat what they found as a list of numbers, however long that is.
        let chain = read.map_err(|_| "the chain is no PEM")?;
        if chain.len() > MAX_CHAIN {
            return Err(format!("the chain has {} certificates", chain.len()));
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| "the key is no PEM")?;
        let leaf = chain.first().ok_or("the chain holds no certificate")?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| format!("it is not understood: {error}"))?;
        let validity = parsed.validity();
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let (not_before, not_after) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| format!("certificate and key do not belong together: {error}"))?;
        Ok(Certificate {
            key: Arc::new(key),
            not_before,
            not_after,
        })
    }

    /// The certificate itself.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    /// Errors: which of `names` it is not for, or when it is not valid.
    pub fn check(&self, names: &[String], now: SystemTime) -> Result<(), String> {
        let leaf = self.leaf().ok_or("it is empty")?;
        let read = webpki::EndEntityCert::try_from(leaf).map_err(|error| format!("it is not understood: {error}"))?;
        for name in names {
            let subject = ServerName::try_from(name.as_str()).map_err(|_| format!("{name} is no name"))?;
            read.verify_is_valid_for_subject_name(&subject)
                .map_err(|_| format!("it is not for {name}"))?;
        }
        match now < self.not_after {
            true => Ok(()),
            false => Err("it has expired".to_owned()),
        }
    }

    /// By its life alone. Always the same for the same certificate, so that a restart does not choose again, and different for
    /// others, so that those that were issued together are not renewed together.
    pub fn renewal(&self) -> SystemTime {
        plan::renewal(self.not_before, self.not_after, self.chance())
    }

    /// From 0 to 1, by its bytes: the end of a certificate is its signature.
    pub fn chance(&self) -> f64 {
        let end = self.leaf().and_then(|leaf| leaf.as_ref().last_chunk::<4>());
        f64::from(u32::from_be_bytes(*end.unwrap_or(&[0; 4]))) / f64::from(u32::MAX)
    }

    /// What the authority knows it by (RFC 9773, 4.1).
    pub fn id(&self) -> Option<CertificateIdentifier<'static>> {
        let id = CertificateIdentifier::try_from(self.leaf()?).ok()?;
        Some(id.into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_fits_together_is_taken() {
        let (chain, key) = made(&["a.example", "192.0.2.1"]);
        let read = Certificate::read(&chain, &key).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let now = SystemTime::now();
        assert_eq!(read.check(&names(&["a.example", "192.0.2.1"]), now), Ok(()));
        assert_eq!(
            read.check(&names(&["b.example"]), now),
            Err("it is not for b.example".to_owned())
        );
        assert_eq!(read.check(&[], read.not_after), Err("it has expired".to_owned()));
        assert!(read.renewal() > read.not_before && read.renewal() < read.not_after);
        assert_eq!(read.renewal(), Certificate::read(&chain, &key).unwrap().renewal());
    }

    #[test]
    fn anything_else_is_not() {
        let (chain, key) = made(&["a.example"]);
        let (_, other) = made(&["a.example"]);
        for (chain, key, why) in [
            (chain.as_str(), other.as_str(), "do not belong together"),
            ("", &key, "holds no certificate"),
            (&chain, "", "the key is no PEM"),
            (&chain.repeat(17), &key, "17 certificates"),
            (&chain.replace("MII", "AAA"), &key, "not understood"),
        ] {
            let found = Certificate::read(chain, key).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }
}
