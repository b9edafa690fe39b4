//! What handlers attach to an answer, and the server to a request, for the access log and the metrics.
//!
//! Each is an `http` extension: a layer that does not care need not know.

use std::net::SocketAddr;
use std::sync::Arc;

use super::outbox::Outbox;

/// On a request: the address at the other end of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

/// On a request: its connection sends files by itself, if they are handed to it as tickets.
#[derive(Clone, Debug)]
pub struct SendsFiles(pub Arc<Outbox>);

/// On a response: how it came about (`hit`, `miss`, `stale`, …); one of a small fixed set, as it labels a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(pub &'static str);

/// On a response: the kind of endpoint (`manifest`, `blob`, `tags`, …); one of a small fixed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route(pub &'static str);

/// On a response: the configured upstream whose content it is. Only configured names: it labels a metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamName(pub Arc<str>);
