//! What a test sees of a folder and of the file system below it.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Bytes on disk of what `max_size` is about: blobs, what is staged, what was put aside, and the index with its copy. Not
/// among them: the folders themselves, the lock and the layout's mark, some 4 KiB each. A file that is unlinked but
/// still open is seen by nobody, here as with `du`.
pub fn du(cache: &Path) -> u64 {
    opened(cache).values().map(|(_, bytes)| bytes).sum()
}

fn on_disk(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

/// Every file, once: a rename in the middle of the walk may show it twice.
fn opened(cache: &Path) -> HashMap<u64, (File, u64)> {
    let mut files = HashMap::new();
    let folders = ["blobs/sha256", "blobs/sha512", "staging", "quarantine"];
    let top = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let of_index = top.filter(|entry| entry.file_name().to_string_lossy().starts_with("index."));
    let mut paths: Vec<PathBuf> = of_index.map(|entry| entry.path()).collect();
    for folder in folders {
        let entries = std::fs::read_dir(cache.join(folder)).into_iter().flatten();
        paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for path in paths {
        // Gone since it was listed: not there.
        let Ok(file) = File::open(path) else { continue };
        let meta = file.metadata().expect("metadata of an open file");
        files.insert(meta.ino(), (file, on_disk(&meta)));
    }
    files
}

/// At most what [`du`] would be if it took no time: what went away during the walk does not count.
fn at_once(cache: &Path) -> u64 {
    let still = |(file, bytes): &(File, u64)| {
        let meta = file.metadata().expect("metadata of an open file");
        if meta.nlink() == 0 {
            0
        } else {
            on_disk(&meta).min(*bytes)
        }
    };
    opened(cache).values().map(still).sum()
}

/// Takes samples of something, as fast as it can, until it is asked for the worst.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u64, usize)>>,
}

impl Sampler {
    /// Of the bytes on disk of a cache folder: the most.
    pub fn of_folder(cache: PathBuf) -> Sampler {
        Sampler::start(move |worst: u64| worst.max(at_once(&cache)), 0)
    }

    /// Of the free bytes of a file system: the least.
    pub fn of_free(place: PathBuf) -> Sampler {
        Sampler::start(move |worst: u64| worst.min(free(&place)), u64::MAX)
    }

    fn start(mut next: impl FnMut(u64) -> u64 + Send + 'static, first: u64) -> Sampler {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut worst, mut samples) = (first, 0);
            while !stopped.load(Ordering::Acquire) || samples == 0 {
                worst = next(worst);
                samples += 1;
                std::thread::yield_now();
            }
            (worst, samples)
        });
        Sampler {
            stop,
            thread: Some(thread),
        }
    }

    /// The worst, and how often it looked.
    pub fn finish(mut self) -> (u64, usize) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("a sampler that runs");
        thread.join().expect("a sampler without a panic")
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

pub fn free(place: &Path) -> u64 {
    let stat = rustix::fs::statvfs(place).expect("a file system");
    stat.f_bavail * stat.f_frsize
}

/// A small file system of its own, in memory. Unmounted when dropped, also by a panic.
pub struct SmallDisk {
    place: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, and a line that says so, where mounting is not allowed: what needs it is then not tested.
    pub fn mount(mib: u32) -> Option<SmallDisk> {
        let place = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "larder-test"])
            .arg(place.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { place }),
            other => {
                eprintln!("NOT TESTED: a small file system cannot be mounted here, that takes root: {other:?}");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Takes all the room there is, as another program might. Gives the file that does.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).expect("a file");
        let mut piece = 1 << 20;
        while piece > 0 {
            match std::io::Write::write(&mut file, &vec![1; piece]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => piece /= 2,
                Err(error) => panic!("cannot fill {}: {error}", path.display()),
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: somebody may have a file open still.
        let _ = Command::new("umount").arg("-l").arg(self.place.path()).output();
    }
}
