//! The configuration's meaning as data, without secrets. Units stand in the names.

use serde_json::{Value, json};

use super::{origin, without_user};
use crate::app;
use crate::config::wanted::Platforms;
use crate::config::{
    Acme, Challenge, Config, ConfigError, Lender, LogFormat, Password, Prefetch, ServerTls, StaticCredentials,
    TlsIdentity, Upstream, Webhook, show_key,
};

/// `is_good`: whether it is taken as it is.
pub fn meaning(config: &Config, is_good: bool) -> String {
    let upstreams: Vec<Value> = config.upstreams.iter().map(|one| upstream(config, one)).collect();
    pretty(&json!({
        "ok": is_good,
        "sources": config.sources,
        "checked_as": app::User::of_process(),
        "server": {
            "listen": config.server.listen,
            "tls": config.server.tls.as_ref().map(tls),
            "shutdown_grace_seconds": config.server.shutdown_grace.as_secs_f64(),
            "server_timing": config.server.server_timing,
            "trusted_proxies": config.server.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "listeners": config.listeners.iter().map(|listener| json!({
            "name": listener.name,
            "listen": listener.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tls": listener.tls.as_ref().map(tls),
        })).collect::<Vec<_>>(),
        "access": access(config),
        "acme": config.acme.as_ref().map(|one| acme(config, one)),
        "admin": {
            "listen": config.admin.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "token": config.admin.token.is_some(),
            "tls": config.admin.tls.as_ref().map(tls),
        },
        "cache": {
            "path": config.cache.path,
            "max_size_bytes": config.cache.max_size,
            "min_free_bytes": config.cache.min_free,
            "tag_ttl_seconds": config.cache.tag_ttl.as_secs_f64(),
            "negative_ttl_seconds": config.cache.negative_ttl.as_secs_f64(),
            "stale_if_error_seconds": config.cache.stale_if_error.as_secs_f64(),
            "default_upstream": config.cache.default_upstream.as_str(),
            "offline": config.cache.offline,
        },
        "log": {
            "level": config.log.level,
            "format": match config.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
        },
        "limits": {
            "max_connections": config.limits.max_connections,
            "max_connections_per_client": config.limits.max_connections_per_client,
            "header_bytes": config.limits.header_bytes,
            "headers": config.limits.headers,
            "header_timeout_seconds": config.limits.header_timeout.as_secs_f64(),
            "idle_timeout_seconds": config.limits.idle_timeout.as_secs_f64(),
            "manifest_size_bytes": config.limits.manifest_size,
            "manifest_descriptors": config.limits.manifest_descriptors,
        },
        "audit": config.audit.as_ref().map(|audit| json!({
            "file": audit.file,
            "max_size_bytes": audit.max_size,
            "keep": audit.keep,
        })),
        "traces": config.traces.as_ref().map(|traces| json!({
            "endpoint": traces.endpoint.as_str(),
            "headers": traces.headers.is_some(),
            "resource": traces.resource.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "sample": traces.sample,
            "heeds_parent": traces.heeds_parent,
            "propagate": traces.propagate,
            "ca_file": traces.ca_file,
        })),
        "bundle": { "trusted_keys": config.bundle.trusted_keys },
        "upstreams": upstreams,
        "prefetch": config.prefetch.iter().map(prefetch).collect::<Vec<_>>(),
        "webhooks": config.webhooks.iter().map(|one| webhook(config, one)).collect::<Vec<_>>(),
        "origins": config.origins,
        "warnings": config.warnings,
    }))
}

fn tls(tls: &ServerTls) -> Value {
    let (cert, key) = match &tls.identity {
        TlsIdentity::Files { cert, key } => (Some(cert), Some(key)),
        TlsIdentity::Acme => (None, None),
    };
    json!({ "cert": cert, "key": key, "acme": tls.is_acme(), "client_ca": tls.client_ca })
}

fn acme(config: &Config, acme: &Acme) -> Value {
    json!({
        "names": acme.names,
        "directory": acme.directory.as_str(),
        "contact": acme.contact,
        "challenge": acme.challenge.as_str(),
        "http_listen": match &acme.challenge {
            Challenge::Http { listen } => Some(listen),
            Challenge::TlsAlpn => None,
        },
        "profile": acme.profile,
        "ca_file": acme.ca_file,
        "proxy": acme.proxy.as_ref().map(without_user),
        "eab_kid": acme.binding.as_ref().map(|binding| &binding.kid),
        "eab_key_file": acme.binding.as_ref().map(|binding| &binding.key_file),
        "state": crate::app::certificate(config),
    })
}

fn prefetch(prefetch: &Prefetch) -> Value {
    json!({
        "name": prefetch.name,
        "images": prefetch.wanted().map(|all| all.len()).ok(),
        "file": prefetch.file,
        "platforms": prefetch.platforms.as_ref().map(Platforms::names),
        "schedule": prefetch.schedule.as_str(),
        "referrers": prefetch.referrers,
    })
}

/// Of the address only scheme, host and port; of headers the names.
fn webhook(config: &Config, hook: &Webhook) -> Value {
    let (key, file) = match &hook.secret {
        Some(Password::File(path)) => ("secret_file", Some(path)),
        _ => ("secret", None),
    };
    json!({
        "name": hook.name,
        "url": hook.url.to_string(),
        "events": hook.events,
        "images": hook.images,
        "signed": hook.secret.is_some(),
        "secret_file": file,
        "secret_from": origin(config, &["webhook", &hook.name, key]),
        "headers": hook.headers.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "headers_file": hook.headers_file,
        "timeout_seconds": hook.timeout.as_secs_f64(),
        "backoff_seconds": hook.backoff.as_secs_f64(),
        "ca_file": hook.ca_file,
        "proxy": hook.proxy.as_ref().map(ToString::to_string),
        "queue_max_bytes": hook.queue_max,
        "max_age_seconds": hook.max_age.as_secs_f64(),
    })
}

fn access(config: &Config) -> Value {
    let access = &config.access;
    json!({
        "htpasswd_file": access.htpasswd_file,
        "token_key_file": access.token_key_file,
        "token_ttl_seconds": access.token_ttl.as_secs_f64(),
        "realm": access.realm.as_ref().map(url::Url::as_str),
        "oidc": access.issuers.iter().map(|issuer| json!({
            "name": issuer.name,
            "issuer": issuer.issuer,
            "audience": issuer.audience,
            "identity": issuer.identity,
            "jwks": issuer.jwks.to_string(),
        })).collect::<Vec<_>>(),
        "rules": access.rules.iter().map(|rule| json!({
            "who": rule.who,
            "from": rule.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "listeners": rule.listeners,
            "images": rule.images,
            "may": rule.may.as_str(),
            "private": rule.private,
        })).collect::<Vec<_>>(),
        "hints": crate::auth::hints(config),
    })
}

fn upstream(config: &Config, upstream: &Upstream) -> Value {
    let names = |list: &[crate::oci::HostPort]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "name": upstream.name.as_str(),
        "url": upstream.url.as_str(),
        "mirrors": upstream.mirrors.iter().map(url::Url::as_str).collect::<Vec<_>>(),
        "aliases": upstream.aliases,
        "synonyms": names(&upstream.synonyms),
        "credentials": upstream.credentials.as_ref().map(|given| credentials(config, upstream, given)),
        "credential_helper": match &upstream.lender {
            Some(Lender::Helper(name)) => Some(name),
            _ => None,
        },
        "cloud": match &upstream.lender {
            Some(Lender::Cloud(cloud)) => Some(cloud.as_str()),
            _ => None,
        },
        "tag_ttl_seconds": upstream.tag_ttl.as_secs_f64(),
        "stale_if_error_seconds": upstream.stale_if_error.as_secs_f64(),
        "offline": upstream.offline,
        "max_size_bytes": upstream.max_size,
        "allow": upstream.allow,
        "deny": upstream.deny,
        "redirect_hosts": upstream.redirect_hosts.as_deref().map(names),
        "trusted_realms": names(&upstream.trusted_realms),
        "ca_file": upstream.ca_file,
        "client_cert": upstream.client_cert,
        "client_key": upstream.client_key,
        "proxy": upstream.proxy.as_ref().map(without_user),
        "connect_timeout_seconds": upstream.connect_timeout.as_secs_f64(),
        "read_timeout_seconds": upstream.read_timeout.as_secs_f64(),
        "answer_timeout_seconds": upstream.answer_timeout.as_secs_f64(),
        "max_connections": upstream.max_connections,
        "budget_floor": upstream.budget_floor.to_string(),
        "max_bandwidth_bytes_per_second": upstream.max_bandwidth,
    })
}

fn credentials(config: &Config, upstream: &Upstream, given: &StaticCredentials) -> Value {
    let (key, file) = match &given.password {
        Password::Value(_) => ("password", None),
        Password::File(path) => ("password_file", Some(path)),
    };
    json!({
        "username": given.username,
        "password_file": file,
        "password_from": origin(config, &["upstream", upstream.name.as_str(), key]),
    })
}

pub fn refusal(error: &ConfigError) -> String {
    let problems: Vec<Value> = error
        .problems()
        .iter()
        .map(|problem| {
            let key = (!problem.key.is_empty()).then(|| show_key(&problem.key));
            json!({ "place": problem.place.to_string(), "key": key, "message": problem.message })
        })
        .collect();
    pretty(&json!({ "ok": false, "problems": problems }))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
