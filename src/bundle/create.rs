//! A plan as a stream: the bundle's archives, one behind the other, without signatures.
//!
//! All that is read is hashed on its way out: rot is better found on this side of the gap.

use std::io::Write;
use std::os::unix::fs::FileExt;

use super::archive::Writer;
use super::catalog::Part;
use super::error::BundleError;
use super::plan::{LAYOUT, Plan, volume_text};
use super::{BUFFER, CATALOG, VOLUME};
use crate::store::{Hashing, Store};

/// Writes it all. Blocking. Memory: one buffer.
pub fn write(store: &Store, plan: &Plan, sink: &mut dyn Write) -> Result<(), BundleError> {
    let mut buffer = vec![0; BUFFER];
    let volumes = plan.catalog.volumes;
    for volume in 1..=volumes {
        let mut archive = Writer::new(&mut *sink);
        head(plan, volume, &mut archive).map_err(BundleError::Write)?;
        for part in plan.catalog.parts(volume) {
            copy(store, plan, &part, &mut archive, &mut buffer)?;
        }
        archive.end().map_err(BundleError::Write)?;
    }
    Ok(())
}

/// What stands in front of the content, but for the signature.
fn head<W: Write>(plan: &Plan, volume: u32, archive: &mut Writer<W>) -> std::io::Result<()> {
    let volumes = plan.catalog.volumes;
    archive.file(CATALOG, &plan.bytes)?;
    if volumes > 1 {
        archive.file(VOLUME, volume_text(volume, volumes).as_bytes())?;
    }
    archive.file("oci-layout", LAYOUT)?;
    archive.file("index.json", &plan.index)
}

fn copy<W: Write>(
    store: &Store,
    plan: &Plan,
    part: &Part,
    archive: &mut Writer<W>,
    buffer: &mut [u8],
) -> Result<(), BundleError> {
    let digest = plan.catalog.blobs[part.blob].digest;
    let held = store
        .peek_blob(&digest)?
        .ok_or_else(|| BundleError::Gone(Box::new(digest)))?;
    let rotten = || BundleError::Rotten {
        digest: Box::new(digest),
    };
    let failed = |error| BundleError::unread(&digest, error);
    let mut hashing = Hashing::new(part.digest);
    archive.begin(&part.name, part.size).map_err(BundleError::Write)?;
    let (mut at, end) = (part.offset, part.offset + part.size);
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        held.file.read_exact_at(&mut buffer[..most], at).map_err(failed)?;
        hashing.update(&buffer[..most]);
        archive.write(&buffer[..most]).map_err(BundleError::Write)?;
        at += most as u64;
    }
    hashing.verify().map_err(|_| rotten())
}
