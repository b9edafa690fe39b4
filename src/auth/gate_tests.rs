//! Tokens of our own and of others, as the gate takes them.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::jws::{self, Algorithm, VerifyingKey};
use super::*;
use crate::config::Config;

const TTL: Duration = Duration::from_secs(300);
const NOW: u64 = 1_800_000_000;

fn mint() -> Mint {
    Mint::from_bytes(&[b'k'; 32], TTL).unwrap()
}

fn from(certificate: &Identity) -> Origin<'_> {
    Origin {
        address: Some(IpAddr::from([127, 0, 0, 1])),
        certificate,
    }
}

fn read(mint: &Mint, text: &str, now: u64) -> Result<Identity, TokenError> {
    Ok(mint.read(Token::parse(text)?, now)?.0)
}

/// A token with this header and these claims, signed by what the function says.
fn signed(header: Value, claims: Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{}", part(header), part(claims));
    let signature = sign(unsigned.as_bytes());
    jws::with_signature(unsigned, &signature)
}

#[test]
fn our_own() {
    let (mint, other) = (mint(), Mint::from_bytes(&[b'o'; 32], TTL).unwrap());
    let alice: Identity = Some("alice".into());
    let token = mint.issue(&alice, json!([]), NOW);
    assert_eq!(read(&mint, &token, NOW), Ok(alice.clone()));
    assert_eq!(read(&mint, &mint.issue(&None, json!([]), NOW), NOW), Ok(None));
    // With 60 s of skew either way (R-X21).
    assert_eq!(read(&mint, &token, NOW + 300 + 59), Ok(alice.clone()));
    assert_eq!(read(&mint, &token, NOW + 300 + 60), Err(TokenError::Expired));
    assert_eq!(read(&mint, &token, NOW - 60), Ok(alice));
    assert_eq!(read(&mint, &token, NOW - 61), Err(TokenError::TooEarly));
    assert_eq!(read(&other, &token, NOW), Err(TokenError::UnknownKey));
    let mut flipped = token.clone().into_bytes();
    let last = flipped.len() - 5;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    assert_eq!(read(&mint, &flipped, NOW), Err(TokenError::Signature));
}

#[test]
fn keys_from_files() {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let body = STANDARD.encode(pkcs8.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    let mint = Mint::from_bytes(pem.as_bytes(), TTL).unwrap();
    assert_eq!(mint.algorithm(), Algorithm::EdDsa);
    let who: Identity = Some("alice".into());
    assert_eq!(read(&mint, &mint.issue(&who, json!([]), NOW), NOW), Ok(who));
    for bad in [
        "",
        "short",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN X",
    ] {
        let error = Mint::from_bytes(bad.as_bytes(), TTL).err().unwrap();
        assert!(error.contains("expected"), "{error}");
        assert!(!error.contains("short"), "{error}");
    }
}

/// R-X21: `none`, other algorithms under our key's name, public keys as shared secrets, `crit`.
#[test]
fn confusion() {
    let mint = mint();
    let token = mint.issue(&Some("root".into()), json!([]), NOW);
    let kid = Token::parse(&token).unwrap().kid.unwrap();
    let claims = json!({ "iss": "larder", "aud": "larder", "sub": "root", "exp": NOW + 100 });
    for (alg, error) in [
        ("none", TokenError::Algorithm),
        ("None", TokenError::Algorithm),
        ("RS256", TokenError::Algorithm),
        ("EdDSA", TokenError::Algorithm),
        ("HS256", TokenError::Signature),
    ] {
        let forged = signed(json!({ "alg": alg, "kid": kid }), claims.clone(), |_| Vec::new());
        assert_eq!(read(&mint, &forged, NOW), Err(error), "{alg}");
    }
    // The Ed25519 key is public; as an HMAC secret it opens nothing.
    let pair =
        Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref()).unwrap();
    let public = pair.public_key().as_ref().to_vec();
    let by_secret = signed(json!({ "alg": "HS256", "kid": "k" }), claims.clone(), |text| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public);
        ring::hmac::sign(&key, text).as_ref().to_vec()
    });
    let key = VerifyingKey::Ed25519(public.clone());
    assert_eq!(
        Token::parse(&by_secret).unwrap().verify(&key).err(),
        Some(TokenError::Algorithm)
    );
    for header in [
        json!({ "alg": "EdDSA", "crit": ["exp"] }),
        json!({ "alg": "EdDSA", "b64": false }),
        json!({ "alg": 7 }),
        json!([]),
    ] {
        let text = signed(header, claims.clone(), |text| pair.sign(text).as_ref().to_vec());
        assert_eq!(Token::parse(&text).err(), Some(TokenError::Malformed));
    }
}

