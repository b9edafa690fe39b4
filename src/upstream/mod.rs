//! A client of other registries.
//!
//! [`Client`] is one upstream: it knows its URL, credentials, tokens, redirect rules and breaker, and
//! answers five questions (manifest, blob, tags, referrers, and their HEADs). It has never heard of disks.
//!
//! From the top: `client` is the face; `question` is what can be asked, `ask` brings it to an answer over mirrors and
//! upstream within a deadline, and `heads` decides where a refused HEAD is no verdict. `address` remembers how each of them is doing, `outage` how often the log speaks of it, `probe`
//! finds out when one is back, `retry` says when what failed everywhere is repeated, `waiting` how long an address has sent nothing.
//! `queue` says what waits for a connection.
//! `late` bounds how many are long in coming. `endpoint` is one address; `dance` gets an answer out of it with challenge and token,
//! `walk` is one attempt with its redirects. `transport` is proxies and the HTTP clients, `tls` whom they
//! believe. `challenge` parses
//! WWW-Authenticate, `realm` decides which token server may see credentials, `token` gets and keeps tokens,
//! `credentials` finds whose they are (`auth_file` reads one login file, `helper` runs the program that one names, `cloud`
//! gets a registry's short-lived tokens, and `lease` keeps what those two give out), `redirect` decides where a Location may lead,
//! `link` where the next page is, `items` reads what a page lists as it comes, `guard` refuses addresses at connect, `breaker` keeps Larder away from an
//! upstream that said 429, `rate_limit` reads what is left before it does and
//! `budget` keeps that, `reason` says in plain words why an exchange failed, `pacer` holds transfers back, `via` recognises Larders that lead in a circle, `body` reads small documents and what errors say, `blob` is a large body on its way;
//! `distrust` remembers what mirrors sent wrong, so that the next address is asked for it;
//! `greet` asks at the door, for a checkup; `courier` brings webhooks what they are told.

mod address;
mod ask;
mod auth_file;
mod blob;
mod body;
mod breaker;
pub mod budget;
mod challenge;
pub mod client;
mod cloud;
pub mod courier;
pub mod credentials;
mod dance;
mod distrust;
pub mod documents;
mod endpoint;
pub mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod greet;
mod guard;
mod heads;
mod helper;
mod items;
mod late;
mod lease;
mod link;
mod outage;
mod pacer;
mod probe;
mod question;
pub mod queue;
mod rate_limit;
mod realm;
mod reason;
mod redirect;
mod retry;
mod tls;
mod token;
mod transport;
pub mod via;
mod waiting;
mod walk;

#[cfg(test)]
mod tests;

#[cfg(any(test, fuzzing))]
pub(crate) use cloud::fuzz as cloud_fuzz;

pub use address::{AddressState, Role};
pub use budget::Budget;
pub use client::{
    BlobHead, BlobStream, Client, Clients, Form, MAX_TAGS_BYTES, ManifestBody, ManifestHead, Probe, Referrers, Tuning,
};
pub use credentials::Sources;
pub use distrust::DistrustReason;
pub use error::{ErrorKind, UpstreamError};
pub use greet::Greeting;
pub use heads::GetFallback;
pub use items::{ItemKind, Items, ListSink};
