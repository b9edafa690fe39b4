//! Everything that changes a blob's file or reads it, in one place, so that tests can make each of them fail; and which errors
//! of it are damage.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{Errno, pwritev};

use super::pages::Pages;

/// As many pieces as the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// What is done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskOp {
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
    /// A blob's file, to be read.
    Open,
    Read,
}

impl DiskOp {
    /// The operations that change something.
    pub const CHANGES: [DiskOp; 5] = [
        DiskOp::Create,
        DiskOp::Write,
        DiskOp::Sync,
        DiskOp::Rename,
        DiskOp::SyncFolder,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            DiskOp::Create => "create",
            DiskOp::Write => "write",
            DiskOp::Sync => "sync",
            DiskOp::Rename => "move into place",
            DiskOp::SyncFolder => "sync the folder of",
            DiskOp::Open => "open",
            DiskOp::Read => "read",
        }
    }
}

/// What happens in place of an operation.
#[derive(Debug)]
pub enum Fault {
    Error(io::Error),
    /// Only so many bytes of a write reach the file before it fails.
    Short(usize, io::Error),
}

/// Asked before every operation; for tests.
pub type Faults = Arc<dyn Fn(DiskOp, &Path) -> Option<Fault> + Send + Sync>;

/// Returns true if an error says that the bytes are lost, and not only out of reach at this moment, as by EMFILE, ENFILE, EACCES,
/// ENOMEM, ELOOP, ENOTDIR or ESTALE. EIO alone does: the disk was asked, and could not give them. That there is no such file
/// is for whoever knows the folder to judge.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// The disk, perhaps a faulty one.
#[derive(Default)]
pub(super) struct Disk {
    faults: Option<Faults>,
    pages: Pages,
}

impl Disk {
    pub(super) fn with(faults: Option<Faults>) -> Disk {
        Disk {
            faults,
            pages: Pages::default(),
        }
    }

    fn check(&self, op: DiskOp, path: &Path) -> io::Result<()> {
        match self.fault(op, path) {
            None => Ok(()),
            Some(Fault::Error(error) | Fault::Short(_, error)) => Err(error),
        }
    }

    fn fault(&self, op: DiskOp, path: &Path) -> Option<Fault> {
        self.faults.as_ref().and_then(|ask| ask(op, path))
    }

    /// A new file of our own; an existing one is an error, links are not followed (R-X23).
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        self.check(DiskOp::Create, path)?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    /// Opens a file to be read.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        self.check(DiskOp::Open, path)?;
        File::open(path)
    }

    /// Reads on. `path` is the file's own.
    pub(super) fn read(&self, mut file: &File, path: &Path, buffer: &mut [u8]) -> io::Result<usize> {
        self.check(DiskOp::Read, path)?;
        file.read(buffer)
    }

    /// Reads all that is left.
    pub(super) fn read_to_end(&self, mut file: &File, path: &Path) -> io::Result<Vec<u8>> {
        self.check(DiskOp::Read, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the pieces one behind the other, in calls of one size however they are cut (`pages`).
    pub(super) fn write_all_at(&self, file: &File, path: &Path, pieces: &[Bytes], at: u64) -> io::Result<()> {
        match self.fault(DiskOp::Write, path) {
            None => {
                let len = pieces.iter().map(Bytes::len).sum();
                let timed = self.pages.begin(len);
                let a_call = timed.as_ref().map_or_else(|| self.pages.usual(), |timed| timed.bytes);
                write_pieces(file, pieces, at, a_call)?;
                if let Some(timed) = timed {
                    self.pages.end(&timed, len);
                }
                Ok(())
            }
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Short(n, error)) => {
                let mut all = Bytes::from(pieces.concat());
                all.truncate(n);
                write_pieces(file, &[all], at, n.max(1))?;
                Err(error)
            }
        }
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.check(DiskOp::Sync, path)?;
        file.sync_all()
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(DiskOp::Rename, to)?;
        std::fs::rename(from, to)
    }

    /// Makes a rename last through a power cut.
    pub(super) fn sync_folder_of(&self, path: &Path) -> io::Result<()> {
        self.check(DiskOp::SyncFolder, path)?;
        File::open(path.parent().unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all())
    }
}

/// `a_call`: bytes written by one call, from one multiple of it to the next.
fn write_pieces(file: &File, pieces: &[Bytes], mut at: u64, a_call: usize) -> io::Result<()> {
    let mut pieces = pieces.iter();
    let mut piece: &[u8] = &[];
    let mut slices = Vec::new();
    loop {
        slices.clear();
        // Up to the next border, whatever the last write was.
        let mut room = a_call - usize::try_from(at % a_call as u64).unwrap_or(0);
        while room > 0 && slices.len() < MAX_PIECES {
            if piece.is_empty() {
                match pieces.next() {
                    Some(next) => piece = next,
                    None => break,
                }
            }
            let (now, later) = piece.split_at(piece.len().min(room));
            room -= now.len();
            piece = later;
            if !now.is_empty() {
                slices.push(IoSlice::new(now));
            }
        }
        if slices.is_empty() {
            return Ok(());
        }
        let mut left = slices.as_mut_slice();
        while !left.is_empty() {
            match pwritev(file, left, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut left, n);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn pieces_are_written_one_behind_the_other() {
        let sizes = [0, 3, 0, 70_000, 1, 0];
        let mut pieces: Vec<Bytes> = sizes.map(|n| (0..n).map(|i: u32| i as u8).collect()).into();
        // More than the kernel takes at once.
        pieces.extend((0..2500u32).map(|n| Bytes::copy_from_slice(&n.to_le_bytes())));
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = Disk::default();
        disk.write_all_at(file.as_file(), file.path(), &pieces, 5).unwrap();
        let mut found = Vec::new();
        file.reopen().unwrap().read_to_end(&mut found).unwrap();
        assert_eq!(found[..5], [0; 5]);
        assert!(found[5..] == pieces.concat());
        disk.write_all_at(file.as_file(), file.path(), &[], 9).unwrap();
        disk.write_all_at(file.as_file(), file.path(), &[Bytes::new()], 9)
            .unwrap();
        let read_only = File::open(file.path()).unwrap();
        assert!(disk.write_all_at(&read_only, file.path(), &pieces, 0).is_err());
    }

    #[test]
    fn a_short_write_leaves_what_it_says() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = Disk::with(Some(Arc::new(move |op, _: &Path| {
            (op == DiskOp::Write).then(|| Fault::Short(4, full()))
        })));
        let pieces = [Bytes::from_static(b"abc"), Bytes::from_static(b"def")];
        let written = disk.write_all_at(file.as_file(), file.path(), &pieces, 0);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"abcd");
    }
}
