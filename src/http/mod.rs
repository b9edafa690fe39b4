//! The front door: listeners, limits, routes and status codes.
//!
//! `server` owns sockets and knows nothing of routes; `range`, `multipart`, `payload`, `error` and `labels` are the
//! vocabulary that routes answer with; `forwarded` is what proxies say of a request; `v2` is the registry; `outbox` carries files past all of
//! them to the socket; `access_log` counts and logs what was answered, `traced` tells it as a span; `ops` and `admin` are for
//! operators, `challenge` is for certificate authorities.

pub mod access;
pub mod access_log;
pub mod admin;
pub mod challenge;
pub mod error;
pub mod forwarded;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod labels;
pub mod multipart;
pub mod ops;
pub mod outbox;
pub mod payload;
pub mod range;
pub mod server;
pub mod traced;
pub mod v2;
