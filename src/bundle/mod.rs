//! Bundles: images that cross an air gap as files, and the receipts that come back.
//!
//! A bundle is an OCI image layout in a tar archive, with a catalogue and its signature in front:
//!
//! ```text
//! larder/catalog.json           everything that is inside, and in which order
//! larder/catalog.json.minisig   the signature over it, if it has one
//! larder/volume                 which of the volumes this is, if there are several
//! oci-layout, index.json        what other tools read
//! blobs/sha256/<hex>            configs and layers, then manifests
//! larder/pieces/<hex>.<n>       of a blob that fits in no single volume
//! ```
//!
//! # Walks
//!
//! - **Create**: `select` says what the named images need and what of it is held; `plan` takes away what the other side
//!   has, deals the rest out to volumes and writes the catalogue; `create` streams the archive from the store, hashing
//!   all it reads; `seal` signs, compresses and cuts that stream into files. The last may happen on another machine: the
//!   signing key never leaves its owner's.
//! - **Import**: `input` puts files and volumes back into one stream, and `unpack` undoes its compression; `import`
//!   reads the catalogue, asks `sign` whom it is from, and from then on knows the name and size of every entry to
//!   come: anything else is refused. Blobs go through the store's writer and are linked to nobody; when all has been
//!   read, image by image is shown.
//! - **Other archives**: `foreign` reads OCI layouts, what `docker save` writes and containers/image's folders, decides
//!   under which names their images are taken, and passes them on as a bundle.
//!
//! This floor cannot reach the network. It knows no configuration and no upstreams: a repository is a key.

pub mod archive;
pub mod catalog;
pub mod create;
mod error;
pub mod foreign;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod import;
pub mod input;
pub mod inspect;
mod pack;
pub mod pipe;
pub mod plan;
pub mod receipt;
pub mod report;
pub mod seal;
pub mod select;
pub mod sign;
mod unpack;
mod walk;

pub use catalog::Catalog;
pub use error::BundleError;
pub use input::Input;
pub use unpack::Limits as UnpackLimits;

/// Buffers that bytes go through, in bytes.
const BUFFER: usize = 256 << 10;

/// Largest catalogue, in bytes: some half a million blobs.
pub const MAX_CATALOG_BYTES: u64 = 64 << 20;

pub(crate) const CATALOG: &str = "larder/catalog.json";
pub(crate) const SIGNATURE: &str = "larder/catalog.json.minisig";
pub(crate) const VOLUME: &str = "larder/volume";
