//! A client's files, put where it reads them, and taken away again.
//!
//! wanted files × what lies there → written, unchanged, kept or removed, file by file. A file is Larder's if its first
//! line says so; any other is somebody's work and stays. Each is written beside its place and renamed, so that a client
//! that reads at that moment finds the old one or the new one.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::recipe::{File, MARK};

/// Everybody reads these files: there is no secret in them.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
/// The largest file that is compared; a client's configuration is a thousandth of it.
const MAX_BYTES: u64 = 4 << 20;

/// What became of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    Unchanged,
    /// Somebody else's: nothing was done.
    Kept,
    Removed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Written => "written",
            Outcome::Unchanged => "unchanged",
            Outcome::Kept => "kept",
            Outcome::Removed => "removed",
        }
    }
}

/// An error, and the file it is about.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PlaceError {
    path: PathBuf,
    source: io::Error,
}

pub type Done = Vec<(PathBuf, Outcome)>;

/// Puts `files` into `folder`. With `force` others' files are written over.
pub fn put_all(folder: &Path, files: &[File], force: bool) -> Result<Done, PlaceError> {
    let mut done = Vec::new();
    for file in files {
        let path = folder.join(&file.relative);
        let outcome = put(&path, &file.text, force).map_err(|source| at(&path, source))?;
        done.push((path, outcome));
    }
    Ok(done)
}

/// Makes `folder` hold `files`, and of Larder's own nothing beside them.
pub fn synchronise(folder: &Path, files: &[File], force: bool) -> Result<Done, PlaceError> {
    let mut done = put_all(folder, files, force)?;
    let wanted = |path: &PathBuf| files.iter().any(|file| folder.join(&file.relative) == *path);
    let names = files.iter().filter_map(|file| Path::new(&file.relative).file_name());
    let mut names: Vec<_> = names.collect();
    names.dedup();
    for name in names {
        for path in candidates(folder, Path::new(name))? {
            if !wanted(&path) && take(&path).map_err(|source| at(&path, source))? {
                done.push((path, Outcome::Removed));
            }
        }
    }
    Ok(done)
}

/// Takes away every file named `name` in `folder` and the folders in it that Larder wrote, and the folders that are
/// empty then.
pub fn remove(folder: &Path, name: &str) -> Result<Done, PlaceError> {
    let mut done = Vec::new();
    for path in candidates(folder, Path::new(name))? {
        if take(&path).map_err(|source| at(&path, source))? {
            done.push((path, Outcome::Removed));
        }
    }
    Ok(done)
}

/// Takes away those of `files` that Larder wrote, and the folders that are empty then.
pub fn remove_these(folder: &Path, relatives: &[String]) -> Result<Done, PlaceError> {
    let mut done = Vec::new();
    for path in relatives.iter().map(|relative| folder.join(relative)) {
        if take(&path).map_err(|source| at(&path, source))? {
            done.push((path, Outcome::Removed));
        }
    }
    Ok(done)
}

/// Returns the text of a file that Larder wrote; `None` for any other, and where there is none.
pub fn own_text(path: &Path) -> Result<Option<String>, PlaceError> {
    Ok(found(path).map_err(|source| at(path, source))?.flatten())
}

/// Refuses to change a file, for a reason.
pub fn refusal(path: &Path, why: String) -> PlaceError {
    at(path, io::Error::other(why))
}

fn at(path: &Path, source: io::Error) -> PlaceError {
    PlaceError {
        path: path.to_owned(),
        source,
    }
}

/// `folder/name` and `folder/*/name`, where they are.
fn candidates(folder: &Path, name: &Path) -> Result<Vec<PathBuf>, PlaceError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(folder, error)),
    };
    let mut found = vec![folder.join(name)];
    for entry in entries {
        found.push(entry.map_err(|error| at(folder, error))?.path().join(name));
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    found.sort();
    Ok(found)
}

