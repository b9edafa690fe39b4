//! Tar archives, as strictly as they can be read and as plainly as they can be written.
//!
//! The `tar` crate reads and writes the fields of a header; which headers may come, and that they do not contradict each
//! other, is decided here (R-X24).

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Entry, Kind, Reader};
pub use write::Writer;

/// Tar counts in these.
pub const BLOCK: u64 = 512;

/// Bytes that fill the last block of so many.
pub fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

/// Bytes that a file takes in an archive; its name has at most 100.
pub fn space(size: u64) -> u64 {
    BLOCK.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK))
}
