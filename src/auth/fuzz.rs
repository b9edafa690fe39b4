//! Harnesses for logins: tokens, keys of issuers, passwords.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use super::basic::{self, Users};
use super::bearer::Mint;
use super::jwks::Keys;
use super::jws::{MAX_TOKEN, Token, VerifyingKey};
use crate::fuzzing::{Harness, check_error, fields, text, texts};

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const SHARED: &[u8] = b"a key that is known to everybody who reads this";
const JWKS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"ed","use":"sig","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},{"kty":"EC","crv":"P-256","kid":"ec","alg":"ES256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},{"kty":"RSA","kid":"rsa","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"},{"kty":"oct","kid":"k","k":"AAAA"}]}"#;

pub(crate) const HARNESSES: &[Harness] = &[
    Harness {
        name: "signed_token",
        run: signed_token,
        seeds: || {
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT","kid":"x"}"#);
            let claims =
                URL_SAFE_NO_PAD.encode(r#"{"iss":"larder","aud":["larder"],"sub":"a","exp":9999999999.5,"nbf":1}"#);
            let mut seeds = texts(&[
                &own_token(),
                &format!("{header}.{claims}."),
                "a.b.c",
                &format!("{header}.{claims}.AAAA"),
            ]);
            let crit = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","crit":["b64"],"b64":false,"kid":"x"}"#);
            seeds.extend(texts(&[&format!("{crit}.{claims}.AAAA")]));
            seeds
        },
        words: &[".", "e30", "eyJhbGciOiJIUzI1NiJ9", "eyJ", "=", "-", "_", "W1tbW1tb"],
    },
    Harness {
        name: "issuer_keys",
        run: issuer_keys,
        seeds: || {
            texts(&[
                JWKS,
                r#"{"keys":[]}"#,
                r#"{"keys":[{"kid":"a","kty":"OKP","crv":"Ed25519","x":"AA"}]}"#,
            ])
        },
        words: &[
            "{\"keys\":[",
            "{\"kty\":\"RSA\",\"kid\":\"a\",\"n\":\"AQ\",\"e\":\"AQ\"},",
            "{",
            "[",
            "\"",
            "{},",
            ",",
        ],
    },
    Harness {
        name: "logins",
        run: logins,
        seeds: || {
            let hash = "$2y$10$abcdefghijklmnopqrstuuJ8nGz0n1n8vJ1m0mA5cJb0xQp7lq3Eu";
            texts(&[
                &format!("dTpw\n# people\nann:{hash}\n\nbob:{hash}\n"),
                "OnA=\nann:$apr1$x$y\n",
                "!!!\nno colon\n",
                "dTpwOnE=\n:x\n",
            ])
        },
        words: &["dTpw", "=", "ann:", "$2y$10$", "$", "\n", "#", ":"],
    },
];

fn mint() -> &'static Mint {
    static MINT: OnceLock<Mint> = OnceLock::new();
    MINT.get_or_init(|| Mint::from_bytes(SHARED, Duration::from_secs(3600)).unwrap())
}

fn own_token() -> String {
    mint().issue(&Some("ann".into()), json!([]), NOW)
}

/// The parts as bytes, written again: whoever can write one token in two ways can pass by what remembers tokens.
fn canonical(token: &str) -> String {
    let parts = token
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.encode(URL_SAFE_NO_PAD.decode(part).unwrap()));
    parts.collect::<Vec<_>>().join(".")
}

fn signed_token(data: &[u8]) {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    let Some(text) = text(data) else { return };
    let Ok(token) = Token::parse(text) else {
        return;
    };
    assert!(text.len() <= MAX_TOKEN && text.split('.').count() == 3);
    assert_eq!(canonical(text), text);
    let _ = token.claimed_issuer();
    if let Ok((who, until)) = mint().read(token, NOW) {
        // Only what was signed by the key says who somebody is.
        let signature = text.rsplit('.').next().unwrap();
        let signed = text.strip_suffix(signature).unwrap().trim_end_matches('.');
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SHARED);
        ring::hmac::verify(&key, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).expect("a signature");
        assert!(who.is_none_or(|who| !who.is_empty()) && until + 60 > NOW);
    }
    let keys = KEYS.get_or_init(|| Keys::parse(JWKS.as_bytes()).unwrap());
    for kid in ["ed", "ec", "rsa"] {
        let token = Token::parse(text).unwrap();
        let verified = token.verify(keys.get(kid).expect("a key"));
        assert!(verified.is_err(), "nobody here has the private key of {kid}");
    }
}

fn issuer_keys(data: &[u8]) {
    let keys = match Keys::parse(data) {
        Ok(keys) => keys,
        Err(error) => return check_error(error),
    };
    assert!(keys.len() <= 100);
    for kid in ["ed", "ec", "rsa", "k", "a", ""] {
        let Some(key) = keys.get(kid) else { continue };
        assert!(
            !matches!(key, VerifyingKey::Shared(_)),
            "a public document holds no secret"
        );
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": key.algorithm().as_str(), "kid": kid }).to_string());
        for signature in ["", "AAAA", &"A".repeat(86)] {
            let token = format!("{header}.e30.{signature}");
            let verified = Token::parse(&token).unwrap().verify(key);
            assert!(verified.is_err(), "{kid:?} signs {signature:?}");
        }
    }
}

/// What follows `Basic `, then a password file; its first line is also taken for the file of a token key.
fn logins(data: &[u8]) {
    let ([encoded], file) = fields(data);
    if let Some((name, password)) = text(encoded).and_then(basic::pair) {
        assert!(!name.contains(':'));
        let again = STANDARD.encode(format!("{name}:{}", password.reveal()));
        let (same_name, same_password) = basic::pair(&again).expect("our own");
        assert_eq!((same_name, same_password.reveal()), (name, password.reveal()));
    }
    if let Err(error) = Mint::from_bytes(encoded, Duration::from_secs(60)) {
        check_error(error);
    }
    if let Some(Err(error)) = text(file).map(Users::parse) {
        check_error(error);
    }
}
