//! The upstream floor against real servers with a script.

mod auth;
mod transfer;

mod server;

use std::sync::Arc;
use std::time::Duration;

use super::{BlobStream, Client, Clients, ErrorKind, Sources, Tuning, UpstreamError};
use crate::config::{
    Admin, Cache, Config, Limits, Log, LogFormat, Password, Secret, Server as ServerConfig, StaticCredentials, Upstream,
};
use crate::oci::{Digest, HostPort, Reference, Repository, media_type};
use server::{Say, Seen, Server, say};

const BODY: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

fn host(text: &str) -> HostPort {
    text.parse().unwrap()
}

fn repository(text: &str) -> Repository {
    text.parse().unwrap()
}

fn tag(text: &str) -> Reference {
    text.parse().unwrap()
}

fn digest() -> Digest {
    Digest::sha256(b"x")
}

fn upstream(url: &str) -> Upstream {
    Upstream {
        name: host("r.example"),
        url: url.parse().unwrap(),
        mirrors: Vec::new(),
        aliases: Vec::new(),
        synonyms: Vec::new(),
        credentials: None,
        tag_ttl: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        offline: false,
        max_size: None,
        allow: Vec::new(),
        deny: Vec::new(),
        redirect_hosts: None,
        trusted_realms: Vec::new(),
        ca_file: None,
        client_cert: None,
        client_key: None,
        proxy: None,
        connect_timeout: Duration::from_secs(30),
        read_timeout: Duration::from_secs(30),
        max_connections: None,
    }
}

fn config(upstream: Upstream) -> Config {
    let default_upstream = upstream.name.clone();
    Config {
        server: ServerConfig {
            listen: Vec::new(),
            tls: None,
            shutdown_grace: Duration::ZERO,
        },
        admin: Admin { listen: Vec::new() },
        cache: Cache {
            path: "unused".into(),
            max_size: 0,
            min_free: 0,
            tag_ttl: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            default_upstream,
            offline: false,
        },
        log: Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
        },
        limits: Limits {
            max_connections: 1,
            max_connections_per_client: 1,
            header_bytes: 1,
            headers: 1,
            header_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
        },
        upstreams: vec![upstream],
        sources: Vec::new(),
    }
}

/// Repeats without pauses; the deadline is far away unless a test is about it.
fn tuning() -> Tuning {
    Tuning {
        headers: Duration::from_secs(60),
        pause: (Duration::ZERO, Duration::ZERO),
        ..Tuning::default()
    }
}

fn build(upstream: Upstream, sources: &Sources, tuning: Tuning) -> Arc<Client> {
    let name = upstream.name.clone();
    let clients = Clients::with(&config(upstream), sources, tuning).unwrap();
    clients.get(&name).unwrap().clone()
}

fn client(upstream: Upstream) -> Arc<Client> {
    build(upstream, &Sources::default(), tuning())
}

fn login(username: &str, password: &str) -> Option<StaticCredentials> {
    Some(StaticCredentials {
        username: username.to_owned(),
        password: Password::Value(Secret::new(password)),
    })
}

fn bearer(own: &str, realm_path: &str) -> Say {
    let challenge = format!(r#"Bearer realm="{own}{realm_path}",service="svc",scope="repository:user/image:pull""#);
    say(401, "{}").with("www-authenticate", challenge)
}

fn manifest() -> Say {
    say(200, BODY).kind(media_type::OCI_INDEX)
}

async fn get(client: &Client) -> Result<(), UpstreamError> {
    let body = client.get_manifest(&repository("a/b"), &tag("latest")).await?;
    assert_eq!(body.bytes, BODY);
    Ok(())
}

async fn all(mut stream: BlobStream) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
