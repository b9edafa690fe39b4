//! Where the cache folder is, and whether it is still the one that was opened.
//!
//! A folder that somebody emptied, removed or replaced is made again. One whose file system is not mounted must not be:
//! what is written to a mount point fills another disk, and is hidden as soon as the file system is back. So identities
//! and mounts of the folder, of all that it is in and of what is in it are noted when it is opened. Another folder in
//! the place of one of them counts as ours only where nothing was mounted then and nothing is now, or if it has our
//! lock.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::keys::Tree;
use super::startup;
use crate::oci::Algorithm;

/// Which folder it is, and on which mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    /// `None` on kernels that do not tell (before Linux 5.8).
    mount: Option<u64>,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Identity> {
        let Ok(stat) = statx(CWD, path, AtFlags::empty(), StatxFlags::INO | StatxFlags::MNT_ID) else {
            // Some sandboxes refuse the call. An error of the path comes again.
            let meta = std::fs::metadata(path)?;
            let device = meta.dev();
            return Ok(Identity {
                device: (rustix::fs::major(device), rustix::fs::minor(device)),
                inode: meta.ino(),
                mount: None,
            });
        };
        let tells_mount = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(Identity {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: tells_mount.then_some(stat.stx_mnt_id),
        })
    }

    fn is_same(self, other: Identity) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    fn is_mounted_in(self, parent: Identity) -> bool {
        match (self.mount, parent.mount) {
            (Some(own), Some(of_parent)) => own != of_parent,
            _ => self.device != parent.device,
        }
    }
}

/// A folder, and the one that it is in.
#[derive(Clone, Debug)]
struct Spot {
    path: PathBuf,
    identity: Identity,
    /// Place of its parent in the list; `None` for the root of all.
    parent: Option<usize>,
}

/// The folder, all that it is in, and what is in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Parents come before what is in them.
    spots: Vec<Spot>,
}

/// The state of the folder's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    AsItWas,
    /// Something is missing, or is another folder now; it may be written to.
    Changed,
}

impl Place {
    pub(super) fn of(tree: &Tree) -> io::Result<Place> {
        // With symbolic links resolved: they lead to other mounts.
        let root = std::fs::canonicalize(tree.root())?;
        let mut spots: Vec<Spot> = Vec::new();
        let mut add = |path: PathBuf, parent: Option<usize>| {
            let identity = Identity::of(&path)?;
            spots.push(Spot { path, identity, parent });
            Ok::<_, io::Error>(spots.len() - 1)
        };
        let mut above = None;
        let mut ancestors: Vec<&Path> = root.ancestors().collect();
        ancestors.reverse();
        for ancestor in ancestors {
            above = Some(add(ancestor.to_owned(), above)?);
        }
        for folder in [tree.staging(), tree.lists()] {
            add(folder, above)?;
        }
        let blobs = add(tree.all_blobs(), above)?;
        for algorithm in Algorithm::ALL {
            add(tree.blobs(algorithm), Some(blobs))?;
        }
        Ok(Place { spots })
    }

    /// Returns true if the folder of these blobs is the one that is known. Not so while its file system is not mounted.
    pub(super) fn has_blobs(&self, tree: &Tree, algorithm: Algorithm) -> bool {
        let path = tree.blobs(algorithm);
        let known = self.spots.iter().find(|spot| spot.path == path);
        let now = Identity::of(&path).ok();
        known.zip(now).is_some_and(|(known, now)| known.identity.is_same(now))
    }

