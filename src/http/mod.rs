//! The front door: listeners, limits, routes and status codes.
//!
//! `range`, `multipart`, `error` and `labels` are the vocabulary that routes answer with.

pub mod error;
pub mod labels;
pub mod multipart;
pub mod range;
