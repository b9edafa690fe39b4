//! Brings the keys of token issuers to `auth`, which has no network of its own.

use std::sync::Arc;

use crate::auth::jwks::Fetch;
use crate::config::JwksAt;
use crate::upstream::documents;

/// Largest document with keys, bytes.
const MAX_KEYS: u64 = 256 << 10;

/// From the address or file that the operator named, and from nowhere else (L10).
pub(super) fn fetch() -> Fetch {
    Arc::new(|at| {
        let at = at.clone();
        Box::pin(async move {
            match at {
                JwksAt::Url { url, ca_file } => documents::get(&url, ca_file.as_deref(), MAX_KEYS).await,
                JwksAt::File(path) => tokio::task::spawn_blocking(move || read(&path))
                    .await
                    .map_err(|_| "reading ended early".to_owned())?,
            }
        })
    })
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KEYS).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}
