//! Amazon's registries: `ecr:GetAuthorizationToken`, signed with the keys of whoever this process is (R-U43).
//!
//! Keys, first match first: those of the environment; those of the profile that `AWS_PROFILE` names (`profile`); those that STS gives
//! for a web identity (EKS service accounts, and other workload identities); those of the profile `default`; those of the
//! container's own address (ECS, EKS pod identity); those of the machine's role, by IMDSv2.

pub(super) mod profile;

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use reqwest::Method;
use url::{Host, Url};

use self::profile::Profile;
use super::http::{Call, Http, Json, Way};
use super::sigv4::{self, Keys, Request, Scope};
use super::{Variables, below};
use crate::config::Secret;
use crate::telemetry::clock;
use crate::upstream::credentials::Credential;
use crate::upstream::lease::{Give, Given};

const IMDS: &str = "http://169.254.169.254";
const CONTAINERS: &str = "http://169.254.170.2";
const JSON: &str = "application/x-amz-json-1.1";
/// What a token is good for when the answer does not say (R-U43).
const USUAL: Duration = Duration::from_secs(12 * 3600);

#[derive(Debug)]
pub struct Aws {
    http: Http,
    variables: Variables,
    registry: Option<Registry>,
}

/// What a registry's host tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registry {
    region: String,
    api: String,
    is_public: bool,
}

impl Registry {
    /// `<account>.dkr.ecr.<region>.amazonaws.com`, its FIPS, China and dual-stack kin, and `public.ecr.aws`.
    fn of(host: &str) -> Option<Registry> {
        if host == "public.ecr.aws" || host == "ecr-public.aws.com" {
            return Some(Registry {
                region: "us-east-1".to_owned(),
                api: "api.ecr-public.us-east-1.amazonaws.com".to_owned(),
                is_public: true,
            });
        }
        let (_account, rest) = host.split_once('.')?;
        let (kind, rest) = [
            ("dkr.ecr.", "api.ecr"),
            ("dkr.ecr-fips.", "ecr-fips"),
            ("dkr-ecr.", "ecr"),
            ("dkr-ecr-fips.", "ecr-fips"),
        ]
        .into_iter()
        .find_map(|(part, api)| Some((api, rest.strip_prefix(part)?)))?;
        let (region, domain) = rest.split_once('.')?;
        let domain = match domain {
            "on.aws" => "api.aws",
            "on.amazonwebservices.com.cn" => "api.amazonwebservices.com.cn",
            other => other,
        };
        Some(Registry {
            region: region.to_owned(),
            api: format!("{kind}.{region}.{domain}"),
            is_public: false,
        })
    }
}

impl Aws {
    pub fn new(base: &Url, http: Http, variables: Variables) -> Aws {
        Aws {
            http,
            variables,
            registry: Registry::of(base.host_str().unwrap_or_default()),
        }
    }

    async fn token(&self) -> Result<Given, String> {
        let region = self.variables.get("AWS_REGION");
        let region = region.or_else(|| self.variables.get("AWS_DEFAULT_REGION"));
        let registry = match (&self.registry, region) {
            (Some(registry), _) => registry.clone(),
            // A name of one's own in front of ECR.
            (None, Some(region)) => Registry {
                region: region.to_owned(),
                api: format!("api.ecr.{region}.amazonaws.com"),
                is_public: false,
            },
            (None, None) => {
                return Err("neither the registry's host nor the variable AWS_REGION says the region".to_owned());
            }
        };
        let keys = self.keys(&registry.region).await?;
        let (service, target, variable, path) = match registry.is_public {
            false => (
                "ecr",
                "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
                "AWS_ENDPOINT_URL_ECR",
                "/authorizationData/0",
            ),
            true => (
                "ecr-public",
                "SpencerFrontendService.GetAuthorizationToken",
                "AWS_ENDPOINT_URL_ECR_PUBLIC",
                "/authorizationData",
            ),
        };
        let url = self
            .variables
            .address(variable, &format!("https://{}/", registry.api))?;
        let scope = Scope {
            region: &registry.region,
            service,
        };
        let call = signed(&keys, scope, url, target, "{}")?;
        let answer = self.http.json(call, &secrets(&keys)).await?;
        let token = answer.secret(&format!("{path}/authorizationToken"))?;
        let ends = answer.number(&format!("{path}/expiresAt"));
        Ok(Given {
            credential: basic(&token)?,
            good_for: Some(ends.map_or(USUAL, until)),
        })
    }

