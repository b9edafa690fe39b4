//! What the integration tests stand on.
//!
//! `upstream` is the far side: a small real registry on loopback that does as it is told, faults included,
//! and writes down everything it was asked. `client` is the near side: HTTP/1.1 byte by byte, so that a
//! test sees how an answer ended. `larder` is what stands between them, in process; `process` the real binary, `ran` its commands.
//! `hook` is an endpoint for webhooks, `collector` takes traces, `acme` is a certificate authority that looks whether names are ours,
//! `tls` clients that verify what it issued. `gate` and [`within`] are how tests wait: for an event, never for a time that hopefully
//! suffices.

// Each test takes what it needs.
#![allow(dead_code, unused_imports)]

pub mod acme;
pub mod client;
pub mod collector;
pub mod disk;
pub mod gate;
pub mod hook;
pub mod larder;
pub mod logged;
pub mod process;
pub mod ran;
pub mod tls;
pub mod toml;
pub mod upstream;

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

/// Longest wait for anything that a test is sure of. Only a failing test ever sees its end.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Where Larders of tests keep the tokens of their admin APIs, as `$XDG_RUNTIME_DIR`: one folder for all, since a port is one
/// Larder's.
pub fn runtime_dir() -> std::path::PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, std::path::PathBuf::from)
}

/// The token that the Larder with this admin port made, if it made one.
pub fn admin_token(port: u16) -> Option<String> {
    let file = runtime_dir().join(format!("larder/admin-{port}.token"));
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned())
}

/// Waits for `what`; panics naming it when it has not come by the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {} s in vain for {what}", DEADLINE.as_secs()),
    }
}

/// `length` bytes that no compressor and no chance makes equal to those of another `seed`.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ length as u64).fill(&mut bytes);
    bytes
}

/// `/v2/<repo>/manifests/<reference>`
pub fn manifest(repo: &str, reference: impl Display) -> String {
    format!("/v2/{repo}/manifests/{reference}")
}

/// `/v2/<repo>/blobs/<digest>`
pub fn blob(repo: &str, digest: impl Display) -> String {
    format!("/v2/{repo}/blobs/{digest}")
}
