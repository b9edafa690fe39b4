//! Signed requests (RFC 8555, 6.2): everything about them is checked, or the client could get it wrong unnoticed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use super::Directory;

pub struct Signed {
    /// The account's address; empty for who has none yet.
    pub account: String,
    /// Its public key, as JWK.
    pub key: Value,
    /// `null` for a POST that is a GET.
    pub payload: Value,
}

/// Errors: the kind of problem, and what it is.
pub fn open(directory: &Directory, path: &str, body: &[u8]) -> Result<Signed, (&'static str, String)> {
    let malformed = |what: &str| ("malformed", what.to_owned());
    let body: Value = serde_json::from_slice(body).map_err(|_| malformed("no JSON"))?;
    let part = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed("no base64url"));
    let header: Value = serde_json::from_slice(&bytes(&part("protected"))?).map_err(|_| malformed("no header"))?;
    if header["url"] != json!(directory.at(path)) {
        return Err(malformed(&format!("signed for {}", header["url"])));
    }
    let nonce = header["nonce"].as_str().unwrap_or_default();
    let is_good = directory.book(|book| {
        let is_tired = book.stale_nonces > 0;
        book.stale_nonces = book.stale_nonces.saturating_sub(1);
        book.nonces.remove(nonce) && !is_tired
    });
    if !is_good {
        return Err(("badNonce", "used, or none of mine".to_owned()));
    }
    let account = header["kid"].as_str().unwrap_or_default().to_owned();
    let key = match directory.book(|book| book.accounts.get(&account).cloned()) {
        Some(key) => key,
        None if account.is_empty() && path == "/account" => header["jwk"].clone(),
        None => return Err(("accountDoesNotExist", account)),
    };
    let coordinate = |name: &str| bytes(key[name].as_str().unwrap_or_default());
    let point = [vec![4], coordinate("x")?, coordinate("y")?].concat();
    let signed = format!("{}.{}", part("protected"), part("payload"));
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &bytes(&part("signature"))?)
        .map_err(|_| malformed("a bad signature"))?;
    let payload = match bytes(&part("payload"))? {
        empty if empty.is_empty() => Value::Null,
        payload => serde_json::from_slice(&payload).map_err(|_| malformed("no payload"))?,
    };
    Ok(Signed { account, key, payload })
}

/// RFC 7638: the members that matter, in their order.
pub fn thumbprint(key: &Value) -> String {
    let members = format!(
        r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#,
        key["crv"], key["kty"], key["x"], key["y"]
    );
    URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
}
