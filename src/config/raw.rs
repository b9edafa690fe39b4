//! The figures of `proxy.toml` as serde sees them, before they mean anything.
//!
//! [`Raw::default`] is the lowest layer: what holds where nobody says otherwise. Sizes and durations stay
//! text here; `settle` gives them meaning, because only there is known which file and line to blame.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::builtin;

// No Debug: a password may be inside (R-X17).
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    pub server: RawServer,
    pub admin: RawAdmin,
    pub cache: RawCache,
    pub log: RawLog,
    pub limits: RawLimits,
    pub audit: RawAudit,
    pub bundle: RawBundle,
    pub traces: RawTraces,
    pub listener: BTreeMap<String, RawListener>,
    pub access: RawAccess,
    pub acme: RawAcme,
    pub upstream: BTreeMap<String, RawUpstream>,
    pub prefetch: Vec<RawPrefetch>,
    pub webhook: BTreeMap<String, RawWebhook>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawListener {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<OneOrMany>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAccess {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub htpasswd_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_key_file: Option<String>,
    pub token_ttl: Figure,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    pub oidc: BTreeMap<String, RawIssuer>,
    pub rule: Vec<RawRule>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawIssuer {
    pub issuer: Option<String>,
    pub jwks_url: Option<String>,
    pub jwks_file: Option<String>,
    pub ca_file: Option<String>,
    pub audience: Option<String>,
    pub identity: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRule {
    pub who: Option<OneOrMany>,
    pub from: Option<OneOrMany>,
    pub listeners: Option<OneOrMany>,
    pub images: Option<OneOrMany>,
    pub may: Option<String>,
    pub private: Option<bool>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawServer {
    pub listen: OneOrMany,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
    pub shutdown_grace: Figure,
    pub server_timing: bool,
    pub trusted_proxies: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTls {
    pub cert: Option<String>,
    pub key: Option<String>,
    pub client_ca: Option<String>,
    #[serde(default)]
    pub acme: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAcme {
    pub names: Vec<String>,
    pub directory: String,
    pub accept_terms: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<OneOrMany>,
    pub challenge: String,
    pub http_listen: OneOrMany,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eab_kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eab_key_file: Option<String>,
}

// No Debug: a token may be inside (R-X17).
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAdmin {
    pub listen: OneOrMany,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCache {
    /// Absent: it depends on the machine (`paths`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub max_size: Figure,
    pub min_free: Figure,
    pub tag_ttl: Figure,
    pub negative_ttl: Figure,
    pub stale_if_error: Figure,
    pub default_upstream: String,
    pub offline: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    pub level: String,
    pub format: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    pub max_connections: usize,
    pub max_connections_per_client: usize,
    pub header_bytes: Figure,
    pub headers: usize,
    pub header_timeout: Figure,
    pub idle_timeout: Figure,
    pub manifest_size: Figure,
    pub manifest_descriptors: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAudit {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    pub max_size: Figure,
    pub keep: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBundle {
    pub trusted_keys: Vec<String>,
}

// No Debug: a token may be inside (R-X17).
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTraces {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    pub resource: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<f64>,
    pub propagate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
}

// No Debug: a password may be inside (R-X17).
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawUpstream {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    pub aliases: Vec<String>,
    pub mirrors: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_helper: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_ttl: Option<Figure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Figure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<Figure>,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_hosts: Option<Vec<String>>,
    pub trusted_realms: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    pub connect_timeout: Figure,
    pub read_timeout: Figure,
    pub answer_timeout: Figure,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,
    pub budget_floor: Figure,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPrefetch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub images: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    pub platforms: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    pub referrers: bool,
}

impl Default for RawPrefetch {
    fn default() -> RawPrefetch {
        RawPrefetch {
            name: None,
            images: Vec::new(),
            file: None,
            platforms: Vec::new(),
            schedule: None,
            referrers: true,
        }
    }
}

// No Debug: a secret may be inside (R-X17).
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWebhook {
    pub url: Option<String>,
    pub events: Option<OneOrMany>,
    pub images: Option<OneOrMany>,
    pub secret: Option<String>,
    pub secret_file: Option<String>,
    pub headers: Vec<String>,
    pub headers_file: Option<String>,
    pub timeout: Figure,
    pub backoff: Figure,
    pub ca_file: Option<String>,
    pub proxy: Option<String>,
    pub queue_max: Figure,
    pub max_age: Figure,
}

impl Default for RawWebhook {
    fn default() -> RawWebhook {
        RawWebhook {
            url: None,
            events: None,
            images: None,
            secret: None,
            secret_file: None,
            headers: Vec::new(),
            headers_file: None,
            timeout: text("10s"),
            backoff: text("1s"),
            ca_file: None,
            proxy: None,
            queue_max: text("64MiB"),
            max_age: text("3d"),
        }
    }
}

/// A size or duration before it is understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Figure {
    Number(u64),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn as_slice(&self) -> &[String] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

fn text(figure: &str) -> Figure {
    Figure::Text(figure.to_owned())
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            server: RawServer {
                listen: OneOrMany::One("127.0.0.1:5000".to_owned()),
                tls: None,
                shutdown_grace: text("30s"),
                server_timing: false,
                trusted_proxies: Vec::new(),
            },
            admin: RawAdmin {
                listen: OneOrMany::One("127.0.0.1:5001".to_owned()),
                token: None,
                token_file: None,
                tls: None,
            },
            cache: RawCache {
                path: None,
                max_size: text("50GiB"),
                min_free: text("1GiB"),
                tag_ttl: text("5m"),
                negative_ttl: text("5s"),
                stale_if_error: text("30d"),
                default_upstream: "docker.io".to_owned(),
                offline: false,
            },
            log: RawLog {
                level: "info".to_owned(),
                format: "text".to_owned(),
            },
            limits: RawLimits {
                max_connections: 10_000,
                max_connections_per_client: 2_000,
                header_bytes: text("64KiB"),
                headers: 100,
                header_timeout: text("10s"),
                idle_timeout: text("75s"),
                manifest_size: text("4MiB"),
                manifest_descriptors: 10_000,
            },
            audit: RawAudit {
                file: None,
                max_size: text("100MiB"),
                keep: 10,
            },
            bundle: RawBundle {
                trusted_keys: Vec::new(),
            },
            traces: RawTraces::default(),
            listener: BTreeMap::new(),
            access: RawAccess {
                htpasswd_file: None,
                token_key_file: None,
                token_ttl: text("5m"),
                realm: None,
                oidc: BTreeMap::new(),
                rule: Vec::new(),
            },
            acme: RawAcme {
                names: Vec::new(),
                directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
                accept_terms: false,
                contact: None,
                challenge: "tls-alpn-01".to_owned(),
                http_listen: OneOrMany::One("0.0.0.0:80".to_owned()),
                profile: None,
                ca_file: None,
                proxy: None,
                eab_kid: None,
                eab_key_file: None,
            },
            upstream: builtin::raw_upstreams(),
            prefetch: Vec::new(),
            webhook: BTreeMap::new(),
        }
    }
}

impl Default for RawUpstream {
    fn default() -> RawUpstream {
        RawUpstream {
            url: None,
            aliases: Vec::new(),
            mirrors: Vec::new(),
            username: None,
            password: None,
            password_file: None,
            credential_helper: None,
            cloud: None,
            tag_ttl: None,
            stale_if_error: None,
            offline: None,
            max_size: None,
            allow: Vec::new(),
            deny: Vec::new(),
            redirect_hosts: None,
            trusted_realms: Vec::new(),
            ca_file: None,
            client_cert: None,
            client_key: None,
            proxy: None,
            connect_timeout: text("5s"),
            read_timeout: text("30s"),
            answer_timeout: text("5m"),
            max_connections: None,
            budget_floor: text("10%"),
            max_bandwidth: None,
        }
    }
}