    /// Looks at what is there now. Errors: nothing may be written there; why.
    pub(super) fn look(&self, tree: &Tree, lock: &File) -> Result<Look, String> {
        let mut now: Vec<Option<Identity>> = Vec::with_capacity(self.spots.len());
        let mut look = Look::AsItWas;
        for spot in &self.spots {
            let parent = spot
                .parent
                .and_then(|parent| Some((self.spots.get(parent)?, now.get(parent)?)));
            let was_mounted = parent.is_some_and(|(then, _)| spot.identity.is_mounted_in(then.identity));
            let shown = spot.path.display();
            let found = match Identity::of(&spot.path) {
                Ok(found) => Some(found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if spot.path.symlink_metadata().is_ok() {
                        return Err(format!("{shown} is a symbolic link that leads nowhere"));
                    }
                    if was_mounted {
                        return Err(format!(
                            "{shown} is gone, and the file system that was mounted there is not"
                        ));
                    }
                    None
                }
                Err(error) => return Err(format!("{shown} cannot be looked at: {error}")),
            };
            let is_mounted = parent
                .and_then(|(_, parent)| found.zip(*parent))
                .is_some_and(|(found, parent)| found.is_mounted_in(parent));
            if !found.is_some_and(|found| found.is_same(spot.identity)) {
                look = Look::Changed;
                if found.is_some() && (was_mounted || is_mounted) && !has_lock(tree, lock) {
                    return Err(format!(
                        "{shown} is not the folder that was opened: its file system is not mounted, or another one is"
                    ));
                }
            }
            now.push(found);
        }
        Ok(look)
    }
}

/// Returns true if the file at the lock's place is the one that is held: then the folder is ours, by whatever way it is
/// mounted now. Not by its number and the process's alone: the same number has a file in each of two new file systems, and
/// the same process each of two containers.
pub(super) fn has_lock(tree: &Tree, lock: &File) -> bool {
    let text = std::fs::read_to_string(tree.lock()).unwrap_or_default();
    let inode = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| meta.ino());
    let found = inode(std::fs::metadata(tree.lock()));
    found.is_some() && found == inode(lock.metadata()) && text == startup::lock_text()
}

/// Returns true if the file at the lock's place is on the device of the one that is held.
pub(super) fn is_on_same_device(tree: &Tree, lock: &File) -> bool {
    let device = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| meta.dev());
    device(std::fs::metadata(tree.lock())) == device(lock.metadata())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(root: &Path) -> (Tree, File, Place) {
        let tree = Tree::new(root);
        startup::make_folders(&tree).unwrap();
        let lock = startup::take_lock(&tree).unwrap();
        let place = Place::of(&tree).unwrap();
        (tree, lock, place)
    }

    #[test]
    fn what_was_removed_or_replaced_may_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/cache");
        let (tree, lock, place) = opened(&root);
        assert_eq!(place.look(&tree, &lock), Ok(Look::AsItWas));
        std::fs::remove_dir_all(tree.blobs(Algorithm::ALL[0])).unwrap();
        assert_eq!(place.look(&tree, &lock), Ok(Look::Changed));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(place.look(&tree, &lock), Ok(Look::Changed));
        std::fs::remove_dir_all(folder.path().join("a")).unwrap();
        assert_eq!(place.look(&tree, &lock), Ok(Look::Changed));
        std::fs::create_dir_all(&root).unwrap();
        assert_eq!(place.look(&tree, &lock), Ok(Look::Changed));
    }

    /// The kernel is not asked to mount anything: what was noted says that something was mounted.
    #[test]
    fn the_place_of_a_file_system_that_is_not_mounted_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cache");
        let (tree, lock, place) = opened(&root);
        let mounted = |at: &Path| {
            let mut place = place.clone();
            for spot in place.spots.iter_mut().filter(|spot| spot.path.starts_with(at)) {
                spot.identity.mount = spot.identity.mount.map(|mount| mount + 1);
                spot.identity.inode += 1;
            }
            place
        };
        // The folder itself, or one of those that it is in, was a mount point.
        for at in [folder.path(), &root] {
            // A folder with our lock is ours, remounted.
            assert_eq!(mounted(at).look(&tree, &lock), Ok(Look::Changed));
            // The process of another container has the same number, and its file may have.
            std::fs::write(tree.lock(), format!("{}\n", std::process::id())).unwrap();
            let why = mounted(at).look(&tree, &lock).unwrap_err();
            assert!(why.contains("is not mounted"), "{why}");
            std::fs::write(tree.lock(), startup::lock_text()).unwrap();
        }
        std::fs::remove_dir_all(&root).unwrap();
        let why = mounted(&root).look(&tree, &lock).unwrap_err();
        assert!(why.contains("is gone"), "{why}");
        assert_eq!(place.look(&tree, &lock), Ok(Look::Changed));
        std::os::unix::fs::symlink("/nonexistent/cache", &root).unwrap();
        let why = place.look(&tree, &lock).unwrap_err();
        assert!(why.contains("leads nowhere"), "{why}");
    }
}