#[test]
fn claims() {
    let pair =
        Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref()).unwrap();
    let key = VerifyingKey::Ed25519(pair.public_key().as_ref().to_vec());
    let check = |claims: Value| {
        let text = signed(json!({ "alg": "EdDSA" }), claims, |text| {
            pair.sign(text).as_ref().to_vec()
        });
        let claims = Token::parse(&text).unwrap().verify(&key).unwrap();
        claims.check("i", "a", NOW)
    };
    assert_eq!(
        check(json!({ "iss": "i", "aud": ["x", "a"], "exp": NOW as f64 + 0.5 })),
        Ok(())
    );
    for (claims, error) in [
        (json!({ "iss": "j", "aud": "a", "exp": NOW }), TokenError::Issuer),
        (json!({ "aud": "a", "exp": NOW }), TokenError::Issuer),
        (json!({ "iss": "i", "aud": "b", "exp": NOW }), TokenError::Audience),
        (json!({ "iss": "i", "exp": NOW }), TokenError::Audience),
        (json!({ "iss": "i", "aud": "a" }), TokenError::Expired),
        (
            json!({ "iss": "i", "aud": "a", "exp": "9999999999" }),
            TokenError::Expired,
        ),
        (json!({ "iss": "i", "aud": "a", "exp": -1 }), TokenError::Expired),
        (json!({ "iss": "i", "aud": "a", "exp": NOW - 60 }), TokenError::Expired),
        (
            json!({ "iss": "i", "aud": "a", "exp": NOW, "nbf": NOW + 61 }),
            TokenError::TooEarly,
        ),
        (
            json!({ "iss": "i", "aud": "a", "exp": NOW, "nbf": "soon" }),
            TokenError::TooEarly,
        ),
        (
            json!({ "iss": "i", "aud": "a", "exp": NOW, "iat": NOW + 61 }),
            TokenError::TooEarly,
        ),
    ] {
        assert_eq!(check(claims.clone()), Err(error), "{claims}");
    }
}

/// An issuer with a curve's key, and what it signs.
struct Issuing {
    pair: EcdsaKeyPair,
    asked: Arc<AtomicUsize>,
    gate: Gate,
}

fn issuing() -> Issuing {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let point = pair.public_key().as_ref();
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let document = json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "x": part(&point[1..33]), "y": part(&point[33..]) },
        { "kty": "oct", "kid": "k2", "k": "c2VjcmV0" },
        { "kty": "EC", "crv": "P-256", "kid": "k3", "alg": "HS256", "x": part(&point[1..33]), "y": part(&point[33..]) },
    ] });
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let fetch: Fetch = Arc::new(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        let document = document.to_string().into_bytes();
        Box::pin(async move { Ok(document) })
    });
    let config = Config::from_toml(
        r#"
        [access.oidc.github]
        issuer = "https://issuer.example"
        jwks_url = "https://issuer.example/jwks"
        audience = "larder"
        identity = "repository"
        "#,
    );
    Issuing {
        pair,
        asked,
        gate: Gate::new(&config.unwrap().access, &fetch).unwrap(),
    }
}

impl Issuing {
    fn token(&self, kid: &str, change: impl Fn(&mut Value)) -> String {
        let now = unix_seconds();
        let mut claims = json!({
            "iss": "https://issuer.example", "aud": "larder", "repository": "acme/app", "exp": now + 300, "iat": now,
        });
        change(&mut claims);
        signed(json!({ "alg": "ES256", "kid": kid }), claims, |text| {
            self.pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec()
        })
    }

    async fn bring(&self, header: &str) -> (Option<String>, Claim) {
        let found = self.gate.recognise(Some(header), from(&None)).await;
        (found.who.map(|who| who.to_string()), found.claim)
    }
}

#[tokio::test]
async fn tokens_of_others() {
    let issuing = issuing();
    let token = issuing.token("k1", |_| {});
    let acme = (Some("github:acme/app".to_owned()), Claim::Good);
    assert_eq!(issuing.bring(&format!("Bearer {token}")).await, acme);
    let as_password = STANDARD.encode(format!("oidc:{token}"));
    assert_eq!(issuing.bring(&format!("Basic {as_password}")).await, acme);
    assert!(
        issuing
            .gate
            .recognise_now(Some(&format!("Bearer {token}")), from(&None))
            .is_some(),
        "remembered"
    );
    assert_eq!(issuing.asked.load(Ordering::SeqCst), 1);
    // A key that is not there is looked for, but not each time.
    for kid in ["k2", "k3", "k4", "k4"] {
        let token = issuing.token(kid, |_| {});
        assert_eq!(issuing.bring(&format!("Bearer {token}")).await, (None, Claim::Wrong));
    }
    assert_eq!(issuing.asked.load(Ordering::SeqCst), 1, "within a minute");
    for change in [
        (|c: &mut Value| c["aud"] = json!("other")) as fn(&mut Value),
        |c| c["iss"] = json!("https://evil.example"),
        |c| c["iss"] = json!("larder"),
        |c| c["exp"] = json!(1),
        |c| c["repository"] = json!(""),
        |c| c["repository"] = json!(["acme/app"]),
        |c| c["repository"] = json!("a\nb"),
        |c| {
            c.as_object_mut().unwrap().remove("repository");
        },
    ] {
        let token = issuing.token("k1", change);
        assert_eq!(issuing.bring(&format!("Bearer {token}")).await, (None, Claim::Wrong));
    }
}

