//! From figures to meaning: everything but the upstreams, which are next door.
//!
//! Each value is parsed once. What is impossible goes to `findings`, so that the judging goes on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Place;
use super::file::quoted;
use super::findings::{Findings, MOMENT};
use super::listen::{addresses, clash};
use super::raw::{Raw, RawAudit, RawBundle, RawLimits, RawLog, RawServer};
use super::settle_access::{places, tcp_of};
use super::token_places::TokenPlaces;
use super::units::show_size;
use super::{
    Admin, Audit, Bundle, Cache, Limits, Log, LogFormat, Password, Secret, Server, check_token, settle_access,
    trusted_proxies,
};
use crate::oci::HostPort;
use crate::oci::manifest::MAX_MANIFEST_BYTES;

const MIB: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);
const MAX_CONNECTIONS: usize = 1_000_000;
const MAX_KEPT: usize = 1000;
/// Smaller manifests than this are those of every image.
const MIN_MANIFEST_SIZE: u64 = 1 << 10;

pub fn server(findings: &mut Findings<'_>, raw: &RawServer) -> Server {
    let tls = settle_access::tls(findings, &["server", "tls"], raw.tls.as_ref());
    Server {
        listen: addresses(findings, &["server", "listen"], &raw.listen),
        tls,
        shutdown_grace: findings.duration(
            &["server", "shutdown_grace"],
            &raw.shutdown_grace,
            (Duration::ZERO, DAY),
        ),
        server_timing: raw.server_timing,
        trusted_proxies: trusted_proxies::trusted_proxies(findings, &raw.trusted_proxies),
    }
}

pub fn admin(findings: &mut Findings<'_>, raw: &Raw, server: &[SocketAddr]) -> Admin {
    let key = ["admin", "listen"];
    let listen = places(findings, &key, &raw.admin.listen);
    let tcp: Vec<SocketAddr> = tcp_of(&listen).collect();
    if let Some((server, admin)) = clash(server, &tcp) {
        // What the operator wrote is blamed, not what was built in.
        match findings.place(&key) {
            Place::Default => findings.refuse(
                &["server", "listen"],
                format!("found {server}, expected another address than admin.listen, which is {admin}"),
            ),
            _ => findings.refuse(
                &key,
                format!("found {admin}, expected another address than server.listen, which is {server}"),
            ),
        }
    }
    let token = token(findings, raw);
    let tls = settle_access::tls(findings, &["admin", "tls"], raw.admin.tls.as_ref());
    if tls.is_some() && tcp.is_empty() {
        findings.refuse(
            &["admin", "tls"],
            "found it beside Unix sockets only, which need no TLS: add an address to admin.listen, or leave it out",
        );
    }
    let open = tcp.iter().find(|address| !address.ip().is_loopback());
    if let Some(open) = open.filter(|_| token.is_none() && tls.is_none()) {
        findings.warn(
            &key,
            format!(
                "{open} is not a loopback address: whoever reaches it sees health and metrics, and tokens for the API cross the network unencrypted; set admin.tls, or keep it on this machine"
            ),
        );
    }
    Admin {
        listen,
        token,
        tls,
        token_places: TokenPlaces::of(findings.paths.environment),
    }
}

fn token(findings: &mut Findings<'_>, raw: &Raw) -> Option<Password> {
    let (key, file_key) = (["admin", "token"], ["admin", "token_file"]);
    let file = findings.secret_file(&file_key, raw.admin.token_file.as_ref());
    match (&raw.admin.token, file) {
        (Some(_), Some(_)) => {
            let other = findings.place(&key);
            findings.refuse(
                &file_key,
                format!("expected either token or token_file, but token is given too ({other})"),
            );
            None
        }
        (Some(text), None) => {
            if let Err(why) = check_token(text) {
                findings.refuse(&key, why);
                return None;
            }
            findings.warn_about_open_file(&key, "token_file");
            Some(Password::Value(Secret::new(text)))
        }
        (None, file) => {
            let file = Password::File(file?);
            if let Err(why) = file.read_token() {
                findings.refuse(&file_key, why);
                return None;
            }
            Some(file)
        }
    }
}

/// Without `default_upstream`, which needs the upstreams first.
pub fn cache(findings: &mut Findings<'_>, raw: &Raw, default_upstream: HostPort) -> Cache {
    let raw = &raw.cache;
    let path = match &raw.path {
        Some(text) => findings.path(&["cache", "path"], text),
        None => findings.paths.default_cache().unwrap_or_else(|message| {
            findings.refuse(&["cache", "path"], message);
            PathBuf::new()
        }),
    };
    Cache {
        path,
        max_size: findings.size(&["cache", "max_size"], &raw.max_size, MIB),
        min_free: findings.size(&["cache", "min_free"], &raw.min_free, 0),
        tag_ttl: findings.term(&["cache", "tag_ttl"], &raw.tag_ttl),
        negative_ttl: findings.term(&["cache", "negative_ttl"], &raw.negative_ttl),
        stale_if_error: findings.term(&["cache", "stale_if_error"], &raw.stale_if_error),
        default_upstream,
        offline: raw.offline,
    }
}

