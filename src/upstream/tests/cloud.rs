//! Helpers and clouds: who gives out credentials, against endpoints with a script.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::config::{Cloud, Lender};

const KEY_ID: &str = "AKIDEXAMPLE";
const KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SESSION: &str = "session/token==";

fn lent(url: &str, lender: Lender) -> Upstream {
    let mut lent = upstream(url);
    lent.lender = Some(lender);
    lent
}

fn variables(list: &[(&str, &str)]) -> Sources {
    let cloud: BTreeMap<String, Secret> = list
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Secret::new(*value)))
        .collect();
    Sources {
        cloud,
        ..Sources::default()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn json(text: impl ToString) -> Say {
    say(200, text.to_string()).kind("application/json")
}

// --- AWS ------------------------------------------------------------------------------------------------

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|b| b ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Signature Version 4 once more, from what came over the wire. Gives what is wrong with it.
fn check_signature(seen: &Seen, region: &str, service: &str) -> Result<(), String> {
    let header = seen.authorization().ok_or("no Authorization")?;
    let rest = header.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("another scheme")?;
    let part = |name: &str| {
        let found = rest
            .split(", ")
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found.ok_or(format!("no {name}"))
    };
    let date = seen.header("x-amz-date").ok_or("no date")?;
    let scope = format!("{}/{region}/{service}/aws4_request", &date[..8]);
    if part("Credential")? != format!("{KEY_ID}/{scope}") {
        return Err(format!("credential {}", part("Credential")?));
    }
    let names: Vec<&str> = part("SignedHeaders")?.split(';').collect();
    for must in ["host", "x-amz-date", "x-amz-target"] {
        if !names.contains(&must) {
            return Err(format!("{must} is not signed"));
        }
    }
    let mut canonical = format!("{}\n{}\n{}\n", seen.method, seen.path, seen.query);
    for name in &names {
        canonical += &format!("{name}:{}\n", seen.header(name).ok_or(format!("no {name}"))?.trim());
    }
    canonical += &format!("\n{}\n{}", names.join(";"), hex(&Sha256::digest(seen.body.as_bytes())));
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let mut key = format!("AWS4{KEY}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part.as_bytes());
    }
    let want = hex(&hmac(&key, to_sign.as_bytes()));
    match part("Signature")? == want {
        true => Ok(()),
        false => Err(format!("signature {}, not {want}", part("Signature")?)),
    }
}

/// ECR's API and a registry of it: passwords count up, and only the one of `generation` is good.
fn ecr(seen: &Seen, generation: &AtomicUsize, checks: impl Fn(&Seen) -> Result<(), String>) -> Say {
    let good = format!("pw{}", generation.load(Ordering::SeqCst));
    if seen.header("x-amz-target") == Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken") {
        return match checks(seen) {
            Ok(()) => {
                let token = STANDARD.encode(format!("AWS:{good}"));
                json(format!(
                    r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":4.1e9,"proxyEndpoint":"https://x"}}]}}"#
                ))
            }
            Err(what) => say(
                400,
                format!(r#"{{"__type":"InvalidSignatureException","message":"{what}"}}"#),
            ),
        };
    }
    match seen.authorization() {
        None => say(401, "Not Authorized").with(
            "www-authenticate",
            r#"Basic realm="https://x/",service="ecr.amazonaws.com""#,
        ),
        Some(sent) if sent == basic("AWS", &good) => manifest(),
        Some(_) => say(
            403,
            "Your Authorization Token has expired. Please run 'aws ecr get-login' to fetch a new one.",
        ),
    }
}

fn aws(server: &Server, more: &[(&str, &str)]) -> Arc<Client> {
    let url = server.url();
    let mut list = vec![("AWS_REGION", "eu-central-1"), ("AWS_ENDPOINT_URL_ECR", url.as_str())];
    list.extend_from_slice(more);
    build(lent(&url, Lender::Cloud(Cloud::Aws)), &variables(&list), tuning())
}

const STATIC: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", KEY)];

/// R-U43: one signed call for all who ask; the answer of an expired token, 403 without a challenge, costs one more.
#[tokio::test]
async fn ecr_by_keys_of_the_environment() {
    let generation = Arc::new(AtomicUsize::new(1));
    let current = generation.clone();
    let server =
        Server::start(move |_, seen| ecr(seen, &current, |seen| check_signature(seen, "eu-central-1", "ecr"))).await;
    let client = aws(&server, &STATIC);
    let calls = || {
        server
            .seen()
            .iter()
            .filter(|s| s.header("x-amz-target").is_some())
            .count()
    };
    for outcome in futures_util::future::join_all((0..40).map(|_| get(&client))).await {
        outcome.unwrap();
    }
    assert_eq!(calls(), 1);
    assert_eq!(client.has_credentials(&repository("a/b")), Some(true));
    generation.store(2, Ordering::SeqCst);
    for outcome in futures_util::future::join_all((0..40).map(|_| get(&client))).await {
        outcome.unwrap();
    }
    assert_eq!(calls(), 2);
    // Refused again at once: it is not the token's age, and AWS is left alone.
    generation.store(3, Ordering::SeqCst);
    for _ in 0..5 {
        let error = get(&client).await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Denied { status: 403, .. }), "{error}");
    }
    assert_eq!(calls(), 2);
}

