//! A client of other registries.
//!
//! [`Client`] is one upstream: it knows its URL, credentials, tokens, redirect rules and breaker, and
//! answers five questions (manifest, blob, tags, referrers, and their HEADs). It has never heard of disks.
//!
//! From the top: `client` asks mirrors and upstream within a deadline; `endpoint` is one address and the dance of
//! challenge, token and redirects; `transport` is TLS, proxies and the two HTTP clients. `challenge` parses
//! WWW-Authenticate, `realm` decides which token server may see credentials, `token` gets and keeps tokens,
//! `credentials` finds whose they are (`auth_file` reads one login file), `redirect` decides where a Location may lead,
//! `link` where the next page is, `guard` refuses addresses at connect, `breaker` keeps Larder away from an
//! upstream that said 429, `body` reads small documents and what errors say, `blob` is a large body on its way.

mod auth_file;
mod blob;
mod body;
mod breaker;
mod challenge;
pub mod client;
pub mod credentials;
mod endpoint;
pub mod error;
mod guard;
mod link;
mod realm;
mod redirect;
mod token;
mod transport;

#[cfg(test)]
mod tests;

pub use client::{BlobHead, BlobStream, Client, Clients, ManifestBody, ManifestHead, Referrers, Tuning};
pub use credentials::Sources;
pub use error::{ErrorKind, UpstreamError};
