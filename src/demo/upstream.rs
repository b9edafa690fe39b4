//! The market: a small registry on loopback, slow as a far one, that can be cut, taken away and brought back.
//!
//! Here is what it holds, counts and does; how a connection is read and written is in `wire`.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::image::Image;
use super::tally::Tally;
use super::wire::{self, Reply, Request};
use crate::oci::{Digest, media_type};

/// How images name it. The domain is reserved for examples and belongs to nobody.
pub const NAME: &str = "market.example";
/// Before each answer.
pub const LATENCY: Duration = Duration::from_millis(40);
/// Of each connection.
pub const BYTES_PER_SECOND: u64 = 30_000_000;
const TOKEN_SECONDS: u32 = 300;
const BACKLOG: u32 = 128;

/// A blob that was cut in the middle, and how it went on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mended {
    /// Bytes that were sent before the connection was closed.
    pub cut_at: u64,
    /// Where the next request for the same blob began.
    pub resumed_at: Option<u64>,
}

/// What every connection shares.
pub struct Shared {
    address: SocketAddr,
    images: Vec<Image>,
    tally: Mutex<Tally>,
    /// The repository that each token is good for.
    tokens: Mutex<HashMap<String, String>>,
    /// The next GET of this blob ends after so many bytes.
    cut: Mutex<Option<(Digest, u64)>>,
    mended: Mutex<Vec<(Digest, Mended)>>,
}

pub struct Upstream {
    shared: Arc<Shared>,
    open: Option<(CancellationToken, TaskTracker)>,
    /// Keeps the port while nobody listens on it.
    kept: Option<TcpSocket>,
}

impl Upstream {
    pub fn open(images: Vec<Image>) -> io::Result<Upstream> {
        let socket = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let shared = Shared {
            address: socket.local_addr()?,
            images,
            tally: Mutex::default(),
            tokens: Mutex::default(),
            cut: Mutex::default(),
            mended: Mutex::default(),
        };
        let mut upstream = Upstream {
            shared: Arc::new(shared),
            open: None,
            kept: Some(socket),
        };
        upstream.come_back()?;
        Ok(upstream)
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// All that was asked and sent since the start.
    pub fn tally(&self) -> Tally {
        *lock(&self.shared.tally)
    }

    /// Closes the connection once, after `at` bytes of this blob.
    pub fn cut_once(&self, digest: Digest, at: u64) {
        *lock(&self.shared.cut) = Some((digest, at));
    }

    /// Every cut so far.
    pub fn mended(&self) -> Vec<Mended> {
        lock(&self.shared.mended).iter().map(|(_, mended)| *mended).collect()
    }

    /// Closes the listener and every connection. The port stays bound, so that nobody else gets it and connections
    /// are refused.
    pub async fn leave(&mut self) -> io::Result<()> {
        if let Some((stop, tasks)) = self.open.take() {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
            self.kept = Some(bind(self.shared.address)?);
        }
        Ok(())
    }

    /// Listens again, on the same port.
    pub fn come_back(&mut self) -> io::Result<()> {
        if let Some(socket) = self.kept.take() {
            let listener = socket.listen(BACKLOG)?;
            let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
            tasks.spawn(accept(listener, self.shared.clone(), stop.clone(), tasks.clone()));
            self.open = Some((stop, tasks));
        }
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.open {
            stop.cancel();
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Closed connections linger on the port for a minute.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let (shared, stop) = (shared.clone(), stop.clone());
                tasks.spawn(async move { stop.run_until_cancelled(wire::serve(stream, &shared)).await });
            }
            // Out of file descriptors: the loop must not spin until some are free.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Shared {
    /// Counts bytes before they are sent: whoever has received them finds them counted.
    pub fn count_bytes(&self, bytes: usize) {
        lock(&self.tally).bytes += bytes as u64;
    }

    fn count(&self, what: impl FnOnce(&mut Tally) -> &mut u64) {
        *what(&mut lock(&self.tally)) += 1;
    }

    /// What this registry says; the wire leaves the body out where a HEAD asked.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.path == "/token" {
            self.count(|tally| &mut tally.tokens);
            return self.token(request.scope.as_deref().unwrap_or_default());
        }
        let rest = request.path.strip_prefix("/v2/").unwrap_or_default();
        let (name, kind, reference) = split(rest);
        if !self.may_pull(request, name) {
            self.count(|tally| &mut tally.challenges);
            return self.challenge(name);
        }
        match kind {
            "manifests" if request.is_head => self.count(|tally| &mut tally.manifest_heads),
            "manifests" => self.count(|tally| &mut tally.manifest_gets),
            "blobs" if request.is_head => self.count(|tally| &mut tally.blob_heads),
            "blobs" if request.from.is_some() => self.count(|tally| &mut tally.blob_ranges),
            "blobs" => self.count(|tally| &mut tally.blob_gets),
            _ => self.count(|tally| &mut tally.other),
        }
        if rest.is_empty() {
            return Reply::json(200, &json!({}));
        }
        let image = self.images.iter().find(|image| image.repository == name);
        let found = image.and_then(|image| match kind {
            "manifests" => manifest(image, reference),
            "blobs" => self.blob(image, reference, request),
            "tags" if reference == "list" => Some(Reply::json(200, &json!({ "name": name, "tags": [image.tag] }))),
            _ => None,
        });
        found.unwrap_or_else(|| error(404, "NOT_FOUND", "this registry does not have it"))
    }