pub fn log(findings: &mut Findings<'_>, raw: &RawLog) -> Log {
    let format = match raw.format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            findings.refuse(
                &["log", "format"],
                format!("found {}, expected \"text\" or \"json\"", quoted(other)),
            );
            LogFormat::Text
        }
    };
    if !raw.level.split(',').all(is_directive) {
        findings.refuse(
            &["log", "level"],
            format!(
                "found {}, expected off, error, warn, info, debug or trace, or such levels for parts of the program, \
                 as in \"info,larder=debug\"",
                quoted(&raw.level)
            ),
        );
    }
    Log {
        level: raw.level.clone(),
        format,
    }
}

/// `info` or `larder::pull=debug`. A single word must be a level: as a module's name a misspelt one would
/// silence the log.
fn is_directive(text: &str) -> bool {
    let level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    let target = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
    };
    match text.trim().split_once('=') {
        None => level(text.trim()),
        Some((name, word)) => target(name) && level(word),
    }
}

/// No manifest of the largest size that can be allowed has more that anybody could ask for.
const MOST_DESCRIPTORS: usize = 2_000_000;

pub fn limits(findings: &mut Findings<'_>, raw: &RawLimits) -> Limits {
    // hyper refuses a read buffer below 8 KiB, and header bytes are held in memory a connection.
    let header_bytes = findings.size(&["limits", "header_bytes"], &raw.header_bytes, 8 << 10);
    if header_bytes > 16 * MIB {
        findings.refuse(&["limits", "header_bytes"], "expected at most 16MiB");
    }
    // A manifest is in memory as a whole while it comes, and while it is read.
    let key = ["limits", "manifest_size"];
    let manifest_size = findings.size(&key, &raw.manifest_size, MIN_MANIFEST_SIZE);
    if manifest_size > MAX_MANIFEST_BYTES as u64 {
        let message = format!(
            "found {}, expected at most {}",
            show_size(manifest_size),
            show_size(MAX_MANIFEST_BYTES as u64)
        );
        findings.refuse(&key, message);
    }
    Limits {
        max_connections: findings.count(&["limits", "max_connections"], raw.max_connections, MAX_CONNECTIONS),
        max_connections_per_client: findings.count(
            &["limits", "max_connections_per_client"],
            raw.max_connections_per_client,
            MAX_CONNECTIONS,
        ),
        header_bytes: usize::try_from(header_bytes).unwrap_or(usize::MAX),
        headers: findings.count(&["limits", "headers"], raw.headers, 10_000),
        header_timeout: findings.timeout(&["limits", "header_timeout"], &raw.header_timeout),
        idle_timeout: findings.duration(&["limits", "idle_timeout"], &raw.idle_timeout, (MOMENT, DAY)),
        manifest_size: usize::try_from(manifest_size).unwrap_or(MAX_MANIFEST_BYTES),
        manifest_descriptors: findings.count(
            &["limits", "manifest_descriptors"],
            raw.manifest_descriptors,
            MOST_DESCRIPTORS,
        ),
    }
}

/// `None` where no file is named.
pub fn audit(findings: &mut Findings<'_>, raw: &RawAudit) -> Option<Audit> {
    // Each file takes some lines at least.
    let max_size = findings.size(&["audit", "max_size"], &raw.max_size, 64 << 10);
    if raw.keep > MAX_KEPT {
        let message = format!("found {}, expected at most {MAX_KEPT}", raw.keep);
        findings.refuse(&["audit", "keep"], message);
    }
    let file = findings.path(&["audit", "file"], raw.file.as_ref()?);
    Some(Audit {
        file,
        max_size,
        keep: raw.keep,
    })
}

/// A key is checked for its form only: whether it is a point of the curve turns out when a signature is held against it.
pub fn bundle(findings: &mut Findings<'_>, raw: &RawBundle) -> Bundle {
    for key in &raw.trusted_keys {
        let fits = key.len() == 56
            && key.starts_with("RW")
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'));
        if !fits {
            findings.refuse(
                &["bundle", "trusted_keys"],
                format!(
                    "found {}, expected the line of a .pub file that begins with RW",
                    super::file::quoted(key)
                ),
            );
        }
    }
    Bundle {
        trusted_keys: raw.trusted_keys.clone(),
    }
}
