//! What stands behind a listener and answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use tower::ServiceExt;

use super::delivery::Reported;
use crate::http::access_log::log_failure;
use crate::http::labels::{Cause, ClientAddr, OverTls, SendsFiles, UnixPeer};
use crate::http::outbox::Outbox;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// By a socket in the file system: a process of this machine, and its user where the kernel says it.
    Unix(Option<u32>),
}

impl Peer {
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix(_) => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix(_) => f.write_str("unix"),
        }
    }
}

/// Who asks, and what can be done for it: the same for every request of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: Peer,
    /// Whom the certificate names that the connection came with: `cert:node-1`.
    pub certificate: Option<Arc<str>>,
    /// The connection is encrypted.
    pub tls: bool,
    /// The connection's: whether it sends files by itself, if they are handed to it as tickets, and what memory it has for other bodies.
    pub outbox: Option<Arc<Outbox>>,
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