/// What lies there: `None` for nothing, else the text if it is Larder's own.
fn found(path: &Path) -> io::Result<Option<Option<String>>> {
    let what = match path.symlink_metadata() {
        Ok(what) => what,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A link is somebody's decision, too.
    if !what.is_file() || what.len() > MAX_BYTES {
        return Ok(Some(None));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(
        String::from_utf8(bytes).ok().filter(|text| text.starts_with(MARK)),
    ))
}

fn put(path: &Path, text: &str, force: bool) -> io::Result<Outcome> {
    match found(path)? {
        Some(Some(old)) if old == text => return Ok(Outcome::Unchanged),
        Some(None) if !force => return Ok(Outcome::Kept),
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.larder-{}", std::process::id()));
    let replaced = fill(&beside, text).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = replaced {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    // After a power cut a client should not find an empty file.
    fs::File::open(folder).and_then(|folder| folder.sync_all())?;
    Ok(Outcome::Written)
}

fn fill(path: &Path, text: &str) -> io::Result<()> {
    // Of an earlier process with this number, which did not live to rename it.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    // Whatever the umask is: clients run as other users.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whether it was Larder's, and is gone.
fn take(path: &Path) -> io::Result<bool> {
    if !matches!(found(path)?, Some(Some(_))) {
        return Ok(false);
    }
    fs::remove_file(path)?;
    // A registry's folder goes with it, if it is empty then.
    if let (Some(folder), true) = (path.parent(), path.ends_with("hosts.toml")) {
        let _ = fs::remove_dir(folder);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(relative: &str, text: &str) -> File {
        File {
            place: String::new(),
            relative: relative.to_owned(),
            text: format!("{MARK}\n{text}\n"),
        }
    }

    fn outcomes(done: &Done) -> Vec<Outcome> {
        done.iter().map(|(_, outcome)| *outcome).collect()
    }

    #[test]
    fn written_once_kept_up_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("certs.d");
        let mut files = vec![file("docker.io/hosts.toml", "a"), file("ghcr.io/hosts.toml", "b")];
        assert_eq!(
            outcomes(&synchronise(&root, &files, false).unwrap()),
            [Outcome::Written; 2]
        );
        assert_eq!(
            outcomes(&synchronise(&root, &files, false).unwrap()),
            [Outcome::Unchanged; 2]
        );
        let mode = fs::metadata(root.join("docker.io/hosts.toml"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o644);
        // An upstream that is known no longer, and one whose file changed.
        files.pop();
        files[0] = file("docker.io/hosts.toml", "c");
        let done = synchronise(&root, &files, false).unwrap();
        assert_eq!(outcomes(&done), [Outcome::Written, Outcome::Removed]);
        assert!(!root.join("ghcr.io").exists());
        let text = fs::read_to_string(root.join("docker.io/hosts.toml")).unwrap();
        assert_eq!(text, files[0].text);
        // Nothing else is left behind.
        assert_eq!(fs::read_dir(root.join("docker.io")).unwrap().count(), 1);
        assert_eq!(outcomes(&remove(&root, "hosts.toml").unwrap()), [Outcome::Removed]);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        assert!(remove(&root, "hosts.toml").unwrap().is_empty());
    }

    #[test]
    fn only_some_of_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let files = ["a", "b", "c"].map(|name| file(&format!("{name}/hosts.toml"), name));
        synchronise(root, &files, false).unwrap();
        let changed = [file("b/hosts.toml", "d")];
        assert_eq!(outcomes(&put_all(root, &changed, false).unwrap()), [Outcome::Written]);
        let one = ["b/hosts.toml".to_owned()];
        assert_eq!(outcomes(&remove_these(root, &one).unwrap()), [Outcome::Removed]);
        assert!(!root.join("b").exists());
        assert!(root.join("a/hosts.toml").exists() && root.join("c/hosts.toml").exists());
        assert!(remove_these(root, &one).unwrap().is_empty());
    }

    #[test]
    fn what_others_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let theirs = root.join("docker.io/hosts.toml");
        fs::create_dir(root.join("docker.io")).unwrap();
        fs::write(&theirs, "server = \"https://elsewhere\"\n").unwrap();
        fs::create_dir(root.join("ghcr.io")).unwrap();
        std::os::unix::fs::symlink(&theirs, root.join("ghcr.io/hosts.toml")).unwrap();
        let files = [file("docker.io/hosts.toml", "a"), file("ghcr.io/hosts.toml", "b")];
        assert_eq!(outcomes(&synchronise(root, &files, false).unwrap()), [Outcome::Kept; 2]);
        assert!(remove(root, "hosts.toml").unwrap().is_empty());
        assert!(fs::read_to_string(&theirs).unwrap().contains("elsewhere"));
        assert_eq!(
            outcomes(&synchronise(root, &files, true).unwrap()),
            [Outcome::Written; 2]
        );
        // The link went, not what it led to.
        assert!(fs::read_to_string(&theirs).unwrap().ends_with("a\n"));
        assert!(root.join("ghcr.io/hosts.toml").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("docker.io"), "a file").unwrap();
        let error = synchronise(folder.path(), &[file("docker.io/hosts.toml", "a")], false).unwrap_err();
        assert!(error.to_string().contains("docker.io/hosts.toml"), "{error}");
    }
}
