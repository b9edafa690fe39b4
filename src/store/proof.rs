//! Proves that the index is whole: every page that its tables reach is what its checksum says.
//!
//! redb checks that by itself only after a crash; a page that rotted since a clean stop it finds at best when it reads it,
//! and gives out what is wrong in it. So the same check is begun for every other file as well, beside its being read: by a
//! second redb, which sees the file as one that was left by a crash, may write nothing, and is stopped when it has looked
//! through everything and before it would mend anything.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database as Redb, DatabaseError, StorageBackend};

/// Bytes of the header, which alone is ever written anew.
const HEADER_BYTES: usize = 320;
/// The byte of flags behind the magic number: what a crash leaves set, and what says that it was closed.
const FLAGS: usize = 9;
const IS_OPEN: u8 = 2;
const IS_CLOSED: u8 = 4;
/// Room for the few pages on the way down a tree; each page is read once.
const CACHE_BYTES: usize = 4 << 20;

/// How far redb has come with looking through a file. It says so at the beginning, if it finds the last transaction
/// damaged, and when it has found one whole.
#[derive(Debug, Default)]
pub(super) struct Repair(AtomicU8);

const BEGAN: u8 = 1;
const WENT_BACK: u8 = 2;
const IS_WHOLE: u8 = 4;

impl Repair {
    pub(super) fn note(&self, progress: f64) {
        let step = match progress {
            progress if progress <= 0.0 => BEGAN,
            progress if progress < 0.5 => BEGAN | WENT_BACK,
            _ => BEGAN | IS_WHOLE,
        };
        self.0.fetch_or(step, Ordering::Relaxed);
    }

    pub(super) fn began(&self) -> bool {
        self.has(BEGAN)
    }

    /// Returns true if the last transaction was given up for the one before it.
    pub(super) fn went_back(&self) -> bool {
        self.has(WENT_BACK)
    }

    fn has(&self, step: u8) -> bool {
        self.0.load(Ordering::Relaxed) & step != 0
    }
}

/// A check that is to be made.
pub(super) struct Proof(Look);

/// Takes in what the file is now. Until the check has ended nothing may be written to it.
pub(super) fn begin(path: &Path) -> io::Result<Proof> {
    let file = File::open(path)?;
    let mut header = vec![0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    header[FLAGS] = header[FLAGS] & !IS_CLOSED | IS_OPEN;
    Ok(Proof(Look {
        len: file.metadata()?.len(),
        file,
        header: Mutex::new(header),
    }))
}

impl Proof {
    /// Blocking, for as long as it takes to read all that is in use. Errors: damage.
    pub(super) fn run(self) -> Result<(), redb::Error> {
        let repair = Arc::new(Repair::default());
        let noted = repair.clone();
        let looked = Redb::builder()
            .set_cache_size(CACHE_BYTES)
            .set_repair_callback(move |session| {
                noted.note(session.progress());
                if session.progress() > 0.0 {
                    session.abort();
                }
            })
            .create_with_backend(self.0);
        match looked {
            Err(DatabaseError::RepairAborted) if repair.has(IS_WHOLE) && !repair.went_back() => Ok(()),
            Err(DatabaseError::RepairAborted) => Err(redb::Error::Corrupted(
                "a page is not what its checksum says".to_owned(),
            )),
            Err(error) => Err(error.into()),
            // It has not looked. No version of redb is known to do so.
            Ok(_) => Ok(()),
        }
    }
}

/// The file as a crash would have left it.
#[derive(Debug)]
struct Look {
    file: File,
    len: u64,
    header: Mutex<Vec<u8>>,
}

impl StorageBackend for Look {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)?;
        let header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = usize::try_from(offset).ok().and_then(|offset| header.get(offset..)) {
            for (to, from) in out.iter_mut().zip(header) {
                *to = *from;
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == self.len {
            Ok(())
        } else {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    /// Only the header, and only here.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(offset).ok().and_then(|offset| {
            let end = offset.checked_add(data.len())?;
            header.get_mut(offset..end)
        });
        let place = place.ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        place.copy_from_slice(data);
        Ok(())
    }
}
