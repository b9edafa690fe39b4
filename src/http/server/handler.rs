//! What stands behind a listener and answers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use tower::ServiceExt;

use crate::http::labels::{ClientAddr, SendsFiles};
use crate::http::outbox::Outbox;

/// Who asks, and what can be done for it: the same for every request of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: SocketAddr,
    /// The connection sends files by itself, if they are handed to it as tickets.
    pub outbox: Option<Arc<Outbox>>,
}

/// Answers requests. Not a `tower` service: those come boxed, each layer of them, for every request.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Made from any body, for answers that no handler gave.
    type Body: http_body::Body<Data = Bytes, Error = axum::Error> + From<Body> + Send + Unpin + 'static;

    fn handle(&self, request: Request<Body>, caller: &Caller) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Routes learn of the caller from the request's extensions.
impl Handler for Router {
    type Body = Body;

    async fn handle(&self, mut request: Request<Body>, caller: &Caller) -> Response<Body> {
        let extensions = request.extensions_mut();
        extensions.insert(ClientAddr(caller.address));
        if let Some(outbox) = &caller.outbox {
            extensions.insert(SendsFiles(outbox.clone()));
        }
        match self.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
