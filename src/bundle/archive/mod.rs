//! Tar archives, as strictly as they can be read and as plainly as they can be written.
//!
//! The `tar` crate reads and writes the fields of a header; which headers may come, and that they do not contradict each
//! other, is decided here (R-X24).

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Entry, Kind, Reader, is_header};
pub use write::Writer;

/// Tar counts in these.
pub const BLOCK: u64 = 512;
/// No file is larger, and figures below this can be added without care.
pub const MAX_FILE_BYTES: u64 = 1 << 62;

/// Bytes that fill the last block of so many.
pub fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// Bytes that a file takes in an archive; its name has at most 100.
pub fn space(size: u64) -> u64 {
    BLOCK.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK))
}