    async fn keys(&self, region: &str) -> Result<Keys, String> {
        let of = |name: &str| self.variables.get(name);
        if let (Some(id), Some(secret)) = (of("AWS_ACCESS_KEY_ID"), self.variables.secret("AWS_SECRET_ACCESS_KEY")) {
            return Ok(Keys {
                id: id.to_owned(),
                secret: secret.clone(),
                session: self.variables.secret("AWS_SESSION_TOKEN").cloned(),
            });
        }
        let profile = Profile::of(&self.variables);
        if !profile.is_named && of("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
            return self.web_identity(region).await;
        }
        // Read each time: it is asked for when keys have ended.
        let reading = tokio::task::spawn_blocking(move || profile.keys());
        if let Some(keys) = reading.await.map_err(|_| "a task ended early".to_owned())?? {
            return Ok(keys);
        }
        if let Some(path) = of("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
            let base: Url = CONTAINERS.parse().map_err(|_| "no address".to_owned())?;
            let url = base
                .join(path)
                .map_err(|_| "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is no path".to_owned())?;
            return self.container(url).await;
        }
        if let Some(text) = of("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
            let url = text.parse().ok().filter(may_be_the_containers);
            let url = url.ok_or(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https:// nor an address of this machine or of its containers",
            )?;
            return self.container(url).await;
        }
        if of("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Err("no AWS keys in the environment, and AWS_EC2_METADATA_DISABLED is true".to_owned());
        }
        self.machine().await
    }

    /// STS `AssumeRoleWithWebIdentity`; the token is the signature.
    async fn web_identity(&self, region: &str) -> Result<Keys, String> {
        let token = self.variables.file("AWS_WEB_IDENTITY_TOKEN_FILE").await?;
        let domain = if region.starts_with("cn-") {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        let url = self
            .variables
            .address("AWS_ENDPOINT_URL_STS", &format!("https://sts.{region}.{domain}/"))?;
        let fields = [
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", self.variables.need("AWS_ROLE_ARN")?),
            (
                "RoleSessionName",
                self.variables.get("AWS_ROLE_SESSION_NAME").unwrap_or("larder"),
            ),
            ("WebIdentityToken", token.reveal()),
        ];
        let call = Call::form(Way::Far, url, &fields);
        let answer = self.http.send(call, &[token.reveal()]).await?;
        let text = String::from_utf8_lossy(&answer);
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            let (inner, _) = rest.split_once(&format!("</{name}>"))?;
            (!inner.is_empty()).then(|| inner.trim().to_owned())
        };
        let need = |name: &str| element(name).ok_or_else(|| format!("STS answered without {name}"));
        Ok(Keys {
            id: need("AccessKeyId")?,
            secret: Secret::new(need("SecretAccessKey")?),
            session: Some(Secret::new(need("SessionToken")?)),
        })
    }

    async fn container(&self, url: Url) -> Result<Keys, String> {
        let mut call = Call::get(Way::Near, url);
        if self.variables.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").is_some() {
            let token = self.variables.file("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").await?;
            call = call.with("authorization", token.reveal())?;
        } else if let Some(token) = self.variables.get("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
            call = call.with("authorization", token)?;
        }
        keys_of(&self.http.json(call, &[]).await?)
    }

    /// IMDSv2: a session first, which a request that was led astray cannot have.
    async fn machine(&self) -> Result<Keys, String> {
        let base = self.variables.address("AWS_EC2_METADATA_SERVICE_ENDPOINT", IMDS)?;
        let mut call = Call::get(Way::Near, below(&base, "latest/api/token"));
        call.method = Method::PUT;
        let call = call.with("x-aws-ec2-metadata-token-ttl-seconds", "300")?;
        let session = self.http.send(call, &[]).await?;
        let session = String::from_utf8_lossy(&session).trim().to_owned();
        let ask = |path: String| Call::get(Way::Near, below(&base, &path)).with("x-aws-ec2-metadata-token", &session);
        let roles = "latest/meta-data/iam/security-credentials/";
        let role = self.http.send(ask(roles.to_owned())?, &[&session]).await?;
        let role = String::from_utf8_lossy(&role);
        let role = role.lines().next().unwrap_or_default().trim();
        if role.is_empty() {
            return Err("this machine has no role".to_owned());
        }
        keys_of(&self.http.json(ask(format!("{roles}{role}"))?, &[&session]).await?)
    }
}

