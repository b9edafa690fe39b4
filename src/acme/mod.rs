//! Certificates that Larder gets for itself, from an ACME directory (RFC 8555).
//!
//! Walk: [`Keeper::run`] looks at what is kept (`record`) and asks `plan` what to do and when. If a certificate is due, `order`
//! has it issued: account → order → for each name a challenge, answered by [`Issued`] → request → chain. What came is
//! checked (`certificate`) before it is kept and shown. [`Issued`] is what the listeners look at: `http` shakes hands with it and
//! answers http-01 out of it. `directory` is the way to the authority, and leads nowhere else (L10). [`report()`] says for people how
//! things stand, from the files alone.
//!
//! No pull waits for any of this and none fails by it: what goes wrong leaves the certificate of before, or at first a self-signed
//! one, which clients that verify refuse and others take.

mod certificate;
mod directory;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod issued;
mod keeper;
mod order;
pub mod plan;
mod record;
mod report;

pub use error::{AcmeError, Fault};
pub use issued::{ALPN, Issued};
pub use keeper::{Keeper, Patience, Status};
pub use report::{Report, report};
