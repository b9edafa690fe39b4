//! The nouns of the OCI distribution and image specifications, parsed.
//!
//! The ground floor: it imports nothing of Larder's and does no I/O. Text from outside becomes a
//! [`Digest`], [`Repository`], [`Tag`] or [`Reference`] here or is refused; past this door nobody
//! checks again, and paths on disk and URLs are built from these types only (R-X23).

pub mod digest;
pub mod error_code;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod manifest;
pub mod media_type;
pub mod name;
pub mod platform;
pub mod reference;

pub use digest::{Algorithm, Digest, Hasher};
pub use error_code::ErrorCode;
pub use name::{HostPort, Repository};
pub use platform::Platform;
pub use reference::{Reference, Tag};
