//! Files of blobs that were sent a moment ago, kept open: to open one again would take a thread that may wait for the disk,
//! and a fifth of the time in which 1 MiB is sent.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::oci::Digest;

/// Open files, at most.
const MAX_FILES: usize = 128;

/// The most recently used files.
#[derive(Default)]
pub(super) struct Opened(Mutex<Shelf>);

#[derive(Default)]
struct Shelf {
    files: HashMap<Digest, (Arc<File>, u64)>,
    /// Counts what was let go of.
    forgotten: u64,
    /// Counts uses, to tell which was the last.
    uses: u64,
}

impl Opened {
    /// The file of a blob of `size` bytes if it is open, still has a name and this size. Does not wait for the disk: what
    /// is asked of an open file is in memory.
    pub(super) fn get(&self, digest: &Digest, size: u64) -> Option<Arc<File>> {
        let mut shelf = self.lock();
        let shelf = &mut *shelf;
        shelf.uses += 1;
        let (file, used) = shelf.files.get_mut(digest)?;
        let is_right = rustix::fs::fstat(&**file)
            .is_ok_and(|stat| stat.st_nlink > 0 && u64::try_from(stat.st_size).is_ok_and(|found| found == size));
        if !is_right {
            shelf.files.remove(digest);
            return None;
        }
        *used = shelf.uses;
        Some(file.clone())
    }

    /// To be asked before a file is opened that is to be kept.
    pub(super) fn as_of_now(&self) -> AsOf {
        AsOf(self.lock().forgotten)
    }

    /// Keeps a file, unless any was let go of since: it may be the very one, and another in its place by now.
    pub(super) fn put(&self, digest: Digest, file: Arc<File>, as_of: &AsOf) {
        let mut shelf = self.lock();
        if shelf.forgotten != as_of.0 {
            return;
        }
        shelf.uses += 1;
        let uses = shelf.uses;
        shelf.files.insert(digest, (file, uses));
        if shelf.files.len() > MAX_FILES {
            let oldest = shelf
                .files
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(digest, _)| *digest);
            oldest.and_then(|digest| shelf.files.remove(&digest));
        }
    }

    /// Lets go of a file that is out of its place: one that is removed and stays open takes room on the disk (L5).
    pub(super) fn forget(&self, digest: &Digest) {
        let mut shelf = self.lock();
        shelf.forgotten += 1;
        shelf.files.remove(digest);
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a file was opened, told by what had been let go of until then.
pub(super) struct AsOf(u64);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::sha256(&n.to_le_bytes())
    }

    #[test]
    fn a_file_is_given_out_while_it_is_what_it_was() {
        let opened = Opened::default();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"four").unwrap();
        let open = || Arc::new(File::open(file.path()).unwrap());
        assert!(opened.get(&digest(0), 4).is_none());
        opened.put(digest(0), open(), &opened.as_of_now());
        assert!(opened.get(&digest(0), 4).is_some());
        assert!(opened.get(&digest(1), 4).is_none());
        file.as_file().set_len(3).unwrap();
        assert!(opened.get(&digest(0), 4).is_none(), "it was cut");
        file.as_file().set_len(4).unwrap();
        assert!(opened.get(&digest(0), 4).is_none(), "and is forgotten");

        opened.put(digest(0), open(), &opened.as_of_now());
        opened.put(digest(1), open(), &opened.as_of_now());
        opened.forget(&digest(1));
        assert!(opened.get(&digest(1), 4).is_none());
        let (before, damaged) = (opened.as_of_now(), open());
        opened.forget(&digest(0));
        opened.put(digest(0), damaged, &before);
        assert!(
            opened.get(&digest(0), 4).is_none(),
            "it was put aside since it was opened"
        );
        opened.put(digest(0), open(), &opened.as_of_now());
        drop(file);
        assert!(opened.get(&digest(0), 4).is_none(), "it was removed");
    }

    #[test]
    fn the_least_recently_used_goes() {
        let opened = Opened::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        let put = |n| {
            let file = Arc::new(File::open(file.path()).unwrap());
            opened.put(digest(n), file, &opened.as_of_now());
        };
        (0..MAX_FILES).for_each(put);
        assert!(opened.get(&digest(0), 0).is_some());
        put(MAX_FILES);
        assert!(opened.get(&digest(0), 0).is_some());
        assert!(opened.get(&digest(1), 0).is_none());
        assert!((2..=MAX_FILES).all(|n| opened.get(&digest(n), 0).is_some()));
    }
}
