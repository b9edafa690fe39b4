//! Tokens of our own: what `/token` hands out, and whom they name.
//!
//! A token says who somebody is, and nothing of what he may: that is asked of the rules at every request, so that a
//! changed rule counts at once. Signed by a key from a file, which several proxies may share, or by one of this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;

use super::GateError;
use super::jws::{self, Algorithm, Token, TokenError, VerifyingKey};
use super::policy::Identity;
use crate::oci::Digest;

/// Who issues our tokens and whom they are for; also the `service` of the challenge.
pub const SERVICE: &str = "larder";
/// Bytes of a shared key, at least.
const SHORTEST_KEY: usize = 32;

enum Signer {
    Shared(hmac::Key),
    Ed25519(Ed25519KeyPair),
}

/// Makes tokens and knows them again.
pub struct Mint {
    signer: Signer,
    verifier: VerifyingKey,
    kid: String,
    ttl: Duration,
    /// The key is of this process, and of no file.
    is_own: bool,
}

impl Mint {
    /// A key that nobody else has and that goes with the process.
    ///
    /// Errors: the system has no randomness.
    pub fn random(ttl: Duration) -> Result<Mint, GateError> {
        Ok(Mint {
            is_own: true,
            ..Mint::shared(&super::random_bytes()?, ttl)
        })
    }

    /// With the same key, if that is of no file: nobody who holds a token has to log in again.
    pub fn renewed(&self, ttl: Duration) -> Option<Mint> {
        let (Signer::Shared(key), true) = (&self.signer, self.is_own) else {
            return None;
        };
        Some(Mint {
            signer: Signer::Shared(key.clone()),
            verifier: VerifyingKey::Shared(key.clone()),
            kid: self.kid.clone(),
            ttl,
            is_own: true,
        })
    }

    fn shared(key: &[u8], ttl: Duration) -> Mint {
        let kid = kid(&[b"larder token key ", key].concat());
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        Mint {
            signer: Signer::Shared(key.clone()),
            verifier: VerifyingKey::Shared(key),
            kid,
            ttl,
            is_own: false,
        }
    }

    /// A PEM file with an Ed25519 key (`openssl genpkey -algorithm ed25519`), or any other file of 32 bytes and more,
    /// whose contents are a shared key (HS256).
    ///
    /// Errors: what is wrong with it.
    pub fn from_file(path: &Path, ttl: Duration) -> Result<Mint, String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(64 << 10).read_to_end(&mut bytes))
            .map_err(|error| error.to_string())?;
        Mint::from_bytes(&bytes, ttl)
    }

    pub fn from_bytes(bytes: &[u8], ttl: Duration) -> Result<Mint, String> {
        if !bytes.starts_with(b"-----BEGIN") {
            let key = bytes.trim_ascii();
            return match key.len() >= SHORTEST_KEY {
                true => Ok(Mint::shared(key, ttl)),
                false => Err(format!(
                    "found a key of {} bytes, expected at least {SHORTEST_KEY}, or an Ed25519 key in PEM",
                    key.len()
                )),
            };
        }
        let expected = "expected an Ed25519 key in PEM (PKCS #8), or 32 bytes and more of a shared key";
        let der = PrivatePkcs8KeyDer::from_pem_slice(bytes).map_err(|_| expected.to_owned())?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| format!("it holds no Ed25519 key; {expected}"))?;
        let public = pair.public_key().as_ref().to_vec();
        Ok(Mint {
            kid: kid(&public),
            verifier: VerifyingKey::Ed25519(public),
            signer: Signer::Ed25519(pair),
            ttl,
            is_own: false,
        })
    }

    /// Whether the key is of this process, and nobody else's.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A token for `who`. `access` is what was granted, for people who look at it. `now` in seconds since 1970.
    pub fn issue(&self, who: &Identity, access: serde_json::Value, now: u64) -> String {
        let claims = json!({
            "iss": SERVICE,
            "aud": SERVICE,
            "sub": who.as_deref().unwrap_or(""),
            "iat": now,
            "nbf": now,
            "exp": now + self.ttl.as_secs(),
            "jti": format!("{:016x}", fastrand::u64(..)),
            "access": access,
        });
        let algorithm = self.verifier.algorithm();
        let unsigned = jws::unsigned(algorithm, &self.kid, &claims);
        let signature = match &self.signer {
            Signer::Shared(key) => hmac::sign(key, unsigned.as_bytes()).as_ref().to_vec(),
            Signer::Ed25519(pair) => pair.sign(unsigned.as_bytes()).as_ref().to_vec(),
        };
        jws::with_signature(unsigned, &signature)
    }

    /// Whom a token of ours names, and until when (seconds since 1970).
    pub fn read(&self, token: Token<'_>, now: u64) -> Result<(Identity, u64), TokenError> {
        if token.kid.as_deref() != Some(&self.kid) {
            return Err(TokenError::UnknownKey);
        }
        let claims = token.verify(&self.verifier)?;
        claims.check(SERVICE, SERVICE, now)?;
        let name = claims.claim("sub").ok_or(TokenError::Identity)?;
        let who = (!name.is_empty()).then(|| Arc::from(name));
        Ok((who, claims.expires().unwrap_or(now)))
    }

    pub fn algorithm(&self) -> Algorithm {
        self.verifier.algorithm()
    }
}

/// A name for a key that tells nothing of it.
fn kid(key: &[u8]) -> String {
    let mut hex = Digest::sha256(key).hex().as_str().to_owned();
    hex.truncate(16);
    hex
}