#[tokio::test]
async fn a_wrong_signature_is_found_out() {
    let generation = Arc::new(AtomicUsize::new(1));
    let server =
        Server::start(move |_, seen| ecr(seen, &generation, |seen| check_signature(seen, "us-east-1", "ecr"))).await;
    let error = get(&aws(&server, &STATIC)).await.unwrap_err().to_string();
    assert!(
        error.contains("no token of AWS") && error.contains("credential AKIDEXAMPLE"),
        "{error}"
    );
    assert!(!error.contains(KEY));
}

fn with_session(seen: &Seen) -> Result<(), String> {
    let names = seen.authorization().unwrap_or_default();
    match seen.header("x-amz-security-token") {
        Some(SESSION) if names.contains("x-amz-security-token") => check_signature(seen, "eu-central-1", "ecr"),
        _ => Err("no session".to_owned()),
    }
}

const LENT_KEYS: &str = r#"{"Code":"Success","AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY","Token":"session/token==","Expiration":"2099-01-01T00:00:00Z"}"#;

/// IMDSv2, the address of the container, and STS: each gives keys with a session, which is signed too.
#[tokio::test]
async fn ecr_by_every_identity() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "web-identity\n").unwrap();
    let generation = Arc::new(AtomicUsize::new(1));
    let server = Server::start(move |_, seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("PUT", "/latest/api/token") if seen.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => say(200, "imds"),
        ("GET", path) if path.starts_with("/latest/meta-data/") => {
            match (seen.header("x-aws-ec2-metadata-token"), path) {
                (Some("imds"), "/latest/meta-data/iam/security-credentials/") => say(200, "the-role"),
                (Some("imds"), "/latest/meta-data/iam/security-credentials/the-role") => json(LENT_KEYS),
                _ => say(401, ""),
            }
        }
        ("GET", "/creds") if seen.authorization() == Some("pod-token") => json(LENT_KEYS),
        ("POST", "/sts") => {
            let fits = seen.field("Action").as_deref() == Some("AssumeRoleWithWebIdentity")
                && seen.field("WebIdentityToken").as_deref() == Some("web-identity")
                && seen.field("RoleArn").as_deref() == Some("arn:aws:iam::1:role/r");
            match fits {
                true => say(
                    200,
                    format!("<R><Credentials><AccessKeyId>{KEY_ID}</AccessKeyId><SecretAccessKey>{KEY}</SecretAccessKey><SessionToken>{SESSION}</SessionToken></Credentials></R>"),
                ),
                false => say(400, seen.body.clone()),
            }
        }
        _ => ecr(seen, &generation, with_session),
    })
    .await;
    let url = |path: &str| format!("{}{path}", server.url());
    let machine = url("");
    get(&aws(&server, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &machine)]))
        .await
        .unwrap();
    let container = url("creds");
    get(&aws(
        &server,
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod-token"),
        ],
    ))
    .await
    .unwrap();
    let sts = url("sts");
    get(&aws(
        &server,
        &[
            ("AWS_ENDPOINT_URL_STS", &sts),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ],
    ))
    .await
    .unwrap();
}

