//! The upstream floor against real servers with a script.

mod auth;
mod cloud;
mod transfer;

mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{BlobStream, Client, Clients, ErrorKind, Sources, Tuning, UpstreamError};
use crate::config::{
    Admin, Cache, Config, Limits, Log, LogFormat, Password, Secret, Server as ServerConfig, StaticCredentials, Upstream,
};
use crate::oci::manifest::MAX_MANIFEST_BYTES;
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
        lender: None,
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
        answer_timeout: Duration::from_secs(300),
        max_connections: None,
        budget_floor: crate::config::Floor::Percent(10),
        max_bandwidth: None,
    }
}

fn config(upstream: Upstream) -> Config {
    let default_upstream = upstream.name.clone();
    Config {
        listeners: Vec::new(),
        access: Config::default_config().unwrap().access,
        acme: None,
        server: ServerConfig {
            listen: Vec::new(),
            tls: None,
            shutdown_grace: Duration::ZERO,
            server_timing: false,
            trusted_proxies: crate::config::TrustedProxies::default(),
        },
        admin: Admin {
            listen: Vec::new(),
            token: None,
            tls: None,
            token_places: crate::config::TokenPlaces::default(),
        },
        cache: Cache {
            path: "unused".into(),
            max_size: 0,
            min_free: 0,
            tag_ttl: Duration::ZERO,
            negative_ttl: Duration::ZERO,
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
            manifest_size: 1 << 20,
            manifest_descriptors: 1,
        },
        audit: None,
        bundle: crate::config::Bundle::default(),
        traces: None,
        prefetch: Vec::new(),
        webhooks: Vec::new(),
        upstreams: vec![upstream],
        sources: Vec::new(),
        file: None,
        warnings: Vec::new(),
        covered: Vec::new(),
        origins: Default::default(),
    }
}

/// Repeats without pauses; the deadline is far away unless a test is about it.
fn tuning() -> Tuning {
    Tuning {
        headers: Duration::from_secs(60),
        pause: Duration::ZERO,
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
    let body = client.get_manifest(&repository("a/b"), &tag("latest"), 4 << 20).await?;
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

/// A TLS server for localhost and 127.0.0.1 that speaks HTTP/2, and the file of the authority that vouches for it.
fn authority(dir: &Path) -> (TlsAcceptor, PathBuf) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, &authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = rcgen::CertificateParams::new(names).unwrap();
    let cert = leaf.signed_by(&key, &issuer).unwrap();
    let ca = dir.join("ca.pem");
    std::fs::write(&ca, authority_pem).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.pem().as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    (TlsAcceptor::from(Arc::new(tls)), ca)
}
