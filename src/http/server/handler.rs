//! What stands behind a listener and answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, Response};
use tower::ServiceExt;

use super::delivery::Reported;
use super::proxy_header::Told;
use crate::config::TrustedProxies;
use crate::http::access_log::log_failure;
use crate::http::forwarded;
use crate::http::labels::{Cause, ClientAddr, OverTls, SendsFiles, UnixPeer};
use crate::http::outbox::Outbox;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// By a socket in the file system: a process of this machine, and its user where the kernel says it.
    Unix(Option<u32>),
    /// A client that a trusted proxy speaks for, by a header of its request; its port is not told.
    Behind(IpAddr),
}

impl Peer {
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Behind(address) => Some(*address),
            Peer::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Behind(address) => address.fmt(f),
            Peer::Unix(_) => f.write_str("unix"),
        }
    }
}

/// The caller, and what can be done for it: the same for every request of a connection that no trusted proxy has made.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: Peer,
    /// The statement of a PROXY header about the connection. It counts as long as the proxy is trusted.
    pub told: Option<Told>,
    /// A trusted proxy sent the request: what its headers say of host, scheme and path counts.
    pub is_by_proxy: bool,
    /// Whom the certificate names that the connection came with: `cert:node-1`.
    pub certificate: Option<Arc<str>>,
    /// The connection is encrypted.
    pub tls: bool,
    /// The connection's: whether it sends files by itself, if they are handed to it as tickets, and what memory it has for other bodies.
    pub outbox: Option<Arc<Outbox>>,
}

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    /// The client, or the proxy where it names none.
    pub(super) address: Peer,
    /// The one who speaks HTTP with us is a trusted proxy.
    pub(super) is_proxy: bool,
}

impl Caller {
    /// Returns who sent a request with these headers, if trusted proxies may speak for others. `None`: the other end of the
    /// connection, for itself.
    ///
    /// Behind a PROXY header it is that client who speaks HTTP, so that it takes another trusted address for a header to count.
    pub(super) fn sender(&self, headers: &HeaderMap, proxies: &TrustedProxies) -> Option<Sender> {
        if proxies.is_empty() {
            return None;
        }
        let Peer::Tcp(peer) = self.address else { return None };
        if !proxies.contains(peer.ip()) {
            return None;
        }
        let speaker = match self.told {
            None | Some(Told::Itself) => peer,
            Some(Told::Client(client)) => client,
            Some(Told::Unknown) => return None,
        };
        let is_proxy = proxies.contains(speaker.ip());
        let behind = is_proxy.then(|| forwarded::client(headers, proxies)).flatten();
        Some(Sender {
            address: behind.map_or(Peer::Tcp(speaker), Peer::Behind),
            is_proxy,
        })
    }

    /// The caller as he is known by these headers, if that is somebody else.
    pub fn behind_proxies(&self, headers: &HeaderMap, proxies: &TrustedProxies) -> Option<Caller> {
        let sender = self.sender(headers, proxies)?;
        Some(Caller {
            address: sender.address,
            is_by_proxy: sender.is_proxy,
            ..self.clone()
        })
    }
}

/// Answers requests. Not a `tower` service: those come boxed, each layer of them, for every request.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Made from any body, for answers that no handler gave.
    type Body: http_body::Body<Data = Bytes, Error = axum::Error> + Reported + From<Body> + Send + Unpin + 'static;

    fn handle(&self, request: Request<Body>, caller: &Caller) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Routes learn of the caller from the request's extensions.
impl Handler for Router {
    type Body = Body;

    async fn handle(&self, mut request: Request<Body>, caller: &Caller) -> Response<Body> {
        let extensions = request.extensions_mut();
        match caller.address {
            Peer::Tcp(address) => drop(extensions.insert(ClientAddr(address))),
            Peer::Behind(address) => drop(extensions.insert(ClientAddr(SocketAddr::new(address, 0)))),
            Peer::Unix(uid) => drop(extensions.insert(UnixPeer(uid))),
        }
        if caller.tls {
            extensions.insert(OverTls);
        }
        if let Some(outbox) = caller.outbox.as_ref().filter(|outbox| outbox.sends_files()) {
            extensions.insert(SendsFiles(outbox.clone()));
        }
        let (method, uri, started) = (request.method().clone(), request.uri().clone(), Instant::now());
        let response = match self.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if response.status().is_server_error() {
            let cause = response.extensions().get::<Cause>();
            let why = cause.map_or("no reason is known", |cause| &cause.0);
            log_failure(Some((&method, &uri)), caller.address, response.status(), started, why);
        }
        response
    }
}