/// L10: the environment alone has nobody asked.
#[tokio::test]
async fn without_cloud_no_cloud_is_dialled() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/v2/a/b/manifests/latest" => say(401, "").with("www-authenticate", format!(r#"Basic realm="{own}""#)),
        other => panic!("{other} was asked"),
    })
    .await;
    let url = server.url();
    let mut list = vec![
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ENDPOINT_URL_ECR", url.as_str()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
    ];
    list.extend(STATIC);
    let client = build(upstream(&url), &variables(&list), tuning());
    get(&client).await.unwrap_err();
    assert_eq!(server.seen().len(), 1);
}

// --- Google ---------------------------------------------------------------------------------------------

/// Made for this test; it opens nothing.
const SERVICE_ACCOUNT: &str = include_str!("service_account.pem");
const PUBLIC: &[u8] = include_bytes!("service_account.pub.der");

/// A registry of R-U42: a challenge whose token server takes the access token as a password.
fn artifact_registry(own: &str, seen: &Seen, access: &str) -> Say {
    match seen.path.as_str() {
        "/v2/token" if seen.authorization() == Some(&basic("oauth2accesstoken", access)) => {
            json(r#"{"token":"registry"}"#)
        }
        "/v2/token" => say(401, ""),
        _ if seen.authorization() == Some("Bearer registry") => manifest(),
        _ => bearer(own, "/v2/token"),
    }
}

#[tokio::test]
async fn google_by_the_metadata_server() {
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/computeMetadata/v1/instance/service-accounts/default/token"
            if seen.header("metadata-flavor") == Some("Google") =>
        {
            json(r#"{"access_token":"ya29.m","expires_in":3599,"token_type":"Bearer"}"#)
        }
        _ => artifact_registry(own, seen, "ya29.m"),
    })
    .await;
    let sources = variables(&[("GCE_METADATA_HOST", &server.address.to_string())]);
    let client = build(lent(&server.url(), Lender::Cloud(Cloud::Google)), &sources, tuning());
    get(&client).await.unwrap();
    get(&client).await.unwrap();
    assert_eq!(server.count("/computeMetadata"), 1);
}

/// RFC 7523: what is signed, by whom, for whom, and that the signature is right.
#[tokio::test]
async fn google_by_a_service_accounts_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/oauth" => {
            assert_eq!(
                seen.field("grant_type").as_deref(),
                Some("urn:ietf:params:oauth:grant-type:jwt-bearer")
            );
            let assertion = seen.field("assertion").unwrap();
            let (signed, signature) = assertion.rsplit_once('.').unwrap();
            let key = ring::signature::UnparsedPublicKey::new(&ring::signature::RSA_PKCS1_2048_8192_SHA256, PUBLIC);
            key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
                .unwrap();
            let claims = URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap();
            let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
            assert_eq!(claims["iss"], "larder@p.iam.gserviceaccount.com");
            assert_eq!(claims["aud"], format!("{own}/oauth"));
            assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
            json(r#"{"access_token":"ya29.k","expires_in":3600}"#)
        }
        _ => artifact_registry(own, seen, "ya29.k"),
    })
    .await;
    let key = serde_json::json!({
        "type": "service_account", "client_email": "larder@p.iam.gserviceaccount.com", "private_key_id": "k1",
        "private_key": SERVICE_ACCOUNT, "token_uri": format!("{}oauth", server.url()),
    });
    std::fs::write(&file, key.to_string()).unwrap();
    let sources = variables(&[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]);
    let client = build(lent(&server.url(), Lender::Cloud(Cloud::Google)), &sources, tuning());
    get(&client).await.unwrap();
    assert_eq!(server.count("/oauth"), 1);
    assert!(!format!("{client:?} {sources:?}").contains("PRIVATE KEY"));
}

