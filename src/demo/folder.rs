//! Where the tour's cache lies: a folder of its own, gone when the tour is over, or one that the user named and keeps.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("cannot use the folder {}: {source}", .path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("the folder {} is not empty; the tour begins with an empty cache", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "the disk of {} has {free} bytes free where the tour needs {NEEDED_BYTES}; name a folder elsewhere with --cache",
        .path.display()
    )]
    NoRoom { path: PathBuf, free: u64 },
}

/// The images, an index, and what Larder leaves free. With less it would pass bytes through and keep none.
const NEEDED_BYTES: u64 = 192 << 20;

/// Removed when dropped, unless the user named it. To be dropped after everything that writes into it has ended.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    pub is_kept: bool,
}

impl Folder {
    /// One that is the user's own, and empty or not there yet; else a new one among temporary files.
    pub fn new(named: Option<&Path>) -> Result<Folder, FolderError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            |source| FolderError::Unusable { path, source }
        };
        if let Some(path) = named {
            std::fs::create_dir_all(path).map_err(unusable(path))?;
            check_room(path)?;
            let mut entries = std::fs::read_dir(path).map_err(unusable(path))?;
            return match entries.next() {
                Some(_) => Err(FolderError::NotEmpty(path.to_owned())),
                None => Ok(Folder {
                    path: path.to_owned(),
                    is_kept: true,
                }),
            };
        }
        let name = format!("larder-demo-{:08x}", fastrand::u32(..));
        check_room(&std::env::temp_dir())?;
        let path = std::env::temp_dir().join(name);
        // Fails if it exists: nobody else's folder is used, and nobody else may look into this one.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(unusable(&path))?;
        Ok(Folder { path, is_kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check_room(path: &Path) -> Result<(), FolderError> {
    let unusable = |error: rustix::io::Errno| FolderError::Unusable {
        path: path.to_owned(),
        source: error.into(),
    };
    let disk = rustix::fs::statvfs(path).map_err(unusable)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    match free < NEEDED_BYTES {
        true => Err(FolderError::NoRoom {
            path: path.to_owned(),
            free,
        }),
        false => Ok(()),
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the tour's folder could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_its_own_goes_and_a_named_one_stays() {
        let own = Folder::new(None).unwrap();
        let path = own.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(own);
        assert!(!path.exists());

        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("a/b");
        drop(Folder::new(Some(&named)).unwrap());
        assert!(named.is_dir());
        std::fs::write(named.join("file"), "x").unwrap();
        assert!(matches!(Folder::new(Some(&named)), Err(FolderError::NotEmpty(_))));
        assert!(named.join("file").exists());
    }
}
