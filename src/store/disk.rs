//! Everything that changes a file, in one place, so that tests can make each of them fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// What is done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskOp {
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
}

impl DiskOp {
    pub const ALL: [DiskOp; 5] = [
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

/// The disk, perhaps a faulty one.
#[derive(Clone, Default)]
pub(super) struct Disk {
    faults: Option<Faults>,
}

impl Disk {
    pub(super) fn with(faults: Option<Faults>) -> Disk {
        Disk { faults }
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

    pub(super) fn write_all_at(&self, file: &File, path: &Path, bytes: &[u8], at: u64) -> io::Result<()> {
        match self.fault(DiskOp::Write, path) {
            None => file.write_all_at(bytes, at),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Short(n, error)) => {
                file.write_all_at(&bytes[..n.min(bytes.len())], at)?;
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