#[tokio::test]
async fn google_by_a_workloads_identity() {
    let folder = tempfile::tempdir().unwrap();
    let (file, subject) = (folder.path().join("config.json"), folder.path().join("subject"));
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/sts" => match seen.field("subject_token").as_deref() {
            Some("oidc") if seen.field("audience").as_deref() == Some("//iam/p") => {
                json(r#"{"access_token":"federated","expires_in":3600}"#)
            }
            _ => say(400, seen.body.clone()),
        },
        "/impersonate" if seen.authorization() == Some("Bearer federated") => {
            json(r#"{"accessToken":"ya29.i","expireTime":"2099-01-01T00:00:00Z"}"#)
        }
        _ => artifact_registry(own, seen, "ya29.i"),
    })
    .await;
    std::fs::write(&subject, r#"{"id_token":"oidc"}"#).unwrap();
    let config = serde_json::json!({
        "type": "external_account", "audience": "//iam/p", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}sts", server.url()),
        "service_account_impersonation_url": format!("{}impersonate", server.url()),
        "credential_source": { "file": subject, "format": { "type": "json", "subject_token_field_name": "id_token" } },
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let sources = variables(&[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]);
    let client = build(lent(&server.url(), Lender::Cloud(Cloud::Google)), &sources, tuning());
    get(&client).await.unwrap();
}

// --- Azure ----------------------------------------------------------------------------------------------

/// R-U44: Entra ID → exchange → refresh token → access token; the password grant and Basic are not taken.
fn acr(own: &str, seen: &Seen) -> Say {
    match seen.path.as_str() {
        "/oauth2/exchange" => {
            let fits = seen.field("grant_type").as_deref() == Some("access_token")
                && seen.field("service").as_deref() == Some("127.0.0.1")
                && seen.field("access_token").as_deref() == Some("entra");
            match fits {
                true => json(r#"{"refresh_token":"refresh"}"#),
                false => say(401, seen.body.clone()),
            }
        }
        "/oauth2/token" if seen.method == "POST" => match seen.field("refresh_token").as_deref() {
            Some("refresh") => json(r#"{"access_token":"acr"}"#),
            _ => say(401, ""),
        },
        _ if seen.authorization() == Some("Bearer acr") => manifest(),
        _ => bearer(own, "/oauth2/token"),
    }
}

#[tokio::test]
async fn azure_by_every_identity() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("federated");
    std::fs::write(&file, "projected").unwrap();
    let server = Server::start(|own, seen| match seen.path.as_str() {
        "/tenant/oauth2/v2.0/token" => {
            let secret = seen.field("client_secret").as_deref() == Some("s3cret");
            let assertion = seen.field("client_assertion").as_deref() == Some("projected");
            let scope = seen.field("scope").as_deref() == Some("https://containerregistry.azure.net/.default");
            match scope && (secret || assertion) {
                true => json(r#"{"access_token":"entra","expires_in":3599}"#),
                false => say(
                    401,
                    r#"{"error":"invalid_client","error_description":"AADSTS7000215: no s3cret"}"#,
                ),
            }
        }
        "/metadata/identity/oauth2/token" if seen.header("metadata") == Some("true") => {
            assert_eq!(
                seen.param("resource").as_deref(),
                Some("https://containerregistry.azure.net")
            );
            json(r#"{"access_token":"entra","expires_in":"86399"}"#)
        }
        _ => acr(own, seen),
    })
    .await;
    let url = server.url();
    let client = |more: &[(&str, &str)]| {
        let mut list = vec![
            ("AZURE_AUTHORITY_HOST", url.as_str()),
            ("AZURE_POD_IDENTITY_AUTHORITY_HOST", url.as_str()),
            ("AZURE_CLIENT_ID", "client"),
        ];
        list.extend_from_slice(more);
        build(lent(&url, Lender::Cloud(Cloud::Azure)), &variables(&list), tuning())
    };
    get(&client(&[])).await.unwrap();
    let tenant = ("AZURE_TENANT_ID", "tenant");
    get(&client(&[tenant, ("AZURE_CLIENT_SECRET", "s3cret")]))
        .await
        .unwrap();
    get(&client(&[
        tenant,
        ("AZURE_FEDERATED_TOKEN_FILE", file.to_str().unwrap()),
    ]))
    .await
    .unwrap();
    assert_eq!(server.count("/oauth2/exchange"), 3);
    let error = get(&client(&[tenant, ("AZURE_CLIENT_SECRET", "wrong")]))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("invalid_client") && !error.contains("wrong"), "{error}");
}

// --- helpers --------------------------------------------------------------------------------------------

/// A helper that gives out a password of its own each time it is run, and writes down for what.
fn helper(dir: &Path) -> Sources {
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncat >> asked\necho >> asked\n\
                  if [ -e nobody ]; then echo 'credentials not found in native keychain'; exit 1; fi\n\
                  printf '{\"Username\":\"me\",\"Secret\":\"pw%d\"}' \"$(wc -l < asked)\"\n";
    let file = dir.join("docker-credential-test");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    Sources {
        path: Some(format!("{}:/usr/bin:/bin", dir.display())),
        ..Sources::default()
    }
}

/// R-U62: run once for many, again when what it gave is refused; by the configuration's word and by a login file's.
#[tokio::test]
async fn helpers_are_asked_once_and_when_they_are_refused() {
    for by_file in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut sources = helper(dir.path());
        let good = Arc::new(Mutex::new("pw1".to_owned()));
        let current = good.clone();
        let server = Server::start(move |own, seen| {
            let good = current.lock().unwrap().clone();
            match seen.authorization() {
                Some(sent) if sent == basic("me", &good) => manifest(),
                _ => say(401, "").with("www-authenticate", format!(r#"Basic realm="{own}""#)),
            }
        })
        .await;
        let client = match by_file {
            false => build(
                lent(&server.url(), Lender::Helper("test".to_owned())),
                &sources,
                tuning(),
            ),
            true => {
                let text = format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, server.address);
                sources.inline = Some(Secret::new(text));
                build(upstream(&server.url()), &sources, tuning())
            }
        };
        for outcome in futures_util::future::join_all((0..20).map(|_| get(&client))).await {
            outcome.unwrap();
        }
        let asked = || std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked(), format!("{}\n", server.address));
        *good.lock().unwrap() = "pw2".to_owned();
        for outcome in futures_util::future::join_all((0..20).map(|_| get(&client))).await {
            outcome.unwrap();
        }
        assert_eq!(asked().lines().count(), 2);
        assert_eq!(client.has_credentials(&repository("a/b")), Some(true));
    }
}

/// A helper that takes its time makes no mirror late: the next address is asked meanwhile, and what it gives out is
/// kept.
#[tokio::test]
async fn a_slow_helper_is_not_a_mirrors_silence() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = helper(dir.path());
    let program = dir.path().join("docker-credential-test");
    let script = std::fs::read_to_string(&program).unwrap();
    std::fs::write(&program, script.replacen('\n', "\nsleep 2\n", 1)).unwrap();
    let mirror = Server::start(|own, seen| match seen.authorization() {
        Some(sent) if sent == basic("me", "pw1") => manifest(),
        _ => say(401, "").with("www-authenticate", format!(r#"Basic realm="{own}""#)),
    })
    .await;
    let server = Server::start(|_, _| manifest()).await;
    sources.inline = Some(Secret::new(format!(
        r#"{{"credHelpers":{{"{}":"test"}}}}"#,
        mirror.address
    )));
    let mut with = upstream(&server.url());
    with.mirrors = vec![mirror.url().parse().unwrap()];
    let client = build(with, &sources, tuning());
    get(&client).await.unwrap();
    assert_eq!((mirror.seen().len(), server.seen().len()), (0, 1));
    let begun = std::time::Instant::now();
    while mirror.seen().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the mirror is never asked");
        get(&client).await.unwrap();
    }
    assert!(
        client.addresses().iter().all(|address| address.failures == 0),
        "{:?}",
        client.addresses()
    );
    let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
    assert_eq!(asked.lines().count(), 1);
}

#[tokio::test]
async fn a_helper_that_knows_nobody_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let sources = helper(dir.path());
    std::fs::write(dir.path().join("nobody"), "").unwrap();
    let server = Server::start(|_, _| manifest()).await;
    let client = build(
        lent(&server.url(), Lender::Helper("test".to_owned())),
        &sources,
        tuning(),
    );
    get(&client).await.unwrap();
    get(&client).await.unwrap();
    assert!(server.seen().iter().all(|seen| seen.authorization().is_none()));
    assert_eq!(client.has_credentials(&repository("a/b")), Some(false));
    let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
    assert_eq!(asked.lines().count(), 1);
}
