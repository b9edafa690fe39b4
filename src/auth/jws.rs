//! Signed tokens as they are written: three parts, base64url, the first two JSON (RFC 7515, compact). Pure.
//!
//! What a token says of its own algorithm decides nothing: each key has one, and the token has to name that (R-X21). There
//! is no `none`, and a public key is never a shared secret.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, UnparsedPublicKey};
use serde_json::Value;

/// Longest token that is read, bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// How far clocks may be apart (R-X21).
const SKEW: Duration = Duration::from_secs(60);

/// Why a token is not believed; for the log at debug level, never for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is no signed token")]
    Malformed,
    #[error("it names a key that is not known")]
    UnknownKey,
    #[error("it names another algorithm than its key's")]
    Algorithm,
    #[error("its signature is wrong")]
    Signature,
    #[error("it is for another audience")]
    Audience,
    #[error("it comes from another issuer")]
    Issuer,
    #[error("it has expired, or has no end")]
    Expired,
    #[error("it is not valid yet")]
    TooEarly,
    #[error("it does not say who it is for")]
    Identity,
    #[error("the keys of its issuer cannot be had")]
    NoKeys,
    #[error("it names a client certificate, and the connection came with another or with none")]
    Certificate,
}

/// The algorithms that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Hs256,
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs384 => "RS384",
            Algorithm::Rs512 => "RS512",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::EdDsa => "EdDSA",
        }
    }
}

/// A token taken apart. Nothing of it is to be believed before [`Token::verify`].
pub struct Token<'a> {
    algorithm: String,
    /// The key that it names.
    pub kid: Option<String>,
    claims: Value,
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// What a verified token says.
#[derive(Debug)]
pub struct Claims(Value);

impl<'a> Token<'a> {
    pub fn parse(text: &'a str) -> Result<Token<'a>, TokenError> {
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let object = |part: &str| {
            let value: Value = serde_json::from_slice(&bytes(part)?).map_err(|_| TokenError::Malformed)?;
            value.is_object().then_some(value).ok_or(TokenError::Malformed)
        };
        let header = object(header)?;
        // What a `crit` names has to be understood (RFC 7515, 4.1.11), and nothing is; `b64` would change what is signed.
        if header.get("crit").is_some() || header.get("b64").is_some() {
            return Err(TokenError::Malformed);
        }
        let text = |key: &str| header.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(Token {
            algorithm: text("alg").ok_or(TokenError::Malformed)?,
            kid: text("kid"),
            claims: object(claims)?,
            signed: signed.as_bytes(),
            signature: bytes(signature)?,
        })
    }

    /// Whom it says that it comes from: to find the keys by, and for nothing else.
    pub fn claimed_issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    pub fn verify(self, key: &VerifyingKey) -> Result<Claims, TokenError> {
        if self.algorithm != key.algorithm().as_str() {
            return Err(TokenError::Algorithm);
        }
        key.check(self.signed, &self.signature)?;
        Ok(Claims(self.claims))
    }
}

impl Claims {
    /// Issuer, audience and time, `now` in seconds since 1970.
    pub fn check(&self, issuer: &str, audience: &str, now: u64) -> Result<(), TokenError> {
        if self.text("iss") != Some(issuer) {
            return Err(TokenError::Issuer);
        }
        let is_for_us = match self.0.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(audience)),
            _ => false,
        };
        if !is_for_us {
            return Err(TokenError::Audience);
        }
        let skew = SKEW.as_secs();
        if self.expires().is_none_or(|exp| exp.saturating_add(skew) <= now) {
            return Err(TokenError::Expired);
        }
        for key in ["nbf", "iat"] {
            match (self.0.get(key), self.seconds(key)) {
                (None, _) => {}
                (Some(_), Some(from)) if from <= now.saturating_add(skew) => {}
                _ => return Err(TokenError::TooEarly),
            }
        }
        Ok(())
    }

    /// Seconds since 1970.
    pub fn expires(&self) -> Option<u64> {
        self.seconds("exp")
    }

    fn seconds(&self, key: &str) -> Option<u64> {
        let value = self.0.get(key)?;
        // A NumericDate may have a fraction (RFC 7519, 2).
        value.as_u64().or_else(|| {
            let float = value.as_f64().filter(|float| (0.0..1e15).contains(float))?;
            Some(float as u64)
        })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// The text of a claim: by its name, or by a JSON pointer if it begins with a slash.
    pub fn claim(&self, name: &str) -> Option<&str> {
        let value = match name.starts_with('/') {
            true => self.0.pointer(name),
            false => self.0.get(name),
        };
        value?.as_str()
    }
}

/// A key and the one algorithm that it is for.
#[derive(Debug)]
pub enum VerifyingKey {
    Shared(ring::hmac::Key),
    Rsa {
        algorithm: Algorithm,
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    Curve {
        algorithm: Algorithm,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
}

impl VerifyingKey {
    pub fn algorithm(&self) -> Algorithm {
        match self {
            VerifyingKey::Shared(_) => Algorithm::Hs256,
            VerifyingKey::Rsa { algorithm, .. } | VerifyingKey::Curve { algorithm, .. } => *algorithm,
            VerifyingKey::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    fn check(&self, signed: &[u8], signature: &[u8]) -> Result<(), TokenError> {
        let checked = match self {
            VerifyingKey::Shared(key) => ring::hmac::verify(key, signed, signature),
            VerifyingKey::Rsa { algorithm, n, e } => {
                let by = match algorithm {
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA256,
                };
                signature::RsaPublicKeyComponents { n, e }.verify(by, signed, signature)
            }
            VerifyingKey::Curve { algorithm, point } => {
                let by = match algorithm {
                    Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
                    _ => &signature::ECDSA_P256_SHA256_FIXED,
                };
                UnparsedPublicKey::new(by, point).verify(signed, signature)
            }
            VerifyingKey::Ed25519(point) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(signed, signature)
            }
        };
        checked.map_err(|_| TokenError::Signature)
    }
}

/// The first two parts of a token, ready to be signed.
pub fn unsigned(algorithm: Algorithm, kid: &str, claims: &Value) -> String {
    let header = serde_json::json!({ "alg": algorithm.as_str(), "typ": "JWT", "kid": kid });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(&header), part(claims))
}

/// The third.
pub fn with_signature(unsigned: String, signature: &[u8]) -> String {
    format!("{unsigned}.{}", URL_SAFE_NO_PAD.encode(signature))
}
