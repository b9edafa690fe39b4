//! Google's registries: an access token as the password of `oauth2accesstoken` (R-U42).
//!
//! With `GOOGLE_APPLICATION_CREDENTIALS`, by that file: a service account's key (a JWT signed with it, RFC 7523), or a
//! workload identity whose token lies in a file (exchanged at STS, RFC 8693, and for a service account's when the file says
//! so). Without it, by the machine's metadata server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use url::Url;

use super::Variables;
use super::http::{Call, Http, Way};
use crate::config::{Password, Secret};
use crate::upstream::credentials::Credential;
use crate::upstream::lease::{Give, Given};

const FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const USER: &str = "oauth2accesstoken";
/// The longest that Google gives, and what is asked for.
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub struct Google {
    http: Http,
    variables: Variables,
}

impl Google {
    pub fn new(http: Http, variables: Variables) -> Google {
        Google { http, variables }
    }

    async fn token(&self) -> Result<Given, String> {
        if self.variables.get(FILE).is_none() {
            return self.machine().await;
        }
        let text = self.variables.file(FILE).await?;
        // serde's message could quote the key.
        let file: Value = serde_json::from_str(text.reveal()).map_err(|_| format!("the file of {FILE} is not JSON"))?;
        match file.get("type").and_then(Value::as_str) {
            Some("service_account") => self.service_account(&file).await,
            Some("external_account") => self.workload(&file).await,
            _ => Err(format!(
                "the file of {FILE} is neither of type service_account nor external_account"
            )),
        }
    }

    async fn machine(&self) -> Result<Given, String> {
        let host = self
            .variables
            .get("GCE_METADATA_HOST")
            .unwrap_or("metadata.google.internal");
        let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
        let url = url.parse().map_err(|_| "GCE_METADATA_HOST is no host".to_owned())?;
        let call = Call::get(Way::Near, url).with("metadata-flavor", "Google")?;
        self.given(call, &[], "/access_token").await
    }

    async fn service_account(&self, file: &Value) -> Result<Given, String> {
        let url = address(file, "token_uri")?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        let claims = json!({
            "iss": text(file, "client_email")?,
            "scope": SCOPE,
            "aud": text(file, "token_uri")?,
            "iat": now,
            "exp": now + HOUR.as_secs(),
        });
        let key_id = file.get("private_key_id").cloned().unwrap_or_default();
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": key_id });
        let assertion = jwt(&header, &claims, text(file, "private_key")?)?;
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", &assertion),
        ];
        let call = Call::form(Way::Far, url, &fields);
        self.given(call, &[&assertion], "/access_token").await
    }

    async fn workload(&self, file: &Value) -> Result<Given, String> {
        let subject = subject_token(file).await?;
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("audience", text(file, "audience")?),
            ("scope", SCOPE),
            ("subject_token_type", text(file, "subject_token_type")?),
            ("subject_token", subject.reveal()),
        ];
        let call = Call::form(Way::Far, address(file, "token_url")?, &fields);
        let given = self.given(call, &[subject.reveal()], "/access_token").await?;
        if file.get("service_account_impersonation_url").is_none() {
            return Ok(given);
        }
        let url = address(file, "service_account_impersonation_url")?;
        let token = given.credential.secret().unwrap_or_default();
        let body = json!({ "scope": [SCOPE], "lifetime": "3600s" }).to_string();
        let call =
            Call::post(Way::Far, url, "application/json", body).with("authorization", &format!("Bearer {token}"))?;
        self.given(call, &[token], "/accessToken").await
    }

    async fn given(&self, call: Call, secrets: &[&str], path: &str) -> Result<Given, String> {
        let answer = self.http.json(call, secrets).await?;
        Ok(Given {
            credential: Credential::Basic {
                username: USER.to_owned(),
                password: answer.secret(path)?,
            },
            good_for: Some(answer.seconds("/expires_in").unwrap_or(HOUR)),
        })
    }
}

impl Give for Google {
    fn give(&self) -> BoxFuture<'_, Result<Given, String>> {
        Box::pin(async { self.token().await.map_err(|what| format!("no token of Google: {what}")) })
    }
}

fn text<'a>(file: &'a Value, key: &str) -> Result<&'a str, String> {
    let found = file.get(key).and_then(Value::as_str);
    found.ok_or_else(|| format!("the file of {FILE} is without {key}"))
}

/// By TLS, or on this machine.
fn address(file: &Value, key: &str) -> Result<Url, String> {
    let url: Option<Url> = text(file, key)?.parse().ok();
    let fits = |url: &Url| match url.host() {
        _ if url.scheme() == "https" => true,
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        _ => false,
    };
    url.filter(fits)
        .ok_or_else(|| format!("{key} in the file of {FILE} is no https:// address"))
}

/// What proves who this workload is: a file's text, or one field of its JSON.
async fn subject_token(file: &Value) -> Result<Secret, String> {
    let source = file.get("credential_source").unwrap_or(&Value::Null);
    let Some(path) = source.get("file").and_then(Value::as_str) else {
        return Err(format!(
            "credential_source in the file of {FILE} names no file, and Larder knows no other source"
        ));
    };
    let path = path.into();
    let reading = tokio::task::spawn_blocking(move || Password::File(path).read());
    let read = reading.await.map_err(|_| "a task ended early".to_owned())??;
    let format = source.get("format").unwrap_or(&Value::Null);
    if format.get("type").and_then(Value::as_str) != Some("json") {
        return Ok(read);
    }
    let field = text(format, "subject_token_field_name")?;
    let json: Value =
        serde_json::from_str(read.reveal()).map_err(|_| "the subject token's file is not JSON".to_owned())?;
    let found = json.get(field).and_then(Value::as_str);
    found
        .map(Secret::new)
        .ok_or_else(|| format!("the subject token's file is without {field}"))
}

/// A JSON Web Token, signed by RS256.
fn jwt(header: &Value, claims: &Value, pem: &str) -> Result<String, String> {
    let bad = |_| format!("private_key in the file of {FILE} is no RSA key in PKCS#8");
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| bad(()))?;
    let key = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| bad(()))?;
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        signed.as_bytes(),
        &mut signature,
    )
    .map_err(|_| "signing failed".to_owned())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