impl Give for Aws {
    fn give(&self) -> BoxFuture<'_, Result<Given, String>> {
        Box::pin(async { self.token().await.map_err(|what| format!("no token of AWS: {what}")) })
    }
}

fn keys_of(answer: &Json) -> Result<Keys, String> {
    Ok(Keys {
        id: answer.text("/AccessKeyId")?.to_owned(),
        secret: answer.secret("/SecretAccessKey")?,
        session: answer.secret("/Token").ok(),
    })
}

fn secrets(keys: &Keys) -> Vec<&str> {
    let session = keys.session.iter().map(Secret::reveal);
    session.chain([keys.secret.reveal()]).collect()
}

/// Whether an address is one that keys may come from: by TLS, on this machine, or where containers are told to ask.
fn may_be_the_containers(url: &Url) -> bool {
    const TOLD: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
    let is_told = |ip: IpAddr| ip.is_loopback() || TOLD.iter().any(|told| told.parse() == Ok(ip));
    match url.host() {
        _ if url.scheme() == "https" => true,
        Some(Host::Ipv4(ip)) => is_told(ip.into()),
        Some(Host::Ipv6(ip)) => is_told(ip.into()),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A call of a JSON service.
fn signed(keys: &Keys, scope: Scope<'_>, url: Url, target: &str, body: &str) -> Result<Call, String> {
    let date = clock::basic(clock::unix_ms(SystemTime::now()));
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let mut headers = vec![
        ("content-type", JSON),
        ("host", host.as_str()),
        ("x-amz-date", date.as_str()),
        ("x-amz-target", target),
    ];
    if let Some(session) = &keys.session {
        headers.push(("x-amz-security-token", session.reveal()));
    }
    let request = Request {
        method: "POST",
        url: &url,
        headers: &headers,
        body: body.as_bytes(),
    };
    let authorization = sigv4::authorization(keys, scope, &date, &request);
    let mut call = Call::post(Way::Far, url.clone(), JSON, body.to_owned())
        .with("authorization", &authorization)?
        .with("x-amz-date", &date)?
        .with("x-amz-target", target)?;
    if let Some(session) = &keys.session {
        call = call.with("x-amz-security-token", session.reveal())?;
    }
    Ok(call)
}

/// base64 of `AWS:password`.
pub(super) fn basic(token: &Secret) -> Result<Credential, String> {
    let strange = || "the token of ECR is not base64 of user:password".to_owned();
    let bytes = STANDARD.decode(token.reveal()).map_err(|_| strange())?;
    let text = String::from_utf8(bytes).map_err(|_| strange())?;
    let (username, password) = text.split_once(':').ok_or_else(strange)?;
    Ok(Credential::Basic {
        username: username.to_owned(),
        password: Secret::new(password),
    })
}

/// From now to a Unix time in seconds.
pub(super) fn until(ends: f64) -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |now| now.as_secs_f64());
    // `max` and `min`, other than `clamp`, make a number even of NaN.
    Duration::from_secs_f64((ends - now).max(0.0).min(USUAL.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_by_their_host() {
        for (host, region, api) in [
            (
                "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
                "eu-central-1",
                "api.ecr.eu-central-1.amazonaws.com",
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                "api.ecr.cn-north-1.amazonaws.com.cn",
            ),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                "ecr-fips.us-gov-west-1.amazonaws.com",
            ),
            (
                "123456789012.dkr-ecr.us-east-2.on.aws",
                "us-east-2",
                "ecr.us-east-2.api.aws",
            ),
            ("public.ecr.aws", "us-east-1", "api.ecr-public.us-east-1.amazonaws.com"),
        ] {
            let registry = Registry::of(host).unwrap();
            assert_eq!((registry.region.as_str(), registry.api.as_str()), (region, api));
        }
        assert_eq!(Registry::of("ghcr.io"), None);
        assert_eq!(Registry::of("x.amazonaws.com"), None);
    }

    #[test]
    fn keys_come_from_here() {
        for (text, may) in [
            ("https://keys.example/", true),
            ("http://127.0.0.1:1/x", true),
            ("http://[::1]/x", true),
            ("http://169.254.170.23/v1/credentials", true),
            ("http://[fd00:ec2::23]/v1/credentials", true),
            ("http://169.254.169.254/", false),
            ("http://keys.example/", false),
        ] {
            assert_eq!(may_be_the_containers(&text.parse().unwrap()), may, "{text}");
        }
    }
}
