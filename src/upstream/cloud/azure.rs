//! Azure's registries: a token of Entra ID, exchanged at the registry for a refresh token (R-U44).
//!
//! Who this process is, first match first: a client with its secret; a workload identity whose token lies in a file; the
//! machine's managed identity, by IMDS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use url::Url;

use super::http::{Call, Http, Way};
use super::{Variables, below};
use crate::config::Secret;
use crate::upstream::credentials::Credential;
use crate::upstream::lease::{Give, Given};

const IMDS: &str = "http://169.254.169.254";
const AUTHORITY: &str = "https://login.microsoftonline.com";
const RESOURCE: &str = "https://containerregistry.azure.net";
/// What a refresh token is good for when it does not say; ACR gives three hours.
const USUAL: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub struct Azure {
    http: Http,
    variables: Variables,
    registry: Url,
}

impl Azure {
    pub fn new(base: &Url, http: Http, variables: Variables) -> Azure {
        Azure {
            http,
            variables,
            registry: base.clone(),
        }
    }

    async fn token(&self) -> Result<Given, String> {
        let access = self.access_token().await?;
        let service = self.registry.host_str().unwrap_or_default();
        let mut fields = vec![
            ("grant_type", "access_token"),
            ("service", service),
            ("access_token", access.reveal()),
        ];
        if let Some(tenant) = self.variables.get("AZURE_TENANT_ID") {
            fields.push(("tenant", tenant));
        }
        let call = Call::form(Way::Far, below(&self.registry, "oauth2/exchange"), &fields);
        let answer = self.http.json(call, &[access.reveal()]).await?;
        let token = answer.secret("/refresh_token")?;
        Ok(Given {
            good_for: Some(lifetime(&token).unwrap_or(USUAL)),
            credential: Credential::Identity {
                username: String::new(),
                token,
            },
        })
    }

    /// Of Entra ID, for registries.
    async fn access_token(&self) -> Result<Secret, String> {
        let of = |name: &str| self.variables.get(name);
        let scope = format!("{RESOURCE}/.default");
        if let Some(secret) = of("AZURE_CLIENT_SECRET") {
            let proof = [("client_secret", secret)];
            return self.entra(&scope, &proof).await;
        }
        if of("AZURE_FEDERATED_TOKEN_FILE").is_some() {
            let token = self.variables.file("AZURE_FEDERATED_TOKEN_FILE").await?;
            let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
            let proof = [("client_assertion_type", kind), ("client_assertion", token.reveal())];
            return self.entra(&scope, &proof).await;
        }
        let base = self.variables.address("AZURE_POD_IDENTITY_AUTHORITY_HOST", IMDS)?;
        let mut url = below(&base, "metadata/identity/oauth2/token");
        url.query_pairs_mut()
            .append_pair("api-version", "2018-02-01")
            .append_pair("resource", RESOURCE);
        // Which, where a machine has several.
        if let Some(client) = of("AZURE_CLIENT_ID") {
            url.query_pairs_mut().append_pair("client_id", client);
        }
        let call = Call::get(Way::Near, url).with("metadata", "true")?;
        self.http.json(call, &[]).await?.secret("/access_token")
    }

    async fn entra(&self, scope: &str, proof: &[(&str, &str)]) -> Result<Secret, String> {
        let authority = self.variables.address("AZURE_AUTHORITY_HOST", AUTHORITY)?;
        let tenant = self.variables.need("AZURE_TENANT_ID")?;
        let mut fields = vec![
            ("grant_type", "client_credentials"),
            ("client_id", self.variables.need("AZURE_CLIENT_ID")?),
            ("scope", scope),
        ];
        fields.extend_from_slice(proof);
        let call = Call::form(
            Way::Far,
            below(&authority, &format!("{tenant}/oauth2/v2.0/token")),
            &fields,
        );
        let secrets: Vec<&str> = proof.iter().map(|(_, value)| *value).collect();
        self.http.json(call, &secrets).await?.secret("/access_token")
    }
}

impl Give for Azure {
    fn give(&self) -> BoxFuture<'_, Result<Given, String>> {
        Box::pin(async { self.token().await.map_err(|what| format!("no token of Azure: {what}")) })
    }
}

/// What a JWT says of its own end; nobody has to believe it, the registry will tell.
pub(super) fn lifetime(token: &Secret) -> Option<Duration> {
    let claims = token.reveal().split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let ends = Duration::from_secs(claims.get("exp")?.as_u64()?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let left = ends.checked_sub(now)?;
    Some(left.min(Duration::from_secs(24 * 3600)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_say_when_they_end() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let token = |claims: &str| Secret::new(format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims)));
        let left = lifetime(&token(&format!(r#"{{"exp":{}}}"#, now + 10_800))).unwrap();
        assert!(left <= Duration::from_secs(10_800) && left > Duration::from_secs(10_700));
        for none in [r#"{"exp":1}"#, r#"{"exp":"x"}"#, "{}", "["] {
            assert_eq!(lifetime(&token(none)), None, "{none}");
        }
        assert_eq!(lifetime(&Secret::new("opaque")), None);
    }
}
