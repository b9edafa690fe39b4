//! A client of other registries.
//!
//! [`Client`] is one upstream: it knows its URL, credentials, tokens, redirect rules and breaker, and
//! answers five questions (manifest, blob, tags, referrers, and their HEADs). It has never heard of disks.
//! `challenge` parses WWW-Authenticate, `token` gets and keeps tokens, `credentials` finds whose they are,
//! `redirect` decides where a Location may lead, `guard` refuses addresses at connect, `breaker` keeps
//! Larder away from an upstream that said 429.

pub mod client;
pub mod error;

pub use client::{BlobHead, BlobStream, Client, Clients, ManifestBody, ManifestHead, Referrers};
pub use error::{ErrorKind, UpstreamError};