    /// A token is good for the one repository that it was asked for; the bare `/v2/` takes any.
    fn may_pull(&self, request: &Request, name: &str) -> bool {
        let tokens = lock(&self.tokens);
        let known = request.bearer.as_ref().and_then(|token| tokens.get(token));
        known.is_some_and(|repository| name.is_empty() || repository == name)
    }

    fn challenge(&self, name: &str) -> Reply {
        let mut way = format!("Bearer realm=\"http://{}/token\",service=\"{NAME}\"", self.address);
        if !name.is_empty() {
            way += &format!(",scope=\"repository:{name}:pull\"");
        }
        error(401, "UNAUTHORIZED", "a token is needed").with("WWW-Authenticate", way)
    }

    fn token(&self, scope: &str) -> Reply {
        let mut parts = scope.split(':');
        let (Some("repository"), Some(name), Some("pull"), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return error(400, "UNSUPPORTED", "expected the scope repository:NAME:pull");
        };
        let token = format!("{:032x}", fastrand::u128(..));
        lock(&self.tokens).insert(token.clone(), name.to_owned());
        Reply::json(200, &json!({ "token": token, "expires_in": TOKEN_SECONDS }))
    }

    fn blob(&self, image: &Image, reference: &str, request: &Request) -> Option<Reply> {
        let digest: Digest = reference.parse().ok()?;
        let bytes = &image.blobs.iter().find(|blob| blob.digest == digest)?.bytes;
        let total = bytes.len() as u64;
        let from = request.from.unwrap_or(0);
        if request.from.is_some() {
            let mut mended = lock(&self.mended);
            let cut = mended
                .iter_mut()
                .find(|(cut, m)| *cut == digest && m.resumed_at.is_none());
            if let Some((_, mended)) = cut {
                mended.resumed_at = Some(from);
            }
        }
        if from >= total && from > 0 {
            return Some(
                error(416, "RANGE_INVALID", "the blob ends before that")
                    .with("Content-Range", format!("bytes */{total}")),
            );
        }
        let start = usize::try_from(from).ok()?;
        let mut reply = Reply::new(200, media_type::OCTET_STREAM, bytes.slice(start..))
            .with("Docker-Content-Digest", digest.to_string())
            .with("Accept-Ranges", "bytes".to_owned());
        if request.from.is_some() {
            reply.status = 206;
            reply = reply.with("Content-Range", format!("bytes {from}-{}/{total}", total - 1));
        }
        if !request.is_head
            && let Some((_, at)) = lock(&self.cut).take_if(|(cut, _)| *cut == digest)
        {
            reply.cut_after = Some(at);
            let mended = Mended {
                cut_at: from + at,
                resumed_at: None,
            };
            lock(&self.mended).push((digest, mended));
        }
        reply.is_content = true;
        Some(reply)
    }
}

fn manifest(image: &Image, reference: &str) -> Option<Reply> {
    let digest = image.digest.to_string();
    if reference != image.tag && reference != digest {
        return None;
    }
    let mut reply =
        Reply::new(200, media_type::OCI_MANIFEST, image.manifest.clone()).with("Docker-Content-Digest", digest);
    reply.is_content = true;
    Some(reply)
}

/// `tour/first/blobs/sha256:…` → `tour/first`, `blobs`, `sha256:…`
fn split(rest: &str) -> (&str, &str, &str) {
    let mut parts = rest.rsplitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(reference), Some(kind), Some(name)) => (name, kind, reference),
        _ => ("", "", ""),
    }
}

fn error(status: u16, code: &str, message: &str) -> Reply {
    Reply::json(status, &json!({ "errors": [{ "code": code, "message": message }] }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
