//! Small private files beside the blobs: what a proxy has to remember that is no content of anybody's.
//!
//! Each is read and written whole: beside its place, synced, renamed, its folder synced (L6), for its owner's eyes only.
//! They need no lock: only the proxy that runs on the folder writes them, and whoever reads finds the old one or the new one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::error::StoreError;
pub use super::keys::Paper;
use super::keys::Tree;

/// Much more than any of them has.
const MAX_BYTES: u64 = 1 << 20;

/// Those of one cache folder.
#[derive(Clone, Debug)]
pub struct State {
    tree: Tree,
}

impl State {
    /// Touches nothing yet.
    pub fn of(cache: &Path) -> State {
        State { tree: Tree::new(cache) }
    }

    /// Where one lies, for people.
    pub fn path(&self, paper: Paper) -> PathBuf {
        self.tree.paper(paper)
    }

    /// `None` if it is not there. Blocking.
    pub fn read(&self, paper: Paper) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.tree.paper(paper);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(StoreError::io("read", path))?;
        Ok(Some(bytes))
    }

    /// Blocking. On an error what was there is still there.
    pub fn write(&self, paper: Paper, bytes: &[u8]) -> Result<(), StoreError> {
        let (folder, path, new) = (self.tree.acme(), self.tree.paper(paper), self.tree.new_paper(paper));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(StoreError::io("create", &folder))?;
        // Of a process that did not live to rename it. Made anew: nobody else has it open, and its mode is ours.
        let _ = std::fs::remove_file(&new);
        let written = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(&folder)?.sync_all()
        };
        written().map_err(|error| {
            let _ = std::fs::remove_file(&new);
            StoreError::io("write", path)(error)
        })
    }

    /// Blocking. One that is not there is gone.
    pub fn remove(&self, paper: Paper) -> Result<(), StoreError> {
        let path = self.tree.paper(paper);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn written_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::of(&folder.path().join("cache"));
        assert_eq!(state.read(Paper::Accounts).unwrap(), None);
        // What a crash left behind is in nobody's way.
        state.write(Paper::Attempts, b"x").unwrap();
        std::fs::write(folder.path().join("cache/acme/accounts.json.tmp"), "half").unwrap();
        for text in [&b"one"[..], b"two"] {
            state.write(Paper::Accounts, text).unwrap();
            assert_eq!(state.read(Paper::Accounts).unwrap().unwrap(), text);
        }
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path(Paper::Accounts)), 0o600);
        assert_eq!(mode(folder.path().join("cache/acme")), 0o700);
        state.remove(Paper::Attempts).unwrap();
        state.remove(Paper::Attempts).unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("cache/acme")).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::of(folder.path());
        state.write(Paper::Certificate, b"old").unwrap();
        std::fs::create_dir(folder.path().join("acme/certificate.json.tmp")).unwrap();
        let error = state.write(Paper::Certificate, b"new").unwrap_err().to_string();
        assert!(error.contains("acme/certificate.json"), "{error}");
        assert_eq!(state.read(Paper::Certificate).unwrap().unwrap(), b"old");
    }
}