/// RSA, as the large issuers sign: a token and its key made by OpenSSL.
#[test]
fn rsa() {
    let keys = jwks::Keys::parse(include_bytes!("testdata/rsa-jwks.json")).unwrap();
    let text = include_str!("testdata/rsa-token.txt").trim();
    let token = Token::parse(text).unwrap();
    let key = keys.get(token.kid.as_deref().unwrap()).unwrap();
    let claims = token.verify(key).unwrap();
    claims.check("https://rsa.example", "larder", NOW).unwrap();
    assert_eq!(claims.claim("/kubernetes.io/namespace"), Some("build"));
    let other = text.replacen("eyJ", "eyK", 1);
    assert!(Token::parse(&other).map_or(true, |token| token.verify(key).is_err()));
}

#[tokio::test]
async fn nobody_and_strangers() {
    let issuing = issuing();
    let nobody = (None, Claim::None);
    assert_eq!(issuing.bring("Basic Og==").await, nobody, "R-C62");
    for wrong in [
        "Basic !",
        "Basic",
        "",
        "Digest x",
        "Bearer",
        "Bearer x",
        "Bearer a.b.c",
        "Basic YTpi",
    ] {
        assert_eq!(issuing.bring(wrong).await, (None, Claim::Wrong), "{wrong:?}");
    }
    // A certificate stands where a login does not.
    let certificate: Identity = Some("cert:node".into());
    let found = issuing.gate.recognise(Some("Bearer x"), from(&certificate)).await;
    assert_eq!((found.who, found.claim), (certificate, Claim::Wrong));
}

/// A token for a name out of a client certificate is good with that certificate only, as bearer token and as
/// password, and also once it is remembered; other tokens go everywhere, also those of the last release.
#[tokio::test]
async fn tokens_are_bound_to_certificates() {
    let issuing = issuing();
    let gate = &issuing.gate;
    let mint = |who: Option<&str>| gate.mint().issue(&who.map(Arc::from), json!([]), unix_seconds());
    let node: Identity = Some("cert:node-1".into());
    let other: Identity = Some("cert:node-2".into());
    let token = mint(Some("cert:node-1"));
    let bring = async |certificate: &Identity| {
        let bearer = gate
            .recognise(Some(&format!("Bearer {token}")), from(certificate))
            .await;
        let basic = STANDARD.encode(format!("x:{token}"));
        let basic = gate.recognise(Some(&format!("Basic {basic}")), from(certificate)).await;
        assert_eq!((&bearer.who, bearer.claim), (&basic.who, basic.claim));
        let logged_in = gate.log_in("x", &token, from(certificate)).await;
        assert_eq!(logged_in.is_ok(), bearer.claim == Claim::Good);
        (bearer.who, bearer.claim)
    };
    for _ in 0..2 {
        assert_eq!(bring(&None).await, (None, Claim::Wrong));
        assert_eq!(bring(&other).await, (other.clone(), Claim::Wrong));
        assert_eq!(bring(&node).await, (node.clone(), Claim::Good));
    }
    let issued = issuing.token("k1", |_| {});
    let found = gate.recognise(Some(&format!("Bearer {issued}")), from(&node)).await;
    assert_eq!(
        (found.who.as_deref(), found.claim),
        (Some("github:acme/app"), Claim::Good)
    );
    // Anonymous: who asks is in the certificate.
    let found = gate
        .recognise(Some(&format!("Bearer {}", mint(None))), from(&node))
        .await;
    assert_eq!((found.who, found.claim), (node, Claim::Good));
}

proptest! {
    #[test]
    fn any_text_is_a_token_or_none(text in "\\PC{0,120}", parts in proptest::collection::vec("[A-Za-z0-9_-]{0,40}", 0..5)) {
        let _ = Token::parse(&text);
        let _ = Token::parse(&parts.join("."));
        let _ = Credentials::read(Some(&text));
        let _ = jwks::Keys::parse(text.as_bytes());
    }

    /// Nothing that is changed in a token is believed.
    #[test]
    fn a_changed_token_is_none(at in 0usize..1000, byte in "[A-Za-z0-9_.-]") {
        let mint = mint();
        let token = mint.issue(&Some("alice".into()), json!([]), NOW);
        let at = at % token.len();
        let mut changed = token.clone();
        changed.replace_range(at..=at, &byte);
        let found = read(&mint, &changed, NOW);
        // The last letter of a part has bits that mean nothing; base64 refuses them.
        prop_assert!(changed == token || found.is_err(), "{found:?}");
    }

    #[test]
    fn any_key_set_is_read_or_refused(kty in "RSA|EC|OKP|oct|x", crv in "P-256|P-384|Ed25519|x", alg in "RS256|ES256|none|HS256", x in "[A-Za-z0-9_=-]{0,60}") {
        let jwk = json!({ "keys": [{ "kty": kty, "crv": crv, "alg": alg, "kid": "k", "n": x, "e": x, "x": x, "y": x }] });
        let keys = jwks::Keys::parse(jwk.to_string().as_bytes()).unwrap();
        prop_assert!(keys.get("k").is_none_or(|key| key.algorithm().as_str() == alg));
    }
}
