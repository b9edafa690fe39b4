//! What the server attaches to a request for routes, and handlers to an answer for the access log and the metrics.
//!
//! Each is an `http` extension: a layer that does not care need not know. [`Labels`] are what comes of them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::Response;

use super::outbox::Outbox;

/// On a request that goes to a router: the address at the other end of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

/// On a request that came by a socket in the file system: whose process is at its other end, as the kernel says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixPeer(pub Option<u32>);

/// On a request that came over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverTls;

/// On a request that goes to a router: its connection sends files by itself, if they are handed to it as tickets.
#[derive(Clone, Debug)]
pub struct SendsFiles(pub Arc<Outbox>);

/// On a response: how it came about (`hit`, `miss`, `stale`, …); one of a small fixed set, as it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(pub &'static str);

/// On a response: the configured upstream whose content it is. Only configured names: it labels a metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamName(pub Arc<str>);

/// On a response: what was asked for, for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `docker.io/library/alpine`.
    pub repository: Arc<str>,
    /// Tag or digest.
    pub reference: Arc<str>,
}

/// On a response that failed, or was served stale: why, for the access log. One sentence without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause(pub Arc<str>);

/// How an answer is filed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The kind of endpoint (`manifest`, `blob`, `tags`, …); one of a small fixed set.
    pub route: &'static str,
    /// `None` for what was nobody's pull.
    pub outcome: Option<&'static str>,
    pub upstream: Option<Arc<str>>,
    pub subject: Option<Arc<Subject>>,
    /// Why it failed, or was served stale.
    pub cause: Option<Arc<str>>,
}

impl Labels {
    /// Taken from where handlers attached them.
    pub fn of<B>(route: &'static str, response: &mut Response<B>) -> Labels {
        let extensions = response.extensions_mut();
        Labels {
            route,
            outcome: extensions.remove::<Outcome>().map(|outcome| outcome.0),
            upstream: extensions.remove::<UpstreamName>().map(|name| name.0),
            subject: extensions.remove::<Arc<Subject>>(),
            cause: extensions.remove::<Cause>().map(|cause| cause.0),
        }
    }
}
