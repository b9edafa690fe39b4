//! Work that nobody waits for: what is held is hashed again, in idle hours and when an operator asks; images are fetched
//! before somebody asks for them (`prefetch`); what happened is written down (`audit`) and told (`webhook`).
//!
//! `verify` is the pass that an operator starts, with progress and repair; `idle` the slow one in the background.
//! Both hash through `hashing`, and agree on what happens to what is damaged.

pub mod audit;
mod hashing;
mod idle;
pub mod prefetch;
pub mod verify;
pub mod webhook;

pub use idle::{Idle, Pace};
pub use prefetch::Prefetcher;
pub use verify::{Busy, Found, Phase, Progress, Repair, Verifier};
pub use webhook::Webhooks;
