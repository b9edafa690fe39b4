//! What the listeners show: the certificate, and while an authority looks, the answers to its challenges.
//!
//! Written by [`super::Keeper`], read by `http` at every handshake: without a lock, but for the seconds in which a challenge is open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// What an authority offers, and nothing else, in a handshake that is a challenge (RFC 8737, 4).
pub const ALPN: &[u8] = b"acme-tls/1";

/// What people see who look at the certificate before there is one.
const STOP_GAP: &str = "Larder is waiting for its first certificate";

#[derive(Default)]
pub struct Issued {
    shown: ArcSwapOption<CertifiedKey>,
    /// How many answers are open, of both kinds.
    open: AtomicUsize,
    /// By the name in the handshake, lower case.
    handshakes: Mutex<HashMap<String, Arc<ServerConfig>>>,
    /// Key authorizations by token (RFC 8555, 8.3).
    files: Mutex<HashMap<String, String>>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// Shows a self-signed certificate for `names`, whose key is nowhere else, until there is another.
    pub fn new(names: &[String]) -> Arc<Issued> {
        let issued = Issued::default();
        match stop_gap(names) {
            Ok(key) => issued.shown.store(Some(Arc::new(key))),
            // Handshakes fail then, until there is a certificate.
            Err(error) => tracing::warn!(%error, "no self-signed certificate for the time being"),
        }
        Arc::new(issued)
    }

    pub(super) fn show(&self, key: Arc<CertifiedKey>) {
        self.shown.store(Some(key));
    }

    /// Whether a handshake may be a challenge at this moment.
    pub fn is_challenged(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// How to shake hands with an authority that looks for our answer; it brings no certificate of its own. `None` for everybody
    /// else.
    pub fn handshake(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let mut protocols = hello.alpn()?;
        if (protocols.next(), protocols.next()) != (Some(ALPN), None) {
            return None;
        }
        let name = hello.server_name()?.to_ascii_lowercase();
        lock(&self.handshakes).get(&name).cloned()
    }

    /// What to answer for a token of http-01.
    pub fn file(&self, token: &str) -> Option<String> {
        lock(&self.files).get(token).cloned()
    }

    /// Answers tls-alpn-01 for `name` as long as what is returned lives.
    pub(super) fn answer_handshake(self: &Arc<Issued>, name: &str, digest: &[u8]) -> Result<Answer, rcgen::Error> {
        let config = challenge(name, digest)?;
        let name = in_handshake(name);
        lock(&self.handshakes).insert(name.clone(), Arc::new(config));
        Ok(self.opened(Place::Handshake(name)))
    }

    /// Answers http-01 for `token`.
    pub(super) fn answer_file(self: &Arc<Issued>, token: &str, authorization: &str) -> Answer {
        lock(&self.files).insert(token.to_owned(), authorization.to_owned());
        self.opened(Place::File(token.to_owned()))
    }

    fn opened(self: &Arc<Issued>, place: Place) -> Answer {
        self.open.fetch_add(1, Ordering::AcqRel);
        Answer {
            issued: self.clone(),
            place,
        }
    }
}

impl ResolvesServerCert for Issued {
    /// One for all names: it is for every name that clients use, and who uses another learns so from it.
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.load_full()
    }
}

/// An answer that is given until this is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    issued: Arc<Issued>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Handshake(String),
    File(String),
}

impl Drop for Answer {
    fn drop(&mut self) {
        match &self.place {
            Place::Handshake(name) => drop(lock(&self.issued.handshakes).remove(name)),
            Place::File(token) => drop(lock(&self.issued.files).remove(token)),
        }
        self.issued.open.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands in the handshake for a name; addresses cannot, and are turned around (RFC 8738, 6).
fn in_handshake(name: &str) -> String {
    match name.parse() {
        Err(_) => name.to_ascii_lowercase(),
        Ok(IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(ip)) => {
            let digits = ip.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            let digits: Vec<String> = digits.map(|digit| format!("{digit:x}")).collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    }
}

/// A self-signed certificate that carries the digest of the key authorization (RFC 8737, 3).
fn challenge(name: &str, digest: &[u8]) -> Result<ServerConfig, rcgen::Error> {
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let chain = vec![params.self_signed(&key)?.der().clone()];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let unusable = |_| rcgen::Error::RemoteKeyError;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = provider.key_provider.load_private_key(key.into()).map_err(unusable)?;
    // Not by `with_single_cert`: it would refuse the critical extension, which it does not know.
    let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn stop_gap(names: &[String]) -> Result<CertifiedKey, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, STOP_GAP);
    let key = KeyPair::generate()?;
    let chain = vec![params.self_signed(&key)?.der().clone()];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key.into(), &provider).map_err(|_| rcgen::Error::RemoteKeyError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_turned_around() {
        assert_eq!(in_handshake("Larder.Example"), "larder.example");
        assert_eq!(in_handshake("192.0.2.7"), "7.2.0.192.in-addr.arpa");
        let six = in_handshake("2001:db8::1");
        assert!(
            six.starts_with("1.0.0.0.") && six.ends_with("8.b.d.0.1.0.0.2.ip6.arpa"),
            "{six}"
        );
        assert_eq!(six.split('.').count(), 34);
    }

    #[test]
    fn answers_live_as_long_as_they_are_held() {
        let issued = Issued::new(&["a.example".to_owned()]);
        assert!(issued.shown.load().is_some() && !issued.is_challenged());
        let file = issued.answer_file("token", "token.thumb");
        let shake = issued.answer_handshake("a.example", &[7; 32]).unwrap();
        assert_eq!(issued.file("token").as_deref(), Some("token.thumb"));
        assert_eq!(issued.file("other"), None);
        drop(file);
        assert!(issued.is_challenged() && issued.file("token").is_none());
        assert!(!format!("{issued:?} {shake:?}").contains("thumb"));
        drop(shake);
        assert!(!issued.is_challenged() && lock(&issued.handshakes).is_empty());
    }
}
